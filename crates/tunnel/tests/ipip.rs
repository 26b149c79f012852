//! IP in IP between two nodes, and what it looks like on the wire.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure here is a failure of the test")]

mod rig;

use harness::{eventually, not_run, run};
use kernel::datagram::{Datagrams, Receiver};
use rig::{Rig, echoes, verdict};
use tunnel::{DropReason, Encapsulation, Tunnel};

fn ipip() -> Option<Rig> {
    Rig::new(Encapsulation::Ipip, 1480)
}

#[test]
fn pods_of_two_nodes_reach_each_other() {
    let Some(rig) = ipip() else { return };
    let tunnels = rig.join(1);
    for address in ["10.2.0.2", "fd00:2::2"] {
        assert!(rig.pods[0].pings(address), "{address}");
        assert!(echoes(&rig.pods[0], &rig.pods[1], address, 5_000_000), "{address}");
    }
    let large = rig.ping("-n -c 1 -W 5 -M do -s 1452 10.2.0.2");
    assert!(large.contains(" 0% packet loss"), "{large}");
    let counters = tunnels[0].counters();
    assert!(
        counters
            .drops
            .iter()
            .all(|(reason, dropped)| *reason == DropReason::NotUnicast || dropped.packets == 0),
        "{counters:?}"
    );
}

#[test]
fn packets_that_the_underlays_card_has_glued_are_carried() {
    let Some(rig) = ipip() else { return };
    // A veth glues what comes in a burst if it waits for the burst's end, as a card does.
    let wait = "mount -t sysfs none /sys && cd /sys/class/net/u \
                && echo 200000 > gro_flush_timeout && echo 10 > napi_defer_hard_irqs";
    for node in &rig.nodes {
        let glue = run(node.command("ethtool").args(["-K", "u", "gro", "on", "tso", "off"]));
        let wait = run(node.command("unshare").args(["--mount", "sh", "-c", wait]));
        if !glue.status.success() || !wait.status.success() {
            return not_run("no veth can be had here that glues what comes in");
        }
    }
    let tunnels = rig.join(1);
    for address in ["10.2.0.2", "fd00:2::2"] {
        assert!(echoes(&rig.pods[0], &rig.pods[1], address, 5_000_000), "{address}");
    }
    let received = tunnels[0].counters().peers[0].received;
    assert!(received.bytes > 10_000_000);
    assert!(received.bytes / received.packets > 1480, "none was glued: {received:?}");
}

#[test]
fn on_the_wire_it_is_an_ipv4_header_and_the_packet() {
    let Some(rig) = ipip() else { return };
    let first = rig.start(1, 1);
    rig.wait_for_device(1);
    first.set_peers(&[rig.peer(2)]);
    let socket = rig.nodes[1].inside(|| Datagrams::raw("192.0.2.2".parse().unwrap(), 4)).unwrap();
    let mut receiver = Receiver::new(1, 2000);
    let ping = rig.pinging("-n -c 1 -W 1 -Q 0x0b -s 10 10.2.0.2");
    let datagram = eventually("a packet on the wire", || {
        (receiver.receive(&socket).unwrap() > 0).then(|| receiver.datagram(0).unwrap())
    });
    let bytes = &receiver.arena()[..datagram.length];
    // Congestion inside becomes the readiness to hear of it outside; the rest of the class of service stays inside.
    assert_eq!(bytes[..4], [0x45, 2, 0, 20 + 20 + 18]);
    assert_eq!(bytes[6..10], [0x40, 0, 64, 4]);
    assert_eq!(bytes[12..20], [192, 0, 2, 1, 192, 0, 2, 2]);
    assert_eq!(bytes[20..22], [0x45, 0x0b]);
    assert_eq!(bytes[28], 63, "the node that routed it into the tunnel has taken one off");
    assert_eq!(bytes[32..40], [10, 1, 0, 2, 10, 2, 0, 2]);
    verdict(ping);
}

#[test]
fn a_hand_over_loses_nothing() {
    let Some(rig) = ipip() else { return };
    let [mut first, _second] = rig.join(1);
    assert!(rig.pods[0].pings("10.2.0.2"));
    let ping = rig.pinging("-n -q -i 0.002 -c 500 -W 5 fd00:2::2");
    for _ in 0..5 {
        let handles = first.hand_over();
        first = rig.nodes[0].inside(|| Tunnel::adopt(rig.settings(1, 1), handles, &[rig.peer(2)])).unwrap();
        eventually("it carries again", || (first.counters().peers[0].sent.packets > 20).then_some(()));
    }
    let said = verdict(ping);
    assert!(said.contains("500 received, 0% packet loss"), "{said}");
}
