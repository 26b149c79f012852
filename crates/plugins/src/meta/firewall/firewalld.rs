//! firewalld: pods' addresses as sources of a zone.
//!
//! Read [`Firewalld`]. The interface is `org.fedoraproject.FirewallD1.zone`, with `addSource`, `removeSource` and
//! `querySource`, each given zone and source. Its errors begin with a word in capitals that says what is meant.

use std::net::IpAddr;

use cni::Error;
use ipnet::IpNet;

use super::bus::{Bus, BusError, Target};

const NAME: &str = "org.fedoraproject.FirewallD1";
const ZONE: Target<'static> = Target {
    destination: NAME,
    path: "/org/fedoraproject/FirewallD1",
    interface: "org.fedoraproject.FirewallD1.zone",
};

/// A firewalld that runs.
#[derive(Debug)]
pub(super) struct Firewalld {
    bus: Bus,
}

impl Firewalld {
    /// The one on the system bus; `None` when there is no bus, or it is not there.
    pub(super) fn find() -> Result<Option<Self>, Error> {
        let Some(mut bus) = Bus::system().map_err(|error| failed("connect to the system bus", &error))?
        else {
            return Ok(None);
        };
        let runs = bus.has_owner(NAME).map_err(|error| failed("ask the system bus for firewalld", &error))?;
        Ok(runs.then_some(Self { bus }))
    }

    /// Puts the addresses into the zone; those that were not in it before are taken out again if one is refused.
    pub(super) fn add(&mut self, zone: &str, addresses: &[IpAddr]) -> Result<(), Error> {
        let mut added = Vec::new();
        for address in addresses {
            match self.call("addSource", zone, *address) {
                Ok(_) => added.push(*address),
                Err(BusError::Refused { message, .. }) if message.contains("ZONE_ALREADY_SET") => {}
                Err(error) => {
                    let error = failed(&format!("add {address} to zone {zone:?} of firewalld"), &error);
                    return Err(match self.remove(zone, &added) {
                        Ok(()) => error,
                        Err(failure) => Error {
                            message: format!("{}; undoing it: {}", error.message, failure.message),
                            ..error
                        },
                    });
                }
            }
        }
        Ok(())
    }

    /// Takes the addresses out of the zone; that one is not in it is a success.
    pub(super) fn remove(&mut self, zone: &str, addresses: &[IpAddr]) -> Result<(), Error> {
        let mut failures = Vec::new();
        for address in addresses {
            match self.call("removeSource", zone, *address) {
                Err(BusError::Refused { message, .. }) if is_not_there(&message) => {}
                Err(error) => {
                    failures
                        .push(failed(&format!("remove {address} from zone {zone:?} of firewalld"), &error));
                }
                Ok(_) => {}
            }
        }
        Error::join(failures).map_or(Ok(()), Err)
    }

    /// Whether all of them are in the zone.
    pub(super) fn check(&mut self, zone: &str, addresses: &[IpAddr]) -> Result<(), Error> {
        for address in addresses {
            let found = self.call("querySource", zone, *address);
            let found = found.map_err(|error| failed(&format!("ask firewalld for {address}"), &error))?;
            if !found {
                return Err(Error::kernel(format!(
                    "{address} is not in zone {zone:?} of firewalld any more"
                )));
            }
        }
        Ok(())
    }

    fn call(&mut self, method: &str, zone: &str, address: IpAddr) -> Result<bool, BusError> {
        self.bus.call(&ZONE, method, &[zone, &IpNet::from(address).to_string()])
    }
}

/// `ZONE_CONFLICT`: the source is in another zone, where somebody else put it.
fn is_not_there(message: &str) -> bool {
    ["UNKNOWN_SOURCE", "NOT_ENABLED", "ZONE_CONFLICT", "INVALID_ZONE"]
        .iter()
        .any(|word| message.contains(word))
}

fn failed(tried: &str, error: &BusError) -> Error {
    Error::kernel(format!("{tried}: {error}"))
}
