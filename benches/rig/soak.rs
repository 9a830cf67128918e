//! An operator's trial: a fleet on one replica while changes arrive for minutes, then the replica is
//! killed under it and started again.
//!
//! No part of the usual run: `cargo bench --bench rig -- soak`. `SOAK_MINUTES` (10) is how long,
//! `SOAK_CLIENTS` (10,000) how many, `SOAK_RATE` (100) how many changes a second. Every client has a
//! connection of its own and watches 20 of the 10,000 services, so a change concerns some 20 of 10,000
//! clients. Changes go on while the replica is away.

use std::{
    cell::Cell,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{
    Rig,
    chart::{Axes, Chart},
    experiment::LIMIT,
    journal::{Journal, Service, Traffic, until},
    mesh::{MANY, Mesh},
    report::{Row, Target},
    resident::Residents,
    server::Server,
    statistics::{float, median, milliseconds, percentile, slope},
};

const WATCHED: Service = 20;
/// Changes go on for so long after all are back.
const AFTER: Duration = Duration::from_secs(3);
/// Streams must not end by themselves: a stream's age is no part of this trial.
const CONFIG: &str = "xds:\n  maxStreams: 20000\n  maxStreamAge: 24h\n";
/// The last fifth of the samples against the first may have so many times the memory.
const FLAT: f64 = 1.05;

/// What was seen in one stretch of time.
#[derive(Clone, Copy, Debug)]
struct Sample {
    minutes: f64,
    mebibytes: f64,
    p50: f64,
    p99: f64,
}

/// What the fleet saw between two looks at its journal.
#[derive(Clone, Copy, Debug)]
struct Losses {
    streams: usize,
    states: usize,
    backwards: u64,
    needless: u64,
}

#[derive(Debug)]
struct Trial {
    clients: usize,
    opened: Duration,
    samples: Vec<Sample>,
    lags: Vec<f64>,
    changes: usize,
    took: Duration,
    cpu: Duration,
    steady: Losses,
    /// From the kill until every client was answered again.
    back: Duration,
    resent: Traffic,
    restarted: Losses,
}

pub async fn measure(rig: &mut Rig) {
    let minutes = setting("SOAK_MINUTES", 10.0).max(0.1);
    let clients = setting("SOAK_CLIENTS", 10_000.0);
    let clients = Service::try_from(format!("{clients:.0}").parse::<u64>().unwrap_or(0))
        .expect("so many clients");
    let rate = setting("SOAK_RATE", 100.0).max(1.0);
    println!("  {clients} clients, {minutes} minutes, {rate} changes a second");
    let length = Duration::from_secs_f64(minutes * 60.0);
    let trial = run(&rig.mesh, clients as usize, length, rate).await;
    rows(rig, &trial);
    charts(rig, &trial.samples);
    let verdict = verdict(&trial);
    rig.report.note(verdict);
}

fn setting(name: &str, usual: f64) -> f64 {
    match std::env::var(name) {
        Err(_) => usual,
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} is a number, not {text}")),
    }
}

async fn run(mesh: &Mesh, clients: usize, length: Duration, rate: f64) -> Trial {
    let config = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/soak.yaml");
    std::fs::write(&config, CONFIG).expect("a file");
    let mut server = Server::configured(config, &mesh.zookeeper, MANY).await;
    touch_all(mesh).await;
    let journal = Arc::new(Journal::new(mesh.next_stamp()));
    let services = mesh.services();
    let start = Instant::now();
    let fleet = Residents::open(server.clients, &journal, clients, |client| {
        let first = Service::try_from(client).unwrap_or(0) * 13;
        (0..WATCHED).map(|i| (first + i * 97) % services).collect()
    });
    assert!(
        journal.synced(clients, LIMIT).await,
        "not all of {clients} clients got what they asked for"
    );
    let opened = start.elapsed();
    sleep(Duration::from_secs(2)).await;
    journal.pages().traffic = Traffic::default();

    let (start, cpu) = (Instant::now(), server.cpu());
    let (changes, samples) =
        while_changing(mesh, &journal, rate, sample(&server, &journal, length)).await;
    let (took, cpu) = (start.elapsed(), server.cpu().saturating_sub(cpu));
    let lags = milliseconds(&journal.pages().lags);
    let steady = losses(&journal).await;

    journal.pages().traffic = Traffic::default();
    let (_, (back, resent)) = while_changing(
        mesh,
        &journal,
        rate,
        restart(&mut server, &journal, clients),
    )
    .await;
    let restarted = losses(&journal).await;
    fleet.close().await;
    Trial {
        clients,
        opened,
        samples,
        lags,
        changes,
        took,
        cpu,
        steady,
        back,
        resent,
        restarted,
    }
}

/// Changes every service once: the first stamp makes an instance's data longer, and so the memory.
async fn touch_all(mesh: &Mesh) {
    let journal = Journal::new(mesh.next_stamp());
    let services: Vec<Service> = (0..mesh.services()).collect();
    for together in services.chunks(100) {
        mesh.change(&journal, MANY, together).await;
    }
}

/// Changes services, spread over all, until the other is done; tells how many.
async fn while_changing<T>(
    mesh: &Mesh,
    journal: &Journal,
    rate: f64,
    other: impl Future<Output = T>,
) -> (usize, T) {
    let done = Cell::new(false);
    let changing = async {
        let mut ticks = interval(Duration::from_secs_f64(1.0 / rate));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut changes = 0;
        while !done.get() {
            ticks.tick().await;
            let turn = Service::try_from(changes).unwrap_or(0);
            let service = turn.wrapping_mul(7_919) % mesh.services();
            mesh.change(journal, MANY, &[service]).await;
            changes += 1;
        }
        changes
    };
    let other = async {
        let output = other.await;
        done.set(true);
        output
    };
    tokio::join!(changing, other)
}

/// Looks at the server's memory, and at what arrived since the last look.
async fn sample(server: &Server, journal: &Journal, length: Duration) -> Vec<Sample> {
    let every = (length / 120).clamp(Duration::from_secs(1), Duration::from_secs(5));
    let start = Instant::now();
    let (mut samples, mut known) = (Vec::new(), 0);
    while start.elapsed() < length {
        sleep(every).await;
        let lags = milliseconds(&journal.pages().lags[known..]);
        if lags.is_empty() {
            continue;
        }
        known += lags.len();
        let sample = Sample {
            minutes: start.elapsed().as_secs_f64() / 60.0,
            mebibytes: mebibytes(server.memory()),
            p50: median(&lags),
            p99: percentile(&lags, 99),
        };
        if samples.len() % 12 == 0 {
            println!(
                "  {:.1} min: {:.1} MiB, p50 {:.2} ms, p99 {:.2} ms",
                sample.minutes, sample.mebibytes, sample.p50, sample.p99
            );
        }
        samples.push(sample);
    }
    samples
}

/// Kills the server and starts it again; when all were answered, and what they were sent by then.
async fn restart(server: &mut Server, journal: &Journal, clients: usize) -> (Duration, Traffic) {
    let start = Instant::now();
    server.kill();
    server.start_again().await;
    let back = || {
        let pages = journal.pages();
        pages.lost_streams >= clients && pages.synced >= clients
    };
    assert!(
        until(LIMIT, back).await,
        "only {} of {clients} clients came back",
        journal.pages().synced
    );
    let (last, resent) = {
        let pages = journal.pages();
        (pages.last_synced, pages.traffic)
    };
    sleep(AFTER).await;
    let took = last.map_or(Duration::ZERO, |last| last - start);
    (took, resent)
}

/// Once all has arrived, or was given up; counts begin anew.
async fn losses(journal: &Journal) -> Losses {
    journal.settled(LIMIT).await;
    let mut pages = journal.pages();
    Losses {
        streams: std::mem::take(&mut pages.lost_streams),
        states: pages.outstanding,
        backwards: std::mem::take(&mut pages.backwards),
        needless: std::mem::take(&mut pages.needless),
    }
}

fn rows(rig: &mut Rig, trial: &Trial) {
    let report = &mut rig.report;
    let clients = trial.clients;
    let minutes = trial.took.as_secs_f64() / 60.0;
    let none = |what: String, count: f64| Row::new(7, what, "", count).target(Target::AtMost(0.0));
    report.note(format!(
        "{clients} clients opened in {:.1} s; then {minutes:.1} minutes of {:.1} changes/s.",
        trial.opened.as_secs_f64(),
        float(trial.changes) / trial.took.as_secs_f64()
    ));
    report.add(none(
        format!("streams that ended, of {clients}"),
        float(trial.steady.streams),
    ));
    report.add(none(
        "latest states lost".into(),
        float(trial.steady.states),
    ));
    report.add(none(
        "older states after newer ones".into(),
        count(trial.steady.backwards),
    ));
    report.add(none(
        "resources sent to who held them".into(),
        count(trial.steady.needless),
    ));
    report.add(
        Row::new(
            7,
            "write begun → a client that watches it has it, p50",
            "ms",
            median(&trial.lags),
        )
        .spread(percentile(&trial.lags, 10), percentile(&trial.lags, 99)),
    );
    let worst = trial
        .samples
        .iter()
        .map(|sample| sample.p99)
        .fold(0.0, f64::max);
    report.add(Row::new(
        7,
        "the same, p99 of the worst stretch",
        "ms",
        worst,
    ));
    let share = trial.cpu.as_secs_f64() / trial.took.as_secs_f64() * 100.0;
    report.add(Row::new(7, "CPU of the server", "%", share));
    let (first, last) = ends(&trial.samples);
    report.add(Row::new(
        7,
        "memory, the last fifth of the time",
        "MiB",
        last,
    ));
    report.add(
        Row::new(
            7,
            "memory, the last fifth against the first",
            "",
            last / first,
        )
        .target(Target::AtMost(FLAT)),
    );
    report.add(Row::new(
        7,
        "slope of memory after the first fifth",
        "MiB/h",
        drift(&trial.samples),
    ));
    report.add(
        Row::new(
            7,
            "kill -9 and restart: until all were answered",
            "s",
            trial.back.as_secs_f64(),
        )
        .target(Target::AtMost(5.0)),
    );
    report.add(Row::new(
        7,
        "restart: resources sent",
        "",
        count(trial.resent.resources),
    ));
    report.add(Row::new(
        7,
        "restart: sent in all",
        "kB",
        count(trial.resent.bytes) / 1e3,
    ));
    report.add(none(
        "restart: of these sent to who held them".into(),
        count(trial.restarted.needless),
    ));
    report.add(none(
        "restart: latest states lost".into(),
        float(trial.restarted.states),
    ));
}

/// In one line, what an operator would say.
fn verdict(trial: &Trial) -> String {
    let (first, last) = ends(&trial.samples);
    let again = trial.restarted.streams.saturating_sub(trial.clients);
    let failed: Vec<&str> = [
        (trial.steady.streams > 0, "streams ended"),
        (
            trial.steady.states + trial.restarted.states > 0,
            "final states were lost",
        ),
        (
            trial.steady.backwards + trial.restarted.backwards > 0,
            "a client went back in time",
        ),
        (
            trial.steady.needless + trial.restarted.needless > 0,
            "known resources were re-sent",
        ),
        (last > first * FLAT, "memory grew"),
        (again > 0, "streams ended again after the restart"),
    ]
    .into_iter()
    .filter_map(|(failed, what)| failed.then_some(what))
    .collect();
    if failed.is_empty() {
        "Verdict of the trial: no stream ended, no state was lost, memory stayed flat, and nothing known was sent again.".into()
    } else {
        format!("Verdict of the trial: failed; {}.", failed.join(", "))
    }
}

/// The median memory of the first and of the last fifth.
fn ends(samples: &[Sample]) -> (f64, f64) {
    let memory: Vec<_> = samples.iter().map(|sample| sample.mebibytes).collect();
    let fifth = (memory.len() / 5).max(1);
    (
        median(&memory[..fifth]),
        median(&memory[memory.len() - fifth..]),
    )
}

/// In MiB an hour.
fn drift(samples: &[Sample]) -> f64 {
    let later = &samples[samples.len() / 5..];
    let points: Vec<_> = later
        .iter()
        .map(|s| (s.minutes / 60.0, s.mebibytes))
        .collect();
    slope(&points)
}

fn charts(rig: &mut Rig, samples: &[Sample]) {
    let line = |of: fn(&Sample) -> f64| samples.iter().map(|s| (s.minutes, of(s))).collect();
    let chart = |title: &str, y, series| Chart {
        title: title.into(),
        axes: Axes::Linear,
        x: "minutes",
        y,
        series,
    };
    rig.charts.push((
        "soak-memory",
        chart(
            "The trial: resident memory of the server",
            "MiB",
            vec![("memory".into(), line(|sample| sample.mebibytes))],
        ),
    ));
    rig.charts.push((
        "soak-propagation",
        chart(
            "The trial: write begun → a client that watches it has it",
            "ms",
            vec![
                ("p50".into(), line(|sample| sample.p50)),
                ("p99".into(), line(|sample| sample.p99)),
            ],
        ),
    ));
}

#[allow(clippy::cast_precision_loss)]
fn count(count: u64) -> f64 {
    count as f64
}

fn mebibytes(bytes: u64) -> f64 {
    count(bytes) / f64::from(1 << 20)
}
