//! One resource of the API server, listed once and then watched for ever.
//!
//! Read [`Feed::run`]. A list comes in pages. The watch goes on from the list's version; bookmarks move that version on
//! while nothing happens, so a watch that ends, as all do after some minutes, is taken up again where it was, and
//! nothing is listed twice. Only if the server no longer knows that version (410) everything is listed again, to be
//! compared by who receives it. A server that was away may have lost its objects and would then never speak of them
//! again, so after a failure it is asked first, for one object, how far its versions are.
//!
//! What stays true: that there is none of a resource because nobody has defined it is believed only of a server that says what
//! it has defined. What an account may not read is a failure, but where an agent can do without it: that is told, asked for again
//! now and then, and what was known of it stays.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::task::Poll;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::api::{Api, Call, Failure};
use super::confirm::Progress;
use super::form::{self, Line, Status};
use super::resource::Resource;
use crate::backoff::{self, Backoff};
use crate::manifest::Fault;
use crate::mirror::{self, Delta};

type News = mirror::News<Resource>;

/// How long a watch is asked to last, in seconds.
const LASTS: (u32, u32) = (240, 480);
/// How much longer than it was asked to a watch may last.
const GRACE: Duration = Duration::from_secs(30);
/// The longest line that is read: no object of etcd is nearly as large.
const LONGEST_LINE: usize = 32 << 20;
/// How often, in seconds, it is asked whether a resource that nobody has defined is defined by now. Often at first: what
/// brings the definition may come along with the agents.
const DEFINED_AGAIN: [(u32, u32); 5] = [(1, 2), (2, 4), (4, 8), (8, 16), (20, 40)];
/// The same of a resource of the server's own, which comes with another server.
const BUILT_IN_AGAIN: (u32, u32) = (600, 1200);
/// How often, in seconds, one is asked for that may not be read; after that as seldom as one that comes with another server. The
/// rule may come along with the agents.
const ALLOWED_AGAIN: [(u32, u32); 5] = DEFINED_AGAIN;
/// A resource that every server has, and that every agent may read, whatever it reads besides.
const ALWAYS_DEFINED: Resource = Resource::Nodes;
/// A watch that ends sooner, having said nothing, counts as a failure.
const TOO_SOON: Duration = Duration::from_secs(2);

/// How far one resource is known.
pub(crate) struct Feed {
    api: Arc<Api>,
    resource: Resource,
    news: Sender<News>,
    /// Wakes those that wait for the server as soon as one has reached it.
    reached: Arc<Notify>,
    backoff: Backoff,
    /// The version to go on from; none if everything is to be listed.
    version: Option<String>,
    /// The newest version ever seen, where versions are numbers.
    newest: u64,
    /// Something failed since the last watch began.
    suspect: bool,
    /// The last watch was refused for its version, and none has told anything since.
    expired: bool,
    /// So often in a row nobody had defined the resource.
    undefined: usize,
    /// So often in a row the account was not allowed to read it.
    forbidden: usize,
    progress: Arc<Progress>,
}

/// Nobody wants news any more.
struct Unwanted;

/// Why a step came to nothing.
enum Trouble {
    Unwanted,
    /// Of the server, or on the way there.
    Failed(Box<(Call, Failure)>),
    /// The version is not known any more.
    Expired,
}

impl Trouble {
    fn failed(call: Call, failure: Failure) -> Self {
        Self::Failed(Box::new((call, failure)))
    }
}

impl From<Unwanted> for Trouble {
    fn from(Unwanted: Unwanted) -> Self {
        Self::Unwanted
    }
}

impl Feed {
    pub(crate) fn new(api: Arc<Api>, resource: Resource, news: Sender<News>, reached: Arc<Notify>) -> Self {
        let progress = Arc::default();
        Self {
            api,
            resource,
            news,
            reached,
            backoff: Backoff::new(),
            version: None,
            newest: 0,
            suspect: false,
            expired: false,
            undefined: 0,
            forbidden: 0,
            progress,
        }
    }

    /// How far it has told.
    pub(crate) fn progress(&self) -> (Resource, Arc<Progress>) {
        (self.resource, self.progress.clone())
    }

    /// Lists and watches until nobody wants the news any more.
    pub(crate) async fn run(mut self) {
        loop {
            let done = match self.version.clone() {
                None => self.list().await,
                Some(version) if self.suspect => self.examine(version).await,
                Some(version) => self.watch(version).await,
            };
            let went_on = match done {
                Ok(()) => Ok(()),
                Err(Trouble::Unwanted) => Err(Unwanted),
                Err(Trouble::Expired) => {
                    self.expire().await;
                    Ok(())
                }
                Err(Trouble::Failed(failed)) => {
                    let (call, failure) = *failed;
                    self.failed(&call, failure).await
                }
            };
            if went_on.is_err() {
                return;
            }
        }
    }

    /// Lets everything be listed again: at once, but not again and again.
    async fn expire(&mut self) {
        self.version = None;
        if std::mem::replace(&mut self.expired, true) {
            tokio::time::sleep(self.backoff.pause(backoff::Failure::Refused(None))).await;
        }
    }

    /// Everything there is.
    async fn list(&mut self) -> Result<(), Trouble> {
        let (mut items, mut next) = (Vec::new(), None);
        loop {
            let call = Call::list(self.resource, self.api.namespace(), self.resource.page(), next.as_deref());
            let body = match self.api.answer(&call).await {
                Ok(body) => body,
                // The pages' version is too old by now; what came so far is of no use.
                Err(Failure::Refused(status)) if next.is_some() && status.is_expired() => {
                    return Err(Trouble::Expired);
                }
                Err(failure) => return self.failed_or_lacking(call, failure).await,
            };
            let page = form::page(self.resource, &body);
            let page = page.map_err(|reason| Trouble::failed(call, Failure::Unreadable(reason)))?;
            drop(body);
            items.extend(page.items);
            if page.next.is_some() {
                next = page.next;
                continue;
            }
            let lost = self.is_behind(&page.version);
            self.newest = 0;
            self.advance(page.version);
            (self.suspect, self.undefined) = (false, 0);
            self.reach();
            self.tell(News::Listed { part: self.resource, items, lost })?;
            self.progress.tell(self.newest);
            return Ok(());
        }
    }

    /// What a request came to that failed: a resource that is not defined, or is no longer, is no failure, nor is one that may
    /// not be read where that is dispensable.
    async fn failed_or_lacking(&mut self, call: Call, failure: Failure) -> Result<(), Trouble> {
        match &failure {
            Failure::Refused(status) if status.is_undefined() && self.resource.may_be_undefined() => {
                self.wait_for_definition(call, failure).await
            }
            Failure::Refused(status) if status.is_forbidden() && self.resource.is_dispensable() => {
                self.wait_for_right(call, failure).await
            }
            _ => Err(Trouble::failed(call, failure)),
        }
    }

    /// The account may not read the resource. A server that has just started forbids everything until it knows its rules; so
    /// it is believed once it lets others be read, and the second time that it forbids this.
    async fn wait_for_right(&mut self, call: Call, failure: Failure) -> Result<(), Trouble> {
        self.version_now(ALWAYS_DEFINED).await?;
        let before = self.forbidden;
        self.forbidden = before.saturating_add(1);
        let Some(told_before) = before.checked_sub(1) else { return Ok(()) };
        // Nobody tells what becomes of it meanwhile.
        self.version = None;
        self.reach();
        let fault = Fault::new(self.api.reason(&call, failure));
        let place = self.resource.path(self.api.namespace()).into();
        self.tell(News::Troubled(self.resource, Some((place, fault))))?;
        if self.newest == 0 {
            // There may be some; but whoever waits for all that there is must not wait for what is not told.
            self.tell(News::Listed { part: self.resource, items: Vec::new(), lost: false })?;
        }
        self.tell(News::Reached(self.resource))?;
        let (least, most) = ALLOWED_AGAIN.get(told_before).copied().unwrap_or(BUILT_IN_AGAIN);
        tokio::time::sleep(Duration::from_secs(self.backoff.spread(least, most).into())).await;
        Ok(())
    }

    /// The account may read the resource after all.
    fn be_allowed(&mut self) -> Result<(), Unwanted> {
        match std::mem::take(&mut self.forbidden) {
            0 => Ok(()),
            _ => self.tell(News::Troubled(self.resource, None)),
        }
    }

    /// Nobody has defined the resource, so there are none of it. A server does not tell when that changes.
    async fn wait_for_definition(&mut self, call: Call, failure: Failure) -> Result<(), Trouble> {
        if self.undefined == 0 && self.is_known().await? {
            // Whoever says that it is not there is wrong, or about to learn of it.
            return Err(Trouble::failed(call, failure));
        }
        // A definition may also be gone because the server lost it, along with what was defined.
        let lost = self.newest > 0 && {
            let now = self.version_now(ALWAYS_DEFINED).await?;
            self.is_behind(&now)
        };
        (self.version, self.newest, self.suspect) = (None, 0, false);
        self.be_allowed()?;
        self.reach();
        self.tell(News::Listed { part: self.resource, items: Vec::new(), lost })?;
        self.tell(News::Reached(self.resource))?;
        let (least, most) = match self.resource.is_built_in() {
            true => BUILT_IN_AGAIN,
            false => DEFINED_AGAIN.get(self.undefined).or(DEFINED_AGAIN.last()).copied().unwrap_or_default(),
        };
        self.undefined = self.undefined.saturating_add(1);
        let pause = Duration::from_secs(self.backoff.spread(least, most).into());
        self.progress.until_defined(pause).await;
        Ok(())
    }

    /// Whether the server says itself that it knows the resource.
    async fn is_known(&self) -> Result<bool, Trouble> {
        if !self.known("/apis".to_owned()).await?.has_group_of(self.resource) {
            return Ok(false);
        }
        let (group, version) = (self.resource.group(), self.resource.version());
        let resources = self.known(format!("/apis/{group}/{version}")).await?;
        Ok(resources.has(self.resource))
    }

    /// What the server says of what it knows.
    async fn known(&self, path: String) -> Result<form::Known, Trouble> {
        let call = Call::known(path);
        match self.api.answer(&call).await {
            Ok(body) => {
                form::known(&body).map_err(|reason| Trouble::failed(call, Failure::Unreadable(reason)))
            }
            Err(failure) => Err(Trouble::failed(call, failure)),
        }
    }

    /// Whether the server that was away still has what it had.
    async fn examine(&mut self, version: String) -> Result<(), Trouble> {
        let now = match self.version_now(self.resource).await {
            Err(Trouble::Failed(failed)) => return self.failed_or_lacking(failed.0, failed.1).await,
            now => now?,
        };
        self.suspect = false;
        if self.is_behind(&now) {
            return Err(Trouble::Expired);
        }
        self.watch(version).await
    }

    /// How far the server's versions are, as the list of a resource says.
    async fn version_now(&self, of: Resource) -> Result<String, Trouble> {
        let call = Call::list(of, self.api.namespace(), 1, None);
        let body = match self.api.answer(&call).await {
            Ok(body) => body,
            Err(failure) => return Err(Trouble::failed(call, failure)),
        };
        let page = form::page(of, &body);
        Ok(page.map_err(|reason| Trouble::failed(call, Failure::Unreadable(reason)))?.version)
    }

    /// Every change after `version`, until the watch ends.
    async fn watch(&mut self, version: String) -> Result<(), Trouble> {
        let seconds = self.backoff.spread(LASTS.0, LASTS.1);
        let call = Call::watch(self.resource, self.api.namespace(), &version, seconds);
        let body = match self.api.stream(&call).await {
            Ok(body) => body,
            Err(Failure::Refused(status)) if status.is_expired() => return Err(Trouble::Expired),
            Err(failure) => return self.failed_or_lacking(call, failure).await,
        };
        let started = Instant::now();
        self.progress.begin();
        self.be_allowed()?;
        self.reach();
        self.tell(News::Reached(self.resource))?;
        let lasts = GRACE + Duration::from_secs(seconds.into());
        let progress = self.progress.clone();
        let read = timeout(lasts, unless(progress.until_behind(), self.read(body))).await;
        let ended = match read {
            Ok(Some(ended)) => ended,
            Ok(None) => Err(Broken::Cut("it does not tell what is there".to_owned())),
            Err(_) => Err(Broken::Cut("no end".to_owned())),
        };
        let fruitful = started.elapsed() > TOO_SOON || self.version.as_ref() != Some(&version);
        match ended {
            Ok(()) if fruitful => Ok(()),
            Ok(()) => Err(Trouble::failed(call, Failure::Unreachable("the watch ended at once".to_owned()))),
            // A server ends, or a way to it; another may be there at once, and then nobody need hear of it.
            Err(Broken::Cut(_)) if fruitful => {
                self.suspect = true;
                Ok(self.tell(News::Doubted(self.resource))?)
            }
            Err(Broken::Cut(reason)) => Err(Trouble::failed(call, Failure::Unreachable(reason))),
            Err(Broken::Unreadable(reason)) => {
                // The same would come again.
                self.version = None;
                Err(Trouble::failed(call, Failure::Unreadable(reason)))
            }
            Err(Broken::Refused(status)) => Err(Trouble::failed(call, Failure::Refused(status))),
            Err(Broken::Expired) => Err(Trouble::Expired),
            Err(Broken::Unwanted) => Err(Trouble::Unwanted),
        }
    }

    async fn read(&mut self, mut body: Incoming) -> Result<(), Broken> {
        let mut rest: Vec<u8> = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Broken::Cut(crate::transport::told(&error)))?;
            let Ok(data) = frame.into_data() else { continue };
            rest.extend_from_slice(&data);
            let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            if whole > 0 {
                let told = self.take_lines(rest.get(..whole).unwrap_or_default());
                rest.drain(..whole);
                // A large object that came once is no reason to keep room for another.
                rest.shrink_to(64 << 10);
                told?;
            }
            if rest.len() > LONGEST_LINE {
                return Err(Broken::Unreadable(format!("an event is longer than {LONGEST_LINE} bytes")));
            }
        }
        Ok(())
    }

    /// Takes whole lines; what they say before one that is an error counts.
    fn take_lines(&mut self, lines: &[u8]) -> Result<(), Broken> {
        let mut deltas = Vec::new();
        let mut end = Ok(());
        let filled = |line: &&[u8]| !line.trim_ascii().is_empty();
        for line in lines.split(|byte| *byte == b'\n').filter(filled) {
            match form::line(self.resource, line) {
                Ok(Line::Set(item)) => {
                    self.advance(item.version.clone());
                    deltas.push(Delta::Set(item));
                }
                Ok(Line::Gone { keys, version }) => {
                    self.advance(version);
                    deltas.push(Delta::Gone(keys));
                }
                Ok(Line::Bookmark { version }) => self.advance(version),
                Ok(Line::Error(status)) if status.is_expired() => end = Err(Broken::Expired),
                Ok(Line::Error(status)) => end = Err(Broken::Refused(status)),
                Err(reason) => end = Err(Broken::Unreadable(reason)),
            }
            if end.is_err() {
                break;
            }
        }
        self.expired &= end.is_err();
        if !deltas.is_empty() {
            self.tell(News::Changed(self.resource, deltas)).map_err(|Unwanted| Broken::Unwanted)?;
        }
        self.progress.tell(self.newest);
        end
    }

    fn advance(&mut self, version: String) {
        self.newest = self.newest.max(version.parse().unwrap_or(0));
        if !version.is_empty() {
            self.version = Some(version);
        }
    }

    /// Whether a version is older than one that was there before: what was seen then, the server does not have.
    fn is_behind(&self, version: &str) -> bool {
        version.parse().is_ok_and(|version: u64| version < self.newest)
    }

    fn tell(&self, news: News) -> Result<(), Unwanted> {
        self.news.send(news).map_err(|_| Unwanted)
    }

    fn reach(&mut self) {
        self.backoff.reset();
        self.reached.notify_waiters();
    }

    /// Tells what failed, and waits for as long as that calls for.
    async fn failed(&mut self, call: &Call, failure: Failure) -> Result<(), Unwanted> {
        self.suspect = true;
        let kind = match &failure {
            Failure::Unreachable(_) => backoff::Failure::Unreachable,
            Failure::Unreadable(_) => backoff::Failure::Refused(None),
            Failure::Refused(status) => backoff::Failure::Refused(
                status.retry_after().map(|seconds| Duration::from_secs(seconds.into())),
            ),
        };
        let pause = self.backoff.pause(kind);
        let reason = self.api.reason(call, failure);
        self.tell(News::Failed(self.resource, reason))?;
        // Whichever comes first; a refusal is this resource's own, and not mended by another's success.
        match kind {
            backoff::Failure::Unreachable => drop(timeout(pause, self.reached.notified()).await),
            backoff::Failure::Refused(_) => tokio::time::sleep(pause).await,
        }
        Ok(())
    }
}

/// Does `work` unless something else happens first.
async fn unless<T>(end: impl Future<Output = ()>, work: impl Future<Output = T>) -> Option<T> {
    let (mut end, mut work) = (pin!(end), pin!(work));
    poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => end.as_mut().poll(context).map(|()| None),
    })
    .await
}

/// Why the lines of a watch came to an end.
enum Broken {
    /// The connection ended, and why.
    Cut(String),
    /// What came is no line of a watch.
    Unreadable(String),
    /// The server ended it.
    Refused(Status),
    /// The server does not know the version any more.
    Expired,
    /// Nobody wants to hear of them.
    Unwanted,
}
