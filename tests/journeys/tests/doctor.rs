//! A node looked at before Fairlead comes to it: traces of others planted with the system's own tools, and found.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests drive programs, and panic when they fail"
)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use harness::{Namespace, binary, not_run, run, run_ok};
use journeys::decode;
use serde_json::Value;
use tempfile::TempDir;

/// A machine that is to become a node: a network namespace with an uplink, and a directory for its files.
struct Machine {
    network: Namespace,
    files: TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { network: Namespace::with_loopback(), files: tempfile::tempdir().unwrap() };
        machine.network.ip("link add eth0 type veth peer name wire");
        machine.network.ip("link set wire up");
        machine.network.ip("link set eth0 up");
        machine.network.ip("address add 198.18.0.5/24 dev eth0");
        machine.network.ip("route add default via 198.18.0.1");
        machine.set("net/ipv4/conf/all/rp_filter", "0");
        fs::create_dir_all(machine.files.path().join("etc/cni/net.d")).unwrap();
        let bin = machine.files.path().join("opt/cni/bin");
        run_ok(Command::new(binary("fairlead")).args(["cni", "install", "--bin-dir"]).arg(bin));
        machine
    }

    fn set(&self, path: &str, value: &str) {
        run_ok(self.network.command("sysctl").args(["-q", "-w", &format!("{path}={value}")]));
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.files.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn nft(&self, rules: &str) {
        run_ok(self.network.command("nft").arg(rules));
    }

    fn doctor(&self, arguments: &[&str]) -> Output {
        let mut command = self.network.command(binary("fairlead"));
        command.args(["doctor", "--host-root"]).arg(self.files.path());
        run(command.args(arguments))
    }

    /// Exit status and findings.
    fn findings(&self) -> (Option<i32>, Vec<Value>) {
        let output = self.doctor(&["-o", "json"]);
        let findings = decode(&String::from_utf8_lossy(&output.stdout));
        (output.status.code(), findings.as_array().unwrap().clone())
    }
}

/// The findings of a severity, in words.
fn of_severity(findings: &[Value], severity: &str) -> Vec<String> {
    findings.iter().filter(|finding| finding["severity"] == severity).map(Value::to_string).collect()
}

/// Expects a finding with this severity, subject, and words in its fix.
fn expect(findings: &[Value], severity: &str, subject: &str, fix: &str) {
    let fits = |finding: &&Value| {
        finding["severity"] == severity && finding["subject"].as_str().unwrap().ends_with(subject)
    };
    let found: Vec<&Value> = findings.iter().filter(fits).collect();
    let fixed = found.iter().any(|finding| finding["fix"].as_str().unwrap().contains(fix));
    assert!(fixed, "no {severity} about {subject} with {fix:?}: {findings:#?}");
}

/// What a kernel lacks is an error of every machine of this test.
fn kernel_is_whole(findings: &[Value]) -> bool {
    let lacks = |finding: &Value| {
        finding["severity"] == "error" && finding["subject"].as_str().unwrap().starts_with("kernel: ")
    };
    !findings.iter().any(lacks)
}

#[test]
fn a_clean_machine_has_no_errors_and_stays_as_it_is() {
    let machine = Machine::new();
    let links = machine.network.link_names();
    let (status, findings) = machine.findings();
    if !kernel_is_whole(&findings) {
        return not_run("the kernel lacks something that the agent cannot do without");
    }
    assert_eq!(of_severity(&findings, "error"), Vec::<String>::new());
    assert_eq!(status, Some(0));
    assert!(findings.iter().any(|finding| {
        finding["subject"].as_str().unwrap().ends_with("/etc/cni/net.d") && finding["severity"] == "note"
    }));
    assert_eq!(machine.network.link_names(), links, "features are tried elsewhere");
    assert_eq!(machine.network.nft_ruleset().len(), 1, "only nft's own words about itself");
    assert!(!machine.files.path().join("run").exists(), "nothing is made on the disk");
}

#[test]
fn what_flannel_left_is_found_each_with_its_fix() {
    let machine = Machine::new();
    machine
        .network
        .ip("link add flannel.1 type vxlan id 1 dstport 8472 local 198.18.0.5 dev eth0 nolearning");
    machine.network.ip("link set flannel.1 up");
    machine.network.ip("address add 10.244.1.0/32 dev flannel.1");
    machine.network.ip("route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink");
    machine.network.ip("link add cni0 type bridge");
    machine.nft("add table ip flannel-ipv4; add chain ip flannel-ipv4 postrtg");
    machine.write("run/flannel/subnet.env", "FLANNEL_NETWORK=10.244.0.0/16\n");
    machine.write("var/lib/cni/networks/cbr0/10.244.1.7", "container\neth0");
    machine.write(
        "etc/cni/net.d/10-flannel.conflist",
        r#"{"cniVersion":"0.3.1","name":"cbr0","plugins":[{"type":"flannel"}]}"#,
    );

    let (status, findings) = machine.findings();
    assert_eq!(status, Some(1));
    let gone = "once the last pod of flannel on this node is gone: ";
    expect(&findings, "warning", "flannel.1", &format!("{gone}ip link delete flannel.1"));
    expect(&findings, "error", "flannel.1", "vxlan.vni");
    expect(&findings, "error", "10.244.0.0/16", "remove flannel.1, which flannel left");
    expect(&findings, "warning", "cni0", "ip link delete cni0");
    expect(&findings, "warning", "flannel-ipv4", &format!("{gone}nft delete table ip flannel-ipv4"));
    expect(&findings, "note", "run/flannel", &format!("{gone}rm -r "));
    expect(&findings, "note", "var/lib/cni/networks/cbr0", "rm -r ");
    expect(&findings, "warning", "10-flannel.conflist", "mv ");
}

#[test]
fn a_foreign_conflist_a_route_and_a_strict_filter_are_found() {
    let machine = Machine::new();
    machine.network.ip("route add 10.244.128.0/20 via 198.18.0.9");
    machine.network.ip("route add 192.0.2.0/24 via 198.18.0.9 proto bird");
    machine.set("net/ipv4/conf/all/rp_filter", "1");
    machine.write(
        "etc/cni/net.d/10-calico.conflist",
        r#"{"cniVersion":"0.3.1","name":"k8s-pod-network","plugins":[{"type":"calico"}]}"#,
    );
    machine.write("run/systemd/netif/state", "");

    let (status, findings) = machine.findings();
    assert_eq!(status, Some(1));
    expect(&findings, "error", "10.244.0.0/16", "list 10.244.128.0/20 under cluster.allowOverlap");
    expect(&findings, "error", "10-calico.conflist", "mv ");
    expect(&findings, "warning", "net.ipv4.conf.all.rp_filter", "sysctl -w net.ipv4.conf.all.rp_filter=2");
    expect(&findings, "warning", "route 192.0.2.0/24", "ip route flush proto 12");
    expect(&findings, "warning", "systemd-networkd", "ManageForeignRoutes=no");

    let config = machine.files.path().join("agent.yaml");
    fs::write(&config, "cluster:\n  podCIDRs: [10.99.0.0/16]\n").unwrap();
    let table = machine.doctor(&["--config", config.to_str().unwrap()]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.starts_with("SEVERITY"), "{table}");
    assert!(!table.contains("10.244."), "another network does not overlap: {table}");
}

#[test]
fn a_firewall_that_drops_pods_or_tunnels_is_found_until_it_lets_them_through() {
    let machine = Machine::new();
    machine.nft("add table inet filter");
    machine.nft("add chain inet filter forward { type filter hook forward priority 0; policy drop; }");
    machine.nft("add chain inet filter input { type filter hook input priority 0; policy drop; }");
    machine.nft("add rule inet filter input iifname lo accept");
    machine.nft("add rule inet filter input ct state established,related accept");
    let (status, findings) = machine.findings();
    assert_eq!(status, Some(1));
    let forward = "nf_tables inet filter forward";
    let input = "nf_tables inet filter input";
    expect(&findings, "error", forward, "nft insert rule inet filter forward ip saddr 10.244.0.0/16 accept");
    expect(&findings, "error", forward, "ip6 daddr fd00:10:244::/56 accept");
    expect(&findings, "error", input, "nft insert rule inet filter input udp dport 8472 accept");

    // The fixes, as they are given.
    for finding in
        findings.iter().filter(|finding| finding["subject"].as_str().unwrap().starts_with("nf_tables"))
    {
        let fix = finding["fix"].as_str().unwrap();
        for command in fix.split("; ").filter_map(|command| command.strip_prefix("nft ")) {
            machine.nft(command);
        }
    }
    let (_, findings) = machine.findings();
    let left =
        findings.iter().filter(|finding| finding["subject"].as_str().unwrap().starts_with("nf_tables"));
    assert_eq!(left.count(), 0, "{findings:#?}");
}

#[test]
fn the_older_iptables_and_a_taken_port_are_looked_at_too() {
    let machine = Machine::new();
    let socket = machine.network.inside(|| std::net::UdpSocket::bind("0.0.0.0:8472").unwrap());
    let (_, findings) = machine.findings();
    expect(&findings, "error", "UDP port 8472", "vxlan.port");
    drop(socket);

    let iptables = |arguments: &str| {
        run(machine.network.command("iptables-legacy").args(["-w"]).args(arguments.split_whitespace()))
    };
    if !iptables("-P FORWARD DROP").status.success() {
        return not_run("the kernel has no older iptables interface (CONFIG_IP_NF_IPTABLES_LEGACY)");
    }
    iptables("-N FLANNEL-FWD");
    let (_, findings) = machine.findings();
    let forward = "iptables-legacy filter FORWARD";
    expect(&findings, "error", forward, "iptables-legacy -I FORWARD -s 10.244.0.0/16 -j ACCEPT");
    expect(&findings, "warning", "filter FLANNEL-FWD", "iptables-legacy-save -t filter | grep -v FLANNEL- ");
    iptables("-A FORWARD -s 10.244.0.0/16 -j ACCEPT");
    let (_, findings) = machine.findings();
    assert!(!findings.iter().any(|finding| finding["subject"] == forward), "{findings:#?}");
}

#[test]
fn without_root_it_says_what_it_could_not_look_at() {
    let files = tempfile::tempdir().unwrap();
    let program = files.path().join("fairlead");
    fs::copy(binary("fairlead"), &program).unwrap();
    open_to_all(files.path());
    let network = Namespace::new();
    let mut command = network.command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--"]);
    command.arg(&program).args(["doctor", "-o", "json", "--host-root"]).arg(files.path());
    let output = run(&mut command);
    if output.stdout.is_empty() {
        return not_run("this user cannot become another one");
    }
    let findings = decode(&String::from_utf8_lossy(&output.stdout));
    let findings = findings.as_array().unwrap();
    expect(findings, "note", "nf_tables", "run it as root");
    // What needs no rights is looked at all the same.
    expect(findings, "error", "opt/cni/bin", "fairlead cni install");
}

/// Everybody may enter, and read what is there.
fn open_to_all(directory: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
}
