//! The first command a newcomer runs: it must work for everyone, say what it found, and leave nothing.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests drive programs, and panic when they fail"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use harness::{binary, eventually, not_run, run, run_ok};
use journeys::{TestLab, leftovers, links_of_the_machine};

#[test]
fn the_demo_reaches_everything_and_leaves_nothing() {
    let lab = TestLab::prepared();
    let before = links_of_the_machine();
    let output = run(&mut lab.lab("demo", &[]));
    assert_shown(&output);
    assert_eq!(lab.leftovers(), Vec::<String>::new());
    assert_eq!(links_of_the_machine(), before);
}

#[test]
fn the_demo_needs_no_root() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The build's own directory may be closed to others.
    for name in ["fairlead", "fairlead-cni"] {
        fs::copy(binary(name), directory.path().join(name)).unwrap();
    }
    let runtime = directory.path().join("runtime");
    fs::create_dir(&runtime).unwrap();
    let mut as_nobody = unprivileged(&runtime);
    if !run(as_nobody(Path::new("unshare")).args(["--user", "--map-root-user", "--net", "true"]))
        .status
        .success()
    {
        return not_run("this machine lets an ordinary user make no user namespaces");
    }
    let program = directory.path().join("fairlead");
    let mut command = as_nobody(&program);
    let output = run(command.env("XDG_RUNTIME_DIR", &runtime).args(["lab", "demo", "--name", "rootless"]));
    assert_shown(&output);
    assert_eq!(leftovers(&runtime), Vec::<String>::new());
}

/// Runs programs as somebody who may do nothing. A test that is not root is somebody like that already.
fn unprivileged(own: &Path) -> impl FnMut(&Path) -> Command {
    let is_root = run_ok(Command::new("id").arg("-u")).trim() == "0";
    if is_root {
        run_ok(Command::new("chown").arg("65534:65534").arg(own));
    }
    move |program| {
        if !is_root {
            return Command::new(program);
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(program);
        command
    }
}

#[test]
fn an_interrupted_demo_cleans_up_before_it_ends() {
    let lab = TestLab::prepared();
    let mut demo = lab.lab("demo", &[]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_line(&mut demo, "pods:");
    run_ok(Command::new("kill").args(["-INT", &demo.id().to_string()]));
    assert_eq!(demo.wait().unwrap().code(), Some(130));
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[test]
fn a_demo_that_is_killed_takes_everything_along() {
    let lab = TestLab::prepared();
    let mut demo = lab.lab("demo", &[]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_line(&mut demo, "nodes:");
    demo.kill().unwrap();
    demo.wait().unwrap();
    eventually("nothing is left", || lab.leftovers().is_empty().then_some(()));
}

fn wait_for_line(child: &mut std::process::Child, start: &str) {
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with(start) {
        line.clear();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "the demo ended before it said {start:?}");
    }
    // Read on, so that the demo never waits for us.
    std::thread::spawn(move || lines.read_to_end(&mut Vec::new()));
}

fn assert_shown(output: &std::process::Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let shown = String::from_utf8_lossy(&output.stdout);
    for word in [
        "node3",
        "frontend-3",
        "IPv4: round trips",
        "IPv6: round trips",
        "30 of 30 pairs reached",
        "Throughput across nodes",
        "cleaning up",
    ] {
        assert!(shown.contains(word), "{word:?} is missing in:\n{shown}\n{said}");
    }
    assert!(!shown.contains("FAIL") && !shown.contains('\u{1b}'), "{shown}");
}
