//! nf_tables without the `nft` program: tables, chains, rules, sets and their elements, in atomic transactions.
//!
//! Read [`Transaction`] first: changes in the words of `netstate::nft`, collected and then carried out by
//! [`Nft::commit`], all or nothing. [`Nft::carry_out`] does the steps of a plan. [`Nft`] also reads back: names of
//! tables, whole tables, elements of a set.
//!
//! What stays true: adding what is there already is no error unless the method says "create"; deleting what
//! is not there is one ([`Error::is_missing`]), which then undoes the rest of its transaction; an element or
//! rule comes back with the comment it was given; a message never grows over 64 KB, however many elements
//! are added. Every rule's comment ends in the digest of its text, by which [`Nft::table`] recognises it.
//!
//! Layouts follow the kernel's `include/uapi/linux/netfilter/nf_tables.h`; the userdata of comments follows
//! libnftnl, so that `nft list` shows them.

mod constant;
mod counters;
mod expression;
mod foreign;
mod iptables;
mod read;
mod rewrite;
mod userdata;
mod value;

use std::collections::BTreeMap;

use netstate::nft::{
    Chain, ChainKind, Element, Family, Field, Hook, Key, Policy, Rule, Set, Statement, Step, TableKey, Value,
};

use crate::Error;
use crate::netlink::{Batch, Message, Protocol, Purpose, Request, Socket};
use constant as c;
use value::Listed;

pub use counters::Counted;
pub use iptables::IptablesRule;

/// Elements stop being added to a message of this size and go on in the next: an attribute ends at 64 KB.
const MESSAGE_ROOM: usize = 60 * 1024;
/// Longest comment an element can carry: one byte of length, one for the closing NUL.
const COMMENT_ROOM: usize = 253;

/// A conversation with nf_tables in the namespace in which it was opened.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
    commits: u32,
}

impl Nft {
    /// Opens it in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel has no netfilter, or descriptors have run out.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open(Protocol::Netfilter)?, commits: 0 })
    }

    /// The port by which its changes are known in notifications; 0 before anything was asked.
    ///
    /// # Errors
    /// Only when the descriptor was closed behind our back.
    pub fn port(&self) -> Result<u32, Error> {
        self.socket.port()
    }

    /// Carries out a transaction: all of it or nothing. An empty one does nothing.
    ///
    /// # Errors
    /// The first change that was refused, by name; nothing has been changed then.
    pub fn commit(&mut self, transaction: Transaction) -> Result<(), Error> {
        self.transact(transaction, None)
    }

    /// The same, but only if nobody has changed anything since [`Nft::generation`] gave this number: then what was
    /// read in between is still so.
    ///
    /// # Errors
    /// As [`Nft::commit`]; [`Error::is_outdated`] when somebody has.
    pub fn commit_at(&mut self, transaction: Transaction, generation: u32) -> Result<(), Error> {
        self.transact(transaction, Some(generation))
    }

    /// How often it has changed something: by so much the [generation](Self::generation) has grown by its doing.
    #[must_use]
    pub fn commits(&self) -> u32 {
        self.commits
    }

    fn transact(&mut self, transaction: Transaction, generation: Option<u32>) -> Result<(), Error> {
        if let Some(error) = transaction.oversized {
            return Err(error);
        }
        let changes = !transaction.batch.is_empty();
        self.socket.transact(transaction.batch, c::SUBSYSTEM, generation)?;
        self.commits = self.commits.wrapping_add(changes.into());
        Ok(())
    }
}

/// Changes that are carried out together.
#[derive(Debug, Default)]
pub struct Transaction {
    batch: Batch,
    bytes: usize,
    sets: u32,
    oversized: Option<Error>,
}

impl Transaction {
    /// One without changes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// True when it holds no change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// How many bytes it is. The kernel takes any number in one piece, and has them all in memory, as we have.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes a table, if it is not there.
    pub fn add_table(&mut self, table: &TableKey) -> &mut Self {
        let mut message = message(c::NEW_TABLE, c::CREATE, table.family);
        message.text(c::TABLE_NAME, &table.name);
        self.push(message, Purpose::new("add table", table.to_string()).needing(family_option(table.family)))
    }

    /// Removes a table with all that is in it.
    pub fn delete_table(&mut self, table: &TableKey) -> &mut Self {
        let mut message = message(c::DELETE_TABLE, 0, table.family);
        message.text(c::TABLE_NAME, &table.name);
        self.push(message, Purpose::new("delete table", table.to_string()))
    }

    /// Makes a chain, without its rules, if it is not there.
    pub fn add_chain(&mut self, table: &TableKey, chain: &Chain) -> &mut Self {
        self.new_chain(table, chain, c::CREATE)
    }

    /// Makes a chain, without its rules; that it is there already is an error, as with [`Self::create_set`].
    pub fn create_chain(&mut self, table: &TableKey, chain: &Chain) -> &mut Self {
        self.new_chain(table, chain, c::CREATE | c::EXCLUSIVE)
    }

    fn new_chain(&mut self, table: &TableKey, chain: &Chain, flags: u16) -> &mut Self {
        let mut message = message(c::NEW_CHAIN, flags, table.family);
        message.text(c::CHAIN_TABLE, &table.name).text(c::CHAIN_NAME, &chain.name);
        let mut purpose = Purpose::new("add chain", format!("{table} {}", chain.name));
        if let Some(base) = &chain.base {
            message.nest(c::CHAIN_HOOK, |hook| {
                hook.be32(c::HOOK_NUMBER, hook_number(base.hook));
                hook.be32(c::HOOK_PRIORITY, base.priority.cast_unsigned());
            });
            message.be32(c::CHAIN_POLICY, u32::from(base.policy == Policy::Accept));
            message.text(c::CHAIN_TYPE, kind_name(base.kind));
            if base.kind == ChainKind::Nat {
                purpose = purpose
                    .needing("address translation needs CONFIG_NFT_NAT and CONFIG_NF_NAT in the kernel");
            }
        }
        self.push(message, purpose)
    }

    /// Removes a chain, which must be empty and not jumped to.
    pub fn delete_chain(&mut self, table: &TableKey, chain: &str) -> &mut Self {
        let mut message = message(c::DELETE_CHAIN, 0, table.family);
        message.text(c::CHAIN_TABLE, &table.name).text(c::CHAIN_NAME, chain);
        self.push(message, Purpose::new("delete chain", format!("{table} {chain}")))
    }

    /// Removes all rules of a chain.
    pub fn flush_chain(&mut self, table: &TableKey, chain: &str) -> &mut Self {
        let mut message = message(c::DELETE_RULE, 0, table.family);
        message.text(c::RULE_TABLE, &table.name).text(c::RULE_CHAIN, chain);
        self.push(message, Purpose::new("flush chain", format!("{table} {chain}")))
    }

    /// Puts a rule at the end of a chain.
    pub fn add_rule(&mut self, table: &TableKey, chain: &str, rule: &Rule) -> &mut Self {
        self.put_rule((table, chain), rule, None)
    }

    /// Makes a set, without its elements, if it is not there.
    pub fn add_set(&mut self, table: &TableKey, set: &Set) -> &mut Self {
        self.new_set(table, set, c::CREATE)
    }

    /// Makes a set, without its elements; that it is there already is an error ([`Error::exists`]). Two
    /// programs that both find nothing can both create set and rules this way, and the rules stay single.
    pub fn create_set(&mut self, table: &TableKey, set: &Set) -> &mut Self {
        self.new_set(table, set, c::CREATE | c::EXCLUSIVE)
    }

    /// Removes a set, which no rule may name any more.
    pub fn delete_set(&mut self, table: &TableKey, set: &str) -> &mut Self {
        let mut message = message(c::DELETE_SET, 0, table.family);
        message.text(c::SET_TABLE, &table.name).text(c::SET_NAME, set);
        self.push(message, Purpose::new("delete set", format!("{table} {set}")))
    }

    /// Puts elements into a set; one that is there already stays as it is.
    pub fn add_elements<'a>(
        &mut self,
        table: &TableKey,
        set: &str,
        elements: impl IntoIterator<Item = (&'a Key, Option<&'a str>)>,
    ) -> &mut Self {
        self.elements((c::NEW_ELEMENT, c::CREATE, "add element"), table, set, plain(elements))
    }

    /// Puts elements into a set; that one is there already is an error ([`Error::exists`]), so that nobody
    /// takes another's element for his own.
    pub fn create_elements<'a>(
        &mut self,
        table: &TableKey,
        set: &str,
        elements: impl IntoIterator<Item = (&'a Key, Option<&'a str>)>,
    ) -> &mut Self {
        let creation = (c::NEW_ELEMENT, c::CREATE | c::EXCLUSIVE, "create element");
        self.elements(creation, table, set, plain(elements))
    }

    /// Puts elements with their data into a map; that one is there already is an error ([`Error::exists`]).
    pub fn create_mappings<'a>(
        &mut self,
        table: &TableKey,
        map: &str,
        elements: impl IntoIterator<Item = (&'a Key, &'a Element)>,
    ) -> &mut Self {
        let creation = (c::NEW_ELEMENT, c::CREATE | c::EXCLUSIVE, "create element");
        self.elements(creation, table, map, whole(elements))
    }

    /// Takes elements out of a set; that one is not there is an error ([`Error::is_missing`]).
    pub fn delete_elements<'a>(
        &mut self,
        table: &TableKey,
        set: &str,
        keys: impl IntoIterator<Item = &'a Key>,
    ) -> &mut Self {
        let elements = keys.into_iter().map(Listed::key);
        self.elements((c::DELETE_ELEMENT, 0, "delete element"), table, set, elements)
    }

    /// Adds one step of a plan.
    pub fn add_step(&mut self, step: &Step) -> &mut Self {
        match step {
            Step::AddTable(table) => self.add_table(table),
            Step::DeleteTable(table) => self.delete_table(table),
            Step::AddSet(table, set) => self.add_set(table, set),
            Step::DeleteSet(table, set) => self.delete_set(table, set),
            Step::AddElements(table, set, elements) => {
                self.elements((c::NEW_ELEMENT, c::CREATE, "add element"), table, set, whole(elements))
            }
            Step::DeleteElements(table, set, keys) => self.delete_elements(table, set, keys),
            Step::AddChain(table, chain) => self.add_chain(table, chain),
            Step::DeleteChain(table, chain) => self.delete_chain(table, chain),
            Step::FlushChain(table, chain) => self.flush_chain(table, chain),
            Step::AddRule(table, chain, rule) => self.add_rule(table, chain, rule),
        }
    }

    fn new_set(&mut self, table: &TableKey, set: &Set, flags: u16) -> &mut Self {
        self.sets += 1;
        let mut message = message(c::NEW_SET, flags, table.family);
        message.text(c::SET_TABLE, &table.name).text(c::SET_NAME, &set.name).be32(c::SET_ID, self.sets);
        value::put_set_type(&mut message, set);
        self.push(
            message,
            Purpose::new("add set", format!("{table} {set}")).needing("the kernel needs CONFIG_NF_TABLES"),
        )
    }

    fn elements<'a>(
        &mut self,
        (kind, flags, operation): (u16, u16, &'static str),
        table: &TableKey,
        set: &str,
        elements: impl Iterator<Item = Listed<'a>>,
    ) -> &mut Self {
        let mut elements = elements.peekable();
        while let Some(first) = elements.peek().map(|element| key_text(element.key)) {
            let mut message = message(kind, flags, table.family);
            message.text(c::ELEMENTS_TABLE, &table.name).text(c::ELEMENTS_SET, set);
            let mut count = 0;
            let oversized = &mut self.oversized;
            message.nest(c::ELEMENTS_LIST, |list| {
                while list.length() < MESSAGE_ROOM {
                    let Some(element) = elements.next() else { break };
                    let Listed { key, comment, .. } = element;
                    if comment.is_some_and(|comment| comment.len() > COMMENT_ROOM) {
                        let object = format!(
                            "{table} {set} {} with a comment over {COMMENT_ROOM} bytes",
                            key_text(key)
                        );
                        let bytes = comment.map_or(0, str::len);
                        oversized.get_or_insert(Error::Oversized {
                            purpose: Purpose::new(operation, object),
                            bytes,
                        });
                    }
                    value::put_element(list, &element);
                    count += 1;
                }
            });
            let more = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
            self.push(message, Purpose::new(operation, format!("{table} {set} {first}{more}")));
        }
        self
    }

    fn push(&mut self, message: Message, purpose: Purpose) -> &mut Self {
        self.bytes += message.length();
        self.batch.push(Request::new(message, purpose));
        self
    }
}

/// A set's elements by key.
pub type Elements = BTreeMap<Key, Element>;

fn plain<'a>(
    elements: impl IntoIterator<Item = (&'a Key, Option<&'a str>)>,
) -> impl Iterator<Item = Listed<'a>> {
    elements.into_iter().map(|(key, comment)| Listed { comment, ..Listed::key(key) })
}

fn whole<'a>(elements: impl IntoIterator<Item = (&'a Key, &'a Element)>) -> impl Iterator<Item = Listed<'a>> {
    elements.into_iter().map(|(key, element)| Listed {
        key,
        data: &element.data,
        verdict: element.verdict.as_ref(),
        comment: element.comment.as_deref(),
    })
}

/// Starts a message of nf_tables for a family.
fn message(kind: u16, flags: u16, family: Family) -> Message {
    message_of(kind, flags, family_number(family))
}

fn message_of(kind: u16, flags: u16, family: u8) -> Message {
    // struct nfgenmsg: family, version, resource id.
    Message::new(c::SUBSYSTEM << 8 | kind, flags, &[family, 0, 0, 0])
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::Inet => 1,
        Family::Ip => 2,
        Family::Bridge => 7,
        Family::Ip6 => 10,
    }
}

fn family_option(family: Family) -> &'static str {
    match family {
        Family::Inet => "the kernel needs CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET",
        Family::Ip => "the kernel needs CONFIG_NF_TABLES and CONFIG_NF_TABLES_IPV4",
        Family::Ip6 => "the kernel needs CONFIG_NF_TABLES and CONFIG_NF_TABLES_IPV6",
        Family::Bridge => "the kernel needs CONFIG_NF_TABLES and CONFIG_NF_TABLES_BRIDGE",
    }
}

/// What a kernel that does not know an expression of the rule lacks; `None` for rules that any nf_tables knows.
fn rule_option(rule: &Rule) -> Option<&'static str> {
    rule.statements.iter().find_map(|statement| match statement {
        Statement::Masquerade { .. } => {
            Some("masquerading needs CONFIG_NFT_MASQ and CONFIG_NF_NAT in the kernel")
        }
        Statement::Dnat { .. } => {
            Some("translating destinations needs CONFIG_NFT_NAT and CONFIG_NF_NAT in the kernel")
        }
        Statement::Log(_) => {
            Some("logging needs CONFIG_NFT_LOG and CONFIG_NETFILTER_NETLINK_LOG in the kernel")
        }
        Statement::Limit(_) => Some("limiting needs CONFIG_NFT_LIMIT in the kernel"),
        Statement::DestinationIsLocal
        | Statement::DestinationIsUnicast
        | Statement::SourceIsLocal
        | Statement::SourceIsElsewhere => {
            Some("asking the routes of an address needs CONFIG_NFT_FIB_INET in the kernel")
        }
        Statement::Match { field, .. } | Statement::MaskedMatch { field, .. } => match field {
            Field::CtState | Field::CtStatus | Field::CtMark => {
                Some("matching on connections needs CONFIG_NFT_CT and CONFIG_NF_CONNTRACK in the kernel")
            }
            _ => None,
        },
        _ => None,
    })
}

fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}

fn kind_name(kind: ChainKind) -> &'static str {
    match kind {
        ChainKind::Filter => "filter",
        ChainKind::Nat => "nat",
        ChainKind::Route => "route",
    }
}

fn key_text(key: &[Value]) -> String {
    let parts: Vec<String> = key.iter().map(ToString::to_string).collect();
    parts.join(" . ")
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_kernel_without_an_expression_is_told_from_a_missing_chain() {
        let refused = |rule: Rule| {
            let mut transaction = Transaction::new();
            transaction.add_rule(&TableKey::new(Family::Inet, "fairlead"), "postrouting", &rule);
            let purpose = transaction.batch.requests()[0].purpose.clone();
            Error::Refused { purpose, errno: Errno::NOENT, detail: None }.to_string()
        };
        let text = refused(Rule::new([Statement::Masquerade { fully_random: false }]));
        assert!(text.starts_with("add rule inet fairlead postrouting masquerade: "), "{text}");
        assert!(
            text.ends_with("hint: masquerading needs CONFIG_NFT_MASQ and CONFIG_NF_NAT in the kernel"),
            "{text}"
        );
        assert!(!refused(Rule::new([Statement::Counter])).contains("hint"));
    }

    #[test]
    fn many_elements_become_messages_under_64_kilobytes() {
        let keys: Vec<Key> = (0..10_000_u32).map(|number| vec![Value::Number(number)]).collect();
        let mut transaction = Transaction::new();
        let table = TableKey::new(Family::Inet, "fairlead");
        transaction.add_elements(
            &table,
            "marks",
            keys.iter().map(|key| (key, Some("a comment of a usual length"))),
        );
        assert!(transaction.batch.len() > 5);
        for request in transaction.batch.requests() {
            assert!(request.message.length() < 64 * 1024 && !request.message.is_oversized());
        }
    }

    #[test]
    fn a_comment_that_does_not_fit_is_refused_before_anything_is_sent() {
        let key = vec![Value::Port(80)];
        let comment = "x".repeat(COMMENT_ROOM + 1);
        let mut transaction = Transaction::new();
        transaction.add_elements(
            &TableKey::new(Family::Ip, "fairlead"),
            "ports",
            [(&key, Some(comment.as_str()))],
        );
        assert!(matches!(transaction.oversized, Some(Error::Oversized { bytes: 254, .. })));
    }
}
