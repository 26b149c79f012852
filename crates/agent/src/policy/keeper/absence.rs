//! The store is away, or does not let us read what policies decide by.
//!
//! Read [`Absence::due`]: who starts and cannot read the store tells people after a while, for a right that is missing does
//! not come by itself.

use std::time::{Duration, Instant};

use super::Keeper;
use crate::report::Reason;

/// An agent may start before what it needs; so long that is nobody's affair.
const PATIENCE: Duration = Duration::from_secs(5);

/// How it is with the store.
#[derive(Debug, Default)]
pub(super) struct Absence {
    reason: Option<String>,
    since: Option<Instant>,
    told: Option<String>,
}

impl Absence {
    /// It is away, and why.
    pub(super) fn begin(&mut self, reason: String) {
        self.since.get_or_insert_with(Instant::now);
        self.reason = Some(reason);
    }

    /// It is there.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }

    /// Why it is away, if it is.
    pub(super) fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// When people are to be told, unless they have been.
    pub(super) fn due(&self) -> Option<Instant> {
        self.since.filter(|_| self.told != self.reason).map(|since| since + PATIENCE)
    }

    /// What to tell people by now.
    pub(super) fn take_news(&mut self, now: Instant) -> Option<String> {
        self.due().filter(|due| *due <= now)?;
        self.told.clone_from(&self.reason);
        self.told.as_ref().map(|reason| {
            format!(
                "network policies wait for the store: {reason}\nhint: rules of an agent before this one stay in force, and no \
                 pod is attached until the store has been read"
            )
        })
    }
}

impl Keeper {
    /// When it is due to tell that nothing is known.
    pub(super) fn untold(&self) -> Option<Instant> {
        self.away.due().filter(|_| !self.known.is_complete())
    }

    /// Tells it when it is due.
    pub(super) fn tell_of_absence(&mut self) {
        let news = self.untold().and_then(|_| self.away.take_news(Instant::now()));
        if let Some(text) = news {
            tracing::warn!("{text}");
            self.voice.notify(Reason::PolicyNotEnforced, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_told_after_a_while_and_once_for_each_reason() {
        let mut absence = Absence::default();
        assert_eq!(absence.due(), None);
        absence.begin("it forbids to list pods".to_owned());
        let due = absence.due().unwrap();
        assert_eq!(absence.take_news(due - Duration::from_millis(1)), None);
        let told = absence.take_news(due).unwrap();
        assert!(
            told.starts_with("network policies wait for the store: it forbids to list pods\nhint: "),
            "{told}"
        );
        assert_eq!((absence.take_news(due), absence.due()), (None, None));
        absence.begin("it is starting".to_owned());
        assert!(absence.take_news(due).is_some());
        absence.end();
        assert!(absence.due().is_none() && absence.reason().is_none());
    }
}
