//! Passive health: which instances a client stops sending requests to by what it sees of them.
//!
//! Invariant: what is rendered depends on the configuration alone, never on the instances, because Envoy closes all
//! connections of a cluster whose fields change. Source: `outlier_detection.proto`, gRFC A50.
//!
//! - A service of one rank keeps at least half of its instances, so a fault that all share does not leave the load of
//!   all to one.
//! - Where registries have ranks, a whole first site must be ejectable, so that its requests go to the second one.
//!   Envoy counts the instances of all ranks together and here keeps the last of them: it is still tried when every
//!   other one fails, instead of answering "no healthy upstream". gRPC counts each rank for itself.

use envoy_types::pb::{
    envoy::config::cluster::v3::OutlierDetection,
    google::protobuf::{Duration, UInt32Value},
};

/// Failures in a row: Envoy ejects at 502, 503, 504, a refused connection or a reset.
const FAILURES: u32 = 3;

/// An ejected instance is tried again after this time, later the more often it failed.
const EJECTED_FOR: i64 = 5;
const EJECTED_FOR_AT_MOST: i64 = 30;

/// How many percent of the instances may be ejected.
const HALF: u32 = 50;
const ALL_BUT_ONE: u32 = 99;
const ALL: u32 = 100;

/// gRPC calls that fail, in percent. Any status but OK counts, also one that the application means, so nearly all
/// must fail.
const FAILED_CALLS: u32 = 90;
/// Calls to one instance within an interval that say enough about it.
const CALLS: u32 = 10;

/// For a sidecar. `ranked`: whether registries have ranks.
pub(super) fn of_envoy(ranked: bool) -> OutlierDetection {
    OutlierDetection {
        consecutive_gateway_failure: value(FAILURES),
        enforcing_consecutive_gateway_failure: value(100),
        // A 500 is an answer of the application.
        enforcing_consecutive_5xx: value(0),
        max_ejection_percent: value(if ranked { ALL_BUT_ONE } else { HALF }),
        interval: seconds(1),
        ..ejections()
    }
}

/// For a gRPC client, which knows no failures in a row.
pub(super) fn of_grpc(ranked: bool) -> OutlierDetection {
    OutlierDetection {
        failure_percentage_threshold: value(FAILED_CALLS),
        enforcing_failure_percentage: value(100),
        failure_percentage_request_volume: value(CALLS),
        // gRPC ejects before it compares with the greatest share, so a service's only instance would be ejected.
        failure_percentage_minimum_hosts: value(if ranked { 1 } else { 2 }),
        max_ejection_percent: value(if ranked { ALL } else { HALF }),
        interval: seconds(2),
        ..ejections()
    }
}

fn ejections() -> OutlierDetection {
    OutlierDetection {
        enforcing_success_rate: value(0),
        base_ejection_time: seconds(EJECTED_FOR),
        max_ejection_time: seconds(EJECTED_FOR_AT_MOST),
        ..OutlierDetection::default()
    }
}

#[allow(clippy::unnecessary_wraps, reason = "the fields are optional")]
fn value(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

#[allow(clippy::unnecessary_wraps, reason = "the fields are optional")]
fn seconds(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}
