//! What is a mass deregistration and what is none, on real parts: processes with many interfaces, times in which
//! nobody looked, an ensemble that restarts, clocks that are set, and restarts while something is held.

use std::time::Duration;

use meshkeeper::registry::FormatChoice;
use tokio::time::sleep;
use zookeeper_client::{Acls, Client, CreateMode};

use crate::support::{
    meshkeeper::MeshKeeper, proxy::Proxy, tree::Tree, wait::until, zookeeper::ZooKeeper,
};

const HELD: &str = "meshkeeper_guard_held_instances{registry=\"main\"}";
const ALARM: &str = "too many instances went at once";

async fn held(server: &MeshKeeper, count: usize) {
    until(&format!("{count} held instances"), async || {
        ((server.metric(HELD).await? - count as f64).abs() < 0.5).then_some(())
    })
    .await;
}

async fn served(server: &MeshKeeper, service: &str, count: usize) {
    until(&format!("{count} instances of {service}"), async || {
        (server.addresses(service).await.len() == count).then_some(())
    })
    .await;
}

/// Nothing is held and nothing was said, also once it would have been.
async fn nothing_held(server: &MeshKeeper) {
    sleep(Duration::from_millis(2_500)).await;
    held(server, 0).await;
    assert!(!server.log().contains(ALARM), "{}", server.log());
}

async fn persistent(tree: &Tree, service: &str, ids: std::ops::RangeInclusive<u8>) {
    for id in ids {
        let data = format!("10.0.0.{id}:80");
        tree.write_persistent(service, &format!("i{id}"), data.as_bytes())
            .await;
    }
}

async fn delete(tree: &Tree, service: &str, ids: impl IntoIterator<Item = u8>, pause: Duration) {
    for id in ids {
        tree.delete(service, &format!("i{id}")).await;
        sleep(pause).await;
    }
}

async fn session(connect: &str, timeout: Duration) -> Client {
    let connector = Client::connector().with_session_timeout(timeout);
    connector.connect(connect).await.unwrap()
}

/// An ephemeral znode of that session.
async fn register(session: &Client, service: &str, id: &str, address: &str) {
    let options = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
    let path = format!("/services/{service}/{id}");
    session
        .create(&path, address.as_bytes(), &options)
        .await
        .unwrap();
}

const NO_PAUSE: Duration = Duration::ZERO;

/// Seven go within three times the window: seen live, there are never five within one.
const SHORT_WINDOW: &str = "guard: {window: 1s}\nstate: {directory: $FOLDER/state}";
const PACE: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread")]
async fn what_scales_down_while_the_server_is_stopped_or_stands_still_goes_as_if_it_had_been_seen()
{
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    for service in ["live", "stopped", "still"] {
        persistent(&tree, service, 1..=10).await;
    }
    let mut server = MeshKeeper::start_configured(&zookeeper.connect(), SHORT_WINDOW).await;
    delete(&tree, "live", 1..=7, PACE).await;
    served(&server, "live", 3).await;

    assert_eq!(server.terminate().await, Some(0));
    delete(&tree, "stopped", 1..=7, PACE).await;
    server.restart().await;
    served(&server, "stopped", 3).await;

    // Within its session of 4 s.
    server.freeze().await;
    delete(&tree, "still", 1..=7, PACE).await;
    server.wake().await;
    served(&server, "still", 3).await;
    nothing_held(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_at_once_while_the_server_restarts_is_held() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    persistent(&tree, "orders", 1..=10).await;
    let sections = "state: {directory: $FOLDER/state}";
    let mut server = MeshKeeper::start_configured(&zookeeper.connect(), sections).await;
    assert_eq!(server.terminate().await, Some(0));
    delete(&tree, "orders", 1..=7, NO_PAUSE).await;
    server.restart().await;
    held(&server, 7).await;
    assert_eq!(server.addresses("orders").await.len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stood_still_for_longer_than_its_session_judges_by_that_too() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    persistent(&tree, "orders", 1..=10).await;
    let server = MeshKeeper::start_configured(&zookeeper.connect(), SHORT_WINDOW).await;
    server.freeze().await;
    delete(&tree, "orders", 1..=7, Duration::from_millis(900)).await;
    server.wake().await;
    served(&server, "orders", 3).await;
    nothing_held(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_registry_is_not_emptied_by_a_restart_of_the_ensemble() {
    let mut zookeeper = ZooKeeper::start();
    let proxy = Proxy::start(zookeeper.port()).await;
    let tree = Tree::connect(&zookeeper).await;
    let mut sessions = Vec::new();
    // Their sessions end at different times.
    for (n, service) in ["orders", "users", "carts"].into_iter().enumerate() {
        tree.add_service(service).await;
        let timeout = Duration::from_secs(2 + n as u64);
        let provider = session(&proxy.connect(), timeout).await;
        register(&provider, service, "i", &format!("10.0.0.{n}:80")).await;
        sessions.push(provider);
    }
    let server = MeshKeeper::start(&zookeeper.connect()).await;
    served(&server, "carts", 1).await;
    zookeeper.kill();
    proxy.refuse();
    zookeeper.restart();
    held(&server, 3).await;
    for service in ["orders", "users", "carts"] {
        assert_eq!(server.addresses(service).await.len(), 1, "{service}");
    }
    assert_eq!(server.log().matches(ALARM).count(), 1);
    // They come back.
    let tree = Tree::connect(&zookeeper).await;
    for (n, service) in ["orders", "users", "carts"].into_iter().enumerate() {
        let address = format!("10.0.0.{n}:80");
        tree.register(service, "again", address.as_bytes()).await;
    }
    held(&server, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_back_by_the_trip_survives_restarts() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    persistent(&tree, "web", 1..=10).await;
    for service in ["a", "b", "c", "d"] {
        persistent(&tree, service, 1..=10).await;
    }
    let sections = "state: {directory: $FOLDER/state}";
    let mut server = MeshKeeper::start_configured(&zookeeper.connect(), sections).await;
    delete(&tree, "web", 1..=5, NO_PAUSE).await;
    served(&server, "web", 5).await;
    sleep(Duration::from_secs(1)).await;
    delete(&tree, "web", [6], NO_PAUSE).await;
    held(&server, 6).await;
    let all = server.addresses("web").await;
    assert_eq!(all.len(), 10);
    // Another registers under the name of one that is held.
    tree.write_persistent("web", "i2", b"10.0.9.2:80").await;
    held(&server, 5).await;
    let all = server.addresses("web").await;
    for kill in [true, false] {
        if kill {
            written(&zookeeper, &server, 5).await;
            server.kill().await;
        } else {
            assert_eq!(server.terminate().await, Some(0));
        }
        server.restart().await;
        assert_eq!(server.metric(HELD).await, Some(5.0), "killed: {kill}");
        assert_eq!(server.addresses("web").await, all, "killed: {kill}");
    }
}

/// Until the file has so many held instances.
async fn written(zookeeper: &ZooKeeper, server: &MeshKeeper, held: usize) {
    let identity = meshkeeper::state::Identity {
        name: "main".to_owned(),
        connect: zookeeper.connect(),
        root: "/services".to_owned(),
        format: format!("{} {}", FormatChoice::Auto, FormatChoice::Auto.layout()),
    };
    let directory = server.folder().join("state");
    until("the state is written", async || {
        let restored = meshkeeper::state::read(&directory, &identity).ok()??;
        let sum: usize = restored.held.iter().map(|service| service.held.len()).sum();
        (sum == held).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_end_one_after_the_other_are_held_over_a_restart() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    tree.add_service("orders").await;
    let mut sessions = Vec::new();
    for n in 1..=20 {
        let session = session(&zookeeper.connect(), Duration::from_secs(10)).await;
        register(
            &session,
            "orders",
            &format!("i{n}"),
            &format!("10.0.0.{n}:80"),
        )
        .await;
        sessions.push(session);
    }
    let sections = "state: {directory: $FOLDER/state}";
    let mut server = MeshKeeper::start_configured(&zookeeper.connect(), sections).await;
    for session in sessions {
        drop(session);
        sleep(Duration::from_millis(50)).await;
    }
    held(&server, 20).await;
    assert_eq!(server.terminate().await, Some(0));
    server.restart().await;
    assert_eq!(server.metric(HELD).await, Some(20.0));
    assert_eq!(server.addresses("orders").await.len(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_three_processes_with_twenty_interfaces_may_end() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let mut processes = Vec::new();
    for n in 1..=3 {
        let session = session(&zookeeper.connect(), Duration::from_secs(10)).await;
        for interface in 0..20 {
            let service = format!("s{interface}");
            tree.add_service(&service).await;
            // The second has a port for each of them.
            let port = if n == 2 { 8000 + interface } else { 80 };
            register(
                &session,
                &service,
                &format!("i{n}"),
                &format!("10.0.0.{n}:{port}"),
            )
            .await;
        }
        processes.push(session);
    }
    let window = "guard: {window: 2s}";
    let server = MeshKeeper::start_configured(&zookeeper.connect(), window).await;
    served(&server, "s19", 3).await;
    drop(processes.remove(0));
    served(&server, "s19", 2).await;
    nothing_held(&server).await;
    drop(processes.remove(0));
    nothing_held(&server).await;
    for interface in 0..20 {
        let left = server.addresses(&format!("s{interface}")).await;
        assert_eq!(left, ["10.0.0.3:80"], "{interface}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_crash_while_the_others_register_again_are_not_held() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    tree.add_service("orders").await;
    let mut processes = Vec::new();
    for n in 1..=6 {
        let session = session(&zookeeper.connect(), Duration::from_secs(10)).await;
        register(
            &session,
            "orders",
            &format!("i{n}"),
            &format!("10.0.0.{n}:80"),
        )
        .await;
        processes.push(session);
    }
    let server = MeshKeeper::start(&zookeeper.connect()).await;
    served(&server, "orders", 6).await;
    processes.drain(..2);
    // As Dubbo's providers do for each rule.
    for (n, session) in (3..).zip(&processes) {
        let path = format!("/services/orders/i{n}");
        session.delete(&path, None).await.unwrap();
    }
    for (n, session) in (3..).zip(&processes) {
        register(
            session,
            "orders",
            &format!("j{n}"),
            &format!("10.0.0.{n}:80"),
        )
        .await;
    }
    served(&server, "orders", 4).await;
    nothing_held(&server).await;
    let left = (3..=6).map(|n| format!("10.0.0.{n}:80"));
    assert!(left.eq(server.addresses("orders").await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_resolves_to_fewer_addresses_is_followed() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let named = br#"{"host":"db.test","port":80}"#;
    tree.write_persistent("orders", "db", named).await;
    let hosts = |most: u8| -> String {
        let lines = (1..=most).map(|n| format!("10.0.0.{n} db.test\n"));
        ["127.0.0.1 localhost\n".to_owned()]
            .into_iter()
            .chain(lines)
            .collect()
    };
    let connect = zookeeper.connect();
    let server = MeshKeeper::spawn_with_hosts(&connect, &hosts(12), "dns: {refresh: 1s}");
    server.ready().await;
    served(&server, "orders", 12).await;
    server.set_hosts(&hosts(2));
    served(&server, "orders", 2).await;
    nothing_held(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_step_of_the_wall_clock_ends_a_hold_or_lengthens_it() {
    const HOURS: i64 = 3_600;
    const HOLD: Duration = Duration::from_secs(15);
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    persistent(&tree, "orders", 1..=10).await;
    let sections = "guard: {holdFor: 15s}\nstate: {directory: $FOLDER/state}";
    let mut server = MeshKeeper::start_with_clock(&zookeeper.connect(), sections).await;
    server.set_clock(0);
    let went = std::time::Instant::now();
    delete(&tree, "orders", 1..=6, NO_PAUSE).await;
    held(&server, 6).await;
    for step in [2 * HOURS, -2 * HOURS] {
        server.set_clock(step);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(server.metric(HELD).await, Some(6.0), "{step}");
    }
    // While it is down, too.
    for step in [5 * HOURS, -5 * HOURS] {
        assert_eq!(server.terminate().await, Some(0));
        server.set_clock(step);
        server.restart().await;
        let held = server.metric(HELD).await;
        assert!(
            held == Some(6.0) || went.elapsed() > HOLD,
            "{step}: {held:?}"
        );
    }
    held(&server, 0).await;
    let lasted = went.elapsed();
    assert!(lasted >= HOLD && lasted < 2 * HOLD, "{lasted:?}");
    assert_eq!(server.addresses("orders").await.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn registrations_that_lapse_all_at_once_stay_served() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    persistent(&tree, "orders", 1..=10).await;
    let registry = format!(
        "{{name: main, connect: \"{}\", sessionTimeout: 2s, ttl: 3s}}",
        zookeeper.connect()
    );
    let server = MeshKeeper::spawn_of(&registry);
    server.ready().await;
    held(&server, 10).await;
    let taking = async || {
        let services = server.api("services?name=orders").await;
        let instances = services[0]["instances"].as_array().cloned().unwrap();
        instances
            .iter()
            .filter(|i| i["health"] == "healthy")
            .count()
    };
    assert_eq!(taking().await, 10);
    // Who writes again is registered again.
    for id in 1..=10 {
        let data = format!("10.0.0.{id}:80");
        tree.write("orders", &format!("i{id}"), data.as_bytes())
            .await;
    }
    held(&server, 0).await;
    assert_eq!(taking().await, 10);
}
