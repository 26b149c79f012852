//! What is wrong with one file of the store, told so that it can be mended.

use std::fmt;
use std::path::PathBuf;

use crate::manifest::Fault;

/// Something in the directory that could not be taken as it stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file or directory.
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
