//! A directory of manifests as a store: list, watch, write with compare-and-swap.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cluster::{Change, Claim, Key, Kind, Object};
use ipnet::IpNet;

use crate::catalog::Catalog;
use crate::files;
use crate::manifest::{self, Fault};
use crate::own::{self, Lock};
use crate::report::check_node;
use crate::scan::{Alone, scan};
use crate::store::{check_expected, check_reads_back, only, version_of};
use crate::{Claimed, Error, Event, Events, Expect, Listing, Notice, Problem, Report, Store, Version, Watch};

/// A directory of manifests. Holds nothing open; every call looks at the disk, any number of processes may
/// use one directory.
#[derive(Debug, Clone)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// The store in the directory `path`, which must be there.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it is not.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let directory = Self::at(path);
        directory.check()?;
        Ok(directory)
    }

    /// The store in the directory `path`, which may be away for now: a watcher will say when it is there.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Everything in it. Broken files are told in the listing.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub fn list(&self) -> Result<Listing, Error> {
        let catalog = self.catalog()?;
        Ok(Listing::new(catalog.snapshot().clone(), catalog.problems()))
    }

    /// Everything in it, and then every change; see [`Event`]. Works also while it is away.
    ///
    /// # Errors
    /// The kernel's limits on watching are exhausted.
    pub fn watch(&self) -> Result<Watch, Error> {
        Watch::start(&self.path)
    }

    /// One object and its version, if it is there.
    ///
    /// # Errors
    /// [`Error::Unavailable`]. A broken file of ours counts as not there; the listing tells why.
    pub fn read(&self, key: &Key) -> Result<Option<(Object, Version)>, Error> {
        let object = if only_ours(key) {
            self.check()?;
            self.own(key).ok().flatten()
        } else {
            self.catalog()?.snapshot().object(key)
        };
        Ok(object.map(|object| (object.clone(), version_of(&object))))
    }

    /// Writes one object to a file of our own, if the store holds what the writer expects. Of any number of
    /// processes that write the same object at once, with [`Expect::Absent`] or one and the same version,
    /// exactly one succeeds. Returns the new version.
    ///
    /// # Errors
    /// [`Error::Conflict`] if it holds something else; [`Error::Foreign`] if a manifest that is not ours holds
    /// the object; [`Error::Invalid`] if the object would not read back the same; [`Error::Unavailable`]; the
    /// disk's.
    pub fn write(&self, object: &Object, expect: Expect) -> Result<Version, Error> {
        let key = object.key();
        let contents = manifest::encode(object);
        check_reads_back(object, &contents)?;
        let lock = Lock::take(&self.path)?;
        self.check_not_foreign(&key)?;
        let version = Version::of(&contents);
        if check_expected(&key, &self.own(&key), expect)? != Some(version) {
            // What a status says can be found out again; a lease or a claim cannot.
            let durable = !matches!(key.kind(), Kind::PodStatus | Kind::EndpointSlice);
            lock.replace(&own::path(&key), &contents, durable)?;
        }
        Ok(version)
    }

    /// Removes one object of our own. True if it was there; nothing there is success unless a version was
    /// expected.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub fn delete(&self, key: &Key, expect: Expect) -> Result<bool, Error> {
        let lock = Lock::take(&self.path)?;
        self.check_not_foreign(key)?;
        check_expected(key, &self.own(key), expect)?;
        lock.remove(&own::path(key))
    }

    /// Takes the pod CIDR `cidr` for `node`, unless another node holds it or one that overlaps it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a CIDR with host bits or an impossible node name; [`Error::Unavailable`]; the disk's.
    pub fn claim(&self, cidr: IpNet, node: &str) -> Result<Claimed, Error> {
        let claim = Object::from(Claim { cidr, node: node.into() });
        let contents = manifest::encode(&claim);
        check_reads_back(&claim, &contents)?;
        let lock = Lock::take(&self.path)?;
        for held in self.claimed_cidrs()? {
            if !held.contains(&cidr) && !cidr.contains(&held) {
                continue;
            }
            match self.own(&Key::Claim(held)) {
                Ok(Some(Object::Claim(claim))) if *claim.node == *node && held == cidr => {
                    return Ok(Claimed::Granted);
                }
                Ok(Some(Object::Claim(claim))) if *claim.node == *node => {}
                Ok(Some(Object::Claim(claim))) => {
                    return Ok(Claimed::Held { cidr: held, node: claim.node.to_string() });
                }
                Ok(_) => {}
                // Whoever holds it: it is not free.
                Err(_) => return Ok(Claimed::Held { cidr: held, node: "unknown".to_owned() }),
            }
        }
        lock.replace(&own::path(&claim.key()), &contents, true)?;
        Ok(Claimed::Granted)
    }

    /// Gives `cidr` back, if `node` holds it. True if it did.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; the disk's.
    pub fn release(&self, cidr: IpNet, node: &str) -> Result<bool, Error> {
        let key = Key::Claim(cidr);
        let lock = Lock::take(&self.path)?;
        match self.own(&key) {
            Ok(Some(Object::Claim(claim))) if *claim.node == *node => lock.remove(&own::path(&key)),
            _ => Ok(false),
        }
    }

    /// Keeps how a node fares, in a file that is no manifest.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an impossible node name, or a reason that is no word; [`Error::Unavailable`]; the disk's.
    pub fn report(&self, report: &Report) -> Result<(), Error> {
        report.check()?;
        // What it says can be found out again.
        let durable = false;
        Lock::take(&self.path)?.replace(&own::report_path(&report.node), &own::encode_report(report), durable)
    }

    /// What all nodes report that have a Node object.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub fn reports(&self) -> Result<Vec<Report>, Error> {
        let catalog = self.catalog()?;
        let nodes = catalog.snapshot().nodes.keys();
        Ok(nodes.filter_map(|node| own::read_report(&self.path, node)).collect())
    }

    /// Puts a manifest into the directory, whole or not at all, under a file name such as `guestbook.yaml`;
    /// an earlier file of that name is replaced. Only a manifest without problems is taken.
    ///
    /// # Errors
    /// [`Error::Manifest`] with all that is wrong; [`Error::Unavailable`]; the disk's.
    pub fn install(&self, name: &str, manifest: &[u8]) -> Result<(), Error> {
        Self::examine(name, manifest)?;
        Lock::take(&self.path)?.replace(Path::new(name), manifest, true)
    }

    /// Whether [`Directory::install`] would take a manifest, so that of several none is put in when one is wrong.
    ///
    /// # Errors
    /// [`Error::Manifest`] with all that is wrong.
    pub fn examine(name: &str, manifest: &[u8]) -> Result<(), Error> {
        let path = Path::new(name);
        let refuse = |faults: Vec<Fault>| {
            let problem = |fault| Problem::of(path.to_owned(), fault);
            Err(Error::Manifest { problems: faults.into_iter().map(problem).collect() })
        };
        if !files::is_manifest_name(path) {
            let fault = Fault::new("is no name for a manifest".into());
            return refuse(vec![fault.hint("a plain file name that ends in .yaml, .yml or .json")]);
        }
        files::check(path, manifest).map(drop).or_else(refuse)
    }

    fn check(&self) -> Result<(), Error> {
        let away = |source| Error::directory_away(&self.path, source);
        let metadata = fs::metadata(&self.path).map_err(away)?;
        if metadata.is_dir() { Ok(()) } else { Err(away(io::ErrorKind::NotADirectory.into())) }
    }

    fn catalog(&self) -> Result<Catalog, Error> {
        self.check()?;
        let mut catalog = Catalog::new(&self.path);
        // One that is there and cannot be read would look empty.
        fs::read_dir(&self.path).map_err(|source| Error::directory_away(&self.path, source))?;
        scan(&self.path, Path::new(""), &mut catalog, &mut Alone);
        // Had it gone away meanwhile, we would have seen less than there is.
        self.check()?;
        catalog.settle();
        Ok(catalog)
    }

    /// The object in its own file; none if there is no such file.
    fn own(&self, key: &Key) -> Result<Option<Object>, ()> {
        match files::read(&self.path, &own::path(key)) {
            None => Ok(None),
            Some(Err(_)) => Err(()),
            Some(Ok(objects)) => Ok(objects.into_iter().next().map(|placed| placed.object)),
        }
    }

    fn claimed_cidrs(&self) -> Result<Vec<IpNet>, Error> {
        let path = self.path.join(own::CLAIMS);
        match files::names(&path) {
            Ok(names) => Ok(names.iter().filter_map(|name| own::claimed_cidr(name)).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(Error::Io { action: "read", path, source }),
        }
    }

    /// Kinds that also people write may stand in their manifests.
    fn check_not_foreign(&self, key: &Key) -> Result<(), Error> {
        if only_ours(key) {
            return Ok(());
        }
        match self.catalog()?.file_of(key) {
            Some(file) if file != own::path(key) => {
                Err(Error::Foreign { key: key.clone(), file: self.path.join(file) })
            }
            _ => Ok(()),
        }
    }
}

/// True for the kinds that stand in no manifest but in files of our own.
fn only_ours(key: &Key) -> bool {
    matches!(key.kind(), Kind::Lease | Kind::Claim | Kind::PodStatus)
}

/// A directory has all kinds in one place, so all are read, and what was not asked for is left out.
impl Store for Directory {
    fn list(&self, kinds: &[Kind]) -> Result<Listing, Error> {
        let Listing { snapshot, problems, .. } = Self::list(self)?;
        Ok(Listing::new(only(&snapshot, kinds), problems))
    }

    fn watch(&self, kinds: &[Kind]) -> Result<Events, Error> {
        let kinds = kinds.to_vec();
        let watch = Self::watch(self)?;
        Ok(Box::new(watch.filter_map(move |event| of_kinds(event, &kinds))))
    }

    fn confirm(&self, _: &std::sync::Arc<str>, _: u64) -> bool {
        // One inotify tells of all its folders.
        false
    }

    fn read(&self, key: &Key) -> Result<Option<(Object, Version)>, Error> {
        Self::read(self, key)
    }

    fn write(&self, object: &Object, expect: Expect) -> Result<Version, Error> {
        Self::write(self, object, expect)
    }

    fn delete(&self, key: &Key, expect: Expect) -> Result<bool, Error> {
        Self::delete(self, key, expect)
    }

    fn claim(&self, cidr: IpNet, node: &str) -> Result<Claimed, Error> {
        Self::claim(self, cidr, node)
    }

    fn release(&self, cidr: IpNet, node: &str) -> Result<bool, Error> {
        Self::release(self, cidr, node)
    }

    fn report(&self, report: &Report) -> Result<(), Error> {
        Self::report(self, report)
    }

    fn reports(&self) -> Result<Vec<Report>, Error> {
        Self::reports(self)
    }

    fn notify(&self, notice: &Notice) -> Result<(), Error> {
        check_node(&notice.node).map(drop)
    }
}

/// The part of an event that is about these kinds, if there is one.
fn of_kinds(event: Event, kinds: &[Kind]) -> Option<Event> {
    match event {
        Event::Snapshot(snapshot) => Some(Event::Snapshot(only(&snapshot, kinds))),
        Event::Changes(changes) => {
            let wanted = |change: &Change| kinds.contains(&change.key().kind());
            let changes: Vec<Change> = changes.into_iter().filter(wanted).collect();
            (!changes.is_empty()).then_some(Event::Changes(changes))
        }
        other => Some(other),
    }
}
