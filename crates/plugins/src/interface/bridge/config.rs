//! The configuration of the `bridge` plugin: every key of the reference plugin, checked before anything is
//! touched.
//!
//! Read [`BridgeConfig`] first; it cannot say two things that contradict each other. DEL and GC read none of
//! this but the bridge's name, so a configuration that has become wrong never keeps a pod from going.

use cni::{Config, Error, Fields, Request};
use netstate::{LinkName, Mac};

use super::vlan::{TrunkItem, Vlans};
use crate::interface::mac;

/// The bridge of a configuration that names none.
const DEFAULT_BRIDGE: &str = netstate::POD_BRIDGE;

/// The largest packet that an Ethernet device of Linux can be set to, in bytes.
const LARGEST_MTU: u32 = 65_535;

/// What ADD shall make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BridgeConfig {
    /// `bridge`: the device that pods are plugged into.
    pub(crate) bridge: LinkName,
    /// `isGateway`: the subnets' gateway addresses go onto the bridge.
    pub(crate) gateway: bool,
    /// `isDefaultGateway`: and pods get default routes through them. Implies `gateway`.
    pub(crate) default_gateway: bool,
    /// `forceAddress`: a different gateway address on the bridge is replaced instead of an error.
    pub(crate) force_address: bool,
    /// `ipMasq`: what leaves a pod's subnet gets the host's address.
    pub(crate) masquerade: bool,
    /// `mtu`, in bytes; `None` leaves the kernel's choice.
    pub(crate) mtu: Option<u32>,
    /// `hairpinMode`: frames may leave by the port they came in by.
    pub(crate) hairpin: bool,
    /// `promiscMode`: the bridge takes every frame in.
    pub(crate) promiscuous: bool,
    /// `vlan`, `vlanTrunk` and `preserveDefaultVlan`.
    pub(crate) vlans: Vlans,
    /// `macspoofchk`: frames with another source than the pod's hardware address are dropped.
    pub(crate) spoof_check: bool,
    /// `enabledad`: IPv6 addresses are checked for duplicates before ADD ends.
    pub(crate) detect_duplicates: bool,
    /// `disableContainerInterface`: the pod's end stays down.
    pub(crate) disabled: bool,
    /// `portIsolation`: isolated ports cannot reach each other.
    pub(crate) isolated: bool,
    /// The pod's hardware address; `None` leaves the kernel's choice.
    pub(crate) mac: Option<Mac>,
}

impl BridgeConfig {
    /// Reads and checks the configuration of an ADD, CHECK or STATUS.
    ///
    /// # Errors
    /// Code 6 for a key of the wrong type, 7 for a value that cannot be, 4 for CNI_ARGS.
    pub(crate) fn of(request: &Request) -> Result<Self, Error> {
        let fields = request.config.fields();
        // An `ipam` that is no object names no plugin, and a pod must not go without addresses over a slip.
        request.config.ipam()?;
        let default_gateway = fields.bool("isDefaultGateway")?;
        let config = Self {
            bridge: bridge_name(&request.config)?,
            gateway: fields.bool("isGateway")? || default_gateway,
            default_gateway,
            force_address: fields.bool("forceAddress")?,
            masquerade: masquerade(&fields)?,
            mtu: mtu(&fields)?,
            hairpin: fields.bool("hairpinMode")?,
            promiscuous: fields.bool("promiscMode")?,
            vlans: vlans(&fields)?,
            spoof_check: fields.bool("macspoofchk")?,
            detect_duplicates: fields.bool("enabledad")?,
            disabled: fields.bool("disableContainerInterface")?,
            isolated: fields.bool("portIsolation")?,
            mac: mac::requested(request, false)?,
        };
        if config.hairpin && config.promiscuous {
            return Err(Error::invalid_config(
                "cannot set hairpin mode and promiscuous mode at the same time",
            ));
        }
        if names_itself(&request.config) {
            return Err(Error::invalid_config("ipam.type: bridge has no addresses to give")
                .with_details("hint: host-local has"));
        }
        if config.disabled && !request.config.ipam_kind.is_empty() {
            return Err(Error::invalid_config("cannot use IPAM when DisableContainerInterface flag is set"));
        }
        Ok(config)
    }
}

/// The plugin to give addresses back to; empty for none. Never this one: it would call itself for ever.
pub(crate) fn address_plugin(config: &Config) -> &str {
    if names_itself(config) { "" } else { &config.ipam_kind }
}

fn names_itself(config: &Config) -> bool {
    config.ipam_kind == super::NAME
}

/// The bridge's name: all that DEL and GC need beside it.
pub(crate) fn bridge_name(config: &Config) -> Result<LinkName, Error> {
    let fields = config.fields();
    let name = match fields.string("bridge")? {
        "" => DEFAULT_BRIDGE,
        name => name,
    };
    name.parse().map_err(|error: netstate::Error| fields.bad("bridge", error.to_string()).into())
}

/// The VLAN of the network's gateway device, for those who only want to take it away.
pub(crate) fn access_vlan(config: &Config) -> Option<u16> {
    vlans(&config.fields()).ok()?.access
}

/// `mtu`; 0 is as good as absent.
pub(crate) fn mtu(fields: &Fields<'_>) -> Result<Option<u32>, Error> {
    match fields.integer::<i64>("mtu")? {
        0 => Ok(None),
        mtu => match u32::try_from(mtu).ok().filter(|mtu| (68..=LARGEST_MTU).contains(mtu)) {
            Some(mtu) => Ok(Some(mtu)),
            None => Err(fields.bad("mtu", format!("{mtu} is not between 68 and {LARGEST_MTU}")).into()),
        },
    }
}

/// `ipMasq`. Both of the reference's backends are accepted and served by our own nf_tables table.
pub(crate) fn masquerade(fields: &Fields<'_>) -> Result<bool, Error> {
    let wanted = fields.bool("ipMasq")?;
    match fields.string("ipMasqBackend")? {
        "" | "iptables" | "nftables" => Ok(wanted),
        other if wanted => {
            Err(fields.bad("ipMasqBackend", format!("unknown ipmasq backend {other:?}")).into())
        }
        _ => Ok(false),
    }
}

/// `vlan`, `vlanTrunk` and `preserveDefaultVlan` together.
fn vlans(fields: &Fields<'_>) -> Result<Vlans, Error> {
    let mut trunk = Vec::new();
    for item in fields.array("vlanTrunk")? {
        let item = item.fields()?;
        trunk.push(TrunkItem {
            id: item.optional_integer("id")?,
            minimum: item.optional_integer("minID")?,
            maximum: item.optional_integer("maxID")?,
        });
    }
    let preserve = fields.bool("preserveDefaultVlan")?;
    Vlans::new(fields.integer("vlan")?, &trunk, preserve).map_err(Error::invalid_config)
}

#[cfg(test)]
mod tests {
    use cni::Code;

    use super::*;

    fn request(config: &str) -> Request {
        let config = format!(r#"{{"cniVersion": "1.1.0", "name": "net", "type": "bridge", {config}}}"#);
        crate::testing::request(&config)
    }

    fn parsed(config: &str) -> BridgeConfig {
        BridgeConfig::of(&request(config)).unwrap()
    }

    fn refused(config: &str) -> Error {
        BridgeConfig::of(&request(config)).unwrap_err()
    }

    #[test]
    fn an_empty_configuration_is_the_references_defaults() {
        let expected = BridgeConfig {
            bridge: "cni0".parse().unwrap(),
            gateway: false,
            default_gateway: false,
            force_address: false,
            masquerade: false,
            mtu: None,
            hairpin: false,
            promiscuous: false,
            vlans: Vlans::default(),
            spoof_check: false,
            detect_duplicates: false,
            disabled: false,
            isolated: false,
            mac: None,
        };
        assert_eq!(parsed(r#""x": 1"#), expected);
        let zeros =
            r#""bridge": "", "mtu": 0, "vlan": 0, "ipMasqBackend": "", "isGateway": null, "ipam": null"#;
        assert_eq!(parsed(zeros), expected);
    }

    #[test]
    fn every_key_is_read_whatever_its_case() {
        let config = parsed(
            r#""bridge": "br7", "isdefaultgateway": true, "forceAddress": true, "ipMasq": true, "mtu": 1400,
               "hairpinMode": true, "vlan": 100, "vlanTrunk": [{"id": 101}, {"minID": 200, "maxID": 202}, null],
               "preserveDefaultVlan": true, "MACSPOOFCHK": true, "enabledad": true, "portIsolation": true"#,
        );
        assert_eq!(config.bridge.as_str(), "br7");
        assert!(config.gateway && config.default_gateway && config.force_address && config.masquerade);
        assert!(config.hairpin && config.spoof_check && config.detect_duplicates && config.isolated);
        assert_eq!(config.mtu, Some(1400));
        assert_eq!(config.vlans.access, Some(100));
        assert_eq!(config.vlans.trunk, [101, 200, 201, 202]);
        assert!(config.vlans.preserve_default);
        assert!(parsed(r#""promiscMode": true"#).promiscuous);
        assert!(parsed(r#""disableContainerInterface": true"#).disabled);
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_references_words() {
        for (config, text) in [
            (r#""vlan": -100"#, "invalid VLAN ID -100 (must be between 0 and 4094)"),
            (r#""vlan": 5000"#, "invalid VLAN ID 5000 (must be between 0 and 4094)"),
            (r#""vlanTrunk": [{"minID": 1}]"#, "maxID is missing"),
            (r#""ipMasq": true, "ipMasqBackend": "pf""#, "unknown ipmasq backend \"pf\""),
            (r#""hairpinMode": true, "promiscMode": true"#, "cannot set hairpin mode and promiscuous mode"),
            (
                r#""disableContainerInterface": true, "ipam": {"type": "host-local"}"#,
                "cannot use IPAM when DisableContainerInterface flag is set",
            ),
            (r#""mtu": -1"#, "mtu: -1 is not between 68 and 65535"),
            (r#""mtu": 70000"#, "mtu: 70000 is not between"),
            (r#""bridge": "a/b""#, "bridge: "),
            (r#""runtimeConfig": {"mac": "zz"}"#, "runtimeConfig.mac: invalid hardware address \"zz\""),
            (r#""args": {"cni": {"mac": "01:00:5e:00:00:01"}}"#, "args.cni.mac: invalid hardware address"),
        ] {
            let error = refused(config);
            assert_eq!(error.code, Code::INVALID_CONFIG, "{config}: {error}");
            assert!(error.message.contains(text), "{config}: {error}");
        }
        for wrong in [
            r#""isGateway": "yes""#,
            r#""vlan": "5""#,
            r#""bridge": 7"#,
            r#""vlanTrunk": {}"#,
            r#""ipam": "host-local""#,
        ] {
            assert_eq!(refused(wrong).code, Code::UNDECODABLE, "{wrong}");
        }
    }

    #[test]
    fn an_unused_backend_is_not_looked_at() {
        assert!(!parsed(r#""ipMasqBackend": "pf""#).masquerade);
        assert!(parsed(r#""ipMasq": true, "ipMasqBackend": "iptables""#).masquerade);
    }

    #[test]
    fn the_hardware_address_of_the_runtime_beats_the_others() {
        let mut request = request(r#""args": {"cni": {"mac": "02:00:00:00:00:02"}}"#);
        request.args = "MAC=02-00-00-00-00-01".into();
        assert_eq!(mac::requested(&request, false).unwrap().unwrap().to_string(), "02:00:00:00:00:02");
        request.config = self::request(r#""args": {}"#).config;
        assert_eq!(mac::requested(&request, false).unwrap().unwrap().to_string(), "02:00:00:00:00:01");
        request.args = "COLOUR=red".into();
        assert_eq!(mac::requested(&request, false).unwrap_err().code, Code::INVALID_ENVIRONMENT);
    }

    const KEYS: &str =
        "vlan|mtu|bridge|vlanTrunk|hairpinMode|promiscMode|ipMasq|ipMasqBackend|[a-zA-Z]{3,12}";
    const VALUES: &str =
        r#"-?[1-9][0-9]{0,5}|0|true|false|null|"[a-z0-9/]{0,17}"|\[\{"id": -?[1-9][0-9]{0,4}\}\]"#;

    proptest::proptest! {
        #[test]
        fn any_configuration_is_either_refused_or_consistent(
            members in proptest::collection::vec((KEYS, VALUES), 1..12),
        ) {
            let members: Vec<String> = members.iter().map(|(key, value)| format!(r#""{key}": {value}"#)).collect();
            let Ok(config) = Config::parse(format!(r#"{{"name": "net", {}}}"#, members.join(", ")).as_bytes())
            else { return Ok(()) };
            if let Ok(config) = BridgeConfig::of(&Request { config, ..request(r#""x": 1"#) }) {
                proptest::prop_assert!(!(config.hairpin && config.promiscuous));
                proptest::prop_assert!(config.mtu.is_none_or(|mtu| (68..=LARGEST_MTU).contains(&mtu)));
                proptest::prop_assert!(config.vlans.access.is_none_or(|vlan| (1..=4094).contains(&vlan)));
                proptest::prop_assert!(config.vlans.trunk.iter().all(|vlan| (1..=4094).contains(vlan)));
                proptest::prop_assert!((1..=15).contains(&config.bridge.as_str().len()));
            }
        }
    }
}
