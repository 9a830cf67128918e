//! Behaviours 3–7: types, nodes, nonces; alike in both variants.

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use super::{
    Client, DeltaClient, Mesh, Refusal, ResourceType::*, Scope, SotwClient, TYPES, node, strings,
    told,
};
use crate::{
    resource::{ClientKind, Edition},
    xds::status::State,
};

fn of_type(type_url: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: type_url.into(),
        ..DiscoveryRequest::default()
    }
}

fn delta_of_type(type_url: &str, subscribe: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.into(),
        resource_names_subscribe: strings(subscribe),
        ..DeltaDiscoveryRequest::default()
    }
}

#[test]
fn line_03_an_aggregated_request_without_a_type_is_refused() {
    let refused = Mesh::empty().sotw().try_send(of_type(""));
    assert_eq!(refused, Err(Refusal::MissingType));
    let refused = Mesh::empty().delta().try_send(delta_of_type("", &["a"]));
    assert_eq!(refused, Err(Refusal::MissingType));
}

#[test]
fn line_03_a_service_of_one_type_implies_it() {
    let mesh = Mesh::of(Cluster, &["a@1"]).with(Endpoint, &["a@1"]);
    let mut client: SotwClient = Client::new(mesh.clone(), Scope::Only(Cluster), "envoy");
    client.send(of_type(""));
    assert_eq!(client.next(), told(Cluster, &["a@1"]));
    client.ack(Cluster).silent();

    let mut client: DeltaClient = Client::new(mesh, Scope::Only(Endpoint), "envoy");
    client.send(delta_of_type("", &["a"]));
    assert_eq!(client.next(), told(Endpoint, &["a@1"]));
    client.ack(Endpoint).silent();
}

#[test]
fn line_03_a_service_of_one_type_refuses_another() {
    let scope = Scope::Only(Cluster);
    let mut client: SotwClient = Client::new(Mesh::empty(), scope, "envoy");
    let refused = client.try_send(of_type(Route.type_url()));
    let foreign = Refusal::ForeignType {
        asked: Route.type_url().into(),
        served: Cluster.type_url(),
    };
    assert_eq!(refused, Err(foreign));
    let mut client: SotwClient = Client::new(Mesh::empty(), scope, "envoy");
    assert!(client.try_send(of_type("nonsense")).is_err());
}

#[test]
fn line_04_an_unknown_type_is_met_with_silence_and_the_others_work() {
    let mut client = Mesh::of(Cluster, &["a@1"]).sotw();
    let mut unknown = of_type("type.googleapis.com/unknown");
    unknown.resource_names = strings(&["x", "*"]);
    client.send(unknown.clone()).silent();
    client.ask(Cluster, &[]);
    assert_eq!(client.next_acked(), told(Cluster, &["a@1"]));
    client.send(unknown).silent();
}

#[test]
fn line_04_delta_says_that_names_of_an_unknown_type_do_not_exist() {
    let url = "type.googleapis.com/unknown";
    let mut client = Mesh::of(Cluster, &["a@1"]).delta();
    client.send(delta_of_type(url, &["y", "*", "x", "y"]));
    let response = client.receive().unwrap();
    assert_eq!(response.type_url, url);
    assert!(response.resources.is_empty());
    assert_eq!(response.removed, ["x".into(), "y".into()]);
    client.send(DeltaDiscoveryRequest {
        response_nonce: response.nonce,
        ..delta_of_type(url, &[])
    });
    client.silent().subscribe(Cluster, &[]);
    assert_eq!(client.next(), told(Cluster, &["a@1"]));
}

#[test]
fn line_05_the_node_of_the_first_message_is_remembered() {
    let mesh = Mesh::empty();
    mesh.put_for(Edition::Envoy, Cluster, "for-envoy", 1, 0);
    mesh.put_for(Edition::Grpc, Cluster, "for-grpc", 1, 0);
    let mut client: SotwClient = Client::new(mesh, Scope::Aggregated, "gRPC C-core linux 1.85");
    client.ask(Endpoint, &["a"]).ask(Cluster, &["*"]);
    assert_eq!(client.next(), told(Cluster, &["for-grpc@1"]));
    client.send(DiscoveryRequest {
        node: Some(node("envoy")),
        response_nonce: client.nonce(Cluster),
        ..of_type(Cluster.type_url())
    });
    let known = client.stream.client().unwrap();
    assert_eq!(
        (&*known.node_id, known.profile.kind),
        ("sidecar-1", ClientKind::Grpc)
    );
}

#[test]
fn line_05_a_first_message_without_a_node_is_refused() {
    let mut client = Mesh::empty().sotw();
    client.node = None;
    let refused = client.try_send(of_type(Cluster.type_url()));
    assert_eq!(refused, Err(Refusal::MissingNode));
    let mut client = Mesh::empty().delta();
    client.node = None;
    let refused = client.try_send(delta_of_type(Cluster.type_url(), &[]));
    assert_eq!(refused, Err(Refusal::MissingNode));
}

#[test]
fn line_06_each_response_has_its_type_and_a_nonce_of_its_own() {
    // `Client::receive` checks the inner types and that no nonce comes twice.
    let mesh = Mesh::whole("a");
    let (mut sotw, mut delta) = (mesh.sotw(), mesh.delta());
    for kind in TYPES {
        sotw.ask(kind, &["a"]);
        delta.subscribe(kind, &["a"]);
    }
    for round in 2..20 {
        for responses in [sotw.settle(), delta.settle()] {
            let kinds: Vec<_> = responses.iter().map(|told| told.kind).collect();
            assert!(kinds.starts_with(&TYPES), "{kinds:?}");
        }
        for kind in TYPES {
            mesh.put(kind, &format!("a@{round}"));
        }
    }
    assert!(sotw.nonces.len() >= 72 && delta.nonces.len() >= 72);
}

#[test]
fn line_06_every_delta_resource_has_a_name_and_a_version() {
    let mut client = Mesh::of(Cluster, &["a@7"]).delta();
    client.subscribe(Cluster, &[]);
    let response = client.receive().unwrap();
    assert_eq!(&*response.resources[0].name, "a");
    assert_eq!(
        response.resources[0].version.to_string(),
        "0000000000000007"
    );
}

#[test]
fn line_07_an_ack_or_nack_of_one_type_leaves_the_others_alone() {
    let mesh = Mesh::of(Cluster, &["a@1"]).with(Endpoint, &["a@1"]);
    let mut client = mesh.sotw();
    client.ask(Cluster, &[]).ask(Endpoint, &["a"]);
    assert_eq!(client.next(), told(Cluster, &["a@1"]));
    assert_eq!(client.next(), told(Endpoint, &["a@1"]));
    client.nack(Endpoint).silent();
    assert_eq!(client.status(Cluster).state, State::Stale);
    assert_eq!(client.status(Endpoint).state, State::Error);
    client.ack(Cluster).silent();
    assert_eq!(client.status(Cluster).state, State::Synced);
    assert_eq!(client.status(Endpoint).state, State::Error);
}

#[test]
fn line_07_the_nonce_of_another_type_acknowledges_nothing() {
    let mesh = Mesh::of(Cluster, &["a@1"]).with(Endpoint, &["a@1"]);
    let mut client = mesh.sotw();
    client.ask(Cluster, &[]).ask(Endpoint, &["a"]);
    assert_eq!(client.drain().len(), 2);
    let nonce = client.nonce(Cluster);
    client.ask_under(&nonce, Endpoint, &["a"]);
    mesh.put(Endpoint, "a@2");
    client.silent();
    client.ack(Endpoint);
    assert_eq!(client.next(), told(Endpoint, &["a@2"]));
}
