//! The simple JSON form: `{"host": "10.0.0.7", "port": 8080, "weight": 50, "zone": "a", …}`.
//!
//! It refuses to know frameworks. Keys: `host` or `address`, `port`, and where wanted `id`,
//! `weight`, `zone`, `healthy`, `enabled`, `metadata`; others are tolerated. `healthy: false` is told
//! to clients, `enabled: false` takes the instance out. A `metadata` that is no object says nothing.

use std::{collections::BTreeMap, net::IpAddr};

use serde::Deserialize;
use serde_json::Value;

use super::{Format, Znode, field};
use crate::{
    model::Health,
    registry::{
        reason::Reason,
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
            host: Host::Ip(payload.address()?),
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
    fn address(&self) -> Result<IpAddr, Reason> {
        let read = |name, value: &Option<Value>| {
            let text = field::text(name, value.as_ref())?;
            Ok::<_, Reason>(text.map(|text| field::address(&text)))
        };
        match (read("host", &self.host)?, read("address", &self.address)?) {
            (None, None) => Err(missing("address", "add \"address\" with an IP address")),
            (Some(Ok(host)), Some(Ok(address))) if host != address => Err(Reason::new(format!(
                "host `{host}` and address `{address}` differ; keep one"
            ))),
            (Some(Ok(ip)), _) | (_, Some(Ok(ip))) => Ok(ip),
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

/// Reads a JSON object into `T`. A list is refused first: serde would fill the fields in order.
pub(super) fn parse<'a, T: Deserialize<'a>>(znode: &Znode<'a>) -> Result<T, Reason> {
    let text = znode.text()?;
    if !text.starts_with('{') {
        return Err(Reason::new("payload is no JSON object; write {…}"));
    }
    serde_json::from_str(text).map_err(|error| Reason::new(format!("bad JSON: {error}")))
}

pub(super) fn missing(field: &str, remedy: &str) -> Reason {
    Reason::new(format!("{field} is missing; {remedy}"))
}
