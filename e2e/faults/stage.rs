//! Everything that takes part in a trial, and the two promises as a check.
//!
//! A fleet registers with a real ensemble past the fault proxies, a real server mirrors it through
//! them, and clients follow the server: observers that look at every assignment, and where traffic is
//! the point, a real Envoy under requests.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant},
};

use tokio::time::timeout;

use crate::support::{
    backend::Backend,
    dice::Dice,
    ensemble::Ensemble,
    envoy::Envoy,
    meshkeeper::MeshKeeper,
    observer::{Memory, Observer},
    registrar::{Registrar, Served, registered, session},
    timeline::Timeline,
    traffic::{Outcomes, Traffic},
    wait::until,
};

/// Which requests go to; all its instances answer.
const ORDERS: &str = "orders";
/// Whose instances come and go; more stay than ever go at once, so that no guard holds any of them.
const BUSY: [&str; 3] = ["carts", "prices", "stock"];
/// Large, so that a load takes its time.
const BULK: &str = "bulk";
/// How long the server may take to be right again.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the server asks for; shorter than it takes anybody else to give up.
pub const SESSION: Duration = Duration::from_secs(2);

pub struct Stage {
    pub ensemble: Ensemble,
    pub registrar: Registrar,
    pub meshkeeper: MeshKeeper,
    pub timeline: Timeline,
    observers: Vec<Observer>,
    sidecar: Option<Sidecar>,
}

struct Sidecar {
    envoy: Envoy,
    traffic: Traffic,
    _backends: Vec<Backend>,
}

/// How what is served differs from what is registered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Served and not registered, or with another weight.
    pub stale: Vec<String>,
    /// Registered and not served.
    pub missing: Vec<String>,
}

impl Stage {
    /// A fleet in an ensemble of `size`, a server and two observers. Everything is in sync.
    pub async fn start(size: usize, seed: u64) -> Self {
        Self::with(Ensemble::start(size).await, seed).await
    }

    pub async fn with(ensemble: Ensemble, seed: u64) -> Self {
        let timeline = Timeline::start();
        let mut registrar = Registrar::start(&ensemble).await;
        for (service, count) in BUSY.map(|busy| (busy, 16)).into_iter().chain([(BULK, 500)]) {
            let addresses = registrar.addresses(count);
            registrar.register(service, addresses).await;
        }
        let lasts = format!("{}s", SESSION.as_secs());
        let meshkeeper = MeshKeeper::start_with_session(&ensemble.connect(), &lasts).await;
        let services: Vec<_> = BUSY.into_iter().chain([BULK, ORDERS]).collect();
        let observers = [Memory::Resumes, Memory::Forgets].map(|memory| {
            let (ledger, log) = (registrar.ledger.clone(), timeline.clone());
            Observer::start(meshkeeper.xds, &services, memory, ledger, log)
        });
        let log = timeline.clone();
        (registrar.churn(&ensemble, &BUSY, Dice::new(seed), log)).await;
        let mut stage = Self {
            ensemble,
            registrar,
            meshkeeper,
            timeline,
            observers: observers.into(),
            sidecar: None,
        };
        stage.settle().await.unwrap();
        stage
    }

    /// Adds a service that answers, and a sidecar through which it is called all the time.
    pub async fn with_traffic(mut self) -> Self {
        let backends = Backend::start_many(3).await;
        let addresses = backends.iter().map(|backend| backend.address.to_string());
        self.registrar.register(ORDERS, addresses).await;
        let envoy = Envoy::start(&self.meshkeeper, "trial").await;
        until("all hosts", async || {
            (envoy.hosts(ORDERS).await.len() == 3).then_some(())
        })
        .await;
        let traffic = Traffic::paced(envoy.outbound, ORDERS, 2, Duration::from_millis(5));
        self.sidecar = Some(Sidecar {
            envoy,
            traffic,
            _backends: backends,
        });
        self.settle().await.unwrap();
        self
    }

    /// Stops the coming and going, and waits until everybody is shown exactly what is registered.
    /// How long that took from now, or from the last change that was still on its way; or what differs.
    pub async fn settle(&mut self) -> Result<Duration, Difference> {
        let began = Instant::now();
        self.registrar.hold();
        let mut truth = Served::new();
        let mut changed = began;
        let mut right = None;
        loop {
            assert!(self.registrar.is_whole(), "a session of the fleet ended");
            let quiet = self.registrar.is_quiet();
            let now = self.truth().await;
            if now != truth {
                // Not the first time: that it was found late is no change.
                changed = if truth.is_empty() {
                    began
                } else {
                    Instant::now()
                };
                truth = now;
            }
            let difference = self.difference(&truth).await;
            if difference == Difference::default() {
                right.get_or_insert_with(Instant::now);
            } else if changed.elapsed() > PATIENCE {
                return Err(difference);
            } else {
                right = None;
            }
            if let (Some(right), true) = (right, quiet) {
                self.registrar.go_on();
                return Ok(right.duration_since(changed));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// How many endpoints are registered now.
    pub async fn registered(&self) -> usize {
        self.truth().await.values().map(BTreeMap::len).sum()
    }

    /// Read over a new session each time, as one that was interrupted may take long to come back.
    async fn truth(&self) -> Served {
        let direct = self.ensemble.direct();
        until("what is registered", async || {
            let reading = async { registered(&session(&direct).await).await.ok() };
            timeout(Duration::from_secs(2), reading).await.ok()?
        })
        .await
    }

    async fn difference(&self, truth: &Served) -> Difference {
        let mut difference = Difference::default();
        for (at, observer) in self.observers.iter().enumerate() {
            difference.add(&format!("observer {at}"), &observer.held(), truth);
        }
        if let Some(sidecar) = &self.sidecar {
            difference.add("Envoy", &sidecar.hosts().await, truth);
        }
        difference
    }

    /// Every endpoint that went without deregistering, came back or aged, whoever was shown it.
    pub fn wrong(&self) -> Vec<String> {
        self.observers.iter().flat_map(Observer::wrong).collect()
    }

    /// How many assignments the observers were sent, over how many streams.
    pub fn told(&self) -> (usize, usize) {
        let counts = self.observers.iter().map(Observer::counts);
        counts.fold((0, 0), |(a, b), (c, d)| (a + c, b + d))
    }

    pub fn outcomes(&self) -> Outcomes {
        let sidecar = self.sidecar.as_ref();
        sidecar.map_or_else(Outcomes::new, |s| s.traffic.so_far())
    }

    /// What the sidecar refused to take, and its warnings, if there was anything.
    pub async fn refused(&self) -> Option<String> {
        let envoy = &self.sidecar.as_ref()?.envoy;
        let refused = envoy.rejections().await;
        (!refused.is_empty()).then(|| format!("{refused:?}\n{}", envoy.log()))
    }

    /// The promises: what is served is what is registered, nothing was removed that had not
    /// deregistered, and no request failed. How long the first took.
    pub async fn assert_unharmed(&mut self) -> Duration {
        let settled = self.settle().await;
        let story = self.timeline.last(40);
        let settled = settled.unwrap_or_else(|difference| panic!("{difference:?}\n{story}"));
        assert!(self.wrong().is_empty(), "{:#?}\n{story}", self.wrong());
        let outcomes = self.outcomes();
        let failed = outcomes.keys().any(|outcome| outcome != "200");
        assert!(!failed, "{outcomes:?}\n{story}");
        settled
    }

    /// Whether the server says that it is connected, once it has loaded.
    pub async fn is_connected(&self) -> Option<bool> {
        let series = "meshkeeper_zookeeper_connected{registry=\"main\"}";
        let connected = self.meshkeeper.metric(series).await?;
        Some(connected > 0.0)
    }

    /// How often the server has compared everything again.
    pub async fn resyncs(&self) -> f64 {
        let series = "meshkeeper_zookeeper_resyncs_total{registry=\"main\"}";
        until(series, async || self.meshkeeper.metric(series).await).await
    }
}

impl Sidecar {
    async fn hosts(&self) -> Served {
        let hosts = self.envoy.all_hosts().await.into_iter();
        let known = |name: &String| [BULK, ORDERS].contains(&&**name) || BUSY.contains(&&**name);
        let hosts = hosts.filter(|(name, _)| known(name)).map(|(name, hosts)| {
            let weight = |(address, (weight, _))| (address, u32::try_from(weight).unwrap());
            (name, hosts.into_iter().map(weight).collect())
        });
        hosts.collect()
    }
}

impl Difference {
    fn add(&mut self, whose: &str, served: &Served, truth: &Served) {
        let nothing = BTreeMap::new();
        let services = served.keys().chain(truth.keys());
        for service in services.collect::<std::collections::BTreeSet<_>>() {
            let shown = served.get(service).unwrap_or(&nothing);
            let there = truth.get(service).unwrap_or(&nothing);
            for (address, weight) in shown.iter().filter(|(a, w)| there.get(*a) != Some(w)) {
                (self.stale).push(format!("{whose}: {service} {address} weight {weight}"));
            }
            for (address, weight) in there.iter().filter(|(a, _)| !shown.contains_key(*a)) {
                (self.missing).push(format!("{whose}: {service} {address} weight {weight}"));
            }
        }
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (what, list) in [("stale", &self.stale), ("missing", &self.missing)] {
            let mut line = format!("{what}: {}", list.len());
            for one in list.iter().take(10) {
                let _ = write!(line, "; {one}");
            }
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

#[test]
fn a_difference_names_what_is_stale_and_what_is_missing() {
    let served = |endpoints: &[(&str, u32)]| {
        let endpoints = endpoints.iter().map(|(a, w)| ((*a).to_owned(), *w));
        Served::from([("orders".to_owned(), endpoints.collect())])
    };
    let differs = |shown: &[(&str, u32)], there: &[(&str, u32)]| {
        let mut difference = Difference::default();
        difference.add("it", &served(shown), &served(there));
        (difference.stale.len(), difference.missing.len())
    };
    assert_eq!(differs(&[("a", 1)], &[("a", 1)]), (0, 0));
    assert_eq!(differs(&[("a", 1), ("b", 1)], &[("a", 1)]), (1, 0));
    assert_eq!(differs(&[("a", 1)], &[("a", 1), ("b", 1)]), (0, 1));
    assert_eq!(differs(&[("a", 1)], &[("a", 2)]), (1, 0));
}
