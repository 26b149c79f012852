//! Laying the plugins into a runtime's directory: one file, and a link to it for each plugin.
//!
//! A runtime may start a plugin at any moment, also while it is being replaced. So nothing is written in
//! place: the new file and each link get a name of their own first and are then renamed over the old one,
//! which a running plugin keeps. A file of another origin that has the name of a plugin is replaced too;
//! that is what switching a node over means, and the report says so.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::PLUGINS;

/// The file that the links point to.
pub const BINARY: &str = "fairlead-cni";

/// What became of one name in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The file or link.
    pub path: PathBuf,
    /// What was done to it.
    pub change: Change,
}

/// What was done to a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was not there before.
    Created,
    /// Something else had the name.
    Replaced,
    /// It was right already.
    Unchanged,
}

/// A step of the installation that failed; what was laid before it stays and is complete.
#[derive(Debug, thiserror::Error)]
#[error("could not {step} {}: {cause}", path.display())]
pub struct InstallError {
    step: &'static str,
    path: PathBuf,
    cause: io::Error,
}

/// Copies `binary` to `<directory>/fairlead-cni` and links every plugin's name to it. The directory is made
/// where it is missing.
///
/// # Errors
/// The first step that failed, with the path.
pub fn install(binary: &Path, directory: &Path) -> Result<Vec<Installed>, InstallError> {
    attempt("create the directory", directory, fs::create_dir_all(directory))?;
    let content = attempt("read", binary, fs::read(binary))?;
    let mut report = vec![lay_binary(&content, &directory.join(BINARY))?];
    for plugin in PLUGINS {
        report.push(lay_link(&directory.join(plugin.name()))?);
    }
    Ok(report)
}

fn lay_binary(content: &[u8], path: &Path) -> Result<Installed, InstallError> {
    let executable = fs::symlink_metadata(path)
        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o777 == 0o755);
    if executable && fs::read(path).is_ok_and(|present| present == content) {
        return Ok(Installed { path: path.to_owned(), change: Change::Unchanged });
    }
    replace(path, |fresh| {
        fs::write(fresh, content)?;
        fs::set_permissions(fresh, Permissions::from_mode(0o755))?;
        fs::File::open(fresh)?.sync_all()
    })
}

fn lay_link(path: &Path) -> Result<Installed, InstallError> {
    if fs::read_link(path).is_ok_and(|target| target == Path::new(BINARY)) {
        return Ok(Installed { path: path.to_owned(), change: Change::Unchanged });
    }
    replace(path, |fresh| symlink(BINARY, fresh))
}

/// Makes something under a name of its own and renames it to `path`.
fn replace(path: &Path, make: impl Fn(&Path) -> io::Result<()>) -> Result<Installed, InstallError> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    let fresh = path.with_file_name(name);
    let change = if fs::symlink_metadata(path).is_ok() { Change::Replaced } else { Change::Created };
    // What an installation that was interrupted left behind.
    let _ = fs::remove_file(&fresh);
    attempt("create", &fresh, make(&fresh))?;
    attempt("replace", path, fs::rename(&fresh, path)).inspect_err(|_| {
        let _ = fs::remove_file(&fresh);
    })?;
    Ok(Installed { path: path.to_owned(), change })
}

fn attempt<T>(step: &'static str, path: &Path, done: io::Result<T>) -> Result<T, InstallError> {
    done.map_err(|cause| InstallError { step, path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(report: &[Installed]) -> Vec<Change> {
        report.iter().map(|installed| installed.change).collect()
    }

    #[test]
    fn every_plugin_becomes_a_link_to_the_one_binary() {
        let directory = tempfile::tempdir().unwrap();
        let bin = directory.path().join("opt/cni/bin");
        let source = directory.path().join("source");
        fs::write(&source, "#!/bin/true\n").unwrap();

        let report = install(&source, &bin).unwrap();
        assert!(changes(&report).iter().all(|change| *change == Change::Created));
        assert_eq!(report.len(), 1 + PLUGINS.len());
        for plugin in PLUGINS {
            assert_eq!(fs::read_link(bin.join(plugin.name())).unwrap(), Path::new(BINARY));
        }
        assert_eq!(fs::metadata(bin.join(BINARY)).unwrap().permissions().mode() & 0o777, 0o755);

        let again = install(&source, &bin).unwrap();
        assert!(changes(&again).iter().all(|change| *change == Change::Unchanged));
        assert_eq!(fs::read_dir(&bin).unwrap().count(), report.len(), "nothing is left beside them");
    }

    #[test]
    fn foreign_plugins_and_an_interrupted_installation_are_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let bin = directory.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let source = directory.path().join("source");
        fs::write(&source, "new").unwrap();
        fs::write(bin.join("loopback"), "foreign").unwrap();
        fs::write(bin.join(BINARY), "old").unwrap();
        fs::write(bin.join(".fairlead-cni.new"), "half").unwrap();

        let report = install(&source, &bin).unwrap();
        let replaced: Vec<_> =
            report.iter().filter(|one| one.change == Change::Replaced).map(|one| one.path.clone()).collect();
        assert_eq!(replaced, [bin.join(BINARY), bin.join("loopback")]);
        assert_eq!(fs::read(bin.join("loopback")).unwrap(), b"new");
        assert!(!bin.join(".fairlead-cni.new").exists());
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a program that runs is what must be replaceable")]
    fn a_plugin_that_is_running_is_replaced_and_runs_on() {
        let directory = tempfile::tempdir().unwrap();
        let bin = directory.path().join("bin");
        install(Path::new("/bin/sleep"), &bin).unwrap();
        let mut running = std::process::Command::new(bin.join(BINARY)).arg("60").spawn().unwrap();
        let source = directory.path().join("source");
        fs::write(&source, "new").unwrap();
        install(&source, &bin).unwrap();
        assert_eq!(fs::read(bin.join(BINARY)).unwrap(), b"new");
        assert!(running.try_wait().unwrap().is_none(), "it runs on");
        running.kill().unwrap();
        running.wait().unwrap();
    }

    #[test]
    fn a_failure_names_the_step_and_the_path() {
        let directory = tempfile::tempdir().unwrap();
        let error = install(&directory.path().join("missing"), directory.path()).unwrap_err().to_string();
        assert!(error.starts_with("could not read ") && error.contains("/missing: No such file"), "{error}");
    }
}
