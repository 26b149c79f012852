//! A tunnel's life: started, told its peers, handed over or stopped.
//!
//! Read [`Tunnel`].

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use kernel::datagram::Datagrams;
use kernel::tun::Queue;
use rustix::event::{EventfdFlags, eventfd};

use crate::counters::{Counters, Drops, PeerCounters};
use crate::ipip;
use crate::peer::Remote;
use crate::settings::{Encapsulation, Error, Peer, Settings};
use crate::table::Table;
use crate::wireguard::Identity;
use crate::worker::{Ends, Shared, Worker};

/// A running tunnel. Dropping it ends its threads; a persistent device stays.
pub struct Tunnel {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Ends>>,
}

/// What a tunnel works with, for another process to go on with: the open descriptors of its device and its sockets.
/// What arrives meanwhile waits in them.
#[derive(Debug)]
pub struct Handles {
    /// The queues of the device.
    pub queues: Vec<OwnedFd>,
    /// The sockets, in any order.
    pub sockets: Vec<OwnedFd>,
}

impl Tunnel {
    /// Starts a tunnel without peers, in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the settings contradict themselves, or the kernel refuses a device, a socket or a thread.
    pub fn start(settings: Settings) -> Result<Self, Error> {
        check(&settings)?;
        let failed = |tried, source| Error::Kernel {
            device: settings.device.clone(),
            tried,
            source: Box::new(source),
        };
        let mut all = Vec::new();
        for _ in 0..settings.queues {
            let queue = Queue::open(&settings.device)
                .map_err(|source| failed("open a queue of the device", source))?;
            let sockets = listen(&settings).map_err(|source| failed("listen to the underlay", source))?;
            all.push(Ends { queue, sockets });
        }
        Self::run(settings, all, &[])
    }

    /// Goes on with what another tunnel has handed over; settings are as for that one. The peers are known before the
    /// first packet is carried, or what waits in the handles would be dropped as from strangers.
    ///
    /// # Errors
    /// When the handles are not those of such a tunnel, or the kernel refuses a thread.
    pub fn adopt(settings: Settings, handles: Handles, peers: &[Peer]) -> Result<Self, Error> {
        check(&settings)?;
        let is_ipip = settings.encapsulation == Encapsulation::Ipip;
        let wrong = |reason| Error::Handles { device: settings.device.clone(), reason };
        let failed = |tried, source| Error::Kernel {
            device: settings.device.clone(),
            tried,
            source: Box::new(source),
        };
        let mut sockets: [Vec<Datagrams>; 2] = Default::default();
        for descriptor in handles.sockets {
            let socket = Datagrams::adopt(descriptor);
            let local = socket.local().map_err(|source| failed("take over a socket", source))?;
            // A raw socket's port is its protocol number.
            let second = local.is_ipv6() || is_ipip && local.port() == u16::from(ipip::IPV6);
            let [four, six] = &mut sockets;
            if second { six.push(socket) } else { four.push(socket) }
        }
        let [mut four, mut six] = sockets;
        if handles.queues.len() != settings.queues {
            return Err(wrong("its number of queues is another"));
        }
        let mut all = Vec::new();
        for descriptor in handles.queues {
            let queue = Queue::adopt(descriptor).map_err(|source| failed("take over a queue", source))?;
            let ends = Ends { queue, sockets: [four.pop(), six.pop()] };
            let expected = |four| is_ipip || settings.underlay.iter().any(|own| own.is_ipv4() == four);
            if [true, false].map(expected) != ends.sockets.each_ref().map(Option::is_some) {
                return Err(wrong("its sockets are not those of these underlay addresses"));
            }
            all.push(ends);
        }
        Self::run(settings, all, peers)
    }

    fn run(settings: Settings, all: Vec<Ends>, peers: &[Peer]) -> Result<Self, Error> {
        let device = settings.device.clone();
        let failed = |tried, source| Error::System { device: device.clone(), tried, source };
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| failed("make a descriptor to wake threads with", errno.into()))?;
        let identity = match settings.encapsulation {
            Encapsulation::WireGuard { private_key } => Some(Identity::new(private_key)),
            _ => None,
        };
        let shared = Arc::new(Shared {
            settings,
            identity,
            drops: Drops::default(),
            table: Mutex::default(),
            generation: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            wake,
        });
        let mut tunnel = Self { shared, threads: Vec::new() };
        tunnel.set_peers(peers);
        for (index, ends) in all.into_iter().enumerate() {
            let keeps_time = index == 0 && tunnel.shared.identity.is_some();
            let worker = Worker { shared: Arc::clone(&tunnel.shared), ends, keeps_time };
            let thread = std::thread::Builder::new().name("tunnel".to_owned()).spawn(move || worker.run());
            tunnel.threads.push(thread.map_err(|source| failed("start a thread", source))?);
        }
        Ok(tunnel)
    }

    /// Replaces the peers, all at once. Packets on their way are carried by what was said before; what was counted for a
    /// peer goes on under its name.
    pub fn set_peers(&self, peers: &[Peer]) {
        let before = self.shared.table();
        let known: HashMap<&str, &Arc<Remote>> =
            before.remotes().iter().map(|remote| (remote.peer.name.as_str(), remote)).collect();
        let port = self.shared.settings.port;
        let identity = self.shared.identity.as_ref();
        let remotes = peers.iter().map(|peer| match known.get(peer.name.as_str()) {
            Some(remote) if remote.peer == *peer => Arc::clone(remote),
            Some(remote) => Arc::new(remote.renewed(peer.clone(), port, identity)),
            None => Arc::new(Remote::new(peer.clone(), port, identity)),
        });
        let table = Arc::new(Table::new(remotes.collect()));
        *self.shared.table.lock().unwrap_or_else(PoisonError::into_inner) = table;
        self.shared.generation.fetch_add(1, Ordering::Release);
    }

    /// What went through since it began, and what did not.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let table = self.shared.table();
        let peers = table.remotes().iter().map(|remote| PeerCounters {
            name: remote.peer.name.clone(),
            sent: remote.counts.sent.read(),
            received: remote.counts.received.read(),
        });
        Counters { peers: peers.collect(), drops: self.shared.drops.read() }
    }

    /// Whether all of its threads are at work. They end by themselves only when the device is deleted.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.threads.iter().all(|thread| !thread.is_finished())
    }

    /// Stops, and gives out what it has worked with. A batch that is being carried is carried to its end. Sessions of
    /// WireGuard end with it: who adopts makes new ones as soon as anybody sends, which costs what is under way in a round
    /// trip.
    #[must_use]
    pub fn hand_over(mut self) -> Handles {
        let mut handles = Handles { queues: Vec::new(), sockets: Vec::new() };
        for ends in self.end() {
            handles.queues.push(ends.queue.into_descriptor());
            handles.sockets.extend(ends.sockets.into_iter().flatten().map(Datagrams::into_descriptor));
        }
        handles
    }

    /// Ends the threads and waits for them.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) -> Vec<Ends> {
        self.shared.stopping.store(true, Ordering::Release);
        // It fails only when it is readable already.
        let _ = rustix::io::write(&self.shared.wake, &1_u64.to_ne_bytes());
        self.threads.drain(..).filter_map(|thread| thread.join().ok()).collect()
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Tunnel").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}

/// One thread's sockets.
fn listen(settings: &Settings) -> Result<[Option<Datagrams>; 2], kernel::Error> {
    let own = |four| settings.underlay.iter().copied().find(|own| own.is_ipv4() == four);
    if let (Encapsulation::Ipip, Some(IpAddr::V4(own))) = (settings.encapsulation, own(true)) {
        return Ok([Some(Datagrams::raw(own, ipip::IPV4)?), Some(Datagrams::raw(own, ipip::IPV6)?)]);
    }
    let bind = |own| Datagrams::udp(SocketAddr::new(own, settings.port), settings.queues > 1);
    Ok([own(true).map(bind).transpose()?, own(false).map(bind).transpose()?])
}

fn check(settings: &Settings) -> Result<(), Error> {
    let wrong = |reason| Err(Error::Settings { device: settings.device.clone(), reason });
    let of = |four: bool| settings.underlay.iter().filter(|own| own.is_ipv4() == four).count();
    if settings.queues == 0 {
        return wrong("it has no queues");
    }
    if settings.underlay.is_empty() {
        return wrong("it has no underlay address");
    }
    if settings.encapsulation == Encapsulation::Ipip && (settings.queues > 1 || of(false) > 0) {
        // Every raw socket of a protocol hears every packet of it.
        return wrong("IP in IP has one queue and an IPv4 underlay");
    }
    if of(true) > 1 || of(false) > 1 {
        return wrong("it has several underlay addresses of one family");
    }
    Ok(())
}
