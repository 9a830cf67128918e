//! Host names in registrations, looked up and kept up to date.
//!
//! ```text
//! names wanted ──▶ Names (what is due, what is known) ──▶ look-ups, some at once ──▶ Resolved
//! ```
//!
//! Names are looked up as every other program of this machine does it: by its hosts file, search domains
//! and whatever else it is set up with. That tells no time to live, so all are looked up again after one
//! interval; a DNS client of our own would know it, at the price of other answers than the machine's.
//! It refuses to know instances. Invariant: a name that was resolved once keeps its addresses until it
//! is resolved to others or nobody wants it; no failure takes any away. What holds after each
//! look-up is told in the order of time, news or not, were it that a name cannot be resolved.

mod metrics;
mod names;

use std::{
    convert::Infallible,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use imbl::OrdSet;
use tokio::{
    net::lookup_host,
    sync::{mpsc, watch},
    time::{sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::{
    metrics::Metrics,
    names::{Names, Resolved},
};

/// Look-ups that are under way at once; each takes a thread while it lasts.
const AT_ONCE: usize = 16;
/// How long one may take: about what a name server that lives needs at most. Longer ones go on in their
/// threads, as nothing can end them, and are asked for again.
const PATIENCE: Duration = Duration::from_secs(5);
/// How soon the log may say again that names in use cannot be looked up, if their number changed.
const HINT: Duration = Duration::from_secs(60);
/// How often it says so while nothing changes.
const REMINDER: Duration = Duration::from_secs(3600);

pub type Answer = Result<Vec<IpAddr>, String>;

/// Looks names up until `stop`, or until nobody wants any or takes the answers.
pub async fn run(
    refresh: Duration,
    metrics: Metrics,
    wanted: watch::Receiver<OrdSet<Arc<str>>>,
    changes: mpsc::Sender<Vec<Resolved>>,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let resolver = Resolver {
        names: Names::new(refresh),
        look_up: |name: Arc<str>| async move { look_up(&name).await }.boxed(),
        patience: PATIENCE,
        metrics,
        told: None,
    };
    resolver.run(wanted, changes, stop).await;
    Ok(())
}

/// By the machine's own resolver, both families.
async fn look_up(name: &str) -> Answer {
    let found = lookup_host((name, 0))
        .await
        .map_err(|error| error.to_string())?;
    Ok(found.map(|address| address.ip()).collect())
}

struct Resolver<L> {
    names: Names,
    look_up: L,
    patience: Duration,
    metrics: Metrics,
    /// When the log last said that names in use cannot be looked up, and how many.
    told: Option<(Instant, usize)>,
}

type LookUps = FuturesUnordered<BoxFuture<'static, (Arc<str>, Answer)>>;

impl<L: Fn(Arc<str>) -> BoxFuture<'static, Answer>> Resolver<L> {
    async fn run(
        mut self,
        mut wanted: watch::Receiver<OrdSet<Arc<str>>>,
        changes: mpsc::Sender<Vec<Resolved>>,
        stop: CancellationToken,
    ) {
        let mut look_ups = LookUps::new();
        let mut resolved = Vec::new();
        self.names.want(&wanted.borrow_and_update(), Instant::now());
        loop {
            self.begin(&mut look_ups);
            self.tell();
            let due = self.names.next().filter(|_| look_ups.len() < AT_ONCE);
            tokio::select! {
                () = stop.cancelled() => return,
                more = wanted.changed() => {
                    if more.is_err() {
                        return;
                    }
                    self.names.want(&wanted.borrow_and_update(), Instant::now());
                }
                permit = changes.reserve(), if !resolved.is_empty() => {
                    let Ok(permit) = permit else { return };
                    permit.send(std::mem::take(&mut resolved));
                }
                Some((name, answer)) = look_ups.next(), if !look_ups.is_empty() => {
                    self.metrics.answered(answer.is_ok());
                    resolved.extend(self.names.answered(&name, answer, Instant::now()));
                }
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {}
            }
        }
    }

    fn begin(&mut self, look_ups: &mut LookUps) {
        while look_ups.len() < AT_ONCE
            && let Some(name) = self.names.due(Instant::now())
        {
            let answer = timeout(self.patience, (self.look_up)(Arc::clone(&name)));
            let late = format!("no answer within {:?}", self.patience);
            let answer = answer.map(|answer| (name, answer.unwrap_or(Err(late))));
            look_ups.push(answer.boxed());
        }
    }

    /// Logs that names in use cannot be looked up: once for all of them, with one as an example, and again at a
    /// bounded rate. A name that was never found is reported with the znode that it keeps from being served.
    fn tell(&mut self) {
        let state = self.names.state();
        self.metrics.set(&state);
        let now = Instant::now();
        let due = self.told.is_none_or(|(at, told)| {
            let since = now.duration_since(at);
            since >= REMINDER || (since >= HINT && told != state.lasting)
        });
        match (&state.failing, self.told) {
            (Some((name, reason)), _) if due => {
                self.told = Some((now, state.lasting));
                warn!(
                    %name, %reason, names = state.lasting,
                    "host names cannot be looked up; retrying, and the addresses found before stay in use"
                );
            }
            (None, Some(_)) => {
                self.told = None;
                info!(
                    names = state.wanted,
                    "the host names in use can be looked up again"
                );
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
