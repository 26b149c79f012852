//! Which of the host's links and addresses carries the tunnels.
//!
//! Read [`choose`], which answers for one family. First hit wins: the address the operator configured, the
//! interface the operator configured, the node's own address from its Node object, the address chosen before
//! (while it is still there), the link of the default route, the only candidate there is. Nothing else about the
//! host matters, so a second link or a virtual address that appears later is never chosen; and the agent asks
//! again at every change, so an address that does change is noticed.
//!
//! Within a link: global before the rest, never a deprecated, temporary or tentative address, permanent before
//! leased, an address with a subnet before a lone /32 (which is how virtual addresses are added), then the
//! kernel's order.

use std::net::IpAddr;

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

/// What is known beside the host itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish<'a> {
    /// The interface the operator configured.
    pub interface: Option<&'a str>,
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
    /// The chosen interface has no usable address of the family.
    #[error("choose the {family} underlay: link {interface} has no usable {family} address")]
    NoAddress {
        /// The family asked for.
        family: Family,
        /// The interface.
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
        .filter(|entry| entry.global || family == Family::V4)
}

fn take(host: &Host, holder: &HostAddress, reason: &'static str) -> Underlay {
    Underlay {
        link: holder.link.clone(),
        mtu: host.link(&holder.link).map_or(0, |link| link.mtu),
        address: holder.address.addr(),
        reason,
    }
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
