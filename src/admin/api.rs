//! The JSON side: services, rejected znodes, clients and rendered resources.
//!
//! The shapes are a contract with scripts: they are extended, never changed. Errors are JSON too
//! and say what to ask instead.

use std::{fmt::Display, io, sync::Arc};

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    http::{StatusCode, Uri, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::Sources;
use crate::{
    model::{Health, Instance, Metadata, Service, Weight},
    registry::{Mirrored, Picture, Rejected},
    resource::{Edition, Resource, ResourceType, json::message_json},
};

/// How many long answers are rendered at once; the others wait for their turn.
static RENDERING: Semaphore = Semaphore::const_new(2);

/// An answer that is none, as JSON.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    error: String,
    remedy: String,
}

impl Refusal {
    pub fn new(status: StatusCode, error: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            status,
            error: error.into(),
            remedy: remedy.into(),
        }
    }

    pub fn internal(error: &impl Display) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            error.to_string(),
            "look into the log and report it",
        )
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({"error": self.error, "remedy": self.remedy});
        (self.status, Json(body)).into_response()
    }
}

pub(super) type Answer = Result<Response, Refusal>;
pub(super) type Parameters<T> = Result<Query<T>, QueryRejection>;

pub async fn not_found(uri: Uri) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        format!("nothing is at {}", uri.path()),
        "GET / lists what is here",
    )
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServicesQuery {
    name: Option<String>,
}

pub async fn services(State(sources): State<Sources>, query: Parameters<ServicesQuery>) -> Answer {
    let Query(ServicesQuery { name }) = query.map_err(|rejection| {
        bad_query(&rejection, "the one parameter is `name`, a service's name")
    })?;
    let picture = sources.registry.borrow().clone();
    respond(move |body| write_services(body, &picture, name.as_deref())).await
}

pub async fn rejected(State(sources): State<Sources>) -> Answer {
    let picture = sources.registry.borrow().clone();
    respond(move |body| write_list(body, rejected_views(&picture))).await
}

pub async fn clients(State(sources): State<Sources>) -> Answer {
    respond(move |body| write_list(body, sources.clients.clients())).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigQuery {
    kind: Option<String>,
    r#type: Option<String>,
    name: Option<String>,
}

const CONFIG_REMEDY: &str = "ask as in /api/v1/config?kind=envoy&type=clusters: kind is envoy, grpc, onDemand \
     or increments, type is clusters, endpoints, lbEndpoints, listeners, routes or virtualHosts, and \
     name may pick one resource";

pub async fn config(State(sources): State<Sources>, query: Parameters<ConfigQuery>) -> Answer {
    let Query(query) = query.map_err(|rejection| bad_query(&rejection, CONFIG_REMEDY))?;
    let edition = one_of(
        "kind",
        query.kind.as_deref(),
        &Edition::ALL,
        Edition::as_str,
    )?;
    let kind = one_of(
        "type",
        query.r#type.as_deref(),
        &ResourceType::ALL,
        ResourceType::as_str,
    )?;
    let mut resources = sources.resources.resources(edition, kind);
    if let Some(name) = query.name {
        resources.retain(|resource| *resource.name == *name);
        if resources.is_empty() {
            let error = format!("{} has no `{name}` for {}", kind.as_str(), edition.as_str());
            return Err(Refusal::new(
                StatusCode::NOT_FOUND,
                error,
                "leave `name` out to see all of them",
            ));
        }
    }
    respond(move |body| write_config(body, edition, kind, &resources)).await
}

fn one_of<T: Copy>(
    parameter: &str,
    value: Option<&str>,
    all: &[T],
    name: fn(T) -> &'static str,
) -> Result<T, Refusal> {
    let refused = |error| Refusal::new(StatusCode::BAD_REQUEST, error, CONFIG_REMEDY);
    let value = value.ok_or_else(|| refused(format!("the parameter `{parameter}` is missing")))?;
    all.iter()
        .copied()
        .find(|one| name(*one) == value)
        .ok_or_else(|| refused(format!("`{value}` is no {parameter}")))
}

pub(super) fn bad_query(rejection: &QueryRejection, remedy: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, rejection.body_text(), remedy)
}

/// Renders on a thread of its own: a large registry takes longer than a stream may wait.
pub(super) async fn respond(
    write: impl FnOnce(&mut Vec<u8>) -> serde_json::Result<()> + Send + 'static,
) -> Answer {
    let permit = RENDERING
        .acquire()
        .await
        .map_err(|e| Refusal::internal(&e))?;
    let rendered = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let mut body = Vec::new();
        write(&mut body).map(|()| body)
    });
    let mut body = rendered
        .await
        .map_err(|e| Refusal::internal(&e))?
        .map_err(|e| Refusal::internal(&e))?;
    body.push(b'\n');
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}

/// A list without a copy of all its parts at once.
pub(super) fn write_list<T: Serialize>(
    body: impl io::Write,
    items: impl IntoIterator<Item = T>,
) -> serde_json::Result<()> {
    serde_json::Serializer::new(body).collect_seq(items)
}

fn write_services(
    body: impl io::Write,
    picture: &Picture,
    name: Option<&str>,
) -> serde_json::Result<()> {
    let services = &picture.services;
    match name {
        Some(name) => write_list(
            body,
            services.get(name).map(|s| ServiceView::of(s, picture)),
        ),
        None => write_list(body, services.values().map(|s| ServiceView::of(s, picture))),
    }
}

#[derive(Serialize)]
struct ServiceView<'a> {
    name: &'a str,
    host: &'a str,
    registry: &'a str,
    instances: Vec<InstanceView<'a>>,
}

#[derive(Serialize)]
pub(super) struct InstanceView<'a> {
    id: &'a str,
    address: String,
    port: u16,
    weight: Weight,
    zone: Option<&'a str>,
    pub health: String,
    pub state: &'static str,
    metadata: &'a Metadata,
    priority: u8,
    pub registry: &'a str,
    path: String,
    format: &'a str,
    czxid: i64,
    mzxid: i64,
    /// As ZooKeeper writes it; none for a persistent znode.
    session: Option<String>,
}

impl<'a> ServiceView<'a> {
    fn of(service: &'a Service, picture: &Picture) -> Self {
        let instances = service.instances.iter();
        Self {
            name: &service.name,
            host: &service.host,
            registry: &service.registry,
            instances: instances
                .map(|instance| InstanceView::of(instance, state(service, instance, picture)))
                .collect(),
        }
    }
}

impl<'a> InstanceView<'a> {
    pub fn of(instance: &'a Instance, state: &'static str) -> Self {
        Self {
            id: instance.id(),
            address: instance.address.to_string(),
            port: instance.port,
            weight: instance.weight,
            zone: instance.zone.as_deref(),
            health: health(instance),
            state,
            metadata: &instance.metadata,
            priority: instance.priority,
            registry: &instance.origin.source.registry,
            path: instance.origin.path(),
            format: instance.origin.format,
            czxid: instance.origin.czxid,
            mzxid: instance.origin.mzxid,
            session: Some(instance.origin.session)
                .filter(|session| *session != 0)
                .map(|session| format!("0x{session:x}")),
        }
    }
}

/// Whether it is registered, or served for another reason.
pub(super) fn state(service: &Service, instance: &Instance, picture: &Picture) -> &'static str {
    let registry = &*instance.origin.source.registry;
    let mut registries = picture.registries.iter();
    match registries.find(|mirrored| *mirrored.name == *registry) {
        Some(of)
            if of
                .view
                .holds
                .get(&service.name, instance.socket())
                .is_some() =>
        {
            "held"
        }
        Some(of)
            if of
                .view
                .lingering
                .get(&service.name, instance.socket())
                .is_some() =>
        {
            "lingering"
        }
        Some(of) if of.restored.is_some() => "restored",
        _ => "registered",
    }
}

/// What clients make of the instance, the strongest reason to send it nothing first.
fn health(instance: &Instance) -> String {
    match &instance.health {
        Health::Disabled(reason) => format!("disabled: {reason}"),
        Health::Unhealthy => "unhealthy".to_owned(),
        _ if instance.weight == Weight::DRAIN => "draining".to_owned(),
        Health::Degraded => "degraded".to_owned(),
        Health::Healthy => "healthy".to_owned(),
    }
}

#[derive(Serialize)]
pub(super) struct RejectedView<'a> {
    registry: Option<&'a str>,
    pub path: &'a str,
    format: &'a str,
    pub reason: &'a str,
}

/// Of each registry, then what they are in each other's way with.
pub(super) fn rejected_views(picture: &Picture) -> impl Iterator<Item = RejectedView<'_>> {
    let conflicts = picture.conflicts.iter();
    let conflicts = conflicts.map(|(name, rejected)| RejectedView::of(None, (name, rejected)));
    picture.registries.iter().flat_map(of_one).chain(conflicts)
}

fn of_one(mirrored: &Mirrored) -> impl Iterator<Item = RejectedView<'_>> {
    let rejected = mirrored.view.rejected.iter();
    rejected.map(|(path, rejected)| RejectedView::of(Some(&mirrored.name), (path, rejected)))
}

impl<'a> RejectedView<'a> {
    fn of(registry: Option<&'a str>, (path, rejected): (&'a str, &'a Rejected)) -> Self {
        Self {
            registry,
            path,
            format: rejected.format,
            reason: &rejected.reason,
        }
    }
}

fn write_config(
    mut body: impl io::Write,
    edition: Edition,
    kind: ResourceType,
    resources: &[Arc<Resource>],
) -> serde_json::Result<()> {
    #[derive(Serialize)]
    struct ConfigView<'a> {
        kind: &'static str,
        r#type: &'static str,
        #[serde(serialize_with = "write_resources")]
        resources: &'a [Arc<Resource>],
    }
    let view = ConfigView {
        kind: edition.as_str(),
        r#type: kind.as_str(),
        resources,
    };
    // Unlike the lists this is for people.
    serde_json::to_writer_pretty(&mut body, &view)
}

fn write_resources<S: Serializer>(
    resources: &&[Arc<Resource>],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(resources.iter().map(|resource| resource_view(resource)))
}

/// One that cannot be read says so in its own place.
fn resource_view(resource: &Resource) -> Value {
    let (name, version) = (&*resource.name, resource.version.to_string());
    match message_json(resource.kind.type_url(), &resource.body()) {
        Ok(message) => json!({"name": name, "version": version, "resource": message}),
        Err(error) => json!({"name": name, "version": version, "error": error.to_string()}),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::Ipv4Addr};

    use super::*;
    use crate::{
        model::{Origin, Source},
        resource::Version,
    };

    fn instance(health: Health, weight: u32) -> Instance {
        Instance {
            own_id: None,
            address: Ipv4Addr::LOCALHOST.into(),
            port: 8080,
            weight: Weight::new(weight).unwrap(),
            zone: None,
            health,
            metadata: BTreeMap::from([("version".to_owned(), "v2".to_owned())]).into(),
            priority: 0,
            origin: Origin {
                source: Arc::new(Source {
                    registry: "main".into(),
                    root: "/services".into(),
                }),
                znode: "orders/i-1".into(),
                format: "json",
                czxid: 1,
                mzxid: 2,
                session: 0x1001,
            },
        }
    }

    #[test]
    fn health_tells_the_strongest_reason() {
        let disabled = || Health::Disabled("instance_status is DOWN".into());
        for (of, weight, text) in [
            (Health::Healthy, 100, "healthy"),
            (Health::Healthy, 0, "draining"),
            (Health::Unhealthy, 0, "unhealthy"),
            (disabled(), 0, "disabled: instance_status is DOWN"),
        ] {
            assert_eq!(health(&instance(of, weight)), text);
        }
    }

    #[test]
    fn a_service_is_told_in_the_shape_of_the_contract() {
        let service = Service {
            name: "orders".into(),
            host: "orders".into(),
            registry: "main".into(),
            instances: [Arc::new(instance(Health::Healthy, 7))]
                .into_iter()
                .collect(),
        };
        assert_eq!(
            serde_json::to_value(ServiceView::of(&service, &Picture::default())).unwrap(),
            json!({"name": "orders", "host": "orders", "registry": "main", "instances": [{
                "id": "i-1", "address": "127.0.0.1", "port": 8080, "weight": 7, "zone": null,
                "health": "healthy", "state": "registered", "metadata": {"version": "v2"},
                "priority": 0, "registry": "main",
                "path": "/services/orders/i-1", "format": "json", "czxid": 1, "mzxid": 2,
                "session": "0x1001",
            }]})
        );
    }

    #[test]
    fn a_resource_that_cannot_be_read_harms_no_other() {
        let resource = |name: &str, body: &[u8]| {
            Arc::new(Resource::new(ResourceType::Cluster, name, Version(1), body))
        };
        let resources = [resource("bad", &[0xff]), resource("good", &[])];
        let mut body = Vec::new();
        write_config(&mut body, Edition::Envoy, ResourceType::Cluster, &resources).unwrap();
        let told: Value = serde_json::from_slice(&body).unwrap();
        assert!(told["resources"][0]["error"].is_string(), "{told}");
        assert_eq!(
            told["resources"][1],
            json!({"name": "good", "version": "0000000000000001", "resource": {}})
        );
    }
}
