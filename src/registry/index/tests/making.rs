//! What becomes of registrations that are more than one address: layouts, parts, ramps, factors, host
//! names, times to live, and what the configuration makes of them.

use super::{super::*, apply, delete, index, put, reason, served};
use crate::{
    model::{Health, Instance, Weight},
    registry::{
        Layout, Shape,
        registration::{Decoded, Factor, Host, Select, WarmUp},
    },
};

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
    assert_eq!(reason(&index, path), None, "nothing is wrong with it");
    assert_eq!(index.counts().rejected, 0);
    assert_eq!(index.view().waiting[path], "db".into());
    let of = |last: &[u8]| Ok(last.iter().map(|n| [10, 0, 0, *n].into()).collect());
    assert_eq!(index.resolved("db", of(&[1, 2]), 0).len(), 1);
    assert_eq!(weights(&index, "s").len(), 2);
    assert_eq!(reason(&index, path), None);
    assert!(index.view().waiting.is_empty());
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

/// As [`written`], by who has that session.
fn held_by(owner: i64, path: &str) -> Event {
    let mut event = written(path, 0);
    let Event::Put { stat, .. } = &mut event else {
        unreachable!("a put");
    };
    stat.ephemeral_owner = owner;
    event
}

#[test]
fn only_what_no_session_holds_lapses() {
    const CONTAINER: i64 = i64::MIN;
    const TTL: i64 = (0xff_i64 << 56) | 0xea60;
    for (owner, lapses) in [
        (0, true),
        (CONTAINER, true),
        (TTL, true),
        (0x1000_0000_2a00_0001, false),
        (0x7e00_0000_0000_0001, false),
    ] {
        let mut index = mortal();
        index.apply(whole([held_by(owner, "s/i")]), 0);
        index.tick(60_000);
        assert_eq!(lapsed(&index, "s"), lapses, "{owner:#x}");
        let view = index.view();
        let instance = view.services["s"].instances.iter().next().unwrap();
        let session = if lapses { 0 } else { owner };
        assert_eq!(instance.origin.session, session);
    }
}

/// A provider of Dubbo's with these parameters.
fn provider(port: u16, parameters: &str) -> String {
    let parameters = parameters.replace('=', "%3D").replace('&', "%26");
    format!("a.B/providers/dubbo%3A%2F%2F10.0.0.7%3A{port}%2Fa.B%3Fside%3Dprovider%26{parameters}")
}

fn plain_weights(index: &Index, service: &str) -> Vec<u32> {
    let all = weights(index, service).into_iter();
    all.map(|(_, weight)| weight).collect()
}

#[test]
fn providers_of_dubbo_that_all_weigh_nothing_are_served_alike() {
    let mut index = Index::new(Config {
        layout: Layout::mixed(),
        ..index().config
    });
    let [first, second] = [provider(1, "weight=0"), provider(2, "weight=0")];
    apply(&mut index, [put(&first, "", 1, 1), put(&second, "", 2, 2)]);
    assert_eq!(plain_weights(&index, "a.B"), [100, 100]);
    // One that has a weight drains the others, and one that is disabled does not.
    let third = provider(3, "weight=30");
    assert_eq!(apply(&mut index, [put(&third, "", 3, 3)]), ["a.B"]);
    assert_eq!(plain_weights(&index, "a.B"), [0, 0, 30]);
    let fourth = provider(4, "weight=30&disabled=true");
    apply(&mut index, [put(&fourth, "", 4, 4), delete(&third)]);
    assert_eq!(plain_weights(&index, "a.B"), [100, 100, 30]);
    // Each group and version is a service of its own.
    let other = provider(5, "group=blue&weight=0");
    apply(&mut index, [put(&other, "", 5, 5)]);
    assert_eq!(plain_weights(&index, "a.B:blue"), [100]);
    apply(&mut index, [delete(&first), put(&third, "", 6, 6)]);
    assert_eq!(plain_weights(&index, "a.B"), [0, 30, 30]);
    assert_eq!(plain_weights(&index, "a.B:blue"), [100]);
    // Elsewhere a weight of 0 drains, whoever is beside it.
    apply(
        &mut index,
        [put(
            "s/i",
            r#"{"host":"10.0.0.1","port":1,"weight":0}"#,
            7,
            7,
        )],
    );
    assert_eq!(plain_weights(&index, "s"), [0]);
}
