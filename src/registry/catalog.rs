//! All registries as one: what each mirrors for itself, and what a mesh sees of them together.
//!
//! A service that several registries hold is one service. Its instances are those of all of them, by
//! address and port; where two hold the same, the first counts (least priority number, then the order
//! of the configuration), but one that is registered before one that only its guard holds. Priorities stay with the instances, for clients to fail over by.
//!
//! It refuses to know znodes. Invariants: a registry that is down or odd changes nothing of what another
//! holds; the whole costs what a change touches; with one registry the whole is that registry.

mod hosts;
mod merged;

use std::{collections::BTreeMap, sync::Arc};

use imbl::{OrdMap, OrdSet, ordmap::DiffItem};

use self::{hosts::Hosts, merged::Merged};
use super::{
    Addresses, Batch, Changes, Config, Former, Guarded, Moment, Rejected, Resolution, Restored,
    View,
    guard::{self, Notice, Services},
    journal::{Cause, Journal, What},
};
use crate::model::{Service, Touched};

#[derive(Debug)]
pub struct Catalog {
    /// In the order of priority, then as configured.
    ranked: Vec<usize>,
    registries: Vec<Guarded>,
    merged: Merged,
    hosts: Hosts,
    journal: Journal,
    rejections: BTreeMap<String, Rejected>,
    /// What the wall clock shows beyond the steady one.
    epoch: i64,
}

/// What a mesh sees, and what each registry holds. Cloning costs nothing.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    /// Of all registries, by name.
    pub services: OrdMap<Arc<str>, Arc<Service>>,
    /// As configured.
    pub registries: Arc<[Mirrored]>,
    /// Services that are not served since a service of another registry has their host name, by
    /// name.
    pub conflicts: OrdMap<Arc<str>, Rejected>,
    /// What happened lately.
    pub journal: Journal,
    /// What the wall clock shows beyond the clock that times are measured by.
    pub epoch: i64,
}

/// One registry for itself.
#[derive(Clone, Debug)]
pub struct Mirrored {
    pub name: Arc<str>,
    pub config: Arc<Config>,
    /// What host names in its registrations resolve to.
    pub addresses: Addresses,
    pub view: View,
    /// Whether its whole tree was seen once, or what was restored is served.
    pub loaded: bool,
    /// Whether it has no root, so that the others do not wait for it.
    pub absent: bool,
    /// Until the tree was seen, where there is a state of a former process.
    pub restored: Option<Restored>,
}

impl Catalog {
    pub fn new(configs: Vec<Config>, guard: &guard::Config) -> Self {
        let mut ranked: Vec<usize> = (0..configs.len()).collect();
        ranked.sort_by_key(|at| configs[*at].priority);
        Self {
            ranked,
            registries: (configs.into_iter())
                .map(|config| Guarded::new(config, guard.clone()))
                .collect(),
            merged: Merged::default(),
            hosts: Hosts::default(),
            journal: Journal::default(),
            rejections: BTreeMap::new(),
            epoch: 0,
        }
    }

    /// Mirrors a batch of the registry at that place of the configuration, told at `now`.
    pub fn apply(&mut self, registry: usize, batch: Batch, now: impl Into<Moment>) -> Changes {
        let now = now.into();
        let cause = if batch.complete {
            Cause::Comparison
        } else if batch.audited {
            Cause::Audit
        } else {
            Cause::Watch
        };
        let changes = self.change(registry, now, cause, |registry| registry.apply(batch, now));
        self.merge(changes)
    }

    /// What changes by time alone.
    pub fn tick(&mut self, now: impl Into<Moment>) -> Changes {
        let now = now.into();
        self.each(now, Cause::Time, |registry| registry.tick(now.time))
    }

    /// Nobody looked at any registry for the last `away` milliseconds: the process stood still.
    pub fn stood_still(&mut self, away: guard::Time, now: impl Into<Moment>) {
        let now = now.into();
        for registry in &mut self.registries {
            registry.stood_still(away, now);
        }
    }

    /// When to tick next.
    pub fn due(&self) -> Option<i64> {
        self.registries.iter().filter_map(Guarded::due).min()
    }

    /// The host names whose addresses are asked for; costs nothing.
    pub fn wanted_hosts(&self) -> OrdSet<Arc<str>> {
        self.hosts.wanted()
    }

    /// How many host names were never looked up.
    pub fn waits_for_hosts(&self) -> usize {
        (self.registries.iter()).map(Guarded::waits_for_hosts).sum()
    }

    /// What a host name resolves to, or why there is nothing. `None` if that is no news.
    pub fn resolved(
        &mut self,
        host: &str,
        resolution: &Resolution,
        now: impl Into<Moment>,
    ) -> Option<Changes> {
        let now = now.into();
        let news = self.hosts.learn(host, resolution);
        news.then(|| {
            self.each(now, Cause::Resolution, |registry| {
                registry.resolved(host, resolution.clone(), now.time)
            })
        })
    }

    /// Begins with what a former process knew of the registry at that place. Nothing was published before.
    pub fn restore(&mut self, registry: usize, former: Former, now: impl Into<Moment>) {
        let (at, now) = (registry, now.into());
        if let Some(registry) = self.registries.get_mut(at) {
            registry.knows_hosts(self.hosts.known());
            let changes = registry.restore(former, now);
            self.hosts.ask(at, registry.wanted_hosts(), now.time);
            for (host, found) in registry.addresses().clone() {
                self.hosts.learn(&host, &Ok(found.to_vec()));
            }
            self.epoch = now.epoch();
            self.merge(changes);
        }
    }

    /// Serves what was restored of the registries that were not seen yet; their places.
    pub fn serve_restored(&mut self) -> Vec<usize> {
        let mut served = Vec::new();
        for (at, registry) in self.registries.iter_mut().enumerate() {
            if registry.serve_restored() {
                served.push(at);
            }
        }
        served
    }

    /// Lets go what is held of a service, or of all, in one registry or in all; with how many instances that
    /// were.
    pub fn release(
        &mut self,
        registry: Option<&str>,
        service: Option<&str>,
        now: impl Into<Moment>,
    ) -> (usize, Changes) {
        let now = now.into();
        let (mut released, mut all) = (0, Changes::new());
        for at in 0..self.registries.len() {
            let is_meant = |of: &Guarded| registry.is_none_or(|name| *of.name() == *name);
            if !self.registries.get(at).is_some_and(is_meant) {
                continue;
            }
            let changes = self.change(at, now, Cause::Operator, |registry| {
                let (count, changes) = registry.release(service);
                released += count;
                changes
            });
            join(&mut all, changes);
        }
        (released, self.merge(all))
    }

    /// Removes held instances of the registry at that place of the configuration, since their addresses refuse
    /// connections; returns how many there were.
    pub fn refused(
        &mut self,
        registry: usize,
        refused: &guard::Refused,
        now: impl Into<Moment>,
    ) -> (usize, Changes) {
        let now = now.into();
        let mut removed = 0;
        let changes = self.change(registry, now, Cause::Probe, |registry| {
            let (count, changes) = registry.refused(refused);
            removed = count;
            changes
        });
        (removed, self.merge(changes))
    }

    /// What operators should hear of the guards since the last call, by the registries' names. It is
    /// written down as of `now`.
    pub fn take_notices(&mut self, now: impl Into<Moment>) -> Vec<(Arc<str>, Notice)> {
        let now = now.into();
        let notices = self.registries.iter_mut().flat_map(|registry| {
            let name = registry.name();
            let notices = registry.take_notices().into_iter();
            notices.map(move |notice| (Arc::clone(&name), notice))
        });
        let notices: Vec<_> = notices.collect();
        for (registry, notice) in &notices {
            let what = What::Guard(notice.clone());
            self.journal.record(now.wall, registry, what);
        }
        notices
    }

    /// As configured.
    pub fn registries(&self) -> &[Guarded] {
        &self.registries
    }

    /// The registry at a place of the configuration.
    pub fn registry(&self, at: usize) -> Option<&Guarded> {
        self.registries.get(at)
    }

    fn each(
        &mut self,
        now: Moment,
        cause: Cause,
        change: impl Fn(&mut Guarded) -> Changes,
    ) -> Changes {
        let mut all = Changes::new();
        for registry in 0..self.registries.len() {
            join(&mut all, self.change(registry, now, cause, &change));
        }
        self.merge(all)
    }

    /// Changes one registry and writes down what became of it.
    fn change(
        &mut self,
        registry: usize,
        now: Moment,
        cause: Cause,
        change: impl FnOnce(&mut Guarded) -> Changes,
    ) -> Changes {
        let at = registry;
        let others = self.registered_beside(at);
        self.epoch = now.epoch();
        let Some(registry) = self.registries.get_mut(at) else {
            return Changes::new();
        };
        let (known, before) = (registry.loaded(), registry.view());
        registry.knows_hosts(self.hosts.known());
        if !others.is_empty() {
            registry.sees_others(others);
        }
        let mut changes = change(registry);
        self.hosts.ask(at, registry.wanted_hosts(), now.time);
        let (name, after) = (registry.name(), registry.view());
        if known {
            let views = (&before, &after);
            self.journal.follow(now.wall, &name, cause, views, &changes);
        } else if registry.loaded() {
            let services = after.services.len();
            self.journal
                .record(now.wall, &name, What::Loaded { services });
            self.journal
                .follow_holds(now.wall, &name, (&before, &after));
        }
        for (path, rejected) in registry.take_rejections() {
            let what = What::Rejected {
                path: path.clone(),
                rejected: rejected.clone(),
            };
            self.journal.record(now.wall, &name, what);
            self.rejections.insert(path, rejected);
        }
        if self.registries.len() > 1 {
            join(&mut changes, unlike(&before, &after));
        }
        changes
    }

    /// What the other registries have registered.
    fn registered_beside(&self, at: usize) -> Vec<Services> {
        let others = self
            .registries
            .iter()
            .enumerate()
            .filter(|(of, _)| *of != at);
        others.map(|(_, registry)| registry.registered()).collect()
    }

    pub fn picture(&self) -> Picture {
        let mirrored = |registry: &Guarded| Mirrored {
            name: registry.name(),
            config: Arc::clone(registry.config()),
            addresses: registry.addresses().clone(),
            view: registry.view(),
            loaded: registry.loaded(),
            absent: registry.absent(),
            restored: registry.restored(),
        };
        Picture {
            services: self.services(),
            registries: self.registries.iter().map(mirrored).collect(),
            conflicts: self.merged.conflicts.clone(),
            journal: self.journal.clone(),
            epoch: self.epoch,
        }
    }

    /// Every registry that has to be there was seen whole once, or has no root. At least one was seen.
    pub fn loaded(&self) -> bool {
        let mut required = (self.registries.iter()).filter(|registry| registry.config().required);
        self.registries.iter().any(Guarded::loaded)
            && required.all(|registry| registry.loaded() || registry.absent())
    }

    /// The znodes that were rejected since the last call, by path.
    pub fn take_rejections(&mut self) -> BTreeMap<String, Rejected> {
        std::mem::take(&mut self.rejections)
    }

    /// Whether the znode at a full path is rejected now.
    pub fn rejects(&self, path: &str) -> bool {
        let mut registries = self.registries.iter();
        registries.any(|registry| registry.view().rejected.contains_key(path))
    }

    fn services(&self) -> OrdMap<Arc<str>, Arc<Service>> {
        match &self.registries[..] {
            [only] => only.view().services,
            _ => self.merged.services.clone(),
        }
    }

    fn merge(&mut self, changes: Changes) -> Changes {
        if self.registries.len() == 1 {
            return changes;
        }
        let views: Vec<_> = self
            .ranked
            .iter()
            .map(|at| self.registries[*at].view())
            .collect();
        self.merged.follow(&views, changes)
    }
}

/// Where two views of a registry differ, also where only operators can see it: the origin of an instance, and
/// whether it is held or lingers. Another registry may serve its address instead. It costs about what differs.
fn unlike(before: &View, after: &View) -> Changes {
    let mut changes = Changes::new();
    for item in before.services.diff(&after.services) {
        let (name, touched) = match item {
            DiffItem::Add(name, _) | DiffItem::Remove(name, _) => (name, Touched::All),
            DiffItem::Update {
                old: (_, was),
                new: (name, is),
            } => (
                name,
                Touched::Some(was.instances.differences(&is.instances)),
            ),
        };
        changes.insert(Arc::clone(name), touched);
    }
    let holds = [(&before.holds, &after.holds), (&after.holds, &before.holds)];
    for (from, to) in holds {
        for (name, held) in to.since(from) {
            let socket = Touched::Some([held.instance.socket()].into());
            join(&mut changes, [(name, socket)].into());
        }
    }
    let lingering = [
        (&before.lingering, &after.lingering),
        (&after.lingering, &before.lingering),
    ];
    for (from, to) in lingering {
        for (name, instance) in to.ended(from) {
            let socket = Touched::Some([instance.socket()].into());
            join(&mut changes, [(Arc::clone(name), socket)].into());
        }
    }
    changes
}

/// Adds what changed to what changed before.
pub fn join(all: &mut Changes, later: Changes) {
    for (name, touched) in later {
        match all.get_mut(&name) {
            Some(before) => before.merge(touched),
            None => drop(all.insert(name, touched)),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        model::{Instance, Instances},
        registry::{Event, Layout, Shape, Stat, format::FormatChoice},
    };

    fn config(name: &str, priority: u8) -> Config {
        Config {
            name: name.to_owned(),
            root: "/services".to_owned(),
            layout: Layout::flat(),
            format: FormatChoice::Auto,
            priority,
            required: true,
            ttl: None,
            shape: Shape::default(),
        }
    }

    /// What goes goes: the guard has tests of its own.
    fn unguarded() -> guard::Config {
        guard::Config {
            enabled: false,
            ..guard::Config::default()
        }
    }

    fn put(path: &str, data: &str) -> Event {
        Event::Put {
            path: path.into(),
            data: Bytes::copy_from_slice(data.as_bytes()),
            stat: Stat::default(),
        }
    }

    fn delete(path: &str) -> Event {
        Event::Delete { path: path.into() }
    }

    fn told(events: impl Into<Vec<Event>>) -> Batch {
        Batch {
            events: events.into(),
            complete: true,
            ..Batch::default()
        }
    }

    /// `address registry/priority` of each instance.
    fn served(catalog: &Catalog, service: &str) -> Vec<String> {
        let picture = catalog.picture();
        let instances = picture.services.get(service).map(|s| s.instances.clone());
        let text = |i: &Arc<Instance>| {
            let registry = &i.origin.source.registry;
            format!("{} {registry}/{}", i.address, i.priority)
        };
        instances.unwrap_or_default().iter().map(text).collect()
    }

    #[test]
    fn a_service_of_several_registries_is_one() {
        let mut catalog = Catalog::new(vec![config("b", 1), config("a", 0)], &unguarded());
        catalog.apply(
            0,
            told([put("s/1", "10.0.0.1:80"), put("s/2", "10.0.0.2:80")]),
            0,
        );
        let changes = catalog.apply(
            1,
            told([put("s/1", "10.0.0.1:80"), put("s/3", "10.0.0.3:80")]),
            0,
        );
        assert_eq!(changes.len(), 1);
        assert_eq!(
            served(&catalog, "s"),
            ["10.0.0.1 a/0", "10.0.0.2 b/1", "10.0.0.3 a/0"]
        );
        // The same socket steps in where the first goes.
        catalog.apply(1, told([delete("s")]), 0);
        assert_eq!(served(&catalog, "s"), ["10.0.0.1 b/1", "10.0.0.2 b/1"]);
    }

    /// A member of a `ServerSet` whose host has a name.
    fn named(path: &str, host: &str) -> Event {
        let endpoint = format!(r#"{{"host":"{host}","port":80}}"#);
        let data = format!(
            r#"{{"serviceEndpoint":{endpoint},"additionalEndpoints":{{}},"status":"ALIVE"}}"#
        );
        put(path, &data)
    }

    #[test]
    fn what_a_name_is_resolved_to_is_for_every_registry_and_every_registration() {
        let mut catalog = Catalog::new(vec![config("a", 0), config("b", 0)], &unguarded());
        let db = Ok(vec![[10, 0, 0, 9].into()]);
        assert!(catalog.resolved("db", &db, 0).is_none(), "nobody asks");
        catalog.apply(0, told([named("s/member_01", "db")]), 0);
        assert_eq!(catalog.waits_for_hosts(), 1);
        assert_eq!(catalog.resolved("db", &db, 0).unwrap().len(), 1);
        assert!(catalog.resolved("db", &db, 0).is_none());

        // One that goes and another that comes, told together and told apart.
        let mut changes = catalog.apply(
            0,
            told([delete("s/member_01"), named("s/member_02", "db")]),
            1,
        );
        assert_eq!(served(&catalog, "s"), ["10.0.0.9 a/0"], "{changes:?}");
        catalog.apply(0, told([delete("s/member_02")]), 2);
        assert!(served(&catalog, "s").is_empty());
        changes = catalog.apply(0, told([named("s/member_03", "db")]), 3);
        assert_eq!(served(&catalog, "s"), ["10.0.0.9 a/0"], "{changes:?}");

        // Another registry, which nobody tells of the name again.
        catalog.apply(1, told([named("t/member_01", "db")]), 4);
        assert_eq!(served(&catalog, "t"), ["10.0.0.9 b/0"]);
        assert_eq!(catalog.waits_for_hosts(), 0);
        assert!(catalog.picture().registries[1].view.rejected.is_empty());
    }

    #[test]
    fn who_is_registered_is_served_rather_than_who_is_held_of_a_registry_before() {
        let mut catalog = Catalog::new(
            vec![config("a", 0), config("b", 1)],
            &guard::Config::default(),
        );
        let all = |put: &dyn Fn(u8) -> Event| told((1..=9).map(put).collect::<Vec<_>>());
        let there = |n: u8| put(&format!("s/{n}"), &format!("10.0.0.{n}:80"));
        let gone = |n: u8| delete(&format!("s/{n}"));
        catalog.apply(0, all(&there), 0);
        catalog.apply(1, told([there(1)]), 0);
        assert_eq!(served(&catalog, "s")[..2], ["10.0.0.1 a/0", "10.0.0.2 a/0"]);
        let changes = catalog.apply(0, all(&gone), 0);
        assert_eq!(served(&catalog, "s")[..2], ["10.0.0.1 b/1", "10.0.0.2 a/0"]);
        let first = Touched::Some([([10, 0, 0, 1].into(), 80)].into());
        assert_eq!(changes, [("s".into(), first)].into());
        // While both only hold it, and when it is back where it was, the first counts.
        catalog.apply(1, told([delete("s")]), 0);
        assert_eq!(served(&catalog, "s")[0], "10.0.0.1 a/0");
        catalog.apply(0, told([there(1)]), 0);
        assert_eq!(served(&catalog, "s")[0], "10.0.0.1 a/0");
    }

    #[test]
    fn an_instance_under_another_znode_is_shown_there_beside_another_registry() {
        let mut catalog = Catalog::new(vec![config("a", 0), config("b", 0)], &unguarded());
        let data = r#"{"id":"x","address":"10.0.0.1","port":80,"serviceType":"DYNAMIC"}"#;
        let created = |path: &str, czxid: i64| Event::Put {
            path: path.into(),
            data: Bytes::from_static(data.as_bytes()),
            stat: Stat {
                czxid,
                mzxid: czxid,
                ..Stat::default()
            },
        };
        let shown = |catalog: &Catalog| {
            let services = catalog.picture().services;
            let origin = services["s"]
                .instances
                .iter()
                .next()
                .unwrap()
                .origin
                .clone();
            (origin.znode.to_string(), origin.mzxid)
        };
        catalog.apply(1, told([]), 0);
        catalog.apply(0, told([created("s/i-1", 1)]), 0);
        let changes = catalog.apply(0, told([created("s/i-2", 2)]), 0);
        assert!(changes.is_empty(), "no client could tell: {changes:?}");
        assert_eq!(shown(&catalog), ("s/i-2".to_owned(), 2));
        catalog.apply(0, told([delete("s/i-1")]), 0);
        assert_eq!(shown(&catalog), ("s/i-2".to_owned(), 2));
        // Written again with the same data.
        catalog.apply(0, told([created("s/i-2", 3)]), 0);
        assert_eq!(shown(&catalog), ("s/i-2".to_owned(), 3));
    }

    #[test]
    fn the_last_instance_of_a_registry_lingers_only_where_no_other_serves() {
        let guard = guard::Config {
            linger: std::time::Duration::from_secs(2),
            ..unguarded()
        };
        let mut catalog = Catalog::new(vec![config("a", 0), config("b", 1)], &guard);
        catalog.apply(0, told([put("s/1", "10.0.0.1:80")]), 0);
        catalog.apply(1, told([put("s/2", "10.0.0.2:80")]), 0);
        assert!(catalog.apply(0, told([delete("s/1")]), 10).is_empty());
        assert_eq!(catalog.due(), Some(110));
        assert_eq!(catalog.tick(110).len(), 1);
        assert_eq!(served(&catalog, "s"), ["10.0.0.2 b/1"]);
        assert!(catalog.apply(1, told([delete("s/2")]), 200).is_empty());
        assert_eq!(catalog.due(), Some(2_200));
        // What is registered counts before what lingers.
        catalog.apply(0, told([put("s/1", "10.0.0.2:80")]), 210);
        assert_eq!(served(&catalog, "s"), ["10.0.0.2 a/0"]);
        let picture = catalog.picture();
        let verbs: Vec<_> = picture.journal.entries().map(|e| e.what.verb()).collect();
        assert!(verbs.contains(&"lingers"), "{verbs:?}");
        catalog.tick(2_200);
        assert_eq!(served(&catalog, "s"), ["10.0.0.2 a/0"]);
    }

    #[test]
    fn the_journal_tells_what_the_audit_found_from_what_a_watch_told() {
        let mut catalog = Catalog::new(vec![config("a", 0)], &unguarded());
        catalog.apply(0, told([put("s/1", "10.0.0.1:80")]), 0);
        for (at, audited) in [(2, true), (3, false)] {
            let batch = Batch {
                events: vec![put(&format!("s/{at}"), &format!("10.0.0.{at}:80"))],
                audited,
                ..Batch::default()
            };
            catalog.apply(0, batch, at);
        }
        let picture = catalog.picture();
        let why = |at: i64| {
            let mut entries = picture.journal.entries();
            entries.find(|entry| entry.at == at).unwrap().what.why()
        };
        assert!(why(2).ends_with("found by the audit, no watch had told"));
        assert!(!why(3).contains("audit"));
    }

    #[test]
    fn the_whole_is_loaded_when_all_that_are_required_are() {
        let optional = Config {
            required: false,
            ..config("b", 0)
        };
        let mut catalog = Catalog::new(vec![config("a", 0), optional], &unguarded());
        catalog.apply(1, told([]), 0);
        assert!(!catalog.loaded());
        catalog.apply(0, told([]), 0);
        assert!(catalog.loaded());
    }

    #[test]
    fn of_two_services_with_one_host_the_first_registrys_is_served() {
        let mut catalog = Catalog::new(vec![config("a", 0), config("b", 0)], &unguarded());
        catalog.apply(1, told([put("Orders/1", "10.0.0.2:80")]), 0);
        assert_eq!(served(&catalog, "Orders").len(), 1);
        let changes = catalog.apply(0, told([put("orders/1", "10.0.0.1:80")]), 0);
        assert_eq!(
            changes.keys().map(|n| &**n).collect::<Vec<_>>(),
            ["Orders", "orders"]
        );
        assert!(served(&catalog, "Orders").is_empty());
        let conflicts = catalog.picture().conflicts;
        assert!(
            conflicts["Orders"]
                .reason
                .contains("service `orders` of another")
        );
        catalog.apply(0, told([delete("orders")]), 0);
        assert_eq!(served(&catalog, "Orders").len(), 1);
        assert!(catalog.picture().conflicts.is_empty());
    }

    proptest! {
        #[test]
        fn the_whole_follows_its_parts(
            steps in prop::collection::vec((0..3usize, prop::sample::select(vec!["s", "S", "t"]), 1..4u8, any::<bool>()), 1..60),
        ) {
            let all = ["a", "b", "c"].map(|name| config(name, u8::from(name == "a")));
            let mut catalog = Catalog::new(all.to_vec(), &unguarded());
            let mut before = catalog.picture();
            for (registry, service, n, there) in steps {
                let path = format!("{service}/{n}");
                let event = if there { put(&path, &format!("10.0.0.{n}:80")) } else { delete(&path) };
                let changes = catalog.apply(registry, told([event]), 0);
                let now = catalog.picture();
                for (name, service) in &now.services {
                    let same = before.services.get(name).is_some_and(|b| b.instances.iter().eq_by_likeness(&service.instances));
                    prop_assert_eq!(!same, changes.contains_key(name), "{}", name);
                }
                for name in before.services.keys().filter(|name| !now.services.contains_key(*name)) {
                    prop_assert_eq!(&changes[name], &Touched::All);
                }
                before = now;
            }
            // Built anew from what each holds now.
            let views: Vec<_> = catalog.ranked.iter().map(|at| catalog.registries[*at].view()).collect();
            let names = views.iter().flat_map(|v| v.services.keys().cloned());
            let mut anew = Merged::default();
            anew.follow(&views, names.map(|name| (name, Touched::All)).collect());
            prop_assert_eq!(&anew.services, &before.services);
            prop_assert_eq!(&anew.conflicts, &before.conflicts);
        }
    }

    trait Likeness {
        fn eq_by_likeness(self, others: &Instances) -> bool;
    }

    impl<'i, I: Iterator<Item = &'i Arc<Instance>>> Likeness for I {
        fn eq_by_likeness(self, others: &Instances) -> bool {
            let mine: Vec<_> = self.collect();
            let others: Vec<_> = others.iter().collect();
            let like = |(a, b): (&&Arc<Instance>, &&Arc<Instance>)| a.is_like(b);
            mine.len() == others.len() && mine.iter().zip(&others).all(like)
        }
    }
}
