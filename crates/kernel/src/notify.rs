//! What a service says to the manager that started it (sd_notify(3)), above all: keep these descriptors for my next life.
//!
//! Read [`Notifier`], which a service has, then [`Keeper`], which is the manager's side, as far as descriptors go: what
//! systemd does for a service with `FileDescriptorStoreMax=`, others can do with it as well. A descriptor that the manager
//! keeps stays open whatever becomes of the service, so what arrives at it waits; [`activation`](crate::activation) takes
//! it over in the next life.
//!
//! What stays true: a service never waits for its manager but in [`Notifier::barrier`], and there for a limited time; a
//! descriptor is kept until it is taken back by its name.
//!
//! Sources: sd_notify(3), sd_pid_notify_with_fds(3), systemd.service(5); the messages are datagrams of lines `NAME=VALUE`.

mod keeper;

use std::env;
use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::Error;

pub use keeper::Keeper;

/// Where the manager listens.
const SOCKET: &str = "NOTIFY_SOCKET";

/// How many descriptors go into one message; systemd takes more, this buffer does not.
const MOST: usize = 32;

/// How long a message may take to be taken: a manager that hangs does not make the service hang.
const PATIENCE: Duration = Duration::from_secs(1);

/// A service's way to its manager.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
}

impl Notifier {
    /// The manager that started this process; `None` when there is none, or none that listens.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        Self::to(&env::var_os(SOCKET)?).ok()
    }

    /// One that listens at this address: a path, or `@` and an abstract name.
    fn to(address: &OsStr) -> Result<Self, Error> {
        let failed = |source| Error::System { tried: "speak to the service manager", source };
        let address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
            _ => SocketAddr::from_pathname(Path::new(address)),
        };
        let socket = UnixDatagram::unbound().map_err(failed)?;
        socket.connect_addr(&address.map_err(failed)?).map_err(failed)?;
        socket.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        Ok(Self { socket })
    }

    /// Says that the service has started.
    ///
    /// # Errors
    /// When the manager does not take it.
    pub fn ready(&self) -> Result<(), Error> {
        self.say("READY=1", &[])
    }

    /// Has the manager keep these under a name, beside what it keeps under it already.
    ///
    /// # Errors
    /// When the manager does not take them. Whether it keeps them (it may have its fill) it does not say.
    pub fn keep(&self, name: &str, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        descriptors.chunks(MOST).try_for_each(|some| self.say(&format!("FDSTORE=1\nFDNAME={name}"), some))
    }

    /// Has the manager close what it keeps under a name.
    ///
    /// # Errors
    /// When the manager does not take it.
    pub fn give_up(&self, name: &str) -> Result<(), Error> {
        self.say(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])
    }

    /// Waits until the manager has done all that it was told, so long at most; true if it has.
    ///
    /// # Errors
    /// When the manager does not take it.
    pub fn barrier(&self, patience: Duration) -> Result<bool, Error> {
        let failed = |source: io::Error| Error::System { tried: "wait for the service manager", source };
        let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|errno| failed(errno.into()))?;
        self.say("BARRIER=1", &[theirs.as_fd()])?;
        drop(theirs);
        let patience = Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: patience.subsec_nanos().into(),
        };
        // It is closed by who has read so far.
        let mut watched = [PollFd::new(&ours, PollFlags::empty())];
        poll(&mut watched, Some(&patience)).map(|ready| ready > 0).map_err(|errno| failed(errno.into()))
    }

    fn say(&self, text: &str, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let flags = SendFlags::NOSIGNAL;
        sendmsg(&self.socket, &[IoSlice::new(text.as_bytes())], &mut control, flags).map(drop).map_err(
            |errno| Error::System { tried: "tell the service manager something", source: errno.into() },
        )
    }
}
