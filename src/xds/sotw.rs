//! One resource type of a state-of-the-world stream: what a request asks for and what is due.
//!
//! It refuses to know sockets, nonces and other types (`stream` does). Clusters and listeners go out
//! as the whole set that the client may see: what is missing there is gone. Endpoints and routes go
//! out one by one and are never taken back. Invariant: the version names the content that the client
//! may see, so equal content has an equal version.
//! Source: the state-of-the-world part of the xDS protocol text.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;

use super::{
    stream::{Lagging, Variant},
    subscription::{Payload, Subscription},
};
use crate::{
    resource::{Resource, ResourceType, Version},
    snapshot::{Cursor, ResourceSet, share},
};

const WILDCARD: &str = "*";

/// One resource type of a `Stream…` stream.
#[derive(Debug, Default)]
pub struct Sotw {
    subscription: Subscription,
    /// Whether a response is the whole set (clusters, listeners).
    whole: bool,
    /// A name was given once, so an empty list means nothing and no longer everything.
    named: bool,
    /// The client asked for something that it did not ask for before.
    answer: bool,
    /// What each name that was sent adds to the version; for partial responses only.
    shares: BTreeMap<Arc<str>, u64>,
    /// Removed resources that stay in the set until no route needs them any more.
    held: BTreeMap<Arc<str>, Arc<Resource>>,
    sent: Option<Version>,
    rejected: Option<Version>,
}

impl Variant for Sotw {
    type Request = DiscoveryRequest;

    fn request(&mut self, kind: ResourceType, request: &mut Self::Request, first: bool) {
        self.whole = matches!(kind, ResourceType::Cluster | ResourceType::Listener);
        let (stars, names): (Vec<&str>, Vec<&str>) = request
            .resource_names
            .iter()
            .map(String::as_str)
            .partition(|name| *name == WILDCARD);
        self.named |= !(stars.is_empty() && names.is_empty());
        let wildcard = !stars.is_empty() || (self.whole && !self.named);
        let names: BTreeSet<Arc<str>> = names.into_iter().map(Arc::from).collect();
        let added: Vec<_> = names
            .difference(&self.subscription.names)
            .cloned()
            .collect();

        let widened = wildcard && !self.subscription.wildcard;
        self.answer |= widened || (self.whole && (first || !added.is_empty()));
        if widened {
            self.subscription.cursor = Some(0);
        }
        self.subscription.wildcard = wildcard;
        self.subscription.names = names;
        self.subscription.pending.extend(added);
        self.subscription
            .pending
            .retain(|name| wildcard || self.subscription.names.contains(name));
        self.shares
            .retain(|name, _| self.subscription.names.contains(name));
    }

    fn collect(&mut self, set: &ResourceSet, hold: bool) -> Result<Option<Payload>, Lagging> {
        if !self.whole {
            return Ok(self
                .changed_ones(set)
                .filter(|p| self.rejected != Some(p.version)));
        }
        let asked = self.answer;
        let payload = self.whole_set(set, hold);
        let payload = payload.filter(|p| self.rejected != Some(p.version));
        let payload = payload.filter(|p| asked || self.sent != Some(p.version));
        self.sent = payload.as_ref().map(|p| p.version).or(self.sent);
        Ok(payload)
    }

    fn subscription(&mut self) -> &mut Subscription {
        &mut self.subscription
    }

    fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    fn rejected(&mut self, version: Version) {
        self.rejected = Some(version);
    }

    fn subscribed(&self) -> usize {
        self.subscription.names.len() + usize::from(self.subscription.wildcard)
    }
}

impl Sotw {
    /// The whole visible set, if it was asked for or if something in it changed.
    fn whole_set(&mut self, set: &ResourceSet, hold: bool) -> Option<Payload> {
        let mut touched = std::mem::take(&mut self.answer);
        let mut renewed: Vec<_> = std::mem::take(&mut self.subscription.pending)
            .into_iter()
            .collect();
        let cursor = self.subscription.start(set);
        for change in self.subscription.changes(set, cursor) {
            touched = true;
            let name = &change.resource.name;
            if change.removed && hold {
                self.held.insert(name.clone(), change.resource.clone());
            } else if !change.removed {
                self.held.remove(name);
                renewed.push(name.clone());
            }
        }
        self.subscription.cursor = Some(set.latest());
        if !hold {
            touched |= !std::mem::take(&mut self.held).is_empty();
        }
        touched.then(|| self.whole_payload(set, renewed))
    }

    fn whole_payload(&self, set: &ResourceSet, renewed: Vec<Arc<str>>) -> Payload {
        let mut payload = Payload::default();
        payload.renewed = Some(renewed);
        self.visible(set)
            .iter()
            .for_each(|resource| payload.push(resource));
        let sum = payload
            .resources
            .iter()
            .map(|r| share(r))
            .fold(0, u64::wrapping_add);
        payload.version = Version(sum);
        payload
    }

    fn visible(&self, set: &ResourceSet) -> Vec<Arc<Resource>> {
        let held = self
            .held
            .values()
            .filter(|resource| self.subscription.wants(&resource.name));
        if self.subscription.wildcard {
            return set.iter().chain(held).cloned().collect();
        }
        let names = self.subscription.names.iter();
        names
            .filter_map(|name| set.get(name))
            .chain(held)
            .cloned()
            .collect()
    }

    /// The resources that changed or that were newly asked for; removals are silent.
    fn changed_ones(&mut self, set: &ResourceSet) -> Option<Payload> {
        if self
            .subscription
            .cursor
            .is_some_and(|cursor| !set.reaches(cursor))
        {
            self.subscription.pending = self.subscription.names.clone();
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
            Version(self.shares.values().copied().fold(0, u64::wrapping_add))
        };
        let answer = std::mem::take(&mut self.answer);
        (answer || !payload.resources.is_empty()).then_some(payload)
    }

    fn answer_pending(&mut self, set: &ResourceSet, cursor: Cursor, payload: &mut Payload) {
        while let Some(name) = self.subscription.pending.pop_first() {
            if self.subscription.will_tell(set, cursor, &name) {
                continue;
            }
            let Some(resource) = set.get(&name) else {
                continue;
            };
            if !payload.fits(resource) {
                self.subscription.pending.insert(name);
                return;
            }
            self.shares.insert(resource.name.clone(), share(resource));
            payload.push(resource);
        }
    }

    /// Returns how far there was room.
    fn walk(&mut self, set: &ResourceSet, cursor: Cursor, payload: &mut Payload) -> Cursor {
        let mut reached = cursor;
        for change in self.subscription.changes(set, cursor) {
            if change.removed {
                self.shares.remove(&change.resource.name);
            } else if payload.fits(change.resource) {
                if !self.subscription.wildcard {
                    self.shares
                        .insert(change.resource.name.clone(), share(change.resource));
                }
                payload.push(change.resource);
            } else {
                return reached;
            }
            reached = change.at;
        }
        set.latest()
    }
}
