//! The user-space datapath: carries pod packets between nodes where the kernel has no tunnel for it.
//!
//! Read [`Tunnel`] first, then [`Settings`] and [`Peer`]. A plain thread per queue of a TUN device stands between the
//! device and a UDP socket. The kernel routes a pod's packet into the device; the thread finds the peer behind whose pod
//! CIDR its destination is and sends it there, wrapped up; the far thread writes it to its own device, and the far kernel
//! routes it on. So a tunnel is one hop to a packet, as over VXLAN: the kernel that routes into the device takes one off
//! the time to live, and says when it is used up.
//!
//! What makes it fast: packets cross both borders by the dozen. The device gives super-packets of up to 64 KiB
//! ([`kernel::tun`]), which are cut into packets by writing headers only, never by copying payload; all of them leave in
//! one message (UDP_SEGMENT), come in as one (UDP_GRO), and go into the far device as one.
//!
//! What stays true:
//! - the peers can be replaced at any moment, all at once, and no packet waits for it;
//! - what comes from an address that is no peer's is dropped and counted;
//! - a packet that cannot be carried is counted, and its sender is told by ICMP as a router does;
//! - nothing that comes from outside makes a thread panic; nothing is allocated per packet;
//! - a tunnel can be handed to another process without losing a packet ([`Tunnel::hand_over`]).
//!
//! The device's address, routes and link state belong to the agent's `netstate::State`.
//!
//! ```no_run
//! use tunnel::{Encapsulation, Peer, Settings, Tunnel, UDP_PORT};
//!
//! kernel::tun::create("fairlead-udp")?;
//! let tunnel = Tunnel::start(Settings {
//!     device: "fairlead-udp".to_owned(),
//!     queues: 1,
//!     port: UDP_PORT,
//!     underlay: vec!["192.0.2.1".parse()?],
//!     encapsulation: Encapsulation::Udp,
//!     mtu: 1472,
//! })?;
//! let node2 = Peer { pod_cidrs: vec!["10.244.2.0/24".parse()?], ..Peer::new("node2", "192.0.2.2".parse()?) };
//! tunnel.set_peers(&[node2]);
//! println!("{:?}", tunnel.counters());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod checksum;
mod coalesce;
mod counters;
mod examine;
mod fragment;
mod icmp;
mod incoming;
mod ipip;
mod outbox;
mod outgoing;
mod packet;
mod peer;
mod segment;
mod settings;
mod table;
#[cfg(test)]
mod testing;
mod tunnel;
mod wireguard;
mod worker;

pub use counters::{Counters, DropReason, PeerCounters, Traffic};
pub use examine::examine;
pub use settings::{Encapsulation, Error, Peer, Secret, Settings, UDP_PORT, WIREGUARD_PORT};
pub use tunnel::{Handles, Tunnel};
