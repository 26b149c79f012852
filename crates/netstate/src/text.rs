//! The canonical text of states and steps: one object a line, in the words of `ip`, `bridge` and `nft`.
//!
//! Steps begin with `+` (made), `~` (changed in place; what was there stands in brackets) or `-` (removed).

use std::fmt::{self, Display, Formatter};

use crate::{
    Address, FdbEntry, Link, LinkKind, MAIN_TABLE, Neighbour, Plan, PolicyRule, Route, RouteKind,
    RouteTarget, State, Step, WireGuard, WireGuardPeer,
};

/// All of a state, one object a line, in the order in which it is made.
impl Display for State {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.links.values().try_for_each(|link| writeln!(f, "link {link}"))?;
        self.sysctls.iter().try_for_each(|(path, value)| writeln!(f, "sysctl {path} = {value}"))?;
        self.addresses.iter().try_for_each(|address| writeln!(f, "address {address}"))?;
        self.wireguards.iter().try_for_each(|(link, device)| writeln!(f, "wireguard {link}{device}"))?;
        self.wireguard_peers
            .iter()
            .try_for_each(|(key, peer)| writeln!(f, "peer {}{peer} dev {}", key.public_key, key.link))?;
        self.neighbours().try_for_each(|neighbour| writeln!(f, "neighbour {neighbour}"))?;
        self.fdb().try_for_each(|entry| writeln!(f, "fdb {entry}"))?;
        self.routes().try_for_each(|route| writeln!(f, "route {route}"))?;
        self.rules.iter().try_for_each(|rule| writeln!(f, "rule {rule}"))?;
        self.tables.values().try_for_each(|table| write!(f, "{table}"))
    }
}

/// The steps and then the conflicts, one a line.
impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))?;
        self.conflicts.iter().try_for_each(|conflict| writeln!(f, "{conflict}"))
    }
}

impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateLink(link) => write!(f, "+ link {link}"),
            Self::ChangeLink { from, to } => {
                write!(f, "~ link {to} (was")?;
                attributes(from, f)?;
                f.write_str(")")
            }
            Self::DeleteLink(name) => write!(f, "- link {name}"),
            Self::SetSysctl { path, value, was } => {
                write!(f, "~ sysctl {path} = {value} (was {})", was.as_deref().unwrap_or("unreadable"))
            }
            Self::AddAddress(address) => write!(f, "+ address {address}"),
            Self::DeleteAddress(address) => write!(f, "- address {address}"),
            Self::SetWireGuard { link, device, was } => match was {
                None => write!(f, "+ wireguard {link}{device}"),
                Some(was) if was.port == device.port => write!(f, "~ wireguard {link}{device} (another key)"),
                Some(was) => write!(f, "~ wireguard {link}{device} (was{was})"),
            },
            Self::SetWireGuardPeer { key, peer, was } => match was {
                None => write!(f, "+ peer {}{peer} dev {}", key.public_key, key.link),
                Some(was) => write!(f, "~ peer {}{peer} dev {} (was{was})", key.public_key, key.link),
            },
            Self::DeleteWireGuardPeer(key) => write!(f, "- peer {} dev {}", key.public_key, key.link),
            Self::SetNeighbour { neighbour, was } => set(f, ("neighbour", neighbour), was.as_ref()),
            Self::DeleteNeighbour(neighbour) => write!(f, "- neighbour {neighbour}"),
            Self::SetFdb { entry, was } => set(f, ("fdb", entry), was.as_ref()),
            Self::DeleteFdb(entry) => write!(f, "- fdb {entry}"),
            Self::SetRoute { route, was } => set(f, ("route", route), was.as_ref()),
            Self::DeleteRoute(route) => write!(f, "- route {route}"),
            Self::AddRule(rule) => write!(f, "+ rule {rule}"),
            Self::DeleteRule(rule) => write!(f, "- rule {rule}"),
            Self::Nft(step) => step.fmt(f),
        }
    }
}

fn set(
    f: &mut Formatter<'_>,
    (kind, object): (&str, &dyn Display),
    was: Option<&impl Display>,
) -> fmt::Result {
    match was {
        None => write!(f, "+ {kind} {object}"),
        Some(was) => write!(f, "~ {kind} {object} (was {})", was.to_string().trim_start()),
    }
}

impl Display for Link {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.kind)?;
        attributes(self, f)
    }
}

fn attributes(link: &Link, f: &mut Formatter<'_>) -> fmt::Result {
    if let Some(mtu) = link.mtu {
        write!(f, " mtu {mtu}")?;
    }
    if let Some(mac) = link.mac {
        write!(f, " address {mac}")?;
    }
    f.write_str(if link.up { " up" } else { " down" })
}

impl Display for LinkKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge => f.write_str("bridge"),
            Self::Tun => f.write_str("tun"),
            Self::WireGuard => f.write_str("wireguard"),
            Self::IpTunnel(tunnel) => {
                write!(f, "{} local {}", if tunnel.v6 { "sit" } else { "ipip" }, tunnel.local)
            }
            Self::Other(text) => write!(f, "({text})"),
            Self::Vxlan(vxlan) => {
                write!(f, "vxlan id {} dstport {} local {}", vxlan.vni, vxlan.port, vxlan.local)?;
                match vxlan.parent {
                    Some(parent) => write!(f, " dev {parent} nolearning"),
                    None => f.write_str(" nolearning"),
                }
            }
        }
    }
}

/// Each part with a space before it. The private key is nobody's to see.
impl Display for WireGuard {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, " private-key (hidden) listen-port {}", self.port)
    }
}

/// Each part with a space before it.
impl Display for WireGuardPeer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(endpoint) = self.endpoint {
            write!(f, " endpoint {endpoint}")?;
        }
        for (number, net) in self.allowed_ips.iter().enumerate() {
            write!(f, "{}{net}", if number == 0 { " allowed-ips " } else { "," })?;
        }
        match self.keepalive {
            Some(seconds) => write!(f, " persistent-keepalive {seconds}"),
            None => Ok(()),
        }
    }
}

impl Display for Address {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.net, self.link)
    }
}

impl Display for Neighbour {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} lladdr {} dev {}", self.address, self.mac, self.link)
    }
}

impl Display for FdbEntry {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} dst {} dev {}", self.mac, self.destination, self.link)
    }
}

impl Display for Route {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.target.kind {
            RouteKind::Unicast => {}
            RouteKind::Blackhole => f.write_str("blackhole ")?,
            RouteKind::Unreachable => f.write_str("unreachable ")?,
        }
        write!(f, "{}{}", self.key.destination, self.target)?;
        if self.key.metric != 0 {
            write!(f, " metric {}", self.key.metric)?;
        }
        if self.key.table != MAIN_TABLE {
            write!(f, " table {}", self.key.table)?;
        }
        Ok(())
    }
}

/// The route from its gateway on, each part with a space before it.
impl Display for RouteTarget {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        if let Some(link) = self.link {
            write!(f, " dev {link}")?;
        }
        if self.onlink {
            f.write_str(" onlink")?;
        }
        if let Some(source) = self.source {
            write!(f, " src {source}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        Ok(())
    }
}

impl Display for PolicyRule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.priority)?;
        match self.from {
            Some(from) => write!(f, " from {from}")?,
            None => f.write_str(" from all")?,
        }
        if let Some(to) = self.to {
            write!(f, " to {to}")?;
        }
        if let Some((value, mask)) = self.mark {
            write!(f, " fwmark {value:#x}/{mask:#x}")?;
        }
        write!(f, " lookup {}{}", self.table, if self.v6 { " (IPv6)" } else { "" })
    }
}
