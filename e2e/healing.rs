//! A rejection whose cause heals: a real Envoy whose port another process holds for a while.

use std::net::TcpListener;

use http::StatusCode;
use serde_json::Value;

use crate::support::{
    backend::Backend, envoy::Envoy, http::Http, meshkeeper::MeshKeeper, tree::Tree, wait::until,
    zookeeper::ZooKeeper,
};

async fn listeners(server: &MeshKeeper) -> Value {
    server.api("clients").await[0]["types"]["listeners"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_whose_port_was_taken_gets_its_listener_once_it_is_free() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let backend = Backend::start().await;
    let address = backend.address.to_string();
    tree.register("orders", "i", address.as_bytes()).await;
    let server = MeshKeeper::start(&zookeeper.connect()).await;
    let taken = TcpListener::bind(server.outbound).unwrap();
    let envoy = Envoy::start(&server, "taken").await;
    let rejected = async |times: u64| {
        until(&format!("{times} rejections"), async || {
            let listeners = listeners(&server).await;
            (listeners["rejections"].as_u64()? >= times).then_some(listeners)
        })
        .await
    };
    let first = rejected(1).await;
    assert_eq!(first["state"], "ERROR");
    let again = rejected(2).await;
    assert_eq!(again["rejectedSince"], first["rejectedSince"]);
    let error = again["error"].as_str().unwrap();
    assert!(error.contains("Address already in use"), "{error}");
    let before = envoy.stats().await;
    drop(taken);
    let http = Http::new();
    until("an answer through the listener", async || {
        let (status, _) = http.get(envoy.outbound, "orders", "/").await.ok()?;
        (status == StatusCode::OK).then_some(())
    })
    .await;
    let healed = listeners(&server).await;
    assert_eq!(healed["state"], "SYNCED");
    assert_eq!(
        (&healed["rejections"], &healed["rejectedSince"]),
        (&0.into(), &Value::Null)
    );
    let after = envoy.stats().await;
    for untouched in [
        "cluster_manager.cluster_modified",
        "cluster.orders.update_success",
    ] {
        assert_eq!(after[untouched], before[untouched], "{untouched}");
    }
}
