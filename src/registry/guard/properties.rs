//! The guard against a naive model that keeps all history and recounts everything.

use std::net::IpAddr;

use proptest::prelude::*;

use super::{
    tests::{Rig, instance},
    *,
};
use crate::model::Weight;

const SERVICES: [&str; 3] = ["orders", "users", "tiny"];
const MINIMUM: usize = 3;
const WINDOW: Time = 10_000;
const HOLD: Time = 60_000;

#[derive(Clone, Debug)]
enum Step {
    /// Registers or writes: the weight tells one value from another.
    Put(usize, Vec<u16>, u32),
    Delete(usize, Vec<u16>),
    /// Some go and others come at once.
    Replace(usize, Vec<u16>, Vec<u16>),
    DeleteService(usize),
    Clear,
    Release(Option<usize>),
    /// These addresses refuse connections.
    Refuse(usize, Vec<u16>),
    Pass(Time),
}

fn step() -> impl Strategy<Value = Step> {
    let ports = || prop::collection::vec(1..16u16, 0..12);
    prop_oneof![
        6 => (0..3usize, ports(), 0..3u32).prop_map(|(s, p, w)| Step::Put(s, p, w)),
        6 => (0..3usize, ports()).prop_map(|(s, p)| Step::Delete(s, p)),
        2 => (0..3usize, ports(), ports()).prop_map(|(s, p, q)| Step::Replace(s, p, q)),
        1 => (0..3usize).prop_map(Step::DeleteService),
        1 => Just(Step::Clear),
        1 => prop::option::of(0..3usize).prop_map(Step::Release),
        2 => (0..3usize, ports()).prop_map(|(s, p)| Step::Refuse(s, p)),
        6 => prop_oneof![0..3_000i64, 0..90_000i64].prop_map(Step::Pass),
    ]
}

/// Every state of a service (or of all) with the time when it began. Losses are measured against it.
#[derive(Default)]
struct History(Vec<(Time, usize)>);

impl History {
    fn note(&mut self, now: Time, count: usize) {
        self.0.push((now, count));
    }

    /// So many of the lost are not missed.
    fn accept(&mut self, lost: usize) {
        if let Some((_, past)) = self.0.split_last_mut() {
            for (_, count) in past {
                *count = count.saturating_sub(lost);
            }
        }
    }

    /// The greatest number within the window.
    fn peak(&self, now: Time) -> usize {
        let ends = self.0.iter().skip(1).map(|(began, _)| *began).chain([now]);
        let within = self
            .0
            .iter()
            .zip(ends)
            .filter(|(_, end)| *end >= now - WINDOW);
        within.map(|((_, count), _)| *count).max().unwrap_or(0)
    }
}

fn count(service: Option<&Arc<Service>>) -> usize {
    service.map_or(0, |s| {
        s.instances.iter().filter(|i| i.takes_requests()).count()
    })
}

#[allow(clippy::cast_precision_loss)]
fn exceeds(peak: usize, present: usize, share: f64) -> bool {
    let loss = peak.saturating_sub(present);
    loss >= MINIMUM && loss as f64 > share * peak as f64
}

fn put(rig: &mut Rig, service: &str, ports: &[u16], weight: u32) {
    rig.edit(service, |instances| {
        for port in ports {
            let mut i = instance(service, *port);
            i.weight = Weight::new(weight + 1).unwrap();
            instances.put(i.into());
        }
    });
}

fn socket(port: u16) -> Socket {
    (IpAddr::from([10, 0, 0, 1]), port)
}

fn delete(rig: &mut Rig, service: &str, ports: &[u16]) {
    rig.edit(service, |instances| {
        for port in ports {
            instances.remove(socket(*port));
        }
    });
}

/// Each service has addresses of its own: instances at one address are one process, which counts once.
fn own(service: usize, ports: &[u16]) -> Vec<u16> {
    let first = 16 * u16::try_from(service).unwrap();
    ports.iter().map(|port| first + port).collect()
}

fn take(rig: &mut Rig, step: &Step) -> Changes {
    match step {
        Step::Put(service, ports, weight) => {
            put(rig, SERVICES[*service], &own(*service, ports), *weight);
        }
        Step::Delete(service, ports) => delete(rig, SERVICES[*service], &own(*service, ports)),
        Step::Replace(service, gone, come) => {
            delete(rig, SERVICES[*service], &own(*service, gone));
            put(rig, SERVICES[*service], &own(*service, come), 0);
        }
        Step::DeleteService(service) => drop(rig.mirrored.remove(SERVICES[*service])),
        Step::Clear => rig.mirrored = Services::new(),
        Step::Release(service) => return rig.guard.release(service.map(|s| SERVICES[s])),
        Step::Refuse(service, ports) => {
            let sockets = own(*service, ports).into_iter().map(socket).collect();
            let refused = [(SERVICES[*service].into(), sockets)].into();
            return rig.guard.refused(&refused);
        }
        Step::Pass(time) => {
            rig.now += time;
            return rig.guard.tick(rig.now);
        }
    }
    let whole = matches!(step, Step::Clear);
    rig.tell(Cause {
        whole,
        ..Cause::default()
    })
}

/// What is registered is published as it is, the rest of what is published is held, and `changes` tells of
/// every difference.
fn check(rig: &Rig, before: &Services, changes: &Changes) -> Result<(), TestCaseError> {
    let (guard, mirrored) = (&rig.guard, &rig.mirrored);
    let names: BTreeSet<&Arc<str>> = mirrored
        .keys()
        .chain(guard.published().keys())
        .chain(before.keys())
        .collect();
    for name in names {
        let registered = mirrored
            .get(name)
            .map(|s| s.instances.clone())
            .unwrap_or_default();
        let mut expected = registered.clone();
        for (socket, held) in guard
            .holds()
            .services
            .get(name)
            .iter()
            .flat_map(|h| &h.held)
        {
            prop_assert!(
                registered.get(*socket).is_none(),
                "a registered one is held"
            );
            expected.put(Arc::clone(&held.instance));
        }
        let published = guard.published().get(name);
        let there = mirrored.contains_key(name) || guard.holds().contains(name);
        prop_assert_eq!(published.is_some(), there);
        prop_assert_eq!(
            published.map(|s| s.instances.clone()).unwrap_or_default(),
            expected
        );
        let differs = before.get(name) != published;
        match changes.get(name) {
            None => prop_assert!(!differs, "{} changed and nobody was told", name),
            Some(Touched::Some(sockets)) => {
                let (was, is) = (&before[name].instances, &published.unwrap().instances);
                prop_assert!(was.differences(is).is_subset(sockets));
            }
            Some(Touched::All) => prop_assert!(before.contains_key(name) != published.is_some()),
        }
    }
    if guard.holds().is_empty() {
        prop_assert_eq!(guard.published(), mirrored);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn nothing_is_removed_beyond_what_is_allowed_and_everything_held_goes_in_the_end(
        steps in prop::collection::vec(step(), 1..40),
        (service_share, registry_share) in (0.2..1.0f64, 0.2..1.0f64),
    ) {
        let hold_for = Duration::from_millis(u64::try_from(HOLD).unwrap());
        let config = Config { service_share, registry_share, minimum: MINIMUM, hold_for, ..Config::default() };
        let mut rig = Rig::new(config);
        let mut histories: BTreeMap<&str, History> = BTreeMap::new();
        let mut total = History::default();
        // What each service had when the registry's hold began.
        let mut began: BTreeMap<&str, usize> = BTreeMap::new();
        for step in &steps {
            let before = rig.guard.published().clone();
            let mirrored_before = rig.mirrored.clone();
            let (held_before, trip) = (rig.guard.holds().clone(), rig.guard.holds().trip);
            let changes = take(&mut rig, step);
            check(&rig, &before, &changes)?;
            let now = rig.now;
            if matches!(step, Step::Pass(_) | Step::Release(_) | Step::Refuse(..)) {
                // An end that was asked for is accepted.
                for name in changes.keys() {
                    let gone = count(before.get(name)) - count(rig.guard.published().get(name));
                    histories.entry(SERVICES.iter().find(|s| ***s == **name).unwrap()).or_default().accept(gone);
                    total.accept(gone);
                }
                continue;
            }
            let present: usize = rig.mirrored.values().map(|s| count(Some(s))).sum();
            let peak = total.peak(now).max(present);
            let all = exceeds(peak, present, registry_share)
                || trip.is_some_and(|trip| trip.since > now - HOLD && present < trip.target)
                || (matches!(step, Step::Clear) && present == 0);
            total.note(now, present);
            if rig.guard.holds().trip != trip {
                let peak = |name| histories.get(name).map_or(0, |h| h.peak(now));
                began = SERVICES.map(|name| (name, peak(name).max(count(rig.mirrored.get(name))))).into();
            }
            for name in SERVICES {
                let history = histories.entry(name).or_default();
                let present = count(rig.mirrored.get(name));
                let peak = history.peak(now).max(present);
                history.note(now, present);
                let (was, is) = (count(before.get(name)), count(rig.guard.published().get(name)));
                let lost = count(mirrored_before.get(name)) > present;
                let alone = exceeds(peak, present, service_share);
                if lost && (all || alone) {
                    // Beyond the share nothing more goes, but for what others came instead of, and for what
                    // came while the registry was held.
                    let due = if alone { peak } else { peak.min(began.get(name).copied().unwrap_or(0)) };
                    prop_assert!(is >= was.min(due), "{} of {} are left, {} were", is, was, due);
                    // And what went in the window before that is back.
                    prop_assert!(is >= due, "{} are served, {} were", is, due);
                }
                // And never more than it was at its best: what came is not added to what is held.
                let target = held_before.services.get(name).map_or(0, |h| h.target);
                prop_assert!(is <= present.max(peak).max(target).max(was));
            }
        }
        rig.now += 2 * HOLD;
        rig.guard.tick(rig.now);
        prop_assert!(rig.guard.holds().is_empty() && rig.guard.due().is_none());
        let left: Vec<_> = rig.guard.published().iter().collect();
        prop_assert_eq!(left, rig.mirrored.iter().collect::<Vec<_>>());
    }

    #[test]
    fn without_a_mass_loss_what_is_published_is_what_is_mirrored(
        steps in prop::collection::vec((0..3usize, 1..16u16, any::<bool>(), 0..3u32), 1..80),
    ) {
        // One at a time, and never more than two within the window.
        let mut rig = Rig::new(Config { minimum: MINIMUM, ..Config::default() });
        for (service, port, come, weight) in steps {
            if come {
                put(&mut rig, SERVICES[service], &[port], weight);
            } else {
                delete(&mut rig, SERVICES[service], &[port]);
            }
            rig.tell(Cause::default());
            prop_assert_eq!(rig.guard.published(), &rig.mirrored);
            rig.now += WINDOW / 2 + 1;
        }
        prop_assert_eq!(rig.guard.take_notices(), []);
    }
}
