//! What an operator reads during an incident, on real parts: `explain`, `services`, `holds`, `/readyz`, metrics and
//! the log say what is so at that moment.

use std::time::Duration;

use serde_json::Value;
use zookeeper_client::{Acls, Client, CreateMode};

use crate::support::{meshkeeper::MeshKeeper, tree::Tree, wait::until, zookeeper::ZooKeeper};

async fn explain(server: &MeshKeeper, subject: &str) -> Value {
    let encoded = subject
        .replace('%', "%25")
        .replace('/', "%2F")
        .replace(' ', "%20");
    server.api(&format!("explain?subject={encoded}")).await
}

fn summary(explanation: &Value) -> &str {
    explanation["summary"].as_str().unwrap()
}

/// What each entry of the journal tells, the newest first.
fn journal(explanation: &Value) -> Vec<&str> {
    let entries = explanation["journal"].as_array().unwrap().iter();
    entries
        .map(|entry| entry["what"].as_str().unwrap())
        .collect()
}

fn warnings(server: &MeshKeeper) -> Vec<String> {
    let log = server.log();
    let lines = log.lines().filter(|line| line.contains(" WARN "));
    lines.map(str::to_owned).collect()
}

async fn rejected(server: &MeshKeeper, count: usize) {
    until(&format!("{count} rejected"), async || {
        let rejected = server.api("rejected").await;
        (rejected.as_array()?.len() == count).then_some(())
    })
    .await;
}

/// Waits for the first warning, and a little longer for others.
async fn only_warning(server: &MeshKeeper) -> String {
    until("a warning", async || warnings(server).first().map(|_| ())).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let warnings = warnings(server);
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    warnings.concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_is_held_wherever_an_operator_looks_and_so_it_is_after_a_restart() {
    let mut zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    for n in 1..=10 {
        let data = format!("10.0.0.{n}:80");
        tree.write_persistent("orders", &format!("i{n}"), data.as_bytes())
            .await;
    }
    let state = "state: {directory: $FOLDER/state, wait: 1s}";
    let mut server = MeshKeeper::start_configured(&zookeeper.connect(), state).await;
    for n in 1..=7 {
        tree.delete("orders", &format!("i{n}")).await;
    }
    let held = "meshkeeper_guard_held_instances{registry=\"main\"}";
    until("7 held", async || {
        (server.metric(held).await == Some(7.0)).then_some(())
    })
    .await;

    // The first one went before the guard tripped and came back by that.
    for subject in [
        "10.0.0.1:80",
        "10.0.0.1",
        "/services/orders/i1",
        "10.0.0.7:80",
    ] {
        let found = explain(&server, subject).await;
        assert!(
            summary(&found).starts_with("not registered since "),
            "{found:#}"
        );
        assert!(summary(&found).contains("held"), "{found:#}");
        let instance = &found["instances"][0];
        assert_eq!(
            (&instance["state"], &instance["served"]),
            (&"held".into(), &"yes".into())
        );
        let entries = journal(&found);
        assert!(entries.contains(&"held"), "{entries:?}");
        assert!(!entries.contains(&"registered"), "{entries:?}");
    }
    let all = explain(&server, "orders").await;
    assert!(
        summary(&all).starts_with("3 registered, 7 held; 10 served"),
        "{all:#}"
    );
    let (_, table) = server.command(&["explain", "orders"]).await;
    let is_row = |line: &&str| line.contains("  healthy  held  ");
    let rows = table.lines().filter(is_row).count();
    assert!(table.contains("STATE") && rows == 7, "{table}");
    assert!(
        server
            .page("/readyz")
            .await
            .contains("7 instances of 1 service are held")
    );
    only_warning(&server).await;

    server.terminate().await;
    zookeeper.kill();
    server.restart().await;
    let all = explain(&server, "orders").await;
    assert!(summary(&all).contains(" held, 3 restored; "), "{all:#}");
    let notes = all["notes"].to_string();
    assert!(notes.contains("restored from disk"), "{notes}");
    let one = explain(&server, "10.0.0.9").await;
    let restored = "restored from disk, not yet compared with ZooKeeper, and served";
    assert!(summary(&one).starts_with(restored), "{one:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_found_by_every_spelling_of_it() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let hosts = "127.0.0.1 localhost\n10.0.0.7 vm.test\n";
    tree.write_persistent("User_API", "i", br#"{"host":"VM.test","port":8099}"#)
        .await;
    tree.write_persistent(
        "orders",
        "old",
        br#"{"host":"10.0.0.8","port":80,"weight":0}"#,
    )
    .await;
    tree.write_persistent(
        "orders",
        "sick",
        br#"{"host":"10.0.0.9","port":80,"enabled":false}"#,
    )
    .await;
    let server = MeshKeeper::spawn_with_hosts(&zookeeper.connect(), hosts, "");
    server.ready().await;

    let found = async |subject: &str| {
        let found = explain(&server, subject).await;
        let services = found["services"].as_array().unwrap().iter();
        let names: Vec<_> = services
            .map(|s| s["name"].as_str().unwrap().to_owned())
            .collect();
        names.join(",")
    };
    for subject in [
        "vm.test:8099",
        "VM.test",
        "10.0.0.7",
        "10.0.0.7:8099",
        "User_API",
        "user_api",
        "user-api",
        "USER-API.mesh:80",
        "/services/User_API",
        "/services/User_API/i",
    ] {
        assert_eq!(found(subject).await, "User_API", "{subject}");
    }
    for subject in [
        "ORDERS",
        "orders.mesh",
        "orders:8080",
        "/services/orders/",
        "10.0.0.8",
    ] {
        assert_eq!(found(subject).await, "orders", "{subject}");
    }
    for subject in ["vm.test:1", "none", "10.0.0.10", "/elsewhere/x"] {
        assert_eq!(found(subject).await, "", "{subject}");
    }
    let drained = explain(&server, "10.0.0.8:80").await;
    assert!(
        summary(&drained).starts_with("registered, and draining"),
        "{drained:#}"
    );
    let orders = explain(&server, "orders").await;
    assert!(
        summary(&orders).starts_with("2 registered; 1 draining, 1 not served"),
        "{orders:#}"
    );
    let elsewhere = explain(&server, "/elsewhere/x").await;
    assert!(
        summary(&elsewhere).starts_with("no registry reads this znode"),
        "{elsewhere:#}"
    );

    // A name that comes later is looked up, and nothing is wrong with it meanwhile.
    tree.write_persistent("User_API", "j", br#"{"host":"localhost","port":8099}"#)
        .await;
    until("the new name", async || {
        (server.addresses("User_API").await.len() == 2).then_some(())
    })
    .await;
    let (log, journal) = (server.log(), explain(&server, "/services/User_API/j").await);
    assert!(!log.contains("rejected"), "{log}");
    assert!(
        !journal.to_string().contains("\"rejected\":[{"),
        "{journal:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dubbo_process_that_crashed_and_came_back_is_one_line() {
    let zookeeper = ZooKeeper::start();
    let crashed = provider(&zookeeper, 1).await;
    let connect = zookeeper.connect();
    let server = MeshKeeper::start_registry(&connect, "format: dubbo, root: /dubbo").await;
    until("20 services", async || {
        (server.api("services").await.as_array()?.len() == 20).then_some(())
    })
    .await;
    let _back = provider(&zookeeper, 2).await;
    rejected(&server, 20).await;
    let line = only_warning(&server).await;
    assert!(
        line.contains("znodes=") && line.contains("which is newer"),
        "{line}"
    );
    drop(crashed);
    rejected(&server, 0).await;
    only_warning(&server).await;
}

/// A process with twenty interfaces, in a session of its own.
async fn provider(zookeeper: &ZooKeeper, started: u32) -> Client {
    let session = zookeeper.client().await;
    let all = Acls::anyone_all();
    let parent = CreateMode::Persistent.with_acls(all);
    let ephemeral = CreateMode::Ephemeral.with_acls(all);
    let create = async |n: u32| {
        let providers = format!("/dubbo/com.foo.S{n}/providers");
        session.mkdir(&providers, &parent).await.unwrap();
        let url = format!("dubbo%3A%2F%2F10.0.0.1%3A20880%2Fcom.foo.S{n}%3Ftimestamp%3D{started}");
        let path = format!("{providers}/{url}");
        session.create(&path, b"", &ephemeral).await.unwrap();
    };
    futures_util::future::join_all((0..20).map(create)).await;
    session
}

#[tokio::test(flavor = "multi_thread")]
async fn many_znodes_that_nobody_can_read_are_one_line_and_a_moment_is_none() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let server = MeshKeeper::start(&zookeeper.connect()).await;
    // As programs do that create a znode and write it later.
    for n in 0..5 {
        let (id, data) = (format!("i{n}"), format!("10.0.0.{n}:80"));
        tree.write_persistent("orders", &id, b"x").await;
        tree.write("orders", &id, data.as_bytes()).await;
    }
    let bad = (0..200).map(|n| (format!("bad-{n}"), format!("10.0.0.{n}").into_bytes()));
    tree.create_many("users", bad).await;
    rejected(&server, 200).await;
    let line = only_warning(&server).await;
    assert!(line.contains("znodes=200"), "{line}");
    let all = explain(&server, "users").await;
    assert_eq!(all["rejected"].as_array().unwrap().len(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn host_names_that_cannot_be_found_are_one_line() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let hosts = "127.0.0.1 localhost\n";
    let server = MeshKeeper::spawn_with_hosts(&zookeeper.connect(), hosts, "dns: {refresh: 1s}");
    server.ready().await;
    let named = (0..12).map(|n| {
        let data = format!(r#"{{"host":"none-{n}.test","port":8080}}"#);
        (format!("i{n}"), data.into_bytes())
    });
    tree.create_many("orders", named).await;
    rejected(&server, 12).await;
    let line = only_warning(&server).await;
    assert!(line.contains("cannot be resolved"), "{line}");
    let one = explain(&server, "none-7.test:8080").await;
    let reason = one["rejected"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("none-7.test"), "{one:#}");
}
