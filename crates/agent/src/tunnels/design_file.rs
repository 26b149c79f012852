//! `<state dir>/tunnels.json`: what the tunnels were when they last changed, for the agent that starts next.
//!
//! Read [`DesignFile`]. That agent can then go on with its tunnels before it knows anything of the cluster. The loop only
//! hands over what the tunnels are; a thread writes the newest of it and then rests [`REST`] times as long as that took, so any
//! number of peers may come at once. The file holds no private key. What an agent that is killed has not written yet is put right once the next knows the cluster.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use ipnet::IpNet;
use route::{TunnelDesign, TunnelKind, TunnelPeer};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::files::{FileError, remove, replace_private};
use crate::report::told;

/// The file's name within the state directory.
pub(crate) const NAME: &str = "tunnels.json";

/// How much longer than a write the pause behind it is: writing takes a twentieth of a core at most.
const REST: u32 = 20;

/// What the tunnels are.
pub(crate) type Designs = BTreeMap<TunnelKind, Arc<TunnelDesign>>;

/// The file, and the thread that writes it once there is something to write.
#[derive(Debug)]
pub(crate) struct DesignFile {
    path: PathBuf,
    node: String,
    writer: Option<(Sender<Designs>, JoinHandle<()>)>,
}

impl DesignFile {
    pub(crate) fn new(state_dir: &Path, node: &str) -> Self {
        Self { path: state_dir.join(NAME), node: node.to_owned(), writer: None }
    }

    /// What an earlier agent of this node left. What cannot be read is as if it were not there.
    pub(crate) fn read(&self) -> BTreeMap<TunnelKind, TunnelDesign> {
        let read = fs::read(&self.path)
            .and_then(|text| serde_json::from_slice::<Found>(&text).map_err(io::Error::from));
        match read {
            // A disk that was moved to another node.
            Ok(content) if content.node != self.node => BTreeMap::new(),
            Ok(content) => content.tunnels.into_iter().filter_map(into_design).collect(),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    let path = self.path.display();
                    tracing::warn!(%path, %error, "what the tunnels were cannot be read: they start with the cluster");
                }
                BTreeMap::new()
            }
        }
    }

    /// Has the file say this, soon.
    pub(crate) fn keep(&mut self, designs: Designs) {
        if self.writer.is_none() {
            self.writer = self.start();
        }
        if let Some((sender, _)) = &self.writer {
            // The thread ends with this value.
            let _ = sender.send(designs);
        }
    }

    fn start(&self) -> Option<(Sender<Designs>, JoinHandle<()>)> {
        let (sender, news) = mpsc::channel();
        let (path, node) = (self.path.clone(), self.node.clone());
        let work = move || {
            follow(&news, |designs| {
                if let Err(error) = write(&path, &node, &designs) {
                    tracing::warn!(error = %told(&error), "an agent that starts will not know what the tunnels are");
                }
            });
        };
        let started = thread::Builder::new().name("tunnels.json".to_owned()).spawn(work);
        match started {
            Ok(thread) => Some((sender, thread)),
            Err(error) => {
                tracing::warn!(%error, "an agent that starts will not know what the tunnels are");
                None
            }
        }
    }

    /// Removes the file; true if it was there.
    pub(crate) fn forget(state_dir: &Path) -> Result<bool, FileError> {
        remove(&state_dir.join(NAME))
    }
}

impl Drop for DesignFile {
    /// What is still to be written is written.
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.writer.take() {
            drop(sender);
            let _ = thread.join();
        }
    }
}

/// Writes the newest of what comes, but with pauses, until nothing can come any more.
fn follow(news: &Receiver<Designs>, mut write: impl FnMut(Designs)) {
    let mut due = None;
    let mut not_before = Instant::now();
    loop {
        let next = match due {
            None => news.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(_) => news.recv_timeout(not_before.saturating_duration_since(Instant::now())),
        };
        match next {
            Ok(designs) => due = Some(designs),
            Err(why) => {
                if let Some(designs) = due.take() {
                    let began = Instant::now();
                    write(designs);
                    not_before = Instant::now() + began.elapsed() * REST;
                }
                if why == RecvTimeoutError::Disconnected {
                    return;
                }
            }
        }
    }
}

fn write(path: &Path, node: &str, designs: &Designs) -> Result<(), FileError> {
    if designs.is_empty() {
        return remove(path).map(drop);
    }
    let tunnels = designs.iter().map(|(kind, design)| Tunnel::of(*kind, design)).collect();
    let content = Content { node: node.to_owned(), tunnels };
    let failed = |source: serde_json::Error| FileError::Io {
        tried: "put into words what goes into",
        path: path.to_owned(),
        source: source.into(),
    };
    let text = serde_json::to_vec(&content).map_err(failed)?;
    replace_private(path, &text)
}

/// All of the file.
#[derive(Serialize)]
struct Content {
    /// Whose tunnels these are.
    node: String,
    tunnels: Vec<Tunnel>,
}

/// The same as an agent of any version may have left it.
#[derive(Deserialize)]
struct Found {
    node: String,
    tunnels: Vec<Value>,
}

/// `None` for a tunnel of a kind or a form that this agent does not know, as after it was replaced by an older one.
fn into_design(tunnel: Value) -> Option<(TunnelKind, TunnelDesign)> {
    serde_json::from_value::<Tunnel>(tunnel).ok()?.into_design()
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Tunnel {
    #[serde(rename = "type")]
    kind: String,
    device: String,
    #[serde(default)]
    generation: u32,
    port: u16,
    underlay: IpAddr,
    mtu: u32,
    peers: Vec<Peer>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Peer {
    node: String,
    underlay: IpAddr,
    port: u16,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<IpNet>,
    mtu: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public_key: Option<String>,
}

impl Tunnel {
    fn of(kind: TunnelKind, design: &TunnelDesign) -> Self {
        let peers = design.peers.iter().map(|peer| Peer {
            node: peer.node.to_string(),
            underlay: peer.underlay,
            port: peer.port,
            pod_cidrs: peer.pod_cidrs.clone(),
            mtu: peer.mtu,
            public_key: peer.public_key.map(|key| key.to_string()),
        });
        Self {
            kind: kind.label().to_owned(),
            device: design.device.to_string(),
            generation: design.generation,
            port: design.port,
            underlay: design.underlay,
            mtu: design.mtu,
            peers: peers.collect(),
        }
    }

    fn into_design(self) -> Option<(TunnelKind, TunnelDesign)> {
        let kind = TunnelKind::ALL.into_iter().find(|kind| kind.label() == self.kind)?;
        let peer = |peer: Peer| TunnelPeer {
            node: peer.node.into(),
            underlay: peer.underlay,
            port: peer.port,
            pod_cidrs: peer.pod_cidrs,
            mtu: peer.mtu,
            // A peer without a key is sent nothing over WireGuard.
            public_key: peer.public_key.and_then(|key| key.parse().ok()),
        };
        let design = TunnelDesign {
            device: self.device.parse().ok()?,
            generation: self.generation,
            port: self.port,
            underlay: self.underlay,
            mtu: self.mtu,
            peers: self.peers.into_iter().map(peer).collect(),
        };
        Some((kind, design))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use cluster::PublicKey;

    use super::*;

    fn design(peers: u32) -> Arc<TunnelDesign> {
        let peer = |number: u32| TunnelPeer {
            node: format!("node{number}").into(),
            underlay: (0xc633_0000 + number).to_be_bytes().into(),
            port: 51820,
            pod_cidrs: vec!["10.2.0.0/24".parse().unwrap(), "fd00:2::/64".parse().unwrap()],
            mtu: 1440,
            public_key: Some(PublicKey([7; 32])),
        };
        Arc::new(TunnelDesign {
            device: "fairlead-wg".parse().unwrap(),
            generation: 2,
            port: 51820,
            underlay: "192.0.2.1".parse().unwrap(),
            mtu: 1440,
            peers: (0..peers).map(peer).collect(),
        })
    }

    #[test]
    fn the_next_agent_of_the_node_reads_what_this_one_kept_last() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        let mut file = DesignFile::new(directory.path(), "node1");
        assert!(file.read().is_empty(), "there is none");
        for peers in 0..100 {
            file.keep([(TunnelKind::WireGuard, design(peers))].into());
        }
        // The end writes what is still to be written.
        drop(file);
        let read = DesignFile::new(directory.path(), "node1").read();
        assert_eq!(read, [(TunnelKind::WireGuard, design(99).as_ref().clone())].into());
        assert!(DesignFile::new(directory.path(), "node2").read().is_empty(), "a disk that was moved");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut file = DesignFile::new(directory.path(), "node1");
        file.keep(Designs::new());
        drop(file);
        assert!(!path.exists(), "there are no tunnels any more");
    }

    #[test]
    fn a_file_of_the_first_form_and_one_of_a_form_to_come_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = DesignFile::new(directory.path(), "node1");
        let peer =
            r#""node":"node2","underlay":"198.18.0.2","port":8285,"podCIDRs":["10.244.0.0/24"],"mtu":1472"#;
        let tunnel = r#""type":"udp","device":"fairlead-udp","port":8285,"underlay":"198.18.0.1","mtu":1472"#;
        // As the agents before key generations wrote it.
        let first = format!(r#"{{"node":"node1","tunnels":[{{{tunnel},"peers":[{{{peer}}}]}}]}}"#);
        let later = format!(
            r#"{{"version":3,"node":"node1","tunnels":[{{"type":"later","queues":2}},
               {{{tunnel},"queues":2,"peers":[{{{peer},"weight":1}}]}}]}}"#
        );
        for text in [first, later] {
            fs::write(&file.path, &text).unwrap();
            let read = file.read();
            let design = read.get(&TunnelKind::Udp).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(
                (design.generation, design.device.as_str(), design.peers.len()),
                (0, "fairlead-udp", 1)
            );
            assert_eq!(*design.peers[0].node, *"node2");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_as_if_it_were_not_there() {
        let directory = tempfile::tempdir().unwrap();
        let file = DesignFile::new(directory.path(), "node1");
        write(&file.path, "node1", &[(TunnelKind::Udp, design(2))].into()).unwrap();
        let whole = fs::read(&file.path).unwrap();
        assert_eq!(file.read().len(), 1);
        for broken in [&b""[..], b"{}", b"\xff", b"null", &whole[..whole.len() - 2]] {
            fs::write(&file.path, broken).unwrap();
            assert!(file.read().is_empty(), "{broken:?}");
        }
        let text = String::from_utf8(whole).unwrap();
        for (from, to) in [("\"udp\"", "\"later\""), ("fairlead-wg", "no device has this name")] {
            assert!(text.contains(from));
            fs::write(&file.path, text.replace(from, to)).unwrap();
            assert!(file.read().is_empty(), "{to}");
        }
    }

    #[test]
    fn any_number_of_changes_at_once_are_few_writes() {
        let (sender, news) = mpsc::channel();
        for peers in 0..1000 {
            sender.send([(TunnelKind::Udp, design(peers))].into()).unwrap();
        }
        drop(sender);
        let mut written = Vec::new();
        follow(&news, |designs| written.push(designs[&TunnelKind::Udp].peers.len()));
        assert_eq!(written, [999]);
    }
}
