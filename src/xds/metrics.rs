//! What the xDS side counts. Labels are bounded: a kind of client, a resource type.

use prometheus::{
    Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, core::Collector,
};

use crate::resource::{ClientKind, ResourceType};

#[derive(Clone, Debug)]
pub struct Metrics {
    pub clients: IntGaugeVec,
    pub responses: IntCounterVec,
    pub nacks: IntCounterVec,
    /// Streams that are behind for too long.
    pub clients_behind: IntGaugeVec,
    /// Names that gRPC clients ask for and that nothing is registered under.
    pub unregistered: IntGauge,
    /// Seconds from the event in the registry to the response that shows it.
    pub propagation: Histogram,
    /// State-of-the-world sets over what gRPC clients accept by default.
    pub oversized: IntCounterVec,
}

impl Metrics {
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let clients = Opts::new("meshkeeper_xds_clients", "Connected streams.");
        let responses = Opts::new("meshkeeper_xds_responses_total", "Responses sent.");
        let nacks = Opts::new(
            "meshkeeper_xds_nacks_total",
            "Responses that a client rejected.",
        );
        let behind = Opts::new(
            "meshkeeper_audit_clients_behind",
            "Streams that have not answered, or not had, what there is for more than 30 s.",
        );
        let unregistered = Opts::new(
            "meshkeeper_xds_unregistered_names",
            "Names that gRPC clients ask for and that nothing is registered under, summed over all streams.",
        );
        let oversized = Opts::new(
            "meshkeeper_xds_oversized_responses_total",
            "Responses over 4 MiB that the protocol does not allow to split.",
        );
        let propagation = HistogramOpts::new(
            "meshkeeper_propagation_seconds",
            "From a znode's event to the response that shows it, for each response.",
        )
        .buckets(prometheus::exponential_buckets(0.000_1, 2.0, 18)?);
        let metrics = Self {
            clients: IntGaugeVec::new(clients, &["kind"])?,
            responses: IntCounterVec::new(responses, &["type"])?,
            nacks: IntCounterVec::new(nacks, &["type"])?,
            clients_behind: IntGaugeVec::new(behind, &["type"])?,
            unregistered: IntGauge::with_opts(unregistered)?,
            propagation: Histogram::with_opts(propagation)?,
            oversized: IntCounterVec::new(oversized, &["type"])?,
        };
        metrics.show_zeros();
        let collectors: [Box<dyn Collector>; 7] = [
            Box::new(metrics.clients.clone()),
            Box::new(metrics.responses.clone()),
            Box::new(metrics.nacks.clone()),
            Box::new(metrics.clients_behind.clone()),
            Box::new(metrics.unregistered.clone()),
            Box::new(metrics.propagation.clone()),
            Box::new(metrics.oversized.clone()),
        ];
        collectors
            .into_iter()
            .try_for_each(|collector| registry.register(collector))?;
        Ok(metrics)
    }

    /// A series that is there from the start can be alerted on.
    fn show_zeros(&self) {
        for kind in ClientKind::ALL {
            self.clients.with_label_values(&[kind.as_str()]);
        }
        for kind in ResourceType::ALL {
            self.responses.with_label_values(&[kind.as_str()]);
            self.nacks.with_label_values(&[kind.as_str()]);
            self.clients_behind.with_label_values(&[kind.as_str()]);
            self.oversized.with_label_values(&[kind.as_str()]);
        }
    }
}
