//! Behaviours 46–48: virtual hosts and clusters on demand, and errors of single resources.

use envoy_types::pb::{
    envoy::{
        config::core::v3::{BuildVersion, Node, node::UserAgentVersionType},
        service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
        r#type::v3::SemanticVersion,
    },
    google::protobuf::{Struct, Value, value::Kind},
};
use prost::Message;

use super::{DeltaClient, Dialect, Mesh, ResourceType::*, SotwClient, node, strings, told};
use crate::{
    resource::{ClientKind, Edition, Profile},
    xds::{body, delta::Delta, request::Request, sotw::Sotw},
};

const ORDERS: &str = "outbound/orders";

/// A sidecar that loads services on demand.
fn sidecar(mesh: &Mesh) -> DeltaClient {
    let mut client = mesh.delta();
    client.node = Some(wishing(Some(true)));
    client
}

fn wishing(wish: Option<bool>) -> Node {
    Node {
        metadata: wish.map(|wish| metadata(Profile::ON_DEMAND, wish)),
        ..node("envoy")
    }
}

/// What a node says that wishes something of this server, or not.
pub(super) fn metadata(key: &str, wish: bool) -> Struct {
    let value = |kind| Value { kind: Some(kind) };
    let fields = [(key.to_owned(), value(Kind::BoolValue(wish)))].into();
    let wishes = value(Kind::StructValue(Struct { fields }));
    Struct {
        fields: [(Profile::METADATA.to_owned(), wishes)].into(),
    }
}

fn mesh(service: &str) -> Mesh {
    Mesh::of(VirtualHost, &[&format!("outbound/{service}@1")])
        .with(Cluster, &[&format!("{service}@1")])
        .with(Endpoint, &[&format!("{service}@1")])
}

/// What a client reads in the next response: name, aliases, and whether there is a body.
fn read(client: &mut DeltaClient) -> Vec<(String, Vec<String>, bool)> {
    let response = client.receive().expect("a response is due");
    client.ack(VirtualHost);
    let pieces = body::encode(response, body::Form::Delta);
    let message: Vec<u8> = pieces.flatten().skip(5).collect();
    let response = DeltaDiscoveryResponse::decode(&*message).unwrap();
    assert_eq!(response.removed_resources, [""; 0]);
    let resources = response.resources.into_iter();
    resources
        .map(|r| (r.name, r.aliases, r.resource.is_some()))
        .collect()
}

fn answer(name: &str, aliases: &[&str], there: bool) -> (String, Vec<String>, bool) {
    (name.to_owned(), strings(aliases), there)
}

#[test]
fn line_46_an_envoy_that_rejects_virtual_hosts_over_ads_gets_everything_and_a_note() {
    let of = |minor_number| {
        let version = SemanticVersion {
            major_number: 1,
            minor_number,
            patch: 4,
        };
        let build = BuildVersion {
            version: Some(version),
            metadata: None,
        };
        let request = DeltaDiscoveryRequest {
            node: Some(Node {
                user_agent_version_type: Some(UserAgentVersionType::UserAgentBuildVersion(build)),
                ..wishing(Some(true))
            }),
            ..DeltaDiscoveryRequest::default()
        };
        request.client(false, false).unwrap()
    };
    let (old, new) = (of(36), of(37));
    assert!(!old.profile.on_demand && new.profile.on_demand);
    assert!(old.note.unwrap().contains("Envoy 1.36"));
    assert_eq!(new.note, None);
}

#[test]
fn line_46_a_host_is_answered_as_it_was_asked_for() {
    let mut client = sidecar(&mesh("orders"));
    for alias in [
        "outbound/orders",
        "outbound/ORDERS:8080",
        "outbound/orders.:80",
    ] {
        client.subscribe(VirtualHost, &[alias]);
        assert_eq!(read(&mut client), [answer(ORDERS, &[alias], true)]);
        client.silent();
    }
    let spelled = ["outbound/orders:1", "outbound/orders:2"];
    client.subscribe(VirtualHost, &spelled);
    assert_eq!(read(&mut client), [answer(ORDERS, &spelled, true)]);
    client.silent();
}

#[test]
fn line_46_an_unknown_host_is_answered_at_once_without_a_body_each_time() {
    let mut client = sidecar(&mesh("orders"));
    for alias in [
        "outbound/nowhere:80",
        "outbound/nowhere:80",
        "outbound/nowhere",
    ] {
        client.subscribe(VirtualHost, &[alias]);
        let absent = answer("outbound/nowhere", &[alias], false);
        assert_eq!(read(&mut client), [absent]);
        client.silent();
    }
}

#[test]
fn line_46_an_unknown_host_is_sent_when_it_appears_and_taken_back_once() {
    let mesh = mesh("orders");
    let mut client = sidecar(&mesh);
    client.subscribe(VirtualHost, &["outbound/later:80"]);
    client.settle();
    mesh.put(VirtualHost, "outbound/later@1");
    assert_eq!(read(&mut client), [answer("outbound/later", &[], true)]);
    mesh.remove(VirtualHost, "outbound/later");
    let gone = told(VirtualHost, &[]).removing(&["outbound/later"]);
    assert_eq!(client.next_acked(), gone);
    client.silent();
}

#[test]
fn line_46_a_change_is_told_once_under_its_name() {
    let mesh = mesh("orders");
    let mut client = sidecar(&mesh);
    client.subscribe(VirtualHost, &["outbound/orders:1", "outbound/orders:2"]);
    client.settle();
    mesh.put(VirtualHost, "outbound/orders@2");
    assert_eq!(read(&mut client), [answer(ORDERS, &[], true)]);
    client.silent();
}

#[test]
fn line_46_a_host_asked_for_while_it_changes_is_answered_as_it_was_asked_for() {
    let mesh = mesh("orders");
    let mut client = sidecar(&mesh);
    client.subscribe(VirtualHost, &[ORDERS]).settle();
    mesh.put(VirtualHost, "outbound/orders@2");
    client.subscribe(VirtualHost, &["outbound/orders:80"]);
    assert_eq!(
        read(&mut client),
        [answer(ORDERS, &["outbound/orders:80"], true)]
    );
    client.silent();
}

#[test]
fn line_46_any_spelling_ends_the_subscription() {
    let mesh = mesh("orders");
    let mut client = sidecar(&mesh);
    client
        .subscribe(VirtualHost, &["outbound/orders:80"])
        .settle();
    client.unsubscribe(VirtualHost, &["outbound/Orders"]);
    mesh.put(VirtualHost, "outbound/orders@2");
    client.silent();
}

#[test]
fn line_46_a_client_that_comes_back_is_told_nothing_that_it_holds() {
    let mesh = mesh("orders");
    let names = ["outbound/orders:80"];
    let mut client = sidecar(&mesh);
    client
        .resume(VirtualHost, &names, &["outbound/orders@1"])
        .silent();
    mesh.put(VirtualHost, "outbound/orders@2");
    assert_eq!(read(&mut client), [answer(ORDERS, &[], true)]);

    let mut behind = sidecar(&mesh);
    behind.resume(VirtualHost, &names, &["outbound/orders@1"]);
    assert_eq!(read(&mut behind), [answer(ORDERS, &names, true)]);
}

#[test]
fn line_46_a_host_that_went_before_it_was_asked_for_is_answered_as_any_unknown_one() {
    let mesh = mesh("orders").with(VirtualHost, &["outbound/users@1"]);
    let mut client = sidecar(&mesh);
    client.subscribe(VirtualHost, &["outbound/users"]).settle();
    mesh.remove(VirtualHost, ORDERS);
    client.subscribe(VirtualHost, &["outbound/orders:80"]);
    let absent = answer(ORDERS, &["outbound/orders:80"], false);
    assert_eq!(read(&mut client), [absent]);
    client.silent();
}

#[test]
fn line_46_a_host_asked_for_again_while_it_goes_is_answered_and_then_taken_back() {
    let mesh = mesh("orders");
    let mut client = sidecar(&mesh);
    client.subscribe(VirtualHost, &[ORDERS]).settle();
    mesh.remove(VirtualHost, ORDERS);
    client.subscribe(VirtualHost, &["outbound/orders:80"]);
    let absent = answer(ORDERS, &["outbound/orders:80"], false);
    assert_eq!(read(&mut client), [absent]);
    assert_eq!(client.next(), told(VirtualHost, &[]).removing(&[ORDERS]));
    client.ack(VirtualHost).silent();
}

#[test]
fn line_46_a_host_that_went_while_the_client_was_away_is_answered_and_then_taken_back() {
    let mut client = sidecar(&mesh("users"));
    let names = ["outbound/orders"];
    client.resume(VirtualHost, &names, &["outbound/orders@1"]);
    assert_eq!(read(&mut client), [answer(ORDERS, &names, false)]);
    assert_eq!(client.next(), told(VirtualHost, &[]).removing(&[ORDERS]));
    client.ack(VirtualHost).silent();
}

#[test]
fn line_46_unknown_hosts_without_end_are_answered_and_hold_little() {
    let mesh = mesh("orders");
    let mut client = sidecar(&mesh);
    client.subscribe(VirtualHost, &[ORDERS]).settle();
    for round in 0..5 {
        let hosts = hosts(1_000, &format!("outbound/x{round}-"));
        client.subscribe(VirtualHost, &refs(&hosts));
        assert_eq!(read(&mut client).len(), 1_000);
        assert!(client.stream.footprint() <= 1_001);
    }
    mesh.put(VirtualHost, "outbound/x4-999@1");
    mesh.put(VirtualHost, "outbound/x0-0@1");
    let latest = answer("outbound/x4-999", &[], true);
    assert_eq!(read(&mut client), [latest], "the latest are followed");
    let first = "outbound/x0-0";
    client.subscribe(VirtualHost, &[first]);
    assert_eq!(read(&mut client), [answer(first, &[first], true)]);
}

#[test]
fn line_46_what_a_client_comes_back_with_counts_once_it_is_answered_and_spellings_at_once() {
    let mut client = sidecar(&mesh("orders"));
    client.subscribe(VirtualHost, &refs(&hosts(5_000, "outbound/x")));
    assert_eq!(client.stream.footprint(), 0);
    client.receive().expect("an answer");
    assert_eq!(client.stream.footprint(), 1_000);
    // Without an ACK they pile up.
    client.subscribe(VirtualHost, &refs(&hosts(5_000, "outbound/orders:")));
    assert!(client.stream.footprint() >= 6_000);
}

fn hosts(count: u32, begin: &str) -> Vec<String> {
    (0..count).map(|at| format!("{begin}{at}")).collect()
}

fn refs(hosts: &[String]) -> Vec<&str> {
    hosts.iter().map(String::as_str).collect()
}

#[test]
fn line_46_a_wildcard_holds_no_host() {
    let mesh = mesh("orders");
    let mut client = sidecar(&mesh);
    client.subscribe(VirtualHost, &[]);
    assert_eq!(client.next_acked(), told(VirtualHost, &[]));
    mesh.put(VirtualHost, "outbound/other@1");
    client.silent();
}

#[test]
fn line_47_the_wildcard_of_such_a_sidecar_holds_no_cluster_and_names_are_told_beside_it() {
    let mesh = mesh("orders").with(Cluster, &["users@1"]);
    let mut client = sidecar(&mesh);
    client.subscribe(Cluster, &[]);
    assert_eq!(client.next_acked(), told(Cluster, &[]));
    client.subscribe(Cluster, &["orders"]);
    assert_eq!(client.next_acked(), told(Cluster, &["orders@1"]));
    mesh.put(Cluster, "users@2");
    client.silent().subscribe(Cluster, &["*", "nowhere"]);
    assert_eq!(
        client.next_acked(),
        told(Cluster, &[]).removing(&["nowhere"])
    );
    mesh.put(Cluster, "orders@2");
    assert_eq!(client.next_acked(), told(Cluster, &["orders@2"]));
}

#[test]
fn line_47_what_a_sidecar_loaded_before_it_began_to_load_on_demand_goes_unless_it_names_it() {
    let mesh = mesh("orders").with(Cluster, &["users@1", "carts@1"]);
    let mut client = sidecar(&mesh);
    let held = ["orders@1", "users@1", "carts@1", "gone@1"];
    client.resume(Cluster, &["*", "orders"], &held);
    let gone = told(Cluster, &[]).removing(&["carts", "gone", "users"]);
    assert_eq!(client.next_acked(), gone);
    mesh.put(Cluster, "users@2");
    client.silent();
}

#[test]
fn line_47_a_cluster_named_beside_a_full_wildcard_is_told_again() {
    let mut client = mesh("orders").delta();
    client.subscribe(Cluster, &[]);
    assert_eq!(client.next_acked(), told(Cluster, &["orders@1"]));
    client.subscribe(Cluster, &["orders"]);
    assert_eq!(client.next_acked(), told(Cluster, &["orders@1"]));
    client.silent();
}

#[test]
fn line_47_a_service_that_goes_takes_its_host_along_before_its_cluster() {
    let mesh = mesh("orders");
    let mut client = sidecar(&mesh);
    client.subscribe(VirtualHost, &[ORDERS]).settle();
    client.subscribe(Cluster, &["orders"]).settle();
    client.subscribe(Endpoint, &["orders"]).settle();
    for (kind, name) in [
        (Cluster, "orders"),
        (Endpoint, "orders"),
        (VirtualHost, ORDERS),
    ] {
        mesh.remove(kind, name);
    }
    assert_eq!(client.next(), told(VirtualHost, &[]).removing(&[ORDERS]));
    client.silent().ack(VirtualHost);
    assert_eq!(client.next(), told(Cluster, &[]).removing(&["orders"]));
    assert_eq!(client.next(), told(Endpoint, &[]).removing(&["orders"]));
}

/// What a client gets whose first request is this, of a server with this default.
fn profile<V: Dialect>(node: Node, default: bool) -> Profile
where
    V::Request: Default,
{
    let mut request = V::Request::default();
    V::identify(&mut request, node);
    request.client(default, false).unwrap().profile
}

#[test]
fn line_47_what_the_node_wishes_wins_over_what_is_configured() {
    for (wish, default, on_demand) in [
        (None, false, false),
        (None, true, true),
        (Some(true), false, true),
        (Some(false), true, false),
    ] {
        let found = profile::<Delta>(wishing(wish), default);
        assert_eq!(found.on_demand, on_demand, "{wish:?} {default}");
    }
}

#[test]
fn line_47_who_cannot_load_on_demand_is_told_everything() {
    assert!(!profile::<Sotw>(wishing(Some(true)), true).on_demand);
    let grpc = Node {
        user_agent_name: "grpc-node".into(),
        ..wishing(Some(true))
    };
    let profile = profile::<Delta>(grpc, true);
    assert_eq!(profile, Profile::whole(ClientKind::Grpc));
    assert_eq!(profile.edition(Listener), Edition::Grpc);
}

#[test]
fn line_48_a_name_that_does_not_exist_is_an_error_once_and_one_that_went_is_none() {
    let mesh = Mesh::of(Cluster, &["a@1"]);
    let mut client = mesh.delta();
    client.subscribe(Cluster, &["a", "b"]);
    assert_eq!(
        client.next_acked(),
        told(Cluster, &["a@1"]).removing(&["b"])
    );
    assert_eq!(client.latest[&Cluster].missing, ["b".into()]);
    mesh.remove(Cluster, "a");
    assert_eq!(client.next_acked(), told(Cluster, &[]).removing(&["a"]));
    assert!(client.latest[&Cluster].missing.is_empty());
    mesh.put(Cluster, "c@1");
    client.silent();
}

#[test]
fn line_48_a_removal_that_waited_is_no_error() {
    let mesh = Mesh::whole("a");
    let mut client = mesh.delta();
    for kind in [Cluster, Route] {
        client.subscribe(kind, &["a"]).settle();
    }
    mesh.remove(Cluster, "a");
    mesh.remove(Route, "a");
    let told = client.settle();
    assert_eq!(told.last().unwrap().removed, ["a"]);
    assert!(client.latest[&Cluster].missing.is_empty());
}

#[test]
fn line_48_whole_sets_tell_of_missing_names_once_and_single_ones_stay_silent() {
    for kind in [Cluster, Listener] {
        let mesh = Mesh::of(kind, &["a@1"]);
        let mut client: SotwClient = mesh.sotw();
        client.ask(kind, &["a", "b"]);
        assert_eq!(client.next(), told(kind, &["a@1"]));
        assert_eq!(client.latest[&kind].missing, ["b".into()]);
        client.ask(kind, &["a", "b"]).silent();
        mesh.put(kind, "a@2");
        assert_eq!(client.next(), told(kind, &["a@2"]));
        assert!(client.latest[&kind].missing.is_empty());
    }
    for kind in [Endpoint, Route] {
        let mut client = Mesh::empty().sotw();
        client.ask(kind, &["b"]).silent();
    }
}
