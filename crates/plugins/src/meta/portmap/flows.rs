//! Connections that outlive the host port they came by.
//!
//! Read [`end_stale`] and [`end_former`]. A flow is translated as its first packet was, for as long as it lives; TCP
//! connections end by themselves, but a UDP sender that goes on from one port keeps its flow alive for ever, and
//! its packets go to a pod that is gone, or to the host itself. So whoever changes where such a host port leads has
//! the kernel forget these flows. Nothing is asked of the kernel unless the mappings are UDP or SCTP and there are
//! any connections, and no flow is ended that leads where it should.

use std::net::IpAddr;

use kernel::conntrack::{self, Filter, Flow};
use kernel::netlink::{Protocol, Socket};
use kernel::{Error, Family, address};

use super::config::{SCTP, UDP};
use super::hostport::HostPort;

/// Ends the flows to these host ports that lead elsewhere: to a former pod, or into this host.
pub(super) fn end_stale(host_ports: &[HostPort]) -> Result<(), Error> {
    let mut locals = None;
    end(host_ports, |flow, port| {
        if flow.reply.source == port.pod && flow.reply.source_port == port.pod_port {
            return Ok(false);
        }
        let asked = flow.original.destination;
        if port.address.is_some() || asked.is_loopback() {
            return Ok(port.address.is_none_or(|address| address == asked));
        }
        let locals = match &mut locals {
            Some(locals) => locals,
            none => none.insert(local_addresses()?),
        };
        Ok(locals.contains(&asked))
    })
}

/// Ends the flows that led to a pod by these host ports.
pub(super) fn end_former(host_ports: &[HostPort]) -> Result<(), Error> {
    end(host_ports, |flow, port| Ok(flow.reply.source == port.pod && flow.reply.source_port == port.pod_port))
}

fn end(
    host_ports: &[HostPort],
    mut stale: impl FnMut(&Flow, &HostPort) -> Result<bool, Error>,
) -> Result<(), Error> {
    let mut socket = None;
    for family in Family::BOTH {
        for protocol in [UDP, SCTP] {
            let of_kind = |port: &&HostPort| port.protocol == protocol && Family::of(port.pod) == family;
            let ports: Vec<&HostPort> = host_ports.iter().filter(of_kind).collect();
            if ports.is_empty() || conntrack::is_empty() {
                continue;
            }
            let socket = match &mut socket {
                Some(socket) => socket,
                none => none.insert(Socket::open(Protocol::Netfilter)?),
            };
            let mut doomed = Vec::new();
            for flow in flows(socket, family, protocol, &ports)? {
                for port in ports.iter().filter(|port| port.port == flow.original.destination_port) {
                    if stale(&flow, port)? {
                        doomed.push(flow);
                        break;
                    }
                }
            }
            conntrack::forget(socket, &doomed)?;
        }
    }
    Ok(())
}

/// Each listing makes the kernel go through its whole table, so there is one for all the ports.
fn flows(socket: &mut Socket, family: Family, protocol: u8, ports: &[&HostPort]) -> Result<Vec<Flow>, Error> {
    let destination_port = if let [only] = ports { Some(only.port) } else { None };
    conntrack::list(socket, &Filter { family, protocol, destination_port })
}

fn local_addresses() -> Result<Vec<IpAddr>, Error> {
    let mut host = Socket::open(Protocol::Route)?;
    let addresses = address::list(&mut host, None, None)?;
    Ok(addresses.into_iter().map(|found| found.net.addr()).collect())
}
