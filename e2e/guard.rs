//! What happens to ZooKeeper and must not empty a mesh, on real parts: mass expiries, an emptied root, an
//! ensemble without its data, and restarts meanwhile.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use meshkeeper::registry::FormatChoice;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use zookeeper_client::{Acls, Client, CreateMode};

use crate::support::{
    backend::Backend, envoy::Envoy, meshkeeper::MeshKeeper, proxy::Proxy, traffic::Traffic,
    tree::Tree, wait::until, zookeeper::ZooKeeper,
};

const HELD: &str = "meshkeeper_guard_held_instances{registry=\"main\"}";

/// A service of twenty on real parts, all of them known to a sidecar.
struct Rig {
    zookeeper: ZooKeeper,
    backends: Vec<Backend>,
    server: MeshKeeper,
    envoy: Envoy,
}

impl Rig {
    /// The znodes are persistent.
    async fn start(node: &str, sections: &str) -> Self {
        let zookeeper = ZooKeeper::start();
        let backends = Backend::start_many(20).await;
        let tree = Tree::connect(&zookeeper).await;
        register(&tree, &backends).await;
        let server = MeshKeeper::start_configured(&zookeeper.connect(), sections).await;
        let envoy = Envoy::start(&server, node).await;
        let rig = Self {
            zookeeper,
            backends,
            server,
            envoy,
        };
        rig.hosts(20).await;
        rig
    }

    async fn hosts(&self, count: usize) {
        until(&format!("{count} hosts"), async || {
            (self.envoy.hosts("orders").await.len() == count).then_some(())
        })
        .await;
    }

    async fn held(&self, count: usize) {
        held(&self.server, count).await;
    }
}

async fn held(server: &MeshKeeper, count: usize) {
    until(&format!("{count} held instances"), async || {
        ((server.metric(HELD).await? - count as f64).abs() < 0.5).then_some(())
    })
    .await;
}

async fn register(tree: &Tree, backends: &[Backend]) {
    for (at, backend) in backends.iter().enumerate() {
        let data = backend.address.to_string();
        tree.write_persistent("orders", &format!("i{at}"), data.as_bytes())
            .await;
    }
}

/// Sends a request as it is written, and gives what comes back.
async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// How many instances of `orders` the server serves in that state.
async fn in_state(server: &MeshKeeper, state: &str) -> usize {
    let services = server.api("services?name=orders").await;
    let instances = services[0]["instances"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    instances.iter().filter(|i| i["state"] == state).count()
}

fn assert_all_answered(outcomes: &BTreeMap<String, u64>) {
    println!("requests meanwhile: {outcomes:?}");
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["200"], "{outcomes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_expire_all_at_once_take_no_endpoint_along() {
    let zookeeper = ZooKeeper::start();
    let proxy = Proxy::start(zookeeper.port()).await;
    let tree = Tree::connect(&zookeeper).await;
    tree.add_service("orders").await;
    let backends = Backend::start_many(20).await;
    let (lost, kept) = backends.split_at(12);
    register(&tree, kept).await;
    let mut sessions = Vec::new();
    for backend in lost {
        let session = Client::connector()
            .with_session_timeout(Duration::from_secs(2))
            .connect(&proxy.connect())
            .await
            .unwrap();
        let ephemeral = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
        let path = format!("/services/orders/{}", backend.address);
        let data = backend.address.to_string();
        session
            .create(&path, data.as_bytes(), &ephemeral)
            .await
            .unwrap();
        sessions.push(session);
    }
    let server = MeshKeeper::start(&zookeeper.connect()).await;
    let envoy = Envoy::start(&server, "expiry").await;
    until("all hosts", async || {
        (envoy.hosts("orders").await.len() == 20).then_some(())
    })
    .await;
    let traffic = Traffic::start(envoy.outbound, "orders");

    // The instances live on; only their way to the ensemble is cut.
    proxy.refuse();
    held(&server, 12).await;
    assert_eq!(envoy.hosts("orders").await.len(), 20);
    assert_eq!(
        (
            in_state(&server, "held").await,
            in_state(&server, "registered").await
        ),
        (12, 8)
    );
    let ready = server.page("/readyz").await;
    assert!(
        ready.contains("note: guard main: 12 instances of 1 service"),
        "{ready}"
    );
    until("it is said, once it lasts", async || {
        let count = server
            .log()
            .matches("too many instances went at once")
            .count();
        assert!(count < 2, "{}", server.log());
        (count == 1).then_some(())
    })
    .await;
    assert_eq!(
        server
            .metric("meshkeeper_guard_trips_total{registry=\"main\",scope=\"registry\"}")
            .await,
        Some(1.0)
    );

    // Some return where they were, others elsewhere.
    for (at, backend) in lost.iter().enumerate().take(4) {
        tree.register(
            "orders",
            &format!("again-{at}"),
            backend.address.to_string().as_bytes(),
        )
        .await;
    }
    held(&server, 8).await;
    let elsewhere = Backend::start_many(8).await;
    for (at, backend) in elsewhere.iter().enumerate() {
        tree.register(
            "orders",
            &format!("new-{at}"),
            backend.address.to_string().as_bytes(),
        )
        .await;
    }
    held(&server, 0).await;
    until("the sidecar has what is registered", async || {
        let hosts: Vec<String> = envoy.hosts("orders").await.into_keys().collect();
        let registered = kept.iter().chain(&lost[..4]).chain(&elsewhere);
        let mut registered: Vec<String> = registered.map(|b| b.address.to_string()).collect();
        registered.sort();
        (hosts == registered).then_some(())
    })
    .await;
    assert_all_answered(&traffic.stop().await);
    assert!(!server.page("/readyz").await.contains("guard"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_is_deleted_takes_no_endpoint_along_until_an_operator_lets_it_go() {
    let rig = Rig::start("root", "").await;
    let tree = Tree::connect(&rig.zookeeper).await;
    for at in 0..20 {
        tree.delete("orders", &format!("i{at}")).await;
    }
    tree.delete_service("orders").await;
    tree.delete_root().await;
    rig.held(20).await;
    rig.hosts(20).await;
    assert_eq!(in_state(&rig.server, "held").await, 20);

    let admin = rig.server.admin;
    let post = |more: &str| {
        format!("POST /api/v1/release HTTP/1.1\r\nhost: {admin}\r\n{more}content-length: 0\r\n\r\n")
    };
    let refused = exchange(admin, &post("origin: http://evil.example\r\n")).await;
    assert!(refused.contains(" 403 "), "{refused}");
    rig.held(20).await;

    assert_eq!(rig.server.command(&["release", "nothing"]).await.0, Some(1));
    let (_, listed) = rig.server.command(&["holds"]).await;
    assert_eq!(listed.lines().count(), 21, "{listed}");
    let told = rig.server.command(&["release", "orders"]).await;
    assert_eq!(told, (Some(0), "20 instances are released\n".to_owned()));
    let (_, why) = rig
        .server
        .command(&["explain", "/services/orders/i7"])
        .await;
    for part in ["held", "an operator let it go"] {
        assert!(why.contains(part), "{part}: {why}");
    }
    rig.held(0).await;
    rig.hosts(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_is_deleted_below_a_small_registry_takes_no_endpoint_along() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    for at in 1..=3 {
        let data = format!("10.0.0.{at}:80");
        tree.write_persistent("orders", &format!("i{at}"), data.as_bytes())
            .await;
    }
    // Whoever may be at these addresses.
    let unprobed = "guard: {probe: false}";
    let server = MeshKeeper::start_configured(&zookeeper.connect(), unprobed).await;
    let all = server.addresses("orders").await;
    assert_eq!(all.len(), 3);
    for at in 1..=3 {
        tree.delete("orders", &format!("i{at}")).await;
    }
    tree.delete_service("orders").await;
    tree.delete_root().await;
    held(&server, 3).await;
    assert_eq!(server.addresses("orders").await, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ensemble_that_lost_its_data_takes_no_endpoint_along() {
    let mut rig = Rig::start("wiped", "").await;
    let traffic = Traffic::start(rig.envoy.outbound, "orders");
    rig.zookeeper.kill();
    rig.zookeeper.wipe();
    rig.zookeeper.restart();
    rig.held(20).await;
    rig.hosts(20).await;
    let holds = rig.server.api("holds").await;
    assert_eq!(
        (&holds[0]["were"], &holds[0]["held"]),
        (&Value::from(20), &Value::from(20))
    );

    // The services register again, one by one.
    let tree = Tree::connect(&rig.zookeeper).await;
    register(&tree, &rig.backends[..7]).await;
    rig.held(13).await;
    for (at, backend) in rig.backends.iter().enumerate().skip(7) {
        let data = backend.address.to_string();
        tree.write_persistent("orders", &format!("i{at}"), data.as_bytes())
            .await;
    }
    rig.held(0).await;
    assert_eq!(rig.server.addresses("orders").await.len(), 20);
    assert_eq!(rig.envoy.hosts("orders").await.len(), 20);
    assert_all_answered(&traffic.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_while_it_holds_goes_on_holding_without_zookeeper_and_with() {
    let mut rig = Rig::start("killed", "state: {directory: $FOLDER/state, wait: 500ms}").await;
    let tree = Tree::connect(&rig.zookeeper).await;
    tree.write("orders", "i19", b"10.0.0.1:a bad port").await;
    until("the bad one is told of", async || {
        let rejected = rig.server.api("rejected").await;
        (rejected[0]["path"] == "/services/orders/i19").then_some(())
    })
    .await;
    rig.zookeeper.kill();
    rig.zookeeper.wipe();
    rig.zookeeper.restart();
    rig.held(20).await;
    let tree = Tree::connect(&rig.zookeeper).await;
    register(&tree, &rig.backends[..5]).await;
    rig.held(15).await;
    let traffic = Traffic::start(rig.envoy.outbound, "orders");
    written(&rig, 15).await;
    rig.server.kill().await;
    rig.zookeeper.kill();

    rig.server.restart().await;
    let ready = rig.server.page("/readyz").await;
    assert!(
        ready.contains("note: registry main: restored from disk"),
        "{ready}"
    );
    assert_eq!(
        (
            in_state(&rig.server, "held").await,
            in_state(&rig.server, "restored").await
        ),
        (15, 5)
    );
    assert_eq!(
        rig.server
            .metric("meshkeeper_state_restored{registry=\"main\"}")
            .await,
        Some(1.0)
    );
    rig.hosts(20).await;

    rig.zookeeper.restart();
    until("what is registered", async || {
        (in_state(&rig.server, "registered").await == 5).then_some(())
    })
    .await;
    rig.held(15).await;
    assert_eq!(
        rig.server
            .metric("meshkeeper_state_restored{registry=\"main\"}")
            .await,
        Some(0.0)
    );
    assert!(!rig.server.page("/readyz").await.contains("registry main"));
    rig.hosts(20).await;
    assert_all_answered(&traffic.stop().await);
}

/// Until the file has so many held instances.
async fn written(rig: &Rig, held: usize) {
    let identity = identity(&rig.zookeeper.connect());
    let directory = rig.server.folder().join("state");
    until("the state is written", async || {
        let restored = meshkeeper::state::read(&directory, &identity).ok()??;
        let sum: usize = restored.held.iter().map(|service| service.held.len()).sum();
        (sum == held).then_some(())
    })
    .await;
}

fn identity(connect: &str) -> meshkeeper::state::Identity {
    meshkeeper::state::Identity {
        name: "main".to_owned(),
        connect: connect.to_owned(),
        root: "/services".to_owned(),
        format: format(),
    }
}

/// As the state on disk names the format that is found out.
pub fn format() -> String {
    format!("{} {}", FormatChoice::Auto, FormatChoice::Auto.layout())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_zookeeper_serves_the_last_good_values_and_a_start_with_it_what_it_says() {
    let mut zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    tree.write_persistent("orders", "a", b"10.0.0.1:80").await;
    tree.write_persistent("orders", "b", b"10.0.0.2:80").await;
    let sections = "state: {directory: $FOLDER/state, wait: 500ms}";
    let mut server = MeshKeeper::start_configured(&zookeeper.connect(), sections).await;
    tree.write("orders", "a", b"no address any more").await;
    until("the bad one is told of", async || {
        let rejected = server.api("rejected").await;
        (rejected[0]["path"] == "/services/orders/a").then_some(())
    })
    .await;
    // An orderly end writes what is still to be written.
    assert_eq!(server.terminate().await, Some(0));
    zookeeper.kill();
    server.restart().await;
    assert_eq!(
        server.addresses("orders").await,
        ["10.0.0.1:80", "10.0.0.2:80"]
    );
    zookeeper.restart();
    until("what is registered", async || {
        (in_state(&server, "registered").await == 2).then_some(())
    })
    .await;
    // Across the restart the last good value stands, since the znode is the same.
    assert_eq!(
        server.addresses("orders").await,
        ["10.0.0.1:80", "10.0.0.2:80"]
    );

    server.kill().await;
    let tree = Tree::connect(&zookeeper).await;
    tree.delete("orders", "b").await;
    tree.write("orders", "a", b"10.0.0.3:80").await;
    server.restart().await;
    until("what is registered alone", async || {
        (server.addresses("orders").await == ["10.0.0.3:80"]).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_state_is_told_of_and_zookeeper_believed() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    tree.write_persistent("orders", "a", b"10.0.0.1:80").await;
    let sections = "state: {directory: $FOLDER/state}";
    let mut server = MeshKeeper::start_configured(&zookeeper.connect(), sections).await;
    assert_eq!(server.terminate().await, Some(0));
    let file = server.folder().join("state/main.state");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    server.restart().await;
    assert_eq!(server.addresses("orders").await, ["10.0.0.1:80"]);
    assert_eq!(
        server
            .metric("meshkeeper_state_errors_total{registry=\"main\"}")
            .await,
        Some(1.0)
    );
    assert!(server.log().contains("checksum"), "{}", server.log());
    assert!(server.folder().join("state/main.state.bad").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_one_directory_says_so_and_writes_once_the_first_has_ended() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    tree.write_persistent("orders", "a", b"10.0.0.1:80").await;
    let sections = "state: {directory: $FOLDER/state}";
    let mut first = MeshKeeper::start_configured(&zookeeper.connect(), sections).await;
    let directory = first.folder().join("state");
    let sections = format!("state: {{directory: {}}}", directory.display());
    let second = MeshKeeper::start_configured(&zookeeper.connect(), &sections).await;
    until("the second one warns", async || {
        (second.log())
            .contains("another MeshKeeper (process ")
            .then_some(())
    })
    .await;
    assert_eq!(second.addresses("orders").await, ["10.0.0.1:80"]);
    assert!(!first.log().contains("WARN"), "{}", first.log());
    assert_eq!(first.terminate().await, Some(0));
    until("the second one writes", async || {
        (second.log())
            .contains("the state can be written again")
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_begin_with_different_states_serve_the_same() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let sections = "state: {directory: $FOLDER/state}";
    let mut servers = Vec::new();
    for round in 0..2 {
        // Each saw another past.
        for at in 0..4 {
            let data = format!("10.0.{round}.{at}:80");
            tree.write_persistent("orders", &format!("{round}-{at}"), data.as_bytes())
                .await;
        }
        let mut server = MeshKeeper::start_configured(&zookeeper.connect(), sections).await;
        assert_eq!(server.terminate().await, Some(0));
        servers.push(server);
    }
    for id in ["0-0", "0-1", "1-0"] {
        tree.delete("orders", id).await;
    }
    tree.write("orders", "1-1", b"10.0.9.9:80").await;
    let mut told = Vec::new();
    for server in &mut servers {
        server.restart().await;
        until("the present", async || {
            (in_state(server, "registered").await == 5).then_some(())
        })
        .await;
        let mut page = Vec::new();
        for kind in ["clusters", "endpoints", "routes"] {
            page.push(server.api(&format!("config?kind=envoy&type={kind}")).await);
        }
        told.push(page);
    }
    assert_eq!(told[0], told[1]);
}

/// Where a process that is killed at random finds its directory.
const DIRECTORY: &str = "MESHKEEPER_TEST_STATE";

#[test]
#[ignore = "run by the test below, which kills it"]
fn writes_states_until_it_is_killed() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else {
        return;
    };
    let identity = identity("127.0.0.1:1");
    for round in 1.. {
        let mut recorder = meshkeeper::state::Recorder::default();
        let event = |at: i64| meshkeeper::registry::Event::Put {
            path: format!("orders/i{at}").into(),
            data: vec![b'x'; 200].into(),
            stat: meshkeeper::registry::Stat {
                czxid: round,
                ..Default::default()
            },
        };
        let _ = recorder.note(&(0..500).map(event).collect::<Vec<_>>());
        let picture = recorder.picture(meshkeeper::state::Kept::default());
        let stamp = meshkeeper::state::Stamp::default();
        meshkeeper::state::file::write(&directory, &identity, &stamp, &picture).unwrap();
    }
}

#[test]
fn a_process_that_is_killed_while_it_writes_leaves_the_old_or_the_new_state() {
    let folder = tempfile::tempdir().unwrap();
    let mut last = 0;
    let mut moved = 0;
    for round in 0..40 {
        let mut writer = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--ignored",
                "--exact",
                "guard::writes_states_until_it_is_killed",
            ])
            .env(DIRECTORY, folder.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Another moment each time; whether anything was written by then does not matter.
        std::thread::sleep(Duration::from_millis(30 + round * 7 % 90));
        writer.kill().unwrap();
        writer.wait().unwrap();
        if round == 0 && !folder.path().join("main.state").exists() {
            continue;
        }
        let restored = meshkeeper::state::read(folder.path(), &identity("127.0.0.1:1")).unwrap();
        let restored = restored.expect("a state, once there was one");
        assert_eq!(restored.len(), 500);
        let czxid = restored.versions().next().unwrap().1.czxid;
        assert!(
            restored.versions().all(|(_, stat)| stat.czxid == czxid),
            "one state, not two"
        );
        moved += usize::from(czxid != last);
        last = czxid;
    }
    assert!(moved > 5, "the kills came before anything was written");
}
