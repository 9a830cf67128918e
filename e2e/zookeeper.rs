//! The ZooKeeper side against a real server: what is mirrored is what is there, through every
//! kind of trouble, and nothing that stays is ever removed.

mod audit;
mod limits;
mod old;
mod registration;
mod security;
mod silent;
mod unreadable;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use meshkeeper::{
    registry::{Batch, Event, layout::Layout},
    zookeeper::{Config, Error, Metrics, Security, State, Status, Watcher},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use zookeeper_client::{Acls, Client, CreateMode, CreateOptions};

use crate::support::{
    proxy::Proxy,
    zookeeper::{SESSION, SHORT_SESSION, ZooKeeper, free_port},
};

const PATIENCE: Duration = Duration::from_secs(40);

fn persistent() -> CreateOptions<'static> {
    CreateMode::Persistent.with_acls(Acls::anyone_all())
}

async fn put(client: &Client, path: &str, data: &[u8]) {
    if let Some((parent, _)) = path.rsplit_once('/')
        && !parent.is_empty()
    {
        client.mkdir(parent, &persistent()).await.unwrap();
    }
    match client.create(path, data, &persistent()).await {
        Err(zookeeper_client::Error::NodeExists) => {
            client.set_data(path, data, None).await.unwrap();
        }
        created => drop(created.unwrap()),
    }
}

async fn delete(client: &Client, path: &str) {
    client.delete(path, None).await.unwrap();
}

type Znodes = BTreeMap<String, Bytes>;

fn znodes(list: &[(&str, &str)]) -> Znodes {
    let owned = |(path, data): &(&str, &str)| (path.to_string(), Bytes::from(data.to_string()));
    list.iter().map(owned).collect()
}

/// What a plain client reads: services without data, instances with theirs.
async fn read_all(client: &Client, root: &str) -> Znodes {
    let mut all = Znodes::new();
    for service in client.list_children(root).await.unwrap() {
        let path = format!("{root}/{service}");
        for instance in client.list_children(&path).await.unwrap() {
            let (data, _) = (client.get_data(&format!("{path}/{instance}")).await).unwrap();
            all.insert(format!("{service}/{instance}"), Bytes::from(data));
        }
        all.insert(service, Bytes::new());
    }
    all
}

fn config(connect: &str, root: &str) -> Config {
    Config {
        name: "main".to_owned(),
        connect: connect.to_owned(),
        connect_key: "registries[0].connect".to_owned(),
        root: root.to_owned(),
        layout: Layout::flat(),
        session_timeout: SESSION,
        security: Security::default(),
    }
}

/// A running watcher, and what its batches add up to.
struct Mirror {
    batches: mpsc::Receiver<Batch>,
    state: watch::Receiver<State>,
    metrics: prometheus::Registry,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
    znodes: Znodes,
    deleted: Vec<String>,
    unreadable: BTreeSet<String>,
    completed: usize,
}

impl Mirror {
    fn start(connect: &str, root: &str) -> Self {
        Self::start_as(config(connect, root), |watcher| watcher)
    }

    fn start_one_shot(connect: &str, root: &str) -> Self {
        Self::start_as(config(connect, root), Watcher::only_one_shot)
    }

    fn start_as(config: Config, how: impl FnOnce(Watcher) -> Watcher) -> Self {
        let metrics = prometheus::Registry::new();
        let registered = Metrics::register(&metrics).unwrap();
        let (sender, batches) = mpsc::channel(4);
        let (state_sender, state) = watch::channel(State::new());
        let stop = CancellationToken::new();
        let watcher = Watcher::new(config, &registered, sender, state_sender).unwrap();
        let task = tokio::spawn(how(watcher).run(stop.clone()));
        Self {
            batches,
            state,
            metrics,
            stop,
            task,
            znodes: Znodes::new(),
            deleted: Vec::new(),
            unreadable: BTreeSet::new(),
            completed: 0,
        }
    }

    fn apply(&mut self, batch: Batch) {
        self.completed += usize::from(batch.complete);
        for event in batch.events {
            match event {
                Event::Put { path, data, stat } => {
                    assert!(stat.czxid > 0 && stat.mzxid > 0, "{path} has no stat");
                    self.znodes.insert(path.to_string(), data);
                }
                Event::Unreadable { path } => {
                    self.unreadable.insert(path.to_string());
                }
                Event::Delete { path } => {
                    let below = format!("{path}/");
                    (self.znodes).retain(|known, _| **known != *path && !known.starts_with(&below));
                    self.deleted.push(path.to_string());
                }
            }
        }
    }

    /// Takes batches until `holds`.
    async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let taken = timeout(PATIENCE, async {
            while !holds(self) {
                let batch = self.batches.recv().await.expect("a running watcher");
                self.apply(batch);
            }
        })
        .await;
        let state = &*self.state.borrow();
        assert!(
            taken.is_ok(),
            "{what}: {} znodes, {state:?}",
            self.znodes.len()
        );
    }

    async fn until_equal(&mut self, expected: &Znodes) {
        self.until("equal to the tree", |mirror| mirror.znodes == *expected)
            .await;
    }

    async fn until_state(&mut self, what: &str, holds: impl Fn(&State) -> bool) -> State {
        let waiting = timeout(PATIENCE, self.state.wait_for(holds)).await;
        let state = waiting.map(|state| state.expect("a running watcher").clone());
        state.unwrap_or_else(|_| panic!("{what}: {:?}", *self.state.borrow()))
    }

    async fn until_disconnected(&mut self) {
        let disconnected = |s: &State| matches!(s.status, Status::Disconnected { .. });
        self.until_state("disconnected", disconnected).await;
    }

    /// Nothing was published meanwhile, but perhaps that it may be old.
    fn assert_silent(&mut self) {
        while let Ok(published) = self.batches.try_recv() {
            let silent = published.events.is_empty() && !published.complete;
            assert!(silent, "{published:?}");
        }
    }

    fn metric(&self, name: &str) -> String {
        let families = self.metrics.gather();
        let family = families.iter().find(|f| f.name() == name).expect(name);
        let metric = &family.get_metric()[0];
        (metric.get_gauge().get_value() + metric.get_counter().get_value()).to_string()
    }

    async fn stop(self) {
        self.stop.cancel();
        let ended = timeout(Duration::from_secs(5), self.task).await;
        ended.expect("an end soon").unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_registered_is_mirrored_and_followed() {
    let server = ZooKeeper::start();
    let client = server.client().await;
    let hostile: &[u8] = &[0, 0xff, 0xfe, b'{', 0x80];
    put(&client, "/services/orders/i-1", b"10.0.0.1:80").await;
    put(&client, "/services/orders/i-1/deep", b"ignored").await;
    put(&client, "/services/empty", b"a service's own data").await;
    put(&client, "/services/päth +%/{hostile}", hostile).await;
    put(&client, "/other/orders/i-9", b"not ours").await;

    let mut mirror = Mirror::start(&server.connect(), "/services");
    let mut expected = znodes(&[
        ("empty", ""),
        ("orders", ""),
        ("orders/i-1", "10.0.0.1:80"),
        ("päth +%", ""),
    ]);
    expected.insert("päth +%/{hostile}".into(), Bytes::from_static(hostile));
    mirror.until("loaded", |m| m.completed == 1).await;
    assert_eq!(mirror.znodes, expected);
    let synced = |s: &State| s.status == Status::Synced && s.loaded;
    mirror.until_state("synced", synced).await;

    put(&client, "/services/orders/i-1", b"10.0.0.1:81").await;
    put(&client, "/services/orders/i-2", b"10.0.0.2:80").await;
    put(&client, "/services/users/u-1", b"10.0.1.1:80").await;
    delete(&client, "/services/empty").await;
    mirror
        .until_equal(&read_all(&client, "/services").await)
        .await;
    assert_eq!(mirror.deleted, ["empty"]);

    delete(&client, "/services/users/u-1").await;
    delete(&client, "/services/users").await;
    mirror
        .until_equal(&read_all(&client, "/services").await)
        .await;
    assert_eq!(mirror.completed, 1, "one load, then increments");
    assert_eq!(mirror.metric("meshkeeper_zookeeper_connected"), "1");
    assert_eq!(mirror.metric("meshkeeper_zookeeper_resyncs_total"), "0");
    assert_eq!(server.sessions(), 2);
    mirror.stop().await;
    assert_eq!(server.sessions(), 1, "of the writing client");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_and_a_chroot_that_come_later_are_waited_for() {
    let server = ZooKeeper::start();
    let client = server.client().await;
    let connect = format!("{}/mesh", server.connect());
    let mut mirror = Mirror::start(&connect, "/services");
    let mut one_shot = Mirror::start_one_shot(&connect, "/services");
    for mirror in [&mut mirror, &mut one_shot] {
        let absent = |s: &State| matches!(s.status, Status::RootAbsent { .. });
        let state = mirror.until_state("the root is missing", absent).await;
        assert!(!state.loaded);
        assert!(state.status.to_string().contains("/mesh/services"));
    }
    put(&client, "/mesh/services/orders/i-1", b"1").await;
    let expected = znodes(&[("orders", ""), ("orders/i-1", "1")]);
    for mirror in [&mut mirror, &mut one_shot] {
        mirror.until_equal(&expected).await;
        assert!(mirror.completed > 0 && mirror.deleted.is_empty());
    }
    // And a root that goes takes everything along, and comes back.
    for path in ["/orders/i-1", "/orders", ""] {
        delete(&client, &format!("/mesh/services{path}")).await;
    }
    for mirror in [&mut mirror, &mut one_shot] {
        mirror.until_equal(&Znodes::new()).await;
    }
    put(&client, "/mesh/services/orders/i-1", b"1").await;
    for mut mirror in [mirror, one_shot] {
        mirror.until_equal(&expected).await;
        mirror.stop().await;
    }
}

/// Creates, changes and deletes for a while; `stable/*` stays.
async fn churn(client: &Client, rounds: usize) {
    for round in 0..rounds {
        let service = format!("/services/s-{}", round % 7);
        for instance in 0..5 {
            let path = format!("{service}/i-{instance}");
            match (round + instance) % 3 {
                0 => put(client, &path, format!("{round}").as_bytes()).await,
                1 => drop(client.delete(&path, None).await),
                _ => drop(client.set_data(&path, b"changed", None).await),
            }
        }
        drop(client.delete(&service, None).await);
    }
}

async fn put_stable(client: &Client, count: usize) {
    put(client, "/services/stable", b"").await;
    let options = persistent();
    let creates = (0..count).map(|i| {
        let client = client.clone();
        let options = options.clone();
        async move {
            let path = format!("/services/stable/i-{i}");
            client.create(&path, b"stable", &options).await.unwrap();
        }
    });
    futures_util::future::join_all(creates).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_and_goes_during_the_load_ends_up_right() {
    let server = ZooKeeper::start();
    let client = server.client().await;
    put_stable(&client, 3_000).await;
    churn(&client, 20).await;
    for how in [Mirror::start, Mirror::start_one_shot] {
        let churning = tokio::spawn({
            let client = client.clone();
            async move { churn(&client, 150).await }
        });
        let mut mirror = how(&server.connect(), "/services");
        mirror.until("loaded", |m| m.completed == 1).await;
        churning.await.unwrap();
        mirror
            .until_equal(&read_all(&client, "/services").await)
            .await;
        let stable = |path: &String| path.starts_with("stable");
        assert!(!mirror.deleted.iter().any(stable));
        mirror.stop().await;
    }
}

/// The client never re-arms a persistent watch when it reconnects within its session.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_cut_the_watch_lives_and_what_was_missed_comes_as_one_change() {
    let server = ZooKeeper::start();
    let proxy = Proxy::start(server.port()).await;
    let client = server.client().await;
    put(&client, "/services/orders/stays", b"1").await;
    put(&client, "/services/orders/goes", b"1").await;
    put(&client, "/services/orders/changes", b"1").await;
    let mut mirror = Mirror::start(&proxy.connect(), "/services");
    mirror.until("loaded", |m| m.completed == 1).await;

    proxy.refuse();
    mirror.until_disconnected().await;
    delete(&client, "/services/orders/goes").await;
    put(&client, "/services/orders/changes", b"2").await;
    put(&client, "/services/orders/comes", b"1").await;
    mirror.assert_silent();
    assert_eq!(mirror.metric("meshkeeper_zookeeper_connected"), "0");
    proxy.resume();
    let batch = timeout(PATIENCE, mirror.batches.recv())
        .await
        .unwrap()
        .unwrap();
    assert!(batch.complete);
    let paths: Vec<&str> = (batch.events.iter())
        .map(|event| match event {
            Event::Put { path, .. } | Event::Delete { path } | Event::Unreadable { path } => {
                &**path
            }
        })
        .collect();
    assert_eq!(paths, ["orders/changes", "orders/comes", "orders/goes"]);
    mirror.apply(batch);
    assert_eq!(mirror.znodes, read_all(&client, "/services").await);

    for round in 0..3 {
        proxy.cut();
        let resyncs = 2 + round;
        mirror
            .until("compared again", |m| m.completed == 1 + resyncs)
            .await;
        let path = format!("/services/orders/after-{round}");
        put(&client, &path, b"seen").await;
        mirror
            .until_equal(&read_all(&client, "/services").await)
            .await;
    }
    assert_eq!(mirror.deleted, ["orders/goes"]);
    assert_eq!(mirror.metric("meshkeeper_zookeeper_resyncs_total"), "4");
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_expired_removes_nothing() {
    let server = ZooKeeper::start();
    let proxy = Proxy::start(server.port()).await;
    let client = server.client().await;
    put(&client, "/services/orders/i-1", b"1").await;
    let config = Config {
        layout: Layout::flat(),
        session_timeout: SHORT_SESSION,
        ..config(&proxy.connect(), "/services")
    };
    let mut mirror = Mirror::start_as(config, |watcher| watcher);
    mirror.until("loaded", |m| m.completed == 1).await;

    proxy.pause();
    mirror.until_disconnected().await;
    // Past the session's end; what is proved is that nothing comes of it.
    sleep(SHORT_SESSION * 2).await;
    put(&client, "/services/orders/i-2", b"2").await;
    mirror.assert_silent();
    proxy.resume();
    mirror
        .until_equal(&read_all(&client, "/services").await)
        .await;
    assert!(mirror.deleted.is_empty());
    put(&client, "/services/orders/i-3", b"3").await;
    mirror
        .until_equal(&read_all(&client, "/services").await)
        .await;
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_absent_and_later_killed_is_waited_for() {
    let mut server = ZooKeeper::absent();
    let connect = format!("no-such-host.invalid:2181,{}", server.connect());
    let mut mirror = Mirror::start(&connect, "/services");
    let told = |s: &State| matches!(&s.status, Status::Connecting { reason: Some(_) });
    let state = mirror.until_state("a reason", told).await;
    let text = state.status.to_string();
    assert!(
        text.contains("no-such-host.invalid does not resolve"),
        "{text}"
    );
    assert!(text.contains(&server.connect()), "{text}");
    assert!(!state.loaded);

    server.restart();
    let client = server.client().await;
    put(&client, "/services/orders/i-1", b"1").await;
    let expected = znodes(&[("orders", ""), ("orders/i-1", "1")]);
    mirror.until_equal(&expected).await;

    server.kill();
    mirror.until_disconnected().await;
    assert!(mirror.state.borrow().loaded);
    mirror.assert_silent();
    server.restart();
    let client = server.client().await;
    put(&client, "/services/orders/i-2", b"2").await;
    mirror
        .until_equal(&read_all(&client, "/services").await)
        .await;
    assert!(mirror.deleted.is_empty());
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_dead_server_of_two_behind_a_chroot_does_no_harm() {
    let server = ZooKeeper::start();
    let client = server.client().await;
    put(&client, "/mesh/a/services/orders/i-1", b"1").await;
    let connect = format!("127.0.0.1:{},{}/mesh/a", free_port(), server.connect());
    for how in [Mirror::start, Mirror::start_one_shot] {
        let mut mirror = how(&connect, "/services");
        let expected = znodes(&[("orders", ""), ("orders/i-1", "1")]);
        mirror.until_equal(&expected).await;
        mirror.stop().await;
    }
    // The chroot itself as the root, and the ensemble's own root without ZooKeeper's znodes.
    let mut mirror = Mirror::start(&connect, "/");
    let expected = znodes(&[("services", ""), ("services/orders", "")]);
    mirror.until_equal(&expected).await;
    mirror.stop().await;
    let mut mirror = Mirror::start(&server.connect(), "/");
    mirror
        .until_equal(&znodes(&[("mesh", ""), ("mesh/a", "")]))
        .await;
    mirror.stop().await;
}

/// Services of one instance each, `NAME-0000` and so on, whose watch paths have some 135 bytes.
async fn fill(client: &Client, services: usize) -> Arc<String> {
    let name = Arc::new("n".repeat(120));
    let options = persistent();
    let creates = (0..services).map(|i| {
        let (client, name, options) = (client.clone(), Arc::clone(&name), options.clone());
        async move {
            let service = format!("/services/{name}-{i:04}");
            client.create(&service, b"", &options).await.unwrap();
            let instance = format!("{service}/i");
            client.create(&instance, b"1", &options).await.unwrap();
        }
    });
    futures_util::future::join_all(creates).await;
    name
}

/// The client cannot set more than 128 KiB of one-shot watches again after a reconnect.
#[tokio::test(flavor = "multi_thread")]
async fn one_shot_watches_of_any_length_survive_a_cut() {
    const SERVICES: usize = 1_200;
    let server = ZooKeeper::start();
    let proxy = Proxy::start(server.port()).await;
    let client = server.client().await;
    put(&client, "/services/orders/stays", b"1").await;
    put(&client, "/services/orders/goes", b"1").await;
    let name = fill(&client, SERVICES).await;

    let mut mirror = Mirror::start_one_shot(&proxy.connect(), "/services");
    mirror.until("loaded", |m| m.completed == 1).await;
    assert_eq!(mirror.znodes.len(), 2 * SERVICES + 3);
    // 1,200 lists and as many instances of some 135 bytes each.
    assert_eq!(server.connections(), 2, "beside that of the writing client");
    put(&client, "/services/orders/comes", b"1").await;
    put(&client, "/services/orders/comes", b"2").await;
    mirror
        .until_equal(&read_all(&client, "/services").await)
        .await;

    proxy.refuse();
    mirror.until_disconnected().await;
    delete(&client, "/services/orders/goes").await;
    mirror.assert_silent();
    proxy.resume();
    mirror.until("compared again", |m| m.completed == 2).await;
    assert_eq!(mirror.deleted, ["orders/goes"]);
    for i in [0, SERVICES - 1] {
        put(&client, &format!("/services/{name}-{i:04}/i"), b"2").await;
        put(&client, &format!("/services/{name}-{i:04}/j"), b"1").await;
    }
    delete(&client, "/services/orders/stays").await;
    delete(&client, "/services/orders/comes").await;
    delete(&client, "/services/orders").await;
    mirror
        .until_equal(&read_all(&client, "/services").await)
        .await;
    assert_eq!(mirror.completed, 2, "no further trouble");
    assert_eq!(server.connections(), 2, "the old session has none");
    mirror.stop().await;
    assert_eq!(server.connections(), 1, "of the writing client");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_is_gone_ends_the_watcher() {
    let server = ZooKeeper::start();
    put(&server.client().await, "/services/orders/i-1", b"1").await;
    let Mirror { batches, task, .. } = Mirror::start(&server.connect(), "/services");
    drop(batches);
    let ended = timeout(PATIENCE, task).await.unwrap().unwrap();
    assert!(matches!(ended, Err(Error::Abandoned { .. })));
}
