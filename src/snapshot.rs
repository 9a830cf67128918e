//! What clients are served: an immutable snapshot of each edition, with a change log.
//!
//! It refuses to know what resources mean and who reads them. There is one writer; a reader clones
//! the snapshot, which costs nothing (the maps share their nodes), and keeps a *cursor*: the place in
//! the log up to which it has seen everything. The log holds each name once, at its latest change,
//! so a reader that was away meets every change coalesced, latest state first and only.
//!
//! Resources of [`ResourceType::LbEndpoint`] form collections (`PATH/*` holds every `PATH/NAME`), each a
//! set of its own; the set of the type lists the collections, each in the version of its content.
//!
//! Invariant: for a cursor that the log reaches back to, [`ResourceSet::since`] names exactly what
//! differs between the set then and the set now (and what was rewritten or re-created meanwhile).

use std::{borrow::Borrow, cmp::Ordering, sync::Arc, time::Instant};

use imbl::{OrdMap, OrdSet};

use crate::resource::{Edition, Profile, Resource, ResourceType, Version};

/// A place in a set's change log; 0 is before everything.
pub type Cursor = u64;

/// How many removals a set remembers beyond the number of its live resources.
///
/// A reader that was away for longer has to start over; it comes back with the versions it holds.
const TOMBSTONES: usize = 4096;

/// The snapshots of all editions, as they are published together.
#[derive(Clone, Debug, Default)]
pub struct Snapshots {
    editions: [Snapshot; Edition::ALL.len()],
    /// Whether the registry was mirrored completely once; nothing is answered before.
    pub loaded: bool,
    /// When the oldest change that this publication is the first to show was seen in the registry.
    pub observed: Option<Instant>,
}

impl Snapshots {
    pub fn of(&self, edition: Edition) -> &Snapshot {
        &self.editions[edition as usize]
    }

    pub fn of_mut(&mut self, edition: Edition) -> &mut Snapshot {
        &mut self.editions[edition as usize]
    }

    /// What such a client is served.
    pub fn view(&self, profile: Profile) -> View<'_> {
        let snapshots = self;
        View { snapshots, profile }
    }
}

/// The snapshots as one client sees them: of each type its edition.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    snapshots: &'a Snapshots,
    profile: Profile,
}

impl<'a> View<'a> {
    pub fn set(self, kind: ResourceType) -> &'a ResourceSet {
        self.snapshots.of(self.profile.edition(kind)).set(kind)
    }
}

/// All resources of one edition.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    sets: [ResourceSet; ResourceType::ALL.len()],
}

impl Snapshot {
    pub fn set(&self, kind: ResourceType) -> &ResourceSet {
        &self.sets[kind as usize]
    }

    /// Removes and adds, where no name is in both; returns how many resources changed.
    pub fn apply(&mut self, put: Vec<Arc<Resource>>, remove: &[(ResourceType, Arc<str>)]) -> usize {
        // A collection whose members are all replaced is not to be empty in between, and so another.
        let is_member = |resource: &Arc<Resource>| resource.kind == ResourceType::LbEndpoint;
        let (members, others): (Vec<_>, Vec<_>) = put.into_iter().partition(is_member);
        let count = |changed: &bool| *changed;
        let added = members.into_iter().map(|resource| self.put(resource));
        let added = added.filter(count).count();
        let removed = remove.iter().map(|(kind, name)| self.remove(*kind, name));
        let removed = removed.filter(count).count();
        let put = others.into_iter().map(|resource| self.put(resource));
        added + removed + put.filter(count).count()
    }

    /// Adds the resource, or replaces the one of its name if the version differs.
    /// Returns whether anything changed.
    pub fn put(&mut self, resource: impl Into<Arc<Resource>>) -> bool {
        let resource = resource.into();
        let set = &mut self.sets[resource.kind as usize];
        match resource.kind {
            ResourceType::LbEndpoint => set.put_member(resource),
            _ => set.put(resource),
        }
    }

    /// Returns whether there was such a resource.
    pub fn remove(&mut self, kind: ResourceType, name: &str) -> bool {
        let set = &mut self.sets[kind as usize];
        match kind {
            ResourceType::LbEndpoint => set.remove_member(name),
            _ => set.remove(name),
        }
    }
}

/// The resources of one type, by name, and the order in which they last changed.
#[derive(Clone, Debug, Default)]
pub struct ResourceSet {
    live: OrdSet<Entry>,
    dead: OrdSet<Entry>,
    /// The latest change of each name, live or dead.
    log: OrdMap<Cursor, Logged>,
    latest: Cursor,
    /// The latest change that the log has forgotten.
    forgotten: Cursor,
    /// The latest change that there was before it began.
    began: Cursor,
    digest: u64,
    /// What is behind the names, where they are those of collections.
    collections: OrdMap<Arc<str>, ResourceSet>,
    /// No collection that is gone had a later change, so that one which comes back counts on.
    retired: Cursor,
}

/// A resource under its name, which is all that is compared.
#[derive(Clone, Debug)]
struct Entry {
    resource: Arc<Resource>,
    /// When it last changed: appeared, was rewritten or went.
    changed: Cursor,
}

/// The latest change of a name, with all that a reader of the log has to know of it.
#[derive(Clone, Debug)]
struct Logged {
    resource: Arc<Resource>,
    removed: bool,
    /// Since when the name is known to the log: a reader whose cursor is older never saw it.
    born: Cursor,
}

impl Logged {
    fn behind(&self, cursor: Cursor, at: Cursor) -> Option<Change<'_>> {
        let unseen = at > cursor && !(self.removed && self.born > cursor);
        unseen.then_some(Change {
            at,
            resource: &self.resource,
            removed: self.removed,
        })
    }
}

impl Entry {
    fn name(&self) -> &str {
        &self.resource.name
    }
}

impl Borrow<str> for Entry {
    fn borrow(&self) -> &str {
        self.name()
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.name().cmp(other.name())
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Entry {}

/// One difference between then and now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change<'a> {
    /// The cursor of a reader that has seen this change and all before it.
    pub at: Cursor,
    /// The resource as it is now, or as it was when it went: some clients hold it for a while.
    pub resource: &'a Arc<Resource>,
    pub removed: bool,
}

impl ResourceSet {
    pub fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.live.get(name).map(|entry| &entry.resource)
    }

    pub fn collection(&self, name: &str) -> Option<&ResourceSet> {
        self.collections.get(name)
    }

    /// The resources of these names, or the members of the collections of these names.
    pub fn matching(&self, wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = &Arc<Resource>> {
        let entries = self.live.iter().filter(move |entry| wanted(entry.name()));
        entries.flat_map(|entry| {
            let members = self.collections.get(entry.name());
            let alone = members.is_none().then_some(&entry.resource);
            alone
                .into_iter()
                .chain(members.into_iter().flat_map(Self::members))
        })
    }

    fn members(&self) -> Box<dyn Iterator<Item = &Arc<Resource>> + '_> {
        Box::new(self.iter())
    }

    /// In the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.live.iter().map(|entry| &entry.resource)
    }

    pub fn len(&self) -> usize {
        self.live.len()
    }

    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// The cursor of a reader that has seen everything.
    pub fn latest(&self) -> Cursor {
        self.latest
    }

    /// The version of the whole set: equal sets have equal versions, whatever their history.
    pub fn version(&self) -> Version {
        Version(self.digest)
    }

    /// Whether [`Self::since`] is exact for this cursor. 0 always is: that reader holds nothing.
    pub fn reaches(&self, cursor: Cursor) -> bool {
        cursor == 0 || cursor >= self.forgotten
    }

    /// What changed behind the cursor, oldest first. What appeared and went meanwhile is left out.
    pub fn since(&self, cursor: Cursor) -> impl Iterator<Item = Change<'_>> {
        let range = self.log.range((
            std::ops::Bound::Excluded(cursor),
            std::ops::Bound::Unbounded,
        ));
        range.filter_map(move |(at, logged)| logged.behind(cursor, *at))
    }

    /// The names of everything that changed behind the cursor, also of what came and went.
    pub fn names_since(&self, cursor: Cursor) -> impl Iterator<Item = &Arc<str>> {
        let behind = (
            std::ops::Bound::Excluded(cursor),
            std::ops::Bound::Unbounded,
        );
        let logged = self.log.range(behind);
        logged.map(|(_, logged)| &logged.resource.name)
    }

    /// What happened to one name behind the cursor.
    pub fn change(&self, name: &str, cursor: Cursor) -> Option<Change<'_>> {
        let entry = self.live.get(name).or_else(|| self.dead.get(name))?;
        let logged = self.log.get(&entry.changed)?;
        logged.behind(cursor, entry.changed)
    }

    fn put(&mut self, resource: Arc<Resource>) -> bool {
        let before = self.live.get(&*resource.name).cloned();
        if let Some(Entry {
            resource: before, ..
        }) = &before
        {
            if before.version == resource.version {
                return false;
            }
            self.digest = self.digest.wrapping_sub(share(before));
        }
        self.digest = self.digest.wrapping_add(share(&resource));
        let known = before.or_else(|| self.dead.remove(&*resource.name));
        self.log(resource.clone(), false, known.as_ref());
        let changed = self.latest;
        self.live.insert(Entry { resource, changed });
        true
    }

    fn remove(&mut self, name: &str) -> bool {
        let Some(entry) = self.live.remove(name) else {
            return false;
        };
        self.digest = self.digest.wrapping_sub(share(&entry.resource));
        self.log(entry.resource.clone(), true, Some(&entry));
        let changed = self.latest;
        self.dead.insert(Entry { changed, ..entry });
        if self.dead.len() > 2 * (self.live.len() + TOMBSTONES) {
            self.forget();
        }
        true
    }

    /// Whether this collection went and came back since.
    pub fn began_after(&self, cursor: Cursor) -> bool {
        self.began > cursor
    }

    /// Of a collection that begins when others have had so many changes.
    fn starting_at(cursor: Cursor) -> Self {
        Self {
            latest: cursor,
            forgotten: cursor,
            began: cursor,
            ..Self::default()
        }
    }

    fn put_member(&mut self, resource: Arc<Resource>) -> bool {
        let name = collection_of(&resource.name);
        let start = self.retired;
        let members = self.collections.entry(name.clone());
        let members = members.or_insert_with(|| Self::starting_at(start));
        let changed = members.put(resource);
        if changed {
            let version = members.version();
            self.list(name, version);
        }
        changed
    }

    fn remove_member(&mut self, name: &str) -> bool {
        let name_of_all = collection_of(name);
        let Some(members) = self.collections.get_mut(&name_of_all) else {
            return false;
        };
        let changed = members.remove(name);
        if members.is_empty() {
            self.retired = self.retired.max(members.latest());
            self.collections.remove(&name_of_all);
            self.remove(&name_of_all);
        } else if changed {
            let version = members.version();
            self.list(name_of_all, version);
        }
        changed
    }

    fn list(&mut self, name: Arc<str>, version: Version) {
        let listed = Resource::deferred(ResourceType::LbEndpoint, name, version, Vec::new);
        self.put(Arc::new(listed));
    }

    /// Notes the next change, in place of the one of that name before.
    fn log(&mut self, resource: Arc<Resource>, removed: bool, known: Option<&Entry>) {
        self.latest += 1;
        let before = known.and_then(|known| self.log.remove(&known.changed));
        let born = before.map_or(self.latest, |before| before.born);
        let logged = Logged {
            resource,
            removed,
            born,
        };
        self.log.insert(self.latest, logged);
    }

    /// Drops the older half of the removals, so that the cost for each removal stays constant.
    fn forget(&mut self) {
        let mut ages: Vec<Cursor> = self.dead.iter().map(|entry| entry.changed).collect();
        ages.sort_unstable();
        let limit = ages[ages.len() / 2];
        for age in ages.into_iter().take_while(|age| *age <= limit) {
            if let Some(logged) = self.log.remove(&age) {
                self.dead.remove(&*logged.resource.name);
            }
        }
        self.forgotten = limit;
    }
}

/// `PATH/NAME` is in `PATH/*`.
fn collection_of(member: &str) -> Arc<str> {
    let path = member.rsplit_once('/').map_or("", |(path, _)| path);
    format!("{path}/*").into()
}

/// What a resource adds to the version of its set; the sum does not depend on the order.
pub fn share(resource: &Resource) -> u64 {
    Version::of(&(&resource.name, resource.version)).0
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn cluster(name: &str, version: u64) -> Resource {
        Resource::new(ResourceType::Cluster, name, Version(version), b"")
    }

    fn snapshot(names: &[&str]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for name in names {
            snapshot.put(cluster(name, 1));
        }
        snapshot
    }

    fn changes(snapshot: &Snapshot, cursor: Cursor) -> Vec<(String, bool)> {
        let set = snapshot.set(ResourceType::Cluster);
        set.since(cursor)
            .map(|c| (c.resource.name.to_string(), c.removed))
            .collect()
    }

    fn member(name: &str, version: u64) -> Resource {
        Resource::new(ResourceType::LbEndpoint, name, Version(version), b"")
    }

    #[test]
    fn a_collection_is_listed_while_it_has_members_and_changes_with_them() {
        let mut snapshot = Snapshot::default();
        assert!(snapshot.put(member("o/a/1", 1)) && snapshot.put(member("o/a/2", 1)));
        assert!(snapshot.put(member("o/b/1", 1)) && !snapshot.put(member("o/b/1", 1)));
        let names = |snapshot: &Snapshot, cursor| -> Vec<String> {
            let set = snapshot.set(ResourceType::LbEndpoint);
            let names = set.since(cursor).map(|c| c.resource.name.to_string());
            names.collect()
        };
        assert_eq!(names(&snapshot, 0), ["o/a/*", "o/b/*"]);
        let seen = snapshot.set(ResourceType::LbEndpoint).latest();
        assert!(snapshot.put(member("o/a/2", 2)));
        assert_eq!(names(&snapshot, seen), ["o/a/*"]);
        assert!(snapshot.remove(ResourceType::LbEndpoint, "o/b/1"));
        assert!(!snapshot.remove(ResourceType::LbEndpoint, "o/b/1"));
        let set = snapshot.set(ResourceType::LbEndpoint);
        assert_eq!(set.len(), 1);
        assert!(set.collection("o/b/*").is_none());
        let members = set.matching(|name| name == "o/a/*");
        let members: Vec<_> = members.map(|r| (&*r.name, r.version.0)).collect();
        assert_eq!(members, [("o/a/1", 1), ("o/a/2", 2)]);
    }

    #[test]
    fn the_cursors_of_a_collection_that_went_and_came_back_do_not_go_backwards() {
        let mut snapshot = Snapshot::default();
        for version in 1..10 {
            snapshot.put(member("o/a/1", version));
        }
        let latest = |snapshot: &Snapshot| {
            let set = snapshot.set(ResourceType::LbEndpoint);
            set.collection("o/a/*").unwrap().latest()
        };
        let before = latest(&snapshot);
        snapshot.remove(ResourceType::LbEndpoint, "o/a/1");
        snapshot.put(member("o/a/2", 1));
        let set = snapshot.set(ResourceType::LbEndpoint);
        let members = set.collection("o/a/*").unwrap();
        assert!(members.latest() > before);
        assert!(
            !members.reaches(before),
            "its reader never heard of the removal"
        );
    }

    #[test]
    fn an_equal_version_is_no_change() {
        let mut snapshot = snapshot(&["a"]);
        assert!(!snapshot.put(cluster("a", 1)));
        assert!(changes(&snapshot, snapshot.set(ResourceType::Cluster).latest()).is_empty());
    }

    #[test]
    fn many_changes_of_one_name_are_one_entry_of_the_log() {
        let mut snapshot = snapshot(&["a", "b"]);
        for version in 2..10 {
            snapshot.put(cluster("a", version));
        }
        assert_eq!(
            changes(&snapshot, 0),
            [("b".into(), false), ("a".into(), false)]
        );
    }

    #[test]
    fn what_came_and_went_meanwhile_is_not_told() {
        let mut snapshot = snapshot(&["a"]);
        let cursor = snapshot.set(ResourceType::Cluster).latest();
        snapshot.put(cluster("b", 1));
        snapshot.remove(ResourceType::Cluster, "b");
        assert!(changes(&snapshot, cursor).is_empty());
    }

    #[test]
    fn what_went_is_told_with_its_bytes() {
        let mut snapshot = Snapshot::default();
        let body = || b"body".to_vec();
        let cluster = Resource::deferred(ResourceType::Cluster, "a", Version(7), body);
        snapshot.put(cluster);
        let cursor = snapshot.set(ResourceType::Cluster).latest();
        snapshot.remove(ResourceType::Cluster, "a");
        let set = snapshot.set(ResourceType::Cluster);
        let gone: Vec<_> = set.since(cursor).map(|c| c.resource.body()).collect();
        assert_eq!(gone, [&b"body"[..]]);
    }

    #[test]
    fn a_name_that_went_came_and_went_again_is_told_as_removed() {
        let mut snapshot = snapshot(&["a"]);
        let cursor = snapshot.set(ResourceType::Cluster).latest();
        snapshot.remove(ResourceType::Cluster, "a");
        snapshot.put(cluster("a", 2));
        snapshot.remove(ResourceType::Cluster, "a");
        assert_eq!(changes(&snapshot, cursor), [("a".into(), true)]);
        assert!(changes(&snapshot, 0).is_empty());
    }

    #[test]
    fn the_version_depends_on_the_content_and_not_on_the_history() {
        let one = snapshot(&["a", "b"]);
        let mut other = snapshot(&["b", "c", "a"]);
        other.remove(ResourceType::Cluster, "c");
        let version = |s: &Snapshot| s.set(ResourceType::Cluster).version();
        assert_eq!(version(&one), version(&other));
        other.put(cluster("a", 2));
        assert_ne!(version(&one), version(&other));
    }

    #[test]
    fn the_log_is_bounded_and_says_which_cursors_it_no_longer_reaches() {
        let mut snapshot = snapshot(&["a"]);
        let cursor = snapshot.set(ResourceType::Cluster).latest();
        for round in 0..4 * TOMBSTONES {
            snapshot.put(cluster(&format!("n{round}"), 1));
            snapshot.remove(ResourceType::Cluster, &format!("n{round}"));
        }
        let set = snapshot.set(ResourceType::Cluster);
        assert!(!set.reaches(cursor));
        assert!(set.reaches(set.latest()) && set.reaches(0));
        assert!(set.log.len() <= 2 * (TOMBSTONES + 2));
        assert_eq!(set.log.len(), set.live.len() + set.dead.len());
    }

    proptest! {
        /// A reader that applies the changes at any pace ends with the set, and never hears of a
        /// removal of what it does not hold.
        #[test]
        fn a_reader_at_any_pace_ends_with_the_set(
            steps in prop::collection::vec((0..5u8, 0..4u64, any::<bool>()), 0..60)
        ) {
            let mut snapshot = Snapshot::default();
            let mut seen: BTreeMap<String, u64> = BTreeMap::new();
            let mut cursor = 0;
            for (name, version, read) in steps {
                let name = format!("n{name}");
                if version == 0 {
                    snapshot.remove(ResourceType::Cluster, &name);
                } else {
                    snapshot.put(cluster(&name, version));
                }
                if !read { continue }
                let set = snapshot.set(ResourceType::Cluster);
                for change in set.since(cursor) {
                    let name = change.resource.name.to_string();
                    if change.removed {
                        seen.remove(&name);
                    } else {
                        seen.insert(name, change.resource.version.0);
                    }
                    cursor = change.at;
                }
                let now: BTreeMap<String, u64> =
                    set.iter().map(|r| (r.name.to_string(), r.version.0)).collect();
                prop_assert_eq!(&seen, &now);
            }
        }
    }
}
