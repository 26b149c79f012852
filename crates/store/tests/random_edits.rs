//! Whatever is done to a directory's files, in whatever order: a watcher ends up knowing exactly what a fresh
//! look shows, and never doubts what it was told before.

// Tests end by panicking.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use cluster::Snapshot;
use proptest::prelude::{Strategy, prop, prop_oneof};
use proptest::test_runner::{Config, TestRunner};
use store::{Directory, Event, Problem, Watch};

/// Folders and files are few, so that edits meet.
const FOLDERS: [&str; 4] = ["", "x", "x/y", "z"];
const FILES: [&str; 3] = ["1.yaml", "2.json", "3.yml"];

#[derive(Debug, Clone)]
enum Edit {
    /// Written in place.
    Write(Place, Text),
    /// Replaced by a complete file.
    Replace(Place, Text),
    Remove(Place),
    Rename(Place, Place),
    Link(Place, Place),
    MakeFolder(usize),
    RemoveFolder(usize),
    MoveFolder(usize, usize),
    /// The watcher takes in what happened so far.
    CatchUp,
}

#[derive(Debug, Clone)]
struct Place {
    folder: usize,
    file: usize,
}

/// The pods of a manifest by number, and whether it is broken.
#[derive(Debug, Clone)]
struct Text {
    pods: Vec<u8>,
    broken: bool,
}

impl Place {
    fn path(&self) -> String {
        format!("{}/{}", FOLDERS[self.folder], FILES[self.file]).trim_start_matches('/').to_owned()
    }
}

impl Text {
    fn yaml(&self, label: usize) -> String {
        let pod = |number: &u8| {
            format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: pod{number}, labels: {{edit: e{label}}}}}\n"
            )
        };
        self.pods.iter().map(pod).collect::<String>() + if self.broken { "{" } else { "# end\n" }
    }
}

fn edit() -> impl Strategy<Value = Edit> {
    let folder = || 0..FOLDERS.len();
    let place = || (0..FOLDERS.len(), 0..FILES.len()).prop_map(|(folder, file)| Place { folder, file });
    let text = || {
        (prop::collection::vec(0..5u8, 0..3), prop::bool::weighted(0.1))
            .prop_map(|(pods, broken)| Text { pods, broken })
    };
    prop_oneof![
        4 => (place(), text()).prop_map(|(place, text)| Edit::Write(place, text)),
        4 => (place(), text()).prop_map(|(place, text)| Edit::Replace(place, text)),
        2 => place().prop_map(Edit::Remove),
        2 => (place(), place()).prop_map(|(from, to)| Edit::Rename(from, to)),
        1 => (place(), place()).prop_map(|(from, to)| Edit::Link(from, to)),
        2 => folder().prop_map(Edit::MakeFolder),
        1 => folder().prop_map(Edit::RemoveFolder),
        2 => (folder(), folder()).prop_map(|(from, to)| Edit::MoveFolder(from, to)),
        2 => proptest::strategy::Just(Edit::CatchUp),
    ]
}

/// Many edits fail, as when a folder is not there; that is part of the test.
fn make(root: &Path, number: usize, edit: &Edit) {
    let at = |place: &Place| root.join(place.path());
    let folder = |folder: &usize| root.join(FOLDERS[*folder]);
    drop(match edit {
        Edit::Write(place, text) => fs::write(at(place), text.yaml(number)),
        Edit::Replace(place, text) => {
            let beside = root.with_extension("beside");
            fs::write(&beside, text.yaml(number)).and_then(|()| fs::rename(&beside, at(place)))
        }
        Edit::Remove(place) => fs::remove_file(at(place)),
        Edit::Rename(from, to) => fs::rename(at(from), at(to)),
        Edit::Link(from, to) => std::os::unix::fs::symlink(at(from), at(to)),
        Edit::MakeFolder(name) => fs::create_dir(folder(name)),
        Edit::RemoveFolder(0) | Edit::MoveFolder(0, _) | Edit::MoveFolder(_, 0) | Edit::CatchUp => Ok(()),
        Edit::RemoveFolder(name) => fs::remove_dir_all(folder(name)),
        Edit::MoveFolder(from, to) => fs::rename(folder(from), folder(to)),
    });
}

/// What a watcher knows, by its events.
#[derive(Default)]
struct Known {
    snapshot: Snapshot,
    problems: Vec<Problem>,
}

impl Known {
    /// Takes in all events there are; `last` asks to wait until nothing differs from a fresh look.
    fn catch_up(&mut self, watch: &mut Watch, limit: Duration) {
        while let Some(event) = watch.next_within(limit) {
            match event {
                Event::Snapshot(snapshot) => self.snapshot = snapshot,
                Event::Changes(changes) => {
                    for change in changes {
                        assert!(self.snapshot.apply(change.clone()), "nothing changed by {change:?}");
                    }
                }
                Event::Problems(problems) => self.problems = problems,
                Event::InSync => {}
                Event::Unavailable { reason } => panic!("{reason}"),
                Event::Available => panic!("it was never away"),
                Event::Lost(keys) => panic!("{keys:?} were not lost"),
                Event::Confirmed(_) => panic!("nobody asked"),
            }
        }
    }
}

fn a_watcher_agrees_with_a_fresh_look(edits: &[Edit]) {
    let above = tempfile::tempdir().unwrap();
    let root = above.path().join("store");
    fs::create_dir(&root).unwrap();
    let store = Directory::open(&root).unwrap();
    let mut watch = store.watch().unwrap();
    let mut known = Known::default();
    for (number, edit) in edits.iter().enumerate() {
        make(&root, number, edit);
        if matches!(edit, Edit::CatchUp) {
            known.catch_up(&mut watch, Duration::ZERO);
        }
    }
    // inotify has told all that was done before it is asked, so nothing need be waited for.
    known.catch_up(&mut watch, Duration::ZERO);
    let fresh = store.list().unwrap();
    // A broken file counts with what the watcher saw of it last; a fresh look finds that on the disk.
    assert_eq!(known.snapshot, fresh.snapshot);
    assert_eq!(known.problems, fresh.problems);
}

#[test]
fn after_any_edits_a_watcher_knows_what_a_fresh_look_shows() {
    let config = Config { cases: 64, failure_persistence: None, ..Config::default() };
    let edits = prop::collection::vec(edit(), 1..40);
    let tested = TestRunner::new(config).run(&edits, |edits| {
        a_watcher_agrees_with_a_fresh_look(&edits);
        Ok(())
    });
    if let Err(error) = tested {
        panic!("{error}");
    }
}
