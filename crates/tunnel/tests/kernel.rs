//! A program's tunnel at one node and the kernel's own at the other: they speak the same on the wire. The kernel's is made
//! with `ip` and `wg`. And both over an underlay that loses, delays and reorders, which only some kernels make (sch_netem).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure here is a failure of the test")]

mod rig;

use std::fs;

use harness::{eventually, has_tunnels, run_ok};
use netstate::PublicKey;
use rig::wire::{self, Inner};
use rig::{DEVICE, PORT, Rig, echoes};
use tunnel::{Encapsulation, Peer, Secret, Settings, Tunnel};

/// Gives the second node the kernel's devices, for IPv4 and for IPv6 within, in place of the program's.
fn replace_device(rig: &Rig, devices: [(&str, &str); 2], gateways: [&str; 2]) {
    let node = &rig.nodes[1];
    node.ip(&format!("link delete {DEVICE}"));
    for (device, words) in devices.into_iter().filter(|(_, words)| !words.is_empty()) {
        node.ip(&format!("link add {device} {words}"));
        node.ip(&format!("link set {device} mtu {} up", rig.mtu));
    }
    node.ip(&format!("address add 10.2.0.0/32 dev {}", devices[0].0));
    node.ip(&format!("route add 10.1.0.0/24 dev {} {}", devices[0].0, gateways[0]));
    node.ip(&format!("route add fd00:1::/64 dev {} {}", devices[1].0, gateways[1]));
}

/// Pods of both nodes reach each other with packets of all sizes, in both families.
fn assert_joined(rig: &Rig) {
    for address in ["10.2.0.2", "fd00:2::2"] {
        eventually(&format!("{address} answers"), || rig.pods[0].pings(address).then_some(()));
        assert!(echoes(&rig.pods[0], &rig.pods[1], address, 200_000), "{address}");
    }
    // Headers of 28 bytes, or of 48.
    for (address, size) in [("10.2.0.2", rig.mtu - 28), ("fd00:2::2", rig.mtu - 48)] {
        let answer = rig.ping(&format!("-n -c 1 -W 5 -M do -s {size} {address}"));
        assert!(answer.contains(" 0% packet loss"), "{answer}");
    }
}

/// Has the underlay lose, delay and reorder packets both ways, and TCP come through it whole; says why not where the kernel
/// does not make one.
fn assert_joined_over_a_bad_underlay(rig: &Rig) {
    let words = "qdisc add dev u root netem delay 3ms 1ms loss 2% reorder 20% 50%";
    let spoils = |node: &harness::Namespace| {
        harness::run(node.command("tc").args(words.split_whitespace())).status.success()
    };
    if !rig.nodes.iter().all(spoils) {
        return harness::not_run("this kernel has no sch_netem");
    }
    for address in ["10.2.0.2", "fd00:2::2"] {
        assert!(echoes(&rig.pods[0], &rig.pods[1], address, 300_000), "{address}");
    }
}

#[test]
fn tcp_comes_through_every_tunnel_whole_where_the_underlay_loses_delays_and_reorders() {
    let ciphered = |number: u8| Encapsulation::WireGuard { private_key: Secret([number; 32]) };
    let kinds: [(u16, &dyn Fn(u8) -> Encapsulation); 3] =
        [(1472, &|_| Encapsulation::Udp), (1480, &|_| Encapsulation::Ipip), (1440, &ciphered)];
    for (mtu, of) in kinds {
        let Some(rig) = Rig::new(of(1), mtu) else { return };
        let tunnels = [1, 2].map(|number| {
            let settings = Settings { encapsulation: of(number), ..rig.settings(number.into(), 1) };
            rig.nodes[usize::from(number) - 1].inside(|| Tunnel::start(settings, &[])).unwrap()
        });
        rig.wait_for_devices();
        for (tunnel, other) in tunnels.iter().zip([2, 1]) {
            let public_key = match of(other) {
                Encapsulation::WireGuard { private_key } => Some(private_key.public_key()),
                _ => None,
            };
            tunnel.set_peers(&[Peer { public_key, ..rig.peer(other.into()) }]);
        }
        assert_joined(&rig);
        assert_joined_over_a_bad_underlay(&rig);
    }
}

#[test]
fn ip_in_ip_of_a_program_and_of_the_kernel_are_the_same() {
    if !has_tunnels(&["ipip", "sit"]) {
        return;
    }
    let Some(rig) = Rig::new(Encapsulation::Ipip, 1480) else { return };
    let tunnel = rig.start(1, 1);
    rig.wait_for_device(1);
    tunnel.set_peers(&[rig.peer(2)]);
    let local = "local 192.0.2.2 remote any ttl 64";
    let devices = [("four0", &*format!("type ipip {local}")), ("six0", &*format!("type sit {local}"))];
    replace_device(&rig, devices, ["via 192.0.2.1 onlink", "via ::192.0.2.1"]);
    assert_joined(&rig);
    assert_joined_over_a_bad_underlay(&rig);
}

#[test]
fn what_a_program_puts_on_the_wire_for_ip_in_ip_is_byte_for_byte_what_the_kernel_does() {
    if !has_tunnels(&["ipip", "sit"]) {
        return;
    }
    let Some(rig) = Rig::new(Encapsulation::Ipip, 1480) else { return };
    let tunnel = rig.start(1, 1);
    rig.wait_for_device(1);
    tunnel.set_peers(&[rig.peer(2)]);
    let sockets = [4, 41].map(|protocol| wire::listen(&rig.nodes[1], "192.0.2.2", Some(protocol)));
    let seen = || -> Vec<Vec<u8>> {
        let all = Inner::all(rig.mtu).into_iter();
        all.map(|inner| inner.seen(&rig, &sockets[usize::from(inner.six)])).collect()
    };
    let programs = seen();
    tunnel.stop();
    let node = &rig.nodes[0];
    // As the agent has the kernel make them.
    for (device, kind) in [("four0", "ipip"), ("six0", "sit")] {
        node.ip(&format!("link add {device} type {kind} local 192.0.2.1 remote any ttl 64 pmtudisc"));
        node.ip(&format!("link set {device} mtu {} up", rig.mtu));
    }
    node.ip("route replace 10.2.0.0/24 dev four0 via 192.0.2.2 onlink");
    node.ip("route delete fd00:2::/64");
    node.ip("route add fd00:2::/64 dev six0 via ::192.0.2.2");
    let kernels = seen();
    for ((inner, ours), theirs) in Inner::all(rig.mtu).into_iter().zip(programs).zip(kernels) {
        assert_eq!(wire::outer(&ours), wire::outer(&theirs), "{inner:?}");
        assert_eq!(ours[20..], theirs[20..], "{inner:?}");
        assert_eq!(ours[20..], wire::routed(inner), "{inner:?}");
    }
}

#[test]
fn wireguard_of_a_program_and_of_the_kernel_are_the_same() {
    if !has_tunnels(&["wireguard"]) {
        return;
    }
    let (ours, theirs) = (Secret([1; 32]), Secret([2; 32]));
    let encapsulation = Encapsulation::WireGuard { private_key: ours };
    let Some(rig) = Rig::new(encapsulation, 1440) else { return };
    let settings = Settings { encapsulation, ..rig.settings(1, 1) };
    let tunnel = rig.nodes[0].inside(|| Tunnel::start(settings, &[])).unwrap();
    rig.wait_for_device(1);
    tunnel.set_peers(&[Peer { public_key: Some(theirs.public_key()), ..rig.peer(2) }]);
    replace_device(&rig, [("wg0", "type wireguard"), ("wg0", "")], ["", ""]);
    let key = std::env::temp_dir().join("fairlead-tunnel-test.key");
    fs::write(&key, PublicKey(theirs.0).to_string()).unwrap();
    let peer = PublicKey(ours.public_key());
    let words = format!(
        "set wg0 private-key {} listen-port {PORT} peer {peer} endpoint 192.0.2.1:{PORT} allowed-ips \
         10.1.0.0/24,fd00:1::/64",
        key.display()
    );
    run_ok(rig.nodes[1].command("wg").args(words.split_whitespace()));
    fs::remove_file(key).unwrap();
    assert_joined(&rig);
    // The other way round: the kernel's begins.
    let answered = || {
        let ping = rig.pods[1].command("ping").args(["-n", "-c", "1", "-W", "2", "10.1.0.2"]).output();
        ping.unwrap().status.success().then_some(())
    };
    eventually("the first node's pod answers", answered);
    assert_joined_over_a_bad_underlay(&rig);
}
