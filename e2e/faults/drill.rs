//! One fault on a stage, and all that can be said of it: how long until everything was right again,
//! what was broken, how the requests fared, and what the server said of itself meanwhile.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{task::JoinHandle, time::sleep};

use super::{
    fault::Fault,
    stage::{Difference, Stage},
};
use crate::support::{dice::Dice, http::Http, traffic::Outcomes};

/// Of the first instance that registers, and stays.
const EXPLAIN: &str = "/api/v1/explain?subject=10.1.0.1:80";

pub struct Drill {
    pub fault: Fault,
    /// From the end of the fault until what was served was what was registered.
    pub settled: Result<Duration, Difference>,
    /// Endpoints that were taken away or shown as they had been before, told by whom it was seen.
    pub wrong: Vec<String>,
    pub requests: u64,
    pub failures: u64,
    pub endpoints: (usize, usize),
    pub said: Said,
}

/// What the server said of itself from the beginning of the fault until all was right.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// The notes of `/readyz`, without what changes from second to second.
    pub notes: BTreeSet<String>,
    /// The values of `zookeeper_connected`.
    pub connected: BTreeSet<String>,
    /// The most that `zookeeper_resyncs_total` rose to.
    pub resyncs: f64,
    /// What `explain` said last of an instance that stays.
    pub explained: String,
    /// Warnings, each once.
    pub warnings: Vec<String>,
}

impl Drill {
    pub async fn run(stage: &mut Stage, fault: Fault, dice: &mut Dice) -> Self {
        let (outcomes, wrong) = (stage.outcomes(), stage.wrong().len());
        let endpoints = stage.registered().await;
        let (resyncs, log) = (stage.resyncs().await, stage.meshkeeper.log().len());
        let listener = Listener::start(stage.meshkeeper.admin);

        fault.strike(stage, dice).await;
        let settled = stage.settle().await;

        let mut said = listener.stop();
        said.resyncs = (said.resyncs.max(stage.resyncs().await) - resyncs).max(0.0);
        said.warnings = warnings(stage.meshkeeper.log().get(log..).unwrap_or_default());
        let (requests, failures) = difference(&outcomes, &stage.outcomes());
        Self {
            fault,
            settled,
            wrong: stage.wrong().split_off(wrong),
            requests,
            failures,
            endpoints: (endpoints, stage.registered().await),
            said,
        }
    }

    pub fn is_clean(&self) -> bool {
        self.settled.is_ok() && self.wrong.is_empty() && self.failures == 0
    }
}

/// How many requests there were since `before`, and how many of them failed.
fn difference(before: &Outcomes, after: &Outcomes) -> (u64, u64) {
    let (mut requests, mut failures) = (0, 0);
    for (outcome, count) in after {
        let new = count - before.get(outcome).copied().unwrap_or_default();
        requests += new;
        failures += if outcome == "200" { 0 } else { new };
    }
    (requests, failures)
}

/// Of lines like `2026-… WARN target: message key=value`: each message once.
fn warnings(log: &str) -> Vec<String> {
    let mut told = Vec::new();
    for line in log.lines() {
        let Some((_, text)) = line.split_once(" WARN ") else {
            continue;
        };
        let text = text.trim().split_once(": ").map_or(text, |(_, text)| text);
        let text = text.split(" registry=").next().unwrap_or(text).to_owned();
        if !told.contains(&text) {
            told.push(text);
        }
    }
    told
}

/// Asks the server how it is, all the time.
struct Listener {
    said: Arc<Mutex<Said>>,
    task: JoinHandle<()>,
}

impl Listener {
    fn start(admin: SocketAddr) -> Self {
        let said = Arc::<Mutex<Said>>::default();
        let into = Arc::clone(&said);
        let task = tokio::spawn(async move {
            let http = Http::new();
            loop {
                if let Some(page) = http.text(admin, "/readyz").await {
                    let notes = page.lines().filter_map(|l| l.strip_prefix("note: "));
                    into.lock().unwrap().notes.extend(notes.map(undated));
                }
                if let Some(page) = http.text(admin, "/metrics").await {
                    into.lock().unwrap().read(&page);
                }
                if let Some(page) = http.json(admin, EXPLAIN).await {
                    let summary = page["summary"].as_str().unwrap_or_default();
                    summary.clone_into(&mut into.lock().unwrap().explained);
                }
                sleep(Duration::from_millis(50)).await;
            }
        });
        Self { said, task }
    }

    fn stop(self) -> Said {
        self.task.abort();
        self.said.lock().unwrap().clone()
    }
}

/// Without a time that would make each note another one, and of what is said of each server only
/// what is said of the first.
fn undated(note: &str) -> String {
    let note = note.split(" (since ").next().unwrap_or(note);
    match note.split_once("; ") {
        Some((first, _)) => format!("{first}; …"),
        None => note.to_owned(),
    }
}

impl Said {
    fn read(&mut self, metrics: &str) {
        for line in metrics.lines() {
            let Some((series, value)) = line.split_once("{registry=\"main\"} ") else {
                continue;
            };
            match series {
                "meshkeeper_zookeeper_connected" => {
                    self.connected.insert(value.to_owned());
                }
                "meshkeeper_zookeeper_resyncs_total" => {
                    self.resyncs = self.resyncs.max(value.parse().unwrap_or_default());
                }
                _ => {}
            }
        }
    }
}
