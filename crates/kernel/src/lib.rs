//! The only door to Linux: netlink, nf_tables, namespaces, sysctls. All unsafe code of the project is here, but for the
//! name of `fairlead-cni`'s beginning.
//!
//! Read first: [`netlink::Socket`] and [`netlink::Batch`] (how requests travel), then [`link`] as the
//! example of how every kind of object is done: functions that *change* something return a
//! [`netlink::Request`], which costs nothing until a batch of them is sent; functions that *read* take the
//! socket and ask at once. Nothing is cached: the kernel is the only copy.
//!
//! What stays true: no child processes, no global state, IPv4 and IPv6 through the same functions, and every
//! refusal of the kernel names the operation, the object, the errno and the kernel's own words.
//!
//! A pod's cable, as a plugin lays it: two sends, one per namespace.
//!
//! ```no_run
//! use std::os::fd::AsFd;
//!
//! use kernel::address::{self, NewAddress};
//! use kernel::link::{self, Change, Link, NewKind, NewLink, NewPeer};
//! use kernel::netlink::{Batch, Protocol, Socket};
//! use kernel::netns::Netns;
//!
//! let pod = Netns::open("/var/run/netns/pod")?;
//! let mut host = Socket::open(Protocol::Route)?;
//! let far = NewPeer { namespace: Some(pod.as_fd()), ..NewPeer::new("eth0") };
//! let pair = NewLink { up: true, ..NewLink::new("veth12345678", NewKind::Veth(far)) };
//! let mut near = None;
//! let refused = host.run(&Batch::from(link::create_and_report(&pair)), |_, reply| {
//!     near = Some(Link::from_reply(reply)?);
//!     Ok(())
//! })?;
//! if let Some(failure) = refused.into_iter().next() {
//!     return Err(failure.error);
//! }
//! // The near end names the far one; kernels before 6.2 are asked instead.
//! let near = near.map_or_else(|| link::find(&mut host, "veth12345678"), |link| Ok(Some(link)))?;
//! let eth0 = near.and_then(|link| link.parent).unwrap_or_default();
//!
//! let mut inside = pod.socket(Protocol::Route)?;
//! inside.execute(Batch::from_iter([
//!     link::change(eth0, &Change { up: Some(true), ..Change::default() }),
//!     address::add(&NewAddress::new(eth0, "10.244.1.2/24".parse().unwrap())),
//! ]))?;
//! # Ok::<(), kernel::Error>(())
//! ```

mod abi;
pub mod activation;
pub mod address;
pub mod clock;
pub mod conntrack;
pub mod datagram;
pub mod echo;
mod error;
mod family;
pub mod features;
pub mod filter;
pub mod foreign;
pub mod forwarding;
mod host;
pub mod ipvs;
pub mod link;
pub mod lock;
pub mod machine;
pub mod memory;
pub mod monitor;
pub mod neighbour;
pub mod netlink;
pub mod netns;
pub mod nflog;
pub mod nft;
pub mod notify;
pub mod packet;
pub mod qdisc;
pub mod route;
pub mod routers;
pub mod rule;
pub mod signals;
mod socket_filter;
pub mod start;
pub mod sysctl;
pub mod tap;
pub mod tun;
pub mod udp;
pub mod user_namespace;
pub mod wireguard;
pub mod xtables;

pub use error::Error;
pub use family::Family;
pub use host::{Failed, Host, Report};
