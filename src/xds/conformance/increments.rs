//! Behaviour 49: the endpoints of large services, one by one.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use envoy_types::pb::envoy::{
    config::core::v3::{BuildVersion, node::UserAgentVersionType},
    service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    r#type::v3::SemanticVersion,
};
use proptest::prelude::*;
use prost::Message;

use super::{Mesh, ResourceType::*, Stream, node, on_demand};
use crate::{
    resource::{Edition, Profile, Resource, ResourceType, STAMP, Stamps, Version},
    xds::{
        body::{self, Form},
        delta::Delta,
        stream::Scope,
    },
};

/// A stream of a sidecar, read from the bytes that it gets.
struct Sidecar {
    mesh: Mesh,
    stream: Stream<Delta>,
    minor: u32,
    willing: Option<bool>,
    introduced: bool,
}

impl Sidecar {
    fn new(mesh: &Mesh, first_stamp: u64) -> Self {
        Self {
            mesh: mesh.clone(),
            stream: Stream::new(Scope::Aggregated).increments(Some(Stamps::new(first_stamp))),
            minor: 40,
            willing: None,
            introduced: false,
        }
    }

    fn send(&mut self, kind: ResourceType, request: DeltaDiscoveryRequest) -> &mut Self {
        let mut sender = node("envoy");
        sender.user_agent_version_type =
            Some(UserAgentVersionType::UserAgentBuildVersion(BuildVersion {
                version: Some(SemanticVersion {
                    major_number: 1,
                    minor_number: self.minor,
                    patch: 0,
                }),
                metadata: None,
            }));
        sender.metadata = self
            .willing
            .map(|willing| on_demand::metadata(Profile::INCREMENTS, willing));
        let introduced = std::mem::replace(&mut self.introduced, true);
        let request = DeltaDiscoveryRequest {
            node: (!introduced).then_some(sender),
            type_url: kind.type_url().into(),
            ..request
        };
        let now = std::time::Instant::now();
        self.stream.request(request, now).unwrap();
        self
    }

    fn subscribe(&mut self, kind: ResourceType, names: &[&str]) -> &mut Self {
        self.change(kind, names, &[])
    }

    fn change(&mut self, kind: ResourceType, add: &[&str], drop: &[&str]) -> &mut Self {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let request = DeltaDiscoveryRequest {
            resource_names_subscribe: owned(add),
            resource_names_unsubscribe: owned(drop),
            ..DeltaDiscoveryRequest::default()
        };
        self.send(kind, request)
    }

    fn receive(&mut self) -> Option<DeltaDiscoveryResponse> {
        let world = self.mesh.0.borrow();
        let response = self.stream.poll(&world.snapshots, world.now).unwrap()?;
        let message: Vec<u8> = body::encode(response, Form::Delta).flatten().collect();
        Some(DeltaDiscoveryResponse::decode(Bytes::from(message).slice(5..)).unwrap())
    }

    fn next(&mut self) -> DeltaDiscoveryResponse {
        let response = self.receive().expect("a response is due");
        self.ack(&response);
        response
    }

    fn ack(&mut self, response: &DeltaDiscoveryResponse) {
        let kind = ResourceType::from_type_url(&response.type_url).unwrap();
        let ack = DeltaDiscoveryRequest {
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        self.send(kind, ack);
    }

    fn silent(&mut self) {
        assert_eq!(self.receive(), None, "silence was due");
    }

    /// Asks for an assignment; the collections that it names.
    fn collections(&mut self, service: &str) -> Vec<String> {
        self.subscribe(Endpoint, &[service]);
        named(&self.next())
    }
}

/// What the assignments of a response name: their bodies are lists of names here.
fn named(response: &DeltaDiscoveryResponse) -> Vec<String> {
    assert_eq!(response.type_url, Endpoint.type_url());
    let bodies = response
        .resources
        .iter()
        .map(|r| r.resource.as_ref().unwrap());
    let text = bodies.map(|any| String::from_utf8(any.value.clone()).unwrap());
    text.flat_map(|text| {
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    })
    .collect()
}

/// Names without what is before the last slash, and versions; `-` for what is gone.
fn told(response: &DeltaDiscoveryResponse) -> Vec<String> {
    assert_eq!(response.type_url, LbEndpoint.type_url());
    let last = |name: &str| name.rsplit_once('/').unwrap().1.to_owned();
    let version = |text: &str| Version::parse(text).unwrap().0;
    let resources = response.resources.iter();
    let put = resources.map(|r| format!("{}@{}", last(&r.name), version(&r.version)));
    let gone = response
        .removed_resources
        .iter()
        .map(|name| format!("-{}", last(name)));
    put.chain(gone).collect()
}

impl Mesh {
    fn put_increments(&self, resource: Resource) {
        let snapshots = &mut self.0.borrow_mut().snapshots;
        snapshots.of_mut(Edition::Increments).put(resource);
    }

    /// `zones` is all that the assignment holds.
    fn assign(&self, service: &str, zones: &BTreeSet<&str>) {
        let names = zones
            .iter()
            .map(|zone| format!("{service}/{STAMP}/{zone}/*"));
        let body = names.collect::<Vec<_>>().join(" ");
        let version = Version::of(&body);
        let assignment = Resource::new(Endpoint, service, version, body.as_bytes());
        self.put_increments(assignment.stamped());
    }

    /// `member` is `ZONE/NAME@VERSION`.
    fn put_member(&self, member: &str, bytes: usize) {
        let (name, version) = member.split_once('@').unwrap();
        let version = Version(version.parse().unwrap());
        let name = format!("orders/{STAMP}/{name}");
        self.put_increments(Resource::new(LbEndpoint, name, version, &vec![7; bytes]));
    }

    fn remove_member(&self, member: &str) {
        let name = format!("orders/{STAMP}/{member}");
        let snapshots = &mut self.0.borrow_mut().snapshots;
        snapshots
            .of_mut(Edition::Increments)
            .remove(LbEndpoint, &name);
    }
}

/// A service in zone `a` with two endpoints, and its cluster.
fn orders() -> Mesh {
    let mesh = Mesh::of(Cluster, &["orders@1"]);
    mesh.assign("orders", &["a"].into());
    mesh.put_member("a/1@1", 8);
    mesh.put_member("a/2@1", 8);
    mesh
}

#[test]
fn line_49_of_a_collection_only_what_changes_is_told() {
    let mesh = orders();
    let mut sidecar = Sidecar::new(&mesh, 0xff);
    let collections = sidecar.collections("orders");
    assert_eq!(collections, ["orders/00000000000000ff/a/*"]);
    sidecar.subscribe(LbEndpoint, &["orders/00000000000000ff/a/*"]);
    let all = sidecar.next();
    assert_eq!(told(&all), ["1@1", "2@1"]);
    assert_eq!(all.resources[0].name, "orders/00000000000000ff/a/1");
    sidecar.silent();
    mesh.put_member("a/2@2", 8);
    assert_eq!(told(&sidecar.next()), ["2@2"]);
    mesh.remove_member("a/1");
    assert_eq!(told(&sidecar.next()), ["-1"]);
    mesh.put_member("b/1@1", 8);
    sidecar.silent();
}

#[test]
fn line_49_what_changes_before_the_ack_is_told_once_and_last() {
    let mesh = orders();
    let mut sidecar = Sidecar::new(&mesh, 0);
    let collections = sidecar.collections("orders");
    sidecar.subscribe(LbEndpoint, &[&collections[0]]);
    let first = sidecar.receive().unwrap();
    for version in 2..9 {
        mesh.put_member(&format!("a/1@{version}"), 8);
        mesh.put_member(&format!("a/9@{version}"), 8);
    }
    mesh.remove_member("a/9");
    sidecar.silent();
    sidecar.ack(&first);
    assert_eq!(told(&sidecar.next()), ["1@8"]);
    sidecar.silent();
}

#[test]
fn line_49_a_cluster_that_is_built_anew_finds_its_endpoints_under_a_new_name() {
    let mesh = orders();
    let mut sidecar = Sidecar::new(&mesh, 0);
    sidecar.subscribe(Cluster, &[]).next();
    let old = sidecar.collections("orders");
    sidecar.subscribe(LbEndpoint, &[&old[0]]).next();
    mesh.put(Cluster, "orders@2");
    // Envoy acknowledges a cluster when it is warm, and for that it needs its endpoints.
    let cluster = sidecar.receive().unwrap();
    assert_eq!(cluster.type_url, Cluster.type_url());
    let new = named(&sidecar.next());
    assert_ne!(old, new);
    sidecar.change(LbEndpoint, &[&new[0]], &[&old[0]]);
    assert_eq!(told(&sidecar.next()), ["1@1", "2@1"]);
    mesh.put_member("a/1@2", 8);
    let change = sidecar.next();
    assert!(new[0].starts_with(change.resources[0].name.strip_suffix('1').unwrap()));
    sidecar.silent();
}

#[test]
fn line_49_a_client_that_comes_back_is_told_new_names_though_nothing_changed() {
    let mesh = orders();
    let mut first = Sidecar::new(&mesh, 0);
    let old = first.collections("orders");
    let version = {
        let world = mesh.0.borrow();
        let set = world.snapshots.of(Edition::Increments).set(Endpoint);
        set.get("orders").unwrap().version.to_string()
    };

    let mut second = Sidecar::new(&mesh, 1000);
    let request = DeltaDiscoveryRequest {
        resource_names_subscribe: vec!["orders".into()],
        initial_resource_versions: [("orders".to_owned(), version)].into(),
        ..DeltaDiscoveryRequest::default()
    };
    second
        .send(Endpoint, request)
        .subscribe(LbEndpoint, &[&old[0]]);
    let new = named(&second.next());
    assert_ne!(old, new);
    // That nothing is there under the old name takes nothing from who holds some of it.
    let stale = second.next();
    assert_eq!(stale.removed_resources, old);
    assert!(stale.resources.is_empty());
    second.change(LbEndpoint, &[&new[0]], &[&old[0]]);
    assert_eq!(told(&second.next()), ["1@1", "2@1"]);
    second.silent();
}

#[test]
fn line_49_a_collection_without_members_is_answered_at_once_and_told_when_it_has_some() {
    let mesh = Mesh::empty();
    mesh.assign("orders", &["a"].into());
    let mut sidecar = Sidecar::new(&mesh, 0);
    let collections = sidecar.collections("orders");
    sidecar.subscribe(LbEndpoint, &[&collections[0]]);
    assert_eq!(sidecar.next().removed_resources, collections);
    sidecar.silent();
    mesh.put_member("a/1@1", 8);
    assert_eq!(told(&sidecar.next()), ["1@1"]);
}

#[test]
fn line_49_what_is_no_collection_of_this_stream_does_not_exist() {
    let mesh = orders();
    let mut sidecar = Sidecar::new(&mesh, 0);
    let names = [
        format!("orders/{STAMP}/a/*"),
        format!("orders/{STAMP}/a/1"),
        "orders/0000000000000000/a/*".to_owned(),
        "x".to_owned(),
        "/*".to_owned(),
    ];
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    sidecar.subscribe(LbEndpoint, &names);
    let answer = sidecar.next();
    assert!(answer.resources.is_empty());
    let gone: BTreeSet<_> = answer
        .removed_resources
        .iter()
        .map(String::as_str)
        .collect();
    assert_eq!(gone, names.into_iter().collect());
    sidecar.subscribe(LbEndpoint, &["*"]);
    assert_eq!(
        sidecar.next().removed_resources,
        ["*"],
        "there is no wildcard"
    );
    sidecar.silent();
}

#[test]
fn line_49_who_cannot_take_collections_gets_whole_assignments() {
    let mesh = orders();
    mesh.put_for(Edition::Envoy, Endpoint, "orders", 5, 8);
    let whole = |mut sidecar: Sidecar| {
        sidecar.subscribe(Endpoint, &["orders"]);
        sidecar.next().resources[0].version == Version(5).to_string()
    };
    let new = || Sidecar::new(&mesh, 0);
    assert!(!whole(new()));
    assert!(whole(Sidecar { minor: 39, ..new() }));
    for willing in [true, false] {
        let sidecar = Sidecar {
            willing: Some(willing),
            ..new()
        };
        assert_eq!(whole(sidecar), !willing);
    }
    let stream = Stream::new(Scope::Aggregated);
    assert!(whole(Sidecar { stream, ..new() }));
    let stream = Stream::new(Scope::Only(Endpoint)).increments(Some(Stamps::new(0)));
    assert!(whole(Sidecar { stream, ..new() }));
}

#[test]
fn line_49_a_collection_goes_out_in_one_message_and_changes_in_several() {
    const MEBIBYTE: usize = 1 << 20;
    let mesh = orders();
    mesh.assign("orders", &["a", "b"].into());
    for member in 3..9 {
        mesh.put_member(&format!("a/{member}@1"), MEBIBYTE);
        mesh.put_member(&format!("b/{member}@1"), MEBIBYTE / 4);
    }
    let mut sidecar = Sidecar::new(&mesh, 0);
    let collections = sidecar.collections("orders");
    sidecar.subscribe(LbEndpoint, &[&collections[0], &collections[1]]);
    // Without an ACK between them.
    let [first, second] = [sidecar.receive().unwrap(), sidecar.receive().unwrap()];
    assert_eq!([first.resources.len(), second.resources.len()], [8, 6]);
    sidecar.silent();
    sidecar.ack(&first);
    sidecar.ack(&second);
    for member in 3..9 {
        mesh.put_member(&format!("a/{member}@2"), MEBIBYTE);
    }
    let [first, second] = [sidecar.receive().unwrap(), sidecar.receive().unwrap()];
    assert_eq!([first.resources.len(), second.resources.len()], [3, 3]);
    sidecar.silent();
}

#[test]
fn line_49_members_that_are_all_replaced_at_once_are_a_change_like_any_other() {
    let mesh = orders();
    let mut sidecar = Sidecar::new(&mesh, 0);
    let collections = sidecar.collections("orders");
    sidecar.subscribe(LbEndpoint, &[&collections[0]]);
    sidecar.next();
    let name = |member: &str| format!("orders/{STAMP}/a/{member}");
    let put = Resource::new(LbEndpoint, name("3"), Version(1), b"");
    let gone = ["1", "2"].map(|member| (LbEndpoint, name(member).into()));
    let changed = mesh
        .0
        .borrow_mut()
        .snapshots
        .of_mut(Edition::Increments)
        .apply(vec![put.into()], &gone);
    assert_eq!(changed, 3);
    assert_eq!(told(&sidecar.next()), ["3@1", "-1", "-2"]);
    sidecar.silent();
}

#[test]
fn line_49_a_zone_that_went_and_came_back_unseen_is_told_under_a_new_name_alone() {
    let mesh = orders();
    let mut sidecar = Sidecar::new(&mesh, 0);
    let collections = sidecar.collections("orders");
    sidecar.subscribe(LbEndpoint, &[&collections[0]]);
    sidecar.next();
    mesh.remove_member("a/1");
    mesh.remove_member("a/2");
    mesh.assign("orders", &BTreeSet::new());
    mesh.put_member("a/3@1", 8);
    mesh.assign("orders", &["a"].into());
    let renamed = named(&sidecar.next());
    assert_ne!(renamed, collections);
    sidecar.silent();
    sidecar.change(LbEndpoint, &[&renamed[0]], &[&collections[0]]);
    assert_eq!(told(&sidecar.next()), ["3@1"]);
    sidecar.silent();
}

/// A sidecar as Envoy is: under a new name it begins with nothing, and names of members are all it
/// goes by.
#[derive(Default)]
struct Model {
    collections: BTreeMap<String, BTreeMap<String, String>>,
}

impl Model {
    fn take(&mut self, sidecar: &mut Sidecar, response: &DeltaDiscoveryResponse) {
        if response.type_url == Cluster.type_url() {
            return sidecar.ack(response);
        }
        if response.type_url == Endpoint.type_url() {
            let names = named(response);
            let dropped: Vec<String> = self.collections.keys().cloned().collect();
            self.collections = names
                .iter()
                .map(|name| (name.clone(), BTreeMap::new()))
                .collect();
            let add: Vec<_> = names.iter().map(String::as_str).collect();
            let drop: Vec<_> = dropped.iter().map(String::as_str).collect();
            sidecar.ack(response);
            sidecar.change(LbEndpoint, &add, &drop);
            return;
        }
        for resource in &response.resources {
            if let Some((collection, name)) = self.find(&resource.name) {
                collection.insert(name, resource.version.clone());
            }
        }
        for name in &response.removed_resources {
            if let Some((collection, name)) = self.find(name) {
                collection.remove(&name);
            }
        }
        sidecar.ack(response);
    }

    fn find(&mut self, name: &str) -> Option<(&mut BTreeMap<String, String>, String)> {
        let (path, last) = name.rsplit_once('/')?;
        let collection = self.collections.get_mut(&format!("{path}/*"))?;
        Some((collection, last.to_owned()))
    }

    /// By zone and name.
    fn members(&self) -> BTreeMap<String, String> {
        let collections = self.collections.iter();
        let members = collections.flat_map(|(glob, members)| {
            let zone = glob.rsplit('/').nth(1).unwrap();
            members
                .iter()
                .map(move |(name, version)| (format!("{zone}/{name}"), version.clone()))
        });
        members.collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8, u8),
    Remove(u8, u8),
    Rebuild,
    Read(u8),
    Reconnect,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..3u8, 0..4u8, 0..4u8).prop_map(|(z, n, v)| Step::Put(z, n, v)),
        4 => (0..3u8, 0..4u8).prop_map(|(z, n)| Step::Remove(z, n)),
        1 => Just(Step::Rebuild),
        3 => (1..4u8).prop_map(Step::Read),
        1 => Just(Step::Reconnect),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #[test]
    fn line_49_whatever_happens_the_client_ends_with_exactly_the_members(steps in steps()) {
        let mesh = Mesh::of(Cluster, &["orders@1"]);
        let mut members = BTreeMap::new();
        let assign = |members: &BTreeMap<String, String>| {
            let zones = members.keys().map(|name| name.split_once('/').unwrap().0).collect();
            mesh.assign("orders", &zones);
        };
        assign(&members);
        let mut streams = 0;
        let mut open = || {
            streams += 1;
            let mut sidecar = Sidecar::new(&mesh, streams << 32);
            sidecar.subscribe(Cluster, &[]).subscribe(Endpoint, &["orders"]);
            sidecar
        };
        let (mut sidecar, mut model) = (open(), Model::default());
        let mut clusters = 1;
        for step in steps {
            match step {
                Step::Put(zone, name, version) => {
                    let name = format!("{zone}/{name}");
                    mesh.put_member(&format!("{name}@{version}"), 8);
                    members.insert(name, Version(version.into()).to_string());
                    assign(&members);
                }
                Step::Remove(zone, name) => {
                    let name = format!("{zone}/{name}");
                    mesh.remove_member(&name);
                    members.remove(&name);
                    assign(&members);
                }
                Step::Rebuild => {
                    clusters += 1;
                    mesh.put(Cluster, &format!("orders@{clusters}"));
                }
                Step::Read(count) => {
                    for _ in 0..count {
                        let Some(response) = sidecar.receive() else { break };
                        model.take(&mut sidecar, &response);
                    }
                }
                Step::Reconnect => sidecar = open(),
            }
        }
        while let Some(response) = sidecar.receive() {
            model.take(&mut sidecar, &response);
        }
        prop_assert_eq!(model.members(), members);
    }
}
