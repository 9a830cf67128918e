//! Drives the watch-tree machine on real sessions.
//!
//! One task: it takes watch events, sends what the machine asks for, hands the replies in, and gives
//! batches to the registry. Which paths to read and what to publish is the machine's affair alone;
//! which calls and sessions that takes is the link's ([`recursive`], [`one_shot`]).
//!
//! Invariant: every event that arrived before a reply reaches the machine before it (the client
//! queues both in the order of the wire, in different queues). While the registry is busy, changes
//! gather in the machine, the last one of each path, and events go on being taken.

mod absent;
mod arrivals;
mod audit;
mod batching;
mod link;
mod one_shot;
mod pacing;
mod recursive;
mod status;

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{FuturesOrdered, FuturesUnordered},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::{
    absent::Beside,
    arrivals::Arrivals,
    batching::{Batching, Size},
    link::{Answers, Failure, Link, Paths, Signal},
    one_shot::OneShot,
    pacing::Pacing,
    recursive::Recursive,
};
use super::{
    Config, Error, Metrics, State, check_root, connect_string,
    metrics::OfRegistry,
    security::{
        access::{Access, Opened},
        material::Material,
    },
    session::{Backoff, Ensemble, Trouble, Unopened, any_time_up_to},
    tree::{Phase, Tree, Watches},
};
use crate::registry::{Batch, Stat};

/// How many batches of requests travel at once: 500 requests at depth 4 read a server out as fast as any
/// (400,000 znodes a second and more).
const BATCHES_IN_FLIGHT: usize = 4;
/// How long what was read waits for reads that are still on their way, so that what changed together is
/// published together. A change that comes alone waits for nothing, but for a removal: the event after it may be of
/// the same transaction.
const GATHER: Duration = Duration::from_millis(1);
/// How long a request may take at least; the client itself waits forever.
const REQUEST: Duration = Duration::from_secs(5);
/// How long the client may look for a server within the session. It waits longer from attempt to
/// attempt; with no ephemeral znodes to lose, a new session finds the ensemble sooner.
const RECONNECT: Duration = Duration::from_secs(1);

/// How often znodes that may not be read are tried again: no watch tells of rights.
const ASK_AGAIN: Duration = Duration::from_secs(30);

const CONNECTION_LOST: &str = "the connection was lost";

/// Runs until `stop`, then closes the session. `Err` only for what no waiting heals.
pub async fn watch(
    config: Config,
    metrics: Metrics,
    batches: mpsc::Sender<Batch>,
    state: watch::Sender<State>,
    stop: CancellationToken,
) -> Result<(), Error> {
    (Watcher::new(config, &metrics, batches, state)?.run(stop)).await
}

/// Mirrors one root of one ensemble.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)] // Any of them may be set without the others.
pub struct Watcher {
    config: Config,
    access: Access,
    /// What the session was opened with.
    with: Arc<Material>,
    metrics: OfRegistry,
    batches: mpsc::Sender<Batch>,
    state: watch::Sender<State>,
    tree: Tree,
    arrivals: Arrivals,
    /// The registry has not heard yet that there was an outage.
    stale: bool,
    paths: Arc<Paths>,
    only_one_shot: bool,
    /// While it is set, no watch event gets through.
    deaf: Arc<AtomicBool>,
    /// The ensemble has no quorum: the session is of a server that is read-only.
    read_only: bool,
    /// Without waiting for what is not there.
    once: bool,
    batching: Batching,
    /// The batches on their way, in order.
    sent: VecDeque<Size>,
    /// What is there instead of a root that does not exist, once that is known.
    beside: Option<Beside>,
    /// The registry does not know yet that there is no root.
    absent: bool,
    backoff: Backoff,
    /// Counts what came and went within a session: no reply outlives its connection.
    connections: u64,
    /// When a connection that was lost is given up for a new session.
    give_up: Option<Instant>,
    /// From the loss of the connection until the registry equals the tree again.
    trouble: Trouble,
    pacing: Pacing,
    /// When the tree is asked for, on a connection that stands.
    begin: Option<Instant>,
}

/// Why a session was given up.
enum End {
    Stopped,
    /// The ensemble knows no recursive watches, and has dropped the connection that asked for one.
    Unsupported,
    /// A new session may do better.
    Lost(String),
    /// There was none: the server let nobody in for a second one. That is told already.
    Unopened,
    /// The root may not be listed; a new session may do better.
    Denied,
    /// Credentials were renewed, and here is a session with the new ones.
    Renewed(Opened),
}

type Renewal = BoxFuture<'static, Opened>;
type InFlight = FuturesOrdered<BoxFuture<'static, Result<Answers, Failure>>>;

impl Watcher {
    pub fn new(
        config: Config,
        metrics: &Metrics,
        batches: mpsc::Sender<Batch>,
        state: watch::Sender<State>,
    ) -> Result<Self, Error> {
        let name = || config.name.clone();
        let address = connect_string::parse(&config.connect).map_err(|reason| Error::Connect {
            name: name(),
            reason,
        })?;
        check_root(&config.root).map_err(|reason| Error::Root {
            name: name(),
            reason,
        })?;
        if config.security.tls.is_some() {
            address.check_names().map_err(|reason| Error::Connect {
                name: name(),
                reason,
            })?;
        }
        let metrics = metrics.of(&config.name);
        Ok(Self {
            paths: Arc::new(Paths::new(&config.root, address.chroot.is_empty())),
            tree: Tree::new(config.layout.clone()),
            arrivals: Arrivals::default(),
            stale: false,
            only_one_shot: false,
            deaf: Arc::default(),
            read_only: false,
            once: false,
            batching: Batching::default(),
            sent: VecDeque::new(),
            beside: None,
            absent: false,
            backoff: Backoff::default(),
            give_up: None,
            connections: 0,
            trouble: Trouble::default(),
            pacing: Pacing::default(),
            begin: None,
            access: Access::new(
                config.name.clone(),
                Ensemble::new(address, config.session_timeout),
                config.security.clone(),
                metrics.credentials_outdated.clone(),
            ),
            with: Arc::default(),
            config,
            metrics,
            batches,
            state,
        })
    }

    /// Takes these znodes of a former process for published: the first load is compared with them.
    #[must_use]
    pub fn knowing(mut self, znodes: Option<Vec<(Arc<str>, Stat)>>) -> Self {
        if let Some(znodes) = znodes {
            self.tree.seed(znodes);
        }
        self
    }

    /// Ends with [`Error::Unreachable`] where it would try again: if no server opens a session, or the root
    /// may not be listed.
    #[must_use]
    pub fn once(mut self) -> Self {
        self.once = true;
        self
    }

    /// As if the server knew no persistent watches and no `multiRead`: for tests, where no server
    /// that old is at hand.
    #[doc(hidden)]
    #[must_use]
    pub fn only_one_shot(mut self) -> Self {
        self.only_one_shot = true;
        self
    }

    /// Loses every watch event while `deaf` is set: for tests, as no server can be made to lose one.
    #[doc(hidden)]
    #[must_use]
    pub fn deaf_while(mut self, deaf: Arc<AtomicBool>) -> Self {
        self.deaf = deaf;
        self
    }

    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Error> {
        let mut renewed = None;
        loop {
            let opened = match renewed.take() {
                Some(opened) => Some(opened),
                None => self.open(&stop).await?,
            };
            let end = match opened {
                Some(opened) => self.serve(opened, &stop).await?,
                None => End::Stopped,
            };
            self.metrics.reads_in_flight.set(0);
            self.interrupted();
            match end {
                End::Renewed(opened) => {
                    // Renewals are put off as they are found, so that no time is lost now.
                    self.begin = Some(Instant::now());
                    self.tell_stale();
                    self.access.renewed(&opened.with);
                    renewed = Some(opened);
                    continue;
                }
                End::Lost(reason) => self.lost(reason),
                End::Denied => self.denied()?,
                End::Unopened => {}
                End::Stopped | End::Unsupported => {
                    self.metrics.connected.set(0);
                    return Ok(());
                }
            }
            self.metrics.connected.set(0);
        }
    }

    /// Tries until there is a session. `None` once stopped.
    async fn open(&mut self, stop: &CancellationToken) -> Result<Option<Opened>, Error> {
        loop {
            // What a server without a quorum has may be old: it does only where there is nothing else.
            let read_only = !self.tree.loaded();
            let attempt = async {
                sleep(self.backoff.next()).await;
                self.access.open(read_only).await
            };
            let attempt = tokio::select! {
                () = stop.cancelled() => return Ok(None),
                attempt = attempt => attempt,
            };
            match attempt {
                Ok(opened) => {
                    self.put_off();
                    return Ok(Some(opened));
                }
                Err(unopened) => self.unopened(unopened)?,
            }
        }
    }

    fn unopened(&mut self, Unopened { reason, limited }: Unopened) -> Result<(), Error> {
        self.backoff.limited(limited);
        if self.once {
            return Err(self.unreachable(reason));
        }
        self.lost(reason);
        Ok(())
    }

    fn unreachable(&self, reason: String) -> Error {
        let name = self.config.name.clone();
        Error::Unreachable { name, reason }
    }

    /// Works on one session until it ends, or where the server knows no recursive watches, on a second one.
    async fn serve(&mut self, opened: Opened, stop: &CancellationToken) -> Result<End, Error> {
        let Opened { client, with } = opened;
        let client = Arc::new(client);
        self.with = Arc::clone(&with);
        self.established(&client);
        let mut renewal = self.renewal(&with);
        if self.only_one_shot {
            drop(client);
        } else {
            let mut link = Recursive::new(client, Arc::clone(&self.paths));
            let watches = Watches::Recursive;
            match self.drive(&mut link, watches, &mut renewal, stop).await? {
                End::Unsupported => drop(link),
                end => return Ok(finish(link, end).await),
            }
            info!(registry = %self.config.name, "the server has no recursive watches (it is older than 3.6): using one-shot watches");
        }
        let opened = tokio::select! {
            () = stop.cancelled() => return Ok(End::Stopped),
            opened = OneShot::open(self, &with, self.read_only) => opened,
        };
        let mut link = match opened {
            Ok(link) => link,
            Err(unopened) => {
                return self.unopened(unopened).map(|()| End::Unopened);
            }
        };
        self.begin = Some(Instant::now());
        let watches = Watches::OneShot;
        let end = self.drive(&mut link, watches, &mut renewal, stop).await?;
        Ok(finish(link, end).await)
    }

    /// What may replace the session while it works: renewed credentials, or an ensemble that has a quorum
    /// again.
    fn renewal(&self, with: &Arc<Material>) -> Renewal {
        if self.read_only {
            return self.access.writable(Arc::clone(with));
        }
        let root = Some(self.config.root.clone());
        (self.access).renewal(Arc::clone(with), root, self.pacing.spread())
    }

    /// Lets some time pass before the tree is read again, so that replicas do not all do it at once.
    fn put_off(&mut self) {
        let wait = if self.tree.loaded() {
            any_time_up_to(self.pacing.spread())
        } else {
            Duration::ZERO
        };
        self.begin = Some(Instant::now() + wait);
    }

    fn begin(&mut self, watches: Watches) {
        self.begin = None;
        self.pacing.begin(Instant::now());
        self.tree.connected(watches);
    }

    /// Runs the machine on one link until that ends.
    async fn drive(
        &mut self,
        link: &mut impl Link,
        watches: Watches,
        renewal: &mut Renewal,
        stop: &CancellationToken,
    ) -> Result<End, Error> {
        let batches = self.batches.clone();
        let mut in_flight = InFlight::new();
        self.give_up = None;
        let mut looking = FuturesUnordered::new();
        // Since when there is something to publish.
        let mut gathering = None;
        let mut ask_again = Instant::now() + ASK_AGAIN;
        let mut audit = Instant::now();
        loop {
            if let Some(end) = self.take_signals(link, &mut in_flight) {
                return Ok(end);
            }
            if self.begin.is_some_and(|at| at <= Instant::now()) {
                self.begin(watches);
            }
            self.send(link, &mut in_flight);
            self.look_for_root(link, &mut looking);
            self.tell();
            if self.tree.is_idle() {
                self.arrivals.clear();
            }
            let has_batch = self.tree.has_batch();
            gathering = has_batch.then(|| gathering.unwrap_or_else(Instant::now));
            let gathered = gathering.map(|since| since + GATHER);
            let expects = !in_flight.is_empty() || self.tree.is_partial();
            let gathers = expects && gathered.is_some_and(|at| Instant::now() < at);
            let end = tokio::select! {
                biased;
                () = stop.cancelled() => Some(End::Stopped),
                permit = batches.reserve(), if self.stale || self.absent || (has_batch && !gathers) => {
                    let Ok(permit) = permit else {
                        let name = self.config.name.clone();
                        return Err(Error::Abandoned { name });
                    };
                    permit.send(self.take());
                    gathering = None;
                    None
                }
                () = sleep_until(gathered.unwrap_or_else(Instant::now)), if gathers => None,
                signal = link.signal() => self.signal(signal, &mut in_flight),
                () = sleep_until(self.give_up.unwrap_or_else(Instant::now)), if self.give_up.is_some() => {
                    Some(End::Lost(CONNECTION_LOST.to_owned()))
                }
                () = sleep_until(self.begin.unwrap_or_else(Instant::now)), if self.begin.is_some() => None,
                Some(answers) = in_flight.next(), if !in_flight.is_empty() => {
                    // What arrived before this reply goes first; it may also void the reply.
                    let asked_on = self.connections;
                    let end = self.take_signals(link, &mut in_flight);
                    if end.is_some() || asked_on != self.connections {
                        end
                    } else {
                        self.answered(link, answers)
                    }
                }
                () = sleep_until(ask_again) => {
                    ask_again = Instant::now() + ASK_AGAIN;
                    self.tree.ask_again();
                    None
                }
                () = sleep_until(audit) => {
                    audit = self.audit();
                    None
                }
                opened = &mut *renewal => Some(End::Renewed(opened)),
                Some(beside) = looking.next(), if !looking.is_empty() => {
                    self.root_is_absent(beside);
                    None
                }
            };
            if let Some(end) = end {
                return Ok(end);
            }
        }
    }

    /// Finds out once what is there instead of a root that does not exist.
    fn look_for_root(
        &mut self,
        link: &impl Link,
        looking: &mut FuturesUnordered<BoxFuture<'static, Beside>>,
    ) {
        if self.tree.phase() != Phase::RootAbsent {
            self.beside = None;
            self.absent = false;
            looking.clear();
        } else if self.beside.is_none() && looking.is_empty() {
            looking.push(absent::look(Arc::clone(link.client()), self.full_root()));
        }
    }

    fn answered(&mut self, link: &mut impl Link, answers: Result<Answers, Failure>) -> Option<End> {
        match answers {
            Ok(answers) => {
                let read = i64::try_from(answers.replies.len()).unwrap_or(i64::MAX);
                self.metrics.reads_in_flight.sub(read);
                self.look_at(&answers);
                for (request, reply) in link.accept(answers) {
                    self.tree.reply(request, reply);
                }
                self.count_differences();
                (self.tree.phase() == Phase::RootDenied).then_some(End::Denied)
            }
            Err(Failure::Unsupported) => Some(End::Unsupported),
            Err(Failure::Throttled) => Some(End::Lost("the server throttles requests".to_owned())),
            Err(Failure::Lost(reason)) => Some(End::Lost(reason)),
        }
    }

    /// Fits the size of the next batches to that of the replies.
    fn look_at(&mut self, answers: &Answers) {
        let bytes = answers.replies.iter().map(|(_, reply)| reply.size()).sum();
        if let Some(sent) = self.sent.pop_front() {
            self.batching.answered(sent, bytes);
        }
    }

    /// What there is to tell, were it only that the mirror may be old.
    fn take(&mut self) -> Batch {
        if !self.tree.has_batch() {
            return Batch {
                stale: std::mem::take(&mut self.stale),
                absent: std::mem::take(&mut self.absent),
                ..Batch::default()
            };
        }
        let first = !self.tree.loaded();
        let found = self.tree.tally();
        let mut batch = self.tree.take();
        batch.observed = self.arrivals.take();
        // A load that was finished before the connection was lost is told before the loss is.
        let lost_since = self.give_up.is_some() || self.begin.is_some();
        batch.stale = !(batch.complete && lost_since) && std::mem::take(&mut self.stale);
        if let Some(found) = found {
            self.completed(first, found);
        }
        batch
    }

    /// Takes all signals that wait, without waiting for one.
    fn take_signals(&mut self, link: &mut impl Link, in_flight: &mut InFlight) -> Option<End> {
        while let Some(signal) = link.signal().now_or_never() {
            if let Some(end) = self.signal(signal, in_flight) {
                return Some(end);
            }
        }
        None
    }

    fn signal(&mut self, signal: Signal, in_flight: &mut InFlight) -> Option<End> {
        match signal {
            Signal::Event(..) if self.deaf.load(Ordering::Relaxed) => {}
            Signal::Event(change, path) => {
                self.metrics.events.inc();
                self.arrivals.note(Instant::now().into_std());
                self.tree.event(change, &path);
            }
            Signal::Disconnected => {
                if refused(in_flight) {
                    return Some(End::Unsupported);
                }
                let reason = self.forget_requests(in_flight);
                self.begin = None;
                self.metrics.connected.set(0);
                self.lost(reason);
                self.give_up = Some(Instant::now() + RECONNECT);
            }
            Signal::Reconnected { read_only } => {
                self.forget_requests(in_flight);
                self.read_only = read_only;
                self.metrics.connected.set(1);
                self.give_up = None;
                info!(
                    registry = %self.config.name, outage_ms = self.outage(),
                    "connected to ZooKeeper again, within the session"
                );
                self.put_off();
            }
            Signal::Expired => {
                self.metrics.sessions_expired.inc();
                return Some(End::Lost("the session expired".to_owned()));
            }
            Signal::Ended(reason) => return Some(End::Lost(reason)),
        }
        None
    }

    /// What was asked on a connection that is gone is never answered. Why it may have gone.
    fn forget_requests(&mut self, in_flight: &mut InFlight) -> String {
        self.connections += 1;
        in_flight.clear();
        self.metrics.reads_in_flight.set(0);
        self.interrupted()
    }

    /// The connection ended with these batches unanswered: one that is too large for a server is ended so.
    fn interrupted(&mut self) -> String {
        let largest = self.sent.drain(..).map(|size| size.bytes).max();
        match largest.filter(|bytes| self.batching.interrupted(*bytes)) {
            None => CONNECTION_LOST.to_owned(),
            Some(bytes) => format!(
                "{CONNECTION_LOST} while a request of {bytes} bytes waited for its answer; the next ones are \
                 smaller, in case the server's jute.maxbuffer is small"
            ),
        }
    }

    fn send(&mut self, link: &mut impl Link, in_flight: &mut InFlight) {
        while in_flight.len() < BATCHES_IN_FLIGHT {
            let limit = self.batching.limit();
            let requests = self.tree.requests(limit.requests, limit.bytes);
            if requests.is_empty() {
                break;
            }
            self.sent.push_back(Size::of(&requests));
            let sent = i64::try_from(requests.len()).unwrap_or(i64::MAX);
            self.metrics.reads_in_flight.add(sent);
            self.metrics.reads.inc_by(sent.unsigned_abs());
            let call = link.call(requests);
            let patience = self.config.session_timeout.max(REQUEST);
            in_flight.push_back(
                async move {
                    (tokio::time::timeout(patience, call).await)
                        .unwrap_or_else(|_| Err(Failure::Lost("a request timed out".to_owned())))
                }
                .boxed(),
            );
        }
    }
}

/// Whether an answer that says so came before the end of the connection.
fn refused(in_flight: &mut InFlight) -> bool {
    let mut answers = std::iter::from_fn(|| in_flight.next().now_or_never().flatten());
    answers.any(|answer| matches!(answer, Err(Failure::Unsupported)))
}

/// Closes the sessions where nothing is to follow on them. Nothing is in flight any more.
async fn finish(link: impl Link, end: End) -> End {
    if let End::Stopped = end {
        link.close().await;
    }
    end
}

#[cfg(test)]
mod tests;
