//! Writes pictures of a registry as they come, and no more often than the disk likes.
//!
//! It refuses to know what is in them. Encoding and writing are done on a thread for blocking work; changes
//! that come meanwhile are written together. Invariant: the last picture is written at the end; between two
//! writes lie [`PAUSE`] and twenty times what the last one took; a write that fails is told of once, and tried
//! again.

use std::{
    convert::Infallible,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus::{IntCounterVec, IntGaugeVec, Opts};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Identity, Picture, codec, file::Place};
use crate::registry::guard::Time;

/// Between two writes, at least.
const PAUSE: Duration = Duration::from_secs(3);
/// How much longer than writing not writing takes.
const REST: u32 = 20;
/// How often the file is told to hold still.
const TOUCH: Duration = Duration::from_secs(10);

/// How long the last picture may take to come.
const LAST: Duration = Duration::from_secs(3);

#[derive(Clone, Debug)]
pub struct Metrics {
    pub restored: IntGaugeVec,
    pub errors: IntCounterVec,
    bytes: IntGaugeVec,
    written: IntGaugeVec,
}

impl Metrics {
    pub fn register(registry: &prometheus::Registry) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGaugeVec> {
            let gauge = IntGaugeVec::new(Opts::new(name, help), &["registry"])?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let restored = gauge(
            "meshkeeper_state_restored",
            "1 while what is served was restored from disk and not yet compared with ZooKeeper.",
        )?;
        let bytes = gauge(
            "meshkeeper_state_bytes",
            "Size of the last state that was written.",
        )?;
        let written = gauge(
            "meshkeeper_state_written_timestamp_seconds",
            "When a state was last written.",
        )?;
        let errors = IntCounterVec::new(
            Opts::new(
                "meshkeeper_state_errors_total",
                "States that could not be read or written.",
            ),
            &["registry"],
        )?;
        registry.register(Box::new(errors.clone()))?;
        Ok(Self {
            restored,
            errors,
            bytes,
            written,
        })
    }
}

/// Writes the states of one registry.
#[derive(Debug)]
pub struct Writer {
    identity: Identity,
    place: Place,
    metrics: Metrics,
    pictures: watch::Receiver<Option<Picture>>,
    failed: bool,
}

impl Writer {
    /// Nothing is written before there is a picture.
    pub fn new(
        directory: &std::path::Path,
        identity: Identity,
        metrics: Metrics,
        pictures: watch::Receiver<Option<Picture>>,
    ) -> Self {
        let name = [identity.name.as_str()];
        // So that they are there before anything happens.
        metrics.restored.with_label_values(&name);
        metrics.errors.with_label_values(&name);
        Self {
            place: Place::new(directory, &identity.name),
            identity,
            metrics,
            pictures,
            failed: false,
        }
    }

    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Infallible> {
        let mut next = Instant::now();
        let mut touch = Instant::now() + TOUCH;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                changed = self.pictures.changed() => if changed.is_err() {
                    break;
                },
                () = sleep_until(touch) => {
                    touch = Instant::now() + TOUCH;
                    self.touch().await;
                    continue;
                }
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep_until(next) => {}
            }
            let began = Instant::now();
            self.write().await;
            let took = began.elapsed();
            next = Instant::now() + PAUSE.max(took * REST);
            touch = Instant::now() + TOUCH;
        }
        // Whoever draws the pictures may still be at its last one.
        let drawn = async { while self.pictures.changed().await.is_ok() {} };
        let _ = timeout(LAST, drawn).await;
        self.write().await;
        stop.cancelled().await;
        Ok(())
    }

    async fn write(&mut self) {
        let picture = self.pictures.borrow_and_update().clone();
        let Some(picture) = picture else {
            return;
        };
        let (identity, place) = (self.identity.clone(), self.place.clone());
        let written = tokio::task::spawn_blocking(move || {
            let bytes = codec::encode(&identity, now(), &picture);
            place.write(&bytes).map(|()| bytes.len())
        });
        let name = [self.identity.name.as_str()];
        match written.await {
            Ok(Ok(bytes)) => {
                let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
                self.metrics.bytes.with_label_values(&name).set(bytes);
                self.metrics
                    .written
                    .with_label_values(&name)
                    .set(now() / 1_000);
                if std::mem::take(&mut self.failed) {
                    info!(registry = name[0], "the state can be written again");
                }
            }
            Ok(Err(error)) => self.fail(&error.to_string()),
            Err(error) => self.fail(&error.to_string()),
        }
    }

    fn fail(&mut self, error: &str) {
        let registry = self.identity.name.as_str();
        self.metrics.errors.with_label_values(&[registry]).inc();
        // At the next change it is tried again; a full disk is told of once.
        if !std::mem::replace(&mut self.failed, true) {
            let path: PathBuf = self.place.path();
            warn!(registry, path = %path.display(), %error, "the state cannot be written; a restart without ZooKeeper would serve an older one, or none");
        }
    }

    async fn touch(&self) {
        if self.failed || self.pictures.borrow().is_none() {
            return;
        }
        let place = self.place.clone();
        // If the file is gone, the next write makes it.
        let _ = tokio::task::spawn_blocking(move || place.touch()).await;
    }
}

fn now() -> Time {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
