//! Behaviours 23–33: increments.

use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;

use super::{Mesh, ResourceType::*, TYPES, rejection, told};
use crate::xds::{
    rejection::{FIRST_PAUSE, LONGEST_PAUSE},
    status::State,
};

#[test]
fn line_23_empty_lists_in_the_first_request_are_the_wildcard() {
    for kind in TYPES {
        let mesh = Mesh::of(kind, &["a@1", "b@1"]);
        let mut client = mesh.delta();
        client.subscribe(kind, &[]);
        assert_eq!(client.next(), told(kind, &["a@1", "b@1"]));
        client.silent().ack(kind).silent();
        mesh.put(kind, "c@1");
        assert_eq!(client.next_acked(), told(kind, &["c@1"]));
        client.silent();
    }
}

#[test]
fn line_23_a_wildcard_over_an_empty_mesh_is_answered_at_once() {
    for kind in TYPES {
        for names in [&[][..], &["*"]] {
            let mut client = Mesh::empty().delta();
            client.subscribe(kind, names);
            assert_eq!(client.next(), told(kind, &[]));
            client.ack(kind).silent();
        }
    }
}

#[test]
fn line_23_empty_lists_in_a_later_request_are_no_wildcard() {
    let mut client = Mesh::of(Cluster, &["a@1", "b@1"]).delta();
    client.subscribe(Cluster, &["a"]).subscribe(Cluster, &[]);
    assert_eq!(client.next_acked(), told(Cluster, &["a@1"]));
    client.subscribe(Cluster, &[]).silent();
}

#[test]
fn line_24_a_name_beside_the_legacy_wildcard_leaves_it_on() {
    let mesh = Mesh::of(Cluster, &["a@1", "b@1"]);
    let mut client = mesh.delta();
    client.subscribe(Cluster, &[]).settle();
    client.subscribe(Cluster, &["a"]);
    assert_eq!(client.next_acked(), told(Cluster, &["a@1"]));
    mesh.put(Cluster, "b@2");
    assert_eq!(client.next_acked(), told(Cluster, &["b@2"]));
}

#[test]
fn line_24_without_the_star_only_the_name_is_left() {
    let mesh = Mesh::of(Cluster, &["a@1", "b@1"]);
    let mut client = mesh.delta();
    client.subscribe(Cluster, &[]).subscribe(Cluster, &["a"]);
    assert_eq!(client.next_acked(), told(Cluster, &["a@1", "b@1"]));
    client.unsubscribe(Cluster, &["*"]).silent();
    mesh.put(Cluster, "b@2");
    mesh.remove(Cluster, "b");
    client.silent();
    mesh.put(Cluster, "a@2");
    assert_eq!(client.next_acked(), told(Cluster, &["a@2"]));
}

#[test]
fn line_24_without_the_name_nothing_is_left_and_never_the_wildcard_again() {
    let mesh = Mesh::of(Cluster, &["a@1", "b@1"]);
    let mut client = mesh.delta();
    client
        .subscribe(Cluster, &[])
        .subscribe(Cluster, &["a"])
        .settle();
    client
        .unsubscribe(Cluster, &["*"])
        .unsubscribe(Cluster, &["a"]);
    client.silent().subscribe(Cluster, &[]).silent();
    mesh.put(Cluster, "a@2");
    mesh.put(Cluster, "b@2");
    mesh.put(Cluster, "c@1");
    mesh.remove(Cluster, "b");
    client.silent();
    client.subscribe(Cluster, &["*"]);
    assert_eq!(client.next_acked(), told(Cluster, &["a@2", "c@1"]));
}

#[test]
fn line_24_a_star_after_names_tells_everything() {
    let mesh = Mesh::of(Cluster, &["a@1", "b@1"]);
    let mut client = mesh.delta();
    client.subscribe(Cluster, &["a"]).settle();
    client.subscribe(Cluster, &["*"]);
    let next = client.next_acked();
    assert!(next.resources.contains(&"b@1".to_owned()), "{next:?}");
    client.silent();
    mesh.remove(Cluster, "b");
    assert_eq!(client.next_acked(), told(Cluster, &[]).removing(&["b"]));
}

#[test]
fn line_25_a_second_name_is_answered_alone() {
    for kind in TYPES {
        let mut client = Mesh::of(kind, &["a@1", "b@1"]).delta();
        client.subscribe(kind, &["a"]);
        assert_eq!(client.next_acked(), told(kind, &["a@1"]));
        client.subscribe(kind, &["b"]);
        assert_eq!(client.next_acked(), told(kind, &["b@1"]));
        client.silent();
    }
}

#[test]
fn line_25_one_change_of_three_is_sent_alone() {
    for kind in TYPES {
        for names in [&[][..], &["a", "b", "c"]] {
            let mesh = Mesh::of(kind, &["a@1", "b@1", "c@1"]);
            let mut client = mesh.delta();
            client.subscribe(kind, names).settle();
            let nonce = client.nonce(kind);
            mesh.put(kind, "a@2");
            assert_eq!(client.next_acked(), told(kind, &["a@2"]));
            assert_ne!(client.nonce(kind), nonce);
            client.silent();
        }
    }
}

#[test]
fn line_26_a_missing_name_is_said_to_be_and_sent_when_it_appears() {
    for kind in TYPES {
        let mesh = Mesh::of(kind, &["a@1"]);
        let mut client = mesh.delta();
        client.subscribe(kind, &["a", "missing"]);
        assert_eq!(
            client.next_acked(),
            told(kind, &["a@1"]).removing(&["missing"])
        );
        client.silent();
        mesh.put(kind, "missing@1");
        assert_eq!(client.next_acked(), told(kind, &["missing@1"]));
        client.silent();
    }
}

#[test]
fn line_27_a_removal_is_told_once() {
    for kind in TYPES {
        for names in [&[][..], &["a", "b"], &["*", "a"]] {
            let mesh = Mesh::of(kind, &["a@1", "b@1"]);
            let mut client = mesh.delta();
            client.subscribe(kind, names).settle();
            mesh.remove(kind, "a");
            assert_eq!(client.next(), told(kind, &[]).removing(&["a"]));
            client.silent().ack(kind).silent();
            mesh.put(kind, "b@2");
            assert_eq!(client.next_acked(), told(kind, &["b@2"]));
        }
    }
}

#[test]
fn line_27_what_is_created_again_is_sent_again_identical_or_not() {
    for kind in TYPES {
        for again in ["a@1", "a@2"] {
            let mesh = Mesh::of(kind, &["a@1"]);
            let mut client = mesh.delta();
            client.subscribe(kind, &["a"]).settle();
            mesh.remove(kind, "a");
            assert_eq!(client.next_acked(), told(kind, &[]).removing(&["a"]));
            mesh.put(kind, again);
            assert_eq!(client.next_acked(), told(kind, &[again]));
            client.silent();
        }
    }
}

#[test]
fn line_27_a_removal_before_the_star_is_asked_again_is_not_lost() {
    for kind in TYPES {
        let mesh = Mesh::of(kind, &["a@1", "b@1"]);
        let mut client = mesh.delta();
        client.subscribe(kind, &["*"]);
        assert_eq!(client.next(), told(kind, &["a@1", "b@1"]));
        mesh.remove(kind, "a");
        client.subscribe(kind, &["*"]).silent().ack(kind);
        assert_eq!(client.next_acked(), told(kind, &["b@1"]).removing(&["a"]));
        client.silent();
    }
}

#[test]
fn line_28_what_is_unsubscribed_is_silent() {
    for kind in TYPES {
        let mesh = Mesh::of(kind, &["a@1", "b@1"]);
        let mut client = mesh.delta();
        client.subscribe(kind, &["a", "b", "missing"]).settle();
        client
            .unsubscribe(kind, &["a", "missing", "never"])
            .silent();
        mesh.put(kind, "a@2");
        mesh.put(kind, "missing@1");
        mesh.remove(kind, "a");
        client.silent();
        mesh.put(kind, "b@2");
        assert_eq!(client.next_acked(), told(kind, &["b@2"]));
    }
}

#[test]
fn line_28_unsubscribing_a_name_that_the_wildcard_holds_is_answered_with_it() {
    let mesh = Mesh::of(Cluster, &["a@1", "b@1"]);
    let mut client = mesh.delta();
    client.subscribe(Cluster, &["*", "a", "gone"]).settle();
    client.unsubscribe(Cluster, &["a"]);
    assert_eq!(client.next_acked(), told(Cluster, &["a@1"]));
    client.unsubscribe(Cluster, &["gone"]);
    assert_eq!(client.next_acked(), told(Cluster, &[]).removing(&["gone"]));
    client.unsubscribe(Cluster, &["b", "a", "gone"]).silent();
}

#[test]
fn line_28_what_is_given_up_together_with_the_star_is_silent() {
    let mesh = Mesh::of(Cluster, &["a@1", "b@1"]);
    let mut client = mesh.delta();
    client.subscribe(Cluster, &["*", "a", "gone"]).settle();
    client.change_under("", Cluster, &[], &["a", "gone", "*"]);
    client.silent();
    mesh.put(Cluster, "a@2");
    client.silent();
}

#[test]
fn line_29_what_is_subscribed_already_is_sent_again() {
    for kind in TYPES {
        let mut client = Mesh::of(kind, &["a@1", "b@1"]).delta();
        client.subscribe(kind, &["a", "b"]).settle();
        client.subscribe(kind, &["a", "a"]);
        assert_eq!(client.next_acked(), told(kind, &["a@1"]));
        client.silent();
    }
}

#[test]
fn line_29_a_missing_name_asked_again_is_answered_again() {
    let mut client = Mesh::empty().delta();
    client.subscribe(Endpoint, &["a"]);
    assert_eq!(client.next_acked(), told(Endpoint, &[]).removing(&["a"]));
    client.silent().subscribe(Endpoint, &["a"]);
    assert_eq!(client.next_acked(), told(Endpoint, &[]).removing(&["a"]));
}

#[test]
fn line_30_a_subscription_inside_an_ack_is_honoured() {
    for kind in TYPES {
        let mesh = Mesh::of(kind, &["a@1", "b@1"]);
        let mut client = mesh.delta();
        client.subscribe(kind, &["a"]);
        assert_eq!(client.next(), told(kind, &["a@1"]));
        let nonce = client.nonce(kind);
        client.change_under(&nonce, kind, &["b"], &["a"]);
        assert_eq!(client.status(kind).state, State::Synced);
        assert_eq!(client.next_acked(), told(kind, &["b@1"]));
        mesh.put(kind, "a@2");
        client.silent();
    }
}

#[test]
fn line_30_a_subscription_under_a_stale_nonce_is_honoured_and_acknowledges_nothing() {
    for kind in TYPES {
        let mesh = Mesh::of(kind, &["a@1", "b@1"]);
        let mut client = mesh.delta();
        client.subscribe(kind, &["a"]).settle();
        let stale = client.nonce(kind);
        mesh.put(kind, "a@2");
        assert_eq!(client.next(), told(kind, &["a@2"]));
        client.change_under(&stale, kind, &["b"], &[]).silent();
        assert_eq!(client.status(kind).state, State::Stale);
        client.ack(kind);
        assert_eq!(client.next_acked(), told(kind, &["b@1"]));
        client.silent();
    }
}

#[test]
fn line_31_equal_versions_are_not_sent() {
    for kind in TYPES {
        let mut named = Mesh::of(kind, &["a@1", "b@1"]).delta();
        named.resume(kind, &["a", "b"], &["a@1", "b@1"]).silent();
        for star in [&[][..], &["*"], &["*", "a"]] {
            let mesh = Mesh::of(kind, &["a@1", "b@1"]);
            let mut client = mesh.delta();
            client.resume(kind, star, &["a@1", "b@1"]);
            assert_eq!(client.next_acked(), told(kind, &[]));
            client.silent();
            mesh.put(kind, "a@2");
            assert_eq!(client.next_acked(), told(kind, &["a@2"]));
        }
    }
}

#[test]
fn line_31_what_differs_is_sent_and_what_is_gone_is_removed() {
    for kind in TYPES {
        for names in [&[][..], &["*"], &["a", "b", "c", "gone"]] {
            let mut client = Mesh::of(kind, &["a@1", "b@2", "c@1"]).delta();
            client.resume(kind, names, &["a@1", "b@1", "c@garbage", "gone@1"]);
            let expected = told(kind, &["b@2", "c@1"]).removing(&["gone"]);
            assert_eq!(client.next_acked(), expected);
            client.silent();
        }
    }
}

#[test]
fn line_31_versions_count_in_the_first_message_of_a_type_only() {
    let mesh = Mesh::of(Cluster, &["a@1", "b@1"]);
    let mut client = mesh.delta();
    client.resume(Cluster, &["a"], &["a@1"]).silent();
    client.resume(Cluster, &["a", "b"], &["a@1", "b@1"]);
    assert_eq!(client.next_acked(), told(Cluster, &["a@1", "b@1"]));
}

#[test]
fn line_31_what_is_asked_again_is_sent_whatever_was_held() {
    let mut client = Mesh::of(Cluster, &["a@1", "b@1"]).delta();
    client.resume(Cluster, &["a", "b"], &["a@1", "b@1"]);
    client.subscribe(Cluster, &["a"]);
    assert_eq!(client.next_acked(), told(Cluster, &["a@1"]));
    client.silent();
}

#[test]
fn line_31_what_was_given_up_and_asked_again_is_sent_whatever_was_held() {
    let mesh = Mesh::of(Cluster, &["a@1", "b@1"]);
    let mut named = mesh.delta();
    named.resume(Cluster, &["a", "b"], &["a@1", "b@1"]);
    named
        .unsubscribe(Cluster, &["a"])
        .subscribe(Cluster, &["a"]);
    assert_eq!(named.next_acked(), told(Cluster, &["a@1"]));
    let mut all = mesh.delta();
    all.resume(Cluster, &["*", "a"], &["a@1", "b@1"]);
    all.unsubscribe(Cluster, &["*"]).subscribe(Cluster, &["*"]);
    assert_eq!(all.next_acked(), told(Cluster, &["b@1"]));
}

#[test]
fn line_31_versions_of_another_replica_match() {
    let one = Mesh::of(Cluster, &["a@1", "b@1"]);
    let other = Mesh::of(Cluster, &["c@1", "b@3", "a@2"]);
    other.put(Cluster, "a@1");
    other.put(Cluster, "b@1");
    other.remove(Cluster, "c");
    let mut before = one.delta();
    before.subscribe(Cluster, &[]).settle();
    let held = before.latest[&Cluster].resources.iter();
    let mut after = other.delta();
    after.send(DeltaDiscoveryRequest {
        type_url: Cluster.type_url().into(),
        initial_resource_versions: held
            .map(|r| (r.name.to_string(), r.version.to_string()))
            .collect(),
        ..DeltaDiscoveryRequest::default()
    });
    assert_eq!(after.next_acked(), told(Cluster, &[]));
    assert_eq!(after.version(Cluster), before.version(Cluster));
}

#[test]
fn line_32_what_was_rejected_is_not_sent_again_until_it_changes() {
    for kind in TYPES {
        for names in [&[][..], &["a", "b"]] {
            let mesh = Mesh::of(kind, &["a@1", "b@1"]);
            let mut client = mesh.delta();
            client.subscribe(kind, names);
            assert_eq!(client.next(), told(kind, &["a@1", "b@1"]));
            client.nack(kind).silent();
            let status = client.status(kind);
            assert_eq!(
                (status.state, status.error.as_deref()),
                (State::Error, Some("no"))
            );
            mesh.put(kind, "a@2");
            assert_eq!(client.next_acked(), told(kind, &["a@2"]));
            assert_eq!(client.silent().status(kind).state, State::Error, "b@1");
            mesh.pass(FIRST_PAUSE);
            assert_eq!(client.next_acked(), told(kind, &["b@1"]));
            assert_eq!(client.silent().status(kind).state, State::Synced);
        }
    }
}

#[test]
fn line_32_what_was_rejected_is_offered_again_at_growing_pauses() {
    for kind in TYPES {
        let mesh = Mesh::of(kind, &["a@1", "b@1"]);
        let mut client = mesh.delta();
        client.subscribe(kind, &["a"]).settle();
        client.subscribe(kind, &["b"]);
        assert_eq!(client.next(), told(kind, &["b@1"]));
        let since = mesh.now();
        client.nack(kind).silent();
        for (round, pause) in [5, 10, 20, 40, 80, 160, 300, 300].into_iter().enumerate() {
            mesh.pass(Duration::from_secs(pause - 1));
            assert_eq!(client.silent().deadline(), Some(Duration::from_secs(1)));
            mesh.pass(Duration::from_secs(1));
            assert_eq!(client.next(), told(kind, &["b@1"]));
            client.nack(kind).silent();
            let status = client.status(kind);
            let count = u32::try_from(round).unwrap() + 2;
            assert_eq!(
                (status.rejected_since, status.rejections),
                (Some(since), count)
            );
        }
        mesh.pass(LONGEST_PAUSE);
        assert_eq!(client.next_acked(), told(kind, &["b@1"]));
        let status = client.silent().status(kind);
        assert_eq!((status.state, status.rejected_since), (State::Synced, None));
        assert_eq!(client.deadline(), None);
    }
}

#[test]
fn line_32_what_went_or_is_no_longer_wanted_is_not_offered_again() {
    let mesh = Mesh::of(Cluster, &["a@1", "b@1"]);
    let mut client = mesh.delta();
    client.subscribe(Cluster, &["a", "b"]);
    client.next();
    client.nack(Cluster).silent();
    client.unsubscribe(Cluster, &["b"]).silent();
    mesh.remove(Cluster, "a");
    assert_eq!(client.next_acked(), told(Cluster, &[]).removing(&["a"]));
    assert_eq!(client.status(Cluster).state, State::Synced);
    mesh.pass(FIRST_PAUSE);
    client.silent();
}

#[test]
fn line_32_a_rejection_under_a_stale_nonce_rejects_nothing() {
    let mesh = Mesh::of(Cluster, &["a@1"]);
    let mut client = mesh.delta();
    client.subscribe(Cluster, &[]).settle();
    let stale = client.nonce(Cluster);
    mesh.put(Cluster, "a@2");
    assert_eq!(client.next(), told(Cluster, &["a@2"]));
    for nonce in [&*stale, "", "x", "+2", "02"] {
        client.send(DeltaDiscoveryRequest {
            type_url: Cluster.type_url().into(),
            response_nonce: nonce.into(),
            error_detail: Some(rejection("stale")),
            ..DeltaDiscoveryRequest::default()
        });
        let status = client.silent().status(Cluster);
        assert_eq!(
            (status.state, status.error),
            (State::Stale, None),
            "{nonce}"
        );
    }
}

#[test]
fn line_32_a_rejection_of_one_client_touches_no_other() {
    let mesh = Mesh::of(Cluster, &["a@1"]);
    let (mut picky, mut other) = (mesh.delta(), mesh.delta());
    picky.subscribe(Cluster, &[]);
    assert_eq!(picky.next(), told(Cluster, &["a@1"]));
    picky.nack(Cluster).silent();
    other.subscribe(Cluster, &[]);
    assert_eq!(other.next_acked(), told(Cluster, &["a@1"]));
}

#[test]
fn line_33_an_assignment_without_endpoints_is_a_change_and_no_removal() {
    let mesh = Mesh::of(Cluster, &["a@1"]).with(Endpoint, &["a@1"]);
    let mut client = mesh.delta();
    client
        .subscribe(Cluster, &[])
        .subscribe(Endpoint, &["a"])
        .settle();
    mesh.put_large(Endpoint, "a", 2, 0);
    assert_eq!(client.settle(), [told(Endpoint, &["a@2"])]);
}

#[test]
fn line_33_an_assignment_goes_together_with_its_cluster_and_after_it() {
    let mesh = Mesh::whole("a");
    let mut client = mesh.delta();
    for kind in TYPES {
        client.subscribe(kind, &["a"]);
    }
    client.settle();
    for kind in TYPES {
        mesh.remove(kind, "a");
    }
    let expected = [Listener, Route, Cluster, Endpoint];
    assert_eq!(
        client.settle(),
        expected.map(|kind| told(kind, &[]).removing(&["a"]))
    );
}
