//! Other pod networks, by the marks of what they make.

/// A pod network that is not Fairlead. Names that end in `*` stand for all that begin so.
pub(super) struct Other {
    pub(super) name: &'static str,
    /// Links that carry the node's part of it.
    pub(super) links: &'static [&'static str],
    /// The host's ends of its pods' cables.
    pub(super) pods: &'static [&'static str],
    /// What its chains begin with.
    pub(super) chains: &'static [&'static str],
    /// What its own nf_tables tables begin with.
    pub(super) tables: &'static [&'static str],
    /// Its routing protocols, by number and name.
    pub(super) protocols: &'static [(u8, &'static str)],
    /// Files and directories that it alone has.
    pub(super) files: &'static [&'static str],
    /// The types of its plugins.
    pub(super) plugins: &'static [&'static str],
}

/// One without marks, to start from.
const NONE: Other = Other {
    name: "",
    links: &[],
    pods: &[],
    chains: &[],
    tables: &[],
    protocols: &[],
    files: &[],
    plugins: &[],
};

/// Those that are known.
pub(super) const OTHERS: [Other; 8] = [
    Other {
        name: "flannel",
        links: &["flannel.*", "flannel-*", "flannel0"],
        chains: &["FLANNEL-"],
        tables: &["flannel-"],
        files: &["/run/flannel", "/var/lib/cni/flannel"],
        plugins: &["flannel"],
        ..NONE
    },
    Other {
        name: "calico",
        links: &["vxlan.calico", "vxlan-v6.calico", "wireguard.cali", "wg-v6.cali", "tunl0"],
        pods: &["cali*"],
        chains: &["cali-"],
        tables: &["calico"],
        protocols: &[(12, "bird"), (80, "80")],
        files: &["/var/lib/calico", "/run/calico"],
        plugins: &["calico"],
    },
    Other {
        name: "cilium",
        links: &["cilium_*"],
        pods: &["lxc*"],
        chains: &["CILIUM_"],
        files: &["/run/cilium"],
        plugins: &["cilium-cni"],
        ..NONE
    },
    Other {
        name: "kube-router",
        links: &["kube-bridge", "kube-dummy-if"],
        chains: &["KUBE-ROUTER", "KUBE-POD-FW-", "KUBE-NWPLCY-"],
        ..NONE
    },
    Other {
        name: "weave",
        links: &["weave", "vethwe-*", "vxlan-6784"],
        pods: &["vethwepl*"],
        chains: &["WEAVE"],
        files: &["/var/lib/weave"],
        plugins: &["weave-net"],
        ..NONE
    },
    Other {
        name: "antrea",
        links: &["antrea-gw0", "antrea-tun0", "antrea-egress0"],
        chains: &["ANTREA-"],
        files: &["/run/antrea"],
        plugins: &["antrea"],
        ..NONE
    },
    Other {
        name: "OVN",
        links: &["ovn0", "ovn-k8s-*"],
        chains: &["OVN-KUBE-"],
        files: &["/run/ovn-kubernetes", "/run/openvswitch/kube-ovn-daemon.sock"],
        plugins: &["ovn-k8s-cni-overlay", "kube-ovn"],
        ..NONE
    },
    // Fairlead's own cni0 (--bridge) carries its mark and is not foreign.
    Other { name: "a bridge network", links: &["cni0"], ..NONE },
];

impl Other {
    /// Whether a link of this name is one of its own or leads to one of its pods.
    pub(super) fn has_link(&self, name: &str) -> bool {
        self.has_own_link(name) || self.has_pod_link(name)
    }

    pub(super) fn has_own_link(&self, name: &str) -> bool {
        self.links.iter().any(|pattern| is_like(pattern, name))
    }

    pub(super) fn has_pod_link(&self, name: &str) -> bool {
        self.pods.iter().any(|pattern| is_like(pattern, name))
    }
}

fn is_like(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(name == pattern, |start| name.starts_with(start))
}

/// Whose plugin this is.
pub(super) fn owner_of_plugin(kind: &str) -> Option<&'static str> {
    OTHERS.iter().find(|other| other.plugins.contains(&kind)).map(|other| other.name)
}
