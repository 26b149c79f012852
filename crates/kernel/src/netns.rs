//! Network namespaces: opened by path, made anew, entered and left again.
//!
//! Read [`Netns`] first. A CNI plugin needs one thing of it, [`Netns::socket`]: a netlink socket that belongs to
//! the pod's namespace while the thread stays where it was (0.03 ms). Code that must really be inside (sysctls,
//! packet sockets) takes [`Netns::run`], on a thread of its own, or [`Netns::enter`], on the calling thread.
//!
//! What stays true: a thread never runs on in a namespace that its code did not choose. If the way back is
//! barred the process ends, because everything after that would configure the wrong machine.
#![allow(unsafe_code)]

use std::io::{self, Write};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::Error;
use crate::netlink::{Protocol, Socket};

/// The calling thread's own namespace.
const CURRENT: &str = "/proc/thread-self/ns/net";
/// File system of namespace files, `linux/magic.h`.
const NSFS_MAGIC: i64 = 0x6e73_6673;
/// `NS_GET_NSTYPE` of `linux/nsfs.h`: which type of namespace a file stands for.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// A network namespace, kept alive by an open descriptor.
#[derive(Debug)]
pub struct Netns {
    descriptor: OwnedFd,
}

/// What tells two namespaces apart, whatever paths lead to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// Device of the namespace's file.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
}

impl Netns {
    /// Opens the namespace at a path such as `/var/run/netns/NAME` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// [`Error::NamespaceMissing`] when nothing is there, [`Error::NotANamespace`] when something else is.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        // Non-blocking, so that a pipe in the wrong place cannot hold us.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let descriptor = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
            Ok(descriptor) => descriptor,
            // ESRCH: the process of /proc/PID/ns/net went while its path was followed.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::SRCH) => {
                return Err(Error::NamespaceMissing { path: path.to_owned() });
            }
            Err(errno) => return Err(open_failed(path, errno)),
        };
        if !is_network_namespace(descriptor.as_fd()).map_err(|errno| open_failed(path, errno))? {
            return Err(Error::NotANamespace { path: path.to_owned() });
        }
        Ok(Self { descriptor })
    }

    /// The calling thread's namespace.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> Result<Self, Error> {
        Self::open(CURRENT)
    }

    /// Makes a new namespace without a name. It lives as long as this value, or anything inside it.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN in the user namespace, or when the limit of namespaces is reached.
    pub fn create() -> Result<Self, Error> {
        on_own_thread(|| {
            // SAFETY: UnshareFlags::NEWNET alone changes nothing that other code relies on (no file table, no
            // memory), and this thread ends right after.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
                .map_err(|errno| system("make a network namespace", errno))?;
            Self::current()
        })?
    }

    /// Takes over a descriptor that is known to be a network namespace, such as an inherited one.
    ///
    /// # Errors
    /// [`Error::NotANamespace`] when it is something else.
    pub fn from_descriptor(descriptor: OwnedFd) -> Result<Self, Error> {
        let path = PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
        match is_network_namespace(descriptor.as_fd()) {
            Ok(true) => Ok(Self { descriptor }),
            Ok(false) => Err(Error::NotANamespace { path }),
            Err(errno) => Err(open_failed(&path, errno)),
        }
    }

    /// What tells this namespace from others.
    ///
    /// # Errors
    /// Only when the descriptor was closed behind our back.
    pub fn identity(&self) -> Result<Identity, Error> {
        let status = rustix::fs::fstat(&self.descriptor)
            .map_err(|errno| system("identify a network namespace", errno))?;
        Ok(Identity { device: status.st_dev, inode: status.st_ino })
    }

    /// A number that no other namespace has or will have until the machine starts anew, while inodes are used
    /// again; `None` from kernels before 5.14, which do not tell.
    ///
    /// # Errors
    /// When the namespace may not be entered or a socket cannot be made.
    pub fn cookie(&self) -> Result<Option<u64>, Error> {
        let socket = self.socket(Protocol::Route)?;
        let mut cookie: u64 = 0;
        let mut length = size_of::<u64>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes, which is the size of the value.
        let refused = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        Ok((refused == 0).then_some(cookie))
    }

    /// Opens a netlink socket that belongs to this namespace; the calling thread is back home when it returns.
    ///
    /// # Errors
    /// When the namespace may not be entered or the socket cannot be made.
    pub fn socket(&self, protocol: Protocol) -> Result<Socket, Error> {
        let _inside = self.enter()?;
        Socket::open(protocol)
    }

    /// Runs `work` inside, on a thread of its own; its panic becomes ours.
    ///
    /// # Errors
    /// When the namespace may not be entered or the thread cannot be started.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_own_thread(|| {
            set(self.descriptor.as_fd())?;
            Ok(work())
        })?
    }

    /// Moves the calling thread inside until the returned value is dropped.
    ///
    /// # Errors
    /// When the namespace may not be entered; the thread has not moved then.
    pub fn enter(&self) -> Result<Entered, Error> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let home = rustix::fs::openat(CWD, CURRENT, flags, Mode::empty())
            .map_err(|errno| open_failed(Path::new(CURRENT), errno))?;
        set(self.descriptor.as_fd())?;
        Ok(Entered { home, stays_on_its_thread: PhantomData })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// The calling thread is in another namespace as long as this lives. Cannot be sent to another thread.
#[derive(Debug)]
#[must_use = "the thread returns home at once when this is dropped"]
pub struct Entered {
    home: OwnedFd,
    stays_on_its_thread: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Err(error) = set(self.home.as_fd()) {
            // The text is for the person on call; there is nobody left to return an error to.
            let _ = writeln!(io::stderr(), "cannot return to the own network namespace, giving up: {error}");
            std::process::abort();
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "this is the one place where namespaces are entered")]
fn set(namespace: BorrowedFd<'_>) -> Result<(), Error> {
    rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
        .map_err(|errno| system("enter a network namespace", errno))
}

fn is_network_namespace(descriptor: BorrowedFd<'_>) -> Result<bool, Errno> {
    if rustix::fs::fstatfs(descriptor)?.f_type != NSFS_MAGIC {
        return Ok(false);
    }
    // SAFETY: this request takes no argument and touches no memory of ours.
    let kind = unsafe { libc::ioctl(descriptor.as_raw_fd(), NS_GET_NSTYPE) };
    Ok(kind == libc::CLONE_NEWNET)
}

/// Runs `work` on a new thread and waits for it.
fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|source| Error::System { tried: "start a thread", source })?;
        match thread.join() {
            Ok(result) => Ok(result),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn open_failed(path: &Path, errno: Errno) -> Error {
    Error::File { tried: "open network namespace", path: path.to_owned(), source: errno.into() }
}

fn system(tried: &'static str, errno: Errno) -> Error {
    Error::System { tried, source: errno.into() }
}
