//! The configuration of the `ptp` plugin, checked before anything is touched.
//!
//! Read [`PtpConfig`]. DEL and GC read none of it.

use cni::{Config, Error, Request};

use crate::interface::bridge::config::{masquerade, mtu};

/// What ADD shall make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PtpConfig {
    /// `ipMasq`: what leaves a pod's subnet gets the host's address.
    pub(super) masquerade: bool,
    /// `mtu`, in bytes; `None` leaves the kernel's choice.
    pub(super) mtu: Option<u32>,
}

impl PtpConfig {
    /// Reads and checks the configuration of an ADD, CHECK or STATUS.
    ///
    /// # Errors
    /// Code 6 for a key of the wrong type, 7 for a value that cannot be or an address plugin that is missing.
    pub(super) fn of(request: &Request) -> Result<Self, Error> {
        let fields = request.config.fields();
        request.config.ipam()?;
        let config = Self { masquerade: masquerade(&fields)?, mtu: mtu(&fields)? };
        if address_plugin(&request.config).is_empty() {
            let text = format!("ipam.type: {:?} gives no addresses, and ptp needs some", kind(request));
            return Err(Error::invalid_config(text).with_details("hint: host-local does"));
        }
        Ok(config)
    }
}

/// The plugin to give addresses back to; empty for none. Never this one: it would call itself for ever.
pub(super) fn address_plugin(config: &Config) -> &str {
    if config.ipam_kind == super::NAME { "" } else { &config.ipam_kind }
}

fn kind(request: &Request) -> &str {
    &request.config.ipam_kind
}

#[cfg(test)]
mod tests {
    use cni::Code;

    use super::*;

    fn parsed(config: &str) -> Result<PtpConfig, Error> {
        let config = format!(r#"{{"cniVersion": "1.1.0", "name": "net", "type": "ptp", {config}}}"#);
        PtpConfig::of(&crate::testing::request(&config))
    }

    #[test]
    fn keys_are_read_and_zeros_mean_nothing() {
        let config = parsed(
            r#""ipam": {"type": "host-local"}, "IPMASQ": true, "mtu": 1400, "ipMasqBackend": "iptables""#,
        );
        assert_eq!(config.unwrap(), PtpConfig { masquerade: true, mtu: Some(1400) });
        let config = parsed(r#""ipam": {"type": "x"}, "mtu": 0, "ipMasq": null, "ipMasqBackend": """#);
        assert_eq!(config.unwrap(), PtpConfig { masquerade: false, mtu: None });
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (config, code, text) in [
            (r#""mtu": 1400"#, Code::INVALID_CONFIG, "ptp needs some"),
            (r#""ipam": {}"#, Code::INVALID_CONFIG, "ptp needs some"),
            (r#""ipam": {"type": "ptp"}"#, Code::INVALID_CONFIG, "\"ptp\" gives no addresses"),
            (r#""ipam": "host-local""#, Code::UNDECODABLE, "ipam"),
            (r#""ipam": {"type": "x"}, "mtu": -1"#, Code::INVALID_CONFIG, "mtu: -1 is not between"),
            (
                r#""ipam": {"type": "x"}, "ipMasq": true, "ipMasqBackend": "pf""#,
                Code::INVALID_CONFIG,
                "unknown ipmasq backend \"pf\"",
            ),
        ] {
            let error = parsed(config).unwrap_err();
            assert_eq!(error.code, code, "{config}: {error}");
            assert!(error.message.contains(text), "{config}: {error}");
        }
    }
}
