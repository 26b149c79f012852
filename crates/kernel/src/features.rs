//! What this kernel can do, found out by doing it.
//!
//! Read [`Feature`], then [`absent`]: names of modules and lines of a configuration say little (a module may be
//! forbidden, built in, or there and unable to load), so each kind of object is really made, once. It is made in the
//! calling thread's network namespace and left there: call it in one that nobody else uses and that ends soon.
//!
//! What stays true: one feature that is missing does not hide another; what was refused for lack of rights is an error
//! like any other, and the caller tells it by its errno.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netstate::nft::{
    BaseChain, Chain, ChainKind, Family as TableFamily, Field, Hook, IpVersion, KeyType, Operator, Policy,
    Rule, Set, Statement, TableKey, Value, ct_state, priority,
};
use rustix::io::Errno;

use crate::address::{self, NewAddress};
use crate::conntrack::{self, Filter};
use crate::link::{self, NewBridge, NewKind, NewLink, NewPeer, NewVxlan};
use crate::netlink::{Protocol, Socket};
use crate::nft::{Nft, Transaction};
use crate::qdisc::{self, Tbf};
use crate::tap::{self, NewTap};
use crate::{Error, Family, sysctl, wireguard};

/// Something a kernel can be built without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// Virtual cables.
    Veth,
    /// Software bridges.
    Bridge,
    /// VXLAN tunnels.
    Vxlan,
    /// Devices that turn incoming traffic into outgoing.
    Ifb,
    /// The token bucket filter.
    TokenBucket,
    /// The ingress hook of the packet scheduler.
    IngressHook,
    /// Links whose far end is a program.
    Tun,
    /// The protocol IPv6.
    Ipv6,
    /// nf_tables with tables for both families.
    Tables,
    /// Sets of nf_tables, of single keys and of networks.
    Sets,
    /// Rules that look at the state of a connection.
    Conntrack,
    /// Translation of the source.
    Masquerade,
    /// Translation of the destination, looked up in a map, for packets to the host's own addresses.
    HostPorts,
    /// The listing of tracked connections.
    FlowListing,
}

impl Feature {
    /// All of them, each after those that it needs itself.
    pub const ALL: [Self; 14] = [
        Self::Veth,
        Self::Bridge,
        Self::Vxlan,
        Self::Ifb,
        Self::TokenBucket,
        Self::IngressHook,
        Self::Tun,
        Self::Ipv6,
        Self::Tables,
        Self::Sets,
        Self::Conntrack,
        Self::Masquerade,
        Self::HostPorts,
        Self::FlowListing,
    ];
}

/// A feature that could not be used, and why.
#[derive(Debug)]
pub struct Absent {
    /// Which.
    pub feature: Feature,
    /// What the kernel said.
    pub error: Error,
}

/// The link on which qdiscs and addresses are tried.
const CABLE: &str = "probe0";

/// Those features that this kernel does not have, tried in the calling thread's network namespace.
///
/// # Errors
/// When there is no netlink socket to be had.
pub fn absent() -> Result<Vec<Absent>, Error> {
    let mut probe = Probe { socket: Socket::open(Protocol::Route)? };
    let tried = Feature::ALL.into_iter().map(|feature| (feature, probe.try_one(feature)));
    Ok(tried.filter_map(|(feature, tried)| tried.err().map(|error| Absent { feature, error })).collect())
}

/// Whether this kernel carries WireGuard itself. A module that does is loaded; nothing else is made or changed.
///
/// # Errors
/// When it cannot be found out, for lack of rights for one.
pub fn has_wireguard(socket: &mut Socket) -> Result<bool, Error> {
    if !supports(link::probe(socket, wireguard::KIND))? {
        return Ok(false);
    }
    match wireguard::Conversation::open() {
        Err(error) if error.is_missing() => Ok(false),
        other => other.map(|_| true),
    }
}

/// Whether this kernel puts packets of a family into IPv4 packets itself. A module that does is loaded, and brings a device
/// of its own (`tunl0`, `sit0`) that stays down.
///
/// # Errors
/// As [`has_wireguard`].
pub fn has_ip_tunnel(socket: &mut Socket, inner: Family) -> Result<bool, Error> {
    let tunnel = link::NewIpTunnel { inner, local: Ipv4Addr::LOCALHOST };
    let impossible = NewLink::new(".", NewKind::IpTunnel(tunnel));
    supports(match socket.execute(link::create(&impossible)) {
        Err(error) if error.errno() == Some(Errno::INVAL) || error.exists() => Ok(()),
        other => other,
    })
}

fn supports(tried: Result<(), Error>) -> Result<bool, Error> {
    match tried {
        Err(error) if error.is_unsupported() => Ok(false),
        other => other.map(|()| true),
    }
}

struct Probe {
    socket: Socket,
}

impl Probe {
    fn try_one(&mut self, feature: Feature) -> Result<(), Error> {
        match feature {
            Feature::Veth => self.make(CABLE, NewKind::Veth(NewPeer::new("probe1"))),
            Feature::Bridge => self.make("probe2", NewKind::Bridge(NewBridge::default())),
            Feature::Vxlan => {
                let tunnel = NewVxlan { id: 1, port: 8472, local: None, parent: None, learning: false };
                self.make("probe3", NewKind::Vxlan(tunnel))
            }
            Feature::Ifb => self.make("probe4", NewKind::Plain("ifb")),
            Feature::TokenBucket => {
                let Some(cable) = self.cable()? else { return qdisc::probe_tbf(&mut self.socket) };
                let tbf = Tbf { rate: 125_000_000, burst: 1 << 20, limit: 1 << 20 };
                self.socket.execute(qdisc::set_tbf(cable, &tbf))
            }
            Feature::IngressHook => match self.cable()? {
                Some(cable) => self.socket.execute(qdisc::add_ingress(cable)),
                // Without cables there is nothing to shape; that is told already.
                None => Ok(()),
            },
            Feature::Tun => {
                tap::create(&NewTap { name: "probe5", multi_queue: false, owner: None, group: None })
            }
            Feature::Ipv6 => self.ipv6(),
            Feature::Tables => commit(|_| {}),
            Feature::Sets => commit(|change| {
                change.add_set(&table(), &Set::new("names", [KeyType::Ifname, KeyType::Ipv4]));
                change.add_set(&table(), &Set::interval("networks", [KeyType::Ipv6]));
            }),
            Feature::Conntrack => commit(|change| {
                let tracked = Statement::MaskedMatch {
                    field: Field::CtState,
                    mask: ct_state::ESTABLISHED | ct_state::RELATED,
                    operator: Operator::NotEqual,
                    value: 0,
                };
                let base = base(ChainKind::Filter, Hook::Forward, priority::FILTER);
                put(change, Chain::base("tracked", base), &Rule::new([tracked, Statement::Counter]));
            }),
            Feature::Masquerade => commit(|change| {
                let base = base(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT);
                let rule = Rule::new([
                    Statement::equal(Field::NetworkFamily, Value::Protocol(2)),
                    Statement::Masquerade { fully_random: true },
                ]);
                put(change, Chain::base("source", base), &rule);
            }),
            Feature::HostPorts => commit(host_ports),
            Feature::FlowListing => {
                let mut socket = Socket::open(Protocol::Netfilter)?;
                let filter = Filter { family: Family::V4, protocol: 17, destination_port: None };
                conntrack::list(&mut socket, &filter).map(drop)
            }
        }
    }

    fn make(&mut self, name: &str, kind: NewKind<'_>) -> Result<(), Error> {
        self.socket.execute(link::create(&NewLink::new(name, kind)))
    }

    fn cable(&mut self) -> Result<Option<u32>, Error> {
        Ok(link::find(&mut self.socket, CABLE)?.map(|link| link.index))
    }

    fn ipv6(&mut self) -> Result<(), Error> {
        if let (true, Some(cable)) = (sysctl::has_ipv6(), self.cable()?) {
            // Whether it is switched off for new links is not asked here.
            sysctl::set(&format!("net/ipv6/conf/{CABLE}/disable_ipv6"), "0")?;
            let unique = IpNet::new_assert(IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)), 64);
            return self.socket.execute(address::add(&NewAddress::new(cable, unique)));
        }
        // A sysctl that is there whenever the protocol is.
        sysctl::read("net/ipv6/conf/default/disable_ipv6").map(drop)
    }
}

fn table() -> TableKey {
    TableKey::new(TableFamily::Inet, "probe")
}

fn base(kind: ChainKind, hook: Hook, priority: i32) -> BaseChain {
    BaseChain { kind, hook, priority, policy: Policy::Accept }
}

fn put(change: &mut Transaction, chain: Chain, rule: &Rule) {
    change.add_chain(&table(), &chain);
    change.add_rule(&table(), &chain.name, rule);
}

fn commit(fill: impl FnOnce(&mut Transaction)) -> Result<(), Error> {
    let mut change = Transaction::new();
    change.add_table(&table());
    fill(&mut change);
    Nft::open()?.commit(change)
}

fn host_ports(change: &mut Transaction) {
    let ports = Set::map("ports", [KeyType::Protocol, KeyType::Port], [KeyType::Ipv4, KeyType::Port]);
    change.add_set(&table(), &ports);
    let rule = Rule::new([
        Statement::DestinationIsLocal,
        Statement::Dnat {
            version: IpVersion::V4,
            fields: vec![Field::Protocol, Field::DestinationPort],
            map: ports.name,
        },
    ]);
    put(change, Chain::base("ports", base(ChainKind::Nat, Hook::Prerouting, priority::DSTNAT)), &rule);
}
