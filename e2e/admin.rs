//! The admin server over real loopback HTTP, with a registry that is made up.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use meshkeeper::{
    admin::{
        Sources,
        host::Hosts,
        server::{Limits, serve_within},
    },
    model::{Health, Instance, Instances, Origin, Service, Source, Weight},
    readiness::Readiness,
    registry::{Addresses, Config, FormatChoice, Layout, Mirrored, Picture, Rejected, Shape, View},
    resource::{Edition, Resource, ResourceType, Version},
    telemetry,
    xds::status::{ClientStatus, State, TypeStatus},
};
use prost::Message;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A running admin server; it stops when it is dropped.
pub struct Admin {
    pub address: SocketAddr,
    pub readiness: Readiness,
    pub registry: watch::Sender<Picture>,
    _stop: DropGuard,
}

impl Admin {
    pub async fn start() -> Self {
        Self::within(Limits::default()).await
    }

    pub async fn within(limits: Limits) -> Self {
        Self::start_as(limits, &[]).await
    }

    /// With names in `admin.hosts`.
    pub async fn start_as(limits: Limits, named: &[&str]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let readiness = Readiness::new();
        let (registry, view) = watch::channel(picture());
        let stop = CancellationToken::new();
        let sources = Sources {
            registry: view,
            readiness: readiness.clone(),
            metrics: telemetry::metrics().unwrap(),
            followers: Arc::new(|_| Vec::new()),
            missing: Arc::new(|_| Vec::new()),
            clients: Arc::new(clients),
            resources: Arc::new(resources),
            operator: Arc::new(Nobody),
            hosts: Hosts::new(
                address,
                &named.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ),
            domain_suffix: "mesh".into(),
        };
        tokio::spawn(serve_within(listener, sources, stop.clone(), limits));
        Self {
            address,
            readiness,
            registry,
            _stop: stop.drop_guard(),
        }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.ask(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"))
            .await
    }

    async fn json(&self, path: &str) -> (u16, Value) {
        let (status, body) = self.get(path).await;
        let value = serde_json::from_str(&body).unwrap_or_else(|e| panic!("{path}: {e}: {body}"));
        (status, value)
    }

    async fn ask(&self, request: &str) -> (u16, String) {
        let (address, request) = (self.address, request.to_owned());
        let answer = move || {
            let mut stream = connect(address);
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        let answer = tokio::task::spawn_blocking(answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).expect("a status");
        (status.parse().unwrap(), body.to_owned())
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    stream
}

fn picture() -> Picture {
    let instance = Instance {
        own_id: None,
        address: Ipv4Addr::new(10, 0, 0, 7).into(),
        port: 8080,
        weight: Weight::new(30).unwrap(),
        zone: Some("a".into()),
        health: Health::Healthy,
        metadata: BTreeMap::from([("version".to_owned(), "v2".to_owned())]).into(),
        priority: 0,
        origin: Origin {
            source: Arc::new(Source {
                registry: "main".into(),
                root: "/services".into(),
            }),
            znode: "orders/i-1".into(),
            format: "json",
            czxid: 11,
            mzxid: 12,
            session: 0,
        },
    };
    let service = |name: &str, instances| {
        let service = Service {
            name: name.into(),
            host: name.into(),
            registry: "main".into(),
            instances,
        };
        (Arc::from(name), Arc::new(service))
    };
    let rejected = Rejected {
        format: "plain",
        reason: "the port is missing \u{1b}[31m".into(),
    };
    let services: imbl::OrdMap<_, _> = [
        service("orders", [Arc::new(instance)].into_iter().collect()),
        service("payments", Instances::default()),
    ]
    .into_iter()
    .collect();
    let view = View {
        services: services.clone(),
        rejected: [("/services/orders/bad".to_owned(), rejected)]
            .into_iter()
            .collect(),
        ..View::default()
    };
    Picture {
        services,
        registries: [Mirrored {
            absent: false,
            name: "main".into(),
            config: Arc::new(config()),
            addresses: Addresses::new(),
            view,
            loaded: true,
            restored: None,
        }]
        .into(),
        ..Picture::default()
    }
}

fn config() -> Config {
    Config {
        name: "main".into(),
        root: "/services".into(),
        layout: Layout::flat(),
        format: FormatChoice::Auto,
        priority: 0,
        required: true,
        ttl: None,
        shape: Shape::default(),
    }
}

/// Nobody to obey.
struct Nobody;

impl meshkeeper::admin::Operator for Nobody {
    fn release(
        &self,
        _: Option<String>,
        _: Option<String>,
    ) -> futures_util::future::BoxFuture<'static, Option<usize>> {
        Box::pin(async { None })
    }
}

fn clients() -> Vec<ClientStatus> {
    let clusters = TypeStatus {
        state: State::Synced,
        version: Some("0000000000000001".into()),
        subscribed: 1,
        error: None,
        unregistered: Vec::new(),
        rejected_since: None,
        rejections: 0,
    };
    let endpoints = TypeStatus {
        state: State::Error,
        version: None,
        subscribed: 2,
        error: Some("no such address".into()),
        unregistered: Vec::new(),
        rejected_since: Some(std::time::Instant::now()),
        rejections: 3,
    };
    vec![ClientStatus {
        node_id: "sidecar-1".into(),
        kind: "envoy",
        address: "127.0.0.1:40000".into(),
        on_demand: false,
        increments: false,
        note: None,
        connected_at: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        types: [
            ("clusters".to_owned(), clusters),
            ("endpoints".to_owned(), endpoints),
        ]
        .into(),
    }]
}

fn resources(client: Edition, kind: ResourceType) -> Vec<Arc<Resource>> {
    if (client, kind) != (Edition::Envoy, ResourceType::Cluster) {
        return Vec::new();
    }
    let cluster = |name: &str| {
        let body = Cluster {
            name: name.into(),
            ..Cluster::default()
        };
        Arc::new(Resource::new(kind, name, Version(1), &body.encode_to_vec()))
    };
    vec![cluster("orders"), cluster("payments")]
}

#[tokio::test]
async fn it_is_ready_once_nothing_is_missing_and_says_what_is() {
    let admin = Admin::start().await;
    assert_eq!(admin.get("/livez").await, (200, "alive\n".into()));

    admin.readiness.pending("registry main");
    let (status, body) = admin.get("/readyz").await;
    assert_eq!(status, 503);
    assert!(body.contains("registry main"), "{body}");
    assert_eq!(admin.get("/livez").await.0, 200);

    admin.readiness.done("registry main");
    admin
        .readiness
        .note("zookeeper main", "disconnected since 12:00");
    assert_eq!(
        admin.get("/readyz").await,
        (
            200,
            "ready\nnote: zookeeper main: disconnected since 12:00\n".into()
        )
    );
}

#[tokio::test]
async fn metrics_are_told_to_prometheus() {
    let (status, body) = Admin::start().await.get("/metrics").await;
    assert_eq!(status, 200);
    assert!(body.contains("meshkeeper_build_info{version=\""), "{body}");
    for name in [
        "process_cpu_seconds_total",
        "process_open_fds",
        "process_max_fds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_threads",
    ] {
        let line = body
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        let least = if name.starts_with("process_cpu") {
            0.0
        } else {
            1.0
        };
        assert!(
            value.is_some_and(|value| value >= least),
            "{name}: {line:?}"
        );
    }
}

#[tokio::test]
async fn the_index_lists_every_page() {
    let admin = Admin::start().await;
    let (status, index) = admin.get("/").await;
    assert_eq!(status, 200);
    let paths: Vec<_> = index
        .lines()
        .filter(|line| line.starts_with('/'))
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect();
    for path in [
        "/livez",
        "/readyz",
        "/metrics",
        "/api/v1/services",
        "/api/v1/rejected",
        "/api/v1/clients",
        "/api/v1/config",
        "/api/v1/explain",
        "/api/v1/compare",
        "/api/v1/holds",
        "/api/v1/release",
    ] {
        assert!(paths.iter().any(|listed| listed == path), "{path}: {index}");
    }
    for path in paths {
        assert_ne!(admin.get(&path).await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn requests_for_foreign_hosts_are_refused_on_every_page() {
    let admin = Admin::start_as(Limits::default(), &["mesh.example", "*.mesh.svc"]).await;
    let ask = async |method: &str, path: &str, host: &str| {
        let request = format!("{method} {path} HTTP/1.1\r\n{host}\r\n");
        admin.ask(&request).await
    };
    let pages = [
        "/",
        "/livez",
        "/readyz",
        "/metrics",
        "/api/v1/services",
        "/none",
    ];
    for path in pages {
        for host in [
            "evil.example",
            "evil.example:15014",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "mesh.example.evil.example",
            "192.0.2.1",
        ] {
            let (status, body) = ask("GET", path, &format!("host: {host}\r\n")).await;
            assert_eq!(status, 403, "{path} {host}: {body}");
            assert!(
                body.contains("admin.hosts") && !body.contains("orders"),
                "{body}"
            );
        }
        let twice = "host: localhost\r\nhost: evil.example\r\n";
        assert_ne!(ask("GET", path, twice).await.0, 200, "{path}");
    }
    assert_eq!(
        ask("HEAD", "/metrics", "host: evil.example\r\n").await.0,
        403
    );
    let absolute = "http://evil.example/metrics";
    assert_eq!(ask("GET", absolute, "host: localhost\r\n").await.0, 403);

    let port = admin.address.port();
    for host in [
        "localhost".to_owned(),
        format!("LocalHost:{port}"),
        format!("127.0.0.1:{port}"),
        "[::1]:9".to_owned(),
        "Mesh.Example:80".to_owned(),
        "a.mesh.svc".to_owned(),
    ] {
        let (status, body) = ask("GET", "/readyz", &format!("host: {host}\r\n")).await;
        assert_eq!(status, 200, "{host}: {body}");
    }
    // A probe of HTTP/1.0, as load balancers send it.
    assert_eq!(admin.ask("GET /livez HTTP/1.0\r\n\r\n").await.0, 200);
}

#[tokio::test]
async fn services_are_listed_and_picked_by_name() {
    let admin = Admin::start().await;
    let (status, all) = admin.json("/api/v1/services").await;
    assert_eq!(status, 200);
    assert_eq!(all[0]["instances"][0]["path"], "/services/orders/i-1");
    assert_eq!(
        all[1],
        json!({"name": "payments", "host": "payments", "registry": "main", "instances": []})
    );
    let (_, one) = admin.json("/api/v1/services?name=payments").await;
    assert_eq!(one.as_array().unwrap().len(), 1);
    assert_eq!(
        admin.json("/api/v1/services?name=none").await,
        (200, json!([]))
    );
    admin.registry.send_replace(Picture::default());
    assert_eq!(admin.json("/api/v1/services").await, (200, json!([])));
}

#[tokio::test]
async fn rejected_znodes_and_clients_are_listed() {
    let admin = Admin::start().await;
    let (_, rejected) = admin.json("/api/v1/rejected").await;
    assert_eq!(rejected[0]["path"], "/services/orders/bad");
    assert_eq!(rejected[0]["format"], "plain");
    let (_, clients) = admin.json("/api/v1/clients").await;
    assert_eq!(clients[0]["nodeId"], "sidecar-1");
    assert_eq!(clients[0]["connectedAt"], "2023-11-14T22:13:20Z");
    assert_eq!(clients[0]["types"]["endpoints"]["state"], "ERROR");
}

#[tokio::test]
async fn resources_are_told_as_proto_json() {
    let admin = Admin::start().await;
    let (_, all) = admin.json("/api/v1/config?kind=envoy&type=clusters").await;
    assert_eq!(all["kind"], "envoy");
    assert_eq!(all["type"], "clusters");
    assert_eq!(
        all["resources"][0],
        json!({"name": "orders", "version": "0000000000000001", "resource": {"name": "orders"}})
    );
    let picked = "/api/v1/config?kind=envoy&type=clusters&name=payments";
    let (_, one) = admin.json(picked).await;
    assert_eq!(one["resources"].as_array().unwrap().len(), 1);
    let (_, none) = admin.json("/api/v1/config?kind=grpc&type=routes").await;
    assert_eq!(none["resources"], json!([]));
}

#[tokio::test]
async fn what_cannot_be_answered_is_refused_with_a_remedy() {
    let admin = Admin::start().await;
    for (path, status) in [
        ("/api/v1/config", 400),
        ("/api/v1/config?kind=envoy", 400),
        ("/api/v1/config?kind=envoy&type=secrets", 400),
        ("/api/v1/config?kind=istio&type=clusters", 400),
        ("/api/v1/config?kind=envoy&type=clusters&name=none", 404),
        ("/api/v1/config?kind=envoy&kind=grpc&type=clusters", 400),
        ("/api/v1/services?nme=orders", 400),
        ("/api/v2/services", 404),
    ] {
        let (told, body) = admin.json(path).await;
        assert_eq!(told, status, "{path}");
        assert!(body["error"].is_string(), "{path}: {body}");
        assert!(body["remedy"].is_string(), "{path}: {body}");
    }
}

#[tokio::test]
async fn nothing_but_reading_is_allowed() {
    let admin = Admin::start().await;
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "NONSENSE"] {
        let request =
            format!("{method} /livez HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n");
        let (status, body) = admin.ask(&request).await;
        assert_eq!(status, 405, "{method}");
        assert!(body.contains("remedy"), "{body}");
    }
    let (status, body) = admin
        .ask("HEAD /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await;
    assert_eq!((status, body.as_str()), (200, ""));
}

#[tokio::test]
async fn what_is_held_is_released_by_programs_of_this_machine_and_by_no_page() {
    let admin = Admin::start().await;
    let (status, holds) = admin.json("/api/v1/holds").await;
    assert_eq!(
        (status, &holds[0]["registry"], &holds[0]["held"]),
        (200, &json!("main"), &json!(0))
    );
    let host = admin.address;
    let release = async |query: &str, more: &str| {
        let request =
            format!("POST /api/v1/release{query} HTTP/1.1\r\n{more}content-length: 0\r\n\r\n");
        admin.ask(&request).await
    };
    let here = format!("host: {host}\r\n");
    // The server of this test has nobody who would do it.
    assert_eq!(release("", &here).await.0, 503);
    assert_eq!(release("?registry=main", &here).await.0, 503);
    for (query, more, status) in [
        ("?registry=none", here.clone(), 404),
        ("?service=orders", here.clone(), 404),
        ("?nonsense=1", here.clone(), 400),
        ("", format!("{here}origin: http://{host}\r\n"), 403),
        ("", "host: evil.example\r\n".to_owned(), 403),
    ] {
        let (told, body) = release(query, &more).await;
        assert_eq!(told, status, "{query} {more}: {body}");
        assert!(body.contains("remedy"), "{body}");
    }
    assert_eq!(admin.get("/api/v1/release").await.0, 405);
}

/// Reads until the server ends the connection.
async fn ended(mut stream: TcpStream) {
    let read = move || stream.read_to_end(&mut Vec::new()).map(drop);
    let read = tokio::task::spawn_blocking(read).await.unwrap();
    // A reset is an end too.
    if let Err(error) = read {
        assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}");
    }
}

#[tokio::test]
async fn clients_that_never_ask_are_cut_off_and_block_others_only_that_long() {
    let limits = Limits {
        connections: 2,
        head: Duration::from_millis(200),
        ..Limits::default()
    };
    let admin = Admin::within(limits).await;
    let silent = connect(admin.address);
    let mut dripping = connect(admin.address);
    dripping.write_all(b"GET /livez HTT").unwrap();
    assert_eq!(admin.get("/livez").await.0, 200);
    ended(silent).await;
    ended(dripping).await;
}

#[tokio::test]
async fn clients_that_never_ask_make_room_for_those_who_do() {
    let limits = Limits {
        connections: 2,
        head: Duration::from_secs(60),
        ..Limits::default()
    };
    let admin = Admin::within(limits).await;
    let silent: Vec<_> = (0..8).map(|_| connect(admin.address)).collect();
    assert_eq!(admin.get("/livez").await.0, 200);
    for client in silent.into_iter().take(6) {
        ended(client).await;
    }
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off() {
    let limits = Limits {
        whole: Duration::from_millis(300),
        ..Limits::default()
    };
    let admin = Admin::within(limits).await;
    let many = picture().services["orders"]
        .instances
        .iter()
        .next()
        .unwrap()
        .clone();
    let service = Service {
        name: "huge".into(),
        host: "huge".into(),
        registry: "main".into(),
        instances: (0..100_000_u32)
            .map(|n| {
                let address = IpAddr::from(n.to_be_bytes());
                Arc::new(Instance {
                    address,
                    ..Instance::clone(&many)
                })
            })
            .collect(),
    };
    admin.registry.send_replace(Picture {
        services: [(Arc::from("huge"), Arc::new(service))]
            .into_iter()
            .collect(),
        ..Picture::default()
    });
    let mut stream = connect(admin.address);
    stream
        .write_all(b"GET /api/v1/services HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .unwrap();
    // The peer's buffers fill up and nobody reads them: the server has to give up by itself, which
    // shows in a write that fails.
    let broken = move || {
        while stream.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    tokio::time::timeout(Duration::from_secs(30), tokio::task::spawn_blocking(broken))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn hostile_requests_end_with_an_error_and_harm_nobody() {
    let limits = Limits {
        head: Duration::from_millis(200),
        ..Limits::default()
    };
    let admin = Admin::within(limits).await;
    let long = format!(
        "GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "a".repeat(100_000)
    );
    for request in [
        "\r\n\r\n\r\n",
        "GET\r\n\r\n",
        "\u{0}\u{1}\u{2}\r\n\r\n",
        &long,
    ] {
        let mut stream = connect(admin.address);
        // The server may hang up before it was told everything.
        let _ = stream.write_all(request.as_bytes());
        ended(stream).await;
    }
    assert_eq!(admin.get("/livez").await.0, 200);
    let (status, _) = admin.get("/api/v1/services?name=%ff%fe").await;
    assert!(status == 200 || status == 400, "{status}");
}
