//! How cost grows with the mesh: reading it, holding it, and one change in it.
//!
//! One tree grows in steps; at each step a new server reads it, as often as a bare client does.
//! Covers measures 1, 6 and the endpoints' part of 4. Exactness is checked where changes arrive while
//! the mesh is being read.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

use super::{
    Rig,
    against::ask_for_everything,
    chart::{Axes, Chart},
    delta,
    experiment::{self, LIMIT, Pace},
    floor,
    journal::{Journal, Service, Watch, find_stamp},
    load::Fleet,
    machine,
    mesh::{INSTANCES, LARGE, MANY, SIZES},
    report::{Row, Target},
    server::{Server, Side, istiod, linear},
    statistics::{exponent, median, percentile, slope},
};

const CHANGES: usize = 60;
const WILDCARDS: usize = 50;

/// What is learned at one size.
#[derive(Debug, Default)]
struct Steps {
    bare: Vec<(f64, f64)>,
    ours: Vec<(f64, f64)>,
    change: Vec<(f64, f64)>,
    memory: Vec<(f64, f64)>,
    wildcard: Vec<(f64, f64)>,
}

pub async fn measure(rig: &mut Rig) {
    let empty = Server::start(Side::MeshKeeper, &rig.mesh.zookeeper, MANY)
        .await
        .memory();
    let mut steps = Steps::default();
    let sizes = super::SERVICES;
    for services in sizes {
        rig.mesh.grow(services).await;
        let last = services == sizes[sizes.len() - 1];
        step(rig, services, last, &mut steps).await;
    }
    exactness(rig).await;
    let whole = large(rig, false).await;
    let instances = large(rig, true).await;
    conclude(rig, &steps, empty);
    rig.report.add(
        Row::new(
            6,
            "growth of CPU for a change, against instances of its service, told one by one",
            "",
            exponent(&instances),
        )
        .target(Target::AtMost(0.05)),
    );
    rig.report.note(format!(
        "A change in a service of 10,000 instances: {:.0} µs of CPU told one by one, {:.0} µs told as a whole (growth {:.2}).",
        instances[instances.len() - 1].1,
        whole[whole.len() - 1].1,
        exponent(&whole),
    ));
    charts(rig, steps, instances);
}

async fn step(rig: &mut Rig, services: Service, last: bool, steps: &mut Steps) {
    let repetitions = if last { rig.scale.repetitions() } else { 3 };
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    let mut server = None;
    for _ in 0..repetitions {
        drop(server.take());
        bare.push(bare_mirror(rig, services).await);
        let started = Server::start(Side::MeshKeeper, &rig.mesh.zookeeper, MANY).await;
        ours.push(started.load.as_secs_f64() * 1e3);
        server = Some(started);
    }
    let server = server.expect("more than no repetition");
    let x = f64::from(services);
    steps.bare.push((x, median(&bare)));
    steps.ours.push((x, median(&ours)));
    ask_for_everything(&server, services as usize).await;
    let held = server.memory();
    steps.memory.push((x * f64::from(INSTANCES), bytes(held)));
    let clients = experiment::one(1, 0);
    let changes = vec![vec![0]; CHANGES];
    let outcome = experiment::run(&rig.mesh, &server, MANY, clients, &changes, Pace::Settled).await;
    steps.change.push((
        x,
        outcome.cpu.as_secs_f64() * 1e6 / f64::from(u32::try_from(CHANGES).unwrap_or(1)),
    ));
    steps
        .wildcard
        .push((x, wildcard_memory(&server, services).await));
    println!(
        "  {services} services: bare {:.0} ms, MeshKeeper {:.0} ms, {:.1} MB, {:.0} µs of CPU a change",
        median(&bare),
        median(&ours),
        bytes(held) / 1e6,
        steps.change[steps.change.len() - 1].1
    );
    if last {
        let peer = cold_start(rig, linear()).await;
        let istiod = cold_start(rig, istiod()).await;
        rig.report.add(
            Row::new(
                1,
                format!("cold mirror of {services} services × {INSTANCES}: session start → ready"),
                "ms",
                median(&ours),
            )
            .spread(percentile(&ours, 0), percentile(&ours, 100))
            .floor(median(&bare))
            .linear(peer)
            .istiod(istiod)
            .target(Target::Ratio(2.0)),
        );
    }
}

async fn bare_mirror(rig: &Rig, services: Service) -> f64 {
    let own = std::env::current_exe()
        .expect("a path")
        .display()
        .to_string();
    let mut command = machine::on_server_core(&own);
    command.args([floor::MIRROR, &rig.mesh.zookeeper.connect(), MANY]);
    let output = Command::from(command)
        .output()
        .await
        .expect("a program that starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut numbers = text
        .split_whitespace()
        .filter_map(|word| word.parse::<u32>().ok());
    assert_eq!(
        numbers.next(),
        Some(services * INSTANCES),
        "it has to read everything"
    );
    f64::from(numbers.next().expect("a time")) / 1e3
}

async fn cold_start(rig: &Rig, peer: Option<Side>) -> Option<f64> {
    let server = Server::start(peer?, &rig.mesh.zookeeper, MANY).await;
    Some(server.load.as_secs_f64() * 1e3)
}

/// What a client that asks for every cluster costs the server once it has them.
async fn wildcard_memory(server: &Server, services: Service) -> f64 {
    let before = server.memory();
    let hellos = experiment::everything(
        WILDCARDS,
        delta::CLUSTER,
        services as usize,
        &Watch::Nothing,
    );
    let journal = Arc::new(Journal::new(0));
    let fleet = Fleet::open(server.wire(), server.clients, &journal, hellos);
    assert!(
        journal.synced(WILDCARDS, LIMIT).await,
        "every client gets every cluster"
    );
    sleep(Duration::from_millis(500)).await;
    let after = server.memory();
    fleet.close().await;
    bytes(after.saturating_sub(before)) / 1024.0 / f64::from(u32::try_from(WILDCARDS).unwrap_or(1))
}

/// Changes arrive while a server reads; in the end it shows what ZooKeeper holds.
async fn exactness(rig: &mut Rig) {
    let mesh = &rig.mesh;
    let journal = Journal::new(mesh.next_stamp());
    let changes = experiment::spread(400, mesh.services());
    let writing = experiment::write(mesh, &journal, MANY, &changes, Pace::Rate(1_000.0));
    let first = mesh.next_stamp();
    let (server, ()) = tokio::join!(
        Server::start(Side::MeshKeeper, &mesh.zookeeper, MANY),
        writing
    );
    let mut expected = BTreeMap::new();
    for (stamp, services) in (first..).zip(&changes) {
        expected.insert(services[0], stamp);
    }
    let deadline = Instant::now() + LIMIT;
    let exact = || {
        let shown = stamps(&server.api("/api/v1/services"), mesh.services());
        shown.is_some_and(|shown| {
            expected
                .iter()
                .all(|(of, stamp)| shown.get(of) == Some(stamp))
        })
    };
    while !exact() {
        assert!(
            Instant::now() < deadline,
            "the mirror differs from ZooKeeper"
        );
        sleep(Duration::from_millis(200)).await;
    }
    rig.report.note("Exact: all instances and the latest of 400 changes that arrived during the load are mirrored.".into());
}

/// The stamp of each service that has one, if every instance is there.
fn stamps(answer: &str, services: Service) -> Option<BTreeMap<Service, u64>> {
    let body = answer.find("\r\n\r\n").map(|at| &answer[at..])?;
    let (from, to) = (body.find('[')?, body.rfind(']')?);
    let listed: Vec<Value> = serde_json::from_str(&body[from..=to]).ok()?;
    let instances: usize = listed
        .iter()
        .filter_map(|s| Some(s["instances"].as_array()?.len()))
        .sum();
    if instances != (services * INSTANCES) as usize {
        return None;
    }
    let stamp = |service: &Value| {
        let number = service["name"].as_str()?.strip_prefix('s')?.parse().ok()?;
        Some((
            number,
            find_stamp(service["instances"].to_string().as_bytes())?,
        ))
    };
    Some(listed.iter().filter_map(stamp).collect())
}

/// A change of one instance in services of more and more, as a whole or one by one.
async fn large(rig: &Rig, by_ones: bool) -> Vec<(f64, f64)> {
    let folder = TempDir::new().expect("a folder");
    let config = folder.path().join("meshkeeper.yaml");
    let above = if by_ones { 9 } else { 0 };
    let text = format!("mesh: {{endpointIncrementsAbove: {above}}}\n");
    std::fs::write(&config, text).expect("a file");
    let server = Server::configured(config, &rig.mesh.zookeeper, LARGE).await;
    let mut points = Vec::new();
    for (service, size) in (0..).zip(SIZES) {
        let changes = vec![vec![service]; CHANGES];
        let mut costs = Vec::new();
        for _ in 0..3 {
            let clients = if by_ones {
                experiment::by_ones(service)
            } else {
                experiment::one(1, service)
            };
            let outcome =
                experiment::run(&rig.mesh, &server, LARGE, clients, &changes, Pace::Settled).await;
            let changes = f64::from(u32::try_from(CHANGES).unwrap_or(1));
            costs.push(outcome.cpu.as_secs_f64() * 1e6 / changes);
        }
        let cpu = median(&costs);
        println!("  of {size} instances: {cpu:.0} µs of CPU a change");
        points.push((f64::from(size), cpu));
    }
    points
}

fn conclude(rig: &mut Rig, steps: &Steps, empty: u64) {
    let above: Vec<_> = steps
        .memory
        .iter()
        .map(|(x, y)| (*x, y - bytes(empty)))
        .collect();
    let report = &mut rig.report;
    report.add(
        Row::new(
            4,
            "memory for each endpoint, with its encoded form",
            "B",
            slope(&steps.memory),
        )
        .target(Target::AtMost(600.0)),
    );
    let (few, many) = (steps.wildcard[0], steps.wildcard[steps.wildcard.len() - 1]);
    let cross = (many.1 - few.1) * 1024.0 / (many.0 - few.0);
    report.add(
        Row::new(
            4,
            "memory for each wildcard client × service (cross term)",
            "B",
            cross,
        )
        .target(Target::AtMost(1.0)),
    );
    report.add(
        Row::new(
            6,
            "growth of the cold mirror, against services",
            "",
            exponent(&steps.ours),
        )
        .floor(exponent(&steps.bare))
        .target(Target::Around(1.0, 0.05)),
    );
    report.add(
        Row::new(
            6,
            "growth of CPU for a change, against services",
            "",
            exponent(&steps.change),
        )
        .target(Target::AtMost(0.05)),
    );
    report.add(
        Row::new(
            6,
            "growth of memory, against endpoints",
            "",
            exponent(&above),
        )
        .target(Target::AtMost(1.02)),
    );
}

fn charts(rig: &mut Rig, steps: Steps, instances: Vec<(f64, f64)>) {
    rig.charts.push((
        "cold-mirror",
        Chart {
            title: "Cold mirror: session start → ready".into(),
            axes: Axes::Logarithmic,
            x: "services of 10 instances",
            y: "ms",
            series: vec![
                ("MeshKeeper".into(), steps.ours),
                ("bare client".into(), steps.bare),
            ],
        },
    ));
    rig.charts.push((
        "change-cpu",
        Chart {
            title: "Server CPU for one change, one client".into(),
            axes: Axes::Logarithmic,
            x: "services in the mesh, or instances of the service",
            y: "µs",
            series: vec![
                ("by services".into(), steps.change),
                ("by instances".into(), instances),
            ],
        },
    ));
}

#[allow(clippy::cast_precision_loss)]
fn bytes(count: u64) -> f64 {
    count as f64
}
