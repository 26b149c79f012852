//! The network configuration that a plugin gets on stdin.
//!
//! [`Config`] holds the protocol's own keys, checked; a plugin reads its keys through [`Config::fields`], leniently
//! as the reference does (see `json/fields.rs`). The document itself is kept whole: a delegate gets it as it came.
//! `prevResult` is decoded only when asked for, because DEL must not fail over one that it can do without.
//! Source: CNI specification section 1 ("Plugin configuration objects") and section 2 (GC).

use crate::error::Error;
use crate::json::{FieldError, Fields, Json};
use crate::result::{AddResult, Dns};
use crate::version::Version;

/// One plugin's network configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The protocol version that the runtime speaks, and that results are written in.
    pub version: Version,
    /// The network's name.
    pub name: String,
    /// The plugin's type: the name of its executable. May be empty when a person runs the plugin by hand.
    pub kind: String,
    /// The type of the IPAM plugin to delegate to; empty for none.
    pub ipam_kind: String,
    /// The configuration's own `dns`.
    pub dns: Dns,
    /// The attachments that GC must keep; `None` when the configuration does not say, which is not the same as
    /// an empty list.
    pub valid_attachments: Option<Vec<Attachment>>,
    document: Json,
}

impl Config {
    /// The configuration in `bytes`, of any version.
    ///
    /// # Errors
    /// Code 6 when it is not JSON or a value has the wrong type; 7 when the name is missing or bad; 1 when the
    /// version is unknown.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        Self::parse_for(bytes, &Version::ALL)
    }

    /// The configuration in `bytes`, for a plugin that speaks these versions.
    ///
    /// # Errors
    /// As [`Config::parse`].
    pub fn parse_for(bytes: &[u8], supported: &[Version]) -> Result<Self, Error> {
        let document = Json::parse(bytes)
            .map_err(|error| Error::undecodable(format!("network configuration: {error}")))?;
        Self::from_json(document, supported)
    }

    /// The configuration in a document, for a plugin that speaks these versions.
    ///
    /// # Errors
    /// As [`Config::parse`].
    pub fn from_json(document: Json, supported: &[Version]) -> Result<Self, Error> {
        let fields = Fields::of(&document)?;
        let name = fields.string("name")?.to_owned();
        validate_network_name(&name)?;
        let version = match fields.string("cniVersion")? {
            "" => version_among(Version::UNSAID.as_str(), supported)?,
            text => version_among(text, supported)?,
        };
        let kind = fields.string("type")?.to_owned();
        // A plugin may give `ipam` a meaning of its own (a string, a list): only an object can name a delegate.
        let ipam_kind = match fields.raw("ipam") {
            Some(Json::Object(_)) => fields.object("ipam")?.string("type")?.to_owned(),
            _ => String::new(),
        };
        let dns = Dns::from_fields(&fields.object("dns")?)?;
        let valid_attachments = attachments(&fields)?;
        Ok(Self { version, name, kind, ipam_kind, dns, valid_attachments, document })
    }

    /// Every member of the configuration, for a plugin to read its own keys.
    #[must_use]
    pub fn fields(&self) -> Fields<'_> {
        Fields::of(&self.document).unwrap_or_default()
    }

    /// The `ipam` object; empty when absent.
    ///
    /// # Errors
    /// When it is not an object.
    pub fn ipam(&self) -> Result<Fields<'_>, FieldError> {
        self.fields().object("ipam")
    }

    /// The `runtimeConfig` object: the capability arguments that the runtime gave; empty when absent.
    ///
    /// # Errors
    /// When it is not an object.
    pub fn runtime_config(&self) -> Result<Fields<'_>, FieldError> {
        self.fields().object("runtimeConfig")
    }

    /// The `args.cni` object: structured arguments of the runtime; empty when absent.
    ///
    /// # Errors
    /// When it is not an object.
    pub fn args(&self) -> Result<Fields<'_>, FieldError> {
        self.fields().object("args")?.object("cni")
    }

    /// The result so far: of the plugins before this one (ADD), or of the whole chain (CHECK, DEL). `None` when
    /// there is none.
    ///
    /// # Errors
    /// When it cannot be decoded.
    pub fn prev_result(&self) -> Result<Option<AddResult>, Error> {
        let decode = |document| {
            AddResult::from_json(document, self.version).map_err(|error| error.context("prevResult"))
        };
        self.fields().raw("prevResult").map(decode).transpose()
    }

    /// The document as it came.
    #[must_use]
    pub const fn document(&self) -> &Json {
        &self.document
    }
}

/// What one container has on one network: the pair that GC lists are made of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attachment {
    /// The container's id.
    pub container_id: String,
    /// The interface's name in the container.
    pub ifname: String,
}

impl Attachment {
    /// The attachment as GC configurations list it.
    #[must_use]
    pub fn to_json(&self) -> Json {
        Json::object([
            ("containerID", Json::from(self.container_id.as_str())),
            ("ifname", Json::from(self.ifname.as_str())),
        ])
    }
}

/// Checks a network's name: a letter or digit, then letters, digits, `_`, `.` and `-`.
///
/// # Errors
/// Code 7 when it is missing or bad.
pub fn validate_network_name(name: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Err(Error::invalid_config("missing network name"));
    }
    if !is_identifier(name) {
        return Err(Error::invalid_config("invalid characters found in network name").with_details(name));
    }
    Ok(())
}

/// A letter or digit, then letters, digits, `_`, `.` and `-`: the rule for network names and container ids.
pub(crate) fn is_identifier(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

fn version_among(text: &str, supported: &[Version]) -> Result<Version, Error> {
    Version::exactly(text)
        .filter(|version| supported.contains(version))
        .ok_or_else(|| Error::incompatible(text, supported))
}

/// GC's list, under its key in the specification or else under the one of older runtimes.
fn attachments(fields: &Fields<'_>) -> Result<Option<Vec<Attachment>>, FieldError> {
    let list = match fields.optional_array("cni.dev/valid-attachments")? {
        Some(list) => list,
        None => match fields.optional_array("cni.dev/attachments")? {
            Some(list) => list,
            None => return Ok(None),
        },
    };
    let attachment = |item: &crate::json::Item<'_>| {
        let fields = item.fields()?;
        // An entry that names nobody keeps nobody: taken as it is, a misspelt list would remove everything.
        let named = |key| match fields.string(key)? {
            "" => Err(fields.bad(key, "missing, so it is unknown who is to be kept")),
            text => Ok(text.to_owned()),
        };
        Ok(Attachment { container_id: named("containerID")?, ifname: named("ifname")? })
    };
    list.iter().map(attachment).collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
mod tests;
