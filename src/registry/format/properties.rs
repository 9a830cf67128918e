//! Every decoder on any bytes: a valid instance or a reason, and never a panic.

use proptest::{prelude::*, sample::Index};

use super::{golden::cases, *};
use crate::{
    model::Weight,
    registry::registration::{Decoded, Host},
};

/// A valid or invalid payload of the golden set, with bytes overwritten, dropped and doubled.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let payloads: Vec<_> = cases().into_iter().map(|(_, _, data)| data).collect();
    let edit = (any::<Index>(), any::<u8>(), 0..3_u8);
    let edits = prop::collection::vec(edit, 0..6);
    (prop::sample::select(payloads), edits).prop_map(|(mut data, edits)| {
        for (at, byte, kind) in edits {
            let at = at.index(data.len() + 1);
            match kind {
                0 if at < data.len() => data[at] = byte,
                1 => data.truncate(at),
                _ => data.insert(at, byte),
            }
        }
        data
    })
}

const KEYS: [&str; 16] = [
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

fn check(data: &[u8]) {
    let znode = Znode::new("i-1", data, Stat::default());
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
    fn random_bytes_never_panic(data in prop::collection::vec(any::<u8>(), 0..300)) {
        check(&data);
    }

    #[test]
    fn random_text_never_panics(text in "(?s).{0,100}", brace in any::<bool>()) {
        check(if brace { format!("{{{text}}}") } else { text }.as_bytes());
    }

    #[test]
    fn mutated_payloads_never_panic(data in mutated()) {
        check(&data);
    }

    #[test]
    fn unexpected_json_never_panics(data in hostile_json()) {
        check(&data);
    }
}

#[test]
fn deep_nesting_is_a_reason() {
    for open in [
        "[",
        "{\"payload\":",
        "{\"metadata\":[",
        "{\"x\":[{\"payload\":",
    ] {
        check(open.repeat(20_000 / open.len()).as_bytes());
        check(format!("{{\"payload\":{}", open.repeat(10_000 / open.len())).as_bytes());
    }
}
