//! Whatever the services are, clients accept what comes out, and only the services decide it.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use envoy_types::pb::envoy::config::{
    core::v3::{Locality, address::Address, socket_address::PortSpecifier},
    endpoint::v3::{LbEndpoint, lb_endpoint::HostIdentifier},
};
use proptest::prelude::*;

use super::{tests::*, *};
use crate::model::{Health, Instance, Weight};

fn any_instance() -> impl Strategy<Value = Instance> {
    let address = prop_oneof![
        (1u8..5).prop_map(|i| IpAddr::from([10, 0, 0, i])),
        (1u16..3).prop_map(|i| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, i])),
    ];
    let health = prop_oneof![
        4 => Just(Health::Healthy),
        1 => Just(Health::Degraded),
        1 => Just(Health::Unhealthy),
        1 => Just(Health::Disabled("off".into())),
    ];
    let weight = prop_oneof![0u32..4, 0..=Weight::MAX.get()];
    let metadata = prop::collection::btree_map("[a-z]{0,2}", ".{0,3}", 0..3);
    let zone = prop::option::of("[ab]?");
    let zone = zone.prop_map(|zone| zone.map(Arc::from));
    let port = prop_oneof![1u16..4, Just(u16::MAX)];
    (address, port, weight, zone, health, metadata).prop_map(
        |(address, port, weight, zone, health, metadata)| Instance {
            zone,
            health,
            metadata: metadata.into(),
            ..instance(&SocketAddr::new(address, port).to_string(), weight)
        },
    )
}

/// A service of one of a few names that get in each other's way.
fn any_service() -> impl Strategy<Value = Arc<Service>> {
    let name = prop::sample::select(
        &[
            "a",
            "a.mesh",
            "A.mesh.mesh",
            "mesh",
            "B",
            "b.MESH",
            "c_d",
            "c_d.mesh",
            "C_D.mesh.mesh",
        ][..],
    );
    (name, prop::collection::vec(any_instance(), 0..8)).prop_map(|(name, mut instances)| {
        let mut seen = HashSet::new();
        instances.retain(|i| seen.insert((i.address, i.port)));
        service(name, instances)
    })
}

fn any_services() -> impl Strategy<Value = Vec<Arc<Service>>> {
    prop::collection::vec(any_service(), 0..6).prop_map(|mut services| {
        let mut seen = BTreeSet::new();
        services.retain(|s| seen.insert(s.name.clone()));
        services
    })
}

fn held_after(services: &[Arc<Service>]) -> Client {
    let mut client = Client::default();
    client.take(Translation::new(config()).apply(changes(services)));
    client
}

fn address(endpoint: &LbEndpoint) -> (IpAddr, u16) {
    let Some(HostIdentifier::Endpoint(inner)) = &endpoint.host_identifier else {
        panic!("an endpoint")
    };
    let Some(Address::SocketAddress(socket)) = inner.address.clone().unwrap().address else {
        panic!("a socket address")
    };
    let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else {
        panic!("a port")
    };
    (socket.address.parse().unwrap(), port.try_into().unwrap())
}

fn metadata(endpoint: &LbEndpoint) -> BTreeMap<String, String> {
    use envoy_types::pb::google::protobuf::value::Kind;
    let Some(mut metadata) = endpoint.metadata.clone() else {
        return BTreeMap::new();
    };
    let fields = metadata.filter_metadata.remove("envoy.lb").unwrap().fields;
    let text = |kind| match kind {
        Some(Kind::StringValue(text)) => text,
        other => panic!("no text: {other:?}"),
    };
    let entries = fields
        .into_iter()
        .map(|(key, value)| (key, text(value.kind)));
    entries.collect()
}

fn owned<'a>(entries: impl Iterator<Item = (&'a str, &'a str)>) -> BTreeMap<String, String> {
    let entry = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    entries.map(entry).collect()
}

fn zone(instance: &Instance) -> String {
    instance.zone.as_deref().unwrap_or_default().to_owned()
}

proptest! {
    #[test]
    fn a_sidecar_is_told_every_enabled_instance_as_it_is(services in any_services()) {
        let client = held_after(&services);
        for service in &services {
            let assignment = client.assignment(Edition::Envoy, &service.name);
            prop_assert_eq!(&*assignment.cluster_name, &*service.name);
            let mut told = BTreeMap::new();
            let mut zones = Vec::new();
            for locality in &assignment.endpoints {
                prop_assert_eq!(locality.priority, 0);
                prop_assert!(locality.load_balancing_weight.is_none());
                let zone = locality.locality.clone().unwrap().zone;
                for endpoint in &locality.lb_endpoints {
                    let weight = endpoint.load_balancing_weight.unwrap().value;
                    let what = (zone.clone(), weight, endpoint.health_status, metadata(endpoint));
                    prop_assert!(told.insert(address(endpoint), what).is_none(), "told twice");
                }
                zones.push(zone);
            }
            prop_assert!(zones.is_sorted_by(|a, b| a < b));
            let expected = service.instances.iter().filter_map(|i| {
                let weight = i.weight.get();
                let health = match (&i.health, weight) {
                    (Health::Disabled(_), _) => return None,
                    (Health::Unhealthy, _) => 2,
                    (Health::Healthy | Health::Degraded, 0) => 3,
                    (Health::Degraded, _) => 5,
                    (Health::Healthy, _) => 1,
                };
                Some(((i.address, i.port), (zone(i), weight.max(1), health, owned(i.metadata.iter()))))
            });
            prop_assert_eq!(told, expected.collect::<BTreeMap<_, _>>());
        }
    }

    #[test]
    fn a_grpc_client_is_told_usable_instances_in_weighted_localities(services in any_services()) {
        let client = held_after(&services);
        for service in &services {
            let assignment = client.assignment(Edition::Grpc, &service.name);
            let mut told = BTreeMap::new();
            let mut localities = HashSet::new();
            for group in &assignment.endpoints {
                let Locality { region, zone, sub_zone } = group.locality.clone().unwrap();
                prop_assert!(localities.insert((region, zone, sub_zone)), "not unique");
                prop_assert_eq!(group.priority, 0);
                prop_assert!(!group.lb_endpoints.is_empty());
                let hosts = u32::try_from(group.lb_endpoints.len()).unwrap();
                let sum = group.load_balancing_weight.unwrap().value;
                prop_assert!(sum > 0 && sum % hosts == 0);
                for endpoint in &group.lb_endpoints {
                    prop_assert!(told.insert(address(endpoint), sum / hosts).is_none(), "told twice");
                }
            }
            let usable = service.instances.iter().filter(|i| {
                i.takes_requests()
            });
            let expected = usable.map(|i| ((i.address, i.port), i.weight.get()));
            prop_assert_eq!(told, expected.collect::<BTreeMap<_, _>>());
        }
    }

    #[test]
    fn no_domain_stands_in_the_routes_twice_and_own_names_always_do(services in any_services()) {
        let hosts = held_after(&services).routes().virtual_hosts;
        prop_assert_eq!(hosts.len(), services.len());
        let domains: Vec<_> = hosts.iter().flat_map(|host| &host.domains).collect();
        let unique: HashSet<_> = domains.iter().collect();
        prop_assert_eq!(unique.len(), domains.len());
        for service in &services {
            let host = hosts.iter().find(|host| *host.name == *service.name).unwrap();
            prop_assert_eq!(&*host.domains[0], &*service.host);
            prop_assert!(host.domains.contains(&service.name.to_lowercase()));
        }
        for service in &services {
            let second = format!("{}.mesh", service.name.to_lowercase());
            prop_assert!(unique.contains(&&second), "{} leads nowhere", second);
        }
    }

    #[test]
    fn neither_the_order_of_services_nor_of_instances_matters(
        (services, shuffled) in any_services().prop_flat_map(|services| {
            let shuffled = Just(services.clone()).prop_shuffle();
            (Just(services), shuffled)
        }),
    ) {
        let reversed: Vec<_> = shuffled
            .iter()
            .map(|s| {
                let instances = s.instances.iter().rev().cloned().collect();
                Arc::new(Service { instances, ..(**s).clone() })
            })
            .collect();
        let held = held_after(&services);
        prop_assert_eq!(&held_after(&shuffled), &held);
        prop_assert_eq!(&held_after(&reversed), &held, "bytes and versions");
    }

    /// But for the size of a table, which only grows.
    #[test]
    fn what_is_told_of_the_changes_alone_is_what_is_told_of_the_whole(
        (count, above) in prop_oneof![(0..9usize, Just(0)), (126..132usize, Just(0)), (126..132usize, Just(100))],
        steps in prop::collection::vec(prop::collection::vec((any_instance(), any::<bool>()), 1..4), 0..9),
    ) {
        let config = || Config { increments_above: above, ..config() };
        let mut translation = Translation::new(config());
        let mut client = Client::default();
        let at = |at: usize| instance(&format!("10.9.{}.{}:80", at / 100, at % 100), 100);
        let mut now = service("a", (0..count).map(at));
        client.take(translation.apply([("a", Some((&now, &Touched::All)))]));
        for step in steps {
            let mut next = Service::clone(&now);
            let mut touched = BTreeSet::new();
            for (instance, stays) in step {
                touched.insert(instance.socket());
                if stays {
                    next.instances.put(Arc::new(instance));
                } else {
                    next.instances.remove(instance.socket());
                }
            }
            now = Arc::new(next);
            client.take(translation.apply([("a", Some((&now, &Touched::Some(touched))))]));
        }
        let mut anew = Client::default();
        anew.take(Translation::new(config()).apply([("a", Some((&now, &Touched::All)))]));
        let but_clusters = |mut client: Client| {
            client.resources.retain(|(_, kind, _), _| *kind != ResourceType::Cluster);
            client
        };
        prop_assert_eq!(but_clusters(client), but_clusters(anew));
    }

    /// So few instances need no larger table, which would stay.
    #[test]
    fn the_way_to_a_state_leaves_no_trace_in_it(
        history in prop::collection::vec((any_service(), any::<bool>()), 0..20),
    ) {
        let mut translation = Translation::new(config());
        let mut client = Client::default();
        client.take(translation.apply([]));
        let mut present: BTreeMap<Arc<str>, Arc<Service>> = BTreeMap::new();
        for (service, stays) in history {
            client.take(translation.apply([(&*service.name, stays.then_some((&service, &Touched::All)))]));
            if stays {
                present.insert(service.name.clone(), service);
            } else {
                present.remove(&service.name);
            }
        }
        let services: Vec<_> = present.into_values().collect();
        prop_assert_eq!(client, held_after(&services));
    }
}
