//! The older iptables interface (`iptables-legacy`): tables that others filled, read and relieved of rules.
//!
//! Read [`Table`]. Through this interface a table is one value: read whole, replaced whole. Nothing here adds
//! rules. A table that is not there is not asked for ([`names`] tells), because asking would make it.
//!
//! What stays true: rules that stay keep their order and their counters; the lock that the iptables programs hold
//! while they change a table is held here too; a table that changed in between is read again.
//! Layouts: `include/uapi/linux/netfilter/x_tables.h`, `netfilter_ipv4/ip_tables.h` and
//! `netfilter_ipv6/ip6_tables.h` of the kernel.

mod blob;
mod option;

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use netstate::nft::IpVersion;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::Error;
use crate::foreign::ForeignRule;
use crate::netlink::{Malformed, Purpose};
use blob::{HOOKS, Rules};

/// What the iptables programs lock while they change a table.
const LOCK: &str = "/run/xtables.lock";
/// How often a table that changes while it is replaced is read again.
const ATTEMPTS: usize = 20;

// The options of ip_tables.h; those of ip6_tables.h have the same numbers.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
const SET_REPLACE: i32 = 64;
const ADD_COUNTERS: i32 = 65;

const NAME: usize = 32;
/// `struct ipt_getinfo`: name, hooks in use, their first and last entries, number of entries, their size.
const INFO: usize = NAME + 4 + 2 * 4 * HOOKS + 4 + 4;
/// `struct ipt_get_entries` before its entries: name, size, padding.
const ENTRIES_HEADER: usize = 40;
/// `struct ipt_replace` before the number of counters.
const REPLACE_COUNTERS: usize = NAME + 12 + 2 * 4 * HOOKS;
/// Where in it the counters' address stands.
const REPLACE_POINTER: usize = (REPLACE_COUNTERS + 4).next_multiple_of(align_of::<usize>());
/// Where in it the entries begin.
const REPLACE_HEADER: usize = (REPLACE_POINTER + size_of::<usize>()).next_multiple_of(8);

/// A table as it was when it was read.
#[derive(Debug)]
pub struct Table {
    version: IpVersion,
    name: String,
    socket: OwnedFd,
    hooks: u32,
    rules: Rules,
}

/// The tables there are in the calling thread's network namespace. That there is no such interface means none.
#[must_use]
pub fn names(version: IpVersion) -> Vec<String> {
    let file = match version {
        IpVersion::V4 => "/proc/thread-self/net/ip_tables_names",
        IpVersion::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

impl Table {
    /// Reads a table of the calling thread's network namespace; `None` when it is not there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read(version: IpVersion, name: &str) -> Result<Option<Self>, Error> {
        if !names(version).iter().any(|found| found == name) {
            return Ok(None);
        }
        let family = match version {
            IpVersion::V4 => AddressFamily::INET,
            IpVersion::V6 => AddressFamily::INET6,
        };
        let socket = rustix::net::socket_with(
            family,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(rustix::net::ipproto::RAW),
        )
        .map_err(|errno| Error::System { tried: "open a raw socket", source: errno.into() })?;
        let empty = Rules::new(version, [0; HOOKS], [0; HOOKS], Vec::new());
        let mut table = Self { version, name: name.to_owned(), socket, hooks: 0, rules: empty };
        table.refresh()?;
        Ok(Some(table))
    }

    /// The names of its chains, built-in ones among them.
    #[must_use]
    pub fn chains(&self) -> Vec<String> {
        self.rules.chains()
    }

    /// Those of its built-in chains that drop what no rule decided on.
    #[must_use]
    pub fn dropping_chains(&self) -> Vec<String> {
        self.rules.dropping_chains()
    }

    /// Its rules in order, without what every chain ends with.
    #[must_use]
    pub fn rules(&self) -> Vec<ForeignRule> {
        self.rules.rules()
    }

    /// Removes all rules that `stale` says are, and of these chains all that no other rule leads to any more.
    /// Nothing to remove is a success. Afterwards the table is as the kernel has it.
    ///
    /// # Errors
    /// When the kernel refuses, or the lock cannot be taken.
    pub fn remove(
        &mut self,
        stale: impl Fn(&ForeignRule) -> bool,
        chains: impl Fn(&str) -> bool,
    ) -> Result<(), Error> {
        let _lock = lock()?;
        let mut attempts = 0..ATTEMPTS;
        loop {
            self.refresh()?;
            let keep = self.rules.without(&stale, &chains);
            if keep.len() == self.rules.len() {
                return Ok(());
            }
            match self.replace(&keep) {
                Ok(()) => return self.refresh(),
                Err(error) if error.errno() == Some(Errno::AGAIN) && attempts.next().is_some() => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn refresh(&mut self) -> Result<(), Error> {
        let mut info = vec![0; INFO];
        info[..self.name.len()].copy_from_slice(self.name.as_bytes());
        let mut attempts = 0..ATTEMPTS;
        loop {
            self.get(GET_INFO, &mut info)?;
            let size = blob::number(&info, INFO - 4) as usize;
            let mut entries = vec![0; ENTRIES_HEADER + size];
            entries[..self.name.len()].copy_from_slice(self.name.as_bytes());
            entries[NAME..NAME + 4].copy_from_slice(&(size as u32).to_ne_bytes());
            match self.get(GET_ENTRIES, &mut entries) {
                // It has grown or shrunk since.
                Err(error) if error.errno() == Some(Errno::AGAIN) && attempts.next().is_some() => continue,
                other => other?,
            }
            let positions = |at: usize| std::array::from_fn(|hook| blob::number(&info, at + 4 * hook));
            let (first, last) = (positions(NAME + 4), positions(NAME + 4 + 4 * HOOKS));
            self.hooks = blob::number(&info, NAME);
            let used = |positions: [u32; HOOKS]| {
                let unused = |hook: usize| self.hooks & (1 << hook) == 0;
                std::array::from_fn(|hook| if unused(hook) { u32::MAX } else { positions[hook] })
            };
            entries.drain(..ENTRIES_HEADER);
            self.rules = Rules::new(self.version, used(first), used(last), entries);
            if self.rules.are_whole(blob::number(&info, INFO - 8) as usize) {
                return Ok(());
            }
            let malformed = Malformed::Missing { what: "a table of whole entries" };
            return Err(Error::Answer { purpose: self.purpose("read"), malformed });
        }
    }

    fn replace(&self, keep: &[usize]) -> Result<(), Error> {
        let kept = self.rules.only(keep);
        let mut value = vec![0; REPLACE_HEADER];
        value[..self.name.len()].copy_from_slice(self.name.as_bytes());
        let mut at = NAME;
        let numbers = [self.hooks, keep.len() as u32, kept.entries.len() as u32];
        for number in numbers.into_iter().chain(kept.first).chain(kept.last).chain([self.rules.len() as u32])
        {
            value[at..at + 4].copy_from_slice(&number.to_ne_bytes());
            at += 4;
        }
        value.extend_from_slice(&kept.entries);
        let mut counters = vec![[0_u64; 2]; self.rules.len()];
        option::replace(
            self.socket.as_fd(),
            (self.level(), SET_REPLACE),
            (&mut value, REPLACE_POINTER),
            &mut counters,
        )
        .map_err(|errno| self.refused("replace", errno))?;
        let mut sums = vec![0; ENTRIES_HEADER];
        sums[..self.name.len()].copy_from_slice(self.name.as_bytes());
        sums[NAME..NAME + 4].copy_from_slice(&(keep.len() as u32).to_ne_bytes());
        sums.extend(keep.iter().flat_map(|index| counters[*index]).flat_map(u64::to_ne_bytes));
        // Only statistics: somebody else may have replaced the table since.
        let _ = option::set(self.socket.as_fd(), self.level(), ADD_COUNTERS, &sums);
        Ok(())
    }

    fn get(&self, option: i32, buffer: &mut [u8]) -> Result<(), Error> {
        option::get(self.socket.as_fd(), self.level(), option, buffer)
            .map_err(|errno| self.refused("read", errno))
    }

    fn level(&self) -> i32 {
        match self.version {
            IpVersion::V4 => libc::IPPROTO_IP,
            IpVersion::V6 => libc::IPPROTO_IPV6,
        }
    }

    fn refused(&self, operation: &'static str, errno: Errno) -> Error {
        Error::Refused { purpose: self.purpose(operation), errno, detail: None }
    }

    fn purpose(&self, operation: &'static str) -> Purpose {
        let family = if self.version == IpVersion::V4 { "ip" } else { "ip6" };
        Purpose::new(operation, format!("iptables table {family} {}", self.name))
    }
}

/// Takes the lock of the iptables programs, waiting for it as they do; it is given back with the file.
fn lock() -> Result<File, Error> {
    let path = std::env::var_os("XTABLES_LOCKFILE").map_or_else(|| PathBuf::from(LOCK), PathBuf::from);
    let failed = |tried, path: &Path, source| Error::File { tried, path: path.to_owned(), source };
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(|source| failed("open", &path, source))?;
    loop {
        match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(failed("lock", &path, errno.into())),
        }
    }
}
