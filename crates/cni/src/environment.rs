//! The environment of a plugin process: the CNI_* variables, read, checked and passed on.
//!
//! [`Environment`] is the variables as a value, so that a call can be made in memory; [`Arguments`] is CNI_ARGS taken
//! apart. What a command does not need is neither required nor checked.
//! Source: CNI specification section 2, "Parameters"; conventions for CNI_ARGS from the reference library.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::config::is_identifier;
use crate::error::{Code, Error};
use crate::plugin::Command;

/// The variables of a plugin's call; a variable that is not set is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// CNI_COMMAND: what to do.
    pub command: String,
    /// CNI_CONTAINERID: whom for.
    pub container_id: String,
    /// CNI_NETNS: where.
    pub netns: PathBuf,
    /// CNI_IFNAME: the interface's name.
    pub ifname: String,
    /// CNI_ARGS: `KEY=VALUE;...`.
    pub args: String,
    /// CNI_PATH: directories of plugins, separated by colons.
    pub path: OsString,
    /// CNI_NETNS_OVERRIDE: `1` or `true` lets a plugin work in its own namespace.
    pub netns_override: String,
}

impl Environment {
    /// The variables as `variable` tells them. Nothing beyond CNI_COMMAND is asked for when that is not set or
    /// is VERSION.
    pub fn read(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let text =
            |name| variable(name).map(|value| value.to_string_lossy().into_owned()).unwrap_or_default();
        let command = text("CNI_COMMAND");
        if matches!(command.as_str(), "" | "VERSION") {
            return Self { command, ..Self::default() };
        }
        Self {
            command,
            container_id: text("CNI_CONTAINERID"),
            netns: variable("CNI_NETNS").map(PathBuf::from).unwrap_or_default(),
            ifname: text("CNI_IFNAME"),
            args: text("CNI_ARGS"),
            path: variable("CNI_PATH").unwrap_or_default(),
            netns_override: text("CNI_NETNS_OVERRIDE"),
        }
    }

    /// The command, when every variable that it requires is there.
    ///
    /// # Errors
    /// Code 4 naming all that are missing, or the command that does not exist.
    pub fn command(&self) -> Result<Command, Error> {
        let command = match self.command.as_str() {
            "ADD" => Command::Add,
            "DEL" => Command::Del,
            "CHECK" => Command::Check,
            "GC" => Command::Gc,
            "STATUS" => Command::Status,
            other => return Err(Error::environment(format!("unknown CNI_COMMAND: {other}"))),
        };
        let container = command.names_container();
        let required = [
            ("CNI_CONTAINERID", container, self.container_id.is_empty()),
            ("CNI_NETNS", container && command != Command::Del, self.netns.as_os_str().is_empty()),
            ("CNI_IFNAME", container, self.ifname.is_empty()),
            ("CNI_PATH", true, self.path.is_empty()),
        ];
        let missing: Vec<&str> = required
            .into_iter()
            .filter(|(_, needed, empty)| *needed && *empty)
            .map(|(name, ..)| name)
            .collect();
        if missing.is_empty() {
            return Ok(command);
        }
        Err(Error::environment(format!("required env variables [{}] missing", missing.join(","))))
    }

    /// Checks container id and interface name, for the commands that have them.
    ///
    /// # Errors
    /// As [`validate_container_id`] and [`validate_interface_name`].
    pub fn validate(&self, command: Command) -> Result<(), Error> {
        if command.names_container() {
            validate_container_id(&self.container_id)?;
            validate_interface_name(&self.ifname)?;
        }
        Ok(())
    }

    /// The directories of CNI_PATH, without empty ones.
    #[must_use]
    pub fn directories(&self) -> Vec<PathBuf> {
        let parts = self.path.as_bytes().split(|byte| *byte == b':');
        parts.filter(|part| !part.is_empty()).map(|part| PathBuf::from(OsStr::from_bytes(part))).collect()
    }

    /// Whether the guard against the plugin's own namespace is switched off.
    #[must_use]
    pub fn allows_own_netns(&self) -> bool {
        self.netns_override == "1" || self.netns_override.eq_ignore_ascii_case("true")
    }
}

/// Checks a container's id: a letter or digit, then letters, digits, `_`, `.` and `-`.
///
/// # Errors
/// Code 3 when it is empty, 4 when it is bad.
pub fn validate_container_id(id: &str) -> Result<(), Error> {
    if id.is_empty() {
        return Err(Error::new(Code::UNKNOWN_CONTAINER, "missing containerID"));
    }
    if !is_identifier(id) {
        return Err(Error::environment("invalid characters in containerID").with_details(id));
    }
    Ok(())
}

/// The longest name of a network interface, in bytes.
const INTERFACE_NAME_LIMIT: usize = 15;

/// Checks an interface's name as the kernel does: 1 to 15 bytes, not `.` or `..`, no `/`, no `:`, no white space. And
/// no `%`, of which the kernel would make another name.
///
/// # Errors
/// Code 4 when it is bad.
pub fn validate_interface_name(name: &str) -> Result<(), Error> {
    let reason = match name {
        "" => "interface name is empty",
        _ if name.len() > INTERFACE_NAME_LIMIT => "interface name is too long; at most 15 bytes",
        "." | ".." => "interface name is . or ..",
        _ if name.contains(['/', ':']) => "interface name contains / or :",
        _ if name.contains('%') => "interface name contains %, which the kernel takes for a pattern",
        _ if name.contains(char::is_whitespace) => "interface name contains white space",
        _ => return Ok(()),
    };
    Err(Error::environment(reason).with_details(format!("{name:?}")))
}

/// CNI_ARGS, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments<'a> {
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Arguments<'a> {
    /// The pairs of `KEY=VALUE;KEY=VALUE`. Keys match exactly; one that is not `known` is an error unless
    /// `IgnoreUnknown` is among the pairs and true.
    ///
    /// # Errors
    /// Code 4 when a pair has not exactly one `=`, a key is unknown, or IgnoreUnknown is no boolean.
    pub fn parse(text: &'a str, known: &[&str]) -> Result<Self, Error> {
        let mut pairs = Vec::new();
        if text.is_empty() {
            return Ok(Self { pairs });
        }
        for pair in text.split(';') {
            let mut halves = pair.split('=');
            let (Some(key), Some(value), None) = (halves.next(), halves.next(), halves.next()) else {
                return Err(Error::environment(format!("CNI_ARGS: invalid pair {pair:?}")));
            };
            pairs.push((key, value));
        }
        let arguments = Self { pairs };
        let ignores = arguments.get("IgnoreUnknown").map(boolean).transpose()?.unwrap_or_default();
        let is_unknown = |key: &&str| *key != "IgnoreUnknown" && !known.contains(key);
        let unknown: Vec<&str> = arguments.pairs.iter().map(|(key, _)| *key).filter(is_unknown).collect();
        if unknown.is_empty() || ignores {
            return Ok(arguments);
        }
        Err(Error::environment(format!("CNI_ARGS: unknown args {unknown:?}"))
            .with_details("hint: IgnoreUnknown=1 lets a plugin ignore them"))
    }

    /// The value of `key`: of several, the last.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.pairs.iter().rev().find(|(name, _)| *name == key).map(|(_, value)| *value)
    }
}

fn boolean(text: &str) -> Result<bool, Error> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(Error::environment(format!("CNI_ARGS: IgnoreUnknown: {text:?} is not a boolean"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        let find =
            |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        Environment::read(find)
    }

    #[test]
    fn all_missing_variables_are_in_one_message() {
        let cases = [
            ("ADD", "[CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH]"),
            ("CHECK", "[CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH]"),
            ("DEL", "[CNI_CONTAINERID,CNI_IFNAME,CNI_PATH]"),
            ("GC", "[CNI_PATH]"),
            ("STATUS", "[CNI_PATH]"),
        ];
        for (command, names) in cases {
            let error = environment(&[("CNI_COMMAND", command), ("CNI_IFNAME", "")]).command().unwrap_err();
            assert_eq!(error, Error::environment(format!("required env variables {names} missing")));
        }
    }

    #[test]
    fn an_unknown_command_is_named() {
        let error = environment(&[("CNI_COMMAND", "add")]).command().unwrap_err();
        assert_eq!(error, Error::environment("unknown CNI_COMMAND: add"));
    }

    #[test]
    fn commands_without_a_container_do_not_look_at_its_variables() {
        let odd =
            [("CNI_COMMAND", "GC"), ("CNI_PATH", "/x"), ("CNI_IFNAME", "a/b"), ("CNI_CONTAINERID", "_")];
        let environment = environment(&odd);
        let command = environment.command().unwrap();
        assert_eq!(environment.validate(command), Ok(()));
    }

    #[test]
    fn container_ids_are_checked_with_the_right_codes() {
        for good in ["a", "0", "A-b_c.d", &"f".repeat(64)] {
            assert_eq!(validate_container_id(good), Ok(()), "{good}");
        }
        assert_eq!(validate_container_id("").unwrap_err().code, Code::UNKNOWN_CONTAINER);
        for bad in ["_x", "a b", "-", ".", "a/b", "é", "a\n"] {
            assert_eq!(validate_container_id(bad).unwrap_err().code, Code::INVALID_ENVIRONMENT, "{bad}");
        }
    }

    #[test]
    fn interface_names_are_checked_as_the_kernel_does() {
        for good in ["e", "eth0", "eth0.100", "...", "fifteen-bytes-x"] {
            assert_eq!(validate_interface_name(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "eth%d", "sixteen-bytes-xx", "éééééééé"]
        {
            assert_eq!(validate_interface_name(bad).unwrap_err().code, Code::INVALID_ENVIRONMENT, "{bad}");
        }
    }

    #[test]
    fn arguments_follow_the_rules_for_unknown_keys() {
        let known = ["IP", "MAC"];
        let parse = |text| Arguments::parse(text, &known);
        assert_eq!(parse("").unwrap().get("IP"), None);
        assert_eq!(parse("IP=10.0.0.5;MAC=aa:bb").unwrap().get("MAC"), Some("aa:bb"));
        assert_eq!(parse("IP=1;IP=2").unwrap().get("IP"), Some("2"));
        assert_eq!(parse("IP=").unwrap().get("IP"), Some(""));
        let kubernetes = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web";
        assert_eq!(parse(kubernetes).unwrap().get("K8S_POD_NAME"), Some("web"));
        assert!(parse("K8S_POD_NAME=web;IgnoreUnknown=true").is_ok());
        for bad in ["IP", "IP=1=2", ";", "IP=1;", "ip=1", "IgnoreUnknown=0;X=1", "IgnoreUnknown=maybe", "X=1"]
        {
            assert_eq!(parse(bad).unwrap_err().code, Code::INVALID_ENVIRONMENT, "{bad}");
        }
    }

    #[test]
    fn the_directories_of_the_path_are_those_between_colons() {
        let environment = environment(&[("CNI_COMMAND", "ADD"), ("CNI_PATH", "/a::/b c:d:")]);
        assert_eq!(environment.directories(), ["/a", "/b c", "d"].map(PathBuf::from));
    }

    #[test]
    fn the_override_takes_one_and_true_only() {
        for (value, allows) in
            [("1", true), ("TRUE", true), ("True", true), ("", false), ("0", false), ("yes", false)]
        {
            let environment = Environment { netns_override: value.to_owned(), ..Environment::default() };
            assert_eq!(environment.allows_own_netns(), allows, "{value}");
        }
    }
}
