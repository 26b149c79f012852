//! A tunnel's life: started, told its peers, handed over or stopped.
//!
//! Read [`Tunnel`], then [`Handles`]: what a tunnel has open, apart from it, so that it can be kept or passed on.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
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
use crate::worker::{End, Ends, Shared, Worker};

/// A running tunnel. Dropping it ends its threads; a persistent device stays.
pub struct Tunnel {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Ends>>,
}

/// What a tunnel works with, for another process to go on with: the open descriptors of its device and its sockets.
/// What arrives meanwhile waits in them.
#[derive(Debug, Default)]
pub struct Handles {
    /// The queues of the device.
    pub queues: Vec<OwnedFd>,
    /// The sockets, in any order.
    pub sockets: Vec<OwnedFd>,
}

impl Handles {
    /// Opens what a tunnel with these settings works with, in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the settings contradict themselves, or the kernel refuses a device or a socket.
    pub fn open(settings: &Settings) -> Result<Self, Error> {
        check(settings)?;
        let mut handles = Self::default();
        for _ in 0..settings.queues {
            let queue = Queue::open(&settings.device)
                .map_err(|source| failed(settings, "open a queue of the device", source))?;
            handles.queues.push(queue.into_descriptor());
            let sockets =
                listen(settings).map_err(|source| failed(settings, "listen to the underlay", source))?;
            handles.sockets.extend(sockets.into_iter().flatten().map(Datagrams::into_descriptor));
        }
        Ok(handles)
    }

    /// What each thread of a tunnel with these settings has; an error when they are not exactly such a tunnel's.
    fn ends(self, settings: &Settings) -> Result<Vec<Ends>, Error> {
        let wrong = |reason| Err(Error::Handles { device: settings.device.clone(), reason });
        let wanted = local(settings);
        let mut sockets: [Vec<Datagrams>; 2] = Default::default();
        for descriptor in self.sockets {
            let socket = Datagrams::adopt(descriptor);
            let bound = socket.local().map_err(|source| failed(settings, "take over a socket", source))?;
            match wanted.iter().zip(&mut sockets).find(|(wanted, _)| **wanted == Some(bound)) {
                Some((_, of_this_kind)) => of_this_kind.push(socket),
                None => return wrong("a socket is bound to another address or port"),
            }
        }
        let complete = |(wanted, sockets): (&Option<SocketAddr>, &Vec<Datagrams>)| {
            sockets.len() == if wanted.is_some() { settings.queues } else { 0 }
        };
        if self.queues.len() != settings.queues || !wanted.iter().zip(&sockets).all(complete) {
            // One too many would take its share of the packets, and nobody would read them.
            return wrong("its number of queues or sockets is another");
        }
        let [mut four, mut six] = sockets;
        let mut all = Vec::new();
        for descriptor in self.queues {
            let refused = |source| failed(settings, "take over a queue", source);
            let queue = Queue::adopt(descriptor).map_err(refused)?;
            if queue.device().map_err(refused)? != settings.device {
                return wrong("a queue is another device's");
            }
            all.push(Ends { queue, sockets: [four.pop(), six.pop()] });
        }
        Ok(all)
    }
}

fn failed(settings: &Settings, tried: &'static str, source: kernel::Error) -> Error {
    Error::Kernel { device: settings.device.clone(), tried, source: Box::new(source) }
}

impl Tunnel {
    /// Starts a tunnel with these peers, in the calling thread's network namespace. They are known before the first packet
    /// is carried: to one for which there is none its sender would be told so.
    ///
    /// # Errors
    /// When the settings contradict themselves, or the kernel refuses a device, a socket or a thread.
    pub fn start(settings: Settings, peers: &[Peer]) -> Result<Self, Error> {
        let handles = Handles::open(&settings)?;
        Self::adopt(settings, handles, peers)
    }

    /// Goes on with what another tunnel has handed over, or what was opened for these settings. The peers are known before
    /// the first packet is carried, or what waits in the handles would be dropped as from strangers.
    ///
    /// # Errors
    /// When the handles are not those of such a tunnel, or the kernel refuses a thread.
    pub fn adopt(settings: Settings, handles: Handles, peers: &[Peer]) -> Result<Self, Error> {
        check(&settings)?;
        let all = handles.ends(&settings)?;
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
            end: End::default(),
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

    /// Whether all of its threads are at work. They end by themselves only when the device is deleted or something is
    /// broken.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.threads.iter().all(|thread| !thread.is_finished())
    }

    /// Has this called by a thread that ends without having been told to, with the reason; at once if one has ended already.
    pub fn on_end(&self, call: impl Fn(&str) + Send + 'static) {
        self.shared.end.on_end(Box::new(call));
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
    let [four, six] = local(settings);
    let open = |address: SocketAddr| match (settings.encapsulation, address) {
        (Encapsulation::Ipip, SocketAddr::V4(four)) => {
            Datagrams::raw(*four.ip(), u8::try_from(four.port()).unwrap_or_default())
        }
        _ => Datagrams::udp(address, settings.queues > 1),
    };
    Ok([four.map(open).transpose()?, six.map(open).transpose()?])
}

/// What they are bound to. The port of a raw socket is its protocol number.
fn local(settings: &Settings) -> [Option<SocketAddr>; 2] {
    let own = |four| settings.underlay.iter().copied().find(|own| own.is_ipv4() == four);
    if let (Encapsulation::Ipip, Some(own)) = (settings.encapsulation, own(true)) {
        return [ipip::IPV4, ipip::IPV6].map(|protocol| Some(SocketAddr::new(own, protocol.into())));
    }
    [true, false].map(|four| Some(SocketAddr::new(own(four)?, settings.port)))
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
