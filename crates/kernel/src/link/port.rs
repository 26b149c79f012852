//! Settings of a link as a port of a bridge.

use super::{Header, Target};
use crate::abi;
use crate::netlink::{Purpose, Request};

/// What to change about a bridge port; `None` leaves as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortChange {
    /// Frames may go back out where they came in.
    pub hairpin: Option<bool>,
    /// Cut off from other isolated ports.
    pub isolated: Option<bool>,
    /// Learn addresses from traffic.
    pub learning: Option<bool>,
    /// Send frames for unknown addresses here.
    pub unicast_flood: Option<bool>,
    /// Answer ARP and neighbour discovery on behalf of hosts behind it.
    pub neighbour_suppression: Option<bool>,
}

/// Changes a port of a bridge. The link must be one already: an earlier request in the same batch is enough.
pub fn change_port<'a>(target: impl Into<Target<'a>>, change: &PortChange) -> Request {
    let target = target.into();
    let mut message = target.message(abi::RTM_NEWLINK, 0, Header::default());
    let settings = [
        (abi::IFLA_BRPORT_MODE, change.hairpin),
        (abi::IFLA_BRPORT_ISOLATED, change.isolated),
        (abi::IFLA_BRPORT_LEARNING, change.learning),
        (abi::IFLA_BRPORT_UNICAST_FLOOD, change.unicast_flood),
        (abi::IFLA_BRPORT_NEIGH_SUPPRESS, change.neighbour_suppression),
    ];
    message.nest(abi::IFLA_LINKINFO, |info| {
        info.text(abi::IFLA_INFO_SLAVE_KIND, "bridge").nest(abi::IFLA_INFO_SLAVE_DATA, |data| {
            for (kind, value) in settings {
                if let Some(on) = value {
                    data.u8(kind, on.into());
                }
            }
        });
    });
    Request::new(message, Purpose::new("change bridge port", target.object()))
}
