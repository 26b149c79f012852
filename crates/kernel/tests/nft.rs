//! nf_tables against the kernel, in namespaces of their own; `nft -j` says what is really there.

#![allow(clippy::unwrap_used, reason = "a failure here is a failure of the test")]

use std::collections::BTreeMap;
use std::io::Write;

use harness::{Namespace, run_ok};
use kernel::nft::{Nft, Transaction};
use netstate::nft::{
    self, BaseChain, Chain, ChainKind, Element, Family, Field, Hook, IpVersion, Key, KeyType, Operator,
    Policy, Rule, Set, Statement, Table, Value, Verdict, priority,
};
use netstate::{LinkName, Mac};
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value as Json;

/// Runs `work` with a conversation that was opened inside the namespace.
fn inside<T: Send>(namespace: &Namespace, work: impl FnOnce(&mut Nft) -> T + Send) -> T {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let path = std::fs::File::open(namespace.path()).unwrap();
            #[allow(clippy::disallowed_methods, reason = "the thread ends with the test")]
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&path),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )
            .unwrap();
            work(&mut Nft::open().unwrap())
        });
        inside.join().unwrap()
    })
}

fn commit(nft: &mut Nft, steps: &[nft::Step]) {
    nft.carry_out(steps.to_vec()).unwrap_or_else(|error| panic!("{error}"));
}

fn address(text: &str) -> Key {
    vec![Value::Address(text.parse().unwrap())]
}

fn network(text: &str) -> Key {
    vec![Value::Network(text.parse().unwrap())]
}

fn link(name: &str) -> LinkName {
    name.parse().unwrap()
}

fn postrouting() -> BaseChain {
    BaseChain {
        kind: ChainKind::Nat,
        hook: Hook::Postrouting,
        priority: priority::SRCNAT,
        policy: Policy::Accept,
    }
}

fn host_ports(name: &str, kind: KeyType, pods: [(&str, u16, Option<&str>); 2]) -> Set {
    let map = Set::map(name, [KeyType::Protocol, KeyType::Port], [kind, KeyType::Port]);
    pods.into_iter().fold(map, |map, (pod, port, comment)| {
        let data = [Value::Address(pod.parse().unwrap()), Value::Port(port)];
        map.with_mapping([Value::Protocol(6), Value::Port(8000 + port)], data, comment)
    })
}

fn ways<const N: usize>(name: &str, ways: [(&str, Verdict); N]) -> Set {
    let mut map = Set::verdict_map(name, [KeyType::Ipv4]);
    let ways = ways.map(|(pod, verdict)| (address(pod).to_vec(), Element::leading_to(verdict)));
    map.elements.extend(ways);
    map
}

fn ways_of_class(class: u32, way: Verdict) -> Set {
    let mut map = Set::verdict_map("ways-of-classes", [KeyType::Class]);
    map.elements.insert(vec![Value::Class(class)], Element::leading_to(way));
    map
}

fn host_port(version: IpVersion, map: &str) -> Statement {
    Statement::Dnat { version, fields: vec![Field::Protocol, Field::DestinationPort], map: map.to_owned() }
}

/// One of everything that the model can say.
#[allow(clippy::too_many_lines, reason = "a table")]
fn everything() -> Table {
    let pair =
        vec![Value::Network("10.1.0.0/16".parse().unwrap()), Value::Network("10.2.3.4/32".parse().unwrap())];
    let port = vec![Value::Ifname(link("veth0")), Value::Ether(Mac([2, 0, 0, 0, 0, 1]))];
    let service = vec![Value::Address("10.0.0.1".parse().unwrap()), Value::Protocol(6), Value::Port(80)];
    let field = Field::Source(IpVersion::V4);
    let tcp = Statement::equal(Field::Protocol, Value::Protocol(6));
    Table::new(Family::Inet, "fairlead")
        .with_set(
            Set::new("pods", [KeyType::Ipv4]).with_element(address("10.244.1.2"), Some("default/web-1")),
        )
        .with_set(Set::new("pods6", [KeyType::Ipv6]).with_element(address("fd00::2"), None))
        .with_set(
            Set::interval("cluster", [KeyType::Ipv4])
                .with_element(network("10.244.0.0/16"), Some("pods"))
                .with_element(network("10.245.0.0/16"), None)
                .with_element(network("255.255.0.0/16"), None),
        )
        .with_set(Set::interval("all6", [KeyType::Ipv6]).with_element(network("::/0"), None))
        .with_set(Set::interval("pairs", [KeyType::Ipv4, KeyType::Ipv4]).with_element(pair, Some("a pair")))
        .with_set(Set::new("ports", [KeyType::Ifname, KeyType::Ether]).with_element(port, None))
        .with_set(
            Set::new("services", [KeyType::Ipv4, KeyType::Protocol, KeyType::Port])
                .with_element(service, None),
        )
        .with_set(host_ports(
            "hostports4",
            KeyType::Ipv4,
            [("10.244.1.2", 80, Some("a pod")), ("10.244.1.3", 53, None)],
        ))
        .with_set(host_ports(
            "hostports6",
            KeyType::Ipv6,
            [("fd00::2", 80, Some("a pod")), ("fd00::3", 53, None)],
        ))
        .with_set(ways(
            "ways",
            [("10.244.1.2", Verdict::Jump("hostports".into())), ("10.244.1.3", Verdict::Drop)],
        ))
        .with_set(
            Set::map("classes", [KeyType::Ipv4], [KeyType::Class])
                .with_mapping(address("10.244.1.2"), [Value::Class(0x12ab_0cd0)], None)
                .with_mapping(address("10.244.1.3"), [Value::Class(0x10)], Some("a pod")),
        )
        .with_set(ways_of_class(0x12ab_0cd0, Verdict::Goto("hostports".into())))
        .with_chain(
            Chain::base(
                "prerouting",
                BaseChain { hook: Hook::Prerouting, priority: priority::DSTNAT, ..postrouting() },
            )
            .with_rule(Rule::new([
                Statement::DestinationIsLocal,
                Statement::Verdict(Verdict::Jump("hostports".into())),
            ]))
            .with_rule(Rule::new([Statement::VerdictMap { fields: vec![field], map: "ways".into() }]))
            .with_rule(Rule::new([
                Statement::SetPriority { fields: vec![field], map: "classes".into() },
                Statement::VerdictMap { fields: vec![Field::Priority], map: "ways-of-classes".into() },
            ]))
            .with_rule(Rule::new([Statement::SourceIsLocal, Statement::Verdict(Verdict::Accept)]))
            .with_rule(Rule::new([Statement::DestinationIsUnicast, Statement::Verdict(Verdict::Return)]))
            .with_rule(Rule::new([
                Statement::equal(Field::InputGroup, Value::Number(7)),
                Statement::SourceIsElsewhere,
                Statement::Verdict(Verdict::Drop),
            ]))
            .with_rule(Rule::new([
                Statement::equal(Field::Protocol, Value::Protocol(58)),
                Statement::equal(Field::IcmpType, Value::Protocol(135)),
                Statement::Verdict(Verdict::Accept),
            ])),
        )
        .with_chain(
            Chain::regular("hostports")
                .with_rule(Rule::new([
                    Statement::equal(Field::Protocol, Value::Protocol(17)),
                    Statement::Between {
                        field: Field::SourcePort,
                        operator: Operator::NotEqual,
                        first: Value::Port(100),
                        last: Value::Port(200),
                    },
                    Statement::Between {
                        field,
                        operator: Operator::Equal,
                        first: Value::Address("10.0.0.3".parse().unwrap()),
                        last: Value::Address("10.0.0.9".parse().unwrap()),
                    },
                    host_port(IpVersion::V4, "hostports4"),
                ]))
                .with_rule(Rule::new([host_port(IpVersion::V6, "hostports6")])),
        )
        .with_chain(
            Chain::base("postrouting", postrouting())
                .with_rule(
                    Rule::new([
                        Statement::in_set([field], "pods"),
                        Statement::destination_not_in("10.244.0.0/17".parse().unwrap()),
                        Statement::not_in_set([Field::Destination(IpVersion::V4)], "cluster"),
                        Statement::Masquerade { fully_random: true },
                    ])
                    .with_comment("leaving the cluster"),
                )
                .with_rule(Rule::new([
                    Statement::source_in("fd00::/20".parse().unwrap()),
                    Statement::Masquerade { fully_random: false },
                ])),
        )
        .with_chain(
            Chain::base(
                "forward",
                BaseChain {
                    kind: ChainKind::Filter,
                    hook: Hook::Forward,
                    priority: -5,
                    policy: Policy::Drop,
                },
            )
            .with_rule(Rule::new([Statement::ct_state(6), Statement::Verdict(Verdict::Accept)]))
            .with_rule(Rule::new([
                tcp.clone(),
                Statement::MaskedMatch {
                    field: Field::TcpFlags,
                    mask: nft::tcp_flags::SYN | nft::tcp_flags::RST,
                    operator: Operator::Equal,
                    value: 0,
                },
                Statement::in_set([field, field], "pairs"),
                Statement::Verdict(Verdict::Drop),
            ]))
            .with_rule(Rule::new([
                Statement::equal(Field::InputLink, Value::Ifname(link("eth0"))),
                Statement::not_equal(Field::OutputLink, Value::Ifname(link("eth1"))),
                Statement::Verdict(Verdict::Jump("inner".into())),
            ]))
            .with_rule(Rule::new([
                Statement::in_set([field, Field::Destination(IpVersion::V4)], "pairs"),
                Statement::Counter,
                Statement::Verdict(Verdict::Goto("inner".into())),
            ]))
            .with_rule(Rule::new([
                tcp,
                Statement::equal(Field::DestinationPort, Value::Port(80)),
                Statement::in_set(
                    [Field::Destination(IpVersion::V4), Field::Protocol, Field::DestinationPort],
                    "services",
                ),
                Statement::Verdict(Verdict::Drop),
            ])),
        )
        .with_chain(
            Chain::regular("inner")
                .with_rule(Rule::new([
                    Statement::MaskedMatch {
                        field: Field::Mark,
                        mask: 0x4000,
                        operator: Operator::Equal,
                        value: 0x4000,
                    },
                    Statement::SetMark { mask: 0x8000, value: 0x8000 },
                    Statement::Verdict(Verdict::Return),
                ]))
                .with_rule(Rule::new([Statement::SetMark { mask: u32::MAX, value: 7 }])),
        )
}

fn of_kind<'a>(ruleset: &'a [Json], kind: &str) -> Vec<&'a Json> {
    ruleset.iter().filter_map(|object| object.get(kind)).collect()
}

#[test]
fn a_table_comes_back_as_it_was_made_and_needs_no_second_step() {
    let namespace = Namespace::new();
    let want = everything();
    inside(&namespace, |nft| {
        commit(nft, &nft::diff(None, Some(&want)));
        let have = nft.table(&want.key, Some(&want)).unwrap().unwrap();
        assert_eq!(have.to_string(), want.to_string());
        assert_eq!(nft::diff(Some(&have), Some(&want)), Vec::new());
        assert_eq!(nft.tables().unwrap(), vec![want.key.clone()]);
    });
}

#[test]
fn nft_lists_our_rules_in_its_own_words() {
    let namespace = Namespace::new();
    let want = everything();
    inside(&namespace, |nft| commit(nft, &nft::diff(None, Some(&want))));
    let text = run_ok(namespace.command("nft").args(["list", "ruleset"]));
    for line in [
        "type nat hook postrouting priority srcnat; policy accept;",
        "ip saddr @pods ip daddr != 10.244.0.0/17 ip daddr != @cluster masquerade fully-random comment \"leaving the cluster #",
        "ip6 saddr fd00::/20 masquerade comment",
        "type filter hook forward priority filter - 5; policy drop;",
        "ct state established,related accept",
        "tcp flags ! syn,rst ip saddr . ip saddr @pairs drop",
        "iifname \"eth0\" oifname != \"eth1\" jump inner",
        "ip saddr . ip daddr @pairs counter packets 0 bytes 0 goto inner",
        "tcp dport 80 ip daddr . meta l4proto . tcp dport @services drop",
        "meta mark & 0x00004000 == 0x00004000",
        "meta mark set meta mark | 0x00008000 return",
        "meta mark set 0x00000007",
        "10.244.1.2 comment \"default/web-1\"",
        "type inet_proto . inet_service : ipv4_addr . inet_service",
        "tcp . 8080 comment \"a pod\" : 10.244.1.2 . 80",
        "tcp . 8080 comment \"a pod\" : fd00::2 . 80",
        "tcp . 8053 : fd00::3 . 53",
        "type nat hook prerouting priority dstnat; policy accept;",
        "fib daddr type local jump hostports",
        "fib saddr type local accept",
        "meta priority set ip saddr map @classes meta priority vmap @ways-of-classes",
        "10.244.1.2 : 12ab:cd0",
        "12ab:cd0 : goto hostports",
        "fib daddr type unicast return",
        "iifgroup 7 fib saddr . iif oif missing drop",
        "udp sport != 100-200 ip saddr 10.0.0.3-10.0.0.9 dnat ip to meta l4proto . udp dport map @hostports4 comment",
        "dnat ip6 to meta l4proto . th dport map @hostports6 comment",
        "elements = { 10.244.0.0/16 comment \"pods\", 10.245.0.0/16,",
        "255.255.0.0/16 }",
        "elements = { 10.1.0.0/16 . 10.2.3.4 comment \"a pair\" }",
        "elements = { \"veth0\" . 02:00:00:00:00:01 }",
        "elements = { 10.0.0.1 . tcp . 80 }",
        "elements = { ::/0 }",
    ] {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
    // Whoever saves a node's ruleset, and loads it again, loads ours with it.
    let mut saved = tempfile::NamedTempFile::new().unwrap();
    saved.write_all(format!("flush ruleset\n{text}").as_bytes()).unwrap();
    run_ok(namespace.command("nft").arg("-f").arg(saved.path()));
    assert_eq!(run_ok(namespace.command("nft").args(["list", "ruleset"])), text);
}

#[test]
fn twenty_thousand_elements_go_in_come_back_and_leave() {
    let namespace = Namespace::new();
    let mut want = Table::new(Family::Inet, "fairlead");
    let mut set = Set::new("pods", [KeyType::Ipv4]);
    for number in 0..20_000_u32 {
        let address = std::net::Ipv4Addr::from(0x0af4_0000 + number);
        set = set.with_element(vec![Value::Address(address.into())], Some(&format!("pod {number}")));
    }
    want = want.with_set(set.clone());
    inside(&namespace, |nft| {
        commit(nft, &nft::diff(None, Some(&want)));
        assert_eq!(nft.elements(&want.key, &set).unwrap(), set.elements);
        assert!(nft.contains(&want.key, "pods", &address("10.244.1.1")).unwrap());
        assert!(!nft.contains(&want.key, "pods", &address("10.1.1.1")).unwrap());
        assert!(!nft.contains(&want.key, "nobody", &address("10.1.1.1")).unwrap());
        let none = Table::new(Family::Inet, "fairlead").with_set(Set::new("pods", [KeyType::Ipv4]));
        commit(nft, &nft::diff(Some(&want), Some(&none)));
        assert_eq!(nft.elements(&want.key, &set).unwrap(), BTreeMap::new());
    });
}

#[test]
fn a_refused_change_undoes_its_whole_transaction_and_is_named() {
    let namespace = Namespace::new();
    let table = nft::TableKey::new(Family::Inet, "fairlead");
    inside(&namespace, |nft| {
        let mut transaction = Transaction::new();
        let lost = Rule::new([Statement::Verdict(Verdict::Jump("nowhere".into()))]);
        transaction.add_table(&table).add_chain(&table, &Chain::regular("inner"));
        transaction.add_rule(&table, "inner", &lost);
        let error = nft.commit(transaction).unwrap_err();
        assert!(error.to_string().contains("add rule inet fairlead inner jump nowhere"), "{error}");
        assert!(error.is_missing());
    });
    assert!(of_kind(&namespace.nft_ruleset(), "table").is_empty());
}

#[test]
fn creating_a_set_twice_is_refused_and_adding_it_twice_is_not() {
    let namespace = Namespace::new();
    let table = nft::TableKey::new(Family::Inet, "fairlead_cni");
    let set = Set::new("pods", [KeyType::Ipv4]);
    inside(&namespace, |nft| {
        let mut first = Transaction::new();
        first.add_table(&table).create_set(&table, &set);
        nft.commit(first).unwrap();
        let mut again = Transaction::new();
        again.add_table(&table).create_set(&table, &set);
        assert!(nft.commit(again).unwrap_err().exists());
        let mut tolerant = Transaction::new();
        tolerant.add_table(&table).add_set(&table, &set);
        nft.commit(tolerant).unwrap();
        let mut twice = Transaction::new();
        let key = address("10.0.0.1");
        twice.add_elements(&table, "pods", [(&key, Some("one"))]);
        twice.add_elements(&table, "pods", [(&key, Some("one"))]);
        nft.commit(twice).unwrap();
        let mut gone = Transaction::new();
        gone.delete_elements(&table, "pods", [&address("10.0.0.2")]);
        assert!(nft.commit(gone).unwrap_err().is_missing());
    });
}

#[test]
fn an_element_of_a_map_is_found_with_its_data_and_made_only_once() {
    let namespace = Namespace::new();
    let want = everything();
    let map = want.sets["hostports4"].clone();
    let (key, element) = map.elements.first_key_value().unwrap();
    inside(&namespace, |nft| {
        assert_eq!(nft.element(&want.key, &map, key).unwrap(), None);
        assert_eq!(nft.sets(&want.key).unwrap(), Vec::new());
        commit(nft, &nft::diff(None, Some(&want)));
        assert_eq!(nft.element(&want.key, &map, key).unwrap().as_ref(), Some(element));
        assert_eq!(nft.elements(&want.key, &map).unwrap(), map.elements);
        let bare = nft.sets(&want.key).unwrap();
        assert_eq!(bare.len(), want.sets.len());
        assert!(bare.contains(&Set { elements: BTreeMap::new(), ..map.clone() }));
        let mut again = Transaction::new();
        again.create_mappings(&want.key, &map.name, [(key, element)]);
        assert!(nft.commit(again).unwrap_err().exists());
        let mut chain = Transaction::new();
        chain.create_chain(&want.key, &Chain::regular("hostports"));
        assert!(nft.commit(chain).unwrap_err().exists());
    });
}

#[test]
fn a_hardware_address_check_works_in_the_bridge_family() {
    let namespace = Namespace::new();
    let base = BaseChain {
        kind: ChainKind::Filter,
        hook: Hook::Prerouting,
        priority: priority::BRIDGE_FILTER,
        policy: Policy::Accept,
    };
    let mac = Mac([2, 0, 0, 0, 0, 1]);
    let want = Table::new(Family::Bridge, "fairlead_macspoof")
        .with_set(
            Set::new("ports", [KeyType::Ifname]).with_element([Value::Ifname(link("veth0"))], Some("c1")),
        )
        .with_set(
            Set::new("allowed", [KeyType::Ifname, KeyType::Ether])
                .with_element([Value::Ifname(link("veth0")), Value::Ether(mac)], Some("c1")),
        )
        .with_chain(Chain::base("prerouting", base).with_rule(Rule::new([
            Statement::in_set([Field::InputLink], "ports"),
            Statement::not_in_set([Field::InputLink, Field::EtherSource], "allowed"),
            Statement::Verdict(Verdict::Drop),
        ])));
    inside(&namespace, |nft| {
        commit(nft, &nft::diff(None, Some(&want)));
        assert_eq!(nft.table(&want.key, Some(&want)).unwrap(), Some(want.clone()));
    });
    let text = run_ok(namespace.command("nft").args(["list", "ruleset"]));
    assert!(text.contains("iifname @ports iifname . ether saddr != @allowed drop"), "{text}");
}

#[test]
fn what_others_edit_is_seen_and_healed() {
    let namespace = Namespace::new();
    let want = everything();
    inside(&namespace, |nft| commit(nft, &nft::diff(None, Some(&want))));
    let edits: [&[&str]; 12] = [
        &["flush", "chain", "inet", "fairlead", "forward"],
        &["insert", "rule", "inet", "fairlead", "inner", "drop"],
        &["delete", "element", "inet", "fairlead", "pods", "{ 10.244.1.2 }"],
        &["add", "element", "inet", "fairlead", "pods", "{ 10.9.9.9 }"],
        &["add", "element", "inet", "fairlead", "cluster", "{ 10.7.0.1-10.7.0.6 }"],
        &["delete", "element", "inet", "fairlead", "hostports4", "{ tcp . 8080 }"],
        &["add", "element", "inet", "fairlead", "hostports6", "{ udp . 1 : ::2 . 3 }"],
        &["add", "map", "inet", "fairlead", "extra", "{ type mark : verdict; }"],
        &["add", "chain", "inet", "fairlead", "extra"],
        &["add", "set", "inet", "fairlead", "extra", "{ type mark; timeout 1h; }"],
        &["add", "chain", "inet", "fairlead", "forward", "{ policy accept; }"],
        &["delete", "table", "inet", "fairlead"],
    ];
    for edit in edits {
        run_ok(namespace.command("nft").args(edit));
        inside(&namespace, |nft| {
            let have = nft.table(&want.key, Some(&want)).unwrap();
            let steps = nft::diff(have.as_ref(), Some(&want));
            assert!(!steps.is_empty(), "{edit:?} was not seen");
            commit(nft, &steps);
            let healed = nft.table(&want.key, Some(&want)).unwrap().unwrap();
            assert_eq!(healed.to_string(), want.to_string(), "after {edit:?}");
        });
    }
}

/// A table of one chain, with a rule for each letter; a capital one looks into a set of that name.
fn marks(letters: &str) -> Table {
    let mut table = Table::new(Family::Inet, "fairlead");
    let mut chain = Chain::regular("marks");
    for letter in letters.chars() {
        let (field, operator) = (Field::Mark, Operator::Equal);
        let mark = Statement::MaskedMatch { field, mask: 0xff, operator, value: u32::from(letter) };
        let mut statements = vec![mark];
        if letter.is_uppercase() {
            let set = Set::new(letter.to_string(), [KeyType::Ipv4]);
            statements.push(Statement::in_set([Field::Source(IpVersion::V4)], set.name.clone()));
            table = table.with_set(set.with_element(address("10.244.1.2"), None));
        }
        statements.push(Statement::Counter);
        chain = chain.with_rule(Rule::new(statements).with_comment("a mark"));
    }
    table.with_chain(chain)
}

#[test]
fn a_chain_that_is_written_again_keeps_the_rules_that_stay() {
    let namespace = Namespace::new();
    let handles = || -> Vec<(String, u64)> {
        let ruleset = namespace.nft_ruleset();
        let rules = of_kind(&ruleset, "rule").into_iter();
        rules.map(|rule| (rule["comment"].to_string(), rule["handle"].as_u64().unwrap())).collect()
    };
    let mut have = marks("abcd");
    inside(&namespace, |nft| commit(nft, &nft::diff(None, Some(&have))));
    let changes = [
        ("abcde", 4),
        ("xabcde", 5),
        ("xaye", 3),
        ("xae", 3),
        ("xaae", 3),
        ("xaSe", 3),
        ("xTSe", 3),
        ("TSe", 3),
        ("e", 1),
        ("fg", 0),
        ("", 0),
    ];
    for (letters, stay) in changes {
        let was = handles();
        let want = marks(letters);
        inside(&namespace, |nft| {
            commit(nft, &nft::diff(Some(&have), Some(&want)));
            assert_eq!(nft.table(&want.key, Some(&want)).unwrap().unwrap(), want, "{letters}");
        });
        let now = handles();
        assert_eq!(now.iter().filter(|rule| was.contains(rule)).count(), stay, "{letters}: {was:?} {now:?}");
        have = want;
    }
}

#[test]
fn changes_that_are_made_together_come_to_the_last_of_them() {
    let namespace = Namespace::new();
    let courses: [&[&str]; 9] = [
        &["a", "ab", "a"],
        &["ab", "a", "ab"],
        &["abc", "axc", "abc", "ac"],
        &["ab", "abc", ""],
        &["", "a", "ab"],
        &["ab", "", "ab"],
        &["aS", "a", "aS"],
        &["aS", "", "aS"],
        &["aS", "aST", "aT", "TS"],
    ];
    courses.iter().for_each(|course| go_through(&namespace, course));
    // The same of any.
    let any = proptest::collection::vec("[a-cS-U]{0,4}", 2..6);
    let mut runner = TestRunner::new(Config::with_cases(100));
    let done = runner.run(&any, |course| {
        let course: Vec<&str> = course.iter().map(String::as_str).collect();
        go_through(&namespace, &course);
        Ok(())
    });
    done.unwrap();
}

/// Makes all the changes from one table to the next in one transaction.
fn go_through(namespace: &Namespace, course: &[&str]) {
    let tables: Vec<Table> = course.iter().map(|letters| marks(letters)).collect();
    let steps: Vec<nft::Step> =
        tables.windows(2).flat_map(|pair| nft::diff(Some(&pair[0]), Some(&pair[1]))).collect();
    let want = tables.last().unwrap();
    inside(namespace, |nft| {
        let mut clean = Transaction::new();
        clean.add_table(&want.key).delete_table(&want.key);
        nft.commit(clean).unwrap();
        commit(nft, &nft::diff(None, Some(&tables[0])));
        commit(nft, &steps);
        assert_eq!(nft.table(&want.key, Some(want)).unwrap().as_ref(), Some(want), "{course:?}");
    });
}
