//! The EndpointSlices of Services with a selector: what the endpoint slice controller would keep.
//!
//! Pure. A slice holds one family, as in Kubernetes; pods that resolve a named target port to different
//! numbers stand in different slices, for a slice has one list of ports. Kubernetes documentation
//! "EndpointSlices".

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use cluster::{
    Endpoint, EndpointPort, EndpointSlice, Labels, NamespacedName, Phase, Pod, Service, ServiceType,
    Snapshot, TargetPort,
};

/// The slices that should exist for the Services and pods of `snapshot`, by name.
pub(crate) fn endpoint_slices(snapshot: &Snapshot) -> BTreeMap<NamespacedName, EndpointSlice> {
    let kept = snapshot
        .services
        .values()
        .filter(|service| !service.selector.is_empty() && service.service_type != ServiceType::ExternalName);
    kept.flat_map(|service| slices_of(service, snapshot)).map(|slice| (slice.name.clone(), slice)).collect()
}

fn slices_of(service: &Service, snapshot: &Snapshot) -> Vec<EndpointSlice> {
    let backing: Vec<&Pod> = snapshot
        .pods
        .values()
        .filter(|pod| pod.name.namespace == service.name.namespace)
        .filter(|pod| pod.labels.contains_all(&service.selector))
        .map(AsRef::as_ref)
        .collect();
    let mut slices = Vec::new();
    for (family, belongs) in [("ipv4", IpAddr::is_ipv4 as fn(&IpAddr) -> bool), ("ipv6", IpAddr::is_ipv6)] {
        let mut groups: BTreeMap<Vec<Option<u16>>, Vec<Endpoint>> = BTreeMap::new();
        for pod in &backing {
            if let Some(endpoint) = endpoint(pod, snapshot, belongs) {
                groups.entry(target_ports(service, pod)).or_default().push(endpoint);
            }
        }
        for (index, (ports, endpoints)) in groups.into_iter().enumerate() {
            let suffix = if index == 0 { String::new() } else { format!("-{}", index + 1) };
            slices.push(slice(service, &format!("{family}{suffix}"), &ports, endpoints));
        }
    }
    slices
}

/// A pod as an endpoint, once it runs and has an address of the family.
fn endpoint(pod: &Pod, snapshot: &Snapshot, belongs: fn(&IpAddr) -> bool) -> Option<Endpoint> {
    let status = snapshot.pod_statuses.get(&pod.name);
    let phase = status.map_or(pod.phase, |status| status.phase);
    let address = snapshot.pod_addresses(&pod.name).iter().find(|address| belongs(address))?;
    (phase == Phase::Running).then(|| Endpoint {
        addresses: [*address].into(),
        ready: true,
        serving: true,
        terminating: false,
        node: snapshot.pod_node(&pod.name).cloned(),
        pod: Some(Arc::clone(&pod.name.name)),
    })
}

/// The pod's number for each of the Service's ports; none where it has no port of that name.
fn target_ports(service: &Service, pod: &Pod) -> Vec<Option<u16>> {
    let number = |name: &str, protocol| {
        pod.ports.iter().find(|port| port.name.as_deref() == Some(name) && port.protocol == protocol)
    };
    let ports = service.ports.iter();
    ports
        .map(|port| match &port.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => number(name, port.protocol).map(|port| port.port),
        })
        .collect()
}

fn slice(service: &Service, suffix: &str, ports: &[Option<u16>], endpoints: Vec<Endpoint>) -> EndpointSlice {
    let ports = service.ports.iter().zip(ports).filter_map(|(port, target)| {
        Some(EndpointPort { name: port.name.clone(), protocol: port.protocol, port: Some((*target)?) })
    });
    EndpointSlice {
        name: NamespacedName::new(
            Arc::clone(&service.name.namespace),
            format!("{}-{suffix}", service.name.name),
        ),
        service: Some(Arc::clone(&service.name.name)),
        labels: Labels::from_iter([("kubernetes.io/service-name", &*service.name.name)]),
        endpoints: endpoints.into(),
        ports: ports.collect(),
    }
}

#[cfg(test)]
mod tests {
    use cluster::{Change, ContainerPort, Object, PodStatus, Protocol, ServicePort};

    use super::*;

    fn service(target: TargetPort) -> Service {
        Service {
            name: NamespacedName::new("default", "front"),
            labels: Labels::default(),
            service_type: ServiceType::ClusterIp,
            selector: Labels::from_iter([("app", "front")]),
            headless: false,
            cluster_addresses: Box::default(),
            ports: [ServicePort { name: None, protocol: Protocol::Tcp, port: 80, target, node_port: None }]
                .into(),
            external_name: None,
        }
    }

    fn pod(snapshot: &mut Snapshot, name: &str, port: u16, addresses: &[&str]) {
        let name = NamespacedName::new("default", name);
        let mut pod = Pod::named(name.clone());
        pod.labels = Labels::from_iter([("app", "front")]);
        pod.ports = [ContainerPort {
            name: Some("web".into()),
            port,
            protocol: Protocol::Tcp,
            host_port: None,
            host_address: None,
        }]
        .into();
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let status = PodStatus { pod: name, node: Some("node1".into()), phase: Phase::Running, addresses };
        snapshot.apply(Change::Set(Object::from(pod)));
        snapshot.apply(Change::Set(Object::from(status)));
    }

    fn text(snapshot: &Snapshot) -> Vec<String> {
        let slices = endpoint_slices(snapshot);
        let line = |slice: &EndpointSlice| {
            let addresses: Vec<String> =
                slice.endpoints.iter().map(|endpoint| endpoint.addresses[0].to_string()).collect();
            let ports: Vec<String> = slice
                .ports
                .iter()
                .map(|port| port.port.map_or("?".into(), |port| port.to_string()))
                .collect();
            format!("{} {} :{}", slice.name, addresses.join(","), ports.join(","))
        };
        slices.values().map(line).collect()
    }

    #[test]
    fn a_slice_holds_one_family() {
        let mut snapshot = Snapshot::default();
        snapshot.apply(Change::Set(Object::from(service(TargetPort::Number(8080)))));
        pod(&mut snapshot, "a", 80, &["10.244.0.2", "fd00:10:244::2"]);
        pod(&mut snapshot, "b", 80, &["10.244.1.2"]);
        let want =
            ["default/front-ipv4 10.244.0.2,10.244.1.2 :8080", "default/front-ipv6 fd00:10:244::2 :8080"];
        assert_eq!(text(&snapshot), want);
    }

    #[test]
    fn pods_that_differ_in_a_named_port_stand_in_different_slices() {
        let mut snapshot = Snapshot::default();
        snapshot.apply(Change::Set(Object::from(service(TargetPort::Name("web".into())))));
        pod(&mut snapshot, "a", 80, &["10.244.0.2"]);
        pod(&mut snapshot, "b", 8080, &["10.244.1.2"]);
        let want = ["default/front-ipv4 10.244.0.2 :80", "default/front-ipv4-2 10.244.1.2 :8080"];
        assert_eq!(text(&snapshot), want);
    }

    #[test]
    fn a_pod_without_an_address_is_no_endpoint() {
        let mut snapshot = Snapshot::default();
        snapshot.apply(Change::Set(Object::from(service(TargetPort::Number(80)))));
        pod(&mut snapshot, "a", 80, &[]);
        assert!(text(&snapshot).is_empty());
    }
}
