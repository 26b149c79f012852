//! `fairlead`: the network of the node's agent. A pod gets addresses of the node's own ranges and, by default,
//! a cable and a route of its own; no bridge, so the cost does not grow with the number of pods.
//!
//! Read [`Fairlead`] first, then `settings` (what the agent left on disk) and `routed` (the default mode). In
//! `mode: "bridge"` the same addresses go to the plugin [`bridge`], in this very process.
//!
//! A pod that network policies may be about is let in when they are in force (`isolation`).
//!
//! What stays true: only ADD and STATUS need what the agent left, and only ADD may need the agent; DEL, CHECK and GC work with agent and file
//! gone, and clean up after either mode whatever the configuration says now.
//! Sources: the idea of flannel's plugin (a node's subnet handed over in a file); CNI specification 1.1.0.

mod isolation;
mod routed;
mod settings;

use cni::{AddResult, Code, Error, Plugin, Request};

use super::bridge::{self, Bridge};
use isolation::Isolation;
use settings::{Mode, Settings};

/// The plugin.
#[derive(Debug)]
pub struct Fairlead;

impl Plugin for Fairlead {
    fn name(&self) -> &'static str {
        "fairlead"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let settings = Settings::of(&request.config)?;
        let network = settings.ready_network()?;
        let mut isolation = Isolation::of(request, &network, settings.state_directory());
        let added = match settings.mode {
            Mode::Bridge => {
                let request = settings.bridge(request, Some(&network))?;
                bridge::add_when(&request, &mut |addresses| match &mut isolation {
                    Some(isolation) => isolation.begin(addresses)?.wait(),
                    None => Ok(()),
                })
            }
            Mode::Routed => {
                let request = settings.addresses(request, Some(&network))?;
                routed::add(&request, settings.mtu_of(&network), isolation.as_mut())
            }
        };
        if let (Err(_), Some(isolation)) = (&added, &isolation) {
            isolation.withdraw();
        }
        added
    }

    /// The bridge's DEL takes away what either mode makes: a cable marked as the pod's, and its addresses. A
    /// route goes with the link it leads over.
    fn del(&self, request: &Request) -> Result<(), Error> {
        let settings = Settings::for_removal(&request.config)?;
        Bridge.del(&settings.bridge(request, None)?)?;
        // Last, so that the addresses of a pod that could not be taken away stay its own.
        isolation::forget(request, settings.state_directory())
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let settings = Settings::of(&request.config)?;
        let network = settings.node_network().ok();
        match settings.mode {
            Mode::Bridge => Bridge.check(&settings.bridge(request, network.as_ref())?),
            Mode::Routed => routed::check(&settings.addresses(request, network.as_ref())?),
        }
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let settings = Settings::for_removal(&request.config)?;
        Bridge.gc(&settings.bridge(request, None)?)?;
        isolation::collect(request, settings.state_directory())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        let ready = || {
            let settings = Settings::of(&request.config)?;
            let network = settings.ready_network()?;
            match settings.mode {
                Mode::Bridge => Bridge.status(&settings.bridge(request, Some(&network))?),
                Mode::Routed => routed::status(&settings.addresses(request, Some(&network))?),
            }
        };
        ready().map_err(|error: Error| match error.code {
            Code::LIMITED => error,
            _ => Error { code: Code::NOT_READY, ..error },
        })
    }
}
