//! The way to etcd's members.
//!
//! Read [`Members::open`]. TLS is made by the crate that the Kubernetes store has for it, from the files as they are at
//! that moment; a pod's proxy is not asked, for etcd's members are near.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use kube::Config;
use kube::client::ConfigExt;
use kube::config::Kubeconfig;
use serde_json::json;
use tower::util::BoxCloneService;
use tower::{BoxError, ServiceExt};

use super::access::{Access, Endpoints};
use crate::transport;

type Service = BoxCloneService<Request<Full<Bytes>>, Response<Incoming>, BoxError>;

/// All members, as the files told the way at one time.
#[derive(Debug)]
pub(crate) struct Members {
    first: Member,
    others: Vec<Member>,
    opened: Instant,
}

/// One member.
pub(crate) struct Member {
    pub(crate) url: String,
    /// Behind a lock only because it may not be shared; it is cloned for each request.
    service: Mutex<Service>,
    /// When it gave a good answer last.
    heard: Mutex<Option<Instant>>,
}

impl fmt::Debug for Member {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Member").field("url", &self.url).finish_non_exhaustive()
    }
}

/// Why a member gave no answer.
#[derive(Debug)]
pub(crate) struct Silent {
    pub(crate) reason: String,
    /// Whether it may have got the request.
    pub(crate) asked: bool,
}

impl Members {
    /// Reads the files, and goes nowhere yet. Needs a runtime around it.
    pub(crate) fn open(endpoints: &Endpoints, access: &Access) -> Result<Self, BoxError> {
        let member = |url: &str| -> Result<Member, BoxError> {
            let service = Mutex::new(service(url, access)?);
            Ok(Member { url: url.to_owned(), service, heard: Mutex::new(None) })
        };
        let (first, others) = endpoints.parts();
        let others = others.iter().map(|url| member(url)).collect::<Result<_, _>>()?;
        Ok(Self { first: member(first)?, others, opened: Instant::now() })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        1 + self.others.len()
    }

    /// The one whose turn it is; they take turns for ever.
    pub(crate) fn turn(&self, number: usize) -> &Member {
        let others = (number % self.count()).checked_sub(1).and_then(|number| self.others.get(number));
        others.unwrap_or(&self.first)
    }

    /// How long ago the files were read.
    pub(crate) fn age(&self) -> Duration {
        self.opened.elapsed()
    }
}

impl Member {
    /// When it gave a good answer last.
    pub(crate) fn heard(&self) -> Option<Instant> {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request whose URI is a path, and waits for the head of the answer.
    pub(crate) async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Silent> {
        match format!("{}{}", self.url, request.uri()).parse::<Uri>() {
            Ok(uri) => *request.uri_mut() = uri,
            Err(error) => return Err(Silent { reason: error.to_string(), asked: false }),
        }
        let service = self.service.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let answered = service.oneshot(request).await;
        if answered.as_ref().is_ok_and(|response| response.status().is_success()) {
            *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        answered.map_err(|error| {
            let connected = error
                .downcast_ref::<hyper_util::client::legacy::Error>()
                .is_none_or(|error| !error.is_connect());
            Silent { reason: transport::told(&*error), asked: connected }
        })
    }
}

fn service(url: &str, access: &Access) -> Result<Service, BoxError> {
    let (certificate, key) = access.identity.as_ref().map(|(certificate, key)| (certificate, key)).unzip();
    // The form in which that crate is told of certificates.
    let kubeconfig: Kubeconfig = serde_json::from_value(json!({
        "current-context": "etcd",
        "contexts": [{"name": "etcd", "context": {"cluster": "etcd", "user": "etcd"}}],
        "clusters": [{"name": "etcd", "cluster": {"server": url, "certificate-authority": access.authority}}],
        "users": [{"name": "etcd", "user": {"client-certificate": certificate, "client-key": key}}],
    }))?;
    let config = Config::try_from(kubeconfig)?;
    let client = transport::client(config.rustls_https_connector_with_connector(transport::tcp())?);
    Ok(BoxCloneService::new(client.map_err(BoxError::from)))
}
