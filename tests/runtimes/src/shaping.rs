//! Whether a limit limits: iperf3 between two namespaces.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use harness::{eventually, run, run_ok};
use serde_json::Value;

/// Where the server listens.
const PORT: &str = "5201";

/// The way of the traffic, seen from the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

/// Bits a second that arrive over a few seconds of TCP between `pod`, which has `address`, and `host`. Both are paths
/// of namespaces.
///
/// # Panics
/// When iperf3 does not work there.
#[must_use]
pub fn rate(host: &Path, pod: &Path, address: &str, direction: Direction) -> f64 {
    let mut server = Server(start(pod));
    listening(pod);
    let mut client = enter(host);
    // The first second holds the burst, which is allowed to pass.
    client.args(["iperf3", "--json", "--time", "4", "--omit", "2", "--port", PORT, "--client", address]);
    if direction == Direction::Egress {
        client.arg("--reverse");
    }
    let text = run_ok(&mut client);
    let _ = server.0.wait();
    let report: Value = serde_json::from_str(&text).expect("iperf3 prints JSON");
    report["end"]["sum_received"]["bits_per_second"].as_f64().expect("a rate")
}

fn start(pod: &Path) -> Child {
    let mut command = enter(pod);
    command.args(["iperf3", "--server", "--one-off", "--port", PORT]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("iperf3 starts")
}

fn listening(pod: &Path) {
    eventually("iperf3 listens", || {
        let sockets = run(enter(pod).args(["cat", "/proc/net/tcp", "/proc/net/tcp6"]));
        // Port 5201, state LISTEN.
        let text = String::from_utf8_lossy(&sockets.stdout).into_owned();
        text.lines().any(|line| line.contains(":1451 ") && line.contains(" 0A ")).then_some(())
    });
}

fn enter(namespace: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace.display())).arg("--");
    command
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
