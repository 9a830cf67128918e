//! The host names that all registries ask for, and what each was resolved to.
//!
//! It refuses to resolve. What is known of a name outlives the last registration that asked for it by
//! [`KEPT`], so that one that goes and comes back has its addresses at once: whoever resolves names may
//! have seen neither, and would tell nothing anew. Invariants: a name that was resolved keeps its addresses
//! until it is resolved to others; the union is built anew only where a registry asks for other names.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use imbl::{OrdMap, OrdSet, ordset::DiffItem};

use crate::registry::Resolution;

/// How long a name is known that nobody asks for, in milliseconds: longer than what goes and comes back
/// with a deployment or an outage of ZooKeeper usually takes.
const KEPT: i64 = 10 * 60 * 1000;

/// So many of them at most.
const KEPT_MAX: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct Hosts {
    /// By the place of the registry.
    asked: Vec<OrdSet<Arc<str>>>,
    wanted: OrdSet<Arc<str>>,
    known: OrdMap<Arc<str>, Resolution>,
    /// The known ones that nobody asks for, and since when.
    left: BTreeMap<Arc<str>, i64>,
    oldest: BTreeSet<(i64, Arc<str>)>,
}

impl Hosts {
    /// What a registry asks for at `now`.
    pub fn ask(&mut self, registry: usize, names: OrdSet<Arc<str>>, now: i64) {
        if self.asked.len() <= registry {
            self.asked.resize_with(registry + 1, OrdSet::new);
        }
        if let Some(asked) = self.asked.get_mut(registry)
            && !asked.ptr_eq(&names)
        {
            *asked = names;
            let wanted = self.asked.iter().cloned().reduce(OrdSet::union);
            self.follow(&wanted.unwrap_or_default(), now);
        }
        self.forget(now);
    }

    /// Whether what a name resolves to is news to anybody.
    pub fn learn(&mut self, name: &str, resolution: &Resolution) -> bool {
        let name = match (self.wanted.get(name), self.left.get_key_value(name)) {
            (Some(name), _) | (None, Some((name, _))) => Arc::clone(name),
            (None, None) => return false,
        };
        match self.known.get(&name) {
            Some(known) if known == resolution || (known.is_ok() && resolution.is_err()) => false,
            _ => {
                self.known.insert(name, resolution.clone());
                true
            }
        }
    }

    /// Costs nothing.
    pub fn wanted(&self) -> OrdSet<Arc<str>> {
        self.wanted.clone()
    }

    /// Costs nothing.
    pub fn known(&self) -> OrdMap<Arc<str>, Resolution> {
        self.known.clone()
    }

    fn follow(&mut self, wanted: &OrdSet<Arc<str>>, now: i64) {
        let before = std::mem::replace(&mut self.wanted, wanted.clone());
        for change in before.diff(wanted) {
            match change {
                DiffItem::Add(name) => {
                    if let Some(since) = self.left.remove(name) {
                        self.oldest.remove(&(since, Arc::clone(name)));
                    }
                }
                DiffItem::Remove(name) if self.known.contains_key(name) => {
                    self.left.insert(Arc::clone(name), now);
                    self.oldest.insert((now, Arc::clone(name)));
                }
                DiffItem::Remove(_) => {}
            }
        }
    }

    fn forget(&mut self, now: i64) {
        while let Some((since, _)) = self.oldest.first()
            && (self.oldest.len() > KEPT_MAX || now.saturating_sub(*since) > KEPT)
            && let Some((_, name)) = self.oldest.pop_first()
        {
            self.left.remove(&name);
            self.known.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn names(names: &[&str]) -> OrdSet<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    fn found(n: u8) -> Vec<IpAddr> {
        vec![[10, 0, 0, n].into()]
    }

    #[test]
    fn a_name_is_known_for_some_time_after_the_last_registry_asked_for_it() {
        let mut hosts = Hosts::default();
        hosts.ask(1, names(&["db"]), 0);
        assert!(hosts.learn("db", &Ok(found(1))) && !hosts.learn("db", &Ok(found(1))));
        assert!(!hosts.learn("other", &Ok(found(1))), "nobody asks for it");
        hosts.ask(1, names(&[]), 1_000);
        assert!(hosts.wanted().is_empty());
        assert!(hosts.known().contains_key("db"));
        assert!(
            hosts.learn("db", &Ok(found(2))),
            "it may be on its way still"
        );
        hosts.ask(0, names(&["db"]), KEPT);
        hosts.ask(0, names(&["db"]), 3 * KEPT);
        assert!(hosts.known().contains_key("db"), "it is wanted again");
        hosts.ask(0, names(&[]), 3 * KEPT);
        hosts.ask(0, names(&[]), 4 * KEPT + 1);
        assert!(hosts.known().is_empty() && hosts.left.is_empty());
    }

    #[test]
    fn no_failure_takes_addresses_away_and_every_other_news_counts() {
        let mut hosts = Hosts::default();
        let failed = |why: &str| Err(why.to_owned());
        hosts.ask(0, names(&["db"]), 0);
        assert!(hosts.learn("db", &failed("no such name")));
        assert!(hosts.learn("db", &failed("no server")));
        assert!(hosts.learn("db", &Ok(found(1))) && !hosts.learn("db", &failed("no server")));
        assert_eq!(hosts.known()["db"], Ok(found(1)));
    }

    #[test]
    fn the_union_is_built_anew_only_where_a_registry_asks_for_other_names() {
        let mut hosts = Hosts::default();
        let (a, b) = (names(&["a"]), names(&["a", "b"]));
        hosts.ask(0, a.clone(), 0);
        hosts.ask(1, b, 0);
        let before = hosts.wanted();
        assert_eq!(before, names(&["a", "b"]));
        hosts.ask(0, a, 1);
        assert!(hosts.wanted().ptr_eq(&before));
        hosts.ask(1, names(&[]), 2);
        assert_eq!(hosts.wanted(), names(&["a"]));
    }

    #[test]
    fn names_that_nobody_asks_for_are_bounded() {
        let mut hosts = Hosts::default();
        let all = (0..=KEPT_MAX).map(|n| Arc::from(format!("h{n}")));
        let all: OrdSet<Arc<str>> = all.collect();
        hosts.ask(0, all.clone(), 0);
        assert!(all.iter().all(|name| hosts.learn(name, &Ok(found(1)))));
        hosts.ask(0, names(&[]), 1);
        assert_eq!(hosts.known().len(), KEPT_MAX);
    }
}
