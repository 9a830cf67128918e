//! The registry's gauges: how much it holds.
//!
//! It refuses to count: the index keeps [`Counts`] as it goes, so that a change costs nothing here.
//! Labels are bounded by the number of configured registries.

use prometheus::{IntGaugeVec, Opts, Registry, Result};

use super::Counts;

#[derive(Clone, Debug)]
pub struct Metrics {
    services: IntGaugeVec,
    instances: IntGaugeVec,
    rejected: IntGaugeVec,
}

impl Metrics {
    pub fn register(registry: &Registry) -> Result<Self> {
        let gauge = |name: &str, help: &str| -> Result<IntGaugeVec> {
            let gauge = IntGaugeVec::new(Opts::new(name, help), &["registry"])?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        Ok(Self {
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
        })
    }

    /// Shows what the registry `name` holds.
    pub fn set(&self, name: &str, counts: Counts) {
        let show = |gauge: &IntGaugeVec, count: usize| {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            gauge.with_label_values(&[name]).set(count);
        };
        show(&self.services, counts.services);
        show(&self.instances, counts.instances);
        show(&self.rejected, counts.rejected);
    }
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
