//! `sbr`: what leaves from an address of the pod's interface is routed by a table of its own.
//!
//! Read [`Sbr`] first, then `plan`, which decides what changes and touches nothing. For each address: a rule
//! `from ADDRESS lookup TABLE`, and in that table the routes that the interface had. Everything is inside the
//! pod's namespace and ends with it.
//!
//! What stays true: all is decided from one look at the namespace, under a lock; additions come before removals,
//! so that the pod is at no moment without a route; an ADD that fails puts back what it moved. Link-local routes
//! of IPv6 stay where they are, because what goes there has no other address to leave from.
//! Sources: the reference plugin's documented keys and observed behaviour; rtnetlink(7).

mod plan;

use std::net::IpAddr;

use cni::{AddResult, Code, Error, IpConfig, Plugin, Request};
use ipnet::IpNet;
use kernel::link::Link;
use kernel::route::{self, Route};
use kernel::rule::{self, Action, Rule};
use kernel::{Family, address};

use self::plan::Facts;
use super::changes::{Change, Changes, routes_over, tables_in_use};
use super::lock::{self, NamespaceLock};
use crate::fault::fault;
use crate::interface::pod::Pod;

/// The first table that an address may get.
const LOWEST_TABLE: u32 = 100;

/// The plugin.
#[derive(Debug)]
pub struct Sbr;

impl Plugin for Sbr {
    fn name(&self) -> &'static str {
        "sbr"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let settings = Settings::of(request)?;
        let result = super::previous(request)?;
        let ips = addresses(request, &result)?;
        let mut pod = Pod::open(request.netns()?)?;
        let _lock = NamespaceLock::hold(&pod.namespace)?;
        let link = found(&mut pod, &request.ifname)?;
        let facts = Facts {
            link: link.index,
            routes: main_routes(routes_over(pod.socket(), link.index)?),
            tables: tables_in_use(pod.socket())?,
            rules: rule::list(pod.socket()).map_err(fault)?,
        };
        let plan = plan::plan(&settings, &ips, &facts);
        let mut changes = Changes::new(pod.socket());
        match changes.make(plan.additions).and_then(|()| changes.make(plan.removals)) {
            Ok(()) => Ok(result),
            Err(error) => Err(changes.back(error)),
        }
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        let Some(mut pod) = Pod::open_if_there(request.netns.as_deref())? else { return Ok(()) };
        let _lock = NamespaceLock::hold(&pod.namespace)?;
        let table = Settings::of(request).ok().and_then(|settings| settings.table);
        let link = pod.find(&request.ifname)?;
        let addresses = known_addresses(request, &mut pod, link.as_ref())?;
        let rules = rule::list(pod.socket()).map_err(fault)?;
        let ours =
            rules.into_iter().filter(|rule| addresses.iter().any(|address| leaves_from(rule, *address)));
        let ours: Vec<Rule> =
            ours.filter(|rule| table.is_none_or(|table| leads_to(rule) == Some(table))).collect();
        let mut removed = Vec::new();
        if let (None, Some(link)) = (table, &link) {
            let tables: Vec<u32> = ours.iter().filter_map(leads_to).filter(|table| is_own(*table)).collect();
            removed = routes_over(pod.socket(), link.index)?;
            removed.retain(|route| tables.contains(&route.table));
        }
        // Rules last: they tell which tables there are, should this be killed in between.
        let rules = ours.into_iter().map(Change::DeleteRule);
        Changes::new(pod.socket()).make(removed.into_iter().map(Change::DeleteRoute).chain(rules).collect())
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let settings = Settings::of(request)?;
        let result = super::previous(request)?;
        let ips = addresses(request, &result)?;
        let mut pod = Pod::open(request.netns()?)?;
        let link = found(&mut pod, &request.ifname)?;
        let rules = rule::list(pod.socket()).map_err(fault)?;
        let routes = routes_over(pod.socket(), link.index)?;
        for ip in &ips {
            check_address(&settings, ip, &rules, &routes)?;
        }
        let is_default =
            |route: &&Route| route.table == route::MAIN_TABLE && route.destination.prefix_len() == 0;
        match routes.iter().find(is_default).filter(|_| settings.table.is_none()) {
            None => Ok(()),
            Some(_) => Err(Error::kernel(format!(
                "the main table has a default route over {} again, which is for its own table only",
                request.ifname
            ))),
        }
    }

    /// Rules and tables end with the pod's namespace; outside of it there are locks at most.
    fn gc(&self, _: &Request) -> Result<(), Error> {
        lock::collect();
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        Settings::of(request).map(drop).map_err(|error| Error { code: Code::NOT_READY, ..error })
    }
}

/// What the configuration says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Settings {
    /// `table`: make rules to this table and nothing else.
    table: Option<u32>,
    /// `gateways`: in place of the addresses' own, one of each family.
    gateways: Vec<IpAddr>,
    /// `addSourceHints`: the main table keeps the routes to the subnets, with the address to leave from.
    source_hints: bool,
}

impl Settings {
    /// Reads and checks the configuration.
    ///
    /// # Errors
    /// Code 6 for a key of the wrong type, 7 for a value that cannot be.
    fn of(request: &Request) -> Result<Self, Error> {
        let fields = request.config.fields();
        let table: Option<i64> = fields.optional_integer("table")?;
        let table = table.map(|table| {
            let wrong = || fields.bad("table", format!("{table} is no routing table"));
            u32::try_from(table).ok().filter(|table| *table != 0).ok_or_else(wrong)
        });
        let texts = fields.strings("gateways")?;
        if texts.len() > 2 {
            let words = "gateways list cannot contain more than 2 entries (one IPv4, one IPv6)";
            return Err(Error::invalid_config(words));
        }
        let mut gateways: Vec<IpAddr> = Vec::new();
        for text in texts {
            let wrong = |_| Error::invalid_config(format!("invalid static gateway IP address: {text}"));
            let gateway: IpAddr = text.parse().map_err(wrong)?;
            if let Some(first) = gateways.iter().find(|first| first.is_ipv4() == gateway.is_ipv4()) {
                let family = if gateway.is_ipv4() { "IPv4" } else { "IPv6" };
                return Err(Error::invalid_config(format!(
                    "gateways list contains multiple {family} addresses: {first} and {gateway}"
                )));
            }
            gateways.push(gateway);
        }
        Ok(Self { table: table.transpose()?, gateways, source_hints: fields.bool("addSourceHints")? })
    }

    /// The gateway for an address: the configured one of its family, or else its own.
    fn gateway(&self, ip: &IpConfig) -> Option<IpAddr> {
        self.configured(ip).or(ip.gateway.filter(|gateway| !gateway.is_unspecified()))
    }

    fn configured(&self, ip: &IpConfig) -> Option<IpAddr> {
        self.gateways.iter().copied().find(|gateway| gateway.is_ipv4() == ip.address.addr().is_ipv4())
    }
}

/// The addresses of the pod's interface, of which there must be one.
fn addresses(request: &Request, result: &AddResult) -> Result<Vec<IpConfig>, Error> {
    let ips: Vec<IpConfig> = super::addresses(result, &request.ifname).cloned().collect();
    if ips.is_empty() {
        let words = format!("No IP addresses supplied on interface: {}", request.ifname);
        return Err(Error::invalid_config(words));
    }
    Ok(ips)
}

/// The addresses that the interface has, and those that the runtime remembers for it.
fn known_addresses(request: &Request, pod: &mut Pod, link: Option<&Link>) -> Result<Vec<IpAddr>, Error> {
    let remembered = request.config.prev_result().ok().flatten().unwrap_or_default();
    let mut known: Vec<IpAddr> =
        super::addresses(&remembered, &request.ifname).map(|ip| ip.address.addr()).collect();
    if let Some(link) = link {
        let there = address::list(pod.socket(), Some(link.index), None).map_err(fault)?;
        known.extend(there.iter().map(|address| address.net.addr()));
    }
    Ok(known)
}

fn found(pod: &mut Pod, name: &str) -> Result<Link, Error> {
    pod.find(name)?.ok_or_else(|| Error::kernel(format!("cannot find network interface {name} in the pod")))
}

fn main_routes(mut routes: Vec<Route>) -> Vec<Route> {
    routes.retain(|route| route.table == route::MAIN_TABLE);
    routes
}

/// Whether a rule is one for what leaves from exactly this address.
fn leaves_from(rule: &Rule, address: IpAddr) -> bool {
    rule.source == Some(IpNet::from(address))
        && rule.family == Family::of(address)
        && leads_to(rule).is_some()
}

fn leads_to(rule: &Rule) -> Option<u32> {
    match rule.action {
        Action::Table(table) => Some(table),
        _ => None,
    }
}

/// Whether a table is one that this plugin may have chosen.
fn is_own(table: u32) -> bool {
    table >= LOWEST_TABLE && !(253..=255).contains(&table)
}

fn check_address(settings: &Settings, ip: &IpConfig, rules: &[Rule], routes: &[Route]) -> Result<(), Error> {
    let address = ip.address.addr();
    let tables: Vec<u32> =
        rules.iter().filter(|rule| leaves_from(rule, address)).filter_map(leads_to).collect();
    let table = tables.iter().find(|table| settings.table.is_none_or(|wanted| wanted == **table));
    let Some(table) = table else {
        let wanted =
            settings.table.map_or_else(|| "a table of its own".to_owned(), |table| format!("table {table}"));
        return Err(Error::kernel(format!(
            "the rule that leads what leaves from {address} to {wanted} is gone"
        )));
    };
    let Some(gateway) = settings.gateway(ip).filter(|_| settings.table.is_none()) else { return Ok(()) };
    let is_default = |route: &Route| {
        route.table == *table
            && route.destination.prefix_len() == 0
            && route.destination.addr().is_ipv4() == address.is_ipv4()
    };
    if routes.iter().any(is_default) {
        return Ok(());
    }
    Err(Error::kernel(format!("the default route by {gateway} in table {table}, for {address}, is gone")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(config: &str) -> Result<Settings, Error> {
        Settings::of(&crate::testing::request(&format!(r#"{{"name": "net", {config}}}"#)))
    }

    #[test]
    fn gateways_and_tables_that_cannot_be_are_refused() {
        let good =
            settings(r#""gateways": ["10.0.0.1", "fd00::1"], "table": 5, "addSourceHints": true"#).unwrap();
        assert_eq!((good.table, good.gateways.len(), good.source_hints), (Some(5), 2, true));
        assert_eq!(settings(r#""table": null, "gateways": null"#).unwrap(), Settings::default());
        for (config, words) in [
            (r#""gateways": ["10.0.0.1", "10.0.0.2"]"#, "multiple IPv4 addresses: 10.0.0.1 and 10.0.0.2"),
            (r#""gateways": ["fd00::1", "fd00::2"]"#, "multiple IPv6 addresses"),
            (r#""gateways": ["10.0.0.1", "fd00::1", "fd00::2"]"#, "more than 2 entries"),
            (r#""gateways": ["here"]"#, "invalid static gateway IP address: here"),
            (r#""table": 0"#, "table: 0 is no routing table"),
            (r#""table": -1"#, "table: -1 is no routing table"),
        ] {
            let error = settings(config).unwrap_err();
            assert_eq!(error.code, Code::INVALID_CONFIG, "{config}");
            assert!(error.message.contains(words), "{config}: {error}");
        }
    }
}
