//! The clock: certificates are valid for a time, and leases end.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Error;

use crate::finding::Finding;

/// 2024-01-01, in seconds: there was no Fairlead before, nor a certificate for it.
const EARLIEST: u64 = 1_704_067_200;

/// Reads the clock and judges it.
pub(super) fn examine() -> Vec<Finding> {
    let mut findings = Vec::new();
    match kernel::clock::is_synchronised() {
        Ok(synchronised) => findings.extend(judge_state(synchronised)),
        Err(error) => findings.push(Finding::unseen("clock", &Error::from(error))),
    }
    findings.extend(judge_time(SystemTime::now()));
    findings
}

fn judge_state(synchronised: bool) -> Option<Finding> {
    (!synchronised).then(|| {
        Finding::warning(
            "clock",
            "nobody keeps the clock right: it drifts until certificates of the API server are refused",
            "run a time service, such as chrony or systemd-timesyncd",
        )
    })
}

fn judge_time(now: SystemTime) -> Option<Finding> {
    (now < UNIX_EPOCH + Duration::from_secs(EARLIEST)).then(|| {
        Finding::error(
            "clock",
            "it is before 2024 by this node's clock: certificates are not valid yet",
            "set the clock (date --set), and run a time service",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    #[test]
    fn a_clock_that_nobody_keeps_is_a_warning_and_one_in_the_past_an_error() {
        assert_eq!(judge_state(true), None);
        assert_eq!(judge_state(false).unwrap().severity, Severity::Warning);
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(judge_time(at(EARLIEST)), None);
        assert_eq!(judge_time(at(EARLIEST - 1)).unwrap().severity, Severity::Error);
        assert_eq!(judge_time(UNIX_EPOCH).unwrap().severity, Severity::Error);
    }
}
