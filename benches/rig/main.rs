//! `make bench`: what MeshKeeper costs, beside what nobody could do without and beside peers.
//!
//! ```text
//! core 0: MeshKeeper, a floor or a peer    core 1: ZooKeeper, the writer of changes, K clients
//! ```
//! Every figure stands beside a floor measured in the same run, as machines are shared and noisy; no
//! absolute time is a bar, and nothing is asserted but that no side loses anything. `BENCH=quick` (the
//! default) takes some minutes, `BENCH=full` goes up to 10,000 clients. Everything is on loopback, and
//! every process that is started here ends here. Words on the command line choose measures:
//! `growth`, `propagation`, `fanout`, `memory`, `storm`, `sidecar`; and `soak` and `against` (this build beside the one
//! that `AGAINST` names), which run only if named.

#![allow(clippy::unwrap_used, clippy::expect_used)]
// A method's path is not general enough in its lifetime.
#![allow(clippy::redundant_closure_for_method_calls)]

mod against;
mod chart;
mod delta;
mod experiment;
mod fanout;
mod floor;
mod growth;
mod http2;
mod journal;
mod load;
mod machine;
mod memory;
mod mesh;
mod propagation;
mod report;
mod resident;
mod server;
mod sidecar;
mod soak;
mod statistics;
mod storm;
#[path = "../../e2e/support/zookeeper.rs"]
#[allow(dead_code)]
mod zookeeper;

use std::{fs, path::Path, time::Instant};

use chart::Chart;
use journal::Service;
use mesh::Mesh;
use report::Report;
use tokio::signal::unix::{SignalKind, signal};

/// What all measures share.
struct Rig {
    mesh: Mesh,
    scale: Scale,
    report: Report,
    charts: Vec<(&'static str, Chart)>,
}

/// How far the mesh grows.
const SERVICES: [Service; 4] = [1_250, 2_500, 5_000, 10_000];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    Quick,
    Full,
}

impl Scale {
    fn from_environment() -> Self {
        match std::env::var("BENCH").as_deref() {
            Err(_) | Ok("quick" | "") => Self::Quick,
            Ok("full") => Self::Full,
            Ok(other) => panic!("BENCH is quick or full, not {other}"),
        }
    }

    fn repetitions(self) -> usize {
        match self {
            Self::Quick => 5,
            Self::Full => 9,
        }
    }

    fn clients(self) -> &'static [usize] {
        match self {
            Self::Quick => &[1, 10, 100, 300, 1_000],
            Self::Full => &[1, 10, 100, 300, 1_000, 3_000, 10_000],
        }
    }

    /// Fewer of what takes longer, but never less than five.
    fn changes(self, clients: usize) -> usize {
        let most = if self == Self::Full { 200 } else { 100 };
        (40_000 / clients).clamp(10, most)
    }

    fn idle(self) -> &'static [usize] {
        match self {
            Self::Quick => &[250, 500, 750, 1_000],
            Self::Full => &[250, 500, 1_000, 2_000, 5_000, 10_000],
        }
    }

    fn storm(self) -> &'static [usize] {
        match self {
            Self::Quick => &[1_000],
            Self::Full => &[1_000, 10_000],
        }
    }
}

fn main() {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"))
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    };
    if words.first().is_some_and(|word| word.starts_with("floor-")) {
        assert!(runtime().block_on(floor::run(&words)), "no such floor");
        return;
    }
    machine::settle();
    runtime().block_on(async {
        // Whatever ends the run, the handles are dropped, and with them the processes.
        tokio::select! {
            () = bench(&words) => {}
            () = interrupted() => println!("Interrupted."),
        }
    });
}

async fn interrupted() {
    let mut terminated = signal(SignalKind::terminate()).unwrap();
    let mut interrupted = signal(SignalKind::interrupt()).unwrap();
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
}

async fn bench(words: &[&str]) {
    let start = Instant::now();
    let scale = Scale::from_environment();
    println!(
        "{scale:?} run; load average {}; {} open files",
        machine::load_average(),
        machine::files()
    );
    let mut rig = Rig {
        mesh: Mesh::start().await,
        scale,
        report: Report::default(),
        charts: Vec::new(),
    };
    let wanted = |name| words.is_empty() || words.contains(&name);
    if wanted("growth") {
        growth::measure(&mut rig).await;
    }
    rig.mesh.grow(10_000).await;
    if wanted("propagation") {
        propagation::measure(&mut rig).await;
    }
    if wanted("fanout") {
        fanout::measure(&mut rig).await;
    }
    if wanted("memory") {
        memory::measure(&mut rig).await;
    }
    if wanted("storm") {
        storm::measure(&mut rig).await;
    }
    if wanted("sidecar") {
        sidecar::measure(&mut rig).await;
    }
    if words.contains(&"against") {
        against::measure(&mut rig).await;
    }
    if words.contains(&"soak") {
        soak::measure(&mut rig).await;
    }
    let took = start.elapsed().as_secs();
    let load = machine::load_average();
    rig.report.note(format!(
        "{scale:?} run of {took} s; load average at its end {load}."
    ));
    let table = if words == ["soak"] {
        "soak.md"
    } else {
        "bench.md"
    };
    finish(&rig, table);
}

/// Prints the table, and leaves it in `target/` and the charts in `docs/bench/`.
fn finish(rig: &Rig, table: &str) {
    println!("\n{}", rig.report.table());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::write(root.join("target").join(table), rig.report.markdown()).unwrap();
    let folder = root.join("docs/bench");
    fs::create_dir_all(&folder).unwrap();
    for (name, chart) in &rig.charts {
        fs::write(folder.join(format!("{name}.svg")), chart.svg()).unwrap();
    }
    println!("The table for the README is in target/{table}; charts are in docs/bench/.");
}
