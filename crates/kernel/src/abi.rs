//! Numbers of the kernel's userspace headers that rtnetlink needs, under the headers' own names.
//!
//! A table, not code: in the types in which they go onto the wire. The system-call library has some of them,
//! in C's types and not for every kind of link.
#![allow(dead_code)]
// table

// Message types of rtnetlink (linux/rtnetlink.h).
pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
pub(crate) const RTM_GETLINK: u16 = 18;
pub(crate) const RTM_SETLINK: u16 = 19;
pub(crate) const RTM_NEWADDR: u16 = 20;
pub(crate) const RTM_DELADDR: u16 = 21;
pub(crate) const RTM_GETADDR: u16 = 22;
pub(crate) const RTM_NEWROUTE: u16 = 24;
pub(crate) const RTM_DELROUTE: u16 = 25;
pub(crate) const RTM_GETROUTE: u16 = 26;
pub(crate) const RTM_NEWNEIGH: u16 = 28;
pub(crate) const RTM_DELNEIGH: u16 = 29;
pub(crate) const RTM_GETNEIGH: u16 = 30;
pub(crate) const RTM_NEWRULE: u16 = 32;
pub(crate) const RTM_DELRULE: u16 = 33;
pub(crate) const RTM_GETRULE: u16 = 34;
pub(crate) const RTM_NEWQDISC: u16 = 36;
pub(crate) const RTM_DELQDISC: u16 = 37;
pub(crate) const RTM_GETQDISC: u16 = 38;
pub(crate) const RTM_NEWTCLASS: u16 = 40;
pub(crate) const RTM_GETTCLASS: u16 = 42;
pub(crate) const RTM_NEWTFILTER: u16 = 44;
pub(crate) const RTM_GETTFILTER: u16 = 46;
/// How a namespace or link is configured (linux/netconf.h).
pub(crate) const RTM_NEWNETCONF: u16 = 80;
pub(crate) const RTM_GETNETCONF: u16 = 82;
pub(crate) const RTM_NEWNSID: u16 = 88;
pub(crate) const RTM_GETNSID: u16 = 90;

// Flags of requests (linux/netlink.h).
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
pub(crate) const NLM_F_APPEND: u16 = 0x800;
pub(crate) const NLM_F_ECHO: u16 = 8;

// Link attributes (linux/if_link.h).
pub(crate) const IFLA_ADDRESS: u16 = 1;
pub(crate) const IFLA_IFNAME: u16 = 3;
pub(crate) const IFLA_MTU: u16 = 4;
pub(crate) const IFLA_LINK: u16 = 5;
pub(crate) const IFLA_MASTER: u16 = 10;
pub(crate) const IFLA_PROTINFO: u16 = 12;
pub(crate) const IFLA_TXQLEN: u16 = 13;
pub(crate) const IFLA_OPERSTATE: u16 = 16;
pub(crate) const IFLA_LINKINFO: u16 = 18;
pub(crate) const IFLA_IFALIAS: u16 = 20;
pub(crate) const IFLA_STATS64: u16 = 23;
pub(crate) const IFLA_AF_SPEC: u16 = 26;
pub(crate) const IFLA_GROUP: u16 = 27;
pub(crate) const IFLA_NET_NS_FD: u16 = 28;
pub(crate) const IFLA_EXT_MASK: u16 = 29;
pub(crate) const IFLA_PROMISCUITY: u16 = 30;
pub(crate) const IFLA_LINK_NETNSID: u16 = 37;
pub(crate) const IFLA_ALT_IFNAME: u16 = 53;

// Of the numbers in IFLA_STATS64 (struct rtnl_link_stats64), counted from 0.
pub(crate) const STATS64_TX_ERRORS: usize = 5;

// Below IFLA_LINKINFO.
pub(crate) const IFLA_INFO_KIND: u16 = 1;
pub(crate) const IFLA_INFO_DATA: u16 = 2;
pub(crate) const IFLA_INFO_SLAVE_KIND: u16 = 4;
pub(crate) const IFLA_INFO_SLAVE_DATA: u16 = 5;

// What a link listing shall bring.
pub(crate) const RTEXT_FILTER_BRVLAN: u32 = 2;
pub(crate) const RTEXT_FILTER_BRVLAN_COMPRESSED: u32 = 4;
pub(crate) const RTEXT_FILTER_SKIP_STATS: u32 = 8;

// Kind data of bridges, their ports, and the other kinds.
pub(crate) const IFLA_BR_AGEING_TIME: u16 = 4;
pub(crate) const IFLA_BR_VLAN_FILTERING: u16 = 7;
pub(crate) const IFLA_BR_MCAST_SNOOPING: u16 = 23;
pub(crate) const IFLA_BR_VLAN_DEFAULT_PVID: u16 = 39;
pub(crate) const IFLA_BRPORT_STATE: u16 = 1;
pub(crate) const IFLA_BRPORT_MODE: u16 = 4;
pub(crate) const IFLA_BRPORT_LEARNING: u16 = 8;
pub(crate) const IFLA_BRPORT_UNICAST_FLOOD: u16 = 9;
pub(crate) const IFLA_BRPORT_NEIGH_SUPPRESS: u16 = 32;
pub(crate) const IFLA_BRPORT_ISOLATED: u16 = 33;
pub(crate) const IFLA_VXLAN_ID: u16 = 1;
pub(crate) const IFLA_VXLAN_LINK: u16 = 3;
pub(crate) const IFLA_VXLAN_LOCAL: u16 = 4;
pub(crate) const IFLA_VXLAN_LOCAL6: u16 = 17;
pub(crate) const IFLA_VXLAN_LEARNING: u16 = 7;
pub(crate) const IFLA_VXLAN_PORT: u16 = 15;
pub(crate) const IFLA_VXLAN_TTL: u16 = 5;
pub(crate) const VETH_INFO_PEER: u16 = 1;
pub(crate) const IFLA_MACVLAN_MODE: u16 = 1;
pub(crate) const IFLA_MACVLAN_BC_QUEUE_LEN: u16 = 7;
pub(crate) const IFLA_IPVLAN_MODE: u16 = 1;
pub(crate) const IFLA_IPVLAN_FLAGS: u16 = 2;
pub(crate) const IFLA_VLAN_ID: u16 = 1;
pub(crate) const IFLA_VLAN_PROTOCOL: u16 = 5;
pub(crate) const IFLA_VRF_TABLE: u16 = 1;
pub(crate) const IFLA_IPTUN_LOCAL: u16 = 2;
pub(crate) const IFLA_IPTUN_REMOTE: u16 = 3;
pub(crate) const IFLA_IPTUN_TTL: u16 = 4;
pub(crate) const IFLA_IPTUN_PMTUDISC: u16 = 10;
pub(crate) const IFLA_IPTUN_COLLECT_METADATA: u16 = 19;
// TUN and TAP devices (linux/if_link.h, linux/if_tun.h).
pub(crate) const IFLA_TUN_OWNER: u16 = 1;
pub(crate) const IFLA_TUN_GROUP: u16 = 2;
pub(crate) const IFLA_TUN_TYPE: u16 = 3;
pub(crate) const IFLA_TUN_MULTI_QUEUE: u16 = 7;
pub(crate) const IFF_TUN: u16 = 0x0001;
pub(crate) const IFF_TAP: u16 = 0x0002;
pub(crate) const IFF_MULTI_QUEUE: u16 = 0x0100;
pub(crate) const IFF_NO_PI: u16 = 0x1000;
pub(crate) const IFF_VNET_HDR: u16 = 0x4000;
pub(crate) const IFF_TUN_EXCL: u16 = 0x8000;
pub(crate) const TUN_F_CSUM: u32 = 0x01;
pub(crate) const TUN_F_TSO4: u32 = 0x02;
pub(crate) const TUN_F_TSO6: u32 = 0x04;
pub(crate) const TUN_F_TSO_ECN: u32 = 0x08;
pub(crate) const TUN_F_USO4: u32 = 0x20;
pub(crate) const TUN_F_USO6: u32 = 0x40;
pub(crate) const IFLA_INET6_CONF: u16 = 2;
pub(crate) const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
/// Place of a setting in `IFLA_INET6_CONF`, `linux/ipv6.h`.
pub(crate) const DEVCONF_DISABLE_IPV6: usize = 26;
pub(crate) const IFLA_INET_CONF: u16 = 1;
/// A sysctl of `net/ipv4/conf/LINK` by number (linux/ip.h).
pub(crate) const IPV4_DEVCONF_ARP_NOTIFY: u16 = 22;

// Bridge VLANs (linux/if_bridge.h).
pub(crate) const IFLA_BRIDGE_FLAGS: u16 = 0;
pub(crate) const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
pub(crate) const BRIDGE_FLAGS_MASTER: u16 = 1;
pub(crate) const BRIDGE_FLAGS_SELF: u16 = 2;
pub(crate) const BRIDGE_VLAN_INFO_PVID: u16 = 2;
pub(crate) const BRIDGE_VLAN_INFO_UNTAGGED: u16 = 4;
pub(crate) const BRIDGE_VLAN_INFO_RANGE_BEGIN: u16 = 8;
pub(crate) const BRIDGE_VLAN_INFO_RANGE_END: u16 = 16;

// Interface flags (linux/if.h).
pub(crate) const IFF_UP: u32 = 1;
pub(crate) const IFF_LOOPBACK: u32 = 8;
pub(crate) const IFF_RUNNING: u32 = 64;
pub(crate) const IFF_PROMISC: u32 = 0x100;
pub(crate) const IFF_ALLMULTI: u32 = 0x200;
pub(crate) const IFF_LOWER_UP: u32 = 0x10000;

// Address attributes (linux/if_addr.h).
pub(crate) const IFA_ADDRESS: u16 = 1;
pub(crate) const IFA_LOCAL: u16 = 2;
pub(crate) const IFA_LABEL: u16 = 3;
pub(crate) const IFA_BROADCAST: u16 = 4;
pub(crate) const IFA_CACHEINFO: u16 = 6;
pub(crate) const IFA_FLAGS: u16 = 8;
pub(crate) const IFA_RT_PRIORITY: u16 = 9;
pub(crate) const IFA_PROTO: u16 = 11;

// Address flags.
pub(crate) const IFA_F_NODAD: u32 = 2;
pub(crate) const IFA_F_DADFAILED: u32 = 8;
pub(crate) const IFA_F_DEPRECATED: u32 = 32;
pub(crate) const IFA_F_TENTATIVE: u32 = 64;
pub(crate) const IFA_F_PERMANENT: u32 = 128;
pub(crate) const IFA_F_NOPREFIXROUTE: u32 = 0x200;
pub(crate) const IFA_F_SECONDARY: u32 = 1;

// Route attributes (linux/rtnetlink.h).
pub(crate) const RTA_DST: u16 = 1;
pub(crate) const RTA_IIF: u16 = 3;
pub(crate) const RTA_OIF: u16 = 4;
pub(crate) const RTA_GATEWAY: u16 = 5;
pub(crate) const RTA_PRIORITY: u16 = 6;
pub(crate) const RTA_PREFSRC: u16 = 7;
pub(crate) const RTA_METRICS: u16 = 8;
pub(crate) const RTA_MULTIPATH: u16 = 9;
pub(crate) const RTA_TABLE: u16 = 15;
pub(crate) const RTA_VIA: u16 = 18;
pub(crate) const RTA_SRC: u16 = 2;
pub(crate) const RTA_MARK: u16 = 16;
pub(crate) const RTAX_MTU: u16 = 2;
pub(crate) const RTAX_ADVMSS: u16 = 8;

// Route scopes, types, protocols.
pub(crate) const RT_SCOPE_UNIVERSE: u8 = 0;
pub(crate) const RT_SCOPE_LINK: u8 = 253;
pub(crate) const RT_SCOPE_HOST: u8 = 254;
pub(crate) const RT_SCOPE_NOWHERE: u8 = 255;
pub(crate) const RTN_UNSPEC: u8 = 0;
pub(crate) const RTN_UNICAST: u8 = 1;
pub(crate) const RTN_LOCAL: u8 = 2;
pub(crate) const RTN_BROADCAST: u8 = 3;
pub(crate) const RTN_MULTICAST: u8 = 5;
pub(crate) const RTN_BLACKHOLE: u8 = 6;
pub(crate) const RTN_UNREACHABLE: u8 = 7;
pub(crate) const RTN_PROHIBIT: u8 = 8;
pub(crate) const RTN_THROW: u8 = 9;
pub(crate) const RTN_ANYCAST: u8 = 4;
pub(crate) const RTPROT_BOOT: u8 = 3;
pub(crate) const RTPROT_KERNEL: u8 = 2;
pub(crate) const RTPROT_STATIC: u8 = 4;
pub(crate) const RT_TABLE_UNSPEC: u8 = 0;
pub(crate) const RT_TABLE_COMPAT: u8 = 252;

// Route flags.
pub(crate) const RTM_F_CLONED: u32 = 0x200;
pub(crate) const RTNH_F_ONLINK: u32 = 4;
pub(crate) const RTM_F_LOOKUP_TABLE: u32 = 0x1000;
pub(crate) const RTM_F_FIB_MATCH: u32 = 0x2000;

// Neighbour attributes (linux/neighbour.h).
pub(crate) const NDA_DST: u16 = 1;
pub(crate) const NDA_LLADDR: u16 = 2;
pub(crate) const NDA_VLAN: u16 = 5;
pub(crate) const NDA_PORT: u16 = 6;
pub(crate) const NDA_VNI: u16 = 7;
pub(crate) const NDA_IFINDEX: u16 = 8;
pub(crate) const NDA_MASTER: u16 = 9;
pub(crate) const NUD_PERMANENT: u16 = 128;
pub(crate) const NUD_NOARP: u16 = 64;
pub(crate) const NUD_REACHABLE: u16 = 2;
pub(crate) const NUD_STALE: u16 = 4;
pub(crate) const NUD_DELAY: u16 = 8;
pub(crate) const NUD_PROBE: u16 = 16;
pub(crate) const NUD_FAILED: u16 = 32;
pub(crate) const NUD_INCOMPLETE: u16 = 1;

// Neighbour flags.
pub(crate) const NTF_SELF: u8 = 2;
pub(crate) const NTF_MASTER: u8 = 4;
pub(crate) const NTF_PROXY: u8 = 8;
pub(crate) const NTF_EXT_LEARNED: u8 = 16;

// Policy rule attributes (linux/fib_rules.h).
pub(crate) const FRA_DST: u16 = 1;
pub(crate) const FRA_SRC: u16 = 2;
pub(crate) const FRA_IIFNAME: u16 = 3;
pub(crate) const FRA_GOTO: u16 = 4;
pub(crate) const FRA_PRIORITY: u16 = 6;
pub(crate) const FRA_FWMARK: u16 = 10;
pub(crate) const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
pub(crate) const FRA_TABLE: u16 = 15;
pub(crate) const FRA_FWMASK: u16 = 16;
pub(crate) const FRA_OIFNAME: u16 = 17;
pub(crate) const FRA_PROTOCOL: u16 = 21;

// Policy rule actions and flags.
pub(crate) const FR_ACT_TO_TBL: u8 = 1;
pub(crate) const FR_ACT_GOTO: u8 = 2;
pub(crate) const FR_ACT_BLACKHOLE: u8 = 6;
pub(crate) const FR_ACT_UNREACHABLE: u8 = 7;
pub(crate) const FR_ACT_PROHIBIT: u8 = 8;

// Policy rule flags.
pub(crate) const FIB_RULE_INVERT: u32 = 2;

// Queueing disciplines (linux/pkt_sched.h).
pub(crate) const TCA_KIND: u16 = 1;
pub(crate) const TCA_OPTIONS: u16 = 2;
pub(crate) const TCA_TBF_PARMS: u16 = 1;
pub(crate) const TCA_TBF_RTAB: u16 = 2;
pub(crate) const TCA_TBF_RATE64: u16 = 4;
pub(crate) const TCA_TBF_BURST: u16 = 6;
pub(crate) const TCA_TBF_PBURST: u16 = 7;
pub(crate) const TCA_HTB_PARMS: u16 = 1;
pub(crate) const TCA_HTB_INIT: u16 = 2;
pub(crate) const TCA_HTB_DIRECT_QLEN: u16 = 5;
pub(crate) const TCA_HTB_RATE64: u16 = 6;
pub(crate) const TCA_HTB_CEIL64: u16 = 7;

// Filters and their actions (linux/pkt_cls.h, linux/tc_act/tc_mirred.h).
pub(crate) const TCA_U32_CLASSID: u16 = 1;
pub(crate) const TCA_U32_SEL: u16 = 5;
pub(crate) const TCA_U32_ACT: u16 = 7;
pub(crate) const TC_U32_TERMINAL: u8 = 1;
pub(crate) const TCA_ACT_KIND: u16 = 1;
pub(crate) const TCA_ACT_OPTIONS: u16 = 2;
pub(crate) const TCA_MIRRED_PARMS: u16 = 2;
pub(crate) const TCA_EGRESS_REDIR: u32 = 1;
pub(crate) const TC_ACT_STOLEN: u32 = 4;

// Handles and parents of queueing disciplines.
pub(crate) const TC_H_ROOT: u32 = 0xffff_ffff;
pub(crate) const TC_H_INGRESS: u32 = 0xffff_fff1;
pub(crate) const TC_H_CLSACT: u32 = 0xffff_fff1;

// Network namespace ids (linux/net_namespace.h).
pub(crate) const NETNSA_NSID: u16 = 1;
pub(crate) const NETNSA_FD: u16 = 3;

// Multicast groups.
pub(crate) const RTNLGRP_LINK: u32 = 1;
pub(crate) const RTNLGRP_NEIGH: u32 = 3;
pub(crate) const RTNLGRP_TC: u32 = 4;
pub(crate) const RTNLGRP_IPV4_IFADDR: u32 = 5;
pub(crate) const RTNLGRP_IPV4_ROUTE: u32 = 7;
pub(crate) const RTNLGRP_IPV4_RULE: u32 = 8;
pub(crate) const RTNLGRP_IPV6_IFADDR: u32 = 9;
pub(crate) const RTNLGRP_IPV6_ROUTE: u32 = 11;
pub(crate) const RTNLGRP_IPV6_RULE: u32 = 19;
pub(crate) const RTNLGRP_IPV4_NETCONF: u32 = 24;
pub(crate) const RTNLGRP_IPV6_NETCONF: u32 = 25;
pub(crate) const RTNLGRP_NSID: u32 = 28;
pub(crate) const NFNLGRP_NFTABLES: u32 = 7;

/// `struct ifreq`, as far as TUNSETIFF reads it and TUNGETIFF writes it.
#[repr(C)]
pub(crate) struct InterfaceRequest {
    name: [u8; 16],
    pub(crate) flags: u16,
    rest: [u8; 22],
}

impl InterfaceRequest {
    /// One for a link; `None` when the name is too long for a link's.
    pub(crate) fn new(name: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        // The last byte stays zero.
        bytes[..15].get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        Some(Self { name: bytes, flags: 0, rest: [0; 22] })
    }

    /// One that the kernel is to fill in.
    pub(crate) fn empty() -> Self {
        Self { name: [0; 16], flags: 0, rest: [0; 22] }
    }

    /// The link's name.
    pub(crate) fn name(&self) -> String {
        let name = self.name.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(name).into_owned()
    }
}
