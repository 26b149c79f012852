//! What can go wrong with a lab, in the words of the person at the terminal.

use std::io;
use std::path::PathBuf;

/// The one error of this crate. Nothing here is worth an automatic retry: each variant says what to mend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A lab's name has to fit a directory and a node's interface names.
    #[error(
        "{name:?} cannot name a lab; hint: 1 to 40 of a-z, 0-9 and '-', beginning with a letter or digit"
    )]
    Name {
        /// What was asked for.
        name: String,
    },
    /// The number of nodes is bounded by the underlay's /24.
    #[error("a lab has 1 to 250 nodes, not {nodes}")]
    Nodes {
        /// What was asked for.
        nodes: usize,
    },
    /// A lab of this name is running.
    #[error(
        "lab {name} is already up; hint: `fairlead lab down --name {name}` ends it; another --name makes a second one"
    )]
    AlreadyUp {
        /// The lab.
        name: String,
    },
    /// No lab of this name is running.
    #[error("lab {name} is not up; hint: `fairlead lab up --name {name}` starts it{}", up(others))]
    NotUp {
        /// The lab.
        name: String,
        /// The labs that are.
        others: Vec<String>,
    },
    /// None of the places for a lab's files can be written.
    #[error(
        "no directory for the lab's files; tried {tried}; hint: set XDG_RUNTIME_DIR to a directory of yours"
    )]
    NoHome {
        /// The candidates, with the reasons.
        tried: String,
    },
    /// A file operation failed.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// The verb.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The machine does not let this user make namespaces.
    #[error(
        "cannot make namespaces as this user; hint: run as root, or allow unprivileged user namespaces \
         (sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces)"
    )]
    UserNamespace {
        /// What the kernel said.
        source: kernel::Error,
    },
    /// The kernel refused a part of the lab's own network.
    #[error("cannot {doing}")]
    Kernel {
        /// What was being made.
        doing: String,
        /// What the kernel said.
        source: kernel::Error,
    },
    /// A program could not be started.
    #[error("cannot start {program}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The supervisor ended before the lab was up.
    #[error("the lab's supervisor ended before the lab was up{log}")]
    SupervisorEnded {
        /// The last lines of its log, set off by a line break, or nothing.
        log: String,
    },
    /// The supervisor said no.
    #[error("{reason}")]
    Refused {
        /// Its words.
        reason: String,
    },
    /// The supervisor's answer could not be read.
    #[error("the lab's supervisor gave an answer that cannot be read")]
    Answer {
        /// Where the decoding stopped.
        source: serde_json::Error,
    },
    /// No node of that name.
    #[error("lab {lab} has no node {node}; hint: `fairlead lab list --name {lab}` lists them")]
    NoSuchNode {
        /// The lab.
        lab: String,
        /// The node, as it was asked for.
        node: String,
    },
    /// No pod of that name.
    #[error("lab {lab} has no pod {pod}; hint: `fairlead lab pods --name {lab}` lists them")]
    NoSuchPod {
        /// The lab.
        lab: String,
        /// The pod, as it was asked for.
        pod: String,
    },
    /// The process may start no more threads or open no more descriptors.
    #[error("the lab's supervisor cannot go on")]
    Thread {
        /// Why.
        source: io::Error,
    },
    /// A probe could not be made.
    #[error("cannot open the probe's sockets in the pods")]
    Probe {
        /// Why.
        source: io::Error,
    },
    /// A manifest is not good; none of those given with it has been taken.
    #[error(transparent)]
    Manifest(store::Error),
    /// Two manifests would be one file in the store.
    #[error(
        "{} and {} would both be {name} in the lab's store; hint: rename one, or name the directory above both",
        first.display(), second.display()
    )]
    SameName {
        /// What either would be called.
        name: String,
        /// The one that was given first.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A directory that was given has nothing to give.
    #[error("no manifests in {}; hint: their names end in .yaml, .yml or .json", path.display())]
    NoManifests {
        /// The directory.
        path: PathBuf,
    },
    /// The store failed.
    #[error("the lab's store failed")]
    Store {
        /// How.
        source: store::Error,
    },
}

fn up(others: &[String]) -> String {
    if others.is_empty() { String::new() } else { format!("; hint: what is up is {}", others.join(", ")) }
}

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For `map_err` on a file operation.
    pub(crate) fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { doing, path, source }
    }

    /// For `map_err` on a kernel operation.
    pub(crate) fn kernel(doing: impl Into<String>) -> impl FnOnce(kernel::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Kernel { doing, source }
    }
}
