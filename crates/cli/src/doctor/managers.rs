//! Network managers that take away what they did not make themselves.

use std::fs;
use std::path::{Path, PathBuf};

use super::Root;
use crate::finding::{Finding, Severity};

/// Looks for the managers that run, and at their configurations.
pub(super) fn examine(root: Root<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if root.at("/run/systemd/netif").exists() {
        let places = ["/etc/systemd", "/run/systemd", "/usr/local/lib/systemd", "/usr/lib/systemd"];
        findings.extend(judge_networkd(&read(root, &places, "networkd.conf", "networkd.conf.d")));
    }
    if root.at("/run/NetworkManager").exists() {
        let places = ["/etc/NetworkManager", "/run/NetworkManager", "/usr/lib/NetworkManager"];
        findings.extend(judge_network_manager(&read(root, &places, "NetworkManager.conf", "conf.d")));
    }
    findings
}

/// A main file and what lies in the folder beside it, in each of the places.
fn read(root: Root<'_>, places: &[&str], main: &str, folder: &str) -> String {
    let mut text = String::new();
    for place in places.iter().map(Path::new) {
        let entries = fs::read_dir(root.at(place.join(folder))).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "conf"));
        files.sort();
        for file in [root.at(place.join(main))].iter().chain(&files) {
            text.push_str(&fs::read_to_string(file).unwrap_or_default());
            text.push('\n');
        }
    }
    text
}

fn judge_networkd(text: &str) -> Option<Finding> {
    let missing: Vec<&str> = ["ManageForeignRoutes", "ManageForeignRoutingPolicyRules"]
        .into_iter()
        .filter(|key| !is_off(text, key))
        .collect();
    if missing.is_empty() {
        return None;
    }
    let keys: Vec<String> = missing.iter().map(|key| format!("{key}=no")).collect();
    Some(Finding::warning(
        "systemd-networkd",
        "it removes routes and rules that it did not make whenever it starts or a link changes; the agent puts its own \
         back, with a gap in between",
        format!(
            "put [Network] and {} into /etc/systemd/networkd.conf.d/fairlead.conf, then systemctl restart systemd-networkd",
            keys.join(", ")
        ),
    ))
}

/// Whether a key is there with a value that means no: systemd.syntax(7).
fn is_off(text: &str, key: &str) -> bool {
    let values = text.lines().filter_map(|line| line.split_once('='));
    // Of several the last counts; folders are read after main files.
    let last = values.filter(|(name, _)| name.trim() == key).map(|(_, value)| value.trim()).next_back();
    last.is_some_and(|value| {
        ["no", "false", "off", "0", "n", "f"].iter().any(|off| value.eq_ignore_ascii_case(off))
    })
}

fn judge_network_manager(text: &str) -> Option<Finding> {
    let spared = |line: &str| line.trim_start().starts_with("unmanaged-devices") && line.contains("fairlead");
    if text.lines().any(spared) {
        return None;
    }
    Some(Finding::new(
        Severity::Note,
        "NetworkManager",
        "it runs, and is not told to leave Fairlead's links alone",
        "put [keyfile] and unmanaged-devices=interface-name:fairlead*;interface-name:veth*;interface-name:cni0 into \
         /etc/NetworkManager/conf.d/fairlead.conf, then nmcli general reload",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node's root with these files in it.
    fn found(files: &[(&str, &str)]) -> Vec<(Severity, String)> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let findings = examine(Root(root.path()));
        findings.into_iter().map(|finding| (finding.severity, finding.subject)).collect()
    }

    #[test]
    fn networkd_that_runs_is_to_be_told_of_foreign_routes_and_rules() {
        let runs = ("run/systemd/netif/state", "");
        let warning = [(Severity::Warning, "systemd-networkd".to_owned())];
        assert_eq!(found(&[("etc/systemd/networkd.conf", "[Network]\n")]), [], "it does not run");
        assert_eq!(found(&[runs]), warning);
        let off = "[Network]\nManageForeignRoutes = no\nManageForeignRoutingPolicyRules=false\n";
        assert_eq!(found(&[runs, ("etc/systemd/networkd.conf", off)]), []);
        assert_eq!(found(&[runs, ("etc/systemd/networkd.conf.d/10-pods.conf", off)]), []);
        assert_eq!(found(&[runs, ("etc/systemd/networkd.conf.d/10-pods.txt", off)]), warning, "not read");
        let half = "[Network]\nManageForeignRoutes=no\n";
        assert_eq!(found(&[runs, ("etc/systemd/networkd.conf", half)]), warning);
        let commented = "#ManageForeignRoutes=no\n#ManageForeignRoutingPolicyRules=no\n";
        assert_eq!(found(&[runs, ("etc/systemd/networkd.conf", commented)]), warning);
    }

    #[test]
    fn network_manager_that_runs_is_to_leave_our_links_alone() {
        let runs = ("run/NetworkManager/devices", "");
        assert_eq!(found(&[runs]), [(Severity::Note, "NetworkManager".to_owned())]);
        let told = "[keyfile]\nunmanaged-devices=interface-name:fairlead*\n";
        assert_eq!(found(&[runs, ("etc/NetworkManager/conf.d/pods.conf", told)]), []);
    }
}
