//! User namespaces: how someone who is not root gets a network of their own to be root in.
//!
//! Both functions change the whole process and are for its first moments: the kernel refuses them once there
//! is a second thread. user_namespaces(7).

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::Error;

/// Moves this process into a new user namespace, in which it is root and nobody else is anything, and into a
/// new network namespace that belongs to it.
///
/// # Errors
/// [`Error::System`] when the machine does not let this user make namespaces, or a second thread runs.
pub fn become_root_of_a_new_one() -> Result<(), Error> {
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET, "make a user namespace")?;
    // Without this the kernel refuses an unprivileged gid_map: groups could be dropped that deny access.
    write("/proc/self/setgroups", "deny")?;
    write("/proc/self/uid_map", &format!("0 {user} 1"))?;
    write("/proc/self/gid_map", &format!("0 {group} 1"))
}

/// Moves this process, whole, into a new network namespace, away from the machine's own.
///
/// # Errors
/// [`Error::System`] without CAP_SYS_ADMIN.
pub fn leave_the_machines_network() -> Result<(), Error> {
    unshare(UnshareFlags::NEWNET, "make a network namespace")
}

/// Moves this process into the user namespace of the process `pid`, if it is in another one.
///
/// # Errors
/// [`Error::File`] when there is no such process, [`Error::System`] when it is not ours to join.
pub fn join(pid: u32) -> Result<(), Error> {
    let path = PathBuf::from(format!("/proc/{pid}/ns/user"));
    let named = |source| Error::File { tried: "open", path: path.clone(), source };
    if fs::read_link(&path).map_err(named)? == fs::read_link("/proc/self/ns/user").map_err(named)? {
        return Ok(());
    }
    let target = fs::File::open(&path).map_err(named)?;
    // There is no way back, nor is one wanted: the whole process lives there from here on.
    #[allow(clippy::disallowed_methods)]
    let joined = move_into_link_name_space(target.as_fd(), Some(LinkNameSpaceType::User));
    joined.map_err(|errno| Error::System { tried: "enter a user namespace", source: errno.into() })
}

fn unshare(flags: UnshareFlags, tried: &'static str) -> Result<(), Error> {
    // SAFETY: file descriptor tables are not unshared, which is the hazard the function is unsafe for.
    #[allow(unsafe_code)]
    let done = unsafe { rustix::thread::unshare_unsafe(flags) };
    done.map_err(|errno| Error::System { tried, source: errno.into() })
}

fn write(path: &str, text: &str) -> Result<(), Error> {
    let failed = |source: io::Error| Error::File { tried: "write", path: Path::new(path).into(), source };
    fs::write(path, text).map_err(failed)
}
