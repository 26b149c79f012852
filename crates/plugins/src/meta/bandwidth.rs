//! `bandwidth`: limits on what goes to a pod and what comes from it.
//!
//! Read [`Bandwidth`] first, then `config` (what is asked for) and `shaper` (how the kernel does it), `unclaimed` (what the reference left). The limits
//! sit on the host's end of the pod's cable: what goes to the pod waits at its root; what comes from the pod
//! is redirected to an IFB, a link made for this alone, and waits there.
//!
//! What stays true: the IFB carries its owner's alias and has the reference's name, unless another attachment
//! of the same container has that. All else lives and dies with the cable. While the cable is our own, the
//! interface plugin's DEL takes the IFB along ([`attachment`]).
//! Sources: the reference plugin's documented keys and observed behaviour; CNI's CONVENTIONS, `bandwidth`.

mod config;
mod shaper;
mod unclaimed;

use cni::{AddResult, Code, Error, Interface, Plugin, Request, Version};
use kernel::link::{self, Kind, Link};
use kernel::netlink::{Protocol, Socket};
use kernel::qdisc;

use crate::attachment;
use crate::fault::{Failures, fault};
use crate::interface::pod::Pod;
use crate::owner::Owner;
use config::Limits;
use shaper::Shaper;

/// The plugin.
#[derive(Debug)]
pub struct Bandwidth;

impl Plugin for Bandwidth {
    fn name(&self) -> &'static str {
        "bandwidth"
    }

    fn versions(&self) -> &'static [Version] {
        &Version::ALL[2..]
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let limits = Limits::of(&request.config)?;
        let mut result = super::previous(request)?;
        let Some(limits) = limits else { return Ok(result) };
        let mut host = Socket::open(Protocol::Route).map_err(fault)?;
        let cable = cable(&mut host, &result, request)?;
        let owner = Owner::of(request);
        let made = Shaper { host: &mut host, owner: &owner, cable: &cable, limits: &limits }.install()?;
        result.interfaces.extend(made.as_ref().map(interface));
        Ok(result)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        let owner = Owner::of(request);
        let mut host = Socket::open(Protocol::Route).map_err(fault)?;
        if attachment::is_held(&mut host, &owner)? {
            return Ok(());
        }
        shaper::remove(&mut host, &owner)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let limits = Limits::of(&request.config)?;
        let result = super::previous(request)?;
        let Some(limits) = limits else { return Ok(()) };
        let mut host = Socket::open(Protocol::Route).map_err(fault)?;
        let cable = cable(&mut host, &result, request)?;
        let owner = Owner::of(request);
        let lacking = Shaper { host: &mut host, owner: &owner, cable: &cable, limits: &limits }.lacking()?;
        lacking.map_or(Ok(()), |text| Err(Error::kernel(text)))
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let valid = attachment::valid(request)?;
        let mut host = Socket::open(Protocol::Route).map_err(fault)?;
        let mut failures = Failures::default();
        failures.note(attachment::collect_links(&mut host, &request.config.name, &valid, &["ifb"]));
        failures.note(unclaimed::collect(&mut host, request, &valid));
        failures.into_result()
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        let ready = || {
            Limits::of(&request.config)?;
            let mut host = Socket::open(Protocol::Route).map_err(fault)?;
            qdisc::probe_tbf(&mut host).map_err(fault)?;
            link::probe(&mut host, "ifb").map_err(fault)
        };
        ready().map_err(|error: Error| Error { code: Code::NOT_READY, ..error })
    }
}

/// The host's end of the pod's cable, which earlier plugins must have told of.
fn cable(host: &mut Socket, result: &AddResult, request: &Request) -> Result<Link, Error> {
    if result.interfaces.is_empty() {
        return Err(Error::invalid_config("no interfaces provided")
            .with_details("prevResult names none: limits sit on the host's end of the pod's cable"));
    }
    // Our own carries its owner's mark; another's is found from the pod.
    let cable = match attachment::cable(host, &Owner::of(request))? {
        Some(cable) => cable,
        None => far_end(host, request)?,
    };
    let told = result.interfaces.iter().any(|listed| listed.sandbox.is_empty() && listed.name == cable.name);
    if !told {
        return Err(Error::invalid_config("no veth peer of container interface found in host ns")
            .with_details(format!("prevResult does not name {}", cable.name)));
    }
    Ok(cable)
}

/// The far end of the pod's interface, on this host.
fn far_end(host: &mut Socket, request: &Request) -> Result<Link, Error> {
    let name = &request.ifname;
    let pod_link = Pod::open(request.netns()?)?.find(name)?;
    let no_peer = |reason: &str| {
        Err(Error::invalid_config(format!("container interface {name} has no veth peer: {reason}")))
    };
    let Some(pod_link) = pod_link else { return no_peer("there is no such interface") };
    let (Kind::Veth, Some(far)) = (&pod_link.kind, pod_link.parent) else {
        return no_peer(&format!("it is of kind {}", pod_link.kind.name().unwrap_or("hardware")));
    };
    let found = match pod_link.peer_namespace {
        Some(_) => link::find(host, far).map_err(fault)?,
        None => None,
    };
    // Another namespace may use the same number.
    found
        .filter(|link| link.kind == Kind::Veth && link.parent == Some(pod_link.index))
        .ok_or_else(|| Error::invalid_config(format!("veth peer with index {far} is not in host ns")))
}

fn interface(link: &Link) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: link.mtu,
        ..Interface::default()
    }
}
