//! `host:port`, the form that a shell script writes.
//!
//! It refuses to know anything but an address: such an instance has the default weight, no zone and
//! is healthy while its znode lives. An IPv6 address stands in brackets (RFC 3986), since its own
//! colons would make the port a guess. White space around the whole is tolerated.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Format, Znode, field, host::host};
use crate::{
    model::{Health, Weight},
    registry::{
        reason::{Reason, quoted},
        registration::{Decoded, Registration},
    },
};

#[derive(Debug)]
pub(super) struct Plain;

impl Format for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }

    /// Any text that is no JSON object: the last resort.
    fn recognises(&self, znode: &Znode<'_>) -> bool {
        znode.text().is_ok_and(|text| !text.starts_with('{'))
    }

    fn decode(&self, znode: &Znode<'_>) -> Result<Registration, Reason> {
        let (address, port) = split(znode.text()?)?;
        Ok(Registration::Instances(vec![Decoded {
            part: None,
            id: None,
            host: host(address)?,
            port: digits(port)?,
            weight: Weight::default(),
            warm_up: None,
            zone: None,
            health: Health::Healthy,
            metadata: BTreeMap::new(),
        }]))
    }
}

/// A port as plain digits: what JSON calls a number (`8e3`) is a slip here.
fn digits(port: &str) -> Result<u16, Reason> {
    let value = Value::from(port);
    if port.bytes().all(|b| b.is_ascii_digit()) {
        field::port("port", &value)
    } else {
        Err(field::refuse("port", &value, "use digits: 1..=65535"))
    }
}

/// Host and port, the host with its brackets.
fn split(text: &str) -> Result<(&str, &str), Reason> {
    let expected = |problem: &str| Reason::new(format!("{} {problem}", quoted(text)));
    let (host, port) = text
        .rsplit_once(':')
        .ok_or_else(|| expected("has no port; write host:port or JSON"))?;
    if text.starts_with('[') {
        return if host.ends_with(']') {
            Ok((host, port))
        } else {
            Err(expected(
                "is not [IPv6]:port; write one address and its port",
            ))
        };
    }
    if host.contains(':') && !host.contains("//") {
        return Err(expected(
            "has several colons; write [IPv6]:port or IPv4:port",
        ));
    }
    Ok((host, port))
}
