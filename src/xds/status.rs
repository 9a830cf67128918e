//! How clients stand, in the words of the client status discovery service.

use std::{collections::BTreeMap, time::SystemTime};

use serde::Serialize;

/// One open stream.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientStatus {
    pub node_id: String,
    pub kind: &'static str,
    /// `ip:port` of the peer.
    pub address: String,
    pub connected_at: SystemTime,
    /// By the type's short name (`clusters`, …).
    pub types: BTreeMap<String, TypeStatus>,
}

/// How one resource type of a stream stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeStatus {
    pub state: State,
    /// The last version that the client accepted.
    pub version: Option<String>,
    /// How many names are subscribed, the wildcard counting as one.
    pub subscribed: usize,
    /// The client's reason for its last rejection, until it accepts again.
    pub error: Option<String>,
}

/// As `envoy.service.status.v3.ConfigStatus` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum State {
    /// Nothing was sent yet.
    NotSent,
    /// Sent and not acknowledged yet.
    Stale,
    Synced,
    /// The last response was rejected.
    Error,
}
