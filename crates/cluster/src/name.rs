//! Names of objects, and what Kubernetes allows in them.
//!
//! Names end up in file names, link aliases and DNS, so the store checks them once and everyone below may
//! rely on it. Rules: RFC 1123 labels (namespaces, Services) and subdomains (most other names), as in the
//! Kubernetes documentation "Object Names and IDs".

use std::fmt;
use std::sync::Arc;

/// The name of an object that lives in a namespace. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespacedName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name within it.
    pub name: Arc<str>,
}

impl NamespacedName {
    /// The name `name` in `namespace`.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for NamespacedName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// Why a text is no name of an object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No characters at all.
    #[error("is empty")]
    Empty,
    /// More characters than allowed.
    #[error("has {length} characters, more than {limit}")]
    TooLong {
        /// How many it has.
        length: usize,
        /// How many it may have.
        limit: usize,
    },
    /// A character that may not stand there.
    #[error(
        "{name:?} has {character:?} at character {place}; allowed are a-z, 0-9 and, not at either end, '-'{dot}"
    )]
    Character {
        /// The whole name.
        name: String,
        /// The offending character.
        character: char,
        /// Its place, from 1.
        place: usize,
        /// How the sentence goes on where dots are allowed.
        dot: &'static str,
    },
}

/// Checks a DNS label: at most 63 of a-z, 0-9 and '-', with '-' at neither end.
///
/// # Errors
/// [`NameError`], to be read after the field's name.
pub fn check_label(name: &str) -> Result<(), NameError> {
    check(name, 63, "")
}

/// Checks a DNS subdomain: labels joined by dots, at most 253 characters in all.
///
/// # Errors
/// [`NameError`], to be read after the field's name.
pub fn check_subdomain(name: &str) -> Result<(), NameError> {
    check(name, 253, " or '.'")
}

fn check(name: &str, limit: usize, dot: &'static str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > limit {
        return Err(NameError::TooLong { length: name.chars().count(), limit });
    }
    let alphanumeric = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    for (place, character) in name.char_indices() {
        let before = place.checked_sub(1).and_then(|at| name.as_bytes().get(at));
        let after = name.as_bytes().get(place + 1);
        let fine = match character {
            'a'..='z' | '0'..='9' => true,
            // Within a subdomain a '-' may not touch a '.', nor may two dots touch.
            '-' => {
                let joins = |byte: Option<&u8>| alphanumeric(byte) || byte == Some(&b'-');
                joins(before) && joins(after)
            }
            '.' => !dot.is_empty() && alphanumeric(before) && alphanumeric(after),
            _ => false,
        };
        if !fine {
            let place = name.get(..place).map_or(0, |head| head.chars().count()) + 1;
            return Err(NameError::Character { name: name.to_owned(), character, place, dot });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{NameError, check_label, check_subdomain};

    #[test]
    fn labels_and_subdomains_are_told_apart() {
        for good in ["a", "web-0", "0", "a--b"] {
            assert_eq!(check_label(good), Ok(()), "{good}");
            assert_eq!(check_subdomain(good), Ok(()), "{good}");
        }
        assert!(check_label("a.b").is_err());
        assert_eq!(check_subdomain("node1.example.org"), Ok(()));
        for bad in ["Web", "-a", "a-", "a..b", "a.", ".a", "a.-b", "a-.b", "a/b", "..", "a_b", "é"] {
            assert!(check_subdomain(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_error_says_which_character_is_wrong() {
        let error = check_label("weB").unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"weB\" has 'B' at character 3; allowed are a-z, 0-9 and, not at either end, '-'"
        );
        assert_eq!(check_label(""), Err(NameError::Empty));
        assert_eq!(check_label(&"a".repeat(64)), Err(NameError::TooLong { length: 64, limit: 63 }));
    }
}
