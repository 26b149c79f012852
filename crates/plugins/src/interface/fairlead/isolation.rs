//! A pod's network policies, in force before its first packet.
//!
//! Read [`Isolation::begin`]. A kubelet tells the API a pod's addresses only after ADD, so the plugin itself leaves word of
//! the attachment on disk ([`cluster::Attachment`]), asks the node's agent whether the pod's policies are in force, and
//! waits for the answer before the pod can send. Where that cannot be known the attachment fails, and the runtime tries
//! again: a pod that waits is better than one that is open. A call without a pod's name (a container that is no pod of
//! Kubernetes) is about nobody whom policies could be about, and waits for nothing.
//!
//! What stays true: DEL and GC take the word away with the agent gone; so does an ADD that fails.

use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cluster::{ATTACHMENTS, Attachment, Enforced, EnforcedAnswer, Enforcement, NodeNetwork};
use cni::{Code, Error, Request};

/// The keys by which a container runtime names a pod.
const NAMESPACE: &str = "K8S_POD_NAMESPACE";
const NAME: &str = "K8S_POD_NAME";
const UID: &str = "K8S_POD_UID";

/// How long between two tries to reach an agent that is about to start.
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

/// What is added to the agent's patience before it is given up: it answers at the end of it.
const MARGIN: Duration = Duration::from_millis(500);

/// The isolation of one pod.
#[derive(Debug)]
pub(crate) struct Isolation<'a> {
    enforcement: &'a Enforcement,
    directory: PathBuf,
    socket: PathBuf,
    attachment: Attachment,
}

/// A question that was asked.
#[derive(Debug)]
#[must_use]
pub(crate) struct Asked<'a> {
    stream: UnixStream,
    isolation: &'a Isolation<'a>,
}

impl<'a> Isolation<'a> {
    /// That of the pod which an ADD is for; `None` if policies are not enforced here, or it is for no pod.
    pub(crate) fn of(request: &Request, network: &'a NodeNetwork, state_directory: &Path) -> Option<Self> {
        let enforcement = network.enforcement.as_ref()?;
        let named = |key: &str| argument(&request.args, key).filter(|value| !value.is_empty());
        let (namespace, name) = (named(NAMESPACE)?.to_owned(), named(NAME)?.to_owned());
        let attachment = Attachment {
            network: request.config.name.clone(),
            namespace,
            name,
            uid: named(UID).map(str::to_owned),
            container: request.container_id.clone(),
            interface: request.ifname.clone(),
            addresses: Vec::new(),
        };
        let socket = state_directory.join(&enforcement.socket);
        Some(Self { enforcement, directory: state_directory.join(ATTACHMENTS), socket, attachment })
    }

    /// Leaves word of the attachment, and asks. The pod must not be able to send before the question is answered.
    ///
    /// # Errors
    /// Code 5 if the word cannot be left, 11 if there is no agent to ask.
    pub(crate) fn begin(&mut self, addresses: Vec<IpAddr>) -> Result<Asked<'_>, Error> {
        self.attachment.addresses = addresses;
        let path = self.path();
        write(&path, &self.attachment.to_json()).map_err(|error| {
            Error::io(format!("leave word of the attachment in {}: {error}", path.display()))
        })?;
        let patience = self.patience();
        let question = Enforced {
            attachment: self.file_name(),
            within_milliseconds: self.enforcement.patience_milliseconds,
        };
        let asked = connect(&self.socket, patience).and_then(|mut stream| {
            stream.set_read_timeout(Some(patience + MARGIN))?;
            stream.set_write_timeout(Some(patience))?;
            stream.write_all(question.to_line().as_bytes())?;
            Ok(stream)
        });
        match asked {
            Ok(stream) => Ok(Asked { stream, isolation: self }),
            Err(error) => Err(self.unknown(format!("ask the agent at {}: {error}", self.socket.display()))),
        }
    }

    /// Takes back the word of an attachment that has failed.
    pub(crate) fn withdraw(&self) {
        // One that stays is taken away by DEL.
        let _ = remove(&self.path());
    }

    fn path(&self) -> PathBuf {
        self.directory.join(self.file_name())
    }

    fn file_name(&self) -> String {
        Attachment::file_name(&self.attachment.container, &self.attachment.interface)
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(self.enforcement.patience_milliseconds.into())
    }

    fn unknown(&self, cause: String) -> Error {
        let Attachment { namespace, name, .. } = &self.attachment;
        let message =
            format!("see that the network policies of pod {namespace}/{name} are in force: {cause}");
        Error::new(Code::TRY_AGAIN, message).with_details(
            "hint: a pod is let in only when its policies are known to be in force; is `fairlead agent` running here, and \
             does `fairlead status` show that it enforces policies?",
        )
    }
}

impl Asked<'_> {
    /// Waits for the answer.
    ///
    /// # Errors
    /// Code 11 if it is no, or does not come.
    pub(crate) fn wait(self) -> Result<(), Error> {
        let mut line = String::new();
        let read = BufReader::new(&self.stream).read_line(&mut line);
        let cause = match (read, EnforcedAnswer::from_line(&line)) {
            (_, Some(EnforcedAnswer::Enforced)) => return Ok(()),
            (_, Some(EnforcedAnswer::Refused(reason))) => reason,
            (Err(error), None) => format!("the agent does not answer: {error}"),
            (Ok(_), None) => "the agent went away without an answer".to_owned(),
        };
        Err(self.isolation.unknown(cause))
    }
}

/// Takes away the word of an attachment that is gone.
///
/// # Errors
/// When the disk refuses; that there is none is no error.
pub(crate) fn forget(request: &Request, state_directory: &Path) -> Result<(), Error> {
    let name = Attachment::file_name(&request.container_id, &request.ifname);
    let path = state_directory.join(ATTACHMENTS).join(name);
    remove(&path).map_err(|error| Error::io(format!("remove {}: {error}", path.display())))
}

/// Takes away the words of this network's attachments that the request does not list.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn collect(request: &Request, state_directory: &Path) -> Result<(), Error> {
    let directory = state_directory.join(ATTACHMENTS);
    let valid = request.valid_attachments();
    for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let Some(found) = fs::read(&path).ok().and_then(|text| Attachment::from_json(&text)) else {
            continue;
        };
        let is_valid =
            valid.iter().any(|one| one.container_id == found.container && one.ifname == found.interface);
        if found.network == request.config.name && !is_valid {
            remove(&path).map_err(|error| Error::io(format!("remove {}: {error}", path.display())))?;
        }
    }
    Ok(())
}

/// Connects; an agent that is being replaced may be back in a moment.
fn connect(socket: &Path, patience: Duration) -> io::Result<UnixStream> {
    let until = Instant::now() + patience;
    loop {
        match UnixStream::connect(socket) {
            Err(error) if is_away(error.kind()) && Instant::now() < until => {
                std::thread::sleep(BETWEEN_TRIES)
            }
            other => return other,
        }
    }
}

fn is_away(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::WouldBlock)
}

/// Writes a file whole: who reads it finds all of it or nothing.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let half = path.with_file_name(format!(".{name}.half"));
    let written = fs::write(&half, content);
    if written.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        fs::create_dir_all(path.parent().unwrap_or(path))?;
        fs::write(&half, content)?;
    } else {
        written?;
    }
    fs::rename(&half, path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        // A name that is too long was never written.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidFilename) => Ok(()),
        other => other,
    }
}

/// The value of a key of CNI_ARGS, whatever else stands there.
fn argument<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    let pairs = text.split(';').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(name, _)| *name == key).map(|(_, value)| value).next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(enforced: bool) -> NodeNetwork {
        let enforcement = Enforcement { socket: "/there/is/no/such/socket".into(), patience_milliseconds: 1 };
        NodeNetwork {
            node: "node1".into(),
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            mtu: 1450,
            not_ready: None,
            enforcement: enforced.then_some(enforcement),
        }
    }

    fn request(args: &str) -> Request {
        let config = r#"{"cniVersion": "1.1.0", "name": "fairlead", "type": "fairlead"}"#;
        Request { args: args.to_owned(), ..crate::testing::request(config) }
    }

    const POD: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u1";

    #[test]
    fn only_pods_wait_and_only_where_policies_are_enforced() {
        let directory = Path::new("/none");
        assert!(Isolation::of(&request(POD), &network(false), directory).is_none());
        for args in ["", "K8S_POD_NAME=web", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME="] {
            assert!(Isolation::of(&request(args), &network(true), directory).is_none(), "{args}");
        }
        let network = network(true);
        let isolation = Isolation::of(&request(POD), &network, directory).unwrap().attachment;
        assert_eq!(
            (&*isolation.namespace, &*isolation.name, isolation.uid.as_deref()),
            ("shop", "web", Some("u1"))
        );
    }

    #[test]
    fn without_an_agent_the_runtime_is_to_try_again_and_no_word_stays() {
        let state = tempfile::tempdir().unwrap();
        let (network, request) = (network(true), request(POD));
        let mut isolation = Isolation::of(&request, &network, state.path()).unwrap();
        let error = isolation.begin(vec!["10.244.1.2".parse().unwrap()]).unwrap_err();
        assert_eq!(error.code, Code::TRY_AGAIN);
        assert!(error.message.contains("shop/web") && error.details.contains("hint:"), "{error}");
        let files = || fs::read_dir(state.path().join(ATTACHMENTS)).unwrap().count();
        assert_eq!(files(), 1);
        isolation.withdraw();
        isolation.withdraw();
        assert_eq!(files(), 0);
        forget(&request, state.path()).unwrap();
    }

    #[test]
    fn a_collection_takes_the_words_of_its_own_network_that_nobody_lists() {
        let state = tempfile::tempdir().unwrap();
        let directory = state.path().join(ATTACHMENTS);
        for (container, network) in [("c1", "fairlead"), ("c2", "fairlead"), ("c3", "other")] {
            let word = Attachment {
                network: network.into(),
                namespace: "shop".into(),
                name: container.into(),
                uid: None,
                container: container.into(),
                interface: "eth0".into(),
                addresses: Vec::new(),
            };
            write(&directory.join(Attachment::file_name(container, "eth0")), &word.to_json()).unwrap();
        }
        let config = r#"{"cniVersion": "1.1.0", "name": "fairlead", "type": "fairlead",
            "cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "eth0"}]}"#;
        collect(&crate::testing::request(config), state.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["c2-eth0", "c3-eth0"]);
    }
}
