//! Reading nf_tables back into the words of `netstate::nft`.
//!
//! The kernel cannot say which of our rules a list of expressions was, so a rule comes back as
//! [`Statement::Unknown`] unless its comment ends in the digest of a rule of the wanted table: then it is that
//! rule. A set or chain with features we never use comes back as one that differs from every wanted one.

use std::collections::BTreeMap;

use netstate::nft::{
    BaseChain, Chain, ChainKind, Element, Family, Hook, Key, Policy, Rule, Set, Statement, Table, TableKey,
};

use super::value::{self, Listed, RawElement};
use super::{Elements, Nft, constant as c, family_number, key_text, message, message_of, userdata};
use crate::Error;
use crate::netlink::{Attributes, Malformed, Purpose, Reply, Request};

/// How often a table that changes while it is read is read again.
const ATTEMPTS: usize = 20;

impl Nft {
    /// The tables there are, whoever made them; those of families we never use are left out.
    ///
    /// # Errors
    /// When the kernel refuses to list.
    pub fn tables(&mut self) -> Result<Vec<TableKey>, Error> {
        let request = Request::new(message_of(c::GET_TABLE, 0, 0), Purpose::new("list", "nf_tables tables"));
        self.socket.dump(&request, |reply| {
            let (family, attributes) = split(&reply)?;
            let name = text(attributes, c::TABLE_NAME)?;
            Ok(family.map(|family| TableKey { family, name }))
        })
    }

    /// A whole table, with those rules of `want` (the table as it should be) that it holds recognised. `None`
    /// when there is no such table.
    ///
    /// # Errors
    /// When the kernel refuses to list, or the table never holds still.
    pub fn table(&mut self, key: &TableKey, want: Option<&Table>) -> Result<Option<Table>, Error> {
        for _ in 0..ATTEMPTS {
            let before = self.generation()?;
            let table = match self.read_table(key, want) {
                Err(error) if error.is_missing() => None,
                other => Some(other?),
            };
            if self.generation()? == before {
                return Ok(table);
            }
        }
        Err(Error::Interrupted { purpose: Purpose::new("list table", key.to_string()), attempts: ATTEMPTS })
    }

    /// The elements of a set; `set` says of which type they are.
    ///
    /// # Errors
    /// When there is no such set ([`Error::is_missing`]) or it holds what `set` cannot.
    pub fn elements(&mut self, table: &TableKey, set: &Set) -> Result<Elements, Error> {
        let purpose = Purpose::new("list elements of set", format!("{table} {}", set.name));
        let raw = self.raw_elements(table, &set.name, &purpose)?;
        let malformed = Malformed::Missing { what: "an element of the set's type" };
        value::elements(set, raw).ok_or(Error::Answer { purpose, malformed })
    }

    /// Whether a set holds this key.
    ///
    /// # Errors
    /// When the kernel cannot tell. A missing set or table holds nothing and is no error.
    pub fn contains(&mut self, table: &TableKey, set: &str, key: &Key) -> Result<bool, Error> {
        self.comment_of(table, set, key).map(|found| found.is_some())
    }

    /// The comment of the element with this key: `None` when there is no such element, an empty text when it
    /// has none.
    ///
    /// # Errors
    /// When the kernel cannot tell. A missing set or table holds nothing and is no error.
    pub fn comment_of(&mut self, table: &TableKey, set: &str, key: &Key) -> Result<Option<String>, Error> {
        let raw = self.raw_element(table, set, key)?;
        Ok(raw.map(|element| element.comment.unwrap_or_default()))
    }

    /// What a set or map knows of this key; `set` says of which types it is.
    ///
    /// # Errors
    /// When the kernel cannot tell. A missing set or table holds nothing and is no error.
    pub fn element(&mut self, table: &TableKey, set: &Set, key: &Key) -> Result<Option<Element>, Error> {
        let Some(raw) = self.raw_element(table, &set.name, key)? else { return Ok(None) };
        let malformed = Malformed::Missing { what: "data of the map's type" };
        let purpose = Purpose::new("find element", format!("{table} {} {}", set.name, key_text(key)));
        value::element(set, raw).map(Some).ok_or(Error::Answer { purpose, malformed })
    }

    /// The sets and maps of a table with their types, without their elements; none when there is no table.
    ///
    /// # Errors
    /// When the kernel refuses to list.
    pub fn sets(&mut self, table: &TableKey) -> Result<Vec<Set>, Error> {
        match self.bare_sets(table) {
            Err(error) if error.is_missing() => Ok(Vec::new()),
            other => other,
        }
    }

    fn raw_element(&mut self, table: &TableKey, set: &str, key: &Key) -> Result<Option<RawElement>, Error> {
        let mut message = message(c::GET_ELEMENT, 0, table.family);
        message.text(c::ELEMENTS_TABLE, &table.name).text(c::ELEMENTS_SET, set);
        message.nest(c::ELEMENTS_LIST, |list| value::put_element(list, &Listed::key(key)));
        let purpose = Purpose::new("find element", format!("{table} {set} {}", key_text(key)));
        let answer = self.socket.ask(&Request::new(message, purpose), |reply| {
            let (_, attributes) = reply.split::<4>()?;
            let Some(list) = attributes.find(c::ELEMENTS_LIST)? else { return Ok(None) };
            list.nested().next().transpose()?.map(|entry| RawElement::read(&entry)).transpose()
        });
        match answer {
            Err(error) if error.is_missing() => Ok(None),
            other => other,
        }
    }

    /// Whether a chain holds this rule. A missing chain or table holds nothing and is no error.
    ///
    /// # Errors
    /// When the kernel refuses to list.
    pub fn holds_rule(&mut self, table: &TableKey, chain: &str, rule: &Rule) -> Result<bool, Error> {
        Ok(self.missing_rule(table, &[(chain, rule)])?.is_none())
    }

    /// The place in `wanted` (rules, each with its chain) of the first one that the table does not hold. A missing
    /// chain or table holds nothing and is no error.
    ///
    /// # Errors
    /// When the kernel refuses to list.
    pub fn missing_rule(
        &mut self,
        table: &TableKey,
        wanted: &[(&str, &Rule)],
    ) -> Result<Option<usize>, Error> {
        let rules = match self.rules(table) {
            Err(error) if error.is_missing() => Vec::new(),
            other => other?,
        };
        let holds = |chain: &str, rule: &Rule| {
            let digest = Some(rule.digest());
            let same = |(holder, comment): &(String, String)| {
                holder == chain && userdata::find_digest(comment) == digest
            };
            rules.iter().any(same)
        };
        Ok(wanted.iter().position(|(chain, rule)| !holds(chain, rule)))
    }

    /// The number that grows with every transaction that is carried out, whoever's: see [`Nft::commit_at`].
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn generation(&mut self) -> Result<u32, Error> {
        let request = Request::new(
            message_of(c::GET_GENERATION, 0, 0),
            Purpose::new("read generation of", "nf_tables"),
        );
        self.socket.ask(&request, |reply| {
            let (_, attributes) = reply.split::<4>()?;
            attributes.find(1)?.ok_or(Malformed::Missing { what: "generation" })?.be32()
        })
    }

    fn read_table(&mut self, key: &TableKey, want: Option<&Table>) -> Result<Table, Error> {
        let mut request = message(c::GET_TABLE, 0, key.family);
        request.text(c::TABLE_NAME, &key.name);
        self.socket.ask(&Request::new(request, Purpose::new("find table", key.to_string())), |_| Ok(()))?;
        let mut table = Table { key: key.clone(), sets: self.full_sets(key)?, chains: self.chains(key)? };
        for (chain, rule) in self.rules(key)? {
            let wanted = want.and_then(|want| want.chains.get(&chain));
            if let Some(chain) = table.chains.get_mut(&chain) {
                chain.rules.push(recognise(rule, wanted));
            }
        }
        Ok(table)
    }

    fn bare_sets(&mut self, key: &TableKey) -> Result<Vec<Set>, Error> {
        let purpose = Purpose::new("list sets of", key.to_string());
        let mut request = message(c::GET_SET, 0, key.family);
        request.text(c::SET_TABLE, &key.name);
        self.socket.dump(&Request::new(request, purpose), |reply| {
            let (_, attributes) = reply.split::<4>()?;
            if text(attributes, c::SET_TABLE)? != key.name || flags(attributes)? & c::FLAG_ANONYMOUS != 0 {
                return Ok(None);
            }
            read_set(attributes).map(Some)
        })
    }

    fn full_sets(&mut self, key: &TableKey) -> Result<BTreeMap<String, Set>, Error> {
        let purpose = Purpose::new("list sets of", key.to_string());
        let mut sets = self.bare_sets(key)?;
        for set in &mut sets {
            let raw = self.raw_elements(key, &set.name, &purpose)?;
            match value::elements(set, raw) {
                Some(elements) => set.elements = elements,
                // Nothing of ours: a set without a type differs from all wanted ones.
                None => set.key = Vec::new(),
            }
        }
        Ok(sets.into_iter().map(|set| (set.name.clone(), set)).collect())
    }

    fn raw_elements(
        &mut self,
        key: &TableKey,
        set: &str,
        purpose: &Purpose,
    ) -> Result<Vec<RawElement>, Error> {
        let mut request = message(c::GET_ELEMENT, 0, key.family);
        request.text(c::ELEMENTS_TABLE, &key.name).text(c::ELEMENTS_SET, set);
        let parts = self.socket.dump(&Request::new(request, purpose.clone()), |reply| {
            let (_, attributes) = reply.split::<4>()?;
            let Some(list) = attributes.find(c::ELEMENTS_LIST)? else { return Ok(None) };
            list.nested().map(|entry| RawElement::read(&entry?)).collect::<Result<Vec<_>, _>>().map(Some)
        })?;
        Ok(parts.into_iter().flatten().collect())
    }

    pub(super) fn chains(&mut self, key: &TableKey) -> Result<BTreeMap<String, Chain>, Error> {
        let request = Request::new(
            message(c::GET_CHAIN, 0, key.family),
            Purpose::new("list chains of", key.to_string()),
        );
        let chains = self.socket.dump(&request, |reply| {
            let (family, attributes) = split(&reply)?;
            if family != Some(key.family) || text(attributes, c::CHAIN_TABLE)? != key.name {
                return Ok(None);
            }
            read_chain(attributes).map(Some)
        })?;
        Ok(chains.into_iter().map(|chain| (chain.name.clone(), chain)).collect())
    }

    /// Each rule's chain and comment (or, lacking one, its handle in words), in order.
    fn rules(&mut self, key: &TableKey) -> Result<Vec<(String, String)>, Error> {
        let mut request = message(c::GET_RULE, 0, key.family);
        request.text(c::RULE_TABLE, &key.name);
        let request = Request::new(request, Purpose::new("list rules of", key.to_string()));
        self.socket.dump(&request, |reply| {
            let (family, attributes) = split(&reply)?;
            if family != Some(key.family) || text(attributes, c::RULE_TABLE)? != key.name {
                return Ok(None);
            }
            let comment =
                attributes.find(c::RULE_USERDATA)?.and_then(|data| userdata::find_comment(data.value));
            let handle = attributes.find(c::RULE_HANDLE)?.map_or(Ok(0), |handle| handle.be64())?;
            let name = comment.map_or_else(|| format!("handle {handle}"), str::to_owned);
            Ok(Some((text(attributes, c::RULE_CHAIN)?, name)))
        })
    }
}

/// The wanted rule with the digest in this comment, or one that is like no other.
fn recognise(comment: String, wanted: Option<&Chain>) -> Rule {
    let digest = userdata::find_digest(&comment);
    wanted
        .into_iter()
        .flat_map(|chain| &chain.rules)
        .find(|rule| Some(rule.digest()) == digest)
        .cloned()
        .unwrap_or_else(|| Rule::new([Statement::Unknown(comment)]))
}

fn read_set(attributes: Attributes<'_>) -> Result<Set, Malformed> {
    let name = text(attributes, c::SET_NAME)?;
    let flags = flags(attributes)?;
    let number = attributes.find(c::SET_KEY_TYPE)?.map_or(Ok(0), |number| number.be32())?;
    let data = match attributes.find(c::SET_DATA_TYPE)?.filter(|_| flags & c::FLAG_MAP != 0) {
        Some(number) => value::data_of_number(number.be32()?),
        None => Some(Vec::new()),
    };
    // Timeouts and the like are never ours: no type, so that it differs from every wanted set.
    let plain = flags & !(c::FLAG_INTERVAL | c::FLAG_CONCATENATION | c::FLAG_MAP) == 0 && data.is_some();
    let key = value::type_of_number(number).filter(|_| plain).unwrap_or_default();
    let (data, interval) = (data.unwrap_or_default(), flags & c::FLAG_INTERVAL != 0);
    Ok(Set { name, key, data, interval, elements: BTreeMap::new() })
}

fn flags(attributes: Attributes<'_>) -> Result<u32, Malformed> {
    attributes.find(c::SET_FLAGS)?.map_or(Ok(0), |flags| flags.be32())
}

fn read_chain(attributes: Attributes<'_>) -> Result<Chain, Malformed> {
    let name = text(attributes, c::CHAIN_NAME)?;
    let Some(hook) = attributes.find(c::CHAIN_HOOK)? else { return Ok(Chain::regular(name)) };
    let number = hook.nested().find(c::HOOK_NUMBER)?.map_or(Ok(u32::MAX), |number| number.be32())?;
    let priority = hook.nested().find(c::HOOK_PRIORITY)?.map_or(Ok(0), |priority| priority.be32())?;
    let policy = attributes.find(c::CHAIN_POLICY)?.map_or(Ok(1), |policy| policy.be32())?;
    let kind = match text(attributes, c::CHAIN_TYPE)?.as_str() {
        "nat" => ChainKind::Nat,
        "route" => ChainKind::Route,
        _ => ChainKind::Filter,
    };
    let hook = match number {
        0 => Hook::Prerouting,
        1 => Hook::Input,
        2 => Hook::Forward,
        3 => Hook::Output,
        4 => Hook::Postrouting,
        // Ingress and egress: never ours. A chain without a hook differs from the base chain that is wanted.
        _ => return Ok(Chain::regular(name)),
    };
    let policy = if policy == 0 { Policy::Drop } else { Policy::Accept };
    Ok(Chain::base(name, BaseChain { kind, hook, priority: priority.cast_signed(), policy }))
}

fn split<'a>(reply: &Reply<'a>) -> Result<(Option<Family>, Attributes<'a>), Malformed> {
    let (header, attributes) = reply.split::<4>()?;
    let families = [Family::Inet, Family::Ip, Family::Ip6, Family::Bridge];
    Ok((families.into_iter().find(|family| family_number(*family) == header[0]), attributes))
}

fn text(attributes: Attributes<'_>, kind: u16) -> Result<String, Malformed> {
    let attribute = attributes.find(kind)?.ok_or(Malformed::Missing { what: "name" })?;
    Ok(attribute.foreign_text())
}
