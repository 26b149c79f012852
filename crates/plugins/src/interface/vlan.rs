//! `vlan`: what a link of the host's, or of the pod's, carries with one 802.1Q tag.
//!
//! [`Vlan`] is the plugin, [`Settings`] its configuration; the rest is the common life of [`super::child`].
//! The kernel allows one such link per master and identifier, in whatever namespace it is: a second pod with the
//! same two is refused in words that say so.

use cni::{AddResult, Error, Plugin, Request};
use kernel::link::{Kind, Link, NewKind, NewVlan, VlanProtocol};
use kernel::netlink::{Protocol, Socket};

use super::child::{self, Addresses, Child, MakeError, New, Site, Terms};
use super::master::{self, Master};
use crate::fault::fault;

const NAME: &str = "vlan";

/// The plugin.
#[derive(Debug)]
pub struct Vlan;

/// What ADD shall make.
#[derive(Debug)]
struct Settings<'a> {
    request: &'a Request,
    master: Master,
    id: u16,
}

impl Plugin for Vlan {
    fn name(&self) -> &'static str {
        NAME
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        child::add(request, &Settings::of(request)?, &terms(request)?)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        child::del(request, NAME)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        child::check(request, &Settings::of(request)?, &terms(request)?)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        child::gc(request)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        child::status(request, Settings::of(request).and_then(|settings| settings.ready()))
    }
}

fn terms(request: &Request) -> Result<Terms, Error> {
    Ok(Terms {
        addresses: Addresses::required(request)?,
        detect_duplicates: child::detects_duplicates(request)?,
    })
}

impl<'a> Settings<'a> {
    fn of(request: &'a Request) -> Result<Self, Error> {
        let fields = request.config.fields();
        let master = Master::of(&fields)?;
        if !master.is_named() {
            return Err(Error::invalid_config(
                "\"master\" field is required: the name of the interface to make the VLAN on",
            ));
        }
        let asked: i64 = fields.integer("vlanId")?;
        match u16::try_from(asked) {
            Ok(id @ 0..=4094) => Ok(Self { request, master, id }),
            _ => Err(Error::invalid_config(format!("invalid VLAN ID {asked} (must be between 0 and 4094)"))),
        }
    }

    /// Whether an ADD would find what it needs outside the pod. Whether the identifier is still free is not asked:
    /// the network is not broken because its one pod is there.
    fn ready(&self) -> Result<Terms, Error> {
        let terms = terms(self.request)?;
        let mut host = Socket::open(Protocol::Route).map_err(fault)?;
        if !self.master.in_container {
            self.master_of(&mut host)?;
        }
        child::require_kind(&mut host, NAME, "CONFIG_VLAN_8021Q")?;
        Ok(terms)
    }

    /// The master, which must be up, and the interface's own MTU.
    fn master_of(&self, socket: &mut Socket) -> Result<(Link, Option<u32>), Error> {
        let master = self.master.find(socket)?;
        let mtu = master::mtu(&self.request.config.fields(), &master)?;
        if !master.is_up() {
            let name = &master.name;
            return Err(Error::kernel(format!("master {name:?} is down, and a VLAN on it cannot come up"))
                .with_details(format!("hint: ip link set {name} up")));
        }
        Ok((master, mtu))
    }
}

impl Child for Settings<'_> {
    fn make(&self, site: &mut Site<'_>) -> Result<Link, Error> {
        let (master, mtu) = self.master_of(site.links(self.master.in_container))?;
        let kind = NewVlan { parent: master.index, id: self.id, protocol: VlanProtocol::Ieee8021Q };
        let new = New { kind: NewKind::Vlan(kind), mtu, mac: None };
        site.make(&new, self.master.in_container).map_err(|error| match error {
            MakeError::Taken(refusal) => {
                let text = format!("VLAN {} on {} is taken", self.id, master.name);
                let hint = "the kernel allows one link per master and VLAN, in whatever namespace";
                let way = "hint: put macvlan or ipvlan on a VLAN link of the host to share it among pods";
                Error::kernel(text).with_details(format!("{hint} ({}); {way}", refusal.message))
            }
            MakeError::Other(error) => error.context(format!("vlan {} on {}", self.id, master.name)),
        })
    }

    fn difference(&self, site: &mut Site<'_>, link: &Link) -> Result<Option<String>, Error> {
        let name = &link.name;
        let Kind::Vlan { id, .. } = link.kind else {
            return Ok(Some(format!("{name} in the pod is no longer a vlan link")));
        };
        if id != self.id {
            return Ok(Some(format!("{name} is of VLAN {id}, not {}", self.id)));
        }
        self.master.difference(site, link)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_between_0_and_4094_are_taken_and_others_refused() {
        let read = |id: &str| {
            let config = format!(
                r#"{{"cniVersion": "1.1.0", "name": "n", "type": "vlan", "master": "up", "vlanId": {id}}}"#
            );
            Settings::of(&crate::testing::request(&config)).map(|settings| settings.id)
        };
        assert_eq!([read("0").unwrap(), read("33").unwrap(), read("4094").unwrap()], [0, 33, 4094]);
        for wrong in ["-1", "4095", "65536"] {
            let error = read(wrong).unwrap_err();
            assert!(error.message.contains(&format!("invalid VLAN ID {wrong}")), "{error}");
        }
    }

    #[test]
    fn a_configuration_without_a_master_is_refused() {
        let request = crate::testing::request(r#"{"cniVersion": "1.1.0", "name": "n", "type": "vlan"}"#);
        let error = Settings::of(&request).unwrap_err();
        assert!(error.message.contains("\"master\" field is required"), "{error}");
    }
}
