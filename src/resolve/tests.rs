use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use tokio::time::sleep;

use super::*;

const REFRESH: Duration = Duration::from_millis(40);
const PATIENCE: Duration = Duration::from_secs(20);
/// How long one look-up may take.
const SHORT: Duration = Duration::from_millis(50);

/// Answers as it is told to, and counts what is asked at once.
#[derive(Clone, Default)]
struct Zone(Arc<Mutex<Answers>>);

#[derive(Default)]
struct Answers {
    of: BTreeMap<String, Answer>,
    asked: usize,
    /// The most at once.
    most: usize,
}

impl Zone {
    fn set(&self, name: &str, answer: Result<&[&str], &str>) {
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let answer = answer.map(addresses).map_err(str::to_owned);
        self.lock().of.insert(name.to_owned(), answer);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Answers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_up(&self, name: &Arc<str>) -> BoxFuture<'static, Answer> {
        let (zone, name) = (self.clone(), Arc::clone(name));
        async move {
            {
                let mut state = zone.lock();
                state.asked += 1;
                state.most = state.most.max(state.asked);
            }
            if name.starts_with("dead") {
                std::future::pending::<()>().await;
            }
            sleep(Duration::from_millis(1)).await;
            let mut state = zone.lock();
            state.asked -= 1;
            let answer = state.of.get(&*name).cloned();
            answer.unwrap_or_else(|| Err("no such name".to_owned()))
        }
        .boxed()
    }
}

struct Running {
    wanted: watch::Sender<OrdSet<Arc<str>>>,
    changes: mpsc::Receiver<Vec<Resolved>>,
    known: BTreeMap<String, Answer>,
    metrics: prometheus::Registry,
}

impl Running {
    fn start(zone: &Zone, stop: &CancellationToken) -> Self {
        let registry = prometheus::Registry::new();
        let (wanted, wanted_reader) = watch::channel(OrdSet::new());
        let (sender, changes) = mpsc::channel(1);
        let zone = zone.clone();
        let resolver = Resolver {
            names: Names::new(REFRESH),
            look_up: move |name: Arc<str>| zone.look_up(&name),
            patience: SHORT,
            metrics: Metrics::register(&registry).unwrap(),
            told: None,
        };
        tokio::spawn(resolver.run(wanted_reader, sender, stop.clone()));
        Self {
            wanted,
            changes,
            known: BTreeMap::new(),
            metrics: registry,
        }
    }

    fn want(&self, names: impl IntoIterator<Item = String>) {
        self.wanted
            .send_replace(names.into_iter().map(Arc::from).collect());
    }

    async fn until(&mut self, holds: impl Fn(&BTreeMap<String, Answer>) -> bool) {
        let all = async {
            while !holds(&self.known) {
                for Resolved { name, addresses } in self.changes.recv().await.unwrap() {
                    self.known.insert(name.to_string(), addresses);
                }
            }
        };
        assert!(timeout(PATIENCE, all).await.is_ok(), "{:?}", self.known);
    }

    fn gauge(&self, name: &str) -> f64 {
        let families = self.metrics.gather();
        let family = families.iter().find(|family| family.name() == name);
        family.unwrap().get_metric()[0].get_gauge().get_value()
    }
}

#[tokio::test]
async fn names_follow_their_addresses_and_survive_what_looks_them_up() {
    let (zone, stop) = (Zone::default(), CancellationToken::new());
    zone.set("zk", Ok(&["10.0.0.2", "10.0.0.1"]));
    let mut running = Running::start(&zone, &stop);
    running.want(["zk".to_owned(), "nobody".to_owned()]);
    running.until(|known| known.len() == 2).await;
    let both: Vec<IpAddr> = vec![[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
    assert_eq!(running.known["zk"], Ok(both));
    assert_eq!(running.known["nobody"], Err("no such name".to_owned()));

    zone.set("zk", Err("no server"));
    let stale = async {
        while running.gauge("meshkeeper_dns_stale_names") < 1.0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, stale).await.expect("a failure");
    let told = running.changes.recv().await.unwrap();
    let failed = |r: &Resolved| &*r.name == "zk" && r.addresses.is_err();
    assert!(!told.iter().any(failed), "what was found stands");
    zone.set("zk", Ok(&["10.0.0.3"]));
    let moved: Answer = Ok(vec![[10, 0, 0, 3].into()]);
    running.until(|known| known["zk"] == moved).await;
    zone.set("nobody", Ok(&["fd00::1"]));
    running.until(|known| known["nobody"].is_ok()).await;
    stop.cancel();
    assert!(
        timeout(PATIENCE, running.changes.recv())
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn thousands_of_names_are_looked_up_some_at_once() {
    let (zone, stop) = (Zone::default(), CancellationToken::new());
    let mut running = Running::start(&zone, &stop);
    running.want((0..3_000).map(|n| format!("host-{n}")));
    running.until(|known| known.len() == 3_000).await;
    assert_eq!(zone.lock().most, AT_ONCE);
    stop.cancel();
}

#[tokio::test]
async fn names_that_are_never_answered_hold_up_no_others() {
    let (zone, stop) = (Zone::default(), CancellationToken::new());
    let mut running = Running::start(&zone, &stop);
    let dead = || (0..AT_ONCE * 3).map(|n| format!("dead-{n:02}"));
    running.want(dead());
    let late = Err("no answer within 50ms".to_owned());
    running
        .until(|known| known.len() == AT_ONCE * 3 && known.values().all(|a| *a == late))
        .await;
    zone.set("zk", Ok(&["10.0.0.1"]));
    running.want(dead().chain(["zk".to_owned()]));
    running.until(|known| known.contains_key("zk")).await;
    zone.set("zk", Ok(&["10.0.0.2"]));
    let moved: Answer = Ok(vec![[10, 0, 0, 2].into()]);
    running.until(|known| known["zk"] == moved).await;
    stop.cancel();
}

#[tokio::test]
async fn the_machines_own_names_are_found() {
    let found = look_up("localhost").await.unwrap();
    assert!(found.iter().all(IpAddr::is_loopback) && !found.is_empty());
    assert!(look_up("no-such-host.invalid").await.is_err());
}
