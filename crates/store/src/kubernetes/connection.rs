//! The way to the API server: where it is, as whom it is asked, and through which proxy.
//!
//! Read [`Origin`], then [`Connection::open`]. The crate `kube` reads kubeconfigs and what a pod is given, and makes
//! TLS and credentials of them; it reads a token's file again at least once a minute, and within a pod the authority's
//! certificates too. Client certificates and inline tokens it reads once, so after a failure that they may be the
//! cause of the whole connection is made anew from what the files say then. A kubeconfig may name a program that gives
//! credentials; that is started by kube, and is the only process that Fairlead starts on somebody else's word. The rest of the stack is put together
//! here: kube's own leaves a dead peer unnoticed, logs every failed try as an error, takes no proxy from the
//! environment within a pod, and compares `NO_PROXY` with the proxy's name instead of the server's.
//!
//! Everything speaks HTTP/1.1: a watch is one connection, and what is asked beside them shares one.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use http::{HeaderValue, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::proxy::matcher::Matcher;
use kube::Config;
use kube::client::ConfigExt;
use kube::config::Kubeconfig;
use tower::util::BoxCloneService;
use tower::{BoxError, ServiceBuilder, ServiceExt};

use crate::transport;

/// What tells where the API server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This kubeconfig.
    File(PathBuf),
    /// What a pod is given: two variables, a token, the authority's certificates.
    Pod,
    /// The kubeconfigs that `KUBECONFIG` names, else `~/.kube/config`.
    Environment,
}

impl Origin {
    pub(crate) fn of(kubeconfig: Option<&Path>) -> Self {
        match kubeconfig {
            Some(path) => Self::File(path.to_owned()),
            None if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => Self::Pod,
            None => Self::Environment,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(out, "kubeconfig {}", path.display()),
            Self::Pod => out.write_str("the pod's service account"),
            Self::Environment => match std::env::var_os("KUBECONFIG") {
                Some(paths) => write!(out, "kubeconfig {}, of KUBECONFIG", Path::new(&paths).display()),
                None => out.write_str("kubeconfig ~/.kube/config"),
            },
        }
    }
}

type Service = BoxCloneService<Request<Full<Bytes>>, Response<Incoming>, BoxError>;

/// A way to the API server, as the files told it at one time.
pub(crate) struct Connection {
    url: Uri,
    opened: Instant,
    /// Behind a lock only because it may not be shared; it is cloned for each request.
    service: Mutex<Service>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Connection").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Connection {
    /// Reads what tells the way, and goes nowhere yet. Needs a runtime around it.
    pub(crate) fn open(origin: &Origin) -> Result<Self, BoxError> {
        let (config, proxy) = read(origin)?;
        let proxy = proxy.or_else(|| {
            let found = Matcher::from_env().intercept(&config.cluster_url)?;
            Some(Proxy { uri: found.uri().clone(), credentials: found.basic_auth().cloned() })
        });
        let tcp = transport::tcp();
        let service = match proxy {
            None => stack(&config, tcp)?,
            Some(Proxy { uri, credentials }) => match uri.scheme_str() {
                Some("http") => {
                    let tunnel = Tunnel::new(uri, tcp);
                    stack(&config, credentials.into_iter().fold(tunnel, Tunnel::with_auth))?
                }
                Some("socks5" | "socks5h") => stack(&config, SocksV5::new(uri, tcp))?,
                _ => return Err(format!("the proxy {uri} is neither http:// nor socks5://").into()),
            },
        };
        Ok(Self { url: config.cluster_url, opened: Instant::now(), service: Mutex::new(service) })
    }

    /// How long ago it was made.
    pub(crate) fn age(&self) -> std::time::Duration {
        self.opened.elapsed()
    }

    /// The API server's address.
    pub(crate) fn url(&self) -> &Uri {
        &self.url
    }

    /// Sends a request whose URI is a path, and waits for the head of the answer.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, BoxError> {
        let service = self.service.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        service.oneshot(request).await
    }
}

struct Proxy {
    uri: Uri,
    credentials: Option<HeaderValue>,
}

fn read(origin: &Origin) -> Result<(Config, Option<Proxy>), BoxError> {
    let kubeconfig = match origin {
        Origin::Pod => return Ok((Config::incluster()?, None)),
        Origin::File(path) => Kubeconfig::read_from(path)?,
        Origin::Environment => Kubeconfig::read()?,
    };
    let proxy = proxy_of(&kubeconfig).map(|text| text.parse()).transpose()?;
    let proxy = proxy.map(|uri| Proxy { uri, credentials: None });
    Ok((Config::try_from(kubeconfig)?, proxy))
}

/// The proxy that the kubeconfig itself names for the cluster in use.
fn proxy_of(kubeconfig: &Kubeconfig) -> Option<String> {
    let wanted = kubeconfig.current_context.as_ref()?;
    let context = kubeconfig.contexts.iter().find(|context| context.name == *wanted)?.context.as_ref()?;
    let cluster =
        kubeconfig.clusters.iter().find(|cluster| cluster.name == context.cluster)?.cluster.as_ref()?;
    cluster.proxy_url.clone().filter(|proxy| !proxy.is_empty())
}

fn stack<C>(config: &Config, connector: C) -> Result<Service, BoxError>
where
    C: tower::Service<Uri> + Clone + Send + Sync + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
    C::Response: hyper::rt::Read
        + hyper::rt::Write
        + hyper_util::client::legacy::connect::Connection
        + Send
        + Unpin
        + 'static,
{
    let client = transport::client(config.rustls_https_connector_with_connector(connector)?);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(client);
    Ok(BoxCloneService::new(service))
}
