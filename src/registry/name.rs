//! What a service may be called: a name that is a host in every client.
//!
//! It refuses to know other services; that two names differ in more than case is the index's
//! matter. Invariant: an accepted name is a host name of a mesh (`[A-Za-z0-9._-]`), so it can be a
//! cluster, a virtual host's domain and a gRPC target as it is, never holds a separator of cluster
//! names (`|`, `:`) and is never a wildcard. Source: RFC 1123 for the lengths; `_` is let through
//! because fleets use it and both Envoy and gRPC take it.

use super::reason::{Reason, quoted};

const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// What is wrong with a name, if anything is.
pub fn check(name: &str) -> Result<(), Reason> {
    if let Some(bad) = name.chars().find(|c| !allowed(*c)) {
        return Err(refuse(
            name,
            &format!(
                "holds {}; use letters, digits, `.`, `-` and `_`",
                quoted(&bad.to_string())
            ),
        ));
    }
    if name.is_empty() || name.len() > NAME_MAX {
        let problem = format!("has {} characters; use 1 to {NAME_MAX}", name.len());
        return Err(refuse(name, &problem));
    }
    if name.starts_with(['.', '-']) || name.ends_with(['.', '-']) {
        return Err(refuse(
            name,
            "must begin and end with a letter, digit or `_`",
        ));
    }
    match name
        .split('.')
        .find(|l| l.is_empty() || l.len() > LABEL_MAX)
    {
        None => Ok(()),
        Some("") => Err(refuse(name, "holds `..`; use one dot between labels")),
        Some(label) => {
            let problem = format!(
                "has a label of {} characters; use {LABEL_MAX} at most between dots",
                label.len()
            );
            Err(refuse(name, &problem))
        }
    }
}

fn allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')
}

fn refuse(name: &str, problem: &str) -> Reason {
    Reason::new(format!("service name {} {problem}", quoted(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_real_fleets_pass() {
        let long = [
            "a".repeat(63),
            "b".repeat(63),
            "c".repeat(63),
            "d".repeat(61),
        ]
        .join(".");
        assert_eq!(long.len(), 253);
        for name in [
            "orders",
            "a",
            "7",
            "com.example.OrderService",
            "user_api-v2",
            "_x_",
            &long,
        ] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn names_that_are_no_hosts_are_refused() {
        let (label, name) = ("a".repeat(64), vec!["a"; 128].join("."));
        let bad = [
            "", "*", "*.orders", "a|b", "a:b", "a b", "ö", "a/b", ".a", "a.", "-a", "a-", "a..b",
            "a\n", "a\0", &label, &name,
        ];
        for name in bad {
            assert!(check(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn the_reason_names_the_character_and_the_remedy() {
        assert_eq!(
            check("a|b").unwrap_err().as_str(),
            "service name `a|b` holds `|`; use letters, digits, `.`, `-` and `_`"
        );
    }
}
