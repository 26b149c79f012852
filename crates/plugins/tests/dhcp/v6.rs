//! DHCPv6 and router advertisements with real servers: dnsmasq (which is a router too), ISC dhcpd and Kea (which
//! are not). RFC 8415, RFC 4861. P#552, PR#30, PR#910.

use std::path::Path;

use harness::{Namespace, Service, eventually, run_ok};
use serde_json::{Value, json};

use crate::scene::{Scene, addresses as v4_addresses, with_previous};

/// The server's address, and the only one that its pools begin with.
const SERVER: &str = "fd00:6::1";
const FIRST: &str = "fd00:6::100";

/// A scene whose network speaks IPv6.
fn scene(programs: &[&str]) -> Option<Scene> {
    let scene = Scene::with(programs)?;
    scene.lan.ip("link set lan0 down");
    write(&scene.lan, "net/ipv6/conf/lan0/accept_dad", "0");
    write(&scene.lan, "net/ipv6/conf/all/forwarding", "1");
    scene.lan.ip("link set lan0 up");
    scene.lan.ip(&format!("addr add {SERVER}/64 dev lan0 nodad"));
    await_own_address(&scene.lan, "lan0");
    Some(scene)
}

fn write(namespace: &Namespace, sysctl: &str, value: &str) {
    run_ok(namespace.command("sh").args(["-c", &format!("echo {value} > /proc/sys/{sysctl}")]));
}

fn await_own_address(namespace: &Namespace, link: &str) -> String {
    eventually("the link has its own address", || {
        let found = shown(namespace, &format!("{link} scope link -tentative"));
        found.first().and_then(|address| address["local"].as_str()).map(str::to_owned)
    })
}

/// What `ip` shows of a link's addresses; it leaves an empty object for each that it passes over.
fn shown(namespace: &Namespace, which: &str) -> Vec<Value> {
    let links = namespace.ip_json(&format!("-6 addr show dev {which}"));
    let all = links[0]["addr_info"].as_array().cloned().unwrap_or_default();
    all.into_iter().filter(|address| address["local"].is_string()).collect()
}

/// dnsmasq, which advertises itself as a router; its prefix may be used for autoconfiguration as well.
fn dnsmasq(scene: &Scene, more: &[&str]) -> Service {
    let mut options = vec![
        "--dhcp-range=fd00:6::100,fd00:6::1ff,slaac,64,2m",
        "--enable-ra",
        "--dhcp-option=option6:dns-server,[fd00:6::53]",
        "--dhcp-option=option6:domain-search,example.org,example.net",
    ];
    options.extend(more);
    scene.dnsmasq(&options)
}

/// An ISC dhcpd with a pool from [`FIRST`] to `last`, which is no router; lifetimes in seconds.
fn dhcpd(scene: &Scene, last: &str, seconds: u32) -> Service {
    let (config, leases) = (scene.file("dhcpd6.conf"), scene.file("dhcpd6.leases"));
    let (renew, rebind, preferred) = (seconds / 3, seconds / 2, seconds * 3 / 4);
    let text = format!(
        "authoritative; default-lease-time {seconds}; max-lease-time {seconds}; min-lease-time {seconds};
         preferred-lifetime {preferred};
         option dhcp-renewal-time {renew}; option dhcp-rebinding-time {rebind};
         option dhcp6.name-servers fd00:6::53; option dhcp6.domain-search \"example.org\";
         subnet6 fd00:6::/64 {{ range6 {FIRST} {last}; }}"
    );
    std::fs::write(&config, text).unwrap();
    if !leases.exists() {
        std::fs::write(&leases, "").unwrap();
    }
    let mut command = scene.lan.command("dhcpd");
    command.args(["-6", "-d", "-f", "--no-pid", "-cf"]).arg(&config).arg("-lf").arg(&leases).arg("lan0");
    let log = (0..).map(|number| scene.file(&format!("dhcpd6-{number}.log"))).find(|path| !path.exists());
    let mut server = Service::start(&mut command, log.unwrap());
    server.await_said("Server starting service", 1);
    server
}

fn config(scene: &Scene, families: &[&str], more: Value) -> Value {
    let mut ipam = json!({ "families": families });
    ipam.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    scene.config("bridge", ipam)
}

fn ipv6(scene: &Scene) -> Value {
    config(scene, &["ipv6"], json!({}))
}

/// The pod's global IPv6 addresses, with their lengths.
fn addresses(pod: &Namespace) -> Vec<String> {
    let text = |found: &Value| format!("{}/{}", found["local"].as_str().unwrap(), found["prefixlen"]);
    shown(pod, "eth0 scope global").iter().map(text).collect()
}

/// The seconds for which the pod's global address is preferred and valid; `None` when it has no end or is not there.
fn ends(pod: &Namespace) -> Option<(u64, u64)> {
    let found = shown(pod, "eth0 scope global").into_iter().next()?;
    let ends = (found["preferred_life_time"].as_u64()?, found["valid_life_time"].as_u64()?);
    (ends.1 < u64::from(u32::MAX)).then_some(ends)
}

/// The gateways of the pod's default route.
fn gateways(pod: &Namespace) -> Vec<String> {
    let routes = pod.ip_json("-6 route show default");
    let gateway = |route: &Value| Some(route["gateway"].as_str()?.to_owned());
    routes.as_array().into_iter().flatten().filter_map(gateway).collect()
}

/// The addresses in a result, with gateways.
fn told(result: &Value) -> Vec<(String, Option<String>)> {
    let ips = result["ips"].as_array().cloned().unwrap_or_default();
    let told =
        |ip: &Value| (ip["address"].as_str().unwrap().to_owned(), ip["gateway"].as_str().map(str::to_owned));
    ips.iter().map(told).collect()
}

#[test]
fn server_and_router_together_make_a_pod_that_works() {
    let Some(scene) = scene(&["dnsmasq"]) else { return };
    let (mut server, _daemon) = (dnsmasq(&scene, &[]), scene.daemon(&[]));
    let pod = Namespace::new();
    let call = scene.call("bridge", "c", &pod);
    let result = call.add(&ipv6(&scene));
    let router = await_own_address(&scene.lan, "lan0");
    let [(address, gateway)] = &told(&result)[..] else { panic!("{result}") };
    assert!(address.starts_with("fd00:6::1") && address.ends_with("/64"), "{address}");
    assert_eq!(gateway.as_deref(), Some(router.as_str()));
    assert_eq!(
        result["dns"],
        json!({ "nameservers": ["fd00:6::53"], "search": ["example.org", "example.net"] })
    );
    assert_eq!((addresses(&pod), gateways(&pod)), (vec![address.clone()], vec![router]));
    assert!(pod.pings(SERVER));
    call.run("CHECK", &with_previous(&ipv6(&scene), &result)).expect_success("CHECK");
    let (preferred, valid) = eventually("the address has an end", || ends(&pod));
    assert!(preferred <= 120 && valid <= 120, "{preferred} {valid}");
    call.del(&ipv6(&scene));
    server.await_said("DHCPRELEASE(lan0)", 1);
    eventually("the server has its address back", || scene.leased().is_empty().then_some(()));
    assert_eq!((scene.kept(), pod.link_names()), (vec![], vec![]));
}

#[test]
fn a_rapid_server_answers_at_once_and_nothing_is_asked_twice() {
    let Some(scene) = scene(&["dnsmasq"]) else { return };
    let (server, _daemon) = (dnsmasq(&scene, &["--dhcp-rapid-commit"]), scene.daemon(&[]));
    scene.call("bridge", "c", &Namespace::new()).add(&ipv6(&scene));
    assert_eq!((server.said("DHCPREQUEST(lan0)"), server.said("rapid-commit")), (0, 1), "{}", server.log());
}

#[test]
fn a_macvlan_asks_from_an_address_that_was_checked_for_duplicates() {
    let Some(scene) = scene(&["dnsmasq"]) else { return };
    let (mut server, _daemon) = (dnsmasq(&scene, &[]), scene.daemon(&[]));
    scene.host.ip("link add up1 type veth peer name port1");
    scene.host.ip("link set port1 master cni0 up");
    scene.host.ip("link set up1 up");
    let pod = Namespace::new();
    let config = scene.config("macvlan", json!({ "families": ["ipv6"] }));
    let call = scene.call("macvlan", "c", &pod);
    let result = call.add(&config);
    assert_eq!(addresses(&pod), [told(&result)[0].0.clone()]);
    assert_eq!(pod.sysctl("net/ipv6/conf/eth0/accept_dad"), "1");
    assert!(pod.pings(SERVER));
    call.del(&config);
    server.await_said("DHCPRELEASE(lan0)", 1);
}

#[test]
fn both_families_come_in_one_result() {
    let Some(scene) = scene(&["dnsmasq"]) else { return };
    let (_server, _daemon) = (dnsmasq(&scene, &[]), scene.daemon(&[]));
    let pod = Namespace::new();
    let both = config(&scene, &["ipv4", "ipv6"], json!({}));
    let result = scene.call("bridge", "c", &pod).add(&both);
    let told: Vec<String> = told(&result).into_iter().map(|(address, _)| address).collect();
    assert_eq!(told, [v4_addresses(&pod), addresses(&pod)].concat());
    assert_eq!(told.len(), 2);
    assert!(pod.pings(SERVER) && pod.pings(crate::scene::SERVER));
    assert_eq!(scene.leased().len(), 2);
    scene.call("bridge", "c", &pod).del(&both);
    eventually("both are given back", || scene.leased().is_empty().then_some(()));
}

#[test]
fn twenty_pods_at_once_get_twenty_pairs_of_addresses() {
    let Some(scene) = scene(&["dnsmasq"]) else { return };
    let (_server, _daemon) = (dnsmasq(&scene, &[]), scene.daemon(&[]));
    let both = config(&scene, &["ipv4", "ipv6"], json!({}));
    let pods: Vec<(String, Namespace)> =
        (0..20).map(|number| (format!("c{number}"), Namespace::new())).collect();
    let add = &|(name, pod): &(String, Namespace)| told(&scene.call("bridge", name, pod).add(&both));
    let mut given: Vec<(String, Option<String>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = pods.iter().map(|pod| scope.spawn(move || add(pod))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(given.iter().all(|(_, gateway)| gateway.is_some()), "each has heard a router: {given:?}");
    given.sort();
    given.dedup();
    assert_eq!((given.len(), scene.leased().len()), (40, 40));
}

#[test]
fn the_pods_kernel_does_not_configure_itself_beside_it() {
    let Some(scene) = scene(&["dnsmasq"]) else { return };
    let (_server, _daemon) = (dnsmasq(&scene, &[]), scene.daemon(&[]));
    let pod = scene.pod("port0");
    pod.ip("link set eth0 up");
    eventually("the kernel has configured itself", || (addresses(&pod).len() == 1).then_some(()));
    let result = scene.call("dhcp", "c", &pod).add(&scene.config("dhcp", json!({ "families": ["ipv6"] })));
    assert_eq!(told(&result).len(), 1);
    // Setting the address is the interface plugin's work, which was not asked.
    assert_eq!((addresses(&pod), gateways(&pod)), (vec![], vec![]));
    assert_eq!(
        [pod.sysctl("net/ipv6/conf/eth0/accept_ra"), pod.sysctl("net/ipv6/conf/eth0/autoconf")],
        ["0", "0"]
    );
}

#[test]
fn without_a_router_the_address_stands_alone_unless_the_configuration_knows_better() {
    let Some(scene) = scene(&["dhcpd"]) else { return };
    let (_server, _daemon) = (dhcpd(&scene, "fd00:6::1ff", 600), scene.daemon(&[]));
    let (alone, told_pod) = (Namespace::new(), Namespace::new());
    let result = scene.call("bridge", "alone", &alone).add(&ipv6(&scene));
    let [(address, None)] = &told(&result)[..] else { panic!("{result}") };
    assert!(address.ends_with("/128"), "{address}");
    assert_eq!((addresses(&alone), gateways(&alone)), (vec![address.clone()], vec![]));
    let knows = config(&scene, &["ipv6"], json!({ "ipv6PrefixLength": 64, "ipv6Gateway": SERVER }));
    let result = scene.call("bridge", "told", &told_pod).add(&knows);
    let [(address, Some(gateway))] = &told(&result)[..] else { panic!("{result}") };
    assert!(address.ends_with("/64") && gateway == SERVER, "{result}");
    assert_eq!((addresses(&told_pod), gateways(&told_pod)), (vec![address.clone()], vec![SERVER.to_owned()]));
    eventually("the pod reaches the server", || told_pod.pings(SERVER).then_some(()));
}

#[test]
fn a_lease_is_renewed_and_its_end_moves_on() {
    let Some(scene) = scene(&["dhcpd"]) else { return };
    let (mut server, _daemon) = (dhcpd(&scene, FIRST, 24), scene.daemon(&[]));
    let pod = Namespace::new();
    let call = scene.call("bridge", "c", &pod);
    let known = config(&scene, &["ipv6"], json!({ "ipv6PrefixLength": 64, "ipv6Gateway": SERVER }));
    call.add(&known);
    for turn in 1..=3 {
        server.await_said("Renew message from", turn);
        eventually("its end moves on", || ends(&pod).filter(|(_, valid)| *valid > 20));
    }
    assert_eq!(addresses(&pod), [format!("{FIRST}/64")]);
    call.del(&known);
    server.await_said("Release message from", 1);
}

#[test]
fn without_a_server_the_address_ends_and_comes_back_with_it() {
    let Some(scene) = scene(&["dhcpd"]) else { return };
    let (server, mut daemon) = (dhcpd(&scene, FIRST, 12), scene.daemon(&[]));
    let pod = Namespace::new();
    let known = config(&scene, &["ipv6"], json!({ "ipv6PrefixLength": 64, "ipv6Gateway": SERVER }));
    scene.call("bridge", "c", &pod).add(&known);
    server.kill();
    daemon.await_said("lost: the lease expired", 1);
    eventually("the address is gone", || addresses(&pod).is_empty().then_some(()));
    let _server = dhcpd(&scene, FIRST, 600);
    eventually("it is back", || (addresses(&pod) == [format!("{FIRST}/64")]).then_some(()));
    eventually("with a way out", || (gateways(&pod) == [SERVER]).then_some(()));
}

#[test]
fn the_next_daemon_asks_whether_the_address_still_belongs_here_and_renews_it() {
    let Some(scene) = scene(&["dhcpd"]) else { return };
    let (mut server, daemon) = (dhcpd(&scene, FIRST, 24), scene.daemon(&[]));
    let pod = Namespace::new();
    let call = scene.call("bridge", "c", &pod);
    let result = call.add(&ipv6(&scene));
    daemon.kill();
    let _daemon = scene.daemon(&[]);
    server.await_said("Confirm message from", 1);
    call.run("CHECK", &with_previous(&ipv6(&scene), &result)).expect_success("CHECK");
    server.await_said("Renew message from", 2);
    eventually("its end moves on", || ends(&pod).filter(|(_, valid)| *valid > 20));
    call.del(&ipv6(&scene));
    server.await_said("Release message from", 1);
}

#[test]
fn a_pod_that_goes_while_no_daemon_runs_gives_its_address_back() {
    let Some(scene) = scene(&["dhcpd"]) else { return };
    let (mut server, daemon) = (dhcpd(&scene, FIRST, 600), scene.daemon(&[]));
    let pod = Namespace::new();
    let call = scene.call("bridge", "c", &pod);
    call.add(&ipv6(&scene));
    daemon.kill();
    call.del(&ipv6(&scene));
    server.await_said("Release message from", 1);
    assert_eq!(scene.kept(), Vec::<String>::new());
}

#[test]
fn an_address_that_somebody_has_already_is_declined() {
    let Some(scene) = scene(&["dhcpd"]) else { return };
    let (mut server, _daemon) = (dhcpd(&scene, FIRST, 600), scene.daemon(&[]));
    let squatter = scene.pod("port0");
    squatter.ip("link set eth0 up");
    squatter.ip(&format!("addr add {FIRST}/64 dev eth0 nodad"));
    let pod = Namespace::new();
    let mut careful = ipv6(&scene);
    careful["enableDad"] = json!(true);
    let reply = scene.call("bridge", "c", &pod).run("ADD", &careful);
    assert!(reply.error_text().contains("duplicate"), "{reply:?}");
    server.await_said("Decline message from", 1);
    assert_eq!((scene.kept(), pod.link_names()), (vec![], vec![]));
    // The server gives that one to nobody any more.
    let reply = scene.call("bridge", "d", &pod).run("ADD", &careful);
    assert!(reply.error_text().contains("NoAddrsAvail"), "{reply:?}");
}

#[test]
fn a_server_with_nothing_left_is_quoted() {
    let Some(scene) = scene(&["dhcpd"]) else { return };
    let (_server, _daemon) = (dhcpd(&scene, FIRST, 600), scene.daemon(&[]));
    let (one, two) = (Namespace::new(), Namespace::new());
    scene.call("bridge", "one", &one).add(&ipv6(&scene));
    let reply = scene.call("bridge", "two", &two).run("ADD", &ipv6(&scene));
    assert!(reply.error_text().contains("no addresses are left (NoAddrsAvail)"), "{reply:?}");
    assert_eq!((two.link_names(), scene.kept().len()), (vec![], 1));
}

#[test]
fn where_only_one_family_is_served_the_missing_one_is_named() {
    let Some(scene) = scene(&["dnsmasq"]) else { return };
    let (mut server, _daemon) = (scene.dnsmasq(&[]), scene.daemon(&["-resendtimeout", "3s"]));
    let pod = Namespace::new();
    let reply = scene.call("bridge", "c", &pod).run("ADD", &config(&scene, &["ipv4", "ipv6"], json!({})));
    assert!(reply.error_text().contains("no DHCPv6 server"), "{reply:?}");
    server.await_said("DHCPRELEASE(lan0)", 1);
    assert_eq!((scene.kept(), pod.link_names()), (vec![], vec![]));
}

#[test]
fn a_pods_name_is_its_duid_so_two_pods_of_one_name_have_one_address() {
    let Some(scene) = scene(&["dnsmasq"]) else { return };
    let (_server, _daemon) = (dnsmasq(&scene, &[]), scene.daemon(&[]));
    let provide = json!({ "provide": [{ "option": "dhcp-client-identifier", "fromArg": "K8S_POD_NAME" }] });
    let config = config(&scene, &["ipv6"], provide);
    let address = |container: &str| {
        let pod = Namespace::new();
        let mut call = scene.call("bridge", container, &pod);
        call.args = "IgnoreUnknown=1;K8S_POD_NAME=database-0";
        let result = call.add(&config);
        call.del(&config);
        told(&result)
    };
    assert_eq!(address("first"), address("second"));
}

/// Kea with one pool and short times.
fn kea(scene: &Scene) -> Service {
    let config = scene.file("kea.json");
    let text = json!({ "Dhcp6": {
        "interfaces-config": { "interfaces": ["lan0"] },
        "lease-database": { "type": "memfile", "persist": false },
        "renew-timer": 4, "rebind-timer": 10, "preferred-lifetime": 15, "valid-lifetime": 20,
        "server-id": { "type": "LL", "persist": false },
        "option-data": [
            { "name": "dns-servers", "data": "fd00:6::53" },
            { "name": "domain-search", "data": "example.org" },
        ],
        "subnet6": [{
            "id": 1, "subnet": "fd00:6::/64", "interface": "lan0", "rapid-commit": true,
            "pools": [{ "pool": "fd00:6::100-fd00:6::1ff" }],
        }],
        "loggers": [{ "name": "kea-dhcp6", "severity": "DEBUG", "debuglevel": 55,
                      "output_options": [{ "output": "stdout", "flush": true }] }],
    }});
    std::fs::write(&config, text.to_string()).unwrap();
    let mut command = scene.lan.command("kea-dhcp6");
    command.arg("-c").arg(&config);
    for variable in ["KEA_PIDFILE_DIR", "KEA_LOCKFILE_DIR", "KEA_DHCP_DATA_DIR"] {
        command.env(variable, scene.files.path());
    }
    let mut server = Service::start(&mut command, scene.file("kea.log"));
    server.await_said("DHCP6_STARTED", 1);
    server
}

#[test]
fn kea_leases_renews_and_takes_back() {
    let Some(scene) = scene(&["kea-dhcp6"]) else { return };
    let (mut server, _daemon) = (kea(&scene), scene.daemon(&[]));
    let pod = Namespace::new();
    let call = scene.call("bridge", "c", &pod);
    let known = config(&scene, &["ipv6"], json!({ "ipv6PrefixLength": 64, "ipv6Gateway": SERVER }));
    let result = call.add(&known);
    assert_eq!(result["dns"], json!({ "nameservers": ["fd00:6::53"], "search": ["example.org"] }));
    assert_eq!(addresses(&pod), [told(&result)[0].0.clone()]);
    server.await_said("DHCP6_LEASE_RENEW", 2);
    call.del(&known);
    server.await_said("DHCP6_RELEASE_NA ", 1);
    assert!(Path::new(&scene.file("kea.log")).exists());
}
