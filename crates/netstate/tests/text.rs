//! The canonical text, by example.
#![allow(clippy::unwrap_used, reason = "a failure here is a failure of the test")]

use netstate::nft::{
    BaseChain, Chain, ChainKind, Family, Field, Hook, IpVersion, KeyType, Policy, Rule, Set, Statement,
    Table, Value, Verdict, priority,
};
use netstate::{
    Address, Conflict, FdbEntry, ForeignLink, ForeignRoute, Link, LinkKind, LinkName, Mac, Neighbour,
    PolicyRule, Route, State, Step, Vxlan, diff,
};

fn node() -> State {
    let link: LinkName = "fairlead0".parse().unwrap();
    let mac = Mac([2, 0, 0, 0, 0, 2]);
    let base = "10.244.2.0".parse().unwrap();
    let vxlan = Vxlan {
        vni: 1,
        port: 8472,
        local: "192.0.2.1".parse().unwrap(),
        parent: Some("eth0".parse().unwrap()),
    };
    let mut state = State::default();
    state.insert_link(Link {
        name: link,
        kind: LinkKind::Vxlan(vxlan),
        mtu: Some(1450),
        mac: Some(mac),
        up: true,
    });
    state.insert_sysctl("net/ipv4/ip_forward", "1");
    state.insert_address(Address { link, net: "10.244.1.0/32".parse().unwrap() });
    state.insert_neighbour(Neighbour { link, address: base, mac });
    state.insert_fdb(FdbEntry { link, mac, destination: "192.0.2.2".parse().unwrap() });
    state.insert_route(Route::via_onlink("10.244.2.0/24".parse().unwrap(), base, link));
    state.insert_route(Route::blackhole("10.244.1.0/24".parse().unwrap()));
    state.insert_rule(PolicyRule {
        priority: 7600,
        v6: false,
        from: None,
        to: None,
        mark: Some((1, 0xff)),
        table: 100,
    });
    let postrouting = BaseChain {
        kind: ChainKind::Nat,
        hook: Hook::Postrouting,
        priority: priority::SRCNAT,
        policy: Policy::Accept,
    };
    let leaving = Rule::new([
        Statement::in_set([Field::Source(IpVersion::V4)], "cluster"),
        Statement::not_in_set([Field::Destination(IpVersion::V4)], "cluster"),
        Statement::Masquerade { fully_random: true },
    ]);
    state.insert_table(
        Table::new(Family::Inet, "fairlead")
            .with_set(
                Set::interval("cluster", [KeyType::Ipv4])
                    .with_element([Value::Network("10.244.0.0/16".parse().unwrap())], Some("pods")),
            )
            .with_chain(
                Chain::base("postrouting", postrouting)
                    .with_rule(leaving.with_comment("leaving the cluster"))
                    .with_rule(Rule::new([Statement::ct_state(2), Statement::Verdict(Verdict::Accept)])),
            ),
    );
    state
}

#[test]
fn a_state_reads_like_the_tools_that_would_show_it() {
    let expected = "\
link fairlead0 vxlan id 1 dstport 8472 local 192.0.2.1 dev eth0 nolearning mtu 1450 address 02:00:00:00:00:02 up
sysctl net/ipv4/ip_forward = 1
address 10.244.1.0/32 dev fairlead0
neighbour 10.244.2.0 lladdr 02:00:00:00:00:02 dev fairlead0
fdb 02:00:00:00:00:02 dst 192.0.2.2 dev fairlead0
route blackhole 10.244.1.0/24
route 10.244.2.0/24 via 10.244.2.0 dev fairlead0 onlink
rule 7600: from all fwmark 0x1/0xff lookup 100
table inet fairlead
  set cluster type ipv4_addr flags interval
    10.244.0.0/16 comment \"pods\"
  chain postrouting type nat hook postrouting priority 100 policy accept
    ip saddr @cluster ip daddr != @cluster masquerade fully-random comment \"leaving the cluster\"
    ct state & 0x2 != 0x0 accept
";
    assert_eq!(node().to_string(), expected);
}

#[test]
fn a_plan_says_what_is_made_changed_and_removed() {
    let mut want = node();
    let link: LinkName = "fairlead0".parse().unwrap();
    want.links.get_mut(&link).unwrap().mtu = Some(1400);
    want.sysctls.insert("net/ipv4/ip_forward".into(), "0".into());
    want.routes.clear();
    let mut direct = Route::via_onlink("10.244.2.0/24".parse().unwrap(), "192.0.2.2".parse().unwrap(), link);
    direct.target.onlink = false;
    want.insert_route(direct);
    want.tables.clear();
    let steps: Vec<String> = diff(&node(), &want).iter().map(Step::to_string).collect();
    assert_eq!(
        steps,
        [
            "~ link fairlead0 vxlan id 1 dstport 8472 local 192.0.2.1 dev eth0 nolearning mtu 1400 address \
             02:00:00:00:00:02 up (was mtu 1450 address 02:00:00:00:00:02 up)",
            "~ sysctl net/ipv4/ip_forward = 0 (was 1)",
            "~ route 10.244.2.0/24 via 192.0.2.2 dev fairlead0 (was via 10.244.2.0 dev fairlead0 onlink)",
            "- table inet fairlead",
            "- route blackhole 10.244.1.0/24",
        ]
    );
}

#[test]
fn a_conflict_says_what_is_in_the_way_and_what_to_do() {
    let link = ForeignLink { name: "fairlead0".parse().unwrap(), kind: "vxlan".into() };
    let text = Conflict::Link(link).to_string();
    assert!(
        text.starts_with("! link fairlead0 is a vxlan that is not ours") && text.contains("hint: "),
        "{text}"
    );
    let route = Route::on_link("10.244.2.0/24".parse().unwrap(), "eth0".parse().unwrap());
    let text = Conflict::Route(ForeignRoute { route, protocol: 4 }).to_string();
    assert!(
        text.starts_with("! route 10.244.2.0/24 dev eth0 of protocol 4 is in the place of ours"),
        "{text}"
    );
}
