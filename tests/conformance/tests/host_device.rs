//! host-device: a device goes into a pod and comes home. Behaviour 43, and 9, 10, 28 and 29 for it. The devices are
//! ends of virtual cables; what is behind an address on a bus is a directory laid over sysfs.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and lays its own sysfs with unshare"
)]

use std::{io::Write, path::Path, process::Stdio};

use conformance::{Stage, Subject, subjects};
use harness::{Call, Namespace, Reply, not_run};
use serde_json::{Value, json};

const MAC: &str = "02:00:00:00:00:77";

/// A host with the device `ens1`, up, whose far end is somewhere else.
fn stage() -> Stage {
    let stage = Stage::new();
    stage.host.ip(&format!("link add ens1 address {MAC} type veth peer name far"));
    stage.host.ip("link set ens1 up");
    stage.host.ip("link set far up");
    stage
}

fn config(stage: &Stage, more: Value) -> Value {
    let mut config = stage.config("host-device", "1.0.0", &more);
    if more.get("ipam").is_none() {
        config["ipam"] = stage.ipam(&["10.1.2.0/24"]);
    }
    config
}

fn link(namespace: &Namespace, name: &str) -> Value {
    let all = namespace.ip_json("link show");
    let found = all.as_array().unwrap().iter().find(|link| link["ifname"] == name);
    found.cloned().unwrap_or_else(|| panic!("no {name} in {all}"))
}

fn is_up(link: &Value) -> bool {
    link["flags"].as_array().unwrap().contains(&json!("UP"))
}

// 43
#[test]
fn a_device_goes_into_the_pod_under_its_name_there_and_comes_home_under_its_own() {
    for subject in subjects() {
        for selector in [json!({ "device": "ens1" }), json!({ "hwaddr": MAC })] {
            let stage = stage();
            let mut config = config(&stage, selector.clone());
            config["ipam"]["routes"] = json!([{ "dst": "192.0.2.0/24" }]);
            config["dns"] = json!({ "nameservers": ["192.0.2.53"] });
            let call = stage.call(&subject, "host-device", "c1");
            let result = call.add(&config);
            let name = subject.name;
            assert_eq!(stage.host.link_names(), ["far"], "{name}: {selector}");
            let inside = link(&stage.pod, "eth0");
            assert!(is_up(&inside), "{name}: {inside}");
            assert_eq!(inside["ifalias"], "ens1", "{name}");
            assert_eq!(inside["address"], MAC, "{name}");
            assert!(stage.pod.ip("-o address show dev eth0").contains("10.1.2.2/24"), "{name}");
            assert!(stage.pod.ip("route show").contains("192.0.2.0/24 via 10.1.2.1"), "{name}");
            let interfaces = result["interfaces"].as_array().unwrap();
            assert_eq!(interfaces.len(), 1, "{name}");
            assert_eq!(interfaces[0]["name"], "eth0", "{name}");
            assert_eq!(interfaces[0]["mac"], MAC, "{name}");
            assert_eq!(interfaces[0]["sandbox"], json!(stage.pod.path()), "{name}");
            assert_eq!(result["ips"][0]["interface"], 0, "{name}");
            assert_eq!(result["dns"]["nameservers"], json!(["192.0.2.53"]), "{name}");
            call.del(&config);
            let home = link(&stage.host, "ens1");
            // Debian's reference leaves the alias; newer ones clear it.
            let cleared = home.get("ifalias").is_none() || subject.is_reference();
            assert!(!is_up(&home) && cleared, "{name}: {home}");
            assert_eq!(home["address"], MAC, "{name}");
            assert_eq!((stage.pod.link_names(), stage.reserved()), (vec![], vec![]), "{name}");
        }
    }
}

#[test]
fn without_an_address_plugin_the_device_is_just_up() {
    for subject in subjects() {
        let stage = stage();
        let config = config(&stage, json!({ "device": "ens1", "ipam": {} }));
        let call = stage.call(&subject, "host-device", "c1");
        let result = call.add(&config);
        assert_eq!(result.get("ips"), None, "{}: {result}", subject.name);
        assert!(is_up(&link(&stage.pod, "eth0")), "{}", subject.name);
        call.del(&config);
        assert_eq!(stage.host.link_names(), ["ens1", "far"], "{}", subject.name);
    }
}

// 43
#[test]
fn a_name_that_is_taken_in_the_pod_is_an_error_and_the_device_stays() {
    for subject in subjects() {
        let stage = stage();
        stage.pod.ip("link add eth0 type veth peer name other");
        let before = link(&stage.pod, "eth0")["address"].clone();
        let reply = stage
            .call(&subject, "host-device", "c1")
            .run("ADD", &config(&stage, json!({ "device": "ens1" })));
        assert_ne!(reply.exit, Some(0), "{}", subject.name);
        assert_eq!(link(&stage.pod, "eth0")["address"], before, "{}", subject.name);
        assert_eq!(stage.reserved(), [""; 0], "{}", subject.name);
        if subject.is_reference() {
            // Debian's loses the device in the pod, newer ones bring it home.
            continue;
        }
        let home = link(&stage.host, "ens1");
        assert!(is_up(&home) && home.get("ifalias").is_none(), "{home}");
    }
}

// 43
#[test]
fn a_configuration_that_selects_nothing_is_refused_and_its_del_succeeds_only_here() {
    for subject in subjects() {
        let stage = stage();
        let call = stage.call(&subject, "host-device", "c1");
        let nothing = config(&stage, json!({}));
        let reply = call.run("ADD", &nothing);
        assert!(reply.error_text().contains("specify either"), "{}: {reply:?}", subject.name);
        let missing = call.run("ADD", &config(&stage, json!({ "device": "ens9" })));
        assert!(missing.error_text().contains("failed to find host device"), "{}: {missing:?}", subject.name);
        assert_eq!(call.run("DEL", &nothing).exit == Some(0), !subject.is_reference(), "{}", subject.name);
    }
}

// 9, 43: the reference's DEL wants everything to be there
#[test]
fn del_succeeds_whatever_is_missing_only_here() {
    for subject in subjects() {
        let stage = stage();
        let config = config(&stage, json!({ "device": "ens1" }));
        let call = stage.call(&subject, "host-device", "c1");
        let succeeds = |call: &Call<'_>| call.run("DEL", &config).exit == Some(0);
        assert_eq!(succeeds(&call), !subject.is_reference(), "{}: before ADD", subject.name);
        call.add(&config);
        assert!(succeeds(&call), "{}", subject.name);
        assert_eq!(succeeds(&call), !subject.is_reference(), "{}: twice", subject.name);
        let gone = Call { netns: "/var/run/netns/there-is-no-such-name".into(), ..call.clone() };
        assert_eq!(succeeds(&gone), !subject.is_reference(), "{}: no namespace", subject.name);
        assert_eq!(link(&stage.host, "ens1")["address"], MAC, "{}", subject.name);
        call.add(&config);
    }
}

// 9: P#1196
#[test]
fn del_without_a_namespace_gives_the_address_back_only_here() {
    for subject in subjects() {
        let stage = stage();
        let config = config(&stage, json!({ "device": "ens1" }));
        let call = stage.call(&subject, "host-device", "c1");
        call.add(&config);
        Call { netns: "".into(), ..call }.del(&config);
        assert_eq!(stage.reserved().is_empty(), !subject.is_reference(), "{}", subject.name);
    }
}

// 28
#[test]
fn a_failing_address_plugin_sends_the_device_home_only_here() {
    for subject in subjects() {
        let stage = stage();
        let mut config = config(&stage, json!({ "device": "ens1" }));
        config["ipam"] = stage.ipam(&["10.1.2.0/31"]);
        let reply = stage.call(&subject, "host-device", "c1").run("ADD", &config);
        assert_ne!(reply.exit, Some(0), "{}", subject.name);
        let is_home = stage.host.link_names() == ["ens1", "far"];
        assert_eq!(is_home, !subject.is_reference(), "{}: {reply:?}", subject.name);
        if is_home {
            let home = link(&stage.host, "ens1");
            assert!(is_up(&home) && home.get("ifalias").is_none(), "{home}");
            assert_eq!(stage.pod.link_names(), [""; 0]);
        }
    }
}

/// Something done to a pod's network behind the plugin's back.
type Break = fn(&Stage);

// 29
#[test]
fn check_is_content_after_add_and_finds_what_is_broken() {
    let breaks: [(&str, bool, Break); 5] = [
        ("the address is gone", true, |stage| drop(stage.pod.ip("address flush dev eth0 scope global"))),
        ("the mac is another", true, |stage| drop(stage.pod.ip("link set eth0 address 02:00:00:00:00:01"))),
        ("the device is gone", true, |stage| drop(stage.pod.ip("link del eth0"))),
        ("the name at home is forgotten", false, |stage| {
            let path = format!("--net={}", stage.pod.path().display());
            harness::run_ok(
                std::process::Command::new("nsenter").args([&path, "ip", "link", "set", "eth0", "alias", ""]),
            );
        }),
        ("the device is down", true, |stage| {
            drop(stage.pod.ip("link set eth0 down"));
        }),
    ];
    for subject in subjects() {
        for (what, seen_by_reference, broken) in breaks {
            let stage = stage();
            let mut config = config(&stage, json!({ "device": "ens1" }));
            let call = stage.call(&subject, "host-device", "c1");
            config["prevResult"] = call.add(&config);
            call.run("CHECK", &config).expect_success("CHECK after ADD");
            broken(&stage);
            let content = call.run("CHECK", &config).exit == Some(0);
            assert_eq!(content, subject.is_reference() && !seen_by_reference, "{}: {what}", subject.name);
        }
    }
}

/// Runs a call with a sysfs of the host's namespace, and directories of PCI devices laid over its own: `script` may
/// use `$pci` for them.
fn with_sysfs(call: &Call<'_>, command: &str, config: &Value, script: &str) -> Reply {
    let inside = format!(
        "set -e; mount -t sysfs sysfs /sys; mount -t tmpfs tmpfs /sys/bus/pci/devices; pci=/sys/bus/pci/devices; \
         {script}; exec {}",
        call.bin.join(call.plugin).display()
    );
    let mut process = call.host.command("unshare");
    process.args(["--mount", "--propagation", "private", "sh", "-c", &inside]);
    call.environment(command, &mut process);
    process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = process.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(config.to_string().as_bytes());
    Reply::from(child.wait_with_output().unwrap())
}

fn has_pci() -> bool {
    let there = Path::new("/sys/bus/pci/devices").exists();
    if !there {
        not_run("this machine has no PCI bus to lay devices on");
    }
    there
}

const WITH_LINK: &str = "mkdir -p $pci/0000:07:00.0/net/ens1 /tmp/drivers-$$/virtio-pci; \
    ln -s /tmp/drivers-$$/virtio-pci $pci/0000:07:00.0/driver";
const WITH_LINK_BELOW: &str = "mkdir -p $pci/0000:07:00.0/virtio3/net/ens1 /tmp/drivers-$$/virtio-pci; \
    ln -s /tmp/drivers-$$/virtio-pci $pci/0000:07:00.0/driver";
const OUTSIDE_THE_KERNEL: &str = "mkdir -p $pci/0000:07:00.0 /tmp/drivers-$$/vfio-pci; \
    ln -s /tmp/drivers-$$/vfio-pci $pci/0000:07:00.0/driver";

// 43
#[test]
fn a_device_is_found_by_its_place_in_sysfs() {
    if !has_pci() {
        return;
    }
    for subject in subjects() {
        for (selector, script) in [
            // The first of the devices there; a second one of the host's is `far`, and `lo` comes after both.
            (json!({ "kernelpath": "/sys/devices/virtual" }), "true"),
            (json!({ "pciBusID": "0000:07:00.0" }), WITH_LINK),
            (json!({ "pciBusID": "0000:07:00.0" }), WITH_LINK_BELOW),
            (json!({ "runtimeConfig": { "deviceID": "0000:07:00.0" } }), WITH_LINK),
        ] {
            if script == WITH_LINK_BELOW && subject.is_reference() {
                // Newer than Debian's reference.
                continue;
            }
            let stage = stage();
            let config = config(&stage, selector.clone());
            let call = stage.call(&subject, "host-device", "c1");
            with_sysfs(&call, "ADD", &config, script).expect_success("ADD");
            assert_eq!(link(&stage.pod, "eth0")["ifalias"], "ens1", "{}: {selector}", subject.name);
            let without = call.run("DEL", &config);
            let is_home = stage.host.link_names() == ["ens1", "far"];
            // P#773: a device that sysfs knows no more blocks the reference's DEL.
            let reads_bus = selector.get("kernelpath").is_none();
            assert_eq!(is_home, !(subject.is_reference() && reads_bus), "{}: {without:?}", subject.name);
        }
    }
}

// 43
#[test]
fn a_device_that_a_program_drives_is_not_moved() {
    if !has_pci() {
        return;
    }
    for subject in subjects() {
        let stage = stage();
        let mut config = config(&stage, json!({ "runtimeConfig": { "deviceID": "0000:07:00.0" } }));
        let call = stage.call(&subject, "host-device", "c1");
        let result = with_sysfs(&call, "ADD", &config, OUTSIDE_THE_KERNEL).expect_success("ADD");
        if !subject.is_reference() {
            // Debian's says nothing of it; newer ones name it as well.
            assert_eq!(result["interfaces"][0]["name"], "eth0");
            assert_eq!(result["interfaces"][0]["sandbox"], json!(stage.pod.path()));
        }
        assert_eq!(result["ips"][0]["address"], "10.1.2.2/24", "{}", subject.name);
        assert_eq!(stage.pod.link_names(), [""; 0], "{}", subject.name);
        config["prevResult"] = result;
        with_sysfs(&call, "CHECK", &config, OUTSIDE_THE_KERNEL).expect_success("CHECK");
        with_sysfs(&call, "DEL", &config, OUTSIDE_THE_KERNEL).expect_success("DEL");
        assert_eq!(stage.reserved(), [""; 0], "{}", subject.name);
        assert_eq!(stage.host.link_names(), ["ens1", "far"], "{}", subject.name);
    }
}

/// Either's device is brought home by the other: the note of its name is the same.
#[test]
fn each_brings_the_others_device_home() {
    let all = subjects();
    let [ours, reference]: &[Subject; 2] = match all.as_slice().try_into() {
        Ok(both) => both,
        Err(_) => return,
    };
    for (first, second) in [(ours, reference), (reference, ours)] {
        let stage = stage();
        let mut config = config(&stage, json!({ "device": "ens1" }));
        config["prevResult"] = stage.call(first, "host-device", "c1").add(&config);
        let other = stage.call(second, "host-device", "c1");
        other.run("CHECK", &config).expect_success("CHECK of the other's");
        other.del(&config);
        assert_eq!(stage.host.link_names(), ["ens1", "far"], "{} then {}", first.name, second.name);
        assert_eq!(stage.reserved(), [""; 0], "{} then {}", first.name, second.name);
    }
}
