//! A plugin disturbed at every step it takes: killed there, or told by the kernel that it failed.
//!
//! Read [`every_step`], which goes through the system calls one by one, and [`Call::disturbed`], which runs a
//! call under `strace` and disturbs one of them. A step is disturbed *before* it happens. [`Call::stopped`] halts a
//! call *behind* a step, for what another does in the meantime.

use std::{
    io::Write,
    process::{Child, Command, Stdio},
};

use serde_json::Value;
use tempfile::NamedTempFile;

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

/// A call that stands still behind one of its steps, until it is let go.
#[derive(Debug)]
pub struct Stopped {
    tracer: Child,
    trace: NamedTempFile,
}

impl Stopped {
    /// Whether the call got to that step at all. It stands still by now, or it has ended.
    pub fn is_standing(&mut self) -> bool {
        crate::eventually("the call stands still or ends", || {
            let traced = std::fs::read_to_string(self.trace.path()).unwrap_or_default();
            if traced.contains("stopped by SIGSTOP") {
                return Some(true);
            }
            self.tracer.try_wait().expect("the tracer can be asked").map(|_| false)
        })
    }

    /// Lets the call go on, and awaits its answer.
    ///
    /// # Panics
    /// When it cannot be awaited.
    pub fn finish(self) -> Reply {
        let id = self.tracer.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        for child in children.split_whitespace() {
            let process = child.parse().ok().and_then(rustix::process::Pid::from_raw);
            let process = process.expect("a process id");
            // It may have ended by now.
            let _ = rustix::process::kill_process(process, rustix::process::Signal::CONT);
        }
        Reply::from(self.tracer.wait_with_output().expect("the plugin ends"))
    }
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
    /// Starts the call and stops it right after one step, so that something else can happen there.
    ///
    /// # Panics
    /// When `strace` cannot be started.
    pub fn stopped(&self, command: &str, config: &Value, step: Step) -> Stopped {
        let (tracer, trace) = self.traced(command, config, "signal=SIGSTOP", step);
        Stopped { tracer, trace }
    }

    /// Runs the call and disturbs it at one step.
    ///
    /// # Panics
    /// When `strace` cannot be started.
    pub fn disturbed(&self, command: &str, config: &Value, how: Disturbance, step: Step) -> Outcome {
        let what = match how {
            Disturbance::Kill => "signal=SIGKILL",
            Disturbance::Fail => "error=ENOMEM",
        };
        let (child, trace) = self.traced(command, config, what, step);
        let output = child.wait_with_output().expect("the plugin ends");
        let traced = std::fs::read_to_string(trace.path()).unwrap_or_default();
        let reached = traced.contains("(INJECTED)") || traced.contains("killed by SIGKILL");
        Outcome { reply: Reply::from(output), reached }
    }

    /// Starts the call under strace, which injects `what` at a step and writes the trace down.
    fn traced(&self, command: &str, config: &Value, what: &str, step: Step) -> (Child, NamedTempFile) {
        let Step { name, number } = step;
        let trace = NamedTempFile::new().expect("a temporary file");
        let mut process = self.host.command("strace");
        process.args(["-f", "-qq", "-o"]).arg(trace.path()).arg("-e").arg(format!("trace={name}"));
        process.arg("-e").arg(format!("inject={name}:{what}:when={number}"));
        process.arg(self.bin.join(self.plugin));
        self.environment(command, &mut process);
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = process.spawn().expect("strace starts");
        // A plugin that is killed before it reads closes the pipe.
        let _ = child.stdin.take().expect("stdin is piped").write_all(config.to_string().as_bytes());
        (child, trace)
    }
}
