//! `route-override`: takes routes of earlier plugins away and puts others in their place.
//!
//! Read [`RouteOverride`] first, then [`Overrides`] (what is asked for) and [`edit`], which decides what becomes
//! of the result and of the kernel's routes, and touches nothing. The order: all routes flushed, default routes
//! flushed, single ones deleted, others added.
//!
//! What stays true: the result that is passed on and the main table of the pod's namespace say the same, or the
//! ADD fails and changes neither. What the kernel itself keeps for the addresses is not flushed. DEL leaves
//! routes as they are: they go with the interface.
//! Sources: the keys that openshift/route-override-cni documents, and its observed behaviour.

use std::net::IpAddr;

use cni::{AddResult, Code, Error, FieldError, Fields, Item, Plugin, Request, Route};
use ipnet::IpNet;
use kernel::link::Link;
use kernel::route::{self, Route as KernelRoute};

use super::changes::{Change, Changes, nearest_first, routes_over};
use crate::interface::pod::{Pod, Setup, routes};

/// The plugin.
#[derive(Debug)]
pub struct RouteOverride;

impl Plugin for RouteOverride {
    fn name(&self) -> &'static str {
        "route-override"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let overrides = Overrides::of(request)?;
        let result = super::previous(request)?;
        let mut pod = Pod::open(request.netns()?)?;
        let link = found(&mut pod, &request.ifname)?;
        let mut present = routes_over(pod.socket(), link.index)?;
        for other in others(&result, &request.ifname) {
            // An interface that an earlier plugin told of and nobody made has no routes.
            if let Some(other) = pod.find(other)? {
                present.extend(routes_over(pod.socket(), other.index)?);
            }
        }
        let edit = edit(&overrides, result, &present, link.index);
        let mut changes = Changes::new(pod.socket());
        match changes.make(edit.removals).and_then(|()| changes.make(edit.additions)) {
            Ok(()) => Ok(edit.result),
            Err(error) => Err(changes.back(error)),
        }
    }

    /// Routes go with the interface.
    fn del(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let overrides = Overrides::of(request)?;
        if overrides.skip_check {
            return Ok(());
        }
        let result = super::previous(request)?;
        let mut pod = Pod::open(request.netns()?)?;
        let link = found(&mut pod, &request.ifname)?;
        let setup =
            Setup { routes: routes(&of_interface(&result, &request.ifname), link.index), ..Setup::default() };
        if let Some(lacking) = pod.missing(&link, &setup)? {
            return Err(Error::kernel(format!("route-override: {lacking}")));
        }
        let mut present = routes_over(pod.socket(), link.index)?;
        present.retain(|route| !result.routes.iter().any(|kept| kept.dst.trunc() == route.destination));
        // After a flush, plugins further down the chain may have added what they like.
        let named = Overrides { flush_routes: false, ..overrides };
        match present.iter().find(|route| named.removes(route)) {
            None => Ok(()),
            Some(route) => {
                Err(Error::kernel(format!("route-override: route is not removed: {}", route.destination)))
            }
        }
    }

    /// Nothing is outside the pod's namespace.
    fn gc(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        Overrides::of(request).map(drop).map_err(|error| Error { code: Code::NOT_READY, ..error })
    }
}

/// What the configuration asks for; a member of `args.cni` takes the place of the configuration's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Overrides {
    /// `flushroutes`: take all routes away.
    flush_routes: bool,
    /// `flushgateway`: take default routes and the addresses' gateways away.
    flush_gateway: bool,
    /// `delroutes` and `delecmproutes`: take these away.
    removed: Vec<Removed>,
    /// `addroutes` and `addecmproutes`: add these.
    added: Vec<Route>,
    /// `skipcheck`: CHECK looks at nothing.
    skip_check: bool,
}

/// Routes to be taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Removed {
    destination: IpNet,
    /// Only the ways by these; all, if there are none.
    gateways: Vec<IpAddr>,
    table: u32,
}

impl Overrides {
    /// Reads and checks the configuration.
    ///
    /// # Errors
    /// Code 6 for a key of the wrong type, 7 for a value that cannot be.
    fn of(request: &Request) -> Result<Self, Error> {
        let (own, args) = (request.config.fields(), request.config.args()?);
        let from = |key| if args.has(key) { &args } else { &own };
        let list = |key| from(key).array(key);
        let mut removed: Vec<Removed> = list("delroutes")?.iter().map(single).collect::<Result<_, _>>()?;
        for item in list("delecmproutes")? {
            let (destination, gateways) = several(&item.fields()?)?;
            removed.push(Removed { destination, gateways, table: route::MAIN_TABLE });
        }
        let read = |item: &Item<'_>| Route::from_fields(&item.fields()?);
        let mut added: Vec<Route> = list("addroutes")?.iter().map(read).collect::<Result<_, FieldError>>()?;
        for item in list("addecmproutes")? {
            let fields = item.fields()?;
            let (destination, gateways) = several(&fields)?;
            if gateways.is_empty() {
                return Err(fields.bad("gws", "must not be empty").into());
            }
            added.extend(gateways.into_iter().map(|gateway| Route::new(destination, Some(gateway))));
        }
        Ok(Self {
            flush_routes: from("flushroutes").bool("flushroutes")?,
            flush_gateway: from("flushgateway").bool("flushgateway")?,
            removed,
            added,
            skip_check: from("skipcheck").bool("skipcheck")?,
        })
    }

    /// Whether a route of the kernel goes, whole or by some of its ways.
    fn removes(&self, route: &KernelRoute) -> bool {
        let flushed = self.flush_routes && route.protocol != route::PROTOCOL_KERNEL;
        let is_default = route.destination.prefix_len() == 0;
        let in_main = route.table == route::MAIN_TABLE;
        (in_main && (flushed || (self.flush_gateway && is_default)))
            || self.removed.iter().any(|removed| removed.concerns(route))
    }
}

impl Removed {
    fn concerns(&self, route: &KernelRoute) -> bool {
        route.destination == self.destination
            && route.table == self.table
            && (self.gateways.is_empty() || route.hops.iter().any(|hop| self.goes_by(hop.gateway)))
    }

    fn goes_by(&self, gateway: Option<IpAddr>) -> bool {
        gateway.is_some_and(|gateway| self.gateways.contains(&gateway))
    }
}

/// A member of `delroutes`.
fn single(item: &Item<'_>) -> Result<Removed, FieldError> {
    let Route { dst, gw, table, .. } = Route::from_fields(&item.fields()?)?;
    let table = table.unwrap_or(route::MAIN_TABLE);
    Ok(Removed { destination: dst.trunc(), gateways: gw.into_iter().collect(), table })
}

/// A member of `delecmproutes` or `addecmproutes`: one destination, several gateways.
fn several(fields: &Fields<'_>) -> Result<(IpNet, Vec<IpAddr>), FieldError> {
    let Some(destination) = fields.parse::<IpNet>("dst")? else {
        return Err(fields.bad("dst", "missing; a network is needed, such as 10.1.2.0/24"));
    };
    let read = |text: &&str| text.parse().map_err(|_| fields.bad("gws", format!("{text:?} is no address")));
    Ok((destination.trunc(), fields.strings("gws")?.iter().map(read).collect::<Result<_, _>>()?))
}

/// What becomes of the result and of the kernel's routes.
#[derive(Debug, PartialEq, Eq)]
struct Edit {
    result: AddResult,
    removals: Vec<Change>,
    additions: Vec<Change>,
}

/// Decides. `present` are the routes of the pod's interfaces, `link` is the one that routes are added to.
fn edit(overrides: &Overrides, mut result: AddResult, present: &[KernelRoute], link: u32) -> Edit {
    let (mut going, staying): (Vec<KernelRoute>, Vec<KernelRoute>) =
        present.iter().cloned().partition(|route| overrides.removes(route));
    nearest_first(&mut going);
    let mut removals = Vec::new();
    // The farthest first, so that whoever undoes this starts with the nearest.
    for route in going.into_iter().rev() {
        removals.push(Change::DeleteRoute(route.clone()));
        removals.extend(remainder(overrides, &route).map(Change::AddRoute));
    }
    edit_result(overrides, &mut result);
    let new = AddResult { ips: result.ips.clone(), routes: overrides.added.clone(), ..AddResult::default() };
    let mut new = routes(&new, link);
    // The kernel would take one that somebody else has made for another route.
    new.retain(|wanted| !staying.iter().any(|found| does_the_same(found, wanted)));
    nearest_first(&mut new);
    for route in &overrides.added {
        if !result.routes.contains(route) {
            result.routes.push(route.clone());
        }
    }
    Edit { result, removals, additions: new.into_iter().map(Change::AddRoute).collect() }
}

/// Whether a route of the kernel makes another one needless, whoever made it.
fn does_the_same(found: &KernelRoute, wanted: &KernelRoute) -> bool {
    let gateways = |route: &KernelRoute| route.hops.iter().map(|hop| hop.gateway).collect::<Vec<_>>();
    found.destination == wanted.destination
        && found.table == wanted.table
        && gateways(found) == gateways(wanted)
        && (wanted.metric == 0 || wanted.metric == found.metric)
        && (found.mtu, found.advertised_mss) == (wanted.mtu, wanted.advertised_mss)
}

/// What stays of a route that loses some of its ways.
fn remainder(overrides: &Overrides, route: &KernelRoute) -> Option<KernelRoute> {
    let whole = Overrides { removed: Vec::new(), ..overrides.clone() };
    let concerned: Vec<&Removed> =
        overrides.removed.iter().filter(|removed| removed.concerns(route)).collect();
    if whole.removes(route) || concerned.iter().any(|removed| removed.gateways.is_empty()) {
        return None;
    }
    let stays = |gateway| !concerned.iter().any(|removed| removed.goes_by(gateway));
    let hops: Vec<_> = route.hops.iter().filter(|hop| stays(hop.gateway)).copied().collect();
    Some(KernelRoute { hops, ..route.clone() }).filter(|route| !route.hops.is_empty())
}

/// Takes out of the result what goes.
fn edit_result(overrides: &Overrides, result: &mut AddResult) {
    let gateways: Vec<IpAddr> = result.ips.iter().filter_map(|ip| ip.gateway).collect();
    let of_family =
        |dst: IpNet| gateways.iter().copied().find(|gateway| gateway.is_ipv4() == dst.addr().is_ipv4());
    result.routes.retain(|route| {
        let gateway = route.gw.or_else(|| of_family(route.dst));
        let removed = overrides.removed.iter().any(|removed| {
            removed.destination == route.dst.trunc()
                && removed.table == route.table.unwrap_or(route::MAIN_TABLE)
                && (removed.gateways.is_empty() || removed.goes_by(gateway))
        });
        let in_main = route.table.is_none_or(|table| table == route::MAIN_TABLE);
        let flushed = overrides.flush_routes || (overrides.flush_gateway && route.dst.prefix_len() == 0);
        !(removed || in_main && flushed)
    });
    if overrides.flush_gateway {
        result.ips.iter_mut().for_each(|ip| ip.gateway = None);
    }
}

fn found(pod: &mut Pod, name: &str) -> Result<Link, Error> {
    pod.find(name)?.ok_or_else(|| Error::kernel(format!("there is no interface {name} in the pod")))
}

/// The other interfaces inside the pod that the result tells of.
fn others<'a>(result: &'a AddResult, ifname: &'a str) -> impl Iterator<Item = &'a str> {
    let inside = result.interfaces.iter().filter(|interface| !interface.sandbox.is_empty());
    inside.map(|interface| interface.name.as_str()).filter(move |name| *name != ifname)
}

/// The result as far as it is about one interface; its routes name none.
fn of_interface(result: &AddResult, ifname: &str) -> AddResult {
    AddResult { ips: super::addresses(result, ifname).cloned().collect(), ..result.clone() }
}

#[cfg(test)]
mod tests {
    use cni::IpConfig;

    use super::*;

    fn overrides(config: &str) -> Result<Overrides, Error> {
        Overrides::of(&crate::testing::request(&format!(r#"{{"name": "net", {config}}}"#)))
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn via(destination: &str, gateways: &[&str]) -> KernelRoute {
        let mut route = KernelRoute::via(net(destination), gateways[0].parse().unwrap(), 7);
        let hop = route.hops[0];
        route.hops =
            gateways.iter().map(|gateway| route::Hop { gateway: gateway.parse().ok(), ..hop }).collect();
        route
    }

    fn result() -> AddResult {
        let ip = IpConfig { gateway: "10.0.0.1".parse().ok(), ..IpConfig::new(net("10.0.0.2/24")) };
        let route = |dst: &str, gw: &str| Route::new(net(dst), gw.parse().ok());
        let routes =
            vec![route("0.0.0.0/0", ""), route("10.8.0.0/16", "10.0.0.8"), route("10.8.0.0/16", "10.0.0.9")];
        AddResult { ips: vec![ip], routes, ..AddResult::default() }
    }

    fn present() -> Vec<KernelRoute> {
        let connected =
            KernelRoute { protocol: route::PROTOCOL_KERNEL, ..KernelRoute::on_link(net("10.0.0.0/24"), 7) };
        vec![connected, via("0.0.0.0/0", &["10.0.0.1"]), via("10.8.0.0/16", &["10.0.0.8", "10.0.0.9"])]
    }

    /// The kernel's routes that go and come, and the result's routes afterwards.
    fn done(config: &str) -> (Vec<String>, Vec<String>) {
        let edit = edit(&overrides(config).unwrap(), result(), &present(), 7);
        let line = |change: &Change| match change {
            Change::DeleteRoute(route) => format!("- {} {}", route.destination, route.hops.len()),
            Change::AddRoute(route) => format!("+ {} {}", route.destination, route.hops.len()),
            _ => String::new(),
        };
        let changes = edit.removals.iter().chain(&edit.additions).map(line).collect();
        (changes, edit.result.routes.iter().map(|route| route.dst.to_string()).collect())
    }

    #[test]
    fn flushing_takes_what_the_kernel_did_not_make_itself() {
        let (changes, left) =
            done(r#""flushroutes": true, "addroutes": [{"dst": "10.9.0.0/16", "gw": "10.0.0.5"}]"#);
        assert_eq!(changes, ["- 10.8.0.0/16 2", "- 0.0.0.0/0 1", "+ 10.9.0.0/16 1"]);
        assert_eq!(left, ["10.9.0.0/16"]);
    }

    #[test]
    fn flushing_gateways_takes_default_routes_and_the_addresses_gateways() {
        let asked = overrides(r#""flushgateway": true, "addroutes": [{"dst": "10.9.0.0/16"}]"#).unwrap();
        let edit = edit(&asked, result(), &present(), 7);
        assert_eq!(edit.removals, [Change::DeleteRoute(present()[1].clone())]);
        assert_eq!(edit.result.ips[0].gateway, None);
        // Without any gateway left it is a route to the link itself.
        assert_eq!(edit.additions, [Change::AddRoute(KernelRoute::on_link(net("10.9.0.0/16"), 7))]);
        let left: Vec<String> = edit.result.routes.iter().map(|route| route.dst.to_string()).collect();
        assert_eq!(left, ["10.8.0.0/16", "10.8.0.0/16", "10.9.0.0/16"]);
    }

    #[test]
    fn a_route_loses_one_way_or_all() {
        let (changes, left) = done(r#""delroutes": [{"dst": "10.8.0.0/16", "gw": "10.0.0.9"}]"#);
        assert_eq!(changes, ["- 10.8.0.0/16 2", "+ 10.8.0.0/16 1"]);
        assert_eq!(left, ["0.0.0.0/0", "10.8.0.0/16"]);
        let (changes, left) =
            done(r#""delroutes": [{"dst": "10.8.0.0/16"}, {"dst": "0.0.0.0/0", "gw": "10.0.0.1"}]"#);
        assert_eq!(changes, ["- 10.8.0.0/16 2", "- 0.0.0.0/0 1"]);
        assert_eq!(left, Vec::<String>::new());
        let (changes, left) =
            done(r#""delroutes": [{"dst": "10.8.0.0/16", "gw": "10.0.0.7"}, {"dst": "10.7.0.0/16"}]"#);
        assert_eq!((changes.len(), left.len()), (0, 3));
    }

    #[test]
    fn several_gateways_are_one_route_in_the_kernel_and_several_in_the_result() {
        let (changes, left) = done(
            r#""delecmproutes": [{"dst": "10.8.0.0/16", "gws": ["10.0.0.8", "10.0.0.9"]}],
               "addecmproutes": [{"dst": "10.9.0.0/16", "gws": ["10.0.0.8", "10.0.0.9"]}]"#,
        );
        assert_eq!(changes, ["- 10.8.0.0/16 2", "+ 10.9.0.0/16 2"]);
        assert_eq!(left, ["0.0.0.0/0", "10.9.0.0/16", "10.9.0.0/16"]);
    }

    #[test]
    fn arguments_take_the_place_of_the_configuration() {
        let asked = overrides(
            r#""flushroutes": true, "skipcheck": true, "addroutes": [{"dst": "10.9.0.0/16"}],
               "args": {"cni": {"flushroutes": false, "flushgateway": true, "addroutes": []}}"#,
        );
        let expected = Overrides { flush_gateway: true, skip_check: true, ..Overrides::default() };
        assert_eq!(asked.unwrap(), expected);
        for (config, code) in [
            (r#""addroutes": [{"gw": "10.0.0.1"}]"#, Code::INVALID_CONFIG),
            (r#""addecmproutes": [{"dst": "10.9.0.0/16"}]"#, Code::INVALID_CONFIG),
            (r#""delroutes": {}"#, Code::UNDECODABLE),
            (r#""args": {"cni": {"flushroutes": "yes"}}"#, Code::UNDECODABLE),
        ] {
            assert_eq!(overrides(config).unwrap_err().code, code, "{config}");
        }
    }
}
