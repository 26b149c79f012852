//! Requests to the API server, and what comes of them.
//!
//! Read [`Call`], then [`Api::answer`] and [`Api::stream`]. Nothing is tried again here but what a new credential may
//! mend: whoever asks knows better what a failure means. A [`Failure`] says whether somebody answered.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cluster::Key;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use tokio::time::timeout;

use super::connection::{Connection, Origin};
use super::form::Status;
use super::resource::Resource;
use crate::Error;
use crate::transport::{told, whole};

/// How long to wait for the head of an answer; also for its end, where it is one object.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest answer that is read: a page of the largest objects that etcd takes.
const LARGEST: usize = 256 << 20;
/// How old a connection must be to be made anew because nobody answers: address and certificates may have changed, but
/// not with every try.
const STALE: Duration = Duration::from_secs(10);
/// The largest refusal that is read.
const LARGEST_REFUSAL: usize = 1 << 20;

/// What is done to a resource, in the words of a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    List,
    Watch,
    Create,
    Patch,
    Delete,
}

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }

    fn method(self) -> Method {
        match self {
            Self::Get | Self::List | Self::Watch => Method::GET,
            Self::Create => Method::POST,
            Self::Patch => Method::PATCH,
            Self::Delete => Method::DELETE,
        }
    }
}

/// How a patch is to be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patch {
    /// RFC 7396: a list is replaced as a whole.
    Merge,
    /// Kubernetes' own: the elements of some lists, such as conditions, are told apart by a key.
    Strategic,
}

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    verb: Verb,
    /// What a role calls the thing, with its group and, if not in the whole cluster, its namespace.
    resource: &'static str,
    group: &'static str,
    namespace: Option<String>,
    accept: &'static str,
    path: String,
    patch: Patch,
    body: Option<serde_json::Value>,
}

impl Call {
    /// One object.
    pub(crate) fn get(resource: Resource, key: &Key, namespace: &str) -> Self {
        Self::new(Verb::Get, resource, namespace, resource.path_of(key, namespace))
    }

    /// Part of a list; `next` is what the part before it said.
    pub(crate) fn list(resource: Resource, namespace: &str, limit: u32, next: Option<&str>) -> Self {
        let next = next.map_or_else(String::new, |next| format!("&continue={}", escaped(next)));
        let path = resource.path(namespace);
        let path = format!("{path}?limit={limit}{next}{}", resource.selector());
        Self::new(Verb::List, resource, namespace, path)
    }

    /// Every change after `version`.
    pub(crate) fn watch(resource: Resource, namespace: &str, version: &str, seconds: u32) -> Self {
        let (path, selector) = (resource.path(namespace), resource.selector());
        let version = escaped(version);
        let query = format!(
            "watch=true&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds={seconds}{selector}"
        );
        Self::new(Verb::Watch, resource, namespace, format!("{path}?{query}"))
    }

    /// The metadata of all that there is of a resource at the time of asking; with `namespace`, of what is in it, or of
    /// the Namespace itself.
    pub(crate) fn versions(resource: Resource, namespace: Option<&str>) -> Self {
        let path = match (resource, namespace) {
            (Resource::Namespaces, Some(name)) => {
                format!("{}?fieldSelector=metadata.name%3D{}", resource.path(""), escaped(name))
            }
            (_, Some(name)) => resource.path_within(&escaped(name)),
            (_, None) => resource.path(""),
        };
        Self { accept: Resource::Namespaces.accept(true), ..Self::new(Verb::List, resource, "", path) }
    }

    /// What an API server knows below a path: its groups, or the resources of a group.
    pub(crate) fn known(path: String) -> Self {
        let (verb, accept, patch) = (Verb::Get, "application/json", Patch::Merge);
        Self { verb, resource: "", group: "", namespace: None, accept, path, patch, body: None }
    }

    /// A new object.
    pub(crate) fn create(resource: Resource, namespace: &str, object: serde_json::Value) -> Self {
        let call = Self::new(Verb::Create, resource, namespace, resource.path(namespace));
        Self { body: Some(object), ..call }
    }

    /// A merge patch of a Node by its status, and so of its metadata too.
    pub(crate) fn patch_node_status(key: &Key, patch: serde_json::Value) -> Self {
        let path = format!("{}/status", Resource::Nodes.path_of(key, ""));
        let call = Self::new(Verb::Patch, Resource::Nodes, "", path);
        Self { resource: "nodes/status", body: Some(patch), ..call }
    }

    /// The same by a patch that adds to lists which are told apart by a key, such as conditions.
    pub(crate) fn patch_node_conditions(key: &Key, patch: serde_json::Value) -> Self {
        Self { patch: Patch::Strategic, ..Self::patch_node_status(key, patch) }
    }

    /// A merge patch of a Node, but for its status.
    pub(crate) fn patch_node(key: &Key, patch: serde_json::Value) -> Self {
        let path = Resource::Nodes.path_of(key, "");
        Self { body: Some(patch), ..Self::new(Verb::Patch, Resource::Nodes, "", path) }
    }

    /// A new Event.
    pub(crate) fn create_event(namespace: &str, event: serde_json::Value) -> Self {
        Self::of_events(Verb::Create, namespace, format!("/api/v1/namespaces/{namespace}/events"), event)
    }

    /// A merge patch of an Event.
    pub(crate) fn patch_event(namespace: &str, name: &str, patch: serde_json::Value) -> Self {
        let path = format!("/api/v1/namespaces/{namespace}/events/{name}");
        Self::of_events(Verb::Patch, namespace, path, patch)
    }

    /// An end to the object that has this identity and version, and to no other.
    pub(crate) fn delete(resource: Resource, key: &Key, namespace: &str, uid: &str, version: &str) -> Self {
        let options = serde_json::json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid, "resourceVersion": version},
        });
        let call = Self::new(Verb::Delete, resource, namespace, resource.path_of(key, namespace));
        Self { body: Some(options), ..call }
    }

    fn new(verb: Verb, resource: Resource, namespace: &str, path: String) -> Self {
        Self {
            verb,
            resource: resource.plural(),
            group: resource.group(),
            namespace: resource.is_ours().then(|| namespace.to_owned()),
            accept: resource.accept(verb == Verb::List),
            path,
            patch: Patch::Merge,
            body: None,
        }
    }

    fn of_events(verb: Verb, namespace: &str, path: String, body: serde_json::Value) -> Self {
        Self {
            verb,
            resource: "events",
            group: "",
            namespace: Some(namespace.to_owned()),
            accept: "application/json",
            path,
            patch: Patch::Merge,
            body: Some(body),
        }
    }

    fn request(&self) -> Result<Request<Full<Bytes>>, http::Error> {
        let request = Request::builder()
            .method(self.verb.method())
            .uri(&self.path)
            .header(ACCEPT, self.accept)
            .header(http::header::USER_AGENT, concat!("fairlead/", env!("CARGO_PKG_VERSION")));
        match &self.body {
            None => request.body(Full::default()),
            Some(body) => {
                let kind = match (self.verb, self.patch) {
                    (Verb::Patch, Patch::Merge) => "application/merge-patch+json",
                    (Verb::Patch, Patch::Strategic) => "application/strategic-merge-patch+json",
                    _ => "application/json",
                };
                request.header(CONTENT_TYPE, kind).body(Full::from(body.to_string()))
            }
        }
    }
}

/// A text as a part of a query.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// Why there is no good answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nobody answered, or not to the end.
    Unreachable(String),
    /// The API server refused.
    Refused(Status),
    /// The answer is none.
    Unreadable(String),
}

impl Failure {
    /// True if the API server says that there is no such object.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code == 404)
    }

    /// True if the object is not as the request wants it: there already, or changed meanwhile.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code == 409)
    }
}

/// The API server, and Fairlead's own namespace in it.
#[derive(Debug)]
pub(crate) struct Api {
    origin: Origin,
    namespace: String,
    connection: Mutex<Arc<Connection>>,
}

impl Api {
    /// Reads what tells the way. Needs a runtime around it.
    pub(crate) fn open(origin: Origin, namespace: &str) -> Result<Self, Error> {
        let opened = Connection::open(&origin);
        let connection = opened.map_err(|source| Error::Access { origin: origin.to_string(), source })?;
        Ok(Self { origin, namespace: namespace.to_owned(), connection: Mutex::new(Arc::new(connection)) })
    }

    /// The namespace of Fairlead's own objects.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The API server, as people know it.
    pub(crate) fn server(&self) -> String {
        format!("API server {} ({})", self.connection().url(), self.origin)
    }

    /// The whole answer.
    pub(crate) async fn answer(&self, call: &Call) -> Result<Bytes, Failure> {
        let response = match self.send(call).await {
            // The connection was made anew: the credential may have been replaced meanwhile.
            Err(Failure::Refused(status)) if status.code == 401 => self.send(call).await?,
            other => other?,
        };
        whole(response, LARGEST).await.map_err(Failure::Unreachable)
    }

    /// The answer as it comes.
    pub(crate) async fn stream(&self, call: &Call) -> Result<Incoming, Failure> {
        self.send(call).await.map(Response::into_body)
    }

    async fn send(&self, call: &Call) -> Result<Response<Incoming>, Failure> {
        let connection = self.connection();
        let request = call.request().map_err(|error| Failure::Unreachable(error.to_string()))?;
        let response = match timeout(PATIENCE, connection.send(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                self.renew(&connection, STALE);
                return Err(Failure::Unreachable(told(&*error)));
            }
            Err(_) => {
                self.renew(&connection, STALE);
                return Err(Failure::Unreachable(format!("no answer within {} s", PATIENCE.as_secs())));
            }
        };
        if response.status().is_success() {
            return Ok(response);
        }
        if response.status() == StatusCode::UNAUTHORIZED {
            self.renew(&connection, Duration::ZERO);
        }
        Err(Failure::Refused(refusal(response).await))
    }

    fn connection(&self) -> Arc<Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes the connection anew from what the files say now, unless it is younger than `age`, or somebody did since
    /// `failed` was taken.
    fn renew(&self, failed: &Arc<Connection>, age: Duration) {
        let mut current = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&current, failed)
            && failed.age() >= age
            // Files that are half written or gone tell nothing: what was known stays.
            && let Ok(connection) = Connection::open(&self.origin)
        {
            *current = Arc::new(connection);
        }
    }

    /// A failure as an error of the store.
    pub(crate) fn error(&self, call: &Call, failure: Failure) -> Error {
        let server = self.server();
        match failure {
            Failure::Refused(status) if lacks_a_rule(&status, call.verb) => Error::Forbidden {
                server,
                verb: call.verb.as_str(),
                resource: call.resource,
                group: call.group,
                namespace: call.namespace.clone(),
            },
            Failure::Refused(status) if !may_pass(status.code) => Error::Refused {
                server,
                verb: call.verb.as_str(),
                what: call.path.clone(),
                reason: words(&status),
            },
            Failure::Refused(status) => {
                Error::Unavailable { store: server, hint: hint(status.code), source: words(&status).into() }
            }
            Failure::Unreachable(reason) | Failure::Unreadable(reason) => Error::Unavailable {
                store: server,
                hint: "is it up, and is its address the right one?",
                source: reason.into(),
            },
        }
    }

    /// A failure as a sentence for people.
    pub(crate) fn reason(&self, call: &Call, failure: Failure) -> String {
        let error = self.error(call, failure);
        told(&error)
    }
}

/// Whether the account may not do that at all, in the words of every authorizer. Admission forbids too, by what the
/// object would be, and there another rule would help nobody.
fn lacks_a_rule(status: &Status, verb: Verb) -> bool {
    status.code == 403 && status.message.contains(&format!(" cannot {} resource ", verb.as_str()))
}

/// Whether the same request may be answered another time.
fn may_pass(code: u16) -> bool {
    matches!(code, 401 | 408 | 410 | 429 | 500..=599)
}

fn hint(code: u16) -> &'static str {
    match code {
        401 => "is the credential still valid?",
        _ => "the API server may be busy, starting or ending",
    }
}

/// What the API server says must not reach a terminal as it is, but names in quotation marks are to be read.
fn words(status: &Status) -> String {
    let plain = |text: &str| -> String {
        let shown = |character: char| match character {
            '"' | '\'' => character.to_string(),
            other => other.escape_debug().to_string(),
        };
        text.chars().map(shown).collect()
    };
    format!("{} ({} {})", plain(&status.message), status.code, plain(&status.reason))
}

/// What the API server says, or whoever answers in its place.
async fn refusal(response: Response<Incoming>) -> Status {
    let code = response.status().as_u16();
    let body = whole(response, LARGEST_REFUSAL).await.unwrap_or_default();
    match serde_json::from_slice::<Status>(&body) {
        Ok(status) => Status { code, ..status },
        Err(_) => {
            let text = String::from_utf8_lossy(&body);
            let message = text.lines().next().unwrap_or_default().chars().take(200).collect();
            Status { code, message, ..Status::default() }
        }
    }
}
