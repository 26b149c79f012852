//! Whether IPVS has to be reckoned with.
//!
//! Two of the table's chains are there for it alone, and the kernel walks through all that chains lead to whenever a pod gets an
//! address or a policy a rule. So they are in the table only where the kernel has IPVS, for which nothing tells when that begins:
//! the keeper looks every few seconds.

use std::time::{Duration, Instant};

use super::Keeper;

const PAUSE: Duration = Duration::from_secs(5);

/// When it was looked for last.
#[derive(Debug, Default)]
pub(super) struct Ipvs(Option<Instant>);

impl Ipvs {
    /// When to look again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.0.map(|last| last + PAUSE)
    }
}

impl Keeper {
    /// Has the table made anew if IPVS came, or went.
    pub(super) fn look_for_ipvs(&mut self) {
        let now = Instant::now();
        if self.ipvs.due().is_some_and(|due| now < due) {
            return;
        }
        self.ipvs.0 = Some(now);
        if self.known.set_ipvs(kernel::ipvs::is_there()) {
            self.doubt();
        }
    }
}
