//! A lock for a network namespace: one process has it, and with the process it ends.
//!
//! Read [`NamespaceLock`]. A file would be the usual thing; but two agents of one network may have different files (one of a
//! service manager, one in a container), and two of different networks the same. So it is something of the namespace itself: being the
//! listener of a group of nfnetlink_log. A group has one; it takes CAP_NET_ADMIN, which whoever changes the network needs
//! anyway; and the kernel ends it when the socket is closed, however the process ends. Nothing is ever logged to the group.
//!
//! What else is of the namespace, and why not: a name of an abstract Unix socket, a netlink port or a lock of the namespace's
//! own file may be taken by any local user, who could keep the agent from starting; a table of nf_tables with the flag `owner`
//! is in everybody's listing, which a saved ruleset cannot be loaded over and which `nft -j` of 1.0.6 breaks off at; a
//! device of a TUN socket is a link that network managers would take care of.
//!
//! Who has it is found by the kernel's own lists, as `ss` does it: the group's port, the socket of that port, and the process
//! that has the socket open. A process of another PID namespace is not seen.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::Error;
use crate::netlink::{Protocol, Socket};
use crate::nflog;

/// The listeners of the calling thread's network namespace, and its netlink sockets.
const LISTENERS: &str = "/proc/thread-self/net/netfilter/nfnetlink_log";
const SOCKETS: &str = "/proc/thread-self/net/netlink";

/// How often it is tried to get a lock whose holder went a moment ago.
const ATTEMPTS: usize = 3;

/// The lock of the network namespace in which it was taken, held until this is dropped.
#[derive(Debug)]
pub struct NamespaceLock {
    /// Only kept open.
    _listener: Socket,
}

/// What came of trying to take the lock.
#[derive(Debug)]
pub enum Taking {
    /// It is ours.
    Taken(NamespaceLock),
    /// Somebody else has it.
    Held(Holder),
    /// This kernel has no nfnetlink_log.
    Impossible(Error),
}

/// Who holds the lock, as far as it can be seen from here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holder {
    /// The process; none where it is in a PID namespace that cannot be seen from here.
    pub process: Option<u32>,
    /// How it was started.
    pub command: Option<String>,
}

impl NamespaceLock {
    /// Takes the lock of the calling thread's network namespace which has this number, or says who has it.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN, or when descriptors have run out.
    pub fn take(group: u16) -> Result<Taking, Error> {
        let mut socket = Socket::open(Protocol::Netfilter)?;
        let mut refused = Ok(());
        for _ in 0..ATTEMPTS {
            refused = nflog::bind(&mut socket, group);
            match &refused {
                Ok(()) => return Ok(Taking::Taken(Self { _listener: socket })),
                Err(error) if is_without_logging(error) => break,
                Err(_) => {}
            }
            // Refused may be who comes second, and who has no right to ask.
            if let Some(port) = listener(&read(LISTENERS), group) {
                return Ok(Taking::Held(holder(port)));
            }
        }
        match refused {
            Err(error) if is_without_logging(&error) => Ok(Taking::Impossible(error)),
            Err(error) => Err(error),
            Ok(()) => Ok(Taking::Held(Holder::default())),
        }
    }
}

/// Whether the kernel has no nfnetlink_log: it knows nobody who would take the message.
fn is_without_logging(error: &Error) -> bool {
    error.is_unsupported() || error.errno() == Some(Errno::INVAL)
}

/// A list of the kernel's; empty where it cannot be read.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The netlink port of a group's listener, by the list of listeners: a line each, group and port first.
fn listener(listeners: &str, group: u16) -> Option<u32> {
    listeners.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let found = fields.next()?.parse::<u16>().ok()?;
        fields.next()?.parse().ok().filter(|_| found == group)
    })
}

/// The inode of the netfilter socket with that port, by the list of netlink sockets: protocol and port are the second and
/// third column, the inode is the last.
fn inode(sockets: &str, port: u32) -> Option<u64> {
    sockets.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it =
            fields.get(1)?.parse() == Ok(libc::NETLINK_NETFILTER) && fields.get(2)?.parse() == Ok(port);
        fields.last()?.parse().ok().filter(|_| is_it)
    })
}

fn holder(port: u32) -> Holder {
    let process = inode(&read(SOCKETS), port).and_then(|inode| {
        let name = PathBuf::from(format!("socket:[{inode}]"));
        processes().find(|process| has_open(*process, &name))
    });
    Holder { process, command: process.and_then(command) }
}

/// The processes that can be seen from here.
fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn has_open(process: u32, name: &Path) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    descriptors
        .map(|descriptor| fs::read_link(descriptor.path()))
        .any(|link| link.is_ok_and(|link| link == name))
}

/// The words that a process was started with.
fn command(process: u32) -> Option<String> {
    let words = fs::read(format!("/proc/{process}/cmdline")).ok()?;
    let text = String::from_utf8_lossy(&words).trim_end_matches('\0').replace('\0', " ");
    // Anybody may have written it.
    let text: String = text.chars().filter(|letter| !letter.is_control()).collect();
    Some(text).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_of_a_group_and_the_socket_of_a_port_are_found_in_the_kernels_lists() {
        let listeners = "    5  40001     0 2 65535    100  1\n 7670   3623     0 2 65535    100  1\n";
        assert_eq!(listener(listeners, 7670), Some(3623));
        assert_eq!(listener(listeners, 5), Some(40001));
        assert_eq!(listener(listeners, 7600), None);
        assert_eq!(listener("", 7670), None);
        // The same port is another socket's with another protocol.
        let sockets = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
            00000000c943d510 0   3623       00000000 0        0        0     2        0        4\n\
            0000000069be4161 12  0          00000000 0        0        0     2        0        562\n\
            000000008d3a58d2 12  3623       00000000 0        0        0     2        0        9112\n";
        assert_eq!(inode(sockets, 3623), Some(9112));
        assert_eq!(inode(sockets, 1), None);
    }

    #[test]
    fn a_kernel_without_logging_is_told_from_one_that_refuses() {
        let refused = |errno| Error::Refused {
            purpose: crate::netlink::Purpose::new("listen to", "log group 7670".to_owned()),
            errno,
            detail: None,
        };
        assert!(is_without_logging(&refused(Errno::INVAL)) && is_without_logging(&refused(Errno::OPNOTSUPP)));
        assert!(!is_without_logging(&refused(Errno::PERM)) && !is_without_logging(&refused(Errno::BUSY)));
    }
}
