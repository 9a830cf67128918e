//! Every decoder on any bytes: a valid instance or a reason, and never a panic.

use std::fmt::Write as _;

use proptest::{prelude::*, sample::Index};

use super::{golden::cases, *};
use crate::{
    model::Weight,
    registry::registration::{Decoded, Host},
};

/// A valid or invalid znode of the golden set, with bytes of its name and data overwritten, dropped and doubled.
fn mutated() -> impl Strategy<Value = (String, Vec<u8>)> {
    let znodes: Vec<_> = cases().into_iter().map(|c| (c.name, c.data)).collect();
    (prop::sample::select(znodes), edits(), edits()).prop_map(|((name, data), of_name, of_data)| {
        let name = edited(name.into_bytes(), of_name);
        let name = String::from_utf8_lossy(&name).into_owned();
        (name, edited(data, of_data))
    })
}

type Edit = (Index, u8, u8);

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    prop::collection::vec((any::<Index>(), any::<u8>(), 0..3_u8), 0..6)
}

fn edited(mut data: Vec<u8>, edits: Vec<Edit>) -> Vec<u8> {
    for (at, byte, kind) in edits {
        let at = at.index(data.len() + 1);
        match kind {
            0 if at < data.len() => data[at] = byte,
            1 => data.truncate(at),
            _ => data.insert(at, byte),
        }
    }
    data
}

const KEYS: [&str; 30] = [
    "address",
    "host",
    "port",
    "sslPort",
    "weight",
    "zone",
    "id",
    "enabled",
    "healthy",
    "metadata",
    "payload",
    "instance_status",
    "serviceType",
    "uriSpec",
    "@class",
    "x",
    "name",
    "labels",
    "haproxy_server_options",
    "serviceEndpoint",
    "additionalEndpoints",
    "status",
    "shard",
    "vector",
    "select",
    "management.port",
    "dubbo.endpoints",
    "timestamp",
    "available",
    "protocol",
];

const NAMES: [&str; 4] = [
    "i-1",
    "member_0000000001",
    "vector_0000000002",
    "base64_9_x",
];

/// JSON objects with the keys that decoders read and values that they may not expect.
fn hostile_json() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|b| b.to_string()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| serde_json::Value::from(n).to_string()),
        (0..70_000_i64).prop_map(|n| n.to_string()),
        Just("\"10.0.0.7\"".to_owned()),
        Just("\"node-7\"".to_owned()),
        Just("\"inet=node:80\"".to_owned()),
        Just("\"weight 5 disabled\"".to_owned()),
        any::<String>().prop_map(|s| serde_json::Value::from(s).to_string()),
    ];
    let json = leaf.prop_recursive(4, 32, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|v| format!("[{}]", v.join(","))),
            prop::collection::vec((prop::sample::select(&KEYS[..]), inner), 0..8).prop_map(object),
        ]
    });
    let members = prop::collection::btree_map(prop::sample::select(&KEYS[..]), json, 0..9);
    members.prop_map(|members| object(members).into_bytes())
}

fn object<'a>(members: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let members: Vec<_> = members
        .into_iter()
        .map(|(key, value)| format!("\"{key}\":{value}"))
        .collect();
    format!("{{{}}}", members.join(","))
}

fn check(name: &str, data: &[u8]) {
    let znode = Znode::new(name, data, Stat::default());
    for choice in FormatChoice::ALL {
        for format in choice.candidates() {
            let _ = format.recognises(&znode);
            check_outcome(format.decode(&znode).map_err(Reason::into_string));
        }
        let outcome = choice.decode(&znode);
        check_outcome(outcome.map(|(_, d)| d).map_err(|r| r.reason));
    }
}

fn plain(text: &str) -> bool {
    !text.contains(char::is_control)
}

fn check_instance(decoded: &Decoded) {
    assert!(decoded.port > 0 && decoded.weight <= Weight::MAX);
    match &decoded.host {
        Host::Ip(address) => {
            assert!(!address.is_unspecified() && !address.is_multicast());
            assert_eq!(*address, address.to_canonical());
        }
        Host::Name(name) => {
            assert!(!name.is_empty() && plain(name) && !name.ends_with('.'));
            assert_eq!(name.to_lowercase(), **name);
        }
    }
    let texts = [&decoded.zone, &decoded.id, &decoded.part];
    assert!(
        texts
            .into_iter()
            .flatten()
            .all(|t| plain(t) && !t.is_empty())
    );
    assert!(decoded.metadata.iter().all(|(k, v)| plain(k) && plain(v)));
}

fn check_outcome(outcome: Result<Registration, String>) {
    match outcome {
        Ok(Registration::Instances(instances)) => {
            assert!(!instances.is_empty());
            instances.iter().for_each(check_instance);
        }
        Ok(Registration::Weights(factors)) => {
            assert!(
                factors
                    .iter()
                    .all(|f| f.weight.is_finite() && f.weight >= 0.0)
            );
        }
        Err(reason) => {
            assert!(!reason.is_empty() && plain(&reason));
            assert!(reason.chars().count() <= Reason::MAX, "{reason}");
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(name in ".{0,40}", data in prop::collection::vec(any::<u8>(), 0..300)) {
        check(&name, &data);
    }

    #[test]
    fn random_text_never_panics(text in "(?s).{0,100}", brace in any::<bool>()) {
        check("i-1", if brace { format!("{{{text}}}") } else { text }.as_bytes());
    }

    #[test]
    fn mutated_znodes_never_panic((name, data) in mutated()) {
        check(&name, &data);
    }

    #[test]
    fn unexpected_json_never_panics(name in prop::sample::select(&NAMES[..]), data in hostile_json()) {
        check(name, &data);
    }

    #[test]
    fn unexpected_urls_never_panic(
        scheme in "[a-z%]{0,8}",
        rest in "[a-z0-9.:/@?&=;%\\[\\]\u{e4}]{0,60}",
        keys in prop::collection::vec((prop::sample::select(&URL_KEYS[..]), ".{0,12}"), 0..6),
    ) {
        let query: Vec<_> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let url = format!("://{rest}?{}", query.join("&"));
        let mut name = scheme;
        for byte in url.bytes() {
            let _ = write!(name, "%{byte:02X}");
        }
        check(&name, b"");
    }

    #[test]
    fn unexpected_encoded_names_never_panic(json in hostile_json(), length in 0..400_usize, exact in any::<bool>()) {
        use base64::{Engine, engine::general_purpose::URL_SAFE};
        let encoded = URL_SAFE.encode(&json);
        let length = if exact { encoded.len() } else { length };
        check(&format!("base64_{length}_{encoded}_0000000001"), b"");
    }
}

const URL_KEYS: [&str; 12] = [
    "weight",
    "warmup",
    "timestamp",
    "group",
    "version",
    "enabled",
    "disabled",
    "category",
    "side",
    "zone",
    "default.weight",
    "methods",
];

#[test]
fn deep_nesting_is_a_reason() {
    for open in [
        "[",
        "{\"payload\":",
        "{\"metadata\":[",
        "{\"x\":[{\"payload\":",
        "{\"serviceEndpoint\":",
        "{\"labels\":",
    ] {
        check("i-1", open.repeat(20_000 / open.len()).as_bytes());
        check(
            "i-1",
            format!("{{\"payload\":{}", open.repeat(10_000 / open.len())).as_bytes(),
        );
    }
}
