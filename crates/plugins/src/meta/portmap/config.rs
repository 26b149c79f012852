//! What portmap is asked for: its configuration, checked whole before anything is touched.
//!
//! Read [`Config`] first, then [`Mapping`]. Beyond the reference's keys a mapping may have `range`: so many
//! consecutive ports from `hostPort` and `containerPort` on, as podman's network configurations say it.

use std::net::IpAddr;

use cni::{Error, Fields, Request};
use netstate::nft::{IpVersion, Statement};

use super::condition;

/// Transport protocol numbers.
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const SCTP: u8 = 132;

/// Kubernetes uses the bits 14 and 15, Calico 20 to 31.
const DEFAULT_MARK_BIT: u32 = 13;

/// The whole configuration.
#[derive(Debug)]
pub(super) struct Config {
    /// The host ports.
    pub(super) mappings: Vec<Mapping>,
    /// Whose source is translated, if anybody's.
    pub(super) masquerade: Masquerade,
    /// How packets are marked whose source is to be translated.
    pub(super) marking: Marking,
    conditions: [Vec<Statement>; 2],
}

/// Whose source address is translated on the way to the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Masquerade {
    /// Nobody's (`snat: false`).
    Nobody,
    /// Of those whom the pod would otherwise answer past the host: its own subnet, and this host's loopback.
    Near,
    /// Everybody's (`masqAll`).
    All,
}

/// The mark that asks for the translation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Marking {
    /// One bit of our own, which our own rule looks for.
    Bit(u32),
    /// The mark that this chain of iptables sets, which its owner's rules look for.
    Chain(String),
}

/// One host port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapping {
    /// The family that it is for; both if it does not say.
    pub(super) version: Option<IpVersion>,
    /// The host's address that it is on; all of them if it does not say.
    pub(super) address: Option<IpAddr>,
    /// Transport protocol number.
    pub(super) protocol: u8,
    /// The port on the host.
    pub(super) host_port: u16,
    /// The port in the pod.
    pub(super) container_port: u16,
}

impl Config {
    /// Reads and checks it.
    ///
    /// # Errors
    /// Codes 6 and 7.
    pub(super) fn of(request: &Request) -> Result<Self, Error> {
        let fields = request.config.fields();
        let bit: Option<i64> = fields.optional_integer("markMasqBit")?;
        let chain = fields.optional_string("externalSetMarkChain")?;
        let marking = marking(bit, chain)?;
        let [four, six] = [fields.strings("conditionsV4")?, fields.strings("conditionsV6")?];
        check_backend(fields.optional_string("backend")?, chain.is_some(), [&four, &six])?;
        let understood = |key: &str, tokens: &[&str], version| {
            condition::parse(tokens, version)
                .map_err(|reason| Error::invalid_config(format!("{key}: {reason}")))
        };
        let conditions = [
            understood("conditionsV4", &four, IpVersion::V4)?,
            understood("conditionsV6", &six, IpVersion::V6)?,
        ];
        let masquerade = match (fields.optional_bool("snat")?.unwrap_or(true), fields.bool("masqAll")?) {
            (false, _) => Masquerade::Nobody,
            (true, false) => Masquerade::Near,
            (true, true) => Masquerade::All,
        };
        Ok(Self { mappings: mappings(&request.config.runtime_config()?)?, masquerade, marking, conditions })
    }

    /// What packets of this family have to be for any of the host ports.
    pub(super) fn conditions(&self, version: IpVersion) -> &[Statement] {
        let [four, six] = &self.conditions;
        if version == IpVersion::V4 { four } else { six }
    }
}

fn marking(bit: Option<i64>, chain: Option<&str>) -> Result<Marking, Error> {
    match (bit, chain) {
        (Some(_), Some(_)) => {
            Err(Error::invalid_config("Cannot specify externalSetMarkChain and markMasqBit"))
        }
        (None, Some("")) => Err(Error::invalid_config("externalSetMarkChain: it names no chain")),
        (None, Some(chain)) => Ok(Marking::Chain(chain.to_owned())),
        (None, None) => Ok(Marking::Bit(DEFAULT_MARK_BIT)),
        (Some(bit), None) => match u32::try_from(bit) {
            Ok(bit @ 0..=31) => Ok(Marking::Bit(bit)),
            _ => Err(Error::invalid_config("MasqMarkBit must be between 0 and 31")),
        },
    }
}

/// Both of the reference's backends end in our own table, but options of the one that was not asked for are a
/// mistake. Without a backend the options say which it is.
fn check_backend(asked: Option<&str>, chain: bool, conditions: [&[&str]; 2]) -> Result<(), Error> {
    let mut options: [Vec<&str>; 2] = Default::default();
    let [of_iptables, of_nftables] = &mut options;
    if chain {
        of_iptables.push("externalSetMarkChain");
    }
    for (key, tokens) in ["conditionsV4", "conditionsV6"].into_iter().zip(conditions) {
        if tokens.first().is_some_and(|first| !first.is_empty()) {
            let of = if condition::speaks_iptables(tokens) { &mut *of_iptables } else { &mut *of_nftables };
            of.push(key);
        }
    }
    let (asked, wrong, found) = match asked {
        None if of_iptables.is_empty() => return Ok(()),
        None | Some("iptables") => ("iptables", "nftables", of_nftables),
        Some("nftables") => ("nftables", "iptables", of_iptables),
        Some(other) => return Err(Error::invalid_config(format!("unrecognized backend {other:?}"))),
    };
    if found.is_empty() {
        return Ok(());
    }
    Err(Error::invalid_config(format!(
        "{asked} backend was requested but configuration contains {wrong}-specific options [{}]",
        found.join(" ")
    )))
}

fn mappings(runtime: &Fields<'_>) -> Result<Vec<Mapping>, Error> {
    let mut mappings = Vec::new();
    for item in runtime.array("portMappings")? {
        read_mapping(&item.fields()?, &mut mappings)?;
    }
    Ok(mappings)
}

fn read_mapping(fields: &Fields<'_>, mappings: &mut Vec<Mapping>) -> Result<(), Error> {
    let count = fields.integer::<i64>("range")?.max(1);
    let container = first_port(fields, ("containerPort", "container"), count)?;
    let host = first_port(fields, ("hostPort", "host"), count)?;
    let protocol = match fields.string("protocol")?.to_ascii_lowercase().as_str() {
        // What Kubernetes means by it, too.
        "" | "tcp" => TCP,
        "udp" => UDP,
        "sctp" => SCTP,
        other => return Err(fields.bad("protocol", format!("{other:?} is none of tcp, udp, sctp")).into()),
    };
    // An IPv4 address may be written in IPv6's form.
    let address = fields.parse::<IpAddr>("hostIP")?.map(|address| address.to_canonical());
    if address.is_some_and(|address| address.is_ipv6() && address.is_loopback()) {
        let reason =
            "the kernel takes no packet for ::1 from another link, so no answer of a pod can come back";
        let error = Error::from(fields.bad("hostIP", reason));
        return Err(error.with_details("hint: 127.0.0.1 works"));
    }
    let ports =
        (host..=u16::MAX).zip(container..=u16::MAX).take(usize::try_from(count).unwrap_or(usize::MAX));
    mappings.extend(ports.map(|(host_port, container_port)| Mapping {
        version: address.map(IpVersion::of),
        address: address.filter(|address| !address.is_unspecified()),
        protocol,
        host_port,
        container_port,
    }));
    Ok(())
}

/// The first port of a range; the last one has to exist as well.
fn first_port(fields: &Fields<'_>, (key, name): (&str, &str), count: i64) -> Result<u16, Error> {
    let first: i64 = fields.integer(key)?;
    let invalid = |number| Error::invalid_config(format!("Invalid {name} port number: {number}"));
    let port = u16::try_from(first).ok().filter(|port| *port > 0).ok_or_else(|| invalid(first))?;
    match first.saturating_add(count - 1) {
        last if last > i64::from(u16::MAX) => Err(invalid(last)),
        _ => Ok(port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::request;

    fn config(text: &str) -> Result<Config, Error> {
        Config::of(&request(&format!(r#"{{"cniVersion": "1.1.0", "name": "n", "type": "portmap", {text}}}"#)))
    }

    fn mapped(mapping: &str) -> Result<Vec<Mapping>, Error> {
        config(&format!(r#""runtimeConfig": {{"portMappings": [{mapping}]}}"#)).map(|config| config.mappings)
    }

    fn complaint(text: &str) -> String {
        let error = config(text).unwrap_err();
        assert_eq!(error.code, cni::Code::INVALID_CONFIG, "{error:?}");
        error.message
    }

    #[test]
    fn an_empty_configuration_has_the_references_defaults() {
        let config = config(r#""snat": null"#).unwrap();
        assert_eq!(config.masquerade, Masquerade::Near);
        assert_eq!(config.marking, Marking::Bit(13));
        assert!(config.mappings.is_empty() && config.conditions(IpVersion::V6).is_empty());
    }

    #[test]
    fn a_mapping_is_of_one_family_if_its_address_is() {
        let port =
            |rest: &str| mapped(&format!(r#"{{"hostPort": 8080, "containerPort": 80{rest}}}"#)).unwrap()[0];
        let plain = port("");
        assert_eq!((plain.version, plain.address, plain.protocol), (None, None, 6));
        let four = port(r#", "hostIP": "0.0.0.0", "protocol": "udp""#);
        assert_eq!((four.version, four.address, four.protocol), (Some(IpVersion::V4), None, 17));
        let six = port(r#", "hostIP": "2001:db8::1", "protocol": "SCTP""#);
        assert_eq!((six.version, six.protocol), (Some(IpVersion::V6), 132));
        assert_eq!(six.address, "2001:db8::1".parse().ok());
    }

    #[test]
    fn a_range_is_so_many_ports_and_has_to_end_in_time() {
        let range = mapped(r#"{"hostPort": 8000, "containerPort": 80, "range": 3}"#).unwrap();
        let ports: Vec<(u16, u16)> = range.iter().map(|one| (one.host_port, one.container_port)).collect();
        assert_eq!(ports, [(8000, 80), (8001, 81), (8002, 82)]);
        let all = mapped(r#"{"hostPort": 1, "containerPort": 1, "range": 65535}"#).unwrap();
        assert_eq!((all.len(), all.last().unwrap().host_port), (65535, 65535));
        let error = mapped(r#"{"hostPort": 65535, "containerPort": 1, "range": 2}"#).unwrap_err();
        assert_eq!(error.message, "Invalid host port number: 65536");
    }

    // 58
    #[test]
    fn ports_that_are_none_are_refused_in_the_references_words() {
        for number in [0, -1, 65536] {
            let error = mapped(&format!(r#"{{"hostPort": {number}, "containerPort": 80}}"#)).unwrap_err();
            assert_eq!(error.message, format!("Invalid host port number: {number}"));
            let error = mapped(&format!(r#"{{"hostPort": 80, "containerPort": {number}}}"#)).unwrap_err();
            assert_eq!(error.message, format!("Invalid container port number: {number}"));
        }
        for wrong in [r#""protocol": "icmp""#, r#""hostIP": "here""#, r#""hostIP": "::1""#] {
            let error = mapped(&format!(r#"{{"hostPort": 80, "containerPort": 80, {wrong}}}"#)).unwrap_err();
            assert_eq!(error.code, cni::Code::INVALID_CONFIG, "{error:?}");
            assert!(error.message.contains("runtimeConfig.portMappings[0]"), "{error:?}");
        }
    }

    // 58
    #[test]
    fn marks_and_backends_that_contradict_are_refused_in_the_references_words() {
        assert_eq!(complaint(r#""markMasqBit": 32"#), "MasqMarkBit must be between 0 and 31");
        assert_eq!(complaint(r#""markMasqBit": -1"#), "MasqMarkBit must be between 0 and 31");
        assert_eq!(
            complaint(r#""markMasqBit": 5, "externalSetMarkChain": "KUBE-MARK-MASQ""#),
            "Cannot specify externalSetMarkChain and markMasqBit"
        );
        assert_eq!(complaint(r#""backend": "ebpf""#), "unrecognized backend \"ebpf\"");
        assert_eq!(
            complaint(
                r#""backend": "nftables", "externalSetMarkChain": "X", "conditionsV4": ["-s", "10.0.0.0/8"]"#
            ),
            "nftables backend was requested but configuration contains iptables-specific options \
             [externalSetMarkChain conditionsV4]"
        );
        assert_eq!(
            complaint(r#""backend": "iptables", "conditionsV6": ["ip6", "saddr", "::2"]"#),
            "iptables backend was requested but configuration contains nftables-specific options [conditionsV6]"
        );
        assert!(complaint(r#""conditionsV4": ["-m", "time"]"#).starts_with("conditionsV4: \"-m\""));
        for good in ["nftables", "iptables"] {
            config(&format!(r#""backend": "{good}""#)).unwrap();
        }
        config(r#""conditionsV4": ["ip", "saddr", "10.0.0.0/8"], "conditionsV6": [""]"#).unwrap();
    }
}
