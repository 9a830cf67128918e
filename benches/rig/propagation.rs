//! How soon the last of K clients has a change, and what each client costs the server.
//!
//! Covers measures 2 and 3 where all clients watch the service that changes, and the exponent against
//! K. The floor takes the same way: a bare ZooKeeper client that writes frames of the same size to K
//! plain sockets. Every change is a repetition of its own.

use super::{
    Rig,
    chart::{Axes, Chart},
    experiment::{self, Outcome, Pace},
    mesh::MANY,
    report::{Row, Target},
    server::{Server, Side, istiod, linear},
    statistics::{exponent, float, median, milliseconds, percentile},
};

/// What one side showed at one K.
#[derive(Clone, Copy, Debug)]
struct Point {
    clients: usize,
    p50: f64,
    p10: f64,
    p99: f64,
    /// Of the server, for each change, in µs.
    cpu: f64,
}

pub async fn measure(rig: &mut Rig) {
    let size = message_size(rig).await;
    rig.report.note(format!(
        "Fan-out and propagation: one resource of ten endpoints, {size} B a message."
    ));
    let ours = side(rig, Side::MeshKeeper).await;
    let floor = side(rig, Side::Floor(size)).await;
    let linear = peer(rig, linear()).await;
    let istiod = peer(rig, istiod()).await;
    for (place, (ours, floor)) in ours.iter().zip(&floor).enumerate() {
        let p50 = |peer: &[Point]| peer.get(place).map(|point| point.p50);
        latency(rig, ours, floor, p50(&linear), p50(&istiod));
    }
    cost(rig, &ours, &floor, [&linear, &istiod]);
    if !istiod.is_empty() {
        fed_otherwise(rig).await;
    }
    let p99: Vec<_> = ours
        .iter()
        .map(|point| (float(point.clients), point.p99))
        .collect();
    let floor_p99: Vec<_> = floor
        .iter()
        .map(|point| (float(point.clients), point.p99))
        .collect();
    rig.report.add(
        Row::new(
            6,
            "growth of p99 of the last client, against K",
            "",
            exponent(&p99),
        )
        .floor(exponent(&floor_p99))
        .target(Target::AtMost(1.1)),
    );
    let series = [
        ("MeshKeeper", &ours),
        ("floor", &floor),
        ("LinearCache", &linear),
        ("istiod", &istiod),
    ];
    let points = |points: &[Point]| points.iter().map(|p| (float(p.clients), p.p50)).collect();
    rig.charts.push((
        "propagation",
        Chart {
            title: "Propagation: write begun → last of K clients has it (p50)".into(),
            axes: Axes::Logarithmic,
            x: "clients that watch the service",
            y: "ms",
            series: series
                .map(|(name, side)| (name.into(), points(side)))
                .into(),
        },
    ));
}

/// Of a change, as MeshKeeper sends it.
async fn message_size(rig: &Rig) -> usize {
    let server = Server::start(Side::MeshKeeper, &rig.mesh.zookeeper, MANY).await;
    let changes = vec![vec![0]; 4];
    let outcome = experiment::run(
        &rig.mesh,
        &server,
        MANY,
        experiment::one(1, 0),
        &changes,
        Pace::Settled,
    )
    .await;
    usize::try_from(outcome.traffic.bytes / outcome.traffic.messages.max(1))
        .expect("a small message")
}

async fn peer(rig: &Rig, peer: Option<Side>) -> Vec<Point> {
    match peer {
        Some(peer) => side(rig, peer).await,
        None => Vec::new(),
    }
}

/// What the debounce is of istiod's time, and what the usual way to feed it adds.
async fn fed_otherwise(rig: &mut Rig) {
    for (other, why) in [
        (
            Side::IstiodHasty,
            "istiod waits 100 ms for further changes before it pushes (PILOT_DEBOUNCE_AFTER); with 1 ms",
        ),
        (
            Side::IstiodMcp,
            "istiod fed by MCP over xDS, whose every change carries the complete set",
        ),
    ] {
        let points = side(rig, other).await;
        let p50 = |point: &Point| {
            let (clients, p50, cpu) = (point.clients, point.p50, point.cpu / 1e3);
            format!("{clients} {p50:.1} ms ({cpu:.1} ms of CPU)")
        };
        let p50: Vec<_> = points.iter().map(p50).collect();
        let p50 = p50.join(", ");
        rig.report.note(format!("{why}: p50 of the last of {p50}."));
    }
}

async fn side(rig: &Rig, side: Side) -> Vec<Point> {
    let server = Server::start(side, &rig.mesh.zookeeper, MANY).await;
    let mut points = Vec::new();
    for clients in rig.scale.clients() {
        if *clients > side.most_clients() {
            break;
        }
        let changes = match side {
            Side::IstiodMcp => 10,
            _ => rig.scale.changes(*clients),
        };
        let changes = vec![vec![0]; changes];
        let hellos = experiment::named_as(side.names(), *clients, |_| vec![0]);
        let outcome =
            experiment::run(&rig.mesh, &server, MANY, hellos, &changes, Pace::Settled).await;
        points.push(point(*clients, &outcome, side));
    }
    points
}

fn point(clients: usize, outcome: &Outcome, side: Side) -> Point {
    assert_eq!(
        (outcome.lost, outcome.lost_streams),
        (0, 0),
        "{} lost changes",
        side.name()
    );
    let lasts = milliseconds(&outcome.lasts);
    let point = Point {
        clients,
        p50: median(&lasts),
        p10: percentile(&lasts, 10),
        p99: percentile(&lasts, 99),
        cpu: outcome.cpu.as_secs_f64() * 1e6 / float(lasts.len()),
    };
    println!(
        "  {} K={clients}: p50 {:.2} ms, p99 {:.2} ms, {:.0} µs of CPU a change, own share {:.2} ms, {} B a message",
        side.name(),
        point.p50,
        point.p99,
        point.cpu,
        outcome.own_share * 1e3,
        outcome.traffic.bytes / outcome.traffic.messages.max(1)
    );
    point
}

fn latency(rig: &mut Rig, ours: &Point, floor: &Point, linear: Option<f64>, istiod: Option<f64>) {
    let what = if ours.clients == 1 {
        "the client"
    } else {
        "the last"
    };
    let mut row = Row::new(
        2,
        format!("write begun → {what} of {} has it, p50", ours.clients),
        "ms",
        ours.p50,
    )
    .spread(ours.p10, ours.p99)
    .floor(floor.p50)
    .linear(linear)
    .istiod(istiod);
    if ours.clients >= 1_000 {
        row = row.target(Target::Ratio(2.0));
    } else if ours.clients <= 100 {
        row = row.target(Target::AtMost(1.0));
    }
    rig.report.add(row);
}

/// What one more client costs: the difference between the largest K and one client.
fn cost(rig: &mut Rig, ours: &[Point], floor: &[Point], [linear, istiod]: [&[Point]; 2]) {
    let each = |side: &[Point]| {
        let (one, all) = (side.first()?, side.last()?);
        Some((all.cpu - one.cpu) / float(all.clients - one.clients))
    };
    let (Some(of_us), Some(of_floor)) = (each(ours), each(floor)) else {
        return;
    };
    rig.report.add(
        Row::new(
            3,
            "CPU for each client × resource, 1 a message",
            "µs",
            of_us,
        )
        .floor(of_floor)
        .linear(each(linear))
        .istiod(each(istiod))
        .target(Target::AtMost(15.0)),
    );
}
