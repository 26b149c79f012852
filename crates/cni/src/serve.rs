//! The plugin process: environment and stdin in, stdout, stderr and an exit code out.
//!
//! [`serve()`] is the whole of a plugin's `main`, over values, so that tests call it in memory: environment first,
//! then stdin, then the version, then the plugin. Nothing is read that the command does not need: VERSION, which
//! runtimes ask often, costs one variable and one write.
//!
//! Deviations from the reference on purpose: the namespace guard acts before the plugin does; an ADD whose result
//! cannot be written in the configuration's version, or cannot be delivered, is undone; errors carry `cniVersion`.
//! Source: CNI specification section 2, "Execution Protocol"; codes as the reference's plugin library gives them.

use std::io::{Read, Write};
use std::path::Path;

use crate::config::Config;
use crate::dispatch;
use crate::environment::Environment;
use crate::error::Error;
use crate::exec::identity_of;
use crate::json::{Fields, Json};
use crate::plugin::{Command, Plugin, Request, Resolver};
use crate::version::Version;

/// What a process is connected to.
pub struct Process<'a> {
    /// The CNI_* variables.
    pub environment: Environment,
    /// The network configuration comes in here.
    pub stdin: &'a mut dyn Read,
    /// The result, or the error, goes out here.
    pub stdout: &'a mut dyn Write,
    /// Talk for people goes out here.
    pub stderr: &'a mut dyn Write,
    /// The program's own plugins, for delegation in the same process.
    pub resolver: Option<Resolver>,
}

impl Environment {
    /// This process's variables.
    #[must_use]
    pub fn of_this_process() -> Self {
        Self::read(|name| std::env::var_os(name))
    }
}

/// Runs one call of a plugin and gives the process's exit code: 0 when it went well, 1 when not.
pub fn serve(plugin: &dyn Plugin, process: Process<'_>) -> u8 {
    let Process { environment, stdin, stdout, stderr, resolver } = process;
    match environment.command.as_str() {
        "" => return deliver(stderr, about(plugin).as_bytes()),
        "VERSION" => return deliver(stdout, versions(plugin).as_bytes()),
        _ => {}
    }
    let mut version = Version::LATEST;
    let outcome = prepare(plugin, &environment, stdin, &mut version)
        .map(|request| Request { resolver, ..request })
        .and_then(|request| answer(plugin, &request, stdout));
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            deliver(stdout, &error.to_json(version).to_bytes());
            1
        }
    }
}

/// Checks everything about a call that can be checked without the plugin. `version` becomes what the configuration
/// speaks as soon as that is known, so that the error answers in it.
fn prepare(
    plugin: &dyn Plugin,
    environment: &Environment,
    stdin: &mut dyn Read,
    version: &mut Version,
) -> Result<Request, Error> {
    let command = environment.command()?;
    let mut bytes = Vec::with_capacity(4096);
    stdin.read_to_end(&mut bytes).map_err(|cause| Error::io(format!("error reading from stdin: {cause}")))?;
    let document =
        Json::parse(&bytes).map_err(|error| Error::undecodable(format!("network configuration: {error}")))?;
    let said = Fields::of(&document).and_then(|fields| fields.string("cniVersion")).unwrap_or_default();
    *version = match said {
        "" => Version::UNSAID,
        text => Version::exactly(text).unwrap_or(Version::LATEST),
    };
    let config = Config::from_json(document, plugin.versions())?;
    environment.validate(command)?;
    let netns = if command.names_container() { Some(environment.netns.clone()) } else { None };
    let request = Request {
        command,
        container_id: if command.names_container() {
            environment.container_id.clone()
        } else {
            String::new()
        },
        netns: netns.filter(|path| !path.as_os_str().is_empty()),
        ifname: if command.names_container() { environment.ifname.clone() } else { String::new() },
        args: environment.args.clone(),
        path: environment.directories(),
        config,
        resolver: None,
    };
    if !environment.allows_own_netns() {
        dispatch::guard_netns(&request)?;
    }
    Ok(request)
}

/// Calls the plugin and writes its result.
fn answer(plugin: &dyn Plugin, request: &Request, stdout: &mut dyn Write) -> Result<(), Error> {
    let Some(result) = dispatch::call(plugin, request)? else { return Ok(()) };
    let written = result.encode(request.config.version).and_then(|bytes| {
        stdout
            .write_all(&bytes)
            .and_then(|()| stdout.flush())
            .map_err(|cause| Error::io(format!("error writing to stdout: {cause}")))
    });
    written.map_err(|error| match plugin.del(&request.with_command(Command::Del)) {
        Ok(()) => error,
        Err(undo) => Error { message: format!("{}; undoing the ADD: {undo}", error.message), ..error },
    })
}

/// What a person sees who runs the plugin by hand.
fn about(plugin: &dyn Plugin) -> String {
    format!(
        "CNI {} plugin fairlead {}\nCNI protocol versions supported: {}\n",
        plugin.name(),
        env!("CARGO_PKG_VERSION"),
        Version::join(plugin.versions())
    )
}

/// The answer to VERSION. The specification wants the asker's version back, the reference answers with its newest
/// without reading stdin; what runtimes read is the list, so stdin is left alone.
fn versions(plugin: &dyn Plugin) -> String {
    let quoted: Vec<String> = plugin.versions().iter().map(|version| format!("\"{version}\"")).collect();
    format!("{{\"cniVersion\":\"{}\",\"supportedVersions\":[{}]}}\n", Version::LATEST, quoted.join(","))
}

/// Writes all, and gives the exit code for that.
fn deliver(out: &mut dyn Write, bytes: &[u8]) -> u8 {
    u8::from(out.write_all(bytes).and_then(|()| out.flush()).is_err())
}

/// Whether `netns` is the namespace that this thread is in. A path that leads nowhere is not.
pub(crate) fn is_own_netns(netns: &Path) -> bool {
    identity_of(netns)
        .is_some_and(|theirs| identity_of(Path::new("/proc/thread-self/ns/net")) == Some(theirs))
}

#[cfg(test)]
mod tests;
