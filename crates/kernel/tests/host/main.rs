//! The node's network as one thing, against the kernel: what is wanted is made, what others break is found and
//! healed, what is not ours stays. `ip`, `bridge` and `nft` say what is really there.
#![allow(clippy::unwrap_used, reason = "a failure here is a failure of the test")]

mod node;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use harness::{Namespace, eventually, run_ok};
use kernel::monitor::{Event, Monitor, Topic};
use netstate::{Address, Conflict, FdbEntry, Link, LinkKind, Mac, Plan, Route, RouteKey, State, Vxlan, plan};
use node::{assert_is, assert_settled, cluster, inside, name, net, node, observe, reconcile, tunnel};

fn count(list: &serde_json::Value) -> usize {
    list.as_array().unwrap().len()
}

#[test]
fn what_is_wanted_is_made_and_a_second_time_changes_nothing() {
    let namespace = node();
    let want = cluster(3);
    reconcile(&namespace, &want);
    assert_settled(&namespace, &want);

    let link = &namespace.ip_json("link show fairlead0")[0];
    assert_eq!(link["ifalias"], "fairlead");
    assert_eq!(link["mtu"], 1450);
    assert_eq!(link["address"], "02:00:00:00:00:01");
    let data = &link["linkinfo"]["info_data"];
    assert_eq!((&data["id"], &data["port"], &data["local"]), (&1.into(), &8472.into(), &"192.0.2.1".into()));
    assert_eq!(data["learning"], false);
    let routes = namespace.ip_json("-4 route show proto 70");
    let to_peer = routes.as_array().unwrap().iter().find(|route| route["dst"] == "10.128.0.64/26").unwrap();
    assert_eq!((&to_peer["gateway"], &to_peer["dev"]), (&"10.128.0.64".into(), &"fairlead0".into()));
    assert_eq!(to_peer["flags"][0], "onlink");
    assert_eq!(count(&namespace.ip_json("-6 route show proto 70")), 4);
    assert_eq!(count(&namespace.ip_json("neigh show dev fairlead0 nud permanent")), 6);
    assert_eq!(count(&namespace.bridge_json("fdb show dev fairlead0")), 3);
    assert_eq!(namespace.sysctl("net/ipv4/ip_forward"), "1");
    assert!(namespace.nft_ruleset().iter().any(|object| object["table"]["name"] == "fairlead"));
    assert_eq!(count(&namespace.ip_json("-6 rule show priority 7600")), 1);
}

/// All that the tools show of a namespace.
fn everything(namespace: &Namespace) -> Vec<String> {
    // A link-local address is checked for duplicates first, and then shown without that word.
    let settled = || (!namespace.ip("addr").contains("tentative")).then_some(());
    eventually("duplicate address detection ends", settled);
    let all = ["link", "addr", "route show table all", "rule", "-6 rule", "-6 route show table all", "neigh"];
    let mut texts: Vec<String> = all.iter().map(|what| namespace.ip(what)).collect();
    texts.push(run_ok(namespace.command("nft").args(["list", "ruleset"])));
    texts.push(run_ok(namespace.command("bridge").args(["fdb", "show"])));
    texts
}

#[test]
fn wanting_nothing_cleans_up_and_leaves_what_is_not_ours() {
    let namespace = node();
    namespace.ip("route add 10.9.0.0/16 via 192.0.2.9 proto 199");
    namespace.ip("route add 10.128.9.9/32 dev eth0 proto 71");
    namespace.ip("rule add priority 100 lookup 12");
    namespace.ip("link add fairlead-other type bridge");
    namespace.ip("link set fairlead-other alias fairlead:net/container/eth0");
    for table in ["add table inet fairlead_cni", "add table bridge fairlead_macspoof", "add table ip theirs"]
    {
        run_ok(namespace.command("nft").args(table.split(' ')));
    }
    let before = everything(&namespace);
    reconcile(&namespace, &cluster(20));
    assert_ne!(everything(&namespace), before);
    reconcile(&namespace, &State::default());
    assert_eq!(everything(&namespace), before);
}

#[test]
fn what_others_delete_or_change_is_found_and_healed() {
    let namespace = node();
    let want = cluster(5);
    reconcile(&namespace, &want);
    let damage = [
        "ip route del 10.128.0.64/26",
        "ip route replace 10.128.0.64/26 via 192.0.2.77 proto 70",
        "ip route replace blackhole 10.128.0.128/26 proto 70",
        "ip -6 route del fd00:10:244:1::/64",
        "ip route add 10.99.0.0/16 via 192.0.2.77 proto 70",
        "ip route flush proto 70",
        "ip neigh del 10.128.0.64 dev fairlead0",
        "ip neigh replace 10.128.0.64 lladdr 02:00:00:00:00:99 dev fairlead0 nud permanent",
        "ip neigh add 10.7.7.7 lladdr 02:00:00:00:00:99 dev fairlead0 nud permanent",
        "bridge fdb del 02:00:00:01:00:01 dev fairlead0 self",
        "bridge fdb replace 02:00:00:01:00:01 dev fairlead0 dst 192.0.2.200 self permanent",
        "bridge fdb add 02:00:00:01:77:77 dev fairlead0 dst 192.0.2.200 self permanent",
        "ip addr del 10.128.0.0/32 dev fairlead0",
        "ip addr add 10.6.6.6/32 dev fairlead0",
        "ip link set fairlead0 mtu 1400",
        "ip link set fairlead0 down",
        "ip link set fairlead0 address 02:00:00:00:00:77",
        "ip link set fairlead0 type vxlan learning",
        "ip link del fairlead0",
        "ip rule del priority 7600",
        "ip rule add priority 7650 lookup 12",
        "nft delete table inet fairlead",
        "nft flush ruleset",
        "nft flush chain inet fairlead postrouting",
        "nft add element inet fairlead cluster { 10.7.0.0/16 }",
        "nft add table inet fairlead_old",
        "sysctl -qw net.ipv4.ip_forward=0",
    ];
    for line in damage {
        let words: Vec<&str> = line.split_whitespace().collect();
        run_ok(namespace.command(words[0]).args(&words[1..]));
        let plan = reconcile(&namespace, &want);
        assert!(!plan.steps.is_empty(), "{line}: not seen");
        assert_is(&observe(&namespace, &want), &want, line);
    }
    assert_settled(&namespace, &want);
}

#[test]
fn a_changed_wish_is_reached_from_any_other() {
    let namespace = node();
    let moved = |mut state: State| {
        let (old, mac) = (Mac([2, 0, 0, 1, 0, 1]), Mac([2, 0, 0, 2, 0, 1]));
        state.fdb.retain(|key, _| key.mac != old);
        let destination = IpAddr::from([192, 0, 2, 200]);
        state.insert_fdb(FdbEntry { link: name("fairlead0"), mac, destination });
        state.neighbours.values_mut().filter(|held| **held == old).for_each(|held| *held = mac);
        state
    };
    let other_port = |mut state: State| {
        let mut link = tunnel();
        if let LinkKind::Vxlan(vxlan) = &mut link.kind {
            vxlan.port = 4789;
        }
        state.insert_link(link);
        state
    };
    // A tunnel over IPv6 that is bound to no link, and a second link.
    let unbound = |mut state: State| {
        let local = IpAddr::V6(Ipv6Addr::LOCALHOST);
        let kind = LinkKind::Vxlan(Vxlan { vni: 9, port: 8472, local, parent: None });
        state.insert_link(Link { kind, mtu: None, mac: None, ..tunnel() });
        state.fdb.clear();
        let second = name("fairlead1");
        state.insert_link(Link { name: second, kind: LinkKind::Bridge, mtu: None, mac: None, up: false });
        state
    };
    let goals = [
        cluster(3),
        moved(cluster(3)),
        State::default(),
        other_port(cluster(4)),
        cluster(4),
        unbound(cluster(1)),
        moved(cluster(2)),
    ];
    for want in &goals {
        reconcile(&namespace, want);
        assert_settled(&namespace, want);
    }
}

#[test]
fn a_foreign_link_in_the_way_is_reported_and_left_alone() {
    let namespace = node();
    let want = cluster(2);
    namespace.ip("link add fairlead0 type bridge");
    for _ in 0..3 {
        let plan = reconcile(&namespace, &want);
        assert!(
            matches!(plan.conflicts.as_slice(), [Conflict::Link(link)] if link.kind == "bridge"),
            "{plan}"
        );
        assert_eq!(namespace.ip_json("link show fairlead0")[0]["linkinfo"]["info_kind"], "bridge");
        assert_eq!(namespace.ip("-4 route show proto 70").trim(), "blackhole 10.128.0.0/26 metric 65000");
    }
    namespace.ip("link del fairlead0");
    reconcile(&namespace, &want);
    assert_settled(&namespace, &want);
}

#[test]
fn a_foreign_route_in_the_way_is_reported_and_left_alone() {
    let namespace = node();
    let want = cluster(2);
    namespace.ip("route add 10.128.0.64/26 via 192.0.2.9 proto 199");
    for _ in 0..3 {
        let plan = reconcile(&namespace, &want);
        assert!(
            matches!(plan.conflicts.as_slice(), [Conflict::Route(route)] if route.protocol == 199),
            "{plan}"
        );
        let there = namespace.ip("route show 10.128.0.64/26");
        assert_eq!(there.trim(), "10.128.0.64/26 via 192.0.2.9 dev eth0 proto 199");
    }
    namespace.ip("route del 10.128.0.64/26");
    reconcile(&namespace, &want);
    assert_settled(&namespace, &want);

    // IPv4 keeps routes of several metrics side by side: ours has the best one, and then has not.
    namespace.ip("route add 10.128.0.64/26 via 192.0.2.9 proto 199 metric 50");
    assert_settled(&namespace, &want);
    let mut modest = want.clone();
    let key = RouteKey::main(net("10.128.0.64/26"));
    let target = modest.routes.remove(&key).unwrap();
    modest.routes.insert(RouteKey { metric: 100, ..key }, target);
    let plan = reconcile(&namespace, &modest);
    assert!(matches!(plan.conflicts.as_slice(), [Conflict::Outdone(_)]), "{plan}");
    assert_is(&observe(&namespace, &modest), &modest, "outdone");
}

#[test]
fn a_foreign_route_that_comes_between_looking_and_acting_is_left_alone() {
    let namespace = node();
    let want = cluster(2);
    let found = inside(&namespace, |host| plan(&host.observe(&want).unwrap(), &want));
    let foreign = "10.128.0.64/26 via 192.0.2.9 dev eth0 proto 199";
    namespace.ip(&format!("route add {foreign}"));
    let report = inside(&namespace, |host| host.apply(&found.steps).unwrap());
    assert_eq!(namespace.ip("route show 10.128.0.64/26").trim(), foreign);
    let [failed] = report.failed.as_slice() else { panic!("{report:?}") };
    assert!(failed.error.exists(), "{failed:?}");
}

#[test]
fn of_two_routes_of_ours_the_one_of_the_wrong_metric_goes() {
    let namespace = node();
    let [near, far] = [0, 512].map(|metric| {
        let blackhole = Route::blackhole(net("fd00:9::/64"));
        Route { key: RouteKey { metric, ..blackhole.key }, ..blackhole }
    });
    let (mut both, mut one) = (State::default(), State::default());
    both.insert_route(near);
    both.insert_route(far);
    one.insert_route(far);
    reconcile(&namespace, &both);
    assert_settled(&namespace, &both);
    reconcile(&namespace, &one);
    assert_settled(&namespace, &one);
}

#[test]
fn a_route_through_itself_that_moves_to_another_link_is_there_all_the_time() {
    let namespace = node();
    let want = cluster(1);
    let moves = RouteKey::main(net("fd00:10:244:1::/64"));
    let mut before = want.clone();
    before.insert_route(Route::on_link(moves.destination, name("eth0")));
    reconcile(&namespace, &before);
    assert_settled(&namespace, &before);
    let mut monitor = namespace.inside(|| Monitor::open(&[Topic::Routes]).unwrap());
    reconcile(&namespace, &want);
    let told = std::iter::repeat_with(|| monitor.receive().unwrap()).flatten().map(|told| told.event);
    let first = told.filter(|event| match event {
        Event::Route(route) | Event::RouteGone(route) => route.destination == moves.destination,
        _ => false,
    });
    assert!(matches!(first.into_iter().next(), Some(Event::Route(_))), "it was not gone before it came");
    assert_settled(&namespace, &want);
}

#[test]
fn a_link_left_half_made_is_ours_and_made_anew() {
    let namespace = node();
    let half = "type vxlan id 1 dstport 8472 local 192.0.2.1 dev eth0";
    namespace.ip(&format!("link add fairlead0 group {} {half}", netstate::LINK_GROUP));
    let want = cluster(1);
    assert_eq!(reconcile(&namespace, &want).conflicts, vec![]);
    assert_settled(&namespace, &want);
}

#[test]
fn what_cannot_be_done_is_reported_and_the_rest_is_done() {
    let namespace = node();
    let mut want = cluster(2);
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let kind = LinkKind::Vxlan(Vxlan { vni: 2, port: 8472, local, parent: Some(name("absent")) });
    want.insert_link(Link { name: name("fairlead1"), kind, mtu: None, mac: None, up: true });
    want.insert_address(Address { link: name("fairlead1"), net: net("10.5.5.5/32") });
    want.insert_sysctl("net/ipv4/no_such_thing", "1");
    want.insert_route(Route::via_onlink(net("10.4.0.0/16"), net("10.4.0.0/16").addr(), name("nowhere")));
    let mut far = Route::on_link(net("10.3.0.0/16"), name("eth0"));
    far.target.source = Some(net("203.0.113.1/32").addr());
    want.insert_route(far);
    let report = inside(&namespace, |host| {
        let steps = plan(&host.observe(&want).unwrap(), &want).steps;
        host.apply(&steps).unwrap()
    });
    let failed: Vec<String> = report.failed.iter().map(|failed| failed.step.to_string()).collect();
    assert_eq!(
        failed,
        [
            "+ link fairlead1 vxlan id 2 dstport 8472 local 127.0.0.1 dev absent nolearning up",
            "~ sysctl net/ipv4/no_such_thing = 1 (was unreadable)",
            "+ route 10.3.0.0/16 dev eth0 src 203.0.113.1",
        ]
    );
    assert_eq!(report.skipped, 2, "the address on fairlead1 and the route through nowhere");
    let (done, possible) = (observe(&namespace, &want), cluster(2));
    assert_eq!(done.routes, possible.routes);
    assert_eq!(done.tables, possible.tables);
}

#[test]
fn five_thousand_peers_are_programmed_and_read_back() {
    let namespace = node();
    let want = cluster(5000);
    let started = std::time::Instant::now();
    reconcile(&namespace, &want);
    let made = started.elapsed();
    assert_settled(&namespace, &want);
    println!("5,000 peers of two families made in {made:?}, and read twice by {:?}", started.elapsed());
    let some = cluster(4990);
    // Of each peer that goes: two routes, one forwarding entry, two neighbours.
    assert_eq!(reconcile(&namespace, &some).steps.len(), 10 * 5);
    assert_settled(&namespace, &some);
    assert_ne!(reconcile(&namespace, &State::default()), Plan::default());
    assert_eq!(namespace.link_names(), ["eth0"]);
}
