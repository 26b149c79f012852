//! VLANs of bridge ports (`bridge vlan`): which identifiers pass, and which one untagged frames get.
//!
//! Ranges travel as a pair of records, so a trunk of 4,094 identifiers is two records, not 4,094.

use super::Header;
use crate::Error;
use crate::abi;
use crate::netlink::{Attribute, Malformed, Message, Purpose, Reply, Request, Socket};

const NEEDS: &str = "the kernel needs CONFIG_BRIDGE_VLAN_FILTERING";

/// Identifiers `first..=last` (equal for a single one) with the same settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vlan {
    /// First identifier, 1 to 4094.
    pub first: u16,
    /// Last identifier.
    pub last: u16,
    /// Untagged frames that come in belong to it. For a single identifier only.
    pub pvid: bool,
    /// Frames leave without a tag.
    pub untagged: bool,
}

impl Vlan {
    /// One identifier that stays tagged.
    pub fn tagged(id: u16) -> Self {
        Self { first: id, last: id, pvid: false, untagged: false }
    }

    /// The identifier of an access port: untagged both ways.
    pub fn access(id: u16) -> Self {
        Self { first: id, last: id, pvid: true, untagged: true }
    }

    fn flags(self) -> u16 {
        (if self.pvid { abi::BRIDGE_VLAN_INFO_PVID } else { 0 })
            | (if self.untagged { abi::BRIDGE_VLAN_INFO_UNTAGGED } else { 0 })
    }
}

/// Whose VLANs are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VlanSide {
    /// A port of a bridge.
    Port,
    /// The bridge device itself.
    Bridge,
}

/// The VLANs of one link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortVlans {
    /// The port, or the bridge itself.
    pub index: u32,
    /// Its VLANs in ascending order.
    pub vlans: Vec<Vlan>,
}

/// Adds VLANs to a link, or changes the settings of those it has.
pub fn add_vlans(index: u32, side: VlanSide, vlans: &[Vlan]) -> Request {
    let message = encode(abi::RTM_SETLINK, index, side, vlans);
    Request::new(message, Purpose::new("add VLANs to link", format!("number {index}")).needing(NEEDS))
}

/// Takes VLANs from a link.
pub fn delete_vlans(index: u32, side: VlanSide, vlans: &[Vlan]) -> Request {
    let message = encode(abi::RTM_DELLINK, index, side, vlans);
    Request::new(message, Purpose::new("delete VLANs from link", format!("number {index}")).needing(NEEDS))
}

/// The VLANs of every bridge and bridge port. A kernel without VLAN filtering has none to list.
///
/// # Errors
/// When the kernel refuses.
pub fn list_vlans(socket: &mut Socket) -> Result<Vec<PortVlans>, Error> {
    let header = Header { family: libc::AF_BRIDGE as u8, ..Header::default() };
    let mut message = Message::new(abi::RTM_GETLINK, 0, &header.bytes());
    message.u32(abi::IFLA_EXT_MASK, abi::RTEXT_FILTER_BRVLAN_COMPRESSED);
    socket.dump(&Request::new(message, Purpose::new("list", "bridge VLANs")), |reply| parse(reply).map(Some))
}

fn encode(kind: u16, index: u32, side: VlanSide, vlans: &[Vlan]) -> Message {
    let header = Header { family: libc::AF_BRIDGE as u8, index, ..Header::default() };
    let mut message = Message::new(kind, 0, &header.bytes());
    message.nest(abi::IFLA_AF_SPEC, |specification| {
        let owner = match side {
            VlanSide::Port => abi::BRIDGE_FLAGS_MASTER,
            VlanSide::Bridge => abi::BRIDGE_FLAGS_SELF,
        };
        specification.u16(abi::IFLA_BRIDGE_FLAGS, owner);
        for vlan in vlans {
            if vlan.first == vlan.last {
                record(specification, vlan.flags(), vlan.first);
                continue;
            }
            record(specification, vlan.flags() | abi::BRIDGE_VLAN_INFO_RANGE_BEGIN, vlan.first);
            record(specification, vlan.flags() | abi::BRIDGE_VLAN_INFO_RANGE_END, vlan.last);
        }
    });
    message
}

/// `struct bridge_vlan_info`: flags and identifier.
fn record(message: &mut Message, flags: u16, id: u16) {
    let [f0, f1] = flags.to_ne_bytes();
    let [i0, i1] = id.to_ne_bytes();
    message.put(abi::IFLA_BRIDGE_VLAN_INFO, &[f0, f1, i0, i1]);
}

fn parse(reply: Reply<'_>) -> Result<PortVlans, Malformed> {
    let (header, attributes) = reply.split::<{ Header::SIZE }>()?;
    let [_, _, _, _, i0, i1, i2, i3, ..] = *header;
    let mut port = PortVlans { index: u32::from_ne_bytes([i0, i1, i2, i3]), vlans: Vec::new() };
    let Some(specification) = attributes.find(abi::IFLA_AF_SPEC)? else { return Ok(port) };
    for attribute in specification.nested() {
        let attribute = attribute?;
        if attribute.kind == abi::IFLA_BRIDGE_VLAN_INFO {
            take(&mut port.vlans, attribute)?;
        }
    }
    Ok(port)
}

fn take(vlans: &mut Vec<Vlan>, attribute: Attribute<'_>) -> Result<(), Malformed> {
    let [f0, f1, i0, i1] = attribute.array("a bridge VLAN")?;
    let (flags, id) = (u16::from_ne_bytes([f0, f1]), u16::from_ne_bytes([i0, i1]));
    if flags & abi::BRIDGE_VLAN_INFO_RANGE_END != 0 {
        let Some(open) = vlans.last_mut() else {
            return Err(attribute.malformed("the end of an open range"));
        };
        open.last = id;
        return Ok(());
    }
    let has = |bit| flags & bit != 0;
    vlans.push(Vlan {
        first: id,
        last: id,
        pvid: has(abi::BRIDGE_VLAN_INFO_PVID),
        untagged: has(abi::BRIDGE_VLAN_INFO_UNTAGGED),
    });
    Ok(())
}
