//! Socket options of netlink, which the system-call library does not know.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Explanations in acknowledgements (`NETLINK_EXT_ACK`).
pub(super) const EXTENDED_ACKNOWLEDGEMENT: i32 = libc::NETLINK_EXT_ACK;
/// Acknowledgements do not carry the whole request back (`NETLINK_CAP_ACK`).
pub(super) const CAP_ACKNOWLEDGEMENT: i32 = libc::NETLINK_CAP_ACK;
/// Listings obey filters and refuse what they do not know (`NETLINK_GET_STRICT_CHK`).
pub(super) const STRICT_CHECKING: i32 = 12;

/// Switches an option of netlink on.
pub(super) fn enable(socket: BorrowedFd<'_>, option: i32) -> Result<(), Errno> {
    set(socket, option, 1)
}

/// Joins a multicast group.
pub(crate) fn join(socket: BorrowedFd<'_>, group: u32) -> Result<(), Errno> {
    set(socket, libc::NETLINK_ADD_MEMBERSHIP, group)
}

/// Leaves a multicast group.
pub(crate) fn leave(socket: BorrowedFd<'_>, group: u32) -> Result<(), Errno> {
    set(socket, libc::NETLINK_DROP_MEMBERSHIP, group)
}

fn set(socket: BorrowedFd<'_>, option: i32, value: u32) -> Result<(), Errno> {
    // SAFETY: the pointer and length describe `value`, which outlives the call; the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const value).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
}
