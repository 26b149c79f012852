//! A node's pod CIDRs and lease: taking them, keeping them, giving them back.
//!
//! Read [`Leases::hold`]. The order is always the same: claims first (the store grants a CIDR to one node only),
//! then the lease that tells the peers; and backwards when giving back. So whatever moment an agent dies at, no two
//! nodes carry one CIDR, and the next start finishes what was begun.
//!
//! A node whose Node object is gone holds nothing: [`Leases::give_back`] is for the own node,
//! [`Leases::collect`] for the others, so that the CIDRs of a machine that burnt down come back too. Any agent may
//! do that at any time: what it looked at is looked at again, and a lease that changed meanwhile is left alone.

use std::collections::BTreeSet;
use std::sync::Arc;

use cluster::{Change, Key, Lease, Node, Object, Snapshot};
use ipnet::IpNet;
use netstate::pool::Pool;
use route::{AllocateError, Request, Taken, choose_pod_cidr};
use store::{Claimed, Directory, Expect};

/// Races lost in a row before the agent lets others go first; every node of a cluster could start at once.
const MOST_RACES: usize = 10_000;

/// The node holds no lease, or not the one it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    /// No CIDR can be taken. Looked at again when the cluster changes.
    #[error(transparent)]
    Allocate(#[from] AllocateError),
    /// The store refused. Tried again.
    #[error("{tried}")]
    Store {
        /// What was tried.
        tried: String,
        /// Why not.
        #[source]
        source: store::Error,
    },
}

/// The claims and leases of a store, as one node's agent deals with them.
#[derive(Debug)]
pub(crate) struct Leases {
    store: Directory,
    node: Arc<str>,
}

impl Leases {
    pub(crate) fn new(store: Directory, node: &str) -> Self {
        Self { store, node: node.into() }
    }

    /// Takes a CIDR out of each pool and returns them. `snapshot` learns at once what the store granted.
    pub(crate) fn claim(
        &self,
        snapshot: &mut Snapshot,
        node: &Node,
        pools: &[Pool],
        remembered: &[IpNet],
    ) -> Result<Vec<IpNet>, LeaseError> {
        let held: Vec<IpNet> = self.known(snapshot);
        let others = snapshot.nodes.values().filter(|other| other.name != self.node);
        let promised: Vec<IpNet> = others.flat_map(|other| other.pod_cidrs.iter().copied()).collect();
        let mut taken = taken_by_others(snapshot, &self.node);
        let request = Request { manifest: &node.pod_cidrs, held: &held, remembered, promised: &promised };
        let mut granted = Vec::new();
        for pool in pools {
            granted.push(self.claim_one(snapshot, pool, &request, &mut taken)?);
        }
        Ok(granted)
    }

    fn claim_one(
        &self,
        snapshot: &mut Snapshot,
        pool: &Pool,
        request: &Request<'_>,
        taken: &mut Vec<Taken>,
    ) -> Result<IpNet, LeaseError> {
        for _ in 0..MOST_RACES {
            let cidr = choose_pod_cidr(pool, request, taken)?;
            if snapshot.claims.get(&cidr).is_some_and(|claim| claim.node == self.node) {
                return Ok(cidr);
            }
            let tried = || format!("claim pod CIDR {cidr} for node {}", self.node);
            match self
                .store
                .claim(cidr, &self.node)
                .map_err(|source| LeaseError::Store { tried: tried(), source })?
            {
                Claimed::Granted => {
                    let claim = cluster::Claim { cidr, node: self.node.clone() };
                    snapshot.apply(Change::Set(claim.into()));
                    tracing::info!(%cidr, "pod CIDR claimed");
                    return Ok(cidr);
                }
                Claimed::Held { cidr, node } => taken.push(Taken { cidr, node }),
            }
        }
        Err(AllocateError::Full { pool: pool.cluster(), node_prefix: pool.prefix(), count: pool.size() }
            .into())
    }

    /// Publishes the lease unless the store has it already, and gives up the claims it does not need. True if
    /// something was written.
    pub(crate) fn publish(&self, snapshot: &mut Snapshot, lease: &Lease) -> Result<bool, LeaseError> {
        let mut wrote = false;
        if snapshot.leases.get(&self.node).is_none_or(|have| **have != *lease) {
            let object = Object::from(lease.clone());
            let tried = || format!("publish the lease of node {}", self.node);
            self.store
                .write(&object, Expect::Any)
                .map_err(|source| LeaseError::Store { tried: tried(), source })?;
            snapshot.apply(Change::Set(object));
            tracing::info!(pod_cidrs = ?lease.pod_cidrs, underlay = ?lease.underlay, mtu = lease.mtu, "lease published");
            wrote = true;
        }
        let unused: Vec<IpNet> =
            snapshot.claims_of(&self.node).filter(|cidr| !lease.pod_cidrs.contains(cidr)).collect();
        for cidr in unused {
            self.release(snapshot, cidr, &self.node)?;
            wrote = true;
        }
        Ok(wrote)
    }

    /// Gives back everything this node holds. True if there was something.
    pub(crate) fn give_back(&self, snapshot: &mut Snapshot) -> Result<bool, LeaseError> {
        self.remove(snapshot, &self.node, Expect::Any)
    }

    /// Gives back what nodes hold that are no longer part of the cluster; returns their names.
    pub(crate) fn collect(&self, snapshot: &mut Snapshot) -> Result<Vec<Arc<str>>, LeaseError> {
        let mut collected = Vec::new();
        for node in vanished(snapshot) {
            let read = |key: Key| {
                let tried = || format!("look up {key}");
                self.store.read(&key).map_err(|source| LeaseError::Store { tried: tried(), source })
            };
            // The snapshot may lag behind; a node that is back keeps what it holds.
            if read(Key::Node(node.clone()))?.is_some() {
                continue;
            }
            let expect = match read(Key::Lease(node.clone()))? {
                Some((_, version)) => Expect::Version(version),
                None => Expect::Any,
            };
            if self.remove(snapshot, &node, expect)? {
                collected.push(node);
            }
        }
        Ok(collected)
    }

    /// What the node holds by the store's word.
    fn known(&self, snapshot: &Snapshot) -> Vec<IpNet> {
        let lease = snapshot.leases.get(&self.node).map(|lease| lease.pod_cidrs.to_vec()).unwrap_or_default();
        lease.into_iter().chain(snapshot.claims_of(&self.node)).collect()
    }

    fn remove(&self, snapshot: &mut Snapshot, node: &Arc<str>, expect: Expect) -> Result<bool, LeaseError> {
        let key = Key::Lease(node.clone());
        let tried = || format!("remove the lease of node {node}");
        let removed = match self.store.delete(&key, expect) {
            Ok(removed) => removed,
            // Somebody wrote it since it was read: the node is back, or another agent was faster.
            Err(store::Error::Conflict { .. }) => return Ok(false),
            Err(source) => return Err(LeaseError::Store { tried: tried(), source }),
        };
        snapshot.apply(Change::Removed(key));
        let mut any = removed;
        let claims: Vec<IpNet> = snapshot.claims_of(node).collect();
        for cidr in claims {
            any |= self.release(snapshot, cidr, node)?;
        }
        Ok(any)
    }

    fn release(&self, snapshot: &mut Snapshot, cidr: IpNet, node: &str) -> Result<bool, LeaseError> {
        let tried = || format!("release pod CIDR {cidr} of node {node}");
        let released =
            self.store.release(cidr, node).map_err(|source| LeaseError::Store { tried: tried(), source })?;
        snapshot.apply(Change::Removed(Key::Claim(cidr)));
        Ok(released)
    }
}

/// The nodes that hold something and have no Node object.
fn vanished(snapshot: &Snapshot) -> BTreeSet<Arc<str>> {
    let leases = snapshot.leases.keys();
    let claims = snapshot.claims.values().map(|claim| &claim.node);
    leases.chain(claims).filter(|node| !snapshot.nodes.contains_key(*node)).cloned().collect()
}

/// What other nodes hold, or carry without a claim.
fn taken_by_others(snapshot: &Snapshot, node: &str) -> Vec<Taken> {
    let claims = snapshot.claims.values().map(|claim| (&claim.node, std::slice::from_ref(&claim.cidr)));
    let leases = snapshot
        .leases
        .values()
        .filter(|lease| snapshot.nodes.contains_key(&lease.node))
        .map(|lease| (&lease.node, &*lease.pod_cidrs));
    claims
        .chain(leases)
        .filter(|(holder, _)| ***holder != *node)
        .flat_map(|(holder, cidrs)| cidrs.iter().map(|cidr| Taken { cidr: *cidr, node: holder.to_string() }))
        .collect()
}
