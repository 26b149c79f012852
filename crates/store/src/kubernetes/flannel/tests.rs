//! What flannel writes is read, however its JSON is laid out, and what it reads is written.

use cluster::{Backend, Flannel, Key, Lease, MacAddress, Object, PublicKey};
use serde_json::{Value, json};

use super::{told, untold};
use crate::flannel::ANY_MTU;
use crate::kubernetes::form::item;
use crate::kubernetes::resource::Resource;
use crate::mirror::Item;

const PREFIX: &str = "flannel.alpha.coreos.com/";

/// A Node as flannel leaves it, with these annotations of it besides or instead.
fn node(annotations: &[(&str, &str)]) -> Value {
    let mut node = json!({
        "metadata": {"name": "node1", "uid": "u1", "resourceVersion": "42", "annotations": {"other.io/x": "y"}},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"]},
    });
    let left = [
        ("kube-subnet-manager", "true"),
        ("backend-type", "vxlan"),
        ("backend-data", r#"{"VNI":1,"VtepMAC":"ba:1d:00:00:00:01"}"#),
        ("public-ip", "198.18.0.1"),
    ];
    for (key, text) in left.iter().chain(annotations) {
        node["metadata"]["annotations"][format!("{PREFIX}{key}")] = (*text).into();
    }
    node
}

/// What flannel adds where it has both families.
const OVER_IPV6: [(&str, &str); 2] =
    [("backend-v6-data", r#"{"VNI":1,"VtepMAC":"ba:1d:00:00:00:06"}"#), ("public-ipv6", "fd00:198:18::1")];

fn read(node: &Value) -> Item {
    item(Resource::Nodes, node.to_string().as_bytes()).unwrap()
}

fn lease(node: &Value) -> Lease {
    let item = read(node);
    assert_eq!(item.faults, []);
    let [Object::Node(_), Object::Lease(lease)] = &item.objects[..] else { panic!("{item:?}") };
    (**lease).clone()
}

fn vxlan(vni: u32) -> Backend {
    Backend::Vxlan { vni, port: 8472, mac: MacAddress([0xba, 0x1d, 0, 0, 0, 1]) }
}

#[test]
fn a_node_of_flannel_is_a_peer_by_ipv4() {
    let want = Lease {
        node: "node1".into(),
        pod_cidrs: ["10.244.1.0/24".parse().unwrap()].into(),
        underlay: ["198.18.0.1".parse().unwrap()].into(),
        backend: vxlan(1),
        mtu: ANY_MTU,
        flannel: Flannel::Member { mac_over_ipv6: None },
    };
    assert_eq!(lease(&node(&[])), want);
    let mut single = node(&[]);
    single["spec"]["podCIDRs"] = Value::Null;
    assert_eq!(lease(&single), want);
}

#[test]
fn a_node_of_flannel_is_a_peer_by_ipv6_as_well_where_it_says_how() {
    let both = lease(&node(&OVER_IPV6));
    assert_eq!(both.flannel, Flannel::Member { mac_over_ipv6: Some(MacAddress([0xba, 0x1d, 0, 0, 0, 6])) });
    let underlay: Vec<String> = both.underlay.iter().map(ToString::to_string).collect();
    assert_eq!(underlay, ["198.18.0.1", "fd00:198:18::1"]);
    assert_eq!((both.pod_cidrs.len(), both.backend), (2, vxlan(1)));
    let instead = lease(&node(&[&OVER_IPV6[..], &[("public-ipv6-overwrite", "2001:db8::7")]].concat()));
    assert_eq!(instead.underlay[1].to_string(), "2001:db8::7");
    // A plain route needs the address alone.
    let plain = [("backend-type", "host-gw"), ("backend-v6-data", "null"), OVER_IPV6[1]];
    let plain = lease(&node(&plain));
    assert_eq!((plain.flannel, plain.pod_cidrs.len()), (Flannel::Member { mac_over_ipv6: None }, 2));
    for lacking in [&OVER_IPV6[..1], &OVER_IPV6[1..], &[("backend-v6-data", "null"), OVER_IPV6[1]]] {
        let v4 = lease(&node(lacking));
        assert_eq!((v4.pod_cidrs.len(), v4.underlay.len(), v4.flannel), (1, 1, plain.flannel), "{lacking:?}");
    }
    let udp = lease(&node(&[&OVER_IPV6[..], &[("backend-type", "udp")]].concat()));
    assert_eq!(udp.pod_cidrs.len(), 1, "flannel's udp carries IPv4 alone");
}

#[test]
fn what_a_tunnel_says_is_read_however_it_is_laid_out() {
    for (data, vni) in [
        ("{ \"VtepMAC\" : \"BA:1D:00:00:00:01\",\n\t\"Later\": {}, \"VNI\" : 4096 }", 4096),
        // Old versions tell no network.
        ("{\"VtepMAC\":\"ba:1d:00:00:00:01\"}", 1),
    ] {
        assert_eq!(lease(&node(&[("backend-data", data)])).backend, vxlan(vni), "{data}");
    }
}

#[test]
fn backends_are_told_apart_and_unknown_ones_are_left_to_peers_to_report() {
    for (kind, data, want) in [
        ("host-gw", "null", Backend::HostGw),
        ("host-gw", "", Backend::HostGw),
        ("udp", "null", Backend::Udp { port: 8285 }),
        ("wireguard", "{\"PublicKey\":\"x\"}", Backend::Other("flannel-wireguard".into())),
        ("ipip", "null", Backend::Other("flannel-ipip".into())),
        ("", "null", Backend::Udp { port: 8285 }),
    ] {
        assert_eq!(lease(&node(&[("backend-type", kind), ("backend-data", data)])).backend, want, "{kind}");
    }
    let foreign = node(&[("backend-type", "extension"), ("public-ip", "somewhere")]);
    assert!(lease(&foreign).underlay.is_empty(), "what an unknown backend says may be anything");
}

#[test]
fn an_address_given_instead_counts_before_flannel_has_copied_it() {
    let instead = |text| lease(&node(&[("public-ip-overwrite", text)])).underlay[0].to_string();
    assert_eq!(instead("203.0.113.7"), "203.0.113.7");
    assert_eq!(instead(""), "198.18.0.1");
}

#[test]
fn a_node_that_takes_no_part_has_no_lease() {
    for word in ["false", "True", ""] {
        assert_eq!(read(&node(&[("kube-subnet-manager", word)])).objects.len(), 1, "{word}");
    }
}

#[test]
fn where_both_have_written_fairleads_lease_counts() {
    let mut both = node(&[]);
    let own =
        r#"{"podCIDRs":["10.244.1.0/24"],"underlay":["198.18.0.9"],"backend":{"type":"host-gw"},"mtu":1500}"#;
    both["metadata"]["annotations"]["fairlead.io/lease"] = own.into();
    let read_both = lease(&both);
    assert_eq!(
        (read_both.backend, read_both.mtu, read_both.flannel),
        (Backend::HostGw, 1500, Flannel::Apart)
    );
    both["metadata"]["annotations"]["fairlead.io/lease"] = "{}".into();
    assert!(
        matches!(&read(&both).faults[..], [(Key::Lease(_), _)]),
        "a broken one is not replaced by flannel's"
    );
}

/// With this annotation the lease has a fault that is told so, and the node is there.
fn assert_broken(key: &str, text: &str, want: &str) {
    let item = read(&node(&[&OVER_IPV6[..], &[(key, text)]].concat()));
    let [(Key::Lease(_), fault)] = &item.faults[..] else { panic!("{item:?}") };
    let told = format!("{} {}", fault.field.as_deref().unwrap(), fault.reason);
    assert!(told.starts_with(want), "{told}");
    assert!(matches!(&item.objects[..], [Object::Node(_)]));
}

#[test]
fn what_is_broken_of_its_ipv6_is_told_in_the_same_way() {
    let of = |key: &str| format!("metadata.annotations[\"{PREFIX}{key}\"]");
    for (key, text, want) in [
        (
            "backend-v6-data",
            r#"{"VNI":2,"VtepMAC":"ba:1d:00:00:00:06"}"#,
            format!(
                "{} does not tell the end of a tunnel: VNI is 2, and that of its tunnel over IPv4 is 1",
                of("backend-v6-data")
            ),
        ),
        (
            "backend-v6-data",
            r#"{"VNI":1}"#,
            format!("{} does not tell the end of a tunnel: VtepMAC is missing", of("backend-v6-data")),
        ),
        ("public-ipv6", "198.18.0.1", format!("{} is 198.18.0.1, not an IPv6 address", of("public-ipv6"))),
    ] {
        assert_broken(key, text, &want);
    }
}

#[test]
fn what_is_broken_is_told_of_the_lease_with_its_annotation_and_leaves_the_node() {
    let of = |key: &str| format!("metadata.annotations[\"{PREFIX}{key}\"]");
    for (key, text, want) in [
        ("backend-data", "{", format!("{} EOF while parsing", of("backend-data"))),
        (
            "backend-data",
            "null",
            format!("{} does not tell the end of a tunnel: VtepMAC is missing", of("backend-data")),
        ),
        (
            "backend-data",
            "[]",
            format!("{} does not tell the end of a tunnel: the whole is a list", of("backend-data")),
        ),
        ("backend-data", "", format!("{} is missing", of("backend-data"))),
        (
            "backend-data",
            r#"{"VNI":0,"VtepMAC":"ba:1d:00:00:00:01"}"#,
            format!("{} does not tell the end of a tunnel: VNI is 0, not between 1 and", of("backend-data")),
        ),
        (
            "backend-data",
            r#"{"VtepMAC":"bb:1d:00:00:00:01"}"#,
            format!(
                "{} does not tell the end of a tunnel: VtepMAC is bb:1d:00:00:00:01, not",
                of("backend-data")
            ),
        ),
        ("public-ip", "", format!("{} is missing", of("public-ip"))),
        ("public-ip", "fd00::1", format!("{} is fd00::1, not an IPv4 address", of("public-ip"))),
        ("public-ip", "127.0.0.1", format!("{} is 127.0.0.1, not the address", of("public-ip"))),
        (
            "public-ip-overwrite",
            "here",
            format!("{} is \"here\", not an IP address", of("public-ip-overwrite")),
        ),
    ] {
        assert_broken(key, text, &want);
    }
    let mut without = node(&[]);
    without["spec"] = json!({"podCIDRs": ["fd00:10:244:1::/64"]});
    let item = read(&without);
    assert_eq!(item.faults[0].1.field.as_deref(), Some("spec.podCIDRs"), "{item:?}");
    let mut without = node(&[]);
    without["metadata"]["annotations"].as_object_mut().unwrap().remove(&format!("{PREFIX}backend-type"));
    assert_eq!(read(&without).faults[0].1.reason, "is missing");
}

/// Annotations as a node of flannel would have them.
fn pairs(annotations: &super::Annotations) -> Vec<(&str, &str)> {
    let there = annotations.iter().filter_map(|(key, text)| Some((*key, text.as_deref()?)));
    there.map(|(key, text)| (key.strip_prefix(PREFIX).unwrap(), text)).collect()
}

#[test]
fn what_flannel_is_told_is_what_it_would_write_itself_and_reads_back() {
    let of = |backend, underlay: &[&str]| Lease {
        underlay: underlay.iter().map(|address| address.parse().unwrap()).collect(),
        backend,
        flannel: Flannel::Told,
        ..lease(&node(&[]))
    };
    let both = ["fd00::1", "198.18.0.1"];
    for (backend, kind, data) in [
        (vxlan(7), "vxlan", r#"{"VNI":7,"VtepMAC":"ba:1d:00:00:00:01"}"#),
        (Backend::HostGw, "host-gw", "null"),
        (Backend::Udp { port: 8285 }, "udp", "null"),
    ] {
        let annotations = told(&of(backend.clone(), &both));
        let texts = annotations.each_ref().map(|(_, text)| text.as_deref());
        assert_eq!(texts, [Some("true"), Some(kind), Some(data), Some("198.18.0.1"), None, None]);
        assert_eq!(lease(&node(&pairs(&annotations))).backend, backend);
        let pod_cidrs = Box::new(["10.244.1.0/24", "fd00:10:244:1::/64"].map(|cidr| cidr.parse().unwrap()));
        let annotations = told(&Lease { pod_cidrs, ..of(backend.clone(), &both) });
        let texts = [4, 5].map(|index: usize| annotations[index].1.as_deref());
        let read_back = lease(&node(&pairs(&annotations)));
        let (want, mac) = match kind {
            "vxlan" => {
                let mac = MacAddress([0xbe, 0x1d, 0, 0, 0, 1]);
                ([Some(r#"{"VNI":7,"VtepMAC":"be:1d:00:00:00:01"}"#), Some("fd00::1")], Some(mac))
            }
            "host-gw" => ([Some("null"), Some("fd00::1")], None),
            _ => ([None, None], None),
        };
        assert_eq!((texts, read_back.flannel), (want, Flannel::Member { mac_over_ipv6: mac }), "{kind}");
        assert_eq!(read_back.pod_cidrs.len(), if kind == "udp" { 1 } else { 2 });
    }
    assert_eq!(told(&of(vxlan(7), &["fd00::1"])), untold(), "there is no address to send to");
    let key = Backend::wireguard(51820, PublicKey([1; 32]));
    for backend in [key, Backend::Ipip, Backend::None, Backend::Other("x".into())] {
        assert_eq!(told(&of(backend, &both)), untold(), "flannel knows no such backend");
    }
}

#[test]
fn a_lease_whose_word_to_flannel_was_changed_by_another_hand_is_told_no_more() {
    let own = r#"{"podCIDRs":["10.244.1.0/24"],"underlay":["198.18.0.1"],"mtu":1450,"flannel":"told",
        "backend":{"type":"vxlan","vni":1,"port":8472,"mac":"ba:1d:00:00:00:01"}}"#;
    let with = |changed: &[(&str, &str)]| {
        let mut node = node(changed);
        node["metadata"]["annotations"]["fairlead.io/lease"] = own.into();
        lease(&node).flannel
    };
    assert_eq!(with(&[]), Flannel::Told);
    assert_eq!(
        with(&[("node-public-ip", "198.18.0.7")]),
        Flannel::Told,
        "a person's own is nobody's to change"
    );
    for changed in [("backend-data", "{}"), ("public-ip", "198.18.0.2"), ("kube-subnet-manager", "")] {
        assert_eq!(with(&[changed]), Flannel::Overwritten, "{changed:?}");
    }
}
