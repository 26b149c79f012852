//! etcd as a store, for clusters without Kubernetes.
//!
//! Read [`Etcd`], then `layout.rs` (which key holds what), `feed.rs` (how it is listed and watched) and `gateway.rs` (how
//! it is asked). etcd is spoken to by its JSON gateway, with the HTTP stack that the Kubernetes store has; everything that
//! waits runs on one thread of its own.
//!
//! What Fairlead keeps, each under a key of its own below a prefix (`/fairlead`):
//!
//! - `nodes/`, `pods/`, ... are for people and programs to put: manifests as in a directory, YAML or JSON;
//! - `leases/NODE` is what a node published, `claims/ADDRESS-LENGTH` who has a pod CIDR;
//! - `reports/NODE` is how a node fares, and `events/NODE/...` what happened there, for an hour;
//! - `identity` is a random text, by which an etcd that lost its data is known.
//!
//! Where nodes of flannel are to be peers, flannel's own keys are read as well, and our node's kept among them
//! (`flannel.rs`).
//!
//! A node's lease has no time to live in etcd. With one, an outage of etcd that outlasts it would take every node's lease
//! at once, the moment etcd is back and before any agent could write, and traffic would stop for nothing. So a lease
//! stays until somebody deletes the Node: that a machine burnt down is known to those who look after it, and what it
//! had is in nobody's way meanwhile. A lease that goes for any other reason is written again by its own agent, which
//! keeps its routes and its pods' addresses.
//!
//! Writes are transactions that compare the revision at which the key was last written, so of any number of writers one
//! succeeds. Versions are digests of the content all the same, as in every store.
//!
//! etcd documentation v3.4 to v3.6: API guarantees, gRPC gateway, role-based access control.

use std::sync::Arc;
use std::sync::mpsc;

use cluster::{Claim, Flannel, Key, Kind, Object};
use ipnet::IpNet;
use serde_json::Value;
use tokio::sync::Notify;

use crate::manifest;
use crate::mirror::{Layout, Mirror, News};
use crate::overlap::{Held, held_by, verdict};
use crate::report::check_node;
use crate::runtime::{Runtime, Watching};
use crate::store::{check_expected, check_readable, check_reads_back, version_of};
use crate::{Claimed, Error, Events, Expect, Listing, Notice, Report, Store, Version};
use feed::{Feed, Source};
use flannel::hold::{Hold, hold, let_go};
use form::{KeyValue, Ranged, Transacted};
use gateway::{Call, Failure, Gateway, step};
use layout::{Keys, Part};

mod access;
mod feed;
mod flannel;
mod form;
mod gateway;
mod layout;
mod listing;
mod member;
mod report;

pub use access::{Access, Endpoints, Password, User};
pub use layout::read_watch;

/// How often a write that lost a race looks again. Each time, somebody else's write of the same key went through.
const MOST_RACES: usize = 32;

/// etcd.
#[derive(Debug)]
pub struct Etcd {
    gateway: Arc<Gateway>,
    keys: Keys,
    held: Arc<Hold>,
    told: Arc<report::Told>,
    runtime: Runtime,
}

impl Etcd {
    /// The etcd with these members. Asks nobody anything yet: an etcd that is away is no error.
    ///
    /// # Errors
    /// [`Error::Etcd`] if the files that `access` names cannot be read, or it does not fit the endpoints.
    pub fn open(endpoints: &Endpoints, access: Access) -> Result<Self, Error> {
        let runtime = Runtime::start("etcd")?;
        // What makes connections wants the runtime around it.
        let opened = {
            let _entered = runtime.enter();
            Gateway::open(endpoints.clone(), access)
        };
        let gateway = Arc::new(opened?);
        let keys = Keys::new(gateway.prefix(), gateway.flannel_prefix());
        let held = Arc::<Hold>::default();
        if let Some(subnets) = keys.flannel() {
            runtime.start_work(held.clone().keep(gateway.clone(), subnets.clone()));
        }
        Ok(Self { gateway, keys, held, told: Arc::default(), runtime })
    }

    /// What stands under a key that is none of Fairlead's; none if there is no such key.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; [`Error::Forbidden`]; [`Error::Unreadable`] for what is no text.
    pub fn text_of(&self, key: &str) -> Result<Option<String>, Error> {
        let key = key.to_owned();
        self.wait(|gateway, _| async move {
            let call = Call::get(&key);
            let found = gateway.ask::<Ranged>(&call).await?.kvs.pop();
            let text = found.map(|kv| String::from_utf8(kv.value.0)).transpose();
            text.map_err(|error| gateway.error(&call, Failure::Unreadable(error.to_string())))
        })
    }

    /// Does `work` on the runtime's thread and waits for what comes of it.
    fn wait<T, W>(&self, work: impl FnOnce(Arc<Gateway>, Keys) -> W) -> Result<T, Error>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let work = work(self.gateway.clone(), self.keys.clone());
        self.runtime.wait(|| self.gateway.server(), work)
    }
}

impl Store for Etcd {
    fn list(&self, kinds: &[Kind]) -> Result<Listing, Error> {
        let kinds = kinds.to_vec();
        self.wait(|gateway, keys| async move {
            let told = |(call, failure)| gateway.error(&call, failure);
            let now = listing::census(&gateway, &keys).await.map_err(told)?;
            let mut mirror = Mirror::new(&kinds, keys.clone());
            for part in keys.parts(&kinds) {
                let found =
                    listing::every(&gateway, &keys, part, now.header.revision.0).await.map_err(told)?;
                mirror.take(News::Strays(part, found.strays));
                mirror.take(News::Listed { part, items: found.items, lost: false });
            }
            let (snapshot, problems) = mirror.into_parts();
            Ok(Listing::new(snapshot, problems))
        })
    }

    fn watch(&self, kinds: &[Kind]) -> Result<Events, Error> {
        let (sender, news) = mpsc::channel();
        let reached = Arc::new(Notify::new());
        let (gateway, keys, held) = (self.gateway.clone(), self.keys.clone(), self.held.clone());
        let parts = self.keys.parts(kinds);
        if parts.contains(&Part::Flannel) {
            held.tell(sender.clone());
        }
        let source = Source { gateway, keys, held };
        let feed = |part| Feed::new(source.clone(), part, sender.clone(), reached.clone()).run();
        let mirror = Mirror::new(kinds, self.keys.clone());
        Ok(Box::new(Watching::start(&self.runtime, mirror, news, parts.into_iter().map(feed))))
    }

    fn confirm(&self, _: &Arc<str>, _: u64) -> bool {
        // Each kind has a stream of its own, and nothing is asked beside them.
        false
    }

    fn read(&self, key: &Key) -> Result<Option<(Object, Version)>, Error> {
        let key = key.clone();
        self.wait(|gateway, keys| async move {
            let Some(kv) = get(&gateway, &keys.of(&key)).await? else { return Ok(None) };
            let Ok(mut item) = keys.item(key.kind(), &kv) else { return Ok(None) };
            // What we write ourselves is as it stands, or we could not tell what to expect when we write it again.
            if !matches!(key.kind(), Kind::Lease | Kind::Claim | Kind::PodStatus) {
                let recalled = listing::recall(&gateway, &keys, &kv, &mut item).await;
                recalled.map_err(|(call, failure)| gateway.error(&call, failure))?;
                check_readable(&keys, &key, &item)?;
            }
            let object = item.objects.pop();
            Ok(object.map(|object| (object.clone(), version_of(&object))))
        })
    }

    fn write(&self, object: &Object, expect: Expect) -> Result<Version, Error> {
        let contents = manifest::encode(object);
        check_reads_back(object, &contents)?;
        let (key, version) = (object.key(), Version::of(&contents));
        let told = match object {
            Object::Lease(lease) if lease.flannel == Flannel::Told => Some(lease.clone()),
            _ => None,
        };
        let held = self.held.clone();
        self.wait(|gateway, keys| async move {
            // Flannel's nodes first: whether the subnet is this node's is decided there as well.
            if let (Some(lease), Some(subnets)) = (told, keys.flannel()) {
                let _turn = held.turn().await;
                hold(&gateway, subnets, &lease, true).await?;
                held.set(&lease);
            }
            put(&gateway, &keys, &key, Some((contents, version)), expect).await?;
            Ok(version)
        })
    }

    fn delete(&self, key: &Key, expect: Expect) -> Result<bool, Error> {
        let (key, held) = (key.clone(), self.held.clone());
        self.wait(|gateway, keys| async move {
            let removed = put(&gateway, &keys, &key, None, expect).await?;
            // The lease goes with its Node, and so does what else a node has here.
            if let Key::Lease(node) = &key {
                report::delete(&gateway, &keys, node).await?;
                let _turn = held.turn().await;
                held.forget(node);
                if let Some(subnets) = keys.flannel() {
                    let_go(&gateway, subnets, node).await?;
                }
            }
            Ok(removed)
        })
    }

    fn claim(&self, cidr: IpNet, node: &str) -> Result<Claimed, Error> {
        let claim = Claim { cidr, node: node.into() };
        let object = Object::from(claim.clone());
        let contents = manifest::encode(&object);
        check_reads_back(&object, &contents)?;
        self.wait(|gateway, keys| async move { take_claim(&gateway, &keys, &claim, &contents).await })
    }

    fn release(&self, cidr: IpNet, node: &str) -> Result<bool, Error> {
        let (key, node) = (Key::Claim(cidr), node.to_owned());
        self.wait(|gateway, keys| async move {
            for _ in 0..MOST_RACES {
                let Some(kv) = get(&gateway, &keys.of(&key)).await? else { return Ok(false) };
                match keys.read(&key, &kv.value.0) {
                    Ok(Object::Claim(claim)) if *claim.node == *node => {}
                    _ => return Ok(false),
                }
                if replace(&gateway, &keys.of(&key), kv.mod_revision.0, None).await? {
                    return Ok(true);
                }
            }
            Err(Error::Conflict { key, found: None })
        })
    }

    fn report(&self, report: &Report) -> Result<(), Error> {
        report.check()?;
        let report = report.clone();
        self.wait(|gateway, keys| async move { report::put(&gateway, &keys, &report).await })
    }

    fn reports(&self) -> Result<Vec<Report>, Error> {
        self.wait(|gateway, keys| async move { report::every(&gateway, &keys).await })
    }

    fn notify(&self, notice: &Notice) -> Result<(), Error> {
        check_node(&notice.node)?;
        let (told, notice) = (self.told.clone(), notice.clone());
        self.wait(|gateway, keys| async move { told.tell(&gateway, &keys, &notice).await })
    }
}

/// What a key holds, if it is there.
async fn get(gateway: &Gateway, key: &str) -> Result<Option<KeyValue>, Error> {
    Ok(gateway.ask::<Ranged>(&Call::get(key)).await?.kvs.pop())
}

/// Writes a key, or deletes it, if it was last written at this revision (0: is not there). False if it was not.
async fn replace(gateway: &Gateway, key: &str, revision: u64, value: Option<&[u8]>) -> Result<bool, Error> {
    let (step, verb) = match value {
        Some(value) => (step::put(key, value), "write"),
        None => (step::delete(key), "delete"),
    };
    let compare = form::unchanged(key, revision);
    let call = Call::transaction(&[compare], &[step], &[], format!("{verb} {key}"));
    Ok(gateway.ask::<Transacted>(&call).await?.succeeded)
}

/// Writes an object, or takes it away. True if there was one.
async fn put(
    gateway: &Gateway,
    keys: &Keys,
    key: &Key,
    object: Option<(Vec<u8>, Version)>,
    expect: Expect,
) -> Result<bool, Error> {
    let (contents, version) = object.unzip();
    let mut found = None;
    for _ in 0..MOST_RACES {
        let there = get(gateway, &keys.of(key)).await?;
        let revision = there.as_ref().map_or(0, |kv| kv.mod_revision.0);
        let read = there.map(|kv| keys.read(key, &kv.value.0)).transpose().map_err(drop);
        found = check_expected(key, &read, expect)?;
        let done = match &contents {
            Some(_) => found == version && revision != 0,
            None => revision == 0,
        };
        if done || replace(gateway, &keys.of(key), revision, contents.as_deref()).await? {
            return Ok(revision != 0);
        }
    }
    Err(Error::Conflict { key: key.clone(), found })
}

/// Looks, creates and looks again in one step; see `overlap.rs`. Two claims of one CIDR are one key, and of those that
/// overlap under different keys the one created first stays.
async fn take_claim(
    gateway: &Gateway,
    keys: &Keys,
    claim: &Claim,
    contents: &[u8],
) -> Result<Claimed, Error> {
    let key = Key::Claim(claim.cidr);
    let (folder, own) = (keys.folder(Kind::Claim), keys.of(&key));
    for _ in 0..MOST_RACES {
        let there = listing::folder(gateway, folder.clone()).await;
        let there = there.map_err(|(call, failure)| gateway.error(&call, failure))?;
        let written = there.iter().find(|kv| kv.key.0 == own.as_bytes()).map(|kv| kv.mod_revision.0);
        let there = claims(keys, there);
        // One that we hold, or that lost and could not be taken back: a younger one is in nobody's way.
        let ours = |held: &&Held| held.cidr == claim.cidr && held.node.as_deref() == Some(&*claim.node);
        let mine = there.iter().find(ours).map(|held| held.version);
        match (verdict(&there, claim.cidr, &claim.node, mine), written.filter(|_| mine.is_some())) {
            (Some(lost), Some(written)) if replace(gateway, &own, written, None).await? => {
                return Ok(held_by(lost));
            }
            // Somebody wrote it meanwhile.
            (Some(_), Some(_)) => continue,
            (Some(held), None) => return Ok(held_by(held)),
            (None, Some(_)) => return Ok(Claimed::Granted),
            (None, None) => {}
        }
        let (compare, steps): (_, [Value; 2]) =
            (form::unchanged(&own, 0), [step::put(&own, contents), step::read_folder(&folder)]);
        let call = Call::transaction(&[compare], &steps, &[], format!("create {own}"));
        let done: Transacted = gateway.ask(&call).await?;
        // Another was faster; or we were, by a request whose answer was lost.
        if !done.succeeded {
            continue;
        }
        let mine = done.header.revision.0;
        let now = claims(keys, done.into_read());
        let Some(lost) = verdict(&now, claim.cidr, &claim.node, Some(mine)) else {
            return Ok(Claimed::Granted);
        };
        replace(gateway, &own, mine, None).await?;
        return Ok(held_by(lost));
    }
    Err(Error::Conflict { key, found: None })
}

/// All claims there are, also those that cannot be read.
fn claims(keys: &Keys, there: Vec<KeyValue>) -> Vec<Held> {
    let held = there.into_iter().filter_map(|kv| {
        let Some(key @ Key::Claim(cidr)) = keys.object(Kind::Claim, &String::from_utf8_lossy(&kv.key.0))
        else {
            return None;
        };
        let node = match keys.read(&key, &kv.value.0) {
            Ok(Object::Claim(claim)) => Some(claim.node.to_string()),
            _ => None,
        };
        Some(Held { cidr, node, version: kv.create_revision.0 })
    });
    held.collect()
}
