//! Addresses, routes, neighbours, rules and qdiscs in real namespaces, looked at with `ip`, `bridge` and `tc`.
#![allow(clippy::unwrap_used, reason = "a failure in a test's scaffolding is a failure of the test")]

use std::net::IpAddr;

use harness::{Namespace, eventually, not_run, run_ok};
use ipnet::IpNet;
use kernel::Family;
use kernel::address::{self, NewAddress};
use kernel::link;
use kernel::neighbour::{self, FdbEntry};
use kernel::netlink::{Batch, Protocol, Socket};
use kernel::netns::Netns;
use kernel::qdisc::{self, Tbf};
use kernel::route::{self, Filter, Hop, Kind, Route};
use kernel::rule::{self, Action, Mark, Rule};
use netstate::Mac;
use serde_json::{Value, json};

/// A namespace with a veth pair `a`-`b`, both up, and lo up; the socket is there; the number is `a`'s index.
fn node() -> (Namespace, Socket, u32) {
    let namespace = Namespace::with_loopback();
    namespace.ip("link add name a type veth peer name b");
    namespace.ip("link set dev a up");
    namespace.ip("link set dev b up");
    let mut socket = Netns::open(namespace.path()).unwrap().socket(Protocol::Route).unwrap();
    let index = link::find(&mut socket, "a").unwrap().unwrap().index;
    (namespace, socket, index)
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The addresses of link `a` as `ip` shows them, link-local ones left out.
fn shown_addresses(namespace: &Namespace) -> Vec<Value> {
    let shown = namespace.ip_json("address show dev a");
    let all = shown[0]["addr_info"].as_array().unwrap().clone();
    all.into_iter().filter(|entry| entry["scope"] != "link").collect()
}

#[test]
fn addresses_of_both_families_come_and_go() {
    let (namespace, mut socket, a) = node();
    let four = NewAddress::new(a, net("10.1.2.3/24"));
    let six = NewAddress {
        skip_duplicate_detection: true,
        skip_prefix_route: true,
        ..NewAddress::new(a, net("fd00:1::3/64"))
    };
    socket.execute(Batch::from_iter([address::add(&four), address::add(&six)])).unwrap();
    let shown = shown_addresses(&namespace);
    assert_eq!((&shown[0]["local"], &shown[0]["prefixlen"]), (&json!("10.1.2.3"), &json!(24)));
    assert_eq!(shown[0]["broadcast"], "10.1.2.255");
    assert_eq!((&shown[1]["local"], &shown[1]["nodad"]), (&json!("fd00:1::3"), &json!(true)));
    assert_eq!(shown[1]["noprefixroute"], true);

    let listed = address::list(&mut socket, Some(a), None).unwrap();
    let nets: Vec<IpNet> = listed.iter().filter(|entry| entry.scope == 0).map(|entry| entry.net).collect();
    assert_eq!(nets, [four.net, six.net]);
    assert!(listed.iter().all(|entry| entry.link == a && entry.is_permanent() && !entry.is_duplicate()));
    assert_eq!(address::list(&mut socket, Some(a), Some(Family::V4)).unwrap().len(), 1);
    assert!(
        address::list(&mut socket, None, None).unwrap().iter().any(|entry| entry.net == net("127.0.0.1/8"))
    );

    assert!(socket.execute(address::add(&four)).unwrap_err().exists());
    socket.execute(address::replace(&four)).unwrap();
    let gone = Batch::from_iter([address::delete(a, four.net), address::delete(a, six.net)]);
    socket.execute(gone).unwrap();
    assert_eq!(shown_addresses(&namespace), Vec::<Value>::new());
    assert!(socket.execute(address::delete(a, four.net)).unwrap_err().is_missing());
    assert_eq!(address::list(&mut socket, Some(4711), None).unwrap(), []);
}

#[test]
fn duplicate_detection_shows_while_it_runs_and_when_it_fails() {
    let (namespace, mut socket, a) = node();
    namespace.ip("address add fd00:1::3/64 dev b nodad");
    socket.execute(address::add(&NewAddress::new(a, net("fd00:1::3/64")))).unwrap();
    eventually("the duplicate is noticed", || {
        let found = address::list(&mut socket, Some(a), Some(Family::V6)).unwrap();
        found.into_iter().find(|entry| entry.net == net("fd00:1::3/64") && entry.is_duplicate())
    });
}

#[test]
fn routes_of_every_shape_are_what_ip_shows() {
    let (namespace, mut socket, a) = node();
    namespace.ip("address add 10.9.0.1/24 dev a");
    namespace.ip("address add fd00:9::1/64 dev a nodad");
    let onlink = |destination: &str, gateway: &str| {
        let mut route = Route::via(net(destination), ip(gateway), a);
        route.hops[0].onlink = true;
        route.protocol = 70;
        route
    };
    let detailed = Route {
        source: Some(ip("10.9.0.1")),
        mtu: Some(1400),
        advertised_mss: Some(1300),
        metric: 50,
        table: 1000,
        ..Route::via(net("10.20.0.0/16"), ip("10.9.0.2"), a)
    };
    let batch = Batch::from_iter([
        route::add(&onlink("10.244.1.0/24", "10.244.1.0")),
        route::add(&onlink("fd00:10:244:1::/64", "fd00:10:244:1::")),
        route::add(&Route::on_link(net("10.30.0.1/32"), a)),
        route::add(&detailed),
        route::add(&Route::dropping(net("10.40.0.0/16"), Kind::Blackhole)),
        route::add(&Route::dropping(net("fd00:40::/64"), Kind::Unreachable)),
        route::add(&Route::via(net("0.0.0.0/0"), ip("10.9.0.254"), a)),
        route::add(&Route::via(net("10.60.0.0/16"), ip("fd00:9::2"), a)),
    ]);
    socket.execute(batch).unwrap();

    let first = &namespace.ip_json("route show 10.244.1.0/24")[0];
    assert_eq!((&first["gateway"], &first["protocol"]), (&json!("10.244.1.0"), &json!("70")));
    assert_eq!(first["flags"], json!(["onlink"]));
    let six = &namespace.ip_json("-6 route show fd00:10:244:1::/64")[0];
    assert_eq!((&six["gateway"], &six["flags"]), (&json!("fd00:10:244:1::"), &json!(["onlink"])));
    assert_eq!(namespace.ip_json("route show 10.30.0.1")[0]["scope"], "link");
    let full = &namespace.ip_json("route show table 1000")[0];
    assert_eq!((&full["prefsrc"], &full["metric"]), (&json!("10.9.0.1"), &json!(50)));
    assert_eq!((&full["metrics"][0]["mtu"], &full["metrics"][0]["advmss"]), (&json!(1400), &json!(1300)));
    assert_eq!(namespace.ip_json("route show 10.40.0.0/16")[0]["type"], "blackhole");
    assert_eq!(namespace.ip_json("-6 route show fd00:40::/64")[0]["type"], "unreachable");
    assert_eq!(namespace.ip_json("route show default")[0]["gateway"], "10.9.0.254");
    assert_eq!(namespace.ip_json("route show 10.60.0.0/16")[0]["via"]["host"], "fd00:9::2");

    let listed = route::list(&mut socket, Filter::default()).unwrap();
    for wanted in [onlink("10.244.1.0/24", "10.244.1.0"), detailed.clone()] {
        assert!(listed.contains(&wanted), "{wanted:?} in {listed:#?}");
    }
    let unreachable = listed.iter().find(|route| route.destination == net("fd00:40::/64")).unwrap();
    assert_eq!((unreachable.kind, unreachable.hops.len()), (Kind::Unreachable, 0));
    let mine = route::list(&mut socket, Filter { protocol: Some(70), ..Filter::default() }).unwrap();
    assert_eq!(mine.len(), 2);
    let tabled = route::list(&mut socket, Filter { table: Some(1000), ..Filter::default() }).unwrap();
    assert_eq!(tabled, std::slice::from_ref(&detailed));
    assert_eq!(route::list(&mut socket, Filter { table: Some(4242), ..Filter::default() }).unwrap(), []);

    assert!(socket.execute(route::add(&detailed)).unwrap_err().exists());
    let changed = Route { mtu: Some(1200), ..detailed };
    socket.execute(Batch::from_iter([route::replace(&changed), route::delete(&mine[0])])).unwrap();
    let mtu = &namespace.ip_json("route show table 1000")[0]["metrics"][0]["mtu"];
    assert_eq!(mtu, 1200);
    assert!(socket.execute(route::delete(&mine[0])).unwrap_err().is_missing());
}

#[test]
fn several_hops_are_written_and_read() {
    let (namespace, mut socket, a) = node();
    namespace.ip("address add 10.9.0.1/24 dev a");
    namespace.ip("address add fd00:9::1/64 dev a nodad");
    for (destination, gateways) in
        [("10.50.0.0/16", ["10.9.0.2", "10.9.0.3"]), ("fd00:50::/64", ["fd00:9::2", "fd00:9::3"])]
    {
        let hops = vec![
            Hop { gateway: Some(ip(gateways[0])), weight: 1, ..Hop::on(a) },
            Hop { gateway: Some(ip(gateways[1])), weight: 3, onlink: true, ..Hop::on(a) },
        ];
        let mut wanted = Route { hops, ..Route::via(net(destination), ip(gateways[0]), a) };
        socket.execute(route::add(&wanted)).unwrap();
        // IPv6 shows its default metric.
        wanted.metric = if net(destination).addr().is_ipv6() { 1024 } else { 0 };
        let shown = &namespace.ip_json(&format!("route show {destination}"))[0]["nexthops"];
        let family_neutral = if shown.is_null() {
            namespace.ip_json(&format!("-6 route show {destination}"))[0]["nexthops"].clone()
        } else {
            shown.clone()
        };
        assert_eq!(family_neutral[1]["gateway"], gateways[1]);
        assert_eq!(family_neutral[1]["weight"], 3);
        let listed = route::list(&mut socket, Filter::default()).unwrap();
        assert!(listed.contains(&wanted), "{wanted:?} in {listed:#?}");
    }
}

#[test]
fn the_way_of_a_packet_is_what_ip_route_get_says() {
    let (namespace, mut socket, a) = node();
    namespace.ip("address add 10.9.0.1/24 dev a");
    namespace.ip("address add fd00:9::1/64 dev a nodad");
    namespace.ip("route add 10.77.0.0/16 via 10.9.0.2");
    namespace.ip("route add blackhole 10.78.0.0/16");
    namespace.ip("-6 route add unreachable fd00:78::/64");
    let found = route::get(&mut socket, ip("10.77.1.1")).unwrap().unwrap();
    assert_eq!(found.destination, net("10.77.1.1/32"));
    assert_eq!(found.hops, [Hop { gateway: Some(ip("10.9.0.2")), ..Hop::on(a) }]);
    assert_eq!(found.source, Some(ip("10.9.0.1")));
    let six = route::get(&mut socket, ip("fd00:9::5")).unwrap().unwrap();
    assert_eq!((six.hops, six.source), (vec![Hop::on(a)], Some(ip("fd00:9::1"))));
    for nowhere in ["192.0.2.1", "10.78.0.1", "2001:db8::1", "fd00:78::1"] {
        assert_eq!(route::get(&mut socket, ip(nowhere)).unwrap(), None, "{nowhere}");
    }
    assert_eq!(route::get(&mut socket, ip("10.9.0.1")).unwrap().unwrap().kind, Kind::Local);
}

#[test]
fn an_unreachable_gateway_is_refused_in_the_kernels_words() {
    let (_namespace, mut socket, a) = node();
    let error = socket.execute(route::add(&Route::via(net("10.1.0.0/16"), ip("10.250.0.1"), a))).unwrap_err();
    assert_eq!(error.detail(), Some("Nexthop has invalid gateway"), "{error}");
    let start = format!("add route 10.1.0.0/16 via 10.250.0.1 on link number {a}: ");
    assert!(error.to_string().starts_with(&start), "{error}");
}

#[test]
fn neighbours_are_permanent_and_replaced_in_place() {
    let (namespace, mut socket, a) = node();
    let (first, second) = (Mac([0xee; 6]), Mac([2, 0, 0, 0, 0, 9]));
    for address in ["169.254.1.1", "fe80::1"] {
        socket.execute(neighbour::set(a, ip(address), first)).unwrap();
        socket.execute(neighbour::set(a, ip(address), second)).unwrap();
        let shown = namespace.ip_json(&format!("neighbour show {address} dev a"));
        assert_eq!(
            (&shown[0]["lladdr"], &shown[0]["state"]),
            (&json!("02:00:00:00:00:09"), &json!(["PERMANENT"]))
        );
        let listed = neighbour::list(&mut socket, Some(a)).unwrap();
        let found = listed.iter().find(|entry| entry.address == ip(address)).unwrap();
        assert!(found.is_permanent() && found.mac == Some(second) && found.link == a);
        socket.execute(neighbour::delete(a, ip(address))).unwrap();
        assert!(!namespace.ip("neighbour show dev a").contains("PERMANENT"));
    }
    assert!(socket.execute(neighbour::delete(a, ip("169.254.1.1"))).unwrap_err().is_missing());
}

#[test]
fn forwarding_entries_of_a_tunnel_lead_to_their_far_ends() {
    let (namespace, mut socket, _) = node();
    namespace.ip("link add vx0 type vxlan id 1 dstport 8472 local 198.18.0.1 nolearning");
    namespace.ip("link set vx0 up");
    let tunnel = link::find(&mut socket, "vx0").unwrap().unwrap().index;
    let mac = Mac([2, 0, 0, 0, 0, 9]);
    socket.execute(neighbour::set_fdb(tunnel, mac, ip("198.18.0.2"))).unwrap();
    socket.execute(neighbour::set_fdb(tunnel, mac, ip("198.18.0.3"))).unwrap();
    let shown = namespace.bridge_json("fdb show dev vx0");
    let shown: Vec<&Value> =
        shown.as_array().unwrap().iter().filter(|entry| entry["mac"] == "02:00:00:00:00:09").collect();
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert_eq!((&shown[0]["dst"], &shown[0]["state"]), (&json!("198.18.0.3"), &json!("permanent")));
    let listed = neighbour::list_fdb(&mut socket, Some(tunnel)).unwrap();
    let found: Vec<&FdbEntry> = listed.iter().filter(|entry| entry.mac == mac).collect();
    assert_eq!(found.len(), 1);
    assert!(found[0].is_own() && found[0].is_permanent() && found[0].destination == Some(ip("198.18.0.3")));
    assert!(neighbour::list_fdb(&mut socket, None).unwrap().contains(found[0]));
    socket.execute(neighbour::delete_fdb(tunnel, mac, None)).unwrap();
    assert!(neighbour::list_fdb(&mut socket, Some(tunnel)).unwrap().iter().all(|entry| entry.mac != mac));
    assert!(socket.execute(neighbour::delete_fdb(tunnel, mac, None)).unwrap_err().is_missing());
}

#[test]
fn rules_are_read_as_they_were_written() {
    let (namespace, mut socket, _) = node();
    for family in Family::BOTH {
        let source = if family == Family::V4 { net("10.1.0.0/16") } else { net("fd00:1::/48") };
        let wanted = Rule {
            source: Some(source),
            mark: Some(Mark { value: 0x10, mask: 0xf0 }),
            incoming: Some("a".to_owned()),
            suppress_prefix_length: Some(0),
            protocol: 70,
            ..Rule::new(family, 7600, Action::Table(1000))
        };
        socket.execute(rule::add(&wanted)).unwrap();
        assert!(socket.execute(rule::add(&wanted)).unwrap_err().exists());
        let option = if family == Family::V4 { "-4" } else { "-6" };
        let shown = namespace.ip_json(&format!("{option} rule show"));
        let shown = shown.as_array().unwrap().iter().find(|rule| rule["priority"] == 7600).unwrap();
        assert_eq!((&shown["table"], &shown["iif"]), (&json!("1000"), &json!("a")));
        assert_eq!((&shown["fwmark"], &shown["fwmask"]), (&json!("0x10"), &json!("0xf0")));
        assert_eq!(shown["suppress_prefixlen"], 0);
        assert_eq!(format!("{}/{}", shown["src"].as_str().unwrap(), shown["srclen"]), source.to_string());
        assert!(rule::list(&mut socket).unwrap().contains(&wanted));
        socket.execute(rule::delete(&wanted)).unwrap();
        assert!(!rule::list(&mut socket).unwrap().contains(&wanted));
        assert!(socket.execute(rule::delete(&wanted)).unwrap_err().is_missing());
    }
}

#[test]
fn a_rate_limit_and_the_ingress_hook_are_what_tc_shows() {
    let (namespace, mut socket, a) = node();
    for rate in [1_250_000, 10_000_000_000] {
        let wanted = Tbf { rate, burst: 65_536, limit: 100_000 };
        match socket.execute(qdisc::set_tbf(a, &wanted)) {
            Err(error) if error.is_missing() || error.is_unsupported() => {
                return not_run("the kernel lacks CONFIG_NET_SCH_TBF");
            }
            other => other.unwrap(),
        }
        let shown = run_ok(namespace.command("tc").args(["-j", "qdisc", "show", "dev", "a", "root"]));
        let shown: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!((&shown[0]["kind"], &shown[0]["options"]["rate"]), (&json!("tbf"), &json!(rate)));
        let burst = shown[0]["options"]["burst"].as_u64().unwrap();
        // tc computes in microseconds.
        assert!(burst.abs_diff(65_536) <= rate / 1_000_000 + 1, "{burst}");
        let found = qdisc::list(&mut socket, Some(a)).unwrap();
        let tbf = found.iter().find(|entry| entry.parent == qdisc::ROOT).unwrap().tbf.unwrap();
        assert_eq!((tbf.rate, tbf.limit), (rate, 100_000));
        assert!(u64::from(tbf.burst).abs_diff(65_536) <= rate * 64 / 1_000_000_000 + 1, "{}", tbf.burst);
    }
    socket.execute(qdisc::add_ingress(a)).unwrap();
    let kinds = |socket: &mut Socket| -> Vec<String> {
        qdisc::list(socket, Some(a)).unwrap().into_iter().map(|entry| entry.kind).collect()
    };
    assert_eq!(kinds(&mut socket), ["tbf", "ingress"]);
    let gone = Batch::from_iter([qdisc::delete(a, qdisc::INGRESS), qdisc::delete(a, qdisc::ROOT)]);
    socket.execute(gone).unwrap();
    assert_eq!(kinds(&mut socket), ["noqueue"]);
}
