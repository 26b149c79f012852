//! Typed reading of JSON objects, lenient exactly where the reference's decoder (Go's `encoding/json`) is.
//!
//! [`Fields`] stands for one object. The rules, each with a test below:
//! - keys match whatever their case (and the two letters that fold onto ASCII: `ſ` for s, `K` for k);
//! - unknown keys are ignored; an absent key reads as the zero value (`""`, `false`, 0, empty);
//! - `null` says nothing, wherever it stands: it reads as absent, and does not undo an earlier duplicate, unless
//!   that is an array;
//! - of duplicate keys the last wins, except that objects merge member by member;
//! - a value of the wrong type is an error even if a later duplicate is right;
//! - an integer written with a fraction or exponent is not an integer.
//!
//! Errors name the path: `ipam.ranges[0][1].subnet: expected a string, found a number`.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use super::Json;
use crate::error::{Code, Error};

/// One object's members.
type Members = [(String, Json)];

/// A value in a document that cannot be used, with the path that leads to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The value has another type than the field: the document cannot be decoded (code 6).
    #[error("{path}: expected {expected}, found {found}")]
    WrongType {
        /// Where: `ipam.ranges[0].subnet`.
        path: String,
        /// The type the field has, in words.
        expected: &'static str,
        /// The type the value has, in words.
        found: &'static str,
    },
    /// The value has the right type but makes no sense (code 7).
    #[error("{path}: {reason}")]
    BadValue {
        /// Where: `ipam.ranges[0].subnet`.
        path: String,
        /// Why it cannot be used, naming the value.
        reason: String,
    },
}

impl From<FieldError> for Error {
    fn from(error: FieldError) -> Self {
        let code = match error {
            FieldError::WrongType { .. } => Code::UNDECODABLE,
            FieldError::BadValue { .. } => Code::INVALID_CONFIG,
        };
        Self::new(code, error.to_string())
    }
}

/// The members of one JSON object, for typed and lenient reading.
#[derive(Clone, Debug, Default)]
pub struct Fields<'a> {
    members: &'a Members,
    /// Later duplicates of the same object; nearly always empty, and an empty `Vec` costs nothing.
    later: Vec<&'a Members>,
    path: String,
}

impl<'a> Fields<'a> {
    /// The members of a whole document; `null` reads as an empty object.
    ///
    /// # Errors
    /// When the document is neither an object nor null.
    pub fn of(document: &'a Json) -> Result<Self, FieldError> {
        Item { value: document, path: String::new() }.fields()
    }

    /// An object without members.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The string `key`; empty when absent.
    ///
    /// # Errors
    /// When the value is not a string.
    pub fn string(&self, key: &str) -> Result<&'a str, FieldError> {
        Ok(self.optional_string(key)?.unwrap_or_default())
    }

    /// The string `key`, telling absent from empty.
    ///
    /// # Errors
    /// When the value is not a string.
    pub fn optional_string(&self, key: &str) -> Result<Option<&'a str>, FieldError> {
        self.last(
            key,
            "a string",
            |value| if let Json::String(text) = value { Some(text.as_str()) } else { None },
        )
    }

    /// The boolean `key`; false when absent.
    ///
    /// # Errors
    /// When the value is not a boolean.
    pub fn bool(&self, key: &str) -> Result<bool, FieldError> {
        Ok(self.optional_bool(key)?.unwrap_or_default())
    }

    /// The boolean `key`, telling absent from false.
    ///
    /// # Errors
    /// When the value is not a boolean.
    pub fn optional_bool(&self, key: &str) -> Result<Option<bool>, FieldError> {
        self.last(key, "a boolean", |value| if let Json::Bool(value) = value { Some(*value) } else { None })
    }

    /// The integer `key`; 0 when absent.
    ///
    /// # Errors
    /// When the value is not an integer, or does not fit into `T`.
    pub fn integer<T: TryFrom<i128> + Default>(&self, key: &str) -> Result<T, FieldError> {
        Ok(self.optional_integer(key)?.unwrap_or_default())
    }

    /// The integer `key`, telling absent from 0.
    ///
    /// # Errors
    /// When the value is not an integer, or does not fit into `T`.
    pub fn optional_integer<T: TryFrom<i128>>(&self, key: &str) -> Result<Option<T>, FieldError> {
        let Some(number) = self.last(key, "an integer", whole_number)? else { return Ok(None) };
        match T::try_from(number) {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(self.bad(key, format!("{number} is out of range"))),
        }
    }

    /// The string `key` read as a `T` (an address, a CIDR); nothing when absent or empty.
    ///
    /// # Errors
    /// When the value is not a string, or `T` refuses it.
    pub fn parse<T: FromStr>(&self, key: &str) -> Result<Option<T>, FieldError>
    where
        T::Err: std::fmt::Display,
    {
        match self.string(key)? {
            "" => Ok(None),
            text => match text.parse() {
                Ok(value) => Ok(Some(value)),
                Err(error) => Err(self.bad(key, unparsed(text, &error))),
            },
        }
    }

    /// The object `key`; an empty one when absent. Duplicates are merged.
    ///
    /// # Errors
    /// When the value is not an object.
    pub fn object(&self, key: &str) -> Result<Self, FieldError> {
        Ok(self.optional_object(key)?.unwrap_or_else(|| Self { path: self.path_of(key), ..Self::default() }))
    }

    /// The object `key`, telling absent from empty. Duplicates are merged.
    ///
    /// # Errors
    /// When the value is not an object.
    pub fn optional_object(&self, key: &str) -> Result<Option<Self>, FieldError> {
        let mut found: Option<Self> = None;
        for value in self.all(key) {
            let Json::Object(members) = value else { return Err(self.wrong(key, "an object", value)) };
            match &mut found {
                Some(fields) => fields.later.push(members),
                None => found = Some(Self { members, later: Vec::new(), path: self.path_of(key) }),
            }
        }
        Ok(found)
    }

    /// The array `key`, item by item; empty when absent.
    ///
    /// # Errors
    /// When the value is not an array.
    pub fn array(&self, key: &str) -> Result<Vec<Item<'a>>, FieldError> {
        Ok(self.optional_array(key)?.unwrap_or_default())
    }

    /// The array `key`, telling absent from empty.
    ///
    /// # Errors
    /// When the value is not an array.
    pub fn optional_array(&self, key: &str) -> Result<Option<Vec<Item<'a>>>, FieldError> {
        let mut last = None;
        for value in self.written(key) {
            last = match value {
                Json::Array(items) => Some(items),
                Json::Null => None,
                _ => return Err(self.wrong(key, "an array", value)),
            };
        }
        Ok(last.map(|items| items_of(items, &self.path_of(key))))
    }

    /// The array of strings `key`; empty when absent, a null item reads as the empty string.
    ///
    /// # Errors
    /// When the value is not an array, or an item not a string.
    pub fn strings(&self, key: &str) -> Result<Vec<&'a str>, FieldError> {
        self.array(key)?.iter().map(Item::string).collect()
    }

    /// The last value under `key` that is not null, whatever its type.
    #[must_use]
    pub fn raw(&self, key: &str) -> Option<&'a Json> {
        self.all(key).last()
    }

    /// Whether `key` is present and not null.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.raw(key).is_some()
    }

    /// Every member as written: for objects whose keys are data (maps), where case counts.
    pub fn members(&self) -> impl Iterator<Item = (&'a str, Item<'a>)> + '_ {
        self.parts().flatten().map(|(key, value)| (key.as_str(), Item { value, path: self.path_of(key) }))
    }

    /// The error for a `key` whose value has the right type but makes no sense.
    #[must_use]
    pub fn bad(&self, key: &str, reason: impl Into<String>) -> FieldError {
        FieldError::BadValue { path: self.path_of(key), reason: reason.into() }
    }

    /// The path of `key` in the document: `ipam.subnet`.
    #[must_use]
    pub fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn parts(&self) -> impl Iterator<Item = &'a Members> + '_ {
        std::iter::once(self.members).chain(self.later.iter().copied())
    }

    /// All values under `key` in the order written.
    fn written<'s>(&'s self, key: &'s str) -> impl Iterator<Item = &'a Json> + 's {
        self.parts().flatten().filter(move |(name, _)| names_match(name, key)).map(|(_, value)| value)
    }

    /// The same without nulls.
    fn all<'s>(&'s self, key: &'s str) -> impl Iterator<Item = &'a Json> + 's {
        self.written(key).filter(|value| !matches!(value, Json::Null))
    }

    /// The last value under `key`, after every one of them has shown the right type.
    fn last<T>(
        &self,
        key: &str,
        expected: &'static str,
        read: impl Fn(&'a Json) -> Option<T>,
    ) -> Result<Option<T>, FieldError> {
        let mut last = None;
        for value in self.all(key) {
            last = Some(read(value).ok_or_else(|| self.wrong(key, expected, value))?);
        }
        Ok(last)
    }

    fn wrong(&self, key: &str, expected: &'static str, found: &Json) -> FieldError {
        FieldError::WrongType { path: self.path_of(key), expected, found: found.kind() }
    }
}

/// A value with its place in the document: an item of an array, or a member of a map.
#[derive(Clone, Debug)]
pub struct Item<'a> {
    value: &'a Json,
    path: String,
}

impl<'a> Item<'a> {
    /// The value as it is.
    #[must_use]
    pub const fn raw(&self) -> &'a Json {
        self.value
    }

    /// The value as an object; null reads as an empty one.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn fields(&self) -> Result<Fields<'a>, FieldError> {
        match self.value {
            Json::Object(members) => Ok(Fields { members, later: Vec::new(), path: self.path.clone() }),
            Json::Null => Ok(Fields { path: self.path.clone(), ..Fields::default() }),
            _ => Err(self.wrong("an object")),
        }
    }

    /// The value as an array; null reads as an empty one.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn array(&self) -> Result<Vec<Self>, FieldError> {
        match self.value {
            Json::Array(items) => Ok(items_of(items, &self.path)),
            Json::Null => Ok(Vec::new()),
            _ => Err(self.wrong("an array")),
        }
    }

    /// The value as a string; null reads as an empty one.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn string(&self) -> Result<&'a str, FieldError> {
        match self.value {
            Json::String(text) => Ok(text),
            Json::Null => Ok(""),
            _ => Err(self.wrong("a string")),
        }
    }

    /// The value as a boolean; null reads as false.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn bool(&self) -> Result<bool, FieldError> {
        match self.value {
            Json::Bool(value) => Ok(*value),
            Json::Null => Ok(false),
            _ => Err(self.wrong("a boolean")),
        }
    }

    /// The value as an integer; null reads as 0.
    ///
    /// # Errors
    /// When the value is something else, or does not fit into `T`.
    pub fn integer<T: TryFrom<i128> + Default>(&self) -> Result<T, FieldError> {
        if matches!(self.value, Json::Null) {
            return Ok(T::default());
        }
        let number = whole_number(self.value).ok_or_else(|| self.wrong("an integer"))?;
        T::try_from(number).map_err(|_| self.bad(format!("{number} is out of range")))
    }

    /// The value as a string read as a `T`.
    ///
    /// # Errors
    /// When the value is not a string, or `T` refuses it (the empty string included).
    pub fn parse<T: FromStr>(&self) -> Result<T, FieldError>
    where
        T::Err: std::fmt::Display,
    {
        let text = self.string()?;
        text.parse().map_err(|error| self.bad(unparsed(text, &error)))
    }

    /// The error for a value of the right type that makes no sense.
    #[must_use]
    pub fn bad(&self, reason: impl Into<String>) -> FieldError {
        FieldError::BadValue { path: self.path.clone(), reason: reason.into() }
    }

    fn wrong(&self, expected: &'static str) -> FieldError {
        let path = if self.path.is_empty() { "document".to_owned() } else { self.path.clone() };
        FieldError::WrongType { path, expected, found: self.value.kind() }
    }
}

fn items_of<'a>(items: &'a [Json], path: &str) -> Vec<Item<'a>> {
    let item = |(index, value)| Item { value, path: format!("{path}[{index}]") };
    items.iter().enumerate().map(item).collect()
}

/// Why a text is not what it should be, with the slip that is made most often.
fn unparsed(text: &str, error: &dyn std::fmt::Display) -> String {
    if let Ok(address) = text.parse::<IpAddr>() {
        let prefix = if address.is_ipv4() { 24 } else { 64 };
        return format!("{text:?}: the length of the prefix is missing, as in {text}/{prefix}");
    }
    if text.parse::<IpNet>().is_ok() {
        return format!("{text:?}: an address without the length of a prefix is needed");
    }
    format!("{text:?}: {error}")
}

fn whole_number(value: &Json) -> Option<i128> {
    match value {
        Json::Unsigned(number) => Some((*number).into()),
        Json::Signed(number) => Some((*number).into()),
        _ => None,
    }
}

/// Whether the key `written` names the field `key` to a lenient reader.
pub(super) fn names_match(written: &str, key: &str) -> bool {
    if written.is_ascii() {
        return written.eq_ignore_ascii_case(key);
    }
    let fold = |letter: char| match letter {
        'ſ' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    written.chars().map(fold).eq(key.chars().map(fold))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Json {
        Json::parse(text.as_bytes()).unwrap()
    }

    /// What the reference's decoder makes of a document for the fields
    /// `s string, b bool, n int, o struct{x, y int}, l []string`.
    fn decode(text: &str) -> Result<String, String> {
        let document = json(text);
        let read = || -> Result<String, FieldError> {
            let fields = Fields::of(&document)?;
            let object = fields.object("o")?;
            let (x, y): (i64, i64) = (object.integer("x")?, object.integer("y")?);
            let (s, b, n) = (fields.string("s")?, fields.bool("b")?, fields.integer::<i64>("n")?);
            Ok(format!("{s:?} {b} {n} {x},{y} {:?}", fields.strings("l")?))
        };
        read().map_err(|error| error.to_string())
    }

    #[test]
    fn the_lenient_rules_hold_one_by_one() {
        let cases = [
            ("absent is zero", "{}", r#""" false 0 0,0 []"#),
            ("null document", "null", r#""" false 0 0,0 []"#),
            ("null is absent", r#"{"s":null,"b":null,"n":null,"o":null,"l":null}"#, r#""" false 0 0,0 []"#),
            ("null does not undo", r#"{"s":"a","s":null,"n":1,"n":null}"#, r#""a" false 1 0,0 []"#),
            ("unknown keys", r#"{"z":{"deep":[1]},"s":"a"}"#, r#""a" false 0 0,0 []"#),
            ("any case", r#"{"S":"a","B":true,"N":3,"O":{"X":1}}"#, r#""a" true 3 1,0 []"#),
            ("folded letters", "{\"ſ\":\"a\"}", r#""a" false 0 0,0 []"#),
            ("last wins", r#"{"s":"a","S":"b","s":"c","n":1,"n":2}"#, r#""c" false 2 0,0 []"#),
            ("objects merge", r#"{"o":{"x":1,"y":2},"o":{"x":3}}"#, r#""" false 0 3,2 []"#),
            ("arrays do not", r#"{"l":["a","b"],"l":["c"]}"#, r#""" false 0 0,0 ["c"]"#),
            ("null empties arrays", r#"{"l":["a"],"l":null}"#, r#""" false 0 0,0 []"#),
            ("null item", r#"{"l":["a",null]}"#, r#""" false 0 0,0 ["a", ""]"#),
            ("zero values", r#"{"s":"","b":false,"n":0,"o":{},"l":[]}"#, r#""" false 0 0,0 []"#),
            ("negative", r#"{"n":-1}"#, r#""" false -1 0,0 []"#),
        ];
        for (rule, text, want) in cases {
            assert_eq!(decode(text).as_deref(), Ok(want), "{rule}");
        }
    }

    #[test]
    fn the_wrong_type_is_an_error_that_names_the_path() {
        let cases = [
            (r#"{"s":5}"#, "s: expected a string, found a number"),
            (r#"{"b":"true"}"#, "b: expected a boolean, found a string"),
            (r#"{"n":"5"}"#, "n: expected an integer, found a string"),
            (r#"{"n":1.0}"#, "n: expected an integer, found a number"),
            (r#"{"n":1e3}"#, "n: expected an integer, found a number"),
            (r#"{"n":18446744073709551615}"#, "n: 18446744073709551615 is out of range"),
            (r#"{"o":[]}"#, "o: expected an object, found an array"),
            (r#"{"o":{"x":{}}}"#, "o.x: expected an integer, found an object"),
            (r#"{"l":["a",{}]}"#, "l[1]: expected a string, found an object"),
            (r#"{"l":"a"}"#, "l: expected an array, found a string"),
            (r#"{"s":5,"s":"later"}"#, "s: expected a string, found a number"),
            ("[]", "document: expected an object, found an array"),
        ];
        for (text, want) in cases {
            assert_eq!(decode(text), Err(want.to_owned()), "{text}");
        }
    }

    #[test]
    fn nested_paths_are_written_out() {
        let document = json(r#"{"ipam":{"ranges":[[{"subnet":5}]]}}"#);
        let ipam = Fields::of(&document).unwrap().object("ipam").unwrap();
        let set = ipam.array("ranges").unwrap()[0].array().unwrap();
        let error = set[0].fields().unwrap().string("subnet").unwrap_err();
        assert_eq!(error.to_string(), "ipam.ranges[0][0].subnet: expected a string, found a number");
        assert_eq!(Error::from(error).code, Code::UNDECODABLE);
    }

    #[test]
    fn a_text_that_does_not_parse_is_a_bad_value() {
        let document = json(r#"{"gateway":"10.0.0.300","empty":""}"#);
        let fields = Fields::of(&document).unwrap();
        assert_eq!(fields.parse::<IpAddr>("empty"), Ok(None));
        let slips = json(r#"{"subnet":"10.1.2.0","six":"fd00::","gateway":"10.1.2.1/24"}"#);
        let slips = Fields::of(&slips).unwrap();
        for (error, want) in [
            (slips.parse::<IpNet>("subnet").unwrap_err(), "prefix is missing, as in 10.1.2.0/24"),
            (slips.parse::<IpNet>("six").unwrap_err(), "prefix is missing, as in fd00::/64"),
            (slips.parse::<IpAddr>("gateway").unwrap_err(), "an address without the length of a prefix"),
        ] {
            assert!(error.to_string().contains(want), "{error}");
        }
        let error = fields.parse::<IpAddr>("gateway").unwrap_err();
        assert_eq!(error.to_string(), r#"gateway: "10.0.0.300": invalid IP address syntax"#);
        assert_eq!(Error::from(error).code, Code::INVALID_CONFIG);
    }

    #[test]
    fn members_of_a_map_keep_their_case() {
        let document = json(r#"{"m":{"A":1,"a":2}}"#);
        let map = Fields::of(&document).unwrap().object("m").unwrap();
        let keys: Vec<&str> = map.members().map(|(key, _)| key).collect();
        assert_eq!(keys, ["A", "a"]);
    }
}
