//! A packet filter rule that somebody else wrote, as far as one must know it to recognise it.
//!
//! Read [`ForeignRule`]. It stands for a rule of nf_tables (see [`crate::nft`]) and for one of the older iptables
//! interface (see [`crate::xtables`]) alike, so whoever looks for the traces of another program looks once. Only
//! what both have in common is kept; such a rule is compared and deleted, never written.

/// One rule of somebody else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForeignRule {
    /// The chain it is in.
    pub chain: String,
    /// What tells it from the others: its handle in nf_tables, its number in an iptables table.
    pub place: u64,
    /// Its comment, however it is kept.
    pub comment: Option<String>,
    /// The chain that it jumps or goes to.
    pub jump: Option<String>,
    /// What it is made of, in order.
    pub parts: Vec<Part>,
}

/// One expression of nf_tables, or one match or target of iptables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// The expression's name; the name of the match or target for those of iptables.
    pub name: String,
    /// What it compares with or puts in, in the kernel's own layout.
    pub bytes: Vec<u8>,
}

impl ForeignRule {
    /// Whether a part of it is of this name.
    pub fn has(&self, name: &str) -> bool {
        self.parts.iter().any(|part| part.name == name)
    }

    /// Whether these bytes are what a part compares with or puts in, or stand somewhere in such a layout.
    pub fn mentions(&self, bytes: &[u8]) -> bool {
        self.parts.iter().any(|part| part.mentions(bytes))
    }
}

impl Part {
    /// A part that compares with exactly these bytes.
    pub(crate) fn comparing(bytes: &[u8]) -> Self {
        Self { name: COMPARE.into(), bytes: bytes.to_vec() }
    }

    fn mentions(&self, bytes: &[u8]) -> bool {
        match self.name.as_str() {
            // `nft` pads names of links, and writes them without padding when only their beginning counts.
            COMPARE | "immediate" => {
                self.bytes.strip_prefix(bytes).is_some_and(|rest| rest.iter().all(|byte| *byte == 0))
            }
            _ => self.bytes.windows(bytes.len().max(1)).any(|window| window == bytes),
        }
    }
}

/// The expression that compares.
const COMPARE: &str = "cmp";

/// A part that says that the rule asks for more, or for the opposite of, what its other parts show: a link, a
/// protocol or a part of an address in the header of an iptables entry, a comparison that must fail.
pub const NARROWED: &str = "narrowed";

/// The text before the first NUL of such a layout.
pub(crate) fn text_of(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_where_it_is_compared_and_inside_a_target() {
        let target = Part { name: "DNAT".into(), bytes: vec![0, 0, 0, 3, 10, 1, 2, 3, 0, 80] };
        let rule =
            ForeignRule { parts: vec![Part::comparing(&[10, 1, 2, 9]), target], ..ForeignRule::default() };
        assert!(rule.mentions(&[10, 1, 2, 9]) && rule.mentions(&[10, 1, 2, 3]) && rule.mentions(&[0, 80]));
        assert!(!rule.mentions(&[1, 2, 9]) && !rule.mentions(&[10, 1, 2, 4]));
        let compared = ForeignRule { parts: vec![Part::comparing(&[10, 1, 2, 9])], ..ForeignRule::default() };
        assert!(!compared.mentions(&[10, 1]) && !compared.mentions(&[2, 9]));
        assert!(rule.has("DNAT") && !rule.has("SNAT"));
    }

    #[test]
    fn a_link_is_found_whether_its_name_is_padded_or_not() {
        for bytes in [&b"veth1\0\0\0"[..], b"veth1"] {
            let rule = ForeignRule { parts: vec![Part::comparing(bytes)], ..ForeignRule::default() };
            assert!(rule.mentions(b"veth1") && !rule.mentions(b"veth"));
        }
    }
}
