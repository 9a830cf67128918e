//! States as bytes: what comes back, and what never does.

use std::net::Ipv6Addr;

use proptest::prelude::*;

use super::*;
use crate::{
    model::{Health, Instance, Metadata, Origin, Service, Touched, Weight},
    registry::{
        Changes,
        guard::{Cause, Config, Guard, Services},
    },
};

fn identity() -> Identity {
    Identity {
        name: "main".into(),
        connect: "zk-1:2181,zk-2:2181/mesh".into(),
        root: "/services".into(),
        format: "auto".into(),
    }
}

fn any_stat() -> impl Strategy<Value = Stat> {
    any::<[i64; 5]>().prop_map(|[czxid, mzxid, ctime, mtime, ephemeral_owner]| Stat {
        czxid,
        mzxid,
        ctime,
        mtime,
        ephemeral_owner,
    })
}

fn any_data() -> impl Strategy<Value = Box<[u8]>> {
    prop::collection::vec(any::<u8>(), 0..20).prop_map(Vec::into_boxed_slice)
}

fn any_picture() -> impl Strategy<Value = Picture> {
    let good = prop::option::of((any_stat(), any_data()).prop_map(Box::new));
    let znode =
        (any_stat(), any_data(), any::<bool>(), good).prop_map(|(stat, data, bad, good)| {
            Arc::new(Znode {
                stat,
                data,
                bad,
                good,
            })
        });
    let znodes = prop::collection::btree_map("[aä]{1,2}(/[bü]{1,3})?", znode, 0..12);
    let addresses = prop::collection::vec(any::<IpAddr>(), 0..3);
    let names = prop::collection::btree_map("[a-c.]{0,3}", addresses, 0..4);
    (znodes, names).prop_map(|(znodes, names)| Picture {
        znodes: (znodes.into_iter())
            .map(|(path, znode)| (Arc::<str>::from(path), znode))
            .collect(),
        kept: Kept {
            addresses: (names.into_iter())
                .map(|(name, addresses)| (Arc::<str>::from(name), Arc::<[IpAddr]>::from(addresses)))
                .collect(),
            ..Kept::default()
        },
    })
}

/// Five of six instances held, one of them on IPv6, and one that went after them and was not held.
fn holding() -> Picture {
    let instance = |port: u16| {
        let address = if port == 3 {
            Ipv6Addr::LOCALHOST.into()
        } else {
            [10, 0, 0, 1].into()
        };
        Arc::new(Instance {
            own_id: (port == 2).then(|| "i-2".into()),
            address,
            port,
            weight: Weight::new(u32::from(port) * 100).unwrap(),
            zone: (port == 4).then(|| "z".into()),
            health: Health::Healthy,
            priority: 0,
            metadata: match port {
                5 => BTreeMap::from([("version".to_owned(), "2".to_owned())]).into(),
                _ => Metadata::default(),
            },
            origin: Origin {
                source: Arc::new(Source {
                    registry: "main".into(),
                    root: "/services".into(),
                }),
                znode: format!("a/{port}").into(),
                format: "plain",
                czxid: 3,
                mzxid: 4,
                session: -5,
            },
        })
    };
    let services = |ports: std::ops::RangeInclusive<u16>| {
        let service = Service {
            name: "a".into(),
            host: "a".into(),
            registry: "main".into(),
            instances: ports.map(instance).collect(),
        };
        Services::from_iter([(Arc::from("a"), Arc::new(service))])
    };
    let mut guard = Guard::new(Config::default());
    let changed = || Changes::from([("a".into(), Touched::All)]);
    guard.apply(&services(1..=6), changed(), 1_000, Cause::default());
    guard.apply(&services(6..=6), changed(), 2_000, Cause::default());
    let znode = Znode {
        stat: Stat::default(),
        data: (*b"there").into(),
        bad: false,
        good: None,
    };
    let instance = instance(9);
    let service = Arc::clone(&guard.holds().services["a"].service);
    Picture {
        znodes: OrdMap::unit(Arc::from("a/6"), Arc::new(znode)),
        kept: Kept {
            holds: guard.holds().clone(),
            recent: [Gone {
                at: 3_000,
                service,
                instance,
            }]
            .into_iter()
            .collect(),
            addresses: Addresses::unit("db".into(), [IpAddr::from([10, 0, 0, 1])].into()),
            unseen: None,
        },
    }
}

fn stamp_of(time: i64) -> Stamp {
    Stamp {
        boot: [7; 16],
        at: time.into(),
    }
}

#[test]
fn what_is_held_and_what_went_lately_is_kept_as_it_was_served() {
    let picture = holding();
    let (_, stamp, restored) = decode(&encode(&identity(), &stamp_of(7), &picture)).unwrap();
    assert_eq!(stamp, stamp_of(7));
    let holds = &picture.kept.holds;
    assert_eq!(restored.trip, holds.trip);
    let bare = |mut resumed: Resumed| {
        Arc::make_mut(&mut resumed.service).instances = Instances::default();
        resumed
    };
    let held: Vec<_> = holds.resumable().map(bare).collect();
    assert_eq!((held.len(), held[0].held.len()), (1, 5));
    assert_eq!(restored.held, held);
    let [gone] = &restored.recent[..] else {
        panic!("one went lately");
    };
    assert_eq!((gone.at, gone.instance.port), (3_000, 9));
}

#[test]
fn times_are_those_of_the_clock_that_reads_them() {
    let read = |now: Stamp| {
        let (_, stamp, restored) =
            decode(&encode(&identity(), &stamp_of(10_000), &holding())).unwrap();
        let restored = restored.since(&stamp, &now);
        (
            restored.away,
            restored.trip.unwrap().since,
            restored.recent[0].at,
        )
    };
    // The machine went on, whatever its wall clock says.
    let mut now = stamp_of(15_000);
    now.at.wall = 99_000_000;
    assert_eq!(read(now), (5_000, 2_000, 3_000));
    // It was started again: eight seconds were left behind, and a minute is gone by the wall clock.
    let now = Stamp {
        boot: [8; 16],
        at: Moment {
            time: 500,
            wall: 70_000,
        },
    };
    assert_eq!(read(now), (60_000, 500 - 68_000, 500 - 67_000));
}

#[test]
fn the_stamp_can_be_written_alone() {
    let mut bytes = encode(&identity(), &stamp_of(7), &holding());
    bytes[STAMP].copy_from_slice(&stamp(&stamp_of(-9)));
    assert_eq!(decode(&bytes).unwrap().1, stamp_of(-9));
}

#[test]
fn another_version_is_told_apart_from_a_broken_file() {
    let mut bytes = encode(&identity(), &stamp_of(7), &Picture::default());
    bytes[MAGIC.len()] = 9;
    assert_eq!(decode(&bytes).unwrap_err(), DecodeError::Version(9));
    assert_eq!(decode(b"{}").unwrap_err(), DecodeError::Foreign);
    assert_eq!(decode(b"").unwrap_err(), DecodeError::Foreign);
}

#[test]
fn a_cut_or_changed_file_is_refused_wherever_it_is() {
    let bytes = encode(&identity(), &stamp_of(7), &holding());
    for end in 0..bytes.len() {
        assert!(decode(&bytes[..end]).is_err(), "{end}");
    }
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        assert!(decode(&changed).is_err(), "{at}");
    }
}

proptest! {
    #[test]
    fn a_state_reads_back_as_it_was(picture in any_picture(), written in any::<i64>()) {
        let bytes = encode(&identity(), &stamp_of(written), &picture);
        let (of, stamp, restored) = decode(&bytes).unwrap();
        prop_assert_eq!(of, identity());
        prop_assert_eq!(stamp, stamp_of(written));
        prop_assert_eq!(restored.picture.znodes, picture.znodes);
        prop_assert_eq!(restored.picture.kept.addresses, picture.kept.addresses);
    }

    /// With a checksum that fits, so that what is behind it is reached.
    #[test]
    fn no_bytes_make_it_panic(
        body in prop::collection::vec(any::<u8>(), 0..200),
        (at, byte) in (any::<prop::sample::Index>(), any::<u8>()),
    ) {
        let mut changed = encode(&identity(), &stamp_of(7), &holding());
        changed.truncate(changed.len() - CHECKSUM);
        let at = at.index(changed.len());
        changed[at] = byte;
        let made = [MAGIC, &[3][..], &stamp(&stamp_of(7)), &body[..]].concat();
        for mut bytes in [made, changed] {
            let checksum = xxh3_128(&bytes[STAMP.end..]);
            bytes.extend_from_slice(&checksum.to_le_bytes());
            let _ = decode(&bytes);
        }
    }
}

#[test]
fn a_hundred_thousand_instances_take_few_bytes_each() {
    let data =
        br#"{"host":"10.0.0.7","port":8080,"weight":100,"zone":"a","metadata":{"version":"2"}}"#;
    let znode = |n: i64| {
        let stat = Stat {
            czxid: 0x1_0000_0000 + n,
            mzxid: 0x1_0000_0000 + n,
            ctime: 1_700_000_000_000 + n,
            mtime: 1_700_000_000_000 + n,
            ephemeral_owner: 0x1_0000_1234_5678,
        };
        let data = (&data[..]).into();
        let path = Arc::from(format!("service-{}/instance-{n:010}", n / 20));
        (
            path,
            Arc::new(Znode {
                stat,
                data,
                bad: false,
                good: None,
            }),
        )
    };
    let picture = Picture {
        znodes: (0..100_000).map(znode).collect(),
        ..Picture::default()
    };
    let began = std::time::Instant::now();
    let bytes = encode(&identity(), &stamp_of(7), &picture);
    let encoded = began.elapsed();
    let (.., restored) = decode(&bytes).unwrap();
    println!(
        "{} bytes; encoded in {encoded:?}, and decoded by {:?}",
        bytes.len(),
        began.elapsed()
    );
    assert_eq!(restored.len(), 100_000);
    assert!(bytes.len() < 100_000 * (data.len() + 40), "{}", bytes.len());
}
