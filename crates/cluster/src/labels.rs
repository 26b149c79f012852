//! Labels (and the few annotations we keep): text to text, in key order, packed into one allocation.
//!
//! A sorted slice instead of a map: an object has a handful of them, and there are thousands of objects.

use std::fmt;
use std::sync::Arc;

/// Key and value pairs in key order; a key stands once.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Arc<[(Box<str>, Box<str>)]>);

impl Labels {
    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        let place = self.0.binary_search_by(|(have, _)| have.as_ref().cmp(key)).ok()?;
        self.0.get(place).map(|(_, value)| value.as_ref())
    }

    /// All pairs in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_ref(), value.as_ref()))
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many pairs there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// How many clones share this one allocation.
    pub fn owner_count(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// True if every pair of `wanted` is among these, which is how a Service's selector selects. An empty
    /// `wanted` is contained in everything; whether that means "all" or "none" is the caller's to say.
    pub fn contains_all(&self, wanted: &Self) -> bool {
        wanted.iter().all(|(key, value)| self.get(key) == Some(value))
    }
}

impl<K: Into<Box<str>>, V: Into<Box<str>>> FromIterator<(K, V)> for Labels {
    /// Of a repeated key the last value stays.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut pairs: Vec<(Box<str>, Box<str>)> =
            pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        pairs.reverse();
        pairs.sort_by(|left, right| left.0.cmp(&right.0));
        pairs.dedup_by(|later, earlier| later.0 == earlier.0);
        Self(pairs.into())
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::Labels;

    #[test]
    fn labels_are_found_by_key_and_the_last_of_a_repeated_key_stays() {
        let labels = Labels::from_iter([("tier", "db"), ("app", "old"), ("app", "new")]);
        assert_eq!(labels.get("app"), Some("new"));
        assert_eq!(labels.get("role"), None);
        assert_eq!(labels.iter().collect::<Vec<_>>(), [("app", "new"), ("tier", "db")]);
    }

    #[test]
    fn a_selector_selects_when_all_its_pairs_are_there() {
        let pod = Labels::from_iter([("app", "redis"), ("role", "leader"), ("tier", "backend")]);
        assert!(pod.contains_all(&Labels::from_iter([("app", "redis"), ("role", "leader")])));
        assert!(!pod.contains_all(&Labels::from_iter([("app", "redis"), ("role", "follower")])));
        assert!(pod.contains_all(&Labels::default()));
    }
}
