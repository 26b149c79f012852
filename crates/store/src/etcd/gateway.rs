//! Requests to etcd, and what comes of them.
//!
//! Read [`Call`], then [`Gateway::answer`] and [`Gateway::stream`]. A member that does not answer is left for the next; a
//! request that may have been carried out already is then not sent again, for nobody could say what came of it. A token
//! that is refused is asked for anew, once. Every request demands that its member has a leader: one that was cut off
//! from the others would tell old news for ever.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Method, Request, Response};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::access::{Access, Endpoints, User};
use super::form::{self, Authenticated, Status};
use super::member::{Member, Members, Silent};
use crate::transport::{told, whole};
use crate::{Error, Version};

/// How long to wait for the head of an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest answer that is read: a page of the largest values that etcd takes.
const LARGEST: usize = 1 << 30;
/// The largest refusal that is read.
const LARGEST_REFUSAL: usize = 1 << 20;
/// How old connections must be to be made anew because nobody answers: certificates may have changed, but not with every
/// try.
const STALE: Duration = Duration::from_secs(10);
/// For how long a password that etcd did not take is not tried again: it takes its time over one, and there are many who
/// ask. A password that was replaced is tried at once.
const WRONG_FOR: Duration = Duration::from_secs(5);

/// One request. Shows no body: one of them holds the password.
#[derive(Clone)]
pub(crate) struct Call {
    path: &'static str,
    body: String,
    /// What it does, for people.
    what: String,
    /// Whether it may be sent twice.
    repeatable: bool,
}

impl fmt::Debug for Call {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = out.debug_struct("Call");
        out.field("path", &self.path).field("what", &self.what).field("repeatable", &self.repeatable);
        out.finish_non_exhaustive()
    }
}

impl Call {
    /// The value of one key.
    pub(crate) fn get(key: &str) -> Self {
        Self::range(json!({"key": form::raw(key)}), format!("read {key}"))
    }

    /// The value that one key had at a revision.
    pub(crate) fn get_at(key: &[u8], revision: u64) -> Self {
        let what = format!("read {} at revision {revision}", String::from_utf8_lossy(key));
        Self::range(json!({"key": form::raw(key), "revision": revision.to_string()}), what)
    }

    /// At most `limit` keys from `from` up to the end of `folder`; at a revision, or as they are now.
    pub(crate) fn list(folder: &str, from: &[u8], revision: Option<u64>, limit: u32) -> Self {
        let body = json!({
            "key": form::raw(from), "range_end": form::raw(form::end_of(folder)), "limit": limit,
            "revision": revision.unwrap_or(0).to_string(),
        });
        Self::range(body, format!("list {folder}"))
    }

    /// Several steps at once, or others if not all is as it is to be.
    pub(crate) fn transaction(compare: &[Value], success: &[Value], failure: &[Value], what: String) -> Self {
        let body = json!({"compare": compare, "success": success, "failure": failure}).to_string();
        Self { path: "/v3/kv/txn", body, what, repeatable: false }
    }

    /// What happens to the keys of a folder from this revision on. The gateway takes one watch in each stream: with the
    /// first word of its answer it stops listening.
    pub(crate) fn watch(folder: &str, revision: u64) -> Self {
        let request = json!({
            "key": form::raw(folder), "range_end": form::raw(form::end_of(folder)),
            "start_revision": revision.to_string(), "progress_notify": true, "fragment": true,
        });
        let body = json!({"create_request": request}).to_string();
        Self { path: "/v3/watch", body, what: format!("watch {folder}"), repeatable: true }
    }

    /// A lease of etcd's that ends after so many seconds. One that nobody uses ends as well.
    pub(crate) fn grant(seconds: u32) -> Self {
        let body = json!({"TTL": seconds.to_string()}).to_string();
        Self { path: "/v3/lease/grant", body, what: "be granted a lease".to_owned(), repeatable: true }
    }

    /// Ends a lease of etcd's, and what goes with it.
    pub(crate) fn revoke(lease: u64) -> Self {
        let body = json!({"ID": lease.to_string()}).to_string();
        Self { path: "/v3/lease/revoke", body, what: "end a lease".to_owned(), repeatable: true }
    }

    fn range(body: Value, what: String) -> Self {
        Self { path: "/v3/kv/range", body: body.to_string(), what, repeatable: true }
    }

    fn authenticate(user: &User) -> Result<Self, String> {
        let body = json!({"name": user.name, "password": user.password.read()?}).to_string();
        let what = format!("authenticate as {}", user.name);
        Ok(Self { path: "/v3/auth/authenticate", body, what, repeatable: true })
    }

    fn request(&self, token: Option<&HeaderValue>) -> Result<Request<Full<Bytes>>, http::Error> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(self.path)
            .header(CONTENT_TYPE, "application/json")
            .header("Grpc-Metadata-hasleader", "true")
            .header(USER_AGENT, concat!("fairlead/", env!("CARGO_PKG_VERSION")));
        let request = token.iter().fold(request, |request, token| request.header(AUTHORIZATION, *token));
        request.body(Full::from(self.body.clone()))
    }
}

/// Steps of a transaction.
pub(crate) mod step {
    use serde_json::{Value, json};

    use super::form::raw;

    pub(crate) fn put(key: &str, value: &[u8]) -> Value {
        json!({"request_put": {"key": raw(key), "value": raw(value)}})
    }

    /// A value that goes with a lease of etcd's.
    pub(crate) fn put_for_a_while(key: &str, value: &[u8], lease: u64) -> Value {
        json!({"request_put": {"key": raw(key), "value": raw(value), "lease": lease.to_string()}})
    }

    pub(crate) fn delete(key: &str) -> Value {
        json!({"request_delete_range": {"key": raw(key)}})
    }

    pub(crate) fn read_folder(folder: &str) -> Value {
        json!({"request_range": {"key": raw(folder), "range_end": raw(super::form::end_of(folder))}})
    }

    pub(crate) fn read(key: &str) -> Value {
        json!({"request_range": {"key": raw(key)}})
    }
}

/// Why there is no good answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nobody answered, or not to the end.
    Unreachable(String),
    /// etcd refused.
    Refused(Status),
    /// etcd does not know us.
    Unknown(String),
    /// The answer is none.
    Unreadable(String),
}

/// An answer that is a good one as far as its head tells.
#[derive(Debug)]
struct Answered {
    response: Response<Incoming>,
    by: By,
}

/// An answer as it comes, and from whom.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) body: Incoming,
    pub(crate) by: By,
}

/// A member that answers.
#[derive(Debug)]
pub(crate) struct By {
    members: Arc<Members>,
    number: usize,
}

impl By {
    pub(crate) fn member(&self) -> &Member {
        self.members.turn(self.number)
    }
}

/// What a member has to say instead of an answer.
enum Refusal {
    Said(Status),
    /// Nothing. It may have got the request, if it was asked.
    Silent {
        reason: String,
        asked: bool,
    },
}

impl Refusal {
    fn into_failure(self) -> Failure {
        match self {
            Self::Said(status) => Failure::Refused(status),
            Self::Silent { reason, .. } => Failure::Unreachable(reason),
        }
    }
}

/// Asks one member.
async fn ask(
    member: &Member,
    call: &Call,
    token: Option<&HeaderValue>,
) -> Result<Response<Incoming>, Refusal> {
    let silent = |reason, asked| Refusal::Silent { reason: format!("{}: {reason}", member.url), asked };
    let request = call.request(token).map_err(|error| silent(error.to_string(), false))?;
    match timeout(PATIENCE, member.send(request)).await {
        Ok(Ok(response)) if response.status().is_success() => Ok(response),
        Ok(Ok(response)) => Err(Refusal::Said(refusal(response).await)),
        Ok(Err(Silent { reason, asked })) => Err(silent(reason, asked)),
        Err(_) => Err(silent(format!("no answer within {} s", PATIENCE.as_secs()), true)),
    }
}

/// By what etcd knows us.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// It was not asked yet, or what it gave is good no more.
    None,
    /// It wants to know nobody.
    NotNeeded,
    /// It did not take this password, and said why.
    Wrong {
        password: Tried,
        reason: String,
        at: Instant,
    },
    Value(HeaderValue),
}

/// A password by its digest, which nobody need see.
#[derive(Clone, PartialEq, Eq)]
struct Tried(Version);

impl fmt::Debug for Tried {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Tried(..)")
    }
}

/// etcd, by all its members.
#[derive(Debug)]
pub(crate) struct Gateway {
    endpoints: Endpoints,
    access: Access,
    members: Mutex<Arc<Members>>,
    /// The member that answered last.
    current: AtomicUsize,
    /// One at a time asks for a token: etcd takes its time over a password.
    token: tokio::sync::Mutex<Token>,
}

impl Gateway {
    /// Reads what tells the way. Needs a runtime around it.
    pub(crate) fn open(endpoints: Endpoints, access: Access) -> Result<Self, Error> {
        let access = access.checked(&endpoints)?;
        let members = Members::open(&endpoints, &access).map_err(|error| Error::Etcd {
            endpoints: endpoints.to_string(),
            reason: told(&*error),
            hint: "FAIRLEAD_ETCD_CA, FAIRLEAD_ETCD_CERT and FAIRLEAD_ETCD_KEY name files in PEM form",
        })?;
        let (members, current) = (Mutex::new(Arc::new(members)), AtomicUsize::new(0));
        Ok(Self { endpoints, access, members, current, token: tokio::sync::Mutex::new(Token::None) })
    }

    /// What all keys begin with.
    pub(crate) fn prefix(&self) -> &str {
        &self.access.prefix
    }

    /// What flannel's keys begin with, where its nodes are peers.
    pub(crate) fn flannel_prefix(&self) -> Option<&str> {
        self.access.flannel_prefix.as_deref()
    }

    /// etcd, as people know it.
    pub(crate) fn server(&self) -> String {
        format!("etcd {}", self.endpoints)
    }

    /// The whole answer, taken apart.
    pub(crate) async fn answer<T: DeserializeOwned>(&self, call: &Call) -> Result<T, Failure> {
        let answered = self.send(call).await?;
        let body = whole(answered.response, LARGEST).await.map_err(Failure::Unreachable)?;
        form::answer(&body).map_err(Failure::Unreadable)
    }

    /// The answer, or the error to give to whoever asked the store.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, call: &Call) -> Result<T, Error> {
        self.answer(call).await.map_err(|failure| self.error(call, failure))
    }

    /// The answer as it comes.
    pub(crate) async fn stream(&self, call: &Call) -> Result<Stream, Failure> {
        let Answered { response, by } = self.send(call).await?;
        Ok(Stream { body: response.into_body(), by })
    }

    /// The whole answer of the member that a stream comes from, and of no other.
    pub(crate) async fn answer_beside<T: DeserializeOwned>(
        &self,
        stream: &By,
        call: &Call,
    ) -> Result<T, Failure> {
        let token = self.token_but(None).await?;
        let response = ask(stream.member(), call, token.as_ref()).await.map_err(Refusal::into_failure)?;
        let body = whole(response, LARGEST).await.map_err(Failure::Unreachable)?;
        form::answer(&body).map_err(Failure::Unreadable)
    }

    /// The next request goes to another member, unless somebody else has turned away from this one already.
    pub(crate) fn turn_away(&self, by: &By) {
        let next = by.number.wrapping_add(1);
        let _ = self.current.compare_exchange(by.number, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The next request brings a new token.
    pub(crate) async fn forget_token(&self) {
        *self.token.lock().await = Token::None;
    }

    /// Sends with a token, and once more with a new one if that was refused.
    async fn send(&self, call: &Call) -> Result<Answered, Failure> {
        let token = self.token_but(None).await?;
        match self.send_as(call, token.as_ref()).await {
            Err(Failure::Refused(status)) if status.wants_token() && self.access.user.is_some() => {
                let token = self.token_but(Some(token)).await?;
                self.send_as(call, token.as_ref()).await
            }
            other => other,
        }
    }

    /// The token that is good as far as we know, and is not `refused`.
    async fn token_but(&self, refused: Option<Option<HeaderValue>>) -> Result<Option<HeaderValue>, Failure> {
        let Some(user) = &self.access.user else { return Ok(None) };
        let mut token = self.token.lock().await;
        let password = || user.password.read().map(|password| Tried(Version::of(password.as_bytes())));
        let known = match &*token {
            // Whoever waited for this answer has it as well.
            Token::Wrong { password: wrong, reason, at }
                if at.elapsed() < WRONG_FOR && password().as_ref() == Ok(wrong) =>
            {
                return Err(Failure::Unknown(reason.clone()));
            }
            Token::None | Token::Wrong { .. } => None,
            Token::NotNeeded => Some(None),
            Token::Value(value) => Some(Some(value.clone())),
        };
        // Another request may have asked for a new one meanwhile.
        if let Some(known) = known.filter(|known| refused.as_ref() != Some(known)) {
            return Ok(known);
        }
        *token = Token::None;
        let password = password().map_err(Failure::Unknown)?;
        *token = match self.authenticate(user).await {
            Err(Failure::Unknown(reason)) => {
                *token = Token::Wrong { password, reason: reason.clone(), at: Instant::now() };
                return Err(Failure::Unknown(reason));
            }
            authenticated => authenticated?,
        };
        Ok(match &*token {
            Token::Value(value) => Some(value.clone()),
            Token::None | Token::NotNeeded | Token::Wrong { .. } => None,
        })
    }

    async fn authenticate(&self, user: &User) -> Result<Token, Failure> {
        let call = Call::authenticate(user).map_err(Failure::Unknown)?;
        let answered = match self.send_as(&call, None).await {
            Ok(answered) => answered,
            Err(Failure::Refused(status)) if status.code == Status::PRECONDITION => {
                return Ok(Token::NotNeeded);
            }
            Err(Failure::Refused(status)) if status.code == Status::INVALID => {
                return Err(Failure::Unknown(words(&status)));
            }
            Err(failure) => return Err(failure),
        };
        let body = whole(answered.response, LARGEST_REFUSAL).await.map_err(Failure::Unreachable)?;
        let Authenticated { token } = form::answer(&body).map_err(Failure::Unreadable)?;
        let mut value = HeaderValue::try_from(token).map_err(|_| {
            Failure::Unreadable("etcd's answer is not readable: a token of odd characters".to_owned())
        })?;
        value.set_sensitive(true);
        Ok(Token::Value(value))
    }

    /// Asks one member after the other, the one that answered last first.
    async fn send_as(&self, call: &Call, token: Option<&HeaderValue>) -> Result<Answered, Failure> {
        let members = self.members();
        let (mut silent, mut refused) = (Vec::new(), None);
        for _ in 0..members.count() {
            let number = self.current.load(Ordering::Relaxed);
            let by = By { members: members.clone(), number };
            let refusal = match ask(by.member(), call, token).await {
                Ok(response) => return Ok(Answered { response, by }),
                Err(refusal) => refusal,
            };
            let may_have_been_done = match refusal {
                Refusal::Said(status) if !status.may_pass_soon() => return Err(Failure::Refused(status)),
                Refusal::Said(status) => {
                    refused = Some(status);
                    true
                }
                Refusal::Silent { reason, asked } => {
                    silent.push(reason);
                    asked
                }
            };
            self.turn_away(&by);
            if may_have_been_done && !call.repeatable {
                break;
            }
        }
        self.renew(&members);
        Err(refused.map_or_else(|| Failure::Unreachable(silent.join("; ")), Failure::Refused))
    }

    fn members(&self) -> Arc<Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes the connections anew from what the files say now, unless that was done a moment ago.
    fn renew(&self, failed: &Arc<Members>) {
        let mut current = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&current, failed)
            && failed.age() >= STALE
            // Files that are half written or gone tell nothing: what was known stays.
            && let Ok(members) = Members::open(&self.endpoints, &self.access)
        {
            *current = Arc::new(members);
        }
    }

    /// A failure as an error of the store.
    pub(crate) fn error(&self, call: &Call, failure: Failure) -> Error {
        let server = self.server();
        let unavailable =
            |hint, source: String| Error::Unavailable { store: server.clone(), hint, source: source.into() };
        match failure {
            Failure::Unknown(reason) => unavailable(
                "FAIRLEAD_ETCD_USERNAME and FAIRLEAD_ETCD_PASSWORD_FILE or FAIRLEAD_ETCD_PASSWORD say as whom to ask; \
                 `etcdctl user passwd NAME` sets a password",
                reason,
            ),
            Failure::Refused(status) if status.code == Status::DENIED => {
                let user = self.access.user.as_ref().map_or("nobody", |user| &user.name);
                let what = format!("{user} to {}", call.what);
                let flannels = self.flannel_prefix().filter(|prefix| call.what.contains(*prefix));
                let prefix = flannels.unwrap_or(self.prefix()).to_owned();
                Error::Denied { prefix, server, what }
            }
            Failure::Refused(status) if status.wants_token() => unavailable(
                "etcd asks who we are: set FAIRLEAD_ETCD_USERNAME and FAIRLEAD_ETCD_PASSWORD_FILE",
                words(&status),
            ),
            Failure::Refused(status) if status.code == 0 => unavailable(
                "is it etcd 3.4 or newer, with --enable-grpc-gateway (a configuration file must say so)?",
                words(&status),
            ),
            Failure::Refused(status) if status.code == Status::EXHAUSTED => {
                unavailable("is it full? `etcdctl alarm list` tells", words(&status))
            }
            Failure::Refused(status) if status.may_pass_soon() => unavailable(
                "most of its members must be up; `etcdctl endpoint status --cluster` tells",
                words(&status),
            ),
            Failure::Refused(status) => {
                Error::Refused { server, verb: "do", what: call.what.clone(), reason: words(&status) }
            }
            Failure::Unreachable(reason) | Failure::Unreadable(reason) => {
                unavailable("is it up, and are its addresses and certificates the right ones?", reason)
            }
        }
    }

    /// A failure as a sentence for people.
    pub(crate) fn reason(&self, call: &Call, failure: Failure) -> String {
        told(&self.error(call, failure))
    }
}

/// What etcd says must not reach a terminal as it is.
fn words(status: &Status) -> String {
    status.message.escape_debug().to_string()
}

async fn refusal(response: Response<Incoming>) -> Status {
    let http = response.status().as_u16();
    let body = whole(response, LARGEST_REFUSAL).await.unwrap_or_default();
    form::status(http, &body)
}

#[cfg(test)]
mod tests {
    use super::Call;
    use crate::etcd::{Password, User};

    #[test]
    fn a_call_shows_no_password() {
        let user = User { name: "agent".to_owned(), password: Password::Text("hunter2".to_owned()) };
        let call = Call::authenticate(&user).unwrap();
        assert!(call.body.contains("hunter2"));
        let shown = format!("{call:?}");
        assert!(shown.contains("authenticate as agent") && !shown.contains("hunter2"), "{shown}");
    }
}
