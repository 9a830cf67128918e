//! What keeps a mesh from being emptied, as it is configured: the guard and the state on disk.
//!
//! It refuses to know how either works; it prints as the YAML that it would be read from.

use std::{path::PathBuf, time::Duration};

use serde::Serialize;

use super::duration;
use crate::registry::guard;

/// How much may go at once.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Guard {
    pub enabled: bool,
    #[serde(serialize_with = "duration")]
    pub window: Duration,
    /// Over 0 and up to 1, which is never exceeded.
    pub service_share: f64,
    pub registry_share: f64,
    pub minimum: usize,
    #[serde(serialize_with = "duration")]
    pub hold_for: Duration,
    /// How long a service's last instance stays served after it was deregistered; zero for not at all.
    #[serde(serialize_with = "duration")]
    pub linger: Duration,
    pub degraded: bool,
    /// Held instances whose addresses refuse connections are removed.
    pub probe: bool,
}

/// Where the last good state is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Nothing is kept without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// How long ZooKeeper may take at the start before the last good state is served.
    #[serde(serialize_with = "duration")]
    pub wait: Duration,
}

impl Guard {
    pub fn config(&self) -> guard::Config {
        let Self {
            enabled,
            window,
            service_share,
            registry_share,
            minimum,
            hold_for,
            linger,
            degraded,
            probe: _,
        } = *self;
        guard::Config {
            enabled,
            window,
            service_share,
            registry_share,
            minimum,
            hold_for,
            linger,
            degraded,
        }
    }
}

impl Default for Guard {
    fn default() -> Self {
        let guard::Config {
            enabled,
            window,
            service_share,
            registry_share,
            minimum,
            hold_for,
            degraded,
            ..
        } = guard::Config::default();
        Self {
            enabled,
            window,
            service_share,
            registry_share,
            minimum,
            hold_for,
            linger: Duration::from_secs(2),
            degraded,
            probe: true,
        }
    }
}

/// Two guards are equal if none of their shares is no number, which no check lets pass.
impl Eq for Guard {}

impl Default for State {
    fn default() -> Self {
        Self {
            directory: None,
            wait: Duration::from_secs(5),
        }
    }
}
