//! Applies batches of events to the mirror of one registry and tells which services changed by them.
//!
//! ```text
//! Event ─▶ layout: whose is it ─▶ format ─▶ shape ─▶ make ─▶ base (entries, rosters) ─▶ settle ─▶ View
//!                          time, resolved names ──────▶┘                       hosts ─────▶┘
//! ```
//!
//! A service lives from its znode's (or an instance's) `Put` to its `Delete`, also without instances;
//! one with a level between it and its instances (`*/providers/*`) lives by these alone. Named ports,
//! groups and versions are services of their own, told behind a colon. It refuses to know payloads and
//! other registries.
//!
//! Several services may lead to one host name: the oldest (least `czxid` of its znode, then path) is
//! served and the others are rejected until it goes. The parent of an instance whose own `Put` is still
//! to come counts as the youngest.
//!
//! Invariants: the view depends on the znodes, on what names resolve to and on the time, and not on the
//! order in which they were told; a batch costs what it touches (the services in it), never the size of
//! the registry.

mod base;
mod hosts;
mod make;
mod names;
mod settle;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use imbl::{OrdMap, OrdSet};

pub use self::names::Resolution;
use self::{
    base::{Base, Entry, Good, Title, Touches},
    hosts::Hosts,
    make::{Maker, Registered, unmade},
    names::Names,
};
use super::{
    Batch, Changes, Config, Counts, Event, Moment, Rejected, Stat, View, format::Znode,
    layout::Place, name, registration::Registration,
};
use crate::model::Source;

/// The `czxid` of a service whose own znode was not seen yet.
const UNSEEN: i64 = i64::MAX;

/// In the place of the format, which nobody knows.
const UNREADABLE: &str = "unreadable";

#[derive(Debug)]
pub struct Index {
    config: Config,
    maker: Maker,
    registry: Arc<str>,
    /// By the paths of the services' znodes.
    bases: BTreeMap<Arc<str>, Base>,
    hosts: Hosts,
    names: Names,
    /// When znodes have to be looked at again.
    due: BTreeSet<(i64, Arc<str>)>,
    view: View,
    /// What was rejected, or for another reason, since they were taken.
    rejections: BTreeMap<String, Rejected>,
    instances: usize,
    loaded: bool,
    /// What the wall clock shows beyond the steady one.
    epoch: i64,
    /// The last write that was seen, and when it was by ZooKeeper's clock.
    newest: (i64, i64),
}

/// What a batch touched, by the path of the service's znode.
type Dirty = BTreeMap<Arc<str>, Touches>;

impl Index {
    pub fn new(config: Config) -> Self {
        let source = Source {
            registry: config.name.as_str().into(),
            root: config.root.as_str().into(),
        };
        Self {
            maker: Maker {
                source: Arc::new(source),
                shape: config.shape.clone(),
                priority: config.priority,
                ttl: config.ttl,
                fresh: false,
            },
            registry: Arc::from(config.name.as_str()),
            config,
            bases: BTreeMap::new(),
            hosts: Hosts::default(),
            names: Names::default(),
            due: BTreeSet::new(),
            view: View::default(),
            rejections: BTreeMap::new(),
            instances: 0,
            loaded: false,
            epoch: 0,
            newest: (0, 0),
        }
    }

    /// Mirrors a batch that is told at `now`. The view may change though no service did: origins and rejected
    /// znodes.
    pub fn apply(&mut self, batch: Batch, now: impl Into<Moment>) -> Changes {
        let now: Moment = now.into();
        self.epoch = now.epoch();
        let now = now.time;
        let mut dirty = Dirty::new();
        if batch.stale {
            self.maker.fresh = false;
        }
        for event in batch.events {
            match event {
                Event::Put { path, data, stat } => self.put(&path, &data, stat, now, &mut dirty),
                Event::Delete { path } => self.delete(&path, now, &mut dirty),
                Event::Unreadable { path } => self.unreadable(&path, now, &mut dirty),
            }
        }
        if batch.complete {
            let first = !std::mem::replace(&mut self.loaded, true);
            self.is_fresh(first, now, &mut dirty);
        }
        self.settle(dirty)
    }

    /// What changes by time alone: weights that ramp up, registrations that lapse.
    pub fn tick(&mut self, now: i64) -> Changes {
        let mut dirty = Dirty::new();
        while let Some((_, znode)) = self.due.first().filter(|(due, _)| *due <= now).cloned() {
            // It is put back where it is due again.
            self.due.pop_first();
            self.remake(&znode, now, &mut dirty);
        }
        self.settle(dirty)
    }

    /// When to tick next.
    pub fn due(&self) -> Option<i64> {
        self.due.first().map(|(due, _)| *due)
    }

    /// The host names whose addresses are asked for; costs nothing.
    pub fn wanted_hosts(&self) -> OrdSet<Arc<str>> {
        self.names.wanted()
    }

    /// What is known of host names already; those that it asks for later begin with that.
    pub fn knows_hosts(&mut self, known: OrdMap<Arc<str>, Resolution>) {
        self.names.knows(known);
    }

    /// How many host names were never looked up; costs as much as there are names.
    pub fn waits_for_hosts(&self) -> usize {
        self.names.unknown()
    }

    /// What a host name resolves to, or why there is nothing.
    pub fn resolved(&mut self, host: &str, resolution: Resolution, now: i64) -> Changes {
        let mut dirty = Dirty::new();
        for znode in self.names.resolve(host, resolution).unwrap_or_default() {
            self.remake(&znode, now, &mut dirty);
        }
        self.settle(dirty)
    }

    /// The mirror as it is now; costs nothing.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Whether a service has this host name.
    pub fn has_host(&self, host: &str) -> bool {
        self.hosts.holder(host).is_some()
    }

    /// How much the view holds; costs nothing.
    pub fn counts(&self) -> Counts {
        Counts {
            services: self.view.services.len(),
            instances: self.instances,
            rejected: self.view.rejected.len(),
        }
    }

    /// The znodes that were rejected since the last call, by path, also those that were rejected
    /// before for another reason. Whoever applies batches takes them, or they pile up.
    pub fn take_rejections(&mut self) -> BTreeMap<String, Rejected> {
        std::mem::take(&mut self.rejections)
    }

    /// Whether the data of a znode, by its path below the root, could not be read as they stand, wherever
    /// that is listed. One that is left out for what others say, or may not be read, has no bad data.
    pub fn is_bad(&self, znode: &str) -> bool {
        let Place::Instance(service) = self.config.layout.place(znode) else {
            return false;
        };
        let entry = (self.bases.get(service)).and_then(|base| base.entries.get(znode));
        let bad = entry.and_then(|entry| entry.bad.as_deref());
        bad.is_some_and(|bad| bad.format != UNREADABLE)
    }

    /// Whether a znode is there that registers instances, by its path below the root.
    pub fn is_registered(&self, znode: &str) -> bool {
        let Place::Instance(service) = self.config.layout.place(znode) else {
            return false;
        };
        let base = self.bases.get(service);
        base.is_some_and(|base| base.entries.contains_key(znode))
    }

    /// Whether the whole tree was seen once. Before that the view has only a part of it.
    pub fn loaded(&self) -> bool {
        self.loaded
    }

    /// What the registry is called.
    pub fn name(&self) -> Arc<str> {
        Arc::clone(&self.registry)
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    fn put(&mut self, path: &Arc<str>, data: &[u8], stat: Stat, now: i64, dirty: &mut Dirty) {
        // By the order of the writes: the clocks of an ensemble's servers may differ.
        self.newest = self.newest.max((stat.mzxid, stat.mtime));
        match self.config.layout.place(path) {
            Place::Service(_) => {
                self.ensure(path, stat.czxid, dirty);
                // It may have been unreadable before.
                self.deregister(path, path, now, dirty);
            }
            Place::Between(service) => {
                let (service, base) = self.base(service, dirty);
                if base.between.insert(Arc::clone(path)) {
                    touches(dirty, &service).parts.entry(None).or_default();
                }
                self.deregister(&service, path, now, dirty);
            }
            Place::Instance(service) => {
                let (service, base) = self.base(service, dirty);
                if base.is_named() {
                    let read = self.read(path, data, stat);
                    self.register(&service, path, stat.czxid, read, now, dirty);
                }
            }
            Place::Root | Place::Above | Place::Elsewhere => {}
        }
    }

    /// What was known of the znode stands, and operators hear why it is not followed.
    fn unreadable(&mut self, path: &Arc<str>, now: i64, dirty: &mut Dirty) {
        let (Place::Service(service) | Place::Between(service) | Place::Instance(service)) =
            self.config.layout.place(path)
        else {
            return;
        };
        let (service, base) = self.base(service, dirty);
        if !base.is_named() {
            return;
        }
        let czxid = base.entries.get(path).map_or(0, |entry| entry.czxid);
        let rejected = Rejected {
            format: UNREADABLE,
            reason:
                "no permission to read it; add read for MeshKeeper's user to its present ACL (getAcl, setAcl)"
                    .to_owned(),
        };
        self.register(&service, path, czxid, Err(rejected), now, dirty);
    }

    /// What the data say, in the form that the configuration gives it.
    fn read(&self, path: &Arc<str>, data: &[u8], stat: Stat) -> Result<Read, Rejected> {
        let name = path.rsplit('/').next().unwrap_or_default();
        let (format, what) = self.config.format.decode(&Znode::new(name, data, stat))?;
        self.shaped(path, stat, format, what)
    }

    fn shaped(
        &self,
        path: &Arc<str>,
        stat: Stat,
        format: &'static str,
        what: Registration,
    ) -> Result<Read, Rejected> {
        let mut instances = match what {
            Registration::Instances(instances) => instances,
            Registration::Weights(factors) => return Ok(Read::Weights(Good::Factors(factors))),
        };
        for decoded in &mut instances {
            let shaped = self.config.shape.apply(decoded);
            shaped.map_err(|reason| Rejected {
                format,
                reason: reason.into_string(),
            })?;
        }
        Ok(Read::Instances(Registered {
            znode: Arc::clone(path),
            format,
            stat,
            instances,
            alive: None,
            lapsed: false,
            epoch: self.epoch,
        }))
    }

    fn register(
        &mut self,
        service: &Arc<str>,
        znode: &Arc<str>,
        czxid: i64,
        read: Result<Read, Rejected>,
        now: i64,
        dirty: &mut Dirty,
    ) {
        let Some(base) = self.bases.get_mut(service) else {
            return;
        };
        let even = base.even_parts();
        let touched = touches(dirty, service);
        let past = base.take(znode, touched);
        // Another znode under the same name has no past.
        let kept = past.as_ref().filter(|past| past.czxid == czxid);
        let kept = kept.map(|past| &past.good);
        let mut bad = None;
        let good = match read {
            Err(rejected) => {
                bad = Some(Box::new(rejected));
                kept.cloned().unwrap_or_default()
            }
            Ok(Read::Weights(factors)) => factors,
            Ok(Read::Instances(mut registered)) => {
                registered.arrives(kept, now);
                make::made(&self.maker, &self.names, base, registered, kept, now)
            }
        };
        let past = past.as_ref().map(|past| &past.good);
        follow(&mut self.names, &mut self.due, znode, past, Some(&good));
        let weighs = |good: &Good| matches!(good, Good::Factors(_));
        let others = weighs(&good) || past.is_some_and(weighs);
        base.put(znode, Entry { czxid, good, bad }, touched);
        if others || base.even_parts() != even {
            self.remake_all(service, now, dirty);
        }
    }

    /// Makes the instances of a znode again, as something around it has changed.
    fn remake(&mut self, znode: &Arc<str>, now: i64, dirty: &mut Dirty) {
        let Place::Instance(service) = self.config.layout.place(znode) else {
            return;
        };
        let Some((service, _)) = self.bases.get_key_value(service) else {
            return;
        };
        let service = Arc::clone(service);
        let Some(base) = self.bases.get_mut(&service) else {
            return;
        };
        let Some(entry) = base.entries.get(znode) else {
            return;
        };
        let registered = match &entry.good {
            Good::One(instance) if base.weighs() => Some(unmade(instance)),
            Good::Many(many) => Some(many.registered.clone()),
            _ => None,
        };
        // While the znode itself still counts as one of its service.
        let made = registered.map(|registered| {
            let past = Some(&entry.good);
            make::made(&self.maker, &self.names, base, registered, past, now)
        });
        let touched = touches(dirty, &service);
        let Some(Entry { czxid, good, bad }) = base.take(znode, touched) else {
            return;
        };
        if let Some(made) = &made {
            follow(
                &mut self.names,
                &mut self.due,
                znode,
                Some(&good),
                Some(made),
            );
        }
        let good = made.unwrap_or(good);
        base.put(znode, Entry { czxid, good, bad }, touched);
    }

    fn remake_all(&mut self, service: &str, now: i64, dirty: &mut Dirty) {
        let znodes = self.bases.get(service).map(|base| base.entries.keys());
        for znode in znodes.into_iter().flatten().cloned().collect::<Vec<_>>() {
            self.remake(&znode, now, dirty);
        }
    }

    /// The mirror is what ZooKeeper holds. After an outage registrations live on from now, as nobody could
    /// write meanwhile; at the first time they are as old as they are by ZooKeeper's own clock.
    fn is_fresh(&mut self, first: bool, now: i64, dirty: &mut Dirty) {
        if std::mem::replace(&mut self.maker.fresh, true) || self.maker.ttl.is_none() {
            return;
        }
        let newest = self.newest.1;
        let entries = self.bases.values_mut().flat_map(|b| b.entries.values_mut());
        for entry in entries {
            if let Good::Many(many) = &mut entry.good {
                let age = newest.saturating_sub(many.registered.stat.mtime).max(0);
                let since = now.saturating_sub(if first { age } else { 0 });
                many.registered.alive = Some(since);
            }
        }
        for service in self.bases.keys().cloned().collect::<Vec<_>>() {
            self.remake_all(&service, now, dirty);
        }
    }

    fn delete(&mut self, path: &Arc<str>, now: i64, dirty: &mut Dirty) {
        match self.config.layout.place(path) {
            Place::Root => {
                for service in self.bases.keys().cloned().collect::<Vec<_>>() {
                    self.drop_base(&service, dirty);
                }
            }
            Place::Above => {
                for service in below(&self.bases, path) {
                    self.drop_base(&service, dirty);
                }
            }
            Place::Service(service) => {
                if let Some((service, _)) = self.bases.get_key_value(service) {
                    let service = Arc::clone(service);
                    self.drop_base(&service, dirty);
                }
            }
            Place::Between(service) => self.delete_between(service, path, now, dirty),
            Place::Instance(service) => {
                if let Some((service, _)) = self.bases.get_key_value(service) {
                    let service = Arc::clone(service);
                    self.deregister(&service, path, now, dirty);
                }
            }
            Place::Elsewhere => {}
        }
    }

    fn delete_between(&mut self, service: &str, path: &str, now: i64, dirty: &mut Dirty) {
        let Some((service, _)) = self.bases.get_key_value(service) else {
            return;
        };
        let service = Arc::clone(service);
        let Some(base) = self.bases.get_mut(&service) else {
            return;
        };
        base.between.remove(path);
        touches(dirty, &service).parts.entry(None).or_default();
        let below = below(&base.entries, path);
        for znode in below.into_iter().chain([Arc::from(path)]) {
            self.deregister(&service, &znode, now, dirty);
        }
    }

    fn deregister(&mut self, service: &Arc<str>, znode: &Arc<str>, now: i64, dirty: &mut Dirty) {
        let Some(base) = self.bases.get_mut(service) else {
            return;
        };
        let even = base.even_parts();
        let Some(past) = base.take(znode, touches(dirty, service)) else {
            return;
        };
        let is_other = base.even_parts() != even;
        follow(
            &mut self.names,
            &mut self.due,
            znode,
            Some(&past.good),
            None,
        );
        if is_other || matches!(past.good, Good::Factors(_)) {
            self.remake_all(service, now, dirty);
        }
    }

    fn drop_base(&mut self, service: &Arc<str>, dirty: &mut Dirty) {
        let Some(base) = self.bases.get_mut(service) else {
            return;
        };
        let touched = touches(dirty, service);
        touched.parts.entry(None).or_default();
        for znode in base.entries.keys().cloned().collect::<Vec<_>>() {
            if let Some(past) = base.take(&znode, touched) {
                follow(
                    &mut self.names,
                    &mut self.due,
                    &znode,
                    Some(&past.good),
                    None,
                );
            }
        }
        base.between.clear();
        base.there = false;
    }

    /// The service's znode, with one that was not seen yet if there is none.
    fn base(&mut self, service: &str, dirty: &mut Dirty) -> (Arc<str>, &mut Base) {
        let known = self.bases.get_key_value(service);
        let service = match known {
            Some((service, base)) if base.there => Arc::clone(service),
            _ => {
                let service = Arc::from(service);
                self.ensure(&service, UNSEEN, dirty);
                service
            }
        };
        let title = Title::Excluded;
        let base = self.bases.entry(Arc::clone(&service));
        let base = base.or_insert_with(|| Base::new(UNSEEN, title, false));
        (service, base)
    }

    /// The service exists since `czxid`.
    fn ensure(&mut self, service: &Arc<str>, czxid: i64, dirty: &mut Dirty) {
        if !self.bases.contains_key(service) {
            let alone = self.config.layout.holds_instances(service);
            let base = Base::new(czxid, self.title(service), alone);
            self.bases.insert(Arc::clone(service), base);
        }
        let Some(base) = self.bases.get_mut(service) else {
            return;
        };
        base.there = true;
        base.czxid = czxid;
        // Its parts are as old as it is.
        let parts = base.parts.keys().cloned().map(Some);
        let touched = touches(dirty, service);
        for part in parts.chain([None]) {
            touched.parts.entry(part).or_default();
        }
    }

    /// What a service is called by its path below the root.
    fn title(&self, service: &Arc<str>) -> Title {
        let name = match self.config.called(service) {
            None => return Title::Excluded,
            Some(Cow::Borrowed(_)) => Arc::clone(service),
            Some(Cow::Owned(name)) => name.into(),
        };
        match name::host(&name) {
            Ok(_) => Title::Named(name),
            Err(reason) => Title::Refused(reason),
        }
    }
}

/// What was read of a znode.
enum Read {
    Instances(Registered),
    /// Factors.
    Weights(Good),
}

fn touches<'d>(dirty: &'d mut Dirty, service: &Arc<str>) -> &'d mut Touches {
    // The name is copied where it is not there yet.
    if !dirty.contains_key(service) {
        dirty.insert(Arc::clone(service), Touches::default());
    }
    dirty.entry(Arc::clone(service)).or_default()
}

/// The keys below a path.
fn below<V>(map: &BTreeMap<Arc<str>, V>, path: &str) -> Vec<Arc<str>> {
    let prefix = format!("{path}/");
    let from = Bound::Excluded(prefix.as_str());
    map.range::<str, _>((from, Bound::Unbounded))
        .map(|(key, _)| key)
        .take_while(|key| key.starts_with(&prefix))
        .cloned()
        .collect()
}

/// What becomes of a znode: the names that it asks for, and when to look at it again.
fn follow(
    names: &mut Names,
    due: &mut BTreeSet<(i64, Arc<str>)>,
    znode: &Arc<str>,
    before: Option<&Good>,
    after: Option<&Good>,
) {
    let [before, after] = [before, after].map(|good| match good {
        Some(Good::Many(many)) => Some(&**many),
        _ => None,
    });
    if let Some(at) = before.and_then(|many| many.due) {
        due.remove(&(at, Arc::clone(znode)));
    }
    if let Some(at) = after.and_then(|many| many.due) {
        due.insert((at, Arc::clone(znode)));
    }
    if before.is_some() || after.is_some() {
        let [before, after] =
            [before, after].map(|many| many.map_or(&[][..], |many| &many.registered.instances));
        names.want(znode, before, after);
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
