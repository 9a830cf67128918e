//! Services without instances: rendered for a while, then shown alone, until their first instance is back.

use http::StatusCode;

use crate::support::{
    backend::Backend, envoy::Envoy, http::Http, meshkeeper::MeshKeeper, tree::Tree, wait::until,
    zookeeper::ZooKeeper,
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_long_empty_costs_a_sidecar_nothing_and_returns_with_its_first_instance() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let backend = Backend::start().await;
    let address = backend.address.to_string();
    tree.register("orders", "i", address.as_bytes()).await;
    tree.register("leaves", "i", address.as_bytes()).await;
    for at in 0..200 {
        tree.add_service(&format!("empty-{at}")).await;
    }
    let server = MeshKeeper::start_mesh_with(&zookeeper.connect(), "emptyServices: 2s").await;
    let envoy = Envoy::start(&server, "empty").await;
    let http = Http::new();
    let clusters = async |expected: u64| {
        until(&format!("{expected} clusters"), async || {
            let active = envoy.stats().await["cluster_manager.active_clusters"];
            (active == expected + 1).then_some(())
        })
        .await;
    };
    let answers = async |host: &str, status: StatusCode| {
        until(&format!("{status} of {host}"), async || {
            let (answer, _) = http.get(envoy.outbound, host, "/").await.ok()?;
            (answer == status).then_some(())
        })
        .await;
    };
    clusters(2).await;
    answers("empty-7", StatusCode::NOT_FOUND).await;
    let shown = server.api("services?name=empty-7").await;
    assert_eq!(shown.as_array().unwrap().len(), 1, "{shown}");

    tree.register("empty-7", "i", address.as_bytes()).await;
    answers("empty-7", StatusCode::OK).await;
    tree.delete("leaves", "i").await;
    answers("leaves", StatusCode::SERVICE_UNAVAILABLE).await;
    answers("leaves", StatusCode::NOT_FOUND).await;
    tree.register("leaves", "i", address.as_bytes()).await;
    answers("leaves", StatusCode::OK).await;
    clusters(3).await;
    let waited = envoy.stats().await.into_iter();
    let waited = waited.filter(|(name, count)| name.ends_with("init_fetch_timeout") && *count > 0);
    assert_eq!(
        waited.collect::<Vec<_>>(),
        [],
        "no cluster waited for its endpoints in vain"
    );
    assert!(envoy.rejections().await.is_empty(), "{}", envoy.log());
}
