//! What a service may be called, and the host name that it has in a mesh.
//!
//! It refuses to know other services; that two names lead to one host is the index's matter.
//! A service keeps its name wherever names are free (clusters, gRPC targets, the admin API). Where a
//! host is needed, it is found by these steps, which never change:
//!
//! 1. Letters become small, whatever is no `a`–`z`, `0`–`9`, `.` or `-` becomes `-`.
//! 2. Each part between dots loses the `-` at its ends; empty parts go.
//! 3. A part of more than 63 characters is its first 54, `-`, and eight hexadecimal digits of its hash.
//!
//! Invariant: the host of an accepted name is one that RFC 1123 allows. Names never hold what
//! separates them elsewhere: `|` (subsets), `*` (wildcards), white space.

use xxhash_rust::xxh3::xxh3_64;

use super::reason::{Reason, quoted};

/// Of names and of hosts, in characters.
const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// The host name of a service, or what is wrong with its name.
pub fn host(name: &str) -> Result<String, Reason> {
    if let Some(bad) = name.chars().find(|c| !allowed(*c)) {
        let bad = quoted(&bad.to_string());
        return Err(refuse(
            name,
            &format!("holds {bad}; use anything but `|`, `*` and white space"),
        ));
    }
    if name.len() > NAME_MAX {
        let problem = format!("has {} bytes; use 1 to {NAME_MAX}", name.len());
        return Err(refuse(name, &problem));
    }
    let labels = name.split('.').map(label).filter(|label| !label.is_empty());
    let host = labels.collect::<Vec<_>>().join(".");
    if host.is_empty() {
        return Err(refuse(name, "holds no letter or digit; use some"));
    }
    Ok(host)
}

fn allowed(c: char) -> bool {
    !c.is_whitespace() && !c.is_control() && !matches!(c, '|' | '*')
}

fn label(part: &str) -> String {
    let plain = |c: char| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9') => c,
        _ => '-',
    };
    let all: String = part.chars().map(plain).collect();
    let label = all.trim_matches('-');
    if label.len() <= LABEL_MAX {
        return label.to_owned();
    }
    // Eight digits and what joins them.
    let head = &label[..LABEL_MAX - 9];
    format!("{head}-{:08x}", xxh3_64(part.as_bytes()) & 0xffff_ffff)
}

fn refuse(name: &str, problem: &str) -> Reason {
    Reason::new(format!("service name {} {problem}", quoted(name)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_of_real_fleets_have_the_documented_hosts() {
        for (name, expected) in [
            ("orders", "orders"),
            ("7", "7"),
            ("com.example.OrderService", "com.example.orderservice"),
            ("com.foo.Bar:blue:1.0", "com.foo.bar-blue-1.0"),
            ("com.foo.Bar:1.0", "com.foo.bar-1.0"),
            ("user_api-v2", "user-api-v2"),
            ("www-data.prod.hello", "www-data.prod.hello"),
            ("_x_..Y.", "x.y"),
            ("größe", "gr--e"),
        ] {
            assert_eq!(host(name).as_deref(), Ok(expected), "{name}");
        }
    }

    #[test]
    fn a_long_label_keeps_its_beginning_and_differs_by_its_whole() {
        let [one, other] = ["x", "y"].map(|end| host(&format!("{}{end}", "a".repeat(80))).unwrap());
        assert_ne!(one, other);
        assert_eq!(one.len(), LABEL_MAX);
        assert!(one.starts_with(&"a".repeat(54)), "{one}");
        assert_eq!(host(&"a".repeat(63)).unwrap(), "a".repeat(63));
    }

    #[test]
    fn names_that_separate_other_names_are_refused() {
        let long = "a".repeat(254);
        let bad = [
            "", "*", "*.orders", "a|b", "a b", "a\n", "a\0", "--", ":", &long,
        ];
        for name in bad {
            assert!(host(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn the_reason_names_the_character_and_the_remedy() {
        assert_eq!(
            host("a|b").unwrap_err().as_str(),
            "service name `a|b` holds `|`; use anything but `|`, `*` and white space"
        );
    }

    proptest! {
        #[test]
        fn a_host_is_one_that_rfc_1123_allows(name in "\\PC{0,70}|[a-zA-Z._:-]{1,253}") {
            if let Ok(host) = host(&name) {
                prop_assert!(host.len() <= NAME_MAX && !host.is_empty());
                for label in host.split('.') {
                    prop_assert!((1..=LABEL_MAX).contains(&label.len()));
                    prop_assert!(!label.starts_with('-') && !label.ends_with('-'));
                    prop_assert!(label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')));
                }
                prop_assert_eq!(super::host(&host), Ok(host.clone()), "a host is its own");
            }
        }
    }
}
