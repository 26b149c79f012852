//! A thread of a tunnel: one queue of the device, one socket of each family, and what it does between them.
//!
//! Read [`Worker::run`]. What all threads share is [`Shared`]; the peers in it are looked at once per batch, and a lock is
//! taken only when they have changed since.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kernel::datagram::Datagrams;
use kernel::tun::Queue;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::counters::Drops;
use crate::incoming::Incoming;
use crate::outgoing::Outgoing;
use crate::settings::Settings;
use crate::table::Table;
use crate::wireguard::{Clock, Identity, TICK};

/// What one thread reads from and writes to.
#[derive(Debug)]
pub(crate) struct Ends {
    /// Its queue of the device.
    pub queue: Queue,
    /// Its sockets, of IPv4 and of IPv6; over IP in IP, for IPv4 inside and for IPv6 inside.
    pub sockets: [Option<Datagrams>; 2],
}

impl Ends {
    /// The socket for this address.
    pub(crate) fn socket(&self, to: SocketAddr) -> Option<&Datagrams> {
        let [four, six] = &self.sockets;
        if to.is_ipv4() { four.as_ref() } else { six.as_ref() }
    }
}

/// What all threads share.
pub(crate) struct Shared {
    pub settings: Settings,
    pub drops: Drops,
    /// Who we are, over WireGuard.
    pub identity: Option<Identity>,
    /// The peers, and how often they have been replaced.
    pub table: Mutex<Arc<Table>>,
    pub generation: AtomicU64,
    /// The threads shall end, and the descriptor is readable.
    pub stopping: AtomicBool,
    pub wake: OwnedFd,
    pub end: End,
}

/// What is to happen when a thread ends that was not told to.
#[derive(Default)]
pub(crate) struct End(Mutex<(Option<String>, Option<Call>)>);

/// Is told the reason.
pub(crate) type Call = Box<dyn Fn(&str) + Send>;

impl End {
    /// Has this called, at once if a thread has ended already.
    pub(crate) fn on_end(&self, call: Call) {
        let (reason, known) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = reason {
            call(reason);
        }
        *known = Some(call);
    }

    /// A thread ends. The others of the tunnel may, too: it is told once.
    fn tell(&self, why: String) {
        let (reason, call) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if reason.is_none()
            && let Some(call) = call
        {
            call(&why);
        }
        reason.get_or_insert(why);
    }
}

/// Tells of the end of a thread, also where it panics.
struct Telling<'a> {
    shared: &'a Shared,
    reason: Option<Errno>,
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        match self.reason {
            _ if self.shared.stopping.load(Ordering::Acquire) => {}
            Some(errno) => self.shared.end.tell(errno.to_string()),
            None => self.shared.end.tell("a thread of it has panicked".to_owned()),
        }
    }
}

impl Shared {
    /// The peers of this moment.
    pub(crate) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the two ways need to know while they carry a batch.
pub(crate) struct Context<'a> {
    pub shared: &'a Shared,
    pub table: &'a Table,
    pub ends: &'a Ends,
}

impl Context<'_> {
    /// The largest packet that fits the way to this address, by what is known of the way from ours.
    pub(crate) fn inner_mtu(&self, to: SocketAddr, of: impl FnOnce(IpAddr) -> Option<u32>) -> Option<u16> {
        let settings = &self.shared.settings;
        let from = settings.underlay.iter().find(|own| own.is_ipv4() == to.is_ipv4())?;
        let outer = of(*from)?.checked_sub(settings.encapsulation.overhead(to.ip()).into())?;
        Some(u16::try_from(outer).unwrap_or(u16::MAX))
    }
}

/// One thread's work.
pub(crate) struct Worker {
    pub shared: Arc<Shared>,
    pub ends: Ends,
    /// Whether it drives the timers of WireGuard.
    pub keeps_time: bool,
}

impl Worker {
    /// Carries packets until it is told to stop, or the device is gone. Gives back what it worked with.
    pub(crate) fn run(self) -> Ends {
        let Self { shared, ends, keeps_time } = self;
        let mut telling = Telling { shared: &shared, reason: None };
        let mut outgoing = Outgoing::new();
        let mut incoming = Incoming::new(&shared.settings, ends.queue.takes_udp());
        let mut clock = keeps_time.then(Clock::new);
        let mut generation = shared.generation.load(Ordering::Acquire);
        let mut table = shared.table();
        while !shared.stopping.load(Ordering::Acquire) {
            let newest = shared.generation.load(Ordering::Acquire);
            if newest != generation {
                generation = newest;
                table = shared.table();
            }
            let context = Context { shared: &shared, table: &table, ends: &ends };
            let sent = match outgoing.carry(&context) {
                Ok(sent) => sent,
                Err(errno) => {
                    telling.reason = Some(errno);
                    break;
                }
            };
            let received = incoming.carry(&context);
            if let Some(clock) = &mut clock {
                clock.tick(&context);
            }
            if !sent
                && !received
                && let Err(errno) = wait(&shared, &ends, keeps_time)
            {
                telling.reason = Some(errno);
                break;
            }
        }
        drop(telling);
        ends
    }
}

/// Sleeps until there is something to do.
fn wait(shared: &Shared, ends: &Ends, keeps_time: bool) -> Result<(), Errno> {
    let tick = Timespec { tv_sec: 0, tv_nsec: TICK.subsec_nanos().into() };
    let watch = |descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN);
    let (wake, queue) = (watch(shared.wake.as_fd()), watch(ends.queue.as_fd()));
    let [four, six] = &ends.sockets;
    // A descriptor that is not there is watched as one that is, twice.
    let [four, six] = [four, six].map(|socket| socket.as_ref().map(|own| watch(own.as_fd())));
    let mut watched =
        [wake.clone(), queue, four.unwrap_or_else(|| wake.clone()), six.unwrap_or_else(|| wake.clone())];
    match poll(&mut watched, keeps_time.then_some(&tick)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(errno),
    }
    // The device says so when it is gone, and would go on saying so.
    let gone = watched.get(1).is_some_and(|queue| queue.revents().contains(PollFlags::ERR));
    if gone { Err(Errno::NODEV) } else { Ok(()) }
}
