//! ADD: a pod is plugged in.
//!
//! Read [`add`], which checks and opens, then [`Wiring::run`], the order of things. The cable comes before the
//! addresses because an address plugin may need the link (dhcp does); the hardware address filter before the
//! link comes up, so that no false frame slips through; the wait for the port last, when it is nearly always
//! over already.

use std::net::IpAddr;

use cni::{AddResult, Error, IpConfig, Request, delegate};
use ipnet::IpNet;
use kernel::link::{self, Change, Link, PortChange, Vlan, VlanSide};
use kernel::monitor::{Monitor, Topic};
use kernel::netlink::{Batch, Protocol, Socket};
use kernel::nft::Nft;
use netstate::{LinkName, Mac};

use super::config::BridgeConfig;
use super::device::{Device, hold};
use super::gateway;
use super::vlan::Vlans;
use crate::fault::fault;
use crate::forwarding;
use crate::interface::patience;
use crate::interface::pod::{Pod, Setup, routes};
use crate::interface::report;
use crate::interface::veth::{self, Cable};
use crate::owner::Owner;
use crate::undo::{Made, Undo};
use crate::{macspoof, masquerade};

/// Where the pod's interface stands in the result.
const POD: usize = 2;

/// Plugs a pod in, and lets it send when `ready` says so of its addresses.
pub(super) fn add(
    request: &Request,
    ready: &mut dyn FnMut(Vec<IpAddr>) -> Result<(), Error>,
) -> Result<AddResult, Error> {
    let config = BridgeConfig::of(request)?;
    if let (true, Some(vlan)) = (config.gateway, config.vlans.access) {
        gateway::name(config.bridge, vlan)?;
    }
    let owner = Owner::of(request);
    let mut wiring = Wiring {
        request,
        config: &config,
        owner: &owner,
        host: Socket::open(Protocol::Route).map_err(fault)?,
        pod: Pod::open(request.netns()?)?,
        undo: Undo::new(request, &owner),
        ready,
    };
    match wiring.run() {
        Ok(result) => Ok(result),
        Err(error) => {
            let error = wiring.undo.back(&mut wiring.host, error);
            // The VLAN's gateway may have been made for this pod.
            release_gateway(&mut wiring.host, &config);
            Err(error)
        }
    }
}

/// One ADD under way.
struct Wiring<'a> {
    request: &'a Request,
    config: &'a BridgeConfig,
    owner: &'a Owner,
    host: Socket,
    pod: Pod,
    undo: Undo<'a>,
    ready: &'a mut dyn FnMut(Vec<IpAddr>) -> Result<(), Error>,
}

impl Wiring<'_> {
    fn run(&mut self) -> Result<AddResult, Error> {
        let config = self.config;
        let bridge = Device::ensure(&mut self.host, config)?;
        let port = self.plug_in(&bridge)?;
        let pod_link = self.pod_link()?;
        if config.spoof_check {
            self.check_spoofing(&port, &pod_link)?;
        }
        let mut result = self.addresses()?;
        // Until the pod's end is up, which follows, nothing gets out.
        (self.ready)(result.ips.iter().map(|ip| ip.address.addr()).collect())?;
        if !config.disabled {
            let setup = setup(config, &result, pod_link.index);
            self.pod.configure(&pod_link, &setup)?;
        }
        let gateway_device = self.serve_gateways(&bridge, &result)?;
        if config.masquerade {
            self.masquerade(&result)?;
        }
        let port = match config.disabled {
            true => port,
            false => patience::carrier(&mut self.host, &port, || Monitor::open(&[Topic::Links]))?,
        };
        let links = [&bridge.link, &port].into_iter().map(report::of_host);
        result.interfaces = links.collect();
        result.interfaces.push(report::in_pod(&pod_link, self.request)?);
        result.interfaces.extend(gateway_device.as_ref().map(report::of_host));
        Ok(result)
    }

    /// Lays the cable and sets the host's end as a port.
    fn plug_in(&mut self, bridge: &Device) -> Result<Link, Error> {
        let cable = Cable {
            owner: self.owner,
            interface: &self.request.ifname,
            pod_mac: self.config.mac,
            host_mac: None,
            mtu: self.config.mtu,
            bridge: Some(bridge.link.index),
            up: true,
        };
        let link = cable.lay(&mut self.host, &mut self.pod)?;
        self.undo.note(Made::Link(link.index));
        let port = PortChange {
            hairpin: self.config.hairpin.then_some(true),
            isolated: self.config.isolated.then_some(true),
            ..PortChange::default()
        };
        let port = Some(port).filter(|port| *port != PortChange::default());
        veth::mark(&mut self.host, &link, self.owner, Change::default(), port)?;
        if self.config.vlans.any() {
            self.host.execute(join_vlans(link.index, &self.config.vlans)).map_err(fault)?;
        }
        Ok(link)
    }

    fn pod_link(&mut self) -> Result<Link, Error> {
        let name = &self.request.ifname;
        let found = self.pod.find(name)?;
        found.ok_or_else(|| Error::kernel(format!("{name} vanished from the pod while it was set up")))
    }

    fn check_spoofing(&mut self, port: &Link, pod_link: &Link) -> Result<(), Error> {
        let (name, mac) = (link_name(port)?, hardware_address(pod_link)?);
        self.undo.note(Made::SpoofCheck);
        let filtered = Nft::open().and_then(|mut nft| macspoof::add(&mut nft, self.owner, name, mac));
        filtered.map_err(|error| fault(error).context("macspoofchk"))
    }

    /// Asks the address plugin, and adds what this plugin knows: gateways, the default route, the interface.
    fn addresses(&mut self) -> Result<AddResult, Error> {
        let kind = self.request.config.ipam_kind.as_str();
        if kind.is_empty() {
            return Ok(AddResult { dns: self.request.config.dns.clone(), ..AddResult::default() });
        }
        // Noted before it is asked: one that fails may have kept something.
        self.undo.note(Made::Addresses);
        let mut result = delegate::add(kind, self.request)?;
        if result.ips.is_empty() {
            return Err(Error::internal("IPAM plugin returned missing IP config"));
        }
        complete(&mut result, self.config);
        if report::says_dns(self.request)? {
            result.dns = self.request.config.dns.clone();
        }
        Ok(result)
    }

    /// Puts the gateway addresses where pods can reach them and lets the host forward.
    fn serve_gateways(&mut self, bridge: &Device, result: &AddResult) -> Result<Option<Link>, Error> {
        let gateways = gateways(result);
        if !self.config.gateway || gateways.is_empty() {
            return Ok(None);
        }
        let own = match self.config.vlans.access {
            Some(vlan) => Some(gateway::ensure(&mut self.host, bridge, vlan, self.config.mtu)?),
            None => None,
        };
        let device = own.as_ref().unwrap_or(&bridge.link);
        hold(&mut self.host, device, &gateways, self.config.force_address)?;
        forwarding::enable(&mut self.host, gateways.iter().map(IpNet::addr))?;
        Ok(own)
    }

    fn masquerade(&mut self, result: &AddResult) -> Result<(), Error> {
        let mut nft = Nft::open().map_err(fault)?;
        for ip in &result.ips {
            self.undo.note(Made::Masqueraded(ip.address));
            let added = masquerade::add(&mut nft, self.owner, ip.address);
            added.map_err(|error| fault(error).context("ipMasq"))?;
        }
        Ok(())
    }
}

/// Takes the VLAN's gateway away again if nobody uses it; the ADD's own error matters more than this one's.
fn release_gateway(host: &mut Socket, config: &BridgeConfig) {
    if let (true, Some(vlan)) = (config.gateway, config.vlans.access) {
        let _ = gateway::release(host, config.bridge, vlan);
    }
}

/// What the pod's interface gets.
pub(super) fn setup(config: &BridgeConfig, result: &AddResult, link: u32) -> Setup {
    Setup {
        addresses: result.ips.iter().map(|ip| ip.address).collect(),
        neighbours: Vec::new(),
        routes: routes(result, link),
        detect_duplicates: config.detect_duplicates,
        ..Setup::default()
    }
}

/// The gateway addresses with the lengths of their subnets.
pub(super) fn gateways(result: &AddResult) -> Vec<IpNet> {
    let own = |ip: &IpConfig| IpNet::new(ip.gateway?, ip.address.prefix_len()).ok();
    let mut gateways: Vec<IpNet> = result.ips.iter().filter_map(own).collect();
    gateways.dedup();
    gateways
}

/// Adds gateways, default routes and the interface to what the address plugin said.
fn complete(result: &mut AddResult, config: &BridgeConfig) {
    for ip in &mut result.ips {
        ip.interface = Some(POD);
        if config.gateway && ip.gateway.is_none() {
            ip.gateway = first_address(ip.address);
        }
    }
    if !config.default_gateway {
        return;
    }
    for ip in &result.ips {
        let default = match ip.address {
            IpNet::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
            IpNet::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
        };
        if !result.routes.iter().any(|route| route.dst == default && route.gw.is_some()) {
            result.routes.push(cni::Route::new(default, ip.gateway));
        }
    }
}

/// The first address of a subnet after the one that names it.
fn first_address(net: IpNet) -> Option<IpAddr> {
    match net.network() {
        IpAddr::V4(base) => u32::from(base).checked_add(1).map(|next| IpAddr::V4(next.into())),
        IpAddr::V6(base) => u128::from(base).checked_add(1).map(|next| IpAddr::V6(next.into())),
    }
}

/// The requests that give a port its VLANs.
fn join_vlans(port: u32, vlans: &Vlans) -> Batch {
    let mut batch = Batch::new();
    if !vlans.preserve_default {
        batch.push(link::delete_vlans(port, VlanSide::Port, &[gateway::EVERY_VLAN]));
    }
    let wanted: Vec<Vlan> = vlans
        .on_port()
        .iter()
        .map(|vlan| if vlan.untagged { Vlan::access(vlan.id) } else { Vlan::tagged(vlan.id) })
        .collect();
    batch.push(link::add_vlans(port, VlanSide::Port, &wanted));
    batch
}

pub(super) fn link_name(link: &Link) -> Result<LinkName, Error> {
    link.name.parse().map_err(|error: netstate::Error| Error::internal(error.to_string()))
}

pub(super) fn hardware_address(link: &Link) -> Result<Mac, Error> {
    link.mac.ok_or_else(|| Error::kernel(format!("{} has no hardware address", link.name)))
}
