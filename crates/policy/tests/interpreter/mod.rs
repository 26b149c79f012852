//! What nf_tables does with a packet, as far as policies use it: the compiled table run by hand.
//!
//! Read [`passes`], then [`crosses`], which takes a flow through the hooks of both nodes. Written from the manual
//! page nft(8), with none of the code under test in it. Also [`carry_out`]: the steps of a change, as strictly as the
//! kernel takes them.
#![allow(dead_code, reason = "two tests include this, each of which needs a part of it")]

use std::cell::Cell;
use std::net::IpAddr;

use netstate::nft::{
    Chain, Field, Hook, IpVersion, Key, Operator, Statement, Step, Table, Value, Verdict, ct_state, tcp_flags,
};

/// The first packet of a connection, at a hook.
pub(crate) struct Packet {
    pub(crate) hook: Hook,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    /// The destination port, or the type of an ICMP message.
    pub(crate) number: u16,
    /// As in [`ct_state`].
    pub(crate) state: u32,
    /// As in [`tcp_flags`].
    pub(crate) flags: u32,
    /// Whether the node has the source's address.
    pub(crate) from_node: bool,
    /// Its priority, which rules may change.
    pub(crate) priority: Cell<u32>,
}

impl Packet {
    pub(crate) fn new(hook: Hook, source: IpAddr, destination: IpAddr, protocol: u8, number: u16) -> Self {
        let (state, flags) = (ct_state::NEW, tcp_flags::SYN);
        let (from_node, priority) = (false, Cell::new(0));
        Self { hook, source, destination, protocol, number, state, flags, from_node, priority }
    }
}

enum End {
    Accept,
    Drop,
    Through,
}

/// Whether the table lets a packet pass its hook.
pub(crate) fn passes(table: &Table, packet: &Packet) -> bool {
    passes_and_tells(table, packet, &mut Vec::new())
}

/// The same, with the prefixes of what is logged on the way.
pub(crate) fn passes_and_tells(table: &Table, packet: &Packet, told: &mut Vec<String>) -> bool {
    let mut bases: Vec<&Chain> = table
        .chains
        .values()
        .filter(|chain| chain.base.is_some_and(|base| base.hook == packet.hook))
        .collect();
    bases.sort_by_key(|chain| chain.base.unwrap().priority);
    bases.iter().all(|chain| match run(table, chain, (packet, &mut *told), 0) {
        End::Accept => true,
        End::Drop => false,
        End::Through => chain.base.unwrap().policy == netstate::nft::Policy::Accept,
    })
}

fn run(table: &Table, chain: &Chain, (packet, told): (&Packet, &mut Vec<String>), depth: usize) -> End {
    assert!(depth < 16, "the kernel allows sixteen jumps");
    for rule in &chain.rules {
        for statement in &rule.statements {
            let verdict = match statement {
                Statement::Verdict(verdict) => Some(verdict),
                Statement::VerdictMap { fields, map } => {
                    let set = &table.sets[map];
                    let found = key(fields, packet).and_then(|key| set.elements.get(&key));
                    let Some(element) = found else { break };
                    Some(element.verdict.as_ref().unwrap())
                }
                Statement::SetPriority { fields, map } => {
                    let found = key(fields, packet).and_then(|key| table.sets[map].elements.get(&key));
                    let Some(element) = found else { break };
                    let [Value::Class(class)] = element.data[..] else { panic!("{element:?}") };
                    packet.priority.set(class);
                    None
                }
                // What counts or tells lets everything on, and nothing comes so often that a limit is reached.
                Statement::Counter | Statement::Limit(_) => None,
                Statement::Log(log) => {
                    told.push(log.prefix.clone());
                    None
                }
                other if holds(table, other, packet) => None,
                _ => break,
            };
            match verdict {
                None => {}
                Some(Verdict::Accept) => return End::Accept,
                Some(Verdict::Drop) => return End::Drop,
                Some(Verdict::Return) => return End::Through,
                Some(Verdict::Goto(name)) => {
                    return run(table, &table.chains[name], (packet, told), depth + 1);
                }
                Some(Verdict::Jump(name)) => {
                    match run(table, &table.chains[name], (packet, &mut *told), depth + 1) {
                        End::Through => break,
                        end => return end,
                    }
                }
            }
        }
    }
    End::Through
}

fn holds(table: &Table, statement: &Statement, packet: &Packet) -> bool {
    match statement {
        Statement::Match { field, operator, value } => {
            load(*field, packet).is_some_and(|have| (have == *value) == (*operator == Operator::Equal))
        }
        Statement::Between { field, operator, first, last } => load(*field, packet)
            .is_some_and(|have| (*first..=*last).contains(&have) == (*operator == Operator::Equal)),
        Statement::MaskedMatch { field: Field::CtState, mask, operator, value } => {
            (packet.state & mask == *value) == (*operator == Operator::Equal)
        }
        Statement::MaskedMatch { field: Field::TcpFlags, mask, operator, value } => {
            (packet.flags & mask == *value) == (*operator == Operator::Equal)
        }
        Statement::SourceIsLocal => packet.from_node,
        Statement::Lookup { fields, set, inverted } => {
            let set = &table.sets[set];
            let Some(key) = key(fields, packet) else { return false };
            let found = if set.interval {
                let [Value::Address(address)] = key[..] else { panic!("{key:?}") };
                set.elements.keys().any(|key| matches!(key[0], Value::Network(net) if net.contains(&address)))
            } else {
                set.elements.contains_key(&key)
            };
            found != *inverted
        }
        other => panic!("policies do not use {other}"),
    }
}

fn key(fields: &[Field], packet: &Packet) -> Option<Key> {
    fields.iter().map(|field| load(*field, packet)).collect()
}

fn load(field: Field, packet: &Packet) -> Option<Value> {
    let address =
        |address: IpAddr, version| (IpVersion::of(address) == version).then_some(Value::Address(address));
    match field {
        Field::Source(version) => address(packet.source, version),
        Field::Destination(version) => address(packet.destination, version),
        Field::Protocol => Some(Value::Protocol(packet.protocol)),
        Field::DestinationPort => Some(Value::Port(packet.number)),
        Field::Priority => Some(Value::Class(packet.priority.get())),
        Field::NetworkFamily => Some(Value::Protocol(if packet.source.is_ipv4() { 2 } else { 10 })),
        Field::IcmpType => Some(Value::Protocol(u8::try_from(packet.number).unwrap())),
        other => panic!("policies do not look at {other}"),
    }
}

/// Carries out the steps of a change, and fails where the kernel would.
pub(crate) fn carry_out(table: &mut Table, steps: &[Step]) {
    for step in steps {
        match step {
            Step::AddSet(_, set) => {
                assert!(table.sets.insert(set.name.clone(), set.clone()).is_none(), "{step}");
            }
            Step::DeleteSet(_, name) => {
                assert!(!uses(table).contains(name), "{step}: it is in use");
                assert!(table.sets.remove(name).is_some(), "{step}");
            }
            Step::AddElements(_, name, elements) => {
                let chains = &table.chains;
                let set = table.sets.get_mut(name).unwrap_or_else(|| panic!("{step}"));
                for (key, element) in elements {
                    if let Some(Verdict::Jump(chain) | Verdict::Goto(chain)) = &element.verdict {
                        assert!(chains.contains_key(chain), "{step}: no {chain}");
                    }
                    assert!(set.elements.insert(key.clone(), element.clone()).is_none(), "{step}");
                }
            }
            Step::DeleteElements(_, name, keys) => {
                let set = table.sets.get_mut(name).unwrap_or_else(|| panic!("{step}"));
                keys.iter().for_each(|key| assert!(set.elements.remove(key).is_some(), "{step}"));
            }
            Step::AddChain(_, chain) => {
                assert!(table.chains.insert(chain.name.clone(), chain.clone()).is_none(), "{step}");
            }
            Step::DeleteChain(_, name) => {
                assert!(!uses(table).contains(name), "{step}: it is in use");
                assert!(table.chains.remove(name).is_some_and(|chain| chain.rules.is_empty()), "{step}");
            }
            Step::FlushChain(_, name) => table.chains.get_mut(name).unwrap().rules.clear(),
            Step::AddRule(_, name, rule) => table.chains.get_mut(name).unwrap().rules.push(rule.clone()),
            Step::AddTable(_) | Step::DeleteTable(_) => panic!("{step}"),
        }
    }
    for name in uses(table) {
        assert!(table.sets.contains_key(&name) || table.chains.contains_key(&name), "{name} is missing");
    }
}

/// The sets and chains that rules and elements name.
fn uses(table: &Table) -> std::collections::BTreeSet<String> {
    let statements = table.chains.values().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.statements);
    let of_rules = statements.filter_map(|statement| match statement {
        Statement::Lookup { set: name, .. }
        | Statement::VerdictMap { map: name, .. }
        | Statement::SetPriority { map: name, .. } => Some(name.clone()),
        Statement::Verdict(Verdict::Jump(name) | Verdict::Goto(name)) => Some(name.clone()),
        _ => None,
    });
    let elements = table.sets.values().flat_map(|set| set.elements.values());
    let of_elements = elements.filter_map(|element| match &element.verdict {
        Some(Verdict::Jump(name) | Verdict::Goto(name)) => Some(name.clone()),
        _ => None,
    });
    of_rules.chain(of_elements).collect()
}

/// A node: its own addresses, the addresses of its pods, and its table.
pub(crate) struct Node {
    pub(crate) own: Vec<IpAddr>,
    pub(crate) pods: Vec<IpAddr>,
    pub(crate) table: Table,
}

/// Whether a flow passes all the hooks on its way.
pub(crate) fn crosses(
    nodes: &[Node],
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    number: u16,
) -> bool {
    let mut told = Vec::new();
    crosses_and_tells(nodes, |hook| Packet::new(hook, source, destination, protocol, number), &mut told)
}

/// The same for the packet that `at` gives for each hook, with the prefixes of what is logged on the way.
pub(crate) fn crosses_and_tells(nodes: &[Node], at: impl Fn(Hook) -> Packet, told: &mut Vec<String>) -> bool {
    let Packet { source, destination, .. } = at(Hook::Forward);
    nodes.iter().all(|node| {
        let begins = node.pods.contains(&source);
        let ends = node.pods.contains(&destination);
        if node.own.contains(&source) {
            return passes_and_tells(&node.table, &Packet { from_node: true, ..at(Hook::Output) }, told);
        }
        if begins && node.own.contains(&destination) {
            return passes_and_tells(&node.table, &at(Hook::Input), told);
        }
        !(begins || ends) || passes_and_tells(&node.table, &at(Hook::Forward), told)
    })
}
