//! What becomes of instances that are lost: let go, or held, and with what else.
//!
//! It refuses to know what is published. Invariants: once a loss is too great, all that the window lost is held,
//! but for what was replaced; and never more of a service than it lacks.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Cause, Guard, Held, Level, Moves, Notice, Scope, Services, Time, Trip, millis};
use crate::model::{Health, Instance, Service};

/// An instance that was let go, with its service as it was.
#[derive(Debug)]
pub(super) struct Gone {
    pub at: Time,
    pub service: Arc<Service>,
    pub instance: Arc<Instance>,
}

impl Guard {
    pub(super) fn hold(
        &mut self,
        before: &Services,
        moves: &mut BTreeMap<Arc<str>, Moves>,
        now: Time,
        cause: Cause,
    ) {
        let emptied = cause.whole && self.total.present() == 0;
        // Where the root went, its children did before, perhaps one by one.
        let late = emptied && !self.recent.is_empty();
        if !late && moves.values().all(|moved| moved.lost.is_empty()) {
            return;
        }
        let since = cause.known.filter(|_| !emptied).unwrap_or(now);
        if since <= self.over(now) {
            return;
        }
        let share = self.config.registry_share;
        let trips = !self.is_open(now) && (emptied || self.trips(&self.total, share));
        let past = self.holds.trip;
        if trips {
            let target = self.total.peak();
            self.holds.trip = Some(Trip { since, target });
            self.begin(now.saturating_sub(millis(self.config.window)));
        }
        let held_before = self.holds.held();
        let (mut back, mut new) = (BTreeSet::new(), Vec::new());
        for (name, moved) in &mut *moves {
            let lost = std::mem::take(&mut moved.lost);
            let is_new = !self.holds.contains(name);
            if let Some(service) = before.get(name).filter(|_| !lost.is_empty())
                && self.hold_service(service, lost, now, since)
            {
                back.insert(Arc::clone(name));
                new.extend(is_new.then(|| Arc::clone(name)));
            }
        }
        self.bring_back(trips, &back, moves);
        let held = self.holds.held() - held_before;
        if trips && held == 0 {
            self.holds.trip = past;
        } else if trips {
            self.tripped(Scope::Registry, &self.total.clone(), held);
        } else if !self.is_open(now) {
            for name in new {
                let level = self.levels.get(&name).cloned().unwrap_or_default();
                let held = self
                    .holds
                    .services
                    .get(&name)
                    .map_or(0, |hold| hold.held.len());
                self.tripped(Scope::Service(name), &level, held);
            }
        }
    }

    /// Holds what a service lost, or lets it go. Whether what went shortly before is held with it.
    fn hold_service(
        &mut self,
        service: &Arc<Service>,
        lost: Vec<Arc<Instance>>,
        now: Time,
        since: Time,
    ) -> bool {
        let name = &service.name;
        let hold = self.holds.services.get(name);
        // After its time a hold lets go what it has, and takes nothing more.
        let open = hold.is_some_and(|hold| hold.since > self.over(now));
        let trips = open || self.is_open(now) || self.trips_alone(name);
        let room = if trips { self.room(name) } else { 0 };
        let target = self.target(name);
        // It lost too much by itself too, and with what it had grown by.
        let rises = hold.is_some_and(|hold| hold.target < target);
        for (nth, instance) in lost.into_iter().enumerate() {
            if nth < room {
                self.keep(service, target, instance, since);
            } else {
                self.recent.push_back(Gone {
                    at: now,
                    service: Arc::clone(service),
                    instance,
                });
            }
        }
        trips && room > 0 && (!open || rises)
    }

    /// How many more of a service may be held. One for one, what came on other addresses stands for what went.
    fn room(&self, name: &str) -> usize {
        let present = self.levels.get(name).map_or(0, Level::present);
        let hold = self.holds.services.get(name);
        let (target, held) = hold.map_or((0, 0), |hold| (hold.target, hold.held.len()));
        target.max(self.target(name)).saturating_sub(present + held)
    }

    /// How many a service should have. What it grew by while the registry was held is none of the registry's
    /// loss: a deploy whose next ones come first would leave those that they replace.
    fn target(&self, name: &str) -> usize {
        let peak = self.levels.get(name).map_or(0, Level::peak);
        if self.holds.trip.is_none() || self.trips_alone(name) {
            return peak;
        }
        peak.min(self.began.get(name).copied().unwrap_or(0))
    }

    /// The registry is held from now on; the window begins at `from`.
    pub(super) fn begin(&mut self, from: Time) {
        let had = |(name, level): (&Arc<str>, &Level)| {
            let peak = level.peak_since(from);
            (peak > 0).then(|| (Arc::clone(name), peak))
        };
        self.began = if self.holds.trip.is_some() {
            self.levels.iter().filter_map(had).collect()
        } else {
            BTreeMap::new()
        };
    }

    /// Whether the registry's hold takes in what goes: for its time, and while the registry lacks something.
    fn is_open(&self, now: Time) -> bool {
        let lacks = |trip: Trip| self.total.present() < trip.target;
        (self.holds.trip).is_some_and(|trip| trip.since > self.over(now) && lacks(trip))
    }

    fn trips_alone(&self, name: &str) -> bool {
        let level = self.levels.get(name);
        level.is_some_and(|level| self.trips(level, self.config.service_share))
    }

    /// Holds what went shortly before, of these services or of all: it is of the same loss. The last that went
    /// come first.
    fn bring_back(
        &mut self,
        all: bool,
        services: &BTreeSet<Arc<str>>,
        moves: &mut BTreeMap<Arc<str>, Moves>,
    ) {
        if !all && services.is_empty() {
            return;
        }
        let recent = std::mem::take(&mut self.recent);
        for gone in recent.into_iter().rev() {
            let (name, socket) = (&gone.service.name, gone.instance.socket());
            let registered = self
                .mirrored
                .get(name)
                .and_then(|s| s.instances.get(socket));
            let there = registered.is_some() || self.holds.get(name, socket).is_some();
            let due = all || services.contains(name);
            if !due || there || self.room(name) == 0 {
                self.recent.push_front(gone);
                continue;
            }
            let target = self.target(name);
            let moved = moves.entry(Arc::clone(name)).or_default();
            moved.sockets.insert(socket);
            self.keep(&gone.service, target, gone.instance, gone.at);
        }
    }

    #[allow(clippy::cast_precision_loss)]
    fn trips(&self, level: &Level, share: f64) -> bool {
        let (peak, loss) = (level.peak(), level.loss());
        loss > 0 && loss >= self.config.minimum && loss as f64 > share * peak as f64
    }

    fn tripped(&mut self, scope: Scope, level: &Level, held: usize) {
        self.notices.push(Notice::Tripped {
            scope,
            peak: level.peak(),
            present: level.present(),
            held,
        });
    }

    pub(super) fn keep(
        &mut self,
        service: &Arc<Service>,
        target: usize,
        mut instance: Arc<Instance>,
        since: Time,
    ) {
        if self.config.degraded {
            Arc::make_mut(&mut instance).health = Health::Degraded;
        }
        self.turn += 1;
        let turn = self.turn;
        let held = Held {
            instance,
            since,
            turn,
        };
        self.holds.insert(service, target, held);
    }

    /// Holds no more of a service than it lacks: what came on other addresses stands for what went last.
    pub(super) fn limit(&mut self, moves: &mut BTreeMap<Arc<str>, Moves>) {
        for (name, moved) in moves {
            let present = self.levels.get(name).map_or(0, Level::present);
            while let Some(hold) = self.holds.services.get(name)
                && hold.held.len() > hold.target.saturating_sub(present)
                && let Some(socket) = self.holds.pop_latest(name)
            {
                moved.sockets.insert(socket);
            }
        }
    }
}
