//! The only door to Linux: netlink, nf_tables, namespaces, sysctls. All unsafe code of the project is here.
//!
//! Read first: [`netlink::Socket`] and [`netlink::Batch`] (how requests travel), then [`link`] as the
//! example of how every kind of object is done: functions that *change* something return a
//! [`netlink::Request`], which costs nothing until a batch of them is sent; functions that *read* take the
//! socket and ask at once. Nothing is cached: the kernel is the only copy.
//!
//! What stays true: no child processes, no global state, IPv4 and IPv6 through the same functions, and every
//! refusal of the kernel names the operation, the object, the errno and the kernel's own words.

mod abi;
pub mod address;
mod error;
mod family;
mod host;
pub mod link;
pub mod monitor;
pub mod neighbour;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod qdisc;
pub mod route;
pub mod rule;
pub mod signals;
pub mod sysctl;
pub mod user_namespace;

pub use error::Error;
pub use family::Family;
pub use host::{Failed, Host, Report};
