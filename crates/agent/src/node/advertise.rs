//! What peers are told as this node's addresses.
//!
//! Read [`NodeKeeper::told_addresses`]: for each family that the node has an underlay of, what the annotation
//! `fairlead.io/underlay-advertise` of its Node says, else `underlay.advertise`, else the underlay's own address. The annotation
//! is for a node behind address translation where all nodes have one configuration.
//!
//! What stays true: peers are never told something because the annotation cannot be read. What it said last stays, and an agent
//! that starts finds that in a file (`advertised.json`). Where no agent has left one, as before it was written, what the lease has
//! that is no address of this host's must have been advertised; a node that has no lease either waits.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use cluster::Node;
use route::{Family, Host};
use serde::{Deserialize, Serialize};

use super::NodeKeeper;
use super::decide::Refusal;
use crate::Options;
use crate::files::{self, FileError};
use crate::report::{Reason, told};
use crate::view::View;

/// The annotation's key.
const ANNOTATION: &str = "fairlead.io/underlay-advertise";

/// Why the annotation cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum AdvertiseError {
    /// A part of it is no address.
    #[error("{0:?} is no IP address")]
    NoAddress(String),
    /// No machine, or none that peers could send to, has it.
    #[error("{0} is not the address of one machine that peers can reach")]
    Unreachable(IpAddr),
    /// More than one of a family.
    #[error("there are two of family {0}; one of each is possible")]
    Two(Family),
}

/// The addresses that the annotation's text tells.
fn parse(text: &str) -> Result<Vec<IpAddr>, AdvertiseError> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for part in text.split(',').map(str::trim) {
        let address: IpAddr = part.parse().map_err(|_| AdvertiseError::NoAddress(part.to_owned()))?;
        let family = Family::of(address);
        if !is_one_machines(address) {
            return Err(AdvertiseError::Unreachable(address));
        }
        if addresses.iter().any(|other| Family::of(*other) == family) {
            return Err(AdvertiseError::Two(family));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

fn is_one_machines(address: IpAddr) -> bool {
    let special = match address {
        IpAddr::V4(address) => address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.to_ipv4_mapped().is_some(),
    };
    !special && !address.is_unspecified() && !address.is_loopback() && !address.is_multicast()
}

impl NodeKeeper {
    /// Learns what the Node wants peers to be told.
    pub(super) fn learn_advertised(&mut self, view: &View, host: &Host, node: &Node) -> Result<(), Refusal> {
        let read = match &node.advertise {
            // The Node that cannot be read may say something, and that it cannot be is told already.
            None if view.is_doubted(&node.name) => Err(None),
            None => Ok(Vec::new()),
            Some(text) => parse(text).map_err(|error| {
                Some(format!(
                    "tell peers what annotation {ANNOTATION} of Node {node} says, {text:?}: {error}",
                    node = node.name,
                    error = told(&error),
                ))
            }),
        };
        let problem = match read {
            Ok(addresses) => {
                if self.advertised.as_ref().is_some_and(|before| *before != addresses) {
                    tracing::info!(?addresses, "another word of the Node's on what peers are told");
                }
                self.remember_advertised(addresses);
                return Ok(());
            }
            Err(problem) => problem,
        };
        let last = self.advertised.take().or_else(|| advertised_by_an_earlier_agent(&self.options));
        let last = last.or_else(|| last_told(view, host, &node.name));
        match (last, problem) {
            (Some(last), problem) => {
                if let Some(problem) = problem {
                    let text = format!(
                        "{problem}; they are told what they were before\nhint: one address of each family at most, with a \
                         comma in between"
                    );
                    self.report.problem(Reason::ConfigurationRefused, text);
                }
                self.advertised = Some(last);
                Ok(())
            }
            (None, Some(problem)) => {
                let text = format!(
                    "{problem}\nhint: one address of each family at most, with a comma in between; until then this node, which \
                     peers were never told of, is no part of the network"
                );
                Err(Refusal { reason: Reason::ConfigurationRefused, text })
            }
            // Nobody was told anything but what this host has.
            (None, None) => Ok(()),
        }
    }

    /// Has an agent that starts know of it.
    fn remember_advertised(&mut self, addresses: Vec<IpAddr>) {
        if self.advertised.as_ref() != Some(&addresses) {
            let content = Advertised { node: self.options.node.clone(), addresses: addresses.clone() };
            let text = serde_json::to_vec(&content).unwrap_or_default();
            let kept = places(&self.options).next().map(|place| files::replace(&place, &text));
            if let Some(Err(error)) = kept {
                tracing::warn!(error = %told(&error), "what peers are told was not kept for the next start");
            }
        }
        self.advertised = Some(addresses);
    }

    /// The addresses that peers are told.
    pub(super) fn told_addresses(&self) -> Vec<IpAddr> {
        let advertised = self.advertised.iter().flatten();
        let instead: Vec<IpAddr> =
            advertised.chain(&self.options.config.underlay.advertise).copied().collect();
        let told = self.underlays.iter().map(|(family, underlay)| {
            let instead = instead.iter().find(|address| Family::of(**address) == *family);
            *instead.unwrap_or(&underlay.address)
        });
        told.collect()
    }
}

/// `advertised.json`: what the annotation said last. It lies with the node's keys, where a reboot leaves it.
#[derive(Serialize, Deserialize)]
struct Advertised {
    node: String,
    addresses: Vec<IpAddr>,
}

/// Where it may be, the first being where it is put: which that is changes when a directory appears.
fn places(options: &Options) -> impl Iterator<Item = PathBuf> {
    options.key_directories().into_iter().map(|directory| directory.join("advertised.json"))
}

/// What the annotation said last to an agent of this node; none if there is no such file.
fn advertised_by_an_earlier_agent(options: &Options) -> Option<Vec<IpAddr>> {
    let text = places(options).find_map(|place| fs::read(place).ok())?;
    let found = serde_json::from_slice::<Advertised>(&text).ok()?;
    // A disk may have been moved to another node.
    Some(found.addresses).filter(|_| found.node == options.node)
}

/// Removes the file, and one that was kept where the keys were before; says where they were.
pub(crate) fn forget(options: &Options) -> Result<Vec<PathBuf>, FileError> {
    let mut removed = Vec::new();
    for path in places(options) {
        if files::remove(&path)? {
            removed.push(path);
        }
    }
    Ok(removed)
}

/// What an earlier agent of this node told peers that is no address of this host's; none if it told nothing.
fn last_told(view: &View, host: &Host, node: &str) -> Option<Vec<IpAddr>> {
    let lease = view.snapshot.leases.get(node).filter(|lease| !lease.flannel.is_member())?;
    let foreign = lease.underlay.iter().copied().filter(|address| host.holder(*address).is_none());
    Some(foreign.collect())
}

#[cfg(test)]
mod tests {
    use route::Family;

    use super::{AdvertiseError, parse};

    #[test]
    fn one_address_of_each_family_in_any_order_is_read() {
        let read = |text| parse(text).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(read("203.0.113.7"), ["203.0.113.7"]);
        assert_eq!(read(" 2001:db8::7 , 203.0.113.7"), ["2001:db8::7", "203.0.113.7"]);
    }

    #[test]
    fn what_no_peer_could_send_to_is_refused_with_what_is_wrong() {
        for text in ["nat", "203.0.113", "203.0.113.7/24", "203.0.113.7,", ",", "203.0.113.7:8472", " "] {
            assert!(matches!(parse(text), Err(AdvertiseError::NoAddress(_))), "{text}");
        }
        for text in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::", "::1"] {
            assert_eq!(parse(text), Err(AdvertiseError::Unreachable(text.parse().unwrap())));
        }
        for text in ["fe80::1", "ff02::1", "::ffff:203.0.113.7", "203.0.113.7, fe80::1"] {
            assert!(matches!(parse(text), Err(AdvertiseError::Unreachable(_))), "{text}");
        }
        assert_eq!(parse("203.0.113.7,203.0.113.8"), Err(AdvertiseError::Two(Family::V4)));
        assert_eq!(parse("2001:db8::7,2001:db8::7"), Err(AdvertiseError::Two(Family::V6)));
    }
}
