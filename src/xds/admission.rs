//! Who is let in, how fast and for how long, so that no number of clients brings the server down.
//!
//! It refuses to know what is served. A stream holds a [`Seat`] for as long as it is open; new ones
//! take their seats at a bounded pace and wait for their turn within bounds, so that a fleet that
//! comes back at once is served at once no faster than those already connected can bear.
//! Invariant: whoever is refused is told why and what to change, and is counted.

use std::{
    collections::hash_map::RandomState,
    fmt,
    hash::{BuildHasher, Hasher},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus::{IntCounterVec, IntGauge, Opts, Registry, core::Collector};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::warn;

use super::{age, lines::Lines, pace::Pace};

/// The longest that a new stream waits for its turn. gRPC clients give up on a resource after 15 s.
const PATIENCE: Duration = Duration::from_secs(10);

/// The lines about streams that are refused for what they ask.
pub(super) static REFUSALS: Lines = Lines::new(10);

/// What one server takes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub max_streams: usize,
    /// Names that one stream subscribes to, of all types.
    pub max_names: usize,
    /// A request grows with the mesh: it names every resource that a returning client holds.
    pub max_request_bytes: usize,
    pub new_streams_per_second: u32,
    /// Give or take a fifth.
    pub max_stream_age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_streams: 20_000,
            max_names: 100_000,
            max_request_bytes: 64 << 20,
            new_streams_per_second: 4_000,
            max_stream_age: Duration::from_secs(1800),
        }
    }
}

/// Lets streams in.
#[derive(Clone)]
pub struct Admission {
    gate: Arc<Gate>,
}

struct Gate {
    limits: Limits,
    taken: AtomicUsize,
    pace: Mutex<Pace>,
    metrics: Metrics,
}

/// The right to one open stream; it is free again when this is dropped.
pub struct Seat {
    gate: Arc<Gate>,
    /// The peer, where the transport tells it.
    pub address: Option<SocketAddr>,
    /// When the stream is to end.
    pub expires: Instant,
}

#[derive(Clone, Debug)]
struct Metrics {
    waiting: IntGauge,
    refused: IntCounterVec,
}

/// Why a stream is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("this server has {0} streams open, its limit; add a replica or raise `xds.maxStreams`")]
    Streams(usize),
    #[error(
        "new streams come faster than the {0} a second that are let in; come back later, add a \
         replica or raise `xds.newStreamsPerSecond`"
    )]
    Pace(u32),
    #[error(
        "the stream subscribes to {names} names, over the limit of {limit}; subscribe to fewer or to \
         all by `*`, or raise `xds.maxNames`"
    )]
    Names { names: usize, limit: usize },
    #[error(
        "the request is larger than the {0} bytes that are read; subscribe to fewer names, or raise \
         `xds.maxRequestBytes`"
    )]
    Request(usize),
}

impl Admission {
    pub fn register(limits: Limits, registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self::new(limits, Metrics::register(registry)?))
    }

    fn new(limits: Limits, metrics: Metrics) -> Self {
        let gate = Gate {
            limits,
            taken: AtomicUsize::new(0),
            pace: Mutex::new(Pace::new(limits.new_streams_per_second)),
            metrics,
        };
        Self {
            gate: Arc::new(gate),
        }
    }

    /// The same limits once more, for streams of another service: neither takes the other's seats.
    #[must_use]
    pub fn another(&self) -> Self {
        Self::new(self.gate.limits, self.gate.metrics.clone())
    }

    pub fn limits(&self) -> &Limits {
        &self.gate.limits
    }

    /// Waits for a turn; the error is for the client.
    pub async fn admit(
        &self,
        address: Option<SocketAddr>,
        stop: &CancellationToken,
    ) -> Result<Seat, Status> {
        let mut seat = self.seat(address)?;
        let wait = self.turn()?;
        if !wait.is_zero() {
            let _waiting = Waiting::new(&self.gate.metrics.waiting);
            tokio::select! {
                () = stop.cancelled() => {
                    return Err(Status::unavailable("the server stops; reconnect"));
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
        seat.expires = Instant::now() + age::of_stream(self.limits().max_stream_age, chance());
        Ok(seat)
    }

    fn seat(&self, address: Option<SocketAddr>) -> Result<Seat, Status> {
        // Taken before it is looked at: of two that come at once only one gets the last seat.
        let before = self.gate.taken.fetch_add(1, Ordering::Relaxed);
        let seat = Seat {
            gate: self.gate.clone(),
            address,
            expires: Instant::now(),
        };
        if before >= self.limits().max_streams {
            return Err(seat.gate.refuse(&Refusal::Streams(before)));
        }
        Ok(seat)
    }

    fn turn(&self) -> Result<Duration, Status> {
        let pace = self.gate.pace.lock();
        let mut pace = pace.unwrap_or_else(PoisonError::into_inner);
        let wait = pace.turn(Instant::now(), PATIENCE);
        drop(pace);
        let refusal = Refusal::Pace(self.limits().new_streams_per_second);
        wait.ok_or_else(|| self.gate.refuse(&refusal))
    }
}

impl Seat {
    /// Whether a stream may subscribe to so many names.
    pub fn check_names(&self, names: usize) -> Result<(), Status> {
        let limit = self.gate.limits.max_names;
        if names <= limit {
            return Ok(());
        }
        Err(self.turn_out(&Refusal::Names { names, limit }))
    }

    /// What is wrong with a request that could not be read.
    pub fn unread(&self, status: Status) -> Status {
        // The one word of the decoder for a message over the limit that it was given.
        if status.code() != Code::OutOfRange {
            return status;
        }
        self.turn_out(&Refusal::Request(self.gate.limits.max_request_bytes))
    }

    fn turn_out(&self, refusal: &Refusal) -> Status {
        if let Some(left_out) = REFUSALS.next(Instant::now()) {
            warn!(address = ?self.address, reason = %refusal, left_out, "stream refused");
        }
        self.gate.refuse(refusal)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.gate.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Gate {
    fn refuse(&self, refusal: &Refusal) -> Status {
        let reason = refusal.as_str();
        self.metrics.refused.with_label_values(&[reason]).inc();
        match refusal {
            // The same is fine a little later.
            Refusal::Pace(_) => Status::unavailable(refusal.to_string()),
            Refusal::Streams(_) | Refusal::Names { .. } | Refusal::Request(_) => {
                Status::resource_exhausted(refusal.to_string())
            }
        }
    }
}

impl Refusal {
    const REASONS: [&str; 4] = ["streams", "pace", "names", "request"];

    fn as_str(&self) -> &'static str {
        match self {
            Self::Streams(_) => "streams",
            Self::Pace(_) => "pace",
            Self::Names { .. } => "names",
            Self::Request(_) => "request",
        }
    }
}

/// Counts one who waits, also if he goes away meanwhile.
struct Waiting<'a>(&'a IntGauge);

impl<'a> Waiting<'a> {
    fn new(gauge: &'a IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    fn register(registry: &Registry) -> prometheus::Result<Self> {
        let refused = Opts::new(
            "meshkeeper_xds_refused_total",
            "Streams that were refused, by the limit that they met.",
        );
        let metrics = Self {
            waiting: IntGauge::new(
                "meshkeeper_xds_streams_waiting",
                "New streams that wait for their turn.",
            )?,
            refused: IntCounterVec::new(refused, &["limit"])?,
        };
        for reason in Refusal::REASONS {
            metrics.refused.with_label_values(&[reason]);
        }
        let collectors: [Box<dyn Collector>; 2] = [
            Box::new(metrics.waiting.clone()),
            Box::new(metrics.refused.clone()),
        ];
        collectors
            .into_iter()
            .try_for_each(|collector| registry.register(collector))?;
        Ok(metrics)
    }
}

/// The standard library seeds its hash maps at random; that is random enough to spread streams.
fn chance() -> u64 {
    RandomState::new().build_hasher().finish()
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission")
            .field("limits", self.limits())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(limits: Limits) -> Admission {
        Admission::register(limits, &Registry::new()).unwrap()
    }

    #[tokio::test]
    async fn a_seat_is_free_again_when_its_stream_ends() {
        let admission = admission(Limits {
            max_streams: 2,
            ..Limits::default()
        });
        let stop = CancellationToken::new();
        let first = admission.admit(None, &stop).await.unwrap();
        let _second = admission.admit(None, &stop).await.unwrap();
        let refused = admission.admit(None, &stop).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(refused.message().contains("2 streams open"), "{refused}");
        let others = admission.another();
        others.admit(None, &stop).await.unwrap();
        drop(first);
        admission.admit(None, &stop).await.unwrap();
        let refused = &admission.gate.metrics.refused;
        assert_eq!(refused.with_label_values(&["streams"]).get(), 1);
    }

    #[tokio::test]
    async fn who_would_wait_too_long_is_refused_at_once_and_the_others_wait_their_turn() {
        let admission = admission(Limits {
            new_streams_per_second: 1,
            ..Limits::default()
        });
        let stop = CancellationToken::new();
        let admitted: Vec<_> = (0..12)
            .map(|_| admission.seat(None).and_then(|_| admission.turn()))
            .collect();
        assert_eq!(admitted[0].as_ref().unwrap(), &Duration::ZERO);
        assert!(admitted[10].is_ok());
        let refused = admitted[11].as_ref().unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        assert!(refused.message().contains("newStreamsPerSecond"));
        assert_eq!(admission.gate.taken.load(Ordering::Relaxed), 0);
        assert!(admission.admit(None, &stop).await.is_err());
    }

    #[tokio::test]
    async fn those_who_wait_when_the_server_stops_are_told() {
        let admission = admission(Limits {
            new_streams_per_second: 1,
            ..Limits::default()
        });
        let stop = CancellationToken::new();
        admission.admit(None, &stop).await.unwrap();
        stop.cancel();
        let refused = admission.admit(None, &stop).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        assert_eq!(admission.gate.metrics.waiting.get(), 0);
    }

    #[tokio::test]
    async fn too_many_names_are_refused_with_both_numbers() {
        let admission = admission(Limits {
            max_names: 10,
            ..Limits::default()
        });
        let seat = admission.admit(None, &CancellationToken::new()).await;
        let seat = seat.unwrap();
        assert!(seat.check_names(10).is_ok());
        let refused = seat.check_names(11).unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(refused.message().contains("11 names, over the limit of 10"));
    }
}
