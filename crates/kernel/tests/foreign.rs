//! Rules of other programs, read and removed: the same questions asked of what `iptables-legacy` and `iptables-nft`
//! made. The tools' own listings say what is left.

#![allow(clippy::unwrap_used, reason = "a failure here is a failure of the test")]

use harness::{Namespace, not_run, run, run_ok};
use kernel::foreign::{ForeignRule, NARROWED};
use kernel::nft::{IptablesRule, Nft, Transaction};
use kernel::xtables::{self, Table};
use netstate::nft::{Family, Hook, IpVersion, Policy, TableKey, Verdict};

fn inside<T: Send>(namespace: &Namespace, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let path = std::fs::File::open(namespace.path()).unwrap();
            #[allow(clippy::disallowed_methods, reason = "the thread ends with the test")]
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&path),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )
            .unwrap();
            work()
        });
        inside.join().unwrap()
    })
}

/// Both versions, with a source that an entry can have.
const VERSIONS: [(IpVersion, &str, &str); 2] =
    [(IpVersion::V4, "iptables", "10.1.2.3"), (IpVersion::V6, "ip6tables", "2001:db8::3")];

fn octets(address: &str) -> Vec<u8> {
    match address.parse().unwrap() {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A chain of its own that `POSTROUTING` jumps to from `source`, among rules of others.
fn fill(host: &Namespace, program: &str, source: &str) {
    for line in [
        "-N OTHERS",
        "-N DOOMED",
        "-A POSTROUTING -j OTHERS",
        &format!("-A POSTROUTING -s {source} -m comment --comment whose -j DOOMED"),
        "-A POSTROUTING -o lo -j OTHERS",
        "-A DOOMED -p tcp --dport 80 -j ACCEPT",
        "-A DOOMED -j MASQUERADE",
        "-N LAST",
        "-A OTHERS -j LAST",
        "-A LAST -m comment --comment counted -j RETURN",
    ] {
        run_ok(host.command(program).args(["-w", "-t", "nat"]).args(line.split_whitespace()));
    }
}

fn listed(host: &Namespace, program: &str) -> String {
    run_ok(host.command(program).args(["-w", "-t", "nat", "-S"]))
}

fn expect_recognised(rules: &[ForeignRule], source: &str) {
    let jump = rules.iter().find(|rule| rule.jump.as_deref() == Some("DOOMED")).unwrap();
    assert_eq!((jump.chain.as_str(), jump.comment.as_deref()), ("POSTROUTING", Some("whose")));
    assert!(jump.mentions(&octets(source)), "{jump:?}");
    let inside: Vec<&ForeignRule> = rules.iter().filter(|rule| rule.chain == "DOOMED").collect();
    assert_eq!(inside.len(), 2, "{rules:?}");
    assert!(inside[0].has("accept") && inside[1].has("MASQUERADE"), "{inside:?}");
    let port = 80_u16;
    assert!(inside[0].mentions(&port.to_be_bytes()) || inside[0].mentions(&port.to_ne_bytes()), "{inside:?}");
    assert_eq!(rules.iter().filter(|rule| rule.jump.as_deref() == Some("OTHERS")).count(), 2);
}

#[test]
fn rules_and_chains_of_the_older_interface_go_and_all_else_stays_with_its_counters() {
    let host = Namespace::with_loopback();
    for (version, program, source) in VERSIONS {
        let program = program.replace("tables", "tables-legacy");
        if !run(host.command(&program).args(["-w", "-t", "nat", "-S"])).status.success() {
            return not_run("the kernel has no older iptables interface (CONFIG_IP_NF_IPTABLES_LEGACY)");
        }
        let before = {
            run_ok(host.command(&program).args(["-w", "-t", "nat", "-P", "POSTROUTING", "ACCEPT"]));
            fill(&host, &program, source);
            listed(&host, &program)
        };
        // So that something has been counted.
        host.pings(if version == IpVersion::V4 { "127.0.0.1" } else { "::1" });
        let counters =
            |host: &Namespace| run_ok(host.command(&program).args(["-w", "-t", "nat", "-nvxL", "LAST"]));
        let counted = counters(&host);
        inside(&host, || {
            let mut table = Table::read(version, "nat").unwrap().unwrap();
            expect_recognised(&table.rules(), source);
            assert!(table.chains().iter().any(|chain| chain == "DOOMED"));
            // Somebody else's rule leads there: the chain stays, with its rules.
            table.remove(|_| false, |chain| chain == "DOOMED").unwrap();
            assert_eq!(listed(&host, &program), before);
            let stale = |rule: &ForeignRule| rule.jump.as_deref() == Some("DOOMED");
            table.remove(stale, |chain| chain == "DOOMED").unwrap();
            assert!(!table.chains().iter().any(|chain| chain == "DOOMED"));
            // There is nothing left to remove.
            table.remove(stale, |chain| chain == "DOOMED").unwrap();
        });
        let expected: Vec<&str> = before.lines().filter(|line| !line.contains("DOOMED")).collect();
        assert_eq!(listed(&host, &program).lines().collect::<Vec<_>>(), expected);
        assert_eq!(counters(&host), counted);
        // The kernel itself takes what was written as sound: a rule can be added and removed as ever.
        run_ok(host.command(&program).args(["-w", "-t", "nat", "-I", "LAST", "-j", "RETURN"]));
        run_ok(host.command(&program).args(["-w", "-t", "nat", "-F"]));
    }
}

#[test]
fn a_chain_of_the_older_interface_stays_when_one_that_stays_leads_there() {
    let host = Namespace::with_loopback();
    for (version, program, _) in VERSIONS {
        let program = program.replace("tables", "tables-legacy");
        if !run(host.command(&program).args(["-w", "-t", "nat", "-S"])).status.success() {
            return not_run("the kernel has no older iptables interface (CONFIG_IP_NF_IPTABLES_LEGACY)");
        }
        for line in [
            "-N DOOMED-A",
            "-N DOOMED-B",
            "-N OTHERS",
            "-A DOOMED-A -j RETURN",
            // Without a target: leads to the rule behind it.
            "-A DOOMED-B -s 0/0",
            "-A DOOMED-B -g DOOMED-A",
            "-A OTHERS -j DOOMED-B",
        ] {
            let line = if version == IpVersion::V6 { line.replace("0/0", "::/0") } else { line.to_owned() };
            run_ok(host.command(&program).args(["-w", "-t", "nat"]).args(line.split_whitespace()));
        }
        let before = listed(&host, &program);
        inside(&host, || {
            let mut table = Table::read(version, "nat").unwrap().unwrap();
            table.remove(|_| false, |chain| chain.starts_with("DOOMED")).unwrap();
            assert_eq!(listed(&host, &program), before);
            let stale = |rule: &ForeignRule| rule.jump.as_deref() == Some("DOOMED-B");
            table.remove(stale, |chain| chain.starts_with("DOOMED")).unwrap();
        });
        let expected: Vec<&str> = before.lines().filter(|line| !line.contains("DOOMED")).collect();
        assert_eq!(listed(&host, &program).lines().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn who_writes_the_older_interface_at_the_same_time_loses_nothing() {
    let host = Namespace::with_loopback();
    let command = |line: &str| {
        run_ok(host.command("iptables-legacy").args(["-w", "-t", "nat"]).args(line.split_whitespace()))
    };
    if !run(host.command("iptables-legacy").args(["-w", "-t", "nat", "-N", "OTHERS"])).status.success() {
        return not_run("the kernel has no older iptables interface (CONFIG_IP_NF_IPTABLES_LEGACY)");
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..40 {
                command(&format!("-A OTHERS -s 10.0.0.{number} -j RETURN"));
            }
        });
        for name in ["A", "B"] {
            let (host, command) = (&host, &command);
            scope.spawn(move || {
                for number in 0..15 {
                    let chain = format!("DOOMED-{name}{number}");
                    command(&format!("-N {chain}"));
                    command(&format!("-A POSTROUTING -j {chain}"));
                    inside(host, || {
                        let mut table = Table::read(IpVersion::V4, "nat").unwrap().unwrap();
                        let stale = |rule: &ForeignRule| rule.jump.as_ref() == Some(&chain);
                        table.remove(stale, |found| found == chain).unwrap();
                    });
                }
            });
        }
    });
    let left = listed(&host, "iptables-legacy");
    assert!(!left.contains("DOOMED"), "{left}");
    let kept: Vec<&str> = left.lines().filter(|line| line.starts_with("-A OTHERS")).collect();
    let expected: Vec<String> =
        (0..40).map(|number| format!("-A OTHERS -s 10.0.0.{number}/32 -j RETURN")).collect();
    assert_eq!(kept, expected);
}

#[test]
fn a_table_that_is_not_there_is_not_made_by_asking() {
    let host = Namespace::new();
    inside(&host, || {
        for (version, ..) in VERSIONS {
            assert!(Table::read(version, "nat").unwrap().is_none());
            assert_eq!(xtables::names(version), [""; 0]);
        }
    });
}

#[test]
fn rules_written_by_iptables_over_nf_tables_are_recognised_and_removed_by_handle() {
    let host = Namespace::with_loopback();
    for (version, program, source) in VERSIONS {
        let program = program.replace("tables", "tables-nft");
        fill(&host, &program, source);
        let before = listed(&host, &program);
        let family = if version == IpVersion::V4 { Family::Ip } else { Family::Ip6 };
        let table = TableKey::new(family, "nat");
        inside(&host, || {
            let mut nft = Nft::open().unwrap();
            let nothing = TableKey::new(family, "nothing");
            let asked =
                [(&table, Some("DOOMED")), (&table, Some("ABSENT")), (&nothing, None), (&table, None)];
            assert_eq!(nft.holds_chains(&asked).unwrap(), [true, false, false, true]);
            assert_eq!(nft.foreign_rules(&nothing, None).unwrap(), []);
            assert_eq!(nft.foreign_rules(&table, Some("ABSENT")).unwrap(), []);
            let rules = nft.foreign_rules(&table, None).unwrap();
            expect_recognised(&rules, source);
            let only = nft.foreign_rules(&table, Some("DOOMED")).unwrap();
            assert_eq!(only, rules.iter().filter(|rule| rule.chain == "DOOMED").cloned().collect::<Vec<_>>());
            assert!(nft.chain_names(&table).unwrap().iter().any(|chain| chain == "DOOMED"));
            let jump = rules.iter().find(|rule| rule.jump.as_deref() == Some("DOOMED")).unwrap();
            let mut transaction = Transaction::new();
            transaction.delete_rule(&table, &jump.chain, jump.place);
            transaction.flush_chain(&table, "DOOMED").delete_chain(&table, "DOOMED");
            nft.commit(transaction).unwrap();
        });
        let expected: Vec<&str> = before.lines().filter(|line| !line.contains("DOOMED")).collect();
        assert_eq!(listed(&host, &program).lines().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn rules_in_the_form_of_iptables_are_listed_and_deleted_by_it() {
    let host = Namespace::with_loopback();
    for (version, program, source) in VERSIONS {
        let program = program.replace("tables", "tables-nft");
        let filter = |arguments: &str| run_ok(host.command(&program).args(arguments.split_whitespace()));
        filter("-N OURS");
        filter("-A FORWARD -i lo -j DROP");
        let family = if version == IpVersion::V4 { Family::Ip } else { Family::Ip6 };
        let table = TableKey::new(family, "filter");
        inside(&host, || {
            let address = source.parse().ok();
            let mut transaction = Transaction::new();
            let jump = Verdict::Jump("OURS".into());
            let jump = IptablesRule { comment: Some("why we are here"), ..IptablesRule::new(jump) };
            transaction.add_iptables_rule(&table, "FORWARD", &jump, true);
            let accept = IptablesRule::new(Verdict::Accept);
            let back = IptablesRule { destination: address, tracked: true, ..accept.clone() };
            transaction.add_iptables_rule(&table, "OURS", &back, false);
            transaction.add_iptables_rule(&table, "OURS", &IptablesRule { source: address, ..accept }, false);
            Nft::open().unwrap().commit(transaction).unwrap();
        });
        let bits = if version == IpVersion::V4 { 32 } else { 128 };
        let rules = [
            "FORWARD -m comment --comment \"why we are here\" -j OURS".to_owned(),
            "FORWARD -i lo -j DROP".to_owned(),
            format!("OURS -d {source}/{bits} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
            format!("OURS -s {source}/{bits} -j ACCEPT"),
        ];
        let listed = filter("-S");
        let listed: Vec<&str> = listed.lines().filter_map(|line| line.strip_prefix("-A ")).collect();
        assert_eq!(listed, rules);
        for rule in &rules[2..] {
            filter(&format!("-C {rule}"));
            filter(&format!("-D {rule}"));
        }
    }
}

/// A rule that asks for whole addresses and nothing else is told from one that asks for more.
#[test]
fn what_a_rule_asks_beyond_whole_addresses_does_not_go_unseen() {
    let host = Namespace::with_loopback();
    let plain = ["-s", "-d"];
    for (version, program, source) in VERSIONS {
        let more = [
            format!("! -s {source}"),
            format!("-s {source} -i lo"),
            format!("-s {source} -p tcp"),
            format!("-s {source}/30"),
        ];
        let asked = plain.map(|side| format!("{side} {source}")).into_iter().chain(more);
        let asked: Vec<String> = asked.collect();
        for flavour in ["legacy", "nft"] {
            let program = program.replace("tables", &format!("tables-{flavour}"));
            if !run(host.command(&program).args(["-w", "-S"])).status.success() {
                not_run("the kernel has no older iptables interface (CONFIG_IP_NF_IPTABLES_LEGACY)");
                continue;
            }
            run_ok(host.command(&program).args(["-w", "-N", "ASKED"]));
            for words in &asked {
                let line = format!("-w -A ASKED {words} -j ACCEPT");
                run_ok(host.command(&program).args(line.split_whitespace()));
            }
            let rules = inside(&host, || match flavour {
                "legacy" => Table::read(version, "filter").unwrap().unwrap().rules(),
                _ => {
                    let family = if version == IpVersion::V4 { Family::Ip } else { Family::Ip6 };
                    let table = TableKey::new(family, "filter");
                    Nft::open().unwrap().foreign_rules(&table, Some("ASKED")).unwrap()
                }
            });
            let rules: Vec<&ForeignRule> = rules.iter().filter(|rule| rule.chain == "ASKED").collect();
            assert_eq!(rules.len(), asked.len(), "{program}: {rules:?}");
            for (rule, words) in rules.iter().zip(&asked) {
                let compared: Vec<&[u8]> = rule
                    .parts
                    .iter()
                    .filter(|part| part.name == "cmp")
                    .map(|part| part.bytes.as_slice())
                    .collect();
                let shown = compared == [octets(source)] && !rule.has(NARROWED) && !rule.has("bitwise");
                let is_plain = plain.iter().any(|side| *words == format!("{side} {source}"));
                assert_eq!(shown, is_plain, "{program} {words}: {rule:?}");
            }
        }
    }
}

#[test]
fn chains_that_drop_what_no_rule_decided_on_are_told_from_those_that_accept() {
    let host = Namespace::with_loopback();
    for line in [
        "add table inet other",
        "add chain inet other shut { type filter hook forward priority 5; policy drop; }",
        "add chain inet other open { type filter hook input priority 0; }",
        "add chain inet other called",
    ] {
        run_ok(host.command("nft").arg(line));
    }
    let key = TableKey::new(Family::Inet, "other");
    let mut found = inside(&host, || Nft::open().unwrap().base_chains(&key).unwrap());
    found.sort_by(|one, other| one.0.cmp(&other.0));
    let told: Vec<_> = found.iter().map(|(name, base)| (name.as_str(), base.hook, base.policy)).collect();
    assert_eq!(told, [("open", Hook::Input, Policy::Accept), ("shut", Hook::Forward, Policy::Drop)]);
    let none = TableKey::new(Family::Inet, "none");
    assert_eq!(inside(&host, || Nft::open().unwrap().base_chains(&none).unwrap()), []);

    for (version, program) in [(IpVersion::V4, "iptables-legacy"), (IpVersion::V6, "ip6tables-legacy")] {
        if !run(host.command(program).args(["-w", "-P", "FORWARD", "DROP"])).status.success() {
            return not_run("the kernel has no older iptables interface (CONFIG_IP_NF_IPTABLES_LEGACY)");
        }
        run_ok(host.command(program).args(["-w", "-A", "INPUT", "-j", "DROP"]));
        run_ok(host.command(program).args(["-w", "-N", "CALLED"]));
        let table = inside(&host, || Table::read(version, "filter").unwrap().unwrap());
        assert_eq!(table.dropping_chains(), ["FORWARD"], "a rule is no policy");
    }
}
