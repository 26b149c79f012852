//! `macvlan`: another hardware address on a link of the host's, or of the pod's.
//!
//! [`Macvlan`] is the plugin, [`Settings`] its configuration; the rest is the common life of [`super::child`].
//! The kernel lets macvlans of one master talk to each other but not to the host over that master.

use cni::{AddResult, Error, Plugin, Request};
use kernel::link::{Kind, Link, MacvlanMode, NewKind, NewMacvlan};
use kernel::netlink::{Protocol, Socket};
use netstate::Mac;

use super::child::{self, Addresses, Child, New, Site, Terms};
use super::mac;
use super::master::{self, Master};
use crate::fault::fault;

const NAME: &str = "macvlan";

/// The plugin.
#[derive(Debug)]
pub struct Macvlan;

/// What ADD shall make.
#[derive(Debug)]
struct Settings<'a> {
    request: &'a Request,
    master: Master,
    mode: MacvlanMode,
    broadcast_queue_length: Option<u32>,
    mac: Option<Mac>,
}

impl Plugin for Macvlan {
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
        addresses: Addresses::optional(request)?,
        detect_duplicates: child::detects_duplicates(request)?,
    })
}

impl<'a> Settings<'a> {
    fn of(request: &'a Request) -> Result<Self, Error> {
        let fields = request.config.fields();
        let mode = match fields.string("mode")? {
            "" | "bridge" => MacvlanMode::Bridge,
            "private" => MacvlanMode::Private,
            "vepa" => MacvlanMode::Vepa,
            "passthru" => MacvlanMode::Passthru,
            other => {
                return Err(Error::invalid_config(format!("unknown macvlan mode: {other:?}"))
                    .with_details("hint: bridge, private, vepa or passthru"));
            }
        };
        let queue: u32 = fields.integer("bcqueuelen")?;
        Ok(Self {
            request,
            master: Master::of(&fields)?,
            mode,
            broadcast_queue_length: Some(queue).filter(|length| *length != 0),
            mac: mac::requested(request, true)?,
        })
    }

    /// Whether an ADD would find what it needs outside the pod.
    fn ready(&self) -> Result<Terms, Error> {
        let terms = terms(self.request)?;
        let mut host = Socket::open(Protocol::Route).map_err(fault)?;
        if !self.master.in_container {
            self.master_of(&mut host)?;
        }
        child::require_kind(&mut host, NAME, "CONFIG_MACVLAN")?;
        Ok(terms)
    }

    /// The master, and the interface's own MTU.
    fn master_of(&self, socket: &mut Socket) -> Result<(Link, Option<u32>), Error> {
        let master = self.master.find(socket)?;
        let mtu = master::mtu(&self.request.config.fields(), &master)?;
        Ok((master, mtu))
    }
}

impl Child for Settings<'_> {
    fn make(&self, site: &mut Site<'_>) -> Result<Link, Error> {
        let (master, mtu) = self.master_of(site.links(self.master.in_container))?;
        let kind = NewMacvlan {
            parent: master.index,
            mode: self.mode,
            broadcast_queue_length: self.broadcast_queue_length,
        };
        let new = New { kind: NewKind::Macvlan(kind), mtu, mac: self.mac };
        site.make(&new, self.master.in_container)
            .map_err(|error| Error::from(error).context(format!("macvlan on {}", master.name)))
    }

    fn difference(&self, site: &mut Site<'_>, link: &Link) -> Result<Option<String>, Error> {
        let name = &link.name;
        let Kind::Macvlan { mode, .. } = link.kind else {
            return Ok(Some(format!("{name} in the pod is no longer a macvlan")));
        };
        if mode != Some(self.mode) {
            let found = mode.map_or("unknown", MacvlanMode::name);
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
            r#"{{"cniVersion": "1.1.0", "name": "n", "type": "macvlan", {more}}}"#
        ))
    }

    #[test]
    fn modes_and_queue_lengths_are_read_and_others_refused() {
        let request_of = request;
        let request = request_of(r#""mode": "vepa", "bcqueuelen": 5"#);
        let settings = Settings::of(&request).unwrap();
        assert_eq!((settings.mode, settings.broadcast_queue_length), (MacvlanMode::Vepa, Some(5)));
        let request = request_of(r#""mode": "", "bcqueuelen": 0"#);
        let settings = Settings::of(&request).unwrap();
        assert_eq!((settings.mode, settings.broadcast_queue_length), (MacvlanMode::Bridge, None));
        for (wrong, code) in [
            (r#""mode": "foo""#, Code::INVALID_CONFIG),
            (r#""mode": "source""#, Code::INVALID_CONFIG),
            (r#""mac": "01:00:00:00:00:01""#, Code::INVALID_CONFIG),
            (r#""mode": 4"#, Code::UNDECODABLE),
            (r#""bcqueuelen": -1"#, Code::INVALID_CONFIG),
            (r#""master": 7"#, Code::UNDECODABLE),
        ] {
            assert_eq!(Settings::of(&request_of(wrong)).unwrap_err().code, code, "{wrong}");
        }
    }
}
