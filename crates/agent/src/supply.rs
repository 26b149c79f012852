//! What is left of pod CIDRs and pod addresses, told before the last one is taken.
//!
//! Read [`PodAddresses`], then [`told_of_cidrs`]; what is few the crate `route` says. Pod CIDRs are counted where this node takes its
//! own out of the cluster's network; where its Node object says which it is, somebody else gives them out and knows how many there are.
//! Pod addresses are counted by the files in which host-local keeps them.
//!
//! Nobody tells the agent of an address that is given, for a pod starts without it. So the directory is looked at with the
//! whole node, and when somebody asks for status, metrics or readiness, as a kubelet does all the time; at most every few seconds.

use std::fs::{self, DirEntry};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cluster::Node;
use ipnet::IpNet;
use netstate::pool::Pool;
use route::{Family, Shortage, Supply};

use crate::files::NETWORK;
use crate::options::Options;
use crate::status::SupplyStatus;

/// How long what was seen counts.
const FRESH: Duration = Duration::from_secs(5);

/// Those of the pools that this node takes its pod CIDRs out of.
pub(crate) fn own_pools<'p>(pools: &'p [Pool], node: &Node) -> impl Iterator<Item = &'p Pool> {
    let family = |net: &IpNet| Family::of_net(net);
    pools.iter().filter(move |pool| !node.pod_cidrs.iter().any(|net| family(net) == family(&pool.cluster())))
}

/// The supply as people see it.
pub(crate) fn status(supply: &Supply) -> SupplyStatus {
    let Supply { network, total, taken } = *supply;
    SupplyStatus { network, total, taken, free: supply.free() }
}

/// What is to be told of a pool whose pieces come to an end.
pub(crate) fn told_of_cidrs(pool: &Pool, supply: &Supply) -> Option<String> {
    let (network, prefix, total) = (supply.network, pool.prefix(), supply.total);
    let left = match supply.shortage()? {
        Shortage::None => format!("none of {total} is left, so no other node can join"),
        Shortage::Few(few) => {
            format!("at most {few} of {total} are left, and each node that joins takes one")
        }
    };
    let enlarge = match total < pool.size() {
        true => "let more of them be given out (cluster.subnetMin... and cluster.subnetMax...)",
        false => "enlarge cluster.podCIDRs",
    };
    Some(format!(
        "keep pod CIDRs (/{prefix} of {network}) for nodes to come: {left}\nhint: remove the Node objects of machines that are \
         gone, or {enlarge}; `fairlead status` has the number"
    ))
}

/// What is to be told of a pod CIDR whose addresses come to an end.
fn told_of_addresses(supply: &Supply) -> Option<String> {
    let (network, total) = (supply.network, supply.total);
    let left = match supply.shortage()? {
        Shortage::None => format!("none of {total} is left, so no other pod can start on this node"),
        Shortage::Few(few) => format!("at most {few} of {total} are left"),
    };
    Some(format!(
        "keep addresses of {network} for pods to come: {left}\nhint: have fewer pods on this node (a kubelet's maxPods), or \
         shorten the node prefix; `fairlead status` has the number"
    ))
}

/// What is to be told of these pod CIDRs of a node whose host-local keeps its addresses in `ipam_dir`, each with its hint.
#[must_use]
pub fn few_pod_addresses(ipam_dir: &Path, cidrs: &[IpNet]) -> Vec<String> {
    counted(&ipam_dir.join(NETWORK), cidrs).iter().filter_map(told_of_addresses).collect()
}

/// How many of these pod CIDRs' addresses are taken, by the files of a directory.
fn counted(directory: &Path, cidrs: &[IpNet]) -> Vec<Supply> {
    let given = given(directory);
    cidrs.iter().filter_map(|cidr| route::pod_addresses(*cidr, given.iter().copied())).collect()
}

/// The addresses that somebody holds. A directory that is not there has none yet; one that cannot be read says nothing, and
/// keeps no pod from starting that would start otherwise.
fn given(directory: &Path) -> Vec<IpAddr> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| held(&entry)).collect()
}

/// The address that a file of host-local's is for. Nobody holds that of an empty one.
fn held(entry: &DirEntry) -> Option<IpAddr> {
    let address = entry.file_name().to_str()?.parse().ok()?;
    entry.metadata().is_ok_and(|file| file.len() > 0).then_some(address)
}

/// The addresses of this node's pods, as they were seen last.
#[derive(Debug)]
pub(crate) struct PodAddresses {
    directory: PathBuf,
    looked: Option<Instant>,
    cidrs: Vec<IpNet>,
    seen: Vec<Supply>,
}

impl PodAddresses {
    pub(crate) fn new(options: &Options) -> Self {
        let directory = options.ipam_dir.clone().unwrap_or_else(|| PathBuf::from(Options::IPAM_DIR));
        Self { directory: directory.join(NETWORK), looked: None, cidrs: Vec::new(), seen: Vec::new() }
    }

    /// How many of these pod CIDRs' addresses are taken; none of those that do not run out.
    pub(crate) fn supplies(&mut self, cidrs: &[IpNet], now: Instant) -> &[Supply] {
        let is_fresh = self.looked.is_some_and(|then| now < then + FRESH) && self.cidrs == cidrs;
        if !is_fresh {
            self.looked = Some(now);
            self.cidrs = cidrs.to_vec();
            self.seen = counted(&self.directory, cidrs);
        }
        &self.seen
    }

    /// What is to be told of them as they were seen last.
    pub(crate) fn told(&self) -> Vec<String> {
        self.seen.iter().filter_map(told_of_addresses).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_that_the_node_object_gives_a_cidr_of_is_taken_out_of_no_pool() {
        let pools = [("10.244.0.0/16", 24), ("fd00:10:244::/56", 64)]
            .map(|(net, prefix)| Pool::new(net.parse().unwrap(), prefix).unwrap());
        let own = |cidrs: &[&str]| {
            let pod_cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
            let node = Node { pod_cidrs, ..Node::named("node1") };
            own_pools(&pools, &node).map(|pool| pool.cluster().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(own(&[]), ["10.244.0.0/16", "fd00:10:244::/56"]);
        assert_eq!(own(&["10.244.7.0/24"]), ["fd00:10:244::/56"]);
        assert!(own(&["10.244.7.0/24", "fd00:10:244:7::/64"]).is_empty());
    }

    #[test]
    fn what_is_told_is_the_same_until_there_is_none() {
        let pool = Pool::new("10.244.0.0/16".parse().unwrap(), 24).unwrap();
        let told = |taken| told_of_cidrs(&pool, &Supply { network: pool.cluster(), total: 256, taken });
        assert_eq!(told(239), None);
        assert_eq!(told(240), told(255));
        assert!(
            told(240)
                .unwrap()
                .contains("(/24 of 10.244.0.0/16) for nodes to come: at most 16 of 256 are left")
        );
        let all = told(256).unwrap();
        assert!(all.contains("none of 256 is left") && all.contains("enlarge cluster.podCIDRs"), "{all}");
        let bounded = told_of_cidrs(&pool, &Supply { network: pool.cluster(), total: 9, taken: 9 }).unwrap();
        assert!(bounded.contains("none of 9 is left") && bounded.contains("cluster.subnetMax"), "{bounded}");
    }

    #[test]
    fn addresses_are_counted_by_the_files_of_those_who_hold_them() {
        let directory = tempfile::tempdir().unwrap();
        let mut options = Options::new("node1", store::Location::Directory("/store".into()));
        options.ipam_dir = Some(directory.path().to_owned());
        let mut addresses = PodAddresses::new(&options);
        let cidrs = ["10.244.1.0/29", "fd00:10:244:1::/64"].map(|cidr| cidr.parse().unwrap());
        let now = Instant::now();
        let taken = |addresses: &mut PodAddresses, now| {
            let found = addresses.supplies(&cidrs, now).iter().map(|supply| (supply.total, supply.taken));
            found.collect::<Vec<_>>()
        };
        assert_eq!(taken(&mut addresses, now), [(5, 0)], "before any pod");
        let files = directory.path().join(NETWORK);
        fs::create_dir(&files).unwrap();
        let put = |name: &str, text: &str| fs::write(files.join(name), text).unwrap();
        put("lock", "");
        put("last_reserved_ip.0", "10.244.1.5");
        put("10.244.9.2", "another CIDR's\r\neth0");
        put("fd00:10:244:1::2", "a\r\neth0");
        put("10.244.1.2", "a\r\neth0");
        put("10.244.1.3", "");
        put("10.244.1.4", "b\r\neth0");
        assert_eq!(taken(&mut addresses, now), [(5, 0)], "seen a moment ago");
        assert_eq!(taken(&mut addresses, now + FRESH), [(5, 2)]);
        assert!(addresses.told().is_empty());
        for last in 3..=6 {
            put(&format!("10.244.1.{last}"), "c\r\neth0");
        }
        assert_eq!(taken(&mut addresses, now + FRESH * 2), [(5, 5)]);
        assert!(addresses.told()[0].contains("10.244.1.0/29 for pods to come: none of 5 is left"));
    }
}
