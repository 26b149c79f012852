//! Sysctls: files below `/proc/sys`, named with `/` so that a link name with dots (`eth0.100`) is no trouble.
//!
//! [`set`] is the one to use: it writes only what differs, so it costs nothing when repeated and works where
//! `/proc/sys` is read-only but right already. The `net/` part shows the namespace of the *calling thread*: call
//! inside [`Netns::enter`](crate::netns::Netns::enter) or [`Netns::run`](crate::netns::Netns::run).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::Error;

const ROOT: &str = "/proc/sys";

/// A directory of sysctls. Opened once for several of them, the way there is found once: all namespaces share the names
/// that lead there, so it is longer the more of them there are.
#[derive(Debug)]
pub struct Directory {
    /// None for the root, which needs no finding.
    descriptor: Option<OwnedFd>,
    path: PathBuf,
}

impl Directory {
    /// All of `/proc/sys`.
    #[must_use]
    pub fn root() -> Self {
        Self { descriptor: None, path: PathBuf::from(ROOT) }
    }

    /// The directory at a path such as `net/ipv6/conf`. Its sysctls are those of the calling thread's namespace, and only
    /// there to be used.
    ///
    /// # Errors
    /// [`Error::is_missing`] when this kernel or namespace has no such directory.
    pub fn open(path: &str) -> Result<Self, Error> {
        let path = resolve(Path::new(ROOT), path, "open")?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match openat(CWD, &path, flags, Mode::empty()) {
            Ok(descriptor) => Ok(Self { descriptor: Some(descriptor), path }),
            Err(errno) => Err(Error::File { tried: "open", path, source: errno.into() }),
        }
    }

    /// Reads a sysctl, without the newline. `path` as in `net/ipv4/ip_forward`, from here on.
    ///
    /// # Errors
    /// [`Error::is_missing`] when this kernel or namespace has no such sysctl.
    pub fn read(&self, path: &str) -> Result<String, Error> {
        let mut value = String::new();
        self.at(path, "read", OFlags::RDONLY, |file| file.read_to_string(&mut value).map(drop))?;
        value.truncate(value.trim_end().len());
        Ok(value)
    }

    /// Makes a sysctl have this value; returns whether it had another one before.
    ///
    /// # Errors
    /// [`Error::is_missing`] when there is no such sysctl; otherwise when the value is refused or may not be written.
    pub fn set(&self, path: &str, value: &str) -> Result<bool, Error> {
        // A sysctl that can be written but not read does exist; then it is simply written.
        match self.read(path) {
            Ok(present) if same(&present, value) => return Ok(false),
            Err(error) if error.is_missing() => return Err(error),
            _ => {}
        }
        self.write(path, value).map(|()| true)
    }

    /// Writes a sysctl without looking at it first.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn write(&self, path: &str, value: &str) -> Result<(), Error> {
        self.at(path, "write", OFlags::WRONLY, |file| file.write_all(value.as_bytes()))
    }

    fn at(
        &self,
        path: &str,
        tried: &'static str,
        flags: OFlags,
        work: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<(), Error> {
        let full = resolve(&self.path, path, tried)?;
        let opened = match &self.descriptor {
            Some(descriptor) => openat(descriptor.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty()),
            None => openat(CWD, &full, flags | OFlags::CLOEXEC, Mode::empty()),
        };
        let done = opened.map_err(io::Error::from).and_then(|descriptor| work(&mut File::from(descriptor)));
        done.map_err(|source| Error::File { tried, path: full, source })
    }
}

/// [`Directory::read`] from the root.
///
/// # Errors
/// As there.
pub fn read(path: &str) -> Result<String, Error> {
    Directory::root().read(path)
}

/// Whether this kernel has the IPv6 protocol at all: booted with `ipv6.disable=1`, or built without it, it has not.
#[must_use]
pub fn has_ipv6() -> bool {
    Path::new(ROOT).join("net/ipv6").exists()
}

/// Whether `/proc/sys` is mounted so that nobody can write to it, as in an unprivileged container.
///
/// # Errors
/// When `/proc/sys` is not there.
pub fn is_read_only() -> Result<bool, Error> {
    let failed = |errno: rustix::io::Errno| Error::File {
        tried: "look at",
        path: PathBuf::from(ROOT),
        source: errno.into(),
    };
    let flags = rustix::fs::statvfs(ROOT).map_err(failed)?.f_flag;
    Ok(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

/// [`Directory::set`] from the root.
///
/// # Errors
/// As there.
pub fn set(path: &str, value: &str) -> Result<bool, Error> {
    Directory::root().set(path, value)
}

/// [`Directory::write`] from the root.
///
/// # Errors
/// As there.
pub fn write(path: &str, value: &str) -> Result<(), Error> {
    Directory::root().write(path, value)
}

/// Several numbers in one sysctl are separated by any blanks.
fn same(present: &str, wanted: &str) -> bool {
    present.split_whitespace().eq(wanted.split_whitespace())
}

/// Refuses paths that lead out of the directory.
fn resolve(directory: &Path, path: &str, tried: &'static str) -> Result<PathBuf, Error> {
    let relative = Path::new(path);
    let plain = relative.components().all(|component| matches!(component, Component::Normal(_)));
    if plain && !path.is_empty() {
        return Ok(directory.join(relative));
    }
    let source = io::Error::new(io::ErrorKind::InvalidInput, "not a plain path below /proc/sys");
    Err(Error::File { tried, path: PathBuf::from(path), source })
}
