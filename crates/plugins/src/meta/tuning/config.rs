//! What a network configuration says to `tuning`.
//!
//! Members of `args.cni` take the place of the configuration's own, one by one, also those of `sysctl`. The
//! hardware address comes from the last of these that has one: `mac`, CNI_ARGS `MAC`, the capability `mac`,
//! `args.cni.mac`.

use std::path::PathBuf;

use cni::{Config, Error, Fields, Request};
use netstate::Mac;

use super::allow_list;
use super::attributes::Attributes;
use crate::interface::bridge::config::mtu;

/// Where backups are kept unless the configuration says otherwise.
const DATA_DIR: &str = "/run/cni/tuning";

/// What ADD shall do.
#[derive(Debug)]
pub(super) struct Settings {
    /// Sysctls as they are written, with their values.
    pub(super) sysctls: Vec<(String, String)>,
    /// What the pod's interface shall have.
    pub(super) link: Attributes,
    /// Where backups are kept.
    pub(super) data_dir: PathBuf,
}

impl Settings {
    /// Reads and checks the configuration of an ADD, CHECK or STATUS.
    ///
    /// # Errors
    /// Code 6 for a key of the wrong type, 7 for a value that cannot be or is not allowed, 4 for CNI_ARGS.
    pub(super) fn of(request: &Request) -> Result<Self, Error> {
        let (own, args) = (request.config.fields(), request.config.args()?);
        let sysctls = sysctls(&own, &args)?;
        allow_list::check(sysctls.iter().map(|(key, _)| key.as_str()))?;
        let from = |key| if args.has(key) { &args } else { &own };
        let queue: Option<i64> = from("txQLen").optional_integer("txQLen")?;
        let queue = queue.map(|length| {
            let wrong = || from("txQLen").bad("txQLen", format!("{length} is no length of a queue"));
            u32::try_from(length).map_err(|_| wrong())
        });
        let link = Attributes {
            mac: mac(request, &own, &args)?,
            mtu: mtu(from("mtu"))?,
            promiscuous: from("promisc").optional_bool("promisc")?,
            all_multicast: from("allmulti").optional_bool("allmulti")?,
            transmit_queue_length: queue.transpose()?,
        };
        Ok(Self { sysctls, link, data_dir: data_dir(&request.config) })
    }
}

/// Where backups are kept: all that DEL and GC need to know. What is no path is as good as absent.
pub(super) fn data_dir(config: &Config) -> PathBuf {
    let path = config.fields().string("dataDir").unwrap_or_default();
    PathBuf::from(if path.is_empty() { DATA_DIR } else { path })
}

fn sysctls(own: &Fields<'_>, args: &Fields<'_>) -> Result<Vec<(String, String)>, Error> {
    let mut all: Vec<(String, String)> = Vec::new();
    for fields in [own, args] {
        let map = fields.object("sysctl")?;
        let mut said = Vec::new();
        for (key, item) in map.members() {
            if said.contains(&key) {
                return Err(map.bad(key, "duplicated sysctl keys are not allowed").into());
            }
            said.push(key);
            let value = item.string()?.to_owned();
            match all.iter_mut().find(|(known, _)| known == key) {
                Some(known) => known.1 = value,
                None => all.push((key.to_owned(), value)),
            }
        }
    }
    Ok(all)
}

fn mac(request: &Request, own: &Fields<'_>, args: &Fields<'_>) -> Result<Option<Mac>, Error> {
    let arguments = request.arguments(&["MAC", "IP", "GATEWAY"])?;
    let mut asked = (own.path_of("mac"), own.string("mac")?);
    if let Some(text) = arguments.get("MAC").filter(|text| !text.is_empty()) {
        asked = ("CNI_ARGS: MAC".to_owned(), text);
    }
    let runtime = request.config.runtime_config()?;
    match runtime.string("mac")? {
        "" => {}
        text => asked = (runtime.path_of("mac"), text),
    }
    if let Some(text) = args.optional_string("mac")? {
        asked = (args.path_of("mac"), text);
    }
    let (path, text) = asked;
    if text.is_empty() {
        return Ok(None);
    }
    let wrong =
        |reason| Error::invalid_config(format!("{path}: invalid hardware address {text:?}: {reason}"));
    let mac: Mac = text.replace('-', ":").parse().map_err(|_| wrong("expected six pairs of digits"))?;
    if mac.0[0] & 1 == 1 || mac.0 == [0; 6] {
        return Err(wrong("a device cannot have a multicast or zero address"));
    }
    Ok(Some(mac))
}

#[cfg(test)]
mod tests {
    use cni::Code;

    use super::*;

    fn request(config: &str, args: &str) -> Request {
        let config = format!(r#"{{"cniVersion": "1.1.0", "name": "net", {config}}}"#);
        Request { args: args.into(), ..crate::testing::request(&config) }
    }

    fn settings(config: &str) -> Settings {
        Settings::of(&request(config, "")).unwrap()
    }

    #[test]
    fn the_last_source_of_a_hardware_address_counts() {
        let mut config = r#""mac": "02:00:00:00:00:01""#.to_owned();
        let last = |config: &str, args: &str| {
            Settings::of(&request(config, args)).unwrap().link.mac.map(|mac| mac.0[5])
        };
        assert_eq!(last(&config, ""), Some(1));
        assert_eq!(last(&config, "MAC=02-00-00-00-00-02"), Some(2));
        config.push_str(r#", "runtimeConfig": {"mac": "02:00:00:00:00:03"}"#);
        assert_eq!(last(&config, "MAC=02-00-00-00-00-02"), Some(3));
        config.push_str(r#", "args": {"cni": {"mac": "02:00:00:00:00:04"}}"#);
        assert_eq!(last(&config, "MAC=02-00-00-00-00-02"), Some(4));
        assert_eq!(last(r#""mac": "02:00:00:00:00:01", "args": {"cni": {"mac": ""}}"#, ""), None);
    }

    #[test]
    fn arguments_take_the_place_of_what_the_configuration_says() {
        let own = r#""sysctl": {"net.a": "1", "net.b": "1"}, "mtu": 1400, "promisc": true, "allmulti": true, "txQLen": 5"#;
        let asked = settings(own);
        assert_eq!(asked.link.mtu, Some(1400));
        assert_eq!((asked.link.promiscuous, asked.link.all_multicast), (Some(true), Some(true)));
        assert_eq!(asked.link.transmit_queue_length, Some(5));
        let asked = settings(&format!(
            r#"{own}, "args": {{"cni": {{"sysctl": {{"net.b": "2", "net.c": "2"}}, "mtu": 0, "promisc": false,
               "allmulti": false, "txQLen": 0}}}}"#
        ));
        let sysctls: Vec<String> =
            asked.sysctls.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(sysctls, ["net.a=1", "net.b=2", "net.c=2"]);
        assert_eq!((asked.link.mtu, asked.link.promiscuous), (None, Some(false)));
        assert_eq!((asked.link.all_multicast, asked.link.transmit_queue_length), (Some(false), Some(0)));
        let nothing = settings(r#""sysctl": null, "mac": "", "mtu": 0, "promisc": null, "txQLen": null"#);
        assert!(nothing.link.is_empty() && nothing.sysctls.is_empty());
        assert_eq!(nothing.data_dir, PathBuf::from("/run/cni/tuning"));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (config, words) in [
            (r#""sysctl": {"net.a": "1", "net.a": "2"}"#, "duplicated sysctl keys are not allowed"),
            (
                r#""sysctl": {"net.a": "1"}, "sysctl": {"net.a": "2"}"#,
                "duplicated sysctl keys are not allowed",
            ),
            (r#""mac": "zz""#, "mac: invalid hardware address \"zz\""),
            (r#""mtu": 3"#, "mtu: 3 is not between 68"),
            (r#""txQLen": -1"#, "txQLen: -1 is no length of a queue"),
        ] {
            let error = Settings::of(&request(config, "")).unwrap_err();
            assert_eq!(error.code, Code::INVALID_CONFIG, "{config}");
            assert!(error.message.contains(words), "{config}: {error}");
        }
        let error = Settings::of(&request(r#""sysctl": {"net.a": 1}"#, "")).unwrap_err();
        assert_eq!(error.code, Code::UNDECODABLE);
    }
}
