//! The audit against a real server: what no watch told of is found, put right and counted.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use meshkeeper::zookeeper::Watcher;

use super::*;

/// Changes, creates and deletes while no event gets through.
async fn repaired(one_shot: bool) {
    let server = ZooKeeper::start();
    let client = server.client().await;
    for (path, data) in [
        ("orders/stays", "0"),
        ("orders/changes", "0"),
        ("orders/goes", "0"),
        ("gone/with-all", "0"),
    ] {
        put(&client, &format!("/services/{path}"), data.as_bytes()).await;
    }
    let deaf = Arc::new(AtomicBool::new(false));
    let seam = Arc::clone(&deaf);
    let mut mirror = Mirror::start_as(config(&server.connect(), "/services"), |watcher| {
        let watcher = watcher.deaf_while(seam);
        if one_shot {
            Watcher::only_one_shot(watcher)
        } else {
            watcher
        }
    });
    mirror.until("loaded", |m| m.completed == 1).await;
    let heard = mirror.metric("meshkeeper_zookeeper_events_total");

    deaf.store(true, Ordering::Relaxed);
    put(&client, "/services/orders/changes", b"1").await;
    put(&client, "/services/orders/comes", b"1").await;
    put(&client, "/services/new/comes", b"1").await;
    for path in ["orders/goes", "gone/with-all", "gone"] {
        delete(&client, &format!("/services/{path}")).await;
    }
    let mut audited = Vec::new();
    let expected = read_all(&client, "/services").await;
    let found = timeout(PATIENCE, async {
        while mirror.znodes != expected {
            let batch = mirror.batches.recv().await.expect("a running watcher");
            audited.push(batch.audited && !batch.complete);
            mirror.apply(batch);
        }
    });
    found.await.expect("found by the audit");
    assert!(!audited.is_empty() && audited.iter().all(|audited| *audited));
    assert_eq!(mirror.completed, 1, "without reading all again");
    assert_eq!(heard, mirror.metric("meshkeeper_zookeeper_events_total"));
    let differences = mirror.metric("meshkeeper_audit_differences_total");
    let differences: u32 = differences.parse().unwrap();
    // What is below a service that came or went may be found on its own or with it.
    assert!((5..=7).contains(&differences), "{differences}");

    // What was found is followed again, with watches where they are used up.
    deaf.store(false, Ordering::Relaxed);
    put(&client, "/services/orders/changes", b"2").await;
    put(&client, "/services/new/comes", b"2").await;
    put(&client, "/services/orders/comes-later", b"2").await;
    mirror
        .until_equal(&read_all(&client, "/services").await)
        .await;
    let after = mirror.metric("meshkeeper_audit_differences_total");
    assert_eq!(after, differences.to_string(), "by watches, as ever");
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_recursive_watch_did_not_tell_is_found_and_counted() {
    repaired(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_shot_watches_did_not_tell_is_found_and_counted() {
    repaired(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_churn_the_audit_finds_nothing() {
    let server = ZooKeeper::start();
    let client = server.client().await;
    put(&client, "/services/orders/stays", b"0").await;
    let mut mirrors = [
        Mirror::start(&server.connect(), "/services"),
        Mirror::start_one_shot(&server.connect(), "/services"),
    ];
    for mirror in &mut mirrors {
        mirror.until("loaded", |m| m.completed == 1).await;
        let rounds = |m: &Mirror| m.metric("meshkeeper_audit_rounds_total");
        let before = rounds(mirror);
        for _ in 0..200 {
            churn(&client, 5).await;
            // It goes on once what was read has been taken.
            while let Ok(batch) = mirror.batches.try_recv() {
                mirror.apply(batch);
            }
            if rounds(mirror) != before {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
        assert_ne!(rounds(mirror), before, "a round under churn");
    }
    for mut mirror in mirrors {
        mirror
            .until_equal(&read_all(&client, "/services").await)
            .await;
        let differences = mirror.metric("meshkeeper_audit_differences_total");
        assert_eq!(differences, "0");
        mirror.stop().await;
    }
}
