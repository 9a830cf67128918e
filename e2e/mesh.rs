//! The main job on real parts: ephemeral znodes in a real ZooKeeper, a real Envoy in front of real
//! requests.

use std::{collections::BTreeMap, time::Duration};

use http::StatusCode;

use crate::support::{
    backend::Backend,
    envoy::Envoy,
    http::Http,
    meshkeeper::MeshKeeper,
    traffic::{Traffic, chi_square, counts, pair_chi_square, picks, score},
    tree::Tree,
    wait::until,
    zookeeper::ZooKeeper,
};

/// Beyond it a chance of about 1 in 30,000 was hit, or the spread is wrong.
const SUSPICIOUS: f64 = 4.0;

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_spread_at_random_by_weight() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let backends = Backend::start_many(4).await;
    let mut shares = BTreeMap::new();
    for (backend, weight) in backends.iter().zip([1, 2, 3, 10]) {
        let address = backend.address.to_string();
        tree.register("orders", &address, &json(backend, weight))
            .await;
        shares.insert(address, f64::from(weight));
    }
    let server = MeshKeeper::start(&zookeeper.connect()).await;
    let envoy = Envoy::start(&server, "spread").await;
    until("all hosts", async || {
        (envoy.hosts("orders").await.len() == 4).then_some(())
    })
    .await;

    let picks = picks(envoy.outbound, "orders", 4, 5_000).await;
    let share = score(chi_square(
        &counts(picks.iter().flatten().cloned()),
        &shares,
    ));
    let pairs = score(pair_chi_square(&picks));
    println!("scores over 20,000 requests: shares {share:.2}, pairs {pairs:.2}");
    assert!(
        share < SUSPICIOUS,
        "shares: {:?}",
        counts(picks.iter().flatten())
    );
    assert!(pairs < SUSPICIOUS, "consecutive picks depend on each other");
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_follows_what_is_registered() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let backends = Backend::start_many(2).await;
    let server = MeshKeeper::start(&zookeeper.connect()).await;
    let envoy = Envoy::start(&server, "follow").await;
    let http = Http::new();
    let status = async |host: &str| http.get(envoy.outbound, host, "/").await.unwrap().0;

    assert_eq!(status("orders").await, StatusCode::NOT_FOUND);
    tree.register("orders", "a", backends[0].address.to_string().as_bytes())
        .await;
    for host in [
        "orders",
        "ORDERS",
        "orders.mesh",
        "orders:8080",
        "orders.mesh.:1",
    ] {
        let seen = async || (status(host).await == StatusCode::OK).then_some(());
        until(&format!("an answer of {host}"), seen).await;
    }

    tree.register("orders", "b", &json(&backends[1], 100)).await;
    answered_by(&envoy, &backends[1]).await;
    tree.write("orders", "a", &json(&backends[0], 0)).await;
    until("the first is drained", async || {
        let hosts = envoy.hosts("orders").await;
        (hosts.get(&backends[0].address.to_string())?.1 == "DRAINING").then_some(())
    })
    .await;
    let answers = picks(envoy.outbound, "orders", 1, 50).await.concat();
    assert!(
        answers
            .iter()
            .all(|answer| *answer == backends[1].address.to_string())
    );

    tree.write("orders", "a", &json(&backends[0], 100)).await;
    answered_by(&envoy, &backends[0]).await;
    tree.delete("orders", "b").await;
    until("the second is gone", async || {
        (envoy.hosts("orders").await.len() == 1).then_some(())
    })
    .await;
    tree.delete("orders", "a").await;
    let empty = async || (status("orders").await == StatusCode::SERVICE_UNAVAILABLE).then_some(());
    until("503 without instances", empty).await;
    tree.delete_service("orders").await;
    let unknown = async || (status("orders").await == StatusCode::NOT_FOUND).then_some(());
    until("404 without the service", unknown).await;
    assert!(envoy.rejections().await.is_empty(), "{}", envoy.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_zookeeper_fails_no_request_and_removes_nothing() {
    let mut zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let backends = Backend::start_many(3).await;
    for (at, backend) in backends.iter().enumerate() {
        // Persistent, so that they outlive the sessions that wrote them.
        tree.write_persistent("orders", &format!("i{at}"), &json(backend, 100))
            .await;
    }
    let server = MeshKeeper::start(&zookeeper.connect()).await;
    let envoy = Envoy::start(&server, "outage").await;
    until("all hosts", async || {
        (envoy.hosts("orders").await.len() == 3).then_some(())
    })
    .await;
    let traffic = Traffic::start(envoy.outbound, "orders");

    zookeeper.kill();
    until("the outage is noticed", async || {
        let connected = server
            .metric("meshkeeper_zookeeper_connected{registry=\"main\"}")
            .await?;
        (connected == 0.0).then_some(())
    })
    .await;
    // Longer than the session's time-out.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(envoy.hosts("orders").await.len(), 3);
    assert_eq!(server.addresses("orders").await.len(), 3);
    zookeeper.restart();

    let tree = Tree::connect(&zookeeper).await;
    tree.delete("orders", "i0").await;
    until("what was deregistered is gone", async || {
        (envoy.hosts("orders").await.len() == 2).then_some(())
    })
    .await;
    let outcomes = traffic.stop().await;
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["200"], "{outcomes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_fails_no_request_and_resends_nothing_that_is_unchanged() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let backends = Backend::start_many(2).await;
    for (at, backend) in backends.iter().enumerate() {
        tree.register("orders", &format!("i{at}"), &json(backend, 100))
            .await;
        tree.register(&format!("other{at}"), "i", &json(backend, 100))
            .await;
    }
    let mut server = MeshKeeper::start(&zookeeper.connect()).await;
    let envoy = Envoy::start(&server, "killed").await;
    until("all hosts", async || {
        (envoy.hosts("orders").await.len() == 2).then_some(())
    })
    .await;
    let traffic = Traffic::start(envoy.outbound, "orders");
    let before = envoy.stats().await;

    server.kill().await;
    server.restart().await;
    until("Envoy is back and has ACKed", async || {
        let clients = server.api("clients").await;
        let types = clients[0]["types"].as_object()?;
        (types.len() == 4 && types.values().all(|t| t["state"] != "STALE")).then_some(())
    })
    .await;
    tree.register("later", "i", &json(&backends[0], 100)).await;
    until("it follows again", async || {
        (envoy.hosts("later").await.len() == 1).then_some(())
    })
    .await;

    let outcomes = traffic.stop().await;
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["200"], "{outcomes:?}");
    let after = envoy.stats().await;
    let changed = |name: &str| after.get(name).copied() != before.get(name).copied();
    assert!(
        !changed("cluster.orders.update_success"),
        "the endpoints were sent again"
    );
    assert!(
        !changed("cluster_manager.cluster_modified"),
        "a cluster was sent again"
    );
    assert!(
        !changed("listener_manager.listener_modified"),
        "a listener was sent again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_told_to_stop_drains_and_its_sidecars_go_on() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let backend = Backend::start().await;
    tree.register("orders", "i", &json(&backend, 100)).await;
    let mut server = MeshKeeper::start(&zookeeper.connect()).await;
    let envoy = Envoy::start(&server, "drain").await;
    answered_by(&envoy, &backend).await;

    let start = std::time::Instant::now();
    assert_eq!(server.terminate().await, Some(0));
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "within the deadline"
    );
    let answers = picks(envoy.outbound, "orders", 1, 20).await.concat();
    assert!(
        answers
            .iter()
            .all(|answer| *answer == backend.address.to_string())
    );
}

async fn answered_by(envoy: &Envoy, backend: &Backend) {
    let http = Http::new();
    let expected = backend.address.to_string();
    until("an answer of that instance", async || {
        let (_, body) = http.get(envoy.outbound, "orders", "/").await.ok()?;
        (body == expected).then_some(())
    })
    .await;
}

fn json(backend: &Backend, weight: u32) -> Vec<u8> {
    let (host, port) = (backend.address.ip(), backend.address.port());
    format!(r#"{{"host":"{host}","port":{port},"weight":{weight}}}"#).into_bytes()
}
