//! What an ADD changes, decided from one look at the namespace.
//!
//! Read [`plan`]. A route belongs to the table of each address in whose subnet its source or gateway is; one that
//! names neither, or none that is in any of the subnets, belongs to every address of its family.

use std::net::IpAddr;

use cni::IpConfig;
use ipnet::IpNet;
use kernel::Family;
use kernel::route::Route;
use kernel::rule::{Action, Rule};

use super::{LOWEST_TABLE, Settings};
use crate::meta::changes::{Change, nearest_first, unused_table};

/// The priority of the rule that leads everything to the main table.
const MAIN_RULE: u32 = 32_766;

/// What was seen in the pod's namespace.
#[derive(Debug)]
pub(super) struct Facts {
    /// The interface, by index.
    pub(super) link: u32,
    /// The routes of the main table over it.
    pub(super) routes: Vec<Route>,
    /// Tables that somebody uses.
    pub(super) tables: Vec<u32>,
    /// Every rule.
    pub(super) rules: Vec<Rule>,
}

/// What to change, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) additions: Vec<Change>,
    pub(super) removals: Vec<Change>,
}

/// Decides.
pub(super) fn plan(settings: &Settings, ips: &[IpConfig], facts: &Facts) -> Plan {
    let mut plan = Plan::default();
    let mut priorities = Family::BOTH.map(|family| (family, lowest_priority(&facts.rules, family)));
    let mut tables = facts.tables.clone();
    for ip in ips {
        let table = settings.table.unwrap_or_else(|| unused_table(LOWEST_TABLE, &tables));
        tables.push(table);
        if settings.table.is_none() {
            let routes = routes_of(settings, ip, ips, facts);
            let moved = routes.into_iter().map(|route| Change::AddRoute(Route { table, ..route }));
            plan.additions.extend(moved);
        }
        let family = Family::of(ip.address.addr());
        for (_, priority) in priorities.iter_mut().filter(|(known, _)| *known == family) {
            *priority = priority.saturating_sub(1);
            let rule = Rule::new(family, *priority, Action::Table(table));
            plan.additions.push(Change::AddRule(Rule { source: Some(ip.address.addr().into()), ..rule }));
        }
    }
    if settings.table.is_none() {
        leave_main(settings, ips, facts, &mut plan);
    }
    plan
}

/// A new rule comes before all others but the one for the host's own addresses, where the kernel would put it.
fn lowest_priority(rules: &[Rule], family: Family) -> u32 {
    let own = rules.iter().filter(|rule| rule.family == family && rule.priority > 0);
    own.map(|rule| rule.priority).min().unwrap_or(MAIN_RULE)
}

/// What the table of `ip` will have.
fn routes_of(settings: &Settings, ip: &IpConfig, ips: &[IpConfig], facts: &Facts) -> Vec<Route> {
    let mut routes: Vec<Route> =
        facts.routes.iter().filter(|route| belongs(route, ip, ips)).cloned().collect();
    if settings.configured(ip).is_some() {
        routes.retain(|route| route.destination.prefix_len() > 0);
    }
    let has_default = routes.iter().any(|route| route.destination.prefix_len() == 0);
    if let Some(gateway) = settings.gateway(ip).filter(|_| !has_default) {
        routes.push(Route::via(everywhere(gateway), gateway, facts.link));
    }
    nearest_first(&mut routes);
    routes
}

fn belongs(route: &Route, ip: &IpConfig, ips: &[IpConfig]) -> bool {
    let mut anchors: Vec<IpAddr> = route.hops.iter().filter_map(|hop| hop.gateway).collect();
    anchors.extend(route.source);
    let near = |ip: &IpConfig| anchors.iter().any(|anchor| ip.address.contains(anchor));
    Family::of(route.destination.addr()) == Family::of(ip.address.addr())
        && (near(ip) || !ips.iter().any(near))
}

/// What the main table loses, and what it keeps or gets if there shall be hints.
fn leave_main(settings: &Settings, ips: &[IpConfig], facts: &Facts, plan: &mut Plan) {
    let by_gateway = |route: &Route| route.hops.iter().any(|hop| hop.gateway.is_some());
    let mut leaving: Vec<Route> =
        facts.routes.iter().filter(|route| !is_link_local(route)).cloned().collect();
    leaving.retain(|route| by_gateway(route) || !settings.source_hints);
    nearest_first(&mut leaving);
    // The farthest first, so that whoever undoes this starts with the nearest.
    plan.removals.extend(leaving.into_iter().rev().map(Change::DeleteRoute));
    if !settings.source_hints {
        return;
    }
    let mut hinted: Vec<IpNet> = Vec::new();
    for ip in ips.iter().filter(|ip| ip.address.prefix_len() < ip.address.max_prefix_len()) {
        let subnet = ip.address.trunc();
        // Of several addresses in one subnet, the first.
        if hinted.contains(&subnet) {
            continue;
        }
        hinted.push(subnet);
        let there = facts.routes.iter().find(|route| route.destination == subnet && !by_gateway(route));
        if there.is_some_and(|route| route.source.is_some()) {
            continue;
        }
        let plain = there.cloned().unwrap_or_else(|| Route::on_link(subnet, facts.link));
        // IPv6 takes a route that differs in nothing but the source for the same one.
        plan.removals.extend(there.cloned().map(Change::DeleteRoute));
        plan.removals.push(Change::AddRoute(Route { source: Some(ip.address.addr()), ..plain }));
    }
}

fn is_link_local(route: &Route) -> bool {
    match route.destination {
        IpNet::V4(_) => false,
        IpNet::V6(net) => net.addr().is_unicast_link_local() && net.prefix_len() >= 10,
    }
}

fn everywhere(gateway: IpAddr) -> IpNet {
    match gateway {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    const LINK: u32 = 7;

    fn ip(address: &str, gateway: &str) -> IpConfig {
        IpConfig { gateway: gateway.parse().ok(), ..IpConfig::new(address.parse().unwrap()) }
    }

    fn connected(net: &str, source: &str) -> Route {
        Route { source: source.parse().ok(), ..Route::on_link(net.parse().unwrap(), LINK) }
    }

    fn via(net: &str, gateway: &str) -> Route {
        Route::via(net.parse().unwrap(), gateway.parse().unwrap(), LINK)
    }

    fn facts(routes: Vec<Route>) -> Facts {
        let rule = |priority, table| Rule::new(Family::V4, priority, Action::Table(table));
        let rules = vec![rule(0, 255), rule(32_766, 254), rule(32_767, 253)];
        Facts { link: LINK, routes, tables: vec![253, 254, 255], rules }
    }

    /// One line a change.
    fn told(plan: &Plan) -> String {
        let route = |route: &Route| {
            let mut text = route.destination.to_string();
            for gateway in route.hops.iter().filter_map(|hop| hop.gateway) {
                let _ = write!(text, " via {gateway}");
            }
            let source = route.source.map_or_else(String::new, |source| format!(" src {source}"));
            format!("{text}{source} in {}", route.table)
        };
        let rule = |rule: &Rule| format!("{} from {} {:?}", rule.priority, rule.source.unwrap(), rule.action);
        let line = |change: &Change| match change {
            Change::AddRoute(value) => format!("+ {}\n", route(value)),
            Change::DeleteRoute(value) => format!("- {}\n", route(value)),
            Change::AddRule(value) => format!("+ {}\n", rule(value)),
            Change::DeleteRule(value) => format!("- {}\n", rule(value)),
        };
        plan.additions.iter().chain(&plan.removals).map(line).collect()
    }

    #[test]
    fn the_routes_of_an_address_move_into_its_table() {
        let facts = facts(vec![
            via("0.0.0.0/0", "192.168.1.1"),
            connected("192.168.1.0/24", "192.168.1.209"),
            via("10.0.0.0/8", "192.168.1.5"),
        ]);
        let plan = plan(&Settings::default(), &[ip("192.168.1.209/24", "192.168.1.1")], &facts);
        assert_eq!(
            told(&plan),
            "+ 192.168.1.0/24 src 192.168.1.209 in 100\n\
             + 0.0.0.0/0 via 192.168.1.1 in 100\n\
             + 10.0.0.0/8 via 192.168.1.5 in 100\n\
             + 32765 from 192.168.1.209/32 Table(100)\n\
             - 10.0.0.0/8 via 192.168.1.5 in 254\n\
             - 0.0.0.0/0 via 192.168.1.1 in 254\n\
             - 192.168.1.0/24 src 192.168.1.209 in 254\n"
        );
    }

    #[test]
    fn two_addresses_get_two_tables_and_what_is_in_use_is_passed_over() {
        let mut facts = facts(vec![
            connected("192.168.1.0/24", "192.168.1.209"),
            connected("192.168.101.0/24", "192.168.101.209"),
            connected("10.5.0.0/16", "nothing"),
        ]);
        facts.tables.push(100);
        let ips = [ip("192.168.1.209/24", "192.168.1.1"), ip("192.168.101.209/24", "")];
        assert_eq!(
            told(&plan(&Settings::default(), &ips, &facts)),
            "+ 192.168.1.0/24 src 192.168.1.209 in 101\n\
             + 10.5.0.0/16 in 101\n\
             + 0.0.0.0/0 via 192.168.1.1 in 101\n\
             + 32765 from 192.168.1.209/32 Table(101)\n\
             + 192.168.101.0/24 src 192.168.101.209 in 102\n\
             + 10.5.0.0/16 in 102\n\
             + 32764 from 192.168.101.209/32 Table(102)\n\
             - 10.5.0.0/16 in 254\n\
             - 192.168.101.0/24 src 192.168.101.209 in 254\n\
             - 192.168.1.0/24 src 192.168.1.209 in 254\n"
        );
    }

    #[test]
    fn configured_gateways_take_the_place_of_all_others() {
        let facts = facts(vec![
            via("0.0.0.0/0", "192.168.1.1"),
            connected("192.168.1.0/24", "192.168.1.209"),
            via("::/0", "fd00::1"),
            connected("fd00::/64", ""),
            connected("fe80::/64", ""),
        ]);
        let settings = Settings { gateways: vec!["192.168.1.254".parse().unwrap()], ..Settings::default() };
        let ips = [ip("192.168.1.209/24", "192.168.1.1"), ip("fd00::209/64", "fd00::1")];
        assert_eq!(
            told(&plan(&settings, &ips, &facts)),
            "+ 192.168.1.0/24 src 192.168.1.209 in 100\n\
             + 0.0.0.0/0 via 192.168.1.254 in 100\n\
             + 32765 from 192.168.1.209/32 Table(100)\n\
             + fd00::/64 in 101\n\
             + fe80::/64 in 101\n\
             + ::/0 via fd00::1 in 101\n\
             + 32765 from fd00::209/128 Table(101)\n\
             - ::/0 via fd00::1 in 254\n\
             - 0.0.0.0/0 via 192.168.1.1 in 254\n\
             - fd00::/64 in 254\n\
             - 192.168.1.0/24 src 192.168.1.209 in 254\n"
        );
    }

    #[test]
    fn a_gateway_outside_every_subnet_serves_the_single_address() {
        let facts = facts(vec![via("0.0.0.0/0", "169.254.1.1"), connected("169.254.1.1/32", "")]);
        let plan = plan(&Settings::default(), &[ip("10.0.0.5/32", "")], &facts);
        assert!(told(&plan).starts_with(
            "+ 169.254.1.1/32 in 100\n\
             + 0.0.0.0/0 via 169.254.1.1 in 100\n\
             + 32765 from 10.0.0.5/32 Table(100)\n"
        ));
    }

    #[test]
    fn hints_leave_the_subnets_in_the_main_table() {
        let facts = facts(vec![
            via("0.0.0.0/0", "192.168.1.1"),
            connected("192.168.1.0/24", "192.168.1.209"),
            connected("fd00::/64", ""),
        ]);
        let settings = Settings { source_hints: true, ..Settings::default() };
        let ips = [ip("192.168.1.209/24", "192.168.1.1"), ip("fd00::209/64", ""), ip("fd00::210/64", "")];
        let told = told(&plan(&settings, &ips, &facts));
        assert!(
            told.ends_with(
                "- 0.0.0.0/0 via 192.168.1.1 in 254\n\
                 - fd00::/64 in 254\n\
                 + fd00::/64 src fd00::209 in 254\n"
            ),
            "{told}"
        );
    }

    #[test]
    fn a_configured_table_gets_rules_alone() {
        let facts = facts(vec![via("0.0.0.0/0", "192.168.1.1")]);
        let settings = Settings { table: Some(5), ..Settings::default() };
        let ips = [ip("192.168.1.209/24", "192.168.1.1"), ip("fd00::209/64", "")];
        assert_eq!(
            told(&plan(&settings, &ips, &facts)),
            "+ 32765 from 192.168.1.209/32 Table(5)\n+ 32765 from fd00::209/128 Table(5)\n"
        );
    }
}
