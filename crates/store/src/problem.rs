//! What is wrong with one file or object of the store, told so that it can be mended.

use std::fmt::{self, Write};
use std::path::PathBuf;

use crate::manifest::Fault;

/// Something in the store that could not be taken as it stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file or directory; in the Kubernetes API the object's path, such as `/api/v1/nodes/node1`.
    pub file: PathBuf,
    /// The line, from 1; 0 if it concerns the file as a whole.
    pub line: u32,
    /// The column in characters, from 1; 0 if unknown.
    pub column: u32,
    /// The object, as far as it is known: kind and name.
    pub object: Option<String>,
    /// The field, as a path from the object: `spec.podCIDRs[1]`.
    pub field: Option<String>,
    /// What is wrong, to be read after the field.
    pub reason: String,
    /// What may help.
    pub hint: Option<String>,
}

impl Problem {
    pub(crate) fn of(file: PathBuf, fault: Fault) -> Self {
        let Fault { place, object, field, reason, hint } = fault;
        Self { file, line: place.line, column: place.column, object, field, reason, hint }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let out = &mut Printable(out);
        write!(out, "{}", self.file.display())?;
        if self.line > 0 {
            write!(out, ":{}", self.line)?;
        }
        if self.line > 0 && self.column > 0 {
            write!(out, ":{}", self.column)?;
        }
        out.write_str(":")?;
        if let Some(object) = &self.object {
            write!(out, " {object}:")?;
        }
        if let Some(field) = &self.field {
            write!(out, " {field}")?;
        }
        write!(out, " {}", self.reason)?;
        match &self.hint {
            Some(hint) => write!(out, " (hint: {hint})"),
            None => Ok(()),
        }
    }
}

/// Names in a file and names of files may hold anything; on a terminal they must not act, nor begin a line.
struct Printable<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for Printable<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(char::is_control) {
            let end = part.trim_end_matches(char::is_control);
            self.0.write_str(end)?;
            let control = part.get(end.len()..).unwrap_or_default();
            write!(self.0, "{}", control.escape_default())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Problem;

    #[test]
    fn a_problem_cannot_act_on_the_terminal_that_shows_it() {
        let problem = Problem {
            file: "a\nb\u{1b}[2J.yaml".into(),
            line: 3,
            column: 0,
            object: Some("Pod x\ry".into()),
            field: None,
            reason: "is wrong".into(),
            hint: Some("mend it".into()),
        };
        assert_eq!(problem.to_string(), r"a\nb\u{1b}[2J.yaml:3: Pod x\ry: is wrong (hint: mend it)");
    }
}
