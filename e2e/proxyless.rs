//! Proxyless gRPC: clients of four libraries and servers of three, over state-of-the-world ADS.

use std::collections::BTreeMap;

use crate::support::{
    grpc::{Backends, Client, Library, Server},
    meshkeeper::MeshKeeper,
    proxy::Proxy,
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
    let mut clients = Client::start_all(server.xds, "orders");
    for (library, client) in &mut clients {
        assert_eq!(client.tell("ready").await["ready"], true, "{library:?}");
        // Connections to all backends first: the choice is among those that are ready.
        until("all backends", async || {
            (client.call(200).await.len() == 4).then_some(())
        })
        .await;
        let counts = client.call(10_000).await;
        let found = score(chi_square(&counts, &shares));
        println!("{library:?}: shares of 10,000 calls {counts:?}, score {found:.2}");
        assert!(found < 4.0, "{library:?}: {counts:?}");
    }

    for name in &names[1..] {
        tree.delete("orders", name).await;
    }
    for (_, client) in &mut clients {
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

#[tokio::test(flavor = "multi_thread")]
async fn the_last_instance_goes_and_comes_back_in_every_library() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let backends = Backends::start(&["only"]).await;
    let address = backends.addresses["only"];
    tree.register("orders", "only", &instance(address, 100))
        .await;
    let server = MeshKeeper::start(&zookeeper.connect()).await;
    let mut clients = Client::start_all(server.xds, "orders");
    for (_, client) in &mut clients {
        client.answered().await;
    }
    // Its process goes on, so that a client which keeps it would be answered.
    tree.delete("orders", "only").await;
    for (library, client) in &mut clients {
        println!(
            "{library:?}: {}",
            client.refused("orders", "no instances").await
        );
    }
    tree.register("orders", "only", &instance(address, 100))
        .await;
    for (_, client) in &mut clients {
        client.answered().await;
    }
    // Drained is the same for gRPC, which has no other word for it.
    tree.write("orders", "only", &instance(address, 0)).await;
    for (_, client) in &mut clients {
        client.refused("orders", "no instances").await;
    }
    tree.write("orders", "only", &instance(address, 7)).await;
    for (_, client) in &mut clients {
        client.answered().await;
    }
    nothing_was_rejected(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_nothing_is_registered_under_fails_at_once_and_is_followed() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let backends = Backends::start(&["late"]).await;
    let server = MeshKeeper::start(&zookeeper.connect()).await;
    let mut clients = Client::start_all(server.xds, "ghost");
    for (library, client) in &mut clients {
        println!(
            "{library:?}: {}",
            client.refused("ghost", "not registered").await
        );
    }
    let shown = server.api("clients").await;
    for client in shown.as_array().unwrap() {
        let listeners = &client["types"]["listeners"];
        assert_eq!(
            listeners["unregistered"],
            serde_json::json!(["ghost"]),
            "{client}"
        );
    }
    let explained = server.api("explain?subject=ghost").await;
    assert_eq!(
        explained["askedBy"].as_array().unwrap().len(),
        4,
        "{explained}"
    );
    let metric = "meshkeeper_xds_unregistered_names";
    assert_eq!(server.metric(metric).await, Some(4.0));

    tree.register("ghost", "late", &instance(backends.addresses["late"], 100))
        .await;
    for (_, client) in &mut clients {
        client.answered().await;
    }
    assert_eq!(server.metric(metric).await, Some(0.0));

    tree.delete("ghost", "late").await;
    tree.delete_service("ghost").await;
    for (_, client) in &mut clients {
        client.refused("ghost", "not registered").await;
    }
    until("nobody is behind", async || {
        let shown = server.api("clients").await;
        let types = shown
            .as_array()?
            .iter()
            .filter_map(|client| client["types"].as_object());
        let mut states = types.flat_map(|types| types.values());
        states
            .all(|status| status["state"] == "SYNCED")
            .then_some(())
    })
    .await;
    assert_eq!(server.metric(metric).await, Some(4.0));
    nothing_was_rejected(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_found_under_every_name_that_a_sidecar_takes() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let backends = Backends::start(&["any"]).await;
    for service in ["orders", "com.foo.Bar:1.0", "User_API"] {
        tree.register(service, "any", &instance(backends.addresses["any"], 100))
            .await;
    }
    let server = MeshKeeper::start(&zookeeper.connect()).await;
    let each = [
        (Library::Core, "ORDERS"),
        (Library::Js, "orders.mesh"),
        (Library::Java, "com.foo.bar-1.0"),
    ];
    let go = [
        "orders",
        "ORDERS",
        "orders.mesh",
        "Orders:8080",
        "com.foo.Bar:1.0",
        "com.foo.bar-1.0",
        "user-api",
        "user_api.mesh",
    ];
    let all = each.into_iter().chain(go.map(|name| (Library::Go, name)));
    for (library, name) in all {
        let mut client = Client::start(library, server.xds, name);
        println!("{library:?} dials {name}");
        client.answered().await;
    }
    nothing_was_rejected(&server).await;
}

/// grpc-js 1.14 connects anew to everything at each update of a target, whatever is in it.
#[tokio::test(flavor = "multi_thread")]
async fn only_another_address_costs_a_connection() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let backends = Backends::start(&["a", "b"]).await;
    let [a, b] = ["a", "b"].map(|name| Proxy::start(backends.addresses[name].port()));
    let (a, b) = (a.await, b.await);
    let data = |proxy: &Proxy, weight: u32, zone: &str| {
        let port = proxy.port();
        format!(r#"{{"host":"127.0.0.1","port":{port},"weight":{weight},"zone":"{zone}"}}"#)
            .into_bytes()
    };
    tree.register("orders", "a", &data(&a, 100, "z1")).await;
    tree.register("orders", "b", &data(&b, 100, "z1")).await;
    let server = MeshKeeper::start(&zookeeper.connect()).await;
    let mut clients = [Library::Core, Library::Go, Library::Java]
        .map(|library| Client::start(library, server.xds, "orders"));
    for client in &mut clients {
        client.answered().await;
        until("both backends", async || {
            (client.call(40).await.len() == 2).then_some(())
        })
        .await;
    }
    for weight in 1..=10 {
        tree.write("orders", "a", &data(&a, weight * 10, "z1"))
            .await;
        // One update each: what waits for an answer would be sent together.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    tree.write("orders", "a", &data(&a, 100, "z2")).await;
    tree.write("orders", "b", &data(&b, 7, "z2")).await;
    tree.delete("orders", "b").await;
    for (at, client) in clients.iter_mut().enumerate() {
        println!("client {at} of C-core, Go and Java calls only a");
        until("only a", async || {
            (client.call(20).await.len() == 1).then_some(())
        })
        .await;
    }
    println!("connections to a: {}, to b: {}", a.accepted(), b.accepted());
    assert_eq!((a.accepted(), b.accepted()), (3, 3), "one for each client");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_server_gets_its_listener_and_serves() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let server = MeshKeeper::start(&zookeeper.connect()).await;
    for library in Library::SERVERS {
        let name = format!("{library:?}").to_lowercase();
        let backend = Server::start(library, server.xds, &name).await;
        tree.register(&name, "i", &instance(backend.address, 100))
            .await;
        let mut client = Client::start(Library::Go, server.xds, &name);
        client.answered().await;
        assert_eq!(client.call(5).await.keys().collect::<Vec<_>>(), [&name]);
    }
    nothing_was_rejected(&server).await;
}

fn instance(address: std::net::SocketAddr, weight: u32) -> Vec<u8> {
    let (host, port) = (address.ip(), address.port());
    format!(r#"{{"host":"{host}","port":{port},"weight":{weight}}}"#).into_bytes()
}

async fn nothing_was_rejected(server: &MeshKeeper) {
    for kind in ["clusters", "endpoints", "listeners", "routes"] {
        let series = format!("meshkeeper_xds_nacks_total{{type=\"{kind}\"}}");
        assert_eq!(server.metric(&series).await, Some(0.0), "{series}");
    }
}
