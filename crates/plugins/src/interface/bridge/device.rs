//! The bridge itself: found or made, set as configured, and given its gateway addresses.
//!
//! Read [`Device::ensure`] first. Hundreds of pods may want the same bridge at the same moment, so every step
//! tolerates that somebody else has just done it, and does what an earlier plugin was killed before doing.
//! The bridge gets its hardware address at birth: left to the kernel, it would change with the ports.
//! It is never deleted: whoever plugged something else into it must not lose it.

use std::hash::{BuildHasher, RandomState};

use cni::Error;
use ipnet::IpNet;
use kernel::address::{self, NewAddress};
use kernel::link::{self, Change, Kind, Link, NewBridge, NewKind, NewLink};
use kernel::netlink::{Batch, Socket};
use netstate::Mac;

use super::config::BridgeConfig;
use crate::fault::fault;
use crate::interface::pod::only_family;
use crate::interface::veth;
use crate::owner::BRIDGE_ALIAS;

/// A bridge, ready for pods.
#[derive(Debug, Clone)]
pub(super) struct Device {
    /// What the kernel says about it.
    pub(super) link: Link,
}

impl Device {
    /// Finds or makes the bridge that the configuration names.
    ///
    /// # Errors
    /// Code 7 when the name belongs to something else, or the bridge cannot be what it should.
    pub(super) fn ensure(host: &mut Socket, config: &BridgeConfig) -> Result<Self, Error> {
        let name = config.bridge.as_str();
        let link = match link::find(host, name).map_err(fault)? {
            Some(link) => link,
            None => make(host, config)?,
        };
        let Kind::Bridge { vlan_filtering } = link.kind else { return Err(not_a_bridge(name)) };
        let ours = link.alias.as_deref() == Some(BRIDGE_ALIAS);
        let mut change = Change::default();
        if config.vlans.any() && !vlan_filtering {
            if !ours {
                return Err(without_vlans(name));
            }
            change.vlan_filtering = Some(true);
        }
        if config.promiscuous && !link.is_promiscuous() {
            change.promiscuous = Some(true);
        }
        // One of ours was made deaf before it came up.
        if !ours || !link.is_up() {
            veth::refuse_advertisements(name)?;
        }
        if !link.is_up() {
            change.up = Some(true);
        }
        if change == Change::default() {
            return Ok(Self { link });
        }
        host.execute(link::change(link.index, &change)).map_err(fault)?;
        Ok(Self { link })
    }

    /// Finds the bridge for those who only look.
    ///
    /// # Errors
    /// When there is none of that name, or something else has it.
    pub(super) fn find(host: &mut Socket, name: &str) -> Result<Self, Error> {
        match link::find(host, name).map_err(fault)? {
            Some(link) if matches!(link.kind, Kind::Bridge { .. }) => Ok(Self { link }),
            Some(_) => Err(not_a_bridge(name)),
            None => Err(Error::kernel(format!("bridge {name:?} is gone"))),
        }
    }
}

/// That nothing foreign has the bridge's name.
///
/// # Errors
/// Code 7 when something has.
pub(super) fn check_name(host: &mut Socket, config: &BridgeConfig) -> Result<(), Error> {
    let name = config.bridge.as_str();
    match link::find(host, name).map_err(fault)? {
        Some(Link { kind: Kind::Bridge { vlan_filtering }, alias, .. }) => {
            let ours = alias.as_deref() == Some(BRIDGE_ALIAS);
            if config.vlans.any() && !vlan_filtering && !ours { Err(without_vlans(name)) } else { Ok(()) }
        }
        Some(_) => Err(not_a_bridge(name)),
        None => Ok(()),
    }
}

/// Puts gateway addresses onto a device. In IPv4 it may hold no others, in IPv6 none that overlap, unless
/// `force` replaces them.
///
/// # Errors
/// Code 7 when a different address is in the way.
pub(super) fn hold(host: &mut Socket, device: &Link, gateways: &[IpNet], force: bool) -> Result<(), Error> {
    let family = only_family(gateways.iter().map(IpNet::addr));
    let held = address::list(host, Some(device.index), family).map_err(fault)?;
    let held: Vec<IpNet> = held.into_iter().filter(|held| held.scope == 0).map(|held| held.net).collect();
    let missing: Vec<IpNet> = gateways.iter().copied().filter(|gateway| !held.contains(gateway)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new();
    for other in held.iter().filter(|held| !gateways.contains(held)) {
        let Some(gateway) = missing.iter().find(|gateway| collide(gateway, other)) else { continue };
        if !force {
            let text = format!("{:?} already has an IP address different from {gateway}", device.name);
            return Err(Error::invalid_config(text)
                .with_details(format!("it has {other}; hint: \"forceAddress\": true replaces it")));
        }
        batch.push(address::delete(device.index, *other));
    }
    for gateway in &missing {
        let own = NewAddress {
            skip_duplicate_detection: gateway.addr().is_ipv6(),
            ..NewAddress::new(device.index, *gateway)
        };
        batch.push(address::add(&own));
    }
    if device.alias.as_deref() != Some(BRIDGE_ALIAS)
        && let Some(mac) = device.mac
    {
        // Set to itself it stays, whatever ports come and go.
        batch.push(link::change(device.index, &Change { mac: Some(mac), ..Change::default() }));
    }
    let failures = host.run(&batch, |_, _| Ok(())).map_err(fault)?;
    // Another pod's plugin may have deleted or added the same address first.
    match failures.into_iter().find(|failure| !failure.error.exists() && !failure.error.is_missing()) {
        Some(failure) => Err(fault(failure.error)),
        None => Ok(()),
    }
}

/// A hardware address of our own choosing: locally administered, random otherwise.
pub(super) fn random_mac() -> Mac {
    // The standard library seeds every `RandomState` from the kernel's random numbers.
    let [first, rest @ .., _, _] = RandomState::new().hash_one("hardware address").to_be_bytes();
    let [second, third, fourth, fifth, sixth] = rest;
    Mac([(first & 0xfc) | 0x02, second, third, fourth, fifth, sixth])
}

/// Makes the bridge; that somebody else was quicker is as good.
fn make(host: &mut Socket, config: &BridgeConfig) -> Result<Link, Error> {
    let name = config.bridge.as_str();
    let kind = NewBridge { vlan_filtering: config.vlans.any().then_some(true), ..NewBridge::default() };
    let new =
        NewLink { mac: Some(random_mac()), mtu: config.mtu, ..NewLink::new(name, NewKind::Bridge(kind)) };
    match host.execute(link::create(&new)) {
        Ok(()) => {
            let mark = Change { alias: Some(BRIDGE_ALIAS), ..Change::default() };
            host.execute(link::change(name, &mark)).map_err(fault)?;
        }
        Err(error) if error.exists() => {}
        Err(error) => return Err(fault(error)),
    }
    let found = link::find(host, name).map_err(fault)?;
    found.ok_or_else(|| Error::try_again(format!("bridge {name:?} vanished while it was made")))
}

/// Whether two addresses cannot be gateways of one device.
fn collide(one: &IpNet, other: &IpNet) -> bool {
    match (one, other) {
        (IpNet::V4(_), IpNet::V4(_)) => true,
        (IpNet::V6(one), IpNet::V6(other)) => {
            one.contains(&other.network()) || other.contains(&one.network())
        }
        _ => false,
    }
}

fn not_a_bridge(name: &str) -> Error {
    Error::invalid_config(format!("{name:?} already exists but is not a bridge"))
}

fn without_vlans(name: &str) -> Error {
    Error::invalid_config(format!("bridge {name:?} does not filter VLANs, and was not made by this plugin"))
        .with_details(format!("hint: ip link set {name} type bridge vlan_filtering 1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_collide_in_v4_always_and_in_v6_when_they_overlap() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        assert!(collide(&net("10.0.0.1/8"), &net("192.0.2.1/24")));
        assert!(collide(&net("2001:db8:1::1/48"), &net("2001:db8:1:2::1/64")));
        assert!(!collide(&net("2001:db8:1::1/48"), &net("2001:db8:2::1/64")));
        assert!(!collide(&net("10.0.0.1/8"), &net("2001:db8:2::1/64")));
    }

    #[test]
    fn a_random_hardware_address_is_local_and_for_one_device() {
        let (one, other) = (random_mac(), random_mac());
        assert_eq!(one.0[0] & 3, 2);
        assert_ne!(one, other);
    }
}
