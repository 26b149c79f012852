//! `<state dir>/leases.txt`: what the peers were, for the agent that starts next.
//!
//! Read [`LeasesFile`]. A store that was wiped or restored may have no lease of a peer until that peer's agent has written it
//! again. An agent that runs keeps the way to it meanwhile (see `departed.rs`); one that starts then knows it from here.
//!
//! The first line says whose view of what it is, each further one is a node's name and its lease as a manifest. What cannot be
//! read, or is another node's or of another store, is as if it were not there. The file is written after looks at
//! everything, so it may lack what has come within the last half minute; and without waiting for the disk, for what it
//! says is of no use once the machine has stopped.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cluster::{Lease, Object};
use store::Location;

use crate::files::{self, FileError};
use crate::report::told;

/// The file.
#[derive(Debug)]
pub(crate) struct LeasesFile {
    path: PathBuf,
    /// Its first line.
    head: String,
}

impl LeasesFile {
    /// The file's name within the state directory.
    pub(crate) const NAME: &'static str = "leases.txt";

    /// The one of that node, with what it knows of that store.
    pub(crate) fn new(state_dir: &Path, node: &str, store: &Location) -> Self {
        Self { path: state_dir.join(Self::NAME), head: format!("{node} {store}\n") }
    }

    /// The leases that an earlier agent knew, of those nodes that `wanted` says yes to.
    pub(crate) fn read(&self, wanted: impl Fn(&str) -> bool) -> Vec<Lease> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %self.path.display(), %error, "what the peers were is not remembered");
                }
                return Vec::new();
            }
        };
        let lines = text.strip_prefix(&self.head).unwrap_or_default().lines();
        let named = lines.filter_map(|line| line.split_once(' ')).filter(|(node, _)| wanted(node));
        named.filter_map(|(node, manifest)| lease_of(node, manifest)).collect()
    }

    /// Has the file say this. Without it the next agent goes by the store alone, so no more than the log hears of a failure.
    pub(crate) fn keep(&self, leases: &BTreeMap<Arc<str>, Arc<Lease>>) {
        let mut text = self.head.clone().into_bytes();
        for (node, lease) in leases {
            text.extend_from_slice(node.as_bytes());
            text.push(b' ');
            let manifest = store::write_manifest(&Object::Lease(Arc::clone(lease)));
            let lines = manifest.split(|byte| *byte == b'\n');
            text.extend(lines.flat_map(<[u8]>::trim_ascii_start));
            text.push(b'\n');
        }
        if let Err(error) = files::replace_hastily(&self.path, &text) {
            tracing::warn!(error = %told(&error), "what the peers are is not kept for the next start");
        }
    }

    /// Removes the file; true if it was there.
    pub(crate) fn forget(state_dir: &Path) -> Result<bool, FileError> {
        files::remove(&state_dir.join(Self::NAME))
    }
}

fn lease_of(node: &str, manifest: &str) -> Option<Lease> {
    let mut objects = store::read_manifest(LeasesFile::NAME, manifest.as_bytes()).ok()?;
    match (objects.pop()?, objects.is_empty()) {
        (Object::Lease(lease), true) if *lease.node == *node => Some(Arc::unwrap_or_clone(lease)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use cluster::{Backend, Flannel, PublicKey};

    use super::*;

    fn lease(node: &str, backend: Backend) -> Lease {
        Lease {
            node: node.into(),
            pod_cidrs: ["10.244.1.0/24", "fd00:10:244:1::/64"].map(|cidr| cidr.parse().unwrap()).into(),
            underlay: ["198.18.0.1", "fd00::1"].map(|address| address.parse().unwrap()).into(),
            backend,
            mtu: 1450,
            flannel: Flannel::Apart,
        }
    }

    #[test]
    fn leases_are_what_they_were_for_the_same_node_and_store_alone() {
        let directory = tempfile::tempdir().unwrap();
        let store = Location::Directory("/store".into());
        let file = LeasesFile::new(directory.path(), "node1", &store);
        assert_eq!(file.read(|_| true), []);
        let mac = "0a:58:0a:f4:01:00".parse().unwrap();
        let all = [
            lease("node2", Backend::Vxlan { vni: 1, port: 4789, mac }),
            lease("node3", Backend::wireguard(51820, PublicKey([7; 32]))),
            lease("node4.example", Backend::HostGw),
        ];
        file.keep(&all.iter().map(|lease| (lease.node.clone(), Arc::new(lease.clone()))).collect());
        assert_eq!(file.read(|_| true), all);
        assert_eq!(file.read(|node| node == "node3"), all[1..2]);
        assert_eq!(LeasesFile::new(directory.path(), "node2", &store).read(|_| true), []);
        let other = Location::Directory("/other".into());
        assert_eq!(LeasesFile::new(directory.path(), "node1", &other).read(|_| true), []);
        assert!(
            LeasesFile::forget(directory.path()).unwrap() && !LeasesFile::forget(directory.path()).unwrap()
        );
    }

    #[test]
    fn of_a_file_that_makes_no_sense_what_does_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = LeasesFile::new(directory.path(), "node1", &Location::Directory("/store".into()));
        let good = lease("node2", Backend::HostGw);
        file.keep(&BTreeMap::from([(good.node.clone(), Arc::new(good.clone()))]));
        let path = directory.path().join(LeasesFile::NAME);
        let text = fs::read_to_string(&path).unwrap();
        let line = text.lines().nth(1).unwrap();
        let renamed = line.replacen("node2", "node3", 1);
        fs::write(&path, format!("{text}{renamed}\nnode4\nnode5 {{\nnode6 {{}}\n\n node7 {{")).unwrap();
        assert_eq!(file.read(|_| true), [good]);
        fs::write(&path, [&b"node1 dir:/store\n"[..], &[0xff; 9]].concat()).unwrap();
        assert_eq!(file.read(|_| true), []);
    }
}
