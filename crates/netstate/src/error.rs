//! What can be wrong with a value of this crate: names, hardware addresses and address pools that do not parse.

use std::net::IpAddr;

use ipnet::IpNet;

/// A value that cannot be. Nothing here is worth a retry: the input has to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A link's name that the kernel would refuse.
    #[error(
        "link name {0:?} is not valid; hint: 1 to 15 bytes, not \".\" or \"..\", without '/', ':' or white space"
    )]
    LinkName(String),
    /// A hardware address that is not six hexadecimal bytes.
    #[error("hardware address {0:?} is not six hexadecimal bytes separated by colons")]
    Mac(String),
    /// A network written with host bits, such as 10.244.1.7/24.
    #[error("network {net} has host bits set; hint: write {truncated}", truncated = net.trunc())]
    HostBits {
        /// The network as given.
        net: IpNet,
    },
    /// A node prefix length that cannot be carved out of the cluster's network.
    #[error("cannot carve /{prefix} out of {cluster}; hint: the node prefix must be {least} to {most}",
        least = cluster.prefix_len(), most = cluster.max_prefix_len())]
    NodePrefix {
        /// The cluster's network.
        cluster: IpNet,
        /// The prefix length asked for.
        prefix: u8,
    },
    /// A pool with more subnets than can be numbered.
    #[error(
        "carving /{prefix} out of {cluster} gives more than 2^63 networks; hint: choose a shorter node prefix"
    )]
    PoolTooLarge {
        /// The cluster's network.
        cluster: IpNet,
        /// The prefix length asked for.
        prefix: u8,
    },
    /// A bound of a pool where none of its networks begins.
    #[error("no /{prefix} of {cluster} begins at {address}")]
    NoBeginning {
        /// The address.
        address: IpAddr,
        /// The cluster's network.
        cluster: IpNet,
        /// The prefix length of a node's network.
        prefix: u8,
    },
    /// Bounds between which there is nothing.
    #[error("{last} comes before {first}")]
    Backwards {
        /// Where the first network begins.
        first: IpAddr,
        /// Where the last one begins.
        last: IpAddr,
    },
}
