//! A node's pod CIDRs and lease: taking them, keeping them, giving them back.
//!
//! Read [`Leases::claim`]. The order is always the same: claims first (the store grants a CIDR to one node only),
//! then the lease that tells the peers; and backwards when giving back. So whatever moment an agent dies at, no two
//! nodes carry one CIDR, and the next start finishes what was begun.
//!
//! A node whose Node object is gone holds nothing: [`Leases::give_back`] is for the own node,
//! [`Leases::collect`] for the others, so that the CIDRs of a machine that burnt down come back too. Any agent may
//! do that at any time: what it looked at is looked at again, and a lease that changed meanwhile is left alone.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use cluster::{Change, Key, Kind, Lease, Node, Object, Snapshot, is_flannel_name};
use ipnet::IpNet;
use netstate::pool::Pool;
use route::{AllocateError, Request, Taken, choose_pod_cidr};
use store::{Claimed, Expect, Store};

/// Races lost in a row before the agent lets others go first; every node of a cluster could start at once.
const MOST_RACES: usize = 10_000;

/// Races lost in a row after which a node no longer tries the first free CIDR, as all the others do, but one somewhere:
/// of a thousand nodes that start at once only one would win each time.
const CROWD: usize = 8;

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
    store: Arc<dyn Store>,
    node: Arc<str>,
}

impl Leases {
    pub(crate) fn new(store: Arc<dyn Store>, node: &str) -> Self {
        Self { store, node: node.into() }
    }

    /// The Services of the cluster, and nothing else.
    pub(crate) fn services(&self) -> Result<Snapshot, store::Error> {
        self.store.list(&[Kind::Service]).map(|listing| listing.snapshot)
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
        let promised: Vec<IpNet> = promised(snapshot, &self.node).map(|taken| taken.cidr).collect();
        let mut taken = taken_by_others(snapshot, &self.node);
        let mut granted: Vec<IpNet> = Vec::new();
        let mut liked = remembered.to_vec();
        for pool in pools {
            // The same number in each family is easier on the eye; no more than a wish.
            let index = granted.first().and_then(|first| pools.first()?.index(*first));
            let alike = index.and_then(|index| pool.network(index));
            liked.extend(alike.filter(|alike| pool.gives_out(*alike)));
            let request =
                Request { manifest: &node.pod_cidrs, held: &held, remembered: &liked, promised: &promised };
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
        let mut liked = request.remembered.to_vec();
        for race in 0..MOST_RACES {
            let request = Request { remembered: &liked, ..*request };
            let cidr = choose_pod_cidr(pool, &request, taken)?;
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
                Claimed::Held { cidr, node } => taken.push(Taken { cidr, node: node.into() }),
            }
            if race >= CROWD {
                liked.extend(pool.some(somewhere(&self.node, race)));
            }
        }
        Err(AllocateError::Full { pool: pool.cluster(), node_prefix: pool.prefix(), count: pool.given() }
            .into())
    }

    /// What is others', or will be.
    pub(crate) fn of_others(&self, snapshot: &Snapshot) -> Vec<Taken> {
        let mut taken = taken_by_others(snapshot, &self.node);
        taken.extend(promised(snapshot, &self.node));
        taken
    }

    /// What is anybody's, or will be.
    pub(crate) fn of_all(&self, snapshot: &Snapshot) -> Vec<IpNet> {
        let others = self.of_others(snapshot).into_iter().map(|taken| taken.cidr);
        others.chain(self.known(snapshot)).collect()
    }

    /// Publishes the lease unless the store has it already, and gives up the claims it does not need. True if
    /// something was written.
    pub(crate) fn publish(&self, snapshot: &mut Snapshot, lease: &Lease) -> Result<bool, LeaseError> {
        let mut wrote = false;
        if snapshot.leases.get(&self.node).is_none_or(|have| **have != *lease) {
            self.write(snapshot, lease)?;
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

    /// The same where the store is to hear of the lease also if it has it already: others may have to be told again.
    pub(crate) fn publish_again(&self, snapshot: &mut Snapshot, lease: &Lease) -> Result<bool, LeaseError> {
        self.write(snapshot, lease)?;
        self.publish(snapshot, lease).map(|_| true)
    }

    fn write(&self, snapshot: &mut Snapshot, lease: &Lease) -> Result<(), LeaseError> {
        let object = Object::from(lease.clone());
        let tried = || format!("publish the lease of node {}", self.node);
        self.store
            .write(&object, Expect::Any)
            .map_err(|source| LeaseError::Store { tried: tried(), source })?;
        snapshot.apply(Change::Set(object));
        tracing::info!(pod_cidrs = ?lease.pod_cidrs, underlay = ?lease.underlay, mtu = lease.mtu, "lease published");
        Ok(())
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
    pub(crate) fn known(&self, snapshot: &Snapshot) -> Vec<IpNet> {
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

/// A number that hardly any two nodes have in common.
fn somewhere(node: &str, race: usize) -> u64 {
    let mut hasher = DefaultHasher::new();
    (node, race).hash(&mut hasher);
    hasher.finish()
}

/// The nodes that hold something and have no Node object.
fn vanished(snapshot: &Snapshot) -> BTreeSet<Arc<str>> {
    let leases = snapshot.leases.keys();
    let claims = snapshot.claims.values().map(|claim| &claim.node);
    leases.chain(claims).filter(|node| !snapshot.nodes.contains_key(*node)).cloned().collect()
}

/// What Node manifests give to other nodes.
fn promised(snapshot: &Snapshot, node: &str) -> impl Iterator<Item = Taken> {
    let others = snapshot.nodes.values().filter(move |other| *other.name != *node);
    others
        .flat_map(|other| other.pod_cidrs.iter().map(|cidr| Taken { cidr: *cidr, node: other.name.clone() }))
}

/// What other nodes hold, or carry without a claim. What they merely still carry is theirs only by a claim: the cluster
/// may have given it to this node.
fn taken_by_others(snapshot: &Snapshot, node: &str) -> Vec<Taken> {
    let claims = snapshot.claims.values().map(|claim| (&claim.node, claim.cidr));
    let leases = snapshot
        .leases
        .values()
        .filter(|lease| snapshot.nodes.contains_key(&lease.node))
        .flat_map(|lease| lease.current().map(move |cidr| (&lease.node, cidr)));
    // A node of flannel asks nobody for what is its own, nor does a place that a person keeps among flannel's keys.
    let flannels = snapshot
        .nodes
        .values()
        .filter(|node| is_flannel_name(&node.name))
        .flat_map(|node| node.pod_cidrs.iter().map(move |cidr| (&node.name, *cidr)));
    let others = claims.chain(leases).chain(flannels).filter(|(holder, _)| ***holder != *node);
    others.map(|(holder, cidr)| Taken { cidr, node: holder.clone() }).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use cluster::{Backend, Change, Flannel, Key, Lease, Node, Snapshot};
    use ipnet::IpNet;
    use netstate::pool::Pool;
    use store::{Directory, Expect};

    use super::Leases;

    /// A store with these Node manifests: name and pod CIDRs.
    fn store(nodes: &[(&str, &str)]) -> (tempfile::TempDir, Directory) {
        let directory = tempfile::tempdir().unwrap();
        for (name, cidrs) in nodes {
            put(directory.path(), name, cidrs);
        }
        let store = Directory::open(directory.path()).unwrap();
        (directory, store)
    }

    fn put(directory: &std::path::Path, name: &str, cidrs: &str) {
        let text = format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDRs: [{cidrs}]}}\n"
        );
        std::fs::write(directory.join(format!("{name}.yaml")), text).unwrap();
    }

    fn pools() -> Vec<Pool> {
        vec![Pool::new("10.244.0.0/16".parse().unwrap(), 24).unwrap()]
    }

    fn seen(store: &Directory) -> Snapshot {
        store.list().unwrap().snapshot
    }

    /// What an agent of that node does at its start, up to the lease.
    fn join(store: &Directory, name: &str, remembered: &[IpNet]) -> Result<Vec<IpNet>, String> {
        let leases = Leases::new(std::sync::Arc::new(store.clone()), name);
        let mut snapshot = seen(store);
        let node = snapshot.nodes[name].clone();
        let cidrs =
            leases.claim(&mut snapshot, &node, &pools(), remembered).map_err(|error| error.to_string())?;
        leases.publish(&mut snapshot, &lease(name, &cidrs)).map_err(|error| error.to_string())?;
        assert_eq!(snapshot, seen(store), "the agent's view is the store's");
        Ok(cidrs)
    }

    fn lease(name: &str, cidrs: &[IpNet]) -> Lease {
        Lease {
            node: name.into(),
            pod_cidrs: cidrs.into(),
            underlay: ["198.18.0.1".parse().unwrap()].into(),
            backend: Backend::Other("test".into()),
            mtu: 1450,
            flannel: Flannel::Apart,
        }
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn nodes_take_what_is_free_and_keep_it() {
        let (_directory, store) = store(&[("node1", ""), ("node2", "")]);
        assert_eq!(join(&store, "node1", &[]), Ok(vec![net("10.244.0.0/24")]));
        assert_eq!(join(&store, "node2", &[]), Ok(vec![net("10.244.1.0/24")]));
        assert_eq!(join(&store, "node1", &[]), Ok(vec![net("10.244.0.0/24")]));
    }

    #[test]
    fn what_a_node_of_flannel_has_is_taken_and_not_merely_promised() {
        let (_directory, store) = store(&[("node1", "")]);
        let leases = Leases::new(std::sync::Arc::new(store.clone()), "node1");
        let mut snapshot = seen(&store);
        let pod_cidrs = Box::new([net("10.244.0.0/24")]);
        let place = Node { pod_cidrs, ..Node::named("flannel-10.244.0.0-24") };
        snapshot.apply(Change::Set(place.into()));
        let mut node = snapshot.nodes["node1"].clone();
        // What the node held before is kept also where another's manifest gives it away, but not from flannel's.
        snapshot.apply(Change::Set(lease("node1", &[net("10.244.0.0/24")]).into()));
        let cidrs = leases.claim(&mut snapshot, &node, &pools(), &[]).unwrap();
        assert_eq!(cidrs, [net("10.244.1.0/24")]);
        std::sync::Arc::make_mut(&mut node).pod_cidrs = Box::new([net("10.244.0.0/24")]);
        let error = leases.claim(&mut snapshot, &node, &pools(), &[]).unwrap_err();
        assert!(error.to_string().contains("node flannel-10.244.0.0-24 holds"), "{error}");
    }

    #[test]
    fn the_families_of_a_node_get_the_same_number_where_they_can() {
        let (_directory, store) = store(&[("node1", ""), ("node2", "")]);
        store.claim(net("10.244.0.0/24"), "node2").unwrap();
        let pools = [pools()[0], Pool::new("fd00:10:244::/56".parse().unwrap(), 64).unwrap()];
        let mut snapshot = seen(&store);
        let node = snapshot.nodes["node1"].clone();
        let leases = Leases::new(std::sync::Arc::new(store.clone()), "node1");
        let cidrs = leases.claim(&mut snapshot, &node, &pools, &[]).unwrap();
        assert_eq!(cidrs, [net("10.244.1.0/24"), net("fd00:10:244:1::/64")]);
    }

    #[test]
    fn of_agents_that_start_at_once_each_gets_its_own() {
        let names: Vec<String> = (0..24).map(|number| format!("node{number}")).collect();
        let nodes: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
        let (_directory, store) = store(&nodes);
        let taken: BTreeSet<IpNet> = std::thread::scope(|scope| {
            let joining: Vec<_> = names.iter().map(|name| scope.spawn(|| join_alone(&store, name))).collect();
            joining.into_iter().flat_map(|one| one.join().unwrap()).collect()
        });
        assert_eq!(taken.len(), 24);
        assert_eq!(seen(&store).claims.len(), 24, "a lost race leaves no claim behind");
    }

    /// As [`join`], while others do the same.
    fn join_alone(store: &Directory, name: &str) -> Vec<IpNet> {
        let leases = Leases::new(std::sync::Arc::new(store.clone()), name);
        let mut snapshot = seen(store);
        let node = snapshot.nodes[name].clone();
        let cidrs = leases.claim(&mut snapshot, &node, &pools(), &[]).unwrap();
        leases.publish(&mut snapshot, &lease(name, &cidrs)).unwrap();
        cidrs
    }

    #[test]
    fn the_manifest_moves_a_node_and_its_old_claim_is_given_up() {
        let (directory, store) = store(&[("node1", ""), ("node2", "")]);
        join(&store, "node1", &[]).unwrap();
        join(&store, "node2", &[]).unwrap();
        put(directory.path(), "node1", "10.244.9.0/24");
        assert_eq!(join(&store, "node1", &[]), Ok(vec![net("10.244.9.0/24")]));
        let claims: Vec<IpNet> = seen(&store).claims_of("node1").collect();
        assert_eq!(claims, [net("10.244.9.0/24")]);
        put(directory.path(), "node1", "10.244.1.0/24");
        let error = join(&store, "node1", &[]).unwrap_err();
        assert!(error.contains("node node2 holds 10.244.1.0/24"), "{error}");
        assert!(seen(&store).leases.contains_key("node1"), "what it held it still holds");
    }

    #[test]
    fn a_node_given_back_returns_to_what_it_remembers() {
        let (_directory, store) = store(&[("node1", ""), ("node2", "")]);
        join(&store, "node1", &[]).unwrap();
        let held = join(&store, "node2", &[]).unwrap();
        let leases = Leases::new(std::sync::Arc::new(store.clone()), "node2");
        assert!(leases.give_back(&mut seen(&store)).unwrap());
        assert!(!leases.give_back(&mut seen(&store)).unwrap());
        assert_eq!(seen(&store).claims_of("node2").next(), None);
        Leases::new(std::sync::Arc::new(store.clone()), "node1").give_back(&mut seen(&store)).unwrap();
        assert_eq!(join(&store, "node2", &held), Ok(held));
    }

    #[test]
    fn what_vanished_nodes_hold_is_collected_but_not_from_one_that_is_back() {
        let (directory, store) = store(&[("node1", ""), ("node2", ""), ("node3", "")]);
        for name in ["node1", "node2", "node3"] {
            join(&store, name, &[]).unwrap();
        }
        std::fs::remove_file(directory.path().join("node2.yaml")).unwrap();
        std::fs::remove_file(directory.path().join("node3.yaml")).unwrap();
        let mut late = seen(&store);
        put(directory.path(), "node3", "");
        let leases = Leases::new(std::sync::Arc::new(store.clone()), "node1");
        let collected = leases.collect(&mut late).unwrap();
        assert_eq!(collected, ["node2".into()]);
        let now = seen(&store);
        assert_eq!(now.leases.keys().map(|name| &**name).collect::<Vec<_>>(), ["node1", "node3"]);
        assert_eq!(now.claims.len(), 2);
        assert!(leases.collect(&mut seen(&store)).unwrap().is_empty(), "once");
    }

    #[test]
    fn a_claim_without_a_lease_of_a_vanished_node_is_collected_too() {
        // Its agent was killed between the two.
        let (directory, store) = store(&[("node1", ""), ("node2", "")]);
        store.claim(net("10.244.0.0/24"), "node2").unwrap();
        std::fs::remove_file(directory.path().join("node2.yaml")).unwrap();
        let mut snapshot = seen(&store);
        assert_eq!(
            Leases::new(std::sync::Arc::new(store.clone()), "node1").collect(&mut snapshot).unwrap(),
            ["node2".into()]
        );
        assert!(seen(&store).claims.is_empty() && snapshot.claims.is_empty());
    }

    #[test]
    fn a_lease_written_meanwhile_is_not_removed() {
        let (directory, store) = store(&[("node1", ""), ("node2", "")]);
        join(&store, "node2", &[]).unwrap();
        std::fs::remove_file(directory.path().join("node2.yaml")).unwrap();
        let mut snapshot = seen(&store);
        let (_, version) = store.read(&Key::Lease("node2".into())).unwrap().unwrap();
        store.write(&lease("node2", &[net("10.244.7.0/24")]).into(), Expect::Any).unwrap();
        let leases = Leases::new(std::sync::Arc::new(store.clone()), "node1");
        assert!(!leases.remove(&mut snapshot, &"node2".into(), Expect::Version(version)).unwrap());
        assert!(seen(&store).leases.contains_key("node2"));
        snapshot.apply(Change::Set(Node::named("node2").into()));
        assert!(leases.collect(&mut snapshot).unwrap().is_empty());
    }
}
