//! Foreign plugins are found and run, and what they print is understood.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::config::Config;
use crate::plugin::Command;
use crate::tests::Plugins;

fn request(plugins: &Plugins, config: &str) -> Request {
    Request {
        command: Command::Add,
        container_id: "c1".to_owned(),
        netns: None,
        ifname: "eth0".to_owned(),
        args: String::new(),
        path: plugins.path(),
        config: Config::parse(config.as_bytes()).unwrap(),
        resolver: None,
    }
}

fn script(plugins: &Plugins, name: &str, body: &str) -> PathBuf {
    let path = plugins.directory().join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn the_first_directory_that_has_the_plugin_wins() {
    let (first, second) = (Plugins::new(&["a"]), Plugins::new(&["a", "b"]));
    std::fs::create_dir(first.directory().join("b")).unwrap();
    let path = [PathBuf::from("/nowhere"), first.directory().to_owned(), second.directory().to_owned()];
    assert_eq!(find("a", &path).unwrap(), first.directory().join("a"));
    assert_eq!(find("b", &path).unwrap(), second.directory().join("b"), "a directory is no plugin");
    let missing = find("c", &path).unwrap_err().to_string();
    assert!(missing.starts_with(r#"failed to find plugin "c" in path ["/nowhere","#), "{missing}");
    for bad in ["", ".", "..", "a/b", "/bin/sh", "../a", "a\0"] {
        assert!(matches!(find(bad, &path), Err(RuntimeError::BadPluginName { .. })), "{bad:?}");
    }
}

#[test]
fn a_configuration_larger_than_a_pipe_goes_through_while_output_comes_back() {
    let plugins = Plugins::new(&[]);
    let executable = script(&plugins, "echo", "exec cat");
    let config = format!(r#"{{"name":"net","big":"{}"}}"#, "x".repeat(1 << 20));
    assert_eq!(run("echo", &executable, &request(&plugins, &config)).unwrap(), config.as_bytes());
}

#[test]
fn a_plugin_that_does_not_read_its_configuration_is_not_an_error() {
    let plugins = Plugins::new(&[]);
    let executable = script(&plugins, "deaf", "exec <&-; echo '{}'");
    let config = format!(r#"{{"name":"net","big":"{}"}}"#, "x".repeat(1 << 20));
    assert_eq!(run("deaf", &executable, &request(&plugins, &config)).unwrap(), b"{}\n");
}

#[test]
fn a_failure_is_told_by_the_error_object_or_else_by_stderr() {
    let plugins = Plugins::new(&[]);
    let error_of = |body: &str| {
        let executable = script(&plugins, "bad", body);
        let error = run("bad", &executable, &request(&plugins, r#"{"name":"net"}"#)).unwrap_err();
        let RuntimeError::Plugin { kind, command: Command::Add, error } = error else { panic!("{error}") };
        assert_eq!(kind, "bad");
        error
    };
    let told = error_of(r#"echo '{"code":7,"msg":"no subnet","details":"d"}'; echo talk >&2; exit 1"#);
    assert_eq!(told, Error::invalid_config("no subnet").with_details("d"));
    assert_eq!(error_of("echo boom >&2; exit 3"), Error::internal("exit status: 3: boom"));
    assert_eq!(error_of("echo out; exit 3"), Error::internal("exit status: 3: out"));
    assert_eq!(error_of("kill -9 $$").message, "signal: 9 (SIGKILL): printed nothing");
}

#[test]
fn what_cannot_be_started_is_named() {
    let plugins = Plugins::new(&[]);
    plugins.put("plain", "not executable");
    let error = run("plain", &plugins.directory().join("plain"), &request(&plugins, r#"{"name":"net"}"#))
        .unwrap_err();
    assert!(error.to_string().starts_with("cannot run /"), "{error}");
}

#[test]
fn an_executable_that_is_being_replaced_is_tried_again() {
    let plugins = Plugins::new(&[]);
    let executable = script(&plugins, "busy", "echo '{}'");
    let writer = std::fs::OpenOptions::new().append(true).open(&executable).unwrap();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| run("busy", &executable, &request(&plugins, r#"{"name":"net"}"#)));
        // Whenever this happens, the call finds the file busy at most until then.
        drop(writer);
        assert_eq!(call.join().unwrap().unwrap(), b"{}\n");
    });
    let writer = std::fs::OpenOptions::new().append(true).open(&executable).unwrap();
    let busy = spawn(&executable, &[]).unwrap_err();
    assert_eq!(
        busy.kind(),
        std::io::ErrorKind::ExecutableFileBusy,
        "what is retried is what the kernel says"
    );
    drop(writer);
}

#[test]
fn versions_are_asked_for_whatever_the_age_of_the_plugin() {
    let plugins = Plugins::new(&[]);
    let ask = |body: &str| versions(&script(&plugins, "v", body));
    let new = r#"echo '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","7.0.0"]}'"#;
    assert_eq!(ask(new).unwrap(), [Version::V0_4_0, Version::V1_0_0]);
    let old = r#"echo '{"code":4,"msg":"unknown CNI_COMMAND: VERSION"}'; exit 1"#;
    assert_eq!(ask(old).unwrap(), [Version::V0_1_0]);
    assert_eq!(ask(r#"echo '{"cniVersion":"0.2.0"}'"#).unwrap(), [Version::V0_1_0, Version::V0_2_0]);
    assert!(ask("echo nonsense").unwrap_err().to_string().contains("answer to VERSION: not JSON"));
    assert!(ask("exit 1").is_err());
}

#[test]
fn a_program_knows_itself_by_any_name() {
    let plugins = Plugins::new(&[]);
    let link = plugins.directory().join("link");
    std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &link).unwrap();
    assert!(is_this_program(&link));
    assert!(!is_this_program(Path::new("/bin/sh")));
}
