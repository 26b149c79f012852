//! What shaping is made of, in real namespaces, looked at with `tc`: redirection to another link, classes for
//! subnets, and the questions whether the kernel can do it at all.
#![allow(clippy::unwrap_used, reason = "a failure in a test's scaffolding is a failure of the test")]

use harness::{Namespace, not_run, run_ok};
use ipnet::IpNet;
use kernel::filter::{self, Side};
use kernel::link::{self, NewKind, NewLink};
use kernel::netlink::{Batch, Protocol, Socket};
use kernel::netns::Netns;
use kernel::qdisc::{self, Qdisc, Tbf};
use serde_json::Value;

const LIMIT: Tbf = Tbf { rate: 1_250_000, burst: 65_536, limit: 100_000 };

/// A namespace with an up IFB `shaper`, a socket there, and the IFB's index; `None` where the kernel has none.
fn node() -> Option<(Namespace, Socket, u32)> {
    let namespace = Namespace::with_loopback();
    let mut socket = Netns::open(namespace.path()).unwrap().socket(Protocol::Route).unwrap();
    let new = NewLink { up: true, mtu: Some(1400), ..NewLink::new("shaper", NewKind::Plain("ifb")) };
    match socket.execute(link::create(&new)) {
        Err(error) if error.is_unsupported() => {
            assert!(error.to_string().contains("CONFIG_IFB"), "{error}");
            assert!(link::probe(&mut socket, "ifb").is_err());
            not_run("the kernel lacks CONFIG_IFB");
            return None;
        }
        other => other.unwrap(),
    }
    let index = link::find(&mut socket, "shaper").unwrap().unwrap().index;
    Some((namespace, socket, index))
}

fn tc(namespace: &Namespace, arguments: &str) -> Vec<Value> {
    let printed = run_ok(namespace.command("tc").arg("-j").args(arguments.split_whitespace()));
    serde_json::from_str(&printed).unwrap()
}

#[test]
fn everything_that_comes_in_is_redirected() {
    let Some((namespace, mut socket, shaper)) = node() else { return };
    namespace.ip("link add name a type veth peer name b");
    let a = link::find(&mut socket, "a").unwrap().unwrap().index;
    socket.execute(Batch::from_iter([qdisc::add_ingress(a), filter::redirect(a, shaper)])).unwrap();
    let shown = tc(&namespace, "filter show dev a ingress");
    let action = &shown.last().unwrap()["options"]["actions"][0];
    assert_eq!((&action["mirred_action"], &action["to_dev"]), (&"redirect".into(), &"shaper".into()));
    assert_eq!(shown.last().unwrap()["protocol"], "all");
    let found = filter::list(&mut socket, a, qdisc::INGRESS_HANDLE).unwrap();
    let [only] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((only.redirect, only.matches_everything()), (Some(shaper), true));
    assert!(filter::list(&mut socket, shaper, qdisc::ROOT).unwrap().is_empty());
}

#[test]
fn subnets_of_both_families_go_to_their_class() {
    let Some((namespace, mut socket, shaper)) = node() else { return };
    let subnets: Vec<IpNet> = ["10.1.0.0/16", "192.0.2.7/32", "2001:db8::/33", "fd00::7/128"]
        .map(|net| net.parse().unwrap())
        .to_vec();
    let mut batch = Batch::from_iter(qdisc::set_htb(shaper, &LIMIT, qdisc::SHAPED));
    batch.extend(
        subnets
            .iter()
            .map(|net| filter::classify(shaper, qdisc::ROOT_HANDLE, qdisc::DIRECT, (Side::Source, *net))),
    );
    socket.execute(batch).unwrap();
    let shown = tc(&namespace, "qdisc show dev shaper");
    assert_eq!((&shown[0]["kind"], &shown[0]["options"]["default"]), (&"htb".into(), &"0x1".into()));
    assert_eq!((&shown[1]["kind"], &shown[1]["options"]["limit"]), (&"bfifo".into(), &100_000.into()));
    let shown = run_ok(namespace.command("tc").args(["class", "show", "dev", "shaper"]));
    assert!(shown.contains("rate 10Mbit ceil 10Mbit"), "{shown}");
    let shown = run_ok(namespace.command("tc").args(["filter", "show", "dev", "shaper"]));
    for words in ["match 0a010000/ffff0000 at 12", "match 20010db8/ffffffff at 8"] {
        assert!(shown.contains(words), "{words}: {shown}");
    }

    let [class] = qdisc::classes(&mut socket, shaper).unwrap().try_into().unwrap();
    assert!(class.handle == qdisc::SHAPED && class.shapes_as(&LIMIT), "{class:?}");
    assert!(!class.shapes_as(&Tbf { rate: 1, ..LIMIT }) && !class.shapes_as(&Tbf { burst: 1, ..LIMIT }));
    let found = filter::list(&mut socket, shaper, qdisc::ROOT_HANDLE).unwrap();
    assert_eq!(found.len(), 4);
    for net in subnets {
        let own = found.iter().find(|filter| filter.matches(Side::Source, net)).unwrap();
        assert_eq!(own.class, Some(qdisc::DIRECT));
        assert!(!found.iter().any(|filter| filter.matches(Side::Destination, net)));
    }
}

#[test]
fn a_qdisc_is_looked_up_by_the_place_it_hangs_on() {
    let Some((_namespace, mut socket, shaper)) = node() else { return };
    socket.execute(Batch::from_iter(qdisc::set_htb(shaper, &LIMIT, qdisc::DIRECT))).unwrap();
    let batch =
        Batch::from_iter([qdisc::look_up(shaper, qdisc::ROOT), qdisc::look_up(shaper, qdisc::INGRESS)]);
    let mut found = Vec::new();
    let failures = socket.run(&batch, |_, reply| {
        found.push(Qdisc::from_reply(reply)?);
        Ok(())
    });
    let [missing] = failures.unwrap().try_into().unwrap();
    assert!(missing.position == 1 && missing.error.is_missing(), "{missing:?}");
    assert_eq!(found[0].htb.unwrap().default, qdisc::DIRECT);
}

#[test]
fn a_rate_over_four_gigabytes_a_second_holds_for_a_class_too() {
    let Some((_namespace, mut socket, shaper)) = node() else { return };
    let fast = Tbf { rate: 10_000_000_000, ..LIMIT };
    socket.execute(Batch::from_iter(qdisc::set_htb(shaper, &fast, qdisc::SHAPED))).unwrap();
    let [class] = qdisc::classes(&mut socket, shaper).unwrap().try_into().unwrap();
    assert!(class.shapes_as(&fast), "{class:?}");
}

#[test]
fn asking_whether_the_kernel_can_shape_changes_nothing() {
    let Some((namespace, mut socket, _)) = node() else { return };
    link::probe(&mut socket, "ifb").unwrap();
    let error = link::probe(&mut socket, "no-such-kind").unwrap_err();
    assert!(error.is_unsupported(), "{error}");
    qdisc::probe_tbf(&mut socket).unwrap();
    assert_eq!(namespace.link_names(), ["shaper"]);
    let kinds: Vec<Value> =
        tc(&namespace, "qdisc show dev lo").iter().map(|entry| entry["kind"].clone()).collect();
    assert_eq!(kinds, ["noqueue"]);
}
