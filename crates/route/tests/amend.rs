//! A design that is brought up to date peer by peer is the one that is made anew: random walks through clusters of every
//! backend, with the whole computation as the oracle.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use cluster::{Backend, Change, Flannel, Key, Lease, Node, PublicKey, Snapshot, WireGuardKey};
use ipnet::IpNet;
use netstate::{SecretKey, diff};
use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::sample::select;
use route::vxlan::tunnel_mac;
use route::{
    Basis, Design, Family, Host, HostAddress, HostLink, InKernel, Inputs, Masquerade, Senders, Underlay,
    VxlanSettings, amend, design,
};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// What the lease of a node says; numbers that two nodes share are addresses that they share.
#[derive(Debug, Clone, Copy)]
struct Said {
    backend: u8,
    cidrs: u16,
    /// What it had before, if something.
    retained: Option<u16>,
    underlay: u16,
    /// Both families, the first, the second.
    families: u8,
    mtu: u32,
    member: bool,
    /// Which generations of WireGuard's keys it has, of [`GENERATIONS`].
    keys: usize,
}

/// What a node may have of keys: before a change, in it, and after it.
const GENERATIONS: [&[u32]; 5] = [&[0], &[0, 1], &[1, 0], &[1], &[1, 2]];

impl Said {
    fn of(node: u16) -> Self {
        Self {
            backend: 0,
            cidrs: node,
            retained: None,
            underlay: node,
            families: 0,
            mtu: 1450,
            member: false,
            keys: 0,
        }
    }
}

fn backend(number: u8, node: u16, key: u16, keys: usize) -> Backend {
    let [_, key] = key.to_be_bytes();
    let of_generation = |generation: u32| WireGuardKey {
        port: 51820 + u16::from(generation % 2 == 1),
        public_key: PublicKey([key.wrapping_add(u8::try_from(generation * 60).unwrap()); 32]),
        generation,
    };
    match number {
        0 => Backend::Vxlan { vni: 1, port: 8472, mac: tunnel_mac(&format!("node{node}")) },
        1 => Backend::HostGw,
        2 => Backend::Udp { port: 8285 },
        3 => Backend::Ipip,
        4 => Backend::WireGuard {
            key: of_generation(GENERATIONS[keys][0]),
            next: GENERATIONS[keys].get(1).copied().map(of_generation),
            strict: true,
        },
        5 => Backend::None,
        6 => match backend(4, node, u16::from(key), keys) {
            Backend::WireGuard { key, next, .. } => Backend::WireGuard { key, next, strict: false },
            other => other,
        },
        _ => Backend::Other("new".into()),
    }
}

fn lease(node: u16, said: Said) -> Lease {
    let Said { backend: number, cidrs, retained, underlay, families, mtu, member, keys } = said;
    let of = |number: u16| {
        [
            net(&format!("10.{}.{}.0/24", 240 + number / 256, number % 256)),
            net(&format!("fd00:10:244:{number:x}::/64")),
        ]
    };
    let kept = |net: &IpNet| families == 0 || net.addr().is_ipv4() == (families == 1);
    let pod_cidrs = of(cidrs).into_iter().chain(retained.into_iter().flat_map(of)).filter(kept).collect();
    let mac_over_ipv6 = (mtu == 1300).then(|| tunnel_mac(&format!("the other of node{node}")));
    // Nodes that have one key have the same numbers, but perhaps in different families.
    let backend = backend(number, node, cidrs, keys);
    Lease {
        node: format!("node{node}").into(),
        pod_cidrs,
        underlay: Box::new([
            IpAddr::from([198, 18, 0, u8::try_from(underlay % 250).unwrap()]),
            format!("fd00:198:18::{underlay:x}").parse().unwrap(),
        ]),
        backend,
        mtu,
        flannel: if member { Flannel::Member { mac_over_ipv6 } } else { Flannel::Apart },
    }
}

/// This node: its backend, whether it tells flannel, and what its kernel carries.
#[derive(Debug, Clone, Copy)]
struct Own {
    backend: u8,
    tells: bool,
    direct_routing: bool,
    in_kernel: bool,
    narrow: bool,
    keys: usize,
    sends_next: bool,
    /// What it had a moment ago, and so had node 3.
    before: Option<u8>,
}

impl Own {
    fn with_inputs<T>(&self, snapshot: &Snapshot, ask: impl FnOnce(&Inputs<'_>) -> T) -> T {
        let said = Said { backend: self.backend, keys: self.keys, ..Said::of(1) };
        let flannel = if self.tells { Flannel::Told } else { Flannel::Apart };
        let own = Lease { flannel, ..lease(1, said) };
        let underlay = |address: IpAddr| Underlay {
            link: "eth0".to_owned(),
            mtu: 1500,
            address,
            reason: "the only one",
        };
        let host = Host {
            links: vec![HostLink {
                name: "eth0".to_owned(),
                mtu: 1500,
                up: true,
                loopback: false,
                ours: false,
                accept_ra: None,
            }],
            addresses: ["198.18.0.1/25", "fd00:198:18::1/121"]
                .map(|address| HostAddress {
                    link: "eth0".to_owned(),
                    address: net(address),
                    global: true,
                    avoid: false,
                    permanent: true,
                })
                .into(),
            ..Host::default()
        };
        let keeps: Vec<Backend> =
            self.before.iter().map(|number| backend(*number, 1, 1, self.keys)).collect();
        let had = self.before.map(|number| ("node3".into(), vec![backend(number, 3, 3, self.keys)]));
        let narrow = BTreeMap::from([(IpAddr::from([198, 18, 0, 3]), 1300)]);
        ask(&Inputs {
            snapshot,
            lease: &own,
            sends: &own.backend,
            sends_next: self.sends_next,
            keeps: &keeps,
            former: &had.into_iter().collect(),
            underlay: &underlay(own.underlay[0]),
            underlays: &own.underlay.iter().map(|one| (Family::of(*one), underlay(*one))).collect(),
            carried: 1500,
            path_mtus: if self.narrow { &narrow } else { const { &BTreeMap::new() } },
            vxlan: VxlanSettings { vni: 1, port: 8472, direct_routing: self.direct_routing },
            kernel: InKernel {
                wireguard: [9, 10].map(|key| {
                    (self.in_kernel && matches!(self.backend, 4 | 6)).then(|| SecretKey::new([key; 32]))
                }),
                ipip: self.in_kernel,
            },
            udp_port: 8285,
            senders: Senders::default(),
            cluster: &[net("10.240.0.0/12"), net("fd00:10:244::/48")],
            masquerade: Masquerade { families: &Family::ALL, fully_random: true, exceptions: &[] },
            host: &Arc::new(host),
        })
    }
}

/// One thing that happens to a cluster.
#[derive(Debug, Clone, Copy)]
enum Event {
    Says(u16, Said),
    Joins(u16),
    Leaves(u16),
    LosesLease(u16),
    Changes(Own),
}

fn event() -> impl Strategy<Value = Event> {
    let node = || 1_u16..9;
    // Mostly a number of its own; now and then another node's.
    let number = |node: u16| prop_oneof![4 => 100_u16..120, 3 => select(vec![node]), 1 => 1_u16..9];
    let says = node().prop_flat_map(move |node| {
        let retained = prop_oneof![4 => select(vec![None]), 1 => (1_u16..12).prop_map(Some)];
        let mtu = select(vec![1450, 1300, 1500]);
        let families = prop_oneof![4 => select(vec![0_u8]), 1 => 1_u8..3];
        let member = proptest::bool::weighted(0.1);
        (0_u8..8, number(node), retained, number(node), families, mtu, member, 0..GENERATIONS.len()).prop_map(
            move |(backend, cidrs, retained, underlay, families, mtu, member, keys)| {
                Event::Says(node, Said { backend, cidrs, retained, underlay, families, mtu, member, keys })
            },
        )
    });
    prop_oneof![
        8 => says,
        3 => node().prop_map(Event::Joins),
        1 => node().prop_map(Event::Leaves),
        1 => node().prop_map(Event::LosesLease),
        1 => own().prop_map(Event::Changes),
    ]
}

fn own() -> impl Strategy<Value = Own> {
    let flags = any::<[bool; 5]>();
    let before = prop_oneof![4 => select(vec![None]), 1 => (0_u8..8).prop_map(Some)];
    (0_u8..7, flags, 0..GENERATIONS.len(), before).prop_map(
        |(backend, [tells, direct_routing, in_kernel, narrow, sends_next], keys, before)| Own {
            backend,
            tells,
            direct_routing,
            in_kernel,
            narrow,
            keys,
            sends_next,
            before,
        },
    )
}

fn happen(snapshot: &mut Snapshot, own: &mut Own, event: Event) {
    let name = |node: u16| format!("node{node}");
    match event {
        Event::Says(node, said) => drop(snapshot.apply(Change::Set(lease(node, said).into()))),
        Event::Joins(node) => {
            snapshot.apply(Change::Set(Node::named(name(node)).into()));
            snapshot.apply(Change::Set(lease(node, Said::of(node)).into()));
        }
        Event::Leaves(node) => drop(snapshot.apply(Change::Removed(Key::Node(name(node).into())))),
        Event::LosesLease(node) => drop(snapshot.apply(Change::Removed(Key::Lease(name(node).into())))),
        Event::Changes(other) => *own = other,
    }
}

/// Brings the design up to date as an agent does, and says whether that took no more than an amendment.
fn follow(known: &mut Option<(Design, Basis)>, own: &Own, snapshot: &Snapshot) -> bool {
    let before = known.as_ref().map(|(design, _)| design.clone());
    let amended = known
        .as_mut()
        .and_then(|(design, basis)| own.with_inputs(snapshot, |inputs| amend(design, basis, inputs)));
    let whole = own.with_inputs(snapshot, design);
    match (&amended, known.as_ref().zip(before)) {
        (Some(amendment), Some(((design, _), before))) => {
            assert_eq!(*design, whole, "the same as made anew");
            let steps = diff(&before.state, &whole.state);
            assert_eq!(diff(&amendment.before, &amendment.after), steps, "the same steps");
            let moved: Vec<_> = (before.peers.keys().chain(whole.peers.keys()))
                .filter(|node| before.peers.get(*node) != whole.peers.get(*node))
                .collect::<std::collections::BTreeSet<_>>()
                .into_iter()
                .cloned()
                .collect();
            assert_eq!(amendment.moved, moved);
        }
        (None, Some(((design, _), before))) => assert_eq!(*design, before, "untouched where it cannot tell"),
        _ => {}
    }
    if amended.is_none() {
        *known = Some((whole, own.with_inputs(snapshot, Basis::of)));
    }
    amended.is_some()
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(400))]

    #[test]
    fn after_any_history_an_amended_design_is_the_one_made_anew(
        mut own in own(), steps in proptest::collection::vec(proptest::collection::vec(event(), 1..4), 0..40),
    ) {
        let mut snapshot = Snapshot::default();
        (1..6).for_each(|node| happen(&mut snapshot, &mut own, Event::Joins(node)));
        let mut known = None;
        for events in steps {
            events.into_iter().for_each(|event| happen(&mut snapshot, &mut own, event));
            follow(&mut known, &own, &snapshot);
        }
    }

    #[test]
    fn a_peer_that_has_nothing_in_common_with_another_is_amended_whatever_the_backend(
        backend in select(vec![0_u8, 1, 2, 3, 4, 6]), in_kernel in any::<bool>(), mtu in select(vec![1300_u32, 1450]),
        // The node's own address, number 1, and those of nodes 2 to 5 are taken.
        (cidrs, underlay) in (20_u16..90, 20_u16..90),
    ) {
        let own = Own { backend, tells: false, direct_routing: false, in_kernel, narrow: false, keys: 0, sends_next: false, before: None };
        let mut snapshot = Snapshot::default();
        for node in 1..=5 {
            snapshot.apply(Change::Set(Node::named(format!("node{node}")).into()));
            snapshot.apply(Change::Set(lease(node, Said { backend, ..Said::of(node) }).into()));
        }
        let mut known = None;
        follow(&mut known, &own, &snapshot);
        let said = Said { backend, cidrs, underlay, mtu, ..Said::of(3) };
        snapshot.apply(Change::Set(lease(3, said).into()));
        prop_assert!(follow(&mut known, &own, &snapshot), "a change");
        snapshot.apply(Change::Removed(Key::Node("node4".into())));
        prop_assert!(follow(&mut known, &own, &snapshot), "one that leaves");
        snapshot.apply(Change::Set(Node::named("node4").into()));
        prop_assert!(follow(&mut known, &own, &snapshot), "one that joins");
        let (design, _) = known.unwrap();
        prop_assert_eq!(design.peers.len(), 4);
    }
}

#[test]
fn a_peer_that_comes_to_have_anothers_key_is_for_the_whole_computation() {
    let own = Own {
        backend: 4,
        tells: false,
        direct_routing: false,
        in_kernel: true,
        narrow: false,
        keys: 0,
        sends_next: false,
        before: None,
    };
    let mut snapshot = Snapshot::default();
    let mut put = |node: u16, families: u8, key: u16| {
        let said = Said { backend: 4, families, cidrs: key, ..Said::of(node) };
        snapshot.apply(Change::Set(Node::named(format!("node{node}")).into()));
        snapshot.apply(Change::Set(lease(node, said).into()));
        snapshot.clone()
    };
    let (mut known, snapshot) = (None, [put(2, 1, 30), put(3, 2, 31), put(3, 2, 30)]);
    follow(&mut known, &own, &snapshot[0]);
    assert!(follow(&mut known, &own, &snapshot[1]), "another key");
    assert!(!follow(&mut known, &own, &snapshot[2]), "the same");
}
