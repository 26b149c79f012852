//! Everything that etcd holds of one kind, at one revision.
//!
//! Read [`every`]. Keys come in pages, all of the revision that the first one told, so the whole is what etcd held at one
//! time. What cannot be read is looked for in etcd's own past, so that its last good version is in force also for those
//! who come later.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::flannel::shown::Shown;
use super::form::{Header, KeyValue, Ranged, Status};
use super::gateway::{By, Call, Failure, Gateway};
use super::layout::{Keys, Part};
use crate::manifest::Fault;
use crate::mirror::Item;

/// How many keys to ask for at once.
const PAGE: u32 = 250;
/// How many versions to look back for a good one.
const LOOK_BACK: usize = 8;

/// What was found.
#[derive(Debug)]
pub(crate) struct Everything {
    pub(crate) items: Vec<Item>,
    /// Of flannel's part, which key shows what.
    pub(crate) shown: Shown,
    /// The keys that stand for no object, and why.
    pub(crate) strays: BTreeMap<PathBuf, Fault>,
}

/// Who etcd is at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) header: Header,
    /// The text that no other store has; none if nobody has given it one.
    pub(crate) identity: Option<Vec<u8>>,
}

impl Census {
    fn of(Ranged { header, mut kvs, .. }: Ranged) -> Self {
        Self { header, identity: kvs.pop().map(|kv| kv.value.0) }
    }
}

/// A call, and what came of it.
pub(crate) type Failed = (Call, Failure);

/// Asks most of the members together who they are, and how far.
pub(crate) async fn census(gateway: &Gateway, keys: &Keys) -> Result<Census, Failed> {
    let call = Call::get(&keys.identity());
    let answer = gateway.answer(&call).await;
    answer.map(Census::of).map_err(|failure| (call, failure))
}

/// The same by the member that a stream comes from.
pub(crate) async fn census_beside(gateway: &Gateway, keys: &Keys, by: &By) -> Result<Census, Failed> {
    let call = Call::get(&keys.identity());
    let answer = gateway.answer_beside(by, &call).await;
    answer.map(Census::of).map_err(|failure| (call, failure))
}

/// All objects of a part at a revision.
pub(crate) async fn every(
    gateway: &Gateway,
    keys: &Keys,
    part: Part,
    revision: u64,
) -> Result<Everything, Failed> {
    let mut found = Everything { items: Vec::new(), shown: Shown::default(), strays: BTreeMap::new() };
    let mut pages = Pages::of(keys.folder_of(part), revision);
    while let Some(page) = pages.next(gateway).await? {
        for kv in page {
            match keys.item_of(part, &kv) {
                Ok(mut item) => {
                    recall(gateway, keys, &kv, &mut item).await?;
                    match keys.shown_by(part, &kv) {
                        Some((place, names)) => drop(found.shown.set(&place, names, item)),
                        None => found.items.push(item),
                    }
                }
                Err(stray) => found.strays.extend([*stray]),
            }
        }
    }
    found.items.extend(found.shown.items());
    Ok(found)
}

/// All keys of a folder as they are now.
pub(crate) async fn folder(gateway: &Gateway, folder: String) -> Result<Vec<KeyValue>, Failed> {
    let (mut pages, mut found) = (Pages::of(folder, 0), Vec::new());
    while let Some(page) = pages.next(gateway).await? {
        found.extend(page);
    }
    Ok(found)
}

/// A folder, page by page.
#[derive(Debug)]
struct Pages {
    folder: String,
    /// The revision of all pages; 0 until the first one has told it.
    revision: u64,
    /// The key to go on from; none after the last page.
    from: Option<Vec<u8>>,
    limit: u32,
}

impl Pages {
    fn of(folder: String, revision: u64) -> Self {
        let from = Some(folder.clone().into_bytes());
        Self { folder, revision, from, limit: PAGE }
    }

    async fn next(&mut self, gateway: &Gateway) -> Result<Option<Vec<KeyValue>>, Failed> {
        loop {
            let Some(from) = &self.from else { return Ok(None) };
            let call = Call::list(&self.folder, from, Some(self.revision), self.limit);
            let page = match gateway.answer::<Ranged>(&call).await {
                Ok(page) => page,
                // What is too large to be told at once is told in smaller parts.
                Err(Failure::Refused(status)) if status.code == Status::EXHAUSTED && self.limit > 1 => {
                    self.limit /= 2;
                    continue;
                }
                Err(failure) => return Err((call, failure)),
            };
            if self.revision == 0 {
                self.revision = page.header.revision.0;
            }
            // The first key after the last one.
            self.from = page.kvs.last().filter(|_| page.more).map(|last| [&last.key.0[..], b"\0"].concat());
            return Ok(Some(page.kvs));
        }
    }
}

/// Looks for what a key that cannot be read said last before. etcd may have forgotten it, and then there is nothing to go
/// back to; any other failure is one of the whole, or an object that is there would pass for none.
///
/// # Errors
/// What etcd said, but that it has forgotten.
pub(crate) async fn recall(
    gateway: &Gateway,
    keys: &Keys,
    kv: &KeyValue,
    item: &mut Item,
) -> Result<(), Failed> {
    let ([(key, _)], []) = (&item.faults[..], &item.objects[..]) else { return Ok(()) };
    let key = key.clone();
    let (mut revision, created) = (kv.mod_revision.0, kv.create_revision.0);
    for _ in 0..LOOK_BACK {
        if revision <= created {
            break;
        }
        let call = Call::get_at(&kv.key.0, revision - 1);
        let mut found: Ranged = match gateway.answer(&call).await {
            Ok(found) => found,
            Err(Failure::Refused(status)) if status.is_compacted() => break,
            Err(failure) => return Err((call, failure)),
        };
        let Some(before) = found.kvs.pop() else { break };
        if let Ok(object) = keys.read(&key, &before.value.0) {
            item.objects.push(object);
            break;
        }
        revision = before.mod_revision.0;
    }
    Ok(())
}
