//! Probes of held instances on real sockets: what refuses connections is removed, and nothing else.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
    time::timeout,
};

use crate::support::{
    backend::Backend, envoy::Envoy, meshkeeper::MeshKeeper, traffic::Traffic, tree::Tree,
    wait::until, zookeeper::ZooKeeper,
};

const HELD: &str = "meshkeeper_guard_held_instances{registry=\"main\"}";
const STATE: &str = "state: {directory: $FOLDER/state}";

fn probes(result: &str) -> String {
    format!("meshkeeper_guard_probes_total{{result=\"{result}\"}}")
}

async fn held(server: &MeshKeeper, count: usize) {
    until(&format!("{count} held instances"), async || {
        ((server.metric(HELD).await? - count as f64).abs() < 0.5).then_some(())
    })
    .await;
}

async fn register(tree: &Tree, service: &str, addresses: &[SocketAddr]) {
    for address in addresses {
        let text = address.to_string();
        tree.write_persistent(service, &text, text.as_bytes()).await;
    }
}

async fn deregister(tree: &Tree, service: &str, addresses: &[SocketAddr]) {
    for address in addresses {
        tree.delete(service, &address.to_string()).await;
    }
}

fn addresses(backends: &[Backend]) -> Vec<SocketAddr> {
    backends.iter().map(|backend| backend.address).collect()
}

/// A listener that drops connection attempts, as a cut network does: its backlog is full.
struct Silent {
    listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

impl Silent {
    async fn start() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        let attempt = || timeout(Duration::from_millis(200), TcpStream::connect(address));
        while let Ok(connected) = attempt().await {
            waiting.push(connected.unwrap());
        }
        Self {
            listener,
            _waiting: waiting,
        }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }
}

/// A listener that reports how many bytes each connection brought.
async fn counting() -> (SocketAddr, mpsc::UnboundedReceiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = Vec::new();
            let read = stream.read_to_end(&mut bytes).await;
            if read.is_err() || sender.send(bytes.len()).is_err() {
                return;
            }
        }
    });
    (address, receiver)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_is_off_for_good_is_removed_and_what_lives_stays_over_a_restart() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let (mut dead, live) = (Backend::start_many(8).await, Backend::start_many(4).await);
    let (gone, stays) = (addresses(&dead), addresses(&live));
    register(&tree, "orders", &gone).await;
    register(&tree, "orders", &stays).await;
    let mut server = MeshKeeper::start_configured(&zookeeper.connect(), STATE).await;
    let envoy = Envoy::start(&server, "site").await;
    let hosts = async |count: usize| {
        until(&format!("{count} hosts"), async || {
            (envoy.hosts("orders").await.len() == count).then_some(())
        })
        .await;
    };
    hosts(12).await;

    // Eight programs end, and their znodes go at once; so do those of two that live.
    deregister(&tree, "orders", &gone).await;
    deregister(&tree, "orders", &stays[..2]).await;
    held(&server, 10).await;
    dead.clear();
    held(&server, 2).await;
    hosts(4).await;
    let traffic = Traffic::start(envoy.outbound, "orders");
    let (_, why) = server.command(&["explain", &gone[0].to_string()]).await;
    assert!(why.contains("its address refused a connection"), "{why}");
    assert!(
        server.log().contains("refuse connections"),
        "{}",
        server.log()
    );
    assert_eq!(server.metric(&probes("refused")).await, Some(8.0));
    until("the two are probed again", async || {
        (server.metric(&probes("accepted")).await? > 3.0).then_some(())
    })
    .await;

    let identity = meshkeeper::state::Identity {
        name: "main".to_owned(),
        connect: zookeeper.connect(),
        root: "/services".to_owned(),
        format: crate::guard::format(),
    };
    let directory = server.folder().join("state");
    until("the state is written", async || {
        let restored = meshkeeper::state::read(&directory, &identity).ok()??;
        let held: usize = restored.held.iter().map(|of| of.held.len()).sum();
        (held == 2).then_some(())
    })
    .await;
    server.kill().await;
    server.restart().await;
    held(&server, 2).await;
    assert_eq!(server.addresses("orders").await.len(), 4);
    let outcomes = traffic.stop().await;
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["200"], "{outcomes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_accepts_or_does_not_answer_stays_and_an_address_is_probed_once_for_all_services() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let mut silent = Vec::new();
    for _ in 0..5 {
        silent.push(Silent::start().await);
    }
    let (live, mut connections) = counting().await;
    let mut all: Vec<SocketAddr> = silent.iter().map(Silent::address).collect();
    all.push(live);
    for service in ["orders", "users", "carts"] {
        register(&tree, service, &all).await;
    }
    let server = MeshKeeper::start_configured(&zookeeper.connect(), "").await;
    assert!(connections.try_recv().is_err(), "nothing is held yet");
    for service in ["orders", "users", "carts"] {
        deregister(&tree, service, &all).await;
    }
    held(&server, 18).await;
    assert_eq!(connections.recv().await, Some(0), "no byte is sent");
    assert!(connections.try_recv().is_err(), "three services, one probe");
    until("all that are silent were probed twice", async || {
        (server.metric(&probes("none")).await? > 9.0).then_some(())
    })
    .await;
    assert_eq!(server.metric(HELD).await, Some(18.0));
    assert_eq!(server.metric(&probes("refused")).await, Some(0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_ends_after_its_znode_went_is_found_and_without_probes_it_is_held() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let mut backends = Backend::start_many(6).await;
    let all = addresses(&backends);
    register(&tree, "orders", &all).await;
    let server = MeshKeeper::start_configured(&zookeeper.connect(), "").await;
    let without = "guard: {probe: false}";
    let without = MeshKeeper::start_configured(&zookeeper.connect(), without).await;
    deregister(&tree, "orders", &all).await;
    held(&server, 6).await;
    held(&without, 6).await;
    until("all are probed", async || {
        (server.metric(&probes("accepted")).await? > 5.0).then_some(())
    })
    .await;
    backends.clear();
    held(&server, 0).await;
    assert_eq!(without.metric(HELD).await, Some(6.0));
    assert_eq!(without.metric(&probes("accepted")).await, Some(0.0));
}
