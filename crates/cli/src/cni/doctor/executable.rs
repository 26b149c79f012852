//! The plugins' side: is there a program of this name, does it start, and which versions does it speak.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ::cni::{Version, exec};

use crate::finding::Finding;

/// What containerd and CRI-O start for every pod, whatever the configuration says.
const ALWAYS_NEEDED: &str = "loopback";

/// The directories of plugins.
pub(super) struct Executables<'a> {
    directories: &'a [PathBuf],
}

impl<'a> Executables<'a> {
    pub(super) fn new(directories: &'a [PathBuf]) -> Self {
        Self { directories }
    }

    /// What is wrong with the directories themselves.
    pub(super) fn examine(&self, findings: &mut Vec<Finding>) {
        for directory in self.directories {
            match fs::read_dir(directory) {
                Ok(entries) => {
                    let paths = entries.flatten().map(|entry| entry.path());
                    findings.extend(paths.filter_map(|path| broken_link(&path)));
                }
                Err(cause) => findings.push(Finding::error(
                    directory,
                    format!("the directory of plugins cannot be read: {cause}"),
                    install_into(directory),
                )),
            }
        }
        match exec::find(ALWAYS_NEEDED, self.directories) {
            Ok(file) => findings.extend(unusable(&file)),
            Err(_) => findings.push(Finding::error(
                self.first(),
                "there is no plugin loopback, which containerd and CRI-O start for every pod",
                install_into(self.first()),
            )),
        }
    }

    /// What is wrong with the plugin that `user` names, for a list that speaks `version`.
    pub(super) fn examine_plugin(&self, kind: &str, version: Version, user: &Path) -> Option<Finding> {
        let Ok(file) = exec::find(kind, self.directories) else {
            let directories: Vec<String> =
                self.directories.iter().map(|directory| directory.display().to_string()).collect();
            return Some(Finding::error(
                user,
                format!(
                    "plugin {kind} is in none of {}: ADD fails, and DEL stops before it",
                    directories.join(", ")
                ),
                match plugins::find(kind) {
                    Some(_) => install_into(self.first()),
                    None => format!("install {kind}, or take it out of the configuration"),
                },
            ));
        };
        unusable(&file).or_else(|| speechless(&file, kind, version, user))
    }

    /// Whether the plugin would be one of Fairlead's.
    pub(super) fn is_ours(&self, kind: &str) -> bool {
        let Ok(file) = exec::find(kind, self.directories) else { return false };
        let program = fs::canonicalize(file).unwrap_or_default();
        let name = program.file_name().unwrap_or_default();
        plugins::find(kind).is_some() && (name == plugins::install::BINARY || name == "fairlead")
    }

    /// The directories, as a call's CNI_PATH.
    pub(super) fn path(&self) -> Vec<PathBuf> {
        self.directories.to_vec()
    }

    fn first(&self) -> &Path {
        self.directories.first().map_or(Path::new("/opt/cni/bin"), PathBuf::as_path)
    }
}

fn install_into(directory: &Path) -> String {
    format!("fairlead cni install --bin-dir {}", directory.display())
}

fn broken_link(path: &Path) -> Option<Finding> {
    let target = fs::read_link(path).ok().filter(|_| !path.exists())?;
    Some(Finding::error(
        path,
        format!("this link leads to {}, which is not there", target.display()),
        path.parent().map(install_into).unwrap_or_default(),
    ))
}

fn unusable(file: &Path) -> Option<Finding> {
    let mode = fs::metadata(file).map(|metadata| metadata.permissions().mode()).unwrap_or_default();
    if mode & 0o111 == 0 {
        let fix = format!("chmod 0755 {}", file.display());
        return Some(Finding::error(file, "the plugin may not be executed", fix));
    }
    (mode & 0o022 != 0).then(|| {
        let fix = format!("chmod 0755 {}", file.display());
        Finding::warning(file, "others than its owner may write this program, which runs as root", fix)
    })
}

/// A plugin that does not answer VERSION, or not with what the list speaks.
fn speechless(file: &Path, kind: &str, version: Version, user: &Path) -> Option<Finding> {
    match exec::versions(file) {
        Err(error) => Some(Finding::error(
            file,
            format!("it does not answer VERSION: {error}"),
            "install the plugin again, for this machine's architecture",
        )),
        Ok(versions) if versions.contains(&version) => None,
        Ok(versions) => Some(Finding::error(
            user,
            format!("it speaks version {version}, and its plugin {kind} only {}", Version::join(&versions)),
            format!("install a newer {kind}, or lower cniVersion"),
        )),
    }
}
