//! `SmartStack`: what nerve registers, and Synapse reads.
//!
//! `{"host", "port", "name", "weight", "haproxy_server_options", "labels"}`, in the data or, with path encoding, in the
//! znode's name: `base64_LENGTH_BASE64_SEQUENCE`; a name that cannot be read leaves the word to the data, as in
//! Synapse. It refuses to be `HAProxy`: of the server's options it knows `weight`, `disabled` and
//! `backup`, which serves only when no other is left; there is no such rank within a service here, so
//! it is not served. Labels are the metadata, and `zone` or `az` among them is the zone. The `available`
//! of go-nerve takes an instance out. That a persistent znode's owner may have gone is the registry's matter.

use std::collections::BTreeMap;

use base64::{
    Engine,
    alphabet::URL_SAFE,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    Format, PAYLOAD_MAX, Znode, field,
    host::host,
    json::{missing, parse, parse_text},
};
use crate::{
    model::{Health, Weight},
    registry::{
        reason::{Reason, quoted},
        registration::{Decoded, Registration},
    },
};

const ENCODED: &str = "base64_";
const OPTIONS: &str = "haproxy_server_options";

/// Ruby writes padding, others may not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[derive(Debug)]
pub(super) struct Nerve;

#[derive(Deserialize)]
struct Payload {
    host: Option<Value>,
    port: Option<Value>,
    name: Option<Value>,
    weight: Option<Value>,
    haproxy_server_options: Option<Value>,
    labels: Option<Value>,
    available: Option<Value>,
}

impl Format for Nerve {
    fn name(&self) -> &'static str {
        "nerve"
    }

    /// An encoded name; or a key that only nerve writes; or its `name` beside a `host`, where nothing
    /// is said that the simple form alone can say.
    fn recognises(&self, znode: &Znode<'_>) -> bool {
        let by_keys = || {
            znode
                .keys()
                .is_some_and(|keys| !keys.simple && (keys.nerve || (keys.host && keys.name)))
        };
        encoded(znode.name).is_some() || by_keys()
    }

    fn decode(&self, znode: &Znode<'_>) -> Result<Registration, Reason> {
        let payload: Payload = match encoded(znode.name) {
            None => parse(znode)?,
            Some(encoded) => match decoded_name(encoded).and_then(|text| parse_text(&text)) {
                Ok(payload) => payload,
                Err(reason) => parse(znode).map_err(|_| reason)?,
            },
        };
        Ok(Registration::Instances(vec![payload.instance()?]))
    }
}

impl Payload {
    fn instance(self) -> Result<Decoded, Reason> {
        let address = field::text("host", self.host.as_ref())?
            .ok_or_else(|| missing("host", "add \"host\" with an IP address or a host name"))?;
        let port = self.port.as_ref().filter(|port| !field::is_blank(port));
        let port = port.ok_or_else(|| missing("port", "add \"port\": 1..=65535"))?;
        let options = field::text(OPTIONS, self.haproxy_server_options.as_ref())?;
        let options = options.unwrap_or_default();
        let metadata = metadata(self.labels, &options);
        let zone = metadata.get("zone").or_else(|| metadata.get("az"));
        Ok(Decoded {
            part: None,
            id: field::text("name", self.name.as_ref())?,
            host: host(&address)?,
            port: field::port("port", port)?,
            weight: weight(self.weight.as_ref(), &options)?,
            warm_up: None,
            zone: zone
                .map(|zone| zone.trim().to_owned())
                .filter(|z| !z.is_empty()),
            health: health(self.available.as_ref(), &options)?,
            metadata,
        })
    }
}

/// Nerve's own weight, or `HAProxy`'s where there is none.
fn weight(own: Option<&Value>, options: &str) -> Result<Weight, Reason> {
    if own.is_some_and(|own| !field::is_blank(own)) {
        return field::weight(own);
    }
    let mut words = options.split_whitespace();
    let given = words.find(|word| *word == "weight").and(words.next());
    field::weight(given.map(Value::from).as_ref())
}

fn health(available: Option<&Value>, options: &str) -> Result<Health, Reason> {
    if !field::flag("available", available)? {
        return Ok(Health::Disabled("available is false".into()));
    }
    let out = |word: &&str| matches!(*word, "backup" | "disabled");
    let out = options.split_whitespace().find(out);
    Ok(out.map_or(Health::Healthy, |word| {
        Health::Disabled(format!("{OPTIONS} has {word}").into())
    }))
}

fn metadata(labels: Option<Value>, options: &str) -> BTreeMap<String, String> {
    let mut entries = match labels {
        Some(Value::Object(labels)) => labels,
        _ => Map::new(),
    };
    if !options.is_empty() {
        entries.insert(OPTIONS.to_owned(), options.into());
    }
    field::metadata(entries)
}

/// What follows the mark of an encoded name: `LENGTH_BASE64…`.
fn encoded(name: &str) -> Option<&str> {
    let rest = name.strip_prefix(ENCODED)?;
    rest.starts_with(|c: char| c.is_ascii_digit())
        .then_some(rest)
}

fn decoded_name(encoded: &str) -> Result<String, Reason> {
    let refuse = |problem: &str| Reason::new(format!("name {}: {problem}", quoted(encoded)));
    if encoded.len() > PAYLOAD_MAX {
        return Err(refuse("too long to be read"));
    }
    let text = encoded.split_once('_').and_then(|(len, rest)| {
        let len = len.parse().ok()?;
        rest.get(..len)
    });
    let text = text.ok_or_else(|| refuse("its length is wrong"))?;
    let bytes = BASE64.decode(text).map_err(|_| refuse("is no base64"))?;
    String::from_utf8(bytes).map_err(|_| refuse("does not encode UTF-8"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_stands_in_a_name_is_read(text in ".{0,60}", sequence in "(_[0-9]{10})?_?", padded in any::<bool>()) {
            let mut encoded = base64::engine::general_purpose::URL_SAFE.encode(&text);
            if !padded {
                encoded.truncate(encoded.trim_end_matches('=').len());
            }
            let name = format!("base64_{}_{encoded}{sequence}", encoded.len());
            prop_assert_eq!(decoded_name(super::encoded(&name).unwrap()), Ok(text));
        }
    }

    #[test]
    fn a_name_without_a_length_is_not_encoded() {
        assert_eq!(encoded("base64_"), None);
        assert_eq!(encoded("base64_i-1"), None);
        assert!(decoded_name("5_abc").is_err());
        assert!(decoded_name("99999999999999999999_abc").is_err());
    }
}
