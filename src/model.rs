//! The domain: services and their instances, as every other part speaks of them.
//!
//! It refuses to know where an instance was read (ZooKeeper, a payload format) and what becomes
//! of it (clusters, endpoints). Invariant: a [`Service`] holds at most one [`Instance`] for each
//! `address:port`, in the order of address and port, so that equal registrations are equal values.
//!
//! A fleet has a hundred thousand instances and few other values, so an [`Instance`] shares what it can:
//! its znode's path with the mirror of the tree, its zone and metadata with neighbours that have equal ones.

mod instances;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    hash::{Hash, Hasher},
    net::IpAddr,
    sync::Arc,
};

use serde::{Serialize, Serializer};

pub use instances::{Instances, Socket};

/// A service with its instances. Its name is what clients ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: Arc<str>,
    /// What it is called where only host names do: in lower case, as RFC 1123 wants them.
    pub host: Arc<str>,
    /// The name of the configured registry that it was found in.
    pub registry: Arc<str>,
    /// Unique by `(address, port)` and in that order; with the disabled ones.
    pub instances: Instances,
}

/// Which instances of a service a change touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// The service itself: it appeared or is gone.
    All,
    Some(BTreeSet<Socket>),
}

impl Touched {
    /// Adds what a later change touched.
    pub fn merge(&mut self, later: Self) {
        match (&mut *self, later) {
            (Self::Some(sockets), Self::Some(mut later)) => sockets.append(&mut later),
            _ => *self = Self::All,
        }
    }
}

/// One `address:port` that registered under a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// What the payload calls it, if it does.
    pub own_id: Option<Box<str>>,
    pub address: IpAddr,
    /// 1..=65535.
    pub port: u16,
    pub weight: Weight,
    pub zone: Option<Arc<str>>,
    pub health: Health,
    /// Of the instances that can be reached those of the lowest are sent requests: 0 is the first choice.
    pub priority: u8,
    pub metadata: Metadata,
    pub origin: Origin,
}

impl Instance {
    pub fn socket(&self) -> Socket {
        (self.address, self.port)
    }

    /// Whether clients send it new requests.
    pub fn takes_requests(&self) -> bool {
        matches!(self.health, Health::Healthy | Health::Degraded) && self.weight != Weight::DRAIN
    }

    /// Whether a client could not tell them apart: equal but for their origin. Every field is named, so
    /// that a new one asks for its answer here.
    pub fn is_like(&self, other: &Self) -> bool {
        let Self {
            own_id: _,
            address,
            port,
            weight,
            zone,
            health,
            priority,
            metadata,
            origin: _,
        } = self;
        std::ptr::eq(self, other)
            || ((address, port, weight, zone)
                == (&other.address, &other.port, &other.weight, &other.zone)
                && (self.id(), health, priority, metadata)
                    == (other.id(), &other.health, &other.priority, &other.metadata))
    }

    /// What the registration calls itself: the payload's id, else the znode's own name.
    pub fn id(&self) -> &str {
        let name = || self.origin.znode.rsplit('/').next();
        self.own_id.as_deref().or_else(name).unwrap_or_default()
    }
}

/// Where an instance comes from, for operators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    pub source: Arc<Source>,
    /// The znode's path below the root.
    pub znode: Arc<str>,
    /// The payload format that it was decoded with (`plain`, `json`, `curator`, …).
    pub format: &'static str,
    /// The transaction that created the znode.
    pub czxid: i64,
    /// The transaction that last wrote its data.
    pub mzxid: i64,
    /// The session that holds the znode; 0 for a persistent one.
    pub session: i64,
}

/// A registry that instances come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    pub registry: Box<str>,
    /// A full path in the ensemble, below the connect string's chroot.
    pub root: Box<str>,
}

impl Origin {
    /// The znode's full path in the ensemble, below the connect string's chroot.
    pub fn path(&self) -> String {
        format!("{}/{}", self.source.root.trim_end_matches('/'), self.znode)
    }
}

/// Names with their values, in the order of the names.
///
/// All in one text, each name and value behind its length (`7:version1:2`): a map of two short entries
/// takes seven times as much memory.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Metadata(Option<Arc<str>>);

impl Metadata {
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut rest = self.0.as_deref().unwrap_or_default();
        std::iter::from_fn(move || {
            let (name, behind) = split(rest)?;
            let (value, behind) = split(behind)?;
            rest = behind;
            Some((name, value))
        })
    }
}

/// The first text of several, and what is behind it.
fn split(texts: &str) -> Option<(&str, &str)> {
    let (len, rest) = texts.split_once(':')?;
    rest.split_at_checked(len.parse().ok()?)
}

impl From<BTreeMap<String, String>> for Metadata {
    fn from(entries: BTreeMap<String, String>) -> Self {
        let mut texts = String::new();
        for part in entries.iter().flat_map(|(name, value)| [name, value]) {
            // Writing to a string cannot fail.
            let _ = write!(texts, "{}:{part}", part.len());
        }
        Self((!texts.is_empty()).then(|| texts.into()))
    }
}

/// As the map that it stands for.
impl Hash for Metadata {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_usize(self.iter().count());
        self.iter().for_each(|entry| entry.hash(state));
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Serialize for Metadata {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

/// The share of requests that an instance asks for, relative to its neighbours: 0..=10,000.
///
/// 0 drains: no new requests, running ones end. The bound keeps the sum over 400,000 instances
/// within the 32 bits that Envoy and gRPC add weights up in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Weight(u32);

impl Weight {
    pub const MAX: Self = Self(10_000);
    pub const DRAIN: Self = Self(0);

    /// `None` over [`Weight::MAX`].
    pub const fn new(weight: u32) -> Option<Self> {
        if weight <= Self::MAX.0 {
            Some(Self(weight))
        } else {
            None
        }
    }

    pub const fn get(self) -> u32 {
        self.0
    }
}

/// What an instance has when its registration names none (Dubbo's default too).
impl Default for Weight {
    fn default() -> Self {
        Self(100)
    }
}

/// What is known of an instance's health, from its own registration or because that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Healthy,
    /// It takes requests, and nobody can say for sure that it should.
    Degraded,
    /// Told to clients as unhealthy: they know it and send it nothing.
    Unhealthy,
    /// Not told to clients at all; the reason is for operators (`instance_status is OUT_OF_SERVICE`).
    Disabled(Box<str>),
}

/// Why an instance is disabled that was not written within its time to live.
const LAPSED: &str = "not written within its TTL";

impl Health {
    /// The instance was not written within its time to live.
    pub fn lapsed() -> Self {
        Self::Disabled(LAPSED.into())
    }

    pub fn is_lapsed(&self) -> bool {
        matches!(self, Self::Disabled(why) if **why == *LAPSED)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn metadata_are_the_map_that_they_were(
            entries in prop::collection::btree_map(any::<String>(), any::<String>(), 0..4),
            others in prop::collection::btree_map("[0-9:]{0,2}", "[0-9:]{0,2}", 0..3),
        ) {
            for map in [&entries, &others] {
                let metadata = Metadata::from(map.clone());
                let back: BTreeMap<_, _> = metadata.iter().collect();
                prop_assert!(back.iter().map(|(k, v)| (*k, *v)).eq(map.iter().map(|(k, v)| (&**k, &**v))));
                prop_assert_eq!(metadata.is_empty(), map.is_empty());
                let hash = |hashed: &dyn Fn(&mut std::hash::DefaultHasher)| {
                    let mut state = std::hash::DefaultHasher::new();
                    hashed(&mut state);
                    state.finish()
                };
                prop_assert_eq!(hash(&|s| metadata.hash(s)), hash(&|s| map.hash(s)));
                prop_assert_eq!(serde_json::to_value(&metadata)?, serde_json::to_value(map)?);
            }
            let equal = Metadata::from(entries.clone()) == Metadata::from(others.clone());
            prop_assert_eq!(equal, entries == others);
        }
    }

    #[test]
    fn an_origin_has_one_slash_between_root_and_znode() {
        for (root, path) in [
            ("/services", "/services/a/i"),
            ("/", "/a/i"),
            ("/s/", "/s/a/i"),
        ] {
            let origin = Origin {
                source: Arc::new(Source {
                    root: root.into(),
                    ..Source::default()
                }),
                znode: "a/i".into(),
                ..Origin::default()
            };
            assert_eq!(origin.path(), path);
        }
    }
}
