//! The metrics of probes.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::Answer;

#[derive(Clone, Debug)]
pub struct Metrics {
    accepted: IntCounter,
    refused: IntCounter,
    none: IntCounter,
}

impl Metrics {
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let probes = IntCounterVec::new(
            Opts::new(
                "meshkeeper_guard_probes_total",
                "Connections to addresses of held instances: accepted, refused (the instances are removed) or without an answer.",
            ),
            &["result"],
        )?;
        registry.register(Box::new(probes.clone()))?;
        Ok(Self {
            accepted: probes.with_label_values(&["accepted"]),
            refused: probes.with_label_values(&["refused"]),
            none: probes.with_label_values(&["none"]),
        })
    }

    pub(super) fn count(&self, answer: Answer) {
        match answer {
            Answer::Accepted => self.accepted.inc(),
            Answer::Refused => self.refused.inc(),
            Answer::None => self.none.inc(),
        }
    }
}
