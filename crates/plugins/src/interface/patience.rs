//! Waiting for the kernel, with a deadline and without asking again and again.
//!
//! [`until`] looks, and if things are not as they should be, listens and looks again at every notification.
//! Listening starts before the second look, so nothing is missed; a notification says only *that* something
//! changed, so lost ones do no harm.

use std::time::{Duration, Instant};

use cni::Error;
use kernel::link::{self, Link, OperationalState};
use kernel::monitor::Monitor;
use kernel::netlink::Socket;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::fault::fault;

/// A link comes up within a millisecond, unless the kernel is busy with the links of many others: every one that
/// is deleted meanwhile takes its turn first.
pub(crate) const CARRIER: Duration = Duration::from_secs(10);

/// Looks with `probe` until it has an answer; `listen` opens what tells of changes, and is called only when
/// the first look found nothing. `None` when `patience` has run out.
pub(crate) fn until<T>(
    patience: Duration,
    listen: impl FnOnce() -> Result<Monitor, kernel::Error>,
    mut probe: impl FnMut() -> Result<Option<T>, Error>,
) -> Result<Option<T>, Error> {
    if let Some(answer) = probe()? {
        return Ok(Some(answer));
    }
    let deadline = Instant::now() + patience;
    let mut monitor = listen().map_err(fault)?;
    loop {
        if let Some(answer) = probe()? {
            return Ok(Some(answer));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        await_change(&mut monitor, left)?;
    }
}

/// Waits until a link carries frames. Coming up is two steps: the kernel takes the request at once, and readies
/// the link's queue, or its port of a bridge, a moment later in the background; what is sent in between is
/// lost without a word. Returns the link as it is then.
pub(crate) fn carrier(
    socket: &mut Socket,
    wanted: &Link,
    listen: impl FnOnce() -> Result<Monitor, kernel::Error>,
) -> Result<Link, Error> {
    let mut last = wanted.operational_state;
    let up = until(CARRIER, listen, || {
        let Some(found) = link::find(socket, wanted.index).map_err(fault)? else {
            return Err(Error::kernel(format!("{} vanished while it was set up", wanted.name)));
        };
        last = found.operational_state;
        Ok(Some(found).filter(|found| found.operational_state == OperationalState::Up))
    })?;
    up.ok_or_else(|| Error::try_again(format!("{} does not come up: it is in state {last:?}", wanted.name)))
}

fn await_change(monitor: &mut Monitor, patience: Duration) -> Result<(), Error> {
    let timeout = Timespec {
        tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(patience.subsec_nanos()),
    };
    match poll(&mut [PollFd::new(&*monitor, PollFlags::IN)], Some(&timeout)) {
        Ok(0) | Err(Errno::INTR) => Ok(()),
        Ok(_) => monitor.receive().map(drop).map_err(fault),
        Err(errno) => Err(Error::io(format!("wait for netlink notifications: {errno}"))),
    }
}
