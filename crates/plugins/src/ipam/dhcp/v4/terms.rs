//! What a server's answer comes to: addresses, routes and name service for CNI, and the times of the lease.
//!
//! Read [`Terms::of`]. Classless routes (121) stand above classful ones (33) and routers (3), as RFC 3442
//! has it and the reference does; a router 0.0.0.0 in them means that the destination is on the link. Beyond
//! the reference: name servers, domain and search list go into `dns`, and an MTU smaller than the link's
//! becomes the MTU of the routes. An NTP server has no place in a result of CNI.
//!
//! A server is not to be trusted with more than addresses: names that are no host names are left out, for they
//! end up in a file of the container.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use cni::{Dns, IpConfig, Route};
use ipnet::{IpNet, Ipv4Net};

use super::message::{find, option};
use crate::ipam::dhcp::machine::Given;

/// Leases of servers that do not say how long.
const DEFAULT_LEASE: Duration = Duration::from_secs(3600);
/// A lease without end.
const INFINITE: u32 = u32::MAX;
/// No path is narrower (RFC 791), whatever a server says.
const SMALLEST_MTU: u16 = 576;
/// More domains than any resolver searches.
const MOST_NAMES: usize = 32;
/// `RT_SCOPE_LINK`.
const ON_LINK: u8 = 253;

/// What a lease comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terms {
    /// What the pod gets.
    pub(crate) given: Given,
    /// The times, counted from the request.
    pub(crate) times: Times,
}

/// When to ask again, whom, and when to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    /// T1: ask the server that gave the lease.
    pub(crate) renew: Duration,
    /// T2: ask any server.
    pub(crate) rebind: Duration,
    /// The end.
    pub(crate) expire: Duration,
}

impl Terms {
    /// What the options of an answer say for `address`, on a link with this MTU, with `priority` as the metric of
    /// all routes.
    ///
    /// # Errors
    /// In words, when there is no mask, or one that is none.
    pub(crate) fn of(
        address: Ipv4Addr,
        options: &[(u8, Vec<u8>)],
        link_mtu: u32,
        priority: u32,
    ) -> Result<Self, String> {
        if address.is_loopback() || address.is_multicast() || address.is_broadcast() {
            return Err(format!("the server gave {address}, which no host can have"));
        }
        let net = match find(options, option::SUBNET_MASK).map(<[u8; 4]>::try_from) {
            None => return Err("DHCP option Subnet Mask not found in DHCPACK".to_owned()),
            Some(mask) => mask.ok().and_then(|mask| Ipv4Net::with_netmask(address, mask.into()).ok()),
        };
        let net = net.ok_or("the DHCP option Subnet Mask of the DHCPACK is no mask")?;
        let gateway = addresses(find(options, option::ROUTERS)).next();
        let mtu = find(options, option::MTU)
            .and_then(|value| value.try_into().ok())
            .map(u16::from_be_bytes)
            .filter(|mtu| *mtu >= SMALLEST_MTU && u32::from(*mtu) < link_mtu);
        let routes = routes(options, gateway).map(|route| Route {
            priority,
            mtu: mtu.unwrap_or_default().into(),
            ..route
        });
        let gateway = gateway.map(IpAddr::V4);
        let given = Given {
            ips: vec![IpConfig { gateway, ..IpConfig::new(IpNet::V4(net)) }],
            routes: routes.collect(),
            dns: dns(options),
        };
        Ok(Self { given, times: times(options) })
    }
}

/// Times as the server says, or else as RFC 2131 section 4.4.5 has them; nonsense counts as not said.
fn times(options: &[(u8, Vec<u8>)]) -> Times {
    let said = |code| {
        let seconds = find(options, code).and_then(|value| value.try_into().ok()).map(u32::from_be_bytes);
        seconds.map(
            |seconds| if seconds == INFINITE { Duration::MAX } else { Duration::from_secs(seconds.into()) },
        )
    };
    let expire = said(option::LEASE_TIME).filter(|time| !time.is_zero()).unwrap_or(DEFAULT_LEASE);
    let before = |code, latest: Duration| said(code).filter(|time| !time.is_zero() && *time <= latest);
    let rebind = before(option::REBINDING_TIME, expire).unwrap_or_else(|| part(expire, 7));
    let renew = before(option::RENEWAL_TIME, rebind).unwrap_or_else(|| part(expire, 4).min(rebind));
    Times { renew, rebind, expire }
}

/// So many eighths; of infinity, infinity.
fn part(whole: Duration, eighths: u32) -> Duration {
    if whole == Duration::MAX { whole } else { whole * eighths / 8 }
}

fn routes(options: &[(u8, Vec<u8>)], gateway: Option<Ipv4Addr>) -> Box<dyn Iterator<Item = Route> + '_> {
    if let Some(value) = find(options, option::CLASSLESS_ROUTES).filter(|value| !value.is_empty()) {
        return Box::new(classless(value).into_iter());
    }
    let classful = find(options, option::STATIC_ROUTES).unwrap_or_default().chunks_exact(8);
    let classful = classful.filter_map(|pair| {
        let (destination, router) = (address(&pair[..4])?, address(&pair[4..])?);
        let net = Ipv4Net::new(destination, classful_length(destination)?).ok()?;
        (!destination.is_unspecified()).then(|| via(net.trunc(), router))
    });
    Box::new(classful.chain(gateway.map(|router| via(Ipv4Net::default(), router))))
}

/// Option 121: length of the prefix, as many octets of it as count, the router. What follows an error is lost.
fn classless(mut value: &[u8]) -> Vec<Route> {
    let mut routes = Vec::new();
    while let Some((&length, rest)) = value.split_first() {
        let octets = usize::from(length).div_ceil(8);
        let Some((prefix, rest)) = rest.split_at_checked(octets).filter(|_| length <= 32) else { break };
        let Some((router, rest)) = rest.split_at_checked(4) else { break };
        let mut destination = [0; 4];
        destination[..octets].copy_from_slice(prefix);
        let (Ok(net), Some(router)) = (Ipv4Net::new(destination.into(), length), address(router)) else {
            break;
        };
        routes.push(match router.is_unspecified() {
            true => Route { scope: Some(ON_LINK), ..Route::new(IpNet::V4(net.trunc()), None) },
            false => via(net.trunc(), router),
        });
        value = rest;
    }
    routes
}

fn via(net: Ipv4Net, router: Ipv4Addr) -> Route {
    Route::new(IpNet::V4(net), Some(IpAddr::V4(router)))
}

/// The length that the address's class had (RFC 791); classes D and E have none.
fn classful_length(address: Ipv4Addr) -> Option<u8> {
    match address.octets()[0] {
        0..128 => Some(8),
        128..192 => Some(16),
        192..224 => Some(24),
        _ => None,
    }
}

fn dns(options: &[(u8, Vec<u8>)]) -> Dns {
    let text = find(options, option::DOMAIN).unwrap_or_default();
    let domain = String::from_utf8_lossy(text).trim_end_matches('\0').to_owned();
    Dns {
        nameservers: addresses(find(options, option::NAME_SERVERS)).map(|ip| ip.to_string()).collect(),
        domain: if is_host_name(&domain) { domain } else { String::new() },
        search: names(find(options, option::SEARCH).unwrap_or_default()),
        options: Vec::new(),
    }
}

/// The names of option 119: labels with their lengths, the end of an earlier name by its place (RFC 1035
/// section 4.1.4). Stops at the first that makes no sense.
pub(crate) fn names(value: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    let mut at = 0;
    // With compression, a few bytes can claim thousands of names.
    while at < value.len() && names.len() < MOST_NAMES {
        let Some((name, next)) = name(value, at) else { break };
        if is_host_name(&name) {
            names.push(name);
        }
        at = next;
    }
    names
}

/// The name at a place, and where the next one begins.
fn name(value: &[u8], start: usize) -> Option<(String, usize)> {
    let (mut at, mut next, mut text) = (start, None, String::new());
    loop {
        let length = *value.get(at)?;
        match length >> 6 {
            0 if length == 0 => return Some((text, next.unwrap_or(at + 1))),
            0 => {
                let label = value.get(at + 1..)?.get(..length.into())?;
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(std::str::from_utf8(label).ok()?);
                at += 1 + usize::from(length);
            }
            3 => {
                let place = usize::from(length & 0x3f) << 8 | usize::from(*value.get(at + 1)?);
                next = next.or(Some(at + 2));
                // Only backwards: so it ends.
                at = Some(place).filter(|place| *place < at && text.len() < 255)?;
            }
            _ => return None,
        }
        if text.len() > 255 {
            return None;
        }
    }
}

fn is_host_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

/// The addresses in an option that holds a list of them, without 0.0.0.0.
fn addresses(value: Option<&[u8]>) -> impl Iterator<Item = Ipv4Addr> + '_ {
    value.unwrap_or_default().chunks_exact(4).filter_map(address).filter(|address| !address.is_unspecified())
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop};
    use proptest::proptest;

    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 9);
    const MASK: (u8, &[u8]) = (1, &[255, 255, 255, 0]);
    const ROUTER: (u8, &[u8]) = (3, &[10, 1, 2, 1, 10, 1, 2, 2]);

    fn terms(options: &[(u8, &[u8])]) -> Result<Terms, String> {
        let options: Vec<(u8, Vec<u8>)> =
            options.iter().map(|(code, value)| (*code, value.to_vec())).collect();
        Terms::of(ADDRESS, &options, 1500, 0)
    }

    fn routes_of(options: &[(u8, &[u8])]) -> Vec<String> {
        let routes = terms(options).unwrap().given.routes;
        let text = |route: &Route| match (route.gw, route.scope) {
            (Some(gateway), None) => format!("{} via {gateway}", route.dst),
            (None, Some(253)) => format!("{} on the link", route.dst),
            _ => format!("{route:?}"),
        };
        routes.iter().map(text).collect()
    }

    #[test]
    fn mask_and_router_make_an_address_a_gateway_and_a_default_route() {
        let given = terms(&[MASK, ROUTER]).unwrap().given;
        assert_eq!(given.ips[0].address, "10.1.2.9/24".parse().unwrap());
        assert_eq!(given.ips[0].gateway, "10.1.2.1".parse().ok());
        assert_eq!(routes_of(&[MASK, ROUTER]), ["0.0.0.0/0 via 10.1.2.1"]);
    }

    #[test]
    fn without_a_mask_there_is_nothing() {
        assert_eq!(terms(&[ROUTER]).unwrap_err(), "DHCP option Subnet Mask not found in DHCPACK");
        assert!(terms(&[(1, &[255, 0, 255, 0])]).is_err());
        assert!(terms(&[(1, &[255])]).is_err());
    }

    #[test]
    fn addresses_that_no_host_can_have_are_refused() {
        for wrong in ["127.0.0.1", "224.0.0.5", "255.255.255.255"] {
            let options = vec![(MASK.0, MASK.1.to_vec())];
            assert!(Terms::of(wrong.parse().unwrap(), &options, 1500, 0).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_small_option_cannot_claim_thousands_of_names() {
        let mut search = vec![1, b'a', 0];
        (0..500).for_each(|_| search.extend([0xc0, 0]));
        assert_eq!(terms(&[MASK, (119, &search)]).unwrap().given.dns.search.len(), MOST_NAMES);
    }

    #[test]
    fn classful_routes_come_before_the_default_route() {
        let classful: &[u8] = &[
            10, 0, 0, 0, 10, 1, 2, 3, 172, 16, 5, 0, 10, 1, 2, 4, 192, 0, 2, 0, 10, 1, 2, 5, 0, 0, 0, 0, 10,
            1, 2, 6,
        ];
        assert_eq!(
            routes_of(&[MASK, ROUTER, (33, classful)]),
            [
                "10.0.0.0/8 via 10.1.2.3",
                "172.16.0.0/16 via 10.1.2.4",
                "192.0.2.0/24 via 10.1.2.5",
                "0.0.0.0/0 via 10.1.2.1"
            ]
        );
    }

    #[test]
    fn classless_routes_replace_all_others_and_may_be_on_the_link() {
        let classless: &[u8] = &[
            0, 10, 1, 2, 7, 25, 192, 0, 2, 128, 10, 1, 2, 8, 16, 172, 16, 0, 0, 0, 0, 32, 198, 51, 100, 1,
            10, 1, 2, 9,
        ];
        assert_eq!(
            routes_of(&[MASK, ROUTER, (33, &[10, 0, 0, 0, 10, 1, 2, 3]), (121, classless)]),
            [
                "0.0.0.0/0 via 10.1.2.7",
                "192.0.2.128/25 via 10.1.2.8",
                "172.16.0.0/16 on the link",
                "198.51.100.1/32 via 10.1.2.9"
            ]
        );
        assert_eq!(routes_of(&[MASK, (121, &[8, 10, 10, 1, 2, 1, 33, 1, 2, 3, 4, 5, 6, 7, 8, 9])]).len(), 1);
    }

    #[test]
    fn name_service_is_taken_over_and_nonsense_in_it_is_not() {
        let search: &[u8] = &[
            3, b'e', b'n', b'g', 5, b'a', b'p', b'p', b'l', b'e', 3, b'c', b'o', b'm', 0, 9, b'm', b'a',
            b'r', b'k', b'e', b't', b'i', b'n', b'g', 0xc0, 4,
        ];
        let dns = terms(&[MASK, (6, &[10, 1, 2, 53, 10, 1, 2, 54]), (15, b"example.org\0"), (119, search)]);
        let dns = dns.unwrap().given.dns;
        assert_eq!(dns.nameservers, ["10.1.2.53", "10.1.2.54"]);
        assert_eq!(dns.domain, "example.org");
        assert_eq!(dns.search, ["eng.apple.com", "marketing.apple.com"]);
        let bad = terms(&[MASK, (15, b"a\nnameserver 6.6.6.6"), (119, &[0xc0, 0])]).unwrap().given.dns;
        assert!(bad.is_empty(), "{bad:?}");
    }

    #[test]
    fn an_mtu_goes_to_the_routes_if_it_is_smaller_than_the_links() {
        let mtu = |value: &[u8]| terms(&[MASK, ROUTER, (26, value)]).unwrap().given.routes[0].mtu;
        assert_eq!(mtu(&[5, 120]), 1400);
        assert_eq!(mtu(&[5, 220]), 0, "the link's own");
        assert_eq!(mtu(&[0, 68]), 0, "a trap");
    }

    #[test]
    fn times_that_are_missing_or_nonsense_follow_from_the_lease() {
        let times = |options: &[(u8, &[u8])]| {
            let times = terms(&[&[MASK], options].concat()).unwrap().times;
            [times.renew, times.rebind, times.expire].map(|time| time.as_secs())
        };
        assert_eq!(times(&[]), [1800, 3150, 3600]);
        assert_eq!(times(&[(51, &[0, 0, 0, 80])]), [40, 70, 80]);
        assert_eq!(times(&[(51, &[0, 0, 0, 80]), (58, &[0, 0, 0, 10]), (59, &[0, 0, 0, 20])]), [10, 20, 80]);
        assert_eq!(times(&[(51, &[0, 0, 0, 80]), (58, &[0, 0, 0, 90]), (59, &[0, 0, 0, 99])]), [40, 70, 80]);
        assert_eq!(times(&[(51, &[255; 4])]), [u64::MAX; 3]);
    }

    proptest! {
        #[test]
        fn no_options_make_it_panic(options in prop::collection::vec(
            (0_u8..124, prop::collection::vec(any::<u8>(), 0..64)), 0..8,
        )) {
            let _ = Terms::of(ADDRESS, &options, 1500, 0);
        }
    }
}
