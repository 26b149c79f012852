//! Random walks of the allocator beside a model: a map from address to holder, and nothing else.
//!
//! Between the steps the walk does what the rest of the world does to the directory: the reference plugin
//! allocates and releases there, a killed process leaves an empty file, an administrator deletes files,
//! hints disappear or lie. After each step the files say exactly what the model says.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use cni::Attachment;
use plugins::ipam::host_local::{Allocator, Error, Pool, RangeSpec, collect, release};
use proptest::prelude::*;
use proptest::sample::subsequence;

const NETWORK: &str = "walk";

#[derive(Clone, Debug)]
enum Step {
    Add(usize),
    Ask(usize, usize),
    Del(usize),
    Gc(Vec<usize>),
    ForeignAdd(usize, usize),
    ForeignOldAdd(usize, usize),
    ForeignDel(usize),
    Killed(usize),
    HintsGone,
    HintLies(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (who, what) = (0..6_usize, 0..10_usize);
    let step = prop_oneof![
        6 => who.clone().prop_map(Step::Add),
        2 => (who.clone(), what.clone()).prop_map(|(a, ip)| Step::Ask(a, ip)),
        5 => who.clone().prop_map(Step::Del),
        1 => subsequence((0..6).collect::<Vec<_>>(), 0..=6).prop_map(Step::Gc),
        1 => (who.clone(), what.clone()).prop_map(|(a, ip)| Step::ForeignAdd(a, ip)),
        1 => (who.clone(), what.clone()).prop_map(|(a, ip)| Step::ForeignOldAdd(a, ip)),
        1 => what.clone().prop_map(Step::ForeignDel),
        1 => what.clone().prop_map(Step::Killed),
        1 => Just(Step::HintsGone),
        1 => (who, what).prop_map(|(a, ip)| Step::HintLies(a, ip)),
    ];
    prop::collection::vec(step, 1..60)
}

fn pool() -> Pool {
    let spec = |subnet: &str| RangeSpec::whole(subnet.parse().unwrap());
    let narrow = RangeSpec { end: "10.0.1.2".parse().ok(), ..spec("10.0.1.0/24") };
    Pool::new(&[vec![spec("10.0.0.0/29"), narrow], vec![spec("2001:db8::/125")]]).unwrap()
}

/// Two containers have two interfaces each, so that both parts of the key matter.
fn attachment(number: usize) -> Attachment {
    Attachment { container_id: format!("container{}", number / 2), ifname: format!("eth{}", number % 2) }
}

struct Walk {
    data_dir: tempfile::TempDir,
    allocator: Allocator,
    model: BTreeMap<IpAddr, Attachment>,
    last: Vec<Option<IpAddr>>,
}

impl Walk {
    fn new() -> Self {
        let data_dir = tempfile::tempdir().unwrap();
        fs::create_dir(data_dir.path().join(NETWORK)).unwrap();
        let allocator = Allocator::new(data_dir.path(), NETWORK, pool());
        Self { data_dir, allocator, model: BTreeMap::new(), last: vec![None, None] }
    }

    fn directory(&self) -> std::path::PathBuf {
        self.data_dir.path().join(NETWORK)
    }

    /// One of the pool's addresses, by number.
    fn address(&self, number: usize) -> IpAddr {
        let pool = self.allocator.pool();
        let mut all = pool.candidates(0, None).chain(pool.candidates(1, None)).collect::<Vec<_>>();
        all.swap_remove(number % all.len())
    }

    fn holds(&self, attachment: &Attachment, set: usize) -> bool {
        self.model.iter().any(|(ip, holder)| {
            let mine = holder.container_id == attachment.container_id
                && (holder.ifname == attachment.ifname || holder.ifname.is_empty());
            mine && self.allocator.pool().sets()[set].range_of(*ip).is_some()
        })
    }

    /// What an ADD should give, or the name of the error.
    fn expect(&self, attachment: &Attachment, wish: Option<IpAddr>) -> Result<Vec<IpAddr>, &'static str> {
        let pool = self.allocator.pool();
        let wishes = pool.sets().iter().map(|set| wish.filter(|ip| set.range_of(*ip).is_some()));
        let wishes: Vec<_> = wishes.collect();
        for (set, wish) in wishes.iter().enumerate() {
            if self.holds(attachment, set) {
                let own = wish.is_some_and(|ip| {
                    self.model.get(&ip).is_some_and(|holder| {
                        holder.container_id == attachment.container_id
                            && (holder.ifname == attachment.ifname || holder.ifname.is_empty())
                    })
                });
                return Err(if own { "refused" } else { "duplicate" });
            }
        }
        let mut expected = Vec::new();
        for (set, wish) in wishes.into_iter().enumerate() {
            let free = |ip: &IpAddr| !self.model.contains_key(ip);
            match wish {
                Some(ip) if free(&ip) => expected.push(ip),
                Some(_) => return Err("refused"),
                None => match pool.candidates(set, self.last[set]).find(free) {
                    Some(ip) => expected.push(ip),
                    None => return Err("exhausted"),
                },
            }
        }
        Ok(expected)
    }

    fn add(&mut self, attachment: &Attachment, wish: Option<IpAddr>) {
        let expected = self.expect(attachment, wish);
        let got = self.allocator.allocate(attachment, wish.as_slice());
        let got = match got {
            Ok(ips) => Ok(ips.iter().map(|ip| ip.address.addr()).collect::<Vec<_>>()),
            Err(Error::Duplicate { .. }) => Err("duplicate"),
            Err(Error::NotAvailable { .. }) => Err("refused"),
            Err(Error::Exhausted { .. }) => Err("exhausted"),
            Err(other) => panic!("{other}"),
        };
        assert_eq!(got, expected);
        for (set, ip) in got.into_iter().flatten().enumerate() {
            self.model.insert(ip, attachment.clone());
            self.last[set] = Some(ip);
        }
        self.last = vec![self.noted_last(0), self.noted_last(1)];
    }

    /// A failed ADD may move it; only the order of later ones depends on it.
    fn noted_last(&self, set: usize) -> Option<IpAddr> {
        fs::read_to_string(self.directory().join(format!("last_reserved_ip.{set}"))).ok()?.parse().ok()
    }

    fn del(&mut self, attachment: &Attachment) {
        let old = Attachment { ifname: String::new(), ..attachment.clone() };
        let exact = self.model.values().any(|holder| holder == attachment);
        let key = if exact { attachment } else { &old };
        let mut expected: Vec<IpAddr> =
            self.model.iter().filter(|(_, holder)| *holder == key).map(|(ip, _)| *ip).collect();
        let mut released = release(self.data_dir.path(), NETWORK, attachment).unwrap();
        released.sort_unstable();
        expected.sort_unstable();
        assert_eq!(released, expected);
        self.model.retain(|ip, _| !released.contains(ip));
    }

    fn gc(&mut self, valid: &[Attachment]) {
        collect(self.data_dir.path(), NETWORK, valid).unwrap();
        let containers: BTreeSet<&str> = valid.iter().map(|valid| valid.container_id.as_str()).collect();
        self.model.retain(|_, holder| {
            valid.contains(holder)
                || holder.ifname.is_empty() && containers.contains(holder.container_id.as_str())
        });
    }

    fn write(&mut self, ip: IpAddr, content: &str) -> bool {
        let path = self.directory().join(ip.to_string());
        !path.exists() && fs::write(path, content).is_ok()
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Add(who) => self.add(&attachment(who), None),
            Step::Ask(who, ip) => self.add(&attachment(who), Some(self.address(ip))),
            Step::Del(who) => self.del(&attachment(who)),
            Step::Gc(valid) => self.gc(&valid.into_iter().map(attachment).collect::<Vec<_>>()),
            Step::ForeignAdd(who, ip) => {
                let (ip, holder) = (self.address(ip), attachment(who));
                if self.write(ip, &format!("{}\r\n{}", holder.container_id, holder.ifname)) {
                    self.model.insert(ip, holder);
                }
            }
            Step::ForeignOldAdd(who, ip) => {
                let (ip, holder) = (self.address(ip), attachment(who));
                if self.write(ip, &format!(" {}\n", holder.container_id)) {
                    self.model.insert(ip, Attachment { ifname: String::new(), ..holder });
                }
            }
            Step::ForeignDel(ip) => {
                let ip = self.address(ip);
                let _ = fs::remove_file(self.directory().join(ip.to_string()));
                self.model.remove(&ip);
            }
            Step::Killed(ip) => {
                let ip = self.address(ip);
                self.write(ip, "");
            }
            Step::HintsGone => {
                let _ = fs::remove_dir_all(self.data_dir.path().join(".fairlead"));
            }
            Step::HintLies(who, ip) => self.lie(&attachment(who), self.address(ip)),
        }
        self.compare();
    }

    fn lie(&self, holder: &Attachment, ip: IpAddr) {
        let hints = self.data_dir.path().join(".fairlead").join(NETWORK);
        let hint = hints.join(format!("{}:{}", holder.container_id, holder.ifname));
        let _ = fs::remove_file(&hint);
        let _ = std::os::unix::fs::symlink(ip.to_string(), hint);
    }

    /// The files and the model agree; files that nobody ever filled do not count.
    fn compare(&self) {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(self.directory()).unwrap() {
            let entry = entry.unwrap();
            let Ok(ip) = entry.file_name().to_str().unwrap().parse::<IpAddr>() else { continue };
            let content = fs::read_to_string(entry.path()).unwrap();
            let mut lines = content.trim().lines();
            let Some(container_id) = lines.next() else { continue };
            let ifname = lines.next().unwrap_or_default().to_owned();
            found.insert(ip, Attachment { container_id: container_id.to_owned(), ifname });
        }
        assert_eq!(found, self.model);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_address_is_given_twice_or_lost_whatever_happens_to_the_directory(steps in steps()) {
        let mut walk = Walk::new();
        for step in steps {
            walk.take(step);
        }
        // Nothing is lost for ever: with every holder gone, the whole pool can be given out again.
        walk.gc(&[]);
        walk.compare();
        let all = walk.allocator.pool().candidates(0, None).count();
        for number in 0..all {
            let pod = Attachment { container_id: format!("late{number}"), ifname: "eth0".into() };
            let only_v4 = Allocator::new(walk.data_dir.path(), NETWORK, first_set(walk.allocator.pool()));
            prop_assert!(only_v4.allocate(&pod, &[]).is_ok(), "address {number} of {all}");
        }
    }
}

fn first_set(_: &Pool) -> Pool {
    let spec = |subnet: &str| RangeSpec::whole(subnet.parse().unwrap());
    let narrow = RangeSpec { end: "10.0.1.2".parse().ok(), ..spec("10.0.1.0/24") };
    Pool::new(&[vec![spec("10.0.0.0/29"), narrow]]).unwrap()
}

#[test]
fn the_files_are_those_of_the_reference_plugin() {
    let data_dir = tempfile::tempdir().unwrap();
    let subnets = ["10.1.2.0/24".parse().unwrap(), "2001:db8:1::/64".parse().unwrap()];
    let allocator = Allocator::new(data_dir.path(), "net", Pool::of_subnets(&subnets).unwrap());
    let pod = Attachment { container_id: "0a1b".into(), ifname: "eth0".into() };
    let ips = allocator.allocate(&pod, &[]).unwrap();
    let shown = |index: usize| (ips[index].address.to_string(), ips[index].gateway.unwrap().to_string());
    assert_eq!(shown(0), ("10.1.2.2/24".into(), "10.1.2.1".into()));
    assert_eq!(shown(1), ("2001:db8:1::2/64".into(), "2001:db8:1::1".into()));

    let read = |name: &str| fs::read_to_string(data_dir.path().join("net").join(name)).unwrap();
    assert_eq!(read("10.1.2.2"), "0a1b\r\neth0");
    assert_eq!(read("2001:db8:1::2"), "0a1b\r\neth0");
    assert_eq!(
        (read("last_reserved_ip.0"), read("last_reserved_ip.1")),
        ("10.1.2.2".into(), "2001:db8:1::2".into())
    );
    assert_eq!(
        names(&data_dir.path().join("net")),
        ["10.1.2.2", "2001:db8:1::2", "last_reserved_ip.0", "last_reserved_ip.1", "lock"]
    );
}

#[test]
fn releasing_and_collecting_make_nothing_where_nothing_was() {
    let data_dir = tempfile::tempdir().unwrap();
    let pod = Attachment { container_id: "0a1b".into(), ifname: "eth0".into() };
    assert_eq!(release(data_dir.path(), "net", &pod).unwrap(), Vec::<IpAddr>::new());
    assert_eq!(collect(data_dir.path(), "net", &[]).unwrap(), Vec::<IpAddr>::new());
    assert!(names(data_dir.path()).is_empty());
}

#[test]
fn an_allocation_that_fails_in_a_later_set_keeps_nothing_of_the_earlier_ones() {
    let data_dir = tempfile::tempdir().unwrap();
    let subnets = ["10.1.2.0/24".parse().unwrap(), "2001:db8:1::/126".parse().unwrap()];
    let allocator = Allocator::new(data_dir.path(), "net", Pool::of_subnets(&subnets).unwrap());
    let pod = |number: usize| Attachment { container_id: format!("pod{number}"), ifname: "eth0".into() };
    allocator.allocate(&pod(0), &[]).unwrap();
    allocator.allocate(&pod(1), &[]).unwrap();
    assert!(allocator.status().is_err());
    let error = allocator.allocate(&pod(2), &[]).unwrap_err().to_string();
    assert_eq!(
        error,
        "failed to allocate for range 1: no IP addresses available in range set: 2001:db8:1::1-2001:db8:1::3"
    );
    assert!(!data_dir.path().join("net/10.1.2.4").exists());
    release(data_dir.path(), "net", &pod(0)).unwrap();
    assert!(allocator.status().is_ok());
    assert_eq!(allocator.allocate(&pod(2), &[]).unwrap()[1].address.to_string(), "2001:db8:1::2/126");
}

#[test]
fn check_compares_what_is_held_with_what_the_result_lists() {
    let data_dir = tempfile::tempdir().unwrap();
    let allocator =
        Allocator::new(data_dir.path(), "net", Pool::of_subnets(&["10.1.2.0/24".parse().unwrap()]).unwrap());
    let pod = Attachment { container_id: "0a1b".into(), ifname: "eth0".into() };
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    assert!(matches!(allocator.check(&pod, None), Err(Error::NothingHeld(_))));
    allocator.allocate(&pod, &[]).unwrap();
    assert!(allocator.check(&pod, None).is_ok());
    assert!(allocator.check(&pod, Some(&[ip("10.1.2.2"), ip("192.0.2.1")])).is_ok(), "others' are not ours");
    assert!(matches!(allocator.check(&pod, Some(&[ip("10.1.2.3")])), Err(Error::Differs { .. })));
    assert!(matches!(allocator.check(&pod, Some(&[])), Err(Error::Differs { .. })));
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}
