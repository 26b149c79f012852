//! The runtime's side: taking a container through a list of plugins, and back.
//!
//! [`Runner`] does what a container runtime does with the reference library: ADD, CHECK, GC and STATUS first to last,
//! DEL last to first, results handed from plugin to plugin and kept in the [`Cache`]. What is asked about a
//! container is a [`RuntimeArguments`].
//!
//! The caller keeps the specification's promises: no two ADDs of one attachment without a DEL between, nothing in
//! parallel for one container, GC alone, a DEL after a failed ADD.
//!
//! Deviations from the reference on purpose: DEL goes on past a plugin that fails or is missing, does what it can and
//! reports all; a stale attachment's namespace is named to DEL only if its path still leads to the same one.
//! Source: CNI specification section 3, "Execution of Network Configurations".

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha512};

use crate::cache::{Cache, CachedAttachment};
use crate::config::{Attachment, Config};
use crate::conflist::{ConfList, PluginConf};
use crate::delegate::{self, Place};
use crate::dispatch;
use crate::environment::{validate_container_id, validate_interface_name};
use crate::error::Error;
use crate::exec::{self, identity_of};
use crate::json::Json;
use crate::plugin::{Command, Request, Resolver};
use crate::result::AddResult;
use crate::runtime_error::RuntimeError;
use crate::version::Version;

/// Runs lists of plugins.
#[derive(Clone, Debug)]
pub struct Runner {
    /// The directories in which plugins are looked for (CNI_PATH).
    pub path: Vec<PathBuf>,
    /// Where results are kept between calls.
    pub cache: Cache,
    /// The plugins of this program, run in this process where CNI_PATH has no other program of their name. `None`
    /// starts every plugin as a process.
    pub resolver: Option<Resolver>,
}

/// What a runtime says about one attachment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuntimeArguments {
    /// The container's id.
    pub container_id: String,
    /// The path of its network namespace; may be missing at DEL.
    pub netns: Option<PathBuf>,
    /// The interface's name in the container.
    pub ifname: String,
    /// The pairs of CNI_ARGS.
    pub args: Vec<(String, String)>,
    /// The capability arguments by capability (`portMappings`, `bandwidth`, ...); each plugin gets those it declares.
    pub capability_args: Vec<(String, Json)>,
}

impl RuntimeArguments {
    /// Container and interface.
    #[must_use]
    pub fn attachment(&self) -> Attachment {
        Attachment { container_id: self.container_id.clone(), ifname: self.ifname.clone() }
    }

    /// The container id that `cnitool` gives to a namespace without container: `cnitool-` and the first ten bytes of
    /// the SHA-512 of the namespace's absolute path, in hexadecimal. The same namespace gets the same id again.
    ///
    /// # Errors
    /// When the path is relative and there is no current directory.
    pub fn container_id_for(netns: &Path) -> std::io::Result<String> {
        let path = std::path::absolute(netns)?;
        let hash = Sha512::digest(path.as_os_str().as_encoded_bytes());
        let digits: String = hash.iter().take(10).map(|byte| format!("{byte:02x}")).collect();
        Ok(format!("cnitool-{digits}"))
    }

    fn validate(&self) -> Result<(), RuntimeError> {
        validate_container_id(&self.container_id)
            .and_then(|()| validate_interface_name(&self.ifname))
            .map_err(RuntimeError::BadArgument)
    }

    fn args_text(&self) -> String {
        let pairs: Vec<String> = self.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        pairs.join(";")
    }
}

/// One round of a list's plugins: the same for all of them.
struct Round<'a> {
    list: &'a ConfList,
    command: Command,
    arguments: &'a RuntimeArguments,
    /// The attachments that GC keeps.
    valid: Option<&'a [Attachment]>,
}

impl Runner {
    /// Attaches a container; gives the last plugin's result, which is kept for CHECK and DEL. A plugin that prints
    /// nothing leaves the result as it was.
    ///
    /// # Errors
    /// When a plugin fails, or the result cannot be kept. Then the caller issues a DEL.
    pub fn add(&self, list: &ConfList, arguments: &RuntimeArguments) -> Result<AddResult, RuntimeError> {
        arguments.validate()?;
        let round = Round { list, command: Command::Add, arguments, valid: None };
        let mut so_far = None;
        for plugin in &list.plugins {
            let result = self.call(&round, plugin, so_far.as_ref())?;
            so_far = result.or(so_far);
        }
        self.cache.write(&kept(list, arguments, so_far.as_ref())?)?;
        Ok(so_far.unwrap_or_default())
    }

    /// Detaches a container, known or not. Every plugin is called, whatever the others answer.
    ///
    /// # Errors
    /// All failures; the result stays kept, for another try.
    pub fn del(&self, list: &ConfList, arguments: &RuntimeArguments) -> Result<(), RuntimeError> {
        arguments.validate()?;
        let mut result = None;
        if list.version >= Version::V0_4_0 {
            // A kept result that cannot be read is as good as none: DEL must do without.
            let cached = self.cache.read(&list.name, &arguments.attachment()).ok().flatten();
            result = cached.and_then(|cached| cached.result(list.version).ok().flatten());
        }
        let round = Round { list, command: Command::Del, arguments, valid: None };
        let mut errors = Vec::new();
        for plugin in list.plugins.iter().rev() {
            errors.extend(self.call(&round, plugin, result.as_ref()).err());
        }
        RuntimeError::join(errors)?;
        self.cache.remove(&list.name, &arguments.attachment())
    }

    /// Verifies an attachment, unless the list switches that off.
    ///
    /// # Errors
    /// When the list's version has no CHECK, no result is kept, or a plugin finds a fault.
    pub fn check(&self, list: &ConfList, arguments: &RuntimeArguments) -> Result<(), RuntimeError> {
        arguments.validate()?;
        require(list, Command::Check)?;
        if list.disable_check {
            return Ok(());
        }
        let attachment = arguments.attachment();
        let never = || {
            let Attachment { container_id, ifname } = attachment.clone();
            RuntimeError::NeverAdded { network: list.name.clone(), container_id, ifname }
        };
        let cached = self.cache.read(&list.name, &attachment)?.ok_or_else(never)?;
        let result = cached.result(list.version).map_err(RuntimeError::BadArgument)?;
        let round = Round { list, command: Command::Check, arguments, valid: None };
        list.plugins.iter().try_for_each(|plugin| self.call(&round, plugin, result.as_ref()).map(drop))
    }

    /// Removes what belongs to no attachment in `valid`, unless the list switches that off: first by a DEL for
    /// every other attachment that is kept, then (from 1.1.0 on) by asking the plugins. Goes on after failures.
    ///
    /// # Errors
    /// All failures.
    pub fn gc(&self, list: &ConfList, valid: &[Attachment]) -> Result<(), RuntimeError> {
        if list.disable_gc {
            return Ok(());
        }
        let mut errors = Vec::new();
        match self.cache.attachments(&list.name) {
            Ok(kept) => {
                let stale = kept.into_iter().filter(|cached| !valid.contains(&cached.attachment()));
                errors.extend(stale.filter_map(|cached| self.del(list, &said_at_add(cached)).err()));
            }
            Err(error) => errors.push(error),
        }
        if require(list, Command::Gc).is_ok() {
            let arguments = RuntimeArguments::default();
            let round = Round { list, command: Command::Gc, arguments: &arguments, valid: Some(valid) };
            errors.extend(list.plugins.iter().filter_map(|plugin| self.call(&round, plugin, None).err()));
        }
        RuntimeError::join(errors)
    }

    /// Whether an ADD would succeed now. A list from before 1.1.0 cannot be asked and is taken to be ready.
    ///
    /// # Errors
    /// When a plugin says that it is not ready (code 50 or 51), or cannot be called.
    pub fn status(&self, list: &ConfList) -> Result<(), RuntimeError> {
        if require(list, Command::Status).is_err() {
            return Ok(());
        }
        let arguments = RuntimeArguments::default();
        let round = Round { list, command: Command::Status, arguments: &arguments, valid: None };
        list.plugins.iter().try_for_each(|plugin| self.call(&round, plugin, None).map(drop))
    }

    /// Checks that every plugin of a list is there and speaks the list's version, without attaching anything.
    ///
    /// # Errors
    /// All plugins that are missing or too old or too new.
    pub fn validate(&self, list: &ConfList) -> Result<(), RuntimeError> {
        let validate = |plugin: &PluginConf| {
            let spoken = match delegate::locate(&plugin.kind, &self.path, self.resolver)? {
                Place::Here(plugin) => plugin.versions().to_vec(),
                Place::There(executable) => exec::versions(&executable)?,
            };
            if spoken.contains(&list.version) {
                return Ok(());
            }
            let error = Error::incompatible(list.version.as_str(), &spoken);
            Err(RuntimeError::Plugin { kind: plugin.kind.clone(), command: Command::Add, error })
        };
        RuntimeError::join(list.plugins.iter().filter_map(|plugin| validate(plugin).err()).collect())
    }

    /// One plugin's turn.
    fn call(
        &self,
        round: &Round<'_>,
        plugin: &PluginConf,
        result: Option<&AddResult>,
    ) -> Result<Option<AddResult>, RuntimeError> {
        let failed =
            |error| RuntimeError::Plugin { kind: plugin.kind.clone(), command: round.command, error };
        let place = delegate::locate(&plugin.kind, &self.path, self.resolver)?;
        let request = self.request(round, plugin, result).map_err(failed)?;
        match place {
            Place::Here(plugin) => dispatch::guard_netns(&request)
                .and_then(|()| dispatch::call(plugin, &request))
                .map_err(failed),
            Place::There(executable) => {
                let stdout = exec::run(&plugin.kind, &executable, &request)?;
                delegate::read(&stdout, &request).map_err(failed)
            }
        }
    }

    fn request(
        &self,
        round: &Round<'_>,
        plugin: &PluginConf,
        result: Option<&AddResult>,
    ) -> Result<Request, Error> {
        let arguments = round.arguments;
        Ok(Request {
            command: round.command,
            container_id: arguments.container_id.clone(),
            netns: arguments.netns.clone(),
            ifname: arguments.ifname.clone(),
            args: arguments.args_text(),
            path: self.path.clone(),
            config: Config::from_json(document(round, plugin, result)?, &Version::ALL)?,
            resolver: self.resolver,
        })
    }
}

/// A plugin's configuration with what the runtime adds to it.
fn document(round: &Round<'_>, plugin: &PluginConf, result: Option<&AddResult>) -> Result<Json, Error> {
    let mut document = plugin.document.clone();
    document.set("name", Json::from(round.list.name.as_str()));
    document.set("cniVersion", Json::from(round.list.version.as_str()));
    if let Some(result) = result {
        document.set("prevResult", result.to_json(round.list.version)?);
    }
    let wanted = |(key, _): &&(String, Json)| plugin.capabilities.contains(key);
    let given: Vec<(String, Json)> = round.arguments.capability_args.iter().filter(wanted).cloned().collect();
    if !given.is_empty() {
        document.set("runtimeConfig", Json::Object(given));
    }
    if let Some(valid) = round.valid {
        let list = Json::Array(valid.iter().map(Attachment::to_json).collect());
        document.set("cni.dev/attachments", list.clone());
        document.set("cni.dev/valid-attachments", list);
    }
    Ok(document)
}

/// What the cache keeps of an ADD.
fn kept(
    list: &ConfList,
    arguments: &RuntimeArguments,
    result: Option<&AddResult>,
) -> Result<CachedAttachment, RuntimeError> {
    let result =
        result.map(|result| result.to_json(list.version)).transpose().map_err(RuntimeError::BadArgument)?;
    Ok(CachedAttachment {
        network: list.name.clone(),
        container_id: arguments.container_id.clone(),
        ifname: arguments.ifname.clone(),
        netns: arguments.netns.clone().unwrap_or_default(),
        netns_identity: arguments.netns.as_deref().and_then(identity_of),
        args: arguments.args.clone(),
        capability_args: arguments.capability_args.clone(),
        config: list.text.clone(),
        result,
    })
}

/// The arguments of the ADD that an attachment was kept from.
fn said_at_add(cached: CachedAttachment) -> RuntimeArguments {
    RuntimeArguments {
        netns: cached.netns_if_unchanged().map(PathBuf::from),
        container_id: cached.container_id,
        ifname: cached.ifname,
        args: cached.args,
        capability_args: cached.capability_args,
    }
}

fn require(list: &ConfList, command: Command) -> Result<(), RuntimeError> {
    if list.version >= dispatch::since(command) {
        return Ok(());
    }
    Err(RuntimeError::VersionTooOld { network: list.name.clone(), version: list.version, command })
}

#[cfg(test)]
mod tests;
