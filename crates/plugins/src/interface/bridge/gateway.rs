//! The gateway of a VLAN: a device of its own, `<bridge>.<vlan>`, plugged into the bridge by a cable that lies
//! wholly on the host, because an address on the bridge itself would be in every VLAN.
//!
//! Read [`ensure`] and [`release`]. The device is made by the first pod of the VLAN and removed with the last
//! one. Both happen under a lock on the host's network namespace, so that a pod that comes while the last one
//! goes does not lose its gateway. The lock is an flock on the namespace's own file: nothing on disk, nothing
//! that outlives its holder.

use std::fs::File;

use cni::Error;
use kernel::link::{self, Change, Filter, Kind, Link, NewKind, NewLink, NewPeer, Vlan, VlanSide};
use kernel::netlink::{Batch, Socket};
use netstate::LinkName;
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use super::device::{Device, random_mac};
use crate::fault::fault;
use crate::interface::veth;
use crate::owner::{VLAN_GATEWAY_ALIAS, hexadecimal};

/// The calling thread's network namespace.
const NAMESPACE: &str = "/proc/thread-self/ns/net";
/// A new port's VLANs are whatever the bridge gives it by default; this takes them all away.
pub(super) const EVERY_VLAN: Vlan = Vlan { first: 1, last: 4094, pvid: false, untagged: false };

/// The name of the gateway device.
///
/// # Errors
/// Code 7 when it would be too long for a link.
pub(super) fn name(bridge: LinkName, vlan: u16) -> Result<LinkName, Error> {
    let name = format!("{bridge}.{vlan}");
    name.parse().map_err(|_| {
        Error::invalid_config(format!(
            "the gateway device of VLAN {vlan} would be called {name:?}, which is too long"
        ))
        .with_details("hint: give the bridge a shorter name")
    })
}

/// Finds or makes the gateway device of `vlan`.
///
/// # Errors
/// Code 7 when something else has its name; otherwise when the kernel refuses.
pub(super) fn ensure(host: &mut Socket, bridge: &Device, vlan: u16, mtu: Option<u32>) -> Result<Link, Error> {
    let _lock = lock()?;
    let bridge_name =
        bridge.link.name.parse().map_err(|error: netstate::Error| Error::internal(error.to_string()))?;
    let name = name(bridge_name, vlan)?;
    let port = port_name(bridge_name, vlan);
    if link::find(host, name.as_str()).map_err(fault)?.is_none() {
        let peer = NewPeer { mtu, ..NewPeer::new(&port) };
        let new =
            NewLink { mtu, mac: Some(random_mac()), ..NewLink::new(name.as_str(), NewKind::Veth(peer)) };
        host.execute(link::create(&new)).map_err(fault)?;
        let mark = Change { alias: Some(VLAN_GATEWAY_ALIAS), ..Change::default() };
        let marks: Batch = [name.as_str(), &port].map(|end| link::change(end, &mark)).into_iter().collect();
        host.execute(marks).map_err(fault)?;
    }
    let device = end(host, name.as_str())?;
    let port = end(host, &port)?;
    veth::refuse_advertisements(name.as_str())?;
    let up = Change { up: Some(true), ..Change::default() };
    let mut batch = Batch::new();
    if port.master != Some(bridge.link.index) {
        batch.push(link::change(port.index, &Change { master: Some(bridge.link.index), ..up }));
        batch.push(link::delete_vlans(port.index, VlanSide::Port, &[EVERY_VLAN]));
    }
    batch.push(link::add_vlans(port.index, VlanSide::Port, &[Vlan::access(vlan)]));
    batch.push(link::change(device.index, &up));
    host.execute(batch).map_err(fault)?;
    Ok(device)
}

/// Removes the gateway device of `vlan` when no pod is in it any more. That there is none is a success.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn release(host: &mut Socket, bridge: LinkName, vlan: u16) -> Result<(), Error> {
    let Ok(name) = name(bridge, vlan) else { return Ok(()) };
    let is_ours = |link: &Link| link.alias.as_deref() == Some(VLAN_GATEWAY_ALIAS);
    if link::find(host, name.as_str()).map_err(fault)?.filter(is_ours).is_none() {
        return Ok(());
    }
    let _lock = lock()?;
    let Some(device) = link::find(host, name.as_str()).map_err(fault)?.filter(is_ours) else { return Ok(()) };
    if in_use(host, bridge, vlan, &port_name(bridge, vlan))? {
        return Ok(());
    }
    veth::delete(host, device.index)
}

/// Whether a pod's port, and not only the gateway's own, carries the VLAN.
fn in_use(host: &mut Socket, bridge: LinkName, vlan: u16, own: &str) -> Result<bool, Error> {
    let Some(bridge) = link::find(host, bridge.as_str()).map_err(fault)? else { return Ok(false) };
    let ports = Filter { master: Some(bridge.index), kind: Some("veth") };
    let ports = link::list(host, ports).map_err(fault)?;
    let vlans = link::list_vlans(host).map_err(fault)?;
    let carries = |port: &Link| {
        let mut own = vlans.iter().filter(|found| found.index == port.index).flat_map(|found| &found.vlans);
        own.any(|found| (found.first..=found.last).contains(&vlan))
    };
    Ok(ports.iter().any(|port| port.name != own && carries(port)))
}

/// One end of the gateway's cable, if it is ours.
fn end(host: &mut Socket, name: &str) -> Result<Link, Error> {
    let found = link::find(host, name).map_err(fault)?;
    let Some(link) = found else { return Err(Error::kernel(format!("{name} vanished while it was set up"))) };
    // No mark yet: an earlier plugin was killed before it could set it.
    let ours = link.alias.as_deref().is_none_or(|alias| alias == VLAN_GATEWAY_ALIAS);
    if link.kind == Kind::Veth && ours {
        return Ok(link);
    }
    Err(Error::invalid_config(format!("{name:?} already exists but is not a VLAN's gateway device")))
}

/// The gateway's port on the bridge.
fn port_name(bridge: LinkName, vlan: u16) -> String {
    let digest = Sha256::digest(format!("gateway of VLAN {vlan} on {bridge}").as_bytes());
    format!("veth{}", hexadecimal(&digest[..4]))
}

/// Locks the namespace against other plugins until the value is dropped.
fn lock() -> Result<File, Error> {
    let failed = |error: std::io::Error| Error::io(format!("cannot lock {NAMESPACE}: {error}"));
    let file = File::open(NAMESPACE).map_err(failed)?;
    flock(&file, FlockOperation::LockExclusive).map_err(|errno| failed(errno.into()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_called_after_bridge_and_vlan() {
        assert_eq!(name("cni0".parse().unwrap(), 100).unwrap().as_str(), "cni0.100");
        let error = name("eleven-byte".parse().unwrap(), 4094).unwrap_err();
        assert!(error.message.contains("eleven-byte.4094"), "{error}");
        assert_ne!(port_name("cni0".parse().unwrap(), 100), port_name("cni0".parse().unwrap(), 101));
    }
}
