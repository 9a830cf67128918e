//! What peers are told, and cannot do, beyond the lines of the protocol.

use std::collections::HashMap;

use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
};
use meshkeeper::{
    resource::{Edition, Resource, ResourceType, Version},
    xds::status::State,
};
use tonic::Code;

use super::{TYPES, request};
use crate::support::discovery::{PATIENCE, Server, node, told, version};

use ResourceType::{Cluster, Endpoint, Listener, Route};

#[tokio::test]
async fn proxyless_wildcards_hold_no_listeners_and_no_routes() {
    let server = Server::start().await;
    server.change_all(|snapshots| {
        for kind in TYPES {
            let resource = Resource::new(kind, "a", Version(1), &[]);
            snapshots.of_mut(Edition::Grpc).put(resource);
        }
    });
    let grpc = || {
        Some(Node {
            user_agent_name: "gRPC C-core".into(),
            ..node()
        })
    };
    let mut sotw = server.sotw().await;
    sotw.send(DiscoveryRequest {
        node: grpc(),
        ..request(Listener)
    })
    .await;
    let first = sotw.next().await;
    assert!(first.resources.is_empty());
    sotw.ack(&first, &["a"]).await;
    assert_eq!(sotw.next().await.resources.len(), 1);

    let mut delta = server.delta().await;
    let all = DeltaDiscoveryRequest {
        node: grpc(),
        type_url: Route.type_url().into(),
        ..DeltaDiscoveryRequest::default()
    };
    delta.send(all).await;
    let first = delta.next().await;
    assert!(first.resources.is_empty());
    delta.ack(&first).await;
    delta.subscribe(Route, &["a"]).await;
    assert_eq!(told(&delta.next().await), [("a", version(1).as_str())]);
}

#[tokio::test]
async fn a_rejection_under_a_stale_nonce_is_none() {
    let server = Server::start().await;
    server.put(Cluster, "a", 1);
    let mut sotw = server.sotw().await;
    sotw.ask(Cluster, &[]).await;
    let mut first = sotw.next().await;
    let nonce = std::mem::replace(&mut first.nonce, "77".into());
    sotw.nack(&first, &[]).await;
    first.nonce = nonce;
    sotw.ack(&first, &[]).await;
    server.put(Cluster, "a", 2);
    sotw.next().await;
    assert_eq!(server.clients.list()[0].types["clusters"].error, None);
    assert_eq!(
        server.metrics.nacks.with_label_values(&["clusters"]).get(),
        0
    );
}

#[tokio::test]
async fn a_client_that_resumed_and_missed_nothing_is_in_sync() {
    let server = Server::start().await;
    server.put(Endpoint, "a", 1);
    let delta = server.delta().await;
    delta
        .resume(
            Endpoint,
            &["a"],
            HashMap::from([("a".to_owned(), version(1))]),
        )
        .await;
    let in_sync = async {
        while server.clients.list().first().is_none_or(|client| {
            client
                .types
                .get("endpoints")
                .is_none_or(|status| status.state != State::Synced)
        }) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, in_sync).await.unwrap();
}

#[tokio::test]
async fn a_node_id_without_end_is_refused() {
    let server = Server::start().await;
    let mut delta = server.delta().await;
    let long = Node {
        id: "x".repeat(100_000),
        ..node()
    };
    let type_url = Cluster.type_url().into();
    delta
        .send(DeltaDiscoveryRequest {
            node: Some(long),
            type_url,
            ..Default::default()
        })
        .await;
    assert_eq!(
        delta.end_or_next().await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn a_peer_that_never_speaks_neither_stays_nor_delays_the_end() {
    let server = Server::start().await;
    let mut silent = tokio::net::TcpStream::connect(server.address)
        .await
        .unwrap();
    let mut buffer = Vec::new();
    let cut = tokio::io::AsyncReadExt::read_to_end(&mut silent, &mut buffer);
    let _ = tokio::time::timeout(PATIENCE, cut)
        .await
        .expect("it is cut off");

    let late = tokio::net::TcpStream::connect(server.address)
        .await
        .unwrap();
    server.stop();
    server.stopped().await;
    drop(late);
}

#[tokio::test]
async fn a_stream_is_woken_by_what_it_wants_alone_and_misses_nothing() {
    let server = Server::start().await;
    for name in ["a", "b"] {
        server.put(Endpoint, name, 1);
    }
    let mut delta = server.delta().await;
    delta.subscribe(Endpoint, &["a", "later"]).await;
    let first = delta.next().await;
    assert_eq!(first.removed_resources, ["later"]);
    delta.ack(&first).await;
    for round in 2..50 {
        server.put(Endpoint, "b", round);
    }
    server.put(Endpoint, "later", 1);
    let second = delta.next().await;
    assert_eq!(told(&second), [("later", version(1).as_str())]);
    delta.ack(&second).await;
    server.put(Endpoint, "a", 2);
    assert_eq!(told(&delta.next().await), [("a", version(2).as_str())]);
}

#[tokio::test]
async fn bytes_that_are_no_request_end_their_own_stream_alone() {
    let server = Server::start().await;
    server.put(Cluster, "a", 1);
    let mut good = server.delta().await;
    good.subscribe(Cluster, &[]).await;
    let first = good.next().await;
    good.ack(&first).await;

    let channel = server.channel().await;
    for garbage in [
        &b"\xff\xff\xff\xff"[..],
        b"",
        b"\x0a\xff\x01",
        &[0x12; 3000],
    ] {
        let mut client = tonic::client::Grpc::new(channel.clone());
        client.ready().await.unwrap();
        let path =
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
        let codec = crate::support::raw::RawCodec;
        let request = tonic::Request::new(tokio_stream::iter([garbage.to_vec()]));
        let response = client
            .streaming(request, path.parse().unwrap(), codec)
            .await;
        let end = match response {
            Ok(response) => response.into_inner().message().await.unwrap_err(),
            Err(status) => status,
        };
        assert_ne!(end.code(), Code::Ok);
    }

    server.put(Cluster, "a", 2);
    assert_eq!(told(&good.next().await), [("a", version(2).as_str())]);
}
