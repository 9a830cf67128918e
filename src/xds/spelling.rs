//! What a client calls a resource, and what it is called here.
//!
//! A sidecar that loads virtual hosts on demand asks for `ROUTES/HOST` with the host as a request had
//! it: in any case, with a port, with a trailing dot. All of these are one host. It refuses to know
//! which hosts there are. Invariant: the spelling here is the one of `translate`'s names, and the
//! spelling of a spelling is itself. Source: `vhds.proto`, "names are split at the last slash".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::resource::{ResourceType, canonical_host};

/// Whether answers have to repeat how the client spelled the name.
pub fn is_free(kind: ResourceType) -> bool {
    kind == ResourceType::VirtualHost
}

/// The name as it is spelled here.
pub fn canonical(kind: ResourceType, name: &str) -> String {
    match name.rsplit_once('/') {
        Some((routes, host)) if is_free(kind) => {
            format!("{routes}/{}", canonical_host(host))
        }
        _ => name.to_owned(),
    }
}

/// How the names that want an answer were spelled, where the answer has to repeat it.
#[derive(Debug, Default)]
pub struct Spellings {
    asked: BTreeMap<Arc<str>, Asked>,
    count: usize,
    /// So many came with the first request, whose size is bounded.
    brought: usize,
}

/// What was asked for under one name.
#[derive(Debug, Default)]
pub struct Asked {
    pub aliases: BTreeSet<Arc<str>>,
    /// The client was subscribed to it before, and may hold it.
    pub known: bool,
}

impl Spellings {
    pub fn ask(&mut self, name: &Arc<str>, spelled: &str, known: bool) {
        let asked = self.asked.entry(name.clone()).or_default();
        asked.known |= known;
        self.count += usize::from(asked.aliases.insert(spelled.into()));
    }

    pub fn take(&mut self, name: &str) -> Option<Asked> {
        let asked = self.asked.remove(name)?;
        self.count -= asked.aliases.len();
        self.brought = self.brought.min(self.count);
        Some(asked)
    }

    /// The first request was read.
    pub fn note_brought(&mut self) {
        self.brought = self.count;
    }

    /// How many names want an answer.
    pub fn names(&self) -> usize {
        self.asked.len()
    }

    /// Spellings that nothing but a limit bounds.
    pub fn excess(&self) -> usize {
        self.count - self.brought
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_host_is_known_in_any_case_with_any_port_and_a_trailing_dot() {
        for (spelled, name) in [
            ("outbound/orders", "outbound/orders"),
            ("outbound/Orders:8080", "outbound/orders"),
            ("outbound/orders.mesh.:80", "outbound/orders.mesh"),
            ("outbound/orders:", "outbound/orders"),
            ("outbound/orders:80.", "outbound/orders"),
            ("outbound/[2001:DB8::1]:80", "outbound/[2001:db8::1]"),
            ("outbound/2001:db8::1", "outbound/2001:db8::1"),
            ("a/b/Orders:1", "a/b/orders"),
            ("outbound/orders:http", "outbound/orders:http"),
            ("outbound", "outbound"),
        ] {
            assert_eq!(canonical(ResourceType::VirtualHost, spelled), name);
        }
    }

    #[test]
    fn other_types_are_called_what_they_are_called() {
        assert_eq!(canonical(ResourceType::Cluster, "a/B:80"), "a/B:80");
    }

    proptest! {
        #[test]
        fn any_text_has_a_spelling(name in ".{0,40}") {
            canonical(ResourceType::VirtualHost, &name);
        }

        #[test]
        fn the_spelling_of_a_spelling_is_itself(host in "[a-zA-Z0-9.-]{1,20}(:[0-9]{1,5})?[.]?") {
            let once = canonical(ResourceType::VirtualHost, &format!("outbound/{host}"));
            prop_assert_eq!(canonical(ResourceType::VirtualHost, &once), once);
        }
    }
}
