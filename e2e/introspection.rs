//! What a server tells of its clients and itself, and what clients tell it: client status, load
//! reports, health and reflection, through real connections and from a real Envoy.

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::Node,
            endpoint::v3::{ClusterStats, UpstreamLocalityStats},
        },
        service::{
            discovery::v3::DeltaDiscoveryRequest,
            load_stats::v3::{
                LoadStatsRequest, LoadStatsResponse,
                load_reporting_service_client::LoadReportingServiceClient,
            },
            status::v3::{
                ClientStatusRequest, ClientStatusResponse, ConfigStatus,
                client_config::GenericXdsConfig,
                client_status_discovery_service_client::ClientStatusDiscoveryServiceClient,
            },
        },
        r#type::matcher::v3::{
            NodeMatcher, RegexMatcher, StringMatcher, string_matcher::MatchPattern,
        },
    },
    google::protobuf::Duration,
};
use meshkeeper::{
    resource::{Resource, ResourceType, Version},
    xds::admission::Limits,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::support::{
    backend::Backend,
    discovery::{PATIENCE, Server, node, version},
    envoy::Envoy,
    meshkeeper::MeshKeeper,
    traffic::picks,
    tree::Tree,
    wait::{free_address, until},
    zookeeper::ZooKeeper,
};

use ResourceType::{Cluster, Endpoint};

async fn status(
    server: &Server,
    request: ClientStatusRequest,
) -> Result<ClientStatusResponse, Status> {
    let client = ClientStatusDiscoveryServiceClient::new(server.channel().await);
    let mut client = client.max_decoding_message_size(usize::MAX);
    Ok(client.fetch_client_status(request).await?.into_inner())
}

fn overview() -> ClientStatusRequest {
    ClientStatusRequest {
        exclude_resource_contents: true,
        ..ClientStatusRequest::default()
    }
}

/// Waits until the only type of the only client is in that state.
async fn state(server: &Server, expected: ConfigStatus) -> GenericXdsConfig {
    until(expected.as_str_name(), async || {
        let response = status(server, overview()).await.unwrap();
        let mut config = response.config.into_iter().next()?;
        let entry = config.generic_xds_configs.pop()?;
        (entry.config_status() == expected).then_some(entry)
    })
    .await
}

#[tokio::test]
async fn a_client_is_not_sent_then_stale_then_synced_and_in_error_when_it_rejects() {
    let server = Server::start_unloaded().await;
    let mut delta = server.delta().await;
    delta.subscribe(Cluster, &[]).await;
    let entry = state(&server, ConfigStatus::NotSent).await;
    assert_eq!(entry.type_url, Cluster.type_url());
    assert_eq!(entry.version_info, "");

    server.put(Cluster, "a", 1);
    server.load();
    let response = delta.next().await;
    state(&server, ConfigStatus::Stale).await;
    delta.ack(&response).await;
    let entry = state(&server, ConfigStatus::Synced).await;
    assert_eq!(entry.version_info, response.system_version_info);
    assert_eq!(entry.error_state, None);

    let mut sotw = server.sotw().await;
    drop(delta);
    sotw.ask(Cluster, &[]).await;
    let response = sotw.next().await;
    sotw.nack(&response, &[]).await;
    let entry = state(&server, ConfigStatus::Error).await;
    assert_eq!(entry.error_state.unwrap().details, "no");
}

#[tokio::test]
async fn clients_are_chosen_by_their_node_ids() {
    let server = Server::start().await;
    let mut streams = Vec::new();
    for id in ["a-1", "a-2", "b-1"] {
        let delta = server.delta().await;
        delta
            .send(DeltaDiscoveryRequest {
                node: Some(Node {
                    id: id.into(),
                    ..node()
                }),
                type_url: Cluster.type_url().into(),
                ..DeltaDiscoveryRequest::default()
            })
            .await;
        streams.push(delta);
    }
    until("all are known", async || {
        (server.clients.list().len() == 3).then_some(())
    })
    .await;
    let chosen = async |patterns: Vec<MatchPattern>| {
        let matcher = |pattern| NodeMatcher {
            node_id: Some(StringMatcher {
                match_pattern: Some(pattern),
                ..StringMatcher::default()
            }),
            ..NodeMatcher::default()
        };
        let request = ClientStatusRequest {
            node_matchers: patterns.into_iter().map(matcher).collect(),
            ..overview()
        };
        let response = status(&server, request).await?;
        let mut ids: Vec<_> = response
            .config
            .into_iter()
            .map(|config| config.node.unwrap().id)
            .collect();
        ids.sort();
        Ok::<_, Status>(ids)
    };
    let exact = |id: &str| MatchPattern::Exact(id.into());
    assert_eq!(chosen(vec![]).await.unwrap(), ["a-1", "a-2", "b-1"]);
    assert_eq!(chosen(vec![exact("a-2")]).await.unwrap(), ["a-2"]);
    let either = chosen(vec![exact("b-1"), exact("a-1")]).await.unwrap();
    assert_eq!(either, ["a-1", "b-1"]);
    assert!(chosen(vec![exact("nobody")]).await.unwrap().is_empty());
    let prefix = chosen(vec![MatchPattern::Prefix("a-".into())]).await;
    assert_eq!(prefix.unwrap(), ["a-1", "a-2"]);
    let regex = MatchPattern::SafeRegex(RegexMatcher::default());
    let refused = chosen(vec![regex]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn what_a_client_is_served_is_shown_unless_contents_are_excluded() {
    let server = Server::start().await;
    server.change(|snapshot| {
        for (name, body) in [("a", b"aa"), ("b", b"bb")] {
            snapshot.put(Resource::new(Cluster, name, Version(1), body));
        }
    });
    server.put(Endpoint, "x", 2);
    server.put(Endpoint, "y", 2);
    let mut delta = server.delta().await;
    delta.subscribe(Cluster, &[]).await;
    let clusters = delta.next().await;
    delta.ack(&clusters).await;
    delta.subscribe(Endpoint, &["y", "z"]).await;
    let endpoints = delta.next().await;
    delta.ack(&endpoints).await;

    let shown = |response: ClientStatusResponse| {
        let configs = response
            .config
            .into_iter()
            .flat_map(|c| c.generic_xds_configs);
        let show = |entry: GenericXdsConfig| {
            let body = entry.xds_config.map(|any| any.value);
            (entry.name, entry.version_info, body)
        };
        configs.map(show).collect::<Vec<_>>()
    };
    let full = status(&server, ClientStatusRequest::default()).await;
    let entry = |name: &str, of: String, body: Option<&[u8]>| {
        (name.to_owned(), of, body.map(<[u8]>::to_vec))
    };
    let of_types = [
        entry("", clusters.system_version_info.clone(), None),
        entry("", endpoints.system_version_info.clone(), None),
    ];
    assert_eq!(
        shown(full.unwrap()),
        [
            of_types[0].clone(),
            entry("a", version(1), Some(b"aa")),
            entry("b", version(1), Some(b"bb")),
            of_types[1].clone(),
            entry("y", version(2), Some(b"")),
        ]
    );
    assert_eq!(shown(status(&server, overview()).await.unwrap()), of_types);
}

#[tokio::test]
async fn an_answer_without_bounds_is_refused_with_the_remedy() {
    let server = Server::start().await;
    let body = vec![0; 9 << 20];
    server.change(|snapshot| {
        snapshot.put(Resource::new(Cluster, "large", Version(1), &body));
    });
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut delta = server.delta().await;
        delta.subscribe(Cluster, &[]).await;
        delta.next().await;
        streams.push(delta);
    }
    let refused = status(&server, ClientStatusRequest::default()).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("exclude_resource_contents"));
    let overview = status(&server, overview()).await.unwrap();
    assert_eq!(overview.config.len(), 8);
}

#[tokio::test]
async fn a_status_stream_answers_each_request_with_what_is_then() {
    let server = Server::start().await;
    let mut client = ClientStatusDiscoveryServiceClient::new(server.channel().await);
    let (requests, queue) = mpsc::channel(4);
    let answers = client.stream_client_status(ReceiverStream::new(queue));
    let mut answers = answers.await.unwrap().into_inner();
    requests.send(overview()).await.unwrap();
    assert!(answers.message().await.unwrap().unwrap().config.is_empty());
    let mut delta = server.delta().await;
    delta.subscribe(Cluster, &[]).await;
    delta.next().await;
    requests.send(overview()).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().config.len(), 1);
    server.stop();
    let end = answers.message().await.unwrap_err();
    assert_eq!(end.code(), Code::Unavailable);
}

/// A raw stream of load reports.
struct Reports {
    reports: mpsc::Sender<LoadStatsRequest>,
    questions: Streaming<LoadStatsResponse>,
}

impl Reports {
    async fn open(server: &Server) -> Self {
        let mut client = LoadReportingServiceClient::new(server.channel().await);
        let (reports, queue) = mpsc::channel(64);
        let questions = client.stream_load_stats(ReceiverStream::new(queue));
        let questions = questions.await.unwrap().into_inner();
        Self { reports, questions }
    }

    async fn introduce(&self, features: &[&str]) {
        let node = Node {
            client_features: features.iter().map(|f| (*f).into()).collect(),
            ..node()
        };
        let hello = LoadStatsRequest {
            node: Some(node),
            ..LoadStatsRequest::default()
        };
        self.reports.send(hello).await.unwrap();
    }

    async fn report(&self, cluster_stats: Vec<ClusterStats>) {
        let report = LoadStatsRequest {
            node: None,
            cluster_stats,
        };
        self.reports.send(report).await.unwrap();
    }

    async fn question(&mut self) -> Result<Option<LoadStatsResponse>, Status> {
        let question = tokio::time::timeout(PATIENCE, self.questions.message());
        question.await.expect("a question in time")
    }
}

fn used(cluster: &str, success: u64, error: u64) -> ClusterStats {
    ClusterStats {
        cluster_name: cluster.into(),
        upstream_locality_stats: vec![UpstreamLocalityStats {
            total_successful_requests: success,
            total_error_requests: error,
            ..UpstreamLocalityStats::default()
        }],
        ..ClusterStats::default()
    }
}

fn load(service: &str, outcome: &str) -> String {
    format!("meshkeeper_load_requests_total{{outcome=\"{outcome}\",service=\"{service}\"}}")
}

#[tokio::test]
async fn load_reports_are_asked_for_once_and_counted_by_service() {
    let server = Server::start().await;
    server.put(Cluster, "orders", 1);
    let mut reports = Reports::open(&server).await;
    reports
        .introduce(&["envoy.lrs.supports_send_all_clusters"])
        .await;
    let question = reports.question().await.unwrap().unwrap();
    assert!(question.send_all_clusters);
    assert!(question.clusters.is_empty());
    let interval = Duration {
        seconds: 0,
        nanos: 50_000_000,
    };
    assert_eq!(question.load_reporting_interval, Some(interval));

    let mut other = Reports::open(&server).await;
    other.introduce(&[]).await;
    other.question().await.unwrap().unwrap();
    reports.report(vec![used("orders", 5, 1)]).await;
    other.report(vec![used("orders", 2, 0)]).await;
    until("both reports", async || {
        (server.metric(&load("orders", "success")) == Some(7.0)).then_some(())
    })
    .await;
    assert_eq!(server.metric(&load("orders", "error")), Some(1.0));

    server.remove(Cluster, "orders");
    assert_eq!(server.metric(&load("orders", "success")), None);
}

#[tokio::test]
async fn a_client_that_needs_names_is_told_them_and_again_when_they_change() {
    let server = Server::start().await;
    server.put(Cluster, "a", 1);
    let mut reports = Reports::open(&server).await;
    reports.introduce(&[]).await;
    let question = reports.question().await.unwrap().unwrap();
    assert_eq!(question.clusters, ["a"]);
    assert!(!question.send_all_clusters);
    reports.report(vec![used("a", 1, 0)]).await;
    server.put(Cluster, "b", 1);
    // The next report makes the server look.
    reports.report(vec![used("a", 1, 0)]).await;
    let question = reports.question().await.unwrap().unwrap();
    assert_eq!(question.clusters, ["a", "b"]);
}

#[tokio::test]
async fn hostile_load_reports_harm_nothing() {
    let server = Server::start().await;
    server.put(Cluster, "orders", 1);
    let mut nameless = Reports::open(&server).await;
    nameless.report(vec![used("orders", 1, 1)]).await;
    let end = nameless.question().await.unwrap_err();
    assert_eq!(end.code(), Code::InvalidArgument);

    let mut hostile = Reports::open(&server).await;
    hostile.introduce(&[]).await;
    hostile.question().await.unwrap();
    let unknown = (0..20_000).map(|n| used(&format!("no\"\n\\{n}"), 1, 1));
    let mut report: Vec<_> = unknown.collect();
    report.push(used("orders", u64::MAX, u64::MAX));
    hostile.report(report).await;
    until("the report is counted", async || {
        (server.metric("meshkeeper_load_unknown_total") == Some(20_000.0)).then_some(())
    })
    .await;
    let families = server.registry.gather();
    let requests = families
        .iter()
        .find(|family| family.name() == "meshkeeper_load_requests_total");
    assert_eq!(requests.unwrap().get_metric().len(), 3);

    let mut delta = server.delta().await;
    delta.subscribe(Cluster, &[]).await;
    assert_eq!(delta.next().await.resources.len(), 1);
}

#[tokio::test]
async fn reporting_streams_are_bounded_beside_the_others_and_end_of_age_and_with_the_server() {
    let server = Server::start_limited(Limits {
        max_streams: 1,
        max_stream_age: std::time::Duration::from_millis(300),
        ..Limits::default()
    })
    .await;
    let _delta = server.delta().await;
    let mut reports = Reports::open(&server).await;
    let mut client = LoadReportingServiceClient::new(server.channel().await);
    let refused = client.stream_load_stats(tokio_stream::pending()).await;
    assert_eq!(refused.unwrap_err().code(), Code::ResourceExhausted);
    reports.introduce(&[]).await;
    reports.question().await.unwrap().unwrap();
    assert_eq!(reports.question().await.unwrap(), None, "of age");

    let mut reports = until("the place is free", async || {
        let opened = client.stream_load_stats(tokio_stream::pending()).await;
        Some(opened.ok()?.into_inner())
    })
    .await;
    server.stop();
    let end = reports.message().await.unwrap_err();
    assert_eq!(end.code(), Code::Unavailable);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_envoy_reports_every_request_that_it_made() {
    let zookeeper = ZooKeeper::start();
    let tree = Tree::connect(&zookeeper).await;
    let backend = Backend::start().await;
    let address = backend.address.to_string();
    tree.register("orders", "i", address.as_bytes()).await;
    let server = MeshKeeper::start(&zookeeper.connect()).await;
    let envoy = Envoy::reporting(&server, "reporting").await;
    until("the host", async || {
        (envoy.hosts("orders").await.len() == 1).then_some(())
    })
    .await;
    // Envoy counts a cluster from the first report on that follows its making.
    until("a report", async || {
        let reports = server.metric("meshkeeper_load_reports_total").await?;
        (reports > 1.0).then_some(())
    })
    .await;
    let answers = picks(envoy.outbound, "orders", 2, 100).await.concat();
    assert_eq!(answers.len(), 200);
    let series = "meshkeeper_load_requests_total{outcome=\"success\",service=\"orders\"}";
    let reported = until("the load", async || server.metric(series).await).await;
    assert!((reported - 200.0).abs() < 0.5, "{reported}");
    let clients = server.api("clients").await;
    assert_eq!(clients.as_array().unwrap().len(), 1, "{clients}");
    assert!(envoy.rejections().await.is_empty(), "{}", envoy.log());
}

async fn connect(server: &MeshKeeper) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{}", server.xds)).unwrap();
    until("the port is open", async || endpoint.connect().await.ok()).await
}

async fn health(channel: Channel) -> ServingStatus {
    let mut client = HealthClient::new(channel);
    let answer = client.check(HealthCheckRequest::default()).await;
    answer.unwrap().into_inner().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_serving_only_once_the_registry_is_loaded() {
    let nobody = free_address().to_string();
    let waiting = MeshKeeper::spawn(&nobody);
    let channel = connect(&waiting).await;
    assert_eq!(health(channel).await, ServingStatus::NotServing);

    let zookeeper = ZooKeeper::start();
    let _root = Tree::connect(&zookeeper).await;
    let server = MeshKeeper::start(&zookeeper.connect()).await;
    let channel = connect(&server).await;
    until("SERVING", async || {
        (health(channel.clone()).await == ServingStatus::Serving).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_answers_for_each_service_on_the_port() {
    let services = [
        "envoy.service.discovery.v3.AggregatedDiscoveryService",
        "envoy.service.cluster.v3.ClusterDiscoveryService",
        "envoy.service.route.v3.VirtualHostDiscoveryService",
        "envoy.service.load_stats.v3.LoadReportingService",
        "envoy.service.status.v3.ClientStatusDiscoveryService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
    ];
    let ask = async |channel: &Channel, service: &str| {
        let request = HealthCheckRequest {
            service: service.into(),
        };
        let answer = HealthClient::new(channel.clone()).check(request).await;
        answer.map(|answer| answer.into_inner().status())
    };
    let waiting = MeshKeeper::spawn(&free_address().to_string());
    let channel = connect(&waiting).await;
    for service in services {
        let status = ask(&channel, service).await.unwrap();
        assert_eq!(status, ServingStatus::NotServing, "{service}");
    }
    let zookeeper = ZooKeeper::start();
    let _root = Tree::connect(&zookeeper).await;
    let server = MeshKeeper::start(&zookeeper.connect()).await;
    let channel = connect(&server).await;
    for service in services {
        until(service, async || {
            let status = ask(&channel, service).await.ok()?;
            (status == ServingStatus::Serving).then_some(())
        })
        .await;
    }
    let unknown = ask(&channel, "envoy.service.none").await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_what_is_served() {
    let server = MeshKeeper::spawn(&free_address().to_string());
    let mut client = ServerReflectionClient::new(connect(&server).await);
    let ask = |request| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(request),
    };
    let ads = "envoy.service.discovery.v3.AggregatedDiscoveryService";
    let requests = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol(ads.into())),
    ];
    let answers = client.server_reflection_info(tokio_stream::iter(requests));
    let mut answers = answers.await.unwrap().into_inner();
    let listed = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(listed)) = listed else {
        panic!("{listed:?}")
    };
    let names: Vec<_> = listed
        .service
        .iter()
        .map(|service| &*service.name)
        .collect();
    for served in [
        ads,
        "envoy.service.load_stats.v3.LoadReportingService",
        "envoy.service.status.v3.ClientStatusDiscoveryService",
        "grpc.health.v1.Health",
    ] {
        assert!(names.contains(&served), "{served}: {names:?}");
    }
    let described = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::FileDescriptorResponse(described)) = described else {
        panic!("{described:?}")
    };
    assert!(!described.file_descriptor_proto.is_empty());
}
