//! Plugins of others: found in CNI_PATH and run as processes.
//!
//! [`find`] looks a type up, [`run`] makes one call, [`versions`] asks VERSION. The plugin inherits this process's
//! environment with the call's CNI_* variables set; what it says on stderr is passed on.
//! Source: CNI specification section 2 (protocol) and 4 (delegation); retries as the reference library does.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use crate::error::{Code, Error};
use crate::json::{Fields, Json};
use crate::plugin::Request;
use crate::runtime_error::RuntimeError;
use crate::version::Version;

/// The executable of the plugin `kind`: the first regular file of that name in the directories of `path`.
///
/// # Errors
/// When the type is no file name, or no directory has it.
pub fn find(kind: &str, path: &[PathBuf]) -> Result<PathBuf, RuntimeError> {
    if kind.is_empty() || kind == "." || kind == ".." || kind.contains(['/', '\0']) {
        return Err(RuntimeError::BadPluginName { kind: kind.to_owned() });
    }
    path.iter()
        .map(|directory| directory.join(kind))
        .find(|file| std::fs::metadata(file).is_ok_and(|metadata| metadata.is_file()))
        .ok_or_else(|| RuntimeError::PluginMissing { kind: kind.to_owned(), path: path.to_vec() })
}

/// Calls the plugin `kind` at `executable`, and gives what it printed.
///
/// # Errors
/// When the executable does not start, or the plugin fails: then with the error that it printed.
pub fn run(kind: &str, executable: &Path, request: &Request) -> Result<Vec<u8>, RuntimeError> {
    let output = start(executable, &variables(request), &request.config.document().to_bytes())?;
    pass_on(&output.stderr);
    if output.status.success() {
        return Ok(output.stdout);
    }
    let error = failure(&output);
    Err(RuntimeError::Plugin { kind: kind.to_owned(), command: request.command, error })
}

/// The versions that the plugin at `executable` speaks. One from before VERSION existed speaks 0.1.0.
///
/// # Errors
/// When the executable does not start, fails, or answers with something else.
pub fn versions(executable: &Path) -> Result<Vec<Version>, RuntimeError> {
    let dummy = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"].map(|name| (name, "dummy".into()));
    let variables: Vec<(&str, OsString)> =
        std::iter::once(("CNI_COMMAND", "VERSION".into())).chain(dummy).collect();
    let stdin = format!("{{\"cniVersion\":\"{}\"}}", Version::LATEST);
    let output = start(executable, &variables, stdin.as_bytes())?;
    if !output.status.success() {
        let error = failure(&output);
        if error.message.contains("unknown CNI_COMMAND: VERSION") {
            return Ok(vec![Version::V0_1_0]);
        }
        let cause = std::io::Error::other(error);
        return Err(RuntimeError::Start { executable: executable.to_owned(), cause });
    }
    supported(&output.stdout).map_err(|error| {
        let cause = std::io::Error::other(error.context("answer to VERSION"));
        RuntimeError::Start { executable: executable.to_owned(), cause }
    })
}

/// The known versions in an answer to VERSION; before 0.3.0 plugins answered without a list.
fn supported(stdout: &[u8]) -> Result<Vec<Version>, Error> {
    let document = Json::parse(stdout).map_err(|error| Error::undecodable(error.to_string()))?;
    let fields = Fields::of(&document)?;
    let list = fields.strings("supportedVersions")?;
    if list.is_empty() {
        return Ok(vec![Version::V0_1_0, Version::V0_2_0]);
    }
    Ok(list.into_iter().filter_map(Version::exactly).collect())
}

/// The variables of a call.
fn variables(request: &Request) -> Vec<(&'static str, OsString)> {
    let mut path = OsString::new();
    for (index, directory) in request.path.iter().enumerate() {
        if index > 0 {
            path.push(":");
        }
        path.push(directory);
    }
    vec![
        ("CNI_COMMAND", request.command.as_str().into()),
        ("CNI_CONTAINERID", request.container_id.as_str().into()),
        ("CNI_NETNS", request.netns.as_deref().map(OsString::from).unwrap_or_default()),
        ("CNI_IFNAME", request.ifname.as_str().into()),
        ("CNI_ARGS", request.args.as_str().into()),
        ("CNI_PATH", path),
    ]
}

/// How often, and how far apart, an executable that is being written is tried again.
const BUSY_TRIES: u32 = 6;
const BUSY_PAUSE: Duration = Duration::from_secs(1);

/// Runs an executable to its end. One that is being replaced at this moment ("text file busy") is tried again.
fn start(executable: &Path, variables: &[(&str, OsString)], stdin: &[u8]) -> Result<Output, RuntimeError> {
    let mut tries = 1;
    loop {
        let cause = match spawn(executable, variables) {
            Ok(child) => match converse(child, stdin) {
                Ok(output) => return Ok(output),
                Err(cause) => cause,
            },
            Err(cause) if cause.kind() == std::io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES => {
                tries += 1;
                std::thread::sleep(BUSY_PAUSE);
                continue;
            }
            Err(cause) => cause,
        };
        return Err(RuntimeError::Start { executable: executable.to_owned(), cause });
    }
}

#[allow(clippy::disallowed_methods)] // Foreign plugins are processes by the protocol's definition.
fn spawn(executable: &Path, variables: &[(&str, OsString)]) -> std::io::Result<Child> {
    std::process::Command::new(executable)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

/// Feeds and drains a child at the same time: a plugin may print more than a pipe holds before it has read all.
fn converse(mut child: Child, bytes: &[u8]) -> std::io::Result<Output> {
    let stdin = child.stdin.take();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if let Some(mut stdin) = stdin {
                // A plugin that does not read its configuration closes the pipe; its exit code says the rest.
                let _ = stdin.write_all(bytes);
            }
        });
        child.wait_with_output()
    })
}

/// Passes on what a plugin told people. There is nobody to tell when that fails.
fn pass_on(stderr: &[u8]) {
    if !stderr.is_empty() {
        let _ = std::io::stderr().write_all(stderr);
    }
}

/// What a failed plugin said: its error object, or else whatever it printed.
fn failure(output: &Output) -> Error {
    if let Some(error) = Error::decode(&output.stdout) {
        return error;
    }
    let said = [&output.stderr, &output.stdout].into_iter().find(|text| !text.trim_ascii().is_empty());
    let words = said.map_or_else(
        || "printed nothing".to_owned(),
        |text| String::from_utf8_lossy(text.trim_ascii()).into_owned(),
    );
    Error::new(Code::INTERNAL, format!("{}: {words}", output.status))
}

/// Whether `executable` is the program that is running now, by any name.
pub(crate) fn is_this_program(executable: &Path) -> bool {
    identity_of(executable).is_some_and(|theirs| identity_of(Path::new("/proc/self/exe")) == Some(theirs))
}

/// Device and inode of a file, or of the namespace that a path names; nothing when the path leads nowhere.
pub(crate) fn identity_of(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests;
