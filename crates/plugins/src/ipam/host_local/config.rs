//! What a network configuration says to host-local.
//!
//! Sources of ranges, in the order of the result's addresses: the capability `ipRanges`, the single range
//! written into `ipam` itself, then `ipam.ranges`. Sources of wishes, all of them together: CNI_ARGS `IP`,
//! `args.cni.ips`, the capability `ips`.

use std::net::IpAddr;
use std::path::PathBuf;

use cni::{Config, Error, FieldError, Fields, Item, Request, Route, Version};
use ipnet::IpNet;

use super::range::{Pool, RangeSpec};

/// Where addresses are kept unless the configuration says otherwise.
pub const DATA_DIR: &str = "/var/lib/cni/networks";

/// The `ipam` section, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where addresses are kept.
    pub data_dir: PathBuf,
    /// What may be given out.
    pub pool: Pool,
    /// Routes for the result.
    pub routes: Vec<Route>,
    /// A resolver file for the result.
    pub resolv_conf: Option<PathBuf>,
}

impl Settings {
    /// What `config` says.
    ///
    /// # Errors
    /// Code 6 for a value of the wrong type, 7 for one that makes no sense.
    pub fn of(config: &Config) -> Result<Self, Error> {
        let ipam = config.ipam()?;
        let pool = Pool::new(&range_sets(config, &ipam)?).map_err(super::Error::from)?;
        only_one_of_each_family(config.version, &pool)?;
        let path = |key| -> Result<Option<PathBuf>, FieldError> {
            Ok(Some(ipam.string(key)?).filter(|path| !path.is_empty()).map(PathBuf::from))
        };
        Ok(Self {
            data_dir: data_dir(config)?,
            pool,
            routes: ipam.array("routes")?.iter().map(route).collect::<Result<_, _>>()?,
            resolv_conf: path("resolvConf")?,
        })
    }
}

/// Where `config` keeps its addresses: all that giving them back needs to know.
///
/// # Errors
/// Code 6 when it is not a string.
pub(super) fn data_dir(config: &Config) -> Result<PathBuf, FieldError> {
    let path = config.ipam()?.string("dataDir")?;
    Ok(PathBuf::from(if path.is_empty() { DATA_DIR } else { path }))
}

/// The addresses that are asked for.
///
/// # Errors
/// Code 4 for CNI_ARGS that cannot be read, 7 for a text that is no address.
pub(super) fn wishes(request: &Request) -> Result<Vec<IpAddr>, Error> {
    let mut wishes = Vec::new();
    if let Some(text) = request.arguments(&["IP"])?.get("IP").filter(|text| !text.is_empty()) {
        let ip =
            address(text).ok_or_else(|| Error::environment(format!("CNI_ARGS: invalid IP address {text}")));
        wishes.push(ip?);
    }
    for fields in [request.config.args()?, request.config.runtime_config()?] {
        for item in fields.array("ips")? {
            let text = item.string()?;
            wishes.push(address(text).ok_or_else(|| item.bad(format!("invalid IP address {text}")))?);
        }
    }
    Ok(wishes)
}

/// An address, or the one in a CIDR.
fn address(text: &str) -> Option<IpAddr> {
    let plain = text.split_once('/').map_or(text, |(address, _)| address);
    (plain == text || text.parse::<IpNet>().is_ok())
        .then(|| plain.parse::<IpAddr>().ok())?
        .map(|ip| ip.to_canonical())
}

fn route(item: &Item<'_>) -> Result<Route, FieldError> {
    Route::from_fields(&item.fields()?)
}

fn range_sets(config: &Config, ipam: &Fields<'_>) -> Result<Vec<Vec<RangeSpec>>, FieldError> {
    let set = |item: &Item<'_>| item.array()?.iter().map(|range| spec(&range.fields()?)).collect();
    let list = |fields: &Fields<'_>, key| fields.array(key)?.iter().map(set).collect::<Result<Vec<_>, _>>();
    let mut sets = list(&config.runtime_config()?, "ipRanges")?;
    if !ipam.string("subnet")?.is_empty() {
        sets.push(vec![spec(ipam)?]);
    }
    sets.extend(list(ipam, "ranges")?);
    Ok(sets)
}

fn spec(fields: &Fields<'_>) -> Result<RangeSpec, FieldError> {
    let Some(subnet) = fields.parse("subnet")? else {
        return Err(fields.bad("subnet", "missing: a range needs one"));
    };
    Ok(RangeSpec {
        subnet,
        start: fields.parse("rangeStart")?,
        end: fields.parse("rangeEnd")?,
        gateway: fields.parse("gateway")?,
    })
}

/// Results before 0.3.0 have room for one address of each family.
fn only_one_of_each_family(version: Version, pool: &Pool) -> Result<(), Error> {
    let ipv4 = pool.sets().iter().filter(|set| set.is_ipv4()).count();
    let most = ipv4.max(pool.sets().len() - ipv4);
    if most > 1 && version < Version::V0_3_0 {
        let words = format!("CNI version {version} does not support more than 1 address per family");
        return Err(Error::invalid_config(words));
    }
    Ok(())
}
