//! Traffic that goes on while something happens, and is counted.

use std::process::{Child, Stdio};

use harness::run_ok;

use crate::rig::Node;

/// A witness: echoes from one pod to another, two hundred a second or as many as it is told, counted at the end.
pub(crate) struct Witness(Option<Child>);

impl Drop for Witness {
    /// A test that fails leaves no ping behind.
    fn drop(&mut self) {
        if let Some(ping) = &mut self.0 {
            let _ = ping.kill();
            let _ = ping.wait();
        }
    }
}

impl Witness {
    pub(crate) fn start(from: &Node, to: &Node, family: usize) -> Self {
        Self::every(5, from, to, family)
    }

    /// One echo in so many milliseconds.
    pub(crate) fn every(pause: i64, from: &Node, to: &Node, family: usize) -> Self {
        let (source, target) = (&from.pod_addresses()[family], &to.pod_addresses()[family]);
        let mut ping = from.netns.command("ping");
        ping.args(["-n", "-q", "-i", &format!("0.{pause:03}"), "-I", source, target]);
        let ping = ping.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        Self(Some(ping.spawn().unwrap()))
    }

    /// How many of the packets sent were not answered.
    pub(crate) fn lost(mut self) -> i64 {
        let ping = self.0.take().unwrap();
        run_ok(std::process::Command::new("kill").args(["-INT", &ping.id().to_string()]));
        let output = ping.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let numbers: Vec<i64> = text
            .lines()
            .find(|line| line.contains("packets transmitted"))
            .unwrap_or_else(|| panic!("ping said {text:?}"))
            .split(',')
            .filter_map(|part| part.trim().split(' ').next()?.parse().ok())
            .collect();
        assert!(numbers[0] > 0, "{text}");
        numbers[0] - numbers[1]
    }
}
