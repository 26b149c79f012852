//! The error object of the protocol: what a plugin that fails prints on stdout.
//!
//! [`Error`] is not an everyday error enum but the thing on the wire: a [`Code`] that runtimes act on, a message
//! and optional details for the person who reads the pod's events. Every `Plugin` method fails with it.
//! Errors of the runtime's side (loading lists, running chains) are `RuntimeError`.
//! Unlike the reference, an error always carries its `cniVersion`, as the specification asks.
//! Source: CNI specification section 5, "Error"; codes from there and from the reference library.

use std::fmt;

use crate::json::{Fields, Json};
use crate::version::Version;

/// A CNI error code. Codes from 100 on are the plugin's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(pub u32);

impl Code {
    /// 1: the configuration's version is not one that the plugin speaks.
    pub const INCOMPATIBLE_VERSION: Self = Self(1);
    /// 2: the configuration has a field that the plugin does not support.
    pub const UNSUPPORTED_FIELD: Self = Self(2);
    /// 3: the container is unknown; the runtime has nothing to clean up.
    pub const UNKNOWN_CONTAINER: Self = Self(3);
    /// 4: an environment variable is missing or bad.
    pub const INVALID_ENVIRONMENT: Self = Self(4);
    /// 5: input or output failed.
    pub const IO_FAILURE: Self = Self(5);
    /// 6: content cannot be decoded: not JSON, or a value of the wrong type.
    pub const UNDECODABLE: Self = Self(6);
    /// 7: the configuration is readable but wrong.
    pub const INVALID_CONFIG: Self = Self(7);
    /// 8: the network namespace is not one the plugin may work in.
    pub const INVALID_NETNS: Self = Self(8);
    /// 11: try again later.
    pub const TRY_AGAIN: Self = Self(11);
    /// 50: STATUS: an ADD would not succeed now.
    pub const NOT_READY: Self = Self(50);
    /// 51: STATUS: as 50, and existing containers may have limited connectivity.
    pub const LIMITED: Self = Self(51);
    /// 101: the kernel refused; the message carries its words.
    pub const KERNEL: Self = Self(101);
    /// 999: an error of no particular kind (what the reference uses nearly everywhere).
    pub const INTERNAL: Self = Self(999);
}

/// A CNI error: code, message, details.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What kind of failure; runtimes decide by it.
    pub code: Code,
    /// What was tried, on what, and why it failed.
    pub message: String,
    /// More for a person: a hint, the supported versions. May be empty.
    pub details: String,
}

impl Error {
    /// An error with a code and a message.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    /// The same error with details.
    #[must_use]
    pub fn with_details(self, details: impl Into<String>) -> Self {
        Self { details: details.into(), ..self }
    }

    /// The same error with what was being done put before its message: `context: message`.
    #[must_use]
    pub fn context(self, context: impl fmt::Display) -> Self {
        Self { message: format!("{context}: {}", self.message), ..self }
    }

    /// Code 4: an environment variable is missing or bad.
    #[must_use]
    pub fn environment(message: impl Into<String>) -> Self {
        Self::new(Code::INVALID_ENVIRONMENT, message)
    }

    /// Code 5: input or output failed.
    #[must_use]
    pub fn io(message: impl Into<String>) -> Self {
        Self::new(Code::IO_FAILURE, message)
    }

    /// Code 6: content cannot be decoded.
    #[must_use]
    pub fn undecodable(message: impl Into<String>) -> Self {
        Self::new(Code::UNDECODABLE, message)
    }

    /// Code 7: the configuration is wrong.
    #[must_use]
    pub fn invalid_config(message: impl Into<String>) -> Self {
        Self::new(Code::INVALID_CONFIG, message)
    }

    /// Code 8: the network namespace will not do.
    #[must_use]
    pub fn netns(message: impl Into<String>) -> Self {
        Self::new(Code::INVALID_NETNS, message)
    }

    /// Code 11: try again later.
    #[must_use]
    pub fn try_again(message: impl Into<String>) -> Self {
        Self::new(Code::TRY_AGAIN, message)
    }

    /// Code 50: STATUS: an ADD would not succeed now.
    #[must_use]
    pub fn not_ready(message: impl Into<String>) -> Self {
        Self::new(Code::NOT_READY, message)
    }

    /// Code 101: the kernel refused.
    #[must_use]
    pub fn kernel(message: impl Into<String>) -> Self {
        Self::new(Code::KERNEL, message)
    }

    /// Code 999: nothing more particular fits.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::INTERNAL, message)
    }

    /// Code 1: `said` is not among the versions that `who` speaks; the details name both.
    #[must_use]
    pub fn incompatible(said: &str, supported: &[Version]) -> Self {
        let known: Vec<String> = supported.iter().map(|version| format!("{:?}", version.as_str())).collect();
        Self::new(Code::INCOMPATIBLE_VERSION, "incompatible CNI versions")
            .with_details(format!("config is {said:?}, plugin supports [{}]", known.join(" ")))
    }

    /// Several failures as one: the first one's code, all messages. Nothing if there was none.
    #[must_use]
    pub fn join(errors: Vec<Self>) -> Option<Self> {
        let code = errors.first()?.code;
        let details: Vec<&str> =
            errors.iter().map(|error| error.details.as_str()).filter(|details| !details.is_empty()).collect();
        let details = details.join("; ");
        let messages: Vec<String> = errors.into_iter().map(|error| error.message).collect();
        Some(Self { code, message: messages.join("; "), details })
    }

    /// The error as JSON, with the version of the configuration it answers.
    #[must_use]
    pub fn to_json(&self, version: Version) -> Json {
        let mut members = vec![
            ("cniVersion".to_owned(), Json::from(version.as_str())),
            ("code".to_owned(), Json::from(u64::from(self.code.0))),
            ("msg".to_owned(), Json::from(self.message.as_str())),
        ];
        if !self.details.is_empty() {
            members.push(("details".to_owned(), Json::from(self.details.as_str())));
        }
        Json::Object(members)
    }

    /// The error object that a failed plugin printed, if its output is one.
    #[must_use]
    pub fn decode(stdout: &[u8]) -> Option<Self> {
        let json = Json::parse(stdout).ok()?;
        let fields = Fields::of(&json).ok()?;
        let code = Code(fields.integer("code").ok()?);
        let message = fields.string("msg").ok()?.to_owned();
        if code.0 == 0 && message.is_empty() {
            return None;
        }
        Some(Self { code, message, details: fields.string("details").ok()?.to_owned() })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)?;
        if !self.details.is_empty() {
            write!(formatter, "; {}", self.details)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_carries_the_version_and_omits_empty_details() {
        let error = Error::invalid_config("name: bad");
        assert_eq!(
            error.to_json(Version::V1_0_0).to_string(),
            r#"{"cniVersion":"1.0.0","code":7,"msg":"name: bad"}"#
        );
    }

    #[test]
    fn what_is_printed_is_read_back() {
        let error = Error::try_again("pool is locked").with_details("hint: wait");
        let printed = error.to_json(Version::V1_1_0).to_string();
        assert_eq!(Error::decode(printed.as_bytes()), Some(error));
    }

    #[test]
    fn output_that_is_no_error_object_is_not_taken_for_one() {
        for text in ["", "{}", "null", "[]", "panic: oh", r#"{"code":"7","msg":"x"}"#] {
            assert_eq!(Error::decode(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn joined_errors_keep_every_message_and_the_first_code() {
        assert_eq!(Error::join(Vec::new()), None);
        let joined = Error::join(vec![Error::try_again("a").with_details("d"), Error::internal("b")]);
        assert_eq!(joined, Some(Error::try_again("a; b").with_details("d")));
    }

    #[test]
    fn an_incompatible_version_is_named_with_those_that_would_do() {
        let error = Error::incompatible("9.9.9", &[Version::V0_4_0, Version::V1_0_0]);
        assert_eq!(error.code, Code::INCOMPATIBLE_VERSION);
        assert_eq!(error.details, r#"config is "9.9.9", plugin supports ["0.4.0" "1.0.0"]"#);
    }
}
