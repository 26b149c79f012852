//! Services (`v1`), EndpointSlices (`discovery.k8s.io/v1`) and ServiceCIDRs (`networking.k8s.io/v1`).

use cluster::{
    Endpoint, EndpointPort, EndpointSlice, Service, ServiceCidr, ServicePort, ServiceType, TargetPort,
    check_label, check_subdomain,
};

use super::field::{Fault, Field};

/// The label by which an EndpointSlice names its Service.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";

pub(crate) fn service(document: &Field<'_, '_>) -> Result<Service, Fault> {
    let spec = document.get("spec")?;
    let several = spec.get("clusterIPs")?;
    let single = spec.get("clusterIP")?;
    let headless = single.text()? == Some("None");
    let cluster_addresses = match (several.items()?.is_empty(), single.filled_text()?) {
        _ if headless => Box::default(),
        (false, _) => several.each(Field::address)?,
        (true, Some(_)) => Box::from([single.address()?]),
        (true, None) => Box::default(),
    };
    Ok(Service {
        name: document.namespaced_name(check_label)?,
        labels: document.get("metadata")?.get("labels")?.labels()?,
        service_type: service_type(&spec.get("type")?)?,
        selector: spec.get("selector")?.labels()?,
        headless,
        cluster_addresses,
        ports: spec.get("ports")?.each(service_port)?,
        external_name: spec.get("externalName")?.filled_text()?.map(Into::into),
    })
}

pub(crate) fn service_cidr(document: &Field<'_, '_>) -> Result<ServiceCidr, Fault> {
    let cidrs = document.get("spec")?.get("cidrs")?.each(Field::cidr)?;
    Ok(ServiceCidr { name: document.cluster_name(check_subdomain)?, cidrs })
}

fn service_type(field: &Field<'_, '_>) -> Result<ServiceType, Fault> {
    let known =
        [ServiceType::ClusterIp, ServiceType::NodePort, ServiceType::LoadBalancer, ServiceType::ExternalName];
    let Some(text) = field.filled_text()? else { return Ok(ServiceType::ClusterIp) };
    let found = known.into_iter().find(|service_type| service_type.as_str() == text);
    found.ok_or_else(|| {
        field.fault(format!("is {text:?}, none of ClusterIP, NodePort, LoadBalancer, ExternalName"))
    })
}

fn service_port(field: &Field<'_, '_>) -> Result<ServicePort, Fault> {
    let port = field.get("port")?;
    let number = port.port()?.ok_or_else(|| port.fault("is missing".into()))?;
    let target = field.get("targetPort")?;
    Ok(ServicePort {
        name: field.get("name")?.name(check_label)?.map(Into::into),
        protocol: field.get("protocol")?.protocol()?,
        port: number,
        target: target_port(&target, number)?,
        node_port: field.get("nodePort")?.port_or_zero()?,
    })
}

/// A name, a number, or nothing, which stands for the Service's own port.
fn target_port(field: &Field<'_, '_>, own: u16) -> Result<TargetPort, Fault> {
    match field.text() {
        Ok(Some("")) => Ok(TargetPort::Number(own)),
        Ok(Some(name)) => Ok(TargetPort::Name(field.name(check_label)?.unwrap_or(name).into())),
        _ => Ok(TargetPort::Number(field.port_or_zero()?.unwrap_or(own))),
    }
}

pub(crate) fn endpoint_slice(document: &Field<'_, '_>) -> Result<EndpointSlice, Fault> {
    let metadata = document.get("metadata")?;
    let labels = metadata.get("labels")?.labels()?;
    let address_type = document.get("addressType")?;
    let endpoints = document.get("endpoints")?;
    Ok(EndpointSlice {
        name: document.namespaced_name(check_subdomain)?,
        service: labels.get(SERVICE_NAME).map(Into::into),
        labels,
        endpoints: match address_type.required_text()? {
            "IPv4" => endpoints.each(|field| endpoint(field, true))?,
            "IPv6" => endpoints.each(|field| endpoint(field, false))?,
            // Names instead of addresses, which Kubernetes' own proxies pass over as well.
            "FQDN" => Box::default(),
            other => return Err(address_type.fault(format!("is {other:?}, none of IPv4, IPv6, FQDN"))),
        },
        ports: document.get("ports")?.each(endpoint_port)?,
    })
}

fn endpoint(field: &Field<'_, '_>, of_v4: bool) -> Result<Endpoint, Fault> {
    let conditions = field.get("conditions")?;
    let ready = conditions.get("ready")?.truth()?.unwrap_or(true);
    let target = field.get("targetRef")?;
    let pod = if target.get("kind")?.text()? == Some("Pod") { target.get("name")?.text()? } else { None };
    let addresses = field.get("addresses")?.each(|entry| {
        let address = entry.address()?;
        let family = if of_v4 { "IPv4" } else { "IPv6" };
        if address.is_ipv4() == of_v4 {
            return Ok(address);
        }
        Err(entry.fault(format!("is {address}, but the slice's addressType is {family}")))
    })?;
    Ok(Endpoint {
        addresses,
        ready,
        serving: conditions.get("serving")?.truth()?.unwrap_or(ready),
        terminating: conditions.get("terminating")?.truth()?.unwrap_or(false),
        node: field.get("nodeName")?.name(check_subdomain)?.map(Into::into),
        pod: pod.map(Into::into),
    })
}

fn endpoint_port(field: &Field<'_, '_>) -> Result<EndpointPort, Fault> {
    Ok(EndpointPort {
        name: field.get("name")?.name(check_label)?.map(Into::into),
        protocol: field.get("protocol")?.protocol()?,
        port: field.get("port")?.port()?,
    })
}
