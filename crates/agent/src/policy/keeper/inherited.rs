//! Connections that a new pod would inherit with its address.
//!
//! Read [`Inherited::is_clean`]. What the kernel tracks passes whatever the rules say, so what it still tracks of a pod that is
//! gone would be the next one's that gets its address. Going through all that is tracked takes tens of milliseconds, which
//! no ADD should wait for: so addresses are remembered that may have something, they are cleaned when their pod goes, and
//! only a pod that gets one before that waits.
//!
//! What stays true: an address that was in no tracked connection when the agent started, and that no pod has had since, is
//! clean; so is one of which everything was forgotten after its last pod had gone.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::mpsc::Sender;

use super::super::sweep::Wanted;

/// Which addresses may have connections of before.
#[derive(Debug)]
pub(super) struct Inherited {
    sweeper: Sender<Wanted>,
    /// Those of the connections that there were at the start; `None` until they are known.
    tracked: Option<HashSet<IpAddr>>,
    /// For which attachment an address was found clean.
    holders: HashMap<IpAddr, String>,
    /// Those that are being cleaned.
    asked: HashSet<IpAddr>,
}

impl Inherited {
    pub(super) fn new(sweeper: Sender<Wanted>) -> Self {
        Self { sweeper, tracked: None, holders: HashMap::new(), asked: HashSet::new() }
    }

    /// These addresses were in tracked connections at the start.
    pub(super) fn begin(&mut self, tracked: HashSet<IpAddr>) {
        self.tracked = Some(tracked);
    }

    /// Whether a new attachment's addresses have nothing of before. What has is cleaned.
    pub(super) fn is_clean(&mut self, attachment: &str, addresses: &[IpAddr]) -> bool {
        let mut clean = true;
        for address in addresses {
            if self.asked.contains(address) {
                clean = false;
                continue;
            }
            match (self.holders.get(address), &self.tracked) {
                (Some(holder), _) if holder == attachment => {}
                (None, Some(tracked)) if !tracked.contains(address) => {
                    self.holders.insert(*address, attachment.to_owned());
                }
                (None, None) => clean = false,
                _ => {
                    self.clean(*address);
                    clean = false;
                }
            }
        }
        clean
    }

    /// An attachment with these addresses is gone.
    pub(super) fn leave(&mut self, attachment: &str, addresses: &[IpAddr]) {
        for address in addresses {
            if self.holders.get(address).is_none_or(|holder| holder == attachment) {
                self.clean(*address);
            }
        }
    }

    /// Everything that was tracked of these has been forgotten.
    pub(super) fn forgotten(&mut self, addresses: &[IpAddr]) {
        for address in addresses {
            self.asked.remove(address);
            self.holders.remove(address);
            self.tracked.as_mut().map(|tracked| tracked.remove(address));
        }
    }

    fn clean(&mut self, address: IpAddr) {
        if self.asked.insert(address) {
            // Without that thread nothing is cut either, and nobody is let in on a doubtful address.
            let _ = self.sweeper.send(Wanted::Forget(address));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn an_address_is_clean_once_all_of_before_was_forgotten_and_no_sooner() {
        let (sweeper, asked) = mpsc::channel();
        let asked = || asked.try_iter().map(|wanted| format!("{wanted:?}")).collect::<Vec<_>>();
        let [first, second] = [2, 3].map(|last| IpAddr::from([10, 244, 0, last]));
        let mut inherited = Inherited::new(sweeper);
        assert!(!inherited.is_clean("a", &[first]), "nobody knows yet");
        inherited.begin(HashSet::from([second]));
        assert!(inherited.is_clean("a", &[first]) && asked().is_empty());
        assert!(inherited.is_clean("a", &[first]), "asked again");
        // One that had something before the agent started.
        assert!(!inherited.is_clean("b", &[second]) && !inherited.is_clean("b", &[second]));
        assert_eq!(asked(), ["Forget(10.244.0.3)"]);
        inherited.forgotten(&[second]);
        assert!(inherited.is_clean("b", &[second]));
        // One whose pod goes; and one that is given away before anybody has heard of that.
        inherited.leave("a", &[first]);
        assert_eq!(asked(), ["Forget(10.244.0.2)"]);
        assert!(!inherited.is_clean("c", &[first, second]));
        assert_eq!(asked(), ["Forget(10.244.0.3)"], "the other one is asked for already");
        inherited.forgotten(&[first]);
        assert!(!inherited.is_clean("c", &[first, second]));
        inherited.forgotten(&[second]);
        assert!(inherited.is_clean("c", &[first, second]));
    }
}
