//! One resource type of an incremental stream: what a request subscribes to and what is due.
//!
//! It refuses to know sockets, nonces and other types (`stream` does). Invariant: no resource is sent
//! that the client was told in this version before, unless it asked again; a removal is told once.
//! Source: the incremental part of the xDS protocol text and the comments in `discovery.proto`.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;

use super::{
    globs::Globs,
    held::Held,
    rejection::Refused,
    spelling::{self, Spellings},
    stream::{Asked, Lagging, Variant},
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
    /// The last answer was to a wildcard, so the client holds whatever was there.
    covered: bool,
    /// An answer is due even if it is empty, so that the client can go on.
    answer: bool,
    /// Removals that wait until no route needs them any more.
    held: Held<()>,
    /// What takes the place of names where they are those of collections.
    globs: Option<Globs>,
    /// Pending names that are to be told as gone and were not asked for.
    gone: BTreeSet<Arc<str>>,
    /// How names that want an answer were spelled, where the answer has to repeat it.
    spelled: Spellings,
    /// Hosts that were asked for and are not there, the latest at the end.
    absent: VecDeque<Arc<str>>,
    /// Removals that follow an answer which has a resource of that name.
    taken_back: Vec<Arc<str>>,
    refused: Refused,
}

/// Of the hosts that do not exist so many are followed, in case that they appear. Others are asked for
/// again by whoever wants them, and nobody can have a stream hold more by asking for more.
const ABSENT: usize = 1_000;

impl Variant for Delta {
    type Request = DeltaDiscoveryRequest;

    fn request(&mut self, request: &mut Self::Request, asked: Asked<'_>) {
        let subscribe = &request.resource_names_subscribe;
        let unsubscribe = &request.resource_names_unsubscribe;
        if let Some(globs) = self.globs(asked) {
            if subscribe.len() + unsubscribe.len() > 0 {
                globs.request(subscribe, unsubscribe, asked.stamps);
                self.subscription.names = globs.collections();
            }
            return;
        }
        if asked.first && subscribe.is_empty() {
            self.switch_wildcard_on(asked);
        }
        for name in subscribe {
            if name == WILDCARD {
                self.switch_wildcard_on(asked);
            } else {
                self.subscribe(asked.kind, name);
            }
        }
        if asked.first {
            self.initial = std::mem::take(&mut request.initial_resource_versions);
            self.spelled.note_brought();
        }
        for name in unsubscribe {
            self.unsubscribe(asked.kind, name);
        }
    }

    fn collect(
        &mut self,
        set: &ResourceSet,
        hold: Option<Instant>,
    ) -> Result<Option<Payload>, Lagging> {
        if let Some(globs) = &mut self.globs {
            let mut payload = globs.collect(&mut self.subscription, set)?;
            payload.more = !self.caught_up(set);
            return Ok((!payload.is_empty()).then_some(payload));
        }
        self.check_reach(set)?;
        if std::mem::take(&mut self.restart) {
            self.start_over(set, hold);
        }
        let cursor = self.subscription.start(set);
        let mut payload = Payload::of(set.version());
        if self.subscription.cursor.is_none() {
            self.find_gone(set, hold);
        }
        for name in self.held.release(hold) {
            self.tell_gone(name);
        }
        self.answer_pending(set, cursor, &mut payload);
        let reached = self.walk(set, cursor, hold, &mut payload);
        self.subscription.cursor = Some(reached);
        self.covered = self.subscription.wildcard;
        for name in std::mem::take(&mut self.taken_back) {
            self.tell_gone(name);
        }
        payload.more = !self.subscription.caught_up(set);
        self.note_sent(set, &payload);
        if !payload.more {
            self.initial = HashMap::new();
        }
        let answer = std::mem::take(&mut self.answer);
        Ok((answer || !payload.is_empty()).then_some(payload))
    }

    fn subscription(&self) -> &Subscription {
        &self.subscription
    }

    fn follows(&self, prefix: &str) -> bool {
        self.globs
            .as_ref()
            .is_some_and(|globs| globs.follows(prefix))
    }

    fn footprint(&self) -> usize {
        let subscription = &self.subscription;
        if let Some(globs) = &self.globs {
            return subscription.len().max(globs.waiting());
        }
        // Hosts that a client comes back with count once it is known which of them are there.
        let counted = |names: usize| names.saturating_sub(self.spelled.names());
        let answered = counted(subscription.len());
        answered.max(counted(subscription.pending.len())) + self.spelled.excess()
    }

    fn caught_up(&self, set: &ResourceSet) -> bool {
        let told = self.globs.as_ref().is_none_or(Globs::are_told);
        !self.restart && told && self.subscription.caught_up(set)
    }

    fn holds_until(&self) -> Option<Instant> {
        self.held.deadline()
    }

    fn resend(&mut self, name: &Arc<str>, set: &ResourceSet) {
        // It stays known as held, in case that it goes, but in no version that could match.
        if let Some(version) = self.initial.get_mut(&**name) {
            version.clear();
        }
        self.subscription.resend(name, set);
    }

    /// What was rejected is behind the cursor: it is sent again when it changes or is offered again.
    fn rejected(&mut self, _version: Version) {
        self.refused.reject();
        let subscription = &self.subscription;
        self.refused.retain(|name| subscription.wants(name));
    }

    fn answered(&mut self) {
        self.refused.accept();
    }

    fn lacks_some(&self) -> bool {
        self.refused.lacks_some()
    }

    fn offer_again(&mut self, set: &ResourceSet) {
        let present = |name: &str| set.get(name).map(|resource| resource.version);
        let mut offered = self.refused.take(present);
        offered.retain(|name| self.subscription.wants(name));
        self.subscription.pending.extend(offered);
    }
}

impl Delta {
    fn globs(&mut self, asked: Asked<'_>) -> Option<&mut Globs> {
        if asked.kind == ResourceType::LbEndpoint {
            self.globs.get_or_insert_default();
        }
        self.globs.as_mut()
    }

    fn switch_wildcard_on(&mut self, asked: Asked<'_>) {
        self.answer = true;
        if !asked.only_named {
            self.subscription.wildcard = true;
            self.restart = true;
        }
    }

    fn subscribe(&mut self, kind: ResourceType, spelled: &str) {
        let name: Arc<str> = spelling::canonical(kind, spelled).into();
        let known = !self.subscription.names.insert(name.clone());
        if spelling::is_free(kind) {
            self.spelled.ask(&name, spelled, known);
        }
        self.initial.remove(&*name);
        self.gone.remove(&name);
        self.subscription.pending.insert(name);
    }

    fn unsubscribe(&mut self, kind: ResourceType, spelled: &str) {
        let name = spelling::canonical(kind, spelled);
        if name == WILDCARD {
            self.switch_wildcard_off();
        } else if let Some(name) = self.subscription.names.take(&*name) {
            self.initial.remove(&*name);
            self.spelled.take(&name);
            self.refused.forget(&name);
            if self.subscription.wildcard {
                // The client forgets the name; the wildcard still covers it, so it is told again.
                self.subscription.pending.insert(name);
            } else {
                self.subscription.pending.remove(&name);
                self.gone.remove(&name);
                self.held.forget(&name);
            }
        }
    }

    /// The client forgets everything that it did not ask for by name.
    fn switch_wildcard_off(&mut self) {
        self.subscription.wildcard = false;
        self.restart = false;
        self.covered = false;
        self.answer = false;
        let names = &self.subscription.names;
        self.initial.retain(|name, _| names.contains(&**name));
        self.held.retain(|name| names.contains(name));
        self.gone.retain(|name| names.contains(name));
        self.refused.retain(|name| names.contains(name));
        self.subscription
            .pending
            .retain(|name| names.contains(name));
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
        if self.covered {
            return Err(Lagging);
        }
        self.subscription.pending = self.subscription.names.clone();
        self.subscription.cursor = Some(set.latest());
        Ok(())
    }

    /// Goes back to the beginning, where removals are not told: those that the client has to hear of
    /// are noted before.
    fn start_over(&mut self, set: &ResourceSet, hold: Option<Instant>) {
        let Some(cursor) = self.subscription.cursor else {
            return;
        };
        self.subscription.cursor = Some(0);
        let removed = set.since(cursor).filter(|change| change.removed);
        for name in removed.map(|change| &change.resource.name) {
            if self.covered || self.subscription.names.contains(name) {
                self.put_off(name, hold);
            }
        }
    }

    /// What the client brought along for its wildcard and what is no more, or not for this client: it
    /// may have loaded everything before it began to load on demand.
    fn find_gone(&mut self, set: &ResourceSet, hold: Option<Instant>) {
        // Only a wildcard is answered in any case, also one that holds nothing.
        if !self.subscription.wildcard && !self.answer {
            return;
        }
        let brought = self.initial.keys();
        let gone = brought.filter(|name| set.get(name).is_none() || !self.subscription.wants(name));
        let gone: Vec<Arc<str>> = gone.map(|name| name.as_str().into()).collect();
        for name in &gone {
            self.put_off(name, hold);
        }
    }

    /// A removal is to be told, now or when it may be.
    fn put_off(&mut self, name: &Arc<str>, hold: Option<Instant>) {
        match hold {
            Some(now) => self.held.keep(name, (), now),
            None => self.tell_gone(name.clone()),
        }
    }

    fn tell_gone(&mut self, name: Arc<str>) {
        if self.subscription.pending.insert(name.clone()) {
            self.gone.insert(name);
        }
    }

    /// Whether the client brought this very version along.
    fn holds_already(&self, resource: &Resource) -> bool {
        let held = self.initial.get(&*resource.name);
        let same = |version: &String| Version::parse(version) == Some(resource.version);
        held.is_some_and(same) && !resource.is_stamped()
    }

    fn answer_pending(&mut self, set: &ResourceSet, cursor: Cursor, payload: &mut Payload) {
        while let Some(name) = self.subscription.pending.pop_first() {
            let asked = !self.gone.remove(&name);
            if let Some(resource) = set.get(&name) {
                self.subscription.share(resource);
            }
            if self.subscription.will_tell(set, cursor, &name) {
                continue;
            }
            match set.get(&name).filter(|_| self.subscription.wants(&name)) {
                None if self.held.contains(&name) => {}
                Some(resource) if self.holds_already(resource) => {
                    self.spelled.take(&name);
                }
                Some(resource) if payload.fits(resource) => {
                    payload.push(&spelled_as_asked(&mut self.spelled, resource));
                }
                None if payload.has_room() && asked => self.answer_missing(set, name, payload),
                None if payload.has_room() => payload.remove(&name),
                _ if asked => {
                    self.subscription.pending.insert(name);
                    return;
                }
                _ => return self.tell_gone(name),
            }
        }
    }

    /// What stands for a name that does not exist is not offered again: there may be any number of such names.
    fn note_sent(&mut self, set: &ResourceSet, payload: &Payload) {
        let there = |resource: &&Arc<Resource>| set.get(&resource.name).is_some();
        for resource in payload.resources.iter().filter(there) {
            self.refused.sent(resource);
        }
        for name in &payload.removed {
            self.refused.forget(name);
        }
    }

    /// Says that what was asked for does not exist.
    fn answer_missing(&mut self, set: &ResourceSet, name: Arc<str>, payload: &mut Payload) {
        let Some(asked) = self.spelled.take(&name) else {
            payload.remove(&name);
            payload.miss(name);
            return;
        };
        if self.initial.contains_key(&*name) {
            self.taken_back.push(name.clone());
        }
        self.absent.push_back(name.clone());
        payload.push(&absent(name, &asked));
        if self.absent.len() > ABSENT
            && let Some(oldest) = self.absent.pop_front()
            && set.get(&oldest).is_none()
        {
            self.subscription.names.remove(&oldest);
        }
    }

    /// Tells what changed since the cursor; returns how far there was room.
    fn walk(
        &mut self,
        set: &ResourceSet,
        cursor: Cursor,
        hold: Option<Instant>,
        payload: &mut Payload,
    ) -> Cursor {
        let mut reached = cursor;
        for change in self.subscription.changes(set, cursor) {
            let resource = change.resource;
            if let Some(now) = hold.filter(|_| change.removed) {
                self.held.keep(&resource.name, (), now);
            } else if change.removed && payload.has_room() {
                match self.spelled.take(&resource.name) {
                    None => payload.remove(&resource.name),
                    Some(asked) => {
                        // One message cannot have both, and who waits needs this one.
                        payload.push(&absent(resource.name.clone(), &asked));
                        self.taken_back
                            .extend(asked.known.then(|| resource.name.clone()));
                    }
                }
            } else if !change.removed && self.holds_already(resource) {
                // Nothing to tell.
            } else if !change.removed && payload.fits(resource) {
                self.held.forget(&resource.name);
                payload.push(&spelled_as_asked(&mut self.spelled, resource));
            } else {
                return reached;
            }
            reached = change.at;
        }
        set.latest()
    }
}

fn absent(name: Arc<str>, asked: &spelling::Asked) -> Arc<Resource> {
    let kind = ResourceType::VirtualHost;
    Arc::new(Resource::absent(kind, name, &asked.aliases))
}

/// The resource as it is told: under the names that it was asked for by, if it has to be.
fn spelled_as_asked(spelled: &mut Spellings, resource: &Arc<Resource>) -> Arc<Resource> {
    match spelled.take(&resource.name) {
        Some(asked) => Arc::new(resource.aliased(&asked.aliases)),
        None => resource.clone(),
    }
}
