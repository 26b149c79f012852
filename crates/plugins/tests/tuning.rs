//! `tuning` beyond what the reference can be asked: names with dots, the allow-list, two of them in one chain,
//! notes about links that are not there any more, GC and STATUS, and a kill or a failure at every step.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a failure here is a failure of the test, and tools are what it asserts with"
)]

use std::{fs, path::PathBuf, process::Stdio};

use harness::{Call, Disturbance, Namespace, Reply, every_step, not_run, strace_works};
use serde_json::{Value, json};
use tempfile::TempDir;

const MAC: &str = "02:00:00:00:00:10";

struct Scene {
    host: Namespace,
    bin: TempDir,
    data: TempDir,
}

impl Scene {
    fn new() -> Self {
        Self {
            host: Namespace::with_loopback(),
            bin: harness::plugin_directory(&["tuning"]),
            data: tempfile::tempdir().unwrap(),
        }
    }

    fn config(&self, more: &Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "test", "type": "tuning", "dataDir": self.data.path(),
            "prevResult": { "interfaces": [{ "name": "eth0", "sandbox": "/run/ns", "mac": MAC }] },
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    }

    fn call<'a>(&'a self, container_id: &'a str, pod: &Namespace) -> Call<'a> {
        Call::new(&self.host, self.bin.path(), "tuning", container_id, pod)
    }

    /// The files in the data directory, sorted.
    fn notes(&self) -> Vec<String> {
        let entries = fs::read_dir(self.data.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// What the note of container `c` says to the reference.
    fn note(&self) -> Value {
        let text = fs::read_to_string(self.data.path().join("c_eth0.json")).unwrap();
        let mut note: Value = serde_json::from_str(&text).unwrap();
        note.as_object_mut().unwrap().remove("fairlead");
        note
    }
}

fn pod() -> Namespace {
    let pod = Namespace::new();
    pod.ip(&format!("link add eth0 address {MAC} mtu 1500 txqueuelen 1000 type veth peer name far"));
    pod.ip("link set eth0 up");
    pod.ip("link set far up");
    pod
}

/// What can be tuned, as it is now.
fn state(pod: &Namespace) -> Value {
    let link = pod.ip_json("link show eth0")[0].clone();
    let has = |flag: &str| link["flags"].as_array().unwrap().contains(&json!(flag));
    json!([
        link["address"],
        link["mtu"],
        link["txqlen"],
        has("PROMISC"),
        has("ALLMULTI"),
        pod.sysctl("net/ipv4/conf/eth0/arp_filter"),
        pod.sysctl("net/ipv4/conf/eth0/log_martians"),
    ])
}

fn untouched() -> Value {
    json!([MAC, 1500, 1000, false, false, "0", "0"])
}

fn everything() -> Value {
    json!({
        "mac": "02:00:00:00:00:aa", "mtu": 1400, "promisc": true, "allmulti": true, "txQLen": 5,
        "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.conf.IFNAME.log_martians": "1" },
    })
}

#[test]
fn interface_names_with_dots_are_written_as_they_are() {
    let scene = Scene::new();
    let pod = pod();
    for name in ["eth0.100", "eth0.100.x"] {
        pod.ip(&format!("link add {name} type veth peer name far{}", name.len()));
    }
    for (ifname, key, path) in [
        ("eth0", "net.ipv4.conf.eth0.100.arp_filter", "eth0.100/arp_filter"),
        ("eth0", "net/ipv4/conf/eth0.100/log_martians", "eth0.100/log_martians"),
        ("eth0.100.x", "net.ipv4.conf.IFNAME.arp_filter", "eth0.100.x/arp_filter"),
        ("eth0", "net.ipv4.conf.eth0/100.proxy_arp", "eth0.100/proxy_arp"),
    ] {
        let mut call = scene.call("c", &pod);
        call.ifname = ifname;
        let config = scene.config(&json!({ "sysctl": { key: "1" } }));
        call.add(&config);
        assert_eq!(pod.sysctl(&format!("net/ipv4/conf/{path}")), "1", "{key}");
        call.run("CHECK", &config).expect_success("CHECK");
    }
    assert_eq!(pod.sysctl("net/ipv4/conf/eth0/arp_filter"), "0");
}

#[test]
fn a_sysctl_that_is_missing_or_named_twice_changes_nothing() {
    let scene = Scene::new();
    let pod = pod();
    for (keys, code) in [
        (json!({ "net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.conf.IFNAME.nonsense": "1" }), 101),
        (json!({ "net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.conf.eth0.arp_filter": "0" }), 7),
        (json!({ "net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.conf": "1" }), 101),
    ] {
        let reply = scene.call("c", &pod).run("ADD", &scene.config(&json!({ "sysctl": keys, "mtu": 1400 })));
        assert_eq!(reply.error_code(), code, "{reply:?}");
        assert_eq!(state(&pod), untouched());
        assert!(scene.notes().is_empty());
    }
}

#[test]
fn what_the_kernel_refuses_undoes_the_rest() {
    let scene = Scene::new();
    let pod = pod();
    let mut config = everything();
    config["sysctl"]["net.ipv4.conf.IFNAME.forwarding"] = json!("x");
    let reply = scene.call("c", &pod).run("ADD", &scene.config(&config));
    assert!(reply.error_text().contains("eth0/forwarding"), "{reply:?}");
    assert_eq!(state(&pod), untouched());
    assert!(scene.notes().is_empty());
    // A cable takes every attribute; a tunnel takes no packets larger than its underlay's.
    pod.ip("link set eth0 name under");
    pod.ip("link add eth0 mtu 1400 type vxlan id 7 dstport 4789 dev under");
    let before = state(&pod);
    let reply = scene.call("c", &pod).run(
        "ADD",
        &scene.config(&json!({ "promisc": true, "mtu": 65_535,
        "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1" } })),
    );
    assert!(reply.error_text().contains("set MTU 65535"), "{reply:?}");
    assert_eq!(state(&pod), before);
    assert!(scene.notes().is_empty());
}

#[test]
fn two_in_one_chain_put_back_what_the_first_found() {
    let scene = Scene::new();
    let pod = pod();
    let call = scene.call("c", &pod);
    let first = scene.config(&json!({ "mtu": 1400, "promisc": true }));
    let second = scene.config(&json!({ "mtu": 1300, "txQLen": 5 }));
    call.add(&first);
    call.add(&second);
    assert_eq!(scene.note(), json!({ "mtu": 1500, "promisc": false, "txQLen": 1000 }));
    call.del(&second);
    call.del(&first);
    assert_eq!(state(&pod), untouched());
    assert!(scene.notes().is_empty());
}

#[test]
fn a_failed_second_one_leaves_the_note_of_the_first() {
    let scene = Scene::new();
    let pod = pod();
    let call = scene.call("c", &pod);
    call.add(&scene.config(&json!({ "mtu": 1400 })));
    let bad = json!({ "mtu": 1300, "txQLen": 5, "sysctl": { "net.ipv4.conf.IFNAME.forwarding": "x" } });
    assert_ne!(call.run("ADD", &scene.config(&bad)).exit, Some(0));
    assert_eq!(scene.note(), json!({ "mtu": 1500 }));
    assert_eq!(state(&pod)[1], 1400);
}

#[test]
fn two_networks_of_one_container_have_a_note_each() {
    let scene = Scene::new();
    let pod = pod();
    pod.ip("link add net1 mtu 1500 type veth peer name far1");
    let one = scene.config(&json!({ "mtu": 1400 }));
    let two = scene.config(&json!({ "mtu": 1300, "name": "other" }));
    let first = scene.call("c", &pod);
    let second = Call { ifname: "net1", ..scene.call("c", &pod) };
    first.add(&one);
    second.add(&two);
    first.del(&one);
    assert_eq!(state(&pod), untouched());
    assert_eq!(pod.ip_json("link show net1")[0]["mtu"], 1300);
    second.del(&two);
    assert_eq!(pod.ip_json("link show net1")[0]["mtu"], 1500);
    assert!(scene.notes().is_empty());
}

#[test]
fn a_link_that_is_another_one_by_now_is_left_alone() {
    let scene = Scene::new();
    let pod = pod();
    let config = scene.config(&json!({ "mtu": 1400 }));
    let call = scene.call("c", &pod);
    call.add(&config);
    pod.ip("link del eth0");
    pod.ip("link add eth0 mtu 1280 type veth peer name far");
    call.del(&config);
    assert_eq!(pod.ip_json("link show eth0")[0]["mtu"], 1280);
    assert!(scene.notes().is_empty());
}

#[test]
fn a_note_that_is_no_json_is_removed() {
    let scene = Scene::new();
    let pod = pod();
    fs::write(scene.data.path().join("c_eth0.json"), "{\"mac\":").unwrap();
    scene.call("c", &pod).del(&scene.config(&json!({})));
    assert!(scene.notes().is_empty());
}

#[test]
fn del_needs_no_valid_configuration() {
    let scene = Scene::new();
    let pod = pod();
    scene.call("c", &pod).add(&scene.config(&everything()));
    let nonsense = json!({ "mtu": "x", "mac": 5, "sysctl": [], "prevResult": { "ips": 3 } });
    scene.call("c", &pod).del(&scene.config(&nonsense));
    assert_eq!(state(&pod).as_array().unwrap()[..5], untouched().as_array().unwrap()[..5]);
    assert!(scene.notes().is_empty());
}

#[test]
fn gc_takes_what_is_not_listed_of_this_network_only() {
    let scene = Scene::new();
    let pods = [pod(), pod(), pod()];
    let config = scene.config(&json!({ "mtu": 1400 }));
    scene.call("a_eth0", &pods[0]).add(&config);
    scene.call("b", &pods[1]).add(&config);
    scene.call("c", &pods[2]).add(&scene.config(&json!({ "mtu": 1400, "name": "other" })));
    fs::write(scene.data.path().join("reference_eth0.json"), "{\"mtu\": 1500}").unwrap();
    let valid = json!([{ "containerID": "b", "ifname": "eth0" }]);
    let gc = |valid: Value| {
        let config = scene.config(&json!({ "cni.dev/valid-attachments": valid }));
        scene.call("", &pods[0]).run("GC", &config)
    };
    assert_eq!(gc(Value::Null).error_code(), 7);
    assert_eq!(scene.notes().len(), 4);
    gc(valid).expect_success("GC");
    assert_eq!(scene.notes(), ["b_eth0.json", "c_eth0.json", "reference_eth0.json"]);
    gc(json!([])).expect_success("GC");
    assert_eq!(scene.notes(), ["c_eth0.json", "reference_eth0.json"]);
}

/// A call of the plugin that sees `list` as the node's allow-list; nothing where mounts are not allowed.
fn with_allow_list(
    scene: &Scene,
    pod: &Namespace,
    list: &str,
    command: &str,
    config: &Value,
) -> Option<Reply> {
    let etc = tempfile::tempdir().unwrap();
    fs::create_dir_all(etc.path().join("cni/tuning")).unwrap();
    fs::write(etc.path().join("cni/tuning/allowlist.conf"), list).unwrap();
    let script = "mount --bind \"$0\" /etc || exit 77; exec \"$1\"";
    let call = scene.call("c", pod);
    let mut process = scene.host.command("unshare");
    process.args(["--mount", "sh", "-c", script]).arg(etc.path()).arg(scene.bin.path().join("tuning"));
    call.environment(command, &mut process);
    process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = process.spawn().unwrap();
    let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), config.to_string().as_bytes());
    let output = child.wait_with_output().unwrap();
    if output.status.code() == Some(77) {
        not_run("nothing can be mounted over /etc here");
        return None;
    }
    Some(Reply::from(output))
}

#[test]
fn the_allow_list_decides_which_keys_may_be_set() {
    let scene = Scene::new();
    let pod = pod();
    let config = |key: &str| scene.config(&json!({ "sysctl": { key: "1" } }));
    let list = "\n  ^net\\.ipv4\\.conf\\.IFNAME\\.(arp|log)_[a-z]+$  \n\nip_default_ttl\n";
    for (list, key, allowed) in [
        (list, "net.ipv4.conf.IFNAME.arp_filter", true),
        (list, "net.ipv4.conf.IFNAME.proxy_arp", false),
        (list, "net.ipv4.conf.eth0.arp_filter", false),
        ("", "net.ipv4.conf.IFNAME.arp_filter", false),
    ] {
        let Some(reply) = with_allow_list(&scene, &pod, list, "ADD", &config(key)) else { return };
        if allowed {
            reply.expect_success("ADD");
            continue;
        }
        assert_eq!(reply.error_code(), 7, "{key}");
        let words = format!("Sysctl {key} is not allowed. Only the following sysctls are allowed:");
        assert!(reply.error_text().contains(&words), "{reply:?}");
        let status = with_allow_list(&scene, &pod, list, "STATUS", &config(key)).unwrap();
        assert_eq!(status.error_code(), 50);
    }
    let reply = with_allow_list(&scene, &pod, "net.(", "ADD", &config("net.ipv4.ip_default_ttl")).unwrap();
    assert!(reply.error_text().contains("\"net.(\" is not a pattern"), "{reply:?}");
    let none = scene.config(&json!({ "mtu": 1400 }));
    with_allow_list(&scene, &pod, "", "ADD", &none).unwrap().expect_success("ADD without sysctls");
}

#[test]
fn status_tells_what_an_add_would_lack() {
    let scene = Scene::new();
    let pod = pod();
    let status = |more: &Value| scene.call("", &pod).run("STATUS", &scene.config(more));
    status(&everything()).expect_success("STATUS");
    assert_eq!(status(&json!({ "mtu": 5 })).error_code(), 50);
    assert!(scene.notes().is_empty(), "STATUS changes nothing");
    let file = scene.data.path().join("file");
    fs::write(&file, "").unwrap();
    let below = file.join("below");
    assert_eq!(status(&json!({ "mtu": 1400, "dataDir": below })).error_code(), 50);
    status(&json!({ "dataDir": below })).expect_success("STATUS where nothing is written down");
}

/// Goes through the steps of `command`; `mend` puts right what a disturbed call has left.
fn at_every_step(command: &str, how: Disturbance, mend: impl Fn(&Scene, &Namespace, &Value, &Reply)) {
    if !strace_works() {
        return not_run("strace cannot trace here");
    }
    let scene = Scene::new();
    let config = scene.config(&everything());
    let steps = every_step(|step| {
        let pod = pod();
        let call = scene.call("c", &pod);
        if command == "DEL" {
            call.add(&config);
        }
        let outcome = call.disturbed(command, &config, how, step);
        mend(&scene, &pod, &config, &outcome.reply);
        let (now, before) = (state(&pod), untouched());
        let what = format!("{command} disturbed at {step:?}: {outcome:?}");
        assert_eq!(now.as_array().unwrap()[..5], before.as_array().unwrap()[..5], "{what}");
        assert_eq!(scene.notes(), Vec::<String>::new(), "{what}");
        outcome.reached
    });
    assert!(steps > 15, "only {steps} steps: strace disturbed nothing");
}

#[test]
fn an_add_killed_at_any_step_is_put_back_by_del() {
    at_every_step("ADD", Disturbance::Kill, |scene, pod, config, _| scene.call("c", pod).del(config));
}

#[test]
fn the_note_of_an_add_killed_at_any_step_is_collected() {
    at_every_step("ADD", Disturbance::Kill, |scene, pod, config, _| {
        let mut config = config.clone();
        config["cni.dev/valid-attachments"] = json!([]);
        scene.call("", pod).run("GC", &config).expect_success("GC");
        // The pod goes, and its link with it: what matters here is that no file stays.
        pod.ip(&format!("link set eth0 address {MAC} mtu 1500 txqueuelen 1000 promisc off allmulticast off"));
    });
}

#[test]
fn a_del_killed_at_any_step_is_finished_by_the_next() {
    at_every_step("DEL", Disturbance::Kill, |scene, pod, config, _| scene.call("c", pod).del(config));
}

#[test]
fn a_del_that_fails_at_any_step_is_finished_by_the_next() {
    at_every_step("DEL", Disturbance::Fail, |scene, pod, config, _| scene.call("c", pod).del(config));
}

#[test]
fn an_add_that_fails_at_any_step_leaves_nothing() {
    at_every_step("ADD", Disturbance::Fail, |scene, pod, config, reply| {
        // A step that is allowed to fail; or the way home from the pod's namespace was barred, where a process
        // must not go on, not even to undo.
        if reply.exit == Some(0) || reply.stdout.is_empty() {
            scene.call("c", pod).del(config);
        } else if !reply.stdout.contains("error writing to stdout") {
            // When the result cannot be delivered it is DEL that undoes, which leaves sysctls to the pod's end.
            assert_eq!(state(pod), untouched(), "{reply:?}");
        }
    });
}

#[test]
fn a_namespace_that_is_gone_or_no_namespace_is_no_trouble_for_del() {
    let scene = Scene::new();
    let config = scene.config(&json!({ "mtu": 1400 }));
    for path in ["/proc/nowhere", "/etc/passwd", ""] {
        let pod = pod();
        scene.call("c", &pod).add(&config);
        let mut call = scene.call("c", &pod);
        call.netns = PathBuf::from(path);
        call.del(&config);
        assert!(scene.notes().is_empty(), "{path}");
    }
}
