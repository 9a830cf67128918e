//! What a gRPC client is answered that asks for a name which no resource has.
//!
//! ```text
//! Listener  ORDERS, orders.mesh, orders:8080    the listener of `orders` under that name
//!           grpc/server?xds.resource.listening_address=ADDRESS    a server's own listener
//!           anything else                       routes to the cluster `NAME (not registered)`
//! Cluster   NAME (not registered), NAME (no instances)    a cluster that fails every call
//! Endpoint  likewise                            an assignment that drops every call
//! ```
//!
//! A client that gets no answer lets calls wait for 15 s. What fails a call at once, with a message that
//! has the name in it, was tried with each library: C-core, grpc-js and grpc-java put the category of a
//! drop or the name of the cluster into the message. grpc-go does neither, but names an aggregate cluster
//! that has no leaf. grpc-js does not recover from a cluster that was removed, and must not get a route
//! configuration without a virtual host.
//!
//! It does not know the services. Invariant: what is made depends on the name, on what was found under
//! another spelling and on the client's library alone.
//! Source: gRFC A27 (client), A36 (server), A37 (aggregate clusters).

use std::sync::Arc;

use envoy_types::pb::envoy::{
    config::endpoint::v3::{
        ClusterLoadAssignment,
        cluster_load_assignment::{Policy, policy::DropOverload},
    },
    r#type::v3::FractionalPercent,
};
use prost::Message;

use super::{
    cluster::{GrpcCluster, leafless_cluster},
    listener::{server_listener, unregistered_listener},
    name::Suffix,
    rendering::{RENDERING, Spec},
};
use crate::resource::{
    Edition, Made, Naming, Profile, Resource, ResourceType, Version, canonical_host,
};

/// The name of the listener that a server asks for, up to its address.
const SERVER_LISTENER: &str = "grpc/server?xds.resource.listening_address=";

/// Why a cluster fails every call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Failing {
    NotRegistered,
    NoInstances,
}

impl Failing {
    const ALL: [Self; 2] = [Self::NotRegistered, Self::NoInstances];

    const fn reason(self) -> &'static str {
        match self {
            Self::NotRegistered => "not registered",
            Self::NoInstances => "no instances",
        }
    }

    /// `orders` → `orders (not registered)`
    pub fn cluster(self, service: &str) -> String {
        format!("{service} ({})", self.reason())
    }

    /// `orders (not registered)` → `orders`
    fn of_cluster(cluster: &str) -> Option<(Self, &str)> {
        Self::ALL.into_iter().find_map(|failing| {
            let service = cluster.strip_suffix(')')?.strip_suffix(failing.reason())?;
            Some((failing, service.strip_suffix(" (")?))
        })
    }

    fn message(self, service: &str) -> String {
        match self {
            Self::NotRegistered => format!("service {service} is not registered"),
            Self::NoInstances => format!("service {service} has no instances"),
        }
    }
}

/// How names of gRPC clients are understood.
#[derive(Debug)]
pub struct GrpcNaming {
    suffix: Suffix,
}

impl GrpcNaming {
    /// With the suffix that services' second host names have.
    pub fn new(domain_suffix: &str) -> Self {
        Self {
            suffix: Suffix::new(domain_suffix),
        }
    }
}

impl Naming for GrpcNaming {
    fn spellings(&self, kind: ResourceType, name: &str) -> Vec<String> {
        if kind != ResourceType::Listener || name.starts_with(SERVER_LISTENER) {
            return Vec::new();
        }
        let host = canonical_host(name);
        let first = self.suffix.strip(&host).map(str::to_owned);
        let spellings = [Some(host), first].into_iter().flatten();
        spellings.filter(|spelling| spelling != name).collect()
    }

    fn make(
        &self,
        kind: ResourceType,
        name: &str,
        found: Option<&Resource>,
        profile: Profile,
    ) -> Option<Made> {
        match kind {
            ResourceType::Listener => Some(listener(name, found)),
            ResourceType::Cluster => failing_cluster(name, profile.grpc_go).map(Made::from),
            ResourceType::Endpoint => failing_assignment(name).map(Made::from),
            _ => None,
        }
    }
}

impl From<Resource> for Made {
    fn from(resource: Resource) -> Self {
        Self {
            resource: Arc::new(resource),
            unknown: false,
        }
    }
}

fn listener(name: &str, found: Option<&Resource>) -> Made {
    let kind = ResourceType::Listener;
    if let Some(found) = found {
        return found.renamed(name).into();
    }
    let server = name
        .strip_prefix(SERVER_LISTENER)
        .and_then(|address| server_listener(name, address));
    if let Some(server) = server {
        return made(kind, name, &server.encode_to_vec()).into();
    }
    let cluster = Failing::NotRegistered.cluster(name);
    let listener = unregistered_listener(name, &cluster);
    Made {
        unknown: true,
        ..made(kind, name, &listener.encode_to_vec()).into()
    }
}

fn failing_cluster(name: &str, grpc_go: bool) -> Option<Resource> {
    Failing::of_cluster(name)?;
    let body = if grpc_go {
        leafless_cluster(name).encode_to_vec()
    } else {
        GrpcCluster {
            name: name.into(),
            ranked: false,
        }
        .body()
    };
    Some(made(ResourceType::Cluster, name, &body))
}

fn failing_assignment(name: &str) -> Option<Resource> {
    let (failing, service) = Failing::of_cluster(name)?;
    let all = DropOverload {
        category: failing.message(service),
        drop_percentage: Some(FractionalPercent {
            numerator: 100,
            ..Default::default()
        }),
    };
    let assignment = ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        policy: Some(Policy {
            drop_overloads: vec![all],
            ..Default::default()
        }),
        ..Default::default()
    };
    Some(made(
        ResourceType::Endpoint,
        name,
        &assignment.encode_to_vec(),
    ))
}

fn made(kind: ResourceType, name: &str, body: &[u8]) -> Resource {
    // No message in it has a map, so equal content has equal bytes.
    let version = Version::of(&(RENDERING, Edition::Grpc, kind, body));
    Resource::new(kind, name, version, body)
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::{cluster::v3::Cluster, listener::v3::Listener};

    use super::*;
    use crate::resource::ClientKind;

    fn make(kind: ResourceType, name: &str, found: Option<&Resource>) -> Option<Made> {
        let profile = Profile::whole(ClientKind::Grpc);
        GrpcNaming::new("mesh").make(kind, name, found, profile)
    }

    #[test]
    fn names_are_looked_up_without_case_port_and_suffix() {
        let naming = GrpcNaming::new("mesh");
        for (name, spellings) in [
            ("orders", &[][..]),
            ("ORDERS", &["orders"]),
            ("orders:8080", &["orders"]),
            ("orders.mesh", &["orders"]),
            ("Orders.Mesh.:1", &["orders.mesh", "orders"]),
            ("com.foo.Bar:1.0", &["com.foo.bar:1.0"]),
            (
                "grpc/server?xds.resource.listening_address=127.0.0.1:80",
                &[],
            ),
        ] {
            assert_eq!(naming.spellings(ResourceType::Listener, name), spellings);
            assert!(naming.spellings(ResourceType::Cluster, name).is_empty());
        }
    }

    #[test]
    fn what_is_found_under_another_name_bears_the_name_that_was_asked_for() {
        let listener = Listener {
            name: "orders".into(),
            stat_prefix: "kept".into(),
            ..Default::default()
        };
        let found = made(ResourceType::Listener, "orders", &listener.encode_to_vec());
        let answer = make(ResourceType::Listener, "ORDERS", Some(&found)).unwrap();
        assert!(!answer.unknown);
        assert_eq!(&*answer.resource.name, "ORDERS");
        assert_ne!(answer.resource.version, found.version);
        let decoded = Listener::decode(answer.resource.body()).unwrap();
        assert_eq!((&*decoded.name, &*decoded.stat_prefix), ("ORDERS", "kept"));
    }

    #[test]
    fn a_server_gets_a_listener_at_its_address_and_an_unknown_target_none() {
        for (address, host) in [("127.0.0.1:80", "127.0.0.1"), ("[::]:80", "::")] {
            let name = format!("{SERVER_LISTENER}{address}");
            let answer = make(ResourceType::Listener, &name, None).unwrap();
            assert!(!answer.unknown);
            let listener = Listener::decode(answer.resource.body()).unwrap();
            assert_eq!((listener.api_listener, listener.name), (None, name));
            let text = format!("{:?}", listener.address);
            assert!(text.contains(&format!("{host:?}")), "{text}");
        }
        for name in ["ghost", &format!("{SERVER_LISTENER}nowhere")] {
            let answer = make(ResourceType::Listener, name, None).unwrap();
            assert!(answer.unknown, "{name}");
            let listener = Listener::decode(answer.resource.body()).unwrap();
            assert!(listener.api_listener.is_some());
        }
    }

    #[test]
    fn only_clusters_that_fail_are_made_and_their_assignments_say_why() {
        for (name, message) in [
            ("a (not registered)", "service a is not registered"),
            ("a (no instances)", "service a has no instances"),
        ] {
            let cluster = make(ResourceType::Cluster, name, None).unwrap();
            let cluster = Cluster::decode(cluster.resource.body()).unwrap();
            assert_eq!(cluster.name, name);
            let assignment = make(ResourceType::Endpoint, name, None).unwrap();
            let assignment = ClusterLoadAssignment::decode(assignment.resource.body()).unwrap();
            let dropped = &assignment.policy.unwrap().drop_overloads[0];
            assert_eq!(dropped.category, message);
        }
        for name in ["a", "a (gone)", "(no instances)", "a(no instances)"] {
            assert!(make(ResourceType::Cluster, name, None).is_none(), "{name}");
            assert!(make(ResourceType::Endpoint, name, None).is_none(), "{name}");
        }
        assert!(make(ResourceType::Route, "a (no instances)", None).is_none());
    }
}
