//! The directories that agent and plugins write to: are they there to be written, and is there room.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cluster::NodeNetwork;
use ipnet::IpNet;
use rustix::fs::{StatVfs, StatVfsMountFlags};

use crate::finding::Finding;

/// The file that the agent leaves in the state directory.
const NETWORK_FILE: &str = "network.json";
/// Room below which it is time to look: some thousand small files.
const LITTLE: u64 = 16 << 20;

/// Where things are, as this process can open them.
#[derive(Debug)]
pub(super) struct Directories {
    /// The agent's state.
    pub(super) state: PathBuf,
    /// Network configurations.
    pub(super) conf: PathBuf,
    /// Plugins.
    pub(super) bins: Vec<PathBuf>,
    /// The addresses given to pods.
    pub(super) addresses: PathBuf,
}

/// What is known of a directory, or of the nearest one above it that is there.
#[derive(Debug, Clone)]
struct Place {
    /// The one asked for.
    path: PathBuf,
    /// The one looked at.
    found: PathBuf,
    is_directory: bool,
    read_only: bool,
    /// Bytes.
    free: u64,
    /// Files that can still be made; none where the file system does not count.
    free_files: Option<u64>,
}

impl Directories {
    /// The pod CIDRs that an agent has left for this node's plugins.
    pub(super) fn own_networks(&self) -> Vec<IpNet> {
        let text = fs::read(self.state.join(NETWORK_FILE)).unwrap_or_default();
        NodeNetwork::from_json(&text).map(|network| network.pod_cidrs).unwrap_or_default()
    }

    /// Looks at all of them.
    pub(super) fn examine(&self) -> Vec<Finding> {
        let uses = [
            (&self.state, "the agent cannot leave what the CNI plugin reads"),
            (&self.conf, "the agent cannot write its network configuration"),
            (&self.addresses, "no pod gets an address"),
        ];
        let bins = self.bins.iter().map(|path| (path, "plugins cannot be installed"));
        let mut findings = Vec::new();
        for (path, consequence) in uses.into_iter().chain(bins) {
            match Place::look_at(path) {
                Ok(place) => findings.extend(judge(&place, consequence)),
                Err(error) => findings.push(Finding::unseen(path, &error)),
            }
        }
        findings.extend(self.older_boot());
        findings.extend(self.few_addresses());
        findings
    }

    /// What of this node's addresses comes to its end, by the agent's own measure.
    fn few_addresses(&self) -> Vec<Finding> {
        let told = ::agent::few_pod_addresses(&self.addresses, &self.own_networks());
        let finding = |told: String| {
            let (problem, fix) = told.split_once("\nhint: ").unwrap_or((&told, ""));
            Finding::warning(&self.addresses, problem, fix)
        };
        told.into_iter().map(finding).collect()
    }

    fn older_boot(&self) -> Option<Finding> {
        let file = self.state.join(NETWORK_FILE);
        let written = fs::metadata(&file).ok()?.modified().ok()?;
        judge_age(&file, written, boot_time(&fs::read_to_string("/proc/stat").ok()?)?)
    }
}

impl Place {
    fn look_at(path: &Path) -> anyhow::Result<Self> {
        let absolute = std::path::absolute(path)?;
        let there = absolute.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let StatVfs { f_frsize, f_bavail, f_files, f_favail, f_flag, .. } = rustix::fs::statvfs(there)?;
        Ok(Self {
            path: path.to_owned(),
            found: there.to_owned(),
            is_directory: there.is_dir(),
            read_only: f_flag.contains(StatVfsMountFlags::RDONLY),
            free: f_bavail.saturating_mul(f_frsize),
            free_files: (f_files != 0).then_some(f_favail),
        })
    }
}

fn judge(place: &Place, consequence: &str) -> Option<Finding> {
    let found = place.found.display();
    if !place.is_directory {
        let fix = format!("move {found} away");
        return Some(Finding::error(&place.path, format!("{found} is no directory: {consequence}"), fix));
    }
    if place.read_only {
        let fix = format!("mount the file system of {found} to be written, or choose another directory");
        let problem = format!("its file system cannot be written: {consequence}");
        return Some(Finding::error(&place.path, problem, fix));
    }
    let fix = || format!("make room on the file system of {found} (df -h {found}; df -i {found})");
    if place.free == 0 || place.free_files == Some(0) {
        return Some(Finding::error(&place.path, format!("its file system is full: {consequence}"), fix()));
    }
    let few = place.free_files.is_some_and(|files| files < 1000);
    (few || place.free < LITTLE).then(|| {
        let room = match place.free_files.filter(|_| few) {
            Some(files) => format!("{files} files"),
            None => format!("{} KB", place.free >> 10),
        };
        let problem = format!("its file system has room for {room} only; when it is full, {consequence}");
        Finding::warning(&place.path, problem, fix())
    })
}

/// `btime` of proc_stat(5).
fn boot_time(stat: &str) -> Option<SystemTime> {
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(UNIX_EPOCH + Duration::from_secs(seconds))
}

fn judge_age(file: &Path, written: SystemTime, boot: SystemTime) -> Option<Finding> {
    (written < boot).then(|| {
        Finding::note(
            file,
            "it is from before this machine was started: until the agent has come, pods are wired by it; the node's \
             pod CIDRs are asked for again",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    fn place() -> Place {
        Place {
            path: "/run/fairlead".into(),
            found: "/run".into(),
            is_directory: true,
            read_only: false,
            free: 1 << 30,
            free_files: Some(100_000),
        }
    }

    fn severity(place: &Place) -> Option<Severity> {
        judge(place, "nothing works").map(|finding| finding.severity)
    }

    #[test]
    fn a_file_system_that_is_full_or_cannot_be_written_is_an_error() {
        assert_eq!(severity(&place()), None);
        for bad in [
            Place { free: 0, ..place() },
            Place { free_files: Some(0), ..place() },
            Place { read_only: true, ..place() },
            Place { is_directory: false, ..place() },
        ] {
            let finding = judge(&bad, "nothing works").unwrap();
            assert_eq!(finding.severity, Severity::Error, "{finding:#?}");
            assert!(
                finding.problem.contains("nothing works") && finding.fix.contains("/run"),
                "{finding:#?}"
            );
        }
        assert_eq!(
            severity(&Place { free_files: None, ..place() }),
            None,
            "a file system that does not count files"
        );
    }

    #[test]
    fn little_room_is_a_warning() {
        assert_eq!(severity(&Place { free: LITTLE - 1, ..place() }), Some(Severity::Warning));
        assert_eq!(severity(&Place { free_files: Some(999), ..place() }), Some(Severity::Warning));
    }

    #[test]
    fn a_directory_that_is_yet_to_be_made_is_judged_by_what_is_above_it() {
        let directory = tempfile::tempdir().unwrap();
        let looked = Place::look_at(&directory.path().join("a/b")).unwrap();
        assert_eq!(looked.found, directory.path());
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(!Place::look_at(&file.join("b")).unwrap().is_directory);
    }

    #[test]
    fn few_addresses_that_are_left_for_pods_are_a_warning() {
        let root = tempfile::tempdir().unwrap();
        let [state, addresses] = ["run", "networks"].map(|name| root.path().join(name));
        let files = addresses.join("fairlead");
        fs::create_dir_all(&files).unwrap();
        fs::create_dir(&state).unwrap();
        let network = NodeNetwork {
            node: "node1".into(),
            pod_cidrs: vec!["10.244.1.0/29".parse().unwrap()],
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            mtu: 1450,
            not_ready: None,
            enforcement: None,
        };
        fs::write(state.join(NETWORK_FILE), network.to_json().unwrap()).unwrap();
        let directories = Directories { state, conf: PathBuf::new(), bins: Vec::new(), addresses };
        assert!(directories.few_addresses().is_empty());
        for last in 2..=5 {
            fs::write(files.join(format!("10.244.1.{last}")), "pod\r\neth0").unwrap();
        }
        let findings = directories.few_addresses();
        let [finding] = &findings[..] else { panic!("{findings:#?}") };
        assert_eq!(finding.severity, Severity::Warning);
        assert!(
            finding.problem.contains("1 of 5 are left") && finding.fix.contains("maxPods"),
            "{finding:#?}"
        );
    }

    #[test]
    fn state_of_an_older_boot_is_a_note() {
        let boot = boot_time("cpu 1 2 3\nbtime 1750000000\n").unwrap();
        let file = Path::new("/var/network.json");
        assert_eq!(judge_age(file, boot, boot), None);
        let before = boot - Duration::from_secs(1);
        assert_eq!(judge_age(file, before, boot).unwrap().severity, Severity::Note);
        assert_eq!(boot_time("cpu 1\n"), None);
    }
}
