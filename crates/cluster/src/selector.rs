//! Label selectors: which labels an object must have, or must not.
//!
//! Read [`Selector::matches`]. A selector is a list of requirements that all must hold, so the empty one matches
//! everything. Requirements and their values are kept sorted and once each: two selectors that were written
//! differently and mean the same by the same words are equal. Kubernetes: `metav1.LabelSelector`.

use std::fmt;
use std::sync::Arc;

use crate::Labels;

/// Which labels an object must have; the default one matches every object.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(Option<Arc<[Requirement]>>);

/// One demand on an object's labels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: Box<str>,
    /// What is demanded of its value.
    pub operator: Operator,
    /// The values that the operator speaks of, in order; none for the operators that speak of the key alone.
    pub values: Box<[Box<str>]>,
}

/// What is demanded of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// The label is there and has one of the values.
    In,
    /// The label has none of the values, or is not there.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
}

impl Operator {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::In, Self::NotIn, Self::Exists, Self::DoesNotExist];

    /// As Kubernetes spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::In => "In",
            Self::NotIn => "NotIn",
            Self::Exists => "Exists",
            Self::DoesNotExist => "DoesNotExist",
        }
    }
}

impl Requirement {
    /// The label `key` has the value `value`.
    pub fn equal(key: impl Into<Box<str>>, value: impl Into<Box<str>>) -> Self {
        Self { key: key.into(), operator: Operator::In, values: Box::from([value.into()]) }
    }

    fn holds(&self, labels: &Labels) -> bool {
        let has = |value: &str| self.values.iter().any(|wanted| **wanted == *value);
        match self.operator {
            Operator::In => labels.get(&self.key).is_some_and(has),
            Operator::NotIn => !labels.get(&self.key).is_some_and(has),
            Operator::Exists => labels.get(&self.key).is_some(),
            Operator::DoesNotExist => labels.get(&self.key).is_none(),
        }
    }
}

impl Selector {
    /// Whether an object of these labels is selected.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements().iter().all(|requirement| requirement.holds(labels))
    }

    /// What must hold, in order.
    pub fn requirements(&self) -> &[Requirement] {
        self.0.as_deref().unwrap_or_default()
    }

    /// How many clones share this one allocation; none for the empty one, which has no allocation.
    pub fn owner_count(&self) -> usize {
        self.0.as_ref().map_or(0, Arc::strong_count)
    }

    /// True if it matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements().is_empty()
    }

    /// The key and value of a label that every selected object has, if one can be told from the selector.
    pub fn certain_pair(&self) -> Option<(&str, &str)> {
        self.requirements().iter().find_map(|requirement| {
            match (&*requirement.values, requirement.operator) {
                ([value], Operator::In) => Some((&*requirement.key, &**value)),
                _ => None,
            }
        })
    }
}

impl FromIterator<Requirement> for Selector {
    fn from_iter<I: IntoIterator<Item = Requirement>>(requirements: I) -> Self {
        let mut sorted: Vec<Requirement> = requirements.into_iter().collect();
        for requirement in &mut sorted {
            let mut values = std::mem::take(&mut requirement.values).into_vec();
            values.sort_unstable();
            values.dedup();
            requirement.values = values.into();
        }
        sorted.sort_unstable();
        sorted.dedup();
        Self((!sorted.is_empty()).then(|| sorted.into()))
    }
}

/// As `kubectl get --selector` takes it; `*` for everything.
impl fmt::Display for Selector {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return out.write_str("*");
        }
        for (place, requirement) in self.requirements().iter().enumerate() {
            if place > 0 {
                out.write_str(",")?;
            }
            let Requirement { key, operator, values } = requirement;
            match (operator, &**values) {
                (Operator::In, [value]) => write!(out, "{key}={value}")?,
                (Operator::NotIn, [value]) => write!(out, "{key}!={value}")?,
                (Operator::In, values) => write!(out, "{key} in ({})", values.join(","))?,
                (Operator::NotIn, values) => write!(out, "{key} notin ({})", values.join(","))?,
                (Operator::Exists, _) => out.write_str(key)?,
                (Operator::DoesNotExist, _) => write!(out, "!{key}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

#[cfg(test)]
mod tests {
    use super::{Operator, Requirement, Selector};
    use crate::Labels;

    fn selector(key: &str, operator: Operator, values: &[&str]) -> Selector {
        let values = values.iter().map(|value| Box::from(*value)).collect();
        [Requirement { key: key.into(), operator, values }].into_iter().collect()
    }

    #[test]
    fn a_missing_key_satisfies_not_in_and_does_not_exist_only() {
        let (bare, web) = (Labels::default(), Labels::from_iter([("app", "web")]));
        let matched = |operator, values: &[&str]| {
            let selector = selector("app", operator, values);
            (selector.matches(&bare), selector.matches(&web))
        };
        assert_eq!(matched(Operator::In, &["web", "db"]), (false, true));
        assert_eq!(matched(Operator::NotIn, &["web"]), (true, false));
        assert_eq!(matched(Operator::NotIn, &["db"]), (true, true));
        assert_eq!(matched(Operator::Exists, &[]), (false, true));
        assert_eq!(matched(Operator::DoesNotExist, &[]), (true, false));
        assert!(Selector::default().matches(&bare) && Selector::default().matches(&web));
    }

    #[test]
    fn the_order_in_which_a_selector_was_written_does_not_count() {
        let written = |pairs: [(&str, &str); 2]| -> Selector {
            pairs.into_iter().map(|(key, value)| Requirement::equal(key, value)).collect()
        };
        let one = written([("b", "2"), ("a", "1")]);
        assert_eq!(one, written([("a", "1"), ("b", "2")]));
        assert_eq!(one.to_string(), "a=1,b=2");
        assert_eq!(selector("a", Operator::In, &["y", "x", "y"]).to_string(), "a in (x,y)");
        assert_eq!(one.certain_pair(), Some(("a", "1")));
        assert_eq!(Selector::default().to_string(), "*");
    }
}
