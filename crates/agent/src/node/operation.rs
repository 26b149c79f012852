//! What people and kubelets ask of a node that is kept: another configuration, its status, its plan, whether it is ready.
//!
//! Nothing here looks at the cluster or changes the kernel; the next pass does, by what was left here.

use std::time::Instant;

use cluster::{Lease, Node, NodeNetwork};
use ipnet::IpNet;
use netstate::pool::Pool;
use route::Supply;

use super::NodeKeeper;
use crate::config::{Config, FlannelConfig};
use crate::files::Conflist;
use crate::reconcile::Extent;
use crate::report::{Reason, told};
use crate::status::{Answer, PlanReport, Status};
use crate::supply;
use crate::view::{Standing, View};

impl NodeKeeper {
    /// Goes on with another configuration, as far as one can without a new start.
    pub(crate) fn reconfigure(&mut self, config: Config) {
        let now = &self.options.config.cluster;
        let new = &config.cluster;
        self.config_problem = (!now.has_networks_of(new)).then(|| {
            "use the new configuration: cluster.podCIDRs and the pieces that nodes take stay as they were, for pods have addresses \
             by them\nhint: restart the agent of each node to change them; the pods of a node that gets another pod CIDR \
             must be made anew"
                .to_owned()
        });
        // The store has been opened by it.
        let etcd_prefix = self.options.config.flannel.etcd_prefix.clone();
        if etcd_prefix != config.flannel.etcd_prefix {
            self.config_problem = Some(
                "use the new configuration: flannel.etcdPrefix stays as it was\nhint: restart the agent of each node to \
                 change it"
                    .to_owned(),
            );
        }
        let cluster = config.cluster.with_networks_of(now);
        let flannel = FlannelConfig { etcd_prefix, ..config.flannel };
        self.options.config = Config { cluster, flannel, ..config };
        self.conflist = Conflist::new(&self.options);
        self.services_look = None;
        self.policing.reconfigure(&self.options.policy());
        tracing::info!("the configuration was read again");
        self.options.tell_what_is_without_effect();
        let text = "the new configuration is in force".to_owned();
        self.announcer.voice().notify(Reason::ConfigurationReloaded, text);
    }

    /// Tells what of the configuration is not in force.
    pub(super) fn tell_of_configuration(&mut self) {
        if let Some(problem) = &self.config_problem {
            self.report.problem(Reason::ConfigurationRefused, problem);
        }
        if let Some(problem) = self.policing.problem() {
            self.report.problem(Reason::PolicyNotEnforced, problem);
        }
    }

    /// Tells what the host's own firewall drops of what pods send and get.
    pub(super) fn tell_of_firewall(&mut self, extent: Extent) {
        let networks = &self.options.config.cluster.pod_cidrs;
        let closed = match extent {
            Extent::Everything => self.firewall.closed(networks, Instant::now()),
            // The way to a peer does not wait for it.
            _ => self.firewall.known(),
        };
        closed.iter().for_each(|chain| self.report.problem(Reason::HostFirewall, chain));
    }

    /// Tells what few are left of: pod CIDRs for nodes to come, and addresses for pods of this node.
    pub(super) fn tell_of_supply(&mut self, view: &View, node: &Node, extent: Extent) {
        // The way to a peer does not wait for it.
        if extent == Extent::Everything {
            let supplies = self.count_pod_cidrs(view, node);
            let told = supplies.iter().filter_map(|(pool, supply)| supply::told_of_cidrs(pool, supply));
            self.few_pod_cidrs = told.collect();
            self.count_pod_addresses();
        }
        self.few_pod_cidrs.iter().for_each(|told| self.report.problem(Reason::FewPodCidrsLeft, told));
        for told in self.pod_addresses.told() {
            self.report.problem(Reason::FewPodAddressesLeft, told);
        }
    }

    /// How many are left of the pools that the node takes its own pod CIDR out of.
    fn count_pod_cidrs(&self, view: &View, node: &Node) -> Vec<(&Pool, Supply)> {
        let mut pools = supply::own_pools(&self.pools, node).peekable();
        // Mostly the cluster gives them out, and what thousands of nodes hold need not be counted.
        if pools.peek().is_none() {
            return Vec::new();
        }
        let held = self.leases.of_all(&view.snapshot);
        pools.map(|pool| (pool, route::pod_cidrs(pool, held.iter().copied()))).collect()
    }

    /// How many of the node's addresses pods have.
    fn count_pod_addresses(&mut self) -> &[Supply] {
        let cidrs: Vec<IpNet> = self.lease.iter().flat_map(Lease::current).collect();
        self.pod_addresses.supplies(&cidrs, Instant::now())
    }

    /// Whether addresses for pods have begun to run short, or no longer do, since that was last told.
    pub(crate) fn has_other_shortage(&mut self) -> bool {
        let before = self.pod_addresses.told();
        self.count_pod_addresses();
        self.pod_addresses.told() != before
    }

    /// Has flannel's file, where it is wanted. Pods need it not.
    pub(super) fn keep_subnet_file(&mut self, network: &NodeNetwork) {
        let config = &self.options.config;
        let translated = config.masquerade.enabled && !config.masquerade.families().is_empty();
        let kept = match &config.flannel.subnet_file {
            Some(path) => self.subnet_file.keep(path, network, translated).map(drop),
            None => self.subnet_file.withdraw().map(drop),
        };
        if let Err(error) = kept {
            self.report.problem(Reason::NodeRefused, told(&error));
        }
    }

    /// Goes on with the configuration there is, for the new one cannot be used.
    pub(crate) fn refuse_configuration(&mut self, problem: String) {
        self.config_problem = Some(problem);
    }

    /// Whether the node can carry a new pod, with some peers to ask; `turn` says which.
    pub(crate) fn readiness(&self, view: &View, turn: usize) -> Answer {
        let status = self.report.status();
        let reasons = match status.ready {
            true => Vec::new(),
            false if status.reasons.is_empty() => vec!["nothing has been looked at yet".to_owned()],
            false => status.reasons,
        };
        let peers = self.design.as_ref().map(|design| crate::report::probed(&view.snapshot, design, turn));
        Answer::Readiness { reasons, peers: peers.unwrap_or_default() }
    }

    /// What would be changed now. Looks at the kernel, changes nothing.
    pub(crate) fn plan(&mut self, view: &View) -> Result<PlanReport, String> {
        let absent = matches!(self.standing(view), Standing::Absent);
        let want = match &self.design {
            Some(design) => design.state.clone(),
            None if view.in_sync && absent => self.what_stays(),
            None => return Err(format!("there is no plan yet: {}", self.report.reason())),
        };
        let plan = self.door.plan(&want).map_err(|error| told(&error))?;
        Ok(PlanReport {
            steps: plan.steps.iter().map(ToString::to_string).collect(),
            conflicts: plan.conflicts.iter().map(ToString::to_string).collect(),
            text: plan.to_string(),
        })
    }

    pub(crate) fn status(&mut self, view: &View) -> Status {
        let mut status = self.report.status();
        let networks = &self.options.config.cluster.pod_cidrs;
        status.firewall_closed = self.firewall.closed(networks, Instant::now()).to_vec();
        status.kernel_peers = self.kernel_peers(view);
        if let Standing::Member(node) = self.standing(view) {
            let supplies = self.count_pod_cidrs(view, &node);
            status.pod_cidr_supply = supplies.iter().map(|(_, supply)| supply::status(supply)).collect();
            status.pod_address_supply = self.count_pod_addresses().iter().map(supply::status).collect();
        }
        status.node.clone_from(&self.options.node);
        status.cluster_cidrs.clone_from(&self.options.config.cluster.pod_cidrs);
        status.backend = crate::report::backend(&self.options, self.design.as_ref());
        let keys = self.lease.iter().flat_map(|lease| lease.backend.keys());
        status.backend.keys = keys.map(crate::report::key).collect();
        status.store = view.status(&self.options.store);
        if let Some(lease) = &self.lease {
            status.pod_cidrs = lease.pod_cidrs.to_vec();
            status.mtu = lease.mtu;
        }
        let tunnel = self.underlays.values().next();
        status.underlay = tunnel.map(|tunnel| crate::report::underlay(tunnel, self.lease.as_ref()));
        status.tunnels = self.tunnels.traffic();
        status.backend.refused = self.refused(&status.tunnels);
        status.policies = self.policing.status();
        status.peers =
            crate::report::peers(&self.options.node, &view.snapshot, self.design.as_ref(), &self.changed);
        self.prober.look(|found| {
            for peer in &mut status.peers {
                let paths = self.design.as_ref().and_then(|design| design.peers.get(peer.node.as_str()));
                let sizes = paths.into_iter().flat_map(|paths| paths.values());
                peer.probed_mtu = sizes.filter_map(|path| found.get(&path.way.underlay()).copied()).min();
            }
        });
        status
    }
}
