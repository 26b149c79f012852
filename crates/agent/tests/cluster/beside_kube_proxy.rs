//! Policies beside kube-proxy in the modes that need nothing of the kernel that is not everywhere. What IPVS takes has a
//! suite of its own (`kernel_policies`).

use crate::kube_proxy::beside;

#[test]
fn policies_judge_what_kube_proxy_translates_in_mode_iptables() {
    beside("iptables");
}

#[test]
fn policies_judge_what_kube_proxy_translates_in_mode_nftables() {
    beside("nftables");
}
