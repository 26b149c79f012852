//! A program that runs beside a test: a server, a daemon.
//!
//! Read [`Service`]. What it says goes to a file, which the test reads; it ends with the value, and when the
//! test is killed it is the kernel that ends it.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use crate::eventually;

/// A running program.
#[derive(Debug)]
pub struct Service {
    child: Child,
    log: PathBuf,
    name: String,
}

impl Service {
    /// Starts `command`, whose both outputs go to a new file at `log`. Its standard input is left as the command
    /// has it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(command: &mut Command, log: impl Into<PathBuf>) -> Self {
        let log = log.into();
        let file = File::create(&log).expect("a log file");
        let name = format!("{command:?}");
        // util-linux: so that nothing stays behind a test that was killed.
        let mut guarded = Command::new("setpriv");
        guarded.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => guarded.env(key, value),
                None => guarded.env_remove(key),
            };
        }
        guarded.stdin(Stdio::null()).stdout(file.try_clone().expect("the file again")).stderr(file);
        let child = guarded.spawn().unwrap_or_else(|error| panic!("{name} starts: {error}"));
        Self { child, log, name }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All it has said.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// How often `text` is in what it has said.
    pub fn said(&self, text: &str) -> usize {
        self.log().matches(text).count()
    }

    /// Waits until it has said `text` this many times.
    ///
    /// # Panics
    /// When it does not, or ends.
    pub fn await_said(&mut self, text: &str, times: usize) {
        let (log, name) = (self.log.clone(), self.name.clone());
        eventually(&format!("{name} says {text:?} {times} times"), || {
            let said = String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
            if said.matches(text).count() >= times {
                return Some(());
            }
            let ended = self.child.try_wait().expect("its state");
            assert!(ended.is_none(), "{name} ended with {ended:?} before it said {text:?}:\n{said}");
            None
        });
    }

    /// Kills it as by `kill -9`.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end (SIGTERM) and gives its exit code.
    ///
    /// # Panics
    /// When it cannot be asked.
    pub fn terminate(mut self) -> Option<i32> {
        crate::run_ok(Command::new("kill").arg(self.child.id().to_string()));
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
