//! Configurations and lists of anybody's: never a panic, and what is accepted keeps the protocol's promises.
#![no_main]

use std::path::Path;

use cni::{ConfList, Config, Json, validate_network_name};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(document) = Json::parse(bytes) {
        let again = Json::parse(&document.to_bytes());
        assert!(
            again.is_ok_and(|again| again.to_bytes() == document.to_bytes()),
            "JSON changes when it is written"
        );
    }
    if let Ok(config) = Config::parse(bytes) {
        assert!(validate_network_name(&config.name).is_ok());
        let _ = (config.prev_result(), config.args(), config.runtime_config(), config.ipam());
        let again = Config::parse(&config.document().to_bytes());
        assert_eq!(again.as_ref().map(|again| &again.name), Ok(&config.name));
    }
    if let Ok(list) = ConfList::parse(bytes, Path::new("fuzz")) {
        assert!(validate_network_name(&list.name).is_ok());
        assert!(list.plugins.iter().all(|plugin| !plugin.kind.is_empty()));
    }
});
