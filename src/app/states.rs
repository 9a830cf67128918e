//! The last good states of all registries: read at the start, written from then on.
//!
//! It refuses to know what is in them. A state that cannot be used is told of and does not keep the server
//! from starting: the ensemble has the truth.

use std::{convert::Infallible, path::Path, sync::Arc};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    publish::{Publisher, Record},
    registry::{self, Former, Stat},
    shutdown::Tasks,
    state::{Identity, Metrics, Recorder, Writer},
};

/// What of a registry's tree a former process published.
pub type Known = Option<Vec<(Arc<str>, Stat)>>;

/// Reads a registry's state, hands it to the publisher, and has what follows recorded.
#[derive(Debug)]
pub struct States<'a> {
    pub directory: &'a Path,
    pub metrics: Metrics,
    pub stop: CancellationToken,
}

impl States<'_> {
    /// Of the registry at that place of the configuration.
    pub fn keep(
        &self,
        at: usize,
        connect: &str,
        config: &registry::Config,
        publisher: &mut Publisher,
        tasks: &mut Tasks,
    ) -> Known {
        let identity = Identity {
            name: config.name.clone(),
            connect: connect.to_owned(),
            root: config.root.clone(),
            format: format!("{} {}", config.format, config.layout),
        };
        let (recorder, known) = self.restore(at, &identity, publisher);
        let (sender, pictures) = watch::channel(None);
        publisher.record(at, Record::new(recorder, sender));
        let metrics = self.metrics.clone();
        let writer = Writer::new(self.directory, identity, metrics, pictures);
        let written = writer.run(self.stop.clone());
        tasks.spawn(
            "state",
            async move { written.await.map_err(|e: Infallible| e) },
        );
        known
    }

    fn restore(
        &self,
        at: usize,
        identity: &Identity,
        publisher: &mut Publisher,
    ) -> (Recorder, Known) {
        let registry = &identity.name;
        let restored = match crate::state::read(self.directory, identity) {
            Ok(Some(restored)) => restored,
            Ok(None) => return (Recorder::default(), None),
            Err(error) => {
                self.metrics.failed(registry);
                warn!(%registry, %error, "the last good state cannot be used; a start without ZooKeeper has nothing to serve");
                return (Recorder::default(), None);
            }
        };
        let (recorder, known) = (restored.recorder(), restored.versions().collect());
        info!(%registry, znodes = restored.len(), "the last good state is read; ZooKeeper is compared with it");
        publisher.restore(
            at,
            Former {
                away: restored.away,
                replay: restored.replay(),
                addresses: restored.addresses(),
                held: restored.held,
                trip: restored.trip,
                recent: restored.recent,
            },
        );
        (recorder, Some(known))
    }
}
