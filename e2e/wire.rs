//! The protocol through real connections: what the pure machine shows without sockets is shown once
//! more where the wire has a say in it. The numbers are those of the machine's own tests.

mod peers;
mod slow;

use std::collections::HashMap;

use envoy_types::pb::envoy::service::{
    cluster::v3::cluster_discovery_service_client::ClusterDiscoveryServiceClient,
    discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
    endpoint::v3::endpoint_discovery_service_client::EndpointDiscoveryServiceClient,
    listener::v3::listener_discovery_service_client::ListenerDiscoveryServiceClient,
    route::v3::{
        route_discovery_service_client::RouteDiscoveryServiceClient,
        virtual_host_discovery_service_client::VirtualHostDiscoveryServiceClient,
    },
    secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient,
};
use meshkeeper::resource::{Resource, ResourceType, Version};
use tonic::Code;

use crate::support::discovery::{Delta, PATIENCE, Server, Sotw, node, told, version};

use ResourceType::{Cluster, Endpoint, Listener, Route, VirtualHost};

/// The types that a wildcard tells, in the order in which they are pushed.
const TYPES: [ResourceType; 4] = [Cluster, Endpoint, Listener, Route];

fn request(kind: ResourceType) -> DiscoveryRequest {
    DiscoveryRequest {
        node: Some(node()),
        type_url: kind.type_url().into(),
        ..DiscoveryRequest::default()
    }
}

#[tokio::test]
async fn line_1_ads_serves_both_variants_on_one_connection() {
    let server = Server::start().await;
    server.put(Cluster, "a", 1);
    let channel = server.channel().await;
    let mut sotw = Sotw::open(channel.clone()).await.unwrap();
    let mut delta = Delta::open(channel).await.unwrap();
    sotw.ask(Cluster, &[]).await;
    delta.subscribe(Cluster, &[]).await;
    assert_eq!(sotw.next().await.resources.len(), 1);
    assert_eq!(told(&delta.next().await), [("a", version(1).as_str())]);
}

#[tokio::test]
async fn line_2_the_services_of_single_types_stream_and_fetch() {
    let server = Server::start().await;
    for kind in TYPES {
        server.put(kind, "a", 1);
    }
    let channel = server.channel().await;
    let named = |kind| DiscoveryRequest {
        resource_names: vec!["a".into()],
        ..request(kind)
    };

    let mut clusters = ClusterDiscoveryServiceClient::new(channel.clone());
    let mut endpoints = EndpointDiscoveryServiceClient::new(channel.clone());
    let mut listeners = ListenerDiscoveryServiceClient::new(channel.clone());
    let mut routes = RouteDiscoveryServiceClient::new(channel.clone());
    let fetched = [
        clusters.fetch_clusters(named(Cluster)).await.unwrap(),
        endpoints.fetch_endpoints(named(Endpoint)).await.unwrap(),
        listeners.fetch_listeners(named(Listener)).await.unwrap(),
        routes.fetch_routes(named(Route)).await.unwrap(),
    ];
    for (response, kind) in fetched.iter().zip(TYPES) {
        assert_eq!(response.get_ref().type_url, kind.type_url());
        assert_eq!(response.get_ref().resources.len(), 1);
    }

    let stream = tokio_stream::iter([named(Endpoint)]);
    let mut stream = endpoints
        .stream_endpoints(stream)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().resources.len(), 1);
    let delta = DeltaDiscoveryRequest {
        node: Some(node()),
        ..DeltaDiscoveryRequest::default()
    };
    let mut stream = routes
        .delta_routes(tokio_stream::iter([delta]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        told(&stream.message().await.unwrap().unwrap()),
        [("a", version(1).as_str())]
    );
}

#[tokio::test]
async fn line_2_virtual_hosts_are_served_by_name_in_increments() {
    let server = Server::start().await;
    server.put(VirtualHost, "outbound/a", 1);
    let mut hosts = VirtualHostDiscoveryServiceClient::new(server.channel().await);
    let named = DeltaDiscoveryRequest {
        node: Some(node()),
        resource_names_subscribe: vec!["outbound/a".into(), "outbound/x".into()],
        ..DeltaDiscoveryRequest::default()
    };
    let stream = hosts.delta_virtual_hosts(tokio_stream::iter([named])).await;
    let response = stream
        .unwrap()
        .into_inner()
        .message()
        .await
        .unwrap()
        .unwrap();
    assert_eq!(response.type_url, VirtualHost.type_url());
    let there = ("outbound/a", version(1));
    let absent = ("outbound/x", version(0));
    let expected = [&there, &absent].map(|(name, version)| (*name, version.as_str()));
    assert_eq!(told(&response), expected);
    assert_eq!(response.resources[1].resource, None);
    assert_eq!(response.resources[1].aliases, ["outbound/x"]);

    let mut delta = server.delta().await;
    delta.subscribe(VirtualHost, &[]).await;
    assert!(
        delta.next().await.resources.is_empty(),
        "a wildcard holds none"
    );
}

#[tokio::test]
async fn line_2_a_fetch_of_what_does_not_exist_is_an_empty_response() {
    let server = Server::start().await;
    let mut endpoints = EndpointDiscoveryServiceClient::new(server.channel().await);
    let named = DiscoveryRequest {
        resource_names: vec!["x".into()],
        ..request(Endpoint)
    };
    let response = endpoints.fetch_endpoints(named).await.unwrap().into_inner();
    assert!(response.resources.is_empty());
    assert_eq!(response.type_url, Endpoint.type_url());
}

#[tokio::test]
async fn line_2_a_service_that_is_not_served_is_unimplemented() {
    let server = Server::start().await;
    let mut secrets = SecretDiscoveryServiceClient::new(server.channel().await);
    let refused = secrets.fetch_secrets(request(Cluster)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
}

#[tokio::test]
async fn line_3_an_empty_type_ends_ads_and_is_implied_elsewhere() {
    let server = Server::start().await;
    let mut ads = server.sotw().await;
    ads.send(DiscoveryRequest {
        node: Some(node()),
        ..DiscoveryRequest::default()
    })
    .await;
    assert_eq!(
        ads.end_or_next().await.unwrap_err().code(),
        Code::InvalidArgument
    );

    server.put(Cluster, "a", 1);
    let mut clusters = ClusterDiscoveryServiceClient::new(server.channel().await);
    let implied = DiscoveryRequest {
        node: Some(node()),
        ..DiscoveryRequest::default()
    };
    let response = clusters.fetch_clusters(implied).await.unwrap().into_inner();
    assert_eq!(response.type_url, Cluster.type_url());
    let foreign = clusters.fetch_clusters(request(Route)).await.unwrap_err();
    assert_eq!(foreign.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn line_4_an_unknown_type_leaves_the_stream_up() {
    let server = Server::start().await;
    server.put(Cluster, "a", 1);
    let mut delta = server.delta().await;
    let unknown = DeltaDiscoveryRequest {
        node: Some(node()),
        type_url: "type.googleapis.com/no.such.Type".into(),
        resource_names_subscribe: vec!["x".into()],
        ..DeltaDiscoveryRequest::default()
    };
    delta.send(unknown).await;
    let response = delta.next().await;
    assert_eq!(response.type_url, "type.googleapis.com/no.such.Type");
    assert_eq!(response.removed_resources, ["x"]);
    delta.subscribe(Cluster, &[]).await;
    assert_eq!(told(&delta.next().await), [("a", version(1).as_str())]);
}

#[tokio::test]
async fn line_5_the_first_message_must_say_who_asks() {
    let server = Server::start().await;
    let mut delta = server.delta().await;
    delta
        .send(DeltaDiscoveryRequest {
            type_url: Cluster.type_url().into(),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    let end = delta.end_or_next().await.unwrap_err();
    assert_eq!(end.code(), Code::InvalidArgument);
    assert!(end.message().contains("node"), "{}", end.message());
}

#[tokio::test]
async fn line_6_responses_name_type_nonce_and_control_plane() {
    let server = Server::start().await;
    server.put(Cluster, "a", 1);
    let mut delta = server.delta().await;
    delta.subscribe(Cluster, &[]).await;
    let first = delta.next().await;
    assert!(
        first
            .control_plane
            .as_ref()
            .unwrap()
            .identifier
            .starts_with("meshkeeper")
    );
    assert_eq!(
        first.resources[0].resource.as_ref().unwrap().type_url,
        Cluster.type_url()
    );
    assert!(!first.nonce.is_empty());
    delta.ack(&first).await;
    server.put(Cluster, "a", 2);
    let second = delta.next().await;
    assert_ne!(first.nonce, second.nonce);
    assert_ne!(first.system_version_info, second.system_version_info);
}

#[tokio::test]
async fn line_9_and_23_an_empty_mesh_is_answered_at_once() {
    let server = Server::start().await;
    let mut sotw = server.sotw().await;
    sotw.ask(Cluster, &[]).await;
    assert!(sotw.next().await.resources.is_empty());
    let mut delta = server.delta().await;
    delta.subscribe(Cluster, &[]).await;
    assert!(delta.next().await.resources.is_empty());
}

#[tokio::test]
async fn line_12_and_14_a_change_sends_the_set_once_and_an_ack_is_silent() {
    let server = Server::start().await;
    server.put(Cluster, "a", 1);
    server.put(Cluster, "b", 1);
    let mut sotw = server.sotw().await;
    sotw.ask(Cluster, &[]).await;
    let first = sotw.next().await;
    sotw.ack(&first, &[]).await;
    server.put(Cluster, "a", 2);
    let second = sotw.next().await;
    assert_eq!(second.type_url, Cluster.type_url());
    assert_eq!(second.resources.len(), 2);
    sotw.ack(&second, &[]).await;
    // The sentinel: had the ACKs been answered, this would not be the next message.
    server.put(Route, "r", 1);
    sotw.ask(Route, &["r"]).await;
    assert_eq!(sotw.next().await.type_url, Route.type_url());
}

#[tokio::test]
async fn line_18_ten_requests_back_to_back_are_answered_by_the_last() {
    let server = Server::start().await;
    for name in ["a", "b", "c"] {
        server.put(Endpoint, name, 1);
    }
    let mut sotw = server.sotw().await;
    sotw.ask(Endpoint, &["a"]).await;
    let first = sotw.next().await;
    for _ in 0..9 {
        sotw.ack(&first, &["a", "b"]).await;
    }
    sotw.ack(&first, &["a", "b", "c"]).await;
    let mut answered = 0;
    while answered < 2 {
        let response = sotw.next().await;
        assert!(response.resources.len() <= 2);
        answered += response.resources.len();
        sotw.ack(&response, &["a", "b", "c"]).await;
    }
    assert_eq!(answered, 2);
}

#[tokio::test]
async fn line_20_a_rejected_version_is_not_sent_again() {
    let server = Server::start().await;
    server.put(Cluster, "a", 1);
    let mut sotw = server.sotw().await;
    sotw.ask(Cluster, &[]).await;
    let first = sotw.next().await;
    sotw.nack(&first, &[]).await;
    server.put(Route, "r", 1);
    sotw.ask(Route, &["r"]).await;
    assert_eq!(sotw.next().await.type_url, Route.type_url());
    let shown = server.clients.list();
    assert_eq!(shown[0].types["clusters"].error.as_deref(), Some("no"));
    server.put(Cluster, "a", 2);
    assert_eq!(sotw.next().await.type_url, Cluster.type_url());
}

#[tokio::test]
async fn line_27_a_deletion_is_told_once() {
    let server = Server::start().await;
    server.put(Cluster, "a", 1);
    let mut delta = server.delta().await;
    delta.subscribe(Cluster, &[]).await;
    let first = delta.next().await;
    delta.ack(&first).await;
    server.remove(Cluster, "a");
    let second = delta.next().await;
    assert_eq!(second.removed_resources, ["a"]);
    delta.ack(&second).await;
    server.put(Cluster, "a", 1);
    let third = delta.next().await;
    assert!(third.removed_resources.is_empty());
    assert_eq!(told(&third), [("a", version(1).as_str())]);
}

#[tokio::test]
async fn line_31_a_client_that_comes_back_is_told_the_difference() {
    let server = Server::start().await;
    server.put(Cluster, "same", 1);
    server.put(Cluster, "changed", 2);
    let held = [("same", 1), ("changed", 1), ("gone", 1)];
    let held: HashMap<_, _> = held
        .into_iter()
        .map(|(name, v)| (name.to_owned(), version(v)))
        .collect();
    let mut delta = server.delta().await;
    delta.resume(Cluster, &[], held).await;
    let response = delta.next().await;
    assert_eq!(told(&response), [("changed", version(2).as_str())]);
    assert_eq!(response.removed_resources, ["gone"]);
}

#[tokio::test]
async fn line_34_a_new_service_arrives_in_order_and_leaves_in_reverse() {
    let server = Server::start().await;
    let mut delta = server.delta().await;
    for kind in TYPES {
        delta.subscribe(kind, &["*"]).await;
        let first = delta.next().await;
        delta.ack(&first).await;
    }
    server.change(|snapshot| {
        for kind in [Route, Listener, Endpoint, Cluster] {
            snapshot.put(Resource::new(kind, "a", Version(1), &[]));
        }
    });
    for kind in TYPES {
        let response = delta.next().await;
        assert_eq!(response.type_url, kind.type_url());
        delta.ack(&response).await;
    }
    server.change(|snapshot| {
        for kind in TYPES {
            snapshot.remove(kind, "a");
        }
    });
    for kind in [Listener, Route, Cluster, Endpoint] {
        let response = delta.next().await;
        assert_eq!(response.type_url, kind.type_url());
        assert_eq!(response.removed_resources, ["a"]);
        delta.ack(&response).await;
    }
}

#[tokio::test]
async fn line_41_a_large_set_comes_in_messages_under_4_mib_without_waiting() {
    let server = Server::start().await;
    let body = vec![7; 300_000];
    server.change(|snapshot| {
        for at in 0..40 {
            snapshot.put(Resource::new(Cluster, format!("n{at}"), Version(1), &body));
        }
    });
    let mut delta = server.delta().await;
    delta.subscribe(Cluster, &[]).await;
    let mut names = Vec::new();
    let mut nonces = Vec::new();
    while names.len() < 40 {
        let response = delta.next().await;
        assert!(prost::Message::encoded_len(&response) <= 4 << 20);
        nonces.push(response.nonce.clone());
        names.extend(response.resources.into_iter().map(|resource| resource.name));
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 40);
    nonces.dedup();
    assert!(nonces.len() >= 3);
}

#[tokio::test]
async fn line_42_a_request_far_over_4_mib_is_accepted() {
    let server = Server::start().await;
    server.put(Cluster, "a", 1);
    let mut delta = server.delta().await;
    let held = (0..200_000)
        .map(|at| (format!("no-longer-here-{at:08}"), version(at)))
        .collect();
    delta.resume(Cluster, &["a"], held).await;
    assert_eq!(told(&delta.next().await), [("a", version(1).as_str())]);
}

#[tokio::test]
async fn line_43_nothing_of_a_stream_outlives_its_connection() {
    let server = Server::start().await;
    let mut delta = server.delta().await;
    delta.subscribe(Cluster, &[]).await;
    delta.next().await;
    assert_eq!(server.clients.list().len(), 1);
    drop(delta);
    let gone = async {
        while !server.clients.list().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
}

#[tokio::test]
async fn line_44_streams_wait_until_the_registry_is_loaded() {
    let server = Server::start_unloaded().await;
    let mut delta = server.delta().await;
    delta.subscribe(Cluster, &[]).await;
    let mut clusters = ClusterDiscoveryServiceClient::new(server.channel().await);
    let fetched = clusters.fetch_clusters(request(Cluster)).await.unwrap_err();
    assert_eq!(fetched.code(), Code::Unavailable);
    server.put(Cluster, "a", 1);
    server.load();
    assert_eq!(told(&delta.next().await), [("a", version(1).as_str())]);
}

#[tokio::test]
async fn line_45_two_streams_of_one_node_are_both_served_and_a_stop_truncates_nothing() {
    let server = Server::start().await;
    server.change(|snapshot| {
        let body = vec![7; 3_000_000];
        snapshot.put(Resource::new(Cluster, "a", Version(1), &body));
    });
    let mut streams = [server.delta().await, server.delta().await];
    for stream in &streams {
        stream.subscribe(Cluster, &[]).await;
    }
    // Both have begun to send before the stop is asked for.
    let entered = async {
        while server.clients.list().len() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, entered).await.unwrap();
    let mut whole = Vec::new();
    for stream in &mut streams {
        whole.push(
            stream.next().await.resources[0]
                .resource
                .as_ref()
                .unwrap()
                .value
                .len(),
        );
    }
    assert_eq!(whole, [3_000_000, 3_000_000]);
    server.stop();
    for stream in &mut streams {
        assert_eq!(
            stream.end_or_next().await.unwrap_err().code(),
            Code::Unavailable
        );
    }
    drop(streams);
    server.stopped().await;
}
