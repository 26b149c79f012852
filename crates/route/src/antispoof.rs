//! What keeps pods from passing themselves off as others: the table `inet fairlead_antispoof`.
//!
//! Read [`table`]. What goes into it stands in two files. `senders.rs` has the addresses that pods send with: they are asked before
//! connections are tracked, so what is dropped there leaves no trace. `tunnel_guard.rs` has what only nodes may say: that is asked where
//! destinations have been translated, for before nobody knows whom a packet is to.
//!
//! Every packet of the node goes through both, each of a tunnel twice. So the chains at hooks ask by what link and by what protocol first,
//! and lead into others only what may have to be dropped: TCP that comes from no pod's cable is compared once in each.
//!
//! What stays true: the table follows from the configuration and the tunnels alone; no pod is an element of anything.

use netstate::nft::{
    BaseChain, Chain, ChainKind, Family, Hook, Policy, Rule, Statement, Table, Verdict, priority,
};

use crate::design::Inputs;
use crate::senders;
use crate::tunnel_guard::{self, Entrance};

/// The name of the table.
const TABLE: &str = "fairlead_antispoof";

/// The table of a node whose tunnels have these entrances; none where nothing is looked at.
pub(crate) fn table(inputs: &Inputs<'_>, entrances: &[Entrance]) -> Option<Table> {
    let mut table = Table::new(Family::Inet, TABLE);
    let mut arriving = base("prerouting", (ChainKind::Filter, Hook::Prerouting, priority::RAW));
    arriving.rules = senders::rules(inputs.senders, &mut table);
    if !arriving.rules.is_empty() {
        table = table.with_chain(arriving);
    }
    table = tunnel_guard::chains(inputs, entrances).into_iter().fold(table, Table::with_chain);
    (!table.chains.is_empty()).then_some(table)
}

/// A base chain that decides about what it has rules for.
pub(crate) fn base(name: &str, (kind, hook, priority): (ChainKind, Hook, i32)) -> Chain {
    Chain::base(name, BaseChain { kind, hook, priority, policy: Policy::Accept })
}

/// Leads packets of which these hold into a chain.
pub(crate) fn lead(mut statements: Vec<Statement>, verdict: Verdict) -> Rule {
    statements.push(Statement::Verdict(verdict));
    Rule::new(statements)
}

/// Drops packets of which these hold.
pub(crate) fn drop(mut statements: Vec<Statement>, why: &str) -> Rule {
    statements.extend([Statement::Counter, Statement::Verdict(Verdict::Drop)]);
    Rule::new(statements).with_comment(why)
}
