//! The result of ADD: one form inside, every version of the protocol at the edge.
//!
//! [`AddResult`] is what plugins make and read. [`AddResult::decode`] accepts the JSON of any version and
//! [`AddResult::encode`] writes that of any version, so conversion between two versions is decoding and encoding,
//! and a conversion over several versions follows the same rules as one step.
//!
//! What changes on the way to an older version (`result/encode.rs`), as in the reference:
//! - 1.0.0 and 1.1.0 differ in nothing but the version: fields that 1.1.0 added stay, a reader ignores what it does not know;
//! - to 0.3.0-0.4.0: `ips[].version` is derived; an interface's `mtu`, `socketPath` and `pciID` are dropped;
//! - to 0.1.0 and 0.2.0: the first address of each family with the routes of that family; no address is an error.
//!
//! Source: CNI specification section 5, "Result Types", in its released versions.

mod decode;
mod encode;

use std::net::IpAddr;

use ipnet::IpNet;

/// What an ADD made: interfaces, their addresses, routes, and name service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddResult {
    /// The interfaces made, on both sides. Empty in the result of an IPAM plugin.
    pub interfaces: Vec<Interface>,
    /// The addresses given.
    pub ips: Vec<IpConfig>,
    /// The routes in the container.
    pub routes: Vec<Route>,
    /// How the container resolves names.
    pub dns: Dns,
}

impl AddResult {
    /// The interface that `ip` sits on; nothing when the address does not say, or points outside the list.
    #[must_use]
    pub fn interface_of(&self, ip: &IpConfig) -> Option<&Interface> {
        self.interfaces.get(ip.interface?)
    }
}

/// A network interface in a result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// The interface's name.
    pub name: String,
    /// Its hardware address as text; empty when unknown.
    pub mac: String,
    /// Its MTU in bytes; 0 when not told.
    pub mtu: u32,
    /// The network namespace's path for an interface inside the container; empty for one on the host.
    pub sandbox: String,
    /// The socket of an interface that has one (vhost-user); empty otherwise.
    pub socket_path: String,
    /// The PCI address of the device behind it; empty when there is none.
    pub pci_id: String,
}

/// An address in a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpConfig {
    /// The address with the length of its subnet's prefix: host bits are kept.
    pub address: IpNet,
    /// The subnet's gateway.
    pub gateway: Option<IpAddr>,
    /// Which of the result's interfaces has the address. Results of others may point outside the list:
    /// read it through [`AddResult::interface_of`].
    pub interface: Option<usize>,
}

impl IpConfig {
    /// An address without gateway or interface.
    #[must_use]
    pub const fn new(address: IpNet) -> Self {
        Self { address, gateway: None, interface: None }
    }
}

/// A route in a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The destination, as written: host bits are kept, use `trunc()` for the network.
    pub dst: IpNet,
    /// The next hop; without one it is the gateway of the address of the same family, if that has one.
    pub gw: Option<IpAddr>,
    /// The path's MTU in bytes; 0 when not told.
    pub mtu: u32,
    /// The TCP maximum segment size to advertise, in bytes; 0 when not told.
    pub advmss: u32,
    /// The route's metric; 0 when not told.
    pub priority: u32,
    /// The routing table. An explicit 0 is kept apart from none.
    pub table: Option<u32>,
    /// The scope, as the kernel numbers them. An explicit 0 (global) is kept apart from none.
    pub scope: Option<u8>,
}

impl Route {
    /// A route with nothing but destination and next hop.
    #[must_use]
    pub const fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: 0, advmss: 0, priority: 0, table: None, scope: None }
    }
}

/// How a container resolves names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// The name servers' addresses, in order of preference.
    pub nameservers: Vec<String>,
    /// The local domain; empty for none.
    pub domain: String,
    /// The search list.
    pub search: Vec<String>,
    /// Options of the resolver.
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is said at all.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.nameservers.is_empty()
            && self.domain.is_empty()
            && self.search.is_empty()
            && self.options.is_empty()
    }
}

#[cfg(test)]
mod tests;
