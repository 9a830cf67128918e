//! The loop between the registry and the clients: batches in, snapshots out.
//!
//! It refuses to know znodes, payloads and messages; it owns the three machines that do, is their
//! only writer and tells them the time. Batches that wait are taken together, so a burst is translated
//! once and a quiet registry publishes at once. Invariant: nothing is published before the registry was mirrored
//! completely, and what is published then shows exactly what the registry shows.

mod rejections;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures_util::{FutureExt, StreamExt};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_stream::{StreamMap, wrappers::ReceiverStream};
use tracing::{debug, info};

use self::rejections::Rejections;
use crate::{
    registry::{self, Batch, Catalog, Changes, Picture, Touched, catalog::join},
    snapshot::Snapshots,
    translate::{Translation, Update},
};

/// Batches that are taken into one publication at most, so that a steady stream of them cannot put
/// it off for ever.
const BATCHES_AT_ONCE: usize = 256;

/// How long the clock is trusted to go on evenly.
const CLOCK: Duration = Duration::from_secs(60);

/// The single writer of the mirror and of the snapshots.
#[derive(Debug)]
pub struct Publisher {
    catalog: Catalog,
    translation: Translation,
    snapshots: Snapshots,
    metrics: registry::Metrics,
    rejections: Rejections,
    registry: watch::Sender<Picture>,
    resources: watch::Sender<Arc<Snapshots>>,
}

/// Where the publications can be read.
#[derive(Clone, Debug)]
pub struct Readers {
    pub registry: watch::Receiver<Picture>,
    pub snapshots: watch::Receiver<Arc<Snapshots>>,
}

impl Publisher {
    pub fn new(
        catalog: Catalog,
        translation: Translation,
        metrics: registry::Metrics,
    ) -> (Self, Readers) {
        let (registry, registry_reader) = watch::channel(Picture::default());
        let (resources, snapshots) = watch::channel(Arc::default());
        let snapshots_now = Snapshots::default();
        let readers = Readers {
            registry: registry_reader,
            snapshots,
        };
        let publisher = Self {
            catalog,
            translation,
            snapshots: snapshots_now,
            metrics,
            rejections: Rejections::default(),
            registry,
            resources,
        };
        (publisher, readers)
    }

    /// Runs until nobody sends batches any more. There is one receiver for each registry, in the
    /// order of the configuration.
    pub async fn run(mut self, batches: Vec<mpsc::Receiver<Batch>>) {
        let streams = batches.into_iter().map(ReceiverStream::new);
        let mut batches: Batches = streams.enumerate().collect();
        while let Some(next) = self.next(&mut batches).await {
            let now = Instant::now();
            let mut observed = next.as_ref().and_then(|(_, batch)| batch.observed);
            let mut changes = self.take_in(next);
            for _ in 1..BATCHES_AT_ONCE {
                let Some(Some((registry, batch))) = batches.next().now_or_never() else {
                    break;
                };
                observed = [observed, batch.observed].into_iter().flatten().min();
                join(&mut changes, self.take_in(Some((registry, batch))));
            }
            self.publish(changes, observed.unwrap_or(now));
        }
    }

    /// A batch, or that there is something to do without one.
    async fn next(&mut self, batches: &mut Batches) -> Option<Option<(usize, Batch)>> {
        loop {
            tokio::select! {
                batch = batches.next() => return batch.map(Some),
                () = until(self.catalog.due()) => return Some(None),
                () = self.rejections.due() => self.rejections.tell_count(),
            }
        }
    }

    fn take_in(&mut self, batch: Option<(usize, Batch)>) -> Changes {
        let now = now();
        let mut changes = self.catalog.tick(now);
        if let Some((registry, batch)) = batch {
            join(&mut changes, self.catalog.apply(registry, batch, now));
        }
        changes
    }

    fn publish(&mut self, changes: Changes, observed: Instant) {
        let picture = self.catalog.picture();
        if self.catalog.loaded() {
            self.translate(&picture, changes, observed);
        }
        for (registry, counts) in self.catalog.counts() {
            self.metrics.set(registry, counts);
        }
        self.registry.send_replace(picture);
        // Last: the log is in nobody's way.
        self.rejections.tell(self.catalog.take_rejections());
    }

    fn translate(&mut self, picture: &Picture, mut changes: Changes, observed: Instant) {
        let first = !std::mem::replace(&mut self.snapshots.loaded, true);
        if first {
            let all = picture.services.keys().cloned();
            changes.extend(all.map(|name| (name, Touched::All)));
        }
        let services = changes.iter().map(|(name, touched)| {
            let service = picture.services.get(name);
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

/// Milliseconds since the epoch.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}

/// Until the clock shows that time; for ever without one.
async fn until(due: Option<i64>) {
    let Some(due) = due else {
        return std::future::pending().await;
    };
    // The clock may be set meanwhile, so it is looked at now and then.
    let wait = u64::try_from(due.saturating_sub(now())).unwrap_or_default();
    sleep(Duration::from_millis(wait).min(CLOCK)).await;
}

/// A number that log readers can compare, to the microsecond.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
