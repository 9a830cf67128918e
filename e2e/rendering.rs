//! Every resource of the golden set, on the wire to the clients that it was rendered for: a real
//! Envoy and both families of gRPC accept each.
//!
//! Addresses are moved to the loopback interface, since gRPC connects to what it is told.

use std::{collections::BTreeMap, fs, path::Path};

use meshkeeper::{
    resource::{Edition, Resource, ResourceType, Version, json::DESCRIPTOR_SET},
    snapshot::{Snapshot, Snapshots},
};
use prost_reflect::{DescriptorPool, DynamicMessage, prost::Message};
use serde::Deserialize;
use serde_json::Value;

use crate::support::{
    discovery::Server,
    envoy::Envoy,
    grpc::{Client, Library},
    wait::{free_address, until},
};

#[derive(Deserialize)]
struct Shown {
    version: String,
    body: Value,
}

/// Kind of client → type → name → resource, as the golden files have it.
type Rendering = BTreeMap<String, BTreeMap<String, BTreeMap<String, Shown>>>;

/// The golden cases by name.
fn cases() -> BTreeMap<String, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/translate/testdata");
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let cases: BTreeMap<_, _> = files
        .filter_map(|file| {
            let case = file
                .file_name()?
                .to_str()?
                .strip_suffix(".out.yaml")?
                .to_owned();
            Some((case, fs::read_to_string(&file).unwrap()))
        })
        .collect();
    assert!(
        cases.len() > 5,
        "the golden files are where they are looked for"
    );
    cases
}

fn resources(text: &str, client: Edition) -> Vec<Resource> {
    let pool = DescriptorPool::decode(DESCRIPTOR_SET).unwrap();
    let rendering: Rendering = serde_yaml::from_str(text).unwrap();
    let mut resources = Vec::new();
    for kind in ResourceType::ALL {
        let named = rendering[client.as_str()].get(kind.as_str());
        for (name, shown) in named.into_iter().flatten() {
            let message = kind.type_url().rsplit_once('/').unwrap().1;
            let message = pool.get_message_by_name(message).unwrap();
            let message = DynamicMessage::deserialize(message, &shown.body).unwrap();
            let version = Version::parse(&shown.version).unwrap();
            resources.push(Resource::new(
                kind,
                name.as_str(),
                version,
                &message.encode_to_vec(),
            ));
        }
    }
    resources
}

/// Makes the snapshot hold these resources and no others.
fn replace(snapshot: &mut Snapshot, resources: Vec<Resource>) {
    for kind in ResourceType::ALL {
        let names: Vec<_> = snapshot.set(kind).iter().map(|r| r.name.clone()).collect();
        let kept = |name: &str| resources.iter().any(|r| r.kind == kind && *r.name == *name);
        for name in names.iter().filter(|name| !kept(name)) {
            snapshot.remove(kind, name);
        }
    }
    for resource in resources {
        snapshot.put(resource);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_accepts_every_golden_resource() {
    let server = Server::start().await;
    let (outbound, taken) = (free_address(), "portValue: 15001");
    let free = format!("portValue: {}", outbound.port());
    let mut envoy = None;
    for (case, text) in cases() {
        let resources = resources(&text.replace(taken, &free), Edition::Envoy);
        let clusters = resources
            .iter()
            .filter(|r| r.kind == ResourceType::Cluster)
            .count();
        server.change(|snapshot| replace(snapshot, resources));
        if envoy.is_none() {
            envoy = Some(Envoy::of(server.address, outbound, "golden").await);
        }
        let envoy = envoy.as_ref().unwrap();
        // Beside the clusters of the case there is the one of the control plane.
        let taken_over = async || {
            let stats = envoy.stats().await;
            (stats["cluster_manager.active_clusters"] == clusters as u64 + 1).then_some(())
        };
        until(&format!("Envoy has the clusters of {case}"), taken_over).await;
        until(&format!("Envoy acknowledged {case}"), async || {
            synced(&server, 1)
        })
        .await;
        assert!(
            envoy.rejections().await.is_empty(),
            "{case}: {}",
            envoy.log()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_grpc_clients_accept_every_golden_resource() {
    for (case, text) in cases() {
        let text = text
            .replace("address: 10.", "address: 127.")
            .replace("2001:db8::7", "::1");
        let resources = resources(&text, Edition::Grpc);
        let listeners = resources
            .iter()
            .filter(|r| r.kind == ResourceType::Listener);
        let services: Vec<_> = listeners.map(|r| r.name.clone()).collect();
        let server = Server::start().await;
        server.change_all(|snapshots: &mut Snapshots| {
            replace(snapshots.of_mut(Edition::Grpc), resources);
        });
        for library in Library::ALL {
            let start = |name: &std::sync::Arc<str>| Client::start(library, server.address, name);
            let mut clients: Vec<_> = services.iter().map(start).collect();
            for client in &mut clients {
                client.tell("ready 0").await;
            }
            let what = format!("{library:?} acknowledged {case}");
            until(&what, async || synced(&server, services.len())).await;
            drop(clients);
            until("they are gone", async || {
                server.clients.list().is_empty().then_some(())
            })
            .await;
        }
    }
}

/// All four types of that many streams are acknowledged; a rejection fails at once.
fn synced(server: &Server, streams: usize) -> Option<()> {
    let clients = server.clients.list();
    let types: Vec<_> = clients.iter().flat_map(|client| &client.types).collect();
    for (kind, status) in &types {
        assert_eq!(status.error, None, "{kind}");
    }
    let all = types
        .iter()
        .all(|(_, t)| t.state == meshkeeper::xds::status::State::Synced);
    // A mesh without services has neither endpoints nor anybody who asks for them.
    let enough = types.len() >= 3 * streams;
    (clients.len() == streams && all && enough).then_some(())
}
