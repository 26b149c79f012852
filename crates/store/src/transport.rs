//! HTTP/1.1 on TCP, as every store on the network wants it.
//!
//! Read [`tcp`] and [`client`]. A watch is one connection, and what is asked beside it shares others. A peer that is
//! dead is noticed within seconds, though it sends nothing.

use std::error::Error as StdError;
use std::time::Duration;

use http::{Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;

/// How long to wait for a TCP connection.
const CONNECT: Duration = Duration::from_secs(3);
/// How long an unanswered connection may be quiet before the kernel asks whether the peer is there, and how often.
const QUIET: Duration = Duration::from_secs(10);
const ASK_EVERY: Duration = Duration::from_secs(4);
const ASK_TIMES: u32 = 3;
/// How long a connection that nobody uses is kept.
const IDLE: Duration = Duration::from_secs(60);
/// How long to wait for the end of an answer.
const WHOLE: Duration = Duration::from_secs(30);

/// What makes TCP connections.
pub(crate) fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(QUIET));
    tcp.set_keepalive_interval(Some(ASK_EVERY));
    tcp.set_keepalive_retries(Some(ASK_TIMES));
    tcp.set_tcp_user_timeout(Some(QUIET + ASK_EVERY * ASK_TIMES));
    tcp
}

/// A client on such connections.
pub(crate) fn client<C>(connector: C) -> Client<C, Full<Bytes>>
where
    C: tower::Service<Uri> + Clone,
    C::Response: hyper_util::client::legacy::connect::Connection,
    C: Connect,
{
    Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE)
        .pool_timer(TokioTimer::new())
        .build(connector)
}

/// The whole body of an answer, if it is no larger than `largest`.
pub(crate) async fn whole(response: Response<Incoming>, largest: usize) -> Result<Bytes, String> {
    match timeout(WHOLE, Limited::new(response.into_body(), largest).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) => Err(told(&*error)),
        Err(_) => Err(format!("the answer did not end within {} s", WHOLE.as_secs())),
    }
}

/// What went wrong, with all that caused it.
pub(crate) fn told(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        // Some errors say their cause themselves.
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}
