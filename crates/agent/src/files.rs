//! What the agent leaves on disk for others: whole files, replaced atomically.
//!
//! Read [`NetworkFile`] (what the CNI plugin reads) and [`Conflist`] (what the container runtime looks for). Both
//! write only when something changed, so an idle agent never touches the disk, and both leave a killed writer's
//! half file under a name nobody reads, which the next write replaces.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use cluster::{NodeNetwork, NodeNetworkError};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::Options;

/// A file of the agent's could not be written, read or removed. Tried again with the next look at the kernel.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file system refused.
    #[error("{tried} {path}")]
    Io {
        /// What was tried.
        tried: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The node's network is one that no plugin would accept.
    #[error("write {path}")]
    Network {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: NodeNetworkError,
    },
}

/// What is remembered of a network, whatever else stands there.
#[derive(Deserialize)]
struct Remembered {
    node: String,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<IpNet>,
}

/// `<state dir>/network.json`: the node's part of the pod network.
#[derive(Debug)]
pub(crate) struct NetworkFile {
    path: PathBuf,
}

impl NetworkFile {
    /// The file's name within the state directory.
    pub(crate) const NAME: &'static str = "network.json";

    pub(crate) fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join(Self::NAME) }
    }

    /// The pod CIDRs written by an earlier run for this node, also by an agent that wrote more than this one knows; none when
    /// there is no file that can be read.
    pub(crate) fn remembered(&self, node: &str) -> Vec<IpNet> {
        let text = fs::read(&self.path).unwrap_or_default();
        let network = serde_json::from_slice::<Remembered>(&text).ok().filter(|network| network.node == node);
        let cidrs = network.map(|network| network.pod_cidrs).unwrap_or_default();
        cidrs.into_iter().filter(|cidr| cidr.addr() == cidr.network()).collect()
    }

    /// Writes the file unless it says so already; true if it was written.
    pub(crate) fn write(&self, network: &NodeNetwork) -> Result<bool, FileError> {
        let text =
            network.to_json().map_err(|source| FileError::Network { path: self.path.clone(), source })?;
        replace(&self.path, &text)
    }

    /// Tells the plugin that no pod can be attached for now, and why; true if the file was there and did not say so.
    pub(crate) fn suspend(&self, reason: &str) -> Result<bool, FileError> {
        let Ok(network) = NodeNetwork::from_json(&fs::read(&self.path).unwrap_or_default()) else {
            // The plugin refuses what is not there, or cannot be read.
            return Ok(false);
        };
        let fresh = network.not_ready.is_none();
        self.write(&NodeNetwork { not_ready: Some(reason.to_owned()), ..network })?;
        Ok(fresh)
    }

    /// Removes the file; true if it was there.
    pub(crate) fn remove(&self) -> Result<bool, FileError> {
        remove(&self.path)
    }
}

/// `<conf dir>/10-fairlead.conflist`: there once the node can carry a pod, and until it is cleaned. It stays while the
/// node can carry no new ones, which [`NetworkFile`] says: a runtime without a conflist cannot delete a pod either.
#[derive(Debug)]
pub(crate) struct Conflist {
    path: PathBuf,
    text: Vec<u8>,
}

impl Conflist {
    pub(crate) fn new(options: &Options) -> Self {
        Self { path: options.conf_dir.join(CONFLIST), text: conflist(options) }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts it in place unless it is there already; true if it was written.
    pub(crate) fn write(&self) -> Result<bool, FileError> {
        replace(&self.path, &self.text)
    }

    /// Takes it away; true if it was there.
    pub(crate) fn remove(&self) -> Result<bool, FileError> {
        remove(&self.path)
    }
}

/// The conflist's name within the directory of conflists. Runtimes take the first by name.
pub const CONFLIST: &str = "10-fairlead.conflist";

/// The network's name: it is part of what every attachment's leavings are found by.
pub(crate) const NETWORK: &str = "fairlead";

/// The network's configuration list; it holds only what differs from the plugin's defaults.
fn conflist(options: &Options) -> Vec<u8> {
    let mut plugin = Map::new();
    plugin.insert("type".to_owned(), json!("fairlead"));
    if options.state_dir != Path::new(Options::STATE_DIR) {
        plugin.insert("stateDir".to_owned(), json!(absolute(&options.state_dir)));
    }
    if let Some(ipam_dir) = &options.ipam_dir {
        plugin.insert("dataDir".to_owned(), json!(absolute(ipam_dir)));
    }
    if options.bridge {
        plugin.insert("mode".to_owned(), json!("bridge"));
    }
    let mut plugins = vec![Value::Object(plugin)];
    if options.config.plugins.portmap {
        plugins.push(json!({ "type": "portmap", "capabilities": { "portMappings": true } }));
    }
    if options.config.plugins.bandwidth {
        plugins.push(json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } }));
    }
    let list = json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": NETWORK,
        "plugins": plugins,
    });
    format!("{list:#}\n").into_bytes()
}

/// The runtime calls plugins from a directory of its own.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Makes a directory and those above it.
pub(crate) fn make_directory(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(failed("make directory", path))
}

/// Replaces a file by one with this content, whole or not at all; false when it has this content already.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<bool, FileError> {
    if fs::read(path).is_ok_and(|have| have == content) {
        return Ok(false);
    }
    if let Some(directory) = path.parent() {
        make_directory(directory)?;
    }
    write_whole(path, content, 0o644, File::sync_data)?;
    Ok(true)
}

/// Replaces a file that is nobody else's business.
pub(crate) fn replace_private(path: &Path, content: &[u8]) -> Result<(), FileError> {
    write_whole(path, content, 0o600, File::sync_data)
}

/// The same without waiting for the disk: whole whenever the agent ends, and no longer needed when the machine has stopped.
pub(crate) fn replace_hastily(path: &Path, content: &[u8]) -> Result<(), FileError> {
    write_whole(path, content, 0o600, |_| Ok(()))
}

/// Where a file is while it is written.
fn half_of(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.half"))
}

/// The name of the file that one of this name is to become, if it is one that is being written.
pub(crate) fn whole_of(half: &str) -> Option<&str> {
    half.strip_prefix('.').and_then(|name| name.strip_suffix(".half"))
}

/// Writes a file beside its place, settles it and moves it there.
fn write_whole(
    path: &Path,
    content: &[u8],
    mode: u32,
    settle: fn(&File) -> io::Result<()>,
) -> Result<(), FileError> {
    let half = half_of(path);
    // One that a killed agent left may have another mode.
    remove(&half)?;
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&half)?;
        file.write_all(content)?;
        settle(&file)
    };
    write().map_err(failed("write", &half))?;
    fs::rename(&half, path).map_err(failed("replace", path))
}

/// Removes what writers that were killed left half written in a directory.
pub(crate) fn remove_halves(directory: &Path) -> Result<Vec<PathBuf>, FileError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed("list", directory))?,
    };
    let files = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    let names = files.map(|file| file.file_name());
    let is_half = |name: &OsStr| name.to_str().and_then(whole_of).is_some_and(|whole| !whole.is_empty());
    let halves: Vec<PathBuf> = names.filter(|name| is_half(name)).map(|name| directory.join(name)).collect();
    halves.iter().try_for_each(|half| remove(half).map(drop))?;
    Ok(halves)
}

/// Removes a file; true if it was there.
pub(crate) fn remove(path: &Path) -> Result<bool, FileError> {
    remove_file(path).map_err(failed("remove", path))
}

/// The same, for who says himself what was tried.
pub(crate) fn remove_file(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

pub(crate) fn failed(tried: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError::Io { tried, path, source }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{Conflist, NetworkFile, half_of, remove_halves};
    use crate::Options;
    use cluster::NodeNetwork;

    fn network() -> NodeNetwork {
        NodeNetwork {
            node: "node1".to_owned(),
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            mtu: 1450,
            not_ready: None,
            enforcement: None,
        }
    }

    #[test]
    fn the_network_is_written_once_and_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let file = NetworkFile::new(&directory.path().join("run"));
        assert!(file.remembered("node1").is_empty());
        assert!(file.write(&network()).unwrap());
        assert!(!file.write(&network()).unwrap(), "nothing changed");
        assert_eq!(file.remembered("node1"), network().pod_cidrs);
        assert!(file.remembered("node2").is_empty(), "a disk moved to another node");
        let names: Vec<_> = std::fs::read_dir(directory.path().join("run")).unwrap().collect();
        assert_eq!(names.len(), 1, "no half files");
        // No plugin of this version would take what it does not know; the pod CIDRs are remembered all the same.
        let later =
            String::from_utf8(network().to_json().unwrap()).unwrap().replacen('{', r#"{"later": [],"#, 1);
        std::fs::write(&file.path, &later).unwrap();
        assert!(NodeNetwork::from_json(later.as_bytes()).is_err());
        assert_eq!(file.remembered("node1"), network().pod_cidrs);
        assert!(file.remove().unwrap() && !file.remove().unwrap());
    }

    #[test]
    fn a_node_that_can_carry_no_new_pod_says_why_and_keeps_what_it_said() {
        let directory = tempfile::tempdir().unwrap();
        let file = NetworkFile::new(directory.path());
        assert!(!file.suspend("no underlay").unwrap(), "there is nothing to suspend");
        file.write(&network()).unwrap();
        assert!(file.suspend("no underlay").unwrap() && !file.suspend("no tunnel").unwrap());
        let read = NodeNetwork::from_json(&std::fs::read(&file.path).unwrap()).unwrap();
        assert_eq!(read, NodeNetwork { not_ready: Some("no tunnel".into()), ..network() });
        assert_eq!(file.remembered("node1"), network().pod_cidrs);
    }

    #[test]
    fn what_a_killed_writer_left_is_removed_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name| directory.path().join(name);
        let half = half_of(&path("leases.txt"));
        for file in [&half, &path("leases.txt"), &path(".half"), &path("half")] {
            std::fs::write(file, "").unwrap();
        }
        assert_eq!(remove_halves(&path("not there")).unwrap(), Vec::<PathBuf>::new());
        assert_eq!(remove_halves(directory.path()).unwrap(), [half]);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_network_no_plugin_would_accept_replaces_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = NetworkFile::new(directory.path());
        file.write(&network()).unwrap();
        let mut bad = network();
        bad.pod_cidrs.clear();
        assert!(file.write(&bad).is_err());
        assert_eq!(file.remembered("node1"), network().pod_cidrs);
    }

    #[test]
    fn the_conflist_says_only_what_is_not_the_default() {
        let directory = tempfile::tempdir().unwrap();
        let mut options = Options::new("node1", store::Location::Directory("/store".into()));
        options.conf_dir = directory.path().to_owned();
        let conflist = Conflist::new(&options);
        assert!(conflist.write().unwrap());
        let read = || -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(conflist.path()).unwrap()).unwrap()
        };
        let chained = serde_json::json!([
            { "type": "fairlead" },
            { "type": "portmap", "capabilities": { "portMappings": true } },
            { "type": "bandwidth", "capabilities": { "bandwidth": true } },
        ]);
        assert_eq!(read()["plugins"], chained);
        assert_eq!(read()["name"], "fairlead");
        options.state_dir = "/tmp/state".into();
        options.ipam_dir = Some("/tmp/ipam".into());
        options.bridge = true;
        options.config.plugins = crate::config::Chained { portmap: false, bandwidth: false };
        assert!(Conflist::new(&options).write().unwrap());
        let plugin = serde_json::json!(
            [{ "type": "fairlead", "stateDir": "/tmp/state", "dataDir": "/tmp/ipam", "mode": "bridge" }]
        );
        assert_eq!(read()["plugins"], plugin);
        assert!(conflist.remove().unwrap() && !conflist.remove().unwrap());
    }
}
