//! What one client knows and may expect, kept apart from the machine and written from the protocol.
//!
//! It panics where a response breaks a promise. Invariant: `held` is what a client holds that applied
//! every response, whether it acknowledged it or not.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use super::{super::TYPES, Ask, NAMES};
use crate::{
    resource::ResourceType::{self, Cluster, Listener, Route},
    xds::{
        conformance::Mesh,
        held::HOLD,
        rejection::FIRST_PAUSE,
        stream::{GATE, Response},
    },
};

/// Versions by name.
type Content = BTreeMap<String, u64>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    StateOfTheWorld,
    Incremental,
}

pub struct Model {
    mesh: Mesh,
    rules: Rules,
    views: BTreeMap<ResourceType, View>,
    removed_at: BTreeMap<(ResourceType, String), Instant>,
    versions: BTreeMap<(ResourceType, Content), String>,
    contents: BTreeMap<(ResourceType, String), Content>,
}

/// One resource type, as the client has it.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent")]
struct View {
    asked: bool,
    wildcard: bool,
    /// A state-of-the-world client that gave a name once has no legacy wildcard any more.
    named: bool,
    names: BTreeSet<String>,
    held: Content,
    nonces: Vec<String>,
    outstanding: Option<Outstanding>,
    /// May be told though the client holds it: asked, referred to, or changed meanwhile.
    again: BTreeSet<String>,
    /// Must be told before the end.
    due: BTreeSet<String>,
    /// Asked by name since it was last told: an answer need not wait for routes.
    prompt: BTreeSet<String>,
    /// Referred to by what was sent, so it must be told as well if it is there.
    follow: BTreeSet<String>,
    /// An answer must come, be it empty.
    answer: bool,
    /// The wildcard was switched on: what went just before need not wait.
    widened: bool,
    /// An answer was kept back since it had been rejected before.
    suppressed: bool,
    /// The last whole set.
    last: Option<Content>,
    /// The last whole set that was rejected, and from when on it may come again.
    refused_set: Option<(Content, Instant)>,
    /// What was rejected in partial responses, and from when on it may come again.
    refused: BTreeMap<String, (u64, Instant)>,
}

#[derive(Debug)]
struct Outstanding {
    nonce: String,
    since: Instant,
    content: Content,
}

impl View {
    /// Takes in what the client rejected.
    fn refuse(&mut self, content: Content, until: Instant) {
        let parts = content.iter();
        let parts = parts.map(|(name, version)| (name.clone(), (*version, until)));
        self.refused.extend(parts);
        self.refused_set = Some((content, until));
    }

    /// What was rejected comes again: it may be told though the client holds it.
    fn allow_offers(&mut self, content: &Content, now: Instant) {
        let due = |until: &Instant| *until <= now;
        for (name, version) in content {
            let offered = |(refused, until): &(u64, Instant)| refused == version && due(until);
            if self.refused.get(name).is_some_and(offered) {
                self.refused.remove(name);
                self.again.insert(name.clone());
            }
        }
        let offered = |(refused, until): &mut (Content, Instant)| refused == content && due(until);
        if self.refused_set.take_if(offered).is_some() {
            self.last = None;
            self.again.extend(content.keys().cloned());
        }
    }

    fn was_refused(&self, name: &str, version: u64) -> bool {
        let refused = self.refused.get(name);
        refused.is_some_and(|(refused, _)| *refused == version)
    }

    fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    fn forget_unwanted(&mut self) {
        let (wildcard, names) = (self.wildcard, &self.names);
        let wants = |name: &String| wildcard || names.contains(name);
        self.held.retain(|name, _| wants(name));
        self.due.retain(wants);
        self.follow.retain(wants);
    }

    fn expect_everything(&mut self) {
        self.again.extend(NAMES.map(str::to_owned));
        self.answer = true;
        self.widened = true;
    }

    fn subscribe_whole_or_parts(&mut self, ask: &Ask, whole: bool) {
        let first = !self.asked;
        let names: BTreeSet<_> = ask.names.iter().map(|name| (*name).to_owned()).collect();
        self.named |= !names.is_empty();
        let wildcard = names.contains("*") || (whole && !self.named);
        let names: BTreeSet<_> = names.into_iter().filter(|name| name != "*").collect();
        let added: Vec<_> = names.difference(&self.names).cloned().collect();
        if wildcard && !self.wildcard {
            self.expect_everything();
        }
        self.answer |= whole && (first || !added.is_empty());
        (self.wildcard, self.names) = (wildcard, names);
        self.forget_unwanted();
        self.again.extend(added.iter().cloned());
        if !whole {
            self.due.extend(added);
        }
    }

    fn subscribe_increments(&mut self, ask: &mut Ask) {
        let first = !self.asked;
        if ask.names.contains(&"*") || (first && ask.names.is_empty()) {
            self.wildcard = true;
            self.expect_everything();
        }
        for name in ask.names.iter().filter(|name| **name != "*") {
            self.names.insert((*name).to_owned());
            self.again.insert((*name).to_owned());
            self.prompt.insert((*name).to_owned());
            if !first {
                self.due.insert((*name).to_owned());
            }
        }
        if first {
            ask.held.retain(|(name, _)| self.wants(name));
            let held = ask.held.iter();
            self.held
                .extend(held.map(|(name, at)| ((*name).to_owned(), *at)));
        }
        for name in &ask.unsubscribe {
            self.unsubscribe(name);
        }
    }

    fn unsubscribe(&mut self, name: &str) {
        if name == "*" {
            self.wildcard = false;
            self.answer = false;
        } else if self.names.remove(name) && self.wildcard {
            // The client lets go of it, and is told what the wildcard holds.
            self.held.remove(name);
            self.due.insert(name.to_owned());
            self.prompt.insert(name.to_owned());
            self.again.insert(name.to_owned());
        }
        self.forget_unwanted();
    }
}

impl Model {
    pub fn new(mesh: Mesh, rules: Rules) -> Self {
        let views = TYPES.map(|kind| (kind, View::default()));
        Self {
            mesh,
            rules,
            views: views.into(),
            removed_at: BTreeMap::new(),
            versions: BTreeMap::new(),
            contents: BTreeMap::new(),
        }
    }

    pub fn nonces(&self, kind: ResourceType) -> &[String] {
        &self.views[&kind].nonces
    }

    /// What an answer to the outstanding response says: the names to repeat, and its nonce.
    pub fn answer(&self, kind: ResourceType) -> Option<(Vec<&'static str>, String)> {
        let view = &self.views[&kind];
        let nonce = view.outstanding.as_ref()?.nonce.clone();
        if self.rules == Rules::Incremental {
            return Some((Vec::new(), nonce));
        }
        let known = NAMES.into_iter().chain(["never"]);
        let mut names: Vec<_> = known.filter(|name| view.names.contains(*name)).collect();
        if view.wildcard && view.named {
            names.push("*");
        }
        Some((names, nonce))
    }

    pub fn touched(&mut self, kind: ResourceType, name: &str) {
        self.note_if_gone(kind, name);
        self.view(kind).again.insert(name.to_owned());
    }

    /// A removal waits from the first time on; the client need not see that the name came and went.
    fn note_if_gone(&mut self, kind: ResourceType, name: &str) {
        if !self.mesh.content(kind).contains_key(name) {
            let now = self.mesh.now();
            let key = (kind, name.to_owned());
            self.removed_at.entry(key).or_insert(now);
        }
    }

    pub fn asked(&mut self, kind: ResourceType, ask: &mut Ask, nonce: &str) {
        let rules = self.rules;
        let until = self.mesh.now() + FIRST_PAUSE;
        let view = self.view(kind);
        if let Some(answered) = view.outstanding.take_if(|o| o.nonce == nonce)
            && ask.reject
        {
            view.refuse(answered.content, until);
        }
        match rules {
            Rules::StateOfTheWorld => view.subscribe_whole_or_parts(ask, is_whole(kind)),
            Rules::Incremental => view.subscribe_increments(ask),
        }
        view.asked = true;
        for (name, _) in ask.held.iter().filter(|_| rules == Rules::Incremental) {
            self.note_if_gone(kind, name);
        }
    }

    pub fn heard(&mut self, kind: ResourceType, response: &Response) {
        let since = self.mesh.now();
        let view = &self.views[&kind];
        assert!(view.asked, "nobody asked: {response:?}");
        assert!(view.outstanding.is_none(), "a second one: {response:?}");
        self.check_gate(kind);
        let content: Content = response
            .resources
            .iter()
            .map(|r| (r.name.to_string(), r.version.0))
            .collect();
        self.view(kind).allow_offers(&content, since);
        let view = &self.views[&kind];
        let removed = response.removed.iter().map(ToString::to_string);
        for name in content.keys().cloned().chain(removed) {
            assert!(view.wants(&name), "unwanted `{name}`: {response:?}");
        }
        match self.rules {
            Rules::StateOfTheWorld if is_whole(kind) => self.heard_whole(kind, &content, response),
            Rules::StateOfTheWorld => self.heard_parts(kind, &content, response),
            Rules::Incremental => self.heard_increment(kind, &content, response),
        }
        let live = self.mesh.content(kind);
        self.removed_at.retain(|(of, name), _| {
            *of != kind || (!live.contains_key(name) && self.views[&kind].held.contains_key(name))
        });
        let view = self.view(kind);
        view.answer = false;
        view.widened = false;
        view.suppressed = false;
        view.nonces.push(response.nonce.clone());
        view.outstanding = Some(Outstanding {
            nonce: response.nonce.clone(),
            since,
            content,
        });
    }

    fn heard_whole(&mut self, kind: ResourceType, content: &Content, response: &Response) {
        let live = self.wanted(kind);
        for (name, version) in &live {
            assert_eq!(content.get(name), Some(version), "{response:?}");
        }
        let extra = content.keys().filter(|name| !live.contains_key(*name));
        assert!(
            kind == Cluster || extra.count() == 0,
            "not there: {response:?}"
        );
        let view = &self.views[&kind];
        let news = view.answer || view.last.as_ref() != Some(content);
        assert!(news, "nothing new: {response:?}");
        let refused = view.refused_set.as_ref().map(|(refused, _)| refused);
        assert_ne!(refused, Some(content), "rejected before");
        let gone: Vec<_> = view
            .held
            .keys()
            .filter(|name| !content.contains_key(*name))
            .cloned()
            .collect();
        if kind == Cluster && !(view.widened || view.suppressed) {
            for name in &gone {
                self.check_hold(kind, name);
            }
        }
        self.refer(kind, content);
        let view = self.view(kind);
        view.held.clone_from(content);
        view.last = Some(content.clone());
        view.again.retain(|name| !content.contains_key(name));
        self.note_version(kind, content, &response.version);
    }

    fn heard_parts(&mut self, kind: ResourceType, content: &Content, response: &Response) {
        let view = &self.views[&kind];
        assert!(!content.is_empty() || view.answer, "empty: {response:?}");
        for (name, version) in content {
            let refused = view.was_refused(name, *version);
            assert!(!refused, "`{name}` was rejected before: {response:?}");
        }
        self.check_news(kind, content, response);
        self.tell(kind, content);
        self.note_version(kind, &self.wanted(kind), &response.version);
    }

    fn heard_increment(&mut self, kind: ResourceType, content: &Content, response: &Response) {
        let live = self.mesh.content(kind);
        let view = &self.views[&kind];
        let empty = content.is_empty() && response.removed.is_empty();
        assert!(!empty || view.answer, "empty: {response:?}");
        self.check_news(kind, content, response);
        for name in &response.removed {
            assert!(
                !live.contains_key(&**name),
                "`{name}` is there: {response:?}"
            );
            let news = view.held.contains_key(&**name) || view.again.contains(&**name);
            assert!(news, "nobody has `{name}`: {response:?}");
            if view.held.contains_key(&**name) && !view.prompt.contains(&**name) {
                self.check_hold(kind, name);
            }
        }
        self.refer(kind, content);
        self.tell(kind, content);
        let view = self.view(kind);
        for name in &response.removed {
            view.held.remove(&**name);
            view.again.remove(&**name);
            view.due.remove(&**name);
            view.follow.remove(&**name);
            view.prompt.remove(&**name);
        }
        self.note_version(kind, &live, &response.version);
    }

    /// The server was asked: where its answer would be what was rejected, it stays silent.
    pub fn polled(&mut self) {
        for kind in [Cluster, Listener] {
            let (wanted, live) = (self.wanted(kind), self.mesh.content(kind));
            let view = self.view(kind);
            let free = view.outstanding.is_none();
            // Clusters that are gone may be kept back in the set.
            let same = view.refused_set.as_ref().is_some_and(|(refused, _)| {
                let mut known = refused.clone();
                known.retain(|name, _| wanted.contains_key(name) || !live.contains_key(name));
                wanted.iter().all(|(name, at)| known.get(name) == Some(at)) && known == *refused
            });
            view.suppressed |= free && same;
        }
    }

    /// Each resource is in its latest state, and not what the client holds already.
    fn check_news(&self, kind: ResourceType, content: &Content, response: &Response) {
        let (view, live) = (&self.views[&kind], self.mesh.content(kind));
        for (name, version) in content {
            assert_eq!(
                live.get(name),
                Some(version),
                "not the latest: {response:?}"
            );
            let news = view.held.get(name) != Some(version) || view.again.contains(name);
            assert!(news, "`{name}` is held already: {response:?}");
        }
    }

    fn tell(&mut self, kind: ResourceType, content: &Content) {
        let view = self.view(kind);
        for (name, version) in content {
            view.held.insert(name.clone(), *version);
            view.again.remove(name);
            view.due.remove(name);
            view.follow.remove(name);
            view.prompt.remove(name);
        }
    }

    /// What a new cluster or listener refers to has to follow.
    fn refer(&mut self, kind: ResourceType, content: &Content) {
        let Some(referred) = kind.refers_to() else {
            return;
        };
        let view = &self.views[&kind];
        let (changed, other): (Vec<_>, Vec<_>) = content
            .iter()
            .partition(|(name, version)| view.held.get(*name) != Some(version));
        let changed: Vec<_> = changed.into_iter().map(|(name, _)| name.clone()).collect();
        let other = other.into_iter().map(|(name, _)| name.clone());
        let other: Vec<_> = other.filter(|name| view.again.contains(name)).collect();
        let target = self.view(referred);
        if target.asked {
            target.again.extend(changed.iter().chain(&other).cloned());
            target.follow.extend(changed);
            target.forget_unwanted();
        }
    }

    /// Listeners and routes wait for the ACK of the clusters.
    fn check_gate(&self, kind: ResourceType) {
        let waits = matches!(kind, Listener | Route) && self.gate_is_closed();
        assert!(!waits, "before the ACK of the clusters");
    }

    fn gate_is_closed(&self) -> bool {
        let clusters = self.views[&Cluster].outstanding.as_ref();
        clusters.is_some_and(|o| self.mesh.now() < o.since + GATE)
    }

    /// A removal waits for listeners and routes.
    fn check_hold(&self, kind: ResourceType, name: &str) {
        if matches!(kind, Listener | Route) {
            return;
        }
        let since = self.removed_at.get(&(kind, name.to_owned()));
        let late = since.is_none_or(|since| self.mesh.now() >= *since + HOLD);
        let settled = || [Listener, Route].iter().all(|kind| self.is_settled(*kind));
        assert!(late || settled(), "`{name}` is needed");
    }

    /// Acknowledged, and with nothing left to tell.
    fn is_settled(&self, kind: ResourceType) -> bool {
        let view = &self.views[&kind];
        !view.asked || (view.outstanding.is_none() && self.is_up_to_date(kind))
    }

    fn is_up_to_date(&self, kind: ResourceType) -> bool {
        let (view, wanted) = (&self.views[&kind], self.wanted(kind));
        match self.rules {
            Rules::Incremental => view.held == wanted,
            Rules::StateOfTheWorld if is_whole(kind) => {
                let refused = view.refused_set.as_ref();
                view.held == wanted || refused.is_some_and(|(refused, _)| *refused == wanted)
            }
            Rules::StateOfTheWorld => wanted.iter().all(|(name, version)| {
                view.held.get(name) == Some(version) || view.was_refused(name, *version)
            }),
        }
    }

    pub fn check_settled(&self) {
        for (kind, view) in self.views.iter().filter(|(_, view)| view.asked) {
            let wanted = self.wanted(*kind);
            assert!(self.is_up_to_date(*kind), "{kind:?} {wanted:?}: {view:#?}");
            let silent = view.answer && !view.suppressed;
            assert!(!silent, "{kind:?} had no answer: {view:#?}");
            let told = |name: &&String| {
                let version = wanted.get(*name);
                version.is_none_or(|version| view.was_refused(name, *version))
            };
            let due = view.due.iter().filter(|name| match self.rules {
                Rules::Incremental => true,
                Rules::StateOfTheWorld => !told(name),
            });
            assert_eq!(due.count(), 0, "{kind:?} due: {view:#?}");
            let follow = view.follow.iter().filter(|name| !told(name));
            assert_eq!(follow.count(), 0, "{kind:?} referred to: {view:#?}");
        }
    }

    /// Equal content has an equal version, and other content another.
    pub fn note_version(&mut self, kind: ResourceType, content: &Content, version: &str) {
        let known = self
            .versions
            .entry((kind, content.clone()))
            .or_insert_with(|| version.to_owned());
        assert_eq!(known, version, "{kind:?}: a second version of {content:?}");
        let known = self
            .contents
            .entry((kind, version.to_owned()))
            .or_insert_with(|| content.clone());
        assert_eq!(known, content, "{kind:?}: one version of two contents");
    }

    fn wanted(&self, kind: ResourceType) -> Content {
        let view = &self.views[&kind];
        let mut content = self.mesh.content(kind);
        content.retain(|name, _| view.wants(name));
        content
    }

    fn view(&mut self, kind: ResourceType) -> &mut View {
        self.views.get_mut(&kind).unwrap()
    }
}

/// Whether responses in the state of the world are whole sets.
fn is_whole(kind: ResourceType) -> bool {
    matches!(kind, Cluster | Listener)
}
