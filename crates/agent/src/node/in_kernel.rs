//! Which of the tunnels the host's kernel carries, and what it says of them.
//!
//! Read [`NodeKeeper::in_kernel`]. What a kernel can do is asked when somebody needs it, and once: asking loads modules, and
//! those of IP in IP bring devices with them. What an operator has said goes before what is found.

use std::collections::BTreeMap;
use std::sync::Arc;

use cluster::Backend;
use netstate::{LinkKind, LinkName, SecretKey};
use route::{InKernel, TunnelKind};
use tunnel::DropReason;

use super::NodeKeeper;
use super::decide::Refusal;
use crate::config::Datapath;
use crate::door::silent_sysctls;
use crate::report::{Reason, told};
use crate::status::{KernelPeer, TunnelTraffic};
use crate::view::View;

impl NodeKeeper {
    /// What the kernel is to carry, where this node has these backends, and peers had those of before. None that nobody needs.
    pub(super) fn in_kernel(
        &mut self,
        view: &View,
        backends: &[&Backend],
        former: &BTreeMap<Arc<str>, Vec<Backend>>,
    ) -> Result<InKernel, Refusal> {
        let config = &self.options.config;
        let (wireguard, ipip) = (config.wireguard.datapath, config.ipip.datapath);
        let has = |kind| backends.iter().any(|backend| TunnelKind::of(backend) == Some(kind));
        let keys = || backends.iter().flat_map(|backend| backend.keys());
        // A peer that has it is reached by it whatever this node has.
        let theirs = || view.snapshot.leases.values().map(|lease| &lease.backend);
        let meets_ipip = || theirs().chain(former.values().flatten()).any(|theirs| *theirs == Backend::Ipip);
        let needs_ipip = has(TunnelKind::Ipip) || meets_ipip();
        let mut kernel = InKernel::default();
        if keys().next().is_some() && self.is_kernels(TunnelKind::WireGuard, wireguard)? {
            let [even, odd] = &mut kernel.wireguard;
            for key in keys() {
                let device = if key.generation.is_multiple_of(2) { &mut *even } else { &mut *odd };
                *device = self.keys.get(&key.generation).map(|key| SecretKey::new(key.0));
            }
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

    /// Whether the node has what the kernel tells of nobody's changes of.
    pub(crate) fn has_silent_parts(&self) -> bool {
        let state = self.design.as_ref().map(|design| &design.state);
        state.is_some_and(|state| !state.wireguards.is_empty() || silent_sysctls(state).next().is_some())
    }

    /// Whether somebody has changed what the kernel does not tell of: WireGuard's peers, a device's own key or port, or how a link
    /// takes router advertisements. What is not known to have been as designed is looked at again anyway.
    pub(crate) fn has_changed_silently(&mut self) -> bool {
        let Some(design) = self.design.as_ref().filter(|_| !self.failed) else { return false };
        if !self.door.has_silent_sysctls(&design.state) {
            return true;
        }
        design.state.wireguards.keys().any(|link| match self.door.has_wireguard(*link, &design.state) {
            Ok(has) => !has,
            // One that is not there the kernel tells of.
            Err(error) => {
                tracing::debug!(error = %told(&error), %link, "the kernel does not say how its WireGuard is");
                false
            }
        })
    }

    /// How many packets WireGuard has refused because they are behind no peer; none where this node has none of it.
    pub(super) fn refused(&mut self, tunnels: &[TunnelTraffic]) -> Option<u64> {
        let design = self.design.as_ref()?;
        let kinds = TunnelKind::ALL.into_iter().filter(|kind| kind.is_wireguard());
        let links = kinds.flat_map(|kind| {
            design.state.links.values().filter(move |link| link.name.as_str() == kind.device())
        });
        let mut refused = None;
        for link in links {
            let by_agent = tunnels.iter().filter(|tunnel| tunnel.device == link.name.as_str());
            let by_agent =
                by_agent.filter_map(|tunnel| tunnel.dropped.get(DropReason::NoPeer.label())).sum::<u64>();
            // A program's device counts what its program did not take.
            let by_kernel = match link.kind {
                LinkKind::WireGuard => self.door.unsent(link.name).unwrap_or_else(|error| {
                    tracing::debug!(error = %told(&error), link = %link.name, "the kernel does not say what it refused");
                    None
                }),
                _ => None,
            };
            *refused.get_or_insert(0) += by_agent + by_kernel.unwrap_or_default();
        }
        refused
    }

    /// What the kernel's WireGuard says of the peers, where it carries them.
    pub(super) fn kernel_peers(&mut self, view: &View) -> Vec<KernelPeer> {
        let links: Vec<LinkName> =
            self.design.iter().flat_map(|design| design.state.wireguards.keys().copied()).collect();
        // While keys change, a peer is in both devices.
        let mut peers = Vec::new();
        for link in links {
            match self.door.wireguard(link) {
                Ok(found) => peers.extend(found.peers),
                Err(error) => {
                    tracing::debug!(error = %told(&error), "the kernel does not say how its WireGuard fares");
                }
            }
        }
        let leases = view.snapshot.leases.values();
        leases
            .filter_map(|lease| {
                let keys: Vec<_> =
                    lease.backend.keys().map(|key| netstate::PublicKey(key.public_key.0)).collect();
                let found: Vec<_> =
                    peers.iter().filter(|(key, _)| keys.contains(key)).map(|(_, peer)| peer).collect();
                (!found.is_empty()).then(|| KernelPeer {
                    node: lease.node.to_string(),
                    last_handshake: found
                        .iter()
                        .filter_map(|peer| peer.last_handshake)
                        .max()
                        .map(|moment| moment.as_secs()),
                    sent_bytes: found.iter().map(|peer| peer.sent).sum(),
                    received_bytes: found.iter().map(|peer| peer.received).sum(),
                })
            })
            .collect()
    }
}
