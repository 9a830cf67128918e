//! Requests through a sidecar, and the statistics of who answered them.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use tokio::task::JoinHandle;

use super::http::Http;

/// Sends `lanes × each` requests, each lane one after the other; who answered, lane by lane.
pub async fn picks(sidecar: SocketAddr, host: &str, lanes: usize, each: usize) -> Vec<Vec<String>> {
    let lanes = (0..lanes).map(|_| {
        let host = host.to_owned();
        tokio::spawn(async move {
            let http = Http::new();
            let mut picks = Vec::with_capacity(each);
            for _ in 0..each {
                let (status, body) = http.get(sidecar, &host, "/").await.unwrap();
                assert_eq!(status, StatusCode::OK, "{body}");
                picks.push(body);
            }
            picks
        })
    });
    let mut all = Vec::new();
    for lane in lanes.collect::<Vec<_>>() {
        all.push(lane.await.unwrap());
    }
    all
}

/// How often each value occurs.
pub fn counts<T: Ord + Clone>(values: impl IntoIterator<Item = T>) -> BTreeMap<T, u64> {
    let mut counts = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    counts
}

/// Pearson's chi² of counts against shares, with its degrees of freedom.
///
/// A category that was never seen counts as 0.
pub fn chi_square<T: Ord>(counts: &BTreeMap<T, u64>, shares: &BTreeMap<T, f64>) -> (f64, f64) {
    assert!(
        counts.keys().all(|key| shares.contains_key(key)),
        "an answer from elsewhere"
    );
    let total = counts.values().sum::<u64>() as f64;
    let sum: f64 = shares.values().sum();
    let terms = shares.iter().map(|(key, share)| {
        let expected = total * share / sum;
        let seen = counts.get(key).copied().unwrap_or_default() as f64;
        (seen - expected).powi(2) / expected
    });
    (terms.sum(), (shares.len() - 1) as f64)
}

/// The normal score of a chi² (Wilson and Hilferty's approximation): 3.09 is p = 0.001.
pub fn score((chi, degrees): (f64, f64)) -> f64 {
    let spread = 2.0 / (9.0 * degrees);
    ((chi / degrees).cbrt() - (1.0 - spread)) / spread.sqrt()
}

/// The chi² test of independence of consecutive picks.
pub fn pair_chi_square(lanes: &[Vec<String>]) -> (f64, f64) {
    let pairs = lanes.iter().flat_map(|lane| lane.windows(2));
    let pairs = counts(pairs.map(|pair| (pair[0].clone(), pair[1].clone())));
    let first = counts_of(&pairs, |(first, _)| first.clone());
    let second = counts_of(&pairs, |(_, second)| second.clone());
    let total = pairs.values().sum::<u64>() as f64;
    let cells = first
        .iter()
        .flat_map(|(a, n)| second.iter().map(move |(b, m)| (a, b, n, m)));
    let chi = cells.map(|(a, b, n, m)| {
        let expected = *n as f64 * *m as f64 / total;
        let seen = pairs
            .get(&(a.clone(), b.clone()))
            .copied()
            .unwrap_or_default() as f64;
        (seen - expected).powi(2) / expected
    });
    (chi.sum(), ((first.len() - 1) * (second.len() - 1)) as f64)
}

fn counts_of<K>(pairs: &BTreeMap<K, u64>, part: impl Fn(&K) -> String) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (pair, count) in pairs {
        *sums.entry(part(pair)).or_default() += count;
    }
    sums
}

/// How often each outcome was seen: `200`, another status, or a connection's error.
pub type Outcomes = BTreeMap<String, u64>;

/// A service that calls another without pause, until it is told to stop.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    outcomes: Arc<Mutex<Outcomes>>,
    callers: Vec<JoinHandle<()>>,
}

impl Traffic {
    pub fn start(sidecar: SocketAddr, host: &str) -> Self {
        Self::paced(sidecar, host, 4, Duration::from_millis(2))
    }

    /// So many callers, who pause between the answer to a request and the next one.
    pub fn paced(sidecar: SocketAddr, host: &str, callers: usize, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let outcomes = Arc::new(Mutex::new(Outcomes::new()));
        let callers = (0..callers).map(|_| {
            let (stop, outcomes) = (Arc::clone(&stop), Arc::clone(&outcomes));
            let host = host.to_owned();
            tokio::spawn(async move {
                let http = Http::new();
                while !stop.load(Ordering::Relaxed) {
                    let outcome = call(&http, sidecar, &host).await;
                    *outcomes.lock().unwrap().entry(outcome).or_default() += 1;
                    tokio::time::sleep(pause).await;
                }
            })
        });
        Self {
            callers: callers.collect(),
            outcomes,
            stop,
        }
    }

    pub fn so_far(&self) -> Outcomes {
        self.outcomes.lock().unwrap().clone()
    }

    pub async fn stop(self) -> Outcomes {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.unwrap();
        }
        std::mem::take(&mut *self.outcomes.lock().unwrap())
    }
}

async fn call(http: &Http, sidecar: SocketAddr, host: &str) -> String {
    match http.get(sidecar, host, "/").await {
        Ok((status, _)) => status.as_str().to_owned(),
        Err(error) => error,
    }
}

#[test]
fn the_score_of_a_chi_square_is_near_its_table() {
    // Table values for p = 0.05 (score 1.645) and p = 0.001 (3.090).
    for (chi, degrees, expected) in [
        (7.815, 3.0, 1.645),
        (16.919, 9.0, 1.645),
        (27.877, 9.0, 3.090),
    ] {
        let found = score((chi, degrees));
        assert!((found - expected).abs() < 0.05, "{found} for {expected}");
    }
}

#[test]
fn a_rotation_is_found_not_to_be_independent() {
    let rotation: Vec<String> = (0..400).map(|at| (at % 4).to_string()).collect();
    assert!(score(pair_chi_square(&[rotation])) > 10.0);
}
