//! `tap`: an interface of the pod whose far end is a program, such as a virtual machine's.
//!
//! Read [`Tap`] first, then [`Settings`], what is asked for; the rest is the common life of [`super::child`]. The
//! device is made by opening the kernel's device file inside the pod ([`kernel::tap`]), under its final name; no
//! tool is needed.
//!
//! Sources: the reference plugin's documented keys and observed behaviour; `Documentation/networking/tuntap.rst`.

use cni::{AddResult, Error, Plugin, Request};
use kernel::link::{self, Change, Kind, Link};
use kernel::tap::{self, NewTap};
use netstate::{LinkName, Mac};

use super::bridge::config::mtu;
use super::child::{self, Addresses, Child, Site, Terms, undone_badly};
use super::mac;
use crate::fault::fault;
use crate::owner::Owner;

const NAME: &str = "tap";

/// The kernel's name for the kind.
const KIND: &str = "tun";

/// The plugin.
#[derive(Debug)]
pub struct Tap;

impl Plugin for Tap {
    fn name(&self) -> &'static str {
        NAME
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let (terms, settings) = (terms(request)?, Settings::of(request)?);
        require_selinux(&settings)?;
        child::add(request, &settings, &terms)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        child::del(request, KIND)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        child::check(request, &Settings::of(request)?, &terms(request)?)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        child::gc(request)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        child::status(request, ready(request))
    }
}

/// Nobody else can have the pod's addresses: at the far end is one program.
fn terms(request: &Request) -> Result<Terms, Error> {
    Ok(Terms { addresses: Addresses::optional(request)?, detect_duplicates: false })
}

fn ready(request: &Request) -> Result<Terms, Error> {
    require_selinux(&Settings::of(request)?)?;
    if !std::path::Path::new(tap::DEVICE).exists() {
        return Err(Error::kernel(format!("{} is not there", tap::DEVICE)).with_details(HINT));
    }
    terms(request)
}

const HINT: &str = "hint: the kernel needs CONFIG_TUN, built in or as the module tun, loaded";

/// What a configuration asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Settings {
    /// `multiQueue`: several programs may hold it.
    multi_queue: bool,
    /// `owner`: the user who may hold it.
    owner: Option<u32>,
    /// `group`: the group who may hold it.
    group: Option<u32>,
    /// `mtu`, in bytes; `None` leaves the kernel's choice.
    mtu: Option<u32>,
    /// The hardware address; `None` leaves the kernel's choice.
    mac: Option<Mac>,
    /// `selinuxContext`: the label it is made with.
    label: Option<String>,
    /// `bridge`: a bridge of the pod that it becomes a port of.
    bridge: Option<LinkName>,
}

impl Settings {
    fn of(request: &Request) -> Result<Self, Error> {
        let fields = request.config.fields();
        Ok(Self {
            multi_queue: fields.bool("multiQueue")?,
            owner: fields.optional_integer("owner")?,
            group: fields.optional_integer("group")?,
            mtu: mtu(&fields)?,
            mac: mac::requested(request, true)?,
            label: Some(fields.string("selinuxContext")?.to_owned()).filter(|label| !label.is_empty()),
            bridge: fields.parse("bridge")?,
        })
    }

    /// The pod's bridge that the device becomes a port of, by index.
    fn bridge_in(&self, site: &mut Site<'_>) -> Result<Option<u32>, Error> {
        let Some(name) = self.bridge else { return Ok(None) };
        match site.pod.find(name.as_str())? {
            Some(Link { index, kind: Kind::Bridge { .. }, .. }) => Ok(Some(index)),
            Some(_) => Err(Error::invalid_config(format!("bridge: {name} in the pod is not a bridge"))),
            None => Err(Error::invalid_config(format!("bridge: there is no bridge {name} in the pod"))
                .with_details("hint: it is looked for in the pod's namespace, not in the host's")),
        }
    }

    fn create(&self, site: &Site<'_>) -> Result<(), Error> {
        let new = NewTap {
            name: &site.request.ifname,
            multi_queue: self.multi_queue,
            owner: self.owner,
            group: self.group,
        };
        let _inside = site.pod.namespace.enter().map_err(fault)?;
        let made = match &self.label {
            None => tap::create(&new),
            Some(label) => tap::create_labelled(&new, label),
        };
        made.map_err(|error| match error.is_missing() {
            true => fault(error).with_details(HINT),
            false => fault(error),
        })
    }

    /// Sets what the device is not made with, and marks it.
    fn furnish(&self, site: &mut Site<'_>, master: Option<u32>) -> Result<Link, Error> {
        let name = &site.request.ifname;
        let alias = Owner::of(site.request).alias();
        let change =
            Change { mtu: self.mtu, mac: self.mac, master, alias: Some(&alias), ..Change::default() };
        let found = site.pod.find(name)?;
        let link =
            found.ok_or_else(|| Error::kernel(format!("{name} vanished from the pod while it was made")))?;
        site.pod.socket().execute(link::change(link.index, &change)).map_err(fault)?;
        Ok(link)
    }
}

impl Child for Settings {
    fn make(&self, site: &mut Site<'_>) -> Result<Link, Error> {
        let name = &site.request.ifname;
        if site.pod.find(name)?.is_some() {
            return Err(Error::kernel(format!("{name} already exists in the pod")));
        }
        let master = self.bridge_in(site)?;
        self.create(site)?;
        self.furnish(site, master).map_err(|cause| {
            match site.pod.socket().execute(link::delete(name)).map_err(fault) {
                Ok(()) => cause,
                Err(failure) => undone_badly(cause, &failure),
            }
        })
    }

    fn difference(&self, site: &mut Site<'_>, link: &Link) -> Result<Option<String>, Error> {
        let name = &link.name;
        let Kind::Tun { tap: true, multi_queue, owner, group } = link.kind else {
            return Ok(Some(format!("{name} in the pod is no longer a TAP device")));
        };
        let master = self.bridge_in(site)?;
        let text = |what: &str| Some(format!("{name} does not have the {what} that is configured"));
        Ok(match self {
            _ if multi_queue != self.multi_queue => text("multiQueue"),
            _ if self.owner.is_some() && owner != self.owner => text("owner"),
            _ if self.group.is_some() && group != self.group => text("group"),
            _ if self.mtu.is_some_and(|mtu| mtu != link.mtu) => text("mtu"),
            _ if master.is_some() && link.master != master => text("bridge"),
            _ => None,
        })
    }
}

/// A label that nobody would look at is a mistake; better told than passed over.
fn require_selinux(settings: &Settings) -> Result<(), Error> {
    match &settings.label {
        Some(label) if !tap::has_selinux() => {
            Err(Error::kernel(format!("selinuxContext: {label:?}: the running kernel has no SELinux"))
                .with_details("hint: leave the key out, or start a kernel with CONFIG_SECURITY_SELINUX"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use cni::Code;

    use super::*;

    fn settings(config: &str) -> Result<Settings, Error> {
        let config = format!(r#"{{"cniVersion": "1.1.0", "name": "net", "type": "tap", {config}}}"#);
        Settings::of(&crate::testing::request(&config))
    }

    #[test]
    fn every_key_is_read_and_root_is_told_from_nobody() {
        let read = settings(
            r#""multiQueue": true, "owner": 0, "group": 1001, "mtu": 9000, "mac": "02:00:00:00:00:01",
               "selinuxContext": "system_u:system_r:container_t:s0", "bridge": "br0""#,
        );
        let expected = Settings {
            multi_queue: true,
            owner: Some(0),
            group: Some(1001),
            mtu: Some(9000),
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
            label: Some("system_u:system_r:container_t:s0".into()),
            bridge: Some("br0".parse().unwrap()),
        };
        assert_eq!(read.unwrap(), expected);
        let nothing = r#""owner": null, "mtu": 0, "mac": "", "selinuxContext": "", "bridge": """#;
        assert_eq!(settings(nothing).unwrap(), Settings::default());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (wrong, code) in [
            (r#""owner": -1"#, Code::INVALID_CONFIG),
            (r#""group": 4294967296"#, Code::INVALID_CONFIG),
            (r#""owner": "root""#, Code::UNDECODABLE),
            (r#""mtu": 70000"#, Code::INVALID_CONFIG),
            (r#""mac": "01:00:00:00:00:01""#, Code::INVALID_CONFIG),
            (r#""bridge": "a/b""#, Code::INVALID_CONFIG),
            (r#""multiQueue": 1"#, Code::UNDECODABLE),
        ] {
            assert_eq!(settings(wrong).unwrap_err().code, code, "{wrong}");
        }
    }
}
