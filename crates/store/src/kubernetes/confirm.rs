//! Whether a watch has told what was there when somebody asked, though every resource has a watch of its own.
//!
//! Read [`Confirmer::run`]. The API server orders nothing between resources: a Pod may be told before the NetworkPolicy that
//! was there before it. So for the namespace of a pod it is asked once more what there is *now* of what decides about it; the
//! answer has everything that was written before the question, and of every object its version. Once the watches have told
//! that far, the question is answered, in one line with what they told.
//!
//! What stays true: versions are compared within a resource only; a question costs the API server three small lists
//! (metadata of the policies of one namespace, of the namespace, of the cluster's policies), and those that come together
//! share what they can; one that cannot be answered now is asked again, not dropped; a watch that does not tell what is known to
//! be there is one that was cut off without a word, and is made anew.
//!
//! What is not told by it: that something is gone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;

use super::api::{Api, Call, Failure};
use super::form;
use super::resource::Resource;
use crate::mirror;

type News = mirror::News<Resource>;

/// So long after a failure it is asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// So long a watch may take to tell what is there.
const BEHIND: Duration = Duration::from_secs(3);

/// So many watches one after the other.
const PATIENCE: usize = 2;

/// How far the watch of a resource has told.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    told: watch::Sender<u64>,
    defined: Notify,
    behind: Notify,
}

impl Progress {
    /// Everything up to this version has been told.
    pub(super) fn tell(&self, version: u64) {
        self.told.send_replace(version);
    }

    /// Waits until somebody has seen that the resource is defined, or so long.
    pub(super) async fn until_defined(&self, at_most: Duration) {
        // Whoever has not seen it yet goes on waiting.
        drop(timeout(at_most, self.defined.notified()).await);
    }

    /// Waits until somebody has seen that the watch does not tell what is there.
    pub(super) async fn until_behind(&self) {
        self.behind.notified().await;
    }

    /// Drops what was said of a watch before.
    pub(super) fn begin(&self) {
        std::pin::pin!(self.behind.notified()).as_mut().enable();
    }

    /// Waits until everything up to this version has been told; not for ever, for a server that was restored may never come
    /// so far.
    async fn reach(&self, version: u64) -> Result<(), Failure> {
        if *self.told.borrow() < version {
            self.defined.notify_one();
        }
        let mut told = self.told.subscribe();
        for _ in 0..PATIENCE {
            if timeout(BEHIND, told.wait_for(|told| *told >= version)).await.is_ok() {
                return Ok(());
            }
            self.behind.notify_one();
        }
        Err(Failure::Unreachable("its watch does not tell what its list says".to_owned()))
    }
}

/// Somebody wants to know of a namespace's pods that all about them has been told.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) number: u64,
    pub(super) namespace: Arc<str>,
}

/// Who answers.
pub(super) struct Confirmer {
    pub(super) api: Arc<Api>,
    pub(super) progress: Vec<(Resource, Arc<Progress>)>,
    pub(super) questions: mpsc::UnboundedReceiver<Question>,
    pub(super) news: Sender<News>,
}

impl Confirmer {
    /// Answers until nobody asks any more.
    pub(super) async fn run(mut self) {
        while let Some(first) = self.questions.recv().await {
            let (mut last, mut namespaces) = (first.number, BTreeSet::from([first.namespace]));
            loop {
                while let Ok(Question { number, namespace }) = self.questions.try_recv() {
                    last = number;
                    namespaces.insert(namespace);
                }
                match self.confirm(&namespaces).await {
                    Ok(()) => break,
                    // The watches ask the same server, and say what is wrong with it.
                    Err(_) => tokio::time::sleep(AGAIN).await,
                }
            }
            if self.news.send(News::Confirmed(last)).is_err() {
                return;
            }
        }
    }

    async fn confirm(&self, namespaces: &BTreeSet<Arc<str>>) -> Result<(), Failure> {
        for (resource, progress) in &self.progress {
            let mut newest = 0;
            let calls: Vec<Call> = match resource {
                Resource::ClusterNetworkPolicies => vec![Call::versions(*resource, None)],
                _ => namespaces.iter().map(|name| Call::versions(*resource, Some(name))).collect(),
            };
            for call in &calls {
                newest = newest.max(self.newest(*resource, call).await?);
            }
            progress.reach(newest).await?;
        }
        Ok(())
    }

    /// The newest version of an object among those that are listed.
    async fn newest(&self, resource: Resource, call: &Call) -> Result<u64, Failure> {
        let body = match self.api.answer(call).await {
            Ok(body) => body,
            Err(Failure::Refused(status)) if resource.may_be_undefined() && status.is_undefined() => {
                return Ok(0);
            }
            Err(failure) => return Err(failure),
        };
        let page = form::page(resource, &body).map_err(Failure::Unreadable)?;
        Ok(page.items.iter().filter_map(|item| item.version.parse().ok()).max().unwrap_or(0))
    }
}
