//! Sidecars that load services on demand: a real Envoy that starts without any service and learns of
//! each at its first request.

use std::time::{Duration, Instant};

use http::StatusCode;

use crate::support::{
    backend::Backend, envoy::Envoy, http::Http, meshkeeper::MeshKeeper, tree::Tree, wait::until,
    zookeeper::ZooKeeper,
};

/// Far below the seconds after which Envoy gives up to wait for an answer.
const AT_ONCE: Duration = Duration::from_secs(2);

struct Mesh {
    zookeeper: ZooKeeper,
    tree: Tree,
    server: MeshKeeper,
    backend: Backend,
}

impl Mesh {
    /// Some services with one instance each, all of them the same.
    async fn of(services: &[&str]) -> Self {
        let zookeeper = ZooKeeper::start();
        let tree = Tree::connect(&zookeeper).await;
        let backend = Backend::start().await;
        for service in services {
            let address = backend.address.to_string();
            tree.register(service, "i", address.as_bytes()).await;
        }
        let server = MeshKeeper::start(&zookeeper.connect()).await;
        Self {
            zookeeper,
            tree,
            server,
            backend,
        }
    }

    async fn deregister(&self, service: &str) {
        self.tree.delete(service, "i").await;
        self.tree.delete_service(service).await;
    }

    async fn register(&self, service: &str) {
        let address = self.backend.address.to_string();
        self.tree.register(service, "i", address.as_bytes()).await;
    }
}

/// The clusters that Envoy has beside the control plane's.
async fn clusters(envoy: &Envoy) -> u64 {
    envoy.stats().await["cluster_manager.active_clusters"] - 1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_starts_empty_and_learns_each_service_at_its_first_request() {
    let mesh = Mesh::of(&["orders", "users", "carts"]).await;
    let envoy = Envoy::on_demand(&mesh.server, "first").await;
    assert_eq!(clusters(&envoy).await, 0);
    let http = Http::new();
    for host in [
        "orders",
        "ORDERS",
        "orders:8080",
        "orders.mesh",
        "orders.mesh.:80",
        "users:1",
    ] {
        let begun = Instant::now();
        let answer = http.get(envoy.outbound, host, "/").await.unwrap();
        println!("{host}: {:?}", begun.elapsed());
        assert_eq!(
            answer,
            (StatusCode::OK, mesh.backend.address.to_string()),
            "{host}"
        );
    }
    assert_eq!(clusters(&envoy).await, 2);
    assert!(envoy.rejections().await.is_empty(), "{}", envoy.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_request_with_a_body_arrives_whole() {
    let mesh = Mesh::of(&["orders", "users"]).await;
    let envoy = Envoy::on_demand(&mesh.server, "body").await;
    let http = Http::new();
    for (host, body) in [("orders", "x".repeat(10)), ("users", "x".repeat(100_000))] {
        let (status, text) = http.post(envoy.outbound, host, body.clone()).await.unwrap();
        assert_eq!(status, StatusCode::OK, "{host} {text}");
        assert_eq!(text, format!("{}{body}", mesh.backend.address));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_host_is_answered_at_once_and_followed_when_it_comes_and_goes() {
    let mesh = Mesh::of(&["orders"]).await;
    let envoy = Envoy::on_demand(&mesh.server, "unknown").await;
    let http = Http::new();
    let answer = async |host: &str| http.get(envoy.outbound, host, "/").await.unwrap().0;
    for _ in 0..3 {
        let begun = Instant::now();
        assert_eq!(answer("nowhere:80").await, StatusCode::NOT_FOUND);
        assert!(begun.elapsed() < AT_ONCE);
    }
    mesh.register("nowhere").await;
    let comes = async || (answer("nowhere").await == StatusCode::OK).then_some(());
    until("the service that came", comes).await;
    mesh.deregister("nowhere").await;
    let goes = async || (answer("nowhere").await == StatusCode::NOT_FOUND).then_some(());
    until("404 for the service that went", goes).await;
    until("its cluster is gone", async || {
        (clusters(&envoy).await == 0).then_some(())
    })
    .await;
    mesh.register("nowhere").await;
    until("the service that came back", comes).await;
    assert!(envoy.rejections().await.is_empty(), "{}", envoy.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_first_requests_at_once_are_all_answered() {
    let names: Vec<String> = (0..60).map(|at| format!("s{at}")).collect();
    let mesh = Mesh::of(&names.iter().map(|name| &**name).collect::<Vec<_>>()).await;
    let envoy = Envoy::on_demand(&mesh.server, "many").await;
    let http = Http::new();
    let hosts = names.iter().map(|name| (name.clone(), StatusCode::OK));
    let unknown = (0..60).map(|at| (format!("nowhere{at}:80"), StatusCode::NOT_FOUND));
    // Each three times, so that some wait for what others asked for.
    let requests = hosts
        .chain(unknown)
        .flat_map(|host| [host.clone(), host.clone(), host]);
    let answers = requests.map(|(host, expected)| {
        let http = &http;
        let outbound = envoy.outbound;
        async move {
            let (status, _) = http.get(outbound, &host, "/").await.unwrap();
            assert_eq!(status, expected, "{host}");
        }
    });
    futures_util::future::join_all(answers).await;
    assert_eq!(clusters(&envoy).await, 60);
    assert!(envoy.rejections().await.is_empty(), "{}", envoy.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_request_waits_for_a_server_that_is_away() {
    let mut mesh = Mesh::of(&["orders"]).await;
    let envoy = Envoy::on_demand(&mesh.server, "away").await;
    mesh.server.kill().await;
    let outbound = envoy.outbound;
    let waiting = tokio::spawn(async move { Http::new().get(outbound, "orders", "/").await });
    until("the request is under way", async || {
        (envoy.stats().await["http.outbound.downstream_rq_active"] == 1).then_some(())
    })
    .await;
    mesh.server.restart().await;
    let answer = waiting.await.unwrap().unwrap();
    assert_eq!(answer, (StatusCode::OK, mesh.backend.address.to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_unseen_is_unknown_from_then_on() {
    let mut mesh = Mesh::of(&["orders", "users", "carts"]).await;
    let envoy = Envoy::on_demand(&mesh.server, "unseen").await;
    let http = Http::new();
    let answer = async |host: &str| http.get(envoy.outbound, host, "/").await.unwrap().0;
    for host in ["orders", "carts:8080"] {
        assert_eq!(answer(host).await, StatusCode::OK);
    }
    // Before anybody asked for it, and while the server is away.
    mesh.deregister("users").await;
    until("the server has noticed", async || {
        let services = mesh.server.api("services?name=users").await;
        services.as_array()?.is_empty().then_some(())
    })
    .await;
    assert_eq!(answer("users").await, StatusCode::NOT_FOUND);
    mesh.server.kill().await;
    mesh.deregister("orders").await;
    mesh.deregister("carts").await;
    mesh.server.restart().await;
    for host in ["orders", "carts", "carts:8080"] {
        let gone = async || (answer(host).await == StatusCode::NOT_FOUND).then_some(());
        until(&format!("404 for {host}"), gone).await;
    }
    mesh.register("orders").await;
    let back = async || (answer("orders").await == StatusCode::OK).then_some(());
    until("the service that came back", back).await;
    assert!(envoy.rejections().await.is_empty(), "{}", envoy.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_may_make_it_the_rule() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let backend = Backend::start().await;
    let address = backend.address.to_string();
    tree.register("orders", "i", address.as_bytes()).await;
    let server = MeshKeeper::start_mesh_with(&zookeeper.connect(), "onDemand: true").await;
    let envoy = Envoy::start(&server, "ruled").await;
    assert_eq!(clusters(&envoy).await, 0);
    let answer = Http::new().get(envoy.outbound, "orders", "/").await;
    assert_eq!(answer.unwrap(), (StatusCode::OK, address));
    assert_eq!(server.api("clients").await[0]["onDemand"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_service_is_learnt_and_followed_one_instance_at_a_time() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let backends = Backend::start_many(8).await;
    for (at, backend) in backends.iter().enumerate() {
        let address = backend.address.to_string();
        tree.register("orders", &format!("i{at}"), address.as_bytes())
            .await;
    }
    let keys = "onDemand: true, endpointIncrementsAbove: 2";
    let mut server = MeshKeeper::start_mesh_with(&zookeeper.connect(), keys).await;
    let envoy = Envoy::start(&server, "both").await;
    let hosts = async |count: usize| {
        until(&format!("{count} hosts"), async || {
            (envoy.hosts("orders").await.len() == count).then_some(())
        })
        .await;
    };
    let http = Http::new();
    let answer = async || http.get(envoy.outbound, "orders", "/").await.unwrap().0;
    assert_eq!(answer().await, StatusCode::OK);
    hosts(8).await;
    assert!(
        envoy
            .stats()
            .await
            .contains_key("cluster.orders.leds.update_success")
    );
    tree.delete("orders", "i3").await;
    hosts(7).await;
    server.kill().await;
    tree.delete("orders", "i4").await;
    assert_eq!(answer().await, StatusCode::OK);
    server.restart().await;
    hosts(6).await;
    assert_eq!(answer().await, StatusCode::OK);
    assert!(envoy.rejections().await.is_empty(), "{}", envoy.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_learnt_outlives_the_server_and_is_followed_by_the_next() {
    let mut mesh = Mesh::of(&["orders", "users"]).await;
    let envoy = Envoy::on_demand(&mesh.server, "restart").await;
    let http = Http::new();
    let answer = async |host: &str| http.get(envoy.outbound, host, "/").await.unwrap().0;
    assert_eq!(answer("orders:8080").await, StatusCode::OK);
    assert_eq!(answer("nowhere").await, StatusCode::NOT_FOUND);
    mesh.server.kill().await;
    assert_eq!(answer("orders").await, StatusCode::OK);
    mesh.server.restart().await;
    assert_eq!(answer("users").await, StatusCode::OK);
    let stats = envoy.stats().await;
    assert_eq!(stats["cluster_manager.cluster_removed"], 0);
    assert_eq!(stats["cluster_manager.cluster_modified"], 0);
    mesh.tree.delete("orders", "i").await;
    until("the instance that went", async || {
        (answer("orders").await == StatusCode::SERVICE_UNAVAILABLE).then_some(())
    })
    .await;
    mesh.tree.delete_service("orders").await;
    until("the service that went", async || {
        (answer("orders").await == StatusCode::NOT_FOUND).then_some(())
    })
    .await;
    assert_eq!(clusters(&envoy).await, 1);
    assert!(envoy.rejections().await.is_empty(), "{}", envoy.log());
    drop(mesh.zookeeper);
}
