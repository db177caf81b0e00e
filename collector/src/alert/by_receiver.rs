//! A few values by the names of their receivers: most incidents have one, for which a tree would take ten times its bytes.

/// Values by receiver, in order of the names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ByReceiver<T>(Vec<(Box<str>, T)>);

impl<T> Default for ByReceiver<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> ByReceiver<T> {
    /// What there is of a receiver.
    pub(super) fn get(&self, receiver: &str) -> Option<&T> {
        self.place(receiver).ok().map(|at| &self.0[at].1)
    }

    /// Puts a value in the place of the one that is there, which is returned.
    pub(super) fn insert(&mut self, receiver: &str, value: T) -> Option<T> {
        match self.place(receiver) {
            Ok(at) => Some(std::mem::replace(&mut self.0[at].1, value)),
            Err(at) => {
                self.0.reserve_exact(1);
                self.0.insert(at, (receiver.into(), value));
                None
            }
        }
    }

    /// Takes a receiver's value out.
    pub(super) fn remove(&mut self, receiver: &str) -> Option<T> {
        self.place(receiver).ok().map(|at| self.0.remove(at).1)
    }

    /// Whether there is none.
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whose they are.
    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.0.iter().map(|(receiver, it)| (&**receiver, it))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| &**name)
    }

    /// All of them.
    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, value)| value)
    }

    fn place(&self, receiver: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(name, _)| (**name).cmp(receiver))
    }
}

impl<T> IntoIterator for ByReceiver<T> {
    type Item = (Box<str>, T);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_does_as_a_tree_does(steps in prop::collection::vec((0..5_u8, any::<bool>(), any::<u8>()), 0..40)) {
            let (mut ours, mut tree) = (ByReceiver::default(), BTreeMap::new());
            for (name, puts, value) in steps {
                let name = format!("r{name}");
                if puts {
                    prop_assert_eq!(ours.insert(&name, value), tree.insert(name, value));
                } else {
                    prop_assert_eq!(ours.remove(&name), tree.remove(&name));
                }
                prop_assert_eq!(ours.is_empty(), tree.is_empty());
                let all = (0..5).map(|at| format!("r{at}")).collect::<Vec<_>>();
                prop_assert!(all.iter().all(|it| ours.get(it) == tree.get(it)));
            }
            prop_assert!(ours.values().eq(tree.values()));
            prop_assert!(ours.into_iter().map(|(name, value)| (String::from(name), value)).eq(tree));
        }
    }
}
