//! Departures in any order, at any pace.

use proptest::prelude::*;

use super::{
    tests::{linger, service, tell},
    *,
};

const LAST: i64 = 2_000;

/// What a step registers of each of two services, by bits, and how long after the step before it comes.
type Step = (u8, u8, i64);

fn registered(bits: u8) -> Vec<u8> {
    (0..3).filter(|n| bits & (1 << n) != 0).collect()
}

fn all(a: u8, b: u8) -> Vec<Arc<Service>> {
    let named = [("a", a), ("b", b)].map(|(name, bits)| (name, registered(bits)));
    let there = named.iter().filter(|(_, there)| !there.is_empty());
    there.map(|(name, there)| service(name, there)).collect()
}

fn sockets(services: &Services, name: &str) -> BTreeSet<Socket> {
    let service = services.get(name);
    let instances = service.into_iter().flat_map(|s| s.instances.iter());
    instances.map(|i| i.socket()).collect()
}

proptest! {
    #[test]
    fn what_left_lingers_for_its_time_and_no_longer(
        steps in prop::collection::vec((0..8u8, 0..8u8, 0..60i64), 1..60),
        slow in 1..60i64,
    ) {
        let mut linger = linger();
        let (mut now, mut shown) = (0, Services::new());
        // When each instance was registered last, and when others served or might have returned last.
        let mut seen: BTreeMap<(&str, Socket), Time> = BTreeMap::new();
        for (a, b, after) in steps.into_iter().map(|(a, b, after): Step| (a, b, after * slow)) {
            now += after;
            let mut changes = Changes::new();
            while let Some(due) = linger.due().filter(|due| *due <= now) {
                while let Some((_, ended)) = linger.tick(due) {
                    changes.extend(ended);
                }
            }
            for (name, socket) in seen.keys() {
                let there = sockets(&linger.registered, name).contains(socket);
                if let (true, lingers) = (!there, linger.lingering().get(name, *socket)) {
                    prop_assert!(lingers.is_none_or(|departure| now - departure.since < LAST));
                }
            }
            for (name, touched) in tell(&mut linger, &all(a, b), now) {
                match changes.get_mut(&name) {
                    Some(earlier) => earlier.merge(touched),
                    None => drop(changes.insert(name, touched)),
                }
            }
            for name in ["a", "b"] {
                let is = sockets(&linger.registered, name);
                let with = sockets(linger.services(), name);
                prop_assert!(is.is_subset(&with), "what is registered is passed on");
                for socket in &is {
                    seen.insert((name, *socket), now);
                }
                // One that was there less than its time ago is there, unless others serve.
                let recent = seen.iter().filter(|((of, _), at)| *of == name && now - **at < LAST);
                if is.is_empty() && recent.count() > 0 {
                    prop_assert!(!with.is_empty(), "{name} at {now}");
                }
                let differs = sockets(&shown, name) != with;
                prop_assert!(!differs || changes.contains_key(name), "{name} at {now}");
            }
            shown = linger.services().clone();
        }
        while let Some(due) = linger.due() {
            prop_assert!(due <= now + LAST);
            while linger.tick(due).is_some() {}
        }
        prop_assert!(linger.services().ptr_eq(&linger.registered));
    }
}
