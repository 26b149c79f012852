//! The daemon's command line: the reference's flags, in the reference's notation.
//!
//! Read [`Flags::parse`]. `-name value`, `-name=value`, and both with two dashes; durations as Go writes them.

use std::ffi::OsString;
use std::time::Duration;

use crate::ipam::dhcp::config::{SOCKET, STATE};

/// What the daemon is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flags {
    /// Where to write the process id; empty for nowhere.
    pub(crate) pid_file: String,
    /// Stands before the paths of sockets, namespaces and leases: where the host's files are.
    pub(crate) host_prefix: String,
    /// The socket.
    pub(crate) socket: String,
    /// The directory of the leases.
    pub(crate) state: String,
    /// Servers shall answer to everybody.
    pub(crate) broadcast: bool,
    /// How long one server is asked.
    pub(crate) timeout: Duration,
    /// The longest pause between two attempts.
    pub(crate) resend_max: Duration,
    /// How long an ADD tries.
    pub(crate) resend_timeout: Duration,
}

/// What `-help` says.
pub(crate) const USAGE: &str = "\
usage: dhcp daemon [flags]
  -socketpath PATH        where plugins find the daemon (/run/cni/dhcp.sock)
  -statepath PATH         directory of the leases (/var/lib/cni/dhcp)
  -pidfile PATH           where to write the process id; absolute
  -hostprefix PATH        stands before the paths of socket, leases and network namespaces
  -broadcast              ask servers to broadcast their answers
  -timeout DURATION       how long a server that has offered is asked (10s)
  -resendmax DURATION     longest pause between two attempts (62s)
  -resendtimeout DURATION how long an ADD tries (208s)
example: dhcp daemon -socketpath /run/cni/dhcp.sock -resendtimeout 1m30s
";

impl Default for Flags {
    fn default() -> Self {
        Self {
            pid_file: String::new(),
            host_prefix: String::new(),
            socket: SOCKET.to_owned(),
            state: STATE.to_owned(),
            broadcast: false,
            timeout: Duration::from_secs(10),
            resend_max: Duration::from_secs(62),
            resend_timeout: Duration::from_secs(208),
        }
    }
}

impl Flags {
    /// What the arguments after `daemon` say; `None` when help was asked for.
    ///
    /// # Errors
    /// In words, what is wrong with which argument.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Option<Self>, String> {
        let mut flags = Self::default();
        let mut arguments = arguments.into_iter().map(|argument| argument.to_string_lossy().into_owned());
        while let Some(argument) = arguments.next() {
            let flag = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'));
            let flag = flag.ok_or_else(|| format!("{argument:?} is not a flag"))?;
            let (name, given) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            match name {
                "h" | "help" => return Ok(None),
                "broadcast" => flags.broadcast = boolean(given.as_deref())?,
                _ => {
                    let value = given.or_else(|| arguments.next());
                    flags.set(name, value.ok_or_else(|| format!("-{name} needs a value"))?)?;
                }
            }
        }
        flags.checked().map(Some)
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), String> {
        let duration = |value: &str| {
            go_duration(value)
                .ok_or_else(|| format!("-{name} {value:?} is not a duration such as 10s or 1m30s"))
        };
        match name {
            "pidfile" => self.pid_file = value,
            "hostprefix" => self.host_prefix = value,
            "socketpath" => self.socket = if value.is_empty() { SOCKET.to_owned() } else { value },
            "statepath" => self.state = value,
            "timeout" => self.timeout = duration(&value)?,
            "resendmax" => self.resend_max = duration(&value)?,
            "resendtimeout" => self.resend_timeout = duration(&value)?,
            _ => return Err(format!("there is no flag -{name}")),
        }
        Ok(())
    }

    fn checked(self) -> Result<Self, String> {
        if !self.pid_file.is_empty() && !self.pid_file.starts_with('/') {
            return Err(format!("-pidfile {:?}: the path is not absolute", self.pid_file));
        }
        let shortest = [self.timeout, self.resend_max, self.resend_timeout].into_iter().min();
        match shortest {
            Some(shortest) if shortest.is_zero() => {
                Err("a duration of 0 leaves no time for an answer".to_owned())
            }
            _ => Ok(self),
        }
    }
}

/// A boolean as Go's flags take it.
fn boolean(value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(format!("-broadcast={other}: neither true nor false")),
    }
}

/// A duration as Go writes it: numbers with units, the largest first (`1h2m3.5s`), or 0.
fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let unit = rest[digits..].find(|letter: char| letter.is_ascii_digit() || letter == '.');
        let unit = unit.map_or(rest.len(), |length| digits + length);
        let seconds = match &rest[digits..unit] {
            "ns" => 1e-9,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let number: f64 = rest[..digits].parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Option<Flags>, String> {
        Flags::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn flags_come_with_one_dash_or_two_and_with_or_without_an_equals_sign() {
        let words =
            ["-pidfile", "/run/p", "--socketpath=/s", "--hostprefix", "/host", "-broadcast", "-timeout=1m2s"];
        let flags = parse(&words).unwrap().unwrap();
        assert_eq!((flags.pid_file.as_str(), flags.socket.as_str()), ("/run/p", "/s"));
        assert_eq!((flags.host_prefix.as_str(), flags.broadcast), ("/host", true));
        assert_eq!((flags.timeout, flags.resend_max), (Duration::from_secs(62), Duration::from_secs(62)));
        assert_eq!(parse(&[]), Ok(Some(Flags::default())));
        assert!(!parse(&["-broadcast=false"]).unwrap().unwrap().broadcast);
        assert_eq!(parse(&["--help"]), Ok(None));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (words, named) in [
            (&["daemon"][..], "daemon"),
            (&["-pidfile", "p"], "absolute"),
            (&["-timeout", "10"], "-timeout"),
            (&["-timeout", "0"], "no time"),
            (&["-resendmax"], "needs a value"),
            (&["-what", "x"], "-what"),
            (&["-broadcast=maybe"], "maybe"),
        ] {
            let error = parse(words).unwrap_err();
            assert!(error.contains(named), "{words:?}: {error}");
        }
    }

    #[test]
    fn durations_are_those_of_go() {
        for (text, milliseconds) in [
            ("10s", 10_000),
            ("1m2s", 62_000),
            ("1.5h", 5_400_000),
            ("300ms", 300),
            ("1h0.5s", 3_600_500),
            ("0", 0),
        ] {
            assert_eq!(go_duration(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for bad in ["", "10", "s", "1x", "-1s", "1 s", "1s2", "1e3s", "..s", "99999999999999999999h"] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
    }
}
