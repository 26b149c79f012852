//! `dhcp`: both plugins beside their own daemons, with one server (dnsmasq) to lease from. Number 55.

use std::path::{Path, PathBuf};

use conformance::{Stage, Subject, ours, subjects};
use harness::{Call, Namespace, Service, eventually, not_run};
use serde_json::{Value, json};

/// A stage with a server behind the bridge `cni0`, and a daemon of the subject.
struct Lan {
    stage: Stage,
    lan: Namespace,
}

impl Lan {
    fn new() -> Self {
        let (stage, lan) = (Stage::new(), Namespace::with_loopback());
        stage.host.ip("link add cni0 address 02:00:00:00:05:fe type bridge");
        stage.host.ip("link set cni0 up");
        stage.host.ip(&format!("link add up0 type veth peer name lan0 netns {}", lan.path().display()));
        stage.host.ip("link set up0 master cni0 up");
        lan.ip("link set lan0 up");
        lan.ip("addr add 10.5.0.1/24 dev lan0");
        stage.host.ip(&format!("link add p0 type veth peer name eth0 netns {}", stage.pod.path().display()));
        stage.host.ip("link set p0 master cni0 up");
        Self { stage, lan }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.stage.data.path().join(name)
    }

    fn server(&self, more: &[&str]) -> Service {
        let mut command = self.lan.command("dnsmasq");
        command.args([
            "--no-daemon",
            "--conf-file=/dev/null",
            "--port=0",
            "--no-ping",
            "--user=root",
            "--log-dhcp",
        ]);
        command.args(["--interface=lan0", "--bind-interfaces", "--pid-file="]);
        command.arg("--dhcp-range=10.5.0.10,10.5.0.50,255.255.255.0,2m");
        command.arg(format!("--dhcp-leasefile={}", self.file("leases").display())).args(more);
        let mut server = Service::start(&mut command, self.file("server.log"));
        server.await_said("sockets bound exclusively", 1);
        server
    }

    /// The subject's daemon, listening.
    fn daemon(&self, subject: &Subject) -> Service {
        let mut command = self.stage.host.command(subject.bin.join("dhcp"));
        command.arg("daemon").arg("-socketpath").arg(self.file("socket"));
        if !subject.is_reference() {
            command.arg("-statepath").arg(self.file("state"));
        }
        let _ = std::fs::remove_file(self.file("socket"));
        let daemon = Service::start(&mut command, self.file("daemon.log"));
        eventually("the daemon listens", || {
            std::os::unix::net::UnixStream::connect(self.file("socket")).ok()
        });
        daemon
    }

    fn config(&self, more: &Value) -> Value {
        let mut ipam = json!({ "type": "dhcp", "daemonSocketPath": self.file("socket"), "daemonStatePath": self.file("state") });
        for (key, value) in more.as_object().into_iter().flatten() {
            ipam[key] = value.clone();
        }
        self.stage.config("dhcp", "1.0.0", &json!({ "ipam": ipam }))
    }

    fn call<'a>(&'a self, subject: &'a Subject) -> Call<'a> {
        self.stage.call(subject, "dhcp", "c")
    }

    /// The addresses that the server holds as leased.
    fn leased(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.file("leases")).unwrap_or_default();
        text.lines().filter_map(|line| line.split(' ').nth(2)).map(str::to_owned).collect()
    }
}

/// Every subject that has the plugin, if there is a server.
fn askable() -> Vec<Subject> {
    if !Path::new("/usr/sbin/dnsmasq").exists() {
        not_run("dnsmasq is not installed");
        return Vec::new();
    }
    subjects().into_iter().filter(|subject| subject.bin.join("dhcp").exists()).collect()
}

/// The reference's newer daemon gives back through the pod's own stack: in vain while the link has no address, as
/// in these tests, or after an ADD that failed.
fn tells_from_a_bare_link(subject: &Subject) -> bool {
    !subject.is_reference() || !subject.is_recent()
}

fn routes(result: &Value) -> Vec<String> {
    let text = |route: &Value| {
        format!("{} {}", route["dst"].as_str().unwrap_or("-"), route["gw"].as_str().unwrap_or("-"))
    };
    result["routes"].as_array().into_iter().flatten().map(text).collect()
}

#[test]
fn a_lease_is_an_address_a_gateway_and_a_default_route_and_goes_back_with_del() {
    for subject in askable() {
        let lan = Lan::new();
        let mut server = lan.server(&[]);
        let _daemon = lan.daemon(&subject);
        let (call, config) = (lan.call(&subject), lan.config(&json!({ "priority": 42 })));
        let result = call.add(&config);
        let address = result["ips"][0]["address"].as_str().unwrap();
        assert_eq!(lan.leased(), [address.strip_suffix("/24").unwrap()], "{}", subject.name);
        assert_eq!(result["ips"][0]["gateway"], "10.5.0.1", "{}", subject.name);
        assert_eq!(routes(&result), ["0.0.0.0/0 10.5.0.1"], "{}", subject.name);
        if !subject.is_reference() || subject.is_recent() {
            assert_eq!(result["routes"][0]["priority"], 42, "{}", subject.name);
        }
        // The identifier by which the server knows the attachment is the same: a node may change sides.
        let leases = std::fs::read_to_string(lan.file("leases")).unwrap();
        assert!(
            leases.trim_end().ends_with("00:63:2f:74:65:73:74:2f:65:74:68:30"),
            "{}: {leases}",
            subject.name
        );
        call.del(&config);
        if tells_from_a_bare_link(&subject) {
            server.await_said("DHCPRELEASE", 1);
            eventually("the server holds no lease", || lan.leased().is_empty().then_some(()));
        }
    }
}

#[test]
fn classless_routes_stand_above_classful_ones_and_routers() {
    for subject in askable() {
        let lan = Lan::new();
        let classful = "--dhcp-option=33,192.168.7.0,10.5.0.9";
        let classless = "--dhcp-option=121,192.0.2.0/24,10.5.0.9,0.0.0.0/0,10.5.0.7";
        let request = json!({ "request": [{ "option": "121" }, { "option": "33" }] });
        for (options, wanted) in [
            (&[classful][..], &["192.168.7.0/24 10.5.0.9", "0.0.0.0/0 10.5.0.1"][..]),
            (&[classful, classless], &["192.0.2.0/24 10.5.0.9", "0.0.0.0/0 10.5.0.7"]),
        ] {
            let _server = lan.server(options);
            let _daemon = lan.daemon(&subject);
            let (call, config) = (lan.call(&subject), lan.config(&request));
            assert_eq!(routes(&call.add(&config)), wanted, "{}", subject.name);
            call.del(&config);
        }
    }
}

#[test]
fn a_second_add_keeps_the_lease_and_check_is_content() {
    for subject in askable() {
        let lan = Lan::new();
        let server = lan.server(&[]);
        let _daemon = lan.daemon(&subject);
        let (call, mut config) = (lan.call(&subject), lan.config(&json!({})));
        let result = call.add(&config);
        assert_eq!(call.add(&config)["ips"], result["ips"], "{}", subject.name);
        config["prevResult"] = result;
        call.run("CHECK", &config).expect_success("CHECK");
        if !subject.is_reference() {
            assert_eq!(server.said("DHCPDISCOVER("), 1, "{}", server.log());
        }
    }
}

#[test]
fn without_a_mask_there_is_an_error() {
    for subject in askable() {
        let lan = Lan::new();
        let mut server = lan.server(&["--dhcp-option=1"]);
        let _daemon = lan.daemon(&subject);
        let reply = lan.call(&subject).run("ADD", &lan.config(&json!({})));
        assert!(
            reply.error_text().contains("DHCP option Subnet Mask not found"),
            "{}: {reply:?}",
            subject.name
        );
        if tells_from_a_bare_link(&subject) {
            server.await_said("DHCPRELEASE", 1);
        }
    }
}

#[test]
fn provided_options_reach_the_server() {
    for subject in askable() {
        let lan = Lan::new();
        let _server = lan.server(&[]);
        let _daemon = lan.daemon(&subject);
        let mut call = lan.call(&subject);
        call.args = "IgnoreUnknown=1;NAME=web-0";
        let config = lan.config(&json!({ "provide": [{ "option": "host-name", "fromArg": "NAME" }] }));
        call.add(&config);
        let leases = std::fs::read_to_string(lan.file("leases")).unwrap();
        assert!(leases.contains(" web-0 "), "{}: {leases}", subject.name);
        call.del(&config);
    }
}

#[test]
fn without_a_daemon_add_fails_and_a_pod_can_go_all_the_same() {
    for subject in askable() {
        let lan = Lan::new();
        let (call, config) = (lan.call(&subject), lan.config(&json!({})));
        assert!(
            call.run("ADD", &config).error_text().contains("error dialing DHCP daemon"),
            "{}",
            subject.name
        );
        // The reference keeps the pod from going, and with it everything else that the chain has made.
        let gone = call.run("DEL", &config).exit == Some(0);
        assert_eq!(gone, !subject.is_reference(), "{}", subject.name);
    }
}

#[test]
fn a_restarted_daemon_still_knows_what_it_leased() {
    for subject in askable() {
        let lan = Lan::new();
        let mut server = lan.server(&[]);
        let daemon = lan.daemon(&subject);
        let (call, config) = (lan.call(&subject), lan.config(&json!({})));
        call.add(&config);
        daemon.kill();
        let _daemon = lan.daemon(&subject);
        call.del(&config);
        if subject.is_reference() {
            assert_eq!(server.said("DHCPRELEASE"), 0, "its leases were in its memory");
            assert_eq!(lan.leased().len(), 1);
        } else {
            server.await_said("DHCPRELEASE", 1);
        }
    }
}

// A node is switched over while pods run: CHECK finds at the server what the other daemon leased.
#[test]
fn a_lease_of_the_reference_is_taken_over() {
    let Some(reference) = askable().into_iter().find(Subject::is_reference) else { return };
    let lan = Lan::new();
    let mut server = lan.server(&["--dhcp-authoritative"]);
    let theirs = lan.daemon(&reference);
    let mut config = lan.config(&json!({}));
    let result = lan.call(&reference).add(&config);
    theirs.kill();
    let ours = ours();
    let _daemon = lan.daemon(&ours);
    config["prevResult"] = result;
    lan.call(&ours).run("CHECK", &config).expect_success("CHECK");
    lan.call(&ours).del(&config);
    server.await_said("DHCPRELEASE", 1);
}
