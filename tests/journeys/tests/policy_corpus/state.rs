//! A case of the corpus under way: what stands by its word after each of its steps.
//!
//! Read [`Case`]. It knows no lab; [`crate::cases`] brings the lab to it.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::cases::{list, text};
use crate::inheritance::Past;

/// A case under way: what it has made so far.
pub(crate) struct Case<'v> {
    pub(crate) case: &'v Value,
    pub(crate) family: Family,
    pub(crate) namespaces: BTreeMap<String, Value>,
    pub(crate) pods: BTreeMap<String, Value>,
    pub(crate) policies: BTreeMap<String, Value>,
    pub(crate) past: Past,
    /// Whether a pod got the addresses of another.
    pub(crate) has_heirs: bool,
}

/// Which addresses a case is played with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// Its verdicts hold in both.
    Both,
    V4,
    V6,
    /// It says for each itself.
    Named,
}

impl<'v> Case<'v> {
    pub(crate) fn new(case: &'v Value, family: Family) -> Self {
        let named = |(name, namespace): (&String, &Value)| (name.clone(), namespace["labels"].clone());
        Self {
            case,
            family,
            namespaces: case["namespaces"].as_object().into_iter().flatten().map(named).collect(),
            pods: list(&case["pods"]).map(|pod| (id(pod), pod.clone())).collect(),
            policies: BTreeMap::new(),
            past: Past::default(),
            has_heirs: false,
        }
    }

    /// Changes what an action of a step changes, but for policies.
    pub(crate) fn act(&mut self, what: &str, value: &Value) {
        match what {
            "create_namespace" | "set_namespace_labels" => {
                self.namespaces.insert(text(&value["name"]).to_owned(), value["labels"].clone());
            }
            "delete_namespace" => {
                let name = text(&value["name"]);
                self.namespaces.remove(name);
                self.pods.retain(|_, pod| text(&pod["ns"]) != name);
            }
            "create_pod" => drop(self.pods.insert(id(value), value.clone())),
            "set_pod_labels" => self.change(value, "labels", value["labels"].clone()),
            "set_pod_phase" => self.change(value, "phase", value["phase"].clone()),
            "set_pod_terminating" => self.change(value, "terminating", Value::Bool(true)),
            // Policies are seen to by `act_on_policies`.
            _ => {}
        }
    }

    fn change(&mut self, pod: &Value, key: &str, value: Value) {
        self.pods.get_mut(&id(pod)).expect("the pod is there")[key] = value;
    }

    /// Changes what it changes of policies.
    pub(crate) fn act_on_policies(&mut self, action: &Value) {
        for (what, value) in action.as_object().into_iter().flatten() {
            match what.as_str() {
                "create_policy" | "update_policy" | "create_cluster_policy" | "update_cluster_policy" => {
                    self.put_policy(value);
                }
                "delete_policy" => {
                    let key = format!("NetworkPolicy/{}/{}", text(&value["ns"]), text(&value["name"]));
                    self.policies.remove(&key);
                }
                "delete_cluster_policy" => {
                    self.policies.remove(&format!("ClusterNetworkPolicy//{}", text(&value["name"])));
                }
                "delete_namespace" => {
                    let inside = format!("NetworkPolicy/{}/", text(&value["name"]));
                    self.policies.retain(|key, _| !key.starts_with(&inside));
                }
                _ => {}
            }
        }
    }

    pub(crate) fn put_policy(&mut self, policy: &Value) {
        let metadata = &policy["metadata"];
        let namespace = metadata["namespace"].as_str().unwrap_or_default();
        let key = format!("{}/{namespace}/{}", text(&policy["kind"]), text(&metadata["name"]));
        self.policies.insert(key, policy.clone());
    }
}

/// The pod that a case speaks of.
pub(crate) fn id(value: &Value) -> String {
    format!("{}/{}", text(&value["ns"]), text(&value["name"]))
}
