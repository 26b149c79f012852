//! The whole machine: which addresses are in use in any of its network namespaces, and which processes there are.
//!
//! Read [`addresses_in_use`]. Namespaces are those of the processes and those that are mounted somewhere. One whose
//! process may not be looked at closely (it has a privilege that we lack) tells its addresses through files of
//! `/proc` that everybody may read. One that is held by nothing but an open file, or is mounted where this process
//! cannot look, is not seen.
//!
//! What stays true: what cannot be looked at is an error, never "not in use".
//! Sources: proc_pid_mountinfo(5), proc_pid_net(5); the kernel's `net/ipv4/fib_trie.c`, `net/ipv6/addrconf.c`.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::netlink::Protocol;
use crate::netns::Netns;
use crate::{Error, address};

/// Those of these addresses that an interface has, in any network namespace that can be seen.
///
/// # Errors
/// When there is a namespace that does not tell.
pub fn addresses_in_use(asked: &[IpAddr]) -> Result<HashSet<IpAddr>, Error> {
    let mut search = Search { asked, found: HashSet::new(), seen: HashSet::new(), listings: HashSet::new() };
    for process in processes()? {
        search.look_at(&process)?;
    }
    let path = PathBuf::from("/proc/thread-self/mountinfo");
    let table = std::fs::read_to_string(&path).map_err(|source| failed("read", &path, source))?;
    for (name, path) in mounted(&table) {
        search.look_into(OsStr::new(name), &path)?;
    }
    Ok(search.found)
}

/// The directories in `/proc` of the processes that can be seen.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn processes() -> Result<Vec<PathBuf>, Error> {
    let failed = |source| failed("list", Path::new("/proc"), source);
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Whether a file in `/proc` could not be read because its process has ended, or the namespace with it.
#[must_use]
pub fn is_gone(cause: &io::Error) -> bool {
    cause.kind() == ErrorKind::NotFound || matches!(cause.raw_os_error(), Some(libc::ESRCH | libc::ENXIO))
}

struct Search<'a> {
    asked: &'a [IpAddr],
    found: HashSet<IpAddr>,
    /// Namespaces by the names that links and mounts give them: `net:[4026531840]`.
    seen: HashSet<OsString>,
    /// Namespaces by the inodes of their files in `/proc`.
    listings: HashSet<u64>,
}

impl Search<'_> {
    fn look_at(&mut self, process: &Path) -> Result<(), Error> {
        let path = process.join("ns/net");
        let looked = match std::fs::read_link(&path) {
            Ok(name) => self.look_into(name.as_os_str(), &path),
            Err(cause) if is_gone(&cause) => return Ok(()),
            Err(source) => Err(failed("identify network namespace", &path, source)),
        };
        match looked {
            Err(error) if is_forbidden(&error) => self.read_listings(process),
            other => other,
        }
    }

    fn look_into(&mut self, name: &OsStr, path: &Path) -> Result<(), Error> {
        if self.seen.contains(name) {
            return Ok(());
        }
        let netns = match Netns::open(path) {
            // The process has ended, the mount has gone. Another may hold the same namespace.
            Err(Error::NamespaceMissing { .. }) => return Ok(()),
            opened => opened?,
        };
        for found in address::list(&mut netns.socket(Protocol::Route)?, None, None)? {
            self.find(found.net.addr());
        }
        self.seen.insert(name.to_owned());
        Ok(())
    }

    /// What everybody may read of a process's namespace.
    fn read_listings(&mut self, process: &Path) -> Result<(), Error> {
        let path = process.join("net/fib_trie");
        match std::fs::metadata(&path) {
            Ok(status) if self.listings.contains(&status.ino()) => return Ok(()),
            Ok(status) => {
                if let Some(table) = read_listing(&path)? {
                    own_of(&table).for_each(|address| self.find(address));
                }
                let path = process.join("net/if_inet6");
                if let Some(table) = read_listing(&path)? {
                    listed(&table).for_each(|address| self.find(address));
                }
                self.listings.insert(status.ino());
            }
            Err(cause) if is_gone(&cause) => {}
            Err(source) => return Err(failed("read", &path, source)),
        }
        Ok(())
    }

    fn find(&mut self, address: IpAddr) {
        if self.asked.contains(&address) {
            self.found.insert(address);
        }
    }
}

/// `None` when the process has ended, or the kernel has no such protocol.
fn read_listing(path: &Path) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(cause) if is_gone(&cause) => Ok(None),
        Err(source) => Err(failed("read", path, source)),
    }
}

fn failed(tried: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File { tried, path: path.to_owned(), source }
}

fn is_forbidden(error: &Error) -> bool {
    use rustix::io::Errno;
    matches!(error.errno(), Some(Errno::ACCESS | Errno::PERM))
}

/// The addresses of IPv4 that are the namespace's own: lines `|-- 10.1.2.3` that one with `host LOCAL` follows.
fn own_of(table: &str) -> impl Iterator<Item = IpAddr> {
    let mut last = None;
    table.lines().filter_map(move |line| match line.trim_start().strip_prefix("|-- ") {
        Some(address) => {
            last = address.trim_end().parse().ok();
            None
        }
        None => last.filter(|_| line.contains("host LOCAL")),
    })
}

/// The addresses of IPv6: 32 digits at the beginning of each line.
fn listed(table: &str) -> impl Iterator<Item = IpAddr> {
    let digits = table.lines().filter_map(|line| line.split(' ').next().filter(|digits| digits.len() == 32));
    digits.filter_map(|digits| u128::from_str_radix(digits, 16).ok()).map(|bits| Ipv6Addr::from(bits).into())
}

/// The network namespaces that are mounted, and where: the fourth and the fifth field of a line.
fn mounted(table: &str) -> impl Iterator<Item = (&str, PathBuf)> {
    table.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let name = fields.next().filter(|name| name.starts_with("net:["))?;
        Some((name, unescaped(fields.next()?)))
    })
}

/// A path as mountinfo writes it: blanks and the like as a backslash and three octal digits.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let digits =
            more.get(..3).filter(|_| *first == b'\\').and_then(|three| std::str::from_utf8(three).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &more[3..];
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounted_namespaces_are_told_from_other_mounts() {
        let table = "24 30 0:22 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
            100 30 0:4 net:[4026532201] /run/netns/cni-1 rw shared:9 - nsfs nsfs rw\n\
            101 30 0:4 mnt:[4026532202] /run/mnt/one rw - nsfs nsfs rw\n\
            102 30 0:4 net:[4026532203] /run/a\\040b\\134 rw - nsfs nsfs rw\n\
            103 30 0:4\n";
        let found: Vec<_> = mounted(table).collect();
        let wanted = [
            ("net:[4026532201]", PathBuf::from("/run/netns/cni-1")),
            ("net:[4026532203]", PathBuf::from("/run/a b\\")),
        ];
        assert_eq!(found, wanted);
        assert_eq!(unescaped("\\04\\é0\\"), Path::new("\\04\\é0\\"));
    }

    #[test]
    fn the_files_of_a_namespace_tell_its_own_addresses_and_no_others() {
        let table = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.1.2.0\n        /24 link UNICAST\n\
            Local:\n     |-- 10.1.2.9\n        /32 link UNICAST\n        /32 host LOCAL\n\
            \x20    |-- 10.1.2.255\n        /32 link BROADCAST\n     |-- nonsense\n        /32 host LOCAL\n";
        assert_eq!(own_of(table).collect::<Vec<_>>(), ["10.1.2.9".parse::<IpAddr>().unwrap()]);
        let table = "fd000000000000000000000000000002 04 40 00 82     eth0\n\nfd00 04\n";
        assert_eq!(listed(table).collect::<Vec<_>>(), ["fd00::2".parse::<IpAddr>().unwrap()]);
    }
}
