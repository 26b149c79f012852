//! A delegate of ours is called in place, another is run, and either's failure is told.

use std::sync::Mutex;

use super::*;
use crate::config::Config;
use crate::error::Code;
use crate::result::IpConfig;
use crate::tests::Plugins;
use crate::version::Version;

/// An IPAM plugin of ours that speaks only 1.1.0.
struct Ours;

/// The calls of [`Ours`], by container.
static CALLS: Mutex<Vec<(String, Command)>> = Mutex::new(Vec::new());

impl Ours {
    fn note(request: &Request) {
        CALLS.lock().unwrap().push((request.container_id.clone(), request.command));
    }
}

impl Plugin for Ours {
    fn name(&self) -> &'static str {
        "ours"
    }

    fn versions(&self) -> &'static [Version] {
        &[Version::V1_1_0]
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        Self::note(request);
        Ok(AddResult { ips: vec![IpConfig::new("10.0.0.7/24".parse().unwrap())], ..AddResult::default() })
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        Self::note(request);
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        Self::note(request);
        Ok(())
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        Self::note(request);
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        Self::note(request);
        Ok(())
    }
}

fn resolve(kind: &str) -> Option<&'static dyn Plugin> {
    (kind == "ours").then_some(&Ours as &dyn Plugin)
}

fn request(id: &str, version: &str, path: Vec<PathBuf>) -> Request {
    let config =
        format!(r#"{{"cniVersion":"{version}","name":"net","type":"main","ipam":{{"type":"ours"}}}}"#);
    Request {
        command: Command::Add,
        container_id: id.to_owned(),
        netns: Some("/nowhere".into()),
        ifname: "eth0".to_owned(),
        args: String::new(),
        path,
        config: Config::parse(config.as_bytes()).unwrap(),
        resolver: Some(resolve),
    }
}

fn calls(id: &str) -> Vec<Command> {
    CALLS.lock().unwrap().iter().filter(|(called, _)| called == id).map(|(_, command)| *command).collect()
}

#[test]
fn ours_runs_in_this_process_with_the_command_of_the_function() {
    let request = request("in-process", "1.1.0", vec!["/nowhere".into()]);
    assert_eq!(add("ours", &request).unwrap().ips.len(), 1);
    del("ours", &request).unwrap();
    check("ours", &request).unwrap();
    status("ours", &request).unwrap();
    assert_eq!(calls("in-process"), [Command::Add, Command::Del, Command::Check, Command::Status]);
}

#[test]
fn ours_runs_in_this_process_when_the_executable_found_is_this_program() {
    let plugins = Plugins::new(&[]);
    std::os::unix::fs::symlink(std::env::current_exe().unwrap(), plugins.directory().join("ours")).unwrap();
    add("ours", &request("linked", "1.1.0", plugins.path())).unwrap();
    assert_eq!(calls("linked"), [Command::Add]);
}

#[test]
fn another_programs_executable_of_that_name_is_run_instead() {
    let plugins = Plugins::new(&["ours"]);
    plugins.put("ours.result", r#"{"cniVersion":"1.1.0","ips":[{"address":"10.9.9.9/24"}]}"#);
    let request = request("foreign", "1.1.0", plugins.path());
    assert_eq!(add("ours", &request).unwrap().ips[0].address.to_string(), "10.9.9.9/24");
    assert_eq!(plugins.stdin("ours", "ADD"), *request.config.document());
    del("ours", &request).unwrap();
    assert_eq!(plugins.log()[1], "DEL ours id=foreign netns=/nowhere if=eth0 args=");
    assert_eq!(calls("foreign"), []);
}

#[test]
fn a_delegate_that_prints_nothing_gives_an_empty_result() {
    let plugins = Plugins::new(&["silent"]);
    assert_eq!(add("silent", &request("silent", "1.1.0", plugins.path())), Ok(AddResult::default()));
}

#[test]
fn the_delegates_error_keeps_its_code() {
    let plugins = Plugins::new(&["full"]);
    plugins.put("full.fail", r#"{"code":11,"msg":"no free address"}"#);
    let error = add("full", &request("full", "1.1.0", plugins.path())).unwrap_err();
    assert_eq!(error, Error::try_again("plugin full: no free address"));
    let error = add("nowhere", &request("full", "1.1.0", plugins.path())).unwrap_err();
    assert!(error.message.starts_with(r#"failed to find plugin "nowhere""#), "{error}");
}

#[test]
fn versions_gate_delegates_too() {
    let error = add("ours", &request("gated", "1.0.0", Vec::new())).unwrap_err();
    assert_eq!(error.code, Code::INCOMPATIBLE_VERSION);
    let gc = gc("ours", &request("gated", "1.1.0", Vec::new())).unwrap_err();
    assert_eq!(gc.code, Code::INVALID_CONFIG, "no list of valid attachments");
    assert_eq!(calls("gated"), []);
}
