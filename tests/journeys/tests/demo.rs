//! The first command a newcomer runs: it must work for everyone, say what it found, and leave nothing.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests drive programs, and panic when they fail"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use harness::{Namespace, binary, eventually, not_run, run, run_ok};
use journeys::{TestLab, leftovers, wait_for_line};

#[test]
fn the_demo_reaches_everything_and_leaves_nothing() {
    let lab = TestLab::prepared();
    // A machine of its own, on which nobody else makes links meanwhile.
    let machine = Namespace::with_loopback();
    let mut demo = machine.command(binary("fairlead"));
    demo.args(["lab", "demo", "--name", lab.name()]).env("XDG_RUNTIME_DIR", lab.runtime());
    let output = run(&mut demo);
    assert_shown(&output);
    assert_eq!(lab.leftovers(), Vec::<String>::new());
    assert_eq!(machine.link_names(), Vec::<String>::new());
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
    let Some(mut as_nobody) = unprivileged(&runtime) else {
        return not_run("in the user namespace that the tests run in there is only root");
    };
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

/// Runs programs as somebody who may do nothing. A test that is not root is somebody like that already. None where
/// there is nobody else to be.
fn unprivileged(own: &Path) -> Option<impl FnMut(&Path) -> Command> {
    let is_root = run_ok(Command::new("id").arg("-u")).trim() == "0";
    if is_root && !run(Command::new("chown").arg("65534:65534").arg(own)).status.success() {
        return None;
    }
    Some(move |program: &Path| {
        if !is_root {
            return Command::new(program);
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(program);
        command
    })
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
