//! The binary `fairlead`.
//!
//! [`main`] first decides who is being called: a runtime that calls a plugin by its name through a link to
//! this binary gets the plugin, everyone else the command line. [`run`] is the list of verbs; each verb is a
//! file with its arguments, its `--help` and its work. Data goes to standard output, everything else to
//! standard error; the exit status is 0 when it worked, 1 when it failed, 2 when it was asked for wrongly.

mod agent;
mod clean;
mod cluster_option;
mod cni;
mod doctor;
mod explain;
mod failure;
mod finding;
mod lab;
mod node;
mod output;
mod plan;
mod policy;
mod progress;
mod status;
mod table;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use ::cni::Plugin;
use anyhow::Result;
use clap::{Parser, Subcommand};

/// Kubernetes pod networking: an agent for each node, CNI plugins for each pod, a lab to try it in.
#[derive(Debug, Parser)]
#[command(name = "fairlead", version, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "Try it, with or without root:\n  fairlead lab demo")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Lab(lab::Arguments),
    Agent(agent::Arguments),
    Status(status::Arguments),
    Plan(plan::Arguments),
    Explain(explain::Arguments),
    Policy(policy::Arguments),
    Clean(clean::Arguments),
    Doctor(doctor::Arguments),
    Cni(cni::Arguments),
}

fn main() -> ExitCode {
    if called_as_plugin(std::env::args_os().next(), std::env::var_os("CNI_COMMAND").is_some()) {
        return plugins::run(std::env::args_os()).into();
    }
    let arguments = Arguments::parse();
    match run(arguments.verb) {
        Ok(code) => code,
        Err(error) => failure::report(&error),
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Lab(arguments) => lab::run(arguments),
        Verb::Agent(arguments) => agent::run(arguments),
        Verb::Status(arguments) => status::run(&arguments),
        Verb::Plan(arguments) => plan::run(&arguments),
        Verb::Explain(arguments) => explain::run(&arguments),
        Verb::Policy(arguments) => policy::run(&arguments),
        Verb::Clean(arguments) => clean::run(&arguments),
        Verb::Doctor(arguments) => doctor::run(&arguments),
        Verb::Cni(arguments) => cni::run(arguments),
    }
}

/// True when a link with a plugin's name led here. The plugin `fairlead` and the command line share a name:
/// of the two only a plugin is called with `CNI_COMMAND` in its environment.
fn called_as_plugin(program: Option<OsString>, has_command: bool) -> bool {
    let Some(program) = program else { return false };
    let plugin = plugins::selected(&program).map(Plugin::name);
    let whole = Path::new(&program).file_name().is_some_and(|name| name == plugins::install::BINARY);
    whole || plugin.is_some_and(|name| name != "fairlead" || has_command)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_verb_has_an_example() {
        fn check(command: &clap::Command, path: &str) {
            for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
                let path = format!("{path} {}", verb.get_name());
                let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains(&path), "`{path}` has no example in its help");
                check(verb, &path);
            }
        }
        check(&Arguments::command(), "fairlead");
    }

    #[test]
    fn a_link_with_a_plugins_name_is_the_plugin_and_fairlead_only_when_a_runtime_calls() {
        let called = |name: &str, command| called_as_plugin(Some(OsString::from(name)), command);
        assert!(called("/opt/cni/bin/host-local", false));
        assert!(called("/opt/cni/bin/fairlead-cni", false));
        assert!(called("/opt/cni/bin/fairlead", true));
        assert!(!called("/usr/bin/fairlead", false));
        assert!(!called("fairlead-lab", true));
    }
}
