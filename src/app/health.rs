//! `grpc.health.v1` on the xDS port: one status for the server and for each service on the port.
//!
//! All services begin to serve with the first snapshot and stop together, so all have the same status. The
//! health service answers `NOT_FOUND` for every other name.

use envoy_types::pb::envoy::service::{
    load_stats::v3::load_reporting_service_server as lrs,
    status::v3::client_status_discovery_service_server as csds,
};
use tonic_health::{ServingStatus, pb::health_server, server::HealthReporter};
use tonic_reflection::pb::v1::server_reflection_server as reflection;

use crate::xds;

/// Services on the xDS port beside the discovery services.
const OTHERS: [&str; 5] = [
    // The server as a whole.
    "",
    lrs::SERVICE_NAME,
    csds::SERVICE_NAME,
    health_server::SERVICE_NAME,
    reflection::SERVICE_NAME,
];

/// Sets the status of the server and of all its services.
pub async fn report(health: &HealthReporter, status: ServingStatus) {
    let others = OTHERS.map(str::to_owned);
    for service in xds::server::services().chain(others) {
        health.set_service_status(service, status).await;
    }
}
