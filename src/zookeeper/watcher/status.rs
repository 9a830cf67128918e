//! What operators hear of a registry: its state for readiness, its log lines, its figures.
//!
//! It refuses to decide anything. Invariant: a trouble is said aloud at once where it is new, and now
//! and then while it lasts.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};
use zookeeper_client::Client;

use super::{Watcher, absent::Beside, link::is_read_only};
use crate::{
    registry::Batch,
    zookeeper::{
        Error, READ_ONLY, Status,
        tree::{Phase, Tally},
    },
};

/// `setAcl` replaces an ACL, so what is there has to be written again.
const ADD_READ: &str = "add read permission for MeshKeeper's user, or world:anyone:r, to the ACLs of the root and of \
     what is below it (setAcl replaces an ACL: write the entries that getAcl shows, and this one)";

impl Watcher {
    pub(super) fn completed(&mut self, first: bool, found: Tally) {
        self.backoff.reset();
        let now = Instant::now();
        self.trouble.over(now);
        self.access.works(&self.with);
        let took = self.pacing.end(now);
        self.metrics.load_seconds.observe(took.as_secs_f64());
        // Nothing can be written there, so nothing lapses that is not written.
        self.stale |= self.read_only;
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

    pub(super) fn established(&mut self, client: &Client) {
        self.read_only = is_read_only(client);
        self.metrics.connected.set(1);
        self.metrics.sessions.inc();
        let registry = &self.config.name;
        info!(
            %registry, session = %client.session_id(), timeout = ?client.session_timeout(),
            outage_ms = self.outage(), "ZooKeeper session established"
        );
        if self.read_only {
            warn!(%registry, "{READ_ONLY}");
        }
    }

    /// There is no connection, and the log hears why: at once where the reason is new, else now and
    /// then.
    pub(super) fn lost(&mut self, reason: String) {
        if self.trouble.is_news(&reason, Instant::now()) {
            let (registry, connect) = (&self.config.name, &self.config.connect);
            if self.tree.loaded() {
                warn!(%registry, %connect, %reason, "no connection to ZooKeeper; retrying; the last known instances stay served");
            } else {
                let key = &self.config.connect_key;
                warn!(
                    %registry, %connect, %reason,
                    "no connection to ZooKeeper; retrying; nothing of this registry is served yet: start ZooKeeper, or set {key}"
                );
            }
        }
        self.forget(reason);
    }

    /// ZooKeeper answers, but refuses to name the services.
    pub(super) fn denied(&mut self) -> Result<(), Error> {
        let root = self.full_root();
        let reason = format!("may not list {root}: no permission");
        if self.once {
            return Err(self.unreachable(format!("{reason}; {ADD_READ}")));
        }
        if self.trouble.is_news(&reason, Instant::now()) {
            let served = if self.tree.loaded() {
                "the last known instances stay served"
            } else {
                "nothing of this registry is served yet"
            };
            warn!(
                registry = %self.config.name, %root, served,
                "permission denied listing the root; retrying; {ADD_READ}"
            );
        }
        self.forget(reason);
        Ok(())
    }

    /// There is no root, and this is there instead.
    pub(super) fn root_is_absent(&mut self, beside: Beside) {
        let root = self.full_root();
        let reason = format!("`{root}` does not exist; {beside}");
        if self.trouble.is_news(&reason, Instant::now()) {
            warn!(registry = %self.config.name, %root, "{reason}; waiting for it to be created");
        }
        self.beside = Some(beside);
        // What a server without a quorum has may be old.
        self.absent = !self.read_only;
    }

    /// With the chroot.
    pub(super) fn full_root(&self) -> String {
        let chroot = &self.access.ensemble.address.chroot;
        match &*self.config.root {
            "/" if !chroot.is_empty() => chroot.clone(),
            root => format!("{chroot}{root}"),
        }
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
            Phase::RootAbsent => match &self.beside {
                None => Status::Loading,
                Some(beside) => Status::RootAbsent {
                    root: self.full_root(),
                    beside: beside.to_string(),
                },
            },
            Phase::Synced if self.read_only => Status::ReadOnly,
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
