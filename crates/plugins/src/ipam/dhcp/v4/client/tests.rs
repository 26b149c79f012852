//! The client beside a server on paper, in a time that is only counted.
//!
//! Read [`Bench`]: it holds a client and the moment it is; [`Bench::server`] answers what the client sent.

use cni::Config;

use super::*;
use crate::ipam::dhcp::machine::PacketKind;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 1);
const SERVER_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 9);
const HOUR: &[u8] = &[0, 0, 0x0e, 0x10];

fn settings(ipam: &str) -> Settings {
    let text = format!(r#"{{"cniVersion":"1.1.0","name":"net","type":"x","ipam":{ipam}}}"#);
    Settings::of(&Config::parse(text.as_bytes()).unwrap(), "").unwrap()
}

fn identity() -> Identity {
    Identity { name: "cid/net/eth0".to_owned(), mac: MAC, broadcast: false, mtu: 1500 }
}

/// A client, and the time.
struct Bench {
    client: Client,
    now: Moment,
}

impl Bench {
    fn new() -> Self {
        Self::with("{}", identity())
    }

    fn with(ipam: &str, identity: Identity) -> Self {
        let timing = Timing { exchange: Duration::from_secs(10), longest_pause: Duration::from_secs(62) };
        let client = Client::new(identity, &settings(ipam), timing, 7);
        Self { client, now: Duration::from_secs(1000) }
    }

    /// One that has a lease with these options besides a mask.
    fn bound(options: &[(u8, &[u8])]) -> Self {
        let mut bench = Self::new();
        bench.step(Event::Start);
        bench.server(Kind::Offer, &[]);
        assert_eq!(bench.server(Kind::Ack, options), [Action::Bound]);
        bench
    }

    fn step(&mut self, event: Event<'_>) -> Vec<Action> {
        self.client.step(self.now, event)
    }

    /// Goes to the moment that the client wants to be woken at.
    fn wake(&mut self) -> Vec<Action> {
        self.now = self.client.wake().expect("it wants to be woken");
        self.step(Event::Due)
    }

    /// The answer of the server to the client's transaction, with a mask and a server identifier.
    fn answer(&self, kind: Kind, options: &[(u8, &[u8])]) -> Message {
        let mut message = Message::new(kind, self.client.transaction, MAC);
        message.reply = true;
        message.your_address = ADDRESS;
        message.set(option::SERVER, &SERVER.octets());
        message.set(option::SUBNET_MASK, &[255, 255, 255, 0]);
        for (code, value) in options {
            message.set(*code, value);
        }
        message
    }

    fn server(&mut self, kind: Kind, options: &[(u8, &[u8])]) -> Vec<Action> {
        let message = self.answer(kind, options);
        self.receive(&message)
    }

    fn receive(&mut self, message: &Message) -> Vec<Action> {
        let payload = message.encode();
        let packet = Packet {
            kind: PacketKind::Dhcp,
            from: IpAddr::V4(SERVER),
            hardware: Some(SERVER_MAC),
            payload: &payload,
        };
        self.step(Event::Received(packet))
    }
}

/// The one message among actions that are nothing else.
fn sent(actions: &[Action]) -> (Destination, Message) {
    let [Action::Send(destination, payload)] = actions else {
        panic!("one packet was expected: {actions:?}")
    };
    (*destination, Message::decode(payload).expect("a message"))
}

fn everybody() -> Destination {
    Destination::Broadcast(Ipv4Addr::UNSPECIFIED)
}

fn the_server() -> Destination {
    Destination::Unicast { from: ADDRESS, to: SERVER, hardware: SERVER_MAC }
}

#[test]
fn a_lease_is_asked_for_as_the_specification_has_it() {
    let mut bench = Bench::new();
    let (destination, discover) = sent(&bench.step(Event::Start));
    assert_eq!((destination, discover.kind()), (everybody(), Some(Kind::Discover)));
    assert_eq!(discover.option(option::CLIENT), Some(&b"\0cid/net/eth0"[..]));
    assert_eq!(discover.option(option::REQUEST_LIST), Some(&[1, 121, 3, 6, 15, 26, 33, 119][..]));
    assert!(!discover.broadcast && bench.client.listens() && bench.client.given().is_none());

    let (destination, request) = sent(&bench.server(Kind::Offer, &[]));
    assert_eq!((destination, request.kind()), (everybody(), Some(Kind::Request)));
    assert_eq!(request.option(option::REQUESTED_ADDRESS), Some(&ADDRESS.octets()[..]));
    assert_eq!(request.option(option::SERVER), Some(&SERVER.octets()[..]));
    assert_eq!(request.client_address, Ipv4Addr::UNSPECIFIED);
    assert_eq!(request.transaction, discover.transaction);

    assert_eq!(bench.server(Kind::Ack, &[(option::ROUTERS, &SERVER.octets())]), [Action::Bound]);
    let given = bench.client.given().unwrap();
    assert_eq!(given.ips[0].address, "10.1.2.9/24".parse().unwrap());
    assert_eq!(given.ips[0].gateway, Some(IpAddr::V4(SERVER)));
    assert!(!bench.client.listens(), "sockets are not needed while nothing is due");
}

#[test]
fn what_the_configuration_provides_and_requests_is_sent() {
    let ipam = r#"{"provide":[{"option":"host-name","value":"pod"},{"option":"dhcp-client-identifier","value":"me"},
        {"option":"60","value":"a"},{"option":"vendor-class-identifier","value":"b"}],
        "request":[{"option":"42"},{"skipDefault":true}]}"#;
    let mut bench = Bench::with(ipam, Identity { broadcast: true, ..identity() });
    let (_, discover) = sent(&bench.step(Event::Start));
    assert_eq!(discover.option(12), Some(&b"pod"[..]));
    assert_eq!(discover.option(60), Some(&b"b"[..]));
    assert_eq!(discover.option(option::CLIENT), Some(&b"me"[..]));
    assert_eq!(discover.option(option::REQUEST_LIST), Some(&[42][..]));
    assert!(discover.broadcast);
    // Servers of RFC 6842 say it back.
    sent(&bench.server(Kind::Offer, &[(option::CLIENT, b"me")]));
}

#[test]
fn a_long_name_is_cut_where_the_reference_cuts_it() {
    let mut bench = Bench::with("{}", Identity { name: "x".repeat(300), ..identity() });
    let (_, discover) = sent(&bench.step(Event::Start));
    let id = discover.option(option::CLIENT).unwrap();
    assert_eq!((id.len(), id[0], id[254]), (255, 0, b'x'));
}

#[test]
fn silence_is_met_with_growing_pauses_that_are_never_alike() {
    let mut bench = Bench::new();
    sent(&bench.step(Event::Start));
    let mut pauses = Vec::new();
    for _ in 0..12 {
        let before = bench.now;
        let (destination, again) = sent(&bench.wake());
        assert_eq!((destination, again.kind()), (everybody(), Some(Kind::Discover)));
        pauses.push((bench.now - before).as_secs_f64());
    }
    for (index, pause) in pauses.iter().enumerate() {
        let middle = (0.25 * f64::from(1 << index)).min(62.0);
        assert!((0.9 * middle..=1.1 * middle).contains(pause), "pause {index} is {pause} s");
    }
    assert!(pauses[9..].windows(2).all(|pair| pair[0] != pair[1]), "{pauses:?}");
}

#[test]
fn a_server_that_offers_and_then_says_nothing_is_left_after_a_while() {
    let mut bench = Bench::new();
    bench.step(Event::Start);
    bench.server(Kind::Offer, &[]);
    let begun = bench.now;
    let mut requests = 0;
    loop {
        let (_, message) = sent(&bench.wake());
        match message.kind() {
            Some(Kind::Request) => requests += 1,
            kind => break assert_eq!(kind, Some(Kind::Discover)),
        }
    }
    assert_eq!(bench.now - begun, Duration::from_secs(10));
    assert!(requests >= 3, "{requests}");
}

#[test]
fn answers_to_others_are_not_taken() {
    let mut bench = Bench::new();
    bench.step(Event::Start);
    let good = bench.answer(Kind::Offer, &[]);
    for wrong in [
        Message { transaction: good.transaction ^ 1, ..good.clone() },
        Message { hardware: Mac([2, 0, 0, 0, 0, 8]), ..good.clone() },
        Message { reply: false, ..good.clone() },
        Message { your_address: Ipv4Addr::UNSPECIFIED, ..good.clone() },
        bench.answer(Kind::Offer, &[(option::CLIENT, b"\0other/net/eth0")]),
        bench.answer(Kind::Ack, &[]),
        bench.answer(Kind::Nak, &[]),
    ] {
        assert_eq!(bench.receive(&wrong), [], "{wrong:?}");
    }
    sent(&bench.receive(&good));
    let mut other = bench.answer(Kind::Nak, &[]);
    other.set(option::SERVER, &[10, 1, 2, 2]);
    assert_eq!(bench.receive(&other), [], "a server that was not chosen");
}

#[test]
fn a_refused_request_begins_anew_after_a_pause() {
    let mut bench = Bench::new();
    bench.step(Event::Start);
    bench.server(Kind::Offer, &[]);
    assert_eq!(bench.server(Kind::Nak, &[]), []);
    assert_eq!(sent(&bench.wake()).1.kind(), Some(Kind::Discover));
}

#[test]
fn an_answer_without_a_mask_is_given_back_and_reported() {
    let mut bench = Bench::new();
    bench.step(Event::Start);
    bench.server(Kind::Offer, &[]);
    let mut answer = bench.answer(Kind::Ack, &[]);
    answer.options.retain(|(code, _)| *code != option::SUBNET_MASK);
    let actions = bench.receive(&answer);
    let (destination, release) = sent(&actions[..1]);
    assert_eq!((destination, release.kind()), (the_server(), Some(Kind::Release)));
    assert_eq!(actions[1..], [Action::Unusable("DHCP option Subnet Mask not found in DHCPACK".to_owned())]);
    assert!(bench.client.given().is_none());
}

#[test]
fn a_lease_is_renewed_at_half_its_time_with_its_server() {
    let mut bench = Bench::bound(&[(option::LEASE_TIME, HOUR)]);
    let begun = bench.now;
    let (destination, request) = sent(&bench.wake());
    assert_eq!(bench.now - begun, Duration::from_secs(1800));
    assert_eq!((destination, request.kind()), (the_server(), Some(Kind::Request)));
    assert_eq!(request.client_address, ADDRESS);
    for absent in [option::SERVER, option::REQUESTED_ADDRESS] {
        assert_eq!(request.option(absent), None, "RFC 2131 section 4.3.2: MUST NOT");
    }
    assert_eq!(bench.server(Kind::Ack, &[(option::LEASE_TIME, HOUR)]), [Action::Bound]);
    assert_eq!(bench.client.wake(), Some(bench.now + Duration::from_secs(1800)));
}

#[test]
fn a_lease_counts_from_the_request_and_not_from_the_answer() {
    let mut bench = Bench::new();
    bench.step(Event::Start);
    bench.server(Kind::Offer, &[]);
    let asked = bench.now;
    bench.now += Duration::from_millis(200);
    bench.server(Kind::Ack, &[(option::LEASE_TIME, HOUR)]);
    assert_eq!(bench.client.wake(), Some(asked + Duration::from_secs(1800)));
}

#[test]
fn without_an_answer_it_asks_everybody_and_in_the_end_begins_anew() {
    let mut bench = Bench::bound(&[(option::LEASE_TIME, HOUR)]);
    let begun = bench.now;
    let (mut unicasts, mut broadcasts) = (0, 0);
    let lost = loop {
        let actions = bench.wake();
        if let [Action::Lost(_), ..] = actions[..] {
            break actions;
        }
        let (destination, request) = sent(&actions);
        assert_eq!((request.kind(), request.client_address), (Some(Kind::Request), ADDRESS));
        let after = (bench.now - begun).as_secs();
        match destination {
            Destination::Unicast { .. } => {
                (unicasts += 1, assert!((1800..3150).contains(&after), "{after}")).1
            }
            Destination::Broadcast(from) => (broadcasts += 1, assert_eq!(from, ADDRESS)).1,
            other => panic!("{other:?}"),
        }
        assert!(bench.client.given().is_some(), "it is held until it ends");
    };
    assert_eq!(bench.now - begun, Duration::from_secs(3600));
    assert!((2..30).contains(&unicasts) && (2..30).contains(&broadcasts), "{unicasts} {broadcasts}");
    let (destination, discover) = sent(&lost[1..]);
    assert_eq!((destination, discover.kind()), (everybody(), Some(Kind::Discover)));
    assert_eq!(
        discover.option(option::REQUESTED_ADDRESS),
        Some(&ADDRESS.octets()[..]),
        "the same if possible"
    );
    assert!(bench.client.given().is_none());
    // And when the server is back, all is well again.
    sent(&bench.server(Kind::Offer, &[]));
    assert_eq!(bench.server(Kind::Ack, &[]), [Action::Bound]);
}

#[test]
fn a_lease_that_the_server_takes_back_is_lost_at_once() {
    let mut bench = Bench::bound(&[(option::LEASE_TIME, HOUR)]);
    bench.wake();
    let actions = bench.server(Kind::Nak, &[(option::TEXT, b"moved")]);
    assert_eq!(actions[0], Action::Lost("the server took it back: moved".to_owned()));
    let (_, discover) = sent(&actions[1..]);
    assert_eq!((discover.kind(), discover.option(option::REQUESTED_ADDRESS)), (Some(Kind::Discover), None));
}

#[test]
fn a_lease_without_end_is_never_renewed() {
    let bench = Bench::bound(&[(option::LEASE_TIME, &[255; 4])]);
    assert_eq!(bench.client.wake(), None);
}

#[test]
fn very_short_leases_are_renewed_too() {
    let mut bench = Bench::bound(&[(option::LEASE_TIME, &[0, 0, 0, 4])]);
    let begun = bench.now;
    while !matches!(bench.wake()[..], [Action::Lost(_), ..]) {}
    assert_eq!(bench.now - begun, Duration::from_secs(4));
}

#[test]
fn giving_back_tells_the_server_whatever_the_state() {
    let release = |bench: &mut Bench| {
        let (destination, message) = sent(&bench.step(Event::Release));
        assert_eq!((destination, message.kind()), (the_server(), Some(Kind::Release)));
        assert_eq!(message.client_address, ADDRESS);
        assert_eq!(message.option(option::SERVER), Some(&SERVER.octets()[..]));
        assert_eq!(message.option(option::CLIENT), Some(&b"\0cid/net/eth0"[..]));
        assert!(!bench.client.listens() && bench.client.wake().is_none() && bench.client.given().is_none());
        assert_eq!(bench.step(Event::Release), []);
    };
    release(&mut Bench::bound(&[]));
    let mut renewing = Bench::bound(&[]);
    renewing.wake();
    release(&mut renewing);
    let mut requesting = Bench::new();
    requesting.step(Event::Start);
    requesting.server(Kind::Offer, &[]);
    release(&mut requesting);
    let mut selecting = Bench::new();
    selecting.step(Event::Start);
    assert_eq!(selecting.step(Event::Release), []);
}

#[test]
fn what_is_saved_is_held_again_by_the_next_daemon() {
    let bench = Bench::bound(&[(option::LEASE_TIME, HOUR), (option::ROUTERS, &SERVER.octets())]);
    let saved = Json::parse(&bench.client.save().to_bytes()).unwrap();
    let mut next = Bench::new();
    assert!(next.client.restore(&Fields::of(&saved).unwrap()));
    assert_eq!(next.client.given(), bench.client.given());
    assert_eq!(next.client.wake(), bench.client.wake());
    let (destination, request) = sent(&next.wake());
    assert_eq!((destination, request.client_address), (the_server(), ADDRESS));
    assert_eq!(next.server(Kind::Ack, &[]), [Action::Bound]);
}

#[test]
fn a_lease_that_ran_out_while_no_daemon_was_there_is_lost_at_once() {
    let bench = Bench::bound(&[(option::LEASE_TIME, HOUR)]);
    let saved = bench.client.save();
    let mut next = Bench::new();
    next.now += Duration::from_secs(4000);
    assert!(next.client.restore(&Fields::of(&saved).unwrap()));
    assert!(matches!(next.step(Event::Due)[..], [Action::Lost(_), Action::Send(..)]));
}

#[test]
fn a_file_that_says_nothing_or_nonsense_is_not_held() {
    let bench = Bench::new();
    assert_eq!(bench.client.save(), Json::Null);
    let good = Bench::bound(&[]).client.save();
    for (key, value) in
        [("address", "x"), ("server", ""), ("serverMac", "1"), ("renew", "soon"), ("options", "")]
    {
        let mut bad = good.clone();
        bad.set(key, Json::from(value));
        assert!(!Bench::new().client.restore(&Fields::of(&bad).unwrap()), "{key}");
    }
    let mut odd = good;
    odd.set("options", Json::object([("1", Json::from("fffff"))]));
    assert!(!Bench::new().client.restore(&Fields::of(&odd).unwrap()), "half a byte");
    assert!(!Bench::new().client.restore(&Fields::none()));
}

#[test]
fn an_address_that_a_server_knows_us_by_is_taken_over() {
    let mut bench = Bench::new();
    let (destination, request) = sent(&bench.step(Event::Adopt(ADDRESS.into())));
    assert_eq!((destination, request.kind()), (everybody(), Some(Kind::Request)));
    assert_eq!(request.option(option::REQUESTED_ADDRESS), Some(&ADDRESS.octets()[..]));
    assert_eq!(request.option(option::SERVER), None);
    assert_eq!(bench.server(Kind::Ack, &[]), [Action::Bound]);
    // A server that knows better says so; then it is as at the beginning.
    let mut refused = Bench::new();
    refused.step(Event::Adopt(ADDRESS.into()));
    assert_eq!(refused.server(Kind::Nak, &[]), []);
    assert_eq!(sent(&refused.wake()).1.kind(), Some(Kind::Discover));
    // One that knows nothing says nothing.
    let mut silent = Bench::new();
    silent.step(Event::Adopt(ADDRESS.into()));
    let discover =
        std::iter::repeat_with(|| sent(&silent.wake()).1).find(|sent| sent.kind() != Some(Kind::Request));
    assert_eq!(discover.unwrap().kind(), Some(Kind::Discover));
}
