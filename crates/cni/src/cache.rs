//! The cache of results: what DEL, CHECK and GC know of an ADD that another process made.
//!
//! [`Cache`] is a directory; [`CachedAttachment`] one file in it. The format is the reference library's
//! (`cniCacheV1`), so that runtimes can take over from each other; files from before that format, which hold the
//! bare result, are read too. Files are replaced atomically and are only for their owner: 0600 in a 0700 directory.
//! One member is ours: `netnsIdentity`, the device and inode of the namespace at ADD. A path by process id may lead
//! to another container's namespace by the time GC comes.

use std::fs::DirEntry;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::config::Attachment;
use crate::error::Error;
use crate::exec::identity_of;
use crate::json::{Fields, Json};
use crate::result::AddResult;
use crate::runtime_error::RuntimeError;
use crate::version::Version;

/// The word that tells the format.
const KIND: &str = "cniCacheV1";

/// A cache directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    directory: PathBuf,
}

/// What the cache holds of one attachment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CachedAttachment {
    /// The network's name.
    pub network: String,
    /// The container's id.
    pub container_id: String,
    /// The interface's name.
    pub ifname: String,
    /// The namespace's path at ADD; empty when unknown.
    pub netns: PathBuf,
    /// Device and inode of the namespace at ADD; nothing in files of other runtimes.
    pub netns_identity: Option<(u64, u64)>,
    /// CNI_ARGS at ADD, in pairs.
    pub args: Vec<(String, String)>,
    /// The capability arguments at ADD, by capability.
    pub capability_args: Vec<(String, Json)>,
    /// The text of the whole list at ADD.
    pub config: Vec<u8>,
    /// The result as it was written.
    pub result: Option<Json>,
}

impl CachedAttachment {
    /// The result, for a list of `version`.
    ///
    /// # Errors
    /// When it is not a result.
    pub fn result(&self, version: Version) -> Result<Option<AddResult>, Error> {
        self.result.as_ref().map(|document| AddResult::from_json(document, version)).transpose()
    }

    /// Container and interface.
    #[must_use]
    pub fn attachment(&self) -> Attachment {
        Attachment { container_id: self.container_id.clone(), ifname: self.ifname.clone() }
    }

    /// The namespace's path, unless it leads to another namespace by now.
    #[must_use]
    pub fn netns_if_unchanged(&self) -> Option<&Path> {
        let path = Some(self.netns.as_path()).filter(|path| !path.as_os_str().is_empty())?;
        match (self.netns_identity, identity_of(path)) {
            (Some(then), Some(now)) if then != now => None,
            _ => Some(path),
        }
    }
}

impl Cache {
    /// Where runtimes keep it when they are not told otherwise.
    pub const DEFAULT_DIRECTORY: &'static str = "/var/lib/cni";

    /// The cache in `directory`; results are in its sub-directory `results`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// Keeps an attachment.
    ///
    /// # Errors
    /// When the file cannot be written; what was there before stays.
    pub fn write(&self, cached: &CachedAttachment) -> Result<(), RuntimeError> {
        let path = self.file(&cached.network, &cached.attachment());
        let failed = |cause| RuntimeError::Cache { action: "write", path: path.clone(), cause };
        let results = self.results();
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&results).map_err(failed)?;
        let fresh = beside(&path);
        let written =
            write_private(&fresh, &encode(cached).to_bytes()).and_then(|()| std::fs::rename(&fresh, &path));
        written.map_err(|cause| {
            // Only tidiness: the next write of this attachment would replace it.
            let _ = std::fs::remove_file(&fresh);
            failed(cause)
        })
    }

    /// What is kept of an attachment; nothing when there is no file.
    ///
    /// # Errors
    /// When there is a file that cannot be read or understood.
    pub fn read(
        &self,
        network: &str,
        attachment: &Attachment,
    ) -> Result<Option<CachedAttachment>, RuntimeError> {
        let path = self.file(network, attachment);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(RuntimeError::Cache { action: "read", path, cause }),
        };
        let bare = || CachedAttachment {
            network: network.to_owned(),
            container_id: attachment.container_id.clone(),
            ifname: attachment.ifname.clone(),
            ..CachedAttachment::default()
        };
        decode(&text, bare)
            .map(Some)
            .map_err(|reason| RuntimeError::BadCache { path, reason: reason.to_string() })
    }

    /// Forgets an attachment, known or not.
    ///
    /// # Errors
    /// When the file stays.
    pub fn remove(&self, network: &str, attachment: &Attachment) -> Result<(), RuntimeError> {
        let path = self.file(network, attachment);
        // A write that was killed half-way may have left this; it is nobody's loss.
        let _ = std::fs::remove_file(beside(&path));
        match std::fs::remove_file(&path) {
            Err(cause) if cause.kind() != ErrorKind::NotFound => {
                Err(RuntimeError::Cache { action: "remove", path, cause })
            }
            _ => Ok(()),
        }
    }

    /// Every attachment to a network. Files of other networks, of the format before this one (which do not say
    /// whose they are) and unreadable ones are passed over.
    ///
    /// # Errors
    /// When the directory is there but cannot be read.
    pub fn attachments(&self, network: &str) -> Result<Vec<CachedAttachment>, RuntimeError> {
        let prefix = format!("{network}-");
        let mut found = Vec::new();
        for entry in self.entries()? {
            if !entry.file_name().to_string_lossy().starts_with(&prefix) {
                continue;
            }
            let Ok(text) = std::fs::read(entry.path()) else { continue };
            let Ok(cached) = decode(&text, CachedAttachment::default) else { continue };
            if cached.network == network && !cached.container_id.is_empty() && !cached.ifname.is_empty() {
                found.push(cached);
            }
        }
        found.sort_by_key(CachedAttachment::attachment);
        Ok(found)
    }

    /// Every attachment to every network, each with the name of its file. A file of the format before this one does
    /// not say whose it is: network, container and interface are empty there, and the name is all there is to go by.
    ///
    /// # Errors
    /// When the directory, or anything in it, cannot be read or understood: whoever asks for all must not miss one.
    pub fn all(&self) -> Result<Vec<(String, CachedAttachment)>, RuntimeError> {
        let mut found = Vec::new();
        for entry in self.entries()? {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_directory = entry.file_type().map_err(|cause| self.unlisted(cause))?.is_dir();
            // See [`beside`]: a write that is not finished, or never will be.
            if is_directory || name.starts_with('.') {
                continue;
            }
            let path = entry.path();
            let text = match std::fs::read(&path) {
                Ok(text) => text,
                // Its attachment has gone in between.
                Err(cause) if cause.kind() == ErrorKind::NotFound => continue,
                Err(cause) => return Err(RuntimeError::Cache { action: "read", path, cause }),
            };
            match decode(&text, CachedAttachment::default) {
                Ok(cached) => found.push((name, cached)),
                Err(reason) => return Err(RuntimeError::BadCache { path, reason: reason.to_string() }),
            }
        }
        found.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(found)
    }

    /// What is in the directory; nothing when it is not there.
    fn entries(&self) -> Result<Vec<DirEntry>, RuntimeError> {
        match std::fs::read_dir(self.results()) {
            Ok(entries) => entries.collect::<io::Result<_>>().map_err(|cause| self.unlisted(cause)),
            Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(cause) => Err(self.unlisted(cause)),
        }
    }

    fn unlisted(&self, cause: io::Error) -> RuntimeError {
        RuntimeError::Cache { action: "list", path: self.results(), cause }
    }

    fn results(&self) -> PathBuf {
        self.directory.join("results")
    }

    fn file(&self, network: &str, attachment: &Attachment) -> PathBuf {
        self.results().join(format!("{network}-{}-{}", attachment.container_id, attachment.ifname))
    }
}

/// The name under which a file is written before it takes its place. Networks' names do not begin with a dot, so
/// it is never taken for an attachment.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(bytes)
}

fn encode(cached: &CachedAttachment) -> Json {
    let text = |value: &str| Json::from(value);
    let mut members = vec![
        ("kind", text(KIND)),
        ("containerId", text(&cached.container_id)),
        ("config", Json::String(BASE64.encode(&cached.config))),
        ("ifName", text(&cached.ifname)),
        ("networkName", text(&cached.network)),
    ];
    if !cached.netns.as_os_str().is_empty() {
        members.push(("netns", text(&cached.netns.to_string_lossy())));
    }
    if let Some((device, inode)) = cached.netns_identity {
        members.push(("netnsIdentity", Json::Array(vec![device.into(), inode.into()])));
    }
    if !cached.args.is_empty() {
        let pairs = cached.args.iter().map(|(key, value)| Json::strings([key, value]));
        members.push(("cniArgs", Json::Array(pairs.collect())));
    }
    if !cached.capability_args.is_empty() {
        members.push(("capabilityArgs", Json::Object(cached.capability_args.clone())));
    }
    if let Some(result) = &cached.result {
        members.push(("result", result.clone()));
    }
    Json::object(members)
}

/// What a file holds; `bare` makes the rest for a file with nothing but a result.
fn decode(text: &[u8], bare: impl FnOnce() -> CachedAttachment) -> Result<CachedAttachment, Error> {
    let document = Json::parse(text).map_err(|error| Error::undecodable(error.to_string()))?;
    let fields = Fields::of(&document)?;
    if fields.string("kind")? != KIND {
        // A bare result shows itself by decoding; other things do not pass for one.
        AddResult::from_json(&document, Version::UNSAID)?;
        return Ok(CachedAttachment { result: Some(document.clone()), ..bare() });
    }
    let config = BASE64.decode(fields.string("config")?);
    let config = config.map_err(|error| fields.bad("config", format!("not base64: {error}")))?;
    let identity = fields.array("netnsIdentity")?;
    let netns_identity = match identity.as_slice() {
        [device, inode] => Some((device.integer()?, inode.integer()?)),
        _ => None,
    };
    let mut args = Vec::new();
    for pair in fields.array("cniArgs")? {
        if let [key, value] = pair.array()?.as_slice() {
            args.push((key.string()?.to_owned(), value.string()?.to_owned()));
        }
    }
    let capability_args = fields.object("capabilityArgs")?;
    Ok(CachedAttachment {
        network: fields.string("networkName")?.to_owned(),
        container_id: fields.string("containerId")?.to_owned(),
        ifname: fields.string("ifName")?.to_owned(),
        netns: PathBuf::from(fields.string("netns")?),
        netns_identity,
        args,
        capability_args: capability_args
            .members()
            .map(|(key, value)| (key.to_owned(), value.raw().clone()))
            .collect(),
        config,
        result: fields.raw("result").cloned(),
    })
}

#[cfg(test)]
mod tests;
