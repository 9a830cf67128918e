//! What happened to services and instances, and why: the last of it.
//!
//! An entry holds the instance before and after, and is put into words only when somebody asks. It
//! refuses to know the clock. Invariants: at most [`LENGTH`] entries are kept, of about [`BYTES`] at
//! most, the newest; a first load is one entry, since nothing happened then that an operator would ask about.

use std::{collections::BTreeSet, fmt::Write, net::IpAddr, sync::Arc};

use imbl::Vector;

use super::{
    Changes, Rejected, View,
    guard::{Ending, Notice, Scope},
};
use crate::model::{Health, Instance, Service, Socket, Touched, Weight};

/// Some minutes of a large mesh in turmoil, some days of a calm one.
pub const LENGTH: usize = 10_000;

/// Roughly what instances and reasons may take that nothing else holds any more: one may have 64 KiB of metadata.
pub const BYTES: usize = 32 << 20;

/// The newest last. Cloning costs nothing.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    entries: Vector<Arc<Entry>>,
    /// Of all entries, as they were estimated.
    bytes: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Milliseconds since the epoch.
    pub at: i64,
    pub registry: Arc<str>,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The registry was read for the first time.
    Loaded { services: usize },
    /// An instance appeared (no `before`), changed or went (no `after`).
    Instance {
        service: Arc<str>,
        before: Option<Arc<Instance>>,
        after: Option<Arc<Instance>>,
        cause: Cause,
    },
    /// A service appeared or went.
    Service { name: Arc<str>, there: bool },
    /// An instance went and is served, since too many went with it.
    Held {
        service: Arc<str>,
        instance: Arc<Instance>,
        /// It was removed already, and came back when the guard tripped.
        back: bool,
    },
    /// The last instance of a service left and stays served for a moment, as it may return.
    Lingers {
        service: Arc<str>,
        instance: Arc<Instance>,
    },
    /// One that had left is registered again; nobody was told in between.
    Reregistered {
        service: Arc<str>,
        instance: Arc<Instance>,
    },
    /// One that was held is registered again.
    Returned {
        service: Arc<str>,
        instance: Arc<Instance>,
    },
    /// A znode, by its full path, cannot be served as it stands.
    Rejected { path: String, rejected: Rejected },
    /// The guard began or ended to hold a removal back.
    Guard(Notice),
}

/// How a change became known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A watch told of it.
    Watch,
    /// All was read again, after an outage as a rule, and it was another.
    Comparison,
    /// It was compared with ZooKeeper by and by, and was another though no watch had told.
    Audit,
    /// Its time had come: a weight that ramps up, a registration that lapsed.
    Time,
    /// A host name resolves to other addresses.
    Resolution,
    /// It was gone before and held, until somebody said that it may go.
    Operator,
    /// It was gone before and held, until its address refused a connection.
    Probe,
    /// It was gone before and held, until as many were there again or its time was over.
    Hold,
}

impl Journal {
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &Arc<Entry>> {
        self.entries.iter()
    }

    pub fn record(&mut self, at: i64, registry: &Arc<str>, what: What) {
        self.bytes += what.size();
        self.entries.push_back(Arc::new(Entry {
            at,
            registry: Arc::clone(registry),
            what,
        }));
        while self.entries.len() > LENGTH || self.bytes > BYTES {
            let Some(oldest) = self.entries.pop_front() else {
                return;
            };
            self.bytes = self.bytes.saturating_sub(oldest.what.size());
        }
    }

    /// Records what is held in the second view of a registry and was not in the first.
    pub fn follow_holds(&mut self, at: i64, registry: &Arc<str>, (before, after): (&View, &View)) {
        for (service, held) in after.holds.since(&before.holds) {
            let instance = Arc::clone(&held.instance);
            let what = What::Held {
                back: !has(before, &service, instance.socket()),
                service,
                instance,
            };
            self.record(at, registry, what);
        }
    }

    /// Records what changed from one view of a registry to the next.
    pub fn follow(
        &mut self,
        at: i64,
        registry: &Arc<str>,
        cause: Cause,
        (before, after): (&View, &View),
        changes: &Changes,
    ) {
        self.follow_holds(at, registry, (before, after));
        for (service, held) in before.holds.since(&after.holds) {
            let published = after.services.get(&service);
            let instance = published.and_then(|s| s.instances.get(held.instance.socket()));
            let written = |instance: &&Arc<Instance>| !instance.health.is_lapsed();
            if let Some(instance) = instance.filter(written).map(Arc::clone) {
                self.record(at, registry, What::Returned { service, instance });
            }
        }
        self.follow_lingering(at, registry, before, after);
        let holds = &before.holds;
        let newly_held = |name: &str, socket| {
            let held = |view: &View| view.holds.get(name, socket).is_some();
            held(after) && !held(before)
        };
        for (name, touched) in changes {
            let services = [before, after].map(|view| view.services.get(name));
            // A service that only the hold brings back did not appear in the registry.
            let registered = services[1].is_some_and(|service| {
                let mut all = service.instances.iter();
                service.instances.is_empty() || !all.all(|i| newly_held(name, i.socket()))
            });
            if let [was, is] = services.map(|service| service.is_some())
                && was != is
                && is == registered
            {
                let name = Arc::clone(name);
                self.record(at, registry, What::Service { name, there: is });
            }
            for socket in sockets(touched, services) {
                let [before, after] =
                    services.map(|service| service?.instances.get(socket).cloned());
                let pair = before.as_deref().zip(after.as_deref());
                let is_like = pair.is_some_and(|(before, after)| before.is_like(after));
                // One that the hold brings back or alters is recorded as held.
                if is_like || newly_held(name, socket) {
                    continue;
                }
                let service = Arc::clone(name);
                let held = holds.get(name, socket).is_some() && after.is_none();
                let cause = match cause {
                    Cause::Operator | Cause::Probe => cause,
                    _ if held => Cause::Hold,
                    _ => cause,
                };
                let what = What::Instance {
                    service,
                    before,
                    after,
                    cause,
                };
                self.record(at, registry, what);
            }
        }
    }
}

fn has(view: &View, service: &str, socket: Socket) -> bool {
    let service = view.services.get(service);
    service.is_some_and(|service| service.instances.get(socket).is_some())
}

impl Journal {
    /// Records what lingers now as the last of its service, and what returned.
    fn follow_lingering(&mut self, at: i64, registry: &Arc<str>, before: &View, after: &View) {
        for (service, instance) in after.lingering.since(&before.lingering) {
            let (service, instance) = (Arc::clone(service), Arc::clone(instance));
            self.record(at, registry, What::Lingers { service, instance });
        }
        for (service, left) in after.lingering.ended(&before.lingering) {
            let published = after.services.get(service);
            let instance = published.and_then(|s| s.instances.get(left.socket()));
            let is_held = after.holds.get(service, left.socket()).is_some();
            if let Some(instance) = instance.filter(|_| !is_held).map(Arc::clone) {
                let service = Arc::clone(service);
                self.record(at, registry, What::Reregistered { service, instance });
            }
        }
    }
}

fn sockets(touched: &Touched, services: [Option<&Arc<Service>>; 2]) -> Vec<Socket> {
    match touched {
        Touched::Some(sockets) => sockets.iter().copied().collect(),
        Touched::All => {
            let services = services.into_iter().flatten();
            let instances = services.flat_map(|service| service.instances.iter());
            let mut sockets: Vec<_> = instances.map(|instance| instance.socket()).collect();
            sockets.sort_unstable();
            sockets.dedup();
            sockets
        }
    }
}

impl What {
    /// `registered`, `changed`, `removed`, …
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Loaded { .. } => "loaded",
            Self::Instance { before: None, .. } => "registered",
            Self::Instance { after: None, .. } => "removed",
            Self::Instance { .. } => "changed",
            Self::Service { there: true, .. } => "appeared",
            Self::Service { there: false, .. } => "gone",
            Self::Held { .. } => "held",
            Self::Lingers { .. } => "lingers",
            Self::Reregistered { .. } => "reregistered",
            Self::Returned { .. } => "returned",
            Self::Rejected { .. } => "rejected",
            Self::Guard(Notice::Tripped { .. }) => "tripped",
            Self::Guard(Notice::Ended { .. }) => "hold ended",
        }
    }

    /// Roughly, in bytes, and always the same.
    fn size(&self) -> usize {
        let held = match self {
            Self::Instance { before, after, .. } => {
                before.iter().chain(after).map(|i| size(i)).sum()
            }
            Self::Held { instance, .. }
            | Self::Lingers { instance, .. }
            | Self::Reregistered { instance, .. }
            | Self::Returned { instance, .. } => size(instance),
            Self::Rejected { path, rejected } => path.len() + rejected.reason.len(),
            Self::Loaded { .. } | Self::Service { .. } | Self::Guard(_) => 0,
        };
        size_of::<Entry>() + held
    }

    pub fn service(&self) -> Option<&Arc<str>> {
        match self {
            Self::Instance { service, .. }
            | Self::Held { service, .. }
            | Self::Lingers { service, .. }
            | Self::Reregistered { service, .. }
            | Self::Returned { service, .. } => Some(service),
            Self::Service { name, .. } => Some(name),
            Self::Guard(notice) => match notice.scope() {
                Scope::Service(name) => Some(name),
                Scope::Registry => None,
            },
            Self::Loaded { .. } | Self::Rejected { .. } => None,
        }
    }

    pub fn instance(&self) -> Option<&Arc<Instance>> {
        match self {
            Self::Instance { before, after, .. } => after.as_ref().or(before.as_ref()),
            Self::Held { instance, .. }
            | Self::Lingers { instance, .. }
            | Self::Reregistered { instance, .. }
            | Self::Returned { instance, .. } => Some(instance),
            _ => None,
        }
    }

    /// The full path of the znode, where one is meant.
    pub fn path(&self) -> Option<String> {
        match self {
            Self::Rejected { path, .. } => Some(path.clone()),
            _ => self.instance().map(|instance| instance.origin.path()),
        }
    }

    /// The full paths of all znodes that are meant, before and after.
    fn paths(&self) -> impl Iterator<Item = String> {
        let (rejected, instances) = match self {
            Self::Rejected { path, .. } => (Some(path.clone()), [None, None]),
            Self::Instance { before, after, .. } => (None, [before.as_ref(), after.as_ref()]),
            Self::Held { instance, .. }
            | Self::Lingers { instance, .. }
            | Self::Reregistered { instance, .. }
            | Self::Returned { instance, .. } => (None, [Some(instance), None]),
            Self::Loaded { .. } | Self::Service { .. } | Self::Guard(_) => (None, [None, None]),
        };
        let instances = instances.into_iter().flatten();
        rejected
            .into_iter()
            .chain(instances.map(|instance| instance.origin.path()))
    }

    /// Why, in words.
    pub fn why(&self) -> String {
        match self {
            Self::Loaded { services } => format!("the registry was read: {services} services"),
            Self::Service { there: true, .. } => "its znode, or an instance of it, appeared".into(),
            Self::Service { there: false, .. } => "nothing of it is there any more".into(),
            Self::Held { instance, back, .. } => {
                let served = if *back {
                    "is served again"
                } else {
                    "stays served"
                };
                let gone = removed(instance, Cause::Watch);
                format!("{gone}; too many went with it, so it {served}")
            }
            Self::Lingers { instance, .. } => {
                removed(instance, Cause::Watch)
                    + "; nobody else serves, so it stays served for a moment in case it returns"
            }
            Self::Reregistered { instance, .. } => {
                registered(instance, Cause::Watch) + "; it had left a moment before"
            }
            Self::Returned { instance, .. } => {
                registered(instance, Cause::Watch) + "; it is held no more"
            }
            Self::Rejected { rejected, .. } => rejected.reason.clone(),
            Self::Guard(notice) => guarded(notice),
            Self::Instance {
                before,
                after,
                cause,
                ..
            } => match (before, after) {
                (None, Some(new)) => registered(new, *cause),
                (Some(old), None) => removed(old, *cause),
                (Some(old), Some(new)) => changed(old, new, *cause),
                (None, None) => String::new(),
            },
        }
    }
}

/// What an instance keeps in memory, as if it shared nothing with others.
fn size(instance: &Instance) -> usize {
    let metadata = instance.metadata.iter();
    let metadata: usize = metadata.map(|(key, value)| key.len() + value.len()).sum();
    let own_id = instance.own_id.as_deref().map_or(0, str::len);
    size_of::<Instance>() + metadata + own_id + instance.origin.znode.len()
}

fn guarded(notice: &Notice) -> String {
    match notice {
        Notice::Tripped {
            peak,
            present,
            held,
            ..
        } => format!(
            "of {peak} instances {present} are still registered; {held} of the others stay served"
        ),
        Notice::Ended { how, removed, .. } => {
            let why = match how {
                Ending::Returned => "as many are registered as there were",
                Ending::Expired => "the time of the hold is over",
                Ending::Released => "an operator released it",
                Ending::Refused => "the addresses refuse connections",
            };
            format!("{why}; {removed} instances were removed by that")
        }
    }
}

fn registered(new: &Instance, cause: Cause) -> String {
    let origin = &new.origin;
    let mut why = format!("{} (czxid {}", origin.path(), origin.czxid);
    if origin.session != 0 {
        let _ = write!(why, ", session 0x{:x}", origin.session);
    }
    why.push(')');
    why + found(cause)
}

fn removed(old: &Instance, cause: Cause) -> String {
    let gone = match old.origin.session {
        0 => "its znode was deleted".to_owned(),
        session => format!("its znode was deleted, or session 0x{session:x} ended or expired"),
    };
    match cause {
        Cause::Watch | Cause::Time => gone,
        Cause::Resolution => "its host name does not resolve to this address any more".to_owned(),
        Cause::Comparison | Cause::Audit => gone + found(cause),
        Cause::Operator => gone + "; it was held, and an operator let it go",
        Cause::Probe => gone + "; it was held, and its address refused a connection",
        Cause::Hold => gone + "; it was held, and the hold is over",
    }
}

fn found(cause: Cause) -> &'static str {
    match cause {
        Cause::Comparison => "; found by comparing all with ZooKeeper",
        Cause::Audit => "; found by the audit, no watch had told",
        Cause::Resolution => "; its host name resolves to this address now",
        Cause::Watch | Cause::Time | Cause::Operator | Cause::Probe | Cause::Hold => "",
    }
}

fn changed(old: &Instance, new: &Instance, cause: Cause) -> String {
    let mut parts = Vec::new();
    if old.weight != new.weight {
        parts.push(format!(
            "weight {} → {}{}",
            old.weight.get(),
            new.weight.get(),
            if new.weight == Weight::DRAIN {
                " (draining)"
            } else {
                ""
            }
        ));
    }
    if old.zone != new.zone {
        let zone = |i: &Instance| i.zone.as_deref().unwrap_or("none").to_owned();
        parts.push(format!("zone {} → {}", zone(old), zone(new)));
    }
    if old.health != new.health {
        parts.push(format!("health {} → {}", health(old), health(new)));
    }
    if old.id() != new.id() {
        parts.push(format!("id {} → {}", old.id(), new.id()));
    }
    if old.metadata != new.metadata {
        parts.push("metadata".to_owned());
    }
    if old.origin.znode != new.origin.znode {
        parts.push(format!("now registered by {}", new.origin.path()));
    }
    if cause == Cause::Time {
        parts.push("its time had come".to_owned());
    }
    let mzxid = new.origin.mzxid;
    format!("{} (mzxid {mzxid}){}", parts.join(", "), found(cause))
}

fn health(instance: &Instance) -> String {
    match &instance.health {
        Health::Healthy => "healthy".to_owned(),
        Health::Degraded => "degraded".to_owned(),
        Health::Unhealthy => "unhealthy".to_owned(),
        Health::Disabled(why) => format!("disabled ({why})"),
    }
}

impl Entry {
    /// Whether it is about the subject. What concerns a whole registry concerns everything in it.
    pub fn concerns(&self, subject: &Subject<'_>) -> bool {
        if self.is_of_registry() {
            return true;
        }
        match subject {
            Subject::Services(names) => self.is_of(names),
            Subject::Address(address) => {
                let of = |instance: &Arc<Instance>| address.is_of(instance.socket());
                self.what.instance().is_some_and(of)
            }
            Subject::Znode { path, services } => {
                let of_service = self.what.instance().is_none() && self.is_of(services);
                of_service || self.what.paths().any(|of| is_below(&of, path))
            }
        }
    }

    /// Whether it is about a registry as a whole.
    pub fn is_of_registry(&self) -> bool {
        matches!(&self.what, What::Guard(notice) if *notice.scope() == Scope::Registry)
    }

    fn is_of(&self, names: &BTreeSet<Arc<str>>) -> bool {
        (self.what.service()).is_some_and(|service| names.contains(service))
    }
}

/// Whether a path is that of a znode or of something below it.
pub fn is_below(path: &str, znode: &str) -> bool {
    let rest = path.strip_prefix(znode);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What an operator asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    Address(Address),
    /// A znode with everything below it, by its full path below the connect string's chroot, and the services
    /// whose instances are there.
    Znode {
        path: &'a str,
        services: BTreeSet<Arc<str>>,
    },
    Services(BTreeSet<Arc<str>>),
}

/// Some addresses, with one port or with any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub ips: BTreeSet<IpAddr>,
    pub port: Option<u16>,
}

impl Address {
    pub fn is_of(&self, (ip, port): Socket) -> bool {
        self.ips.contains(&ip) && self.port.is_none_or(|of| of == port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Metadata, Origin},
        registry::guard::{self, Guard},
    };

    fn instance(weight: u32, session: i64) -> Arc<Instance> {
        Arc::new(Instance {
            own_id: None,
            address: [10, 0, 0, 1].into(),
            port: 80,
            weight: Weight::new(weight).unwrap(),
            zone: None,
            health: Health::Healthy,
            priority: 0,
            metadata: Metadata::default(),
            origin: Origin {
                znode: "orders/i-1".into(),
                czxid: 7,
                mzxid: 8,
                session,
                ..Origin::default()
            },
        })
    }

    fn view(instances: &[Arc<Instance>]) -> View {
        let service = Service {
            name: "orders".into(),
            host: "orders".into(),
            registry: "main".into(),
            instances: instances.iter().cloned().collect(),
        };
        View {
            services: [(Arc::from("orders"), Arc::new(service))]
                .into_iter()
                .collect(),
            ..View::default()
        }
    }

    fn told(before: &View, after: &View, cause: Cause) -> Vec<(&'static str, String)> {
        let mut journal = Journal::default();
        let changes = Changes::from([("orders".into(), Touched::All)]);
        journal.follow(0, &"main".into(), cause, (before, after), &changes);
        let entries = journal.entries();
        entries.map(|e| (e.what.verb(), e.what.why())).collect()
    }

    #[test]
    fn it_says_what_happened_and_why() {
        let (none, one) = (View::default(), view(&[instance(100, 0x2a)]));
        let came = told(&none, &one, Cause::Watch);
        assert_eq!(came[0].0, "appeared");
        assert_eq!(came[1].0, "registered");
        assert_eq!(came[1].1, "/orders/i-1 (czxid 7, session 0x2a)");
        let went = told(&one, &view(&[]), Cause::Watch);
        assert_eq!(
            went,
            [(
                "removed",
                "its znode was deleted, or session 0x2a ended or expired".to_owned()
            )]
        );
        let missed = told(&view(&[instance(1, 0)]), &view(&[]), Cause::Comparison);
        assert!(
            missed[0]
                .1
                .starts_with("its znode was deleted; found by comparing")
        );
        let heavier = told(&one, &view(&[instance(300, 0x2a)]), Cause::Watch);
        assert_eq!(
            heavier,
            [("changed", "weight 100 → 300 (mzxid 8)".to_owned())]
        );
        assert!(told(&one, &one, Cause::Watch).is_empty());
    }

    #[test]
    fn what_is_held_is_told_with_how_it_ended() {
        let mut guard = Guard::new(guard::Config {
            minimum: 1,
            ..guard::Config::default()
        });
        let mut journal = Journal::default();
        let mut before = View::default();
        let mut step = |guard: &mut Guard, mirrored: &View, cause| {
            let changes = if cause == Cause::Operator {
                guard.release(None)
            } else {
                let touched = Changes::from([("orders".into(), Touched::All)]);
                guard.apply(&mirrored.services, touched, 0, guard::Cause::default())
            };
            let after = View {
                services: guard.published().clone(),
                holds: guard.holds().clone(),
                ..View::default()
            };
            journal.follow(0, &"main".into(), cause, (&before, &after), &changes);
            before = after;
            let last = journal.entries().next_back().unwrap();
            (last.what.verb(), last.what.why())
        };
        let (all, none) = (view(&[instance(1, 0)]), view(&[]));
        step(&mut guard, &all, Cause::Watch);
        let (verb, why) = step(&mut guard, &none, Cause::Watch);
        assert_eq!(verb, "held");
        assert!(
            why.ends_with("too many went with it, so it stays served"),
            "{why}"
        );
        assert_eq!(step(&mut guard, &all, Cause::Watch).0, "returned");
        step(&mut guard, &none, Cause::Watch);
        let (verb, why) = step(&mut guard, &none, Cause::Operator);
        assert_eq!(verb, "removed");
        assert!(why.ends_with("an operator let it go"), "{why}");
    }

    #[test]
    fn what_the_hold_brings_back_is_held_and_not_registered() {
        let mut journal = Journal::default();
        let mut guard = Guard::new(guard::Config::default());
        let many = |n: u8| {
            let all = (1..=n).map(|n| {
                Arc::new(Instance {
                    address: [10, 0, 0, n].into(),
                    ..Instance::clone(&instance(1, 0))
                })
            });
            view(&all.collect::<Vec<_>>())
        };
        let mut before = View::default();
        // One goes after the other, until the guard trips and the first ones come back.
        for (at, left) in [6, 5, 4, 3, 2, 1, 0].into_iter().enumerate() {
            let mirrored = if left == 0 {
                View::default()
            } else {
                many(left)
            };
            let touched = Changes::from([("orders".into(), Touched::All)]);
            let at = i64::try_from(at).unwrap();
            let changes = guard.apply(&mirrored.services, touched, at, guard::Cause::default());
            let after = View {
                services: guard.published().clone(),
                holds: guard.holds().clone(),
                ..View::default()
            };
            let views = (&before, &after);
            journal.follow(at, &"main".into(), Cause::Watch, views, &changes);
            before = after;
        }
        assert_eq!(before.holds.held(), 6, "all are held in the end");
        let count = |verb| journal.entries().filter(|e| e.what.verb() == verb).count();
        assert_eq!(count("held"), 6);
        let back = |e: &&Arc<Entry>| e.what.why().ends_with("so it is served again");
        assert_eq!(journal.entries().filter(back).count(), 4);
        assert_eq!(count("registered"), 6, "once each, in the beginning");
        assert_eq!(count("appeared"), 1);
    }

    #[test]
    fn it_is_found_by_service_address_and_znode() {
        let mut journal = Journal::default();
        let changes = Changes::from([("orders".into(), Touched::All)]);
        let (none, one) = (View::default(), view(&[instance(1, 0)]));
        journal.follow(0, &"main".into(), Cause::Watch, (&none, &one), &changes);
        let count = |subject| journal.entries().filter(|e| e.concerns(&subject)).count();
        let orders: BTreeSet<Arc<str>> = ["orders".into()].into();
        let address = |port| {
            let ips = [[10, 0, 0, 1].into()].into();
            Subject::Address(Address { ips, port })
        };
        let znode = |path, services| Subject::Znode { path, services };
        assert_eq!(count(Subject::Services(orders.clone())), 2);
        assert_eq!(count(address(Some(80))), 1);
        assert_eq!(count(address(None)), 1);
        assert_eq!(count(address(Some(81))), 0);
        assert_eq!(count(znode("/orders/i-1", BTreeSet::new())), 1);
        assert_eq!(count(znode("/orders", orders)), 2);
        assert_eq!(count(znode("/order", BTreeSet::new())), 0);
    }

    #[test]
    fn only_the_newest_are_kept() {
        let mut journal = Journal::default();
        for services in 0..=LENGTH {
            journal.record(0, &"main".into(), What::Loaded { services });
        }
        assert_eq!(journal.entries().count(), LENGTH);
        let first = journal.entries().next().unwrap();
        assert_eq!(first.what, What::Loaded { services: 1 });
    }

    #[test]
    fn large_instances_leave_room_for_fewer() {
        let mut journal = Journal::default();
        let large = |n: usize| {
            let value = format!("{n:065000}");
            let metadata = std::collections::BTreeMap::from([("large".to_owned(), value)]);
            Arc::new(Instance {
                metadata: metadata.into(),
                ..Instance::clone(&instance(1, 0))
            })
        };
        let held = |instance| What::Held {
            service: "orders".into(),
            instance,
            back: false,
        };
        for n in 0..1_000 {
            journal.record(0, &"main".into(), held(large(n)));
        }
        let count = journal.entries().count();
        assert!((400..600).contains(&count), "{count}");
        let last = journal.entries().next_back().unwrap();
        assert_eq!(last.what, held(large(999)));
        // And many again of those that are small.
        for services in 0..LENGTH {
            journal.record(0, &"main".into(), What::Loaded { services });
        }
        assert_eq!(journal.entries().count(), LENGTH);
    }
}
