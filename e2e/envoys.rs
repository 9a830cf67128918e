//! Older Envoys: each does the main job, loads on demand where it can, follows large services and drains.

use http::StatusCode;

use crate::support::{
    backend::Backend,
    envoy::{Envoy, components},
    http::Http,
    meshkeeper::MeshKeeper,
    tree::Tree,
    wait::until,
    zookeeper::ZooKeeper,
};

/// Its folders are versions; the last one is of the component `envoy`.
fn versions() -> Vec<(String, std::path::PathBuf)> {
    let pinned = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/e2e/components/envoy-old/versions.txt"
    ));
    let old = components().join("envoy-old");
    let mut all: Vec<_> = pinned
        .unwrap()
        .lines()
        .map(|version| (version.to_owned(), old.join(version).join("bin/envoy")))
        .collect();
    all.push(("1.40.0".to_owned(), components().join("envoy/bin/envoy")));
    all
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make envoys: it needs the component envoy-old"]
async fn every_version_does_its_job() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let backends = Backend::start_many(6).await;
    for (at, backend) in backends.iter().enumerate() {
        let json = instance(backend, 100);
        tree.register("orders", &format!("i{at}"), &json).await;
    }
    let server =
        MeshKeeper::start_mesh_with(&zookeeper.connect(), "endpointIncrementsAbove: 3").await;
    for (version, binary) in versions() {
        for flags in [&[][..], &["--on-demand"]] {
            println!("{version} {flags:?}");
            let outbound = server.outbound;
            let node = format!("{version}{}", flags.len());
            let envoy = Envoy::of_binary(&binary, server.xds, outbound, &node, flags).await;
            main_job(&envoy).await;
            drains(&tree, &backends[0], &envoy).await;
            let client = &server.api("clients").await[0];
            let is_old = version.starts_with("1.36.");
            assert_eq!(client["onDemand"], !flags.is_empty() && !is_old, "{client}");
            assert_eq!(
                client["note"].is_string(),
                !flags.is_empty() && is_old,
                "{client}"
            );
            let one_by_one = envoy
                .stats()
                .await
                .contains_key("cluster.orders.leds.update_success");
            assert_eq!(one_by_one, version.starts_with("1.40."), "{version}");
            assert!(
                envoy.rejections().await.is_empty(),
                "{version}: {}",
                envoy.log()
            );
            drop(envoy);
            let left = async || {
                server
                    .api("clients")
                    .await
                    .as_array()?
                    .is_empty()
                    .then_some(())
            };
            until("the sidecar is gone", left).await;
        }
    }
}

async fn main_job(envoy: &Envoy) {
    let http = Http::new();
    let answer = async |host: &str| http.get(envoy.outbound, host, "/").await.unwrap().0;
    assert_eq!(answer("orders").await, StatusCode::OK);
    assert_eq!(answer("orders.mesh:80").await, StatusCode::OK);
    assert_eq!(answer("nowhere").await, StatusCode::NOT_FOUND);
    assert_eq!(envoy.hosts("orders").await.len(), 6);
}

async fn drains(tree: &Tree, backend: &Backend, envoy: &Envoy) {
    for (weight, health) in [(0, "DRAINING"), (100, "HEALTHY")] {
        tree.write("orders", "i0", &instance(backend, weight)).await;
        until(&format!("{health} in the sidecar"), async || {
            let hosts = envoy.hosts("orders").await;
            (hosts.get(&backend.address.to_string())?.1 == health).then_some(())
        })
        .await;
    }
}

fn instance(backend: &Backend, weight: u32) -> Vec<u8> {
    let (host, port) = (backend.address.ip(), backend.address.port());
    format!(r#"{{"host":"{host}","port":{port},"weight":{weight}}}"#).into_bytes()
}
