//! A URL as Dubbo writes it into the name of a znode: encoded as a whole, since a name holds no slash.
//!
//! It refuses to know what its parameters mean. `SCHEME://[USER[:PASSWORD]@]HOST[:PORT]/PATH?KEY=VALUE&…`; the host
//! may be an IPv6 address with or without brackets. A key that begins with `default.` counts where the key behind it
//! is not there. Keys and values without content are left out; user and password are not kept.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::registry::reason::{Reason, quoted};

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Url {
    /// In lower case.
    pub(super) scheme: String,
    /// As it is written, also with brackets; may be empty.
    pub(super) host: String,
    pub(super) port: Option<String>,
    /// Without its first slash.
    pub(super) path: String,
    pub(super) parameters: BTreeMap<String, String>,
}

/// Whether a name is an encoded URL. Cheap: most names are not.
pub(super) fn is_encoded(name: &str) -> bool {
    let Some((scheme, rest)) = name.split_once('%') else {
        return false;
    };
    let is_mark = |rest: &str| {
        rest.get(..8)
            .is_some_and(|mark| mark.eq_ignore_ascii_case("3A%2F%2F"))
    };
    !scheme.is_empty() && scheme.chars().all(is_of_scheme) && is_mark(rest)
}

fn is_of_scheme(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.')
}

impl Url {
    pub(super) fn decode(name: &str) -> Result<Self, Reason> {
        let no_url = || Reason::new(format!("name {} is no URL of Dubbo's", quoted(name)));
        let decoded = percent_decoded(name)?;
        let (scheme, rest) = decoded.split_once("://").ok_or_else(no_url)?;
        if scheme.is_empty() || !scheme.chars().all(is_of_scheme) {
            return Err(no_url());
        }
        let (body, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = body.split_once('/').unwrap_or((body, ""));
        let socket = authority.rsplit_once('@').map_or(authority, |(_, s)| s);
        let (host, port) = split(socket);
        Ok(Self {
            scheme: scheme.to_ascii_lowercase(),
            host: host.to_owned(),
            port: port.map(str::to_owned),
            path: path.to_owned(),
            parameters: parameters(query),
        })
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.parameters.get(key).map(String::as_str)
    }

    pub(super) fn value(&self, key: &str) -> Option<Value> {
        self.get(key).map(Value::from)
    }
}

/// Host and port. What is behind the last colon is the port, also of an IPv6 address without
/// brackets: Dubbo always writes one there.
fn split(socket: &str) -> (&str, Option<&str>) {
    match socket.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (socket, None),
    }
}

fn parameters(query: &str) -> BTreeMap<String, String> {
    let mut given = BTreeMap::new();
    let mut defaults = Vec::new();
    for entry in query.split(['&', ';']) {
        let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
        let (key, value) = (key.trim(), value.trim());
        if key.is_empty() || value.is_empty() {
            continue;
        }
        match key.strip_prefix("default.") {
            Some(key) if !key.is_empty() => defaults.push((key, value)),
            _ => drop(given.insert(key.to_owned(), value.to_owned())),
        }
    }
    for (key, value) in defaults {
        let entry = given.entry(key.to_owned());
        entry.or_insert_with(|| value.to_owned());
    }
    given
}

/// What `application/x-www-form-urlencoded` stands for.
fn percent_decoded(text: &str) -> Result<String, Reason> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => match (rest.next().and_then(hex), rest.next().and_then(hex)) {
                (Some(high), Some(low)) => high << 4 | low,
                _ => return Err(Reason::new(format!("name {} is cut", quoted(text)))),
            },
            byte => byte,
        });
    }
    String::from_utf8(bytes)
        .map_err(|_| Reason::new(format!("name {} does not encode UTF-8", quoted(text))))
}

fn hex(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(text: &str) -> String {
        text.bytes()
            .map(|b| match b {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'*' => {
                    char::from(b).to_string()
                }
                b' ' => "+".to_owned(),
                b => format!("%{b:02X}"),
            })
            .collect()
    }

    fn url(text: &str) -> Url {
        let name = encoded(text);
        assert!(is_encoded(&name), "{name}");
        Url::decode(&name).unwrap()
    }

    #[test]
    fn host_and_port_are_found_in_every_form() {
        for (text, host, port) in [
            ("dubbo://10.0.0.7:20880/a.B", "10.0.0.7", Some("20880")),
            (
                "dubbo://[2001:db8::7]:20880/a.B",
                "[2001:db8::7]",
                Some("20880"),
            ),
            (
                "dubbo://2001:db8::7:20880/a.B",
                "2001:db8::7",
                Some("20880"),
            ),
            ("rest://[2001:db8::7]/a.B", "[2001:db8::7]", None),
            ("tri://user:secret@node:1?x=y", "node", Some("1")),
            ("injvm:///a.B", "", None),
        ] {
            let url = url(text);
            assert_eq!((&*url.host, url.port.as_deref()), (host, port), "{text}");
        }
    }

    #[test]
    fn a_default_counts_where_nothing_else_is_said() {
        let url = url(
            "dubbo://a:1/b?default.weight=5&weight=7&default.group=g&default.=x&owner=&=&k=a=b",
        );
        let expected = [
            ("default.", "x"),
            ("group", "g"),
            ("k", "a=b"),
            ("weight", "7"),
        ];
        let expected = expected.map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(url.parameters, BTreeMap::from(expected));
    }

    #[test]
    fn no_url_and_broken_codes_are_refused() {
        for name in [
            "10.0.0.7:8080",
            "a%3A%2F%2",
            "%zz",
            "a%3A%2F%2F%FF",
            "%3A%2F%2Fa",
        ] {
            assert!(Url::decode(name).is_err(), "{name}");
        }
        for name in ["", "%", "a%3A", "%3A%2F%2Fa", "ä%3A%2F%2Fa", "a b%3A%2F%2F"] {
            assert!(!is_encoded(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            scheme in "[a-z][a-z0-9]{0,6}",
            host in "[a-z0-9.]{1,12}",
            port in any::<u16>(),
            path in "[^?\\s]{0,12}",
            parameters in prop::collection::btree_map("[a-z][a-z.]{0,6}", "[^&;\\s][^&;]{0,6}[^&;\\s]", 0..4),
        ) {
            prop_assume!(!parameters.keys().any(|k| k.starts_with("default.")));
            let query: Vec<_> = parameters.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let text = format!("{scheme}://{host}:{port}/{path}?{}", query.join("&"));
            let port = Some(port.to_string());
            prop_assert_eq!(url(&text), Url { scheme, host, port, path, parameters });
        }
    }
}
