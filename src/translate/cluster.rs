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
            core::v3::TypedExtensionConfig,
        },
        extensions::{
            clusters::aggregate::v3::ClusterConfig,
            load_balancing_policies::{
                maglev::v3::Maglev, round_robin::v3::RoundRobin, wrr_locality::v3::WrrLocality,
            },
        },
        r#type::v3::Percent,
    },
    google::protobuf::{Duration, UInt32Value, UInt64Value},
};
use prost::{Message, Name};

use super::{
    http::Http,
    maglev::TableSize,
    outliers,
    rendering::{Spec, ads, any},
};
use crate::resource::{Edition, ResourceType};

/// Changes of health and weights within this time rebuild the load balancer once. By default it is a second, in which
/// ejected instances still get requests.
const MERGE_WINDOW: Duration = Duration {
    seconds: 0,
    nanos: 100_000_000,
};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// What a sidecar is told.
#[derive(Debug, Hash)]
pub(super) struct EnvoyCluster {
    pub name: Arc<str>,
    pub table: TableSize,
    /// Whether registries have ranks.
    pub ranked: bool,
    pub http: Arc<Http>,
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
                update_merge_window: Some(MERGE_WINDOW),
                ..Default::default()
            }),
            outlier_detection: Some(outliers::of_envoy(self.ranked)),
            // A deregistered endpoint goes at once, whatever health checks still say of it.
            ignore_health_on_host_removal: true,
            typed_extension_protocol_options: [(
                HTTP_OPTIONS.to_owned(),
                any(&self.http.upstream()),
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
    /// Whether registries have ranks.
    pub ranked: bool,
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
            outlier_detection: Some(outliers::of_grpc(self.ranked)),
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
