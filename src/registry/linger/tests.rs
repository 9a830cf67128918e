//! Departures by example.

use super::*;
use crate::model::{Metadata, Origin, Weight};

const LAST: i64 = 2_000;
const PAUSE_MS: i64 = 100;

pub(super) fn linger() -> Linger {
    Linger::new(&Config {
        last: Duration::from_secs(2),
    })
}

pub(super) fn instance(n: u8, weight: u32) -> Arc<Instance> {
    Arc::new(Instance {
        own_id: None,
        address: [10, 0, 0, n].into(),
        port: 80,
        weight: Weight::new(weight).unwrap(),
        zone: None,
        health: Health::Healthy,
        priority: 0,
        metadata: Metadata::default(),
        origin: Origin::default(),
    })
}

pub(super) fn service(name: &str, instances: &[u8]) -> Arc<Service> {
    Arc::new(Service {
        name: name.into(),
        host: name.to_lowercase().into(),
        registry: "main".into(),
        instances: instances.iter().map(|n| instance(*n, 100)).collect(),
    })
}

/// Tells that these are registered now.
pub(super) fn tell(linger: &mut Linger, services: &[Arc<Service>], now: Time) -> Changes {
    let registered: Services = (services.iter())
        .map(|service| (Arc::clone(&service.name), Arc::clone(service)))
        .collect();
    let changes = linger.registered.diff(&registered).map(|item| match item {
        DiffItem::Add(name, _) | DiffItem::Remove(name, _) => (Arc::clone(name), Touched::All),
        DiffItem::Update {
            old: (_, was),
            new: (name, is),
        } => {
            let differences = was.instances.differences(&is.instances);
            (Arc::clone(name), Touched::Some(differences))
        }
    });
    let changes: Changes = changes.collect();
    let hosts: BTreeSet<Arc<str>> = registered.values().map(|s| Arc::clone(&s.host)).collect();
    let change = Change {
        now,
        whole: false,
        is_taken: &|host| hosts.contains(host),
        stands: &|_| false,
    };
    linger.apply(&registered, changes, change)
}

fn tick(linger: &mut Linger, now: Time) -> Changes {
    let mut all = Changes::new();
    while let Some((_, changes)) = linger.tick(now) {
        all.extend(changes);
    }
    all
}

/// The last number of each address.
fn shown(linger: &Linger, name: &str) -> Vec<u8> {
    let service = linger.services().get(name);
    let instances = service.into_iter().flat_map(|s| s.instances.iter());
    let last = |i: &Arc<Instance>| match i.address {
        std::net::IpAddr::V4(address) => address.octets()[3],
        std::net::IpAddr::V6(_) => 0,
    };
    instances.map(last).collect()
}

#[test]
fn an_only_instance_that_returns_within_its_time_never_left() {
    let mut linger = linger();
    tell(&mut linger, &[service("a", &[1])], 0);
    // As below `*/providers/*`: the service goes with its last instance.
    assert!(tell(&mut linger, &[], 10).is_empty());
    assert_eq!(shown(&linger, "a"), [1]);
    assert_eq!(linger.due(), Some(10 + LAST));
    assert!(tell(&mut linger, &[service("a", &[1])], 1_000).is_empty());
    assert!(linger.due().is_none() && linger.lingering().is_empty());
    assert!(tick(&mut linger, 1_000_000).is_empty());
    assert_eq!(shown(&linger, "a"), [1]);
}

#[test]
fn an_only_instance_that_does_not_return_leaves_after_its_time() {
    let mut linger = linger();
    tell(&mut linger, &[service("a", &[1])], 0);
    tell(&mut linger, &[], 10);
    assert!(tick(&mut linger, 9 + LAST).is_empty());
    let changes = tick(&mut linger, 10 + LAST);
    assert_eq!(changes, [("a".into(), Touched::All)].into());
    assert!(linger.services().is_empty());
}

#[test]
fn where_others_serve_an_instance_leaves_after_a_pause() {
    let mut linger = linger();
    tell(&mut linger, &[service("a", &[1, 2])], 0);
    assert!(tell(&mut linger, &[service("a", &[2])], 10).is_empty());
    assert_eq!(linger.due(), Some(10 + PAUSE_MS));
    let changes = tick(&mut linger, 10 + PAUSE_MS);
    let left = Touched::Some([([10, 0, 0, 1].into(), 80)].into());
    assert_eq!(changes, [("a".into(), left)].into());
    assert_eq!(shown(&linger, "a"), [2]);
}

#[test]
fn a_sweep_over_all_instances_takes_none_away() {
    let mut linger = linger();
    tell(&mut linger, &[service("a", &[1, 2, 3])], 0);
    for (at, there) in [(5, &[2, 3][..]), (10, &[3]), (15, &[])] {
        assert!(tell(&mut linger, &[service("a", there)], at).is_empty());
    }
    // None serves any more, so all wait for the full time, however long ago they left.
    assert!(tick(&mut linger, 100).is_empty());
    assert_eq!(shown(&linger, "a"), [1, 2, 3]);
    // The first returns: the others are expected too.
    assert!(tell(&mut linger, &[service("a", &[1])], 100).is_empty());
    assert_eq!(linger.due(), Some(10 + LAST));
    assert!(tell(&mut linger, &[service("a", &[1, 2])], 150).is_empty());
    assert!(tick(&mut linger, 150 + PAUSE_MS).is_empty());
    assert_eq!(tick(&mut linger, 15 + LAST).len(), 1);
    assert_eq!(shown(&linger, "a"), [1, 2]);
}

#[test]
fn one_change_that_replaces_an_instance_is_followed_at_once() {
    let mut linger = linger();
    tell(&mut linger, &[service("a", &[1])], 0);
    let changes = tell(&mut linger, &[service("a", &[2])], 10);
    assert_eq!(changes.len(), 1);
    assert_eq!(shown(&linger, "a"), [2]);
}

#[test]
fn what_nobody_sends_requests_to_is_no_reason_to_leave() {
    let mut linger = linger();
    let mut drained = Service::clone(&service("a", &[1]));
    drained.instances.put(instance(2, 0));
    tell(&mut linger, &[Arc::new(drained.clone())], 0);
    drained.instances.remove(([10, 0, 0, 1].into(), 80));
    tell(&mut linger, &[Arc::new(drained)], 10);
    assert_eq!(linger.due(), Some(10 + LAST));
}

#[test]
fn an_instance_in_another_registry_serves_as_well() {
    let mut linger = linger();
    let other = |services: &[Arc<Service>]| {
        let named = services
            .iter()
            .map(|s| (Arc::clone(&s.name), Arc::clone(s)));
        vec![named.collect::<Services>()]
    };
    tell(&mut linger, &[service("a", &[1])], 0);
    linger.sees_others(other(&[service("a", &[9])]));
    tell(&mut linger, &[], 10);
    assert_eq!(linger.due(), Some(10 + PAUSE_MS));
    // It goes before the pause is over.
    linger.sees_others(other(&[]));
    assert!(tick(&mut linger, 10 + PAUSE_MS).is_empty());
    assert_eq!(linger.due(), Some(10 + LAST));
}

#[test]
fn a_service_whose_host_another_one_takes_does_not_linger() {
    let mut linger = linger();
    tell(&mut linger, &[service("Orders", &[1])], 0);
    let changes = tell(&mut linger, &[service("orders", &[2])], 10);
    assert_eq!(changes.len(), 2);
    assert!(linger.lingering().is_empty());
    // The other one comes later.
    tell(&mut linger, &[], 20);
    assert_eq!(shown(&linger, "orders"), [2]);
    let changes = tell(&mut linger, &[service("Orders", &[1])], 30);
    assert_eq!(changes.len(), 2);
    assert_eq!(shown(&linger, "orders"), [0u8; 0]);
}

#[test]
fn a_clock_that_is_set_back_keeps_nothing_for_longer() {
    let mut linger = linger();
    tell(&mut linger, &[service("a", &[1])], 1_000_000);
    tell(&mut linger, &[], 1_000_000);
    assert!(tick(&mut linger, 0).is_empty());
    assert_eq!(linger.due(), Some(LAST));
    assert_eq!(tick(&mut linger, LAST).len(), 1);
}

#[test]
fn with_no_time_to_linger_everything_leaves_at_once() {
    let mut linger = Linger::new(&Config {
        last: Duration::ZERO,
    });
    tell(&mut linger, &[service("a", &[1, 2])], 0);
    assert_eq!(tell(&mut linger, &[service("a", &[2])], 1).len(), 1);
    assert_eq!(tell(&mut linger, &[], 2).len(), 1);
    assert!(linger.services().is_empty() && linger.due().is_none());
}

#[test]
fn what_lingers_when_the_root_goes_went_with_it() {
    let mut linger = linger();
    tell(&mut linger, &[service("a", &[1, 2])], 0);
    tell(&mut linger, &[service("a", &[2])], 1);
    tell(&mut linger, &[], 2);
    let change = Change {
        now: 3,
        whole: true,
        is_taken: &|_| false,
        stands: &|_| false,
    };
    linger.apply(&Services::new(), Changes::new(), change);
    let ended = std::iter::from_fn(|| linger.tick(2 + LAST));
    let ended: Vec<_> = ended.map(|(whole, _)| whole).collect();
    assert_eq!(ended, [true]);
}

#[test]
fn whether_a_departure_was_one_of_the_whole_tree_comes_with_its_end() {
    let mut linger = linger();
    tell(&mut linger, &[service("a", &[1]), service("b", &[1])], 0);
    let mut registered = linger.registered.clone();
    registered.remove("a");
    let changes = [("a".into(), Touched::All)].into();
    let change = Change {
        now: 0,
        whole: true,
        is_taken: &|_| false,
        stands: &|_| false,
    };
    linger.apply(&registered, changes, change);
    tell(&mut linger, &[], 0);
    let ended = std::iter::from_fn(|| linger.tick(LAST));
    let ended: Vec<_> = ended
        .map(|(whole, changes)| (whole, changes.len()))
        .collect();
    assert_eq!(ended, [(true, 1), (false, 1)]);
}
