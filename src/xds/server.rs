//! The discovery services on a socket: which path serves what.
//!
//! It refuses to know the protocol (`stream`) and a stream's life (`session`). The services are
//! written by hand instead of generated, so that responses leave as shared bytes.
//! A service that is not served answers UNIMPLEMENTED.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{self, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    middleware::{Next, from_fn},
};
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;
use http::{HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body_util::BodyExt;
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Status, Streaming,
    service::Routes,
    transport::server::{Server, TcpConnectInfo},
};
use tonic_prost::ProstDecoder;
use tracing::warn;

use super::{
    admission::Seat,
    age,
    body::{self, Form},
    connection::{Peer, incoming},
    delta::Delta,
    session::{Context, Session, refused},
    sotw::Sotw,
    stream::{self, Scope, Stream, Variant},
};
use crate::{
    places::{Busy, Places},
    resource::ResourceType,
};

/// Dead peers are found within the sum of both.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The services of single types: package, service, the plural in its methods, the type. That of
/// virtual hosts knows increments only.
const SERVICES: [(&str, &str, &str, ResourceType); 4] = [
    (
        "cluster",
        "ClusterDiscoveryService",
        "Clusters",
        ResourceType::Cluster,
    ),
    (
        "endpoint",
        "EndpointDiscoveryService",
        "Endpoints",
        ResourceType::Endpoint,
    ),
    (
        "listener",
        "ListenerDiscoveryService",
        "Listeners",
        ResourceType::Listener,
    ),
    (
        "route",
        "RouteDiscoveryService",
        "Routes",
        ResourceType::Route,
    ),
];

/// Every discovery service that is served, by its full name.
pub fn services() -> impl Iterator<Item = String> {
    let single = SERVICES
        .iter()
        .map(|(package, service, ..)| (*package, *service));
    let others = [
        ("discovery", "AggregatedDiscoveryService"),
        ("route", "VirtualHostDiscoveryService"),
    ];
    let all = single.chain(others);
    all.map(|(package, service)| format!("envoy.service.{package}.v3.{service}"))
}

/// How long streams get to end once the server stops; those that do not read are cut off then.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves until the context's `stop`, over as many connections as there are places, then lets every stream end in order, within a bound.
pub async fn serve(
    listener: TcpListener,
    context: Context,
    others: Routes,
    places: Arc<Places>,
) -> Result<(), tonic::transport::Error> {
    let stop = context.stop.clone();
    // Streams that end from then on are opened again over a new connection, which may lead elsewhere.
    let age = age::of_connection(context.admission.limits().max_stream_age);
    let waking = AbortOnDropHandle::new(context.waking.spawn(context.fanout.clone().run()));
    let serving = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_connection_age(age)
        .add_routes(add_discovery(others, &context))
        .serve_with_incoming_shutdown(incoming(listener, places), stop.clone().cancelled_owned());
    let drained = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    let waking = async {
        // It ends with the last publication; should it fail, nobody would be told anything any more.
        if let Ok(()) = waking.await {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        served = serving => served,
        () = drained => {
            warn!(streams = context.clients.list().len(), "cut off what did not end in time");
            Ok(())
        }
        () = waking => Ok(()),
    }
}

/// Adds every discovery service to what else is served on the port.
fn add_discovery(mut others: Routes, context: &Context) -> Routes {
    let mut router = std::mem::take(others.axum_router_mut());
    router = with_variants(
        router,
        "/envoy.service.discovery.v3.AggregatedDiscoveryService",
        "AggregatedResources",
        Scope::Aggregated,
        context,
    );
    for (package, service, plural, kind) in SERVICES {
        let path = format!("/envoy.service.{package}.v3.{service}");
        router = with_variants(router, &path, plural, Scope::Only(kind), context);
        router = with_fetch(router, &format!("{path}/Fetch{plural}"), kind, context);
    }
    let virtual_hosts = Scope::Only(ResourceType::VirtualHost);
    router = with_streams::<Delta>(
        router,
        "/envoy.service.route.v3.VirtualHostDiscoveryService/DeltaVirtualHosts",
        (virtual_hosts, Form::Delta),
        context,
    );
    *others.axum_router_mut() = router.layer(from_fn(keep_busy));
    others
}

/// Keeps the connection of a request busy until its response has ended.
async fn keep_busy(mut request: Request<Body>, next: Next) -> Response<Body> {
    let Some(peer) = request.extensions().get::<Peer>().cloned() else {
        return next.run(request).await;
    };
    let busy = peer.place.busy();
    request.extensions_mut().insert(peer.tcp);
    let response = next.run(request).await;
    response.map(|body| Body::new(BusyBody { body, _busy: busy }))
}

/// A response that keeps its connection busy.
struct BusyBody {
    body: Body,
    _busy: Busy,
}

impl http_body::Body for BusyBody {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

fn with_variants(
    router: axum::Router,
    service: &str,
    plural: &str,
    scope: Scope,
    context: &Context,
) -> axum::Router {
    let sotw = format!("{service}/Stream{plural}");
    let delta = format!("{service}/Delta{plural}");
    let router = with_streams::<Sotw>(router, &sotw, (scope, Form::Sotw), context);
    with_streams::<Delta>(router, &delta, (scope, Form::Delta), context)
}

fn with_streams<V>(
    router: axum::Router,
    path: &str,
    (scope, form): (Scope, Form),
    context: &Context,
) -> axum::Router
where
    V: Variant + Send + 'static,
    V::Request: prost::Message + Default + Send + 'static,
{
    let context = context.clone();
    let open = move |request: Request<Body>| {
        let context = context.clone();
        let address = peer(&request);
        async move {
            let seat = match admit(&context, address).await {
                Ok(seat) => seat,
                Err(status) => return status.into_http(),
            };
            let requests = messages::<V::Request>(request, &context);
            let session = Session::<V>::new(context, scope, form, requests, seat);
            answer(Body::new(session.into_body()))
        }
    };
    router.route(path, axum::routing::post(open))
}

fn with_fetch(
    router: axum::Router,
    path: &str,
    kind: ResourceType,
    context: &Context,
) -> axum::Router {
    let context = context.clone();
    let fetch = move |request: Request<Body>| {
        let context = context.clone();
        let address = peer(&request);
        async move {
            match fetch(messages(request, &context), address, kind, &context).await {
                Ok(response) => answer(unary(response)),
                Err(status) => status.into_http(),
            }
        }
    };
    router.route(path, axum::routing::post(fetch))
}

/// Answers one request, as the first of a stream would be answered.
async fn fetch(
    mut requests: Streaming<DiscoveryRequest>,
    address: Option<SocketAddr>,
    kind: ResourceType,
    context: &Context,
) -> Result<stream::Response, Status> {
    let seat = admit(context, address).await?;
    let request = requests
        .next()
        .await
        .ok_or_else(|| Status::invalid_argument("no request"))?
        .map_err(|status| seat.unread(status))?;
    let snapshots = context.fanout.current();
    if !snapshots.loaded {
        return Err(Status::unavailable("the registry is not loaded yet"));
    }
    let mut machine = Stream::<Sotw>::new(Scope::Only(kind));
    machine
        .request(request, std::time::Instant::now())
        .map_err(|refusal| refused(&refusal))?;
    let response = machine.poll(&snapshots, std::time::Instant::now());
    let response = response.map_err(|refusal| refused(&refusal))?;
    Ok(response.unwrap_or_else(|| stream::Response::empty(kind)))
}

fn unary(response: stream::Response) -> Body {
    let pieces = body::encode(response, Form::Sotw).map(http_body::Frame::data);
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = pieces.chain([http_body::Frame::trailers(trailers)]);
    let frames = futures_util::stream::iter(frames.map(Ok::<_, std::convert::Infallible>));
    Body::new(http_body_util::StreamBody::new(frames))
}

fn messages<M>(request: Request<Body>, context: &Context) -> Streaming<M>
where
    M: prost::Message + Default + Send + 'static,
{
    let body = request.into_body().map_err(Arc::new);
    let limit = context.admission.limits().max_request_bytes;
    Streaming::new_request(ProstDecoder::default(), body, None, Some(limit))
}

fn answer(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let content_type = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

async fn admit(context: &Context, address: Option<SocketAddr>) -> Result<Seat, Status> {
    context.admission.admit(address, &context.stop).await
}

fn peer(request: &Request<Body>) -> Option<SocketAddr> {
    request
        .extensions()
        .get::<TcpConnectInfo>()
        .and_then(TcpConnectInfo::remote_addr)
}
