//! The table of names: what is known of each, and when to look it up again.
//!
//! Pure: the time is an argument. Names are looked up again at times of their own around the interval, so
//! that those that came together do not go on together; what failed sooner, then ever later.
//! Of those that are due the ones that are in order go first, then new ones, then those that fail.
//! Invariant: a name is due at one time or is being looked up; an answer without addresses is a failure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use imbl::{OrdSet, ordset::DiffItem};
use xxhash_rust::xxh3::xxh3_64;

use super::Answer;

/// After the first failure; each further one doubles it, up to the interval.
const RETRY: Duration = Duration::from_secs(1);

/// Names that failed before and are being looked up at once: those that can be found have the other places.
const RETRIES: usize = 8;

/// What became of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub name: Arc<str>,
    /// All of both families, in order, each once; or why there never was any.
    pub addresses: Answer,
}

#[derive(Debug)]
pub struct Names {
    refresh: Duration,
    wanted: OrdSet<Arc<str>>,
    entries: BTreeMap<Arc<str>, Entry>,
    /// By [`Lane`].
    due: [BTreeSet<(Instant, Arc<str>)>; 3],
    /// Those that failed before and are being looked up.
    retried: BTreeSet<Arc<str>>,
    /// Those that were never resolved, though they were looked up.
    unresolved: BTreeSet<Arc<str>>,
    /// Those whose last look-up failed, and an earlier one did not.
    stale: BTreeSet<Arc<str>>,
    /// Those of the stale ones whose last two look-ups failed; a single one may.
    lasting: BTreeSet<Arc<str>>,
}

#[derive(Debug, Default)]
struct Entry {
    /// `None` before the first answer.
    told: Option<Answer>,
    /// Why the last look-up failed.
    error: Option<String>,
    failures: u32,
    /// `None` while it is being looked up.
    due: Option<Instant>,
}

/// Who is looked up first where more names are due than can be looked up at once: names below a dead zone
/// take their time, and there may be thousands of them.
#[derive(Clone, Copy, Debug)]
enum Lane {
    Found,
    New,
    Failing,
}

impl Entry {
    fn lane(&self) -> Lane {
        match &self.told {
            _ if self.failures > 0 => Lane::Failing,
            Some(_) => Lane::Found,
            None => Lane::New,
        }
    }
}

/// Counts for operators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub wanted: usize,
    pub unresolved: usize,
    pub stale: usize,
    /// Stale ones whose last two look-ups failed.
    pub lasting: usize,
    /// One of these, and why.
    pub failing: Option<(Arc<str>, String)>,
}

impl Names {
    pub fn new(refresh: Duration) -> Self {
        Self {
            refresh,
            wanted: OrdSet::new(),
            entries: BTreeMap::new(),
            due: Default::default(),
            retried: BTreeSet::new(),
            unresolved: BTreeSet::new(),
            stale: BTreeSet::new(),
            lasting: BTreeSet::new(),
        }
    }

    /// New names are due at once, and what nobody wants any more is forgotten.
    pub fn want(&mut self, wanted: &OrdSet<Arc<str>>, now: Instant) {
        let before = std::mem::replace(&mut self.wanted, wanted.clone());
        for change in before.diff(wanted) {
            match change {
                DiffItem::Add(name) => self.add(name, now),
                DiffItem::Remove(name) => self.remove(name),
            }
        }
    }

    fn add(&mut self, name: &Arc<str>, now: Instant) {
        self.lane(Lane::New).insert((now, Arc::clone(name)));
        let entry = Entry {
            due: Some(now),
            ..Entry::default()
        };
        self.entries.insert(Arc::clone(name), entry);
    }

    fn remove(&mut self, name: &Arc<str>) {
        let Some(entry) = self.entries.remove(name) else {
            return;
        };
        if let Some(due) = entry.due {
            self.lane(entry.lane()).remove(&(due, Arc::clone(name)));
        }
        self.unresolved.remove(name);
        self.stale.remove(name);
        self.lasting.remove(name);
    }

    fn lane(&mut self, lane: Lane) -> &mut BTreeSet<(Instant, Arc<str>)> {
        let [found, new, failing] = &mut self.due;
        match lane {
            Lane::Found => found,
            Lane::New => new,
            Lane::Failing => failing,
        }
    }

    /// The lanes of which a name may be looked up now, in their order.
    fn open(&self) -> &[BTreeSet<(Instant, Arc<str>)>] {
        let full = self.retried.len() >= RETRIES;
        &self.due[..self.due.len() - usize::from(full)]
    }

    /// When the next name is due.
    pub fn next(&self) -> Option<Instant> {
        let firsts = self.open().iter().filter_map(|lane| lane.first());
        firsts.map(|(due, _)| *due).min()
    }

    /// A name to look up now; it is not given out again before it is answered.
    pub fn due(&mut self, now: Instant) -> Option<Arc<str>> {
        let mut firsts = self.open().iter().filter_map(|lane| lane.first());
        let (due, name) = firsts.find(|(due, _)| *due <= now)?.clone();
        let entry = self.entries.get_mut(&name)?;
        entry.due = None;
        let lane = entry.lane();
        if let Lane::Failing = lane {
            self.retried.insert(Arc::clone(&name));
        }
        self.lane(lane).remove(&(due, Arc::clone(&name)));
        Some(name)
    }

    /// What holds after the answer, also if it is what held before: whoever missed it once hears it again.
    pub fn answered(&mut self, name: &Arc<str>, answer: Answer, now: Instant) -> Option<Resolved> {
        self.retried.remove(name);
        // One that was forgotten meanwhile, or forgotten and wanted again: that look-up follows.
        let entry = self.entries.get_mut(name).filter(|e| e.due.is_none())?;
        let answer = answer.and_then(|addresses| sorted(&addresses));
        let wait = if answer.is_ok() {
            entry.failures = 0;
            self.stale.remove(name);
            self.lasting.remove(name);
            self.refresh
        } else {
            let wait = RETRY.saturating_mul(1 << entry.failures.min(16));
            entry.failures += 1;
            wait.min(self.refresh)
        };
        let wait = around(wait, name);
        let due = now + wait;
        entry.due = Some(due);
        entry.error = answer.as_ref().err().cloned();
        match (&answer, &entry.told) {
            (Err(_), Some(Ok(_))) => {
                self.stale.insert(Arc::clone(name));
                if entry.failures > 1 {
                    self.lasting.insert(Arc::clone(name));
                }
            }
            (Err(_), _) => drop(self.unresolved.insert(Arc::clone(name))),
            (Ok(_), _) => drop(self.unresolved.remove(name)),
        }
        if answer.is_ok() || !matches!(entry.told, Some(Ok(_))) {
            entry.told = Some(answer);
        }
        let (lane, addresses) = (entry.lane(), entry.told.clone()?);
        self.lane(lane).insert((due, Arc::clone(name)));
        Some(Resolved {
            name: Arc::clone(name),
            addresses,
        })
    }

    pub fn state(&self) -> State {
        let failing = self.lasting.first();
        let reason = |name: &Arc<str>| {
            let reason = self.entries.get(name)?.error.clone()?;
            Some((Arc::clone(name), reason))
        };
        State {
            wanted: self.entries.len(),
            unresolved: self.unresolved.len(),
            stale: self.stale.len(),
            lasting: self.lasting.len(),
            failing: failing.and_then(reason),
        }
    }
}

/// An IPv4 address written as IPv6 is the same socket, and must not be served twice.
fn sorted(addresses: &[IpAddr]) -> Answer {
    let mut addresses: Vec<_> = addresses.iter().map(IpAddr::to_canonical).collect();
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() {
        return Err("the name has no address".to_owned());
    }
    Ok(addresses)
}

/// A tenth less or more, always the same for one name.
fn around(wait: Duration, name: &str) -> Duration {
    let share = u32::try_from(xxh3_64(name.as_bytes()) >> 32).unwrap_or(0);
    wait.mul_f64(0.9 + 0.2 * f64::from(share) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REFRESH: Duration = Duration::from_secs(30);

    fn wanted(names: &[&str]) -> OrdSet<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn one(name: &str, now: Instant) -> (Names, Arc<str>) {
        let mut names = Names::new(REFRESH);
        names.want(&wanted(&[name]), now);
        let due = names.due(now).unwrap();
        (names, due)
    }

    #[test]
    fn a_new_name_is_due_at_once_and_again_around_the_interval() {
        let now = Instant::now();
        let (mut names, name) = one("a", now);
        assert_eq!(names.due(now), None, "it is on its way");
        let found = names.answered(&name, Ok(ips(&["10.0.0.2", "fd00::1", "10.0.0.1"])), now);
        let addresses = Ok(ips(&["10.0.0.1", "10.0.0.2", "fd00::1"]));
        assert_eq!(found, Some(Resolved { name, addresses }));
        let next = names.next().unwrap() - now;
        assert!((REFRESH * 9 / 10..=REFRESH * 11 / 10).contains(&next));
        assert!(names.due(now + next).is_some());
    }

    #[test]
    fn every_answer_is_told_in_one_order() {
        let now = Instant::now();
        let (mut names, name) = one("a", now);
        let first = names.answered(&name, Ok(ips(&["10.0.0.1", "10.0.0.2"])), now);
        let later = now + REFRESH * 2;
        names.due(later).unwrap();
        let mapped = ips(&["10.0.0.2", "::ffff:10.0.0.1", "10.0.0.1"]);
        assert!(first.is_some());
        assert_eq!(names.answered(&name, Ok(mapped), later), first);
    }

    #[test]
    fn what_was_resolved_once_stays_through_every_failure() {
        let mut now = Instant::now();
        let (mut names, name) = one("a", now);
        let told = names.answered(&name, Ok(ips(&["10.0.0.1"])), now);
        for failures in 1..40 {
            now = names.next().unwrap();
            names.due(now).unwrap();
            let failed = if failures % 2 == 0 {
                Ok(vec![])
            } else {
                Err("no server".into())
            };
            assert_eq!(names.answered(&name, failed, now), told);
            assert!(names.next().unwrap() - now <= REFRESH * 11 / 10);
            assert_eq!((names.state().stale, names.state().unresolved), (1, 0));
            assert_eq!(names.state().failing.is_some(), failures > 1);
        }
        now = names.next().unwrap();
        names.due(now).unwrap();
        let moved = names.answered(&name, Ok(ips(&["10.0.0.9"])), now).unwrap();
        assert_eq!(moved.addresses, Ok(ips(&["10.0.0.9"])));
        assert_eq!(names.state().failing, None);
    }

    #[test]
    fn what_never_was_resolved_is_told_with_its_reason_and_tried_ever_later() {
        let mut now = Instant::now();
        let (mut names, name) = one("a", now);
        let first = names
            .answered(&name, Err("no such name".into()), now)
            .unwrap();
        assert_eq!(first.addresses, Err("no such name".to_owned()));
        let mut waits = vec![names.next().unwrap() - now];
        for _ in 0..8 {
            now = names.next().unwrap();
            names.due(now).unwrap();
            let told = names.answered(&name, Err("no such name".into()), now);
            assert_eq!(told, Some(first.clone()));
            waits.push(names.next().unwrap() - now);
        }
        assert!(waits[0] < Duration::from_secs(2) && waits.is_sorted());
        assert!(waits[8] > REFRESH * 8 / 10);
        assert_eq!(names.state().unresolved, 1);
        assert_eq!(names.state().failing, None, "no address of it is in use");
    }

    #[test]
    fn what_nobody_wants_is_forgotten_even_while_it_is_looked_up() {
        let now = Instant::now();
        let (mut names, name) = one("a", now);
        names.want(&wanted(&["b"]), now);
        assert_eq!(names.answered(&name, Ok(ips(&["10.0.0.1"])), now), None);
        assert_eq!(names.due(now).as_deref(), Some("b"));
        assert_eq!(names.due(now), None);
        // Wanted again before the first answer came: a look-up of its own decides.
        names.want(&wanted(&["a"]), now);
        assert_eq!(names.answered(&name, Ok(ips(&["10.0.0.1"])), now), None);
        assert_eq!(names.due(now).as_deref(), Some("a"));
        assert!(names.answered(&name, Ok(ips(&["10.0.0.2"])), now).is_some());
    }

    #[test]
    fn names_in_order_go_before_new_ones_and_those_before_such_that_fail() {
        let now = Instant::now();
        let (mut names, found) = one("found", now);
        names.answered(&found, Ok(ips(&["10.0.0.1"])), now);
        let bad: Vec<_> = (0..3 * RETRIES).map(|n| format!("bad-{n:02}")).collect();
        let mut all = wanted(&bad.iter().map(String::as_str).collect::<Vec<_>>());
        all.insert(found);
        names.want(&all, now);
        while let Some(name) = names.due(now) {
            names.answered(&name, Err("no server".into()), now);
        }
        let later = now + 2 * REFRESH;
        all.insert("new".into());
        names.want(&all, later);
        let mut order = Vec::new();
        while let Some(name) = names.due(later) {
            order.push(name);
        }
        assert_eq!([&*order[0], &*order[1]], ["found", "new"]);
        // The others wait until one of these is answered.
        assert_eq!(order.len(), 2 + RETRIES);
        assert_eq!(names.next(), None);
        names.answered(&order[2], Err("no server".into()), later);
        assert!(names.due(later).unwrap().starts_with("bad-"));
    }

    proptest! {
        /// Whatever comes: counts are those of the names, and each wanted name is due or looked up.
        #[test]
        fn every_wanted_name_is_due_or_looked_up(steps in prop::collection::vec((0_u8..4, 0_u8..5, any::<bool>()), 0..200)) {
            let mut now = Instant::now();
            let mut names = Names::new(REFRESH);
            let mut set = OrdSet::new();
            let mut flying: Vec<Arc<str>> = Vec::new();
            for (step, which, good) in steps {
                let name: Arc<str> = Arc::from(format!("n{which}"));
                match step {
                    0 => { set.insert(name); names.want(&set, now); }
                    1 => { set.remove(&*name); names.want(&set, now); }
                    2 => { now += Duration::from_secs(7); flying.extend(names.due(now)); }
                    _ => if !flying.is_empty() {
                        let name = flying.remove(0);
                        let answer = if good { Ok(vec![IpAddr::from([10, 0, 0, which])]) } else { Err("no".to_owned()) };
                        let told = names.answered(&name, answer, now);
                        prop_assert!(told.is_none() || set.contains(&*name));
                    }
                }
                prop_assert_eq!(names.entries.len(), set.len());
                for name in &set {
                    let due = names.entries[name].due;
                    prop_assert!(due.map_or_else(|| flying.contains(name), |at| names.due.iter().any(|lane| lane.contains(&(at, name.clone())))));
                }
                let unresolved = names.entries.values().filter(|e| matches!(e.told, Some(Err(_)))).count();
                prop_assert_eq!(names.state().unresolved, unresolved);
                prop_assert!(names.due.iter().map(BTreeSet::len).sum::<usize>() <= set.len());
                prop_assert!(names.retried.len() <= flying.len());
            }
        }
    }
}
