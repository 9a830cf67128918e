//! The host names that registrations hold, what they resolve to, and which znodes ask.
//!
//! It refuses to resolve. Invariants: a name is wanted as long as a znode asks for it, and begins with what
//! others know of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use imbl::{OrdMap, OrdSet};

use crate::registry::registration::{Decoded, Host};

/// What a name resolves to: addresses in their order, or why there are none.
pub type Resolution = Result<Vec<IpAddr>, String>;

#[derive(Debug, Default)]
pub(super) struct Names {
    asked: BTreeMap<Arc<str>, Name>,
    wanted: OrdSet<Arc<str>>,
    /// What others know, also of names that no znode asks for.
    known: OrdMap<Arc<str>, Resolution>,
}

#[derive(Debug, Default)]
struct Name {
    resolution: Option<Resolution>,
    znodes: BTreeSet<Arc<str>>,
}

impl Names {
    /// `None` as long as nothing is known.
    pub fn addresses(&self, name: &str) -> Option<&Resolution> {
        match self.asked.get(name) {
            Some(wanted) => wanted.resolution.as_ref(),
            None => self.known.get(name),
        }
    }

    pub fn knows(&mut self, known: OrdMap<Arc<str>, Resolution>) {
        self.known = known;
    }

    pub fn wanted(&self) -> OrdSet<Arc<str>> {
        self.wanted.clone()
    }

    /// How many of them nobody looked up yet.
    pub fn unknown(&self) -> usize {
        let unknown = |name: &&Name| name.resolution.is_none();
        self.asked.values().filter(unknown).count()
    }

    /// The znodes that ask for the name. `None` if what it resolves to is not news to anybody.
    pub fn resolve(&mut self, name: &str, resolution: Resolution) -> Option<Vec<Arc<str>>> {
        let known = self.asked.get_mut(name)?;
        if known.resolution.as_ref() == Some(&resolution) {
            return None;
        }
        known.resolution = Some(resolution);
        Some(known.znodes.iter().cloned().collect())
    }

    /// A znode asks for the hosts of `after`, no more for those of `before`.
    pub fn want(&mut self, znode: &Arc<str>, before: &[Decoded], after: &[Decoded]) {
        for name in names_of(after) {
            let wanted = self.asked.entry(Arc::clone(name)).or_insert_with(|| Name {
                resolution: self.known.get(name).cloned(),
                ..Name::default()
            });
            wanted.znodes.insert(Arc::clone(znode));
            self.wanted.insert(Arc::clone(name));
        }
        for name in names_of(before).filter(|name| !names_of(after).any(|n| n == *name)) {
            let Some(known) = self.asked.get_mut(name) else {
                continue;
            };
            known.znodes.remove(znode);
            if known.znodes.is_empty() {
                self.asked.remove(name);
                self.wanted.remove(name);
            }
        }
    }
}

fn names_of(instances: &[Decoded]) -> impl Iterator<Item = &Arc<str>> {
    instances.iter().filter_map(|decoded| match &decoded.host {
        Host::Name(name) => Some(name),
        Host::Ip(_) => None,
    })
}
