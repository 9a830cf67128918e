//! What is held over any order of losses, returns, writes, kills and starts, against what a process that is never
//! killed would serve.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::registry::{
    Config as Registry, Event, FormatChoice, Former, Guarded, Layout, Moment, Shape, guard::Config,
};

const HOLD: Time = 60_000;

#[derive(Clone, Debug)]
enum Step {
    /// Registers, under the name of the first number, the address of the second one.
    Put(Vec<(u8, u8)>),
    Delete(Vec<u8>),
    Pass(Time),
    /// The state is written, and the process may be killed then.
    Write {
        kill: bool,
    },
    /// The process is killed, with the state that was written last.
    Kill {
        away: Time,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let names = || prop::collection::vec(0..24u8, 0..12);
    let put = prop::collection::vec((0..24u8, 0..40u8), 0..12);
    prop_oneof![
        4 => put.prop_map(Step::Put),
        6 => names().prop_map(Step::Delete),
        4 => prop_oneof![0..3_000i64, 0..30_000i64].prop_map(Step::Pass),
        4 => any::<bool>().prop_map(|kill| Step::Write { kill }),
        2 => (0..5_000i64).prop_map(|away| Step::Kill { away }),
    ]
}

/// A process with its tree, and the file that it wrote last.
struct Rig {
    tree: std::collections::BTreeMap<u8, (u8, i64)>,
    guarded: Guarded,
    recorder: Recorder,
    file: Vec<u8>,
    now: Time,
    xid: i64,
}

fn identity() -> Identity {
    Identity {
        name: "main".into(),
        connect: "zk:2181".into(),
        root: "/services".into(),
        format: "auto".into(),
    }
}

fn guarded() -> Guarded {
    let config = Registry {
        name: "main".to_owned(),
        root: "/services".to_owned(),
        layout: Layout::flat(),
        format: FormatChoice::Auto,
        priority: 0,
        required: true,
        ttl: None,
        shape: Shape::default(),
    };
    let guard = Config {
        minimum: 3,
        hold_for: std::time::Duration::from_millis(HOLD.unsigned_abs()),
        ..Config::default()
    };
    Guarded::new(config, guard)
}

fn stamp(time: Time) -> Stamp {
    Stamp {
        boot: [1; 16],
        at: Moment::from(time),
    }
}

impl Rig {
    fn new() -> Self {
        let mut rig = Self {
            tree: std::collections::BTreeMap::new(),
            guarded: guarded(),
            recorder: Recorder::default(),
            file: Vec::new(),
            now: 1_000_000,
            xid: 0,
        };
        rig.tell(Vec::new(), true);
        rig.write();
        rig
    }

    fn event(name: u8, (address, xid): (u8, i64)) -> Event {
        Event::Put {
            path: format!("orders/i{name}").into(),
            data: Bytes::from(format!("10.0.0.{address}:80")),
            stat: Stat {
                czxid: xid,
                mzxid: xid,
                ..Stat::default()
            },
        }
    }

    fn tell(&mut self, events: Vec<Event>, complete: bool) {
        let noted = self.recorder.note(&events);
        let batch = Batch {
            events,
            complete,
            ..Batch::default()
        };
        self.guarded.apply(batch, self.now);
        self.guarded.tick(self.now);
        let guarded = &self.guarded;
        self.recorder.judge(noted, |znode| guarded.is_bad(znode));
    }

    fn write(&mut self) {
        let kept = Kept {
            holds: self.guarded.holds().clone(),
            recent: self.guarded.recent().clone(),
            ..Kept::default()
        };
        let picture = self.recorder.picture(kept);
        self.file = codec::encode(&identity(), &stamp(self.now), &picture);
    }

    /// Begins with what was written last, and is told what became of it meanwhile.
    fn start(&mut self) {
        let (_, then, restored) = codec::decode(&self.file).unwrap();
        let restored = restored.since(&then, &stamp(self.now));
        self.guarded = guarded();
        self.recorder = restored.recorder();
        let known: std::collections::BTreeMap<_, _> = restored.versions().collect();
        let former = Former {
            away: restored.away,
            replay: restored.replay(),
            held: restored.held,
            trip: restored.trip,
            recent: restored.recent,
            addresses: Addresses::new(),
        };
        self.guarded.restore(former, self.now);
        let path = |name: &u8| Arc::<str>::from(format!("orders/i{name}"));
        let there: Vec<_> = self.tree.keys().map(path).collect();
        let gone = known.keys().filter(|path| !there.contains(path));
        let gone = gone.map(|path| Event::Delete {
            path: Arc::clone(path),
        });
        let new = (self.tree.iter())
            .filter(|(name, (_, xid))| known.get(&path(name)).is_none_or(|s| s.mzxid != *xid))
            .map(|(name, znode)| Self::event(*name, *znode));
        let events = gone.chain(new).collect();
        self.tell(events, true);
    }

    fn served(&self) -> Vec<(String, bool)> {
        let services = self.guarded.view().services;
        let all = services
            .values()
            .flat_map(|service| service.instances.iter());
        let holds = self.guarded.holds();
        all.map(|i| {
            (
                i.address.to_string(),
                holds.get("orders", i.socket()).is_some(),
            )
        })
        .collect()
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Put(all) => {
                let mut events = Vec::new();
                for (name, address) in all {
                    self.xid += 1;
                    self.tree.insert(*name, (*address, self.xid));
                    events.push(Self::event(*name, (*address, self.xid)));
                }
                self.tell(events, false);
            }
            Step::Delete(names) => {
                let gone = names.iter().filter(|name| self.tree.remove(name).is_some());
                let gone = gone.map(|name| Event::Delete {
                    path: format!("orders/i{name}").into(),
                });
                let events = gone.collect();
                self.tell(events, false);
            }
            Step::Pass(time) => {
                self.now += time;
                self.guarded.tick(self.now);
            }
            Step::Write { kill } => {
                self.write();
                if *kill {
                    self.start();
                }
            }
            Step::Kill { away } => {
                self.now += away;
                self.start();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_is_held_survives_any_order_of_losses_writes_kills_and_starts(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut rig = Rig::new();
        for step in &steps {
            let before = rig.served();
            rig.take(step);
            let after = rig.served();
            // What is registered is served as it is.
            for (address, _) in rig.tree.values() {
                let address = format!("10.0.0.{address}");
                prop_assert!(after.iter().any(|(a, held)| *a == address && !held), "{address}");
            }
            if let Step::Write { kill: true } = step {
                prop_assert_eq!(&before, &after, "a restart changed what is served");
            }
            if let Step::Kill { .. } = step {
                // Nothing that was written as held is forgotten, but for what was replaced.
                let (.., restored) = codec::decode(&rig.file).unwrap();
                for resumed in restored.held {
                    let over = |since: Time| since + HOLD <= rig.now;
                    let due = resumed.held.iter().filter(|(_, since)| !over(*since)).count();
                    let registered = after.iter().filter(|(_, held)| !held).count();
                    let lacks = resumed.target.saturating_sub(registered);
                    let held = after.len() - registered;
                    let back = resumed.held.iter().filter(|(i, _)| {
                        after.iter().any(|(a, held)| !held && *a == i.address.to_string())
                    });
                    prop_assert!(held >= due.saturating_sub(back.count()).min(lacks));
                }
            }
        }
        rig.now += 2 * HOLD;
        rig.guarded.tick(rig.now);
        prop_assert!(rig.guarded.holds().is_empty());
    }
}
