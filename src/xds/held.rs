//! Removals that are kept back while routes may still need what they remove.
//!
//! It refuses to know what is removed and when routes are done with it (`stream` does). Invariant:
//! nothing is kept for longer than [`HOLD`], each removal by its own clock.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long removed clusters are kept for routes that are not acknowledged.
pub const HOLD: Duration = Duration::from_secs(5);

/// Names that are gone and not told to be, each with what the variant needs to know of it.
#[derive(Debug)]
pub struct Held<T> {
    entries: BTreeMap<Arc<str>, (Instant, T)>,
    /// No entry is older; there may be none of this age any more.
    since: Option<Instant>,
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            since: None,
        }
    }
}

impl<T> Held<T> {
    pub fn keep(&mut self, name: &Arc<str>, what: T, now: Instant) {
        self.entries.insert(name.clone(), (now, what));
        self.since.get_or_insert(now);
    }

    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The name is back, or told to be gone.
    pub fn forget(&mut self, name: &str) {
        self.entries.remove(name);
        self.since = self.since.filter(|_| !self.entries.is_empty());
    }

    pub fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.entries.retain(|name, _| wanted(name));
        self.since = self.since.filter(|_| !self.entries.is_empty());
    }

    /// Gives out what was kept for long enough; without `hold`, which is the time now, everything.
    pub fn release(&mut self, hold: Option<Instant>) -> Vec<Arc<str>> {
        if self
            .deadline()
            .is_none_or(|deadline| hold.is_some_and(|now| now < deadline))
        {
            return Vec::new();
        }
        let due = |since: Instant| hold.is_none_or(|now| now >= since + HOLD);
        let (due, kept) = std::mem::take(&mut self.entries)
            .into_iter()
            .partition(|(_, (since, _))| due(*since));
        self.entries = kept;
        self.since = self.entries.values().map(|(since, _)| *since).min();
        BTreeMap::into_keys(due).collect()
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.entries.values().map(|(_, what)| what)
    }

    /// When something has to be released, or a while before.
    pub fn deadline(&self) -> Option<Instant> {
        self.since.map(|since| since + HOLD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn each_removal_has_its_own_clock() {
        let now = Instant::now();
        let mut held = Held::default();
        held.keep(&"a".into(), (), now);
        held.keep(&"b".into(), (), now + SECOND);
        assert_eq!(held.deadline(), Some(now + HOLD));
        assert!(held.release(Some(now + SECOND)).is_empty());
        assert_eq!(held.release(Some(now + HOLD)), ["a".into()]);
        assert_eq!(held.deadline(), Some(now + HOLD + SECOND));
        assert_eq!(held.release(Some(now + HOLD + SECOND)), ["b".into()]);
        assert_eq!(held.deadline(), None);
    }

    #[test]
    fn without_a_hold_everything_goes_at_once() {
        let now = Instant::now();
        let mut held = Held::default();
        held.keep(&"b".into(), 1, now);
        held.keep(&"a".into(), 2, now + SECOND);
        assert_eq!(held.release(None), ["a".into(), "b".into()]);
        assert_eq!((held.values().count(), held.deadline()), (0, None));
    }

    #[test]
    fn what_is_forgotten_is_never_released() {
        let now = Instant::now();
        let mut held = Held::default();
        for name in ["a", "b", "c"] {
            held.keep(&name.into(), (), now);
        }
        held.forget("b");
        held.retain(|name| name == "c");
        assert!(held.contains("c") && !held.contains("a"));
        assert_eq!(held.release(None), ["c".into()]);
        held.keep(&"d".into(), (), now);
        held.forget("d");
        assert_eq!(held.deadline(), None);
    }
}
