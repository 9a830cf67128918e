//! Curator's service discovery: the JSON of its `ServiceInstance`.
//!
//! Written so by Spring Cloud ZooKeeper, by Dubbo 3 at application level and by Curator's own users.
//! It refuses to know what a payload means beyond the keys that Spring Cloud and Dubbo share:
//! `payload.metadata` holds `instance_status` (other than UP: not served), `weight` and `zone`, and
//! all of it is the instance's metadata. A payload of another shape never fails an instance: the
//! members of an object are shown as metadata, and no weight or zone is guessed from them. Where
//! `port` is null the `sslPort` is served; it is shown as metadata in any case. `name`,
//! `registrationTimeUTC`, `serviceType` and `uriSpec` are tolerated and say nothing here.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Map, Value};

use super::{
    Format, Znode, field,
    json::{missing, parse},
};
use crate::{
    model::Health,
    registry::{
        reason::{Reason, shown},
        registration::{Decoded, Host, Registration},
    },
};

#[derive(Debug)]
pub(super) struct Curator;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceInstance {
    id: Option<Value>,
    address: Option<Value>,
    port: Option<Value>,
    ssl_port: Option<Value>,
    payload: Option<Value>,
    enabled: Option<Value>,
}

impl Format for Curator {
    fn name(&self) -> &'static str {
        "curator"
    }

    /// A JSON object with a key of a `ServiceInstance`. The keys are walked only as far as the first
    /// telling one, which also finds a format for what is broken behind it.
    fn recognises(&self, znode: &Znode<'_>) -> bool {
        znode.object().is_some_and(has_telling_key)
    }

    fn decode(&self, znode: &Znode<'_>) -> Result<Registration, Reason> {
        let instance: ServiceInstance = parse(znode)?;
        let address = field::text("address", instance.address.as_ref())?
            .ok_or_else(|| missing("address", "register an IP address"))?;
        let (port, ssl_port) = instance.ports()?;
        let enabled = field::flag("enabled", instance.enabled.as_ref())?;
        let id = field::text("id", instance.id.as_ref())?;
        let payload = Payload::of(instance.payload);

        let mut decoded = Decoded {
            part: None,
            id,
            host: Host::Ip(field::address(&address)?),
            port,
            weight: field::weight(payload.setting("weight"))?,
            warm_up: None,
            zone: field::text("zone", payload.setting("zone"))?,
            health: payload.health(enabled)?,
            metadata: payload.metadata(),
        };
        if let Some(port) = ssl_port {
            let entry = decoded.metadata.entry("sslPort".to_owned());
            entry.or_insert_with(|| port.to_string());
        }
        Ok(Registration::Instances(vec![decoded]))
    }
}

impl ServiceInstance {
    /// The port to serve, and the TLS port where there is one (0 stands for none in some clients).
    fn ports(&self) -> Result<(u16, Option<u16>), Reason> {
        let given = |value: &'_ Option<Value>| value.clone().filter(|v| !field::is_blank(v));
        let ssl = given(&self.ssl_port).map(|port| field::port("sslPort", &port));
        match (given(&self.port), ssl) {
            (Some(port), ssl) => Ok((field::port("port", &port)?, ssl.and_then(Result::ok))),
            (None, Some(ssl)) => ssl.map(|port| (port, Some(port))),
            (None, None) => Err(missing("port", "register a port of 1..=65535")),
        }
    }
}

/// The members of a payload, and whether they are settings or something of the application's own.
struct Payload {
    entries: Map<String, Value>,
    settings: bool,
}

impl Payload {
    fn of(payload: Option<Value>) -> Self {
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

    fn setting(&self, key: &str) -> Option<&Value> {
        self.entries.get(key).filter(|_| self.settings)
    }

    fn health(&self, enabled: bool) -> Result<Health, Reason> {
        if !enabled {
            return Ok(Health::Disabled("enabled is false".into()));
        }
        let status = field::text("instance_status", self.setting("instance_status"))?;
        Ok(match status {
            Some(status) if !status.eq_ignore_ascii_case("UP") => {
                Health::Disabled(format!("instance_status is {}", shown(&status)).into())
            }
            _ => Health::Healthy,
        })
    }

    fn metadata(self) -> BTreeMap<String, String> {
        field::metadata(self.entries)
    }
}

/// The keys that tell a `ServiceInstance` from the simple JSON form.
#[derive(Deserialize)]
#[serde(field_identifier)]
enum Key {
    #[serde(
        rename = "sslPort",
        alias = "registrationTimeUTC",
        alias = "serviceType",
        alias = "uriSpec"
    )]
    Telling,
    /// Telling unless there is a `host`, which Curator does not write.
    #[serde(rename = "payload")]
    Payload,
    #[serde(rename = "host")]
    Host,
    #[serde(other)]
    Other,
}

fn has_telling_key(text: &str) -> bool {
    let mut keys = Keys::default();
    // Walking ends early on purpose, which serde takes for an error.
    let _ = serde_json::Deserializer::from_str(text).deserialize_map(&mut keys);
    keys.telling || (keys.payload && !keys.host)
}

#[derive(Default)]
struct Keys {
    telling: bool,
    payload: bool,
    host: bool,
}

impl<'de> Visitor<'de> for &mut Keys {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key()? {
            match key {
                Key::Telling => {
                    self.telling = true;
                    return Ok(());
                }
                Key::Payload => self.payload = true,
                Key::Host => self.host = true,
                Key::Other => {}
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}
