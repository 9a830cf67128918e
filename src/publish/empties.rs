//! Services without instances: after a while they are no longer rendered, because each costs every sidecar some 60 KB.
//!
//! Pure: the time is an argument. Invariant: a service with an instance is always rendered; one without is rendered for
//! the configured time after it was first seen empty. Each process counts from its own start, as nobody knows since when
//! what it finds empty is empty.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

#[derive(Debug, Default)]
pub struct Empties {
    /// `None` for ever.
    after: Option<Duration>,
    /// The services that are rendered without an instance, each since when.
    since: HashMap<Arc<str>, Instant>,
    /// The same in the order of time.
    queue: BTreeSet<(Instant, Arc<str>)>,
    left_out: BTreeSet<Arc<str>>,
}

impl Empties {
    /// Leaves services out that had no instance for `after`; 0 for never.
    pub fn new(after: Duration) -> Self {
        Self {
            after: (after > Duration::ZERO).then_some(after),
            ..Self::default()
        }
    }

    /// Whether a service of so many instances is rendered; `None` where the service is gone.
    pub fn is_rendered(&mut self, name: &Arc<str>, instances: Option<usize>, now: Instant) -> bool {
        let Some(after) = self.after.filter(|_| instances == Some(0)) else {
            self.forget(name);
            self.left_out.remove(name);
            return true;
        };
        if self.left_out.contains(name) {
            return false;
        }
        let since = *self.since.entry(name.clone()).or_insert_with(|| {
            self.queue.insert((now, name.clone()));
            now
        });
        if now < since + after {
            return true;
        }
        self.forget(name);
        self.left_out.insert(name.clone());
        false
    }

    fn forget(&mut self, name: &Arc<str>) {
        if let Some(since) = self.since.remove(name) {
            self.queue.remove(&(since, name.clone()));
        }
    }

    /// When the next service may have to be left out.
    pub fn due(&self) -> Option<Instant> {
        let (since, _) = self.queue.first()?;
        Some(*since + self.after?)
    }

    /// The services to look at again.
    pub fn expired(&mut self, now: Instant) -> Vec<Arc<str>> {
        let mut expired = Vec::new();
        while self.due().is_some_and(|due| due <= now)
            && let Some((_, name)) = self.queue.pop_first()
        {
            expired.push(name);
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(60);

    #[test]
    fn a_service_is_left_out_once_it_was_empty_for_long_enough_and_returns_with_an_instance() {
        let (mut empties, start, name) = (Empties::new(AFTER), Instant::now(), "a".into());
        let is_rendered = |empties: &mut Empties, instances, now| {
            empties.is_rendered(&name, Some(instances), now)
        };
        assert!(is_rendered(&mut empties, 0, start));
        assert_eq!(empties.due(), Some(start + AFTER));
        assert!(empties.expired(start + AFTER / 2).is_empty());
        assert!(is_rendered(&mut empties, 0, start + AFTER / 2));
        assert_eq!(empties.expired(start + AFTER), ["a".into()]);
        assert!(!is_rendered(&mut empties, 0, start + AFTER));
        assert!(!is_rendered(&mut empties, 0, start + AFTER));
        assert!(is_rendered(&mut empties, 1, start + AFTER));
        let again = start + AFTER * 2;
        assert!(
            is_rendered(&mut empties, 0, again),
            "counted from the start again"
        );
        assert_eq!(empties.due(), Some(again + AFTER));
    }

    #[test]
    fn an_instance_in_between_starts_the_time_again() {
        let (mut empties, start, name) = (Empties::new(AFTER), Instant::now(), "a".into());
        for (seconds, instances) in [(0, 0), (10, 1), (20, 0)] {
            let now = start + Duration::from_secs(seconds);
            assert!(empties.is_rendered(&name, Some(instances), now));
        }
        assert!(empties.expired(start + AFTER).is_empty());
        let later = start + AFTER + Duration::from_secs(20);
        assert_eq!(empties.expired(later), ["a".into()]);
    }

    #[test]
    fn a_time_of_nothing_renders_for_ever() {
        let (mut empties, start, name) = (Empties::new(Duration::ZERO), Instant::now(), "a".into());
        assert!(empties.is_rendered(&name, Some(0), start));
        assert_eq!(empties.due(), None);
        assert!(empties.is_rendered(&name, Some(0), start + AFTER * 1_000));
    }
}
