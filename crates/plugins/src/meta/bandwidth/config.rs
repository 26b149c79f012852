//! What is asked for: rates and bursts of both directions, and which subnets they are about.
//!
//! Read [`Limits`]. Configurations count in bits, the kernel in bytes; [`Rate`] is where one becomes the other.

use cni::{Config, Error, Fields};
use ipnet::IpNet;
use kernel::qdisc::Tbf;

/// What a runtime sends that has a rate but no burst to send: `MaxInt32` bits, or `MaxUint32`. Taken at their
/// word they let the first 256 MB through unshaped, which no limit that anybody sets survives.
const NO_BURST_GIVEN: u64 = i32::MAX as u64;
/// What stands in for it: as much as the rate lets through in this part of a second ...
const PARTS_OF_A_SECOND: u64 = 20;
/// ... but room for this many of the largest packets.
const PACKETS: u64 = 10;
/// How long packets may wait, beyond the burst.
const LATENCY_MILLISECONDS: u64 = 25;

const KEYS: [&str; 4] = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];

/// The limits of one attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Limits {
    /// For what goes to the pod.
    pub(super) ingress: Option<Rate>,
    /// For what comes from the pod.
    pub(super) egress: Option<Rate>,
    /// Which traffic they are about.
    pub(super) scope: Scope,
}

/// One direction's limit, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    rate: u64,
    burst: u32,
    burst_given: bool,
}

/// Which traffic the limits are about, by the address of the pod's counterpart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scope {
    /// All of it.
    Everything,
    /// Only that with these subnets (`shapedSubnets`).
    Only(Vec<IpNet>),
    /// All but that with these subnets (`unshapedSubnets`).
    AllBut(Vec<IpNet>),
}

impl Limits {
    /// Reads them: static ones from the configuration itself, or else the runtime's (`runtimeConfig.bandwidth`).
    /// One static key counts for all four. The subnets are taken from where they are: an administrator may
    /// exempt some from whatever limits pods ask for. `None` without limits.
    ///
    /// # Errors
    /// Code 7 for numbers that make no sense.
    pub(super) fn of(config: &Config) -> Result<Option<Self>, Error> {
        let fixed = config.fields();
        let runtime = config.runtime_config()?.object("bandwidth")?;
        let numbers = if KEYS.iter().any(|key| fixed.has(key)) { &fixed } else { &runtime };
        let [ingress_rate, ingress_burst, egress_rate, egress_burst] = KEYS.map(|key| numbers.integer(key));
        let ingress = Rate::new("ingress", ingress_rate?, ingress_burst?)?;
        let egress = Rate::new("egress", egress_rate?, egress_burst?)?;
        let scope = match Scope::of(&fixed)? {
            Scope::Everything => Scope::of(&runtime)?,
            scope => scope,
        };
        Ok((ingress.is_some() || egress.is_some()).then_some(Self { ingress, egress, scope }))
    }
}

impl Rate {
    fn new(direction: &str, rate: u64, burst: u64) -> Result<Option<Self>, Error> {
        let refuse = |text: &str| {
            let details = format!("{direction}Rate is {rate}, {direction}Burst is {burst} (bits)");
            Err(Error::invalid_config(text).with_details(details))
        };
        match (rate, burst) {
            (0, 0) => return Ok(None),
            (_, 0) => return refuse("if rate is set, burst must also be set"),
            (0, _) => return refuse("if burst is set, rate must also be set"),
            (1..8, _) | (_, 1..8) => return refuse("rate and burst are bits: fewer than 8 are no byte"),
            _ => {}
        }
        match u32::try_from(burst / 8).ok().filter(|bytes| *bytes < u32::MAX) {
            Some(bytes) => {
                Ok(Some(Self { rate: rate / 8, burst: bytes, burst_given: burst < NO_BURST_GIVEN }))
            }
            None => refuse("burst cannot be more than 4GB"),
        }
    }

    /// The kernel's numbers for a link with this largest packet.
    pub(super) fn limit(&self, mtu: u32) -> Tbf {
        let burst = match self.burst_given {
            true => self.burst,
            false => bounded((self.rate / PARTS_OF_A_SECOND).max(PACKETS * u64::from(mtu))).min(self.burst),
        };
        self.with_burst(burst)
    }

    /// The numbers as the reference takes them: with the burst as it came.
    pub(super) fn unbounded_limit(&self) -> Tbf {
        self.with_burst(self.burst)
    }

    fn with_burst(&self, burst: u32) -> Tbf {
        let waiting = u128::from(self.rate) * u128::from(LATENCY_MILLISECONDS) / 1000;
        let waiting = u64::try_from(waiting).unwrap_or(u64::MAX);
        Tbf { rate: self.rate, burst, limit: bounded(waiting.saturating_add(burst.into())) }
    }
}

impl Scope {
    fn of(fields: &Fields<'_>) -> Result<Self, Error> {
        let shaped = subnets(fields, "shapedSubnets")?;
        let unshaped = subnets(fields, "unshapedSubnets")?;
        match (shaped.is_empty(), unshaped.is_empty()) {
            (true, true) => Ok(Self::Everything),
            (false, true) => Ok(Self::Only(shaped)),
            (true, false) => Ok(Self::AllBut(unshaped)),
            (false, false) => {
                Err(Error::invalid_config("unshapedSubnets and shapedSubnets cannot be both specified")
                    .with_details("hint: leave out one of them"))
            }
        }
    }
}

fn subnets(fields: &Fields<'_>, key: &str) -> Result<Vec<IpNet>, Error> {
    let mut subnets = Vec::new();
    for item in fields.array(key)? {
        let text = item.string()?;
        match text.parse::<IpNet>() {
            Ok(subnet) => subnets.push(subnet.trunc()),
            Err(error) => {
                return Err(fields.bad(key, format!("bad subnet {text:?} provided, details {error}")).into());
            }
        }
    }
    Ok(subnets)
}

fn bounded(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use cni::Code;

    use super::*;

    fn limits(more: &str) -> Result<Option<Limits>, Error> {
        let config = format!(r#"{{"cniVersion": "1.1.0", "name": "net", "type": "bandwidth"{more}}}"#);
        Limits::of(&crate::testing::request(&config).config)
    }

    #[test]
    fn bits_become_bytes_and_the_queue_holds_25_milliseconds_and_the_burst() {
        let limits = limits(r#", "ingressRate": 8000000, "ingressBurst": 80000"#).unwrap().unwrap();
        assert_eq!(limits.egress, None);
        let limit = limits.ingress.unwrap().limit(1500);
        assert_eq!(limit, Tbf { rate: 1_000_000, burst: 10_000, limit: 35_000 });
    }

    #[test]
    fn nothing_asked_for_is_nothing_to_do() {
        for nothing in ["", r#", "ingressRate": 0"#, r#", "runtimeConfig": {"bandwidth": null}"#] {
            assert_eq!(limits(nothing).unwrap(), None, "{nothing}");
        }
    }

    #[test]
    fn one_static_key_outweighs_all_of_the_runtimes() {
        let runtime = r#", "runtimeConfig": {"bandwidth": {"ingressRate": 16, "ingressBurst": 16}}"#;
        let rate = |more: &str| {
            limits(&format!("{runtime}{more}")).unwrap().map(|limits| limits.ingress.map(|rate| rate.rate))
        };
        assert_eq!(rate(""), Some(Some(2)));
        assert_eq!(rate(r#", "ingressRate": 8, "ingressBurst": 8"#), Some(Some(1)));
        assert_eq!(rate(r#", "egressRate": 8, "egressBurst": 8"#), Some(None));
        assert_eq!(rate(r#", "egressRate": 0"#), None);
        assert_eq!(rate(r#", "unshapedSubnets": ["10.0.0.0/8"]"#), Some(Some(2)));
    }

    #[test]
    fn a_burst_that_is_no_burst_is_bounded_and_any_other_is_not() {
        let burst =
            |rate: u64, burst: u64| Rate::new("egress", rate, burst).unwrap().unwrap().limit(1500).burst;
        for nonsense in [i32::MAX as u64, u64::from(u32::MAX), 8 * 4_000_000_000] {
            assert_eq!(burst(80_000_000, nonsense), 500_000);
            assert_eq!(burst(8000, nonsense), 15_000, "room for packets");
        }
        assert_eq!(
            burst(8_000_000_000_000, i32::MAX as u64),
            i32::MAX as u32 / 8,
            "never more than asked for"
        );
        assert_eq!(burst(8, 8), 1);
        assert_eq!(burst(8, 2_000_000_000), 250_000_000);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (more, words) in [
            (r#", "ingressRate": 8"#, "if rate is set, burst must also be set"),
            (r#", "egressBurst": 8"#, "if burst is set, rate must also be set"),
            (r#", "egressRate": 8, "egressBurst": 34359738360"#, "burst cannot be more than 4GB"),
            (r#", "ingressRate": 7, "ingressBurst": 8"#, "fewer than 8"),
            (r#", "ingressRate": -8, "ingressBurst": 8"#, "out of range"),
            (r#", "shapedSubnets": ["10.0.0.0/33"]"#, "bad subnet"),
            (r#", "shapedSubnets": ["10.0.0.0/8"], "unshapedSubnets": ["::/0"]"#, "cannot be both specified"),
        ] {
            let error = limits(more).unwrap_err();
            assert!(error.message.contains(words), "{more}: {error}");
            assert_eq!(error.code, Code::INVALID_CONFIG, "{more}");
        }
    }

    #[test]
    fn the_largest_rate_overflows_nothing() {
        let limit = Rate::new("egress", u64::MAX, 34_359_738_351).unwrap().unwrap().limit(u32::MAX);
        assert_eq!(limit.limit, u32::MAX);
    }
}
