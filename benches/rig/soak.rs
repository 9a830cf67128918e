//! An operator's trial: a fleet on one replica while changes arrive for minutes, then the replica is
//! killed under it and started again.
//!
//! No part of the usual run: `cargo bench --bench rig -- soak`. `SOAK_MINUTES` (10) is how long,
//! `SOAK_CLIENTS` (10,000) how many, `SOAK_RATE` (100) how many changes a second. Every client has a
//! connection of its own and watches 20 of the 10,000 services, so a change concerns some 20 of 10,000
//! clients. Changes go on while the replica is away.

mod verdict;

use std::{
    cell::Cell,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{
    Rig,
    experiment::LIMIT,
    journal::{Journal, Service, Traffic, until},
    machine,
    mesh::{MANY, Mesh},
    resident::Residents,
    server::Server,
    statistics::{median, milliseconds, percentile},
};

const WATCHED: Service = 20;
/// Before memory is looked at, every client gets some sixty updates: until then the buffers of its
/// connection are touched for the first time.
const WARM_UP: Duration = Duration::from_secs(32);
const WARM_RATE: f64 = 1_000.0;
/// Changes go on for so long after all are back.
const AFTER: Duration = Duration::from_secs(3);
/// Streams must not end by themselves: a stream's age is no part of this trial.
const CONFIG: &str = "xds:\n  maxStreams: 20000\n  maxStreamAge: 24h\n";

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

/// A restart: times are from the kill on.
#[derive(Clone, Copy, Debug)]
struct Back {
    ready: Duration,
    /// Every client was answered.
    answered: Duration,
    /// What the new process computed, and what clients were sent, by then.
    cpu: Duration,
    traffic: Traffic,
}

#[derive(Debug)]
struct Trial {
    clients: usize,
    opened: Duration,
    /// What the server and the load client computed until then.
    opening_cpu: [Duration; 2],
    /// Bytes, before the warm-up.
    cold: u64,
    samples: Vec<Sample>,
    lags: Vec<f64>,
    changes: usize,
    took: Duration,
    cpu: Duration,
    steady: Losses,
    back: Back,
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
    verdict::rows(rig, &trial);
    verdict::charts(rig, &trial.samples);
    rig.report.note(verdict::in_a_line(&trial));
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
    let own = || machine::cpu(std::process::id());
    let (start, cpu) = (Instant::now(), [server.cpu(), own()]);
    let fleet = Residents::open(server.clients, &journal, clients, |client| {
        let first = Service::try_from(client).unwrap_or(0) * 13;
        (0..WATCHED).map(|i| (first + i * 97) % services).collect()
    });
    assert!(
        journal.synced(clients, LIMIT).await,
        "not all of {clients} clients got what they asked for"
    );
    let opened = start.elapsed();
    let opening_cpu = [
        server.cpu().saturating_sub(cpu[0]),
        own().saturating_sub(cpu[1]),
    ];
    sleep(Duration::from_secs(2)).await;
    let cold = server.memory();
    while_changing(mesh, &journal, WARM_RATE, sleep(WARM_UP)).await;
    assert!(journal.settled(LIMIT).await, "the warm-up never arrived");
    journal.pages().lags.clear();

    let (start, cpu) = (Instant::now(), server.cpu());
    let (changes, samples) =
        while_changing(mesh, &journal, rate, sample(&server, &journal, length)).await;
    let (took, cpu) = (start.elapsed(), server.cpu().saturating_sub(cpu));
    let lags = milliseconds(&journal.pages().lags);
    let steady = losses(&journal).await;

    journal.pages().traffic = Traffic::default();
    let (_, back) = while_changing(
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
        opening_cpu,
        cold,
        samples,
        lags,
        changes,
        took,
        cpu,
        steady,
        back,
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
            mebibytes: verdict::mebibytes(server.memory()),
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
async fn restart(server: &mut Server, journal: &Journal, clients: usize) -> Back {
    let start = Instant::now();
    server.kill();
    server.start_again().await;
    let ready = start.elapsed();
    let back = || {
        let pages = journal.pages();
        pages.lost_streams >= clients && pages.synced >= clients
    };
    assert!(
        until(LIMIT, back).await,
        "only {} of {clients} clients came back",
        journal.pages().synced
    );
    let cpu = server.cpu();
    let (last, traffic) = {
        let pages = journal.pages();
        (pages.last_synced, pages.traffic)
    };
    sleep(AFTER).await;
    let answered = last.map_or(Duration::ZERO, |last| last - start);
    Back {
        ready,
        answered,
        cpu,
        traffic,
    }
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
