//! Notices as Events (`v1`) about a Node.
//!
//! Read [`Notices::tell`]. They stand where `kubectl describe node` looks for the kubelet's: in the namespace `default`,
//! as do all Events of objects that are in no namespace, about an object whose `uid` is the Node's name. So nobody need
//! read the Node first, and an agent can complain before there is one. The API server lets Events go after a while, an
//! hour unless told otherwise.
//!
//! A notice that comes again is counted in the Event that it made before, as long as this process remembers.
//!
//! Kubernetes API 1.36: `v1` Event; for the lengths `events.k8s.io/v1` Event.

use std::collections::VecDeque;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::api::{Api, Call, Failure};
use super::report::time;
use crate::{Error, Notice};

/// Where Events about Nodes are.
const NAMESPACE: &str = "default";

/// The longest message and the longest reason, in bytes.
const LONGEST_MESSAGE: usize = 1024;
const LONGEST_REASON: usize = 128;

/// How many notices are remembered: more at one time would be a flood, and that one is told as what it is.
const MOST_TOLD: usize = 64;

/// What this process has told.
#[derive(Debug, Default)]
pub(crate) struct Notices(Mutex<Told>);

/// The oldest first.
#[derive(Debug, Default)]
struct Told(VecDeque<Event>);

/// An Event that stands for a notice.
#[derive(Debug)]
struct Event {
    notice: Notice,
    name: String,
    count: u32,
}

impl Notices {
    /// Makes an Event of a notice, or counts it in the one it made before. One at a time, so that the count is right.
    pub(crate) async fn tell(&self, api: &Api, notice: Notice) -> Result<(), Error> {
        let notice = shortened(notice);
        let mut told = self.0.lock().await;
        if let Some(event) = told.find(&notice) {
            let patch = json!({"count": event.count + 1, "lastTimestamp": time(Timestamp::now())});
            let call = Call::patch_event(NAMESPACE, &event.name, patch);
            match api.answer(&call).await {
                Ok(_) => {
                    event.count = event.count.saturating_add(1);
                    return Ok(());
                }
                // It has been there for longer than the API server keeps them.
                Err(failure) if failure.is_not_found() => told.forget(&notice),
                Err(failure) => return Err(api.error(&call, failure)),
            }
        }
        let call = Call::create_event(NAMESPACE, encode(&notice, Timestamp::now()));
        let body = api.answer(&call).await.map_err(|failure| api.error(&call, failure))?;
        let created: Value = serde_json::from_slice(&body).unwrap_or_default();
        let Some(name) = created["metadata"]["name"].as_str() else {
            let reason = "the API server's answer is not readable: an Event without a name".to_owned();
            return Err(api.error(&call, Failure::Unreadable(reason)));
        };
        told.remember(Event { notice, name: name.to_owned(), count: 1 });
        Ok(())
    }
}

impl Told {
    fn find(&mut self, notice: &Notice) -> Option<&mut Event> {
        self.0.iter_mut().find(|event| event.notice == *notice)
    }

    fn forget(&mut self, notice: &Notice) {
        self.0.retain(|event| event.notice != *notice);
    }

    fn remember(&mut self, event: Event) {
        if self.0.len() >= MOST_TOLD {
            self.0.pop_front();
        }
        self.0.push_back(event);
    }
}

fn shortened(notice: Notice) -> Notice {
    Notice {
        reason: cut(notice.reason, LONGEST_REASON),
        message: cut(notice.message, LONGEST_MESSAGE),
        ..notice
    }
}

fn cut(mut text: String, longest: usize) -> String {
    text.truncate(text.floor_char_boundary(longest));
    text
}

fn encode(notice: &Notice, now: Timestamp) -> Value {
    let Notice { node, warning, reason, message } = notice;
    let now = time(now);
    json!({
        "apiVersion": "v1", "kind": "Event",
        // The API server makes it unique, and short enough whatever the node is called.
        "metadata": {"namespace": NAMESPACE, "generateName": format!("{node}.")},
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node},
        "type": if *warning { "Warning" } else { "Normal" }, "reason": reason, "message": message,
        "source": {"component": "fairlead", "host": node},
        "reportingComponent": "fairlead", "reportingInstance": node,
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    })
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::{Event, MOST_TOLD, Told, encode, shortened};
    use crate::Notice;

    fn notice(message: &str) -> Notice {
        let (node, reason) = ("node1".to_owned(), "NetworkNotReady".to_owned());
        Notice { node, warning: true, reason, message: message.to_owned() }
    }

    #[test]
    fn a_text_that_is_too_long_is_cut_between_two_characters() {
        let long = Notice { reason: "R".repeat(200), ..notice(&format!("x{}", "ä".repeat(600))) };
        let cut = shortened(long);
        assert_eq!((cut.reason.len(), cut.message.len()), (128, 1023));
        assert!(cut.message.ends_with('ä'));
        assert_eq!(shortened(notice("short")), notice("short"));
    }

    #[test]
    fn an_event_says_what_kubectl_asks_for() {
        let event = encode(&notice("no lease"), Timestamp::UNIX_EPOCH);
        assert_eq!(event["involvedObject"]["kind"], "Node");
        assert_eq!(
            (&event["involvedObject"]["name"], &event["involvedObject"]["uid"]),
            (&"node1".into(), &"node1".into())
        );
        assert_eq!(
            (&event["type"], &event["firstTimestamp"]),
            (&"Warning".into(), &"1970-01-01T00:00:00Z".into())
        );
        let normal = encode(&Notice { warning: false, ..notice("") }, Timestamp::UNIX_EPOCH);
        assert_eq!(normal["type"], "Normal");
    }

    #[test]
    fn only_so_many_are_remembered_and_the_oldest_goes_first() {
        let mut told = Told::default();
        for number in 0..=MOST_TOLD {
            let notice = notice(&number.to_string());
            told.remember(Event { notice, name: number.to_string(), count: 1 });
        }
        assert!(told.find(&notice("0")).is_none());
        assert!(told.find(&notice("1")).is_some() && told.find(&notice(&MOST_TOLD.to_string())).is_some());
        assert!(told.find(&Notice { warning: false, ..notice("1") }).is_none());
        told.forget(&notice("1"));
        assert!(told.find(&notice("1")).is_none());
    }
}
