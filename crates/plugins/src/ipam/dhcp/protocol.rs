//! What plugin and daemon say to each other: one line of JSON there, one line back, on a stream socket.
//!
//! Read [`Call`] and [`Answer`]. A call carries the network configuration as the plugin got it, so both read it
//! with the same code. The plugin keeps its half of the connection open until it has the answer: one that
//! hangs up before does not want the address any more.
//!
//! The reference speaks Go's own remote procedure calls here, which no other language does: its plugin and our
//! daemon do not understand each other, nor the other way round.

use std::path::PathBuf;

use cni::{AddResult, Attachment, Config, Error, FieldError, Fields, Json, Request, Version};

/// No line is longer.
pub(crate) const LONGEST_LINE: usize = 1 << 20;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Lease an address and keep it.
    Allocate,
    /// Is it still leased, and still the one in `prevResult`?
    Check,
    /// Give it back.
    Release,
    /// Give back what belongs to no attachment in the configuration's list.
    Collect,
    /// Is anybody there?
    Status,
}

impl Verb {
    const ALL: [Self; 5] = [Self::Allocate, Self::Check, Self::Release, Self::Collect, Self::Status];

    fn as_str(self) -> &'static str {
        match self {
            Self::Allocate => "allocate",
            Self::Check => "check",
            Self::Release => "release",
            Self::Collect => "collect",
            Self::Status => "status",
        }
    }
}

/// A question.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// What is asked.
    pub(crate) verb: Verb,
    /// Whom it is about; empty parts for what is about all.
    pub(crate) attachment: Attachment,
    /// The path of the pod's namespace; empty when it is gone.
    pub(crate) netns: PathBuf,
    /// CNI_ARGS.
    pub(crate) args: String,
    /// The network configuration.
    pub(crate) config: Config,
}

impl Call {
    /// What a plugin's request asks of the daemon.
    pub(crate) fn of(verb: Verb, request: &Request) -> Self {
        // The daemon may run in another directory.
        let netns = request.netns.clone().unwrap_or_default();
        Self {
            verb,
            attachment: request.attachment(),
            netns: std::path::absolute(&netns).unwrap_or(netns),
            args: request.args.clone(),
            config: request.config.clone(),
        }
    }

    /// `<containerID>/<network>/<ifname>`: what a lease is known by, and the reference's client identifier.
    pub(crate) fn name(&self) -> String {
        name_of(&self.config.name, &self.attachment)
    }

    /// The call as a line.
    pub(crate) fn to_line(&self) -> Vec<u8> {
        line(&Json::object([
            ("call", Json::from(self.verb.as_str())),
            ("containerID", Json::from(self.attachment.container_id.as_str())),
            ("ifname", Json::from(self.attachment.ifname.as_str())),
            ("netns", Json::from(&*self.netns.to_string_lossy())),
            ("args", Json::from(self.args.as_str())),
            ("config", self.config.document().clone()),
        ]))
    }

    /// The call in a line.
    ///
    /// # Errors
    /// Code 6 when it is none.
    pub(crate) fn parse(line: &[u8]) -> Result<Self, Error> {
        let document = Json::parse(line).map_err(|error| Error::undecodable(error.to_string()))?;
        let fields = Fields::of(&document)?;
        let said = fields.string("call")?;
        let verb = Verb::ALL.into_iter().find(|verb| verb.as_str() == said);
        let config = fields.raw("config").cloned().unwrap_or(Json::Null);
        Ok(Self {
            verb: verb.ok_or_else(|| Error::from(fields.bad("call", format!("{said:?} is unknown"))))?,
            attachment: attachment(&fields)?,
            netns: PathBuf::from(fields.string("netns")?),
            args: fields.string("args")?.to_owned(),
            config: Config::from_json(config, &Version::ALL)?,
        })
    }
}

/// The name of an attachment's lease. No part can contain the separator.
pub(crate) fn name_of(network: &str, attachment: &Attachment) -> String {
    format!("{}/{network}/{}", attachment.container_id, attachment.ifname)
}

/// The attachment that an object names.
pub(crate) fn attachment(fields: &Fields<'_>) -> Result<Attachment, FieldError> {
    Ok(Attachment {
        container_id: fields.string("containerID")?.to_owned(),
        ifname: fields.string("ifname")?.to_owned(),
    })
}

/// An answer: what was leased, where something was asked for, or why not.
pub(crate) type Answer = Result<AddResult, Error>;

/// An answer as a line.
pub(crate) fn answer_to_line(answer: &Answer) -> Vec<u8> {
    let member = match answer {
        Ok(result) => ("result", result.to_json(Version::LATEST).unwrap_or(Json::Null)),
        Err(error) => ("error", error.to_json(Version::LATEST)),
    };
    line(&Json::object([member]))
}

/// The answer in a line.
///
/// # Errors
/// The daemon's, or code 6 when the line is no answer.
pub(crate) fn parse_answer(line: &[u8]) -> Answer {
    let document = Json::parse(line).map_err(|error| Error::undecodable(error.to_string()))?;
    let fields = Fields::of(&document)?;
    if let Some(error) = fields.raw("error") {
        let known = Error::decode(&error.to_bytes());
        return Err(known.unwrap_or_else(|| Error::undecodable("the error of the daemon cannot be read")));
    }
    match fields.raw("result") {
        Some(result) => AddResult::from_json(result, Version::LATEST),
        None => Err(Error::undecodable("neither a result nor an error")),
    }
}

fn line(document: &Json) -> Vec<u8> {
    let mut bytes = document.to_bytes();
    bytes.push(b'\n');
    bytes
}
