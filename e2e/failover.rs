//! Sites that die while their znodes stay: a real Envoy leaves them by what it sees, and comes back.

use std::{collections::BTreeMap, time::Duration};

use crate::support::{
    envoy::Envoy,
    http::Http,
    meshkeeper::MeshKeeper,
    mortal::Mortal,
    traffic::{Outcomes, Traffic},
    tree::Tree,
    wait::until,
    zookeeper::ZooKeeper,
};

/// Two ensembles, the second one for failing over to, and a sidecar.
struct Sites {
    first: Tree,
    second: Tree,
    server: MeshKeeper,
    _zookeepers: [ZooKeeper; 2],
}

impl Sites {
    async fn start() -> Self {
        let zookeepers = [ZooKeeper::start(), ZooKeeper::start()];
        let first = Tree::connect(&zookeepers[0]).await;
        let second = Tree::connect(&zookeepers[1]).await;
        let registry = |at: usize| {
            let connect = zookeepers[at].connect();
            format!("{{name: r{at}, connect: \"{connect}\", sessionTimeout: 4s, priority: {at}}}")
        };
        let server = MeshKeeper::spawn_of(&format!("{}, {}", registry(0), registry(1)));
        Self {
            first,
            second,
            server,
            _zookeepers: zookeepers,
        }
    }
}

/// A service with instances at both sites.
struct Service {
    name: &'static str,
    first: Vec<Mortal>,
    second: Vec<Mortal>,
}

impl Service {
    async fn start(sites: &Sites, name: &'static str, first: usize, second: usize) -> Self {
        let service = Self {
            name,
            first: Mortal::start_many(first),
            second: Mortal::start_many(second),
        };
        for (tree, instances) in [
            (&sites.first, &service.first),
            (&sites.second, &service.second),
        ] {
            for (at, instance) in instances.iter().enumerate() {
                let address = instance.address.to_string();
                tree.register(name, &format!("i{at}"), address.as_bytes())
                    .await;
            }
        }
        service
    }

    fn is_first(&self, answer: &str) -> bool {
        let mut first = self.first.iter();
        first.any(|instance| instance.address.to_string() == answer)
    }
}

fn failed(outcomes: &Outcomes) -> u64 {
    outcomes
        .iter()
        .filter(|(outcome, _)| *outcome != "200")
        .map(|(_, count)| count)
        .sum()
}

/// Waits until nothing failed for a second; returns how many failed since `before`.
async fn until_right(traffic: &Traffic, before: &Outcomes, what: &str) -> u64 {
    until(what, async || {
        let then = failed(&traffic.so_far());
        tokio::time::sleep(Duration::from_secs(1)).await;
        (failed(&traffic.so_far()) == then).then_some(())
    })
    .await;
    failed(&traffic.so_far()) - failed(before)
}

/// Waits until the first site answers, or the second one does.
async fn until_answered(envoy: &Envoy, service: &Service, first: bool) {
    let http = Http::new();
    until(
        &format!("{}: answers of the first: {first}", service.name),
        async || {
            let (_, answer) = http.get(envoy.outbound, service.name, "/").await.ok()?;
            (service.is_first(&answer) == first).then_some(())
        },
    )
    .await;
}

/// A few tenths of a second's worth at the pace of these tests; without ejection all of them fail.
const FEW: u64 = 60;

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_site_is_left_and_returned_to_whatever_its_size() {
    let sites = Sites::start().await;
    let mut services = Vec::new();
    for (name, first, second) in [
        ("one", 1, 1),
        ("two", 2, 1),
        ("three", 3, 2),
        ("eight", 8, 2),
    ] {
        services.push(Service::start(&sites, name, first, second).await);
    }
    sites.server.ready().await;
    let envoy = Envoy::start(&sites.server, "sites").await;
    let mut running = BTreeMap::new();
    for service in &services {
        until_answered(&envoy, service, true).await;
        let pause = Duration::from_millis(20);
        running.insert(
            service.name,
            Traffic::paced(envoy.outbound, service.name, 2, pause),
        );
    }
    let before: BTreeMap<_, _> = running
        .iter()
        .map(|(name, t)| (*name, t.so_far()))
        .collect();
    for service in &services {
        service.first.iter().for_each(Mortal::die);
    }
    for service in &services {
        let name = service.name;
        let lost = until_right(&running[name], &before[name], "the dead site is left").await;
        println!("{name}: {lost} failed until the dead site was left");
        assert!(lost < FEW, "{name}: {lost} failed");
        until_answered(&envoy, service, false).await;
    }
    let before: BTreeMap<_, _> = running
        .iter()
        .map(|(name, t)| (*name, t.so_far()))
        .collect();
    for service in &mut services {
        for instance in &mut service.first {
            instance.live();
        }
    }
    for service in &services {
        until_answered(&envoy, service, true).await;
        let lost = failed(&running[service.name].so_far()) - failed(&before[service.name]);
        println!(
            "{}: {lost} failed until the first site was back",
            service.name
        );
        assert!(lost < FEW, "{}: {lost} failed", service.name);
    }
    assert!(envoy.rejections().await.is_empty(), "{}", envoy.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_is_half_dead_or_answers_with_errors_loses_its_bad_instances() {
    let sites = Sites::start().await;
    let half = Service::start(&sites, "half", 4, 2).await;
    let errors = Service::start(&sites, "errors", 2, 1).await;
    sites.server.ready().await;
    let envoy = Envoy::start(&sites.server, "half").await;
    for service in [&half, &errors] {
        until_answered(&envoy, service, true).await;
    }
    let pause = Duration::from_millis(20);
    let running = [&half, &errors].map(|s| Traffic::paced(envoy.outbound, s.name, 2, pause));
    half.first[..2].iter().for_each(Mortal::die);
    errors
        .first
        .iter()
        .for_each(|instance| instance.answer(503));
    for traffic in &running {
        let lost = until_right(traffic, &Outcomes::new(), "the bad ones are left").await;
        assert!(lost < FEW, "{lost} failed");
    }
    until_answered(&envoy, &half, true).await;
    until_answered(&envoy, &errors, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_dies_and_is_held_by_the_guard_is_left_all_the_same() {
    let sites = Sites::start().await;
    let held = Service::start(&sites, "held", 6, 2).await;
    sites.server.ready().await;
    let envoy = Envoy::start(&sites.server, "held").await;
    until_answered(&envoy, &held, true).await;
    let traffic = Traffic::paced(envoy.outbound, "held", 2, Duration::from_millis(20));
    held.first.iter().for_each(Mortal::die);
    for at in 0..held.first.len() {
        sites.first.delete("held", &format!("i{at}")).await;
    }
    let lost = until_right(&traffic, &Outcomes::new(), "the dead site is left").await;
    assert!(lost < FEW, "{lost} failed");
    until_answered(&envoy, &held, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_second_site_half_of_the_instances_stay_and_the_only_one_always() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let mut services = Vec::new();
    for (name, count, dead) in [("one", 1, 1), ("two", 2, 1), ("three", 3, 1), ("all", 3, 3)] {
        let instances = Mortal::start_many(count);
        for (at, instance) in instances.iter().enumerate() {
            let address = instance.address.to_string();
            tree.register(name, &format!("i{at}"), address.as_bytes())
                .await;
        }
        services.push((name, instances, dead));
    }
    let server = MeshKeeper::start(&zookeeper.connect()).await;
    let envoy = Envoy::start(&server, "single").await;
    let http = Http::new();
    for (name, instances, dead) in &services {
        instances[..*dead]
            .iter()
            .for_each(|instance| instance.answer(503));
        let mut last = Vec::new();
        for _ in 0..60 {
            last.push(
                http.get(envoy.outbound, name, "/")
                    .await
                    .unwrap()
                    .0
                    .as_u16(),
            );
        }
        let ejected = async || {
            let stats = envoy.stats().await;
            stats[&format!("cluster.{name}.outlier_detection.ejections_active")]
        };
        let expected = u64::from(instances.len() > 1);
        until("the ejection", async || {
            (ejected().await == expected).then_some(())
        })
        .await;
        if dead < &instances.len() {
            let after = http.get(envoy.outbound, name, "/").await.unwrap().0;
            assert_eq!(after.as_u16(), 200, "{name}: the rest answers");
        }
    }
    // The last ones are still tried, so what comes back serves at once.
    for (name, instances, _) in services
        .iter()
        .filter(|(name, ..)| ["one", "all"].contains(name))
    {
        for instance in instances {
            instance.answer(200);
        }
        let answer = http.get(envoy.outbound, name, "/").await.unwrap().0;
        assert_eq!(answer.as_u16(), 200, "{name}");
    }
}
