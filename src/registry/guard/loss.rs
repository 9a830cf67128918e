//! What becomes of instances that are lost: let go, or held, and with what else.
//!
//! Invariants: once a loss is too great, all that the window lost is held, but for what was replaced; and never
//! more of a service than it lacks. How great a loss is, is told by the number of registrations first, which costs
//! nothing, and only where that is too great by the number of processes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Cause, Gone, Guard, Held, Level, Moves, Scope, Services, Time, Trip, millis, moves::standing,
    owners::Loss, trial::Lost,
};
use crate::model::{Health, Instance, Service};

/// Sessions that nobody keeps alive have ended by then, counted from the return of the ensemble: by default a
/// server lets none last longer than 40 s.
pub(super) const RETURN: Time = 60_000;

impl Guard {
    pub(super) fn hold(
        &mut self,
        before: &Services,
        moves: &mut BTreeMap<Arc<str>, Moves>,
        now: Time,
        cause: Cause<'_>,
    ) {
        let emptied = self.total.present() == 0 && (cause.whole || self.returned.is_some());
        // Where the ensemble returned, all that went since counts.
        let from = if emptied { self.kept } else { self.within };
        // Where the root went, its children did before, perhaps one by one.
        let counts = |gone: &Gone| gone.at > self.resumed && (cause.whole || gone.at >= from);
        let late = emptied && self.recent.iter().any(counts);
        if !late && moves.values().all(|moved| moved.lost.is_empty()) {
            return;
        }
        let away = self.absence.as_ref().map_or(0, |absence| absence.away);
        let since = now.saturating_sub(if emptied { 0 } else { away });
        if since <= self.over(now) {
            return;
        }
        let lost = self.judge(moves, now);
        let trips = !self.is_open(now) && (emptied || self.mass);
        let past = self.holds.trip;
        if trips {
            let target = self.total.peak(from);
            self.holds.trip = Some(Trip { since, target });
            self.begin(from);
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
        let all = trips.then_some(emptied);
        self.bring_back(all, &back, from, moves);
        if trips && self.holds.held() == held_before {
            self.holds.trip = past;
        } else if trips && emptied {
            self.emptied();
        } else if trips {
            self.try_later(Scope::Registry, self.total.peak(from), lost, now);
        } else if !self.is_open(now) {
            for name in new {
                let peak = self.peak(&name);
                let of = lost.get_key_value(&name);
                let of = of.map(|(name, lost)| (Arc::clone(name), lost.clone()));
                self.try_later(Scope::Service(name), peak, of.into_iter().collect(), now);
            }
        }
    }

    /// Finds out which services and whether the registry lost too much; what they lost, if so.
    fn judge(&mut self, moves: &BTreeMap<Arc<str>, Moves>, now: Time) -> Lost {
        self.alone = BTreeSet::new();
        self.mass = false;
        let suspects: BTreeSet<_> = (moves.iter())
            .filter(|(name, moved)| !moved.lost.is_empty() && self.trips_alone(name))
            .map(|(name, _)| Arc::clone(name))
            .collect();
        let registry = !self.is_open(now) && self.trips_all();
        if suspects.is_empty() && !registry {
            return Lost::new();
        }
        let lost = self.lost(moves, (!registry).then_some(&suspects));
        for name in suspects {
            let of = lost.get(&name).into_iter().flat_map(BTreeMap::values);
            let of: Vec<_> = of.cloned().collect();
            let net = self
                .levels
                .get(&name)
                .map_or(0, |level| self.loss(level, Some(&name)));
            if self.is_mass(&of, net, self.present(&name), self.config.service_share) {
                self.alone.insert(name);
            }
        }
        if registry {
            let all: Vec<_> = lost.values().flat_map(BTreeMap::values).cloned().collect();
            let (net, present) = (self.loss(&self.total, None), self.total.present());
            self.mass = self.is_mass(&all, net, present, self.config.registry_share);
        }
        lost
    }

    fn is_mass(&self, lost: &[Arc<Instance>], net: usize, present: usize, share: f64) -> bool {
        let loss = Loss {
            instances: lost,
            mirrored: &self.mirrored,
            net,
            present,
        };
        loss.is_mass(self.config.minimum, share)
    }

    /// What is lost now, was lost within the window, or is held, and is not back; of some services or of all.
    fn lost(&self, moves: &BTreeMap<Arc<str>, Moves>, names: Option<&BTreeSet<Arc<str>>>) -> Lost {
        let mut lost = Lost::new();
        let mut add = |name: &Arc<str>, instance: &Arc<Instance>| {
            if names.is_some_and(|names| !names.contains(name)) {
                return;
            }
            let of = lost.entry(Arc::clone(name)).or_default();
            of.insert(instance.socket(), Arc::clone(instance));
        };
        for gone in (self.recent.iter()).filter(|gone| gone.at >= self.within) {
            let (name, socket) = (&gone.service.name, gone.instance.socket());
            if standing(&self.mirrored, name, socket).is_none() {
                add(name, &gone.instance);
            }
        }
        for (name, hold) in &self.holds.services {
            hold.held
                .values()
                .for_each(|held| add(name, &held.instance));
        }
        for (name, moved) in moves {
            moved.lost.iter().for_each(|instance| add(name, instance));
        }
        lost
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
        let trips = open || self.is_open(now) || self.alone.contains(name);
        let room = if trips { self.room(name, 0) } else { 0 };
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

    /// How many more of a service may be held, which should have `least` at least. One for one, what came on
    /// other addresses stands for what went.
    fn room(&self, name: &str, least: usize) -> usize {
        let present = self.present(name);
        let hold = self.holds.services.get(name);
        let (target, held) = hold.map_or((0, 0), |hold| (hold.target, hold.held.len()));
        let target = target.max(self.target(name)).max(least);
        target.saturating_sub(present + held)
    }

    /// How many a service should have. What it grew by while the registry was held is none of the registry's
    /// loss: a deploy whose next ones come first would leave those that they replace.
    fn target(&self, name: &str) -> usize {
        let peak = self.peak(name);
        if self.holds.trip.is_none() || self.alone.contains(name) {
            return peak;
        }
        peak.min(self.began.get(name).copied().unwrap_or(0))
    }

    /// The registry is held from now on; the window begins at `from`.
    pub(super) fn begin(&mut self, from: Time) {
        let had = |(name, level): (&Arc<str>, &Level)| {
            let peak = level.peak(from);
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

    /// Whether a service lost too many registrations.
    fn trips_alone(&self, name: &str) -> bool {
        let level = self.levels.get(name);
        level.is_some_and(|level| {
            let loss = self.loss(level, Some(name));
            self.trips(level, loss, self.config.service_share)
        })
    }

    /// Whether the registry lost too many registrations.
    fn trips_all(&self) -> bool {
        let loss = self.loss(&self.total, None);
        self.trips(&self.total, loss, self.config.registry_share)
    }

    /// How many registrations are missing; of those that were found after an absence as many count as would have
    /// gone within one window.
    fn loss(&self, level: &Level, service: Option<&str>) -> usize {
        let window = millis(self.config.window);
        let spared = self.absence.as_ref();
        let spared = spared.map_or(0, |absence| absence.spared(service, window));
        level.loss(self.within).saturating_sub(spared)
    }

    /// Holds what went since `from`, of these services or of all (and then, whether nothing is left): it is of the
    /// same loss. The last that went come first.
    fn bring_back(
        &mut self,
        all: Option<bool>,
        services: &BTreeSet<Arc<str>>,
        from: Time,
        moves: &mut BTreeMap<Arc<str>, Moves>,
    ) {
        if all.is_none() && services.is_empty() {
            return;
        }
        let recent = std::mem::take(&mut self.recent);
        for gone in recent.into_iter().rev() {
            let (name, socket) = (&gone.service.name, gone.instance.socket());
            let registered = standing(&self.mirrored, name, socket);
            let there = registered.is_some() || self.holds.get(name, socket).is_some();
            let due = gone.at >= from && (all.is_some() || services.contains(name));
            let began = || self.began.get(name).copied().unwrap_or(0);
            let least = if all == Some(true) { began() } else { 0 };
            if !due || there || self.room(name, least) == 0 {
                self.recent.push_front(gone);
                continue;
            }
            let target = self.target(name).max(least);
            let moved = moves.entry(Arc::clone(name)).or_default();
            moved.sockets.insert(socket);
            self.keep(&gone.service, target, gone.instance, gone.at);
        }
    }

    /// Whether that many are too many registrations to be missing.
    #[allow(clippy::cast_precision_loss)]
    fn trips(&self, level: &Level, loss: usize, share: f64) -> bool {
        let peak = level.present() + loss;
        loss > 0 && loss >= self.config.minimum && loss as f64 > share * peak as f64
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
            let present = self.present(name);
            while let Some(hold) = self.holds.services.get(name)
                && hold.held.len() > hold.target.saturating_sub(present)
                && let Some(socket) = self.holds.pop_latest(name)
            {
                moved.sockets.insert(socket);
            }
        }
    }
}
