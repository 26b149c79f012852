//! Policies as nf_tables: the parts that a node's table is made of, each a pure function of what it stands for.
//!
//! Read [`frame`](frame::frame) first, the part that never changes: packets that begin a connection are dispatched by the
//! address of a local pod, through its [`class`], to a chain for each direction. Then [`Profile`](profile::Profile):
//! which policies are about a pod; pods with one profile share its chain. A profile's chain jumps to a chain for each
//! NetworkPolicy ([`rules`]), whose rules look up sets ([`set::Set`]). What is the same has the same name, made
//! from what it stands for, so that two policies with the same peers share one set.
//!
//! What stays true:
//! - an accepted packet leaves its hook's chain at once; a direction never answers for the other one, for each has a base
//!   chain of its own;
//! - exceptions are subtracted from their block before it becomes a set; no element ever means "not this one";
//! - pods, nodes and names are elements; rules change with policies only.

pub(crate) mod class;
pub(crate) mod frame;
pub(crate) mod networks;
pub(crate) mod origin;
pub(crate) mod profile;
pub(crate) mod rules;
pub(crate) mod set;

use sha2::{Digest, Sha256};

/// A name for what `text` says: the same for the same text, on every node and in every version.
pub(crate) fn named(kind: &str, text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    let hex: String = digest.iter().take(10).map(|byte| format!("{byte:02x}")).collect();
    format!("{kind}-{hex}")
}
