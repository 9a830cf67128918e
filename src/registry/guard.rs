//! Holds mass deregistrations back: what an index mirrors in, what may be published out.
//!
//! ```text
//! Index ──services──▶ levels: greatest number in the window − present number = net loss
//!                       │ over a share, and over a minimum ──▶ owners: of how many processes?
//!                       ▼
//!                     holds: what went stays published ──▶ as many are back · a time is over · released
//!                       │ a moment later
//!                       ▼
//!                     trial: does the loss last? ──▶ a notice, or it goes after all
//! ```
//!
//! Only instances that took requests count: one that was drained, unhealthy or disabled before it went is no
//! loss; one that was not written within its time to live is. What is lost before a share is reached goes; once it
//! is reached, all that the window lost is held, and what goes while the hold lasts: of a service up to what it
//! had, of a registry up to what it had as a whole, and each of its services. Time is an argument, in milliseconds
//! of a clock that is never set.
//!
//! Invariants: an instance that is registered and was written in time is always published as it is registered;
//! what is published beside those is in [`Guard::holds`], and a service is served by no more of them than it lacks; without holds
//! what is published is what is mirrored. A batch costs what it touches.

#![allow(clippy::similar_names)]

mod absence;
mod hold;
mod level;
mod loss;
mod moves;
mod notice;
mod owners;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
mod trial;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};

use imbl::{OrdMap, Vector};

use self::{
    absence::Absence,
    hold::overlaid,
    level::Level,
    loss::RETURN,
    moves::{Moves, moves, standing},
    trial::Trial,
};
pub use self::{
    hold::{Gone, Held, Hold, Holds, Resumed, Trip},
    notice::{Ending, Notice, Scope},
};
use super::Changes;
use crate::model::{Instance, Service, Socket, Touched};

/// Milliseconds of a clock that is never set; when it began does not matter.
pub type Time = i64;

pub type Services = OrdMap<Arc<str>, Arc<Service>>;

/// Instances whose addresses refuse connections, by service.
pub type Refused = BTreeMap<Arc<str>, BTreeSet<Socket>>;

/// When a loss is too great.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Without it everything passes.
    pub enabled: bool,
    /// Losses within this time count together.
    pub window: Duration,
    /// Of a service's instances; 0.0..=1.0, where 1.0 is never exceeded.
    pub service_share: f64,
    /// Of the registry's instances.
    pub registry_share: f64,
    /// Fewer that are lost within the window are never held, whatever their share.
    pub minimum: usize,
    pub hold_for: Duration,
    /// How long a service's last instance lingers before it counts as lost; zero for not at all.
    pub linger: Duration,
    /// Held instances are told as degraded.
    pub degraded: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            window: Duration::from_secs(10),
            service_share: 0.5,
            registry_share: 0.3,
            minimum: 5,
            hold_for: Duration::from_secs(3600),
            linger: Duration::ZERO,
            degraded: false,
        }
    }
}

/// What is known of the batch that a change comes from.
#[derive(Clone, Copy)]
pub struct Cause<'a> {
    /// It speaks of the whole tree (a comparison after a reconnect, or the root is gone): a registry that it
    /// leaves without any instance is held, however few there were; also where they went before it, in the window.
    pub whole: bool,
    /// Whether the znode that registered an instance is still there.
    pub stands: &'a dyn Fn(&Instance) -> bool,
}

impl Default for Cause<'_> {
    fn default() -> Self {
        Self {
            whole: false,
            stands: &|_| false,
        }
    }
}

impl fmt::Debug for Cause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cause = f.debug_struct("Cause");
        cause.field("whole", &self.whole).finish_non_exhaustive()
    }
}

/// The guard of one registry.
#[derive(Debug)]
pub struct Guard {
    config: Config,
    /// What the index mirrors, as of the last batch.
    mirrored: Services,
    published: Services,
    levels: BTreeMap<Arc<str>, Level>,
    total: Level,
    holds: Holds,
    /// How many of each service there were when the registry's hold began.
    began: BTreeMap<Arc<str>, usize>,
    /// How many that hold removed so far.
    removed: usize,
    /// What went within the window, or since the ensemble returned, and was let go, the oldest first.
    recent: Vector<Gone>,
    absence: Option<Absence>,
    /// When the ensemble returned, if that is not long ago.
    returned: Option<Time>,
    /// When it went on from a former process; what went before that was let go for good, unless more goes.
    resumed: Time,
    /// When the window of the last change began, and since when the past is known.
    within: Time,
    kept: Time,
    /// The services that lost too much by themselves with this batch, and whether the registry did.
    alone: BTreeSet<Arc<str>>,
    mass: bool,
    /// Losses that are held and will be looked at again, and when.
    trials: BTreeMap<Scope, Trial>,
    trials_due: VecDeque<(Time, Scope)>,
    /// Numbers what is held in the order in which it went.
    turn: u64,
    notices: Vec<Notice>,
}

impl Guard {
    pub fn new(config: Config) -> Self {
        Self {
            config,
            mirrored: Services::new(),
            published: Services::new(),
            levels: BTreeMap::new(),
            total: Level::default(),
            holds: Holds::default(),
            began: BTreeMap::new(),
            removed: 0,
            recent: Vector::new(),
            absence: None,
            returned: None,
            resumed: Time::MIN,
            within: 0,
            kept: 0,
            alone: BTreeSet::new(),
            mass: false,
            trials: BTreeMap::new(),
            trials_due: VecDeque::new(),
            turn: 0,
            notices: Vec::new(),
        }
    }

    /// Takes what the index mirrors now, with what changed by it; gives what changed of the published.
    pub fn apply(
        &mut self,
        mirrored: &Services,
        changes: Changes,
        now: Time,
        cause: Cause<'_>,
    ) -> Changes {
        let before = std::mem::replace(&mut self.mirrored, mirrored.clone());
        if !self.config.enabled {
            self.published = mirrored.clone();
            return changes;
        }
        let mut moves = moves(&before, mirrored, cause);
        self.count(&moves, now);
        let held = !self.holds.is_empty();
        if held {
            self.take_back(&moves);
        }
        self.hold(&before, &mut moves, now, cause);
        self.limit(&mut moves);
        self.settle();
        if held || !self.holds.is_empty() {
            return self.publish(moves);
        }
        self.published = mirrored.clone();
        changes
    }

    /// What may be published; costs nothing.
    pub fn published(&self) -> &Services {
        &self.published
    }

    /// Cloning costs nothing.
    pub fn holds(&self) -> &Holds {
        &self.holds
    }

    /// What was let go lately and would be held with what goes next; cloning costs nothing.
    pub fn recent(&self) -> &Vector<Gone> {
        &self.recent
    }

    /// Nobody looked for `away` milliseconds until `now`: what is found to be gone until `until` went within them.
    pub fn absent(&mut self, away: Time, now: Time, until: Time) {
        self.end_absence();
        self.absence = Some(Absence::new(away, now, until));
    }

    /// The ensemble was away and is back: sessions that nobody keeps alive end within the next time.
    pub fn returned(&mut self, now: Time) {
        self.returned = Some(now);
    }

    /// When [`Guard::tick`] has something to do.
    pub fn due(&self) -> Option<Time> {
        let hold_for = millis(self.config.hold_for);
        let held = self
            .holds
            .oldest()
            .map(|since| since.saturating_add(hold_for));
        let trial = self.trials_due.front().map(|(due, _)| *due);
        held.into_iter().chain(trial).min()
    }

    /// Settles what tripped a moment ago, and ends what was held for long enough.
    pub fn tick(&mut self, now: Time) -> Changes {
        let settled = self.settle_trials(now);
        let (_, mut moves) = self.leave(settled);
        self.holds.take_emptied();
        let expired = self.expire(now);
        moves.extend(expired);
        self.publish(moves)
    }

    fn expire(&mut self, now: Time) -> BTreeMap<Arc<str>, Moves> {
        let mut ended = BTreeMap::<_, BTreeSet<_>>::new();
        let over = self.over(now);
        while let Some((name, socket)) = self.holds.pop_before(over) {
            ended.entry(name).or_default().insert(socket);
        }
        self.end(ended, Ending::Expired)
    }

    /// Lets go what is held of one service, or of all.
    pub fn release(&mut self, service: Option<&str>) -> Changes {
        let names = match service {
            Some(name) => self
                .holds
                .services
                .get_key_value(name)
                .into_iter()
                .collect(),
            None => self.holds.services.iter().collect::<Vec<_>>(),
        };
        let sockets = |hold: &Hold| hold.held.keys().copied().collect();
        let ended: BTreeMap<_, BTreeSet<_>> = names
            .into_iter()
            .map(|(name, hold)| (Arc::clone(name), sockets(hold)))
            .collect();
        for (name, sockets) in &ended {
            for socket in sockets {
                self.holds.remove(name, *socket);
            }
        }
        let moves = self.end(ended, Ending::Released);
        self.publish(moves)
    }

    /// Removes the held instances whose addresses refuse connections, by service. Instances that are not held
    /// are left alone.
    pub fn refused(&mut self, refused: &Refused) -> Changes {
        let mut ended = BTreeMap::<_, BTreeSet<_>>::new();
        for (name, sockets) in refused {
            for socket in sockets {
                if self.holds.remove(name, *socket) {
                    ended.entry(Arc::clone(name)).or_default().insert(*socket);
                }
            }
        }
        let moves = self.end(ended, Ending::Refused);
        self.publish(moves)
    }

    /// Goes on holding what a former process held. What is registered is not held. What that process let go
    /// within the window counts as if it had gone before this one.
    pub fn resume(
        &mut self,
        holds: impl IntoIterator<Item = Resumed>,
        trip: Option<Trip>,
        recent: impl IntoIterator<Item = Gone>,
        now: Time,
    ) -> Changes {
        if !self.config.enabled {
            return Changes::new();
        }
        self.resumed = now;
        self.remember(recent, now);
        let mut moves = BTreeMap::new();
        for Resumed {
            service,
            target,
            mut held,
        } in holds
        {
            held.retain(|(i, _)| standing(&self.mirrored, &service.name, i.socket()).is_none());
            let moved: &mut Moves = moves.entry(Arc::clone(&service.name)).or_default();
            moved.sockets.extend(held.iter().map(|(i, _)| i.socket()));
            for (instance, since) in held {
                self.keep(&service, target, instance, since.min(now));
            }
        }
        self.holds.trip = trip.map(|trip| Trip {
            since: trip.since.min(now),
            ..trip
        });
        self.begin(Time::MIN);
        self.limit(&mut moves);
        self.settle();
        self.publish(moves)
    }

    /// Takes these for gone at their times.
    fn remember(&mut self, recent: impl IntoIterator<Item = Gone>, now: Time) {
        let window = millis(self.config.window);
        let within = |gone: &Gone| gone.at <= now && gone.at >= now.saturating_sub(window);
        for gone in recent.into_iter().filter(within) {
            let (name, at) = (&gone.service.name, gone.at);
            if standing(&self.mirrored, name, gone.instance.socket()).is_some() {
                continue;
            }
            let level = self.levels.entry(Arc::clone(name)).or_default();
            for level in [level, &mut self.total] {
                level.turn(1);
                level.change(at, at.saturating_sub(window), -1);
            }
            self.recent.push_back(gone);
        }
    }

    /// What operators should hear of since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    fn count(&mut self, moves: &BTreeMap<Arc<str>, Moves>, now: Time) {
        if (self.absence.as_ref()).is_some_and(|absence| absence.is_over(now)) {
            self.end_absence();
        }
        (self.returned).take_if(|at| now > at.saturating_add(RETURN));
        self.within = now.saturating_sub(millis(self.config.window));
        self.kept = self.returned.map_or(self.within, |at| at.min(self.within));
        let from = self.kept;
        let (mut by, mut turned) = (0, 0);
        for (name, moved) in moves {
            if let Some(absence) = &mut self.absence {
                absence.found(name, moved.lost.len() - moved.lapsed);
            }
            let level = match self.levels.get_mut(name) {
                Some(level) => level,
                None => self.levels.entry(Arc::clone(name)).or_default(),
            };
            level.turn(moved.turned);
            level.change(now, from, moved.net());
            if level.is_over(from) && !self.mirrored.contains_key(name) {
                self.levels.remove(name);
            }
            by += moved.net();
            turned += moved.turned;
        }
        self.total.turn(turned);
        self.total.change(now, from, by);
        while self.recent.front().is_some_and(|gone| gone.at < from) {
            self.recent.pop_front();
        }
        self.forget(from);
    }

    /// What went in an absence and was let go went before the window, but for what would have been lost in it.
    fn end_absence(&mut self) {
        let Some(absence) = self.absence.take() else {
            return;
        };
        let window = millis(self.config.window);
        if absence.away > window {
            (self.recent).retain(|gone| !absence.covers(gone.at));
        }
        for name in absence.services() {
            if let Some(level) = self.levels.get_mut(name) {
                let spared = absence.spared(Some(name), window);
                level.accept(spared.min(level.loss(self.kept)));
            }
        }
        let spared = absence.spared(None, window);
        self.total.accept(spared.min(self.total.loss(self.kept)));
    }

    fn peak(&self, name: &str) -> usize {
        let level = self.levels.get(name);
        level.map_or(0, |level| level.peak(self.within))
    }

    fn present(&self, name: &str) -> usize {
        self.levels.get(name).map_or(0, Level::present)
    }

    /// A service that is gone counts as long as it is in the window; some are looked at each time.
    fn forget(&mut self, from: Time) {
        let gone = self.levels.len().saturating_sub(self.mirrored.len());
        if gone > 1_000.max(self.mirrored.len()) {
            let mirrored = &self.mirrored;
            self.levels
                .retain(|name, level| mirrored.contains_key(name) || !level.is_over(from));
        }
    }

    /// What is registered again is no longer held.
    fn take_back(&mut self, moves: &BTreeMap<Arc<str>, Moves>) {
        for (name, moved) in moves {
            let back = |socket: &&Socket| standing(&self.mirrored, name, **socket).is_some();
            for socket in moved.sockets.iter().filter(back) {
                self.holds.remove(name, *socket);
            }
        }
    }

    /// What went then or before is held no more.
    fn over(&self, now: Time) -> Time {
        now.saturating_sub(millis(self.config.hold_for))
    }

    /// Ends the holds that are empty now, and the registry's.
    fn settle(&mut self) {
        for name in self.holds.take_emptied() {
            let scope = Scope::Service(name);
            let known = self.is_known(&scope, false);
            if known && self.holds.trip.is_none() {
                self.notices.push(Notice::Ended {
                    scope,
                    how: Ending::Returned,
                    removed: 0,
                });
            }
        }
        self.end_whole(Ending::Returned);
    }

    /// The hold of the registry ends once nothing of it is held.
    fn end_whole(&mut self, how: Ending) {
        if self.holds.is_empty() && self.holds.trip.take().is_some() {
            self.began = BTreeMap::new();
            let removed = std::mem::take(&mut self.removed);
            if self.is_known(&Scope::Registry, removed > 0) {
                self.notices.push(Notice::Ended {
                    scope: Scope::Registry,
                    how,
                    removed,
                });
            }
        }
    }

    /// These are no longer held, and operators hear why.
    ///
    /// Where the registry is held as a whole, one notice stands for those of its services.
    fn end(
        &mut self,
        ended: BTreeMap<Arc<str>, BTreeSet<Socket>>,
        how: Ending,
    ) -> BTreeMap<Arc<str>, Moves> {
        let whole = self.holds.trip.is_some();
        for name in self.holds.take_emptied() {
            let removed = ended.get(&name).map_or(0, BTreeSet::len);
            let scope = Scope::Service(name);
            if self.is_known(&scope, removed > 0 && !whole) && !whole {
                self.notices.push(Notice::Ended {
                    scope,
                    how,
                    removed,
                });
            }
        }
        let (removed, moves) = self.leave(ended);
        self.removed += if whole { removed } else { 0 };
        self.end_whole(how);
        moves
    }

    /// These are no longer held, and the loss is accepted: it does not count for the next one. How many they are.
    fn leave(
        &mut self,
        ended: BTreeMap<Arc<str>, BTreeSet<Socket>>,
    ) -> (usize, BTreeMap<Arc<str>, Moves>) {
        let mut removed = 0;
        let mut moves = BTreeMap::new();
        for (name, sockets) in ended {
            removed += sockets.len();
            if let Some(level) = self.levels.get_mut(&name) {
                level.accept(sockets.len());
            }
            let moved = Moves {
                sockets,
                ..Moves::default()
            };
            moves.insert(name, moved);
        }
        self.total.accept(removed);
        (removed, moves)
    }

    /// Brings what is published in line with what is mirrored and held, where anything moved.
    fn publish(&mut self, moves: BTreeMap<Arc<str>, Moves>) -> Changes {
        let mut changes = Changes::new();
        for (name, moved) in moves {
            let before = self.published.get(&name).cloned();
            let after = self.shown(&name, before.as_deref(), &moved.sockets);
            let touched = match (&before, &after) {
                (Some(before), Some(after)) => {
                    // Perhaps in their origin only: rarely, and it costs no more than looking.
                    Touched::Some(before.instances.differences(&after.instances))
                }
                (None, None) => continue,
                _ => Touched::All,
            };
            match after {
                Some(after) => drop(self.published.insert(Arc::clone(&name), after)),
                None => drop(self.published.remove(&name)),
            }
            if touched != Touched::Some(BTreeSet::new()) {
                changes.insert(name, touched);
            }
        }
        changes
    }

    fn shown(
        &self,
        name: &str,
        before: Option<&Service>,
        sockets: &BTreeSet<Socket>,
    ) -> Option<Arc<Service>> {
        let base = self.mirrored.get(name);
        let Some(hold) = self.holds.services.get(name) else {
            return base.cloned();
        };
        let instances = overlaid(before, base, hold, sockets);
        let rest = base.unwrap_or(&hold.service);
        Some(Arc::new(Service {
            instances,
            ..Service::clone(rest)
        }))
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
