//! What the watchers of all registries count, by registry.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

/// Seconds; a load of a few znodes takes milliseconds, one of a million some seconds.
const LOADS: [f64; 11] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0,
];

#[derive(Clone, Debug)]
pub struct Metrics {
    connected: IntGaugeVec,
    credentials_outdated: IntGaugeVec,
    reads_in_flight: IntGaugeVec,
    sessions: IntCounterVec,
    sessions_expired: IntCounterVec,
    events: IntCounterVec,
    reads: IntCounterVec,
    resyncs: IntCounterVec,
    load_seconds: HistogramVec,
    audit_znodes: IntCounterVec,
    audit_differences: IntCounterVec,
    audit_rounds: IntCounterVec,
}

/// Those of one registry.
#[derive(Debug)]
pub(super) struct OfRegistry {
    pub connected: IntGauge,
    pub credentials_outdated: IntGauge,
    pub reads_in_flight: IntGauge,
    pub sessions: IntCounter,
    pub sessions_expired: IntCounter,
    pub events: IntCounter,
    pub reads: IntCounter,
    pub resyncs: IntCounter,
    pub load_seconds: Histogram,
    pub audit_znodes: IntCounter,
    pub audit_differences: IntCounter,
    pub audit_rounds: IntCounter,
}

impl Metrics {
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| {
            let gauge = IntGaugeVec::new(options(name, help), &["registry"])?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounterVec::new(options(name, help), &["registry"])?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        let audit = |name: &str, help: &str| {
            let options = Opts::new(format!("meshkeeper_audit_{name}"), help);
            let counter = IntCounterVec::new(options, &["registry"])?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        let load_seconds = HistogramOpts::from(options(
            "load_seconds",
            "How long it took to read the whole tree, at first and after each reconnect",
        ));
        let load_seconds = HistogramVec::new(load_seconds.buckets(LOADS.to_vec()), &["registry"])?;
        registry.register(Box::new(load_seconds.clone()))?;
        Ok(Self {
            connected: gauge("connected", "1 while a ZooKeeper session is connected")?,
            credentials_outdated: gauge(
                "credentials_outdated",
                "1 while passwords or certificates on disk cannot be used and older ones are",
            )?,
            reads_in_flight: gauge("reads_in_flight", "Reads of znodes that wait for an answer")?,
            sessions: counter("sessions_total", "Sessions that were opened")?,
            sessions_expired: counter("sessions_expired_total", "Sessions that expired")?,
            events: counter("events_total", "Watch events")?,
            reads: counter("reads_total", "Reads and lists of znodes that were sent")?,
            resyncs: counter(
                "resyncs_total",
                "Full comparisons with ZooKeeper after the first load",
            )?,
            load_seconds,
            audit_znodes: audit("znodes_total", "Znodes that were compared with ZooKeeper")?,
            audit_differences: audit(
                "differences_total",
                "Znodes that were other than they were known, and no watch had told; they are read again",
            )?,
            audit_rounds: audit("rounds_total", "Times that all znodes were compared")?,
        })
    }

    pub(super) fn of(&self, registry: &str) -> OfRegistry {
        let labels = [registry];
        OfRegistry {
            connected: self.connected.with_label_values(&labels),
            credentials_outdated: self.credentials_outdated.with_label_values(&labels),
            reads_in_flight: self.reads_in_flight.with_label_values(&labels),
            sessions: self.sessions.with_label_values(&labels),
            sessions_expired: self.sessions_expired.with_label_values(&labels),
            events: self.events.with_label_values(&labels),
            reads: self.reads.with_label_values(&labels),
            resyncs: self.resyncs.with_label_values(&labels),
            load_seconds: self.load_seconds.with_label_values(&labels),
            audit_znodes: self.audit_znodes.with_label_values(&labels),
            audit_differences: self.audit_differences.with_label_values(&labels),
            audit_rounds: self.audit_rounds.with_label_values(&labels),
        }
    }
}

fn options(name: &str, help: &str) -> Opts {
    Opts::new(format!("meshkeeper_zookeeper_{name}"), help)
}
