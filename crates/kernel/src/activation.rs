//! Descriptors that the service manager passes when it starts us: sockets that it has opened (sd_listen_fds(3)), and what
//! an earlier life of ours gave it to keep ([`notify`](crate::notify)).
//!
//! Read [`inherited`]. The variables are looked at once, when the program starts; they are for this process
//! only if `LISTEN_PID` says so.

use std::env;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process;

/// The first descriptor that is passed.
pub(crate) const FIRST: i32 = 3;

/// How one that has no name of its own is called.
pub(crate) const UNNAMED: &str = "unknown";

/// The descriptors passed to this process. To be called once, before other descriptors are opened.
pub fn inherited() -> Vec<OwnedFd> {
    inherited_with_names().into_iter().map(|(_, descriptor)| descriptor).collect()
}

/// The same with the name of each; several may have the same. To be called once, in place of [`inherited`].
pub fn inherited_with_names() -> Vec<(String, OwnedFd)> {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(process::id()) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").and_then(|count| i32::try_from(count).ok()).unwrap_or_default();
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(|name| Some(name).filter(|name| !name.is_empty()).unwrap_or(UNNAMED));
    let names = names.chain(std::iter::repeat(UNNAMED));
    let open = (FIRST..FIRST.saturating_add(count)).zip(names).filter(|(number, _)| is_open(*number));
    // SAFETY: the service manager says that these are ours, each is open, and nobody in this process has taken them yet.
    #[allow(unsafe_code)]
    let owned = open.map(|(number, name)| (name.to_owned(), unsafe { OwnedFd::from_raw_fd(number) }));
    owned.collect()
}

/// Whether there is such a descriptor; from here on it is not handed to children.
fn is_open(number: i32) -> bool {
    // SAFETY: takes no pointers; on a number that is no descriptor it fails.
    #[allow(unsafe_code)]
    let done = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    done == 0
}
