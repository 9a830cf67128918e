//! Real servers from before 3.6, which know neither recursive watches nor `multiRead`; those before
//! 3.5 answer no `create2` either.

use meshkeeper::zookeeper::register;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    Client, Config, Layout, Mirror, SHORT_SESSION, State, config, delete, fill, persistent, put,
    read_all, registration::registration,
};
use crate::support::{
    proxy::Proxy,
    wait::until,
    zookeeper::{Setup, ZooKeeper},
};

const VERSIONS: [&str; 2] = ["3.4.14", "3.5.10"];

/// Twice 135 bytes of watch paths each: more than the 128 KiB that the client can set again on a session.
const SERVICES: usize = 1_000;

/// The default of `maxClientCnxns`.
const LIMIT: usize = 60;

/// A server with the limit of connections that it has unless told otherwise.
fn limited(version: &str, limit: usize) -> ZooKeeper {
    let setup = Setup::of_version(version);
    ZooKeeper::start_as(Setup {
        config: format!("maxClientCnxns={limit}"),
        ..setup
    })
}

/// Services of 20 providers each, whose names have some 400 bytes.
async fn provide(client: &Client, services: usize) {
    let options = persistent();
    let creates = (0..services).map(|service| {
        let (client, options) = (client.clone(), options.clone());
        async move {
            let name = format!("com.example.shop.api.Service{service:04}");
            let parent = format!("/dubbo/{name}/providers");
            client.mkdir(&parent, &options).await.unwrap();
            let create = async |instance: usize| {
                let url = format!(
                    "dubbo%3A%2F%2F10.0.{}.{instance}%3A20880%2F{name}%3Fapplication%3D{}",
                    service % 256,
                    "a".repeat(320)
                );
                let path = format!("{parent}/{url}");
                client.create(&path, b"", &options).await.unwrap();
            };
            futures_util::future::join_all((1..=20).map(create)).await;
        }
    });
    futures_util::future::join_all(creates).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twelve_thousand_providers_need_one_connection_and_survive_a_cut() {
    for version in VERSIONS {
        let server = limited(version, LIMIT);
        let proxy = Proxy::start(server.port()).await;
        let client = server.client().await;
        provide(&client, 600).await;
        let config = Config {
            layout: Layout::dubbo(),
            ..config(&proxy.connect(), "/dubbo")
        };
        let mut mirror = Mirror::start_as(config, |watcher| watcher);
        mirror
            .until("loaded", |m| {
                assert!(server.connections() <= 3);
                m.completed == 1
            })
            .await;
        let providers = mirror
            .znodes
            .keys()
            .filter(|path| path.contains("dubbo%3A"));
        assert_eq!(providers.count(), 12_000);

        let service = "/dubbo/com.example.shop.api.Service0599/providers";
        let (gone, come) = (
            "dubbo%3A%2F%2F10.9.9.8%3A1%2Fa",
            "dubbo%3A%2F%2F10.9.9.9%3A1%2Fa",
        );
        put(&client, &format!("{service}/{gone}"), b"").await;
        let has = |m: &Mirror, name: &str| m.znodes.keys().any(|path| path.ends_with(name));
        mirror.until("it came", |m| has(m, gone)).await;

        // The client would try to set all watches again, on every connection it makes.
        let before = mirror.metric("meshkeeper_zookeeper_sessions_total");
        proxy.cut();
        delete(&client, &format!("{service}/{gone}")).await;
        put(&client, &format!("{service}/{come}"), b"").await;
        mirror
            .until("it went", |m| !has(m, gone) && has(m, come))
            .await;
        assert_eq!(mirror.deleted.len(), 1, "{:?}", mirror.deleted);
        assert_eq!(mirror.completed, 2);
        let sessions = mirror.metric("meshkeeper_zookeeper_sessions_total");
        assert_eq!([before.as_str(), &sessions], ["1", "2"]);
        assert_eq!(
            server.connections(),
            2,
            "the mirror's, and the writing client's"
        );
        mirror.stop().await;
        assert_eq!(server.connections(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_connections_is_named_and_waited_for() {
    for version in VERSIONS {
        let server = limited(version, 2);
        let there = [server.client().await, server.client().await];
        put(&there[0], "/services/orders/i-1", b"1").await;
        let mut mirror = Mirror::start(&server.connect(), "/services");
        let named = |s: &State| s.status.to_string().contains("maxClientCnxns");
        let state = mirror.until_state("the limit", named).await;
        assert!(
            !state.status.to_string().contains("TLS"),
            "{}",
            state.status
        );
        drop(there);
        mirror.until("loaded", |m| m.completed == 1).await;
        mirror.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_old_servers_hold_is_mirrored_through_every_trouble() {
    for version in VERSIONS {
        let mut server = ZooKeeper::start_as(Setup::of_version(version));
        let proxy = Proxy::start(server.port()).await;
        let client = server.client().await;
        for (path, data) in [("orders/stays", "1"), ("orders/goes", "1"), ("empty", "")] {
            put(&client, &format!("/services/{path}"), data.as_bytes()).await;
        }
        let name = fill(&client, SERVICES).await;
        let config = Config {
            session_timeout: SHORT_SESSION,
            ..config(&proxy.connect(), "/services")
        };
        let mut mirror = Mirror::start_as(config, |watcher| watcher);
        mirror.until("loaded", |m| m.completed == 1).await;
        assert_eq!(mirror.znodes, read_all(&client, "/services").await);

        // What changes is followed: a new instance, another weight, a service that goes.
        put(&client, "/services/orders/comes", b"1").await;
        put(&client, "/services/orders/comes", b"drained").await;
        put(&client, &format!("/services/{name}-0500/i"), b"drained").await;
        delete(&client, "/services/orders/goes").await;
        delete(&client, "/services/empty").await;
        mirror
            .until_equal(&read_all(&client, "/services").await)
            .await;

        // A cut, an expiry, a restart: what was missed comes, nothing else goes.
        proxy.refuse();
        mirror.until_disconnected().await;
        delete(&client, "/services/orders/comes").await;
        proxy.resume();
        mirror
            .until_equal(&read_all(&client, "/services").await)
            .await;
        let before = mirror.completed;
        proxy.pause();
        mirror.until_disconnected().await;
        sleep(SHORT_SESSION * 2).await;
        put(&client, "/services/orders/late", b"1").await;
        proxy.resume();
        mirror
            .until_equal(&read_all(&client, "/services").await)
            .await;
        assert!(mirror.completed > before);
        server.kill();
        mirror.until_disconnected().await;
        server.restart();
        let client = server.client().await;
        put(&client, "/services/orders/later", b"1").await;
        mirror
            .until_equal(&read_all(&client, "/services").await)
            .await;

        mirror.deleted.sort();
        assert_eq!(mirror.deleted, ["empty", "orders/comes", "orders/goes"]);
        mirror.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_servers_take_registrations_and_successors() {
    for version in VERSIONS {
        let server = ZooKeeper::start_as(Setup::of_version(version));
        let client = server.client().await;
        let held = |data: &[u8]| {
            let (sender, registered) = watch::channel(false);
            let stop = CancellationToken::new();
            let registration = registration(&server.connect(), data);
            let hold = tokio::spawn(register::hold(registration, sender, stop.clone()));
            (hold, registered, stop)
        };
        let is = async |data: &[u8]| {
            until(&format!("{version}: {data:?}"), async || {
                let found = client.get_data("/services/orders/i-1").await.ok()?;
                (found.0 == data).then_some(())
            })
            .await;
        };
        let first = held(b"first");
        is(b"first").await;
        let second = held(b"second");
        is(b"second").await;
        for (hold, mut registered, stop) in [second, first] {
            registered.wait_for(|is| *is).await.unwrap();
            stop.cancel();
            hold.await.unwrap().unwrap();
        }
        let gone = client.check_stat("/services/orders/i-1").await.unwrap();
        assert!(gone.is_none());
    }
}
