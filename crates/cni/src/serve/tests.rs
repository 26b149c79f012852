//! The protocol's behaviours as a plugin process shows them, in memory.

use std::ffi::OsString;
use std::sync::Mutex;

use super::*;
use crate::error::Code;
use crate::result::{AddResult, Interface, IpConfig};

/// A plugin that remembers what it was asked.
#[derive(Default)]
struct Witness {
    asked: Mutex<Vec<Command>>,
    without_addresses: bool,
}

impl Witness {
    fn note(&self, request: &Request) {
        self.asked.lock().unwrap().push(request.command);
    }

    fn asked(&self) -> Vec<Command> {
        self.asked.lock().unwrap().clone()
    }
}

impl Plugin for Witness {
    fn name(&self) -> &'static str {
        "witness"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        self.note(request);
        let interfaces = vec![Interface { name: request.ifname.clone(), ..Interface::default() }];
        if self.without_addresses {
            return Ok(AddResult { interfaces, ..AddResult::default() });
        }
        let ip = IpConfig { interface: Some(0), ..IpConfig::new("10.1.2.5/24".parse().unwrap()) };
        Ok(AddResult { interfaces, ips: vec![ip], ..AddResult::default() })
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        self.note(request);
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        self.note(request);
        Ok(())
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        self.note(request);
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        self.note(request);
        Err(Error::not_ready("no agent"))
    }
}

/// What a process left behind.
struct Outcome {
    exit: u8,
    stdout: String,
    stderr: String,
    asked: Vec<Command>,
}

impl Outcome {
    fn error(&self) -> Error {
        assert_eq!(self.exit, 1, "{}", self.stdout);
        Error::decode(self.stdout.as_bytes()).unwrap()
    }
}

fn run(plugin: &Witness, pairs: &[(&str, &str)], stdin: &str) -> Outcome {
    let find =
        |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let process = Process {
        environment: Environment::read(find),
        stdin: &mut stdin.as_bytes(),
        stdout: &mut stdout,
        stderr: &mut stderr,
        resolver: None,
    };
    let exit = serve(plugin, process);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Outcome { exit, stdout: text(stdout), stderr: text(stderr), asked: plugin.asked() }
}

const CONFIG: &str = r#"{"cniVersion":"1.1.0","name":"net","type":"witness"}"#;

/// A well-formed call, with these variables instead.
fn call(command: &str, instead: &[(&str, &str)], stdin: &str) -> Outcome {
    let mut pairs = vec![
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/nowhere/netns"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/nowhere/bin"),
    ];
    pairs.retain(|(name, _)| !instead.iter().any(|(other, _)| other == name));
    pairs.extend_from_slice(instead);
    pairs.push(("CNI_COMMAND", command));
    run(&Witness::default(), &pairs, stdin)
}

#[test]
fn behaviour_1_without_environment_the_plugin_tells_about_itself_on_stderr() {
    let outcome = run(&Witness::default(), &[], "");
    assert_eq!((outcome.exit, outcome.stdout.as_str()), (0, ""));
    assert!(outcome.stderr.contains("witness"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"), "{}", outcome.stderr);
}

#[test]
fn behaviour_2_version_answers_without_stdin() {
    let outcome = run(&Witness::default(), &[("CNI_COMMAND", "VERSION")], "");
    assert_eq!((outcome.exit, outcome.stderr.as_str()), (0, ""));
    let want = r#"{"cniVersion":"1.1.0","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}"#;
    assert_eq!(outcome.stdout.trim_end(), want);
}

#[test]
fn behaviour_3_all_missing_variables_are_reported_at_once() {
    let error = run(&Witness::default(), &[("CNI_COMMAND", "ADD")], CONFIG).error();
    assert_eq!(error.code, Code::INVALID_ENVIRONMENT);
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"] {
        assert!(error.message.contains(name), "{error}");
    }
}

#[test]
fn behaviour_4_bad_input_gets_the_code_for_it() {
    let long = r#"{"cniVersion":"1.0.0","name":"net","type":["x"]}"#;
    let none: &[(&str, &str)] = &[];
    let cases = [
        ("FOO", none, CONFIG, Code::INVALID_ENVIRONMENT),
        ("ADD", none, "{", Code::UNDECODABLE),
        ("ADD", none, "", Code::UNDECODABLE),
        ("ADD", none, "[]", Code::UNDECODABLE),
        ("ADD", none, long, Code::UNDECODABLE),
        ("ADD", none, r#"{"name":5}"#, Code::UNDECODABLE),
        ("ADD", none, "{}", Code::INVALID_CONFIG),
        ("ADD", none, r#"{"name":""}"#, Code::INVALID_CONFIG),
        ("ADD", none, r#"{"name":"a/b"}"#, Code::INVALID_CONFIG),
        ("ADD", &[("CNI_CONTAINERID", "_x")], CONFIG, Code::INVALID_ENVIRONMENT),
        ("DEL", &[("CNI_CONTAINERID", "a b")], CONFIG, Code::INVALID_ENVIRONMENT),
    ];
    for (command, instead, stdin, code) in cases {
        let outcome = call(command, instead, stdin);
        assert_eq!(outcome.error().code, code, "{command} {instead:?} {stdin}");
        assert_eq!(outcome.asked, [], "{command} {instead:?} {stdin}");
    }
}

#[test]
fn behaviour_5_bad_interface_names_reach_no_plugin() {
    for name in ["sixteen-bytes-xx", "..", "a/b", "a:b", "a b"] {
        let outcome = call("ADD", &[("CNI_IFNAME", name)], CONFIG);
        assert_eq!(outcome.error().code, Code::INVALID_ENVIRONMENT, "{name}");
        assert_eq!(outcome.asked, [], "{name}");
    }
}

#[test]
fn behaviour_6_versions_gate_commands() {
    let config = |version: &str| {
        format!(
            r#"{{"cniVersion":"{version}","name":"net","type":"witness","cni.dev/valid-attachments":[]}}"#
        )
    };
    let error = call("ADD", &[], &config("9.9.9")).error();
    assert_eq!(error.code, Code::INCOMPATIBLE_VERSION);
    assert!(error.details.contains("9.9.9") && error.details.contains("1.1.0"), "{error}");
    for (command, old, new) in
        [("CHECK", "0.3.1", "0.4.0"), ("GC", "1.0.0", "1.1.0"), ("STATUS", "1.0.0", "1.1.0")]
    {
        let refused = call(command, &[], &config(old));
        assert_eq!((refused.error().code, refused.asked.len()), (Code::INCOMPATIBLE_VERSION, 0), "{command}");
        assert!(refused.stdout.contains(&format!(r#""cniVersion":"{old}""#)), "{}", refused.stdout);
        assert_eq!(call(command, &[], &config(new)).asked.len(), 1, "{command}");
    }
}

#[test]
fn behaviour_7_the_own_namespace_is_refused_before_anything_is_done() {
    for command in ["ADD", "DEL"] {
        let own = ("CNI_NETNS", "/proc/thread-self/ns/net");
        let refused = call(command, &[own], CONFIG);
        assert_eq!((refused.error().code, refused.asked.len()), (Code::INVALID_NETNS, 0), "{command}");
        let allowed = call(command, &[own, ("CNI_NETNS_OVERRIDE", "1")], CONFIG);
        assert_eq!((allowed.exit, allowed.asked.len()), (0, 1), "{command}");
    }
}

#[test]
fn behaviour_8_the_result_has_the_shape_of_the_version() {
    let shapes = [
        ("0.1.0", r#"{"cniVersion":"0.1.0","ip4":{"ip":"10.1.2.5/24"},"dns":{}}"#),
        ("0.2.0", r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.1.2.5/24"},"dns":{}}"#),
        (
            "0.4.0",
            r#"{"cniVersion":"0.4.0","interfaces":[{"name":"eth0"}],"ips":[{"version":"4","address":"10.1.2.5/24","interface":0}],"dns":{}}"#,
        ),
        (
            "1.1.0",
            r#"{"cniVersion":"1.1.0","interfaces":[{"name":"eth0"}],"ips":[{"address":"10.1.2.5/24","interface":0}]}"#,
        ),
    ];
    for (version, want) in shapes {
        let config = format!(r#"{{"cniVersion":"{version}","name":"net","type":"witness"}}"#);
        assert_eq!(call("ADD", &[], &config).stdout.trim_end(), want);
    }
    let refused = call("ADD", &[], r#"{"type":"witness"}"#);
    assert!(refused.stdout.starts_with(r#"{"cniVersion":"0.1.0","code":7"#), "{}", refused.stdout);
    let unsaid = call("ADD", &[], r#"{"name":"net","type":"witness"}"#);
    assert!(unsaid.stdout.starts_with(r#"{"cniVersion":"0.1.0","ip4""#), "{}", unsaid.stdout);
}

#[test]
fn del_needs_no_namespace_and_prints_nothing() {
    let outcome = call("DEL", &[("CNI_NETNS", "")], CONFIG);
    assert_eq!((outcome.exit, outcome.stdout.as_str(), outcome.asked), (0, "", vec![Command::Del]));
}

#[test]
fn behaviour_12_gc_without_a_list_removes_nothing() {
    for config in [CONFIG, r#"{"cniVersion":"1.1.0","name":"net","cni.dev/valid-attachments":null}"#] {
        let outcome = call("GC", &[], config);
        assert_eq!((outcome.error().code, outcome.asked.len()), (Code::INVALID_CONFIG, 0));
    }
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let outcome = call("GC", &[], &format!(r#"{{"cniVersion":"1.1.0","name":"net","{key}":[]}}"#));
        assert_eq!((outcome.exit, outcome.asked), (0, vec![Command::Gc]), "{key}");
    }
}

#[test]
fn status_passes_the_plugins_code_on() {
    assert_eq!(call("STATUS", &[], CONFIG).error(), Error::not_ready("no agent"));
}

#[test]
fn an_add_whose_result_has_no_words_in_the_version_is_undone() {
    let plugin = Witness { without_addresses: true, ..Witness::default() };
    let pairs = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/nowhere"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/nowhere"),
    ];
    let outcome = run(&plugin, &pairs, r#"{"cniVersion":"0.2.0","name":"net"}"#);
    assert_eq!(outcome.error().message, "cannot convert: no valid IP addresses");
    assert_eq!(outcome.asked, [Command::Add, Command::Del]);
}

/// A pipe whose other end is closed.
struct Closed;

impl Read for Closed {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn environment(command: &str) -> Environment {
    Environment {
        command: command.to_owned(),
        container_id: "c1".to_owned(),
        netns: "/nowhere".into(),
        ifname: "eth0".to_owned(),
        path: "/nowhere".into(),
        ..Environment::default()
    }
}

#[test]
fn stdin_that_cannot_be_read_is_an_io_failure() {
    let (plugin, mut stdout) = (Witness::default(), Vec::new());
    let process = Process {
        environment: environment("ADD"),
        stdin: &mut Closed,
        stdout: &mut stdout,
        stderr: &mut Vec::new(),
        resolver: None,
    };
    assert_eq!(serve(&plugin, process), 1);
    assert_eq!(Error::decode(&stdout).unwrap().code, Code::IO_FAILURE);
}

#[test]
fn an_add_whose_result_nobody_takes_is_undone() {
    let plugin = Witness::default();
    let process = Process {
        environment: environment("ADD"),
        stdin: &mut CONFIG.as_bytes(),
        stdout: &mut Closed,
        stderr: &mut Vec::new(),
        resolver: None,
    };
    assert_eq!(serve(&plugin, process), 1);
    assert_eq!(plugin.asked(), [Command::Add, Command::Del]);
}

#[test]
fn a_thread_knows_its_own_namespace() {
    assert!(is_own_netns(Path::new("/proc/self/ns/net")));
    assert!(!is_own_netns(Path::new("/proc/self/ns/uts")));
    assert!(!is_own_netns(Path::new("/nowhere")));
}
