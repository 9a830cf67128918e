//! The fields that formats share: ports, weights, flags, texts, metadata. Addresses are in `host`.
//!
//! It refuses to know the shapes that they stand in. Invariant: what passes is valid for every
//! client. In particular, control characters in texts become spaces: neither Envoy nor gRPC rejects
//! them in metadata or in a zone, and real registrations hold them (a commit message of two lines),
//! yet a value may end in a header, where CR, LF and NUL are an attack. HTTP folds broken lines the
//! same way.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value};

use super::super::reason::{Reason, quoted};
use crate::model::Weight;

/// A port as a number or as its digits.
pub(super) fn port(field: &str, value: &Value) -> Result<u16, Reason> {
    integer(value)
        .and_then(|n| u16::try_from(n).ok())
        .filter(|port| *port > 0)
        .ok_or_else(|| refuse(field, value, "use a whole number of 1..=65535"))
}

/// A weight as a number or as its digits; the default where there is none.
pub(super) fn weight(value: Option<&Value>) -> Result<Weight, Reason> {
    match value.filter(|v| !is_blank(v)) {
        Some(value) => whole_weight("weight", value),
        None => Ok(Weight::default()),
    }
}

/// A weight that stands under `key` in the metadata.
pub fn weight_under(key: &str, text: &str) -> Result<Weight, Reason> {
    whole_weight(key, &Value::from(text))
}

fn whole_weight(field: &str, value: &Value) -> Result<Weight, Reason> {
    integer(value)
        .and_then(|n| u32::try_from(n).ok())
        .and_then(Weight::new)
        .ok_or_else(|| {
            let range = format!("use a whole number of 0..={}", Weight::MAX.get());
            refuse(field, value, &range)
        })
}

/// A flag, true where there is none.
pub(super) fn flag(field: &str, value: Option<&Value>) -> Result<bool, Reason> {
    match value {
        None => Ok(true),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(value) if is_blank(value) => Ok(true),
        Some(value) => Err(refuse(field, value, "use true or false")),
    }
}

/// A text, number or truth value as text; a blank one is none.
pub(super) fn text(field: &str, value: Option<&Value>) -> Result<Option<String>, Reason> {
    match value.filter(|v| !is_blank(v)) {
        None => Ok(None),
        Some(value @ (Value::Array(_) | Value::Object(_))) => {
            Err(refuse(field, value, "use a text"))
        }
        Some(value) => Ok(Some(folded(value_text(value).trim().to_owned()))),
    }
}

/// Texts as they are, numbers and truth values as text, nested values as JSON text. Nulls, values
/// under an empty key, and what is no object at all say nothing and are left out.
pub(super) fn metadata(entries: Map<String, Value>) -> BTreeMap<String, String> {
    entries
        .into_iter()
        .filter(|(key, value)| !key.is_empty() && !value.is_null())
        .map(|(key, value)| (folded(key), folded(value_text_owned(value))))
        .collect()
}

/// `field` has a value that cannot be; `remedy` says what can.
pub(super) fn refuse(field: &str, value: &Value, remedy: &str) -> Reason {
    let shown = quoted(&value_text(value));
    Reason::new(format!("{field} {shown} is not valid; {remedy}"))
}

/// Whether a value says nothing: null, or a text of white space (an unset placeholder).
pub(super) fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        _ => false,
    }
}

/// The whole number that a number without fraction or a text of one stands for.
pub(super) fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => whole(number),
        Value::String(text) => {
            let text = text.trim();
            let number = || serde_json::from_str::<Number>(text).ok();
            text.parse()
                .ok()
                .or_else(|| number().as_ref().and_then(whole))
        }
        _ => None,
    }
}

fn whole(number: &Number) -> Option<i64> {
    number.as_i64().or_else(|| {
        let float = number.as_f64().filter(|f| f.fract() == 0.0)?;
        // Through text, since a cast would make the nearest number of what does not fit.
        format!("{float:.0}").parse().ok()
    })
}

fn value_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn value_text_owned(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

pub(super) fn folded(text: String) -> String {
    if text.contains(char::is_control) {
        text.replace(char::is_control, " ")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_port_is_a_number_or_its_digits() {
        for value in [json!(8080), json!("8080"), json!(8080.0), json!(" 8080 ")] {
            assert_eq!(port("port", &value), Ok(8080));
        }
        for value in [
            json!(0),
            json!(65_536),
            json!(-1),
            json!("http"),
            json!(80.5),
            json!(true),
            json!([80]),
        ] {
            assert!(port("port", &value).is_err(), "{value}");
        }
    }

    #[test]
    fn a_weight_is_whole_and_within_its_range() {
        let get = |value: Value| weight(Some(&value)).map(Weight::get);
        assert_eq!(weight(None), Ok(Weight::default()));
        assert_eq!(get(json!(null)), Ok(100));
        assert_eq!(get(json!(" ")), Ok(100));
        for (value, expected) in [
            (json!(0), 0),
            (json!(10_000), 10_000),
            (json!(50.0), 50),
            (json!("50.0"), 50),
            (json!("7"), 7),
        ] {
            assert_eq!(get(value), Ok(expected));
        }
        for value in [
            json!(-1),
            json!(10_001),
            json!(0.5),
            json!(1e300),
            json!(u64::MAX),
            json!("NaN"),
            json!("inf"),
            json!(true),
            json!({}),
        ] {
            assert!(get(value.clone()).is_err(), "{value}");
        }
        assert_eq!(
            get(json!(-1)).unwrap_err().as_str(),
            "weight `-1` is not valid; use a whole number of 0..=10000"
        );
    }

    #[test]
    fn metadata_becomes_text() {
        let Value::Object(entries) = json!({
            "text": "a", "number": 1, "float": 1.5, "yes": true, "none": null, "": "x",
            "list": [1, "b"], "map": {"b": 1, "a": null}, "lines": "a\r\nb\u{0}",
        }) else {
            unreachable!()
        };
        let expected = [
            ("float", "1.5"),
            ("lines", "a  b "),
            ("list", r#"[1,"b"]"#),
            ("map", r#"{"a":null,"b":1}"#),
            ("number", "1"),
            ("text", "a"),
            ("yes", "true"),
        ];
        let expected = expected.map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(metadata(entries), BTreeMap::from(expected));
    }

    #[test]
    fn a_flag_is_true_unless_it_says_otherwise() {
        assert_eq!(flag("enabled", None), Ok(true));
        assert_eq!(flag("enabled", Some(&json!(""))), Ok(true));
        assert_eq!(flag("enabled", Some(&json!("False"))), Ok(false));
        assert_eq!(flag("enabled", Some(&json!(false))), Ok(false));
        assert!(flag("enabled", Some(&json!(0))).is_err());
    }
}
