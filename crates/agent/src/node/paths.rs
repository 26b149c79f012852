//! The paths to the peers: since when they are what they are, and what they carry.

use std::collections::BTreeMap;
use std::sync::Arc;

use route::{ByFamily, Design};

use super::NodeKeeper;
use crate::path_mtu::Order;
use crate::report::{self, Reason};

/// Of how many paths that carry less than they should each is told by itself.
const MOST_TOLD: usize = 8;

impl NodeKeeper {
    /// Notes when the paths to each peer became what they are; `moved` are those that did now, where that is known.
    pub(super) fn note_changed_paths(&mut self, design: &Design, moved: Option<&[Arc<str>]>) {
        for node in moved.into_iter().flatten() {
            match design.peers.contains_key(node) {
                true => self.changed.insert(node.clone(), report::now()),
                false => self.changed.remove(node),
            };
        }
        if moved.is_some() {
            return;
        }
        let before = self.design.as_ref().map(|design| &design.peers);
        self.changed.retain(|node, _| design.peers.contains_key(node));
        for (node, paths) in &design.peers {
            if before.and_then(|before| before.get(node)) != Some(paths) {
                self.changed.insert(node.clone(), report::now());
            }
        }
    }

    /// Has the paths to the peers probed, and tells of those that carry less than they should.
    pub(super) fn probe_paths(&mut self, design: &Design, moved: Option<&[Arc<str>]>) {
        if moved.is_none_or(|moved| !moved.is_empty()) {
            self.order_probes(design);
        }
        self.tell_narrow_paths(design);
    }

    fn order_probes(&mut self, design: &Design) {
        let config = &self.options.config.underlay;
        let paths = design.peers.values().flat_map(ByFamily::values).filter(|_| config.probe_mtu);
        let mut targets = BTreeMap::new();
        for path in paths {
            let full = targets.entry(path.way.underlay()).or_insert(path.full);
            *full = path.full.max(*full);
        }
        let from =
            self.underlays.values().map(|underlay| (underlay.link.clone(), underlay.address)).collect();
        self.prober.follow(Order { targets, from, interval: config.probe_interval() });
    }

    /// Tells of the first few paths one by one: what is narrow for hundreds has one cause.
    fn tell_narrow_paths(&mut self, design: &Design) {
        let limits = self.prober.limits();
        if limits.is_empty() {
            return;
        }
        let narrow = design.peers.iter().filter_map(|(node, paths)| {
            paths.values().find_map(|path| {
                let carries = limits.get(&path.way.underlay()).filter(|carries| **carries < path.full)?;
                Some((node, path, *carries))
            })
        });
        let mut others = 0_usize;
        for (number, (node, path, carries)) in narrow.enumerate() {
            if number >= MOST_TOLD {
                others += 1;
                continue;
            }
            let (full, address, mtu) = (path.full, path.way.underlay(), path.mtu);
            self.report.problem(
                Reason::PathCarriesLess,
                format!(
                    "send packets of {full} bytes to node {node}: the path to {address} carries {carries}; pods send at most \
                     {mtu} there\nhint: mend the network in between, or set underlay.mtu to {carries} on both nodes"
                ),
            );
        }
        if others > 0 {
            self.report.problem(
                Reason::PathCarriesLess,
                format!("send packets of full size to {others} more nodes\nhint: `fairlead status` shows what passes"),
            );
        }
    }
}
