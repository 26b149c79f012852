//! Sysctls: files below `/proc/sys`, named with `/` so that a link name with dots (`eth0.100`) is no trouble.
//!
//! [`set`] is the one to use: it writes only what differs, so it costs nothing when repeated and works where
//! `/proc/sys` is read-only but right already. The `net/` part shows the namespace of the *calling thread*: call
//! inside [`Netns::enter`](crate::netns::Netns::enter) or [`Netns::run`](crate::netns::Netns::run).

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use crate::Error;

const ROOT: &str = "/proc/sys";

/// Reads a sysctl, without the newline. `path` as in `net/ipv4/ip_forward`.
///
/// # Errors
/// [`Error::is_missing`] when this kernel or namespace has no such sysctl.
pub fn read(path: &str) -> Result<String, Error> {
    let path = resolve(path, "read")?;
    match fs::read_to_string(&path) {
        Ok(mut value) => {
            value.truncate(value.trim_end().len());
            Ok(value)
        }
        Err(source) => Err(Error::File { tried: "read", path, source }),
    }
}

/// Whether this kernel has the IPv6 protocol at all: booted with `ipv6.disable=1`, or built without it, it has not.
#[must_use]
pub fn has_ipv6() -> bool {
    Path::new(ROOT).join("net/ipv6").exists()
}

/// Makes a sysctl have this value; returns whether it had another one before.
///
/// # Errors
/// [`Error::is_missing`] when there is no such sysctl; otherwise when the value is refused or may not be written.
pub fn set(path: &str, value: &str) -> Result<bool, Error> {
    // A sysctl that can be written but not read does exist; then it is simply written.
    match read(path) {
        Ok(present) if same(&present, value) => return Ok(false),
        Err(error) if error.is_missing() => return Err(error),
        _ => {}
    }
    write(path, value).map(|()| true)
}

/// Writes a sysctl without looking at it first.
///
/// # Errors
/// As [`set`].
pub fn write(path: &str, value: &str) -> Result<(), Error> {
    let path = resolve(path, "write")?;
    let written =
        OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(|source| Error::File { tried: "write", path, source })
}

/// Several numbers in one sysctl are separated by any blanks.
fn same(present: &str, wanted: &str) -> bool {
    present.split_whitespace().eq(wanted.split_whitespace())
}

/// Refuses paths that lead out of `/proc/sys`.
fn resolve(path: &str, tried: &'static str) -> Result<PathBuf, Error> {
    let relative = Path::new(path);
    let plain = relative.components().all(|component| matches!(component, Component::Normal(_)));
    let full = Path::new(ROOT).join(relative);
    if plain && !path.is_empty() {
        return Ok(full);
    }
    let source = io::Error::new(io::ErrorKind::InvalidInput, "not a plain path below /proc/sys");
    Err(Error::File { tried, path: PathBuf::from(path), source })
}
