//! How a node fares, in the words of its agent: [`Report`], which is kept, and [`Notice`], which people read and which
//! fades.
//!
//! Both go from the agent to whoever looks after the cluster. What the cluster does with a report is in
//! [`Store::report`](crate::Store::report).

use cluster::{Key, check_subdomain};

use crate::Error;

/// Whether pods can be given a network on a node, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The node.
    pub node: String,
    /// Whether they can.
    pub ready: bool,
    /// Why, in one word for programs, such as `FairleadIsUp`: letters and digits, the first a letter.
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// The version of the agent that says so.
    pub version: String,
}

/// Something that happened on a node, and that people should hear of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Notice {
    /// The node.
    pub node: String,
    /// Whether somebody may have to do something.
    pub warning: bool,
    /// What it is, in one word for programs.
    pub reason: String,
    /// What it is, for people.
    pub message: String,
}

impl Report {
    /// A report that was given and then lost by somebody else's hand, or cannot be read: nobody can say that the node is
    /// ready.
    pub(crate) fn unknown(node: &str, message: String, version: String) -> Self {
        Self { node: node.to_owned(), ready: false, reason: "Unknown".to_owned(), message, version }
    }

    /// Its node has a possible name, and its reason is a word.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let key = check_node(&self.node)?;
        let is_word = self.reason.starts_with(|first: char| first.is_ascii_alphabetic())
            && self.reason.chars().all(|character| character.is_ascii_alphanumeric());
        if is_word {
            return Ok(());
        }
        let reason = format!("the reason of a report is a word such as NetworkReady, not {:?}", self.reason);
        Err(Error::Invalid { key, reason })
    }
}

/// A name ends up in a path, so a wrong one would lead to another place.
pub(crate) fn check_node(name: &str) -> Result<Key, Error> {
    let key = Key::Node(name.into());
    match check_subdomain(name) {
        Ok(()) => Ok(key),
        Err(error) => Err(Error::Invalid { key, reason: format!("its name {error}") }),
    }
}
