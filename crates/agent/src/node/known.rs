//! What is known since the kernel was last looked at, and changes of peers that are made by that alone.
//!
//! Read [`NodeKeeper::known_steps`], then [`NodeKeeper::amend`]: of two wanted states, the one that the kernel was seen to hold
//! and the one of now, the difference is carried out, where that is about peers. What stays true: this is trusted only after a
//! look that found everything in its place and nothing foreign in ours, and no longer than everything that was tried has
//! succeeded; the loop does not ask for it when the kernel has told of a change of ours.

use std::sync::Arc;

use netstate::{Step, diff};
use route::{Amendment, Basis, Design, Host, Inputs};

use super::{NodeKeeper, Outcome};
use crate::door::DoorError;
use crate::event::Entry;
use crate::reconcile::Extent;
use crate::report::told;

/// What is known of the kernel.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The host's own network, as of the last look.
    host: Option<Arc<Host>>,
    /// Whether the kernel holds all of the last design, and nothing foreign is in its way.
    pub(super) stands: bool,
    /// What the last design was made of.
    basis: Option<Basis>,
}

impl Known {
    /// The design of now: the last one with what changed, where that is about a few peers alone; otherwise made anew.
    pub(super) fn design(
        &mut self,
        extent: Extent,
        last: &mut Option<Design>,
        inputs: &Inputs<'_>,
    ) -> (Design, Option<Amendment>) {
        let known = last.as_mut().zip(self.basis.as_mut()).filter(|_| extent == Extent::Peers);
        let amendment = known.and_then(|(last, basis)| route::amend(last, basis, inputs));
        match last.take_if(|_| amendment.is_some()) {
            Some(design) => (design, amendment),
            None => {
                self.basis = Some(Basis::of(inputs));
                (route::design(inputs), None)
            }
        }
    }
}

impl NodeKeeper {
    /// The host's own network, looked at where `extent` goes so far; otherwise as it was, where that can be trusted.
    pub(super) fn host(&mut self, extent: &mut Extent) -> Result<Arc<Host>, DoorError> {
        if let (Extent::Peers, true, Some(host)) = (*extent, self.known.stands, &self.known.host) {
            return Ok(Arc::clone(host));
        }
        *extent = Extent::Everything;
        // One that cannot be looked at is not known.
        self.known.host = None;
        let host = Arc::new(self.door.host()?);
        self.known.host = Some(Arc::clone(&host));
        Ok(host)
    }

    /// Whether an entry of a tunnel's device is as designed.
    pub(crate) fn wants(&self, entry: Entry) -> bool {
        let Some(design) = &self.design else { return false };
        match entry {
            Entry::Neighbour(key, mac) => design.state.neighbours.get(&key).copied() == mac,
            Entry::Forwarding(key, to) => design.state.fdb.get(&key).copied() == to,
        }
    }

    /// The steps to this design from the last one, where that stands and they are about peers alone.
    pub(super) fn known_steps(
        &self,
        extent: Extent,
        design: &Design,
        amendment: Option<&Amendment>,
    ) -> Option<Vec<Step>> {
        if extent == Extent::Everything || !self.known.stands {
            return None;
        }
        let steps = match (amendment, &self.design) {
            (Some(Amendment { before, after, .. }), _) => diff(before, after),
            (None, Some(last)) => diff(&last.state, &design.state),
            (None, None) => return None,
        };
        steps.iter().all(is_about_a_peer).then_some(steps)
    }

    /// Carries out such steps. False where the kernel has to be looked at after all.
    pub(super) fn amend(&mut self, steps: &[Step], outcome: &mut Outcome) -> bool {
        steps.iter().for_each(|step| tracing::debug!("{step}"));
        outcome.changed |= !steps.is_empty();
        self.report.steps(steps.len());
        match self.door.apply(steps) {
            Ok(0) => true,
            Ok(skipped) => {
                tracing::debug!(skipped, "the kernel is not as it was; it is looked at");
                false
            }
            Err(error) => {
                tracing::debug!(error = %told(&error), "the kernel is not as it was; it is looked at");
                false
            }
        }
    }
}

/// Whether a step is one that peers come and go by. Devices, addresses, tables and sysctls say how the node itself changes.
fn is_about_a_peer(step: &Step) -> bool {
    matches!(
        step,
        Step::SetWireGuardPeer { .. }
            | Step::DeleteWireGuardPeer(_)
            | Step::SetNeighbour { .. }
            | Step::DeleteNeighbour(_)
            | Step::SetFdb { .. }
            | Step::DeleteFdb(_)
            | Step::SetRoute { .. }
            | Step::DeleteRoute(_)
    )
}
