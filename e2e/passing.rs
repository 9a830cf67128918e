//! What passes between two programs without a sidecar passes with it: byte by byte through a real Envoy.

use std::{fmt::Write, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{
    envoy::Envoy, meshkeeper::MeshKeeper, mortal::Mortal, traffic::Traffic, tree::Tree,
    zookeeper::ZooKeeper,
};

struct Mesh {
    _zookeeper: ZooKeeper,
    _server: MeshKeeper,
    _instance: Mortal,
    envoy: Envoy,
}

impl Mesh {
    async fn start(instance: Mortal, http: &str) -> Self {
        let zookeeper = ZooKeeper::start();
        let tree = Tree::connect(&zookeeper).await;
        let address = instance.address.to_string();
        tree.write_persistent("orders", "i", address.as_bytes())
            .await;
        let keys = format!("http: {{{http}}}");
        let server = MeshKeeper::start_mesh_with(&zookeeper.connect(), &keys).await;
        let envoy = Envoy::start(&server, "passing").await;
        Self {
            _zookeeper: zookeeper,
            _server: server,
            _instance: instance,
            envoy,
        }
    }

    /// Everything that comes back until it is quiet.
    async fn send(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.envoy.outbound).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let mut wait = Duration::from_secs(10);
        loop {
            let mut buffer = vec![0; 16 << 10];
            match timeout(wait, stream.read(&mut buffer)).await {
                Ok(Ok(count)) if count > 0 => answer.extend_from_slice(&buffer[..count]),
                _ => return String::from_utf8_lossy(&answer).into_owned(),
            }
            wait = Duration::from_millis(300);
        }
    }
}

/// What arrived, as the body; more headers, or trailers, where the path asks for them.
fn echo(head: &[u8], _: SocketAddr) -> Vec<u8> {
    let head = String::from_utf8_lossy(head);
    if head.contains(" /trailers ") {
        let chunked =
            "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 7\r\n\r\n";
        return format!("HTTP/1.1 200 OK\r\n{chunked}").into_bytes();
    }
    let mut headers = String::from("X-MiXed-Answer: 1\r\n");
    if head.contains(" /headers ") {
        for at in 0..150 {
            let _ = write!(headers, "X-H{at}: v\r\n");
        }
        let _ = write!(headers, "X-Long: {}\r\n", "y".repeat(60 << 10));
    }
    let length = head.len();
    format!("HTTP/1.1 200 Fine\r\n{headers}content-length: {length}\r\n\r\n{head}").into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn old_long_and_oddly_spelled_http_passes() {
    let instance = Mortal::with(echo, Duration::from_secs(600));
    let mesh = Mesh::start(instance, "").await;

    let old = mesh.send("GET /a HTTP/1.0\r\nHost: orders\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200 Fine\r\n"), "{old}");
    let old = mesh.send("GET http://orders/a HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200 Fine\r\n"), "{old}");
    let nowhere = mesh.send("GET /a HTTP/1.0\r\n\r\n").await;
    assert!(nowhere.starts_with("HTTP/1.0 400 "), "{nowhere}");

    let many: String = (0..150).fold(String::new(), |mut all, at| {
        let _ = write!(all, "X-H{at}: v\r\n");
        all
    });
    let long = "x".repeat(60 << 10);
    for (what, request) in [
        (
            "headers",
            format!("GET /a HTTP/1.1\r\nHost: orders\r\n{many}\r\n"),
        ),
        (
            "a header",
            format!("GET /a HTTP/1.1\r\nHost: orders\r\nX-Long: {long}\r\n\r\n"),
        ),
        (
            "a path",
            format!("GET /{long} HTTP/1.1\r\nHost: orders\r\n\r\n"),
        ),
    ] {
        let answer = mesh.send(&request).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 "),
            "{what}: {}",
            &answer[..40]
        );
        let arrived = answer.contains("X-H149: v\r\n") || answer.contains(&long);
        assert!(arrived, "{what} arrived");
    }
    let spelled = mesh
        .send("GET /a HTTP/1.1\r\nHost: orders\r\nX-oDD-naME: 1\r\n\r\n")
        .await;
    assert!(spelled.contains("X-oDD-naME: 1\r\n"), "{spelled}");
    assert!(spelled.contains("X-MiXed-Answer: 1\r\n"), "{spelled}");
    let answer = mesh
        .send("GET /headers HTTP/1.1\r\nHost: orders\r\n\r\n")
        .await;
    assert!(answer.contains("X-H149: v\r\n") && answer.len() > 60 << 10);
    let answer = mesh
        .send("GET /trailers HTTP/1.1\r\nHost: orders\r\nTE: trailers\r\n\r\n")
        .await;
    assert!(
        answer.to_lowercase().contains("\r\n0\r\nx-sum: 7\r\n\r\n"),
        "{answer}"
    );
    assert!(
        mesh.envoy.rejections().await.is_empty(),
        "{}",
        mesh.envoy.log()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_settings_of_http_are_what_a_sidecar_does() {
    let instance = Mortal::with(echo, Duration::from_secs(600));
    let keys = "defaultHost: orders, maxHeaders: 20, preserveCase: false";
    let mesh = Mesh::start(instance, keys).await;
    let old = mesh.send("GET /a HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200 "), "{old}");
    let spelled = mesh
        .send("GET /a HTTP/1.1\r\nHost: orders\r\nX-oDD-naME: 1\r\n\r\n")
        .await;
    assert!(spelled.contains("x-odd-name: 1\r\n"), "{spelled}");
    let many = "X-H: v\r\n".repeat(30);
    let refused = mesh
        .send(&format!("GET /a HTTP/1.1\r\nHost: orders\r\n{many}\r\n"))
        .await;
    assert!(refused.starts_with("HTTP/1.1 431 "), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_closes_idle_connections_early_costs_no_request() {
    let idle = Duration::from_millis(100);
    let mesh = Mesh::start(Mortal::with(echo, idle), "").await;
    // As far apart as the instance waits: now and then a request meets a connection that is just being closed.
    let traffic = Traffic::paced(mesh.envoy.outbound, "orders", 16, idle);
    tokio::time::sleep(Duration::from_secs(6)).await;
    let outcomes = traffic.stop().await;
    println!("{outcomes:?}");
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["200"], "{outcomes:?}");
}
