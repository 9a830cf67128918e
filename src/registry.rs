//! The in-memory mirror of a registry: znodes in, services out.
//!
//! ```text
//! Batch ──▶ Index ──▶ Roster (one service's znodes) ──▶ View · Changes · Counts
//!             └─ format: bytes of one znode ──▶ Instance or Reason
//! ```
//!
//! It refuses to know how znodes are read (the `zookeeper` side sends [`Event`]s) and who is served.
//! Invariant: after every [`Batch`] the [`View`] equals what the znodes named so far decode to;
//! a znode that does not decode is in `rejected` and harms no neighbour. A znode that decoded once
//! keeps serving that last good value until it is deleted or the process ends.
//! What of it may be published is the [`guard`]'s to say.

pub mod catalog;
pub mod format;
pub mod guard;
pub mod guarded;
pub mod index;
pub mod journal;
pub mod layout;
pub mod linger;
pub mod metrics;
pub mod name;
pub mod reason;
pub mod registration;
mod roster;
pub mod shape;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use imbl::OrdMap;

use crate::model::{Service, Socket};

pub use crate::model::Touched;
pub use catalog::{Catalog, Mirrored, Picture};
pub use format::FormatChoice;
pub use guarded::{Addresses, Former, Guarded, Restored};
pub use index::{Index, Resolution};
pub use layout::{Layout, Place};

pub use linger::Lingering;
pub use metrics::Metrics;
pub use shape::Shape;

/// A configured registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What operators call it; a metrics label.
    pub name: String,
    /// The znode whose children are the services: absolute, `/services`.
    pub root: String,
    pub layout: Layout,
    pub format: FormatChoice,
    /// Among registries that hold the same service: 0 is the first choice.
    pub priority: u8,
    /// Nothing is served before it was seen.
    pub required: bool,
    /// Instances in znodes without a session that were not written for that long are not served.
    pub ttl: Option<Duration>,
    pub shape: Shape,
}

/// A moment by two clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// By a clock that is never set: everything that lasts is measured by it.
    pub time: guard::Time,
    /// Milliseconds since the epoch, by a clock that may be set at any time: it is shown, and compared with times
    /// that others wrote.
    pub wall: i64,
}

impl Moment {
    /// What the wall clock shows beyond the other one.
    pub fn epoch(self) -> i64 {
        self.wall.saturating_sub(self.time)
    }

    /// So many milliseconds earlier, by both clocks.
    #[must_use]
    pub fn before(self, time: guard::Time) -> Self {
        Self {
            time: self.time.saturating_sub(time),
            wall: self.wall.saturating_sub(time),
        }
    }
}

/// Both clocks show the same.
impl From<i64> for Moment {
    fn from(time: i64) -> Self {
        Self { time, wall: time }
    }
}

/// What ZooKeeper says of a znode beside its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    pub czxid: i64,
    pub mzxid: i64,
    /// Milliseconds since the epoch.
    pub ctime: i64,
    /// Milliseconds since the epoch.
    pub mtime: i64,
    /// The session that holds an ephemeral znode; 0 for a persistent one. See [`Stat::session`].
    pub ephemeral_owner: i64,
}

impl Stat {
    /// The session that holds the znode, if one does. Of a container or a znode with a TTL of ZooKeeper's own the
    /// field says that instead.
    pub fn session(&self) -> Option<i64> {
        const CONTAINER: i64 = i64::MIN;
        let [kind, ..] = self.ephemeral_owner.to_be_bytes();
        let is_session = !matches!(self.ephemeral_owner, 0 | CONTAINER) && kind != 0xff;
        is_session.then_some(self.ephemeral_owner)
    }
}

/// One thing that became known of the tree. Paths are relative to the registry's root, without a
/// leading slash: `orders` is a service, `orders/i-1` an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The znode exists with this data; new, changed or confirmed.
    Put {
        path: Arc<str>,
        data: Bytes,
        stat: Stat,
    },
    /// The znode is gone, and with it what was below it.
    Delete { path: Arc<str> },
    /// The znode exists, and may not be read (or, of what is above the instances, not be listed). What
    /// was told of it, and of what is below it, stands until it is told anew.
    Unreadable { path: Arc<str> },
}

/// Events that take effect together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // Any of them may be set without the others.
pub struct Batch {
    pub events: Vec<Event>,
    /// With this batch the registry equals the tree: the end of a load or of a resync.
    pub complete: bool,
    /// The audit found some of it: no watch had told.
    pub audited: bool,
    /// From now on the registry may be older than the tree, until the next complete batch.
    pub stale: bool,
    /// There is no root, and never was one as far as is known: nothing is to come until somebody creates it.
    pub absent: bool,
    /// When the first of the changes became known, if a change was what it began with.
    pub observed: Option<Instant>,
}

/// A znode that is left out, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    pub format: &'static str,
    pub reason: String,
}

/// An immutable picture of one registry; cloning costs nothing.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub services: OrdMap<Arc<str>, Arc<Service>>,
    /// By full path.
    pub rejected: OrdMap<String, Rejected>,
    /// Znodes whose host name is being looked up for the first time, by full path.
    pub waiting: OrdMap<String, Arc<str>>,
    /// What of the services is gone, and held.
    pub holds: guard::Holds,
    /// What of the services is gone, and stays served for a moment.
    pub lingering: linger::Lingering,
}

impl View {
    /// Whether one of the instances is registered, and not served for another reason.
    pub fn is_registered(&self, service: &str, socket: Socket) -> bool {
        self.holds.get(service, socket).is_none() && self.lingering.get(service, socket).is_none()
    }
}

impl Config {
    /// The full path of a znode, by its path below the root.
    pub fn path(&self, below: &str) -> String {
        format!("{}/{below}", self.root.trim_end_matches('/'))
    }

    /// The path below the root; `None` for a path elsewhere.
    pub fn below<'p>(&self, path: &'p str) -> Option<&'p str> {
        let below = path.strip_prefix(self.root.trim_end_matches('/'))?;
        below.strip_prefix('/').or(below.is_empty().then_some(""))
    }

    /// The name of the service whose znode, or one of whose instances, is at a path below the root. `None` where
    /// the layout has none or the configuration leaves it out.
    pub fn service_at(&self, below: &str) -> Option<String> {
        let (Place::Service(service) | Place::Between(service) | Place::Instance(service)) =
            self.layout.place(below)
        else {
            return None;
        };
        self.called(service).map(Cow::into_owned)
    }

    /// The name of the service whose znode has this path below the root; `None` if the configuration leaves it out.
    fn called<'s>(&self, service: &'s str) -> Option<Cow<'s, str>> {
        let name = if service.contains('/') {
            Cow::Owned(service.replace('/', "."))
        } else {
            Cow::Borrowed(service)
        };
        let renamed = |name: Cow<'s, str>| self.shape.rename(&name).map_or(name, Cow::Owned);
        self.shape.selects(&name).then(|| renamed(name))
    }
}

/// How much a registry holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub services: usize,
    /// With the disabled and the unhealthy ones.
    pub instances: usize,
    pub rejected: usize,
}

/// The services that a batch touched: they appeared, are gone, or changed in more than
/// [`Instance::origin`](crate::model::Instance::origin). No client can see an origin, so a rewrite
/// of equal data shows its new `mzxid` in the [`View`] and is no change.
pub type Changes = BTreeMap<Arc<str>, Touched>;
