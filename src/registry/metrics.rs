//! The registries' metrics: how much each holds, and what of it is held back.
//!
//! It refuses to count: the index keeps [`Counts`] as it goes, so that a change costs nothing here.
//! Labels are bounded by the number of configured registries.

use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry, Result};

use super::{
    Counts, Guarded,
    guard::{Notice, Scope},
};

#[derive(Clone, Debug)]
pub struct Metrics {
    services: IntGaugeVec,
    instances: IntGaugeVec,
    rejected: IntGaugeVec,
    holds: IntGaugeVec,
    held: IntGaugeVec,
    trips: IntCounterVec,
    restored: IntGaugeVec,
}

impl Metrics {
    pub fn register(registry: &Registry) -> Result<Self> {
        let gauge = |name: &str, help: &str| -> Result<IntGaugeVec> {
            let gauge = IntGaugeVec::new(Opts::new(name, help), &["registry"])?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let trips = IntCounterVec::new(
            Opts::new(
                "meshkeeper_guard_trips_total",
                "Losses that were too great and are held back, of the registry as a whole or of one service.",
            ),
            &["registry", "scope"],
        )?;
        registry.register(Box::new(trips.clone()))?;
        Ok(Self {
            trips,
            services: gauge(
                "meshkeeper_registry_services",
                "Services that are mirrored, with those that have no instance.",
            )?,
            instances: gauge(
                "meshkeeper_registry_instances",
                "Instances that are mirrored, with the unhealthy and the disabled ones.",
            )?,
            rejected: gauge(
                "meshkeeper_registry_rejected",
                "Znodes that are left out; /api/v1/rejected tells which and why.",
            )?,
            holds: gauge(
                "meshkeeper_guard_holds",
                "Services of which instances are held: gone, and served since too many went at once.",
            )?,
            held: gauge(
                "meshkeeper_guard_held_instances",
                "Instances that are held; /api/v1/holds tells which.",
            )?,
            restored: gauge(
                "meshkeeper_state_restored",
                "1 while what is served was restored from disk and not yet compared with ZooKeeper.",
            )?,
        })
    }

    /// Shows how a registry stands.
    pub fn show(&self, registry: &Guarded) {
        let name = &registry.config().name;
        self.set(name, registry.counts());
        let holds = registry.holds();
        show(&self.holds, name, holds.services.len());
        show(&self.held, name, holds.held());
        let restored = registry.restored().is_some_and(|restored| restored.served);
        show(&self.restored, name, usize::from(restored));
        // So that they are there before anything trips.
        for scope in [SERVICE, REGISTRY] {
            self.trips.with_label_values(&[name.as_str(), scope]);
        }
    }

    /// Counts what a guard noticed.
    pub fn count(&self, registry: &str, notice: &Notice) {
        if let Notice::Tripped { scope, .. } = notice {
            let scope = match scope {
                Scope::Registry => REGISTRY,
                Scope::Service(_) => SERVICE,
            };
            self.trips.with_label_values(&[registry, scope]).inc();
        }
    }

    fn set(&self, name: &str, counts: Counts) {
        show(&self.services, name, counts.services);
        show(&self.instances, name, counts.instances);
        show(&self.rejected, name, counts.rejected);
    }
}

const SERVICE: &str = "service";
const REGISTRY: &str = "registry";

fn show(gauge: &IntGaugeVec, name: &str, count: usize) {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    gauge.with_label_values(&[name]).set(count);
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;

    #[test]
    fn each_registry_has_its_own_gauges() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        let counts = Counts {
            services: 2,
            instances: 7,
            rejected: 1,
        };
        metrics.set("main", counts);
        metrics.set("other", Counts::default());
        let text = TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap();
        for line in [
            "meshkeeper_registry_services{registry=\"main\"} 2",
            "meshkeeper_registry_instances{registry=\"main\"} 7",
            "meshkeeper_registry_rejected{registry=\"main\"} 1",
            "meshkeeper_registry_services{registry=\"other\"} 0",
        ] {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
    }
}
