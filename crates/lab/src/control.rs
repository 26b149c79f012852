//! The words between a client and a lab's supervisor: JSON, one value a line, over the unix socket of the
//! lab's home.
//!
//! A client connects, sends one [`Request`] and reads [`Line`]s: any number of [`Line::Progress`], then one
//! [`Line::Done`] or [`Line::Failed`]. The supervisor says the same lines on its standard output while it
//! starts. Both ends are of one build, so the words may change with it.

use std::io::{BufRead, BufReader, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "camelCase")]
pub(crate) enum Request {
    /// A [`crate::Listing`], at once.
    List,
    /// A [`crate::Listing`], once every node is ready and these pods (`namespace/name`) are wired.
    Settle {
        /// The pods to wait for besides those the store already has.
        pods: Vec<String>,
    },
    /// A [`crate::Probe`].
    Probe(ProbeRequest),
    /// The end of the lab; answered when all is gone.
    Down,
}

/// What to probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProbeRequest {
    /// Milliseconds to spend on throughput across nodes; 0 leaves it out.
    pub(crate) throughput_millis: u64,
}

/// How far something has come, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Which part of the work.
    pub part: Part,
    /// How much of it is done.
    pub done: usize,
    /// How much there is.
    pub total: usize,
    /// What has just happened, in a few words.
    pub what: String,
}

/// The parts of a lab's life that take time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Part {
    /// Underlay and nodes' namespaces.
    Namespaces,
    /// Agents until they can carry pods.
    Nodes,
    /// Pods through the chain.
    Pods,
    /// Every pod to every pod.
    Reachability,
    /// Bytes across nodes.
    Throughput,
    /// Taking everything down.
    Cleaning,
}

impl Part {
    /// The word for it at the terminal.
    pub fn word(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Nodes => "nodes",
            Self::Pods => "pods",
            Self::Reachability => "reachability",
            Self::Throughput => "throughput",
            Self::Cleaning => "cleaning up",
        }
    }
}

/// One line of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Line {
    /// More will come.
    Progress(Progress),
    /// The answer.
    Done(serde_json::Value),
    /// There is no answer, and why.
    Failed(String),
}

/// Writes one value as one line.
pub(crate) fn say<T: Serialize>(to: &mut impl Write, value: &T) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// Reads the answer to the end, telling progress as it comes. `None` when the other side ended without one.
pub(crate) fn hear<T: DeserializeOwned>(
    from: impl Read,
    progress: &mut dyn FnMut(Progress),
) -> Result<Option<T>> {
    for line in BufReader::new(from).lines() {
        let Ok(line) = line else { break };
        match serde_json::from_str(&line).map_err(|source| Error::Answer { source })? {
            Line::Progress(step) => progress(step),
            Line::Done(value) => {
                return serde_json::from_value(value).map(Some).map_err(|source| Error::Answer { source });
            }
            Line::Failed(reason) => return Err(Error::Refused { reason }),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_its_progress_and_then_its_value() {
        let step = Progress { part: Part::Pods, done: 1, total: 2, what: "default/a".into() };
        let mut bytes = Vec::new();
        say(&mut bytes, &Line::Progress(step.clone())).unwrap();
        say(&mut bytes, &Line::Done(serde_json::json!(7))).unwrap();
        let mut steps = Vec::new();
        let value: Option<u32> = hear(bytes.as_slice(), &mut |step| steps.push(step)).unwrap();
        assert_eq!((value, steps), (Some(7), vec![step]));
    }

    #[test]
    fn a_refusal_keeps_its_words() {
        let mut bytes = Vec::new();
        say(&mut bytes, &Line::Failed("node1 has no agent".into())).unwrap();
        let heard = hear::<u32>(bytes.as_slice(), &mut |_| {});
        assert_eq!(heard.unwrap_err().to_string(), "node1 has no agent");
    }

    #[test]
    fn an_end_without_an_answer_is_told_apart() {
        assert_eq!(hear::<u32>(&b""[..], &mut |_| {}).unwrap(), None);
    }
}
