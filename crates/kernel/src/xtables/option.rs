//! The socket options through which the older iptables interface is spoken to: whole tables as one value.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Reads the option into `buffer`, which also carries the question.
pub(super) fn get(socket: BorrowedFd<'_>, level: i32, option: i32, buffer: &mut [u8]) -> Result<(), Errno> {
    let mut length = buffer.len() as libc::socklen_t;
    // SAFETY: pointer and length describe `buffer`, which is exclusively ours during the call; the kernel writes
    // at most `length` bytes.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, buffer.as_mut_ptr().cast(), &raw mut length)
    };
    outcome(result)
}

/// Sets the option to `value`.
pub(super) fn set(socket: BorrowedFd<'_>, level: i32, option: i32, value: &[u8]) -> Result<(), Errno> {
    // SAFETY: pointer and length describe `value`, which outlives the call; the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    outcome(result)
}

/// Replaces a table. The kernel writes the old rules' counters to where `value` says at `pointer_at`: that
/// becomes the address of `counters`.
pub(super) fn replace(
    socket: BorrowedFd<'_>,
    (level, option): (i32, i32),
    (value, pointer_at): (&mut [u8], usize),
    counters: &mut [[u64; 2]],
) -> Result<(), Errno> {
    let address = counters.as_mut_ptr() as usize;
    value[pointer_at..pointer_at + size_of::<usize>()].copy_from_slice(&address.to_ne_bytes());
    // The kernel writes as many counters as `value` says there are; `counters` is as long (see the caller), and
    // is borrowed until the call is over.
    set(socket, level, option, value)
}

fn outcome(result: i32) -> Result<(), Errno> {
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
}
