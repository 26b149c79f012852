//! `portmap`: ports of the host that lead to the pod, with every key of the reference plugin.
//!
//! Read [`Portmap`] first; then `layout` (what is put into nf_tables, and the rules), `hostport` (how), `config`
//! and `condition` (what is asked for), `flows` (connections that outlive a host port), `marking` (the mark of
//! `externalSetMarkChain`).
//!
//! A host port answers on every address of the host, or on `hostIP`; from outside, from other pods, from the pod
//! itself, and from the host also by 127.0.0.1. By ::1 it cannot be reached: the kernel refuses whatever comes
//! over a link for ::1, so no answer would come back; packets for ::1 are therefore left alone.
//!
//! What stays true: a configuration is checked whole before anything is touched; without port mappings nothing is;
//! the attachment's host ports appear together or not at all, and never replace another's; DEL and GC find them by
//! their owner, without configuration, addresses or previous result. nf_tables is all there is, whatever backend
//! the configuration names. An owner who was never deleted keeps his port until his DEL or a GC of his network,
//! unless his pod's address has been given to the newcomer, which proves that he is gone.
//!
//! Sources: the reference plugin's documented keys and observed behaviour; CNI specification 1.1.0, section 2.

mod condition;
mod config;
mod flows;
mod hostport;
mod layout;
mod marking;

use std::io::Write as _;
use std::net::IpAddr;

use cni::{AddResult, Code, Error, IpConfig, Plugin, Request};
use ipnet::IpNet;
use kernel::netlink::{Protocol, Socket};
use kernel::nft::Nft;
use kernel::{link, route, sysctl};
use netstate::nft::IpVersion;

use crate::attachment::{self, Leaving};
use crate::fault::{Failures, fault};
use crate::meta::{addresses, previous};
use crate::owner::Owner;
use crate::reference::{self, Part};
use config::{Config, Marking, Masquerade};
use layout::Layout;

pub(crate) use hostport::{HostPort, leave};

/// The plugin.
#[derive(Debug)]
pub struct Portmap;

impl Plugin for Portmap {
    fn name(&self) -> &'static str {
        "portmap"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let config = Config::of(request)?;
        let result = previous(request)?;
        let pods = pods(&result, &request.ifname);
        if config.mappings.is_empty() || pods.is_empty() {
            return Ok(result);
        }
        let owner = Owner::of(request);
        let mut nft = Nft::open().map_err(fault)?;
        let layout = layout(&mut nft, &config, &owner, &pods)?;
        for pod in pods.iter().filter(|pod| by_loopback(&config, **pod)) {
            let_loopback_out(pod.addr()).map_err(|error| fault(error).context("route_localnet"))?;
        }
        hostport::add(&mut nft, &layout, &owner)?;
        // Only now, or the next packet of a flow would make it anew as it was.
        tolerate(flows::end_stale(&layout.host_ports()))?;
        Ok(result)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        let owner = Owner::of(request);
        let mut host = Socket::open(Protocol::Route).map_err(fault)?;
        if attachment::is_held(&mut host, &owner)? {
            return Ok(());
        }
        let leaving = Leaving::new(&owner, attachment::known_addresses(request));
        let mut failures = Failures::default();
        if let Some(mut nft) = failures.note_kernel(Nft::open()) {
            failures.note_kernel(hostport::remove(&mut nft, &leaving));
        }
        failures.note(end_connections(&leaving.host_ports.take()));
        failures.note_kernel(reference::remove_older(&leaving, HOST_PORTS));
        failures.into_result()
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let config = Config::of(request)?;
        let result = previous(request)?;
        let pods = pods(&result, &request.ifname);
        if config.mappings.is_empty() || pods.is_empty() {
            return Ok(());
        }
        let mut nft = Nft::open().map_err(fault)?;
        let owner = Owner::of(request);
        let layout = layout(&mut nft, &config, &owner, &pods)?;
        match hostport::missing(&mut nft, &layout, &owner).map_err(fault)? {
            Some(missing) if !by_reference(&mut nft, &layout, &owner).map_err(fault)? => {
                Err(Error::kernel(missing))
            }
            _ => Ok(()),
        }
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let valid = attachment::valid(request)?;
        let network = &request.config.name;
        let mut failures = Failures::default();
        if let Some(mut nft) = failures.note_kernel(Nft::open()) {
            let led = failures.note_kernel(hostport::collect(&mut nft, network, &valid));
            failures.note(end_connections(&led.unwrap_or_default()));
            failures.note_kernel(reference::collect(&mut nft, network, &valid, HOST_PORTS));
            failures.note(reference::collect_unclaimed(&mut nft, request));
        }
        failures.note_kernel(reference::collect_older(network, &valid, HOST_PORTS));
        failures.into_result()
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        ready(request).map_err(|error| Error { code: Code::NOT_READY, ..error })
    }
}

/// What the reference's portmap leaves.
const HOST_PORTS: &[Part] = &[Part::HostPorts];

/// Whether it was the reference that mapped all these ports, and they still stand.
fn by_reference(nft: &mut Nft, layout: &Layout, owner: &Owner) -> Result<bool, kernel::Error> {
    for port in layout.host_ports() {
        if !reference::host_port_stands(nft, owner, &port)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether an ADD would get what it needs.
fn ready(request: &Request) -> Result<(), Error> {
    let config = Config::of(request)?;
    let mut nft = Nft::open().map_err(fault)?;
    nft.tables().map_err(|error| fault(error).context("host ports need nf_tables"))?;
    match config.marking {
        Marking::Chain(_) => marking::mark(&mut nft, &config.marking, IpVersion::V4).map(drop),
        Marking::Bit(_) => Ok(()),
    }
}

/// The pod's first address of each family.
fn pods(result: &AddResult, ifname: &str) -> Vec<IpNet> {
    let inside = |ip: &&IpConfig| result.interface_of(ip).is_none_or(|link| !link.sandbox.is_empty());
    let mut inside: Vec<IpNet> = addresses(result, ifname).filter(inside).map(|ip| ip.address).collect();
    let mut seen = Vec::new();
    inside.retain(|net| {
        let version = IpVersion::of_net(*net);
        let first = !seen.contains(&version);
        seen.push(version);
        first
    });
    inside
}

fn layout(nft: &mut Nft, config: &Config, owner: &Owner, pods: &[IpNet]) -> Result<Layout, Error> {
    let mut marked = Vec::new();
    for pod in pods {
        marked.push((*pod, marking::mark(nft, &config.marking, IpVersion::of_net(*pod))?));
    }
    Layout::of(config, owner, &marked)
}

/// Whether one of the host ports is to be reached by 127.0.0.1.
fn by_loopback(config: &Config, pod: IpNet) -> bool {
    let loopback = |address: IpAddr| address.is_ipv4() && address.is_loopback();
    pod.addr().is_ipv4()
        && config.masquerade != Masquerade::Nobody
        && config
            .mappings
            .iter()
            .any(|mapping| mapping.version != Some(IpVersion::V6) && mapping.address.is_none_or(loopback))
}

/// Lets packets from 127.0.0.1 leave by the link that leads to the pod, and their answers come in.
fn let_loopback_out(pod: IpAddr) -> Result<(), kernel::Error> {
    let mut host = Socket::open(Protocol::Route)?;
    let way = route::get(&mut host, pod)?.and_then(|route| route.hops.first()?.link);
    let Some(link) = way.map(|link| link::find(&mut host, link)).transpose()?.flatten() else {
        return Ok(());
    };
    match sysctl::set(&format!("net/ipv4/conf/{}/route_localnet", link.name), "1") {
        Err(error) if !error.is_missing() => Err(error),
        _ => Ok(()),
    }
}

/// Ends the connections that would outlive host ports which have been taken away.
pub(crate) fn end_connections(led: &[HostPort]) -> Result<(), Error> {
    tolerate(flows::end_former(led))
}

/// A kernel that cannot list connections still forwards ports; that stale flows stay is said, and no reason to
/// fail.
fn tolerate(ended: Result<(), kernel::Error>) -> Result<(), Error> {
    match ended {
        Err(error) if error.is_unsupported() => {
            let _ = writeln!(std::io::stderr(), "portmap: connections of before are not ended: {error}");
            Ok(())
        }
        other => other.map_err(fault),
    }
}
