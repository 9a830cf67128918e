//! Large services on a real Envoy, which takes their endpoints one by one: little moves, and in the end
//! Envoy has exactly what is registered.

use std::collections::BTreeMap;

use crate::support::{
    backend::Backend, envoy::Envoy, meshkeeper::MeshKeeper, traffic::Traffic, tree::Tree,
    wait::until, zookeeper::ZooKeeper,
};

const SERVICE: &str = "orders";

/// Far from a message of one endpoint with all that TCP and HTTP/2 add, far below one of thousands.
const SMALL: u64 = 1_500;

/// What is registered, by id.
#[derive(Default)]
struct World {
    instances: BTreeMap<usize, Registered>,
    random: u64,
}

#[derive(Clone)]
struct Registered {
    weight: u64,
    healthy: bool,
    zone: u64,
}

impl Registered {
    fn json(&self, id: usize) -> Vec<u8> {
        let (
            Self {
                weight,
                healthy,
                zone,
            },
            (host, port),
        ) = (self, address(id));
        let json = serde_json::json!({
            "host": host, "port": port, "weight": weight, "healthy": healthy, "zone": format!("z/{zone}"),
        });
        json.to_string().into_bytes()
    }
}

fn address(id: usize) -> (String, usize) {
    (format!("10.1.{}.{}", id / 250, id % 250 + 1), 8000 + id % 7)
}

impl World {
    fn of(instances: usize) -> Self {
        let mut world = Self::default();
        for id in 0..instances {
            let zone = world.below(3);
            let weight = 100;
            world.instances.insert(
                id,
                Registered {
                    weight,
                    healthy: true,
                    zone,
                },
            );
        }
        world
    }

    /// Numbers that only look random: a failure can be repeated.
    fn below(&mut self, limit: u64) -> u64 {
        let next = self.random.wrapping_mul(6_364_136_223_846_793_005);
        self.random = next.wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % limit
    }

    /// What Envoy has to show.
    fn hosts(&self) -> BTreeMap<String, (u64, String)> {
        let host = |(id, i): (&usize, &Registered)| {
            let (host, port) = address(*id);
            let health = match i {
                Registered { healthy: false, .. } => "UNHEALTHY",
                Registered { weight: 0, .. } => "DRAINING",
                _ => "HEALTHY",
            };
            (
                format!("{host}:{port}"),
                (i.weight.max(1), health.to_owned()),
            )
        };
        self.instances.iter().map(host).collect()
    }

    /// Changes one instance, takes it out or brings another in; what to write for it.
    fn change(&mut self, ids: u64) -> (String, Option<Vec<u8>>) {
        let id = usize::try_from(self.below(ids)).unwrap();
        let (what, weight, zone) = (self.below(8), self.below(300), self.below(5));
        let name = format!("i{id}");
        let Some(instance) = self.instances.get_mut(&id) else {
            let instance = Registered {
                weight,
                healthy: true,
                zone,
            };
            let json = instance.json(id);
            self.instances.insert(id, instance);
            return (name, Some(json));
        };
        match what {
            0 | 1 => {
                self.instances.remove(&id);
                return (name, None);
            }
            2 | 3 => instance.healthy = !instance.healthy,
            4 => instance.zone = zone,
            5 => instance.weight = 0,
            _ => instance.weight = weight,
        }
        (name, Some(instance.json(id)))
    }
}

async fn shows(envoy: &Envoy, expected: &BTreeMap<String, (u64, String)>, when: &str) {
    let same = async || {
        let total = envoy.stats().await["cluster.orders.membership_total"];
        (total == expected.len() as u64 && envoy.hosts(SERVICE).await == *expected).then_some(())
    };
    until(
        &format!("Envoy's hosts are exactly what is registered {when}"),
        same,
    )
    .await;
}

async fn received(envoy: &Envoy) -> u64 {
    envoy.stats().await["cluster.meshkeeper-xds.upstream_cx_rx_bytes_total"]
}

async fn responses(server: &MeshKeeper, kind: &str) -> String {
    let series = format!("meshkeeper_xds_responses_total{{type=\"{kind}\"}}");
    server.metric(&series).await.unwrap_or_default().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_ten_thousand_instances_only_those_move_that_change_and_all_end_exact() {
    let zookeeper = ZooKeeper::start_with_heap(256);
    let tree = Tree::connect(&zookeeper).await;
    let mut world = World::of(10_000);
    tree.create_many(
        SERVICE,
        world
            .instances
            .iter()
            .map(|(id, i)| (format!("i{id}"), i.json(*id))),
    )
    .await;
    let mesh = "endpointIncrementsAbove: 1000";
    let mut server = MeshKeeper::start_mesh_with(&zookeeper.connect(), mesh).await;
    let envoy = Envoy::start(&server, "increments").await;
    shows(&envoy, &world.hosts(), "at first").await;

    let before = (
        received(&envoy).await,
        responses(&server, "lbEndpoints").await,
    );
    let others = responses(&server, "endpoints").await;
    world.instances.get_mut(&7).unwrap().weight = 101;
    tree.write(SERVICE, "i7", &world.instances[&7].json(7))
        .await;
    shows(&envoy, &world.hosts(), "after a change of weight").await;
    let middle = (
        received(&envoy).await,
        responses(&server, "lbEndpoints").await,
    );
    world.instances.remove(&8);
    tree.delete(SERVICE, "i8").await;
    shows(&envoy, &world.hosts(), "after one instance went").await;
    let after = (
        received(&envoy).await,
        responses(&server, "lbEndpoints").await,
    );
    println!(
        "bytes that Envoy received: {} for a weight, {} for a removal",
        middle.0 - before.0,
        after.0 - middle.0
    );
    assert!(middle.0 - before.0 < SMALL && after.0 - middle.0 < SMALL);
    let counts = [before.1, middle.1, after.1].map(|count| count.parse::<u64>().unwrap());
    assert_eq!([counts[1], counts[2]], [counts[0] + 1, counts[0] + 2]);
    assert_eq!(responses(&server, "endpoints").await, others);

    for _ in 0..20 {
        let changes = (0..50).map(|_| world.change(10_100)).collect();
        tree.write_many(SERVICE, changes).await;
    }
    shows(&envoy, &world.hosts(), "after a thousand random changes").await;

    // Envoy does not know the versions of what it holds: what went meanwhile must go too.
    server.kill().await;
    let changes = (0..300).map(|_| world.change(10_100)).collect();
    tree.write_many(SERVICE, changes).await;
    server.restart().await;
    shows(
        &envoy,
        &world.hosts(),
        "after a restart with changes meanwhile",
    )
    .await;
    assert!(envoy.rejections().await.is_empty(), "{}", envoy.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_where_a_service_becomes_large_is_rebuilt_and_becomes_small_again() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let backends = Backend::start_many(24).await;
    let mut registered = BTreeMap::new();
    let mut server =
        MeshKeeper::start_mesh_with(&zookeeper.connect(), "endpointIncrementsAbove: 16").await;
    let register =
        async |registered: &mut BTreeMap<String, (u64, String)>, at: usize, weight: u64| {
            let address = backends[at].address;
            let json = format!(
                r#"{{"host":"{}","port":{},"weight":{weight},"zone":"{}"}}"#,
                address.ip(),
                address.port(),
                at % 2
            );
            tree.write_many(SERVICE, vec![(format!("i{at}"), Some(json.into_bytes()))])
                .await;
            registered.insert(address.to_string(), (weight, "HEALTHY".to_owned()));
        };
    for at in 0..10 {
        register(&mut registered, at, 100).await;
    }
    let envoy = Envoy::start(&server, "threshold").await;
    shows(&envoy, &registered, "while it is small").await;
    let by_one = async || {
        envoy
            .stats()
            .await
            .contains_key("cluster.orders.leds.update_success")
    };
    assert!(!by_one().await);
    let traffic = Traffic::start(envoy.outbound, SERVICE);

    for at in 10..24 {
        register(&mut registered, at, 100).await;
    }
    shows(&envoy, &registered, "once it is large").await;
    assert!(by_one().await);
    // So uneven that the table must grow: Envoy builds the cluster anew.
    let rebuilt = envoy.stats().await["cluster_manager.cluster_modified"];
    for at in 0..24 {
        register(&mut registered, at, if at == 0 { 9_999 } else { 1 }).await;
    }
    shows(&envoy, &registered, "after the cluster was rebuilt").await;
    assert!(envoy.stats().await["cluster_manager.cluster_modified"] > rebuilt);
    server.kill().await;
    register(&mut registered, 1, 7_777).await;
    server.restart().await;
    shows(&envoy, &registered, "after a restart").await;

    for (at, backend) in backends.iter().enumerate().skip(8) {
        tree.delete(SERVICE, &format!("i{at}")).await;
        registered.remove(&backend.address.to_string());
    }
    shows(&envoy, &registered, "once it is small again").await;
    for at in 8..24 {
        register(&mut registered, at, 50).await;
    }
    shows(&envoy, &registered, "once it is large again").await;
    register(&mut registered, 3, 60).await;
    shows(&envoy, &registered, "and followed").await;
    let outcomes = traffic.stop().await;
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["200"], "{outcomes:?}");
    assert!(envoy.rejections().await.is_empty(), "{}", envoy.log());
}
