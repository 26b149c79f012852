//! Which cluster a verb is about: that of a store, of a lab, or of manifests that no cluster has yet.
//!
//! Read [`ClusterOption::read`]. What of it cannot be taken as it stands is told on standard error; the rest is used.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::lab::Lab;
use anyhow::{Context, Result, bail};
use clap::Args;
use cluster::{Change, Kind, Object, Snapshot};
use store::{Directory, Listing, Location, Store};

use crate::lab::parse_name;

/// What policies decide by.
const KINDS: [Kind; 7] = [
    Kind::Node,
    Kind::Lease,
    Kind::Namespace,
    Kind::Pod,
    Kind::PodStatus,
    Kind::NetworkPolicy,
    Kind::ClusterNetworkPolicy,
];

/// What people may name beside that. Policies look at none of it, and the account of an agent may not read it.
const NAMED: [Kind; 2] = [Kind::Service, Kind::EndpointSlice];

/// The addresses that pods of mere manifests are given: of 198.18.0.0/15, which nobody uses (RFC 2544).
const MADE_UP: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);

/// The options that name a cluster.
#[derive(Debug, Args)]
pub(crate) struct ClusterOption {
    /// Where the cluster's state is: dir:PATH, etcd:URL,..., kubernetes:KUBECONFIG, or kubernetes for what kubectl would
    /// take, which is also the default
    #[arg(long, value_name = "STORE", value_parser = str::parse::<Location>)]
    store: Option<Location>,
    /// The cluster of a lab instead
    #[arg(long, value_name = "NAME", conflicts_with = "store", value_parser = parse_name)]
    lab: Option<String>,
    /// Manifests instead, a file or a directory (may be given again); pods without an address are given one
    #[arg(long, value_name = "FILE|DIR", conflicts_with_all = ["store", "lab"])]
    from: Vec<PathBuf>,
}

impl ClusterOption {
    /// The cluster as it is now.
    pub(crate) fn read(&self) -> Result<Snapshot> {
        if !self.from.is_empty() {
            let mut snapshot = Snapshot::default();
            for path in &self.from {
                for object in read_manifests(path)? {
                    snapshot.apply(Change::Set(object));
                }
            }
            give_addresses(&mut snapshot);
            return Ok(snapshot);
        }
        let location = match (&self.lab, &self.store) {
            (Some(lab), _) => Location::Directory(Lab::open(lab)?.home().store()),
            (None, Some(store)) => store.clone(),
            (None, None) => {
                Location::Kubernetes { kubeconfig: None, namespace: Location::NAMESPACE.to_owned() }
            }
        };
        let listing =
            list(&*location.open()?).with_context(|| format!("cannot list what is in {location}"))?;
        listing.problems.iter().for_each(|problem| warn(&problem.to_string()));
        Ok(listing.snapshot)
    }
}

/// All there is, but for Services where only they are forbidden.
fn list(store: &dyn Store) -> Result<Listing, store::Error> {
    match store.list(&[&KINDS[..], &NAMED].concat()) {
        Err(error) if is_about_services(&error) => {
            warn(&format!("Services are not known here: {error}"));
            store.list(&KINDS)
        }
        listed => listed,
    }
}

fn is_about_services(error: &store::Error) -> bool {
    matches!(error, store::Error::Forbidden { resource: "services" | "endpointslices", .. })
}

/// The objects of a manifest, or of all manifests in a directory.
pub(crate) fn read_manifests(path: &Path) -> Result<Vec<Object>> {
    if path.is_dir() {
        let listing = Directory::at(path).list()?;
        listing.problems.iter().for_each(|problem| warn(&problem.to_string()));
        return Ok(listing.snapshot.objects().collect());
    }
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    match store::read_manifest(path, &text) {
        Ok(objects) => Ok(objects),
        Err(problems) => {
            let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
            bail!("cannot use {}: {}", path.display(), told.join("; "))
        }
    }
}

/// Pods that run nowhere yet have no addresses, and policies are about addresses.
fn give_addresses(snapshot: &mut Snapshot) {
    let without = snapshot.pods.values().filter(|pod| {
        !pod.host_network && !pod.phase.ended() && snapshot.pod_addresses(&pod.name).is_empty()
    });
    let without: Vec<_> = without.cloned().collect();
    for (number, mut pod) in (1..).zip(without) {
        let address = Ipv4Addr::from_bits(MADE_UP.to_bits().wrapping_add(number));
        Arc::make_mut(&mut pod).addresses = Box::from([IpAddr::V4(address)]);
        snapshot.apply(Change::Set(Object::Pod(pod)));
    }
}

/// Tells on standard error what does not keep the verb from its work.
pub(crate) fn warn(text: &str) {
    anstream::eprintln!("warning: {text}");
}

#[cfg(test)]
mod tests {
    use cluster::NamespacedName;

    use super::*;

    #[test]
    fn pods_of_mere_manifests_have_an_address_each() {
        let directory = tempfile::tempdir().unwrap();
        let pod = |name: &str, more: &str| {
            format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\n{more}---\n")
        };
        let text = pod("a", "") + &pod("b", "status: {podIP: 10.1.1.1}\n") + &pod("c", "");
        std::fs::write(directory.path().join("pods.yaml"), text).unwrap();
        for from in [directory.path().to_owned(), directory.path().join("pods.yaml")] {
            let snapshot = ClusterOption { store: None, lab: None, from: vec![from] }.read().unwrap();
            let at = |name| snapshot.pod_addresses(&NamespacedName::new("shop", name))[0].to_string();
            assert_eq!([at("a"), at("b"), at("c")], ["198.18.0.1", "10.1.1.1", "198.18.0.2"]);
        }
    }

    #[test]
    fn a_manifest_that_cannot_be_used_is_told_with_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pod.yaml");
        std::fs::write(&file, "apiVersion: v1\nkind: Pod\nmetadata: {name: Bad_Name}\n").unwrap();
        let error = read_manifests(&file).unwrap_err().to_string();
        assert!(error.contains("pod.yaml:3:"), "{error}");
    }
}
