//! Instances that are deleted and created again, as many libraries do at a rule, a tag or a reconnect: no request
//! fails, no client reconnects and the guard is silent, on real parts.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use tokio::time::sleep;
use zookeeper_client::{Acls, Client, CreateMode};

use crate::support::{
    backend::Backend,
    ensemble::Ensemble,
    envoy::Envoy,
    fleet::Program,
    grpc::{Backends, Client as Grpc, Library},
    meshkeeper::MeshKeeper,
    proxy::Proxy,
    traffic::Traffic,
    tree::Tree,
    wait::until,
    zookeeper::{ZooKeeper, free_port},
};

/// Between a library's delete and its create, about as seen of Dubbo 3.3.6.
const GAP: Duration = Duration::from_millis(5);

/// On a busy machine a write may take longer than an instance lingers, and clients reconnect. Such a run is repeated.
/// No request may fail in any run.
const ATTEMPTS: usize = 4;

/// An ephemeral znode with its data.
type Znode = (String, String);

/// Registers below any root, as libraries do.
struct Registrar(Client);

impl Registrar {
    async fn connect(zookeeper: &ZooKeeper) -> Self {
        Self(zookeeper.client().await)
    }

    async fn create(&self, (path, data): &Znode) {
        let parents = path.match_indices('/').skip(1).map(|(at, _)| &path[..at]);
        let persistent = CreateMode::Persistent.with_acls(Acls::anyone_all());
        for parent in parents {
            let _ = self.0.create(parent, b"", &persistent).await;
        }
        let ephemeral = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
        let created = self.0.create(path, data.as_bytes(), &ephemeral).await;
        created.unwrap();
    }

    async fn delete(&self, (path, _): &Znode) {
        self.0.delete(path, None).await.unwrap();
    }

    /// Deletes and creates each of them, one after the other.
    async fn cycle(&self, znodes: &[Znode], gap: Duration) {
        for znode in znodes {
            self.delete(znode).await;
            sleep(gap).await;
            self.create(znode).await;
        }
    }

    /// All of them leave before the first returns.
    async fn sweep(&self, znodes: &[Znode], gap: Duration) {
        for znode in znodes {
            self.delete(znode).await;
        }
        sleep(gap).await;
        for znode in znodes {
            self.create(znode).await;
        }
    }

    /// Deletes one and creates another in one transaction, in either order.
    async fn replace(&self, old: &Znode, new: &Znode, delete_first: bool) {
        let mut writer = self.0.new_multi_writer();
        let options = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
        if delete_first {
            writer.add_delete(&old.0, None).unwrap();
        }
        writer
            .add_create(&new.0, new.1.as_bytes(), &options)
            .unwrap();
        if !delete_first {
            writer.add_delete(&old.0, None).unwrap();
        }
        writer.commit().await.unwrap();
    }
}

/// The usual roots, without a service.
async fn make_roots(connect: &str) {
    let client = Client::connect(connect).await.unwrap();
    let persistent = CreateMode::Persistent.with_acls(Acls::anyone_all());
    for root in ["/services", "/dubbo"] {
        client.create(root, b"", &persistent).await.unwrap();
    }
}

/// The connections of clients to these ports: client's port and server's port.
fn connections(ports: &BTreeSet<u16>) -> BTreeSet<(u16, u16)> {
    let mut found = BTreeSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let table = std::fs::read_to_string(table).unwrap_or_default();
        for line in table.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            let port = |field: &str| u16::from_str_radix(field.rsplit(':').next()?, 16).ok();
            let (Some(own), Some(peer)) = (port(fields[1]), port(fields[2])) else {
                continue;
            };
            if fields[3] == "01" && ports.contains(&peer) {
                found.insert((own, peer));
            }
        }
    }
    found
}

/// Plain znodes of `orders` at these addresses.
fn plain(addresses: impl IntoIterator<Item = std::net::SocketAddr>) -> Vec<Znode> {
    let znode = |(at, address): (usize, std::net::SocketAddr)| {
        (format!("/services/orders/i-{at}"), address.to_string())
    };
    addresses.into_iter().enumerate().map(znode).collect()
}

/// Dubbo's znodes of `orders`: the service is there by its instances alone, and a name of its own each time.
fn dubbo(addresses: impl IntoIterator<Item = std::net::SocketAddr>, stamp: usize) -> Vec<Znode> {
    let znode = |address: std::net::SocketAddr| {
        let url = format!("dubbo://{address}/orders?side=provider&stamp={stamp}");
        let url = url.replace(':', "%3A").replace('/', "%2F");
        let url = url
            .replace('?', "%3F")
            .replace('=', "%3D")
            .replace('&', "%26");
        (format!("/dubbo/orders/providers/{url}"), String::new())
    };
    addresses.into_iter().map(znode).collect()
}

/// What the guard said.
fn alarms(server: &MeshKeeper) -> Vec<String> {
    let log = server.log();
    let warned = log.lines().filter(|line| line.contains("WARN"));
    warned.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_that_are_deleted_and_created_again_cost_a_sidecar_nothing() {
    let zookeeper = ZooKeeper::start();
    let registrar = Registrar::connect(&zookeeper).await;
    let keys = "root: /dubbo, format: dubbo";
    let backends = Backend::start_many(3).await;
    for count in 1..=3 {
        let addresses = || backends[..count].iter().map(|backend| backend.address);
        let ports: BTreeSet<u16> = addresses().map(|address| address.port()).collect();
        let all = dubbo(addresses(), 0);
        for znode in &all {
            registrar.create(znode).await;
        }
        let server = MeshKeeper::start_registry(&zookeeper.connect(), keys).await;
        let envoy = Envoy::start(&server, "reregistered").await;
        costs_nothing(&envoy, "orders", &ports, async || {
            for _ in 0..10 {
                registrar.cycle(&all, GAP).await;
                registrar.sweep(&all, GAP).await;
            }
        })
        .await;
        assert_eq!(alarms(&server), [""; 0]);
        for znode in &all {
            registrar.delete(znode).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_that_are_deleted_and_created_again_cost_a_grpc_client_nothing() {
    let zookeeper = ZooKeeper::start();
    let registrar = Registrar::connect(&zookeeper).await;
    let backends = Backends::start(&["a", "b", "c"]).await;
    make_roots(&zookeeper.connect()).await;
    let server = MeshKeeper::start(&zookeeper.connect()).await;
    for count in 1..=3 {
        let addresses = || backends.addresses.values().take(count).copied();
        let ports: BTreeSet<u16> = addresses().map(|address| address.port()).collect();
        let all = plain(addresses());
        for znode in &all {
            registrar.create(znode).await;
        }
        for library in Library::ALL {
            let mut client = Grpc::start(library, server.xds, "orders");
            assert_eq!(client.tell("ready").await["ready"], true, "{library:?}");
            until("calls to all", async || {
                (client.call(50).await.len() == count).then_some(())
            })
            .await;
            let mut kept = false;
            for _ in 0..ATTEMPTS {
                client.tell("start 4").await;
                let before = connections(&ports);
                for _ in 0..10 {
                    registrar.cycle(&all, GAP).await;
                    registrar.sweep(&all, GAP).await;
                }
                kept = before == connections(&ports);
                let report = client.tell("stop").await;
                println!("{library:?}, {count} instances, kept {kept}: {report}");
                assert_eq!(report["failures"], serde_json::json!({}), "{report}");
                if kept {
                    break;
                }
            }
            assert!(kept, "{library:?}, {count} instances");
        }
        for znode in &all {
            registrar.delete(znode).await;
        }
    }
    assert_eq!(alarms(&server), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_replaces_an_instance_is_one_change() {
    let zookeeper = ZooKeeper::start();
    let registrar = Registrar::connect(&zookeeper).await;
    let backends = Backend::start_many(2).await;
    let [old, new] = [0, 1].map(|n| dubbo([backends[n].address], n)[0].clone());
    let again = dubbo([backends[0].address], 7)[0].clone();
    registrar.create(&old).await;
    let keys = "root: /dubbo, format: dubbo";
    let server = MeshKeeper::start_registry(&zookeeper.connect(), keys).await;
    let envoy = Envoy::start(&server, "transactions").await;
    // The same address under another name.
    let port = BTreeSet::from([backends[0].address.port()]);
    costs_nothing(&envoy, "orders", &port, async || {
        for round in 0..20 {
            let (from, to) = if round % 2 == 0 {
                (&old, &again)
            } else {
                (&again, &old)
            };
            registrar.replace(from, to, round % 4 < 2).await;
            sleep(Duration::from_millis(30)).await;
        }
    })
    .await;
    // Another address: the old one goes with the transaction, and does not linger.
    let traffic = Traffic::start(envoy.outbound, "orders");
    for round in 0..10 {
        let (from, to, address) = if round % 2 == 0 {
            (&old, &new, backends[1].address)
        } else {
            (&new, &old, backends[0].address)
        };
        registrar.replace(from, to, round % 4 < 2).await;
        let began = Instant::now();
        until("the other one alone", async || {
            (server.addresses("orders").await == [address.to_string()]).then_some(())
        })
        .await;
        let took = began.elapsed();
        assert!(took < Duration::from_secs(1), "{took:?}");
        sleep(Duration::from_millis(30)).await;
    }
    let mut outcomes = traffic.stop().await;
    assert!(outcomes.remove("200") > Some(100));
    assert_eq!(outcomes, BTreeMap::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guard_is_silent_where_many_are_deleted_and_created_again() {
    let zookeeper = ZooKeeper::start();
    let registrar = Registrar::connect(&zookeeper).await;
    let addresses = (1..=6).map(|n| std::net::SocketAddr::from(([10, 0, 0, n], 80)));
    let all = dubbo(addresses, 0);
    for znode in &all {
        registrar.create(znode).await;
    }
    let keys = "root: /dubbo, format: dubbo";
    let server = MeshKeeper::start_registry(&zookeeper.connect(), keys).await;
    for _ in 0..10 {
        registrar.sweep(&all, GAP).await;
        registrar.cycle(&all, GAP).await;
    }
    // Slower than usual, and nobody is left meanwhile.
    for _ in 0..3 {
        registrar.sweep(&all, Duration::from_millis(300)).await;
    }
    until("all are there", async || {
        (server.addresses("orders").await.len() == 6).then_some(())
    })
    .await;
    assert_eq!(alarms(&server), [""; 0]);
    let trips = "meshkeeper_guard_trips_total{registry=\"main\",scope=\"service\"}";
    assert!(server.metric(trips).await.is_none_or(|trips| trips == 0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_last_instance_lingers_and_is_shown_so() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    tree.register("orders", "i-1", b"10.0.0.1:80").await;
    tree.register("orders", "i-2", b"10.0.0.2:80").await;
    let server = MeshKeeper::start(&zookeeper.connect()).await;
    assert_eq!(server.addresses("orders").await.len(), 2);

    tree.delete("orders", "i-1").await;
    let began = Instant::now();
    until("the other one", async || {
        (server.addresses("orders").await == ["10.0.0.2:80"]).then_some(())
    })
    .await;
    let took = began.elapsed();
    assert!(
        took < Duration::from_secs(1),
        "where others serve: {took:?}"
    );

    tree.delete("orders", "i-2").await;
    let began = Instant::now();
    let state = async || {
        let services = server.api("services?name=orders").await;
        let state = &services[0]["instances"][0]["state"];
        state.as_str().map(str::to_owned)
    };
    until("it lingers", async || {
        (state().await.as_deref() == Some("lingering")).then_some(())
    })
    .await;
    until("it is gone", async || state().await.is_none().then_some(())).await;
    let took = began.elapsed();
    assert!(took > Duration::from_millis(1_900), "{took:?}");
    let (_, page) = server.command(&["explain", "orders"]).await;
    assert!(page.contains("lingers"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_weights_and_times_of_dubbo_go_are_read_as_it_means_them() {
    let zookeeper = ZooKeeper::start();
    let connect = zookeeper.connect();
    make_roots(&connect).await;
    let ports = [free_port(), free_port()];
    let mut plain = Program::dubbo_go(&connect, "interface", ports[0], None, &[]);
    plain.ready().await;
    let server = MeshKeeper::start_registry(&connect, "root: /dubbo, format: dubbo").await;
    let weights = async || {
        let services = server.api("services?name=fleet.Clock").await;
        let instances = services[0]["instances"].as_array()?.clone();
        let told = |i: &serde_json::Value| Some((i["port"].as_u64()?, i["weight"].as_u64()?));
        let told: Option<BTreeMap<u64, u64>> = instances.iter().map(told).collect();
        told
    };
    // Ten minutes of warm-up, as it does not say: the first step.
    let expected = BTreeMap::from([(u64::from(ports[0]), 1)]);
    until("a weight that warms up", async || {
        (weights().await? == expected).then_some(())
    })
    .await;
    let mut warm = Program::dubbo_go(&connect, "interface", ports[1], None, &["warmUp=2s"]);
    warm.ready().await;
    until("the whole weight after two seconds", async || {
        (weights().await?.get(&u64::from(ports[1])) == Some(&100)).then_some(())
    })
    .await;
    let services = server.api("services?name=fleet.Clock").await;
    let healthy = |i: &serde_json::Value| i["health"] == "healthy";
    assert!(
        services[0]["instances"]
            .as_array()
            .unwrap()
            .iter()
            .all(healthy),
        "{services}"
    );
    plain.leave().await;
    warm.leave().await;
}

/// No request fails while this happens, and no client reconnects.
async fn costs_nothing(
    envoy: &Envoy,
    service: &str,
    ports: &BTreeSet<u16>,
    mut happens: impl AsyncFnMut(),
) {
    for _ in 0..ATTEMPTS {
        if keeps_connections(envoy, service, ports, &mut happens).await {
            return;
        }
    }
    panic!("connections were made anew in each of {ATTEMPTS} runs");
}

/// Whether all connections stay while this happens; no request may fail.
async fn keeps_connections(
    envoy: &Envoy,
    service: &str,
    ports: &BTreeSet<u16>,
    happens: &mut impl AsyncFnMut(),
) -> bool {
    let traffic = Traffic::start(envoy.outbound, service);
    until("connections to all", async || {
        let peers: BTreeSet<_> = connections(ports).iter().map(|(_, port)| *port).collect();
        (peers.len() == ports.len() && traffic.so_far().get("200") > Some(&200)).then_some(())
    })
    .await;
    let (early, before) = (traffic.so_far(), connections(ports));
    happens().await;
    let closed: Vec<_> = before.difference(&connections(ports)).copied().collect();
    let outcomes = traffic.stop().await;
    let failed = outcomes
        .iter()
        .map(|(outcome, count)| (outcome, count - early.get(outcome).unwrap_or(&0)));
    let failed: BTreeMap<_, _> = failed.collect();
    println!(
        "{service}, {} instances: {failed:?}, closed {closed:?}",
        ports.len()
    );
    assert!(
        failed
            .iter()
            .all(|(outcome, count)| *outcome == "200" || *count == 0),
        "{failed:?}"
    );
    closed.is_empty()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dubbo_go_provider_that_reconnects_costs_nothing() {
    let zookeeper = ZooKeeper::start();
    let port = zookeeper
        .connect()
        .rsplit(':')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let way = Proxy::start(port).await;
    let backends = Backend::start_many(3).await;
    make_roots(&zookeeper.connect()).await;
    let server = MeshKeeper::start_registry(&zookeeper.connect(), "format: curator").await;
    let envoy = Envoy::start(&server, "dubbo-go").await;
    let mut fleet = Vec::new();
    for backend in &backends {
        let address = Some(backend.address);
        let mut provider =
            Program::dubbo_go(&way.connect(), "application", free_port(), address, &[]);
        provider.ready().await;
        fleet.push(provider);
        until("it is registered", async || {
            (server.addresses("clocks").await.len() == fleet.len()).then_some(())
        })
        .await;
        let ports = backends[..fleet.len()].iter().map(|b| b.address.port());
        costs_nothing(&envoy, "clocks", &ports.collect(), async || {
            let mut znodes = czxids(&server).await;
            for _ in 0..3 {
                way.cut();
                until("all are registered anew", async || {
                    let now = czxids(&server).await;
                    (now.len() == fleet.len() && now.is_disjoint(&znodes)).then_some(())
                })
                .await;
                znodes = czxids(&server).await;
            }
        })
        .await;
    }
    assert_eq!(alarms(&server), [""; 0]);
}

async fn czxids(server: &MeshKeeper) -> BTreeSet<i64> {
    let services = server.api("services?name=clocks").await;
    let instances = services[0]["instances"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    instances
        .iter()
        .filter_map(|i| i["czxid"].as_i64())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_of_an_ensemble_under_dubbo_go_costs_nothing() {
    let mut ensemble = Ensemble::start(3).await;
    let backends = Backend::start_many(3).await;
    make_roots(&ensemble.direct()).await;
    let server = MeshKeeper::start_registry(&ensemble.connect(), "format: curator").await;
    let envoy = Envoy::start(&server, "rolling").await;
    let mut fleet = Vec::new();
    for backend in &backends {
        let address = Some(backend.address);
        let mut provider = Program::dubbo_go(
            &ensemble.connect(),
            "application",
            free_port(),
            address,
            &[],
        );
        provider.ready().await;
        fleet.push(provider);
    }
    until("all are registered", async || {
        (server.addresses("clocks").await.len() == 3).then_some(())
    })
    .await;
    let ports = backends.iter().map(|backend| backend.address.port());
    costs_nothing(&envoy, "clocks", &ports.collect(), async || {
        for node in 0..3 {
            ensemble.kill(node);
            sleep(Duration::from_millis(500)).await;
            ensemble.start_all();
            ensemble.until_serving().await;
        }
        sleep(Duration::from_secs(2)).await;
        until("all are there", async || {
            (server.addresses("clocks").await.len() == 3).then_some(())
        })
        .await;
    })
    .await;
}
