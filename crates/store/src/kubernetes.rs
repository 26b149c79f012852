//! The Kubernetes API as a store.
//!
//! Read [`Kubernetes`], then `feed.rs` (how a resource is listed and watched), `mirror.rs` beside this one
//! (what of it is news), `confirm.rs` (in what order) and `claim.rs`. Everything that waits runs on one thread of its own, with a runtime that nobody outside sees; a watcher
//! reads a channel, and whoever asks for one object blocks until the answer is there.
//!
//! What Fairlead keeps in the API, so that an agent needs no definition of its own kinds and no controller:
//!
//! - a node's lease is the annotation `fairlead.io/lease` of its Node object, and goes with it. It is written by a
//!   patch of the Node's status, which a role can allow without the Node's spec, and with the version of the Node
//!   that was read, so of two writers one has to look again;
//! - so is what nodes of flannel tell in annotations of their own, and are told in those (`flannel.rs`);
//! - the right to a pod CIDR is what the Node's `spec.podCIDRs` says; where the cluster gives out none, it is a Lease
//!   object (`coordination.k8s.io`) in Fairlead's own namespace;
//! - what became of a pod stands in the pod, and is the kubelet's to write;
//! - how the node fares is a condition of its Node (`report.rs`), and what happens on it Events (`notice.rs`).
//!
//! deploy/kubernetes/rbac.yaml lists what an agent may do, and a test holds it against what an agent does; admission.yaml
//! beside it bounds that to the agent's own Node.

use std::path::Path;
use std::pin::Pin;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};

use cluster::{Backend, Claim, Flannel, Key, Kind, Lease, Object};
use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::manifest;
use crate::mirror::{Item, Mirror, News};
use crate::overlap::{Held, held_by, verdict};
use crate::report::check_node;
use crate::runtime::{Runtime, Watching};
use crate::store::{check_expected, check_readable, check_reads_back, version_of};
use crate::{Claimed, Error, Events, Expect, Listing, Notice, Report, Store, Version};
use api::{Api, Call, Failure};
use confirm::{Confirmer, Question};
use connection::Origin;
use feed::Feed;
use form::LEASE;
use notice::Notices;
use resource::{Namespace, Resource};

mod api;
mod claim;
mod confirm;
mod connection;
mod feed;
mod flannel;
pub(crate) mod form;
mod notice;
mod report;
pub(crate) mod resource;

pub use form::read_list;

/// How often a write that lost a race looks again. Each time, somebody else's write of the same object went through.
const MOST_RACES: usize = 32;

/// What is done for a watch as long as it lives.
type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The Kubernetes API.
#[derive(Debug)]
pub struct Kubernetes {
    api: Arc<Api>,
    notices: Arc<Notices>,
    /// Those of the watches that tell of pods and their policies.
    confirmers: Mutex<Vec<UnboundedSender<Question>>>,
    runtime: Runtime,
}

impl Kubernetes {
    /// The API server that `kubeconfig` names; without one, what a pod is given, else what `kubectl` would take.
    /// `namespace` is that of Fairlead's own objects. Asks nobody anything yet: a server that is away is no error.
    ///
    /// # Errors
    /// [`Error::Access`] if the files that tell the way cannot be read.
    pub fn open(kubeconfig: Option<&Path>, namespace: &str) -> Result<Self, Error> {
        let runtime = Runtime::start("kubernetes")?;
        // What makes connections wants the runtime around it.
        let opened = {
            let _entered = runtime.enter();
            Api::open(Origin::of(kubeconfig), namespace)
        };
        Ok(Self { api: Arc::new(opened?), notices: Arc::default(), confirmers: Mutex::default(), runtime })
    }

    /// Does `work` on the runtime's thread and waits for what comes of it.
    fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        self.runtime.wait(|| self.api.server(), work)
    }
}

impl Store for Kubernetes {
    fn list(&self, kinds: &[Kind]) -> Result<Listing, Error> {
        let (api, kinds) = (self.api.clone(), kinds.to_vec());
        self.wait(async move {
            let mut mirror = Mirror::new(&kinds, Namespace(api.namespace().to_owned()));
            for resource in Resource::of(&kinds) {
                let items = every_item(&api, resource).await?;
                mirror.take(News::Listed { part: resource, items, lost: false });
            }
            let (snapshot, problems) = mirror.into_parts();
            Ok(Listing::new(snapshot, problems))
        })
    }

    fn watch(&self, kinds: &[Kind]) -> Result<Events, Error> {
        let (sender, news) = mpsc::channel();
        let reached = Arc::new(Notify::new());
        let feed = |resource| Feed::new(self.api.clone(), resource, sender.clone(), reached.clone());
        let feeds: Vec<Feed> = Resource::of(kinds).into_iter().map(feed).collect();
        let progress: Vec<_> =
            feeds.iter().map(Feed::progress).filter(|(part, _)| part.decides_on_pods()).collect();
        let mut work: Vec<Work> = feeds.into_iter().map(|feed| Box::pin(feed.run()) as Work).collect();
        if !progress.is_empty() {
            let (ask, questions) = unbounded_channel();
            self.confirmers.lock().unwrap_or_else(PoisonError::into_inner).push(ask);
            let confirmer = Confirmer { api: self.api.clone(), progress, questions, news: sender.clone() };
            work.push(Box::pin(confirmer.run()));
        }
        let mirror = Mirror::new(kinds, Namespace(self.api.namespace().to_owned()));
        Ok(Box::new(Watching::start(&self.runtime, mirror, news, work.into_iter())))
    }

    fn confirm(&self, namespace: &Arc<str>, number: u64) -> bool {
        let mut confirmers = self.confirmers.lock().unwrap_or_else(PoisonError::into_inner);
        // A watch that has ended wants to know nothing.
        confirmers.retain(|asked| asked.send(Question { number, namespace: namespace.clone() }).is_ok());
        true
    }

    fn read(&self, key: &Key) -> Result<Option<(Object, Version)>, Error> {
        let Some(resource) = Resource::of_kind(key.kind()) else { return Ok(None) };
        let (api, key) = (self.api.clone(), key.clone());
        self.wait(async move {
            let Some(item) = get(&api, resource, &key).await? else { return Ok(None) };
            // What we write ourselves may be broken, and is then replaced.
            if !matches!(key.kind(), Kind::Lease | Kind::Claim) {
                check_readable(&Namespace(api.namespace().to_owned()), &key, &item)?;
            }
            let object = item.objects.into_iter().find(|object| object.key() == key);
            Ok(object.map(|object| (object.clone(), version_of(&object))))
        })
    }

    fn write(&self, object: &Object, expect: Expect) -> Result<Version, Error> {
        check_reads_back(object, &manifest::encode(object))?;
        let key = object.key();
        let Object::Lease(lease) = object else { return Err(not_ours(key)) };
        let (api, lease, version) = (self.api.clone(), lease.clone(), version_of(object));
        self.wait(async move {
            put_lease(&api, &key, Some((&lease, version)), expect).await?;
            Ok(version)
        })
    }

    fn delete(&self, key: &Key, expect: Expect) -> Result<bool, Error> {
        let Key::Lease(_) = key else { return Err(not_ours(key.clone())) };
        let (api, key) = (self.api.clone(), key.clone());
        self.wait(async move { put_lease(&api, &key, None, expect).await })
    }

    fn claim(&self, cidr: IpNet, node: &str) -> Result<Claimed, Error> {
        let claim = Claim { cidr, node: node.into() };
        let object = Object::from(claim.clone());
        check_reads_back(&object, &manifest::encode(&object))?;
        let api = self.api.clone();
        self.wait(async move { take_claim(&api, &claim).await })
    }

    fn release(&self, cidr: IpNet, node: &str) -> Result<bool, Error> {
        let (api, node) = (self.api.clone(), node.to_owned());
        self.wait(async move { drop_claim(&api, cidr, &node).await })
    }

    fn report(&self, report: &Report) -> Result<(), Error> {
        report.check()?;
        let (api, report) = (self.api.clone(), report.clone());
        self.wait(async move { report::put(&api, &report).await })
    }

    fn reports(&self) -> Result<Vec<Report>, Error> {
        let api = self.api.clone();
        self.wait(async move { report::every(&api).await })
    }

    fn notify(&self, notice: &Notice) -> Result<(), Error> {
        check_node(&notice.node)?;
        let (api, notices, notice) = (self.api.clone(), self.notices.clone(), notice.clone());
        self.wait(async move { notices.tell(&api, notice).await })
    }
}

/// Who writes what Fairlead does not.
fn not_ours(key: Key) -> Error {
    let reason = match key.kind() {
        Kind::Node => {
            "a Node is the kubelet's and the cluster's; only the lease and the report in it are ours"
        }
        Kind::PodStatus => "phase and addresses of a pod are written by the kubelet",
        Kind::Claim => "a claim is taken and released, so that two nodes cannot hold one CIDR",
        Kind::EndpointSlice => "EndpointSlices are kept by the cluster's own controller",
        Kind::Namespace
        | Kind::Pod
        | Kind::Service
        | Kind::Lease
        | Kind::NetworkPolicy
        | Kind::ClusterNetworkPolicy
        | Kind::ServiceCidr => "it is written by those who use the cluster",
    };
    Error::NotOurs { key, reason }
}

/// One object of the API, if it is there.
async fn get(api: &Api, resource: Resource, key: &Key) -> Result<Option<Item>, Error> {
    let call = Call::get(resource, key, api.namespace());
    match api.answer(&call).await {
        Ok(body) => match form::item(resource, &body) {
            Ok(item) => Ok(Some(item)),
            Err(reason) => Err(api.error(&call, Failure::Unreadable(reason))),
        },
        Err(failure) if failure.is_not_found() => Ok(None),
        Err(failure) => Err(api.error(&call, failure)),
    }
}

/// All objects of a resource.
async fn every_item(api: &Api, resource: Resource) -> Result<Vec<Item>, Error> {
    let (mut items, mut next) = (Vec::new(), None);
    loop {
        let call = Call::list(resource, api.namespace(), resource.page(), next.as_deref());
        let body = match api.answer(&call).await {
            Ok(body) => body,
            Err(Failure::Refused(status)) if resource.may_be_undefined() && status.is_undefined() => {
                return Ok(items);
            }
            Err(failure) => return Err(api.error(&call, failure)),
        };
        let page = form::page(resource, &body);
        let page = page.map_err(|reason| api.error(&call, Failure::Unreadable(reason)))?;
        items.extend(page.items);
        match page.next {
            Some(more) => next = Some(more),
            None => return Ok(items),
        }
    }
}

/// Writes a lease into its Node, or takes it out. True if there was one.
async fn put_lease(
    api: &Api,
    key: &Key,
    lease: Option<(&Lease, Version)>,
    expect: Expect,
) -> Result<bool, Error> {
    let (lease, version) = lease.unzip();
    let mut found = None;
    for _ in 0..MOST_RACES {
        let Some(node) = get(api, Resource::Nodes, key).await? else {
            check_expected(key, &Ok(None), expect)?;
            return match (lease, key) {
                (Some(_), Key::Lease(node)) => {
                    Err(Error::NoNode { key: key.clone(), node: node.to_string() })
                }
                _ => Ok(false),
            };
        };
        let there = own_part(&node, key);
        found = check_expected(key, &there, expect)?;
        let before = flannel_before(&there);
        if lease.is_some() && found == version {
            return Ok(true);
        }
        if lease.is_none() && (there == Ok(None) || before.is_member()) {
            return Ok(false);
        }
        let patch = json!({"metadata": {
            "resourceVersion": node.version, "uid": node.uid, "annotations": annotations(lease, before),
        }});
        let call = Call::patch_node_status(key, patch);
        match api.answer(&call).await {
            Ok(_) => return Ok(there != Ok(None)),
            // Somebody wrote the Node meanwhile, perhaps only its heartbeat.
            Err(failure) if failure.is_conflict() || failure.is_not_found() => {}
            Err(failure) => return Err(api.error(&call, failure)),
        }
    }
    Err(Error::Conflict { key: key.clone(), found })
}

/// What the lease that is there has to do with flannel; nothing if there is none, or none that can be read.
fn flannel_before(there: &Result<Option<Object>, ()>) -> Flannel {
    match there {
        Ok(Some(Object::Lease(lease))) => lease.flannel,
        _ => Flannel::Apart,
    }
}

/// What of a Node's annotations changes with its lease: the lease itself, and what flannel's nodes are told or are no
/// longer told.
fn annotations(lease: Option<&Lease>, before: Flannel) -> serde_json::Map<String, Value> {
    let told = match lease {
        Some(lease) if lease.flannel == Flannel::Told => Some(flannel::told(lease)),
        // What flannel itself said of this node, before it was changed over, is not true any more; but where Fairlead
        // routes nothing, flannel may be at work beside it.
        Some(lease) if before.is_member() => (lease.backend != Backend::None).then(flannel::untold),
        _ => matches!(before, Flannel::Told | Flannel::Overwritten).then(flannel::untold),
    };
    let own = (LEASE, lease.map(manifest::encode_spec));
    let all = [own].into_iter().chain(told.into_iter().flatten());
    all.map(|(key, text)| (key.to_owned(), text.into())).collect()
}

/// The object of that key in what the API server gave: an error if it is there and cannot be read.
fn own_part(item: &Item, key: &Key) -> Result<Option<Object>, ()> {
    if item.faults.iter().any(|(faulty, _)| faulty == key) {
        return Err(());
    }
    Ok(item.objects.iter().find(|object| object.key() == *key).cloned())
}

/// Looks, creates, looks again; see `overlap.rs`.
async fn take_claim(api: &Api, claim: &Claim) -> Result<Claimed, Error> {
    let key = Key::Claim(claim.cidr);
    let node = Key::Node(claim.node.clone());
    for _ in 0..MOST_RACES {
        let Some(item) = get(api, Resource::Nodes, &node).await? else {
            return Err(Error::NoNode { key, node: claim.node.to_string() });
        };
        let given = item
            .objects
            .iter()
            .any(|object| matches!(object, Object::Node(node) if node.pod_cidrs.contains(&claim.cidr)));
        let held = every_claim(api).await?;
        // One that we hold, or that lost and could not be taken back: a younger one is in nobody's way.
        let ours = |held: &&Held| held.cidr == claim.cidr && held.node.as_deref() == Some(&*claim.node);
        let mine = held.iter().find(ours).map(|held| held.version);
        match verdict(&held, claim.cidr, &claim.node, mine) {
            Some(lost) => {
                if mine.is_some() {
                    drop_claim(api, claim.cidr, &claim.node).await?;
                }
                return Ok(held_by(lost));
            }
            // What the cluster gave it, or what it has claimed before.
            None if given || mine.is_some() => return Ok(Claimed::Granted),
            None => {}
        }
        let call =
            Call::create(Resource::Claims, api.namespace(), claim::encode(claim, api.namespace(), &item.uid));
        let created = match api.answer(&call).await {
            Ok(body) => form::item(Resource::Claims, &body)
                .map_err(|reason| api.error(&call, Failure::Unreadable(reason)))?,
            // Another node was faster; or we were, by a request whose answer was lost.
            Err(failure) if failure.is_conflict() => continue,
            Err(failure) => return Err(api.error(&call, failure)),
        };
        let mine = created.version.parse().unwrap_or(u64::MAX);
        let looked = every_claim(api).await;
        let lost = match &looked {
            Ok(held) => verdict(held, claim.cidr, &claim.node, Some(mine)),
            // Not looked, not known: better none than one too many.
            Err(_) => None,
        };
        if looked.is_ok() && lost.is_none() {
            return Ok(Claimed::Granted);
        }
        let undo = Call::delete(Resource::Claims, &key, api.namespace(), &created.uid, &created.version);
        let undone = api.answer(&undo).await;
        let lost = lost.map(held_by);
        looked?;
        return match (undone, lost) {
            (Err(failure), _) if !failure.is_not_found() => Err(api.error(&undo, failure)),
            (_, Some(lost)) => Ok(lost),
            (_, None) => Ok(Claimed::Granted),
        };
    }
    Err(Error::Conflict { key, found: None })
}

/// All claims there are, also those that cannot be read.
async fn every_claim(api: &Api) -> Result<Vec<Held>, Error> {
    let items = every_item(api, Resource::Claims).await?;
    let held = items.into_iter().filter_map(|item| {
        let Some(Key::Claim(cidr)) = item.keys.first() else { return None };
        let node = item.objects.iter().find_map(|object| match object {
            Object::Claim(claim) => Some(claim.node.to_string()),
            _ => None,
        });
        // A version that is no number is none to win with.
        Some(Held { cidr: *cidr, node, version: item.version.parse().unwrap_or(0) })
    });
    Ok(held.collect())
}

/// Removes the node's own claim. True if there was one.
async fn drop_claim(api: &Api, cidr: IpNet, node: &str) -> Result<bool, Error> {
    let key = Key::Claim(cidr);
    for _ in 0..MOST_RACES {
        let Some(item) = get(api, Resource::Claims, &key).await? else { return Ok(false) };
        let ours = |object: &Object| matches!(object, Object::Claim(claim) if *claim.node == *node);
        if !item.objects.iter().any(ours) {
            return Ok(false);
        }
        let call = Call::delete(Resource::Claims, &key, api.namespace(), &item.uid, &item.version);
        match api.answer(&call).await {
            Ok(_) => return Ok(true),
            Err(failure) if failure.is_not_found() => return Ok(false),
            Err(failure) if failure.is_conflict() => {}
            Err(failure) => return Err(api.error(&call, failure)),
        }
    }
    Err(Error::Conflict { key, found: None })
}
