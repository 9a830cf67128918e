//! One resource type of an incremental stream: what a request subscribes to and what is due.
//!
//! It refuses to know sockets, nonces and other types (`stream` does). Invariant: no resource is sent
//! that the client was told in this version before, unless it asked again; a removal is told once.
//! Source: the incremental part of the xDS protocol text and the comments in `discovery.proto`.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;

use super::{
    stream::{Lagging, Variant},
    subscription::{Payload, Subscription},
};
use crate::{
    resource::{Resource, ResourceType, Version},
    snapshot::{Cursor, ResourceSet},
};

const WILDCARD: &str = "*";

/// One resource type of a `Delta…` stream.
#[derive(Debug, Default)]
pub struct Delta {
    subscription: Subscription,
    /// What the client says it holds from an earlier stream; consulted until it is caught up.
    initial: HashMap<String, String>,
    /// The wildcard was switched on and everything has to be told.
    restart: bool,
    /// An answer is due even if it is empty, so that the client can go on.
    answer: bool,
    /// Removals that wait until no route needs them any more.
    held: BTreeSet<Arc<str>>,
}

impl Variant for Delta {
    type Request = DeltaDiscoveryRequest;

    fn request(&mut self, _kind: ResourceType, request: &mut Self::Request, first: bool) {
        let subscribe = &request.resource_names_subscribe;
        if first && subscribe.is_empty() {
            self.switch_wildcard_on();
        }
        for name in subscribe {
            if name == WILDCARD {
                self.switch_wildcard_on();
            } else {
                let name: Arc<str> = name.as_str().into();
                self.subscription.names.insert(name.clone());
                self.subscription.pending.insert(name);
            }
        }
        for name in &request.resource_names_unsubscribe {
            self.unsubscribe(name);
        }
        if first {
            self.initial = std::mem::take(&mut request.initial_resource_versions);
        }
    }

    fn collect(&mut self, set: &ResourceSet, hold: bool) -> Result<Option<Payload>, Lagging> {
        if std::mem::take(&mut self.restart) {
            self.subscription.restart(set);
        }
        self.check_reach(set)?;
        let cursor = self.subscription.start(set);
        let mut payload = Payload::of(set.version());
        if self.subscription.cursor.is_none() {
            self.find_gone(set);
        }
        self.answer_pending(set, cursor, &mut payload);
        let reached = self.walk(set, cursor, hold, &mut payload);
        self.subscription.cursor = Some(reached);
        if !hold {
            self.release(set, &mut payload);
        }
        payload.more = !self.subscription.caught_up(set);
        if !payload.more {
            self.initial = HashMap::new();
        }
        let answer = std::mem::take(&mut self.answer);
        Ok((answer || !payload.is_empty()).then_some(payload))
    }

    fn subscription(&mut self) -> &mut Subscription {
        &mut self.subscription
    }

    fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// What was rejected is behind the cursor: it is sent again only when it changes.
    fn rejected(&mut self, _version: Version) {}

    fn subscribed(&self) -> usize {
        self.subscription.names.len() + usize::from(self.subscription.wildcard)
    }
}

impl Delta {
    fn switch_wildcard_on(&mut self) {
        self.subscription.wildcard = true;
        self.restart = true;
        self.answer = true;
    }

    fn unsubscribe(&mut self, name: &str) {
        if name == WILDCARD {
            self.subscription.wildcard = false;
            self.restart = false;
            self.answer = false;
            return;
        }
        let Some(name) = self.subscription.names.take(name) else {
            return;
        };
        if self.subscription.wildcard {
            // The client forgets the name; the wildcard still covers it, so it has to be told again.
            self.subscription.pending.insert(name);
        } else {
            self.subscription.pending.remove(&name);
        }
    }

    /// The log no longer reaches back to the cursor. Names can be answered anew; what a wildcard
    /// holds is known only to the client.
    fn check_reach(&mut self, set: &ResourceSet) -> Result<(), Lagging> {
        if self
            .subscription
            .cursor
            .is_none_or(|cursor| set.reaches(cursor))
        {
            return Ok(());
        }
        if self.subscription.wildcard {
            return Err(Lagging);
        }
        self.subscription.pending = self.subscription.names.clone();
        self.subscription.cursor = Some(set.latest());
        Ok(())
    }

    /// What the client brought along for its wildcard and what is no more.
    fn find_gone(&mut self, set: &ResourceSet) {
        if self.subscription.wildcard {
            let gone = self.initial.keys().filter(|name| set.get(name).is_none());
            self.subscription
                .pending
                .extend(gone.map(|name| Arc::from(name.as_str())));
        }
    }

    /// Whether the client brought this very version along.
    fn holds_already(&self, resource: &Resource) -> bool {
        let held = self.initial.get(&*resource.name);
        held.is_some_and(|version| Version::parse(version) == Some(resource.version))
    }

    fn answer_pending(&mut self, set: &ResourceSet, cursor: Cursor, payload: &mut Payload) {
        while let Some(name) = self.subscription.pending.pop_first() {
            if self.subscription.will_tell(set, cursor, &name) {
                continue;
            }
            match set.get(&name) {
                Some(resource) if self.holds_already(resource) => {}
                Some(resource) if payload.fits(resource) => payload.push(resource),
                None if payload.has_room() => {
                    self.held.remove(&name);
                    payload.remove(&name);
                }
                _ => {
                    self.subscription.pending.insert(name);
                    return;
                }
            }
        }
    }

    /// Tells what changed since the cursor; returns how far there was room.
    fn walk(
        &mut self,
        set: &ResourceSet,
        cursor: Cursor,
        hold: bool,
        payload: &mut Payload,
    ) -> Cursor {
        let mut reached = cursor;
        for change in self.subscription.changes(set, cursor) {
            let resource = change.resource;
            if change.removed && hold {
                self.held.insert(resource.name.clone());
            } else if change.removed && payload.has_room() {
                payload.remove(&resource.name);
            } else if !change.removed && self.holds_already(resource) {
                // Nothing to tell.
            } else if !change.removed && payload.fits(resource) {
                self.held.remove(&resource.name);
                payload.push(resource);
            } else {
                return reached;
            }
            reached = change.at;
        }
        set.latest()
    }

    fn release(&mut self, set: &ResourceSet, payload: &mut Payload) {
        for name in std::mem::take(&mut self.held) {
            if set.get(&name).is_none() && self.subscription.wants(&name) {
                payload.remove(&name);
            }
        }
    }
}
