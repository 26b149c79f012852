//! `fairlead doctor`: the preflight of a node. What would keep Fairlead from working here, or will hurt later, each with
//! what to do about it.
//!
//! Read [`examine`] first: it goes through the families of checks, a file each. A family reads its facts and then judges
//! them in pure functions, so that what is said about a node can be tested without one.
//!
//! What stays true: nothing of the node is changed; no agent is needed; what cannot be looked at (mostly for lack of
//! root) is a note and hides nothing else. Kernel features are tried last, in a network namespace of their own, because
//! someone who is not root can only go there with the whole process and does not come back.

mod clock;
mod directories;
mod features;
mod firewall;
mod leftovers;
mod managers;
mod network;
mod overlap;
mod ports;
mod sysctls;
mod underlay;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ::agent::{Config, Options, Origin};
use anyhow::{Error, Result};
use clap::Args;

use crate::cni::doctor::{Moment, examine as examine_plugins};
use crate::finding::{self, Finding, Severity};
use crate::output::OutputOption;
use directories::Directories;
use network::Network;
use route::Family;

/// Say what would keep Fairlead from working on this node, or hurt later, and what to do about it
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  fairlead doctor\n  fairlead doctor --config /etc/fairlead/agent.yaml -o json\n\n\
    Changes nothing and needs no agent. Fails when there is an error among the findings. Without root some things \
    cannot be looked at; then a note says which."
)]
pub(crate) struct Arguments {
    /// The configuration that the agent will have
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the agent will leave what the CNI plugin reads
    #[arg(long, value_name = "DIR", default_value = Options::STATE_DIR)]
    state_dir: PathBuf,
    /// Where the container runtime looks for network configurations
    #[arg(long, value_name = "DIR", default_value = Options::CONF_DIR)]
    conf_dir: PathBuf,
    /// Where the container runtime looks for plugins; may be given several times
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: Vec<PathBuf>,
    /// Where host-local keeps its addresses
    #[arg(long, value_name = "DIR", default_value = leftovers::ADDRESSES)]
    ipam_dir: PathBuf,
    /// The node's file system, seen from here: a pod that has it below /host says --host-root /host
    #[arg(long, value_name = "DIR", default_value = "/")]
    host_root: PathBuf,
    #[command(flatten)]
    output: OutputOption,
}

/// Runs the verb.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    finding::report(&examine(arguments), arguments.output)
}

/// Everything there is to say, the worst first.
fn examine(arguments: &Arguments) -> Vec<Finding> {
    let mut findings = Vec::new();
    let root = Root(&arguments.host_root);
    let state_dir = root.at(&arguments.state_dir);
    let config = read_config(arguments.config.as_deref(), &state_dir, &mut findings);
    let directories = Directories {
        state: state_dir,
        conf: root.at(&arguments.conf_dir),
        bins: arguments.bin_dir.iter().map(|directory| root.at(directory)).collect(),
        addresses: root.at(&arguments.ipam_dir),
    };
    findings.extend(
        examine_plugins(&directories.conf, &directories.bins, Moment::Before).into_iter().map(unused),
    );
    findings.extend(directories.examine());
    findings.extend(clock::examine());
    findings.extend(managers::examine(root));
    examine_network(&config, root, &directories, &mut findings);
    findings.extend(features::examine(&config));
    finding::sort(&mut findings);
    findings
}

/// What is wrong with a configuration that comes after the agent's keeps no pod from starting.
fn unused(finding: Finding) -> Finding {
    let name = Path::new(&finding.subject).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_configuration = [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end));
    let behind = is_configuration && name > leftovers::OWN_CONFIGURATION;
    Finding {
        severity: if behind { finding.severity.max(Severity::Warning) } else { finding.severity },
        ..finding
    }
}

/// What stands in the kernel's network of this namespace.
fn examine_network(config: &Config, root: Root<'_>, directories: &Directories, findings: &mut Vec<Finding>) {
    let (rulesets, unread) = ::agent::host_firewall::read(None);
    findings.extend(unread.into_iter().map(|unread| Finding::unseen(unread.what, &Error::msg(unread.why))));
    let mut tunnel = Family::V4;
    match Network::read(&config.underlay.can_reach) {
        Ok(network) => {
            findings.extend(overlap::judge(&network.host, &config.cluster, &directories.own_networks()));
            let underlays = underlay::choose(&network.host, config, &network.reached);
            tunnel = underlay::tunnel(&underlays).map_or(tunnel, |(family, _)| family);
            findings.extend(underlay::judge(&network.host, config, &underlays));
            findings.extend(sysctls::examine(config, &underlays));
            findings.extend(ports::examine(config, &network));
            findings.extend(leftovers::examine(root, directories, &network, &rulesets));
        }
        Err(error) => findings.push(Finding::unseen("network", &error.into())),
    }
    findings.extend(firewall::judge(&rulesets, config, tunnel));
}

/// The configuration; one that cannot be used is a finding, and the defaults are taken instead.
fn read_config(file: Option<&Path>, state_dir: &Path, findings: &mut Vec<Finding>) -> Config {
    let Some(file) = file else { return Config::default() };
    let (config, origin) = Config::read_without_store(file, state_dir).unwrap_or_else(|error| {
        let (problem, hint) = explained(&error.into());
        let fix =
            if hint.is_empty() { "correct the file: the agent does not start with it".into() } else { hint };
        findings.push(Finding::error(file, format!("{problem}; all else is judged by the defaults"), fix));
        (Config::default(), Origin::File)
    });
    let instead = match origin {
        Origin::File => return config,
        Origin::Kept(kept) => format!("what the agent found good last, {}", kept.display()),
        Origin::Half => "the file alone, with the defaults of what it does not say".to_owned(),
    };
    let problem =
        format!("flannel.netConf is etcd, which only the agent reads; all else is judged by {instead}");
    findings.push(Finding::note(file, problem));
    config
}

/// An error's sentence, and its hints.
fn explained(error: &Error) -> (String, String) {
    let text = crate::failure::render(error, false);
    let mut lines = text.lines();
    let sentence = lines.next().unwrap_or_default();
    let hints: Vec<&str> = lines.filter_map(|line| line.strip_prefix("hint: ")).collect();
    (sentence.strip_prefix("error: ").unwrap_or(sentence).to_owned(), hints.join("; "))
}

/// Where the node's files are.
#[derive(Debug, Clone, Copy)]
struct Root<'a>(&'a Path);

impl Root<'_> {
    /// A path of the node, as this process can open it.
    fn at(self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        // Names stay as they were given where the node's root is this process's own.
        if self.0 == Path::new("/") {
            path.to_owned()
        } else {
            self.0.join(path.strip_prefix("/").unwrap_or(path))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_node_are_below_its_root() {
        assert_eq!(Root(Path::new("/")).at("/etc/cni"), Path::new("/etc/cni"));
        assert_eq!(Root(Path::new("/")).at("net.d"), Path::new("net.d"));
        assert_eq!(Root(Path::new("/host")).at("/etc/cni"), Path::new("/host/etc/cni"));
    }

    #[test]
    fn what_is_wrong_with_a_configuration_behind_the_agents_is_no_error() {
        let severity = |path: &str| unused(Finding::error(path, "broken", "mend it")).severity;
        assert_eq!(severity("/etc/cni/net.d/87-podman.conflist"), Severity::Warning);
        assert_eq!(severity("/etc/cni/net.d/05-other.conflist"), Severity::Error);
        assert_eq!(severity("/etc/cni/net.d/10-fairlead.conflist"), Severity::Error);
        assert_eq!(severity("/opt/cni/bin/portmap"), Severity::Error);
        assert_eq!(
            unused(Finding::note("/etc/cni/net.d/87-podman.conflist", "seen")).severity,
            Severity::Note
        );
    }

    #[test]
    fn a_configuration_that_cannot_be_used_is_an_error_and_the_defaults_are_judged() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("agent.yaml");
        std::fs::write(&file, "vxlan:\n  prot: 8472\n").unwrap();
        let mut findings = Vec::new();
        assert_eq!(read_config(Some(&file), directory.path(), &mut findings), Config::default());
        assert_eq!(findings[0].severity, Severity::Error);
        assert!(findings[0].problem.contains("there is no key"), "{findings:#?}");
        assert!(findings[0].fix.contains("port"), "{findings:#?}");
    }

    #[test]
    fn what_is_left_to_a_key_in_etcd_is_judged_by_what_the_agent_had_and_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("agent.yaml");
        std::fs::write(&file, "flannel: {etcdPrefix: /a, netConf: etcd}\nudp: {port: 7}\n").unwrap();
        let read = || {
            let mut findings = Vec::new();
            let config = read_config(Some(&file), directory.path(), &mut findings);
            assert_eq!((findings.len(), findings[0].severity), (1, Severity::Note), "{findings:#?}");
            (config.udp.port, config.vxlan.vni, findings.remove(0).problem)
        };
        let (port, vni, problem) = read();
        assert_eq!((port, vni), (7, 1));
        assert!(problem.contains("the file alone"), "{problem}");
        let kept = directory.path().join("config.yaml");
        std::fs::write(&kept, "udp: {port: 7}\nvxlan: {vni: 9}\n").unwrap();
        let (port, vni, problem) = read();
        assert_eq!((port, vni), (7, 9));
        assert!(problem.contains(&kept.display().to_string()), "{problem}");
    }
}
