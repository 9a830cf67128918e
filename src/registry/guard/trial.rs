//! Whether a loss that tripped lasts: it is looked at again a moment later, before anybody hears of it.
//!
//! Some clients deregister and register again within milliseconds, and some processes end their registrations one
//! by one. So what trips is held at once, and judged a moment later by what is known then: an instance that came
//! back within its session was never lost. If the rest is no mass deregistration, it goes as it would have gone
//! alone. Invariant: each hold that lasts for longer than [`MOMENT`] has had its notice, and no other one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Guard, Notice, Scope, Time, moves::standing, owners::Loss};
use crate::model::{Instance, Socket};

/// Longer than a client takes to register again what it has deregistered itself.
pub(super) const MOMENT: Time = 2_000;

/// A loss that tripped.
#[derive(Debug)]
pub(super) struct Trial {
    pub due: Time,
    /// How many there were.
    pub peak: usize,
    /// What was lost, by service.
    pub lost: Lost,
}

pub(super) type Lost = BTreeMap<Arc<str>, BTreeMap<Socket, Arc<Instance>>>;

impl Guard {
    /// Looks at a loss again in a moment.
    pub(super) fn try_later(&mut self, scope: Scope, peak: usize, lost: Lost, now: Time) {
        let due = now.saturating_add(MOMENT);
        self.trials_due.push_back((due, scope.clone()));
        self.trials.insert(scope, Trial { due, peak, lost });
    }

    /// Settles the trials whose time has come; what is held no more by that.
    pub(super) fn settle_trials(&mut self, now: Time) -> BTreeMap<Arc<str>, BTreeSet<Socket>> {
        let mut ended = BTreeMap::new();
        while let Some((due, scope)) = self.trials_due.front().filter(|(due, _)| *due <= now) {
            let (due, scope) = (*due, scope.clone());
            self.trials_due.pop_front();
            if self.trials.get(&scope).is_none_or(|trial| trial.due != due) {
                continue;
            }
            let Some(trial) = self.trials.remove(&scope) else {
                continue;
            };
            match &scope {
                Scope::Registry => self.settle_registry(&trial, &mut ended),
                Scope::Service(_) if self.holds.trip.is_some() => {}
                Scope::Service(name) => self.settle_service(name, &trial, &mut ended),
            }
        }
        ended
    }

    fn settle_registry(&mut self, trial: &Trial, ended: &mut BTreeMap<Arc<str>, BTreeSet<Socket>>) {
        if self.holds.trip.is_none() {
            return;
        }
        let lost = self.lasting(trial.lost.clone(), None);
        let all: Vec<_> = lost.values().flat_map(BTreeMap::values).cloned().collect();
        let present = self.total.present();
        if self.lasts(&all, present, trial.peak, self.config.registry_share) {
            return self.tripped(Scope::Registry, trial.peak);
        }
        self.holds.trip = None;
        self.began = BTreeMap::new();
        self.removed = 0;
        for name in self.holds.services.keys().cloned().collect::<Vec<_>>() {
            let peak = self.holds.services.get(&name).map_or(0, |hold| hold.target);
            let lost = lost.get(&name).cloned().unwrap_or_default();
            let trial = Trial {
                due: trial.due,
                peak,
                lost: [(Arc::clone(&name), lost)].into(),
            };
            self.settle_service(&name, &trial, ended);
        }
    }

    fn settle_service(
        &mut self,
        name: &Arc<str>,
        trial: &Trial,
        ended: &mut BTreeMap<Arc<str>, BTreeSet<Socket>>,
    ) {
        let Some(hold) = self.holds.services.get(name) else {
            return;
        };
        let sockets: BTreeSet<Socket> = hold.held.keys().copied().collect();
        let lost = self.lasting(trial.lost.clone(), Some(name));
        let all: Vec<_> = lost.values().flat_map(BTreeMap::values).cloned().collect();
        let present = self.present(name);
        if self.lasts(&all, present, trial.peak, self.config.service_share) {
            return self.tripped(Scope::Service(Arc::clone(name)), trial.peak);
        }
        for socket in &sockets {
            self.holds.remove(name, *socket);
        }
        ended.insert(Arc::clone(name), sockets);
    }

    /// What was lost then or is held by now, but for what came back within its session.
    fn lasting(&self, mut lost: Lost, service: Option<&str>) -> Lost {
        let meant = |name: &str| service.is_none_or(|service| *service == *name);
        for (name, hold) in self.holds.services.iter().filter(|(name, _)| meant(name)) {
            let of = lost.entry(Arc::clone(name)).or_default();
            let held = hold.held.iter();
            of.extend(held.map(|(socket, held)| (*socket, Arc::clone(&held.instance))));
        }
        for (name, of) in &mut lost {
            of.retain(|socket, was| {
                let is = standing(&self.mirrored, name, *socket);
                let session = was.origin.session;
                session == 0 || is.is_none_or(|is| is.origin.session != session)
            });
        }
        lost
    }

    #[allow(clippy::cast_precision_loss)]
    fn lasts(&self, lost: &[Arc<Instance>], present: usize, peak: usize, share: f64) -> bool {
        let loss = Loss {
            instances: lost,
            mirrored: &self.mirrored,
            net: lost.len(),
            present,
        };
        lost.len() as f64 > share * peak as f64 && loss.is_mass(self.config.minimum, share)
    }

    /// A hold ends before its trial: whether operators heard of its beginning. Where it ends since something is
    /// removed, they hear of it now.
    pub(super) fn is_known(&mut self, scope: &Scope, removed: bool) -> bool {
        let Some(trial) = self.trials.remove(scope) else {
            return true;
        };
        if removed {
            let held = trial.lost.values().map(BTreeMap::len).sum();
            self.tell_trip(scope.clone(), trial.peak, held);
        }
        removed
    }

    fn tripped(&mut self, scope: Scope, peak: usize) {
        let held = match &scope {
            Scope::Registry => self.holds.held(),
            Scope::Service(name) => {
                let hold = self.holds.services.get(name);
                hold.map_or(0, |hold| hold.held.len())
            }
        };
        self.tell_trip(scope, peak, held);
    }

    fn tell_trip(&mut self, scope: Scope, peak: usize, held: usize) {
        let present = match &scope {
            Scope::Registry => self.total.present(),
            Scope::Service(name) => self.present(name),
        };
        self.notices.push(Notice::Tripped {
            scope,
            peak,
            present,
            held,
        });
    }

    /// Says at once that the registry is held: what empties it as a whole does not come back by itself.
    pub(super) fn emptied(&mut self) {
        self.trials.remove(&Scope::Registry);
        let peak = self.holds.trip.map_or(0, |trip| trip.target);
        self.tripped(Scope::Registry, peak);
    }
}
