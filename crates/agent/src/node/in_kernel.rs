//! Which of the tunnels the host's kernel carries, and what it says of them.
//!
//! Read [`NodeKeeper::in_kernel`]. What a kernel can do is asked when somebody needs it, and once: asking loads modules, and
//! those of IP in IP bring devices with them. What an operator has said goes before what is found.

use cluster::Backend;
use netstate::SecretKey;
use route::{InKernel, TunnelKind};

use super::NodeKeeper;
use super::decide::Refusal;
use crate::config::Datapath;
use crate::report::{Reason, told};
use crate::status::KernelPeer;
use crate::view::View;

impl NodeKeeper {
    /// What the kernel is to carry, where this node has these backends. None that nobody needs.
    pub(super) fn in_kernel(&mut self, view: &View, backends: &[&Backend]) -> Result<InKernel, Refusal> {
        let config = &self.options.config;
        let (wireguard, ipip) = (config.wireguard.datapath, config.ipip.datapath);
        let has = |kind| backends.iter().any(|backend| TunnelKind::of(backend) == Some(kind));
        // A peer that has it is reached by it whatever this node has.
        let meets_ipip = || view.snapshot.leases.values().any(|lease| lease.backend == Backend::Ipip);
        let key = self.key.filter(|_| has(TunnelKind::WireGuard));
        let needs_ipip = has(TunnelKind::Ipip) || meets_ipip();
        let mut kernel = InKernel::default();
        if let Some(key) = key
            && self.is_kernels(TunnelKind::WireGuard, wireguard)?
        {
            kernel.wireguard = Some(SecretKey::new(key.0));
        }
        kernel.ipip = needs_ipip && self.is_kernels(TunnelKind::Ipip, ipip)?;
        Ok(kernel)
    }

    fn is_kernels(&mut self, kind: TunnelKind, datapath: Datapath) -> Result<bool, Refusal> {
        if datapath == Datapath::User {
            return Ok(false);
        }
        let families = self.families();
        let has = self.door.has_tunnel(kind, &families).map_err(|error| Refusal {
            reason: Reason::NodeRefused,
            text: format!("find out whether the kernel carries {}: {}", kind.name(), told(&error)),
        })?;
        if datapath == Datapath::Auto || has {
            return Ok(has);
        }
        let name = kind.name();
        let text = format!(
            "let the kernel carry {name}: it cannot\nhint: load its module, or set {name}.datapath to auto, and the agent \
             carries it itself"
        );
        Err(Refusal { reason: Reason::NodeRefused, text })
    }

    /// What the kernel's WireGuard says of the peers, where it carries them.
    pub(super) fn kernel_peers(&mut self, view: &View) -> Vec<KernelPeer> {
        let device = TunnelKind::WireGuard.device();
        let link = self
            .design
            .as_ref()
            .and_then(|design| design.state.wireguards.keys().find(|link| link.as_str() == device).copied());
        let Some(link) = link else { return Vec::new() };
        let peers = match self.door.wireguard(link) {
            Ok(found) => found.peers,
            Err(error) => {
                tracing::debug!(error = %told(&error), "the kernel does not say how its WireGuard fares");
                return Vec::new();
            }
        };
        let leases = view.snapshot.leases.values();
        leases
            .filter_map(|lease| {
                let Backend::WireGuard { public_key, .. } = lease.backend else { return None };
                let found = peers.get(&netstate::PublicKey(public_key.0))?;
                Some(KernelPeer {
                    node: lease.node.to_string(),
                    last_handshake: found.last_handshake.map(|moment| moment.as_secs()),
                    sent_bytes: found.sent,
                    received_bytes: found.received,
                })
            })
            .collect()
    }
}
