//! Which telling keys a JSON object has, by which formats are told apart.
//!
//! It refuses to know which format that makes. The keys are walked as far as the text is JSON, so that
//! what is broken at its end still has a format, whose reason is then the one to show.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

/// What an object holds at its top.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // A set, and its members are asked for by name.
pub(super) struct Keys {
    /// A key that only Curator's `ServiceInstance` has.
    pub(super) curator: bool,
    /// Curator's too, where there is no `host`.
    pub(super) payload: bool,
    /// A key that only a member of a server set has, or one of its vectors.
    pub(super) serverset: bool,
    /// A key that only nerve writes.
    pub(super) nerve: bool,
    /// A key of the simple form that no framework writes beside `host`.
    pub(super) simple: bool,
    pub(super) host: bool,
    pub(super) name: bool,
}

impl Keys {
    pub(super) fn of(object: &str) -> Self {
        let mut keys = Self::default();
        // An error ends the walk, and whoever decodes the object finds it again.
        let _ = serde_json::Deserializer::from_str(object).deserialize_map(&mut keys);
        keys
    }
}

#[derive(Deserialize)]
#[serde(field_identifier)]
enum Key {
    #[serde(
        rename = "sslPort",
        alias = "registrationTimeUTC",
        alias = "serviceType",
        alias = "uriSpec"
    )]
    Curator,
    #[serde(rename = "payload")]
    Payload,
    #[serde(
        rename = "serviceEndpoint",
        alias = "additionalEndpoints",
        alias = "vector"
    )]
    Serverset,
    #[serde(
        rename = "haproxy_server_options",
        alias = "labels",
        alias = "unavailable_reason"
    )]
    Nerve,
    #[serde(
        rename = "address",
        alias = "zone",
        alias = "healthy",
        alias = "enabled",
        alias = "metadata",
        alias = "id"
    )]
    Simple,
    #[serde(rename = "host")]
    Host,
    #[serde(rename = "name")]
    Name,
    #[serde(other)]
    Other,
}

impl<'de> Visitor<'de> for &mut Keys {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key()? {
            match key {
                Key::Curator => self.curator = true,
                Key::Payload => self.payload = true,
                Key::Serverset => self.serverset = true,
                Key::Nerve => self.nerve = true,
                Key::Simple => self.simple = true,
                Key::Host => self.host = true,
                Key::Name => self.name = true,
                Key::Other => {}
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_broken_behind_a_key_still_has_it() {
        let keys = Keys::of(r#"{"host":"a","labels":{"az":"#);
        assert!(keys.host && keys.nerve && !keys.name);
        assert_eq!(Keys::of("no object"), Keys::default());
    }
}
