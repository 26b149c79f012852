//! `ipvlan`: other IP addresses on a link's own hardware address, for networks that allow only one.
//!
//! [`Ipvlan`] is the plugin, [`Settings`] its configuration; the rest is the common life of [`super::child`].
//! Later in a chain it takes the interface before it for its master, and its addresses if the network has no
//! address plugin; the result then lists the new interface alone.

use cni::{AddResult, Error, Plugin, Request};
use kernel::link::{IpvlanIsolation, IpvlanMode, Kind, Link, NewIpvlan, NewKind};
use kernel::netlink::{Protocol, Socket};

use super::child::{self, Addresses, Child, New, Site, Terms};
use super::master::Master;
use crate::fault::fault;

const NAME: &str = "ipvlan";

/// The plugin.
#[derive(Debug)]
pub struct Ipvlan;

/// What ADD shall make.
#[derive(Debug)]
struct Settings {
    master: Master,
    mode: IpvlanMode,
    mtu: Option<u32>,
}

impl Plugin for Ipvlan {
    fn name(&self) -> &'static str {
        NAME
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let previous = request.config.prev_result()?;
        let settings = Settings::of(request)?.on_the_one_before(previous.as_ref())?;
        child::add(request, &settings, &terms(request, previous)?)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        child::del(request, NAME)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        child::check(request, &Settings::of(request)?, &terms(request, request.config.prev_result()?)?)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        child::gc(request)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        child::status(request, ready(request))
    }
}

/// The network's address plugin, or else what an earlier plugin of the chain has got.
fn terms(request: &Request, previous: Option<AddResult>) -> Result<Terms, Error> {
    let addresses = match (Addresses::optional(request)?, previous) {
        (Addresses::None, Some(previous)) if !previous.ips.is_empty() => Addresses::Earlier(previous),
        _ => Addresses::required(request)?,
    };
    Ok(Terms { addresses, detect_duplicates: child::detects_duplicates(request)? })
}

/// Whether an ADD would find what it needs outside the pod. What an earlier plugin of the chain will bring is not
/// known yet.
fn ready(request: &Request) -> Result<Terms, Error> {
    let settings = Settings::of(request)?;
    let addresses = Addresses::optional(request)?;
    let mut host = Socket::open(Protocol::Route).map_err(fault)?;
    let chained = matches!(addresses, Addresses::None) && !settings.master.is_named();
    if !settings.master.in_container && !chained {
        settings.master.find(&mut host)?;
    }
    child::require_kind(&mut host, NAME, "CONFIG_IPVLAN")?;
    Ok(Terms { addresses, detect_duplicates: child::detects_duplicates(request)? })
}

impl Settings {
    fn of(request: &Request) -> Result<Self, Error> {
        let fields = request.config.fields();
        let mode = match fields.string("mode")? {
            "" | "l2" => IpvlanMode::L2,
            "l3" => IpvlanMode::L3,
            "l3s" => IpvlanMode::L3s,
            other => {
                return Err(Error::invalid_config(format!("unknown ipvlan mode: {other:?}"))
                    .with_details("hint: l2, l3 or l3s"));
            }
        };
        let asked: i64 = fields.integer("mtu")?;
        let Ok(mtu) = u32::try_from(asked) else {
            return Err(fields.bad("mtu", format!("{asked} is no number of bytes")).into());
        };
        Ok(Self { master: Master::of(&fields)?, mode, mtu: Some(mtu).filter(|mtu| *mtu != 0) })
    }

    /// The same, with the only interface of an earlier plugin for its master if the configuration names none.
    fn on_the_one_before(mut self, previous: Option<&AddResult>) -> Result<Self, Error> {
        let Some(previous) = previous.filter(|_| !self.master.is_named()) else { return Ok(self) };
        match previous.interfaces.as_slice() {
            [only] if !only.name.is_empty() => {
                self.master = self.master.named(&only.name);
                Ok(self)
            }
            several => {
                let names: Vec<&str> = several.iter().map(|interface| interface.name.as_str()).collect();
                let text = "chained master failure. PrevResult lacks a single named interface";
                Err(Error::invalid_config(text)
                    .with_details(format!("it has {names:?}; hint: name the \"master\"")))
            }
        }
    }
}

impl Child for Settings {
    fn make(&self, site: &mut Site<'_>) -> Result<Link, Error> {
        let master = self.master.find(site.links(self.master.in_container))?;
        let kind = NewIpvlan { parent: master.index, mode: self.mode, isolation: IpvlanIsolation::Bridge };
        let new = New { kind: NewKind::Ipvlan(kind), mtu: self.mtu, mac: None };
        site.make(&new, self.master.in_container)
            .map_err(|error| Error::from(error).context(format!("ipvlan on {}", master.name)))
    }

    fn difference(&self, site: &mut Site<'_>, link: &Link) -> Result<Option<String>, Error> {
        let name = &link.name;
        let Kind::Ipvlan { mode, .. } = link.kind else {
            return Ok(Some(format!("{name} in the pod is no longer an ipvlan")));
        };
        if mode != Some(self.mode) {
            let found = mode.map_or("unknown", IpvlanMode::name);
            return Ok(Some(format!("{name} is in mode {found}, not {}", self.mode.name())));
        }
        self.master.difference(site, link)
    }
}

#[cfg(test)]
mod tests {
    use cni::Code;

    use super::*;

    fn request(more: &str) -> Request {
        crate::testing::request(&format!(
            r#"{{"cniVersion": "1.1.0", "name": "n", "type": "ipvlan", {more}}}"#
        ))
    }

    #[test]
    fn the_master_of_a_chain_is_its_only_interface() {
        let chained = |more: &str, interfaces: &str| {
            let result = format!(r#"{{"cniVersion": "1.1.0", "interfaces": [{interfaces}]}}"#);
            let request = request(&format!(r#""prevResult": {result}, {more}"#));
            let previous = request.config.prev_result().unwrap();
            Settings::of(&request).unwrap().on_the_one_before(previous.as_ref())
        };
        let master = |more, interfaces| chained(more, interfaces).unwrap().master;
        let plain = Master::of(&request(r#""x": 1"#).config.fields()).unwrap();
        assert_eq!(master(r#""x": 1"#, r#"{"name": "ens5"}"#), plain.clone().named("ens5"));
        assert_eq!(master(r#""master": "up""#, r#"{"name": "a"}, {"name": "b"}"#), plain.named("up"));
        for interfaces in ["", r#"{"name": "a"}, {"name": "b"}"#, r#"{"name": ""}"#] {
            let error = chained(r#""x": 1"#, interfaces).unwrap_err();
            assert!(error.message.contains("lacks a single named interface"), "{error}");
        }
    }

    #[test]
    fn addresses_come_from_the_address_plugin_then_from_the_chain() {
        let earlier = r#""prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.3/24"}]}"#;
        let of = |more: &str| {
            let request = request(more);
            let previous = request.config.prev_result().unwrap();
            terms(&request, previous).map(|terms| terms.addresses)
        };
        assert!(matches!(of(earlier), Ok(Addresses::Earlier(_))));
        assert!(matches!(of(&format!(r#"{earlier}, "ipam": {{"type": "x"}}"#)), Ok(Addresses::Plugin)));
        assert_eq!(of(r#""x": 1"#).unwrap_err().code, Code::INVALID_CONFIG);
        let itself = of(r#""ipam": {"type": "ipvlan"}"#).unwrap_err();
        assert!(itself.message.contains("has no addresses to give"), "{itself}");
    }
}
