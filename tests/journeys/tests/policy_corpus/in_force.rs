//! When what was written into the store is what the kernels of all nodes decide by.
//!
//! Read [`Mark`]. Agents say how many policies they know and whether the kernel has all that they know. So after each change
//! of the store some policies that are about nobody are written: their number makes the sum another one than it was, whatever
//! of the change has been read. An agent reads what is written in the order in which it is written.

use std::process::Stdio;
use std::time::{Duration, Instant};

use journeys::TestLab;
use serde_json::{Value, json};

const FILE: &str = "mark.yaml";

/// How long agents may need; those that are killed have to come back first.
const DEADLINE: Duration = Duration::from_secs(30);

/// Between two questions to an agent, which says nothing by itself.
const PAUSE: Duration = Duration::from_millis(2);

/// The mark that stands in the store.
#[derive(Default)]
pub(crate) struct Mark {
    /// How many policies it is.
    count: usize,
    /// With all others.
    sum: usize,
}

impl Mark {
    /// Returns when everything that is in the store by now is in force on all nodes. `policies` is the number of
    /// NetworkPolicies in it, but for the mark's own. An error says who does not enforce it and why.
    pub(crate) fn await_all(&mut self, lab: &TestLab, nodes: usize, policies: usize) -> Result<(), String> {
        let is_new = |count: &usize| *count != self.count && policies + *count != self.sum;
        // Two of three can be taken at the most.
        let count = (1..=3).find(is_new).expect("a number that was not there");
        *self = Self { count, sum: policies + count };
        let about_nobody = |number: usize| {
            json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": { "namespace": "mark", "name": format!("mark-{number}") },
                "spec": { "podSelector": {}, "policyTypes": ["Ingress"] },
            })
        };
        let items: Vec<Value> = (0..count).map(about_nobody).collect();
        lab.put(FILE, &json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string());
        (1..=nodes).try_for_each(|number| self.await_node(lab, &format!("node{number}")))
    }

    fn await_node(&self, lab: &TestLab, node: &str) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            let mut asked = lab.fairlead(&["status", "--lab", lab.name(), "--node", node, "-o", "json"]);
            let said = asked.stdin(Stdio::null()).output().expect("fairlead starts");
            // An agent that was killed answers nobody, and one that has begun a moment ago is not ready.
            let said = serde_json::from_slice::<Value>(&said.stdout).unwrap_or_default();
            let known = &said["policies"];
            let is_all = known["networkPolicies"] == self.sum && known["programmed"] == known["generation"];
            if is_all && known["enforced"] == true {
                return Ok(());
            }
            if begun.elapsed() > DEADLINE {
                return Err(format!("{node} does not enforce what is in the store: {known}"));
            }
            std::thread::sleep(PAUSE);
        }
    }
}
