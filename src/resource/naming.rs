//! Resources that exist because a client asks for them by name.
//!
//! Most names that a client asks for are those of resources. What else a name may mean, and what is
//! answered where it means nothing, is known to whoever renders resources; streams only know this trait.

use std::{fmt, sync::Arc};

use super::{Profile, Resource, ResourceType};

/// Answers names that no resource has.
pub trait Naming: fmt::Debug + Send + Sync {
    /// Other names under which the resource may be found, the most exact first.
    fn spellings(&self, kind: ResourceType, name: &str) -> Vec<String>;

    /// The resource for that name, where there is no resource of that name. `found` is the resource of
    /// the first of the other names that has one.
    fn make(
        &self,
        kind: ResourceType,
        name: &str,
        found: Option<&Resource>,
        profile: Profile,
    ) -> Option<Made>;
}

/// A resource that was made for a name.
#[derive(Clone, Debug)]
pub struct Made {
    pub resource: Arc<Resource>,
    /// Whether nothing is registered under the name, so that the resource only says so.
    pub unknown: bool,
}

/// A host name without letter case, port and trailing dot, as clients look it up.
pub fn canonical_host(host: &str) -> String {
    let host = without_port(host.trim_end_matches('.')).trim_end_matches('.');
    host.to_lowercase()
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // The colons of a bare IPv6 address part no port off.
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit())
                && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}
