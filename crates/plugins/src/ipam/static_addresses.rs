//! `static`: addresses that the configuration or the runtime names.
//!
//! Read [`Settings`] first: it is all that the plugin does, for nothing is kept anywhere. Where addresses come
//! from, later ones taking the place of earlier ones: `ipam.addresses` followed by CNI_ARGS `IP` (with CNI_ARGS
//! `GATEWAY` for those whose subnet contains it); `args.cni.ips`; the capability `ips`.
//!
//! A route that is written twice with different gateways is kept twice; interface plugins make one route with
//! both ways out of it.
//! Sources: the reference plugin's documented keys and observed behaviour; its words for errors are kept.

use std::net::IpAddr;

use cni::{AddResult, Code, Config, Dns, Error, IpConfig, Plugin, Request, Route, Version};
use ipnet::IpNet;

/// The plugin.
#[derive(Debug)]
pub struct Static;

impl Plugin for Static {
    fn name(&self) -> &'static str {
        "static"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let Settings { ips, routes, dns } = Settings::of(request)?;
        Ok(AddResult { ips, routes, dns, ..AddResult::default() })
    }

    /// Nothing was kept, so there is nothing to give back.
    fn del(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let settings = Settings::of(request)?;
        let Some(result) = request.config.prev_result()? else {
            return Err(Error::invalid_config("prevResult: missing, but CHECK compares with it"));
        };
        match settings.ips.iter().find(|wanted| !result.ips.iter().any(|found| agrees(found, wanted))) {
            None => Ok(()),
            Some(lost) => Err(Error::internal(format!(
                "static: Failed to match addr {} on interface {}",
                lost.address, request.ifname
            ))),
        }
    }

    /// Nothing is kept, so nothing can be stale.
    fn gc(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        let read = Settings::of(request).map(drop);
        read.map_err(|error| Error { code: Code::NOT_READY, ..error })
    }
}

/// Whether an address of a result is the one that was asked for. A gateway that a later plugin has taken away
/// is no reason to complain, another gateway is.
fn agrees(found: &IpConfig, wanted: &IpConfig) -> bool {
    let gateway = found.gateway.filter(|gateway| !gateway.is_unspecified());
    found.address == wanted.address
        && (gateway.is_none() || wanted.gateway.is_none() || gateway == wanted.gateway)
}

/// What the result will say.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    ips: Vec<IpConfig>,
    routes: Vec<Route>,
    dns: Dns,
}

impl Settings {
    /// Reads and checks everything.
    ///
    /// # Errors
    /// Code 6 for a key of the wrong type, 7 for a value that cannot be, 4 for CNI_ARGS.
    fn of(request: &Request) -> Result<Self, Error> {
        let config = &request.config;
        if !config.fields().has("ipam") {
            return Err(Error::invalid_config("IPAM config missing 'ipam' key"));
        }
        let ipam = config.ipam()?;
        let routes = ipam.array("routes")?;
        let mut ips = named_by_caller(request)?;
        if let Some(replaced) = listed(config)? {
            ips = replaced;
        }
        only_one_of_each_family(config.version, &ips)?;
        if let Some(twice) = (1..ips.len()).find(|at| ips[..*at].iter().any(|ip| same(ip, &ips[*at]))) {
            return Err(Error::invalid_config(format!("the address {} is listed twice", ips[twice].address)));
        }
        Ok(Self {
            ips,
            routes: routes
                .iter()
                .map(|item| Route::from_fields(&item.fields()?))
                .collect::<Result<_, _>>()?,
            dns: Dns::from_fields(&ipam.object("dns")?)?,
        })
    }
}

fn same(one: &IpConfig, other: &IpConfig) -> bool {
    one.address.addr() == other.address.addr()
}

/// The addresses of the configuration and of CNI_ARGS.
fn named_by_caller(request: &Request) -> Result<Vec<IpConfig>, Error> {
    let arguments = request.arguments(&["IP", "GATEWAY", "MAC"])?;
    // Lists of the runtime take the place of these, and then these may be anything.
    let replaced = listed(&request.config)?.is_some();
    let mut ips = if replaced { Vec::new() } else { configured(&request.config)? };
    for text in
        arguments.get("IP").into_iter().filter(|text| !text.is_empty()).flat_map(|text| text.split(','))
    {
        let text = text.trim();
        let words = || format!("the 'ip' field is expected to be in CIDR notation, got: '{text}'");
        ips.push(IpConfig::new(cidr(text).ok_or_else(|| Error::environment(words()))?));
    }
    let gateways = arguments.get("GATEWAY").into_iter().filter(|text| !text.is_empty());
    for text in gateways.flat_map(|text| text.split(',')) {
        let gateway: IpAddr = text
            .trim()
            .parse()
            .map_err(|_| Error::environment(format!("invalid gateway address: {text}")))?;
        for ip in ips.iter_mut().filter(|ip| ip.address.contains(&gateway)) {
            ip.gateway = Some(gateway);
        }
    }
    Ok(ips)
}

/// `ipam.addresses`.
fn configured(config: &Config) -> Result<Vec<IpConfig>, Error> {
    let mut ips = Vec::new();
    for item in config.ipam()?.array("addresses")? {
        let fields = item.fields()?;
        let text = fields.string("address")?;
        let words = || format!("the 'address' field is expected to be in CIDR notation, got: '{text}'");
        let address = cidr(text).ok_or_else(|| Error::invalid_config(words()))?;
        ips.push(IpConfig { gateway: fields.parse("gateway")?, ..IpConfig::new(address) });
    }
    Ok(ips)
}

/// The list that takes the place of the others: the runtime's own, else the one in `args`.
fn listed(config: &Config) -> Result<Option<Vec<IpConfig>>, Error> {
    let mut last = None;
    for fields in [config.args()?, config.runtime_config()?] {
        let ips = fields.strings("ips")?;
        let read = ips.iter().map(|text| {
            let words = || format!("an entry in the 'ips' field is NOT in CIDR notation, got: '{text}'");
            Ok(IpConfig::new(cidr(text).ok_or_else(|| Error::invalid_config(words()))?))
        });
        let read = read.collect::<Result<Vec<_>, Error>>()?;
        last = Some(read).filter(|read| !read.is_empty()).or(last);
    }
    Ok(last)
}

/// An address with the length of its prefix; of an IPv4 address in IPv6 clothes, the IPv4 address.
fn cidr(text: &str) -> Option<IpNet> {
    let net: IpNet = text.parse().ok()?;
    match (net.addr().to_canonical(), net.prefix_len()) {
        (address @ IpAddr::V4(_), length) if length > 32 => IpNet::new(address, length.checked_sub(96)?).ok(),
        _ => Some(net),
    }
}

/// Results before 0.3.0 have room for one address of each family.
fn only_one_of_each_family(version: Version, ips: &[IpConfig]) -> Result<(), Error> {
    let ipv4 = ips.iter().filter(|ip| ip.address.addr().is_ipv4()).count();
    if ipv4.max(ips.len() - ipv4) > 1 && version < Version::V0_3_0 {
        let words = format!("CNI version {version} does not support more than 1 address per family");
        return Err(Error::invalid_config(words));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(ipam: &str, more: &str, args: &str) -> Request {
        let config = format!(r#"{{"cniVersion": "1.1.0", "name": "net", "ipam": {{{ipam}}}{more}}}"#);
        Request { args: args.into(), ..crate::testing::request(&config) }
    }

    /// Addresses and gateways as text.
    fn given(ipam: &str, more: &str, args: &str) -> Vec<String> {
        let text = |ip: &IpConfig| match ip.gateway {
            Some(gateway) => format!("{} by {gateway}", ip.address),
            None => ip.address.to_string(),
        };
        Settings::of(&request(ipam, more, args)).unwrap().ips.iter().map(text).collect()
    }

    const TWO: &str =
        r#""addresses": [{"address": "10.10.0.1/24", "gateway": "10.10.0.254"}, {"address": "3ffe::1/64"}]"#;
    const ARGS: &str = r#", "args": {"cni": {"ips": ["10.3.0.1/24"]}}"#;
    const RUNTIME: &str = r#", "args": {"cni": {"ips": ["10.3.0.1/24"]}}, "runtimeConfig": {"ips": ["10.4.0.1/24", "fd04::1/64"]}"#;

    #[test]
    fn arguments_are_added_and_lists_take_the_place_of_everything() {
        assert_eq!(given(TWO, "", ""), ["10.10.0.1/24 by 10.10.0.254", "3ffe::1/64"]);
        assert_eq!(
            given(TWO, "", "IP=10.2.0.1/24, fd02::1/64;GATEWAY=10.2.0.254,3ffe::fe"),
            [
                "10.10.0.1/24 by 10.10.0.254",
                "3ffe::1/64 by 3ffe::fe",
                "10.2.0.1/24 by 10.2.0.254",
                "fd02::1/64"
            ]
        );
        assert_eq!(given(TWO, ARGS, "IP=10.2.0.1/24;GATEWAY=10.3.0.254"), ["10.3.0.1/24"]);
        assert_eq!(given(TWO, RUNTIME, "IP=10.2.0.1/24"), ["10.4.0.1/24", "fd04::1/64"]);
        let empty = r#", "args": {"cni": {"ips": []}}, "runtimeConfig": {"ips": null}"#;
        assert_eq!(given(r#""addresses": [{"address": "10.1.0.1/24"}]"#, empty, ""), ["10.1.0.1/24"]);
        assert_eq!(given(r#""addresses": [{"address": "nonsense"}]"#, ARGS, ""), ["10.3.0.1/24"]);
    }

    #[test]
    fn an_address_that_is_listed_twice_is_refused_before_the_kernel_does() {
        let twice = r#""addresses": [{"address": "10.1.0.1/24"}, {"address": "10.1.0.1/16"}]"#;
        let error = Settings::of(&request(twice, "", "")).unwrap_err();
        assert_eq!(
            (error.code, error.message.as_str()),
            (Code::INVALID_CONFIG, "the address 10.1.0.1/16 is listed twice")
        );
    }

    #[test]
    fn an_ipv4_address_in_ipv6_clothes_is_an_ipv4_address() {
        assert_eq!(cidr("::ffff:10.0.0.1/120").unwrap().to_string(), "10.0.0.1/24");
        assert_eq!(cidr("::ffff:10.0.0.1/64"), None);
        assert_eq!(cidr("10.0.0.1"), None);
    }
}
