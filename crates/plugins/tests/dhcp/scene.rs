//! A host, a network with a server in it, a daemon, and pods.
//!
//! Read [`Scene`]. The server has a namespace of its own, connected to the bridge `cni0` of the host by a cable
//! (`up0` there); pods are plugged into the bridge by hand, or by the plugin that a test is about.

use std::path::PathBuf;

use harness::{Call, Namespace, Service, eventually};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The server's address.
pub(crate) const SERVER: &str = "10.5.0.1";

/// A host, a server's namespace and a place for files.
pub(crate) struct Scene {
    pub(crate) host: Namespace,
    pub(crate) lan: Namespace,
    pub(crate) bin: TempDir,
    pub(crate) files: TempDir,
}

impl Scene {
    /// A fresh one; nothing runs yet. `None`, and said so, when a program that the test needs is missing.
    pub(crate) fn with(programs: &[&str]) -> Option<Self> {
        if let Some(missing) = programs.iter().find(|program| !is_installed(program)) {
            harness::not_run(&format!("{missing} is not installed"));
            return None;
        }
        let scene = Self {
            host: Namespace::with_loopback(),
            lan: Namespace::with_loopback(),
            bin: harness::plugin_directory(&["dhcp", "bridge", "macvlan"]),
            files: tempfile::tempdir().expect("a temporary directory"),
        };
        scene.host.ip("link add cni0 address 02:00:00:00:05:fe type bridge");
        scene.host.ip("link set cni0 up");
        let lan = scene.lan.path();
        scene.host.ip(&format!("link add up0 type veth peer name lan0 netns {}", lan.display()));
        scene.host.ip("link set up0 master cni0 up");
        scene.lan.ip("link set lan0 up");
        scene.lan.ip(&format!("addr add {SERVER}/24 dev lan0"));
        Some(scene)
    }

    /// A path among the test's files.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// A dnsmasq that gives out 10.5.0.10 to .50 for two minutes, its shortest.
    pub(crate) fn dnsmasq(&self, more: &[&str]) -> Service {
        let mut command = self.lan.command("dnsmasq");
        command.args([
            "--no-daemon",
            "--conf-file=/dev/null",
            "--port=0",
            "--no-ping",
            "--user=root",
            "--log-dhcp",
        ]);
        command.args(["--interface=lan0", "--bind-interfaces", "--dhcp-authoritative", "--pid-file="]);
        command.arg("--dhcp-range=10.5.0.10,10.5.0.50,255.255.255.0,2m");
        command.arg(format!("--dhcp-leasefile={}", self.file("dnsmasq.leases").display()));
        command.args(more);
        let mut server = Service::start(&mut command, self.file("dnsmasq.log"));
        server.await_said("sockets bound exclusively", 1);
        server
    }

    /// The leases that dnsmasq holds: addresses.
    pub(crate) fn leased(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.file("dnsmasq.leases")).unwrap_or_default();
        text.lines().filter_map(|line| line.split(' ').nth(2)).map(str::to_owned).collect()
    }

    /// An ISC dhcpd that gives out addresses of this range for so many seconds; `more` goes into its subnet.
    pub(crate) fn dhcpd(&self, range: &str, seconds: u32, more: &str) -> Service {
        let (config, leases) = (self.file("dhcpd.conf"), self.file("dhcpd.leases"));
        let text = format!(
            "authoritative; ping-check false; option classless-routes code 121 = array of unsigned integer 8;
             min-lease-time {seconds}; default-lease-time {seconds}; max-lease-time {seconds};
             subnet 10.5.0.0 netmask 255.255.255.0 {{ range {range}; option routers {SERVER}; {more} }}"
        );
        std::fs::write(&config, text).expect("a configuration");
        if !leases.exists() {
            std::fs::write(&leases, "").expect("an empty file");
        }
        let mut command = self.lan.command("dhcpd");
        command.args(["-4", "-d", "-f", "--no-pid", "-cf"]).arg(&config).arg("-lf").arg(&leases).arg("lan0");
        let mut server = Service::start(&mut command, self.file("dhcpd.log"));
        server.await_said("Server starting service", 1);
        server
    }

    /// The daemon, ready.
    pub(crate) fn daemon(&self, more: &[&str]) -> Service {
        let mut daemon = self.daemon_unready(more);
        daemon.await_said("dhcp: ready", 1);
        daemon
    }

    /// The daemon, started; each one's log is its own file.
    pub(crate) fn daemon_unready(&self, more: &[&str]) -> Service {
        let mut command = self.host.command(self.bin.path().join("dhcp"));
        command.arg("daemon").arg("-socketpath").arg(self.file("socket"));
        command.arg("-statepath").arg(self.file("state")).args(more);
        let log = (0..).map(|number| self.file(&format!("daemon{number}.log"))).find(|path| !path.exists());
        Service::start(&mut command, log.expect("a name"))
    }

    /// The files of the daemon's leases.
    pub(crate) fn kept(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.file("state")).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| name.ends_with(".json")).collect()
    }

    /// Network `test`; `ipam` is laid over its section.
    pub(crate) fn config(&self, kind: &str, ipam: Value) -> Value {
        let mut section = json!({ "type": "dhcp", "daemonSocketPath": self.file("socket"), "daemonStatePath": self.file("state") });
        for (key, value) in ipam.as_object().into_iter().flatten() {
            section[key] = value.clone();
        }
        let mut config = json!({ "cniVersion": "1.1.0", "name": "test", "type": kind, "ipam": section });
        match kind {
            "bridge" => config["bridge"] = json!("cni0"),
            "macvlan" => config["master"] = json!("up1"),
            _ => {}
        }
        config
    }

    /// Bridge and address plugin in one chain.
    pub(crate) fn bridged(&self) -> Value {
        self.config("bridge", json!({}))
    }

    /// A pod with `eth0` on the bridge, down and without an address.
    pub(crate) fn pod(&self, port: &str) -> Namespace {
        let pod = Namespace::new();
        self.plug(port, &pod, "eth0");
        pod
    }

    /// Plugs a pod into the bridge by hand.
    pub(crate) fn plug(&self, port: &str, pod: &Namespace, ifname: &str) {
        self.host.ip(&format!("link add {port} type veth peer name {ifname} netns {}", pod.path().display()));
        self.host.ip(&format!("link set {port} master cni0 up"));
    }

    /// A call of the plugin.
    pub(crate) fn call<'a>(&'a self, plugin: &'a str, container: &'a str, pod: &Namespace) -> Call<'a> {
        Call::new(&self.host, self.bin.path(), plugin, container, pod)
    }
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/sbin", "/sbin"]);
    folders.into_iter().any(|folder| std::path::Path::new(folder).join(program).exists())
}

/// A result as the next call's `prevResult`.
pub(crate) fn with_previous(config: &Value, result: &Value) -> Value {
    let mut config = config.clone();
    config["prevResult"] = result.clone();
    config
}

/// The IPv4 addresses of the pod's `eth0`, with their lengths.
pub(crate) fn addresses(pod: &Namespace) -> Vec<String> {
    let links = pod.ip_json("-4 addr show dev eth0");
    let all = links[0]["addr_info"].as_array().cloned().unwrap_or_default();
    all.iter().map(|found| format!("{}/{}", found["local"].as_str().unwrap(), found["prefixlen"])).collect()
}

/// The destinations and gateways of the pod's IPv4 routes that the kernel did not make itself.
pub(crate) fn routes(pod: &Namespace) -> Vec<String> {
    let routes = pod.ip_json("-4 route show");
    let made = routes.as_array().into_iter().flatten().filter(|route| route["protocol"] != "kernel");
    let text = |route: &Value| {
        format!("{} via {}", route["dst"].as_str().unwrap(), route["gateway"].as_str().unwrap_or("-"))
    };
    made.map(text).collect()
}

/// Waits until the pod's `eth0` has what `wanted` says.
pub(crate) fn await_addresses(pod: &Namespace, wanted: impl Fn(&[String]) -> bool) -> Vec<String> {
    eventually("the pod has the addresses that it should", || {
        Some(addresses(pod)).filter(|found| wanted(found))
    })
}
