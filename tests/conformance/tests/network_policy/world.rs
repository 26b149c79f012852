//! A cluster of three nodes that cases are played in: the evaluator, and each node's table, step by step.

use std::net::IpAddr;

use cluster::{Change, Key, NamespacedName, Object, Pod, Protocol, ResolvedName, Snapshot};
use netstate::nft::Table;
use policy::{Flow, Policies, Traffic};

use crate::interpreter::{Node, carry_out, crosses};

/// The nodes that pods without a node of their own are placed on, one after the other.
pub(crate) const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// What policies are judged in.
pub(crate) struct World {
    /// One for each node, with the table that its steps have led to.
    nodes: Vec<(Policies, Table)>,
}

impl World {
    pub(crate) fn new() -> Self {
        let node = |name: &str| {
            let policies = Policies::new(name, Snapshot::default());
            let table = policies.full();
            (policies, table)
        };
        Self { nodes: NODES.map(node).into() }
    }

    pub(crate) fn policies(&self) -> &Policies {
        &self.nodes[0].0
    }

    pub(crate) fn snapshot(&self) -> &Snapshot {
        self.policies().cluster().snapshot()
    }

    pub(crate) fn set(&mut self, object: impl Into<Object>) {
        self.apply(&Change::Set(object.into()));
    }

    pub(crate) fn remove(&mut self, key: Key) {
        self.apply(&Change::Removed(key));
    }

    fn apply(&mut self, change: &Change) {
        for (policies, table) in &mut self.nodes {
            carry_out(table, &policies.apply(change).steps);
        }
    }

    pub(crate) fn resolve(&mut self, name: &ResolvedName) {
        for (policies, table) in &mut self.nodes {
            carry_out(table, &policies.resolve(name.clone()).steps);
        }
    }

    pub(crate) fn pod(&self, name: &NamespacedName) -> Pod {
        (**self.snapshot().pods.get(name).unwrap_or_else(|| panic!("no pod {name}"))).clone()
    }

    /// The node that the next pod is placed on, if it does not say.
    pub(crate) fn next_node(&self) -> &'static str {
        NODES[self.snapshot().pods.len() % NODES.len()]
    }

    /// Every node as it stands now, for [`World::passes`].
    pub(crate) fn stand(&self) -> Vec<Node> {
        let node = |(name, (policies, table)): (&&str, &(Policies, Table))| {
            let snapshot = policies.cluster().snapshot();
            let own = snapshot.nodes.get(*name).map_or(Vec::new(), |node| node.addresses.to_vec());
            let members = snapshot.pods.keys().filter_map(|pod| policies.cluster().member(pod));
            let here = members.filter(|member| member.node.as_deref() == Some(*name));
            let pods = here.flat_map(|member| member.addresses.into_vec()).collect();
            Node { own, pods, table: table.clone() }
        };
        NODES.iter().zip(&self.nodes).map(node).collect()
    }

    /// Whether a flow passes, which evaluator and tables must agree on.
    pub(crate) fn passes(&self, nodes: &[Node], flow: &Flow) -> bool {
        let judged = self.policies().verdict(flow);
        let name = |address: IpAddr| {
            let member = self.policies().cluster().party(address).member;
            member.map(|member| member.name().clone())
        };
        let itself = name(flow.source).is_some() && name(flow.source) == name(flow.destination);
        let number = |protocol| match protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        };
        let Traffic::Port(protocol, port) = flow.traffic else { panic!("cases have ports") };
        if !itself || flow.through_service {
            let crossed = crosses(nodes, flow.source, flow.destination, number(protocol), port);
            assert_eq!(judged.allows(), crossed, "the table differs: {}", self.policies().explain(flow));
        }
        judged.allows()
    }
}
