//! firewall: which packets pass, what iptables shows of it, and firewalld. Behaviour 61.
//!
//! The reference writes iptables' table whether there is one or not; ours does so where iptables has made it, so the
//! questions about its rules begin with a table whose chain `FORWARD` drops, as container engines leave it.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and tools are what it asserts with"
)]

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use conformance::{Stage, Subject, ours, subjects};
use harness::{Call, Namespace, Reply, eventually, not_run, run, run_ok};
use serde_json::{Value, json};

/// A pod on a bridge, with the result of the plugin that wired it.
struct Pod {
    namespace: Namespace,
    container: String,
    result: Value,
}

impl Pod {
    /// Wired by the subject's own bridge plugin.
    fn on(stage: &Stage, subject: &Subject, bridge: &str, subnet: &str, container: &str) -> Self {
        let namespace = Namespace::with_loopback();
        let mut config =
            stage.config("bridge", "1.0.0", &json!({ "bridge": bridge, "isDefaultGateway": true }));
        config["name"] = json!(bridge);
        config["ipam"] = stage.ipam(&[subnet]);
        let mut call = stage.call(subject, "bridge", container);
        call.netns = namespace.path();
        let result = call.add(&config);
        Self { namespace, container: container.to_owned(), result }
    }

    fn call<'a>(&'a self, stage: &'a Stage, subject: &'a Subject) -> Call<'a> {
        Call::new(&stage.host, &subject.bin, "firewall", &self.container, &self.namespace)
    }

    fn config(&self, stage: &Stage, more: &Value) -> Value {
        let mut config = stage.config("firewall", "1.0.0", more);
        config["prevResult"] = self.result.clone();
        config
    }

    fn admit(&self, stage: &Stage, subject: &Subject, more: &Value) -> Value {
        self.call(stage, subject).add(&self.config(stage, more))
    }

    fn address(&self) -> String {
        let address = self.result["ips"][0]["address"].as_str().unwrap();
        address.split('/').next().unwrap().to_owned()
    }
}

/// Leaves the host as a container engine does: what is forwarded is dropped unless a rule lets it pass.
fn drop_forwarded(stage: &Stage) {
    for program in ["iptables", "ip6tables"] {
        run_ok(stage.host.command(program).args(["-w", "-P", "FORWARD", "DROP"]));
        run_ok(stage.host.command(program).args(["-w", "-A", "FORWARD", "-i", "none0", "-j", "RETURN"]));
    }
}

/// The rules of one chain of iptables.
fn rules(stage: &Stage, program: &str, chain: &str) -> Vec<String> {
    let listed = run(stage.host.command(program).args(["-w", "-S", chain]));
    let text = String::from_utf8(listed.stdout).unwrap();
    text.lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect()
}

fn iptables(more: &Value) -> Value {
    let mut config = json!({ "backend": "iptables" });
    more.as_object().into_iter().flatten().for_each(|(key, value)| config[key] = value.clone());
    config
}

#[test]
fn the_result_of_the_plugins_before_passes_unchanged() {
    for subject in subjects() {
        let stage = Stage::new();
        let pod = Pod::on(&stage, &subject, "br0", "10.1.2.0/24", "c1");
        assert_eq!(pod.admit(&stage, &subject, &iptables(&json!({}))), pod.result, "{}", subject.name);
    }
}

#[test]
fn two_rules_for_each_address_stand_behind_the_administrators_and_leave_with_the_pod() {
    for subject in subjects() {
        for (more, admin) in [(json!({}), "CNI-ADMIN"), (json!({ "iptablesAdminChainName": "MINE" }), "MINE")]
        {
            let stage = Stage::new();
            drop_forwarded(&stage);
            let pod = Pod::on(&stage, &subject, "br0", "10.1.2.0/24", "c1");
            let other = Pod::on(&stage, &subject, "br6", "2001:db8:42::/64", "c2");
            let config = iptables(&more);
            pod.admit(&stage, &subject, &config);
            other.admit(&stage, &subject, &config);
            // A second time changes nothing of it.
            pod.call(&stage, &subject).run("ADD", &pod.config(&stage, &config));
            let jump = "-A FORWARD -m comment --comment \"CNI firewall plugin rules\" -j CNI-FORWARD";
            let first = format!(
                "-A CNI-FORWARD -m comment --comment \"CNI firewall plugin admin overrides\" -j {admin}"
            );
            for (program, address) in [("iptables", "10.1.2.2/32"), ("ip6tables", "2001:db8:42::2/128")] {
                assert_eq!(rules(&stage, program, "FORWARD")[0], jump, "{}", subject.name);
                let expected = [
                    first.clone(),
                    format!(
                        "-A CNI-FORWARD -d {address} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
                    ),
                    format!("-A CNI-FORWARD -s {address} -j ACCEPT"),
                ];
                assert_eq!(rules(&stage, program, "CNI-FORWARD"), expected, "{}", subject.name);
            }
            let known = pod.config(&stage, &config);
            pod.call(&stage, &subject).del(&known);
            // While its cable stands, the interface plugin's DEL takes the rules of ours along.
            let mut bridge = stage.config("bridge", "1.0.0", &json!({ "bridge": "br0" }));
            bridge["name"] = json!("br0");
            bridge["prevResult"] = pod.result.clone();
            let mut call = stage.call(&subject, "bridge", "c1");
            call.netns = pod.namespace.path();
            call.del(&bridge);
            pod.call(&stage, &subject).del(&known);
            assert_eq!(rules(&stage, "iptables", "CNI-FORWARD"), [first], "{}", subject.name);
            assert_eq!(rules(&stage, "ip6tables", "CNI-FORWARD").len(), 3, "{}", subject.name);
        }
    }
}

#[test]
fn pods_talk_where_all_that_is_forwarded_is_dropped_by_others() {
    for subject in subjects() {
        let stage = Stage::new();
        drop_forwarded(&stage);
        let one = Pod::on(&stage, &subject, "br0", "10.1.0.0/24", "c1");
        let two = Pod::on(&stage, &subject, "br1", "10.2.0.0/24", "c2");
        assert!(!one.namespace.pings(&two.address()), "{}", subject.name);
        one.admit(&stage, &subject, &iptables(&json!({})));
        eventually("the first pod is let through", || one.namespace.pings(&two.address()).then_some(()));
        // The other may answer, not begin.
        assert!(!two.namespace.pings(&one.address()), "{}", subject.name);
    }
}

#[test]
fn check_is_content_after_add_and_not_after_a_rule_is_gone() {
    for subject in subjects() {
        for rule in
            ["-s 10.1.2.2 -j ACCEPT", "-d 10.1.2.2 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"]
        {
            let stage = Stage::new();
            drop_forwarded(&stage);
            let pod = Pod::on(&stage, &subject, "br0", "10.1.2.0/24", "c1");
            pod.admit(&stage, &subject, &iptables(&json!({})));
            let known = pod.config(&stage, &iptables(&json!({})));
            let check = || pod.call(&stage, &subject).run("CHECK", &known);
            assert_eq!(check().exit, Some(0), "{}: {:?}", subject.name, check());
            run_ok(stage.host.command("iptables").args(["-w", "-D", "CNI-FORWARD"]).args(rule.split(' ')));
            assert_ne!(check().exit, Some(0), "{}", subject.name);
        }
    }
}

#[test]
fn pods_of_one_bridge_reach_each_other_and_not_those_of_another() {
    for subject in subjects() {
        let stage = Stage::new();
        let foo = Pod::on(&stage, &subject, "foo", "10.1.0.0/24", "c1");
        let beside = Pod::on(&stage, &subject, "foo", "10.1.0.0/24", "c2");
        let bar = Pod::on(&stage, &subject, "bar", "10.2.0.0/24", "c3");
        assert!(foo.namespace.pings(&bar.address()), "{}", subject.name);
        let policy = iptables(&json!({ "ingressPolicy": "same-bridge" }));
        for pod in [&foo, &beside, &bar] {
            let reply = pod.call(&stage, &subject).run("ADD", &pod.config(&stage, &policy));
            assert_eq!(reply.exit, Some(0), "{}: {reply:?}", subject.name);
        }
        assert!(foo.namespace.pings(&beside.address()), "{}", subject.name);
        assert!(!foo.namespace.pings(&bar.address()), "{}", subject.name);
        assert!(!bar.namespace.pings(&beside.address()), "{}", subject.name);
        assert!(foo.namespace.pings("10.1.0.1"), "{}", subject.name);
        let known = foo.config(&stage, &policy);
        let reply = foo.call(&stage, &subject).run("CHECK", &known);
        assert_eq!(reply.exit, Some(0), "{}: {reply:?}", subject.name);
    }
}

#[test]
fn isolated_pods_reach_nobody_but_their_host() {
    // Debian's reference is too old for the word.
    let subject = ours();
    let stage = Stage::new();
    let foo = Pod::on(&stage, &subject, "foo", "10.1.0.0/24", "c1");
    let beside = Pod::on(&stage, &subject, "foo", "10.1.0.0/24", "c2");
    let bar = Pod::on(&stage, &subject, "bar", "10.2.0.0/24", "c3");
    assert!(foo.namespace.pings(&beside.address()));
    let policy = json!({ "ingressPolicy": "isolated" });
    for pod in [&foo, &beside, &bar] {
        pod.admit(&stage, &subject, &policy);
    }
    assert!(!foo.namespace.pings(&beside.address()));
    assert!(!foo.namespace.pings(&bar.address()));
    assert!(foo.namespace.pings("10.1.0.1"));
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_done() {
    for subject in subjects() {
        let stage = Stage::new();
        let pod = Pod::on(&stage, &subject, "br0", "10.1.2.0/24", "c1");
        let before = stage.host.nft_ruleset();
        let refused = |config: &Value, text: &str| {
            let reply = pod.call(&stage, &subject).run("ADD", config);
            assert!(reply.error_text().contains(text), "{}: {reply:?}", subject.name);
            if !subject.is_reference() {
                assert_eq!(stage.host.nft_ruleset(), before, "{config}");
            }
        };
        let mut alone = pod.config(&stage, &json!({}));
        alone.as_object_mut().unwrap().remove("prevResult");
        refused(&alone, "prevResult");
        let odd = pod.config(&stage, &iptables(&json!({ "ingressPolicy": "no-such" })));
        refused(&odd, "unknown ingress policy: \"no-such\"");
        let mut old = pod.config(&stage, &json!({}));
        old["cniVersion"] = json!("0.3.1");
        assert_eq!(pod.call(&stage, &subject).run("ADD", &old).error_code(), 1, "{}", subject.name);
        // Such a policy is about a bridge.
        let mut without = pod.config(&stage, &iptables(&json!({ "ingressPolicy": "same-bridge" })));
        without["prevResult"]["interfaces"] = json!([]);
        without["prevResult"]["ips"] = json!([]);
        refused(&without, "interface needs to be set for ingress policy \"same-bridge\"");
    }
}

#[test]
fn del_without_a_previous_result_is_a_success() {
    for subject in subjects() {
        let stage = Stage::new();
        let pod = Pod::on(&stage, &subject, "br0", "10.1.2.0/24", "c1");
        pod.admit(&stage, &subject, &iptables(&json!({})));
        let mut config = pod.config(&stage, &iptables(&json!({})));
        config.as_object_mut().unwrap().remove("prevResult");
        for _ in 0..2 {
            pod.call(&stage, &subject).del(&config);
        }
    }
}

/// A bus of its own with a firewalld on it, both inside a host.
struct Bus {
    directory: tempfile::TempDir,
    programs: Vec<Child>,
}

impl Bus {
    fn start(host: &Namespace) -> Option<Self> {
        let there = |program: &str| {
            ["/usr/sbin", "/usr/bin"].iter().any(|dir| PathBuf::from(dir).join(program).exists())
        };
        if !["firewalld", "dbus-daemon", "dbus-send"].into_iter().all(there) {
            not_run("firewalld, dbus-daemon or dbus-send is not installed");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let mut bus = Self { directory, programs: Vec::new() };
        let config = bus.directory.path().join("bus.conf");
        let text = format!(
            "<busconfig><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context=\"default\">\
             <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/>\
             <allow user=\"*\"/></policy></busconfig>",
            bus.socket().display()
        );
        std::fs::write(&config, text).unwrap();
        let mut daemon = host.command("dbus-daemon");
        daemon.arg(format!("--config-file={}", config.display())).args(["--nofork", "--nopidfile"]);
        bus.run(daemon);
        eventually("the bus listens", || bus.socket().exists().then_some(()));
        let settings = bus.directory.path().join("firewalld");
        std::fs::create_dir(&settings).unwrap();
        let mut firewalld = host.command("firewalld");
        firewalld.args(["--nofork", "--nopid", "--log-target", "console", "--system-config"]).arg(settings);
        firewalld.env("DBUS_SYSTEM_BUS_ADDRESS", bus.address());
        bus.run(firewalld);
        eventually("firewalld runs", || bus.query(host, "10.9.9.9/32").map(drop));
        Some(bus)
    }

    fn run(&mut self, mut command: Command) {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.programs.push(quiet.spawn().unwrap());
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("bus")
    }

    fn address(&self) -> String {
        format!("unix:path={}", self.socket().display())
    }

    /// Whether firewalld has the address in zone `trusted`; `None` while it does not answer.
    fn query(&self, host: &Namespace, source: &str) -> Option<bool> {
        let mut asked = host.command("dbus-send");
        asked.args(["--system", "--print-reply=literal", "--dest=org.fedoraproject.FirewallD1"]);
        asked.args(["/org/fedoraproject/FirewallD1", "org.fedoraproject.FirewallD1.zone.querySource"]);
        asked.args(["string:trusted".to_owned(), format!("string:{source}")]);
        let said = run(asked.env("DBUS_SYSTEM_BUS_ADDRESS", self.address()));
        let text = String::from_utf8(said.stdout).unwrap();
        said.status.success().then(|| text.trim() == "boolean true")
    }

    fn run_call(&self, call: &Call<'_>, command: &str, config: &Value) -> Reply {
        let mut process = call.command(command);
        process.env("DBUS_SYSTEM_BUS_ADDRESS", self.address());
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = process.spawn().unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        Reply::from(child.wait_with_output().unwrap())
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        for program in self.programs.iter_mut().rev() {
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

#[test]
fn firewalld_is_told_where_it_runs() {
    for subject in subjects() {
        for more in [json!({}), json!({ "backend": "firewalld" })] {
            let stage = Stage::new();
            let pod = Pod::on(&stage, &subject, "br0", "10.1.2.0/24", "c1");
            let Some(bus) = Bus::start(&stage.host) else { return };
            let known = pod.config(&stage, &more);
            let said = |command: &str| bus.run_call(&pod.call(&stage, &subject), command, &known);
            for _ in 0..2 {
                assert_eq!(said("ADD").exit, Some(0), "{}: {:?}", subject.name, said("ADD"));
                assert_eq!(bus.query(&stage.host, "10.1.2.2/32"), Some(true), "{}", subject.name);
            }
            assert_eq!(said("CHECK").exit, Some(0), "{}: {:?}", subject.name, said("CHECK"));
            assert_eq!(said("DEL").exit, Some(0), "{}: {:?}", subject.name, said("DEL"));
            assert_eq!(bus.query(&stage.host, "10.1.2.2/32"), Some(false), "{}", subject.name);
            // The reference asks and does not look at the answer.
            assert_eq!(said("CHECK").exit == Some(0), subject.is_reference(), "{}", subject.name);
            assert_eq!(said("DEL").exit, Some(0), "{}: {:?}", subject.name, said("DEL"));
        }
    }
}
