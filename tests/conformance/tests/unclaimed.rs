//! What the reference plugins leave that does not say whose it is: IFBs, rules of `CNI-FORWARD`, mapped ports in their
//! own nf_tables tables and saved attributes. GC takes what nobody on the host can have, and nothing of anybody else.
//!
//! Read [`Host`] first: a host whose runtime keeps its cache, and host-local its files, in a directory that is laid over
//! `/var/lib/cni` for our GC alone. Addresses are other ones in every test and process, because an address that an
//! interface has anywhere on the machine is somebody's. `FAIRLEAD_REFERENCE=DIR` names another build of the reference
//! that is asked too; where none maps ports in nf_tables, rules of the same form are made by hand.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and tools are what it asserts with"
)]

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use conformance::{Stage, Subject, ours};
use harness::{Call, Namespace, Reply, eventually, not_run, run, run_ok};
use serde_json::{Value, json};

/// Which iptables the reference finds.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Flavour {
    Nft,
    Legacy,
}

struct Host {
    stage: Stage,
    ours: Subject,
    reference: PathBuf,
    flavour: Flavour,
    tools: tempfile::TempDir,
    /// The second and third byte of its pods' addresses.
    subnet: [u8; 2],
}

/// Every build of the reference that is here.
fn references() -> Vec<PathBuf> {
    let debian = Some(PathBuf::from("/usr/lib/cni")).filter(|path| path.join("bridge").exists());
    if debian.is_none() {
        not_run("containernetworking-plugins is not installed");
    }
    debian.into_iter().chain(std::env::var_os("FAIRLEAD_REFERENCE").map(PathBuf::from)).collect()
}

fn hosts(flavours: &[Flavour]) -> Vec<Host> {
    let mut hosts = Vec::new();
    for reference in references() {
        hosts.extend(flavours.iter().filter_map(|flavour| Host::new(&reference, *flavour)));
    }
    hosts
}

impl Host {
    fn new(reference: &Path, flavour: Flavour) -> Option<Self> {
        static HOSTS: AtomicU32 = AtomicU32::new(0);
        let tools = tempfile::tempdir().unwrap();
        let suffix = if flavour == Flavour::Legacy { "legacy" } else { "nft" };
        for family in ["iptables", "ip6tables"] {
            let target = format!("/usr/sbin/{family}-{suffix}");
            symlink(target, tools.path().join(family)).unwrap();
        }
        let number =
            std::process::id().wrapping_mul(16).wrapping_add(HOSTS.fetch_add(1, Ordering::Relaxed) % 16);
        let subnet = [64 + (number >> 8 & 0x7f) as u8, number as u8];
        let stage = Stage::new();
        let host = Self { stage, ours: ours(), reference: reference.to_owned(), flavour, tools, subnet };
        let has_filter = run(host.stage.host.command(host.iptables()).args(["-w", "-S"])).status.success();
        if !has_filter {
            not_run("the kernel has no older iptables interface (CONFIG_IP_NF_IPTABLES_LEGACY)");
        }
        has_filter.then_some(host)
    }

    fn iptables(&self) -> PathBuf {
        self.tools.path().join("iptables")
    }

    fn address(&self, number: u8) -> String {
        format!("10.{}.{}.{number}", self.subnet[0], self.subnet[1])
    }

    fn address6(&self, number: u8) -> String {
        format!("2001:db8:{:x}{:02x}::{number:x}", self.subnet[0], self.subnet[1])
    }

    /// What an interface plugin would have said of such a pod.
    fn result(&self, number: u8) -> Value {
        json!({ "cniVersion": "1.0.0", "interfaces": [{ "name": "eth0", "sandbox": "/run/netns/none" }], "ips": [
            { "address": format!("{}/24", self.address(number)), "interface": 0 },
            { "address": format!("{}/64", self.address6(number)), "interface": 0 },
        ]})
    }

    /// Runs a plugin of the reference for a container.
    fn reference(&self, container: &str, pod: &Namespace, plugin: &str, config: &Value) -> Reply {
        let call = Call::new(&self.stage.host, &self.reference, plugin, container, pod);
        let mut process = call.command("ADD");
        let mut path = OsString::from(self.tools.path());
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        process.env("PATH", path);
        fed(process, config)
    }

    /// Our GC of network `test`, for which `directory` is `/var/lib/cni`; nothing where that cannot be done.
    fn try_collect(&self, plugin: &str, valid: &[&str], more: &Value) -> Option<Reply> {
        let mut config = self.stage.config(plugin, "1.1.0", more);
        let valid: Vec<Value> =
            valid.iter().map(|id| json!({ "containerID": id, "ifname": "eth0" })).collect();
        config["cni.dev/valid-attachments"] = json!(valid);
        let script = "mount -t tmpfs tmpfs /var/lib && mkdir /var/lib/cni && \
            mount --bind \"$0\" /var/lib/cni || exit 77; exec \"$1\"";
        let nobody = Namespace::new();
        let call = Call::new(&self.stage.host, &self.ours.bin, plugin, "", &nobody);
        let mut process = self.stage.host.command("unshare");
        process.args(["--mount", "--propagation", "private", "sh", "-c", script]);
        process.arg(self.stage.data.path()).arg(self.ours.bin.join(plugin));
        call.environment("GC", &mut process);
        let reply = fed(process, &config);
        if reply.exit == Some(77) {
            not_run("nothing can be mounted over /var/lib here");
            return None;
        }
        Some(reply)
    }

    fn collect(&self, plugin: &str, valid: &[&str], more: &Value) {
        let Some(reply) = self.try_collect(plugin, valid, more) else { return };
        assert_eq!(reply.exit, Some(0), "{:?} {}: {reply:?}", self.flavour, self.reference.display());
    }

    /// A GC that has to fail because of what is written in this file below `/var/lib/cni`, which then goes again.
    fn collect_beside(&self, file: &str, content: &str, (plugin, more): (&str, &Value)) {
        let path = self.stage.data.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        if let Some(reply) = self.try_collect(plugin, &["valid"], more) {
            assert_ne!(reply.exit, Some(0), "{file}: {reply:?}");
            let text = reply.error_text();
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(text.contains(name) && text.contains("so it stays"), "{text}");
        }
        fs::remove_file(path).unwrap();
    }

    /// A result in the runtime's cache.
    fn cache(&self, network: &str, container: &str, result: &Value) {
        let results = self.stage.data.path().join("results");
        fs::create_dir_all(&results).unwrap();
        let cached = json!({ "kind": "cniCacheV1", "containerId": container, "config": "e30=", "ifName": "eth0",
            "networkName": network, "netns": "/run/netns/none", "result": result });
        fs::write(results.join(format!("{network}-{container}-eth0")), cached.to_string()).unwrap();
    }

    /// A file of host-local.
    fn reserve(&self, network: &str, container: &str, address: &str) {
        let network = self.stage.data.path().join("networks").join(network);
        fs::create_dir_all(&network).unwrap();
        fs::write(network.join(address), format!("{container}\r\neth0")).unwrap();
    }

    /// Five pods of which everybody else knows in another way: `cached` by the cache, `reserved` by host-local,
    /// `running` by its own interface, `empty` by a file of host-local that is about to be filled, and `bare` by a
    /// result that does not say whose it is. Returns what keeps `running` alive.
    fn others(&self) -> Namespace {
        self.cache("other", "cached", &self.result(3));
        self.reserve("other", "reserved", &self.address(4));
        self.reserve("other", "reserved", &self.address6(4));
        let pod = Namespace::with_loopback();
        pod.ip(&format!("address add {}/32 dev lo", self.address(5)));
        pod.ip(&format!("address add {}/128 dev lo nodad", self.address6(5)));
        for address in [self.address(6), self.address6(6)] {
            fs::write(self.stage.data.path().join("networks/other").join(address), "").unwrap();
        }
        let bare = self.stage.data.path().join("results/old-bare-eth0");
        fs::write(bare, self.result(7).to_string()).unwrap();
        pod
    }

    fn said(&self, program: &Path, arguments: &str) -> String {
        run_ok(self.stage.host.command(program).args(arguments.split_whitespace()))
    }
}

const OTHERS: [(&str, u8); 5] = [("cached", 3), ("reserved", 4), ("running", 5), ("empty", 6), ("bare", 7)];

fn fed(mut process: Command, config: &Value) -> Reply {
    process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = process.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(config.to_string().as_bytes());
    Reply::from(child.wait_with_output().unwrap())
}

#[test]
fn gc_takes_ifbs_of_the_reference_to_which_nothing_leads_any_more() {
    let rate = json!({ "ingressRate": 8_000_000, "ingressBurst": 8_000_000,
        "egressRate": 8_000_000, "egressBurst": 8_000_000 });
    for host in hosts(&[Flavour::Nft]) {
        let ifbs = || {
            let names = host.stage.host.link_names();
            names.into_iter().filter(|name| name.starts_with("bwp") || name == "ifb9").collect::<Vec<_>>()
        };
        let shape = |network: &str, container: &str, number: u8| {
            let pod = Namespace::with_loopback();
            let mut bridge = host.stage.config("bridge", "1.0.0", &json!({ "bridge": "br0" }));
            let address = format!("{}/24", host.address(number));
            bridge["ipam"] = json!({ "type": "static", "addresses": [{ "address": address }] });
            bridge["name"] = json!(network);
            let result = host.reference(container, &pod, "bridge", &bridge).expect_success("ADD");
            let mut config = host.stage.config("bandwidth", "1.0.0", &rate);
            config["name"] = json!(network);
            config["prevResult"] = result;
            let before = ifbs();
            host.reference(container, &pod, "bandwidth", &config).expect_success("ADD");
            let name = ifbs().into_iter().find(|name| !before.contains(name)).unwrap();
            (pod, name)
        };
        let (_valid, of_valid) = shape("test", "valid", 2);
        let (_living, of_living) = shape("other", "living", 3);
        let mut lost = Vec::new();
        for (number, network) in [(4, "test"), (5, "other"), (6, "gone")] {
            let (pod, name) = shape(network, &format!("lost{number}"), number);
            drop(pod);
            lost.push(name);
        }
        eventually("the lost pods' cables are gone", || {
            let names = host.stage.host.link_names();
            (names.iter().filter(|name| name.starts_with("veth")).count() == 2).then_some(())
        });
        // One in the making, one of somebody else, and one that somebody has marked.
        let limit = "root tbf rate 8mbit burst 100kb latency 25ms";
        for (name, is_limited) in [("bwp0123456789ab", false), ("ifb9", true), ("bwp0123456789cd", true)] {
            host.stage.host.ip(&format!("link add {name} type ifb"));
            if is_limited {
                host.said(Path::new("tc"), &format!("qdisc add dev {name} {limit}"));
            }
        }
        host.stage.host.ip("link set bwp0123456789cd alias mine");
        for name in &lost {
            assert!(ifbs().contains(name), "{name}");
        }
        // No cache is needed to tell: there is none.
        for _ in 0..2 {
            host.collect("bandwidth", &["valid"], &json!({}));
            let mut left = ifbs();
            left.sort();
            let mut wanted = vec![
                of_valid.clone(),
                of_living.clone(),
                "bwp0123456789ab".into(),
                "ifb9".into(),
                "bwp0123456789cd".into(),
            ];
            wanted.sort();
            assert_eq!(left, wanted, "{}", host.reference.display());
        }
    }
}

/// The rules of `CNI-FORWARD` for a pod, as the reference makes them.
fn admit(host: &Host, network: &str, container: &str, number: u8) {
    let mut config = host.stage.config("firewall", "1.0.0", &json!({ "backend": "iptables" }));
    config["name"] = json!(network);
    config["prevResult"] = host.result(number);
    let reply = host.reference(container, &Namespace::new(), "firewall", &config);
    reply.expect_success("ADD");
}

/// Those for everybody, and some that a person wrote. Returns what keeps `running` alive.
fn admit_everybody(host: &Host) -> Namespace {
    admit(host, "test", "valid", 2);
    host.cache("test", "valid", &host.result(2));
    // Those of its own network count only if they are valid.
    admit(host, "test", "lost", 9);
    host.cache("test", "lost", &host.result(9));
    host.reserve("test", "lost", &host.address(9));
    admit(host, "gone", "lost2", 10);
    let running = host.others();
    for (container, number) in OTHERS {
        admit(host, "other", container, number);
    }
    // One that our own plugin lets pass, in a network of its own.
    admit(host, "ours", "ours", 8);
    let mut config = host.stage.config("firewall", "1.0.0", &json!({ "backend": "iptables" }));
    config["name"] = json!("ours");
    config["prevResult"] = host.result(8);
    let nobody = Namespace::new();
    let call = Call::new(&host.stage.host, &host.ours.bin, "firewall", "ours", &nobody);
    call.run("ADD", &config).expect_success("ADD");
    // These are not of the reference's form.
    for rule in [
        format!("-s {} -p tcp -j ACCEPT", host.address(9)),
        format!("-s {}/30 -j ACCEPT", host.address(20)),
        format!("-s {} -j DROP", host.address(9)),
    ] {
        host.said(&host.iptables(), &format!("-w -A CNI-FORWARD {rule}"));
    }
    // Of this net `iptables-nft` compares 4 bytes, as many as an address of the other family has.
    let six = host.tools.path().join("ip6tables");
    for rule in ["-s 2001:db8::/32 -j ACCEPT".into(), person_back(host)] {
        host.said(&six, &format!("-w -A CNI-FORWARD {rule}"));
    }
    running
}

/// A person's rule about other states than the reference's.
fn person_back(host: &Host) -> String {
    format!("-d {} -m conntrack --ctstate NEW -j ACCEPT", host.address6(9))
}

/// Both families' rules.
fn accepting(host: &Host) -> String {
    let six = host.tools.path().join("ip6tables");
    [host.iptables(), six].map(|tool| host.said(&tool, "-w -S CNI-FORWARD")).join("")
}

#[test]
fn gc_takes_accepting_rules_of_the_reference_for_addresses_that_nobody_has() {
    for host in hosts(&[Flavour::Nft, Flavour::Legacy]) {
        let what = format!("{:?} {}", host.flavour, host.reference.display());
        let _running = admit_everybody(&host);
        let before = accepting(&host);
        for _ in 0..2 {
            host.collect("firewall", &["valid"], &json!({}));
            let left = accepting(&host);
            let gone = |line: &&str| !left.lines().any(|left| left == *line);
            let gone: Vec<&str> = before.lines().filter(gone).collect();
            assert_eq!(gone.len(), 8, "{what}: {gone:#?}");
            for number in [9, 10] {
                for net in
                    [format!(" {}/32 ", host.address(number)), format!(" {}/128 ", host.address6(number))]
                {
                    let count = gone.iter().filter(|line| line.contains(&net)).count();
                    assert_eq!(count, 2, "{what}: {gone:#?}");
                }
            }
        }
        // With nobody valid the kernel alone tells, and the valid one is one of its own network then.
        host.collect("firewall", &[], &json!({}));
        let left = accepting(&host);
        assert!(!left.contains(&format!(" {}/32 ", host.address(2))), "{what}: {left}");
        for (container, number) in OTHERS.into_iter().chain([("ours", 8)]) {
            for net in [format!(" {}/32 ", host.address(number)), format!(" {}/128 ", host.address6(number))]
            {
                assert_eq!(left.matches(&net).count(), 2, "{what} {container}: {left}");
            }
        }
    }
}

#[test]
fn gc_takes_no_accepting_rule_while_a_record_cannot_be_read_or_the_cache_is_not_the_runtimes() {
    for host in hosts(&[Flavour::Nft, Flavour::Legacy]) {
        let what = format!("{:?} {}", host.flavour, host.reference.display());
        let _running = admit_everybody(&host);
        let before = accepting(&host);
        let plain = json!({});
        let nonsense = r#"{"kind": "cniCacheV1", "config": "e30=", "containerId": "c", "ifName": "eth0",
            "networkName": "n", "result": {"cniVersion": "1.0.0", "ips": [{"address": "nonsense"}]}}"#;
        for content in ["", "{", nonsense] {
            host.collect_beside("results/broken-c-eth0", content, ("firewall", &plain));
            assert_eq!(accepting(&host), before, "{what}: nothing goes that may be anybody's");
        }
        host.collect("firewall", &["valid", "unknown"], &plain);
        assert_eq!(accepting(&host), before, "{what}: nothing goes by a cache that is not the runtime's");
    }
}

/// The reference maps a port in its own tables; by hand where it is too old for that.
fn map_port(host: &Host, (network, container): (&str, &str), number: u8, port: u16) {
    let is_recent = {
        let mut asked = Command::new(host.reference.join("host-local"));
        let said = run(asked.env_clear().env("CNI_COMMAND", "VERSION")).stdout;
        String::from_utf8_lossy(&said).contains("1.1.0")
    };
    if is_recent {
        let more = json!({ "backend": "nftables", "runtimeConfig": { "portMappings":
            [{ "hostPort": port, "containerPort": 80, "protocol": "tcp" }] } });
        let mut config = host.stage.config("portmap", "1.0.0", &more);
        config["name"] = json!(network);
        config["prevResult"] = host.result(number);
        host.reference(container, &Namespace::new(), "portmap", &config).expect_success("ADD");
        return;
    }
    for (family, address, to) in [
        ("ip", host.address(number), host.address(number)),
        ("ip6", host.address6(number), format!("[{}]", host.address6(number))),
    ] {
        let table = format!("{family} cni_hostport");
        let rules = format!(
            "add table {table}\nadd chain {table} hostports\nadd chain {table} masquerading\n\
             add rule {table} hostports tcp dport {port} dnat to {to}:80 comment \"{container}\"\n\
             add rule {table} masquerading {family} saddr {address} {family} daddr {address} masquerade comment \"{container}\"\n"
        );
        let mut process = host.stage.host.command("nft");
        process.args(["-f", "-"]);
        process.stdin(Stdio::piped());
        let mut child = process.spawn().unwrap();
        child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{rules}");
    }
}

#[test]
fn gc_takes_host_ports_of_the_references_own_tables_that_nobody_has() {
    for host in hosts(&[Flavour::Nft]) {
        let what = format!("{}", host.reference.display());
        // The reference asks the kernel for the way to its pods.
        host.stage.host.ip("link add up0 type veth peer name up1");
        host.stage.host.ip("link set up0 up");
        host.stage.host.ip("link set up1 up");
        host.stage.host.ip(&format!("route add {}/24 dev up0", host.address(0)));
        map_port(&host, ("test", "valid"), 2, 8002);
        host.cache("test", "valid", &host.result(2));
        map_port(&host, ("test", "lost"), 9, 8009);
        host.cache("test", "lost", &host.result(9));
        let _running = host.others();
        for (container, number) in OTHERS {
            map_port(&host, ("other", container), number, 8000 + u16::from(number));
        }
        // A living container's former attachment to a network from which it was never detached.
        map_port(&host, ("gone", "cached"), 10, 8010);
        // A container of which the runtime kept no result may have any address.
        map_port(&host, ("other", "silent"), 11, 8011);
        host.cache("other", "silent", &Value::Null);
        let rules = || {
            let mut rules = Vec::new();
            for object in host.stage.host.nft_ruleset() {
                let rule = &object["rule"];
                if rule["table"] == "cni_hostport" && rule["comment"].is_string() {
                    rules.push(format!("{} {}", rule["comment"].as_str().unwrap(), rule["expr"]));
                }
            }
            rules
        };
        let before = rules();
        let is_gone = |rule: &&String| {
            let (host9, host10) = (host.address(9), host.address(10));
            let six = [9, 10].map(|number| format!("\"{}\"", host.address6(number)));
            let texts = [format!("\"{host9}\""), format!("\"{host10}\""), six[0].clone(), six[1].clone()];
            texts.iter().any(|text| rule.contains(text.as_str()))
        };
        assert!(before.iter().filter(is_gone).count() >= 8, "{what}: {before:#?}");
        let plain = json!({});
        host.collect_beside("results/broken-c-eth0", "[]", ("portmap", &plain));
        assert_eq!(rules(), before, "{what}: nothing goes that may be anybody's");
        host.collect("portmap", &["valid", "unknown"], &plain);
        assert_eq!(rules(), before, "{what}: nothing goes by a cache that is not the runtime's");
        let wanted: Vec<&String> = before.iter().filter(|rule| !is_gone(rule)).collect();
        for _ in 0..2 {
            host.collect("portmap", &["valid"], &plain);
            assert_eq!(rules().iter().collect::<Vec<_>>(), wanted, "{what}");
        }
    }
}

#[test]
fn gc_takes_attributes_that_the_reference_saved_for_containers_that_are_nobodys() {
    for host in hosts(&[Flavour::Nft]) {
        let what = format!("{}", host.reference.display());
        let data = host.stage.data.path().join("tuning");
        let more = json!({ "dataDir": data });
        let tune = |network: &str, container: &str| {
            let pod = Namespace::with_loopback();
            pod.ip("link add eth0 type veth peer name other");
            let mut config = host.stage.config("tuning", "1.0.0", &json!({ "mtu": 1400, "dataDir": data }));
            config["name"] = json!(network);
            config["prevResult"] = host.result(2);
            host.reference(container, &pod, "tuning", &config).expect_success("ADD");
        };
        let notes = || {
            let entries = fs::read_dir(&data).unwrap();
            let mut names: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        host.cache("test", "valid", &host.result(2));
        host.cache("test", "lost", &host.result(9));
        host.reserve("test", "lost", &host.address(9));
        let _running = host.others();
        for (network, container) in [
            ("test", "valid"),
            ("test", "lost"),
            ("other", "cached"),
            ("other", "reserved"),
            ("old", "bare"),
            ("gone", "lost_too"),
        ] {
            tune(network, container);
        }
        // Somebody else's, and one that is about to be written.
        fs::write(data.join("settings_eth0.json"), r#"{"mtu": 1500, "more": true}"#).unwrap();
        fs::write(data.join("half_eth0.json"), r#"{"mtu": "#).unwrap();
        let before = notes();
        assert_eq!(before.len(), 8, "{what}: {before:?}");
        host.collect_beside("results/broken-c-eth0", "", ("tuning", &more));
        assert_eq!(notes(), before, "{what}: nothing goes that may be anybody's");
        host.collect("tuning", &["valid", "unknown"], &more);
        assert_eq!(notes(), before, "{what}: nothing goes by a cache that is not the runtime's");
        host.collect("tuning", &[], &more);
        assert_eq!(notes(), before, "{what}: nothing goes while nobody vouches for the cache");
        for _ in 0..2 {
            host.collect("tuning", &["valid"], &more);
            let wanted = ["bare", "cached", "half", "reserved", "settings", "valid"];
            assert_eq!(notes(), wanted.map(|name| format!("{name}_eth0.json")), "{what}");
        }
    }
}
