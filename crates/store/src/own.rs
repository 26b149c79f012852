//! The files that Fairlead itself writes, all below `fairlead/` in the store directory.
//!
//! One object, one file, named after the object (shortened where it must be), so that a writer need not look at
//! any other. Writers of all processes take turns by a lock on `fairlead/.lock`; readers need none, because a
//! file is replaced by renaming a complete one over it. The lock's holder owns `fairlead/.new`, where the next
//! file grows: one left by a writer that was killed is removed.
//!
//! While a file of others is broken, `fairlead/.last-good/` holds what it said before, so that a restart does
//! not forget it.
//!
//! `fairlead/.reports/` holds what each node says of itself.
//!
//! `fairlead/.identity` holds a random text, written once. A directory that comes back with the same identity
//! was away; one without it was lost, and what is missing in it was not removed by anyone.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cluster::{Key, Kind};
use ipnet::IpNet;
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::Deserialize;
use serde_json::json;

use crate::manifest::OWN_API;
use crate::{Error, Report, Version};

/// The folder of our own files.
pub(crate) const FOLDER: &str = "fairlead";

/// The folder of all claims.
pub(crate) const CLAIMS: &str = "fairlead/claims";

/// The folder of the last good versions of broken files.
pub(crate) const LAST_GOOD: &str = "fairlead/.last-good";

/// The file that holds what a node reports. It is nobody's manifest, so it is hidden from those who read them.
pub(crate) fn report_path(node: &str) -> PathBuf {
    Path::new(FOLDER).join(".reports").join(format!("{}.json", fitting(node.to_owned())))
}

/// The file that holds an object of ours, relative to the store directory.
pub(crate) fn path(key: &Key) -> PathBuf {
    // A namespace has no dots, so the first dot parts it from the name.
    let name = name(key, '.');
    Path::new(FOLDER).join(folder(key.kind())).join(format!("{}.json", fitting(name)))
}

/// An object's name, behind its namespace where it has one.
pub(crate) fn name(key: &Key, separator: char) -> String {
    match key {
        Key::Node(name)
        | Key::Namespace(name)
        | Key::Lease(name)
        | Key::ClusterNetworkPolicy(name)
        | Key::ServiceCidr(name) => name.to_string(),
        Key::Pod(name)
        | Key::PodStatus(name)
        | Key::Service(name)
        | Key::EndpointSlice(name)
        | Key::NetworkPolicy(name) => format!("{}{separator}{}", name.namespace, name.name),
        Key::Claim(cidr) => claim_name(*cidr),
    }
}

/// The folder of all objects of a kind.
pub(crate) fn folder(kind: Kind) -> &'static str {
    match kind {
        Kind::Node => "nodes",
        Kind::Namespace => "namespaces",
        Kind::Pod => "pods",
        Kind::PodStatus => "pod-statuses",
        Kind::Service => "services",
        Kind::EndpointSlice => "endpoint-slices",
        Kind::Lease => "leases",
        Kind::Claim => "claims",
        Kind::NetworkPolicy => "network-policies",
        Kind::ClusterNetworkPolicy => "cluster-network-policies",
        Kind::ServiceCidr => "service-cidrs",
    }
}

/// A name of at most 250 bytes: file systems take 255, Kubernetes' names with a namespace have up to 317. The
/// plus sign stands in no object's name, so no two objects share a file.
fn fitting(name: String) -> String {
    if name.len() <= 250 {
        return name;
    }
    let head = name.get(..name.floor_char_boundary(200)).unwrap_or_default();
    format!("{head}+{}", Version::of(name.as_bytes()))
}

/// The name of the claim of a CIDR: `10.244.3.0-24`.
pub(crate) fn claim_name(cidr: IpNet) -> String {
    cidr.to_string().replace('/', "-")
}

/// Where the last good version of the file `relative` is kept while that file is broken.
pub(crate) fn last_good_path(relative: &Path) -> PathBuf {
    let name = Version::of(relative.as_os_str().as_bytes());
    Path::new(LAST_GOOD).join(format!("{name}.json"))
}

/// The pod CIDR that a file of [`CLAIMS`] is about, by its name.
pub(crate) fn claimed_cidr(name: &Path) -> Option<IpNet> {
    cidr_of_claim(name.to_str()?.strip_suffix(".json")?)
}

/// The CIDR whose claim has this name.
pub(crate) fn cidr_of_claim(name: &str) -> Option<IpNet> {
    let (address, length) = name.rsplit_once('-')?;
    format!("{address}/{length}").parse().ok()
}

/// The contents of a report's file.
pub(crate) fn encode_report(report: &Report) -> Vec<u8> {
    let Report { node, ready, reason, message, version } = report;
    let value = json!({
        "apiVersion": OWN_API, "kind": "NodeReport", "metadata": {"name": node},
        "status": {"ready": ready, "reason": reason, "message": message, "agentVersion": version},
    });
    format!("{value:#}\n").into_bytes()
}

/// What a node reports, if it does.
pub(crate) fn read_report(root: &Path, node: &str) -> Option<Report> {
    let path = root.join(report_path(node));
    match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(spoilt_report(node, &path, &error)),
        Ok(bytes) => Some(decode_report(node, &path, &bytes)),
    }
}

/// The report that stands at `path`.
pub(crate) fn decode_report(node: &str, path: &Path, bytes: &[u8]) -> Report {
    #[derive(Deserialize)]
    struct NodeReport {
        status: Status,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Status {
        ready: bool,
        reason: String,
        message: String,
        agent_version: String,
    }
    match serde_json::from_slice(bytes) {
        Ok(NodeReport { status: Status { ready, reason, message, agent_version } }) => {
            Report { node: node.to_owned(), ready, reason, message, version: agent_version }
        }
        Err(error) => spoilt_report(node, path, &error),
    }
}

fn spoilt_report(node: &str, path: &Path, error: &dyn std::error::Error) -> Report {
    let told = format!("its report in {} cannot be read: {error}", path.display());
    Report::unknown(node, told, String::new())
}

/// The right to write, held by one writer of all processes at a time.
pub(crate) struct Lock<'r> {
    root: &'r Path,
    _file: File,
}

impl<'r> Lock<'r> {
    /// Waits for its turn.
    pub(crate) fn take(root: &'r Path) -> Result<Self, Error> {
        let folder = root.join(FOLDER);
        match fs::create_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::directory_away(root, error));
            }
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::Io { action: "create", path: folder, source: error });
            }
            Ok(()) => sync_folder_of(&folder)?,
            Err(_) => {}
        }
        let path = folder.join(".lock");
        let file = lock(&path).map_err(|source| Error::Io { action: "lock", path, source })?;
        let lock = Self { root, _file: file };
        lock.identify()?;
        Ok(lock)
    }

    /// Replaces the file `relative`, whole or not at all. `durable` files outlive a power cut from now on.
    pub(crate) fn replace(&self, relative: &Path, contents: &[u8], durable: bool) -> Result<(), Error> {
        let growing = self.root.join(FOLDER).join(".new");
        let to = self.root.join(relative);
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { action, path, source }
        };
        if let Some(folder) = to.parent() {
            // One level only: a store directory that just went away is not to be made anew.
            match fs::create_dir(folder) {
                // A new folder's own name has to outlive a power cut too.
                Ok(()) if durable => sync_folder_of(folder)?,
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(io("create", folder)(error)),
            }
        }
        let mut file = create_anew(&growing).map_err(io("create", &growing))?;
        file.write_all(contents).map_err(io("write", &growing))?;
        if durable {
            file.sync_all().map_err(io("write", &growing))?;
        }
        fs::rename(&growing, &to).map_err(io("replace", &to))?;
        if durable { sync_folder_of(&to) } else { Ok(()) }
    }

    /// Removes the file `relative`. True if it was there.
    pub(crate) fn remove(&self, relative: &Path) -> Result<bool, Error> {
        let path = self.root.join(relative);
        match fs::remove_file(&path) {
            Ok(()) => sync_folder_of(&path).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(Error::Io { action: "remove", path, source }),
        }
    }

    fn identify(&self) -> Result<(), Error> {
        let relative = Path::new(FOLDER).join(".identity");
        if fs::exists(self.root.join(&relative)).unwrap_or(false) {
            return Ok(());
        }
        self.replace(&relative, (new_identity()? + "\n").as_bytes(), true)
    }
}

/// Makes a file where nothing is, or what a killed writer left. Follows no link to somebody else's file.
fn create_anew(path: &Path) -> io::Result<File> {
    match File::create_new(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            File::create_new(path)
        }
        other => other,
    }
}

/// Makes the names in the folder that holds `path` outlive a power cut.
fn sync_folder_of(path: &Path) -> Result<(), Error> {
    // A relative store directory of one part stands in the current one.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|source| Error::Io { action: "write", path: folder.to_owned(), source })
}

fn lock(path: &Path) -> io::Result<File> {
    loop {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?);
        while let Err(error) = rustix::fs::flock(&file, FlockOperation::LockExclusive) {
            if error != rustix::io::Errno::INTR {
                return Err(error.into());
            }
        }
        // The directory may have been replaced while we waited; its new lock is another file.
        let (held, there) = (file.metadata()?, fs::metadata(path));
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino())) {
            return Ok(file);
        }
    }
}

/// A random text that no other store has.
pub(crate) fn new_identity() -> Result<String, Error> {
    let mut random = [0; 16];
    let source = Path::new("/dev/urandom");
    let read = File::open(source).and_then(|mut file| file.read_exact(&mut random));
    read.map_err(|error| Error::Io { action: "read", path: source.to_owned(), source: error })?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The directory's identity, if it has one.
pub(crate) fn identity(root: &Path) -> Option<Vec<u8>> {
    fs::read(root.join(FOLDER).join(".identity")).ok()
}
