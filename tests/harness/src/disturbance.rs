//! A plugin disturbed at every step it takes: killed there, or told by the kernel that it failed.
//!
//! Read [`every_step`], which goes through the system calls one by one, and [`Call::disturbed`], which runs a
//! call under `strace` and disturbs one of them. A step is disturbed *before* it happens.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{Call, Reply};

/// The system calls by which a plugin changes or learns anything.
const CALLS: &str = "socket sendto recvfrom read write pwrite64 openat open rename renameat renameat2 unlink unlinkat \
    mkdir mkdirat link linkat symlinkat readlinkat utimensat setns flock fsync fdatasync";

/// One step: the `number`th time that the system call `name` is made.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// The system call.
    pub name: &'static str,
    /// Which of its calls, from 1.
    pub number: u32,
}

/// What is done to a step.
#[derive(Debug, Clone, Copy)]
pub enum Disturbance {
    /// The process is killed as by `kill -9`.
    Kill,
    /// The system call does nothing and reports that memory is short.
    Fail,
}

/// What came of a disturbed call.
#[derive(Debug)]
pub struct Outcome {
    /// The plugin's answer.
    pub reply: Reply,
    /// Whether the plugin got to that step at all.
    pub reached: bool,
}

/// Whether `strace` can trace here.
pub fn strace_works() -> bool {
    let works = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status();
    works.is_ok_and(|status| status.success())
}

/// Goes through the steps one after the other: `disturb` tells whether there was such a step. Returns how many
/// there were.
///
/// # Panics
/// When a call is made without end.
pub fn every_step(mut disturb: impl FnMut(Step) -> bool) -> usize {
    let steps_of = |name| {
        let reached = (1..200).take_while(|number| disturb(Step { name, number: *number })).count();
        assert!(reached < 199, "{name} never ends");
        reached
    };
    CALLS.split_whitespace().map(steps_of).sum()
}

impl Call<'_> {
    /// Runs the call and disturbs it at one step.
    ///
    /// # Panics
    /// When `strace` cannot be started.
    pub fn disturbed(&self, command: &str, config: &Value, how: Disturbance, step: Step) -> Outcome {
        let Step { name, number } = step;
        let what = match how {
            Disturbance::Kill => "signal=SIGKILL",
            Disturbance::Fail => "error=ENOMEM",
        };
        let trace = tempfile::NamedTempFile::new().expect("a temporary file");
        let mut process = self.host.command("strace");
        process.args(["-f", "-qq", "-o"]).arg(trace.path()).arg("-e").arg(format!("trace={name}"));
        process.arg("-e").arg(format!("inject={name}:{what}:when={number}"));
        process.arg(self.bin.join(self.plugin));
        self.environment(command, &mut process);
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = process.spawn().expect("strace starts");
        // A plugin that is killed before it reads closes the pipe.
        let _ = child.stdin.take().expect("stdin is piped").write_all(config.to_string().as_bytes());
        let output = child.wait_with_output().expect("the plugin ends");
        let traced = std::fs::read_to_string(trace.path()).unwrap_or_default();
        let reached = traced.contains("(INJECTED)") || traced.contains("killed by SIGKILL");
        Outcome { reply: Reply::from(output), reached }
    }
}
