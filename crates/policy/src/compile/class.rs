//! Classes of local pods: the numbers by which the table leads a pod's packets to the chain that decides for it.
//!
//! Read [`Classes`]. A class is made from its chain's name, so that a restarted agent finds the classes that the kernel has;
//! where two names make the same, the later one takes the next that is free.
//!
//! What stays true: a class is a multiple of 16 and not 0, as `frame` needs it; no two chains have the same.

use std::collections::HashSet;

use netstate::nft::Rule;

/// The number of a chain that pods are led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Class(pub(crate) u32);

/// The distance between two classes.
const STEP: u32 = 16;

/// Those in use.
#[derive(Debug, Clone, Default)]
pub(crate) struct Classes(HashSet<Class>);

impl Classes {
    /// A class for the chain of that name, which nobody has until it is released.
    pub(crate) fn acquire(&mut self, chain: &str) -> Class {
        let mut number = Rule::digest_of(chain) as u32 & !(STEP - 1);
        // There are a hundred million, and a node has a few hundred chains.
        while number == 0 || !self.0.insert(Class(number)) {
            number = number.wrapping_add(STEP);
        }
        Class(number)
    }

    /// Gives a class back.
    pub(crate) fn release(&mut self, class: Class) {
        self.0.remove(&class);
    }
}

#[cfg(test)]
mod tests {
    use super::{Class, Classes};

    #[test]
    fn two_chains_never_have_one_class_and_a_restart_finds_the_same() {
        let mut classes = Classes::default();
        let first = classes.acquire("egress-pod-1");
        assert_eq!(Classes::default().acquire("egress-pod-1"), first);
        assert!(first.0 != 0 && first.0 % 16 == 0);
        let beside = classes.acquire("egress-pod-1");
        assert_eq!(beside, Class(first.0.wrapping_add(16)), "the name is taken, so it gets the next");
        classes.release(first);
        assert_eq!(classes.acquire("egress-pod-1"), first);
    }
}
