//! Our node's key among flannel's, kept for as long as there is an agent.
//!
//! Read [`Hold::keep`], then [`hold`]. Flannel's keys live for a day and are written anew in time, each time with a new
//! lease of etcd's; whose key goes is taken off by flannel's nodes. So ours is written with every start, every few hours,
//! and as soon as somebody else has changed or deleted it. A key without an end is a person's: it keeps a subnet for one
//! machine, so the key of the machine that takes it stays without an end.
//!
//! What stays true: a key is created only where there is none, and never replaced unless it is this machine's. Flannel's
//! nodes do not look again after they have created theirs, so where two overlap it is ours that goes.

use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cluster::Lease;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::super::form::{self, Granted, KeyValue, Transacted};
use super::super::gateway::{Call, Failure, Gateway, step};
use super::super::layout::Part;
use super::super::{MOST_RACES, listing, replace};
use super::{OURS, Said, Subnet, Subnets, told};
use crate::Error;
use crate::backoff::{self, Backoff};
use crate::manifest::Fault;
use crate::mirror::News;
use crate::transport::told as chain;

/// How long a key stays when nobody writes it anew, in seconds: flannel's own.
const DAY: u32 = 24 * 3600;

/// When it is written anew, in seconds: long before, and not by all nodes together.
const ANEW: (u32, u32) = (4 * 3600, 6 * 3600);

/// What this process keeps told.
#[derive(Debug, Default)]
pub(crate) struct Hold {
    lease: Mutex<Option<Arc<Lease>>>,
    /// Had by who works on the keys.
    turn: tokio::sync::Mutex<()>,
    /// Something happened to the key.
    looked_at: Notify,
    trouble: Mutex<Trouble>,
}

/// Why the key is not as it is to be, and who hears of that.
#[derive(Debug, Default)]
struct Trouble {
    fault: Option<(PathBuf, Fault)>,
    listeners: Vec<Sender<News<Part>>>,
}

impl Hold {
    fn lease(&self) -> Option<Arc<Lease>> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until nobody else of this process works on the keys: who keeps an older lease told would take the key of a newer one for
    /// a leftover.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// From now on this is kept told.
    pub(crate) fn set(&self, lease: &Lease) {
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(lease.clone()));
    }

    /// Nothing is, of that node.
    pub(crate) fn forget(&self, node: &str) {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner).take_if(|lease| *lease.node == *node);
    }

    /// A key was seen to hold this, or to be gone. What ends by itself is seen in the same way.
    pub(crate) fn look(&self, subnets: &Subnets, key: &str, value: Option<&[u8]>) {
        let Some(lease) = self.lease() else { return };
        let is_ours = subnets.key_of(&lease).as_deref() == Some(key);
        if is_ours && value != Some(told(&lease).to_string().as_bytes()) {
            self.looked_at.notify_one();
        }
    }

    /// All keys were read anew.
    pub(crate) fn look_again(&self) {
        self.looked_at.notify_one();
    }

    /// From now on whoever receives this news hears of it when the key cannot be kept.
    pub(crate) fn tell(&self, listener: Sender<News<Part>>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody may listen any more.
        let _ = listener.send(News::Troubled(Part::Flannel, trouble.fault.clone()));
        trouble.listeners.push(listener);
    }

    fn set_trouble(&self, fault: Option<(PathBuf, Fault)>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.fault != fault {
            trouble.fault.clone_from(&fault);
            trouble
                .listeners
                .retain(|listener| listener.send(News::Troubled(Part::Flannel, fault.clone())).is_ok());
        }
    }

    /// What is to be told of a failure. That etcd is away is told by whoever watches it.
    fn note(&self, subnets: &Subnets, lease: Option<&Lease>, done: &Result<(), Error>) {
        let place = || lease.and_then(|lease| subnets.key_of(lease)).unwrap_or_default().into();
        match done {
            Ok(()) => self.set_trouble(None),
            Err(Error::Unavailable { .. }) => {}
            Err(error) => {
                let fault = Fault::new(format!("is not kept for flannel's nodes: {}", chain(error)));
                let fault = fault.hint("without it they take this node off a day after it was last written");
                self.set_trouble(Some((place(), fault)));
            }
        }
    }

    /// Keeps it told until the thread ends.
    pub(crate) async fn keep(self: Arc<Self>, gateway: Arc<Gateway>, subnets: Subnets) {
        let mut backoff = Backoff::new();
        let mut pause = anew(&mut backoff);
        loop {
            // When it is quiet for so long, that alone is a reason to write.
            let renews = timeout(pause, self.looked_at.notified()).await.is_err();
            let turn = self.turn().await;
            let lease = self.lease();
            let done = match &lease {
                Some(lease) => hold(&gateway, &subnets, lease, renews).await,
                None => Ok(()),
            };
            drop(turn);
            self.note(&subnets, lease.as_deref(), &done);
            pause = match done {
                Ok(()) => {
                    backoff.reset();
                    anew(&mut backoff)
                }
                Err(Error::Unavailable { .. }) => backoff.pause(backoff::Failure::Unreachable),
                Err(_) => backoff.pause(backoff::Failure::Refused(None)),
            };
        }
    }
}

fn anew(backoff: &mut Backoff) -> Duration {
    Duration::from_secs(backoff.spread(ANEW.0, ANEW.1).into())
}

/// Has flannel's nodes told of this lease; `renews` says to write also what stands there already.
pub(crate) async fn hold(
    gateway: &Gateway,
    subnets: &Subnets,
    lease: &Lease,
    renews: bool,
) -> Result<(), Error> {
    let (Some(subnet), Some(key)) = (Subnet::of(lease), subnets.key_of(lease)) else { return Ok(()) };
    let value = told(lease).to_string();
    let mut renews = renews;
    for _ in 0..MOST_RACES {
        let there = listing::folder(gateway, subnets.folder().to_owned()).await;
        let there = there.map_err(|(call, failure)| gateway.error(&call, failure))?;
        let (mine, others): (Vec<KeyValue>, Vec<KeyValue>) =
            there.into_iter().partition(|kv| is_this_machines(kv, lease));
        let in_the_way = |kv: &&KeyValue| name(kv) == key || overlap(subnets, kv, &subnet);
        if let Some(other) = others.iter().find(in_the_way) {
            give_way(gateway, &mine, lease).await?;
            return Err(taken(gateway, &subnet, other));
        }
        let before = mine.iter().find(|kv| name(kv) == key);
        let stays = before.is_some_and(|kv| kv.lease.0 == 0);
        let is_told = before.is_some_and(|kv| kv.value.0 == value.as_bytes());
        if is_told && (stays || !renews) {
            let overlapped = mine.iter().any(|kv| name(kv) != key && overlap(subnets, kv, &subnet));
            drop_others(gateway, &mine, &key, lease).await?;
            if overlapped && !stays {
                // A key of other families for the same subnet is gone, and flannel's nodes take down with it what both said.
                let revision = before.map_or(0, |kv| kv.mod_revision.0);
                write_for_a_day(gateway, &key, revision, value.as_bytes()).await?;
            }
            return Ok(());
        }
        let revision = before.map_or(0, |kv| kv.mod_revision.0);
        let written = match stays {
            true => write(gateway, &key, revision, step::put(&key, value.as_bytes())).await,
            false => write_for_a_day(gateway, &key, revision, value.as_bytes()).await,
        };
        // Written or not, what stands there is looked at again: another may have come at the same time.
        if written? {
            renews = false;
        }
    }
    Err(Error::Conflict { key: cluster::Key::Lease(lease.node.clone()), found: None })
}

/// Writes the key, if it was last written at this revision. False if it was not.
async fn write(gateway: &Gateway, key: &str, revision: u64, put: Value) -> Result<bool, Error> {
    let call = Call::transaction(&[form::unchanged(key, revision)], &[put], &[], format!("write {key}"));
    Ok(gateway.ask::<Transacted>(&call).await?.succeeded)
}

/// The same, to end in a day. A lease of etcd's that the key did not get is given back: one that is refused tries again
/// and again, and each would stay for that day.
async fn write_for_a_day(gateway: &Gateway, key: &str, revision: u64, value: &[u8]) -> Result<bool, Error> {
    let granted = gateway.ask::<Granted>(&Call::grant(DAY)).await?.id.0;
    let written = write(gateway, key, revision, step::put_for_a_while(key, value, granted)).await;
    // Where there was no answer it may have been written, and the key would end with its lease.
    if !matches!(written, Ok(true) | Err(Error::Unavailable { .. })) {
        let call = Call::revoke(granted);
        // It ends by itself.
        let _: Result<Value, Failure> = gateway.answer(&call).await;
    }
    written
}

/// Takes away what flannel's nodes are told of a node of ours.
pub(crate) async fn let_go(gateway: &Gateway, subnets: &Subnets, node: &str) -> Result<(), Error> {
    let there = listing::folder(gateway, subnets.folder().to_owned()).await;
    for kv in there.map_err(|(call, failure)| gateway.error(&call, failure))? {
        if ours(&kv).as_deref() == Some(node) {
            take_back(gateway, &kv).await?;
        }
    }
    Ok(())
}

fn name(kv: &KeyValue) -> String {
    String::from_utf8_lossy(&kv.key.0).into_owned()
}

/// The node of ours that a key is of.
fn ours(kv: &KeyValue) -> Option<String> {
    Said::of(&kv.value.0).ok()?.ours
}

/// Whether a key is our node's, or is of the same machine while it was flannel's, or is kept for it.
fn is_this_machines(kv: &KeyValue, lease: &Lease) -> bool {
    let Ok(said) = Said::of(&kv.value.0) else { return false };
    match said.ours {
        Some(node) => *node == *lease.node,
        None => said.addresses.iter().any(|address| lease.underlay.contains(address)),
    }
}

fn overlap(subnets: &Subnets, kv: &KeyValue, subnet: &Subnet) -> bool {
    subnets.subnet(&name(kv)).is_some_and(|other| other.overlaps(subnet))
}

fn taken(gateway: &Gateway, subnet: &Subnet, by: &KeyValue) -> Error {
    let cidr = subnet.first().map(|cidr| cidr.to_string()).unwrap_or_default();
    let who = Said::of(&by.value.0).ok();
    let who = who.and_then(|said| said.ours.or_else(|| Some(said.addresses.first()?.to_string())));
    let reason = format!("{} is held by {}", name(by), who.as_deref().unwrap_or("somebody else"));
    Error::Refused {
        server: gateway.server(),
        verb: "give",
        what: format!("flannel's subnet {cidr}"),
        reason,
    }
}

/// What this machine had under other keys is free.
async fn drop_others(gateway: &Gateway, mine: &[KeyValue], key: &str, lease: &Lease) -> Result<(), Error> {
    for kv in mine.iter().filter(|kv| name(kv) != key) {
        // What a person keeps for it stays kept.
        if ours(kv).as_deref() == Some(&*lease.node) || kv.lease.0 != 0 {
            take_back(gateway, kv).await?;
        }
    }
    Ok(())
}

/// Another was there, or does not know of us.
async fn give_way(gateway: &Gateway, mine: &[KeyValue], lease: &Lease) -> Result<(), Error> {
    for kv in mine.iter().filter(|kv| ours(kv).as_deref() == Some(&*lease.node)) {
        take_back(gateway, kv).await?;
    }
    Ok(())
}

/// Deletes a key, or makes it again what a person had written. One that was changed meanwhile is left to whoever did.
async fn take_back(gateway: &Gateway, kv: &KeyValue) -> Result<(), Error> {
    let kept = (kv.lease.0 == 0).then(|| {
        let mut value: Value = serde_json::from_slice(&kv.value.0).unwrap_or_default();
        if let Some(value) = value.as_object_mut() {
            for key in [OURS, "BackendType", "BackendData", "BackendV6Data"] {
                value.remove(key);
            }
        }
        json!(value).to_string().into_bytes()
    });
    replace(gateway, &name(kv), kv.mod_revision.0, kept.as_deref()).await.map(drop)
}
