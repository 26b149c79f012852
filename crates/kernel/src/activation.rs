//! Sockets that systemd opened before it started us (sd_listen_fds(3)).
//!
//! Read [`inherited`]. The variables are looked at once, when the program starts; they are for this process
//! only if `LISTEN_PID` says so.

use std::env;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process;

/// The first descriptor that is passed.
const FIRST: i32 = 3;

/// The descriptors passed to this process. To be called once, before other descriptors are opened.
pub fn inherited() -> Vec<OwnedFd> {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(process::id()) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").and_then(|count| i32::try_from(count).ok()).unwrap_or_default();
    let open = (FIRST..FIRST.saturating_add(count)).filter(|number| is_open(*number));
    // SAFETY: systemd says that these are ours, each is open, and nobody in this process has taken them yet.
    #[allow(unsafe_code)]
    let owned = open.map(|number| unsafe { OwnedFd::from_raw_fd(number) });
    owned.collect()
}

/// Whether there is such a descriptor; from here on it is not handed to children.
fn is_open(number: i32) -> bool {
    // SAFETY: takes no pointers; on a number that is no descriptor it fails.
    #[allow(unsafe_code)]
    let done = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    done == 0
}
