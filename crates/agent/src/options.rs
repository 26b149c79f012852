//! What an agent is started with.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use store::{Location, Store};

use crate::config::{Config, ExistingConnections, PolicyConfig};

/// What an agent is started with. The command line fills it in; every path may be relative.
#[derive(Debug, Clone)]
pub struct Options {
    /// The node this agent is for, as its Node object is named (`--node`).
    pub node: String,
    /// The store (`--store dir:PATH`, `--store kubernetes[:KUBECONFIG]` or `--store etcd:URL[,URL]`).
    pub store: Location,
    /// The configuration file (`--config FILE`, see [`Config`]), read at the start and followed from then on.
    pub config_file: Option<PathBuf>,
    /// The configuration where there is no file.
    pub config: Config,
    /// Where the agent leaves what the CNI plugin reads, and its socket (`--state-dir`).
    pub state_dir: PathBuf,
    /// Where the container runtime looks for conflists (`--conf-dir`).
    pub conf_dir: PathBuf,
    /// Where host-local shall keep its addresses; the conflist says so (`--ipam-dir`). None leaves the plugin's
    /// own default, `/var/lib/cni/networks`.
    pub ipam_dir: Option<PathBuf>,
    /// Whether the network shall be a bridge (`cni0`) instead of routed links (`--bridge`).
    pub bridge: bool,
    /// Where `/livez`, `/readyz` and `/metrics` are answered by HTTP (`--health`); nowhere if none.
    pub health: Option<SocketAddr>,
    /// Where `/metrics` alone is (`--metrics`); nowhere else if none.
    pub metrics: Option<SocketAddr>,
    /// What becomes of open connections that no policy allows any more, whatever the configuration says
    /// (`--existing-connections`).
    pub existing_connections: Option<ExistingConnections>,
    /// What frees the addresses and host ports of attachments that are gone and that nobody deleted, given the conflist;
    /// called once the node is ready. The plugins know how; the agent only knows when.
    pub collect: Option<Collect>,
}

/// Frees what attachments left that are gone, and says which those were; or what went wrong.
pub type Collect = fn(conflist: &Path) -> Result<Vec<String>, String>;

impl Options {
    /// The default state directory.
    pub const STATE_DIR: &'static str = "/run/fairlead";
    /// The default directory of conflists.
    pub const CONF_DIR: &'static str = "/etc/cni/net.d";

    /// Where host-local keeps its addresses, unless it is told.
    pub const IPAM_DIR: &'static str = "/var/lib/cni/networks";

    /// Where keys are kept that a reboot is not to take, with the default state directory.
    pub const KEY_DIR: &'static str = "/var/lib/fairlead";

    /// Where this node's keys may be, the preferred place first: [`Self::KEY_DIR`], if it is there and the state directory
    /// is the default one; else the state directory, which is also where earlier versions kept them.
    pub(crate) fn key_directories(&self) -> Vec<PathBuf> {
        let lasting = PathBuf::from(Self::KEY_DIR);
        let lasting =
            Some(lasting).filter(|path| self.state_dir == Path::new(Self::STATE_DIR) && path.is_dir());
        lasting.into_iter().chain([self.state_dir.clone()]).collect()
    }

    /// An agent for this node on this store, everything else as by default.
    #[must_use]
    pub fn new(node: impl Into<String>, store: Location) -> Self {
        Self {
            node: node.into(),
            store,
            config_file: None,
            config: Config::default(),
            state_dir: PathBuf::from(Self::STATE_DIR),
            conf_dir: PathBuf::from(Self::CONF_DIR),
            ipam_dir: None,
            bridge: false,
            health: None,
            metrics: None,
            existing_connections: None,
            collect: None,
        }
    }

    /// What holds for network policies.
    pub(crate) fn policy(&self) -> PolicyConfig {
        let configured = &self.config.policy;
        let existing_connections = self.existing_connections.unwrap_or(configured.existing_connections);
        PolicyConfig { existing_connections, ..configured.clone() }
    }

    /// Opens the store.
    pub(crate) fn open_store(&self) -> Result<Box<dyn Store>, store::Error> {
        self.store.open_beside_flannel(self.config.flannel.etcd_prefix.as_deref())
    }

    /// Whether nodes of flannel are told of this one.
    pub(crate) fn tells_flannel(&self) -> bool {
        let flannel = &self.config.flannel;
        (flannel.annotations && self.store.has_flannels_annotations()) || self.has_flannels_keys()
    }

    /// Whether this node is kept among flannel's keys in etcd.
    pub(crate) fn has_flannels_keys(&self) -> bool {
        self.config.flannel.etcd_prefix.is_some() && self.store.is_etcd()
    }

    /// Says what of the configuration has no effect with this store.
    pub(crate) fn tell_what_is_without_effect(&self) {
        let (store, flannel) = (&self.store, &self.config.flannel);
        if flannel.annotations && !store.has_flannels_annotations() {
            tracing::warn!(%store, "flannel.annotations has no effect: it is about annotations of Kubernetes' Nodes");
        }
        if flannel.etcd_prefix.is_some() && !store.is_etcd() {
            tracing::warn!(%store, "flannel.etcdPrefix has no effect: it is about keys of an etcd that is the store");
        }
        for told in &flannel.without_effect {
            tracing::warn!("flannel's net-conf.json says what has no effect: {told}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Options;
    use crate::config::ExistingConnections;

    #[test]
    fn what_is_said_at_the_start_of_open_connections_goes_before_the_configuration() {
        let mut options = Options::new("node1", "dir:/x".parse().unwrap());
        options.config.policy.existing_connections = ExistingConnections::Keep;
        assert_eq!(options.policy(), options.config.policy);
        options.existing_connections = Some(ExistingConnections::Cut);
        assert_eq!(options.policy().existing_connections, ExistingConnections::Cut);
    }
}
