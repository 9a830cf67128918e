//! What a change of services yields, step by step.

use envoy_types::pb::envoy::config::{
    cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, route::v3::RouteConfiguration,
};
use prost::Message;

use super::*;
use crate::model::{Health, Instance, Metadata, Origin, Weight};

pub(super) fn config() -> Config {
    Config {
        outbound_listen: SocketAddr::from(([127, 0, 0, 1], 15_001)),
        domain_suffix: "mesh".into(),
        increments_above: 0,
        ranked: false,
        http: Arc::default(),
    }
}

pub(super) fn instance(at: &str, weight: u32) -> Instance {
    let at: SocketAddr = at.parse().unwrap();
    Instance {
        own_id: Some(format!("i-{at}").into()),
        address: at.ip(),
        port: at.port(),
        weight: Weight::new(weight).unwrap(),
        zone: None,
        health: Health::Healthy,
        metadata: Metadata::default(),
        priority: 0,
        origin: Origin::default(),
    }
}

pub(super) fn service(name: &str, instances: impl IntoIterator<Item = Instance>) -> Arc<Service> {
    Arc::new(Service {
        name: name.into(),
        host: name.to_lowercase().replace('_', "-").into(),
        registry: "main".into(),
        instances: instances.into_iter().map(Arc::new).collect(),
    })
}

pub(super) fn changes(
    services: &[Arc<Service>],
) -> impl Iterator<Item = (&str, Option<(&Arc<Service>, &Touched)>)> {
    services
        .iter()
        .map(|s| (&*s.name, Some((s, &Touched::All))))
}

/// What a client of each kind holds after some updates.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Client {
    pub resources: BTreeMap<(Edition, ResourceType, Arc<str>), Arc<Resource>>,
}

impl Client {
    pub fn take(&mut self, updates: Vec<Update>) {
        assert_eq!(updates.len(), Edition::ALL.len());
        for update in updates {
            for (kind, name) in update.remove {
                let removed = self.resources.remove(&(update.edition, kind, name.clone()));
                assert!(removed.is_some(), "{kind:?} {name} was never put");
            }
            for resource in update.put {
                let key = (update.edition, resource.kind, resource.name.clone());
                self.resources.insert(key, resource);
            }
        }
    }

    fn get(&self, client: Edition, kind: ResourceType, name: &str) -> &Resource {
        &self.resources[&(client, kind, name.into())]
    }

    fn decode<M: Message + Default>(&self, client: Edition, kind: ResourceType, name: &str) -> M {
        M::decode(self.get(client, kind, name).body()).unwrap()
    }

    pub fn assignment(&self, client: Edition, name: &str) -> ClusterLoadAssignment {
        self.decode(client, ResourceType::Endpoint, name)
    }

    pub fn routes(&self) -> RouteConfiguration {
        self.decode(Edition::Envoy, ResourceType::Route, "outbound")
    }

    fn table(&self, name: &str) -> Vec<u8> {
        let cluster: Cluster = self.decode(Edition::Envoy, ResourceType::Cluster, name);
        let policy = cluster.load_balancing_policy.unwrap().policies.remove(0);
        policy
            .typed_extension_config
            .unwrap()
            .typed_config
            .unwrap()
            .value
    }
}

/// A mesh that holds these services, and what its clients do.
fn mesh(services: &[Arc<Service>]) -> (Translation, Client) {
    let mut translation = Translation::new(config());
    let mut client = Client::default();
    client.take(translation.apply(changes(services)));
    (translation, client)
}

fn put_names(updates: &[Update]) -> Vec<(Edition, ResourceType, &str)> {
    updates
        .iter()
        .flat_map(|u| u.put.iter().map(|r| (u.edition, r.kind, &*r.name)))
        .collect()
}

fn domains(client: &Client) -> Vec<(String, Vec<String>)> {
    let hosts = client.routes().virtual_hosts;
    hosts.into_iter().map(|h| (h.name, h.domains)).collect()
}

#[test]
fn an_empty_registry_yields_the_listener_and_its_routes_once() {
    let mut translation = Translation::new(config());
    assert_eq!(
        put_names(&translation.apply([])),
        [
            (Edition::Envoy, ResourceType::Listener, "outbound"),
            (Edition::Envoy, ResourceType::Route, "outbound"),
            (Edition::OnDemand, ResourceType::Listener, "outbound"),
            (Edition::OnDemand, ResourceType::Route, "outbound"),
        ]
    );
    assert_eq!(put_names(&translation.apply([])), []);
}

#[test]
fn a_change_of_weight_costs_one_assignment_for_each_kind() {
    let (mut translation, _) = mesh(&[
        service(
            "orders",
            [instance("10.0.0.1:80", 1), instance("10.0.0.2:80", 1)],
        ),
        service("users", [instance("10.0.0.3:80", 1)]),
    ]);
    let heavier = service(
        "orders",
        [instance("10.0.0.1:80", 9), instance("10.0.0.2:80", 1)],
    );
    let updates = translation.apply([("orders", Some((&heavier, &Touched::All)))]);
    assert_eq!(
        put_names(&updates),
        [
            (Edition::Envoy, ResourceType::Endpoint, "orders"),
            (Edition::Grpc, ResourceType::Endpoint, "orders"),
        ]
    );
}

#[test]
fn metadata_concerns_sidecars_alone() {
    let (mut translation, _) = mesh(&[service("orders", [instance("10.0.0.1:80", 1)])]);
    let mut told = instance("10.0.0.1:80", 1);
    told.metadata = BTreeMap::from([("version".to_owned(), "2".to_owned())]).into();
    let told = service("orders", [told]);
    let updates = translation.apply([("orders", Some((&told, &Touched::All)))]);
    assert_eq!(
        put_names(&updates),
        [(Edition::Envoy, ResourceType::Endpoint, "orders")]
    );
}

#[test]
fn what_clients_cannot_see_yields_nothing() {
    let (mut translation, _) = mesh(&[service("orders", [instance("10.0.0.1:80", 1)])]);
    let mut rewritten = instance("10.0.0.1:80", 1);
    rewritten.own_id = Some("other".into());
    rewritten.origin.mzxid = 99;
    let rewritten = service("orders", [rewritten]);
    assert_eq!(
        put_names(&translation.apply([("orders", Some((&rewritten, &Touched::All)))])),
        []
    );
}

#[test]
fn a_service_that_goes_takes_everything_of_it_along() {
    let (mut translation, mut client) = mesh(&[service("orders", [instance("10.0.0.1:80", 1)])]);
    client.take(translation.apply([("orders", None)]));
    assert_eq!(client, mesh(&[]).1);
    assert_eq!(domains(&client), []);
}

#[test]
fn an_unknown_service_that_goes_is_no_change() {
    let (mut translation, _) = mesh(&[]);
    let updates = translation.apply([("orders", None)]);
    assert!(
        updates
            .iter()
            .all(|u| u.put.is_empty() && u.remove.is_empty())
    );
}

#[test]
fn a_service_that_comes_back_has_its_old_versions() {
    let services = [service("orders", [instance("10.0.0.1:80", 1)])];
    let (mut translation, mut client) = mesh(&services);
    client.take(translation.apply([("orders", None)]));
    client.take(translation.apply(changes(&services)));
    assert_eq!(client, mesh(&services).1);
}

#[test]
fn a_service_without_instances_keeps_cluster_assignment_and_virtual_host() {
    let (mut translation, mut client) = mesh(&[service("orders", [instance("10.0.0.1:80", 1)])]);
    let before: Vec<_> = client.resources.keys().cloned().collect();
    client.take(translation.apply([("orders", Some((&service("orders", []), &Touched::All)))]));
    let after: Vec<_> = client.resources.keys().cloned().collect();
    assert_eq!(before, after);
    assert_eq!(domains(&client)[0].1, ["orders", "orders.mesh"]);
    for kind in [Edition::Envoy, Edition::Grpc] {
        let assignment = client.assignment(kind, "orders");
        assert_eq!(assignment.cluster_name, "orders");
        assert_eq!(assignment.endpoints, []);
    }
}

#[test]
fn a_name_that_is_taken_costs_the_other_service_its_second_domain() {
    let named = |name: &str| service(name, []);
    let (mut translation, mut client) = mesh(&[named("a"), named("a.mesh")]);
    let both = vec![
        ("a".to_owned(), vec!["a".to_owned()]),
        (
            "a.mesh".to_owned(),
            vec!["a.mesh".to_owned(), "a.mesh.mesh".to_owned()],
        ),
    ];
    assert_eq!(domains(&client), both);

    client.take(translation.apply([("a.mesh", None)]));
    assert_eq!(
        domains(&client),
        [("a".into(), vec!["a".into(), "a.mesh".into()])]
    );

    client.take(translation.apply([("a.mesh", Some((&named("a.mesh"), &Touched::All)))]));
    assert_eq!(domains(&client), both);

    client.take(translation.apply([("a", None)]));
    assert_eq!(domains(&client), both[1..]);
}

#[test]
fn a_service_may_come_back_in_other_case_with_one_change() {
    for (old, new) in [("Orders", "orders"), ("orders", "Orders")] {
        let (mut translation, mut client) = mesh(&[service(old, [])]);
        let renamed = service(new, []);
        let mut changes = [(old, None), (new, Some((&renamed, &Touched::All)))];
        changes.sort_by_key(|(name, _)| *name);
        client.take(translation.apply(changes));
        assert_eq!(client, mesh(&[renamed]).1, "{old} → {new}");
    }
}

#[test]
fn the_maglev_table_grows_with_the_service_and_does_not_shrink() {
    let of = |hosts: u8| {
        let instances = (1..=hosts).map(|i| instance(&format!("10.0.0.{i}:80"), 100));
        service("orders", instances)
    };
    let (mut translation, mut client) = mesh(&[of(3)]);
    let small = client.table("orders");
    client.take(translation.apply([("orders", Some((&of(200), &Touched::All)))]));
    let grown = client.table("orders");
    assert_ne!(small, grown);

    assert_eq!(
        put_names(&translation.apply([("orders", Some((&of(3), &Touched::All)))])),
        [
            (Edition::Envoy, ResourceType::Endpoint, "orders"),
            (Edition::Grpc, ResourceType::Endpoint, "orders"),
        ]
    );
    client.take(translation.apply([("orders", None)]));
    client.take(translation.apply([("orders", Some((&of(3), &Touched::All)))]));
    assert_eq!(client.table("orders"), small, "a new cluster begins anew");
}

#[test]
fn drained_and_unhealthy_instances_do_not_size_the_table() {
    let of = |health: Health, weight: u32| {
        let idle = (1..=200).map(|i| Instance {
            health: health.clone(),
            ..instance(&format!("10.0.0.{i}:80"), weight)
        });
        service("orders", idle)
    };
    let small = mesh(&[service("orders", [])]).1.table("orders");
    assert_eq!(mesh(&[of(Health::Unhealthy, 100)]).1.table("orders"), small);
    assert_eq!(mesh(&[of(Health::Healthy, 0)]).1.table("orders"), small);
    assert_ne!(mesh(&[of(Health::Healthy, 100)]).1.table("orders"), small);
}

#[test]
fn a_service_is_told_one_by_one_while_it_is_large_and_can_be() {
    let mut translation = Translation::new(Config {
        increments_above: 4,
        ..config()
    });
    let mut client = Client::default();
    let of = |count: usize, zone: &str| {
        let at = |n| Instance {
            zone: Some(zone.into()),
            ..instance(&format!("10.0.0.{n}:80"), 100)
        };
        service("a", (0..count).map(at))
    };
    let mut tell = |service: &Arc<Service>| {
        client.take(translation.apply([("a", Some((service, &Touched::All)))]));
        let whole = client.get(Edition::Envoy, ResourceType::Endpoint, "a");
        let told = client.get(Edition::Increments, ResourceType::Endpoint, "a");
        let members = client.resources.keys();
        let members = members.filter(|(_, kind, _)| *kind == ResourceType::LbEndpoint);
        (members.count(), told.is_stamped(), whole == told)
    };
    let (by_ones, as_a_whole) = ((true, false), (false, true));
    let expect = |count, (stamped, same)| (count, stamped, same);
    assert_eq!(tell(&of(4, "z")), expect(0, as_a_whole));
    assert_eq!(tell(&of(5, "z")), expect(5, by_ones));
    assert_eq!(tell(&of(3, "z")), expect(3, by_ones), "over half of four");
    assert_eq!(tell(&of(2, "z")), expect(0, as_a_whole));
    assert_eq!(tell(&of(6, "z")), expect(6, by_ones));
    // A name that holds the mark of a stamp would be told with another in its place.
    let marked = format!("z{}", crate::resource::STAMP);
    assert_eq!(tell(&of(6, &marked)), expect(0, as_a_whole));
    assert_eq!(tell(&of(7, &marked)), expect(0, as_a_whole));
    assert_eq!(tell(&of(7, "y")), expect(7, by_ones));
    client.take(translation.apply([("a", None)]));
    let left = client
        .resources
        .keys()
        .filter(|(_, _, name)| name.contains("/a/"));
    assert_eq!(left.count(), 0);
}
