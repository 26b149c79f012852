//! The agent's configuration file, and what holds where it says nothing.
//!
//! Read [`Config`]: every key of the file is a field of it or of one of its sections. The file is YAML (so JSON
//! as well); an empty one is a good one. A key that does not exist is refused with the one that was probably meant,
//! and every value is checked before the agent touches anything. docs/agent.schema.json is made of these types: what is
//! said of a field here is what an editor shows there.
//!
//! ```
//! let config = agent::Config::parse("underlay:\n  interface: eth1\n")?;
//! assert_eq!(config.underlay.interface.as_deref(), Some("eth1"));
//! assert_eq!(config.vxlan.port, 8472);
//! # Ok::<(), agent::ConfigError>(())
//! ```

mod flannel;
pub(crate) mod net_conf;
mod pattern;
mod policy;
#[cfg(test)]
mod schema;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cluster::{Backend, PublicKey, WireGuardKey};
use ipnet::IpNet;
use netstate::pool::Pool;
use route::Family;
use serde::Deserialize;
use serde_json::Value;

pub use self::flannel::FlannelConfig;
use self::net_conf::{Document, NetConf};
use crate::reload::ConfigFile;

pub use pattern::Pattern;
pub use policy::{ExistingConnections, FlowLogConfig, FlowVerdicts, ForeignSenders, PolicyConfig};

/// The configuration of an agent: docs/configuration.md says more of each key.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Default)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(title = "The configuration of Fairlead's agent"))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// The pod networks of the cluster: the same on every node.
    pub cluster: Cluster,
    /// The host's link and addresses that tunnels start from.
    pub underlay: UnderlayConfig,
    /// How packets travel from node to node: meant to be the same on every node. Default: `vxlan`.
    pub backend: BackendKind,
    /// The VXLAN tunnels: the same on every node.
    pub vxlan: VxlanConfig,
    /// The tunnels of backend `udp`.
    pub udp: UdpConfig,
    /// The tunnels of backend `ipip`.
    pub ipip: IpipConfig,
    /// The tunnels of backend `wireguard`.
    pub wireguard: WireGuardConfig,
    /// Nodes of flannel in the same cluster.
    pub flannel: FlannelConfig,
    /// Translation of what leaves the cluster.
    pub masquerade: Masquerade,
    /// Network policies.
    pub policy: PolicyConfig,
    /// What is done for each pod beside its network.
    pub plugins: Chained,
}

/// Key `cluster`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Cluster {
    /// The networks that pods get addresses from, at most one of each family.
    /// Default: `10.244.0.0/16` and `fd00:10:244::/56`.
    #[serde(rename = "podCIDRs")]
    #[cfg_attr(test, schemars(with = "Vec<schema::Network>", length(min = 1, max = 2)))]
    pub pod_cidrs: Vec<IpNet>,
    /// The prefix length of the piece of an IPv4 network that each node takes. Default: 24.
    #[serde(rename = "nodePrefixIPv4")]
    #[cfg_attr(test, schemars(range(max = 30)))]
    pub node_prefix_ipv4: u8,
    /// The same for IPv6. Default: 64.
    #[serde(rename = "nodePrefixIPv6")]
    #[cfg_attr(test, schemars(range(max = 126)))]
    pub node_prefix_ipv6: u8,
    /// Where the first piece of the IPv4 network begins that is given out. Default: none, where the network does.
    #[serde(rename = "subnetMinIPv4")]
    pub subnet_min_ipv4: Option<Ipv4Addr>,
    /// Where the last one begins. Default: none, the last there is.
    #[serde(rename = "subnetMaxIPv4")]
    pub subnet_max_ipv4: Option<Ipv4Addr>,
    /// Where the first piece of the IPv6 network begins that is given out. Default: none, where the network does.
    #[serde(rename = "subnetMinIPv6")]
    pub subnet_min_ipv6: Option<Ipv6Addr>,
    /// Where the last one begins. Default: none, the last there is.
    #[serde(rename = "subnetMaxIPv6")]
    pub subnet_max_ipv6: Option<Ipv6Addr>,
    /// Networks of the host, or of Services, that may overlap the cluster's. Default: none.
    #[cfg_attr(test, schemars(with = "Vec<schema::Network>"))]
    pub allow_overlap: Vec<IpNet>,
    /// How long, in seconds, a node whose Node object was deleted keeps its network and its peers the way to it, so
    /// that one which was deleted by mistake, or is created anew, loses no packet. Default: 60.
    pub deleted_node_grace_seconds: u32,
}

/// Key `underlay`. What is not said is found out: see the crate `route`, `underlay.rs`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct UnderlayConfig {
    /// The link. Default: the one that holds the node's address, else the one of the default route.
    pub interface: Option<String>,
    /// A regular expression that finds the link: an address of the family that it matches, else a link whose name it matches.
    /// It may match any part. Default: none.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub interface_pattern: Option<Pattern>,
    /// Addresses, at most one of each family: the link by which the kernel reaches one, and the address it sends from. Default:
    /// none.
    #[cfg_attr(test, schemars(with = "Vec<schema::Address>", length(max = 2)))]
    pub can_reach: Vec<IpAddr>,
    /// The addresses on this host, at most one of each family. Default: those of the link.
    #[cfg_attr(test, schemars(with = "Vec<schema::Address>", length(max = 2)))]
    pub addresses: Vec<IpAddr>,
    /// What peers are told instead, at most one of each family, for a node behind address translation. Default:
    /// the same addresses.
    #[cfg_attr(test, schemars(with = "Vec<schema::Address>", length(max = 2)))]
    pub advertise: Vec<IpAddr>,
    /// The largest packet the underlay carries, in bytes. Default: the link's MTU.
    #[cfg_attr(test, schemars(range(min = 576, max = 65_535)))]
    pub mtu: Option<u32>,
    /// Whether it is tried out how large packets to each peer may be, by ICMP echoes. Default: true.
    #[serde(rename = "probeMTU")]
    pub probe_mtu: bool,
    /// How long after that it is tried again, in seconds. Default: 600.
    #[cfg_attr(test, schemars(range(min = 1)))]
    pub probe_interval_seconds: u32,
}

/// Key `backend`. Nodes of different backends reach each other while a cluster is moved from one to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Serialize))]
#[serde(rename_all = "kebab-case")]
pub enum BackendKind {
    /// In VXLAN.
    #[default]
    Vxlan,
    /// By plain routes, for nodes that share a link.
    HostGw,
    /// In UDP datagrams, by flannel's format; for networks that carry nothing else.
    Udp,
    /// In IP packets.
    Ipip,
    /// Encrypted, by WireGuard.
    #[serde(rename = "wireguard")]
    WireGuard,
    /// By whatever others see to: nodes have their pod CIDRs, and Fairlead routes nothing between them.
    None,
}

/// Key `vxlan`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct VxlanConfig {
    /// The network identifier, 1 to 16777215. Default: 1.
    #[cfg_attr(test, schemars(range(min = 1, max = 16_777_215)))]
    pub vni: u32,
    /// The UDP port. Default: 8472.
    #[cfg_attr(test, schemars(range(min = 1)))]
    pub port: u16,
    /// Whether nodes on one link reach each other without the tunnel. Default: false.
    pub direct_routing: bool,
}

/// Key `udp`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct UdpConfig {
    /// The UDP port, which is flannel's. Default: 8285.
    #[cfg_attr(test, schemars(range(min = 1)))]
    pub port: u16,
}

/// Key `wireguard`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WireGuardConfig {
    /// The UDP port. Default: 51820.
    #[cfg_attr(test, schemars(range(min = 1)))]
    pub port: u16,
    /// Who carries the packets. Default: `auto`.
    pub datapath: Datapath,
    /// Of which generation the nodes' keys are: with a larger number each node changes its key for a new one, and traffic
    /// goes on. Default: 0.
    pub key_generation: u32,
    /// Whether packets to other nodes go encrypted or not at all. With `false` nodes of another backend are reached by theirs,
    /// in the clear, as while a cluster is moved to WireGuard or away from it. Default: true.
    pub strict: bool,
}

/// Key `ipip`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Default)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct IpipConfig {
    /// Who carries the packets. Default: `auto`.
    pub datapath: Datapath,
}

/// Who carries the packets of a tunnel. On the wire it makes no difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Serialize))]
#[serde(rename_all = "kebab-case")]
pub enum Datapath {
    /// The kernel, where it can; else the agent.
    #[default]
    Auto,
    /// The kernel; where it cannot, the node is not ready.
    Kernel,
    /// The agent.
    User,
}

/// Key `masquerade`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Masquerade {
    /// Whether pods reach the world with their node's address. Default: true.
    pub enabled: bool,
    /// Whether pods reach the world with their node's address by IPv4. Default: true.
    pub ipv4: bool,
    /// Whether pods reach the world with their node's address by IPv6. Default: true.
    pub ipv6: bool,
    /// Networks outside the cluster that see the pods' own addresses, and know the way back to them. Default: none.
    #[cfg_attr(test, schemars(with = "Vec<schema::Network>"))]
    pub exceptions: Vec<IpNet>,
    /// Whether the node's ports are chosen at random, so that connections made at one moment do not fight for the same
    /// one. Default: true.
    pub random_fully: bool,
}

/// Key `plugins`: the plugins that the conflist names behind the network's own. Changed while pods run, it holds for
/// new ones.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Chained {
    /// Host ports of pods (`hostPort`). Default: true.
    pub portmap: bool,
    /// The annotations `kubernetes.io/ingress-bandwidth` and `egress-bandwidth`. Default: true.
    pub bandwidth: bool,
}

impl BackendKind {
    /// All of them.
    pub(crate) const ALL: [Self; 6] =
        [Self::Vxlan, Self::HostGw, Self::Udp, Self::Ipip, Self::WireGuard, Self::None];
}

impl Default for Chained {
    fn default() -> Self {
        Self { portmap: true, bandwidth: true }
    }
}

impl Cluster {
    /// Where the first and the last piece of the family begin that are given out, each with its key.
    fn bounds(&self, family: Family) -> [(&'static str, Option<IpAddr>); 2] {
        match family {
            Family::V4 => [
                ("cluster.subnetMinIPv4", self.subnet_min_ipv4.map(IpAddr::V4)),
                ("cluster.subnetMaxIPv4", self.subnet_max_ipv4.map(IpAddr::V4)),
            ],
            Family::V6 => [
                ("cluster.subnetMinIPv6", self.subnet_min_ipv6.map(IpAddr::V6)),
                ("cluster.subnetMaxIPv6", self.subnet_max_ipv6.map(IpAddr::V6)),
            ],
        }
    }

    /// The same networks, in the same pieces.
    pub(crate) fn has_networks_of(&self, other: &Self) -> bool {
        let networks = |of: &Self| {
            let bounds = Family::ALL.map(|family| of.bounds(family));
            (of.pod_cidrs.clone(), of.node_prefix_ipv4, of.node_prefix_ipv6, bounds)
        };
        networks(self) == networks(other)
    }

    /// This with the networks of another one, and their pieces.
    pub(crate) fn with_networks_of(self, other: &Self) -> Self {
        Self {
            allow_overlap: self.allow_overlap,
            deleted_node_grace_seconds: self.deleted_node_grace_seconds,
            ..other.clone()
        }
    }

    /// How long a deleted node keeps its network.
    pub(crate) fn deleted_node_grace(&self) -> Duration {
        Duration::from_secs(self.deleted_node_grace_seconds.into())
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            pod_cidrs: vec![
                IpNet::new_assert(IpAddr::from([10, 244, 0, 0]), 16),
                IpNet::new_assert(IpAddr::from([0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0]), 56),
            ],
            node_prefix_ipv4: 24,
            node_prefix_ipv6: 64,
            subnet_min_ipv4: None,
            subnet_max_ipv4: None,
            subnet_min_ipv6: None,
            subnet_max_ipv6: None,
            allow_overlap: Vec::new(),
            deleted_node_grace_seconds: 60,
        }
    }
}

impl UnderlayConfig {
    /// How long after a path was tried it is tried again.
    pub(crate) fn probe_interval(&self) -> Duration {
        Duration::from_secs(self.probe_interval_seconds.into())
    }
}

impl Default for UnderlayConfig {
    fn default() -> Self {
        Self {
            interface: None,
            interface_pattern: None,
            can_reach: Vec::new(),
            addresses: Vec::new(),
            advertise: Vec::new(),
            mtu: None,
            probe_mtu: true,
            probe_interval_seconds: 600,
        }
    }
}

impl Default for VxlanConfig {
    fn default() -> Self {
        Self { vni: 1, port: 8472, direct_routing: false }
    }
}

impl Default for UdpConfig {
    fn default() -> Self {
        Self { port: tunnel::UDP_PORT }
    }
}

impl Default for WireGuardConfig {
    fn default() -> Self {
        Self { port: tunnel::WIREGUARD_PORT, datapath: Datapath::Auto, key_generation: 0, strict: true }
    }
}

impl Masquerade {
    /// The families in which something is translated.
    pub(crate) fn families(&self) -> Vec<Family> {
        let is_on = |family: &Family| match family {
            Family::V4 => self.enabled && self.ipv4,
            Family::V6 => self.enabled && self.ipv6,
        };
        Family::ALL.into_iter().filter(is_on).collect()
    }
}

impl Default for Masquerade {
    fn default() -> Self {
        Self { enabled: true, ipv4: true, ipv6: true, exceptions: Vec::new(), random_fully: true }
    }
}

/// A configuration that cannot be used. Nothing has been touched; correct the file and start again.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something is wrong in the file.
    #[error("{path}: {fault}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: Box<Self>,
    },
    /// A key that does not exist.
    #[error("read the configuration, line {line}: there is no key {key}{}", hint(.suggestion))]
    UnknownKey {
        /// The key.
        key: String,
        /// The line it is on.
        line: u64,
        /// What was probably meant, or all there is.
        suggestion: String,
    },
    /// Not YAML, or a value of the wrong kind.
    #[error("read the configuration: {reason}")]
    Syntax {
        /// What the reader says, with line and column.
        reason: String,
    },
    /// A value that cannot be.
    #[error("use the configuration: {key} {reason}")]
    Value {
        /// The key, with its section.
        key: &'static str,
        /// What is wrong with it, to be read after the key.
        reason: String,
    },
    /// Something is wrong in flannel's net-conf.json.
    #[error("use {path}, which flannel.netConf names: {key} {reason}")]
    NetConf {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with it, to be read after the key.
        reason: String,
    },
    /// flannel's net-conf.json is in an etcd.
    #[error(
        "use the configuration: flannel.netConf is etcd, which the agent reads when it starts: key {prefix}/config"
    )]
    InEtcd {
        /// What its key begins with.
        prefix: String,
    },
    /// A key says something else than the one of net-conf.json that stands for it.
    #[error(
        "use the configuration: {key} says {value}, and {by} of {path} says {theirs}\nhint: leave one of them out, or let \
         both say the same"
    )]
    Twice {
        /// The key, with its section.
        key: String,
        /// What it says.
        value: String,
        /// The net-conf.json.
        path: PathBuf,
        /// The key there.
        by: &'static str,
        /// What that says.
        theirs: String,
    },
}

/// A configuration that was read whole.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    /// A text that says the same and names no other file.
    pub(crate) whole: String,
}

/// Where a configuration is from that was read without the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// From the file, with all that it names.
    File,
    /// From what the agent found good last, in this file.
    Kept(PathBuf),
    /// From the file, without what it leaves to a key in etcd.
    Half,
}

fn hint(suggestion: &str) -> String {
    format!("\nhint: {suggestion}")
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// When there is none, or it is no configuration.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text)
            .map_err(|fault| ConfigError::File { path: path.to_owned(), fault: Box::new(fault) })
    }

    /// The same where no store can be asked. Where the file leaves something to a key in etcd, this is what the agent with this
    /// state directory found good last; if it found nothing yet, what the file alone says.
    ///
    /// # Errors
    /// As [`read`](Self::read), but for [`ConfigError::InEtcd`].
    pub fn read_without_store(path: &Path, state_dir: &Path) -> Result<(Self, Origin), ConfigError> {
        let refused = match Self::read(path) {
            Ok(config) => return Ok((config, Origin::File)),
            Err(refused) => refused,
        };
        let file = |fault| ConfigError::File { path: path.to_owned(), fault: Box::new(fault) };
        match refused {
            ConfigError::File { fault, .. } if matches!(*fault, ConfigError::InEtcd { .. }) => {}
            refused => return Err(refused),
        }
        let kept = state_dir.join(ConfigFile::KEPT);
        if let Ok(config) = Self::read(&kept) {
            return Ok((config, Origin::Kept(kept)));
        }
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let config = Self::as_it_stands(&text).map_err(file)?;
        config.check().map_err(file)?;
        Ok((config, Origin::Half))
    }

    /// Reads a file's text, and the net-conf.json that it names.
    ///
    /// # Errors
    /// When it is no configuration, or there is no such file, or the two contradict each other; [`ConfigError::InEtcd`] where it
    /// is none.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let read = |document: &Document| match document {
            Document::File(path) => net_conf::read(path),
            Document::Etcd(prefix) => Err(ConfigError::InEtcd { prefix: prefix.clone() }),
        };
        Self::load_with(text, read).map(|loaded| loaded.config)
    }

    /// The same, with what is needed to read it again without the document that it names, which `read` reads.
    pub(crate) fn load_with(
        text: &str,
        read: impl FnOnce(&Document) -> Result<String, ConfigError>,
    ) -> Result<Loaded, ConfigError> {
        let config = Self::as_it_stands(text)?;
        let flannel = &config.flannel;
        let Some((path, document)) = flannel.net_conf.clone().zip(flannel.document()) else {
            config.check()?;
            return Ok(Loaded { config, whole: text.to_owned() });
        };
        config.flannel.check()?;
        let net_conf = NetConf::parse(&path, &read(&document)?)?;
        let mut file: Value = serde_saphyr::from_str(text).map_err(|error| explain(&error, text))?;
        net_conf::restore_texts(&config, &mut file);
        let mut whole = net_conf.lay_under(file)?;
        if let Some(flannel) = whole["flannel"].as_object_mut() {
            flannel.remove("netConf");
        }
        let mut config: Self = serde_json::from_value(whole.clone())
            .map_err(|error| ConfigError::Syntax { reason: format!("{}: {error}", path.display()) })?;
        config.flannel.net_conf = Some(path);
        config.flannel.without_effect = net_conf.without_effect;
        config.check()?;
        Ok(Loaded { config, whole: whole.to_string() })
    }

    /// What the text alone says.
    pub(crate) fn as_it_stands(text: &str) -> Result<Self, ConfigError> {
        let config: Option<Self> = serde_saphyr::from_str(text).map_err(|error| explain(&error, text))?;
        Ok(config.unwrap_or_default())
    }

    /// The cluster's networks with the pieces that nodes take, IPv4 first.
    ///
    /// # Errors
    /// When a piece does not fit into its network. Never after [`Config::parse`].
    pub fn pools(&self) -> Result<Vec<Pool>, ConfigError> {
        let mut pools = Vec::new();
        for family in Family::ALL {
            let (key, prefix) = match family {
                Family::V4 => ("cluster.nodePrefixIPv4", self.cluster.node_prefix_ipv4),
                Family::V6 => ("cluster.nodePrefixIPv6", self.cluster.node_prefix_ipv6),
            };
            let mut cidrs =
                self.cluster.pod_cidrs.iter().filter(|cidr| Family::of_net(cidr) == family).peekable();
            if cidrs.peek().is_none() {
                self.check_without(family)?;
            }
            for cidr in cidrs {
                // The base address is the tunnel's, the next a gateway's: a piece must hold a pod beside them.
                let most = family.bits() - 2;
                if prefix > most {
                    return Err(value(
                        key,
                        format!("is {prefix}; a node's piece needs a prefix of at most {most}"),
                    ));
                }
                let pool =
                    Pool::new(*cidr, prefix).map_err(|error| value(key, format!("is wrong: {error}")))?;
                pools.push(self.bounded(pool, family)?);
            }
        }
        Ok(pools)
    }

    /// Where there is no network, nothing is given out of it: who says from where to where had another one in mind.
    fn check_without(&self, family: Family) -> Result<(), ConfigError> {
        match self.cluster.bounds(family).into_iter().find_map(|(key, bound)| Some((key, bound?))) {
            Some((key, bound)) => {
                Err(value(key, format!("is {bound}, and cluster.podCIDRs has no network of family {family}")))
            }
            None => Ok(()),
        }
    }

    /// The pool with the bounds of what is given out.
    fn bounded(&self, pool: Pool, family: Family) -> Result<Pool, ConfigError> {
        let [(min_key, min), (max_key, max)] = self.cluster.bounds(family);
        let wrong = |key| move |error| value(key, format!("is wrong: {error}"));
        let pool = pool.between(min, None).map_err(wrong(min_key))?;
        pool.between(min, max).map_err(wrong(max_key))
    }

    /// What a node of that name tells its peers of how it is reached. For WireGuard it is a key that nobody could have, for
    /// those who ask for something else.
    #[must_use]
    pub fn backend_of(&self, node: &str) -> Backend {
        self.backend_if(self.backend, node)
    }

    /// The same if the node's backend were this one.
    pub(crate) fn backend_if(&self, kind: BackendKind, node: &str) -> Backend {
        match kind {
            BackendKind::Vxlan => {
                let mac = route::vxlan::tunnel_mac(node);
                Backend::Vxlan { vni: self.vxlan.vni, port: self.vxlan.port, mac }
            }
            BackendKind::HostGw => Backend::HostGw,
            BackendKind::Udp => Backend::Udp { port: self.udp.port },
            BackendKind::Ipip => Backend::Ipip,
            BackendKind::WireGuard => {
                let key =
                    WireGuardKey { port: self.wireguard.port, public_key: PublicKey([0; 32]), generation: 0 };
                Backend::WireGuard { key, next: None, strict: self.wireguard.strict }
            }
            BackendKind::None => Backend::None,
        }
    }

    /// Why the port after this one is not to be had.
    pub(crate) fn taken_beside(&self, port: u16) -> Option<&'static str> {
        match port.checked_add(1) {
            None => Some("there is none"),
            next if next == Some(self.vxlan.port) => Some("that is vxlan.port"),
            next if next == Some(self.udp.port) => Some("that is udp.port"),
            _ => None,
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.cluster.pod_cidrs.is_empty() {
            return Err(value("cluster.podCIDRs", "is empty".to_owned()));
        }
        one_of_each_family("cluster.podCIDRs", self.cluster.pod_cidrs.iter().map(IpNet::addr))?;
        one_of_each_family("underlay.addresses", self.underlay.addresses.iter().copied())?;
        one_of_each_family("underlay.advertise", self.underlay.advertise.iter().copied())?;
        one_of_each_family("underlay.canReach", self.underlay.can_reach.iter().copied())?;
        whole_networks("cluster.podCIDRs", &self.cluster.pod_cidrs)?;
        if !(1..1 << 24).contains(&self.vxlan.vni) {
            return Err(value("vxlan.vni", format!("is {}, not 1 to 16777215", self.vxlan.vni)));
        }
        for (key, port) in [
            ("vxlan.port", self.vxlan.port),
            ("udp.port", self.udp.port),
            ("wireguard.port", self.wireguard.port),
        ] {
            if port == 0 {
                return Err(value(key, "is 0".to_owned()));
            }
        }
        // While a cluster changes its backend a node has two of them.
        if self.udp.port == self.vxlan.port || self.udp.port == self.wireguard.port {
            return Err(value("udp.port", format!("is {}, and so is another backend's", self.udp.port)));
        }
        if self.wireguard.port == self.vxlan.port {
            return Err(value("wireguard.port", format!("is {}, and so is vxlan.port", self.vxlan.port)));
        }
        // The port of every other key; a cluster that never changes its keys does without.
        if let (1.., Some(taken)) = (self.wireguard.key_generation, self.taken_beside(self.wireguard.port)) {
            return Err(value(
                "wireguard.port",
                format!("is {}: keys that change need the next one, and {taken}", self.wireguard.port),
            ));
        }
        if self.underlay.mtu.is_some_and(|mtu| !(576..=65_535).contains(&mtu)) {
            return Err(value("underlay.mtu", "is not between 576 and 65535".to_owned()));
        }
        if let Some(Err(error)) = self.underlay.interface.as_deref().map(str::parse::<netstate::LinkName>) {
            return Err(value("underlay.interface", format!("cannot be: {error}")));
        }
        self.flannel.check()?;
        if self.underlay.interface.is_some() && self.underlay.interface_pattern.is_some() {
            return Err(value("underlay.interfacePattern", "is given beside underlay.interface".to_owned()));
        }
        if self.underlay.probe_interval_seconds == 0 {
            return Err(value("underlay.probeIntervalSeconds", "is 0".to_owned()));
        }
        whole_networks("masquerade.exceptions", &self.masquerade.exceptions)?;
        self.policy.check()?;
        self.pools().map(drop)
    }
}

fn value(key: &'static str, reason: String) -> ConfigError {
    ConfigError::Value { key, reason }
}

fn whole_networks(key: &'static str, networks: &[IpNet]) -> Result<(), ConfigError> {
    match networks.iter().find(|cidr| cidr.trunc() != **cidr) {
        Some(cidr) => {
            Err(value(key, format!("has {cidr} with host bits set; the network is {}", cidr.trunc())))
        }
        None => Ok(()),
    }
}

fn one_of_each_family(
    key: &'static str,
    addresses: impl Iterator<Item = IpAddr> + Clone,
) -> Result<(), ConfigError> {
    for family in Family::ALL {
        if addresses.clone().filter(|address| Family::of(*address) == family).count() > 1 {
            return Err(value(key, format!("has two of family {family}; one of each is possible")));
        }
    }
    Ok(())
}

fn explain(error: &serde_saphyr::Error, text: &str) -> ConfigError {
    let error = error.without_snippet();
    match error {
        serde_saphyr::Error::SerdeUnknownField { field, expected, location, .. } => ConfigError::UnknownKey {
            key: field.clone(),
            line: location.line(),
            suggestion: suggestion(field, expected),
        },
        plain => ConfigError::Syntax { reason: format!("{plain}{}", the_line(plain, text)) },
    }
}

/// The line that an error is about, to stand behind it.
fn the_line(error: &serde_saphyr::Error, text: &str) -> String {
    let number = error.location().and_then(|location| usize::try_from(location.line()).ok()?.checked_sub(1));
    let line =
        number.and_then(|number| text.lines().nth(number)).map(str::trim).filter(|line| !line.is_empty());
    line.map_or_else(String::new, |line| format!(": {line:?}"))
}

/// The key that was probably meant, else all there is.
fn suggestion(key: &str, known: &[&'static str]) -> String {
    let nearest = known.iter().map(|candidate| (distance(key, candidate), candidate)).min();
    match nearest {
        Some((distance, candidate)) if distance <= 1 + key.len() / 3 => format!("did you mean {candidate}?"),
        _ => format!("the keys here are {}", known.join(", ")),
    }
}

/// How many letters have to be added, left out or changed to turn one word into the other (Levenshtein), case
/// aside.
fn distance(one: &str, other: &str) -> usize {
    let (one, other) = (one.to_lowercase(), other.to_lowercase());
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (line, left) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, right) in other.chars().enumerate() {
            let change = diagonal + usize::from(left != right);
            diagonal = row[column + 1];
            row[column + 1] = change.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use route::Family;

    use netstate::pool::Pool;

    use super::{BackendKind, Config, ConfigError, Datapath, ExistingConnections};

    fn error(text: &str) -> String {
        Config::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(Config::parse("").unwrap(), Config::default());
        assert_eq!(Config::parse("# nothing\n").unwrap(), Config::default());
        assert_eq!(Config::parse("{}").unwrap(), Config::default());
    }

    #[test]
    fn every_key_is_read() {
        let text = "
cluster:
  podCIDRs: [10.20.0.0/16, 'fd20::/48']
  nodePrefixIPv4: 26
  nodePrefixIPv6: 72
  subnetMinIPv4: 10.20.1.0
  subnetMaxIPv4: 10.20.1.192
  subnetMinIPv6: 'fd20::'
  subnetMaxIPv6: 'fd20:0:0:1::'
  allowOverlap: [10.0.0.0/8]
  deletedNodeGraceSeconds: 5
underlay:
  interface: eth1
  canReach: [192.0.2.1, '2001:db8::1']
  addresses: [192.0.2.5]
  advertise: [203.0.113.5, '2001:db8::5']
  mtu: 9000
  probeMTU: false
  probeIntervalSeconds: 60
backend: host-gw
vxlan: {vni: 7, port: 4789, directRouting: true}
udp: {port: 1}
ipip: {datapath: user}
wireguard: {port: 2, datapath: kernel, strict: false}
flannel: {annotations: true, etcdPrefix: /coreos.com/network, subnetFile: /run/flannel/subnet.env}
masquerade: {enabled: false, ipv4: false, ipv6: false, exceptions: [192.0.2.0/24], randomFully: false}
policy: {enforcement: false, existingConnections: keep, attachmentPatienceSeconds: 9}
plugins: {portmap: false, bandwidth: false}
";
        let config = Config::parse(text).unwrap();
        assert_eq!(config.cluster.pod_cidrs.len(), 2);
        assert_eq!((config.cluster.node_prefix_ipv4, config.cluster.node_prefix_ipv6), (26, 72));
        assert_eq!(config.underlay.advertise.len(), 2);
        assert_eq!((config.vxlan.vni, config.vxlan.port, config.masquerade.enabled), (7, 4789, false));
        let underlay = &config.underlay;
        assert_eq!((underlay.can_reach.len(), underlay.probe_interval_seconds), (2, 60));
        let masquerade = &config.masquerade;
        let off = [underlay.probe_mtu, masquerade.ipv4, masquerade.ipv6, masquerade.random_fully];
        assert_eq!((off, masquerade.exceptions.len()), ([false; 4], 1));
        assert_eq!((config.backend, config.vxlan.direct_routing), (BackendKind::HostGw, true));
        assert_eq!((config.udp.port, config.wireguard.port, config.flannel.annotations), (1, 2, true));
        assert_eq!(config.flannel.etcd_prefix.as_deref(), Some("/coreos.com/network"));
        assert_eq!(config.flannel.subnet_file.as_deref(), Some("/run/flannel/subnet.env".as_ref()));
        assert_eq!((config.ipip.datapath, config.wireguard.datapath), (Datapath::User, Datapath::Kernel));
        assert!(!config.wireguard.strict);
        assert_eq!((config.plugins.portmap, config.plugins.bandwidth), (false, false));
        assert_eq!(config.policy.existing_connections, ExistingConnections::Keep);
        assert_eq!((config.policy.enforcement, config.policy.attachment_patience_seconds), (false, 9));
        assert_eq!(config.cluster.deleted_node_grace_seconds, 5);
        assert_eq!(config.pools().unwrap().iter().map(Pool::given).collect::<Vec<_>>(), [4, 257]);
    }

    #[test]
    fn an_unknown_key_is_refused_with_what_was_meant() {
        let text = error("vxlan:\n  vni: 1\n  prot: 8472\n");
        assert!(text.contains("line 3") && text.contains("no key prot"), "{text}");
        assert!(text.contains("did you mean port?"), "{text}");
        let text = error("encapsulation: vxlan\n");
        assert!(
            text.contains(
                "the keys here are cluster, underlay, backend, vxlan, udp, ipip, wireguard, flannel, masquerade, policy, plugins"
            ),
            "{text}"
        );
        assert!(error("cluster:\n  podcidrs: []\n").contains("did you mean podCIDRs?"));
    }

    #[test]
    fn values_that_cannot_be_are_refused_with_their_key() {
        for (text, want) in [
            ("cluster: {podCIDRs: []}", "cluster.podCIDRs is empty"),
            ("cluster: {podCIDRs: [10.1.0.0/16, 10.2.0.0/16]}", "two of family IPv4"),
            ("cluster: {podCIDRs: [10.1.7.0/16]}", "the network is 10.1.0.0/16"),
            ("cluster: {nodePrefixIPv4: 31}", "cluster.nodePrefixIPv4 is 31"),
            ("cluster: {nodePrefixIPv4: 8}", "cluster.nodePrefixIPv4 is wrong"),
            (
                "cluster: {subnetMinIPv4: 10.245.0.0}",
                "cluster.subnetMinIPv4 is wrong: no /24 of 10.244.0.0/16 begins at 10.245.0.0",
            ),
            (
                "cluster: {subnetMinIPv4: 10.244.2.0, subnetMaxIPv4: 10.244.1.0}",
                "cluster.subnetMaxIPv4 is wrong: 10.244.1.0 comes before 10.244.2.0",
            ),
            (
                "cluster: {podCIDRs: [10.244.0.0/16], subnetMaxIPv6: 'fd00:10:244:9::'}",
                "cluster.subnetMaxIPv6 is fd00:10:244:9::, and cluster.podCIDRs has no network of family IPv6",
            ),
            (
                "cluster: {podCIDRs: ['fd00:10:244::/56'], subnetMinIPv4: 10.244.2.0}",
                "cluster.subnetMinIPv4 is 10.244.2.0, and cluster.podCIDRs has no network of family IPv4",
            ),
            ("flannel: {netConf: etcd}", "flannel.netConf is etcd, and flannel.etcdPrefix"),
            ("vxlan: {vni: 0}", "vxlan.vni is 0"),
            ("vxlan: {vni: 16777216}", "vxlan.vni"),
            ("vxlan: {port: 0}", "vxlan.port is 0"),
            ("udp: {port: 0}", "udp.port is 0"),
            ("udp: {port: 8472}", "udp.port is 8472, and so is another backend's"),
            ("wireguard: {port: 8472}", "wireguard.port is 8472, and so is vxlan.port"),
            ("underlay: {mtu: 10}", "underlay.mtu"),
            ("underlay: {interface: 'a b'}", "underlay.interface"),
            ("flannel: {netConf: net-conf.json}", "net-conf.json"),
            ("flannel: {subnetFile: subnet.env}", "flannel.subnetFile is subnet.env"),
            ("flannel: {etcdPrefix: coreos.com/network}", "flannel.etcdPrefix is"),
            ("flannel: {etcdPrefix: /}", "flannel.etcdPrefix is"),
            ("underlay: {interface: eth0, interfacePattern: eth}", "is given beside underlay.interface"),
            ("underlay: {canReach: [192.0.2.1, 192.0.2.2]}", "underlay.canReach has two of family IPv4"),
            ("underlay: {probeIntervalSeconds: 0}", "underlay.probeIntervalSeconds is 0"),
            ("masquerade: {exceptions: [10.1.7.0/16]}", "the network is 10.1.0.0/16"),
            ("policy: {attachmentPatienceSeconds: 0}", "policy.attachmentPatienceSeconds is 0"),
        ] {
            assert!(error(text).contains(want), "{text}: {}", error(text));
        }
        for text in [
            "cluster: {podCIDRs: [10.1.0.0]}",
            "vxlan: {port: 70000}",
            "vxlan: [",
            "- a",
            "vxlan: no",
            "backend: hostgw",
            "underlay: {interfacePattern: '('}",
        ] {
            assert!(matches!(Config::parse(text), Err(ConfigError::Syntax { .. })), "{text}");
        }
    }

    #[test]
    fn a_pattern_is_read_once_and_one_that_cannot_be_is_refused_with_what_is_wrong_in_it() {
        let config = Config::parse("underlay: {interfacePattern: '^(eth|ens)\\d+$'}").unwrap();
        let pattern = config.underlay.interface_pattern.unwrap();
        assert!(pattern.regex().is_match(b"ens3") && !pattern.regex().is_match(b"docker0"));
        let text = error("underlay:\n  interfacePattern: 'eth('\n");
        assert!(text.contains("unclosed group") && text.contains("line 2"), "{text}");
    }

    #[test]
    fn each_family_can_be_left_untranslated() {
        let families = |text: &str| Config::parse(text).unwrap().masquerade.families();
        assert_eq!(families(""), Family::ALL);
        assert_eq!(families("masquerade: {ipv4: false}"), [Family::V6]);
        assert_eq!(families("masquerade: {enabled: false}"), []);
    }

    #[test]
    fn the_documented_example_is_the_default() {
        let text = include_str!("../../../examples/agent.yaml");
        assert_eq!(Config::parse(text).unwrap(), Config::default());
    }
}
