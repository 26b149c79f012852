//! Whose a kernel object is, and the names and marks that say so.
//!
//! Read [`Owner`] first. Everything the plugins leave in the host's kernel is keyed by the network, the
//! container and the interface name together: the container alone is not enough, for it may join one network
//! twice. The names are pure functions of those three, so DEL finds what ADD made with the pod's namespace
//! gone, and GC tells ours from foreign by looking at the object alone.
//!
//! What stays true: two attachments never share an alias or an owner text, however long their parts are.

use cni::{Attachment, Request};
use kernel::link::{Kind, Link};
use sha2::{Digest, Sha256, Sha512};

/// The kernel keeps at most 255 bytes of a link's alias and 253 of an element's comment; stay below both.
const LONGEST: usize = 240;

/// What opens the alias of every host link made for a pod.
const MARK: &str = "fairlead:";

/// How many names are tried for a cable when foreign links have the first ones.
pub(crate) const CABLE_NAMES: u8 = 4;

pub(crate) use netstate::BRIDGE_ALIAS;

/// The alias of both ends of the pair that carries a VLAN's gateway address.
pub(crate) const VLAN_GATEWAY_ALIAS: &str = "fairlead-vlan-gateway";

/// One interface of one container in one network: the key of all that ADD makes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Owner {
    network: String,
    attachment: Attachment,
}

impl Owner {
    /// The attachment in its network.
    pub(crate) fn new(network: &str, attachment: Attachment) -> Self {
        Self { network: network.to_owned(), attachment }
    }

    /// Whom an ADD, DEL or CHECK is about.
    pub(crate) fn of(request: &Request) -> Self {
        Self::new(&request.config.name, request.attachment())
    }

    /// Those whom a GC keeps.
    pub(crate) fn valid(request: &Request) -> Vec<Self> {
        let attachments = request.valid_attachments().iter();
        attachments.map(|attachment| Self::new(&request.config.name, attachment.clone())).collect()
    }

    /// The network's name.
    pub(crate) fn network(&self) -> &str {
        &self.network
    }

    /// The container's id.
    pub(crate) fn container_id(&self) -> &str {
        &self.attachment.container_id
    }

    /// The interface's name in the container.
    pub(crate) fn ifname(&self) -> &str {
        &self.attachment.ifname
    }

    /// The alias of the host's link: `fairlead:<network>/<containerID>/<ifname>`, with a digest standing in
    /// for a part that would not fit.
    pub(crate) fn alias(&self) -> String {
        format!("{}{}", Self::alias_prefix(&self.network), self.comment())
    }

    /// How the alias of every link of `network` begins.
    pub(crate) fn alias_prefix(network: &str) -> String {
        format!("{MARK}{}/", shortened(network, 64))
    }

    /// Whether `alias` says that the link is some pod's.
    pub(crate) fn marks(alias: &str) -> bool {
        alias.starts_with(MARK)
    }

    /// Whether an alias is of an attachment of this container, this one or another.
    pub(crate) fn is_of_the_container(&self, alias: &str) -> bool {
        fn container(alias: &str) -> Option<&str> {
            alias.strip_prefix(MARK)?.split('/').nth(1)
        }
        container(alias).is_some_and(|found| container(&self.alias()) == Some(found))
    }

    /// The alias of a link of `network` whose owner was not known when it was to be deleted.
    pub(crate) fn stale_alias(network: &str) -> String {
        format!("{}~", Self::alias_prefix(network))
    }

    /// The group number of a network's links: they are in it from their first moment on, when they cannot have
    /// an alias yet. Its first byte is odd, so it is never 0, where all other links are.
    pub(crate) fn group(network: &str) -> u32 {
        let digest = Sha256::digest(network.as_bytes());
        let [first, second, third, fourth, ..] = *digest else { return 1 };
        u32::from_be_bytes([first | 1, second, third, fourth])
    }

    /// Whether a link with one of [`Self::link_names`] is this attachment's: by its mark, or, if it has none
    /// yet, by its network's group. An IFB that the reference's bandwidth plugin made has neither, but its name
    /// is made of network and container.
    pub(crate) fn owns(&self, link: &Link) -> bool {
        match &link.alias {
            Some(alias) => *alias == self.alias() || *alias == Self::stale_alias(&self.network),
            None => match &link.kind {
                Kind::Veth => link.group == Self::group(&self.network),
                Kind::Other(kind) if kind == "ifb" => {
                    link.group == Self::group(&self.network) || link.name == self.shaping_link_names()[0]
                }
                _ => false,
            },
        }
    }

    /// The names that the host's links of this attachment can have.
    pub(crate) fn link_names(&self) -> Vec<String> {
        let cables = (0..CABLE_NAMES).map(|attempt| self.host_link_name(attempt));
        cables.chain(self.shaping_link_names()).collect()
    }

    /// The names of the IFB through which the attachment's traffic is shaped. The first is the reference's,
    /// which leaves out the interface; the second is for when another attachment of the container has that.
    pub(crate) fn shaping_link_names(&self) -> [String; 2] {
        let Attachment { container_id, ifname } = &self.attachment;
        let texts =
            [format!("{}{container_id}", self.network), format!("{}/{container_id}/{ifname}", self.network)];
        texts.map(|text| format!("bwp{}", hexadecimal(&Sha512::digest(text.as_bytes())[..6])))
    }

    /// The text that marks this attachment's nf_tables elements, within one network: `<containerID>/<ifname>`.
    pub(crate) fn comment(&self) -> String {
        format!(
            "{}/{}",
            shortened(&self.attachment.container_id, LONGEST - 64 - MARK.len() - 20),
            self.attachment.ifname
        )
    }

    /// The host link's name: `veth` and eight hexadecimal digits. `attempt` 0 is the one to use; later ones
    /// are for when a foreign link already has the name.
    pub(crate) fn host_link_name(&self, attempt: u8) -> String {
        let mut digest = Sha256::new();
        for part in [&self.network, &self.attachment.container_id, &self.attachment.ifname] {
            digest.update(part.as_bytes());
            digest.update(b"/");
        }
        if attempt > 0 {
            digest.update([attempt]);
        }
        format!("veth{}", hexadecimal(&digest.finalize()[..4]))
    }
}

/// `text` itself when it fits, otherwise a digest of it that cannot be mistaken for a valid name.
pub(crate) fn shortened(text: &str, longest: usize) -> String {
    if text.len() <= longest {
        return text.to_owned();
    }
    format!("~{}", hexadecimal(&Sha256::digest(text.as_bytes())[..16]))
}

/// Lower-case hexadecimal digits.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]).map(|digit| DIGITS[usize::from(digit)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(network: &str, container_id: &str, ifname: &str) -> Owner {
        Owner::new(network, Attachment { container_id: container_id.into(), ifname: ifname.into() })
    }

    #[test]
    fn the_name_is_the_same_every_time_and_fits_a_link() {
        let pod = owner("net", "container", "eth0");
        assert_eq!(pod.host_link_name(0), pod.clone().host_link_name(0));
        assert_ne!(pod.host_link_name(0), pod.host_link_name(1));
        assert_eq!(pod.host_link_name(0).len(), 12);
    }

    #[test]
    fn the_agent_knows_the_group_of_its_network() {
        assert_eq!(Owner::group("fairlead"), netstate::POD_LINK_GROUP);
    }

    #[test]
    fn every_part_changes_the_name_and_moving_a_letter_between_parts_does_too() {
        let names = [("ab", "c", "d"), ("a", "bc", "d"), ("a", "b", "cd"), ("a", "b", "d")]
            .map(|(network, container, interface)| owner(network, container, interface).host_link_name(0));
        for (index, name) in names.iter().enumerate() {
            assert!(!names[..index].contains(name), "{name} twice");
        }
    }

    #[test]
    fn the_shaping_link_has_the_references_name_first() {
        let pod = owner("cni-plugin-bandwidth-test", "dummy", "eth0");
        let [first, second] = pod.shaping_link_names();
        assert_eq!(first, "bwpa8eda89404b7");
        assert_ne!(first, second);
        let beside = owner("cni-plugin-bandwidth-test", "dummy", "net1").shaping_link_names();
        assert_eq!(beside[0], first);
        assert_ne!(beside[1], second);
    }

    #[test]
    fn an_alias_shows_its_three_parts() {
        let pod = owner("net", "container", "eth0");
        assert_eq!(pod.alias(), "fairlead:net/container/eth0");
        assert!(pod.alias().starts_with(&Owner::alias_prefix("net")));
        assert!(!pod.alias().starts_with(&Owner::alias_prefix("ne")));
    }

    #[test]
    fn attachments_of_one_container_know_each_other_in_every_network() {
        let pod = owner("net", "container", "eth0");
        for (network, ifname) in [("net", "eth0"), ("net", "net1"), ("other", "eth0")] {
            assert!(pod.is_of_the_container(&owner(network, "container", ifname).alias()));
        }
        for other in ["", "fairlead:net", &owner("net", "containe", "eth0").alias(), "net/container/eth0"] {
            assert!(!pod.is_of_the_container(other), "{other}");
        }
        let long = owner("net", &"x".repeat(400), "eth0");
        assert!(long.is_of_the_container(&owner("two", &"x".repeat(400), "eth1").alias()));
        assert!(!long.is_of_the_container(&owner("net", &"x".repeat(401), "eth0").alias()));
    }

    #[test]
    fn long_parts_keep_the_alias_within_the_kernels_limit_and_distinct() {
        let long = |tail: &str| format!("{}{tail}", "x".repeat(400));
        let first = owner(&long("1"), &long("a"), "eth0123456789ab");
        let second = owner(&long("1"), &long("b"), "eth0123456789ab");
        let third = owner(&long("2"), &long("a"), "eth0123456789ab");
        assert!(first.alias().len() < LONGEST, "{}", first.alias().len());
        assert_ne!(first.alias(), second.alias());
        assert_ne!(first.alias(), third.alias());
    }
}
