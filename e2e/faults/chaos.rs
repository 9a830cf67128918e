//! All faults in a random order that follows from a seed, one after the other under churn and
//! requests, for as long as is asked for; and a table of how each went.
//!
//! `make chaos` runs it for minutes, with the seed that it is given or another one each time; a short
//! run with a fixed seed is a test. The faults and all their durations follow from the seed, what the
//! processes and the network make of them does not.

use std::{
    collections::BTreeMap,
    env,
    fmt::{self, Write as _},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{drill::Drill, fault::Fault, stage::Stage};
use crate::support::{
    dice::Dice,
    ensemble::{Ensemble, LOCAL_SESSIONS},
};

#[derive(Default)]
struct Row {
    settled: Vec<Duration>,
    wrong: usize,
    stale: usize,
    missing: usize,
    requests: u64,
    failures: u64,
}

#[derive(Default)]
struct Summary {
    rows: BTreeMap<Fault, Row>,
    /// What became of each breach.
    breaches: String,
}

/// An endless sequence in which each fault comes once before any comes again.
struct Schedule {
    dice: Dice,
    left: Vec<Fault>,
}

impl Iterator for Schedule {
    type Item = (Fault, Dice);

    fn next(&mut self) -> Option<Self::Item> {
        if self.left.is_empty() {
            self.left = Fault::ALL.to_vec();
        }
        let fault = self.left.remove(self.dice.below(self.left.len()));
        Some((fault, Dice::new(self.dice.next())))
    }
}

async fn run(seed: u64, lasts: Duration) -> Summary {
    let lines = if seed.is_multiple_of(2) {
        LOCAL_SESSIONS
    } else {
        ""
    };
    let ensemble = Ensemble::start_with(3, lines, true).await;
    let mut stage = Stage::with(ensemble, seed).await.with_traffic().await;
    let began = Instant::now();
    let mut summary = Summary::default();
    let schedule = Schedule {
        dice: Dice::new(seed),
        left: Vec::new(),
    };
    for (fault, mut dice) in schedule {
        let drill = Drill::run(&mut stage, fault, &mut dice).await;
        summary.take(&drill);
        if let Err(difference) = &drill.settled {
            // It would not be right after the next ones either.
            let _ = writeln!(summary.breaches, "{}: {difference}", fault.name());
            break;
        }
        if began.elapsed() > lasts {
            break;
        }
        tokio::time::sleep(dice.millis(0..500)).await;
    }
    if let Some(refused) = stage.refused().await {
        let _ = writeln!(summary.breaches, "the sidecar refused: {refused}");
    }
    if !summary.breaches.is_empty() {
        let story = stage.timeline.last(200);
        let log = stage.meshkeeper.log();
        let _ = write!(
            summary.breaches,
            "\nWhat happened:\n{story}\nIts log:\n{log}"
        );
    }
    summary
}

impl Summary {
    fn take(&mut self, drill: &Drill) {
        let row = self.rows.entry(drill.fault).or_default();
        match &drill.settled {
            Ok(took) => row.settled.push(*took),
            Err(difference) => {
                row.stale += difference.stale.len();
                row.missing += difference.missing.len();
            }
        }
        row.wrong += drill.wrong.len();
        row.requests += drill.requests;
        row.failures += drill.failures;
        for wrong in &drill.wrong {
            let _ = writeln!(self.breaches, "{}: {wrong}", drill.fault.name());
        }
        if drill.failures > 0 {
            let (name, failures) = (drill.fault.name(), drill.failures);
            let _ = writeln!(self.breaches, "{name}: {failures} requests failed");
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| fault | times | right again after, p50 | max | wrong removals | stale left | missing left | requests | failed |"
        )?;
        writeln!(f, "| --- | --- | --- | --- | --- | --- | --- | --- | --- |")?;
        let mut all = Row::default();
        for (fault, row) in &self.rows {
            row.write(f, fault.name())?;
            all.add(row);
        }
        all.write(f, "all")
    }
}

impl Row {
    fn add(&mut self, other: &Self) {
        self.settled.extend(&other.settled);
        self.wrong += other.wrong;
        self.stale += other.stale;
        self.missing += other.missing;
        self.requests += other.requests;
        self.failures += other.failures;
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        let mut settled = self.settled.clone();
        settled.sort();
        let max = settled.last().copied().unwrap_or_default();
        let p50 = settled
            .len()
            .checked_sub(1)
            .map_or(max, |last| settled[last / 2]);
        writeln!(
            f,
            "| {name} | {} | {:.2} s | {:.2} s | {} | {} | {} | {} | {} |",
            settled.len(),
            p50.as_secs_f64(),
            max.as_secs_f64(),
            self.wrong,
            self.stale,
            self.missing,
            self.requests,
            self.failures,
        )
    }
}

/// Prints the table, and fails where a promise was broken.
async fn run_and_tell(seed: u64, lasts: Duration) {
    println!("SEED={seed}, for {lasts:?}");
    let summary = run(seed, lasts).await;
    println!("{summary}");
    assert!(
        summary.breaches.is_empty(),
        "a promise was broken with SEED={seed}:\n{}",
        summary.breaches
    );
    println!("SEED={seed}: no promise was broken");
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_in_a_random_order_break_no_promise() {
    run_and_tell(4, Duration::from_secs(18)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make chaos runs it, for as long as MINUTES says"]
async fn faults_for_as_long_as_is_asked_for() {
    let number = |name| env::var(name).ok().filter(|text| !text.is_empty());
    let seed = number("SEED").map_or_else(any_seed, |text| text.parse().expect("SEED=NUMBER"));
    let minutes: f64 = number("MINUTES").map_or(2.0, |text| text.parse().expect("MINUTES=NUMBER"));
    run_and_tell(seed, Duration::from_secs_f64(minutes * 60.0)).await;
}

fn any_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::from(now.subsec_nanos())
}

#[test]
fn a_schedule_follows_from_its_seed_and_leaves_no_fault_out() {
    let schedule = |seed| {
        let schedule = Schedule {
            dice: Dice::new(seed),
            left: Vec::new(),
        };
        let faults = schedule.take(2 * Fault::ALL.len()).map(|(fault, _)| fault);
        faults.collect::<Vec<_>>()
    };
    assert_eq!(schedule(1), schedule(1));
    assert_ne!(schedule(1), schedule(2));
    let mut first = schedule(3);
    first.truncate(Fault::ALL.len());
    first.sort();
    assert_eq!(first, Fault::ALL);
}
