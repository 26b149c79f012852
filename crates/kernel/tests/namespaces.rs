//! Namespaces, sysctls and monitors in real namespaces.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure in a test's scaffolding is a failure of the test"
)]

use std::path::Path;
use std::time::Duration;

use harness::Namespace;
use kernel::Error;
use kernel::forwarding::{Scope, Setting};
use kernel::link::{self, Change, NewBridge, NewKind, NewLink, NewPeer};
use kernel::lock::{NamespaceLock, Taking};
use kernel::monitor::{Event, Monitor, Topic};
use kernel::netlink::{Batch, Protocol, Socket};
use kernel::netns::Netns;
use kernel::route::{self, Route};
use kernel::{address, sysctl};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

#[test]
fn paths_that_are_no_network_namespace_are_told_apart() {
    for missing in ["", "/nonexistent/netns", "/proc/self/ns/nothing", "/etc/passwd/x"] {
        let error = Netns::open(missing).unwrap_err();
        assert!(matches!(error, Error::NamespaceMissing { .. }), "{missing}: {error}");
    }
    for other in ["/etc/passwd", "/tmp", "/proc/self/ns/mnt", "/proc/self/status", "/dev/null"] {
        let error = Netns::open(other).unwrap_err();
        assert!(matches!(error, Error::NotANamespace { .. }), "{other}: {error}");
        assert!(error.to_string().contains("is not a network namespace"), "{error}");
    }
}

#[test]
fn a_new_namespace_is_another_one_and_has_only_a_loopback_that_is_down() {
    let fresh = Netns::create().unwrap();
    let here = Netns::current().unwrap();
    assert_ne!(fresh.identity().unwrap(), here.identity().unwrap());
    let mut socket = fresh.socket(Protocol::Route).unwrap();
    let links = link::list(&mut socket, link::Filter::default()).unwrap();
    assert_eq!(links.iter().map(|link| link.name.as_str()).collect::<Vec<_>>(), ["lo"]);
    assert!(!links[0].is_up());
    assert_eq!(Netns::current().unwrap().identity().unwrap(), here.identity().unwrap());
}

#[test]
fn entering_ends_with_the_guard_and_running_never_touches_the_callers_thread() {
    let other = Netns::create().unwrap();
    let identity = || Netns::current().unwrap().identity().unwrap();
    let home = identity();
    {
        let _inside = other.enter().unwrap();
        assert_eq!(identity(), other.identity().unwrap());
    }
    assert_eq!(identity(), home);
    assert_eq!(other.run(identity).unwrap(), other.identity().unwrap());
    assert_eq!(identity(), home);
}

#[test]
fn a_namespace_opened_by_path_is_the_one_that_tools_see() {
    let namespace = Namespace::new();
    let opened = Netns::open(namespace.path()).unwrap();
    let mut socket = opened.socket(Protocol::Route).unwrap();
    socket.execute(link::create(&NewLink::new("br7", NewKind::Bridge(NewBridge::default())))).unwrap();
    assert_eq!(namespace.link_names(), ["br7"]);
}

#[test]
fn sysctls_are_written_in_the_namespace_of_the_thread_and_only_when_they_differ() {
    let namespace = Namespace::new();
    let netns = Netns::open(namespace.path()).unwrap();
    let changes: Vec<bool> =
        netns.run(|| (0..2).map(|_| sysctl::set("net/ipv4/ip_forward", "1").unwrap()).collect()).unwrap();
    assert_eq!(changes, [true, false]);
    assert_eq!(namespace.sysctl("net/ipv4/ip_forward"), "1");
    assert_eq!(netns.run(|| sysctl::read("net/ipv4/ip_forward").unwrap()).unwrap(), "1");
}

#[test]
fn a_sysctl_of_a_link_with_dots_in_its_name_is_found() {
    let namespace = Namespace::new();
    namespace.ip("link add br0.100 type bridge");
    let netns = Netns::open(namespace.path()).unwrap();
    netns.run(|| sysctl::set("net/ipv6/conf/br0.100/accept_dad", "0").unwrap()).unwrap();
    assert_eq!(namespace.sysctl("net/ipv6/conf/br0.100/accept_dad"), "0");
}

#[test]
fn a_missing_sysctl_is_missing_and_no_path_leads_out_of_proc_sys() {
    assert!(sysctl::set("net/ipv4/conf/nolink/rp_filter", "0").unwrap_err().is_missing());
    assert!(sysctl::read("net/ipv4/nothing").unwrap_err().is_missing());
    for outside in ["../version", "/etc/passwd", "net/../../version", ""] {
        let error = sysctl::read(outside).unwrap_err();
        assert_eq!(error.to_string(), format!("read {:?}", Path::new(outside)));
        assert!(!error.is_missing());
    }
}

/// Reads notifications until `wanted` accepts one; fails when the kernel says nothing for ten seconds.
#[track_caller]
fn wait_for(monitor: &mut Monitor, wanted: impl Fn(&Event) -> bool) -> (u32, Event) {
    loop {
        let notifications = monitor.receive_within(Duration::from_secs(10)).unwrap();
        for notification in notifications.expect("the event comes") {
            if wanted(&notification.event) {
                return (notification.origin, notification.event);
            }
        }
    }
}

#[test]
fn a_monitor_tells_when_forwarding_is_switched_for_the_whole_namespace() {
    let namespace = Namespace::with_loopback();
    let netns = Netns::open(namespace.path()).unwrap();
    let mut monitor = Monitor::open_in(&netns, &[Topic::Forwarding]).unwrap();
    for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        for (value, on) in [("1", true), ("0", false)] {
            netns.run(|| sysctl::set(path, value)).unwrap().unwrap();
            wait_for(&mut monitor, |event| *event == Event::Setting(Setting::Forwarding(on)));
        }
    }
}

#[test]
fn a_monitor_tells_when_the_filter_of_reverse_paths_becomes_strict_and_of_which_link() {
    let namespace = Namespace::with_loopback();
    let netns = Netns::open(namespace.path()).unwrap();
    namespace.ip("link add cable type veth peer name end");
    let index = namespace.ip_json("link show cable")[0]["ifindex"].as_u64().unwrap();
    let mut monitor = Monitor::open_in(&netns, &[Topic::Forwarding]).unwrap();
    let link = Scope::Link(u32::try_from(index).unwrap());
    for (name, scope) in [("all", Scope::All), ("default", Scope::New), ("cable", link)] {
        for (value, strict) in [("1", true), ("2", false), ("1", true), ("0", false)] {
            netns.run(|| sysctl::set(&format!("net/ipv4/conf/{name}/rp_filter"), value)).unwrap().unwrap();
            let wanted = Event::Setting(Setting::StrictReversePath(scope, strict));
            wait_for(&mut monitor, |event| *event == wanted);
        }
    }
}

#[test]
fn a_monitor_tells_of_every_kind_of_change_and_who_made_it() {
    let namespace = Namespace::with_loopback();
    let netns = Netns::open(namespace.path()).unwrap();
    let mut monitor = Monitor::open_in(&netns, &Topic::ALL).unwrap();
    let mut socket = netns.socket(Protocol::Route).unwrap();
    socket.execute(link::create(&NewLink::new("a", NewKind::Veth(NewPeer::new("b"))))).unwrap();
    wait_for(&mut monitor, |event| matches!(event, Event::Link(link) if link.name == "a"));

    namespace.ip("link set dev a up");
    namespace.ip("link set dev b up");
    namespace.ip("address add 10.0.0.1/24 dev a");
    let (origin, event) =
        wait_for(&mut monitor, |event| matches!(event, Event::Address(a) if a.net.addr().is_ipv4()));
    assert_ne!(origin, socket.port().unwrap());
    let Event::Address(added) = event else { panic!("{event:?}") };
    assert_eq!(address::list(&mut socket, Some(added.link), Some(kernel::Family::V4)).unwrap(), [added]);
    namespace.ip("route add 10.7.0.0/16 via 10.0.0.2");
    wait_for(&mut monitor, |event| matches!(event, Event::Route(r) if r.destination.prefix_len() == 16));
    let gateway = "10.0.0.2".parse().unwrap();
    let route = Route::via("10.8.0.0/15".parse().unwrap(), gateway, added.link);
    socket.execute(route::add(&route)).unwrap();
    let (origin, _) = wait_for(
        &mut monitor,
        |event| matches!(event, Event::Route(r) if r.destination == route.destination),
    );
    assert_eq!(origin, socket.port().unwrap());
    namespace.ip("route del 10.7.0.0/16 via 10.0.0.2");
    wait_for(&mut monitor, |event| matches!(event, Event::RouteGone(r) if r.destination.prefix_len() == 16));
    namespace.ip("neighbour add 10.0.0.9 lladdr 02:00:00:00:00:09 dev a nud permanent");
    wait_for(&mut monitor, |event| matches!(event, Event::Neighbour(n) if n.is_permanent()));
    namespace.ip("neighbour del 10.0.0.9 dev a");
    wait_for(&mut monitor, |event| matches!(event, Event::NeighbourGone(_)));
    namespace.ip("-6 rule add priority 7600 table 1000");
    wait_for(&mut monitor, |event| matches!(event, Event::Rule(rule) if rule.priority == 7600));
    namespace.ip("-6 rule del priority 7600");
    wait_for(&mut monitor, |event| matches!(event, Event::RuleGone(rule) if rule.priority == 7600));
    namespace.ip("link add br0 type bridge");
    namespace.ip("link set dev a master br0");
    wait_for(&mut monitor, |event| matches!(event, Event::Fdb(entry) if entry.link == added.link));
    wait_for(&mut monitor, |event| matches!(event, Event::BridgePort(index) if *index == added.link));
    namespace.ip("address del 10.0.0.1/24 dev a");
    wait_for(&mut monitor, |event| matches!(event, Event::AddressGone(gone) if gone.net == added.net));
    namespace.ip("link del dev a");
    wait_for(&mut monitor, |event| matches!(event, Event::LinkGone(link) if link.name == "a"));
}

#[test]
fn a_monitor_of_nf_tables_names_the_table() {
    let namespace = Namespace::new();
    let netns = Netns::open(namespace.path()).unwrap();
    let mut monitor = Monitor::open_nft_in(&netns).unwrap();
    harness::run_ok(namespace.command("nft").args(["add", "table", "inet", "foreign"]));
    let foreign = Event::Nft(Some("foreign".to_owned()));
    wait_for(&mut monitor, |event| *event == foreign);
    wait_for(&mut monitor, |event| *event == Event::Nft(None));
}

#[test]
fn a_monitor_with_a_closed_ear_is_told_nothing() {
    let namespace = Namespace::new();
    let netns = Netns::open(namespace.path()).unwrap();
    let mut monitor = Monitor::open_nft_in(&netns).unwrap();
    let ear = monitor.ear().unwrap();
    let add = |table: &str| harness::run_ok(namespace.command("nft").args(["add", "table", "inet", table]));
    ear.close().unwrap();
    add("unheard");
    // Whoever opens it once more than it was closed hears each change once.
    ear.open().unwrap();
    ear.open().unwrap();
    add("heard");
    let first = monitor.receive_within(Duration::from_secs(10)).unwrap().expect("the event comes");
    assert_eq!(first[0].event, Event::Nft(Some("heard".to_owned())));
}

#[test]
fn a_listener_that_was_too_slow_is_told_so_and_can_go_on() {
    let netns = Netns::create().unwrap();
    let mut monitor = Monitor::open_in(&netns, &[Topic::Links]).unwrap();
    let mut socket = netns.socket(Protocol::Route).unwrap();
    socket.execute(link::create(&NewLink::new("br0", NewKind::Bridge(NewBridge::default())))).unwrap();
    let mut sent = 0;
    // Each notification takes about 2.5 KB of the 32 MB that a 16 MB buffer is by the kernel's accounting.
    while sent < 40_000 {
        let batch: Batch = (0..1000)
            .map(|number| link::change("br0", &Change { mtu: Some(1000 + number), ..Change::default() }))
            .collect();
        sent += batch.len();
        socket.execute(batch).unwrap();
    }
    wait_for(&mut monitor, |event| *event == Event::Overrun);
    // The kernel goes on dropping until the queue is empty; it must be by now.
    socket.execute(link::create(&NewLink::new("late", NewKind::Bridge(NewBridge::default())))).unwrap();
    wait_for(&mut monitor, |event| matches!(event, Event::Link(link) if link.name == "late"));
}

#[test]
fn a_listing_is_whole_while_links_come_and_go() {
    let netns = Netns::create().unwrap();
    let mut socket = netns.socket(Protocol::Route).unwrap();
    let mut batch = Batch::new();
    for number in 0..100 {
        let name = format!("steady{number}");
        batch.push(link::create(&NewLink::new(&name, NewKind::Bridge(NewBridge::default()))));
    }
    socket.execute(batch).unwrap();
    let finished = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut other = netns.socket(Protocol::Route).unwrap();
        let finished = &finished;
        scope.spawn(move || {
            while !finished.load(std::sync::atomic::Ordering::Relaxed) {
                let peer = NewKind::Veth(NewPeer::new("w"));
                other.execute(link::create(&NewLink::new("v", peer))).unwrap();
                other.execute(link::delete("v")).unwrap();
            }
        });
        for _ in 0..50 {
            match link::list(&mut socket, link::Filter::default()) {
                Ok(links) => {
                    let steady = links.iter().filter(|link| link.name.starts_with("steady")).count();
                    assert_eq!(steady, 100);
                }
                Err(error) => assert!(matches!(error, Error::Interrupted { .. }), "{error}"),
            }
        }
        finished.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn a_socket_stays_in_the_namespace_where_it_was_opened() {
    let (one, two) = (Netns::create().unwrap(), Netns::create().unwrap());
    let mut socket = one.socket(Protocol::Route).unwrap();
    let _inside = two.enter().unwrap();
    socket.execute(link::create(&NewLink::new("br0", NewKind::Bridge(NewBridge::default())))).unwrap();
    let mut elsewhere = Socket::open(Protocol::Route).unwrap();
    assert_eq!(link::find(&mut elsewhere, "br0").unwrap(), None);
    assert!(link::find(&mut socket, "br0").unwrap().is_some());
}

#[test]
fn an_address_is_found_in_whatever_namespace_has_it() {
    // Other ones for each process, since every namespace of the machine is looked into.
    let number = std::process::id();
    let nets =
        [format!("10.55.{}.{}", number >> 8 & 0xff, number & 0xff), format!("2001:db8:55::{number:x}")];
    let asked: Vec<std::net::IpAddr> = nets.iter().map(|net| net.parse().unwrap()).collect();
    let found = || {
        let mut found: Vec<_> = kernel::machine::addresses_in_use(&asked).unwrap().into_iter().collect();
        found.sort();
        found
    };
    assert_eq!(found().len(), 0);
    let holder = Namespace::with_loopback();
    holder.ip(&format!("address add {} dev lo", nets[0]));
    assert_eq!(found(), asked[..1]);
    holder.ip(&format!("address add {}/128 dev lo nodad", nets[1]));
    assert_eq!(found(), asked);
    drop(holder);
    harness::eventually("the namespace is gone", || found().is_empty().then_some(()));
}

/// The lock's number, here.
const LOCK: u16 = 7671;

#[test]
fn a_namespaces_lock_is_held_by_one_who_is_named_and_is_free_when_he_lets_go() {
    let (one, other) = (Namespace::new(), Namespace::new());
    let take = |namespace: &Namespace| namespace.inside(|| NamespaceLock::take(LOCK)).unwrap();
    let Taking::Taken(held) = take(&one) else { panic!("it is nobody's") };
    let Taking::Held(holder) = take(&one) else { panic!("it is taken") };
    assert_eq!(holder.process, Some(std::process::id()));
    assert!(holder.command.is_some_and(|command| command.contains("namespaces")));
    assert!(matches!(take(&other), Taking::Taken(_)), "another namespace has another lock");
    drop(held);
    // A program that another test is just starting may hold it for a moment more.
    harness::eventually("the lock is free", || matches!(take(&one), Taking::Taken(_)).then_some(()));
}

#[test]
fn who_may_not_change_a_network_can_not_take_its_lock_and_keeps_nobody_out() {
    let namespace = Namespace::new();
    let refused = namespace.inside(|| {
        // This thread's alone.
        let none = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
            .unwrap();
        NamespaceLock::take(LOCK)
    });
    assert_eq!(refused.unwrap_err().errno(), Some(rustix::io::Errno::PERM));
    assert!(matches!(namespace.inside(|| NamespaceLock::take(LOCK)).unwrap(), Taking::Taken(_)));
}
