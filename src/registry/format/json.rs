//! The simple JSON form: `{"host": "10.0.0.7", "port": 8080, "weight": 50, "zone": "a", …}`.
//!
//! It refuses to know frameworks. Keys: `host` or `address`, `port`, and where wanted `id`,
//! `weight`, `zone`, `healthy`, `enabled`, `metadata`; others are tolerated. `healthy: false` is told
//! to clients, `enabled: false` takes the instance out. A `metadata` that is no object says nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{Format, Znode, field, host};
use crate::{
    model::Health,
    registry::{
        reason::{Reason, quoted},
        registration::{Decoded, Host, Registration},
    },
};

#[derive(Debug)]
pub(super) struct Json;

#[derive(Deserialize)]
struct Payload {
    id: Option<Value>,
    host: Option<Value>,
    address: Option<Value>,
    port: Option<Value>,
    weight: Option<Value>,
    zone: Option<Value>,
    healthy: Option<Value>,
    enabled: Option<Value>,
    metadata: Option<Value>,
}

impl Format for Json {
    fn name(&self) -> &'static str {
        "json"
    }

    fn recognises(&self, znode: &Znode<'_>) -> bool {
        znode.object().is_some()
    }

    fn decode(&self, znode: &Znode<'_>) -> Result<Registration, Reason> {
        let payload: Payload = parse(znode)?;
        Ok(Registration::Instances(vec![Decoded {
            part: None,
            id: field::text("id", payload.id.as_ref())?,
            host: payload.host()?,
            port: match payload.port.as_ref() {
                Some(port) => field::port("port", port)?,
                None => return Err(missing("port", "add \"port\": 1..=65535")),
            },
            weight: field::weight(payload.weight.as_ref())?,
            warm_up: None,
            zone: field::text("zone", payload.zone.as_ref())?,
            health: payload.health()?,
            metadata: match payload.metadata {
                Some(Value::Object(entries)) => field::metadata(entries),
                _ => BTreeMap::new(),
            },
        }]))
    }
}

impl Payload {
    /// `host` and `address` mean the same; where one is a host name beside an IP, the IP is meant.
    fn host(&self) -> Result<Host, Reason> {
        let read = |name, value: &Option<Value>| {
            let text = field::text(name, value.as_ref())?;
            Ok::<_, Reason>(text.map(|text| host::host(&text)))
        };
        match (read("host", &self.host)?, read("address", &self.address)?) {
            (None, None) => Err(missing("address", "add \"address\"")),
            (Some(Ok(a)), Some(Ok(b))) => match (a, b) {
                (ip @ Host::Ip(_), Host::Name(_)) | (Host::Name(_), ip @ Host::Ip(_)) => Ok(ip),
                (a, b) if a == b => Ok(a),
                (a, b) => {
                    let (a, b) = (quoted(&host::text(&a)), quoted(&host::text(&b)));
                    let reason = format!("host {a} and address {b} differ; keep one");
                    Err(Reason::new(reason))
                }
            },
            (Some(Ok(host)), _) | (_, Some(Ok(host))) => Ok(host),
            (Some(Err(reason)), _) | (None, Some(Err(reason))) => Err(reason),
        }
    }

    fn health(&self) -> Result<Health, Reason> {
        let healthy = field::flag("healthy", self.healthy.as_ref())?;
        Ok(if !field::flag("enabled", self.enabled.as_ref())? {
            Health::Disabled("enabled is false".into())
        } else if healthy {
            Health::Healthy
        } else {
            Health::Unhealthy
        })
    }
}

/// Reads a JSON object into `T`.
pub(super) fn parse<T: DeserializeOwned>(znode: &Znode<'_>) -> Result<T, Reason> {
    parse_text(znode.text()?)
}

/// A list is refused first: serde would fill the fields in order.
pub(super) fn parse_text<T: DeserializeOwned>(text: &str) -> Result<T, Reason> {
    if !text.starts_with('{') {
        return Err(Reason::new("payload is no JSON object; write {…}"));
    }
    serde_json::from_str(text).map_err(|error| Reason::new(format!("bad JSON: {error}")))
}

pub(super) fn missing(field: &str, remedy: &str) -> Reason {
    Reason::new(format!("{field} is missing; {remedy}"))
}
