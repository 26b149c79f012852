//! What policies let pass and kept out, by policy and rule.
//!
//! Read [`register`]. What a rule decided has its policy and its place for labels; what nothing allowed has the policies
//! that isolate, of which the first few are named. There are at most [`MOST`] series of a kind, so that a node with thousands
//! of policies does not drown whoever reads them; `fairlead_policy_uncounted_rules` says how many are left out.

use cluster::{Direction, NamespacedName};
use policy::{Amount, Count, Counted};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};

use super::{Labels, gauge};

/// So many rules, and so many groups of policies that isolate, have series of their own.
const MOST: usize = 5000;

/// So many policies that isolate alike are named.
const NAMED: usize = 4;

/// Packets and bytes of new connections, each under its labels.
#[derive(Default)]
struct Both {
    packets: Family<Labels, Counter<u64>>,
    bytes: Family<Labels, Counter<u64>>,
    left_out: usize,
    taken: usize,
}

impl Both {
    fn add(&mut self, labels: &Labels, amount: Amount) {
        if self.taken == MOST {
            self.left_out += 1;
            return;
        }
        self.taken += 1;
        self.packets.get_or_create(labels).inc_by(amount.packets);
        self.bytes.get_or_create(labels).inc_by(amount.bytes);
    }

    fn register(self, registry: &mut Registry, name: &str, what: &str) -> usize {
        registry.register(
            format!("{name}_packets"),
            format!("Packets of new connections {what}"),
            self.packets,
        );
        let help = format!("Bytes of new connections {what}");
        registry.register_with_unit(name, help, Unit::Bytes, self.bytes);
        self.left_out
    }
}

/// Adds what was counted to the metrics.
pub(super) fn register(registry: &mut Registry, counts: &[Count]) {
    let (mut decided, mut denied, mut audited) = (Both::default(), Both::default(), Both::default());
    for Count { of, amount, .. } in counts {
        match of {
            Counted::Rule(direction, policy, place) => {
                let labels = rule("NetworkPolicy", *direction, policy.to_string(), *place);
                decided.add(&labels, *amount);
            }
            Counted::ClusterRule(direction, policy, place) => {
                let labels = rule("ClusterNetworkPolicy", *direction, policy.to_string(), *place);
                decided.add(&labels, *amount);
            }
            Counted::Isolated(direction, policies) => denied.add(&isolation(*direction, policies), *amount),
            Counted::WouldDeny(direction, policies) => audited.add(&isolation(*direction, policies), *amount),
            // Of which no policy is the cause, but that its pod is gone.
            Counted::Closed(direction) => denied.add(&isolation(*direction, &[]), *amount),
        }
    }
    let left_out = [
        decided.register(registry, "policy_rule", "that a rule of a policy decided on"),
        denied.register(registry, "policy_denied", "that no rule of the policies that isolate allowed"),
        audited.register(registry, "policy_would_deny", "that NetworkPolicies in audit would have denied"),
    ];
    let left_out = left_out.into_iter().sum::<usize>();
    let help = "Rules, and groups of policies that isolate, that have no series of their own";
    gauge(registry, "policy_uncounted_rules", help, i64::try_from(left_out).unwrap_or(i64::MAX));
}

/// Rules are counted from 1, as people do.
fn rule(kind: &str, direction: Direction, policy: String, place: usize) -> Labels {
    vec![
        ("kind", kind.to_owned()),
        ("policy", policy),
        ("direction", direction.as_str().to_owned()),
        ("rule", (place + 1).to_string()),
    ]
}

fn isolation(direction: Direction, policies: &[NamespacedName]) -> Labels {
    let mut named: Vec<String> = policies.iter().take(NAMED).map(ToString::to_string).collect();
    if let Some(more @ 1..) = policies.len().checked_sub(NAMED) {
        named.push(format!("{more} more"));
    }
    vec![("direction", direction.as_str().to_owned()), ("policies", named.join(","))]
}

#[cfg(test)]
mod tests {
    use cluster::{Direction, NamespacedName};
    use policy::{Amount, Count, Counted};
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::register;

    #[test]
    fn what_isolates_by_many_policies_names_a_few_of_them() {
        let name = |number: usize| NamespacedName::new("shop", format!("p{number}"));
        let amount = Amount { packets: 3, bytes: 180 };
        let isolated = |count: usize| Counted::Isolated(Direction::Ingress, (0..count).map(name).collect());
        let rule = Counted::Rule(Direction::Egress, name(0), 1);
        let all = [rule, isolated(1), isolated(9)];
        let counts = all.map(|of| Count { of, pods: Vec::new(), amount });
        let mut registry = Registry::default();
        register(&mut registry, &counts);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "policy_rule_packets_total{kind=\"NetworkPolicy\",policy=\"shop/p0\",direction=\"egress\",rule=\"2\"} 3",
            "policy_denied_bytes_total{direction=\"ingress\",policies=\"shop/p0\"} 180",
            "policy_denied_packets_total{direction=\"ingress\",policies=\"shop/p0,shop/p1,shop/p2,shop/p3,5 more\"} 3",
            "policy_uncounted_rules 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
