//! What a server granted, with its times as points on the caller's clock.
//!
//! Read [`Lease`]. A lease is kept on disk as the REPLY that would grant it ([`Lease::as_reply`]), so there is one
//! reader for both.
//! Sources: RFC 8415 sections 14.2 (when to renew), 18.2.10.1 (what of an answer counts), 21.4 and 21.6.

use std::net::Ipv6Addr;
use std::time::Duration;

use super::message::{Association, Kind, Leased, Message, Status};
use crate::ipam::dhcp::machine::Moment;

/// A lifetime without an end.
const FOREVER: u32 = u32::MAX;
/// More addresses than any server gives one association by rights.
const MOST_ADDRESSES: usize = 8;
/// A server that wants to be asked more often than this is not heeded.
const SOONEST_RENEWAL: Duration = Duration::from_secs(1);

/// Addresses of one association.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lease {
    /// When it was granted.
    pub(super) since: Moment,
    /// The DUID of the server that granted it.
    pub(super) server: Vec<u8>,
    /// The addresses.
    pub(super) addresses: Vec<LeasedAddress>,
    /// T1: when to ask that server for more time; never when absent.
    pub(super) renew_at: Option<Moment>,
    /// T2: when to ask any server.
    pub(super) rebind_at: Option<Moment>,
    /// Name servers.
    pub(super) name_servers: Vec<Ipv6Addr>,
    /// Domains to search in.
    pub(super) search: Vec<String>,
}

/// One address and its ends; absent for one that never comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LeasedAddress {
    /// The address.
    pub(super) address: Ipv6Addr,
    /// From then on, no new connections.
    pub(super) preferred_until: Option<Moment>,
    /// From then on, not at all.
    pub(super) valid_until: Option<Moment>,
}

impl LeasedAddress {
    /// The seconds that are left of both lifetimes, as the kernel takes them.
    pub(super) fn lifetimes(&self, now: Moment) -> (u32, u32) {
        let left = |end: Option<Moment>| {
            let seconds = end.map(|end| end.saturating_sub(now).as_millis().div_ceil(1000));
            seconds.map_or(FOREVER, |seconds| u32::try_from(seconds).unwrap_or(FOREVER))
        };
        (left(self.preferred_until), left(self.valid_until))
    }
}

impl Lease {
    /// When the first of its addresses ends; `None` for never.
    pub(super) fn next_end(&self) -> Option<Moment> {
        self.addresses.iter().filter_map(|leased| leased.valid_until).min()
    }

    /// The addresses alone.
    pub(super) fn plain_addresses(&self) -> Vec<Ipv6Addr> {
        self.addresses.iter().map(|leased| leased.address).collect()
    }

    /// The REPLY that would have granted all of this at [`Self::since`].
    pub(super) fn as_reply(&self, id: u32) -> Message {
        let addresses = self.addresses.iter().map(|leased| {
            let (preferred, valid) = leased.lifetimes(self.since);
            Leased { preferred, valid, ..Leased::wish(leased.address) }
        });
        let until = |moment: Option<Moment>| {
            let seconds = moment.map(|moment| moment.saturating_sub(self.since).as_secs());
            seconds.map_or(FOREVER, |seconds| u32::try_from(seconds).unwrap_or(FOREVER))
        };
        let (t1, t2) = (until(self.renew_at), until(self.rebind_at));
        let mut reply = Message::new(Kind::Reply, 0);
        reply.server = Some(self.server.clone());
        reply.associations = vec![Association { id, t1, t2, addresses: addresses.collect(), status: None }];
        reply.name_servers.clone_from(&self.name_servers);
        reply.search.clone_from(&self.search);
        reply
    }

    /// Forgets what has ended by now.
    pub(super) fn expire(&mut self, now: Moment) {
        self.addresses.retain(|leased| leased.valid_until.is_none_or(|end| end > now));
    }

    /// What there is after this reply on top of what is held; `None` when it says nothing about either. Addresses
    /// that the reply does not name keep their times, those with a lifetime of zero are gone.
    pub(super) fn granted(reply: &Message, id: u32, held: Option<&Self>, now: Moment) -> Option<Self> {
        let association = reply.associations.iter().find(|association| association.id == id)?;
        if association.status_code() != Status::SUCCESS {
            return None;
        }
        let fresh = usable(association);
        let taken = |address: Ipv6Addr| {
            association.addresses.iter().any(|leased| leased.address == address && leased.valid == 0)
        };
        let renewed = |address: Ipv6Addr| fresh.iter().any(|leased| leased.address == address);
        let held_addresses = held.map_or(&[][..], |held| &held.addresses);
        if fresh.is_empty() && !held_addresses.iter().any(|leased| taken(leased.address)) {
            return None;
        }
        let kept = held_addresses.iter().filter(|leased| !renewed(leased.address) && !taken(leased.address));
        let addresses = fresh.iter().map(|leased| timed(leased, now)).chain(kept.cloned());
        let (renew_at, rebind_at) = match held {
            Some(held) if fresh.is_empty() => (held.renew_at, held.rebind_at),
            _ => times(association, &fresh, now),
        };
        Some(Self {
            since: now,
            server: reply.server.clone()?,
            addresses: addresses.take(MOST_ADDRESSES).collect(),
            renew_at,
            rebind_at,
            name_servers: reply.name_servers.clone(),
            search: reply.search.clone(),
        })
    }
}

/// The addresses of an answer that a host may use; whatever else a server sends is passed over.
pub(super) fn usable(association: &Association) -> Vec<Leased> {
    // Section 21.4: T1 beyond T2 makes the whole association invalid.
    if association.t1 > association.t2 && association.t2 != 0 {
        return Vec::new();
    }
    let sound = |leased: &&Leased| {
        let address = leased.address;
        let status = leased.status.as_ref().map_or(Status::SUCCESS, |status| status.code);
        status == Status::SUCCESS
            && leased.valid != 0
            && leased.preferred <= leased.valid
            && !(address.is_unspecified()
                || address.is_loopback()
                || address.is_multicast()
                || address.is_unicast_link_local())
    };
    association.addresses.iter().filter(sound).take(MOST_ADDRESSES).cloned().collect()
}

fn timed(leased: &Leased, now: Moment) -> LeasedAddress {
    let end = |seconds: u32| (seconds != FOREVER).then(|| now + Duration::from_secs(u64::from(seconds)));
    LeasedAddress {
        address: leased.address,
        preferred_until: end(leased.preferred),
        valid_until: end(leased.valid),
    }
}

/// T1 and T2. Where the server leaves them open: half and four fifths of the shortest preferred lifetime.
fn times(association: &Association, fresh: &[Leased], now: Moment) -> (Option<Moment>, Option<Moment>) {
    let shortest =
        fresh.iter().map(|leased| if leased.preferred == 0 { leased.valid } else { leased.preferred }).min();
    let shortest = shortest.unwrap_or(FOREVER);
    let last = fresh.iter().map(|leased| leased.valid).min().unwrap_or(FOREVER);
    let of_shortest = |fifths: u64| match shortest {
        FOREVER => FOREVER,
        seconds => u32::try_from(u64::from(seconds) * fifths / 10).unwrap_or(FOREVER),
    };
    let t2 = if association.t2 == 0 { of_shortest(8) } else { association.t2 }.min(last);
    let t1 = if association.t1 == 0 { of_shortest(5) } else { association.t1 }.min(t2);
    let at = |seconds: u32| {
        let pause = Duration::from_secs(u64::from(seconds)).max(SOONEST_RENEWAL);
        (seconds != FOREVER).then(|| now + pause)
    };
    (at(t1), at(t2))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);

    fn leased(address: &str, preferred: u32, valid: u32) -> Leased {
        Leased { address: address.parse().unwrap(), preferred, valid, status: None }
    }

    fn granted(t1: u32, t2: u32, addresses: Vec<Leased>, held: Option<&Lease>) -> Option<Lease> {
        let association = Association { id: 1, t1, t2, addresses, status: None };
        let mut reply = Message::new(Kind::Reply, 0);
        reply.server = Some(vec![9]);
        reply.associations = vec![association];
        Lease::granted(&reply, 1, held, NOW)
    }

    fn at(seconds: u64) -> Option<Moment> {
        Some(NOW + Duration::from_secs(seconds))
    }

    #[test]
    fn times_are_the_servers_or_shares_of_the_shortest_preferred_lifetime() {
        let two = || vec![leased("2001:db8::1", 100, 400), leased("2001:db8::2", 200, 300)];
        for (t1, t2, renew, rebind) in [(7, 9, 7, 9), (0, 0, 50, 80), (0, 60, 50, 60), (500, 900, 300, 300)] {
            let lease = granted(t1, t2, two(), None).unwrap();
            assert_eq!((lease.renew_at, lease.rebind_at), (at(renew), at(rebind)), "T1 {t1}, T2 {t2}");
            assert_eq!(lease.next_end(), at(300));
        }
    }

    #[test]
    fn what_lasts_forever_is_never_renewed() {
        let lease = granted(0, 0, vec![leased("2001:db8::1", FOREVER, FOREVER)], None).unwrap();
        assert_eq!((lease.renew_at, lease.rebind_at, lease.next_end()), (None, None, None));
        assert_eq!(lease.addresses[0].lifetimes(NOW), (FOREVER, FOREVER));
    }

    #[test]
    fn a_server_cannot_have_itself_asked_without_a_pause() {
        let lease = granted(0, 0, vec![leased("2001:db8::1", 1, 1)], None).unwrap();
        assert_eq!(lease.renew_at, at(1));
    }

    #[test]
    fn addresses_that_no_host_may_use_are_passed_over() {
        let bad = Some(Status { code: 1, text: String::new() });
        let lease = granted(
            0,
            0,
            vec![
                leased("fe80::1", 10, 20),
                leased("::", 10, 20),
                leased("::1", 10, 20),
                leased("ff02::1", 10, 20),
                leased("2001:db8::1", 30, 20),
                leased("2001:db8::2", 0, 0),
                Leased { status: bad, ..leased("2001:db8::3", 10, 20) },
                leased("2001:db8::4", 10, 20),
            ],
            None,
        );
        assert_eq!(lease.unwrap().plain_addresses(), ["2001:db8::4".parse::<Ipv6Addr>().unwrap()]);
        assert_eq!(
            usable(&Association {
                t1: 2,
                t2: 1,
                addresses: vec![leased("2001:db8::4", 10, 20)],
                ..Association::default()
            }),
            []
        );
    }

    #[test]
    fn a_renewal_keeps_what_it_does_not_name_and_drops_what_it_ends() {
        let three = ["2001:db8::1", "2001:db8::2", "2001:db8::3"].map(|address| leased(address, 100, 200));
        let held = granted(0, 0, three.to_vec(), None).unwrap();
        let next =
            granted(0, 0, vec![leased("2001:db8::1", 300, 400), leased("2001:db8::2", 0, 0)], Some(&held));
        let next = next.unwrap();
        let ends: Vec<_> =
            next.addresses.iter().map(|one| (one.address.segments()[7], one.valid_until)).collect();
        assert_eq!(ends, [(1, at(400)), (3, at(200))]);
        let mut later = next;
        later.expire(NOW + Duration::from_secs(300));
        assert_eq!(later.plain_addresses(), ["2001:db8::1".parse::<Ipv6Addr>().unwrap()]);
    }

    #[test]
    fn a_lease_read_back_from_its_reply_is_the_same_lease() {
        for (t1, t2) in [(0, 0), (7, 9), (FOREVER, FOREVER)] {
            let two = vec![leased("2001:db8::1", 100, 400), leased("2001:db8::2", FOREVER, FOREVER)];
            let lease = granted(t1, t2, two, None).unwrap();
            let read = Message::decode(&lease.as_reply(1).encode()).unwrap();
            assert_eq!(Lease::granted(&read, 1, None, NOW), Some(lease));
        }
    }

    #[test]
    fn lifetimes_count_down_and_never_below_nothing() {
        let lease = granted(0, 0, vec![leased("2001:db8::1", 100, 200)], None).unwrap();
        let left = |seconds: u64| lease.addresses[0].lifetimes(NOW + Duration::from_secs(seconds));
        assert_eq!([left(0), left(60), left(150), left(999)], [(100, 200), (40, 140), (0, 50), (0, 0)]);
    }
}
