//! `bridge` with VLANs. Needs a kernel with bridge VLAN filtering: where this machine's has none,
//! `cargo xtask vm-test` runs these in a virtual machine. Behaviours 20 to 22, and the gateway device's life.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a failure here is a failure of the test, and tools are what it asserts with"
)]

use harness::{Call, Namespace, not_run, run};
use serde_json::{Value, json};
use tempfile::TempDir;

struct Scene {
    host: Namespace,
    bin: TempDir,
    data: TempDir,
}

impl Scene {
    /// `None`, after saying so, on a kernel that cannot.
    fn new() -> Option<Self> {
        let scene = Self {
            host: Namespace::with_loopback(),
            bin: harness::plugin_directory(&["bridge", "host-local"]),
            data: tempfile::tempdir().expect("a temporary directory"),
        };
        let probe = ["link", "add", "probe", "type", "bridge", "vlan_filtering", "1"];
        if !run(scene.host.command("ip").args(probe)).status.success() {
            not_run("the kernel has no bridge VLAN filtering");
            return None;
        }
        scene.host.ip("link del probe");
        Some(scene)
    }

    fn config(&self, more: Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "test", "type": "bridge", "bridge": "cni0",
            "ipam": {
                "type": "host-local", "ranges": [[{ "subnet": "10.1.2.0/24" }]], "dataDir": self.data.path(),
            },
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    }

    fn call<'a>(&'a self, container_id: &'a str, pod: &Namespace) -> Call<'a> {
        Call::new(&self.host, self.bin.path(), "bridge", container_id, pod)
    }

    /// The VLANs of a port as "id", "id pvid untagged" and so on, in order.
    fn vlans(&self, port: &str) -> Vec<String> {
        let shown = self.host.bridge_json("vlan show");
        let port = shown.as_array().unwrap().iter().find(|found| found["ifname"] == port);
        let vlans = port.and_then(|port| port["vlans"].as_array()).cloned().unwrap_or_default();
        vlans.iter().flat_map(described).collect()
    }

    fn holds(&self, name: &str) -> bool {
        self.host.link_names().iter().any(|link| link == name)
    }
}

fn described(vlan: &Value) -> Vec<String> {
    let first = vlan["vlan"].as_u64().unwrap();
    let last = vlan["vlanEnd"].as_u64().unwrap_or(first);
    let flags = vlan["flags"].as_array().cloned().unwrap_or_default();
    let has = |name: &str| flags.iter().any(|flag| flag.as_str().unwrap().to_lowercase().contains(name));
    let pvid = if has("pvid") { " pvid" } else { "" };
    let untagged = if has("untagged") { " untagged" } else { "" };
    (first..=last).map(|id| format!("{id}{pvid}{untagged}")).collect()
}

fn host_link(result: &Value) -> String {
    result["interfaces"][1]["name"].as_str().unwrap().to_owned()
}

// 20
#[test]
fn an_access_port_is_in_its_vlan_and_in_no_other() {
    let Some(scene) = Scene::new() else { return };
    let pod = Namespace::new();
    let result = scene.call("c", &pod).add(&scene.config(json!({ "vlan": 100 })));
    assert_eq!(scene.vlans(&host_link(&result)), ["100 pvid untagged"]);
    let filtering =
        scene.host.ip_json("link show cni0")[0]["linkinfo"]["info_data"]["vlan_filtering"].clone();
    assert_eq!(filtering, 1);
}

// 20
#[test]
fn the_bridges_default_vlan_is_kept_when_asked_for() {
    let Some(scene) = Scene::new() else { return };
    let pod = Namespace::new();
    let config = scene.config(json!({ "vlan": 100, "preserveDefaultVlan": true }));
    let result = scene.call("c", &pod).add(&config);
    assert_eq!(scene.vlans(&host_link(&result)), ["1 untagged", "100 pvid untagged"]);
}

// 20
#[test]
fn a_trunk_carries_its_vlans_tagged_beside_the_native_one() {
    let Some(scene) = Scene::new() else { return };
    let trunk = json!([{ "id": 101 }, { "minID": 200, "maxID": 202 }]);
    let (native, access) = (Namespace::new(), Namespace::new());
    let result = scene.call("native", &native).add(&scene.config(json!({ "vlanTrunk": trunk })));
    assert_eq!(scene.vlans(&host_link(&result)), ["1 pvid untagged", "101", "200", "201", "202"]);
    let result = scene.call("access", &access).add(&scene.config(json!({ "vlan": 100, "vlanTrunk": trunk })));
    assert_eq!(scene.vlans(&host_link(&result)), ["100 pvid untagged", "101", "200", "201", "202"]);
}

// 22
#[test]
fn wrong_vlans_are_refused_before_anything_is_made() {
    let Some(scene) = Scene::new() else { return };
    for (wrong, text) in [
        (json!({ "vlan": -100 }), "invalid VLAN ID -100 (must be between 0 and 4094)"),
        (json!({ "vlan": 5000 }), "invalid VLAN ID 5000 (must be between 0 and 4094)"),
        (json!({ "vlanTrunk": [{ "id": 4095 }] }), "incorrect trunk id parameter"),
    ] {
        let pod = Namespace::new();
        let reply = scene.call("c", &pod).run("ADD", &scene.config(wrong));
        assert_eq!(reply.error_code(), 7);
        assert!(reply.error_text().contains(text), "{reply:?}");
        assert!(!scene.holds("cni0") && pod.link_names().is_empty());
    }
}

#[test]
fn pods_of_two_vlans_do_not_hear_each_other() {
    let Some(scene) = Scene::new() else { return };
    let (one, same, other) =
        (Namespace::with_loopback(), Namespace::with_loopback(), Namespace::with_loopback());
    scene.call("one", &one).add(&scene.config(json!({ "vlan": 100 })));
    scene.call("same", &same).add(&scene.config(json!({ "vlan": 100 })));
    scene.call("other", &other).add(&scene.config(json!({ "vlan": 200 })));
    assert!(one.pings("10.1.2.3"));
    assert!(!one.pings("10.1.2.4"));
}

// 21, P#1175
#[test]
fn a_vlans_gateway_is_a_device_of_its_own_and_goes_with_the_last_pod() {
    let Some(scene) = Scene::new() else { return };
    let (first, second, elsewhere) =
        (Namespace::with_loopback(), Namespace::with_loopback(), Namespace::with_loopback());
    let config = scene.config(json!({ "vlan": 100, "isDefaultGateway": true }));
    let result = scene.call("first", &first).add(&config);
    let interfaces = result["interfaces"].as_array().unwrap();
    assert_eq!(interfaces.len(), 4);
    assert_eq!(interfaces[3]["name"], "cni0.100");
    let gateway = scene.host.ip("-4 addr show dev cni0.100");
    assert!(gateway.contains("10.1.2.1/24"), "{gateway}");
    assert!(!scene.host.ip("-4 addr show dev cni0").contains("10.1.2.1"));
    assert!(first.pings("10.1.2.1"));
    let mut previous = config.clone();
    previous["prevResult"] = result.clone();
    assert_eq!(scene.call("first", &first).run("CHECK", &previous).exit, Some(0));
    scene.call("second", &second).add(&config);
    scene.call("elsewhere", &elsewhere).add(&scene.config(json!({ "vlan": 200 })));
    scene.call("first", &first).del(&config);
    assert!(scene.holds("cni0.100"), "the second pod still needs it");
    assert!(second.pings("10.1.2.1"));
    scene.call("second", &second).del(&config);
    assert!(!scene.holds("cni0.100"), "nobody needs it any more");
    let left: Vec<String> = scene.host.link_names();
    assert_eq!(left.iter().filter(|name| name.starts_with("veth")).count(), 1, "{left:?}");
    scene.call("first", &first).add(&config);
    assert!(scene.holds("cni0.100") && first.pings("10.1.2.1"));
}

#[test]
fn gc_takes_a_gateway_that_nobody_uses() {
    let Some(scene) = Scene::new() else { return };
    let pod = Namespace::new();
    let mut config = scene.config(json!({ "vlan": 100, "isGateway": true }));
    scene.call("c", &pod).add(&config);
    drop(pod);
    let pod = Namespace::new();
    config["cni.dev/valid-attachments"] = json!([]);
    scene.call("", &pod).run("GC", &config).expect_success("GC");
    assert_eq!(scene.host.link_names(), ["cni0"]);
}

// P#231, P#965
#[test]
fn filtering_is_switched_on_for_a_bridge_of_ours_and_asked_for_on_a_foreign_one() {
    let Some(scene) = Scene::new() else { return };
    let (plain, tagged) = (Namespace::with_loopback(), Namespace::with_loopback());
    scene.call("plain", &plain).add(&scene.config(json!({ "isGateway": true })));
    scene.call("tagged", &tagged).add(&scene.config(json!({ "vlan": 100 })));
    assert!(plain.pings("10.1.2.1"), "the pod that was there before is still served");
    scene.host.ip("link add br7 type bridge");
    let pod = Namespace::new();
    let config = scene.config(json!({ "bridge": "br7", "vlan": 100 }));
    let reply = scene.call("c", &pod).run("ADD", &config);
    assert_eq!(reply.error_code(), 7);
    assert!(reply.error_text().contains("ip link set br7 type bridge vlan_filtering 1"), "{reply:?}");
    assert_eq!(scene.call("c", &pod).run("STATUS", &config).error_code(), 50);
    scene.host.ip("link set br7 type bridge vlan_filtering 1");
    scene.call("c", &pod).add(&config);
}

// 29
#[test]
fn check_notices_a_lost_vlan() {
    let Some(scene) = Scene::new() else { return };
    let pod = Namespace::new();
    let config = scene.config(json!({ "vlan": 100, "vlanTrunk": [{ "id": 101 }] }));
    let call = scene.call("c", &pod);
    let result = call.add(&config);
    let mut previous = config.clone();
    previous["prevResult"] = result.clone();
    assert_eq!(call.run("CHECK", &previous).exit, Some(0));
    let delete = ["vlan", "del", "dev", &host_link(&result), "vid", "101"];
    assert!(run(scene.host.command("bridge").args(delete)).status.success());
    assert!(call.run("CHECK", &previous).error_text().contains("VLAN 101"));
}
