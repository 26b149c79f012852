//! Configurations as people and programs really write them: keys in other cases, `null`, duplicates, unknown keys, wrong types.
//!
//! Read [`Member`]: a configuration is kept as text with its members in order, since a JSON object of a library could not
//! hold two keys of one name. What is asked is host-local's ADD, the whole way from text to result, of ours and of the
//! reference: both refuse or both accept, and then say the same.
//!
//! Left out on purpose: a key that is there twice with an object first, which Go lays over each other and ours does not; and
//! twice with a first value that is nonsense, which ours never looks at; and a route that is `null`, which the reference hands
//! on as it is, to break the plugin that takes it, and ours refuses.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use conformance::{Subject, subjects};
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::Value;

/// A key with its value, which is a whole JSON text or an object that may be changed further.
#[derive(Debug, Clone)]
struct Member {
    key: String,
    value: Text,
}

#[derive(Debug, Clone)]
enum Text {
    Plain(String),
    Object(Vec<Member>),
}

impl Text {
    fn write(&self) -> String {
        match self {
            Self::Plain(text) => text.clone(),
            Self::Object(members) => {
                let members: Vec<String> = members
                    .iter()
                    .map(|member| format!("\"{}\":{}", member.key, member.value.write()))
                    .collect();
                format!("{{{}}}", members.join(","))
            }
        }
    }
}

fn member(key: &str, value: &str) -> Member {
    Member { key: key.to_owned(), value: Text::Plain(value.to_owned()) }
}

fn object(key: &str, members: Vec<Member>) -> Member {
    Member { key: key.to_owned(), value: Text::Object(members) }
}

/// A configuration that has a little of everything.
fn base() -> Vec<Member> {
    vec![
        member("cniVersion", "\"1.0.0\""),
        member("name", "\"test\""),
        member("type", "\"host-local\""),
        object(
            "ipam",
            vec![
                member("type", "\"host-local\""),
                member("dataDir", "\"@\""),
                member(
                    "ranges",
                    "[[{\"subnet\":\"10.1.2.0/24\",\"rangeStart\":\"10.1.2.9\"}],[{\"subnet\":\"2001:db8::/64\"}]]",
                ),
                member("routes", "[{\"dst\":\"0.0.0.0/0\"},{\"dst\":\"192.0.2.0/24\",\"gw\":\"10.1.2.1\"}]"),
                member("resolvConf", "\"\""),
            ],
        ),
        object("runtimeConfig", vec![member("ips", "[\"10.1.2.44/24\"]")]),
        object("args", vec![object("cni", vec![member("ips", "[]")])]),
        object("dns", vec![member("nameservers", "[\"192.0.2.53\"]"), member("domain", "\"example.org\"")]),
        member("capabilities", "{\"ips\":true}"),
        member("prevResult", "null"),
    ]
}

/// One change to one member, found by going down from the top.
#[derive(Debug, Clone)]
struct Change {
    path: Vec<Index>,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    OtherCase(Index),
    Null,
    Value(&'static str),
    Before(&'static str),
    After(&'static str),
    Unknown(&'static str),
    Gone,
}

const VALUES: [&str; 12] =
    ["null", "true", "0", "1", "-1", "\"\"", "\"x\"", "[]", "{}", "[null]", "[[]]", "\"10.1.2.0/24\""];

fn change() -> impl Strategy<Value = Change> {
    let what = prop_oneof![
        any::<Index>().prop_map(What::OtherCase),
        Just(What::Null),
        prop::sample::select(&VALUES[..]).prop_map(What::Value),
        Just(What::Before("null")),
        prop::sample::select(&VALUES[..]).prop_map(What::After),
        prop::sample::select(&VALUES[..]).prop_map(What::Unknown),
        Just(What::Gone),
    ];
    (prop::collection::vec(any::<Index>(), 1..3), what).prop_map(|(path, what)| Change { path, what })
}

fn apply(members: &mut Vec<Member>, path: &[Index], what: &What) {
    let Some((first, rest)) = path.split_first().filter(|_| !members.is_empty()) else { return };
    let at = first.index(members.len());
    if let (Text::Object(inner), false) = (&mut members[at].value, rest.is_empty()) {
        return apply(inner, rest, what);
    }
    // Nonsense in what belongs to the whole network is refused by ours in every plugin, and passed over by the
    // reference in those that do not look at it.
    let everyones = ["type", "dns", "capabilities", "nameservers", "domain"]
        .contains(&&*members[at].key.to_ascii_lowercase());
    if everyones && matches!(what, What::Value(_) | What::Before(_) | What::After(_)) {
        return;
    }
    if matches!((&members[at].value, what), (Text::Object(_), What::After(_))) {
        return;
    }
    let twin = |value: &str| member(&members[at].key, value);
    match what {
        What::OtherCase(letter) => {
            let place = letter.index(members[at].key.len());
            let letters = members[at].key.chars().enumerate();
            let key = letters.map(|(index, letter)| match index == place {
                true if letter.is_ascii_lowercase() => letter.to_ascii_uppercase(),
                true => letter.to_ascii_lowercase(),
                false => letter,
            });
            members[at].key = key.collect();
        }
        What::Null => members[at].value = Text::Plain("null".to_owned()),
        What::Value(value) => members[at].value = Text::Plain((*value).to_owned()),
        What::Before(value) => {
            let twin = twin(value);
            members.insert(at, twin);
        }
        What::After(value) => {
            let twin = twin(value);
            members.insert(at + 1, twin);
        }
        What::Unknown(value) => members.insert(at, member("unheardOf", value)),
        What::Gone => drop(members.remove(at)),
    }
}

/// What a plugin makes of a configuration: its result, or that it refused.
fn ask(subject: &Subject, text: &str) -> Option<Value> {
    let data = tempfile::tempdir().unwrap();
    let answer = call(&subject.bin, &text.replace('@', &data.path().display().to_string()))?;
    let mut result: Value = serde_json::from_str(&answer).unwrap();
    // Debian's reference writes a DNS that says nothing, newer ones and ours do not.
    let empty = result["dns"].as_object().is_some_and(serde_json::Map::is_empty);
    if let Some(members) = result.as_object_mut().filter(|_| empty) {
        members.remove("dns");
    }
    Some(result)
}

#[allow(clippy::disallowed_methods, reason = "plugins are processes")]
fn call(bin: &Path, text: &str) -> Option<String> {
    let mut command = Command::new(bin.join("host-local"));
    command.env_clear().env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", "c").env("CNI_IFNAME", "eth0");
    command.env("CNI_NETNS", "/proc/there/is/none").env("CNI_PATH", bin);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
    let output = child.wait_with_output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_configuration_is_refused_by_both_or_means_the_same_to_both(
        changes in prop::collection::vec(change(), 0..4),
    ) {
        let mut members = base();
        for change in &changes {
            apply(&mut members, &change.path, &change.what);
        }
        let text = Text::Object(members).write();
        // A `dataDir` that is gone means the machine's own, which is no test's business, and one that is no whole path means one that
        // all runs and subjects share.
        let directories = |value: &str| text.to_lowercase().matches(&format!("\"datadir\":\"{value}")).count();
        prop_assume!(text.contains("\"@\"") && directories("") == directories("@"));
        prop_assume!(!text.to_lowercase().contains("\"routes\":[null]"));
        let answers: Vec<Option<Value>> = subjects().iter().map(|subject| ask(subject, &text)).collect();
        for answer in &answers {
            prop_assert_eq!(answer, &answers[0], "{}", text);
        }
    }
}
