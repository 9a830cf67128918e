//! Names that no resource has, asked for by gRPC clients.

use std::sync::Arc;

use super::{
    Client, DiscoveryRequest, Mesh, Resource, ResourceType, ResourceType::*, Scope, SotwClient,
    Stream, Version, told,
};
use crate::{
    resource::{Made, Naming, Profile},
    xds::status::State,
};

/// Takes names in any case, and answers every listener.
#[derive(Debug)]
struct AnyCase;

impl Naming for AnyCase {
    fn spellings(&self, kind: ResourceType, name: &str) -> Vec<String> {
        let lower = name.to_lowercase();
        let other = kind == Listener && lower != name;
        other.then_some(lower).into_iter().collect()
    }

    fn make(
        &self,
        kind: ResourceType,
        name: &str,
        found: Option<&Resource>,
        _: Profile,
    ) -> Option<Made> {
        let version = found.map_or(Version(404), |found| found.version);
        (kind == Listener).then(|| Made {
            resource: Arc::new(Resource::new(kind, name, version, b"made")),
            unknown: found.is_none(),
        })
    }
}

fn grpc(mesh: &Mesh) -> SotwClient {
    let mut client: SotwClient = Client::new(mesh.clone(), Scope::Aggregated, "gRPC Go");
    client.stream = Stream::new(Scope::Aggregated).naming(Some(Arc::new(AnyCase)));
    client
}

#[test]
fn an_unknown_name_is_answered_at_once_and_followed() {
    let mesh = Mesh::of(Listener, &["a@1"]);
    let mut client = grpc(&mesh);
    client.ask(Listener, &["a", "b"]);
    assert_eq!(client.next_acked(), told(Listener, &["a@1", "b@404"]));
    assert_eq!(client.status(Listener).unregistered, ["b"]);
    mesh.put(Listener, "b@1");
    assert_eq!(client.next_acked(), told(Listener, &["a@1", "b@1"]));
    assert!(client.status(Listener).unregistered.is_empty());
    mesh.remove(Listener, "b");
    assert_eq!(client.next_acked(), told(Listener, &["a@1", "b@404"]));
    client.silent();
}

#[test]
fn another_spelling_follows_the_resource_and_counts_as_one_name() {
    let mesh = Mesh::of(Listener, &["a@1"]);
    let mut client = grpc(&mesh);
    client.ask(Listener, &["A"]);
    assert_eq!(client.next_acked(), told(Listener, &["A@1"]));
    assert_eq!(client.status(Listener).subscribed, 1);
    mesh.put(Listener, "a@2");
    assert_eq!(client.next_acked(), told(Listener, &["A@2"]));
    client.ask(Listener, &["A", "a"]);
    assert_eq!(client.next_acked(), told(Listener, &["A@2", "a@2"]));
    client.ask(Listener, &["a"]);
    client.silent();
    mesh.remove(Listener, "a");
    assert_eq!(client.next_acked(), told(Listener, &["a@404"]));
}

#[test]
fn names_that_nobody_answers_are_missing_as_ever() {
    let mut client = grpc(&Mesh::empty());
    client.ask(Cluster, &["a"]);
    assert_eq!(client.next_acked(), told(Cluster, &[]));
    assert_eq!(client.latest[&Cluster].missing, ["a".into()]);
}

#[test]
fn a_sidecar_is_answered_nothing_that_does_not_exist() {
    let mesh = Mesh::empty();
    let mut client = mesh.sotw();
    client.stream = Stream::new(Scope::Aggregated).naming(Some(Arc::new(AnyCase)));
    client.ask(Listener, &["A"]);
    assert_eq!(client.next_acked(), told(Listener, &[]));
}

#[test]
fn a_client_that_asks_for_nothing_owes_no_answer() {
    let mesh = Mesh::of(Cluster, &["a@1"]);
    let mut client = grpc(&mesh);
    client.ask(Cluster, &["a"]);
    assert_eq!(client.next_acked(), told(Cluster, &["a@1"]));
    mesh.put(Cluster, "a@2");
    assert_eq!(client.next(), told(Cluster, &["a@2"]));
    assert_eq!(client.status(Cluster).state, State::Stale);
    // Under the nonce before: it has not read the response, and will not answer it.
    client.send(DiscoveryRequest {
        type_url: Cluster.type_url().into(),
        response_nonce: "1".into(),
        ..DiscoveryRequest::default()
    });
    assert_eq!(client.status(Cluster).state, State::Synced);
    let snapshots = mesh.0.borrow().snapshots.clone();
    assert!(client.stream.lags(&snapshots).is_empty());
    // Whatever it says next, it says it under the nonce that it has read by then.
    client.ask(Cluster, &["a"]);
    assert_eq!(client.next_acked(), told(Cluster, &["a@2"]));
}
