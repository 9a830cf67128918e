//! The instances of a service by address and port.
//!
//! It refuses to know what an instance is beyond its address. Copies of a service live side by side
//! (who reads one keeps it while the next is made), so a large one shares what did not change: an
//! instance that changes costs about the logarithm of how many there are. Most services have a few
//! instances, for which a list is the smallest form and copied fast enough.
//! Invariant: each `address:port` once, in this order; equal instances are equal values, whatever the
//! form and the history.

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc};

use imbl::{OrdMap, ordmap::DiffItem};

use super::Instance;

/// What tells the instances of a service apart.
pub type Socket = (IpAddr, u16);

/// The longest list; a tree that has shrunk to half of it is a list again.
const FEW: usize = 128;

#[derive(Clone)]
pub struct Instances(Form);

#[derive(Clone)]
enum Form {
    Few(Vec<Arc<Instance>>),
    Many(OrdMap<Socket, Arc<Instance>>),
}

impl Instances {
    pub fn len(&self) -> usize {
        match &self.0 {
            Form::Few(list) => list.len(),
            Form::Many(tree) => tree.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether they are so many that a change should not cost all of them.
    pub fn are_many(&self) -> bool {
        matches!(self.0, Form::Many(_))
    }

    /// By address, then port.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<Instance>> {
        let (list, tree) = match &self.0 {
            Form::Few(list) => (&list[..], None),
            Form::Many(tree) => (&[][..], Some(tree)),
        };
        list.iter().chain(tree.into_iter().flat_map(OrdMap::values))
    }

    pub fn get(&self, socket: Socket) -> Option<&Arc<Instance>> {
        match &self.0 {
            Form::Few(list) => find(list, socket).ok().map(|at| &list[at]),
            Form::Many(tree) => tree.get(&socket),
        }
    }

    /// Adds the instance, or replaces the one of its address and port.
    pub fn put(&mut self, instance: Arc<Instance>) {
        let socket = instance.socket();
        match &mut self.0 {
            Form::Few(list) => match find(list, socket) {
                Ok(at) => list[at] = instance,
                Err(at) if list.len() < FEW => {
                    list.reserve_exact(1);
                    list.insert(at, instance);
                }
                Err(_) => {
                    let tree = list.drain(..).chain([instance]);
                    self.0 = Form::Many(tree.map(|i| (i.socket(), i)).collect());
                }
            },
            Form::Many(tree) => drop(tree.insert(socket, instance)),
        }
    }

    /// Where these and others are not the same value. Of many it costs about what differs.
    pub fn differences(&self, other: &Self) -> BTreeSet<Socket> {
        if let (Form::Many(mine), Form::Many(theirs)) = (&self.0, &other.0) {
            let socket = |item| match item {
                DiffItem::Add(socket, _)
                | DiffItem::Remove(socket, _)
                | DiffItem::Update {
                    new: (socket, _), ..
                } => *socket,
            };
            return mine.diff(theirs).map(socket).collect();
        }
        let both = self.iter().chain(other.iter()).map(|i| i.socket());
        both.filter(|socket| self.get(*socket) != other.get(*socket))
            .collect()
    }

    pub fn remove(&mut self, socket: Socket) {
        match &mut self.0 {
            Form::Few(list) => {
                if let Ok(at) = find(list, socket) {
                    list.remove(at);
                }
            }
            Form::Many(tree) => {
                tree.remove(&socket);
                if tree.len() <= FEW / 2 {
                    self.0 = Form::Few(tree.values().cloned().collect());
                }
            }
        }
    }
}

fn find(list: &[Arc<Instance>], socket: Socket) -> Result<usize, usize> {
    list.binary_search_by_key(&socket, |instance| instance.socket())
}

impl Default for Instances {
    fn default() -> Self {
        Self(Form::Few(Vec::new()))
    }
}

impl PartialEq for Instances {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Instances {}

impl fmt::Debug for Instances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Of several with one address and port the last counts.
impl FromIterator<Arc<Instance>> for Instances {
    fn from_iter<I: IntoIterator<Item = Arc<Instance>>>(instances: I) -> Self {
        let mut list: Vec<_> = instances.into_iter().collect();
        // Stable, so that the later one is last.
        list.sort_by_key(|instance| instance.socket());
        list.dedup_by(|later, kept| {
            let same = later.socket() == kept.socket();
            if same {
                std::mem::swap(later, kept);
            }
            same
        });
        if list.len() <= FEW {
            list.shrink_to_fit();
            return Self(Form::Few(list));
        }
        Self(Form::Many(
            list.into_iter().map(|i| (i.socket(), i)).collect(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::model::{Health, Metadata, Origin, Weight};

    fn instance(port: u16, weight: u32) -> Arc<Instance> {
        Arc::new(Instance {
            own_id: None,
            address: IpAddr::from([10, 0, 0, 1]),
            port,
            weight: Weight::new(weight).unwrap(),
            zone: None,
            health: Health::Healthy,
            priority: 0,
            metadata: Metadata::default(),
            origin: Origin::default(),
        })
    }

    proptest! {
        #[test]
        fn they_are_the_map_that_they_stand_for_in_either_form(
            steps in prop::collection::vec((1..300u16, prop::option::weighted(0.6, 0..9u32)), 0..700),
        ) {
            let mut instances = Instances::default();
            let mut model = BTreeMap::new();
            for (port, weight) in steps {
                if let Some(weight) = weight {
                    instances.put(instance(port, weight));
                    model.insert(port, weight);
                } else {
                    instances.remove((IpAddr::from([10, 0, 0, 1]), port));
                    model.remove(&port);
                }
                prop_assert_eq!(instances.len(), model.len());
                let told = instances.get((IpAddr::from([10, 0, 0, 1]), port));
                prop_assert_eq!(told.map(|i| i.weight.get()), model.get(&port).copied());
            }
            let all: Vec<_> = instances.iter().map(|i| (i.port, i.weight.get())).collect();
            prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
            // Everything twice and backwards: neither order nor repetition count.
            let all: Vec<_> = instances.iter().cloned().collect();
            let anew: Instances = all.iter().rev().chain(&all).cloned().collect();
            prop_assert_eq!(&anew, &instances);
        }
    }

    proptest! {
        #[test]
        fn differences_are_where_two_are_not_the_same(
            all in prop::collection::btree_map(1..300u16, 0..9u32, 0..300),
            steps in prop::collection::vec((1..300u16, prop::option::of(0..9u32)), 0..20),
        ) {
            let before: Instances = all.iter().map(|(port, weight)| instance(*port, *weight)).collect();
            let (mut after, mut model) = (before.clone(), all.clone());
            for (port, weight) in steps {
                if let Some(weight) = weight {
                    after.put(instance(port, weight));
                    model.insert(port, weight);
                } else {
                    after.remove((IpAddr::from([10, 0, 0, 1]), port));
                    model.remove(&port);
                }
            }
            let told: Vec<u16> = before.differences(&after).into_iter().map(|(_, port)| port).collect();
            let differ = |port: &u16| all.get(port) != model.get(port);
            let expected: Vec<u16> = (1..300).filter(differ).collect();
            prop_assert_eq!(told, expected);
        }
    }

    #[test]
    fn of_two_with_one_address_the_later_counts() {
        let instances: Instances = [instance(1, 5), instance(2, 6), instance(1, 7)]
            .into_iter()
            .collect();
        let all: Vec<_> = instances.iter().map(|i| (i.port, i.weight.get())).collect();
        assert_eq!(all, [(1, 7), (2, 6)]);
    }
}
