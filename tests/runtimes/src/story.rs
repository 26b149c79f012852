//! What every runtime is asked: a server behind a host port, reached from outside; and nothing left at the end.

use std::path::Path;

use harness::{Namespace, run};

use crate::Machine;

/// A shell script that answers on port 80 with this word, for ever.
#[must_use]
pub fn server(word: &str) -> String {
    format!("while true; do echo {word} | nc -l -p 80; done")
}

/// A client outside of the node, one cable away: the node is 198.51.100.1 to it.
///
/// # Panics
/// When the cable cannot be laid.
#[must_use]
pub fn outside(node: &Namespace) -> Namespace {
    let outside = Namespace::with_loopback();
    let holder = outside.path();
    let pid = holder.iter().nth(2).unwrap().to_string_lossy().into_owned();
    node.ip(&format!("link add uplink type veth peer name eth0 netns {pid}"));
    node.ip("address add 198.51.100.1/24 dev uplink");
    node.ip("link set uplink up");
    outside.ip("address add 198.51.100.2/24 dev eth0");
    outside.ip("link set eth0 up");
    outside
}

/// What a TCP server says first, if anybody answers.
#[must_use]
pub fn answer(from: &Namespace, address: &str, port: &str) -> Option<String> {
    let output = run(from.command("busybox").args(["nc", "-w", "2", address, port]));
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Some(text).filter(|text| !text.is_empty())
}

fn files(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("10.")).collect()
}

/// Fails when a pod has left a link, an nf_tables element or an address on the machine.
///
/// # Panics
/// When something is left.
pub fn nothing_is_left(machine: &Machine) {
    let node = machine.network();
    let links: Vec<String> = node.link_names();
    let expected: Vec<&String> =
        links.iter().filter(|name| *name == "cni-test" || *name == "uplink").collect();
    assert_eq!(expected.len(), links.len(), "{links:?}");
    let ruleset = node.nft_ruleset();
    let elements = ruleset.iter().filter_map(|item| {
        ["set", "map"].iter().find_map(|kind| item[*kind]["elem"].as_array()).filter(|all| !all.is_empty())
    });
    assert_eq!(elements.count(), 0, "{ruleset:#?}");
    assert_eq!(files(&machine.directory().join("addresses/testnet")), Vec::<String>::new());
}
