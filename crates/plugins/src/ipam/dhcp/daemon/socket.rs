//! Where plugins find the daemon: a socket of its own, or one that systemd has opened for it.
//!
//! Read [`Listener`].

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use cni::Error;
use kernel::activation;

use super::callers::Callers;
use crate::ipam::dhcp::machine::Moment;

/// The socket that plugins call at.
#[derive(Debug)]
pub(super) struct Listener {
    socket: UnixListener,
    /// Its path, if it is ours to remove.
    path: Option<PathBuf>,
}

impl Listener {
    /// The one that systemd passed; `None` when it passed none.
    ///
    /// # Errors
    /// When it passed several.
    pub(super) fn inherited() -> Result<Option<Self>, Error> {
        let mut passed = activation::inherited();
        match (passed.pop(), passed.len()) {
            (None, _) => Ok(None),
            (Some(descriptor), 0) => Self::listening(UnixListener::from(descriptor), None).map(Some),
            (Some(_), more) => {
                Err(Error::environment(format!("{} sockets were passed; exactly one is expected", more + 1)))
            }
        }
    }

    /// Makes one at `path`. What a daemon that was killed left there is removed; the caller knows that it is
    /// the only one.
    ///
    /// # Errors
    /// Code 5 when the path cannot be used.
    pub(super) fn bind(path: &Path) -> Result<Self, Error> {
        let failed =
            |tried: &str, cause: io::Error| Error::io(format!("{tried} {}: {cause}", path.display()));
        if let Some(parent) = path.parent() {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(parent);
            made.map_err(|cause| failed("make the directory of", cause))?;
        }
        let socket = match UnixListener::bind(path) {
            Err(cause) if cause.kind() == io::ErrorKind::AddrInUse => {
                fs::remove_file(path).map_err(|cause| failed("remove", cause))?;
                UnixListener::bind(path)
            }
            done => done,
        };
        let socket = socket.map_err(|cause| failed("listen at", cause))?;
        fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(|cause| failed("protect", cause))?;
        Self::listening(socket, Some(path.to_owned()))
    }

    fn listening(socket: UnixListener, path: Option<PathBuf>) -> Result<Self, Error> {
        let done = socket.set_nonblocking(true);
        done.map_err(|cause| Error::io(format!("prepare the socket that plugins call at: {cause}")))?;
        Ok(Self { socket, path })
    }

    /// Takes in all who have called.
    pub(super) fn accept_into(&self, callers: &mut Callers, now: Moment) {
        while let Ok((stream, _)) = self.socket.accept() {
            callers.take_in(stream, now);
        }
    }

    /// Removes the socket, if it is ours.
    pub(super) fn close(&self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
