//! Host ports for SCTP, with real associations. Runs in the virtual machine where this machine's kernel has no SCTP
//! (`cargo xtask vm-test`).
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a failure here is a failure of the test, and tools are what it asserts with"
)]

use std::time::Duration;

use harness::talk::{ask_sctp, serve_sctp};
use harness::{Call, Namespace, eventually, not_run};
use serde_json::{Value, json};

/// An association takes a while in an emulated machine.
const PATIENCE: Duration = Duration::from_secs(20);

struct Scene {
    host: Namespace,
    outside: Namespace,
    bin: tempfile::TempDir,
    data: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self {
            host: Namespace::with_loopback(),
            outside: Namespace::with_loopback(),
            bin: harness::plugin_directory(&["bridge", "host-local", "portmap"]),
            data: tempfile::tempdir().unwrap(),
        };
        let path = scene.outside.path();
        let pid = path.iter().nth(2).unwrap().to_str().unwrap();
        scene.host.ip(&format!("link add up0 type veth peer name up0 netns {pid}"));
        for (namespace, last) in [(&scene.host, 1), (&scene.outside, 9)] {
            namespace.ip("link set up0 up");
            namespace.ip(&format!("address add 192.0.2.{last}/24 dev up0"));
            namespace.ip(&format!("address add 2001:db8:9::{last}/64 dev up0 nodad"));
        }
        scene
    }

    fn bridge(&self) -> Value {
        let ranges = json!([[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "2001:db8:42::/64" }]]);
        json!({
            "cniVersion": "1.1.0", "name": "test", "type": "bridge", "bridge": "br-test", "isDefaultGateway": true,
            "hairpinMode": true, "ipam": { "type": "host-local", "ranges": ranges, "dataDir": self.data.path() },
        })
    }

    /// A pod with an SCTP server and a host port for it; nothing when there is no SCTP here.
    fn pod(&self, word: &'static str) -> Option<(Namespace, Value)> {
        let pod = Namespace::with_loopback();
        if !serve_sctp(&pod, 80, word) {
            not_run("this kernel has no SCTP (CONFIG_IP_SCTP)");
            return None;
        }
        let result = Call::new(&self.host, self.bin.path(), "bridge", word, &pod).add(&self.bridge());
        let mapping = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "sctp" }]);
        let config = json!({
            "cniVersion": "1.1.0", "name": "test", "type": "portmap", "prevResult": result,
            "runtimeConfig": { "portMappings": mapping },
        });
        let call = Call::new(&self.host, self.bin.path(), "portmap", word, &pod);
        call.add(&config);
        call.run("CHECK", &config).expect_success("CHECK");
        Some((pod, config))
    }
}

// 57
#[test]
fn sctp_associations_reach_the_pod_and_the_next_one() {
    let scene = Scene::new();
    let Some((pod, config)) = scene.pod("first") else { return };
    let ask = |from: &Namespace, address: &str| {
        eventually("an association", || ask_sctp(from, address, 8080, PATIENCE))
    };
    assert_eq!(ask(&scene.outside, "192.0.2.1"), "first 192.0.2.9");
    assert_eq!(ask(&scene.outside, "2001:db8:9::1"), "first 2001:db8:9::9");
    assert_eq!(ask(&scene.host, "127.0.0.1"), "first 10.1.2.1");
    assert_eq!(ask(&pod, "192.0.2.1"), "first 10.1.2.1");
    assert_eq!(ask_sctp(&scene.outside, "192.0.2.1", 8081, Duration::from_millis(500)), None);

    Call::new(&scene.host, scene.bin.path(), "portmap", "first", &pod).del(&config);
    Call::new(&scene.host, scene.bin.path(), "bridge", "first", &pod).del(&scene.bridge());
    assert_eq!(ask_sctp(&scene.outside, "192.0.2.1", 8080, Duration::from_millis(500)), None);
    let Some(_second) = scene.pod("second") else { return };
    assert_eq!(ask(&scene.outside, "192.0.2.1"), "second 192.0.2.9");
}
