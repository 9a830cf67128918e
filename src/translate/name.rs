//! What rendered resources are called, and the host names that a service answers to.
//!
//! It refuses to know what the resources hold. A cluster and its assignment bear the service's name
//! as it is, for both kinds of clients; so do a gRPC client's listener and route configuration. A
//! sidecar has one listener and one route configuration, both [`OUTBOUND`]. Invariant: a domain is
//! lower case, so that Envoy's case-blind look-up and our own comparison agree.

use std::sync::Arc;

/// The listener and the route configuration of a sidecar.
pub(super) const OUTBOUND: &str = "outbound";

/// What else a service answers to: its own name in lower case, where clients take that for a host
/// though it is none by RFC 1123. No host looks like it, and services with one alias have one host.
pub(super) fn alias(name: &str, host: &str) -> Option<String> {
    let alias = name.to_ascii_lowercase();
    let usual = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let labels = alias
        .split('.')
        .all(|label| (1..=63).contains(&label.len()));
    (alias != host && labels && alias.chars().all(usual)).then_some(alias)
}

/// What one virtual host of a sidecar's route configuration is called: `outbound/orders.mesh`.
pub(super) fn virtual_host(domain: &str) -> Arc<str> {
    format!("{OUTBOUND}/{domain}").into()
}

/// `outbound/orders.mesh` → `orders.mesh`
pub(super) fn domain(virtual_host: &str) -> &str {
    virtual_host
        .split_once('/')
        .map_or("", |(_, domain)| domain)
}

/// The suffix that makes a second host name of the first: `.mesh` of `mesh`.
#[derive(Clone, Debug)]
pub(super) struct Suffix(String);

impl Suffix {
    /// With an empty `domain` there are no second host names.
    pub fn new(domain: &str) -> Self {
        match domain.trim_matches('.') {
            "" => Self(String::new()),
            domain => Self(format!(".{}", domain.to_lowercase())),
        }
    }

    /// `orders` → `orders.mesh`
    pub fn append(&self, host: &str) -> Option<String> {
        (!self.0.is_empty()).then(|| format!("{host}{}", self.0))
    }

    /// `orders.mesh` → `orders`: the one service whose second host name this is.
    pub fn strip<'a>(&self, host: &'a str) -> Option<&'a str> {
        if self.0.is_empty() {
            return None;
        }
        host.strip_suffix(&self.0).filter(|host| !host.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suffix_comes_with_or_without_its_dot_and_in_any_case() {
        for domain in ["mesh", ".mesh", "MESH", "mesh."] {
            let suffix = Suffix::new(domain);
            assert_eq!(suffix.append("orders").as_deref(), Some("orders.mesh"));
            assert_eq!(suffix.strip("orders.mesh"), Some("orders"));
            assert_eq!(suffix.strip("orders"), None);
            assert_eq!(suffix.strip("ordersmesh"), None);
            assert_eq!(suffix.strip(".mesh"), None);
        }
    }

    #[test]
    fn an_empty_suffix_makes_no_second_host_name() {
        for domain in ["", "."] {
            assert_eq!(Suffix::new(domain).append("orders"), None);
            assert_eq!(Suffix::new(domain).strip("orders"), None);
        }
    }

    #[test]
    fn a_name_that_is_nearly_a_host_is_answered_too() {
        for (name, host, expected) in [
            ("orders", "orders", None),
            ("User_API", "user-api", Some("user_api")),
            ("com.foo.Bar:1.0", "com.foo.bar-1.0", None),
            ("a..b", "a.b", None),
        ] {
            assert_eq!(alias(name, host).as_deref(), expected, "{name}");
        }
    }
}
