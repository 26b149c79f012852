//! How nodes fare, and what happened on them, as keys of etcd.
//!
//! Read [`put`] and [`every`]: a report is kept as the directory keeps it, and lasts as long as the Node; an agent that is
//! dead is seen by what it said last. Then [`Told::tell`]: what happened is a key with a lease of an hour or a little more,
//! so it fades as Kubernetes' Events do, and the same again is counted in the key that is there.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use cluster::{Key, Kind};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::form::{self, Granted, KeyValue, Transacted};
use super::gateway::{Call, Gateway, step};
use super::layout::Keys;
use super::{get, listing};
use crate::manifest::OWN_API;
use crate::{Error, Notice, Report, Version, own};

/// How long it is told what happened at least, in seconds.
const TOLD_FOR: u32 = 3600;
/// For how long what happens is told with one and the same lease of etcd's, in seconds.
const SHARED_FOR: u32 = 600;
/// How often a notice is counted again because another was counted at the same time.
const MOST_RACES: usize = 8;

/// Keeps a report in the place of the one before.
pub(crate) async fn put(gateway: &Gateway, keys: &Keys, report: &Report) -> Result<(), Error> {
    let key = keys.report(&report.node);
    let call =
        Call::transaction(&[], &[step::put(&key, &own::encode_report(report))], &[], format!("write {key}"));
    gateway.ask::<Transacted>(&call).await.map(drop)
}

/// Takes away the report of a node that is gone.
pub(crate) async fn delete(gateway: &Gateway, keys: &Keys, node: &str) -> Result<(), Error> {
    let key = keys.report(node);
    let call = Call::transaction(&[], &[step::delete(&key)], &[], format!("delete {key}"));
    gateway.ask::<Transacted>(&call).await.map(drop)
}

/// What all nodes report that have a Node object.
pub(crate) async fn every(gateway: &Gateway, keys: &Keys) -> Result<Vec<Report>, Error> {
    let told = |(call, failure)| gateway.error(&call, failure);
    let nodes = listing::folder(gateway, keys.folder(Kind::Node)).await.map_err(told)?;
    let named = |kv: &KeyValue| match keys.object(Kind::Node, &String::from_utf8_lossy(&kv.key.0)) {
        Some(Key::Node(name)) => Some(name.to_string()),
        _ => None,
    };
    let nodes: BTreeSet<String> = nodes.iter().filter_map(named).collect();
    let folder = keys.report("");
    let reports = listing::folder(gateway, folder.clone()).await.map_err(told)?;
    let decoded = reports.into_iter().filter_map(|kv| {
        let key = String::from_utf8_lossy(&kv.key.0);
        let node = key.strip_prefix(&folder).filter(|node| nodes.contains(*node))?;
        Some(own::decode_report(node, Path::new(&*key), &kv.value.0))
    });
    Ok(decoded.collect())
}

/// The lease with which what happened is told.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<Option<(u64, Instant)>>);

impl Told {
    /// Tells what happened for the next hour.
    pub(crate) async fn tell(&self, gateway: &Gateway, keys: &Keys, notice: &Notice) -> Result<(), Error> {
        let is_old = self.known().is_some();
        match tell(gateway, keys, notice, self.lease(gateway).await?).await {
            // An etcd that was wiped or restored does not know it.
            Err(Error::Refused { .. }) if is_old => {
                *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
                tell(gateway, keys, notice, self.lease(gateway).await?).await
            }
            done => done,
        }
    }

    fn known(&self) -> Option<u64> {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.filter(|(_, granted)| granted.elapsed().as_secs() < SHARED_FOR.into()).map(|(id, _)| id)
    }

    async fn lease(&self, gateway: &Gateway) -> Result<u64, Error> {
        if let Some(id) = self.known() {
            return Ok(id);
        }
        let granted = Instant::now();
        let id = gateway.ask::<Granted>(&Call::grant(TOLD_FOR + SHARED_FOR)).await?.id.0;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((id, granted));
        Ok(id)
    }
}

async fn tell(gateway: &Gateway, keys: &Keys, notice: &Notice, lease: u64) -> Result<(), Error> {
    let Notice { node, warning, reason, message } = notice;
    let name = Version::of(format!("{warning}\0{reason}\0{message}").as_bytes());
    let key = keys.notice(node, &name.to_string());
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    for _ in 0..MOST_RACES {
        let before = get(gateway, &key).await?;
        let revision = before.as_ref().map_or(0, |kv| kv.mod_revision.0);
        let told: Value = before.and_then(|kv| serde_json::from_slice(&kv.value.0).ok()).unwrap_or_default();
        let value = json!({
            "apiVersion": OWN_API, "kind": "NodeEvent", "metadata": {"name": node},
            "type": if *warning { "Warning" } else { "Normal" }, "reason": reason, "message": message,
            "count": told["count"].as_u64().unwrap_or(0).saturating_add(1),
            "firstTimestamp": told["firstTimestamp"].as_str().unwrap_or(&now), "lastTimestamp": now,
        });
        let put = step::put_for_a_while(&key, format!("{value:#}\n").as_bytes(), lease);
        let call = Call::transaction(&[form::unchanged(&key, revision)], &[put], &[], format!("write {key}"));
        if gateway.ask::<Transacted>(&call).await?.succeeded {
            return Ok(());
        }
    }
    Err(Error::Conflict { key: Key::Node(node.as_str().into()), found: None })
}
