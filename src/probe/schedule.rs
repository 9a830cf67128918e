//! The schedule of probes: which address is probed when.
//!
//! Pure: time is an argument. A new address is due at once; after each answer the pause doubles, from
//! [`FIRST`] to [`LAST`]. Of those that are due, new ones come first, then those that answered before, then those that
//! did not, which occupy at most half of the slots: each takes its full time-out.
//!
//! Invariants: an address is due at one time or is being probed; no more than the given number are probed at
//! once; two probes begin at least [`SPACING`] apart; an answer for an address that is not wanted any more, or that
//! was not wanted in between, is ignored.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use imbl::{OrdSet, ordset::DiffItem};

/// The pause after the first answer.
pub(super) const FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
pub(super) const LAST: Duration = Duration::from_secs(30);
/// Between two probes: 500 a second.
pub(super) const SPACING: Duration = Duration::from_millis(2);

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Something listens.
    Accepted,
    /// The address answered with a reset: nothing listens.
    Refused,
    /// Nothing that tells whether anything listens.
    None,
}

#[derive(Debug)]
pub struct Schedule {
    at_once: usize,
    wanted: OrdSet<SocketAddr>,
    entries: BTreeMap<SocketAddr, Entry>,
    /// By [`Lane`].
    due: [BTreeSet<(Instant, SocketAddr)>; 3],
    /// How many are being probed, in each lane.
    running: [usize; 3],
    /// The probes that run, with their lanes; also of addresses that are not wanted any more.
    probes: BTreeMap<SocketAddr, Lane>,
    /// When the next probe may begin.
    paced: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    lane: Lane,
    answers: u32,
    /// `None` while it is being probed.
    due: Option<Instant>,
    /// The probe that runs began when the address was wanted the last time: its answer is too old.
    outdated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    New,
    Answering,
    Silent,
}

impl Schedule {
    /// At most `at_once` addresses are probed at once.
    pub fn new(at_once: usize) -> Self {
        Self {
            at_once,
            wanted: OrdSet::new(),
            entries: BTreeMap::new(),
            due: Default::default(),
            running: [0; 3],
            probes: BTreeMap::new(),
            paced: None,
        }
    }

    /// New addresses are due at once, and those that are not wanted any more are forgotten.
    pub fn want(&mut self, wanted: &OrdSet<SocketAddr>, now: Instant) {
        let before = std::mem::replace(&mut self.wanted, wanted.clone());
        for change in before.diff(wanted) {
            match change {
                DiffItem::Add(address) => self.add(*address, now),
                DiffItem::Remove(address) => self.remove(*address),
            }
        }
    }

    /// When to ask for [`Schedule::due`]; `None` if only an answer or another address can make one due.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        let firsts = self
            .open()
            .filter_map(|lane| self.due[lane as usize].first());
        let first = firsts.map(|(due, _)| *due).min()?;
        Some(first.max(self.paced.unwrap_or(now)))
    }

    /// An address to probe now. It is not returned again before it was answered.
    pub fn due(&mut self, now: Instant) -> Option<SocketAddr> {
        if self.paced.is_some_and(|paced| paced > now) {
            return None;
        }
        let due = |lane: Lane| {
            let first = self.due[lane as usize].first();
            first
                .filter(|(due, _)| *due <= now)
                .map(|first| (lane, *first))
        };
        let (lane, first) = self.open().find_map(due)?;
        let address = first.1;
        self.due[lane as usize].remove(&first);
        self.entries.get_mut(&address)?.due = None;
        self.probes.insert(address, lane);
        self.running[lane as usize] += 1;
        self.paced = Some(now + SPACING);
        Some(address)
    }

    /// Takes the answer of a probe; whether the address is wanted and refused.
    pub fn answered(&mut self, address: SocketAddr, answer: Answer, now: Instant) -> bool {
        if let Some(lane) = self.probes.remove(&address) {
            self.running[lane as usize] -= 1;
        }
        let Some(entry) = self.entries.get(&address) else {
            return false;
        };
        if entry.outdated {
            self.put(address, Lane::New, 0, now);
            return false;
        }
        let answers = entry.answers.saturating_add(1);
        let pause = FIRST.saturating_mul(1 << entry.answers.min(16)).min(LAST);
        let lane = match answer {
            Answer::None => Lane::Silent,
            Answer::Accepted | Answer::Refused => Lane::Answering,
        };
        self.put(address, lane, answers, now + pause);
        answer == Answer::Refused
    }

    /// The lanes from which an address may be probed now, in their order.
    fn open(&self) -> impl Iterator<Item = Lane> + use<> {
        let full = self.probes.len() >= self.at_once;
        let silent_full = self.running[Lane::Silent as usize] >= self.at_once.div_ceil(2);
        let lanes: &'static [Lane] = match (full, silent_full) {
            (true, _) => &[],
            (false, true) => &[Lane::New, Lane::Answering],
            (false, false) => &[Lane::New, Lane::Answering, Lane::Silent],
        };
        lanes.iter().copied()
    }

    fn add(&mut self, address: SocketAddr, now: Instant) {
        if !self.probes.contains_key(&address) {
            return self.put(address, Lane::New, 0, now);
        }
        let entry = Entry {
            lane: Lane::New,
            answers: 0,
            due: None,
            outdated: true,
        };
        self.entries.insert(address, entry);
    }

    fn put(&mut self, address: SocketAddr, lane: Lane, answers: u32, due: Instant) {
        self.due[lane as usize].insert((due, address));
        let entry = Entry {
            lane,
            answers,
            due: Some(due),
            outdated: false,
        };
        self.entries.insert(address, entry);
    }

    fn remove(&mut self, address: SocketAddr) {
        if let Some(entry) = self.entries.remove(&address)
            && let Some(due) = entry.due
        {
            self.due[entry.lane as usize].remove(&(due, address));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT_ONCE: usize = 4;

    fn address(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 80))
    }

    fn addresses(all: impl IntoIterator<Item = u8>) -> OrdSet<SocketAddr> {
        all.into_iter().map(address).collect()
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn pauses_grow_up_to_the_longest() {
        let (mut schedule, mut now) = (Schedule::new(AT_ONCE), Instant::now());
        schedule.want(&addresses([1]), now);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert_eq!(schedule.due(now), Some(address(1)));
            assert_eq!(schedule.next(now), None, "it is being probed");
            assert!(!schedule.answered(address(1), Answer::Accepted, now));
            let next = schedule.next(now).unwrap();
            pauses.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
    }

    #[test]
    fn addresses_without_an_answer_leave_room_for_the_others() {
        let (mut schedule, mut now) = (Schedule::new(AT_ONCE), Instant::now());
        schedule.want(&addresses(1..=10), now);
        for _ in 0..10 {
            let address = schedule.due(now).unwrap();
            schedule.answered(address, Answer::None, now);
            now += SPACING;
        }
        now += FIRST;
        schedule.want(&addresses(1..=12), now);
        let mut given = Vec::new();
        for _ in 0..6 {
            given.extend(schedule.due(now));
            now += SPACING;
        }
        assert_eq!(given, [11, 12, 1, 2].map(address));
        for n in [11, 12] {
            schedule.answered(address(n), Answer::Accepted, now);
        }
        assert_eq!(
            schedule.due(now),
            None,
            "half of the slots wait for an answer"
        );
    }

    #[test]
    fn an_answer_about_the_time_before_is_ignored() {
        let (mut schedule, now) = (Schedule::new(AT_ONCE), Instant::now());
        schedule.want(&addresses([1]), now);
        schedule.due(now);
        schedule.want(&addresses([]), now);
        schedule.want(&addresses([1]), now);
        let later = now + SPACING;
        assert_eq!(schedule.due(later), None, "one probe of it at a time");
        assert!(!schedule.answered(address(1), Answer::Refused, later));
        assert_eq!(schedule.due(later), Some(address(1)));
        assert!(schedule.answered(address(1), Answer::Refused, later));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Want(Vec<u8>),
        /// Begins what is due.
        Begin,
        /// The probe that runs for longest ends, or the newest one.
        End(bool, Answer),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let answer = prop::sample::select(vec![Answer::Accepted, Answer::Refused, Answer::None]);
        prop_oneof![
            2 => prop::collection::vec(1..12u8, 0..10).prop_map(Step::Want),
            6 => Just(Step::Begin),
            5 => (any::<bool>(), answer).prop_map(|(first, answer)| Step::End(first, answer)),
            3 => prop_oneof![0..5u64, 0..40_000u64].prop_map(Step::Pass),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_probes_are_bounded_paced_and_wanted(
            steps in prop::collection::vec(step(), 1..120),
        ) {
            let (mut schedule, mut now) = (Schedule::new(AT_ONCE), Instant::now());
            let mut wanted = OrdSet::new();
            // With whether the address was wanted all the time.
            let mut running: Vec<(SocketAddr, bool)> = Vec::new();
            let mut last_begun: Option<Instant> = None;
            let mut last_answer: BTreeMap<SocketAddr, Instant> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Want(all) => {
                        wanted = addresses(all);
                        for (address, valid) in &mut running {
                            *valid &= wanted.contains(address);
                        }
                        last_answer.retain(|address, _| wanted.contains(address));
                        schedule.want(&wanted, now);
                    }
                    Step::Begin => if let Some(address) = schedule.due(now) {
                        prop_assert!(wanted.contains(&address));
                        prop_assert!(running.iter().all(|(of, _)| *of != address));
                        prop_assert!(last_begun.is_none_or(|at| now - at >= SPACING));
                        prop_assert!(last_answer.get(&address).is_none_or(|at| now - *at >= FIRST));
                        last_begun = Some(now);
                        running.push((address, true));
                        prop_assert!(running.len() <= AT_ONCE);
                    },
                    Step::End(first, answer) if !running.is_empty() => {
                        let at = if first { 0 } else { running.len() - 1 };
                        let (address, valid) = running.remove(at);
                        let refused = schedule.answered(address, answer, now);
                        prop_assert_eq!(refused, valid && answer == Answer::Refused);
                        if valid {
                            last_answer.insert(address, now);
                        }
                    }
                    Step::End(..) => {}
                    Step::Pass(millis) => now += ms(millis),
                }
            }
            // Once all that runs has ended, every wanted address gets its turn within the longest pause.
            for (address, _) in std::mem::take(&mut running) {
                schedule.answered(address, Answer::None, now);
            }
            let end = now + LAST + 20 * SPACING;
            let mut probed = BTreeSet::new();
            while let Some(next) = schedule.next(now).filter(|next| *next <= end) {
                now = now.max(next);
                let address = schedule.due(now);
                prop_assert!(address.is_some(), "it said that something is due");
                schedule.answered(address.unwrap(), Answer::Accepted, now);
                probed.extend(address);
            }
            prop_assert_eq!(probed, wanted.iter().copied().collect::<BTreeSet<_>>());
        }
    }
}
