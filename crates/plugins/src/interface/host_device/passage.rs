//! The way of a device into a pod, and home again.
//!
//! Read [`lend`] and [`give_back`]. Either is one send, for every move costs a grace period of the kernel. On the
//! way in, the alias is set first and the move follows: the name at home is noted before it is lost. On the way
//! out the device gets its name back while it is still in the pod, so that nobody who watches the host's links
//! (udev, NetworkManager) ever sees the pod's name there.
//!
//! A pod's namespace that goes with the device in it sends hardware home by itself, under the pod's name or, if that
//! is taken, as `devN`; the alias comes along. [`rename_returned`] looks for such a device.

use std::os::fd::AsFd;

use cni::{Error, Request};
use kernel::link::{self, Change, Filter, Kind, Link};
use kernel::netlink::{Batch, Socket};
use kernel::netns::Netns;
use netstate::{LinkName, Mac};

use super::selector::{Device, Selector};
use crate::fault::fault;
use crate::interface::child::{Site, undone_badly};
use crate::interface::pod::Pod;

/// What the kernel calls a device whose name is taken where it comes to; `%d` is the lowest free number.
const ANY_NAME: &str = "dev%d";

/// Moves a device into the pod, under the name asked for. It is down there.
///
/// # Errors
/// When the pod has a link of that name, or the kernel refuses; the device is on the host as it was then.
pub(super) fn lend(site: &mut Site<'_>, device: &Link) -> Result<Link, Error> {
    let name = &site.request.ifname;
    if site.pod.find(name)?.is_some() {
        return Err(Error::kernel(format!("{name} already exists in the pod")));
    }
    let note = Change { alias: Some(&device.name), ..Change::default() };
    let namespace = site.pod.namespace.as_fd();
    let batch = Batch::from_iter([
        link::change(device.index, &note),
        link::relocate(device.index, namespace, Some(name)),
    ]);
    let moved = match site.host.execute(batch) {
        Ok(()) => site.pod.find(name),
        Err(error) => Err(fault(error).context(format!("lend {}", device.name))),
    };
    match moved {
        Ok(Some(link)) => Ok(link),
        Ok(None) => Err(Error::kernel(format!("{name} vanished from the pod while it was set up"))),
        Err(cause) => Err(undo(site, device, cause)),
    }
}

/// Puts a device that was being lent back to where and what it was, wherever the failure has left it.
fn undo(site: &mut Site<'_>, device: &Link, cause: Error) -> Error {
    let mut back = || {
        for name in [&site.request.ifname, &device.name] {
            let is_it = |link: &Link| link.alias.as_ref() == Some(&device.name) && link.mac == device.mac;
            if let Some(link) = site.pod.find(name)?.filter(is_it) {
                give_back(&mut site.host, &mut site.pod, &link)?;
                break;
            }
        }
        restore(&mut site.host, device)
    };
    match back() {
        Ok(()) => cause,
        Err(failure) => undone_badly(cause, &failure),
    }
}

/// Gives a device that is on the host under its name the alias and the state back that it had.
pub(super) fn restore(host: &mut Socket, device: &Link) -> Result<(), Error> {
    let alias = device.alias.as_deref().unwrap_or_default();
    let up = device.is_up().then_some(true);
    let change = Change { alias: Some(alias), up, ..Change::default() };
    host.execute(link::change(&device.name, &change)).map_err(fault)
}

/// Brings a device home, under the name that its alias tells. It is down there, without an alias.
///
/// # Errors
/// When the name is taken on the host by now: the device is home all the same, under another name, and its alias
/// still tells the right one. Otherwise when the kernel refuses; the device stays in the pod then.
pub(super) fn give_back(host: &mut Socket, pod: &mut Pod, device: &Link) -> Result<(), Error> {
    let home = Netns::current().map_err(fault)?;
    let name = name_at_home(device).unwrap_or(&device.name);
    if link::find(host, name).map_err(fault)?.is_some() {
        return give_back_nameless(host, pod, device, name);
    }
    let context =
        |error: kernel::Error| fault(error).context(format!("bring {} home as {name}", device.name));
    let down = Change { up: Some(false), ..Change::default() };
    let clear = Change { alias: Some(""), ..Change::default() };
    if name != device.name && pod.find(name)?.is_some() {
        // The pod has another link of that name: the device can have it only on the host.
        let request = link::relocate(device.index, home.as_fd(), Some(name));
        pod.socket().execute(request).map_err(context)?;
        return host.execute(link::change(name, &clear)).map_err(context);
    }
    let mut batch = Batch::from(link::change(device.index, &down));
    if name != device.name {
        batch.push(link::rename(device.index, name));
    }
    batch.push(link::change(device.index, &clear));
    batch.push(link::relocate(device.index, home.as_fd(), None));
    let failures = pod.socket().run(&batch, |_, _| Ok(())).map_err(context)?;
    let Some(failure) = failures.into_iter().next() else { return Ok(()) };
    note_again(host, pod, device, name);
    Err(context(failure.error))
}

/// After a way home that was barred midway: the device is still in the pod or under a wrong name on the host, and
/// its name must not be forgotten.
fn note_again(host: &mut Socket, pod: &mut Pod, device: &Link, name: &str) {
    let note = Change { alias: Some(name), ..Change::default() };
    if pod.socket().execute(link::change(device.index, &note)).is_ok() {
        let _ = pod.socket().execute(link::rename(device.index, &device.name));
    } else if let Ok(Some(stray)) = link::find(host, &device.name)
        && stray.mac == device.mac
    {
        let _ = host.execute(link::change(stray.index, &note));
    }
}

/// Brings a device home although its name is taken there: any name is better than a namespace that may go.
fn give_back_nameless(host: &mut Socket, pod: &mut Pod, device: &Link, name: &str) -> Result<(), Error> {
    let home = Netns::current().map_err(fault)?;
    let note = Change { alias: Some(name), ..Change::default() };
    let batch = Batch::from_iter([
        link::change(device.index, &note),
        link::relocate(device.index, home.as_fd(), Some(ANY_NAME)),
    ]);
    pod.socket().execute(batch).map_err(|error| fault(error).context(format!("bring {name} home")))?;
    let links = link::list(host, Filter::default()).map_err(fault)?;
    let is_it = |link: &&Link| link.alias.as_deref() == Some(name) && link.mac == device.mac;
    let called = links.iter().find(is_it).map_or(ANY_NAME, |link| &link.name);
    let text = format!("the host has another link called {name} by now: the device is home as {called}");
    Err(Error::kernel(text)
        .with_details(format!("hint: its alias is {name}; rename it when the name is free")))
}

/// The name that a device had on the host, as its alias tells; `None` if that is no name.
pub(super) fn name_at_home(device: &Link) -> Option<&str> {
    let alias = device.alias.as_deref()?;
    // The kernel takes a `%` for a place to put a number.
    let is_name = alias.parse::<LinkName>().is_ok() && !alias.contains('%');
    is_name.then_some(alias)
}

/// The device that was lent to this attachment's pod, if it is there. Without the note of its name at home it
/// must be hardware, or the very device that the configuration or the result names: the link may be anybody's.
/// And where the device that the configuration names is at home, the one in the pod is another network's, whose
/// name for it made this one's ADD fail, unless the result lists it.
pub(super) fn lent_to(host: &mut Socket, pod: &mut Pod, request: &Request) -> Result<Option<Link>, Error> {
    let Some(link) = pod.find(&request.ifname)? else { return Ok(None) };
    let known = Known::of(request);
    if let Some(home) = name_at_home(&link) {
        let is_listed = link.mac.is_some() && link.mac == known.listed_mac;
        let other = known.name.as_deref().filter(|name| *name != home && !is_listed);
        let at_home = other.map(|name| link::find(host, name).map_err(fault)).transpose()?.flatten();
        return Ok(at_home.is_none().then_some(link));
    }
    let is_it = link.kind == Kind::Device
        || (link.mac.is_some() && (link.mac == known.listed_mac || link.mac == known.mac));
    let alias = known.name.clone();
    Ok(is_it.then(|| Link { alias: alias.or(link.alias.clone()), ..link }))
}

/// Gives a device that the kernel has brought home its name back, if it can be told from others and its name is
/// free. That there is none is a success.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn rename_returned(host: &mut Socket, request: &Request) -> Result<(), Error> {
    let known = Known::of(request);
    if known.says_nothing() {
        return Ok(());
    }
    let links = link::list(host, Filter::default()).map_err(fault)?;
    let Some(device) = links.iter().find(|link| known.returned(link)) else { return Ok(()) };
    let name = name_at_home(device).unwrap_or_default();
    if links.iter().any(|link| link.name == name) {
        return Ok(());
    }
    let down = Change { up: Some(false), ..Change::default() };
    let clear = Change { alias: Some(""), ..Change::default() };
    let batch = Batch::from_iter([
        link::change(device.index, &down),
        link::rename(device.index, name),
        link::change(device.index, &clear),
    ]);
    host.execute(batch).map_err(|error| fault(error).context(format!("rename {} to {name}", device.name)))
}

/// What is known of an attachment's device when it is not where it was put.
#[derive(Debug, Default)]
struct Known {
    /// Its name at home.
    name: Option<String>,
    /// Its hardware address by the configuration.
    mac: Option<Mac>,
    /// Its hardware address by the result.
    listed_mac: Option<Mac>,
    /// What sysfs calls it now.
    present_name: Option<String>,
    /// What it was called in the pod; empty if that is not known.
    name_in_pod: String,
}

impl Known {
    fn of(request: &Request) -> Self {
        let previous = request.config.prev_result().ok().flatten();
        let listed = previous.as_ref().and_then(|result| {
            let mut inside = result.interfaces.iter().filter(|interface| !interface.sandbox.is_empty());
            inside.find(|interface| interface.name == request.ifname)
        });
        let known = Self {
            listed_mac: listed.and_then(|interface| interface.mac.parse().ok()),
            name_in_pod: request.ifname.clone(),
            ..Self::default()
        };
        match Selector::of(request).ok().flatten() {
            Some(Selector::Name(name)) => Self { name: Some(name.to_string()), ..known },
            Some(Selector::Hardware(mac)) => Self { mac: Some(mac), ..known },
            Some(other) => match other.device() {
                Ok(Device::Link(name)) => Self { present_name: name, ..known },
                _ => known,
            },
            None => known,
        }
    }

    fn says_nothing(&self) -> bool {
        self.name.is_none() && self.mac.is_none() && self.listed_mac.is_none() && self.present_name.is_none()
    }

    /// Whether a link of the host is the device: hardware whose alias tells another name than it has, which it got
    /// in the pod or from the kernel; and the very device, for people give links aliases too.
    fn returned(&self, link: &Link) -> bool {
        let Some(home) = name_at_home(link).filter(|home| *home != link.name) else { return false };
        let configured = self.name.as_deref() == Some(home);
        let is_it = configured
            || (link.mac.is_some() && (link.mac == self.mac || link.mac == self.listed_mac))
            || self.present_name.as_ref() == Some(&link.name);
        let renamed = configured || link.name == self.name_in_pod || is_kernels_choice(&link.name);
        link.kind == Kind::Device && !link.is_loopback() && is_it && renamed
    }
}

/// Whether the kernel gives such a name when it brings a device home and the pod's name is taken.
fn is_kernels_choice(name: &str) -> bool {
    name.strip_prefix("dev").is_some_and(|number| number.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use kernel::link::OperationalState;

    use super::*;

    fn link(name: &str, alias: Option<&str>, kind: Kind, last: u8) -> Link {
        Link {
            index: 7,
            name: name.to_owned(),
            kind,
            mac: Some(Mac([2, 0, 0, 0, 0, last])),
            mtu: 1500,
            flags: 0,
            operational_state: OperationalState::Down,
            master: None,
            parent: None,
            peer_namespace: None,
            alias: alias.map(str::to_owned),
            transmit_queue_length: 1000,
            promiscuity: 0,
            group: 0,
            ipv6: None,
            port: None,
        }
    }

    #[test]
    fn hardware_that_the_kernel_brought_home_is_known_by_its_alias() {
        let hardware = |name: &str, alias: Option<&str>| link(name, alias, Kind::Device, 1);
        let by_name = Known { name: Some("ens1".into()), name_in_pod: "net1".into(), ..Known::default() };
        assert!(by_name.returned(&hardware("net1", Some("ens1"))));
        assert!(by_name.returned(&hardware("dev7", Some("ens1"))));
        assert!(!by_name.returned(&hardware("net1", None)), "nothing tells its name");
        assert!(!by_name.returned(&hardware("ens1", Some("ens1"))), "it has its name");
        assert!(!by_name.returned(&hardware("net1", Some("ens2"))), "another device");
        assert!(!by_name.returned(&link("net1", Some("ens1"), Kind::Veth, 1)), "not hardware");
    }

    #[test]
    fn an_alias_that_people_gave_renames_nothing() {
        let by_address =
            Known { mac: Some(Mac([2, 0, 0, 0, 0, 1])), name_in_pod: "net1".into(), ..Known::default() };
        let uplink = link("ens1", Some("uplink"), Kind::Device, 1);
        assert!(!by_address.returned(&uplink));
        assert!(by_address.returned(&link("net1", Some("ens1"), Kind::Device, 1)));
        assert!(by_address.returned(&link("dev4", Some("ens1"), Kind::Device, 1)));
        assert!(!by_address.returned(&link("dev4", Some("ens1"), Kind::Device, 2)));
        assert!(Known { name_in_pod: "net1".into(), ..Known::default() }.says_nothing());
    }

    #[test]
    fn an_alias_that_is_no_name_tells_none() {
        assert_eq!(name_at_home(&link("net1", Some("fairlead:net/c/net1"), Kind::Veth, 1)), None);
        assert_eq!(name_at_home(&link("net1", Some(""), Kind::Veth, 1)), None);
        assert_eq!(name_at_home(&link("net1", Some("dev%d"), Kind::Veth, 1)), None);
        assert_eq!(name_at_home(&link("net1", Some("ens1"), Kind::Veth, 1)), Some("ens1"));
    }
}
