//! Where an attachment is: a link in a namespace, found again later without being held on to.
//!
//! Read [`Place`]. The daemon keeps no descriptor in a pod's namespace while it has nothing to say there, for
//! that would keep the namespace alive when the pod has gone. It remembers the path and the namespace's
//! identity, and whoever has the path later is somebody else if the identity differs: paths, process ids and
//! inodes are used again, the kernel's cookie is not.

use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};

use cni::{AddResult, Error, Fields, Json};
use ipnet::IpNet;
use kernel::address::{self, NewAddress};
use kernel::link::{self, Change, Kind, Link};
use kernel::netlink::{Batch, Protocol};
use kernel::netns::Netns;
use kernel::{Family, route, sysctl};

use super::machine::Given;
use crate::fault::fault;
use crate::interface::pod;

/// A link in a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The namespace's path on the host; a daemon in a container sees the host's files behind its prefix.
    host_path: PathBuf,
    /// The same path, as this process sees it.
    path: PathBuf,
    /// The link's index.
    pub(crate) link: u32,
    /// The namespace's file, and the number that is never used again where the kernel tells it.
    device: u64,
    inode: u64,
    cookie: Option<u64>,
}

impl Place {
    /// The link called `ifname` in the namespace that has this path on the host, whose files are behind `prefix`.
    ///
    /// # Errors
    /// Code 8 when there is no such namespace, 101 when it has no such link.
    pub(crate) fn find(prefix: &str, host_path: &Path, ifname: &str) -> Result<(Self, Link), Error> {
        let path = behind(prefix, host_path);
        let namespace = Netns::open(&path).map_err(fault)?;
        let mut socket = namespace.socket(Protocol::Route).map_err(fault)?;
        let link = link::find(&mut socket, ifname).map_err(fault)?;
        let link = link.ok_or_else(|| Error::kernel(format!("{ifname} is not in the namespace {path:?}")))?;
        let (device, inode, cookie) = identify(&namespace)?;
        let host_path = host_path.to_owned();
        Ok((Self { host_path, path, link: link.index, device, inode, cookie }, link))
    }

    /// The namespace, if it still is the one, and the link still there.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub(crate) fn open(&self) -> Result<Option<(Netns, Link)>, Error> {
        let namespace = match Netns::open(&self.path) {
            Ok(namespace) => namespace,
            Err(kernel::Error::NamespaceMissing { .. } | kernel::Error::NotANamespace { .. }) => {
                return Ok(None);
            }
            Err(error) => return Err(fault(error)),
        };
        if identify(&namespace)? != (self.device, self.inode, self.cookie) {
            return Ok(None);
        }
        let mut socket = namespace.socket(Protocol::Route).map_err(fault)?;
        let link = link::find(&mut socket, self.link).map_err(fault)?;
        Ok(link.map(|link| (namespace, link)))
    }

    /// Whether the path still leads to the namespace's file: answered without entering it. When that cannot be
    /// told, it does.
    pub(crate) fn has_namespace(&self) -> bool {
        match Netns::open(&self.path).and_then(|namespace| namespace.identity()) {
            Ok(identity) => (identity.device, identity.inode) == (self.device, self.inode),
            Err(kernel::Error::NamespaceMissing { .. } | kernel::Error::NotANamespace { .. }) => false,
            Err(_) => true,
        }
    }

    /// Sets the link up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn set_up(&self, namespace: &Netns) -> Result<(), Error> {
        let up = Change { up: Some(true), ..Change::default() };
        let mut socket = namespace.socket(Protocol::Route).map_err(fault)?;
        socket.execute(link::change(self.link, &up)).map_err(fault)
    }

    /// Gives the link what `after` has, and takes away what only `before` had. What the kernel refuses does not
    /// keep the rest from being done.
    ///
    /// # Errors
    /// All refusals.
    pub(crate) fn change(&self, before: &Given, after: &Given) -> Result<(), Error> {
        let Some((namespace, _)) = self.open()? else { return Ok(()) };
        let mut socket = namespace.socket(Protocol::Route).map_err(fault)?;
        let (old, new) = (Wanted::of(before, self.link), Wanted::of(after, self.link));
        let mut batch = Batch::new();
        let fresh = |address: &&IpNet| !old.addresses.contains(address);
        batch.extend(
            new.addresses.iter().filter(fresh).map(|net| address::add(&NewAddress::new(self.link, *net))),
        );
        let stale = old.routes.iter().filter(|route| !new.routes.contains(route));
        batch.extend(stale.map(route::delete));
        let stale = old.addresses.iter().filter(|address| !new.addresses.contains(address));
        batch.extend(stale.map(|net| address::delete(self.link, *net)));
        // All of them: with its last address a link loses every route.
        batch.extend(new.routes.iter().map(route::replace));
        let refused = socket.run(&batch, |_, _| Ok(())).map_err(fault)?;
        let mattering = refused.into_iter().map(|failure| failure.error);
        let errors = mattering.filter(|error| !error.is_missing() && !error.exists()).map(fault);
        Error::join(errors.collect()).map_or(Ok(()), Err)
    }

    /// Makes the link ready for DHCPv6: the kernel speaks IPv6 on it and does not configure it by itself. On a link
    /// that is `fresh`, what the kernel has made of advertisements by now goes again; and where it is the end of a
    /// cable its own address is there at once, unless duplicates are to be looked for. Other kinds stand in a
    /// network with neighbours whom nobody here knows.
    ///
    /// # Errors
    /// When the kernel has no IPv6, or refuses.
    pub(crate) fn prepare_ipv6(&self, fresh: bool, detect_duplicates: bool) -> Result<(), Error> {
        let Some((namespace, link)) = self.open()? else { return Ok(()) };
        let _inside = namespace.enter().map_err(fault)?;
        if !sysctl::has_ipv6() {
            let error = Error::kernel("DHCPv6 needs IPv6, which this kernel has not");
            return Err(error.with_details("hint: CONFIG_IPV6, and no ipv6.disable=1 on its command line"));
        }
        let of_link = |key: &str| format!("net/ipv6/conf/{}/{key}", link.name);
        let set = |path: &str, value: &str| sysctl::set(path, value).map_err(fault);
        if fresh {
            set(&of_link("disable_ipv6"), "1")?;
        }
        set(&of_link("accept_ra"), "0")?;
        set(&of_link("autoconf"), "0")?;
        if fresh && !detect_duplicates && link.kind == Kind::Veth {
            set(&of_link("accept_dad"), "0")?;
        }
        set("net/ipv6/conf/lo/disable_ipv6", "0")?;
        set(&of_link("disable_ipv6"), "0").map(drop)
    }

    /// Gives the addresses that are there the ends that the lease has, in seconds: preferred, valid. One that is
    /// not there stays away: whoever took it knew why. Gives those that somebody else on the link has, too.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn end_addresses(&self, ends: &[(Ipv6Addr, u32, u32)]) -> Result<Vec<Ipv6Addr>, Error> {
        let Some((namespace, _)) = self.open()? else { return Ok(Vec::new()) };
        let mut socket = namespace.socket(Protocol::Route).map_err(fault)?;
        let there = address::list(&mut socket, Some(self.link), Some(Family::V6)).map_err(fault)?;
        let (mut batch, mut duplicates) = (Batch::new(), Vec::new());
        for (own, preferred, valid) in ends {
            let Some(found) = there.iter().find(|found| found.net.addr() == IpAddr::V6(*own)) else {
                continue;
            };
            if found.is_duplicate() {
                duplicates.push(*own);
            } else if *valid != 0 {
                let lifetimes = Some((*preferred, *valid));
                batch.extend([address::replace(&NewAddress { lifetimes, ..found.as_new() })]);
            }
        }
        socket.execute(batch).map_err(fault)?;
        Ok(duplicates)
    }

    /// For the lease's file.
    pub(crate) fn save(&self) -> Json {
        Json::object([
            ("path", Json::from(&*self.host_path.to_string_lossy())),
            ("link", Json::from(self.link)),
            ("device", Json::from(self.device)),
            ("inode", Json::from(self.inode)),
            ("cookie", self.cookie.map_or(Json::Null, Json::from)),
        ])
    }

    /// What [`Self::save`] wrote, for a process that sees the host's files behind `prefix`.
    pub(crate) fn restore(saved: &Fields<'_>, prefix: &str) -> Option<Self> {
        let host_path = PathBuf::from(saved.string("path").ok()?);
        Some(Self {
            path: behind(prefix, &host_path),
            host_path,
            link: saved.integer("link").ok()?,
            device: saved.integer("device").ok()?,
            inode: saved.integer("inode").ok()?,
            cookie: saved.optional_integer("cookie").ok()?,
        })
    }
}

/// Addresses and routes as the kernel has them.
struct Wanted {
    addresses: Vec<IpNet>,
    routes: Vec<route::Route>,
}

impl Wanted {
    fn of(given: &Given, link: u32) -> Self {
        let result =
            AddResult { ips: given.ips.clone(), routes: given.routes.clone(), ..AddResult::default() };
        Self {
            addresses: given.ips.iter().map(|ip| ip.address).collect(),
            routes: pod::routes(&result, link),
        }
    }
}

/// A path of the host as a process sees it for which the host's files stand behind `prefix`.
pub(crate) fn behind(prefix: &str, host_path: &Path) -> PathBuf {
    let mut path = std::ffi::OsString::from(prefix);
    path.push(host_path);
    path.into()
}

fn identify(namespace: &Netns) -> Result<(u64, u64, Option<u64>), Error> {
    let identity = namespace.identity().map_err(fault)?;
    Ok((identity.device, identity.inode, namespace.cookie().map_err(fault)?))
}
