//! What etcd's JSON gateway says, and what it is asked.
//!
//! Read [`Ranged`] and [`Line`], one line of a watch's stream. The gateway writes protocol buffers as JSON: keys and
//! values in base64, numbers of 64 bits as text, and nothing at all for what is zero, false or empty. So an answer is
//! known by its header: one without would look like an empty list.
//!
//! etcd API v3.4 to v3.6: `etcdserverpb` RangeResponse, TxnResponse, WatchResponse, AuthenticateResponse,
//! LeaseGrantResponse; errors of grpc-gateway v1 and v2.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

/// Who answers, and how far it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Header {
    pub(crate) cluster_id: Number,
    pub(crate) revision: Number,
    pub(crate) raft_term: Number,
}

/// A key and what it holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct KeyValue {
    pub(crate) key: Raw,
    pub(crate) value: Raw,
    pub(crate) create_revision: Number,
    pub(crate) mod_revision: Number,
    /// The lease of etcd's that it goes with; 0 if it stays.
    pub(crate) lease: Number,
}

/// Part of the keys.
#[derive(Debug, Deserialize)]
pub(crate) struct Ranged {
    pub(crate) header: Header,
    #[serde(default)]
    pub(crate) kvs: Vec<KeyValue>,
    #[serde(default)]
    pub(crate) more: bool,
}

/// What came of a transaction.
#[derive(Debug, Deserialize)]
pub(crate) struct Transacted {
    pub(crate) header: Header,
    /// Whether everything was as it was to be.
    #[serde(default)]
    pub(crate) succeeded: bool,
    #[serde(default)]
    responses: Vec<Response>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Response {
    response_range: Option<Ranged>,
}

impl Transacted {
    /// The keys that it read, of all its reads.
    pub(crate) fn into_read(self) -> Vec<KeyValue> {
        self.responses
            .into_iter()
            .filter_map(|response| response.response_range)
            .flat_map(|read| read.kvs)
            .collect()
    }
}

/// A token, good for a while.
#[derive(Debug, Deserialize)]
pub(crate) struct Authenticated {
    pub(crate) token: String,
}

/// A lease of etcd's: keys that end with it.
#[derive(Debug, Deserialize)]
pub(crate) struct Granted {
    #[serde(rename = "ID")]
    pub(crate) id: Number,
}

/// One line of a watch's stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// The watch is in place.
    Created,
    /// What happened to its keys. More of the same revision may follow, if it is a fragment.
    Events { events: Vec<Happened>, fragment: bool },
    /// Nothing happened up to this revision.
    Progress { revision: u64 },
    /// What happened since the revision asked for is not known any more.
    Compacted,
    /// The watch ends.
    Refused(Status),
}

/// One event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Happened {
    /// Whether the key is gone; its value is then empty.
    pub(crate) gone: bool,
    pub(crate) kv: KeyValue,
}

/// Why etcd refuses: a code of gRPC, and a sentence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) code: u32,
    pub(crate) message: String,
}

impl Status {
    pub(crate) const INVALID: u32 = 3;
    pub(crate) const DENIED: u32 = 7;
    pub(crate) const EXHAUSTED: u32 = 8;
    pub(crate) const PRECONDITION: u32 = 9;
    pub(crate) const OUT_OF_RANGE: u32 = 11;
    pub(crate) const UNAVAILABLE: u32 = 14;
    pub(crate) const UNAUTHENTICATED: u32 = 16;

    /// True if the revision asked for is not known any more.
    pub(crate) fn is_compacted(&self) -> bool {
        self.code == Self::OUT_OF_RANGE
    }

    /// True if another token may help.
    pub(crate) fn wants_token(&self) -> bool {
        self.code == Self::UNAUTHENTICATED
            || self.message.contains("invalid auth token")
            || self.message.contains("revision of auth store is old")
            || self.message.contains("user name is empty")
    }

    /// True if another member, or the same one in a moment, may answer: it has no leader, or did not hear of it in time.
    pub(crate) fn may_pass_soon(&self) -> bool {
        // 1 cancelled, 4 took too long, 14 unavailable.
        matches!(self.code, 1 | 4 | Self::UNAVAILABLE)
    }
}

/// A number that the gateway writes as text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Number(pub(crate) u64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Digits;
        impl Visitor<'_> for Digits {
            type Value = Number;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a number, or one as text")
            }

            fn visit_u64<E>(self, number: u64) -> Result<Number, E> {
                Ok(Number(number))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Number, E> {
                text.parse().map(Number).map_err(|_| E::custom(format!("{text:?} is no number")))
            }
        }
        deserializer.deserialize_any(Digits)
    }
}

/// Bytes that the gateway writes in base64.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Raw(pub(crate) Vec<u8>);

impl fmt::Debug for Raw {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Base64;
        impl Visitor<'_> for Base64 {
            type Value = Raw;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("bytes in base64")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Raw, E> {
                BASE64_STANDARD.decode(text).map(Raw).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Base64)
    }
}

/// Bytes as the gateway wants them.
pub(crate) fn raw(bytes: impl AsRef<[u8]>) -> Value {
    BASE64_STANDARD.encode(bytes).into()
}

/// The end of all keys that begin with `prefix`, which ends with a slash.
pub(crate) fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end
}

/// A comparison that holds if the key was last written at this revision; 0 if it is not there.
pub(crate) fn unchanged(key: &str, revision: u64) -> Value {
    json!({"key": raw(key), "target": "MOD", "result": "EQUAL", "mod_revision": revision.to_string()})
}

/// A whole answer.
pub(crate) fn answer<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| unreadable(&error))
}

/// Why a request was refused, by the body of the answer or else by its HTTP status.
pub(crate) fn status(http: u16, body: &[u8]) -> Status {
    #[derive(Deserialize)]
    struct Refusal {
        #[serde(default)]
        code: u32,
        #[serde(default)]
        message: String,
        #[serde(default)]
        error: String,
    }
    match serde_json::from_slice::<Refusal>(body) {
        Ok(Refusal { code, message, error }) if code != 0 => {
            Status { code, message: if message.is_empty() { error } else { message } }
        }
        _ => {
            let text = String::from_utf8_lossy(body);
            let first: String = text.lines().next().unwrap_or_default().chars().take(200).collect();
            // What is no gateway at all, or one before etcd: 0 is no code of a refusal.
            let code = if matches!(http, 429 | 502..=504) { Status::UNAVAILABLE } else { 0 };
            Status { code, message: format!("HTTP status {http}: {first}") }
        }
    }
}

/// One line of a watch.
pub(crate) fn line(line: &[u8]) -> Result<Line, String> {
    #[derive(Deserialize)]
    struct Told {
        result: Option<Watched>,
        error: Option<Failed>,
    }
    #[derive(Deserialize)]
    #[serde(default)]
    #[derive(Default)]
    struct Failed {
        grpc_code: u32,
        code: u32,
        message: String,
    }
    match serde_json::from_slice(line) {
        Ok(Told { result: Some(watched), error: None }) => watched.line(),
        Ok(Told { error: Some(failed), .. }) => {
            let code = if failed.code == 0 { failed.grpc_code } else { failed.code };
            let status = Status { code, message: failed.message };
            Ok(if status.is_compacted() { Line::Compacted } else { Line::Refused(status) })
        }
        Ok(_) => Err(unreadable(&"a line of a watch that says nothing")),
        Err(error) => Err(unreadable(&error)),
    }
}

#[derive(Deserialize)]
struct Watched {
    header: Header,
    #[serde(default)]
    created: bool,
    #[serde(default)]
    canceled: bool,
    #[serde(default)]
    compact_revision: Number,
    #[serde(default)]
    cancel_reason: String,
    #[serde(default)]
    fragment: bool,
    #[serde(default)]
    events: Vec<Told>,
}

#[derive(Deserialize)]
struct Told {
    #[serde(default, rename = "type")]
    kind: Value,
    #[serde(default)]
    kv: KeyValue,
}

impl Watched {
    fn line(self) -> Result<Line, String> {
        if self.canceled {
            if self.compact_revision.0 > 0 {
                return Ok(Line::Compacted);
            }
            // The gateway tells no code here.
            let denied = self.cancel_reason.contains("permission denied");
            let code = if denied { Status::DENIED } else { Status::UNAVAILABLE };
            let told = if self.cancel_reason.is_empty() {
                "etcd ended the watch".to_owned()
            } else {
                self.cancel_reason
            };
            return Ok(Line::Refused(Status { code, message: told }));
        }
        if self.created {
            return Ok(Line::Created);
        }
        if self.events.is_empty() {
            return Ok(Line::Progress { revision: self.header.revision.0 });
        }
        let events = self.events.into_iter().map(|told| match &told.kind {
            Value::Null => Ok(Happened { gone: false, kv: told.kv }),
            Value::String(kind) if kind == "PUT" => Ok(Happened { gone: false, kv: told.kv }),
            Value::String(kind) if kind == "DELETE" => Ok(Happened { gone: true, kv: told.kv }),
            other => Err(unreadable(&format!("an event of the unknown type {other}"))),
        });
        Ok(Line::Events { events: events.collect::<Result<_, _>>()?, fragment: self.fragment })
    }
}

fn unreadable(error: &impl fmt::Display) -> String {
    format!("etcd's answer is not readable: {}", error.to_string().escape_debug())
}

#[cfg(test)]
mod tests {
    use super::{Happened, KeyValue, Line, Number, Ranged, Raw, Status, answer, end_of, line, status};

    #[test]
    fn an_answer_without_a_header_is_none() {
        let list: Ranged = answer(
            br#"{"header":{"cluster_id":"14841639068965178418","revision":"2"},"kvs":[{"key":"L2E=","mod_revision":2}]}"#,
        )
        .unwrap();
        assert_eq!(list.header.cluster_id, Number(14_841_639_068_965_178_418));
        assert_eq!(
            (list.kvs[0].key.0.as_slice(), list.kvs[0].mod_revision.0, list.more),
            (&b"/a"[..], 2, false)
        );
        for bad in [
            "{}",
            "[]",
            "",
            "null",
            r#"{"kvs":[]}"#,
            r#"{"header":{"revision":"x"}}"#,
            r#"{"header":{},"kvs":[{"key":"*"}]}"#,
        ] {
            assert!(answer::<Ranged>(bad.as_bytes()).unwrap_err().starts_with("etcd's answer"), "{bad}");
        }
    }

    #[test]
    fn a_watch_tells_line_by_line() {
        let told = |result: &str| {
            line(format!(r#"{{"result":{{"header":{{"revision":"9"}},{result}}}}}"#).as_bytes())
        };
        assert_eq!(told(r#""watch_id":"2","created":true"#), Ok(Line::Created));
        assert_eq!(told(r#""watch_id":"2""#), Ok(Line::Progress { revision: 9 }));
        let kv = |value: &str| KeyValue {
            key: Raw(b"/a".into()),
            value: Raw(value.into()),
            mod_revision: Number(8),
            ..KeyValue::default()
        };
        let put = r#"{"kv":{"key":"L2E=","mod_revision":"8","value":"aGk="}}"#;
        let gone = r#"{"type":"DELETE","kv":{"key":"L2E=","mod_revision":"8"}}"#;
        let events = vec![Happened { gone: false, kv: kv("hi") }, Happened { gone: true, kv: kv("") }];
        assert_eq!(
            told(&format!(r#""watch_id":"1","fragment":true,"events":[{put},{gone}]"#)),
            Ok(Line::Events { events, fragment: true })
        );
        assert_eq!(told(r#""watch_id":"1","canceled":true,"compact_revision":"3""#), Ok(Line::Compacted));
        let denied =
            told(r#""created":true,"canceled":true,"cancel_reason":"etcdserver: permission denied""#);
        assert!(matches!(&denied, Ok(Line::Refused(status)) if status.code == Status::DENIED), "{denied:?}");
        let lost = line(br#"{"error":{"grpc_code":14,"http_code":503,"message":"etcdserver: no leader"}}"#);
        assert!(matches!(&lost, Ok(Line::Refused(status)) if status.may_pass_soon()), "{lost:?}");
        for bad in
            ["{}", "null", r#"{"result":{}}"#, r#"{"result":{"header":{},"events":[{"type":"MOVE"}]}}"#]
        {
            assert!(line(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_refusal_is_read_whoever_gives_it() {
        let told = status(
            400,
            br#"{"error":"e","message":"etcdserver: mvcc: required revision has been compacted","code":11}"#,
        );
        assert!(told.is_compacted());
        assert!(status(401, br#"{"error":"etcdserver: invalid auth token","code":16}"#).wants_token());
        assert!(status(503, b"<html>").may_pass_soon());
        let other = status(404, b"404 page not found\nmore");
        assert_eq!((other.code, &*other.message), (0, "HTTP status 404: 404 page not found"));
    }

    #[test]
    fn a_range_ends_before_the_next_folder() {
        assert_eq!(end_of("/fairlead/nodes/"), b"/fairlead/nodes0");
    }
}
