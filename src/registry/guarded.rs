//! One registry under guard: its index, what of it may be published, and what was restored before it was seen.
//!
//! ```text
//! Batch ──▶ Index ──what is registered──▶ Linger ──with what may return──▶ Guard ──what is published──▶ the catalog
//! ```
//!
//! Invariant: what is published is what the guard lets through, from
//! the first batch on; what was restored counts as mirrored until the registry was seen whole.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use imbl::{OrdMap, OrdSet, Vector, ordset::DiffItem};

use super::{
    Batch, Changes, Config, Counts, Event, Index, Moment, Rejected, Resolution, Touched, View,
    catalog::join,
    guard::{self, Cause, Gone, Guard, Holds, Notice, Resumed, Services, Time},
    linger::{self, Change, Linger, Lingering},
};

#[derive(Debug)]
pub struct Guarded {
    config: Arc<Config>,
    index: Index,
    linger: Linger,
    guard: Guard,
    restored: Option<Restored>,
    /// There is no root that could be loaded.
    absent: bool,
    /// Since when the registry may be another than it was seen to be: there is no connection, or the process has
    /// begun and not compared yet.
    unseen: Option<Moment>,
    /// The connection was lost while the process ran: what cut it may have ended the sessions of others, too.
    cut: bool,
    /// The process stood still: since when, and until when that is noticed.
    stood: Option<(Moment, Time)>,
    addresses: Addresses,
    /// What others know of host names, and the names that were asked for when it was looked at last.
    known: OrdMap<Arc<str>, Resolution>,
    asked: OrdSet<Arc<str>>,
}

/// What host names resolved to, also names that only what is held goes by.
pub type Addresses = OrdMap<Arc<str>, Arc<[IpAddr]>>;

/// How many names are remembered at least, though nobody goes by them any more.
const REMEMBERED: usize = 1_000;

/// How long what happened while the process stood still goes on arriving.
const ARRIVING: Time = 2_000;

/// What is served is, or would be, of a former process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Until when it is known to have been so, in milliseconds since the epoch.
    pub known: i64,
    /// Whether it is served; before that it only waits for the registry.
    pub served: bool,
}

/// The last state of a former process, with its times by the clock of this one.
#[derive(Debug)]
pub struct Former {
    /// For how many milliseconds nobody looked at the registry.
    pub away: Time,
    /// Every znode.
    pub replay: Batch,
    /// What was held of those that were gone.
    pub held: Vec<Resumed>,
    pub trip: Option<guard::Trip>,
    /// What went shortly before, and was let go.
    pub recent: Vec<Gone>,
    pub addresses: Addresses,
}

impl Guarded {
    pub fn new(config: Config, guard: guard::Config) -> Self {
        Self {
            index: Index::new(config.clone()),
            config: Arc::new(config),
            linger: Linger::new(&linger::Config { last: guard.linger }),
            guard: Guard::new(guard),
            restored: None,
            absent: false,
            unseen: None,
            cut: false,
            stood: None,
            addresses: Addresses::new(),
            known: OrdMap::new(),
            asked: OrdSet::new(),
        }
    }

    /// Begins with what a former process knew.
    pub fn restore(&mut self, former: Former, now: impl Into<Moment>) -> Changes {
        let now: Moment = now.into();
        let known = now.before(former.away.max(0));
        self.index.apply(former.replay, now);
        // Nothing may go because its name is not looked up again yet.
        for (host, addresses) in &former.addresses {
            self.index.resolved(host, Ok(addresses.to_vec()), now.time);
        }
        self.addresses = former.addresses;
        let mirrored = self.index.view().services;
        let names = mirrored.keys().cloned();
        let appeared = names.map(|name| (name, Touched::All)).collect();
        self.linger.restart(&mirrored);
        (self.guard).apply(&mirrored, appeared, known.time, Cause::default());
        let (mut held, trip) = (former.held, former.trip);
        let priority = self.index.config().priority;
        for (instance, _) in held.iter_mut().flat_map(|resumed| &mut resumed.held) {
            Arc::make_mut(instance).priority = priority;
        }
        let mut recent = former.recent;
        for gone in &mut recent {
            Arc::make_mut(&mut gone.instance).priority = priority;
        }
        (self.guard).resume(held, trip, recent, now.time);
        // The time of what was held may be over by now.
        self.guard.tick(now.time);
        let published = self.guard.published().keys().cloned();
        let changes = published.map(|name| (name, Touched::All)).collect();
        self.unseen = Some(known);
        self.restored = Some(Restored {
            known: known.wall,
            served: false,
        });
        changes
    }

    /// Serves what was restored, if the registry was not seen yet. Whether that is new.
    pub fn serve_restored(&mut self) -> bool {
        let restored = self.restored.as_mut();
        restored.is_some_and(|restored| !std::mem::replace(&mut restored.served, true))
    }

    /// Until the registry was seen whole, where there is something.
    pub fn restored(&self) -> Option<Restored> {
        self.restored
    }

    /// Mirrors a batch that is told at `now`.
    pub fn apply(&mut self, batch: Batch, now: impl Into<Moment>) -> Changes {
        let now: Moment = now.into();
        let root = |event: &Event| matches!(event, Event::Delete { path } if path.is_empty());
        let whole = batch.complete || batch.events.iter().any(root);
        self.absent = batch.absent || (self.absent && !batch.complete);
        if batch.stale {
            self.loses_sight(now);
        }
        if batch.complete {
            self.sees_again(now.time);
        }
        let changes = self.index.apply(batch, now);
        self.follow(changes, now.time, whole)
    }

    /// Nobody looked for the last `away` milliseconds, and what happened meanwhile arrives now.
    pub fn stood_still(&mut self, away: Time, now: Moment) {
        let until = now.time.saturating_add(ARRIVING);
        self.stood = Some((now.before(away), until));
        let until = until.saturating_add(self.linger.longest());
        self.guard.absent(away, now.time, until);
    }

    fn loses_sight(&mut self, now: Moment) {
        let stood = self.stood.filter(|(_, until)| now.time <= *until);
        if self.unseen.is_none() {
            self.cut = stood.is_none();
            self.unseen = Some(stood.map_or(now, |(since, _)| since));
        }
    }

    fn sees_again(&mut self, now: Time) {
        let restored = self.restored.take();
        let Some(since) = self.unseen.take() else {
            return;
        };
        // An ensemble that answers at the start of the process was not away.
        let was_away = restored.is_none_or(|restored| restored.served);
        if was_away {
            self.guard.returned(now);
            self.linger.returned(now);
        }
        let restarted_in_a_cut = restored.is_some() && was_away;
        if !std::mem::take(&mut self.cut) && !restarted_in_a_cut {
            // What left meanwhile reaches the guard once it has lingered.
            let until = now.saturating_add(self.linger.longest() + ARRIVING);
            self.guard
                .absent(now.saturating_sub(since.time), now, until);
        }
    }

    /// Since when the registry may be another than it was seen to be.
    pub fn unseen(&self) -> Option<Moment> {
        self.unseen
    }

    /// What left lately, and would be held with what leaves next; in the order in which it left. What lingers
    /// has left as well.
    pub fn recent(&self) -> Vector<Gone> {
        let mut recent = self.guard.recent().clone();
        if !self.linger.lingering().is_empty() {
            recent.extend(self.linger.lingering().gone());
            recent.sort_by(|one, other| one.at.cmp(&other.at));
        }
        recent
    }

    pub fn tick(&mut self, now: Time) -> Changes {
        let changes = self.index.tick(now);
        let mut all = self.follow(changes, now, false);
        while let Some((whole, changes)) = self.linger.tick(now) {
            join(&mut all, self.publish(changes, now, whole));
        }
        join(&mut all, self.guard.tick(now));
        all
    }

    pub fn due(&self) -> Option<Time> {
        [self.index.due(), self.linger.due(), self.guard.due()]
            .into_iter()
            .flatten()
            .min()
    }

    pub fn resolved(&mut self, host: &str, resolution: Resolution, now: Time) -> Changes {
        match &resolution {
            Ok(addresses) => self.remember(host, addresses),
            // What a former process found stays, too, as long as there is nothing else.
            Err(_) if self.addresses.contains_key(host) => return Changes::new(),
            Err(_) => {}
        }
        let changes = self.index.resolved(host, resolution, now);
        self.follow(changes, now, false)
    }

    /// What host names resolved to; costs nothing.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Remembers what others know of the names that are asked for now and were not.
    fn ask(&mut self) {
        let wanted = self.index.wanted_hosts();
        if wanted.ptr_eq(&self.asked) {
            return;
        }
        for change in std::mem::replace(&mut self.asked, wanted.clone()).diff(&wanted) {
            if let DiffItem::Add(name) = change
                && let Some(Ok(addresses)) = self.known.get(name).cloned()
            {
                self.remember(name, &addresses);
            }
        }
    }

    fn remember(&mut self, host: &str, addresses: &[IpAddr]) {
        let wanted = self.index.wanted_hosts();
        if self.guard.holds().is_empty() && self.addresses.len() > REMEMBERED + 2 * wanted.len() {
            self.addresses = (std::mem::take(&mut self.addresses).into_iter())
                .filter(|(name, _)| wanted.contains(name))
                .collect();
        }
        let known = self.addresses.get(host).map(|known| &**known);
        if wanted.contains(host) && known != Some(addresses) {
            self.addresses.insert(host.into(), addresses.into());
        }
    }

    /// Lets go what is held of one service, or of all; with how many instances that were.
    pub fn release(&mut self, service: Option<&str>) -> (usize, Changes) {
        let before = self.guard.holds().held();
        let changes = self.guard.release(service);
        (before - self.guard.holds().held(), changes)
    }

    /// Removes the held instances whose addresses refuse connections; returns how many there were.
    pub fn refused(&mut self, refused: &guard::Refused) -> (usize, Changes) {
        let before = self.guard.holds().held();
        let changes = self.guard.refused(refused);
        (before - self.guard.holds().held(), changes)
    }

    /// What is published of the registry; costs nothing.
    pub fn view(&self) -> View {
        View {
            services: self.guard.published().clone(),
            holds: self.guard.holds().clone(),
            lingering: self.linger.lingering().clone(),
            ..self.index.view()
        }
    }

    pub fn holds(&self) -> &Holds {
        self.guard.holds()
    }

    /// What left and stays served for a moment; cloning costs nothing.
    pub fn lingering(&self) -> &Lingering {
        self.linger.lingering()
    }

    /// What is registered, without what lingers or is held; costs nothing.
    pub fn registered(&self) -> Services {
        self.index.view().services
    }

    /// What the other registries have registered.
    pub fn sees_others(&mut self, others: Vec<Services>) {
        self.linger.sees_others(others);
    }

    pub fn take_notices(&mut self) -> Vec<Notice> {
        self.guard.take_notices()
    }

    /// Whether the whole registry was seen once, or what was restored stands for it.
    pub fn loaded(&self) -> bool {
        self.index.loaded() || self.restored.is_some_and(|restored| restored.served)
    }

    /// Whether there is nothing to wait for: the root does not exist.
    pub fn absent(&self) -> bool {
        self.absent
    }

    pub fn wanted_hosts(&self) -> OrdSet<Arc<str>> {
        self.index.wanted_hosts()
    }

    /// What others know of host names; those that it asks for later begin with that.
    pub fn knows_hosts(&mut self, known: OrdMap<Arc<str>, Resolution>) {
        self.known = known.clone();
        self.index.knows_hosts(known);
    }

    /// How many host names were never looked up.
    pub fn waits_for_hosts(&self) -> usize {
        self.index.waits_for_hosts()
    }

    /// How much is mirrored, without what is held.
    pub fn counts(&self) -> Counts {
        self.index.counts()
    }

    pub fn take_rejections(&mut self) -> BTreeMap<String, Rejected> {
        self.index.take_rejections()
    }

    /// Whether the data of a znode are bad as they stand, by its path below the root.
    pub fn is_bad(&self, znode: &str) -> bool {
        self.index.is_bad(znode)
    }

    pub fn name(&self) -> Arc<str> {
        self.index.name()
    }

    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    fn follow(&mut self, changes: Changes, now: Time, whole: bool) -> Changes {
        self.ask();
        let registered = self.index.view().services;
        let index = &self.index;
        let change = Change {
            now,
            whole,
            is_taken: &|host| index.has_host(host),
            stands: &|instance| index.is_registered(&instance.origin.znode),
        };
        let changes = self.linger.apply(&registered, changes, change);
        self.publish(changes, now, whole)
    }

    /// Passes what is registered or lingers on to the guard; what changes of what is published.
    fn publish(&mut self, changes: Changes, now: Time, whole: bool) -> Changes {
        let index = &self.index;
        let cause = Cause {
            whole,
            stands: &|instance| index.is_registered(&instance.origin.znode),
        };
        self.guard
            .apply(self.linger.services(), changes, now, cause)
    }
}

#[cfg(test)]
mod tests;
