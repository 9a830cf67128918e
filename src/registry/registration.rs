//! What the data of one znode says, before anybody knows which service it stands in.
//!
//! Decoders make these, the index makes instances of them. It refuses to know how they are written,
//! what time it is and what a host name resolves to. Invariant: each is valid in itself; whether it
//! is served is decided with what stands around it.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use crate::model::{Health, Weight};

/// What a znode registers.
#[derive(Clone, Debug, PartialEq)]
pub enum Registration {
    /// The service's own instance and one for each named port, which come and go together.
    Instances(Vec<Decoded>),
    /// Factors for the weights of other znodes of the same service.
    Weights(Vec<Factor>),
}

/// One address and port that a znode registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// What of the service it is, told behind a colon in the service's name: a named port (`admin`),
    /// a group and version (`blue:1.0`). None where it is the service itself.
    pub part: Option<String>,
    /// What the registration calls itself, if it does.
    pub id: Option<String>,
    pub host: Host,
    /// 1..=65535.
    pub port: u16,
    /// Once it is warm.
    pub weight: Weight,
    pub warm_up: Option<WarmUp>,
    pub zone: Option<String>,
    pub health: Health,
    pub metadata: BTreeMap<String, String>,
}

/// Where an instance is reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    Ip(IpAddr),
    /// In lower case, without a dot at the end.
    Name(Arc<str>),
}

/// A time in which the weight grows from little to what was registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WarmUp {
    /// Milliseconds since the epoch.
    pub since: i64,
    /// In milliseconds.
    pub lasts: u32,
}

/// What the weights of some instances are multiplied with. Several factors of one instance multiply.
#[derive(Clone, Debug, PartialEq)]
pub struct Factor {
    pub select: Select,
    /// Finite and not negative.
    pub weight: f64,
}

/// Which instances a factor is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Select {
    Socket {
        host: Host,
        port: u16,
    },
    /// The znode's own name.
    Member(String),
    /// The number under `shard` in the metadata.
    Shard(i64),
}
