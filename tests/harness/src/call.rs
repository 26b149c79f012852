//! One call of a CNI plugin binary, as a runtime makes it (CNI specification 1.1.0, section 2).
//!
//! Read [`Call`]: what goes in; [`Reply`]: what came out. The binary runs inside the namespace that stands
//! for the host.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::Namespace;

/// What one plugin process is given.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// The namespace that plays the host.
    pub host: &'a Namespace,
    /// The directory that `CNI_PATH` names, and the plugin is taken from.
    pub bin: &'a Path,
    /// The plugin's file name, such as `bridge`.
    pub plugin: &'a str,
    /// `CNI_CONTAINERID`.
    pub container_id: &'a str,
    /// `CNI_NETNS`; empty for none.
    pub netns: PathBuf,
    /// `CNI_IFNAME`.
    pub ifname: &'a str,
    /// `CNI_ARGS`; empty for none.
    pub args: &'a str,
}

impl<'a> Call<'a> {
    /// A call for container `container_id` with interface `eth0` in `pod`.
    pub fn new(
        host: &'a Namespace,
        bin: &'a Path,
        plugin: &'a str,
        container_id: &'a str,
        pod: &Namespace,
    ) -> Self {
        Self { host, bin, plugin, container_id, netns: pod.path(), ifname: "eth0", args: "" }
    }

    /// Runs the plugin with this command (`ADD`, `DEL`, ...) and configuration on standard input.
    pub fn run(&self, command: &str, config: &Value) -> Reply {
        self.run_raw(command, config.to_string().as_bytes())
    }

    /// The same with any bytes for a configuration.
    pub fn run_raw(&self, command: &str, config: &[u8]) -> Reply {
        let mut process = self.command(command);
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = process.spawn().unwrap_or_else(|error| panic!("{process:?} starts: {error}"));
        // A plugin that refuses before reading closes the pipe: that is its right.
        let _ = child.stdin.take().expect("stdin is piped").write_all(config);
        Reply::from(child.wait_with_output().expect("the plugin ends"))
    }

    /// The command line and environment of the call, for tests that run it under another tool.
    pub fn command(&self, command: &str) -> Command {
        let mut process = self.host.command(self.bin.join(self.plugin));
        self.environment(command, &mut process);
        process
    }

    /// Sets the CNI variables on any command.
    pub fn environment(&self, command: &str, process: &mut Command) {
        process.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        process
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", self.container_id)
            .env("CNI_NETNS", &self.netns)
            .env("CNI_IFNAME", self.ifname)
            .env("CNI_PATH", self.bin);
        if !self.args.is_empty() {
            process.env("CNI_ARGS", self.args);
        }
    }

    /// `ADD` that must succeed: its result.
    ///
    /// # Panics
    /// When it fails.
    pub fn add(&self, config: &Value) -> Value {
        self.run("ADD", config).expect_success("ADD")
    }

    /// `DEL` that must succeed and print nothing.
    ///
    /// # Panics
    /// When it does not.
    pub fn del(&self, config: &Value) {
        let reply = self.run("DEL", config);
        reply.expect_success("DEL");
        assert_eq!(reply.stdout, "", "DEL prints nothing");
    }
}

/// What one plugin process answered.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The exit code; `None` when a signal ended it.
    pub exit: Option<i32>,
    /// All of standard output.
    pub stdout: String,
    /// All of standard error.
    pub stderr: String,
}

impl Reply {
    /// Standard output as JSON; `null` when it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or(Value::Null)
    }

    /// The `code` of a CNI error object.
    ///
    /// # Panics
    /// When the call succeeded or printed no error object.
    pub fn error_code(&self) -> u64 {
        assert_ne!(self.exit, Some(0), "an error was expected: {self:?}");
        self.json()["code"].as_u64().unwrap_or_else(|| panic!("an error object was expected: {self:?}"))
    }

    /// `msg` and `details` of a CNI error object in one string.
    pub fn error_text(&self) -> String {
        let json = self.json();
        format!("{} {}", json["msg"].as_str().unwrap_or(""), json["details"].as_str().unwrap_or(""))
    }

    /// The JSON of a call that must have succeeded.
    ///
    /// # Panics
    /// When it failed.
    pub fn expect_success(&self, what: &str) -> Value {
        assert_eq!(self.exit, Some(0), "{what} succeeds: {self:?}");
        self.json()
    }
}

impl From<std::process::Output> for Reply {
    fn from(output: std::process::Output) -> Self {
        Self {
            exit: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}
