//! Which mark a packet gets whose source is to be translated.
//!
//! Read [`mark`]. A chain of iptables cannot be jumped to from a table of ours, so instead of jumping to
//! `externalSetMarkChain` the mark is set that the chain sets. The chain is looked up in the `nat` table, as
//! iptables keeps it: in nf_tables (iptables-nft) or in the older interface (iptables-legacy).

use cni::Error;
use kernel::foreign::ForeignRule;
use kernel::nft::Nft;
use kernel::xtables;
use netstate::nft::{Family, IpVersion, TableKey};

use super::config::Marking;
use super::layout::Mark;
use crate::fault::fault;

/// The mark for packets of this version.
///
/// # Errors
/// When it is to be the one of a chain that is not there or sets none.
pub(super) fn mark(nft: &mut Nft, marking: &Marking, version: IpVersion) -> Result<Mark, Error> {
    let chain = match marking {
        Marking::Bit(bit) => {
            let value = 1 << bit;
            return Ok(Mark { mask: value, value, ours: true });
        }
        Marking::Chain(chain) => chain,
    };
    let family = if version == IpVersion::V4 { Family::Ip } else { Family::Ip6 };
    let table = TableKey::new(family, "nat");
    let mut rules = nft.foreign_rules(&table, Some(chain)).map_err(fault)?;
    if let Some(table) = xtables::Table::read(version, "nat").map_err(fault)? {
        rules.extend(table.rules().into_iter().filter(|rule| rule.chain == *chain));
    }
    rules.iter().find_map(mark_of).ok_or_else(|| {
        let text = format!("externalSetMarkChain: no rule of chain {chain:?} of table {table} sets a mark");
        let hint = "hint: the chain has to be there before the first pod, with a rule \"-j MARK\"; or name the bit \
             itself in markMasqBit (14 is kube-proxy's)";
        Error::kernel(text).with_details(hint)
    })
}

/// `struct xt_mark_tginfo2`: the value, then the mask of what it replaces, in host order.
fn mark_of(rule: &ForeignRule) -> Option<Mark> {
    let target = rule.parts.iter().find(|part| part.name == "MARK")?;
    let [a, b, c, d, e, f, g, h] = *target.bytes.first_chunk::<8>()?;
    let (value, mask) = (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]));
    // Bits outside the mask would be flipped, not set.
    (value & !mask == 0 && value != 0).then_some(Mark { mask, value, ours: false })
}

#[cfg(test)]
mod tests {
    use kernel::foreign::Part;

    use super::*;

    #[test]
    fn only_a_rule_that_sets_bits_counts() {
        let rule = |name: &str, value: u32, mask: u32| {
            let bytes = [value.to_ne_bytes(), mask.to_ne_bytes()].concat();
            ForeignRule { parts: vec![Part { name: name.into(), bytes }], ..ForeignRule::default() }
        };
        let kubes = mark_of(&rule("MARK", 0x4000, 0x4000)).unwrap();
        assert_eq!((kubes.mask, kubes.value, kubes.ours), (0x4000, 0x4000, false));
        assert_eq!(mark_of(&rule("MARK", 7, u32::MAX)).unwrap().mask, u32::MAX);
        // Clears bits, flips bits, is no mark.
        assert_eq!(mark_of(&rule("MARK", 0, 0x4000)), None);
        assert_eq!(mark_of(&rule("MARK", 0x6000, 0x4000)), None);
        assert_eq!(mark_of(&rule("comment", 0x4000, 0x4000)), None);
    }
}
