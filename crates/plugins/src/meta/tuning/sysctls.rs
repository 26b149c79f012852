//! Which files of `/proc/sys` the configured keys mean, and their values.
//!
//! Read [`Sysctls`] first. A key is a path whose parts are separated by `.` or `/`. Interface names may contain
//! dots themselves (`eth0.100`), so the parts are looked up from the left, and where there is no such file, parts
//! are joined by a dot: whatever reading the reference would take, if it leads to a file, is the one taken.
//! `IFNAME` stands for the pod's interface, the first time that it occurs.

use std::path::{Path, PathBuf};

use cni::Error;
use kernel::sysctl;

use super::refused;
use crate::fault::{Failures, fault};
use crate::interface::pod::Pod;

const ROOT: &str = "/proc/sys";

/// The sysctls to set, found in one pod.
#[derive(Debug)]
pub(super) struct Sysctls {
    all: Vec<Sysctl>,
}

#[derive(Debug)]
struct Sysctl {
    /// Below `/proc/sys`.
    path: String,
    value: String,
    /// What it was; nothing for one that cannot be read.
    before: Option<String>,
}

impl Sysctls {
    /// Finds every key's file in the pod and reads it.
    ///
    /// # Errors
    /// Code 7 for a key that is not about the network, or means the same as another one; 101 for one that this
    /// kernel does not have.
    pub(super) fn locate(pod: &Pod, wanted: &[(String, String)], ifname: &str) -> Result<Self, Error> {
        let mut all: Vec<Sysctl> = Vec::with_capacity(wanted.len());
        if wanted.is_empty() {
            return Ok(Self { all });
        }
        let _inside = pod.namespace.enter().map_err(fault)?;
        for (key, value) in wanted {
            let parts = parts(key, ifname)?;
            let Some(path) = find(Path::new(ROOT), &parts) else {
                return Err(Error::kernel(format!(
                    "there is no sysctl {key} in this pod: {ROOT}/{}",
                    parts.join("/")
                )));
            };
            let path = path.to_string_lossy().into_owned();
            if all.iter().any(|known| known.path == path) {
                return Err(Error::invalid_config(format!("sysctl: two keys mean {ROOT}/{path}")));
            }
            let before = sysctl::read(&path).ok();
            all.push(Sysctl { path, value: value.clone(), before });
        }
        Ok(Self { all })
    }

    /// Sets them, in order.
    ///
    /// # Errors
    /// At the first one that the kernel refuses.
    pub(super) fn write(&self, pod: &Pod) -> Result<(), Error> {
        if self.all.is_empty() {
            return Ok(());
        }
        let _inside = pod.namespace.enter().map_err(fault)?;
        self.all.iter().try_for_each(|Sysctl { path, value, .. }| {
            sysctl::set(path, value).map(drop).map_err(|error| refused("set a sysctl", error))
        })
    }

    /// Gives them the values that they had, last first.
    ///
    /// # Errors
    /// What the kernel refuses, after everything was tried.
    pub(super) fn put_back(&self, pod: &Pod) -> Result<(), Error> {
        let mut failures = Failures::default();
        if self.all.is_empty() {
            return Ok(());
        }
        let _inside = pod.namespace.enter().map_err(fault)?;
        for Sysctl { path, before, .. } in self.all.iter().rev() {
            if let Some(before) = before {
                failures.note_kernel(sysctl::set(path, before));
            }
        }
        failures.into_result()
    }

    /// Compares with what the kernel has. One that cannot be read cannot be wrong.
    ///
    /// # Errors
    /// Names the first that differs.
    pub(super) fn check(&self) -> Result<(), Error> {
        let differs = |sysctl: &&Sysctl| {
            sysctl
                .before
                .as_ref()
                .is_some_and(|now| !now.split_whitespace().eq(sysctl.value.split_whitespace()))
        };
        self.all.iter().find(differs).map_or(Ok(()), |Sysctl { path, value, before }| {
            let now = before.as_deref().unwrap_or_default();
            Err(Error::kernel(format!(
                "{ROOT}/{path} is not as configured: wanted is {value:?}, it is {now:?}"
            )))
        })
    }
}

/// The key's parts with the interface's name put in.
fn parts(key: &str, ifname: &str) -> Result<Vec<String>, Error> {
    let mut parts: Vec<String> =
        key.split(['.', '/']).filter(|part| !part.is_empty()).map(str::to_owned).collect();
    if let Some(part) = parts.iter_mut().find(|part| part.contains("IFNAME")) {
        *part = part.replacen("IFNAME", ifname, 1);
    }
    if parts.len() > 1 && parts[0] == "net" {
        return Ok(parts);
    }
    Err(Error::invalid_config(format!("sysctl: invalid net sysctl key: {key:?}"))
        .with_details("hint: only sysctls below net are a pod's own"))
}

/// The file that the parts lead to, relative to `/proc/sys`; the reading with the fewest joined parts.
fn find(directory: &Path, parts: &[String]) -> Option<PathBuf> {
    for joined in 1..=parts.len() {
        let path = directory.join(parts[..joined].join("."));
        let rest = &parts[joined..];
        let found = match rest {
            [] => path.is_file().then_some(path),
            rest if path.is_dir() => find(&path, rest),
            _ => None,
        };
        if let Some(found) = found {
            return Some(found.strip_prefix(ROOT).map_or(found.clone(), Path::to_owned));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_is_put_in_once_and_nothing_but_the_network_is_touched() {
        let read = |key: &str| parts(key, "eth0.7").map(|parts| parts.join(" "));
        assert_eq!(read("net.ipv4.conf.IFNAME.x").unwrap(), "net ipv4 conf eth0.7 x");
        assert_eq!(read("net/ipv4/IFNAME/IFNAME").unwrap(), "net ipv4 eth0.7 IFNAME");
        for key in ["kernel.hostname", "net", "", "..", "/../net/x", "kernel/net/x"] {
            match read(key) {
                Err(error) => assert!(error.message.contains("invalid net sysctl key"), "{error}"),
                // What would lead out of the tree has no parts that lead anywhere.
                Ok(parts) => assert_eq!(parts, "net x"),
            }
        }
    }

    #[test]
    fn names_with_dots_are_found_whatever_separates_the_parts() {
        let root = tempfile::tempdir().unwrap();
        for name in ["net/conf/eth0", "net/conf/eth0.100", "net/conf/eth0.100.x"] {
            std::fs::create_dir_all(root.path().join(name)).unwrap();
            std::fs::write(root.path().join(name).join("arp_filter"), "").unwrap();
        }
        for (key, expected) in [
            ("net.conf.eth0.arp_filter", "net/conf/eth0/arp_filter"),
            ("net.conf.eth0.100.arp_filter", "net/conf/eth0.100/arp_filter"),
            ("net/conf/eth0.100/arp_filter", "net/conf/eth0.100/arp_filter"),
            ("net.conf.eth0/100.arp_filter", "net/conf/eth0.100/arp_filter"),
            ("net.conf.eth0.100.x.arp_filter", "net/conf/eth0.100.x/arp_filter"),
            ("net.conf.IFNAME.arp_filter", "net/conf/eth0.100/arp_filter"),
        ] {
            let found = find(root.path(), &parts(key, "eth0.100").unwrap());
            assert_eq!(found, Some(root.path().join(expected)), "{key}");
        }
        assert_eq!(find(root.path(), &parts("net.conf.eth0", "x").unwrap()), None, "a folder is no sysctl");
        assert_eq!(find(root.path(), &parts("net.conf.eth1.arp_filter", "x").unwrap()), None);
    }
}
