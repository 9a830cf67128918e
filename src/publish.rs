//! The loop between the registry and the clients: batches in, snapshots out.
//!
//! It refuses to know znodes, payloads and messages; it owns the three machines that do and is their
//! only writer. Batches that wait are taken together, so a burst is translated once and a quiet
//! registry publishes at once. Invariant: nothing is published before the registry was mirrored
//! completely, and what is published then shows exactly what the registry shows.

mod rejections;

use std::{
    collections::btree_map::Entry,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, watch};
use tracing::{debug, info};

use self::rejections::Rejections;
use crate::{
    registry::{self, Batch, Changes, Index, Touched, View},
    snapshot::Snapshots,
    translate::{Translation, Update},
};

/// Batches that are taken into one publication at most, so that a steady stream of them cannot put
/// it off for ever.
const BATCHES_AT_ONCE: usize = 256;

/// The single writer of the mirror and of the snapshots.
#[derive(Debug)]
pub struct Publisher {
    index: Index,
    translation: Translation,
    snapshots: Snapshots,
    metrics: registry::Metrics,
    rejections: Rejections,
    registry: watch::Sender<View>,
    resources: watch::Sender<Arc<Snapshots>>,
}

/// Where the publications can be read.
#[derive(Clone, Debug)]
pub struct Readers {
    pub registry: watch::Receiver<View>,
    pub snapshots: watch::Receiver<Arc<Snapshots>>,
}

impl Publisher {
    pub fn new(
        index: Index,
        translation: Translation,
        metrics: registry::Metrics,
    ) -> (Self, Readers) {
        let (registry, registry_reader) = watch::channel(View::default());
        let (resources, snapshots) = watch::channel(Arc::default());
        let snapshots_now = Snapshots::default();
        let readers = Readers {
            registry: registry_reader,
            snapshots,
        };
        let publisher = Self {
            index,
            translation,
            snapshots: snapshots_now,
            metrics,
            rejections: Rejections::default(),
            registry,
            resources,
        };
        (publisher, readers)
    }

    /// Runs until the sender of batches is gone.
    pub async fn run(mut self, mut batches: mpsc::Receiver<Batch>) {
        while let Some(batch) = self.next(&mut batches).await {
            let now = Instant::now();
            let mut observed = batch.observed.unwrap_or(now);
            let mut changes = self.index.apply(batch);
            for _ in 1..BATCHES_AT_ONCE {
                let Ok(batch) = batches.try_recv() else {
                    break;
                };
                observed = observed.min(batch.observed.unwrap_or(now));
                for (name, touched) in self.index.apply(batch) {
                    match changes.entry(name) {
                        Entry::Vacant(entry) => drop(entry.insert(touched)),
                        Entry::Occupied(mut entry) => entry.get_mut().merge(touched),
                    }
                }
            }
            self.publish(changes, observed);
        }
    }

    async fn next(&mut self, batches: &mut mpsc::Receiver<Batch>) -> Option<Batch> {
        loop {
            tokio::select! {
                batch = batches.recv() => return batch,
                () = self.rejections.due() => self.rejections.tell_count(),
            }
        }
    }

    fn publish(&mut self, changes: Changes, observed: Instant) {
        let view = self.index.view();
        if self.index.loaded() {
            self.translate(&view, changes, observed);
        }
        self.metrics
            .set(&self.index.config().name, self.index.counts());
        self.registry.send_replace(view);
        // Last: the log is in nobody's way.
        self.rejections.tell(self.index.take_rejections());
    }

    fn translate(&mut self, view: &View, mut changes: Changes, observed: Instant) {
        let first = !std::mem::replace(&mut self.snapshots.loaded, true);
        if first {
            let all = view.services.keys().cloned();
            changes.extend(all.map(|name| (name, Touched::All)));
        }
        let services = changes.iter().map(|(name, touched)| {
            let service = view.services.get(name);
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
            let (services, resources) = (view.services.len(), written);
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

/// A number that log readers can compare, to the microsecond.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
