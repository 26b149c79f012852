//! The program itself: which plugin it is, and what it says when it is none.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may fail by panicking, and starts the program it is about"
)]

use std::io::{Write, pipe};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use harness::{eventually, plugin_directory};

const PROGRAM: &str = env!("CARGO_BIN_EXE_fairlead-cni");

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn version(command: &mut Command) -> Output {
    command.env_clear().env("CNI_COMMAND", "VERSION").output().unwrap()
}

#[test]
fn the_first_argument_or_the_name_of_the_link_selects_the_plugin() {
    let bin = plugin_directory(&["host-local"]);
    for output in [
        version(Command::new(PROGRAM).arg("host-local")),
        version(&mut Command::new(bin.path().join("host-local"))),
    ] {
        assert!(output.status.success(), "{output:?}");
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["supportedVersions"].as_array().unwrap().len(), 7);
    }
}

#[test]
fn without_a_call_the_plugin_says_on_stderr_what_it_is() {
    let output = Command::new(PROGRAM).arg("host-local").env_clear().output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), String::new()));
    let talk = text(&output.stderr);
    assert!(talk.contains("host-local") && talk.contains("1.1.0"), "{talk}");
}

#[test]
fn by_no_plugins_name_it_lists_them_and_exits_with_2() {
    for arguments in [&[][..], &["no-such-plugin"], &["-x"]] {
        let output = version(Command::new(PROGRAM).args(arguments));
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), String::new()));
        let talk = text(&output.stderr);
        assert!(talk.contains("usage: fairlead-cni") && talk.contains("host-local"), "{talk}");
        assert!(arguments.iter().all(|argument| talk.contains(argument)), "{talk}");
    }
}

#[test]
fn a_reader_who_has_gone_is_an_error_and_no_signal_that_ends_the_plugin() {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let mut call = Command::new(PROGRAM);
    let status =
        call.arg("loopback").env_clear().env("CNI_COMMAND", "VERSION").stdout(writer).status().unwrap();
    assert_eq!(status.code(), Some(1), "{status}");
}

#[test]
fn what_the_caller_closed_is_filled_before_a_file_of_the_plugin_can_take_its_place() {
    let mut call = Command::new("sh");
    call.args(["-c", r#"exec "$0" loopback >&- 2>&-"#, PROGRAM])
        .env("CNI_COMMAND", "STATUS")
        .env("CNI_PATH", "/opt/cni/bin");
    let mut plugin = call.stdin(Stdio::piped()).spawn().unwrap();
    // It waits for its configuration, and has opened nothing else yet.
    for stream in ["1", "2"] {
        let stream = Path::new("/proc").join(plugin.id().to_string()).join("fd").join(stream);
        let filled = || std::fs::read_link(&stream).ok().filter(|target| target == Path::new("/dev/null"));
        eventually("a closed output leads to /dev/null", filled);
    }
    let config = br#"{"cniVersion":"1.1.0","name":"closed","type":"loopback"}"#;
    plugin.stdin.take().unwrap().write_all(config).unwrap();
    assert!(plugin.wait().unwrap().success());
}

#[test]
fn help_and_version_are_answered_on_stdout_under_every_name() {
    let bin = plugin_directory(&["host-local"]);
    for program in [PROGRAM.into(), bin.path().join("host-local")] {
        for (asked, words) in [
            ("--help", "usage: fairlead-cni"),
            ("-h", "usage: fairlead-cni"),
            ("--version", env!("CARGO_PKG_VERSION")),
        ] {
            let output = version(Command::new(&program).arg(asked));
            assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{asked}");
            assert!(text(&output.stdout).contains(words), "{asked}: {output:?}");
        }
    }
}
