//! Whether Services have addresses among those of pods.
//!
//! Read [`NodeKeeper::heed_services`]. Such a network is refused before the node takes part: it claims nothing, and no pod is
//! attached. A node that takes part already goes on, and tells it: to take it down would cost its pods more than the few
//! addresses that they cannot reach.
//!
//! The networks of Services are followed where the store tells them (ServiceCIDRs). Where it does not, all Services are looked at
//! once, when the node is about to take part; to follow them would cost every node as much as all there are.

use cluster::Snapshot;
use route::service_overlaps;

use super::NodeKeeper;
use super::decide::Refusal;
use crate::report::{Reason, told};
use crate::view::View;

impl NodeKeeper {
    /// Refuses pod networks that Services have addresses of.
    pub(super) fn heed_services(&mut self, view: &View) -> Result<(), Refusal> {
        let own = view.snapshot.leases.get(&*self.options.node);
        let takes_part = self.lease.is_some() || own.is_some_and(|lease| !lease.flannel.is_member());
        let cluster = &self.options.config.cluster;
        let overlaps =
            |snapshot: &Snapshot| service_overlaps(snapshot, &cluster.pod_cidrs, &cluster.allow_overlap);
        if !view.snapshot.service_cidrs.is_empty() {
            let found = overlaps(&view.snapshot);
            return match found.first() {
                Some(first) if !takes_part => Err(refusal(first)),
                _ => {
                    found.iter().for_each(|overlap| {
                        self.report.problem(Reason::NetworkOverlap, told(overlap));
                    });
                    Ok(())
                }
            };
        }
        if takes_part || self.services_seen {
            return Ok(());
        }
        match self.leases.services() {
            Ok(snapshot) => match overlaps(&snapshot).first() {
                Some(first) => return Err(refusal(first)),
                None => self.services_seen = true,
            },
            // What may not be looked at is no reason to have no network.
            Err(error @ store::Error::Forbidden { .. }) => {
                tracing::warn!(error = %told(&error), "whether Services have addresses among those of pods is not known");
                self.services_seen = true;
            }
            Err(error) => {
                return Err(Refusal { reason: Reason::LeaseNotPublished, text: told(&error) });
            }
        }
        Ok(())
    }
}

fn refusal(overlap: &route::ServiceOverlap) -> Refusal {
    Refusal { reason: Reason::NetworkOverlap, text: told(overlap) }
}
