//! A service's instances as a `ClusterLoadAssignment`, for sidecars and for gRPC clients.
//!
//! It refuses to know the cluster beside it. A sidecar gets every instance that is not disabled,
//! with weight, health and metadata, in a locality for each zone. gRPC ignores endpoint weights but
//! honours those of localities, so there each healthy instance has a locality of its own, or shares one
//! with those of its weight where there are many ([`Localities`]). Invariant: the order of instances does not matter; whatever
//! they are, weights on the wire are over 0 and sum up to no more than 32 bits, addresses are unique,
//! localities are within a priority, and priorities are 0, 1 and so on without a gap. Source: `endpoint.proto`,
//! `endpoint_components.proto`, gRFC A27 and A42.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use prost::Message;

use super::wire;
use crate::model::{Health, Instance, Metadata, Service};

/// Where Envoy looks for what its load balancers may use.
const LB_METADATA: &str = "envoy.lb";

/// What a sidecar is told of one instance.
#[derive(Debug, Hash)]
pub(super) struct EnvoyEndpoint<'a> {
    address: IpAddr,
    port: u16,
    pub weight: u32,
    health: wire::HealthStatus,
    priority: u8,
    metadata: &'a Metadata,
}

/// What a sidecar is told: the encoded assignment.
pub(super) fn envoy_assignment(service: &Service) -> Vec<u8> {
    let mut zones: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for instance in service.instances.iter() {
        if let Some(endpoint) = EnvoyEndpoint::new(instance) {
            let place = (endpoint.priority, zone(instance));
            zones.entry(place).or_default().push(endpoint);
        }
    }
    let scale = Scale::of(zones.values().flatten().map(|e| u64::from(e.weight)));
    for endpoint in zones.values_mut().flatten() {
        endpoint.weight = scale.apply(u64::from(endpoint.weight));
    }
    let ranks = Ranks::of(zones.keys().map(|(priority, _)| *priority));
    let locality = |((priority, zone), endpoints): (&(u8, &str), &Vec<EnvoyEndpoint<'_>>)| {
        // No weight: Maglev spreads over all endpoints of all zones by their own weights.
        wire::LocalityLbEndpoints {
            locality: Some(wire::Locality {
                zone: (*zone).to_owned(),
                sub_zone: String::new(),
            }),
            lb_endpoints: endpoints.iter().map(EnvoyEndpoint::message).collect(),
            priority: ranks.of_priority(*priority),
            ..wire::LocalityLbEndpoints::default()
        }
    };
    wire::ClusterLoadAssignment {
        policy: ranks.policy(),
        ..assignment(&service.name, zones.iter().map(locality))
    }
    .encode_to_vec()
}

impl<'a> EnvoyEndpoint<'a> {
    /// `None` for a disabled one.
    pub fn new(instance: &'a Instance) -> Option<Self> {
        let weight = instance.weight.get();
        let health = match &instance.health {
            Health::Disabled(_) => return None,
            Health::Unhealthy => wire::HealthStatus::Unhealthy,
            _ if weight == 0 => wire::HealthStatus::Draining,
            Health::Degraded => wire::HealthStatus::Degraded,
            Health::Healthy => wire::HealthStatus::Healthy,
        };
        Some(Self {
            address: instance.address,
            port: instance.port,
            // Envoy rejects 0; that a drained one gets no requests is in its health.
            weight: weight.max(1),
            health,
            priority: instance.priority,
            metadata: &instance.metadata,
        })
    }

    pub fn is_sent_requests(&self) -> bool {
        matches!(
            self.health,
            wire::HealthStatus::Healthy | wire::HealthStatus::Degraded
        )
    }

    pub fn message(&self) -> wire::LbEndpoint {
        wire::LbEndpoint {
            endpoint: Some(endpoint(self.address, self.port)),
            health_status: self.health.into(),
            metadata: self.metadata_message(),
            load_balancing_weight: Some(self.weight),
        }
    }

    fn metadata_message(&self) -> Option<wire::Metadata> {
        if self.metadata.is_empty() {
            return None;
        }
        let text = |(key, value): (&str, &str)| {
            let string_value = Some(value.to_owned());
            (key.to_owned(), wire::Text { string_value })
        };
        let fields = self.metadata.iter().map(text).collect();
        Some(wire::Metadata {
            filter_metadata: [(LB_METADATA.to_owned(), wire::Struct { fields })].into(),
        })
    }
}

/// What a gRPC client is told of one instance.
#[derive(Debug, Hash)]
pub(super) struct GrpcEndpoint {
    address: IpAddr,
    port: u16,
    weight: u32,
    priority: u8,
}

impl GrpcEndpoint {
    /// `None` for one that must not be sent requests.
    pub fn new(instance: &Instance) -> Option<Self> {
        // A degraded one is told as healthy: gRPC passes over every other health.
        instance.takes_requests().then_some(Self {
            address: instance.address,
            port: instance.port,
            weight: instance.weight.get(),
            priority: instance.priority,
        })
    }

    fn message(&self) -> wire::LbEndpoint {
        wire::LbEndpoint {
            endpoint: Some(endpoint(self.address, self.port)),
            health_status: wire::HealthStatus::Healthy.into(),
            metadata: None,
            load_balancing_weight: None,
        }
    }
}

/// How a gRPC client's endpoints are divided into localities.
///
/// gRPC knows a connection by the name of its locality: an endpoint that moves to another one is
/// connected to again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Localities {
    /// One for each address, named by it, so that no change but that of an address moves an endpoint.
    #[default]
    ByAddress,
    /// One for each weight that several have: some clients take a time that grows with the square of
    /// the number of localities to connect to all of them.
    ByWeight,
}

impl Localities {
    const MANY: usize = 100;

    /// For so many endpoints. It changes back at half the number only, since every change of it costs
    /// all connections.
    pub fn of(self, endpoints: usize) -> Self {
        let limit = match self {
            Self::ByAddress => Self::MANY,
            Self::ByWeight => Self::MANY / 2,
        };
        if endpoints > limit {
            Self::ByWeight
        } else {
            Self::ByAddress
        }
    }
}

/// The endpoints of one locality: all of one priority and one weight.
struct Group {
    priority: u8,
    weight: u32,
    hosts: Vec<GrpcEndpoint>,
}

impl Group {
    /// One that is alone in its weight keeps its name while its weight changes, as in a warm-up.
    fn name(&self) -> String {
        match &self.hosts[..] {
            [alone] => SocketAddr::new(alone.address, alone.port).to_string(),
            _ => format!("w{}", self.weight),
        }
    }

    fn weight(&self) -> u64 {
        u64::from(self.weight) * self.hosts.len() as u64
    }
}

/// What a gRPC client is told: the encoded assignment, with what it may send to and nothing else.
pub(super) fn grpc_assignment(service: &Service, localities: Localities) -> Vec<u8> {
    let groups = groups(service, localities);
    let scale = Scale::of(groups.iter().map(Group::weight));
    let ranks = Ranks::of(groups.iter().map(|group| group.priority));
    let locality = |group: &Group| wire::LocalityLbEndpoints {
        locality: Some(wire::Locality {
            zone: String::new(),
            sub_zone: group.name(),
        }),
        lb_endpoints: group.hosts.iter().map(GrpcEndpoint::message).collect(),
        load_balancing_weight: Some(scale.apply(group.weight())),
        priority: ranks.of_priority(group.priority),
        leds_cluster_locality_config: None,
    };
    assignment(&service.name, groups.iter().map(locality)).encode_to_vec()
}

/// In the order of their priorities.
fn groups(service: &Service, localities: Localities) -> Vec<Group> {
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for instance in service.instances.iter() {
        if let Some(endpoint) = GrpcEndpoint::new(instance) {
            let alone =
                (localities == Localities::ByAddress).then_some((endpoint.address, endpoint.port));
            let group = (endpoint.priority, endpoint.weight, alone);
            groups.entry(group).or_default().push(endpoint);
        }
    }
    let groups = groups.into_iter();
    groups
        .map(|((priority, weight, _), hosts)| Group {
            priority,
            weight,
            hosts,
        })
        .collect()
}

pub(super) fn zone(instance: &Instance) -> &str {
    instance.zone.as_deref().unwrap_or_default()
}

fn assignment(
    name: &Arc<str>,
    localities: impl Iterator<Item = wire::LocalityLbEndpoints>,
) -> wire::ClusterLoadAssignment {
    wire::ClusterLoadAssignment {
        cluster_name: name.to_string(),
        endpoints: localities.collect(),
        policy: None,
    }
}

fn endpoint(address: IpAddr, port: u16) -> wire::Endpoint {
    let socket_address = Some(wire::SocketAddress {
        address: address.to_string(),
        port_value: u32::from(port),
    });
    wire::Endpoint {
        address: Some(wire::Address { socket_address }),
    }
}

/// The priorities that there are, numbered from 0: clients reject or misread gaps.
struct Ranks(Vec<u8>);

impl Ranks {
    /// Of priorities in their order.
    fn of(priorities: impl Iterator<Item = u8>) -> Self {
        let mut all: Vec<u8> = priorities.collect();
        all.dedup();
        Self(all)
    }

    /// By default Envoy counts instances: a priority that lost one heavy instance of two would keep 70 % of the requests
    /// for the light one.
    fn policy(&self) -> Option<wire::Policy> {
        (self.0.len() > 1).then_some(wire::Policy {
            weighted_priority_health: true,
        })
    }

    fn of_priority(&self, priority: u8) -> u32 {
        let rank = self.0.iter().position(|p| *p == priority);
        rank.and_then(|rank| u32::try_from(rank).ok())
            .unwrap_or_default()
    }
}

/// Makes weights smaller where their sum would not fit into the 32 bits that clients add them up in.
///
/// `Σ max(1, ⌊w / divisor⌋) ≤ total / divisor + count`, which the divisor keeps below the limit.
#[derive(Debug)]
pub(super) struct Scale {
    divisor: u64,
}

impl Scale {
    const LIMIT: u64 = u32::MAX as u64;

    fn of(weights: impl Iterator<Item = u64>) -> Self {
        let (count, total) = weights.fold((0, 0), |(n, sum), weight| (n + 1, sum + weight));
        Self::new(count, total)
    }

    /// For so many weights of that sum.
    pub fn new(count: u64, total: u64) -> Self {
        let divisor = if total <= Self::LIMIT {
            1
        } else {
            total.div_ceil(Self::LIMIT.saturating_sub(count).max(1))
        };
        Self { divisor }
    }

    pub fn apply(&self, weight: u64) -> u32 {
        u32::try_from(weight / self.divisor).map_or(u32::MAX, |weight| weight.max(1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scaled(weights: &[u64]) -> Vec<u32> {
        let scale = Scale::of(weights.iter().copied());
        weights.iter().map(|weight| scale.apply(*weight)).collect()
    }

    #[test]
    fn weights_that_fit_stay_as_they_are() {
        let limit = u64::from(u32::MAX);
        assert_eq!(scaled(&[1, 10_000]), [1, 10_000]);
        assert_eq!(scaled(&[limit - 1, 1]), [u32::MAX - 1, 1]);
        assert!(scaled(&[]).is_empty());
    }

    #[test]
    fn half_a_million_of_the_heaviest_fit_once_scaled() {
        let weights = scaled(&vec![10_000; 500_000]);
        assert_eq!(weights[0], 5_000);
    }

    fn names(weights: &[u32], localities: Localities) -> Vec<(String, u32)> {
        use crate::translate::tests::{instance, service};
        let instances = (1..).zip(weights);
        let instances = instances.map(|(at, weight)| instance(&format!("10.0.0.{at}:80"), *weight));
        let body = grpc_assignment(&service("orders", instances), localities);
        let assignment = wire::ClusterLoadAssignment::decode(&*body).unwrap();
        let groups = assignment.endpoints.into_iter();
        let mut names: Vec<_> = groups
            .map(|g| {
                (
                    g.locality.unwrap().sub_zone,
                    g.load_balancing_weight.unwrap(),
                )
            })
            .collect();
        names.sort();
        names
    }

    fn owned(names: &[(&str, u32)]) -> Vec<(String, u32)> {
        let owned = names
            .iter()
            .map(|(name, weight)| ((*name).to_owned(), *weight));
        owned.collect()
    }

    #[test]
    fn a_locality_for_each_address_keeps_its_name_when_the_weight_changes() {
        for weight in [1, 7, 100] {
            assert_eq!(
                names(&[weight, 100], Localities::ByAddress),
                owned(&[("10.0.0.1:80", weight), ("10.0.0.2:80", 100)])
            );
        }
    }

    #[test]
    fn of_many_endpoints_those_of_one_weight_share_a_locality_and_one_alone_keeps_its_name() {
        for weight in [1, 7] {
            assert_eq!(
                names(&[weight, 100, 100], Localities::ByWeight),
                owned(&[("10.0.0.1:80", weight), ("w100", 200)])
            );
        }
    }

    #[test]
    fn the_division_changes_back_at_half_the_number_only() {
        let mut localities = Localities::default();
        let sizes = [100, 101, 60, 51, 50, 100, 101];
        let forms = sizes.map(|size| {
            localities = localities.of(size);
            localities == Localities::ByWeight
        });
        assert_eq!(forms, [false, true, true, true, false, false, true]);
    }

    proptest! {
        #[test]
        fn scaled_weights_fit_and_none_vanishes(
            weights in prop::collection::vec(prop_oneof![1u64..10, 1u64..1 << 40], 1..50),
        ) {
            let scaled = scaled(&weights);
            let total: u64 = scaled.iter().map(|weight| u64::from(*weight)).sum();
            prop_assert!(u32::try_from(total).is_ok());
            prop_assert!(scaled.iter().all(|weight| *weight > 0));
        }
    }
}
