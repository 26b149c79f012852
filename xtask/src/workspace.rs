//! Where the workspace is and what `cargo metadata` says of it.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;
use serde_json::Value;

/// The workspace's root folder.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Where the tests that could not run are listed, a line each.
pub(crate) fn not_run_list() -> PathBuf {
    root().join("target/not-run.txt")
}

/// Says that something could not run, and why: now, and in the list at the end of `cargo xtask test`.
pub(crate) fn not_run(what: &str, reason: &str) {
    let line = format!("{what}: not run, because {reason}\n");
    print!("{line}");
    let list = std::fs::OpenOptions::new().create(true).append(true).open(not_run_list());
    let _ = list.and_then(|mut list| list.write_all(line.as_bytes()));
}

/// The cargo that runs us, without what it has told us of ourselves: build scripts that look at it (ring's does) would
/// otherwise run anew, and all that stands on them be built anew, whenever a person and a task build in turn.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let told = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(told)) {
        command.env_remove(name);
    }
    command.current_dir(root());
    command
}

/// Everything `cargo metadata` knows, dependencies included.
pub(crate) fn metadata() -> anyhow::Result<Value> {
    let text = crate::process::output(cargo().args(["metadata", "--format-version", "1", "--locked"]))?;
    serde_json::from_str(&text).context("reading cargo metadata")
}

/// Every Rust file of the workspace that git tracks or would track, with its text.
pub(crate) fn rust_files() -> anyhow::Result<Vec<(String, String)>> {
    let listed = crate::process::output(
        Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
            .current_dir(root()),
    )?;
    let mut files = Vec::new();
    for name in listed.lines() {
        // A file deleted but not yet committed is still listed.
        if let Ok(text) = std::fs::read_to_string(root().join(name)) {
            files.push((name.to_owned(), text));
        }
    }
    Ok(files)
}
