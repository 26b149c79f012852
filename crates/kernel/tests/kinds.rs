//! Links that sit on others, and what has no parent: made by us in real namespaces and looked at with `ip`, and
//! made with `ip` and read by us. Where the kernel lacks a kind, its test says so.
#![allow(clippy::unwrap_used, reason = "a failure in a test's scaffolding is a failure of the test")]

use std::os::fd::AsFd;

use harness::{Namespace, not_run};
use kernel::link::{self, Change, Kind, NewKind, NewLink};
use kernel::link::{IpvlanIsolation, IpvlanMode, MacvlanMode, NewIpvlan, NewMacvlan, NewVlan, VlanProtocol};
use kernel::netlink::{Protocol, Socket};
use kernel::netns::Netns;
use netstate::Mac;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);

/// A host with an uplink, and a pod beside it.
struct Scene {
    host: Namespace,
    socket: Socket,
    uplink: u32,
    pod: Namespace,
    inside: Netns,
}

impl Scene {
    fn new() -> Self {
        let (host, pod) = (Namespace::new(), Namespace::new());
        host.ip("link add uplink type veth peer name far");
        let mut socket = Netns::open(host.path()).unwrap().socket(Protocol::Route).unwrap();
        let uplink = link::find(&mut socket, "uplink").unwrap().unwrap().index;
        let inside = Netns::open(pod.path()).unwrap();
        Self { host, socket, uplink, pod, inside }
    }

    /// Makes `eth0` in the pod; `false` when the kernel lacks its kind.
    fn make(&mut self, kind: NewKind<'_>) -> bool {
        let wanted =
            NewLink { mtu: Some(1400), namespace: Some(self.inside.as_fd()), ..NewLink::new("eth0", kind) };
        match self.socket.execute(link::create(&wanted)) {
            Err(error) if error.is_unsupported() => {
                not_run(&error.to_string());
                false
            }
            other => {
                other.unwrap();
                true
            }
        }
    }

    fn found(&self) -> link::Link {
        let mut socket = self.inside.socket(Protocol::Route).unwrap();
        link::find(&mut socket, "eth0").unwrap().unwrap()
    }

    fn info_data(&self) -> serde_json::Value {
        let shown = &self.pod.ip_json("link show eth0")[0];
        assert_eq!(shown["mtu"], 1400);
        shown["linkinfo"]["info_data"].clone()
    }
}

#[test]
fn a_macvlan_is_made_in_the_pod_on_the_hosts_uplink_in_every_mode() {
    for mode in [MacvlanMode::Bridge, MacvlanMode::Private, MacvlanMode::Vepa, MacvlanMode::Passthru] {
        let mut scene = Scene::new();
        let kind = NewMacvlan { parent: scene.uplink, mode, broadcast_queue_length: Some(4321) };
        if !scene.make(NewKind::Macvlan(kind)) {
            return;
        }
        let shown = scene.info_data();
        assert_eq!((&shown["mode"], &shown["bcqueuelen"]), (&mode.name().into(), &4321.into()));
        let found = scene.found();
        assert_eq!(found.kind, Kind::Macvlan { mode: Some(mode), broadcast_queue_length: 4321 });
        assert_eq!(found.parent, Some(scene.uplink));
        assert!(found.peer_namespace.is_some(), "the parent is elsewhere: {found:?}");
        assert!(!scene.host.link_names().contains(&"eth0".to_owned()));
    }
}

#[test]
fn an_ipvlan_is_made_in_the_pod_on_the_hosts_uplink_in_every_mode() {
    let isolations = [IpvlanIsolation::Bridge, IpvlanIsolation::Private, IpvlanIsolation::Vepa];
    for (mode, isolation) in [IpvlanMode::L2, IpvlanMode::L3, IpvlanMode::L3s].into_iter().zip(isolations) {
        let mut scene = Scene::new();
        if !scene.make(NewKind::Ipvlan(NewIpvlan { parent: scene.uplink, mode, isolation })) {
            return;
        }
        assert_eq!(scene.info_data()["mode"], mode.name());
        assert_eq!(scene.found().kind, Kind::Ipvlan { mode: Some(mode), isolation });
    }
}

#[test]
fn a_vlan_link_is_made_in_the_pod_and_its_identifier_is_taken_on_that_parent_then() {
    for (protocol, name) in [(VlanProtocol::Ieee8021Q, "802.1Q"), (VlanProtocol::Ieee8021Ad, "802.1ad")] {
        let mut scene = Scene::new();
        let kind = NewVlan { parent: scene.uplink, id: 33, protocol };
        if !scene.make(NewKind::Vlan(kind)) {
            return;
        }
        let shown = scene.info_data();
        assert_eq!((&shown["id"], &shown["protocol"]), (&33.into(), &name.into()));
        assert_eq!(scene.found().kind, Kind::Vlan { id: 33, protocol });
        let again = NewLink::new("other", NewKind::Vlan(kind));
        assert!(scene.socket.execute(link::create(&again)).unwrap_err().exists());
    }
}

#[test]
fn a_vrf_has_the_table_it_was_given_and_takes_ports() {
    let mut scene = Scene::new();
    if !scene.make(NewKind::Vrf(1001)) {
        return;
    }
    assert_eq!(scene.info_data()["table"], 1001);
    let vrf = scene.found();
    assert_eq!(vrf.kind, Kind::Vrf { table: 1001 });
    scene.pod.ip("link add port type veth peer name far");
    let mut socket = scene.inside.socket(Protocol::Route).unwrap();
    for (master, expected) in [(vrf.index, Some(vrf.index)), (0, None)] {
        let change = Change { master: Some(master), ..Change::default() };
        socket.execute(link::change("port", &change)).unwrap();
        assert_eq!(link::find(&mut socket, "port").unwrap().unwrap().master, expected);
    }
}

#[test]
fn kinds_without_settings_are_made_in_the_pod() {
    for kind in ["ifb", "dummy"] {
        let mut scene = Scene::new();
        if scene.make(NewKind::Plain(kind)) {
            assert_eq!(scene.found().kind, Kind::Other(kind.to_owned()));
        }
    }
}

#[test]
fn asking_for_a_kind_makes_nothing() {
    let mut scene = Scene::new();
    assert!(!link::is_supported(&mut scene.socket, "nosuchkind").unwrap());
    for (kind, arguments) in [
        ("veth", ""),
        ("bridge", ""),
        ("ifb", ""),
        ("dummy", ""),
        ("macvlan", "link uplink"),
        ("ipvlan", "link uplink"),
        ("vlan", "link uplink"),
        ("vrf", ""),
    ] {
        let before = scene.host.link_names();
        let supported = link::is_supported(&mut scene.socket, kind).unwrap();
        assert_eq!(scene.host.link_names(), before, "{kind}");
        let settings = match kind {
            "vlan" => "id 5",
            "vrf" => "table 5",
            _ => "",
        };
        let add = format!("link add {arguments} name probe type {kind} {settings}");
        let made = harness::run(scene.host.command("ip").args(add.split_whitespace()));
        assert_eq!(made.status.success(), supported, "{kind}: {made:?}");
        if supported {
            scene.host.ip("link del probe");
        }
    }
}

#[test]
fn a_link_moves_to_another_namespace_and_back_under_other_names() {
    let mut scene = Scene::new();
    scene.host.ip("link set uplink up");
    let change = Change {
        mac: Some(MAC),
        mtu: Some(1300),
        promiscuous: Some(true),
        all_multicast: Some(true),
        transmit_queue_length: Some(77),
        alias: Some("uplink"),
        ..Change::default()
    };
    scene.socket.execute(link::change(scene.uplink, &change)).unwrap();
    scene.socket.execute(link::relocate(scene.uplink, scene.inside.as_fd(), Some("eth0"))).unwrap();
    assert_eq!(scene.host.link_names(), ["far"]);
    let found = scene.found();
    assert!(!found.is_up() && found.is_promiscuous() && found.is_all_multicast());
    assert_eq!((found.mac, found.mtu, found.transmit_queue_length), (Some(MAC), 1300, 77));
    assert_eq!(found.alias.as_deref(), Some("uplink"));

    let home = Netns::open(scene.host.path()).unwrap();
    let mut socket = scene.inside.socket(Protocol::Route).unwrap();
    let clear = Change { alias: Some(""), all_multicast: Some(false), ..Change::default() };
    socket.execute(link::change("eth0", &clear)).unwrap();
    assert_eq!(scene.found().alias, None);
    assert!(!scene.found().is_all_multicast());
    socket.execute(link::relocate(found.index, home.as_fd(), None)).unwrap();
    assert_eq!(scene.host.link_names(), ["eth0", "far"]);
    assert_eq!(scene.pod.link_names(), Vec::<String>::new());
}

#[test]
fn a_move_to_a_taken_name_is_refused() {
    let mut scene = Scene::new();
    scene.pod.ip("link add eth0 type veth peer name uplink");
    let refused =
        scene.socket.execute(link::relocate(scene.uplink, scene.inside.as_fd(), Some("eth0"))).unwrap_err();
    assert!(refused.exists(), "{refused}");
    assert_eq!(scene.host.link_names(), ["far", "uplink"]);
}
