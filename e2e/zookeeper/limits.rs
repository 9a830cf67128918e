//! Servers that turn clients away, or answer less than usual: no quorum, limits, small buffers. What is
//! wrong is named, and what can be had is used.

use meshkeeper::zookeeper::load;
use zookeeper_client::CreateMode;

use super::*;
use crate::support::{
    ensemble::{Ensemble, LOCAL_SESSIONS},
    wait::until,
    zookeeper::Setup,
};

async fn writer(ensemble: &Ensemble) -> Client {
    let connector = Client::connector().with_session_timeout(Duration::from_secs(30));
    connector.connect(&ensemble.direct()).await.unwrap()
}

/// Until its only server that runs answers reads again.
async fn until_read_only(ensemble: &Ensemble, node: usize) {
    until("a read-only server", async || {
        (ensemble.mode(node)? == "read-only").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_quorum_is_read_where_nothing_is_known_yet() {
    let mut ensemble = Ensemble::start_read_only(3, LOCAL_SESSIONS).await;
    let client = writer(&ensemble).await;
    put(&client, "/services/orders/i-1", b"1").await;
    client.sync("/").await.unwrap();
    let expected = znodes(&[("orders", ""), ("orders/i-1", "1")]);
    let mut knowing = Mirror::start(&ensemble.direct(), "/services");
    knowing.until_equal(&expected).await;
    drop(client);

    let left = ensemble.follower().unwrap();
    let others: Vec<usize> = (0..3).filter(|node| *node != left).collect();
    for node in &others {
        ensemble.kill(*node);
    }
    until_read_only(&ensemble, left).await;
    let mut starting = Mirror::start(&ensemble.direct(), "/services");
    let marked = |s: &State| s.status == Status::ReadOnly && s.loaded;
    starting.until("loaded", |m| m.completed == 1).await;
    let state = starting.until_state("marked", marked).await;
    assert!(state.status.to_string().contains("no quorum"));
    assert_eq!(starting.znodes, expected);
    // What it knows is newer than what a server may have that nobody writes to.
    let told = |s: &State| {
        s.status
            .to_string()
            .contains("is read-only: its ensemble has no quorum")
    };
    knowing.until_state("the reason", told).await;
    assert_eq!(knowing.completed, 1);

    ensemble.start_all();
    ensemble.until_serving().await;
    let client = writer(&ensemble).await;
    put(&client, "/services/orders/i-2", b"2").await;
    let expected = read_all(&client, "/services").await;
    for mirror in [&mut starting, &mut knowing] {
        mirror.until_equal(&expected).await;
        mirror
            .until_state("synced", |s| s.status == Status::Synced)
            .await;
        assert!(mirror.deleted.is_empty(), "{:?}", mirror.deleted);
    }
    for mirror in [starting, knowing] {
        mirror.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_quorum_is_named_with_and_without_reads() {
    for (reads, parts) in [
        (true, ["is read-only", "localSessionsEnabled"]),
        (false, ["does not serve", "no quorum"]),
    ] {
        let mut ensemble = if reads {
            Ensemble::start_read_only(3, "").await
        } else {
            Ensemble::start(3).await
        };
        put(&writer(&ensemble).await, "/services/orders/i-1", b"1").await;
        let left = ensemble.follower().unwrap();
        for node in (0..3).filter(|node| *node != left) {
            ensemble.kill(node);
        }
        if reads {
            until_read_only(&ensemble, left).await;
        }
        let mut mirror = Mirror::start(&ensemble.direct(), "/services");
        let says = |s: &State| {
            let text = s.status.to_string();
            parts.iter().all(|part| text.contains(part)) && !text.contains("TLS")
        };
        let state = mirror.until_state(parts[0], says).await;
        assert!(!state.loaded);
        mirror.stop().await;

        let began = std::time::Instant::now();
        let config = config(&ensemble.direct(), "/services");
        let error = load(config, PATIENCE).await.unwrap_err().to_string();
        assert!(error.contains(parts[0]), "{error}");
        assert!(began.elapsed() < Duration::from_secs(8));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_shrink_to_what_a_small_buffer_takes() {
    for buffer in [512, 4_096, 65_536] {
        let server = ZooKeeper::start_as(Setup {
            java: vec![format!("-Djute.maxbuffer={buffer}")],
            ..Setup::default()
        });
        let client = server.client().await;
        put(&client, "/services", b"").await;
        fill(&client, 1_500).await;
        let mut mirror = Mirror::start(&server.connect(), "/services");
        mirror.until("loaded", |m| m.completed == 1).await;
        assert_eq!(mirror.znodes.len(), 3_000);
        assert!(mirror.deleted.is_empty());
        mirror.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_throttles_connections_says_so_in_our_words() {
    let server = ZooKeeper::start_as(Setup {
        java: vec![
            "-Dzookeeper.connection_throttle_tokens=1".to_owned(),
            "-Dzookeeper.connection_throttle_fill_time=3600000".to_owned(),
        ],
        ..Setup::default()
    });
    let _first = server.client().await;
    let mut mirror = Mirror::start(&server.connect(), "/services");
    let named = |s: &State| s.status.to_string().contains("throttles new connections");
    mirror.until_state("the reason", named).await;
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_beside_a_missing_root_is_named() {
    let server = ZooKeeper::start();
    let client = server.client().await;
    put(&client, "/services/orders/i-1", b"1").await;
    put(&client, "/mesh/prod/services/orders/i-1", b"1").await;
    for (chroot, root, says) in [
        (
            "",
            "/servcies",
            "waiting for /servcies to be created; there is `/services`",
        ),
        (
            "/mesh/prd",
            "/services",
            "`/mesh/prd` does not exist either; there is `/mesh/prod`",
        ),
        (
            "/mesh",
            "/nothing/alike",
            "`/mesh/nothing` does not exist either; there is `/mesh/prod`",
        ),
    ] {
        let connect = format!("{}{chroot}", server.connect());
        for how in [Mirror::start, Mirror::start_one_shot] {
            let mut mirror = how(&connect, root);
            let told = |s: &State| s.status.to_string().contains(says);
            mirror.until_state(says, told).await;
            mirror.stop().await;
        }
        let error = load(config(&connect, root), PATIENCE).await.unwrap_err();
        let (_, there) = says.rsplit_once("; ").unwrap();
        assert!(error.to_string().contains(there), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_gives_up_at_once_where_nothing_answers_or_may_be_read() {
    let server = ZooKeeper::start();
    let client = server.client().await;
    client.auth("digest", b"owner:secret").await.unwrap();
    let private = CreateMode::Persistent.with_acls(Acls::creator_all());
    client.create("/hidden", b"", &private).await.unwrap();
    let refused = format!("127.0.0.1:{}", free_port());
    for (connect, root, says) in [
        (refused.as_str(), "/services", "Connection refused"),
        (&server.connect(), "/hidden", "may not list /hidden"),
        ("no-such-host.invalid:2181", "/services", "does not resolve"),
    ] {
        let began = std::time::Instant::now();
        let error = load(config(connect, root), PATIENCE).await.unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert!(began.elapsed() < Duration::from_secs(5), "{says}");
    }
}
