//! A regular expression in the configuration.
//!
//! Read [`Pattern`]: the text and what is made of it, once, where the file is read; so one that cannot be is refused with its
//! line. Two are the same if their texts are. The syntax is that of the crate `regex`; `\d`, `\w` and `\b` are about ASCII, and
//! so are the names of links and addresses.

use regex::bytes::{Regex, RegexBuilder};
use serde::de::{Deserialize, Deserializer, Error};

/// A regular expression.
#[derive(Debug, Clone)]
pub struct Pattern(Regex);

impl Pattern {
    /// What finds a match in a text.
    #[must_use]
    pub fn regex(&self) -> &Regex {
        &self.0
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        RegexBuilder::new(&text).unicode(false).build().map(Self).map_err(|error| {
            // What is wrong stands in the last line, below a drawing of the place.
            let words = error.to_string();
            let reason = words.lines().last().unwrap_or_default();
            D::Error::custom(format!(
                "{text:?} is no regular expression: {}",
                reason.trim_start_matches("error: ")
            ))
        })
    }
}
