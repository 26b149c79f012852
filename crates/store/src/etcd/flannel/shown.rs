//! Which keys of flannel's show which of its nodes.
//!
//! Read [`Shown::set`] and [`Shown::gone`]. A node is called after its IPv4 subnet, so `10.244.5.0-24` and
//! `10.244.5.0-24&fd00:5::-64` are both about `flannel-10.244.5.0-24`; a node that was given a second family has both until
//! the older one ends. What is told is the key that says most, and a node is gone with its last key.

use std::collections::BTreeMap;

use cluster::Key;

use crate::mirror::{Delta, Item};

/// What each key shows, by the objects that it may stand for.
#[derive(Debug, Default)]
pub(crate) struct Shown(BTreeMap<Vec<Key>, BTreeMap<String, Item>>);

impl Shown {
    /// A key holds this, which is about `names`. One that shows nothing, as ours does, is as good as gone.
    pub(crate) fn set(&mut self, key: &str, names: Vec<Key>, item: Item) -> Option<Delta> {
        if item.keys.is_empty() {
            return self.gone(key, names);
        }
        let keys = self.0.entry(names).or_default();
        keys.insert(key.to_owned(), item);
        best(keys).cloned().map(Delta::Set)
    }

    /// A key is gone.
    pub(crate) fn gone(&mut self, key: &str, names: Vec<Key>) -> Option<Delta> {
        let keys = self.0.get_mut(&names)?;
        keys.remove(key)?;
        if let Some(item) = best(keys) {
            return Some(Delta::Set(item.clone()));
        }
        self.0.remove(&names);
        Some(Delta::Gone(names))
    }

    /// What is told of each node.
    pub(crate) fn items(&self) -> impl Iterator<Item = Item> {
        self.0.values().filter_map(best).cloned()
    }
}

/// The one with a node and a lease before one with a node alone; of two alike the one that was written last.
fn best(keys: &BTreeMap<String, Item>) -> Option<&Item> {
    keys.values().max_by_key(|item| (item.objects.len(), item.version.parse::<u64>().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use cluster::{Key, Node};

    use super::{Delta, Item, Shown};

    fn names() -> Vec<Key> {
        vec![Key::Node("flannel-10.244.5.0-24".into()), Key::Lease("flannel-10.244.5.0-24".into())]
    }

    /// An item of so many objects.
    fn item(count: usize, version: u32) -> Item {
        let node = Node::named("flannel-10.244.5.0-24");
        let (objects, version) = (vec![node.into(); count], version.to_string());
        Item { keys: names(), objects, faults: Vec::new(), uid: String::new(), version }
    }

    #[test]
    fn a_node_is_told_by_the_key_that_says_most_and_gone_with_its_last_one() {
        let mut shown = Shown::default();
        let told = |delta: Option<Delta>| match delta {
            Some(Delta::Set(item)) => Some(item),
            other => panic!("{other:?}"),
        };
        let (old, new, place) = (item(2, 3), item(2, 20), item(1, 30));
        assert_eq!(told(shown.set("10.244.5.0-24", names(), old.clone())), Some(old.clone()));
        assert_eq!(told(shown.set("10.244.5.0-24&fd00:5::-64", names(), new.clone())), Some(new.clone()));
        assert_eq!(told(shown.set("10.244.5.0-24&fd00:6::-64", names(), place.clone())), Some(new.clone()));
        assert_eq!(shown.items().collect::<Vec<_>>(), [new]);
        assert_eq!(told(shown.gone("10.244.5.0-24&fd00:5::-64", names())), Some(old));
        // Ours takes the place of flannel's, and shows nothing.
        let ours = Item { keys: Vec::new(), objects: Vec::new(), ..item(0, 40) };
        assert_eq!(told(shown.set("10.244.5.0-24", names(), ours.clone())), Some(place));
        assert!(shown.set("10.244.5.0-24", names(), ours).is_none(), "it showed nothing before");
        let last = shown.gone("10.244.5.0-24&fd00:6::-64", names());
        assert!(matches!(last, Some(Delta::Gone(gone)) if gone == names()));
        assert!(shown.gone("10.244.5.0-24&fd00:6::-64", names()).is_none());
        assert_eq!(shown.items().count(), 0);
    }
}
