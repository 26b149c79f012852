//! Network policies in force: what the crate `policy` decides, kept in the kernel, and known to be there before a pod is
//! let in.
//!
//! Read [`start`], then `keeper.rs`, the thread that does it. It is not the loop of `reconcile.rs`: a look at the whole
//! node may take a tenth of a second, and a change of policies is to hold within milliseconds. So it has a netlink socket
//! and a channel of its own. What it needs of the store is told it by the one watch that the agent has (`feed.rs`).
//! Around it: `programmed.rs` (the table in the kernel), `attachments.rs` (what CNI plugins leave word of), `gate.rs` (who
//! asks before a pod's first packet), `sweep.rs` (connections that are not allowed any more), `counts.rs` and `flow_log.rs`
//! (what the kernel tells of verdicts). [`Policing`] is what the
//! rest of the agent has of it.
//!
//! What stays true:
//! - before the store has been read whole nothing in the kernel is changed: the rules of an agent before stay in force;
//! - the table is never emptied to be filled again: what it holds is read, and the difference made in one transaction;
//! - what fails leaves in force what was, is told, and is tried again;
//! - a pod is let in only if its policies are known to be in force.

mod attachments;
mod counts;
mod feed;
mod flow_log;
mod gate;
mod keeper;
mod programmed;
mod status;
mod sweep;

use std::path::Path;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};

use cluster::Enforcement;
use ipnet::IpNet;
use store::Store;

use crate::announce::Voice;
use crate::config::PolicyConfig;
use crate::door::Hearing;
use crate::report::told;
use crate::run::{Error, spawn};
use attachments::Attachments;
use gate::Gate;
use keeper::{Keeper, News};
use programmed::Programmed;

pub(crate) use counts::Counts;
pub(crate) use feed::{Feed, KINDS};
pub use gate::GateError;
pub use status::{PolicyChange, PolicyStatus};

/// What is needed to enforce policies.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    /// The node.
    pub(crate) node: &'a str,
    /// Where attachments and the socket are.
    pub(crate) state_dir: &'a Path,
    /// Whether pods are on a bridge.
    pub(crate) bridge: bool,
    /// What the configuration says.
    pub(crate) config: PolicyConfig,
    /// Where the addresses of pods here are likely to be.
    pub(crate) networks: Vec<IpNet>,
    /// What the agent watches; once more for policies alone, where they are switched on later.
    pub(crate) store: Arc<dyn Store>,
    /// To tell of what goes wrong.
    pub(crate) voice: Voice,
    /// What is to hear nothing of large changes.
    pub(crate) hearing: Hearing,
}

/// The rest of the agent's end.
#[derive(Debug, Clone)]
pub(crate) struct Policing {
    news: Sender<News>,
    status: Arc<Mutex<PolicyStatus>>,
    port: u32,
    store: Arc<dyn Store>,
    /// Whether the store's news of policies come at all: an agent that was started without does not ask for them until
    /// they are switched on.
    fed: bool,
    /// Why they do not, though they were asked for.
    unfed: Option<String>,
    config: PolicyConfig,
    /// What the keeper was last told of the node's standing.
    stands: Option<bool>,
}

/// Starts the threads that enforce policies.
pub(crate) fn start(parts: Parts<'_>) -> Result<Policing, Error> {
    let (news, heard) = mpsc::channel();
    let status = Arc::new(Mutex::new(PolicyStatus::default()));
    let attachments = Attachments::open(parts.state_dir)?;
    let gate = Gate::open(parts.state_dir)?;
    let mut programmed = Programmed::open().map_err(Error::policies)?.heard_by(parts.hearing);
    let port = programmed.port().map_err(Error::policies)?;
    let policing = Policing {
        news: news.clone(),
        status: Arc::clone(&status),
        port,
        store: parts.store.clone(),
        fed: parts.config.enforcement,
        unfed: None,
        config: parts.config.clone(),
        stands: None,
    };
    let unlogged = flow_log::start(&mut programmed, news.clone())?.err();
    let sweeper = sweep::start(news.clone(), parts.networks)?;
    let keeper = Keeper::new(keeper::Parts {
        node: parts.node.into(),
        bridge: parts.bridge,
        config: parts.config,
        store: parts.store,
        voice: parts.voice,
        attachments: attachments.clone(),
        programmed,
        sweeper,
        unlogged,
        status,
    });
    spawn("policies", move || keeper.run(&heard))?;
    let followed = news.clone();
    spawn("attachments", move || attachments.follow(&followed))?;
    spawn("gate", move || gate.serve(&news))?;
    Ok(policing)
}

/// Takes the table of policies out of the kernel, and what else there is of them; true if there was a table.
pub(crate) fn clean(state_dir: &Path) -> Result<bool, Error> {
    let removed = Programmed::open().and_then(|mut programmed| programmed.remove());
    gate::forget(state_dir);
    attachments::forget(state_dir);
    removed.map_err(Error::policies)
}

impl Policing {
    /// For the watch of the store.
    pub(crate) fn feed(&self) -> Feed {
        Feed::new(self.fed.then(|| self.news.clone()))
    }

    /// Has the store's news come, where they did not until now: by a watch of their own.
    fn feed_at_last(&mut self) {
        if self.fed || !self.config.enforcement {
            return;
        }
        let news = self.news.clone();
        let watch = self.store.watch(&feed::all_kinds()).map_err(Error::from);
        let fed = watch.and_then(|watch| spawn("store of policies", move || feed::feed(&news, watch)));
        self.fed = fed.is_ok();
        self.unfed = fed.err().map(|error| told(&error));
    }

    /// For who asks what was counted.
    pub(crate) fn counts(&self) -> Counts {
        Counts::new(self.news.clone())
    }

    /// The port by which the kernel names changes of the table that are the keeper's own.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Somebody else has changed the table, or may have.
    pub(crate) fn touched(&self) {
        self.tell(News::Touched);
    }

    /// Another configuration is in force.
    pub(crate) fn reconfigure(&mut self, config: &PolicyConfig) {
        if self.config != *config {
            self.config.clone_from(config);
            self.tell(News::Configured(config.clone()));
            self.feed_at_last();
        }
    }

    /// The node is part of the cluster, or has left it for good.
    pub(crate) fn stand(&mut self, stands: bool) {
        if self.stands != Some(stands) {
            self.stands = Some(stands);
            self.tell(News::Standing(stands));
        }
    }

    /// Whom the plugin has to ask before it lets a pod in.
    pub(crate) fn enforcement(&self) -> Option<Enforcement> {
        (self.fed && self.config.enforcement).then(|| Enforcement {
            socket: gate::SOCKET.into(),
            patience_milliseconds: self.config.attachment_patience_seconds.saturating_mul(1000),
        })
    }

    /// How it stands.
    pub(crate) fn status(&self) -> PolicyStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is wrong, for the node's problems.
    pub(crate) fn problem(&self) -> Option<String> {
        let reason = self.unfed.as_ref().filter(|_| self.config.enforcement)?;
        Some(format!("enforce network policies: {reason}\nhint: restart the agent"))
    }

    fn tell(&self, news: News) {
        // Without the keeper nothing is enforced anew, which its status says.
        let _ = self.news.send(news);
    }
}
