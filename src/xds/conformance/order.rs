//! Behaviours 34–38: make before break across the types of one stream.

use std::time::Duration;

use super::{DeltaClient, Mesh, ResourceType::*, SotwClient, TYPES, told};
use crate::xds::{held::HOLD, stream::GATE};

const INSTANT: Duration = Duration::from_nanos(1);

/// Subscribed to everything of `a` and `b`, and up to date.
fn sotw(mesh: &Mesh) -> SotwClient {
    let mut client = mesh.sotw();
    client.ask(Cluster, &[]).ask(Listener, &[]);
    client.ask(Endpoint, &["a", "b"]).ask(Route, &["a", "b"]);
    client.settle();
    client
}

fn delta(mesh: &Mesh) -> DeltaClient {
    let mut client = mesh.delta();
    client.subscribe(Cluster, &[]).subscribe(Listener, &[]);
    client.subscribe(Endpoint, &["a", "b"]);
    client.subscribe(Route, &["a", "b"]);
    client.settle();
    client
}

fn create(mesh: &Mesh, name: &str) {
    // In the wrong order, so that the right one is the machine's doing.
    for kind in [Route, Listener, Endpoint, Cluster] {
        mesh.put(kind, &format!("{name}@1"));
    }
}

fn delete(mesh: &Mesh, name: &str) {
    for kind in TYPES {
        mesh.remove(kind, name);
    }
}

#[test]
fn line_34_a_creation_goes_out_as_clusters_endpoints_listeners_routes() {
    let mesh = Mesh::whole("a");
    let (mut sotw, mut delta) = (sotw(&mesh), delta(&mesh));
    create(&mesh, "b");
    let expected = [
        told(Cluster, &["a@1", "b@1"]),
        told(Endpoint, &["b@1"]),
        told(Listener, &["a@1", "b@1"]),
        told(Route, &["b@1"]),
    ];
    assert_eq!(sotw.settle(), expected);
    let expected = TYPES.map(|kind| told(kind, &["b@1"]));
    assert_eq!(delta.settle(), expected);
}

#[test]
fn line_34_in_a_deletion_listeners_and_routes_go_first() {
    let mesh = Mesh::whole("a");
    create(&mesh, "b");
    let (mut sotw, mut delta) = (sotw(&mesh), delta(&mesh));
    delete(&mesh, "b");
    let expected = [told(Listener, &["a@1"]), told(Cluster, &["a@1"])];
    assert_eq!(sotw.settle(), expected);
    let expected = [Listener, Route, Cluster, Endpoint];
    assert_eq!(
        delta.settle(),
        expected.map(|kind| told(kind, &[]).removing(&["b"]))
    );
}

#[test]
fn line_34_a_removed_cluster_waits_for_the_acks_of_listeners_and_routes() {
    let mesh = Mesh::whole("a");
    create(&mesh, "b");
    let mut client = delta(&mesh);
    delete(&mesh, "b");
    let gone = |kind| told(kind, &[]).removing(&["b"]);
    assert_eq!(client.drain(), [gone(Listener), gone(Route)]);
    client.ack(Listener).silent().nack(Route);
    assert_eq!(client.drain(), [gone(Cluster), gone(Endpoint)]);

    create(&mesh, "b");
    let mut client = sotw(&mesh);
    delete(&mesh, "b");
    assert_eq!(client.drain(), [told(Listener, &["a@1"])]);
    assert_eq!(client.ack(Listener).drain(), [told(Cluster, &["a@1"])]);
}

#[test]
fn line_34_a_removed_cluster_stays_in_every_answer_while_it_waits() {
    let mesh = Mesh::whole("a");
    create(&mesh, "b");
    let mut client = sotw(&mesh);
    delete(&mesh, "b");
    assert_eq!(client.drain(), [told(Listener, &["a@1"])]);
    mesh.put(Cluster, "a@2");
    let both = told(Cluster, &["a@2", "b@1"]);
    assert_eq!(client.next_acked(), both);
    assert_eq!(client.settle(), [told(Endpoint, &["a@1"])]);
    client.ask(Cluster, &["a", "b", "missing"]);
    assert_eq!(client.settle(), [both, told(Endpoint, &["a@1"])]);
    assert_eq!(client.ack(Listener).drain(), [told(Cluster, &["a@2"])]);
}

#[test]
fn line_34_a_removed_cluster_that_returns_while_it_waits_is_not_removed() {
    let mesh = Mesh::whole("a");
    create(&mesh, "b");
    let (mut sotw, mut delta) = (sotw(&mesh), delta(&mesh));
    delete(&mesh, "b");
    assert_eq!(sotw.drain(), [told(Listener, &["a@1"])]);
    assert_eq!(delta.drain().len(), 2);
    create(&mesh, "b");
    mesh.put(Cluster, "b@2");
    assert_eq!(sotw.next_acked(), told(Cluster, &["a@1", "b@2"]));
    assert_eq!(delta.next_acked(), told(Cluster, &["b@2"]));
    let rest = [
        delta.ack(Listener).ack(Route).settle(),
        sotw.ack(Listener).settle(),
    ];
    for told in rest.into_iter().flatten() {
        assert!(told.removed.is_empty(), "{told:?}");
        assert!(told.kind != Cluster, "{told:?}");
    }
}

#[test]
fn line_34_a_removal_that_waits_is_told_once_though_the_cluster_came_and_went_again() {
    let mesh = Mesh::whole("a");
    create(&mesh, "b");
    let mut client = delta(&mesh);
    delete(&mesh, "b");
    assert_eq!(client.drain().len(), 2);
    mesh.put(Cluster, "b@2");
    mesh.remove(Cluster, "b");
    client.ack(Listener).ack(Route);
    assert_eq!(client.next_acked(), told(Cluster, &[]).removing(&["b"]));
    assert_eq!(client.next_acked(), told(Endpoint, &[]).removing(&["b"]));
    client.silent();
}

#[test]
fn line_34_a_cluster_that_was_let_go_while_it_waited_is_told_once() {
    let mesh = Mesh::whole("a");
    create(&mesh, "b");
    let mut client = sotw(&mesh);
    client.ask(Cluster, &["a", "b"]).settle();
    delete(&mesh, "b");
    assert_eq!(client.drain(), [told(Listener, &["a@1"])]);
    client.ask(Cluster, &["a"]).silent();
    mesh.put(Cluster, "b@2");
    client.silent().ask(Cluster, &["a", "b"]);
    assert_eq!(client.next_acked(), told(Cluster, &["a@1", "b@2"]));
}

#[test]
fn line_34_a_star_asked_again_does_not_break_before_it_makes() {
    let mesh = Mesh::whole("a");
    create(&mesh, "b");
    let mut client = delta(&mesh);
    delete(&mesh, "b");
    client.subscribe(Cluster, &["*"]);
    let first = client.next_acked();
    assert_eq!(first, told(Cluster, &["a@1"]));
    let kinds: Vec<_> = client.settle().iter().map(|told| told.kind).collect();
    assert_eq!(kinds, [Endpoint, Listener, Route, Cluster, Endpoint]);
}

#[test]
fn line_34_endpoints_referred_to_before_they_went_break_last_too() {
    let mesh = Mesh::whole("a");
    let mut client = delta(&mesh);
    mesh.put(Endpoint, "a@2");
    assert_eq!(client.next(), told(Endpoint, &["a@2"]));
    mesh.put(Cluster, "a@2");
    assert_eq!(client.next_acked(), told(Cluster, &["a@2"]));
    client.subscribe(Endpoint, &["*"]);
    delete(&mesh, "a");
    client.ack(Endpoint);
    let gone = |kind| told(kind, &[]).removing(&["a"]);
    let first = [told(Endpoint, &[]), gone(Listener), gone(Route)];
    assert_eq!(client.drain(), first);
    client.ack(Endpoint).ack(Listener).ack(Route);
    assert_eq!(client.settle(), [gone(Cluster), gone(Endpoint)]);
}

#[test]
fn line_34_a_star_of_listeners_that_is_not_answered_yet_is_waited_for() {
    let mesh = Mesh::whole("a");
    create(&mesh, "b");
    let mut client = delta(&mesh);
    client.subscribe(Listener, &["*"]);
    mesh.remove(Cluster, "b");
    let told: Vec<_> = client.settle().iter().map(|told| told.kind).collect();
    assert_eq!(told, [Listener, Route, Cluster]);
}

#[test]
fn line_34_what_is_asked_again_while_its_removal_waits_keeps_waiting() {
    let mesh = Mesh::whole("a");
    create(&mesh, "b");
    let mut client = delta(&mesh);
    delete(&mesh, "b");
    assert_eq!(client.drain().len(), 2);
    client.subscribe(Endpoint, &["b"]).silent();
    client.ack(Listener).ack(Route);
    let gone = [Cluster, Endpoint].map(|kind| told(kind, &[]).removing(&["b"]));
    assert_eq!(client.settle(), gone);
}

#[test]
fn line_34_what_is_given_up_while_its_removal_waits_is_not_told() {
    let mesh = Mesh::whole("a");
    create(&mesh, "b");
    let mut client = delta(&mesh);
    delete(&mesh, "b");
    assert_eq!(client.drain().len(), 2);
    client.unsubscribe(Endpoint, &["b"]);
    client.unsubscribe(Cluster, &["*"]).silent();
    client.ack(Listener).ack(Route).silent();
    assert_eq!(client.deadline(), None);
}

#[test]
fn line_34_what_a_reconnecting_client_brings_along_breaks_last_too() {
    let mesh = Mesh::whole("a");
    let mut client = mesh.delta();
    for kind in [Route, Listener, Endpoint, Cluster] {
        client.resume(kind, &["*"], &["a@1", "b@1"]);
    }
    let removals = client.settle().into_iter();
    let removals = removals.filter(|told| !told.removed.is_empty());
    let expected = [Listener, Route, Cluster, Endpoint];
    assert_eq!(
        removals.collect::<Vec<_>>(),
        expected.map(|kind| told(kind, &[]).removing(&["b"]))
    );
}

#[test]
fn line_34_a_removed_cluster_waits_no_longer_than_its_bound() {
    let mesh = Mesh::whole("a");
    create(&mesh, "b");
    let (mut sotw, mut delta) = (sotw(&mesh), delta(&mesh));
    delete(&mesh, "b");
    assert_eq!(sotw.drain(), [told(Listener, &["a@1"])]);
    assert_eq!(delta.drain().len(), 2);
    assert_eq!(
        (sotw.deadline(), delta.deadline()),
        (Some(HOLD), Some(HOLD))
    );
    mesh.pass(HOLD.checked_sub(INSTANT).unwrap());
    sotw.silent();
    delta.silent();
    mesh.pass(INSTANT);
    assert_eq!(sotw.drain(), [told(Cluster, &["a@1"])]);
    let gone = |kind| told(kind, &[]).removing(&["b"]);
    assert_eq!(delta.drain(), [gone(Cluster), gone(Endpoint)]);
    sotw.ack(Cluster);
    delta.ack(Cluster);
    assert_eq!((sotw.deadline(), delta.deadline()), (None, None));
}

#[test]
fn line_34_without_listeners_and_routes_a_removal_waits_for_nothing() {
    let mesh = Mesh::of(Cluster, &["a@1"]).with(Endpoint, &["a@1"]);
    let mut client = mesh.delta();
    client
        .subscribe(Cluster, &[])
        .subscribe(Endpoint, &["a"])
        .settle();
    delete(&mesh, "a");
    let gone = |kind| told(kind, &[]).removing(&["a"]);
    assert_eq!(client.drain(), [gone(Cluster), gone(Endpoint)]);
    assert_eq!(client.deadline(), None);
}

#[test]
fn line_35_listeners_and_routes_wait_for_the_ack_of_the_clusters() {
    let mesh = Mesh::whole("a");
    let (mut sotw, mut delta) = (sotw(&mesh), delta(&mesh));
    create(&mesh, "b");
    let first = [told(Cluster, &["a@1", "b@1"]), told(Endpoint, &["b@1"])];
    assert_eq!(sotw.drain(), first);
    let rest = [told(Listener, &["a@1", "b@1"]), told(Route, &["b@1"])];
    assert_eq!(sotw.ack(Cluster).drain(), rest);
    let first = [Cluster, Endpoint].map(|kind| told(kind, &["b@1"]));
    assert_eq!(delta.drain(), first);
    let rest = [Listener, Route].map(|kind| told(kind, &["b@1"]));
    assert_eq!(delta.ack(Cluster).drain(), rest);
}

#[test]
fn line_35_a_client_that_never_acknowledges_clusters_blocks_no_endpoints() {
    let mesh = Mesh::whole("a");
    let (mut sotw, mut delta) = (sotw(&mesh), delta(&mesh));
    mesh.put(Cluster, "a@2");
    assert_eq!(sotw.next(), told(Cluster, &["a@2"]));
    assert_eq!(sotw.next_acked(), told(Endpoint, &["a@1"]));
    assert_eq!(delta.next(), told(Cluster, &["a@2"]));
    assert_eq!(delta.next_acked(), told(Endpoint, &["a@1"]));
    for version in 2..9 {
        let resource = format!("a@{version}");
        mesh.put(Endpoint, &resource);
        assert_eq!(sotw.next_acked(), told(Endpoint, &[&resource]));
        assert_eq!(delta.next_acked(), told(Endpoint, &[&resource]));
    }
}

#[test]
fn line_35_the_wait_for_the_clusters_ends_in_time() {
    let mesh = Mesh::whole("a");
    let (mut sotw, mut delta) = (sotw(&mesh), delta(&mesh));
    create(&mesh, "b");
    assert_eq!((sotw.drain().len(), delta.drain().len()), (2, 2));
    assert_eq!(
        (sotw.deadline(), delta.deadline()),
        (Some(GATE), Some(GATE))
    );
    mesh.pass(GATE.checked_sub(INSTANT).unwrap());
    sotw.silent();
    delta.silent();
    mesh.pass(INSTANT);
    let rest = [told(Listener, &["a@1", "b@1"]), told(Route, &["b@1"])];
    assert_eq!(sotw.drain(), rest);
    let rest = [Listener, Route].map(|kind| told(kind, &["b@1"]));
    assert_eq!(delta.drain(), rest);
    assert_eq!((sotw.deadline(), delta.deadline()), (None, None));
}

#[test]
fn line_35_a_rejection_of_the_clusters_ends_the_wait() {
    let mesh = Mesh::whole("a");
    let (mut sotw, mut delta) = (sotw(&mesh), delta(&mesh));
    create(&mesh, "b");
    assert_eq!((sotw.drain().len(), delta.drain().len()), (2, 2));
    let rest = [told(Listener, &["a@1", "b@1"]), told(Route, &["b@1"])];
    assert_eq!(sotw.nack(Cluster).drain(), rest);
    let rest = [Listener, Route].map(|kind| told(kind, &["b@1"]));
    assert_eq!(delta.nack(Cluster).drain(), rest);
}

#[test]
fn line_36_a_changed_cluster_has_its_endpoints_sent_again() {
    let mesh = Mesh::whole("a");
    create(&mesh, "b");
    let (mut sotw, mut delta) = (sotw(&mesh), delta(&mesh));
    mesh.put(Cluster, "b@2");
    let expected = [told(Cluster, &["a@1", "b@2"]), told(Endpoint, &["b@1"])];
    assert_eq!(sotw.settle(), expected);
    let expected = [told(Cluster, &["b@2"]), told(Endpoint, &["b@1"])];
    assert_eq!(delta.settle(), expected);
}

#[test]
fn line_36_a_changed_listener_has_its_routes_sent_again() {
    let mesh = Mesh::whole("a");
    create(&mesh, "b");
    let (mut sotw, mut delta) = (sotw(&mesh), delta(&mesh));
    mesh.put(Listener, "b@2");
    let expected = [told(Listener, &["a@1", "b@2"]), told(Route, &["b@1"])];
    assert_eq!(sotw.settle(), expected);
    let expected = [told(Listener, &["b@2"]), told(Route, &["b@1"])];
    assert_eq!(delta.settle(), expected);
}

#[test]
fn line_36_what_changed_with_its_cluster_is_sent_once() {
    let mesh = Mesh::whole("a");
    let (mut sotw, mut delta) = (sotw(&mesh), delta(&mesh));
    mesh.put(Endpoint, "a@2");
    mesh.put(Cluster, "a@2");
    let expected = [Cluster, Endpoint].map(|kind| told(kind, &["a@2"]));
    assert_eq!(sotw.settle(), expected);
    assert_eq!(delta.settle(), expected);
}

#[test]
fn line_36_endpoints_under_way_are_sent_again_after_their_ack() {
    let mesh = Mesh::whole("a");
    let (mut sotw, mut delta) = (sotw(&mesh), delta(&mesh));
    mesh.put(Endpoint, "a@2");
    assert_eq!(sotw.next(), told(Endpoint, &["a@2"]));
    assert_eq!(delta.next(), told(Endpoint, &["a@2"]));
    mesh.put(Cluster, "a@2");
    assert_eq!(sotw.drain(), [told(Cluster, &["a@2"])]);
    assert_eq!(delta.drain(), [told(Cluster, &["a@2"])]);
    assert_eq!(sotw.ack(Endpoint).drain(), [told(Endpoint, &["a@2"])]);
    assert_eq!(delta.ack(Endpoint).drain(), [told(Endpoint, &["a@2"])]);
}

#[test]
fn line_36_endpoints_of_which_nobody_asked_are_not_sent() {
    let mesh = Mesh::whole("c");
    create(&mesh, "a");
    let (mut sotw, mut delta) = (sotw(&mesh), delta(&mesh));
    mesh.put(Cluster, "c@2");
    assert_eq!(sotw.settle(), [told(Cluster, &["a@1", "c@2"])]);
    assert_eq!(delta.settle(), [told(Cluster, &["c@2"])]);
}

#[test]
fn line_36_missing_endpoints_are_not_told_again_with_their_cluster() {
    let mesh = Mesh::of(Cluster, &["a@1"]);
    let mut client = delta(&mesh);
    mesh.put(Cluster, "a@2");
    assert_eq!(client.settle(), [told(Cluster, &["a@2"])]);
}

#[test]
fn line_36_a_cluster_that_is_asked_and_not_there_has_no_endpoints_sent() {
    let mesh = Mesh::of(Endpoint, &["a@1"]);
    let mut client = mesh.sotw();
    client.ask(Endpoint, &["a"]).settle();
    client.ask(Cluster, &["a"]);
    assert_eq!(client.settle(), [told(Cluster, &[])]);
}

#[test]
fn line_36_a_listener_that_is_not_sent_has_no_routes_sent() {
    let mesh = Mesh::of(Listener, &["a@1"]).with(Route, &["a@1"]);
    let mut client = mesh.sotw();
    client.ask(Listener, &[]);
    assert_eq!(client.next(), told(Listener, &["a@1"]));
    client.ask(Route, &["a"]);
    assert_eq!(client.next_acked(), told(Route, &["a@1"]));
    client.nack(Listener);
    mesh.remove(Listener, "a");
    mesh.put(Listener, "a@1");
    client.silent().ask(Listener, &["b"]);
    assert_eq!(client.settle(), [told(Listener, &[])]);
}

#[test]
fn line_36_a_cluster_that_returns_in_a_suppressed_response_has_its_endpoints_sent_later() {
    let mesh = Mesh::of(Cluster, &["a@1"]).with(Endpoint, &["a@1"]);
    let mut client = mesh.sotw();
    client.ask(Cluster, &[]).ask(Endpoint, &["a"]);
    assert_eq!(client.drain().len(), 2);
    client.ack(Endpoint).nack(Cluster).silent();
    mesh.remove(Cluster, "a");
    assert_eq!(client.settle(), [told(Cluster, &[])]);
    mesh.put(Cluster, "a@1");
    client.silent();
    mesh.put(Cluster, "b@1");
    let expected = [told(Cluster, &["a@1", "b@1"]), told(Endpoint, &["a@1"])];
    assert_eq!(client.settle(), expected);
}

#[test]
fn line_37_endpoints_asked_before_the_clusters_are_answered_and_sent_once_more() {
    let mesh = Mesh::whole("a");
    let mut sotw = mesh.sotw();
    sotw.ask(Endpoint, &["a"]);
    assert_eq!(sotw.next_acked(), told(Endpoint, &["a@1"]));
    sotw.ask(Cluster, &[]);
    let expected = [Cluster, Endpoint].map(|kind| told(kind, &["a@1"]));
    assert_eq!(sotw.settle(), expected);

    let mut delta = mesh.delta();
    delta.resume(Endpoint, &["a"], &[]);
    assert_eq!(delta.next_acked(), told(Endpoint, &["a@1"]));
    delta.resume(Cluster, &[], &["a@2"]);
    assert_eq!(delta.settle(), expected);
}

#[test]
fn line_37_after_a_reconnect_the_endpoints_of_a_changed_cluster_are_sent_though_held() {
    let mesh = Mesh::whole("a");
    for together in [true, false] {
        let mut client = mesh.delta();
        client.resume(Endpoint, &["a"], &["a@1"]);
        if !together {
            client.silent();
        }
        client.resume(Cluster, &[], &["a@2"]);
        let expected = [Cluster, Endpoint].map(|kind| told(kind, &["a@1"]));
        assert_eq!(client.settle(), expected, "together: {together}");
    }
}

#[test]
fn line_37_after_a_reconnect_with_nothing_changed_no_resource_is_sent() {
    let mesh = Mesh::whole("a");
    let mut client = mesh.delta();
    for kind in TYPES {
        let names = match kind {
            Cluster | Listener => &[][..],
            Endpoint | LbEndpoint | Route | VirtualHost => &["a"],
        };
        client.resume(kind, names, &["a@1"]);
    }
    assert_eq!(client.settle(), [told(Cluster, &[]), told(Listener, &[])]);
}

#[test]
fn line_38_endpoints_belong_to_the_cluster_of_exactly_their_name() {
    let names = ["a", "A", "a:admin", "a|v2"];
    let mesh = Mesh::empty();
    for name in names {
        create(&mesh, name);
    }
    let (mut sotw, mut delta) = (mesh.sotw(), mesh.delta());
    sotw.ask(Cluster, &[]).ask(Endpoint, &names).settle();
    delta
        .subscribe(Cluster, &[])
        .subscribe(Endpoint, &names)
        .settle();
    for name in names {
        mesh.put(Cluster, &format!("{name}@2"));
        let again = [told(Endpoint, &[&format!("{name}@1")])];
        assert_eq!(sotw.settle()[1..], again);
        assert_eq!(delta.settle()[1..], again);
    }
}
