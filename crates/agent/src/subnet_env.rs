//! The file that flannel calls subnet.env, for programs that read it: flannel's own CNI plugin, or a script that starts
//! docker.
//!
//! Read [`SubnetFile::keep`] and [`told`]. The file is written where the configuration says (`flannel.subnetFile`), each
//! time that something in it changes, whole or not at all. It lies among other people's files, so what was written is
//! also kept in the state directory: only a file that still says that is taken away again.
//!
//! flannel 0.28, `WriteSubnetFile`: the subnet stands there by its first usable address.

use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use cluster::NodeNetwork;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::files::{FileError, remove, replace};

/// Flannel's file, as this agent keeps it.
#[derive(Debug)]
pub(crate) struct SubnetFile {
    record: PathBuf,
}

/// What was written, and where.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    path: PathBuf,
    text: String,
}

impl SubnetFile {
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self { record: state_dir.join("subnet-file.json") }
    }

    /// Has the file there, and none where an earlier configuration wanted it; true if it was written.
    pub(crate) fn keep(
        &self,
        path: &Path,
        network: &NodeNetwork,
        masquerade: bool,
    ) -> Result<bool, FileError> {
        if self.written().is_some_and(|before| before.path != *path) {
            self.withdraw()?;
        }
        let written = Written { path: path.to_owned(), text: text(network, masquerade) };
        // Serde knows how to write texts; were it not so, the file would only stay behind.
        let record = serde_json::to_vec(&written).unwrap_or_default();
        // The record first: a file that we might not know for ours would never go.
        replace(&self.record, &record)?;
        replace(path, written.text.as_bytes())
    }

    /// Takes the file away if it is still as it was written; says where it was.
    pub(crate) fn withdraw(&self) -> Result<Option<PathBuf>, FileError> {
        let Some(Written { path, text }) = self.written() else { return Ok(None) };
        let is_ours = fs::read(&path).is_ok_and(|have| have == text.as_bytes());
        let removed = is_ours && remove(&path)?;
        remove(&self.record)?;
        Ok(removed.then_some(path))
    }

    fn written(&self) -> Option<Written> {
        serde_json::from_slice(&fs::read(&self.record).ok()?).ok()
    }
}

/// The subnets that a file of flannel's tells; none if there is none.
pub(crate) fn told(path: &Path) -> Vec<IpNet> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let subnet = |key: &str| {
        let value = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
        value.trim().parse::<IpNet>().ok().map(|net| net.trunc())
    };
    ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"].into_iter().filter_map(subnet).collect()
}

fn text(network: &NodeNetwork, masquerade: bool) -> String {
    let mut text = String::new();
    for (is_v4, infix) in [(true, ""), (false, "IPV6_")] {
        let of_family = |net: &&IpNet| net.addr().is_ipv4() == is_v4;
        let (whole, own) =
            (network.cluster_cidrs.iter().find(of_family), network.pod_cidrs.iter().find(of_family));
        if let (Some(whole), Some(own)) = (whole, own) {
            // To write into a text does not fail.
            let _ = writeln!(text, "FLANNEL_{infix}NETWORK={whole}");
            let _ = writeln!(text, "FLANNEL_{infix}SUBNET={}/{}", first_address(own), own.prefix_len());
        }
    }
    let _ = writeln!(text, "FLANNEL_MTU={}\nFLANNEL_IPMASQ={masquerade}", network.mtu);
    text
}

/// The one behind the base address.
fn first_address(net: &IpNet) -> IpAddr {
    match net.network() {
        IpAddr::V4(base) => IpAddr::from((u32::from(base).saturating_add(1)).to_be_bytes()),
        IpAddr::V6(base) => IpAddr::from((u128::from(base).saturating_add(1)).to_be_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use cluster::NodeNetwork;

    use super::{SubnetFile, told};

    fn network(mtu: u32) -> NodeNetwork {
        NodeNetwork {
            node: "node1".to_owned(),
            pod_cidrs: vec!["10.244.7.0/24".parse().unwrap(), "fd00:10:244:7::/64".parse().unwrap()],
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()],
            mtu,
            not_ready: None,
            enforcement: None,
        }
    }

    #[test]
    fn the_file_is_flannels_and_follows_what_changes() {
        let directory = tempfile::tempdir().unwrap();
        let (file, path) =
            (SubnetFile::new(&directory.path().join("run")), directory.path().join("flannel/subnet.env"));
        assert!(file.keep(&path, &network(1450), true).unwrap());
        let want = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\n\
                    FLANNEL_IPV6_NETWORK=fd00:10:244::/56\nFLANNEL_IPV6_SUBNET=fd00:10:244:7::1/64\n\
                    FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), want);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(told(&path), network(0).pod_cidrs);
        assert!(!file.keep(&path, &network(1450), true).unwrap(), "nothing changed");
        assert!(file.keep(&path, &network(1400), false).unwrap());
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("FLANNEL_MTU=1400\nFLANNEL_IPMASQ=false\n"), "{text}");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no half file");
    }

    #[test]
    fn only_what_is_still_as_it_was_written_is_taken_away() {
        let directory = tempfile::tempdir().unwrap();
        let file = SubnetFile::new(directory.path());
        let (one, other) = (directory.path().join("one.env"), directory.path().join("other.env"));
        assert_eq!(file.withdraw().unwrap(), None);
        file.keep(&one, &network(1450), true).unwrap();
        file.keep(&other, &network(1450), true).unwrap();
        assert!(!one.exists() && other.exists(), "the file is wanted elsewhere");
        fs::write(&other, "FLANNEL_SUBNET=10.9.9.1/24\n").unwrap();
        assert_eq!(file.withdraw().unwrap(), None, "somebody else has written it since");
        assert!(other.exists());
        file.keep(&other, &network(1450), true).unwrap();
        assert_eq!(file.withdraw().unwrap().as_ref(), Some(&other));
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn a_file_that_says_nothing_tells_no_subnet() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("subnet.env");
        assert!(told(&path).is_empty());
        for text in ["", "FLANNEL_SUBNET=\n", "FLANNEL_SUBNETS=10.9.9.1/24\n", "FLANNEL_SUBNET=10.9.9.1\n"] {
            fs::write(&path, text).unwrap();
            assert!(told(&path).is_empty(), "{text}");
        }
    }
}
