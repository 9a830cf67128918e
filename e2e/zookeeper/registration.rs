//! The registering side: one ephemeral znode, held.

use std::time::Duration;

use meshkeeper::zookeeper::{
    Security,
    register::{self, Registration},
};
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Mirror, PATIENCE, put, znodes};
use crate::support::{
    proxy::Proxy,
    zookeeper::{SHORT_SESSION, ZooKeeper},
};

pub(super) fn registration(connect: &str, data: &[u8]) -> Registration {
    Registration {
        connect: connect.to_owned(),
        root: "/services".to_owned(),
        service: "orders".to_owned(),
        id: "i-1".to_owned(),
        data: data.to_vec(),
        check: |_, data| match data {
            b"bad" => Err("bad".to_owned()),
            _ => Ok(()),
        },
        session_timeout: SHORT_SESSION,
        security: Security::default(),
    }
}

struct Held {
    registered: watch::Receiver<bool>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), register::Error>>,
}

impl Held {
    async fn start(registration: Registration) -> Self {
        let (sender, registered) = watch::channel(false);
        let stop = CancellationToken::new();
        let task = tokio::spawn(register::hold(registration, sender, stop.clone()));
        let mut held = Self {
            registered,
            stop,
            task,
        };
        held.until(true).await;
        held
    }

    async fn until(&mut self, registered: bool) {
        let waiting = self.registered.wait_for(|is| *is == registered);
        timeout(PATIENCE, waiting).await.unwrap().unwrap();
    }

    async fn stop(self) {
        self.stop.cancel();
        let ended = timeout(Duration::from_secs(5), self.task).await;
        ended.expect("an end soon").unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_is_held_through_an_expiry_and_gone_at_once_after_stop() {
    let server = ZooKeeper::start();
    let proxy = Proxy::start(server.port()).await;
    let client = server.client().await;
    let path = "/mesh/services/orders/i-1";
    let connect = format!("{}/mesh", proxy.connect());
    let mut held = Held::start(registration(&connect, b"first")).await;
    let (data, first) = client.get_data(path).await.unwrap();
    assert_eq!(data, b"first");
    assert_ne!(first.ephemeral_owner, 0);

    proxy.cut();
    proxy.pause();
    held.until(false).await;
    proxy.resume();
    held.until(true).await;
    let (_, second) = client.get_data(path).await.unwrap();
    assert_ne!(second.ephemeral_owner, first.ephemeral_owner);

    held.stop().await;
    assert_eq!(client.check_stat(path).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_replaces_what_a_dead_predecessor_left() {
    let server = ZooKeeper::start();
    let client = server.client().await;
    let connect = server.connect();
    let dead = Held::start(registration(&connect, b"dead")).await;
    let mut mirror = Mirror::start(&connect, "/services");
    mirror.until("loaded", |m| m.completed == 1).await;
    let lives = Held::start(registration(&connect, b"lives")).await;
    mirror
        .until_equal(&znodes(&[("orders", ""), ("orders/i-1", "lives")]))
        .await;
    // The end of the predecessor, however late, does not take the successor along.
    dead.stop().await;
    let (data, _) = client.get_data("/services/orders/i-1").await.unwrap();
    assert_eq!(data, b"lives");
    lives.stop().await;
    mirror.until_equal(&znodes(&[("orders", "")])).await;

    put(&client, "/services/orders/i-1", b"by hand").await;
    let (sender, _) = watch::channel(false);
    let refused = register::hold(
        registration(&connect, b"x"),
        sender,
        CancellationToken::new(),
    );
    let refused = timeout(PATIENCE, refused).await.unwrap();
    assert!(matches!(refused, Err(register::Error::Occupied { .. })));
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_znode_that_somebody_deletes_is_created_again_within_the_session() {
    let server = ZooKeeper::start();
    let client = server.client().await;
    let held = Held::start(registration(&server.connect(), b"here")).await;
    let path = "/services/orders/i-1";
    let (_, first) = client.get_data(path).await.unwrap();
    let owner = first.ephemeral_owner;
    let mut mirror = Mirror::start(&server.connect(), "/services");
    let expected = znodes(&[("orders", ""), ("orders/i-1", "here")]);
    mirror.until_equal(&expected).await;

    client.delete(path, None).await.unwrap();
    let again = async |older: i64| {
        timeout(PATIENCE, async {
            loop {
                match client.check_stat(path).await.unwrap() {
                    Some(stat) if stat.czxid > older => return stat,
                    _ => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        })
        .await
        .expect("it comes again")
    };
    let second = again(first.czxid).await;
    assert_eq!(second.ephemeral_owner, owner, "the session lives on");
    // The whole service, as `deleteall` does.
    drop(client.delete(path, None).await);
    drop(client.delete("/services/orders", None).await);
    again(second.czxid).await;
    mirror.until_equal(&expected).await;
    held.stop().await;
    assert_eq!(client.check_stat(path).await.unwrap(), None);
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_taken_over_waits_and_registers_again_when_the_successor_goes() {
    let server = ZooKeeper::start();
    let client = server.client().await;
    let path = "/services/orders/i-1";
    let mut first = Held::start(registration(&server.connect(), b"first")).await;
    let second = Held::start(registration(&server.connect(), b"second")).await;
    first.until(false).await;
    assert_eq!(client.get_data(path).await.unwrap().0, b"second");
    second.stop().await;
    first.until(true).await;
    assert_eq!(client.get_data(path).await.unwrap().0, b"first");

    first.stop().await;
    assert_eq!(client.check_stat(path).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_does_not_wait_for_a_server_that_is_gone() {
    let mut server = ZooKeeper::start();
    let held = Held::start(registration(&server.connect(), b"here")).await;
    server.kill();
    let began = std::time::Instant::now();
    held.stop().await;
    assert!(
        began.elapsed() < Duration::from_secs(6),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_wrote_outlives_the_session_and_what_cannot_be_served_does_not() {
    let server = ZooKeeper::start();
    let proxy = Proxy::start(server.port()).await;
    let client = server.client().await;
    let path = "/services/orders/i-1";
    let mut held = Held::start(registration(&proxy.connect(), b"weight 100")).await;
    let expire = async |held: &mut Held| {
        proxy.cut();
        proxy.pause();
        held.until(false).await;
        proxy.resume();
        held.until(true).await;
        client.get_data(path).await.unwrap().0
    };
    for data in [b"weight 0", b"weight 9"] {
        client.set_data(path, data, None).await.unwrap();
        read(&client, path).await;
        assert_eq!(expire(&mut held).await, data);
    }
    client.set_data(path, b"bad", None).await.unwrap();
    read(&client, path).await;
    assert_eq!(expire(&mut held).await, b"weight 9");
    // Within the session, and written while there is no connection.
    proxy.cut();
    client.set_data(path, b"weight 7", None).await.unwrap();
    read(&client, path).await;
    let deleted = client.get_data(path).await.unwrap().1.czxid;
    client.delete(path, None).await.unwrap();
    let again = timeout(PATIENCE, async {
        loop {
            match client.get_data(path).await {
                Ok((data, stat)) if stat.czxid > deleted => return data,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    });
    assert_eq!(again.await.expect("it comes again"), b"weight 7");
    held.stop().await;

    let restarted = Held::start(registration(&server.connect(), b"weight 100")).await;
    assert_eq!(client.get_data(path).await.unwrap().0, b"weight 100");
    restarted.stop().await;
}

/// Time for the holder to read what was written: nothing outside shows that it did.
async fn read(client: &zookeeper_client::Client, path: &str) {
    for _ in 0..50 {
        client.check_stat(path).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
