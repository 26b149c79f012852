//! What a plugin is, and what it is asked.
//!
//! [`Plugin`] is the trait that every plugin implements, one method a command; [`Request`] is what it gets: the
//! environment and the configuration, decoded and checked. `serve` makes requests from a process's environment,
//! `chain` from an attachment, and [`crate::delegate`] hands a request on to another plugin.
//! A method that is called can rely on what the protocol promises: see [`Request`].
//! Source: CNI specification section 2, "Execution Protocol".

use std::fmt;
use std::path::PathBuf;

use crate::config::{Attachment, Config};
use crate::environment::Arguments;
use crate::error::Error;
use crate::result::AddResult;
use crate::version::Version;

/// A CNI plugin.
pub trait Plugin: Sync {
    /// The name of its executable: the `type` that configurations call it by.
    fn name(&self) -> &'static str;

    /// The versions of the protocol that it speaks.
    fn versions(&self) -> &'static [Version] {
        &Version::ALL
    }

    /// ADD: make the interface, or change what earlier plugins made, and say what there is now.
    /// Whatever an ADD that fails has made, it takes away again.
    ///
    /// # Errors
    /// When the container is not attached.
    fn add(&self, request: &Request) -> Result<AddResult, Error>;

    /// DEL: take away what ADD made. What is not there is a success; as much as possible is cleaned before failing.
    ///
    /// # Errors
    /// When something of the container's remains.
    fn del(&self, request: &Request) -> Result<(), Error>;

    /// CHECK: say whether what ADD made is still there. Changes nothing.
    ///
    /// # Errors
    /// When something is missing or differs.
    fn check(&self, request: &Request) -> Result<(), Error>;

    /// GC: take away everything of this network that belongs to no attachment in
    /// [`Request::valid_attachments`]. Goes on after a failure and reports all.
    ///
    /// # Errors
    /// When something stale remains.
    fn gc(&self, request: &Request) -> Result<(), Error>;

    /// STATUS: say whether an ADD would succeed now. Asked every few seconds: cheap, and changes nothing.
    ///
    /// # Errors
    /// Code 50 when an ADD would fail, 51 when existing containers suffer too.
    fn status(&self, request: &Request) -> Result<(), Error>;
}

/// What a runtime can ask of a plugin, besides VERSION, which is answered without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach a container.
    Del,
    /// Verify an attachment.
    Check,
    /// Remove what belongs to no container.
    Gc,
    /// Tell whether ADD would work.
    Status,
}

impl Command {
    /// The command as CNI_COMMAND has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
        }
    }

    /// Whether the command is about one container, and so comes with its id and interface.
    #[must_use]
    pub const fn names_container(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Finds the plugin of a type among those of this very program: one visible list, in the binary.
pub type Resolver = fn(&str) -> Option<&'static dyn Plugin>;

/// One call of a plugin.
///
/// When a plugin gets it, this holds: the container's id and the interface's name are well formed (ADD, DEL,
/// CHECK; empty otherwise); `netns` is there for ADD and CHECK, and is not the plugin's own namespace for ADD and DEL;
/// GC has a list of valid attachments; the version allows the command.
#[derive(Clone, Debug)]
pub struct Request {
    /// What is asked.
    pub command: Command,
    /// The container's id; empty for GC and STATUS.
    pub container_id: String,
    /// The path of the container's network namespace; `None` for GC and STATUS, and for a DEL after the namespace
    /// has gone. The path may lead nowhere.
    pub netns: Option<PathBuf>,
    /// The interface's name in the container; empty for GC and STATUS.
    pub ifname: String,
    /// CNI_ARGS as it came; read through [`Request::arguments`].
    pub args: String,
    /// The directories in which plugins are looked for.
    pub path: Vec<PathBuf>,
    /// The network configuration.
    pub config: Config,
    /// The plugins of this program, for delegation in the same process; `None` to start delegates as processes.
    pub resolver: Option<Resolver>,
}

impl Request {
    /// The pairs of CNI_ARGS, refusing keys other than `known` unless the runtime says `IgnoreUnknown=1`.
    ///
    /// # Errors
    /// Code 4 when a pair is malformed or a key unknown.
    pub fn arguments(&self, known: &[&str]) -> Result<Arguments<'_>, Error> {
        Arguments::parse(&self.args, known)
    }

    /// The namespace's path where the command has one for sure: ADD and CHECK.
    ///
    /// # Errors
    /// Code 4 when there is none.
    pub fn netns(&self) -> Result<&std::path::Path, Error> {
        self.netns.as_deref().ok_or_else(|| Error::environment("required env variables [CNI_NETNS] missing"))
    }

    /// The attachments that a GC must keep.
    #[must_use]
    pub fn valid_attachments(&self) -> &[Attachment] {
        self.config.valid_attachments.as_deref().unwrap_or_default()
    }

    /// This attachment: the container and its interface.
    #[must_use]
    pub fn attachment(&self) -> Attachment {
        Attachment { container_id: self.container_id.clone(), ifname: self.ifname.clone() }
    }

    /// The same call with another configuration, for a plugin that writes its delegate's configuration itself.
    #[must_use]
    pub fn with_config(&self, config: Config) -> Self {
        Self { config, ..self.clone() }
    }

    /// The same call with another command: to undo an ADD at a delegate with DEL.
    #[must_use]
    pub fn with_command(&self, command: Command) -> Self {
        Self { command, ..self.clone() }
    }
}
