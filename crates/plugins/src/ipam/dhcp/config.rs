//! What a network configuration says to dhcp.
//!
//! Read [`Settings`]. Plugin and daemon read the same document: the plugin before it asks, so that a mistake
//! is told without a daemon; the daemon again, for it keeps the document with the lease and takes it up from
//! there after a restart.
//!
//! Keys of the reference: `daemonSocketPath`, `provide`, `request`, `priority`. Ours: `families`
//! (`["ipv4"]`, `["ipv6"]` or both), `daemonStatePath`, `ipv6PrefixLength`, `ipv6Gateway` (in place of what
//! routers advertise).

use std::net::Ipv6Addr;
use std::path::PathBuf;

use cni::{Config, Error, FieldError, Fields, Item};

/// Where the daemon listens unless the configuration says otherwise.
pub(crate) const SOCKET: &str = "/run/cni/dhcp.sock";
/// Where the daemon keeps its leases unless told otherwise.
pub(crate) const STATE: &str = "/var/lib/cni/dhcp";

/// The most that fits into one option.
const LONGEST_VALUE: usize = 255;

/// What a DHCPv4 client asks for unless `skipDefault` says otherwise: mask, routers, name servers, domain,
/// MTU, static routes, search list, classless routes. RFC 3442 wants the last before the routers.
const DEFAULT_REQUEST: [u8; 8] = [1, 121, 3, 6, 15, 26, 33, 119];

/// The `ipam` section, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The daemon's socket.
    pub(crate) socket: PathBuf,
    /// The daemon's leases, for when it is away.
    pub(crate) state: PathBuf,
    /// Whether an IPv4 address is wanted.
    pub(crate) ipv4: bool,
    /// Whether an IPv6 address is wanted.
    pub(crate) ipv6: bool,
    /// DHCPv4 options to send, by code; of several with one code the last counts.
    pub(crate) provide: Vec<(u8, Vec<u8>)>,
    /// DHCPv4 options to ask for.
    pub(crate) request: Vec<u8>,
    /// The metric of all routes; 0 for none.
    pub(crate) priority: u32,
    /// The length of the IPv6 prefix, whatever routers say.
    pub(crate) ipv6_prefix_length: Option<u8>,
    /// The IPv6 default gateway, whatever routers say.
    pub(crate) ipv6_gateway: Option<Ipv6Addr>,
}

impl Settings {
    /// What `config` says, with values taken from CNI_ARGS (`args`) where it points there.
    ///
    /// # Errors
    /// Code 6 for a value of the wrong type, 7 for one that makes no sense.
    pub(crate) fn of(config: &Config, args: &str) -> Result<Self, Error> {
        let ipam = config.ipam()?;
        ipam.string("daemonSocketPath").and(ipam.string("daemonStatePath"))?;
        let (socket, state) = places(config);
        let (mut ipv4, mut ipv6) = (false, false);
        for item in ipam.array("families")? {
            match item.string()? {
                "ipv4" => ipv4 = true,
                "ipv6" => ipv6 = true,
                other => return Err(item.bad(format!("{other:?} is neither \"ipv4\" nor \"ipv6\"")).into()),
            }
        }
        Ok(Self {
            socket,
            state,
            ipv4: ipv4 || !ipv6,
            ipv6,
            provide: provided(&ipam.array("provide")?, args)?,
            request: requested(&ipam.array("request")?)?,
            priority: ipam.integer("priority")?,
            ipv6_prefix_length: prefix_length(&ipam)?,
            ipv6_gateway: gateway(&ipam)?,
        })
    }
}

fn prefix_length(ipam: &Fields<'_>) -> Result<Option<u8>, FieldError> {
    const KEY: &str = "ipv6PrefixLength";
    match ipam.optional_integer(KEY)? {
        Some(0 | 129..) => Err(ipam.bad(KEY, "an IPv6 prefix has 1 to 128 bits")),
        length => Ok(length),
    }
}

fn gateway(ipam: &Fields<'_>) -> Result<Option<Ipv6Addr>, FieldError> {
    const KEY: &str = "ipv6Gateway";
    match ipam.parse::<Ipv6Addr>(KEY)? {
        Some(address) if address.is_unspecified() || address.is_multicast() || address.is_loopback() => {
            Err(ipam.bad(KEY, format!("{address} is no router's address")))
        }
        address => Ok(address),
    }
}

/// The daemon's socket and its leases: all that giving back needs to know. What cannot be read is as if it were
/// not there.
pub(crate) fn places(config: &Config) -> (PathBuf, PathBuf) {
    let ipam = config.ipam().unwrap_or_default();
    let path = |key, default: &str| {
        let said = ipam.string(key).unwrap_or_default();
        PathBuf::from(if said.is_empty() { default } else { said })
    };
    (path("daemonSocketPath", SOCKET), path("daemonStatePath", STATE))
}

fn provided(items: &[Item<'_>], args: &str) -> Result<Vec<(u8, Vec<u8>)>, FieldError> {
    let mut options: Vec<(u8, Vec<u8>)> = Vec::new();
    for item in items {
        let fields = item.fields()?;
        let code = option_code(item, fields.string("option")?)?;
        let key = fields.string("fromArg")?;
        let own = Some(fields.string("value")?).filter(|value| !value.is_empty());
        for value in own.into_iter().chain(argument(args, key)) {
            if value.len() > LONGEST_VALUE {
                return Err(fields.bad("value", format!("longer than {LONGEST_VALUE} bytes")));
            }
            options.retain(|(known, _)| *known != code);
            options.push((code, value.as_bytes().to_vec()));
        }
    }
    Ok(options)
}

fn requested(items: &[Item<'_>]) -> Result<Vec<u8>, FieldError> {
    let mut codes = Vec::new();
    let mut defaults = true;
    for item in items {
        let fields = item.fields()?;
        defaults &= !fields.bool("skipDefault")?;
        match fields.string("option")? {
            "" => {}
            name => codes.push(option_code(item, name)?),
        }
    }
    if defaults {
        codes
            .extend(DEFAULT_REQUEST.iter().filter(|code| !codes.contains(code)).copied().collect::<Vec<_>>());
    }
    Ok(codes)
}

/// The value of a key of CNI_ARGS, read as loosely as the reference does: what is no pair is passed over.
fn argument<'a>(args: &'a str, key: &str) -> Option<&'a str> {
    let mut pairs = args.split(';').filter_map(|pair| pair.split_once('='));
    pairs.rfind(|(name, _)| !key.is_empty() && *name == key).map(|(_, value)| value)
}

/// An option by its number or by the name that the reference has for it.
fn option_code(item: &Item<'_>, name: &str) -> Result<u8, FieldError> {
    let known = match name {
        "subnet-mask" => 1,
        "routers" => 3,
        "host-name" => 12,
        "vendor-class-identifier" => 60,
        "dhcp-client-identifier" => 61,
        "user-class" => 77,
        _ => name.parse().unwrap_or(0),
    };
    match known {
        0 | 255 => Err(item.bad(format!(
            "option {name:?} is neither a number from 1 to 254 nor one of dhcp-client-identifier, subnet-mask, \
             routers, host-name, user-class, vendor-class-identifier"
        ))),
        code => Ok(code),
    }
}
