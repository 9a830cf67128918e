//! Tells probes whether the server serves, and operators what is odd.
//!
//! It refuses to know why a registry is away, held back or restored: each says so itself. Invariant: what is
//! noted is what the last picture of the registries and the last states of the sessions say.

use std::{
    convert::Infallible,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::health;
use crate::{
    config,
    readiness::Readiness,
    registry::{Mirrored, Picture},
    snapshot::Snapshots,
    zookeeper::{State, Status},
};

/// What clients wait for beside the registries: host names that are still looked up.
const FIRST_SNAPSHOT: &str = "the first snapshot, with host names looked up";

/// A registry, as far as probes and operators are concerned.
pub struct Watched {
    name: String,
    /// What readiness waits for, as it is called there; nothing for one that may be away.
    pending: Option<String>,
    loaded: bool,
    states: watch::Receiver<State>,
}

impl Watched {
    pub fn new(
        registry: &config::Registry,
        states: watch::Receiver<State>,
        readiness: &Readiness,
    ) -> Self {
        let pending = registry
            .required
            .then(|| format!("registry {}", registry.name));
        if let Some(pending) = &pending {
            readiness.pending(pending);
        }
        Self {
            name: registry.name.clone(),
            pending,
            loaded: false,
            states,
        }
    }
}

/// Tells probes whether the server serves, and operators what is odd.
pub struct Reporter {
    pub watched: Vec<Watched>,
    pub readiness: Readiness,
    pub health: HealthReporter,
    pub registry: watch::Receiver<Picture>,
    pub snapshots: watch::Receiver<Arc<Snapshots>>,
    pub stop: CancellationToken,
}

impl Reporter {
    pub async fn run(mut self) -> Result<(), Infallible> {
        let mut served = false;
        loop {
            self.note_loaded();
            let loaded = self.snapshots.borrow_and_update().loaded;
            if loaded && !served {
                served = true;
                self.readiness.done(FIRST_SNAPSHOT);
                health::report(&self.health, ServingStatus::Serving).await;
            }
            self.note_states();
            tokio::select! {
                () = self.stop.cancelled() => break,
                Ok(()) = self.snapshots.changed(), if !served => {}
                Ok(()) = self.registry.changed() => {}
                () = any_changed(&mut self.watched) => {}
                else => break,
            }
        }
        self.stop.cancelled().await;
        self.readiness.pending("the server stops");
        health::report(&self.health, ServingStatus::NotServing).await;
        Ok(())
    }

    fn note_loaded(&mut self) {
        let picture = self.registry.borrow_and_update().clone();
        // It may wait for host names when all else is there.
        let published = self.snapshots.borrow().loaded;
        if !published && picture.registries.iter().any(|mirrored| mirrored.loaded) {
            self.readiness.pending(FIRST_SNAPSHOT);
        }
        let any_loaded = picture.registries.iter().any(|mirrored| mirrored.loaded);
        for (watched, mirrored) in self.watched.iter_mut().zip(picture.registries.iter()) {
            note(
                &self.readiness,
                &format!("guard {}", watched.name),
                held(mirrored),
            );
            note(
                &self.readiness,
                &format!("registry {}", watched.name),
                restored(mirrored),
            );
            let waits_for = !(mirrored.loaded || (mirrored.absent && any_loaded));
            if !waits_for && !std::mem::replace(&mut watched.loaded, true) {
                watched
                    .pending
                    .iter()
                    .for_each(|pending| self.readiness.done(pending));
            }
        }
    }

    fn note_states(&mut self) {
        for watched in &mut self.watched {
            let subject = format!("zookeeper {}", watched.name);
            let state = watched.states.borrow_and_update().clone();
            match &state.status {
                Status::Synced => self.readiness.clear_note(&subject),
                status => self
                    .readiness
                    .note(&subject, &Ago(status, state.since).to_string()),
            }
        }
    }
}

fn note(readiness: &Readiness, subject: &str, text: Option<String>) {
    match text {
        Some(text) => readiness.note(subject, &text),
        None => readiness.clear_note(subject),
    }
}

fn held(mirrored: &Mirrored) -> Option<String> {
    let holds = &mirrored.view.holds;
    let (held, services) = (holds.held(), holds.services.len());
    let plural = if services == 1 { "" } else { "s" };
    (held > 0).then(|| {
        format!(
            "{held} instances of {services} service{plural} are held: gone, and served since too many went at once (`meshkeeper holds`)"
        )
    })
}

fn restored(mirrored: &Mirrored) -> Option<String> {
    let restored = mirrored.restored.filter(|restored| restored.served)?;
    let since = Duration::from_millis(u64::try_from(restored.known).unwrap_or_default());
    let since = prost_types::Timestamp::from(SystemTime::UNIX_EPOCH + since);
    Some(format!(
        "restored from disk, as of {since}; not yet compared with ZooKeeper"
    ))
}

/// Until any registry stands otherwise; for ever once nobody tells.
async fn any_changed(watched: &mut [Watched]) {
    let changes = watched.iter_mut().map(|watched| {
        Box::pin(async {
            if watched.states.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    });
    futures_util::future::select_all(changes).await;
}

/// A state with the time of day since when it holds.
struct Ago<'a>(&'a Status, Instant);

impl fmt::Display for Ago<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = SystemTime::now() - self.1.elapsed();
        write!(
            f,
            "{} (since {})",
            self.0,
            prost_types::Timestamp::from(since)
        )
    }
}
