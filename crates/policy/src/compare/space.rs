//! Addresses that policies cannot tell apart.
//!
//! Read [`Space`]. The networks that policies name cut the addresses into intervals; intervals that lie in the same
//! networks are one class. So a class is asked about once, whatever its size.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

/// The addresses of both versions, in classes.
#[derive(Debug)]
pub(super) struct Space {
    /// Where an interval begins (IPv6 behind IPv4), and its class.
    begins: BTreeMap<(bool, u128), u32>,
}

fn place(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(address) => (false, address.to_bits().into()),
        IpAddr::V6(address) => (true, address.to_bits()),
    }
}

fn address((v6, bits): (bool, u128)) -> IpAddr {
    if v6 { IpAddr::V6(bits.into()) } else { IpAddr::V4(u32::try_from(bits).unwrap_or(u32::MAX).into()) }
}

/// The last place of a version.
fn end(v6: bool) -> u128 {
    if v6 { u128::MAX } else { u32::MAX.into() }
}

impl Space {
    /// The space that these networks cut.
    pub(super) fn new(networks: &BTreeSet<IpNet>) -> Self {
        let mut points = BTreeSet::from([(false, 0), (true, 0)]);
        for network in networks {
            let (first, last) = (place(network.network()), place(network.broadcast()));
            points.insert(first);
            if last.1 < end(last.0) {
                points.insert((last.0, last.1 + 1));
            }
        }
        let mut classes: HashMap<Vec<usize>, u32> = HashMap::new();
        // The networks that the interval lies in: they nest, so those that were left are at the end.
        let mut open: Vec<(usize, &IpNet)> = Vec::new();
        let mut coming = networks.iter().enumerate().peekable();
        let mut begins = BTreeMap::new();
        for point in points {
            let at = address(point);
            open.retain(|(_, network)| network.contains(&at));
            while let Some((_, network)) = coming.peek() {
                if place(network.network()) > point {
                    break;
                }
                open.extend(coming.next());
            }
            let key: Vec<usize> =
                [usize::from(point.0)].into_iter().chain(open.iter().map(|(index, _)| index + 2)).collect();
            let next = u32::try_from(classes.len()).unwrap_or(u32::MAX);
            begins.insert(point, *classes.entry(key).or_insert(next));
        }
        Self { begins }
    }

    /// The class of an address.
    pub(super) fn class(&self, address: IpAddr) -> u32 {
        let before = self.begins.range(..=place(address)).next_back();
        before.map_or(u32::MAX, |(_, class)| *class)
    }

    /// Every class with its intervals, first and last address each, both included.
    pub(super) fn classes(&self) -> BTreeMap<u32, Vec<(IpAddr, IpAddr)>> {
        let mut found: BTreeMap<u32, Vec<(IpAddr, IpAddr)>> = BTreeMap::new();
        let mut later = self.begins.keys().skip(1);
        for (begin, class) in &self.begins {
            let next = later.next().filter(|next| next.0 == begin.0);
            let last = next.map_or(end(begin.0), |next| next.1 - 1);
            found.entry(*class).or_default().push((address(*begin), address((begin.0, last))));
        }
        found
    }
}

/// An address of these intervals that is not taken.
pub(super) fn free_address(intervals: &[(IpAddr, IpAddr)], taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    intervals.iter().find_map(|(first, last)| {
        let ((v6, first), (_, last)) = (place(*first), place(*last));
        // A whole run of addresses may be pods'; there are not so many pods as this.
        let end = last.min(first.saturating_add(1 << 20));
        (first..=end).map(|bits| address((v6, bits))).find(|address| !taken(*address))
    })
}

/// The networks that make up these intervals.
pub(super) fn networks(intervals: &[(IpAddr, IpAddr)]) -> Vec<IpNet> {
    let parts = intervals.iter().flat_map(|interval| -> Vec<IpNet> {
        match *interval {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect()
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect()
            }
            _ => Vec::new(),
        }
    });
    IpNet::aggregate(&parts.collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Space, free_address, networks};

    #[test]
    fn addresses_in_the_same_networks_are_of_one_class_and_no_others() {
        let named: BTreeSet<ipnet::IpNet> =
            ["10.0.0.0/8", "10.1.0.0/16", "10.3.0.0/16", "fd00::/8"].map(|text| text.parse().unwrap()).into();
        let space = Space::new(&named);
        let class = |text: &str| space.class(text.parse().unwrap());
        assert_eq!(class("10.0.0.1"), class("10.255.0.1"));
        assert_eq!(class("9.255.255.255"), class("11.0.0.0"));
        let all = ["9.0.0.1", "10.0.0.1", "10.1.2.3", "10.3.0.0", "fd00::1", "fe80::1"].map(class);
        assert_eq!(BTreeSet::from(all).len(), all.len(), "{all:?}");
        let classes = space.classes();
        assert_eq!(classes.len(), all.len());
        let told: Vec<String> =
            networks(&classes[&class("10.2.0.0")]).iter().map(ToString::to_string).collect();
        assert_eq!(told.first().map(String::as_str), Some("10.0.0.0/16"));
        assert!(told.contains(&"10.128.0.0/9".to_owned()), "{told:?}");
        let free =
            free_address(&classes[&class("10.1.0.0")], |address| address.to_string().ends_with(".0.0"));
        assert_eq!(free, Some("10.1.0.1".parse().unwrap()));
    }
}
