//! Host ports in nf_tables: which maps, sets, chains and rules there are, and which elements an attachment needs.
//!
//! Read [`Layout`] first, then [`Unit`]. All is in our table `inet fairlead_cni`; rules are static, a host port is
//! an element:
//!
//! ```text
//! map hostports4                          protocol . port           : pod address . port
//! map hostports4_address                  address . protocol . port : pod address . port
//! set hostport_sources/0x2000/10.1.2.0/24 protocol . port
//!
//! chain hostports_prerouting  (nat)  ip daddr 127.0.0.0/8 iifname != "lo" drop
//!                                    fib daddr type local jump hostports
//! chain hostports_output      (nat)  ip6 daddr ::1 return
//!                                    fib daddr type local jump hostports
//! chain hostports                    jump hostports_sources, hostports_address, hostports_any in turn
//! chain hostports_sources            ip saddr 10.1.2.0/24 meta l4proto . th dport @hostport_sources/... mark 0x2000
//!                                    ip saddr 127.0.0.0/8 (the same)
//! chain hostports_address            dnat ip to ip daddr . meta l4proto . th dport map @hostports4_address
//! chain hostports_any                dnat ip to meta l4proto . th dport map @hostports4
//! chain hostports_masquerade/0x2000  meta mark & 0x2000 == 0x2000 ct status dnat masquerade
//! ```
//!
//! So the first packet of a connection to this host costs a few look-ups, however many host ports there are, and
//! all other packets cost nothing: chains of the kind `nat` see first packets only. What attachments share is
//! made in [`Unit`]s, each by whoever finds it missing: conditions get maps and sets of their own, with their
//! digest in the name, and so do subnets and marks. The first rule guards what `route_localnet` opens: nobody
//! but this host reaches its loopback addresses.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni::Error;
use ipnet::IpNet;
use kernel::nft::{Elements, Transaction};
use netstate::nft::{
    BaseChain, Chain, ChainKind, Element, Family, Field, Hook, IpVersion, Key, KeyType, Operator, Policy,
    Rule, Set, Statement, TableKey, Value, Verdict, ct_status, priority,
};

use super::config::{Config, Mapping, Masquerade, SCTP, TCP, UDP};
use crate::owner::Owner;

/// How the name of everything here begins.
pub(super) const PREFIX: &str = "hostport";

const TABLE: &str = "fairlead_cni";
const ENTRY: &str = "hostports";
const SOURCES: &str = "hostports_sources";
const ADDRESS: &str = "hostports_address";
const ANY: &str = "hostports_any";

/// The table.
pub(super) fn table() -> TableKey {
    TableKey::new(Family::Inet, TABLE)
}

/// The bits of a packet's mark that say that its source is to be translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// The bits that change.
    pub(super) mask: u32,
    /// What they become.
    pub(super) value: u32,
    /// Whether our own rule translates what is marked so; otherwise somebody else's does.
    pub(super) ours: bool,
}

/// What attachments share: made by the first who misses it, in one transaction, which fails if it is there. A
/// unit comes after those that it stands on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unit {
    /// Its chains with their rules.
    pub(super) chains: Vec<Chain>,
    /// Its set or map, without elements.
    pub(super) set: Option<Set>,
    /// Its rules in chains of other units.
    pub(super) rules: Vec<(&'static str, Rule)>,
}

/// All that one attachment needs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// What it shares with others, in the order in which it is made.
    pub(super) units: Vec<Unit>,
    /// What is its own: sets and maps with the attachment's elements.
    pub(super) entries: Vec<Set>,
}

/// Which packets a map is for.
#[derive(Clone, Copy)]
struct Shape<'a> {
    version: IpVersion,
    /// Keys begin with the host's address.
    specific: bool,
    conditions: &'a [Statement],
}

impl Layout {
    /// The layout of a configuration for a pod with these addresses, at most one of each family, each with the
    /// mark for its family.
    ///
    /// # Errors
    /// Code 7 when one host port is to lead to two places.
    pub(super) fn of(config: &Config, owner: &Owner, pods: &[(IpNet, Mark)]) -> Result<Self, Error> {
        let mut layout = Self { units: vec![frame()], entries: Vec::new() };
        let comment = Element::new(Some(&owner.alias()));
        for (pod, mark) in pods {
            if mark.ours && config.masquerade != Masquerade::Nobody {
                layout.share(masquerade(*mark));
            }
            let version = IpVersion::of_net(*pod);
            for specific in [false, true] {
                let here = |mapping: &&Mapping| {
                    mapping.address.is_some() == specific
                        && mapping.version.is_none_or(|wanted| wanted == version)
                };
                let here: Vec<&Mapping> = config.mappings.iter().filter(here).collect();
                let shape = Shape { version, specific, conditions: config.conditions(version) };
                if !here.is_empty() {
                    layout.place(shape, &here, (*pod, config.masquerade, *mark), &comment)?;
                }
            }
        }
        Ok(layout)
    }

    fn place(
        &mut self,
        shape: Shape<'_>,
        mappings: &[&Mapping],
        (pod, masquerade, mark): (IpNet, Masquerade, Mark),
        comment: &Element,
    ) -> Result<(), Error> {
        let mut elements = BTreeMap::new();
        for mapping in mappings {
            let key = key(mapping);
            let data = vec![Value::Address(pod.addr()), Value::Port(mapping.container_port)];
            let element = Element { data, ..comment.clone() };
            if elements.insert(key.clone(), element.clone()).is_some_and(|other| other != element) {
                let port = port_text(&key);
                let text = format!("runtimeConfig.portMappings: host port {port} is to lead to two places");
                return Err(Error::invalid_config(text));
            }
        }
        let sources = match masquerade {
            Masquerade::Nobody => None,
            Masquerade::Near => Some(shape.sources(mark, Some(pod.trunc()))),
            Masquerade::All => Some(shape.sources(mark, None)),
        };
        if let Some(sources) = sources {
            let elements = elements.keys().map(|key| (key.clone(), comment.clone())).collect();
            self.put(sources, elements);
        }
        self.put(shape.map(), elements);
        Ok(())
    }

    fn put(&mut self, unit: Unit, elements: Elements) {
        if let Some(set) = unit.set.clone() {
            self.entries.push(Set { elements, ..set });
            self.share(unit);
        }
    }

    fn share(&mut self, unit: Unit) {
        if !self.units.contains(&unit) {
            self.units.push(unit);
        }
    }

    /// Every rule with its chain.
    pub(super) fn rules(&self) -> Vec<(&str, &Rule)> {
        let mut rules = Vec::new();
        for unit in &self.units {
            for chain in &unit.chains {
                rules.extend(chain.rules.iter().map(|rule| (chain.name.as_str(), rule)));
            }
            rules.extend(unit.rules.iter().map(|(chain, rule)| (*chain, rule)));
        }
        rules
    }
}

impl Unit {
    /// Makes it; that any of it is there already is an error.
    pub(super) fn make(&self, table: &TableKey, transaction: &mut Transaction) {
        transaction.add_table(table);
        for chain in &self.chains {
            transaction.create_chain(table, chain);
        }
        if let Some(set) = &self.set {
            transaction.create_set(table, set);
        }
        for chain in &self.chains {
            for rule in &chain.rules {
                transaction.add_rule(table, &chain.name, rule);
            }
        }
        for (chain, rule) in &self.rules {
            transaction.add_rule(table, chain, rule);
        }
    }
}

impl Shape<'_> {
    /// The map, with the rule that looks it up.
    fn map(&self) -> Unit {
        let digits = if self.version == IpVersion::V4 { 4 } else { 6 };
        let name = format!("{PREFIX}s{digits}{}", self.suffix());
        let dnat = Statement::Dnat { version: self.version, fields: self.fields(), map: name.clone() };
        let chain = if self.specific { ADDRESS } else { ANY };
        Unit {
            chains: Vec::new(),
            set: Some(Set::map(name, self.key(), [self.version.key_type(), KeyType::Port])),
            rules: vec![(chain, self.rule([dnat]))],
        }
    }

    /// The set of host ports whose connections are marked when they come from `near` or from this host's
    /// loopback; from anywhere without `near`.
    fn sources(&self, mark: Mark, near: Option<IpNet>) -> Unit {
        let net = near.map_or_else(|| "all".to_owned(), |net| net.to_string().replace(':', "-"));
        let digits = if self.version == IpVersion::V4 { 4 } else { 6 };
        let name = format!("{PREFIX}_sources{digits}/{}/{net}{}", mark_text(mark), self.suffix());
        let marked = |source: Statement| {
            let listed = Statement::in_set(self.fields(), name.as_str());
            (SOURCES, self.rule([source, listed, Statement::SetMark { mask: mark.mask, value: mark.value }]))
        };
        let rules = match near {
            None => vec![marked(Statement::equal(Field::NetworkFamily, family_number(self.version)))],
            Some(net @ IpNet::V4(_)) => {
                vec![marked(Statement::source_in(net)), marked(Statement::source_in(loopback()))]
            }
            Some(net @ IpNet::V6(_)) => vec![marked(Statement::source_in(net))],
        };
        Unit { chains: Vec::new(), set: Some(Set::new(name, self.key())), rules }
    }

    fn rule<const N: usize>(&self, statements: [Statement; N]) -> Rule {
        Rule::new(self.conditions.iter().cloned().chain(statements).collect::<Vec<_>>())
    }

    fn fields(&self) -> Vec<Field> {
        let address = self.specific.then_some(Field::Destination(self.version));
        address.into_iter().chain([Field::Protocol, Field::DestinationPort]).collect()
    }

    fn key(&self) -> Vec<KeyType> {
        let address = self.specific.then_some(self.version.key_type());
        address.into_iter().chain([KeyType::Protocol, KeyType::Port]).collect()
    }

    fn suffix(&self) -> String {
        let address = if self.specific { "_address" } else { "" };
        match self.conditions {
            [] => address.to_owned(),
            conditions => format!("{address}/{:016x}", Rule::new(conditions.to_vec()).digest()),
        }
    }
}

/// The chains that all host ports share.
fn frame() -> Unit {
    let base =
        |hook| BaseChain { kind: ChainKind::Nat, hook, priority: priority::DSTNAT, policy: Policy::Accept };
    let jump = |chain: &str| Rule::new([Statement::Verdict(Verdict::Jump(chain.to_owned()))]);
    let local =
        Rule::new([Statement::DestinationIsLocal, Statement::Verdict(Verdict::Jump(ENTRY.to_owned()))])
            .with_comment("host ports");
    let guard = Rule::new([
        Statement::destination_in(loopback()),
        Statement::not_equal(Field::InputLink, Value::Ifname(netstate::LinkName::LOOPBACK)),
        Statement::Verdict(Verdict::Drop),
    ])
    .with_comment("this host's loopback is for this host");
    // Answers to ::1 cannot come back from a pod; so who asks there is refused at once, or served by others.
    let six = Value::Address(IpAddr::V6(Ipv6Addr::LOCALHOST));
    let aside = Rule::new([
        Statement::equal(Field::Destination(IpVersion::V6), six),
        Statement::Verdict(Verdict::Return),
    ]);
    let entry = [SOURCES, ADDRESS, ANY].map(jump);
    Unit {
        chains: vec![
            Chain::regular(SOURCES),
            Chain::regular(ADDRESS),
            Chain::regular(ANY),
            entry.into_iter().fold(Chain::regular(ENTRY), Chain::with_rule),
            Chain::base("hostports_prerouting", base(Hook::Prerouting))
                .with_rule(guard)
                .with_rule(local.clone()),
            Chain::base("hostports_output", base(Hook::Output)).with_rule(aside).with_rule(local),
        ],
        set: None,
        rules: Vec::new(),
    }
}

/// The chain that translates the source of what is marked so.
fn masquerade(mark: Mark) -> Unit {
    let base = BaseChain {
        kind: ChainKind::Nat,
        hook: Hook::Postrouting,
        // Before the masquerading of those who do it for whole networks.
        priority: priority::SRCNAT - 1,
        policy: Policy::Accept,
    };
    let marked = Statement::MaskedMatch {
        field: Field::Mark,
        mask: mark.mask,
        operator: Operator::Equal,
        value: mark.value,
    };
    let translated = Statement::MaskedMatch {
        field: Field::CtStatus,
        mask: ct_status::DESTINATION_TRANSLATED,
        operator: Operator::NotEqual,
        value: 0,
    };
    let rule = Rule::new([marked, translated, Statement::Masquerade { fully_random: true }])
        .with_comment("to host ports, and the answer has to come back here");
    let chain = Chain::base(format!("{PREFIX}s_masquerade/{}", mark_text(mark)), base).with_rule(rule);
    Unit { chains: vec![chain], set: None, rules: Vec::new() }
}

fn mark_text(mark: Mark) -> String {
    if mark.mask == mark.value {
        format!("{:#x}", mark.value)
    } else {
        format!("{:#x}-{:#x}", mark.value, mark.mask)
    }
}

fn family_number(version: IpVersion) -> Value {
    Value::Protocol(if version == IpVersion::V4 { 2 } else { 10 })
}

fn loopback() -> IpNet {
    IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8)
}

fn key(mapping: &Mapping) -> Key {
    let port = [Value::Protocol(mapping.protocol), Value::Port(mapping.host_port)];
    mapping.address.map(Value::Address).into_iter().chain(port).collect()
}

/// A key as a person says it: `8080/tcp`, `8080/tcp on 192.0.2.1`.
pub(super) fn port_text(key: &[Value]) -> String {
    let protocol = |number: u8| match number {
        TCP => "tcp",
        UDP => "udp",
        SCTP => "sctp",
        _ => "other",
    };
    match key {
        [Value::Protocol(number), Value::Port(port)] => format!("{port}/{}", protocol(*number)),
        [Value::Address(address), Value::Protocol(number), Value::Port(port)] => {
            format!("{port}/{} on {address}", protocol(*number))
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::request;

    fn layout(more: &str, pods: &[&str]) -> Result<Layout, Error> {
        let text = format!(r#"{{"cniVersion": "1.1.0", "name": "n", "type": "portmap", {more}}}"#);
        let request = request(&text);
        let mark = Mark { mask: 0x2000, value: 0x2000, ours: true };
        let pods: Vec<(IpNet, Mark)> = pods.iter().map(|pod| (pod.parse().unwrap(), mark)).collect();
        Layout::of(&Config::of(&request)?, &Owner::of(&request), &pods)
    }

    const PORT: &str = r#""runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}"#;

    fn names(layout: &Layout) -> Vec<&str> {
        layout.entries.iter().map(|set| set.name.as_str()).collect()
    }

    #[test]
    fn a_port_of_two_families_is_an_element_in_two_sets_and_two_maps() {
        let layout = layout(PORT, &["10.1.2.3/24", "2001:db8::3/64"]).unwrap();
        let [four, six] = ["hostport_sources4/0x2000/10.1.2.0/24", "hostport_sources6/0x2000/2001-db8--/64"];
        assert_eq!(names(&layout), [four, "hostports4", six, "hostports6"]);
        let text = layout.entries[3].to_string();
        assert_eq!(text, "hostports6 type inet_proto . inet_service : ipv6_addr . inet_service");
        assert_eq!(layout.host_ports().len(), 2);
        // Frame, masquerading once, and four sets with their rules.
        assert_eq!(layout.units.len(), 6);
        let rules: Vec<String> =
            layout.rules().iter().map(|(chain, rule)| format!("{chain}: {rule}")).collect();
        for expected in [
            "hostports_any: dnat ip6 to meta l4proto . th dport map @hostports6".to_owned(),
            format!(
                "hostports_sources: ip saddr 127.0.0.0/8 meta l4proto . th dport @{four} \
                 meta mark set meta mark & 0xffffdfff | 0x2000"
            ),
        ] {
            assert!(rules.contains(&expected), "{expected} is not in {rules:#?}");
        }
    }

    #[test]
    fn conditions_have_maps_of_their_own() {
        let plain = layout(PORT, &["10.1.2.3/24"]).unwrap();
        let with = |source: &str| {
            layout(&format!(r#"{PORT}, "conditionsV4": ["-s", "{source}"]"#), &["10.1.2.3/24"]).unwrap()
        };
        let [one, other] = [with("192.0.2.0/24"), with("192.0.2.0/25")];
        assert!(names(&one)[1].starts_with("hostports4/"), "{:?}", names(&one));
        assert_ne!(names(&one), names(&other));
        assert_ne!(names(&one), names(&plain));
        let (_, rule) = *one.rules().last().unwrap();
        assert!(rule.to_string().starts_with("ip saddr 192.0.2.0/24 dnat ip to"), "{rule}");
    }

    #[test]
    fn without_translation_of_sources_there_is_nothing_but_the_map() {
        let layout = layout(&format!(r#"{PORT}, "snat": false"#), &["10.1.2.3/24"]).unwrap();
        assert_eq!(names(&layout), ["hostports4"]);
        assert!(!layout.rules().iter().any(|(_, rule)| rule.to_string().contains("masquerade")));
    }

    #[test]
    fn names_fit_the_kernel() {
        let long =
            r#"{"hostPort": 1, "containerPort": 1, "hostIP": "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"}"#;
        let more = format!(
            r#""runtimeConfig": {{"portMappings": [{long}]}}, "conditionsV6": ["-s", "2001:db8::/32"]"#
        );
        let layout = layout(&more, &["2001:db8:eeee:eeee:eeee:eeee:eeee:eeee/127"]).unwrap();
        // nft 1.0.6 takes names of up to 127 bytes.
        assert!(names(&layout).iter().all(|name| name.len() < 128), "{:?}", names(&layout));
    }
}
