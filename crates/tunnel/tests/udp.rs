//! The `udp` tunnel between two nodes: real pings, real connections, real errors.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure here is a failure of the test")]

mod rig;

use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use harness::eventually;
use rig::wire::{self, Inner};
use rig::{PORT, Rig, echoes, verdict};
use tunnel::{DropReason, Encapsulation, Handles, Peer, Settings, Tunnel};

fn udp() -> Option<Rig> {
    Rig::new(Encapsulation::Udp, 1472)
}

#[test]
fn pods_of_two_nodes_reach_each_other_over_either_underlay() {
    let Some(mut rig) = udp() else { return };
    for six in [false, true] {
        rig.six = six;
        rig.mtu = if six { 1452 } else { 1472 };
        let tunnels = rig.join(2);
        for address in ["10.2.0.2", "fd00:2::2"] {
            assert!(rig.pods[0].pings(address), "{address}");
            assert!(echoes(&rig.pods[0], &rig.pods[1], address, 20_000_000), "{address}");
        }
        let counters = tunnels[0].counters();
        assert_eq!(counters.peers[0].name, "node2");
        assert!(counters.peers[0].sent.bytes > 40_000_000, "{counters:?}");
        assert!(counters.peers[0].received.bytes > 40_000_000, "{counters:?}");
        for reason in [
            DropReason::NoPeer,
            DropReason::TooBig,
            DropReason::Malformed,
            DropReason::NotSent,
            DropReason::NotDelivered,
        ] {
            let dropped = counters.dropped(reason).packets;
            // With the IPv6 underlay the device is larger than the way.
            assert!(dropped == 0 || six && reason == DropReason::TooBig, "{reason:?} {counters:?}");
        }
    }
}

#[test]
fn a_tunnel_is_one_hop() {
    let Some(rig) = udp() else { return };
    let _tunnels = rig.join(1);
    // Each node takes one off; what arrives with one is delivered.
    assert!(rig.ping("-n -c 1 -W 5 -t 3 10.2.0.2").contains(" 0% packet loss"));
    let expired = rig.ping("-n -c 1 -W 5 -t 2 10.2.0.2");
    assert!(expired.contains("Time to live exceeded"), "{expired}");
    let expired = rig.ping("-n -c 1 -W 5 -t 1 10.2.0.2");
    assert!(expired.contains("From 10.1.0.1") && expired.contains("Time to live exceeded"), "{expired}");
}

#[test]
fn whoever_sends_to_nobody_is_told() {
    let Some(rig) = udp() else { return };
    let tunnels = rig.join(1);
    let answer = rig.ping("-n -c 1 -W 5 10.9.0.2");
    assert!(answer.contains("From 10.1.0.1") && answer.contains("Destination Net Unreachable"), "{answer}");
    let answer = rig.ping("-n -c 1 -W 5 fd00:9::2");
    assert!(answer.contains("From fd00:1::1") && answer.contains("No route"), "{answer}");
    for address in ["10.9.0.2:80", "[fd00:9::2]:80"] {
        let error = rig.pods[0].inside(|| {
            TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(30)).unwrap_err()
        });
        assert_eq!(error.kind(), std::io::ErrorKind::NetworkUnreachable, "{address}: {error}");
    }
    assert!(tunnels[0].counters().dropped(DropReason::NoPeer).packets >= 4);
}

#[test]
fn what_does_not_fit_is_cut_if_it_may_be_and_otherwise_its_sender_is_told() {
    let Some(rig) = udp() else { return };
    let tunnels = rig.join(1);
    tunnels[0].set_peers(&[Peer { mtu: Some(1300), ..rig.peer(2) }]);
    let answer = rig.ping("-n -c 1 -W 5 -M do -s 1372 10.2.0.2");
    assert!(answer.contains("From 10.1.0.1") && answer.contains("mtu = 1300"), "{answer}");
    let answer = rig.ping("-n -c 1 -W 5 -M do -s 1372 fd00:2::2");
    assert!(answer.contains("From fd00:1::1") && answer.contains("mtu=1300"), "{answer}");
    // 1272 and headers of 28 are 1300.
    assert!(rig.ping("-n -c 1 -W 5 -M do -s 1272 10.2.0.2").contains(" 0% packet loss"));
    rig.pods[0].ip("route flush cache");
    assert!(rig.ping("-n -c 1 -W 5 -M dont -s 1400 10.2.0.2").contains(" 0% packet loss"));
    for address in ["10.2.0.2", "fd00:2::2"] {
        rig.pods[0].ip("route flush cache");
        rig.pods[0].ip("-6 route flush cache");
        assert!(echoes(&rig.pods[0], &rig.pods[1], address, 2_000_000), "{address}");
    }
    assert!(tunnels[0].counters().dropped(DropReason::TooBig).packets >= 2);
}

#[test]
fn a_smaller_underlay_is_learned() {
    let Some(rig) = udp() else { return };
    let tunnels = rig.join(1);
    for node in &rig.nodes {
        node.ip("link set u mtu 1400");
    }
    eventually("the pod is told of the path's MTU", || {
        rig.ping("-n -c 1 -W 1 -M do -s 1444 10.2.0.2").contains("mtu = 1372").then_some(())
    });
    rig.pods[0].ip("route flush cache");
    assert!(echoes(&rig.pods[0], &rig.pods[1], "10.2.0.2", 2_000_000));
    assert!(tunnels[0].counters().dropped(DropReason::TooBig).packets >= 1);
}

#[test]
fn an_underlay_that_is_too_small_for_ipv6_carries_it_in_fragments() {
    for encapsulation in [Encapsulation::Udp, Encapsulation::Ipip] {
        let Some(rig) = Rig::new(encapsulation, 1400) else { return };
        let tunnels = rig.join(1);
        for (node, other) in rig.nodes.iter().zip([2, 1]) {
            node.ip(&format!("route add 192.0.2.{other}/32 dev u mtu lock 1200"));
        }
        // The pod is told of the smallest MTU that there is for it, and packets of that size arrive.
        eventually("the pod is told", || {
            let said = rig.ping("-n -c 1 -W 1 -M do -s 1352 fd00:2::2");
            said.contains("mtu=1280").then_some(()).or_else(|| said.contains("mtu = 1280").then_some(()))
        });
        let said = rig.ping("-n -c 3 -W 5 -M do -s 1232 fd00:2::2");
        assert!(said.contains(" 0% packet loss"), "{encapsulation:?}: {said}");
        assert!(echoes(&rig.pods[0], &rig.pods[1], "fd00:2::2", 300_000), "{encapsulation:?}");
        // What may be told smaller sizes is.
        let said = rig.ping("-n -c 2 -W 1 -M do -s 1200 10.2.0.2");
        assert!(said.contains("mtu = 11"), "{encapsulation:?}: {said}");
        assert_eq!(tunnels[0].counters().dropped(DropReason::NotSent).packets, 0);
    }
}

#[test]
fn strangers_and_broken_packets_are_dropped_and_counted() {
    let Some(rig) = udp() else { return };
    let [first, second] = rig.join(1);
    rig.nodes[1].ip("address add 192.0.2.99/24 dev u");
    second.stop();
    let other =
        Peer { pod_cidrs: vec!["10.3.0.0/16".parse().unwrap()], ..Peer::new("other", [192, 0, 2, 3].into()) };
    first.set_peers(&[rig.peer(2), other]);
    let dropped = |reason| first.counters().dropped(reason);
    let send = |from: &str, port: u16, bytes: &[u8]| {
        let socket = rig.nodes[1].inside(|| UdpSocket::bind((from, port)).unwrap());
        socket.send_to(bytes, ("192.0.2.1", PORT)).unwrap();
    };
    let mut echo = [0; 28];
    echo[..4].copy_from_slice(&[0x45, 0, 0, 28]);
    echo[12..20].copy_from_slice(&[10, 3, 0, 5, 10, 1, 0, 2]);
    send("192.0.2.99", PORT, &echo);
    eventually("the stranger is counted", || (dropped(DropReason::UnknownSender).packets == 1).then_some(()));
    assert_eq!(dropped(DropReason::UnknownSender).bytes, 28);
    // What a pod of the peer sends has the peer's address, and another port than its tunnel.
    send("192.0.2.2", 0, &echo);
    eventually("the pod is counted", || (dropped(DropReason::UnknownSender).packets == 2).then_some(()));
    send("192.0.2.2", PORT, &echo);
    eventually("a false source is counted", || (dropped(DropReason::WrongSource).packets == 1).then_some(()));
    for broken in [&b""[..], b"x", &[0x45; 19], &[0x60; 39], &[0x4f; 30], &[0xff; 100]] {
        send("192.0.2.2", PORT, broken);
    }
    eventually("broken packets are counted", || (dropped(DropReason::Malformed).packets >= 5).then_some(()));
    let second = rig.start(2, 1);
    rig.wait_for_devices();
    second.set_peers(&[rig.peer(1)]);
    assert!(rig.pods[0].pings("10.2.0.2"), "it goes on");
}

#[test]
fn a_hand_over_loses_nothing() {
    let Some(rig) = udp() else { return };
    let [mut first, second] = rig.join(2);
    assert!(rig.pods[0].pings("10.2.0.2"));
    let ping = rig.pinging("-n -q -i 0.002 -c 1500 -W 5 10.2.0.2");
    let sent = |tunnel: &Tunnel| tunnel.counters().peers[0].sent.packets;
    for _ in 0..20 {
        let handles = first.hand_over();
        first = rig.nodes[0].inside(|| Tunnel::adopt(rig.settings(1, 2), handles, &[rig.peer(2)])).unwrap();
        eventually("it carries again", || (sent(&first) > 20).then_some(()));
    }
    let said = verdict(ping);
    assert!(said.contains("1500 received, 0% packet loss"), "{said}");
    drop((first, second));
}

#[test]
fn only_the_handles_of_such_a_tunnel_are_taken_over() {
    let Some(rig) = udp() else { return };
    let settings = rig.settings(1, 2);
    let node = &rig.nodes[0];
    node.inside(|| kernel::tun::create("other")).unwrap();
    let open = |settings: &Settings| node.inside(|| Handles::open(settings)).unwrap();
    let other_port = Settings { port: PORT + 1, ..settings.clone() };
    let other_device = Settings { device: "other".to_owned(), ..settings.clone() };
    for opened in [&other_port, &other_device, &rig.settings(1, 1), &rig.settings(1, 3)] {
        let refused = Tunnel::adopt(settings.clone(), open(opened), &[]).err();
        assert!(matches!(refused, Some(tunnel::Error::Handles { .. })), "{opened:?}: {refused:?}");
    }
    let mut one_too_many = open(&settings);
    one_too_many.sockets.extend(open(&settings).sockets.pop());
    assert!(Tunnel::adopt(settings.clone(), one_too_many, &[]).is_err(), "nobody would read it");
    let of_before = open(&settings);
    node.ip("link del tun0");
    node.inside(|| kernel::tun::create("tun0")).unwrap();
    assert!(Tunnel::adopt(settings.clone(), of_before, &[]).is_err(), "the device is another one now");
    Tunnel::adopt(settings.clone(), open(&settings), &[]).unwrap().stop();
}

#[test]
fn peers_are_replaced_under_traffic_and_keep_their_counts() {
    let Some(rig) = udp() else { return };
    let [first, _second] = rig.join(2);
    assert!(rig.pods[0].pings("10.2.0.2"));
    let ping = rig.pinging("-n -q -i 0.002 -c 1500 -W 5 10.2.0.2");
    let others = (0..5000_u32).map(|number| {
        let net = format!("172.{}.{}.0/24", 16 + number / 256, number % 256).parse().unwrap();
        Peer {
            pod_cidrs: vec![net],
            ..Peer::new(&format!("other{number}"), (0xc612_0000 + number).to_be_bytes().into())
        }
    });
    let all: Vec<Peer> = others.chain([rig.peer(2)]).collect();
    for round in 0..50_usize {
        first.set_peers(if round % 2 == 0 { &all } else { &all[5000..] });
    }
    let said = verdict(ping);
    assert!(said.contains("1500 received, 0% packet loss"), "{said}");
    assert!(first.counters().peers.last().unwrap().sent.packets >= 1501);
    first.set_peers(&[]);
    assert!(first.counters().peers.is_empty());
    let answer = rig.ping("-n -c 1 -W 5 10.2.0.2");
    assert!(answer.contains("Destination Net Unreachable"), "{answer}");
}

#[test]
fn a_persistent_device_outlives_its_tunnel_and_a_deleted_one_ends_it() {
    let Some(rig) = udp() else { return };
    let tunnels = rig.join(1);
    assert!(rig.pods[0].pings("10.2.0.2"));
    tunnels.into_iter().for_each(Tunnel::stop);
    assert!(rig.nodes[0].link_names().contains(&"tun0".to_owned()));
    let tunnels = rig.join(1);
    assert!(rig.pods[0].pings("10.2.0.2"), "another goes on with it");
    let (tell, told) = std::sync::mpsc::channel();
    for (number, tunnel) in tunnels.iter().enumerate() {
        let tell = tell.clone();
        tunnel.on_end(move |reason| tell.send((number, reason.to_owned())).unwrap());
    }
    rig.nodes[0].ip("link del tun0");
    let (number, reason) = told.recv().unwrap();
    assert!(number == 0 && !reason.is_empty(), "tunnel {number} ended: {reason}");
    eventually("its threads end", || (!tunnels[0].is_running()).then_some(()));
    assert!(tunnels[1].is_running());
    let (tell, late) = std::sync::mpsc::channel();
    tunnels[0].on_end(move |reason| tell.send(reason.to_owned()).unwrap());
    assert_eq!(late.recv().unwrap(), reason, "whoever asks later is told as well");
    tunnels.into_iter().for_each(Tunnel::stop);
    assert_eq!(told.try_iter().count(), 0, "one that is stopped says nothing");
}

/// What flannel's proxy does with a packet is to send it as it is by a plain UDP socket, from its port to the peer's; so that is
/// what a datagram is compared with. (Of the time to live flannel takes one off itself, besides the router's.)
#[test]
fn on_the_wire_it_is_byte_for_byte_the_packet_in_a_plain_datagram_and_such_a_one_arrives_as_it_was_sent() {
    let Some(rig) = udp() else { return };
    for node in &rig.nodes {
        // Otherwise a veth leaves the checksum of UDP unfinished.
        harness::run_ok(node.command("ethtool").args(["-K", "u", "tx", "off"]));
    }
    let tunnel = rig.start(1, 1);
    rig.wait_for_device(1);
    tunnel.set_peers(&[rig.peer(2)]);
    let socket = wire::listen(&rig.nodes[1], "192.0.2.2", Some(17));
    let ours: Vec<_> = Inner::all(rig.mtu).into_iter().map(|inner| inner.seen(&rig, &socket)).collect();
    tunnel.stop();
    let plain = rig.nodes[0].inside(|| UdpSocket::bind(("192.0.2.1", PORT))).unwrap();
    for (inner, ours) in Inner::all(rig.mtu).into_iter().zip(ours) {
        plain.send_to(&wire::routed(inner), ("192.0.2.2", PORT)).unwrap();
        let theirs = inner.arrived(&socket);
        assert_eq!(ours[28..], wire::routed(inner), "{inner:?}");
        assert_eq!(wire::outer(&ours), wire::outer(&theirs), "{inner:?}");
        assert_eq!(ours[20..], theirs[20..], "header, checksum and all of {inner:?}");
        let pseudo = [&ours[12..20], &[0, 17], &ours[24..26], &ours[20..]].concat();
        assert_eq!(wire::sum(&pseudo), 0xffff, "the checksum of {inner:?}");
    }
    // The other way: what a plain socket sends is what the pod gets, routed once more.
    let second = rig.start(2, 1);
    rig.wait_for_device(2);
    second.set_peers(&[rig.peer(1)]);
    let pod = wire::listen(&rig.pods[1], "10.2.0.2", None);
    for inner in Inner::all(rig.mtu).into_iter().filter(|inner| !inner.six) {
        plain.send_to(&wire::routed(inner), ("192.0.2.2", PORT)).unwrap();
        assert_eq!(inner.arrived(&pod), inner.bytes(62), "{inner:?}");
    }
}
