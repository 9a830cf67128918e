//! The collections of one stream: names that end in `/*` and stand for all that is below.
//!
//! It refuses to know nonces and what the members are. Each collection is a wildcard of its own, with
//! a cursor of its own in the change log of its members; the set of the type tells which collections
//! changed at all, so what costs is what changed. The client knows a collection under a stamp that this
//! stream issued (see [`Stamps`]) and begins with nothing, so there is nothing to compare with.
//!
//! Invariant: the first answer to a collection holds all of it, in one message however large: a client
//! takes what comes first for the whole. What cannot be told, as nothing is there, is told to be gone:
//! a client waits for a word on each.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use super::{
    stream::Lagging,
    subscription::{Payload, Subscription},
};
use crate::{
    resource::{STAMP, Stamp, Stamps},
    snapshot::{Cursor, ResourceSet},
};

/// Under how many names a client may know one collection: one that goes over from one to the next needs
/// two.
const NAMES: usize = 8;

/// What a stream subscribes to of a type that has collections.
#[derive(Debug, Default)]
pub struct Globs {
    /// By collection and stamp: the cursor; `None` before any answer, 0 while there were no members.
    open: BTreeMap<Arc<str>, BTreeMap<Stamp, Option<Cursor>>>,
    /// Collections that may have something to tell.
    due: BTreeSet<Arc<str>>,
    /// Names that were asked for and that nothing here can have.
    strange: BTreeSet<Arc<str>>,
}

impl Globs {
    /// A request that names nothing changes nothing: there is no wildcard over collections.
    pub fn request(&mut self, subscribe: &[String], unsubscribe: &[String], stamps: Stamps) {
        for name in subscribe {
            self.subscribe(name, stamps);
        }
        for name in unsubscribe {
            self.unsubscribe(name);
        }
    }

    /// Whether it has a collection whose name begins so.
    pub fn follows(&self, prefix: &str) -> bool {
        let behind = (Bound::Included(prefix), Bound::Unbounded);
        let mut behind = self.open.range::<str, _>(behind);
        behind
            .next()
            .is_some_and(|(name, _)| name.starts_with(prefix))
    }

    fn subscribe(&mut self, name: &str, stamps: Stamps) {
        match parse(name).filter(|(_, stamp)| stamps.issued(*stamp)) {
            Some((collection, stamp)) => {
                let open = self.open.entry(collection.clone()).or_default();
                open.insert(stamp, None);
                if open.len() > NAMES {
                    open.pop_first();
                }
                self.due.insert(collection);
            }
            None => drop(self.strange.insert(name.into())),
        }
    }

    fn unsubscribe(&mut self, name: &str) {
        self.strange.remove(name);
        let Some((collection, stamp)) = parse(name) else {
            return;
        };
        if let Some(open) = self.open.get_mut(&collection) {
            open.remove(&stamp);
            if open.is_empty() {
                self.open.remove(&collection);
                self.due.remove(&collection);
            }
        }
    }

    /// Without their stamps, as the set has them.
    pub fn collections(&self) -> BTreeSet<Arc<str>> {
        self.open.keys().cloned().collect()
    }

    /// How many names want an answer.
    pub fn waiting(&self) -> usize {
        self.due.len() + self.strange.len()
    }

    pub fn are_told(&self) -> bool {
        self.due.is_empty() && self.strange.is_empty()
    }

    /// What is due, or as much of it as a message holds.
    pub fn collect(
        &mut self,
        subscription: &mut Subscription,
        set: &ResourceSet,
    ) -> Result<Payload, Lagging> {
        let mut payload = Payload::of(set.version());
        let cursor = subscription.start(set);
        if set.reaches(cursor) {
            let changes = subscription.changes(set, cursor);
            self.due
                .extend(changes.map(|change| change.resource.name.clone()));
        } else {
            self.due.extend(self.open.keys().cloned());
        }
        subscription.cursor = Some(set.latest());
        while payload.has_room()
            && let Some(name) = self.strange.pop_first()
        {
            payload.remove(&name);
        }
        while let Some(name) = self.due.pop_first() {
            if !self.tell(&name, set.collection(&name), &mut payload)? {
                self.due.insert(name);
                break;
            }
        }
        Ok(payload)
    }

    /// Returns whether there was room for everything.
    fn tell(
        &mut self,
        name: &str,
        members: Option<&ResourceSet>,
        payload: &mut Payload,
    ) -> Result<bool, Lagging> {
        for (stamp, cursor) in self.open.get_mut(name).into_iter().flatten() {
            let told = match (members, *cursor) {
                (Some(members), None | Some(0)) => begin(members, *stamp, cursor, payload),
                (Some(members), Some(from)) if members.reaches(from) => {
                    go_on(members, from, *stamp, cursor, payload)
                }
                // The assignment was told anew since, or is on its way, with other stamps.
                (Some(members), Some(from)) if members.began_after(from) => true,
                (Some(_), Some(_)) => return Err(Lagging),
                (None, None) => {
                    payload.remove(&stamp.name(name).into());
                    *cursor = Some(0);
                    true
                }
                // The assignment that no longer names it is on its way.
                (None, Some(_)) => true,
            };
            if !told {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Tells all members, at once or not at all.
fn begin(
    members: &ResourceSet,
    stamp: Stamp,
    cursor: &mut Option<Cursor>,
    payload: &mut Payload,
) -> bool {
    if !payload.fits_all(members.iter().map(|member| member.wire_len()).sum()) {
        return false;
    }
    for member in members.iter() {
        payload.push_stamped(member, stamp);
    }
    *cursor = Some(members.latest());
    true
}

fn go_on(
    members: &ResourceSet,
    from: Cursor,
    stamp: Stamp,
    cursor: &mut Option<Cursor>,
    payload: &mut Payload,
) -> bool {
    for change in members.since(from) {
        if change.removed && payload.has_room() {
            payload.remove(&stamp.name(&change.resource.name).into());
        } else if !change.removed && payload.fits(change.resource) {
            payload.push_stamped(change.resource, stamp);
        } else {
            return false;
        }
        *cursor = Some(change.at);
    }
    *cursor = Some(members.latest());
    true
}

/// The collection as the set has it, and the stamp. The stamp is the part before the last two.
fn parse(name: &str) -> Option<(Arc<str>, Stamp)> {
    let path = name.strip_suffix("/*")?;
    let (path, last) = path.rsplit_once('/')?;
    let (path, stamp) = path.rsplit_once('/')?;
    let stamp = Stamp::parse(stamp)?;
    Some((format!("{path}/{STAMP}/{last}/*").into(), stamp))
}
