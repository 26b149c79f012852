//! Tracked connections in a namespace of their own, made and looked at with `conntrack`.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a failure here is a failure of the test, and tools are what it asserts with"
)]

use harness::{Namespace, not_run, run_ok};
use kernel::Family;
use kernel::conntrack::{self, Filter};
use kernel::netlink::{Protocol, Socket};
use kernel::netns::Netns;

const UDP: u8 = 17;
const SCTP: u8 = 132;

/// A namespace with these flows: protocol, source, destination, destination port, where it really leads.
fn tracking(flows: &[(&str, &str, &str, u16, &str)]) -> Option<(Namespace, Socket)> {
    if std::process::Command::new("conntrack").arg("--version").output().is_err() {
        not_run("conntrack is not installed");
        return None;
    }
    let namespace = Namespace::with_loopback();
    for (number, (protocol, source, destination, port, leads)) in flows.iter().enumerate() {
        let line = format!(
            "-I -p {protocol} -s {source} -d {destination} --sport {0} --dport {port} -r {leads} -q {source} \
             --reply-port-src 53 --reply-port-dst {0} -t 100",
            4000 + number
        );
        let mut command = namespace.command("conntrack");
        command.args(line.split_whitespace());
        match *protocol {
            "sctp" => command.args(["--state", "ESTABLISHED", "--orig-vtag", "1", "--reply-vtag", "2"]),
            _ => &mut command,
        };
        run_ok(&mut command);
    }
    let socket = Netns::open(namespace.path()).unwrap().socket(Protocol::Netfilter).unwrap();
    Some((namespace, socket))
}

fn shown(namespace: &Namespace, family: &str) -> Vec<String> {
    let text = run_ok(namespace.command("conntrack").args(["-L", "-f", family]));
    text.lines().map(str::to_owned).collect()
}

#[test]
fn flows_are_found_by_family_protocol_and_port_and_forgotten_one_by_one() {
    let flows = [
        ("udp", "192.0.2.9", "192.0.2.1", 8053, "10.1.2.3"),
        ("udp", "192.0.2.9", "192.0.2.1", 8054, "10.1.2.3"),
        ("udp", "192.0.2.8", "192.0.2.1", 8053, "10.1.2.4"),
        ("sctp", "192.0.2.9", "192.0.2.1", 8053, "10.1.2.3"),
        ("udp", "2001:db8::9", "2001:db8::1", 8053, "fd00::3"),
    ];
    let Some((namespace, mut socket)) = tracking(&flows) else { return };
    assert!(!namespace.inside(conntrack::is_empty));
    assert!(Namespace::new().inside(conntrack::is_empty));
    let filter = |family, protocol, destination_port| Filter { family, protocol, destination_port };
    let mut found = conntrack::list(&mut socket, &filter(Family::V4, UDP, Some(8053))).unwrap();
    found.sort_by_key(|flow| flow.reply.source);
    let told: Vec<String> = found.iter().map(|flow| flow.reply.source.to_string()).collect();
    assert_eq!(told, ["10.1.2.3", "10.1.2.4"]);
    let first = &found[0].original;
    assert_eq!((first.source.to_string(), first.source_port), ("192.0.2.9".into(), 4000));
    assert_eq!((first.destination.to_string(), first.destination_port), ("192.0.2.1".into(), 8053));
    assert_eq!(conntrack::list(&mut socket, &filter(Family::V4, UDP, None)).unwrap().len(), 3);
    assert_eq!(conntrack::list(&mut socket, &filter(Family::V4, SCTP, None)).unwrap().len(), 1);
    let six = conntrack::list(&mut socket, &filter(Family::V6, UDP, Some(8053))).unwrap();
    assert_eq!(six[0].reply.source.to_string(), "fd00::3");
    assert!(conntrack::list(&mut socket, &filter(Family::V6, UDP, Some(1))).unwrap().is_empty());

    conntrack::forget(&mut socket, &found[..1]).unwrap();
    let left = shown(&namespace, "ipv4");
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(!left.iter().any(|line| line.contains("sport=4000 ")), "{left:?}");
    // Gone already: no error, and the other is still forgotten.
    conntrack::forget(&mut socket, &found).unwrap();
    assert_eq!(shown(&namespace, "ipv4").len(), 2);
    conntrack::forget(&mut socket, &six).unwrap();
    assert!(shown(&namespace, "ipv6").is_empty());
}

#[test]
fn the_flows_of_an_address_are_those_that_it_began_and_those_that_lead_to_it() {
    let flows = [
        // Begun by it; led to it by a translation; sent to it; and others' of the same ports and kinds.
        ("udp", "10.1.2.3", "192.0.2.1", 53, "192.0.2.1"),
        ("udp", "192.0.2.9", "192.0.2.1", 8053, "10.1.2.3"),
        ("udp", "192.0.2.9", "10.1.2.3", 8053, "10.1.2.3"),
        ("udp", "10.1.2.4", "192.0.2.1", 53, "192.0.2.1"),
        ("udp", "192.0.2.9", "192.0.2.1", 8054, "10.1.2.4"),
        ("udp", "fd00::3", "2001:db8::1", 53, "2001:db8::1"),
        ("udp", "fd00::4", "2001:db8::1", 53, "2001:db8::1"),
    ];
    let Some((namespace, mut socket)) = tracking(&flows) else { return };
    for (address, count) in [("10.1.2.3", 3), ("fd00::3", 1), ("10.9.9.9", 0)] {
        let found = conntrack::list_of(&mut socket, address.parse().unwrap()).unwrap();
        assert_eq!(found.len(), count, "{address}: {found:?}");
        conntrack::forget(&mut socket, &found).unwrap();
    }
    let left = shown(&namespace, "ipv4");
    assert!(left.len() == 2 && left.iter().all(|line| line.contains("10.1.2.4")), "{left:?}");
    assert_eq!(shown(&namespace, "ipv6").len(), 1);
}
