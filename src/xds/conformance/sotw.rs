//! Behaviours 8–22: the state of the world.

use envoy_types::pb::{envoy::service::discovery::v3::DiscoveryRequest, google::rpc::Status};

use super::{Mesh, ResourceType::*, TYPES, rejection, told};
use crate::xds::{rejection::FIRST_PAUSE, status::State};

fn of_type(type_url: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: type_url.into(),
        ..DiscoveryRequest::default()
    }
}

#[test]
fn line_08_no_names_are_the_wildcard_of_clusters_and_listeners() {
    for kind in [Cluster, Listener] {
        let mut client = Mesh::of(kind, &["a@1", "b@1"]).sotw();
        client.ask(kind, &[]);
        assert_eq!(client.next(), told(kind, &["a@1", "b@1"]));
        client.silent().ack(kind).silent();
    }
}

#[test]
fn line_08_no_names_of_endpoints_and_routes_are_met_with_silence() {
    for kind in [Endpoint, Route] {
        let mesh = Mesh::of(kind, &["a@1"]);
        let mut client = mesh.sotw();
        client.ask(kind, &[]).silent();
        mesh.put(kind, "a@2");
        client.silent().ask(kind, &["a"]);
        assert_eq!(client.next(), told(kind, &["a@2"]));
    }
}

#[test]
fn line_09_a_wildcard_over_an_empty_mesh_is_answered_at_once() {
    for kind in [Cluster, Listener] {
        for names in [&[][..], &["*"]] {
            let mut client = Mesh::empty().sotw();
            client.ask(kind, names);
            assert_eq!(client.next(), told(kind, &[]));
            client.ack(kind).silent();
        }
    }
}

#[test]
fn line_10_a_star_is_the_wildcard() {
    for kind in [Cluster, Endpoint, Listener, Route] {
        let mesh = Mesh::of(kind, &["a@1", "b@1"]);
        let mut client = mesh.sotw();
        client.ask(kind, &["*"]);
        assert_eq!(client.next_acked(), told(kind, &["a@1", "b@1"]));
        mesh.put(kind, "c@1");
        let next = client.next_acked();
        assert!(next.resources.contains(&"c@1".to_owned()), "{next:?}");
        client.silent();
    }
}

#[test]
fn line_10_an_empty_list_after_names_means_nothing() {
    let mesh = Mesh::of(Cluster, &["a@1", "b@1"]);
    let mut client = mesh.sotw();
    client.ask(Cluster, &[]);
    assert_eq!(client.next_acked(), told(Cluster, &["a@1", "b@1"]));
    client.ask(Cluster, &["*", "a"]).settle();
    mesh.put(Cluster, "b@2");
    assert_eq!(client.next_acked(), told(Cluster, &["a@1", "b@2"]));

    client.ask(Cluster, &["a"]).settle();
    mesh.put(Cluster, "b@3");
    client.silent();
    mesh.put(Cluster, "a@2");
    assert_eq!(client.next_acked(), told(Cluster, &["a@2"]));

    client.ask(Cluster, &[]).settle();
    mesh.put(Cluster, "a@3");
    mesh.put(Cluster, "c@1");
    client.silent();
    client.ask(Cluster, &["*"]);
    assert_eq!(client.next(), told(Cluster, &["a@3", "b@3", "c@1"]));
}

#[test]
fn line_11_those_that_exist_are_sent_at_once() {
    for kind in [Cluster, Listener] {
        let mesh = Mesh::of(kind, &["a@1", "other@1"]);
        let mut client = mesh.sotw();
        client.ask(kind, &["a", "missing"]);
        assert_eq!(client.next_acked(), told(kind, &["a@1"]));
        mesh.put(kind, "missing@1");
        assert_eq!(client.next_acked(), told(kind, &["a@1", "missing@1"]));
        client.silent();
    }
    for kind in [Endpoint, Route] {
        let mesh = Mesh::of(kind, &["a@1", "other@1"]);
        let mut client = mesh.sotw();
        client.ask(kind, &["a", "missing"]);
        assert_eq!(client.next_acked(), told(kind, &["a@1"]));
        mesh.put(kind, "missing@1");
        assert_eq!(client.next_acked(), told(kind, &["missing@1"]));
        client.silent();
    }
}

#[test]
fn line_11_clusters_and_listeners_of_which_none_exists_are_answered() {
    for kind in [Cluster, Listener] {
        let mesh = Mesh::empty();
        let mut client = mesh.sotw();
        client.ask(kind, &["a"]);
        assert_eq!(client.next_acked(), told(kind, &[]));
        mesh.put(kind, "a@1");
        assert_eq!(client.next_acked(), told(kind, &["a@1"]));
    }
}

#[test]
fn line_12_one_changed_of_many() {
    for (kind, expected) in [
        (Cluster, &["a@1", "b@2", "c@1"][..]),
        (Endpoint, &["b@2"]),
        (Listener, &["a@1", "b@2", "c@1"]),
        (Route, &["b@2"]),
    ] {
        let mesh = Mesh::of(kind, &["a@1", "b@1", "c@1"]);
        let mut client = mesh.sotw();
        client.ask(kind, &["a", "b", "c"]);
        assert_eq!(client.next_acked(), told(kind, &["a@1", "b@1", "c@1"]));
        mesh.put(kind, "b@2");
        assert_eq!(client.next_acked(), told(kind, expected));
        client.silent();
    }
}

#[test]
fn line_13_deleted_clusters_and_listeners_are_left_out_to_the_last() {
    for kind in [Cluster, Listener] {
        for names in [&[][..], &["a", "b"]] {
            let mesh = Mesh::of(kind, &["a@1", "b@1"]);
            let mut client = mesh.sotw();
            client.ask(kind, names).settle();
            mesh.remove(kind, "a");
            assert_eq!(client.next_acked(), told(kind, &["b@1"]));
            mesh.remove(kind, "b");
            assert_eq!(client.next_acked(), told(kind, &[]));
            client.silent();
        }
    }
}

#[test]
fn line_13_deleted_endpoints_and_routes_are_silent() {
    for kind in [Endpoint, Route] {
        let mesh = Mesh::of(kind, &["a@1", "b@1"]);
        let mut client = mesh.sotw();
        client.ask(kind, &["a", "b"]).settle();
        mesh.remove(kind, "a");
        client.silent();
        mesh.put(kind, "b@2");
        assert_eq!(client.next_acked(), told(kind, &["b@2"]));
        mesh.put(kind, "a@1");
        assert_eq!(client.next_acked(), told(kind, &["a@1"]));
        client.silent();
    }
}

#[test]
fn line_14_an_ack_is_silent_however_often_it_comes() {
    let mesh = Mesh::whole("a");
    let mut client = mesh.sotw();
    for kind in TYPES {
        client.ask(kind, &["a"]);
        assert_eq!(client.next(), told(kind, &["a@1"]));
        client.ack(kind).silent().ack(kind).silent();
    }
}

#[test]
fn line_15_the_version_changes_exactly_with_the_visible_content() {
    for kind in TYPES {
        let mesh = Mesh::of(kind, &["a@1", "hidden@1"]);
        let mut client = mesh.sotw();
        client.ask(kind, &["a"]).settle();
        let one = client.version(kind);
        mesh.put(kind, "a@1");
        mesh.put(kind, "hidden@2");
        client.silent();
        mesh.put(kind, "a@2");
        client.settle();
        assert_ne!(client.version(kind), one);
        mesh.put(kind, "a@1");
        client.settle();
        assert_eq!(client.version(kind), one, "{kind:?}");
    }
}

#[test]
fn line_15_rewriting_identical_data_is_silent() {
    for kind in [Cluster, Listener] {
        let mesh = Mesh::of(kind, &["a@1", "b@1"]);
        let mut client = mesh.sotw();
        client.ask(kind, &[]).settle();
        mesh.put(kind, "a@2");
        mesh.remove(kind, "b");
        mesh.put(kind, "b@1");
        mesh.put(kind, "a@1");
        client.silent();
    }
}

#[test]
fn line_15_replicas_with_other_histories_give_the_same_version() {
    for kind in TYPES {
        let one = Mesh::of(kind, &["a@3", "b@1"]);
        let other = Mesh::of(kind, &["c@1", "b@2", "a@1"]);
        let (mut first, mut second) = (one.sotw(), other.sotw());
        first.ask(kind, &["a", "b", "c"]).settle();
        second.ask(kind, &["b"]).settle();
        second.ask(kind, &["b", "c", "a"]).settle();
        other.put(kind, "a@3");
        other.remove(kind, "c");
        second.settle();
        other.put(kind, "b@1");
        second.settle();
        assert_eq!(first.version(kind), second.version(kind), "{kind:?}");
    }
}

#[test]
fn line_15_a_wildcard_that_ends_leaves_no_trace_in_the_version() {
    let mesh = Mesh::of(Endpoint, &["a@1", "b@1"]);
    let (mut plain, mut mixed) = (mesh.sotw(), mesh.sotw());
    mixed.ask(Endpoint, &["a", "*"]).settle();
    mesh.put(Endpoint, "a@2");
    mixed.settle();
    mixed.ask(Endpoint, &["a"]).settle();
    mixed.ask(Endpoint, &["a", "b"]).settle();
    plain.ask(Endpoint, &["a", "b"]).settle();
    assert_eq!(plain.version(Endpoint), mixed.version(Endpoint));
}

#[test]
fn line_15_what_went_while_a_wildcard_came_and_went_leaves_no_trace_in_the_version() {
    let mesh = Mesh::of(Route, &["a@1", "b@1"]);
    let (mut plain, mut mixed) = (mesh.sotw(), mesh.sotw());
    mixed.ask(Route, &["a", "b"]).settle();
    mixed.ask(Route, &["a", "b", "*"]);
    mixed.ask(Route, &["a", "b"]);
    mesh.remove(Route, "a");
    mixed.settle();
    plain.ask(Route, &["a", "b"]).settle();
    assert_eq!(plain.version(Route), mixed.version(Route));
}

#[test]
fn line_16_more_names_are_answered_and_fewer_are_silent() {
    for kind in [Endpoint, Route] {
        let mut client = Mesh::of(kind, &["a@1", "b@1"]).sotw();
        client.ask(kind, &["a"]).settle();
        client.ask(kind, &["a", "b"]);
        assert_eq!(client.next_acked(), told(kind, &["b@1"]));
        client.silent().ask(kind, &["b"]).silent();
    }
    for kind in [Cluster, Listener] {
        let mut client = Mesh::of(kind, &["a@1", "b@1"]).sotw();
        client.ask(kind, &["a"]).settle();
        client.ask(kind, &["a", "b"]);
        assert_eq!(client.next_acked(), told(kind, &["a@1", "b@1"]));
        client.silent();
    }
}

#[test]
fn line_17_a_name_given_up_and_taken_again_is_sent_again() {
    for kind in TYPES {
        let mut client = Mesh::of(kind, &["a@1"]).sotw();
        client.ask(kind, &["a"]);
        assert_eq!(client.next_acked(), told(kind, &["a@1"]));
        client.ask(kind, &[]).silent().ask(kind, &["a"]);
        assert_eq!(client.next_acked(), told(kind, &["a@1"]));
        // Both at once, before the server looks.
        client.ask(kind, &[]).ask(kind, &["a"]);
        assert_eq!(client.next_acked(), told(kind, &["a@1"]));
        client.silent();
    }
}

#[test]
fn line_18_a_stale_nonce_is_neither_ack_nor_nack() {
    let mesh = Mesh::of(Cluster, &["a@1"]);
    let mut client = mesh.sotw();
    client.ask(Cluster, &[]).settle();
    let stale = client.nonce(Cluster);
    mesh.put(Cluster, "a@2");
    assert_eq!(client.next(), told(Cluster, &["a@2"]));
    mesh.put(Cluster, "a@3");
    for nonce in [
        &*stale,
        "",
        "0",
        "-1",
        "x",
        "ffffffffffffffffff",
        "2 ",
        "+2",
        "02",
    ] {
        let error_detail = Some(rejection("stale"));
        client.ask_under(nonce, Cluster, &[]).silent();
        client.send(DiscoveryRequest {
            response_nonce: nonce.into(),
            error_detail,
            ..of_type(Cluster.type_url())
        });
        client.silent();
        let status = client.status(Cluster);
        assert_eq!(
            (status.state, status.error),
            (State::Stale, None),
            "{nonce}"
        );
    }
    client.ack(Cluster);
    assert_eq!(client.next(), told(Cluster, &["a@3"]));
}

#[test]
fn line_18_names_that_change_while_a_response_is_under_way_are_answered_once() {
    for kind in [Endpoint, Route] {
        let mesh = Mesh::of(kind, &["a@1", "b@1", "c@1"]);
        let mut client = mesh.sotw();
        client.ask(kind, &["a"]).settle();
        let stale = client.nonce(kind);
        client.ask(kind, &["a", "b"]);
        assert_eq!(client.next(), told(kind, &["b@1"]));
        client.ask_under(&stale, kind, &["a", "b", "c"]).silent();
        client.ask(kind, &["a", "b", "c"]);
        assert_eq!(client.next_acked(), told(kind, &["c@1"]));
        client.silent();
    }
}

#[test]
fn line_18_every_name_is_answered_under_constant_churn() {
    let mesh = Mesh::of(Endpoint, &["churn@1"]);
    let mut client = mesh.sotw();
    let mut names = vec!["churn".to_owned()];
    let mut heard = Vec::new();
    client.ask(Endpoint, &["churn"]);
    for round in 0..50 {
        let stale = client.nonce(Endpoint);
        mesh.put(Endpoint, &format!("churn@{}", round + 2));
        mesh.put(Endpoint, &format!("n{round}@1"));
        heard.extend(client.drain().into_iter().flat_map(|told| told.resources));
        names.push(format!("n{round}"));
        let texts: Vec<_> = names.iter().map(String::as_str).collect();
        client.ask_under(&stale, Endpoint, &texts);
        heard.extend(client.drain().into_iter().flat_map(|told| told.resources));
        client.ask(Endpoint, &texts);
    }
    heard.extend(client.settle().into_iter().flat_map(|told| told.resources));
    for round in 0..50 {
        let name = format!("n{round}@1");
        assert_eq!(heard.iter().filter(|h| **h == name).count(), 1, "{name}");
    }
}

#[test]
fn line_19_the_first_request_is_answered_whatever_version_and_nonce_it_carries() {
    for kind in TYPES {
        let mesh = Mesh::of(kind, &["a@1"]);
        let mut before = mesh.sotw();
        before.ask(kind, &["a"]).settle();
        let mut client = mesh.sotw();
        client.latest = before.latest;
        client.ask(kind, &["a"]);
        assert_eq!(client.next_acked(), told(kind, &["a@1"]));
        client.silent();
    }
}

#[test]
fn line_20_a_rejected_version_is_not_sent_again() {
    for kind in TYPES {
        let mesh = Mesh::of(kind, &["a@1"]);
        let mut client = mesh.sotw();
        client.ask(kind, &["a"]);
        assert_eq!(client.next(), told(kind, &["a@1"]));
        client.nack(kind).silent();
        client.ask(kind, &["a"]).silent();
        client.ask(kind, &["a", "missing"]).silent();
        client.ask(kind, &[]).silent().ask(kind, &["a"]).silent();
        mesh.put(kind, "a@2");
        assert_eq!(client.next_acked(), told(kind, &["a@2"]));
        client.silent();
    }
}

#[test]
fn line_20_what_was_rejected_is_offered_again_at_growing_pauses() {
    for kind in TYPES {
        let mesh = Mesh::of(kind, &["a@1"]);
        let mut client = mesh.sotw();
        client.ask(kind, &["a"]);
        assert_eq!(client.next(), told(kind, &["a@1"]));
        let since = mesh.now();
        client.nack(kind).silent();
        mesh.pass(FIRST_PAUSE);
        assert_eq!(client.next(), told(kind, &["a@1"]));
        client.nack(kind).silent();
        let status = client.status(kind);
        assert_eq!((status.rejected_since, status.rejections), (Some(since), 2));
        mesh.pass(FIRST_PAUSE);
        client.silent();
        mesh.pass(FIRST_PAUSE);
        assert_eq!(client.next_acked(), told(kind, &["a@1"]));
        let status = client.silent().status(kind);
        assert_eq!((status.state, status.rejected_since), (State::Synced, None));
    }
}

#[test]
fn line_20_an_offer_of_clusters_is_followed_by_the_endpoints_of_those_that_were_new() {
    let mesh = Mesh::of(Cluster, &["a@1", "b@1"]).with(Endpoint, &["a@1", "b@1"]);
    let mut client = mesh.sotw();
    client.ask(Cluster, &[]).ask(Endpoint, &["a", "b"]).settle();
    mesh.put(Cluster, "a@2");
    assert_eq!(client.next(), told(Cluster, &["a@2", "b@1"]));
    client.nack(Cluster).settle();
    mesh.pass(FIRST_PAUSE);
    let offer = [told(Cluster, &["a@2", "b@1"]), told(Endpoint, &["a@1"])];
    assert_eq!(client.settle(), offer);
}

#[test]
fn line_20_a_rejection_takes_no_accepted_neighbour_along() {
    let mesh = Mesh::of(Endpoint, &["good@1", "bad@1"]);
    let mut client = mesh.sotw();
    client.ask(Endpoint, &["good"]).settle();
    client.ask(Endpoint, &["good", "bad"]);
    assert_eq!(client.next(), told(Endpoint, &["bad@1"]));
    client.nack(Endpoint).silent();
    client.ask(Endpoint, &["bad"]).silent();
    client.ask(Endpoint, &["good", "bad"]);
    assert_eq!(client.next_acked(), told(Endpoint, &["good@1"]));
    client.silent();
}

#[test]
fn line_20_content_that_returns_is_sent_though_a_neighbour_was_rejected_beside_it() {
    let mesh = Mesh::of(Endpoint, &["good@1", "bad@1"]);
    let mut client = mesh.sotw();
    client.ask(Endpoint, &["good"]).settle();
    client.ask(Endpoint, &["good", "bad"]);
    assert_eq!(client.next(), told(Endpoint, &["bad@1"]));
    client.nack(Endpoint).silent();
    mesh.put(Endpoint, "good@2");
    assert_eq!(client.next_acked(), told(Endpoint, &["good@2"]));
    mesh.put(Endpoint, "good@1");
    assert_eq!(client.next_acked(), told(Endpoint, &["good@1"]));
}

#[test]
fn line_20_a_rejected_resource_is_not_sent_again_even_after_another() {
    for kind in [Endpoint, Route] {
        let mesh = Mesh::of(kind, &["a@1"]);
        let mut client = mesh.sotw();
        client.ask(kind, &["a"]);
        assert_eq!(client.next(), told(kind, &["a@1"]));
        client.nack(kind);
        mesh.put(kind, "a@2");
        assert_eq!(client.next_acked(), told(kind, &["a@2"]));
        mesh.put(kind, "a@1");
        client.silent();
        mesh.put(kind, "a@3");
        assert_eq!(client.next_acked(), told(kind, &["a@3"]));
    }
}

#[test]
fn line_20_a_rejection_touches_no_other_client_and_is_kept_for_operators() {
    let mesh = Mesh::of(Cluster, &["a@1"]);
    let (mut picky, mut other) = (mesh.sotw(), mesh.sotw());
    picky.ask(Cluster, &[]).settle();
    other.ask(Cluster, &[]).settle();
    let accepted = picky.version(Cluster);
    mesh.put(Cluster, "a@2");
    assert_eq!(picky.next(), told(Cluster, &["a@2"]));
    picky.nack(Cluster);
    assert_eq!(other.next_acked(), told(Cluster, &["a@2"]));
    let status = picky.status(Cluster);
    assert_eq!(
        (status.state, status.error.as_deref()),
        (State::Error, Some("no"))
    );
    assert_eq!(status.version, Some(accepted));
    assert_eq!(other.status(Cluster).state, State::Synced);
    mesh.put(Cluster, "a@3");
    assert_eq!(picky.next_acked(), told(Cluster, &["a@3"]));
    let status = picky.status(Cluster);
    assert_eq!((status.state, status.error), (State::Synced, None));
}

#[test]
fn line_20_a_rejection_counts_whatever_its_code() {
    let mesh = Mesh::of(Cluster, &["a@1"]);
    let mut client = mesh.sotw();
    client.ask(Cluster, &[]);
    assert_eq!(client.next(), told(Cluster, &["a@1"]));
    client.send(DiscoveryRequest {
        response_nonce: client.nonce(Cluster),
        error_detail: Some(Status::default()),
        ..of_type(Cluster.type_url())
    });
    assert_eq!(client.silent().status(Cluster).state, State::Error);
}

#[test]
fn line_20_a_rejection_that_adds_a_name_still_gets_it() {
    for (kind, expected) in [
        (Cluster, &["a@1", "b@1"][..]),
        (Endpoint, &["b@1"]),
        (Listener, &["a@1", "b@1"]),
        (Route, &["b@1"]),
    ] {
        let mut client = Mesh::of(kind, &["a@1", "b@1"]).sotw();
        client.ask(kind, &["a"]);
        assert_eq!(client.next(), told(kind, &["a@1"]));
        client.nack_asking(kind, &["a", "b"]);
        assert_eq!(client.next_acked(), told(kind, expected));
        client.silent();
    }
}

#[test]
fn line_21_an_older_version_with_the_right_nonce_is_an_ack() {
    let mesh = Mesh::of(Cluster, &["a@1"]);
    let mut client = mesh.sotw();
    client.ask(Cluster, &[]).settle();
    let old = client.version(Cluster);
    mesh.put(Cluster, "a@2");
    assert_eq!(client.next(), told(Cluster, &["a@2"]));
    client.send(DiscoveryRequest {
        response_nonce: client.nonce(Cluster),
        version_info: old,
        ..of_type(Cluster.type_url())
    });
    assert_eq!(client.silent().status(Cluster).state, State::Synced);
    mesh.put(Cluster, "a@3");
    assert_eq!(client.next(), told(Cluster, &["a@3"]));
}

#[test]
fn line_22_duplicate_names_are_tolerated_and_never_repeated() {
    for kind in TYPES {
        let mut client = Mesh::of(kind, &["a@1", "b@1"]).sotw();
        client.ask(kind, &["a", "a", "b", "a"]);
        assert_eq!(client.next_acked(), told(kind, &["a@1", "b@1"]));
        client.ask(kind, &["b", "a", "b"]).silent();
        client.ask(kind, &["*", "a", "*", "a"]);
        assert_eq!(client.next_acked(), told(kind, &["a@1", "b@1"]));
        client.silent();
    }
}

#[test]
fn line_22_of_ten_requests_back_to_back_the_last_counts() {
    for kind in TYPES {
        let mesh = Mesh::empty();
        let mut client = mesh.sotw();
        for at in 0..10 {
            mesh.put(kind, &format!("n{at}@1"));
            client.ask(kind, &[&format!("n{at}")]);
        }
        assert_eq!(client.next_acked(), told(kind, &["n9@1"]));
        client.silent();
    }
}
