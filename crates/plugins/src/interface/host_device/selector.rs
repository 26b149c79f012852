//! Which device is meant: by name, hardware address, path in sysfs, or address on a bus.
//!
//! Read [`Selector`] first. `runtimeConfig.deviceID`, which a device plugin has chosen for this very pod, beats
//! everything; of several keys beside it the first of `device`, `hwaddr`, `kernelpath`, `pciBusID` counts, as in the
//! reference. All are checked, so that a slip in one shows.

use std::io;
use std::path::{Component, Path, PathBuf};

use cni::{Error, Fields, Request};
use kernel::link::{self, Filter, Kind, Link};
use kernel::netlink::Socket;
use netstate::{LinkName, Mac};

use super::sysfs::{Sysfs, is_outside_the_kernel, link_of};
use crate::fault::fault;

/// Which device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Selector {
    /// `device`: its name.
    Name(LinkName),
    /// `hwaddr`: its hardware address.
    Hardware(Mac),
    /// `kernelpath`: its directory below `/sys/devices`.
    Path(PathBuf),
    /// `pciBusID`: its PCI address.
    Pci(String),
    /// `runtimeConfig.deviceID`: its PCI address, or its name on the auxiliary bus.
    Allotted(String),
}

/// What a selector leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Device {
    /// A link, by name where sysfs told it.
    Link(Option<String>),
    /// A device that a program drives.
    OutsideTheKernel,
}

impl Selector {
    /// The configuration's, if it has one.
    ///
    /// # Errors
    /// Code 6 for a key of the wrong type, 7 for a value that cannot be.
    pub(super) fn of(request: &Request) -> Result<Option<Self>, Error> {
        let fields = request.config.fields();
        let runtime = request.config.runtime_config()?;
        let allotted = word(&runtime, "deviceID")?.map(Self::Allotted);
        let name = fields.parse("device")?.map(Self::Name);
        let hardware = hardware_address(&fields)?.map(Self::Hardware);
        let path = kernel_path(&fields)?.map(Self::Path);
        let pci = word(&fields, "pciBusID")?.map(Self::Pci);
        Ok(allotted.or(name).or(hardware).or(path).or(pci))
    }

    /// The same where there has to be one.
    ///
    /// # Errors
    /// Code 7 when there is none, and as [`Selector::of`].
    pub(super) fn required(request: &Request) -> Result<Self, Error> {
        Self::of(request)?.ok_or_else(nothing_selected)
    }

    /// What the selector leads to, as far as sysfs tells.
    ///
    /// # Errors
    /// When there is no such device.
    pub(super) fn device(&self) -> Result<Device, Error> {
        self.device_in(Sysfs::system()).map_err(|error| self.not_found(error))
    }

    fn device_in(&self, sysfs: Sysfs<'_>) -> io::Result<Device> {
        let directory = match self {
            Self::Name(name) => return Ok(Device::Link(Some(name.to_string()))),
            Self::Hardware(_) => return Ok(Device::Link(None)),
            Self::Path(path) => sysfs.place(path),
            Self::Pci(address) => sysfs.pci(address),
            Self::Allotted(id) if sysfs.pci(id).exists() => sysfs.pci(id),
            Self::Allotted(id) => sysfs.auxiliary(id),
        };
        let is_on_pci = match self {
            Self::Pci(_) => true,
            Self::Allotted(id) => sysfs.pci(id).exists(),
            _ => false,
        };
        match is_on_pci && is_outside_the_kernel(&directory)? {
            true => Ok(Device::OutsideTheKernel),
            false => link_of(&directory).map(Some).map(Device::Link),
        }
    }

    /// The host's link.
    ///
    /// # Errors
    /// When there is none, or it is the loopback.
    pub(super) fn find(&self, host: &mut Socket) -> Result<Link, Error> {
        let found = match self.device()? {
            Device::Link(Some(name)) => link::find(host, &name).map_err(fault)?,
            Device::Link(None) => self.find_by_address(host)?,
            Device::OutsideTheKernel => None,
        };
        match found {
            Some(link) if link.is_loopback() => {
                Err(Error::invalid_config(format!("{self}: the loopback cannot be lent")))
            }
            Some(link) => Ok(link),
            None => Err(self.not_found(io::Error::new(io::ErrorKind::NotFound, "no such link on the host"))),
        }
    }

    /// Hardware before what sits on it, for a VLAN or a bridge may have the same address, and a bridge, which cannot
    /// be moved, last; then the oldest.
    fn find_by_address(&self, host: &mut Socket) -> Result<Option<Link>, Error> {
        let Self::Hardware(mac) = self else { return Ok(None) };
        let links = link::list(host, Filter::default()).map_err(fault)?;
        let mut found: Vec<Link> = links.into_iter().filter(|link| link.mac == Some(*mac)).collect();
        found.sort_by_key(|link| {
            (link.kind != Kind::Device, matches!(link.kind, Kind::Bridge { .. }), link.index)
        });
        Ok(found.into_iter().next())
    }

    /// The device's PCI address, if that is how it was selected.
    pub(super) fn pci_address(&self) -> Option<&str> {
        match self {
            Self::Pci(address) => Some(address),
            // On the auxiliary bus names have no colon.
            Self::Allotted(id) => Some(id.as_str()).filter(|id| id.contains(':')),
            Self::Name(_) | Self::Hardware(_) | Self::Path(_) => None,
        }
    }

    fn not_found(&self, cause: io::Error) -> Error {
        Error::kernel(format!("failed to find host device: {self}: {cause}"))
            .with_details("hint: a device that is in a pod already is not on the host")
    }
}

impl std::fmt::Display for Selector {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => write!(formatter, "device {name}"),
            Self::Hardware(mac) => write!(formatter, "hwaddr {mac}"),
            Self::Path(path) => write!(formatter, "kernelpath {}", path.display()),
            Self::Pci(address) => write!(formatter, "pciBusID {address}"),
            Self::Allotted(id) => write!(formatter, "runtimeConfig.deviceID {id}"),
        }
    }
}

/// The reference's words for a configuration that says nothing.
pub(super) fn nothing_selected() -> Error {
    Error::invalid_config(r#"specify either "device", "hwaddr", "kernelpath" or "pciBusID""#)
        .with_details("hint: or have the runtime pass the capability \"deviceID\"")
}

/// A name that is one component of a path.
fn word(fields: &Fields<'_>, key: &str) -> Result<Option<String>, Error> {
    match fields.string(key)? {
        "" => Ok(None),
        text if text.contains('/') || matches!(text, "." | "..") => {
            Err(fields.bad(key, format!("{text:?} is no name of a device on a bus")).into())
        }
        text => Ok(Some(text.to_owned())),
    }
}

fn hardware_address(fields: &Fields<'_>) -> Result<Option<Mac>, Error> {
    match fields.string("hwaddr")? {
        "" => Ok(None),
        text => match text.replace('-', ":").parse() {
            Ok(mac) => Ok(Some(mac)),
            Err(_) => Err(fields.bad("hwaddr", format!("{text:?} is no hardware address")).into()),
        },
    }
}

fn kernel_path(fields: &Fields<'_>) -> Result<Option<PathBuf>, Error> {
    let text = fields.string("kernelpath")?;
    if text.is_empty() {
        return Ok(None);
    }
    let path = Path::new(text);
    let stays = path.components().all(|component| component != Component::ParentDir);
    if path.starts_with("/sys/devices") && path != Path::new("/sys/devices") && stays {
        return Ok(Some(path.to_owned()));
    }
    let reason = format!("{text:?} must be absolute and begin with /sys/devices/");
    Err(fields.bad("kernelpath", reason).into())
}

#[cfg(test)]
mod tests {
    use cni::Code;

    use super::*;

    fn selected(config: &str) -> Result<Option<Selector>, Error> {
        let config = format!(r#"{{"cniVersion": "1.1.0", "name": "net", "type": "host-device", {config}}}"#);
        Selector::of(&crate::testing::request(&config))
    }

    #[test]
    fn each_key_selects_and_what_was_allotted_beats_them() {
        let all = r#""device": "ens1", "hwaddr": "02-00-00-00-00-01", "pciBusID": "0000:01:00.0",
                     "kernelpath": "/sys/devices/pci0000:00/0000:00:03.0""#;
        assert_eq!(selected(all).unwrap(), Some(Selector::Name("ens1".parse().unwrap())));
        let rest = all.replacen("ens1", "", 1);
        assert_eq!(selected(&rest).unwrap(), Some(Selector::Hardware(Mac([2, 0, 0, 0, 0, 1]))));
        let rest = rest.replacen("02-00-00-00-00-01", "", 1);
        let path = PathBuf::from("/sys/devices/pci0000:00/0000:00:03.0");
        assert_eq!(selected(&rest).unwrap(), Some(Selector::Path(path)));
        let pci = r#""pciBusID": "0000:01:00.0", "device": null"#;
        assert_eq!(selected(pci).unwrap(), Some(Selector::Pci("0000:01:00.0".into())));
        let allotted = format!(r#"{all}, "runtimeConfig": {{"deviceID": "mlx5_core.sf.2"}}"#);
        assert_eq!(selected(&allotted).unwrap(), Some(Selector::Allotted("mlx5_core.sf.2".into())));
        assert_eq!(selected(r#""device": """#).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for wrong in [
            r#""device": "a/b""#,
            r#""hwaddr": "zz""#,
            r#""kernelpath": "net/eth0""#,
            r#""kernelpath": "/sys/devices/""#,
            r#""kernelpath": "/sys/devices/../class/net""#,
            r#""kernelpath": "/sys/devicesandmore/x""#,
            r#""pciBusID": "../../devices""#,
            r#""runtimeConfig": {"deviceID": ".."}"#,
        ] {
            let error = selected(wrong).unwrap_err();
            assert_eq!(error.code, Code::INVALID_CONFIG, "{wrong}: {error}");
        }
        assert_eq!(selected(r#""device": 7"#).unwrap_err().code, Code::UNDECODABLE);
    }
}
