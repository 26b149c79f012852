//! Progress while a lab works, on standard error: a moving line on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lab::{Part, Progress};

/// Shows what a lab says, and keeps how long each part took.
pub(crate) struct Show {
    bar: Option<ProgressBar>,
    started: Instant,
    current: Option<(Part, Instant)>,
    took: Vec<(Part, Duration)>,
}

impl Show {
    /// Begins now.
    pub(crate) fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{spinner:.cyan} {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(80));
            bar
        });
        Self { bar, started: Instant::now(), current: None, took: Vec::new() }
    }

    /// Takes one step.
    pub(crate) fn step(&mut self, progress: &Progress) {
        let now = Instant::now();
        if self.current.is_none_or(|(part, _)| part != progress.part) {
            self.end_part(now);
            self.current = Some((progress.part, self.took.last().map_or(self.started, |_| now)));
        }
        let count = format!("{}/{}", progress.done, progress.total);
        match &self.bar {
            Some(bar) => bar.set_message(format!("{:12} {count} {}", progress.part.word(), progress.what)),
            None => {
                let line = format!("{}: {count} {}\n", progress.part.word(), progress.what);
                let _ = io::stderr().write_all(line.trim_end().as_bytes());
                let _ = io::stderr().write_all(b"\n");
            }
        }
    }

    /// Runs `print` with the moving line out of its way.
    pub(crate) fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Everything is done: how long each part took, and all together.
    pub(crate) fn finish(mut self) -> (Vec<(Part, Duration)>, Duration) {
        self.end_part(Instant::now());
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        (std::mem::take(&mut self.took), self.started.elapsed())
    }

    fn end_part(&mut self, now: Instant) {
        if let Some((part, began)) = self.current.take() {
            let took = now.duration_since(began);
            match self.took.iter_mut().find(|(known, _)| *known == part) {
                Some((_, total)) => *total += took,
                None => self.took.push((part, took)),
            }
        }
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
