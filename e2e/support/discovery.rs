//! A discovery server with a snapshot set by hand, and raw clients of both protocol variants.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::rpc::Status as RpcStatus,
};
use meshkeeper::{
    places::Places,
    resource::{Edition, Resource, ResourceType, Version},
    snapshot::{Snapshot, Snapshots},
    translate::GrpcNaming,
    xds::{
        admission::{Admission, Limits},
        clients::Clients,
        csds::Csds,
        fanout::Fanout,
        loads::Loads,
        lrs::Lrs,
        metrics::Metrics,
        server,
        session::Context,
    },
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming, service::Routes, transport::Channel};

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A server of discovery services over a snapshot that the test writes.
pub struct Server {
    pub address: SocketAddr,
    pub clients: Clients,
    pub metrics: Metrics,
    pub registry: prometheus::Registry,
    snapshots: watch::Sender<Arc<Snapshots>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Server {
    /// With the registry loaded and nothing in it.
    pub async fn start() -> Self {
        let server = Self::start_unloaded().await;
        server
            .snapshots
            .send_modify(|snapshots| Arc::make_mut(snapshots).loaded = true);
        server
    }

    pub async fn start_unloaded() -> Self {
        Self::start_with(Limits::default()).await
    }

    pub async fn start_limited(limits: Limits) -> Self {
        let server = Self::start_with(limits).await;
        server.load();
        server
    }

    /// With the registry not loaded yet.
    pub async fn start_with(limits: Limits) -> Self {
        Self::start_over(limits, 10_000).await
    }

    /// With places for so many connections, and the registry not loaded yet.
    pub async fn start_over(limits: Limits, connections: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, snapshots) = watch::channel(Arc::new(Snapshots::default()));
        let registry = prometheus::Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        let admission = Admission::register(limits, &registry).unwrap();
        let loads = Loads::register(&registry, snapshots.clone()).unwrap();
        let clients = Clients::new(metrics.clone());
        let stop = CancellationToken::new();
        let kept = snapshots.clone();
        let context = Context {
            fanout: Fanout::new(snapshots),
            clients: clients.clone(),
            metrics: metrics.clone(),
            admission,
            on_demand: false,
            waking: tokio::runtime::Handle::current(),
            increments: true,
            naming: Some(Arc::new(GrpcNaming::new("mesh"))),
            stop: stop.clone(),
        };
        let routes = introspection(&context, kept, loads);
        let task = tokio::spawn(async move {
            let places = Places::new(connections);
            let served = server::serve(listener, context, routes, places).await;
            served.unwrap();
        });
        Self {
            address,
            clients,
            metrics,
            registry,
            snapshots: sender,
            stop,
            task,
        }
    }

    /// The value of a series, named as `NAME` or `NAME{label="value",…}`.
    pub fn metric(&self, series: &str) -> Option<f64> {
        let page = prometheus::TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap();
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok())
    }

    pub fn load(&self) {
        self.snapshots
            .send_modify(|snapshots| Arc::make_mut(snapshots).loaded = true);
    }

    /// Publishes a change of what Envoy is served.
    pub fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        self.change_all(|snapshots| change(snapshots.of_mut(Edition::Envoy)));
    }

    /// Publishes a change of what anybody is served.
    pub fn change_all(&self, change: impl FnOnce(&mut Snapshots)) {
        self.snapshots
            .send_modify(|snapshots| change(Arc::make_mut(snapshots)));
    }

    pub fn put(&self, kind: ResourceType, name: &str, version: u64) {
        self.change(|snapshot| {
            snapshot.put(resource(kind, name, version));
        });
    }

    pub fn remove(&self, kind: ResourceType, name: &str) {
        self.change(|snapshot| {
            snapshot.remove(kind, name);
        });
    }

    /// Asks the server to drain.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    pub async fn stopped(self) {
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .unwrap()
            .unwrap();
    }

    pub async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.address)).unwrap();
        endpoint.connect().await.unwrap()
    }

    pub async fn sotw(&self) -> Sotw {
        Sotw::open(self.channel().await).await.unwrap()
    }

    pub async fn delta(&self) -> Delta {
        Delta::open(self.channel().await).await.unwrap()
    }
}

/// Beside the discovery services: load reports every 50 ms, and how clients stand.
fn introspection(
    context: &Context,
    snapshots: watch::Receiver<Arc<Snapshots>>,
    loads: Loads,
) -> Routes {
    let lrs = Lrs {
        snapshots: snapshots.clone(),
        loads,
        admission: context.admission.another(),
        interval: Duration::from_millis(50),
        stop: context.stop.clone(),
    };
    let csds = Csds::new(context.clients.clone(), snapshots, context.stop.clone());
    Routes::new(lrs.into_service()).add_service(csds.into_service())
}

pub fn resource(kind: ResourceType, name: &str, version: u64) -> Resource {
    Resource::new(kind, name, Version(version), &[])
}

pub fn node() -> Node {
    Node {
        id: "test".into(),
        user_agent_name: "envoy".into(),
        ..Node::default()
    }
}

pub fn version(version: u64) -> String {
    Version(version).to_string()
}

/// A raw state-of-the-world ADS stream.
pub struct Sotw {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Sotw {
    pub async fn open(channel: Channel) -> Result<Self, Status> {
        let mut client =
            AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(usize::MAX);
        let (requests, queue) = mpsc::channel(64);
        let responses = client
            .stream_aggregated_resources(ReceiverStream::new(queue))
            .await?;
        Ok(Self {
            requests,
            responses: responses.into_inner(),
        })
    }

    pub async fn send(&self, request: DiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    pub async fn ask(&self, kind: ResourceType, names: &[&str]) {
        self.send(DiscoveryRequest {
            node: Some(node()),
            type_url: kind.type_url().into(),
            resource_names: names.iter().map(|name| (*name).into()).collect(),
            ..DiscoveryRequest::default()
        })
        .await;
    }

    pub async fn ack(&self, response: &DiscoveryResponse, names: &[&str]) {
        self.send(DiscoveryRequest {
            type_url: response.type_url.clone(),
            version_info: response.version_info.clone(),
            response_nonce: response.nonce.clone(),
            resource_names: names.iter().map(|name| (*name).into()).collect(),
            ..DiscoveryRequest::default()
        })
        .await;
    }

    pub async fn nack(&self, response: &DiscoveryResponse, names: &[&str]) {
        self.send(DiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            resource_names: names.iter().map(|name| (*name).into()).collect(),
            error_detail: Some(RpcStatus {
                message: "no".into(),
                ..RpcStatus::default()
            }),
            ..DiscoveryRequest::default()
        })
        .await;
    }

    pub async fn next(&mut self) -> DiscoveryResponse {
        self.end_or_next().await.unwrap()
    }

    pub async fn end_or_next(&mut self) -> Result<DiscoveryResponse, Status> {
        let message = tokio::time::timeout(PATIENCE, self.responses.message()).await;
        message
            .expect("a message in time")?
            .ok_or_else(|| Status::ok("end"))
    }
}

/// A raw incremental ADS stream.
pub struct Delta {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Delta {
    pub async fn open(channel: Channel) -> Result<Self, Status> {
        let mut client =
            AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(usize::MAX);
        let (requests, queue) = mpsc::channel(64);
        let responses = client
            .delta_aggregated_resources(ReceiverStream::new(queue))
            .await?;
        Ok(Self {
            requests,
            responses: responses.into_inner(),
        })
    }

    pub async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    pub async fn subscribe(&self, kind: ResourceType, names: &[&str]) {
        self.resume(kind, names, HashMap::new()).await;
    }

    pub async fn resume(
        &self,
        kind: ResourceType,
        names: &[&str],
        initial_resource_versions: HashMap<String, String>,
    ) {
        self.send(DeltaDiscoveryRequest {
            node: Some(node()),
            type_url: kind.type_url().into(),
            resource_names_subscribe: names.iter().map(|name| (*name).into()).collect(),
            initial_resource_versions,
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }

    pub async fn ack(&self, response: &DeltaDiscoveryResponse) {
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }

    /// However long it takes; `Err` at the end of the stream.
    pub async fn message(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let message = self.responses.message().await?;
        message.ok_or_else(|| Status::ok("end"))
    }

    pub async fn next(&mut self) -> DeltaDiscoveryResponse {
        self.end_or_next().await.unwrap()
    }

    pub async fn end_or_next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let message = tokio::time::timeout(PATIENCE, self.responses.message()).await;
        message
            .expect("a message in time")?
            .ok_or_else(|| Status::ok("end"))
    }
}

/// Names and versions of a delta response.
pub fn told(response: &DeltaDiscoveryResponse) -> Vec<(&str, &str)> {
    let resources = response.resources.iter();
    resources
        .map(|resource| (resource.name.as_str(), resource.version.as_str()))
        .collect()
}
