//! What frameworks put into the `payload` of a `ServiceInstance`.
//!
//! Spring Cloud and Dubbo have settings in `payload.metadata`: `instance_status` (other than UP: not served), `weight`,
//! `zone`, and all of it is metadata. Spring's `management.port` is a named port; so is each protocol in Dubbo's
//! `dubbo.endpoints`, a JSON text within the text, and its `timestamp` begins a warm-up. What Dubbo says to Dubbo alone is not
//! told further. It refuses to guess settings from a payload of another shape: the members of an object
//! are metadata, anything else says nothing, and neither ever fails an instance.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::super::{dubbo, field};
use crate::{
    model::Health,
    registry::{
        reason::{Reason, shown},
        registration::WarmUp,
    },
};

const ENDPOINTS: &str = "dubbo.endpoints";
const REVISION: &str = "dubbo.metadata.revision";

/// What says nothing to choose an instance by; it changes with each start, or is long.
const UNTOLD: [&str; 5] = [
    ENDPOINTS,
    "dubbo.metadata-service.url-params",
    "dubbo.metadata.storage-type",
    "meta-v",
    "timestamp",
];

/// More protocols than anybody exports.
const PORTS_MAX: usize = 16;

/// The members of a payload, and whether they are settings or something of the application's own.
pub(super) struct Payload {
    entries: Map<String, Value>,
    settings: bool,
}

impl Payload {
    pub(super) fn of(payload: Option<Value>) -> Self {
        let Some(Value::Object(mut payload)) = payload else {
            return Self::settings(Map::new());
        };
        match payload.remove("metadata") {
            Some(Value::Object(metadata)) => return Self::settings(metadata),
            Some(Value::Null) => return Self::settings(Map::new()),
            Some(other) => drop(payload.insert("metadata".to_owned(), other)),
            None => {}
        }
        // Jackson's note of the class, which is no member.
        payload.remove("@class");
        Self {
            entries: payload,
            settings: false,
        }
    }

    fn settings(entries: Map<String, Value>) -> Self {
        Self {
            entries,
            settings: true,
        }
    }

    pub(super) fn setting(&self, key: &str) -> Option<&Value> {
        self.entries.get(key).filter(|_| self.settings)
    }

    fn is_dubbo(&self) -> bool {
        self.setting(ENDPOINTS).is_some() || self.setting(REVISION).is_some()
    }

    pub(super) fn health(&self, enabled: bool) -> Result<Health, Reason> {
        if !enabled {
            return Ok(Health::Disabled("enabled is false".into()));
        }
        let status = field::text("instance_status", self.setting("instance_status"))?;
        Ok(match status {
            Some(status) if !status.eq_ignore_ascii_case("UP") => {
                Health::Disabled(format!("instance_status is {}", shown(&status)).into())
            }
            _ if self.is_dubbo() => {
                dubbo::health(self.setting("enabled"), self.setting("disabled"))?
            }
            _ => Health::Healthy,
        })
    }

    pub(super) fn warm_up(&self) -> Option<WarmUp> {
        if !self.is_dubbo() {
            return None;
        }
        let text = |key| field::text(key, self.setting(key)).ok().flatten();
        dubbo::warm_up(text("timestamp").as_deref(), text("warmup").as_deref())
    }

    /// The named ports, each pair once.
    pub(super) fn ports(&self) -> BTreeSet<(String, u16)> {
        let management = self.setting("management.port");
        let management = management.and_then(|port| field::port("management.port", port).ok());
        let management = management.map(|port| ("management".to_owned(), port));
        let endpoints = self.setting(ENDPOINTS).map(endpoints).unwrap_or_default();
        management.into_iter().chain(endpoints).collect()
    }

    /// All of it; the TLS port too, under its own name.
    pub(super) fn metadata(&self, ssl_port: Option<u16>) -> BTreeMap<String, String> {
        let mut entries = self.entries.clone();
        if self.is_dubbo() {
            entries.retain(|key, _| !UNTOLD.contains(&key.as_str()));
        }
        let mut metadata = field::metadata(entries);
        if let Some(port) = ssl_port {
            let entry = metadata.entry("sslPort".to_owned());
            entry.or_insert_with(|| port.to_string());
        }
        metadata
    }
}

/// `[{"port": 20880, "protocol": "dubbo"}, …]`, as a text or as it is.
fn endpoints(value: &Value) -> Vec<(String, u16)> {
    let parsed = value
        .as_str()
        .and_then(|text| serde_json::from_str(text).ok());
    let list = match parsed.as_ref().unwrap_or(value) {
        Value::Array(list) => list.as_slice(),
        _ => &[],
    };
    let port = |entry: &Value| {
        let protocol = field::text("protocol", entry.get("protocol")).ok()??;
        Some((protocol, field::port("port", entry.get("port")?).ok()?))
    };
    list.iter().filter_map(port).take(PORTS_MAX).collect()
}
