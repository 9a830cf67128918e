//! The domain: services and their instances, as every other part speaks of them.
//!
//! It refuses to know where an instance was read (ZooKeeper, a payload format) and what becomes
//! of it (clusters, endpoints). Invariant: a [`Service`] holds at most one [`Instance`] for each
//! `address:port`, in the order of address and port, so that equal registrations are equal values.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use serde::Serialize;

/// A service with its instances. Its name is what clients ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: Arc<str>,
    /// The name of the configured registry that it was found in.
    pub registry: Arc<str>,
    /// Unique by `(address, port)` and in that order; with the disabled ones.
    pub instances: Vec<Arc<Instance>>,
}

/// One `address:port` that registered under a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// What the registration calls itself: the payload's id, else the znode's own name.
    pub id: String,
    pub address: IpAddr,
    /// 1..=65535.
    pub port: u16,
    pub weight: Weight,
    pub zone: Option<String>,
    pub health: Health,
    pub metadata: BTreeMap<String, String>,
    pub origin: Origin,
}

/// Where an instance comes from, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The znode's full path in the ensemble, below the connect string's chroot.
    pub path: String,
    /// The payload format that it was decoded with (`plain`, `json`, `curator`, …).
    pub format: &'static str,
    /// The transaction that created the znode.
    pub czxid: i64,
    /// The transaction that last wrote its data.
    pub mzxid: i64,
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

/// What a registration says of its own health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Healthy,
    /// Told to clients as unhealthy: they know it and send it nothing.
    Unhealthy,
    /// Not told to clients at all; the reason is for operators (`instance_status is OUT_OF_SERVICE`).
    Disabled(String),
}
