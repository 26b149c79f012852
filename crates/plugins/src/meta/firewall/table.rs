//! Our own table: every pod's addresses with their owner, what the administrator says first, what bridges may.
//!
//! Read [`Admission`] first. In `inet fairlead_cni`:
//!
//! ```text
//! chain forward            # filter, hook forward
//!     jump firewall_admin      # jump CNI-ADMIN: a chain that people fill
//!     jump firewall_isolation  # iifname . oifname @firewall/isolated drop
//!                              # iifname @firewall/bridges oifname @firewall/bridges
//!                              #     iifname . oifname != @firewall/same drop
//!     jump firewall_pods       # for each network: ip daddr @firewall/<network>/ipv4 ct state established,related accept
//!                              #                   ip saddr @firewall/<network>/ipv4 accept
//! ```
//!
//! Pods and bridges are elements; the rules come with the chain or set that can be made only once. An address's
//! comment is its owner, a bridge's the networks whose policy it is, with a `/` between them.

use std::net::IpAddr;

use kernel::Error;
use kernel::nft::{Nft, Transaction};
use netstate::LinkName;
use netstate::nft::{
    BaseChain, Chain, ChainKind, Family, Field, Hook, IpVersion, Key, KeyType, Policy, Rule, Set, Statement,
    TableKey, Value, Verdict, ct_state, priority,
};

use super::config::Ingress;
use super::forward;
use crate::attachment::Leaving;
use crate::owner::{Owner, shortened};

const TABLE: &str = "fairlead_cni";
const FORWARD: &str = "forward";
const ADMIN: &str = "firewall_admin";
const ISOLATION: &str = "firewall_isolation";
const PODS: &str = "firewall_pods";
const BRIDGES: &str = "firewall/bridges";
const SAME: &str = "firewall/same";
const ISOLATED: &str = "firewall/isolated";
/// Longest list of networks in a bridge's comment, and what stands there for a longer one: such a bridge stays.
const LONGEST_COMMENT: usize = 240;
const MANY: &str = "*";

/// How often it is tried again when others make or remove the same objects at the same time.
pub(super) const ATTEMPTS: usize = 10;

pub(super) const VERSIONS: [IpVersion; 2] = [IpVersion::V4, IpVersion::V6];

/// What one ADD asks for.
#[derive(Debug)]
pub(super) struct Admission<'a> {
    pub(super) owner: &'a Owner,
    pub(super) addresses: &'a [IpAddr],
    pub(super) fence: Option<Fence>,
    pub(super) admin_chain: &'a str,
    /// Also in the chains of iptables, where there are any.
    pub(super) in_iptables: bool,
    /// The attachment's cable is ours, so it was not the reference who let it pass. Only CHECK asks.
    pub(super) cable_is_ours: bool,
}

/// A bridge and what may reach its pods.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fence {
    pub(super) bridge: LinkName,
    pub(super) ingress: Ingress,
}

/// Whether a chain of this name has its own meaning in our table, whose base chains are named after their hooks.
pub(super) fn is_own(chain: &str) -> bool {
    let hooks = ["prerouting", "input", FORWARD, "output", "postrouting"];
    hooks.contains(&chain) || chain.starts_with("firewall_") || chain.starts_with("portmap_")
}

impl Admission<'_> {
    /// Lets the pod pass: all of it in one transaction, or nothing.
    pub(super) fn admit(&self, nft: &mut Nft) -> Result<(), Error> {
        let mut attempts = 0..ATTEMPTS;
        let mut first = true;
        loop {
            let mut transaction = Transaction::new();
            self.make(nft, &mut transaction)?;
            self.put_addresses(nft, &mut transaction, first)?;
            self.put_fence(nft, &mut transaction)?;
            if self.in_iptables {
                forward::put(nft, self.addresses, self.admin_chain, &mut transaction)?;
            }
            match nft.commit(transaction) {
                // Somebody else made or removed the same in between, or an address's last owner was never deleted.
                Err(error) if (error.exists() || error.is_missing()) && attempts.next().is_some() => {
                    first = false;
                }
                other => return other,
            }
        }
    }

    /// What of chains, sets and rules is not there yet.
    fn make(&self, nft: &mut Nft, transaction: &mut Transaction) -> Result<(), Error> {
        let table = table();
        let admin_rule = admin_rule(self.admin_chain);
        let rules = nft.foreign_rules(&table, None)?;
        let is_made = rules.iter().any(|rule| rule.chain == ISOLATION);
        if !is_made {
            // Somebody flushed the table, unless the rules have just come: they come with the chain.
            let is_flushed = nft.holds_chains(&[(&table, Some(ISOLATION))])?[0]
                && nft.foreign_rules(&table, Some(ISOLATION))?.is_empty();
            make_chains(transaction, is_flushed);
        }
        let chain = self.admin_chain;
        if !rules.iter().any(|rule| rule.chain == ADMIN && rule.jump.as_deref() == Some(chain)) {
            transaction.add_chain(&table, &Chain::regular(chain)).add_rule(&table, ADMIN, &admin_rule);
        }
        let [four, _] = sets(self.owner.network());
        let of_network = |rule: &kernel::foreign::ForeignRule| {
            rule.chain == PODS && rule.comment.as_deref().is_some_and(|text| text.starts_with(&four.name))
        };
        if !rules.iter().any(of_network) {
            let is_flushed = nft.sets(&table)?.iter().any(|set| set.name == four.name)
                && !nft.foreign_rules(&table, Some(PODS))?.iter().any(of_network);
            for (set, version) in sets(self.owner.network()).iter().zip(VERSIONS) {
                match is_flushed {
                    true => transaction.add_set(&table, set),
                    false => transaction.create_set(&table, set),
                };
                for rule in pod_rules(set, version) {
                    transaction.add_rule(&table, PODS, &rule);
                }
            }
        }
        Ok(())
    }

    fn put_addresses(&self, nft: &mut Nft, transaction: &mut Transaction, first: bool) -> Result<(), Error> {
        let comment = self.owner.comment();
        let table = table();
        for address in self.addresses {
            let (set, key) = place(self.owner.network(), *address);
            // Looked up only when the first attempt says that it is taken.
            if !first && nft.comment_of(&table, &set, &key)?.is_some() {
                transaction.delete_elements(&table, &set, [&key]);
            }
            transaction.create_elements(&table, &set, [(&key, Some(comment.as_str()))]);
        }
        Ok(())
    }

    /// Puts the bridge where its policy is, and takes it away from where it was under another policy of the same
    /// network.
    fn put_fence(&self, nft: &mut Nft, transaction: &mut Transaction) -> Result<(), Error> {
        let Some(fence) = self.fence else { return Ok(()) };
        let table = table();
        let network = shortened(self.owner.network(), 64);
        for (set, key, wanted) in fence.places() {
            match nft.comment_of(&table, set, &key)? {
                None if wanted => {
                    transaction.create_elements(&table, set, [(&key, Some(network.as_str()))]);
                }
                Some(found) if wanted => {
                    if let Some(more) = with_network(&found, &network) {
                        transaction.delete_elements(&table, set, [&key]);
                        transaction.create_elements(&table, set, [(&key, Some(more.as_str()))]);
                    }
                }
                Some(found) => take_back(transaction, set, &key, (&found, &network)),
                None => {}
            }
        }
        Ok(())
    }

    /// What is missing, in words; `None` when all is there, or the reference's plugin made it and it stands.
    pub(super) fn lacking(&self, nft: &mut Nft) -> Result<Option<String>, Error> {
        let table = table();
        let comment = self.owner.comment();
        let mut theirs = false;
        for address in self.addresses {
            let (set, key) = place(self.owner.network(), *address);
            let is_ours = nft.comment_of(&table, &set, &key)?.is_some_and(|found| found == comment);
            let in_chain = forward::stands(nft, *address)?;
            theirs |= !is_ours;
            let by_reference = in_chain == Some(true) || !self.in_iptables;
            if !is_ours && (self.cable_is_ours || !by_reference) {
                return Ok(Some(format!("{address} is not let through by {table} any more")));
            }
            if in_chain == Some(false) && self.in_iptables {
                return Ok(Some(format!("{address} is not let through by iptables' chain FORWARD any more")));
            }
        }
        if theirs {
            return self.fence_lacking(nft, true);
        }
        for (set, version) in sets(self.owner.network()).iter().zip(VERSIONS) {
            for rule in pod_rules(set, version) {
                if !nft.holds_rule(&table, PODS, &rule)? {
                    return Ok(Some(format!("the rule \"{rule}\" is gone from {table}")));
                }
            }
        }
        if !nft.holds_rule(&table, ADMIN, &admin_rule(self.admin_chain))? {
            return Ok(Some(format!("the jump to {} is gone from {table}", self.admin_chain)));
        }
        self.fence_lacking(nft, false)
    }

    fn fence_lacking(&self, nft: &mut Nft, theirs: bool) -> Result<Option<String>, Error> {
        let Some(fence) = self.fence.filter(|fence| fence.ingress != Ingress::Open) else { return Ok(None) };
        if theirs && forward::fences(nft, fence)? {
            return Ok(None);
        }
        let table = table();
        for (set, key, wanted) in fence.places() {
            if wanted && !nft.contains(&table, set, &key)? {
                return Ok(Some(format!("bridge {} is gone from {set} of {table}", fence.bridge)));
            }
        }
        for rule in isolation_rules() {
            if !nft.holds_rule(&table, ISOLATION, &rule)? {
                return Ok(Some(format!("the rule \"{rule}\" is gone from {table}")));
            }
        }
        Ok(None)
    }
}

impl Fence {
    /// The sets, the bridge's key in each, and whether it belongs there.
    fn places(self) -> [(&'static str, Key, bool); 3] {
        let name = Value::Ifname(self.bridge);
        let fenced = self.ingress != Ingress::Open;
        [
            (BRIDGES, vec![name], fenced),
            (SAME, vec![name, name], fenced),
            (ISOLATED, vec![name, name], self.ingress == Ingress::Isolated),
        ]
    }
}

/// For [`crate::attachment`]: adds the deletion of all that an attachment has here and in iptables' chains.
pub(crate) fn leave(
    nft: &mut Nft,
    leaving: &Leaving<'_>,
    transaction: &mut Transaction,
) -> Result<(), Error> {
    let gone = leave_elements(nft, leaving, transaction)?;
    if gone.is_empty() {
        return Ok(());
    }
    forward::leave(nft, &gone, transaction)
}

/// Adds the deletion of the attachment's addresses, and says which.
pub(super) fn leave_elements(
    nft: &mut Nft,
    leaving: &Leaving<'_>,
    transaction: &mut Transaction,
) -> Result<Vec<IpAddr>, Error> {
    let table = table();
    let network = leaving.owner.network();
    let mut gone = match &leaving.addresses {
        None => addresses_of(nft, leaving.owner)?,
        Some(addresses) => addresses.iter().map(ipnet::IpNet::addr).collect(),
    };
    let comment = leaving.owner.comment();
    let mut refused = None;
    gone.retain(|address| {
        let (set, key) = place(network, *address);
        let found = nft.comment_of(&table, &set, &key);
        let is_own = found.as_ref().is_ok_and(|found| found.as_ref() == Some(&comment));
        refused = refused.take().or(found.err());
        if is_own {
            transaction.delete_elements(&table, &set, [&key]);
        }
        is_own
    });
    refused.map_or(Ok(gone), Err)
}

/// The addresses of an attachment.
pub(super) fn addresses_of(nft: &mut Nft, owner: &Owner) -> Result<Vec<IpAddr>, Error> {
    let comment = owner.comment();
    Ok(listed(nft, owner.network())?
        .into_iter()
        .filter(|(_, found)| *found == comment)
        .map(|(a, _)| a)
        .collect())
}

/// Those of the addresses that are somebody else's of the same network by now.
pub(super) fn others(nft: &mut Nft, owner: &Owner, addresses: &[IpAddr]) -> Result<Vec<IpAddr>, Error> {
    let comment = owner.comment();
    let mut others = Vec::new();
    for address in addresses {
        let (set, key) = place(owner.network(), *address);
        if nft.comment_of(&table(), &set, &key)?.is_some_and(|found| found != comment) {
            others.push(*address);
        }
    }
    Ok(others)
}

/// The addresses of everybody in `network` who is not among `valid`.
pub(super) fn stale(nft: &mut Nft, network: &str, valid: &[Owner]) -> Result<Vec<IpAddr>, Error> {
    let keep: Vec<String> = valid.iter().map(Owner::comment).collect();
    let mut found = listed(nft, network)?;
    found.retain(|(_, owner)| !keep.contains(owner));
    Ok(found.into_iter().map(|(address, _)| address).collect())
}

/// The addresses of every network, for [`crate::living`].
///
/// # Errors
/// When the kernel refuses to tell.
pub(crate) fn every_address(nft: &mut Nft) -> Result<Vec<IpAddr>, Error> {
    let mut found = Vec::new();
    for set in nft.sets(&table())?.into_iter().filter(|set| is_of_network(&set.name)) {
        let elements = or_none(nft.elements(&table(), &set))?.unwrap_or_default();
        found.extend(elements.keys().filter_map(|key| match key.first() {
            Some(Value::Address(address)) => Some(*address),
            _ => None,
        }));
    }
    Ok(found)
}

/// Removes these addresses, with their rules in iptables' chains. With nobody valid the network's policy for its
/// bridges goes too.
pub(super) fn collect(nft: &mut Nft, network: &str, valid: &[Owner]) -> Result<(), Error> {
    let table = table();
    let mut attempts = 0..ATTEMPTS;
    loop {
        let mut transaction = Transaction::new();
        let stale = stale(nft, network, valid)?;
        for address in &stale {
            let (set, key) = place(network, *address);
            transaction.delete_elements(&table, &set, [&key]);
        }
        forward::leave(nft, &stale, &mut transaction)?;
        if valid.is_empty() {
            leave_fences(nft, network, &mut transaction)?;
        }
        match nft.commit(transaction) {
            Err(error) if error.is_missing() && attempts.next().is_some() => {}
            other => return other,
        }
    }
}

fn leave_fences(nft: &mut Nft, network: &str, transaction: &mut Transaction) -> Result<(), Error> {
    let table = table();
    let network = shortened(network, 64);
    for set in fence_sets() {
        let elements = or_none(nft.elements(&table, &set))?.unwrap_or_default();
        for (key, element) in &elements {
            take_back(transaction, &set.name, key, (element.comment(), &network));
        }
    }
    Ok(())
}

/// A bridge's comment with one more network; `None` if nothing is to be changed.
fn with_network(comment: &str, network: &str) -> Option<String> {
    let is_known = comment.split('/').any(|known| known == network || known == MANY);
    let more = format!("{comment}/{network}");
    let more = if more.len() > LONGEST_COMMENT { MANY.to_owned() } else { more };
    (!is_known && !comment.is_empty()).then_some(more)
}

/// Ends the policy of one network for a bridge, which stays if it is another network's as well.
fn take_back(transaction: &mut Transaction, set: &str, key: &Key, (comment, network): (&str, &str)) {
    if !comment.split('/').any(|known| known == network) {
        return;
    }
    let others: Vec<&str> = comment.split('/').filter(|known| *known != network).collect();
    transaction.delete_elements(&table(), set, [key]);
    if !others.is_empty() {
        transaction.create_elements(&table(), set, [(key, Some(others.join("/").as_str()))]);
    }
}

/// All addresses of a network with their owners.
fn listed(nft: &mut Nft, network: &str) -> Result<Vec<(IpAddr, String)>, Error> {
    let mut found = Vec::new();
    for set in sets(network) {
        let elements = or_none(nft.elements(&table(), &set))?.unwrap_or_default();
        found.extend(elements.into_iter().filter_map(|(key, element)| match key.first() {
            Some(Value::Address(address)) => Some((*address, element.comment.unwrap_or_default())),
            _ => None,
        }));
    }
    Ok(found)
}

fn or_none<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Err(error) if error.is_missing() => Ok(None),
        other => other.map(Some),
    }
}

fn table() -> TableKey {
    TableKey::new(Family::Inet, TABLE)
}

fn sets(network: &str) -> [Set; 2] {
    VERSIONS.map(|version| Set::new(set_name(network, version), [version.key_type()]))
}

fn set_name(network: &str, version: IpVersion) -> String {
    let version = if version == IpVersion::V4 { "ipv4" } else { "ipv6" };
    format!("firewall/{}/{version}", shortened(network, 64))
}

/// Whether [`set_name`] gives a network's set this name.
fn is_of_network(name: &str) -> bool {
    name.strip_prefix("firewall/").is_some_and(|rest| rest.ends_with("/ipv4") || rest.ends_with("/ipv6"))
}

fn place(network: &str, address: IpAddr) -> (String, Key) {
    (set_name(network, IpVersion::of(address)), vec![Value::Address(address)])
}

fn fence_sets() -> [Set; 3] {
    let pair = [KeyType::Ifname, KeyType::Ifname];
    [Set::new(BRIDGES, [KeyType::Ifname]), Set::new(SAME, pair), Set::new(ISOLATED, pair)]
}

/// The rules' comments begin with the set's name, by which they are found.
fn pod_rules(set: &Set, version: IpVersion) -> [Rule; 2] {
    let back = [
        Statement::in_set([Field::Destination(version)], set.name.as_str()),
        Statement::ct_state(ct_state::ESTABLISHED | ct_state::RELATED),
        Statement::Verdict(Verdict::Accept),
    ];
    let from =
        [Statement::in_set([Field::Source(version)], set.name.as_str()), Statement::Verdict(Verdict::Accept)];
    [Rule::new(back), Rule::new(from)].map(|rule| rule.with_comment(set.name.as_str()))
}

fn isolation_rules() -> [Rule; 2] {
    let drop = || Statement::Verdict(Verdict::Drop);
    let links = [Field::InputLink, Field::OutputLink];
    let isolated = Rule::new([Statement::in_set(links, ISOLATED), drop()]);
    let apart = Rule::new([
        Statement::in_set([Field::InputLink], BRIDGES),
        Statement::in_set([Field::OutputLink], BRIDGES),
        Statement::not_in_set(links, SAME),
        drop(),
    ]);
    [
        isolated.with_comment("pods of an isolated bridge do not reach each other"),
        apart.with_comment("pods of one bridge do not reach those of another"),
    ]
}

fn admin_rule(chain: &str) -> Rule {
    Rule::new([Statement::Verdict(Verdict::Jump(chain.to_owned()))]).with_comment("administrators come first")
}

/// All that there is once. The chain of isolation can be made only once, so the rules are single; where somebody
/// flushed it, it is filled anew.
fn make_chains(transaction: &mut Transaction, is_flushed: bool) {
    let table = table();
    let base = BaseChain {
        kind: ChainKind::Filter,
        hook: Hook::Forward,
        priority: priority::FILTER,
        policy: Policy::Accept,
    };
    transaction.add_table(&table);
    match is_flushed {
        true => transaction.add_chain(&table, &Chain::regular(ISOLATION)),
        false => transaction.create_chain(&table, &Chain::regular(ISOLATION)),
    };
    transaction.add_chain(&table, &Chain::regular(ADMIN)).add_chain(&table, &Chain::regular(PODS));
    transaction.add_chain(&table, &Chain::base(FORWARD, base));
    for set in fence_sets() {
        transaction.add_set(&table, &set);
    }
    if is_flushed {
        transaction.flush_chain(&table, ISOLATION).flush_chain(&table, FORWARD);
    }
    for rule in isolation_rules() {
        transaction.add_rule(&table, ISOLATION, &rule);
    }
    for chain in [ADMIN, ISOLATION, PODS] {
        let jump = Rule::new([Statement::Verdict(Verdict::Jump(chain.to_owned()))]);
        transaction.add_rule(&table, FORWARD, &jump);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_read_as_promised() {
        let [four, six] = sets("test");
        let rules: Vec<String> = pod_rules(&four, IpVersion::V4)
            .iter()
            .chain(&pod_rules(&six, IpVersion::V6))
            .map(Rule::to_string)
            .collect();
        assert!(rules[0].starts_with("ip daddr @firewall/test/ipv4 ct state"), "{rules:?}");
        assert!(rules[1].starts_with("ip saddr @firewall/test/ipv4 accept"), "{rules:?}");
        assert!(rules[3].starts_with("ip6 saddr @firewall/test/ipv6 accept"), "{rules:?}");
        let fences = isolation_rules().map(|rule| rule.to_string());
        assert!(fences[0].contains("iifname . oifname @firewall/isolated drop"), "{fences:?}");
        assert!(fences[1].contains("iifname . oifname != @firewall/same drop"), "{fences:?}");
    }

    #[test]
    fn a_bridge_says_whose_policy_it_is() {
        assert_eq!(with_network("a", "a"), None);
        assert_eq!(with_network("a", "b").as_deref(), Some("a/b"));
        assert_eq!(with_network("a/b", "b"), None);
        assert_eq!(with_network(&"x".repeat(239), "b").as_deref(), Some(MANY));
        assert_eq!(with_network(MANY, "b"), None);
        // Somebody put it there by hand.
        assert_eq!(with_network("", "b"), None);
    }

    #[test]
    fn chains_of_our_own_are_no_administrators() {
        assert!(is_own(FORWARD) && is_own(ADMIN) && is_own("postrouting"));
        assert!(!is_own("CNI-ADMIN") && !is_own("mine"));
    }
}
