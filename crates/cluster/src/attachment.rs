//! A pod's attachment to its node, as the CNI plugin tells the node's agent of it.
//!
//! Read [`Attachment`]: before a pod can send its first packet, the plugin leaves one as a file of its own below
//! [`ATTACHMENTS`] in the agent's state directory, and asks the agent with an [`Enforced`] whether the pod's network
//! policies are in force. A kubelet writes a pod's addresses into the API only afterwards, so this is how the agent learns
//! whose they are, and it is the word that counts: the API may still have an address of a pod that ended long ago.
//!
//! DEL and GC remove the file, agent or no agent. What is asked and answered is a line of JSON each.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The directory of attachments within the agent's state directory.
pub const ATTACHMENTS: &str = "attachments";

/// A pod's interface on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// The network.
    pub network: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID, if the runtime said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The container.
    pub container: String,
    /// The interface in it.
    pub interface: String,
    /// The addresses that the pod was given.
    pub addresses: Vec<IpAddr>,
}

impl Attachment {
    /// The name of the file for this interface of that container. Neither can hold a slash.
    #[must_use]
    pub fn file_name(container: &str, interface: &str) -> String {
        format!("{container}-{interface}")
    }

    /// Reads the form that [`to_json`](Self::to_json) writes; `None` for anything else.
    #[must_use]
    pub fn from_json(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }

    /// The form for the disk.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Texts, numbers and addresses: nothing that JSON could not hold.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// The question whether a pod's network policies are in force; a line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Enforced {
    /// The name of the attachment's file.
    pub attachment: String,
    /// How long the asker will wait, in milliseconds.
    pub within_milliseconds: u32,
}

/// The answer; a line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EnforcedAnswer {
    /// They are: the pod may be let in.
    Enforced,
    /// They are not, or it is not known, and why.
    Refused(String),
}

impl Enforced {
    /// The question as a line; `None` for a line that is none.
    #[must_use]
    pub fn from_line(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }

    /// The line.
    #[must_use]
    pub fn to_line(&self) -> String {
        line_of(self)
    }
}

impl EnforcedAnswer {
    /// The answer as a line; `None` for a line that is none.
    #[must_use]
    pub fn from_line(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }

    /// The line.
    #[must_use]
    pub fn to_line(&self) -> String {
        line_of(self)
    }
}

fn line_of(said: &impl Serialize) -> String {
    // Texts and numbers: nothing that JSON could not hold.
    format!("{}\n", serde_json::to_string(said).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::{Attachment, Enforced, EnforcedAnswer};

    #[test]
    fn what_the_plugin_leaves_the_agent_reads() {
        let attachment = Attachment {
            network: "fairlead".into(),
            namespace: "shop".into(),
            name: "web".into(),
            uid: None,
            container: "c1".into(),
            interface: "eth0".into(),
            addresses: vec!["10.244.1.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        };
        assert_eq!(Attachment::from_json(&attachment.to_json()), Some(attachment.clone()));
        let attachment = Attachment { uid: Some("1".into()), ..attachment };
        assert_eq!(Attachment::from_json(&attachment.to_json()), Some(attachment.clone()));
        let text = attachment.to_json();
        assert!((0..text.len()).all(|cut| Attachment::from_json(&text[..cut]).is_none()), "half a file");
        assert_eq!(Attachment::file_name("c1", "eth0"), "c1-eth0");
    }

    #[test]
    fn question_and_answer_are_a_line_each() {
        let question = Enforced { attachment: "c1-eth0".into(), within_milliseconds: 3000 };
        assert_eq!(question.to_line(), "{\"attachment\":\"c1-eth0\",\"withinMilliseconds\":3000}\n");
        assert_eq!(Enforced::from_line(&question.to_line()), Some(question));
        for answer in [EnforcedAnswer::Enforced, EnforcedAnswer::Refused("not\nyet".into())] {
            assert_eq!(answer.to_line().lines().count(), 1);
            assert_eq!(EnforcedAnswer::from_line(&answer.to_line()), Some(answer));
        }
    }
}
