//! The loop between the registry and the clients: batches in, snapshots out.
//!
//! It owns the machines that know znodes, payloads and messages, is their only writer and tells them the time. Batches that wait are taken together, so a burst is translated
//! once and a quiet registry publishes at once. Invariant: nothing is published before the registry was mirrored
//! completely, and what is published then shows exactly what the registry shows.

mod alarms;
mod empties;
mod hosts;
mod probes;
mod record;
mod rejections;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt};
use imbl::OrdSet;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{self, sleep},
};
use tokio_stream::{StreamMap, wrappers::ReceiverStream};
use tracing::{debug, info, warn};

use self::{empties::Empties, hosts::Hosts, probes::Probes, rejections::Rejections};
pub use self::{probes::Reach, record::Record};
use crate::{
    registry::{
        self, Batch, Catalog, Changes, Former, Guarded, Picture, Touched, catalog::join,
        guard::Time,
    },
    resolve::Resolved,
    snapshot::Snapshots,
    state::clock::now,
    translate::{Translation, Update},
};

/// Batches that are taken into one publication at most, so that a steady stream of them cannot put
/// it off for ever.
const BATCHES_AT_ONCE: usize = 256;

/// Orders of operators that wait.
const ORDERS: usize = 8;

/// How often the loop goes round at least, so that a time in which the process stood still is noticed.
const BEAT: Duration = Duration::from_secs(1);

/// In milliseconds: a longer time between two rounds is one in which nobody looked.
const STOOD_STILL: Time = 3_000;

/// The single writer of the mirror and of the snapshots.
#[derive(Debug)]
pub struct Publisher {
    catalog: Catalog,
    translation: Translation,
    empties: Empties,
    snapshots: Snapshots,
    metrics: registry::Metrics,
    rejections: Rejections,
    /// By the place of the registry, where its state is kept.
    records: BTreeMap<usize, Record>,
    /// When what was restored is served, if the registries were not seen by then.
    restored_due: Option<time::Instant>,
    /// When the loop went round last.
    looked: Option<Time>,
    orders: mpsc::Receiver<Order>,
    registry: watch::Sender<Picture>,
    resources: watch::Sender<Arc<Snapshots>>,
    hosts: Hosts,
    probes: Probes,
}

/// What the publisher reads.
#[derive(Debug)]
pub struct Inputs {
    /// One for each registry, in the order of the configuration.
    pub batches: Vec<mpsc::Receiver<Batch>>,
    /// The addresses of [`Readers::hosts`].
    pub resolved: mpsc::Receiver<Vec<Resolved>>,
    /// Those of [`Readers::probed`] that refuse connections.
    pub refused: mpsc::Receiver<Vec<SocketAddr>>,
}

/// What an operator wants: to let go what is held of one service or all, in one registry or all.
#[derive(Debug)]
pub struct Order {
    pub registry: Option<String>,
    pub service: Option<String>,
    /// Told how many instances were released, once that is published.
    pub done: oneshot::Sender<usize>,
}

/// Why the loop goes round.
enum Step {
    Batch(usize, Batch),
    /// What became of host names.
    Resolved(Vec<Resolved>),
    /// These addresses refuse connections.
    Refused(Vec<SocketAddr>),
    /// Something changes by time alone.
    Time,
    /// Services that are empty for long are no longer rendered.
    Empty,
    Restored,
    Order(Order),
}

/// Where the publications can be read.
#[derive(Clone, Debug)]
pub struct Readers {
    pub registry: watch::Receiver<Picture>,
    pub snapshots: watch::Receiver<Arc<Snapshots>>,
    pub orders: mpsc::Sender<Order>,
    /// The host names to look up.
    pub hosts: watch::Receiver<OrdSet<Arc<str>>>,
    /// The addresses to probe.
    pub probed: watch::Receiver<OrdSet<SocketAddr>>,
}

impl Publisher {
    pub fn new(
        catalog: Catalog,
        translation: Translation,
        metrics: registry::Metrics,
    ) -> (Self, Readers) {
        let (registry, registry_reader) = watch::channel(Picture::default());
        let (resources, snapshots) = watch::channel(Arc::default());
        let (order, orders) = mpsc::channel(ORDERS);
        let snapshots_now = Snapshots::default();
        let (hosts, wanted) = Hosts::new();
        let (probes, addresses) = Probes::new();
        let readers = Readers {
            registry: registry_reader,
            snapshots,
            orders: order,
            hosts: wanted,
            probed: addresses,
        };
        let publisher = Self {
            catalog,
            translation,
            empties: Empties::default(),
            snapshots: snapshots_now,
            metrics,
            rejections: Rejections::default(),
            records: BTreeMap::new(),
            restored_due: None,
            looked: None,
            orders,
            registry,
            resources,
            hosts,
            probes,
        };
        (publisher, readers)
    }

    /// Services that had no instance for so long are no longer rendered; 0 for never.
    pub fn leave_out_empty_after(&mut self, after: Duration) {
        self.empties = Empties::new(after);
    }

    /// Begins with what a former process knew of the registry at that place of the configuration.
    pub fn restore(&mut self, registry: usize, former: Former) {
        self.catalog.restore(registry, former, now());
    }

    /// Has the state of the registry at that place recorded.
    pub fn record(&mut self, registry: usize, record: Record) {
        self.records.insert(registry, record);
    }

    /// Has the held instances of the registry at that place probed.
    pub fn probe(&mut self, registry: usize, reach: Reach) {
        self.probes.add(registry, reach);
    }

    /// Runs until all senders of batches are gone. What was restored is served after `wait`.
    pub async fn run(mut self, inputs: Inputs, wait: Duration) {
        let Inputs {
            batches,
            mut resolved,
            mut refused,
        } = inputs;
        let streams = batches.into_iter().map(ReceiverStream::new);
        let mut batches: Batches = streams.enumerate().collect();
        self.restored_due = Some(time::Instant::now() + wait);
        while let Some(step) = (self.next(&mut batches, &mut resolved, &mut refused)).await {
            match step {
                Step::Batch(registry, batch) => self.take_in(Some((registry, batch)), &mut batches),
                Step::Resolved(all) => self.resolve(&all),
                Step::Refused(all) => self.remove_refused(&all),
                Step::Time => self.take_in(None, &mut batches),
                Step::Empty => self.leave_out_empty(),
                Step::Restored => self.serve_restored(),
                Step::Order(order) => self.obey(order),
            }
        }
    }

    async fn next(
        &mut self,
        batches: &mut Batches,
        resolved: &mut mpsc::Receiver<Vec<Resolved>>,
        refused: &mut mpsc::Receiver<Vec<SocketAddr>>,
    ) -> Option<Step> {
        // Only waiting counts as standing still, not the work that was done before.
        self.looked = Some(now().time);
        loop {
            let step = tokio::select! {
                batch = batches.next() => {
                    let (at, batch) = batch?;
                    Some(Step::Batch(at, batch))
                }
                Some(resolved) = resolved.recv() => Some(Step::Resolved(resolved)),
                Some(refused) = refused.recv() => Some(Step::Refused(refused)),
                () = until(self.catalog.due()) => Some(Step::Time),
                () = self.hosts.due() => Some(Step::Time),
                () = at(self.empties.due().map(Into::into)) => Some(Step::Empty),
                () = at(self.restored_due) => Some(Step::Restored),
                Some(order) = self.orders.recv() => Some(Step::Order(order)),
                () = self.rejections.due() => {
                    self.rejections.report(|path| self.catalog.rejects(path));
                    None
                }
                () = sleep(BEAT) => None,
            };
            self.look();
            if step.is_some() {
                return step;
            }
        }
    }

    /// Notices that the process stood still.
    fn look(&mut self) {
        let now = now();
        let away = now.time - self.looked.replace(now.time).unwrap_or(now.time);
        if away > STOOD_STILL {
            self.catalog.stood_still(away, now);
        }
    }

    /// Takes in a batch and those that wait, and then what time brings, and publishes what they change
    /// together. What was written in time does not lapse because it is heard of late.
    fn take_in(&mut self, mut first: Option<(usize, Batch)>, batches: &mut Batches) {
        let began = Instant::now();
        let (mut changes, mut observed) = (Changes::new(), None);
        for _ in 0..BATCHES_AT_ONCE {
            let waiting = || batches.next().now_or_never().flatten();
            let Some((registry, batch)) = first.take().or_else(waiting) else {
                break;
            };
            observed = [observed, batch.observed].into_iter().flatten().min();
            join(&mut changes, self.mirror(registry, batch));
        }
        join(&mut changes, self.catalog.tick(now()));
        self.publish(changes, observed.unwrap_or(began));
    }

    fn mirror(&mut self, at: usize, batch: Batch) -> Changes {
        let record = self.records.get_mut(&at);
        let noted = record.map(|record| record.note(&batch.events));
        let changes = self.catalog.apply(at, batch, now());
        let guarded = self.catalog.registry(at);
        if let (Some(noted), Some(record), Some(guarded)) =
            (noted, self.records.get_mut(&at), guarded)
        {
            record.judge(noted, guarded);
        }
        changes
    }

    fn serve_restored(&mut self) {
        self.restored_due = None;
        for at in self.catalog.serve_restored() {
            let name = self
                .catalog
                .registry(at)
                .map(Guarded::name)
                .unwrap_or_default();
            warn!(registry = %name, "ZooKeeper does not answer: the last good state is served, from disk");
        }
        self.publish_now(Changes::new());
    }

    fn leave_out_empty(&mut self) {
        let expired = self.empties.expired(Instant::now()).into_iter();
        self.publish_now(expired.map(|name| (name, Touched::All)).collect());
    }

    fn resolve(&mut self, all: &[Resolved]) {
        let mut news = None;
        for Resolved { name, addresses } in all {
            if let Some(changes) = self.catalog.resolved(name, addresses, now()) {
                join(news.get_or_insert_with(Changes::new), changes);
            }
        }
        if let Some(changes) = news {
            self.publish_now(changes);
        }
    }

    /// Removes the held instances at addresses that refuse connections.
    fn remove_refused(&mut self, addresses: &[SocketAddr]) {
        let (mut removed, mut changes) = (0, Changes::new());
        for (registry, refused) in self.probes.of(addresses) {
            let (count, of_registry) = self.catalog.refused(registry, &refused, now());
            removed += count;
            join(&mut changes, of_registry);
        }
        if removed > 0 {
            self.publish_now(changes);
        }
    }

    fn obey(&mut self, order: Order) {
        let (registry, service) = (order.registry.as_deref(), order.service.as_deref());
        let (released, changes) = self.catalog.release(registry, service, now());
        self.publish_now(changes);
        // Whoever asked may have gone.
        let _ = order.done.send(released);
    }

    fn publish_now(&mut self, changes: Changes) {
        self.publish(changes, Instant::now());
    }

    fn publish(&mut self, changes: Changes, observed: Instant) {
        let notices = self.catalog.take_notices(now());
        let picture = self.catalog.picture();
        self.hosts.want(self.catalog.wanted_hosts());
        if self.snapshots.loaded || self.may_begin() {
            self.translate(&picture, changes, observed);
        }
        for (at, registry) in self.catalog.registries().iter().enumerate() {
            self.metrics.show(registry);
            self.probes.follow(at, registry.holds());
            if let Some(record) = self.records.get_mut(&at) {
                record.draw(registry);
            }
        }
        self.probes.send();
        self.registry.send_replace(picture);
        // Last: the log is in nobody's way.
        for (registry, notice) in &notices {
            self.metrics.count(registry, notice);
        }
        alarms::tell(&notices);
        self.rejections.add(self.catalog.take_rejections());
    }

    /// Whether the first snapshot has all that was served before the process began.
    fn may_begin(&mut self) -> bool {
        self.catalog.loaded() && self.hosts.may_begin(self.catalog.waits_for_hosts())
    }

    fn translate(&mut self, picture: &Picture, mut changes: Changes, observed: Instant) {
        let first = !std::mem::replace(&mut self.snapshots.loaded, true);
        if first {
            let all = picture.services.keys().cloned();
            changes.extend(all.map(|name| (name, Touched::All)));
        }
        let now = Instant::now();
        let empties = &mut self.empties;
        let services = changes.iter().map(|(name, touched)| {
            let service = picture.services.get(name);
            let rendered = empties.is_rendered(name, service.map(|s| s.instances.len()), now);
            let service = service.filter(|_| rendered);
            (&**name, service.map(|service| (service, touched)))
        });
        let updates = self.translation.apply(services);
        let written = updates
            .into_iter()
            .map(|update| self.take(update))
            .sum::<usize>();
        if written > 0 || first {
            self.snapshots.observed = Some(observed);
            self.resources
                .send_replace(Arc::new(self.snapshots.clone()));
        }
        let took_ms = millis(observed.elapsed());
        if first {
            let (services, resources) = (picture.services.len(), written);
            info!(
                services,
                resources, took_ms, "the registry is loaded and rendered"
            );
        } else {
            debug!(
                services = changes.len(),
                resources = written,
                took_ms,
                "published"
            );
        }
    }

    /// Returns how many resources changed.
    fn take(&mut self, update: Update) -> usize {
        let snapshot = self.snapshots.of_mut(update.edition);
        snapshot.apply(update.put, &update.remove)
    }
}

type Batches = StreamMap<usize, ReceiverStream<Batch>>;

async fn at(due: Option<time::Instant>) {
    match due {
        Some(due) => time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Until the steady clock shows that time; for ever without one.
async fn until(due: Option<Time>) {
    let Some(due) = due else {
        return std::future::pending().await;
    };
    let wait = u64::try_from(due.saturating_sub(now().time)).unwrap_or_default();
    sleep(Duration::from_millis(wait)).await;
}

/// A number that log readers can compare, to the microsecond.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests;
