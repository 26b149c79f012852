//! Network configuration lists, as they lie in `/etc/cni/net.d`.
//!
//! [`ConfList`] is one loaded list. It is found by file ([`ConfList::load`]), by the network's name
//! ([`ConfList::find`]) or as the first of a directory ([`ConfList::first`], what a kubelet's runtime takes).
//! A single-plugin file (`.conf`, `.json`), the form from before 1.0.0, is read as a list of one.
//!
//! What the reference's rules leave in doubt: `cniVersions` may name versions that we do not know, they are passed
//! over; when a list is looked for by name, the plugin directories of other networks are not read.
//! Source: CNI specification section 1; loading rules of the reference library.

use std::path::{Path, PathBuf};

use crate::config::validate_network_name;
use crate::json::{FieldError, Fields, Item, Json};
use crate::runtime_error::RuntimeError;
use crate::version::Version;

/// A network: the plugins that a container's attachment goes through, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfList {
    /// The network's name.
    pub name: String,
    /// The version that this runtime and the list agree on.
    pub version: Version,
    /// CHECK is answered without asking the plugins.
    pub disable_check: bool,
    /// GC does nothing.
    pub disable_gc: bool,
    /// The plugins, first to last.
    pub plugins: Vec<PluginConf>,
    /// The list as text, for the cache.
    pub text: Vec<u8>,
}

/// One plugin of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginConf {
    /// The plugin's type: the name of its executable.
    pub kind: String,
    /// The capability arguments that it wants.
    pub capabilities: Vec<String>,
    /// Its configuration as written.
    pub document: Json,
}

/// What a list is before its directory of plugins has been read.
struct Draft {
    list: ConfList,
    only_inlined: bool,
}

/// Why a document is no list; the caller adds the file's name.
type Reason = String;

impl ConfList {
    /// The list in `text`, with the plugins it has inside. `source` names the text in errors.
    ///
    /// # Errors
    /// When the text is no usable list, or has no plugin.
    pub fn parse(text: &[u8], source: &Path) -> Result<Self, RuntimeError> {
        let draft = draft(text).map_err(|reason| RuntimeError::bad_configuration(source, reason))?;
        draft.list.not_empty(source)
    }

    /// The list in a file: a `.conflist` with the plugins in its directory, anything else as a single plugin.
    ///
    /// # Errors
    /// When the file, or one in the directory of plugins, cannot be read or used.
    pub fn load(file: &Path) -> Result<Self, RuntimeError> {
        if has_extension(file, &["conflist"]) { complete(draft_of(file)?, file) } else { single(file) }
    }

    /// The list of the network `name` in a directory: the first in the order of file names; lists before single
    /// plugins. A file that cannot be used and comes before the match is an error: it might be the one meant.
    ///
    /// # Errors
    /// When there is none, or a file before it cannot be used.
    pub fn find(directory: &Path, name: &str) -> Result<Self, RuntimeError> {
        let lists = files(directory, &["conflist"])?;
        for file in &lists {
            let draft = draft_of(file)?;
            if draft.list.name == name {
                return complete(draft, file);
            }
        }
        let singles = files(directory, &["conf", "json"])?;
        for file in &singles {
            let list = single(file)?;
            if list.name == name {
                return Ok(list);
            }
        }
        let directory = directory.to_owned();
        if lists.is_empty() && singles.is_empty() {
            return Err(RuntimeError::NoConfiguration { directory });
        }
        Err(RuntimeError::NoSuchNetwork { name: name.to_owned(), directory })
    }

    /// The first configuration of a directory in the order of file names, whatever its kind.
    ///
    /// # Errors
    /// When there is none, or it cannot be used.
    pub fn first(directory: &Path) -> Result<Self, RuntimeError> {
        let files = files(directory, &["conflist", "conf", "json"])?;
        let first =
            files.first().ok_or_else(|| RuntimeError::NoConfiguration { directory: directory.to_owned() })?;
        Self::load(first)
    }

    fn not_empty(self, source: &Path) -> Result<Self, RuntimeError> {
        if self.plugins.is_empty() {
            return Err(RuntimeError::bad_configuration(source, "no plugin configs found"));
        }
        Ok(self)
    }
}

impl PluginConf {
    fn from_json(document: &Json) -> Result<Self, Reason> {
        let read = || -> Result<(String, Vec<String>), FieldError> {
            let fields = Fields::of(document)?;
            let mut wanted = Vec::new();
            for (name, value) in fields.object("capabilities")?.members() {
                if value.bool()? {
                    wanted.push(name.to_owned());
                }
            }
            Ok((fields.string("type")?.to_owned(), wanted))
        };
        let (kind, capabilities) = read().map_err(|error| error.to_string())?;
        if kind.is_empty() {
            return Err("missing 'type'".to_owned());
        }
        Ok(Self { kind, capabilities, document: document.clone() })
    }
}

fn draft_of(file: &Path) -> Result<Draft, RuntimeError> {
    let text = std::fs::read(file).map_err(|cause| RuntimeError::unreadable(file, cause))?;
    draft(&text).map_err(|reason| RuntimeError::bad_configuration(file, reason))
}

fn draft(text: &[u8]) -> Result<Draft, Reason> {
    let document = Json::parse(text).map_err(|error| error.to_string())?;
    let fields = Fields::of(&document).map_err(|error| error.to_string())?;
    let name = network_name(&fields)?;
    let version = select_version(&fields)?;
    let flag = |key| switch(&fields, key).map_err(|error| error.to_string());
    let only_inlined = flag("loadOnlyInlinedPlugins")?;
    let plugins = match fields.optional_array("plugins").map_err(|error| error.to_string())? {
        None if only_inlined => {
            return Err("loadOnlyInlinedPlugins is true, but there is no 'plugins' key".to_owned());
        }
        None => Vec::new(),
        Some(items) if items.is_empty() => return Err("invalid 'plugins': empty list".to_owned()),
        Some(items) => items.iter().enumerate().map(inlined).collect::<Result<_, _>>()?,
    };
    let list = ConfList {
        name,
        version,
        disable_check: flag("disableCheck")?,
        disable_gc: flag("disableGC")?,
        plugins,
        text: text.to_vec(),
    };
    Ok(Draft { list, only_inlined })
}

fn network_name(fields: &Fields<'_>) -> Result<String, Reason> {
    let name = fields.string("name").map_err(|error| error.to_string())?;
    validate_network_name(name).map_err(|error| error.to_string())?;
    Ok(name.to_owned())
}

fn inlined((index, item): (usize, &Item<'_>)) -> Result<PluginConf, Reason> {
    PluginConf::from_json(item.raw()).map_err(|reason| format!("plugins[{index}]: {reason}"))
}

/// Adds the plugins that lie in the directory of the network's name beside the list.
fn complete(draft: Draft, file: &Path) -> Result<ConfList, RuntimeError> {
    let Draft { mut list, only_inlined } = draft;
    if !only_inlined {
        let directory = file.parent().unwrap_or(Path::new("")).join(&list.name);
        for plugin in files(&directory, &["conf"])? {
            let text = std::fs::read(&plugin).map_err(|cause| RuntimeError::unreadable(&plugin, cause))?;
            let conf = Json::parse(&text)
                .map_err(|error| error.to_string())
                .and_then(|document| PluginConf::from_json(&document))
                .map_err(|reason| RuntimeError::bad_configuration(&plugin, reason))?;
            list.plugins.push(conf);
        }
    }
    list.not_empty(file)
}

/// A single-plugin file as a list of one.
fn single(file: &Path) -> Result<ConfList, RuntimeError> {
    let text = std::fs::read(file).map_err(|cause| RuntimeError::unreadable(file, cause))?;
    let read = || -> Result<ConfList, Reason> {
        let document = Json::parse(&text).map_err(|error| error.to_string())?;
        let fields = Fields::of(&document).map_err(|error| error.to_string())?;
        let plugin = PluginConf::from_json(&document).map_err(|reason| match fields.has("plugins") {
            true => format!("{reason}; hint: a file with a list of plugins is named *.conflist"),
            false => reason,
        })?;
        let (name, version) = (network_name(&fields)?, select_version(&fields)?);
        let list = Json::object([
            ("name", Json::from(name.as_str())),
            ("cniVersion", Json::from(version.as_str())),
            ("plugins", Json::Array(vec![document.clone()])),
        ]);
        let text = list.to_bytes();
        Ok(ConfList { name, version, disable_check: false, disable_gc: false, plugins: vec![plugin], text })
    };
    read().map_err(|reason| RuntimeError::bad_configuration(file, reason))
}

/// The newest version that both the list and we know. A list that says none speaks 0.1.0.
fn select_version(fields: &Fields<'_>) -> Result<Version, Reason> {
    let said = fields.string("cniVersion").map_err(|error| error.to_string())?;
    let mut offered = fields.strings("cniVersions").map_err(|error| error.to_string())?;
    if let Some(bad) = offered.iter().find(|version| !looks_like_version(version)) {
        return Err(format!("invalid cniVersions: {bad:?} is not a version"));
    }
    if !said.is_empty() {
        offered.push(said);
    }
    if offered.is_empty() {
        return Ok(Version::UNSAID);
    }
    let known = offered.iter().filter_map(|version| Version::exactly(version)).max();
    known.ok_or_else(|| {
        format!(
            "cniVersion {}: none is supported; supported are {}",
            offered.join(", "),
            Version::join(&Version::ALL)
        )
    })
}

/// Whether a text is numbers with dots between: `1.2.0`.
fn looks_like_version(text: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    text.split('.').all(is_number) && text.split('.').count() <= 3
}

/// A boolean, or one as a string, which older lists have.
fn switch(fields: &Fields<'_>, key: &str) -> Result<bool, FieldError> {
    match fields.raw(key) {
        Some(Json::String(text)) => match text.as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(fields.bad(key, format!("expected true or false, found {text:?}"))),
        },
        _ => fields.bool(key),
    }
}

/// The regular files of a directory with one of these extensions, by name. No directory, no files.
fn files(directory: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, RuntimeError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(cause) => return Err(RuntimeError::unreadable(directory, cause)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|cause| RuntimeError::unreadable(directory, cause))?.path();
        if has_extension(&path, extensions) && !path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().is_some_and(|extension| extensions.iter().any(|wanted| extension == *wanted))
}

#[cfg(test)]
mod tests;
