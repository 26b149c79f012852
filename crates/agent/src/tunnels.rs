//! The tunnels that a program carries: this one.
//!
//! Read [`Tunnels::keep`]. The design says which there are to be, over which device, and with whom; the crate `tunnel` does
//! the carrying, in threads of its own. A tunnel that runs as designed is only told its
//! peers, and only when those are others; one whose device was deleted has ended, and is started anew with the new device.
//!
//! A tunnel outlives its agent as far as can be: what the tunnels are is [written down](design_file), so that the next agent
//! goes on with them [first of all](Tunnels::resume), and what they have open is [kept by the service manager](descriptors)
//! where there is one, so that packets wait meanwhile.

mod descriptors;
mod design_file;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::available_parallelism;

use kernel::link::{self, Kind, Link};
use kernel::netlink::{Protocol, Socket};
use netstate::LinkName;
use route::{TunnelDesign, TunnelKind, TunnelPeer};
use tunnel::{Encapsulation, Handles, Peer, Secret, Settings, Tunnel};

use crate::event::Event;
use crate::host::is_agents;
use crate::key_files::private_key;
use crate::options::Options;
use crate::report::told;
use crate::status::{PeerTraffic, TunnelTraffic};

pub(crate) use descriptors::Descriptors;
use design_file::Designs;
pub(crate) use design_file::{DesignFile, NAME as DESIGN_FILE};

/// The most queues of a tunnel, each with a thread: more than this is more than an underlay gives work to.
const MOST_QUEUES: usize = 4;

/// The tunnels that run.
#[derive(Debug)]
pub(crate) struct Tunnels {
    running: BTreeMap<TunnelKind, Running>,
    /// Asked once: a tunnel with another number of queues is another tunnel.
    queues: usize,
    file: DesignFile,
    /// The file speaks of tunnels that do not run.
    is_stale: bool,
    descriptors: Descriptors,
    events: Sender<Event>,
}

#[derive(Debug)]
struct Running {
    settings: Settings,
    design: Arc<TunnelDesign>,
    tunnel: Tunnel,
}

impl Tunnels {
    /// None yet. `events` is where it is told that one has ended by itself.
    pub(crate) fn new(options: &Options, descriptors: Descriptors, events: Sender<Event>) -> Self {
        let queues = available_parallelism().map_or(1, usize::from).min(MOST_QUEUES);
        let file = DesignFile::new(&options.state_dir, &options.node);
        Self { running: BTreeMap::new(), queues, file, is_stale: false, descriptors, events }
    }

    /// Goes on with the tunnels of the agent before, as they were when they last changed, if their devices are still there.
    /// What fails is left to be done when the cluster is known. This node's keys are in `key_directories`.
    pub(crate) fn resume(&mut self, key_directories: &[PathBuf]) {
        let designs = self.file.read();
        if designs.is_empty() {
            return;
        }
        let mut socket = Socket::open(Protocol::Route).ok();
        let count = designs.len();
        for (kind, design) in designs {
            let runs = self.running.get(&kind).is_some_and(|running| running.tunnel.is_running());
            let found = socket.as_mut().map(|socket| link::find(socket, design.device.as_str()));
            let ours = |link: &Link| is_agents(link) && matches!(link.kind, Kind::Tun { tap: false, .. });
            if runs || !matches!(found, Some(Ok(Some(link))) if ours(&link)) {
                continue;
            }
            let key = || Some(Secret(private_key(key_directories, design.generation, false).ok()??));
            let Some(settings) = settings(kind, &design, key, self.queues) else { continue };
            if let Err(error) = self.start(kind, settings, Arc::new(design)) {
                let tunnel = kind.name();
                tracing::warn!(tunnel, error = %told(&error), "the tunnel waits for the cluster to be known");
            }
        }
        self.is_stale = self.running.len() < count;
    }

    /// These devices have just been made: a tunnel that ran over one of the same name has nothing to carry any more.
    pub(crate) fn forget(&mut self, devices: &BTreeSet<LinkName>) {
        for kind in TunnelKind::ALL {
            if devices.iter().any(|device| device.as_str() == kind.device()) {
                // Nor is there anything to go on with. The kernel may be about to take the port.
                drop(self.descriptors.take(kind));
                self.end(kind);
            }
        }
    }

    /// Tells tunnels that run as designed of peers that are new to them, before routes lead there; what is not designed any
    /// more stays until it has been left.
    pub(crate) fn learn(&self, wanted: &BTreeMap<TunnelKind, TunnelDesign>) {
        for (kind, design) in wanted {
            let Some(running) = self.running.get(kind).filter(|running| *running.design != *design) else {
                continue;
            };
            let named: HashMap<&str, &TunnelPeer> =
                design.peers.iter().map(|peer| (&*peer.node, peer)).collect();
            let left = running.design.peers.iter().filter(|peer| !named.contains_key(&*peer.node));
            let peers: Vec<Peer> = design.peers.iter().chain(left).map(peer_of).collect();
            running.tunnel.set_peers(&peers);
        }
    }

    /// Whether a tunnel of that kind runs.
    pub(crate) fn runs(&self, kind: TunnelKind) -> bool {
        self.running.get(&kind).is_some_and(|running| running.tunnel.is_running())
    }

    /// Makes it so that exactly these run. `keys` are this node's for WireGuard, by generation.
    ///
    /// # Errors
    /// When one cannot be started; the others run.
    pub(crate) fn keep(
        &mut self,
        wanted: &BTreeMap<TunnelKind, TunnelDesign>,
        keys: &BTreeMap<u32, Secret>,
    ) -> Result<(), tunnel::Error> {
        let before = self.designs();
        for kind in TunnelKind::ALL.into_iter().filter(|kind| !wanted.contains_key(kind)) {
            self.end(kind);
        }
        let mut outcome = Ok(());
        for (kind, design) in wanted {
            let key = || keys.get(&design.generation).copied();
            let Some(settings) = settings(*kind, design, key, self.queues) else { continue };
            let kept = self.keep_one(*kind, settings, design);
            outcome = outcome.and(kept);
        }
        self.descriptors.drop_the_rest();
        let designs = self.designs();
        if self.is_stale || !same(&before, &designs) {
            self.is_stale = false;
            self.file.keep(designs);
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
        let Some(running) = self.running.get_mut(&kind).filter(|running| as_wanted(running)) else {
            return self.start(kind, settings, Arc::new(design.clone()));
        };
        if *running.design != *design {
            running.tunnel.set_peers(&peers_of(design));
            running.design = Arc::new(design.clone());
        }
        Ok(())
    }

    /// Starts a tunnel, with what the one before it had open if that is the same.
    fn start(
        &mut self,
        kind: TunnelKind,
        settings: Settings,
        design: Arc<TunnelDesign>,
    ) -> Result<(), tunnel::Error> {
        let name = kind.name();
        let before = self.running.remove(&kind).map(|running| {
            tracing::info!(tunnel = name, "the tunnel ends, to be started anew");
            running.tunnel.hand_over()
        });
        let passed = before.is_none().then(|| self.descriptors.take(kind)).flatten();
        let peers = peers_of(&design);
        let adopted = before.or(passed).and_then(|handles| {
            let adopted = Tunnel::adopt(settings.clone(), handles, &peers);
            // The settings are others, or the device is.
            let refused =
                |error: &tunnel::Error| tracing::info!(tunnel = name, reason = %told(error), "opened anew");
            adopted.inspect_err(refused).ok()
        });
        let is_adopted = adopted.is_some();
        let tunnel = adopted.map_or_else(|| self.open(kind, &settings, &peers), Ok)?;
        tracing::info!(
            tunnel = name,
            device = settings.device,
            adopted = is_adopted,
            "the tunnel has started"
        );
        let events = self.events.clone();
        tunnel.on_end(move |reason| {
            // The loop may be gone, and the process with it soon.
            let _ = events.send(Event::TunnelEnded { tunnel: name, reason: reason.to_owned() });
        });
        self.running.insert(kind, Running { settings, design, tunnel });
        Ok(())
    }

    fn open(&self, kind: TunnelKind, settings: &Settings, peers: &[Peer]) -> Result<Tunnel, tunnel::Error> {
        // A port has to be free again before the next one takes it.
        self.descriptors.give_up(kind);
        let handles = Handles::open(settings)?;
        self.descriptors.keep(kind, &handles);
        // What no tunnel reads nobody is to keep.
        Tunnel::adopt(settings.clone(), handles, peers).inspect_err(|_| self.descriptors.give_up(kind))
    }

    fn end(&mut self, kind: TunnelKind) {
        if self.running.remove(&kind).is_some() {
            tracing::info!(tunnel = kind.name(), "the tunnel ends");
            self.descriptors.give_up(kind);
        }
    }

    fn designs(&self) -> Designs {
        self.running.iter().map(|(kind, running)| (*kind, Arc::clone(&running.design))).collect()
    }

    /// Says to who started the agent that it has started.
    pub(crate) fn tell_ready(&self) {
        self.descriptors.tell_ready();
    }

    /// Whether one that is called so was started and not ended since; it may have ended by itself.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.running.keys().any(|kind| kind.name() == name)
    }

    /// What went through each.
    pub(crate) fn traffic(&self) -> Vec<TunnelTraffic> {
        self.running.iter().map(|(kind, running)| traffic(*kind, running)).collect()
    }
}

/// Whether nothing has been changed.
fn same(before: &Designs, after: &Designs) -> bool {
    before.len() == after.len()
        && before.iter().zip(after).all(|(one, other)| one.0 == other.0 && Arc::ptr_eq(one.1, other.1))
}

/// None for WireGuard without a key, which a node that never had it does not need.
fn settings(
    kind: TunnelKind,
    design: &TunnelDesign,
    key: impl FnOnce() -> Option<Secret>,
    queues: usize,
) -> Option<Settings> {
    let encapsulation = match kind {
        TunnelKind::Udp => Encapsulation::Udp,
        TunnelKind::Ipip => Encapsulation::Ipip,
        TunnelKind::WireGuard | TunnelKind::WireGuardOdd => Encapsulation::WireGuard { private_key: key()? },
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

fn peers_of(design: &TunnelDesign) -> Vec<Peer> {
    design.peers.iter().map(peer_of).collect()
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
        kind: kind.label().to_owned(),
        device: running.settings.device.clone(),
        peers: peers.collect(),
        dropped: dropped.collect(),
    }
}
