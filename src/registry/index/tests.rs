//! The index through its front door: batches in, view and changes out.

mod making;

use bytes::Bytes;

use super::*;
use crate::{
    model::{Health, Origin},
    registry::{FormatChoice, Layout, Shape},
};

fn index() -> Index {
    Index::new(Config {
        name: "main".to_owned(),
        root: "/services".to_owned(),
        layout: Layout::flat(),
        format: FormatChoice::Auto,
        priority: 0,
        required: true,
        ttl: None,
        shape: Shape::default(),
    })
}

fn put(path: &str, data: &str, czxid: i64, mzxid: i64) -> Event {
    Event::Put {
        path: path.into(),
        data: Bytes::copy_from_slice(data.as_bytes()),
        stat: Stat {
            czxid,
            mzxid,
            ..Stat::default()
        },
    }
}

fn delete(path: &str) -> Event {
    Event::Delete { path: path.into() }
}

/// Applies events and gives the names that changed.
fn apply(index: &mut Index, events: impl Into<Vec<Event>>) -> Vec<String> {
    let batch = Batch {
        events: events.into(),
        ..Batch::default()
    };
    let changes = index.apply(batch, 0);
    let counts = index.counts();
    let view = index.view();
    assert_eq!(counts.services, view.services.len());
    let instances: usize = view.services.values().map(|s| s.instances.len()).sum();
    assert_eq!(counts.instances, instances);
    assert_eq!(counts.rejected, view.rejected.len());
    changes.keys().map(ToString::to_string).collect()
}

/// `address:port` and the last element of the path of what a service serves.
fn served(index: &Index, service: &str) -> Vec<String> {
    let view = index.view();
    let service = view.services.get(service).expect("the service is served");
    let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    service
        .instances
        .iter()
        .map(|i| format!("{}:{} {}", i.address, i.port, name(&i.origin.znode)))
        .collect()
}

fn reason(index: &Index, path: &str) -> Option<String> {
    let view = index.view();
    view.rejected.get(path).map(|r| r.reason.clone())
}

#[test]
fn a_service_lives_from_its_znode_to_its_deletion() {
    let mut index = index();
    assert_eq!(apply(&mut index, [put("orders", "", 1, 1)]), ["orders"]);
    assert_eq!(served(&index, "orders"), [""; 0]);
    let changes = apply(&mut index, [put("orders/i-1", "10.0.0.7:80", 2, 2)]);
    assert_eq!(changes, ["orders"]);
    assert_eq!(served(&index, "orders"), ["10.0.0.7:80 i-1"]);
    assert_eq!(apply(&mut index, [delete("orders/i-1")]), ["orders"]);
    assert_eq!(served(&index, "orders"), [""; 0]);
    assert_eq!(apply(&mut index, [delete("orders")]), ["orders"]);
    assert!(index.view().services.is_empty());
}

#[test]
fn an_instance_brings_its_service_along_and_a_service_takes_its_instances_with_it() {
    let mut index = index();
    apply(
        &mut index,
        [
            put("orders/i-1", "10.0.0.7:80", 2, 2),
            put("orders/i-2", "x", 3, 3),
        ],
    );
    assert_eq!(served(&index, "orders"), ["10.0.0.7:80 i-1"]);
    assert!(reason(&index, "/services/orders/i-2").is_some());
    assert_eq!(apply(&mut index, [delete("orders")]), ["orders"]);
    assert_eq!(index.counts(), Counts::default());
    apply(&mut index, [put("orders", "", 9, 9)]);
    assert_eq!(served(&index, "orders"), [""; 0]);
}

#[test]
fn what_may_not_be_read_stands_and_is_told_until_it_may() {
    let mut index = index();
    let unreadable = |path: &str| Event::Unreadable { path: path.into() };
    apply(
        &mut index,
        [
            put("orders", "", 1, 1),
            put("orders/i-1", "10.0.0.7:80", 2, 2),
            put("users", "", 4, 4),
            put("users/u-1", "10.0.1.7:80", 5, 5),
        ],
    );
    let closed = ["orders/i-1", "orders/i-2", "users", "vault"];
    assert_eq!(apply(&mut index, closed.map(unreadable)), ["vault"]);
    assert_eq!(served(&index, "orders"), ["10.0.0.7:80 i-1"]);
    assert_eq!(served(&index, "users"), ["10.0.1.7:80 u-1"]);
    assert_eq!(served(&index, "vault"), [""; 0], "it exists");
    for path in closed {
        let told = reason(&index, &format!("/services/{path}")).unwrap();
        assert!(
            told.contains("permission") && told.contains("setAcl"),
            "{told}"
        );
    }
    let opened = [
        put("orders/i-1", "10.0.0.7:80", 2, 2),
        put("orders/i-2", "10.0.0.8:80", 3, 3),
        put("users", "", 4, 4),
        delete("vault"),
    ];
    assert_eq!(apply(&mut index, opened), ["orders", "vault"]);
    assert!(index.view().rejected.is_empty());
    apply(&mut index, [unreadable("orders/i-2"), delete("orders/i-2")]);
    assert_eq!(served(&index, "orders"), ["10.0.0.7:80 i-1"]);
    assert!(index.view().rejected.is_empty());
}

#[test]
fn the_instance_says_where_it_comes_from() {
    let mut index = index();
    apply(&mut index, [put("orders/i-1", "10.0.0.7:80", 2, 3)]);
    let view = index.view();
    let service = &view.services["orders"];
    assert_eq!((&*service.name, &*service.registry), ("orders", "main"));
    let instance = service.instances.iter().next().unwrap();
    assert_eq!(instance.id(), "i-1");
    let expected = Origin {
        source: Arc::new(Source {
            registry: "main".into(),
            root: "/services".into(),
        }),
        znode: "orders/i-1".into(),
        format: "plain",
        czxid: 2,
        mzxid: 3,
        session: 0,
    };
    assert_eq!(instance.origin, expected);
}

#[test]
fn an_identical_rewrite_is_no_change_and_shows_its_mzxid() {
    let mut index = index();
    apply(&mut index, [put("orders/i-1", "10.0.0.7:80", 2, 2)]);
    assert!(apply(&mut index, [put("orders/i-1", "10.0.0.7:80", 2, 2)]).is_empty());
    assert!(apply(&mut index, [put("orders/i-1", "10.0.0.7:80", 2, 5)]).is_empty());
    assert_eq!(
        index.view().services["orders"]
            .instances
            .iter()
            .next()
            .unwrap()
            .origin
            .mzxid,
        5
    );
}

#[test]
fn what_comes_and_goes_within_a_batch_is_no_change() {
    let mut index = index();
    apply(&mut index, [put("orders/i-1", "10.0.0.7:80", 2, 2)]);
    let batch = [
        put("orders/i-2", "10.0.0.8:80", 3, 3),
        delete("orders/i-2"),
        put("users", "", 4, 4),
        delete("users"),
        delete("orders"),
        put("orders/i-9", "10.0.0.7:80", 6, 6),
        delete("orders/i-9"),
        put("orders/i-1", "10.0.0.7:80", 7, 7),
    ];
    assert!(apply(&mut index, batch).is_empty());
    assert_eq!(served(&index, "orders"), ["10.0.0.7:80 i-1"]);
}

#[test]
fn data_changes_are_changes() {
    let mut index = index();
    let weigh = |weight, zxid| {
        let data = format!(r#"{{"host":"10.0.0.7","port":80,"weight":{weight}}}"#);
        put("orders/i-1", &data, 2, zxid)
    };
    apply(&mut index, [weigh(1, 2)]);
    assert_eq!(apply(&mut index, [weigh(0, 3)]), ["orders"]);
    let instance = index.view().services["orders"]
        .instances
        .iter()
        .next()
        .unwrap()
        .clone();
    assert_eq!(instance.weight.get(), 0);
    assert_eq!(instance.health, Health::Healthy);
}

#[test]
fn a_bad_znode_is_left_out_and_harms_no_neighbour() {
    let mut index = index();
    apply(
        &mut index,
        [
            put("orders/i-1", "10.0.0.7:80", 2, 2),
            put("orders/i-2", "10.0.0.8:0", 3, 3),
        ],
    );
    assert_eq!(served(&index, "orders"), ["10.0.0.7:80 i-1"]);
    let rejected = index.view().rejected["/services/orders/i-2"].clone();
    assert_eq!(rejected.format, "plain");
    assert_eq!(
        rejected.reason,
        "port `0` is not valid; use a whole number of 1..=65535"
    );
    assert!(apply(&mut index, [delete("orders/i-2")]).is_empty());
    assert!(index.view().rejected.is_empty());
}

#[test]
fn a_znode_that_turns_bad_keeps_serving_its_last_good_value() {
    let mut index = index();
    apply(&mut index, [put("orders/i-1", "10.0.0.7:80", 2, 4)]);
    assert!(apply(&mut index, [put("orders/i-1", "garbage", 2, 5)]).is_empty());
    assert_eq!(served(&index, "orders"), ["10.0.0.7:80 i-1"]);
    assert_eq!(
        reason(&index, "/services/orders/i-1").unwrap(),
        "`garbage` has no port; write host:port or JSON; \
         the last good registration (mzxid 4) is still served (over a restart too, with a state on disk)"
    );
    assert_eq!(
        apply(&mut index, [put("orders/i-1", "10.0.0.7:81", 2, 6)]),
        ["orders"]
    );
    assert_eq!(reason(&index, "/services/orders/i-1"), None);
}

#[test]
fn a_deregistered_znode_has_no_past() {
    let mut index = index();
    apply(&mut index, [put("orders/i-1", "10.0.0.7:80", 2, 2)]);
    // Deleted and created again; the deletion was not told apart.
    assert_eq!(
        apply(&mut index, [put("orders/i-1", "garbage", 7, 7)]),
        ["orders"]
    );
    assert_eq!(served(&index, "orders"), [""; 0]);
    assert!(
        !reason(&index, "/services/orders/i-1")
            .unwrap()
            .contains("still served")
    );
}

#[test]
fn the_newer_of_two_registrations_of_an_address_serves() {
    let mut index = index();
    apply(&mut index, [put("orders/i-2", "10.0.0.7:80", 5, 5)]);
    apply(&mut index, [put("orders/i-1", "10.0.0.7:80", 9, 9)]);
    assert_eq!(served(&index, "orders"), ["10.0.0.7:80 i-1"]);
    assert_eq!(
        reason(&index, "/services/orders/i-2").unwrap(),
        "`10.0.0.7:80` is registered by `/services/orders/i-1` too, which is newer"
    );
    assert_eq!(reason(&index, "/services/orders/i-1"), None);
    apply(&mut index, [delete("orders/i-1")]);
    assert_eq!(served(&index, "orders"), ["10.0.0.7:80 i-2"]);
    assert_eq!(reason(&index, "/services/orders/i-2"), None);
}

#[test]
fn a_registration_under_another_name_is_an_update() {
    let mut index = index();
    let data = r#"{"host":"10.0.0.7","port":80,"id":"a"}"#;
    apply(&mut index, [put("orders/i-1", data, 2, 2)]);
    assert!(apply(&mut index, [put("orders/i-2", data, 3, 3)]).is_empty());
    assert!(apply(&mut index, [delete("orders/i-1")]).is_empty());
    assert_eq!(served(&index, "orders"), ["10.0.0.7:80 i-2"]);
    assert!(index.view().rejected.is_empty());
}

#[test]
fn equally_old_registrations_are_told_apart_by_name() {
    for names in [["i-1", "i-2"], ["i-2", "i-1"]] {
        let mut index = index();
        apply(
            &mut index,
            names.map(|n| put(&format!("orders/{n}"), "10.0.0.7:80", 5, 5)),
        );
        assert_eq!(served(&index, "orders"), ["10.0.0.7:80 i-2"]);
    }
}

#[test]
fn each_of_many_registrations_waits_for_the_next_newer() {
    let mut index = index();
    for zxid in [3, 1, 4, 2] {
        apply(
            &mut index,
            [put(&format!("orders/i-{zxid}"), "10.0.0.7:80", zxid, zxid)],
        );
    }
    let names_its_successor = |index: &Index, older: i64, newer: i64| {
        let reason = reason(index, &format!("/services/orders/i-{older}"));
        reason.is_some_and(|r| r.contains(&format!("/i-{newer}`")))
    };
    assert!((1..4).all(|n| names_its_successor(&index, n, n + 1)));
    assert!(apply(&mut index, [delete("orders/i-3")]).is_empty());
    assert!(names_its_successor(&index, 2, 4));
    assert_eq!(index.counts().rejected, 2);
}

#[test]
fn a_stale_value_gives_way_to_a_newer_registration() {
    let mut index = index();
    apply(
        &mut index,
        [
            put("orders/i-1", "10.0.0.7:80", 2, 2),
            put("orders/i-1", "x", 2, 3),
        ],
    );
    apply(&mut index, [put("orders/i-2", "10.0.0.7:80", 4, 4)]);
    assert_eq!(
        reason(&index, "/services/orders/i-1").unwrap(),
        "`x` has no port; write host:port or JSON; \
         the last good one (mzxid 2) gave way to `/services/orders/i-2`"
    );
}

#[test]
fn a_service_with_an_impossible_name_is_rejected_with_all_below_it() {
    let mut index = index();
    let changes = apply(
        &mut index,
        [put("a|b", "", 1, 1), put("a|b/i-1", "10.0.0.7:80", 2, 2)],
    );
    assert!(changes.is_empty());
    assert!(index.view().services.is_empty());
    assert_eq!(index.counts().rejected, 1);
    assert!(
        reason(&index, "/services/a|b")
            .unwrap()
            .contains("holds `|`")
    );
    assert!(apply(&mut index, [delete("a|b/i-1"), delete("a|b")]).is_empty());
    assert_eq!(index.counts(), Counts::default());
}

#[test]
fn of_names_that_differ_in_case_the_older_wins() {
    let mut index = index();
    apply(
        &mut index,
        [
            put("orders", "", 5, 5),
            put("orders/i-1", "10.0.0.7:80", 6, 6),
            put("orders/i-2", "x", 7, 7),
        ],
    );
    let changes = apply(
        &mut index,
        [
            put("Orders", "", 3, 3),
            put("Orders/i-1", "10.0.0.8:80", 8, 8),
        ],
    );
    assert_eq!(changes, ["Orders", "orders"]);
    assert_eq!(served(&index, "Orders"), ["10.0.0.8:80 i-1"]);
    assert_eq!(
        reason(&index, "/services/orders").unwrap(),
        "the host name orders belongs to the older service `Orders`; rename one"
    );
    assert_eq!(
        index.counts().rejected,
        1,
        "what is below a rejected service is not shown"
    );

    assert!(apply(&mut index, [put("orders/i-3", "10.0.0.9:80", 9, 9)]).is_empty());
    assert_eq!(apply(&mut index, [delete("Orders")]), ["Orders", "orders"]);
    assert_eq!(
        served(&index, "orders"),
        ["10.0.0.7:80 i-1", "10.0.0.9:80 i-3"]
    );
    assert_eq!(reason(&index, "/services/orders"), None);
    assert!(reason(&index, "/services/orders/i-2").is_some());
}

#[test]
fn equally_old_names_are_told_apart_by_name() {
    for names in [["orders", "Orders"], ["Orders", "orders"]] {
        let mut index = index();
        let changes = apply(&mut index, names.map(|n| put(n, "", 5, 5)));
        assert_eq!(changes, ["Orders"]);
    }
}

#[test]
fn a_service_whose_own_znode_is_still_to_come_is_the_youngest() {
    let mut index = index();
    apply(
        &mut index,
        [
            put("Orders/i-1", "10.0.0.7:80", 2, 2),
            put("orders", "", 9, 9),
        ],
    );
    assert!(reason(&index, "/services/Orders").is_some());
    assert_eq!(
        apply(&mut index, [put("Orders", "", 1, 1)]),
        ["Orders", "orders"]
    );
    assert_eq!(served(&index, "Orders"), ["10.0.0.7:80 i-1"]);
}

#[test]
fn other_depths_are_not_looked_at() {
    let mut index = index();
    let events = [
        "",
        "/",
        "/orders",
        "orders/",
        "orders//i-1",
        "orders/i-1/deep",
    ];
    let puts = events.map(|path| put(path, "10.0.0.7:80", 1, 1));
    assert!(apply(&mut index, puts).is_empty());
    apply(&mut index, [put("orders/i-1", "10.0.0.7:80", 1, 1)]);
    assert!(
        apply(
            &mut index,
            [
                delete("orders/i-1/deep"),
                delete("nowhere"),
                delete("nowhere/i")
            ]
        )
        .is_empty()
    );
}

#[test]
fn deleting_the_root_deletes_every_service() {
    let mut index = index();
    apply(
        &mut index,
        [
            put("orders", "", 1, 1),
            put("users/i-1", "x", 2, 2),
            put("*", "", 3, 3),
        ],
    );
    assert_eq!(apply(&mut index, [delete("")]), ["orders", "users"]);
    assert_eq!(index.counts(), Counts::default());
}

#[test]
fn the_root_may_be_the_ensembles_own() {
    let mut index = Index::new(Config {
        root: "/".to_owned(),
        ..index().config().clone()
    });
    apply(&mut index, [put("orders/i-1", "x", 1, 1)]);
    assert!(reason(&index, "/orders/i-1").is_some());
}

#[test]
fn it_is_loaded_after_the_first_complete_batch() {
    let mut index = index();
    apply(&mut index, [put("orders", "", 1, 1)]);
    assert!(!index.loaded());
    index.apply(
        Batch {
            complete: true,
            ..Batch::default()
        },
        0,
    );
    assert!(index.loaded());
    apply(&mut index, [delete("orders")]);
    assert!(index.loaded());
}

#[test]
fn a_view_stays_as_it_was_taken() {
    let mut index = index();
    apply(&mut index, [put("orders", "", 1, 1)]);
    let view = index.view();
    apply(&mut index, [delete("orders")]);
    assert!(view.services.contains_key("orders"));
}

#[test]
fn a_rejection_is_told_once_for_each_reason_and_not_when_it_was_mended() {
    let mut index = index();
    let taken = |index: &mut Index| index.take_rejections().into_keys().collect::<Vec<_>>();
    apply(&mut index, [put("orders", "", 1, 1), put("--", "", 2, 2)]);
    apply(&mut index, [put("orders/i-1", "bad", 3, 3)]);
    assert_eq!(taken(&mut index), ["/services/--", "/services/orders/i-1"]);
    apply(&mut index, [put("orders/i-1", "bad", 3, 4)]);
    assert_eq!(taken(&mut index), [""; 0]);
    apply(&mut index, [put("orders/i-1", "10.0.0.7:99999", 3, 5)]);
    assert_eq!(taken(&mut index), ["/services/orders/i-1"]);
    apply(&mut index, [delete("orders/i-1")]);
    apply(&mut index, [put("orders/i-1", "bad", 6, 6)]);
    apply(&mut index, [put("orders/i-1", "10.0.0.7:80", 6, 7)]);
    assert_eq!(taken(&mut index), [""; 0]);
}
