//! Many resources a message, large messages, and loads past what the server can send.
//!
//! Covers the rest of measures 2 and 3.

use super::{
    Rig, delta,
    experiment::{self, Outcome, Pace},
    journal::{Service, Watch},
    load::Hello,
    mesh::{LARGE, MANY},
    report::{Row, Target},
    server::{Server, Side, linear},
    statistics::{float, median, milliseconds, percentile},
};

const MANY_CLIENTS: usize = 200;
const TOGETHER: Service = 100;
const LARGE_CLIENTS: usize = 100;
/// The service of a thousand instances.
const LARGE_SERVICE: Service = 2;
const ROUNDS: usize = 20;
/// That watch everything: the peer encodes every resource for each, and takes a minute for a hundred.
const WILDCARDS: usize = 20;

pub async fn measure(rig: &mut Rig) {
    together(rig).await;
    large(rig).await;
    watching_some(rig).await;
    watching_all(rig).await;
    saturated(rig).await;
}

/// A hundred services change in one transaction, and every client watches them all.
async fn together(rig: &mut Rig) {
    let all: Vec<Service> = (0..TOGETHER).collect();
    let ours = transaction(rig, Side::MeshKeeper, &all).await;
    let resources = ours.traffic.resources.max(1);
    let size = usize::try_from(ours.traffic.bytes / resources).unwrap_or(0) * all.len();
    let server = Server::start(Side::Floor(size), &rig.mesh.zookeeper, MANY).await;
    let changes = vec![vec![0]; ROUNDS];
    let hellos = experiment::one(MANY_CLIENTS, 0);
    let floor = experiment::run(&rig.mesh, &server, MANY, hellos, &changes, Pace::Settled).await;
    drop(server);
    let peer = match linear() {
        Some(peer) => Some(transaction(rig, peer, &all).await),
        None => None,
    };
    let each = |outcome: &Outcome| microseconds(outcome) / count(outcome.traffic.resources);
    rig.report.add(
        Row::new(
            3,
            format!("CPU for each client × resource, {TOGETHER} changed at once"),
            "µs",
            each(&ours),
        )
        .floor(microseconds(&floor) / float(ROUNDS * MANY_CLIENTS * all.len()))
        .linear(peer.as_ref().map(each))
        .target(Target::AtMost(0.4)),
    );
    let in_one = count(resources) / count(ours.traffic.messages);
    rig.report.note(format!(
        "Of {TOGETHER} resources that change at once, a message carried {in_one:.1} on average."
    ));
}

async fn transaction(rig: &Rig, side: Side, services: &[Service]) -> Outcome {
    let server = Server::start(side, &rig.mesh.zookeeper, MANY).await;
    let changes = vec![services.to_vec(); ROUNDS];
    let hellos = experiment::named(MANY_CLIENTS, |_| services.to_vec());
    experiment::run(&rig.mesh, &server, MANY, hellos, &changes, Pace::Settled).await
}

/// The bytes that leave for each second of the server's processor time.
async fn large(rig: &mut Rig) {
    let mut rates = Vec::new();
    let mut size = 0;
    for asked in [Some(Side::MeshKeeper), None, linear()] {
        // The floor sends what was seen of the first.
        let sender = match asked {
            Some(asked) => asked,
            None if rates.len() == 1 => Side::Floor(size),
            None => continue,
        };
        let server = Server::start(sender, &rig.mesh.zookeeper, LARGE).await;
        let changes = vec![vec![LARGE_SERVICE]; ROUNDS];
        let hellos = experiment::one(LARGE_CLIENTS, LARGE_SERVICE);
        let outcome =
            experiment::run(&rig.mesh, &server, LARGE, hellos, &changes, Pace::Settled).await;
        size =
            usize::try_from(outcome.traffic.bytes / outcome.traffic.messages.max(1)).unwrap_or(0);
        rates.push(count(outcome.traffic.bytes) / 1e3 / microseconds(&outcome));
    }
    rig.report.add(
        Row::new(
            3,
            format!(
                "bytes for each second of CPU, messages of {} kB",
                size / 1_000
            ),
            "GB/s",
            rates[0],
        )
        .floor(rates[1])
        .linear(rates.get(2).copied())
        .target(Target::AtLeast(1.0)),
    );
}

/// Each client watches 20 services of all, as a sidecar that loads what it uses.
async fn watching_some(rig: &mut Rig) {
    let services = rig.mesh.services();
    let some = move |client: usize| {
        let first = Service::try_from(client).unwrap_or(0) * 13;
        (0..20).map(|i| (first + i * 97) % services).collect()
    };
    let hellos = experiment::named(1_000, some);
    let changes = experiment::spread(400, services);
    at_a_pace(rig, "1,000 clients watch 20 of all", &hellos, &changes).await;
}

/// Each client watches all services.
async fn watching_all(rig: &mut Rig) {
    let services = rig.mesh.services();
    let all = &Watch::Everything;
    let hellos = experiment::everything(WILDCARDS, delta::ENDPOINT, services as usize, all);
    let changes = experiment::spread(200, services);
    at_a_pace(rig, "20 clients watch everything", &hellos, &changes).await;
}

/// All sides, with a hundred changes a second.
async fn at_a_pace(rig: &mut Rig, what: &str, hellos: &[Hello], changes: &[Vec<Service>]) {
    for (side, name) in sides() {
        let server = Server::start(side, &rig.mesh.zookeeper, MANY).await;
        let (hellos, pace) = (hellos.to_vec(), Pace::Rate(100.0));
        let outcome = experiment::run(&rig.mesh, &server, MANY, hellos, changes, pace).await;
        rates(rig, name, &format!("{what}, 100 changes/s"), &outcome);
    }
}

/// One service changes faster than a thousand clients can be told.
async fn saturated(rig: &mut Rig) {
    let changes = vec![vec![0]; 3_000];
    for (side, name) in sides() {
        let server = Server::start(side, &rig.mesh.zookeeper, MANY).await;
        let hellos = experiment::one(1_000, 0);
        let settled = experiment::run(
            &rig.mesh,
            &server,
            MANY,
            hellos.clone(),
            &changes[..10],
            Pace::Settled,
        )
        .await;
        let round = median(&milliseconds(&settled.lasts));
        let outcome = experiment::run(
            &rig.mesh,
            &server,
            MANY,
            hellos,
            &changes,
            Pace::Rate(1_000.0),
        )
        .await;
        rates(
            rig,
            name,
            "1,000 clients watch one service, 1,000 changes/s",
            &outcome,
        );
        let stale = percentile(&milliseconds(&outcome.lags), 99) / round;
        let told = count(outcome.traffic.messages) / 1_000.0;
        if side == Side::MeshKeeper {
            rig.report.add(
                Row::new(2, "staleness past saturation, p99, in rounds", "", stale)
                    .target(Target::AtMost(2.0)),
            );
            rig.report.add(
                Row::new(
                    2,
                    "latest states lost past saturation",
                    "",
                    float(outcome.lost + outcome.lost_streams),
                )
                .target(Target::AtMost(0.0)),
            );
        }
        rig.report.note(format!("{name}: 3,000 changes were coalesced into {told:.0} messages for each client; a round takes {round:.1} ms."));
    }
}

fn rates(rig: &mut Rig, name: &str, what: &str, outcome: &Outcome) {
    let lags = milliseconds(&outcome.lags);
    rig.report.note(format!(
        "{name}, {what}: p50 {:.2} ms, p99 {:.2} ms, CPU {:.0} %, lost {}; {:.0} changes/s were reached.",
        median(&lags),
        percentile(&lags, 99),
        outcome.cpu.as_secs_f64() / outcome.took.as_secs_f64() * 100.0,
        outcome.lost + outcome.lost_streams,
        float(outcome.lasts.len()) / outcome.took.as_secs_f64(),
    ));
}

fn sides() -> Vec<(Side, &'static str)> {
    [Some(Side::MeshKeeper), linear()]
        .into_iter()
        .flatten()
        .map(|side| (side, side.name()))
        .collect()
}

fn microseconds(outcome: &Outcome) -> f64 {
    outcome.cpu.as_secs_f64() * 1e6
}

#[allow(clippy::cast_precision_loss)]
fn count(number: u64) -> f64 {
    number as f64
}
