//! Random conversations, valid and not: what holds of every one of them.
//!
//! A [`Talk`] leads one stream through steps of a mesh that changes, a client that asks and answers
//! (also with stale and foreign nonces, rejections and nonsense) and time that passes. A model of the
//! client checks each response as it comes, and in the end that the client holds what it should.

use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use proptest::{prelude::*, sample::select};

use super::{Client, Dialect, Mesh, Refusal, TYPES, rejection};
use crate::{
    resource::{ResourceType, Version},
    xds::{
        delta::Delta,
        held::HOLD,
        sotw::Sotw,
        stream::{GATE, Response, Scope},
    },
};

mod model;
use model::{Model, Rules};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const UNKNOWN: &str = "type.googleapis.com/unknown";

#[derive(Clone, Debug)]
enum Step {
    Put(ResourceType, &'static str, u64),
    Remove(ResourceType, &'static str),
    /// Everything of this name.
    Delete(&'static str),
    Ask(Ask),
    /// The client reads this many responses at most and answers none.
    Read(usize),
    /// The client answers what is outstanding.
    Answer {
        kind: ResourceType,
        reject: bool,
    },
    Pass(Duration),
}

/// A request of either variant; what a variant does not know is left out.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    /// `None` is a type that nobody knows.
    kind: Option<ResourceType>,
    names: Vec<&'static str>,
    unsubscribe: Vec<&'static str>,
    held: Vec<(&'static str, u64)>,
    nonce: Nonce,
    reject: bool,
}

#[derive(Clone, Copy, Debug)]
enum Nonce {
    Empty,
    Latest,
    /// An earlier one of the same type.
    Stale,
    /// The latest one of the next type.
    Foreign,
    Garbage,
}

fn kind() -> impl Strategy<Value = ResourceType> {
    select(TYPES.to_vec())
}

fn name() -> impl Strategy<Value = &'static str> {
    select(NAMES.to_vec())
}

fn subscribed() -> impl Strategy<Value = Vec<&'static str>> {
    let name = prop_oneof![4 => name(), 1 => Just("*"), 1 => Just("never")];
    prop::collection::vec(name, 0..5)
}

fn ask() -> impl Strategy<Value = Ask> {
    let kind = prop_oneof![19 => kind().prop_map(Some), 1 => Just(None)];
    let unsubscribe = prop_oneof![2 => Just(Vec::new()), 1 => subscribed()];
    let held = prop::collection::vec((name(), 0..4u64), 0..4);
    let nonces = [Nonce::Empty, Nonce::Latest, Nonce::Stale, Nonce::Foreign];
    let nonces = [&nonces[..], &[Nonce::Garbage]].concat();
    let reject = prop::bool::weighted(0.1);
    (
        kind,
        subscribed(),
        unsubscribe,
        held,
        select(nonces),
        reject,
    )
        .prop_map(|(kind, names, unsubscribe, held, nonce, reject)| Ask {
            kind,
            names,
            unsubscribe,
            held,
            nonce,
            reject,
        })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![5 => ask().prop_map(Step::Ask), 23 => event()]
}

/// Anything but a request for other names.
fn event() -> impl Strategy<Value = Step> {
    let times = [1, 500, 1_000, 2_000, 5_000].map(Duration::from_millis);
    prop_oneof![
        6 => (kind(), name(), 1..4u64).prop_map(|(kind, name, at)| Step::Put(kind, name, at)),
        2 => (kind(), name()).prop_map(|(kind, name)| Step::Remove(kind, name)),
        1 => name().prop_map(Step::Delete),
        6 => (1..6usize).prop_map(Step::Read),
        6 => (kind(), prop::bool::weighted(0.15))
            .prop_map(|(kind, reject)| Step::Answer { kind, reject }),
        2 => select(times.to_vec()).prop_map(Step::Pass),
    ]
}

/// A variant as a random client speaks it.
trait Spoken: Dialect {
    const RULES: Rules;

    fn spell(ask: &Ask, type_url: &str, nonce: &str) -> Self::Request;
}

impl Spoken for Sotw {
    const RULES: Rules = Rules::StateOfTheWorld;

    fn spell(ask: &Ask, type_url: &str, nonce: &str) -> DiscoveryRequest {
        DiscoveryRequest {
            type_url: type_url.into(),
            response_nonce: nonce.into(),
            version_info: "whatever".into(),
            resource_names: super::strings(&ask.names),
            error_detail: ask.reject.then(|| rejection("no")),
            ..DiscoveryRequest::default()
        }
    }
}

impl Spoken for Delta {
    const RULES: Rules = Rules::Incremental;

    fn spell(ask: &Ask, type_url: &str, nonce: &str) -> DeltaDiscoveryRequest {
        let held = ask.held.iter();
        let held = held.map(|(name, at)| ((*name).to_owned(), Version(*at).to_string()));
        DeltaDiscoveryRequest {
            type_url: type_url.into(),
            response_nonce: nonce.into(),
            resource_names_subscribe: super::strings(&ask.names),
            resource_names_unsubscribe: super::strings(&ask.unsubscribe),
            initial_resource_versions: held.collect(),
            error_detail: ask.reject.then(|| rejection("no")),
            ..DeltaDiscoveryRequest::default()
        }
    }
}

/// One stream, its mesh and the model of its client.
struct Talk<V: Spoken> {
    mesh: Mesh,
    client: Client<V>,
    model: Model,
    /// The client has read everything since something happened.
    dry: bool,
}

impl<V: Spoken> Talk<V> {
    fn new(mesh: Mesh) -> Self {
        Self {
            client: Client::new(mesh.clone(), Scope::Aggregated, "envoy"),
            model: Model::new(mesh.clone(), V::RULES),
            mesh,
            dry: false,
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Put(kind, name, version) => self.change(*kind, name, Some(*version)),
            Step::Remove(kind, name) => self.change(*kind, name, None),
            Step::Delete(name) => {
                for kind in TYPES {
                    self.change(kind, name, None);
                }
            }
            Step::Ask(ask) => self.ask(ask.clone()),
            Step::Read(count) => {
                for _ in 0..*count {
                    self.read();
                }
            }
            Step::Answer { kind, reject } => self.answer(*kind, *reject),
            Step::Pass(time) => self.pass(*time),
        }
    }

    fn change(&mut self, kind: ResourceType, name: &str, version: Option<u64>) {
        let before = self.mesh.content(kind);
        match version {
            Some(version) => self.mesh.put(kind, &format!("{name}@{version}")),
            None => self.mesh.remove(kind, name),
        }
        if before != self.mesh.content(kind) {
            self.model.touched(kind, name);
            self.dry = false;
        }
    }

    fn ask(&mut self, mut ask: Ask) {
        self.dry = false;
        let Some(kind) = ask.kind else {
            self.client.send(V::spell(&ask, UNKNOWN, ""));
            return;
        };
        let nonce = self.nonce(kind, ask.nonce);
        self.model.asked(kind, &mut ask, &nonce);
        self.client.send(V::spell(&ask, kind.type_url(), &nonce));
    }

    fn nonce(&self, kind: ResourceType, nonce: Nonce) -> String {
        let nonces = self.model.nonces(kind);
        match nonce {
            Nonce::Empty => String::new(),
            Nonce::Latest => nonces.last().cloned().unwrap_or_default(),
            Nonce::Stale => nonces.iter().rev().nth(1).cloned().unwrap_or_default(),
            Nonce::Foreign => {
                let next = TYPES[(kind as usize + 1) % 4];
                self.model.nonces(next).last().cloned().unwrap_or_default()
            }
            Nonce::Garbage => format!("+{}", nonces.last().map_or("1", String::as_str)),
        }
    }

    fn read(&mut self) -> Option<Response> {
        self.model.polled();
        let Some(response) = self.client.receive() else {
            self.dry = true;
            return None;
        };
        match ResourceType::from_type_url(&response.type_url) {
            Some(kind) => self.model.heard(kind, &response),
            None => assert!(response.resources.is_empty() && !response.removed.is_empty()),
        }
        Some(response)
    }

    fn answer(&mut self, kind: ResourceType, reject: bool) {
        if let Some((names, nonce)) = self.model.answer(kind) {
            let mut ask = Ask {
                kind: Some(kind),
                names,
                unsubscribe: Vec::new(),
                held: Vec::new(),
                nonce: Nonce::Latest,
                reject,
            };
            self.dry = false;
            self.model.asked(kind, &mut ask, &nonce);
            self.client.send(V::spell(&ask, kind.type_url(), &nonce));
        }
    }

    /// Nothing may become due but at the deadline that the machine gave.
    fn pass(&mut self, time: Duration) {
        let quiet = self
            .client
            .deadline()
            .is_none_or(|deadline| deadline > time);
        self.mesh.pass(time);
        if self.dry && quiet {
            self.model.polled();
            self.client.silent();
        }
        self.dry = false;
    }

    fn answer_everything(&mut self) {
        let mut responses = 0;
        loop {
            for kind in TYPES {
                self.answer(kind, false);
            }
            if self.read().is_none() {
                break;
            }
            responses += 1;
            assert!(responses < 100, "it never ends");
        }
    }

    /// The client acknowledges everything, and time passes, until nothing comes any more.
    fn settle(&mut self) {
        for _ in 0..8 {
            self.answer_everything();
            self.pass(GATE.max(HOLD));
        }
        self.answer_everything();
        // What was rejected often is offered again late.
        while let Some(deadline) = self.client.deadline() {
            self.pass(deadline);
            self.answer_everything();
        }
        self.client.silent();
        assert_eq!(self.client.deadline(), None);
        self.pass(Duration::from_hours(1));
        self.client.silent();
        self.model.check_settled();
    }

    /// A client that comes new to the same mesh is told the same versions.
    fn compare_with_a_fresh_client(&mut self) {
        let mut fresh = self.mesh.sotw();
        for kind in TYPES {
            fresh.ask(kind, &["*"]);
            let version = fresh.receive().unwrap().version;
            fresh.ack(kind);
            self.model
                .note_version(kind, &self.mesh.content(kind), &version);
        }
    }
}

fn lead<V: Spoken>(before: &[Step], steps: &[Step]) {
    let mesh = Mesh::empty();
    let mut talk = Talk::<V>::new(mesh);
    before.iter().chain(steps).for_each(|step| talk.take(step));
    talk.settle();
    talk.compare_with_a_fresh_client();
}

/// A mesh to begin with.
fn furnished() -> impl Strategy<Value = Vec<Step>> {
    let put = (kind(), name()).prop_map(|(kind, name)| Step::Put(kind, name, 1));
    prop::collection::vec(put, 0..12)
}

/// A client that asks for everything first, as sidecars do.
fn sidecar() -> Vec<Step> {
    let ask = |kind, names: &[&'static str]| {
        Step::Ask(Ask {
            kind: Some(kind),
            names: names.to_vec(),
            unsubscribe: Vec::new(),
            held: Vec::new(),
            nonce: Nonce::Empty,
            reject: false,
        })
    };
    vec![
        ask(ResourceType::Cluster, &["*"]),
        ask(ResourceType::Endpoint, &NAMES),
        ask(ResourceType::Listener, &["*"]),
        ask(ResourceType::Route, &NAMES),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn any_conversation_keeps_the_promises_in_the_state_of_the_world(
        mesh in furnished(), steps in prop::collection::vec(step(), 0..60)
    ) {
        lead::<Sotw>(&mesh, &steps);
    }

    #[test]
    fn any_conversation_keeps_the_promises_in_increments(
        mesh in furnished(), steps in prop::collection::vec(step(), 0..60)
    ) {
        lead::<Delta>(&mesh, &steps);
    }

    #[test]
    fn any_mesh_reaches_a_sidecar_in_the_state_of_the_world(
        mesh in furnished(), steps in prop::collection::vec(event(), 0..80)
    ) {
        lead::<Sotw>(&[mesh, sidecar()].concat(), &steps);
    }

    #[test]
    fn any_mesh_reaches_a_sidecar_in_increments(
        mesh in furnished(), steps in prop::collection::vec(event(), 0..80)
    ) {
        lead::<Delta>(&[mesh, sidecar()].concat(), &steps);
    }

    #[test]
    fn nonsense_never_makes_the_machine_panic(
        url in prop_oneof![Just(String::new()), ".{0,40}", kind().prop_map(|k| k.type_url().into())],
        names in prop::collection::vec(".{0,12}|\\*|a", 0..6),
        nonce in ".{0,12}|[0-9a-f]{1,20}",
        message in prop::option::of(".{0,2000}"),
        node in any::<bool>(),
    ) {
        let mesh = Mesh::whole("a");
        let (mut sotw, mut delta) = (mesh.sotw(), mesh.delta());
        if !node {
            (sotw.node, delta.node) = (None, None);
        }
        let error_detail = message.as_deref().map(rejection);
        let told = sotw.try_send(DiscoveryRequest {
            type_url: url.clone(),
            resource_names: names.clone(),
            response_nonce: nonce.clone(),
            error_detail: error_detail.clone(),
            ..DiscoveryRequest::default()
        });
        let expected = match (node, url.is_empty()) {
            (false, _) => Err(Refusal::MissingNode),
            (true, true) => Err(Refusal::MissingType),
            (true, false) => Ok(()),
        };
        prop_assert_eq!(&told, &expected);
        let told = delta.try_send(DeltaDiscoveryRequest {
            type_url: url.clone(),
            resource_names_subscribe: names.clone(),
            resource_names_unsubscribe: names.clone(),
            response_nonce: nonce,
            initial_resource_versions: names.into_iter().map(|name| (name, url.clone())).collect(),
            error_detail,
            ..DeltaDiscoveryRequest::default()
        });
        prop_assert_eq!(&told, &expected);
        for _ in 0..4 {
            sotw.receive();
            delta.receive();
        }
    }
}
