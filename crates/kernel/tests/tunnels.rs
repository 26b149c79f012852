//! WireGuard and IP in IP of the kernel: what is wanted is made, what others change is found, and packets arrive. `ip` and
//! `wg` say what is really there. Where the kernel lacks them, a test says so.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a failure here is a failure of the test, and tools are what it asserts with"
)]

#[path = "host/node.rs"]
#[allow(dead_code, reason = "another suite's, of which this one needs a part")]
mod node;

use std::net::Ipv4Addr;
use std::process::Command;

use harness::{Namespace, eventually, not_run, run, run_ok};
use kernel::Family;
use kernel::features;
use kernel::netlink::{Protocol, Socket};
use netstate::{
    Address, IpTunnel, Link, LinkKind, Plan, PublicKey, Route, SecretKey, State, Step, WireGuard,
    WireGuardPeer, WireGuardPeerKey,
};
use node::{assert_settled, inside, name, net, node, observe, reconcile};

const DEVICE: &str = "fairlead-wg";

/// Whether `ip` can make such a device here, and so whether it is said that it can.
fn has(kind: &str) -> bool {
    let namespace = Namespace::new();
    // Without a local address it would be the kernel's own, which is there already.
    let local = if kind == "wireguard" { "" } else { "local 127.0.0.2" };
    let words = format!("link add one type {kind} {local}");
    let made = run(namespace.command("ip").args(words.split_whitespace())).status.success();
    let found = namespace.inside(|| {
        let mut socket = Socket::open(Protocol::Route).unwrap();
        match kind {
            "wireguard" => features::has_wireguard(&mut socket).unwrap(),
            "ipip" => features::has_ip_tunnel(&mut socket, Family::V4).unwrap(),
            _ => features::has_ip_tunnel(&mut socket, Family::V6).unwrap(),
        }
    });
    assert_eq!(found, made, "{kind}");
    if !made {
        not_run(&format!("this kernel has no {kind}"));
    }
    made
}

/// The private key of a number, and its public key as `wg` works it out.
fn keys(number: u8) -> (SecretKey, PublicKey) {
    let secret = SecretKey::new([number; 32]);
    let text = PublicKey(*secret.bytes()).to_string();
    let script = format!("echo {text} | wg pubkey | base64 -d");
    let output = run(Command::new("sh").args(["-c", &script]));
    (secret, PublicKey(output.stdout.try_into().unwrap()))
}

fn wg(namespace: &Namespace, arguments: &str) -> String {
    run_ok(namespace.command("wg").args(arguments.split_whitespace()))
}

/// A node with a WireGuard device and no peers.
fn encrypting(secret: SecretKey) -> State {
    let link = name(DEVICE);
    let mut state = State::default();
    state.insert_link(Link { name: link, kind: LinkKind::WireGuard, mtu: Some(1420), mac: None, up: true });
    state.insert_wireguard(link, WireGuard { private_key: secret, port: 51820 });
    state
}

fn add_peer(state: &mut State, public_key: PublicKey, endpoint: &str, networks: &[String]) {
    let peer = WireGuardPeer {
        endpoint: Some(endpoint.parse().unwrap()),
        allowed_ips: networks.iter().map(|network| net(network)).collect(),
        keepalive: None,
    };
    for network in &peer.allowed_ips {
        state.insert_route(Route::on_link(*network, name(DEVICE)));
    }
    state.insert_wireguard_peer(WireGuardPeerKey { link: name(DEVICE), public_key }, peer);
}

#[test]
fn a_wireguard_device_is_what_wg_shows_and_nobody_is_shown_its_key() {
    if !has("wireguard") {
        return;
    }
    let namespace = node();
    let (secret, public) = keys(1);
    let mut want = encrypting(secret);
    let peers = [keys(2).1, keys(3).1];
    let networks = [["10.244.2.0/24", "fd00:2::/64"], ["10.244.3.0/24", "fd00:3::/64"]]
        .map(|pair| pair.map(str::to_owned));
    add_peer(&mut want, peers[0], "192.0.2.2:51820", &networks[0]);
    add_peer(&mut want, peers[1], "[2001:db8::3]:51821", &networks[1]);
    let key = WireGuardPeerKey { link: name(DEVICE), public_key: peers[1] };
    want.wireguard_peers.get_mut(&key).unwrap().keepalive = Some(25);
    let plan = reconcile(&namespace, &want);
    assert!(!plan.to_string().contains(&PublicKey(*secret.bytes()).to_string()), "{plan}");
    assert_settled(&namespace, &want);
    let shown = &namespace.ip_json(&format!("link show {DEVICE}"))[0];
    assert_eq!((&shown["ifalias"], &shown["mtu"]), (&"fairlead".into(), &1420.into()));
    let dump = wg(&namespace, &format!("show {DEVICE} dump"));
    let mut lines: Vec<Vec<&str>> = dump.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(lines.remove(0)[1..], [public.to_string().as_str(), "51820", "off"]);
    lines.sort_by_key(|line| line[2].starts_with('['));
    let [first, second] = &lines[..] else { panic!("{dump}") };
    assert_eq!(
        first[..4],
        [peers[0].to_string().as_str(), "(none)", "192.0.2.2:51820", "10.244.2.0/24,fd00:2::/64"]
    );
    assert_eq!((second[2], second[3], second[7]), ("[2001:db8::3]:51821", "10.244.3.0/24,fd00:3::/64", "25"));
    reconcile(&namespace, &State::default());
    assert!(!namespace.link_names().contains(&DEVICE.to_owned()));
}

#[test]
fn what_is_changed_at_a_wireguard_device_by_hand_is_found_and_the_other_peers_are_left_alone() {
    if !has("wireguard") {
        return;
    }
    let namespace = node();
    let mut want = encrypting(keys(1).0);
    let [first, second, stranger] = [2, 3, 4].map(|number| keys(number).1);
    add_peer(&mut want, first, "192.0.2.2:51820", &["10.244.2.0/24".to_owned()]);
    add_peer(&mut want, second, "192.0.2.3:51820", &["10.244.3.0/24".to_owned()]);
    reconcile(&namespace, &want);
    let other = PublicKey(*keys(9).0.bytes()).to_string();
    for (words, healed) in [
        (format!("set {DEVICE} peer {first} remove"), vec![format!("+ peer {first}")]),
        (format!("set {DEVICE} peer {first} allowed-ips 10.244.9.0/24"), vec![format!("~ peer {first}")]),
        (format!("set {DEVICE} peer {first} persistent-keepalive 7"), vec![format!("~ peer {first}")]),
        // Taken from another one: both are put right.
        (
            format!("set {DEVICE} peer {stranger} allowed-ips 10.244.3.0/24"),
            vec![format!("~ peer {second}"), format!("- peer {stranger}")],
        ),
        (format!("set {DEVICE} listen-port 1234"), vec![format!("~ wireguard {DEVICE}")]),
    ] {
        wg(&namespace, &words);
        let steps: Vec<String> = reconcile(&namespace, &want).steps.iter().map(Step::to_string).collect();
        assert_eq!(steps.len(), healed.len(), "{words}: {steps:?}");
        for (step, start) in steps.iter().zip(&healed) {
            assert!(step.starts_with(start), "{words}: {steps:?}");
        }
        assert_settled(&namespace, &want);
    }
    // Another key makes other sessions of all.
    run_ok(
        namespace
            .command("sh")
            .args(["-c", &format!("echo {other} > /tmp/key && wg set {DEVICE} private-key /tmp/key")]),
    );
    assert_eq!(reconcile(&namespace, &want).steps.len(), 1);
    assert_settled(&namespace, &want);
    namespace.ip(&format!("link delete {DEVICE}"));
    reconcile(&namespace, &want);
    assert_settled(&namespace, &want);
}

#[test]
fn networks_move_between_wireguard_peers_and_go_and_no_other_peer_is_left_behind() {
    if !has("wireguard") {
        return;
    }
    let namespace = node();
    let peers = [2, 3].map(|number| keys(number).1);
    let having = |first: &[&str], second: &[&str]| {
        let mut want = encrypting(keys(1).0);
        for (peer, networks) in peers.iter().zip([first, second]) {
            let networks: Vec<String> = networks.iter().map(ToString::to_string).collect();
            add_peer(&mut want, *peer, "192.0.2.2:51820", &networks);
        }
        want
    };
    for (first, second) in [
        (&["10.1.0.0/24", "10.2.0.0/24", "fd00:3::/64"][..], &["10.5.0.0/24"][..]),
        (&["10.1.0.0/24", "10.4.0.0/24"], &["10.2.0.0/24", "10.5.0.0/24"]),
        (&["10.5.0.0/24"], &["10.1.0.0/24"]),
        (&[], &["10.5.0.0/24"]),
    ] {
        let want = having(first, second);
        let plan = reconcile(&namespace, &want);
        assert_settled(&namespace, &want);
        let shown = wg(&namespace, &format!("show {DEVICE} allowed-ips"));
        for (peer, networks) in peers.iter().zip([first, second]) {
            let line = shown.lines().find(|line| line.starts_with(&peer.to_string())).unwrap();
            let mut found: Vec<&str> =
                line.split_whitespace().skip(1).filter(|word| *word != "(none)").collect();
            found.sort_unstable();
            assert_eq!(found, networks, "{plan}");
        }
        assert_eq!(shown.lines().count(), 2, "{shown}");
    }
}

#[test]
fn a_thousand_peers_and_one_with_thousands_of_networks_are_told_and_read_back() {
    if !has("wireguard") {
        return;
    }
    let namespace = node();
    let mut want = encrypting(keys(1).0);
    for number in 1..=1000_u16 {
        let [high, low] = number.to_be_bytes();
        let mut key = [7; 32];
        key[..2].copy_from_slice(&[high, low]);
        let networks = [format!("10.{}.{low}.0/24", 128 + high), format!("fd00:{number:x}::/64")];
        add_peer(&mut want, PublicKey(key), &format!("192.0.{high}.{low}:51820"), &networks);
    }
    let many: Vec<String> = (0..3000_u16).map(|number| format!("fd01:{number:x}::/64")).collect();
    add_peer(&mut want, PublicKey([3; 32]), "192.0.2.3:51820", &many);
    want.routes.clear();
    reconcile(&namespace, &want);
    assert_settled(&namespace, &want);
    let shown = wg(&namespace, &format!("show {DEVICE} allowed-ips"));
    assert_eq!((shown.lines().count(), shown.matches("fd01:").count()), (1001, 3000));
    let gone: Vec<WireGuardPeerKey> = want.wireguard_peers.keys().take(10).copied().collect();
    want.wireguard_peers.retain(|key, _| !gone.contains(key));
    assert_eq!(reconcile(&namespace, &want).steps.len(), 10);
    assert_settled(&namespace, &want);
}

/// Two nodes on one underlay, 192.0.2.1 and 192.0.2.2, each with the base address of 10.N.0.0/24 and fd00:N::/64.
fn pair() -> [Namespace; 2] {
    let nodes = [Namespace::with_loopback(), Namespace::with_loopback()];
    nodes[0].ip(&format!("link add u type veth peer name u netns {}", nodes[1].path().display()));
    for (namespace, number) in nodes.iter().zip(1..) {
        namespace.ip(&format!("address add 192.0.2.{number}/24 dev u"));
        namespace.ip("link set u up");
    }
    for namespace in &nodes {
        eventually("the underlay carries", || namespace.pings("192.0.2.1").then_some(()));
        eventually("the underlay carries", || namespace.pings("192.0.2.2").then_some(()));
    }
    nodes
}

fn own_addresses(state: &mut State, number: u8, links: [&str; 2]) {
    for (link, address) in
        links.into_iter().zip([format!("10.{number}.0.0/32"), format!("fd00:{number}::/128")])
    {
        state.insert_address(Address { link: name(link), net: net(&address) });
    }
}

/// Both families, from one node's base address to the other's.
fn assert_joined(nodes: &[Namespace; 2]) {
    for (from, to) in [("10.1.0.0", "10.2.0.0"), ("fd00:1::", "fd00:2::")] {
        let answered = || {
            let ping = nodes[0].command("ping").args(["-n", "-c", "1", "-W", "2", "-I", from, to]).output();
            ping.unwrap().status.success().then_some(())
        };
        eventually(&format!("{to} answers {from}"), answered);
    }
}

#[test]
fn nodes_are_joined_by_wireguard_and_a_peer_that_moves_is_no_difference() {
    if !has("wireguard") {
        return;
    }
    let nodes = pair();
    let (one, two) = (keys(1), keys(2));
    let [mut first, mut second] = [encrypting(one.0), encrypting(two.0)];
    add_peer(&mut first, two.1, "192.0.2.2:51820", &["10.2.0.0/24".to_owned(), "fd00:2::/64".to_owned()]);
    add_peer(&mut second, one.1, "192.0.2.1:51820", &["10.1.0.0/24".to_owned(), "fd00:1::/64".to_owned()]);
    own_addresses(&mut first, 1, [DEVICE, DEVICE]);
    own_addresses(&mut second, 2, [DEVICE, DEVICE]);
    reconcile(&nodes[0], &first);
    reconcile(&nodes[1], &second);
    assert_joined(&nodes);
    let heard = inside(&nodes[0], |host| host.wireguard(name(DEVICE)).unwrap());
    let peer = &heard.peers[&two.1];
    assert!(peer.last_handshake.is_some() && peer.sent > 0 && peer.received > 0, "{peer:?}");
    // One conversation all along: it is what remembers where it has put the peer.
    inside(&nodes[0], |host| {
        let planned =
            |host: &mut kernel::Host, want: &State| netstate::plan(&host.observe(want).unwrap(), want);
        let mut moved = first.clone();
        let key = WireGuardPeerKey { link: name(DEVICE), public_key: two.1 };
        moved.wireguard_peers.get_mut(&key).unwrap().endpoint = Some("192.0.2.2:1111".parse().unwrap());
        for want in [&moved, &first] {
            let plan = planned(host, want);
            assert_eq!(plan.steps.len(), 1, "{plan}");
            assert!(host.apply(&plan.steps).unwrap().is_success());
            assert_eq!(planned(host, want), Plan::default());
        }
        wg(&nodes[1], &format!("set {DEVICE} listen-port 2222"));
        let endpoint = || wg(&nodes[0], &format!("show {DEVICE} endpoints")).contains(":2222").then_some(());
        eventually("the kernel follows the peer", || {
            let _ = run(nodes[1]
                .command("ping")
                .args(["-n", "-c", "1", "-W", "1", "-I", "10.2.0.0", "10.1.0.0"]));
            endpoint()
        });
        assert_eq!(planned(host, &first), Plan::default(), "it has moved by itself");
        let plan = planned(host, &moved);
        assert_eq!(plan.steps.len(), 1, "the peer says that it is elsewhere: {plan}");
    });
}

/// A node with the two devices for IP in IPv4, and the routes to the other one.
fn in_ipv4(number: u8) -> State {
    let other = 3 - number;
    let mut state = State::default();
    for (device, v6) in [("fairlead-ipip", false), ("fairlead-sit", true)] {
        let kind = LinkKind::IpTunnel(IpTunnel { v6, local: Ipv4Addr::new(192, 0, 2, number) });
        state.insert_link(Link { name: name(device), kind, mtu: Some(1480), mac: None, up: true });
    }
    own_addresses(&mut state, number, ["fairlead-ipip", "fairlead-sit"]);
    let far = Ipv4Addr::new(192, 0, 2, other);
    let to = net(&format!("10.{other}.0.0/24"));
    state.insert_route(Route::via_onlink(to, far.into(), name("fairlead-ipip")));
    let to = net(&format!("fd00:{other}::/64"));
    state.insert_route(Route::via_onlink(to, far.to_ipv6_compatible().into(), name("fairlead-sit")));
    state
}

#[test]
fn nodes_are_joined_by_ip_in_ip_in_both_families() {
    if !has("ipip") || !has("sit") {
        return;
    }
    let nodes = pair();
    for (namespace, number) in nodes.iter().zip(1..) {
        let want = in_ipv4(number);
        reconcile(namespace, &want);
        assert_settled(namespace, &want);
        for device in ["fairlead-ipip", "fairlead-sit"] {
            let data = &namespace.ip_json(&format!("-d link show {device}"))[0]["linkinfo"]["info_data"];
            assert_eq!(
                (&data["remote"], &data["local"]),
                (&"any".into(), &format!("192.0.2.{number}").into())
            );
            assert_eq!((&data["ttl"], &data["pmtudisc"]), (&64.into(), &true.into()), "{data}");
        }
    }
    assert_joined(&nodes);
    // What the kernel gives such a device by itself stays, and is nobody's.
    let plan = reconcile(&nodes[0], &in_ipv4(1));
    assert_eq!(plan, Plan::default(), "{plan}");
    nodes[0].ip("link delete fairlead-sit");
    reconcile(&nodes[0], &in_ipv4(1));
    assert_joined(&nodes);
    let foreign = [
        ("fairlead-ipip", "type ipip local 192.0.2.1 ttl inherit"),
        ("fairlead-sit", "type sit remote 192.0.2.7"),
    ];
    for (device, words) in foreign {
        nodes[0].ip(&format!("link delete {device}"));
        nodes[0].ip(&format!("link add {device} {words}"));
        nodes[0].ip(&format!("link set {device} alias fairlead"));
    }
    reconcile(&nodes[0], &in_ipv4(1));
    assert_settled(&nodes[0], &in_ipv4(1));
    assert_joined(&nodes);
    reconcile(&nodes[0], &State::default());
    assert!(observe(&nodes[0], &State::default()).is_empty());
}

#[test]
fn a_device_of_one_kind_gives_way_to_one_of_another_with_its_name() {
    if !has("wireguard") {
        return;
    }
    let namespace = node();
    let user = {
        let mut state = State::default();
        state.insert_link(Link {
            name: name(DEVICE),
            kind: LinkKind::Tun,
            mtu: Some(1400),
            mac: None,
            up: true,
        });
        state
    };
    let kernel = encrypting(keys(1).0);
    for want in [&user, &kernel, &user, &kernel] {
        reconcile(&namespace, want);
        assert_settled(&namespace, want);
    }
}
