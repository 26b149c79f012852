//! GC: what is not in the list goes, what is stays, and other networks are not looked at.

use harness::Namespace;
use serde_json::{Value, json};

use crate::scene::{Scene, overlay};

struct Attached {
    scene: Scene,
    pods: Vec<Namespace>,
}

/// Pods `a` and `b` in network `test`, pod `a` in network `other`.
fn attached() -> Attached {
    let scene = Scene::new();
    let pods = vec![Namespace::new(), Namespace::new(), Namespace::new()];
    scene.call("a", &pods[0]).add(&config(&scene, "test"));
    scene.call("b", &pods[1]).add(&config(&scene, "test"));
    scene.call("a", &pods[2]).add(&config(&scene, "other"));
    Attached { scene, pods }
}

fn config(scene: &Scene, network: &str) -> Value {
    let mut config = scene.config(
        &[if network == "test" { "10.1.2.0/24" } else { "10.9.9.0/24" }],
        json!({ "isGateway": true, "ipMasq": true, "macspoofchk": true, "name": network }),
    );
    overlay(&mut config, json!({ "bridge": if network == "test" { "cni0" } else { "cni1" } }));
    config
}

fn collect(attached: &Attached, valid: Value) -> harness::Reply {
    let mut config = config(&attached.scene, "test");
    overlay(&mut config, json!({ "cni.dev/valid-attachments": valid }));
    attached.scene.call("", &attached.pods[0]).run("GC", &config)
}

// 12
#[test]
fn an_absent_list_is_refused_and_nothing_goes() {
    let attached = attached();
    let config = config(&attached.scene, "test");
    let reply = attached.scene.call("", &attached.pods[0]).run("GC", &config);
    assert_eq!(reply.error_code(), 7);
    assert_eq!(attached.pods[0].link_names(), ["eth0"]);
    assert_eq!(attached.scene.reserved().len(), 2);
}

// 12
#[test]
fn an_empty_list_takes_all_of_this_network_and_nothing_of_another() {
    let attached = attached();
    collect(&attached, json!([])).expect_success("GC");
    assert!(attached.pods[0].link_names().is_empty() && attached.pods[1].link_names().is_empty());
    assert_eq!(attached.pods[2].link_names(), ["eth0"]);
    assert!(attached.scene.reserved().is_empty());
    assert_eq!(crate::scene::reserved(attached.scene.data.path(), "other").len(), 1);
    let elements = attached.scene.elements();
    assert_eq!(elements.len(), 3, "{elements:?}");
}

// 12, 70
#[test]
fn what_the_list_names_stays() {
    let attached = attached();
    let valid = json!([{ "containerID": "b", "ifname": "eth0" }, { "containerID": "a", "ifname": "net1" }]);
    collect(&attached, valid).expect_success("GC");
    assert!(attached.pods[0].link_names().is_empty());
    assert_eq!(attached.pods[1].link_names(), ["eth0"]);
    assert_eq!(attached.scene.reserved(), ["10.1.2.3"]);
    assert_eq!(attached.scene.elements().len(), 6);
}

// 70
#[test]
fn a_failing_address_plugin_does_not_stop_the_rest() {
    let attached = attached();
    let mut config = config(&attached.scene, "test");
    overlay(
        &mut config,
        json!({ "cni.dev/valid-attachments": [], "ipam": { "type": "there-is-no-such-plugin" } }),
    );
    let reply = attached.scene.call("", &attached.pods[0]).run("GC", &config);
    assert_ne!(reply.exit, Some(0));
    assert!(reply.error_text().contains("there-is-no-such-plugin"), "{reply:?}");
    assert!(attached.pods[0].link_names().is_empty() && attached.pods[1].link_names().is_empty());
    assert_eq!(attached.scene.elements().len(), 3);
}

#[test]
fn a_pod_whose_namespace_vanished_is_collected() {
    let mut attached = attached();
    attached.pods.remove(0);
    collect(&attached, json!([{ "containerID": "b", "ifname": "eth0" }])).expect_success("GC");
    assert_eq!(attached.scene.reserved(), ["10.1.2.3"]);
    assert_eq!(attached.scene.elements().len(), 6);
    assert_eq!(attached.pods[0].link_names(), ["eth0"]);
}
