//! Advertisements byte by byte from the RFCs, and the asking for them on a virtual clock.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const NOW: Moment = Duration::from_secs(100);

/// An advertisement of a router with this lifetime and these flags, with these options.
fn advertisement(lifetime: u16, flags: u8, options: &[&[u8]]) -> Vec<u8> {
    let [high, low] = lifetime.to_be_bytes();
    let mut bytes = vec![134, 0, 0xab, 0xcd, 64, flags, high, low, 0, 0, 0, 0, 0, 0, 0, 0];
    options.iter().for_each(|option| bytes.extend_from_slice(option));
    bytes
}

/// PIO: on-link and autonomous flags as given, 2001:db8:`last`::/64.
fn prefix(flags: u8, last: u8) -> Vec<u8> {
    let mut option = vec![3, 4, 64, flags, 0, 0, 0, 200, 0, 0, 0, 100, 0, 0, 0, 0];
    option.extend_from_slice(&[0x20, 1, 0x0d, 0xb8, 0, last, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    option
}

fn net(text: &str) -> Ipv6Net {
    text.parse().unwrap()
}

fn ip(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

#[test]
fn an_advertisement_is_read_as_the_rfcs_lay_it_out() {
    let mtu = [5, 1, 0, 0, 0, 0, 0x05, 0x78];
    let source = [1, 1, 2, 2, 2, 2, 2, 2];
    let mut servers = vec![25, 3, 0, 0, 0, 0, 0, 60];
    servers.extend_from_slice(&ip("2001:db8::53").octets());
    let search = [
        31, 3, 0, 0, 0, 0, 0, 60, 7, b'e', b'x', b'a', b'm', b'p', b'l', b'e', 3, b'o', b'r', b'g', 0, 0, 0,
        0,
    ];
    let route = [24, 2, 40, 8, 0, 0, 0, 60, 0x20, 1, 0x0d, 0xb8, 0xff, 0, 0, 0];
    let bytes = advertisement(
        1800,
        0x08,
        &[&source, &prefix(0xc0, 1), &prefix(0x40, 2), &mtu, &servers, &search, &route],
    );
    let found = Advertisement::decode(&bytes).unwrap();
    let expected = Advertisement {
        lifetime: 1800,
        preference: 1,
        mtu: Some(1400),
        on_link: vec![net("2001:db8:1::/64")],
        routes: vec![net("2001:db8:ff00::/40")],
        name_servers: vec![ip("2001:db8::53")],
        search: vec!["example.org".into()],
    };
    assert_eq!(found, expected);
    let preferences = [0x00, 0x08, 0x18, 0x10]
        .map(|flags| Advertisement::decode(&advertisement(1, flags, &[])).unwrap().preference);
    assert_eq!(preferences, [0, 1, -1, 0]);
}

#[test]
fn what_is_no_whole_advertisement_is_none() {
    let whole = advertisement(1800, 0, &[&prefix(0xc0, 1)]);
    for length in (0..whole.len()).filter(|length| *length != 16) {
        assert_eq!(Advertisement::decode(&whole[..length]), None, "cut at {length}");
    }
    assert_eq!(
        Advertisement::decode(&advertisement(1, 0, &[&[1, 0, 0, 0, 0, 0, 0, 0]])),
        None,
        "length zero"
    );
    let mut other = whole.clone();
    other[0] = 133;
    assert_eq!(Advertisement::decode(&other), None, "a solicitation");
    other = whole;
    other[1] = 1;
    assert_eq!(Advertisement::decode(&other), None, "a code");
}

#[test]
fn options_that_mean_nothing_are_passed_over() {
    let mut link_local = prefix(0x80, 0);
    link_local[16..20].copy_from_slice(&[0xfe, 0x80, 0, 0]);
    let mut too_long = prefix(0x80, 1);
    too_long[2] = 129;
    let mut over = prefix(0x80, 1);
    over[4..8].fill(0);
    let mut everything = prefix(0x80, 1);
    everything[2] = 0;
    let small_mtu = [5, 1, 0, 0, 0, 0, 0x04, 0xff];
    let route_without_bits = [24, 1, 40, 0, 0, 0, 0, 60];
    let servers_over = [25, 1, 0, 0, 0, 0, 0, 0];
    let short_prefix = [3, 1, 64, 0x80, 0, 0, 0, 1];
    let bytes = advertisement(
        0,
        0,
        &[
            &link_local,
            &too_long,
            &over,
            &everything,
            &small_mtu,
            &route_without_bits,
            &servers_over,
            &short_prefix,
        ],
    );
    let nothing = Advertisement::decode(&advertisement(0, 0, &[])).unwrap();
    assert_eq!(Advertisement::decode(&bytes), Some(nothing));
}

fn discovery() -> Discovery {
    Discovery::new(Chance::new(5))
}

#[test]
fn routers_are_asked_three_times_and_no_more() {
    let mut discovery = discovery();
    let ask = [Action::Send(Destination::Routers, vec![133, 0, 0, 0, 0, 0, 0, 0])];
    assert_eq!(discovery.start(NOW), ask);
    let mut now = NOW;
    for asked in 1..=3 {
        let wake = discovery.wake().unwrap();
        assert!((Duration::from_millis(1350)..=Duration::from_millis(1650)).contains(&(wake - now)));
        assert_eq!(discovery.due(now), []);
        now = wake;
        assert_eq!(discovery.due(now), if asked < 3 { &ask[..] } else { &[] });
    }
    assert_eq!(discovery.wake(), None);
    assert!(now - NOW > Duration::from_secs(4), "longer than a router may be silent");
}

#[test]
fn a_default_router_ends_the_waiting_and_others_do_not() {
    let mut discovery = discovery();
    discovery.start(NOW);
    discovery.received(ip("fe80::9").into(), &advertisement(0, 0, &[&prefix(0x80, 1)]));
    assert!(discovery.wake().is_some());
    discovery.received(ip("2001:db8::9").into(), &advertisement(1800, 0, &[]));
    discovery.received("192.0.2.1".parse().unwrap(), &advertisement(1800, 0, &[]));
    assert!(discovery.wake().is_some(), "no router speaks from such an address");
    discovery.received(ip("fe80::1").into(), &advertisement(1800, 0, &[&prefix(0x80, 1), &prefix(0x80, 2)]));
    assert_eq!(discovery.wake(), None);
    let found = discovery.surroundings();
    assert_eq!(found.gateway, Some(ip("fe80::1")));
    assert_eq!(found.on_link, [net("2001:db8:1::/64"), net("2001:db8:2::/64")]);
}

#[test]
fn the_preferred_router_is_the_gateway_and_the_first_of_equals() {
    let mut discovery = discovery();
    discovery.start(NOW);
    for (last, lifetime, flags) in [(1, 9, 0x18), (2, 9, 0), (3, 9, 0), (4, 0, 0x08)] {
        discovery.received(ip(&format!("fe80::{last}")).into(), &advertisement(lifetime, flags, &[]));
    }
    assert_eq!(discovery.surroundings().gateway, Some(ip("fe80::2")));
    discovery.received(ip("fe80::2").into(), &advertisement(0, 0, &[]));
    assert_eq!(discovery.surroundings().gateway, Some(ip("fe80::3")), "the latest word of a router counts");
}

#[test]
fn what_was_known_stays_until_a_router_answers_anew() {
    let mut discovery = discovery();
    discovery.start(NOW);
    discovery.received(ip("fe80::1").into(), &advertisement(9, 0, &[&prefix(0x80, 1)]));
    let before = discovery.surroundings();
    discovery.start(NOW * 2);
    assert_eq!(discovery.surroundings(), before);
    discovery.received(ip("fe80::2").into(), &advertisement(9, 0, &[]));
    let after = discovery.surroundings();
    assert_eq!((after.gateway, after.on_link), (Some(ip("fe80::2")), vec![]));
}

#[test]
fn a_flood_of_routers_is_not_remembered() {
    let mut discovery = discovery();
    discovery.start(NOW);
    for last in 1..1000 {
        discovery.received(ip(&format!("fe80::{last:x}")).into(), &advertisement(9, 0, &[]));
    }
    assert_eq!((discovery.routers().len(), discovery.surroundings().gateway), (8, Some(ip("fe80::1"))));
}

proptest! {
    #[test]
    fn anybodys_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..200)) {
        let mut whole = advertisement(9, 0, &[]);
        let _ = Advertisement::decode(&bytes);
        whole.extend_from_slice(&bytes);
        if let Some(found) = Advertisement::decode(&whole) {
            prop_assert!(found.on_link.iter().chain(&found.routes).all(|net| *net == net.trunc()));
            prop_assert!(found.mtu.is_none_or(|mtu| mtu >= 1280));
        }
    }
}
