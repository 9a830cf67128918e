//! Names of hosts, in registrations and in the connect string, on a machine whose hosts file changes.

use crate::support::{meshkeeper::MeshKeeper, tree::Tree, wait::until, zookeeper::ZooKeeper};

const LOCAL: &str = "127.0.0.1 localhost\n";

async fn until_addresses(server: &MeshKeeper, service: &str, addresses: &[&str]) {
    until(&format!("{service} at {addresses:?}"), async || {
        (server.addresses(service).await == addresses).then_some(())
    })
    .await;
}

async fn until_metric(server: &MeshKeeper, name: &str, is: f64) {
    until(&format!("{name} {is}"), async || {
        (server.metric(name).await == Some(is)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_followed_and_never_lost() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let named = |host: &str| format!(r#"{{"host":"{host}","port":8080}}"#);
    for (service, host) in [("orders", "app.test"), ("users", "gone.test")] {
        let data = named(host);
        tree.write_persistent(service, "i-1", data.as_bytes()).await;
    }

    // The ensemble's name leads nowhere at first, then to where it is.
    let connect = format!("zk.test:{}", zookeeper.port());
    let app = "10.0.0.2 app.test\n10.0.0.1 app.test\n";
    let elsewhere = format!("{LOCAL}127.0.0.9 zk.test\n{app}");
    let mut server = MeshKeeper::spawn_with_hosts(&connect, &elsewhere, "dns: {refresh: 1s}");
    until("the reason is told", async || {
        let ready = server.not_ready().await?;
        ready.contains("zk.test").then_some(())
    })
    .await;
    let here = format!("{LOCAL}127.0.0.1 zk.test\n");
    server.set_hosts(&format!("{here}{app}"));
    server.ready().await;
    // It was ready only with them.
    let both = ["10.0.0.1:8080", "10.0.0.2:8080"];
    assert_eq!(server.addresses("orders").await, both);
    let rejected = server.api("rejected").await.to_string();
    assert!(rejected.contains("gone.test"), "{rejected}");
    assert!(rejected.contains("cannot be resolved"), "{rejected}");
    until_metric(&server, "meshkeeper_dns_unresolved_names", 1.0).await;

    // A host that moves, one that comes, and a resolver that knows neither any more.
    let moved = format!("{here}10.0.0.3 app.test\n10.0.1.1 gone.test\n");
    server.set_hosts(&moved);
    until_addresses(&server, "orders", &["10.0.0.3:8080"]).await;
    until_addresses(&server, "users", &["10.0.1.1:8080"]).await;
    server.set_hosts(&here);
    until_metric(&server, "meshkeeper_dns_stale_names", 2.0).await;
    assert_eq!(server.addresses("orders").await, ["10.0.0.3:8080"]);
    assert_eq!(server.addresses("users").await, ["10.0.1.1:8080"]);

    server.kill().await;
    server.set_hosts(&moved);
    server.restart().await;
    assert_eq!(server.addresses("orders").await, ["10.0.0.3:8080"]);
}
