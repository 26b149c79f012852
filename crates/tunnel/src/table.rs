//! Which peer a packet goes to, and whether who sent one is a peer.
//!
//! Read [`Table`]. It is built once for a list of peers and then only read. An address is looked up once per length of
//! prefix that occurs, longest first, each time in a hash table: clusters have one or two lengths, whatever the number
//! of nodes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::peer::Remote;

/// The peers of one moment.
#[derive(Default)]
pub(crate) struct Table {
    remotes: Vec<Arc<Remote>>,
    lengths: Vec<(u8, HashMap<u32, usize>)>,
    lengths6: Vec<(u8, HashMap<u128, usize>)>,
    senders: HashMap<IpAddr, usize>,
}

impl Table {
    /// The first of several peers that claim the same CIDR has it.
    pub(crate) fn new(remotes: Vec<Arc<Remote>>) -> Self {
        let mut table = Self::default();
        for (index, remote) in remotes.iter().enumerate() {
            table.senders.entry(remote.peer.underlay.to_canonical()).or_insert(index);
            for net in &remote.peer.pod_cidrs {
                match net.trunc() {
                    IpNet::V4(net) => {
                        insert(&mut table.lengths, net.prefix_len(), net.network().into(), index)
                    }
                    IpNet::V6(net) => {
                        insert(&mut table.lengths6, net.prefix_len(), net.network().into(), index)
                    }
                }
            }
        }
        table.lengths.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        table.lengths6.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        table.remotes = remotes;
        table
    }

    /// The peer behind which this address is.
    pub(crate) fn towards(&self, address: IpAddr) -> Option<&Arc<Remote>> {
        let index = match address {
            IpAddr::V4(four) => {
                let address = u32::from(four);
                self.lengths.iter().find_map(|(length, nets)| {
                    let mask = u32::MAX.checked_shl(32 - u32::from(*length)).unwrap_or(0);
                    nets.get(&(address & mask))
                })
            }
            IpAddr::V6(six) => {
                let address = u128::from(six);
                self.lengths6.iter().find_map(|(length, nets)| {
                    let mask = u128::MAX.checked_shl(128 - u32::from(*length)).unwrap_or(0);
                    nets.get(&(address & mask))
                })
            }
        };
        self.remotes.get(*index?)
    }

    /// The peer whose underlay address this is.
    pub(crate) fn from(&self, address: IpAddr) -> Option<&Arc<Remote>> {
        self.remotes.get(*self.senders.get(&address)?)
    }

    /// All of them, in the order given.
    pub(crate) fn remotes(&self) -> &[Arc<Remote>] {
        &self.remotes
    }
}

fn insert<K: std::hash::Hash + Eq>(
    lengths: &mut Vec<(u8, HashMap<K, usize>)>,
    length: u8,
    net: K,
    peer: usize,
) {
    let known = lengths.iter().position(|(known, _)| *known == length);
    let index = known.unwrap_or_else(|| {
        lengths.push((length, HashMap::new()));
        lengths.len() - 1
    });
    if let Some((_, nets)) = lengths.get_mut(index) {
        nets.entry(net).or_insert(peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Peer;
    use proptest::prelude::*;

    fn table(peers: &[(&str, &[IpNet])]) -> Table {
        let remote = |(underlay, nets): &(&str, &[IpNet])| {
            let peer = Peer { pod_cidrs: nets.to_vec(), ..Peer::new(underlay, underlay.parse().unwrap()) };
            Arc::new(Remote::new(peer, 8285, None))
        };
        Table::new(peers.iter().map(remote).collect())
    }

    fn name(found: Option<&Arc<Remote>>) -> Option<&str> {
        found.map(|remote| remote.peer.name.as_str())
    }

    #[test]
    fn the_longest_prefix_of_either_family_wins() {
        let wide: [IpNet; 3] = ["10.0.0.0/8", "::/0", "0.0.0.0/0"].map(|net| net.parse().unwrap());
        let narrow: [IpNet; 3] = ["10.1.0.0/16", "fd00::/64", "10.1.2.3/32"].map(|net| net.parse().unwrap());
        let table = table(&[("192.0.2.1", &wide), ("2001:db8::2", &narrow)]);
        let towards = |address: &str| name(table.towards(address.parse().unwrap()));
        assert_eq!(towards("10.2.0.1"), Some("192.0.2.1"));
        assert_eq!(towards("10.1.0.1"), Some("2001:db8::2"));
        assert_eq!(towards("172.16.0.1"), Some("192.0.2.1"));
        assert_eq!(towards("fd00::9"), Some("2001:db8::2"));
        assert_eq!(towards("fd01::9"), Some("192.0.2.1"));
        assert_eq!(name(table.from("2001:db8::2".parse().unwrap())), Some("2001:db8::2"));
        assert_eq!(name(table.from("192.0.2.9".parse().unwrap())), None);
    }

    proptest! {
        #[test]
        fn it_finds_what_looking_at_each_finds(
            nets in prop::collection::vec((any::<u32>(), 0_u8..=32), 1..40),
            addresses in prop::collection::vec(any::<u32>(), 1..40),
        ) {
            let nets: Vec<IpNet> = nets
                .into_iter()
                .map(|(address, length)| IpNet::new(IpAddr::V4(address.into()), length).unwrap().trunc())
                .collect();
            let names: Vec<String> = (0..nets.len()).map(|index| format!("192.0.2.{index}")).collect();
            let peers: Vec<_> = names.iter().map(String::as_str).zip(nets.chunks(1)).collect();
            let table = table(&peers);
            let own = nets.iter().map(|net| net.addr());
            for address in addresses.into_iter().map(|address| IpAddr::V4(address.into())).chain(own) {
                let mut best: Option<(u8, &str)> = None;
                for (net, name) in nets.iter().zip(&names) {
                    if net.contains(&address) && best.is_none_or(|(length, _)| net.prefix_len() > length) {
                        best = Some((net.prefix_len(), name));
                    }
                }
                prop_assert_eq!(name(table.towards(address)), best.map(|(_, name)| name));
            }
        }
    }
}
