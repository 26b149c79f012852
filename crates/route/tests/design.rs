//! What nodes are joined by: golden texts of whole states, each problem once, and random walks through clusters.
//!
//! The texts are in `tests/golden/route`; `FAIRLEAD_BLESS=1 cargo test -p route` writes them anew, for the diff to
//! be read. Scenarios by number: the list in the project's notes on behaviours of node-to-node networking.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use cluster::{
    Backend, Change, Claim, Flannel, Key, Lease, MacAddress, Node, Object, PublicKey, Snapshot, WireGuardKey,
};
use ipnet::IpNet;
use netstate::SecretKey;
use proptest::prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest};
use route::vxlan::tunnel_mac;
use route::{
    Design, Family, Host, HostAddress, HostLink, HostRoute, InKernel, Inputs, Masquerade, Problem, Senders,
    TunnelKind, Underlay, VxlanSettings, Way, design, guard,
};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// The lease of node `number`, with pod CIDRs and underlay addresses made of the number.
fn lease(number: u16) -> Lease {
    let node = format!("node{number}");
    let second = if number < 256 { 244 } else { number / 256 };
    Lease {
        pod_cidrs: Box::new([
            net(&format!("10.{second}.{}.0/24", number % 256)),
            net(&format!("fd00:10:244:{number:x}::/64")),
        ]),
        underlay: Box::new([
            format!("198.18.{}.{}", number / 250, 1 + number % 250).parse().unwrap(),
            format!("fd00:198:18::{number:x}").parse().unwrap(),
        ]),
        backend: Backend::Vxlan { vni: 1, port: 8472, mac: tunnel_mac(&node) },
        mtu: 1450,
        flannel: Flannel::Apart,
        node: node.into(),
    }
}

fn join(snapshot: &mut Snapshot, lease: Lease) {
    snapshot.apply(Change::Set(Node::named(lease.node.clone()).into()));
    for cidr in &lease.pod_cidrs {
        snapshot.apply(Change::Set(Claim { cidr: *cidr, node: lease.node.clone() }.into()));
    }
    snapshot.apply(Change::Set(lease.into()));
}

fn cluster_of(numbers: impl IntoIterator<Item = u16>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    numbers.into_iter().for_each(|number| join(&mut snapshot, lease(number)));
    snapshot
}

fn host() -> Host {
    let link = |name: &str, accept_ra| HostLink {
        name: name.to_owned(),
        mtu: 1500,
        up: true,
        loopback: name == "lo",
        ours: name == "fairlead0",
        accept_ra: Some(accept_ra),
    };
    let address = |link: &str, address: &str, permanent| HostAddress {
        link: link.to_owned(),
        address: net(address),
        global: true,
        avoid: false,
        permanent,
    };
    Host {
        links: vec![link("lo", 1), link("eth0", 1), link("eth1", 0), link("veth0", 1), link("fairlead0", 0)],
        // eth0 lives by router advertisements; the others do not listen, or hold nothing from them.
        addresses: vec![
            address("eth0", "2001:db8::5/64", false),
            address("eth1", "2001:db8:1::5/64", false),
            address("veth0", "fd00:77::1/64", true),
        ],
        ..Host::default()
    }
}

struct Case {
    own: Lease,
    underlay: IpAddr,
    cluster: Vec<IpNet>,
    port: u16,
    direct_routing: bool,
    masquerade: Masquerade<'static>,
    path_mtus: BTreeMap<IpAddr, u32>,
    kernel: InKernel,
    sends_next: bool,
    /// By what it sends, where that is not what its lease says.
    sends: Option<Backend>,
    /// What its peers had a moment ago.
    former: BTreeMap<Arc<str>, Vec<Backend>>,
    senders: Senders,
    /// What is different about the host.
    host: fn(&mut Host),
}

impl Case {
    fn node1() -> Self {
        let own = lease(1);
        let underlay = own.underlay[0];
        Self {
            own,
            underlay,
            cluster: vec![net("10.244.0.0/16"), net("fd00:10:244::/48")],
            port: 8472,
            direct_routing: false,
            masquerade: Masquerade { families: &Family::ALL, fully_random: true, exceptions: &[] },
            path_mtus: BTreeMap::new(),
            kernel: InKernel::default(),
            sends_next: false,
            sends: None,
            former: BTreeMap::new(),
            senders: Senders { checked: true, bridge: false, policed: true },
            host: |_| {},
        }
    }

    fn design(&self, snapshot: &Snapshot) -> Design {
        let underlay = |address: IpAddr| Underlay {
            link: "eth0".to_owned(),
            mtu: 1500,
            address,
            reason: "link of the default route",
        };
        let mut host = host();
        (self.host)(&mut host);
        let each = self.own.underlay.iter().map(|address| (Family::of(*address), underlay(*address)));
        design(&Inputs {
            snapshot,
            lease: &self.own,
            sends: self.sends.as_ref().unwrap_or(&self.own.backend),
            keeps: &[],
            former: &self.former,
            kernel: self.kernel,
            udp_port: 8285,
            senders: self.senders,
            sends_next: self.sends_next,
            underlay: &underlay(self.underlay),
            underlays: &each.collect(),
            carried: 1500,
            vxlan: VxlanSettings { vni: 1, port: self.port, direct_routing: self.direct_routing },
            cluster: &self.cluster,
            masquerade: self.masquerade,
            path_mtus: &self.path_mtus,
            host: &Arc::new(host),
        })
    }
}

#[test]
fn a_node_without_ipv6_joins_its_peers_over_ipv4_alone() {
    let mut case = Case::node1();
    case.own.pod_cidrs = Box::new([case.own.pod_cidrs[0]]);
    let design = case.design(&cluster_of([1, 2, 3]));
    assert_eq!(design.problems.len(), 0);
    assert_eq!(design.peers.len(), 2);
    let text = design.state.to_string();
    assert!(text.contains("route 10.244.2.0/24"), "{text}");
    assert!(!text.contains("fd00:10:244:2"), "{text}");
}

fn problem(design: &Design, node: &str) -> Problem {
    design
        .problems
        .get(node)
        .cloned()
        .unwrap_or_else(|| panic!("no problem with {node}: {:?}", design.problems))
}

/// Nothing in the state speaks of the node: no route, neighbour or forwarding entry of it.
fn assert_absent(design: &Design, lease: &Lease) {
    assert!(!design.peers.contains_key(&lease.node));
    for cidr in &lease.pod_cidrs {
        let routed =
            design.state.routes.iter().any(|(key, target)| key.destination == *cidr && target.via.is_some());
        assert!(!routed, "{cidr}");
        assert!(!design.state.neighbours().any(|neighbour| neighbour.address == cidr.addr()), "{cidr}");
    }
    assert!(!design.state.fdb().any(|entry| lease.underlay.contains(&entry.destination)));
}

fn golden(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/route").join(name);
    if std::env::var_os("FAIRLEAD_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, wanted, "{}: FAIRLEAD_BLESS=1 writes it anew", path.display());
}

#[test]
fn a_node_alone_has_its_device_its_addresses_and_its_masquerade() {
    golden("alone.txt", &Case::node1().design(&cluster_of([1])).state.to_string());
}

#[test]
fn a_pod_sends_with_its_own_addresses_alone_unless_nobody_is_to_look() {
    let tables = |checked, bridge, policed| {
        let case = Case { senders: Senders { checked, bridge, policed }, ..Case::node1() };
        let text = case.design(&cluster_of([1])).state.to_string();
        let table = text.split("table ").find(|table| table.starts_with("inet fairlead_antispoof"));
        table.map(str::to_owned)
    };
    assert!(!tables(false, false, true).unwrap().contains("iif"), "tunnels are kept from pods all the same");
    assert!(!tables(false, true, false).unwrap().contains("iif"));
    golden("senders-on-a-bridge.txt", &tables(true, true, true).unwrap());
    let unpoliced = tables(true, true, false).unwrap();
    assert!(unpoliced.contains("foreign-on-bridge") && !unpoliced.contains("forward"), "{unpoliced}");
}

#[test]
fn three_nodes_are_joined_by_neighbours_forwarding_entries_and_routes() {
    golden("three-nodes.txt", &Case::node1().design(&cluster_of([1, 2, 3])).state.to_string());
}

#[test]
fn an_ipv6_underlay_carries_both_families() {
    let mut case = Case::node1();
    case.underlay = case.own.underlay[1];
    case.own.mtu = 1430;
    golden("ipv6-underlay.txt", &case.design(&cluster_of([1, 2])).state.to_string());
}

#[test]
fn a_cluster_of_one_family_has_nothing_of_the_other() {
    let mut case = Case::node1();
    case.cluster.truncate(1);
    let mut snapshot = Snapshot::default();
    for number in [1, 2] {
        let mut lease = lease(number);
        lease.pod_cidrs = Box::new([lease.pod_cidrs[0]]);
        join(&mut snapshot, lease);
    }
    case.own = (**snapshot.leases.get("node1").unwrap()).clone();
    golden("ipv4-only.txt", &case.design(&snapshot).state.to_string());
}

#[test]
fn a_cluster_of_ipv6_on_nodes_without_ipv4_has_nothing_of_ipv4() {
    let mut case = Case::node1();
    case.cluster.remove(0);
    let mut snapshot = Snapshot::default();
    for number in [1, 2] {
        let mut lease = lease(number);
        lease.pod_cidrs = Box::new([lease.pod_cidrs[1]]);
        lease.underlay = Box::new([lease.underlay[1]]);
        lease.mtu = 1430;
        join(&mut snapshot, lease);
    }
    case.own = (**snapshot.leases.get("node1").unwrap()).clone();
    case.underlay = case.own.underlay[0];
    golden("ipv6-only.txt", &case.design(&snapshot).state.to_string());
}

#[test]
fn scenario_1_a_node_that_leaves_takes_only_its_own_entries_with_it() {
    let case = Case::node1();
    let mut snapshot = cluster_of([1, 2, 3]);
    snapshot.apply(Change::Removed(Key::Node("node3".into())));
    // Its lease may stand for a moment longer; the Node object decides.
    let design = case.design(&snapshot);
    assert_absent(&design, &lease(3));
    assert_eq!(design, case.design(&cluster_of([1, 2])));
}

#[test]
fn scenario_5_and_7_a_changed_cidr_of_one_family_changes_only_that_one() {
    let case = Case::node1();
    let before = case.design(&cluster_of([1, 2]));
    let mut snapshot = cluster_of([1, 2]);
    let mut changed = lease(2);
    changed.pod_cidrs[1] = net("fd00:10:244:77::/64");
    join(&mut snapshot, changed);
    let after = case.design(&snapshot);
    let steps = netstate::diff(&before.state, &after.state);
    assert_eq!(steps.len(), 4, "{steps:?}");
    assert!(steps.iter().all(|step| step.to_string().contains("fd00:10:244:")), "{steps:?}");
}

#[test]
fn scenario_6_two_leases_for_one_cidr_the_claim_decides_and_both_are_named() {
    let case = Case::node1();
    let mut snapshot = cluster_of([1, 2, 3]);
    let mut thief = lease(0);
    thief.pod_cidrs = lease(3).pod_cidrs;
    snapshot.apply(Change::Set(Node::named("node0").into()));
    snapshot.apply(Change::Set(thief.clone().into()));
    let design = case.design(&snapshot);
    assert!(design.peers.contains_key("node3"));
    assert!(!design.peers.contains_key("node0"));
    let text = problem(&design, "node0").to_string();
    assert_eq!(
        text,
        "reach node node0: its pod CIDR 10.244.3.0/24 overlaps 10.244.3.0/24 of node node3, which holds it"
    );
    let mut without = snapshot.clone();
    without.apply(Change::Removed(Key::Lease("node0".into())));
    assert_eq!(design.state, case.design(&without).state);
}

#[test]
fn a_peer_whose_cidr_encloses_others_is_left_out_whole() {
    let case = Case::node1();
    let mut snapshot = cluster_of([1, 2, 3]);
    let mut wide = lease(9);
    wide.pod_cidrs[0] = net("10.244.0.0/16");
    snapshot.apply(Change::Set(Node::named("node9").into()));
    snapshot.apply(Change::Set(wide.clone().into()));
    let design = case.design(&snapshot);
    assert_absent(&design, &wide);
    assert!(matches!(problem(&design, "node9"), Problem::Overlap { .. }));
    assert_eq!(design.peers.len(), 2);
}

#[test]
fn a_cidr_that_a_peer_merely_still_carries_is_its_new_owners() {
    let case = Case::node1();
    let mut snapshot = cluster_of([1, 3]);
    // node2 was given other CIDRs, and pods of it still have addresses of what node3 has now.
    let mut moved = lease(2);
    moved.pod_cidrs =
        Box::new([lease(2).pod_cidrs[0], lease(2).pod_cidrs[1], lease(3).pod_cidrs[0], net("10.244.9.0/24")]);
    join(&mut snapshot, moved);
    let design = case.design(&snapshot);
    assert_eq!(design.problems.len(), 0, "{:?}", design.problems);
    assert_eq!(design.peers.len(), 2);
    let neighbour = |cidr: &str| {
        design.state.neighbours().find(|entry| entry.address == net(cidr).addr()).map(|entry| entry.mac.0)
    };
    assert_eq!(neighbour("10.244.3.0/24"), Some(tunnel_mac("node3").0));
    assert_eq!(neighbour("10.244.9.0/24"), Some(tunnel_mac("node2").0), "what nobody else has");
}

/// The other nodes' underlay addresses are on the link of this one.
fn with_shared_link(host: &mut Host) {
    for address in ["198.18.0.2/16", "fd00:198:18::1/64"] {
        host.addresses.push(HostAddress {
            link: "eth0".to_owned(),
            address: net(address),
            global: true,
            avoid: false,
            permanent: true,
        });
    }
}

#[test]
fn host_gw_reaches_peers_by_plain_routes_and_has_no_tunnel() {
    let mut case = Case::node1();
    case.host = |host| with_shared_link(host);
    case.own.backend = Backend::HostGw;
    case.own.mtu = 1500;
    let mut snapshot = Snapshot::default();
    for number in [1, 2, 3] {
        join(&mut snapshot, Lease { backend: Backend::HostGw, mtu: 1500, ..lease(number) });
    }
    golden("host-gw.txt", &case.design(&snapshot).state.to_string());
    case.host = |_| {};
    let text = problem(&case.design(&snapshot), "node2").to_string();
    assert!(
        text.starts_with("reach node node2: its address 198.18.0.3 is on none of the networks of eth0"),
        "{text}"
    );
}

#[test]
fn scenario_16_host_gw_takes_the_link_on_which_the_kernel_sees_a_peer_and_its_mtu() {
    let mut case = Case::node1();
    case.host = |host| {
        with_shared_link(host);
        let on_second = |destination: &str, gateway: Option<&str>, metric| HostRoute {
            destination: net(destination),
            link: Some("eth1".to_owned()),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            source: None,
            metric,
            ours: false,
        };
        host.routes.push(on_second("203.0.113.0/24", None, 0));
        host.routes.push(on_second("203.0.113.128/25", Some("203.0.113.1"), 0));
        host.links.iter_mut().filter(|link| link.name == "eth1").for_each(|link| link.mtu = 1400);
    };
    case.own.backend = Backend::HostGw;
    case.own.mtu = 1500;
    let mut snapshot = Snapshot::default();
    for (number, address) in [(2, "198.18.0.3"), (3, "203.0.113.9"), (4, "203.0.113.200"), (5, "192.0.2.1")] {
        let underlay = Box::new([address.parse().unwrap()]);
        let pod_cidrs = Box::new([lease(number).pod_cidrs[0]]);
        let peer = Lease { backend: Backend::HostGw, mtu: 1500, underlay, pod_cidrs, ..lease(number) };
        join(&mut snapshot, peer);
    }
    let design = case.design(&snapshot);
    let text = design.state.to_string();
    assert!(text.contains("route 10.244.2.0/24 via 198.18.0.3 dev eth0 onlink\n"), "{text}");
    assert!(text.contains("route 10.244.3.0/24 via 203.0.113.9 dev eth1 onlink mtu 1400\n"), "{text}");
    // Behind a router, and where nothing leads.
    for node in ["node4", "node5"] {
        assert!(matches!(problem(&design, node), Problem::OffLink { .. }), "{node}");
    }
    // Beside a tunnel only the underlay's own link is taken: the peer would answer by the tunnel.
    case.own.backend = lease(1).backend;
    case.direct_routing = true;
    let mut snapshot = Snapshot::default();
    join(&mut snapshot, Lease { underlay: Box::new(["203.0.113.9".parse().unwrap()]), ..lease(3) });
    assert_eq!(case.design(&snapshot).peers["node3"].get(Family::V4).unwrap().way.name(), "vxlan");
}

#[test]
fn scenario_15_a_peer_that_moves_onto_the_link_and_away_again_leaves_nothing_of_the_other_way() {
    let mut case = Case::node1();
    case.host = |host| with_shared_link(host);
    case.direct_routing = true;
    let near = cluster_of([1, 2]);
    let mut far = cluster_of([1, 2]);
    join(&mut far, Lease { underlay: Box::new(["203.0.113.9".parse().unwrap()]), ..lease(2) });
    let (near, far) = (case.design(&near).state, case.design(&far).state);
    assert_eq!((near.fdb().count(), near.neighbours().count()), (0, 0));
    assert_eq!((far.fdb().count(), far.neighbours().count()), (1, 2));
    for (from, to) in [(&near, &far), (&far, &near)] {
        let text = netstate::diff(from, to).iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        let replaced = text.matches("~ route").count();
        assert!(replaced == 2 && !text.contains("- route"), "the routes are replaced, never away: {text}");
    }
}

#[test]
fn a_path_that_was_seen_to_carry_less_lowers_its_routes_alone_and_no_family_below_its_least() {
    let mut case = Case::node1();
    case.path_mtus.insert(lease(2).underlay[0], 1400);
    case.path_mtus.insert(lease(3).underlay[0], 1300);
    // More than links and leases say is no news.
    case.path_mtus.insert(lease(4).underlay[0], 9000);
    let design = case.design(&cluster_of([1, 2, 3, 4]));
    let mtus = |node: &str| design.peers[node].values().map(|path| (path.mtu, path.full)).collect::<Vec<_>>();
    assert_eq!(mtus("node2"), [(1350, 1500); 2]);
    assert_eq!(mtus("node3"), [(1250, 1500), (1280, 1500)]);
    assert_eq!(mtus("node4"), [(1450, 1500); 2]);
    let text = design.state.to_string();
    assert!(text.contains("route 10.244.2.0/24 via 10.244.2.0 dev fairlead0 onlink mtu 1350\n"), "{text}");
    assert!(text.contains("route 10.244.4.0/24 via 10.244.4.0 dev fairlead0 onlink\n"), "{text}");
    assert!(text.contains("nolearning mtu 1450"), "the device stays as it is: {text}");
}

#[test]
fn a_programs_tunnel_is_told_what_the_path_to_each_peer_carries() {
    let mut case = Case::node1();
    case.own.backend = Backend::Udp { port: 8285 };
    case.own.mtu = 1472;
    case.path_mtus.insert(lease(2).underlay[0], 1400);
    let mut snapshot = Snapshot::default();
    for number in [2, 3] {
        join(&mut snapshot, Lease { backend: Backend::Udp { port: 8285 }, mtu: 1472, ..lease(number) });
    }
    let design = case.design(&snapshot);
    let told = design.tunnels[&TunnelKind::Udp].peers.iter().map(|peer| peer.mtu).collect::<Vec<_>>();
    assert_eq!(told, [1372, 1472]);
}

#[test]
fn where_a_new_link_would_filter_strictly_the_tunnels_devices_are_made_loose() {
    let mut case = Case::node1();
    let loose = "sysctl net/ipv4/conf/fairlead0/rp_filter = 2";
    assert!(!case.design(&cluster_of([1, 2])).state.to_string().contains("rp_filter"));
    case.host = |host| host.strict_reverse_path = true;
    let text = case.design(&cluster_of([1, 2])).state.to_string();
    assert!(text.contains(loose), "{text}");
    assert_eq!(text.matches("rp_filter").count(), 1, "the host's links are its own: {text}");
}

#[test]
fn what_is_translated_follows_the_configuration_family_by_family() {
    let exceptions: &[IpNet] = Box::leak(Box::new(["10.0.0.0/8", "10.1.0.0/16", "fd00:99::/32"].map(net)));
    let mut case = Case::node1();
    case.masquerade = Masquerade { families: &Family::ALL, fully_random: false, exceptions };
    golden("masquerade.txt", &case.design(&cluster_of([1])).state.to_string());
    case.masquerade.families = &[Family::V6];
    let text = case.design(&cluster_of([1])).state.to_string();
    assert!(!text.contains("@cluster4 return") && text.contains("ip6 daddr @exceptions6 return"), "{text}");
    case.masquerade.families = &[];
    assert!(!case.design(&cluster_of([1])).state.to_string().contains("masquerade"), "nothing at all");
}

#[test]
fn where_nodes_have_addresses_among_those_of_pods_nothing_is_kept_from_tunnels() {
    let mut case = Case::node1();
    let guarded = |case: &Case| case.design(&cluster_of([1])).state.to_string().contains("goto tunnel");
    assert!(guarded(&case));
    case.cluster.push(net("198.18.0.0/16"));
    assert!(!guarded(&case));
    case.senders = Senders::default();
    assert!(
        !case.design(&cluster_of([1])).state.to_string().contains("fairlead_antispoof"),
        "nothing is left to do"
    );
}

#[test]
fn what_is_asked_of_packets_to_tunnels_has_no_connections_tracked_that_nobody_else_asks_for() {
    let mut case = Case::node1();
    let asked = |case: &Case| {
        let text = case.design(&cluster_of([1])).state.to_string();
        assert!(text.contains("goto tunnel"));
        text.contains("ct state") || text.contains("type nat hook input")
    };
    case.masquerade.families = &[];
    assert!(asked(&case), "policies are enforced");
    case.senders.policed = false;
    assert!(!asked(&case));
    case.masquerade.families = &[Family::V4];
    assert!(asked(&case));
}

#[test]
fn a_family_that_has_no_plain_way_does_not_cost_the_other_one() {
    let mut case = Case::node1();
    case.host = |host| with_shared_link(host);
    case.own.backend = Backend::HostGw;
    case.own.underlay = Box::new([lease(1).underlay[0]]);
    let mut snapshot = Snapshot::default();
    join(&mut snapshot, Lease { backend: Backend::HostGw, mtu: 1500, ..lease(2) });
    let design = case.design(&snapshot);
    assert_eq!(design.peers["node2"].iter().map(|(family, _)| family).collect::<Vec<_>>(), [Family::V4]);
    let text = problem(&design, "node2").to_string();
    assert!(text.contains("this node has no IPv6 underlay address"), "{text}");
}

#[test]
fn direct_routing_spares_peers_on_the_link_the_tunnel_and_no_others() {
    let mut case = Case::node1();
    case.host = |host| with_shared_link(host);
    case.direct_routing = true;
    let mut snapshot = cluster_of([1, 2]);
    let far = Lease { underlay: Box::new(["203.0.113.9".parse().unwrap()]), ..lease(3) };
    join(&mut snapshot, far);
    let design = case.design(&snapshot);
    let ways = |node: &str| design.peers[node].values().map(|path| path.way.name()).collect::<Vec<_>>();
    assert_eq!((ways("node2"), ways("node3")), (vec!["direct"; 2], vec!["vxlan"; 2]));
    assert_eq!(design.state.fdb().count(), 1);
    assert_eq!(design.state.neighbours().count(), 2);
}

#[test]
fn while_a_cluster_moves_to_another_backend_two_nodes_agree_on_the_tunnel_from_either_side() {
    let mut snapshot = cluster_of([1, 3]);
    join(&mut snapshot, Lease { backend: Backend::HostGw, mtu: 1500, ..lease(2) });
    let mut case = Case::node1();
    case.host = |host| with_shared_link(host);
    let design = case.design(&snapshot);
    assert!(design.peers["node2"].values().all(|path| {
        path.way == Way::Vxlan { mac: netstate::Mac(tunnel_mac("node2").0), underlay: lease(2).underlay[0] }
    }));
    // The same pair, seen from the node that has been moved: it has a tunnel's end for those that have not.
    let mut moved = Case { own: Lease { backend: Backend::HostGw, mtu: 1500, ..lease(2) }, ..Case::node1() };
    moved.underlay = moved.own.underlay[0];
    let design = moved.design(&snapshot);
    assert_eq!(design.peers["node1"].get(Family::V4).unwrap().way.name(), "vxlan");
    let text = design.state.to_string();
    assert!(text.contains(&format!("lladdr {}", tunnel_mac("node1"))), "{text}");
    assert!(text.contains("route 10.244.1.0/24 via 10.244.1.0 dev fairlead0 onlink mtu 1450"), "{text}");
}

#[test]
fn a_programs_tunnel_has_a_device_a_route_to_each_peer_and_is_told_of_them() {
    let mut case = Case::node1();
    case.own.backend = Backend::Udp { port: 8285 };
    case.own.mtu = 1472;
    let mut snapshot = Snapshot::default();
    join(&mut snapshot, Lease { backend: Backend::Udp { port: 9999 }, mtu: 1472, ..lease(2) });
    // One that has been told to become plain.
    join(&mut snapshot, Lease { backend: Backend::HostGw, mtu: 1500, ..lease(3) });
    let design = case.design(&snapshot);
    golden("udp.txt", &design.state.to_string());
    let tunnel = &design.tunnels[&TunnelKind::Udp];
    assert_eq!((tunnel.port, tunnel.mtu, tunnel.underlay), (8285, 1472, lease(1).underlay[0]));
    let told: Vec<_> =
        tunnel.peers.iter().map(|peer| (&*peer.node, peer.port, peer.pod_cidrs.len(), peer.mtu)).collect();
    assert_eq!(told, [("node2", 9999, 2, 1472), ("node3", 8285, 2, 1472)]);
}

/// The lease of a node of flannel: IPv4 alone, a link address that nobody can guess, and no word of port or MTU.
fn of_flannel(number: u16, backend: Backend) -> Lease {
    let whole = lease(number);
    Lease {
        pod_cidrs: Box::new([whole.pod_cidrs[0]]),
        underlay: Box::new([whole.underlay[0]]),
        backend,
        mtu: 65_535,
        flannel: Flannel::Member { mac_over_ipv6: None },
        ..whole
    }
}

fn flannels_vxlan() -> Backend {
    Backend::Vxlan { vni: 1, port: 8472, mac: MacAddress([0xba, 0x1d, 0, 0, 0, 2]) }
}

#[test]
fn a_node_of_flannel_is_reached_by_ipv4_as_it_says_whatever_port_the_cluster_has() {
    let mut case = Case::node1();
    case.port = 4789;
    case.own.backend = Backend::Vxlan { vni: 1, port: 4789, mac: tunnel_mac("node1") };
    let mut snapshot = Snapshot::default();
    join(&mut snapshot, of_flannel(2, flannels_vxlan()));
    let alone = case.design(&snapshot);
    assert!(alone.peers.is_empty() && alone.problems.is_empty(), "it does not know of this node");
    case.own.flannel = Flannel::Told;
    let design = case.design(&snapshot);
    assert!(design.problems.is_empty(), "{:?}", design.problems);
    let paths = &design.peers["node2"];
    assert_eq!(paths.iter().map(|(family, _)| family).collect::<Vec<_>>(), [Family::V4]);
    assert_eq!(paths.get(Family::V4).unwrap().mtu, 1450, "its packets limit nobody's");
    let text = design.state.to_string();
    assert!(text.contains("lladdr ba:1d:00:00:00:02"), "{text}");
    assert!(text.contains("route 10.244.2.0/24 via 10.244.2.0 dev fairlead0 onlink"), "{text}");
    let other = Backend::Vxlan { vni: 9, port: 8472, mac: MacAddress([0xba, 0x1d, 0, 0, 0, 2]) };
    join(&mut snapshot, of_flannel(2, other));
    assert!(problem(&case.design(&snapshot), "node2").to_string().contains("VNI 9"));
}

/// The same of both families, each over its own underlay.
fn of_flannel_with_ipv6(number: u16, backend: Backend) -> Lease {
    let mac_over_ipv6 = Some(MacAddress([0xba, 0x1d, 0, 0, 0, 6]));
    let Lease { pod_cidrs, underlay, .. } = lease(number);
    Lease { pod_cidrs, underlay, flannel: Flannel::Member { mac_over_ipv6 }, ..of_flannel(number, backend) }
}

#[test]
fn a_node_of_flannel_has_a_tunnel_of_its_own_for_ipv6_and_fairleads_nodes_have_one_for_both() {
    let mut case = Case::node1();
    case.own.flannel = Flannel::Told;
    let mut snapshot = cluster_of([3]);
    join(&mut snapshot, of_flannel_with_ipv6(2, flannels_vxlan()));
    let design = case.design(&snapshot);
    assert!(design.problems.is_empty(), "{:?}", design.problems);
    golden("flannel-dual-stack.txt", &design.state.to_string());
    let mtu = |node: &str| [Family::V4, Family::V6].map(|family| design.peers[node].get(family).unwrap().mtu);
    assert_eq!((mtu("node2"), mtu("node3")), ([1450, 1430], [1450, 1450]));

    // Without an underlay of IPv6 it is reached by IPv4 alone.
    case.own.underlay = Box::new([case.own.underlay[0]]);
    let design = case.design(&snapshot);
    assert!(problem(&design, "node2").to_string().contains("this node has no IPv6 underlay address"));
    assert_eq!(design.peers["node2"].iter().map(|(family, _)| family).collect::<Vec<_>>(), [Family::V4]);
    assert!(!design.state.to_string().contains("fairlead-v6"));
}

#[test]
fn the_tunnel_for_flannels_ipv6_is_there_while_flannel_is_told_and_by_vxlan_alone() {
    let mut case = Case::node1();
    let has_tunnel = |case: &Case| {
        case.design(&Snapshot::default()).state.links.keys().any(|name| name.as_str() == "fairlead-v6")
    };
    assert!(!has_tunnel(&case));
    case.own.flannel = Flannel::Told;
    assert!(has_tunnel(&case));
    case.own.backend = Backend::HostGw;
    case.host = |host| with_shared_link(host);
    assert!(!has_tunnel(&case));
    let mut snapshot = Snapshot::default();
    join(&mut snapshot, of_flannel_with_ipv6(2, Backend::HostGw));
    let text = case.design(&snapshot).state.to_string();
    assert!(text.contains("route fd00:10:244:2::/64 via fd00:198:18::2 dev eth0"), "{text}");
}

#[test]
fn a_node_of_flannel_is_reached_by_its_own_backend_or_not_at_all() {
    let mut case = Case::node1();
    case.host = |host| with_shared_link(host);
    case.own.flannel = Flannel::Told;
    for (own, theirs) in [(Backend::HostGw, flannels_vxlan()), (case.own.backend.clone(), Backend::HostGw)] {
        case.own.backend = own;
        let mut snapshot = Snapshot::default();
        join(&mut snapshot, of_flannel(2, theirs));
        let told = problem(&case.design(&snapshot), "node2").to_string();
        assert!(told.contains("its backend is"), "{told}");
    }
    case.own.backend = Backend::HostGw;
    let mut snapshot = Snapshot::default();
    join(&mut snapshot, of_flannel(2, Backend::HostGw));
    let text = case.design(&snapshot).state.to_string();
    assert!(text.contains("route 10.244.2.0/24 via 198.18.0.3 dev eth0"), "{text}");
    case.own.backend = Backend::Udp { port: 9999 };
    case.own.mtu = 1472;
    join(&mut snapshot, of_flannel(2, Backend::Udp { port: 8285 }));
    let tunnels = case.design(&snapshot).tunnels;
    let peer = &tunnels[&TunnelKind::Udp].peers[0];
    assert_eq!(peer.port, tunnels[&TunnelKind::Udp].port, "the port of the cluster");
}

#[test]
fn what_is_to_be_encrypted_goes_encrypted_or_not_at_all() {
    let key = |byte| Backend::wireguard(51820, PublicKey([byte; 32]));
    let mut case = Case::node1();
    case.own.backend = key(1);
    case.own.mtu = 1440;
    let mut snapshot = cluster_of([3]);
    join(&mut snapshot, Lease { backend: key(2), mtu: 1440, ..lease(2) });
    let design = case.design(&snapshot);
    let tunnel = &design.tunnels[&TunnelKind::WireGuard];
    assert_eq!(tunnel.peers.len(), 1);
    assert_eq!(tunnel.peers[0].public_key, Some(PublicKey([2; 32])));
    assert!(problem(&design, "node3").to_string().contains("its backend is vxlan, this node's is wireguard"));
    let text = design.state.to_string();
    // The tunnel refuses and counts; behind that, for when it is away, the kernel refuses.
    for net in ["10.244.0.0/16", "fd00:10:244::/48"] {
        assert!(text.contains(&format!("route {net} dev fairlead-wg metric 64999")), "{text}");
        assert!(text.contains(&format!("route unreachable {net} metric 65000")), "{text}");
    }
    assert!(text.contains("route 10.244.2.0/24 dev fairlead-wg"), "{text}");
    assert_eq!(tunnel.mtu, 1440);
}

fn not_strict(byte: u8) -> Backend {
    let key = WireGuardKey { port: 51820, public_key: PublicKey([byte; 32]), generation: 0 };
    Backend::WireGuard { key, next: None, strict: false }
}

/// How node1 with the one reaches node2 with the other; none where it does not.
fn way_between(ours: &Backend, theirs: &Backend) -> Option<&'static str> {
    let mut case = Case::node1();
    case.host = |host| with_shared_link(host);
    case.own.backend = ours.clone();
    let mut snapshot = Snapshot::default();
    join(&mut snapshot, Lease { backend: theirs.clone(), ..lease(2) });
    let design = case.design(&snapshot);
    let ways: BTreeSet<_> =
        design.peers.values().flat_map(|paths| paths.values().map(|path| path.way.name())).collect();
    assert!(ways.len() <= 1 && ways.is_empty() == design.problems.contains_key("node2"));
    ways.first().copied()
}

#[test]
fn wireguard_that_is_not_strict_gives_way_to_another_backend_and_both_nodes_say_so() {
    let strict = |byte| Backend::wireguard(51820, PublicKey([byte; 32]));
    for (other, way) in [
        (lease(2).backend, "vxlan"),
        (Backend::Udp { port: 8285 }, "udp"),
        (Backend::Ipip, "ipip"),
        (Backend::HostGw, "direct"),
    ] {
        assert_eq!(way_between(&not_strict(1), &other), Some(way));
        assert_eq!(way_between(&other, &not_strict(2)), Some(way));
        assert_eq!(way_between(&strict(1), &other), None, "a strict one has no way to {}", other.name());
        assert_eq!(way_between(&other, &strict(2)), None);
    }
    for (one, other) in [(strict(1), strict(2)), (strict(1), not_strict(2)), (not_strict(1), not_strict(2))] {
        assert_eq!(way_between(&one, &other), Some("wireguard"), "what both have is never left out");
    }
    for (one, other) in [(not_strict(1), Backend::None), (Backend::None, not_strict(2))] {
        let mut case = Case::node1();
        case.own.backend = one;
        let mut snapshot = Snapshot::default();
        join(&mut snapshot, Lease { backend: other, ..lease(2) });
        assert!(case.design(&snapshot).peers.is_empty());
    }
}

#[test]
fn while_a_node_changes_its_backend_it_and_its_peers_receive_by_all_that_either_may_send_by() {
    let has = |case: &Case, theirs: &Backend, device: &str, route: &str| {
        let mut snapshot = Snapshot::default();
        join(&mut snapshot, Lease { backend: theirs.clone(), ..lease(2) });
        let design = case.design(&snapshot);
        let text = design.state.to_string();
        assert!(text.contains(&format!("route 10.244.2.0/24 {route}")), "{text}");
        let has = design.state.links.keys().any(|link| link.as_str() == device);
        (has, design)
    };
    let mut case = Case::node1();
    case.host = |host| with_shared_link(host);

    // The last of two has been told to become plain, and sends by the tunnel for a moment.
    (case.own.backend, case.own.mtu) = (Backend::HostGw, 1500);
    assert!(!has(&case, &Backend::HostGw, "fairlead0", "via 198.18.0.3 dev eth0").0);
    case.former.insert("node2".into(), vec![lease(2).backend]);
    assert!(has(&case, &Backend::HostGw, "fairlead0", "via 198.18.0.3 dev eth0").0);

    // One that is to be sent to by a third way as soon as its lease is heard of.
    case.former.clear();
    case.sends = Some(lease(1).backend);
    let udp = Backend::Udp { port: 8285 };
    assert!(has(&case, &udp, "fairlead-udp", "via 10.244.2.0 dev fairlead0").0);

    // A peer has given WireGuard up, and sends by its key for a moment.
    (case.own.backend, case.own.mtu, case.sends) = (not_strict(1), 1440, None);
    let theirs = |design: &Design| {
        design.tunnels[&TunnelKind::WireGuard].peers.iter().map(|peer| peer.public_key).collect::<Vec<_>>()
    };
    let (_, design) = has(&case, &lease(2).backend, "fairlead-wg", "via 10.244.2.0 dev fairlead0");
    assert_eq!(theirs(&design), []);
    case.former.insert("node2".into(), vec![not_strict(2)]);
    let (_, design) = has(&case, &lease(2).backend, "fairlead-wg", "via 10.244.2.0 dev fairlead0");
    assert_eq!(theirs(&design), [Some(PublicKey([2; 32]))]);

    // This node gives it up: peers that have it are sent to by it until they have heard.
    case.former.clear();
    (case.own.backend, case.sends) = (lease(1).backend, Some(not_strict(1)));
    let (_, design) = has(&case, &not_strict(2), "fairlead-wg", "dev fairlead-wg");
    assert_eq!(theirs(&design), [Some(PublicKey([2; 32]))]);
    // And one that takes it sends by the old one until they have.
    (case.own.backend, case.sends) = (not_strict(1), Some(lease(1).backend));
    assert!(has(&case, &not_strict(2), "fairlead-wg", "via 10.244.2.0 dev fairlead0").0);
    // With a strict one there is nothing to wait for: there is no other way.
    let strict = Backend::wireguard(51820, PublicKey([2; 32]));
    assert!(has(&case, &strict, "fairlead-wg", "dev fairlead-wg").0);
}

#[test]
fn a_node_that_leaves_the_routes_to_others_has_its_own_part_alone() {
    let mut case = Case::node1();
    case.own.backend = Backend::None;
    let design = case.design(&cluster_of([1, 2]));
    assert!(design.peers.is_empty() && design.problems.is_empty());
    assert!(design.state.links.is_empty());
    assert!(design.state.to_string().contains("unreachable 10.244.1.0/24"), "{}", design.state);
    let from_another = Case::node1();
    let mut snapshot = cluster_of([1]);
    join(&mut snapshot, Lease { backend: Backend::None, ..lease(2) });
    let text = problem(&from_another.design(&snapshot), "node2").to_string();
    assert!(text.contains("its backend is none, this node's is vxlan"), "{text}");
}

#[test]
fn scenario_8_a_peer_of_another_backend_is_ignored_whole_and_reported() {
    let case = Case::node1();
    let mut snapshot = cluster_of([1, 2, 3]);
    let mut other = lease(3);
    other.backend = Backend::Other("wireguard".into());
    join(&mut snapshot, other);
    let design = case.design(&snapshot);
    assert_absent(&design, &lease(3));
    assert!(problem(&design, "node3").to_string().contains("its backend is wireguard"));
    let mut other = lease(3);
    other.backend = Backend::Vxlan { vni: 2, port: 8472, mac: tunnel_mac("node3") };
    join(&mut snapshot, other);
    assert!(problem(&case.design(&snapshot), "node3").to_string().contains("VNI 2 on port 8472"));
}

#[test]
fn a_peer_without_an_underlay_address_of_our_family_is_reported() {
    let case = Case::node1();
    let mut snapshot = cluster_of([1]);
    let mut six = lease(2);
    six.underlay = Box::new([six.underlay[1]]);
    join(&mut snapshot, six);
    let design = case.design(&snapshot);
    assert_absent(&design, &lease(2));
    assert!(problem(&design, "node2").to_string().contains("no IPv4 underlay address"));
}

#[test]
fn a_peer_outside_the_cluster_networks_cannot_draw_traffic() {
    let case = Case::node1();
    let mut snapshot = cluster_of([1]);
    let mut greedy = lease(2);
    greedy.pod_cidrs = Box::new([net("0.0.0.0/0")]);
    join(&mut snapshot, greedy.clone());
    let design = case.design(&snapshot);
    assert_absent(&design, &greedy);
    assert!(matches!(problem(&design, "node2"), Problem::Outside { .. }));
}

#[test]
fn a_copied_machine_does_not_take_over_the_tunnels_of_the_original() {
    let case = Case::node1();
    let mut snapshot = cluster_of([1, 2, 3]);
    let mut copy = lease(3);
    copy.underlay = lease(2).underlay;
    join(&mut snapshot, copy);
    let design = case.design(&snapshot);
    assert!(design.peers.contains_key("node2") && !design.peers.contains_key("node3"));
    assert!(problem(&design, "node3").to_string().contains("is also that of node node2"));
}

#[test]
fn scenario_4_the_link_address_follows_from_the_name_alone() {
    let mac = tunnel_mac("node1").0;
    assert_eq!(mac[0] & 3, 2, "locally administered, unicast");
    assert_eq!(tunnel_mac("node1"), tunnel_mac("node1"));
    let all: BTreeSet<_> = (0..5000).map(|number| tunnel_mac(&format!("node{number}"))).collect();
    assert_eq!(all.len(), 5000);
}

#[test]
fn scenario_9_five_thousand_peers_are_all_designed() {
    let case = Case { cluster: vec![net("10.0.0.0/8"), net("fd00:10:244::/48")], ..Case::node1() };
    let design = case.design(&cluster_of(0..5000));
    assert_eq!((design.peers.len(), design.problems.len()), (4999, 0));
    assert_eq!(design.state.fdb.len(), 4999);
    assert_eq!(design.state.routes.len(), 2 * 4999 + 2);
}

/// One thing that happens to a cluster.
#[derive(Debug, Clone)]
enum Event {
    Join(u16),
    Leave(u16),
    LoseLease(u16),
    Move { node: u16, underlay: u16 },
    Take { node: u16, cidrs_of: u16 },
    Other(u16),
}

fn event() -> impl Strategy<Value = Event> {
    let number = 1u16..8;
    prop_oneof![
        number.clone().prop_map(Event::Join),
        number.clone().prop_map(Event::Leave),
        number.clone().prop_map(Event::LoseLease),
        (number.clone(), number.clone()).prop_map(|(node, underlay)| Event::Move { node, underlay }),
        (number.clone(), number.clone()).prop_map(|(node, cidrs_of)| Event::Take { node, cidrs_of }),
        number.prop_map(Event::Other),
    ]
}

fn happen(snapshot: &mut Snapshot, event: &Event) {
    let rewrite = |snapshot: &mut Snapshot, number: u16, edit: &dyn Fn(&mut Lease)| {
        let mut changed = lease(number);
        edit(&mut changed);
        snapshot.apply(Change::Set(Object::Lease(Arc::new(changed))));
    };
    match event {
        Event::Join(number) => join(snapshot, lease(*number)),
        Event::Leave(number) => {
            snapshot.apply(Change::Removed(Key::Node(format!("node{number}").into())));
        }
        Event::LoseLease(number) => {
            snapshot.apply(Change::Removed(Key::Lease(format!("node{number}").into())));
        }
        Event::Move { node, underlay } => {
            rewrite(snapshot, *node, &|changed| changed.underlay = lease(100 + underlay).underlay);
        }
        Event::Take { node, cidrs_of } => {
            rewrite(snapshot, *node, &|changed| changed.pod_cidrs = lease(*cidrs_of).pod_cidrs);
        }
        Event::Other(node) => {
            rewrite(snapshot, *node, &|changed| changed.backend = Backend::Other("host-gw".into()));
        }
    }
}

/// What must hold of any design: a peer is there whole or not at all, and no two share a destination.
fn assert_whole(case: &Case, snapshot: &Snapshot, design: &Design) {
    let mut routed = 0;
    for node in design.peers.keys() {
        let lease = &snapshot.leases[node];
        assert!(snapshot.nodes.contains_key(node));
        let Backend::Vxlan { mac, .. } = lease.backend else { panic!("{node} is programmed") };
        let entry = design.state.fdb().find(|entry| entry.mac.0 == mac.0).expect("a forwarding entry");
        assert!(lease.underlay.contains(&entry.destination));
        for cidr in &lease.pod_cidrs {
            let neighbour =
                design.state.neighbours().find(|one| one.address == cidr.addr()).expect("a neighbour");
            assert_eq!(neighbour.mac.0, mac.0);
            let route = design
                .state
                .routes()
                .find(|route| route.key.destination == *cidr && route.target.via.is_some());
            assert_eq!(route.and_then(|route| route.target.via), Some(cidr.addr()));
            routed += 1;
        }
    }
    let tunnelled = design.state.routes().filter(|route| route.target.via.is_some()).count();
    assert_eq!(tunnelled, routed, "every route belongs to a peer");
    assert_eq!(design.state.fdb.len(), design.peers.len());
    assert_eq!(design.state.neighbours.len(), routed);
    let expected = snapshot
        .leases
        .values()
        .filter(|lease| lease.node != case.own.node && snapshot.nodes.contains_key(&lease.node));
    for lease in expected {
        let known = design.peers.contains_key(&lease.node) != design.problems.contains_key(&lease.node);
        assert!(known, "{} is either programmed or reported", lease.node);
    }
}

proptest! {
    #[test]
    fn after_any_history_every_peer_is_programmed_whole_or_reported(events in proptest::collection::vec(event(), 0..30)) {
        let case = Case::node1();
        let mut snapshot = cluster_of([1]);
        let mut have = case.design(&snapshot).state;
        for event in &events {
            happen(&mut snapshot, event);
            let design = case.design(&snapshot);
            assert_whole(&case, &snapshot, &design);
            // Nothing to do for what is as it was.
            prop_assert_eq!(netstate::diff(&design.state, &design.state), []);
            have = design.state;
        }
        // The history leaves no trace: a fresh node that sees the same cluster wants the same.
        let fresh: Snapshot = snapshot.objects().fold(Snapshot::default(), |mut fresh, object| {
            fresh.apply(Change::Set(object));
            fresh
        });
        prop_assert_eq!(have, case.design(&fresh).state);
    }

    #[test]
    fn the_order_in_which_nodes_come_does_not_matter(
        numbers in Just((1u16..12).collect::<Vec<_>>()).prop_shuffle(), cut in any::<u8>(),
    ) {
        let case = Case::node1();
        let kept = &numbers[..usize::from(cut) % numbers.len()];
        let mut sorted = kept.to_vec();
        sorted.sort_unstable();
        prop_assert_eq!(case.design(&cluster_of(kept.iter().copied())), case.design(&cluster_of(sorted)));
    }
}

/// Two nodes of a backend, and what node1 has where its kernel carries it, as text.
fn carried_by_the_kernel(backend: impl Fn(u8) -> Backend, mtu: u32, kernel: InKernel) -> Design {
    let mut case = Case::node1();
    case.own.backend = backend(1);
    case.own.mtu = mtu;
    case.kernel = kernel;
    let mut snapshot = Snapshot::default();
    join(&mut snapshot, Lease { backend: backend(2), mtu, ..lease(2) });
    join(&mut snapshot, Lease { backend: backend(3), mtu: 1300, ..lease(3) });
    case.design(&snapshot)
}

#[test]
fn wireguard_of_the_kernel_is_a_device_with_a_peer_for_each_node() {
    let backend = |byte| Backend::wireguard(51820, PublicKey([byte; 32]));
    let kernel = InKernel { wireguard: [Some(SecretKey::new([9; 32])), None], ipip: true };
    let design = carried_by_the_kernel(backend, 1440, kernel);
    golden("kernel-wireguard.txt", &design.state.to_string());
    assert!(design.tunnels.is_empty() && design.problems.is_empty(), "{:?}", design.problems);
}

/// WireGuard by keys of these generations, the first in force.
fn with_keys(byte: u8, generations: &[u32]) -> Backend {
    let mut keys = generations.iter().map(|generation| WireGuardKey {
        port: 51820 + u16::from(generation % 2 == 1),
        public_key: PublicKey([byte + u8::try_from(*generation).unwrap(); 32]),
        generation: *generation,
    });
    Backend::WireGuard { key: keys.next().unwrap(), next: keys.next(), strict: true }
}

#[test]
fn scenario_51_two_nodes_speak_by_the_newest_key_that_the_receiver_is_ready_for_and_receive_by_both() {
    // What each has; whether this node's peers have heard; by what it sends; and the peer's keys in its tunnels, of even
    // and of odd generations.
    for (own, theirs, heard, sends, even, odd) in [
        (&[0][..], &[0][..], true, "fairlead-wg", Some(20), None),
        (&[0, 1], &[0], true, "fairlead-wg", Some(20), None),
        (&[0, 1], &[0, 1], false, "fairlead-wg", Some(20), Some(21)),
        (&[0, 1], &[0, 1], true, "fairlead-wg", Some(20), Some(21)),
        (&[0], &[0, 1], true, "fairlead-wg", Some(20), None),
        // Who names the new one first knows everybody's.
        (&[1, 0], &[0, 1], true, "fairlead-wg", Some(20), Some(21)),
        (&[1, 0], &[1, 0], true, "fairlead-wg1", Some(20), Some(21)),
        (&[0, 1], &[1, 0], true, "fairlead-wg1", Some(20), Some(21)),
        (&[0, 1], &[1, 0], false, "fairlead-wg", Some(20), Some(21)),
        // One has given the old key up, and waited for us to have heard.
        (&[0, 1], &[1], false, "fairlead-wg1", None, Some(21)),
        (&[1], &[0, 1], false, "fairlead-wg1", None, Some(21)),
        // One that has just joined, of a generation that we are about to have.
        (&[0], &[1], false, "fairlead-wg", Some(21), None),
        (&[1], &[0], false, "fairlead-wg1", None, Some(20)),
        (&[1, 2], &[0], true, "fairlead-wg1", None, Some(20)),
    ] {
        for kernel in [false, true] {
            let mut case = Case::node1();
            (case.own.backend, case.own.mtu, case.sends_next) = (with_keys(10, own), 1440, heard);
            if kernel {
                case.kernel.wireguard = [Some(SecretKey::new([9; 32])), Some(SecretKey::new([8; 32]))];
            }
            let mut snapshot = Snapshot::default();
            join(&mut snapshot, Lease { backend: with_keys(20, theirs), mtu: 1440, ..lease(2) });
            let design = case.design(&snapshot);
            let what = format!("{own:?} {theirs:?} {heard} {kernel}\n{}", design.state);
            let routed = format!("route 10.244.2.0/24 dev {sends}");
            assert!(
                design
                    .state
                    .to_string()
                    .lines()
                    .any(|line| line.starts_with(&routed) && !line.starts_with(&format!("{routed}1"))),
                "{what}"
            );
            for (kind, wanted) in [(TunnelKind::WireGuard, even), (TunnelKind::WireGuardOdd, odd)] {
                let of_program = design.tunnels.get(&kind).into_iter().flat_map(|tunnel| &tunnel.peers);
                let of_program = of_program.filter_map(|peer| peer.public_key.map(|key| key.0[0]));
                let of_kernel = design.state.wireguard_peers.keys();
                let of_kernel = of_kernel.filter(|peer| peer.link.as_str() == kind.device());
                let found: Vec<u8> = of_program.chain(of_kernel.map(|peer| peer.public_key.0[0])).collect();
                assert_eq!(found, wanted.into_iter().collect::<Vec<u8>>(), "{kind:?} {what}");
                let there = design.state.links.keys().any(|link| link.as_str() == kind.device());
                let has =
                    own.iter().any(|generation| (generation % 2 == 1) == (kind == TunnelKind::WireGuardOdd));
                assert_eq!(there, has, "{kind:?} {what}");
            }
        }
    }
}

#[test]
fn ip_in_ip_of_the_kernel_is_a_device_for_each_family_and_routes_through_the_peers() {
    let kernel = InKernel { wireguard: [None; 2], ipip: true };
    let design = carried_by_the_kernel(|_| Backend::Ipip, 1480, kernel);
    golden("kernel-ipip.txt", &design.state.to_string());
    assert!(design.tunnels.is_empty() && design.problems.is_empty(), "{:?}", design.problems);
}

#[test]
fn a_node_behind_address_translation_lets_its_peers_hear_of_it() {
    let mut case = Case::node1();
    case.own.backend = Backend::wireguard(51820, PublicKey([1; 32]));
    case.own.underlay = Box::new(["203.0.113.1".parse().unwrap()]);
    case.kernel.wireguard[0] = Some(SecretKey::new([9; 32]));
    let mut snapshot = Snapshot::default();
    let backend = Backend::wireguard(51820, PublicKey([2; 32]));
    join(&mut snapshot, Lease { backend, mtu: 1440, ..lease(2) });
    let text = case.design(&snapshot).state.to_string();
    assert!(text.contains("persistent-keepalive 25 dev fairlead-wg"), "{text}");
}

#[test]
fn of_two_nodes_with_one_key_the_second_is_reported() {
    let backend = |byte| Backend::wireguard(51820, PublicKey([byte; 32]));
    for kernel in
        [InKernel::default(), InKernel { wireguard: [Some(SecretKey::new([9; 32])), None], ipip: false }]
    {
        // node2 and node3 are copies of one machine, node4 one of this very node.
        let mut case = Case::node1();
        case.own.backend = backend(1);
        case.kernel = kernel;
        let mut snapshot = Snapshot::default();
        for (number, key) in [(2, 7), (3, 7), (4, 1)] {
            join(&mut snapshot, Lease { backend: backend(key), ..lease(number) });
        }
        let design = case.design(&snapshot);
        assert_eq!(design.peers.keys().map(|node| &**node).collect::<Vec<_>>(), ["node2"]);
        for (node, holder) in [("node3", "node2"), ("node4", "node1")] {
            let told = problem(&design, node).to_string();
            assert!(told.contains("WireGuard key") && told.contains(holder), "{told}");
        }
    }
}

#[test]
fn a_node_that_has_left_still_lets_nothing_out_that_is_to_be_encrypted() {
    let state = guard(&[net("10.244.0.0/16"), net("fd00:10:244::/48")], &Family::ALL);
    assert_eq!(
        state.to_string(),
        "route unreachable 10.244.0.0/16 metric 65000\nroute unreachable fd00:10:244::/48 metric 65000\n"
    );
}
