//! How clients stand, in the words of the client status discovery service.

use std::{
    collections::BTreeMap,
    time::{Instant, SystemTime},
};

use serde::{Serialize, Serializer};

/// One open stream.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientStatus {
    pub node_id: String,
    pub kind: &'static str,
    /// Whether it loads services on demand.
    pub on_demand: bool,
    /// Whether it takes the endpoints of large services one by one.
    pub increments: bool,
    /// `ip:port` of the peer.
    pub address: String,
    /// What an operator should know about how it is served.
    pub note: Option<String>,
    #[serde(serialize_with = "rfc3339")]
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
    /// The client's reason for its last rejection, until it accepts what it rejected.
    pub error: Option<String>,
    /// Names that it asks for and that nothing is registered under; the first of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unregistered: Vec<String>,
    /// Since when it rejects what it is offered.
    #[serde(serialize_with = "wall_time")]
    pub rejected_since: Option<Instant>,
    /// How often it was offered and rejected since then.
    pub rejections: u32,
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

/// The wall clock's time of a moment in the past, in whole seconds. By reference because serde asks so.
#[allow(clippy::ref_option)]
fn wall_time<S: Serializer>(at: &Option<Instant>, serializer: S) -> Result<S::Ok, S::Error> {
    let Some(at) = at else {
        return serializer.serialize_none();
    };
    let now = SystemTime::now();
    let mut time = prost_types::Timestamp::from(now.checked_sub(at.elapsed()).unwrap_or(now));
    time.nanos = 0;
    serializer.collect_str(&time)
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&prost_types::Timestamp::from(*time))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_client_is_told_in_camel_case_with_the_time_as_text() {
        let subscribed = TypeStatus {
            state: State::NotSent,
            version: None,
            subscribed: 1,
            error: None,
            unregistered: vec!["ghost".into()],
            rejected_since: None,
            rejections: 0,
        };
        let client = ClientStatus {
            node_id: "sidecar".into(),
            kind: "envoy",
            address: "127.0.0.1:40000".into(),
            on_demand: false,
            increments: true,
            note: None,
            connected_at: UNIX_EPOCH + Duration::from_millis(1_700_000_000_500),
            types: [("clusters".to_owned(), subscribed)].into(),
        };
        assert_eq!(
            serde_json::to_value(client).unwrap(),
            serde_json::json!({
                "nodeId": "sidecar",
                "kind": "envoy",
                "address": "127.0.0.1:40000",
                "onDemand": false,
                "increments": true,
                "note": null,
                "connectedAt": "2023-11-14T22:13:20.500Z",
                "types": {"clusters": {"state": "NOT_SENT", "version": null, "subscribed": 1, "error": null, "unregistered": ["ghost"], "rejectedSince": null, "rejections": 0}},
            })
        );
    }
}
