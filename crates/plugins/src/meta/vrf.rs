//! `vrf`: the pod's interface becomes a port of a VRF, a routing domain of its own inside the pod.
//!
//! Read [`Vrf`] first, then [`Joining`], one ADD under way. The VRF is made for the first interface that asks for
//! it and goes with the last.
//!
//! A port that joins a VRF or leaves it goes down for a moment, upon which the kernel drops its routes and, unless
//! told otherwise, its IPv6 addresses. So both are noted before and put back after, the routes of the main table
//! into the VRF's.
//!
//! What stays true: everything happens under a lock of the pod's namespace; an ADD that fails puts the interface
//! back as it was; a table that means something to the kernel or to anybody in the pod is never chosen.
//! Sources: the reference plugin's documented keys and observed behaviour; the kernel's
//! Documentation/networking/vrf.rst.

use cni::{AddResult, Code, Error, Plugin, Request, Version};
use kernel::Family;
use kernel::address::{self, Address, NewAddress};
use kernel::link::{self, Filter, Kind, Link, NewKind, NewLink};
use kernel::netlink::{Batch, Protocol, Socket};
use kernel::route::{self, Route};
use netstate::LinkName;

use super::changes::{Change, Changes, nearest_first, routes_over, tables_in_use, unused_table};
use super::lock::{self, NamespaceLock};
use crate::fault::{Failures, fault};
use crate::interface::pod::Pod;

/// The protocol had no chains before.
const VERSIONS: [Version; 4] = [Version::V0_3_1, Version::V0_4_0, Version::V1_0_0, Version::V1_1_0];

/// The first table that is tried.
const LOWEST_TABLE: u32 = 1;

/// The plugin.
#[derive(Debug)]
pub struct Vrf;

impl Plugin for Vrf {
    fn name(&self) -> &'static str {
        "vrf"
    }

    fn versions(&self) -> &'static [Version] {
        &VERSIONS
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let settings = Settings::of(request)?;
        let result = super::previous(request)?;
        let mut pod = Pod::open(request.netns()?)?;
        let _lock = NamespaceLock::hold(&pod.namespace)?;
        let socket = pod.socket();
        let missing = || Error::kernel(format!("there is no interface {} in the pod", request.ifname));
        let link = find(socket, &request.ifname)?.ok_or_else(missing)?;
        free(socket, &link)?;
        let joining = Joining::look(socket, &link)?;
        let (vrf, is_new) = Domain::ensure(socket, &settings)?;
        match joining.join(socket, &vrf) {
            Ok(()) => Ok(result),
            Err(error) => Err(joining.back(socket, &vrf, is_new, error)),
        }
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        let Some(mut pod) = Pod::open_if_there(request.netns.as_deref())? else { return Ok(()) };
        let _lock = NamespaceLock::hold(&pod.namespace)?;
        let socket = pod.socket();
        let link = find(socket, &request.ifname)?;
        let Some(vrf) = of_del(request, socket, link.as_ref())? else { return Ok(()) };
        let mut failures = Failures::default();
        if let Some(link) = link.filter(|link| link.master == Some(vrf.index)) {
            failures.note(leave(socket, &link));
        }
        failures.note(vrf.delete_if_empty(socket));
        failures.into_result()
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let settings = Settings::of(request)?;
        super::previous(request)?;
        let mut pod = Pod::open(request.netns()?)?;
        let socket = pod.socket();
        let name = settings.name;
        let gone = || Error::kernel(format!("the VRF {name} is gone from the pod"));
        let vrf = Domain::find(socket, name)?.ok_or_else(gone)?;
        if settings.table.is_some_and(|table| table != vrf.table) {
            return Err(vrf.has_another_table());
        }
        if !vrf.is_up {
            return Err(Error::kernel(format!("the VRF {name} is down")));
        }
        let link = find(socket, &request.ifname)?;
        if link.is_some_and(|link| link.master == Some(vrf.index)) {
            return Ok(());
        }
        Err(Error::kernel(format!("failed to find {} associated to vrf {name}", request.ifname)))
    }

    /// VRFs end with the pod's namespace; outside of it there are locks at most.
    fn gc(&self, _: &Request) -> Result<(), Error> {
        lock::collect();
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        let ready = || {
            Settings::of(request)?;
            let mut host = Socket::open(Protocol::Route).map_err(fault)?;
            match link::is_supported(&mut host, "vrf").map_err(fault)? {
                true => Ok(()),
                false => Err(Error::kernel("this kernel has no VRFs; hint: it needs CONFIG_NET_VRF")),
            }
        };
        ready().map_err(|error| Error { code: Code::NOT_READY, ..error })
    }
}

/// What the configuration says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Settings {
    /// `vrfname`.
    name: LinkName,
    /// `table`; `None` leaves the choice to the plugin.
    table: Option<u32>,
}

impl Settings {
    /// Reads and checks the configuration.
    ///
    /// # Errors
    /// Code 6 for a key of the wrong type, 7 for a value that cannot be.
    fn of(request: &Request) -> Result<Self, Error> {
        let fields = request.config.fields();
        let name = match fields.string("vrfname")? {
            "" => return Err(Error::invalid_config("configuration is expected to have a valid vrf name")),
            name => {
                name.parse().map_err(|error: netstate::Error| fields.bad("vrfname", error.to_string()))?
            }
        };
        let table: u32 = fields.integer("table")?;
        Ok(Self { name, table: Some(table).filter(|table| *table != 0) })
    }
}

/// A VRF of the pod.
#[derive(Debug)]
struct Domain {
    name: String,
    index: u32,
    table: u32,
    is_up: bool,
}

impl Domain {
    /// The VRF that is asked for, and whether it was made for this ADD.
    fn ensure(socket: &mut Socket, settings: &Settings) -> Result<(Self, bool), Error> {
        if let Some(vrf) = Self::find(socket, settings.name)? {
            return match settings.table {
                Some(table) if table != vrf.table => Err(vrf.has_another_table()),
                _ => Ok((vrf, false)),
            };
        }
        let table = match settings.table {
            Some(table) => not_anothers(socket, table)?,
            None => unused_table(LOWEST_TABLE, &tables_in_use(socket)?),
        };
        let new = NewLink { up: true, ..NewLink::new(settings.name.as_str(), NewKind::Vrf(table)) };
        let vanished = || Error::kernel(format!("the VRF {} vanished while it was set up", settings.name));
        let made = socket.execute(link::create(&new)).map_err(fault);
        let found = made.and_then(|()| Self::find(socket, settings.name)?.ok_or_else(vanished));
        found.map(|vrf| (vrf, true)).inspect_err(|_| {
            // It was not there a moment ago, and the namespace is locked. That this works matters less than the
            // error, and a DEL would take it away as well.
            let _ = socket.execute(link::delete(settings.name.as_str()));
        })
    }

    fn find(socket: &mut Socket, name: LinkName) -> Result<Option<Self>, Error> {
        let Some(link) = find(socket, name.as_str())? else { return Ok(None) };
        let other = || Error::invalid_config(format!("vrfname: {name} in the pod is not a VRF"));
        Self::of(&link).ok_or_else(other).map(Some)
    }

    fn of(link: &Link) -> Option<Self> {
        let Kind::Vrf { table } = link.kind else { return None };
        Some(Self { name: link.name.clone(), index: link.index, table, is_up: link.is_up() })
    }

    fn has_another_table(&self) -> Error {
        let Self { name, table, .. } = self;
        Error::invalid_config(format!("VRF {name} already exist with different routing table {table}"))
    }

    fn delete_if_empty(&self, socket: &mut Socket) -> Result<(), Error> {
        let ports = link::list(socket, Filter { master: Some(self.index), ..Filter::default() });
        if !ports.map_err(fault)?.is_empty() {
            return Ok(());
        }
        match socket.execute(link::delete(self.index)) {
            Err(error) if !error.is_missing() => Err(fault(error)),
            _ => Ok(()),
        }
    }
}

/// What an interface has before it joins a VRF.
#[derive(Debug)]
struct Joining {
    link: Link,
    addresses: Vec<Address>,
    routes: Vec<Route>,
}

impl Joining {
    /// Notes everything that is lost when the interface goes down for a moment.
    fn look(socket: &mut Socket, link: &Link) -> Result<Self, Error> {
        let mut addresses = address::list(socket, Some(link.index), Some(Family::V6)).map_err(fault)?;
        // Link-local ones come back by themselves, and those of routers with their next advertisement.
        addresses.retain(|address| address.scope == 0 && address.is_permanent());
        let mut routes = routes_over(socket, link.index)?;
        routes.retain(|route| route.protocol != route::PROTOCOL_KERNEL);
        nearest_first(&mut routes);
        Ok(Self { link: link.clone(), addresses, routes })
    }

    /// Makes the interface a port, with all that it had.
    fn join(&self, socket: &mut Socket, vrf: &Domain) -> Result<(), Error> {
        let port = link::Change { master: Some(vrf.index), ..link::Change::default() };
        socket.execute(link::change(self.link.index, &port)).map_err(fault)?;
        self.restore(socket, vrf.table)
    }

    /// Gives back what was lost; the routes of the main table go into this one.
    fn restore(&self, socket: &mut Socket, table: u32) -> Result<(), Error> {
        let again = |address: &Address| {
            address::add(&NewAddress {
                skip_duplicate_detection: true,
                skip_prefix_route: address.has_no_prefix_route(),
                ..NewAddress::new(self.link.index, address.net)
            })
        };
        let refusals = socket.run(&Batch::from_iter(self.addresses.iter().map(again)), |_, _| Ok(()));
        let mut failures = Failures::default();
        for refusal in refusals.map_err(fault)? {
            // Most plugins have told the kernel to keep it (keep_addr_on_down).
            if !refusal.error.exists() {
                failures.note_kernel::<()>(Err(refusal.error));
            }
        }
        let moved = |route: &Route| {
            let table = if route.table == route::MAIN_TABLE { table } else { route.table };
            Change::AddRoute(Route { table, ..route.clone() })
        };
        failures.note(Changes::new(socket).make(self.routes.iter().map(moved).collect()));
        failures.into_result()
    }

    /// Undoes an ADD that failed.
    fn back(&self, socket: &mut Socket, vrf: &Domain, is_new: bool, cause: Error) -> Error {
        let mut failures = Failures::default();
        failures.note::<()>(Err(cause));
        failures.note(leave(socket, &self.link));
        failures.note(self.restore(socket, route::MAIN_TABLE));
        if is_new {
            failures.note(vrf.delete_if_empty(socket));
        }
        failures.into_result().err().unwrap_or_else(|| Error::internal("an error was lost"))
    }
}

/// Refuses an interface that is a port of something already.
fn free(socket: &mut Socket, link: &Link) -> Result<(), Error> {
    let Some(master) = link.master else { return Ok(()) };
    let master = link::find(socket, master).map_err(fault)?;
    let name = master.map_or_else(|| "one that is gone".to_owned(), |master| master.name);
    Err(Error::kernel(format!("interface {} has already a master set: {name}", link.name)))
}

/// Two VRFs with one table would not be apart.
fn not_anothers(socket: &mut Socket, table: u32) -> Result<u32, Error> {
    let vrfs = link::list(socket, Filter { kind: Some("vrf"), ..Filter::default() }).map_err(fault)?;
    match vrfs.iter().filter_map(Domain::of).find(|vrf| vrf.table == table) {
        None => Ok(table),
        Some(vrf) => {
            Err(Error::invalid_config(format!("table: {table} is the routing table of the VRF {}", vrf.name)))
        }
    }
}

/// The VRF that a DEL is about: the configured one, or, where the configuration has become wrong, the one that the
/// interface is in.
fn of_del(request: &Request, socket: &mut Socket, link: Option<&Link>) -> Result<Option<Domain>, Error> {
    let named = match Settings::of(request) {
        Ok(settings) => find(socket, settings.name.as_str())?,
        Err(_) => match link.and_then(|link| link.master) {
            Some(master) => link::find(socket, master).map_err(fault)?,
            None => None,
        },
    };
    Ok(named.as_ref().and_then(Domain::of))
}

/// Takes an interface out of whatever it is a port of.
fn leave(socket: &mut Socket, link: &Link) -> Result<(), Error> {
    let alone = link::Change { master: Some(0), ..link::Change::default() };
    match socket.execute(link::change(link.index, &alone)) {
        Err(error) if !error.is_missing() => Err(fault(error)),
        _ => Ok(()),
    }
}

fn find(socket: &mut Socket, name: &str) -> Result<Option<Link>, Error> {
    link::find(socket, name).map_err(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vrf_needs_a_name_that_a_link_can_have() {
        let settings =
            |config: &str| Settings::of(&crate::testing::request(&format!(r#"{{"name": "net"{config}}}"#)));
        let good = settings(r#", "vrfname": "blue", "table": 10"#).unwrap();
        assert_eq!((good.name.as_str(), good.table), ("blue", Some(10)));
        assert_eq!(settings(r#", "vrfname": "blue", "table": 0"#).unwrap().table, None);
        for (config, words) in [
            ("", "configuration is expected to have a valid vrf name"),
            (r#", "vrfname": "much-too-long-a-name""#, "vrfname: "),
            (r#", "vrfname": "blue", "table": -1"#, "table: -1 is out of range"),
        ] {
            let error = settings(config).unwrap_err();
            assert_eq!(error.code, Code::INVALID_CONFIG, "{config}");
            assert!(error.message.contains(words), "{config}: {error}");
        }
    }
}
