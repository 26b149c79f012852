//! A node in a namespace, and states that a real node would have.

use std::net::IpAddr;

use harness::Namespace;
use ipnet::IpNet;
use kernel::Host;
use kernel::netns::Netns;
use netstate::nft::{
    BaseChain, Chain, ChainKind, Family, Field, Hook, IpVersion, KeyType, Policy, Rule, Set, Statement,
    Table, Value, priority,
};
use netstate::pool::{Pool, base_address, host};
use netstate::{
    Address, FdbEntry, Link, LinkKind, LinkName, Mac, Neighbour, Plan, PolicyRule, Route, State, Vxlan, plan,
};

/// A namespace with an underlay: `eth0` (a bridge, which every kernel has) with an address.
pub(crate) fn node() -> Namespace {
    let namespace = Namespace::with_loopback();
    namespace.ip("link add eth0 type bridge");
    namespace.ip("link set eth0 up");
    namespace.ip("addr add 192.0.2.1/24 dev eth0 nodad");
    namespace
}

pub(crate) fn inside<T: Send>(namespace: &Namespace, work: impl FnOnce(&mut Host) -> T + Send) -> T {
    Netns::open(namespace.path()).unwrap().run(|| work(&mut Host::open().unwrap())).unwrap()
}

/// Observes, applies, and returns what was planned. Everything must succeed.
pub(crate) fn reconcile(namespace: &Namespace, want: &State) -> Plan {
    inside(namespace, |host| {
        let plan = plan(&host.observe(want).unwrap(), want);
        let report = host.apply(&plan.steps).unwrap();
        assert!(report.is_success(), "{report:?}");
        plan
    })
}

/// What is ours in the namespace.
pub(crate) fn observe(namespace: &Namespace, want: &State) -> State {
    inside(namespace, |host| host.observe(want).unwrap().state)
}

/// The two are equal; if not, only the lines that differ are shown.
pub(crate) fn assert_is(have: &State, want: &State, when: &str) {
    if have == want {
        return;
    }
    let (have, want) = (have.to_string(), want.to_string());
    let only = |these: &str, those: &str| {
        let lines = these.lines().filter(|line| !those.lines().any(|other| other == *line)).take(9);
        lines.collect::<Vec<_>>().join("\n")
    };
    panic!("{when}\nthere is\n{}\ninstead of\n{}", only(&have, &want), only(&want, &have));
}

/// The node is as wanted, and a second look finds nothing to do.
pub(crate) fn assert_settled(namespace: &Namespace, want: &State) {
    assert_is(&observe(namespace, want), want, "settled");
    assert_eq!(reconcile(namespace, want), Plan::default());
}

pub(crate) fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn tunnel() -> Link {
    let local = IpAddr::from([192, 0, 2, 1]);
    let vxlan = Vxlan { vni: 1, port: 8472, local, parent: Some(name("eth0")) };
    let mac = Mac([2, 0, 0, 0, 0, 1]);
    Link { name: name("fairlead0"), kind: LinkKind::Vxlan(vxlan), mtu: Some(1450), mac: Some(mac), up: true }
}

/// A node of both families with this many peers, all that a real one has.
pub(crate) fn cluster(peers: u32) -> State {
    let link = name("fairlead0");
    let pools =
        [Pool::new(net("10.128.0.0/10"), 26).unwrap(), Pool::new(net("fd00:10:244::/48"), 64).unwrap()];
    let mut state = State::default();
    state.insert_link(tunnel());
    state.insert_sysctl("net/ipv4/ip_forward", "1");
    state.insert_sysctl("net/ipv6/conf/fairlead0/accept_ra", "0");
    for (metric, pool) in (65_000..).zip(&pools) {
        let own = pool.network(0).unwrap();
        state.insert_address(Address { link, net: host(base_address(own)) });
        let mut unused = Route::blackhole(own);
        unused.key.metric = metric;
        state.insert_route(unused);
    }
    for peer in 1..=peers {
        let [_, _, high, low] = peer.to_be_bytes();
        let mac = Mac([2, 0, 0, 1, high, low]);
        state.insert_fdb(FdbEntry { link, mac, destination: IpAddr::from([192, 0, high, low]) });
        for pool in &pools {
            let network = pool.network(peer.into()).unwrap();
            state.insert_neighbour(Neighbour { link, address: base_address(network), mac });
            state.insert_route(Route::via_onlink(network, base_address(network), link));
        }
    }
    state.insert_table(masquerade());
    for v6 in [false, true] {
        let mark = Some((1, 0xff));
        state.insert_rule(PolicyRule { priority: 7600, v6, from: None, to: None, mark, table: 7600 });
    }
    state
}

fn masquerade() -> Table {
    let base = BaseChain {
        kind: ChainKind::Nat,
        hook: Hook::Postrouting,
        priority: priority::SRCNAT,
        policy: Policy::Accept,
    };
    let rule = Rule::new([
        Statement::in_set([Field::Source(IpVersion::V4)], "cluster"),
        Statement::not_in_set([Field::Destination(IpVersion::V4)], "cluster"),
        Statement::Masquerade { fully_random: true },
    ]);
    let cluster = Set::interval("cluster", [KeyType::Ipv4]);
    Table::new(Family::Inet, "fairlead")
        .with_set(cluster.with_element([Value::Network(net("10.128.0.0/10"))], None))
        .with_chain(Chain::base("postrouting", base).with_rule(rule))
}
