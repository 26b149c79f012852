//! The tunnels that a program carries: this one.
//!
//! Read [`Tunnels::keep`]. The design says which there are to be, over which device, and with whom; the crate `tunnel` does
//! the carrying, in threads of its own. A tunnel that runs as designed is only told its
//! peers, and only when those are others; one whose device was deleted has ended, and is started anew with the new device.

use std::collections::{BTreeMap, BTreeSet};
use std::thread::available_parallelism;

use netstate::LinkName;
use route::{TunnelDesign, TunnelKind, TunnelPeer};
use tunnel::{Encapsulation, Peer, Secret, Settings, Tunnel};

use crate::status::{PeerTraffic, TunnelTraffic};

/// The most queues of a tunnel, each with a thread: more than this is more than an underlay gives work to.
const MOST_QUEUES: usize = 4;

/// The tunnels that run.
#[derive(Debug)]
pub(crate) struct Tunnels {
    running: BTreeMap<TunnelKind, Running>,
    /// Asked once: a tunnel with another number of queues is another tunnel.
    queues: usize,
}

#[derive(Debug)]
struct Running {
    settings: Settings,
    peers: Vec<TunnelPeer>,
    tunnel: Tunnel,
}

impl Tunnels {
    pub(crate) fn new() -> Self {
        let queues = available_parallelism().map_or(1, usize::from).min(MOST_QUEUES);
        Self { running: BTreeMap::new(), queues }
    }

    /// These devices have just been made: a tunnel that ran over one of the same name has nothing to carry any more.
    pub(crate) fn forget(&mut self, devices: &BTreeSet<LinkName>) {
        self.running.retain(|kind, _| !devices.iter().any(|device| device.as_str() == kind.device()));
    }

    /// Makes it so that exactly these run. `key` is this node's, for WireGuard.
    ///
    /// # Errors
    /// When one cannot be started; the others run.
    pub(crate) fn keep(
        &mut self,
        wanted: &BTreeMap<TunnelKind, TunnelDesign>,
        key: Option<Secret>,
    ) -> Result<(), tunnel::Error> {
        self.running.retain(|kind, _| wanted.contains_key(kind));
        let mut outcome = Ok(());
        for (kind, design) in wanted {
            let Some(settings) = settings(*kind, design, key, self.queues) else { continue };
            if let Err(error) = self.keep_one(*kind, settings, design) {
                outcome = Err(error);
            }
        }
        outcome
    }

    fn keep_one(
        &mut self,
        kind: TunnelKind,
        settings: Settings,
        design: &TunnelDesign,
    ) -> Result<(), tunnel::Error> {
        let as_wanted = |running: &Running| running.settings == settings && running.tunnel.is_running();
        if !self.running.get(&kind).is_some_and(as_wanted) {
            // Its port has to be free again before the next one takes it.
            if self.running.remove(&kind).is_some() {
                tracing::info!(tunnel = kind.name(), "the tunnel ends, to be started anew");
            }
            let tunnel = Tunnel::start(settings.clone())?;
            tracing::info!(tunnel = kind.name(), device = settings.device, "the tunnel has started");
            self.running.insert(kind, Running { settings, peers: Vec::new(), tunnel });
        }
        if let Some(running) = self.running.get_mut(&kind).filter(|running| running.peers != design.peers) {
            running.tunnel.set_peers(&design.peers.iter().map(peer_of).collect::<Vec<_>>());
            running.peers.clone_from(&design.peers);
        }
        Ok(())
    }

    /// What went through each.
    pub(crate) fn traffic(&self) -> Vec<TunnelTraffic> {
        self.running.iter().map(|(kind, running)| traffic(*kind, running)).collect()
    }
}

/// None for WireGuard without a key, which a node that never had it does not need.
fn settings(kind: TunnelKind, design: &TunnelDesign, key: Option<Secret>, queues: usize) -> Option<Settings> {
    let encapsulation = match kind {
        TunnelKind::Udp => Encapsulation::Udp,
        TunnelKind::Ipip => Encapsulation::Ipip,
        TunnelKind::WireGuard => Encapsulation::WireGuard { private_key: key? },
    };
    Some(Settings {
        device: design.device.to_string(),
        queues: if kind == TunnelKind::Ipip { 1 } else { queues },
        port: design.port,
        underlay: vec![design.underlay],
        encapsulation,
        mtu: short(design.mtu),
    })
}

fn peer_of(peer: &TunnelPeer) -> Peer {
    Peer {
        port: Some(peer.port).filter(|port| *port != 0),
        pod_cidrs: peer.pod_cidrs.clone(),
        mtu: Some(short(peer.mtu)),
        public_key: peer.public_key.map(|key| key.0),
        ..Peer::new(&peer.node, peer.underlay)
    }
}

/// No packet is longer than 65,535 bytes.
fn short(mtu: u32) -> u16 {
    u16::try_from(mtu).unwrap_or(u16::MAX)
}

fn traffic(kind: TunnelKind, running: &Running) -> TunnelTraffic {
    let counters = running.tunnel.counters();
    let peers = counters.peers.iter().map(|peer| PeerTraffic {
        node: peer.name.clone(),
        sent_packets: peer.sent.packets,
        sent_bytes: peer.sent.bytes,
        received_packets: peer.received.packets,
        received_bytes: peer.received.bytes,
    });
    let dropped = counters.drops.iter().map(|(reason, traffic)| (reason.label().to_owned(), traffic.packets));
    TunnelTraffic {
        kind: kind.name().to_owned(),
        device: running.settings.device.clone(),
        peers: peers.collect(),
        dropped: dropped.collect(),
    }
}
