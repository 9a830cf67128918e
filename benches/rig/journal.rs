//! Which change was written when, and when each client saw it.
//!
//! It refuses to know sockets and messages. Every change has a *stamp*, a number that only grows and
//! that stands in the znode's data; a client that sees a stamp of a service has seen all earlier ones
//! of that service too, as they were coalesced. Invariant: a change is seen by a client once, and
//! `outstanding` is zero exactly when every client has seen the latest state of all that it watches.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

/// Stands before the ten digits of a stamp, in znodes and in what is rendered of them.
/// Of letters that a label of Istio may have.
pub const MARK: &[u8] = b"stamp.";

pub type Service = u32;
pub type Stamp = u64;

/// What a client watches.
#[derive(Clone, Debug)]
pub enum Watch {
    Named(Vec<Service>),
    Everything,
    Nothing,
}

#[derive(Debug)]
pub struct Journal(Mutex<Pages>);

#[derive(Debug)]
pub struct Pages {
    /// Changes have this stamp and the following ones.
    first: Stamp,
    changes: Vec<Change>,
    of_service: HashMap<Service, Vec<Stamp>>,
    named: HashMap<Service, usize>,
    everything: usize,
    /// Stamps by the hash of the resource, as thousands of clients get the same bytes.
    known: HashMap<u64, Option<Stamp>>,
    pub outstanding: usize,
    /// For each client and change: how long from the beginning of the write.
    pub lags: Vec<Duration>,
    /// Clients that hold all they subscribed to.
    pub synced: usize,
    pub last_synced: Option<Instant>,
    pub lost_streams: usize,
    /// Resources older than what the client had seen, and resources that it held already.
    pub backwards: u64,
    pub needless: u64,
    pub traffic: Traffic,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    pub messages: u64,
    pub resources: u64,
    pub removals: u64,
    pub bytes: u64,
}

#[derive(Debug)]
struct Change {
    begun: Instant,
    /// When the latest client saw it.
    last: Duration,
}

impl Journal {
    pub fn new(first: Stamp) -> Self {
        Self(Mutex::new(Pages {
            first,
            changes: Vec::new(),
            of_service: HashMap::new(),
            named: HashMap::new(),
            everything: 0,
            known: HashMap::new(),
            outstanding: 0,
            lags: Vec::new(),
            synced: 0,
            last_synced: None,
            lost_streams: 0,
            backwards: 0,
            needless: 0,
            traffic: Traffic::default(),
        }))
    }

    pub fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().expect("no client panicked")
    }

    /// For each change, when the last client had it.
    pub fn lasts(&self) -> Vec<Duration> {
        self.pages()
            .changes
            .iter()
            .map(|change| change.last)
            .collect()
    }

    /// Waits until every client has the latest state; false if the time was over first.
    pub async fn settled(&self, limit: Duration) -> bool {
        until(limit, || self.pages().outstanding == 0).await
    }

    /// Waits until `count` clients hold all they subscribed to.
    pub async fn synced(&self, count: usize, limit: Duration) -> bool {
        until(limit, || self.pages().synced >= count).await
    }
}

/// Looks every millisecond: what is measured is stamped where it happens.
pub async fn until(limit: Duration, condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    true
}

impl Pages {
    pub fn add_client(&mut self, watch: &Watch) {
        match watch {
            Watch::Named(services) => {
                for service in services {
                    *self.named.entry(*service).or_default() += 1;
                }
            }
            Watch::Everything => self.everything += 1,
            Watch::Nothing => {}
        }
    }

    /// A write of this stamp begins now; stamps come in order.
    pub fn begin(&mut self, service: Service, stamp: Stamp) {
        assert_eq!(
            stamp,
            self.first + self.changes.len() as u64,
            "stamps have no gaps"
        );
        self.changes.push(Change {
            begun: Instant::now(),
            last: Duration::ZERO,
        });
        self.of_service.entry(service).or_default().push(stamp);
        self.outstanding += self.everything + self.named.get(&service).copied().unwrap_or(0);
    }

    /// A client that had seen the service up to `before` now has `stamp`.
    pub fn see(&mut self, service: Service, before: Stamp, stamp: Stamp) {
        let Some(stamps) = self.of_service.get(&service) else {
            return;
        };
        let from = stamps.partition_point(|s| *s <= before);
        let to = stamps.partition_point(|s| *s <= stamp);
        for stamp in &stamps[from..to.max(from)] {
            let place = usize::try_from(stamp - self.first).expect("a place");
            let change = &mut self.changes[place];
            let lag = change.begun.elapsed();
            change.last = change.last.max(lag);
            self.lags.push(lag);
            self.outstanding -= 1;
        }
    }

    /// The stamp in a resource, if it is one of these pages.
    pub fn stamp(&mut self, body: &[u8]) -> Option<Stamp> {
        let hash = xxhash_rust::xxh3::xxh3_64(body);
        let stamp = *self.known.entry(hash).or_insert_with(|| find_stamp(body));
        stamp.filter(|stamp| *stamp >= self.first)
    }
}

pub fn find_stamp(bytes: &[u8]) -> Option<Stamp> {
    let start = bytes
        .windows(MARK.len())
        .position(|window| window == MARK)?
        + MARK.len();
    let digits = bytes.get(start..start + 10)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
