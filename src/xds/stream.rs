//! The protocol machine of one stream: requests in, responses out, in an order that never breaks
//! traffic.
//!
//! It refuses to know sockets, tasks and the clock (the time is an argument). It holds what the two
//! protocol variants have in common: nonces, acknowledgement, and the order between the types.
//!
//! - One response of a type is outstanding at a time (or one chunked set). Changes that arrive before
//!   its ACK coalesce: the next response has the latest state.
//! - Make before break: clusters, endpoints, listeners, routes, in this order. Listeners and routes
//!   wait for the ACK of the clusters; removals of clusters and endpoints wait until the routes are
//!   acknowledged. Both waits are bounded, and a NACK ends them.
//! - A cluster or listener that is sent makes what it refers to be sent once more, since Envoy warms
//!   the new one and waits for it.
//!
//! Source: the xDS protocol text, "ACK/NACK and resource type instance version" and "eventual
//! consistency considerations".

mod standing;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

pub use self::standing::Lag;
use super::{
    rejection::Rejection,
    request::Request,
    subscription::{Payload, Subscription},
};
use crate::{
    resource::{ClientKind, Naming, Profile, Resource, ResourceType, Stamp, Stamps, Version},
    snapshot::{ResourceSet, Snapshots, View},
};

/// How long listeners and routes wait for the ACK of the clusters sent before them.
pub const GATE: Duration = Duration::from_secs(2);

/// The most of a client's error text that is kept.
const ERROR_LEN: usize = 1024;

/// The longest node id: it is kept and shown for as long as the stream lives.
const NODE_ID_LEN: usize = 1024;

/// A protocol variant's share in one resource type: what is subscribed and what is due.
pub trait Variant: Default {
    type Request: Request;

    /// Takes over what the request subscribes to.
    fn request(&mut self, request: &mut Self::Request, asked: Asked<'_>);

    /// What it is subscribed to.
    fn subscription(&self) -> &Subscription;

    /// How much of its client's making it holds, in names.
    fn footprint(&self) -> usize {
        let subscription = self.subscription();
        subscription.len().max(subscription.pending.len())
    }

    /// What is to be sent now, if anything. With `hold`, which is the time now, removals are kept
    /// back for as long as they may be.
    fn collect(
        &mut self,
        set: &ResourceSet,
        hold: Option<Instant>,
    ) -> Result<Option<Payload>, Lagging>;

    /// Whether it follows a collection whose name begins so.
    fn follows(&self, _prefix: &str) -> bool {
        false
    }

    /// The names that were asked for and that nothing is registered under, as of the last response.
    fn unregistered(&self) -> impl Iterator<Item = &Arc<str>> {
        std::iter::empty()
    }

    /// Whether everything that is wanted of the set was put into a response.
    fn caught_up(&self, set: &ResourceSet) -> bool;

    /// Until when removals are kept back, or a while before; `None` if none are.
    fn holds_until(&self) -> Option<Instant>;

    /// The client rejected the response of this version.
    fn rejected(&mut self, version: Version);

    /// Whatever was outstanding is answered, by an ACK or a NACK.
    fn answered(&mut self);

    /// Whether the client does not have something because it rejected it.
    fn lacks_some(&self) -> bool;

    /// Has what the client rejected sent again, where it did not change since.
    fn offer_again(&mut self, set: &ResourceSet);

    /// What refers to this resource was sent, so it has to follow though nothing in it changed.
    fn resend(&mut self, name: &Arc<str>, set: &ResourceSet);
}

/// What a variant has to know of a request beside its content.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub kind: ResourceType,
    /// The type's first on this stream.
    pub first: bool,
    /// A wildcard holds nothing: this client is told of this type by name only.
    pub only_named: bool,
    /// How names are answered that no resource has, if they are.
    pub naming: Option<(&'a Arc<dyn Naming>, Profile)>,
    /// What this stream's collections are told apart by.
    pub stamps: Stamps,
}

/// The change log no longer reaches back to what this stream has seen.
#[derive(Debug)]
pub struct Lagging;

/// Why a stream ends.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the first message of a stream must carry `node`")]
    MissingNode,
    #[error("the id of `node` has {0} bytes; use {NODE_ID_LEN} at most")]
    LongNode(usize),
    #[error("`type_url` is empty; name the type of resource that is asked for")]
    MissingType,
    #[error("`type_url` is `{asked}`, but this service serves `{served}` alone; use ADS")]
    ForeignType { asked: String, served: &'static str },
    #[error("the stream fell too far behind; reconnect with the versions that are held")]
    Lagging,
}

/// What a stream serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every type, in order.
    Aggregated,
    Only(ResourceType),
}

/// One message to the client, all but encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub type_url: String,
    /// Never empty, never used twice on a stream.
    pub nonce: String,
    pub version: String,
    pub resources: Vec<Arc<Resource>>,
    /// From which of the resources on which stamp counts.
    pub stamps: Vec<(usize, Stamp)>,
    /// Incremental variant only.
    pub removed: Vec<Arc<str>>,
    /// Names that were asked for and that do not exist: for clients that know `resource_errors`.
    pub missing: Vec<Arc<str>>,
}

impl Response {
    /// What a single request gets when nothing that it names exists.
    pub fn empty(kind: ResourceType) -> Self {
        Self {
            type_url: kind.type_url().to_owned(),
            nonce: nonce_text(1),
            version: Version::default().to_string(),
            resources: Vec::new(),
            stamps: Vec::new(),
            removed: Vec::new(),
            missing: Vec::new(),
        }
    }
}

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    pub node_id: String,
    /// What an operator should know about how it is served.
    pub note: Option<String>,
    pub profile: Profile,
}

/// One stream of either variant.
#[derive(Debug)]
pub struct Stream<V> {
    scope: Scope,
    /// Whether sidecars load services on demand unless they say otherwise.
    on_demand: bool,
    /// What the collections of this stream are told apart by, if sidecars take endpoints one by one.
    stamps: Option<Stamps>,
    /// Answers names of gRPC clients that no resource has.
    naming: Option<Arc<dyn Naming>>,
    client: Option<Client>,
    /// Most streams use few of them.
    lanes: [Option<Box<Lane<V>>>; ResourceType::ALL.len()],
    /// Answers that need no snapshot.
    ready: VecDeque<Response>,
    nonce: u64,
}

/// One type's half of the conversation.
#[derive(Debug, Default)]
struct Lane<V> {
    variant: V,
    outstanding: Option<Outstanding>,
    acked: Option<Version>,
    rejection: Option<Rejection>,
    /// When what was rejected is offered again.
    offer_at: Option<Instant>,
    /// The client brought versions along, and may be up to date without a word of ours.
    resumed: bool,
}

/// A response, or a chunked set of them, that waits for its ACK.
#[derive(Debug)]
struct Outstanding {
    first: u64,
    last: u64,
    since: Instant,
    version: Version,
    /// More chunks follow.
    open: bool,
    /// The latest nonce that was answered; 0 if none was.
    answered: u64,
}

impl<V: Variant> Stream<V> {
    pub fn new(scope: Scope) -> Self {
        Self {
            scope,
            on_demand: false,
            stamps: None,
            naming: None,
            client: None,
            lanes: [const { None }; ResourceType::ALL.len()],
            ready: VecDeque::new(),
            nonce: 0,
        }
    }

    /// Whether sidecars load services on demand unless they say otherwise; at first they do not.
    #[must_use]
    pub fn on_demand(self, on_demand: bool) -> Self {
        Self { on_demand, ..self }
    }

    /// Has sidecars that can take the endpoints of large services one by one, told apart from those
    /// of other streams by these stamps.
    #[must_use]
    pub fn increments(self, stamps: Option<Stamps>) -> Self {
        Self { stamps, ..self }
    }

    /// Has names of gRPC clients that no resource has answered this way.
    #[must_use]
    pub fn naming(self, naming: Option<Arc<dyn Naming>>) -> Self {
        Self { naming, ..self }
    }

    /// Known from the first message on.
    pub fn client(&self) -> Option<&Client> {
        self.client.as_ref()
    }

    /// Takes in one message of the client; returns how many responses it rejected in a row, if it rejects one.
    pub fn request(
        &mut self,
        mut request: V::Request,
        now: Instant,
    ) -> Result<Option<u32>, Refusal> {
        let profile = if let Some(client) = &self.client {
            client.profile
        } else {
            // A stream of assignments alone has nowhere to take their collections from.
            let increments = self.stamps.is_some() && self.scope == Scope::Aggregated;
            let client = introduced(&request, self.on_demand, increments)?;
            self.client.insert(client).profile
        };
        let Some(kind) = self.kind_of(&request)? else {
            self.answer_unknown_type(&request);
            return Ok(None);
        };
        let slot = &mut self.lanes[kind as usize];
        let first = slot.is_none();
        let lane = slot.get_or_insert_default();
        lane.resumed |= first && request.resumes();
        let rejects = lane.acknowledge(&request, now);
        let only_named = profile.is_by_name_only(kind);
        let naming = self
            .naming
            .as_ref()
            .filter(|_| profile.kind == ClientKind::Grpc);
        let naming = naming.map(|naming| (naming, profile));
        lane.variant.request(
            &mut request,
            Asked {
                kind,
                first,
                only_named,
                naming,
                stamps: self.stamps.unwrap_or_default(),
            },
        );
        Ok(rejects)
    }

    /// Whether there is an answer that waits for nothing but to be sent.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether a response waits for its ACK, so that what changed meanwhile may still be due.
    pub fn is_waiting(&self) -> bool {
        let mut lanes = self.lanes.iter().flatten();
        lanes.any(|lane| lane.outstanding.is_some())
    }

    /// What each type of this stream waits for.
    pub fn interests(&self) -> impl Iterator<Item = (ResourceType, &Subscription)> {
        let lanes = ResourceType::ALL.into_iter().zip(&self.lanes);
        lanes.filter_map(|(kind, lane)| Some((kind, lane.as_ref()?.variant.subscription())))
    }

    /// The next message to send, if one is due. Call it until there is none after every request,
    /// every new snapshot and at every deadline.
    pub fn poll(
        &mut self,
        snapshots: &Snapshots,
        now: Instant,
    ) -> Result<Option<Response>, Refusal> {
        if let Some(response) = self.ready.pop_front() {
            return Ok(Some(response));
        }
        let Some(client) = self.client.as_ref().filter(|_| snapshots.loaded) else {
            return Ok(None);
        };
        let view = snapshots.view(client.profile);
        for kind in ResourceType::ALL {
            let hold = is_needed_by_routes(kind) && !self.routes_are_settled(view);
            if let Some(response) = self.send(kind, view, hold, now)? {
                return Ok(Some(response));
            }
        }
        self.release(view, now)
    }

    /// When to poll again though nothing happened: a bounded wait ends.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let routes = ResourceType::ALL.into_iter();
        let gated = routes
            .filter(|kind| !is_needed_by_routes(*kind))
            .any(|kind| self.lanes[kind as usize].is_some());
        let gate = self
            .clusters_unacked_since()
            .filter(|_| gated)
            .map(|since| since + GATE);
        let holds = self.lanes.iter().flatten();
        let holds = holds.filter_map(|lane| lane.variant.holds_until());
        let offers = self.lanes.iter().flatten();
        let offers = offers.filter_map(|lane| lane.offer_at);
        gate.into_iter()
            .chain(holds)
            .chain(offers)
            .filter(|deadline| *deadline > now)
            .min()
    }

    /// How much of its client's making it holds, in names of all types.
    pub fn footprint(&self) -> usize {
        let lanes = self.lanes.iter().flatten();
        lanes.map(|lane| lane.variant.footprint()).sum()
    }

    /// `None` for a type that nobody here knows.
    fn kind_of(&self, request: &V::Request) -> Result<Option<ResourceType>, Refusal> {
        let url = request.type_url();
        match self.scope {
            Scope::Aggregated if url.is_empty() => Err(Refusal::MissingType),
            Scope::Aggregated => Ok(ResourceType::from_type_url(url)),
            Scope::Only(kind) if url.is_empty() || url == kind.type_url() => Ok(Some(kind)),
            Scope::Only(kind) => Err(Refusal::ForeignType {
                asked: shorten(url),
                served: kind.type_url(),
            }),
        }
    }

    /// Names of a type that is not served do not exist; where the protocol can say so, it is said.
    fn answer_unknown_type(&mut self, request: &V::Request) {
        let removed = request.names_that_do_not_exist();
        if removed.is_empty() {
            return;
        }
        let nonce = self.next_nonce();
        self.ready.push_back(Response {
            type_url: request.type_url().to_owned(),
            nonce: nonce_text(nonce),
            version: Version::default().to_string(),
            resources: Vec::new(),
            stamps: Vec::new(),
            missing: removed.clone(),
            removed,
        });
    }

    fn send(
        &mut self,
        kind: ResourceType,
        view: View<'_>,
        hold: bool,
        now: Instant,
    ) -> Result<Option<Response>, Refusal> {
        if self.gate_is_closed(kind, now) {
            return Ok(None);
        }
        let Some(lane) = self.lanes[kind as usize]
            .as_mut()
            .filter(|lane| lane.is_free())
        else {
            return Ok(None);
        };
        let hold = hold.then_some(now);
        if lane.offer_at.take_if(|at| *at <= now).is_some() {
            lane.variant.offer_again(view.set(kind));
        }
        let payload = lane.variant.collect(view.set(kind), hold);
        let Some(mut payload) = payload.map_err(|Lagging| Refusal::Lagging)? else {
            lane.nothing_due(view.set(kind).version());
            return Ok(None);
        };
        self.stamp(kind, &mut payload);
        let nonce = self.next_nonce();
        if let Some(lane) = &mut self.lanes[kind as usize] {
            lane.sent(nonce, &payload, now);
        }
        self.resend_what_it_refers_to(kind, &payload, view);
        Ok(Some(Response {
            type_url: kind.type_url().to_owned(),
            nonce: nonce_text(nonce),
            version: payload.version.to_string(),
            resources: payload.resources,
            stamps: payload.stamps,
            removed: payload.removed,
            missing: payload.missing,
        }))
    }

    /// Sends the removals that were kept back, once no route needs what they remove.
    fn release(&mut self, view: View<'_>, now: Instant) -> Result<Option<Response>, Refusal> {
        let mut lanes = self.lanes.iter().flatten();
        let holds = lanes.any(|lane| lane.variant.holds_until().is_some());
        if !holds || !self.routes_are_settled(view) {
            return Ok(None);
        }
        let kinds = ResourceType::ALL.into_iter();
        for kind in kinds.filter(|kind| is_needed_by_routes(*kind)) {
            if let Some(response) = self.send(kind, view, false, now)? {
                return Ok(Some(response));
            }
        }
        Ok(None)
    }

    /// Whether every route and listener of this stream is as the snapshot has it and acknowledged.
    fn routes_are_settled(&self, view: View<'_>) -> bool {
        let routes = ResourceType::ALL.into_iter();
        routes
            .filter(|kind| !is_needed_by_routes(*kind))
            .all(|kind| {
                self.lanes[kind as usize].as_ref().is_none_or(|lane| {
                    lane.outstanding.is_none() && lane.variant.caught_up(view.set(kind))
                })
            })
    }

    fn gate_is_closed(&self, kind: ResourceType, now: Instant) -> bool {
        !is_needed_by_routes(kind)
            && self
                .clusters_unacked_since()
                .is_some_and(|since| now < since + GATE)
    }

    fn clusters_unacked_since(&self) -> Option<Instant> {
        let lane = self.lanes[ResourceType::Cluster as usize].as_ref()?;
        lane.outstanding
            .as_ref()
            .map(|outstanding| outstanding.since)
    }

    /// An assignment that is told, be it once more, names collections that are new to the client.
    fn stamp(&mut self, kind: ResourceType, payload: &mut Payload) {
        let Some(stamps) = self
            .stamps
            .as_mut()
            .filter(|_| kind == ResourceType::Endpoint)
        else {
            return;
        };
        let resources = payload.resources.iter().enumerate();
        let stamped = resources.filter(|(_, resource)| resource.is_stamped());
        payload.stamps = stamped.map(|(at, _)| (at, stamps.issue())).collect();
    }

    fn resend_what_it_refers_to(&mut self, kind: ResourceType, payload: &Payload, view: View<'_>) {
        let Some(referred) = kind.refers_to() else {
            return;
        };
        if let Some(lane) = &mut self.lanes[referred as usize] {
            for name in payload.renewed() {
                lane.variant.resend(name, view.set(referred));
            }
        }
    }

    fn next_nonce(&mut self) -> u64 {
        self.nonce += 1;
        self.nonce
    }
}

impl<V: Variant> Lane<V> {
    /// Nothing is outstanding, or a chunked set is under way.
    fn is_free(&self) -> bool {
        self.outstanding
            .as_ref()
            .is_none_or(|outstanding| outstanding.open)
    }

    fn sent(&mut self, nonce: u64, payload: &Payload, now: Instant) {
        let before = self.outstanding.as_ref();
        let (first, answered) = before.map_or((nonce, 0), |before| (before.first, before.answered));
        let (version, open) = (payload.version, payload.more);
        self.outstanding = Some(Outstanding {
            first,
            last: nonce,
            since: now,
            version,
            open,
            answered,
        });
    }

    /// What the client holds is what there is, or the rest of a chunked set vanished before it was
    /// sent; what was sent may be answered already.
    fn nothing_due(&mut self, version: Version) {
        if self.resumed {
            self.acked.get_or_insert(version);
        }
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.open = false;
            self.free_if_answered(false);
        }
    }

    /// `rejected`: the last answer was a NACK.
    fn free_if_answered(&mut self, rejected: bool) {
        let done = |outstanding: &mut Outstanding| {
            !outstanding.open && outstanding.answered == outstanding.last
        };
        let Some(outstanding) = self.outstanding.take_if(done) else {
            return;
        };
        self.variant.answered();
        if !rejected && !self.variant.lacks_some() {
            self.rejection = None;
        }
        if self.rejection.is_none() {
            self.acked = Some(outstanding.version);
        }
    }

    /// A request is an ACK or a NACK only by the nonce of a response that is outstanding. Returns
    /// how many responses in a row were rejected, if it is a NACK.
    fn acknowledge(&mut self, request: &V::Request, now: Instant) -> Option<u32> {
        let outstanding = self.outstanding.as_mut()?;
        let nonce = parse_nonce(request.nonce())?;
        if !(outstanding.first..=outstanding.last).contains(&nonce) {
            return None;
        }
        outstanding.answered = outstanding.answered.max(nonce);
        let version = outstanding.version;
        let count = request.error().map(|error| {
            self.variant.rejected(version);
            self.note_rejection(shorten(error), now)
        });
        self.free_if_answered(count.is_some());
        count
    }

    fn note_rejection(&mut self, error: String, now: Instant) -> u32 {
        match &mut self.rejection {
            Some(rejection) => rejection.again(error),
            None => self.rejection = Some(Rejection::first(error, now)),
        }
        let rejection = self.rejection.as_ref();
        self.offer_at = rejection.map(|rejection| now + rejection.pause());
        rejection.map_or(0, |rejection| rejection.count)
    }
}

fn introduced(
    request: &impl Request,
    on_demand: bool,
    increments: bool,
) -> Result<Client, Refusal> {
    let client = request
        .client(on_demand, increments)
        .ok_or(Refusal::MissingNode)?;
    if client.node_id.len() > NODE_ID_LEN {
        return Err(Refusal::LongNode(client.node_id.len()));
    }
    Ok(client)
}

/// Clusters and endpoints are made before the routes that need them and removed after.
fn is_needed_by_routes(kind: ResourceType) -> bool {
    use ResourceType::{Cluster, Endpoint, LbEndpoint};
    matches!(kind, Cluster | Endpoint | LbEndpoint)
}

fn nonce_text(nonce: u64) -> String {
    format!("{nonce:x}")
}

/// `None` for what is not letter by letter a nonce of ours.
fn parse_nonce(text: &str) -> Option<u64> {
    let nonce = u64::from_str_radix(text, 16).ok()?;
    (nonce_text(nonce) == text).then_some(nonce)
}

pub(super) fn shorten(text: &str) -> String {
    let end = text
        .char_indices()
        .nth(ERROR_LEN)
        .map_or(text.len(), |(at, _)| at);
    text[..end].to_owned()
}
