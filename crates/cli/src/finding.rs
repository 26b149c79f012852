//! What an examination finds: the form that every doctor reports in.
//!
//! Read [`Finding`]: how bad, about what, what is so, what to do. [`report`] prints a list of them, the worst first, and
//! says by the exit status whether there is an error among them.

use std::ffi::OsStr;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use crate::output::OutputOption;
use crate::table::Table;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// It does not work, or leaves something behind.
    Error,
    /// Something that was meant does not happen, or will hurt later.
    Warning,
    /// Good to know.
    Note,
}

impl Severity {
    fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    /// What it is about: a file, a link, a sysctl.
    pub(crate) subject: String,
    /// What is so.
    pub(crate) problem: String,
    /// What to do about it; empty when nothing needs to be done.
    pub(crate) fix: String,
}

impl Finding {
    pub(crate) fn new(
        severity: Severity,
        subject: impl AsRef<OsStr>,
        problem: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        let subject = subject.as_ref().to_string_lossy().into_owned();
        Self { severity, subject, problem: problem.into(), fix: fix.into() }
    }

    pub(crate) fn error(
        subject: impl AsRef<OsStr>,
        problem: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::new(Severity::Error, subject, problem, fix)
    }

    pub(crate) fn warning(
        subject: impl AsRef<OsStr>,
        problem: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::new(Severity::Warning, subject, problem, fix)
    }

    /// Good to know, and nothing needs to be done.
    pub(crate) fn note(subject: impl AsRef<OsStr>, problem: impl Into<String>) -> Self {
        Self::new(Severity::Note, subject, problem, "")
    }

    /// Something that could not be looked at.
    pub(crate) fn unseen(subject: impl AsRef<OsStr>, cause: &anyhow::Error) -> Self {
        let text = crate::failure::render(cause, false);
        // The hints say what root would have.
        let sentence = text.lines().next().unwrap_or_default();
        let sentence = sentence.strip_prefix("error: ").unwrap_or(sentence);
        Self::new(Severity::Note, subject, format!("could not be looked at: {sentence}"), "run it as root")
    }
}

/// The worst first, each once.
pub(crate) fn sort(findings: &mut Vec<Finding>) {
    findings.sort();
    findings.dedup();
}

/// Prints them; the exit status is 1 when there is an error among them.
pub(crate) fn report(findings: &[Finding], form: OutputOption) -> Result<ExitCode> {
    form.output.print(&findings, |findings, _| vec![table(findings)])?;
    let failed = findings.iter().any(|finding| finding.severity == Severity::Error);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn table(findings: &[Finding]) -> Table {
    let mut table = Table::new(["SEVERITY", "SUBJECT", "PROBLEM", "FIX"]);
    for finding in findings {
        table.row([
            finding.severity.name(),
            finding.subject.as_str(),
            finding.problem.as_str(),
            finding.fix.as_str(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_first_and_what_was_found_twice_is_told_once() {
        let mut findings = vec![
            Finding::note("b", "known"),
            Finding::warning("a", "doubtful", "look"),
            Finding::error("c", "broken", "mend"),
            Finding::note("b", "known"),
        ];
        sort(&mut findings);
        let subjects: Vec<&str> = findings.iter().map(|finding| finding.subject.as_str()).collect();
        assert_eq!(subjects, ["c", "a", "b"]);
        let text = table(&findings).render(false);
        assert!(
            text.starts_with("SEVERITY  SUBJECT  PROBLEM   FIX\nerror     c        broken    mend\n"),
            "{text}"
        );
    }
}
