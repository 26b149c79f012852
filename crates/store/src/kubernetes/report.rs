//! How a node fares, told in its Node object.
//!
//! Read [`put`]. A report is the condition `NetworkUnavailable`, which the scheduler and other people's controllers know:
//! True keeps pods off the node. Beside it the annotation `fairlead.io/agent-version` says which agent told it. Both are
//! written in one patch of the Node's status, with the version of the Node that was read as the comparison: the time of
//! the last transition is to change with the status only.
//!
//! A cluster may let its nodes start with the taint `fairlead.io/not-ready`. Once a node is ready, that is taken off; the
//! list of taints can be replaced only as a whole, so again only in the version that was read.
//!
//! Kubernetes API 1.36: `v1` NodeCondition, Taint; "Strategic merge patch".

use cluster::Key;
use jiff::Timestamp;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::MOST_RACES;
use super::api::{Api, Call, Failure};
use super::resource::Resource;
use crate::manifest::core::{NETWORK_UNAVAILABLE, NOT_READY};
use crate::{Error, Report};

/// The annotation of a Node that says which version of the agent reports.
pub(crate) const VERSION: &str = "fairlead.io/agent-version";

/// What of a Node a report is about; all else is passed over.
#[derive(Debug, Deserialize)]
struct Node {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    uid: String,
    resource_version: String,
    #[serde(default)]
    annotations: Annotations,
}

#[derive(Debug, Default, Deserialize)]
struct Annotations {
    #[serde(rename = "fairlead.io/agent-version")]
    version: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Spec {
    /// As they are: what others put there goes back unchanged.
    #[serde(default)]
    taints: Vec<Value>,
}

#[derive(Debug, Default, Deserialize)]
struct Status {
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Debug, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    name: String,
    status: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

impl Node {
    fn condition(&self) -> Option<&Condition> {
        self.status.conditions.iter().find(|condition| condition.name == NETWORK_UNAVAILABLE)
    }

    /// A patch that leaves the taints without ours, if ours is among them. It holds for this version only: the list goes
    /// as a whole, and what somebody adds meanwhile must not go with it.
    fn without_startup_taint(&self) -> Option<Value> {
        let others: Vec<&Value> = self.spec.taints.iter().filter(|taint| taint["key"] != NOT_READY).collect();
        let Metadata { uid, resource_version, .. } = &self.metadata;
        (others.len() < self.spec.taints.len()).then(|| {
            json!({"metadata": {"uid": uid, "resourceVersion": resource_version}, "spec": {"taints": others}})
        })
    }

    /// What it reports; none if nobody ever did.
    fn report(self) -> Option<Report> {
        let condition = self.condition();
        let (ready, reason, message) = match condition {
            Some(found) => (found.status == "False", found.reason.clone(), found.message.clone()),
            None => {
                let lost = format!("somebody took the condition {NETWORK_UNAVAILABLE} off the Node");
                let version = self.metadata.annotations.version?;
                return Some(Report::unknown(&self.metadata.name, lost, version));
            }
        };
        let version = self.metadata.annotations.version?;
        Some(Report { node: self.metadata.name, ready, reason, message, version })
    }
}

/// Writes a report into its Node, and lets pods come if it is ready.
pub(crate) async fn put(api: &Api, report: &Report) -> Result<(), Error> {
    let key = Key::Node((&*report.node).into());
    let node = put_condition(api, &key, report).await?;
    if report.ready { take_off_taint(api, &key, node).await } else { Ok(()) }
}

/// Returns the Node as it is then.
async fn put_condition(api: &Api, key: &Key, report: &Report) -> Result<Node, Error> {
    for _ in 0..MOST_RACES {
        let Some(node) = get(api, key).await? else {
            return Err(Error::NoNode { key: key.clone(), node: report.node.clone() });
        };
        let call = Call::patch_node_conditions(key, patch_of(&node, report, Timestamp::now()));
        match api.answer(&call).await {
            Ok(body) => return read(api, &call, &body),
            // Somebody wrote the Node meanwhile, perhaps only its heartbeat.
            Err(failure) if failure.is_conflict() || failure.is_not_found() => {}
            Err(failure) => return Err(api.error(&call, failure)),
        }
    }
    Err(Error::Conflict { key: key.clone(), found: None })
}

fn patch_of(node: &Node, report: &Report, now: Timestamp) -> Value {
    let (status, now) = (if report.ready { "False" } else { "True" }, time(now));
    let mut condition = json!({
        "type": NETWORK_UNAVAILABLE, "status": status, "reason": report.reason, "message": report.message,
        "lastHeartbeatTime": now,
    });
    if node.condition().is_none_or(|before| before.status != status) {
        condition["lastTransitionTime"] = now.into();
    }
    json!({
        "metadata": {
            "uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version,
            "annotations": {VERSION: report.version},
        },
        "status": {"conditions": [condition]},
    })
}

async fn take_off_taint(api: &Api, key: &Key, mut node: Node) -> Result<(), Error> {
    for _ in 0..MOST_RACES {
        let Some(patch) = node.without_startup_taint() else { return Ok(()) };
        let call = Call::patch_node(key, patch);
        match api.answer(&call).await {
            Ok(_) => return Ok(()),
            // Somebody wrote the Node meanwhile, perhaps its taints.
            Err(failure) if failure.is_conflict() || failure.is_not_found() => {}
            Err(failure) => return Err(api.error(&call, failure)),
        }
        match get(api, key).await? {
            Some(now) => node = now,
            None => return Ok(()),
        }
    }
    Err(Error::Conflict { key: key.clone(), found: None })
}

/// What all nodes report.
pub(crate) async fn every(api: &Api) -> Result<Vec<Report>, Error> {
    #[derive(Deserialize)]
    struct List {
        metadata: ListMeta,
        items: Option<Vec<Node>>,
    }
    #[derive(Deserialize)]
    struct ListMeta {
        #[serde(default, rename = "continue")]
        next: String,
    }
    let (mut reports, mut next) = (Vec::new(), None::<String>);
    loop {
        let page = Resource::Nodes.page();
        let call = Call::list(Resource::Nodes, api.namespace(), page, next.as_deref());
        let body = api.answer(&call).await.map_err(|failure| api.error(&call, failure))?;
        let list: List = read(api, &call, &body)?;
        reports.extend(list.items.into_iter().flatten().filter_map(Node::report));
        if list.metadata.next.is_empty() {
            return Ok(reports);
        }
        next = Some(list.metadata.next);
    }
}

async fn get(api: &Api, key: &Key) -> Result<Option<Node>, Error> {
    let call = Call::get(Resource::Nodes, key, api.namespace());
    match api.answer(&call).await {
        Ok(body) => read(api, &call, &body).map(Some),
        Err(failure) if failure.is_not_found() => Ok(None),
        Err(failure) => Err(api.error(&call, failure)),
    }
}

fn read<T: DeserializeOwned>(api: &Api, call: &Call, body: &[u8]) -> Result<T, Error> {
    let unreadable = |error: serde_json::Error| {
        let reason = format!("the API server's answer is not readable: {}", error.to_string().escape_debug());
        api.error(call, Failure::Unreadable(reason))
    };
    serde_json::from_slice(body).map_err(unreadable)
}

/// A time as the API writes it: whole seconds, UTC.
pub(crate) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::{Value, json};

    use super::{Node, patch_of};
    use crate::Report;

    fn node(status: Value, taints: Value) -> Node {
        let object = json!({
            "metadata": {
                "name": "node1", "uid": "u1", "resourceVersion": "42", "labels": {"zone": "a"},
                "annotations": {"fairlead.io/agent-version": "0.1.0", "other.io/x": "y"},
            },
            "spec": {"taints": taints}, "status": status,
        });
        serde_json::from_value(object).unwrap()
    }

    fn report(ready: bool) -> Report {
        let (reason, message) = ("NetworkReady".to_owned(), "all is well".to_owned());
        Report { node: "node1".to_owned(), ready, reason, message, version: "0.2.0".to_owned() }
    }

    fn condition(status: &str) -> Value {
        let ours = json!({"type": "NetworkUnavailable", "status": status, "reason": "R", "message": "m"});
        json!({"conditions": [{"type": "Ready", "status": "True"}, ours]})
    }

    #[test]
    fn the_time_of_the_transition_is_told_only_if_the_status_changes() {
        let at = Timestamp::from_millisecond(1_700_000_000_999).unwrap();
        let told = |before: Value, ready| {
            let patch = patch_of(&node(before, json!([])), &report(ready), at);
            let condition = patch["status"]["conditions"][0].clone();
            assert_eq!(condition["lastHeartbeatTime"], "2023-11-14T22:13:20Z");
            (condition["status"].clone(), condition["lastTransitionTime"].clone())
        };
        let now = json!("2023-11-14T22:13:20Z");
        assert_eq!(told(condition("True"), true), (json!("False"), now.clone()));
        assert_eq!(told(condition("False"), false), (json!("True"), now.clone()));
        assert_eq!(told(condition("Unknown"), false), (json!("True"), now.clone()));
        assert_eq!(told(json!({}), true), (json!("False"), now));
        assert_eq!(told(condition("False"), true), (json!("False"), Value::Null));
        assert_eq!(told(condition("True"), false), (json!("True"), Value::Null));
    }

    #[test]
    fn a_patch_holds_for_the_node_that_was_read_and_no_other() {
        let patch = patch_of(&node(json!({}), json!([])), &report(true), Timestamp::now());
        let want = json!({
            "uid": "u1", "resourceVersion": "42", "annotations": {"fairlead.io/agent-version": "0.2.0"},
        });
        assert_eq!(patch["metadata"], want);
    }

    #[test]
    fn only_the_startup_taint_is_taken_off_and_others_stay_as_they_are() {
        let others = json!([
            {"key": "a", "value": "b", "effect": "NoSchedule", "later": {"x": 1}},
            {"key": "fairlead.io/not-ready-yet", "effect": "NoExecute", "timeAdded": "2023-11-14T22:13:20Z"},
        ]);
        assert_eq!(node(json!({}), others.clone()).without_startup_taint(), None);
        let mut with = others.clone();
        let ours = |effect| json!({"key": "fairlead.io/not-ready", "value": "x", "effect": effect});
        with.as_array_mut().unwrap().insert(1, ours("NoSchedule"));
        with.as_array_mut().unwrap().push(ours("NoExecute"));
        let patch = node(json!({}), with).without_startup_taint().unwrap();
        let version = json!({"uid": "u1", "resourceVersion": "42"});
        assert_eq!(patch, json!({"metadata": version, "spec": {"taints": others}}));
    }

    #[test]
    fn a_report_is_read_back_and_one_whose_condition_is_gone_is_not_ready() {
        let read = node(condition("False"), json!([])).report().unwrap();
        assert_eq!((read.ready, &*read.reason, &*read.message, &*read.version), (true, "R", "m", "0.1.0"));
        assert!(!node(condition("True"), json!([])).report().unwrap().ready);
        assert!(!node(condition("Unknown"), json!([])).report().unwrap().ready);
        let lost = node(json!({}), json!([])).report().unwrap();
        assert_eq!((lost.ready, &*lost.reason, &*lost.version), (false, "Unknown", "0.1.0"));
        let mut foreign = node(condition("False"), json!([]));
        foreign.metadata.annotations.version = None;
        assert_eq!(foreign.report(), None, "another network's condition is no report of ours");
    }
}
