//! Requests that travel together, each remembering what it was for.
//!
//! Read [`Request`] first: what the functions of `link`, `route` and the others return. A [`Batch`] of them is
//! sent with one system call; the kernel works it off in order, and goes on after a failed one.

use std::fmt;

use super::message::Message;

/// What a request is for: the start of every error message about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purpose {
    operation: &'static str,
    object: String,
    needs: Option<&'static str>,
}

impl Purpose {
    /// `operation` as in "create link", `object` as in "eth0".
    pub fn new(operation: &'static str, object: impl Into<String>) -> Self {
        Self { operation, object: object.into(), needs: None }
    }

    /// Adds the hint for a kernel that does not know this, as in "the kernel needs CONFIG_VXLAN".
    #[must_use]
    pub fn needing(mut self, hint: &'static str) -> Self {
        self.needs = Some(hint);
        self
    }

    /// What was asked for, as in "create link".
    pub fn operation(&self) -> &'static str {
        self.operation
    }

    /// On what it was asked for, as in "eth0".
    pub fn object(&self) -> &str {
        &self.object
    }

    pub(crate) fn kernel_option(&self) -> Option<&'static str> {
        self.needs
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.operation, self.object)
    }
}

/// One message and what it is for.
#[derive(Debug, Clone)]
pub struct Request {
    /// The encoded message.
    pub message: Message,
    /// What it is for.
    pub purpose: Purpose,
}

impl Request {
    /// Joins the two.
    pub fn new(message: Message, purpose: Purpose) -> Self {
        Self { message, purpose }
    }
}

/// Requests in the order in which the kernel shall see them.
#[derive(Debug, Default)]
pub struct Batch {
    requests: Vec<Request>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a request and returns its position, by which a [`Failure`](super::Failure) refers to it.
    pub fn push(&mut self, request: Request) -> usize {
        self.requests.push(request);
        self.requests.len() - 1
    }

    /// Number of requests.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// True when there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// The requests, in order.
    pub fn requests(&self) -> &[Request] {
        &self.requests
    }

    pub(super) fn into_requests(self) -> Vec<Request> {
        self.requests
    }
}

impl Extend<Request> for Batch {
    fn extend<I: IntoIterator<Item = Request>>(&mut self, requests: I) {
        self.requests.extend(requests);
    }
}

impl FromIterator<Request> for Batch {
    fn from_iter<I: IntoIterator<Item = Request>>(requests: I) -> Self {
        Self { requests: requests.into_iter().collect() }
    }
}

impl From<Request> for Batch {
    fn from(request: Request) -> Self {
        Self { requests: vec![request] }
    }
}
