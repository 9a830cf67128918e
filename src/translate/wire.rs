//! The few messages of an endpoint assignment, with the fields that are rendered and no others.
//!
//! It refuses to know what goes into them. A mesh has ten endpoints for every other resource, and
//! `envoy-types` spends most of an endpoint's time on fields that stay empty; its maps also have no
//! order. Invariant: field numbers and types are those of `envoy.config.endpoint.v3`,
//! `envoy.config.core.v3` and `google.protobuf.Struct`, and equal messages encode to equal bytes.
//! Source: those protos; a test reads everything back through `envoy-types`.

use std::collections::BTreeMap;

use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(super) struct ClusterLoadAssignment {
    #[prost(string, tag = "1")]
    pub cluster_name: String,
    #[prost(message, repeated, tag = "2")]
    pub endpoints: Vec<LocalityLbEndpoints>,
    #[prost(message, optional, tag = "4")]
    pub policy: Option<Policy>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Policy {
    /// Envoy weighs the health of a priority by the weights of its endpoints instead of their number.
    #[prost(bool, tag = "6")]
    pub weighted_priority_health: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LocalityLbEndpoints {
    #[prost(message, optional, tag = "1")]
    pub locality: Option<Locality>,
    #[prost(message, repeated, tag = "2")]
    pub lb_endpoints: Vec<LbEndpoint>,
    /// prost's `u32` message is a `google.protobuf.UInt32Value`.
    #[prost(message, optional, tag = "3")]
    pub load_balancing_weight: Option<u32>,
    #[prost(uint32, tag = "5")]
    pub priority: u32,
    #[prost(message, optional, tag = "8")]
    pub leds_cluster_locality_config: Option<LedsClusterLocalityConfig>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LedsClusterLocalityConfig {
    #[prost(message, optional, tag = "1")]
    pub leds_config: Option<ConfigSource>,
    #[prost(string, tag = "2")]
    pub leds_collection_name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ConfigSource {
    /// An `AggregatedConfigSource`, which has no fields.
    #[prost(message, optional, tag = "3")]
    pub ads: Option<()>,
    /// An `ApiVersion`.
    #[prost(int32, tag = "6")]
    pub resource_api_version: i32,
}

impl ConfigSource {
    /// "From the stream that this came on."
    pub fn ads() -> Self {
        Self {
            ads: Some(()),
            resource_api_version: 2,
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Locality {
    #[prost(string, tag = "2")]
    pub zone: String,
    #[prost(string, tag = "3")]
    pub sub_zone: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LbEndpoint {
    #[prost(message, optional, tag = "1")]
    pub endpoint: Option<Endpoint>,
    #[prost(enumeration = "HealthStatus", tag = "2")]
    pub health_status: i32,
    #[prost(message, optional, tag = "3")]
    pub metadata: Option<Metadata>,
    #[prost(message, optional, tag = "4")]
    pub load_balancing_weight: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Endpoint {
    #[prost(message, optional, tag = "1")]
    pub address: Option<Address>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Address {
    #[prost(message, optional, tag = "1")]
    pub socket_address: Option<SocketAddress>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SocketAddress {
    #[prost(string, tag = "2")]
    pub address: String,
    #[prost(uint32, tag = "3")]
    pub port_value: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(super) enum HealthStatus {
    Unknown = 0,
    Healthy = 1,
    Unhealthy = 2,
    Draining = 3,
    Degraded = 5,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Metadata {
    #[prost(btree_map = "string, message", tag = "1")]
    pub filter_metadata: BTreeMap<String, Struct>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Struct {
    #[prost(btree_map = "string, message", tag = "1")]
    pub fields: BTreeMap<String, Text>,
}

/// A `google.protobuf.Value` that is a string. Its `kind` is always there, also for the empty one.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Text {
    #[prost(string, optional, tag = "3")]
    pub string_value: Option<String>,
}
