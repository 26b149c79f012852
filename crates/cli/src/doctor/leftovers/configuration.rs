//! Network configurations of others beside the agent's: a runtime takes the first by name.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use ::cni::ConfList;

use super::other::owner_of_plugin;
use crate::finding::{Finding, Severity};

/// The agent's, by its name.
pub(in crate::doctor) const OWN: &str = "10-fairlead.conflist";
/// The plugin of the agent's.
const OWN_PLUGIN: &str = "fairlead";

/// A configuration as far as it matters.
#[derive(Debug)]
struct Configuration {
    file: PathBuf,
    /// The network's name; none for a file that cannot be read.
    network: Option<String>,
    plugins: Vec<String>,
}

/// Reads the directory and judges what is there of others; one that is not there has none.
pub(super) fn examine(directory: &Path) -> Vec<Finding> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.retain(|file| {
        file.extension()
            .and_then(OsStr::to_str)
            .is_some_and(|end| ["conf", "conflist", "json"].contains(&end))
    });
    files.sort();
    files.into_iter().map(read).filter_map(|configuration| judge(&configuration)).collect()
}

fn read(file: PathBuf) -> Configuration {
    let list = ConfList::load(&file).ok();
    let plugins = list.iter().flat_map(|list| &list.plugins).map(|plugin| plugin.kind.clone()).collect();
    Configuration { network: list.map(|list| list.name), plugins, file }
}

fn judge(Configuration { file, network, plugins }: &Configuration) -> Option<Finding> {
    let name = file.file_name()?.to_str()?;
    if name == OWN || plugins.first().is_some_and(|plugin| plugin == OWN_PLUGIN) {
        return None;
    }
    let owner = plugins.iter().find_map(|plugin| owner_of_plugin(plugin));
    let whose = match (owner, network) {
        (Some(owner), _) => format!("of {owner}"),
        (None, Some(network)) => format!("of the network {network}"),
        (None, None) => "that cannot be read".to_owned(),
    };
    let fix = format!(
        "stop what writes it, then: mv {file} {file}.off; its pods keep what they have and are deleted by the runtime's \
         cache, so remove its plugins only once the last of them is gone",
        file = file.display()
    );
    // Runtimes sort by bytes, as this does.
    Some(if name < OWN {
        let problem =
            format!("a configuration {whose} comes before {OWN}: new pods get that network, not Fairlead");
        Finding::error(file, problem, fix)
    } else {
        let problem = format!(
            "a configuration {whose} stands beside {OWN}: pods get it whenever the agent takes its away"
        );
        Finding::new(Severity::Warning, file, problem, fix)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<(Severity, String)> {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        examine(directory.path()).into_iter().map(|finding| (finding.severity, finding.problem)).collect()
    }

    const FLANNEL: &str =
        r#"{"cniVersion":"0.3.1","name":"cbr0","plugins":[{"type":"flannel"},{"type":"portmap"}]}"#;
    const CALICO: &str = r#"{"cniVersion":"0.3.1","name":"k8s-pod-network","plugins":[{"type":"calico"}]}"#;
    const OURS: &str = r#"{"cniVersion":"1.0.0","name":"fairlead","plugins":[{"type":"fairlead"}]}"#;

    #[test]
    fn a_configuration_before_ours_is_an_error_and_one_behind_a_warning() {
        let found = found(&[("10-flannel.conflist", FLANNEL), ("10-calico.conflist", CALICO), (OWN, OURS)]);
        let severities: Vec<Severity> = found.iter().map(|(severity, _)| *severity).collect();
        assert_eq!(severities, [Severity::Error, Severity::Warning]);
        assert!(found[0].1.contains("of calico comes before 10-fairlead.conflist"), "{found:#?}");
        assert!(found[1].1.contains("of flannel stands beside"), "{found:#?}");
    }

    #[test]
    fn unknown_and_broken_ones_count_too_and_what_no_runtime_reads_does_not() {
        let own = r#"{"cniVersion":"1.0.0","name":"mine","plugins":[{"type":"bridge"}]}"#;
        let found =
            found(&[("00-mine.conflist", own), ("05-broken.conf", "{"), ("01-old.conflist.off", CALICO)]);
        assert_eq!(found.len(), 2, "{found:#?}");
        assert!(found[0].1.contains("of the network mine"), "{found:#?}");
        assert!(found[1].1.contains("that cannot be read"), "{found:#?}");
    }

    #[test]
    fn ours_is_ours_by_whatever_name() {
        assert_eq!(found(&[(OWN, OURS), ("05-fairlead.conflist", OURS)]), []);
        assert!(examine(Path::new("/nonexistent/net.d")).is_empty());
    }
}
