//! When to look at which lease.
//!
//! Read [`Agenda`]. What stays true: a lease is on it once at most, however often it is planned anew. Whoever can
//! send packets to a pod can have its lease planned as often as he likes, and must not fill the memory with that.

use std::collections::{BTreeMap, BTreeSet};

use crate::ipam::dhcp::machine::Moment;

/// Moments, each with the name of a lease.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    moments: BTreeMap<String, Moment>,
    order: BTreeSet<(Moment, String)>,
}

impl Agenda {
    /// Looks at this lease then, and not when it was to be looked at before; `None` is never.
    pub(super) fn plan(&mut self, name: &str, moment: Option<Moment>) {
        if self.moments.get(name).copied() == moment {
            return;
        }
        if let Some(before) = self.moments.remove(name) {
            self.order.remove(&(before, name.to_owned()));
        }
        if let Some(moment) = moment {
            self.moments.insert(name.to_owned(), moment);
            self.order.insert((moment, name.to_owned()));
        }
    }

    /// The next moment.
    pub(super) fn next(&self) -> Option<Moment> {
        self.order.first().map(|(moment, _)| *moment)
    }

    /// A lease that is due, which is not on the agenda any more then.
    pub(super) fn take_due(&mut self, now: Moment) -> Option<String> {
        self.next().filter(|moment| *moment <= now)?;
        let (_, name) = self.order.pop_first()?;
        self.moments.remove(&name);
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Option<Moment> {
        Some(Moment::from_secs(seconds))
    }

    #[test]
    fn a_lease_is_on_it_once_however_often_it_is_planned() {
        let mut agenda = Agenda::default();
        agenda.plan("b", at(3));
        for round in 0..1000 {
            agenda.plan("a", at(5 + round % 3));
        }
        assert_eq!((agenda.order.len(), agenda.moments.len()), (2, 2));
        assert_eq!((agenda.next(), agenda.take_due(Moment::from_secs(2))), (at(3), None));
        let due: Vec<String> = std::iter::from_fn(|| agenda.take_due(Moment::from_secs(9))).collect();
        assert_eq!(due, ["b", "a"]);
        agenda.plan("a", at(4));
        agenda.plan("a", None);
        assert!(agenda.next().is_none() && agenda.order.is_empty() && agenda.moments.is_empty());
    }
}
