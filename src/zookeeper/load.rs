//! One load of a tree and no more, for those who look at a registry without following it.
//!
//! It is the watcher's own load, so it reads what a server reads, by the same layout and within the
//! same bounds. Nothing is written, and the session is closed behind it. Invariant: what it returns is
//! a tree that was read to its end.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{Config, Error, Metrics, State, Status, Watcher};
use crate::registry::{Batch, Event};

/// A tree as it was read.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Puts, by path relative to the root.
    pub events: Vec<Event>,
    /// What exists and may not or cannot be read.
    pub unreadable: BTreeSet<Arc<str>>,
}

impl Loaded {
    fn of(events: Vec<Event>) -> Self {
        let mut loaded = Self::default();
        for event in events {
            if let Event::Unreadable { path } = event {
                loaded.unreadable.insert(path);
            } else {
                loaded.events.push(event);
            }
        }
        loaded
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Invalid(#[from] Error),
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
    #[error("registry {name}: {root} does not exist; {beside}")]
    RootAbsent {
        name: String,
        root: String,
        beside: String,
    },
    #[error("registry {name}: not read within {patience:?}: {status}")]
    Late {
        name: String,
        patience: Duration,
        status: Status,
    },
}

/// Reads the whole tree, which may take `patience` with all that it takes to get there. Does not wait for
/// servers that are away, nor for a root.
pub async fn load(config: Config, patience: Duration) -> Result<Loaded, LoadError> {
    let name = config.name.clone();
    let metrics = Metrics::register(&prometheus::Registry::new())?;
    let (sender, mut batches) = mpsc::channel(4);
    let (tells, mut state) = watch::channel(State::new());
    let stop = CancellationToken::new();
    let watcher = Watcher::new(config, &metrics, sender, tells)?.once();
    let mut running = Box::pin(watcher.run(stop.clone()));

    let gathering = timeout(patience, gather(&mut batches, &mut state));
    let gathered = tokio::select! {
        gathered = gathering => gathered,
        ended = &mut running => return Err(ended.err().map_or_else(|| late(name, patience, &state), LoadError::from)),
    };
    stop.cancel();
    running.await?;
    match gathered {
        Ok(Ok(events)) => Ok(Loaded::of(events)),
        Ok(Err((root, beside))) => Err(LoadError::RootAbsent { name, root, beside }),
        Err(_) => Err(late(name, patience, &state)),
    }
}

fn late(name: String, patience: Duration, state: &watch::Receiver<State>) -> LoadError {
    LoadError::Late {
        name,
        patience,
        status: state.borrow().status.clone(),
    }
}

/// Everything up to the end of the load; `Err` names the root that does not exist, and what is beside it.
async fn gather(
    batches: &mut mpsc::Receiver<Batch>,
    state: &mut watch::Receiver<State>,
) -> Result<Vec<Event>, (String, String)> {
    let mut events = Vec::new();
    let absent = |state: &State| matches!(state.status, Status::RootAbsent { .. });
    loop {
        tokio::select! {
            biased;
            Some(batch) = batches.recv() => {
                events.extend(batch.events);
                if batch.complete {
                    return Ok(events);
                }
            }
            Ok(state) = state.wait_for(absent) => {
                if let Status::RootAbsent { root, beside } = &state.status {
                    return Err((root.clone(), beside.clone()));
                }
            }
            else => std::future::pending().await,
        }
    }
}
