//! What the counters of a table's rules have counted.
//!
//! Read [`Nft::counters`]. A counter belongs to its rule: where a chain is rewritten, the counters of the rules that
//! do not stay begin anew. So who wants totals adds up what came on top since the last reading.

use netstate::nft::TableKey;

use super::{Nft, constant as c, message, userdata};
use crate::Error;
use crate::netlink::{Attribute, Malformed, Purpose, Request};

/// A rule that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// The chain it stands in.
    pub chain: String,
    /// The [digest](netstate::nft::Rule::digest) of the rule, if it is one that we wrote.
    pub digest: Option<u64>,
    /// The packets that got as far as its counter.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Nft {
    /// The rules of a table that have a counter, with what it says, in the order of the rules; none when there is no table.
    ///
    /// # Errors
    /// When the kernel refuses to list.
    pub fn counters(&mut self, table: &TableKey) -> Result<Vec<Counted>, Error> {
        let mut request = message(c::GET_RULE, 0, table.family);
        request.text(c::RULE_TABLE, &table.name);
        let request = Request::new(request, Purpose::new("read the counters of", table.to_string()));
        let counted = self.socket.dump(&request, |reply| {
            let (_, attributes) = reply.split::<4>()?;
            let name = |kind| {
                let attribute = attributes.find(kind)?.ok_or(Malformed::Missing { what: "name" })?;
                Ok(attribute.foreign_text())
            };
            if name(c::RULE_TABLE)? != table.name {
                return Ok(None);
            }
            let Some(expressions) = attributes.find(c::RULE_EXPRESSIONS)? else { return Ok(None) };
            let Some((packets, bytes)) = counter(&expressions)? else { return Ok(None) };
            let comment = attributes.find(c::RULE_USERDATA)?;
            let digest =
                comment.and_then(|data| userdata::find_comment(data.value)).and_then(userdata::find_digest);
            Ok(Some(Counted { chain: name(c::RULE_CHAIN)?, digest, packets, bytes }))
        });
        match counted {
            Err(error) if error.is_missing() => Ok(Vec::new()),
            other => other,
        }
    }
}

/// What the first counter of a rule says: packets and bytes.
fn counter(expressions: &Attribute<'_>) -> Result<Option<(u64, u64)>, Malformed> {
    for expression in expressions.nested() {
        let parts = expression?.nested();
        let is_counter = parts.find(c::EXPRESSION_NAME)?.is_some_and(|name| name.text() == Ok("counter"));
        let Some(data) = parts.find(c::EXPRESSION_DATA)?.filter(|_| is_counter) else { continue };
        let number = |kind| data.nested().find(kind)?.map_or(Ok(0), |number| number.be64());
        return Ok(Some((number(c::COUNTER_PACKETS)?, number(c::COUNTER_BYTES)?)));
    }
    Ok(None)
}
