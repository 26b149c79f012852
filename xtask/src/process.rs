//! Starting programs: print what is run, fail with the command line when it fails.

use std::{ffi::OsString, path::Path, process::Command};

use anyhow::{Context, bail};

/// Runs a command with our own standard streams; it must succeed.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    eprintln!("+ {}", words(command));
    let status = command.status().with_context(|| format!("starting {}", words(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", words(command));
    }
    Ok(())
}

/// Runs a command that must succeed and returns what it prints.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("starting {}", words(command)))?;
    if !output.status.success() {
        bail!("{} ended with {}: {}", words(command), output.status, String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).with_context(|| format!("reading what {} prints", words(command)))
}

/// `program`, as root: in a user namespace of its own if we are not.
pub(crate) fn as_root(program: &Path) -> anyhow::Result<Command> {
    if output(Command::new("id").arg("-u"))?.trim() == "0" {
        return Ok(Command::new(program));
    }
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--", "sh", "-c"]);
    // Some tests talk to themselves over the loopback, which is down in a new namespace.
    command.args(["ip link set lo up; exec \"$@\"", "sh"]).arg(program);
    Ok(command)
}

/// PATH with the directories of the system's own tools, which an ordinary user's lacks on Debian.
pub(crate) fn path_with_system_directories() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

/// Whether a program can be found in PATH or in the system directories.
pub(crate) fn found(program: &str) -> bool {
    std::env::split_paths(&path_with_system_directories()).any(|directory| directory.join(program).exists())
}

fn words(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
