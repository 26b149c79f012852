//! DEL: succeeds whatever is missing, and reaches everything that is there.

use harness::{Call, Namespace};
use serde_json::{Value, json};

use crate::scene::{Scene, with_previous};

fn everything(scene: &Scene) -> Value {
    scene.config(
        &["10.1.2.0/24", "2001:db8:42::/64"],
        json!({ "isDefaultGateway": true, "ipMasq": true, "macspoofchk": true, "hairpinMode": true }),
    )
}

// 9
#[test]
fn del_before_any_add_and_del_twice_succeed() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let config = everything(&scene);
    let call = scene.call("c", &pod);
    call.del(&config);
    let previous = with_previous(&config, &call.add(&config));
    call.del(&previous);
    scene.expect_clean("the first DEL");
    assert!(pod.link_names().is_empty());
    call.del(&previous);
    call.del(&config);
}

// 9
#[test]
fn del_needs_neither_namespace_nor_previous_result() {
    let scene = Scene::new();
    let config = everything(&scene);
    for netns in ["", "/var/run/netns/there-is-no-such-name"] {
        let pod = Namespace::new();
        let mut call = scene.call("c", &pod);
        call.add(&config);
        // The namespace lives on: the host's end has to be found by its name.
        call.netns = netns.into();
        call.del(&config);
        scene.expect_clean(&format!("DEL with namespace {netns:?}"));
        assert!(pod.link_names().is_empty());
    }
}

// 9
#[test]
fn del_works_when_the_bridge_is_gone_and_when_the_bridges_name_is_foreign() {
    let scene = Scene::new();
    let config = everything(&scene);
    for foreign in [false, true] {
        let pod = Namespace::new();
        let call = scene.call("c", &pod);
        call.add(&config);
        scene.host.ip("link del cni0");
        if foreign {
            scene.host.ip("link add cni0 type ifb");
        }
        call.del(&config);
        scene.expect_clean("DEL without the bridge");
    }
}

// 9
#[test]
fn del_frees_the_address_when_the_link_is_gone() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let config = everything(&scene);
    let call = scene.call("c", &pod);
    call.add(&config);
    pod.ip("link del eth0");
    call.del(&config);
    scene.expect_clean("DEL without the link");
}

#[test]
fn del_does_not_take_the_link_of_the_namespaces_next_tenant() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let config = everything(&scene);
    let old = scene.call("old", &pod);
    old.add(&config);
    old.del(&config);
    // The path now denotes the namespace of another container, as after the reuse of a process id.
    scene.call("new", &pod).add(&config);
    old.del(&config);
    assert_eq!(pod.link_names(), ["eth0"]);
    assert_eq!(scene.elements().len(), 4);
}

#[test]
fn a_failing_address_plugin_does_not_keep_the_link_alive() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let config = everything(&scene);
    let call = scene.call("c", &pod);
    call.add(&config);
    let mut broken = config.clone();
    broken["ipam"]["type"] = json!("there-is-no-such-plugin");
    let reply = call.run("DEL", &broken);
    assert_ne!(reply.exit, Some(0));
    assert!(pod.link_names().is_empty(), "the link went all the same");
    assert!(scene.elements().is_empty());
    call.del(&config);
    scene.expect_clean("DEL with the right plugin");
}

#[test]
fn a_network_that_no_longer_masquerades_is_cleaned_all_the_same() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let call = scene.call("c", &pod);
    call.add(&everything(&scene));
    call.del(&scene.config(&["10.1.2.0/24"], json!({})));
    scene.expect_clean("DEL with a changed configuration");
}

// What the reference plugins made, ours take away: a node changes binaries without being drained.
#[test]
fn del_removes_what_the_reference_plugin_made() {
    let Some(reference) = harness::reference_plugins() else {
        return harness::not_run("the reference plugins are not installed");
    };
    let scene = Scene::new();
    let pod = Namespace::new();
    let config = scene.config(&["10.1.2.0/24"], json!({ "isGateway": true, "cniVersion": "0.4.0" }));
    let theirs = Call::new(&scene.host, &reference, "bridge", "c", &pod);
    let result = theirs.add(&config);
    assert_eq!(scene.reserved(), ["10.1.2.2"]);
    scene.call("c", &pod).del(&with_previous(&config, &result));
    assert!(pod.link_names().is_empty());
    scene.expect_clean("what the reference plugin made");
}

// Appendix B 3
#[test]
fn one_container_may_join_a_network_twice_and_leave_once() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let config = everything(&scene);
    let first = scene.call("c", &pod);
    let mut second = scene.call("c", &pod);
    second.ifname = "net1";
    // Its default routes would be the first interface's again.
    let mut without_routes = config.clone();
    without_routes["isDefaultGateway"] = json!(false);
    without_routes["isGateway"] = json!(true);
    first.add(&config);
    second.add(&without_routes);
    assert_eq!(pod.link_names(), ["eth0", "net1"]);
    first.del(&config);
    assert_eq!(pod.link_names(), ["net1"]);
    assert_eq!(scene.reserved(), ["10.1.2.3", "2001:db8:42::3"]);
    assert_eq!(scene.elements().len(), 4);
    second.del(&without_routes);
    scene.expect_clean("both attachments gone");
}
