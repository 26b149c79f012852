//! Results: how an interface is told, and how CHECK finds it again in the `prevResult` that comes back.
//!
//! Read [`of_host`] and [`in_pod`] for writing, [`Previous`] for reading. What other plugins of the chain have
//! added to a result is nobody's business here.

use std::path::Path;

use cni::{AddResult, Error, Interface, IpConfig, Request};
use kernel::link::Link;

use crate::fault::fault;
use crate::interface::pod::Pod;

/// A link of the host.
pub(crate) fn of_host(link: &Link) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: link.mtu,
        ..Interface::default()
    }
}

/// A link of the pod.
///
/// # Errors
/// When the request names no namespace.
pub(crate) fn in_pod(link: &Link, request: &Request) -> Result<Interface, Error> {
    let sandbox = request.netns()?.to_string_lossy().into_owned();
    Ok(Interface { sandbox, ..of_host(link) })
}

/// Whether the configuration has a `dns` of its own, which then replaces the address plugin's; an empty list
/// counts.
///
/// # Errors
/// Code 6 when it is of the wrong type.
pub(crate) fn says_dns(request: &Request) -> Result<bool, Error> {
    let dns = request.config.fields().object("dns")?;
    let lists = ["nameservers", "search", "options"];
    Ok(lists.iter().any(|key| dns.has(key)) || !dns.string("domain")?.is_empty())
}

/// The result that a CHECK compares with.
#[derive(Debug)]
pub(crate) struct Previous {
    /// All of it.
    pub(crate) result: AddResult,
}

impl Previous {
    /// The request's `prevResult`.
    ///
    /// # Errors
    /// Code 7 when there is none, or it cannot be read.
    pub(crate) fn of(request: &Request) -> Result<Self, Error> {
        match request.config.prev_result()? {
            Some(result) => Ok(Self { result }),
            None => Err(Error::invalid_config("prevResult: missing, but CHECK compares with it")),
        }
    }

    /// The pod's interface as it was told, which has to be in the pod that the request is about.
    ///
    /// # Errors
    /// Code 7 when it is not listed, or in another pod.
    pub(crate) fn interface(&self, request: &Request) -> Result<&Interface, Error> {
        let name = &request.ifname;
        let mut inside = self.result.interfaces.iter().filter(|interface| !interface.sandbox.is_empty());
        let Some(listed) = inside.find(|interface| interface.name == *name) else {
            return Err(Error::invalid_config(format!("prevResult: {name} is not among the interfaces")));
        };
        let netns = request.netns()?;
        if Path::new(&listed.sandbox) != netns {
            return Err(Error::invalid_config(format!(
                "prevResult: {name} is in sandbox {}, but CNI_NETNS is {}",
                listed.sandbox,
                netns.display()
            )));
        }
        Ok(listed)
    }

    /// A link of the host as it was told.
    ///
    /// # Errors
    /// Code 7 when it is not listed.
    pub(crate) fn of_host(&self, name: &str) -> Result<&Interface, Error> {
        let mut outside = self.result.interfaces.iter().filter(|interface| interface.sandbox.is_empty());
        let listed = outside.find(|interface| interface.name == name);
        listed.ok_or_else(|| Error::invalid_config(format!("prevResult: {name} is not among the interfaces")))
    }

    /// The part of the result that is about the interface `name`.
    pub(crate) fn about(&self, name: &str) -> AddResult {
        let ours =
            |ip: &&IpConfig| self.result.interface_of(ip).is_none_or(|interface| interface.name == name);
        let ips = self.result.ips.iter().filter(ours).cloned().collect();
        AddResult { ips, ..self.result.clone() }
    }

    /// The pod's link, provided that it is the one that was told.
    ///
    /// # Errors
    /// When it is gone or has another hardware address by now.
    pub(crate) fn link(&self, request: &Request, pod: &mut Pod) -> Result<Link, Error> {
        let listed = self.interface(request)?;
        let name = &request.ifname;
        let Some(link) = pod.find(name)? else {
            return Err(Error::kernel(format!("{name} is gone from the pod")));
        };
        same_mac(listed, &link)?;
        Ok(link)
    }
}

/// Compares hardware addresses; one that the result does not tell is not compared.
///
/// # Errors
/// When they differ.
pub(crate) fn same_mac(listed: &Interface, link: &Link) -> Result<(), Error> {
    let found = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if listed.mac.is_empty() || listed.mac.eq_ignore_ascii_case(&found) {
        return Ok(());
    }
    Err(Error::kernel(format!("{} has hardware address {found}, not {}", link.name, listed.mac)))
}

/// What is lacking, as an error.
///
/// # Errors
/// When something is.
pub(crate) fn complain(lacking: Option<String>) -> Result<(), Error> {
    lacking.map_or(Ok(()), |text| Err(Error::kernel(text)))
}

/// The same for an answer of the kernel that says what is lacking.
///
/// # Errors
/// When something is, or the kernel does not tell.
pub(crate) fn complain_of(lacking: Result<Option<String>, kernel::Error>) -> Result<(), Error> {
    complain(lacking.map_err(fault)?)
}
