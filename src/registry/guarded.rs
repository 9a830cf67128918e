//! One registry under guard: its index, what of it may be published, and what was restored before it was seen.
//!
//! ```text
//! Batch ──▶ Index ──what is mirrored──▶ Guard ──what is published──▶ the catalog
//! ```
//!
//! It refuses to know the other registries. Invariant: what is published is what the guard lets through, from
//! the first batch on; what was restored counts as mirrored until the registry was seen whole.

use std::{collections::BTreeMap, sync::Arc};

use imbl::OrdSet;

use super::{
    Batch, Changes, Config, Counts, Event, Index, Rejected, Resolution, Touched, View,
    catalog::join,
    guard::{self, Cause, Guard, Holds, Notice, Resumed, Time},
};
use crate::model::{Instance, Service};

#[derive(Debug)]
pub struct Guarded {
    index: Index,
    guard: Guard,
    restored: Option<Restored>,
}

/// What is served is, or would be, of a former process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Until when it is known to have been so.
    pub known: Time,
    /// Whether it is served; before that it only waits for the registry.
    pub served: bool,
}

/// The last state of a former process.
#[derive(Debug)]
pub struct Former {
    pub known: Time,
    /// Every znode, also those that were gone.
    pub replay: Batch,
    /// Takes those away again.
    pub departures: Batch,
    /// What was held of those.
    pub held: Vec<Resumed>,
    pub trip: Option<guard::Trip>,
}

impl Guarded {
    pub fn new(config: Config, guard: guard::Config) -> Self {
        Self {
            index: Index::new(config),
            guard: Guard::new(guard),
            restored: None,
        }
    }

    /// Begins with what a former process knew.
    pub fn restore(&mut self, former: Former, now: Time) -> Changes {
        self.index.apply(former.replay, now);
        let all = self.index.view().services;
        self.index.apply(former.departures, now);
        let mirrored = self.index.view().services;
        let names = mirrored.keys().cloned();
        let appeared = names.map(|name| (name, Touched::All)).collect();
        (self.guard).apply(&mirrored, appeared, former.known.min(now), Cause::default());
        let held = former.held.iter().filter_map(|resumed| {
            let service = all.get(&resumed.service)?;
            Some((Arc::clone(service), resumed.target, found(service, resumed)))
        });
        self.guard.resume(held, former.trip);
        // Of what was held the time may be over by now.
        self.guard.tick(now);
        let published = self.guard.published().keys().cloned();
        let changes = published.map(|name| (name, Touched::All)).collect();
        self.restored = Some(Restored {
            known: former.known,
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
    pub fn apply(&mut self, batch: Batch, now: Time) -> Changes {
        let root = |event: &Event| matches!(event, Event::Delete { path } if path.is_empty());
        let complete = batch.complete;
        let whole = complete || batch.events.iter().any(root);
        let changes = self.index.apply(batch, now);
        let former = self.restored.take_if(|_| complete);
        let known = former.map(|former| former.known);
        self.follow(changes, now, Cause { whole, known })
    }

    pub fn tick(&mut self, now: Time) -> Changes {
        let changes = self.index.tick(now);
        let mut all = self.follow(changes, now, Cause::default());
        join(&mut all, self.guard.tick(now));
        all
    }

    pub fn due(&self) -> Option<Time> {
        [self.index.due(), self.guard.due()]
            .into_iter()
            .flatten()
            .min()
    }

    pub fn resolved(&mut self, host: &str, resolution: Resolution, now: Time) -> Changes {
        let changes = self.index.resolved(host, resolution, now);
        self.follow(changes, now, Cause::default())
    }

    /// Lets go what is held of one service, or of all; with how many instances that were.
    pub fn release(&mut self, service: Option<&str>) -> (usize, Changes) {
        let before = self.guard.holds().held();
        let changes = self.guard.release(service);
        (before - self.guard.holds().held(), changes)
    }

    /// What is published of the registry; costs nothing.
    pub fn view(&self) -> View {
        View {
            services: self.guard.published().clone(),
            holds: self.guard.holds().clone(),
            ..self.index.view()
        }
    }

    pub fn holds(&self) -> &Holds {
        self.guard.holds()
    }

    pub fn take_notices(&mut self) -> Vec<Notice> {
        self.guard.take_notices()
    }

    /// Whether the whole registry was seen once, or what was restored stands for it.
    pub fn loaded(&self) -> bool {
        self.index.loaded() || self.restored.is_some_and(|restored| restored.served)
    }

    pub fn wanted_hosts(&self) -> OrdSet<Arc<str>> {
        self.index.wanted_hosts()
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

    pub fn config(&self) -> &Config {
        self.index.config()
    }

    fn follow(&mut self, changes: Changes, now: Time, cause: Cause) -> Changes {
        let mirrored = self.index.view().services;
        self.guard.apply(&mirrored, changes, now, cause)
    }
}

/// The instances that were held, as their znodes' data have them.
fn found(service: &Service, resumed: &Resumed) -> Vec<(Arc<Instance>, Time)> {
    let held = resumed.held.iter().filter_map(|(socket, since)| {
        let instance = service.instances.get(*socket)?;
        Some((Arc::clone(instance), *since))
    });
    held.collect()
}

#[cfg(test)]
mod tests;
