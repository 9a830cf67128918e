//! This build beside another build of MeshKeeper, in turn: what a change, an endpoint and a client cost.
//!
//! Both read the same tree on the same core, and the order within a pair alternates, so that the drift of a
//! shared machine cancels out. The figure of a measure is the median of the pairs' ratios, other build = 1.
//! `AGAINST` names the other program.

use std::sync::Arc;

use super::{
    Rig, delta,
    experiment::{self, LIMIT, Pace},
    journal::{Journal, Watch},
    load::{Fleet, Hello},
    mesh::{LARGE, MANY},
    report::{Row, Target},
    server::{Server, Side},
    statistics::{float, median, percentile},
};

const PAIRS: usize = 7;
/// The service of a thousand instances.
const THOUSAND: u32 = 2;
/// No measure may cost more than this share of what it cost before.
const MOST: f64 = 1.03;

/// What one run of one build showed, in the order of [`MEASURES`].
type Figures = [f64; MEASURES.len()];

const MEASURES: [&str; 7] = [
    "cold mirror, session start → ready",
    "memory of the whole mesh, encoded",
    "CPU of a change, nobody else watches",
    "CPU of a change in a service of 1,000 instances",
    "CPU of a change for 200 clients",
    "CPU of 100 changes at once for 200 clients",
    "propagation to one client, p50",
];

pub async fn measure(rig: &mut Rig) {
    let mut pairs = Vec::new();
    for pair in 0..PAIRS {
        let mut figures = [None, None];
        for turn in [pair % 2, 1 - pair % 2] {
            let side = [Side::MeshKeeper, Side::Other][turn];
            figures[turn] = Some(figures_of(rig, side).await);
        }
        if let [Some(this), Some(other)] = figures {
            pairs.push((this, other));
        }
        println!("  pair {} of {PAIRS} done", pair + 1);
    }
    for (place, measure) in MEASURES.into_iter().enumerate() {
        add(rig, measure, place, &pairs);
    }
}

fn add(rig: &mut Rig, measure: &str, place: usize, pairs: &[(Figures, Figures)]) {
    let ratios = pairs.iter().map(|(this, other)| this[place] / other[place]);
    let ratios: Vec<f64> = ratios.collect();
    let row = Row::new(
        6,
        format!("{measure}: this build / other"),
        "",
        median(&ratios),
    )
    .spread(percentile(&ratios, 0), percentile(&ratios, 100))
    .target(Target::AtMost(MOST));
    rig.report.add(row);
}

async fn figures_of(rig: &Rig, side: Side) -> Figures {
    let server = Server::start(side, &rig.mesh.zookeeper, MANY).await;
    let load = server.load.as_secs_f64();
    ask_for_everything(&server, rig.mesh.services() as usize).await;
    let memory = float(usize::try_from(server.memory()).unwrap_or(0));
    let one = change(
        rig,
        &server,
        MANY,
        experiment::one(1, 0),
        &vec![vec![0]; 200],
    )
    .await;
    let clients = experiment::one(200, 0);
    let many = change(rig, &server, MANY, clients, &vec![vec![0]; 50]).await;
    let all: Vec<u32> = (0..100).collect();
    let clients = experiment::named(200, |_| all.clone());
    let together = change(rig, &server, MANY, clients, &vec![all.clone(); 20]).await;
    drop(server);
    let server = Server::start(side, &rig.mesh.zookeeper, LARGE).await;
    let clients = experiment::one(1, THOUSAND);
    let large = change(rig, &server, LARGE, clients, &vec![vec![THOUSAND]; 60]).await;
    [load, memory, one.0, large.0, many.0, together.0, one.1]
}

/// The server's processor time for a change, and when the last client has it (median); in seconds.
async fn change(
    rig: &Rig,
    server: &Server,
    root: &str,
    clients: Vec<Hello>,
    changes: &[Vec<u32>],
) -> (f64, f64) {
    let outcome = experiment::run(&rig.mesh, server, root, clients, changes, Pace::Settled).await;
    assert_eq!((outcome.lost, outcome.lost_streams), (0, 0), "lost changes");
    let lasts: Vec<f64> = outcome
        .lasts
        .iter()
        .map(std::time::Duration::as_secs_f64)
        .collect();
    (
        outcome.cpu.as_secs_f64() / float(changes.len()),
        median(&lasts),
    )
}

/// Resources are encoded when the first client asks for them.
pub async fn ask_for_everything(server: &Server, services: usize) {
    let kinds = [delta::CLUSTER, delta::ENDPOINT];
    let all = |kind| experiment::everything(1, kind, services, &Watch::Nothing);
    let hellos: Vec<_> = kinds.into_iter().flat_map(all).collect();
    let clients = hellos.len();
    let journal = Arc::new(Journal::new(0));
    let fleet = Fleet::open(server.wire(), server.clients, &journal, hellos);
    assert!(
        journal.synced(clients, LIMIT).await,
        "a client gets everything"
    );
    fleet.close().await;
}
