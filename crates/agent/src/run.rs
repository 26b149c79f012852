//! Starting an agent: its parts in order, each with the reason for its place.

use crate::Options;

/// Why an agent ended, or could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not built yet.
    #[error("run the agent of node {0}: not built yet")]
    Unfinished(String),
}

/// Runs an agent in the calling thread's network namespace until SIGTERM or SIGINT, which leave the network as it
/// is.
///
/// # Errors
/// When it cannot start: bad configuration, no store, overlapping networks. Once started it does not give up.
pub fn run(options: &Options) -> Result<(), Error> {
    Err(Error::Unfinished(options.node.clone()))
}

/// Removes everything an agent made in the calling thread's network namespace and returns the steps taken, one a
/// line. Pods keep their links; their routes to other nodes are gone.
///
/// # Errors
/// When the kernel cannot be read or changed.
pub fn clean(options: &Options) -> Result<Vec<String>, Error> {
    Err(Error::Unfinished(options.node.clone()))
}
