//! The workspace's test programs, several at a time.
//!
//! `cargo test` runs one program after the other, and most of ours wait: for a timer of DHCP, for a probe's packets, for etcd. So
//! cargo builds them and says where they are ([`built`]), and [`run`] starts one for each processor, those that take long first. What a
//! program prints comes in one piece when it ends, so two of them never mix.

use std::{
    collections::VecDeque,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Instant,
};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::{process, workspace};

/// Those that take longest: a run takes as long as the one that was begun last.
const FIRST: [&str; 7] = [
    "agent-cluster",
    "journeys-policy_corpus",
    "journeys-operations",
    "store-contract",
    "plugins-dhcp",
    "plugins-bandwidth",
    "conformance-network_policy",
];

/// One test program.
pub(crate) struct Suite {
    /// Package and target: `plugins-vlan`.
    pub(crate) name: String,
    /// The test program.
    pub(crate) program: PathBuf,
    /// Where cargo would start it: the package's folder.
    folder: PathBuf,
}

/// Builds the test programs, runs them with `environment`, and fails after the last one if any failed.
pub(crate) fn run(lanes: usize, environment: &[(&str, OsString)]) -> anyhow::Result<()> {
    let queue: Mutex<VecDeque<Suite>> = Mutex::new(built(&["test", "--no-run"])?.into());
    let failed: Mutex<Vec<String>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(|| {
                while let Some(suite) = next(&queue) {
                    if let Err(error) = one(&suite, environment) {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{error:#}"));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !failed.is_empty() {
        bail!("tests failed:\n{}", failed.join("\n"));
    }
    process::run(workspace::cargo().args(["test", "--locked", "--workspace", "--doc"]))
}

fn next(queue: &Mutex<VecDeque<Suite>>) -> Option<Suite> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

/// The test programs that `cargo WORDS` builds. Those words have to name the whole workspace: of fewer packages some libraries
/// would be built once more, with other features.
pub(crate) fn built(words: &[&str]) -> anyhow::Result<Vec<Suite>> {
    let printed = process::output(workspace::cargo().args(words).args([
        "--locked",
        "--workspace",
        "--message-format=json",
    ]))?;
    let messages = printed.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut suites: Vec<Suite> = messages.filter_map(|message| suite(&message)).collect();
    if suites.is_empty() {
        bail!("cargo names no test program");
    }
    suites.sort_by_key(|suite| {
        let place = FIRST.iter().position(|name| *name == suite.name).unwrap_or(FIRST.len());
        (place, suite.name.clone())
    });
    Ok(suites)
}

fn suite(message: &Value) -> Option<Suite> {
    if message["profile"]["test"] != true {
        return None;
    }
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
    let package = folder.file_name()?.to_string_lossy().into_owned();
    let target = message["target"]["name"].as_str()?;
    let name = if message["target"]["kind"][0] == "test" {
        format!("{package}-{target}")
    } else {
        format!("{package}'s own")
    };
    Some(Suite { name, program: message["executable"].as_str()?.into(), folder })
}

fn one(suite: &Suite, environment: &[(&str, OsString)]) -> anyhow::Result<()> {
    let start = Instant::now();
    let output = process::as_root(&suite.program)?
        .current_dir(&suite.folder)
        .env("CARGO_MANIFEST_DIR", &suite.folder)
        .envs(environment.iter().cloned())
        .stdin(std::process::Stdio::null())
        .output()
        .with_context(|| format!("starting {}", suite.program.display()))?;
    // One call each, so that what another lane prints stays whole too.
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    println!(
        "{}suite {}: {}, {:.1} s\n",
        String::from_utf8_lossy(&output.stdout),
        suite.name,
        output.status,
        start.elapsed().as_secs_f64()
    );
    if !output.status.success() {
        bail!("{} ({})", suite.name, output.status);
    }
    Ok(())
}
