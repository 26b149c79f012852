//! Networks as sets: subtraction and union, without overlaps.

use ipnet::IpNet;

/// The networks that make up `cidr` without those in `except`.
pub(crate) fn subtract(cidr: IpNet, except: &[IpNet]) -> Vec<IpNet> {
    if except.iter().any(|taken| taken.contains(&cidr)) {
        return Vec::new();
    }
    let inside: Vec<IpNet> = except.iter().copied().filter(|taken| cidr.contains(taken)).collect();
    if inside.is_empty() {
        return vec![cidr];
    }
    // One of them is smaller, so there are halves.
    let halves = cidr.subnets(cidr.prefix_len().saturating_add(1));
    halves.into_iter().flatten().flat_map(|half| subtract(half, &inside)).collect()
}

/// The same addresses in as few networks as can be, none of which overlap.
pub(crate) fn union(networks: &[IpNet]) -> Vec<IpNet> {
    IpNet::aggregate(&networks.to_vec())
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use ipnet::{IpNet, Ipv4Net};
    use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};

    use super::{subtract, union};

    fn any_network() -> impl Strategy<Value = IpNet> {
        (any::<u8>(), 22..=32_u8).prop_map(|(last, length)| {
            let address = Ipv4Addr::new(10, 0, last & 3, last);
            IpNet::V4(Ipv4Net::new(address, length).unwrap().trunc())
        })
    }

    proptest! {
        #[test]
        fn what_is_left_is_what_was_there_and_not_taken(
            cidr in any_network(),
            except in prop::collection::vec(any_network(), 0..6),
        ) {
            let left = union(&subtract(cidr, &except));
            for number in 0..1024_u32 {
                let address = IpAddr::from(Ipv4Addr::from(0x0a00_0000 + number));
                let wanted = cidr.contains(&address) && !except.iter().any(|taken| taken.contains(&address));
                let holders = left.iter().filter(|network| network.contains(&address)).count();
                prop_assert_eq!(holders, usize::from(wanted), "{}", address);
            }
            prop_assert!(left.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }

    #[test]
    fn everything_without_one_address_is_a_network_for_each_bit() {
        let all = "::/0".parse().unwrap();
        let one = "fd00::1/128".parse().unwrap();
        assert_eq!(subtract(all, &[one]).len(), 128);
        assert_eq!(subtract(one, &[all]), []);
        assert_eq!(subtract(all, &["10.0.0.0/8".parse().unwrap()]), [all]);
    }
}
