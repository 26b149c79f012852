//! What is asked for.

use cni::{Config, Error};

use super::firewalld::Firewalld;

const ADMIN_CHAIN: &str = "CNI-ADMIN";
const ZONE: &str = "trusted";
/// iptables' limit for the name of a chain.
const LONGEST_CHAIN: usize = 28;

/// A configuration that has been checked.
#[derive(Debug)]
pub(super) struct FirewallConfig<'a> {
    pub(super) backend: Backend,
    /// The chain whose rules come before all others.
    pub(super) admin_chain: &'a str,
    /// The zone of firewalld that pods are in.
    pub(super) zone: &'a str,
    pub(super) ingress: Ingress,
}

/// Who lets pods pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backend {
    /// firewalld when it runs, otherwise rules.
    Any,
    /// Rules.
    Iptables,
    /// firewalld.
    Firewalld,
}

/// From where a pod may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ingress {
    /// From everywhere.
    Open,
    /// Of all bridges with such a policy, from its own only.
    SameBridge,
    /// From no pod.
    Isolated,
}

impl Ingress {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::SameBridge => "same-bridge",
            Self::Isolated => "isolated",
        }
    }
}

impl<'a> FirewallConfig<'a> {
    pub(super) fn of(config: &'a Config) -> Result<Self, Error> {
        let fields = config.fields();
        let ingress = match fields.string("ingressPolicy")? {
            "" | "open" => Ingress::Open,
            "same-bridge" => Ingress::SameBridge,
            "isolated" => Ingress::Isolated,
            other => {
                return Err(fields.bad("ingressPolicy", format!("unknown ingress policy: {other:?}")).into());
            }
        };
        let chain = fields.string("iptablesAdminChainName")?;
        let admin_chain = if chain.is_empty() { ADMIN_CHAIN } else { chain };
        let is_odd =
            |c: char| c.is_whitespace() || c.is_control() || matches!(c, '!' | '"' | '{' | '}' | ';');
        if admin_chain.len() > LONGEST_CHAIN || admin_chain.starts_with('-') || admin_chain.contains(is_odd) {
            let reason = format!("{admin_chain:?} cannot be the name of a chain");
            return Err(fields.bad("iptablesAdminChainName", reason).into());
        }
        if super::table::is_own(admin_chain) || super::forward::is_own(admin_chain) {
            let reason = format!("{admin_chain:?} is the name of a chain that has another meaning");
            return Err(fields.bad("iptablesAdminChainName", reason).into());
        }
        fields.string("firewalldZone")?;
        Ok(Self { backend: backend(config)?, admin_chain, zone: zone(config), ingress })
    }
}

fn backend(config: &Config) -> Result<Backend, Error> {
    Ok(match config.fields().string("backend")? {
        "iptables" => Backend::Iptables,
        "firewalld" => Backend::Firewalld,
        _ => Backend::Any,
    })
}

/// The zone, whatever else the configuration says.
pub(super) fn zone(config: &Config) -> &str {
    config.fields().string("firewalldZone").ok().filter(|zone| !zone.is_empty()).unwrap_or(ZONE)
}

/// For DEL and GC: firewalld, if it runs and the configuration does not leave it out.
pub(super) fn running(config: &Config) -> Result<Option<Firewalld>, Error> {
    match backend(config) {
        Ok(Backend::Iptables) => Ok(None),
        _ => Firewalld::find(),
    }
}
