//! What a node's part of the cluster is, by the cluster and the host as they are now.
//!
//! Read [`NodeKeeper::decide`]: the underlays, the MTU, the pod CIDRs, the lease, and the design that follows from them. The
//! decisions themselves are pure functions of the crate `route`; here they are asked in order, and what comes of them is
//! told. Nothing is changed but claims, which the store grants on the way.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use cluster::{Backend, Flannel, Lease, Node};
use ipnet::IpNet;
use netstate::State;
use route::{
    Amendment, Design, Family, Host, Inputs, Masquerade, Networks, Retention, Senders, Taken, TunnelKind,
    Underlay, VxlanSettings, Wish, choose_underlay, overlaps, pod_mtu, vxlan,
};

use super::NodeKeeper;
use super::changeover::Changeover;
use crate::config::{BackendKind, Config, ForeignSenders, Pattern, VxlanConfig};
use crate::options::Options;
use crate::reconcile::Extent;
use crate::report::{Reason, told};
use crate::view::View;

/// What a node's part of the cluster is decided to be, before anything is done about it.
pub(super) struct Decided {
    pub(super) lease: Lease,
    pub(super) design: Design,
    /// What had to be looked at for it.
    pub(super) extent: Extent,
    /// How the design came of the last one, where it was not made anew.
    pub(super) amendment: Option<Amendment>,
}

/// Why the node's part cannot be decided.
pub(super) struct Refusal {
    pub(super) reason: Reason,
    pub(super) text: String,
}

/// Makes a [`Refusal`] of an error.
fn refused<E: std::error::Error>(reason: Reason) -> impl FnOnce(E) -> Refusal {
    move |error| Refusal { reason, text: told(&error) }
}

impl NodeKeeper {
    /// What the node's part is, by the cluster and the host as they are now.
    pub(super) fn decide(
        &mut self,
        view: &mut View,
        node: &Node,
        mut extent: Extent,
    ) -> Result<Decided, Refusal> {
        let mut host = self.host(&mut extent).map_err(refused(Reason::NodeRefused))?;
        let tunnel = self.choose_underlays(&host, node)?;
        self.heed_services(view)?;
        self.learn_advertised(view, &host, node)?;
        self.inherit(view);
        let families = self.families();
        let carried = self.carried(&tunnel);
        let now = Instant::now();
        let keys = self.take_keys(view, now).map_err(refused(Reason::NodeRefused))?;
        let backend = self.backend_of(self.options.config.backend, &self.options.node, keys.as_ref());
        let mtu = pod_mtu(&backend, &tunnel.link, carried, Family::of(tunnel.address), &families)
            .map_err(refused(Reason::UnderlayMissing))?;
        let liked = [self.remembered.as_slice(), &self.wished].concat();
        let pod_cidrs = self
            .leases
            .claim(&mut view.snapshot, node, &self.pools, &liked)
            .map_err(refused(Reason::LeaseNotPublished))?;
        if self.lease.as_ref().is_none_or(|lease| !lease.current().eq(pod_cidrs.iter().copied())) {
            // Which pods there are was not heard of.
            extent = Extent::Everything;
            host = self.host(&mut extent).map_err(refused(Reason::NodeRefused))?;
        }
        let pod_cidrs = self.with_retained(view, &host, pod_cidrs);
        let changeover = self.changeover(view, &host, (&backend, keys.as_ref()), now);
        let (sends, mut keeps): (_, Vec<Backend>) =
            (changeover.sends(now).clone(), changeover.keeps(now).cloned().collect());
        keeps.extend(self.held_key(&keeps));
        let former = self.former.follow(&self.options.node, &view.snapshot, now).clone();
        let kernel =
            self.in_kernel(view, &keeps.iter().chain([&backend, &sends]).collect::<Vec<_>>(), &former)?;
        let own = [self.remembered.as_slice(), &pod_cidrs].concat();
        let lease = self.without_narrow_tunnel(self.lease_of(pod_cidrs, backend, mtu), carried);
        self.tell_of_overlaps(&host, &own);
        let (translated, path_mtus) = (&self.options.config.masquerade, self.prober.limits());
        let inputs = Inputs {
            snapshot: &view.snapshot,
            lease: &lease,
            sends: &sends,
            sends_next: self.key_turn.as_ref().is_some_and(|turn| turn.sends_next(now)),
            keeps: &keeps,
            former: &former,
            underlay: &tunnel,
            underlays: &self.underlays,
            carried,
            vxlan: vxlan_settings(&self.options.config),
            kernel,
            udp_port: self.options.config.udp.port,
            senders: senders(&self.options),
            cluster: &self.options.config.cluster.pod_cidrs,
            masquerade: Masquerade {
                families: &translated.families(),
                fully_random: translated.random_fully,
                exceptions: &translated.exceptions,
            },
            path_mtus: &path_mtus,
            host: &host,
        };
        let (design, amendment) = self.known.design(extent, &mut self.design, &inputs);
        Ok(Decided { lease, design, extent, amendment })
    }

    /// Tells of networks of the host that are the cluster's as well; the node goes on.
    fn tell_of_overlaps(&mut self, host: &Host, own: &[IpNet]) {
        let cluster = &self.options.config.cluster;
        let networks = Networks { cluster: &cluster.pod_cidrs, own, allowed: &cluster.allow_overlap };
        for overlap in overlaps(host, &networks) {
            self.report.problem(Reason::NetworkOverlap, told(&overlap));
        }
    }

    /// The families that the node takes part with.
    pub(super) fn families(&self) -> Vec<Family> {
        self.pools.iter().map(|pool| Family::of_net(&pool.cluster())).collect()
    }

    /// What a node outside the cluster keeps: nothing, but where pods' packets are to be encrypted. Pods that still run must
    /// not send them in the clear when there is no tunnel any more.
    pub(super) fn what_stays(&self) -> State {
        let config = &self.options.config;
        match config.backend {
            BackendKind::WireGuard => route::guard(&config.cluster.pod_cidrs, &self.families()),
            _ => State::default(),
        }
    }

    /// What peers are told of a backend of that kind; `keys` is what they are told of WireGuard.
    fn backend_of(&self, kind: BackendKind, node: &str, keys: Option<&Backend>) -> Backend {
        match keys {
            Some(keys) if kind == BackendKind::WireGuard => keys.clone(),
            _ => self.options.config.backend_if(kind, node),
        }
    }

    /// The pod CIDRs of the lease: those that pods get addresses of, then those of before that pods still have some of.
    fn with_retained(&mut self, view: &View, host: &Host, mut pod_cidrs: Vec<IpNet>) -> Vec<IpNet> {
        let known = [self.leases.known(&view.snapshot).as_slice(), &self.remembered].concat();
        let retention = Retention { pools: &self.pools, current: &pod_cidrs, known: &known };
        let found = route::retained(host, &retention, || self.leases.of_others(&view.snapshot));
        for cidr in &found.kept {
            self.report.problem(
                Reason::PodCidrChanged,
                format!(
                    "give up pod CIDR {cidr}, which this node had before: pods here still have addresses of it, and are \
                     reached as before\nhint: it is given up with the last of them; make them anew when it suits"
                ),
            );
        }
        for Taken { cidr, node } in &found.lost {
            self.report.problem(
                Reason::PodCidrChanged,
                format!(
                    "reach pods with addresses of {cidr}, which this node had before: node {node} has it now\nhint: \
                     delete those pods, so that they are made anew"
                ),
            );
        }
        self.door.await_pods(!found.kept.is_empty() || !found.lost.is_empty());
        pod_cidrs.extend(found.kept);
        pod_cidrs
    }

    /// Where the node is on its way to a backend. An agent that starts goes by what an earlier one published, and by the
    /// devices that it left.
    fn changeover(
        &mut self,
        view: &View,
        host: &Host,
        (backend, keys): (&Backend, Option<&Backend>),
        now: Instant,
    ) -> &Changeover {
        // What flannel left says nothing of how this node sends.
        let own = |lease: &&Arc<Lease>| !lease.flannel.is_member();
        let published = view.snapshot.leases.get(&*self.options.node).filter(own);
        let published = published.map(|lease| lease.backend.clone());
        let there = BackendKind::ALL.map(|kind| self.backend_of(kind, "", keys));
        let changeover = self.changeover.get_or_insert_with(|| match published.clone() {
            None => Changeover::settled(backend.clone(), now),
            Some(known) => {
                let left = there.into_iter().filter(|other| {
                    other.name() != known.name() && device_of(other).is_some_and(|name| host.is_ours(name))
                });
                Changeover::resumed(known.clone(), left.collect(), now)
            }
        });
        changeover.want(backend, now);
        if let Some(known) = &published {
            changeover.publish(known, now);
        }
        changeover.settle(now);
        changeover
    }

    /// The peers know of the lease now.
    pub(super) fn note_published(&mut self, backend: &Backend) {
        let now = Instant::now();
        if let Some(changeover) = &mut self.changeover {
            changeover.publish(backend, now);
        }
        if let Some(turn) = &mut self.key_turn {
            turn.publish(backend, now);
        }
    }

    /// When something is due without any event, and how far a pass has to go for its sake.
    pub(crate) fn deadline(&self, now: Instant) -> Option<(Instant, Extent)> {
        let changeover = self.changeover.as_ref().and_then(|changeover| changeover.deadline(now));
        let turn = self.key_turn.as_ref().and_then(|turn| turn.deadline(now));
        let own = changeover.into_iter().chain(turn).map(|at| (at, Extent::Everything));
        let peers = self.former.deadline(now).map(|at| (at, Extent::Peers));
        own.chain(peers).min_by_key(|(at, _)| *at)
    }

    /// Chooses an underlay for each family that has one; the tunnel runs over IPv4 where there is one.
    fn choose_underlays(&mut self, host: &Host, node: &Node) -> Result<Underlay, Refusal> {
        let config = &self.options.config.underlay;
        let reached = self.door.reached(&config.can_reach).map_err(refused(Reason::NodeRefused))?;
        self.door
            .look_for(config.interface.as_deref(), config.interface_pattern.as_ref().map(Pattern::regex));
        let mut errors = Vec::new();
        let mut chosen = BTreeMap::new();
        for family in Family::ALL {
            let wish = Wish {
                interface: config.interface.as_deref(),
                pattern: config.interface_pattern.as_ref().map(Pattern::regex),
                reached: &reached,
                addresses: &config.addresses,
                node: &node.addresses,
                previous: self.underlays.get(&family),
            };
            match choose_underlay(host, &wish, family) {
                Ok(underlay) => {
                    if self.underlays.get(&family) != Some(&underlay) {
                        let Underlay { link, address, mtu, reason } = &underlay;
                        tracing::info!(%family, %link, %address, mtu, reason, "underlay chosen");
                    }
                    chosen.insert(family, underlay);
                }
                Err(error) => errors.push(told(&error)),
            }
        }
        // A tunnel that runs stays in its family: an address that is away for a moment, as while a lease is renewed,
        // is no reason to tear it down and leave the peers, who are all in that family.
        let family = self.lease.as_ref().and(self.underlays.keys().next()).or(chosen.keys().next());
        let tunnel = family
            .and_then(|family| chosen.get(family))
            .cloned()
            .ok_or_else(|| Refusal { reason: Reason::UnderlayMissing, text: errors.join("; ") })?;
        self.underlays = chosen;
        // What carries tunnels, and what could: a link with an address is chosen as soon as it is up.
        let carriers = self.underlays.values().map(|underlay| underlay.link.as_str());
        self.door.interest(carriers.chain(host.candidates()).map(str::to_owned));
        // By what packets travel no node's name matters.
        tunnel.carries(&self.options.config.backend_of("")).map_err(refused(Reason::UnderlayMissing))?;
        Ok(tunnel)
    }

    /// The largest packet that packets to peers may be: a plain route takes the link of its own family.
    fn carried(&self, tunnel: &Underlay) -> u32 {
        let config = &self.options.config;
        let plain = config.backend == BackendKind::HostGw;
        let links = self.underlays.values().filter(|_| plain).map(|underlay| underlay.mtu);
        links.chain([tunnel.mtu]).chain(config.underlay.mtu).min().unwrap_or(tunnel.mtu)
    }

    /// Would like to keep what this machine has had as a node of flannel.
    fn inherit(&mut self, view: &mut View) {
        if !self.options.has_flannels_keys() {
            return;
        }
        for cidr in view.inherit(&self.told_addresses()) {
            if !self.wished.contains(&cidr) {
                tracing::info!(%cidr, "flannel's keys have a subnet for this machine");
                self.wished.push(cidr);
            }
        }
    }

    /// The lease without an underlay of IPv6 where that is too narrow for flannel's second tunnel. Packets of IPv6 pods then go to
    /// Fairlead's nodes by the first one, as ever, and to flannel's not at all; all others have what they need.
    fn without_narrow_tunnel(&mut self, mut lease: Lease, carried: u32) -> Lease {
        let (Some(_), Some(over)) = (lease.mac_over_ipv6(), self.underlays.get(&Family::V6)) else {
            return lease;
        };
        // Pods take what is left with a route; but it has to be enough for IPv6.
        let left = pod_mtu(&lease.backend, &over.link, carried.min(over.mtu), Family::V6, &[Family::V6]);
        if let Err(error) = left {
            let why =
                format!("carry IPv6 to and from flannel's nodes, which is over IPv6 there: {}", told(&error));
            self.report.problem(Reason::UnderlayMissing, why);
            lease.underlay = lease.underlay.iter().copied().filter(IpAddr::is_ipv4).collect();
        }
        lease
    }

    fn lease_of(&self, pod_cidrs: Vec<IpNet>, backend: Backend, mtu: u32) -> Lease {
        Lease {
            node: self.options.node.as_str().into(),
            pod_cidrs: pod_cidrs.into(),
            underlay: self.told_addresses().into(),
            backend,
            mtu,
            flannel: if self.options.tells_flannel() { Flannel::Told } else { Flannel::Apart },
        }
    }
}

/// The device that a backend has.
fn device_of(backend: &Backend) -> Option<&'static str> {
    match backend {
        Backend::Vxlan { .. } => Some(vxlan::DEVICE),
        other => TunnelKind::of(other).map(TunnelKind::device),
    }
}

fn vxlan_settings(config: &Config) -> VxlanSettings {
    let VxlanConfig { vni, port, direct_routing } = config.vxlan;
    VxlanSettings { vni, port, direct_routing }
}

fn senders(options: &Options) -> Senders {
    let policy = &options.config.policy;
    let checked = policy.foreign_senders == ForeignSenders::Drop;
    Senders { checked, bridge: options.bridge, policed: policy.enforcement }
}
