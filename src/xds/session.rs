//! One stream's life: it feeds the protocol machine with requests, snapshots and time, and turns
//! what the machine answers into the body of the HTTP response.
//!
//! It refuses to know the protocol. There is no task for a stream: the HTTP connection drives the
//! body, so a client that does not read costs nobody anything and meets the latest state when it
//! reads again, and when the connection goes, everything of the stream goes with it.
//! Invariant: a message that was begun is sent to its end.

use std::{
    convert::Infallible,
    hash::{BuildHasher, RandomState},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http::HeaderMap;
use http_body::Frame;
use http_body_util::StreamBody;
use prometheus::IntGauge;
use tokio::{
    runtime::Handle,
    time::{Sleep, sleep_until},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Code, Status, Streaming};
use tracing::{debug, warn};

use super::{
    admission::{Admission, REFUSALS, Seat},
    body::{self, Form, Pieces},
    clients::{Clients, Inspect, Membership},
    fanout::{Bell, Fanout, Interest},
    lines::Lines,
    metrics::Metrics,
    request::Request,
    status::{State, TypeStatus},
    stream::{Lag, Refusal, Response, Scope, Stream, Variant, shorten},
};
use crate::{
    resource::{Naming, Resource, ResourceType, Stamps},
    snapshot::{ResourceSet, Snapshots},
};

/// Requests that are taken in before an answer is looked for; a client may send without end.
const REQUESTS_AT_ONCE: usize = 64;

/// The lines about rejected responses.
static REJECTIONS: Lines = Lines::new(10);

/// gRPC clients refuse larger messages by default.
const LARGE: usize = 4 << 20;

/// What every stream of a server shares.
#[derive(Clone, Debug)]
pub struct Context {
    pub fanout: Fanout,
    pub clients: Clients,
    pub metrics: Metrics,
    pub admission: Admission,
    /// Whether sidecars load services on demand unless they say otherwise.
    pub on_demand: bool,
    /// Where streams are woken from.
    pub waking: Handle,
    /// Whether sidecars that can take the endpoints of large services one by one do.
    pub increments: bool,
    /// Answers names of gRPC clients that no resource has.
    pub naming: Option<Arc<dyn Naming>>,
    /// Cancelled when the server drains.
    pub stop: CancellationToken,
}

/// One open stream.
pub struct Session<V: Variant> {
    context: Context,
    requests: Streaming<V::Request>,
    machine: Arc<Mutex<Stream<V>>>,
    form: Form,
    seat: Seat,
    membership: Option<Membership>,
    unregistered: Unregistered,
    bell: Bell,
    /// These two are kept from wait to wait, since taking a place anew costs locks that all share.
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    timer: Pin<Box<Sleep>>,
    /// Pieces of the message under way.
    pieces: Option<Pieces>,
    /// When the change that the next response shows was seen in the registry.
    observed: Option<Instant>,
    answered: bool,
    ended: bool,
}

/// Why a session waits no longer.
enum Wake<R> {
    Request(Result<R, Status>),
    /// The client sends no more.
    Closed,
    Snapshot,
    Deadline,
    Stop,
}

impl<V> Session<V>
where
    V: Variant + Send + 'static,
    V::Request: Send,
{
    pub fn new(
        context: Context,
        scope: Scope,
        form: Form,
        requests: Streaming<V::Request>,
        seat: Seat,
    ) -> Self {
        // Keyed at random, so that no other stream of any replica begins at this number.
        let first = || RandomState::new().hash_one(0_u64);
        let stamps = context.increments.then(|| Stamps::new(first()));
        let machine = Stream::new(scope).on_demand(context.on_demand);
        let machine = machine.increments(stamps).naming(context.naming.clone());
        let unregistered = context.metrics.unregistered.clone();
        Self {
            bell: context.fanout.bell(),
            stopped: Box::pin(context.stop.clone().cancelled_owned()),
            timer: Box::pin(sleep_until(seat.expires.into())),
            context,
            requests,
            machine: Arc::new(Mutex::new(machine)),
            form,
            seat,
            membership: None,
            unregistered: Unregistered::new(unregistered),
            pieces: None,
            observed: None,
            answered: false,
            ended: false,
        }
    }

    /// The body of the HTTP response; driving it is all there is to do.
    pub fn into_body(self) -> impl http_body::Body<Data = Bytes, Error = Infallible> + Send {
        StreamBody::new(stream::unfold(self, |mut session| async {
            let frame = session.next_frame().await?;
            Some((Ok(frame), session))
        }))
    }

    async fn next_frame(&mut self) -> Option<Frame<Bytes>> {
        if let Some(piece) = self.pieces.as_mut().and_then(Iterator::next) {
            return Some(Frame::data(piece));
        }
        self.pieces = None;
        if self.ended {
            return None;
        }
        match self.next_response().await {
            Ok(response) => self.begin(response),
            Err(status) => return Some(self.end(&status)),
        }
        self.pieces.as_mut()?.next().map(Frame::data)
    }

    /// Waits until the machine has something to say; the error is the stream's end.
    async fn next_response(&mut self) -> Result<Response, Status> {
        loop {
            self.take_waiting_requests()?;
            let now = Instant::now();
            let snapshots = self.context.fanout.current();
            let polled = self.machine().poll(&snapshots, now);
            let unregistered = self.machine().unregistered().count();
            self.unregistered.set(unregistered);
            if let Some(response) = polled.map_err(|refusal| refused(&refusal))? {
                return Ok(response);
            }
            drop(snapshots);
            if !self.machine().is_waiting() {
                self.observed = None;
            }
            let expires = self.answered.then_some(self.seat.expires);
            if expires.is_some_and(|expires| now >= expires) {
                return Err(Status::ok("the stream is old enough; reconnect"));
            }
            let deadline = self.machine().deadline(now);
            match self.wait(deadline.into_iter().chain(expires).min()).await {
                Wake::Request(request) => self.take(request)?,
                Wake::Snapshot => {
                    // The oldest change that is not shown yet counts.
                    let seen = self.context.fanout.current().observed;
                    self.observed = self.observed.or(seen);
                }
                Wake::Deadline => {}
                Wake::Closed => return Err(Status::ok("")),
                Wake::Stop => return Err(Status::unavailable("the server stops; reconnect")),
            }
        }
    }

    async fn wait(&mut self, deadline: Option<Instant>) -> Wake<V::Request> {
        if let Some(deadline) = deadline.map(Into::into)
            && self.timer.deadline() != deadline
        {
            self.timer.as_mut().reset(deadline);
        }
        tokio::select! {
            biased;
            () = self.stopped.as_mut() => Wake::Stop,
            request = self.requests.next() => request.map_or(Wake::Closed, Wake::Request),
            () = self.bell.rung() => Wake::Snapshot,
            () = self.timer.as_mut(), if deadline.is_some() => Wake::Deadline,
        }
    }

    /// Of many requests that wait, the last state of the subscription is what counts. None is taken
    /// in before what was answered to the last ones is sent, so that a flood cannot pile answers up.
    fn take_waiting_requests(&mut self) -> Result<(), Status> {
        for _ in 0..REQUESTS_AT_ONCE {
            if self.machine().has_ready() {
                break;
            }
            match self.requests.next().now_or_never() {
                Some(Some(request)) => self.take(request)?,
                Some(None) | None => break,
            }
        }
        Ok(())
    }

    fn take(&mut self, request: Result<V::Request, Status>) -> Result<(), Status> {
        let request = request.map_err(|status| self.seat.unread(status))?;
        let kind = ResourceType::from_type_url(request.type_url());
        let error = request.error().map(shorten);
        let outcome = self.machine().request(request, Instant::now());
        let rejects = outcome.map_err(|refusal| refused(&refusal))?;
        let names = self.machine().footprint();
        self.seat.check_names(names)?;
        self.join();
        if let (Some(error), Some(rejections)) = (error, rejects) {
            self.note_rejection(kind, &error, rejections);
        }
        self.listen();
        Ok(())
    }

    /// Takes a place in the list of clients once it is known who asks.
    fn join(&mut self) {
        if self.membership.is_some() {
            return;
        }
        let Some(client) = self.machine().client().cloned() else {
            return;
        };
        debug!(
            node = client.node_id,
            kind = client.profile.kind.as_str(),
            "stream opened"
        );
        let stream = self.machine.clone() as Arc<dyn Inspect>;
        self.membership = Some(self.context.clients.join(client, self.seat.address, stream));
    }

    /// Has the bell rung by what this stream is subscribed to now.
    fn listen(&mut self) {
        let machine = self.machine.clone();
        let machine = machine.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(client) = machine.client() else {
            return;
        };
        for (kind, subscription) in machine.interests() {
            let interest = if subscription.wildcard {
                Interest::All
            } else {
                Interest::Names(&subscription.names)
            };
            self.bell
                .listen(client.profile.edition(kind), kind, &interest);
        }
    }

    /// Only the first of several rejections is a warning, since what was rejected is offered again and again.
    fn note_rejection(&self, kind: Option<ResourceType>, error: &str, rejections: u32) {
        let kind = kind.map_or("unknown", ResourceType::as_str);
        self.context.metrics.nacks.with_label_values(&[kind]).inc();
        let node = self.machine().client().map(|client| client.node_id.clone());
        if rejections > 1 {
            debug!(
                node,
                r#type = kind,
                error,
                rejections,
                "a client rejected a response again"
            );
        } else if let Some(left_out) = REJECTIONS.next(Instant::now()) {
            warn!(
                node,
                r#type = kind,
                error,
                left_out,
                "a client rejected a response; `meshkeeper clients` lists all that reject"
            );
        }
    }

    fn begin(&mut self, response: Response) {
        self.answered = true;
        let kind = ResourceType::from_type_url(&response.type_url);
        let kind = kind.map_or("unknown", ResourceType::as_str);
        self.context
            .metrics
            .responses
            .with_label_values(&[kind])
            .inc();
        if let Some(observed) = self.observed.take() {
            self.context
                .metrics
                .propagation
                .observe(observed.elapsed().as_secs_f64());
        }
        let pieces = body::encode(response, self.form);
        let length = pieces.message_len();
        self.pieces = Some(pieces);
        if length > LARGE {
            self.context
                .metrics
                .oversized
                .with_label_values(&[kind])
                .inc();
            warn!(
                r#type = kind,
                length, "a response over 4 MiB cannot be split"
            );
        }
    }

    fn end(&mut self, status: &Status) -> Frame<Bytes> {
        self.ended = true;
        if status.code() == Code::InvalidArgument
            && let Some(left_out) = REFUSALS.next(Instant::now())
        {
            let (address, reason) = (self.seat.address, status.message());
            warn!(?address, reason, left_out, "stream refused");
        }
        let mut trailers = HeaderMap::new();
        if status.add_header(&mut trailers).is_err() {
            trailers.insert("grpc-status", (Code::Internal as i32).into());
        }
        Frame::trailers(trailers)
    }

    fn machine(&self) -> MutexGuard<'_, Stream<V>> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One stream's share in the number of names that are asked for and not registered.
#[derive(Debug)]
struct Unregistered {
    all: IntGauge,
    count: i64,
}

impl Unregistered {
    fn new(all: IntGauge) -> Self {
        Self { all, count: 0 }
    }

    fn set(&mut self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        if count != self.count {
            self.all.add(count - self.count);
            self.count = count;
        }
    }
}

impl Drop for Unregistered {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl<V: Variant + Send> Inspect for Mutex<Stream<V>> {
    fn types(&self) -> Vec<(ResourceType, TypeStatus)> {
        self.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .status()
            .collect()
    }

    fn lags(&self, snapshots: &Snapshots) -> Vec<(ResourceType, Lag)> {
        let machine = self.lock().unwrap_or_else(PoisonError::into_inner);
        machine.lags(snapshots)
    }

    fn wants(&self, kind: ResourceType, name: &str) -> bool {
        let machine = self.lock().unwrap_or_else(PoisonError::into_inner);
        let mut interests = machine.interests();
        interests.any(|(of, subscription)| of == kind && subscription.wants(name))
    }

    fn state_of_collections(&self, prefix: &str) -> Option<State> {
        let machine = self.lock().unwrap_or_else(PoisonError::into_inner);
        machine.state_of_collections(prefix)
    }

    fn misses(&self, name: &str) -> bool {
        let machine = self.lock().unwrap_or_else(PoisonError::into_inner);
        machine.unregistered().any(|missing| **missing == *name)
    }

    fn served(&self, kind: ResourceType, set: &ResourceSet) -> Vec<Arc<Resource>> {
        let machine = self.lock().unwrap_or_else(PoisonError::into_inner);
        let interest = machine.interests().find(|(k, _)| *k == kind);
        let wanted = interest
            .into_iter()
            .flat_map(|(_, subscription)| set.matching(|name| subscription.wants(name)).cloned());
        wanted.collect()
    }
}

impl<V: Variant> std::fmt::Debug for Session<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("seat", &self.seat)
            .finish_non_exhaustive()
    }
}

pub(super) fn refused(refusal: &Refusal) -> Status {
    match refusal {
        Refusal::Lagging => Status::unavailable(refusal.to_string()),
        _ => Status::invalid_argument(refusal.to_string()),
    }
}
