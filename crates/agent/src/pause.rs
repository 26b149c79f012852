//! How long to wait before what failed is tried again: [`after`].

use std::time::Duration;

/// The first pause after a failure; doubled with each further one.
pub(crate) const FIRST: Duration = Duration::from_millis(250);

/// The longest pause after a failure.
pub(crate) const LONGEST: Duration = Duration::from_secs(30);

/// The pause after a failure that so many others went before in a row.
pub(crate) fn after(failures: u32) -> Duration {
    FIRST.saturating_mul(1 << failures.min(8)).min(LONGEST)
}
