//! Filters of sockets: which packets reach one, in the classic language of `linux/filter.h`.
//!
//! Read [`attach`]. Whoever has a socket writes the program; here it is given to the kernel.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::Error;

/// Lets through to a socket only what the program accepts; `tried` is for the error.
///
/// # Errors
/// When the kernel refuses the program.
pub(crate) fn attach(
    socket: impl AsFd,
    steps: &[libc::sock_filter],
    tried: &'static str,
) -> Result<(), Error> {
    let length = u16::try_from(steps.len()).unwrap_or(u16::MAX);
    let program = libc::sock_fprog { len: length, filter: steps.as_ptr().cast_mut() };
    // SAFETY: the kernel copies the program, which lives until after the call, and does not write to it.
    let refused = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    if refused == 0 { Ok(()) } else { Err(Error::System { tried, source: io::Error::last_os_error() }) }
}
