//! `loopback`: the pod's own `lo`, set up.
//!
//! [`Loopback`] is all of it. Whatever CNI_IFNAME says, the interface is `lo`. That the namespace is not the
//! host's has been checked before any of this runs (`cni::serve`): a DEL with a path that leads home would
//! otherwise cut the node off from itself.

use cni::{AddResult, Code, Error, Interface, IpConfig, Plugin, Request};
use ipnet::IpNet;
use kernel::netlink::{Protocol, Socket};
use kernel::netns::Netns;
use kernel::{address, link};

use crate::fault::fault;

const NAME: &str = "lo";

/// An ADD that found an address on `lo` which others can reach.
const REACHABLE: Code = Code(112);

/// The plugin.
#[derive(Debug)]
pub struct Loopback;

impl Plugin for Loopback {
    fn name(&self) -> &'static str {
        "loopback"
    }

    /// Sets `lo` up, upon which the kernel gives it 127.0.0.1 and, where there is IPv6, ::1. What is reported is
    /// what is there then; in a chain, the result so far.
    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let previous = request.config.prev_result()?;
        let sandbox = request.netns()?;
        let mut socket = Netns::open(sandbox).and_then(|pod| pod.socket(Protocol::Route)).map_err(fault)?;
        let lo = find(&mut socket)?;
        addresses(&mut socket, &lo)?;
        set_up(&mut socket, true).map_err(fault)?;
        if let Some(previous) = previous {
            return Ok(previous);
        }
        let ips = addresses(&mut socket, &lo)?;
        let interface = Interface {
            name: lo.name,
            mac: lo.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            sandbox: sandbox.to_string_lossy().into_owned(),
            ..Interface::default()
        };
        Ok(AddResult {
            interfaces: vec![interface],
            ips: ips.into_iter().map(|net| IpConfig { interface: Some(0), ..IpConfig::new(net) }).collect(),
            ..AddResult::default()
        })
    }

    /// Sets `lo` down. A namespace that is gone, or whose name now leads elsewhere, has no `lo` to set down.
    fn del(&self, request: &Request) -> Result<(), Error> {
        let Some(path) = &request.netns else { return Ok(()) };
        let pod = match Netns::open(path) {
            Ok(pod) => pod,
            Err(kernel::Error::NamespaceMissing { .. } | kernel::Error::NotANamespace { .. }) => {
                return Ok(());
            }
            Err(error) => return Err(fault(error)),
        };
        let mut socket = pod.socket(Protocol::Route).map_err(fault)?;
        set_up(&mut socket, false).map_err(fault)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let pod = Netns::open(request.netns()?).map_err(fault)?;
        let mut socket = pod.socket(Protocol::Route).map_err(fault)?;
        if find(&mut socket)?.is_up() { Ok(()) } else { Err(Error::internal("loopback interface is down")) }
    }

    /// Nothing of a pod's `lo` is ever outside the pod's namespace, so nothing can be left behind.
    fn gc(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    /// Every namespace has a `lo`, so there is nothing an ADD could lack.
    fn status(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }
}

fn find(socket: &mut Socket) -> Result<link::Link, Error> {
    link::find(socket, NAME).map_err(fault)?.ok_or_else(|| Error::kernel("find link lo: there is none"))
}

/// The addresses of `lo`, provided that none of them can be reached from elsewhere.
fn addresses(socket: &mut Socket, lo: &link::Link) -> Result<Vec<IpNet>, Error> {
    let listed = address::list(socket, Some(lo.index), None).map_err(fault)?;
    let nets: Vec<IpNet> = listed.into_iter().map(|address| address.net).collect();
    match nets.iter().find(|net| !net.addr().is_loopback()) {
        None => Ok(nets),
        Some(net) => {
            let words = format!("loopback interface found with non-loopback address {:?}", net.to_string());
            Err(Error::new(REACHABLE, words))
        }
    }
}

fn set_up(socket: &mut Socket, up: bool) -> Result<(), kernel::Error> {
    socket.execute(link::change(NAME, &link::Change { up: Some(up), ..link::Change::default() }))
}
