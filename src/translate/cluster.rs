//! A service as a `Cluster`: where its endpoints come from and how requests are spread over them.
//!
//! It refuses to know the endpoints; all it takes from them is the size of Envoy's Maglev table.
//! Maglev on a route without a hash policy picks by a random number: the one policy of Envoy that is
//! both weighted and random. gRPC does not know it and takes the second of the list, the random
//! choice among weighted localities. Invariant: no change of instances changes a cluster, save that
//! a sidecar's table may grow. Source: `cluster.proto`, gRFC A27, A32 and A42.

use std::sync::Arc;

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                CircuitBreakers, Cluster, LoadBalancingPolicy, circuit_breakers::Thresholds,
                cluster, load_balancing_policy::Policy,
            },
            core::v3::{Http1ProtocolOptions, Http2ProtocolOptions, TypedExtensionConfig},
        },
        extensions::{
            clusters::aggregate::v3::ClusterConfig,
            load_balancing_policies::{
                maglev::v3::Maglev, round_robin::v3::RoundRobin, wrr_locality::v3::WrrLocality,
            },
            upstreams::http::v3::{HttpProtocolOptions, http_protocol_options},
        },
        r#type::v3::Percent,
    },
    google::protobuf::{Duration, UInt32Value, UInt64Value},
};
use prost::{Message, Name};

use super::{
    maglev::TableSize,
    rendering::{Spec, ads, any},
};
use crate::resource::{Edition, ResourceType};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// What a sidecar is told.
#[derive(Debug, Hash)]
pub(super) struct EnvoyCluster {
    pub name: Arc<str>,
    pub table: TableSize,
}

impl Spec for EnvoyCluster {
    const EDITION: Edition = Edition::Envoy;
    const KIND: ResourceType = ResourceType::Cluster;

    fn name(&self) -> Arc<str> {
        self.name.clone()
    }

    fn body(&self) -> Vec<u8> {
        Cluster {
            load_balancing_policy: Some(policies([maglev(Some(self.table))])),
            common_lb_config: Some(cluster::CommonLbConfig {
                // The registry's word counts: what is drained or unhealthy gets nothing, even where
                // nothing else is left.
                healthy_panic_threshold: Some(Percent { value: 0.0 }),
                ..Default::default()
            }),
            // A deregistered endpoint goes at once, whatever health checks still say of it.
            ignore_health_on_host_removal: true,
            typed_extension_protocol_options: [(
                HTTP_OPTIONS.to_owned(),
                any(&same_protocol_as_downstream()),
            )]
            .into(),
            ..eds_cluster(&self.name)
        }
        .encode_to_vec()
    }
}

/// What a gRPC client is told.
#[derive(Debug, Hash)]
pub(super) struct GrpcCluster {
    pub name: Arc<str>,
}

impl Spec for GrpcCluster {
    const EDITION: Edition = Edition::Grpc;
    const KIND: ResourceType = ResourceType::Cluster;

    fn name(&self) -> Arc<str> {
        self.name.clone()
    }

    fn body(&self) -> Vec<u8> {
        Cluster {
            // Clients check the old field even where the list below it decides.
            lb_policy: cluster::LbPolicy::RoundRobin.into(),
            load_balancing_policy: Some(policies([maglev(None), weighted_localities()])),
            ..eds_cluster(&self.name)
        }
        .encode_to_vec()
    }
}

/// An aggregate of nothing but itself, which grpc-go fails every call to with its name.
pub(super) fn leafless_cluster(name: &str) -> Cluster {
    let itself = ClusterConfig {
        clusters: vec![name.to_owned()],
    };
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::ClusterType(
            cluster::CustomClusterType {
                name: "envoy.clusters.aggregate".to_owned(),
                typed_config: Some(any(&itself)),
            },
        )),
        ..Default::default()
    }
}

fn eds_cluster(name: &Arc<str>) -> Cluster {
    Cluster {
        name: name.to_string(),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(
            cluster::DiscoveryType::Eds.into(),
        )),
        eds_cluster_config: Some(cluster::EdsClusterConfig {
            eds_config: Some(ads()),
            service_name: name.to_string(),
        }),
        connect_timeout: Some(Duration {
            seconds: 5,
            nanos: 0,
        }),
        circuit_breakers: Some(no_limits()),
        ..Default::default()
    }
}

/// Both kinds of clients fail requests over 1,024 at a time unless told otherwise, and Envoy the
/// fourth concurrent retry. Nobody asked for that here.
fn no_limits() -> CircuitBreakers {
    let limit = Some(UInt32Value { value: u32::MAX });
    CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: limit,
            max_pending_requests: limit,
            max_requests: limit,
            max_retries: limit,
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// HTTP/1.1 stays HTTP/1.1, HTTP/2 (and with it gRPC) stays HTTP/2.
fn same_protocol_as_downstream() -> HttpProtocolOptions {
    let downstream = http_protocol_options::UseDownstreamHttpConfig {
        http_protocol_options: Some(Http1ProtocolOptions::default()),
        http2_protocol_options: Some(Http2ProtocolOptions::default()),
        ..Default::default()
    };
    HttpProtocolOptions {
        upstream_protocol_options: Some(
            http_protocol_options::UpstreamProtocolOptions::UseDownstreamProtocolConfig(downstream),
        ),
        ..Default::default()
    }
}

fn policies<const N: usize>(policies: [Policy; N]) -> LoadBalancingPolicy {
    LoadBalancingPolicy {
        policies: policies.into(),
    }
}

fn maglev(table: Option<TableSize>) -> Policy {
    policy(
        "envoy.load_balancing_policies.maglev",
        &Maglev {
            table_size: table.map(|size| UInt64Value {
                value: u64::from(size.get()),
            }),
            ..Default::default()
        },
    )
}

fn weighted_localities() -> Policy {
    let within = policy(
        "envoy.load_balancing_policies.round_robin",
        &RoundRobin::default(),
    );
    policy(
        "envoy.load_balancing_policies.wrr_locality",
        &WrrLocality {
            endpoint_picking_policy: Some(policies([within])),
        },
    )
}

fn policy<M: Message + Name>(name: &str, config: &M) -> Policy {
    Policy {
        typed_extension_config: Some(TypedExtensionConfig {
            name: name.to_owned(),
            typed_config: Some(any(config)),
        }),
    }
}
