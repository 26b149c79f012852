//! What may be given out: ranges, the sets they form, and the order in which a set is tried. Pure.
//!
//! Read [`Pool`] first: it is a whole `ipam` section made canonical, one address for each of its sets.
//! A [`Range`] is a stretch of one subnet; several of them make a [`RangeSet`], which is tried as one
//! ring that starts behind the address given out last.
//!
//! What stays true: a range lies inside its subnet and is not empty, a set has one address family, no
//! two ranges share an address, and no gateway of the pool is ever a candidate. IPv4 and IPv6 are both
//! numbers of at most 128 bits here, so there is one path for them.
//!
//! The rules and the words of the errors are those of the reference plugin's `ipam` section.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

/// A range as it is configured, not checked yet: everything but the subnet may be left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSpec {
    /// The network the addresses belong to; its prefix length becomes that of each address.
    pub subnet: IpNet,
    /// The first address; default: the first of the subnet behind the network address.
    pub start: Option<IpAddr>,
    /// The last address, included; default: the subnet's last, for IPv4 the one before the broadcast.
    pub end: Option<IpAddr>,
    /// The gateway named in the result; default: the first address of the subnet.
    pub gateway: Option<IpAddr>,
}

impl RangeSpec {
    /// Everything in `subnet`, with the default gateway.
    #[must_use]
    pub fn whole(subnet: IpNet) -> Self {
        Self { subnet, start: None, end: None, gateway: None }
    }
}

/// A checked range: `start..=end` inside `subnet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    subnet: IpNet,
    start: IpAddr,
    end: IpAddr,
    gateway: IpAddr,
}

/// Why a range, a set or a pool is not acceptable. The caller can only mend the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The subnet is given by one of its hosts.
    #[error("Network has host bits set: {given}, hint: the network of this prefix length is {network}")]
    HostBits {
        /// As configured.
        given: IpNet,
        /// What was probably meant.
        network: IpNet,
    },
    /// Nothing is left beside network, gateway and broadcast address.
    #[error("Network {0} too small to allocate from")]
    TooSmall(IpNet),
    /// The first address is not one of the subnet.
    #[error("RangeStart {0} not in network {1}")]
    Start(IpAddr, IpNet),
    /// The last address is not one of the subnet, or lies before the first.
    #[error("RangeEnd {0} not in network {1}, or before the range's start")]
    End(IpAddr, IpNet),
    /// An IPv4 gateway for an IPv6 subnet, or the other way round.
    #[error("gateway {0} is not of the address family of network {1}")]
    GatewayFamily(IpAddr, IpNet),
    /// A set without ranges.
    #[error("empty range set")]
    EmptySet,
    /// IPv4 and IPv6 in one set.
    #[error("mixed address families in range set {0}")]
    MixedFamilies(String),
    /// Two ranges of one set share addresses.
    #[error("subnets {0} and {1} overlap")]
    Overlap(String, String),
    /// A set that is wrong in itself.
    #[error("invalid range set {index}: {cause}")]
    Set {
        /// Its place in the configuration, from 0.
        index: usize,
        /// What is wrong with it.
        cause: Box<Self>,
    },
    /// Two sets share addresses.
    #[error("range set {0} overlaps with {1}")]
    SetsOverlap(usize, usize),
    /// There is nothing to allocate from.
    #[error("no IP ranges specified, hint: ipam.ranges or ipam.subnet says them")]
    NoRanges,
}

impl Range {
    /// Checks `spec` and fills in what it leaves out.
    ///
    /// # Errors
    /// Host bits in the subnet, a prefix longer than /30 or /126, a start, end or gateway that does not fit.
    pub fn new(spec: &RangeSpec) -> Result<Self, RangeError> {
        let subnet = spec.subnet;
        if subnet.addr() != subnet.network() {
            return Err(RangeError::HostBits { given: subnet, network: subnet.trunc() });
        }
        if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
            return Err(RangeError::TooSmall(subnet));
        }
        let first = address(subnet.addr(), number(subnet.network()) + 1);
        let start = spec.start.unwrap_or(first);
        let end = spec.end.unwrap_or_else(|| last_host(subnet));
        let gateway = spec.gateway.unwrap_or(first);
        if !subnet.contains(&start) {
            return Err(RangeError::Start(start, subnet));
        }
        if !subnet.contains(&end) || number(end) < number(start) {
            return Err(RangeError::End(end, subnet));
        }
        if gateway.is_ipv4() != subnet.addr().is_ipv4() {
            return Err(RangeError::GatewayFamily(gateway, subnet));
        }
        Ok(Self { subnet, start, end, gateway })
    }

    /// Whether `ip` lies between start and end.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.start.is_ipv4() && (number(self.start)..=number(self.end)).contains(&number(ip))
    }

    /// The gateway that pods of this range use.
    #[must_use]
    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// `ip` with the prefix length of the subnet, as it is put on the interface.
    #[must_use]
    pub fn with_prefix(&self, ip: IpAddr) -> IpNet {
        IpNet::new(ip, self.subnet.prefix_len()).unwrap_or_else(|_| IpNet::from(ip))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.start.is_ipv4() == other.start.is_ipv4()
            && number(self.start) <= number(other.end)
            && number(other.start) <= number(self.end)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

/// Ranges of one family that are used up one behind the other. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<Range>,
}

impl RangeSet {
    /// Checks every range, and that they suit each other.
    ///
    /// # Errors
    /// No range at all, one that is wrong in itself, two families, two ranges that share an address.
    pub fn new(specs: &[RangeSpec]) -> Result<Self, RangeError> {
        let ranges = specs.iter().map(Range::new).collect::<Result<Vec<_>, _>>()?;
        let Some(first) = ranges.first() else { return Err(RangeError::EmptySet) };
        let v4 = first.start.is_ipv4();
        let set = Self { ranges };
        if set.ranges.iter().any(|range| range.start.is_ipv4() != v4) {
            return Err(RangeError::MixedFamilies(set.to_string()));
        }
        match overlapping(&set.ranges, Range::overlaps) {
            Some((a, b)) => Err(RangeError::Overlap(set.ranges[a].to_string(), set.ranges[b].to_string())),
            None => Ok(set),
        }
    }

    /// Whether this set gives out IPv4 addresses.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.ranges.first().is_some_and(|range| range.start.is_ipv4())
    }

    /// The range `ip` belongs to.
    #[must_use]
    pub fn range_of(&self, ip: IpAddr) -> Option<&Range> {
        self.ranges.iter().find(|range| range.contains(ip))
    }

    /// Every address once, in the order they are to be tried: from behind `last`, the one given out most
    /// recently, round to `last` itself; from the set's beginning when there is no `last` in this set.
    /// Gateways are among them, for only the [`Pool`] knows them all.
    pub fn ring(&self, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> + '_ {
        let at = last.and_then(|ip| Some((self.ranges.iter().position(|range| range.contains(ip))?, ip)));
        let mut stretches: Vec<Stretch> = Vec::with_capacity(self.ranges.len() + 1);
        match at {
            None => stretches.extend(self.ranges.iter().map(Stretch::of)),
            Some((index, last)) => {
                let (before, rest) = self.ranges.split_at(index);
                let (behind, up_to) = Stretch::of(&rest[0]).split_after(last);
                stretches.extend(behind);
                stretches.extend(rest[1..].iter().chain(before).map(Stretch::of));
                stretches.push(up_to);
            }
        }
        stretches.into_iter().flat_map(Stretch::addresses)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.ranges.iter().any(|a| other.ranges.iter().any(|b| a.overlaps(b)))
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.ranges.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{range}")?;
        }
        Ok(())
    }
}

/// All that one network may give out: an attachment gets one address from each set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    sets: Vec<RangeSet>,
}

impl Pool {
    /// Checks every set, and that no two share an address.
    ///
    /// # Errors
    /// See [`RangeError`]; a set's own fault is reported with its index.
    pub fn new(specs: &[Vec<RangeSpec>]) -> Result<Self, RangeError> {
        if specs.is_empty() {
            return Err(RangeError::NoRanges);
        }
        let check = |(index, set): (usize, &Vec<RangeSpec>)| {
            RangeSet::new(set).map_err(|cause| RangeError::Set { index, cause: Box::new(cause) })
        };
        let sets = specs.iter().enumerate().map(check).collect::<Result<Vec<_>, _>>()?;
        match overlapping(&sets, RangeSet::overlaps) {
            Some((a, b)) => Err(RangeError::SetsOverlap(a, b)),
            None => Ok(Self { sets }),
        }
    }

    /// One set for each subnet, all of it: what a node does with its pod CIDRs.
    ///
    /// # Errors
    /// As [`Pool::new`].
    pub fn of_subnets(subnets: &[IpNet]) -> Result<Self, RangeError> {
        Self::new(&subnets.iter().map(|subnet| vec![RangeSpec::whole(*subnet)]).collect::<Vec<_>>())
    }

    /// The sets, in the order of the result's addresses.
    #[must_use]
    pub fn sets(&self) -> &[RangeSet] {
        &self.sets
    }

    /// Whether `ip` is the gateway of any range here: such an address is never given out.
    #[must_use]
    pub fn is_gateway(&self, ip: IpAddr) -> bool {
        self.sets.iter().flat_map(|set| &set.ranges).any(|range| range.gateway == ip)
    }

    /// Whether `ip` lies in any of the ranges.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.sets.iter().any(|set| set.range_of(ip).is_some())
    }

    /// What may be given out of the set at `index`, in the order of [`RangeSet::ring`].
    pub fn candidates(&self, index: usize, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> + '_ {
        let set = self.sets.get(index);
        set.into_iter().flat_map(move |set| set.ring(last)).filter(|ip| !self.is_gateway(*ip))
    }
}

/// Consecutive addresses of one family, as numbers; both ends included.
#[derive(Clone, Copy)]
struct Stretch {
    family: IpAddr,
    from: u128,
    to: u128,
}

impl Stretch {
    fn of(range: &Range) -> Self {
        Self { family: range.start, from: number(range.start), to: number(range.end) }
    }

    /// What lies behind `last`, if anything does, and the rest up to and with it.
    fn split_after(self, last: IpAddr) -> (Option<Self>, Self) {
        let last = number(last);
        let behind = (last < self.to).then(|| Self { from: last + 1, ..self });
        (behind, Self { to: last, ..self })
    }

    fn addresses(self) -> impl Iterator<Item = IpAddr> {
        (self.from..=self.to).map(move |value| address(self.family, value))
    }
}

/// The first two of `items` that `overlap`, by index.
fn overlapping<T>(items: &[T], overlap: impl Fn(&T, &T) -> bool) -> Option<(usize, usize)> {
    (0..items.len())
        .flat_map(|a| (a + 1..items.len()).map(move |b| (a, b)))
        .find(|&(a, b)| overlap(&items[a], &items[b]))
}

/// The last address for a pod: a subnet's last one is the broadcast address in IPv4 only.
fn last_host(subnet: IpNet) -> IpAddr {
    let last = number(subnet.broadcast());
    address(subnet.addr(), if subnet.addr().is_ipv4() { last - 1 } else { last })
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// The address with this number in the family of `family`; the number came from [`number`] of that family.
fn address(family: IpAddr, number: u128) -> IpAddr {
    match family {
        IpAddr::V4(_) => IpAddr::V4((number as u32).into()),
        IpAddr::V6(_) => IpAddr::V6(number.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn spec(subnet: &str, start: &str, end: &str) -> RangeSpec {
        RangeSpec { start: start.parse().ok(), end: end.parse().ok(), ..RangeSpec::whole(net(subnet)) }
    }

    fn order(pool: &Pool, index: usize, last: &str) -> Vec<String> {
        pool.candidates(index, last.parse().ok()).map(|ip| ip.to_string()).collect()
    }

    #[test]
    fn a_subnet_of_four_addresses_gives_out_one_in_ipv4_and_two_in_ipv6() {
        assert_eq!(order(&Pool::of_subnets(&[net("10.0.0.0/30")]).unwrap(), 0, ""), ["10.0.0.2"]);
        let v6 = Pool::of_subnets(&[net("2001:db8::/126")]).unwrap();
        assert_eq!(order(&v6, 0, ""), ["2001:db8::2", "2001:db8::3"]);
    }

    #[test]
    fn the_ring_starts_behind_the_last_address_and_ends_with_it() {
        let set = vec![
            spec("10.0.0.0/29", "10.0.0.2", "10.0.0.3"),
            spec("10.0.1.0/29", "", ""),
            spec("10.0.2.0/30", "", ""),
        ];
        let pool = Pool::new(&[set]).unwrap();
        let ring = |last| order(&pool, 0, last).iter().map(|ip| ip[5..].to_owned()).collect::<Vec<_>>();
        assert_eq!(ring(""), ["0.2", "0.3", "1.2", "1.3", "1.4", "1.5", "1.6", "2.2"]);
        assert_eq!(ring("10.0.1.4"), ["1.5", "1.6", "2.2", "0.2", "0.3", "1.2", "1.3", "1.4"]);
        assert_eq!(ring("10.0.2.2"), ["0.2", "0.3", "1.2", "1.3", "1.4", "1.5", "1.6", "2.2"]);
        assert_eq!(ring("10.9.9.9"), ring(""));
        assert_eq!(ring("2001:db8::1"), ring(""));
    }

    #[test]
    fn no_gateway_of_the_pool_is_a_candidate_whichever_range_it_lies_in() {
        let mut first = spec("10.1.0.0/16", "10.1.0.2", "10.1.0.9");
        first.gateway = Some(ip("10.1.5.3"));
        let pool = Pool::new(&[vec![first], vec![RangeSpec::whole(net("10.1.5.0/29"))]]).unwrap();
        assert_eq!(order(&pool, 1, ""), ["10.1.5.2", "10.1.5.4", "10.1.5.5", "10.1.5.6"]);
        assert!(pool.is_gateway(ip("10.1.5.3")) && pool.is_gateway(ip("10.1.5.1")));
    }

    #[test]
    fn the_widest_ipv6_range_neither_overflows_nor_takes_for_ever() {
        let pool = Pool::of_subnets(&[net("::/0")]).unwrap();
        let mut ring = pool.candidates(0, Some(ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe")));
        assert_eq!(ring.next(), Some(ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")));
        assert_eq!(ring.next(), Some(ip("::2")), "after the last one the range starts again");
    }

    #[test]
    fn ranges_that_cannot_work_are_refused_with_the_words_of_the_reference() {
        let refuse = |spec: RangeSpec| RangeSet::new(&[spec]).unwrap_err().to_string();
        assert!(refuse(spec("10.1.2.5/24", "", "")).starts_with("Network has host bits set"));
        for small in ["10.1.2.0/31", "10.1.2.4/32", "2001:db8::/127", "2001:db8::/128"] {
            assert_eq!(refuse(spec(small, "", "")), format!("Network {small} too small to allocate from"));
        }
        let start = refuse(spec("10.1.2.0/24", "10.1.3.1", ""));
        assert_eq!(start, "RangeStart 10.1.3.1 not in network 10.1.2.0/24");
        let end = refuse(spec("10.1.2.0/24", "", "10.1.3.1"));
        assert!(end.starts_with("RangeEnd 10.1.3.1 not in network 10.1.2.0/24"));
        let before = refuse(spec("10.1.2.0/24", "10.1.2.9", "10.1.2.8"));
        assert!(before.starts_with("RangeEnd 10.1.2.8 not in network 10.1.2.0/24"));
        let gateway = RangeSpec { gateway: Some(ip("::1")), ..RangeSpec::whole(net("10.0.0.0/24")) };
        assert!(matches!(Range::new(&gateway), Err(RangeError::GatewayFamily(..))));
    }

    #[test]
    fn sets_are_refused_when_empty_mixed_or_overlapping() {
        let whole = |text| RangeSpec::whole(net(text));
        assert_eq!(Pool::new(&[]), Err(RangeError::NoRanges));
        let empty = Pool::new(&[vec![whole("10.0.0.0/24")], vec![]]).unwrap_err();
        assert_eq!(empty.to_string(), "invalid range set 1: empty range set");
        let mixed = RangeSet::new(&[whole("10.0.0.0/24"), whole("2001:db8::/64")]).unwrap_err();
        assert!(mixed.to_string().starts_with("mixed address families"));
        let overlap = RangeSet::new(&[whole("10.1.2.0/24"), whole("10.1.0.0/16")]).unwrap_err();
        assert_eq!(overlap.to_string(), "subnets 10.1.2.1-10.1.2.254 and 10.1.0.1-10.1.255.254 overlap");
        let sets = Pool::new(&[vec![whole("10.1.2.0/24")], vec![whole("10.1.0.0/16")]]).unwrap_err();
        assert_eq!(sets.to_string(), "range set 0 overlaps with 1");
        let apart = [
            vec![spec("10.1.2.0/24", "10.1.2.10", "10.1.2.20")],
            vec![spec("10.1.2.0/24", "10.1.2.21", "10.1.2.30")],
        ];
        assert!(Pool::new(&apart).is_ok(), "one subnet may be cut between sets");
    }
}
