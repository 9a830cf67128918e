//! One run: a server, a fleet of clients, and changes at a pace.
//!
//! It refuses to know what is concluded from it. The fleet is complete and quiet before the first
//! change; processor time is that from the first change until every client has the latest state.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{
    delta,
    journal::{Journal, Service, Traffic, Watch},
    load::{Fleet, Hello},
    mesh::Mesh,
    server::Server,
};

/// For a fleet to be complete, and for the last change to arrive.
pub const LIMIT: Duration = Duration::from_secs(90);
const QUIET: Duration = Duration::from_millis(300);
/// Between two changes of which the second waits for the first to arrive everywhere.
const GAP: Duration = Duration::from_millis(4);

#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// The next change once every client has the one before.
    Settled,
    /// So many in a second, whatever the clients do.
    Rate(f64),
}

#[derive(Debug)]
pub struct Outcome {
    /// For each change: when the last client had it.
    pub lasts: Vec<Duration>,
    /// For each client and change that it watches.
    pub lags: Vec<Duration>,
    pub cpu: Duration,
    pub took: Duration,
    pub traffic: Traffic,
    /// The latest states that never arrived, and the streams that ended.
    pub lost: usize,
    pub lost_streams: usize,
    /// From the znode's event to the response, as the server counts it; seconds, mean.
    pub own_share: f64,
}

/// The clients stay connected to the end; every element of `changes` is one transaction.
pub async fn run(
    mesh: &Mesh,
    server: &Server,
    root: &str,
    hellos: Vec<Hello>,
    changes: &[Vec<Service>],
    pace: Pace,
) -> Outcome {
    let journal = Arc::new(Journal::new(mesh.next_stamp()));
    let count = hellos.len();
    let fleet = Fleet::open(server.wire(), server.clients, &journal, hellos);
    assert!(
        journal.synced(count, LIMIT).await,
        "not all of {count} clients got what they asked for"
    );
    sleep(QUIET).await;
    journal.pages().traffic = Traffic::default();
    let (cpu, start, share) = (server.cpu(), Instant::now(), Share::of(server));
    write(mesh, &journal, root, changes, pace).await;
    journal.settled(LIMIT).await;
    let took = start.elapsed();
    let cpu = server.cpu().saturating_sub(cpu);
    let own_share = Share::of(server).since(&share);
    fleet.close().await;
    let lasts = journal.lasts();
    let pages = journal.pages();
    Outcome {
        lasts,
        lags: pages.lags.clone(),
        cpu,
        took,
        traffic: pages.traffic,
        lost: pages.outstanding,
        lost_streams: pages.lost_streams,
        own_share,
    }
}

/// Writes every change at the pace.
pub async fn write(
    mesh: &Mesh,
    journal: &Journal,
    root: &str,
    changes: &[Vec<Service>],
    pace: Pace,
) {
    let mut ticks = interval(match pace {
        Pace::Settled => GAP,
        Pace::Rate(rate) => Duration::from_secs_f64(1.0 / rate),
    });
    ticks.set_missed_tick_behavior(match pace {
        Pace::Settled => MissedTickBehavior::Delay,
        Pace::Rate(_) => MissedTickBehavior::Burst,
    });
    for services in changes {
        ticks.tick().await;
        mesh.change(journal, root, services).await;
        if matches!(pace, Pace::Settled) && !journal.settled(LIMIT).await {
            return;
        }
    }
}

/// The server's histogram of its own part of the way.
struct Share {
    sum: f64,
    count: f64,
}

impl Share {
    fn of(server: &Server) -> Self {
        Self {
            sum: server.metric("meshkeeper_propagation_seconds_sum"),
            count: server.metric("meshkeeper_propagation_seconds_count"),
        }
    }

    fn since(&self, before: &Self) -> f64 {
        (self.sum - before.sum) / (self.count - before.count).max(1.0)
    }
}

/// How a side calls services and clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    Plain,
    /// As istiod has them: it takes no client whose name does not say what and where it is.
    Istio,
}

impl Names {
    fn service(self, service: Service) -> String {
        match self {
            Self::Plain => format!("s{service}"),
            Self::Istio => format!("outbound|8080||s{service}.mesh"),
        }
    }

    fn node(self, client: usize) -> String {
        match self {
            Self::Plain => node(client),
            Self::Istio => {
                let (high, low) = (client / 250 % 250, client % 250);
                format!(
                    "sidecar~10.255.{high}.{low}~client-{client}.default~default.svc.cluster.local"
                )
            }
        }
    }
}

/// Clients that ask for the endpoints of these services.
pub fn named(clients: usize, services: impl Fn(usize) -> Vec<Service>) -> Vec<Hello> {
    named_as(Names::Plain, clients, services)
}

/// The same, as a side calls them.
pub fn named_as(
    names: Names,
    clients: usize,
    services: impl Fn(usize) -> Vec<Service>,
) -> Vec<Hello> {
    let hello = |client: usize| {
        let services = services(client);
        let asked: Vec<_> = services
            .iter()
            .map(|service| names.service(*service))
            .collect();
        Hello {
            requests: vec![delta::subscribe(
                &names.node(client),
                delta::ENDPOINT,
                &asked,
                &[],
            )],
            expects: asked.len(),
            collections: false,
            watch: Watch::Named(services),
        }
    };
    (0..clients).map(hello).collect()
}

/// Clients that all ask for one service: what a floor offers too, with one frame as a greeting.
pub fn one(clients: usize, service: Service) -> Vec<Hello> {
    named(clients, |_| vec![service])
}

/// One client that takes the instances of its service one by one.
pub fn by_ones(service: Service) -> Vec<Hello> {
    let mut hellos = one(1, service);
    for hello in &mut hellos {
        hello.collections = true;
    }
    hellos
}

/// Clients that ask for all resources of a type, of which there are so many.
pub fn everything(clients: usize, kind: &str, services: usize, watch: &Watch) -> Vec<Hello> {
    let hello = |client: usize| Hello {
        requests: vec![delta::subscribe(
            &node(client),
            kind,
            &["*".to_owned()],
            &[],
        )],
        expects: services,
        collections: false,
        watch: watch.clone(),
    };
    (0..clients).map(hello).collect()
}

pub fn node(client: usize) -> String {
    format!("client-{client}")
}

/// A service for each change, spread over all.
pub fn spread(changes: usize, services: Service) -> Vec<Vec<Service>> {
    let service = |change: u32| vec![change.wrapping_mul(7_919) % services];
    (0..u32::try_from(changes).expect("a few"))
        .map(service)
        .collect()
}
