//! What the API server says is read with all that networking needs, and nothing foreign can do harm.

use cluster::{Key, Kind, Object};
use proptest::prelude::{any, prop, proptest};
use serde_json::{Value, json};

use super::{Line, Page, Status, item, known, line, page, read_list};
use crate::kubernetes::resource::{Namespace, Resource};
use crate::store::check_readable;

fn node() -> Value {
    json!({
        "metadata": {
            "name": "node1", "uid": "u1", "resourceVersion": "42", "labels": {"zone": "a"},
            "managedFields": [{"manager": "kubelet"}],
            "annotations": {
                "fairlead.io/lease": "{\"podCIDRs\":[\"10.244.1.0/24\"],\"underlay\":[\"198.18.0.1\"],\
                    \"backend\":{\"type\":\"vxlan\",\"vni\":1,\"port\":8472,\"mac\":\"02:00:00:00:00:01\"},\
                    \"mtu\":1450,\"later\":true}",
                "other.io/x": "y",
            },
        },
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "198.18.0.1"}, {"type": "Hostname", "address": "node1"}],
            "images": [{"names": ["x"], "sizeBytes": 1}], "nodeInfo": {"kernelVersion": "6"},
        },
    })
}

fn list(items: Value) -> Vec<u8> {
    json!({"kind": "List", "metadata": {"resourceVersion": "7", "continue": "next"}, "items": items})
        .to_string()
        .into()
}

fn read_line(resource: Resource, value: &Value) -> Result<Line, String> {
    line(resource, value.to_string().as_bytes())
}

#[test]
fn a_node_is_read_with_its_lease() {
    let item = item(Resource::Nodes, node().to_string().as_bytes()).unwrap();
    assert_eq!((item.uid.as_str(), item.version.as_str()), ("u1", "42"));
    let [Object::Node(node), Object::Lease(lease)] = &item.objects[..] else { panic!("{item:?}") };
    assert_eq!((node.pod_cidrs.len(), node.addresses.len(), node.labels.get("zone")), (1, 1, Some("a")));
    assert_eq!((lease.mtu, lease.pod_cidrs.len()), (1450, 1));
    assert_eq!(item.faults, []);
}

#[test]
fn what_a_lease_says_reads_back_the_same() {
    let item = item(Resource::Nodes, node().to_string().as_bytes()).unwrap();
    let Object::Lease(lease) = &item.objects[1] else { panic!() };
    let mut again = node();
    again["metadata"]["annotations"]["fairlead.io/lease"] = crate::manifest::encode_spec(lease).into();
    let again = super::item(Resource::Nodes, again.to_string().as_bytes()).unwrap();
    assert_eq!(again.objects, item.objects);
}

#[test]
fn a_broken_lease_leaves_the_node_and_names_the_annotation() {
    for (text, want) in [
        ("{", "metadata.annotations[\"fairlead.io/lease\"] EOF while parsing"),
        (
            "{\"mtu\": 1450}",
            "metadata.annotations[\"fairlead.io/lease\"] is no lease: backend.type is missing",
        ),
        (
            "[]",
            "metadata.annotations[\"fairlead.io/lease\"] is no lease: the whole is a list, not a mapping of fields",
        ),
    ] {
        let mut node = node();
        node["metadata"]["annotations"]["fairlead.io/lease"] = text.into();
        let item = item(Resource::Nodes, node.to_string().as_bytes()).unwrap();
        let [(Key::Lease(_), fault)] = &item.faults[..] else { panic!("{item:?}") };
        let told = format!("{} {}", fault.field.as_deref().unwrap(), fault.reason);
        assert!(told.starts_with(want), "{told}");
        assert!(matches!(&item.objects[..], [Object::Node(_)]));
    }
    let mut node = node();
    node["metadata"]["annotations"]["fairlead.io/lease"] = "".into();
    assert_eq!(item(Resource::Nodes, node.to_string().as_bytes()).unwrap().objects.len(), 1);
}

#[test]
fn a_list_tells_its_version_and_what_to_go_on_with() {
    let Page { items, version, next } = page(Resource::Nodes, &list(json!([node()]))).unwrap();
    assert_eq!((items.len(), &*version, next.as_deref()), (1, "7", Some("next")));
    assert_eq!(page(Resource::Nodes, &list(Value::Null)).unwrap().items, []);
    let no_lists = [
        json!({"metadata": {"resourceVersion": "7"}}),
        json!({"items": []}),
        json!({"metadata": {}, "items": []}),
        json!({"kind": "Status", "metadata": {}, "status": "Failure"}),
        json!([]),
        json!({"metadata": {"resourceVersion": "7"}, "items": [{"metadata": {}}]}),
        json!({"metadata": {"resourceVersion": "7"}, "items": {"a": 1}}),
    ];
    for bad in no_lists {
        assert!(
            page(Resource::Nodes, bad.to_string().as_bytes()).is_err(),
            "{bad}: nothing may look like no nodes"
        );
    }
    let mut half = list(json!([node()]));
    half.truncate(half.len() - 2);
    assert!(page(Resource::Nodes, &half).is_err());
}

#[test]
fn one_object_that_cannot_be_read_does_not_spoil_the_list() {
    let mut wrong = node();
    wrong["metadata"]["name"] = "node2".into();
    wrong["spec"]["podCIDRs"] = json!(["10.244.1.7/24"]);
    let page = page(Resource::Nodes, &list(json!([node(), wrong]))).unwrap();
    assert_eq!(page.items.iter().map(|item| item.objects.len()).collect::<Vec<_>>(), [2, 1]);
    assert!(matches!(&page.items[1].faults[..], [(Key::Node(_), _)]));
    let problems = read_list(Kind::Node, &list(json!([wrong]))).unwrap_err();
    assert_eq!(
        problems[0].to_string(),
        "/api/v1/nodes: node node2: spec.podCIDRs[0] is 10.244.1.7/24, with host bits set (hint: write 10.244.1.0/24)"
    );
}

#[test]
fn other_kinds_are_read_as_manifests_are() {
    let read = |kind, object: Value| read_list(kind, &list(json!([object]))).unwrap();
    let pod = json!({
        "metadata": {"namespace": "shop", "name": "web-0"}, "spec": {"nodeName": "node2", "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIP": "10.244.1.5", "podIPs": [{"ip": "10.244.1.5"}]},
    });
    assert!(matches!(&read(Kind::Pod, pod)[..], [Object::Pod(pod)] if pod.addresses.len() == 1));
    let metadata = json!({"metadata": {"name": "shop", "labels": {"team": "a"}}});
    assert!(matches!(&read(Kind::Namespace, metadata)[..], [Object::Namespace(_)]));
    let service = json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": {"clusterIP": "None", "clusterIPs": ["None"]}});
    assert!(matches!(&read(Kind::Service, service)[..], [Object::Service(service)] if service.headless));
    let slice = json!({"metadata": {"namespace": "shop", "name": "web-x"}, "addressType": "IPv4", "endpoints": null, "ports": null});
    assert_eq!(read(Kind::EndpointSlice, slice).len(), 1);
    let claim = json!({"metadata": {"name": "fairlead-10-244-1-0-24"}, "spec": {"holderIdentity": "node1"}});
    assert!(matches!(&read(Kind::Claim, claim)[..], [Object::Claim(_)]));
    // With our label and another's name it stands for nothing, and harms nothing.
    assert_eq!(read(Kind::Claim, json!({"metadata": {"name": "leader"}})), []);
}

#[test]
fn the_lines_of_a_watch_are_told_apart() {
    let event =
        |kind: &str, object: Value| read_line(Resource::Nodes, &json!({"type": kind, "object": object}));
    assert!(matches!(event("ADDED", node()), Ok(Line::Set(item)) if item.objects.len() == 2));
    assert!(matches!(event("MODIFIED", node()), Ok(Line::Set(_))));
    let Ok(Line::Gone { keys, version }) = event("DELETED", node()) else { panic!() };
    assert_eq!((keys, &*version), (vec![Key::Node("node1".into()), Key::Lease("node1".into())], "42"));
    let bookmark = json!({"kind": "Node", "metadata": {"resourceVersion": "99"}, "spec": {}});
    assert!(matches!(event("BOOKMARK", bookmark), Ok(Line::Bookmark { version }) if version == "99"));
    let gone = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"});
    assert!(matches!(event("ERROR", gone), Ok(Line::Error(status)) if status.is_expired()));
    assert!(event("SURPRISE", node()).is_err());
    assert!(event("ADDED", json!({"metadata": {}})).is_err());
    assert!(event("ADDED", json!("x")).is_err());
    for bad in
        ["", "{}", "[]", "{\"type\":\"ADDED\"}", "{\"object\":{}}", "{\"type\":1,\"object\":{}}", "\u{0}"]
    {
        assert!(line(Resource::Nodes, bad.as_bytes()).is_err(), "{bad:?}");
    }
}

#[test]
fn a_refusal_says_whether_to_list_again_and_how_long_to_wait() {
    let status = |value: Value| serde_json::from_value::<Status>(value).unwrap();
    assert!(status(json!({"code": 410, "reason": "Gone"})).is_expired());
    let ahead = json!({"code": 504, "reason": "Timeout", "details": {"causes": [{"reason": "ResourceVersionTooLarge"}]}});
    assert!(status(ahead).is_expired());
    let busy = status(json!({"code": 429, "details": {"retryAfterSeconds": 3}}));
    assert!(!busy.is_expired());
    assert_eq!(busy.retry_after(), Some(3));
    assert_eq!(status(json!({})), Status::default());
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for resource in Resource::ALL {
            let _ = (page(resource, &bytes), item(resource, &bytes), line(resource, &bytes));
        }
    }

    /// One value anywhere in an answer is replaced by another.
    #[test]
    fn an_answer_with_any_fault_does_no_harm(place in any::<prop::sample::Index>(), with in 0..7usize) {
        let mut answer = json!({"metadata": {"resourceVersion": "7"}, "items": [node()]});
        let count = values(&mut answer, usize::MAX, &Value::Null);
        let others =
            [Value::Null, json!(true), json!(-1), json!(1.5), json!(""), json!([null]), json!({"a": {"b": []}})];
        values(&mut answer, place.index(count), &others[with]);
        if let Ok(page) = page(Resource::Nodes, answer.to_string().as_bytes()) {
            for item in page.items {
                // All that it stands for is either read, faulty, or plainly not there.
                assert_eq!(item.keys.len(), 2);
                for object in &item.objects {
                    assert!(item.keys.contains(&object.key()), "{object:?}");
                    assert!(item.faults.iter().all(|(key, _)| *key != object.key()));
                }
            }
        }
    }
}

/// Counts the values of a tree, and replaces the one of that number.
fn values(value: &mut Value, replaced: usize, with: &Value) -> usize {
    fn walk(value: &mut Value, at: &mut usize, replaced: usize, with: &Value) {
        if *at == replaced {
            *value = with.clone();
        }
        *at += 1;
        match value {
            Value::Array(items) => items.iter_mut().for_each(|item| walk(item, at, replaced, with)),
            Value::Object(fields) => fields.values_mut().for_each(|field| walk(field, at, replaced, with)),
            _ => {}
        }
    }
    let mut at = 0;
    walk(value, &mut at, replaced, with);
    at
}

#[test]
fn a_node_that_cannot_be_read_is_no_node_that_is_gone() {
    let (key, layout) = (Key::Node("node1".into()), Namespace("kube-system".to_owned()));
    let read = |node: &Value| item(Resource::Nodes, node.to_string().as_bytes()).unwrap();
    let mut broken = node();
    check_readable(&layout, &key, &read(&broken)).unwrap();
    // A lease that is broken is no fault of its Node.
    broken["metadata"]["annotations"]["fairlead.io/lease"] = "{".into();
    check_readable(&layout, &key, &read(&broken)).unwrap();
    broken["spec"]["podCIDRs"] = json!(["10.244.1.0/33"]);
    let told = check_readable(&layout, &key, &read(&broken)).unwrap_err().to_string();
    assert!(told.starts_with("cannot read node node1: /api/v1/nodes/node1: "), "{told}");
    assert!(told.contains("spec.podCIDRs"), "{told}");
}

#[test]
fn what_a_server_knows_is_its_own_word_and_not_that_of_somebody_before_it() {
    let resource = Resource::ClusterNetworkPolicies;
    let groups = |version: &str| {
        let text = format!(
            r#"{{"kind": "APIGroupList", "groups": [{{"name": "apps", "versions": [{{"version": "v1alpha2"}}]}},
                {{"name": "policy.networking.k8s.io", "versions": [{{"version": "{version}"}}]}}]}}"#
        );
        known(text.as_bytes()).unwrap().has_group_of(resource)
    };
    assert!(groups("v1alpha2") && !groups("v1alpha1"));
    let resources = |name: &str| {
        let text = format!(r#"{{"kind": "APIResourceList", "resources": [{{"name": "{name}"}}]}}"#);
        known(text.as_bytes()).unwrap().has(resource)
    };
    assert!(resources("clusternetworkpolicies") && !resources("clusternetworkpolicies/status"));
    for other in ["404 page not found", "<html>", "{}", r#"{"kind": "Status", "code": 404}"#] {
        assert!(known(other.as_bytes()).is_err(), "{other}");
    }
}
