//! What can go wrong with the store as a whole. A single broken file is no error but a [`Problem`].

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};

use cluster::Key;

use crate::{Problem, Version};

/// Why the store could not do what was asked.
///
/// [`Unavailable`](Self::Unavailable) may pass: keep working with what is known and try again when a watcher
/// says so. [`Conflict`](Self::Conflict) asks for a fresh look at the object. The others need a person.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The directory is not there, is no directory, or cannot be read; the API server or etcd does not answer, or not now.
    #[error("{store} is not available (hint: {hint})")]
    Unavailable {
        /// The store, as people know it.
        store: String,
        /// What may help.
        hint: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// It is not known where the API server is, or as whom to ask it.
    #[error(
        "find the way to the Kubernetes API by {origin} (hint: --store kubernetes:KUBECONFIG names a kubeconfig; within a pod, the service account is mounted)"
    )]
    Access {
        /// What was to tell it.
        origin: String,
        /// Why it does not.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// It is not known how to reach etcd, or as whom.
    #[error("open the store etcd:{endpoints}: {reason} (hint: {hint})")]
    Etcd {
        /// Its members.
        endpoints: String,
        /// What is wrong.
        reason: String,
        /// What may help.
        hint: &'static str,
    },
    /// etcd does not let this user.
    #[error(
        "{server} forbids {what} (hint: etcdctl role grant-permission ROLE readwrite --prefix=true {prefix}/)"
    )]
    Denied {
        /// etcd, as people know it.
        server: String,
        /// Whom, and to do what.
        what: String,
        /// What all our keys begin with.
        prefix: String,
    },
    /// The API server does not let us. The hint is the rule to add, as it stands in a role.
    #[error("{server} forbids to {verb} {resource}{place} (hint: add to the {role} that this account is bound to: {{apiGroups: [{group:?}], resources: [{resource:?}], verbs: [{verb:?}]}})", place = namespace.as_deref().map_or_else(String::new, |namespace| format!(" in namespace {namespace}")), role = if namespace.is_some() { "Role" } else { "ClusterRole" })]
    Forbidden {
        /// The API server, as people know it.
        server: String,
        /// What was tried.
        verb: &'static str,
        /// On what.
        resource: &'static str,
        /// The API group of the resource.
        group: &'static str,
        /// In which namespace; none stands for the whole cluster.
        namespace: Option<String>,
    },
    /// The API server, or etcd, refused what no trying again will change.
    #[error("{server} refused to {verb} {what}: {reason}")]
    Refused {
        /// The API server, as people know it.
        server: String,
        /// What was tried.
        verb: &'static str,
        /// On what.
        what: String,
        /// What it said.
        reason: String,
    },
    /// A lease is part of a Node object, as is a report, and there is none.
    #[error(
        "{key} cannot be kept: there is no Node object {node} (hint: the kubelet makes it; is the node called so?)"
    )]
    NoNode {
        /// What was to be written.
        key: Key,
        /// The node.
        node: String,
    },
    /// Others write objects of that kind.
    #[error("{key} is not Fairlead's to write: {reason}")]
    NotOurs {
        /// The object.
        key: Key,
        /// Whose it is.
        reason: &'static str,
    },
    /// A thread cannot be started.
    #[error("start thread {name}")]
    Thread {
        /// What for.
        name: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The operating system refused something.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// Changes cannot be watched.
    #[error("cannot watch {path} for changes (hint: raise sysctl {limit})")]
    WatchLimit {
        /// The directory.
        path: PathBuf,
        /// The limit that is exhausted.
        limit: &'static str,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The object is not as the writer expected.
    #[error("{key} is not as expected: {}", found.map_or_else(|| "it is not there, or cannot be read".to_owned(), |version| format!("its version is {version}")))]
    Conflict {
        /// The object.
        key: Key,
        /// Its version now; none if it is not there or cannot be read.
        found: Option<Version>,
    },
    /// The object stands in a manifest that is not ours to change.
    #[error("{key} is given by {file}, which Fairlead does not write (hint: edit that file)")]
    Foreign {
        /// The object.
        key: Key,
        /// The manifest.
        file: PathBuf,
    },
    /// The object would not be readable again.
    #[error("cannot write {key}: {reason}")]
    Invalid {
        /// The object.
        key: Key,
        /// What is wrong with it.
        reason: String,
    },
    /// The object is there, but cannot be read, and nobody remembers what it was. It must not pass for one that is gone.
    #[error("cannot read {key}: {problem}")]
    Unreadable {
        /// The object.
        key: Key,
        /// Where it is, and what is wrong with it.
        problem: Box<Problem>,
    },
    /// A manifest that was to be put into the store is not good.
    #[error("cannot take the manifest: {}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Manifest {
        /// All that is wrong with it.
        problems: Vec<Problem>,
    },
}

impl Error {
    pub(crate) fn directory_away(path: &Path, source: io::Error) -> Self {
        Self::Unavailable {
            store: format!("store directory {}", path.display()),
            hint: "create it, or correct --store dir:PATH",
            source: Box::new(source),
        }
    }
}
