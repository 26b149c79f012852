//! `host-device` deeper than the comparison with the reference goes (`tests/conformance/tests/host_device.rs`):
//! names that are taken at home, notes that are lost, namespaces that go, and a kill or a failure at every step.
//! Whatever happens, the device has to be found again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a failure here is a failure of the test, and tools are what it asserts with"
)]

use std::{net::IpAddr, process::Command};

use harness::{Call, Disturbance, Namespace, every_step, not_run, run_ok, strace_works};
use serde_json::{Value, json};
use tempfile::TempDir;

const MAC: &str = "02:00:00:00:00:77";

/// A host with the device `ens1`, up and with an alias, and an empty address store.
struct Scene {
    host: Namespace,
    bin: TempDir,
    data: TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self {
            host: Namespace::with_loopback(),
            bin: harness::plugin_directory(&["host-device", "host-local"]),
            data: tempfile::tempdir().unwrap(),
        };
        scene.host.ip(&format!("link add ens1 address {MAC} type veth peer name far"));
        scene.host.ip("link set ens1 up alias uplink");
        scene.host.ip("link set far up");
        scene
    }

    fn config(&self) -> Value {
        let ranges = json!([[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "2001:db8:42::/64" }]]);
        json!({
            "cniVersion": "1.1.0", "name": "test", "type": "host-device", "device": "ens1", "enabledad": false,
            "ipam": { "type": "host-local", "ranges": ranges, "dataDir": self.data.path() },
        })
    }

    fn call<'a>(&'a self, container: &'a str, pod: &Namespace) -> Call<'a> {
        let call = Call::new(&self.host, self.bin.path(), "host-device", container, pod);
        Call { ifname: "net1", ..call }
    }

    fn reserved(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.data.path().join("test")) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| name.parse::<IpAddr>().is_ok()).collect()
    }

    /// The device is at home under its name, nothing is left of the pod's.
    fn expect_home(&self, pod: &Namespace, what: &str) {
        assert_eq!(self.host.link_names(), ["ens1", "far"], "{what}");
        assert_eq!(link(&self.host, "ens1")["address"], MAC, "{what}");
        assert_eq!(pod.link_names(), [""; 0], "{what}");
        assert_eq!(self.reserved(), [""; 0], "{what}: addresses are left");
    }
}

fn link(namespace: &Namespace, name: &str) -> Value {
    let all = namespace.ip_json("link show");
    let found = all.as_array().unwrap().iter().find(|link| link["ifname"] == name);
    found.cloned().unwrap_or_else(|| panic!("no {name} in {all}"))
}

fn is_up(link: &Value) -> bool {
    link["flags"].as_array().unwrap().contains(&json!("UP"))
}

fn clear_alias(namespace: &Namespace, name: &str) {
    let path = format!("--net={}", namespace.path().display());
    run_ok(Command::new("nsenter").args([&path, "ip", "link", "set", name, "alias", ""]));
}

#[test]
fn the_pods_name_and_the_devices_may_each_be_taken_on_the_other_side() {
    let scene = Scene::new();
    let pod = Namespace::new();
    // Each namespace has a link with the name that the device has in the other one.
    pod.ip("link add ens1 type veth peer name x1");
    scene.host.ip("link add net1 type veth peer name x2");
    let config = scene.config();
    let call = scene.call("c", &pod);
    call.add(&config);
    assert_eq!(link(&pod, "net1")["address"], MAC);
    assert_eq!(pod.link_names(), ["ens1", "net1", "x1"]);
    call.del(&config);
    assert_eq!(scene.host.link_names(), ["ens1", "far", "net1", "x2"]);
    let home = link(&scene.host, "ens1");
    assert_eq!(home["address"], MAC);
    assert!(home.get("ifalias").is_none() && !is_up(&home), "{home}");
    assert_eq!(pod.link_names(), ["ens1", "x1"]);
}

#[test]
fn a_device_may_keep_its_name() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let config = scene.config();
    let call = Call { ifname: "ens1", ..scene.call("c", &pod) };
    call.add(&config);
    assert!(is_up(&link(&pod, "ens1")));
    call.del(&config);
    scene.expect_home(&pod, "the same name");
}

// P#773
#[test]
fn a_device_whose_name_is_taken_comes_home_all_the_same_and_that_is_told_once() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let config = scene.config();
    let call = scene.call("c", &pod);
    call.add(&config);
    scene.host.ip("link add ens1 type veth peer name x2");
    let reply = call.run("DEL", &config);
    assert!(reply.error_text().contains("another link called ens1"), "{reply:?}");
    assert!(pod.link_names().is_empty());
    assert_eq!(scene.reserved(), [""; 0]);
    let all = scene.host.ip_json("link show");
    let home = all.as_array().unwrap().iter().find(|link| link["address"] == MAC).expect("it is home");
    assert_eq!(home["ifalias"], "ens1");
    assert!(reply.error_text().contains(home["ifname"].as_str().unwrap()), "{reply:?}");
    call.del(&config);
}

#[test]
fn a_device_whose_name_at_home_is_forgotten_is_known_by_its_address() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let config = scene.config();
    let call = scene.call("c", &pod);
    let result = call.add(&config);
    clear_alias(&pod, "net1");
    let mut previous = config.clone();
    previous["prevResult"] = result;
    let reply = call.run("CHECK", &previous);
    assert!(reply.error_text().contains("is not its alias any more"), "{reply:?}");
    call.del(&previous);
    scene.expect_home(&pod, "known by the result");
    // Without a name to go by, the one it has in the pod is better than none.
    let mut by_address = config;
    by_address.as_object_mut().unwrap().remove("device");
    by_address["hwaddr"] = json!(MAC);
    call.add(&by_address);
    clear_alias(&pod, "net1");
    call.del(&by_address);
    assert_eq!(scene.host.link_names(), ["far", "net1"]);
}

#[test]
fn a_link_that_nobody_lent_is_left_alone() {
    let scene = Scene::new();
    let pod = Namespace::new();
    pod.ip("link add net1 type veth peer name x1");
    scene.call("c", &pod).del(&scene.config());
    assert_eq!(pod.link_names(), ["net1", "x1"]);
    assert_eq!(link(&scene.host, "ens1")["ifalias"], "uplink", "nobody has touched the device");
}

// A runtime follows an ADD that failed with a DEL.
#[test]
fn a_device_that_another_network_lent_stays_where_it_is() {
    let scene = Scene::new();
    let pod = Namespace::new();
    scene.host.ip("link add ens2 type veth peer name far2");
    let lent = scene.config();
    let mut other = scene.config();
    (other["name"], other["device"]) = (json!("other"), json!("ens2"));
    let call = scene.call("c", &pod);
    let result = call.add(&lent);
    assert!(call.run("ADD", &other).error_text().contains("already exists"));
    call.del(&other);
    assert_eq!(link(&pod, "net1")["address"], MAC, "it is the first network's");
    assert_eq!(scene.host.link_names(), ["ens2", "far", "far2"]);
    // What the result lists is brought home, whatever the configuration has come to say.
    let mut edited = other.clone();
    (edited["name"], edited["prevResult"]) = (json!("test"), result);
    call.del(&edited);
    assert_eq!(scene.host.link_names(), ["ens1", "ens2", "far", "far2"]);
}

#[test]
fn del_does_without_a_configuration_that_names_the_device() {
    for key in ["device", "hwaddr", "kernelpath", "pciBusID"] {
        let scene = Scene::new();
        let pod = Namespace::new();
        let config = scene.config();
        let call = scene.call("c", &pod);
        call.add(&config);
        let mut broken = config.clone();
        broken.as_object_mut().unwrap().remove("device");
        broken[key] = json!("is/no/such/thing");
        assert_eq!(call.run("ADD", &broken).error_code(), 7);
        call.del(&broken);
        scene.expect_home(&pod, key);
    }
}

#[test]
fn a_failure_after_the_move_sends_the_device_home_as_it_was() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let mut config = scene.config();
    config["ipam"]["routes"] = json!([{ "dst": "192.0.2.0/24", "gw": "172.16.0.1" }]);
    let reply = scene.call("c", &pod).run("ADD", &config);
    assert!(reply.error_text().contains("192.0.2.0/24"), "{reply:?}");
    scene.expect_home(&pod, "a refused route");
    let home = link(&scene.host, "ens1");
    assert!(is_up(&home) && home["ifalias"] == "uplink", "{home}");
}

#[test]
fn the_loopback_cannot_be_lent() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let mut config = scene.config();
    config["device"] = json!("lo");
    let reply = scene.call("c", &pod).run("ADD", &config);
    assert!(reply.error_text().contains("the loopback cannot be lent"), "{reply:?}");
    assert!(is_up(&link(&scene.host, "lo")));
}

#[test]
fn hardware_is_meant_before_what_sits_on_it() {
    let scene = Scene::new();
    let pod = Namespace::new();
    // A bridge with the device's address, older than the device.
    scene.host.ip("link add br0 type bridge");
    scene.host.ip(&format!("link set br0 address {MAC}"));
    let mut config = scene.config();
    config.as_object_mut().unwrap().remove("device");
    config["hwaddr"] = json!(MAC.replace(':', "-"));
    scene.call("c", &pod).add(&config);
    assert_eq!(link(&pod, "net1")["ifalias"], "ens1");
}

#[test]
fn a_second_pod_is_told_that_the_device_is_not_there() {
    let scene = Scene::new();
    let pods = [Namespace::new(), Namespace::new()];
    let config = scene.config();
    scene.call("first", &pods[0]).add(&config);
    let reply = scene.call("second", &pods[1]).run("ADD", &config);
    assert!(reply.error_text().contains("failed to find host device: device ens1"), "{reply:?}");
    assert_eq!(scene.reserved().len(), 2, "the first pod's");
    // The second's DEL, which runtimes send after a failed ADD, leaves the first in peace.
    scene.call("second", &pods[1]).del(&config);
    assert!(is_up(&link(&pods[0], "net1")));
}

// 12
#[test]
fn gc_gives_addresses_back_and_leaves_devices_that_are_lent() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let mut config = scene.config();
    let call = scene.call("c", &pod);
    call.add(&config);
    assert_eq!(call.run("GC", &config).error_code(), 7);
    config["cni.dev/valid-attachments"] = json!([{ "containerID": "c", "ifname": "net1" }]);
    call.run("GC", &config).expect_success("GC");
    assert_eq!(scene.reserved().len(), 2);
    config["cni.dev/valid-attachments"] = json!([]);
    call.run("GC", &config).expect_success("GC");
    assert_eq!(scene.reserved(), [""; 0]);
    call.run("STATUS", &scene.config()).expect_success("STATUS");
}

/// Kills `command` at each of its steps in turn; a DEL has to bring the device home after each.
fn kill_at_every_step(command: &str) {
    if !strace_works() {
        return not_run("strace cannot trace here");
    }
    let scene = Scene::new();
    let config = scene.config();
    let steps = every_step(|step| {
        let pod = Namespace::new();
        let call = scene.call("c", &pod);
        if command == "DEL" {
            call.add(&config);
        }
        let outcome = call.disturbed(command, &config, Disturbance::Kill, step);
        call.del(&config);
        scene.expect_home(&pod, &format!("{command} killed at {step:?}"));
        assert!(outcome.reached || outcome.reply.exit == Some(0), "{outcome:?}");
        outcome.reached
    });
    assert!(steps > 30, "only {steps} steps: strace killed nothing");
    scene.call("next", &Namespace::new()).add(&config);
}

#[test]
fn an_add_killed_at_any_step_is_cleaned_by_del() {
    kill_at_every_step("ADD");
}

#[test]
fn a_del_killed_at_any_step_is_finished_by_the_next() {
    kill_at_every_step("DEL");
}

// 28, at every place where something can fail
#[test]
fn an_add_that_fails_at_any_step_leaves_the_device_as_it_was() {
    if !strace_works() {
        return not_run("strace cannot trace here");
    }
    let scene = Scene::new();
    let config = scene.config();
    let mut failed = 0;
    every_step(|step| {
        let pod = Namespace::new();
        let call = scene.call("c", &pod);
        let outcome = call.disturbed("ADD", &config, Disturbance::Fail, step);
        let what = format!("ADD failed at {step:?}: {outcome:?}");
        if outcome.reply.exit == Some(0) || (step.name == "setns" && outcome.reply.stdout.is_empty()) {
            // A step that is allowed to fail, or none was disturbed; or the way home from the pod's namespace
            // was barred, where a process must not go on, not even to undo.
            call.del(&config);
        } else {
            failed += 1;
            let home = link(&scene.host, "ens1");
            // A result that cannot be delivered is undone by DEL, which does not know what the device was.
            let by_del = outcome.reply.stdout.contains("error writing to stdout");
            assert!(by_del || (is_up(&home) && home["ifalias"] == "uplink"), "{what}: {home}");
        }
        scene.expect_home(&pod, &what);
        clear_alias(&scene.host, "ens1");
        scene.host.ip("link set ens1 up alias uplink");
        outcome.reached
    });
    assert!(failed > 20, "only {failed} steps can fail: strace disturbed nothing");
}
