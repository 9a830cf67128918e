//! What a server takes on, through real connections: who is refused is told why, and those who are
//! connected notice nothing.

use std::{net::SocketAddr, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use meshkeeper::{resource::ResourceType, xds::admission::Limits};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::Code;

use crate::support::{
    backend::Backend,
    discovery::{Delta, Server, Sotw, told, version},
    envoy::Envoy,
    meshkeeper::MeshKeeper,
    traffic::Traffic,
    tree::Tree,
    wait::until,
    zookeeper::ZooKeeper,
};

use ResourceType::{Cluster, Endpoint, Listener};

#[tokio::test]
async fn a_stream_too_many_is_refused_with_the_remedy_and_the_others_go_on() {
    let server = Server::start_limited(Limits {
        max_streams: 2,
        ..Limits::default()
    })
    .await;
    let channel = server.channel().await;
    let mut first = Delta::open(channel.clone()).await.unwrap();
    let second = Sotw::open(channel.clone()).await.unwrap();
    let refused = Delta::open(channel.clone()).await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("xds.maxStreams"), "{refused}");
    let series = "meshkeeper_xds_refused_total{limit=\"streams\"}";
    assert_eq!(server.metric(series), Some(1.0));

    server.put(Cluster, "a", 1);
    first.subscribe(Cluster, &[]).await;
    assert_eq!(told(&first.next().await), [("a", version(1).as_str())]);

    drop(second);
    let mut third = until("the place is free", async || {
        Delta::open(channel.clone()).await.ok()
    })
    .await;
    third.subscribe(Cluster, &[]).await;
    assert_eq!(told(&third.next().await), [("a", version(1).as_str())]);
}

#[tokio::test]
async fn a_request_too_large_ends_its_stream_with_the_remedy_and_no_other() {
    let server = Server::start_limited(Limits {
        max_request_bytes: 6 << 20,
        ..Limits::default()
    })
    .await;
    server.put(Cluster, "a", 1);
    let names: Vec<_> = (0..7_000).map(|at| format!("{at:0>1000}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut large = server.delta().await;
    large.subscribe(Endpoint, &names[..5_000]).await;
    assert!(
        !large.next().await.removed_resources.is_empty(),
        "over 4 MiB is read"
    );

    let mut larger = server.delta().await;
    larger.subscribe(Endpoint, &names).await;
    let end = larger.end_or_next().await.unwrap_err();
    assert_eq!(end.code(), Code::ResourceExhausted);
    assert!(end.message().contains("xds.maxRequestBytes"), "{end}");
    let series = "meshkeeper_xds_refused_total{limit=\"request\"}";
    assert_eq!(server.metric(series), Some(1.0));

    large.subscribe(Cluster, &["a"]).await;
    let mut response = large.next().await;
    while response.type_url == Endpoint.type_url() {
        response = large.next().await;
    }
    assert_eq!(told(&response), [("a", version(1).as_str())]);
}

#[tokio::test]
async fn names_beyond_the_limit_end_the_stream_and_no_other() {
    let server = Server::start_limited(Limits {
        max_names: 5,
        ..Limits::default()
    })
    .await;
    for at in 0..20 {
        server.put(Cluster, &format!("c{at}"), 1);
    }
    let mut steady = server.delta().await;
    steady.subscribe(Cluster, &[]).await;
    let all = steady.next().await;
    assert_eq!(all.resources.len(), 20, "a wildcard is one name");
    steady.ack(&all).await;

    let mut greedy = server.delta().await;
    greedy.subscribe(Endpoint, &["a", "b", "c"]).await;
    greedy.next().await;
    // Of all types and requests together.
    greedy.subscribe(Listener, &["a", "b", "c"]).await;
    let end = greedy.end_or_next().await.unwrap_err();
    assert_eq!(end.code(), Code::ResourceExhausted);
    let message = "6 names, over the limit of 5";
    assert!(end.message().contains(message), "{end}");

    let mut sotw = server.sotw().await;
    sotw.ask(Cluster, &["1", "2", "3", "4", "5", "6"]).await;
    let end = sotw.end_or_next().await.unwrap_err();
    assert_eq!(end.code(), Code::ResourceExhausted);
    let series = "meshkeeper_xds_refused_total{limit=\"names\"}";
    assert_eq!(server.metric(series), Some(2.0));

    server.put(Cluster, "c0", 2);
    let changed = steady.next().await;
    assert_eq!(told(&changed), [("c0", version(2).as_str())]);
}

/// A connection that has said all that HTTP/2 asks for, and opens no stream.
async fn idle(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    stream.write_all(settings).await.unwrap();
    stream
}

/// Reads until the server ends the connection.
async fn ended(stream: &mut TcpStream) {
    let mut bytes = Vec::new();
    // A reset is an end, too.
    let _ = stream.read_to_end(&mut bytes).await;
}

#[tokio::test]
async fn connections_without_streams_make_room_for_new_ones_and_those_with_streams_stay() {
    let server = Server::start_over(Limits::default(), 8).await;
    server.load();
    server.put(Cluster, "a", 1);
    let mut steady = server.delta().await;
    steady.subscribe(Cluster, &[]).await;
    let response = steady.next().await;
    steady.ack(&response).await;
    let mut flood = Vec::new();
    for _ in 0..50 {
        flood.push(idle(server.address).await);
    }
    let mut fresh = server.delta().await;
    fresh.subscribe(Cluster, &[]).await;
    assert_eq!(told(&fresh.next().await), [("a", version(1).as_str())]);
    server.put(Cluster, "a", 2);
    assert_eq!(told(&steady.next().await), [("a", version(2).as_str())]);
    for stream in &mut flood[..42] {
        timeout(Duration::from_secs(5), ended(stream))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_connection_that_opens_no_stream_is_closed_after_some_seconds() {
    let server = Server::start().await;
    server.put(Cluster, "a", 1);
    let mut steady = server.delta().await;
    steady.subscribe(Cluster, &[]).await;
    let response = steady.next().await;
    steady.ack(&response).await;
    let mut stream = idle(server.address).await;
    timeout(Duration::from_secs(15), ended(&mut stream))
        .await
        .unwrap();
    server.put(Cluster, "a", 2);
    assert_eq!(told(&steady.next().await), [("a", version(2).as_str())]);
}

#[tokio::test]
async fn a_storm_waits_its_turn_while_those_connected_are_served() {
    let server = Server::start_limited(Limits {
        new_streams_per_second: 40,
        ..Limits::default()
    })
    .await;
    server.put(Cluster, "a", 1);
    let mut steady = server.delta().await;
    steady.subscribe(Cluster, &[]).await;
    let response = steady.next().await;
    steady.ack(&response).await;

    let channel = server.channel().await;
    let opened = (0..120).map(|_| Delta::open(channel.clone()));
    let mut opened: FuturesUnordered<_> = opened.collect();
    let mut streams = vec![opened.next().await.unwrap().unwrap()];
    let waiting = || server.metric("meshkeeper_xds_streams_waiting").unwrap();
    until("many wait", async || (waiting() > 50.0).then_some(())).await;
    server.put(Cluster, "a", 2);
    assert_eq!(told(&steady.next().await), [("a", version(2).as_str())]);
    assert!(waiting() > 0.0, "it was served before the storm was over");

    while let Some(stream) = opened.next().await {
        streams.push(stream.unwrap());
    }
    assert_eq!(streams.len(), 120);
    for stream in &mut streams {
        stream.subscribe(Cluster, &[]).await;
        assert_eq!(told(&stream.next().await), [("a", version(2).as_str())]);
    }
    assert!(waiting() < 1.0);
}

#[tokio::test]
async fn who_would_wait_too_long_is_told_to_come_back() {
    let server = Server::start_limited(Limits {
        new_streams_per_second: 1,
        ..Limits::default()
    })
    .await;
    let channel = server.channel().await;
    let opened = (0..20).map(|_| Delta::open(channel.clone()));
    let opened: FuturesUnordered<_> = opened.collect();
    let refused = opened.filter_map(|stream| async { stream.err() });
    let refused = Box::pin(refused).next().await.unwrap();
    assert_eq!(refused.code(), Code::Unavailable);
    let remedy = "xds.newStreamsPerSecond";
    assert!(refused.message().contains(remedy), "{refused}");
}

#[tokio::test]
async fn a_stream_ends_in_order_at_its_age_and_comes_back_over_a_new_connection() {
    let server = Server::start_limited(Limits {
        max_stream_age: Duration::from_millis(500),
        ..Limits::default()
    })
    .await;
    server.put(Cluster, "a", 1);
    let channel = server.channel().await;
    let peer = || server.clients.list().first().map(|c| c.address.clone());

    let mut delta = Delta::open(channel.clone()).await.unwrap();
    delta.subscribe(Cluster, &[]).await;
    let response = delta.next().await;
    let first = peer().unwrap();
    delta.ack(&response).await;
    let end = delta.end_or_next().await.unwrap_err();
    assert_eq!(end.code(), Code::Ok, "{end}");

    let mut again = until("a new stream", async || {
        Delta::open(channel.clone()).await.ok()
    })
    .await;
    again
        .resume(Cluster, &[], [("a".to_owned(), version(1))].into())
        .await;
    assert!(
        again.next().await.resources.is_empty(),
        "nothing is re-sent"
    );
    assert_ne!(peer().unwrap(), first);
}

#[tokio::test]
async fn no_stream_ends_of_age_before_its_first_response() {
    let age = Duration::from_millis(100);
    let server = Server::start_with(Limits {
        max_stream_age: age,
        ..Limits::default()
    })
    .await;
    let mut delta = server.delta().await;
    delta.subscribe(Cluster, &[]).await;
    until("the stream is known", async || {
        (server.clients.list().len() == 1).then_some(())
    })
    .await;
    tokio::time::sleep(3 * age).await;
    server.put(Cluster, "a", 1);
    server.load();
    assert_eq!(told(&delta.next().await), [("a", version(1).as_str())]);
    let end = delta.end_or_next().await.unwrap_err();
    assert_eq!(end.code(), Code::Ok, "{end}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_envoy_comes_back_after_each_end_of_age_and_misses_nothing() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let backends = Backend::start_many(2).await;
    let address = |at: usize| backends[at].address.to_string();
    tree.register("orders", "a", address(0).as_bytes()).await;
    let server = MeshKeeper::start_with(&zookeeper.connect(), "maxStreamAge: 1s").await;
    let envoy = Envoy::of(server.xds, server.outbound, "aging").await;
    let hosts = async |count| {
        until("the hosts", async || {
            (envoy.hosts("orders").await.len() == count).then_some(())
        })
        .await;
    };
    hosts(1).await;
    let traffic = Traffic::start(envoy.outbound, "orders");
    until("some new connections", async || {
        let stats = envoy.stats().await;
        (stats["cluster.meshkeeper-xds.upstream_cx_total"] > 4).then_some(())
    })
    .await;
    tree.register("orders", "b", address(1).as_bytes()).await;
    hosts(2).await;

    let outcomes = traffic.stop().await;
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["200"], "{outcomes:?}");
    let stats = envoy.stats().await;
    assert_eq!(stats["cluster_manager.cluster_added"], 2, "re-sent nothing");
    assert_eq!(stats["cluster_manager.cluster_modified"], 0);
    assert!(envoy.rejections().await.is_empty(), "{}", envoy.log());
    println!("{}", envoy.log());
}
