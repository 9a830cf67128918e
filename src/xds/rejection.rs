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

use crate::{
    resource::{Resource, Version},
    snapshot::ResourceSet,
};

/// Between the first rejection and the next offer; doubles with each further rejection.
pub const FIRST_PAUSE: Duration = Duration::from_secs(5);
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
        }
    }

    /// The client no longer has to accept it: it was removed, or is not subscribed.
    pub fn forget(&mut self, name: &str) {
        self.unaccepted.remove(name);
    }

    pub fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.unaccepted.retain(|name| wanted(name));
    }

    /// Whether the client still does not have what it rejected.
    pub fn lacks_some(&self) -> bool {
        !self.unaccepted.is_empty()
    }

    /// The names to offer again: those that are what was rejected.
    pub fn take(&mut self, set: &ResourceSet) -> impl Iterator<Item = Arc<str>> {
        let versions = std::mem::take(&mut self.versions).into_iter();
        versions.filter_map(|(name, version)| {
            let resource = set.get(&name)?;
            (resource.version == version).then_some(name)
        })
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
