//! Waiting for an event, and saying that a test could not run.

use std::{
    fs::OpenOptions,
    io::Write,
    time::{Duration, Instant},
};

/// Asks `probe` again and again until it has an answer, and returns that.
///
/// The pauses start at a millisecond and grow to fifty, so a quick event costs little and a slow one does
/// not burn the machine.
///
/// # Panics
/// When a minute has passed, which on a busy machine is not long, or as many seconds as `FAIRLEAD_PATIENCE` says, for
/// machines that are slow: the message is `what`.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let told = std::env::var("FAIRLEAD_PATIENCE").ok().and_then(|seconds| seconds.parse().ok());
    let patience = Duration::from_secs(told.unwrap_or(60));
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Says that a test cannot run here and why. The caller returns at once after it.
///
/// The line goes to standard error and, when `FAIRLEAD_NOT_RUN` names a file, to the end of that file:
/// `cargo xtask test` prints them all below its results, so that nothing counts as tested that was not.
pub fn not_run(reason: &str) {
    let thread = std::thread::current();
    let line = format!("{}: not run, because {reason}\n", thread.name().unwrap_or("a test"));
    eprint!("{line}");
    if let Ok(path) = std::env::var("FAIRLEAD_NOT_RUN") {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}
