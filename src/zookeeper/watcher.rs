//! Drives the watch-tree machine on real sessions.
//!
//! One task: it takes watch events, sends what the machine asks for, hands the replies in, and gives
//! batches to the registry. Which paths to read and what to publish is the machine's affair alone;
//! which calls and sessions that takes is the link's ([`recursive`], [`one_shot`]).
//!
//! Invariant: every event that arrived before a reply reaches the machine before it (the client
//! queues both in the order of the wire, in different queues). While the registry is busy, changes
//! gather in the machine, the last one of each path, and events go on being taken.

mod arrivals;
mod link;
mod one_shot;
mod recursive;

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesOrdered};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use zookeeper_client::Client;

use self::{
    arrivals::Arrivals,
    link::{Answers, Failure, Link, Paths, Signal},
    one_shot::OneShot,
    recursive::Recursive,
};
use super::{
    Config, Error, Metrics, State, Status, check_root,
    connect_string::{self, Address},
    session::{self, Backoff, Trouble},
    tree::{Phase, Reply, Request, Tally, Tree, Watches},
};
use crate::registry::{Batch, Stat};

/// Requests that travel as one, and how many such batches travel at once: 500 at depth 4 read a
/// server out as fast as any (400,000 znodes a second and more).
const BATCH: usize = 500;
const BATCHES_IN_FLIGHT: usize = 4;
/// Of paths in a batch: a server refuses requests of 1 MiB.
const BATCH_BYTES: usize = 256 * 1024;
/// The first batches are small, until the size of the replies is known.
const FIRST_BATCH: usize = 32;
/// What a batch of replies should not exceed, for the server's memory and ours.
const REPLY_BYTES: usize = 4 * 1024 * 1024;
/// How long what was read waits for reads that are still on their way, so that what changed together is
/// published together. A change that comes alone waits for nothing.
const GATHER: Duration = Duration::from_millis(1);
/// How long a request may take at least; the client itself waits forever.
const REQUEST: Duration = Duration::from_secs(5);
/// How long the client may look for a server within the session. It waits longer from attempt to
/// attempt; with no ephemeral znodes to lose, a new session finds the ensemble sooner.
const RECONNECT: Duration = Duration::from_secs(1);

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
pub struct Watcher {
    config: Config,
    address: Address,
    metrics: Gauges,
    batches: mpsc::Sender<Batch>,
    state: watch::Sender<State>,
    tree: Tree,
    arrivals: Arrivals,
    /// The registry has not heard yet that there was an outage.
    stale: bool,
    paths: Arc<Paths>,
    /// Hears of every znode that exists and cannot be read.
    unreadable: Option<mpsc::UnboundedSender<Arc<str>>>,
    only_one_shot: bool,
    /// How many requests travel as one now.
    batch: usize,
    backoff: Backoff,
    /// Counts what came and went within a session: no reply outlives its connection.
    connections: u64,
    /// When a connection that was lost is given up for a new session.
    give_up: Option<Instant>,
    /// From the loss of the connection until the registry equals the tree again.
    trouble: Trouble,
}

/// The metrics of one registry.
#[derive(Debug)]
struct Gauges {
    connected: prometheus::IntGauge,
    resyncs: prometheus::IntCounter,
}

/// Why a session was given up.
enum End {
    Stopped,
    /// The ensemble knows no recursive watches; the session is good.
    Unsupported,
    /// A new session may do better.
    Lost(String),
    /// The root may not be listed; a new session may do better.
    Denied,
}

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
        let labels = [config.name.as_str()];
        let metrics = Gauges {
            connected: metrics.connected.with_label_values(&labels),
            resyncs: metrics.resyncs.with_label_values(&labels),
        };
        Ok(Self {
            paths: Arc::new(Paths::new(&config.root, address.chroot.is_empty())),
            tree: Tree::new(config.layout.clone()),
            arrivals: Arrivals::default(),
            unreadable: None,
            stale: false,
            only_one_shot: false,
            batch: FIRST_BATCH,
            backoff: Backoff::default(),
            give_up: None,
            connections: 0,
            trouble: Trouble::default(),
            config,
            address,
            metrics,
            batches,
            state,
        })
    }

    /// Has `told` hear of every znode that exists and cannot be read, by its path below the root.
    pub(super) fn telling_unreadable(mut self, told: mpsc::UnboundedSender<Arc<str>>) -> Self {
        self.unreadable = Some(told);
        self
    }

    /// Takes these znodes of a former process for published: the first load is compared with them.
    #[must_use]
    pub fn knowing(mut self, znodes: Option<Vec<(Arc<str>, Stat)>>) -> Self {
        if let Some(znodes) = znodes {
            self.tree.seed(znodes);
        }
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

    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Error> {
        loop {
            let end = match self.open(&stop).await {
                Some(client) => self.serve(Arc::new(client), &stop).await?,
                None => End::Stopped,
            };
            self.metrics.connected.set(0);
            match end {
                End::Lost(reason) => self.lost(reason),
                End::Denied => self.denied(),
                _ => return Ok(()),
            }
        }
    }

    /// Tries until there is a session. `None` once stopped.
    async fn open(&mut self, stop: &CancellationToken) -> Option<Client> {
        loop {
            let attempt = async {
                sleep(self.backoff.next()).await;
                let timeout = self.config.session_timeout;
                session::open(&self.config.connect, &self.address, timeout).await
            };
            let attempt = tokio::select! {
                () = stop.cancelled() => return None,
                attempt = attempt => attempt,
            };
            match attempt {
                Ok(client) => return Some(client),
                Err(reason) => self.lost(reason),
            }
        }
    }

    /// Works on one session, or where one-shot watches must do, on several, until they end.
    async fn serve(&mut self, client: Arc<Client>, stop: &CancellationToken) -> Result<End, Error> {
        self.metrics.connected.set(1);
        let timeout = client.session_timeout();
        info!(
            registry = %self.config.name, session = %client.session_id(),
            ?timeout, outage_ms = self.outage(), "ZooKeeper session established"
        );
        let client = if self.only_one_shot {
            client
        } else {
            let mut link = Recursive::new(client, Arc::clone(&self.paths));
            match self.drive(&mut link, Watches::Recursive, stop).await? {
                End::Unsupported => link.into_client(),
                end => return Ok(finish(link, end).await),
            }
        };
        info!(registry = %self.config.name, "the server knows no recursive watches (before 3.6): using one-shot watches");
        let mut link = OneShot::new(client, &self.config, Arc::clone(&self.paths));
        let end = self.drive(&mut link, Watches::OneShot, stop).await?;
        Ok(finish(link, end).await)
    }

    /// Runs the machine on one link until that ends.
    async fn drive(
        &mut self,
        link: &mut impl Link,
        watches: Watches,
        stop: &CancellationToken,
    ) -> Result<End, Error> {
        let batches = self.batches.clone();
        let mut in_flight = InFlight::new();
        self.give_up = None;
        self.tree.connected(watches);
        // Since when there is something to publish.
        let mut gathering = None;
        loop {
            if let Some(end) = self.take_signals(link, &mut in_flight) {
                return Ok(end);
            }
            if let Err(reason) = self.send(link, &mut in_flight).await {
                return Ok(End::Lost(reason));
            }
            self.tell();
            if self.tree.is_idle() {
                self.arrivals.clear();
            }
            let has_batch = self.tree.has_batch();
            gathering = has_batch.then(|| gathering.unwrap_or_else(Instant::now));
            let gathered = gathering.map(|since| since + GATHER);
            let gathers = !in_flight.is_empty() && gathered.is_some_and(|at| Instant::now() < at);
            let end = tokio::select! {
                biased;
                () = stop.cancelled() => Some(End::Stopped),
                permit = batches.reserve(), if has_batch && !gathers => {
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
            };
            if let Some(end) = end {
                return Ok(end);
            }
        }
    }

    fn answered(&mut self, link: &mut impl Link, answers: Result<Answers, Failure>) -> Option<End> {
        match answers {
            Ok(answers) => {
                self.look_at(&answers);
                for (request, reply) in link.accept(answers) {
                    self.tree.reply(request, reply);
                }
                (self.tree.phase() == Phase::RootDenied).then_some(End::Denied)
            }
            Err(Failure::Unsupported) => Some(End::Unsupported),
            Err(Failure::Lost(reason)) => Some(End::Lost(reason)),
        }
    }

    /// Fits the size of the next batches to that of the replies, and tells of what is unreadable.
    fn look_at(&mut self, answers: &Answers) {
        let bytes = answers.replies.iter().map(|(_, reply)| reply.size()).sum();
        self.batch = next_batch(self.batch, bytes);
        let refused = |(_, reply): &&(Request, Reply)| *reply == Reply::Unreadable;
        if let Some(told) = &self.unreadable {
            for (request, _) in answers.replies.iter().filter(refused) {
                // Whoever asked may have heard enough.
                let _ = told.send(Arc::from(request.path()));
            }
        }
        let mut refused = answers.replies.iter().filter(refused);
        if let Some((request, _)) = refused.next() {
            warn!(
                registry = %self.config.name, path = request.path(), others = refused.count(),
                "a znode cannot be read; what was known of it stands"
            );
        }
    }

    fn take(&mut self) -> Batch {
        let first = !self.tree.loaded();
        let found = self.tree.tally();
        let mut batch = self.tree.take();
        batch.observed = self.arrivals.take();
        batch.stale = std::mem::take(&mut self.stale);
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
            Signal::Event(change, path) => {
                self.arrivals.note(Instant::now().into_std());
                self.tree.event(change, &path);
            }
            Signal::Disconnected => {
                self.connections += 1;
                in_flight.clear();
                self.metrics.connected.set(0);
                self.lost(CONNECTION_LOST.to_owned());
                self.give_up = Some(Instant::now() + RECONNECT);
            }
            Signal::Reconnected => {
                self.connections += 1;
                in_flight.clear();
                self.metrics.connected.set(1);
                self.give_up = None;
                info!(
                    registry = %self.config.name, outage_ms = self.outage(),
                    "connected to ZooKeeper again, within the session"
                );
                self.tree.connected(Watches::Recursive);
            }
            Signal::Ended(reason) => return Some(End::Lost(reason)),
        }
        None
    }

    async fn send(&mut self, link: &mut impl Link, in_flight: &mut InFlight) -> Result<(), String> {
        while in_flight.len() < BATCHES_IN_FLIGHT {
            let requests = self.tree.requests(self.batch, BATCH_BYTES);
            if requests.is_empty() {
                break;
            }
            link.prepare(&requests).await?;
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
        Ok(())
    }

    fn completed(&mut self, first: bool, found: Tally) {
        self.backoff.reset();
        self.trouble.over(Instant::now());
        let registry = &self.config.name;
        let Tally {
            added,
            changed,
            removed,
        } = found;
        if first {
            info!(%registry, znodes = added, "loaded");
            return;
        }
        self.metrics.resyncs.inc();
        if removed == 0 {
            info!(%registry, added, changed, removed, "compared with ZooKeeper again");
        } else {
            warn!(
                %registry, added, changed, removed,
                "compared with ZooKeeper again; what was removed was deregistered meanwhile, or the ensemble lost it"
            );
        }
    }

    /// For how many milliseconds there has been trouble by now.
    fn outage(&self) -> Option<u64> {
        let lasted = self.trouble.lasted(Instant::now())?;
        Some(u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX))
    }

    /// There is no connection, and the log hears why: at once where the reason is new, else now and
    /// then.
    fn lost(&mut self, reason: String) {
        if self.trouble.is_news(&reason, Instant::now()) {
            let (registry, connect) = (&self.config.name, &self.config.connect);
            if self.tree.loaded() {
                warn!(%registry, %connect, %reason, "no connection to ZooKeeper; trying on, and what is known stays served");
            } else {
                warn!(
                    %registry, %connect, %reason,
                    "no connection to ZooKeeper; trying on, and nothing is served yet: start ZooKeeper, or set registries[0].connect / --zookeeper"
                );
            }
        }
        self.forget(reason);
    }

    /// ZooKeeper answers, but refuses to name the services.
    fn denied(&mut self) {
        let root = format!("{}{}", self.address.chroot, self.config.root);
        let reason = format!("may not list {root}: no permission");
        if self.trouble.is_news(&reason, Instant::now()) {
            let served = if self.tree.loaded() {
                "what is known stays served"
            } else {
                "nothing is served yet"
            };
            warn!(
                registry = %self.config.name, %root, served,
                "ZooKeeper denies us to list the root; trying on: let world:anyone read it and what is below (setAcl -R {root} world:anyone:r, beside the rights of those who register)"
            );
        }
        self.forget(reason);
    }

    /// Forgets the connection, and shows why.
    fn forget(&mut self, reason: String) {
        self.tree.lost();
        self.arrivals.clear();
        let status = if self.state.borrow().loaded {
            self.tell_stale();
            Status::Disconnected { reason }
        } else {
            Status::Connecting {
                reason: Some(reason),
            }
        };
        self.set_status(status);
    }

    /// Says once that what was published may be old from now on. It takes nothing away; where the
    /// registry is too busy to hear of it, that it is comes with the next batch.
    fn tell_stale(&mut self) {
        if let Status::Disconnected { .. } = self.state.borrow().status {
            return;
        }
        let batch = Batch {
            stale: true,
            ..Batch::default()
        };
        self.stale = self.batches.try_send(batch).is_err();
    }

    /// Shows where the machine stands.
    fn tell(&mut self) {
        let status = match self.tree.phase() {
            Phase::Arming | Phase::Loading => Status::Loading,
            Phase::RootAbsent => Status::RootAbsent {
                root: format!("{}{}", self.address.chroot, self.config.root),
            },
            Phase::Synced => Status::Synced,
            Phase::Detached | Phase::RootDenied => return self.set_loaded(),
        };
        self.set_status(status);
    }

    fn set_loaded(&self) {
        let loaded = self.tree.loaded();
        (self.state).send_if_modified(|s| loaded != std::mem::replace(&mut s.loaded, loaded));
    }

    fn set_status(&self, status: Status) {
        self.set_loaded();
        self.state.send_if_modified(|state| {
            let changed = state.status != status;
            if changed {
                state.status = status;
                state.since = Instant::now();
            }
            changed
        });
    }
}

/// Doubles while replies are small, and shrinks to what keeps them below the bound.
fn next_batch(batch: usize, bytes: usize) -> usize {
    if bytes > REPLY_BYTES {
        (batch * REPLY_BYTES / bytes).max(1)
    } else if bytes > REPLY_BYTES / 4 {
        batch
    } else {
        (batch * 2).min(BATCH)
    }
}

/// Closes the sessions where nothing is to follow on them. Nothing is in flight any more.
async fn finish(link: impl Link, end: End) -> End {
    if let End::Stopped = end {
        link.close().await;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_grow_while_replies_are_small_and_shrink_when_they_are_not() {
        assert_eq!(next_batch(32, 6_400), 64);
        assert_eq!(next_batch(400, 80_000), BATCH);
        assert_eq!(next_batch(500, 2 * REPLY_BYTES), 250);
        assert_eq!(next_batch(250, REPLY_BYTES / 2), 250);
        assert_eq!(next_batch(3, 100 * REPLY_BYTES), 1);
    }
}
