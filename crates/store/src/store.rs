//! What every store does: [`Store`], and the words its methods share.
//!
//! Two stores exist, [`Directory`](crate::Directory) and [`Kubernetes`](crate::Kubernetes); who uses one need not
//! know which. One suite of tests says what holds of both (`tests/contract`).

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use cluster::{Change, Key, Kind, Object, Snapshot};
use ipnet::IpNet;

use crate::manifest;
use crate::mirror::{Item, Layout};
use crate::{Error, Event, Expect, Notice, Problem, Report, Version};

/// Where the cluster's state is. Every method may be called from any thread, and waits for its answer.
pub trait Store: Debug + Send + Sync {
    /// Everything of these kinds at one time. What could not be taken as it stands is told in the listing.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; [`Error::Forbidden`].
    fn list(&self, kinds: &[Kind]) -> Result<Listing, Error>;

    /// Everything of these kinds, and then every change of it; see [`Event`]. Works also while the store is away.
    ///
    /// # Errors
    /// A limit of the system is exhausted.
    fn watch(&self, kinds: &[Kind]) -> Result<Events, Error>;

    /// Has every watch of this store say [`Event::Confirmed`] with this number, once it has told what there is by now of what
    /// decides about pods of that namespace: its policies, its own labels, and the policies of the cluster. Numbers grow.
    /// Returns at once; false if there is no need to ask, since a watch of this store tells things in the order in which they came.
    fn confirm(&self, namespace: &Arc<str>, number: u64) -> bool;

    /// One object and its version, if it is there. What Fairlead writes itself and cannot be read counts as not there.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; [`Error::Forbidden`]; [`Error::Unreadable`] from a store on the network.
    fn read(&self, key: &Key) -> Result<Option<(Object, Version)>, Error>;

    /// Writes one object of Fairlead's own, if the store holds what the writer expects. Of any number of processes
    /// that write the same object at once, with [`Expect::Absent`] or one and the same version, exactly one
    /// succeeds. Returns the new version.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the store holds something else; [`Error::Invalid`] if the object would not read back
    /// the same; [`Error::Foreign`] or [`Error::NotOurs`] if it is not Fairlead's to write; [`Error::Unavailable`].
    fn write(&self, object: &Object, expect: Expect) -> Result<Version, Error>;

    /// Removes one object of Fairlead's own. True if it was there; nothing there is success unless a version was
    /// expected.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    fn delete(&self, key: &Key, expect: Expect) -> Result<bool, Error>;

    /// Takes the pod CIDR `cidr` for `node`, unless another node holds it or one that overlaps it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a CIDR with host bits or an impossible node name; [`Error::Unavailable`].
    fn claim(&self, cidr: IpNet, node: &str) -> Result<Claimed, Error>;

    /// Gives `cidr` back, if `node` holds it. True if it did.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    fn release(&self, cidr: IpNet, node: &str) -> Result<bool, Error>;

    /// Tells the cluster how a node fares; a later report replaces it. In Kubernetes pods come to a node that is ready:
    /// its condition `NetworkUnavailable` is False, and the startup taint `fairlead.io/not-ready` is taken off it. Other
    /// hands can undo that; then [`Node::awaits_network`](cluster::Node::awaits_network) says so. A directory keeps the
    /// report and changes nobody's manifest, so there a Node that awaits the network goes on to do so.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an impossible node name, or a reason that is no word; [`Error::NoNode`] if the cluster has
    /// none to write it into; [`Error::Unavailable`]; [`Error::Forbidden`]; [`Error::Refused`].
    fn report(&self, report: &Report) -> Result<(), Error>;

    /// What all nodes report that are there, in the order of their names. One whose report was spoilt by another hand is
    /// not ready, for the reason `Unknown`.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; [`Error::Forbidden`].
    fn reports(&self) -> Result<Vec<Report>, Error>;

    /// Tells people what happened on a node, where they look for it: among the Node's Events in Kubernetes. The same
    /// again is counted, not told twice. A directory has no such place, and keeps nothing.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an impossible node name; [`Error::Unavailable`]; [`Error::Forbidden`]; [`Error::Refused`].
    fn notify(&self, notice: &Notice) -> Result<(), Error>;
}

/// The events of a store, as an endless blocking iterator; dropping it ends the watch. Give it a thread of its own.
pub type Events = Box<dyn Iterator<Item = Event> + Send>;

/// Everything in a store at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The objects.
    pub snapshot: Snapshot,
    /// What could not be taken as it stands, in the order of the places.
    pub problems: Vec<Problem>,
}

/// What came of asking for a pod CIDR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// The node holds it, from now on or since earlier.
    Granted,
    /// Another node holds it or a part of it.
    Held {
        /// What the other node holds: the CIDR asked for, or one that overlaps it.
        cidr: IpNet,
        /// The other node.
        node: String,
    },
}

impl Listing {
    pub(crate) fn new(snapshot: Snapshot, problems: Vec<Problem>) -> Self {
        Self { snapshot, problems }
    }

    /// The version of each object. It takes writing each of them.
    #[must_use]
    pub fn versions(&self) -> BTreeMap<Key, Version> {
        self.snapshot.objects().map(|object| (object.key(), version_of(&object))).collect()
    }
}

/// The part of a snapshot that is of these kinds.
pub(crate) fn only(snapshot: &Snapshot, kinds: &[Kind]) -> Snapshot {
    let mut part = Snapshot::default();
    for object in snapshot.objects().filter(|object| kinds.contains(&object.key().kind())) {
        part.apply(Change::Set(object));
    }
    part
}

/// The version of an object, wherever it stands.
pub(crate) fn version_of(object: &Object) -> Version {
    Version::of(&manifest::encode(object))
}

/// An object with, say, a slash in its name would end up in a wrong place; one with a port 0 could not be read.
pub(crate) fn check_reads_back(object: &Object, contents: &[u8]) -> Result<(), Error> {
    let key = object.key();
    let reason = match manifest::parse(contents) {
        Ok(placed) if placed.iter().map(|placed| &placed.object).eq([object]) => return Ok(()),
        Ok(_) => "it would not read back the same".to_owned(),
        Err(faults) => {
            let told = |fault: &manifest::Fault| {
                format!("{} {}", fault.field.as_deref().unwrap_or("it"), fault.reason)
            };
            faults.iter().map(told).collect::<Vec<_>>().join("; ")
        }
    };
    Err(Error::Invalid { key, reason })
}

/// What a store on the network found of an object. One that is there, but cannot be read, must not pass for gone: the
/// lease and the claims of a Node that is gone are taken away.
pub(crate) fn check_readable(layout: &impl Layout, key: &Key, item: &Item) -> Result<(), Error> {
    let fault = item.faults.iter().find(|(faulty, _)| faulty == key);
    match fault {
        Some((_, fault)) if item.objects.iter().all(|object| object.key() != *key) => {
            let problem = Problem::of(layout.place(key), fault.clone());
            Err(Error::Unreadable { key: key.clone(), problem: Box::new(problem) })
        }
        _ => Ok(()),
    }
}

/// What a writer found, compared with what it expects: the version there is now, if it is as expected. `found` is
/// an error where something is there that cannot be read.
pub(crate) fn check_expected(
    key: &Key,
    found: &Result<Option<Object>, ()>,
    expect: Expect,
) -> Result<Option<Version>, Error> {
    let version = found.as_ref().ok().and_then(Option::as_ref).map(version_of);
    let expected = match expect {
        Expect::Any => true,
        Expect::Absent => matches!(found, Ok(None)),
        Expect::Version(wanted) => version == Some(wanted),
    };
    if expected { Ok(version) } else { Err(Error::Conflict { key: key.clone(), found: version }) }
}
