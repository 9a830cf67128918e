//! Curator's service discovery: the JSON of its `ServiceInstance`.
//!
//! Written so by Spring Cloud ZooKeeper, by Dubbo 3 at application level and by Curator's own users;
//! [`payload`] knows what these put inside. It refuses to know more of them. The instance itself is at `port`, or at
//! `sslPort` where there is no port; where there is an `sslPort` it is the named port `ssl` too.
//! A payload adds others: `management` (Spring), one for each protocol (Dubbo). Settings that cannot
//! be fail the instance, a named port that cannot be is left out. `name`, `registrationTimeUTC`,
//! `serviceType` and `uriSpec` are tolerated and say nothing here.

mod payload;

use serde::Deserialize;
use serde_json::Value;

use super::{
    Format, Znode, field,
    host::host,
    json::{missing, parse},
};
use crate::registry::{
    reason::Reason,
    registration::{Decoded, Registration},
};

use payload::Payload;

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

    fn recognises(&self, znode: &Znode<'_>) -> bool {
        znode
            .keys()
            .is_some_and(|keys| keys.curator || (keys.payload && !keys.host))
    }

    fn decode(&self, znode: &Znode<'_>) -> Result<Registration, Reason> {
        let instance: ServiceInstance = parse(znode)?;
        let address = field::text("address", instance.address.as_ref())?
            .ok_or_else(|| missing("address", "register an IP address or a host name"))?;
        let (port, ssl_port) = instance.ports()?;
        let enabled = field::flag("enabled", instance.enabled.as_ref())?;
        let id = field::text("id", instance.id.as_ref())?;
        let payload = Payload::of(instance.payload);

        let own = Decoded {
            part: None,
            id,
            host: host(&address)?,
            port,
            weight: field::weight(payload.setting("weight"))?,
            warm_up: payload.warm_up(),
            zone: field::text("zone", payload.setting("zone"))?,
            health: payload.health(enabled)?,
            metadata: payload.metadata(ssl_port),
        };
        let ssl = ssl_port.map(|port| ("ssl".to_owned(), port));
        let named = ssl.into_iter().chain(payload.ports());
        let mut instances = vec![own];
        for (name, port) in named {
            instances.push(Decoded {
                part: Some(name),
                port,
                ..instances[0].clone()
            });
        }
        Ok(Registration::Instances(instances))
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
