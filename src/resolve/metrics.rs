//! What operators see of host names.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::names::State;

#[derive(Clone, Debug)]
pub struct Metrics {
    wanted: IntGauge,
    unresolved: IntGauge,
    stale: IntGauge,
    found: IntCounter,
    failed: IntCounter,
}

impl Metrics {
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(format!("meshkeeper_dns_{name}"), help)?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        let look_ups = IntCounterVec::new(
            Opts::new("meshkeeper_dns_lookups_total", "Look-ups of host names"),
            &["result"],
        )?;
        registry.register(Box::new(look_ups.clone()))?;
        Ok(Self {
            wanted: gauge("names", "Host names in registrations")?,
            unresolved: gauge(
                "unresolved_names",
                "Host names that were never resolved; their instances are not served",
            )?,
            stale: gauge(
                "stale_names",
                "Host names whose last look-up failed; the addresses found before are served",
            )?,
            found: look_ups.with_label_values(&["success"]),
            failed: look_ups.with_label_values(&["error"]),
        })
    }

    pub(super) fn set(&self, state: &State) {
        let gauges = [
            (&self.wanted, state.wanted),
            (&self.unresolved, state.unresolved),
            (&self.stale, state.stale),
        ];
        for (gauge, count) in gauges {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    pub(super) fn answered(&self, found: bool) {
        if found {
            self.found.inc();
        } else {
            self.failed.inc();
        }
    }
}
