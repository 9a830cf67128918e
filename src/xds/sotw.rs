//! One resource type of a state-of-the-world stream: what a request asks for and what is due.
//!
//! It refuses to know sockets, nonces and other types (`stream` does). Clusters and listeners go out
//! as the whole set that the client may see: what is missing there is gone. Endpoints and routes go
//! out one by one and are never taken back. What the client rejected is not sent again until it
//! changes or a pause is over. Invariant: the version names the content that the client may see, so equal content has an
//! equal version.
//! Source: the state-of-the-world part of the xDS protocol text.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;

use super::{
    held::Held,
    rejection::Refused,
    stream::{Asked, Lagging, Variant},
    subscription::{Payload, Subscription},
};
use crate::{
    resource::{Made, Naming, Profile, Resource, ResourceType, Version},
    snapshot::{Cursor, ResourceSet, share},
};

const WILDCARD: &str = "*";

/// One resource type of a `Stream…` stream.
#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools)] // Any of them may be set without the others.
pub struct Sotw {
    subscription: Subscription,
    /// Whether a response is the whole set (clusters, listeners).
    whole: bool,
    /// A name was given once, so an empty list means nothing and no longer everything.
    named: bool,
    /// The client asked for something that it did not ask for before.
    answer: bool,
    /// Names that were asked for since the last whole set.
    added: BTreeSet<Arc<str>>,
    /// What partial responses have told; unused for whole sets.
    parts: Parts,
    /// Removed resources that stay in the set until no route needs them any more.
    held: Held<Arc<Resource>>,
    /// What changed since the last whole set was sent.
    renewed: BTreeSet<Arc<str>>,
    sent: Option<Version>,
    /// The last whole set that the client rejected.
    rejected: Option<Version>,
    /// What that set renewed.
    rejected_renewed: Vec<Arc<str>>,
    /// What the last whole set renewed.
    sent_renewed: Vec<Arc<str>>,
    /// The rejected set is to be sent again.
    offer: bool,
    /// How names are answered that no resource has.
    names: Names,
}

/// What a client is answered that asks for names which no resource has.
#[derive(Debug, Default)]
struct Names {
    kind: Option<ResourceType>,
    naming: Option<(Arc<dyn Naming>, Profile)>,
    /// Those under which nothing is registered, as of the last response.
    unknown: BTreeSet<Arc<str>>,
}

impl Names {
    /// What else has to be followed so that these names can be answered.
    fn followed(&self, asked: &BTreeSet<Arc<str>>) -> BTreeSet<Arc<str>> {
        let Some((kind, (naming, _))) = self.kind.zip(self.naming.as_ref()) else {
            return BTreeSet::new();
        };
        let others = asked.iter().flat_map(|name| naming.spellings(kind, name));
        let others = others.map(Arc::from);
        others.filter(|name| !asked.contains(name)).collect()
    }

    /// The resource of that name, or what is answered in its place.
    fn find(&self, set: &ResourceSet, name: &str) -> Option<Made> {
        if let Some(resource) = set.get(name) {
            let resource = resource.clone();
            let unknown = false;
            return Some(Made { resource, unknown });
        }
        let (naming, profile) = self.naming.as_ref()?;
        let kind = self.kind?;
        let spellings = naming.spellings(kind, name);
        let found = spellings.iter().find_map(|spelling| set.get(spelling));
        naming.make(kind, name, found.map(|resource| &**resource), *profile)
    }
}

/// What partial responses have told, one by one.
#[derive(Debug, Default)]
struct Parts {
    /// What each name that was asked for, sent or rejected before, adds to the version.
    shares: BTreeMap<Arc<str>, u64>,
    refused: Refused,
}

impl Variant for Sotw {
    type Request = DiscoveryRequest;

    fn request(&mut self, request: &mut Self::Request, asked: Asked<'_>) {
        self.whole = matches!(asked.kind, ResourceType::Cluster | ResourceType::Listener);
        let (stars, names): (Vec<&str>, Vec<&str>) = request
            .resource_names
            .iter()
            .map(String::as_str)
            .partition(|name| *name == WILDCARD);
        self.named |= !(stars.is_empty() && names.is_empty());
        let wildcard = !stars.is_empty() || (self.whole && !self.named);
        let wildcard = wildcard && !asked.only_named;
        let names: BTreeSet<Arc<str>> = names.into_iter().map(Arc::from).collect();
        let added = names
            .iter()
            .filter(|name| !self.subscription.has_asked(name));
        let added: Vec<_> = added.cloned().collect();

        let widened = wildcard && !self.subscription.wildcard;
        self.answer |= widened || (self.whole && (asked.first || !added.is_empty()));
        if widened {
            self.subscription.cursor = Some(0);
            self.parts.shares.clear();
        }
        if self.whole {
            self.added.extend(added.iter().cloned());
            self.added.retain(|name| names.contains(name));
        }
        if let Some((naming, profile)) = asked.naming.filter(|_| asked.first) {
            self.names.kind = Some(asked.kind);
            self.names.naming = Some((naming.clone(), profile));
        }
        self.names.unknown.retain(|name| names.contains(name));
        let followed = self.names.followed(&names);
        let mut names = names;
        names.extend(followed.iter().cloned());
        self.subscription.wildcard = wildcard;
        self.subscription.names = names;
        self.subscription.followed = followed;
        self.subscription.pending.extend(added);
        self.subscription
            .pending
            .retain(|name| wildcard || self.subscription.names.contains(name));
        let names = &self.subscription.names;
        self.parts.shares.retain(|name, _| names.contains(name));
        let subscription = &self.subscription;
        self.parts.refused.retain(|name| subscription.wants(name));
        self.held.retain(|name| self.subscription.wants(name));
    }

    fn collect(
        &mut self,
        set: &ResourceSet,
        hold: Option<Instant>,
    ) -> Result<Option<Payload>, Lagging> {
        if !self.whole {
            return Ok(self.changed_ones(set));
        }
        let asked = self.answer;
        let Some(mut payload) = self.whole_set(set, hold) else {
            return Ok(None);
        };
        if self.rejected == Some(payload.version) {
            return Ok(None);
        }
        let renewed = std::mem::take(&mut self.renewed).into_iter();
        if !asked && self.sent == Some(payload.version) {
            return Ok(None);
        }
        self.sent = Some(payload.version);
        let is_sent = |name: &Arc<str>| {
            let is_there = set.get(name).is_some() || self.held.contains(name);
            is_there && self.subscription.wants(name)
        };
        let renewed: Vec<_> = renewed.filter(is_sent).collect();
        self.sent_renewed.clone_from(&renewed);
        payload.renewed = Some(renewed);
        let missing = std::mem::take(&mut self.added).into_iter();
        payload.missing = missing
            .filter(|name| self.names.find(set, name).is_none())
            .collect();
        Ok(Some(payload))
    }

    fn subscription(&self) -> &Subscription {
        &self.subscription
    }

    fn unregistered(&self) -> impl Iterator<Item = &Arc<str>> {
        self.names.unknown.iter()
    }

    fn caught_up(&self, set: &ResourceSet) -> bool {
        self.subscription.caught_up(set)
    }

    fn holds_until(&self) -> Option<Instant> {
        self.held.deadline()
    }

    fn resend(&mut self, name: &Arc<str>, set: &ResourceSet) {
        self.subscription.resend(name, set);
    }

    fn rejected(&mut self, version: Version) {
        self.rejected = Some(version);
        self.rejected_renewed = std::mem::take(&mut self.sent_renewed);
        self.parts.refused.reject();
        let subscription = &self.subscription;
        self.parts.refused.retain(|name| subscription.wants(name));
    }

    fn answered(&mut self) {
        self.parts.refused.accept();
        self.sent_renewed = Vec::new();
    }

    fn lacks_some(&self) -> bool {
        if self.whole {
            self.rejected.is_some() && self.rejected == self.sent
        } else {
            self.parts.refused.lacks_some()
        }
    }

    fn offer_again(&mut self, set: &ResourceSet) {
        if !self.whole {
            let names = &self.names;
            let present = |name: &str| names.find(set, name).map(|made| made.resource.version);
            let mut offered = self.parts.refused.take(present);
            offered.retain(|name| self.subscription.wants(name));
            self.subscription.pending.extend(offered);
            return;
        }
        let rejected = self.rejected.take();
        self.offer = rejected.is_some();
        if self.sent == rejected {
            self.sent = None;
            self.renewed.extend(self.rejected_renewed.drain(..));
        }
    }
}

impl Sotw {
    /// The whole visible set, if it was asked for or if something in it changed.
    fn whole_set(&mut self, set: &ResourceSet, hold: Option<Instant>) -> Option<Payload> {
        let mut touched = std::mem::take(&mut self.answer) | std::mem::take(&mut self.offer);
        self.renewed.append(&mut self.subscription.pending);
        let cursor = self.subscription.start(set);
        touched |= !set.reaches(cursor);
        for change in self.subscription.changes(set, cursor) {
            touched = true;
            let name = &change.resource.name;
            self.renewed.insert(name.clone());
            if !change.removed {
                self.held.forget(name);
            } else if let Some(now) = hold {
                self.held.keep(name, change.resource.clone(), now);
            }
        }
        self.subscription.cursor = Some(set.latest());
        touched |= !self.held.release(hold).is_empty();
        touched.then(|| self.whole_payload(set))
    }

    fn whole_payload(&mut self, set: &ResourceSet) -> Payload {
        let mut payload = Payload::default();
        for resource in self.visible(set) {
            payload.push(&resource);
        }
        let shares = payload.resources.iter().map(|resource| share(resource));
        payload.version = Version(shares.fold(0, u64::wrapping_add));
        payload
    }

    fn visible(&mut self, set: &ResourceSet) -> Vec<Arc<Resource>> {
        self.names.unknown.clear();
        let held = self
            .held
            .values()
            .filter(|resource| self.subscription.wants(&resource.name));
        let is_listed = |name: &str| {
            self.subscription.wildcard && set.get(name).is_some() || self.held.contains(name)
        };
        let mut visible = Vec::new();
        if self.subscription.wildcard {
            visible.extend(set.iter().cloned());
        }
        for name in self.subscription.asked().filter(|name| !is_listed(name)) {
            let Some(made) = self.names.find(set, name) else {
                continue;
            };
            if made.unknown {
                self.names.unknown.insert(name.clone());
            }
            visible.push(made.resource);
        }
        visible.extend(held.cloned());
        visible
    }

    /// The resources that changed or that were newly asked for; removals are silent.
    fn changed_ones(&mut self, set: &ResourceSet) -> Option<Payload> {
        if self
            .subscription
            .cursor
            .is_some_and(|cursor| !set.reaches(cursor))
        {
            self.subscription.pending = self.subscription.names.clone();
            self.parts.shares.clear();
            self.subscription.cursor = Some(if self.subscription.wildcard {
                0
            } else {
                set.latest()
            });
        }
        let cursor = self.subscription.start(set);
        let mut payload = Payload::default();
        self.answer_pending(set, cursor, &mut payload);
        self.subscription.cursor = Some(self.walk(set, cursor, &mut payload));
        payload.more = !self.subscription.caught_up(set);
        payload.version = if self.subscription.wildcard {
            set.version()
        } else {
            self.parts.version()
        };
        let answer = std::mem::take(&mut self.answer);
        (answer || !payload.resources.is_empty()).then_some(payload)
    }

    fn answer_pending(&mut self, set: &ResourceSet, cursor: Cursor, payload: &mut Payload) {
        while let Some(name) = self.subscription.pending.pop_first() {
            if let Some(resource) = set.get(&name) {
                self.subscription.share(resource);
            }
            if self.subscription.will_tell(set, cursor, &name) {
                continue;
            }
            let Some(Made { resource, .. }) = self.names.find(set, &name) else {
                self.parts.refused.forget(&name);
                continue;
            };
            let resource = &resource;
            if !self.parts.refuses(resource) && !payload.fits(resource) {
                self.subscription.pending.insert(name);
                return;
            }
            self.parts.note(resource, &self.subscription.names);
            self.parts.send(resource, payload);
        }
    }

    /// Returns how far there was room.
    fn walk(&mut self, set: &ResourceSet, cursor: Cursor, payload: &mut Payload) -> Cursor {
        let mut reached = cursor;
        let names = &self.subscription.names;
        for change in self.subscription.changes(set, cursor) {
            let resource = change.resource;
            if change.removed {
                self.parts.shares.remove(&resource.name);
                self.parts.refused.forget(&resource.name);
            } else if self.parts.refuses(resource) || payload.fits(resource) {
                self.parts.note(resource, names);
                self.parts.send(resource, payload);
            } else {
                return reached;
            }
            reached = change.at;
        }
        set.latest()
    }
}

impl Parts {
    /// Whether the client rejected this very resource.
    fn refuses(&self, resource: &Resource) -> bool {
        self.refused.contains(resource)
    }

    /// Sends the resource, unless the client rejected it and the pause is not over.
    fn send(&mut self, resource: &Arc<Resource>, payload: &mut Payload) {
        if !self.refuses(resource) {
            self.refused.sent(resource);
            payload.push(resource);
        }
    }

    fn note(&mut self, resource: &Resource, names: &BTreeSet<Arc<str>>) {
        if names.contains(&resource.name) {
            self.shares.insert(resource.name.clone(), share(resource));
        }
    }

    fn version(&self) -> Version {
        Version(self.shares.values().copied().fold(0, u64::wrapping_add))
    }
}
