//! What the files of a directory say together.
//!
//! [`Catalog`] knows for each file the objects it last held, works out which file speaks for an object, and
//! turns changed files into changed objects. It touches no disk, so its rules can be tested alone:
//!
//! - a file that turns bad keeps its last good objects, and becomes a problem;
//! - of several files with one object the first by path speaks for it;
//! - a file that was lost with the whole directory, not removed, is an *orphan*: its objects stay in force
//!   until some file holds them again. Once a Node that was lost is back, those who wrote what belongs to it may
//!   write it again ([`Catalog::writable_again`]). Earlier they may not: the rest of the directory may be about to go.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cluster::{Change, Key, Object, Snapshot};

use crate::Problem;
use crate::manifest::{Fault, Placed};
use crate::scan::place;
use crate::share::Shared;

/// What reading one file gave.
pub(crate) type Reading = Result<Vec<Placed>, Vec<Fault>>;

/// The files of a directory and the cluster they describe together.
#[derive(Debug)]
pub(crate) struct Catalog {
    root: PathBuf,
    files: BTreeMap<Arc<Path>, File>,
    /// Which files hold an object, in the order of their paths.
    holders: BTreeMap<Key, Holders>,
    /// Files that are broken or orphans, and objects with several holders: the few that problems are about.
    troubled: BTreeSet<Arc<Path>>,
    contested: BTreeSet<Key>,
    /// Objects whose files changed since the last [`settle`](Self::settle).
    touched: BTreeSet<Key>,
    /// The Nodes that were lost and are there again.
    returned: BTreeSet<Arc<str>>,
    snapshot: Snapshot,
    shared: Shared,
}

/// The files that hold one object, in the order of their paths; nearly always one.
#[derive(Debug)]
enum Holders {
    One(Arc<Path>),
    Several(Vec<Arc<Path>>),
}

impl Holders {
    fn paths(&self) -> &[Arc<Path>] {
        match self {
            Self::One(path) => std::slice::from_ref(path),
            Self::Several(paths) => paths,
        }
    }

    fn with(&self, path: &Arc<Path>) -> Self {
        let mut paths = self.paths().to_vec();
        if let Err(place) = paths.binary_search(path) {
            paths.insert(place, path.clone());
        }
        Self::Several(paths)
    }

    /// None if `path` was the last.
    fn without(&self, path: &Path) -> Option<Self> {
        let rest: Vec<_> = self.paths().iter().filter(|holder| ***holder != *path).cloned().collect();
        match &rest[..] {
            [] => None,
            [one] => Some(Self::One(one.clone())),
            _ => Some(Self::Several(rest)),
        }
    }
}

#[derive(Debug, Default)]
struct File {
    /// By their keys: a file may hold a whole cluster.
    objects: Box<[Placed]>,
    /// Why the file as it stands is not in force.
    faults: Box<[Fault]>,
    /// It may be a folder, or is one, and what stands in it could not be found out.
    unread: bool,
    orphan: bool,
}

impl File {
    /// The object of that key, the first if it stands there more than once.
    fn placed(&self, key: &Key) -> Option<&Placed> {
        let place = self.objects.partition_point(|placed| placed.object.key() < *key);
        self.objects.get(place).filter(|placed| placed.object.key() == *key)
    }
}

impl Catalog {
    /// Nothing yet. `root` is what problems are told with; all other paths are relative to it.
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            files: BTreeMap::new(),
            holders: BTreeMap::new(),
            troubled: BTreeSet::new(),
            contested: BTreeSet::new(),
            touched: BTreeSet::new(),
            returned: BTreeSet::new(),
            snapshot: Snapshot::default(),
            shared: Shared::default(),
        }
    }

    /// The file at `path` was read.
    pub(crate) fn put(&mut self, path: &Path, reading: Reading) {
        let is_back = |placed: &Placed| match &placed.object {
            Object::Node(node) if self.is_lost(&Key::Node(node.name.clone())) => Some(node.name.clone()),
            _ => None,
        };
        let returned: Vec<Arc<str>> = reading.iter().flatten().filter_map(is_back).collect();
        self.returned.extend(returned);
        let (key, mut file) = match self.files.remove_entry(path) {
            Some(known) => known,
            None => (Arc::from(path), File::default()),
        };
        file.orphan = false;
        file.unread = false;
        match reading {
            Ok(mut objects) => {
                self.let_go(&key, &file);
                for placed in &mut objects {
                    self.shared.share(&mut placed.object);
                    self.hold(&key, placed.object.key());
                }
                objects.sort_by_cached_key(|placed| placed.object.key());
                file.objects = objects.into();
                file.faults = Box::default();
                self.troubled.remove(path);
            }
            Err(faults) => {
                file.faults = faults.into();
                self.troubled.insert(key.clone());
            }
        }
        // Once an orphan, it gives way to other holders; now it may not.
        self.touched.extend(file.objects.iter().map(|placed| placed.object.key()));
        self.files.insert(key, file);
    }

    /// What stands at `path`, or in the folder there, could not be found out.
    pub(crate) fn put_unread(&mut self, path: &Path, fault: Fault) {
        self.put(path, Err(vec![fault]));
        if let Some(file) = self.files.get_mut(path) {
            file.unread = true;
        }
    }

    /// True if every folder could be read, so that what is in no file is nowhere.
    pub(crate) fn is_whole(&self) -> bool {
        self.troubled.iter().all(|path| self.files.get(path).is_none_or(|file| !file.unread))
    }

    /// The file at `path` is gone.
    pub(crate) fn remove(&mut self, path: &Path) {
        if let Some((path, file)) = self.files.remove_entry(path) {
            self.troubled.remove(&path);
            self.let_go(&path, &file);
        }
    }

    /// The file at `path` was lost together with the directory.
    pub(crate) fn orphan(&mut self, path: &Path) {
        if let Some((path, mut file)) = self.files.remove_entry(path) {
            file.orphan = true;
            file.faults = Box::default();
            self.troubled.insert(path.clone());
            for placed in &file.objects {
                if let Object::Node(node) = &placed.object {
                    self.returned.remove(&node.name);
                }
                self.touched.insert(placed.object.key());
            }
            self.files.insert(path, file);
        }
    }

    /// The leases and claims that were lost and belong to Nodes that were lost with them and are back.
    pub(crate) fn writable_again(&self) -> BTreeSet<Key> {
        let orphans = self.troubled.iter().filter_map(|path| self.files.get(path)).filter(|file| file.orphan);
        let keys = orphans.flat_map(|file| file.objects.iter().map(|placed| placed.object.key()));
        keys.filter(|key| self.is_lost(key) && self.has_its_node_back(key)).collect()
    }

    /// True if no file holds the object but one that was lost.
    fn is_lost(&self, key: &Key) -> bool {
        self.speaking_file(key).is_some_and(|(_, file)| file.orphan)
    }

    fn has_its_node_back(&self, key: &Key) -> bool {
        let node = match key {
            Key::Lease(node) => Some(node),
            Key::Claim(cidr) => self.snapshot.claims.get(cidr).map(|claim| &claim.node),
            _ => None,
        };
        node.is_some_and(|node| self.returned.contains(node) && !self.is_lost(&Key::Node(node.clone())))
    }

    /// The files at or below `path`, without those that were lost.
    pub(crate) fn files_below(&self, path: &Path) -> Vec<Arc<Path>> {
        let below =
            self.files.range::<Path, _>((std::ops::Bound::Included(path), std::ops::Bound::Unbounded));
        let below = below.take_while(|(file, _)| file.starts_with(path));
        below.filter(|(_, known)| !known.orphan).map(|(file, _)| file.clone()).collect()
    }

    /// True if the file at `path` is known and not in force as it stands.
    pub(crate) fn is_broken(&self, path: &Path) -> bool {
        self.files.get(path).is_some_and(|file| !file.faults.is_empty())
    }

    /// The files that are broken now and whose last good version is in force instead.
    pub(crate) fn broken(&self) -> BTreeSet<Arc<Path>> {
        let kept = |file: &File| !file.faults.is_empty() && !file.objects.is_empty();
        self.troubled.iter().filter(|path| self.files.get(*path).is_some_and(kept)).cloned().collect()
    }

    /// The objects of a file that are in force.
    pub(crate) fn objects_of(&self, path: &Path) -> impl Iterator<Item = &Object> {
        self.files.get(path).into_iter().flat_map(|file| file.objects.iter().map(|placed| &placed.object))
    }

    /// True if the file at `path` is known.
    pub(crate) fn knows(&self, path: &Path) -> bool {
        self.files.contains_key(path)
    }

    /// What changed in the cluster since the last time, removals first.
    pub(crate) fn settle(&mut self) -> Vec<Change> {
        let (mut removed, mut set) = (Vec::new(), Vec::new());
        for key in std::mem::take(&mut self.touched) {
            match self.speaker(&key) {
                Some(object) => {
                    if self.snapshot.apply(Change::Set(object.clone())) {
                        set.push(Change::Set(object));
                    }
                }
                None => {
                    if self.snapshot.apply(Change::Removed(key.clone())) {
                        removed.push(Change::Removed(key));
                    }
                }
            }
        }
        removed.extend(set);
        removed
    }

    /// The cluster, as of the last [`settle`](Self::settle).
    pub(crate) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The file that speaks for the object.
    pub(crate) fn file_of(&self, key: &Key) -> Option<&Path> {
        self.speaking_file(key).map(|(path, _)| &**path)
    }

    /// All that is wrong, in the order of the files.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut orphans = 0;
        for (path, file) in self.troubled.iter().filter_map(|path| self.files.get_key_value(path)) {
            problems.extend(file.faults.iter().map(|fault| self.problem(path, fault)));
            orphans += usize::from(file.orphan);
        }
        for key in &self.contested {
            if let Some(holders) = self.holders.get(key) {
                self.report_rivals(key, holders.paths(), &mut problems);
            }
        }
        problems.sort();
        if orphans > 0 {
            problems.insert(0, self.lost(orphans));
        }
        problems
    }

    fn problem(&self, path: &Path, fault: &Fault) -> Problem {
        Problem::of(place(&self.root, path), fault.clone())
    }

    fn lost(&self, files: usize) -> Problem {
        let reason =
            format!("was lost and came back without {files} of its files; their objects stay in force");
        let hint = "put the manifests back, and the agents of their nodes write again what is theirs; or restart \
                    Fairlead to accept the directory as it is";
        self.problem(Path::new(""), &Fault::new(reason).hint(hint))
    }

    fn report_rivals(&self, key: &Key, holders: &[Arc<Path>], problems: &mut Vec<Problem>) {
        let Some((speaker, _)) = self.speaking_file(key) else { return };
        for path in holders.iter().filter(|path| *path != speaker) {
            let Some(file) = self.files.get(path).filter(|file| !file.orphan) else { continue };
            let reason = format!("also stands in {}, which counts", self.root.join(speaker).display());
            let mut fault = Fault::new(reason).about(Some(key.to_string())).hint("remove one of the two");
            // In a file that is broken now the object no longer stands where it stood.
            if file.faults.is_empty() {
                fault.place.line = file.placed(key).map_or(0, |placed| placed.line);
            }
            problems.push(self.problem(path, &fault));
        }
    }

    fn speaking_file(&self, key: &Key) -> Option<(&Arc<Path>, &File)> {
        let holders = self.holders.get(key)?.paths();
        let files = holders.iter().filter_map(|path| self.files.get_key_value(path));
        files.min_by_key(|(_, file)| file.orphan)
    }

    fn speaker(&self, key: &Key) -> Option<Object> {
        let (_, file) = self.speaking_file(key)?;
        file.placed(key).map(|placed| placed.object.clone())
    }

    fn hold(&mut self, path: &Arc<Path>, key: Key) {
        let holders = match self.holders.get(&key) {
            None => Holders::One(path.clone()),
            Some(holders) => holders.with(path),
        };
        self.set_holders(&key, Some(holders));
        self.touched.insert(key);
    }

    fn set_holders(&mut self, key: &Key, holders: Option<Holders>) {
        if matches!(holders, Some(Holders::Several(_))) {
            self.contested.insert(key.clone());
        } else {
            self.contested.remove(key);
        }
        match holders {
            Some(holders) => self.holders.insert(key.clone(), holders),
            None => self.holders.remove(key),
        };
    }

    fn let_go(&mut self, path: &Arc<Path>, file: &File) {
        for key in file.objects.iter().map(|placed| placed.object.key()) {
            let left = self.holders.get(&key).and_then(|holders| holders.without(path));
            self.set_holders(&key, left);
            self.touched.insert(key);
        }
    }
}
