//! Both halves together: what a pod is told, when, and what is kept.

use super::message::{Association, Kind, Leased};
use super::*;
use crate::ipam::dhcp::machine::{Destination, Packet};

const NOW: Moment = Duration::from_secs(100);
const TIMING: Timing = Timing { exchange: Duration::from_secs(200), longest_pause: Duration::from_secs(60) };

fn settings(more: &str) -> Settings {
    let text =
        format!(r#"{{"name": "n", "type": "t", "ipam": {{"type": "dhcp", "families": ["ipv6"] {more} }}}}"#);
    Settings::of(&cni::Config::parse(text.as_bytes()).unwrap(), "key=from the arguments").unwrap()
}

fn client(more: &str) -> Client {
    let identity = Identity {
        name: "container/n/eth0".into(),
        mac: "02:00:00:00:00:01".parse().unwrap(),
        broadcast: false,
        mtu: 1500,
    };
    Client::new(identity, &settings(more), TIMING, 7)
}

fn sent(actions: &[Action], wanted: Destination) -> Option<Vec<u8>> {
    actions.iter().find_map(|action| match action {
        Action::Send(destination, payload) if *destination == wanted => Some(payload.clone()),
        _ => None,
    })
}

fn solicit(actions: &[Action]) -> Message {
    Message::decode(&sent(actions, Destination::Servers).unwrap()).unwrap()
}

/// The server's answer to `question`: 2001:db8:1::5, preferred for 100 s and valid for 200.
fn reply(question: &Message) -> Vec<u8> {
    let leased = Leased { preferred: 100, valid: 200, ..Leased::wish("2001:db8:1::5".parse().unwrap()) };
    let id = question.associations[0].id;
    Message {
        client: question.client.clone(),
        server: Some(vec![0, 1, 9]),
        associations: vec![Association { id, addresses: vec![leased], ..Association::default() }],
        rapid_commit: true,
        name_servers: vec!["2001:db8::53".parse().unwrap(), "fe80::53".parse().unwrap()],
        search: vec!["example.org".into()],
        ..Message::new(Kind::Reply, question.transaction)
    }
    .encode()
}

/// A default router that calls 2001:db8:1::/64 and 2001:db8:2::/64 on-link, with an MTU of 1400.
fn advertisement() -> Vec<u8> {
    let mut bytes = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 5, 1, 0, 0, 0, 0, 5, 0x78];
    for subnet in [1, 2] {
        bytes.extend_from_slice(&[3, 4, 64, 0x80, 0, 0, 0, 200, 0, 0, 0, 100, 0, 0, 0, 0]);
        bytes.extend_from_slice(&[0x20, 1, 0x0d, 0xb8, 0, subnet, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    bytes
}

fn hear(client: &mut Client, now: Moment, kind: PacketKind, payload: &[u8]) -> Vec<Action> {
    let from = "fe80::1".parse().unwrap();
    client.step(now, Event::Received(Packet { kind, from, hardware: None, payload }))
}

fn bound(more: &str) -> Client {
    let mut client = client(more);
    let actions = client.step(NOW, Event::Start);
    hear(&mut client, NOW, PacketKind::RouterAdvertisement, &advertisement());
    let done = hear(&mut client, NOW, PacketKind::Dhcp, &reply(&solicit(&actions)));
    assert_eq!(done, [Action::Bound]);
    client
}

fn shown(client: &Client) -> (Vec<String>, Vec<String>) {
    let given = client.given().unwrap();
    let ip =
        |ip: &IpConfig| format!("{} gateway {:?}", ip.address, ip.gateway.map(|gateway| gateway.to_string()));
    let route = |route: &Route| {
        format!(
            "{} {:?} scope {:?} mtu {} metric {}",
            route.dst,
            route.gw.map(|gw| gw.to_string()),
            route.scope,
            route.mtu,
            route.priority
        )
    };
    (given.ips.iter().map(ip).collect(), given.routes.iter().map(route).collect())
}

#[test]
fn servers_and_routers_are_asked_at_once_and_both_make_the_result() {
    let mut client = client(r#", "priority": 7"#);
    let actions = client.step(NOW, Event::Start);
    assert!(sent(&actions, Destination::Routers).is_some());
    let question = solicit(&actions);
    assert_eq!(hear(&mut client, NOW, PacketKind::Dhcp, &reply(&question)), [], "the routers are waited for");
    assert_eq!(client.given(), None);
    let done = hear(&mut client, NOW, PacketKind::RouterAdvertisement, &advertisement());
    assert_eq!(done, [Action::Bound]);
    let (ips, routes) = shown(&client);
    assert_eq!(ips, ["2001:db8:1::5/64 gateway Some(\"fe80::1\")"]);
    assert_eq!(
        routes,
        [
            "2001:db8:2::/64 None scope Some(253) mtu 0 metric 7",
            "::/0 Some(\"fe80::1\") scope None mtu 1400 metric 7",
        ]
    );
    let dns = &client.given().unwrap().dns;
    assert_eq!(
        (&dns.nameservers[..], &dns.search[..]),
        (&["2001:db8::53".into(), "fe80::53%eth0".into()][..], &["example.org".into()][..])
    );
    assert_eq!(client.lifetimes(NOW), [("2001:db8:1::5".parse().unwrap(), 100, 200)]);
    assert!(!client.listens());
    let settled = client.wake().unwrap();
    assert_eq!(settled, NOW + SETTLED, "by then the interface plugin has set the address");
    assert_eq!(client.step(settled, Event::Due), [Action::Lifetimes]);
    assert_eq!(client.wake(), Some(NOW + Duration::from_secs(50)));
}

#[test]
fn without_routers_the_address_stands_alone_after_a_while() {
    let mut client = client("");
    let actions = client.step(NOW, Event::Start);
    assert_eq!(hear(&mut client, NOW, PacketKind::Dhcp, &reply(&solicit(&actions))), []);
    let mut now = NOW;
    while client.given().is_none() {
        now = client.wake().unwrap();
        let done = client.step(now, Event::Due);
        assert_eq!(done.contains(&Action::Bound), client.given().is_some());
    }
    assert!(now - NOW < Duration::from_secs(6));
    assert_eq!(shown(&client), (vec!["2001:db8:1::5/128 gateway None".into()], vec![]));
    assert!(!client.listens());
}

#[test]
fn the_configuration_can_stand_in_for_routers_and_then_none_is_asked() {
    let mut client = client(r#", "ipv6PrefixLength": 64, "ipv6Gateway": "2001:db8:1::1""#);
    let actions = client.step(NOW, Event::Start);
    assert_eq!(sent(&actions, Destination::Routers), None);
    let done = hear(&mut client, NOW, PacketKind::Dhcp, &reply(&solicit(&actions)));
    assert_eq!(done, [Action::Bound]);
    let (ips, routes) = shown(&client);
    assert_eq!(ips, ["2001:db8:1::5/64 gateway Some(\"2001:db8:1::1\")"]);
    assert_eq!(routes, ["::/0 Some(\"2001:db8:1::1\") scope None mtu 0 metric 0"]);
}

#[test]
fn one_of_the_two_keys_overrules_the_routers_in_that_alone() {
    let (ips, _) = shown(&bound(r#", "ipv6PrefixLength": 80"#));
    assert_eq!(ips, ["2001:db8:1::5/80 gateway Some(\"fe80::1\")"]);
    let (ips, _) = shown(&bound(r#", "ipv6Gateway": "fe80::99""#));
    assert_eq!(ips, ["2001:db8:1::5/64 gateway Some(\"fe80::99\")"]);
}

#[test]
fn wrong_keys_are_told() {
    for wrong in [
        r#""ipv6PrefixLength": 0"#,
        r#""ipv6PrefixLength": 129"#,
        r#""ipv6Gateway": "::""#,
        r#""ipv6Gateway": "ff02::2""#,
        r#""ipv6Gateway": "10.1.2.3""#,
        r#""families": ["ipv5"]"#,
    ] {
        let text = format!(r#"{{"name": "n", "type": "t", "ipam": {{"type": "dhcp", {wrong}}}}}"#);
        let error = Settings::of(&cni::Config::parse(text.as_bytes()).unwrap(), "").unwrap_err();
        assert_eq!(error.code, cni::Code::INVALID_CONFIG, "{wrong}: {error:?}");
    }
}

#[test]
fn routers_are_asked_again_at_each_renewal_and_a_change_is_told() {
    let mut client = bound("");
    client.step(NOW + SETTLED, Event::Due);
    let renewed_at = client.wake().unwrap();
    let actions = client.step(renewed_at, Event::Due);
    let done = hear(&mut client, renewed_at, PacketKind::Dhcp, &reply(&solicit(&actions)));
    assert_eq!(done[..2], [Action::Bound, Action::Lifetimes]);
    assert!(sent(&done, Destination::Routers).is_some(), "{done:?}");
    assert!(client.listens());
    let mut same = client.clone();
    assert_eq!(hear(&mut same, renewed_at, PacketKind::RouterAdvertisement, &advertisement()), []);
    let mut gone = advertisement();
    gone[6..8].fill(0);
    let done = hear(&mut client, renewed_at, PacketKind::RouterAdvertisement, &gone);
    assert_eq!(done, [Action::Bound, Action::Lifetimes]);
    assert_eq!(shown(&client).0, ["2001:db8:1::5/64 gateway None"]);
    gone.truncate(24);
    hear(&mut client, renewed_at, PacketKind::RouterAdvertisement, &gone);
    assert_eq!(
        shown(&client).0,
        ["2001:db8:1::5/64 gateway None"],
        "the length stays what the runtime was told"
    );
}

#[test]
fn a_client_taken_up_from_its_file_holds_the_same_and_asks() {
    let before = bound("");
    let saved = Json::parse(&before.save().to_bytes()).unwrap();
    let mut after = client("");
    assert!(after.restore(&Fields::of(&saved).unwrap()));
    assert_eq!(after.given(), before.given());
    assert_eq!(after.save(), before.save());
    let soon = NOW + Duration::from_secs(20);
    assert_eq!(after.step(soon, Event::Due), [Action::Lifetimes]);
    let confirmed_at = after.wake().unwrap();
    assert!(confirmed_at - soon < Duration::from_secs(1));
    let actions = after.step(confirmed_at, Event::Due);
    assert_eq!(solicit(&actions).kind, Kind::Confirm);
    assert_eq!(after.lifetimes(soon), [("2001:db8:1::5".parse().unwrap(), 80, 180)]);
}

#[test]
fn a_file_that_makes_no_sense_is_not_taken_up() {
    for text in [
        "{}",
        r#"{"since": 1, "reply": "07"}"#,
        r#"{"since": 1, "reply": "zz"}"#,
        r#"{"since": 1, "reply": "07000000"}"#,
        r#"{"since": "x", "reply": ""}"#,
    ] {
        let saved = Json::parse(text.as_bytes()).unwrap();
        assert!(!client("").restore(&Fields::of(&saved).unwrap()), "{text}");
    }
    assert_eq!(client("").save(), Json::Null);
}

#[test]
fn a_lost_lease_takes_the_words_with_it_and_another_brings_new_ones() {
    let mut client = bound("");
    let mut now = NOW;
    let mut actions = Vec::new();
    while client.given().is_some() {
        now = client.wake().unwrap();
        actions = client.step(now, Event::Due);
    }
    assert_eq!(now, NOW + Duration::from_secs(200));
    assert!(actions.contains(&Action::Lost("the lease expired".into())));
    assert!(sent(&actions, Destination::Routers).is_some());
    hear(&mut client, now, PacketKind::RouterAdvertisement, &advertisement());
    let done = hear(&mut client, now, PacketKind::Dhcp, &reply(&solicit(&actions)));
    assert_eq!(done, [Action::Bound]);
}

#[test]
fn release_and_decline_reach_the_servers() {
    let mut released = bound("");
    let actions = released.step(NOW, Event::Release);
    assert_eq!((solicit(&actions).kind, released.given()), (Kind::Release, None));
    let mut declined = bound("");
    let actions = declined.step(NOW, Event::Duplicate("2001:db8:1::5".parse().unwrap()));
    assert_eq!((solicit(&actions).kind, declined.given()), (Kind::Decline, None));
    assert_eq!(bound("").step(NOW, Event::Duplicate("192.0.2.1".parse().unwrap())), []);
}

#[test]
fn an_adopted_address_is_wished_for() {
    let mut client = client("");
    let actions = client.step(NOW, Event::Adopt("2001:db8:1::9".parse().unwrap()));
    assert_eq!(solicit(&actions).associations[0].addresses, [Leased::wish("2001:db8:1::9".parse().unwrap())]);
}

#[test]
fn an_attachment_keeps_its_duid_and_shares_it_with_nobody() {
    let (duid, id) = names(b"container/n/eth0");
    assert_eq!((duid.len(), &duid[..2], id), (18, &[0, 4][..], names(b"container/n/eth0").1));
    assert_eq!((duid[8] >> 4, duid[10] >> 6), (8, 2), "a UUID of version 8");
    assert_ne!(names(b"container/n/eth1").0, duid);
    let provided = r#", "provide": [{"option": "dhcp-client-identifier", "fromArg": "key"}]"#;
    let mut client = client(provided);
    let actions = client.step(NOW, Event::Start);
    assert_eq!(solicit(&actions).client, Some(names(b"from the arguments").0));
}
