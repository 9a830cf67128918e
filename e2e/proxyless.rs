//! Proxyless gRPC clients of both families over state-of-the-world ADS.

use std::collections::BTreeMap;

use crate::support::{
    grpc::{Backends, Client, Library},
    meshkeeper::MeshKeeper,
    traffic::{chi_square, score},
    tree::Tree,
    wait::until,
    zookeeper::ZooKeeper,
};

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_spread_by_weight_and_follow_the_registry() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let names = ["w1", "w2", "w3", "w10"];
    let backends = Backends::start(&names).await;
    let mut shares = BTreeMap::new();
    for name in names {
        let weight: u32 = name[1..].parse().unwrap();
        let address = backends.addresses[name];
        let (host, port) = (address.ip(), address.port());
        let data = format!(r#"{{"host":"{host}","port":{port},"weight":{weight}}}"#);
        tree.register("orders", name, data.as_bytes()).await;
        shares.insert(name.to_owned(), f64::from(weight));
    }
    let server = MeshKeeper::start(&zookeeper.connect()).await;
    for library in Library::ALL {
        let mut client = Client::start(library, &server, "orders");
        assert_eq!(client.tell("ready").await["ready"], true, "{library:?}");
        // Connections to all backends first: the choice is among those that are ready.
        until("all backends", async || {
            (client.call(200).await.len() == 4).then_some(())
        })
        .await;
        let counts = client.call(20_000).await;
        let found = score(chi_square(&counts, &shares));
        println!("{library:?}: shares of 20,000 calls {counts:?}, score {found:.2}");
        assert!(found < 4.0, "{library:?}: {counts:?}");
    }

    let mut clients = Library::ALL.map(|library| Client::start(library, &server, "orders"));
    for name in &names[1..] {
        tree.delete("orders", name).await;
    }
    for client in &mut clients {
        until("only what is registered answers", async || {
            let counts = client.call(50).await;
            (counts.keys().collect::<Vec<_>>() == ["w1"]).then_some(())
        })
        .await;
    }
    let shown = server.api("clients").await;
    for client in shown.as_array().unwrap() {
        assert_eq!(client["kind"], "grpc");
        for (kind, status) in client["types"].as_object().unwrap() {
            assert!(status["error"].is_null(), "{kind}: {status}");
        }
    }
    for kind in ["clusters", "endpoints", "listeners", "routes"] {
        let series = format!("meshkeeper_xds_nacks_total{{type=\"{kind}\"}}");
        assert_eq!(server.metric(&series).await, Some(0.0), "{series}");
    }
}
