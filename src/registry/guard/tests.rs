//! The guard by example: what trips it, what never does, and how holds end.

use std::net::IpAddr;

use super::*;
use crate::model::{Health, Instances, Metadata, Origin, Weight};

/// A registry under guard.
pub(super) struct Rig {
    pub guard: Guard,
    pub mirrored: Services,
    pub now: Time,
}

pub(super) fn instance(service: &str, port: u16) -> Instance {
    Instance {
        own_id: None,
        address: IpAddr::from([10, 0, 0, 1]),
        port,
        weight: Weight::default(),
        zone: None,
        health: Health::Healthy,
        priority: 0,
        metadata: Metadata::default(),
        origin: Origin {
            znode: format!("{service}/{port}").into(),
            format: "plain",
            ..Origin::default()
        },
    }
}

impl Rig {
    pub fn new(config: Config) -> Self {
        Self {
            guard: Guard::new(config),
            mirrored: Services::new(),
            now: 1_000_000,
        }
    }

    /// `orders` with so many instances, for long.
    fn with(count: u16) -> Self {
        let mut rig = Self::new(Config::default());
        rig.add("orders", 1..=count);
        rig.pass(3_600_000);
        rig
    }

    pub fn edit(&mut self, service: &str, edit: impl FnOnce(&mut Instances)) {
        let before = self.mirrored.get(service).cloned();
        let mut after = before.map_or_else(
            || Service {
                name: service.into(),
                host: service.into(),
                registry: "main".into(),
                instances: Instances::default(),
            },
            |before| Service::clone(&before),
        );
        edit(&mut after.instances);
        self.mirrored.insert(service.into(), Arc::new(after));
    }

    pub fn tell(&mut self, cause: Cause) -> Changes {
        let before = &self.guard.mirrored;
        let touched = |(name, moved): (Arc<str>, Moves)| {
            let both = before.contains_key(&name) && self.mirrored.contains_key(&name);
            let some = both.then_some(Touched::Some(moved.sockets));
            (name, some.unwrap_or(Touched::All))
        };
        let changes = moves(before, &self.mirrored)
            .into_iter()
            .map(touched)
            .collect();
        let mirrored = self.mirrored.clone();
        self.guard.apply(&mirrored, changes, self.now, cause)
    }

    fn add(&mut self, service: &str, ports: impl IntoIterator<Item = u16>) -> Changes {
        self.edit(service, |instances| {
            for port in ports {
                instances.put(Arc::new(instance(service, port)));
            }
        });
        self.tell(Cause::default())
    }

    fn drop(&mut self, service: &str, ports: impl IntoIterator<Item = u16>) -> Changes {
        self.edit(service, |instances| {
            for port in ports {
                instances.remove((IpAddr::from([10, 0, 0, 1]), port));
            }
        });
        self.tell(Cause::default())
    }

    fn pass(&mut self, time: Time) -> Changes {
        self.now += time;
        self.guard.tick(self.now)
    }

    fn published(&self, service: &str) -> Vec<u16> {
        let service = self.guard.published().get(service);
        let ports = service.map(|s| s.instances.iter().map(|i| i.port).collect());
        ports.unwrap_or_default()
    }

    fn held(&self) -> usize {
        self.guard.holds().held()
    }
}

fn whole() -> Cause {
    Cause {
        whole: true,
        known: None,
    }
}

#[test]
fn sixty_percent_at_once_are_held_and_nothing_is_told_to_anyone() {
    let mut rig = Rig::with(100);
    assert_eq!(rig.drop("orders", 1..=60), Changes::new());
    assert_eq!(rig.published("orders").len(), 100);
    assert_eq!(rig.held(), 60);
    let tripped = |scope| Notice::Tripped {
        scope,
        peak: 100,
        present: 40,
        held: 60,
    };
    // It is the only service: the whole registry lost as much, and one notice says it.
    assert_eq!(rig.guard.take_notices(), [tripped(Scope::Registry)]);
}

#[test]
fn what_goes_before_the_share_is_reached_goes_and_is_held_with_the_rest_once_it_is() {
    let mut rig = Rig::with(100);
    rig.add("other", 1..=1_000);
    rig.pass(3_600_000);
    rig.guard.take_notices();
    for port in 1..=60 {
        let changes = rig.drop("orders", [port]);
        assert_eq!(changes.len(), usize::from(port <= 51), "{port}");
        let left = if port <= 50 { 100 - port } else { 100 };
        assert_eq!(rig.published("orders").len(), usize::from(left));
        rig.pass(10);
    }
    assert_eq!(rig.held(), 60);
    let tripped = Notice::Tripped {
        scope: Scope::Service("orders".into()),
        peak: 100,
        present: 49,
        held: 51,
    };
    assert_eq!(rig.guard.take_notices(), [tripped]);
}

#[test]
fn what_was_replaced_or_went_long_before_does_not_come_back() {
    let mut rig = Rig::with(20);
    rig.drop("orders", [1]);
    rig.pass(11_000);
    rig.drop("orders", [2]);
    rig.add("orders", [102]);
    rig.drop("orders", [3]);
    rig.add("orders", [3]);
    for port in 4..=12 {
        rig.drop("orders", [port]);
    }
    let expected: Vec<u16> = (3..=20).chain([102]).collect();
    assert_eq!(rig.published("orders"), expected);
}

#[test]
fn what_an_operator_let_go_does_not_come_back() {
    let mut rig = Rig::with(20);
    for port in 1..=7 {
        rig.drop("orders", [port]);
    }
    assert_eq!(rig.held(), 7);
    rig.guard.release(None);
    rig.drop("orders", 8..=16);
    assert_eq!(rig.published("orders"), (8..=20).collect::<Vec<_>>());
}

#[test]
fn a_rolling_deploy_never_trips() {
    // Surge (the next one comes first), at once, and with the next one some seconds later.
    for (surge, pause) in [(true, 500), (false, 0), (false, 4_000)] {
        let mut rig = Rig::with(100);
        for ports in (1..=100u16).collect::<Vec<_>>().chunks(10) {
            let next = ports.iter().map(|port| port + 1_000);
            if surge {
                rig.add("orders", next.clone());
                rig.pass(pause);
            }
            rig.drop("orders", ports.iter().copied());
            if !surge {
                rig.pass(pause);
                rig.add("orders", next);
            }
            rig.pass(200);
        }
        assert_eq!(rig.published("orders"), (1_001..=1_100).collect::<Vec<_>>());
        assert_eq!(rig.guard.take_notices(), []);
    }
}

#[test]
fn scaling_to_half_over_ten_minutes_never_trips() {
    let mut rig = Rig::with(100);
    for port in 1..=50 {
        rig.drop("orders", [port]);
        rig.pass(12_000);
    }
    assert_eq!(rig.published("orders").len(), 50);
    assert_eq!(rig.guard.take_notices(), []);
}

#[test]
fn sessions_that_end_one_by_one_never_trip_down_to_the_last() {
    let mut rig = Rig::with(100);
    for port in 1..=100 {
        rig.drop("orders", [port]);
        rig.pass(3_000);
    }
    assert_eq!(rig.published("orders"), [0u16; 0]);
    assert_eq!(rig.guard.take_notices(), []);
}

#[test]
fn a_small_service_may_go_as_a_whole() {
    let mut rig = Rig::with(100);
    rig.add("tiny", 1..=4);
    rig.drop("tiny", 1..=4);
    rig.mirrored.remove("tiny");
    assert_eq!(rig.tell(Cause::default()).len(), 1);
    assert!(!rig.guard.published().contains_key("tiny"));
    assert_eq!(rig.guard.take_notices(), []);
}

#[test]
fn a_comparison_that_finds_nothing_is_held_however_few_there_were() {
    let mut rig = Rig::with(1);
    rig.mirrored = Services::new();
    assert_eq!(rig.tell(whole()), Changes::new());
    assert_eq!(rig.published("orders"), [1]);
    assert!(rig.guard.holds().trip.is_some());
}

#[test]
fn a_root_that_goes_after_its_children_brings_them_back_however_few_there_were() {
    let mut rig = Rig::with(3);
    for port in 1..=3 {
        rig.drop("orders", [port]);
        rig.pass(1_000);
    }
    rig.mirrored = Services::new();
    rig.tell(Cause::default());
    assert_eq!(rig.published("orders"), [0u16; 0]);
    let changes = rig.tell(whole());
    assert_eq!(changes.get("orders"), Some(&Touched::All));
    assert_eq!((rig.published("orders").len(), rig.held()), (3, 3));
    assert_eq!(rig.guard.take_notices().len(), 1);
    // What went long before does not come back, nor what an operator let go.
    rig.guard.release(None);
    assert_eq!(rig.tell(whole()), Changes::new());
    rig.add("orders", [1]);
    rig.drop("orders", [1]);
    rig.pass(11_000);
    assert_eq!(rig.tell(whole()), Changes::new());
    assert_eq!(rig.held(), 0);
}

#[test]
fn the_last_instance_that_is_deleted_live_goes() {
    let mut rig = Rig::with(1);
    assert_eq!(rig.drop("orders", [1]).len(), 1);
    assert_eq!(rig.published("orders"), [0u16; 0]);
}

#[test]
fn a_service_that_goes_with_its_instances_stays_while_some_are_held() {
    let mut rig = Rig::with(20);
    rig.mirrored.remove("orders");
    assert_eq!(rig.tell(Cause::default()), Changes::new());
    assert_eq!(rig.published("orders").len(), 20);
    let gone = rig.guard.release(None);
    assert_eq!(gone.get("orders"), Some(&Touched::All));
    assert!(rig.guard.published().is_empty());
}

#[test]
fn those_who_return_are_held_no_more_and_the_hold_ends_when_as_many_are_back() {
    let mut rig = Rig::with(20);
    rig.drop("orders", 1..=15);
    rig.guard.take_notices();
    assert_eq!(rig.held(), 15);
    rig.add("orders", 1..=5);
    assert_eq!((rig.held(), rig.published("orders").len()), (10, 20));
    // On other addresses: each stands for one that is held.
    rig.add("orders", 101..=104);
    assert_eq!((rig.held(), rig.published("orders").len()), (6, 20));
    rig.add("orders", 105..=110);
    assert_eq!(rig.held(), 0);
    assert_eq!(rig.guard.published(), &rig.mirrored);
    let ended = Notice::Ended {
        scope: Scope::Registry,
        how: Ending::Returned,
        removed: 0,
    };
    assert_eq!(rig.guard.take_notices(), [ended]);
}

#[test]
fn a_deploy_under_a_hold_lets_the_replaced_go() {
    let mut rig = Rig::with(20);
    rig.drop("orders", 1..=15);
    for port in 16..=20 {
        rig.drop("orders", [port]);
        rig.add("orders", [port + 100]);
    }
    let expected: Vec<u16> = (1..=15).chain(116..=120).collect();
    assert_eq!(rig.published("orders"), expected);
}

#[test]
fn holds_end_after_their_time() {
    let mut rig = Rig::with(20);
    rig.drop("orders", 1..=15);
    rig.guard.take_notices();
    let due = rig.guard.due().unwrap();
    assert_eq!(due, rig.now + 3_600_000);
    assert_eq!(rig.pass(3_599_999), Changes::new());
    assert_eq!(rig.pass(1).len(), 1);
    assert_eq!(rig.published("orders"), [16, 17, 18, 19, 20]);
    assert_eq!(rig.guard.due(), None);
    let ended = Notice::Ended {
        scope: Scope::Registry,
        how: Ending::Expired,
        removed: 15,
    };
    assert_eq!(rig.guard.take_notices(), [ended]);
}

#[test]
fn an_operator_releases_one_service_or_all() {
    let mut rig = Rig::with(20);
    rig.add("users", 1..=20);
    rig.pass(3_600_000);
    rig.drop("orders", 1..=15);
    rig.drop("users", 1..=15);
    assert_eq!(rig.held(), 30);
    assert_eq!(rig.guard.release(Some("nobody")), Changes::new());
    assert_eq!(rig.guard.release(Some("orders")).len(), 1);
    assert_eq!(rig.published("orders").len(), 5);
    assert_eq!(rig.published("users").len(), 20);
    assert_eq!(rig.guard.release(None).len(), 1);
    assert_eq!(rig.guard.published(), &rig.mirrored);
    // What was released is accepted: the next one that goes is no mass.
    rig.drop("orders", [16]);
    assert_eq!(rig.published("orders").len(), 4);
}

#[test]
fn drained_and_disabled_instances_are_no_loss() {
    for quiet in [
        |i: &mut Instance| i.weight = Weight::DRAIN,
        |i: &mut Instance| i.health = Health::Disabled("off".into()),
        |i: &mut Instance| i.health = Health::Unhealthy,
    ] {
        let mut rig = Rig::with(20);
        rig.edit("orders", |instances| {
            for port in 1..=15 {
                let mut i = instance("orders", port);
                quiet(&mut i);
                instances.put(i.into());
            }
        });
        rig.tell(Cause::default());
        rig.drop("orders", 1..=15);
        assert_eq!(rig.published("orders").len(), 5);
        assert_eq!(rig.guard.take_notices(), []);
    }
}

#[test]
fn held_instances_are_told_as_degraded_where_that_is_wanted() {
    let mut rig = Rig::new(Config {
        degraded: true,
        ..Config::default()
    });
    rig.add("orders", 1..=20);
    let changes = rig.drop("orders", 1..=15);
    let Some(Touched::Some(sockets)) = changes.get("orders") else {
        panic!("some instances changed");
    };
    assert_eq!(sockets.len(), 15);
    let health = |rig: &Rig, port| {
        let service = &rig.guard.published()["orders"];
        let socket = (IpAddr::from([10, 0, 0, 1]), port);
        service.instances.get(socket).unwrap().health.clone()
    };
    assert_eq!(health(&rig, 1), Health::Degraded);
    assert_eq!(health(&rig, 16), Health::Healthy);
    rig.add("orders", [1]);
    assert_eq!(health(&rig, 1), Health::Healthy);
}

#[test]
fn without_it_everything_passes() {
    let mut rig = Rig::new(Config {
        enabled: false,
        ..Config::default()
    });
    rig.add("orders", 1..=20);
    rig.mirrored = Services::new();
    assert_eq!(rig.tell(whole()).len(), 1);
    assert!(rig.guard.published().is_empty());
}

#[test]
fn what_was_last_known_long_ago_is_held_for_the_rest_of_its_time() {
    let mut rig = Rig::with(20);
    rig.edit("orders", |instances| {
        for port in 1..=15 {
            instances.remove((IpAddr::from([10, 0, 0, 1]), port));
        }
    });
    let known = Some(rig.now - 3_000_000);
    rig.tell(Cause { whole: true, known });
    assert_eq!(rig.held(), 15);
    rig.pass(600_000);
    assert_eq!(rig.held(), 0);
}

#[test]
fn what_was_last_known_before_that_is_believed_to_be_gone_unless_all_is() {
    let known = |rig: &Rig| Cause {
        whole: true,
        known: Some(rig.now - 3_600_000),
    };
    let mut rig = Rig::with(20);
    rig.edit("orders", |instances| {
        for port in 1..=15 {
            instances.remove((IpAddr::from([10, 0, 0, 1]), port));
        }
    });
    rig.tell(known(&rig));
    assert_eq!((rig.held(), rig.published("orders").len()), (0, 5));
    rig.mirrored = Services::new();
    rig.tell(known(&rig));
    assert_eq!(rig.held(), 5);
}

#[test]
fn held_instances_whose_addresses_refuse_connections_are_removed_and_the_others_stay() {
    let mut rig = Rig::with(10);
    rig.drop("orders", 1..=6);
    rig.guard.take_notices();
    let socket = |port| (IpAddr::from([10, 0, 0, 1]), port);
    // Among them one that is registered, one that never was, and a service that is not held.
    let sockets: BTreeSet<_> = [1, 2, 9, 99].map(socket).into();
    let refused = [
        ("orders".into(), sockets),
        ("users".into(), [socket(3)].into()),
    ];
    let gone = rig.guard.refused(&refused.into());
    let touched = Touched::Some([1, 2].map(socket).into());
    assert_eq!(gone, [("orders".into(), touched)].into());
    assert_eq!(rig.published("orders"), [3, 4, 5, 6, 7, 8, 9, 10]);
    assert!(rig.guard.take_notices().is_empty(), "the hold goes on");

    let rest = [("orders".into(), (3..=6).map(socket).collect())];
    rig.guard.refused(&rest.into());
    assert_eq!(rig.published("orders"), [7, 8, 9, 10]);
    let ended = Notice::Ended {
        scope: Scope::Registry,
        how: Ending::Refused,
        removed: 6,
    };
    assert_eq!(rig.guard.take_notices(), [ended]);
    // The loss is accepted: the next one that goes is not held.
    rig.drop("orders", [7]);
    assert_eq!(rig.held(), 0);
}

#[test]
fn a_hold_is_resumed_as_it_was() {
    let mut rig = Rig::with(5);
    let service = Arc::clone(&rig.mirrored["orders"]);
    let held = (3..=12)
        .map(|port| (Arc::new(instance("orders", port)), rig.now - 600_000))
        .collect();
    let changes = rig.guard.resume([(service, 12, held)], None);
    let Some(Touched::Some(sockets)) = changes.get("orders") else {
        panic!("some instances changed");
    };
    // Those that are registered are not held.
    assert_eq!((sockets.len(), rig.held()), (7, 7));
    assert_eq!(rig.published("orders").len(), 12);
    rig.pass(3_000_000);
    assert_eq!(rig.published("orders").len(), 5);
}

/// `orders` with ten that are held with the registry's, and `users` with ten.
fn registry_wide() -> Rig {
    let mut rig = Rig::with(10);
    rig.add("users", 1..=10);
    rig.add("others", 1..=10);
    rig.pass(3_600_000);
    rig.drop("orders", 1..=10);
    assert_eq!(rig.held(), 10);
    assert!(rig.guard.holds().trip.is_some());
    rig.guard.take_notices();
    rig
}

#[test]
fn a_deploy_whose_next_ones_come_first_leaves_none_behind_while_the_registry_is_held() {
    let mut rig = registry_wide();
    for port in 1..=10 {
        rig.add("users", [port + 100]);
        rig.pass(200);
        rig.drop("users", [port]);
        rig.pass(200);
    }
    assert_eq!(rig.published("users"), (101..=110).collect::<Vec<_>>());
    // What it lacks then is held, without the one that was let go last.
    rig.drop("users", [101]);
    assert_eq!(rig.published("users"), (101..=110).collect::<Vec<_>>());
}

#[test]
fn the_registrys_hold_lasts_until_nothing_is_held_though_others_grew() {
    let mut rig = registry_wide();
    rig.add("users", 101..=110);
    assert_eq!(rig.held(), 10);
    assert!(rig.guard.holds().trip.is_some());
    assert_eq!(rig.guard.take_notices(), []);
    // As many are there as there were, so what goes one by one goes.
    rig.pass(11_000);
    rig.add("users", [111]);
    rig.drop("users", [111]);
    assert_eq!(rig.held(), 10);
    rig.add("orders", 1..=10);
    let ended = Notice::Ended {
        scope: Scope::Registry,
        how: Ending::Returned,
        removed: 0,
    };
    assert_eq!(rig.guard.take_notices(), [ended]);
}

#[test]
fn the_end_of_the_registrys_hold_counts_all_that_it_removed() {
    let mut rig = registry_wide();
    rig.pass(1_800_000);
    rig.drop("users", 1..=4);
    assert_eq!(rig.held(), 14);
    rig.pass(1_800_000);
    assert_eq!((rig.held(), rig.guard.take_notices()), (4, vec![]));
    assert_eq!(rig.guard.due(), Some(rig.now + 1_800_000));
    // Its time is over, so it takes in nothing more.
    rig.drop("others", [1]);
    assert_eq!(rig.held(), 4);
    rig.pass(1_800_000);
    let ended = Notice::Ended {
        scope: Scope::Registry,
        how: Ending::Expired,
        removed: 14,
    };
    assert_eq!(rig.guard.take_notices(), [ended]);
}
