//! Waiting for the kernel, with a deadline and without asking again and again.
//!
//! [`until`] looks, and if things are not as they should be, listens and looks again at every notification.
//! Listening starts before the second look, so nothing is missed; a notification says only *that* something
//! changed, so lost ones do no harm.

use std::time::{Duration, Instant};

use cni::Error;
use kernel::monitor::Monitor;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::fault::fault;

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
