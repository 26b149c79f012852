//! WireGuard between two nodes: sessions, keys, and who may send what.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure here is a failure of the test")]

mod rig;

use harness::eventually;
use rig::{Rig, echoes};
use tunnel::{DropReason, Encapsulation, Peer, Secret, Settings, Tunnel};

/// The key of a node.
fn secret(number: u8) -> Secret {
    Secret([number; 32])
}

fn start(rig: &Rig, number: u8, key: Secret) -> Tunnel {
    let encapsulation = Encapsulation::WireGuard { private_key: key };
    let settings = Settings { encapsulation, ..rig.settings(number.into(), 2) };
    rig.nodes[usize::from(number) - 1].inside(|| Tunnel::start(settings, &[])).unwrap()
}

fn peer(rig: &Rig, number: u8, key: Secret) -> Peer {
    let preshared_key = Some(Secret([99; 32]));
    Peer { public_key: Some(key.public_key()), preshared_key, ..rig.peer(number.into()) }
}

fn join(rig: &Rig) -> [Tunnel; 2] {
    let tunnels = [start(rig, 1, secret(1)), start(rig, 2, secret(2))];
    rig.wait_for_devices();
    tunnels[0].set_peers(&[peer(rig, 2, secret(2))]);
    tunnels[1].set_peers(&[peer(rig, 1, secret(1))]);
    tunnels
}

fn wireguard() -> Option<Rig> {
    Rig::new(Encapsulation::Udp, 1440)
}

#[test]
fn pods_of_two_nodes_reach_each_other_and_nothing_is_lost_to_the_handshake() {
    let Some(rig) = wireguard() else { return };
    let tunnels = join(&rig);
    let first = rig.ping("-n -c 1 -W 5 10.2.0.2");
    assert!(first.contains(" 0% packet loss"), "{first}");
    for address in ["10.2.0.2", "fd00:2::2"] {
        assert!(echoes(&rig.pods[0], &rig.pods[1], address, 5_000_000), "{address}");
    }
    let counters = tunnels[0].counters();
    assert!(counters.peers[0].received.bytes > 10_000_000, "{counters:?}");
    for reason in [DropReason::NoKey, DropReason::WrongSource, DropReason::NotSent, DropReason::NotDelivered]
    {
        assert_eq!(counters.dropped(reason).packets, 0, "{counters:?}");
    }
}

#[test]
fn a_peer_without_a_key_is_sent_nothing() {
    let Some(rig) = wireguard() else { return };
    let tunnels = join(&rig);
    tunnels[0].set_peers(&[rig.peer(2)]);
    assert!(!rig.pods[0].pings("10.2.0.2"));
    let counters = tunnels[0].counters();
    assert!(counters.dropped(DropReason::NoKey).packets >= 1, "{counters:?}");
    assert_eq!(tunnels[1].counters().peers[0].received.packets, 0);
    tunnels[0].set_peers(&[peer(&rig, 2, secret(2))]);
    assert!(rig.pods[0].pings("10.2.0.2"), "it has one now");
}

#[test]
fn a_peer_with_another_key_is_not_heard_and_one_that_changes_its_key_is() {
    let Some(rig) = wireguard() else { return };
    let [first, second] = join(&rig);
    assert!(rig.pods[0].pings("10.2.0.2"));
    drop(second);
    let second = start(&rig, 2, secret(22));
    second.set_peers(&[peer(&rig, 1, secret(1))]);
    rig.wait_for_devices();
    assert!(!rig.pods[0].pings("10.2.0.2"), "not the key that was said");
    assert_eq!(second.counters().peers[0].received.packets, 0);
    first.set_peers(&[peer(&rig, 2, secret(22))]);
    assert!(rig.pods[0].pings("10.2.0.2"));
}

#[test]
fn a_node_that_has_forgotten_its_sessions_makes_new_ones() {
    let Some(rig) = wireguard() else { return };
    let [first, second] = join(&rig);
    assert!(rig.pods[0].pings("10.2.0.2"));
    drop(second);
    let second = start(&rig, 2, secret(2));
    second.set_peers(&[peer(&rig, 1, secret(1))]);
    rig.wait_for_devices();
    // The first still seals with a key that the second does not know any more.
    eventually("they talk again", || rig.pods[0].pings("10.2.0.2").then_some(()));
    assert!(second.counters().dropped(DropReason::UnknownSession).packets >= 1);
    drop(first);
}

#[test]
fn a_peer_sends_from_its_own_pods_only() {
    let Some(rig) = wireguard() else { return };
    let tunnels = join(&rig);
    assert!(rig.pods[0].pings("10.2.0.2"));
    rig.pods[0].ip("address add 10.9.0.7/32 dev eth0");
    rig.nodes[0].ip("route add 10.9.0.7/32 dev pod");
    let answer = rig.ping("-n -c 1 -W 1 -I 10.9.0.7 10.2.0.2");
    assert!(answer.contains("100% packet loss"), "{answer}");
    assert_eq!(tunnels[1].counters().dropped(DropReason::WrongSource).packets, 1);
}

#[test]
fn threads_that_seal_for_one_peer_do_not_overtake_each_other_too_far() {
    let Some(rig) = wireguard() else { return };
    let settings = |number, key| Settings {
        encapsulation: Encapsulation::WireGuard { private_key: key },
        ..rig.settings(number, 4)
    };
    let start = |number: usize, key| {
        rig.nodes[number - 1].inside(|| Tunnel::start(settings(number, key), &[])).unwrap()
    };
    let tunnels = [start(1, secret(1)), start(2, secret(2))];
    rig.wait_for_devices();
    tunnels[0].set_peers(&[peer(&rig, 2, secret(2))]);
    tunnels[1].set_peers(&[peer(&rig, 1, secret(1))]);
    assert!(rig.pods[0].pings("10.2.0.2"));
    let sockets: Vec<_> =
        (0..8).map(|_| rig.pods[0].inside(|| std::net::UdpSocket::bind("10.1.0.2:0")).unwrap()).collect();
    std::thread::scope(|scope| {
        for socket in &sockets {
            scope.spawn(move || {
                for _ in 0..20_000 {
                    let _ = socket.send_to(&[7; 40], "10.2.0.2:9");
                }
            });
        }
    });
    assert!(rig.pods[0].pings("10.2.0.2"));
    let counters = tunnels[1].counters();
    assert!(counters.peers[0].received.packets > 10_000, "{counters:?}");
    assert_eq!(counters.dropped(DropReason::Replayed).packets, 0, "{counters:?}");
}
