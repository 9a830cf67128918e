//! The slow check of the clients: who has not had, or not answered, what there is for too long.
//!
//! A client that does not answer is stuck, or its network is; one to which something is due that is not
//! sent means that a stream of ours sleeps. It refuses to mend either, and stays out of the way of the
//! streams: each is looked at for a moment, many seconds apart. Invariant: a stream that keeps falling
//! behind and catching up is never told of; one that stays behind is told of once.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus::IntGaugeVec;
use tokio::{
    sync::watch,
    task::yield_now,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{clients::Clients, stream::Lag};
use crate::{resource::ResourceType, snapshot::Snapshots};

const EVERY: Duration = Duration::from_secs(10);
/// For how long a client may be behind.
const PATIENCE: Duration = Duration::from_secs(30);
/// Streams that are looked at before others get their turn.
const AT_ONCE: usize = 64;
/// Lines in the log for each check.
const LINES: usize = 10;

/// Looks at all open streams, now and then until `stop`.
pub async fn run(
    clients: Clients,
    snapshots: watch::Receiver<Arc<Snapshots>>,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut audit = Audit::default();
    let behind = clients.metrics().clients_behind.clone();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = ticks.tick() => audit.round(&clients, &snapshots, &behind).await,
        }
    }
}

#[derive(Debug, Default)]
struct Audit {
    /// Who was behind at the last check.
    behind: HashMap<(u64, ResourceType), Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    lag: Lag,
    since: Instant,
    /// It is too long, and that was said.
    told: bool,
}

/// What is said of one client that is behind for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Late {
    since: Instant,
    /// It was not said before.
    news: bool,
}

impl Audit {
    async fn round(
        &mut self,
        clients: &Clients,
        snapshots: &watch::Receiver<Arc<Snapshots>>,
        gauge: &IntGaugeVec,
    ) {
        let snapshots = snapshots.borrow().clone();
        let (mut next, mut lines) = (HashMap::new(), 0_usize);
        let mut counts = ResourceType::ALL.map(|_| 0_i64);
        for (looked_at, (id, entry)) in clients.numbered().into_iter().enumerate() {
            if looked_at % AT_ONCE == AT_ONCE - 1 {
                yield_now().await;
            }
            let now = Instant::now();
            for (kind, lag) in entry.stream().lags(&snapshots) {
                let (seen, late) = self.judge((id, kind), lag, now);
                next.insert((id, kind), seen);
                let Some(late) = late else { continue };
                counts[kind as usize] += 1;
                lines += usize::from(late.news);
                if late.news && lines <= LINES {
                    tell(&entry.client().node_id, kind, lag, now - late.since);
                }
            }
        }
        if lines > LINES {
            warn!(others = lines - LINES, "more clients are behind");
        }
        for (kind, count) in ResourceType::ALL.into_iter().zip(counts) {
            gauge.with_label_values(&[kind.as_str()]).set(count);
        }
        self.behind = next;
    }

    /// Since when a type of a stream is behind, and whether that is too long.
    fn judge(&self, of: (u64, ResourceType), lag: Lag, now: Instant) -> (Seen, Option<Late>) {
        let before = self.behind.get(&of).filter(|seen| seen.lag == lag);
        let since = match lag {
            Lag::Unanswered(since) => since,
            Lag::Unsent(_) => before.map_or(now, |seen| seen.since),
        };
        let is_late = now.saturating_duration_since(since) >= PATIENCE;
        let news = before.is_none_or(|seen| !seen.told);
        let seen = Seen {
            lag,
            since,
            told: is_late,
        };
        (seen, is_late.then_some(Late { since, news }))
    }
}

fn tell(node: &str, kind: ResourceType, lag: Lag, lasted: Duration) {
    let kind = kind.as_str();
    match lag {
        Lag::Unanswered(_) => warn!(
            node,
            r#type = kind,
            ?lasted,
            "a client has not answered a response; until it does it keeps what it has"
        ),
        Lag::Unsent(_) => warn!(
            node,
            r#type = kind,
            ?lasted,
            "a client was not sent what changed; have it reconnect, and tell the makers of MeshKeeper"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        resource::{ClientKind, Profile, Resource},
        snapshot::ResourceSet,
        xds::{
            clients::Inspect,
            metrics::Metrics,
            status::{State, TypeStatus},
            stream::Client,
        },
    };

    const OF: (u64, ResourceType) = (1, ResourceType::Cluster);

    /// Looks, and remembers as a round does.
    fn look(audit: &mut Audit, lag: Lag, now: Instant) -> Option<bool> {
        let (seen, late) = audit.judge(OF, lag, now);
        audit.behind = HashMap::from([(OF, seen)]);
        late.map(|late| late.news)
    }

    #[test]
    fn a_response_that_stays_unanswered_is_told_once_and_counted_on() {
        let (mut audit, start) = (Audit::default(), Instant::now());
        let lag = Lag::Unanswered(start);
        let told = [10, 29, 30, 40].map(|s| look(&mut audit, lag, start + Duration::from_secs(s)));
        assert_eq!(told, [None, None, Some(true), Some(false)]);
        // It was answered, and the next one is not.
        let lag = Lag::Unanswered(start + Duration::from_secs(45));
        let told = [50, 75].map(|s| look(&mut audit, lag, start + Duration::from_secs(s)));
        assert_eq!(told, [None, Some(true)]);
    }

    #[test]
    fn what_is_not_sent_counts_from_when_it_was_seen_first() {
        let (mut audit, start) = (Audit::default(), Instant::now());
        let told = [100, 120, 130, 140]
            .map(|s| look(&mut audit, Lag::Unsent(7), start + Duration::from_secs(s)));
        assert_eq!(told, [None, None, Some(true), Some(false)]);
    }

    /// A stream that stays as it is.
    struct Stuck(Lag);

    impl Inspect for Stuck {
        fn types(&self) -> Vec<(ResourceType, TypeStatus)> {
            Vec::new()
        }

        fn lags(&self, _: &Snapshots) -> Vec<(ResourceType, Lag)> {
            vec![(ResourceType::Cluster, self.0)]
        }

        fn wants(&self, _: ResourceType, _: &str) -> bool {
            false
        }

        fn state_of_collections(&self, _: &str) -> Option<State> {
            None
        }

        fn misses(&self, _: &str) -> bool {
            false
        }

        fn served(&self, _: ResourceType, _: &ResourceSet) -> Vec<Arc<Resource>> {
            Vec::new()
        }
    }

    #[tokio::test]
    async fn those_who_are_late_are_counted_until_they_leave() {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let clients = Clients::new(metrics.clone());
        let (_sender, snapshots) = watch::channel(Arc::new(Snapshots::default()));
        let profile = Profile::whole(ClientKind::Envoy);
        let node_id = String::from("sidecar");
        let join = |ago: Duration| {
            let since = Instant::now().checked_sub(ago).unwrap();
            let stream = Arc::new(Stuck(Lag::Unanswered(since)));
            let node_id = node_id.clone();
            clients.join(
                Client {
                    node_id,
                    note: None,
                    profile,
                },
                None,
                stream,
            )
        };
        let late: Vec<_> = (0..100).map(|_| join(PATIENCE)).collect();
        let _slow = join(PATIENCE / 2);
        let (gauge, mut audit) = (metrics.clients_behind, Audit::default());
        let count = || gauge.with_label_values(&["clusters"]).get();
        audit.round(&clients, &snapshots, &gauge).await;
        assert_eq!(count(), 100);
        drop(late);
        audit.round(&clients, &snapshots, &gauge).await;
        assert_eq!(count(), 0);
        assert_eq!(audit.behind.len(), 1, "of those who left nothing is kept");
    }

    #[test]
    fn a_stream_that_moves_on_is_never_late() {
        let (mut audit, start) = (Audit::default(), Instant::now());
        for check in 0..20 {
            let now = start + EVERY * check;
            let cursor = check.into();
            assert_eq!(look(&mut audit, Lag::Unsent(cursor), now), None);
        }
    }
}
