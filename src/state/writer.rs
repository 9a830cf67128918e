//! Writes pictures of a registry as they come, and no more often than the disk likes.
//!
//! Encoding and writing are done on a thread for blocking work; changes
//! that come meanwhile are written together. Invariant: the last picture is written at the end; between two
//! writes lie [`PAUSE`] and twenty times what the last one took; a write that fails is told of once, and tried
//! again, as is the lock that another process holds.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    time::Duration,
};

use prometheus::{IntCounterVec, IntGaugeVec, Opts};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Identity, Picture,
    clock::{self, Stamp},
    file::{self, Lock, Place},
};

/// Between two writes, at least.
const PAUSE: Duration = Duration::from_secs(3);
/// How much longer than writing not writing takes.
const REST: u32 = 20;
/// How often the file is told that it is still true.
const TOUCH: Duration = Duration::from_secs(10);

/// How long the last picture may take to come.
const LAST: Duration = Duration::from_secs(3);

#[derive(Clone, Debug)]
pub struct Metrics {
    errors: IntCounterVec,
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
            errors,
            bytes,
            written,
        })
    }

    /// Counts a state that could not be read or written.
    pub fn failed(&self, registry: &str) {
        self.errors.with_label_values(&[registry]).inc();
    }
}

/// Writes the states of one registry.
#[derive(Debug)]
pub struct Writer {
    identity: Identity,
    directory: PathBuf,
    place: Place,
    metrics: Metrics,
    pictures: watch::Receiver<Option<Picture>>,
    /// Without it another process writes the state.
    lock: Option<Lock>,
    failed: bool,
}

impl Writer {
    /// Nothing is written before there is a picture.
    pub fn new(
        directory: &Path,
        identity: Identity,
        metrics: Metrics,
        pictures: watch::Receiver<Option<Picture>>,
    ) -> Self {
        // So that it is there before anything happens.
        metrics.errors.with_label_values(&[&identity.name]);
        Self {
            place: Place::new(directory, &identity.name),
            directory: directory.to_owned(),
            identity,
            metrics,
            pictures,
            lock: None,
            failed: false,
        }
    }

    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Infallible> {
        let mut next = Instant::now();
        let mut touch = Instant::now() + TOUCH;
        // Another writer is worth a warning before there is anything to write.
        self.lock().await;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                changed = self.pictures.changed() => if changed.is_err() {
                    break;
                },
                () = sleep_until(next), if self.failed => {}
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
        if !self.lock().await {
            return;
        }
        let (identity, directory) = (self.identity.clone(), self.directory.clone());
        let written = tokio::task::spawn_blocking(move || {
            let stamp = picture.kept.unseen.map_or_else(Stamp::now, Stamp::of);
            file::write(&directory, &identity, &stamp, &picture)
        });
        let name = [self.identity.name.as_str()];
        match written.await {
            Ok(Ok(bytes)) => {
                let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
                self.metrics.bytes.with_label_values(&name).set(bytes);
                self.metrics
                    .written
                    .with_label_values(&name)
                    .set(clock::now().wall / 1_000);
                if std::mem::take(&mut self.failed) {
                    info!(registry = name[0], "the state can be written again");
                }
            }
            Ok(Err(error)) => self.fail(&error.to_string()),
            Err(error) => self.fail(&error.to_string()),
        }
    }

    /// Whether this process may write.
    async fn lock(&mut self) -> bool {
        if self.lock.is_some() {
            return true;
        }
        let place = self.place.clone();
        match tokio::task::spawn_blocking(move || place.lock()).await {
            Ok(Ok(lock)) => self.lock = Some(lock),
            Ok(Err(error)) => self.fail(&error.to_string()),
            Err(error) => self.fail(&error.to_string()),
        }
        self.lock.is_some()
    }

    fn fail(&mut self, error: &str) {
        let registry = self.identity.name.as_str();
        self.metrics.failed(registry);
        // It is tried again after a pause; a full disk is told of once.
        if !std::mem::replace(&mut self.failed, true) {
            let path: PathBuf = self.place.path();
            warn!(registry, path = %path.display(), %error, "the state cannot be written; a restart without ZooKeeper would serve an older one, or none");
        }
    }

    async fn touch(&self) {
        let seen = |picture: &Picture| picture.kept.unseen.is_none();
        if self.failed || !self.pictures.borrow().as_ref().is_some_and(seen) {
            return;
        }
        let place = self.place.clone();
        // If the file is gone, the next write makes it.
        let _ = tokio::task::spawn_blocking(move || place.touch(&Stamp::now())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::read;

    #[tokio::test]
    async fn a_write_that_failed_is_tried_again_though_nothing_changes() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("state");
        // A file where the directory should be.
        std::fs::write(&directory, "").unwrap();
        let identity = Identity {
            name: "main".into(),
            connect: "127.0.0.1:1".into(),
            root: "/services".into(),
            format: "auto".into(),
        };
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let (sender, pictures) = watch::channel(None);
        let writer = Writer::new(&directory, identity.clone(), metrics.clone(), pictures);
        let stop = CancellationToken::new();
        let running = tokio::spawn(writer.run(stop.clone()));
        sender.send_replace(Some(Picture::default()));
        let failed = || metrics.errors.with_label_values(&["main"]).get() > 0;
        let wait = Duration::from_millis(20);
        while !failed() {
            tokio::time::sleep(wait).await;
        }
        std::fs::remove_file(&directory).unwrap();
        std::fs::create_dir(&directory).unwrap();
        let written = async {
            while !matches!(read(&directory, &identity), Ok(Some(_))) {
                tokio::time::sleep(wait).await;
            }
        };
        timeout(PAUSE * 10, written).await.unwrap();
        drop(sender);
        stop.cancel();
        running.await.unwrap().unwrap();
    }
}
