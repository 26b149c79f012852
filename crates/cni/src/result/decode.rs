//! Reading results: the JSON of every version into [`AddResult`].
//!
//! Others' results are read generously: an interface index may be missing, negative or outside the list, and
//! `ips[].version` is not believed but derived. A result without `cniVersion` speaks the configuration's version.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{AddResult, Dns, Interface, IpConfig, Route};
use crate::error::Error;
use crate::json::{FieldError, Fields, Item, Json};
use crate::version::Version;

impl AddResult {
    /// The result in `bytes`; one that does not say its version speaks `otherwise`. No output at all, or `null`,
    /// is an empty result: a chained plugin with nothing to say is tolerated.
    ///
    /// # Errors
    /// Code 6 when the bytes are not JSON, have a value of the wrong type or an unknown version; code 7 when a
    /// value makes no sense, such as an address without prefix length.
    pub fn decode(bytes: &[u8], otherwise: Version) -> Result<Self, Error> {
        if bytes.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        let document = Json::parse(bytes).map_err(|error| Error::undecodable(format!("result: {error}")))?;
        Self::from_json(&document, otherwise)
    }

    /// The result in a document; one that does not say its version speaks `otherwise`.
    ///
    /// # Errors
    /// As [`AddResult::decode`].
    pub fn from_json(document: &Json, otherwise: Version) -> Result<Self, Error> {
        let read = || {
            let fields = Fields::of(document)?;
            let version = match fields.string("cniVersion")? {
                "" => otherwise,
                text => text.parse().map_err(|error| Error::undecodable(format!("cniVersion: {error}")))?,
            };
            let result =
                if version < Version::V0_3_0 { by_family(&fields)? } else { by_list(&fields, version)? };
            Ok(result)
        };
        read().map_err(|error: Error| error.context("result"))
    }
}

impl Dns {
    /// The `dns` object of a configuration or a result.
    ///
    /// # Errors
    /// When a member has the wrong type.
    pub fn from_fields(fields: &Fields<'_>) -> Result<Self, FieldError> {
        let strings = |key| -> Result<Vec<String>, FieldError> {
            Ok(fields.strings(key)?.into_iter().map(str::to_owned).collect())
        };
        Ok(Self {
            nameservers: strings("nameservers")?,
            domain: fields.string("domain")?.to_owned(),
            search: strings("search")?,
            options: strings("options")?,
        })
    }
}

impl Route {
    /// A route object: of a result, or of an IPAM configuration, which has the same keys.
    ///
    /// # Errors
    /// When `dst` is missing or a member has the wrong type or makes no sense.
    pub fn from_fields(fields: &Fields<'_>) -> Result<Self, FieldError> {
        let dst: IpNet = required(fields, "dst")?;
        Ok(Self {
            dst,
            gw: fields.parse("gw")?,
            mtu: fields.integer("mtu")?,
            advmss: fields.integer("advmss")?,
            priority: fields.integer("priority")?,
            table: fields.optional_integer("table")?,
            scope: fields.optional_integer("scope")?,
        })
    }
}

/// 0.1.0 and 0.2.0: `ip4` and `ip6`, each with its routes.
fn by_family(fields: &Fields<'_>) -> Result<AddResult, FieldError> {
    let mut result = AddResult { dns: Dns::from_fields(&fields.object("dns")?)?, ..AddResult::default() };
    for family in ["ip4", "ip6"] {
        let Some(ip) = fields.optional_object(family)? else { continue };
        let gateway: Option<IpAddr> = ip.parse("gateway")?;
        result.ips.push(IpConfig { address: required(&ip, "ip")?, gateway, interface: None });
        for route in ip.array("routes")? {
            let route = route.fields()?;
            result.routes.push(Route::new(required(&route, "dst")?, route.parse("gw")?));
        }
    }
    Ok(result)
}

/// 0.3.0 and later: lists of interfaces, addresses and routes.
fn by_list(fields: &Fields<'_>, version: Version) -> Result<AddResult, FieldError> {
    let each = |key| fields.array(key);
    Ok(AddResult {
        interfaces: each("interfaces")?
            .iter()
            .map(|item| interface(item, version))
            .collect::<Result<_, _>>()?,
        ips: each("ips")?.iter().map(ip).collect::<Result<_, _>>()?,
        routes: each("routes")?
            .iter()
            .map(|item| Route::from_fields(&item.fields()?))
            .collect::<Result<_, _>>()?,
        dns: Dns::from_fields(&fields.object("dns")?)?,
    })
}

fn interface(item: &Item<'_>, version: Version) -> Result<Interface, FieldError> {
    let fields = item.fields()?;
    let known = Interface {
        name: fields.string("name")?.to_owned(),
        mac: fields.string("mac")?.to_owned(),
        sandbox: fields.string("sandbox")?.to_owned(),
        ..Interface::default()
    };
    if version < Version::V1_0_0 {
        return Ok(known);
    }
    Ok(Interface {
        mtu: fields.integer("mtu")?,
        socket_path: fields.string("socketPath")?.to_owned(),
        pci_id: fields.string("pciID")?.to_owned(),
        ..known
    })
}

fn ip(item: &Item<'_>) -> Result<IpConfig, FieldError> {
    let fields = item.fields()?;
    let interface: Option<i64> = fields.optional_integer("interface")?;
    Ok(IpConfig {
        address: required(&fields, "address")?,
        gateway: fields.parse("gateway")?,
        interface: interface.and_then(|index| usize::try_from(index).ok()),
    })
}

/// A CIDR that must be there.
fn required(fields: &Fields<'_>, key: &str) -> Result<IpNet, FieldError> {
    fields.parse(key)?.ok_or_else(|| {
        fields.bad(key, "missing; an address with prefix length is needed, such as 10.1.2.3/24")
    })
}
