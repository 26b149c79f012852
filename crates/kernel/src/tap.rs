//! TAP devices: links whose far end is a program, such as a virtual machine's.
//!
//! Read [`NewTap`], then [`create`]. A device is made by opening the kernel's device file inside the namespace that
//! it shall be in; it then belongs to the open file, and stays when that is closed because it is made persistent as
//! the last step. A process that dies before leaves nothing. What it is afterwards, [`link`](crate::link) tells.
//!
//! Sources: `Documentation/networking/tuntap.rst` and `drivers/net/tun.c` of Linux 6.18; for labels,
//! `security/selinux/hooks.c`: a device takes the label that its maker has at that moment, and the label for new
//! sockets is of no account.
#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::Error;
use crate::abi;
use crate::netlink::Purpose;

/// The kernel's device file.
pub const DEVICE: &str = "/dev/net/tun";

/// Whose label and which: a security context of SELinux for the current process.
const LABEL: &str = "/proc/self/attr/current";

/// A TAP device to be made, in the calling thread's namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewTap<'a> {
    /// Its name, 1 to 15 bytes.
    pub name: &'a str,
    /// Let several programs, or threads, hold it at the same time.
    pub multi_queue: bool,
    /// The user who may hold it; `None` for nobody but the privileged.
    pub owner: Option<u32>,
    /// The group who may hold it.
    pub group: Option<u32>,
}

/// Makes a TAP device. It is down. An error for a taken name is [`Error::exists`].
///
/// # Errors
/// When the kernel refuses, or has no TAP devices ([`Error::is_missing`]).
pub fn create(tap: &NewTap<'_>) -> Result<(), Error> {
    make(tap).map_err(|errno| refused(tap, errno))
}

/// Makes a TAP device with a label of SELinux, by which the policy decides who may hold it. A process of our own takes
/// the label and ends with the making: there may be no way back from it.
///
/// # Errors
/// As [`create`], and when the policy does not let us have the label.
pub fn create_labelled(tap: &NewTap<'_>, label: &str) -> Result<(), Error> {
    let failed = |tried: &'static str, errno: Errno| Error::System { tried, source: errno.into() };
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)
        .map_err(|errno| failed("make a pipe to a process of our own", errno))?;
    // SAFETY: the plugins are programs of one thread, so the new process has all that this one has; it ends in
    // `_exit`, past everything that would run twice.
    let process = unsafe { libc::fork() };
    match process {
        -1 => return Err(failed("start a process of our own", last_errno())),
        0 => {
            let outcome = match fs::write(LABEL, label) {
                Err(error) => [1, errno_of(&error)],
                Ok(()) => [2, make(tap).map_or_else(Errno::raw_os_error, |()| 0)],
            };
            let _ =
                File::from(writer).write_all(&outcome.map(|number| u8::try_from(number).unwrap_or(u8::MAX)));
            // SAFETY: ends the process and nothing else.
            unsafe { libc::_exit(0) }
        }
        _ => drop(writer),
    }
    let mut outcome = Vec::new();
    let read = File::from(reader).read_to_end(&mut outcome);
    // SAFETY: the process is ours and has not been waited for; a null status asks for none.
    unsafe { libc::waitpid(process, std::ptr::null_mut(), 0) };
    match (read, outcome.as_slice()) {
        (Ok(_), [2, 0]) => Ok(()),
        (Ok(_), [2, errno]) => Err(refused(tap, Errno::from_raw_os_error((*errno).into()))),
        (Ok(_), [1, errno]) => {
            let source = io::Error::from_raw_os_error((*errno).into());
            Err(Error::File { tried: "take the label by", path: PathBuf::from(LABEL), source })
        }
        _ => Err(failed("hear from a process of our own", Errno::PIPE)),
    }
}

/// Whether the kernel has SELinux, and has not had it switched off when it started.
#[must_use]
pub fn has_selinux() -> bool {
    fs::read_to_string("/proc/filesystems").is_ok_and(|list| list.contains("selinuxfs"))
}

fn make(tap: &NewTap<'_>) -> Result<(), Errno> {
    let file = OpenOptions::new().read(true).write(true).open(DEVICE);
    let file = file.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let mut request = abi::InterfaceRequest::new(tap.name).ok_or(Errno::NAMETOOLONG)?;
    let queues = if tap.multi_queue { abi::IFF_MULTI_QUEUE } else { 0 };
    // Without IFF_TUN_EXCL an existing device would be taken over.
    request.flags = abi::IFF_TAP | abi::IFF_NO_PI | abi::IFF_TUN_EXCL | queues;
    // SAFETY: the request is as long as the kernel's `struct ifreq` and outlives the call.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    let settings =
        [(libc::TUNSETOWNER, tap.owner), (libc::TUNSETGROUP, tap.group), (libc::TUNSETPERSIST, Some(1))];
    for (setting, value) in settings {
        if let Some(value) = value {
            // SAFETY: these take a number, no pointer.
            checked(unsafe { libc::ioctl(file.as_raw_fd(), setting, libc::c_ulong::from(value)) })?;
        }
    }
    Ok(())
}

fn checked(result: libc::c_int) -> Result<(), Errno> {
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

fn refused(tap: &NewTap<'_>, errno: Errno) -> Error {
    // With IFF_TUN_EXCL this is the kernel's word for a name that is taken by another TAP device.
    let errno = if errno == Errno::BUSY { Errno::EXIST } else { errno };
    Error::Refused { purpose: Purpose::new("create TAP device", tap.name), errno, detail: None }
}
