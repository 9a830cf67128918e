//! What a client rejected, and when it is offered again: the cause may lie in the client's surroundings and pass, such
//! as a port that another process holds.
//!
//! Pure: the time is an argument. Invariants: only what was rejected is offered again, so the client's other resources
//! stay as they are; the pauses grow up to [`LONGEST_PAUSE`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::resource::{Resource, Version};

/// Between the first rejection and the next offer; doubles with each further rejection.
pub const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// So many rejected versions are kept of names that are not subscribed.
const SPARE: usize = 1_000;
pub const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The rejections of one type since the client last accepted all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub since: Instant,
    pub count: u32,
    /// The client's reason for the last one.
    pub error: String,
}

impl Rejection {
    pub fn first(error: String, now: Instant) -> Self {
        Self {
            since: now,
            count: 1,
            error,
        }
    }

    pub fn again(&mut self, error: String) {
        self.count = self.count.saturating_add(1);
        self.error = error;
    }

    /// From the last rejection to the next offer.
    pub fn pause(&self) -> Duration {
        let doublings = self.count.saturating_sub(1).min(16);
        (FIRST_PAUSE * (1 << doublings)).min(LONGEST_PAUSE)
    }
}

/// The resources of partial responses that a client rejected.
#[derive(Debug, Default)]
pub struct Refused {
    /// What the unanswered response carries.
    under_way: Vec<Arc<Resource>>,
    /// The last rejected version of each, until it is offered again.
    versions: BTreeMap<Arc<str>, Version>,
    /// Rejected, and no version was accepted since.
    unaccepted: BTreeSet<Arc<str>>,
}

impl Refused {
    pub fn contains(&self, resource: &Resource) -> bool {
        self.versions.get(&resource.name) == Some(&resource.version)
    }

    pub fn sent(&mut self, resource: &Arc<Resource>) {
        self.under_way.push(resource.clone());
    }

    pub fn reject(&mut self) {
        for resource in self.under_way.drain(..) {
            self.versions
                .insert(resource.name.clone(), resource.version);
            self.unaccepted.insert(resource.name.clone());
        }
    }

    /// The client answered, and did not reject what is still under way.
    pub fn accept(&mut self) {
        for resource in std::mem::take(&mut self.under_way) {
            self.unaccepted.remove(&resource.name);
            // It may have been sent again for another reason.
            if self.contains(&resource) {
                self.versions.remove(&resource.name);
            }
        }
    }

    /// The client no longer has to accept it: it was removed, or is not subscribed.
    pub fn forget(&mut self, name: &str) {
        self.unaccepted.remove(name);
    }

    /// Forgets what is not wanted any more. Versions of such names are kept for a client that subscribes again, but
    /// not any number of them.
    pub fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.unaccepted.retain(|name| wanted(name));
        if self.versions.len() > SPARE + 2 * self.unaccepted.len() {
            self.versions.retain(|name, _| wanted(name));
        }
    }

    /// Whether the client still does not have what it rejected.
    pub fn lacks_some(&self) -> bool {
        !self.unaccepted.is_empty()
    }

    /// The names to offer again: those whose present version is the one that was rejected.
    pub fn take(&mut self, present: impl Fn(&str) -> Option<Version>) -> Vec<Arc<str>> {
        let versions = std::mem::take(&mut self.versions).into_iter();
        let unchanged = versions.filter(|(name, version)| present(name) == Some(*version));
        unchanged.map(|(name, _)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_from_five_seconds_to_five_minutes() {
        let mut rejection = Rejection::first("no".into(), Instant::now());
        let mut pauses = vec![rejection.pause().as_secs()];
        for _ in 0..40 {
            rejection.again("no".into());
            pauses.push(rejection.pause().as_secs());
        }
        assert_eq!(pauses[..8], [5, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(pauses.last(), Some(&300));
    }
}
