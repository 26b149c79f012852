//! A lease over time: extended, lost, changed, and kept by one daemon after the other. The leases here last a few
//! seconds, and everything is waited for in a log or in the kernel.

use std::os::unix::net::UnixStream;

use harness::{Namespace, Service, eventually};
use serde_json::json;

use crate::scene::{Scene, addresses, await_addresses, routes};

const RANGE: &str = "10.5.0.60 10.5.0.70";

// 55
#[test]
fn a_daemon_that_was_killed_is_followed_by_one_that_keeps_renewing() {
    let Some(scene) = Scene::with(&["dhcpd"]) else { return };
    let mut server = scene.dhcpd(RANGE, 6, "");
    let daemon = scene.daemon(&[]);
    let pod = Namespace::new();
    let result = scene.call("bridge", "c", &pod).add(&scene.bridged());
    let held = addresses(&pod);
    assert_eq!(json!(held[0]), result["ips"][0]["address"]);
    let acknowledged = format!("DHCPACK on {}", held[0].strip_suffix("/24").unwrap());
    server.await_said(&acknowledged, 2);
    daemon.kill();
    // More than one where the first was lost while the bridge readied its port.
    let discovered = server.said("DHCPDISCOVER");
    let before = server.said(&acknowledged);
    let daemon = scene.daemon(&[]);
    assert_eq!(daemon.said("taken up again"), 1, "{}", daemon.log());
    // More than a lease's length of renewals: had one been missed, the address would be gone.
    server.await_said(&acknowledged, before + 3);
    assert_eq!(addresses(&pod), held);
    assert_eq!(server.said("DHCPDISCOVER"), discovered, "{}", server.log());
}

#[test]
fn a_lease_that_no_server_extends_goes_from_the_pod_and_comes_back_with_the_server() {
    let Some(scene) = Scene::with(&["dhcpd"]) else { return };
    let server = scene.dhcpd(RANGE, 4, "");
    let mut daemon = scene.daemon(&["-resendmax", "1s"]);
    let pod = Namespace::new();
    scene.call("bridge", "c", &pod).add(&scene.bridged());
    let held = addresses(&pod);
    assert_eq!(routes(&pod), ["default via 10.5.0.1"]);
    server.kill();
    await_addresses(&pod, <[String]>::is_empty);
    assert_eq!(routes(&pod), Vec::<String>::new());
    daemon.await_said("lost: the lease ran out", 1);
    assert_eq!(scene.kept().len(), 1, "the attachment is remembered");
    let _server = scene.dhcpd(RANGE, 4, "");
    assert_eq!(await_addresses(&pod, |found| !found.is_empty()), held, "the same address again");
    eventually("the default route is back", || (routes(&pod) == ["default via 10.5.0.1"]).then_some(()));
}

#[test]
fn a_lease_without_a_server_survives_a_daemon_that_comes_and_goes() {
    let Some(scene) = Scene::with(&["dhcpd"]) else { return };
    let server = scene.dhcpd(RANGE, 4, "");
    let daemon = scene.daemon(&["-resendmax", "1s"]);
    let pod = Namespace::new();
    scene.call("bridge", "c", &pod).add(&scene.bridged());
    server.kill();
    await_addresses(&pod, <[String]>::is_empty);
    daemon.kill();
    let _daemon = scene.daemon(&["-resendmax", "1s"]);
    let _server = scene.dhcpd(RANGE, 4, "");
    await_addresses(&pod, |found| !found.is_empty());
}

#[test]
fn a_daemon_without_descriptors_to_look_with_forgets_no_lease() {
    let Some(scene) = Scene::with(&["dhcpd"]) else { return };
    let mut server = scene.dhcpd(RANGE, 6, "");
    let mut command = scene.host.command("sh");
    command.args(["-c", "ulimit -n 20; exec \"$@\"", "sh"]).arg(scene.bin.path().join("dhcp"));
    command.args(["daemon", "-timeout", "5s", "-socketpath"]).arg(scene.file("socket"));
    let mut daemon =
        Service::start(command.arg("-statepath").arg(scene.file("state")), scene.file("limited.log"));
    daemon.await_said("dhcp: ready", 1);
    let pod = scene.pod("p0");
    scene.call("dhcp", "c", &pod).add(&scene.config("dhcp", json!({})));
    let renewed = server.said("DHCPACK");
    // Who connects and says nothing is hung up on in the end, but holds a descriptor until then.
    let silent: Vec<UnixStream> =
        (0..40).map(|_| UnixStream::connect(scene.file("socket")).unwrap()).collect();
    daemon.await_said("Too many open files", 1);
    assert_eq!(scene.kept().len(), 1, "{}", daemon.log());
    drop(silent);
    server.await_said("DHCPACK", renewed + 1);
    assert_eq!(daemon.said("forgotten"), 0, "{}", daemon.log());
}

#[test]
fn another_address_at_renewal_is_set_in_the_pod() {
    let Some(scene) = Scene::with(&["dhcpd"]) else { return };
    let server = scene.dhcpd(RANGE, 4, "");
    let _daemon = scene.daemon(&["-resendmax", "1s"]);
    let pod = Namespace::new();
    let call = scene.call("bridge", "c", &pod);
    let config = scene.bridged();
    let result = call.add(&config);
    server.kill();
    // The network is numbered anew, and its router is another one.
    std::fs::remove_file(scene.file("dhcpd.leases")).unwrap();
    let _server = scene.dhcpd("10.5.0.80 10.5.0.90", 4, "option routers 10.5.0.2;");
    let moved = await_addresses(&pod, |found| found.iter().any(|address| address.starts_with("10.5.0.8")));
    assert_eq!(moved.len(), 1, "the old one is gone: {moved:?}");
    eventually("the default route leads to the new router", || {
        (routes(&pod) == ["default via 10.5.0.2"]).then_some(())
    });
    // CHECK says so, for the runtime still believes in the old one.
    let reply = call.run("CHECK", &crate::scene::with_previous(&config, &result));
    assert_ne!(reply.exit, Some(0));
}

#[test]
fn a_link_that_is_gone_ends_its_lease() {
    let Some(scene) = Scene::with(&["dhcpd"]) else { return };
    let _server = scene.dhcpd(RANGE, 4, "");
    let mut daemon = scene.daemon(&[]);
    let pod = scene.pod("p0");
    let config = scene.config("dhcp", json!({}));
    scene.call("dhcp", "c", &pod).add(&config);
    pod.ip("link del eth0");
    daemon.await_said("c/test/eth0: forgotten", 1);
    assert_eq!(scene.kept(), Vec::<String>::new());
    // Another interface of that name is another place, which the next ADD leases for anew.
    scene.plug("p1", &pod, "eth0");
    scene.call("dhcp", "c", &pod).add(&config);
}

#[test]
fn the_daemon_does_not_keep_the_namespace_of_a_pod_alive() {
    let Some(scene) = Scene::with(&["dhcpd"]) else { return };
    let _server = scene.dhcpd(RANGE, 4, "");
    let mut daemon = scene.daemon(&[]);
    let pod = scene.pod("p0");
    scene.call("dhcp", "c", &pod).add(&scene.config("dhcp", json!({})));
    drop(pod);
    eventually("the pod's namespace is gone, and its cable with it", || {
        (!scene.host.link_names().contains(&"p0".to_owned())).then_some(())
    });
    daemon.await_said("c/test/eth0: forgotten", 1);
}

#[test]
fn a_path_that_leads_to_another_pod_now_is_not_mistaken() {
    let Some(scene) = Scene::with(&["dnsmasq"]) else { return };
    let server = scene.dnsmasq(&[]);
    let daemon = scene.daemon(&[]);
    let (first, second) = (scene.pod("p0"), scene.pod("p1"));
    let config = scene.config("dhcp", json!({}));
    let path = scene.file("netns");
    std::os::unix::fs::symlink(first.path(), &path).unwrap();
    let mut call = scene.call("dhcp", "c", &first);
    call.netns.clone_from(&path);
    call.add(&config);
    daemon.kill();
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(second.path(), &path).unwrap();
    let daemon = scene.daemon(&[]);
    assert_eq!(daemon.said("forgotten"), 1, "{}", daemon.log());
    assert_eq!(scene.kept(), Vec::<String>::new());
    call.del(&config);
    assert_eq!(server.said("DHCPRELEASE"), 0, "nothing is said in the name of the other pod");
}
