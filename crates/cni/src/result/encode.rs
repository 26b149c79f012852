//! Writing results: [`AddResult`] as the JSON of every version.
//!
//! The details other tools depend on: `interface: 0` is written; empty lists are left out; an empty `dns` is left
//! out from 1.0.0 on and is `{}` before; `sandbox` is left out when empty; a route's `table` and `scope` are written
//! even as 0, its `mtu`, `advmss` and `priority` are not.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{AddResult, Dns, Interface, IpConfig, Route};
use crate::error::{Code, Error};
use crate::json::Json;
use crate::version::Version;

impl AddResult {
    /// The result as JSON text of `version`.
    ///
    /// # Errors
    /// Code 1 when the version has no words for the result: 0.1.0 and 0.2.0 need an address.
    pub fn encode(&self, version: Version) -> Result<Vec<u8>, Error> {
        Ok(self.to_json(version)?.to_bytes())
    }

    /// The result as a document of `version`.
    ///
    /// # Errors
    /// As [`AddResult::encode`].
    pub fn to_json(&self, version: Version) -> Result<Json, Error> {
        let mut object = Members::default();
        object.put("cniVersion", Json::from(version.as_str()));
        if version < Version::V0_3_0 {
            self.put_families(&mut object)?;
        } else {
            self.put_lists(&mut object, version);
        }
        if version < Version::V1_0_0 || !self.dns.is_empty() {
            object.put("dns", self.dns.to_json());
        }
        Ok(object.finish())
    }

    fn put_lists(&self, object: &mut Members, version: Version) {
        object.put_list("interfaces", self.interfaces.iter().map(|interface| interface.to_json(version)));
        object.put_list("ips", self.ips.iter().map(|ip| ip.to_json(version)));
        object.put_list("routes", self.routes.iter().map(Route::to_json));
    }

    fn put_families(&self, object: &mut Members) -> Result<(), Error> {
        if self.ips.is_empty() {
            let reason = "cannot convert: no valid IP addresses";
            return Err(Error::new(Code::INCOMPATIBLE_VERSION, reason).with_details(
                "a result before CNI 0.3.0 must have an address; hint: use a newer cniVersion",
            ));
        }
        for (key, is_v6) in [("ip4", false), ("ip6", true)] {
            let of_family = |address: IpNet| matches!(address, IpNet::V6(_)) == is_v6;
            let Some(ip) = self.ips.iter().find(|ip| of_family(ip.address)) else { continue };
            let mut family = Members::default();
            family.put("ip", text(ip.address));
            family.put_address("gateway", ip.gateway);
            let routes = self.routes.iter().filter(|route| of_family(route.dst));
            family.put_list("routes", routes.map(|route| Route::new(route.dst, route.gw).to_json()));
            object.put(key, family.finish());
        }
        Ok(())
    }
}

impl Interface {
    fn to_json(&self, version: Version) -> Json {
        let mut object = Members::default();
        object.put("name", Json::from(self.name.as_str()));
        object.put_text("mac", &self.mac);
        object.put_text("sandbox", &self.sandbox);
        if version >= Version::V1_0_0 {
            object.put_number("mtu", self.mtu);
            object.put_text("socketPath", &self.socket_path);
            object.put_text("pciID", &self.pci_id);
        }
        object.finish()
    }
}

impl IpConfig {
    fn to_json(&self, version: Version) -> Json {
        let mut object = Members::default();
        if version < Version::V1_0_0 {
            object.put("version", Json::from(if self.address.addr().is_ipv4() { "4" } else { "6" }));
        }
        object.put("address", text(self.address));
        object.put_address("gateway", self.gateway);
        if let Some(index) = self.interface {
            object.put("interface", Json::from(index as u64));
        }
        object.finish()
    }
}

impl Route {
    fn to_json(&self) -> Json {
        let mut object = Members::default();
        object.put("dst", text(self.dst));
        object.put_address("gw", self.gw);
        object.put_number("mtu", self.mtu);
        object.put_number("advmss", self.advmss);
        object.put_number("priority", self.priority);
        if let Some(table) = self.table {
            object.put("table", Json::from(table));
        }
        if let Some(scope) = self.scope {
            object.put("scope", Json::from(u32::from(scope)));
        }
        object.finish()
    }
}

impl Dns {
    /// The `dns` object; what is empty is left out.
    #[must_use]
    pub fn to_json(&self) -> Json {
        let mut object = Members::default();
        object.put_list("nameservers", self.nameservers.iter().map(|server| Json::from(server.as_str())));
        object.put_text("domain", &self.domain);
        object.put_list("search", self.search.iter().map(|domain| Json::from(domain.as_str())));
        object.put_list("options", self.options.iter().map(|option| Json::from(option.as_str())));
        object.finish()
    }
}

/// An object being written; each `put_*` leaves out what says nothing.
#[derive(Default)]
struct Members(Vec<(String, Json)>);

impl Members {
    fn put(&mut self, key: &str, value: Json) {
        self.0.push((key.to_owned(), value));
    }

    fn put_text(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.put(key, Json::from(value));
        }
    }

    fn put_number(&mut self, key: &str, value: u32) {
        if value != 0 {
            self.put(key, Json::from(value));
        }
    }

    fn put_address(&mut self, key: &str, value: Option<IpAddr>) {
        if let Some(address) = value {
            self.put(key, text(address));
        }
    }

    fn put_list(&mut self, key: &str, items: impl Iterator<Item = Json>) {
        let items: Vec<Json> = items.collect();
        if !items.is_empty() {
            self.put(key, Json::Array(items));
        }
    }

    fn finish(self) -> Json {
        Json::Object(self.0)
    }
}

fn text(value: impl std::fmt::Display) -> Json {
    Json::String(value.to_string())
}
