//! One registry under guard: its index, what of it may be published, and what was restored before it was seen.
//!
//! ```text
//! Batch ──▶ Index ──what is mirrored──▶ Guard ──what is published──▶ the catalog
//! ```
//!
//! It refuses to know the other registries. Invariant: what is published is what the guard lets through, from
//! the first batch on; what was restored counts as mirrored until the registry was seen whole.

use std::{collections::BTreeMap, sync::Arc};

use imbl::{OrdMap, OrdSet};

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

    /// What others know of host names; those that it asks for later begin with that.
    pub fn knows_hosts(&mut self, known: OrdMap<Arc<str>, Resolution>) {
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

    /// Whether a znode is left out as it stands, by its path below the root.
    pub fn is_rejected(&self, znode: &str) -> bool {
        let view = self.index.view();
        let root = self.config().root.trim_end_matches('/');
        !view.rejected.is_empty() && view.rejected.contains_key(&format!("{root}/{znode}"))
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
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::registry::{FormatChoice, Layout, Shape, Stat, guard::Trip};

    const HOUR: Time = 3_600_000;

    fn guarded() -> Guarded {
        let config = Config {
            name: "main".to_owned(),
            root: "/services".to_owned(),
            layout: Layout::flat(),
            format: FormatChoice::Auto,
            priority: 0,
            required: true,
            ttl: None,
            shape: Shape::default(),
        };
        Guarded::new(config, guard::Config::default())
    }

    fn put(n: u8) -> Event {
        Event::Put {
            path: format!("orders/{n}").into(),
            data: Bytes::from(format!("10.0.0.{n}:80")),
            stat: Stat::default(),
        }
    }

    fn batch(events: impl IntoIterator<Item = Event>, complete: bool) -> Batch {
        Batch {
            events: events.into_iter().collect(),
            complete,
            ..Batch::default()
        }
    }

    /// Ten instances, of which the first five were gone and held since then.
    fn former(known: Time, since: Time) -> Former {
        let gone = |n: u8| Event::Delete {
            path: format!("orders/{n}").into(),
        };
        let socket = |n: u8| (([10, 0, 0, n].into(), 80), since);
        Former {
            known,
            replay: batch((1..=10).map(put), false),
            departures: batch((1..=5).map(gone), false),
            held: vec![Resumed {
                service: "orders".into(),
                target: 10,
                held: (1..=5).map(socket).collect(),
            }],
            trip: Some(Trip { since, target: 10 }),
        }
    }

    fn served(guarded: &Guarded) -> usize {
        let view = guarded.view();
        view.services
            .get("orders")
            .map_or(0, |orders| orders.instances.len())
    }

    #[test]
    fn what_was_restored_is_served_when_it_is_told_to_be_or_compared() {
        let mut guarded = guarded();
        let now = 10 * HOUR;
        guarded.restore(former(now, now - 60_000), now);
        assert_eq!((served(&guarded), guarded.holds().held()), (10, 5));
        assert!(!guarded.loaded());
        assert!(guarded.serve_restored() && guarded.loaded() && !guarded.serve_restored());
        guarded.apply(batch([], true), now);
        assert!(guarded.loaded() && guarded.restored().is_none());
        assert_eq!((served(&guarded), guarded.holds().held()), (10, 5));
    }

    #[test]
    fn a_first_load_that_has_nothing_takes_nothing_of_what_was_restored_away() {
        let mut guarded = guarded();
        let now = 10 * HOUR;
        // The process was away for long, and so is believed in nothing else.
        guarded.restore(former(now - 5 * HOUR, now - 6 * HOUR), now);
        assert_eq!((served(&guarded), guarded.holds().held()), (5, 0));
        let gone = Event::Delete {
            path: "orders".into(),
        };
        guarded.apply(batch([gone], true), now);
        assert_eq!((served(&guarded), guarded.holds().held()), (5, 5));
    }

    #[test]
    fn what_went_while_no_process_ran_is_believed_after_the_time_of_a_hold() {
        for (away, left) in [(HOUR / 2, 10), (2 * HOUR, 1)] {
            let mut guarded = guarded();
            let now = 10 * HOUR;
            let former = Former {
                departures: Batch::default(),
                held: Vec::new(),
                trip: None,
                ..former(now - away, now)
            };
            guarded.restore(former, now);
            let gone = (2..=10).map(|n: u8| Event::Delete {
                path: format!("orders/{n}").into(),
            });
            guarded.apply(batch(gone, true), now);
            assert_eq!(served(&guarded), left);
        }
    }
}
