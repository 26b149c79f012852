//! JSON as CNI meets it: kept in order and read leniently.
//!
//! [`Json`] is a document with everything the sender wrote: the order of members, duplicate keys, integers up to
//! 64 bits exactly (the reference passes configurations through floating point and loses digits above 2^53).
//! [`Fields`] (in `json/fields.rs`) reads typed values out of an object the way the reference's decoder does; all
//! decoding in this crate and in the plugins goes through it.

mod fields;

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

pub use fields::{FieldError, Fields, Item};

/// A JSON value that remembers the order of members and every duplicate key.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number without fraction from 0 to 2^64-1.
    Unsigned(u64),
    /// A number without fraction from -2^63 to -1.
    Signed(i64),
    /// Any other number.
    Float(f64),
    /// A string.
    String(String),
    /// An array.
    Array(Vec<Self>),
    /// An object: its members in the order written, duplicates included.
    Object(Vec<(String, Self)>),
}

/// A text that is not JSON; says where.
#[derive(Debug, thiserror::Error)]
#[error("not JSON: {0}")]
pub struct SyntaxError(serde_json::Error);

impl Json {
    /// The document in `bytes`. Bytes that are not UTF-8 become U+FFFD, as in the reference.
    ///
    /// # Errors
    /// When the text is not one JSON value: says line and column.
    pub fn parse(bytes: &[u8]) -> Result<Self, SyntaxError> {
        match std::str::from_utf8(bytes) {
            Ok(text) => serde_json::from_str(text),
            Err(_) => serde_json::from_str(&String::from_utf8_lossy(bytes)),
        }
        .map_err(SyntaxError)
    }

    /// An object with these members.
    pub fn object<K: Into<String>>(members: impl IntoIterator<Item = (K, Self)>) -> Self {
        Self::Object(members.into_iter().map(|(key, value)| (key.into(), value)).collect())
    }

    /// An array of strings.
    pub fn strings<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> Self {
        Self::Array(items.into_iter().map(|item| Self::from(item.as_ref())).collect())
    }

    /// Gives an object's member `key` this value: the first member of exactly this name is replaced where it
    /// stands, others that a lenient reader would take for it are removed. What is not an object stays as it is.
    pub fn set(&mut self, key: &str, value: Self) {
        let Self::Object(members) = self else { return };
        let place = members.iter().position(|(name, _)| name == key);
        if let Some(place) = place {
            members[place].1 = value;
            let mut index = 0;
            members.retain(|(name, _)| {
                index += 1;
                index - 1 == place || !fields::names_match(name, key)
            });
        } else {
            members.retain(|(name, _)| !fields::names_match(name, key));
            members.push((key.to_owned(), value));
        }
    }

    /// Removes an object's member `key`, in any spelling a lenient reader would accept.
    pub fn remove(&mut self, key: &str) {
        if let Self::Object(members) = self {
            members.retain(|(name, _)| !fields::names_match(name, key));
        }
    }

    /// The value with its kind in words, for "expected a string, found a number".
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Unsigned(_) | Self::Signed(_) | Self::Float(_) => "a number",
            Self::String(_) => "a string",
            Self::Array(_) => "an array",
            Self::Object(_) => "an object",
        }
    }

    /// The document as compact JSON text.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(512);
        // Writing to memory cannot fail, and every `Json` is representable: keys are strings, and a
        // non-finite float is written as null.
        let _ = serde_json::to_writer(&mut bytes, self);
        bytes
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<bool> for Json {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<u64> for Json {
    fn from(value: u64) -> Self {
        Self::Unsigned(value)
    }
}

impl From<u32> for Json {
    fn from(value: u32) -> Self {
        Self::Unsigned(value.into())
    }
}

impl From<i64> for Json {
    fn from(value: i64) -> Self {
        u64::try_from(value).map_or(Self::Signed(value), Self::Unsigned)
    }
}

impl fmt::Display for Json {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&String::from_utf8_lossy(&self.to_bytes()))
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Unsigned(value) => serializer.serialize_u64(*value),
            Self::Signed(value) => serializer.serialize_i64(*value),
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::String(value) => serializer.serialize_str(value),
            Self::Array(items) => serializer.collect_seq(items),
            Self::Object(members) => {
                let mut map = serializer.serialize_map(Some(members.len()))?;
                for (key, value) in members {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

/// Builds a [`Json`] from whatever the deserializer finds.
struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Unsigned(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        Ok(Json::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element()? {
            array.push(item);
        }
        Ok(Json::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
        let mut object = Vec::with_capacity(members.size_hint().unwrap_or(8));
        while let Some(member) = members.next_entry()? {
            object.push(member);
        }
        Ok(Json::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Json {
        Json::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn order_duplicates_and_large_integers_survive() {
        for text in [
            r#"{"z":1,"a":2,"z":3}"#,
            "18446744073709551615",
            "-9223372036854775808",
            "9007199254740993",
            r#"[null,true,1.5,"é",{}]"#,
            "1.7976931348623157e+308",
        ] {
            assert_eq!(json(text).to_string(), text);
        }
    }

    #[test]
    fn a_float_is_the_same_after_every_round_trip() {
        // Found by fuzzing: the fast way of reading floats is off by one in the last place here.
        let once = json("939999999999999999999999999999999998").to_string();
        assert_eq!(json(&once).to_string(), once);
    }

    #[test]
    fn broken_utf8_is_replaced_and_broken_json_says_where() {
        assert_eq!(Json::parse(b"\"a\xffb\"").unwrap(), Json::from("a\u{fffd}b"));
        let error = Json::parse(b"{").unwrap_err().to_string();
        assert!(error.contains("line 1 column 1"), "{error}");
        assert!(Json::parse(b"{} {}").is_err());
        assert!(Json::parse(b"").is_err());
    }

    #[test]
    fn a_bottomless_document_is_refused_instead_of_overflowing_the_stack() {
        assert!(Json::parse("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn set_replaces_every_spelling_and_keeps_the_place() {
        let mut document = json(r#"{"Name":"x","name":"y","b":1,"name":"z"}"#);
        document.set("name", Json::from("n"));
        assert_eq!(document.to_string(), r#"{"name":"n","b":1}"#);
        document.set("new", Json::Null);
        document.remove("B");
        assert_eq!(document.to_string(), r#"{"name":"n","new":null}"#);
    }
}
