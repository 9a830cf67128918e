//! ZooKeeper: mirrors what is registered below a root, and registers.
//!
//! [`watch`] runs the watch-tree machine ([`tree`]) on real sessions and publishes
//! [`crate::registry::Batch`]es; [`register::hold`] keeps one ephemeral znode alive. Neither knows
//! what a payload means. Invariant: an outage, however long and of whatever kind, publishes nothing;
//! only a completed load or a watch event does.
//!
//! The client library is `zookeeper-client` 0.11.2. It loses persistent watches on every reconnect
//! within a session, it cannot re-arm more than 128 KiB of one-shot watch paths, and it has neither
//! time-outs for requests nor `close`; [`watcher`] and `session` make up for each.

mod connect_string;
mod load;
mod metrics;
pub mod register;
pub mod security;
mod session;
pub mod tree;
pub mod watcher;

use std::{fmt, time::Duration};

use tokio::time::Instant;

use crate::registry::layout::Layout;

pub use self::{
    connect_string::{check_connect, check_root, check_secure_connect, is_loopback},
    load::{LoadError, Loaded, load},
    metrics::Metrics,
    security::Security,
    watcher::{Watcher, watch},
};

/// One ensemble and the root to mirror in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What the registry is called in metrics, logs and the admin API.
    pub name: String,
    /// `host:port[,host:port…][/chroot]`
    pub connect: String,
    /// Where that is set, for the log: `registries[0].connect`.
    pub connect_key: String,
    /// The path whose children are services, below the chroot.
    pub root: String,
    /// What is read below the root.
    pub layout: Layout,
    /// What is asked for; the ensemble bounds it to 2–20 of its ticks.
    pub session_timeout: Duration,
    pub security: Security,
}

/// What no waiting heals.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("registry {name}: connect: {reason}")]
    Connect { name: String, reason: String },
    #[error("registry {name}: root: {reason}")]
    Root { name: String, reason: String },
    #[error("registry {name}: the receiver of what is read from ZooKeeper was dropped")]
    Abandoned { name: String },
    /// Only where the watcher was asked not to wait.
    #[error("registry {name}: {reason}")]
    Unreachable { name: String, reason: String },
}

const READ_ONLY: &str = "read from a server that is read-only: its ensemble has no quorum, so what is served may be old";

/// Where a registry stands, for readiness and operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The whole tree was published at least once. Never becomes false again.
    pub loaded: bool,
    pub status: Status,
    /// When `status` last changed.
    pub since: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// No session yet; why the last attempt failed, if one did.
    Connecting { reason: Option<String> },
    /// Connected, but the root does not exist and nothing was ever loaded.
    /// `root` with the chroot; `beside` says what there is instead.
    RootAbsent { root: String, beside: String },
    /// Connected; the tree is being read, for the first time or again.
    Loading,
    /// What was published is what ZooKeeper has.
    Synced,
    /// What was published was read from a server that has no quorum, and may be old.
    ReadOnly,
    /// What was published stands, and may be old.
    Disconnected { reason: String },
}

impl State {
    pub fn new() -> Self {
        Self {
            loaded: false,
            status: Status::Connecting { reason: None },
            since: Instant::now(),
        }
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting { reason: None } => f.write_str("connecting"),
            Self::Connecting {
                reason: Some(reason),
            } => write!(f, "connecting: {reason}"),
            Self::RootAbsent { root, beside } => {
                write!(f, "waiting for {root} to be created; {beside}")
            }
            Self::ReadOnly => f.write_str(READ_ONLY),
            Self::Loading => f.write_str("loading"),
            Self::Synced => f.write_str("synced"),
            Self::Disconnected { reason } => write!(f, "disconnected: {reason}"),
        }
    }
}
