//! Who takes what away: the chained plugin leaves its IFB to the plugin of the cable, and only to that.

use harness::{Namespace, not_run, strace_works};
use serde_json::{Value, json};

use crate::scene::{INTERFACES, Scene, both_ways};

const RATE: u64 = 8_000_000;

#[test]
fn the_ifb_stands_while_our_cable_does_and_goes_with_it() {
    for kind in INTERFACES {
        let scene = Scene::new();
        let pod = scene.pod(scene.interface(kind), both_ways(RATE));
        let result = pod.add();
        let alias = &scene.host.ip_json(&format!("link show {}", scene.ifbs()[0]))[0]["ifalias"];
        assert_eq!(alias, "fairlead:test/c/eth0", "{kind}");
        pod.call(1).del(&pod.config(1, &result));
        assert_eq!(scene.ifbs().len(), 1, "{kind}: the limit holds until the cable goes");
        pod.check(&result)[1].expect_success("CHECK");
        pod.call(0).del(&pod.config(0, &result));
        scene.expect_clean(kind);
        pod.del(&result);
    }
}

#[test]
fn everything_of_a_chain_goes_with_the_cable() {
    for forgetful in [false, true] {
        let scene = Scene::new();
        let pod = scene.pod_with_port();
        let result = pod.add();
        pod.expect_good(&result);
        let elements = scene.elements();
        for plugin in [2, 1] {
            pod.call(plugin).del(&pod.config(plugin, &result));
        }
        pod.expect_good(&result);
        assert_eq!(scene.elements(), elements, "the port leads to the pod until the cable goes");
        let result = if forgetful { Value::Null } else { result };
        pod.call(0).del(&pod.config(0, &result));
        scene.expect_clean("the cable's DEL");
        pod.del(&result);
    }
}

#[test]
fn everything_of_a_chain_goes_at_once_where_the_cable_is_gone() {
    let scene = Scene::new();
    let pod = scene.pod_with_port();
    let result = pod.add();
    let elements = scene.elements().len();
    pod.namespace.ip("link delete eth0");
    pod.call(2).del(&pod.config(2, &result));
    assert_eq!(scene.ifbs(), [""; 0]);
    pod.call(1).del(&pod.config(1, &result));
    assert!(scene.elements().len() < elements);
    pod.call(0).del(&pod.config(0, &result));
    scene.expect_clean("DEL of the chain");
}

#[test]
fn the_ifb_goes_at_once_where_no_cable_of_ours_stands() {
    for forgotten in [false, true] {
        let scene = Scene::new();
        let pod = scene.pod(scene.interface("bridge"), both_ways(RATE));
        let result = pod.add();
        let cable = scene.links().into_iter().find(|name| name.starts_with("veth")).unwrap();
        if forgotten {
            scene.host.ip(&format!("link set {cable} alias somebody-elses"));
        } else {
            pod.namespace.ip("link delete eth0");
        }
        pod.call(1).del(&pod.config(1, &result));
        assert_eq!(scene.ifbs(), [""; 0], "a cable of somebody else's: {forgotten}");
        if forgotten {
            assert_eq!(scene.links(), [cable.as_str()], "and nothing else");
        }
    }
}

#[test]
fn an_add_that_finds_its_place_taken_leaves_what_is_there() {
    let scene = Scene::new();
    let pod = scene.pod(scene.interface("ptp"), both_ways(RATE));
    let result = pod.plug_in();
    let cable = scene.links().remove(0);
    let shown = |scene: &Scene| (scene.links(), scene.tc(&format!("qdisc show dev {cable}")));
    let add = || pod.call(1).run("ADD", &pod.config(1, &result));
    // Somebody else's hook.
    harness::run_ok(scene.host.command("tc").args(["qdisc", "add", "dev", &cable, "ingress"]));
    let before = shown(&scene);
    assert!(add().error_text().contains("add ingress hook"));
    assert_eq!(shown(&scene), before);
    harness::run_ok(scene.host.command("tc").args(["qdisc", "del", "dev", &cable, "ingress"]));
    // Our own ADD of a moment ago.
    let result = add().expect_success("ADD");
    let before = shown(&scene);
    assert!(add().error_text().contains("File exists"));
    assert_eq!(shown(&scene), before);
    pod.expect_good(&result);
}

#[test]
fn del_of_the_chain_needs_neither_namespace_nor_result() {
    for kind in INTERFACES {
        let scene = Scene::new();
        let mut pod = scene.pod(scene.interface(kind), both_ways(RATE));
        pod.add();
        pod.netns = Some("/var/run/netns/there-is-no-such-name".into());
        pod.del(&Value::Null);
        scene.expect_clean(kind);
        assert_eq!(pod.namespace.link_names(), [""; 0], "{kind}");
    }
}

#[test]
fn del_takes_the_ifb_although_the_limits_are_wrong_by_now() {
    let scene = Scene::new();
    let pod = scene.pod(scene.interface("ptp"), both_ways(RATE));
    let mut config = pod.config(1, &pod.add());
    pod.namespace.ip("link delete eth0");
    config["ingressBurst"] = json!("a lot");
    pod.call(1).del(&config);
    assert_eq!(scene.ifbs(), [""; 0]);
}

#[test]
fn the_interface_plugins_gc_takes_cable_and_ifb_and_keeps_the_valid() {
    for kind in INTERFACES {
        let scene = Scene::new();
        let pod = scene.pod(scene.interface(kind), both_ways(RATE));
        let result = pod.add();
        pod.gc(true);
        pod.expect_good(&result);
        let mut config = pod.config(0, &Value::Null);
        config["cni.dev/valid-attachments"] = json!([]);
        pod.call(0).run("GC", &config).expect_success("GC");
        scene.expect_clean(kind);
    }
}

// 60
#[test]
fn one_container_twice_in_one_network_is_kept_apart() {
    let scene = Scene::new();
    let first = scene.pod(scene.interface("bridge"), both_ways(RATE));
    let mut second = scene.pod(scene.interface("bridge"), both_ways(2 * RATE));
    second.ifname = "net1";
    let results = [first.add(), second.add()];
    assert_eq!(scene.ifbs().len(), 2);
    let rates = |scene: &Scene| -> Vec<u64> {
        let of =
            |name: &String| scene.tc(&format!("qdisc show dev {name} root"))[0]["options"]["rate"].as_u64();
        let mut rates: Vec<u64> = scene.ifbs().iter().filter_map(of).collect();
        rates.sort_unstable();
        rates
    };
    assert_eq!(rates(&scene), [RATE / 8, RATE / 4]);
    first.del(&results[0]);
    assert_eq!(rates(&scene), [RATE / 4]);
    second.expect_good(&results[1]);
    second.del(&results[1]);
    scene.expect_clean("both");
}

/// The messages of one kind that a DEL sends.
fn messages(trace: &str, kind: &str) -> usize {
    trace.matches(&format!("nlmsg_type={kind},")).count()
}

#[test]
fn cable_and_ifb_go_in_one_request() {
    if !strace_works() {
        return not_run("strace cannot trace here");
    }
    for kind in INTERFACES {
        let scene = Scene::new();
        let bystander = scene.pod(scene.interface(kind), both_ways(RATE));
        let namespace = Namespace::with_loopback();
        let mut beside = bystander.call(0);
        (beside.container_id, beside.netns) = ("bystander", namespace.path());
        beside.add(&bystander.config(0, &Value::Null));
        let pod = scene.pod(scene.interface(kind), both_ways(RATE));
        let result = pod.add();
        pod.call(1).del(&pod.config(1, &result));
        let trace = tempfile::NamedTempFile::new().unwrap();
        let mut del = pod.call(0);
        // strace is called as if it were the plugin.
        let script = tempfile::tempdir().unwrap();
        let text = format!(
            "#!/bin/sh\nexec strace -f -v -s 4096 -e trace=sendto,sendmsg -o {} {}\n",
            trace.path().display(),
            scene.bin.path().join(kind).display(),
        );
        let program = script.path().join(kind);
        std::fs::write(&program, text).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        del.bin = script.path();
        del.del(&pod.config(0, &result));
        let trace = std::fs::read_to_string(trace.path()).unwrap();
        assert_eq!(messages(&trace, "RTM_DELLINK"), 1, "{kind}: {trace}");
        assert_eq!(scene.ifbs(), [""; 0], "{kind}");
        assert_eq!(scene.links().len(), 1, "{kind}: the bystander stands");
    }
}
