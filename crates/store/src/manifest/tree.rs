//! A document as a tree of plain values, each with its place in the file.
//!
//! YAML and JSON both become a [`Tree`]. Values keep the type the file gave them: `name: 7` stays a number, so
//! that it can be refused as Kubernetes refuses it, with a better explanation. Limits on depth, size and
//! aliases are the parser's; they bound memory and stack for any input.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DefaultMessageFormatter, MessageFormatter, Spanned};

use super::field::Fault;

/// Where a value stands; line and column from 1, 0 if unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

/// A value and its place.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) place: Place,
    pub(crate) data: Data,
}

/// A value.
#[derive(Debug)]
pub(crate) enum Data {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(Box<str>),
    List(Vec<Tree>),
    Map(Vec<(Box<str>, Tree)>),
}

/// Large parts that nobody here reads are not even built.
const PASSED_OVER: [&str; 2] = ["managedFields", "kubectl.kubernetes.io/last-applied-configuration"];

/// Nesting that both parsers accept.
const DEEPEST: usize = 100;

/// Reads one JSON value; its places stay unknown.
pub(crate) fn read_json(text: &str) -> Result<Tree, serde_json::Error> {
    serde_json::from_str::<JsonTree>(text).map(Tree::from)
}

/// Reads a stream of YAML documents, handing over one after the other.
pub(crate) fn read_yaml<D: Default + Extend<Tree>>(text: &str) -> Result<D, Fault> {
    // Every scalar of a large list is a node; the parser's own limits are for configuration files.
    let budget = serde_saphyr::budget! {
        max_documents: 200_000,
        max_nodes: 4_000_000,
        max_events: 10_000_000,
        max_depth: DEEPEST,
        flow_nesting_limit: DEEPEST,
        max_recorded_anchor_events: 200_000,
        max_recorded_anchor_bytes: 8 << 20,
    };
    let options = serde_saphyr::options! { budget: budget, with_snippet: false };
    serde_saphyr::from_str_multiple_with_options::<Tree, D>(text, options).map_err(|error| fault(&error))
}

fn fault(error: &serde_saphyr::Error) -> Fault {
    let place = error.location().map(|place| Place {
        line: u32::try_from(place.line()).unwrap_or(u32::MAX),
        column: u32::try_from(place.column()).unwrap_or(u32::MAX),
    });
    // The file may hold anything; its control characters must not reach a terminal.
    let text = DefaultMessageFormatter.format_message(error.without_snippet()).escape_debug().to_string();
    Fault { place: place.unwrap_or_default(), ..Fault::new(format!("is not readable as YAML: {text}")) }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value: Values(data, _), referenced, .. } =
            Spanned::<Values<Self>>::deserialize(deserializer)?;
        let line = u32::try_from(referenced.line()).unwrap_or(u32::MAX);
        let column = u32::try_from(referenced.column()).unwrap_or(u32::MAX);
        Ok(Self { place: Place { line, column }, data })
    }
}

/// A tree without places, for JSON.
pub(crate) struct JsonTree(Data);

impl<'de> Deserialize<'de> for JsonTree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Values::<Self>::deserialize(deserializer).map(|Values(data, _)| Self(data))
    }
}

impl From<JsonTree> for Tree {
    fn from(JsonTree(data): JsonTree) -> Self {
        Self { place: Place::default(), data }
    }
}

/// A value whose inner values are read as `T`.
struct Values<T>(Data, PhantomData<T>);

impl<'de, T: Deserialize<'de> + Into<Tree>> Deserialize<'de> for Values<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor(PhantomData::<T>)).map(|data| Self(data, PhantomData))
    }
}

struct ValueVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de> + Into<Tree>> Visitor<'de> for ValueVisitor<T> {
    type Value = Data;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Data, E> {
        Ok(Data::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Data, E> {
        Ok(Data::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Data, E> {
        Ok(Data::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Data, E> {
        Ok(Data::Integer(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Data, E> {
        Ok(Data::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Data, E> {
        Ok(Data::Text(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Data, E> {
        Ok(Data::Text(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Data, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = access.next_element::<T>()? {
            values.push(value.into());
        }
        Ok(Data::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Data, A::Error> {
        let mut entries: Vec<(Box<str>, Tree)> = Vec::new();
        while let Some(key) = access.next_key::<Box<str>>()? {
            if PASSED_OVER.contains(&&*key) {
                access.next_value::<IgnoredAny>()?;
                continue;
            }
            entries.push((key, access.next_value::<T>()?.into()));
        }
        // The last of two equal keys would win silently in one parser and the first in another.
        let mut keys: Vec<&str> = entries.iter().map(|(key, _)| &**key).collect();
        keys.sort_unstable();
        match keys.array_windows().find(|[left, right]| left == right) {
            Some([twice, _]) => Err(A::Error::custom(format!("key {twice:?} stands twice"))),
            None => Ok(Data::Map(entries)),
        }
    }
}
