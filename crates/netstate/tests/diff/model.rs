//! A model of the kernel that is as strict as the kernel about order, and states to try it with.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use netstate::nft::{
    self, BaseChain, Chain, ChainKind, Element, Family, Field, Hook, IpVersion, KeyType, Policy, Rule, Set,
    Statement, Table, Value, Verdict,
};
use netstate::{
    Address, FdbEntry, IpTunnel, Link, LinkKind, LinkName, Mac, Neighbour, PolicyRule, PublicKey, Route,
    RouteKey, SecretKey, State, Step, Vxlan, WireGuard, WireGuardPeer, WireGuardPeerKey,
};
use proptest::prelude::*;

pub(crate) struct Model {
    pub(crate) state: State,
}

impl Model {
    pub(crate) fn new(state: State) -> Self {
        Self { state }
    }

    pub(crate) fn carry_out(&mut self, step: &Step) {
        let state = &mut self.state;
        match step {
            Step::CreateLink(link) => {
                assert!(state.links.insert(link.name, link.clone()).is_none(), "{step}")
            }
            Step::ChangeLink { from, to } => {
                assert_eq!(state.links.insert(to.name, to.clone()).as_ref(), Some(from), "{step}");
            }
            Step::DeleteLink(name) => self.delete_link(*name),
            Step::SetSysctl { path, value, was } => {
                assert_eq!(state.sysctls.insert(path.clone(), value.clone()), *was, "{step}");
            }
            Step::AddAddress(address) => assert!(state.addresses.insert(*address), "{step}"),
            Step::DeleteAddress(address) => assert!(state.addresses.remove(address), "{step}"),
            Step::SetWireGuard { link, device, was } => {
                assert_eq!(state.links[link].kind, LinkKind::WireGuard, "{step}");
                assert_eq!(state.wireguards.insert(*link, *device), *was, "{step}");
            }
            Step::SetWireGuardPeer { key, peer, .. } => {
                assert!(state.wireguards.contains_key(&key.link), "{step}");
                // A network has one peer: who is given it takes it from the other.
                let others = state.wireguard_peers.iter_mut().filter(|(other, _)| other.link == key.link);
                others.for_each(|(_, other)| other.allowed_ips.retain(|net| !peer.allowed_ips.contains(net)));
                state.wireguard_peers.insert(*key, peer.clone());
            }
            Step::DeleteWireGuardPeer(key) => {
                assert!(state.wireguard_peers.remove(key).is_some(), "{step}");
            }
            Step::SetNeighbour { neighbour, was } => {
                assert_eq!(state.neighbours.insert(neighbour.key(), neighbour.mac), *was, "{step}");
            }
            Step::DeleteNeighbour(old) => {
                assert_eq!(state.neighbours.remove(&old.key()), Some(old.mac), "{step}");
            }
            Step::SetFdb { entry, was } => {
                assert_eq!(state.fdb.insert(entry.key(), entry.destination), *was, "{step}");
            }
            Step::DeleteFdb(old) => assert_eq!(state.fdb.remove(&old.key()), Some(old.destination), "{step}"),
            Step::SetRoute { route, was } => {
                assert_eq!(state.routes.insert(route.key, route.target), *was, "{step}");
            }
            Step::DeleteRoute(old) => assert_eq!(state.routes.remove(&old.key), Some(old.target), "{step}"),
            Step::AddRule(rule) => assert!(state.rules.insert(*rule), "{step}"),
            Step::DeleteRule(rule) => assert!(state.rules.remove(rule), "{step}"),
            Step::Nft(step) => self.carry_out_nft(step),
        }
    }

    fn delete_link(&mut self, name: LinkName) {
        let state = &mut self.state;
        assert!(state.links.remove(&name).is_some(), "link {name} is there to be deleted");
        state.addresses.retain(|address| address.link != name);
        state.wireguards.remove(&name);
        state.wireguard_peers.retain(|key, _| key.link != name);
        state.neighbours.retain(|key, _| key.link != name);
        state.fdb.retain(|key, _| key.link != name);
        state.routes.retain(|_, target| target.link != Some(name));
        state.sysctls.retain(|path, _| !path.split('/').any(|part| part == name.as_str()));
    }

    fn carry_out_nft(&mut self, step: &nft::Step) {
        let tables = &mut self.state.tables;
        if let nft::Step::AddTable(key) = step {
            let old = tables.insert(key.clone(), Table::new(key.family, key.name.clone()));
            assert!(old.is_none(), "{step}");
            return;
        }
        let table = tables.get_mut(step.table()).unwrap_or_else(|| panic!("no table for {step}"));
        match step {
            nft::Step::AddTable(_) => {}
            nft::Step::DeleteTable(key) => assert!(tables.remove(key).is_some()),
            nft::Step::AddSet(_, set) => {
                assert!(set.elements.is_empty());
                assert!(table.sets.insert(set.name.clone(), set.clone()).is_none(), "{step}");
            }
            nft::Step::DeleteSet(_, name) => {
                assert!(!names(table).contains(name), "{step}: a rule still names it");
                assert!(table.sets.remove(name).is_some(), "{step}");
            }
            nft::Step::AddElements(_, name, elements) => {
                let chains = &table.chains;
                let led = elements.values().filter_map(led_to);
                led.for_each(|chain| assert!(chains.contains_key(&chain), "{step}: no {chain}"));
                let set = table.sets.get_mut(name).unwrap_or_else(|| panic!("{step}"));
                for (key, element) in elements {
                    assert!(set.elements.insert(key.clone(), element.clone()).is_none(), "{step}");
                }
            }
            nft::Step::DeleteElements(_, name, keys) => {
                let set = table.sets.get_mut(name).unwrap_or_else(|| panic!("{step}"));
                keys.iter().for_each(|key| assert!(set.elements.remove(key).is_some(), "{step}"));
            }
            nft::Step::AddChain(_, chain) => {
                assert!(chain.rules.is_empty());
                assert!(table.chains.insert(chain.name.clone(), chain.clone()).is_none(), "{step}");
            }
            nft::Step::DeleteChain(_, name) => {
                assert!(!names(table).contains(name), "{step}: a rule still jumps to it");
                let old = table.chains.remove(name).unwrap_or_else(|| panic!("{step}"));
                assert!(old.rules.is_empty(), "{step}: it still has rules");
            }
            nft::Step::FlushChain(_, name) => table.chains.get_mut(name).unwrap().rules.clear(),
            nft::Step::AddRule(_, name, rule) => {
                for needed in rule_names(rule) {
                    let known = table.sets.contains_key(&needed) || table.chains.contains_key(&needed);
                    assert!(known, "{step}: no {needed}");
                }
                table.chains.get_mut(name).unwrap_or_else(|| panic!("{step}")).rules.push(rule.clone());
            }
        }
    }
}

fn names(table: &Table) -> Vec<String> {
    let of_rules = table.chains.values().flat_map(|chain| &chain.rules).flat_map(rule_names);
    of_rules.chain(table.sets.values().flat_map(|set| set.elements.values()).filter_map(led_to)).collect()
}

/// The chain that an element of a verdict map leads to.
fn led_to(element: &Element) -> Option<String> {
    match &element.verdict {
        Some(Verdict::Jump(chain) | Verdict::Goto(chain)) => Some(chain.clone()),
        _ => None,
    }
}

fn rule_names(rule: &Rule) -> Vec<String> {
    let name = |statement: &Statement| match statement {
        Statement::Lookup { set, .. } => Some(set.clone()),
        Statement::Dnat { map, .. } | Statement::VerdictMap { map, .. } => Some(map.clone()),
        Statement::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) => Some(chain.clone()),
        _ => None,
    };
    rule.statements.iter().filter_map(name).collect()
}

pub(crate) fn links() -> [LinkName; 3] {
    ["fairlead0", "fairlead1", "eth0"].map(|name| name.parse().unwrap())
}

fn v4(number: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new(Ipv4Addr::new(10, 244, number, 0), 24).unwrap())
}

/// A state with one tunnel and one peer behind it.
pub(crate) fn peer(tunnel: &str, number: u8, mac: u8, underlay: &str) -> State {
    let link: LinkName = tunnel.parse().unwrap();
    let mac = Mac([2, 0, 0, 0, 0, mac]);
    let mut state = State::default();
    state.insert_link(tunnel_link(link, 1));
    let base = v4(number).network();
    state.insert_neighbour(Neighbour { link, address: base, mac });
    state.insert_fdb(FdbEntry { link, mac, destination: underlay.parse().unwrap() });
    state.insert_route(Route::via_onlink(v4(number), base, link));
    state
}

/// A state with a WireGuard device and these peers, each with a number and its endpoint.
pub(crate) fn encrypted(peers: &[(u8, &str)]) -> State {
    let [link, ..] = links();
    let mut state = State::default();
    state.insert_link(Link { name: link, kind: LinkKind::WireGuard, mtu: Some(1420), mac: None, up: true });
    state.insert_wireguard(link, WireGuard { private_key: SecretKey::new([1; 32]), port: 51820 });
    for (number, endpoint) in peers {
        let peer = WireGuardPeer {
            endpoint: Some(endpoint.parse().unwrap()),
            allowed_ips: [v4(*number)].into(),
            keepalive: None,
        };
        state.insert_wireguard_peer(WireGuardPeerKey { link, public_key: PublicKey([*number; 32]) }, peer);
    }
    state
}

fn tunnel_link(name: LinkName, vni: u32) -> Link {
    let vxlan = Vxlan { vni, port: 8472, local: IpAddr::from([192, 0, 2, 1]), parent: None };
    Link { name, kind: LinkKind::Vxlan(vxlan), mtu: Some(1450), mac: Some(Mac([2, 0, 0, 0, 0, 1])), up: true }
}

fn any_name() -> impl Strategy<Value = LinkName> {
    prop::sample::select(links().to_vec())
}

fn any_mac() -> impl Strategy<Value = Mac> {
    (0..4_u8).prop_map(|last| Mac([2, 0, 0, 0, 0, last]))
}

fn any_underlay() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0..3_u8).prop_map(|last| IpAddr::from([192, 0, 2, last])),
        (0..3_u16).prop_map(|last| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last])),
    ]
}

fn any_net() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (0..4_u8).prop_map(v4),
        (0..4_u8).prop_map(|number| format!("fd00:10:244:{number}::/64").parse().unwrap()),
    ]
}

fn any_link() -> impl Strategy<Value = Link> {
    let mtu = prop::sample::select(vec![1400, 1450]);
    (any_name(), 0..6_u32, mtu, any_mac(), any::<bool>()).prop_map(|(name, which, mtu, mac, up)| {
        let kind = match which {
            0 => LinkKind::Bridge,
            1 => LinkKind::WireGuard,
            2 | 3 => LinkKind::IpTunnel(IpTunnel { v6: which == 3, local: Ipv4Addr::new(192, 0, 2, 1) }),
            vni => tunnel_link(name, vni).kind,
        };
        Link { name, kind, mtu: Some(mtu), mac: Some(mac), up }
    })
}

/// Whom a WireGuard device speaks with: each network has one peer.
fn any_peers() -> impl Strategy<Value = Vec<(PublicKey, WireGuardPeer)>> {
    let owners = prop::collection::btree_map(any_net(), 0..3_u8, 0..4);
    (owners, prop::collection::btree_map(0..3_u8, 1..3_u16, 0..3)).prop_map(|(owners, ports)| {
        let peer = |(number, port): (u8, u16)| {
            let endpoint = (IpAddr::from([192, 0, 2, number]), port).into();
            let theirs = owners.iter().filter(|(_, owner)| **owner == number).map(|(net, _)| *net);
            let keepalive = (port == 1).then_some(25);
            (
                PublicKey([number; 32]),
                WireGuardPeer { endpoint: Some(endpoint), allowed_ips: theirs.collect(), keepalive },
            )
        };
        ports.into_iter().map(peer).collect()
    })
}

fn any_route() -> impl Strategy<Value = Route> {
    (any_net(), any_name(), 0..3_u8, prop::option::of(any_net()), 0..2_u32, any::<bool>()).prop_map(
        |(net, link, kind, via, metric, main)| {
            let mut route = match (kind, via) {
                (0, _) => Route::blackhole(net),
                (1, Some(via)) => Route::via_onlink(net, via.network(), link),
                _ => Route::on_link(net, link),
            };
            route.key = RouteKey { metric, table: if main { 254 } else { 100 }, ..route.key };
            route
        },
    )
}

fn any_rule() -> impl Strategy<Value = PolicyRule> {
    (7600..7604_u32, any::<bool>(), any::<bool>()).prop_map(|(priority, v6, marked)| PolicyRule {
        priority,
        v6,
        from: None,
        to: None,
        mark: marked.then_some((1, 1)),
        table: 100,
    })
}

fn any_set() -> impl Strategy<Value = Set> {
    let elements = prop::collection::btree_map(any_net(), prop::option::of("[ab]"), 0..4);
    (0..3_u8, 0..3_u8, elements).prop_map(|(name, kind, elements)| {
        let interval = kind == 1;
        let data = if kind == 2 { vec![KeyType::Port] } else { Vec::new() };
        let mut set = Set { interval, data, ..Set::new(format!("s{name}"), [KeyType::Ipv4]) };
        for (net, comment) in elements {
            let value = if interval { Value::Network(net) } else { Value::Address(net.network()) };
            let data = if kind == 2 { vec![Value::Port(net.prefix_len().into())] } else { Vec::new() };
            set.elements.insert(vec![value], Element { comment, data, verdict: None });
        }
        set
    })
}

/// A table whose rules name only sets and chains that it has.
fn any_table() -> impl Strategy<Value = Table> {
    let sets = prop::collection::vec(any_set(), 0..3);
    let rules = prop::collection::vec((any_net(), any::<bool>()), 0..3);
    let chains = prop::collection::vec((0..3_u8, prop::option::of(0..2_i32), rules), 0..3);
    (0..2_u8, sets, chains).prop_map(|(number, sets, chains)| {
        let mut table = Table::new(Family::Inet, format!("fairlead-{number}"));
        for set in sets {
            table = table.with_set(set);
        }
        let names: Vec<String> = chains.iter().map(|(name, ..)| format!("c{name}")).collect();
        for (name, base, rules) in chains {
            let base = base.map(|priority| BaseChain {
                kind: ChainKind::Filter,
                hook: Hook::Forward,
                priority,
                policy: Policy::Accept,
            });
            let mut chain = Chain { base, ..Chain::regular(format!("c{name}")) };
            for (net, jump) in rules {
                let set = table.sets.keys().next().cloned();
                let mut statements = vec![Statement::source_in(net)];
                statements.extend(set.map(|set| Statement::in_set([Field::Destination(IpVersion::V4)], set)));
                let verdict = if jump { Verdict::Jump(names[0].clone()) } else { Verdict::Accept };
                statements.push(Statement::Verdict(verdict));
                chain.rules.push(Rule::new(statements));
            }
            table = table.with_chain(chain);
        }
        let mut ways = Set::verdict_map("ways", [KeyType::Ipv4]);
        for (number, name) in (0..).zip(names) {
            let address = Value::Address(Ipv4Addr::new(10, 0, 0, number).into());
            ways.elements.insert(vec![address], Element::leading_to(Verdict::Jump(name)));
        }
        table.with_set(ways)
    })
}

/// Leaves out what would stand on a link of ours that the state does not have: nobody can want that.
fn without_orphans(mut state: State) -> State {
    let [first, second, foreign] = links();
    let missing: Vec<LinkName> =
        [first, second].into_iter().filter(|name| !state.links.contains_key(name)).collect();
    state.links.remove(&foreign);
    state.addresses.retain(|address| !missing.contains(&address.link));
    state.wireguard_peers.retain(|key, _| state.wireguards.contains_key(&key.link));
    state.neighbours.retain(|key, _| !missing.contains(&key.link));
    state.fdb.retain(|key, _| !missing.contains(&key.link));
    state.routes.retain(|_, target| target.link.is_none_or(|link| !missing.contains(&link)));
    state.sysctls.retain(|path, _| !missing.iter().any(|name| path.contains(name.as_str())));
    state
}

/// Small states from a small world, so that two of them share and contradict each other a lot.
pub(crate) fn state() -> impl Strategy<Value = State> {
    let few = 0..5;
    let sysctl = prop::sample::select(vec!["net/ipv4/ip_forward", "net/ipv6/conf/fairlead0/accept_ra"]);
    (
        (prop::collection::vec(any_link(), 0..3), 1..3_u16, any_peers()),
        prop::collection::vec((any_name(), any_net()), few.clone()),
        prop::collection::vec((any_name(), any_net(), any_mac()), few.clone()),
        prop::collection::vec((any_name(), any_mac(), any_underlay()), few.clone()),
        prop::collection::vec(any_route(), few.clone()),
        prop::collection::vec(any_rule(), few.clone()),
        prop::collection::vec(any_table(), 0..3),
        prop::collection::vec((sysctl, "[01]"), 0..3),
    )
        .prop_map(|(links, addresses, neighbours, fdb, routes, rules, tables, sysctls)| {
            let mut state = State::default();
            let (links, port, peers) = links;
            links.into_iter().for_each(|link| state.insert_link(link));
            state.links.remove(&self::links()[2]);
            let encrypting = state.links.values().filter(|link| link.kind == LinkKind::WireGuard);
            for link in encrypting.map(|link| link.name).collect::<Vec<_>>() {
                let private_key = SecretKey::new([port as u8; 32]);
                state.insert_wireguard(link, WireGuard { private_key, port });
                for (public_key, peer) in &peers {
                    state.insert_wireguard_peer(
                        WireGuardPeerKey { link, public_key: *public_key },
                        peer.clone(),
                    );
                }
            }
            addresses.into_iter().for_each(|(link, net)| state.insert_address(Address { link, net }));
            for (link, net, mac) in neighbours {
                state.insert_neighbour(Neighbour { link, address: net.network(), mac });
            }
            for (link, mac, destination) in fdb {
                state.insert_fdb(FdbEntry { link, mac, destination });
            }
            routes.into_iter().for_each(|route| state.insert_route(route));
            rules.into_iter().for_each(|rule| state.insert_rule(rule));
            tables.into_iter().for_each(|table| state.insert_table(table));
            sysctls.into_iter().for_each(|(path, value)| state.insert_sysctl(path, value));
            without_orphans(state)
        })
}
