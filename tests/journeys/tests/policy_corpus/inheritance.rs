//! Addresses that a case gives to one pod after another.
//!
//! Read [`Past`]. Where a case's plan has one address for two pods, the second has to get what the first had in the lab: it goes
//! to the node of the first, and before it comes the note of what that node gave out last (host-local's own file, which is the
//! same for every implementation of it) is set to the address before.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use journeys::TestLab;
use serde_json::Value;

/// What pods of a case had that may be gone.
#[derive(Debug, Default)]
pub(crate) struct Past {
    pods: BTreeMap<String, Had>,
}

/// What a pod had.
#[derive(Debug, Clone)]
pub(crate) struct Had {
    pub(crate) node: String,
    pub(crate) addresses: Vec<IpAddr>,
}

impl Past {
    /// Remembers a pod that runs.
    pub(crate) fn remember(&mut self, id: &str, node: &str, addresses: &[IpAddr]) {
        let had = Had { node: node.to_owned(), addresses: addresses.to_vec() };
        self.pods.insert(id.to_owned(), had);
    }

    /// The addresses that it had or has.
    pub(crate) fn addresses_of(&self, id: &str) -> &[IpAddr] {
        self.pods.get(id).map_or(&[], |had| &had.addresses)
    }

    /// The node that it is or was on.
    pub(crate) fn node_of(&self, id: &str) -> Option<&str> {
        self.pods.get(id).map(|had| &*had.node)
    }

    /// What this pod inherits by the case's plan, if it has not been here and who had it is gone.
    pub(crate) fn inheritance(&self, case: &Value, id: &str, is_here: impl Fn(&str) -> bool) -> Option<&Had> {
        let plan = case["ips"].as_object()?;
        let own = plan.get(id).filter(|_| !self.pods.contains_key(id))?;
        let mut others = plan.iter().filter(|(other, addresses)| *addresses == own && !is_here(other));
        others.find_map(|(other, _)| self.pods.get(other))
    }
}

impl Had {
    /// Has the node give out these addresses next.
    pub(crate) fn is_next(&self, lab: &TestLab) {
        let store = lab.store();
        let home = store.parent().expect("the lab's home");
        for (index, address) in self.addresses.iter().enumerate() {
            let file = format!("{}/networks/fairlead/last_reserved_ip.{index}", self.node);
            std::fs::write(home.join(file), before(*address).to_string()).unwrap();
        }
    }
}

fn before(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() - 1).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() - 1).into(),
    }
}
