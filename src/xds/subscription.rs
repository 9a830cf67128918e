//! What a stream wants of one resource type, and how far into the change log it has been served.
//!
//! It refuses to know how requests spell it (that differs between the two protocol variants) and what
//! the answers look like. Invariant: everything that the stream wants and that changed at or before
//! the cursor has been put into a response.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    resource::{Resource, Stamp},
    snapshot::{Change, Cursor, ResourceSet},
};

/// Names that a stream wants of one type, or all of them.
#[derive(Debug, Default)]
pub struct Subscription {
    pub wildcard: bool,
    /// Asked for by name, beside the wildcard or without it.
    pub names: BTreeSet<Arc<str>>,
    /// Those of the names that are followed because another name may mean them, and that were not
    /// asked for.
    pub followed: BTreeSet<Arc<str>>,
    /// Names that want an answer whatever the cursor says.
    pub pending: BTreeSet<Arc<str>>,
    /// `None` until the first answer was put together.
    pub cursor: Option<Cursor>,
}

impl Subscription {
    /// How many names are subscribed, the wildcard counting as one.
    pub fn len(&self) -> usize {
        self.names.len() - self.followed.len() + usize::from(self.wildcard)
    }

    /// The names that were asked for.
    pub fn asked(&self) -> impl Iterator<Item = &Arc<str>> {
        self.names
            .iter()
            .filter(|name| !self.followed.contains(&***name))
    }

    pub fn has_asked(&self, name: &str) -> bool {
        self.names.contains(name) && !self.followed.contains(name)
    }

    /// Has a name that is subscribed share its text with the resource, and so with other streams.
    pub fn share(&mut self, resource: &Resource) {
        if self.names.contains(&resource.name) {
            self.names.replace(resource.name.clone());
        }
    }

    pub fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// The cursor that the next answer starts from. Names are answered through `pending`, so that a
    /// stream without a wildcard need not walk what was there before it.
    pub fn start(&self, set: &ResourceSet) -> Cursor {
        self.cursor
            .unwrap_or(if self.wildcard { 0 } else { set.latest() })
    }

    /// What this stream wants and has not seen, oldest change first. Costs what changed or what is
    /// wanted, whichever is less.
    pub fn changes<'a>(
        &'a self,
        set: &'a ResourceSet,
        cursor: Cursor,
    ) -> Box<dyn Iterator<Item = Change<'a>> + 'a> {
        let changed = usize::try_from(set.latest() - cursor).unwrap_or(usize::MAX);
        if self.wildcard {
            return Box::new(set.since(cursor));
        }
        if changed <= self.names.len() {
            return Box::new(
                set.since(cursor)
                    .filter(|c| self.names.contains(&c.resource.name)),
            );
        }
        let mut told: Vec<_> = self
            .names
            .iter()
            .filter_map(|name| set.change(name, cursor))
            .collect();
        told.sort_unstable_by_key(|change| change.at);
        Box::new(told.into_iter())
    }

    /// Whether the walk from the cursor will tell of this name, so that nothing else needs to.
    pub fn will_tell(&self, set: &ResourceSet, cursor: Cursor, name: &str) -> bool {
        self.wants(name) && set.change(name, cursor).is_some()
    }

    /// Has the resource sent once more, if there is one and it was sent before.
    pub fn resend(&mut self, name: &Arc<str>, set: &ResourceSet) {
        if self.cursor.is_some() && self.wants(name) && set.get(name).is_some() {
            self.pending.insert(name.clone());
        }
    }

    pub fn caught_up(&self, set: &ResourceSet) -> bool {
        self.pending.is_empty() && self.cursor == Some(set.latest())
    }
}

/// What one response carries.
#[derive(Debug, Default)]
pub struct Payload {
    pub resources: Vec<Arc<Resource>>,
    /// From which of the resources on which stamp counts.
    pub stamps: Vec<(usize, Stamp)>,
    pub removed: Vec<Arc<str>>,
    /// Names that were asked for and that do not exist.
    pub missing: Vec<Arc<str>>,
    /// Names whose resources are new to the client, where `resources` holds others as well.
    pub renewed: Option<Vec<Arc<str>>>,
    /// The state-of-the-world `version_info`, or the delta's `system_version_info`.
    pub version: crate::resource::Version,
    /// The rest follows at once, without waiting for an ACK.
    pub more: bool,
    bytes: usize,
}

/// The most bytes of resources in a message that can be split: gRPC clients refuse 4 MiB by default;
/// the rest is for removed names and the small fields.
const BUDGET: usize = (4 << 20) - (256 << 10);

impl Payload {
    pub fn of(version: crate::resource::Version) -> Self {
        Self {
            version,
            ..Self::default()
        }
    }

    /// Whether there is room; there always is for one resource.
    pub fn fits(&self, resource: &Resource) -> bool {
        self.bytes == 0 || self.bytes + resource.wire_len() <= BUDGET
    }

    pub fn push(&mut self, resource: &Arc<Resource>) {
        self.bytes += resource.wire_len();
        self.resources.push(resource.clone());
    }

    /// Whether there is room for so many bytes of resources, or nothing that they could wait for.
    pub fn fits_all(&self, bytes: usize) -> bool {
        self.bytes == 0 || self.bytes + bytes <= BUDGET
    }

    /// Adds what the client knows under this stamp.
    pub fn push_stamped(&mut self, resource: &Arc<Resource>, stamp: Stamp) {
        if self.stamps.last().is_none_or(|(_, last)| *last != stamp) {
            self.stamps.push((self.resources.len(), stamp));
        }
        self.push(resource);
    }

    pub fn remove(&mut self, name: &Arc<str>) {
        self.bytes += name.len() + 8;
        self.removed.push(name.clone());
    }

    pub fn miss(&mut self, name: Arc<str>) {
        self.bytes += name.len() + 16;
        self.missing.push(name);
    }

    /// Whether another removed name would still fit.
    pub fn has_room(&self) -> bool {
        self.bytes < BUDGET
    }

    pub fn is_empty(&self) -> bool {
        self.resources.is_empty() && self.removed.is_empty()
    }

    pub fn renewed(&self) -> impl Iterator<Item = &Arc<str>> {
        let all = self
            .renewed
            .is_none()
            .then(|| self.resources.iter().map(|r| &r.name));
        self.renewed
            .iter()
            .flatten()
            .chain(all.into_iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{ResourceType, Version};

    #[test]
    fn a_subscribed_name_is_held_once_for_all_streams() {
        let resource = |name: &str| Resource::new(ResourceType::Endpoint, name, Version(1), b"");
        let mut subscription = Subscription::default();
        subscription.names.insert("a".into());
        let (asked, other) = (resource("a"), resource("b"));
        subscription.share(&asked);
        subscription.share(&other);
        let names: Vec<_> = subscription.names.iter().collect();
        assert_eq!(names.len(), 1);
        assert!(Arc::ptr_eq(names[0], &asked.name));
    }
}
