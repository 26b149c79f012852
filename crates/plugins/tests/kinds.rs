//! `ipvlan`, `vlan` and `dummy` of ours alone: what they say on a kernel that lacks them, and what STATUS makes of
//! masters. Runs on any kernel, and by `cargo xtask vm-test` on one that has all of them. The life that they share
//! with `macvlan` is tested there.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a failure here is a failure of the test, and tools are what it asserts with"
)]

use harness::{Call, Namespace, run};
use serde_json::{Value, json};
use tempfile::TempDir;

struct Scene {
    host: Namespace,
    pod: Namespace,
    bin: TempDir,
    data: TempDir,
}

impl Scene {
    fn new() -> Self {
        let host = Namespace::with_loopback();
        host.ip("link add uplink type veth peer name far");
        host.ip("link set far up");
        host.ip("link set uplink up");
        Self {
            host,
            pod: Namespace::new(),
            bin: harness::plugin_directory(&["ipvlan", "vlan", "dummy", "macvlan", "host-local"]),
            data: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    fn config(&self, plugin: &str) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "test", "type": plugin, "master": "uplink", "vlanId": 33,
            "ipam": {
                "type": "host-local", "dataDir": self.data.path(),
                "ranges": [[{ "subnet": "10.1.2.0/24" }]],
            },
        })
    }

    fn call<'a>(&'a self, plugin: &'a str) -> Call<'a> {
        Call::new(&self.host, self.bin.path(), plugin, "c", &self.pod)
    }

    /// Whether the kernel has links of this kind, as `ip` finds out.
    fn has(&self, kind: &str) -> bool {
        let words = match kind {
            "vlan" => "link add link uplink name probe type vlan id 5".to_owned(),
            "dummy" => "link add name probe type dummy".to_owned(),
            kind => format!("link add link uplink name probe type {kind}"),
        };
        let has = run(self.host.command("ip").args(words.split_whitespace())).status.success();
        if has {
            self.host.ip("link del probe");
        }
        has
    }
}

const KINDS: [(&str, &str); 4] = [
    ("dummy", "CONFIG_DUMMY"),
    ("ipvlan", "CONFIG_IPVLAN"),
    ("macvlan", "CONFIG_MACVLAN"),
    ("vlan", "CONFIG_VLAN_8021Q"),
];

#[test]
fn where_the_kernel_has_a_kind_its_plugin_works_and_elsewhere_it_names_the_option() {
    for (plugin, option) in KINDS {
        let scene = Scene::new();
        let (call, config) = (scene.call(plugin), scene.config(plugin));
        let status = call.run("STATUS", &config);
        if scene.has(plugin) {
            status.expect_success(plugin);
            call.add(&config);
            assert_eq!(scene.pod.ip_json("link show eth0")[0]["linkinfo"]["info_kind"], plugin);
        } else {
            assert_eq!(status.error_code(), 50, "{status:?}");
            assert!(status.error_text().contains(option), "{status:?}");
            let reply = call.run("ADD", &config);
            assert!(reply.error_text().contains(option), "{reply:?}");
        }
        call.del(&config);
        assert_eq!(scene.pod.link_names(), [""; 0], "{plugin}");
        assert_eq!(scene.host.link_names(), ["far", "uplink"], "{plugin}");
    }
}

#[test]
fn status_and_add_say_what_is_wrong_with_the_master() {
    for (plugin, prepare, change, words) in [
        ("vlan", "link set uplink down", json!({}), "master \"uplink\" is down"),
        ("vlan", "", json!({ "master": "nowhere" }), "failed to lookup master \"nowhere\""),
        ("vlan", "", json!({ "master": "" }), "\"master\" field is required"),
        ("vlan", "", json!({ "mtu": 1501 }), "invalid MTU 1501, must be [0, master MTU(1500)]"),
        ("vlan", "", json!({ "vlanId": 4095 }), "invalid VLAN ID 4095"),
        ("ipvlan", "", json!({ "master": "nowhere" }), "failed to lookup master \"nowhere\""),
        ("ipvlan", "", json!({ "master": "" }), "no default route interface found"),
        ("ipvlan", "", json!({ "mode": "l4" }), "unknown ipvlan mode"),
        ("dummy", "", json!({ "ipam": {} }), "requires an IPAM configuration"),
    ] {
        let scene = Scene::new();
        if !prepare.is_empty() {
            scene.host.ip(prepare);
        }
        let mut config = scene.config(plugin);
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let status = scene.call(plugin).run("STATUS", &config);
        assert_eq!(status.error_code(), 50, "{status:?}");
        assert!(status.error_text().contains(words), "{status:?}");
        let reply = scene.call(plugin).run("ADD", &config);
        assert!(reply.error_text().contains(words), "{reply:?}");
        assert_eq!(scene.pod.link_names(), [""; 0], "{plugin}");
    }
}

/// STATUS of an ipvlan that will stand later in a chain cannot know what comes before it.
#[test]
fn an_ipvlan_that_takes_all_from_the_chain_is_ready_without_a_default_route() {
    let scene = Scene::new();
    let mut config = scene.config("ipvlan");
    config["master"] = json!("");
    config.as_object_mut().unwrap().remove("ipam");
    let status = scene.call("ipvlan").run("STATUS", &config);
    if scene.has("ipvlan") {
        status.expect_success("STATUS");
    } else {
        assert!(status.error_text().contains("CONFIG_IPVLAN"), "{status:?}");
    }
}

#[test]
fn del_and_gc_give_addresses_back_whatever_the_configuration_has_become() {
    for (plugin, _) in KINDS {
        let scene = Scene::new();
        if !scene.has(plugin) {
            continue;
        }
        let mut config = scene.config(plugin);
        let left = || std::fs::read_dir(scene.data.path().join("test")).unwrap().count();
        scene.call(plugin).add(&config);
        let with_one = left();
        config["master"] = json!("nowhere");
        config["vlanId"] = json!(9999);
        config["mode"] = json!("none");
        let mut call = scene.call(plugin);
        call.netns = "".into();
        call.del(&config);
        assert_eq!(left(), with_one - 1, "{plugin}");
        scene.pod.ip("link del eth0");
        scene.call(plugin).add(&scene.config(plugin));
        config["cni.dev/valid-attachments"] = json!([]);
        scene.call(plugin).run("GC", &config).expect_success("GC");
        assert_eq!(left(), with_one - 1, "{plugin}");
    }
}
