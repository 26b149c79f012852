//! The entries of an iptables table: one after the other, leading to each other by their distance from the start.
//!
//! Read [`Rules`]. An entry is a header (addresses, links, offsets, counters), its matches, and a target. A chain
//! of a user begins with an entry whose target is `ERROR` and carries its name; every chain ends with one that
//! decides when no other did. So rules that go away shift all that follows, and every jump is written anew.

use netstate::nft::IpVersion;

use crate::foreign::{ForeignRule, NARROWED, Part, text_of};

/// The hooks of netfilter.
pub(super) const HOOKS: usize = 5;
/// `struct xt_entry_match` and `struct xt_entry_target` before their data: size, name, revision.
const PART_HEADER: usize = 32;
const PART_NAME: usize = 29;
/// `IFNAMSIZ`.
const LINK_NAME: usize = 16;
const HOOK_NAMES: [&str; HOOKS] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// The entries with the places where packets enter them.
#[derive(Debug)]
pub(super) struct Rules {
    version: IpVersion,
    /// Where each hook's chain begins; `u32::MAX` where there is none.
    pub(super) first: [u32; HOOKS],
    /// Where the last entry of each hook's chain is.
    pub(super) last: [u32; HOOKS],
    /// The entries.
    pub(super) entries: Vec<u8>,
}

/// One entry.
struct Entry<'a> {
    at: usize,
    bytes: &'a [u8],
    version: IpVersion,
}

/// What an entry is for its chain.
#[derive(PartialEq)]
enum Role {
    Head,
    Rule,
    Tail,
}

struct Placed<'a> {
    entry: Entry<'a>,
    chain: usize,
    role: Role,
}

impl Rules {
    pub(super) fn new(version: IpVersion, first: [u32; HOOKS], last: [u32; HOOKS], entries: Vec<u8>) -> Self {
        Self { version, first, last, entries }
    }

    /// The number of entries.
    pub(super) fn len(&self) -> usize {
        self.walk().count()
    }

    /// Whether these are so many entries from end to end, and every jump leads to the beginning of one: what is
    /// not understood to the last byte is not to be written back.
    pub(super) fn are_whole(&self, count: usize) -> bool {
        let starts: Vec<usize> = self.walk().map(|entry| entry.at).collect();
        let end = self.walk().last().map_or(0, |entry| entry.at + entry.bytes.len());
        let is_start = |at: u32| starts.binary_search(&(at as usize)).is_ok();
        let hooks = self.first.iter().chain(&self.last).filter(|at| **at != u32::MAX);
        starts.len() == count
            && end == self.entries.len()
            && self.walk().all(|entry| entry.target_at() + PART_HEADER + 4 <= entry.bytes.len())
            && self.walk().filter_map(|entry| entry.leads_to()).chain(hooks.copied()).all(is_start)
    }

    pub(super) fn chains(&self) -> Vec<String> {
        self.placed().1
    }

    pub(super) fn dropping_chains(&self) -> Vec<String> {
        let (placed, chains) = self.placed();
        let is_last = |entry: &Entry<'_>| self.last.iter().any(|last| *last as usize == entry.at);
        let drops = |entry: &Entry<'_>| entry.verdict().and_then(verdict_name) == Some("drop");
        let tails = placed.iter().filter(|placed| is_last(&placed.entry) && drops(&placed.entry));
        tails.filter_map(|placed| chains.get(placed.chain).cloned()).collect()
    }

    pub(super) fn rules(&self) -> Vec<ForeignRule> {
        let (placed, chains) = self.placed();
        let starts = starts(&placed);
        let rules = placed.iter().enumerate().filter(|(_, placed)| placed.role == Role::Rule);
        rules.map(|(index, placed)| placed.entry.rule(index, placed.chain, &chains, &starts)).collect()
    }

    /// The indices of the entries that stay when these rules and chains go.
    pub(super) fn without(
        &self,
        stale: impl Fn(&ForeignRule) -> bool,
        doomed: impl Fn(&str) -> bool,
    ) -> Vec<usize> {
        let (placed, chains) = self.placed();
        let rules = self.rules();
        let of_user = |chain: &str| {
            placed.iter().any(|placed| {
                placed.role == Role::Head && chains.get(placed.chain).is_some_and(|name| name == chain)
            })
        };
        let mut gone: Vec<&String> = chains.iter().filter(|chain| doomed(chain) && of_user(chain)).collect();
        // A chain that a rule leads to which stays has to stay, and then so does what its own rules lead to.
        loop {
            let before = gone.clone();
            gone.retain(|chain| {
                let leads = |rule: &&ForeignRule| rule.jump.as_ref() == Some(*chain);
                rules.iter().filter(leads).all(|rule| stale(rule) || before.contains(&&rule.chain))
            });
            if gone.len() == before.len() {
                break;
            }
        }
        let stale: Vec<u64> = rules.iter().filter(|rule| stale(rule)).map(|rule| rule.place).collect();
        let leaves = |(index, placed): &(usize, &Placed<'_>)| {
            let in_gone = chains.get(placed.chain).is_some_and(|chain| gone.contains(&chain));
            // The rules come in order, so their places do.
            in_gone || stale.binary_search(&(*index as u64)).is_ok()
        };
        placed.iter().enumerate().filter(|entry| !leaves(entry)).map(|(index, _)| index).collect()
    }

    /// Only these entries, with all that leads to them corrected.
    pub(super) fn only(&self, keep: &[usize]) -> Self {
        let mut entries = Vec::with_capacity(self.entries.len());
        // Where each entry comes to stand, or what follows it if it goes.
        let mut moved = Vec::new();
        for (index, entry) in self.walk().enumerate() {
            moved.push((entry.at as u32, entries.len() as u32));
            if keep.binary_search(&index).is_ok() {
                entries.extend_from_slice(entry.bytes);
            }
        }
        moved.push((self.entries.len() as u32, entries.len() as u32));
        let now = |old: u32| {
            moved.binary_search_by_key(&old, |(before, _)| *before).map_or(old, |index| moved[index].1)
        };
        let mut kept = Self { entries, first: self.first.map(now), last: self.last.map(now), ..*self };
        let jumps: Vec<(usize, u32)> = kept
            .walk()
            .filter_map(|entry| Some((entry.at + entry.target_at() + PART_HEADER, entry.leads_to()?)))
            .collect();
        for (at, old) in jumps {
            kept.entries[at..at + 4].copy_from_slice(&now(old).to_ne_bytes());
        }
        kept
    }

    fn walk(&self) -> impl Iterator<Item = Entry<'_>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let rest = self.entries.get(at..).filter(|rest| rest.len() >= header(self.version))?;
            let length = usize::from(short(rest, offsets(self.version) + 2));
            let bytes = rest.get(..length).filter(|bytes| bytes.len() >= header(self.version))?;
            let entry = Entry { at, bytes, version: self.version };
            at += length;
            Some(entry)
        })
    }

    /// Every entry with the chain it is in, by number, and the chains' names.
    fn placed(&self) -> (Vec<Placed<'_>>, Vec<String>) {
        let mut chains: Vec<String> = Vec::new();
        let mut placed: Vec<Placed<'_>> = Vec::new();
        for entry in self.walk() {
            let hook = self.first.iter().position(|first| *first as usize == entry.at);
            let role = match (hook, entry.chain_head()) {
                (_, Some(name)) => {
                    end(&mut placed);
                    chains.push(name);
                    Role::Head
                }
                (Some(hook), None) => {
                    chains.push(HOOK_NAMES[hook].to_owned());
                    Role::Rule
                }
                (None, None) => Role::Rule,
            };
            let is_last = self.last.iter().any(|last| *last as usize == entry.at);
            let role = if is_last { Role::Tail } else { role };
            placed.push(Placed { entry, chain: chains.len().saturating_sub(1), role });
        }
        // The very last entry is an `ERROR` that heads no chain.
        chains.pop();
        (placed, chains)
    }
}

/// Makes the entry before a chain's head the tail of its own chain.
fn end(placed: &mut [Placed<'_>]) {
    if let Some(last) = placed.last_mut()
        && last.role == Role::Rule
    {
        last.role = Role::Tail;
    }
}

/// Where the rules of users' chains begin: what jumps lead to, with the chain's number.
fn starts(placed: &[Placed<'_>]) -> Vec<(u32, usize)> {
    let heads = placed.iter().filter(|placed| placed.role == Role::Head);
    heads.map(|head| ((head.entry.at + head.entry.bytes.len()) as u32, head.chain)).collect()
}

impl Entry<'_> {
    fn rule(&self, index: usize, chain: usize, chains: &[String], starts: &[(u32, usize)]) -> ForeignRule {
        let name = |chain: usize| chains.get(chain).cloned().unwrap_or_default();
        let led = self.leads_to().and_then(|to| starts.iter().find(|(start, _)| *start == to));
        let mut rule = ForeignRule {
            chain: name(chain),
            place: index as u64,
            comment: None,
            jump: led.map(|(_, chain)| name(*chain)),
            parts: self.addresses(),
        };
        if self.is_narrowed() {
            rule.parts.push(Part { name: NARROWED.into(), bytes: Vec::new() });
        }
        let mut at = header(self.version);
        while at < self.bytes.len() {
            let Some(part) = self.part(at) else { break };
            if part.name == "comment" {
                rule.comment = Some(text_of(&part.bytes));
            }
            rule.parts.push(part);
            at += usize::from(short(self.bytes, at)).max(PART_HEADER);
        }
        if let Some(verdict) = self.verdict().and_then(verdict_name) {
            rule.parts.push(Part { name: verdict.into(), bytes: Vec::new() });
        }
        rule
    }

    /// The addresses that it compares with.
    fn addresses(&self) -> Vec<Part> {
        let length = match self.version {
            IpVersion::V4 => 4,
            IpVersion::V6 => 16,
        };
        let field = |index: usize| self.bytes.get(index * length..(index + 1) * length).unwrap_or_default();
        let compared = (0..2).filter(|index| field(index + 2).iter().any(|byte| *byte != 0));
        compared.map(|index| Part::comparing(field(index))).collect()
    }

    /// Whether its header asks for more than whole addresses: a part of one, links, a protocol, or the opposite.
    /// `struct ipt_ip` and `struct ip6t_ip6`: two addresses, two masks, two links of 16 bytes, two masks of these,
    /// protocol (u16), then for IPv6 the type of service and a byte of flags, one of inversions.
    fn is_narrowed(&self) -> bool {
        let (address, flags) = match self.version {
            IpVersion::V4 => (4, 82),
            IpVersion::V6 => (16, 131),
        };
        let link_masks = 4 * address + 2 * LINK_NAME;
        let protocol = link_masks + 2 * LINK_NAME;
        let field = |from: usize, to: usize| self.bytes.get(from..to).unwrap_or_default();
        let is_whole =
            |mask: &[u8]| mask.iter().all(|byte| *byte == 0) || mask.iter().all(|byte| *byte == 0xff);
        let masks = (2..4).map(|index| field(index * address, (index + 1) * address));
        let asks = |bytes: &[u8]| bytes.iter().any(|byte| *byte != 0);
        !masks.clone().all(is_whole)
            || asks(field(link_masks, protocol))
            || asks(field(protocol, protocol + 2))
            || asks(field(flags, flags + 2))
    }

    fn part(&self, at: usize) -> Option<Part> {
        let length = usize::from(short(self.bytes, at)).max(PART_HEADER);
        let bytes = self.bytes.get(at..at + length)?;
        Some(Part { name: text_of(&bytes[2..2 + PART_NAME]), bytes: bytes[PART_HEADER..].to_vec() })
    }

    fn target_at(&self) -> usize {
        usize::from(short(self.bytes, offsets(self.version)))
    }

    /// The chain's name, if it is the head of one.
    fn chain_head(&self) -> Option<String> {
        let target = self.part(self.target_at()).filter(|target| target.name == "ERROR")?;
        Some(text_of(&target.bytes))
    }

    /// What a target without a name says: a verdict if negative, else where to go on.
    fn verdict(&self) -> Option<i32> {
        let target = self.part(self.target_at()).filter(|target| target.name.is_empty())?;
        Some(number(&target.bytes, 0).cast_signed())
    }

    fn leads_to(&self) -> Option<u32> {
        self.verdict().and_then(|verdict| u32::try_from(verdict).ok())
    }
}

/// `-NF_DROP - 1`, `-NF_ACCEPT - 1`, `XT_RETURN`.
fn verdict_name(verdict: i32) -> Option<&'static str> {
    match verdict {
        -1 => Some("drop"),
        -2 => Some("accept"),
        -5 => Some("return"),
        _ => None,
    }
}

/// Bytes of an entry before its matches: `struct ipt_entry`, `struct ip6t_entry`.
fn header(version: IpVersion) -> usize {
    match version {
        IpVersion::V4 => 112,
        IpVersion::V6 => 168,
    }
}

/// Where in it the offsets of target and next entry stand.
fn offsets(version: IpVersion) -> usize {
    match version {
        IpVersion::V4 => 88,
        IpVersion::V6 => 140,
    }
}

fn short(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

/// A number of 32 bits in host order; 0 beyond the end.
pub(super) fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}
