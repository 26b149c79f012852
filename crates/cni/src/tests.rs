//! For this crate's tests: a directory of plugins that note what they are asked.

use std::path::{Path, PathBuf};

use crate::json::Json;

/// A directory with plugins in it, gone when dropped.
pub(crate) struct Plugins {
    directory: tempfile::TempDir,
}

impl Plugins {
    /// Plugins of these types, each printing an empty object for ADD until told otherwise.
    pub(crate) fn new(kinds: &[&str]) -> Self {
        let plugins = Self { directory: tempfile::tempdir().unwrap() };
        for kind in kinds {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/plugin.sh");
            std::os::unix::fs::symlink(script, plugins.directory().join(kind)).unwrap();
        }
        plugins
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn path(&self) -> Vec<PathBuf> {
        vec![self.directory().to_owned()]
    }

    /// Puts a file beside the plugins: `KIND.result`, `KIND.fail`, `KIND.versions`.
    pub(crate) fn put(&self, file: &str, text: &str) {
        std::fs::write(self.directory().join(file), text).unwrap();
    }

    pub(crate) fn remove(&self, file: &str) {
        std::fs::remove_file(self.directory().join(file)).unwrap();
    }

    /// The calls so far, as `COMMAND kind`.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.log().iter().map(|line| line.splitn(3, ' ').take(2).collect::<Vec<_>>().join(" ")).collect()
    }

    /// The calls so far with their variables.
    pub(crate) fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.directory().join("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub(crate) fn forget_calls(&self) {
        let _ = std::fs::remove_file(self.directory().join("log"));
    }

    /// What `kind` last got on stdin for `command`.
    pub(crate) fn stdin(&self, kind: &str, command: &str) -> Json {
        let text = std::fs::read(self.directory().join(format!("{kind}.{command}.stdin"))).unwrap();
        Json::parse(&text).unwrap()
    }
}
