//! The process around a plugin: which one it is, and what it is connected to.
//!
//! A runtime starts a plugin by the name of its file, so the plugin is the one that the program is called
//! by. A person may also name it as the first argument: `fairlead-cni bridge`. The word `daemon` after the
//! plugin `dhcp` starts the daemon that keeps its leases.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::Path;

use cni::{Environment, Plugin, Process};

use crate::ipam::dhcp::run_daemon;
use crate::{PLUGINS, find};

/// The exit code for a program that was called by no plugin's name.
const WRONG_USAGE: u8 = 2;

/// The one plugin with a daemon beside it: `fairlead-cni dhcp daemon`, or `dhcp daemon`.
const DAEMONS_PLUGIN: &str = "dhcp";

/// Runs the plugin that `arguments` (the program's own name first) select, with this process's environment
/// and standard streams, and gives the exit code: 0 good, 1 the plugin failed, 2 no such plugin.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let mut arguments = arguments.into_iter();
    let program = arguments.next().unwrap_or_default();
    let first = arguments.next();
    // Also by a plugin's name: no runtime calls a plugin with arguments.
    match first.as_deref().and_then(OsStr::to_str) {
        Some("-h" | "--help") => return say(&usage()),
        Some("--version") => return say(&format!("fairlead-cni {}\n", env!("CARGO_PKG_VERSION"))),
        _ => {}
    }
    let (plugin, verb) = match (selected(&program), first.as_deref().and_then(selected)) {
        (Some(plugin), _) => (plugin, first),
        (None, Some(plugin)) => (plugin, arguments.next()),
        (None, None) => return wrong_usage(first.as_deref()),
    };
    if plugin.name() == DAEMONS_PLUGIN && verb.is_some_and(|verb| verb == "daemon") {
        return run_daemon(arguments);
    }
    cni::serve(
        plugin,
        Process {
            environment: Environment::of_this_process(),
            stdin: &mut io::stdin(),
            stdout: &mut io::stdout(),
            stderr: &mut io::stderr(),
            resolver: Some(find),
        },
    )
}

/// The plugin that a program of this name is: the name is the last part of the path.
#[must_use]
pub fn selected(program: &OsStr) -> Option<&'static dyn Plugin> {
    find(Path::new(program).file_name()?.to_str()?)
}

/// Prints what was asked for.
fn say(text: &str) -> u8 {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

fn wrong_usage(asked: Option<&OsStr>) -> u8 {
    let asked =
        asked.map(|asked| format!("fairlead-cni: there is no plugin {asked:?}\n")).unwrap_or_default();
    let _ = io::stderr().write_all((asked + &usage()).as_bytes());
    WRONG_USAGE
}

fn usage() -> String {
    let names: Vec<&str> = PLUGINS.iter().map(|plugin| plugin.name()).collect();
    format!(
        "usage: fairlead-cni PLUGIN, or a link to fairlead-cni with the name of the plugin\n\
         plugins: {}\n\
         The call itself comes in CNI_COMMAND and the other CNI_ variables, the configuration on stdin.\n\
         `fairlead-cni dhcp daemon` keeps the leases of dhcp; `fairlead-cni --version` tells the version.\n\
         example: CNI_COMMAND=VERSION fairlead-cni {}\n",
        names.join(" "),
        names.first().unwrap_or(&"host-local"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_part_of_the_programs_path_selects_the_plugin() {
        let name = |program: &str| selected(OsStr::new(program)).map(Plugin::name);
        assert_eq!(name("/opt/cni/bin/host-local"), Some("host-local"));
        assert_eq!(name("loopback"), Some("loopback"));
        assert_eq!(name("/opt/cni/bin/fairlead-cni"), None);
        assert_eq!(name(""), None);
        assert_eq!(name("/"), None);
    }

    #[test]
    fn no_two_plugins_share_a_name() {
        for (index, plugin) in PLUGINS.iter().enumerate() {
            assert!(PLUGINS[..index].iter().all(|other| other.name() != plugin.name()), "{}", plugin.name());
        }
    }
}
