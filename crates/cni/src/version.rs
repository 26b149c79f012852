//! The versions of the CNI protocol.
//!
//! [`Version`] is an enum and not three numbers: a version either is one of the seven that exist, spelled
//! exactly so, or it is not a version a plugin can speak. `0.3.2`, `1.0` and `v1.0.0` are refused.
//! The variants are declared oldest first, so that `<` compares ages.
//! Source: CNI specification, "Version considerations" and section 2.

use std::fmt;
use std::str::FromStr;

/// A released version of the CNI protocol; the order is the order of release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 0.1.0: results carry `ip4` and `ip6`. Also what a configuration without `cniVersion` speaks.
    V0_1_0,
    /// 0.2.0: adds the VERSION command.
    V0_2_0,
    /// 0.3.0: results carry `interfaces`, `ips` and `routes`; plugins are chained.
    V0_3_0,
    /// 0.3.1: mends the wording of 0.3.0.
    V0_3_1,
    /// 0.4.0: adds CHECK, and the result of ADD is given to DEL.
    V0_4_0,
    /// 1.0.0: only lists of plugins are configurations; `ips[].version` is gone.
    V1_0_0,
    /// 1.1.0: adds GC and STATUS, and more about interfaces and routes.
    V1_1_0,
}

impl Version {
    /// Every version, oldest first.
    pub const ALL: [Self; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The newest version: what VERSION answers with.
    pub const LATEST: Self = Self::V1_1_0;

    /// What a configuration speaks that does not say: 0.1.0, which had no `cniVersion`.
    pub const UNSAID: Self = Self::V0_1_0;

    /// The version as it is written in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version written exactly so, or nothing.
    #[must_use]
    pub fn exactly(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }

    /// A list of versions as errors print it: `0.4.0, 1.0.0`.
    #[must_use]
    pub fn join(versions: &[Self]) -> String {
        let words: Vec<&str> = versions.iter().map(|version| version.as_str()).collect();
        words.join(", ")
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A text that is not a version of the CNI protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a version of the CNI protocol")]
pub struct UnknownVersion(pub String);

impl FromStr for Version {
    type Err = UnknownVersion;

    fn from_str(text: &str) -> Result<Self, UnknownVersion> {
        Self::exactly(text).ok_or_else(|| UnknownVersion(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_age_and_round_trip_through_text() {
        for pair in Version::ALL.windows(2) {
            assert!(pair[0] < pair[1]);
        }
        for version in Version::ALL {
            assert_eq!(version.as_str().parse(), Ok(version));
        }
    }

    #[test]
    fn nearly_a_version_is_not_a_version() {
        for text in ["", "1.0", "v1.0.0", "1.0.0 ", "01.0.0", "0.3.2", "9.9.9", "1.1.0-rc1"] {
            assert_eq!(text.parse::<Version>(), Err(UnknownVersion(text.to_owned())));
        }
    }
}
