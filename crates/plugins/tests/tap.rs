//! `tap` deeper than the comparison with the reference goes (`tests/conformance/tests/tap.rs`): frames that really come
//! through, who may hold the device, wrong configurations, and a kill or a failure at every step.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a failure here is a failure of the test, and tools are what it asserts with"
)]

use std::{net::IpAddr, path::Path};

use harness::{Call, Disturbance, Namespace, Step, every_step, not_run, run, strace_works};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A host with the plugin installed and an empty address store; `None` where the kernel has no TAP devices.
struct Scene {
    host: Namespace,
    bin: TempDir,
    data: TempDir,
}

impl Scene {
    fn new() -> Option<Self> {
        if !Path::new("/dev/net/tun").exists() {
            not_run("this kernel has no TAP devices");
            return None;
        }
        let (bin, data) = (harness::plugin_directory(&["tap", "host-local"]), tempfile::tempdir().unwrap());
        Some(Self { host: Namespace::with_loopback(), bin, data })
    }

    fn config(&self, more: &Value) -> Value {
        let ranges = json!([[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "2001:db8:42::/64" }]]);
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "test", "type": "tap",
            "ipam": { "type": "host-local", "ranges": ranges, "dataDir": self.data.path() },
        });
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    }

    fn call<'a>(&'a self, container: &'a str, pod: &Namespace) -> Call<'a> {
        Call::new(&self.host, self.bin.path(), "tap", container, pod)
    }

    fn reserved(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.data.path().join("test")) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| name.parse::<IpAddr>().is_ok()).collect()
    }

    fn expect_clean(&self, pod: &Namespace, what: &str) {
        assert_eq!(pod.link_names(), [""; 0], "{what}");
        assert_eq!(self.reserved(), [""; 0], "{what}: addresses are left");
    }
}

// 42: without `ip` in the way, a user who is not root holds the device
#[test]
fn the_owner_may_hold_the_device_and_others_may_not() {
    let Some(scene) = Scene::new() else { return };
    if !Path::new("/usr/bin/socat").exists() && !Path::new("/bin/socat").exists() {
        return not_run("socat is not installed");
    }
    let pod = Namespace::new();
    scene.call("c", &pod).add(&scene.config(&json!({ "owner": 40001 })));
    let opens = |user: &str| {
        // A device file of our own, for the system's is closed to users here and there.
        let script = "mount -t tmpfs tmpfs /dev/net && mknod -m 666 /dev/net/tun c 10 200 && \
            exec setpriv --reuid $0 --regid $0 --clear-groups --inh-caps=-all --bounding-set=-all \
            timeout 1 socat -u TUN,tun-type=tap,tun-name=eth0,iff-no-pi /dev/null";
        let mut process = pod.command("unshare");
        process.args(["--mount", "--propagation", "private", "sh", "-c", script, user]);
        String::from_utf8_lossy(&run(&mut process).stderr).into_owned()
    };
    let refused = opens("40009");
    if refused.contains("mknod") || refused.contains("mount") {
        return not_run("no device file can be made here");
    }
    assert!(refused.contains("TUNSETIFF") && refused.contains("Operation not permitted"), "{refused}");
    // The owner gets the device, and is refused only what root alone may: to set it up once more.
    let held = opens("40001");
    assert!(!held.contains("TUNSETIFF") && held.contains("SIOCSIFFLAGS"), "{held}");
}

#[test]
fn ipv6_is_usable_at_once_although_nobody_holds_the_device() {
    let Some(scene) = Scene::new() else { return };
    let pod = Namespace::new();
    let result =
        scene.call("c", &pod).add(&scene.config(&json!({ "dns": { "nameservers": ["192.0.2.1"] } })));
    let shown = pod.ip("-6 -o address show dev eth0 scope global");
    assert!(shown.contains("2001:db8:42::2/64") && !shown.contains("tentative"), "{shown}");
    assert_eq!(result["dns"]["nameservers"], json!(["192.0.2.1"]));
}

#[test]
fn a_configuration_that_cannot_work_touches_nothing() {
    let Some(scene) = Scene::new() else { return };
    let pod = Namespace::new();
    pod.ip("link add other type veth peer name x1");
    let call = scene.call("c", &pod);
    for (more, code, words) in [
        (json!({ "mtu": 70000 }), 7, "mtu"),
        (json!({ "owner": "root" }), 6, "owner"),
        (json!({ "mac": "nonsense" }), 7, "invalid hardware address"),
        (json!({ "bridge": "br0" }), 7, "there is no bridge br0 in the pod"),
        (json!({ "bridge": "other" }), 7, "other in the pod is not a bridge"),
        (json!({ "ipam": { "type": "tap" } }), 7, "tap has no addresses to give"),
    ] {
        let config = scene.config(&more);
        let reply = call.run("ADD", &config);
        assert_eq!(reply.error_code(), code, "{more}: {reply:?}");
        assert!(reply.error_text().contains(words), "{more}: {reply:?}");
        assert_eq!(pod.link_names(), ["other", "x1"], "{more}");
        call.del(&config);
    }
    // DEL takes no link that is of another kind.
    Call { ifname: "other", ..call }.del(&scene.config(&json!({})));
    assert_eq!(pod.link_names(), ["other", "x1"]);
}

#[test]
fn a_label_needs_a_kernel_that_looks_at_it() {
    let Some(scene) = Scene::new() else { return };
    if std::fs::read_to_string("/proc/filesystems").unwrap().contains("selinuxfs") {
        return not_run("this kernel has SELinux");
    }
    let pod = Namespace::new();
    let config = scene.config(&json!({ "selinuxContext": "system_u:system_r:container_t:s0" }));
    let call = scene.call("c", &pod);
    let reply = call.run("ADD", &config);
    assert!(reply.error_text().contains("the running kernel has no SELinux"), "{reply:?}");
    assert_eq!(call.run("STATUS", &config).error_code(), 50);
    scene.expect_clean(&pod, "no SELinux");
    call.del(&config);
}

#[test]
fn check_names_the_setting_that_has_changed() {
    let Some(scene) = Scene::new() else { return };
    let pod = Namespace::new();
    pod.ip("link add br0 type bridge");
    let call = scene.call("c", &pod);
    let all = json!({ "owner": 40001, "group": 40002, "multiQueue": true, "mtu": 1400, "bridge": "br0", "ipam": {} });
    let mut config = scene.config(&all);
    config["prevResult"] = call.add(&config);
    call.run("CHECK", &config).expect_success("CHECK after ADD");
    for (key, value) in
        [("owner", json!(7)), ("group", json!(7)), ("multiQueue", json!(false)), ("mtu", json!(1300))]
    {
        let mut other = config.clone();
        other[key] = value;
        let reply = call.run("CHECK", &other);
        assert!(reply.error_text().contains(&format!("the {key} that is configured")), "{reply:?}");
    }
    pod.ip("link set eth0 nomaster");
    let reply = call.run("CHECK", &config);
    assert!(reply.error_text().contains("the bridge that is configured"), "{reply:?}");
}

// 12
#[test]
fn gc_gives_addresses_back_and_status_says_that_all_is_well() {
    let Some(scene) = Scene::new() else { return };
    let pod = Namespace::new();
    let mut config = scene.config(&json!({}));
    let call = scene.call("c", &pod);
    call.run("STATUS", &config).expect_success("STATUS");
    call.add(&config);
    assert_eq!(call.run("GC", &config).error_code(), 7);
    config["cni.dev/valid-attachments"] = json!([]);
    call.run("GC", &config).expect_success("GC");
    assert_eq!(scene.reserved(), [""; 0]);
}

fn everything(scene: &Scene) -> Value {
    scene.config(&json!({ "owner": 40001, "group": 40002, "multiQueue": true, "mtu": 1400 }))
}

#[test]
fn an_add_or_a_del_killed_at_any_step_is_finished_by_del() {
    let Some(scene) = Scene::new() else { return };
    if !strace_works() {
        return not_run("strace cannot trace here");
    }
    let config = everything(&scene);
    for command in ["ADD", "DEL"] {
        let steps = every_step(|step| {
            let pod = Namespace::new();
            let call = scene.call("c", &pod);
            if command == "DEL" {
                call.add(&config);
            }
            let outcome = call.disturbed(command, &config, Disturbance::Kill, step);
            call.del(&config);
            scene.expect_clean(&pod, &format!("{command} killed at {step:?}"));
            outcome.reached
        });
        assert!(steps > 20, "only {steps} steps: strace killed nothing");
    }
}

/// The making of the device is a row of calls that the other tests leave alone: after any of them nothing may be
/// left that DEL does not find.
#[test]
fn the_making_of_the_device_may_be_killed_or_fail_anywhere() {
    let Some(scene) = Scene::new() else { return };
    if !strace_works() {
        return not_run("strace cannot trace here");
    }
    let config = everything(&scene);
    for how in [Disturbance::Kill, Disturbance::Fail] {
        let steps = (1..).take_while(|number| {
            let pod = Namespace::new();
            let call = scene.call("c", &pod);
            let outcome = call.disturbed("ADD", &config, how, Step { name: "ioctl", number: *number });
            if outcome.reply.exit == Some(0) || outcome.reply.exit.is_none() {
                call.del(&config);
            }
            scene.expect_clean(&pod, &format!("{how:?} at {number}: {outcome:?}"));
            outcome.reached
        });
        // One to look at the namespace, four to make the device.
        assert_eq!(steps.count(), 5);
    }
}

// 28, at every place where something can fail
#[test]
fn an_add_that_fails_at_any_step_leaves_nothing() {
    let Some(scene) = Scene::new() else { return };
    if !strace_works() {
        return not_run("strace cannot trace here");
    }
    let config = everything(&scene);
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
