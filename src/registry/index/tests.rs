//! The index through its front door: batches in, view and changes out.

use bytes::Bytes;

use super::*;
use crate::{
    model::{Health, Instance, Origin, Weight},
    registry::{
        FormatChoice, Layout, Shape,
        registration::{Decoded, Factor, Host, Select, WarmUp},
    },
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

/// An index of another layout and format.
fn laid_out(layout: &str) -> Index {
    Index::new(Config {
        layout: layout.parse().unwrap(),
        ..index().config
    })
}

fn names(index: &Index) -> Vec<String> {
    let services = index.view().services;
    services.keys().map(ToString::to_string).collect()
}

/// Addresses and weights of what a service serves.
fn weights(index: &Index, service: &str) -> Vec<(String, u32)> {
    let view = index.view();
    let instances = view.services.get(service).map(|s| s.instances.clone());
    let weight = |i: &Arc<Instance>| (i.address.to_string(), i.weight.get());
    instances.unwrap_or_default().iter().map(weight).collect()
}

fn decoded(host: Host) -> Decoded {
    Decoded {
        part: None,
        id: None,
        host,
        port: 80,
        weight: Weight::default(),
        warm_up: None,
        zone: None,
        health: Health::Healthy,
        metadata: BTreeMap::new(),
    }
}

fn ip(last: u8) -> Host {
    Host::Ip([10, 0, 0, last].into())
}

/// Registers what a decoder might make, whatever format writes it.
fn register(index: &mut Index, path: &str, what: Registration, now: i64) -> Changes {
    let stat = Stat {
        czxid: 1,
        mtime: now,
        ..Stat::default()
    };
    let mut dirty = Dirty::new();
    let Place::Instance(service) = index.config.layout.place(path) else {
        panic!("{path} is no instance");
    };
    let (service, _) = index.base(service, &mut dirty);
    let read = index.shaped(&path.into(), stat, "test", what);
    index.register(&service, &path.into(), 1, read, now, &mut dirty);
    index.settle(dirty)
}

#[test]
fn a_service_is_named_by_several_levels() {
    let mut index = laid_out("*/*/*");
    let changes = apply(
        &mut index,
        [
            put("prod", "", 1, 1),
            put("prod/hello", "", 2, 2),
            put("prod/hello/i", "10.0.0.1:80", 3, 3),
            put("test/hello/i", "10.0.0.2:80", 4, 4),
        ],
    );
    assert_eq!(changes, ["prod.hello", "test.hello"]);
    assert_eq!(served(&index, "prod.hello"), ["10.0.0.1:80 i"]);
    assert_eq!(apply(&mut index, [delete("prod")]), ["prod.hello"]);
    assert_eq!(names(&index), ["test.hello"]);
}

#[test]
fn a_service_with_a_level_before_its_instances_exists_by_these_alone() {
    let mut index = Index::new(Config {
        layout: Layout::mixed(),
        ..index().config
    });
    apply(&mut index, [put("com.foo.Bar", "", 1, 1)]);
    assert_eq!(names(&index), ["com.foo.Bar"]);
    let consumers = put("com.foo.Bar/consumers", "", 2, 2);
    assert_eq!(apply(&mut index, [consumers]), ["com.foo.Bar"]);
    assert_eq!(names(&index), [""; 0]);
    apply(
        &mut index,
        [
            put("com.foo.Bar/providers", "", 3, 3),
            put("com.foo.Bar/providers/i", "10.0.0.1:80", 4, 4),
            put("com.foo.Bar/providers/bad", "x", 5, 5),
        ],
    );
    assert_eq!(served(&index, "com.foo.Bar"), ["10.0.0.1:80 i"]);
    assert!(reason(&index, "/services/com.foo.Bar/providers/bad").is_some());
    let changes = apply(&mut index, [delete("com.foo.Bar/providers")]);
    assert_eq!(changes, ["com.foo.Bar"]);
    assert_eq!(index.counts(), Counts::default());
    // What is wrong is shown also where nothing is right.
    apply(&mut index, [put("com.foo.Bar/providers/bad", "x", 5, 5)]);
    assert!(reason(&index, "/services/com.foo.Bar/providers/bad").is_some());
}

#[test]
fn what_stands_beside_services_that_need_a_level_is_none() {
    let mut index = Index::new(Config {
        layout: Layout::dubbo(),
        ..index().config
    });
    apply(&mut index, [put("metadata", "", 1, 1)]);
    assert_eq!(names(&index), [""; 0]);
    apply(
        &mut index,
        [
            put("com.foo.Bar", "", 2, 2),
            put("com.foo.Bar/providers", "", 3, 3),
            put("com.foo.Bar/providers/i", "10.0.0.1:80", 4, 4),
        ],
    );
    assert_eq!(names(&index), ["com.foo.Bar"]);
}

#[test]
fn a_part_and_a_service_of_one_name_tell_which_of_them_gave_way() {
    let admin = Decoded {
        part: Some("admin".to_owned()),
        port: 90,
        ..decoded(ip(1))
    };
    let admin = Registration::Instances(vec![admin]);
    let path = "/services/orders:admin";
    // The service is older or younger than the part.
    for czxid in [1, 9] {
        let mut index = index();
        apply(&mut index, [put("orders", "", 5, 5)]);
        register(&mut index, "orders/i", admin.clone(), 0);
        assert_eq!(reason(&index, path), None);
        apply(
            &mut index,
            [
                put("orders:admin", "", czxid, czxid),
                put("orders:admin/i", "10.0.0.2:80", 10, 10),
            ],
        );
        assert!(
            reason(&index, path).unwrap().contains("older service"),
            "{czxid}"
        );
        // Whatever is touched next.
        register(&mut index, "orders/i", admin.clone(), 0);
        assert!(
            reason(&index, path).unwrap().contains("older service"),
            "{czxid}"
        );
        apply(&mut index, [put("orders:admin/j", "10.0.0.3:80", 11, 11)]);
        assert!(
            reason(&index, path).unwrap().contains("older service"),
            "{czxid}"
        );
        apply(&mut index, [delete("orders:admin")]);
        assert_eq!(reason(&index, path), None);
        assert_eq!(names(&index), ["orders", "orders:admin"]);
    }
}

#[test]
fn a_part_is_a_service_of_its_own_while_it_has_instances() {
    let mut index = index();
    let admin = || Decoded {
        part: Some("admin".to_owned()),
        port: 90,
        ..decoded(ip(1))
    };
    let both = Registration::Instances(vec![decoded(ip(1)), admin()]);
    let changes = register(&mut index, "orders/i", both.clone(), 0);
    assert_eq!(changes.len(), 2);
    assert_eq!(names(&index), ["orders", "orders:admin"]);
    assert_eq!(&*index.view().services["orders:admin"].host, "orders-admin");
    assert_eq!(index.counts().instances, 2);
    assert!(register(&mut index, "orders/i", both, 0).is_empty());
    let own = Registration::Instances(vec![decoded(ip(1))]);
    let changes = register(&mut index, "orders/i", own, 0);
    assert_eq!(
        changes.keys().map(|n| &**n).collect::<Vec<_>>(),
        ["orders:admin"]
    );
    assert_eq!(names(&index), ["orders"]);
    // A service that is really called so is older or younger, and one of the two is served.
    apply(&mut index, [put("orders-admin", "", 9, 9)]);
    register(
        &mut index,
        "orders/i",
        Registration::Instances(vec![admin()]),
        0,
    );
    assert_eq!(names(&index), ["orders", "orders-admin"]);
    assert!(
        reason(&index, "/services/orders:admin")
            .unwrap()
            .contains("orders-admin")
    );
    apply(&mut index, [delete("orders-admin")]);
    assert_eq!(names(&index), ["orders", "orders:admin"]);
    assert_eq!(reason(&index, "/services/orders:admin"), None);
}

#[test]
fn a_weight_ramps_up_while_time_goes_on() {
    let mut index = index();
    let warm_up = Some(WarmUp {
        since: 1_000,
        lasts: 100_000,
    });
    let warming = Decoded {
        warm_up,
        ..decoded(ip(1))
    };
    register(
        &mut index,
        "s/i",
        Registration::Instances(vec![warming]),
        1_000,
    );
    assert_eq!(weights(&index, "s"), [("10.0.0.1".to_owned(), 1)]);
    assert!(index.tick(10_999).is_empty());
    let mut seen = Vec::new();
    while let Some(due) = index.due() {
        assert_eq!(index.tick(due).len(), 1);
        seen.push(weights(&index, "s")[0].1);
    }
    assert_eq!(seen, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]);
}

#[test]
fn what_drains_does_not_ramp_up() {
    let mut index = index();
    let drained = Decoded {
        weight: Weight::DRAIN,
        warm_up: Some(WarmUp {
            since: 1_000,
            lasts: 100_000,
        }),
        ..decoded(ip(1))
    };
    let registration = Registration::Instances(vec![drained]);
    register(&mut index, "s/i", registration, 1_000);
    assert_eq!(weights(&index, "s"), [("10.0.0.1".to_owned(), 0)]);
    assert_eq!(index.due(), None);
}

#[test]
fn factors_multiply_the_weights_of_what_they_select_and_go_with_their_znodes() {
    let mut index = index();
    let shard = Decoded {
        metadata: BTreeMap::from([("shard".to_owned(), "2".to_owned())]),
        ..decoded(ip(2))
    };
    register(
        &mut index,
        "s/m_1",
        Registration::Instances(vec![decoded(ip(1))]),
        0,
    );
    register(&mut index, "s/m_2", Registration::Instances(vec![shard]), 0);
    let factor = |select, weight| Factor { select, weight };
    let vector = Registration::Weights(vec![
        factor(Select::Member("m_1".to_owned()), 0.5),
        factor(
            Select::Socket {
                host: ip(1),
                port: 80,
            },
            0.5,
        ),
        factor(Select::Shard(2), 2.0),
        factor(Select::Shard(3), 0.0),
    ]);
    let changes = register(&mut index, "s/vector_1", vector, 0);
    assert_eq!(changes.len(), 1);
    let is = |index: &Index| {
        weights(index, "s")
            .into_iter()
            .map(|(_, w)| w)
            .collect::<Vec<_>>()
    };
    assert_eq!(is(&index), [25, 200]);
    // A member that comes later is multiplied too.
    register(
        &mut index,
        "s/m_1",
        Registration::Instances(vec![decoded(ip(1))]),
        0,
    );
    assert_eq!(is(&index), [25, 200]);
    let more = Registration::Weights(vec![factor(Select::Shard(2), 0.25)]);
    register(&mut index, "s/vector_2", more, 0);
    assert_eq!(is(&index), [25, 50]);
    apply(&mut index, [delete("s/vector_1")]);
    assert_eq!(is(&index), [100, 25]);
    apply(&mut index, [delete("s/vector_2")]);
    assert_eq!(is(&index), [100, 100]);
}

#[test]
fn a_host_name_is_served_once_it_is_resolved_and_follows_its_addresses() {
    let mut index = index();
    let named = Registration::Instances(vec![decoded(Host::Name("db".into()))]);
    register(&mut index, "s/i", named, 0);
    assert_eq!(
        index
            .wanted_hosts()
            .iter()
            .map(|n| &**n)
            .collect::<Vec<_>>(),
        ["db"]
    );
    let path = "/services/s/i";
    assert!(reason(&index, path).unwrap().contains("is being resolved"));
    let of = |last: &[u8]| Ok(last.iter().map(|n| [10, 0, 0, *n].into()).collect());
    assert_eq!(index.resolved("db", of(&[1, 2]), 0).len(), 1);
    assert_eq!(weights(&index, "s").len(), 2);
    assert_eq!(reason(&index, path), None);
    assert!(index.resolved("db", of(&[1, 2]), 0).is_empty());
    assert_eq!(index.resolved("db", of(&[2]), 0).len(), 1);
    assert_eq!(served(&index, "s"), ["10.0.0.2:80 i"]);
    index.resolved("db", Err("no such name".to_owned()), 0);
    assert!(reason(&index, path).unwrap().contains("no such name"));
    apply(&mut index, [delete("s/i")]);
    assert!(index.wanted_hosts().is_empty());
    assert!(index.resolved("db", of(&[1]), 0).is_empty());
}

/// An index whose registrations live for ten seconds.
fn mortal() -> Index {
    Index::new(Config {
        ttl: Some(std::time::Duration::from_secs(10)),
        ..index().config
    })
}

/// Written at a time by ZooKeeper's clock, in the order of those times.
fn written(path: &str, mtime: i64) -> Event {
    let Event::Put { path, data, stat } = put(path, "10.0.0.1:80", 1, mtime) else {
        unreachable!("a put");
    };
    let stat = Stat { mtime, ..stat };
    Event::Put { path, data, stat }
}

fn whole(events: impl Into<Vec<Event>>) -> Batch {
    Batch {
        complete: true,
        ..part(events)
    }
}

fn part(events: impl Into<Vec<Event>>) -> Batch {
    Batch {
        events: events.into(),
        ..Batch::default()
    }
}

fn stale() -> Batch {
    Batch {
        stale: true,
        ..Batch::default()
    }
}

fn lapsed(index: &Index, service: &str) -> bool {
    let instances = index.view().services[service].instances.clone();
    instances.iter().next().unwrap().health != Health::Healthy
}

#[test]
fn what_nobody_writes_lapses_but_never_while_zookeeper_is_away() {
    let mut index = mortal();
    index.apply(whole([written("s/i", 0)]), 0);
    assert_eq!(index.due(), Some(10_000));
    // Touched in time, it lives on.
    let touched = index.apply(part([written("s/i", 5_000)]), 5_000);
    assert!(touched.is_empty());
    assert!(index.tick(10_000).is_empty());
    assert_eq!(index.due(), Some(15_000));
    // ZooKeeper goes, and nobody can write.
    index.apply(stale(), 6_000);
    assert!(index.tick(60_000).is_empty());
    assert!(!lapsed(&index, "s"));
    index.apply(whole([]), 70_000);
    assert!(!lapsed(&index, "s"));
    assert_eq!(index.due(), Some(80_000));
    assert_eq!(index.tick(80_000).len(), 1);
    assert!(lapsed(&index, "s"));
    // What has lapsed stays so over the next outage, until it is written; to be told again is not.
    index.apply(stale(), 90_000);
    index.apply(whole([written("s/i", 5_000)]), 95_000);
    assert!(lapsed(&index, "s"));
    index.apply(part([written("s/i", 96_000)]), 96_000);
    assert!(!lapsed(&index, "s"));
    index.apply(part([written("s/i", 96_000)]), 99_000);
    assert_eq!(index.due(), Some(106_000));
}

#[test]
fn a_registration_lives_however_far_the_clocks_are_apart() {
    const HOUR: i64 = 3_600_000;
    for skew in [-HOUR, 0, HOUR] {
        let mut index = mortal();
        let now = 10 * HOUR;
        index.apply(whole([written("s/i", now + skew)]), now);
        assert!(!lapsed(&index, "s"), "{skew}");
        index.apply(part([written("s/i", now + 5_000 + skew)]), now + 5_000);
        assert!(!lapsed(&index, "s") && index.tick(now + 14_999).is_empty());
        assert_eq!(index.tick(now + 15_000).len(), 1, "{skew}");
        assert!(lapsed(&index, "s"));
        index.apply(part([written("s/i", now + 16_000 + skew)]), now + 16_000);
        assert!(!lapsed(&index, "s"), "{skew}");
    }
}

#[test]
fn a_process_that_begins_serves_nothing_that_lapsed_before_by_zookeepers_clock() {
    let mut index = mortal();
    let now = 1_000_000_000;
    // In two batches, and in any order.
    index.apply(
        part([written("old/i", 80_000), written("new/i", 100_000)]),
        now,
    );
    index.apply(whole([written("late/i", 94_000)]), now);
    assert!(lapsed(&index, "old") && !lapsed(&index, "new") && !lapsed(&index, "late"));
    // The others have the rest of their time.
    assert_eq!(index.due(), Some(now + 4_000));
    index.tick(now + 4_000);
    assert!(lapsed(&index, "late") && !lapsed(&index, "new"));
    index.apply(part([written("old/i", 105_000)]), now + 5_000);
    assert!(!lapsed(&index, "old"));
}

#[test]
fn a_clock_that_was_ahead_once_makes_nothing_lapse() {
    let mut index = mortal();
    // The first was written under a leader whose clock went wrong; the order of the writes tells.
    let mut ahead = written("a/i", 1);
    let Event::Put { stat, .. } = &mut ahead else {
        unreachable!("a put");
    };
    stat.mtime = 9_000_000;
    index.apply(whole([ahead, written("b/i", 100_000)]), 0);
    assert!(!lapsed(&index, "a") && !lapsed(&index, "b"));
}

#[test]
fn what_the_configuration_leaves_out_is_not_served_and_what_it_renames_is_called_so() {
    let shape = Shape {
        exclude: vec![crate::registry::shape::Glob::new("internal-*")],
        rename: vec![crate::registry::shape::Rename::new("com.foo.*", "*").unwrap()],
        networks: vec!["10.0.0.0/24".parse().unwrap()],
        ..Shape::default()
    };
    let mut index = Index::new(Config {
        shape,
        ..index().config
    });
    apply(
        &mut index,
        [
            put("internal-x", "", 1, 1),
            put("internal-x/i", "garbage", 2, 2),
            put("com.foo.Orders/i", "10.0.0.1:80", 3, 3),
            put("com.foo.Orders/j", "10.9.0.1:80", 4, 4),
        ],
    );
    assert_eq!(names(&index), ["Orders"]);
    assert!(index.view().rejected.is_empty());
    let view = index.view();
    let health: Vec<_> = view.services["Orders"]
        .instances
        .iter()
        .map(|i| i.health.clone())
        .collect();
    assert!(
        matches!(&health[..], [Health::Healthy, Health::Disabled(why)] if why.contains("10.9.0.1"))
    );
}
