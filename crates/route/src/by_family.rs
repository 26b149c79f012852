//! At most one value for each address family, in place: there are thousands of peers, and a map for each would be most of them.

use crate::family::Family;

/// What there is for each family, in the order of [`Family::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByFamily<T> {
    v4: Option<T>,
    v6: Option<T>,
}

impl<T> Default for ByFamily<T> {
    fn default() -> Self {
        Self { v4: None, v6: None }
    }
}

impl<T> ByFamily<T> {
    /// Puts a family's value in, in place of the one before.
    pub fn insert(&mut self, family: Family, value: T) {
        match family {
            Family::V4 => self.v4 = Some(value),
            Family::V6 => self.v6 = Some(value),
        }
    }

    /// That of a family, if there is one.
    #[must_use]
    pub fn get(&self, family: Family) -> Option<&T> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// Each with its family.
    pub fn iter(&self) -> impl Iterator<Item = (Family, &T)> {
        Family::ALL.into_iter().filter_map(|family| Some((family, self.get(family)?)))
    }

    /// All of them.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.v4.iter().chain(&self.v6)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }
}
