//! `<state dir>/leases.txt`: what the peers were, for the agent that starts next.
//!
//! Read [`LeasesFile`]. A store that was wiped or restored may have no lease of a peer until that peer's agent has written it
//! again. An agent that runs keeps the way to it meanwhile (see `departed.rs`); one that starts then knows it from here, and for
//! how long those are still kept that are gone already.
//!
//! The first line says whose view of what it is, and since which boot; each further one is a node's name, how it stands with it
//! ([`Time`]), and its lease as a manifest. What cannot be read, or is another node's, of another store or boot, is as if it were
//! not there. [`View::keep_leases`](crate::view::View::keep_leases) says when it is written; without waiting for the disk, for it is of
//! no use once the machine has stopped.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::{Lease, Object};
use rustix::time::{ClockId, clock_gettime};
use store::Location;

use crate::files::{self, FileError};
use crate::report::told;

/// How it stands with a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Time {
    /// It is there, with that lease: `-`.
    Unlimited,
    /// Some of it is gone, and it is kept until then: seconds since the boot.
    Kept(Instant),
    /// It is gone, and would have that lease again until then: the same behind `?`.
    Awaited(Instant),
}

/// What an earlier agent knew of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) lease: Lease,
    pub(crate) time: Time,
}

const UNLIMITED: &str = "-";
const AWAITED: char = '?';

/// The file.
#[derive(Debug)]
pub(crate) struct LeasesFile {
    path: PathBuf,
    /// Its first line.
    head: String,
}

impl LeasesFile {
    /// The file's name within the state directory.
    pub(crate) const NAME: &'static str = "leases.txt";

    /// The one of that node, with what it knows of that store.
    pub(crate) fn new(state_dir: &Path, node: &str, store: &Location) -> Self {
        // A kernel that does not tell has one boot for all that is known.
        let boot = kernel::sysctl::read("kernel/random/boot_id").unwrap_or_default();
        Self { path: state_dir.join(Self::NAME), head: format!("{node} {store} {boot}\n") }
    }

    /// What an earlier agent knew of those nodes that `wanted` says yes to.
    pub(crate) fn read(&self, wanted: impl Fn(&str) -> bool) -> Vec<Known> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %self.path.display(), %error, "what the peers were is not remembered");
                }
                return Vec::new();
            }
        };
        let lines = text.strip_prefix(&self.head).unwrap_or_default().lines();
        let named = lines.filter_map(|line| line.split_once(' ')).filter(|(node, _)| wanted(node));
        named.filter_map(|(node, rest)| known(node, rest)).collect()
    }

    /// Has the file say this; true if it does. Without it the next agent goes by the store alone, so no more than the log hears
    /// of a failure.
    pub(crate) fn keep<'l>(&self, known: impl Iterator<Item = (&'l Arc<Lease>, Time)>) -> bool {
        let (mut text, now) = (self.head.clone().into_bytes(), (Instant::now(), since_boot()));
        let seconds = |until: Instant| (now.1 + until.saturating_duration_since(now.0)).as_secs();
        for (lease, time) in known {
            let time = match time {
                Time::Unlimited => UNLIMITED.to_owned(),
                Time::Kept(until) => seconds(until).to_string(),
                Time::Awaited(until) => format!("{AWAITED}{}", seconds(until)),
            };
            text.extend_from_slice(format!("{} {time} ", lease.node).as_bytes());
            let manifest = store::write_manifest(&Object::Lease(Arc::clone(lease)));
            let lines = manifest.split(|byte| *byte == b'\n');
            text.extend(lines.flat_map(<[u8]>::trim_ascii_start));
            text.push(b'\n');
        }
        let kept = files::replace_hastily(&self.path, &text);
        if let Err(error) = &kept {
            tracing::warn!(error = %told(error), "what the peers are is not kept for the next start");
        }
        kept.is_ok()
    }

    /// Removes it; no more than the log hears of a failure.
    pub(crate) fn forget_now(&self) {
        if let Err(error) = files::remove(&self.path) {
            tracing::warn!(error = %told(&error), "what the peers were stays known");
        }
    }

    /// Removes the file; true if it was there.
    pub(crate) fn forget(state_dir: &Path) -> Result<bool, FileError> {
        files::remove(&state_dir.join(Self::NAME))
    }
}

/// The rest of a line: how it stands with the node, and its lease.
fn known(node: &str, rest: &str) -> Option<Known> {
    let (time, manifest) = rest.split_once(' ')?;
    let until = |seconds: &str| {
        let left = Duration::from_secs(seconds.parse().ok()?).saturating_sub(since_boot());
        Instant::now().checked_add(left)
    };
    let time = match (time, time.strip_prefix(AWAITED)) {
        (UNLIMITED, _) => Time::Unlimited,
        (_, Some(seconds)) => Time::Awaited(until(seconds)?),
        (seconds, None) => Time::Kept(until(seconds)?),
    };
    let mut objects = store::read_manifest(LeasesFile::NAME, manifest.as_bytes()).ok()?;
    match (objects.pop()?, objects.is_empty()) {
        (Object::Lease(lease), true) if *lease.node == *node => {
            Some(Known { lease: Arc::unwrap_or_clone(lease), time })
        }
        _ => None,
    }
}

fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use cluster::{Backend, Flannel, PublicKey};

    use super::*;

    fn lease(node: &str, backend: Backend) -> Lease {
        Lease {
            node: node.into(),
            pod_cidrs: ["10.244.1.0/24", "fd00:10:244:1::/64"].map(|cidr| cidr.parse().unwrap()).into(),
            underlay: ["198.18.0.1", "fd00::1"].map(|address| address.parse().unwrap()).into(),
            backend,
            mtu: 1450,
            flannel: Flannel::Apart,
        }
    }

    fn keep(file: &LeasesFile, leases: &[Lease], time: Time) {
        let leases: Vec<Arc<Lease>> = leases.iter().cloned().map(Arc::new).collect();
        assert!(file.keep(leases.iter().map(|lease| (lease, time))));
    }

    fn leases(known: Vec<Known>) -> Vec<Lease> {
        known.into_iter().map(|known| known.lease).collect()
    }

    #[test]
    fn leases_are_what_they_were_for_the_same_node_and_store_alone() {
        let directory = tempfile::tempdir().unwrap();
        let store = Location::Directory("/store".into());
        let file = LeasesFile::new(directory.path(), "node1", &store);
        assert_eq!(file.read(|_| true), []);
        let mac = "0a:58:0a:f4:01:00".parse().unwrap();
        let all = [
            lease("node2", Backend::Vxlan { vni: 1, port: 4789, mac }),
            lease("node3", Backend::wireguard(51820, PublicKey([7; 32]))),
            lease("node4.example", Backend::HostGw),
        ];
        keep(&file, &all, Time::Unlimited);
        assert!(file.read(|_| true).iter().all(|known| known.time == Time::Unlimited));
        assert_eq!(leases(file.read(|_| true)), all);
        assert_eq!(leases(file.read(|node| node == "node3")), all[1..2]);
        assert_eq!(LeasesFile::new(directory.path(), "node2", &store).read(|_| true), []);
        let other = Location::Directory("/other".into());
        assert_eq!(LeasesFile::new(directory.path(), "node1", &other).read(|_| true), []);
        assert!(
            LeasesFile::forget(directory.path()).unwrap() && !LeasesFile::forget(directory.path()).unwrap()
        );
    }

    #[test]
    fn a_time_ends_when_it_was_to_end_whoever_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = LeasesFile::new(directory.path(), "node1", &Location::Directory("/store".into()));
        let end = Instant::now() + Duration::from_secs(40);
        let node2 = [lease("node2", Backend::HostGw)];
        let read = || file.read(|_| true)[0].time;
        // The file counts whole seconds.
        let is_near =
            |until: Instant| until <= end + Duration::from_secs(1) && until + Duration::from_secs(2) >= end;
        keep(&file, &node2, Time::Kept(end));
        assert!(matches!(read(), Time::Kept(until) if is_near(until)), "{:?}", read());
        keep(&file, &node2, Time::Awaited(end));
        assert!(matches!(read(), Time::Awaited(until) if is_near(until)), "{:?}", read());
        keep(&file, &node2, Time::Kept(Instant::now()));
        assert!(matches!(read(), Time::Kept(until) if until <= Instant::now()), "{:?}", read());
    }

    #[test]
    fn of_a_file_that_makes_no_sense_what_does_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = LeasesFile::new(directory.path(), "node1", &Location::Directory("/store".into()));
        let good = lease("node2", Backend::HostGw);
        keep(&file, std::slice::from_ref(&good), Time::Unlimited);
        let path = directory.path().join(LeasesFile::NAME);
        let text = fs::read_to_string(&path).unwrap();
        let line = text.lines().nth(1).unwrap();
        let (renamed, later) = (line.replacen("node2", "node3", 1), line.replacen(" - ", " 1e9 ", 1));
        let endless = line.replacen(" - ", " 18446744073709551615 ", 1);
        let bad = format!("{renamed}\n{later}\n{endless}\nnode4\nnode5 - {{\nnode6 - {{}}\n\n node7 {{");
        fs::write(&path, format!("{text}{bad}")).unwrap();
        assert_eq!(leases(file.read(|_| true)), [good]);
        fs::write(&path, [file.head.as_bytes(), &[0xff; 9]].concat()).unwrap();
        assert_eq!(file.read(|_| true), []);
        fs::write(&path, text.replacen("node1", "node1 before", 1)).unwrap();
        assert_eq!(file.read(|_| true), [], "of another boot, say");
    }
}
