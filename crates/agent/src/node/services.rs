//! Whether Services have addresses among those of pods.
//!
//! Read [`NodeKeeper::heed_services`]. Such a network is refused before the node takes part: it claims nothing, and no pod is
//! attached. A node that takes part already goes on, and tells it: to take it down would cost its pods more than the few
//! addresses that they cannot reach.
//!
//! The networks of Services are followed where the store tells them (ServiceCIDRs). Where it does not, all Services are looked at
//! when the node is about to take part; to follow them would cost every node as much as all there are. While one is in the way
//! they are looked at again once in [`FRESH`], and at once with another configuration; when none is, never again.

use std::time::{Duration, Instant};

use cluster::Snapshot;
use route::service_overlaps;

use super::NodeKeeper;
use super::decide::Refusal;
use crate::report::{Reason, told};
use crate::view::View;

/// How long a Service that is in the way is taken to be there.
const FRESH: Duration = Duration::from_secs(60);

/// What came of a look at all Services.
#[derive(Debug)]
pub(super) struct Look {
    at: Instant,
    /// What is in the way, if something is.
    overlap: Option<String>,
}

impl Look {
    fn is_fresh(&self, now: Instant) -> bool {
        self.overlap.is_none() || now.saturating_duration_since(self.at) < FRESH
    }
}

impl NodeKeeper {
    /// Refuses pod networks that Services have addresses of.
    pub(super) fn heed_services(&mut self, view: &View) -> Result<(), Refusal> {
        let own = view.snapshot.leases.get(&*self.options.node);
        // One whose lease is gone may have pods all the same.
        let takes_part = self.holds() || own.is_some_and(|lease| !lease.flannel.is_member());
        if view.snapshot.service_cidrs.is_empty() {
            return if takes_part { Ok(()) } else { self.look_at_services() };
        }
        let found = self.overlaps_in(&view.snapshot);
        match found.first() {
            Some(first) if !takes_part => Err(refusal(first.clone())),
            _ => {
                found.into_iter().for_each(|overlap| self.report.problem(Reason::NetworkOverlap, overlap));
                Ok(())
            }
        }
    }

    /// The same by the Services themselves.
    fn look_at_services(&mut self) -> Result<(), Refusal> {
        let now = Instant::now();
        if self.services_look.as_ref().is_none_or(|look| !look.is_fresh(now)) {
            let overlap = match self.leases.services() {
                Ok(snapshot) => self.overlaps_in(&snapshot).into_iter().next(),
                // What may not be looked at is no reason to have no network.
                Err(error @ store::Error::Forbidden { .. }) => {
                    tracing::warn!(error = %told(&error), "whether Services have addresses among those of pods is not known");
                    None
                }
                Err(error) => {
                    return Err(Refusal { reason: Reason::LeaseNotPublished, text: told(&error) });
                }
            };
            self.services_look = Some(Look { at: now, overlap });
        }
        match self.services_look.as_ref().and_then(|look| look.overlap.clone()) {
            Some(overlap) => Err(refusal(overlap)),
            None => Ok(()),
        }
    }

    /// Where the networks of pods overlap those of Services, or Services' own addresses.
    fn overlaps_in(&self, snapshot: &Snapshot) -> Vec<String> {
        let cluster = &self.options.config.cluster;
        let found = service_overlaps(snapshot, &cluster.pod_cidrs, &cluster.allow_overlap);
        found.iter().map(|overlap| told(overlap)).collect()
    }
}

fn refusal(text: String) -> Refusal {
    Refusal { reason: Reason::NetworkOverlap, text }
}
