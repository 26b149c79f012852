//! `macvlan`, and with it the common life of all plugins whose interface is a single link of the pod's: STATUS and GC,
//! failures and kills at every step, whose link DEL takes, and addresses that somebody else has.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a failure here is a failure of the test, and tools are what it asserts with"
)]

use std::os::unix::fs::PermissionsExt;

use harness::{Call, Disturbance, Namespace, every_step, not_run, strace_works};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A host with an uplink, the plugins, and an empty address store.
struct Scene {
    host: Namespace,
    bin: TempDir,
    data: TempDir,
}

impl Scene {
    fn new() -> Self {
        let host = Namespace::with_loopback();
        host.ip("link add uplink type veth peer name far");
        host.ip("link set far up");
        host.ip("link set uplink up");
        let bin = harness::plugin_directory(&["macvlan", "host-local"]);
        Self { host, bin, data: tempfile::tempdir().expect("a temporary directory") }
    }

    fn config(&self, subnets: &[&str]) -> Value {
        let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
        json!({
            "cniVersion": "1.1.0", "name": "test", "type": "macvlan", "master": "uplink",
            "ipam": { "type": "host-local", "ranges": ranges, "dataDir": self.data.path() },
        })
    }

    fn call<'a>(&'a self, container_id: &'a str, pod: &Namespace) -> Call<'a> {
        Call::new(&self.host, self.bin.path(), "macvlan", container_id, pod)
    }

    fn reserved(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.data.path().join("test")) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect();
        names.sort();
        names
    }

    fn expect_clean(&self, pod: &Namespace, what: &str) {
        assert_eq!(pod.link_names(), [""; 0], "{what}: links are left");
        assert_eq!(self.reserved(), [""; 0], "{what}: addresses are left");
        assert_eq!(self.host.link_names(), ["far", "uplink"], "{what}: the host's links");
    }

    /// Installs a shell script as an address plugin that answers ADD with `add`, and notes every call and whether the
    /// pod's interface stood then.
    fn stub(&self, name: &str, add: &str) -> Value {
        let path = self.bin.path().join(name);
        let log = self.data.path().join("calls");
        let script = format!(
            "#!/bin/sh\ncat > /dev/null\n\
             nsenter --net=$CNI_NETNS ip link show $CNI_IFNAME > /dev/null 2>&1 && there=with || there=without\n\
             echo $CNI_COMMAND $there >> {}\n[ $CNI_COMMAND != ADD ] || {{ {add}; }}\n",
            log.display()
        );
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut config = self.config(&[]);
        config["ipam"] = json!({ "type": name });
        config
    }

    fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.data.path().join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

const GIVES: &str = r#"echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.3/24"}]}'"#;

// 11
#[test]
fn an_address_plugin_that_fails_or_gives_nothing_leaves_no_link_and_is_told() {
    for (add, words) in [
        (r#"echo '{"code": 11, "msg": "the pool rests"}'; exit 1"#, "the pool rests"),
        (r#"echo '{"cniVersion": "1.1.0", "ips": []}'"#, "IPAM plugin returned missing IP config"),
    ] {
        let (scene, pod) = (Scene::new(), Namespace::new());
        let reply = scene.call("c", &pod).run("ADD", &scene.stub("stub-ipam", add));
        assert!(reply.error_text().contains(words), "{reply:?}");
        scene.expect_clean(&pod, words);
        assert_eq!(scene.calls(), ["ADD with", "DEL without"]);
    }
}

#[test]
fn dhcp_takes_its_leave_while_the_link_stands_and_others_after_it_is_gone() {
    for (name, del) in [("dhcp", "DEL with"), ("stub-ipam", "DEL without")] {
        let (scene, pod) = (Scene::new(), Namespace::new());
        let config = scene.stub(name, GIVES);
        scene.call("c", &pod).add(&config);
        scene.call("c", &pod).del(&config);
        assert_eq!(scene.calls(), ["ADD with", del], "{name}");
        scene.expect_clean(&pod, name);
    }
}

#[test]
fn a_plugin_that_names_itself_for_addresses_is_refused_instead_of_going_round_for_ever() {
    let (scene, pod) = (Scene::new(), Namespace::new());
    let call = scene.call("c", &pod);
    let mut config = scene.config(&[]);
    config["ipam"] = json!({ "type": "macvlan" });
    config["cni.dev/valid-attachments"] = json!([]);
    assert_eq!(call.run("ADD", &config).error_code(), 7);
    assert_eq!(call.run("STATUS", &config).error_code(), 50);
    call.del(&config);
    call.run("GC", &config).expect_success("GC");
}

#[test]
fn status_says_what_an_add_would_lack() {
    let (scene, pod) = (Scene::new(), Namespace::new());
    let call = scene.call("c", &pod);
    let good = scene.config(&["10.1.2.0/30"]);
    call.run("STATUS", &good).expect_success("STATUS");
    for (key, value, words) in [
        ("master", json!("nowhere"), "nowhere"),
        ("master", json!(""), "no default route interface found"),
        ("mtu", json!(9000), "invalid MTU"),
        ("mode", json!("foo"), "unknown macvlan mode"),
        ("ipam", json!({ "type": "there-is-no-such-plugin" }), "there-is-no-such-plugin"),
    ] {
        let mut bad = good.clone();
        bad[key] = value;
        let reply = call.run("STATUS", &bad);
        assert_eq!(reply.error_code(), 50, "{reply:?}");
        assert!(reply.error_text().contains(words), "{reply:?}");
    }
    // What is in the pod cannot be known here.
    let mut inside = good.clone();
    inside["master"] = json!("nowhere");
    inside["linkInContainer"] = json!(true);
    call.run("STATUS", &inside).expect_success("STATUS");
    call.add(&good);
    let exhausted = call.run("STATUS", &good);
    assert_eq!(exhausted.error_code(), 50, "{exhausted:?}");
    assert_eq!(scene.host.link_names(), ["far", "uplink"]);
}

// 12
#[test]
fn gc_gives_back_the_addresses_of_those_who_are_not_listed_and_needs_a_list() {
    let scene = Scene::new();
    let pods = [Namespace::new(), Namespace::new()];
    let mut config = scene.config(&["10.1.2.0/24"]);
    scene.call("a", &pods[0]).add(&config);
    scene.call("b", &pods[1]).add(&config);
    assert_eq!(scene.call("", &pods[0]).run("GC", &config).error_code(), 7);
    assert_eq!(scene.reserved().len(), 2);
    config["cni.dev/valid-attachments"] = json!([{ "containerID": "b", "ifname": "eth0" }]);
    config["master"] = json!("nowhere");
    scene.call("", &pods[0]).run("GC", &config).expect_success("GC");
    assert_eq!(scene.reserved(), ["10.1.2.3"]);
    assert_eq!(pods[1].link_names(), ["eth0"]);
}

#[test]
fn del_takes_no_link_of_another_kind_or_of_another_pod() {
    let (scene, pod) = (Scene::new(), Namespace::new());
    let config = scene.config(&["10.1.2.0/24"]);
    scene.call("other", &pod).add(&config);
    scene.call("c", &pod).del(&config);
    assert_eq!(pod.link_names(), ["eth0"], "the namespace is another pod's by now");
    assert_eq!(scene.reserved(), ["10.1.2.2"]);
    scene.call("other", &pod).del(&config);
    assert_eq!(pod.link_names(), [""; 0]);
    pod.ip("link add eth0 type veth peer name eth1");
    scene.call("c", &pod).del(&config);
    assert_eq!(pod.link_names(), ["eth0", "eth1"]);
}

/// Such as one that the reference plugin made before it was replaced.
#[test]
fn del_takes_a_link_that_nobody_has_marked() {
    let (scene, pod) = (Scene::new(), Namespace::new());
    scene.host.ip(&format!("link add link uplink name mv0 netns {} type macvlan", pod.path().display()));
    pod.ip("link set mv0 name eth0");
    scene.call("c", &pod).del(&scene.config(&["10.1.2.0/24"]));
    assert_eq!(pod.link_names(), [""; 0]);
}

#[test]
fn an_ipv6_address_that_another_pod_has_is_refused_unless_nobody_is_asked() {
    let scene = Scene::new();
    let pods = [Namespace::new(), Namespace::new()];
    let mut config = scene.config(&["2001:db8:42::/64"]);
    scene.call("a", &pods[0]).add(&config);
    // Another store gives the same address again.
    let other = tempfile::tempdir().unwrap();
    config["ipam"]["dataDir"] = json!(other.path());
    let reply = scene.call("b", &pods[1]).run("ADD", &config);
    assert!(reply.error_text().contains("2001:db8:42::2/64 on eth0 is a duplicate"), "{reply:?}");
    assert_eq!(pods[1].link_names(), [""; 0]);
    config["enabledad"] = json!(false);
    scene.call("b", &pods[1]).add(&config);
}

/// Who has switched detection off for new links of the pod has done so for this one.
#[test]
fn detection_is_left_to_what_the_pod_has_set() {
    let (scene, pod) = (Scene::new(), Namespace::new());
    harness::run_ok(pod.command("sh").args(["-c", "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad"]));
    scene.call("c", &pod).add(&scene.config(&["2001:db8:42::/64"]));
    assert_eq!(pod.sysctl("net/ipv6/conf/eth0/accept_dad"), "0");
    let tentative = pod.ip_json("address show dev eth0 tentative");
    let left = tentative[0]["addr_info"].as_array().cloned().unwrap_or_default();
    assert!(left.iter().all(|address| address["local"].is_null()), "{left:?}");
}

#[test]
fn a_master_without_a_carrier_holds_no_pod_up() {
    let (scene, pod) = (Scene::new(), Namespace::new());
    scene.host.ip("link set far down");
    let mut config = scene.config(&["10.1.2.0/24", "2001:db8:42::/64"]);
    let call = scene.call("c", &pod);
    config["prevResult"] = call.add(&config);
    call.run("CHECK", &config).expect_success("CHECK");
    scene.host.ip("link set far up");
    let settled = || {
        let shown = pod.ip_json("address show dev eth0 tentative");
        shown[0]["addr_info"].as_array().is_none_or(Vec::is_empty).then_some(())
    };
    harness::eventually("the address is used once there is a carrier", settled);
}

#[test]
fn the_mtu_and_advmss_of_a_route_are_set() {
    let (scene, pod) = (Scene::new(), Namespace::new());
    let mut config = scene.config(&["10.1.2.0/24"]);
    config["ipam"]["routes"] = json!([{ "dst": "192.0.2.0/24", "mtu": 1300, "advmss": 1200 }]);
    scene.call("c", &pod).add(&config);
    let metrics = pod.ip_json("route show 192.0.2.0/24")[0]["metrics"][0].clone();
    assert_eq!((&metrics["mtu"], &metrics["advmss"]), (&json!(1300), &json!(1200)));
}

/// Kills `command` at each of its steps in turn; after each, `mend` has to leave nothing.
fn kill_at_every_step(command: &str, mend: impl Fn(&Scene, &Namespace, &Value)) {
    if !strace_works() {
        return not_run("strace cannot trace here");
    }
    let scene = Scene::new();
    let mut config = scene.config(&["10.1.2.0/24", "2001:db8:42::/64"]);
    config["enabledad"] = json!(false);
    let steps = every_step(|step| {
        let pod = Namespace::new();
        let call = scene.call("c", &pod);
        if command == "DEL" {
            call.add(&config);
        }
        let outcome = call.disturbed(command, &config, Disturbance::Kill, step);
        mend(&scene, &pod, &config);
        scene.expect_clean(&pod, &format!("{command} killed at {step:?}"));
        assert!(outcome.reached || outcome.reply.exit == Some(0), "{outcome:?}");
        outcome.reached
    });
    assert!(steps > 20, "only {steps} steps: strace killed nothing");
    scene.call("next", &Namespace::new()).add(&config);
}

#[test]
fn an_add_killed_at_any_step_is_cleaned_by_del() {
    kill_at_every_step("ADD", |scene, pod, config| scene.call("c", pod).del(config));
}

#[test]
fn a_del_killed_at_any_step_is_finished_by_the_next() {
    kill_at_every_step("DEL", |scene, pod, config| scene.call("c", pod).del(config));
}

/// The link goes with the pod's namespace; what can stay are addresses.
#[test]
fn an_add_killed_at_any_step_is_cleaned_by_gc_once_the_pod_is_gone() {
    kill_at_every_step("ADD", |scene, pod, config| {
        let mut config = config.clone();
        config["cni.dev/valid-attachments"] = json!([]);
        scene.call("", pod).run("GC", &config).expect_success("GC");
        for link in pod.link_names() {
            pod.ip(&format!("link del {link}"));
        }
    });
}

// 28, at every place where something can fail
#[test]
fn an_add_that_fails_at_any_step_leaves_nothing() {
    if !strace_works() {
        return not_run("strace cannot trace here");
    }
    let scene = Scene::new();
    let mut config = scene.config(&["10.1.2.0/24", "2001:db8:42::/64"]);
    config["enabledad"] = json!(false);
    let mut failed = 0;
    every_step(|step| {
        let pod = Namespace::new();
        let call = scene.call("c", &pod);
        let outcome = call.disturbed("ADD", &config, Disturbance::Fail, step);
        if outcome.reply.exit == Some(0) || (step.name == "setns" && outcome.reply.stdout.is_empty()) {
            // A step that is allowed to fail, or none was disturbed; or the way home from the pod's namespace
            // was barred, where a process must not go on, not even to undo.
            call.del(&config);
        } else {
            failed += 1;
        }
        scene.expect_clean(&pod, &format!("ADD failed at {step:?}: {outcome:?}"));
        outcome.reached
    });
    assert!(failed > 20, "only {failed} steps can fail: strace disturbed nothing");
}
