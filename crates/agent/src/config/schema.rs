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

/// The keys of each section with what the schema says of them, as `section.key`.
fn keys(schema: &Value) -> Vec<(String, String, &Value)> {
    let mut keys = Vec::new();
    for (section, value) in schema["properties"].as_object().unwrap() {
        for (key, value) in value["properties"].as_object().unwrap() {
            keys.push((section.clone(), key.clone(), value));
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
    for (section, key, value) in keys(&schema) {
        assert!(value["description"].is_string(), "{section}.{key} says nothing");
    }
    for (section, value) in example.as_object().unwrap() {
        assert_eq!(schema["properties"][section]["additionalProperties"], false, "{section}");
        for (key, shown) in value.as_object().unwrap() {
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
    let reads = |section: &str, key: &str, value: i64| {
        Config::parse(&format!("{section}: {{{}{key}: {value}}}", beside(key))).is_ok()
    };
    let mut limits = 0;
    for (section, key, value) in keys(&schema) {
        if let Some(most) = value["maximum"].as_i64() {
            assert!(reads(&section, &key, most), "{section}.{key} is refused at its maximum {most}");
            assert!(!reads(&section, &key, most + 1), "{section}.{key} goes beyond its maximum {most}");
            limits += 1;
        }
        if let Some(least) = value["minimum"].as_i64() {
            assert!(!reads(&section, &key, least - 1), "{section}.{key} goes below its minimum {least}");
            limits += 1;
        }
    }
    assert!(limits >= 10, "the schema has only {limits} limits");
}

#[test]
fn the_words_about_the_configuration_name_every_key_and_its_default() {
    let words = include_str!("../../../../docs/configuration.md");
    for (section, key, value) in keys(&schema()) {
        let heading = format!("| `{section}.{key}` |");
        let line = words.lines().find(|line| line.starts_with(&heading));
        let line = line.unwrap_or_else(|| panic!("docs/configuration.md has no row {heading}"));
        let default = value.get("default").filter(|default| !default.is_null());
        let Some(Value::Number(_) | Value::Bool(_)) = default else { continue };
        assert!(line.contains(&format!("| `{}` |", default.unwrap())), "{line}");
    }
}
