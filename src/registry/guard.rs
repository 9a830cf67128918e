//! Holds mass deregistrations back: what an index mirrors in, what may be published out.
//!
//! ```text
//! Index ──services──▶ levels: greatest number in the window − present number = net loss
//!                       │ over a share, and over a minimum
//!                       ▼
//!                     holds: what went stays published ──▶ as many are back · a time is over · released
//! ```
//!
//! Only instances that took requests count: one that was drained, unhealthy or disabled before it went is no
//! loss. What is lost before a share is reached goes; once it is reached, all that the window lost is held, and
//! what goes while the hold lasts: of a service up to what it had, of a registry up to what it had as a whole,
//! and each of its services. It refuses to know znodes and clocks: time is an argument, in milliseconds,
//! and should not jump; where it was set back, what seems to lie ahead is taken to be of now.
//!
//! Invariants: a registered instance is always published as it is registered; what is published beside
//! those is in [`Guard::holds`], and a service is served by no more of them than it lacks; without holds
//! what is published is what is mirrored. A batch costs what it touches.

// A hold and what is held, a move and what moved: these are the words.
#![allow(clippy::similar_names)]

mod hold;
mod level;
mod loss;
mod moves;
mod notice;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use imbl::OrdMap;

use self::{
    hold::overlaid,
    level::Level,
    loss::Gone,
    moves::{Moves, moves},
};
pub use self::{
    hold::{Held, Hold, Holds, Resumed, Trip},
    notice::{Ending, Notice, Scope},
};
use super::Changes;
use crate::model::{Instance, Service, Socket, Touched};

/// Milliseconds since the epoch.
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
            degraded: false,
        }
    }
}

/// What is known of the batch that a change comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cause {
    /// It speaks of the whole tree (a comparison after a reconnect, or the root is gone): a registry that it
    /// leaves without any instance is held, however few there were; also where they went before it, in the window.
    pub whole: bool,
    /// When what is lost was last known to be there, if that is long ago.
    pub known: Option<Time>,
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
    /// What went within the window and was let go, the oldest first.
    recent: VecDeque<Gone>,
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
            recent: VecDeque::new(),
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
        cause: Cause,
    ) -> Changes {
        let before = std::mem::replace(&mut self.mirrored, mirrored.clone());
        if !self.config.enabled {
            self.published = mirrored.clone();
            return changes;
        }
        let mut moves = moves(&before, mirrored);
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

    /// When [`Guard::tick`] has something to do.
    pub fn due(&self) -> Option<Time> {
        let since = self.holds.oldest()?;
        Some(since.saturating_add(millis(self.config.hold_for)))
    }

    /// Ends what was held for long enough.
    pub fn tick(&mut self, now: Time) -> Changes {
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
        self.end(ended, Ending::Released)
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
        self.end(ended, Ending::Refused)
    }

    /// Goes on holding what a former process held: by service as many as there were, and the instances with
    /// the times since when. What is registered is not held.
    pub fn resume(
        &mut self,
        holds: impl IntoIterator<Item = (Arc<Service>, usize, Vec<(Arc<Instance>, Time)>)>,
        trip: Option<Trip>,
    ) -> Changes {
        if !self.config.enabled {
            return Changes::new();
        }
        let mut moves = BTreeMap::new();
        for (service, target, mut held) in holds {
            held.sort_by_key(|(_, since)| *since);
            let registered = self.mirrored.get(&service.name).map(|s| &s.instances);
            held.retain(|(i, _)| registered.is_none_or(|r| r.get(i.socket()).is_none()));
            let moved: &mut Moves = moves.entry(Arc::clone(&service.name)).or_default();
            moved.sockets.extend(held.iter().map(|(i, _)| i.socket()));
            for (instance, since) in held {
                self.keep(&service, target, instance, since);
            }
        }
        self.holds.trip = trip;
        self.begin(Time::MIN);
        self.limit(&mut moves);
        self.settle();
        self.publish(moves)
    }

    /// What operators should hear of since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    fn count(&mut self, moves: &BTreeMap<Arc<str>, Moves>, now: Time) {
        let from = now.saturating_sub(millis(self.config.window));
        let (mut by, mut turned) = (0, 0);
        for (name, moved) in moves {
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
        // The clock may have been set back.
        for gone in self
            .recent
            .iter_mut()
            .rev()
            .take_while(|gone| gone.at > now)
        {
            gone.at = now;
        }
        while self.recent.front().is_some_and(|gone| gone.at < from) {
            self.recent.pop_front();
        }
        self.forget(from);
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

    /// What is registered again is not held any more.
    fn take_back(&mut self, moves: &BTreeMap<Arc<str>, Moves>) {
        for (name, moved) in moves {
            let Some(service) = self.mirrored.get(name) else {
                continue;
            };
            let back = |socket: &&Socket| service.instances.get(**socket).is_some();
            for socket in moved.sockets.iter().filter(back) {
                self.holds.remove(name, *socket);
            }
        }
    }

    /// What went then or before is held no more.
    fn over(&self, now: Time) -> Time {
        now.saturating_sub(millis(self.config.hold_for))
    }

    /// Takes leave of the holds that are empty now, and of the registry's.
    fn settle(&mut self) {
        for name in self.holds.take_emptied() {
            if self.holds.trip.is_none() {
                self.notices.push(Notice::Ended {
                    scope: Scope::Service(name),
                    how: Ending::Returned,
                    removed: 0,
                });
            }
        }
        self.end_whole(Ending::Returned);
    }

    /// The registry is held no more once nothing of it is.
    fn end_whole(&mut self, how: Ending) {
        if self.holds.is_empty() && self.holds.trip.take().is_some() {
            self.began = BTreeMap::new();
            self.notices.push(Notice::Ended {
                scope: Scope::Registry,
                how,
                removed: std::mem::take(&mut self.removed),
            });
        }
    }

    /// These are held no more, and the loss is accepted: it does not count for the next one.
    ///
    /// Where the registry is held as a whole, one notice stands for those of its services.
    fn end(&mut self, ended: BTreeMap<Arc<str>, BTreeSet<Socket>>, how: Ending) -> Changes {
        let whole = self.holds.trip.is_some();
        let emptied: BTreeSet<_> = self.holds.take_emptied().into_iter().collect();
        let mut removed = 0;
        let mut moves = BTreeMap::new();
        self.recent
            .retain(|gone| !ended.contains_key(&gone.service.name));
        for (name, sockets) in ended {
            removed += sockets.len();
            if let Some(level) = self.levels.get_mut(&name) {
                level.accept(sockets.len());
            }
            if !whole && emptied.contains(&name) {
                self.notices.push(Notice::Ended {
                    scope: Scope::Service(Arc::clone(&name)),
                    how,
                    removed: sockets.len(),
                });
            }
            let moved = Moves {
                sockets,
                ..Moves::default()
            };
            moves.insert(name, moved);
        }
        self.total.accept(removed);
        self.removed += if whole { removed } else { 0 };
        self.end_whole(how);
        self.publish(moves)
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
