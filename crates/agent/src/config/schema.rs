//! The JSON Schema of the configuration, docs/agent.schema.json, bound to the types that read it.
//!
//! Read the first test: the schema is made of the types of `config.rs` (their doc comments, defaults and limits) and
//! compared with the file. With FAIRLEAD_BLESS in the environment, the file is written instead.
//!
//! What stays true: a value that the schema refuses is refused by the agent, as far as the limits of single values go.
//! (JSON Schema, draft 2020-12.)

use std::fs;
use std::path::{Path, PathBuf};

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use super::Config;

/// A network with its prefix length.
pub(super) struct Network;

/// An address of either family.
pub(super) struct Address;

impl JsonSchema for Network {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Network".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[0-9a-fA-F:.]+/[0-9]{1,3}$",
            "examples": ["10.244.0.0/16", "fd00:10:244::/56"],
        })
    }
}

impl JsonSchema for Address {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Address".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "anyOf": [{ "format": "ipv4" }, { "format": "ipv6" }],
        })
    }
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/agent.schema.json")
}

/// The schema as it stands in the file: without references, so that a person can read it from top to bottom.
fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<Config>().to_value();
    tidy(&mut schema);
    schema
}

/// A doc comment is wrapped for its reader, a description for whoever shows it; and the formats of Rust's integers are
/// none of JSON Schema's.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            members.retain(|key, value| {
                key != "format" || !value.as_str().is_some_and(|name| name.starts_with("uint"))
            });
            for (key, value) in members.iter_mut() {
                match value {
                    Value::String(text) if key == "description" => *text = text.replace('\n', " "),
                    deeper => tidy(deeper),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// A key of the configuration, in its section if it is in one.
struct Key<'a> {
    section: Option<&'a str>,
    name: &'a str,
    /// What the schema says of it.
    value: &'a Value,
}

impl std::fmt::Display for Key<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.section.map_or(Ok(()), |section| write!(out, "{section}."))?;
        out.write_str(self.name)
    }
}

fn keys(schema: &Value) -> Vec<Key<'_>> {
    let mut keys = Vec::new();
    for (name, value) in schema["properties"].as_object().unwrap() {
        match value["properties"].as_object() {
            None => keys.push(Key { section: None, name, value }),
            Some(inner) => {
                let inner = inner.iter();
                keys.extend(inner.map(|(key, value)| Key { section: Some(name), name: key, value }));
            }
        }
    }
    keys
}

#[test]
fn the_published_schema_is_that_of_the_code() {
    let text = format!("{:#}\n", schema());
    if std::env::var_os("FAIRLEAD_BLESS").is_some() {
        fs::write(path(), text).unwrap();
        return;
    }
    let published = fs::read_to_string(path()).unwrap_or_default();
    assert!(
        published == text,
        "docs/agent.schema.json is not that of the code; write it: FAIRLEAD_BLESS=1 cargo test -p agent schema"
    );
}

#[test]
fn every_key_has_a_description_and_what_the_example_shows_is_in_the_schema() {
    let schema = schema();
    let example: Value = serde_saphyr::from_str(include_str!("../../../../examples/agent.yaml")).unwrap();
    for key in keys(&schema) {
        assert!(key.value["description"].is_string(), "{key} says nothing");
    }
    for (section, value) in example.as_object().unwrap() {
        let Some(shown) = value.as_object() else {
            assert_eq!(&schema["properties"][section]["default"], value, "{section}");
            continue;
        };
        assert_eq!(schema["properties"][section]["additionalProperties"], false, "{section}");
        for (key, shown) in shown {
            assert_eq!(
                &schema["properties"][section]["properties"][key]["default"], shown,
                "{section}.{key}"
            );
        }
    }
}

#[test]
fn the_limits_of_the_schema_are_those_of_the_agent() {
    let schema = schema();
    // A network in which every length of a node's piece has room.
    let beside = |key: &str| match key {
        "nodePrefixIPv4" => "podCIDRs: [10.0.0.0/24], ",
        "nodePrefixIPv6" => "podCIDRs: ['fd00::/112'], ",
        _ => "",
    };
    let reads = |key: &Key<'_>, value: i64| {
        let pair = format!("{}{}: {value}", beside(key.name), key.name);
        let text = key.section.map_or_else(|| pair.clone(), |section| format!("{section}: {{{pair}}}"));
        Config::parse(&text).is_ok()
    };
    let mut limits = 0;
    for key in keys(&schema) {
        if let Some(most) = key.value["maximum"].as_i64() {
            assert!(reads(&key, most), "{key} is refused at its maximum {most}");
            assert!(!reads(&key, most + 1), "{key} goes beyond its maximum {most}");
            limits += 1;
        }
        if let Some(least) = key.value["minimum"].as_i64() {
            assert!(!reads(&key, least - 1), "{key} goes below its minimum {least}");
            limits += 1;
        }
    }
    assert!(limits >= 10, "the schema has only {limits} limits");
}

#[test]
fn the_words_about_the_configuration_name_every_key_and_its_default() {
    let words = include_str!("../../../../docs/configuration.md");
    for key in keys(&schema()) {
        let heading = format!("| `{key}` |");
        let line = words.lines().find(|line| line.starts_with(&heading));
        let line = line.unwrap_or_else(|| panic!("docs/configuration.md has no row {heading}"));
        let default = key.value.get("default").filter(|default| !default.is_null());
        let Some(Value::Number(_) | Value::Bool(_)) = default else { continue };
        assert!(line.contains(&format!("| `{}` |", default.unwrap())), "{line}");
    }
}
