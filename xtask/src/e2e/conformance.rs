//! Kubernetes' own end-to-end suite: every `[sig-network]` `[Conformance]` test, and every test of network policies.
//!
//! [`run`] and [`policies`] start the suite's program beside the API server and print each test with its result, as
//! docs/conformance.md lists them. Kubernetes' Services are kube-proxy's here, not ours. Tests that ask a cluster DNS run where there is a CoreDNS
//! beside Kubernetes' binaries (`coredns`); without one they are left out and named.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::cluster::{Cluster, assets};
use crate::workspace;

/// How many tests run at a time: most of a test is waiting.
const PARALLEL: &str = "--procs=4";

/// Those that ask a cluster DNS.
const NEEDS_DNS: &str = "DNS should provide DNS|DNS should resolve DNS|ExternalName|should serve a basic endpoint from \
                         pods|should serve multiport endpoints from pods|should be able to create a functioning NodePort \
                         service|session affinity|should serve endpoints on same port and different protocols";

/// Which of the suite's tests are run.
struct Choice {
    /// What it is called in what is printed.
    name: &'static str,
    focus: &'static str,
    skip: Option<&'static str>,
}

/// Runs the conformance tests once; prints and judges their report.
pub(super) fn run(cluster: &Cluster) -> anyhow::Result<()> {
    let has_dns = start_dns(cluster)?;
    if !has_dns {
        println!("conformance: without a cluster DNS these were left out: {NEEDS_DNS}");
    }
    let skip = (!has_dns).then_some(NEEDS_DNS);
    suite(cluster, &Choice { name: "conformance", focus: r"\[sig-network\].*\[Conformance\]", skip })
}

/// Runs the tests of NetworkPolicy, but for those that send SCTP, which this kernel opens no sockets of.
pub(super) fn policies(cluster: &Cluster) -> anyhow::Result<()> {
    start_dns(cluster)?;
    let skip = Some(r"\[Feature:SCTPConnectivity\]");
    suite(cluster, &Choice { name: "policies", focus: r"\[sig-network\] Netpol", skip })
}

/// Runs the suite once; prints and judges its report.
fn suite(cluster: &Cluster, choice: &Choice) -> anyhow::Result<()> {
    let Choice { name, focus, skip } = choice;
    let suite = assets().join("e2e.test");
    if !suite.exists() || !assets().join("ginkgo").exists() || !assets().join("agnhost").exists() {
        let reason = format!("{} has no e2e.test, ginkgo and agnhost", assets().display());
        workspace::not_run(&format!("e2e {name}"), &reason);
        return Ok(());
    }
    cluster.agnhost(super::NODES)?;
    let reports = cluster.path(name);
    fs::create_dir_all(&reports)?;
    let mut command: Command = cluster.beside_the_api_server(assets().join("ginkgo"));
    command.args([PARALLEL, "--no-color", "--timeout=60m"]).arg(format!("--focus={focus}"));
    command.args(skip.map(|skip| format!("--skip={skip}")));
    command.arg(&suite).arg("--").arg("--kubeconfig").arg(cluster.path("kubeconfig"));
    command.args(["--provider=skeleton", "--disable-log-dump", "--report-dir"]).arg(&reports);
    let log = fs::File::create(cluster.path("e2e.log"))?;
    command.current_dir(&reports).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let status = command.status().context("starting ginkgo")?;
    let results = results(&fs::read_to_string(reports.join("junit_01.xml"))?);
    for (test, result) in &results {
        println!("{name}: {result:<7} {test}");
    }
    let count = |wanted: &str| results.values().filter(|result| **result == wanted).count();
    println!("{name}: {} passed, {} failed", count("passed"), count("failed"));
    if !status.success() {
        // For whoever looks at it: the cluster is gone by then.
        fs::copy(cluster.path("e2e.log"), workspace::root().join("target/e2e.log"))?;
    }
    ensure!(
        status.success() && count("failed") == 0,
        "the suite ended with {status}; target/e2e.log has more"
    );
    Ok(())
}

/// The tests of a JUnit report with their results, those that did not run left out.
fn results(report: &str) -> BTreeMap<String, &'static str> {
    let mut results = BTreeMap::new();
    for case in report.split("<testcase ").skip(1) {
        let Some(name) = attribute(case, "name") else { continue };
        let Some(test) = name.strip_prefix("[It] ") else { continue };
        let result = match attribute(case, "status") {
            Some("passed") => "passed",
            Some("skipped" | "pending") | None => continue,
            Some(_) => "failed",
        };
        results.insert(test.replace("&#39;", "'").replace("&amp;", "&"), result);
    }
    results
}

fn attribute<'a>(case: &'a str, name: &str) -> Option<&'a str> {
    let (head, _) = case.split_once('>')?;
    let at = head.find(&format!("{name}=\""))? + name.len() + 2;
    head[at..].split('"').next()
}

/// A CoreDNS at the address that kubelets tell pods, if there is a binary of it; true if there is.
fn start_dns(cluster: &Cluster) -> anyhow::Result<bool> {
    let binary = assets().join("coredns");
    if !binary.exists() {
        return Ok(false);
    }
    let image = "example.invalid/coredns:here";
    cluster.image(image, "[\"/coredns\"]", &[format!("/coredns={}", binary.display())])?;
    cluster.apply_text(&dns(image).to_string())?;
    cluster.kubectl(&["-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s"])?;
    Ok(true)
}

fn dns(image: &str) -> Value {
    let labels = json!({ "k8s-app": "kube-dns" });
    let metadata = json!({ "name": "coredns", "namespace": "kube-system" });
    let corefile = ".:53 {\n errors\n health :8181\n ready :8182\n kubernetes cluster.local in-addr.arpa ip6.arpa {\n  \
                    pods insecure\n  fallthrough in-addr.arpa ip6.arpa\n  ttl 5\n }\n}\n";
    let rules = json!([
        { "apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces", "nodes"], "verbs": ["list", "watch"] },
        { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] },
    ]);
    let container = json!({
        "name": "coredns", "image": image, "args": ["-conf", "/etc/coredns/Corefile"],
        "readinessProbe": { "httpGet": { "port": 8182, "path": "/ready" }, "periodSeconds": 1 },
        "volumeMounts": [{ "name": "config", "mountPath": "/etc/coredns" }],
    });
    let pod = json!({
        "serviceAccountName": "coredns", "dnsPolicy": "Default", "containers": [container],
        "volumes": [{ "name": "config", "configMap": { "name": "coredns" } }],
    });
    let ports = json!([
        { "name": "dns", "port": 53, "protocol": "UDP" }, { "name": "dns-tcp", "port": 53, "protocol": "TCP" },
    ]);
    let subject = json!([{ "kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system" }]);
    let role = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "coredns" });
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata },
        { "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": "coredns" }, "rules": rules },
        { "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": "coredns" },
          "roleRef": role, "subjects": subject },
        { "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": { "Corefile": corefile } },
        { "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": {
          "selector": { "matchLabels": labels }, "template": { "metadata": { "labels": labels }, "spec": pod } } },
        { "apiVersion": "v1", "kind": "Service", "metadata": { "name": "kube-dns", "namespace": "kube-system" },
          "spec": { "clusterIP": "10.96.0.10", "selector": labels, "ports": ports } },
    ] })
}

#[cfg(test)]
mod tests {
    use super::results;

    #[test]
    fn a_report_is_read_test_by_test() {
        let report = r#"<testsuite><testcase name="[It] a &amp; b" classname="x" status="passed" time="1"></testcase>
<testcase name="[It] c" status="failed" time="2"><failure>no</failure></testcase>
<testcase name="[It] d" status="skipped" time="0"></testcase>
<testcase name="[BeforeSuite]" status="passed" time="0"></testcase></testsuite>"#;
        let found = results(report);
        let found: Vec<(&str, &str)> = found.iter().map(|(test, result)| (test.as_str(), *result)).collect();
        assert_eq!(found, [("a & b", "passed"), ("c", "failed")]);
    }
}
