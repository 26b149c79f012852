//! The machine's clock: whether somebody keeps it right.
//!
//! Sources: adjtimex(2), `include/uapi/linux/timex.h`.
#![allow(unsafe_code)]

use std::io;

use crate::Error;

/// Whether the kernel has been told, by a time service, that the clock is right. Nothing is changed.
///
/// # Errors
/// Where the call is forbidden, as in some containers.
pub fn is_synchronised() -> Result<bool, Error> {
    // SAFETY: the structure is made of numbers only, for all of which zero is a value.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is ours alone during the call. Without modes the kernel only fills it in.
    if unsafe { libc::adjtimex(&raw mut state) } < 0 {
        return Err(Error::System {
            tried: "ask for the state of the clock",
            source: io::Error::last_os_error(),
        });
    }
    Ok(state.status & libc::STA_UNSYNC == 0)
}
