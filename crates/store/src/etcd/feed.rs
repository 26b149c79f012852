//! The objects of one part of etcd, listed once and then watched for ever.
//!
//! Read [`Feed::run`]. A list is of one revision, and the watch goes on from the next one. A stream that ends is taken up
//! again where it was, with another member if that one is gone; only if etcd no longer knows that revision everything
//! is listed again, to be compared by who receives it. Before, etcd is asked who it is: one that came back with other
//! data would never speak of what it has lost. It has lost something if it is another cluster, if its identity is gone
//! or another, or if its revisions or terms run backwards.
//!
//! A stream that is quiet may be one whose member was stopped or cut off from the others, so that member is asked now and
//! then beside it, unless it was heard a moment ago. Behind a balancer another member may answer that; but etcd says on
//! each stream that nothing has happened, every ten minutes, and a stream that does not is given up.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::flannel::hold::Hold;
use super::flannel::shown::Shown;
use super::form::{self, Happened, KeyValue, Line, Status, Transacted};
use super::gateway::{By, Call, Failure, Gateway, Stream, step};
use super::layout::{Keys, Part};
use super::listing::{Census, census, census_beside, every};
use crate::backoff::{self, Backoff};
use crate::manifest::Fault;
use crate::mirror::{self, Delta};
use crate::own;
use crate::transport::told;

type News = mirror::News<Part>;

/// The longest line that is read: etcd takes no request that is nearly as large.
const LONGEST_LINE: usize = 64 << 20;
/// A stream that ends sooner, having said nothing, counts as a failure.
const TOO_SOON: Duration = Duration::from_secs(2);
/// How long a stream may be quiet before its member is asked whether it is there, in seconds: spread out, so that those
/// of many agents do not ask together.
const QUIET: (u32, u32) = (15, 30);
/// How long a stream may say nothing at all: twice what etcd takes to say that nothing has happened, and a little.
const STILL: Duration = Duration::from_secs(23 * 60);

/// How far etcd is known.
pub(crate) struct Feed {
    gateway: Arc<Gateway>,
    keys: Keys,
    part: Part,
    /// What flannel's nodes are told by this process.
    held: Arc<Hold>,
    news: Sender<News>,
    /// Wakes those that wait for etcd as soon as one has reached it.
    reached: Arc<Notify>,
    backoff: Backoff,
    /// The revision to go on from; none if everything is to be listed.
    next: Option<u64>,
    /// Who etcd was when it was seen last.
    known: Option<Census>,
    /// Whether it is to be asked who it is, before a watch begins.
    suspect: bool,
    /// The last watch was refused for its revision, and none has told anything since.
    expired: bool,
    /// Whether anything was listed when it was listed last.
    had_items: bool,
    /// Which of flannel's keys show what.
    shown: Shown,
    strays: BTreeMap<PathBuf, Fault>,
    told_strays: bool,
}

/// Why a step came to nothing.
enum Trouble {
    /// Nobody wants news any more.
    Unwanted,
    /// Of etcd, or on the way there.
    Failed(Box<(Call, Failure)>),
    /// The revision is not known any more, or it is another etcd.
    Expired,
}

impl From<(Call, Failure)> for Trouble {
    fn from(failed: (Call, Failure)) -> Self {
        match failed {
            (_, Failure::Refused(status)) if status.is_compacted() => Self::Expired,
            failed => Self::Failed(Box::new(failed)),
        }
    }
}

/// Where a feed comes from.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) keys: Keys,
    pub(crate) held: Arc<Hold>,
}

impl Feed {
    pub(crate) fn new(
        Source { gateway, keys, held }: Source,
        part: Part,
        news: Sender<News>,
        reached: Arc<Notify>,
    ) -> Self {
        Self {
            keys,
            gateway,
            held,
            part,
            news,
            reached,
            backoff: Backoff::new(),
            next: None,
            known: None,
            suspect: false,
            expired: false,
            had_items: false,
            shown: Shown::default(),
            strays: BTreeMap::new(),
            told_strays: false,
        }
    }

    /// Lists and watches until nobody wants the news any more.
    pub(crate) async fn run(mut self) {
        loop {
            let done = match self.next {
                None => self.list().await,
                Some(_) if self.suspect => self.examine().await,
                Some(next) => self.watch(next).await,
            };
            match done {
                Ok(()) => {}
                Err(Trouble::Unwanted) => return,
                Err(Trouble::Expired) => self.expire().await,
                Err(Trouble::Failed(failed)) => {
                    let (call, failure) = *failed;
                    if self.failed(&call, failure).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Lets everything be listed again: at once, but not again and again.
    async fn expire(&mut self) {
        self.next = None;
        if std::mem::replace(&mut self.expired, true) {
            tokio::time::sleep(self.backoff.pause(backoff::Failure::Refused(None))).await;
        }
    }

    /// Everything there is.
    async fn list(&mut self) -> Result<(), Trouble> {
        let mut now = census(&self.gateway, &self.keys).await?;
        let revision = now.header.revision.0;
        let found = every(&self.gateway, &self.keys, self.part, revision).await?;
        // Without an identity, one that is empty may be any.
        let emptied = self.had_items && found.items.is_empty() && now.identity.is_none();
        let lost = emptied || self.known.as_ref().is_some_and(|known| has_lost(known, &now));
        self.had_items = !found.items.is_empty();
        if self.part == Part::Flannel {
            self.held.look_again();
        }
        if now.identity.is_none() {
            now.identity = self.identify().await;
        }
        self.known = Some(now);
        self.next = Some(revision + 1);
        self.suspect = false;
        self.reach();
        (self.shown, self.strays) = (found.shown, found.strays);
        self.told_strays = false;
        self.tell_strays()?;
        self.tell(News::Listed { part: self.part, items: found.items, lost })
    }

    /// Gives etcd an identity. One that we may not write to stays without.
    async fn identify(&self) -> Option<Vec<u8>> {
        let text = own::new_identity().ok()?.into_bytes();
        let key = self.keys.identity();
        let (compare, put, read) = (form::unchanged(&key, 0), step::put(&key, &text), step::read(&key));
        let call = Call::transaction(&[compare], &[put], &[read], format!("create {key}"));
        let done: Transacted = self.gateway.answer(&call).await.ok()?;
        if done.succeeded { Some(text) } else { done.into_read().pop().map(|kv| kv.value.0) }
    }

    /// Whether etcd, which may have been away, still has what it had.
    async fn examine(&mut self) -> Result<(), Trouble> {
        let now = census(&self.gateway, &self.keys).await?;
        self.suspect = false;
        match &mut self.known {
            Some(known) if has_lost(known, &now) => Err(Trouble::Expired),
            Some(known) => {
                known.header = now.header;
                known.identity = now.identity.or(known.identity.take());
                Ok(())
            }
            None => Err(Trouble::Expired),
        }
    }

    /// Every change from this revision on, until the stream ends.
    async fn watch(&mut self, next: u64) -> Result<(), Trouble> {
        // Whoever goes on after it looks first, and brings a token that is good.
        self.suspect = true;
        let call = Call::watch(&self.keys.folder_of(self.part), next);
        let mut stream = self.gateway.stream(&call).await.map_err(|failure| (call.clone(), failure))?;
        let started = Instant::now();
        let ended = self.read(&mut stream).await;
        self.tell(News::Doubted(self.part))?;
        let fruitful = started.elapsed() > TOO_SOON || self.next != Some(next);
        if fruitful {
            self.backoff.reset();
        }
        match ended {
            Broken::Unwanted => Err(Trouble::Unwanted),
            Broken::Expired => Err(Trouble::Expired),
            // A member ends, or the way to it; another may be there at once, and then nobody need hear of it.
            Broken::Cut(_) if fruitful => {
                self.gateway.turn_away(&stream.by);
                Ok(())
            }
            Broken::Refused(status) if fruitful && status.may_pass_soon() => {
                self.gateway.turn_away(&stream.by);
                Ok(())
            }
            Broken::Cut(reason) => {
                self.gateway.turn_away(&stream.by);
                Err((call, Failure::Unreachable(reason)).into())
            }
            Broken::Refused(status) => {
                // To a watch etcd says that it is denied also if only the token is too old.
                self.gateway.forget_token().await;
                Err((call, Failure::Refused(status)).into())
            }
            Broken::Unreadable(reason) => {
                // The same would come again.
                self.next = None;
                Err((call, Failure::Unreadable(reason)).into())
            }
        }
    }

    async fn read(&mut self, Stream { body, by }: &mut Stream) -> Broken {
        let (mut rest, mut said): (Vec<u8>, _) = (Vec::new(), Instant::now());
        let quiet = Duration::from_secs(self.backoff.spread(QUIET.0, QUIET.1).into());
        loop {
            let silent = || by.member().heard().map_or(said, |heard| heard.max(said)).elapsed();
            let frame = match timeout(quiet.saturating_sub(silent()), body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Broken::Cut(told(&error)),
                Ok(None) => return Broken::Cut("the watch ended".to_owned()),
                Err(_) if said.elapsed() > STILL => return Broken::Cut("the watch stands still".to_owned()),
                Err(_) if silent() < quiet => continue,
                Err(_) => match self.ask_beside(by).await {
                    Ok(()) => continue,
                    Err(broken) => return broken,
                },
            };
            said = Instant::now();
            let Ok(data) = frame.into_data() else { continue };
            rest.extend_from_slice(&data);
            let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            if whole > 0 {
                let taken = self.take_lines(rest.get(..whole).unwrap_or_default());
                rest.drain(..whole);
                // A large object that came once is no reason to keep room for another.
                rest.shrink_to(64 << 10);
                if let Err(broken) = taken {
                    return broken;
                }
            }
            if rest.len() > LONGEST_LINE {
                return Broken::Unreadable(format!("an event is longer than {LONGEST_LINE} bytes"));
            }
        }
    }

    /// Whether the stream's member still answers, and etcd is the one that it was.
    async fn ask_beside(&mut self, by: &By) -> Result<(), Broken> {
        match census_beside(&self.gateway, &self.keys, by).await {
            Ok(now) if self.known.as_ref().is_some_and(|known| has_lost(known, &now)) => Err(Broken::Expired),
            Ok(_) => Ok(()),
            Err((call, failure)) => Err(Broken::Cut(self.gateway.reason(&call, failure))),
        }
    }

    /// Takes whole lines; what they say before one that is an error counts.
    fn take_lines(&mut self, lines: &[u8]) -> Result<(), Broken> {
        let (mut deltas, mut end) = (Vec::new(), Ok(()));
        let filled = |line: &&[u8]| !line.trim_ascii().is_empty();
        for line in lines.split(|byte| *byte == b'\n').filter(filled) {
            match form::line(line) {
                // It costs etcd little to say so much, and then to end: no reason yet to come back at once.
                Ok(Line::Created) => {
                    self.tell(News::Reached(self.part)).map_err(|_| Broken::Unwanted)?;
                }
                Ok(Line::Events { events, fragment }) => {
                    self.take_events(events, fragment, &mut deltas);
                    self.reach();
                }
                Ok(Line::Progress { revision }) => {
                    self.advance(revision);
                    self.reach();
                }
                Ok(Line::Compacted) => end = Err(Broken::Expired),
                Ok(Line::Refused(status)) => end = Err(Broken::Refused(status)),
                Err(reason) => end = Err(Broken::Unreadable(reason)),
            }
            if end.is_err() {
                break;
            }
        }
        if !deltas.is_empty() {
            self.expired = false;
            self.tell(News::Changed(self.part, deltas)).map_err(|_| Broken::Unwanted)?;
        }
        self.tell_strays().map_err(|_| Broken::Unwanted)?;
        end
    }

    fn take_events(&mut self, events: Vec<Happened>, fragment: bool, deltas: &mut Vec<Delta>) {
        let mut newest = 0;
        for Happened { gone, kv } in events {
            newest = newest.max(kv.mod_revision.0);
            let place = String::from_utf8_lossy(&kv.key.0);
            if let Some(subnets) = self.keys.flannel().filter(|_| self.part == Part::Flannel) {
                self.held.look(subnets, &place, (!gone).then_some(&kv.value.0));
            }
            if gone {
                self.told_strays &= self.strays.remove(std::path::Path::new(&*place)).is_none();
                deltas.extend(self.gone(&place, &kv));
                continue;
            }
            match self.keys.item_of(self.part, &kv) {
                Ok(item) => deltas.extend(match self.keys.shown_by(self.part, &kv) {
                    Some((place, names)) => self.shown.set(&place, names, item),
                    None => Some(Delta::Set(item)),
                }),
                Err(stray) => {
                    self.strays.extend([*stray]);
                    self.told_strays = false;
                }
            }
        }
        // Of a fragment's last revision more may follow.
        if !fragment {
            self.advance(newest);
        }
    }

    /// What it comes to that a key is gone.
    fn gone(&mut self, place: &str, kv: &KeyValue) -> Option<Delta> {
        match self.part {
            Part::Of(kind) => self.keys.object(kind, place).map(|key| Delta::Gone(vec![key])),
            Part::Flannel => {
                let (place, names) = self.keys.shown_by(self.part, kv)?;
                self.shown.gone(&place, names)
            }
        }
    }

    /// Everything up to this revision is known.
    fn advance(&mut self, revision: u64) {
        self.next = self.next.max(Some(revision + 1));
        if let Some(known) = &mut self.known {
            known.header.revision = known.header.revision.max(form::Number(revision));
        }
    }

    /// etcd gave something to go on from, so whoever waits for it need wait no longer.
    fn reach(&mut self) {
        self.backoff.reset();
        self.reached.notify_waiters();
    }

    fn tell(&self, news: News) -> Result<(), Trouble> {
        self.news.send(news).map_err(|_| Trouble::Unwanted)
    }

    fn tell_strays(&mut self) -> Result<(), Trouble> {
        if !std::mem::replace(&mut self.told_strays, true) {
            self.tell(News::Strays(self.part, self.strays.clone()))?;
        }
        Ok(())
    }

    /// Tells what failed, and waits for as long as that calls for.
    async fn failed(&mut self, call: &Call, failure: Failure) -> Result<(), Trouble> {
        self.suspect = true;
        let kind = match &failure {
            Failure::Unreachable(_) => backoff::Failure::Unreachable,
            Failure::Refused(status) if status.may_pass_soon() => backoff::Failure::Unreachable,
            Failure::Refused(_) | Failure::Unknown(_) | Failure::Unreadable(_) => {
                backoff::Failure::Refused(None)
            }
        };
        let pause = self.backoff.pause(kind);
        let reason = self.gateway.reason(call, failure);
        self.tell(News::Failed(self.part, reason))?;
        // Whichever comes first; a refusal is not mended by another's success.
        match kind {
            backoff::Failure::Unreachable => drop(timeout(pause, self.reached.notified()).await),
            backoff::Failure::Refused(_) => tokio::time::sleep(pause).await,
        }
        Ok(())
    }
}

/// Whether etcd has not all that it had when it was seen before. Both were told by most of the members together, so none
/// of them lags behind.
fn has_lost(known: &Census, now: &Census) -> bool {
    known.header.cluster_id != now.header.cluster_id
        || now.header.revision < known.header.revision
        || now.header.raft_term < known.header.raft_term
        || (known.identity.is_some() && known.identity != now.identity)
}

/// Why the lines of a stream came to an end.
enum Broken {
    /// The connection ended, and why.
    Cut(String),
    /// What came is no line of a watch.
    Unreadable(String),
    /// etcd ended it.
    Refused(Status),
    /// etcd does not know the revision any more.
    Expired,
    /// Nobody wants to hear of them.
    Unwanted,
}
