//! `host-local` as a program: what a runtime sees, beside the reference plugin where it is installed, under
//! concurrency, and killed at every step.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may fail by panicking, and starts the programs it is about"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use harness::{not_run, reference_plugins};
use serde_json::{Value, json};

const OURS: &str = env!("CARGO_BIN_EXE_fairlead-cni");

/// A data directory of its own, and the calls of host-local with it.
struct Node {
    directory: tempfile::TempDir,
    ranges: Value,
}

impl Node {
    fn new(ranges: Value) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), ranges }
    }

    fn with_subnet(subnet: &str) -> Self {
        Self::new(json!([[{ "subnet": subnet }]]))
    }

    fn network(&self) -> PathBuf {
        self.directory.path().join("net")
    }

    fn config(&self) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "net", "type": "bridge",
            "ipam": { "type": "host-local", "dataDir": self.directory.path(), "ranges": self.ranges }
        })
    }

    /// The files that are addresses.
    fn addresses(&self) -> BTreeSet<String> {
        let Ok(entries) = fs::read_dir(self.network()) else { return BTreeSet::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect()
    }

    /// Those of them that somebody holds: the others were never filled.
    fn held(&self) -> BTreeSet<String> {
        let filled = |ip: &String| !fs::read(self.network().join(ip)).unwrap().is_empty();
        self.addresses().into_iter().filter(filled).collect()
    }

    fn call(&self, command: &str, container: &str) -> Answer {
        ours().call(command, container, &self.config())
    }

    fn add(&self, container: &str) -> String {
        self.call("ADD", container).address(0)
    }
}

/// A program that is host-local.
#[derive(Clone)]
struct Program {
    words: Vec<String>,
    ifname: &'static str,
    args: &'static str,
}

fn ours() -> Program {
    Program { words: vec![OURS.into(), "host-local".into()], ifname: "eth0", args: "" }
}

fn reference() -> Option<Program> {
    let words = vec![reference_plugins()?.join("host-local").to_str()?.to_owned()];
    Some(Program { words, ..ours() })
}

impl Program {
    fn under(&self, tool: &[&str]) -> Self {
        let words = tool.iter().map(ToString::to_string).chain(self.words.clone()).collect();
        Self { words, ..self.clone() }
    }

    fn call(&self, command: &str, container: &str, config: &Value) -> Answer {
        let mut child = Command::new(&self.words[0])
            .args(&self.words[1..])
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", "/no/such/namespace")
            .env("CNI_IFNAME", self.ifname)
            .env("CNI_ARGS", self.args)
            .env("CNI_PATH", "/no/such/directory")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let _ = child.stdin.take().unwrap().write_all(config.to_string().as_bytes());
        Answer(child.wait_with_output().unwrap())
    }
}

#[derive(Debug)]
struct Answer(Output);

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.0.stdout).unwrap_or(Value::Null)
    }

    fn good(self) -> Self {
        assert!(self.0.status.success(), "{self:?}");
        self
    }

    /// The address of one set, without its prefix length.
    fn address(self, set: usize) -> String {
        let json = self.good().json();
        let address = json["ips"][set]["address"].as_str().unwrap_or_else(|| panic!("{json}"));
        address.split('/').next().unwrap().to_owned()
    }

    fn error(&self) -> (u64, String) {
        assert!(!self.0.status.success(), "{self:?}");
        let json = self.json();
        (json["code"].as_u64().unwrap(), json["msg"].as_str().unwrap().to_owned())
    }
}

#[test]
fn addresses_go_round_and_gateway_and_broadcast_are_never_among_them() {
    let node = Node::with_subnet("10.1.2.0/29");
    assert_eq!(node.add("a"), "10.1.2.2");
    assert_eq!(node.add("b"), "10.1.2.3");
    node.call("DEL", "a").good();
    let rest: Vec<String> = ["c", "d", "e", "f"].into_iter().map(|pod| node.add(pod)).collect();
    assert_eq!(rest, ["10.1.2.4", "10.1.2.5", "10.1.2.6", "10.1.2.2"]);
    let (code, text) = node.call("ADD", "g").error();
    assert_eq!(code, 11);
    assert_eq!(
        text,
        "failed to allocate for range 0: no IP addresses available in range set: 10.1.2.1-10.1.2.6"
    );
    assert_eq!(node.call("STATUS", "").error().0, 50);
    node.call("DEL", "d").good();
    node.call("STATUS", "").good();
    assert_eq!(node.add("g"), "10.1.2.5");
}

#[test]
fn another_interface_is_another_attachment_and_the_same_one_is_refused() {
    let node = Node::with_subnet("10.1.2.0/24");
    let second = Program { ifname: "eth1", ..ours() };
    assert_eq!(node.add("a"), "10.1.2.2");
    assert_eq!(second.call("ADD", "a", &node.config()).address(0), "10.1.2.3");
    let (_, text) = node.call("ADD", "a").error();
    assert!(
        text.ends_with("10.1.2.2 has been allocated to a, duplicate allocation is not allowed"),
        "{text}"
    );
    second.call("DEL", "a", &node.config()).good();
    assert_eq!(node.addresses(), BTreeSet::from(["10.1.2.2".into()]));
}

#[test]
fn files_of_very_old_plugins_and_padded_ones_are_released() {
    let node = Node::with_subnet("10.1.2.0/24");
    node.add("other");
    for content in ["old", " old \r\n", "old\r\neth0", "\nold\r\neth0\r\n "] {
        fs::write(node.network().join("10.1.2.77"), content).unwrap();
        node.call("CHECK", "old").good();
        node.call("DEL", "old").good();
        assert!(!node.network().join("10.1.2.77").exists(), "{content:?}");
    }
    assert_eq!(node.addresses().len(), 1);
}

#[test]
fn one_can_ask_for_addresses_in_three_ways() {
    let node = Node::new(json!([[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "2001:db8::/64" }]]));
    let with = |key: &str, value: Value| {
        let mut config = node.config();
        config[key] = value;
        config
    };
    let by_args = Program { args: "IP=10.1.2.88", ..ours() };
    assert_eq!(by_args.call("ADD", "a", &node.config()).address(0), "10.1.2.88");
    let both = with("runtimeConfig", json!({ "ips": ["10.1.2.99/24", "2001:DB8::99"] }));
    let answer = ours().call("ADD", "b", &both).good();
    assert_eq!(answer.json()["ips"][0]["address"], "10.1.2.99/24");
    assert_eq!(answer.json()["ips"][1]["address"], "2001:db8::99/64");
    let structured = with("args", json!({ "cni": { "ips": ["10.1.2.100"] } }));
    assert_eq!(ours().call("ADD", "c", &structured).address(0), "10.1.2.100");

    let refuse = |ip: &str| ours().call("ADD", "d", &with("args", json!({ "cni": { "ips": [ip] } }))).error();
    assert_eq!(
        refuse("10.1.2.1").1,
        "failed to allocate for range 0: requested ip 10.1.2.1 is subnet's gateway"
    );
    let taken =
        "failed to allocate for range 0: requested IP address 10.1.2.88 is not available in range set";
    assert_eq!(refuse("10.1.2.88"), (11, format!("{taken} 10.1.2.1-10.1.2.254")));
    assert_eq!(refuse("192.0.2.7"), (7, "failed to allocate all requested IPs: 192.0.2.7".into()));
    assert_eq!(refuse("nonsense").0, 7);
    assert_eq!(Program { args: "IP=nonsense", ..ours() }.call("ADD", "d", &node.config()).error().0, 4);
    assert_eq!(node.addresses().len(), 6, "a refusal takes nothing");
}

#[test]
fn ranges_come_from_the_capability_then_the_single_range_then_the_list() {
    let node = Node::with_subnet("10.1.3.0/24");
    let mut config = node.config();
    config["ipam"]["subnet"] = json!("10.1.2.0/24");
    config["ipam"]["rangeStart"] = json!("10.1.2.50");
    config["ipam"]["gateway"] = json!("10.1.2.254");
    config["runtimeConfig"] = json!({ "ipRanges": [[{ "subnet": "10.1.1.0/24" }]] });
    let result = ours().call("ADD", "a", &config).good().json();
    let ips: Vec<_> =
        result["ips"].as_array().unwrap().iter().map(|ip| ip["address"].as_str().unwrap()).collect();
    assert_eq!(ips, ["10.1.1.2/24", "10.1.2.50/24", "10.1.3.2/24"]);
    assert_eq!(result["ips"][1]["gateway"], "10.1.2.254");
}

#[test]
fn routes_and_the_resolver_file_are_in_the_result() {
    let node = Node::with_subnet("10.1.2.0/24");
    let resolver = node.directory.path().join("resolv.conf");
    fs::write(&resolver, "; none\nnameserver 1.1.1.1 # one\nsearch a b\noptions ndots:5\ndomain c\n")
        .unwrap();
    let mut config = node.config();
    config["ipam"]["routes"] =
        json!([{ "dst": "0.0.0.0/0" }, { "dst": "10.9.0.0/16", "gw": "10.1.2.9", "mtu": 1400 }]);
    config["ipam"]["resolvConf"] = json!(resolver);
    let result = ours().call("ADD", "a", &config).good().json();
    assert_eq!(
        result["routes"],
        json!([{ "dst": "0.0.0.0/0" }, { "dst": "10.9.0.0/16", "gw": "10.1.2.9", "mtu": 1400 }])
    );
    assert_eq!(
        result["dns"],
        json!({ "nameservers": ["1.1.1.1"], "search": ["a", "b"], "options": ["ndots:5"], "domain": "c" })
    );
    config["ipam"]["resolvConf"] = json!("/no/such/file");
    let (_, text) = ours().call("ADD", "b", &config).error();
    assert!(text.contains("/no/such/file"), "{text}");
    assert_eq!(ours().call("STATUS", "", &config).error().0, 50);
    assert_eq!(node.addresses().len(), 1);
}

#[test]
fn bad_ranges_are_refused_with_code_7_and_touch_nothing() {
    for ranges in [
        json!([]),
        json!([[]]),
        json!([[{}]]),
        json!([[{ "subnet": "10.1.2.1/24" }]]),
        json!([[{ "subnet": "10.1.2.0/31" }]]),
        json!([[{ "subnet": "nonsense" }]]),
        json!([[{ "subnet": "10.1.2.0/24", "rangeStart": "10.1.3.1" }]]),
        json!([[{ "subnet": "10.1.2.0/24", "gateway": "2001:db8::1" }]]),
        json!([[{ "subnet": "10.1.2.0/24" }, { "subnet": "2001:db8::/64" }]]),
        json!([[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "10.1.0.0/16" }]]),
    ] {
        let node = Node::new(ranges.clone());
        assert_eq!(node.call("ADD", "a").error().0, 7, "{ranges}");
        assert_eq!(node.call("STATUS", "").error().0, 50, "{ranges}");
        // The address must come back even if the ranges are wrong by now.
        node.call("DEL", "a").good();
        assert_eq!(fs::read_dir(node.directory.path()).unwrap().count(), 0, "{ranges}");
    }
    let node = Node::new(json!([[{ "subnet": 5 }]]));
    assert_eq!(node.call("ADD", "a").error().0, 6);
    let mut two = Node::new(json!([[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "10.1.3.0/24" }]])).config();
    two["cniVersion"] = json!("0.2.0");
    assert_eq!(ours().call("ADD", "a", &two).error().0, 7);
}

#[test]
fn gc_keeps_what_is_listed_and_takes_nothing_without_a_list() {
    let node = Node::with_subnet("10.1.2.0/24");
    for pod in ["a", "b", "c"] {
        node.add(pod);
    }
    fs::write(node.network().join("10.1.2.9"), "").unwrap();
    fs::write(node.network().join("10.1.2.10"), "ancient").unwrap();
    assert_eq!(node.call("GC", "").error().0, 7);
    assert_eq!(node.addresses().len(), 5);
    let mut config = node.config();
    config["cni.dev/valid-attachments"] = json!([{ "containerID": "b", "ifname": "eth0" }]);
    ours().call("GC", "", &config).good();
    assert_eq!(node.addresses(), BTreeSet::from(["10.1.2.3".into()]));
    config["cni.dev/valid-attachments"] = json!([]);
    config["name"] = json!("other");
    ours().call("GC", "", &config).good();
    assert_eq!(node.addresses().len(), 1, "another network's are not touched");
}

#[test]
fn check_compares_with_the_result_of_the_add() {
    let node = Node::with_subnet("10.1.2.0/24");
    let mut config = node.config();
    config["prevResult"] = node.call("ADD", "a").good().json();
    ours().call("CHECK", "a", &config).good();
    config["prevResult"]["ips"][0]["address"] = json!("10.1.2.3/24");
    assert_eq!(ours().call("CHECK", "a", &config).error().0, 111);
    let (_, text) = node.call("CHECK", "b").error();
    assert!(text.contains("failed to find address added by container b"), "{text}");
}

#[test]
fn an_empty_file_left_by_a_killed_plugin_is_an_address_to_give_out() {
    let node = Node::with_subnet("10.1.2.0/30");
    fs::create_dir(node.network()).unwrap();
    fs::write(node.network().join("10.1.2.2"), "").unwrap();
    node.call("STATUS", "").good();
    assert_eq!(node.add("a"), "10.1.2.2");
}

#[test]
fn a_file_that_a_power_failure_filled_with_zeros_is_an_address_to_give_out() {
    let node = Node::with_subnet("10.1.2.0/30");
    fs::create_dir(node.network()).unwrap();
    fs::write(node.network().join("10.1.2.2"), [0; 12]).unwrap();
    assert_eq!(node.add("a"), "10.1.2.2");
}

#[test]
fn a_folder_with_the_name_of_an_address_is_passed_over() {
    let node = Node::with_subnet("10.1.2.0/29");
    fs::create_dir_all(node.network().join("10.1.2.2")).unwrap();
    assert_eq!(node.add("a"), "10.1.2.3");
    node.call("CHECK", "a").good();
    fs::create_dir(node.network().join("10.1.2.6")).unwrap();
    node.call("DEL", "a").good();
    let mut config = node.config();
    config["cni.dev/valid-attachments"] = json!([]);
    ours().call("GC", "", &config).good();
    assert_eq!(node.add("b"), "10.1.2.4");
}

#[test]
fn both_plugins_share_a_directory() {
    let Some(reference) = reference() else { return not_run("the reference plugins are not installed") };
    let node = Node::new(json!([[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "2001:db8::/64" }]]));
    let mut config = node.config();
    config["cniVersion"] = json!("1.0.0");
    let (us, them) = (ours(), reference);
    let mut given = BTreeSet::new();
    for round in 0..6 {
        let (one, two) = (format!("us{round}"), format!("them{round}"));
        for (program, pod) in [(&us, &one), (&them, &two)] {
            let result = program.call("ADD", pod, &config).good().json();
            assert!(given.insert(result["ips"][0]["address"].to_string()), "given twice: {result}");
            assert!(given.insert(result["ips"][1]["address"].to_string()), "given twice: {result}");
        }
        // Each answers for what the other gave, and refuses a second one.
        us.call("CHECK", &two, &config).good();
        them.call("CHECK", &one, &config).good();
        assert!(us.call("ADD", &two, &config).error().1.contains("duplicate allocation"));
        assert!(them.call("ADD", &one, &config).error().1.contains("duplicate allocation"));
    }
    for round in 0..6 {
        let (one, two) = (format!("us{round}"), format!("them{round}"));
        them.call("DEL", &one, &config).good();
        us.call("DEL", &two, &config).good();
        us.call("DEL", &one, &config).good();
    }
    assert_eq!(node.addresses(), BTreeSet::new());
    // Ours behind theirs, in the order both use.
    assert_eq!(them.call("ADD", "x", &config).address(0), "10.1.2.14");
    assert_eq!(us.call("ADD", "y", &config).address(0), "10.1.2.15");
    assert_eq!(them.call("ADD", "z", &config).address(0), "10.1.2.16");
}

#[test]
fn many_processes_of_both_plugins_at_once_give_no_address_twice_and_lose_none() {
    let node = Node::new(json!([[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "2001:db8::/64" }]]));
    let mut config = node.config();
    config["cniVersion"] = json!("1.0.0");
    let programs: Vec<Program> = [Some(ours()), reference()].into_iter().flatten().collect();
    let each = |command: &str| -> Vec<Answer> {
        let one = |worker: usize| {
            let calls = (0..25).map(|call| {
                let program = &programs[(worker + call) % programs.len()];
                program.call(command, &format!("pod{worker}-{call}"), &config).good()
            });
            calls.collect::<Vec<_>>()
        };
        let one = &one;
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..10).map(|worker| scope.spawn(move || one(worker))).collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
        })
    };
    let given: BTreeSet<String> = each("ADD").into_iter().map(|answer| answer.address(0)).collect();
    assert_eq!(given.len(), 250, "no address twice");
    assert_eq!(node.addresses().len(), 500);
    each("DEL");
    assert_eq!(node.addresses(), BTreeSet::new(), "no address lost");
}

/// One system call of a run, and which of its kind it is, from 1.
struct Step {
    call: String,
    occurrence: usize,
}

/// Every system call that the program makes, from the one that reads its configuration.
fn steps_of(options: &[&str], command: &str, container: &str, config: &Value) -> Vec<Step> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let words = [&["strace", "-qq", "-o", log.path().to_str().unwrap()], options].concat();
    ours().under(&words).call(command, container, config).good();
    let mut steps: Vec<Step> = Vec::new();
    let mut started = 0;
    for line in fs::read_to_string(log.path()).unwrap().lines() {
        let Some((call, rest)) = line.split_once('(') else { continue };
        let occurrence = steps.iter().filter(|step| step.call == call).count() + 1;
        if call == "read" && rest.starts_with("0, ") && started == 0 {
            started = steps.len();
        }
        steps.push(Step { call: call.to_owned(), occurrence });
    }
    steps.split_off(started)
}

fn can_trace() -> bool {
    Command::new("strace")
        .args(["-qq", "-o", "/dev/null", "true"])
        .status()
        .is_ok_and(|status| status.success())
}

/// Kills `command` for the pod `victim` before each of its system calls in turn, every time in a fresh node
/// with one other pod, which `prepare` has readied. `fault` is one more thing for strace to inject.
fn kill_at_every_step(
    command: &str,
    prepare: impl Fn(&Node),
    config: impl Fn(&Node) -> Value,
    fault: Option<&str>,
) {
    let fresh = || {
        let node = Node::new(json!([[{ "subnet": "10.1.2.0/29" }], [{ "subnet": "2001:db8::/125" }]]));
        node.add("other");
        prepare(&node);
        node
    };
    let fault: Vec<&str> = fault.into_iter().flat_map(|fault| ["-e", fault]).collect();
    let node = fresh();
    let steps = steps_of(&fault, command, "victim", &config(&node));
    let mut killed = 0;
    for step in &steps {
        let node = fresh();
        let kill = format!("inject={}:signal=KILL:when={}", step.call, step.occurrence);
        let words = [&["strace", "-qq", "-o", "/dev/null"], &*fault, &["-e", &kill]].concat();
        let answer = ours().under(&words).call(command, "victim", &config(&node));
        killed += usize::from(!answer.0.status.success());
        let at = format!("{command} killed at {} number {}", step.call, step.occurrence);
        if fault.is_empty() && command != "GC" {
            assert_eq!(
                node.addresses(),
                node.held(),
                "{at}: nobody, the reference included, meets half a file"
            );
        }
        recovers(&node, &at);
    }
    assert!(killed * 10 > steps.len() * 9, "only {killed} of {} steps were killed", steps.len());
}

/// After a kill nothing is taken twice, DEL works, and the whole range can be given out.
fn recovers(node: &Node, at: &str) {
    let before = node.held();
    let late = node.call("ADD", "late").good().json();
    for ip in late["ips"].as_array().unwrap() {
        let ip = ip["address"].as_str().unwrap().split('/').next().unwrap();
        assert!(!before.contains(ip), "{at}: {ip} given twice");
    }
    node.call("DEL", "victim").good();
    let held = node.held();
    assert_eq!(
        held.len(),
        4,
        "{at}: only the other two pods hold anything, each one of each family: {held:?}"
    );
    for number in 0..3 {
        assert!(node.call("ADD", &format!("more{number}")).0.status.success(), "{at}: an address is lost");
    }
    assert_eq!(node.call("ADD", "too-many").error().0, 11, "{at}");
}

#[test]
fn an_add_killed_at_any_step_loses_no_address() {
    if !can_trace() {
        return not_run("strace cannot trace here");
    }
    kill_at_every_step("ADD", |_| (), Node::config, None);
}

#[test]
fn an_add_killed_on_a_file_system_without_nameless_files_loses_no_address() {
    if !can_trace() {
        return not_run("strace cannot trace here");
    }
    let node = Node::with_subnet("10.1.2.0/24");
    let openat = steps_of(&[], "ADD", "probe", &node.config());
    // The first of an ADD's `openat` is the lock, the second the nameless file.
    assert!(openat.iter().filter(|step| step.call == "openat").count() >= 3);
    let first = openat.iter().find(|step| step.call == "openat").unwrap().occurrence;
    let fault = format!("inject=openat:error=EOPNOTSUPP:when={}", first + 1);
    kill_at_every_step("ADD", |_| (), Node::config, Some(&fault));
}

#[test]
fn a_del_killed_at_any_step_loses_no_address() {
    if !can_trace() {
        return not_run("strace cannot trace here");
    }
    kill_at_every_step("DEL", |node| drop(node.add("victim")), Node::config, None);
}

#[test]
fn a_gc_killed_at_any_step_loses_no_address() {
    if !can_trace() {
        return not_run("strace cannot trace here");
    }
    let config = |node: &Node| {
        let mut config = node.config();
        config["cni.dev/valid-attachments"] = json!([{ "containerID": "other", "ifname": "eth0" }]);
        config
    };
    let prepare = |node: &Node| {
        node.add("victim");
        fs::write(node.network().join("10.1.2.6"), "").unwrap();
    };
    kill_at_every_step("GC", prepare, config, None);
}

/// The system calls that can fail because of the node's file system.
const ON_FILES: [&str; 13] = [
    "open",
    "openat",
    "flock",
    "fstat",
    "read",
    "write",
    "pwrite64",
    "linkat",
    "symlinkat",
    "utimensat",
    "unlinkat",
    "readlinkat",
    "getdents64",
];

#[test]
fn an_add_whose_file_system_fails_at_any_step_gives_an_address_or_leaves_nothing() {
    if !can_trace() {
        return not_run("strace cannot trace here");
    }
    let fresh = || {
        let node = Node::new(json!([[{ "subnet": "10.1.2.0/29" }], [{ "subnet": "2001:db8::/125" }]]));
        node.add("other");
        // What a killed plugin left makes this ADD look at every file.
        fs::write(node.network().join("10.1.2.6"), "").unwrap();
        node
    };
    let steps = steps_of(&[], "ADD", "victim", &fresh().config());
    let mut refused = 0;
    for step in steps.iter().filter(|step| ON_FILES.contains(&step.call.as_str())) {
        let node = fresh();
        let fault = format!("inject={}:error=EIO:when={}", step.call, step.occurrence);
        let program = ours().under(&["strace", "-qq", "-o", "/dev/null", "-e", &fault]);
        let answer = program.call("ADD", "victim", &node.config());
        let at = format!("EIO at {} number {}: {answer:?}", step.call, step.occurrence);
        for ip in ["10.1.2.2", "2001:db8::2"] {
            assert!(node.held().contains(ip), "{at}: the other pod's {ip} is gone");
        }
        if answer.0.status.success() {
            assert_eq!(node.held().len(), 4, "{at}");
            node.call("CHECK", "victim").good();
        } else {
            // When even the answer cannot be written there is nobody to tell.
            assert!(step.call == "write" || answer.error().0 == 5, "{at}");
            assert_eq!(node.held().len(), 2, "{at}");
            refused += 1;
        }
        recovers(&node, &at);
    }
    assert!(refused > 8, "only {refused} steps mattered");
}

/// Lets `command` for the pod `victim` meet an input/output error at each of its system calls on files in turn,
/// in a fresh node with one other pod and files that a killed plugin and another plugin left.
fn fail_at_every_step(command: &str, config: impl Fn(&Node) -> Value) {
    let fresh = || {
        let node = Node::new(json!([[{ "subnet": "10.1.2.0/29" }], [{ "subnet": "2001:db8::/125" }]]));
        node.add("other");
        node.add("victim");
        fs::write(node.network().join("10.1.2.6"), "").unwrap();
        node
    };
    let node = fresh();
    let steps = steps_of(&[], command, "victim", &config(&node));
    let mut refused = 0;
    for step in steps.iter().filter(|step| ON_FILES.contains(&step.call.as_str())) {
        let node = fresh();
        let fault = format!("inject={}:error=EIO:when={}", step.call, step.occurrence);
        let program = ours().under(&["strace", "-qq", "-o", "/dev/null", "-e", &fault]);
        let answer = program.call(command, "victim", &config(&node));
        let at = format!("{command}, EIO at {} number {}: {answer:?}", step.call, step.occurrence);
        for ip in ["10.1.2.2", "2001:db8::2"] {
            assert!(node.held().contains(ip), "{at}: the other pod's {ip} is gone");
        }
        if answer.0.status.success() {
            assert_eq!(node.held().len(), 2, "{at}: something of the victim's remains");
        } else {
            assert_eq!(answer.error().0, 5, "{at}");
            refused += 1;
        }
        recovers(&node, &at);
    }
    assert!(refused > 3, "only {refused} steps mattered");
}

#[test]
fn a_del_whose_file_system_fails_at_any_step_takes_nothing_from_others_and_can_be_repeated() {
    if !can_trace() {
        return not_run("strace cannot trace here");
    }
    fail_at_every_step("DEL", Node::config);
}

#[test]
fn a_gc_whose_file_system_fails_at_any_step_takes_nothing_from_others_and_can_be_repeated() {
    if !can_trace() {
        return not_run("strace cannot trace here");
    }
    fail_at_every_step("GC", |node| {
        let mut config = node.config();
        config["cni.dev/valid-attachments"] = json!([{ "containerID": "other", "ifname": "eth0" }]);
        config
    });
}

#[test]
fn an_add_without_the_privilege_to_link_by_descriptor_takes_the_way_through_proc() {
    if !can_trace() {
        return not_run("strace cannot trace here");
    }
    let node = Node::with_subnet("10.1.2.0/24");
    let fault = "inject=linkat:error=ENOENT:when=1";
    let program = ours().under(&["strace", "-qq", "-o", "/dev/null", "-e", fault]);
    assert_eq!(program.call("ADD", "a", &node.config()).address(0), "10.1.2.2");
    assert_eq!(fs::read_to_string(node.network().join("10.1.2.2")).unwrap(), "a\r\neth0");
}

/// How many system calls a call makes: what a time would measure, without the noise.
fn system_calls(command: &str, container: &str, config: &Value) -> usize {
    steps_of(&[], command, container, config).len()
}

#[test]
fn nothing_takes_longer_because_there_are_many_pods() {
    if !can_trace() {
        return not_run("strace cannot trace here");
    }
    let node = Node::with_subnet("10.1.0.0/16");
    node.add("first");
    let calls = |command| system_calls(command, "measured", &node.config());
    let few = [calls("ADD"), calls("CHECK"), calls("DEL"), calls("STATUS")];
    fill(&node.network(), 3000);
    node.add("second");
    let many = [calls("ADD"), calls("CHECK"), calls("DEL"), calls("STATUS")];
    for (few, many) in few.into_iter().zip(many) {
        assert!(many <= few + 4, "{few} system calls became {many}");
    }
    // A missing attachment is the dearest: nothing says at once that it is not there.
    let missing = system_calls("DEL", "nobody", &node.config());
    assert!(missing <= few[2], "{missing}");
}

#[test]
fn a_nearly_full_range_is_read_once_and_not_tried_address_by_address() {
    if !can_trace() {
        return not_run("strace cannot trace here");
    }
    let node = Node::with_subnet("10.1.0.0/20");
    fill(&node.network(), 4092);
    node.call("DEL", "filler-0").good();
    let calls = system_calls("ADD", "last", &node.config());
    assert!(calls < 200, "{calls} system calls");
    assert_eq!(node.call("ADD", "too-many").error().0, 11);
}

/// What `count` earlier pods left, written as the reference plugin does.
fn fill(network: &Path, count: u32) {
    fs::create_dir_all(network).unwrap();
    let base = u32::from(std::net::Ipv4Addr::new(10, 1, 0, 1));
    for number in 0..=count {
        let path = network.join(std::net::Ipv4Addr::from(base + 1 + number).to_string());
        if !path.exists() {
            fs::write(path, format!("filler-{number}\r\neth0")).unwrap();
        }
    }
}
