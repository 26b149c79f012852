//! What others keep in nf_tables: their chains looked up by name, their rules read loosely and deleted by handle.
//!
//! Read [`Nft::holds_chains`] and [`Nft::foreign_rules`]. A rule that a program wrote which spoke iptables is made
//! of "match" and "target" expressions beside the ordinary ones; its comment is one of them.

use netstate::nft::{BaseChain, TableKey};

use super::{Nft, Transaction, constant as c, message, userdata};
use crate::Error;
use crate::foreign::{ForeignRule, NARROWED, Part, text_of};
use crate::netlink::{Attribute, Attributes, Batch, Malformed, Purpose, Request};

// enum nft_match_attributes and nft_target_attributes
pub(super) const COMPATIBLE_NAME: u16 = 1;
pub(super) const COMPATIBLE_DATA: u16 = 3;
// enum nft_range_attributes
const RANGE_FROM: u16 = 3;
/// `NFT_CMP_EQ`.
const EQUAL: u32 = 0;

impl Nft {
    /// Which of these chains there are, asked in one send; a table's name without a chain asks for the table.
    ///
    /// # Errors
    /// When the kernel cannot tell.
    pub fn holds_chains(&mut self, wanted: &[(&TableKey, Option<&str>)]) -> Result<Vec<bool>, Error> {
        let batch: Batch = wanted.iter().map(|(table, chain)| look_up(table, *chain)).collect();
        let mut found = vec![true; wanted.len()];
        for failure in self.socket.run(&batch, |_, _| Ok(()))? {
            match found.get_mut(failure.position) {
                Some(found) if failure.error.is_missing() || failure.error.is_unsupported() => *found = false,
                _ => return Err(failure.error),
            }
        }
        Ok(found)
    }

    /// The names of the chains of a table; none when there is no such table.
    ///
    /// # Errors
    /// When the kernel refuses to list.
    pub fn chain_names(&mut self, table: &TableKey) -> Result<Vec<String>, Error> {
        let request = Request::new(
            message(c::GET_CHAIN, 0, table.family),
            Purpose::new("list chains of", table.to_string()),
        );
        self.dump_if_there(&request, |attributes| {
            let of_table =
                attributes.find(c::CHAIN_TABLE)?.is_some_and(|name| name.text() == Ok(&table.name));
            let name = attributes.find(c::CHAIN_NAME)?.map(|name| name.foreign_text());
            Ok(name.filter(|_| of_table))
        })
    }

    /// The base chains of a table, without their rules; none when there is no such table. Those on hooks that we never
    /// use are left out.
    ///
    /// # Errors
    /// When the kernel refuses to list.
    pub fn base_chains(&mut self, table: &TableKey) -> Result<Vec<(String, BaseChain)>, Error> {
        match self.chains(table) {
            Err(error) if error.is_missing() || error.is_unsupported() => Ok(Vec::new()),
            chains => {
                let chains = chains?.into_values();
                Ok(chains.filter_map(|chain| Some((chain.name, chain.base?))).collect())
            }
        }
    }

    /// The rules of a table, or of one of its chains, in order, whoever wrote them. A table or chain that is not
    /// there has none.
    ///
    /// # Errors
    /// When the kernel refuses to list.
    pub fn foreign_rules(
        &mut self,
        table: &TableKey,
        chain: Option<&str>,
    ) -> Result<Vec<ForeignRule>, Error> {
        let mut request = message(c::GET_RULE, 0, table.family);
        request.text(c::RULE_TABLE, &table.name);
        if let Some(chain) = chain {
            request.text(c::RULE_CHAIN, chain);
        }
        let request = Request::new(request, Purpose::new("list rules of", table.to_string()));
        self.dump_if_there(&request, |attributes| {
            let name = |kind| attributes.find(kind).map(|name| name.map(|name| name.foreign_text()));
            let of_table = name(c::RULE_TABLE)?.is_some_and(|found| found == table.name);
            let holder = name(c::RULE_CHAIN)?.unwrap_or_default();
            if !of_table || chain.is_some_and(|chain| chain != holder) {
                return Ok(None);
            }
            read(attributes, holder).map(Some)
        })
    }

    fn dump_if_there<T>(
        &mut self,
        request: &Request,
        mut parse: impl FnMut(Attributes<'_>) -> Result<Option<T>, Malformed>,
    ) -> Result<Vec<T>, Error> {
        let found = self.socket.dump(request, |reply| parse(reply.split::<4>()?.1));
        match found {
            Err(error) if error.is_missing() || error.is_unsupported() => Ok(Vec::new()),
            other => other,
        }
    }
}

impl Transaction {
    /// Removes one rule, by its handle; that it is not there is an error ([`Error::is_missing`]).
    pub fn delete_rule(&mut self, table: &TableKey, chain: &str, handle: u64) -> &mut Self {
        let mut message = message(c::DELETE_RULE, 0, table.family);
        message.text(c::RULE_TABLE, &table.name).text(c::RULE_CHAIN, chain).be64(c::RULE_HANDLE, handle);
        self.push(message, Purpose::new("delete rule", format!("{table} {chain} handle {handle}")))
    }
}

fn look_up(table: &TableKey, chain: Option<&str>) -> Request {
    match chain {
        Some(chain) => {
            let mut message = message(c::GET_CHAIN, 0, table.family);
            message.text(c::CHAIN_TABLE, &table.name).text(c::CHAIN_NAME, chain);
            Request::new(message, Purpose::new("find chain", format!("{table} {chain}")))
        }
        None => {
            let mut message = message(c::GET_TABLE, 0, table.family);
            message.text(c::TABLE_NAME, &table.name);
            Request::new(message, Purpose::new("find table", table.to_string()))
        }
    }
}

fn read(attributes: Attributes<'_>, chain: String) -> Result<ForeignRule, Malformed> {
    let place = attributes.find(c::RULE_HANDLE)?.map_or(Ok(0), |handle| handle.be64())?;
    let comment = attributes.find(c::RULE_USERDATA)?.and_then(|data| userdata::find_comment(data.value));
    let mut rule =
        ForeignRule { chain, place, comment: comment.map(str::to_owned), ..ForeignRule::default() };
    if let Some(expressions) = attributes.find(c::RULE_EXPRESSIONS)? {
        expressions.nested().try_for_each(|expression| rule.take(&expression?))?;
    }
    Ok(rule)
}

impl ForeignRule {
    fn take(&mut self, expression: &Attribute<'_>) -> Result<(), Malformed> {
        let Some(name) = expression.nested().find(c::EXPRESSION_NAME)? else { return Ok(()) };
        let name = name.foreign_text();
        let Some(data) = expression.nested().find(c::EXPRESSION_DATA)? else {
            self.parts.push(Part { name, bytes: Vec::new() });
            return Ok(());
        };
        let value = |kind: u16| -> Result<Vec<u8>, Malformed> {
            let Some(data) = data.nested().find(kind)? else { return Ok(Vec::new()) };
            Ok(data.nested().find(c::DATA_VALUE)?.map(|value| value.value.to_vec()).unwrap_or_default())
        };
        let part = match name.as_str() {
            "match" | "target" => {
                let named = data.nested().find(COMPATIBLE_NAME)?.map(|name| name.foreign_text());
                let blob = data.nested().find(COMPATIBLE_DATA)?.map(|blob| blob.value.to_vec());
                Part { name: named.unwrap_or_default(), bytes: blob.unwrap_or_default() }
            }
            "cmp" => {
                let operator =
                    data.nested().find(c::CMP_OPERATOR)?.map_or(Ok(0), |operator| operator.be32())?;
                if operator != EQUAL {
                    self.parts.push(Part { name: NARROWED.into(), bytes: Vec::new() });
                }
                Part { bytes: value(c::CMP_DATA)?, name }
            }
            "range" => Part { bytes: value(RANGE_FROM)?, name },
            "immediate" => {
                if let Some(verdict) = data.nested().find(c::IMMEDIATE_DATA)? {
                    self.take_verdict(verdict)?;
                }
                Part { bytes: value(c::IMMEDIATE_DATA)?, name }
            }
            _ => Part { name, bytes: Vec::new() },
        };
        if part.name == "comment" {
            self.comment.get_or_insert_with(|| text_of(&part.bytes));
        }
        self.parts.push(part);
        Ok(())
    }

    fn take_verdict(&mut self, data: Attribute<'_>) -> Result<(), Malformed> {
        let Some(verdict) = data.nested().find(c::DATA_VERDICT)? else { return Ok(()) };
        if let Some(chain) = verdict.nested().find(c::VERDICT_CHAIN)? {
            self.jump = Some(chain.foreign_text());
        } else if let Some(code) = verdict.nested().find(c::VERDICT_CODE)? {
            let name = match code.be32()?.cast_signed() {
                c::VERDICT_ACCEPT => "accept",
                c::VERDICT_DROP => "drop",
                c::VERDICT_RETURN => "return",
                _ => return Ok(()),
            };
            self.parts.push(Part { name: name.into(), bytes: Vec::new() });
        }
        Ok(())
    }
}
