//! The whole machine: which addresses are in use in any of its network namespaces, and which processes there are.
//!
//! Read [`addresses_in_use`]. Namespaces are those of the processes and those that are mounted somewhere. One whose
//! process may not be looked at closely (it has a privilege that we lack) tells its addresses through files of
//! `/proc` that everybody may read. One that is held by nothing but an open file, or is mounted where this process
//! cannot look, is not seen.
//!
//! What stays true: what cannot be looked at is an error, never "not in use". A path counts for the namespace that was
//! found there, whatever the table of mounts says of it: another mount may cover it.
//! Sources: proc_pid_mountinfo(5), proc_pid_net(5); the kernel's `net/ipv4/fib_trie.c`, `net/ipv6/addrconf.c`.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
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
    let mut missed = Vec::new();
    for mount in mounted(&mounts()?) {
        if search.miss(&mount)?.is_some() {
            missed.push(mount.inode);
        }
    }
    missed.retain(|inode| !search.seen.contains(inode));
    if missed.is_empty() {
        return Ok(search.found);
    }
    // It may have gone meanwhile, or be mounted elsewhere.
    let mut hidden = Vec::new();
    for mount in mounted(&mounts()?).filter(|mount| missed.contains(&mount.inode)) {
        hidden.extend(search.miss(&mount)?.map(|instead| (mount, instead)));
    }
    match hidden.into_iter().find(|(mount, _)| !search.seen.contains(&mount.inode)) {
        Some((Mount { inode, path }, instead)) => {
            let source = io::Error::other(format!("{instead} is there instead of net:[{inode}]"));
            Err(failed("look into the network namespace that is mounted at", &path, source))
        }
        None => Ok(search.found),
    }
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
    /// Namespaces that were looked into, by their inodes.
    seen: HashSet<u64>,
    /// Namespaces by the inodes of their files in `/proc`.
    listings: HashSet<u64>,
}

impl Search<'_> {
    fn look_at(&mut self, process: &Path) -> Result<(), Error> {
        let path = process.join("ns/net");
        let looked = match std::fs::read_link(&path) {
            Ok(name)
                if inode(name.as_os_str().as_bytes()).is_some_and(|inode| self.seen.contains(&inode)) =>
            {
                return Ok(());
            }
            Ok(_) => match Netns::open(&path) {
                // The process has ended. Another may hold the same namespace.
                Err(Error::NamespaceMissing { .. }) => return Ok(()),
                opened => opened.and_then(|netns| self.look_into(&netns)).map(drop),
            },
            Err(cause) if is_gone(&cause) => return Ok(()),
            Err(source) => Err(failed("identify network namespace", &path, source)),
        };
        match looked {
            Err(error) if is_forbidden(&error) => self.read_listings(process),
            other => other,
        }
    }

    /// What stands where this namespace is said to be mounted, if it is not the namespace, and it has not been seen.
    fn miss(&mut self, mount: &Mount) -> Result<Option<&'static str>, Error> {
        if self.seen.contains(&mount.inode) {
            return Ok(None);
        }
        let netns = match Netns::open(&mount.path) {
            Err(Error::NamespaceMissing { .. }) => return Ok(Some("nothing")),
            Err(Error::NotANamespace { .. }) => return Ok(Some("something else")),
            opened => opened?,
        };
        let is_other = self.look_into(&netns)? != mount.inode;
        Ok(is_other.then_some("another one"))
    }

    /// Returns its inode.
    fn look_into(&mut self, netns: &Netns) -> Result<u64, Error> {
        let inode = netns.identity()?.inode;
        if !self.seen.contains(&inode) {
            for found in address::list(&mut netns.socket(Protocol::Route)?, None, None)? {
                self.find(found.net.addr());
            }
            self.seen.insert(inode);
        }
        Ok(inode)
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

/// `None` when the process has ended, or the kernel has no such protocol. Links may have names of any bytes.
fn read_listing(path: &Path) -> Result<Option<String>, Error> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(cause) if is_gone(&cause) => Ok(None),
        Err(source) => Err(failed("read", path, source)),
    }
}

fn mounts() -> Result<Vec<u8>, Error> {
    let path = Path::new("/proc/thread-self/mountinfo");
    std::fs::read(path).map_err(|source| failed("read", path, source))
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

/// A line about a network namespace in the table of mounts.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    inode: u64,
    path: PathBuf,
}

/// The network namespaces that are mounted, and where: the fourth and the fifth field of a line. Others' mounts have
/// names of any bytes.
fn mounted(table: &[u8]) -> impl Iterator<Item = Mount> {
    table.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ').skip(3);
        let inode = inode(fields.next()?)?;
        Some(Mount { inode, path: unescaped(fields.next()?) })
    })
}

/// The number in a namespace's name, as links and mounts give it: `net:[4026531840]`.
fn inode(name: &[u8]) -> Option<u64> {
    let digits = name.strip_prefix(b"net:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// A path as mountinfo writes it: blanks and the like as a backslash and three octal digits.
fn unescaped(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
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
        let table = b"24 30 0:22 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
            100 30 0:4 net:[4026532201] /run/netns/cni-1 rw shared:9 - nsfs nsfs rw\n\
            101 30 0:4 mnt:[4026532202] /run/mnt/one rw - nsfs nsfs rw\n\
            102 30 0:4 net:[4026532203] /run/a\\040b\\134 rw - nsfs nsfs rw\n\
            103 30 0:22 / /home/\xff rw - tmpfs \xfe rw\n\
            104 30 0:4 net:[4026532204] /run/\xff rw - nsfs nsfs rw\n\
            105 30 0:4\n";
        let found: Vec<_> = mounted(table).collect();
        let wanted = [
            (4_026_532_201, &b"/run/netns/cni-1"[..]),
            (4_026_532_203, b"/run/a b\\"),
            (4_026_532_204, b"/run/\xff"),
        ];
        let wanted =
            wanted.map(|(inode, path)| Mount { inode, path: OsString::from_vec(path.to_vec()).into() });
        assert_eq!(found, wanted);
        assert_eq!(unescaped("\\04\\é0\\".as_bytes()), Path::new("\\04\\é0\\"));
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
