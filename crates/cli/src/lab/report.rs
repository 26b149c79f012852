//! A lab as tables.

use std::net::IpAddr;

use ::lab::{Listing, Probe};

use crate::table::{Table, joined};

/// Nodes, then pods.
pub(crate) fn listing(listing: &Listing, wide: bool) -> Vec<Table> {
    let mut tables = vec![nodes(listing, wide)];
    if !listing.pods.is_empty() {
        tables.extend(pods(listing, wide));
    }
    tables.extend(problems(listing));
    tables
}

fn problems(listing: &Listing) -> Option<Table> {
    let mut table = Table::new(["NOT USED IN THE STORE"]);
    listing.problems.iter().for_each(|problem| table.row([problem]));
    (!listing.problems.is_empty()).then_some(table)
}

fn nodes(listing: &Listing, wide: bool) -> Table {
    let mut headings = vec!["NODE", "ADDRESSES", "POD CIDRS", "AGENT"];
    headings.extend(wide.then_some("NETNS"));
    let mut table = Table::new(headings);
    for node in &listing.nodes {
        let agent = node.agent_pid.map_or_else(|| "down".to_owned(), |pid| format!("pid {pid}"));
        let mut row = vec![node.name.clone(), joined(&node.addresses), joined(&node.pod_cidrs), agent];
        row.extend(wide.then(|| node.netns.clone()));
        table.row(row);
    }
    table
}

/// Pods alone.
pub(crate) fn pods(listing: &Listing, wide: bool) -> Vec<Table> {
    let mut headings = vec!["NAMESPACE", "POD", "NODE", "ADDRESSES", "PHASE"];
    headings.extend(wide.then_some("NETNS"));
    let reasons = listing.pods.iter().any(|pod| pod.reason.is_some());
    headings.extend(reasons.then_some("REASON"));
    let mut table = Table::new(headings);
    for pod in &listing.pods {
        let mut row = vec![
            pod.namespace.clone(),
            pod.name.clone(),
            pod.node.clone().unwrap_or_default(),
            joined(&pod.addresses),
            pod.phase.clone(),
        ];
        row.extend(wide.then(|| pod.netns.clone().unwrap_or_default()));
        row.extend(reasons.then(|| pod.reason.clone().unwrap_or_default()));
        table.row(row);
    }
    vec![table]
}

/// A matrix for each family, then throughput.
pub(crate) fn probe(probe: &Probe, _wide: bool) -> Vec<Table> {
    let mut tables = Vec::new();
    let families = [("IPv4", IpAddr::is_ipv4 as fn(&IpAddr) -> bool), ("IPv6", IpAddr::is_ipv6)];
    for (family, belongs) in families {
        if probe.reach.iter().any(|pair| belongs(&pair.address)) {
            tables.push(matrix(probe, family, belongs));
        }
    }
    if !probe.throughput.is_empty() {
        tables.push(throughput(probe));
    }
    tables
}

/// Who asks from top to bottom, who is asked from left to right, best round trip in milliseconds.
fn matrix(probe: &Probe, family: &str, belongs: fn(&IpAddr) -> bool) -> Table {
    let mut headings = vec![String::new(), "NODE".to_owned()];
    headings.extend((1..=probe.pods.len()).map(|number| number.to_string()));
    let mut table = Table::new(headings);
    let mut cells = vec![vec![String::new(); probe.pods.len()]; probe.pods.len()];
    let (mut reached, mut pairs) = (0, 0);
    for pair in probe.reach.iter().filter(|pair| belongs(&pair.address)) {
        pairs += 1;
        reached += usize::from(pair.round_trip_micros.is_some());
        cells[pair.from][pair.to] = pair.round_trip_micros.map_or_else(|| "FAIL".to_owned(), milliseconds);
    }
    for (number, (pod, cells)) in probe.pods.iter().zip(cells).enumerate() {
        let name = pod.name.strip_prefix("default/").unwrap_or(&pod.name);
        let head = [format!("{} {name}", number + 1), pod.node.clone()];
        table.row(head.into_iter().chain(cells));
    }
    let title = format!("{family}: round trips in milliseconds, from each row to each column");
    table.titled(title).remarked(format!("{reached} of {pairs} pairs reached"))
}

fn milliseconds(micros: u64) -> String {
    format!("{}.{:03}", micros / 1000, micros % 1000)
}

fn throughput(probe: &Probe) -> Table {
    let mut table = Table::new(["FROM", "TO", "ADDRESS", "GBIT/S"]);
    for pair in &probe.throughput {
        let name = |index: usize| {
            let pod = &probe.pods[index];
            format!("{} ({})", pod.name.strip_prefix("default/").unwrap_or(&pod.name), pod.node)
        };
        let rate = match (pair.bits_per_second, &pair.reason) {
            (Some(bits), _) => format!("{}.{}", bits / 1_000_000_000, bits / 100_000_000 % 10),
            (None, reason) => format!("FAIL {}", reason.as_deref().unwrap_or_default()),
        };
        table.row([name(pair.from), name(pair.to), pair.address.to_string(), rate]);
    }
    table.titled("Throughput across nodes, one TCP connection")
}

#[cfg(test)]
mod tests {
    use ::lab::{ProbedPod, Reach};

    use super::*;

    #[test]
    fn a_matrix_shows_every_pair_and_counts_those_reached() {
        let pod = |name: &str| ProbedPod { name: format!("default/{name}"), node: "node1".to_owned() };
        let reach = |from, to, took| Reach {
            from,
            to,
            address: IpAddr::from([10, 244, 0, 2]),
            round_trip_micros: took,
        };
        let probe = Probe {
            pods: vec![pod("a"), pod("b")],
            reach: vec![reach(0, 1, Some(41)), reach(1, 0, None)],
            throughput: Vec::new(),
        };
        let text = super::probe(&probe, false)[0].render(false);
        assert!(text.contains("1 a  node1  -     0.041\n"), "{text}");
        assert!(text.contains("2 b  node1  FAIL  -\n"), "{text}");
        assert!(text.ends_with("1 of 2 pairs reached\n"), "{text}");
    }
}
