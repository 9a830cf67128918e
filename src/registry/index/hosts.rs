//! Who has a host name, of the services that ask for it.
//!
//! It refuses to know how a service's name becomes a host. Invariant: the oldest (least `czxid` of the
//! service's znode, then path, then part) has it, whatever the order in which they came.

use std::{collections::BTreeMap, sync::Arc};

use super::make::Part;

/// A service by the path of its znode, and what of it.
pub(super) type Key = (Arc<str>, Part);

#[derive(Debug, Default)]
pub(super) struct Hosts(BTreeMap<String, Vec<(i64, Key)>>);

impl Hosts {
    pub fn holder(&self, host: &str) -> Option<&Key> {
        self.0.get(host)?.first().map(|(_, holder)| holder)
    }

    /// A service asks under another age than before. Where another service has the host afterwards,
    /// all that ask for it are told, since each of the others names the holder.
    pub fn ask(
        &mut self,
        host: &str,
        key: &Key,
        before: Option<i64>,
        after: Option<i64>,
    ) -> Vec<Key> {
        let asking = self.0.entry(host.to_owned()).or_default();
        let holder = asking.first().map(|(_, key)| key.clone());
        let place = |asking: &[(i64, Key)], age: i64| {
            asking.binary_search_by(|(of, other)| (of, other).cmp(&(&age, key)))
        };
        if let Some(Ok(at)) = before.map(|before| place(asking, before)) {
            asking.remove(at);
        }
        if let Some((after, Err(at))) = after.map(|after| (after, place(asking, after))) {
            asking.reserve_exact(1);
            asking.insert(at, (after, key.clone()));
        }
        let changed = holder.as_ref() != asking.first().map(|(_, key)| key);
        let told = asking.iter().filter(|_| changed);
        let told = told.map(|(_, key)| key.clone()).collect();
        if asking.is_empty() {
            self.0.remove(host);
        }
        told
    }
}
