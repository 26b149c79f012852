//! The directory of manifests under the suite, and what is special to it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::Receiver;

use cluster::{Key, Kind, NamespacedName, Object};
use ipnet::IpNet;
use store::{Claimed, Directory, Error, Event, Expect, Listing, Notice, Report, Store, Version};

use crate::suite::{self, Subject, Witness, lease, pod, report, sent};

struct Opened(Directory);

/// As all see it who have any store.
impl Opened {
    fn store(&self) -> &dyn Store {
        &self.0
    }
}

impl Subject for Opened {
    fn list(&self) -> Result<Listing, Error> {
        self.store().list(&Kind::ALL)
    }

    fn watch_of(&self, kinds: &[Kind]) -> Receiver<Event> {
        sent(self.store().watch(kinds).unwrap())
    }

    fn has(&self, _: Kind) -> bool {
        true
    }

    fn write(&self, object: &Object, expect: Expect) -> Result<Version, Error> {
        self.store().write(object, expect)
    }

    fn read(&self, key: &Key) -> Result<Option<(Object, Version)>, Error> {
        self.store().read(key)
    }

    fn delete(&self, key: &Key, expect: Expect) -> Result<bool, Error> {
        self.store().delete(key, expect)
    }

    fn claim(&self, cidr: IpNet, node: &str) -> Result<Claimed, Error> {
        self.store().claim(cidr, node)
    }

    fn release(&self, cidr: IpNet, node: &str) -> Result<bool, Error> {
        self.store().release(cidr, node)
    }

    fn report(&self, report: &Report) -> Result<(), Error> {
        self.store().report(report)
    }

    fn reports(&self) -> Result<Vec<Report>, Error> {
        self.store().reports()
    }

    fn notify(&self, notice: &Notice) -> Result<(), Error> {
        self.store().notify(notice)
    }

    fn opened_again(&self) -> Box<dyn Subject> {
        Box::new(Self(Directory::open(self.0.path()).unwrap()))
    }

    fn set_available(&self, available: bool) {
        let (here, away) = (self.0.path().to_owned(), self.0.path().with_extension("away"));
        let (from, to) = if available { (away, here) } else { (here, away) };
        fs::rename(from, to).unwrap();
    }
}

/// Runs one test of the suite on a fresh directory.
fn on_a_directory(test: fn(&dyn Subject)) {
    let fixture = Fixture::new();
    test(&Opened(fixture.store.clone()));
}

#[test]
fn what_is_written_is_listed() {
    on_a_directory(suite::what_is_written_is_listed);
}

#[test]
fn every_kind_is_listed_watched_and_read() {
    on_a_directory(suite::every_kind_is_listed_watched_and_read);
}

#[test]
fn a_watch_tells_only_the_kinds_asked_for() {
    on_a_directory(suite::a_watch_tells_only_the_kinds_asked_for);
}

#[test]
fn a_watcher_sees_what_is_there_and_then_every_change() {
    on_a_directory(suite::a_watcher_sees_what_is_there_and_then_every_change);
}

#[test]
fn a_write_that_expects_something_else_changes_nothing() {
    on_a_directory(suite::a_write_that_expects_something_else_changes_nothing);
}

#[test]
fn of_many_writers_at_once_exactly_one_wins() {
    on_a_directory(suite::of_many_writers_at_once_exactly_one_wins);
}

#[test]
fn a_pod_cidr_is_claimed_by_one_node_only() {
    on_a_directory(suite::a_pod_cidr_is_claimed_by_one_node_only);
}

#[test]
fn of_many_claims_at_once_exactly_one_wins() {
    on_a_directory(suite::of_many_claims_at_once_exactly_one_wins);
}

#[test]
fn an_object_that_cannot_be_read_back_is_refused() {
    on_a_directory(suite::an_object_that_cannot_be_read_back_is_refused);
}

#[test]
fn an_outage_takes_nothing_away() {
    on_a_directory(suite::an_outage_takes_nothing_away);
}

#[test]
fn what_nodes_report_is_told_to_all_as_long_as_there_is_the_node() {
    on_a_directory(suite::what_nodes_report_is_told_to_all_as_long_as_there_is_the_node);
}

#[test]
fn a_report_that_leads_astray_is_refused() {
    on_a_directory(suite::a_report_that_leads_astray_is_refused);
}

#[test]
fn after_a_restart_everything_is_there() {
    on_a_directory(suite::after_a_restart_everything_is_there);
}

/// A store directory below a temporary one, so that it can be moved away.
struct Fixture {
    above: tempfile::TempDir,
    store: Directory,
}

impl Fixture {
    fn new() -> Self {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("store");
        fs::create_dir(&path).unwrap();
        let store = Directory::open(&path).unwrap();
        Self { above, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.store.path().join(name)
    }

    /// Writes in place, as `cat > name` does.
    fn put(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    fn witness(&self) -> Witness {
        Witness::in_sync(sent(self.store.watch().unwrap()))
    }

    /// Waits until the witness knows what a fresh look shows.
    fn catch_up(&self, witness: &mut Witness) {
        let listing = self.store.list().unwrap();
        witness.until(|witness| witness.snapshot == listing.snapshot && witness.problems == listing.problems);
    }

    fn pods(&self) -> Vec<String> {
        names(&self.store.list().unwrap().snapshot)
    }
}

fn names(snapshot: &cluster::Snapshot) -> Vec<String> {
    snapshot.pods.keys().map(|name| name.name.to_string()).collect()
}

/// A manifest with these pods.
fn pods(names: &[&str]) -> String {
    names.iter().map(|name| format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n")).collect()
}

#[test]
fn a_broken_file_is_reported_and_its_last_good_version_stays_in_force() {
    let fixture = Fixture::new();
    fixture.put("web.yaml", pods(&["a", "b"]));
    let mut witness = fixture.witness();
    assert_eq!(names(&witness.snapshot), ["a", "b"]);

    fixture.put("web.yaml", pods(&["a"]) + "spec: {containers: [{ports: [{containerPort: 0}]}]}\n");
    witness.until(|witness| !witness.problems.is_empty());
    let told = witness.problems[0].to_string();
    let want =
        "web.yaml:5:46: Pod a: spec.containers[0].ports[0].containerPort is 0, not between 1 and 65535";
    assert!(told.ends_with(want), "{told}");
    assert_eq!(names(&witness.snapshot), ["a", "b"]);

    // Also for those that come while it is broken, once somebody has seen it whole.
    fixture.put("other.yaml", pods(&["c"]));
    witness.until(|witness| witness.snapshot.pods.len() == 3);
    assert_eq!(fixture.pods(), ["a", "b", "c"]);
    assert_eq!(names(&fixture.witness().snapshot), ["a", "b", "c"]);

    for broken in ["", "a: [", "\u{0}", "kind: Pod", "- "] {
        fixture.put("web.yaml", broken);
        fixture.catch_up(&mut witness);
        assert_eq!(
            (witness.problems.len(), witness.snapshot.pods.len()),
            (1, 3),
            "{broken:?}: {:?}",
            witness.problems
        );
    }
    fixture.put("web.yaml", pods(&["b"]));
    witness.until(|witness| witness.problems.is_empty());
    assert_eq!(names(&witness.snapshot), ["b", "c"]);
    assert_eq!(witness.removals, 1);
    fs::remove_file(fixture.path("web.yaml")).unwrap();
    witness.until(|witness| names(&witness.snapshot) == ["c"]);
}

#[test]
fn a_report_is_no_manifest_and_one_that_cannot_be_read_is_not_ready() {
    let fixture = Fixture::new();
    fixture.put("node1.yaml", "apiVersion: v1\nkind: Node\nmetadata: {name: node1}\n");
    let mut witness = fixture.witness();
    fixture.store.report(&report("node1", true)).unwrap();
    fixture.put("fairlead/.reports/node1.json", "{");
    fixture.catch_up(&mut witness);
    assert_eq!((witness.problems.len(), witness.snapshot.nodes.len()), (0, 1));
    let reports = fixture.store.reports().unwrap();
    assert_eq!((reports.len(), reports[0].ready, &*reports[0].reason), (1, false, "Unknown"));
    let path = fixture.path("fairlead/.reports/node1.json").display().to_string();
    assert!(
        reports[0].message.starts_with(&format!("its report in {path} cannot be read: EOF")),
        "{reports:?}"
    );
    fixture.store.report(&report("node1", true)).unwrap();
    assert_eq!(fixture.store.reports().unwrap(), [report("node1", true)]);
}

#[test]
fn what_was_kept_of_a_broken_file_is_forgotten_once_it_is_mended() {
    let fixture = Fixture::new();
    fixture.put("web.yaml", pods(&["a"]));
    let mut watch = fixture.store.watch().unwrap();
    fixture.put("web.yaml", "{");
    while !matches!(watch.next(), Some(Event::Problems(_))) {}
    drop(watch);
    assert_eq!(fixture.pods(), ["a"]);
    // Mended while nobody watches; who starts then has nothing to go back to but this.
    fixture.put("web.yaml", pods(&["b"]));
    drop(fixture.store.watch().unwrap());
    fixture.put("web.yaml", "{");
    assert_eq!(fixture.pods(), [""; 0]);
}

#[test]
fn of_a_manifest_that_was_never_good_nothing_is_taken() {
    let fixture = Fixture::new();
    fixture.put("web.yaml", pods(&["a", "B", "c", "D"]));
    let witness = fixture.witness();
    assert_eq!(names(&witness.snapshot), [""; 0]);
    let lines: Vec<u32> = witness.problems.iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [8, 16]);
}

#[test]
fn one_object_in_two_files_is_reported_and_the_first_by_path_counts() {
    let fixture = Fixture::new();
    let labelled =
        |label: &str| pods(&["a"]).replace("{name: a", &format!("{{labels: {{from: {label}}}, name: a"));
    fixture.put("2.yaml", labelled("two"));
    let mut witness = fixture.witness();
    let label = |witness: &Witness| {
        let pod = witness.snapshot.pods.values().next();
        pod.and_then(|pod| pod.labels.get("from").map(str::to_owned))
    };
    fixture.put("1.yaml", labelled("one"));
    witness.until(|witness| label(witness).as_deref() == Some("one") && witness.problems.len() == 1);
    let told = witness.problems[0].to_string();
    let first = fixture.path("1.yaml").display().to_string();
    assert!(
        told.contains("2.yaml:2:")
            && told.contains(&format!("pod default/a: also stands in {first}, which counts")),
        "{told}"
    );
    assert_eq!(fixture.store.list().unwrap().problems, witness.problems);
    fs::remove_file(fixture.path("1.yaml")).unwrap();
    witness.until(|witness| label(witness).as_deref() == Some("two") && witness.problems.is_empty());
    assert_eq!(witness.removals, 0);
    fixture.put("2.yaml", labelled("two") + &labelled("three"));
    witness.until(|witness| witness.problems.iter().any(|problem| problem.reason.contains("twice")));
}

#[test]
fn files_are_seen_however_they_come_and_go() {
    let fixture = Fixture::new();
    let mut witness = fixture.witness();
    let beside = fixture.path("../beside.yaml");
    fs::write(&beside, pods(&["a"])).unwrap();
    fs::rename(&beside, fixture.path("a.yaml")).unwrap();
    witness.until(|witness| names(&witness.snapshot) == ["a"]);
    // An atomic replacement, the way editors and Fairlead do it.
    fixture.put(".a.yaml.swp", pods(&["a", "b"]));
    fs::rename(fixture.path(".a.yaml.swp"), fixture.path("a.yaml")).unwrap();
    witness.until(|witness| names(&witness.snapshot) == ["a", "b"]);
    // A second name of a file, which nobody opens for writing.
    fs::write(&beside, pods(&["c"])).unwrap();
    fs::hard_link(&beside, fixture.path("c.yml")).unwrap();
    witness.until(|witness| names(&witness.snapshot) == ["a", "b", "c"]);
    // From one file to another, in one step: never gone in between.
    fs::rename(fixture.path("c.yml"), fixture.path("d.json")).unwrap();
    fs::rename(fixture.path("a.yaml"), fixture.path("a.yaml~")).unwrap();
    witness.until(|witness| names(&witness.snapshot) == ["c"]);
    assert_eq!(witness.removals, 2);
    fs::rename(fixture.path("a.yaml~"), fixture.path("a.yaml")).unwrap();
    witness.until(|witness| names(&witness.snapshot) == ["a", "b", "c"]);
    // Not manifests.
    fixture.put("notes.txt", "kind: {");
    fixture.put(".hidden.yaml", "kind: {");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        fixture.path("pipe.yaml"),
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    fixture.catch_up(&mut witness);
    assert_eq!(witness.problems, []);
}

#[test]
fn folders_are_seen_however_they_come_go_and_move() {
    let fixture = Fixture::new();
    let mut witness = fixture.witness();
    fs::create_dir_all(fixture.path("x/y/z")).unwrap();
    fixture.put("x/y/z/a.yaml", pods(&["a"]));
    witness.until(|witness| names(&witness.snapshot) == ["a"]);
    fixture.put("x/y/b.yaml", pods(&["b"]));
    witness.until(|witness| names(&witness.snapshot) == ["a", "b"]);
    fs::rename(fixture.path("x/y"), fixture.path("w")).unwrap();
    fixture.put("w/z/c.yaml", pods(&["c"]));
    witness.until(|witness| names(&witness.snapshot) == ["a", "b", "c"]);
    assert_eq!(witness.removals, 0);
    // What happens to the folder under its new name is seen; elsewhere it is not ours any more.
    let outside = fixture.path("../outside");
    fs::rename(fixture.path("w"), &outside).unwrap();
    witness.until(|witness| witness.snapshot.pods.is_empty());
    fs::write(outside.join("d.yaml"), pods(&["d"])).unwrap();
    fs::rename(&outside, fixture.path("v")).unwrap();
    witness.until(|witness| names(&witness.snapshot) == ["a", "b", "c", "d"]);
    fs::remove_dir_all(fixture.path("v")).unwrap();
    fixture.put("x/e.yaml", pods(&["e"]));
    witness.until(|witness| names(&witness.snapshot) == ["e"]);
}

#[test]
fn links_are_followed_and_a_mounted_config_map_is_taken_over_as_a_whole() {
    let fixture = Fixture::new();
    let version = |name: &str, pod: &str| {
        fs::create_dir(fixture.path(name)).unwrap();
        fixture.put(&format!("{name}/web.yaml"), pods(&[pod]));
    };
    version("..first", "a");
    symlink("..first", fixture.path("..data")).unwrap();
    symlink("..data/web.yaml", fixture.path("web.yaml")).unwrap();
    let mut witness = fixture.witness();
    assert_eq!(names(&witness.snapshot), ["a"]);
    version("..second", "b");
    symlink("..second", fixture.path("..data_tmp")).unwrap();
    fs::rename(fixture.path("..data_tmp"), fixture.path("..data")).unwrap();
    witness.until(|witness| names(&witness.snapshot) == ["b"]);
    fixture.put("..second/web.yaml", pods(&["c"]));
    witness.until(|witness| names(&witness.snapshot) == ["c"]);

    let outside = fixture.path("../outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, fixture.path("linked")).unwrap();
    fs::write(outside.join("d.yaml"), pods(&["d"])).unwrap();
    witness.until(|witness| names(&witness.snapshot) == ["c", "d"]);
    // A link that leads back to where it stands is told, not followed for ever.
    symlink(".", fixture.path("loop")).unwrap();
    witness.until(|witness| witness.problems.iter().any(|problem| problem.reason.contains("leads back")));
    fs::remove_file(fixture.path("loop")).unwrap();
    fs::remove_file(fixture.path("linked")).unwrap();
    witness.until(|witness| names(&witness.snapshot) == ["c"] && witness.problems.is_empty());
}

#[test]
fn a_directory_that_is_removed_takes_nothing_with_it() {
    let fixture = Fixture::new();
    for number in 0..40 {
        fixture.put(&format!("{number}.yaml"), pods(&[&format!("a{number}")]));
    }
    fixture.store.write(&lease("node1", 1450), Expect::Absent).unwrap();
    let mut watch = fixture.store.watch().unwrap();
    let before: Vec<Event> = watch.by_ref().take(2).collect();
    // Nobody looks while the files go one by one: how long a slow removal is waited with is not the question.
    fs::remove_dir_all(fixture.store.path()).unwrap();
    let mut witness = Witness::in_sync(sent(before.into_iter().chain(watch)));
    let known = witness.snapshot.clone();
    witness.until(|witness| !witness.available);
    fs::create_dir(fixture.store.path()).unwrap();
    witness.until(|witness| witness.available && !witness.problems.is_empty());
    assert_eq!((&witness.snapshot, witness.removals), (&known, 0));
    assert!(
        witness.problems[0].to_string().contains("was lost and came back without 41 of its files"),
        "{}",
        witness.problems[0]
    );
    // What comes back, comes back; what is new, is new; what is removed then, is removed.
    fixture.put("0.yaml", pods(&["a0"]));
    fixture.put("new.yaml", pods(&["b"]));
    witness.until(|witness| witness.snapshot.pods.len() == 41);
    fs::remove_file(fixture.path("0.yaml")).unwrap();
    witness.until(|witness| witness.snapshot.pods.len() == 40);
    assert_eq!(witness.removals, 1);
    // A watcher that starts now takes the directory as it is.
    assert_eq!(names(&fixture.witness().snapshot), ["b"]);
}

#[test]
fn what_a_lost_directory_held_for_a_node_is_told_as_lost_once_its_manifest_is_back() {
    let fixture = Fixture::new();
    let node = |name: &str| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n");
    for name in ["node1", "node2"] {
        fixture.put(&format!("{name}.yaml"), node(name));
        fixture.store.write(&lease(name, 1450), Expect::Absent).unwrap();
    }
    let cidr = "10.244.1.0/24".parse().unwrap();
    fixture.store.claim(cidr, "node1").unwrap();
    let mut witness = fixture.witness();
    let known = witness.snapshot.clone();
    fs::remove_dir_all(fixture.store.path()).unwrap();
    witness.until(|witness| !witness.available);
    fs::create_dir(fixture.store.path()).unwrap();
    witness.until(|witness| witness.available && !witness.problems.is_empty());
    assert!(witness.lost.is_empty(), "nobody's Node is there: {:?}", witness.lost);
    fixture.put("node1.yaml", node("node1"));
    witness.until(|witness| !witness.lost.is_empty());
    assert_eq!(witness.lost, [Key::Lease("node1".into()), Key::Claim(cidr)].into());
    assert_eq!((&witness.snapshot, witness.removals), (&known, 0), "it stays in force");
    // Written again it is no longer missing.
    fixture.store.claim(cidr, "node1").unwrap();
    fixture.store.write(&lease("node1", 1450), Expect::Absent).unwrap();
    witness
        .until(|witness| witness.problems.iter().any(|problem| problem.reason.contains(" 2 of its files")));
}

#[test]
fn while_a_folder_cannot_be_read_nothing_counts_as_gone() {
    let fixture = Fixture::new();
    fixture.put("a.yaml", pods(&["a"]));
    // What a failing disk or missing rights would do to a folder, in a way that stops even root.
    symlink("leases", fixture.path("leases")).unwrap();
    let mut witness = Witness::new(sent(fixture.store.watch().unwrap()));
    witness.until(|witness| names(&witness.snapshot) == ["a"] && witness.problems.len() == 1);
    fixture.put("b.yaml", pods(&["b"]));
    witness.until(|witness| names(&witness.snapshot) == ["a", "b"]);
    assert!(!witness.in_sync, "a folder cannot be read, and yet all is said to be known");
    fs::remove_file(fixture.path("leases")).unwrap();
    witness.until(|witness| witness.in_sync && witness.problems.is_empty());
}

#[test]
fn an_object_of_the_longest_name_has_a_file_too() {
    let fixture = Fixture::new();
    let long = |last| format!("{}.{last}", vec!["a".repeat(62); 4].join(".").get(..251).unwrap());
    for node in [long("a"), long("b")] {
        fixture.store.write(&lease(&node, 1450), Expect::Absent).unwrap();
    }
    let listing = fixture.store.list().unwrap();
    assert_eq!((listing.snapshot.leases.len(), listing.problems), (2, vec![]));
    assert!(fixture.store.delete(&Key::Lease(long("a").into()), Expect::Any).unwrap());
    assert!(fixture.store.read(&Key::Lease(long("b").into())).unwrap().is_some());
}

#[test]
fn a_write_never_goes_through_a_link() {
    let fixture = Fixture::new();
    let elsewhere = fixture.above.path().join("elsewhere");
    fs::write(&elsewhere, "precious").unwrap();
    fs::create_dir(fixture.path("fairlead")).unwrap();
    symlink(&elsewhere, fixture.path("fairlead/.new")).unwrap();
    fixture.store.write(&lease("node1", 1450), Expect::Absent).unwrap();
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "precious");
    assert_eq!(fixture.store.list().unwrap().snapshot.leases.len(), 1);
}

#[test]
fn a_store_that_is_not_there_yet_is_awaited() {
    let above = tempfile::tempdir().unwrap();
    let path = above.path().join("not/yet/there");
    assert!(matches!(Directory::open(&path), Err(Error::Unavailable { .. })));
    let mut witness = Witness::new(sent(Directory::at(&path).watch().unwrap()));
    witness.until(|witness| !witness.available);
    fs::create_dir_all(&path).unwrap();
    witness.until(|witness| witness.available && witness.in_sync);
    fs::write(path.join("a.yaml"), pods(&["a"])).unwrap();
    witness.until(|witness| names(&witness.snapshot) == ["a"]);
    // Often, because what comes while the nearest folder above is looked for was once missed.
    for _ in 0..25 {
        fs::remove_dir_all(above.path().join("not")).unwrap();
        witness.until(|witness| !witness.available);
        fs::write(above.path().join("not"), "a file").unwrap();
        fs::remove_file(above.path().join("not")).unwrap();
        fs::create_dir_all(&path).unwrap();
        witness.until(|witness| witness.available);
        assert_eq!(names(&witness.snapshot), ["a"]);
    }
}

#[test]
fn when_the_kernel_loses_count_everything_is_looked_at_again() {
    let fixture = Fixture::new();
    let mut watch = fixture.store.watch().unwrap();
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    fixture.put("a.yaml", pods(&["a"]));
    for _ in 0..=limit / 4 {
        fs::rename(fixture.path("a.yaml"), fixture.path("b.yaml")).unwrap();
        fs::rename(fixture.path("b.yaml"), fixture.path("a.yaml")).unwrap();
    }
    // Nobody reads events until now, so these are beyond the kernel's count.
    fs::create_dir(fixture.path("late")).unwrap();
    fixture.put("late/c.yaml", pods(&["c"]));
    fs::remove_file(fixture.path("a.yaml")).unwrap();
    let stop = watch.stop_handle();
    let mut witness = Witness::new(sent(std::iter::from_fn(move || watch.next())));
    witness.until(|witness| names(&witness.snapshot) == ["c"]);
    fixture.put("late/d.yaml", pods(&["d"]));
    witness.until(|witness| names(&witness.snapshot) == ["c", "d"]);
    stop.stop();
}

#[test]
fn a_stopped_watch_ends() {
    let fixture = Fixture::new();
    let watch = fixture.store.watch().unwrap();
    let stop = watch.stop_handle();
    let events = sent(watch);
    assert!(matches!(events.recv(), Ok(Event::Snapshot(_))));
    assert_eq!(events.recv(), Ok(Event::InSync));
    stop.stop();
    assert!(events.recv().is_err());
}

#[test]
fn own_files_and_manifests_are_kept_apart() {
    let fixture = Fixture::new();
    let mut witness = fixture.witness();
    fixture.store.write(&lease("node1", 1450), Expect::Absent).unwrap();
    let own = fixture.path("fairlead/leases/node1.json");
    let text = fs::read_to_string(&own).unwrap();
    fixture.put("lease.json", &text);
    witness.until(|witness| {
        witness.problems.iter().any(|problem| problem.reason.contains("is kept by Fairlead itself"))
    });
    fixture.put("fairlead/leases/node2.json", &text);
    witness.until(|witness| {
        witness
            .problems
            .iter()
            .any(|problem| problem.reason.contains("belongs in fairlead/leases/node1.json"))
    });
    fs::remove_file(fixture.path("lease.json")).unwrap();
    fs::remove_file(fixture.path("fairlead/leases/node2.json")).unwrap();
    witness.until(|witness| witness.problems.is_empty() && witness.snapshot.leases.len() == 1);

    fixture.put("web.yaml", pods(&["web"]));
    let written = fixture.store.write(&Object::from(pod("web")), Expect::Any);
    assert!(
        matches!(&written, Err(Error::Foreign { file, .. }) if file.ends_with("web.yaml")),
        "{written:?}"
    );
    let key = Key::Pod(NamespacedName::new("default", "web"));
    assert!(matches!(fixture.store.delete(&key, Expect::Any), Err(Error::Foreign { .. })));
    let (object, version) = fixture.store.read(&key).unwrap().unwrap();
    assert_eq!(object, Object::from(pod("web")));
    assert_eq!(fixture.store.list().unwrap().versions()[&key], version);

    // A broken file of our own is nobody's: not free, not matching, but replaceable.
    fixture.put("fairlead/leases/node1.json", "{");
    witness.until(|witness| !witness.problems.is_empty());
    assert_eq!(witness.snapshot.leases.len(), 1);
    let refused = fixture.store.write(&lease("node1", 1400), Expect::Absent);
    assert!(matches!(refused, Err(Error::Conflict { found: None, .. })), "{refused:?}");
    fixture.store.write(&lease("node1", 1400), Expect::Any).unwrap();
    witness.until(|witness| witness.problems.is_empty());
    fixture.put("fairlead/leases/node1.json", "{");
    fixture.store.claim("10.244.1.0/24".parse().unwrap(), "node1").unwrap();
    fixture.put("fairlead/claims/10.244.1.0-24.json", "");
    let claimed = fixture.store.claim("10.244.1.0/24".parse().unwrap(), "node1").unwrap();
    assert!(matches!(claimed, Claimed::Held { .. }), "{claimed:?}");
}

#[test]
fn a_manifest_is_installed_whole_or_refused() {
    let fixture = Fixture::new();
    fixture.store.install("web.yaml", pods(&["a"]).as_bytes()).unwrap();
    let error = fixture.store.install("web.yaml", pods(&["a", "B"]).as_bytes()).unwrap_err();
    assert!(error.to_string().starts_with("cannot take the manifest: web.yaml:8:"), "{error}");
    for name in ["../web.yaml", "web.txt", ".web.yaml", "a/b.yaml", ""] {
        assert!(matches!(fixture.store.install(name, b"{}"), Err(Error::Manifest { .. })), "{name}");
    }
    assert_eq!(fixture.pods(), ["a"]);
}

#[test]
fn the_examples_are_good_manifests() {
    let examples = Directory::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/guestbook")).unwrap();
    let Listing { snapshot, problems, .. } = examples.list().unwrap();
    assert_eq!(problems, []);
    assert_eq!((snapshot.pods.len(), snapshot.services.len()), (6, 3));
    for service in snapshot.services.values() {
        let chosen = snapshot.pods.values().filter(|pod| pod.labels.contains_all(&service.selector)).count();
        let want = match &*service.name.name {
            "frontend" => 3,
            "follower" => 2,
            _ => 1,
        };
        assert_eq!(chosen, want, "{}", service.name);
    }
}

/// Not a test by itself: the other process of the tests below, which say in its environment what to do.
#[test]
fn in_another_process() {
    let Ok(path) = std::env::var("STORE_OF_ANOTHER_PROCESS") else { return };
    let store = Directory::open(path).unwrap();
    let node = format!("node{}", std::process::id());
    println!("\nready");
    if std::env::var("STORE_DO").as_deref() == Ok("write") {
        for round in 0.. {
            store.write(&lease(&node, 1000 + round % 400), Expect::Any).unwrap();
        }
    }
    for third in 0..32 {
        let cidr: IpNet = format!("10.244.{third}.0/24").parse().unwrap();
        if store.claim(cidr, &node).unwrap() == Claimed::Granted {
            println!("\ngranted {cidr}");
        }
    }
    println!("\ndone");
}

fn another_process(fixture: &Fixture, what: &str) -> std::process::Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "directory::in_another_process", "--nocapture", "--test-threads=1"]);
    command.env("STORE_OF_ANOTHER_PROCESS", fixture.store.path()).env("STORE_DO", what);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

fn lines(process: &mut std::process::Child) -> impl Iterator<Item = String> {
    BufReader::new(process.stdout.take().unwrap()).lines().map(Result::unwrap)
}

#[test]
fn of_many_processes_exactly_one_gets_each_pod_cidr() {
    let fixture = Fixture::new();
    let mut processes: Vec<_> = (0..4).map(|_| another_process(&fixture, "claim")).collect();
    let mut granted = Vec::new();
    for process in &mut processes {
        let said: Vec<String> = lines(process).collect();
        assert!(said.iter().any(|line| line == "done"), "{said:?}");
        granted.extend(said.iter().filter_map(|line| line.strip_prefix("granted ").map(str::to_owned)));
        assert!(process.wait().unwrap().success());
    }
    granted.sort();
    assert_eq!(granted.len(), 32, "{granted:?}");
    granted.dedup();
    assert_eq!(granted.len(), 32, "one was granted twice");
    assert_eq!(fixture.store.list().unwrap().snapshot.claims.len(), 32);
}

#[test]
fn a_writer_killed_at_any_point_leaves_whole_files_only() {
    let fixture = Fixture::new();
    let mut witness = fixture.witness();
    for _ in 0..12 {
        let mut process = another_process(&fixture, "write");
        assert!(lines(&mut process).any(|line| line == "ready"));
        let before = fixture.store.list().unwrap().versions();
        // It writes as fast as it can; killed some way into a write.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while fixture.store.list().unwrap().versions() == before {
            assert!(std::time::Instant::now() < deadline, "the other process writes nothing");
        }
        process.kill().unwrap();
        process.wait().unwrap();
        assert_eq!(fixture.store.list().unwrap().problems, []);
        fixture.store.write(&lease("node1", 1450), Expect::Any).unwrap();
    }
    fixture.catch_up(&mut witness);
}
