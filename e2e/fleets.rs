//! Registrations by the real frameworks, live: Spring Boot, Curator, Dubbo at both levels, Finagle and kazoo
//! register, change and leave, while a real MeshKeeper and a real Envoy watch.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE};
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use http::StatusCode;
use meshkeeper::resource::ResourceType;
use prost::Message;
use serde_json::{Value, json};

use crate::support::{
    backend::Backend,
    discovery::Delta,
    envoy::Envoy,
    fleet::Program,
    http::Http,
    meshkeeper::MeshKeeper,
    tree::Tree,
    wait::until,
    zookeeper::{ZooKeeper, free_port},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_spring_boot_application_is_called_while_it_is_up() {
    let zookeeper = ZooKeeper::start();
    let settings = [
        "spring.cloud.zookeeper.discovery.instance-host=localhost",
        "spring.cloud.zookeeper.discovery.metadata.weight=20",
        "spring.cloud.zookeeper.discovery.metadata.zone=eu-1a",
        "spring.cloud.zookeeper.discovery.metadata.version=2.3.1",
        "spring.cloud.zookeeper.discovery.metadata.management.port=9090",
    ];
    let mut shop = Program::spring(&zookeeper, "shop", &settings);
    let server = server(&zookeeper).await;
    let envoy = Envoy::start(&server, "spring").await;
    let http = Http::new();
    let answer = async || http.get(envoy.outbound, "shop", "/").await.unwrap();
    let answered = async |what: &str, status: StatusCode| {
        let seen = async || (answer().await.0 == status).then_some(());
        until(what, seen).await;
    };

    shop.ready().await;
    answered("an answer through the sidecar", StatusCode::OK).await;
    assert_eq!(answer().await.1, "this is shop");
    // It registered a host name, which may have several addresses.
    let shown = instances(&server, "shop").await;
    let shown = shown.iter().find(|i| i["address"] == "127.0.0.1").unwrap();
    assert_eq!(
        [&shown["weight"], &shown["zone"], &shown["format"]],
        [&json!(20), &json!("eu-1a"), &json!("curator")]
    );
    assert_eq!(shown["metadata"]["version"], "2.3.1");
    let management = instances(&server, "shop:management").await;
    assert!(
        management.iter().all(|i| i["port"] == 9090),
        "{management:?}"
    );
    assert!(!management.is_empty());

    shop.tell("OUT_OF_SERVICE").await;
    answered(
        "no answer while it is out of service",
        StatusCode::SERVICE_UNAVAILABLE,
    )
    .await;
    let shown = instances(&server, "shop").await;
    assert_eq!(
        shown[0]["health"],
        "disabled: instance_status is OUT_OF_SERVICE"
    );
    shop.tell("UP").await;
    answered("an answer once it is up again", StatusCode::OK).await;

    shop.leave().await;
    until("it is gone", async || {
        instances(&server, "shop").await.is_empty().then_some(())
    })
    .await;
    assert!(envoy.rejections().await.is_empty(), "{}", envoy.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_curator_updates_and_unregisters_is_followed() {
    let zookeeper = ZooKeeper::start();
    let mut curator = Program::curator(&zookeeper);
    let server = server(&zookeeper).await;
    curator.ready().await;

    curator
        .tell("put orders i-1 10.0.0.7 8080 8443 true zone=a")
        .await;
    curator.tell("put orders i-2 2001:db8::7 8080 - true").await;
    told(
        &server,
        "orders",
        &["10.0.0.7:8080 healthy", "2001:db8::7:8080 healthy"],
    )
    .await;
    told(&server, "orders:ssl", &["10.0.0.7:8443 healthy"]).await;
    let ssl = instances(&server, "orders:ssl").await;
    assert_eq!(ssl[0]["id"], "i-1");
    assert_eq!(ssl[0]["metadata"], json!({"sslPort": "8443", "zone": "a"}));

    curator
        .tell("put orders i-1 10.0.0.7 8080 8443 false")
        .await;
    let disabled = "disabled: enabled is false";
    let expected = [
        &*format!("10.0.0.7:8080 {disabled}"),
        "2001:db8::7:8080 healthy",
    ];
    told(&server, "orders", &expected).await;
    told(
        &server,
        "orders:ssl",
        &[&*format!("10.0.0.7:8443 {disabled}")],
    )
    .await;
    curator.tell("put orders i-1 10.0.0.7 8081 - true").await;
    told(
        &server,
        "orders",
        &["10.0.0.7:8081 healthy", "2001:db8::7:8080 healthy"],
    )
    .await;
    told(&server, "orders:ssl", &[]).await;

    curator.tell("drop orders i-1").await;
    told(&server, "orders", &["2001:db8::7:8080 healthy"]).await;
    curator.leave().await;
    told(&server, "orders", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dubbo_provider_is_seen_at_both_levels_and_its_restart_removes_nothing() {
    let zookeeper = ZooKeeper::start();
    let [dubbo, tri] = [free_port(), free_port()];
    let mut provider = Program::dubbo(&zookeeper, [dubbo, tri]);
    let connect = zookeeper.connect();
    // Both roots are the provider's to create.
    provider.ready().await;
    let applications = MeshKeeper::start_registry(&connect, "format: curator").await;
    let keys = "root: /dubbo, format: dubbo";
    let interfaces = MeshKeeper::start_registry(&connect, keys).await;

    let [dubbo, tri] = [dubbo, tri].map(|port| format!("10.0.0.7:{port} healthy"));
    told(&applications, "greetings", &[&dubbo]).await;
    told(&applications, "greetings:dubbo", &[&dubbo]).await;
    told(&applications, "greetings:tri", &[&tri]).await;
    told(&interfaces, "fleet.Clock", &[&dubbo, &tri]).await;
    told(&interfaces, "fleet.Greeter:blue:1.0.0", &[&dubbo, &tri]).await;
    let services = interfaces.api("services").await;
    let names: BTreeSet<_> = services
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["name"].as_str())
        .collect();
    let expected = ["fleet.Clock", "fleet.Greeter:blue:1.0.0"].map(Some);
    assert_eq!(
        names,
        BTreeSet::from(expected),
        "neither rules nor metadata"
    );
    let greeter = instances(&interfaces, "fleet.Greeter:blue:1.0.0").await;
    let [protocols, tags] = ["protocol", "dubbo.tag"].map(|key| {
        greeter
            .iter()
            .map(|i| i["metadata"][key].as_str().unwrap_or_default())
            .collect::<BTreeSet<_>>()
    });
    assert_eq!(
        (protocols, tags),
        (BTreeSet::from(["dubbo", "tri"]), BTreeSet::from(["canary"]))
    );
    // Its warm-up takes a second.
    until("the whole weight", async || {
        let greeter = instances(&interfaces, "fleet.Greeter:blue:1.0.0").await;
        greeter.iter().all(|i| i["weight"] == 300).then_some(())
    })
    .await;

    let channel = tonic::transport::Endpoint::new(format!("http://{}", interfaces.xds));
    let channel = channel.unwrap().connect().await.unwrap();
    let mut endpoints = Delta::open(channel).await.unwrap();
    endpoints
        .subscribe(ResourceType::Endpoint, &["fleet.Clock"])
        .await;
    let before = paths(&interfaces, "fleet.Clock").await;
    provider.kill().await;
    let mut provider = Program::dubbo(&zookeeper, [port_of(&dubbo), port_of(&tri)]);
    provider.ready().await;
    until("both znodes of the new process serve", async || {
        let now = paths(&interfaces, "fleet.Clock").await;
        (now.len() == 2 && now.is_disjoint(&before)).then_some(())
    })
    .await;
    let client = zookeeper.client().await;
    until("the old session is over", async || {
        let providers = client
            .list_children("/dubbo/fleet.Clock/providers")
            .await
            .unwrap();
        (providers.len() == 2).then_some(())
    })
    .await;
    told(&interfaces, "fleet.Clock", &[&dubbo, &tri]).await;

    // The answer to this comes after everything that was told before.
    let other = "fleet.Greeter:blue:1.0.0";
    endpoints.subscribe(ResourceType::Endpoint, &[other]).await;
    let counts = endpoint_counts(&mut endpoints, "fleet.Clock", other).await;
    assert!(
        !counts.is_empty() && counts.iter().all(|count| *count == 2),
        "{counts:?}"
    );

    provider.leave().await;
    told(&interfaces, "fleet.Clock", &[]).await;
    told(&applications, "greetings", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_sets_are_followed_with_their_statuses_and_named_ports() {
    let zookeeper = ZooKeeper::start();
    let mut finagle = Program::finagle(&zookeeper);
    let mut kazoo = Program::kazoo(&zookeeper);
    let server = server(&zookeeper).await;
    let users = "/services/users";
    finagle.ready().await;
    kazoo.ready().await;

    finagle
        .tell(&format!("join {users} 10.0.0.7 9000 3 admin=9990"))
        .await;
    let member = |status: &str| {
        format!(
            r#"{{"serviceEndpoint": {{"host": "10.0.0.8", "port": 9000}}, "status": "{status}", "shard": 4}}"#
        )
    };
    let created = kazoo
        .tell(&format!("create {users}/member_ {}", member("STARTING")))
        .await;
    let starting = "10.0.0.8:9000 disabled: status is STARTING";
    told(&server, "users", &["10.0.0.7:9000 healthy", starting]).await;
    told(&server, "users:admin", &["10.0.0.7:9990 healthy"]).await;
    let shown = instances(&server, "users").await;
    assert_eq!(shown[0]["metadata"], json!({"shard": "3"}));

    kazoo
        .tell(&format!("set {created} {}", member("ALIVE")))
        .await;
    told(
        &server,
        "users",
        &["10.0.0.7:9000 healthy", "10.0.0.8:9000 healthy"],
    )
    .await;

    let vector = r#"{"vector": [{"select": "shard=3", "weight": 2.5}, {"select": "inet=10.0.0.8:9000", "weight": 0}]}"#;
    let vector = kazoo
        .tell(&format!("create {users}/vector_ {vector}"))
        .await;
    let weights = async |expected: [u64; 2]| {
        until("the weights of the vectors", async || {
            let shown = instances(&server, "users").await;
            let found: Vec<_> = shown.iter().map(|i| i["weight"].as_u64()).collect();
            (found == expected.map(Some)).then_some(())
        })
        .await;
    };
    weights([250, 0]).await;
    kazoo.tell(&format!("delete {vector}")).await;
    weights([100, 100]).await;

    finagle.tell(&format!("leave {users}")).await;
    told(&server, "users", &["10.0.0.8:9000 healthy"]).await;
    told(&server, "users:admin", &[]).await;
    kazoo.leave().await;
    told(&server, "users", &[]).await;
    finagle.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_persistent_znode_of_nerve_is_served_while_it_is_touched() {
    let zookeeper = ZooKeeper::start();
    let mut nerve = Program::kazoo(&zookeeper);
    nerve.ready().await;
    let name = encoded(r#"{"host":"10.0.0.7","port":3000,"name":"i","labels":{"az":"a"}}"#);
    let path = format!("/nerve/services/users/services/{name}");
    nerve.tell(&format!("persist {path}")).await;
    let keys = "root: /nerve/services, format: nerve, ttl: 5s";
    let server = MeshKeeper::start_registry(&zookeeper.connect(), keys).await;
    told(&server, "users", &["10.0.0.7:3000 healthy"]).await;
    assert_eq!(instances(&server, "users").await[0]["zone"], "a");

    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(7) {
        nerve.tell(&format!("set {path}")).await;
        told(&server, "users", &["10.0.0.7:3000 healthy"]).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Nerve dies here.
    told(
        &server,
        "users",
        &["10.0.0.7:3000 disabled: not written within its TTL"],
    )
    .await;
    nerve.tell(&format!("set {path}")).await;
    told(&server, "users", &["10.0.0.7:3000 healthy"]).await;
    nerve.tell(&format!("delete {path}")).await;
    told(&server, "users", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_formats_are_told_apart_in_one_tree() {
    let zookeeper = ZooKeeper::start();
    let mut kazoo = Program::kazoo(&zookeeper);
    let server = server(&zookeeper).await;
    let backend = Backend::start().await;
    let port = backend.address.port();
    kazoo.ready().await;
    let in_name = encoded(&format!(
        r#"{{"host":"127.0.0.1","port":{port},"name":"n"}}"#
    ));
    let url = format!("dubbo%3A%2F%2F127.0.0.1%3A{port}%2Ffleet.Clock%3Fside%3Dprovider");
    for (format, path, data) in [
        (
            "plain",
            "of-plain/i".to_owned(),
            format!("127.0.0.1:{port}"),
        ),
        (
            "json",
            "of-json/i".to_owned(),
            format!(r#"{{"host": "127.0.0.1", "port": {port}}}"#),
        ),
        (
            "curator",
            "of-curator/i".to_owned(),
            format!(r#"{{"address": "127.0.0.1", "port": {port}, "serviceType": "DYNAMIC"}}"#),
        ),
        (
            "serverset",
            "of-serverset/member_1".to_owned(),
            format!(
                r#"{{"serviceEndpoint": {{"host": "127.0.0.1", "port": {port}}}, "status": "ALIVE"}}"#
            ),
        ),
        (
            "nerve",
            "of-nerve/i_1".to_owned(),
            format!(r#"{{"host": "127.0.0.1", "port": {port}, "name": "i"}}"#),
        ),
        ("nerve", format!("of-encoded/{in_name}"), String::new()),
        (
            "dubbo",
            format!("of-dubbo/providers/{url}"),
            "10.0.0.9".to_owned(),
        ),
    ] {
        kazoo.tell(&format!("create /services/{path} {data}")).await;
        let service = path.split('/').next().unwrap();
        told(&server, service, &[&*format!("127.0.0.1:{port} healthy")]).await;
        assert_eq!(instances(&server, service).await[0]["format"], format);
    }
    kazoo.tell(r#"create /services/of-curator/broken {"address": "10.0.0.7", "serviceType": "DYNAMIC"}"#).await;
    until("the reason of its format", async || {
        let rejected = server.api("rejected").await;
        let shown = rejected
            .as_array()?
            .iter()
            .find(|r| r["path"] == "/services/of-curator/broken")?;
        (shown["format"] == "curator" && shown["reason"].as_str()?.contains("port is missing"))
            .then_some(())
    })
    .await;

    let envoy = Envoy::start(&server, "formats").await;
    let http = Http::new();
    for service in ["of-curator", "of-serverset", "of-encoded", "of-dubbo"] {
        until(&format!("an answer of {service}"), async || {
            let (_, body) = http.get(envoy.outbound, service, "/").await.ok()?;
            (body == backend.address.to_string()).then_some(())
        })
        .await;
    }
}

/// The name that nerve gives a znode with path encoding.
fn encoded(registration: &str) -> String {
    let text = URL_SAFE.encode(registration);
    format!("base64_{}_{text}_0000000001", text.len())
}

/// With a root, without which it would not be ready.
async fn server(zookeeper: &ZooKeeper) -> MeshKeeper {
    Tree::connect(zookeeper).await;
    MeshKeeper::start(&zookeeper.connect()).await
}

async fn instances(server: &MeshKeeper, service: &str) -> Vec<Value> {
    let services = server.api(&format!("services?name={service}")).await;
    let instances = services[0]["instances"].as_array();
    instances.cloned().unwrap_or_default()
}

/// Waits until the service has just these, each as `ADDRESS:PORT HEALTH`.
async fn told(server: &MeshKeeper, service: &str, expected: &[&str]) {
    let shown = |i: &Value| {
        let text = |key: &str| i[key].as_str().unwrap_or_default().to_owned();
        format!("{}:{} {}", text("address"), i["port"], text("health"))
    };
    let expected: BTreeSet<String> = expected.iter().map(|&e| e.to_owned()).collect();
    until(&format!("{service} has {expected:?}"), async || {
        let found: BTreeSet<_> = instances(server, service).await.iter().map(shown).collect();
        (found == expected).then_some(())
    })
    .await;
}

async fn paths(server: &MeshKeeper, service: &str) -> BTreeSet<String> {
    let instances = instances(server, service).await;
    let paths = instances.iter().filter_map(|i| i["path"].as_str());
    paths.map(str::to_owned).collect()
}

fn port_of(shown: &str) -> u16 {
    let socket = shown.split(' ').next().unwrap();
    socket.rsplit(':').next().unwrap().parse().unwrap()
}

/// How many endpoints each assignment of a service had that the stream was told, up to the first
/// assignment of another one. A service that is gone has none.
async fn endpoint_counts(endpoints: &mut Delta, service: &str, other: &str) -> Vec<usize> {
    let mut counts = Vec::new();
    loop {
        let response = endpoints.next().await;
        endpoints.ack(&response).await;
        for resource in &response.resources {
            let body = resource.resource.as_ref().unwrap();
            let assignment = ClusterLoadAssignment::decode(body.value.as_ref()).unwrap();
            if resource.name == service {
                counts.push(
                    assignment
                        .endpoints
                        .iter()
                        .map(|l| l.lb_endpoints.len())
                        .sum(),
                );
            }
        }
        let removed = response
            .removed_resources
            .iter()
            .filter(|name| *name == service);
        counts.extend(removed.map(|_| 0));
        if response
            .resources
            .iter()
            .any(|resource| resource.name == other)
        {
            return counts;
        }
    }
}
