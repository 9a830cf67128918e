//! Where an instance says that it is: an IP literal or a host name.
//!
//! It refuses to know what a name resolves to. Invariant: an IP that passes is one host's and is
//! written one way (an IPv4 address in IPv6 clothes, `::ffff:10.0.0.7`, as dual-stack JVMs do, becomes
//! IPv4: it is the same socket, and must not be served twice); a name that passes can be asked of a
//! resolver and is in lower case. Source: RFC 1123 for names; `_` is let through because fleets use
//! it. A name whose last label is a number is a broken IPv4 address to every resolver (WHATWG URL,
//! "ends in a number"), so it is refused as one.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use super::super::{
    reason::{Reason, quoted},
    registration::Host,
};

const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// An IP literal, also in brackets, that a client can connect to, or a host name.
pub(super) fn host(text: &str) -> Result<Host, Reason> {
    let text = text.trim();
    let bare = text
        .strip_prefix('[')
        .and_then(|t| t.strip_suffix(']'))
        .unwrap_or(text);
    match bare.parse::<IpAddr>() {
        Ok(ip) => connectable(ip.to_canonical(), text).map(Host::Ip),
        Err(_) => name(text).map(Host::Name).ok_or_else(|| refusal(text)),
    }
}

/// An IP that is one host's; `text` is how it was written.
pub fn connectable(ip: IpAddr, text: &str) -> Result<IpAddr, Reason> {
    let kind = if ip.is_unspecified() {
        "every address of a host"
    } else if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        "a group of hosts"
    } else {
        return Ok(ip);
    };
    Err(Reason::new(format!(
        "address {} means {kind}; register the address of one",
        quoted(text)
    )))
}

/// As it is written beside a port: an IPv6 address in brackets.
pub(super) fn socket(host: &Host, port: u16) -> String {
    match host {
        Host::Ip(ip) => SocketAddr::new(*ip, port).to_string(),
        Host::Name(name) => format!("{name}:{port}"),
    }
}

pub(super) fn text(host: &Host) -> String {
    match host {
        Host::Ip(ip) => ip.to_string(),
        Host::Name(name) => name.to_string(),
    }
}

fn name(text: &str) -> Option<Arc<str>> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let last = name.rsplit('.').next().unwrap_or_default();
    let valid = name.len() <= NAME_MAX && name.split('.').all(is_label) && !is_number(last);
    valid.then(|| name.to_ascii_lowercase().into())
}

fn is_label(label: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    (1..=LABEL_MAX).contains(&label.len())
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// What resolvers take for a part of an IPv4 address: digits, or hexadecimal ones after `0x`.
fn is_number(label: &str) -> bool {
    let hex = label.strip_prefix("0x").or(label.strip_prefix("0X"));
    match hex {
        Some(hex) => hex.bytes().all(|b| b.is_ascii_hexdigit()),
        None => label.bytes().all(|b| b.is_ascii_digit()),
    }
}

fn refusal(text: &str) -> Reason {
    let shown = quoted(text);
    Reason::new(if text.is_empty() {
        "address is empty; register an IP address or a host name".to_owned()
    } else if has_zone_id(text) {
        format!(
            "address {shown} has a zone id, which means nothing elsewhere; register one without"
        )
    } else {
        format!(
            "address {shown} is no IP address and no host name; register one, without port or scheme"
        )
    })
}

fn has_zone_id(text: &str) -> bool {
    let bare = text.trim_start_matches('[');
    bare.split_once('%')
        .is_some_and(|(ip, _)| ip.parse::<Ipv6Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(text: &str) -> Host {
        Host::Name(text.into())
    }

    #[test]
    fn an_ipv4_address_written_as_ipv6_becomes_ipv4() {
        assert_eq!(host("::ffff:10.0.0.7"), host("10.0.0.7"));
        assert_eq!(host("[::ffff:10.0.0.7]"), host(" 10.0.0.7\n"));
    }

    #[test]
    fn an_address_that_no_client_connects_to_is_refused() {
        for text in [
            "0.0.0.0",
            "::",
            "::ffff:0.0.0.0",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
        ] {
            assert!(host(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_host_name_is_told_in_lower_case_and_without_its_last_dot() {
        for (text, expected) in [
            ("node-7.example", "node-7.example"),
            ("Node-7.Example.COM.", "node-7.example.com"),
            (" localhost\n", "localhost"),
            ("my_host.3com.de", "my_host.3com.de"),
            ("ip-10-0-0-7", "ip-10-0-0-7"),
            ("10.0.0.7.nip.io", "10.0.0.7.nip.io"),
            ("0x1g", "0x1g"),
        ] {
            assert_eq!(host(text), Ok(named(expected)));
        }
    }

    #[test]
    fn a_broken_address_is_no_host_name() {
        let labels = [
            "a".repeat(63),
            "b".repeat(63),
            "c".repeat(63),
            "d".repeat(62),
        ]
        .join(".");
        assert_eq!(labels.len(), 254);
        for text in [
            "10.0.0",
            "10.0.0.256",
            "010.0.0.1",
            "1234",
            "0x7f000001",
            "0x",
            "10.0.0.7:80",
            "[::1",
            "[node]",
            "1.2.3.4.5",
            "a..b",
            ".",
            "-a",
            "a-.b",
            "a b",
            "münchen.de",
            "http://node",
            "*.example",
            &labels,
            &"a".repeat(64),
        ] {
            let reason = host(text).unwrap_err().into_string();
            assert!(
                reason.contains("is no IP address and no host name"),
                "{reason}"
            );
        }
        assert!(host(&labels[1..]).is_ok());
    }

    #[test]
    fn a_zone_id_is_refused_by_its_name() {
        for text in ["fe80::1%eth0", "[fe80::1%25eth0]"] {
            let reason = host(text).unwrap_err().into_string();
            assert!(reason.contains("has a zone id"), "{reason}");
        }
        let reason = host("node%eth0").unwrap_err().into_string();
        assert!(!reason.contains("zone id"), "{reason}");
    }

    proptest! {
        #[test]
        fn what_passes_passes_again_as_it_is(text in "[A-Za-z0-9.:_\\[\\]% -]{0,30}") {
            match host(&text) {
                Ok(Host::Ip(ip)) => prop_assert_eq!(host(&ip.to_string()), Ok(Host::Ip(ip))),
                Ok(Host::Name(name)) => prop_assert_eq!(host(&name), Ok(Host::Name(name.clone()))),
                Err(reason) => prop_assert!(!reason.as_str().is_empty()),
            }
        }
    }
}
