//! The VLANs of a bridge port: what the configuration asks for, checked, and what that means for the port.
//!
//! Read [`Vlans`] first: it cannot hold an id outside 1 to 4094. [`Vlans::on_port`] is the decision, a pure
//! function; the bridge plugin sends it to the kernel. The words and limits are the reference plugin's
//! (`vlan`, `vlanTrunk`, `preserveDefaultVlan`).

use std::collections::BTreeSet;

/// The highest VLAN id there is; 4095 is reserved by IEEE 802.1Q.
const HIGHEST: i64 = 4094;

/// The VLANs a port shall carry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Vlans {
    /// Untagged traffic belongs to this VLAN.
    pub(crate) access: Option<u16>,
    /// These are carried with their tags, in rising order.
    pub(crate) trunk: Vec<u16>,
    /// Keep what the bridge gives every new port by default.
    pub(crate) preserve_default: bool,
}

/// One VLAN of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PortVlan {
    /// The VLAN's id.
    pub(crate) id: u16,
    /// Untagged frames from the port belong to this VLAN, and its frames leave untagged.
    pub(crate) untagged: bool,
}

/// One entry of `vlanTrunk`, as written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TrunkItem {
    /// A single VLAN.
    pub(crate) id: Option<i64>,
    /// The first VLAN of a range.
    pub(crate) minimum: Option<i64>,
    /// The last VLAN of a range.
    pub(crate) maximum: Option<i64>,
}

impl Vlans {
    /// Checks `vlan` (0 means none) and `vlanTrunk`. The error is the reference plugin's text.
    pub(crate) fn new(access: i64, trunk: &[TrunkItem], preserve_default: bool) -> Result<Self, String> {
        if !(0..=HIGHEST).contains(&access) {
            return Err(format!("invalid VLAN ID {access} (must be between 0 and {HIGHEST})"));
        }
        let mut ids = BTreeSet::new();
        for item in trunk {
            item.collect(&mut ids)?;
        }
        let access = u16::try_from(access).ok().filter(|id| *id != 0);
        Ok(Self { access, trunk: ids.into_iter().collect(), preserve_default })
    }

    /// Whether the bridge has to filter by VLAN for this port.
    pub(crate) fn any(&self) -> bool {
        self.access.is_some() || !self.trunk.is_empty()
    }

    /// What the port has to carry, in rising order, beside what the bridge gave it when
    /// [`preserve_default`](Self::preserve_default) is set. Without an access VLAN a trunk's untagged
    /// traffic belongs to VLAN 1, as on a switch.
    pub(crate) fn on_port(&self) -> Vec<PortVlan> {
        if !self.any() {
            return Vec::new();
        }
        let native = self.access.unwrap_or(1);
        let tagged =
            self.trunk.iter().filter(|id| **id != native).map(|&id| PortVlan { id, untagged: false });
        let mut port: Vec<PortVlan> = tagged.chain([PortVlan { id: native, untagged: true }]).collect();
        port.sort_unstable();
        port
    }
}

impl TrunkItem {
    /// Adds the ids that this entry names.
    fn collect(self, ids: &mut BTreeSet<u16>) -> Result<(), String> {
        match (self.minimum, self.maximum) {
            (Some(minimum), Some(maximum)) => {
                let first = checked(minimum, "minID")?;
                let last = checked(maximum, "maxID")?;
                if first > last {
                    return Err("minID is greater than maxID in trunk parameter".into());
                }
                ids.extend(first..=last);
            }
            (None, Some(_)) => {
                return Err("minID and maxID should be configured simultaneously, minID is missing".into());
            }
            (Some(_), None) => {
                return Err("minID and maxID should be configured simultaneously, maxID is missing".into());
            }
            (None, None) => {}
        }
        if let Some(id) = self.id {
            ids.insert(checked(id, "id")?);
        }
        Ok(())
    }
}

/// `id` as a VLAN id, or the reference plugin's complaint about the parameter `name`.
fn checked(id: i64, name: &str) -> Result<u16, String> {
    if (1..=HIGHEST).contains(&id)
        && let Ok(id) = u16::try_from(id)
    {
        return Ok(id);
    }
    Err(format!("incorrect trunk {name} parameter"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trunk(id: Option<i64>, minimum: Option<i64>, maximum: Option<i64>) -> Result<Vec<u16>, String> {
        Vlans::new(0, &[TrunkItem { id, minimum, maximum }], false).map(|vlans| vlans.trunk)
    }

    #[test]
    fn a_trunk_is_sorted_and_names_no_vlan_twice() {
        let items = [
            TrunkItem { id: Some(210), minimum: Some(200), maximum: Some(203) },
            TrunkItem { id: Some(101), ..TrunkItem::default() },
            TrunkItem { id: Some(201), ..TrunkItem::default() },
        ];
        assert_eq!(Vlans::new(0, &items, false).unwrap().trunk, [101, 200, 201, 202, 203, 210]);
    }

    #[test]
    fn the_nine_wrong_trunks_get_the_reference_texts() {
        for (item, text) in [
            ((None, Some(0), Some(5)), "incorrect trunk minID parameter"),
            ((None, Some(4095), Some(4095)), "incorrect trunk minID parameter"),
            ((None, Some(1), Some(4095)), "incorrect trunk maxID parameter"),
            ((None, Some(1), Some(0)), "incorrect trunk maxID parameter"),
            ((None, Some(9), Some(8)), "minID is greater than maxID in trunk parameter"),
            ((None, None, Some(5)), "minID and maxID should be configured simultaneously, minID is missing"),
            ((None, Some(5), None), "minID and maxID should be configured simultaneously, maxID is missing"),
            ((Some(0), None, None), "incorrect trunk id parameter"),
            ((Some(4095), None, None), "incorrect trunk id parameter"),
        ] {
            let (id, minimum, maximum) = item;
            assert_eq!(trunk(id, minimum, maximum), Err(text.to_owned()), "{item:?}");
        }
    }

    #[test]
    fn an_access_vlan_is_at_most_4094() {
        for wrong in [-100, 4095, 5000] {
            let text = format!("invalid VLAN ID {wrong} (must be between 0 and 4094)");
            assert_eq!(Vlans::new(wrong, &[], false), Err(text));
        }
        assert_eq!(Vlans::new(0, &[], false).unwrap().access, None);
        assert_eq!(Vlans::new(4094, &[], false).unwrap().access, Some(4094));
    }

    #[test]
    fn a_trunk_without_access_vlan_is_untagged_in_vlan_1() {
        let vlans = Vlans::new(0, &[TrunkItem { id: Some(101), ..TrunkItem::default() }], false).unwrap();
        assert_eq!(
            vlans.on_port(),
            [PortVlan { id: 1, untagged: true }, PortVlan { id: 101, untagged: false }]
        );
    }

    #[test]
    fn the_access_vlan_stays_untagged_when_the_trunk_names_it_too() {
        let vlans = Vlans::new(100, &[TrunkItem { id: Some(100), ..TrunkItem::default() }], false).unwrap();
        assert_eq!(vlans.on_port(), [PortVlan { id: 100, untagged: true }]);
        assert!(Vlans::default().on_port().is_empty());
    }
}
