//! What a link was before it was tuned, in a file that the reference plugin reads and writes too:
//!
//! ```text
//! <dataDir>/<containerID>_<ifname>.json   {"mac": "..", "promisc": false, "mtu": 1500, "allmulti": false,
//!                                          "txQLen": 1000, "fairlead": {..}}
//! ```
//!
//! Read [`Place`] first. The member `fairlead` is ours, and the reference passes over it: it says whose file
//! this is, which the name alone cannot (both parts may contain `_`, and the network is not in it), and which
//! link it is about, so that a namespace whose path was used again is left alone.
//!
//! What stays true: a file appears complete or not at all. One that is not JSON was left by the reference when it
//! was killed, and says nothing.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use cni::{Attachment, Error, Fields, Json, Request};
use kernel::link::Link;
use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::attributes::Attributes;
use super::file_error;
use crate::fault::{Failures, fault};
use crate::interface::pod::Pod;
use crate::living::Living;

/// What a file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Backup {
    /// The link's attributes before they were changed.
    pub(super) link: Attributes,
    /// Which link; not told by the reference.
    pub(super) subject: Option<Subject>,
}

/// A link of one namespace, whatever its name and path are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subject {
    namespace: u64,
    link: u32,
}

impl Subject {
    /// This link of this pod.
    pub(super) fn of(pod: &Pod, link: &Link) -> Result<Self, Error> {
        Ok(Self { namespace: pod.namespace.identity().map_err(fault)?.inode, link: link.index })
    }
}

/// Where the file of one attachment is.
#[derive(Debug)]
pub(super) struct Place {
    directory: PathBuf,
    name: String,
    network: String,
    attachment: Attachment,
}

impl Place {
    /// The place for the attachment that an ADD, DEL or CHECK is about.
    pub(super) fn of(request: &Request, directory: &Path) -> Self {
        let attachment = request.attachment();
        Self {
            directory: directory.to_owned(),
            name: format!("{}_{}.json", attachment.container_id, attachment.ifname),
            network: request.config.name.clone(),
            attachment,
        }
    }

    /// What is noted; nothing when there is no file, or none that can be understood.
    pub(super) fn read(&self) -> Result<Option<Backup>, Error> {
        let path = self.directory.join(&self.name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Json::parse(&bytes).ok().and_then(|document| understood(&document))),
            Err(cause) if is_gone(&cause) => Ok(None),
            Err(cause) => Err(file_error("read", &path, &cause)),
        }
    }

    /// Writes the note in place of one that may be there.
    pub(super) fn write(&self, backup: &Backup) -> Result<(), Error> {
        let content = self.document(backup).to_bytes();
        put(&self.directory, &self.name, &content)
            .map_err(|cause| file_error("write", &self.directory.join(&self.name), &cause))
    }

    /// Removes the note, and what a killed ADD left beside it.
    pub(super) fn remove(&self) -> Result<(), Error> {
        let mut failures = Failures::default();
        for name in [unfinished(&self.name), self.name.clone()] {
            failures.note(remove(&self.directory.join(name)));
        }
        failures.into_result()
    }

    fn document(&self, backup: &Backup) -> Json {
        let link = &backup.link;
        let mut members: Vec<(&str, Json)> = Vec::new();
        members.extend(link.mac.map(|mac| ("mac", Json::from(mac.to_string()))));
        members.extend(link.promiscuous.map(|on| ("promisc", Json::from(on))));
        members.extend(link.mtu.map(|mtu| ("mtu", Json::from(mtu))));
        members.extend(link.all_multicast.map(|on| ("allmulti", Json::from(on))));
        members.extend(link.transmit_queue_length.map(|length| ("txQLen", Json::from(length))));
        let mut ours = vec![
            ("network", Json::from(self.network.as_str())),
            ("containerID", Json::from(self.attachment.container_id.as_str())),
            ("ifname", Json::from(self.attachment.ifname.as_str())),
        ];
        if let Some(Subject { namespace, link }) = backup.subject {
            ours.extend([("namespace", Json::from(namespace)), ("link", Json::from(link))]);
        }
        members.push(("fairlead", Json::object(ours)));
        Json::object(members)
    }
}

/// Removes the files of this network's attachments that are not valid.
///
/// # Errors
/// What cannot be listed, read or removed; everything else is done nevertheless.
pub(super) fn collect(directory: &Path, network: &str, valid: &[Attachment]) -> Result<(), Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(cause) if is_gone(&cause) => return Ok(()),
        Err(cause) => return Err(file_error("list", directory, &cause)),
    };
    let mut failures = Failures::default();
    for entry in entries {
        let entry = entry.map_err(|cause| file_error("list", directory, &cause));
        let Some(path) = failures.note(entry).map(|entry| entry.path()) else { continue };
        if !path.extension().is_some_and(|kind| kind == "json" || kind == "new") {
            continue;
        }
        match fs::read(&path) {
            Ok(bytes) if owner(&bytes, network).is_some_and(|owner| !valid.contains(&owner)) => {
                failures.note(remove(&path));
            }
            Ok(_) => {}
            Err(cause) if is_no_file(&cause) => {}
            Err(cause) => drop(failures.note::<()>(Err(file_error("read", &path, &cause)))),
        }
    }
    failures.into_result()
}

/// Removes the reference's files about containers that nobody alive is. They do not say which network they are of.
///
/// # Errors
/// When it cannot be told whose they are, or what cannot be listed, read or removed.
pub(super) fn collect_unclaimed(directory: &Path, request: &Request) -> Result<(), Error> {
    let names = of_the_reference(directory)?;
    if names.is_empty() {
        return Ok(());
    }
    let Some(living) = Living::of(request)? else { return Ok(()) };
    let mut failures = Failures::default();
    for name in living.nobodys_containers(names)? {
        failures.note(remove(&directory.join(name + ".json")));
    }
    failures.into_result()
}

/// The names of the reference's files, without `.json`.
fn of_the_reference(directory: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(cause) if is_gone(&cause) => return Ok(Vec::new()),
        Err(cause) => return Err(file_error("list", directory, &cause)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|cause| file_error("list", directory, &cause))?;
        let file = entry.file_name();
        let Some(name) = file.to_str().and_then(|file| file.strip_suffix(".json")) else { continue };
        match fs::read(entry.path()) {
            Ok(bytes) if is_the_references(&bytes) => names.push(name.to_owned()),
            Ok(_) => {}
            Err(cause) if is_no_file(&cause) => {}
            Err(cause) => return Err(file_error("read", &entry.path(), &cause)),
        }
    }
    Ok(names)
}

/// Whether this is what the reference writes: its members, and no other. One that it was killed over cannot be told
/// from one that it is about to write.
fn is_the_references(bytes: &[u8]) -> bool {
    const MEMBERS: [&str; 5] = ["mac", "promisc", "mtu", "allmulti", "txQLen"];
    let Ok(Json::Object(members)) = Json::parse(bytes) else { return false };
    !members.is_empty() && members.iter().all(|(key, _)| MEMBERS.contains(&key.as_str()))
}

/// Whether a file could be written: the nearest directory that exists can be written to.
///
/// # Errors
/// Code 5 when it cannot.
pub(super) fn may_write(directory: &Path) -> Result<(), Error> {
    for place in directory.ancestors().filter(|place| !place.as_os_str().is_empty()) {
        match rustix::fs::access(place, Access::WRITE_OK | Access::EXEC_OK) {
            Ok(()) => return Ok(()),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(file_error("write to", place, &errno.into())),
        }
    }
    Ok(())
}

/// Whose file this is, if it says so and is of this network.
fn owner(bytes: &[u8], network: &str) -> Option<Attachment> {
    let document = Json::parse(bytes).ok()?;
    let ours = Fields::of(&document).ok()?.optional_object("fairlead").ok()??;
    let text = |key| ours.string(key).map(str::to_owned).ok();
    let owner = Attachment { container_id: text("containerID")?, ifname: text("ifname")? };
    (text("network")? == network).then_some(owner)
}

/// What a file says; what has the wrong type says nothing.
fn understood(document: &Json) -> Option<Backup> {
    let fields = Fields::of(document).ok()?;
    let ours = fields.optional_object("fairlead").ok().flatten();
    let subject = ours.and_then(|ours| {
        Some(Subject {
            namespace: ours.optional_integer("namespace").ok()??,
            link: ours.optional_integer("link").ok()??,
        })
    });
    let link = Attributes {
        mac: fields.string("mac").ok().and_then(|text| text.parse().ok()),
        mtu: fields.optional_integer("mtu").ok().flatten().filter(|mtu| *mtu != 0),
        promiscuous: fields.optional_bool("promisc").ok().flatten(),
        all_multicast: fields.optional_bool("allmulti").ok().flatten(),
        transmit_queue_length: fields.optional_integer("txQLen").ok().flatten(),
    };
    Some(Backup { link, subject })
}

/// Beside the file, for the moment in which it takes the place of another one.
fn unfinished(name: &str) -> String {
    format!(".{name}.new")
}

/// Makes a file with this content, whole, in place of one that may be there.
fn put(directory: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let (fresh, path) = (directory.join(unfinished(name)), directory.join(name));
    match fs::remove_file(&fresh) {
        Err(cause) if !is_gone(&cause) => return Err(cause),
        _ => {}
    }
    let mode = Mode::from_raw_mode(0o600);
    // A file without a name first: what is killed half-way has left nothing.
    let file = match rustix::fs::open(directory, OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC, mode) {
        Ok(file) => file,
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = rustix::fs::open(&fresh, flags, mode)?;
            io::Write::write_all(&mut fs::File::from(file), content)?;
            return take_the_place(&fresh, &path);
        }
        Err(errno) => return Err(errno.into()),
    };
    let file = fs::File::from(file);
    io::Write::write_all(&mut &file, content)?;
    let nameless = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    rustix::fs::linkat(CWD, nameless, CWD, &fresh, AtFlags::SYMLINK_FOLLOW)?;
    take_the_place(&fresh, &path)
}

/// The file `fresh` becomes `path`, or is gone.
fn take_the_place(fresh: &Path, path: &Path) -> io::Result<()> {
    fs::rename(fresh, path).inspect_err(|_| {
        let _ = fs::remove_file(fresh);
    })
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(cause) if !is_gone(&cause) => Err(file_error("remove", path, &cause)),
        _ => Ok(()),
    }
}

/// A directory whose name ends like that of a file is nobody's note.
fn is_no_file(cause: &io::Error) -> bool {
    is_gone(cause) || cause.kind() == io::ErrorKind::IsADirectory
}

fn is_gone(cause: &io::Error) -> bool {
    matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(directory: &Path) -> Place {
        Place::of(&crate::testing::request(r#"{"name": "net"}"#), directory)
    }

    #[test]
    fn what_is_written_is_read_and_the_references_files_are_too() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(&directory.path().join("below"));
        assert_eq!(place.read().unwrap(), None);
        let link = Attributes {
            mac: Some("02:00:00:00:00:01".parse().unwrap()),
            mtu: Some(1500),
            promiscuous: Some(false),
            all_multicast: Some(true),
            transmit_queue_length: Some(0),
        };
        let backup =
            Backup { link: link.clone(), subject: Some(Subject { namespace: 4_026_531_840, link: 7 }) };
        place.write(&Backup { link: Attributes::default(), subject: None }).unwrap();
        place.write(&backup).unwrap();
        assert_eq!(place.read().unwrap().as_ref(), Some(&backup));
        let theirs = "{\n \"mac\": \"02:00:00:00:00:01\",\n \"promisc\": false,\n \"mtu\": 1500,\n \"allmulti\": true,\n \"txQLen\": 0\n}";
        fs::write(place.directory.join("container_eth0.json"), theirs).unwrap();
        assert_eq!(place.read().unwrap(), Some(Backup { link, subject: None }));
        fs::write(place.directory.join("container_eth0.json"), "{\"mac\": ").unwrap();
        assert_eq!(place.read().unwrap(), None);
        place.remove().unwrap();
        place.remove().unwrap();
        assert_eq!(fs::read_dir(&place.directory).unwrap().count(), 0);
    }

    #[test]
    fn stale_files_of_this_network_are_collected_and_no_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let place = place(path);
        let backup = Backup { link: Attributes::default(), subject: None };
        place.write(&backup).unwrap();
        let other = Place { name: "other_eth0.json".into(), network: "other".into(), ..self::place(path) };
        other.write(&backup).unwrap();
        for name in ["reference_eth0.json", "notes.txt", ".half_eth0.json.new"] {
            fs::write(path.join(name), "{\"mtu\": 1500}").unwrap();
        }
        fs::copy(path.join("container_eth0.json"), path.join(".container_eth0.json.new")).unwrap();
        collect(path, "net", std::slice::from_ref(&place.attachment)).unwrap();
        assert_eq!(fs::read_dir(path).unwrap().count(), 6);
        collect(path, "net", &[]).unwrap();
        let mut left: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".half_eth0.json.new", "notes.txt", "other_eth0.json", "reference_eth0.json"]);
        collect(&path.join("nowhere"), "net", &[]).unwrap();
    }

    #[test]
    fn a_directory_among_the_files_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("x.json")).unwrap();
        fs::write(directory.path().join("container_eth0.json"), "{\"mtu\": 1500}").unwrap();
        collect(directory.path(), "net", &[]).unwrap();
        assert_eq!(of_the_reference(directory.path()).unwrap(), ["container_eth0"]);
    }
}
