//! `cargo xtask floors`: which crate may lean on which, and what pure crates may not name.
//!
//! The floors are the plan of the house in ARCHITECTURE.md. A crate leans on lower floors only, never on a
//! floor-mate; two crates have a shorter list still. The source of pure crates is searched for the clock, the
//! environment, the disk and the kernel's door.

use anyhow::{Context, bail};

use crate::workspace;

/// The crates of each floor, lowest first.
const FLOORS: [&[&str]; 5] = [
    &["cni", "cluster", "netstate"],
    &["kernel", "store"],
    &["route", "policy", "tunnel"],
    &["plugins", "agent", "lab"],
    &["cli"],
];

/// Crates that may use less than their floor allows: the plugins start in a millisecond, the kernel's door
/// knows no cluster, and neither does what carries packets.
const NARROW: [(&str, &[&str]); 7] = [
    ("plugins", &["cni", "cluster", "netstate", "kernel"]),
    ("kernel", &["netstate"]),
    ("store", &["cluster"]),
    ("route", &["cluster", "netstate"]),
    ("policy", &["cluster", "netstate"]),
    ("tunnel", &["netstate", "kernel"]),
    ("lab", &["cni", "cluster", "netstate", "kernel", "store"]),
];

/// What stays out of the plugin binary: it runs once per pod.
const NOT_IN_PLUGINS: [&str; 6] = ["tokio", "clap", "serde-saphyr", "tracing", "anyhow", "rustls"];

/// What only the store may lean on: nobody else waits for a network that way.
const ONLY_IN_STORE: [&str; 7] = ["kube", "k8s-openapi", "tokio", "hyper", "hyper-util", "http", "tower"];

/// Files of pure crates, and words that would make them impure. The edges of `cni` are where a plugin
/// process, a configuration directory and a cache meet the system, and are named.
const PURE: [&str; 5] =
    ["crates/cni/src", "crates/cluster/src", "crates/netstate/src", "crates/route/src", "crates/policy/src"];
const IMPURE: [&str; 6] =
    ["Instant::now", "SystemTime", "std::env", "std::fs", "std::process", "std::net::Tcp"];
const EDGES: [&str; 6] = [
    "crates/cni/src/serve.rs",
    "crates/cni/src/conflist.rs",
    "crates/cni/src/cache.rs",
    "crates/cni/src/exec.rs",
    "crates/cni/src/delegate.rs",
    "crates/cni/src/chain.rs",
];

/// Fails with every arrow that points up or sideways.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut faults = arrows()?;
    faults.extend(impure_words()?);
    if !faults.is_empty() {
        bail!("the floors do not hold:\n  {}", faults.join("\n  "));
    }
    Ok(())
}

fn arrows() -> anyhow::Result<Vec<String>> {
    let metadata = workspace::metadata()?;
    let packages = metadata["packages"].as_array().context("packages in cargo metadata")?;
    let mut faults = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let local = package["source"].is_null();
        let Some(own) = floor(name).filter(|_| local) else { continue };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let other = dependency["name"].as_str().unwrap_or_default();
            if dependency["kind"].is_null() {
                faults.extend(fault(name, own, other));
            }
        }
    }
    Ok(faults)
}

fn fault(name: &str, own: usize, other: &str) -> Option<String> {
    if name == "plugins" && NOT_IN_PLUGINS.contains(&other) {
        return Some(format!("{name} -> {other}: the plugins run once per pod and stay without it"));
    }
    if name != "store" && ONLY_IN_STORE.contains(&other) {
        return Some(format!("{name} -> {other}: only the store speaks HTTP"));
    }
    let below = floor(other)?;
    if below >= own {
        return Some(format!("{name} (floor {own}) -> {other} (floor {below}): only downward"));
    }
    let (_, allowed) = NARROW.iter().find(|(narrow, _)| *narrow == name)?;
    (!allowed.contains(&other)).then(|| format!("{name} -> {other}: it may lean on {allowed:?} only"))
}

fn floor(name: &str) -> Option<usize> {
    FLOORS.iter().position(|crates| crates.contains(&name))
}

fn impure_words() -> anyhow::Result<Vec<String>> {
    let mut faults = Vec::new();
    for (file, text) in workspace::rust_files()? {
        if !PURE.iter().any(|folder| file.starts_with(folder)) || EDGES.contains(&file.as_str()) {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("#[cfg(test)]") || file.ends_with("tests.rs") {
                break;
            }
            let code = line.trim_start();
            if let Some(word) = IMPURE.iter().find(|word| !code.starts_with("//") && code.contains(**word)) {
                faults.push(format!("{file}:{}: `{word}` in a pure crate", number + 1));
            }
        }
    }
    Ok(faults)
}
