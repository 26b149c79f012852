//! A watch at the bridge between the nodes: what of the pods passes there that nobody has encrypted, plainly or in a tunnel.

use harness::{Namespace, run_ok};

/// Counts the packets with addresses of pods that come to the bridge, and those of tunnels that encrypt nothing.
pub(crate) struct Watch<'rig>(&'rig Namespace);

impl<'rig> Watch<'rig> {
    pub(crate) fn start(underlay: &'rig Namespace) -> Self {
        let rules = "table bridge watch {
            chain everything {
                type filter hook prerouting priority 0;
                ip saddr 10.244.0.0/16 counter
                ip daddr 10.244.0.0/16 counter
                ip6 saddr fd00:10:244::/56 counter
                ip6 daddr fd00:10:244::/56 counter
                udp dport { 8472, 8285 } counter
                ip protocol { 4, 41 } counter
            }
        }";
        run_ok(underlay.command("nft").arg(rules));
        // A packet needs somebody who takes it; who else would have the default route.
        underlay.ip("address add 198.18.0.254/24 dev br0");
        underlay.ip("address add fd00:198:18::fe/64 dev br0 nodad");
        Self(underlay)
    }

    pub(crate) fn seen(&self) -> u64 {
        let ruleset = self.0.nft_ruleset();
        let statements = ruleset.iter().filter_map(|entry| entry["rule"]["expr"].as_array()).flatten();
        let counters: Vec<u64> =
            statements.filter_map(|statement| statement["counter"]["packets"].as_u64()).collect();
        assert_eq!(counters.len(), 6, "{ruleset:?}");
        counters.iter().sum()
    }
}
