//! CHECK: is everything that ADD made still there, and still as it was?
//!
//! Read [`check`]. What is missing comes back in words that name it. What other plugins of the chain, or
//! people, have added since is not looked at.

use cni::{Error, Request, delegate};
use ipnet::IpNet;
use kernel::address;
use kernel::link::{self, Kind, Link};
use kernel::netlink::{Protocol, Socket};
use kernel::nft::Nft;

use super::add::{gateways, hardware_address, link_name, setup};
use super::config::BridgeConfig;
use super::device::Device;
use super::gateway;
use crate::fault::fault;
use crate::interface::pod::{Pod, only_family};
use crate::interface::report::{Previous, complain, complain_of, same_mac};
use crate::owner::Owner;
use crate::{macspoof, masquerade};

/// Checks an attachment.
pub(super) fn check(request: &Request) -> Result<(), Error> {
    let config = BridgeConfig::of(request)?;
    let previous = Previous::of(request)?;
    let kind = request.config.ipam_kind.as_str();
    if !kind.is_empty() {
        delegate::check(kind, request)?;
    }
    let mut inspection = Inspection {
        request,
        config: &config,
        owner: Owner::of(request),
        previous: &previous,
        host: Socket::open(Protocol::Route).map_err(fault)?,
    };
    inspection.run()
}

struct Inspection<'a> {
    request: &'a Request,
    config: &'a BridgeConfig,
    owner: Owner,
    previous: &'a Previous,
    host: Socket,
}

impl Inspection<'_> {
    fn run(&mut self) -> Result<(), Error> {
        let bridge = self.bridge()?;
        let mut pod = Pod::open(self.request.netns()?)?;
        let pod_link = self.pod_link(&mut pod)?;
        let port = self.port(&bridge, &pod_link)?;
        self.vlans(&port)?;
        if !self.config.disabled {
            let addresses = self.previous.about(&self.request.ifname);
            let lacking = pod.missing(&pod_link, &setup(self.config, &addresses, pod_link.index))?;
            complain(lacking)?;
        }
        self.gateways(&bridge)?;
        self.rules(&port, &pod_link)
    }

    fn bridge(&mut self) -> Result<Device, Error> {
        let name = self.config.bridge.as_str();
        let bridge = Device::find(&mut self.host, name)?;
        let listed = self.previous.of_host(name)?;
        same_mac(listed, &bridge.link)?;
        if self.config.promiscuous != bridge.link.is_promiscuous() {
            let state = if self.config.promiscuous { "not promiscuous" } else { "promiscuous" };
            return Err(Error::kernel(format!("bridge {name} is {state}, unlike configured")));
        }
        if !bridge.link.is_up() {
            return Err(Error::kernel(format!("bridge {name} is down")));
        }
        Ok(bridge)
    }

    fn pod_link(&mut self, pod: &mut Pod) -> Result<Link, Error> {
        let name = &self.request.ifname;
        let link = self.previous.link(self.request, pod)?;
        if link.kind != Kind::Veth {
            return Err(Error::kernel(format!("{name} in the pod is no longer a veth")));
        }
        if link.is_up() == self.config.disabled {
            let state = if link.is_up() { "up" } else { "down" };
            return Err(Error::kernel(format!("{name} in the pod is {state}, unlike configured")));
        }
        Ok(link)
    }

    /// The host's end of the pod's cable: listed, plugged into the bridge, and set as configured.
    fn port(&mut self, bridge: &Device, pod_link: &Link) -> Result<Link, Error> {
        let end =
            pod_link.parent.map(|index| link::find(&mut self.host, index).map_err(fault)).transpose()?;
        let Some(port) = end.flatten().filter(|port| port.kind == Kind::Veth) else {
            return Err(Error::kernel(format!("the host's end of {} is gone", pod_link.name)));
        };
        same_mac(self.previous.of_host(&port.name)?, &port)?;
        let name = &port.name;
        if port.parent != Some(pod_link.index) || port.master != Some(bridge.link.index) {
            return Err(Error::kernel(format!("{name} is not plugged into bridge {}", bridge.link.name)));
        }
        if !port.is_up() {
            return Err(Error::kernel(format!("{name} is down")));
        }
        let Some(settings) = port.port else { return Ok(port) };
        for (wanted, found, what) in [
            (self.config.hairpin, settings.hairpin, "hairpin"),
            (self.config.isolated, settings.isolated, "isolated"),
        ] {
            if wanted && !found {
                return Err(Error::kernel(format!("port {name} is not {what} any more")));
            }
        }
        Ok(port)
    }

    fn vlans(&mut self, port: &Link) -> Result<(), Error> {
        if !self.config.vlans.any() {
            return Ok(());
        }
        let all = link::list_vlans(&mut self.host).map_err(fault)?;
        let own: Vec<_> =
            all.iter().filter(|found| found.index == port.index).flat_map(|found| &found.vlans).collect();
        for wanted in self.config.vlans.on_port() {
            let held = own.iter().any(|found| {
                (found.first..=found.last).contains(&wanted.id)
                    && found.untagged == wanted.untagged
                    && found.pvid == wanted.untagged
            });
            if !held {
                return Err(Error::kernel(format!(
                    "port {} does not carry VLAN {} as configured",
                    port.name, wanted.id
                )));
            }
        }
        Ok(())
    }

    fn gateways(&mut self, bridge: &Device) -> Result<(), Error> {
        let wanted = gateways(&self.previous.about(&self.request.ifname));
        if !self.config.gateway || wanted.is_empty() {
            return Ok(());
        }
        let device = match self.config.vlans.access {
            None => bridge.link.clone(),
            Some(vlan) => {
                let name = gateway::name(self.config.bridge, vlan)?;
                let found = link::find(&mut self.host, name.as_str()).map_err(fault)?;
                found.ok_or_else(|| Error::kernel(format!("the gateway device {name} is gone")))?
            }
        };
        let family = only_family(wanted.iter().map(IpNet::addr));
        let held = address::list(&mut self.host, Some(device.index), family).map_err(fault)?;
        let lost = wanted.iter().find(|gateway| !held.iter().any(|held| held.net == **gateway));
        complain(lost.map(|gateway| format!("{} does not have the gateway address {gateway}", device.name)))
    }

    fn rules(&mut self, port: &Link, pod_link: &Link) -> Result<(), Error> {
        if !self.config.masquerade && !self.config.spoof_check {
            return Ok(());
        }
        let mut nft = Nft::open().map_err(fault)?;
        if self.config.spoof_check {
            let (name, mac) = (link_name(port)?, hardware_address(pod_link)?);
            complain_of(macspoof::missing(&mut nft, &self.owner, name, mac))?;
        }
        if self.config.masquerade {
            for ip in &self.previous.about(&self.request.ifname).ips {
                complain_of(masquerade::missing(&mut nft, &self.owner, ip.address))?;
            }
        }
        Ok(())
    }
}
