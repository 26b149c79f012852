//! What rules count and tell of packets, in namespaces of their own; `nft -j` says what is really there.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failure here is a failure of the test")]

use std::net::UdpSocket;
use std::time::Duration;

use harness::{Namespace, eventually, run_ok};
use kernel::nflog::{Headers, LogSocket};
use kernel::nft::{Nft, Transaction};
use netstate::nft::{
    BaseChain, Chain, ChainKind, Family, Field, Hook, Limit, Log, Policy, Rule, Statement, Table, TableKey,
    Value, Verdict, diff, priority,
};
use serde_json::Value as Json;

const GROUP: u16 = 700;

fn key() -> TableKey {
    TableKey::new(Family::Inet, "fairlead_told")
}

/// A table that counts datagrams to two ports, and tells of those to the first: so many a second.
fn table(per_second: u32) -> Table {
    let base = BaseChain {
        kind: ChainKind::Filter,
        hook: Hook::Output,
        priority: priority::FILTER,
        policy: Policy::Accept,
    };
    let to = |port| {
        let protocol = Statement::equal(Field::Protocol, Value::Protocol(17));
        vec![protocol, Statement::equal(Field::DestinationPort, Value::Port(port))]
    };
    let told = [
        Statement::Limit(Limit { per_second, burst: per_second }),
        Statement::Log(Log { group: GROUP, prefix: "denied ingress-pod-0 1".to_owned(), bytes: 64 }),
    ];
    let counted = |port| [to(port), vec![Statement::Counter]].concat();
    let chain = Chain::base("output", base)
        .with_rule(Rule::new([to(9001), told.to_vec()].concat()).with_comment("told"))
        .with_rule(Rule::new(counted(9001)).with_comment("first"))
        .with_rule(Rule::new(counted(9002)))
        .with_rule(Rule::new([Statement::Verdict(Verdict::Accept)]));
    Table::new(Family::Inet, key().name).with_chain(chain)
}

fn apply(nft: &mut Nft, have: Option<&Table>, want: &Table) {
    let mut transaction = Transaction::new();
    diff(have, Some(want)).iter().for_each(|step| {
        transaction.add_step(step);
    });
    nft.commit(transaction).unwrap_or_else(|error| panic!("{error}"));
}

/// One sender for a whole test: what a program holds that another test is just starting is not closed yet.
fn sender() -> impl Fn(u16, usize) {
    let socket = UdpSocket::bind("127.0.0.1:9000").unwrap();
    move |port, size| {
        socket.send_to(&vec![7; size], ("127.0.0.1", port)).unwrap();
    }
}

#[test]
fn what_is_written_is_what_nft_shows_and_what_is_recognised_again() {
    let namespace = Namespace::with_loopback();
    let wanted = table(10);
    let read = namespace.inside(|| {
        let mut nft = Nft::open().unwrap();
        apply(&mut nft, None, &wanted);
        nft.table(&key(), Some(&wanted)).unwrap().unwrap()
    });
    assert_eq!(read, wanted);
    let shown = run_ok(namespace.command("nft").args(["-j", "list", "table", "inet", "fairlead_told"]));
    let shown: Json = serde_json::from_str(&shown).unwrap();
    let rule =
        shown["nftables"].as_array().unwrap().iter().find(|object| object["rule"].is_object()).unwrap();
    let statements = rule["rule"]["expr"].as_array().unwrap();
    let of = |kind: &str| &statements.iter().find(|statement| statement[kind].is_object()).unwrap()[kind];
    assert_eq!((&of("limit")["rate"], &of("limit")["per"]), (&10.into(), &"second".into()));
    let log = of("log");
    assert_eq!((&log["group"], &log["snaplen"]), (&GROUP.into(), &64.into()));
    assert_eq!(log["prefix"], "denied ingress-pod-0 1");
}

#[test]
fn counters_are_read_by_chain_and_digest_and_begin_anew_with_their_chain() {
    let namespace = Namespace::with_loopback();
    namespace.inside(|| {
        let mut nft = Nft::open().unwrap();
        assert_eq!(nft.counters(&key()).unwrap(), [], "no table, no counters");
        let wanted = table(10);
        apply(&mut nft, None, &wanted);
        let send = sender();
        send(9001, 10);
        send(9001, 10);
        send(9002, 72);
        let rules = &wanted.chains["output"].rules;
        let counted = nft.counters(&key()).unwrap();
        let read: Vec<_> = counted.iter().map(|one| (one.digest, one.packets, one.bytes)).collect();
        assert_eq!(read, [(Some(rules[1].digest()), 2, 76), (Some(rules[2].digest()), 1, 100)]);
        assert!(counted.iter().all(|one| one.chain == "output"));
        apply(&mut nft, Some(&wanted), &table(20));
        let again = nft.counters(&key()).unwrap();
        assert_eq!(again.iter().map(|one| one.packets).collect::<Vec<_>>(), [0, 0]);
    });
}

#[test]
fn who_listens_to_a_group_hears_of_packets_as_far_as_the_limit_goes_and_is_alone() {
    let namespace = Namespace::with_loopback();
    namespace.inside(|| {
        let mut nft = Nft::open().unwrap();
        apply(&mut nft, None, &table(2));
        let mut log = LogSocket::open(GROUP, 128).unwrap();
        assert!(LogSocket::open(GROUP, 128).is_err(), "a group has one listener");
        let send = sender();
        for _ in 0..20 {
            send(9001, 100);
        }
        let mut told = Vec::new();
        while told.len() < 2 {
            let more = log.receive(Duration::from_secs(20)).unwrap();
            assert!(!more.is_empty(), "only {} were told", told.len());
            told.extend(more);
        }
        assert!(told.len() < 20, "all were told, whatever the limit");
        let first = &told[0];
        assert_eq!(first.prefix, "denied ingress-pod-0 1");
        assert_eq!((first.mark, first.input_link, first.output_link > 0), (0, 0, true));
        let [source, destination] = ["127.0.0.1", "127.0.0.1"].map(|text| text.parse().unwrap());
        assert_eq!(first.headers, Some(Headers { source, destination, protocol: 17, ports: [9000, 9001] }));
    });
}

#[test]
fn a_listener_that_ends_makes_room_for_the_next_and_packets_pass_without_one() {
    let namespace = Namespace::with_loopback();
    namespace.inside(|| {
        apply(&mut Nft::open().unwrap(), None, &table(1000));
        let receiver = UdpSocket::bind("127.0.0.1:9001").unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let send = sender();
        send(9001, 1);
        assert_eq!(receiver.recv(&mut [0; 9]).unwrap(), 1);
        for _ in 0..2 {
            let mut log = eventually("room for a listener", || LogSocket::open(GROUP, 128).ok());
            send(9001, 1);
            assert_eq!(log.receive(Duration::from_secs(20)).unwrap().len(), 1);
        }
    });
}
