//! Which of the host's links and addresses carries the tunnels.
//!
//! Read [`choose`], which answers for one family. First hit wins: the address the operator configured, the
//! interface the operator configured, what matches the pattern the operator configured, the way to the address the operator
//! configured, the node's own address from its Node object, the address chosen before
//! (while it is still there), the link of the default route, the only candidate there is. Nothing else about the
//! host matters, so a second link or a virtual address that appears later is never chosen; and the agent asks
//! again at every change, so an address that does change is noticed.
//!
//! A pattern is tried on addresses first, and on names only where no address matches. Of several that match, one
//! whose link is up goes first, then the one of the Node object, then the one chosen before, then the default route's, then the
//! kernel's order.
//!
//! Within a link: global before the rest, never a deprecated, temporary or tentative address, permanent before
//! leased, an address with a subnet before a lone /32 (which is how virtual addresses are added), then the
//! kernel's order.

use std::net::IpAddr;

use cluster::Backend;
use regex::bytes::Regex;

use crate::family::Family;
use crate::host::{Host, HostAddress};

/// The link and address of the host that tunnels of a family start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// The link's name.
    pub link: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The local end of the tunnels.
    pub address: IpAddr,
    /// Why this one, in words for `status` and the log.
    pub reason: &'static str,
}

/// How the kernel reaches an address now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// The address.
    pub target: IpAddr,
    /// The link that packets to it leave by, where there is a way.
    pub link: Option<String>,
    /// The address they leave with.
    pub source: Option<IpAddr>,
}

/// What is known beside the host itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish<'a> {
    /// The interface the operator configured.
    pub interface: Option<&'a str>,
    /// What the operator configured that an address, else an interface's name, has to match.
    pub pattern: Option<&'a Regex>,
    /// The way to each address that the operator configured as one to be reached, at most one of each family.
    pub reached: &'a [Reached],
    /// The addresses the operator configured, at most one of each family.
    pub addresses: &'a [IpAddr],
    /// The addresses of the node's Node object.
    pub node: &'a [IpAddr],
    /// The choice made before.
    pub previous: Option<&'a Underlay>,
}

/// No underlay could be chosen. Ask again when the host's links or addresses change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnderlayError {
    /// The configured address is on no link.
    #[error(
        "choose the {family} underlay: no link has the configured address {address}\nhint: this host has {known}"
    )]
    NoSuchAddress {
        /// The family asked for.
        family: Family,
        /// The address configured.
        address: IpAddr,
        /// What there is, as text.
        known: String,
    },
    /// The configured interface does not exist.
    #[error("choose the {family} underlay: there is no link {interface}\nhint: this host has {known}")]
    NoSuchInterface {
        /// The family asked for.
        family: Family,
        /// The interface configured.
        interface: String,
        /// What there is, as text.
        known: String,
    },
    /// Nothing matches the configured pattern.
    #[error(
        "choose the {family} underlay: no {family} address and no link's name matches {pattern}\nhint: this host has {known}"
    )]
    NoMatch {
        /// The family asked for.
        family: Family,
        /// The pattern configured.
        pattern: String,
        /// What there is, as text.
        known: String,
    },
    /// There is no way to the address that the operator configured.
    #[error(
        "choose the {family} underlay: no way leads from a link of this host to {target} (underlay.canReach)\nhint: add a \
         route to it, or name another address; this host has {known}"
    )]
    NotReached {
        /// The family asked for.
        family: Family,
        /// The address configured.
        target: IpAddr,
        /// What there is, as text.
        known: String,
    },
    /// The chosen interface has no usable address of the family.
    #[error("choose the {family} underlay: link {interface} has no usable {family} address")]
    NoAddress {
        /// The family asked for.
        family: Family,
        /// The interface.
        interface: String,
    },
    /// What packets travel by is IPv4's alone.
    #[error(
        "choose the underlay: backend {backend} travels over IPv4 alone, and this node has no IPv4 address for it\nhint: give \
         link {interface} one, or choose another backend"
    )]
    WithoutIpv4 {
        /// What packets travel by.
        backend: String,
        /// The link of the underlay.
        interface: String,
    },
    /// Nothing says which link it should be.
    #[error(
        "choose the {family} underlay: there is no {family} default route, and {known}\nhint: set underlay.interface"
    )]
    Undecided {
        /// The family asked for.
        family: Family,
        /// The candidates, as text.
        known: String,
    },
}

impl Underlay {
    /// That a backend's packets can travel over it.
    ///
    /// # Errors
    /// When they travel over the other family alone.
    pub fn carries(&self, backend: &Backend) -> Result<(), UnderlayError> {
        if *backend == Backend::Ipip && self.address.is_ipv6() {
            return Err(UnderlayError::WithoutIpv4 {
                backend: backend.name().to_owned(),
                interface: self.link.clone(),
            });
        }
        Ok(())
    }
}

/// Chooses the underlay of a family.
///
/// # Errors
/// When what the operator configured is not there, or when several links would do and nothing decides.
pub fn choose(host: &Host, wish: &Wish<'_>, family: Family) -> Result<Underlay, UnderlayError> {
    if let Some(&address) = wish.addresses.iter().find(|address| Family::of(**address) == family) {
        let holder = host.holder(address).ok_or_else(|| UnderlayError::NoSuchAddress {
            family,
            address,
            known: candidates_text(host, family),
        })?;
        return Ok(take(host, holder, "configured address"));
    }
    if let Some(interface) = wish.interface {
        return configured_interface(host, interface, wish, family);
    }
    if let Some(pattern) = wish.pattern {
        return matching(host, pattern, wish, family);
    }
    if let Some(reached) = wish.reached.iter().find(|reached| Family::of(reached.target) == family) {
        return towards(host, reached, wish, family);
    }
    found_out(host, wish, family)
}

/// The underlay where the operator said nothing.
fn found_out(host: &Host, wish: &Wish<'_>, family: Family) -> Result<Underlay, UnderlayError> {
    if let Some(holder) = wish
        .node
        .iter()
        .filter(|address| Family::of(**address) == family)
        .find_map(|address| host.holder(*address).filter(|holder| host.is_outside(&holder.link)))
    {
        return Ok(take(host, holder, "address of the Node object"));
    }
    if let Some(kept) = still_there(host, wish, family) {
        return Ok(kept);
    }
    match host.default_route(family) {
        Some(route) => {
            let interface = route.link.as_deref().unwrap_or_default();
            let preferred = route.source.and_then(|source| host.holder(source));
            preferred
                .or_else(|| best_address(host, interface, family))
                .map(|holder| take(host, holder, "link of the default route"))
                .ok_or_else(|| UnderlayError::NoAddress { family, interface: interface.to_owned() })
        }
        None => only_candidate(host, family),
    }
}

/// What matches the pattern: addresses first, then names.
fn matching(
    host: &Host,
    pattern: &Regex,
    wish: &Wish<'_>,
    family: Family,
) -> Result<Underlay, UnderlayError> {
    let usable = |entry: &&HostAddress| {
        Family::of_net(&entry.address) == family && host.is_outside(&entry.link) && reaches_far(entry)
    };
    let addresses = host.addresses.iter().filter(usable).filter(|entry| !entry.avoid);
    let mut found: Vec<&HostAddress> =
        addresses.filter(|entry| pattern.is_match(entry.address.addr().to_string().as_bytes())).collect();
    if found.is_empty() {
        let links = host.links.iter().map(|link| link.name.as_str());
        let links = links.filter(|name| host.is_outside(name) && pattern.is_match(name.as_bytes()));
        found = links.filter_map(|name| best_address(host, name, family)).collect();
    }
    let of_node = |entry: &HostAddress| wish.node.contains(&entry.address.addr());
    let of_before =
        |entry: &HostAddress| wish.previous.is_some_and(|previous| previous.address == entry.address.addr());
    let way_out = host.default_route(family).and_then(|route| route.link.as_deref());
    let is_up = |entry: &HostAddress| host.link(&entry.link).is_some_and(|link| link.up);
    let rank = |entry: &&&HostAddress| {
        (!is_up(entry), !of_node(entry), !of_before(entry), way_out != Some(entry.link.as_str()))
    };
    let best = found.iter().min_by_key(rank);
    best.map(|holder| take(host, holder, "configured pattern")).ok_or_else(|| UnderlayError::NoMatch {
        family,
        pattern: pattern.as_str().to_owned(),
        known: candidates_text(host, family),
    })
}

const WAY: &str = "way to the address in underlay.canReach";
const LAST_WAY: &str = "last way to the address in underlay.canReach, to which there is none now";

/// The link and source by which the kernel reaches an address. The source need not be on that link. While there is no way, such
/// as between two routes, what was chosen for the last one stays.
fn towards(
    host: &Host,
    reached: &Reached,
    wish: &Wish<'_>,
    family: Family,
) -> Result<Underlay, UnderlayError> {
    let link = reached.link.as_deref().and_then(|name| host.link(name));
    let Some(link) = link.filter(|link| host.is_outside(&link.name)) else {
        let last = wish.previous.filter(|previous| [WAY, LAST_WAY].contains(&previous.reason));
        let holder = last.filter(|last| host.link(&last.link).is_some()).and_then(|last| {
            host.holder(last.address)
                .filter(|holder| Family::of_net(&holder.address) == family && !holder.avoid)
        });
        let kept = last.zip(holder).map(|(last, holder)| on_way(host, &last.link, holder, LAST_WAY));
        return kept.ok_or_else(|| UnderlayError::NotReached {
            family,
            target: reached.target,
            known: candidates_text(host, family),
        });
    };
    // A temporary address does not last.
    let source = reached
        .source
        .and_then(|source| host.holder(source))
        .filter(|holder| !holder.avoid && reaches_far(holder));
    let holder = source.or_else(|| best_address(host, &link.name, family));
    let missing = || UnderlayError::NoAddress { family, interface: link.name.clone() };
    Ok(on_way(host, &link.name, holder.ok_or_else(missing)?, WAY))
}

/// The underlay that leaves by a link, with an address that need not be on it.
fn on_way(host: &Host, link: &str, holder: &HostAddress, reason: &'static str) -> Underlay {
    let mtu = host.link(link).map_or(0, |link| link.mtu);
    Underlay { link: link.to_owned(), mtu, address: holder.address.addr(), reason }
}

fn configured_interface(
    host: &Host,
    interface: &str,
    wish: &Wish<'_>,
    family: Family,
) -> Result<Underlay, UnderlayError> {
    if host.link(interface).is_none() {
        let known = host.links.iter().filter(|link| !link.loopback && !link.ours);
        return Err(UnderlayError::NoSuchInterface {
            family,
            interface: interface.to_owned(),
            known: join(known.map(|link| link.name.clone())),
        });
    }
    let node = wish.node.iter().filter(|address| Family::of(**address) == family);
    let previous = wish.previous.iter().map(|previous| &previous.address);
    let on_link = |address: &IpAddr| host.holder(*address).filter(|holder| holder.link == interface);
    node.chain(previous.filter(|address| Family::of(**address) == family))
        .find_map(on_link)
        .or_else(|| best_address(host, interface, family))
        .map(|holder| take(host, holder, "configured interface"))
        .ok_or_else(|| UnderlayError::NoAddress { family, interface: interface.to_owned() })
}

/// The previous choice, with the MTU of today, while its address is where it was and still fit for use.
fn still_there(host: &Host, wish: &Wish<'_>, family: Family) -> Option<Underlay> {
    let previous = wish.previous.filter(|previous| Family::of(previous.address) == family)?;
    let holder =
        host.holder(previous.address).filter(|holder| holder.link == previous.link && !holder.avoid)?;
    // A default route that has moved elsewhere outweighs what was chosen when there was another one.
    let elsewhere = host.default_route(family).is_some_and(|route| route.link.as_ref() != Some(&holder.link));
    (!elsewhere).then(|| take(host, holder, previous.reason))
}

fn only_candidate(host: &Host, family: Family) -> Result<Underlay, UnderlayError> {
    let usable = |name: &str| best_address(host, name, family).filter(|holder| holder.global);
    let mut found = host
        .links
        .iter()
        .filter(|link| link.up && !link.loopback && !link.ours)
        .filter_map(|link| usable(&link.name));
    match (found.next(), found.next()) {
        (Some(holder), None) => Ok(take(host, holder, "only link with an address")),
        _ => Err(UnderlayError::Undecided { family, known: candidates_text(host, family) }),
    }
}

fn best_address<'a>(host: &'a Host, link: &str, family: Family) -> Option<&'a HostAddress> {
    host.addresses
        .iter()
        .filter(|entry| entry.link == link && Family::of_net(&entry.address) == family && !entry.avoid)
        .min_by_key(|entry| {
            let lone = entry.address.prefix_len() == family.bits();
            (!entry.global, lone, !entry.permanent)
        })
        .filter(|entry| reaches_far(entry))
}

/// Whether peers can send to the address at all: a link-local one of IPv6 means something on its link alone.
fn reaches_far(entry: &HostAddress) -> bool {
    entry.global || Family::of_net(&entry.address) == Family::V4
}

fn take(host: &Host, holder: &HostAddress, reason: &'static str) -> Underlay {
    on_way(host, &holder.link, holder, reason)
}

fn candidates_text(host: &Host, family: Family) -> String {
    let entries = host
        .addresses
        .iter()
        .filter(|entry| Family::of_net(&entry.address) == family && host.is_outside(&entry.link));
    join(entries.map(|entry| format!("{} on {}", entry.address.addr(), entry.link)))
}

fn join(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{address, host, link, route};

    fn chosen(host: &Host, wish: &Wish<'_>, family: Family) -> (String, String) {
        let underlay = choose(host, wish, family).unwrap();
        (underlay.link, underlay.address.to_string())
    }

    #[test]
    fn the_link_of_the_default_route_is_taken_when_nothing_else_is_said() {
        assert_eq!(chosen(&host(), &Wish::default(), Family::V4), ("eth0".into(), "198.18.0.5".into()));
        assert_eq!(chosen(&host(), &Wish::default(), Family::V6), ("eth0".into(), "fd00:198:18::5".into()));
    }

    #[test]
    fn the_families_may_have_different_links() {
        let mut machine = host();
        machine.links.push(link("eth1"));
        machine.addresses.push(address("eth1", "fd00:6::5/64"));
        machine.routes.retain(|route| route.destination.to_string() != "::/0");
        machine.routes.push(route("::/0", "eth1", Some("fd00:6::1")));
        assert_eq!(chosen(&machine, &Wish::default(), Family::V4).0, "eth0");
        assert_eq!(chosen(&machine, &Wish::default(), Family::V6).0, "eth1");
    }

    #[test]
    fn a_second_link_or_a_virtual_address_does_not_move_the_choice() {
        let before = choose(&host(), &Wish::default(), Family::V4).unwrap();
        let mut machine = host();
        machine.links.insert(0, link("dmz0"));
        machine.addresses.insert(0, address("dmz0", "203.0.113.7/24"));
        machine.addresses.insert(0, address("eth0", "198.18.0.200/32"));
        assert_eq!(choose(&machine, &Wish::default(), Family::V4).unwrap(), before);
        let wish = Wish { previous: Some(&before), ..Wish::default() };
        machine.routes.clear();
        assert_eq!(choose(&machine, &wish, Family::V4).unwrap(), before);
    }

    #[test]
    fn the_address_of_the_node_object_goes_before_the_default_route() {
        let mut machine = host();
        machine.links.push(link("eth1"));
        machine.addresses.push(address("eth1", "203.0.113.7/24"));
        let node = ["203.0.113.7".parse().unwrap()];
        let wish = Wish { node: &node, ..Wish::default() };
        assert_eq!(chosen(&machine, &wish, Family::V4), ("eth1".into(), "203.0.113.7".into()));
    }

    #[test]
    fn what_is_configured_and_not_there_is_an_error_that_says_what_there_is() {
        let wish = Wish { interface: Some("eth7"), ..Wish::default() };
        let error = choose(&host(), &wish, Family::V4).unwrap_err().to_string();
        assert!(error.contains("no link eth7") && error.contains("this host has eth0"), "{error}");
        let addresses = ["192.0.2.1".parse().unwrap()];
        let wish = Wish { addresses: &addresses, ..Wish::default() };
        let error = choose(&host(), &wish, Family::V4).unwrap_err().to_string();
        assert!(error.contains("192.0.2.1") && error.contains("198.18.0.5 on eth0"), "{error}");
    }

    /// The machine with a second link, `storage1`, and an address of each family on it.
    fn with_storage() -> Host {
        let mut machine = host();
        machine.links.push(link("storage1"));
        machine.addresses.push(address("storage1", "203.0.113.7/24"));
        machine.addresses.push(address("storage1", "fd00:6::7/64"));
        machine
    }

    #[test]
    fn a_pattern_is_tried_on_addresses_before_names() {
        let machine = with_storage();
        let by = |pattern: &str, family| {
            let pattern = Regex::new(pattern).unwrap();
            choose(&machine, &Wish { pattern: Some(&pattern), ..Wish::default() }, family)
        };
        assert_eq!(by("^203\\.0\\.", Family::V4).unwrap().link, "storage1");
        assert_eq!(by("^storage", Family::V4).unwrap().address.to_string(), "203.0.113.7");
        assert_eq!(by("^storage", Family::V6).unwrap().address.to_string(), "fd00:6::7");
        assert_eq!(by("7$", Family::V4).unwrap().link, "storage1");
        assert_eq!(by("^(eth|storage)[0-9]$", Family::V4).unwrap().link, "eth0", "that of the default route");
        let error = by("^wlan", Family::V4).unwrap_err().to_string();
        assert!(error.contains("matches ^wlan") && error.contains("203.0.113.7 on storage1"), "{error}");
    }

    #[test]
    fn of_several_that_match_a_pattern_the_nodes_own_goes_first_and_the_choice_stays() {
        let machine = with_storage();
        let pattern = Regex::new(".").unwrap();
        let node = ["203.0.113.7".parse().unwrap()];
        let mut wish = Wish { pattern: Some(&pattern), node: &node, ..Wish::default() };
        let first = choose(&machine, &wish, Family::V4).unwrap();
        assert_eq!(first.link, "storage1");
        wish.node = &[];
        wish.previous = Some(&first);
        assert_eq!(choose(&machine, &wish, Family::V4).unwrap().link, "storage1");
        wish.previous = None;
        assert_eq!(choose(&machine, &wish, Family::V4).unwrap().link, "eth0");
    }

    #[test]
    fn a_pattern_takes_a_link_that_is_up_before_one_that_is_down() {
        let mut machine = with_storage();
        let pattern = Regex::new(".").unwrap();
        let node = ["203.0.113.7".parse().unwrap()];
        let wish = Wish { pattern: Some(&pattern), node: &node, ..Wish::default() };
        machine.links.last_mut().unwrap().up = false;
        assert_eq!(choose(&machine, &wish, Family::V4).unwrap().link, "eth0");
        machine.links.iter_mut().for_each(|link| link.up = false);
        assert_eq!(choose(&machine, &wish, Family::V4).unwrap().link, "storage1", "better than none");
    }

    #[test]
    fn the_way_to_an_address_decides_for_its_own_family_and_follows_the_kernel() {
        let machine = with_storage();
        let target = "192.0.2.1".parse().unwrap();
        let by = |link: Option<&str>, source: Option<&str>| {
            let source = source.map(|source| source.parse().unwrap());
            let reached = [Reached { target, link: link.map(str::to_owned), source }];
            let wish = Wish { reached: &reached, ..Wish::default() };
            (choose(&machine, &wish, Family::V4), choose(&machine, &wish, Family::V6).unwrap().link)
        };
        let (four, six) = by(Some("storage1"), Some("203.0.113.7"));
        let four = four.unwrap();
        assert_eq!((four.link.as_str(), four.address.to_string()), ("storage1", "203.0.113.7".to_owned()));
        assert_eq!(six, "eth0", "of the other family nothing was said");
        assert_eq!(by(Some("storage1"), None).0.unwrap().address.to_string(), "203.0.113.7");
        let from_elsewhere = by(Some("storage1"), Some("198.18.0.5")).0.unwrap();
        assert_eq!((from_elsewhere.link.as_str(), from_elsewhere.mtu), ("storage1", 1500));
        for (link, source) in [(None, None), (Some("lo"), Some("127.0.0.1"))] {
            let error = by(link, source).0.unwrap_err().to_string();
            assert!(error.contains("to 192.0.2.1") && error.contains("198.18.0.5 on eth0"), "{error}");
        }
    }

    #[test]
    fn while_there_is_no_way_to_the_address_the_last_one_stays() {
        let mut machine = with_storage();
        let target = "192.0.2.1".parse().unwrap();
        let mut reached = [Reached { target, link: Some("storage1".into()), source: None }];
        let first = choose(&machine, &Wish { reached: &reached, ..Wish::default() }, Family::V4).unwrap();
        reached[0].link = None;
        let again = |machine: &Host, previous| {
            let wish = Wish { reached: &reached, previous: Some(previous), ..Wish::default() };
            choose(machine, &wish, Family::V4)
        };
        let second = again(&machine, &first).unwrap();
        assert_eq!((&second.link, second.address), (&first.link, first.address));
        let third = again(&machine, &second).unwrap();
        assert_eq!(third, second, "however often it is asked");
        machine.addresses.retain(|entry| entry.address.addr() != first.address);
        assert!(again(&machine, &second).is_err(), "its address is gone");
    }

    #[test]
    fn a_link_local_ipv6_address_is_chosen_by_no_pattern_and_no_way() {
        let machine = host();
        let pattern = Regex::new("^fe80").unwrap();
        let wish = Wish { pattern: Some(&pattern), ..Wish::default() };
        assert!(choose(&machine, &wish, Family::V6).is_err());
        let target = "fe80::1".parse().unwrap();
        let source = Some("fe80::5".parse().unwrap());
        let reached = [Reached { target, link: Some("eth0".into()), source }];
        let wish = Wish { reached: &reached, ..Wish::default() };
        assert_eq!(chosen(&machine, &wish, Family::V6), ("eth0".into(), "fd00:198:18::5".into()));
    }

    #[test]
    fn what_is_configured_goes_in_the_order_address_interface_pattern_way() {
        let machine = with_storage();
        let pattern = Regex::new("^storage").unwrap();
        let reached =
            [Reached { target: "192.0.2.1".parse().unwrap(), link: Some("eth0".into()), source: None }];
        let addresses = ["198.18.0.5".parse().unwrap()];
        let mut wish = Wish {
            addresses: &addresses,
            interface: Some("storage1"),
            pattern: Some(&pattern),
            reached: &reached,
            ..Wish::default()
        };
        let mut reasons = Vec::new();
        let mut note = |wish: &Wish<'_>| reasons.push(choose(&machine, wish, Family::V4).unwrap().reason);
        note(&wish);
        wish.addresses = &[];
        note(&wish);
        wish.interface = None;
        note(&wish);
        wish.pattern = None;
        note(&wish);
        let way = "way to the address in underlay.canReach";
        assert_eq!(reasons, ["configured address", "configured interface", "configured pattern", way]);
    }

    #[test]
    fn without_a_default_route_several_candidates_are_not_guessed_between() {
        let mut machine = host();
        machine.routes.clear();
        assert_eq!(choose(&machine, &Wish::default(), Family::V4).unwrap().link, "eth0");
        machine.links.push(link("eth1"));
        machine.addresses.push(address("eth1", "203.0.113.7/24"));
        let error = choose(&machine, &Wish::default(), Family::V4).unwrap_err().to_string();
        assert!(error.contains("198.18.0.5 on eth0, 203.0.113.7 on eth1"), "{error}");
    }

    #[test]
    fn a_link_local_ipv6_address_is_no_underlay() {
        let mut machine = host();
        machine.addresses.retain(|entry| entry.global);
        machine.addresses.retain(|entry| entry.address.to_string() != "fd00:198:18::5/64");
        assert!(choose(&machine, &Wish::default(), Family::V6).is_err());
    }
}
