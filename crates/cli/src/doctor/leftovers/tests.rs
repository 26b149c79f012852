//! Traces as other networks leave them, and what is said of each.

use std::path::Path;

use kernel::link::OperationalState;

use super::*;

fn link(name: &str, kind: Kind) -> Link {
    Link {
        index: 2,
        name: name.to_owned(),
        kind,
        mac: None,
        mtu: 1500,
        flags: 0,
        operational_state: OperationalState::Unknown,
        master: None,
        parent: None,
        peer_namespace: None,
        alias: None,
        transmit_queue_length: 0,
        promiscuity: 0,
        group: 0,
        ipv6: None,
        port: None,
    }
}

fn other(name: &str) -> &'static Other {
    const KNOWN: &[Other] = &OTHERS;
    KNOWN.iter().find(|other| other.name == name).unwrap()
}

fn links(name: &str, links: &[Link]) -> Vec<Finding> {
    judge_links(other(name), &links.iter().collect::<Vec<_>>())
}

#[test]
fn a_link_is_known_by_its_name() {
    for (name, owner) in [
        ("flannel.1", "flannel"),
        ("flannel-v6.1", "flannel"),
        ("cali0123456789a", "calico"),
        ("cilium_host", "cilium"),
        ("kube-bridge", "kube-router"),
        ("weave", "weave"),
        ("antrea-gw0", "antrea"),
        ("ovn-k8s-mp0", "OVN"),
        ("cni0", "a bridge network"),
    ] {
        assert_eq!(owner_of_link(name), Some(owner), "{name}");
    }
    assert_eq!(owner_of_link("eth0"), None);
    assert_eq!(owner_of_link("fairlead0"), None);
}

#[test]
fn links_are_to_be_deleted_after_the_last_pod() {
    let found =
        links("flannel", &[link("eth0", Kind::Device), link("flannel.1", Kind::Other("vxlan".into()))]);
    assert_eq!((found.len(), found[0].severity), (1, Severity::Warning));
    assert_eq!(found[0].subject, "flannel.1");
    assert_eq!(found[0].fix, "once the last pod of flannel on this node is gone: ip link delete flannel.1");
}

#[test]
fn pods_that_are_still_wired_are_counted_by_their_cables() {
    let found =
        links("calico", &[link("cali1", Kind::Veth), link("cali2", Kind::Veth), link("cali3", Kind::Device)]);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].problem.starts_with("2 pods are still wired by calico"), "{found:#?}");
    assert_eq!(found[0].subject, "cali1 and 1 more");
    assert_eq!(
        links("cilium", &[link("lxcbr0", Kind::Bridge { vlan_filtering: false })]),
        [],
        "LXC's own bridge"
    );
}

#[test]
fn the_tunnel_that_a_module_brings_is_no_trace_until_it_is_up() {
    let mut tunnel = link("tunl0", Kind::Other("ipip".into()));
    assert_eq!(links("calico", std::slice::from_ref(&tunnel)), []);
    tunnel.flags = 1;
    assert_eq!(links("calico", &[tunnel]).len(), 1);
}

#[test]
fn routes_are_known_by_their_protocol() {
    let route = |protocol| Route { protocol, ..Route::on_link("10.244.3.0/24".parse().unwrap(), 2) };
    let found = judge_routes(other("calico"), &[route(3), route(12), route(12)]);
    assert_eq!(found.len(), 1);
    assert!(found[0].problem.starts_with("2 routes of protocol bird"), "{found:#?}");
    assert!(found[0].fix.contains("ip route flush proto 12"), "{found:#?}");
    assert_eq!(judge_routes(other("flannel"), &[route(12)]), []);
}

#[test]
fn chains_are_removed_with_the_program_that_has_them_and_tables_whole() {
    let mut ruleset = Ruleset {
        name: "iptables-legacy nat".into(),
        program: Program::Iptables("iptables-legacy", "nat".into()),
        chains: vec!["POSTROUTING".into(), "FLANNEL-POSTRTG".into()],
        ..Ruleset::default()
    };
    let found = judge_chains(other("flannel"), &ruleset).unwrap();
    assert_eq!(found.subject, "iptables-legacy nat FLANNEL-POSTRTG");
    assert!(found.fix.ends_with("iptables-legacy-save -t nat | grep -v FLANNEL- | iptables-legacy-restore"));
    assert_eq!(judge_chains(other("weave"), &ruleset), None);
    ruleset.name = "nf_tables ip flannel-ipv4".into();
    let found = judge_chains(other("flannel"), &ruleset).unwrap();
    assert!(found.fix.ends_with("nft delete table ip flannel-ipv4"), "{found:#?}");
}

#[test]
fn addresses_of_other_networks_are_counted() {
    let directory = tempfile::tempdir().unwrap();
    for file in
        ["cbr0/10.244.1.2", "cbr0/fd00__7", "cbr0/last_reserved_ip.0", "cbr0/lock", "fairlead/10.244.1.3"]
    {
        let file = directory.path().join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "").unwrap();
    }
    let directories = Directories {
        state: Path::new("/nonexistent").into(),
        conf: Path::new("/nonexistent").into(),
        bins: Vec::new(),
        addresses: directory.path().to_owned(),
    };
    let found = address_directories(&directories).unwrap();
    assert_eq!(found, [(directory.path().join("cbr0"), 2)]);
    let finding = judge_addresses(found[0].0.clone(), 2);
    assert_eq!(finding.severity, Severity::Note);
    assert!(finding.fix.contains("rm -r "), "{finding:#?}");
}
