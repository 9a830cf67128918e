//! What operators hear of a registry: its state for readiness, its log lines, its figures.
//!
//! It refuses to decide anything. Invariant: a trouble is said aloud at once where it is new, and now
//! and then while it lasts.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::Watcher;
use crate::{
    registry::Batch,
    zookeeper::{
        Status,
        tree::{Phase, Tally},
    },
};

impl Watcher {
    pub(super) fn completed(&mut self, first: bool, found: Tally) {
        self.backoff.reset();
        let now = Instant::now();
        self.trouble.over(now);
        self.access.works(&self.with);
        let took = self.pacing.end(now);
        self.metrics.load_seconds.observe(took.as_secs_f64());
        let took_ms = millis(took);
        let registry = &self.config.name;
        let Tally {
            added,
            changed,
            removed,
        } = found;
        if first {
            info!(%registry, znodes = added, took_ms, "loaded");
            return;
        }
        self.metrics.resyncs.inc();
        if removed == 0 {
            info!(%registry, added, changed, removed, took_ms, "compared with ZooKeeper again");
        } else {
            warn!(
                %registry, added, changed, removed, took_ms,
                "compared with ZooKeeper again; what was removed was deregistered meanwhile, or the ensemble lost it"
            );
        }
    }

    /// For how many milliseconds there has been trouble by now.
    pub(super) fn outage(&self) -> Option<u64> {
        let lasted = self.trouble.lasted(Instant::now())?;
        Some(millis(lasted))
    }

    /// There is no connection, and the log hears why: at once where the reason is new, else now and
    /// then.
    pub(super) fn lost(&mut self, reason: String) {
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
    pub(super) fn denied(&mut self) {
        let root = format!(
            "{}{}",
            self.access.ensemble.address.chroot, self.config.root
        );
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
    /// registry is too busy to hear of it, it is told as soon as there is room.
    pub(super) fn tell_stale(&mut self) {
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
    pub(super) fn tell(&mut self) {
        let status = match self.tree.phase() {
            Phase::Arming | Phase::Loading => Status::Loading,
            Phase::RootAbsent => Status::RootAbsent {
                root: format!(
                    "{}{}",
                    self.access.ensemble.address.chroot, self.config.root
                ),
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

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
