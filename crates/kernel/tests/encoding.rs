//! Our encoding against itself (what is written is read back, and nothing panics on foreign bytes) and against an
//! independent implementation of rtnetlink, which must read from our messages what we meant.
#![allow(clippy::unwrap_used, reason = "a failure in a test's scaffolding is a failure of the test")]

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd};

use ipnet::IpNet;
use kernel::Family;
use kernel::address::{self, NewAddress};
use kernel::link::{
    self, Change, IpvlanIsolation, IpvlanMode, MacvlanMode, NewBridge, NewIpTunnel, NewIpvlan, NewKind,
    NewLink, NewMacvlan, NewPeer, NewVlan, NewVxlan, PortChange, Vlan, VlanProtocol, VlanSide,
};
use kernel::neighbour::{self, Entry};
use kernel::netlink::{Attributes, Message, Reply, Request};
use kernel::qdisc::Qdisc;
use kernel::route::{self, Hop, Kind, Route};
use kernel::rule::{self, Action, Mark, Rule};
use kernel::wireguard::{self, Device, PeerChange};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::link::{
    AfSpecBridge, BridgeVlanInfoFlags, InfoBridge, InfoBridgePort, InfoData, InfoIpTunnel, InfoIpVlan,
    InfoKind, InfoMacVlan, InfoPortData, InfoVeth, InfoVlan, InfoVrf, InfoVxlan, IpVlanFlags, IpVlanMode,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage, MacVlanMode,
};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourState};
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType};
use netlink_packet_route::rule::RuleAttribute;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netstate::{Mac, PublicKey, SecretKey, WireGuard, WireGuardPeer};
use proptest::prelude::*;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

/// A tree of attributes: values, or attributes again.
#[derive(Debug, Clone, PartialEq)]
enum Tree {
    Value(u16, Vec<u8>),
    Nest(u16, Vec<Self>),
}

fn tree() -> impl Strategy<Value = Tree> {
    let value =
        (1u16..0x3fff, proptest::collection::vec(any::<u8>(), 0..40)).prop_map(|(k, v)| Tree::Value(k, v));
    value.prop_recursive(4, 64, 8, |inner| {
        (1u16..0x3fff, proptest::collection::vec(inner, 0..8))
            .prop_map(|(kind, inner)| Tree::Nest(kind, inner))
    })
}

fn write(message: &mut Message, tree: &Tree) {
    match tree {
        Tree::Value(kind, value) => message.put(*kind, value),
        Tree::Nest(kind, inner) => {
            message.nest(*kind, |nest| inner.iter().for_each(|tree| write(nest, tree)))
        }
    };
}

/// Reads the attributes back in the shape of what was written.
fn read(attributes: Attributes<'_>, shape: &[Tree]) -> Vec<Tree> {
    let found: Vec<_> = attributes.collect::<Result<_, _>>().unwrap();
    assert_eq!(found.len(), shape.len());
    found
        .iter()
        .zip(shape)
        .map(|(attribute, shape)| match shape {
            Tree::Value(..) => Tree::Value(attribute.kind, attribute.value.to_vec()),
            Tree::Nest(_, inner) => Tree::Nest(attribute.kind, read(attribute.nested(), inner)),
        })
        .collect()
}

/// Walks all bytes as attributes, asking each for everything it could be.
fn walk(attributes: Attributes<'_>, depth: usize) {
    for attribute in attributes.flatten() {
        let _ = (attribute.u8(), attribute.u16(), attribute.be16(), attribute.u32(), attribute.be32());
        let _ = (attribute.i32(), attribute.u64(), attribute.be64(), attribute.text(), attribute.ip());
        if depth < 8 {
            walk(attribute.nested(), depth + 1);
        }
    }
}

proptest! {
    #[test]
    fn attributes_read_back_as_they_were_written(trees in proptest::collection::vec(tree(), 0..10)) {
        let mut message = Message::new(16, 0, &[]);
        trees.iter().for_each(|tree| write(&mut message, tree));
        prop_assert!(!message.is_oversized());
        prop_assert_eq!(message.length() % 4, 0);
        prop_assert_eq!(read(Attributes::new(&message.bytes()[16..]), &trees), trees);
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(payload in proptest::collection::vec(any::<u8>(), 0..120), family in 0usize..4) {
        let mut payload = payload;
        if let Some(first) = payload.first_mut() {
            *first = [2, 10, 7, 0][family];
        }
        let reply = Reply { kind: 16, flags: 0, sequence: 1, port: 0, payload: &payload };
        let _ = (link::Link::from_reply(reply), address::Address::from_reply(reply), Route::from_reply(reply));
        let _ = (Entry::from_reply(reply), Rule::from_reply(reply), Qdisc::from_reply(reply));
        let _ = Device::from_reply(reply);
    }

    #[test]
    fn any_bytes_can_be_walked(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        walk(Attributes::new(&bytes), 0);
    }
}

#[test]
fn an_attribute_that_does_not_fit_marks_its_message() {
    let mut message = Message::new(16, 0, &[]);
    message.put(1, &vec![0; 65_531]);
    assert!(!message.is_oversized());
    message.put(1, &vec![0; 65_532]);
    assert!(message.is_oversized());
    let mut message = Message::new(16, 0, &[]);
    message.nest(1, |nest| {
        nest.put(1, &vec![0; 40_000]).put(2, &vec![0; 40_000]);
    });
    assert!(message.is_oversized());
}

/// What the other implementation reads in a request of ours.
fn understood(request: &Request) -> RouteNetlinkMessage {
    let mut bytes = request.message.bytes().to_vec();
    let length = (bytes.len() as u32).to_ne_bytes();
    bytes[..4].copy_from_slice(&length);
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).unwrap();
    let NetlinkPayload::InnerMessage(inner) = message.payload else { panic!("{message:?}") };
    inner
}

fn new_link(request: &Request) -> LinkMessage {
    let RouteNetlinkMessage::NewLink(message) = understood(request) else { panic!("not a new link") };
    message
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_veth_pair_is_understood() {
    let namespace = std::fs::File::open("/dev/null").unwrap();
    let peer = NewPeer {
        mac: Some(MAC),
        mtu: Some(1400),
        namespace: Some(namespace.as_fd()),
        ..NewPeer::new("eth0")
    };
    let pair = NewLink {
        mtu: Some(1450),
        mac: Some(Mac([0xee; 6])),
        up: true,
        master: Some(7),
        ..NewLink::new("veth1", NewKind::Veth(peer))
    };
    let message = new_link(&link::create(&pair));
    assert_eq!((message.header.flags, message.header.change_mask), (LinkFlags::Up, LinkFlags::Up));
    let mut far = LinkMessage::default();
    far.attributes = vec![
        LinkAttribute::IfName("eth0".into()),
        LinkAttribute::Address(MAC.0.to_vec()),
        LinkAttribute::Mtu(1400),
        LinkAttribute::NetNsFd(namespace.as_raw_fd()),
    ];
    let expected = [
        LinkAttribute::IfName("veth1".into()),
        LinkAttribute::Address(vec![0xee; 6]),
        LinkAttribute::Mtu(1450),
        LinkAttribute::Controller(7),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
        ]),
    ];
    assert_eq!(message.attributes, expected);
}

#[test]
fn tunnels_and_bridges_are_understood() {
    let vxlan =
        NewVxlan { id: 1, port: 8472, local: Some(ip("198.18.0.1")), parent: Some(3), learning: false };
    let message = new_link(&link::create(&NewLink::new("fairlead0", NewKind::Vxlan(vxlan))));
    let data = vec![
        InfoVxlan::Id(1),
        InfoVxlan::Port(8472),
        InfoVxlan::Learning(false),
        InfoVxlan::Link(3),
        InfoVxlan::Local(Ipv4Addr::new(198, 18, 0, 1)),
    ];
    let info = vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))];
    assert!(message.attributes.contains(&LinkAttribute::LinkInfo(info)), "{message:?}");

    for (inner, kind) in [(Family::V4, InfoKind::IpIp), (Family::V6, InfoKind::SitTun)] {
        let tunnel = NewIpTunnel { inner, local: Ipv4Addr::new(198, 18, 0, 1) };
        let message = new_link(&link::create(&NewLink::new("t", NewKind::IpTunnel(tunnel))));
        let data =
            vec![InfoIpTunnel::Local(ip("198.18.0.1")), InfoIpTunnel::Ttl(64), InfoIpTunnel::PMtuDisc(true)];
        let info = vec![LinkInfo::Kind(kind), LinkInfo::Data(InfoData::IpTunnel(data))];
        assert!(message.attributes.contains(&LinkAttribute::LinkInfo(info)), "{message:?}");
    }

    let bridge = NewBridge { vlan_filtering: Some(true), multicast_snooping: Some(false) };
    let message = new_link(&link::create(&NewLink::new("cni0", NewKind::Bridge(bridge))));
    let LinkAttribute::LinkInfo(info) = &message.attributes[1] else { panic!("{message:?}") };
    let LinkInfo::Data(InfoData::Bridge(data)) = &info[1] else { panic!("{info:?}") };
    assert!(matches!(data[0], InfoBridge::VlanFiltering(true)), "{data:?}");
}

#[test]
fn links_on_others_are_understood() {
    let namespace = std::fs::File::open("/dev/null").unwrap();
    let cases = [
        (
            NewKind::Macvlan(NewMacvlan {
                parent: 7,
                mode: MacvlanMode::Passthru,
                broadcast_queue_length: Some(2000),
            }),
            InfoKind::MacVlan,
            InfoData::MacVlan(vec![
                InfoMacVlan::Mode(MacVlanMode::Passthrough),
                InfoMacVlan::BcQueueLen(2000),
            ]),
        ),
        (
            NewKind::Ipvlan(NewIpvlan {
                parent: 7,
                mode: IpvlanMode::L3s,
                isolation: IpvlanIsolation::Private,
            }),
            InfoKind::IpVlan,
            InfoData::IpVlan(vec![
                InfoIpVlan::Mode(IpVlanMode::L3S),
                InfoIpVlan::Flags(IpVlanFlags::Private),
            ]),
        ),
        (
            NewKind::Vlan(NewVlan { parent: 7, id: 33, protocol: VlanProtocol::Ieee8021Ad }),
            InfoKind::Vlan,
            InfoData::Vlan(vec![
                InfoVlan::Id(33),
                InfoVlan::Protocol(netlink_packet_route::link::VlanProtocol::Ieee8021Ad),
            ]),
        ),
    ];
    for (kind, name, data) in cases {
        let wanted = NewLink { namespace: Some(namespace.as_fd()), ..NewLink::new("eth0", kind) };
        let message = new_link(&link::create(&wanted));
        let expected = [
            LinkAttribute::IfName("eth0".into()),
            LinkAttribute::Link(7),
            LinkAttribute::NetNsFd(namespace.as_raw_fd()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(name), LinkInfo::Data(data)]),
        ];
        assert_eq!(message.attributes, expected);
    }
    let message = new_link(&link::create(&NewLink::new("blue", NewKind::Vrf(1001))));
    let info =
        vec![LinkInfo::Kind(InfoKind::Vrf), LinkInfo::Data(InfoData::Vrf(vec![InfoVrf::TableId(1001)]))];
    assert_eq!(message.attributes[1], LinkAttribute::LinkInfo(info));
    let message = new_link(&link::create(&NewLink::new("d", NewKind::Plain("dummy"))));
    assert_eq!(message.attributes[1], LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Dummy)]));
}

#[test]
fn moves_and_flags_are_understood() {
    let namespace = std::fs::File::open("/dev/null").unwrap();
    let RouteNetlinkMessage::SetLink(message) =
        understood(&link::relocate(7, namespace.as_fd(), Some("eth0")))
    else {
        panic!("not a change")
    };
    assert_eq!(message.header.index, 7);
    let expected = [LinkAttribute::NetNsFd(namespace.as_raw_fd()), LinkAttribute::IfName("eth0".into())];
    assert_eq!(message.attributes, expected);

    let settings = Change { promiscuous: Some(false), all_multicast: Some(true), ..Change::default() };
    let RouteNetlinkMessage::SetLink(message) = understood(&link::change(7, &settings)) else {
        panic!("not a change")
    };
    assert_eq!(message.header.flags, LinkFlags::Allmulti);
    assert_eq!(message.header.change_mask, LinkFlags::Allmulti | LinkFlags::Promisc);
}

#[test]
fn filtering_and_port_settings_are_understood() {
    let filtering = Change { vlan_filtering: Some(true), ..Change::default() };
    let message = new_link(&link::change("cni0", &filtering));
    let text = format!("{message:?}");
    assert!(text.contains("VlanFiltering(true)") && text.contains("IfName(\"cni0\")"), "{text}");

    let settings = PortChange { hairpin: Some(true), isolated: Some(true), ..PortChange::default() };
    let message = new_link(&link::change_port(7, &settings));
    assert_eq!(message.header.index, 7);
    let LinkAttribute::LinkInfo(info) = &message.attributes[0] else { panic!("{message:?}") };
    let LinkInfo::PortData(InfoPortData::BridgePort(data)) = &info[1] else { panic!("{info:?}") };
    assert_eq!(data, &[InfoBridgePort::HairpinMode(true), InfoBridgePort::Isolated(true)]);
}

#[test]
fn vlans_of_a_port_are_understood() {
    let trunk = Vlan { first: 100, last: 110, pvid: false, untagged: false };
    let RouteNetlinkMessage::SetLink(message) =
        understood(&link::add_vlans(7, VlanSide::Port, &[Vlan::access(5), trunk, Vlan::tagged(200)]))
    else {
        panic!("not a change")
    };
    assert_eq!((message.header.interface_family, message.header.index), (AddressFamily::Bridge, 7));
    let LinkAttribute::AfSpecBridge(specification) = &message.attributes[0] else { panic!("{message:?}") };
    let vlans: Vec<_> = specification
        .iter()
        .filter_map(|entry| match entry {
            AfSpecBridge::VlanInfo(info) => Some((info.flags, info.vid)),
            _ => None,
        })
        .collect();
    let expected = [
        (BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged, 5),
        (BridgeVlanInfoFlags::RangeBegin, 100),
        (BridgeVlanInfoFlags::RangeEnd, 110),
        (BridgeVlanInfoFlags::empty(), 200),
    ];
    assert_eq!(vlans, expected);
    assert!(matches!(
        understood(&link::delete_vlans(7, VlanSide::Port, &[trunk])),
        RouteNetlinkMessage::DelLink(_)
    ));
}

fn new_route(route: &Route) -> RouteMessage {
    let RouteNetlinkMessage::NewRoute(message) = understood(&route::add(route)) else {
        panic!("not a route")
    };
    message
}

#[test]
fn routes_are_understood() {
    let mut onlink = Route::via(net("10.244.1.0/24"), ip("10.244.1.0"), 7);
    onlink.hops[0].onlink = true;
    let message = new_route(&Route { mtu: Some(1400), advertised_mss: Some(1300), metric: 9, ..onlink });
    assert_eq!(message.header.destination_prefix_length, 24);
    assert_eq!(message.header.flags, RouteFlags::Onlink);
    for expected in [
        RouteAttribute::Destination(Ipv4Addr::new(10, 244, 1, 0).into()),
        RouteAttribute::Gateway(Ipv4Addr::new(10, 244, 1, 0).into()),
        RouteAttribute::Oif(7),
        RouteAttribute::Priority(9),
        RouteAttribute::Table(254),
        RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400), RouteMetric::Advmss(1300)]),
    ] {
        assert!(message.attributes.contains(&expected), "{expected:?} in {message:?}");
    }
    let dropping = new_route(&Route::dropping(net("fd00::/16"), Kind::Blackhole));
    assert_eq!(dropping.header.kind, RouteType::BlackHole);

    let hops = vec![
        Hop { gateway: Some(ip("fd00::2")), ..Hop::on(7) },
        Hop { gateway: Some(ip("fd00::3")), weight: 4, onlink: true, ..Hop::on(8) },
    ];
    let message = new_route(&Route { hops, ..Route::on_link(net("fd00:1::/64"), 7) });
    let several = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    let [first, second] = several.unwrap().as_slice() else { panic!("{message:?}") };
    assert_eq!((first.interface_index, first.hops, second.interface_index, second.hops), (7, 0, 8, 3));
    assert_eq!(
        second.attributes,
        [RouteAttribute::Gateway("fd00::3".parse::<std::net::Ipv6Addr>().unwrap().into())]
    );
}

#[test]
fn addresses_neighbours_forwarding_entries_and_rules_are_understood() {
    let request = address::add(&NewAddress::new(7, net("10.1.2.3/24")));
    let RouteNetlinkMessage::NewAddress(message) = understood(&request) else { panic!("not an address") };
    assert_eq!((message.header.index, message.header.prefix_len), (7, 24));

    let RouteNetlinkMessage::NewNeighbour(message) = understood(&neighbour::set(7, ip("fe80::1"), MAC))
    else {
        panic!("not a neighbour")
    };
    assert_eq!((message.header.ifindex, message.header.state), (7, NeighbourState::Permanent));
    assert!(message.attributes.contains(&NeighbourAttribute::LinkLayerAddress(MAC.0.to_vec())));

    let request = neighbour::set_fdb(7, MAC, ip("198.18.0.2"));
    let RouteNetlinkMessage::NewNeighbour(message) = understood(&request) else { panic!("not an entry") };
    assert_eq!((message.header.family, message.header.flags), (AddressFamily::Bridge, NeighbourFlags::Own));
    assert_eq!(message.header.state, NeighbourState::Permanent);
    let far = NeighbourAttribute::Destination(NeighbourAddress::Other(vec![198, 18, 0, 2]));
    assert!(message.attributes.contains(&far), "{message:?}");

    let wanted = Rule {
        source: Some(net("10.1.0.0/16")),
        mark: Some(Mark { value: 1, mask: 0xff }),
        ..Rule::new(Family::V4, 7600, Action::Table(1000))
    };
    let RouteNetlinkMessage::NewRule(message) = understood(&rule::add(&wanted)) else { panic!("not a rule") };
    assert_eq!((message.header.src_len, message.header.dst_len), (16, 0));
    for expected in [
        RuleAttribute::Source(ip("10.1.0.0")),
        RuleAttribute::Priority(7600),
        RuleAttribute::FwMark(1),
        RuleAttribute::FwMask(0xff),
        RuleAttribute::Table(1000),
    ] {
        assert!(message.attributes.contains(&expected), "{expected:?} in {message:?}");
    }
}

/// An attribute as `linux/netlink.h` lays it out, with its padding.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = [(4 + value.len() as u16).to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().div_ceil(4) * 4, 0);
    bytes
}

const NEST: u16 = 0x8000;

#[test]
fn a_wireguard_device_is_told_in_the_layout_of_the_kernels_header() {
    let device = WireGuard { private_key: SecretKey::new([9; 32]), port: 51820 };
    let request = wireguard::set_device(29, "wg", &device);
    let bytes = request.message.bytes();
    assert_eq!(bytes[4..6], 29_u16.to_ne_bytes());
    let mut key = [9; 32];
    key[0] &= 248;
    key[31] = (key[31] & 127) | 64;
    let expected =
        [vec![1, 1, 0, 0], attribute(2, b"wg\0"), attribute(3, &key), attribute(6, &51820_u16.to_ne_bytes())];
    assert_eq!(bytes[16..], expected.concat());

    let peer = WireGuardPeer {
        endpoint: Some("192.0.2.2:51820".parse().unwrap()),
        allowed_ips: ["10.244.2.0/24".parse().unwrap(), "fd00:2::/64".parse().unwrap()].into(),
        keepalive: Some(25),
    };
    let changes = [
        PeerChange::Set { key: PublicKey([1; 32]), peer: &peer, was: None },
        PeerChange::Remove(PublicKey([2; 32])),
    ];
    let requests = wireguard::change_peers(29, "wg", &changes);
    let [request] = &requests[..] else { panic!("{requests:?}") };
    assert_eq!(request.changes, 0..2);
    let mut socket_address = [2_u16.to_ne_bytes(), 51820_u16.to_be_bytes()].concat();
    socket_address.extend_from_slice(&[192, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0]);
    let network = |family: u16, address: &[u8], prefix: u8| {
        let parts = [attribute(1, &family.to_ne_bytes()), attribute(2, address), attribute(3, &[prefix])];
        attribute(NEST, &parts.concat())
    };
    let six = "fd00:2::".parse::<std::net::Ipv6Addr>().unwrap().octets();
    let networks = [network(2, &[10, 244, 2, 0], 24), network(10, &six, 64)].concat();
    let set = [
        attribute(1, &[1; 32]),
        attribute(3, &2_u32.to_ne_bytes()),
        attribute(4, &socket_address),
        attribute(5, &25_u16.to_ne_bytes()),
        attribute(9 | NEST, &networks),
    ];
    let removed = [attribute(1, &[2; 32]), attribute(3, &1_u32.to_ne_bytes())];
    let peers = [attribute(NEST, &set.concat()), attribute(NEST, &removed.concat())].concat();
    let expected = [vec![1, 1, 0, 0], attribute(2, b"wg\0"), attribute(8 | NEST, &peers)].concat();
    assert_eq!(request.request.message.bytes()[16..], expected);
}

#[test]
fn a_wireguard_peer_that_changes_keeps_its_networks_meanwhile_and_only_what_nobody_is_to_have_is_taken_away()
{
    let having = |networks: &[&str]| WireGuardPeer {
        allowed_ips: networks.iter().map(|network| network.parse().unwrap()).collect(),
        ..WireGuardPeer::default()
    };
    // The second network goes to the other peer, the third one to nobody.
    let [was, becomes] =
        [&["10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24"][..], &["10.1.0.0/24", "10.4.0.0/24"]].map(having);
    let [other_was, other] = [&["10.5.0.0/24"][..], &["10.5.0.0/24", "10.2.0.0/24"]].map(having);
    let changes = [
        PeerChange::Set { key: PublicKey([1; 32]), peer: &becomes, was: Some(&was) },
        PeerChange::Set { key: PublicKey([2; 32]), peer: &other, was: Some(&other_was) },
    ];
    let requests = wireguard::change_peers(29, "wg", &changes);
    let [request] = &requests[..] else { panic!("{requests:?}") };
    assert_eq!(request.changes, 0..2);
    let networks = |numbers: &[u8]| {
        let of = |number: &u8| {
            let address = attribute(2, &[10, *number, 0, 0]);
            attribute(NEST, &[attribute(1, &2_u16.to_ne_bytes()), address, attribute(3, &[24])].concat())
        };
        attribute(9 | NEST, &numbers.iter().flat_map(of).collect::<Vec<u8>>())
    };
    let keepalive = || attribute(5, &0_u16.to_ne_bytes());
    let peers = [
        [attribute(1, &[1; 32]), keepalive(), networks(&[1, 4])].concat(),
        [attribute(1, &[0; 32]), networks(&[3])].concat(),
        [attribute(1, &[0; 32]), attribute(3, &1_u32.to_ne_bytes())].concat(),
        [attribute(1, &[2; 32]), keepalive(), networks(&[2, 5])].concat(),
    ];
    let peers = peers.map(|peer| attribute(NEST, &peer)).concat();
    let expected = [vec![1, 1, 0, 0], attribute(2, b"wg\0"), attribute(8 | NEST, &peers)].concat();
    assert_eq!(request.request.message.bytes()[16..], expected);
}

#[test]
fn ten_thousand_peers_travel_in_messages_that_fit() {
    let peers: Vec<WireGuardPeer> = (0..10_000_u32)
        .map(|number| WireGuardPeer {
            endpoint: Some((Ipv4Addr::from(number), 51820).into()),
            allowed_ips: [IpNet::new(Ipv4Addr::from(number << 8).into(), 24).unwrap()].into(),
            keepalive: None,
        })
        .collect();
    let mut key = 0_u32;
    let changes: Vec<PeerChange<'_>> = peers
        .iter()
        .map(|peer| {
            key += 1;
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&key.to_be_bytes());
            PeerChange::Set { key: PublicKey(bytes), peer, was: None }
        })
        .collect();
    let requests = wireguard::change_peers(29, "wg", &changes);
    let mut next = 0;
    for request in &requests {
        assert_eq!(request.changes.start, next);
        assert!(!request.request.message.is_oversized());
        next = request.changes.end;
    }
    assert_eq!(next, changes.len());
    assert!((40..120).contains(&requests.len()), "{}", requests.len());
}

#[test]
fn a_device_that_comes_in_parts_is_one() {
    let reply = |payload: &[u8]| {
        let reply = Reply { kind: 29, flags: 2, sequence: 1, port: 0, payload };
        Device::from_reply(reply).unwrap()
    };
    let network = |last: u8| {
        let parts =
            [attribute(1, &2_u16.to_ne_bytes()), attribute(2, &[10, 244, last, 0]), attribute(3, &[24])];
        attribute(NEST, &parts.concat())
    };
    let peer =
        |key: u8, rest: &[Vec<u8>]| attribute(NEST, &[attribute(1, &[key; 32]), rest.concat()].concat());
    let endpoint = {
        let mut bytes = [10_u16.to_ne_bytes(), 51820_u16.to_be_bytes()].concat();
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&"2001:db8::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
        bytes.extend_from_slice(&[0; 4]);
        attribute(4, &bytes)
    };
    let handshake = [1_700_000_000_i64.to_ne_bytes(), 5_i64.to_ne_bytes()].concat();
    let whole = [
        endpoint,
        attribute(5, &0_u16.to_ne_bytes()),
        attribute(6, &handshake),
        attribute(7, &92_u64.to_ne_bytes()),
        attribute(8, &148_u64.to_ne_bytes()),
        attribute(9 | NEST, &[network(1), network(2)].concat()),
    ];
    let first = [
        vec![0, 1, 0, 0],
        attribute(3, SecretKey::new([9; 32]).bytes()),
        attribute(6, &51820_u16.to_ne_bytes()),
        attribute(8 | NEST, &peer(1, &whole)),
    ];
    let rest = peer(1, &[attribute(9 | NEST, &network(3))]);
    let other = peer(2, &[attribute(6, &[0; 16])]);
    let second = [vec![0, 1, 0, 0], attribute(8 | NEST, &[rest, other].concat())];
    let device = reply(&first.concat()).joined(reply(&second.concat()));
    assert_eq!((device.private_key, device.port), (Some(SecretKey::new([9; 32])), 51820));
    let [first, second] = [1, 2].map(|key| &device.peers[&PublicKey([key; 32])]);
    assert_eq!(first.settings.allowed_ips.len(), 3);
    assert_eq!(first.settings.endpoint, Some("[2001:db8::2]:51820".parse().unwrap()));
    assert_eq!((first.settings.keepalive, first.received, first.sent), (None, 92, 148));
    assert_eq!(first.last_handshake, Some(std::time::Duration::new(1_700_000_000, 5)));
    assert_eq!((second.last_handshake, second.settings.endpoint), (None, None));
}
