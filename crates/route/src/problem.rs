//! Why a peer is not programmed, in words for the person on call.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::family::Family;

/// Why a peer is left out. It is looked at again whenever the cluster changes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The peer uses a backend that has no way in common with this node's.
    #[error(
        "reach node {node}: its backend is {theirs}, this node's is {ours}\nhint: give every node the same backend; while a \
         cluster is moved to or from wireguard, set wireguard.strict to false"
    )]
    Backend {
        /// The peer.
        node: Arc<str>,
        /// Its backend.
        theirs: Box<str>,
        /// This node's.
        ours: Box<str>,
    },
    /// The peer is not on the link that would lead to it.
    #[error(
        "reach node {node}: its address {address} is on none of the networks of {link}, so no plain route leads \
         there\nhint: host-gw needs all nodes on one link; use vxlan, with vxlan.directRouting for those that are"
    )]
    OffLink {
        /// The peer.
        node: Arc<str>,
        /// Its underlay address.
        address: IpAddr,
        /// This node's underlay.
        link: String,
    },
    /// The peer's tunnel has another identifier or port.
    #[error(
        "reach node {node}: its tunnel uses {theirs}, this node's {ours}\nhint: give every node the same vxlan.vni \
         and vxlan.port"
    )]
    Tunnel {
        /// The peer.
        node: Arc<str>,
        /// Its identifier and port, as text.
        theirs: String,
        /// This node's.
        ours: String,
    },
    /// The peer has no underlay address of the family that packets to it would travel over.
    #[error(
        "reach node {node}: it has no {family} underlay address, and this node's packets to it travel over {family}"
    )]
    Underlay {
        /// The peer.
        node: Arc<str>,
        /// That family.
        family: Family,
    },
    /// This node has no underlay address of the family that packets to the peer would travel over.
    #[error(
        "reach node {node}: this node has no {family} underlay address, over which packets to it would travel"
    )]
    OwnUnderlay {
        /// The peer.
        node: Arc<str>,
        /// That family.
        family: Family,
    },
    /// The peer carries pods outside the cluster's networks.
    #[error("reach node {node}: its pod CIDR {cidr} is in none of the cluster's networks")]
    Outside {
        /// The peer.
        node: Arc<str>,
        /// The CIDR.
        cidr: IpNet,
    },
    /// Two nodes carry the same pods.
    #[error("reach node {node}: its pod CIDR {cidr} overlaps {theirs} of node {holder}, which holds it")]
    Overlap {
        /// The node that is left out.
        node: Arc<str>,
        /// Its CIDR.
        cidr: IpNet,
        /// The node that was first.
        holder: Arc<str>,
        /// The CIDR of that one.
        theirs: IpNet,
    },
    /// Two nodes have the same underlay address or the same link address.
    #[error(
        "reach node {node}: its {what} is also that of node {holder}\nhint: was one machine copied from the other?"
    )]
    Twin {
        /// The node that is left out.
        node: Arc<str>,
        /// The address, as text.
        what: String,
        /// The node that keeps it.
        holder: Arc<str>,
    },
}
