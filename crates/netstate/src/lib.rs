//! One node's network as a value: what the kernel should hold, what it holds, and the way from one to the other.
//!
//! Read [`State`] first: links, addresses, WireGuard's peers, neighbours, forwarding entries, routes, policy rules, nf_tables
//! tables and sysctls of one node, each identified by what the kernel identifies it by. Deciders build a
//! `State` from the cluster; `kernel::observe` reads one back; [`diff()`] gives the ordered [`Step`]s between
//! two of them, and `kernel::apply` carries those out. [`plan`] is `diff` with the foreign objects that stand
//! in the way taken out and reported as [`Conflict`]s.
//!
//! What stays true:
//! - a `State` holds only what is ours (see the marks below), so a diff can never remove somebody else's work;
//! - carrying out `diff(have, want)` on `have` gives `want`, and `diff(x, x)` is empty;
//! - the same value always prints the same text, and the same two values give the same steps.
//!
//! Pure: no kernel, no clock, no environment, no disk.
//!
//! ```
//! use netstate::{Address, LinkName, State, diff};
//!
//! let mut want = State::default();
//! let device: LinkName = "fairlead0".parse()?;
//! want.insert_address(Address { link: device, net: "10.244.1.0/32".parse()? });
//! let steps = diff(&State::default(), &want);
//! assert_eq!(steps[0].to_string(), "+ address 10.244.1.0/32 dev fairlead0");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod conflict;
mod diff;
mod error;
mod name;
pub mod nft;
pub mod pool;
mod state;
mod step;
mod text;
mod wireguard;

pub use conflict::{Conflict, Foreign, ForeignLink, ForeignRoute, Observed, Plan, plan};
pub use diff::diff;
pub use error::Error;
pub use name::{LinkName, Mac};
pub use state::{
    Address, FdbEntry, FdbKey, IpTunnel, Link, LinkKind, Neighbour, NeighbourKey, PolicyRule, Route,
    RouteKey, RouteKind, RouteTarget, State, Vxlan,
};
pub use step::Step;
pub use wireguard::{PublicKey, SecretKey, WireGuard, WireGuardPeer, WireGuardPeerKey};

/// The routing protocol number (`rtm_protocol`) of the agent's routes: what carries it is ours to remove.
pub const ROUTE_PROTOCOL: u8 = 70;

/// The routing protocol number of the routes to local pods, made by the CNI plugins. The agent leaves them alone.
pub const POD_ROUTE_PROTOCOL: u8 = 71;

/// The alias (`IFLA_IFALIAS`) of the agent's links. A pod's host-side link carries
/// `fairlead:<network>/<container>/<interface>` instead and belongs to the plugins.
pub const LINK_ALIAS: &str = "fairlead";

/// The alias of a bridge that the plugins made for pods.
pub const BRIDGE_ALIAS: &str = "fairlead-bridge";

/// The bridge of pods in the network `fairlead`, where that is one.
pub const POD_BRIDGE: &str = "cni0";

/// The group (`IFLA_GROUP`) of the agent's links. A link can be in a group from its first moment, while the alias
/// has to be given afterwards: a link of this group without any alias is ours, half made.
pub const LINK_GROUP: u32 = 7670;

/// The group (`IFLA_GROUP`) of the links of pods in the network `fairlead`, which the agent's conflist is for: the plugins make it of
/// the network's name.
pub const POD_LINK_GROUP: u32 = 0xf9ef_aafb;

/// The group of nfnetlink_log by which whoever changes a node's network keeps others from doing the same (`kernel::lock`). Nothing
/// is logged to it.
pub const LOCK_GROUP: u16 = 7670;

/// What every nf_tables table of ours is named, or begins with, before a `_`: see [`is_our_table`].
pub const TABLE_PREFIX: &str = "fairlead";

/// The tables that the CNI plugins keep; the agent neither reads nor removes them.
pub const PLUGIN_TABLES: [&str; 2] = ["fairlead_cni", "fairlead_macspoof"];

/// The table of network policies. It can be large and changes with pods of the whole cluster, so a part of the agent of
/// its own keeps it, and no state of the node's network has it in it.
pub const POLICY_TABLE: &str = "fairlead_policy";

/// The priorities of the policy rules that are ours, both ends included.
pub const RULE_PRIORITIES: std::ops::RangeInclusive<u32> = 7600..=7699;

/// The number of the kernel's main routing table.
pub const MAIN_TABLE: u32 = 254;

/// True for the name of an nf_tables table of Fairlead's, whichever part of it made it.
#[must_use]
pub fn is_our_table(name: &str) -> bool {
    // A longer word that only begins like ours is somebody else's.
    name.strip_prefix(TABLE_PREFIX).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
}

/// True for the name of an nf_tables table that belongs to the state of a node's network.
#[must_use]
pub fn owns_table(name: &str) -> bool {
    is_our_table(name) && name != POLICY_TABLE && !PLUGIN_TABLES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_ours_by_our_name_or_our_name_and_a_word_and_not_by_how_it_begins() {
        for name in ["fairlead", "fairlead_antispoof", "fairlead_of_a_later_version"] {
            assert!(owns_table(name), "{name}");
        }
        for name in ["fairleads", "fairlea", "fairlead2", "my_fairlead"] {
            assert!(!is_our_table(name) && !owns_table(name), "{name}");
        }
        for name in [POLICY_TABLE, PLUGIN_TABLES[0], PLUGIN_TABLES[1]] {
            assert!(is_our_table(name) && !owns_table(name), "{name}");
        }
    }
}
