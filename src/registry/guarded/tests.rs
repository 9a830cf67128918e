//! A registry under guard by example: what is restored, what is bad, and what is lost.

use bytes::Bytes;

use super::*;
use crate::{
    model::{Instance, Instances, Service},
    registry::{FormatChoice, Layout, Shape, Stat, guard::Trip},
};

const HOUR: Time = 3_600_000;

fn guarded() -> Guarded {
    let config = Config {
        name: "main".to_owned(),
        root: "/services".to_owned(),
        layout: Layout::flat(),
        format: FormatChoice::Auto,
        priority: 0,
        required: true,
        ttl: None,
        shape: Shape::default(),
    };
    Guarded::new(config, guard::Config::default())
}

fn put(n: u8) -> Event {
    Event::Put {
        path: format!("orders/{n}").into(),
        data: Bytes::from(format!("10.0.0.{n}:80")),
        stat: Stat::default(),
    }
}

fn batch(events: impl IntoIterator<Item = Event>, complete: bool) -> Batch {
    Batch {
        events: events.into_iter().collect(),
        complete,
        ..Batch::default()
    }
}

fn instance(n: u8) -> Instance {
    let mut former = guarded();
    former.apply(batch([put(n)], true), 0);
    let services = former.view().services;
    let orders = services.get("orders").unwrap();
    Instance::clone(orders.instances.iter().next().unwrap())
}

fn orders() -> Arc<Service> {
    Arc::new(Service {
        name: "orders".into(),
        host: "orders".into(),
        registry: "main".into(),
        instances: Instances::default(),
    })
}

/// Ten instances, of which the first five were gone and held since then.
fn former(away: Time, since: Time) -> Former {
    Former {
        away,
        replay: batch((6..=10).map(put), false),
        held: vec![Resumed {
            service: orders(),
            target: 10,
            held: (1..=5).map(|n| (Arc::new(instance(n)), since)).collect(),
        }],
        trip: Some(Trip { since, target: 10 }),
        recent: Vec::new(),
        addresses: Addresses::new(),
    }
}

fn served(guarded: &Guarded) -> usize {
    let view = guarded.view();
    view.services
        .get("orders")
        .map_or(0, |orders| orders.instances.len())
}

#[test]
fn what_was_restored_is_served_when_it_is_told_to_be_or_compared() {
    let mut guarded = guarded();
    let now = 10 * HOUR;
    guarded.restore(former(0, now - 60_000), now);
    assert_eq!((served(&guarded), guarded.holds().held()), (10, 5));
    assert!(!guarded.loaded());
    assert!(guarded.serve_restored() && guarded.loaded() && !guarded.serve_restored());
    guarded.apply(batch([], true), now);
    assert!(guarded.loaded() && guarded.restored().is_none());
    assert_eq!((served(&guarded), guarded.holds().held()), (10, 5));
}

#[test]
fn a_first_load_that_has_nothing_takes_nothing_of_what_was_restored_away() {
    let mut guarded = guarded();
    let now = 10 * HOUR;
    // The process was away for long, and so is believed in nothing else.
    guarded.restore(former(5 * HOUR, now - 6 * HOUR), now);
    assert_eq!((served(&guarded), guarded.holds().held()), (5, 0));
    let gone = Event::Delete {
        path: "orders".into(),
    };
    guarded.apply(batch([gone], true), now);
    assert_eq!((served(&guarded), guarded.holds().held()), (5, 5));
}

#[test]
fn what_went_while_no_process_ran_is_judged_by_how_long_that_was() {
    for (away, left) in [(5_000, 10), (15_000, 10), (60_000, 1), (2 * HOUR, 1)] {
        let mut guarded = guarded();
        let now = 10 * HOUR;
        let former = Former {
            replay: batch((1..=10).map(put), false),
            held: Vec::new(),
            trip: None,
            ..former(away, now)
        };
        guarded.restore(former, now);
        let gone = (2..=10).map(|n: u8| Event::Delete {
            path: format!("orders/{n}").into(),
        });
        guarded.apply(batch(gone, true), now);
        assert_eq!(served(&guarded), left, "{away}");
    }
}

/// Ten instances are there, and then nobody looks for so long; then it is seen that only three are left.
fn away(away: Time, stale_at: impl Fn(&mut Guarded, Time)) -> Guarded {
    let mut guarded = guarded();
    guarded.apply(batch((1..=10).map(put), true), HOUR);
    stale_at(&mut guarded, HOUR + away);
    let gone = (1..=7).map(|n: u8| Event::Delete {
        path: format!("orders/{n}").into(),
    });
    guarded.apply(batch(gone, true), HOUR + away + 200);
    guarded
}

fn stale() -> Batch {
    Batch {
        stale: true,
        ..Batch::default()
    }
}

#[test]
fn what_went_without_a_connection_counts_in_full() {
    for time in [4_000, 25_000] {
        let guarded = away(time, |guarded, now| {
            guarded.apply(stale(), now - time);
        });
        assert_eq!(served(&guarded), 10, "{time}");
    }
}

#[test]
fn what_went_while_the_process_stood_still_is_judged_by_how_long_that_was_though_the_session_ended()
{
    for (time, left) in [(4_000, 10), (25_000, 3)] {
        let guarded = away(time, |guarded, now| {
            guarded.stood_still(time, now.into());
            guarded.apply(stale(), now + 100);
        });
        assert_eq!(served(&guarded), left, "{time}");
    }
}

#[test]
fn sessions_that_end_after_the_ensemble_returned_empty_no_registry() {
    for (returned, left) in [(true, 2), (false, 0)] {
        let mut guarded = guarded();
        guarded.apply(batch((1..=2).map(put), true), HOUR);
        if returned {
            guarded.apply(stale(), 2 * HOUR);
            assert_eq!(guarded.unseen().map(|at| at.time), Some(2 * HOUR));
            guarded.apply(batch([], true), 2 * HOUR + 3_000);
            assert!(guarded.unseen().is_none());
        }
        for n in 1..=2 {
            let gone = Event::Delete {
                path: format!("orders/{n}").into(),
            };
            guarded.apply(batch([gone], false), 2 * HOUR + 6_000);
        }
        assert_eq!(served(&guarded), left);
    }
}

#[test]
fn addresses_that_a_name_no_longer_resolves_to_are_no_loss() {
    let mut guarded = guarded();
    let named = r#"{"host": "db.example", "port": 80}"#;
    guarded.apply(batch([write("orders/db", named, 1)], true), HOUR);
    let addresses = |most: u8| Ok((1..=most).map(|n| [10, 0, 0, n].into()).collect());
    guarded.resolved("db.example", addresses(12), HOUR);
    assert_eq!(served(&guarded), 12);
    guarded.resolved("db.example", addresses(2), 2 * HOUR);
    assert_eq!((served(&guarded), guarded.holds().held()), (2, 0));
    guarded.tick(2 * HOUR + 5_000);
    assert!(guarded.take_notices().is_empty());
}

fn write(path: &str, data: &str, czxid: i64) -> Event {
    Event::Put {
        path: path.into(),
        data: Bytes::copy_from_slice(data.as_bytes()),
        stat: Stat {
            czxid,
            ..Stat::default()
        },
    }
}

#[test]
fn only_what_cannot_be_read_as_it_stands_is_bad() {
    let mut guarded = guarded();
    let named = r#"{"host": "db.example", "port": 80}"#;
    let events = [
        write("orders", "", 1),
        write("orders/named", named, 2),
        write("orders/older", "10.0.0.1:80", 3),
        write("orders/newer", "10.0.0.1:80", 4),
        write("orders/secret", "10.0.0.2:80", 5),
        write("orders/bad", "no address", 6),
        // Outranked, so that nothing of it is listed.
        write("Orders", "", 7),
        write("Orders/bad", "no address", 8),
        Event::Unreadable {
            path: "orders/secret".into(),
        },
    ];
    guarded.apply(batch(events, true), 0);
    guarded.resolved("db.example", Err("no such name".to_owned()), 0);
    let rejected = guarded.view().rejected;
    for listed in ["named", "older", "secret", "bad"] {
        assert!(
            rejected.contains_key(&format!("/services/orders/{listed}")),
            "{listed}"
        );
    }
    let all = [
        "orders",
        "orders/named",
        "orders/older",
        "orders/newer",
        "orders/secret",
        "orders/bad",
    ];
    let bad = all
        .into_iter()
        .chain(["Orders/bad"])
        .filter(|path| guarded.is_bad(path));
    assert_eq!(bad.collect::<Vec<_>>(), ["orders/bad", "Orders/bad"]);
}

#[test]
fn what_went_by_a_host_name_is_held_and_compared_over_a_restart() {
    let named = |n: u8| {
        let data = format!(r#"{{"host": "db-{n}.example", "port": 80}}"#);
        write(&format!("orders/{n}"), &data, i64::from(n))
    };
    let name = |n: u8| Arc::<str>::from(format!("db-{n}.example"));
    let mut before = guarded();
    before.apply(batch((1..=10).map(named), true), HOUR);
    for n in 1..=10 {
        before.resolved(&name(n), Ok(vec![[10, 0, 0, n].into()]), HOUR);
    }
    let gone = |n: u8| Event::Delete {
        path: format!("orders/{n}").into(),
    };
    before.apply(batch((1..=6).map(gone), false), 2 * HOUR);
    assert_eq!((served(&before), before.holds().held()), (10, 6));

    let mut after = guarded();
    let since = 2 * HOUR;
    let restored = Former {
        replay: batch((7..=10).map(named), false),
        held: before.holds().resumable().collect(),
        addresses: before.addresses().clone(),
        ..former(0, since)
    };
    after.restore(restored, since);
    assert_eq!((served(&after), after.holds().held()), (10, 6));
    // No name is resolved yet, or can be.
    after.apply(batch([gone(7)], true), since);
    after.resolved(&name(8), Err("no answer".to_owned()), since);
    assert_eq!((served(&after), after.holds().held()), (10, 7));
    assert_eq!(after.waits_for_hosts(), 0);
}

#[test]
fn times_that_lie_ahead_hold_no_longer_than_those_of_now() {
    let mut guarded = guarded();
    let now = 10 * HOUR;
    guarded.restore(former(-5 * HOUR, now + 5 * HOUR), now);
    assert_eq!((served(&guarded), guarded.holds().held()), (10, 5));
    assert_eq!(guarded.restored().unwrap().known, now);
    let gone = (6..=9).map(|n: u8| Event::Delete {
        path: format!("orders/{n}").into(),
    });
    guarded.apply(batch(gone, true), now);
    assert_eq!(guarded.holds().held(), 9);
    guarded.tick(now + HOUR);
    assert_eq!((served(&guarded), guarded.holds().held()), (1, 0));
}

#[test]
fn a_step_of_the_wall_clock_changes_nothing_that_is_served() {
    for step in [2 * HOUR, -2 * HOUR] {
        let mut guarded = guarded();
        let at = |time: Time, step: Time| Moment {
            time,
            wall: 1_000 * HOUR + time + step,
        };
        let warming = |n: u8, czxid| {
            let since = 1_000 * HOUR;
            let url = format!(
                "dubbo%3A%2F%2F10.0.0.{n}%3A80%2Fa%3Fwarmup%3D600000%26timestamp%3D{since}"
            );
            write(&format!("orders/{url}"), "", czxid)
        };
        guarded.apply(batch((1..=10).map(put), true), at(0, 0));
        guarded.apply(batch([warming(11, 7)], false), at(0, 0));
        let gone = (1..=6).map(|n: u8| Event::Delete {
            path: format!("orders/{n}").into(),
        });
        guarded.apply(batch(gone, false), at(1_000, 0));
        assert_eq!(guarded.holds().held(), 6);
        let weights = |guarded: &Guarded| {
            let services = guarded.view().services;
            let all = services.values().flat_map(|s| s.instances.iter());
            let weights: Vec<_> = all.map(|i| (i.port, i.weight)).collect();
            weights
        };
        let before = weights(&guarded);
        guarded.apply(batch([warming(11, 7), put(10)], false), at(2_000, step));
        guarded.tick(2_000);
        assert_eq!(guarded.holds().held(), 6);
        assert_eq!(weights(&guarded), before);
        guarded.tick(1_000 + HOUR);
        assert_eq!(guarded.holds().held(), 0);
    }
}

#[test]
fn what_others_know_of_a_name_is_remembered_too() {
    let mut guarded = guarded();
    let found = Ok(vec![[10, 0, 0, 1].into()]);
    guarded.knows_hosts(
        [
            (Arc::<str>::from("db"), found.clone()),
            (Arc::from("else"), found),
        ]
        .into_iter()
        .collect(),
    );
    let named = r#"{"host": "db", "port": 80}"#;
    guarded.apply(batch([write("orders/1", named, 1)], true), 0);
    assert_eq!(served(&guarded), 1);
    let known: Vec<_> = guarded.addresses().keys().map(|name| &**name).collect();
    assert_eq!(known, ["db"]);
}
