//! Several registries in one server, names that are no hosts, and why what is served: on real ensembles
//! and a real Envoy.

use std::time::Duration;

use http::StatusCode;
use meshkeeper::resource::ResourceType;
use tokio::time::timeout;
use tonic::transport::Endpoint;

use crate::support::{
    backend::Backend, discovery::Sotw, envoy::Envoy, http::Http, meshkeeper::MeshKeeper,
    tree::Tree, wait::until, zookeeper::ZooKeeper,
};

/// Two ensembles, the second one the first choice.
struct Both {
    old: ZooKeeper,
    new: ZooKeeper,
    old_tree: Tree,
    new_tree: Tree,
}

impl Both {
    async fn start() -> Self {
        let (old, new) = (ZooKeeper::start(), ZooKeeper::start());
        let old_tree = Tree::connect(&old).await;
        let new_tree = Tree::connect(&new).await;
        Self {
            old,
            new,
            old_tree,
            new_tree,
        }
    }

    fn registries(&self) -> String {
        format!(
            "{{name: old, connect: \"{}\", sessionTimeout: 4s, priority: 1}}, \
             {{name: new, connect: \"{}\", sessionTimeout: 4s}}",
            self.old.connect(),
            self.new.connect()
        )
    }
}

async fn until_addresses(server: &MeshKeeper, service: &str, expected: &[&str]) {
    let seen = async || (server.addresses(service).await == expected).then_some(());
    until(&format!("{service} at {expected:?}"), seen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_of_two_ensembles_fails_over_by_priority_and_back() {
    let both = Both::start().await;
    let backends = Backend::start_many(2).await;
    let [first, second] = [0, 1].map(|n| backends[n].address.to_string());
    both.new_tree
        .register("orders", "n", first.as_bytes())
        .await;
    both.old_tree
        .register("orders", "o", second.as_bytes())
        .await;
    let server = MeshKeeper::spawn_of(&both.registries());
    server.ready().await;
    let envoy = Envoy::start(&server, "priorities").await;
    until("both hosts", async || {
        (envoy.hosts("orders").await.len() == 2).then_some(())
    })
    .await;

    let http = Http::new();
    let asked = async || http.get(envoy.outbound, "orders", "/").await.unwrap();
    for _ in 0..50 {
        let (status, answer) = asked().await;
        assert_eq!(status, StatusCode::OK);
        assert!(answer.contains(&first), "{answer} is not of {first}");
    }
    both.new_tree.delete("orders", "n").await;
    until("the second choice", async || {
        asked().await.1.contains(&second).then_some(())
    })
    .await;
    both.new_tree
        .register("orders", "n", first.as_bytes())
        .await;
    until("the first again", async || {
        asked().await.1.contains(&first).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ensemble_that_is_down_touches_nothing_of_another() {
    let mut both = Both::start().await;
    both.old_tree
        .write_persistent("stays", "i", b"10.0.0.1:80")
        .await;
    let server = MeshKeeper::spawn_of(&both.registries());
    server.ready().await;
    until_addresses(&server, "stays", &["10.0.0.1:80"]).await;

    both.old.kill();
    let ready = async || Http::new().text(server.admin, "/readyz").await;
    let noted = async || {
        ready()
            .await
            .filter(|page| page.contains("zookeeper old"))
            .map(drop)
    };
    until("a note on the old one", noted).await;
    both.new_tree.register("moves", "i", b"10.0.0.2:80").await;
    until_addresses(&server, "moves", &["10.0.0.2:80"]).await;
    until_addresses(&server, "stays", &["10.0.0.1:80"]).await;
    assert!(!ready().await.unwrap().contains("zookeeper new"));

    both.old.restart();
    let quiet = async || {
        ready()
            .await
            .filter(|page| !page.contains("zookeeper"))
            .map(drop)
    };
    until("no note", quiet).await;
    until_addresses(&server, "stays", &["10.0.0.1:80"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_waits_for_the_registries_that_are_required_and_for_no_other() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    tree.register("orders", "i", b"10.0.0.1:80").await;
    let mut late = ZooKeeper::absent();
    let registries = |required: bool| {
        format!(
            "{{name: main, connect: \"{}\"}}, {{name: late, connect: \"{}\", required: {required}}}",
            zookeeper.connect(),
            late.connect()
        )
    };
    let waits = MeshKeeper::spawn_of(&registries(true));
    let serves = MeshKeeper::spawn_of(&registries(false));
    serves.ready().await;
    until_addresses(&serves, "orders", &["10.0.0.1:80"]).await;
    let page = async || {
        let (_, page) = Http::new()
            .get(waits.admin, "localhost", "/readyz")
            .await
            .ok()?;
        (page.contains("registry late") && !page.contains("registry main")).then_some(())
    };
    until("it says what it waits for", page).await;

    late.restart();
    let tree = Tree::connect(&late).await;
    tree.register("payments", "i", b"10.0.0.2:80").await;
    for server in [&waits, &serves] {
        server.ready().await;
        until_addresses(server, "payments", &["10.0.0.2:80"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_no_hosts_are_reached_by_the_hosts_made_of_them() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let backends = Backend::start_many(1).await;
    let address = backends[0].address.to_string();
    tree.register("com.foo.Bar:1.0", "i", address.as_bytes())
        .await;
    tree.register("User_API", "i", address.as_bytes()).await;
    let server = MeshKeeper::start(&zookeeper.connect()).await;
    let envoy = Envoy::start(&server, "names").await;
    let http = Http::new();
    for host in [
        "com.foo.bar-1.0",
        "com.foo.Bar-1.0.mesh:80",
        "user-api",
        "User_API",
        "user_api.mesh",
    ] {
        let answers = async || {
            let (status, _) = http.get(envoy.outbound, host, "/").await.ok()?;
            (status == StatusCode::OK).then_some(())
        };
        until(&format!("an answer of {host}"), answers).await;
    }
    // Another that leads to the same host is younger.
    tree.register("user-api", "i", address.as_bytes()).await;
    let rejected = async || {
        let rejected = server.api("rejected").await;
        let reason = rejected[0]["reason"].as_str()?.to_owned();
        reason
            .contains("belongs to the older service `User_API`")
            .then_some(())
    };
    until("the younger one is rejected", rejected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_is_told_why_and_who_has_it() {
    let both = Both::start().await;
    both.new_tree
        .register("orders", "i-1", b"10.0.0.1:80")
        .await;
    both.new_tree.register("orders", "bad", b"no port").await;
    both.old_tree
        .register("orders", "i-1", b"10.0.0.1:80")
        .await;
    both.old_tree
        .register("orders", "i-2", b"10.0.0.2:80")
        .await;
    let server = MeshKeeper::spawn_of(&both.registries());
    server.ready().await;
    let envoy = Envoy::start(&server, "sidecar-7").await;
    until("hosts", async || {
        (envoy.hosts("orders").await.len() == 2).then_some(())
    })
    .await;

    let acked = async || {
        let explained = server.api("explain?subject=10.0.0.1:80").await;
        let clients = &explained["services"][0]["clients"];
        (clients["acked"] == 1 && clients["some"][0]["nodeId"] == "sidecar-7").then_some(explained)
    };
    let explained = until("the sidecar has acknowledged", acked).await;
    let told: Vec<_> = (explained["instances"].as_array().unwrap().iter())
        .map(|i| {
            (
                i["registry"].as_str().unwrap(),
                i["told"].as_bool().unwrap(),
            )
        })
        .collect();
    assert_eq!(told, [("old", false), ("new", true)]);
    assert!(
        explained["instances"][1]["session"]
            .as_str()
            .unwrap()
            .starts_with("0x")
    );

    both.new_tree
        .write(
            "orders",
            "i-1",
            br#"{"host":"10.0.0.1","port":80,"weight":7}"#,
        )
        .await;
    let heavier = async || {
        let (_, page) = server.command(&["explain", "/services/orders/i-1"]).await;
        page.contains("weight 100 → 7").then_some(page)
    };
    until("the journal has the change", heavier).await;
    let (status, page) = server.command(&["explain", "/services/orders/bad"]).await;
    assert_eq!(status, Some(0));
    assert!(page.contains("has no port"), "{page}");

    let (status, page) = server.command(&["compare", "old", "new"]).await;
    assert_eq!(status, Some(1));
    assert!(page.contains("10.0.0.2:80 only in old"), "{page}");
    assert!(page.contains("10.0.0.1:80 differs in weight"), "{page}");
    let (status, _) = server.command(&["compare", "old", "other"]).await;
    assert_eq!(status, Some(2), "no such registry");
    let nobody = std::process::Command::new(env!("CARGO_BIN_EXE_meshkeeper"))
        .args(["compare", "old", "new", "--admin", "127.0.0.1:1"])
        .output()
        .unwrap();
    assert_eq!(nobody.status.code(), Some(3), "no server");
    both.old_tree.delete("orders", "i-2").await;
    both.old_tree
        .write(
            "orders",
            "i-1",
            br#"{"host":"10.0.0.1","port":80,"weight":7}"#,
        )
        .await;
    let equal = async || {
        let (status, page) = server.command(&["compare", "old", "new"]).await;
        (status == Some(0)).then_some(page)
    };
    let page = until("the two are equal", equal).await;
    assert!(page.contains("none differs"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_does_not_exist_keeps_no_other_registry_from_being_served() {
    let zookeeper = ZooKeeper::start();
    let connect = zookeeper.connect();
    let registry = |name: &str, root: &str| {
        format!("{{name: {name}, connect: \"{connect}\", root: {root}, sessionTimeout: 4s}}")
    };
    let absent = [registry("one", "/service"), registry("two", "/elsewhere")];
    let nothing = MeshKeeper::spawn_of(&absent.join(", "));
    let said = |server: &MeshKeeper, part: &str| server.log().contains(part).then_some(());
    for part in [
        "`/service` does not exist; `/` is empty",
        "`/elsewhere` does not exist",
    ] {
        until(part, async || said(&nothing, part)).await;
    }

    let tree = Tree::connect(&zookeeper).await;
    tree.register("orders", "i-1", b"10.0.0.1:80").await;
    let some = [registry("one", "/services"), registry("two", "/elsewhere")];
    let server = MeshKeeper::spawn_of(&some.join(", "));
    server.ready().await;
    until_addresses(&server, "orders", &["10.0.0.1:80"]).await;
    let note = "waiting for /elsewhere to be created; there is `/services`";
    assert!(server.page("/readyz").await.contains(note));

    // Where all are absent nothing may be told, however long that takes.
    let channel = format!("http://{}", nothing.xds)
        .parse::<Endpoint>()
        .unwrap();
    let mut stream = Sotw::open(channel.connect().await.unwrap()).await.unwrap();
    stream.ask(ResourceType::Cluster, &[]).await;
    let told = timeout(Duration::from_secs(1), stream.next()).await;
    assert!(told.is_err(), "{told:?}");
    assert!(nothing.not_ready().await.unwrap().contains("registry two"));

    // And the one that comes late is served beside the other.
    tree.create_at("/elsewhere/users/u-1", b"10.0.0.2:80").await;
    for server in [&server, &nothing] {
        until_addresses(server, "users", &["10.0.0.2:80"]).await;
    }
    until_addresses(&server, "orders", &["10.0.0.1:80"]).await;
    nothing.ready().await;
    timeout(Duration::from_secs(5), stream.next())
        .await
        .unwrap();
}
