//! How a failure reaches the person at the terminal: what was tried and why it failed, then hints on lines of
//! their own.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Error;

use crate::output::Unwritable;

/// Prints the error to standard error. The exit status it asks for is the result: 1, or 0 when the only
/// failure is that the reader of our output has gone, which `fairlead ... | head` is entitled to.
pub(crate) fn report(error: &Error) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let _ = io::stderr().write_all(render(error, colour).as_bytes());
    ExitCode::FAILURE
}

/// The error's chain as one sentence, causes after colons, and every hint in it below.
pub(crate) fn render(error: &Error, colour: bool) -> String {
    let mut sentence = Vec::new();
    let mut hints = Vec::new();
    for cause in error.chain() {
        let (words, found) = split_hints(&cause.to_string());
        // A cause that the sentence already ends with was put into the text by its parent.
        if sentence.last().is_none_or(|last: &String| !last.ends_with(&words)) {
            sentence.push(words);
        }
        hints.extend(found);
    }
    hints.dedup();
    let (red, cyan, plain) = if colour { ("\u{1b}[1;31m", "\u{1b}[36m", "\u{1b}[0m") } else { ("", "", "") };
    let mut text = format!("{red}error{plain}: {}\n", sentence.join(": "));
    for hint in hints {
        text.push_str(&format!("{cyan}hint{plain}: {hint}\n"));
    }
    text
}

/// Errors carry their hints in their text, as `...; hint: ...` or `... (hint: ...)`.
fn split_hints(text: &str) -> (String, Vec<String>) {
    let mut parts = text.split("hint: ");
    let first = parts.next().unwrap_or_default();
    let mut in_brackets = first.trim_end().ends_with('(');
    let separators = |c: char| c.is_whitespace() || c == ';' || c == '(';
    let mut hints = Vec::new();
    for part in parts {
        let next_in_brackets = part.trim_end().ends_with('(');
        let hint = part.trim_end_matches(separators);
        hints.push(if in_brackets { hint.trim_end_matches(')') } else { hint }.to_owned());
        in_brackets = next_in_brackets;
    }
    (first.trim_end_matches(separators).to_owned(), hints)
}

/// Only our own output counts: an agent or a lab that hangs up in the middle of a question is a failure.
fn is_broken_pipe(error: &Error) -> bool {
    error.chain().any(|cause| {
        let output = cause.downcast_ref::<Unwritable>();
        output.is_some_and(|Unwritable(error)| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn causes_follow_after_colons_and_hints_stand_alone() {
        let cause = anyhow!("permission denied; hint: run as root");
        let text = render(&cause.context("cannot make a bridge (hint: load the module)"), false);
        assert_eq!(
            text,
            "error: cannot make a bridge: permission denied\nhint: load the module\nhint: run as root\n"
        );
    }

    #[test]
    fn each_of_several_hints_stands_alone() {
        let text = render(&anyhow!("it ended: no store; hint: make it; hint: its log is x"), false);
        assert_eq!(text, "error: it ended: no store\nhint: make it\nhint: its log is x\n");
    }

    #[test]
    fn a_cause_that_is_in_the_text_already_is_not_said_twice() {
        let error = anyhow!("no such file").context("cannot read x: no such file");
        assert_eq!(render(&error, false), "error: cannot read x: no such file\n");
    }

    #[test]
    fn a_reader_that_has_gone_is_no_failure() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(&Error::from(Unwritable(broken())).context("cannot show the nodes")));
        assert!(!is_broken_pipe(&Error::from(broken()).context("ask the agent")));
    }
}
