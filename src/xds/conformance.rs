//! The protocol machine held against the list of behaviours that a management server shows.
//!
//! Each test's name begins with the number of the behaviour in that list. There are no sockets: a
//! [`Mesh`] is the published snapshots and the time, a [`Client`] is one stream together with what a
//! well-behaved client remembers. That the machine is silent is proved by asking it: [`Client::silent`].
//! Invariant of every answer that a test reads: a new nonce, one type, no name twice, no message too
//! large that could have been split.
//! Source: the xDS protocol text, the comments in `discovery.proto`, and what the test suites of other
//! management servers require.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::{Duration, Instant},
};

use envoy_types::pb::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
    },
    google::rpc::Status,
};

use super::{
    delta::Delta,
    sotw::Sotw,
    status::TypeStatus,
    stream::{Refusal, Response, Scope, Stream, Variant},
};
use crate::{
    resource::{Edition, Resource, ResourceType, Version},
    snapshot::Snapshots,
};

mod delta;
mod flow;
mod increments;
mod naming;
mod on_demand;
mod order;
mod properties;
mod sotw;
mod surface;

/// The types that a wildcard tells, in the order in which they are pushed.
const TYPES: [ResourceType; 4] = [
    ResourceType::Cluster,
    ResourceType::Endpoint,
    ResourceType::Listener,
    ResourceType::Route,
];

/// More responses than any conversation here has.
const ENDLESS: usize = 400;

/// What is published, and the time.
#[derive(Clone)]
struct Mesh(Rc<RefCell<World>>);

struct World {
    snapshots: Snapshots,
    now: Instant,
}

impl Mesh {
    /// Loaded, with nothing in it.
    fn empty() -> Self {
        let mut snapshots = Snapshots::default();
        snapshots.loaded = true;
        Self(Rc::new(RefCell::new(World {
            snapshots,
            now: Instant::now(),
        })))
    }

    fn of(kind: ResourceType, resources: &[&str]) -> Self {
        Self::empty().with(kind, resources)
    }

    /// A cluster, its endpoints, a listener and its route configuration, each in version 1.
    fn whole(name: &str) -> Self {
        let resource = format!("{name}@1");
        TYPES
            .into_iter()
            .fold(Self::empty(), |mesh, kind| mesh.with(kind, &[&resource]))
    }

    fn with(self, kind: ResourceType, resources: &[&str]) -> Self {
        for resource in resources {
            self.put(kind, resource);
        }
        self
    }

    /// `resource` is `NAME@VERSION`.
    fn put(&self, kind: ResourceType, resource: &str) {
        let (name, version) = resource.split_once('@').unwrap();
        self.put_large(kind, name, version.parse().unwrap(), 8);
    }

    fn put_large(&self, kind: ResourceType, name: &str, version: u64, bytes: usize) {
        for client in Edition::ALL {
            self.put_for(client, kind, name, version, bytes);
        }
    }

    fn put_for(&self, client: Edition, kind: ResourceType, name: &str, version: u64, bytes: usize) {
        let resource = Resource::new(kind, name, Version(version), &vec![7; bytes]);
        self.0.borrow_mut().snapshots.of_mut(client).put(resource);
    }

    fn remove(&self, kind: ResourceType, name: &str) {
        for client in Edition::ALL {
            let snapshots = &mut self.0.borrow_mut().snapshots;
            snapshots.of_mut(client).remove(kind, name);
        }
    }

    fn set_loaded(&self, loaded: bool) {
        self.0.borrow_mut().snapshots.loaded = loaded;
    }

    fn pass(&self, time: Duration) {
        self.0.borrow_mut().now += time;
    }

    fn now(&self) -> Instant {
        self.0.borrow().now
    }

    /// The version of each resource of the type, by name.
    fn content(&self, kind: ResourceType) -> BTreeMap<String, u64> {
        let world = self.0.borrow();
        let set = world.snapshots.of(Edition::Envoy).set(kind);
        set.iter()
            .map(|r| (r.name.to_string(), r.version.0))
            .collect()
    }

    fn sotw(&self) -> SotwClient {
        Client::new(self.clone(), Scope::Aggregated, "envoy")
    }

    fn delta(&self) -> DeltaClient {
        Client::new(self.clone(), Scope::Aggregated, "envoy")
    }
}

type SotwClient = Client<Sotw>;
type DeltaClient = Client<Delta>;

/// A protocol variant, as clients speak it.
trait Dialect: Variant {
    fn identify(request: &mut Self::Request, node: Node);

    /// An ACK or a NACK; `names` is what a state-of-the-world client repeats.
    fn reply(answered: &Answered<'_>, error: Option<Status>) -> Self::Request;
}

/// What a client says of a response.
struct Answered<'a> {
    response: &'a Response,
    /// The version that the client is at if it rejects this one.
    before: String,
    names: Vec<String>,
}

impl Dialect for Sotw {
    fn identify(request: &mut DiscoveryRequest, node: Node) {
        request.node = Some(node);
    }

    fn reply(answered: &Answered<'_>, error: Option<Status>) -> DiscoveryRequest {
        let accepted = error.is_none().then(|| answered.response.version.clone());
        DiscoveryRequest {
            type_url: answered.response.type_url.clone(),
            response_nonce: answered.response.nonce.clone(),
            version_info: accepted.unwrap_or_else(|| answered.before.clone()),
            resource_names: answered.names.clone(),
            error_detail: error,
            ..DiscoveryRequest::default()
        }
    }
}

impl Dialect for Delta {
    fn identify(request: &mut DeltaDiscoveryRequest, node: Node) {
        request.node = Some(node);
    }

    fn reply(answered: &Answered<'_>, error: Option<Status>) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: answered.response.type_url.clone(),
            response_nonce: answered.response.nonce.clone(),
            error_detail: error,
            ..DeltaDiscoveryRequest::default()
        }
    }
}

/// One stream and what its client remembers of it.
struct Client<V: Dialect> {
    mesh: Mesh,
    stream: Stream<V>,
    /// Sent with the first message.
    node: Option<Node>,
    nonces: BTreeSet<String>,
    /// The latest response of each type.
    latest: BTreeMap<ResourceType, Response>,
    /// The accepted version of each type.
    accepted: BTreeMap<ResourceType, String>,
    /// What a state-of-the-world client repeats in each request.
    names: BTreeMap<ResourceType, Vec<String>>,
}

impl<V: Dialect> Client<V> {
    fn new(mesh: Mesh, scope: Scope, agent: &str) -> Self {
        Self {
            mesh,
            stream: Stream::new(scope),
            node: Some(node(agent)),
            nonces: BTreeSet::new(),
            latest: BTreeMap::new(),
            accepted: BTreeMap::new(),
            names: BTreeMap::new(),
        }
    }

    fn try_send(&mut self, mut request: V::Request) -> Result<(), Refusal> {
        if let Some(node) = self.node.take() {
            V::identify(&mut request, node);
        }
        let now = self.mesh.now();
        self.stream.request(request, now).map(drop)
    }

    fn send(&mut self, request: V::Request) -> &mut Self {
        self.try_send(request).unwrap();
        self
    }

    fn try_poll(&mut self) -> Result<Option<Response>, Refusal> {
        let world = self.mesh.0.borrow();
        self.stream.poll(&world.snapshots, world.now)
    }

    /// The next response as it is, checked for what holds of every response.
    fn receive(&mut self) -> Option<Response> {
        let response = self.try_poll().unwrap()?;
        assert!(self.nonces.len() < ENDLESS, "responses without end");
        assert!(!response.nonce.is_empty(), "an empty nonce: {response:?}");
        assert!(
            self.nonces.insert(response.nonce.clone()),
            "a nonce again: {response:?}"
        );
        assert_names_are_told_once(&response);
        if let Some(kind) = ResourceType::from_type_url(&response.type_url) {
            assert!(response.resources.iter().all(|r| r.kind == kind));
            self.latest.insert(kind, response.clone());
        }
        Some(response)
    }

    /// The next response; there must be one.
    fn next(&mut self) -> Told {
        Told::from(&self.receive().expect("a response is due"))
    }

    /// The next response, and its ACK.
    fn next_acked(&mut self) -> Told {
        let told = self.next();
        self.ack(told.kind);
        told
    }

    /// Everything that is due without an ACK.
    fn drain(&mut self) -> Vec<Told> {
        std::iter::from_fn(|| self.receive())
            .map(|response| Told::from(&response))
            .collect()
    }

    /// Everything that comes when each response is acknowledged once it is read.
    fn settle(&mut self) -> Vec<Told> {
        let mut told = Vec::new();
        while let Some(response) = self.receive() {
            told.push(Told::from(&response));
            self.ack(Told::from(&response).kind);
        }
        told
    }

    /// Nothing is due, now or later, unless something happens.
    fn silent(&mut self) -> &mut Self {
        let response = self.try_poll().unwrap();
        assert_eq!(response, None, "silence was due");
        self
    }

    fn ack(&mut self, kind: ResourceType) -> &mut Self {
        let reply = V::reply(&self.answered(kind), None);
        self.accepted
            .insert(kind, self.latest[&kind].version.clone());
        self.send(reply)
    }

    fn nack(&mut self, kind: ResourceType) -> &mut Self {
        let reply = V::reply(&self.answered(kind), Some(rejection("no")));
        self.send(reply)
    }

    fn answered(&self, kind: ResourceType) -> Answered<'_> {
        Answered {
            response: &self.latest[&kind],
            before: self.accepted.get(&kind).cloned().unwrap_or_default(),
            names: self.names.get(&kind).cloned().unwrap_or_default(),
        }
    }

    /// Of the latest response of the type.
    fn version(&self, kind: ResourceType) -> String {
        self.latest[&kind].version.clone()
    }

    /// Of the latest response of the type; empty if there was none.
    fn nonce(&self, kind: ResourceType) -> String {
        let latest = self.latest.get(&kind);
        latest.map(|r| r.nonce.clone()).unwrap_or_default()
    }

    fn status(&self, kind: ResourceType) -> TypeStatus {
        let mut all = self.stream.status();
        all.find(|(of, _)| *of == kind).unwrap().1
    }

    fn deadline(&self) -> Option<Duration> {
        let now = self.mesh.now();
        self.stream.deadline(now).map(|deadline| deadline - now)
    }
}

impl SotwClient {
    /// Sends the names under the latest nonce, which makes it the ACK of what was read last.
    fn ask(&mut self, kind: ResourceType, names: &[&str]) -> &mut Self {
        let nonce = self.nonce(kind);
        self.ask_under(&nonce, kind, names)
    }

    fn ask_under(&mut self, nonce: &str, kind: ResourceType, names: &[&str]) -> &mut Self {
        self.names.insert(kind, strings(names));
        let version = self.latest.get(&kind).map(|r| r.version.clone());
        self.send(DiscoveryRequest {
            type_url: kind.type_url().into(),
            response_nonce: nonce.into(),
            version_info: version.unwrap_or_default(),
            resource_names: strings(names),
            ..DiscoveryRequest::default()
        })
    }

    /// Rejects the latest response and asks for these names at once.
    fn nack_asking(&mut self, kind: ResourceType, names: &[&str]) -> &mut Self {
        self.names.insert(kind, strings(names));
        self.nack(kind)
    }
}

impl DeltaClient {
    fn subscribe(&mut self, kind: ResourceType, names: &[&str]) -> &mut Self {
        self.change_under("", kind, names, &[])
    }

    fn unsubscribe(&mut self, kind: ResourceType, names: &[&str]) -> &mut Self {
        self.change_under("", kind, &[], names)
    }

    fn change_under(
        &mut self,
        nonce: &str,
        kind: ResourceType,
        subscribe: &[&str],
        unsubscribe: &[&str],
    ) -> &mut Self {
        self.send(DeltaDiscoveryRequest {
            type_url: kind.type_url().into(),
            response_nonce: nonce.into(),
            resource_names_subscribe: strings(subscribe),
            resource_names_unsubscribe: strings(unsubscribe),
            ..DeltaDiscoveryRequest::default()
        })
    }

    /// The first message of a type after a reconnect; `held` are `NAME@VERSION`.
    fn resume(&mut self, kind: ResourceType, subscribe: &[&str], held: &[&str]) -> &mut Self {
        let held = held.iter().map(|resource| {
            let (name, version) = resource.split_once('@').unwrap();
            let version = version.parse().map(|v| Version(v).to_string());
            (name.to_owned(), version.unwrap_or("garbage".into()))
        });
        self.send(DeltaDiscoveryRequest {
            type_url: kind.type_url().into(),
            resource_names_subscribe: strings(subscribe),
            initial_resource_versions: held.collect(),
            ..DeltaDiscoveryRequest::default()
        })
    }
}

/// What a response says, in the order of the names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    kind: ResourceType,
    /// `NAME@VERSION`.
    resources: Vec<String>,
    removed: Vec<String>,
}

impl Told {
    fn removing(mut self, names: &[&str]) -> Self {
        self.removed = strings(names);
        self
    }
}

impl From<&Response> for Told {
    fn from(response: &Response) -> Self {
        let mut told = Self {
            kind: ResourceType::from_type_url(&response.type_url).expect("a known type"),
            resources: response.resources.iter().map(|r| text(r)).collect(),
            removed: response.removed.iter().map(ToString::to_string).collect(),
        };
        told.resources.sort();
        told.removed.sort();
        told
    }
}

fn told(kind: ResourceType, resources: &[&str]) -> Told {
    Told {
        kind,
        resources: strings(resources),
        removed: Vec::new(),
    }
}

fn text(resource: &Resource) -> String {
    format!("{}@{}", resource.name, resource.version.0)
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn node(agent: &str) -> Node {
    Node {
        id: "sidecar-1".into(),
        user_agent_name: agent.into(),
        ..Node::default()
    }
}

fn rejection(message: &str) -> Status {
    Status {
        code: 3,
        message: message.into(),
        ..Status::default()
    }
}

fn assert_names_are_told_once(response: &Response) {
    let sent = response.resources.iter().map(|r| &r.name);
    let names: Vec<_> = sent.chain(&response.removed).collect();
    let distinct: BTreeSet<_> = names.iter().collect();
    assert_eq!(distinct.len(), names.len(), "a name twice: {response:?}");
}
