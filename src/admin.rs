//! The operators' side over HTTP: health, metrics, and what the process holds, as JSON.
//!
//! It reads through what [`Sources`] lends, and refuses to know how that is kept. One thing can be changed here:
//! what is held can be released. Invariant: a slow or hostile client costs one of a bounded number
//! of connections for a bounded time, and never the runtime that serves the mesh: what is long to
//! render is rendered on threads of its own.

pub mod api;
mod compare;
mod explain;
pub mod health;
pub mod holds;
pub mod host;
pub mod server;

use std::{fmt, future::ready, sync::Arc};

use axum::{
    Router,
    routing::{MethodRouter, get, post},
};
use futures_util::future::BoxFuture;
use host::Hosts;
use prometheus::Registry;
pub use server::serve;
use tokio::sync::watch;

use crate::{
    readiness::Readiness,
    registry::Picture,
    resource::{Edition, Resource, ResourceType},
    xds::{clients::Follower, status::ClientStatus},
};

/// The one path that changes something.
const RELEASE: &str = "/api/v1/release";

/// What the server reads from; cloning shares it.
#[derive(Clone)]
pub struct Sources {
    pub registry: watch::Receiver<Picture>,
    pub readiness: Readiness,
    pub metrics: Registry,
    pub clients: Arc<dyn ClientList>,
    pub followers: Arc<Followers>,
    /// The node ids of those who ask for a name that nothing is registered under.
    pub missing: Arc<Missing>,
    pub resources: Arc<dyn ResourceList>,
    pub operator: Arc<dyn Operator>,
    /// The hosts that requests may name.
    pub hosts: Hosts,
    /// A service answers to its host and to `HOST.SUFFIX`.
    pub domain_suffix: String,
}

/// Who does what operators ask for.
pub trait Operator: Send + Sync {
    /// Lets go what is held of a service or of all, in one registry or in all: how many instances that were, or
    /// nothing where nobody does it any more.
    fn release(
        &self,
        registry: Option<String>,
        service: Option<String>,
    ) -> BoxFuture<'static, Option<usize>>;
}

/// Who follows the endpoints of a service, by its name.
pub type Followers = dyn Fn(&str) -> Vec<Follower> + Send + Sync;

pub type Missing = dyn Fn(&str) -> Vec<String> + Send + Sync;

/// Who is connected, in the order of connection.
pub trait ClientList: Send + Sync {
    fn clients(&self) -> Vec<ClientStatus>;
}

/// What clients of a kind are sent, in the order of names.
pub trait ResourceList: Send + Sync {
    fn resources(&self, edition: Edition, kind: ResourceType) -> Vec<Arc<Resource>>;
}

impl<F> ClientList for F
where
    F: Fn() -> Vec<ClientStatus> + Send + Sync,
{
    fn clients(&self) -> Vec<ClientStatus> {
        self()
    }
}

impl<F> ResourceList for F
where
    F: Fn(Edition, ResourceType) -> Vec<Arc<Resource>> + Send + Sync,
{
    fn resources(&self, edition: Edition, kind: ResourceType) -> Vec<Arc<Resource>> {
        self(edition, kind)
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

/// Something that the server serves: path, parameters, and a line about it for `GET /`.
type Page = (
    &'static str,
    &'static str,
    &'static str,
    MethodRouter<Sources>,
);

fn pages() -> [Page; 11] {
    [
        (
            "/livez",
            "",
            "200 while the process lives",
            get(health::livez),
        ),
        (
            "/readyz",
            "",
            "200 once the registry is loaded, else 503 and what is missing; notes on what is unusual",
            get(health::readyz),
        ),
        ("/metrics", "", "Prometheus metrics", get(health::metrics)),
        (
            "/api/v1/services",
            "?name=SERVICE",
            "services and their instances",
            get(api::services),
        ),
        (
            "/api/v1/rejected",
            "",
            "znodes that are left out, and why",
            get(api::rejected),
        ),
        (
            "/api/v1/holds",
            "",
            "instances that are not registered any more and stay served",
            get(holds::holds),
        ),
        (
            RELEASE,
            "?service=SERVICE&registry=REGISTRY",
            "POST, from this machine: releases held instances",
            post(holds::release),
        ),
        (
            "/api/v1/clients",
            "",
            "connected clients and their states",
            get(api::clients),
        ),
        (
            "/api/v1/config",
            "?kind=envoy|grpc|onDemand|increments\
             &type=clusters|endpoints|lbEndpoints|listeners|routes|virtualHosts&name=RESOURCE",
            "what clients are sent",
            get(api::config),
        ),
        (
            "/api/v1/explain",
            "?subject=SERVICE|HOST|ADDRESS|ZNODE",
            "why something is or is not served",
            get(explain::explain),
        ),
        (
            "/api/v1/compare",
            "?left=REGISTRY&right=REGISTRY",
            "how two registries differ",
            get(compare::compare),
        ),
    ]
}

fn router(sources: Sources) -> Router {
    let pages = pages();
    let index = health::index(&pages);
    let mut router = Router::new().route("/", get(move || ready(index)));
    for (path, _, _, route) in pages {
        router = router.route(path, route);
    }
    router.fallback(api::not_found).with_state(sources)
}
