//! Connections that a new pod would inherit with its address.
//!
//! Read [`Inherited::is_clean`]. What the kernel tracks passes whatever the rules say, so what it still tracks of a pod that is
//! gone would be the next one's that gets its address. Going through all that is tracked takes tens of milliseconds, which
//! no ADD should wait for: so addresses are remembered that may have something, they are cleaned when their pod goes, and
//! only a pod that gets one before that waits.
//!
//! What stays true: an address is clean if it was in no tracked connection when the agent started, and no pod has had it
//! since; or if everything was forgotten after its last pod had gone. What was attached is known before connections are
//! looked at, so who goes afterwards is seen going, though he was never asked about. Only addresses that pods here are
//! likely to get are remembered from that look ([`Tracked`]): any other one is taken to have something until it was cleaned.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::mpsc::Sender;

use super::super::sweep::{Tracked, Wanted};

/// Which addresses may have connections of before.
#[derive(Debug)]
pub(super) struct Inherited {
    sweeper: Sender<Wanted>,
    /// Whether it was asked what is tracked.
    begun: bool,
    /// What there was at the start; `None` until it is known.
    tracked: Option<Tracked>,
    /// Who had an address last, as far as it matters: the attachment for which it was found clean, or who has lost it since.
    holders: HashMap<IpAddr, String>,
    /// Those that are being cleaned.
    asked: HashSet<IpAddr>,
}

impl Inherited {
    pub(super) fn new(sweeper: Sender<Wanted>) -> Self {
        Self { sweeper, begun: false, tracked: None, holders: HashMap::new(), asked: HashSet::new() }
    }

    /// All that is attached is known: from now on nobody goes unseen. Has it looked once what is tracked.
    pub(super) fn see_all(&mut self) {
        if !std::mem::replace(&mut self.begun, true) {
            self.send(Wanted::Tracked);
        }
    }

    /// This was tracked at the start.
    pub(super) fn begin(&mut self, tracked: Tracked) {
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
                (None, Some(tracked)) if !tracked.may_have(address) => {
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

    /// An attachment that had this address is gone.
    pub(super) fn leave(&mut self, attachment: &str, address: IpAddr) {
        if self.holders.get(&address).is_none_or(|holder| holder == attachment) {
            self.clean(address);
        }
    }

    /// An attachment has lost this address to another one, which may have had it for long: nothing is taken from that one.
    pub(super) fn lose(&mut self, attachment: String, address: IpAddr) {
        self.holders.entry(address).or_insert(attachment);
    }

    /// Everything that was tracked of these has been forgotten.
    pub(super) fn forgotten(&mut self, addresses: &[IpAddr]) {
        for address in addresses {
            self.asked.remove(address);
            self.holders.remove(address);
            if let Some(tracked) = &mut self.tracked {
                tracked.forget(*address);
            }
        }
    }

    fn clean(&mut self, address: IpAddr) {
        if self.asked.insert(address) {
            self.send(Wanted::Forget(address));
        }
    }

    fn send(&self, wanted: Wanted) {
        // Without that thread nothing is cut either, and nobody is let in on a doubtful address.
        let _ = self.sweeper.send(wanted);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const POD_CIDR: &str = "10.244.0.0/24";

    #[test]
    fn an_address_is_clean_once_all_of_before_was_forgotten_and_no_sooner() {
        let (sweeper, asked) = mpsc::channel();
        let asked = || asked.try_iter().map(|wanted| format!("{wanted:?}")).collect::<Vec<_>>();
        let [first, second] = [2, 3].map(|last| IpAddr::from([10, 244, 0, last]));
        let mut inherited = Inherited::new(sweeper);
        assert!(!inherited.is_clean("a", &[first]), "nobody knows yet");
        inherited.see_all();
        inherited.see_all();
        assert_eq!(asked(), ["Tracked"], "once");
        inherited.begin(Tracked::new(vec![POD_CIDR.parse().unwrap()], HashSet::from([second])));
        assert!(inherited.is_clean("a", &[first]) && asked().is_empty());
        assert!(inherited.is_clean("a", &[first]), "asked again");
        // One that had something before the agent started.
        assert!(!inherited.is_clean("b", &[second]) && !inherited.is_clean("b", &[second]));
        assert_eq!(asked(), ["Forget(10.244.0.3)"]);
        inherited.forgotten(&[second]);
        assert!(inherited.is_clean("b", &[second]));
        // One whose pod goes; and one that is given away before anybody has heard of that.
        inherited.leave("a", first);
        assert_eq!(asked(), ["Forget(10.244.0.2)"]);
        assert!(!inherited.is_clean("c", &[first, second]));
        assert_eq!(asked(), ["Forget(10.244.0.3)"], "the other one is asked for already");
        inherited.forgotten(&[first]);
        assert!(!inherited.is_clean("c", &[first, second]));
        inherited.forgotten(&[second]);
        assert!(inherited.is_clean("c", &[first, second]));
    }
    #[test]
    fn who_was_attached_before_the_agent_started_has_had_his_address_though_nobody_asked_about_him() {
        let (sweeper, asked) = mpsc::channel();
        let asked = || asked.try_iter().map(|wanted| format!("{wanted:?}")).collect::<Vec<_>>();
        let [first, second] = [2, 3].map(|last| IpAddr::from([10, 244, 0, last]));
        let mut inherited = Inherited::new(sweeper);
        inherited.begin(Tracked::new(vec![POD_CIDR.parse().unwrap()], HashSet::new()));
        // One that goes; and one whose address another one has before anybody has heard of that.
        inherited.leave("before", first);
        inherited.lose("other".to_owned(), second);
        assert_eq!(asked(), ["Forget(10.244.0.2)"], "the other one may have been there for long");
        assert!(!inherited.is_clean("new", &[first, second]));
        assert_eq!(asked(), ["Forget(10.244.0.3)"]);
        // What is heard late changes nothing.
        inherited.lose("other".to_owned(), second);
        inherited.forgotten(&[first, second]);
        assert!(inherited.is_clean("new", &[first, second]));
        inherited.lose("new".to_owned(), first);
        assert!(!inherited.is_clean("next", &[first]));
    }

    #[test]
    fn an_address_that_was_not_looked_for_is_cleaned_before_its_first_pod_has_it_and_no_more() {
        let (sweeper, asked) = mpsc::channel();
        let asked = || asked.try_iter().map(|wanted| format!("{wanted:?}")).collect::<Vec<_>>();
        let elsewhere = IpAddr::from([10, 9, 0, 2]);
        let mut inherited = Inherited::new(sweeper);
        inherited.begin(Tracked::new(vec![POD_CIDR.parse().unwrap()], HashSet::new()));
        assert!(!inherited.is_clean("a", &[elsewhere]));
        assert_eq!(asked(), ["Forget(10.9.0.2)"]);
        inherited.forgotten(&[elsewhere]);
        assert!(inherited.is_clean("a", &[elsewhere]));
        inherited.leave("a", elsewhere);
        inherited.forgotten(&[elsewhere]);
        assert!(inherited.is_clean("b", &[elsewhere]));
    }
}
