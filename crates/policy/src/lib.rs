//! Who may talk to whom: network policies as a verdict on any flow, as an explanation, and as one node's nf_tables rules.
//!
//! Read [`Policies`] first: the policies of one node, kept up to date change by change. It hands out the whole table
//! ([`Policies::full`]) and, for each change of the cluster, the steps from the table of before to the one of after
//! ([`Policies::apply`]). Then [`judge()`], the evaluator, written from the specifications: what becomes of one flow between
//! any two ends of the cluster. [`explain()`] tells the same in words. [`Cluster`] says who is behind an address.
//!
//! Inside, `select` finds the sets that a change changes, and `compile` makes chains and sets of policies.
//!
//! What stays true:
//! - there is one evaluator; the compiled table judges every flow as it does, which a property test compares;
//! - a change costs work in proportion to what it changes; the table computed anew is the oracle of that;
//! - what could not be read in a policy fails closed, for that policy's pods and nobody else;
//! - a pod's isolation does not end before its attachment: what is attached without a living pod is closed.
//!
//! Kubernetes: `networking.k8s.io/v1` NetworkPolicy, whole; `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy, whole,
//! given what domain names resolve to. Pure: values in, values out; no kernel, no clock, no disk.
//!
//! ```
//! use cluster::{Change, NamespacedName, NetworkPolicy, Pod, Protocol, Selector, Snapshot};
//! use policy::{Flow, Policies, Traffic};
//!
//! let mut web = Pod::named(NamespacedName::new("shop", "web"));
//! (web.node, web.addresses) = (Some("node1".into()), Box::from(["10.244.1.5".parse()?]));
//! let mut snapshot = Snapshot::default();
//! snapshot.apply(Change::Set(web.into()));
//! let mut policies = Policies::new("node1", snapshot);
//! let traffic = Traffic::Port(Protocol::Tcp, 80);
//! let (source, destination) = ("10.244.2.7".parse()?, "10.244.1.5".parse()?);
//! let flow = Flow { source, destination, traffic, through_service: false };
//! assert!(policies.verdict(&flow).allows());
//!
//! let name = NamespacedName::new("shop", "deny");
//! let (subjects, faults) = (Selector::default(), Box::default());
//! let ingress = Some(Box::default());
//! let deny = NetworkPolicy { name, subjects, ingress, egress: None, audit: false, faults };
//! let emitted = policies.apply(&Change::Set(deny.into()));
//! assert!(emitted.steps.iter().any(|step| step.to_string().contains("ingress4 { 10.244.1.5 : ")));
//! assert!(!policies.verdict(&flow).allows());
//! # Ok::<(), std::net::AddrParseError>(())
//! ```

mod compare;
mod compile;
mod counts;
mod delta;
mod explain;
mod judge;
mod policies;
mod record;
mod select;
mod view;

pub use compare::{FlowChange, Group, Span, compare};
pub use compile::frame::TABLE;
pub use compile::origin::{Decided, Logging, Verdicts};
pub use counts::{Amount, Count, Counted, Reading, Tally};
pub use explain::{Explanation, Reason, explain};
pub use judge::{ClusterRuleAt, Decision, Flow, Freedom, Judgement, Outcome, Traffic, judge};
pub use policies::{Emitted, Policies, concerns};
pub use record::{Record, RecordEnd, Told};
pub use view::{Attached, Cluster, Member, Party};
