//! What the agent's network looks like to one call: the configuration's few keys, what the agent left on disk,
//! and the configurations for those we hand on to.
//!
//! Read [`Settings`] first, then [`Settings::node_network`]. The agent's file is needed to attach a pod and for
//! nothing else: DEL, CHECK and GC work from the configuration alone, so a pod can go with the agent dead and
//! its file lost.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use cluster::NodeNetwork;
use cni::{Code, Config, Error, Fields, Json, Request, Version};

use ipnet::IpNet;

use crate::interface::bridge::config::mtu;

/// Where the agent keeps what it tells.
const STATE_DIRECTORY: &str = "/run/fairlead";
/// The agent's file in there.
const NODE_NETWORK: &str = "network.json";
/// Where host-local keeps the addresses given.
const DATA_DIRECTORY: &str = "/var/lib/cni/networks";

/// How pods are connected to their node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A link of its own for each pod, and a route to it.
    Routed,
    /// A port of a bridge.
    Bridge,
}

/// The configuration's own keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// `mode`: "routed" unless said otherwise.
    pub(crate) mode: Mode,
    /// `mtu`, in bytes; the agent's when absent.
    pub(crate) mtu: Option<u32>,
    state_directory: PathBuf,
    data_directory: String,
}

impl Settings {
    /// Reads the configuration.
    ///
    /// # Errors
    /// Code 6 for a key of the wrong type, 7 for a value that cannot be.
    pub(crate) fn of(config: &Config) -> Result<Self, Error> {
        let fields = config.fields();
        let mode = match fields.string("mode")? {
            "" | "routed" => Mode::Routed,
            "bridge" => Mode::Bridge,
            other => {
                let reason = format!("unknown mode {other:?} (must be \"routed\" or \"bridge\")");
                return Err(fields.bad("mode", reason).into());
            }
        };
        Ok(Self {
            mode,
            mtu: mtu(&fields)?,
            state_directory: directory(&fields, "stateDir", STATE_DIRECTORY)?.into(),
            data_directory: directory(&fields, "dataDir", DATA_DIRECTORY)?,
        })
    }

    /// Reads the configuration for those who only take away: what has become wrong does not matter to them.
    ///
    /// # Errors
    /// When the directory with the addresses is not told in a usable way.
    pub(crate) fn for_removal(config: &Config) -> Result<Self, Error> {
        Self::of(config).or_else(|_| {
            let data_directory = directory(&config.fields(), "dataDir", DATA_DIRECTORY)?;
            Ok(Self {
                mode: Mode::Routed,
                mtu: None,
                state_directory: STATE_DIRECTORY.into(),
                data_directory,
            })
        })
    }

    /// Where the agent keeps what it tells, and is told of attachments.
    pub(crate) fn state_directory(&self) -> &Path {
        &self.state_directory
    }

    /// The largest packet a pod may send: the configuration's word, or else the agent's.
    pub(crate) fn mtu_of(&self, network: &NodeNetwork) -> u32 {
        self.mtu.unwrap_or(network.mtu)
    }

    /// What the agent left on disk.
    ///
    /// # Errors
    /// Code 11: the runtime should try again when the agent is up.
    pub(crate) fn node_network(&self) -> Result<NodeNetwork, Error> {
        let path = self.state_directory.join(NODE_NETWORK);
        let text = std::fs::read(&path).map_err(|error| unreadable(&path, &error))?;
        NodeNetwork::from_json(&text).map_err(|error| {
            let cause =
                std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            not_ready(format!("{}: {error}{cause}", path.display()))
        })
    }

    /// The same, to attach a pod by.
    ///
    /// # Errors
    /// As above, and where the agent says that the node cannot carry another pod for now.
    pub(crate) fn ready_network(&self) -> Result<NodeNetwork, Error> {
        let network = self.node_network()?;
        match &network.not_ready {
            None => Ok(network),
            Some(reason) => Err(not_ready(format!("this node cannot carry a new pod for now: {reason}"))),
        }
    }

    /// The call to make at host-local. Without `network` it can find and free addresses but give none.
    ///
    /// # Errors
    /// When the configuration has an `ipam` that is no object.
    pub(crate) fn addresses(
        &self,
        request: &Request,
        network: Option<&NodeNetwork>,
    ) -> Result<Request, Error> {
        let mut document = request.config.document().clone();
        document.set("ipam", self.ipam(&request.config, network)?);
        rewritten(request, document)
    }

    /// The call to make at `bridge`: the same network with a bridge of its own. The keys of `bridge` that the
    /// configuration has are kept.
    ///
    /// # Errors
    /// When the configuration has an `ipam` that is no object.
    pub(crate) fn bridge(&self, request: &Request, network: Option<&NodeNetwork>) -> Result<Request, Error> {
        let fields = request.config.fields();
        let mut document = request.config.document().clone();
        document.set("type", Json::from("bridge"));
        if !fields.has("isGateway") && !fields.has("isDefaultGateway") {
            document.set("isDefaultGateway", Json::from(true));
        }
        if !fields.has("hairpinMode") && !fields.bool("promiscMode")? {
            document.set("hairpinMode", Json::from(true));
        }
        if let Some(mtu) = self.mtu.or(network.map(|network| network.mtu)) {
            document.set("mtu", Json::from(mtu));
        }
        document.set("ipam", self.ipam(&request.config, network)?);
        rewritten(request, document)
    }

    /// The `ipam` object: what the configuration has, with the node's ranges.
    fn ipam(&self, config: &Config, network: Option<&NodeNetwork>) -> Result<Json, Error> {
        config.ipam()?;
        let mut ipam = match config.fields().raw("ipam") {
            Some(given) => given.clone(),
            None => Json::Object(Vec::new()),
        };
        ipam.set("type", Json::from("host-local"));
        ipam.set("dataDir", Json::from(self.data_directory.as_str()));
        let cidrs = match network {
            Some(network) => network.pod_cidrs.clone(),
            None => around_known(config),
        };
        let subnet = |cidr: &IpNet| Json::object([("subnet", Json::from(cidr.to_string()))]);
        let ranges = cidrs.iter().map(|cidr| Json::Array(vec![subnet(cidr)]));
        ipam.set("ranges", Json::Array(ranges.collect()));
        Ok(ipam)
    }
}

/// Ranges to look the pod's addresses up in when the agent's are not known: any that hold them will do.
fn around_known(config: &Config) -> Vec<IpNet> {
    let known = config.prev_result().ok().flatten().unwrap_or_default();
    let around = |ip: &cni::IpConfig| {
        let prefix = if ip.address.addr().is_ipv4() { 24 } else { 64 };
        IpNet::new(ip.address.addr(), prefix).ok().map(|net| net.trunc())
    };
    let mut ranges: Vec<IpNet> = known.ips.iter().filter_map(around).collect();
    ranges.dedup();
    ranges
}

fn directory(fields: &Fields<'_>, key: &str, default: &str) -> Result<String, Error> {
    match fields.string(key)? {
        "" => Ok(default.to_owned()),
        path if path.starts_with('/') => Ok(path.to_owned()),
        path => Err(fields.bad(key, format!("{path:?} is not an absolute path")).into()),
    }
}

/// The same request with another document as its configuration, for plugins of this program only: with no
/// path to look along, an operator's other `host-local` is not taken for ours.
fn rewritten(request: &Request, document: Json) -> Result<Request, Error> {
    let config = Config::from_json(document, &Version::ALL)?;
    Ok(Request { path: Vec::new(), ..request.with_config(config) })
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound => not_ready(format!("{} is not there", path.display())),
        _ => not_ready(format!("cannot read {}: {error}", path.display())),
    }
}

fn not_ready(message: String) -> Error {
    Error::new(Code::TRY_AGAIN, message).with_details(
        "hint: the node's agent writes this file when it is ready; is `fairlead agent` running?",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(more: &str) -> Request {
        let config = format!(r#"{{"cniVersion": "1.0.0", "name": "fairlead", "type": "fairlead"{more}}}"#);
        crate::testing::request(&config)
    }

    fn network() -> NodeNetwork {
        NodeNetwork {
            node: "node1".into(),
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap(), "fd00:10:244:1::/64".parse().unwrap()],
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()],
            mtu: 1450,
            not_ready: None,
            enforcement: None,
        }
    }

    #[test]
    fn host_local_gives_one_address_of_each_of_the_nodes_cidrs() {
        let request = request("");
        let settings = Settings::of(&request.config).unwrap();
        let handed_on = settings.addresses(&request, Some(&network())).unwrap();
        assert_eq!(
            handed_on.config.document().to_string(),
            r#"{"cniVersion":"1.0.0","name":"fairlead","type":"fairlead","ipam":{"type":"host-local","#
                .to_owned()
                + r#""dataDir":"/var/lib/cni/networks","#
                + r#""ranges":[[{"subnet":"10.244.1.0/24"}],[{"subnet":"fd00:10:244:1::/64"}]]}}"#
        );
        assert_eq!(handed_on.config.ipam_kind, "host-local");
    }

    #[test]
    fn the_bridge_is_a_default_gateway_with_hairpin_unless_said_otherwise() {
        let plain = request(r#", "mode": "bridge", "mtu": 1300, "dataDir": "/data""#);
        let settings = Settings::of(&plain.config).unwrap();
        assert_eq!(settings.mode, Mode::Bridge);
        let handed_on = settings.bridge(&plain, Some(&network())).unwrap().config;
        let fields = handed_on.fields();
        assert_eq!(handed_on.kind, "bridge");
        assert!(fields.bool("isDefaultGateway").unwrap() && fields.bool("hairpinMode").unwrap());
        assert_eq!(fields.integer::<u32>("mtu").unwrap(), 1300);
        assert_eq!(handed_on.ipam().unwrap().string("dataDir").unwrap(), "/data");
        let own = request(r#", "mode": "bridge", "isGateway": true, "promiscMode": true, "bridge": "br7""#);
        let handed_on = Settings::of(&own.config).unwrap().bridge(&own, Some(&network())).unwrap().config;
        let fields = handed_on.fields();
        assert!(!fields.bool("isDefaultGateway").unwrap() && !fields.bool("hairpinMode").unwrap());
        assert_eq!(fields.string("bridge").unwrap(), "br7");
        assert_eq!(fields.integer::<u32>("mtu").unwrap(), 1450);
    }

    #[test]
    fn without_the_agents_file_there_are_no_ranges_and_a_hint() {
        let request = request(r#", "stateDir": "/there/is/no/such/directory""#);
        let settings = Settings::of(&request.config).unwrap();
        let error = settings.node_network().unwrap_err();
        assert_eq!(error.code, Code::TRY_AGAIN);
        assert!(error.message.contains("/there/is/no/such/directory/network.json"), "{error}");
        assert!(error.details.contains("hint:"), "{error}");
        let handed_on = settings.addresses(&request, None).unwrap();
        assert!(handed_on.config.ipam().unwrap().array("ranges").unwrap().is_empty());
    }

    #[test]
    fn wrong_values_are_refused() {
        for (more, code) in [
            (r#", "mode": "tunnel""#, Code::INVALID_CONFIG),
            (r#", "stateDir": "run""#, Code::INVALID_CONFIG),
            (r#", "mtu": 1"#, Code::INVALID_CONFIG),
            (r#", "mode": 1"#, Code::UNDECODABLE),
        ] {
            assert_eq!(Settings::of(&request(more).config).unwrap_err().code, code, "{more}");
        }
    }
}
