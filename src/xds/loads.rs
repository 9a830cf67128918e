//! What clients reported of their requests, as metrics by service.
//!
//! It refuses to know how reports arrive. Invariant: a series belongs to a cluster that is served; a
//! name that nobody serves makes none, and a service that is gone takes its series along, so that
//! what is kept is bounded by the mesh and not by what clients write.
//! Source: `ClusterStats` in `envoy.config.endpoint.v3`.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use envoy_types::pb::envoy::config::endpoint::v3::{ClusterStats, UpstreamLocalityStats};
use prometheus::{
    IntCounter, IntCounterVec, Opts, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use tokio::sync::watch;

use crate::{
    resource::{Edition, ResourceType},
    snapshot::Snapshots,
};

/// More than a client can make between two reports; a counter that jumps by more tells nothing.
const MOST: u64 = 1 << 32;

const OUTCOMES: [&str; 3] = ["success", "error", "dropped"];

/// Requests by service and outcome.
#[derive(Clone)]
pub struct Loads {
    shared: Arc<Shared>,
}

struct Shared {
    snapshots: watch::Receiver<Arc<Snapshots>>,
    /// Services that have series.
    named: Mutex<BTreeSet<String>>,
    requests: IntCounterVec,
    reports: IntCounter,
    unknown: IntCounter,
}

impl Loads {
    pub fn register(
        registry: &Registry,
        snapshots: watch::Receiver<Arc<Snapshots>>,
    ) -> prometheus::Result<Self> {
        let requests = Opts::new(
            "meshkeeper_load_requests_total",
            "Requests that clients report to have made, by service.",
        );
        let shared = Shared {
            snapshots,
            named: Mutex::default(),
            requests: IntCounterVec::new(requests, &["service", "outcome"])?,
            reports: IntCounter::new("meshkeeper_load_reports_total", "Load reports received.")?,
            unknown: IntCounter::new(
                "meshkeeper_load_unknown_total",
                "Entries of load reports that name no service, as that of the control plane itself.",
            )?,
        };
        registry.register(Box::new(shared.reports.clone()))?;
        registry.register(Box::new(shared.unknown.clone()))?;
        let loads = Self {
            shared: Arc::new(shared),
        };
        registry.register(Box::new(loads.clone()))?;
        Ok(loads)
    }

    /// Takes in one report.
    pub fn add(&self, report: &[ClusterStats]) {
        let shared = &self.shared;
        shared.reports.inc();
        let snapshots = shared.snapshots.borrow().clone();
        let mut named = shared.named();
        for stats in report {
            if !is_served(&snapshots, &stats.cluster_name) {
                shared.unknown.inc();
                continue;
            }
            let counts = counts(stats);
            if counts.iter().all(|count| *count == 0) {
                continue;
            }
            if !named.contains(&stats.cluster_name) {
                named.insert(stats.cluster_name.clone());
            }
            for (outcome, count) in OUTCOMES.iter().zip(counts) {
                let labels = [stats.cluster_name.as_str(), outcome];
                shared.requests.with_label_values(&labels).inc_by(count);
            }
        }
        if named.len() > served(&snapshots) {
            shared.forget_gone(&mut named, &snapshots);
        }
    }
}

impl Shared {
    fn named(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget_gone(&self, named: &mut BTreeSet<String>, snapshots: &Snapshots) {
        named.retain(|name| {
            let keep = is_served(snapshots, name);
            for outcome in OUTCOMES.into_iter().filter(|_| !keep) {
                // An error says that there was none.
                let _ = self.requests.remove_label_values(&[name.as_str(), outcome]);
            }
            keep
        });
    }
}

/// What is shown is of services that are there now.
impl Collector for Loads {
    fn desc(&self) -> Vec<&Desc> {
        self.shared.requests.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let snapshots = self.shared.snapshots.borrow().clone();
        let mut named = self.shared.named();
        self.shared.forget_gone(&mut named, &snapshots);
        self.shared.requests.collect()
    }
}

fn is_served(snapshots: &Snapshots, cluster: &str) -> bool {
    Edition::ALL.iter().any(|kind| {
        let set = snapshots.of(*kind).set(ResourceType::Cluster);
        set.get(cluster).is_some()
    })
}

fn served(snapshots: &Snapshots) -> usize {
    let sets = Edition::ALL.map(|kind| snapshots.of(kind).set(ResourceType::Cluster).len());
    sets.into_iter().sum()
}

/// In the order of [`OUTCOMES`].
fn counts(stats: &ClusterStats) -> [u64; 3] {
    let sum = |figure: fn(&UpstreamLocalityStats) -> u64| {
        let figures = stats.upstream_locality_stats.iter().map(figure);
        figures.fold(0, u64::saturating_add).min(MOST)
    };
    [
        sum(|zone| zone.total_successful_requests),
        sum(|zone| zone.total_error_requests),
        stats.total_dropped_requests.min(MOST),
    ]
}

impl fmt::Debug for Loads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loads").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{Resource, Version};

    struct Rig {
        snapshots: watch::Sender<Arc<Snapshots>>,
        registry: Registry,
        loads: Loads,
    }

    impl Rig {
        fn new() -> Self {
            let (snapshots, reader) = watch::channel(Arc::default());
            let registry = Registry::new();
            let loads = Loads::register(&registry, reader).unwrap();
            Self {
                snapshots,
                registry,
                loads,
            }
        }

        fn serve(&self, name: &str) {
            let cluster = Resource::new(ResourceType::Cluster, name, Version(1), &[]);
            self.snapshots.send_modify(|snapshots| {
                let snapshot = Arc::make_mut(snapshots).of_mut(Edition::Envoy);
                snapshot.put(cluster);
            });
        }

        fn drop(&self, name: &str) {
            self.snapshots.send_modify(|snapshots| {
                let snapshot = Arc::make_mut(snapshots).of_mut(Edition::Envoy);
                snapshot.remove(ResourceType::Cluster, name);
            });
        }

        /// Service, outcome and value of every series.
        fn series(&self) -> Vec<(String, String, u64)> {
            let families = self.registry.gather();
            let requests = families
                .iter()
                .filter(|family| family.name() == "meshkeeper_load_requests_total");
            let metrics = requests.flat_map(prometheus::proto::MetricFamily::get_metric);
            metrics
                .map(|metric| {
                    let label = |name: &str| {
                        let labels = metric.get_label().iter();
                        let found = labels.into_iter().find(|label| label.name() == name);
                        found.unwrap().value().to_owned()
                    };
                    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                    let value = metric.get_counter().get_value() as u64;
                    (label("service"), label("outcome"), value)
                })
                .collect()
        }
    }

    fn stats(cluster: &str, zones: &[(u64, u64)], dropped: u64) -> ClusterStats {
        let zone = |(success, error): &(u64, u64)| UpstreamLocalityStats {
            total_successful_requests: *success,
            total_error_requests: *error,
            ..UpstreamLocalityStats::default()
        };
        ClusterStats {
            cluster_name: cluster.into(),
            upstream_locality_stats: zones.iter().map(zone).collect(),
            total_dropped_requests: dropped,
            ..ClusterStats::default()
        }
    }

    #[test]
    fn the_zones_of_a_service_and_all_reports_are_added_up() {
        let rig = Rig::new();
        rig.serve("orders");
        rig.loads
            .add(&[stats("orders", &[(10, 1), (20, 2)], 5), stats("x", &[], 1)]);
        rig.loads.add(&[stats("orders", &[(1, 0)], 0)]);
        let series = |outcome: &str, value| ("orders".to_owned(), outcome.to_owned(), value);
        assert_eq!(
            rig.series(),
            [
                series("dropped", 5),
                series("error", 3),
                series("success", 31)
            ]
        );
        assert_eq!(rig.loads.shared.unknown.get(), 1);
        assert_eq!(rig.loads.shared.reports.get(), 2);
    }

    #[test]
    fn a_service_that_nobody_used_has_no_series() {
        let rig = Rig::new();
        rig.serve("orders");
        rig.loads.add(&[stats("orders", &[(0, 0)], 0)]);
        assert!(rig.series().is_empty());
    }

    #[test]
    fn a_service_that_is_gone_takes_its_series_along() {
        let rig = Rig::new();
        rig.serve("orders");
        rig.serve("users");
        rig.loads
            .add(&[stats("orders", &[(1, 0)], 0), stats("users", &[(1, 0)], 0)]);
        rig.drop("orders");
        assert!(rig.series().iter().all(|(service, ..)| service == "users"));
        rig.serve("orders");
        rig.loads.add(&[stats("orders", &[(2, 0)], 0)]);
        let success = ("orders".to_owned(), "success".to_owned(), 2);
        assert!(rig.series().contains(&success), "counted anew");
    }

    #[test]
    fn nothing_piles_up_where_services_come_and_go_and_nobody_looks() {
        let rig = Rig::new();
        for round in 0..1_000 {
            let name = format!("s{round}");
            rig.serve(&name);
            rig.loads.add(&[stats(&name, &[(1, 0)], 0)]);
            rig.drop(&name);
        }
        assert!(rig.loads.shared.named().len() <= 2);
    }

    #[test]
    fn hostile_figures_and_names_are_bounded() {
        let rig = Rig::new();
        rig.serve("orders");
        let worst = stats("orders", &[(u64::MAX, u64::MAX); 3], u64::MAX);
        let mut report = vec![worst; 100];
        report.extend((0..10_000).map(|n| stats(&format!("no-{n}\n\u{0}"), &[(1, 1)], 1)));
        rig.loads.add(&report);
        assert_eq!(rig.loads.shared.unknown.get(), 10_000);
        let series = rig.series();
        assert_eq!(series.len(), 3);
        assert!(series.iter().all(|(.., value)| *value == 100 * MOST));
    }
}
