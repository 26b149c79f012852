//! Links in real namespaces: made and changed by us, looked at with `ip` and `bridge`.
#![allow(clippy::unwrap_used, reason = "a failure in a test's scaffolding is a failure of the test")]

use std::os::fd::AsFd;

use harness::{Namespace, eventually, not_run, run_ok};
use kernel::link::{self, AddressGeneration, Change, Filter, NewBridge, NewKind, NewLink, NewPeer, NewVxlan};
use kernel::link::{Kind, OperationalState, PortChange, Vlan, VlanSide};
use kernel::netlink::{Batch, Protocol, Socket};
use kernel::netns::Netns;
use kernel::{Family, forwarding};
use netstate::Mac;

const HOST_MAC: Mac = Mac([0xee; 6]);
const POD_MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);

/// A namespace with a bridge in it, and a socket there.
fn node() -> (Namespace, Socket, u32) {
    let namespace = Namespace::new();
    let mut socket = Netns::open(namespace.path()).unwrap().socket(Protocol::Route).unwrap();
    let bridge = NewLink { up: true, ..NewLink::new("br0", NewKind::Bridge(NewBridge::default())) };
    socket.execute(link::create(&bridge)).unwrap();
    let index = link::find(&mut socket, "br0").unwrap().unwrap().index;
    (namespace, socket, index)
}

#[test]
fn a_veth_pair_is_made_with_its_far_end_in_the_pod_by_one_message() {
    let (node, mut socket, bridge) = node();
    let pod = Namespace::new();
    let inside = Netns::open(pod.path()).unwrap();
    let peer = NewPeer {
        mac: Some(POD_MAC),
        mtu: Some(1400),
        namespace: Some(inside.as_fd()),
        ..NewPeer::new("eth0")
    };
    let pair = NewLink {
        mtu: Some(1400),
        mac: Some(HOST_MAC),
        up: true,
        master: Some(bridge),
        ..NewLink::new("veth1", NewKind::Veth(peer))
    };
    socket.execute(link::create(&pair)).unwrap();

    let host = &node.ip_json("link show veth1")[0];
    assert_eq!(host["master"], "br0");
    assert_eq!(host["address"], "ee:ee:ee:ee:ee:ee");
    assert_eq!(host["mtu"], 1400);
    assert!(host["flags"].as_array().unwrap().contains(&"UP".into()));
    let far = &pod.ip_json("link show eth0")[0];
    assert_eq!(far["address"], "02:00:00:00:00:07");
    assert_eq!(far["mtu"], 1400);
    assert!(!far["flags"].as_array().unwrap().contains(&"UP".into()));
    assert_eq!(far["link_index"], host["ifindex"]);
}

#[test]
fn a_link_is_reported_as_it_was_made_without_asking_again() {
    let (node, mut socket, _) = node();
    let batch =
        Batch::from(link::create_and_report(&NewLink::new("veth1", NewKind::Veth(NewPeer::new("veth2")))));
    let mut reported = Vec::new();
    let failures = socket
        .run(&batch, |position, reply| {
            reported.push((position, link::Link::from_reply(reply)?));
            Ok(())
        })
        .unwrap();
    assert!(failures.is_empty(), "{failures:?}");
    if reported.is_empty() {
        return not_run("this kernel does not echo new links (before 6.2)");
    }
    let [(0, made)] = reported.as_slice() else { panic!("{reported:?}") };
    assert_eq!(made.kind, Kind::Veth);
    assert_eq!(serde_json::json!(made.index), node.ip_json("link show veth1")[0]["ifindex"]);
    assert_eq!(link::find(&mut socket, "veth1").unwrap().unwrap().parent, made.parent);
}

#[test]
fn finding_reads_what_ip_shows() {
    let (node, mut socket, bridge) = node();
    node.ip("link add veth1 type veth peer name veth2");
    node.ip("link set veth1 master br0 alias hello txqueuelen 77 group 5");
    node.ip("link set veth1 promisc on");
    node.ip("link set veth1 up");
    node.ip("link set veth1 type bridge_slave hairpin on isolated on learning off");
    let found = link::find(&mut socket, "veth1").unwrap().unwrap();
    let shown = &node.ip_json("link show veth1")[0];
    assert_eq!(serde_json::json!(found.index), shown["ifindex"]);
    assert_eq!(found.mac.unwrap().to_string(), shown["address"].as_str().unwrap());
    assert_eq!((found.mtu, found.master, found.group), (1500, Some(bridge), 5));
    assert_eq!((found.alias.as_deref(), found.transmit_queue_length), (Some("hello"), 77));
    assert!(found.is_up() && found.is_promiscuous() && !found.is_running() && !found.is_loopback());
    assert_eq!(found.promiscuity, shown["promiscuity"].as_u64().unwrap() as u32);
    assert_eq!(found.operational_state, OperationalState::Down);
    let port = found.port.unwrap();
    assert!(port.hairpin && port.isolated && !port.learning && !port.neighbour_suppression);
    assert_eq!(found.parent, Some(link::find(&mut socket, "veth2").unwrap().unwrap().index));
    assert_eq!(link::find(&mut socket, found.index).unwrap().unwrap(), found);
    assert_eq!(link::find(&mut socket, "nothing").unwrap(), None);
    assert!(link::find(&mut socket, "lo").unwrap().unwrap().is_loopback());
}

#[test]
fn a_link_is_found_by_its_alternative_names() {
    let (node, mut socket, bridge) = node();
    for name in ["short", "a-name-of-more-than-fifteen-bytes"] {
        node.ip(&format!("link property add dev br0 altname {name}"));
        let found = link::find(&mut socket, name).unwrap().unwrap();
        assert_eq!((found.index, found.name.as_str()), (bridge, "br0"));
    }
    assert_eq!(link::find(&mut socket, "another-name-of-more-than-fifteen-bytes").unwrap(), None);
}

#[test]
fn a_far_end_elsewhere_is_told_from_one_beside() {
    let (node, mut socket, _) = node();
    let pod = Namespace::new();
    node.ip("link add veth1 type veth peer name veth2");
    node.ip(&format!("link set veth2 netns {}", pod.path().to_str().unwrap().split('/').nth(2).unwrap()));
    let found = link::find(&mut socket, "veth1").unwrap().unwrap();
    assert!(found.peer_namespace.is_some());
    assert_eq!(serde_json::json!(found.parent), pod.ip_json("link show veth2")[0]["ifindex"]);
}

#[test]
fn listing_filters_by_master_and_kind() {
    let (node, mut socket, bridge) = node();
    for number in 0..40 {
        node.ip(&format!("link add a{number} type veth peer name b{number}"));
    }
    node.ip("link set a3 master br0");
    assert_eq!(link::list(&mut socket, Filter::default()).unwrap().len(), 82);
    let ports = link::list(&mut socket, Filter { master: Some(bridge), kind: None }).unwrap();
    assert_eq!(ports.iter().map(|port| port.name.as_str()).collect::<Vec<_>>(), ["a3"]);
    assert_eq!(link::list(&mut socket, Filter { master: None, kind: Some("veth") }).unwrap().len(), 80);
}

#[test]
fn every_change_arrives() {
    let (node, mut socket, bridge) = node();
    node.ip("link add veth1 type veth peer name veth2");
    let wanted = Change {
        up: Some(true),
        mtu: Some(1300),
        mac: Some(HOST_MAC),
        alias: Some("fairlead:net/id/eth0"),
        master: Some(bridge),
        promiscuous: Some(true),
        all_multicast: None,
        group: Some(7),
        transmit_queue_length: Some(99),
        address_generation: Some(AddressGeneration::None),
        arp_notify: Some(true),
        vlan_filtering: None,
    };
    let mut batch = Batch::from(link::change("veth1", &wanted));
    batch.push(link::change_port(
        "veth1",
        &PortChange { hairpin: Some(true), isolated: Some(true), ..PortChange::default() },
    ));
    socket.execute(batch).unwrap();
    let shown = &node.ip_json("link show veth1")[0];
    assert_eq!((&shown["mtu"], &shown["address"]), (&1300.into(), &"ee:ee:ee:ee:ee:ee".into()));
    assert_eq!((&shown["ifalias"], &shown["master"]), (&"fairlead:net/id/eth0".into(), &"br0".into()));
    assert_eq!((&shown["group"], &shown["txqlen"]), (&"7".into(), &99.into()));
    assert_eq!(shown["inet6_addr_gen_mode"], "none");
    assert_eq!(node.sysctl("net/ipv4/conf/veth1/arp_notify"), "1");
    assert!(shown["flags"].as_array().unwrap().contains(&"PROMISC".into()));
    let port = &shown["linkinfo"]["info_slave_data"];
    assert_eq!((&port["hairpin"], &port["isolated"]), (&true.into(), &true.into()));

    let undo = Change {
        up: Some(false),
        alias: Some(""),
        master: Some(0),
        promiscuous: Some(false),
        ..Change::default()
    };
    socket.execute(link::change("veth1", &undo)).unwrap();
    let shown = &node.ip_json("link show veth1")[0];
    assert_eq!((shown.get("master"), shown.get("ifalias")), (None, None));
    assert!(!shown["flags"].as_array().unwrap().contains(&"PROMISC".into()));
    assert!(!shown["flags"].as_array().unwrap().contains(&"UP".into()));
    let index = link::find(&mut socket, "veth1").unwrap().unwrap().index;
    socket.execute(link::rename(index, "other")).unwrap();
    assert!(node.link_names().contains(&"other".to_owned()));
}

#[test]
fn a_vxlan_device_is_what_was_asked_for_in_both_families() {
    let (node, mut socket, bridge) = node();
    for (name, local, id) in [("vx4", "198.18.0.1", 1), ("vx6", "fd00::1", 2)] {
        let vxlan = NewVxlan {
            id,
            port: 8472,
            local: Some(local.parse().unwrap()),
            parent: Some(bridge),
            learning: false,
        };
        let wanted =
            NewLink { mtu: Some(1400), mac: Some(POD_MAC), ..NewLink::new(name, NewKind::Vxlan(vxlan)) };
        socket.execute(link::create(&wanted)).unwrap();
        let data = &node.ip_json(&format!("link show {name}"))[0]["linkinfo"]["info_data"];
        assert_eq!((&data["id"], &data["port"]), (&id.into(), &8472.into()));
        assert_eq!((&data["learning"], &data["link"]), (&false.into(), &"br0".into()));
        assert_eq!(data.get("local").or(data.get("local6")), Some(&local.into()));
        let found = link::find(&mut socket, name).unwrap().unwrap();
        let local = Some(local.parse().unwrap());
        assert_eq!(found.kind, Kind::Vxlan { id, port: 8472, local, learning: false });
    }
}

#[test]
fn many_links_go_in_one_request() {
    let (node, mut socket, _) = node();
    let mut batch = Batch::new();
    for number in 0..5 {
        let (name, peer) = (format!("a{number}"), format!("b{number}"));
        batch.push(link::create(&NewLink::new(&name, NewKind::Veth(NewPeer::new(&peer)))));
        batch.push(link::change(&name, &Change { group: Some(4711), ..Change::default() }));
    }
    batch.push(link::delete_group(4711));
    socket.execute(batch).unwrap();
    assert_eq!(node.link_names(), ["br0"]);
    let error = socket.execute(link::delete_group(0)).unwrap_err();
    assert_eq!(error.errno().map(|errno| errno.raw_os_error()), Some(22), "{error}");
    assert_eq!(node.link_names(), ["br0"]);
}

#[test]
fn a_refusal_names_the_operation_the_object_and_the_kernels_words() {
    let (_node, mut socket, _) = node();
    let taken = socket.execute(link::create(&NewLink::new("br0", NewKind::Plain("ifb")))).unwrap_err();
    assert!(taken.exists());
    assert!(taken.to_string().starts_with("create link br0: File exists"), "{taken}");

    let unknown = socket.execute(link::create(&NewLink::new("x", NewKind::Plain("nosuchkind")))).unwrap_err();
    assert!(unknown.is_unsupported());
    assert!(unknown.to_string().contains("Unknown device type"), "{unknown}");
    assert!(unknown.to_string().contains("hint: "), "{unknown}");

    let missing = socket.execute(link::delete("nothing")).unwrap_err();
    assert!(missing.is_missing(), "{missing}");
}

#[test]
fn later_requests_of_a_batch_are_carried_out_and_every_refusal_has_its_position() {
    let (node, mut socket, _) = node();
    let mut batch = Batch::new();
    for number in 0..300 {
        if number % 100 == 7 {
            batch.push(link::create(&NewLink::new("br0", NewKind::Plain("ifb"))));
        } else {
            batch.push(link::change("br0", &Change { mtu: Some(1000 + number), ..Change::default() }));
        }
    }
    batch.push(link::delete("nothing"));
    let failures = socket.run(&batch, |_, _| Ok(())).unwrap();
    let positions: Vec<usize> = failures.iter().map(|failure| failure.position).collect();
    assert_eq!(positions, [7, 107, 207, 300]);
    assert_eq!(node.ip_json("link show br0")[0]["mtu"], 1299);
}

#[test]
fn vlans_of_a_port_are_set_and_listed() {
    let (node, mut socket, bridge) = node();
    node.ip("link add veth1 type veth peer name veth2");
    node.ip("link set veth1 master br0");
    match socket.execute(link::change("br0", &Change { vlan_filtering: Some(true), ..Change::default() })) {
        Err(error) if error.is_unsupported() => {
            return not_run("the kernel lacks CONFIG_BRIDGE_VLAN_FILTERING");
        }
        other => other.unwrap(),
    }
    let port = link::find(&mut socket, "veth1").unwrap().unwrap().index;
    let trunk = Vlan { first: 100, last: 110, pvid: false, untagged: false };
    let mut batch = Batch::from(link::delete_vlans(port, VlanSide::Port, &[Vlan::tagged(1)]));
    batch.push(link::add_vlans(port, VlanSide::Port, &[Vlan::access(5), trunk]));
    batch.push(link::add_vlans(bridge, VlanSide::Bridge, &[Vlan::tagged(5)]));
    socket.execute(batch).unwrap();
    let listed = link::list_vlans(&mut socket).unwrap();
    let of = |index| listed.iter().find(|entry| entry.index == index).unwrap().vlans.clone();
    assert_eq!(of(port), [Vlan::access(5), trunk]);
    assert_eq!(of(bridge), [Vlan::access(1), Vlan::tagged(5)]);
    let shown = node.bridge_json("vlan show dev veth1");
    assert_eq!(shown[0]["vlans"][0]["vlan"], 5);
}

#[test]
fn forwarding_is_what_the_sysctls_say() {
    let (node, mut socket, _) = node();
    for (family, path) in [(Family::V4, "net/ipv4/ip_forward"), (Family::V6, "net/ipv6/conf/all/forwarding")]
    {
        for value in ["1", "0"] {
            run_ok(node.command("sh").args(["-c", &format!("echo {value} > /proc/sys/{path}")]));
            assert_eq!(forwarding::is_on(&mut socket, family).unwrap(), value == "1", "{path}");
        }
    }
}

#[test]
fn a_foreign_text_that_is_not_utf8_does_not_spoil_a_listing() {
    use std::os::unix::ffi::OsStrExt;
    let (node, mut socket, _) = node();
    let latin1 = std::ffi::OsStr::from_bytes(b"caf\xe9");
    run_ok(node.command("ip").args(["link", "set", "br0", "alias"]).arg(latin1));
    run_ok(node.command("ip").args(["rule", "add", "iif"]).arg(latin1).args(["lookup", "main"]));
    let links = link::list(&mut socket, Filter::default()).unwrap();
    let found = links.iter().find(|link| link.name == "br0").unwrap();
    assert_eq!(found.alias.as_deref(), Some("caf\u{fffd}"));
    let rules = kernel::rule::list(&mut socket).unwrap();
    assert!(rules.iter().any(|rule| rule.incoming.as_deref() == Some("caf\u{fffd}")));
}

#[test]
fn what_a_link_could_not_send_is_what_ip_says() {
    let (node, mut socket, _) = node();
    // To where there is no way.
    node.ip("link add vx0 type vxlan id 7 remote 198.51.100.1 dstport 4789");
    node.ip("link set vx0 up");
    node.ip("address add 192.0.2.1/24 dev vx0");
    node.ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev vx0");
    let said = harness::run(node.command("ping").args(["-c", "3", "-i", "0.01", "-W", "1", "192.0.2.2"]));
    assert!(!said.status.success());
    eventually("as many as ip says, and some", || {
        let errors = node.ip_json("-s link show vx0")[0]["stats64"]["tx"]["errors"].as_u64().unwrap();
        (errors >= 3 && link::unsent(&mut socket, "vx0").unwrap() == Some(errors)).then_some(())
    });
    assert_eq!(link::unsent(&mut socket, "vx1").unwrap(), None);
}
