//! The protocol beside the reference: the same malformed calls to `serve` in memory and to a reference plugin, which
//! must fail with the same code. Every call fails before it acts, and the plugin is `static`, which has no kernel side.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cni::{AddResult, Code, Environment, Error, Plugin, Process, Request, Version, serve};
use harness::{not_run, reference_plugins};

/// Stands for `static`: every call that reaches it succeeds.
struct Static;

impl Plugin for Static {
    fn name(&self) -> &'static str {
        "static"
    }

    fn add(&self, _: &Request) -> Result<AddResult, Error> {
        Ok(AddResult::default())
    }

    fn del(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    fn check(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    fn gc(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    fn status(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }
}

type Variables<'a> = [(&'a str, &'a str)];

fn ours(variables: &Variables<'_>, stdin: &str) -> (bool, Vec<u8>) {
    let find = |name: &str| {
        variables.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
    };
    let mut stdout = Vec::new();
    let process = Process {
        environment: Environment::read(find),
        stdin: &mut stdin.as_bytes(),
        stdout: &mut stdout,
        stderr: &mut Vec::new(),
        resolver: None,
    };
    (serve(&Static, process) == 0, stdout)
}

#[allow(clippy::disallowed_methods)] // The reference is a program.
fn theirs(plugin: &Path, variables: &Variables<'_>, stdin: &str) -> (bool, Vec<u8>) {
    let mut child = Command::new(plugin)
        .env_clear()
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // A call that fails over its environment does not read.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    (output.status.success(), output.stdout)
}

/// The reference plugin, or nothing after having said that there is none.
fn reference() -> Option<PathBuf> {
    let found = reference_plugins().map(|directory| directory.join("static")).filter(|path| path.is_file());
    if found.is_none() {
        not_run("the reference plugin `static` is not installed");
    }
    found
}

/// The variables of a good call, but for the command.
const CALL: [(&str, &str); 4] = [
    ("CNI_CONTAINERID", "c1"),
    ("CNI_NETNS", "/nowhere/netns"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_PATH", "/nowhere/bin"),
];

const GOOD: &str = r#"{"cniVersion":"1.0.0","name":"net","type":"static","ipam":{"type":"static"}}"#;

#[test]
fn malformed_calls_fail_with_the_references_codes() {
    let Some(plugin) = reference() else { return };
    let old = GOOD.replace("1.0.0", "0.3.1");
    let cases: [(&str, &Variables<'_>, &str); 17] = [
        ("ADD", &[("CNI_IFNAME", "")], GOOD),
        ("ADD", &[("CNI_NETNS", "")], GOOD),
        ("DEL", &[("CNI_CONTAINERID", ""), ("CNI_PATH", "")], GOOD),
        ("CHECK", &[("CNI_NETNS", "")], GOOD),
        ("FOO", &[], GOOD),
        ("ADD", &[], ""),
        ("ADD", &[], "{"),
        ("ADD", &[], "{} x"),
        ("ADD", &[], "{}"),
        ("ADD", &[], r#"{"name":null}"#),
        ("ADD", &[], r#"{"name":"a/b"}"#),
        ("ADD", &[("CNI_CONTAINERID", "_x")], GOOD),
        ("DEL", &[("CNI_CONTAINERID", "a b")], GOOD),
        ("ADD", &[("CNI_IFNAME", "sixteen-bytes-xx")], GOOD),
        ("ADD", &[("CNI_IFNAME", "..")], GOOD),
        ("ADD", &[("CNI_IFNAME", "a:b")], GOOD),
        ("CHECK", &[], &old),
    ];
    for (command, instead, stdin) in cases {
        let variables = [&CALL[..], instead, &[("CNI_COMMAND", command)]].concat();
        let (ours, theirs) = (ours(&variables, stdin), theirs(&plugin, &variables, stdin));
        let error = |(good, stdout): &(bool, Vec<u8>)| {
            assert!(!good, "{command} {instead:?} {stdin}: {}", String::from_utf8_lossy(stdout));
            Error::decode(stdout).unwrap()
        };
        let (ours, theirs) = (error(&ours), error(&theirs));
        assert_eq!(ours.code, theirs.code, "{command} {instead:?} {stdin}\nours: {ours}\ntheirs: {theirs}");
    }
}

#[test]
fn an_unknown_version_is_refused_by_both() {
    let Some(plugin) = reference() else { return };
    let variables = [&CALL[..], &[("CNI_COMMAND", "ADD")]].concat();
    let config = GOOD.replace("1.0.0", "9.9.9");
    for (_, stdout) in [ours(&variables, &config), theirs(&plugin, &variables, &config)] {
        let error = Error::decode(&stdout).unwrap();
        assert_eq!(error.code, Code::INCOMPATIBLE_VERSION);
        assert!(error.details.contains("9.9.9"), "{error}");
    }
}

#[test]
fn the_references_versions_are_understood() {
    let Some(plugin) = reference() else { return };
    let versions = cni::exec::versions(&plugin).unwrap();
    assert!(versions.starts_with(&Version::ALL[..6]), "{versions:?}");
}
