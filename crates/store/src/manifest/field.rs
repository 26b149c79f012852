//! Taking a tree apart, field by field, so that every complaint knows where it belongs.
//!
//! A [`Field`] is a value and the way to it. A field that is not there is a field too, an absent one, which
//! keeps decoders straight: `pod.get("spec")?.get("nodeName")?.text()?`. `null` counts as absent, as in
//! Kubernetes. A [`Fault`] names the first thing wrong in one object.

use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use cluster::{Labels, NameError, NamespacedName, Protocol};
use ipnet::IpNet;

use super::tree::{Data, Place, Tree};

/// What is wrong in a file, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) place: Place,
    pub(crate) object: Option<String>,
    pub(crate) field: Option<String>,
    pub(crate) reason: String,
    pub(crate) hint: Option<String>,
}

impl Fault {
    /// A fault of the file as a whole.
    pub(crate) fn new(reason: String) -> Self {
        Self { place: Place::default(), object: None, field: None, reason, hint: None }
    }

    /// The same fault, of `object`, unless an inner object is to blame.
    pub(crate) fn about(self, object: Option<String>) -> Self {
        Self { object: self.object.or(object), ..self }
    }

    /// The same fault with a hint.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// A value and the way to it from the document's root.
#[derive(Clone, Copy)]
pub(crate) struct Field<'t, 'p> {
    tree: &'t Tree,
    parent: Option<&'p Self>,
    step: Step<'p>,
}

#[derive(Clone, Copy)]
enum Step<'p> {
    Root,
    Key(&'p str),
    Index(usize),
}

static ABSENT: Tree = Tree { place: Place { line: 0, column: 0 }, data: Data::Null };

impl<'t, 'p> Field<'t, 'p> {
    /// The whole document.
    pub(crate) fn root(tree: &'t Tree) -> Self {
        Self { tree, parent: None, step: Step::Root }
    }

    /// The field `key` of this map; absent if this is absent or has no such field.
    pub(crate) fn get<'s>(&'s self, key: &'s str) -> Result<Field<'t, 's>, Fault> {
        let found = self.entries()?.iter().find(|(have, _)| **have == *key);
        let tree = found.map_or(&ABSENT, |(_, tree)| tree);
        Ok(Field { tree, parent: Some(self), step: Step::Key(key) })
    }

    /// All entries of this map; none if absent.
    pub(crate) fn entries(&self) -> Result<&'t [(Box<str>, Tree)], Fault> {
        match &self.tree.data {
            Data::Map(entries) => Ok(entries),
            Data::Null => Ok(&[]),
            other => Err(self.fault(format!("is {}, not a mapping of fields", name_of(other)))),
        }
    }

    /// All items of this list; none if absent.
    pub(crate) fn items<'s>(&'s self) -> Result<Vec<Field<'t, 's>>, Fault> {
        match &self.tree.data {
            Data::List(items) => {
                let field = |(index, tree)| Field { tree, parent: Some(self), step: Step::Index(index) };
                Ok(items.iter().enumerate().map(field).collect())
            }
            Data::Null => Ok(Vec::new()),
            other => Err(self.fault(format!("is {}, not a list", name_of(other)))),
        }
    }

    /// What `read` makes of each item.
    pub(crate) fn each<'s, T>(
        &'s self,
        read: impl Fn(&Field<'t, 's>) -> Result<T, Fault>,
    ) -> Result<Box<[T]>, Fault> {
        self.items()?.iter().map(read).collect()
    }

    /// True if there is nothing.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self.tree.data, Data::Null)
    }

    /// The text; none if absent.
    pub(crate) fn text(&self) -> Result<Option<&'t str>, Fault> {
        match &self.tree.data {
            Data::Text(text) => Ok(Some(text)),
            Data::Null => Ok(None),
            other @ (Data::Bool(_) | Data::Integer(_) | Data::Float(_)) => {
                Err(self.fault(format!("is {}, not text", name_of(other))).hint("put it in quotes"))
            }
            other => Err(self.fault(format!("is {}, not text", name_of(other)))),
        }
    }

    /// The text, which may be neither absent nor empty.
    pub(crate) fn required_text(&self) -> Result<&'t str, Fault> {
        self.text()?.filter(|text| !text.is_empty()).ok_or_else(|| self.fault("is missing".into()))
    }

    /// The text, unless absent or empty.
    pub(crate) fn filled_text(&self) -> Result<Option<&'t str>, Fault> {
        Ok(self.text()?.filter(|text| !text.is_empty()))
    }

    /// The truth value; none if absent.
    pub(crate) fn truth(&self) -> Result<Option<bool>, Fault> {
        match &self.tree.data {
            Data::Bool(value) => Ok(Some(*value)),
            Data::Null => Ok(None),
            other => Err(self.fault(format!("is {}, neither true nor false", name_of(other)))),
        }
    }

    /// The whole number between the two; none if absent.
    pub(crate) fn number(&self, least: u32, most: u32) -> Result<Option<u32>, Fault> {
        match &self.tree.data {
            Data::Integer(value) => match u32::try_from(*value) {
                Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
                _ => Err(self.fault(format!("is {value}, not between {least} and {most}"))),
            },
            Data::Null => Ok(None),
            other @ Data::Text(_) => {
                Err(self.fault(format!("is {}, not a number", name_of(other))).hint("take the quotes away"))
            }
            other => Err(self.fault(format!("is {}, not a whole number", name_of(other)))),
        }
    }

    /// The port number from 1; none if absent.
    pub(crate) fn port(&self) -> Result<Option<u16>, Fault> {
        Ok(self.number(1, 65_535)?.and_then(|port| u16::try_from(port).ok()))
    }

    /// The port number; none if absent or 0, which Kubernetes writes for "none".
    pub(crate) fn port_or_zero(&self) -> Result<Option<u16>, Fault> {
        let port = self.number(0, 65_535)?.and_then(|port| u16::try_from(port).ok());
        Ok(port.filter(|port| *port != 0))
    }

    /// TCP, UDP or SCTP; TCP if absent.
    pub(crate) fn protocol(&self) -> Result<Protocol, Fault> {
        match self.filled_text()? {
            None | Some("TCP") => Ok(Protocol::Tcp),
            Some("UDP") => Ok(Protocol::Udp),
            Some("SCTP") => Ok(Protocol::Sctp),
            Some(other) => Err(self.fault(format!("is {other:?}, none of TCP, UDP and SCTP"))),
        }
    }

    /// The address.
    pub(crate) fn address(&self) -> Result<IpAddr, Fault> {
        self.parse(self.required_text()?, "an IP address")
    }

    /// The CIDR, which may have no host bits.
    pub(crate) fn cidr(&self) -> Result<IpNet, Fault> {
        let cidr: IpNet = self.parse(self.required_text()?, "a CIDR such as 10.244.1.0/24")?;
        if cidr.addr() == cidr.network() {
            return Ok(cidr);
        }
        Err(self.fault(format!("is {cidr}, with host bits set")).hint(format!("write {}", cidr.trunc())))
    }

    /// `text`, which is this field's, as a `T`.
    pub(crate) fn parse<T: FromStr>(&self, text: &str, what: &str) -> Result<T, Fault> {
        text.parse().map_err(|_| self.fault(format!("is {text:?}, not {what}")))
    }

    /// The name, checked; none if absent or empty.
    pub(crate) fn name(&self, check: fn(&str) -> Result<(), NameError>) -> Result<Option<&'t str>, Fault> {
        let Some(name) = self.filled_text()? else { return Ok(None) };
        check(name).map_err(|error| self.fault(error.to_string()))?;
        Ok(Some(name))
    }

    /// The name, checked, which may not be absent.
    pub(crate) fn required_name(&self, check: fn(&str) -> Result<(), NameError>) -> Result<Arc<str>, Fault> {
        self.required_text()?;
        Ok(self.name(check)?.unwrap_or_default().into())
    }

    /// The name that this object's metadata gives, for kinds that live in no namespace.
    pub(crate) fn cluster_name(&self, check: fn(&str) -> Result<(), NameError>) -> Result<Arc<str>, Fault> {
        let metadata = self.get("metadata")?;
        let name = metadata.get("name")?;
        if name.is_absent() && !metadata.get("generateName")?.is_absent() {
            let fault = name.fault("is missing; generateName needs an API server".into());
            return Err(fault.hint("give the object a name of its own"));
        }
        name.required_name(check)
    }

    /// The name that this object's metadata gives, in its namespace or else the namespace `default`.
    pub(crate) fn namespaced_name(
        &self,
        check: fn(&str) -> Result<(), NameError>,
    ) -> Result<NamespacedName, Fault> {
        let name = self.cluster_name(check)?;
        let metadata = self.get("metadata")?;
        let namespace = metadata.get("namespace")?;
        Ok(NamespacedName::new(namespace.name(cluster::check_label)?.unwrap_or("default"), name))
    }

    /// This map of labels, checked.
    pub(crate) fn labels(&self) -> Result<Labels, Fault> {
        let mut pairs = Vec::new();
        for (key, _) in self.entries()? {
            let value = self.get(key)?;
            let text = value.text()?.unwrap_or_default();
            check_label_key(key)
                .and_then(|()| check_label_value(text))
                .map_err(|reason| value.fault(reason))?;
            pairs.push((&**key, text));
        }
        Ok(pairs.into_iter().collect())
    }

    /// The line it stands in; that of what surrounds it, if it is absent.
    pub(crate) fn line(&self) -> u32 {
        self.place().line
    }

    /// A complaint about this field.
    pub(crate) fn fault(&self, reason: String) -> Fault {
        let mut path = String::new();
        self.write_path(&mut path);
        let field = Some(path).filter(|path| !path.is_empty());
        Fault { place: self.place(), field: field.map(shortened), ..Fault::new(shortened(reason)) }
    }

    /// What an unreadable part makes of this field.
    pub(crate) fn because(&self, cause: impl Display) -> Fault {
        self.fault(cause.to_string())
    }

    fn place(&self) -> Place {
        match self.parent {
            Some(parent) if self.tree.place.line == 0 => parent.place(),
            _ => self.tree.place,
        }
    }

    fn write_path(&self, out: &mut String) {
        if let Some(parent) = self.parent {
            parent.write_path(out);
        }
        match self.step {
            Step::Root => {}
            Step::Index(index) => out.push_str(&format!("[{index}]")),
            Step::Key(key) if key.contains(['.', '/', '[']) => out.push_str(&format!("[{key:?}]")),
            Step::Key(key) => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.extend(key.chars().flat_map(char::escape_debug));
            }
        }
    }
}

/// A value may be as large as the file; the beginning of it tells enough.
pub(crate) fn shortened(text: String) -> String {
    match text.char_indices().nth(400) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

fn name_of(data: &Data) -> String {
    match data {
        Data::Null => "nothing".into(),
        Data::Bool(value) => format!("the truth value {value}"),
        Data::Integer(value) => format!("the number {value}"),
        Data::Float(value) => format!("the number {value}"),
        Data::Text(text) => match text.char_indices().nth(40) {
            Some((end, _)) => format!("the text {:?}...", text.get(..end).unwrap_or_default()),
            None => format!("the text {text:?}"),
        },
        Data::List(_) => "a list".into(),
        Data::Map(_) => "a mapping".into(),
    }
}

/// Kubernetes' qualified names: an optional DNS subdomain and a slash, then at most 63 characters.
fn check_label_key(key: &str) -> Result<(), String> {
    let (prefix, name) = key.rsplit_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if let Some(Err(error)) = prefix.map(cluster::check_subdomain) {
        return Err(format!("has a key whose part before the slash {error}"));
    }
    if name.is_empty() {
        return Err("has a key without a name".into());
    }
    check_label_value(name)
}

fn check_label_value(text: &str) -> Result<(), String> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ends = |c: char| c.is_ascii_alphanumeric();
    if text.len() > 63 {
        return Err(format!("has {} characters, more than 63", text.chars().count()));
    }
    if text.chars().all(inner)
        && text.starts_with(ends) == text.ends_with(ends)
        && (text.is_empty() || text.starts_with(ends))
    {
        return Ok(());
    }
    Err(format!("is {text:?}; a label has letters, digits and, not at either end, '-', '_' or '.'"))
}
