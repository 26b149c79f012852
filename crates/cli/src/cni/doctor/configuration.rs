//! The configurations' side: which file counts, what it cannot do, and what it forgets.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ::cni::{Cache, ConfList, Fields, PluginConf, Runner, Version};

use super::Moment;
use super::executable::Executables;
use crate::finding::Finding;

/// Plugins that only change what an earlier one has made.
const CHAINED: [&str; 7] = ["portmap", "bandwidth", "firewall", "tuning", "sbr", "vrf", "route-override"];

/// What a runtime passes on only to those who say that they want it.
const CAPABILITIES: [(&str, &str, &str); 2] = [
    ("portmap", "portMappings", "host ports of pods are silently ignored"),
    ("bandwidth", "bandwidth", "the bandwidth annotations of pods are silently ignored"),
];

/// The directory of configurations.
pub(super) struct Configurations<'a> {
    directory: &'a Path,
    moment: Moment,
}

impl<'a> Configurations<'a> {
    pub(super) fn new(directory: &'a Path, moment: Moment) -> Self {
        Self { directory, moment }
    }

    /// Looks at every file in the order of their names.
    pub(super) fn examine(&self, executables: &Executables<'_>, findings: &mut Vec<Finding>) {
        let files = match self.files() {
            Ok(files) => files,
            // The agent makes it.
            Err(cause) if cause.kind() == ErrorKind::NotFound && self.moment == Moment::Before => Vec::new(),
            Err(cause) => {
                let problem = format!("the directory of configurations cannot be read: {cause}");
                findings.push(Finding::error(self.directory, problem, "make it, and put a conflist into it"));
                return;
            }
        };
        let (candidates, others): (Vec<PathBuf>, Vec<PathBuf>) =
            files.into_iter().partition(|file| is_candidate(file));
        findings.extend(others.iter().filter_map(|file| overlooked(file)));
        if candidates.is_empty() {
            findings.push(self.empty());
        }
        let mut names: BTreeMap<String, &Path> = BTreeMap::new();
        for (index, file) in candidates.iter().enumerate() {
            findings.push(which(index, file, &candidates));
            match ConfList::load(file) {
                Ok(list) => {
                    if let Some(other) = names.insert(list.name.clone(), file) {
                        findings.push(Finding::warning(
                            file,
                            format!("network {} is in {} already", list.name, other.display()),
                            "give one of them another name: addresses and results are kept by network",
                        ));
                    }
                    List { file, list: &list, executables }.examine(findings);
                }
                Err(error) => findings.push(Finding::error(
                    file,
                    format!("it cannot be used: {error}"),
                    "mend it or move it away: a runtime that meets it first uses no network at all",
                )),
            }
        }
    }

    /// What it means that there is no configuration.
    fn empty(&self) -> Finding {
        match self.moment {
            Moment::Running => Finding::error(
                self.directory,
                "no network configuration: the runtime stays \"cni plugin not initialized\", the node NotReady",
                "put a conflist into it; with Fairlead's agent running, ask fairlead status why it has not",
            ),
            Moment::Before => {
                let problem =
                    "no network configuration yet: the agent writes one when the node can carry a pod";
                Finding::note(self.directory, problem)
            }
        }
    }

    fn files(&self) -> std::io::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(self.directory)?.collect::<Result<Vec<_>, _>>()?;
        let mut files: Vec<PathBuf> =
            entries.into_iter().map(|entry| entry.path()).filter(|path| !path.is_dir()).collect();
        files.sort();
        Ok(files)
    }
}

fn is_candidate(file: &Path) -> bool {
    file.extension()
        .is_some_and(|extension| extension == "conf" || extension == "conflist" || extension == "json")
}

/// A file that somebody may take for a configuration and no runtime does.
fn overlooked(file: &Path) -> Option<Finding> {
    let name = file.file_name()?.to_string_lossy();
    name.contains(".conf").then(|| {
        let fix = "end its name in .conflist, or move it away";
        Finding::note(
            file,
            format!("{name} is not read: its name ends in neither .conflist, .conf nor .json; {fix}"),
        )
    })
}

/// Which of the files counts.
fn which(index: usize, file: &Path, candidates: &[PathBuf]) -> Finding {
    match candidates.first() {
        Some(first) if index > 0 => Finding::warning(
            file,
            format!("not used for pods: {} comes before it", first.display()),
            "leave one configuration in the directory, or name this one so that it comes first",
        ),
        _ => Finding::note(file, "the runtime takes this one: it is the first by name"),
    }
}

/// One list under examination.
struct List<'a> {
    file: &'a Path,
    list: &'a ConfList,
    executables: &'a Executables<'a>,
}

impl List<'_> {
    fn examine(&self, findings: &mut Vec<Finding>) {
        self.version(findings);
        let complaints = findings.len();
        for (index, plugin) in self.list.plugins.iter().enumerate() {
            self.plugin(index, plugin, findings);
        }
        // A plugin that is not there has been told already; STATUS would only repeat it.
        let all_ours = self.list.plugins.iter().all(|plugin| self.executables.is_ours(&plugin.kind));
        if all_ours && findings.len() == complaints {
            findings.extend(self.status());
        }
    }

    fn version(&self, findings: &mut Vec<Finding>) {
        // As written: the list of a single plugin's file says a version in any case.
        let document = ::cni::Json::parse(&fs::read(self.file).unwrap_or_default());
        let says = document.is_ok_and(|document| {
            Fields::of(&document).is_ok_and(|fields| fields.has("cniVersion") || fields.has("cniVersions"))
        });
        if !says {
            findings.push(Finding::warning(
                self.file,
                "it has no cniVersion, which means 0.1.0: no CHECK, no GC, one address of a family",
                "say \"cniVersion\": \"1.0.0\"",
            ));
        } else if self.list.version < Version::V1_1_0 {
            findings.push(Finding::note(
                self.file,
                format!(
                    "version {}: no GC and no STATUS; with \"cniVersions\": [\"1.0.0\", \"1.1.0\"] newer runtimes use them",
                    self.list.version
                ),
            ));
        }
    }

    fn plugin(&self, index: usize, plugin: &PluginConf, findings: &mut Vec<Finding>) {
        let kind = plugin.kind.as_str();
        if index == 0 && CHAINED.contains(&kind) {
            findings.push(Finding::error(
                self.file,
                format!("the first plugin is {kind}, which needs an interface that an earlier one has made"),
                "put an interface plugin (bridge, ptp, macvlan, ...) before it",
            ));
        }
        for (chained, capability, consequence) in CAPABILITIES {
            if kind == chained && !plugin.capabilities.iter().any(|wanted| wanted == capability) {
                findings.push(Finding::warning(
                    self.file,
                    format!("{kind} does not declare the capability {capability}: {consequence}"),
                    format!("add \"capabilities\": {{\"{capability}\": true}} to it"),
                ));
            }
        }
        findings.extend(self.executables.examine_plugin(kind, self.list.version, self.file));
        if let Some(ipam) = address_plugin(plugin) {
            findings.extend(self.executables.examine_plugin(&ipam, self.list.version, self.file));
        }
    }

    /// Whether an ADD would work now, as far as the plugins can tell; asked of ours, whatever the list's version.
    fn status(&self) -> Option<Finding> {
        let list = ConfList { version: Version::V1_1_0, ..self.list.clone() };
        let runner = Runner {
            path: self.executables.path(),
            cache: Cache::new("/var/lib/cni"),
            resolver: Some(plugins::find),
        };
        let error = runner.status(&list).err()?;
        Some(Finding::error(self.file, format!("a pod could not be started now: {error}"), ""))
    }
}

/// `ipam.type`, where a plugin has one.
fn address_plugin(plugin: &PluginConf) -> Option<String> {
    let fields = Fields::of(&plugin.document).ok()?;
    let kind = fields.object("ipam").ok()?.string("type").ok()?.to_owned();
    Some(kind).filter(|kind| !kind.is_empty())
}
