//! CHECK: content right after ADD, and not after any single thing is taken away.

use harness::{Namespace, run_ok};
use serde_json::{Value, json};

use crate::scene::{Scene, only_host_link, with_previous};

/// Adds a pod, lets `break_it` do one thing, and returns what CHECK then says ("" when content).
fn checked_after(break_it: impl FnOnce(&Scene, &Namespace)) -> String {
    let scene = Scene::new();
    let pod = Namespace::with_loopback();
    let config = scene.config(
        &["10.1.2.0/24", "2001:db8:42::/64"],
        json!({ "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true, "macspoofchk": true }),
    );
    let call = scene.call("c", &pod);
    let config = with_previous(&config, &call.add(&config));
    let before = call.run("CHECK", &config);
    assert_eq!((before.exit, before.stdout.as_str()), (Some(0), ""), "{before:?}");
    break_it(&scene, &pod);
    let after = call.run("CHECK", &config);
    if after.exit == Some(0) { String::new() } else { after.error_text() }
}

// 29
#[test]
fn a_sound_attachment_passes() {
    assert_eq!(checked_after(|_, _| {}), "");
}

// 29
#[test]
fn each_thing_taken_away_is_noticed() {
    type Break = fn(&Scene, &Namespace);
    let breaks: [(&str, Break); 15] = [
        ("0.0.0.0/0", |_, pod| drop(pod.ip("route del default"))),
        ("::/0", |_, pod| drop(pod.ip("-6 route del default"))),
        ("10.1.2.2", |_, pod| drop(pod.ip("-4 addr flush dev eth0"))),
        ("2001:db8:42::2", |_, pod| drop(pod.ip("-6 addr del 2001:db8:42::2/64 dev eth0"))),
        ("cni0", |scene, _| {
            drop(scene.host.ip(&format!("link set {} nomaster", only_host_link(&scene.host))))
        }),
        ("eth0", |_, pod| drop(pod.ip("link set eth0 address 02:00:00:00:00:66"))),
        ("eth0", |_, pod| drop(pod.ip("link del eth0"))),
        ("eth0", |_, pod| drop(pod.ip("link set eth0 down"))),
        ("cni0", |scene, _| drop(scene.host.ip("link set cni0 address 02:00:00:00:00:66"))),
        ("cni0", |scene, _| drop(scene.host.ip("link del cni0"))),
        ("cni0", |scene, _| drop(scene.host.ip("link set cni0 promisc on"))),
        ("10.1.2.1", |scene, _| drop(scene.host.ip("addr del 10.1.2.1/24 dev cni0"))),
        ("hairpin", |scene, _| {
            run_ok(scene.host.command("bridge").args([
                "link",
                "set",
                "dev",
                &only_host_link(&scene.host),
                "hairpin",
                "off",
            ]));
        }),
        ("masquerad", |scene, _| {
            drop(run_ok(scene.host.command("nft").args(["delete", "table", "inet", "fairlead_cni"])))
        }),
        ("hardware address", |scene, _| {
            run_ok(scene.host.command("nft").args(["delete", "table", "bridge", "fairlead_macspoof"]));
        }),
    ];
    for (number, (named, break_it)) in breaks.into_iter().enumerate() {
        let said = checked_after(break_it);
        assert!(said.contains(named), "break {number}: {said:?} should name {named:?}");
    }
}

// 29
#[test]
fn a_lost_address_reservation_is_noticed() {
    let said = checked_after(|scene, _| {
        std::fs::remove_file(scene.data.path().join("test/10.1.2.2")).unwrap();
    });
    assert_ne!(said, "");
}

#[test]
fn what_later_plugins_add_is_tolerated() {
    let said = checked_after(|_, pod| {
        pod.ip("addr add 10.9.9.9/24 dev eth0");
        pod.ip("route add 192.0.2.0/24 via 10.1.2.7");
        pod.ip("link add extra type ifb");
    });
    assert_eq!(said, "");
}

#[test]
fn a_previous_result_is_required_and_must_be_ours() {
    let scene = Scene::new();
    let (pod, other) = (Namespace::new(), Namespace::new());
    let config = scene.config(&["10.1.2.0/24"], json!({}));
    let result = scene.call("c", &pod).add(&config);
    assert_eq!(scene.call("c", &pod).run("CHECK", &config).error_code(), 7);
    let mut elsewhere = result.clone();
    elsewhere["interfaces"][2]["sandbox"] = json!(other.path());
    let reply = scene.call("c", &pod).run("CHECK", &with_previous(&config, &elsewhere));
    assert!(reply.error_text().contains("sandbox"), "{reply:?}");
    let mut without = result;
    without["interfaces"] = json!([]);
    assert_ne!(scene.call("c", &pod).run("CHECK", &with_previous(&config, &without)).exit, Some(0));
}

// The reference plugin asks for addresses here even of a network that has none.
#[test]
fn a_network_without_addresses_passes_too() {
    let scene = Scene::new();
    for more in [json!({}), json!({ "disableContainerInterface": true }), json!({ "portIsolation": true })] {
        let pod = Namespace::new();
        let config = scene.layer2(more);
        let call = scene.call("c", &pod);
        let config = with_previous(&config, &call.add(&config));
        assert_eq!(call.run("CHECK", &config).exit, Some(0));
        call.del(&config);
    }
}

#[test]
fn status_is_content_until_something_stands_in_the_way() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let config = scene.config(&["10.1.2.0/24"], json!({ "ipMasq": true, "macspoofchk": true }));
    let status = |config: &Value| scene.call("c", &pod).run("STATUS", config);
    assert_eq!((status(&config).exit, status(&config).stdout), (Some(0), String::new()));
    assert!(scene.host.link_names().is_empty(), "STATUS makes nothing");
    scene.host.ip("link add cni0 type ifb");
    assert_eq!(status(&config).error_code(), 50);
    scene.host.ip("link del cni0");
    let full = scene.config(&["10.1.2.0/30"], json!({}));
    assert_eq!(status(&full).exit, Some(0));
    scene.call("c", &pod).add(&full);
    assert_eq!(status(&full).error_code(), 50);
}
