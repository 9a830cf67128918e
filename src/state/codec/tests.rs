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
        addresses: (names.into_iter())
            .map(|(name, addresses)| (Arc::<str>::from(name), Arc::<[IpAddr]>::from(addresses)))
            .collect(),
        ..Picture::default()
    })
}

/// Five of six instances held, one of them on IPv6.
fn holding() -> Picture {
    let instance = |port: u16| {
        let address = if port == 3 {
            Ipv6Addr::LOCALHOST.into()
        } else {
            [10, 0, 0, 1].into()
        };
        Arc::new(Instance {
            own_id: None,
            address,
            port,
            weight: Weight::default(),
            zone: None,
            health: Health::Healthy,
            priority: 0,
            metadata: Metadata::default(),
            origin: Origin {
                znode: format!("a/{port}").into(),
                format: "plain",
                ..Origin::default()
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
    let znode = |data: &str| {
        Arc::new(Znode {
            stat: Stat::default(),
            data: data.as_bytes().into(),
            bad: false,
            good: None,
        })
    };
    let gone = (1..=9).map(|port| (Arc::from(format!("a/{port}")), znode("gone")));
    Picture {
        znodes: OrdMap::from_iter([(Arc::from("a/6"), znode("there"))]),
        gone: gone.filter(|(path, _)| &**path != "a/6").collect(),
        holds: guard.holds().clone(),
        addresses: Addresses::unit("db".into(), [IpAddr::from([10, 0, 0, 1])].into()),
    }
}

#[test]
fn what_is_held_is_kept_with_its_znodes_and_what_else_is_gone_is_not() {
    let (_, restored) = decode(&encode(&identity(), 7, &holding())).unwrap();
    let gone: Vec<_> = restored.picture.gone.keys().map(|path| &**path).collect();
    assert_eq!(gone, ["a/1", "a/2", "a/3", "a/4", "a/5"]);
    let [service] = &restored.held[..] else {
        panic!("one service");
    };
    assert_eq!(
        (&*service.service, service.target, service.held.len()),
        ("a", 6, 5)
    );
    assert!(
        service
            .held
            .contains(&((Ipv6Addr::LOCALHOST.into(), 3), 2_000))
    );
    assert_eq!(
        restored.trip,
        Some(Trip {
            since: 2_000,
            target: 6
        })
    );
}

#[test]
fn another_version_is_told_apart_from_a_broken_file() {
    let mut bytes = encode(&identity(), 7, &Picture::default());
    bytes[MAGIC.len()] = 9;
    assert_eq!(decode(&bytes).unwrap_err(), DecodeError::Version(9));
    assert_eq!(decode(b"{}").unwrap_err(), DecodeError::Foreign);
    assert_eq!(decode(b"").unwrap_err(), DecodeError::Foreign);
}

#[test]
fn a_cut_or_changed_file_is_refused_wherever_it_is() {
    let bytes = encode(&identity(), 7, &holding());
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
        let (of, restored) = decode(&encode(&identity(), written, &picture)).unwrap();
        prop_assert_eq!(of, identity());
        prop_assert_eq!(restored.known, written);
        prop_assert_eq!(restored.picture.znodes, picture.znodes);
        prop_assert_eq!(restored.picture.addresses, picture.addresses);
    }

    /// With a checksum that fits, so that what is behind it is reached.
    #[test]
    fn no_bytes_make_it_panic(
        body in prop::collection::vec(any::<u8>(), 0..200),
        (at, byte) in (any::<prop::sample::Index>(), any::<u8>()),
    ) {
        let mut changed = encode(&identity(), 7, &holding());
        changed.truncate(changed.len() - CHECKSUM);
        let at = at.index(changed.len());
        changed[at] = byte;
        let made = [MAGIC, &[2][..], &body[..]].concat();
        for mut bytes in [made, changed] {
            bytes.extend_from_slice(&xxh3_128(&bytes).to_le_bytes());
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
    let bytes = encode(&identity(), 7, &picture);
    let encoded = began.elapsed();
    let (_, restored) = decode(&bytes).unwrap();
    println!(
        "{} bytes; encoded in {encoded:?}, and decoded by {:?}",
        bytes.len(),
        began.elapsed()
    );
    assert_eq!(restored.len(), 100_000);
    assert!(bytes.len() < 100_000 * (data.len() + 40), "{}", bytes.len());
}
