//! Keeps deregistered instances for a moment, because many libraries delete their znode and create it again.
//!
//! ```text
//! Index ──what is registered──▶ Linger ──what is registered or lingers──▶ Guard
//! ```
//!
//! An instance that returns within that moment never left: clients keep their connections to it and the guard
//! counts no loss. The moment is [`PAUSE`] while others serve the service, and [`Config::last`] while nobody
//! else does, or when another of those that left the service returned. Pure: time is an argument, in milliseconds, and should not jump.
//!
//! Invariants: what is registered is passed on as it is registered; an instance that left lingers no longer than
//! [`Config::last`], and no longer than [`PAUSE`] once others serve and none returns. A batch costs what it touches.

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use imbl::{OrdMap, OrdSet, ordmap::DiffItem};

use super::{
    Changes,
    guard::{Gone, Services, Time},
};
use crate::model::{Health, Instance, Instances, Service, Socket, Touched};

/// How long an instance lingers while others serve: longer than libraries take between their delete and their
/// create (2 to 8 ms on a quiet machine, up to 60 ms seen on a busy one), and too short for anybody to notice.
pub const PAUSE: Duration = Duration::from_millis(100);

/// How long after the return of an ensemble every instance that leaves is expected back.
const RETURN: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long an instance lingers while nobody else serves. With zero nothing lingers at all.
    pub last: Duration,
}

/// What lingers, by service. Cloning costs nothing.
#[derive(Clone, Debug, Default)]
pub struct Lingering {
    services: OrdMap<Arc<str>, Arc<Departed>>,
}

/// The instances of one service that left and may return.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departed {
    /// As it was when it last changed.
    service: Arc<Service>,
    instances: OrdMap<Socket, Departure>,
    /// The oldest first.
    order: OrdSet<(Time, Socket)>,
    /// Since when others serve, if they do.
    served: Option<Time>,
    /// Another one returned: the rest is expected too.
    returning: bool,
    due: Time,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departure {
    pub instance: Arc<Instance>,
    pub since: Time,
    /// It became known by a change that speaks of the whole tree.
    whole: bool,
}

impl Lingering {
    pub fn get(&self, service: &str, socket: Socket) -> Option<&Departure> {
        self.services.get(service)?.instances.get(&socket)
    }

    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// What left, in no order.
    pub fn gone(&self) -> impl Iterator<Item = Gone> {
        self.services.values().flat_map(|departed| {
            departed.instances.values().map(|departure| Gone {
                at: departure.since,
                service: Arc::clone(&departed.service),
                instance: Arc::clone(&departure.instance),
            })
        })
    }

    /// What lingers because nobody else serves and did not before, by service. It costs about what differs.
    pub fn since<'l>(
        &'l self,
        before: &'l Self,
    ) -> impl Iterator<Item = (&'l Arc<str>, &'l Arc<Instance>)> {
        let new = before
            .services
            .diff(&self.services)
            .filter_map(|item| match item {
                DiffItem::Add(name, departed) => Some((name, departed, None)),
                DiffItem::Update {
                    old: (_, old),
                    new: (name, new),
                } => Some((name, new, Some(old))),
                DiffItem::Remove(..) => None,
            });
        new.flat_map(|(name, departed, old)| {
            let is_last = departed.served.is_none();
            let departures = departed.instances.iter().filter(move |_| is_last);
            let new = departures.filter(move |(socket, _): &(&Socket, &Departure)| {
                old.is_none_or(|old| old.served.is_some() || !old.instances.contains_key(*socket))
            });
            new.map(move |(_, departure)| (name, &departure.instance))
        })
    }

    /// What lingered before and does not any more, by service. It costs about what differs.
    pub fn ended<'l>(
        &'l self,
        before: &'l Self,
    ) -> impl Iterator<Item = (&'l Arc<str>, &'l Arc<Instance>)> {
        let ended = before
            .services
            .diff(&self.services)
            .filter_map(|item| match item {
                DiffItem::Remove(name, departed) => Some((name, departed, None)),
                DiffItem::Update {
                    old: (name, old),
                    new: (_, new),
                } => Some((name, old, Some(new))),
                DiffItem::Add(..) => None,
            });
        ended.flat_map(|(name, departed, now)| {
            let gone =
                departed
                    .instances
                    .iter()
                    .filter(move |(socket, _): &(&Socket, &Departure)| {
                        now.is_none_or(|now: &Arc<Departed>| !now.instances.contains_key(*socket))
                    });
            gone.map(move |(_, departure)| (name, &departure.instance))
        })
    }
}

impl Departed {
    fn of(service: &Arc<Service>) -> Self {
        Self {
            service: Arc::clone(service),
            instances: OrdMap::new(),
            order: OrdSet::new(),
            served: None,
            returning: false,
            due: Time::MAX,
        }
    }

    fn insert(&mut self, departure: Departure) {
        let socket = departure.instance.socket();
        self.order.insert((departure.since, socket));
        self.instances.insert(socket, departure);
    }

    fn remove(&mut self, socket: Socket) -> bool {
        let removed = self.instances.remove(&socket);
        removed.is_some_and(|departure| self.order.remove(&(departure.since, socket)).is_some())
    }

    /// When one that left at `since` has lingered for long enough.
    fn end_of(&self, since: Time, last: i64) -> Time {
        let longest = since.saturating_add(last);
        match self.served {
            Some(served) if !self.returning => {
                longest.min(since.max(served).saturating_add(millis(PAUSE)))
            }
            _ => longest,
        }
    }

    /// The next one that ends by `now`, and whether it left by a change of the whole tree.
    fn ended(&self, now: Time, last: i64) -> Option<(Socket, bool)> {
        let (since, socket) = self.order.get_min()?;
        let departure = self.instances.get(socket)?;
        (self.end_of(*since, last) <= now).then_some((*socket, departure.whole))
    }
}

/// A change of what is registered.
#[derive(Clone, Copy)]
pub struct Change<'c> {
    pub now: Time,
    /// It speaks of the whole tree: a comparison, or the end of the root.
    pub whole: bool,
    /// Whether a service has the host name of one that left.
    pub is_taken: &'c dyn Fn(&str) -> bool,
    /// Whether the znode that registered an instance is still there: then it was changed, not deregistered.
    pub stands: &'c dyn Fn(&Instance) -> bool,
}

impl fmt::Debug for Change<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { now, whole, .. } = self;
        f.debug_struct("Change")
            .field("now", now)
            .field("whole", whole)
            .finish_non_exhaustive()
    }
}

/// The departures of one registry.
#[derive(Debug)]
pub struct Linger {
    last: i64,
    registered: Services,
    /// With what lingers.
    shown: Services,
    departed: Lingering,
    due: BTreeSet<(Time, Arc<str>)>,
    /// The names of lingering services that are registered no more, by host.
    vacant: BTreeMap<Arc<str>, Arc<str>>,
    /// What the other registries have registered.
    others: Vec<Services>,
    /// The latest time that was passed in.
    latest: Time,
    /// Until then clients of the ensemble may still return after an outage.
    settled: Time,
}

impl Linger {
    pub fn new(config: &Config) -> Self {
        Self {
            last: millis(config.last),
            registered: Services::new(),
            shown: Services::new(),
            departed: Lingering::default(),
            due: BTreeSet::new(),
            vacant: BTreeMap::new(),
            others: Vec::new(),
            latest: Time::MIN,
            settled: Time::MIN,
        }
    }

    /// How long an instance lingers at most, in milliseconds.
    pub fn longest(&self) -> Time {
        self.last.max(millis(PAUSE))
    }

    /// What is registered or lingers; costs nothing.
    pub fn services(&self) -> &Services {
        &self.shown
    }

    /// Cloning costs nothing.
    pub fn lingering(&self) -> &Lingering {
        &self.departed
    }

    /// What the other registries have registered: an instance there serves as well as one here.
    pub fn sees_others(&mut self, others: Vec<Services>) {
        self.others = others;
    }

    /// The ensemble was away and is back: libraries that register again at each reconnect do so now, and take
    /// longer than usual while a leader is elected.
    pub fn returned(&mut self, now: Time) {
        self.settled = now.saturating_add(millis(RETURN));
    }

    /// Begins with what a former process had registered.
    pub fn restart(&mut self, registered: &Services) {
        self.registered = registered.clone();
        self.shown = registered.clone();
    }

    /// When [`Linger::tick`] has something to do.
    pub fn due(&self) -> Option<Time> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Takes what is registered now, with what changed by it; returns what changed with what lingers.
    pub fn apply(
        &mut self,
        registered: &Services,
        changes: Changes,
        change: Change<'_>,
    ) -> Changes {
        let before = std::mem::replace(&mut self.registered, registered.clone());
        self.follow_clock(change.now);
        if change.whole {
            self.join_whole();
        }
        let left = |(name, touched): (&Arc<str>, &Touched)| {
            leaves(before.get(name), registered.get(name), touched)
        };
        let lingers = !self.departed.is_empty();
        if self.last == 0 || !(lingers || changes.iter().any(left)) {
            self.shown = registered.clone();
            return changes;
        }
        let mut shown = Changes::new();
        for item in before.diff(registered) {
            let (name, was, is) = match item {
                DiffItem::Add(name, is) => (name, None, Some(is)),
                DiffItem::Remove(name, was) => (name, Some(was), None),
                DiffItem::Update {
                    old: (_, was),
                    new: (name, is),
                } => (name, Some(was), Some(is)),
            };
            if let Some(vacant) = is.and_then(|is| self.yields_to(name, is)) {
                let sockets = self.drop_all(&vacant);
                self.show(&vacant, &sockets, &mut shown);
            }
            let sockets = self.follow(name, (was, is), change);
            self.show(name, &sockets, &mut shown);
        }
        self.settle();
        shown
    }

    /// Ends what has lingered for long enough; returns what changed. What left by changes of the whole tree (`true`)
    /// comes apart from the rest. To be repeated until there is nothing.
    pub fn tick(&mut self, now: Time) -> Option<(bool, Changes)> {
        self.follow_clock(now);
        let mut whole = None;
        let mut changes = Changes::new();
        let due = self.due.iter().take_while(|(due, _)| *due <= now);
        for name in due.map(|(_, name)| Arc::clone(name)).collect::<Vec<_>>() {
            let sockets = self.end(&name, now, &mut whole);
            self.show(&name, &sockets, &mut changes);
        }
        self.settle();
        whole.map(|whole| (whole, changes))
    }

    /// Ends what of a service has lingered for long enough and became known by a change of the whole tree
    /// or not, as the first one did where that is open yet.
    fn end(&mut self, name: &Arc<str>, now: Time, whole: &mut Option<bool>) -> BTreeSet<Socket> {
        let mut ended = BTreeSet::new();
        let Some(mut departed) = self.departed.services.get(name).map(|d| Departed::clone(d))
        else {
            return ended;
        };
        // Others may have come or gone in another registry.
        departed.served = self.served(name, departed.served, now);
        while let Some((socket, of)) = departed.ended(now, self.last)
            && *whole.get_or_insert(of) == of
        {
            departed.remove(socket);
            ended.insert(socket);
        }
        self.put(name, Some(departed));
        ended
    }

    /// Follows what became of one service; where.
    fn follow(
        &mut self,
        name: &Arc<str>,
        (was, is): (Option<&Arc<Service>>, Option<&Arc<Service>>),
        change: Change<'_>,
    ) -> BTreeSet<Socket> {
        let Some(service) = is.or(was) else {
            return BTreeSet::new();
        };
        let past = self
            .departed
            .services
            .get(name)
            .map(|past| Departed::clone(past));
        let mut departed = past.unwrap_or_else(|| Departed::of(service));
        departed.service = Arc::clone(service);
        let none = Instances::default();
        let [before, after] = [was, is].map(|s| s.map_or(&none, |service| &service.instances));
        let sockets = before.differences(after);
        let (mut left, mut came, mut some_returned) = (Vec::new(), 0, false);
        for socket in &sockets {
            let returned = departed.remove(*socket);
            some_returned |= returned;
            match (before.get(*socket), after.get(*socket)) {
                (Some(instance), None) => left.push(instance),
                (None, Some(new)) => came += usize::from(!returned && new.takes_requests()),
                _ => {}
            }
        }
        let is_told =
            |i: &&Arc<Instance>| !matches!(i.health, Health::Disabled(_)) && !(change.stands)(i);
        // What came in the same change stands for what left: one transaction replaced it.
        for instance in left.into_iter().filter(is_told).skip(came) {
            departed.insert(Departure {
                instance: Arc::clone(instance),
                since: change.now,
                whole: change.whole,
            });
        }
        departed.returning |= some_returned || change.now < self.settled;
        departed.served = self.served(name, departed.served, change.now);
        self.put(name, Some(departed));
        if is.is_none() && (change.is_taken)(&service.host) {
            return self.drop_all(name);
        }
        sockets
    }

    fn drop_all(&mut self, name: &Arc<str>) -> BTreeSet<Socket> {
        let departed = self.departed.services.get(name);
        let sockets = departed.map(|departed| departed.instances.keys().copied().collect());
        self.put(name, None);
        sockets.unwrap_or_default()
    }

    /// Since when others serve, if they do.
    fn served(&self, name: &str, since: Option<Time>, now: Time) -> Option<Time> {
        let all = [&self.registered].into_iter().chain(&self.others);
        let mut others = all.filter_map(|services| services.get(name));
        let serves = others.any(|service| service.instances.iter().any(|i| i.takes_requests()));
        serves.then(|| since.unwrap_or(now))
    }

    /// The lingering service that has the host name of one that appeared.
    fn yields_to(&self, name: &str, appeared: &Service) -> Option<Arc<str>> {
        let vacant = self.vacant.get(&appeared.host)?;
        (**vacant != *name).then(|| Arc::clone(vacant))
    }

    /// What lingers belongs to a change of the whole tree that follows: where a root is deleted, its children were
    /// deleted before it, perhaps one by one.
    fn join_whole(&mut self) {
        for name in self.departed.services.keys().cloned().collect::<Vec<_>>() {
            if let Some(departed) = self.departed.services.get_mut(&name) {
                let departed = Arc::make_mut(departed);
                let instances = departed.instances.iter().map(|(socket, departure)| {
                    let whole = true;
                    let departure = departure.clone();
                    (*socket, Departure { whole, ..departure })
                });
                departed.instances = instances.collect();
            }
        }
    }

    fn put(&mut self, name: &Arc<str>, departed: Option<Departed>) {
        if let Some(before) = self.departed.services.remove(name) {
            self.due.remove(&(before.due, Arc::clone(name)));
            self.vacant.remove(&before.service.host);
        }
        let departed = departed.filter(|departed| !departed.instances.is_empty());
        let Some(mut departed) = departed else {
            return;
        };
        let oldest = departed.order.get_min().map(|(since, _)| *since);
        departed.due = oldest.map_or(Time::MAX, |since| departed.end_of(since, self.last));
        self.due.insert((departed.due, Arc::clone(name)));
        if !self.registered.contains_key(name) {
            let host = Arc::clone(&departed.service.host);
            self.vacant.insert(host, Arc::clone(name));
        }
        self.departed
            .services
            .insert(Arc::clone(name), Arc::new(departed));
    }

    /// Brings what is shown of a service in line with what is registered and lingers, at these addresses.
    fn show(&mut self, name: &Arc<str>, sockets: &BTreeSet<Socket>, changes: &mut Changes) {
        let before = self.shown.get(name).cloned();
        let after = self.shown_now(name, before.as_deref(), sockets);
        let touched = match (&before, &after) {
            (Some(before), Some(after)) => Touched::Some(visible(sockets, before, after)),
            (None, None) => return,
            _ => Touched::All,
        };
        match after {
            Some(after) => drop(self.shown.insert(Arc::clone(name), after)),
            None => drop(self.shown.remove(name)),
        }
        if touched != Touched::Some(BTreeSet::new()) {
            match changes.get_mut(name) {
                Some(earlier) => earlier.merge(touched),
                None => drop(changes.insert(Arc::clone(name), touched)),
            }
        }
    }

    fn shown_now(
        &self,
        name: &str,
        before: Option<&Service>,
        sockets: &BTreeSet<Socket>,
    ) -> Option<Arc<Service>> {
        let registered = self.registered.get(name);
        let Some(departed) = self.departed.services.get(name) else {
            return registered.cloned();
        };
        let service = registered.unwrap_or(&departed.service);
        let mut instances = match before {
            Some(before) => before.instances.clone(),
            None => registered.map_or_else(Instances::default, |s| s.instances.clone()),
        };
        for socket in sockets {
            let registered = registered.and_then(|service| service.instances.get(*socket));
            let lingers = || Some(&departed.instances.get(socket)?.instance);
            match registered.or_else(lingers) {
                Some(instance) => instances.put(Arc::clone(instance)),
                None => instances.remove(*socket),
            }
        }
        Some(Arc::new(Service {
            instances,
            ..Service::clone(service)
        }))
    }

    /// Shares everything with what is registered once nothing lingers.
    fn settle(&mut self) {
        if self.departed.is_empty() {
            self.shown = self.registered.clone();
        }
    }

    /// Where the clock was set back, what seems to lie ahead is taken to be of now.
    fn follow_clock(&mut self, now: Time) {
        if std::mem::replace(&mut self.latest, now) <= now {
            return;
        }
        for (name, departed) in self.departed.services.clone() {
            let mut earlier = Departed::of(&departed.service);
            earlier.returning = departed.returning;
            earlier.served = departed.served.map(|since| since.min(now));
            for departure in departed.instances.values() {
                earlier.insert(Departure {
                    since: departure.since.min(now),
                    ..departure.clone()
                });
            }
            self.put(&name, Some(earlier));
        }
    }
}

/// Whether an instance left a service.
fn leaves(before: Option<&Arc<Service>>, after: Option<&Arc<Service>>, touched: &Touched) -> bool {
    let Some(before) = before else {
        return false;
    };
    let left = |socket: Socket| after.is_none_or(|after| after.instances.get(socket).is_none());
    match touched {
        Touched::Some(sockets) => (sockets.iter().copied())
            .any(|socket| before.instances.get(socket).is_some() && left(socket)),
        Touched::All => before.instances.iter().any(|i| left(i.socket())),
    }
}

/// Where of these addresses a client could tell the two apart.
fn visible(sockets: &BTreeSet<Socket>, before: &Service, after: &Service) -> BTreeSet<Socket> {
    let is_visible = |socket: &&Socket| {
        let both = [before, after].map(|service| service.instances.get(**socket));
        match both {
            [Some(was), Some(is)] => !was.is_like(is),
            [was, is] => was.is_some() || is.is_some(),
        }
    };
    sockets.iter().filter(is_visible).copied().collect()
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
