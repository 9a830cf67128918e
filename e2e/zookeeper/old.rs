//! Real servers from before 3.6, which know neither recursive watches nor `multiRead`; those before
//! 3.5 answer no `create2` either.

use meshkeeper::zookeeper::register;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    Config, Mirror, SHORT_SESSION, config, delete, fill, put, read_all, registration::registration,
};
use crate::support::{
    proxy::Proxy,
    wait::until,
    zookeeper::{Setup, ZooKeeper},
};

const VERSIONS: [&str; 2] = ["3.4.14", "3.5.10"];

/// Twice 135 bytes of watch paths each: more than the 128 KiB that one session can re-arm.
const SERVICES: usize = 1_000;

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
