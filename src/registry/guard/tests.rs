//! The guard by example: what trips it, what never does, and how holds end.

use std::net::IpAddr;

use super::{trial::MOMENT, *};
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

    pub fn tell(&mut self, cause: Cause<'_>) -> Changes {
        let before = &self.guard.mirrored;
        let touched = |(name, moved): (Arc<str>, Moves)| {
            let both = before.contains_key(&name) && self.mirrored.contains_key(&name);
            let some = both.then_some(Touched::Some(moved.sockets));
            (name, some.unwrap_or(Touched::All))
        };
        let changes = moves(before, &self.mirrored, cause)
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

    /// What operators hear once the last trips were looked at again.
    fn notices(&mut self) -> Vec<Notice> {
        self.pass(MOMENT);
        self.guard.take_notices()
    }

    /// Finds that these went while nobody looked for so long.
    fn find_lost(&mut self, away: Time, ports: impl IntoIterator<Item = u16>) {
        self.pass(away);
        self.guard.absent(away, self.now, self.now);
        self.edit("orders", |instances| {
            for port in ports {
                instances.remove((IpAddr::from([10, 0, 0, 1]), port));
            }
        });
        self.tell(whole());
    }
}

fn whole() -> Cause<'static> {
    Cause {
        whole: true,
        ..Cause::default()
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
    assert_eq!(rig.guard.take_notices(), [], "not before it lasts");
    assert_eq!(rig.notices(), [tripped(Scope::Registry)]);
    assert_eq!(rig.notices(), []);
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
        present: 40,
        held: 60,
    };
    assert_eq!(rig.notices(), [tripped]);
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
    assert_eq!(rig.guard.take_notices().len(), 1, "at once");
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
    assert_eq!(rig.notices().len(), 1);
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
    let end = rig.now + 3_600_000;
    assert_eq!(rig.guard.due(), Some(rig.now + MOMENT));
    rig.notices();
    assert_eq!(rig.guard.due(), Some(end));
    assert_eq!(rig.pass(end - rig.now - 1), Changes::new());
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
fn what_went_while_nobody_looked_is_held_from_when_it_was_last_seen() {
    let mut rig = Rig::with(20);
    rig.find_lost(11_000, 1..=18);
    assert_eq!(rig.held(), 18);
    rig.pass(3_600_000 - 11_000);
    assert_eq!(rig.held(), 0);
}

#[test]
fn what_went_while_nobody_looked_is_judged_as_if_it_had_been_seen() {
    // Live, one each three seconds, it is never held.
    for (away, held) in [
        (5_000, 7),
        (10_000, 7),
        (14_000, 7),
        (21_000, 0),
        (3_000_000, 0),
    ] {
        let mut rig = Rig::with(10);
        rig.find_lost(away, 1..=7);
        assert_eq!(rig.held(), held, "{away}");
        assert_eq!(rig.published("orders").len(), 3 + held, "{away}");
        assert_eq!(rig.notices().len(), usize::from(held > 0));
    }
    // As many as no scaling down takes away in that time.
    let mut rig = Rig::with(100);
    rig.find_lost(21_000, 1..=70);
    assert_eq!(rig.held(), 70);
}

#[test]
fn what_arrives_piece_by_piece_after_the_process_stood_still_is_judged_together() {
    for (away, held) in [(9_000, 7), (21_000, 0)] {
        let mut rig = Rig::with(10);
        rig.pass(away);
        rig.guard.absent(away, rig.now, rig.now + 2_000);
        for port in 1..=7 {
            rig.drop("orders", [port]);
            rig.pass(20);
        }
        assert_eq!(rig.held(), held, "{away}");
    }
}

#[test]
fn what_went_in_an_absence_does_not_count_again_for_what_goes_after_it() {
    let mut rig = Rig::with(20);
    rig.find_lost(100_000, 1..=8);
    assert_eq!(rig.held(), 0);
    // One counts that may have gone within the last seconds.
    rig.pass(1);
    rig.drop("orders", 9..=11);
    assert_eq!(rig.published("orders").len(), 9);
    rig.pass(1);
    rig.drop("orders", 12..=14);
    assert_eq!(rig.published("orders").len(), 12, "{:?}", rig.held());
}

#[test]
fn what_went_longer_ago_than_a_hold_lasts_is_believed_to_be_gone_unless_all_is() {
    let mut rig = Rig::with(20);
    rig.find_lost(3_600_000, 1..=15);
    assert_eq!((rig.held(), rig.published("orders").len()), (0, 5));
    rig.pass(3_600_000);
    rig.guard.absent(3_600_000, rig.now, rig.now);
    rig.mirrored = Services::new();
    rig.tell(whole());
    assert_eq!(rig.held(), 5);
}

fn resumed(service: &str, target: usize, held: Vec<(Arc<Instance>, Time)>) -> Resumed {
    Resumed {
        service: Arc::new(Service {
            name: service.into(),
            host: service.into(),
            registry: "main".into(),
            instances: Instances::default(),
        }),
        target,
        held,
    }
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
    // The trip is reported with its end: it was not to be known before whether the loss lasts.
    let tripped = Notice::Tripped {
        scope: Scope::Registry,
        peak: 10,
        present: 4,
        held: 6,
    };
    let ended = Notice::Ended {
        scope: Scope::Registry,
        how: Ending::Refused,
        removed: 6,
    };
    assert_eq!(rig.guard.take_notices(), [tripped, ended]);
    // The loss is accepted: the next one that goes is not held.
    rig.drop("orders", [7]);
    assert_eq!(rig.held(), 0);
}

#[test]
fn a_hold_is_resumed_as_it_was() {
    let mut rig = Rig::with(5);
    let held = (3..=12)
        .map(|port| (Arc::new(instance("orders", port)), rig.now - 600_000))
        .collect();
    let now = rig.now;
    let changes = rig
        .guard
        .resume([resumed("orders", 12, held)], None, [], now);
    let Some(Touched::Some(sockets)) = changes.get("orders") else {
        panic!("some instances changed");
    };
    // Those that are registered are not held.
    assert_eq!((sockets.len(), rig.held()), (7, 7));
    assert_eq!(rig.published("orders").len(), 12);
    rig.pass(3_000_000);
    assert_eq!(rig.published("orders").len(), 5);
}

#[test]
fn what_a_former_process_let_go_is_held_with_what_goes_next() {
    let mut rig = Rig::with(7);
    let now = rig.now;
    let gone = |(port, at): (u16, Time)| Gone {
        at,
        service: resumed("orders", 0, Vec::new()).service,
        instance: Arc::new(instance("orders", port)),
    };
    // One of them longer ago than the window, one back.
    let recent = [
        (99, now - 11_000),
        (7, now - 9_000),
        (8, now - 3_000),
        (9, now - 2_000),
    ];
    rig.guard.resume([], None, recent.map(gone), now);
    assert_eq!(rig.published("orders").len(), 7);
    rig.drop("orders", 1..=3);
    let expected: Vec<u16> = (1..=9).collect();
    assert_eq!(rig.published("orders"), expected);
}

/// Processes that each register one address and port for all of these services.
fn fleet(processes: u16, services: u16) -> Rig {
    let mut rig = Rig::new(Config::default());
    for service in 0..services {
        rig.edit(&format!("s{service}"), |instances| {
            for port in 1..=processes {
                instances.put(owned("s", port, i64::from(port)));
            }
        });
    }
    rig.tell(Cause::default());
    rig.pass(3_600_000);
    rig
}

fn owned(service: &str, port: u16, session: i64) -> Arc<Instance> {
    let mut instance = instance(service, port);
    instance.origin.session = session;
    Arc::new(instance)
}

impl Rig {
    fn end_process(&mut self, port: u16) {
        for service in self.mirrored.keys().cloned().collect::<Vec<_>>() {
            self.drop(&service, [port]);
        }
    }
}

#[test]
fn a_process_that_ends_in_order_is_one_loss_however_many_interfaces_it_had() {
    let mut rig = fleet(3, 20);
    rig.end_process(1);
    assert_eq!((rig.held(), rig.notices()), (0, vec![]));
    assert_eq!(rig.published("s7"), [2, 3]);
    // Ten of thirty are many processes.
    let mut rig = fleet(30, 20);
    (1..=10).for_each(|port| rig.end_process(port));
    assert_eq!((rig.held(), rig.notices().len()), (200, 1));
    // Five large ones of many are no share of all.
    let mut rig = fleet(5, 60);
    rig.edit("small", |instances| {
        (10..=100).for_each(|port| instances.put(owned("small", port, i64::from(port))));
    });
    rig.tell(Cause::default());
    rig.pass(3_600_000);
    for service in 0..55 {
        rig.drop(&format!("s{service}"), 1..=4);
    }
    assert_eq!(rig.notices(), []);
}

#[test]
fn a_session_that_ends_with_many_ports_of_a_host_is_one_loss_and_a_registrar_of_many_hosts_is_not()
{
    for (hosts, held) in [(false, 0), (true, 12)] {
        let mut rig = Rig::new(Config::default());
        rig.edit("orders", |instances| {
            for n in 1..=20u8 {
                let mut i = instance("orders", u16::from(n));
                i.origin.session = if n <= 12 { 7 } else { i64::from(n) };
                if hosts {
                    i.address = IpAddr::from([10, 0, 1, n]);
                }
                instances.put(Arc::new(i));
            }
        });
        rig.tell(Cause::default());
        rig.pass(3_600_000);
        rig.edit("orders", |instances| {
            let all: Vec<_> = instances.iter().take(12).map(|i| i.socket()).collect();
            for socket in all {
                instances.remove(socket);
            }
        });
        rig.tell(Cause::default());
        assert_eq!(rig.held(), held);
        rig.notices();
        assert_eq!(rig.held(), held);
    }
}

#[test]
fn a_registry_whose_few_processes_all_go_at_once_is_held() {
    let mut rig = fleet(3, 20);
    rig.mirrored.clear();
    rig.tell(Cause::default());
    assert_eq!((rig.held(), rig.notices().len()), (60, 1));
    // The last process of all may go.
    let mut rig = fleet(1, 20);
    rig.end_process(1);
    assert_eq!((rig.held(), rig.notices()), (0, vec![]));
}

#[test]
fn two_that_crash_while_the_others_register_again_are_no_mass() {
    let mut rig = fleet(6, 1);
    rig.drop("s0", 1..=2);
    // A rule has each of the others delete its znode and create another.
    rig.drop("s0", 3..=6);
    assert_eq!(rig.published("s0").len(), 6, "nobody is missed meanwhile");
    rig.pass(5);
    rig.edit("s0", |instances| {
        (3..=6).for_each(|port| instances.put(owned("s", port, i64::from(port))));
    });
    rig.tell(Cause::default());
    assert_eq!(rig.held(), 2);
    assert_eq!(rig.notices(), []);
    assert_eq!((rig.held(), rig.published("s0")), (0, vec![3, 4, 5, 6]));
    assert_eq!(rig.guard.published(), &rig.mirrored);
    // Whose sessions ended and came back with others was lost.
    rig.pass(3_600_000);
    rig.drop("s0", 3..=6);
    rig.add("s0", 3..=4);
    assert_eq!(rig.published("s0"), [3, 4], "too few");
}

#[test]
fn sessions_that_end_and_return_as_others_leave_the_rest_held() {
    let mut rig = fleet(20, 1);
    rig.drop("s0", 1..=12);
    rig.edit("s0", |instances| {
        (1..=9).for_each(|port| instances.put(owned("s", port, i64::from(port) + 100)));
    });
    rig.tell(Cause::default());
    assert_eq!((rig.notices().len(), rig.held()), (1, 3));
}

#[test]
fn what_is_back_within_a_moment_was_never_told() {
    let mut rig = Rig::with(20);
    rig.drop("orders", 1..=15);
    rig.pass(500);
    rig.add("orders", 1..=15);
    assert_eq!((rig.notices(), rig.held()), (vec![], 0));
    // An operator who lets it go in that moment hears of both.
    rig.drop("orders", 1..=15);
    rig.guard.release(None);
    let told = rig.notices();
    assert!(
        matches!(
            &told[..],
            [
                Notice::Tripped { held: 15, .. },
                Notice::Ended { removed: 15, .. }
            ]
        ),
        "{told:?}"
    );
}

#[test]
fn addresses_behind_a_znode_that_is_still_there_are_no_loss() {
    let mut rig = Rig::with(12);
    rig.edit("orders", |instances| {
        (3..=12).for_each(|port| instances.remove((IpAddr::from([10, 0, 0, 1]), port)));
    });
    rig.tell(Cause {
        whole: false,
        stands: &|_| true,
    });
    assert_eq!((rig.held(), rig.published("orders").len()), (0, 2));
    assert_eq!(rig.notices(), []);
}

impl Rig {
    fn lapse(&mut self, ports: impl IntoIterator<Item = u16>) -> Changes {
        self.edit("orders", |instances| {
            for port in ports {
                let mut lapsed = instance("orders", port);
                lapsed.health = Health::lapsed();
                instances.put(Arc::new(lapsed));
            }
        });
        self.tell(Cause::default())
    }

    fn taking(&self) -> usize {
        let orders = &self.guard.published()["orders"];
        orders
            .instances
            .iter()
            .filter(|i| i.takes_requests())
            .count()
    }
}

#[test]
fn lapses_that_come_all_at_once_are_held_and_others_are_not() {
    let mut rig = Rig::with(10);
    for port in 1..=3 {
        rig.lapse([port]);
        rig.pass(11_000);
    }
    assert_eq!((rig.taking(), rig.held()), (7, 0));
    assert_eq!(rig.lapse(4..=9), Changes::new());
    assert_eq!((rig.taking(), rig.held()), (7, 6));
    assert_eq!(rig.notices().len(), 1);
    // Written again, deleted, and held until the end.
    rig.add("orders", [4]);
    rig.drop("orders", [5]);
    assert_eq!((rig.taking(), rig.held()), (7, 5));
    rig.pass(3_600_000);
    assert_eq!((rig.taking(), rig.held()), (2, 0));
    assert_eq!(rig.guard.published(), &rig.mirrored);
}

#[test]
fn a_registry_that_empties_after_the_ensemble_returned_is_held_however_few_there_were() {
    for ports in [&[&[1, 2, 3][..]][..], &[&[1], &[2], &[3]], &[&[1, 2], &[3]]] {
        let mut rig = Rig::with(3);
        rig.guard.returned(rig.now);
        for some in ports {
            rig.pass(15_000);
            rig.drop("orders", some.iter().copied());
        }
        assert_eq!((rig.published("orders"), rig.held()), (vec![1, 2, 3], 3));
        let told = rig.guard.take_notices();
        assert!(
            matches!(
                &told[..],
                [Notice::Tripped {
                    peak: 3,
                    held: 3,
                    ..
                }]
            ),
            "{told:?}"
        );
        rig.add("orders", 1..=3);
        assert_eq!(rig.guard.take_notices().len(), 1);
    }
}

#[test]
fn long_after_the_ensemble_returned_the_last_one_may_go() {
    let mut rig = Rig::with(2);
    rig.guard.returned(rig.now);
    rig.drop("orders", [1]);
    rig.pass(61_000);
    rig.drop("orders", [2]);
    assert_eq!((rig.published("orders"), rig.notices()), (vec![], vec![]));
    // And what was replaced before does not come back.
    let mut rig = Rig::with(2);
    rig.guard.returned(rig.now);
    rig.drop("orders", [1]);
    rig.add("orders", [3]);
    rig.drop("orders", 2..=3);
    assert_eq!(rig.published("orders").len(), 2);
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
    assert_eq!(rig.notices().len(), 1);
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
    rig.pass(1_800_000 - MOMENT);
    assert_eq!((rig.held(), rig.guard.take_notices()), (4, vec![]));
    assert_eq!(rig.guard.due(), Some(rig.now + 1_800_000 + MOMENT));
    // Its time is over, so it takes in nothing more.
    rig.drop("others", [1]);
    assert_eq!(rig.held(), 4);
    rig.pass(1_800_000 + MOMENT);
    let ended = Notice::Ended {
        scope: Scope::Registry,
        how: Ending::Expired,
        removed: 14,
    };
    assert_eq!(rig.guard.take_notices(), [ended]);
}
