//! Whom a GC spares, decided over records made up at random, and what a text may name.

use proptest::prelude::*;

use super::records::{Cached, Records};
use super::*;
use crate::ipam::host_local::Reserved;

fn attachment(container: &str, ifname: &str) -> Attachment {
    Attachment { container_id: container.into(), ifname: ifname.into() }
}

fn address(number: u8) -> IpAddr {
    [10, 0, 0, number].into()
}

fn cached(network: &str, container: &str, addresses: Option<&[u8]>) -> Cached {
    Cached {
        name: format!("{network}-{container}-eth0"),
        whose: Some((network.into(), attachment(container, "eth0"))),
        addresses: addresses.map(|numbers| numbers.iter().copied().map(address).collect()),
    }
}

fn reserved(network: &str, number: u8, holder: Option<(&str, &str)>) -> Reserved {
    let holder = holder.map(|(container, ifname)| attachment(container, ifname));
    Reserved { network: network.into(), address: address(number), holder }
}

#[test]
fn of_its_own_network_a_gc_spares_the_valid_and_of_every_other_everybody() {
    let records = Records {
        cached: vec![
            cached("net", "valid", Some(&[1])),
            cached("net", "stale", Some(&[2])),
            cached("two", "a", Some(&[3])),
        ],
        reserved: vec![
            reserved("net", 11, Some(("valid", "eth0"))),
            reserved("net", 12, Some(("valid", ""))),
            reserved("net", 13, Some(("valid", "net1"))),
            reserved("net", 14, Some(("stale", "eth0"))),
            reserved("net", 15, None),
            reserved("two", 16, Some(("b", "eth0"))),
        ],
    };
    let living = records.living("net", &[attachment("valid", "eth0")]).unwrap();
    let wanted: HashSet<IpAddr> = [1, 3, 11, 12, 15, 16].map(address).into();
    assert_eq!(living.addresses, wanted);
    assert_eq!(living.containers, ["valid", "a", "b"].map(str::to_owned).into());
    assert!(living.is_vouched_for);
}

#[test]
fn a_cache_that_lacks_a_valid_attachment_is_not_the_runtimes() {
    let records = Records { cached: vec![cached("net", "one", Some(&[1]))], reserved: Vec::new() };
    let [one, two] = ["one", "two"].map(|id| attachment(id, "eth0"));
    assert!(records.living("net", std::slice::from_ref(&one)).is_some());
    assert_eq!(records.living("net", &[one.clone(), two]), None);
    assert_eq!(records.living("net", &[attachment("one", "net1")]), None);
    assert_eq!(records.living("other", &[one]), None);
    assert!(!records.living("net", &[]).unwrap().is_vouched_for);
}

#[test]
fn a_record_that_does_not_say_whose_it_is_may_be_anybodys() {
    let mut bare = cached("my-net", "c-1", Some(&[7]));
    bare.whose = None;
    let records = Records { cached: vec![bare], reserved: Vec::new() };
    let valid = attachment("c-1", "eth0");
    assert!(records.living("my-net", std::slice::from_ref(&valid)).is_some(), "its name is the valid one's");
    assert_eq!(records.living("my", &[valid]), None);
    let living = records.living("any", &[]).unwrap();
    assert!(living.addresses.contains(&address(7)));
    assert!(living.may_name("c-1_eth0") && living.may_name("1_eth0"));
    assert!(!living.may_name("c-1_eth1") && !living.may_name("c-2_eth0"));
}

#[test]
fn a_container_whose_addresses_were_not_kept_may_have_any() {
    let records = Records {
        cached: vec![cached("two", "a", None), cached("two", "b", Some(&[]))],
        reserved: Vec::new(),
    };
    let living = records.living("net", &[]).unwrap();
    assert!(living.may_have_any_address("a"));
    assert!(!living.may_have_any_address("b") && !living.may_have_any_address("c"));
}

#[test]
fn a_text_is_read_in_every_way_it_can_be_meant() {
    let all: Vec<_> = readings("a_b_eth0").collect();
    assert_eq!(all, [("a", "b_eth0"), ("a_b", "eth0")]);
    assert_eq!(readings("eth0").count() + readings("_eth0").count() + readings("a_").count(), 0);
    let mut living = Living::default();
    living.add(&attachment("a_b", "net1"), Some(&[]));
    assert!(living.may_name("a_b_eth0") && !living.may_name("a_c_eth0"));
}

#[test]
fn a_process_is_of_the_container_whose_whole_id_stands_in_its_groups() {
    let groups = "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-0123abcd.scope\n";
    assert!(mentions(groups, "0123abcd") && mentions("0::/../crio-0123abcd", "0123abcd"));
    for other in ["0123abc", "123abcd", "abcd", "0123abcde"] {
        assert!(!mentions(groups, other), "{other}");
    }
    assert!(mentions("0::/x0123abcd/0123abcd", "0123abcd"), "the second place counts as well");
}

const NETWORKS: [&str; 3] = ["net", "two", "three"];
const CONTAINERS: [&str; 4] = ["a", "b", "c_1", "d"];

fn any_cached() -> impl Strategy<Value = Cached> {
    let addresses = proptest::option::of(proptest::collection::vec(0..16_u8, 0..3));
    (0..3_usize, 0..4_usize, addresses, proptest::bool::weighted(0.2)).prop_map(
        |(network, container, addresses, is_bare)| {
            let mut cached = cached(NETWORKS[network], CONTAINERS[container], addresses.as_deref());
            cached.whose = cached.whose.filter(|_| !is_bare);
            cached
        },
    )
}

fn any_reserved() -> impl Strategy<Value = Reserved> {
    let holder = proptest::option::weighted(0.8, (0..4_usize, 0..3_usize));
    (0..3_usize, 0..16_u8, holder).prop_map(|(network, number, holder)| {
        let holder = holder.map(|(container, ifname)| (CONTAINERS[container], ["eth0", "net1", ""][ifname]));
        reserved(NETWORKS[network], number, holder)
    })
}

fn any_records() -> impl Strategy<Value = Records> {
    let cached = proptest::collection::vec(any_cached(), 0..8);
    (cached, proptest::collection::vec(any_reserved(), 0..8))
        .prop_map(|(cached, reserved)| Records { cached, reserved })
}

fn any_valid() -> impl Strategy<Value = Vec<Attachment>> {
    proptest::sample::subsequence(CONTAINERS.to_vec(), 0..=4)
        .prop_map(|ids| ids.into_iter().map(|id| attachment(id, "eth0")).collect())
}

proptest! {
    /// Nothing that a record of another network, or of a valid attachment, knows is ever nobody's.
    #[test]
    fn nobody_who_is_written_down_elsewhere_or_valid_is_missed(records in any_records(), valid in any_valid()) {
        let Some(living) = records.living("net", &valid) else { return Ok(()) };
        for cached in &records.cached {
            let is_stale = matches!(&cached.whose, Some((of, who)) if of == "net" && !valid.contains(who));
            if is_stale {
                continue;
            }
            for address in cached.addresses.iter().flatten() {
                prop_assert!(living.addresses.contains(address), "{:?}", cached);
            }
            let text = match &cached.whose {
                Some((_, who)) => format!("{}_any0", who.container_id),
                None => cached.name.split_once('-').unwrap().1.replace("-eth0", "_eth0"),
            };
            prop_assert!(living.may_name(&text), "{}", text);
        }
        for reserved in records.reserved.iter().filter(|reserved| reserved.network != "net") {
            prop_assert!(living.addresses.contains(&reserved.address));
        }
        for valid in &valid {
            let text = format!("{}_{}", valid.container_id, valid.ifname);
            prop_assert!(living.may_name(&text), "{}", text);
        }
    }

    /// One more record never makes anybody nobody's, unless the cache is no longer trusted for it.
    #[test]
    fn more_records_spare_no_fewer(
        records in any_records(),
        valid in any_valid(),
        more in any_cached(),
        given in any_reserved(),
    ) {
        let Some(before) = records.living("net", &valid) else { return Ok(()) };
        let mut records = records;
        records.cached.push(more);
        records.reserved.push(given);
        let after = records.living("net", &valid);
        prop_assert!(after.is_some());
        let after = after.unwrap_or_default();
        prop_assert!(before.addresses.is_subset(&after.addresses));
        prop_assert!(before.containers.is_subset(&after.containers));
        prop_assert!(before.without_addresses.is_subset(&after.without_addresses));
        prop_assert!(before.unsaid.iter().all(|name| after.unsaid.contains(name)));
    }

    /// What nobody but the stale of the GC's own network wrote down is nobody's: exactly that.
    #[test]
    fn the_stale_of_its_own_network_are_not_spared(records in any_records()) {
        let mut records = records;
        records.cached.retain(|cached| cached.whose.as_ref().is_some_and(|(of, _)| of == "net"));
        records.reserved.retain(|reserved| reserved.network == "net" && reserved.holder.is_some());
        prop_assert_eq!(records.living("net", &[]), Some(Living::default()));
    }
}
