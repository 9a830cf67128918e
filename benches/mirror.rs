//! `make bench`: how long the mirror takes to load, and how soon a client has a change, each beside
//! a bare ZooKeeper client that does the same reads in the same run.
//!
//! Machines are shared and noisy, so the ratios are what counts. Nothing is asserted but that every
//! side has seen everything.

#![allow(clippy::unwrap_used, clippy::expect_used)]
// A method's path is not general enough in its lifetime.
#![allow(clippy::redundant_closure_for_method_calls)]

#[path = "../e2e/support/zookeeper.rs"]
#[allow(dead_code)]
mod server;

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use futures_util::{StreamExt, TryStreamExt, stream};
use meshkeeper::{
    app,
    config::{self, Flags},
    publish::Publisher,
    registry::{self, FormatChoice, Index},
    resource::ResourceType,
    translate::{self, Translation},
    zookeeper,
};
use server::ZooKeeper;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use zookeeper_client::{
    Acls, AddWatchMode, Client, CreateMode, MultiReadResult, MultiReader, PersistentWatcher,
};

const ROOT: &str = "/services";
const INSTANCES: usize = 10;
const REPETITIONS: usize = 5;
const CHANGES: usize = 500;
/// Between two changes, so that they do not coalesce.
const PACE: Duration = Duration::from_millis(5);
/// As many operations in a request, and as many requests at once, as read fastest.
const BATCH: usize = 500;
const DEPTH: usize = 4;

#[tokio::main]
async fn main() {
    // Cargo passes `--bench`; a number is the count of services.
    let services = std::env::args()
        .skip(1)
        .find_map(|word| word.parse().ok())
        .unwrap_or(10_000);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("{services} services of {INSTANCES} instances, 220 B each; load average {load}");
    let zookeeper = ZooKeeper::start();
    let writer = zookeeper.client().await;
    fill(&writer, services).await;
    cold_mirror(&zookeeper, services).await;
    propagation(&zookeeper, &writer).await;
}

async fn cold_mirror(zookeeper: &ZooKeeper, services: usize) {
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..REPETITIONS {
        bare.push(bare_mirror(zookeeper, services).await);
        ours.push(our_mirror(zookeeper, services).await);
    }
    println!(
        "cold mirror: session start → all read (bare), → decoded, rendered, ready (meshkeeper)"
    );
    report(&mut bare, &mut ours);
}

async fn propagation(zookeeper: &ZooKeeper, writer: &Client) {
    let mut bare = bare_propagation(zookeeper, writer).await;
    let mut ours = our_propagation(zookeeper, writer).await;
    println!("propagation: write begun → data read (bare), → a delta client has it (meshkeeper)");
    report(&mut bare, &mut ours);
}

fn report(bare: &mut [Duration], ours: &mut [Duration]) {
    let mut table = String::from("             p50         p99\n");
    for (name, times) in [("bare client", &mut *bare), ("meshkeeper ", ours)] {
        times.sort_unstable();
        let (p50, p99) = (percentile(times, 50), percentile(times, 99));
        writeln!(table, "{name}  {:>8.2} ms {:>8.2} ms", ms(p50), ms(p99)).unwrap();
    }
    let ratio = |p| percentile(ours, p).as_secs_f64() / percentile(bare, p).as_secs_f64();
    println!(
        "{table}ratio        {:>8.2}    {:>8.2}\n",
        ratio(50),
        ratio(99)
    );
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn payload(service: usize, instance: usize, weight: usize) -> Vec<u8> {
    let mut text = format!(
        r#"{{"host":"10.{}.{}.{instance}","port":8080,"weight":{weight},"zone":"a","metadata":{{"version":"1""#,
        service / 250 % 250,
        service % 250,
    );
    while text.len() < 196 {
        text.push(' ');
    }
    text.push_str(r#","team":"checkout"}}"#);
    text.into_bytes()
}

async fn fill(client: &Client, services: usize) {
    let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
    client.create(ROOT, b"", &options).await.unwrap();
    for service in 0..services {
        let mut writer = client.new_multi_writer();
        writer
            .add_create(&format!("{ROOT}/s{service}"), b"", &options)
            .unwrap();
        for instance in 0..INSTANCES {
            let path = format!("{ROOT}/s{service}/i{instance}");
            writer
                .add_create(&path, &payload(service, instance, 100), &options)
                .unwrap();
        }
        writer.commit().await.unwrap();
    }
}

/// The same reads with nothing behind them.
async fn bare_mirror(zookeeper: &ZooKeeper, services: usize) -> Duration {
    let start = Instant::now();
    let client = zookeeper.client().await;
    let _watcher = client
        .watch(ROOT, AddWatchMode::PersistentRecursive)
        .await
        .unwrap();
    let services_found = client.list_children(ROOT).await.unwrap();
    let parents: Vec<_> = services_found
        .iter()
        .map(|name| format!("{ROOT}/{name}"))
        .collect();
    let lists = read(&client, &parents, |reader, path| {
        reader.add_get_children(path)
    })
    .await;
    let mut paths = Vec::new();
    for (parent, list) in parents.iter().zip(lists) {
        if let MultiReadResult::Children { children } = list {
            paths.extend(children.iter().map(|child| format!("{parent}/{child}")));
        }
    }
    let data = read(&client, &paths, |reader, path| reader.add_get_data(path)).await;
    assert_eq!(data.len(), services * INSTANCES);
    start.elapsed()
}

async fn read(
    client: &Client,
    paths: &[String],
    add: impl Fn(&mut MultiReader<'_>, &str) -> Result<(), zookeeper_client::Error> + Copy,
) -> Vec<MultiReadResult> {
    let batches = stream::iter(paths.chunks(BATCH)).map(|batch| {
        let mut reader = client.new_multi_reader();
        for path in batch {
            add(&mut reader, path).unwrap();
        }
        reader.commit()
    });
    batches.buffered(DEPTH).try_concat().await.unwrap()
}

/// The whole way up to the snapshot that clients are served from.
async fn our_mirror(zookeeper: &ZooKeeper, services: usize) -> Duration {
    let start = Instant::now();
    let metrics = prometheus::Registry::new();
    let config = configuration(zookeeper);
    let index = Index::new(registry::Config {
        name: "main".into(),
        root: ROOT.into(),
        format: FormatChoice::Auto,
    });
    let translation = Translation::new(translate::Config {
        outbound_listen: config.mesh.outbound_listen,
        domain_suffix: config.mesh.domain_suffix.clone(),
    });
    let counts = registry::Metrics::register(&metrics).unwrap();
    let (publisher, mut readers) = Publisher::new(index, translation, counts);
    let (batches, queue) = mpsc::channel(64);
    let (state, _states) = watch::channel(zookeeper::State::new());
    let stop = CancellationToken::new();
    let watched = zookeeper::Config {
        name: "main".into(),
        connect: zookeeper.connect(),
        root: ROOT.into(),
        session_timeout: Duration::from_secs(10),
    };
    let session = zookeeper::Metrics::register(&metrics).unwrap();
    let watching = tokio::spawn(zookeeper::watch(
        watched,
        session,
        batches,
        state,
        stop.clone(),
    ));
    let publishing = tokio::spawn(publisher.run(queue));
    readers
        .snapshots
        .wait_for(|snapshots| snapshots.loaded)
        .await
        .unwrap();
    let took = start.elapsed();
    let view = readers
        .registry
        .wait_for(|view| view.services.len() == services)
        .await
        .unwrap();
    let instances: usize = view
        .services
        .values()
        .map(|service| service.instances.len())
        .sum();
    assert_eq!(instances, services * INSTANCES);
    drop(view);
    stop.cancel();
    watching.await.unwrap().unwrap();
    publishing.await.unwrap();
    took
}

async fn bare_propagation(zookeeper: &ZooKeeper, writer: &Client) -> Vec<Duration> {
    let client = zookeeper.client().await;
    let mut watcher = client
        .watch(ROOT, AddWatchMode::PersistentRecursive)
        .await
        .unwrap();
    let mut times = Vec::new();
    for change in 0..CHANGES {
        tokio::time::sleep(PACE).await;
        let start = Instant::now();
        let (path, data) = (format!("{ROOT}/s0/i0"), payload(0, 0, 1 + change));
        let (written, ()) = tokio::join!(
            writer.set_data(&path, &data, None),
            seen(&mut watcher, &client)
        );
        written.unwrap();
        times.push(start.elapsed());
    }
    times
}

async fn seen(watcher: &mut PersistentWatcher, client: &Client) {
    let event = watcher.changed().await;
    client.get_data(&event.path).await.unwrap();
}

async fn our_propagation(zookeeper: &ZooKeeper, writer: &Client) -> Vec<Duration> {
    let stop = CancellationToken::new();
    let app = app::start(&configuration(zookeeper), stop.clone())
        .await
        .unwrap();
    let (requests, mut responses) = subscribe(app.xds).await;
    let running = tokio::spawn(app.run());
    acknowledge(&requests, &mut responses).await;
    let mut times = Vec::new();
    for change in 0..CHANGES {
        tokio::time::sleep(PACE).await;
        let start = Instant::now();
        let (path, data) = (format!("{ROOT}/s0/i0"), payload(0, 0, 1 + change));
        let received = acknowledge(&requests, &mut responses);
        let (written, ()) = tokio::join!(writer.set_data(&path, &data, None), received);
        written.unwrap();
        times.push(start.elapsed());
    }
    drop(requests);
    stop.cancel();
    running.await.unwrap().unwrap();
    times
}

async fn subscribe(
    address: std::net::SocketAddr,
) -> (
    mpsc::Sender<DeltaDiscoveryRequest>,
    Streaming<DeltaDiscoveryResponse>,
) {
    let client = AggregatedDiscoveryServiceClient::connect(format!("http://{address}")).await;
    let (requests, queue) = mpsc::channel(8);
    let first = DeltaDiscoveryRequest {
        node: Some(Node {
            id: "bench".into(),
            ..Node::default()
        }),
        type_url: ResourceType::Endpoint.type_url().into(),
        resource_names_subscribe: vec!["s0".into()],
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(first).await.unwrap();
    let responses = client
        .unwrap()
        .delta_aggregated_resources(ReceiverStream::new(queue))
        .await
        .unwrap();
    (requests, responses.into_inner())
}

async fn acknowledge(
    requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    responses: &mut Streaming<DeltaDiscoveryResponse>,
) {
    let response = responses.message().await.unwrap().unwrap();
    let ack = DeltaDiscoveryRequest {
        type_url: response.type_url,
        response_nonce: response.nonce,
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(ack).await.unwrap();
}

fn configuration(zookeeper: &ZooKeeper) -> config::Config {
    let flags = Flags {
        zookeeper: Some(zookeeper.connect()),
        xds_listen: Some("127.0.0.1:0".into()),
        admin_listen: Some("127.0.0.1:0".into()),
        ..Flags::default()
    };
    config::load(None, &flags).unwrap()
}
