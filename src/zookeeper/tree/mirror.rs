//! What has been published of the tree, and what will be next.
//!
//! It knows versions and never data that is already published. Refuses to know why a znode is put or
//! removed. Invariant: `published` with `staged` applied is the tree as far as it is known; an
//! epoch without its [`Mirror::sweep`] never takes anything away.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use bytes::Bytes;

use crate::registry::{Event, Stat};

#[derive(Debug, Default)]
pub(super) struct Mirror {
    published: BTreeMap<Arc<str>, Node>,
    /// By path, the last word: a put with its content, or `None` for a removal.
    staged: BTreeMap<Arc<str>, Option<Content>>,
    /// What exists and may not be read, by the load that it was seen in last. Some of it was published
    /// when it could still be read.
    unreadable: BTreeMap<Arc<str>, u32>,
    /// Those of them that were not told yet.
    refused: BTreeSet<Arc<str>>,
    /// Counts the loads; a node that carries an older one was not seen in this load.
    epoch: u32,
}

/// How many znodes a load found other than they were published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub added: usize,
    pub changed: usize,
    pub removed: usize,
}

/// What tells one content from another: a transaction and its time. The time guards against an
/// ensemble that was set up anew, where transactions are counted from the start.
pub(super) type Version = (i64, i64);

#[derive(Debug)]
struct Node {
    version: Version,
    epoch: u32,
}

#[derive(Debug)]
struct Content {
    version: Version,
    data: Bytes,
    stat: Stat,
}

impl Mirror {
    /// Takes these for published by somebody else.
    pub fn seed(&mut self, versions: impl Iterator<Item = (Arc<str>, Version)>) {
        let epoch = self.epoch;
        let node = |(path, version)| (path, Node { version, epoch });
        self.published = versions.map(node).collect();
    }

    /// Starts a load: forgets what was staged, and trusts nothing that was published until it is
    /// put again.
    pub fn begin(&mut self) {
        self.discard_staged();
        self.epoch = self.epoch.wrapping_add(1);
    }

    pub fn discard_staged(&mut self) {
        self.staged.clear();
        for path in std::mem::take(&mut self.refused) {
            self.unreadable.remove(&path);
        }
    }

    /// The znode exists. Stages nothing where `version` is already published, unless it was told to be
    /// unreadable since.
    pub fn put(&mut self, path: &Arc<str>, version: Version, data: Bytes, stat: Stat) {
        let told = self.unreadable.remove(path).is_some() && !self.refused.remove(path);
        if let Some(node) = self.published.get_mut(path)
            && node.version == version
            && !told
        {
            node.epoch = self.epoch;
            self.staged.remove(path);
        } else {
            let content = Content {
                version,
                data,
                stat,
            };
            self.staged.insert(Arc::clone(path), Some(content));
        }
    }

    /// The znode is gone, and with it what was below it.
    pub fn remove(&mut self, path: &str) {
        let mut gone = subtree(&self.published, path);
        for path in subtree(&self.staged, path) {
            self.staged.remove(&path);
        }
        if let Some((path, _)) = self.published.get_key_value(path) {
            gone.push(Arc::clone(path));
        }
        self.staged.remove(path);
        for path in self.unreadable_at(path) {
            if self.forget_unreadable(&path) {
                gone.push(path);
            }
        }
        self.staged
            .extend(gone.into_iter().map(|path| (path, None)));
    }

    /// The root went, and all that was below it before it. That is told ahead of what comes after it.
    pub fn remove_root(&mut self) {
        self.unreadable.clear();
        self.refused.clear();
        let gone = self.published.keys().map(|path| (Arc::clone(path), None));
        self.staged = gone.chain([(Arc::from(""), None)]).collect();
    }

    /// Whether nothing is left, as far as is known.
    pub fn is_empty(&self) -> bool {
        self.unreadable.is_empty()
            && self.staged.values().all(Option::is_none)
            && (self.published.keys()).all(|path| self.staged.contains_key(path))
    }

    /// Whether it was told, so that its end has to be told too.
    fn forget_unreadable(&mut self, path: &str) -> bool {
        self.unreadable.remove(path).is_some() && !self.refused.remove(path)
    }

    /// The path itself, if it is unreadable, and what is so below it.
    fn unreadable_at(&self, path: &str) -> Vec<Arc<str>> {
        let mut at = subtree(&self.unreadable, path);
        at.extend(
            self.unreadable
                .get_key_value(path)
                .map(|(path, _)| Arc::clone(path)),
        );
        at
    }

    /// Takes a staged removal back: the znode came back before anyone heard that it was gone.
    pub fn revive(&mut self, path: &str) {
        if let Some(None) = self.staged.get(path) {
            self.staged.remove(path);
        }
    }

    /// The znode exists but cannot be read: what was published of it stands. A content that was read
    /// before, and waits to be published, goes first.
    pub fn unreadable(&mut self, path: &Arc<str>) {
        self.keep(path);
        match self.staged.get(path) {
            Some(Some(_)) => return,
            Some(None) => drop(self.staged.remove(path)),
            None => {}
        }
        if self
            .unreadable
            .insert(Arc::clone(path), self.epoch)
            .is_none()
        {
            self.refused.insert(Arc::clone(path));
        }
    }

    /// What may not be read at present.
    pub fn all_unreadable(&self) -> impl Iterator<Item = &Arc<str>> {
        self.unreadable.keys()
    }

    pub fn is_unreadable(&self, path: &str) -> bool {
        self.unreadable.contains_key(path)
    }

    /// What is published behind `path`, in order.
    pub fn after(&self, path: &str) -> impl Iterator<Item = &Arc<str>> {
        let behind = (Bound::Excluded(path), Bound::Unbounded);
        self.published.range::<str, _>(behind).map(|(path, _)| path)
    }

    /// Which content is known of it, published or soon to be.
    pub fn version(&self, path: &str) -> Option<Version> {
        match self.staged.get(path) {
            Some(staged) => staged.as_ref().map(|content| content.version),
            None => self.published.get(path).map(|node| node.version),
        }
    }

    fn keep(&mut self, path: &str) {
        if let Some(node) = self.published.get_mut(path) {
            node.epoch = self.epoch;
        }
        if let Some(epoch) = self.unreadable.get_mut(path) {
            *epoch = self.epoch;
        }
    }

    /// What was published below `path` stands, as it cannot be listed.
    pub fn keep_below(&mut self, path: &str) {
        let mut below = subtree(&self.published, path);
        below.extend(subtree(&self.unreadable, path));
        for path in below {
            self.keep(&path);
        }
    }

    /// Whether the tree holds `path`, as far as this epoch knows.
    pub fn holds(&self, path: &str) -> bool {
        if let Some(staged) = self.staged.get(path) {
            return staged.is_some();
        }
        let published = self.published.get(path).map(|node| node.epoch);
        let epochs = [published, self.unreadable.get(path).copied()];
        epochs.contains(&Some(self.epoch))
    }

    /// What is held directly below `parent`.
    pub fn children(&self, parent: &str) -> BTreeSet<Arc<str>> {
        let mut children = direct_children(&self.published, parent);
        children.extend(direct_children(&self.staged, parent));
        children.extend(direct_children(&self.unreadable, parent));
        children.retain(|child| self.holds(child));
        children
    }

    /// Ends a load: what was not seen in it is gone.
    pub fn sweep(&mut self) {
        let epoch = self.epoch;
        let unseen = (self.unreadable.iter())
            .filter(|(_, seen)| **seen != epoch)
            .map(|(path, _)| Arc::clone(path));
        for path in unseen.collect::<Vec<_>>() {
            self.forget_unreadable(&path);
            self.staged.entry(path).or_insert(None);
        }
        let stale = self.published.iter().filter(|(_, n)| n.epoch != epoch);
        for path in stale.map(|(path, _)| path) {
            if !self.staged.contains_key(path) {
                self.staged.insert(Arc::clone(path), None);
            }
        }
    }

    pub fn is_dirty(&self) -> bool {
        !self.staged.is_empty() || !self.refused.is_empty()
    }

    /// Counts what is staged, each znode below a removed one too.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for (path, content) in &self.staged {
            match (content, self.published.contains_key(path)) {
                (Some(_), false) => tally.added += 1,
                (Some(_), true) => tally.changed += 1,
                (None, known) => tally.removed += usize::from(known),
            }
        }
        tally
    }

    /// Publishes what is staged, in the order of paths, then what cannot be read. A removal speaks for
    /// everything below it.
    pub fn take(&mut self) -> Vec<Event> {
        let covered: BTreeSet<Arc<str>> = (self.staged.iter())
            .filter(|(path, content)| content.is_none() && self.is_covered(path))
            .map(|(path, _)| Arc::clone(path))
            .collect();
        let mut events = Vec::with_capacity(self.staged.len() - covered.len());
        let mut put = Vec::new();
        for (path, content) in std::mem::take(&mut self.staged) {
            if let Some(Content {
                version,
                data,
                stat,
            }) = content
            {
                let epoch = self.epoch;
                put.push((Arc::clone(&path), Node { version, epoch }));
                events.push(Event::Put { path, data, stat });
            } else {
                if path.is_empty() {
                    // First in order; it speaks for what came back and is still to be read, too.
                    self.published.clear();
                }
                self.published.remove(&path);
                if !covered.contains(&path) {
                    events.push(Event::Delete { path });
                }
            }
        }
        if self.published.is_empty() {
            // A map that is built at once has full nodes, one that grows in order has half full ones.
            self.published = put.into_iter().collect();
        } else {
            self.published.extend(put);
        }
        let refused = std::mem::take(&mut self.refused);
        events.extend(refused.into_iter().map(|path| Event::Unreadable { path }));
        events
    }

    fn is_covered(&self, path: &str) -> bool {
        if !path.is_empty() && self.staged.contains_key("") {
            return true;
        }
        std::iter::successors(path.rsplit_once('/'), |(parent, _)| parent.rsplit_once('/'))
            .any(|(ancestor, _)| matches!(self.staged.get(ancestor), Some(None)))
    }
}

/// Everything below `path`, without itself.
fn subtree<V>(map: &BTreeMap<Arc<str>, V>, path: &str) -> Vec<Arc<str>> {
    let prefix = format!("{path}/");
    map.range::<str, _>((Bound::Excluded(prefix.as_str()), Bound::Unbounded))
        .take_while(|(path, _)| path.starts_with(&prefix))
        .map(|(path, _)| Arc::clone(path))
        .collect()
}

/// Skips from child to child over what lies below each, so that it costs what it returns.
fn direct_children<V>(map: &BTreeMap<Arc<str>, V>, parent: &str) -> BTreeSet<Arc<str>> {
    let prefix = match parent {
        "" => String::new(),
        _ => format!("{parent}/"),
    };
    let mut children = BTreeSet::new();
    let mut from = Bound::Included(prefix.clone());
    loop {
        let rest = map.range::<str, _>((from.as_ref().map(String::as_str), Bound::Unbounded));
        let mut rest = rest.take_while(|(path, _)| path.starts_with(&prefix));
        let Some((path, _)) = rest.next() else {
            return children;
        };
        from = if let Some(end) = path[prefix.len()..].find('/') {
            // Below a child: go on behind its subtree (`0` follows `/`).
            Bound::Included(format!("{}0", &path[..prefix.len() + end]))
        } else {
            children.insert(Arc::clone(path));
            Bound::Excluded(path.to_string())
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(mirror: &mut Mirror, path: &str, version: i64) {
        mirror.put(
            &Arc::from(path),
            (version, 0),
            Bytes::new(),
            Stat::default(),
        );
    }

    fn paths(events: &[Event]) -> Vec<String> {
        let text = |event: &Event| match event {
            Event::Put { path, .. } => format!("+{path}"),
            Event::Delete { path } => format!("-{path}"),
            Event::Unreadable { path } => format!("?{path}"),
        };
        events.iter().map(text).collect()
    }

    fn filled(all: &[&str]) -> Mirror {
        let mut mirror = Mirror::default();
        for path in all {
            put(&mut mirror, path, 1);
        }
        mirror.take();
        mirror
    }

    #[test]
    fn a_published_version_is_not_published_again() {
        let mut mirror = filled(&["a"]);
        put(&mut mirror, "a", 1);
        assert!(mirror.take().is_empty());
        put(&mut mirror, "a", 2);
        assert_eq!(paths(&mirror.take()), ["+a"]);
    }

    #[test]
    fn a_removal_speaks_for_what_is_below_and_for_nothing_beside() {
        let mut mirror = filled(&["a", "a!b", "a!b/i", "a/i", "a/j", "a0"]);
        mirror.remove("a");
        assert_eq!(paths(&mirror.take()), ["-a"]);
        mirror.begin();
        mirror.sweep();
        assert_eq!(paths(&mirror.take()), ["-a!b", "-a0"]);
    }

    #[test]
    fn what_comes_back_before_anyone_heard_is_no_removal() {
        let mut mirror = filled(&["a", "a/i"]);
        mirror.remove("a/i");
        mirror.revive("a/i");
        put(&mut mirror, "a/i", 2);
        assert_eq!(paths(&mirror.take()), ["+a/i"]);
    }

    #[test]
    fn children_are_the_direct_ones_published_or_staged() {
        let mut mirror = filled(&["a", "a!b/i", "a/i", "a/i/deep", "b", "b/j"]);
        put(&mut mirror, "a/k", 1);
        let names =
            |set: BTreeSet<Arc<str>>| set.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names(mirror.children("")), ["a", "b"]);
        assert_eq!(names(mirror.children("a")), ["a/i", "a/k"]);
        assert_eq!(names(mirror.children("c")), [""; 0]);
    }

    #[test]
    fn what_becomes_unreadable_is_told_once_and_again_when_it_can_be_read() {
        let mut mirror = filled(&["a", "a/i"]);
        let (known, new) = (Arc::from("a/i"), Arc::from("a/j"));
        for round in 0..3 {
            mirror.begin();
            put(&mut mirror, "a", 1);
            mirror.unreadable(&known);
            mirror.unreadable(&new);
            mirror.sweep();
            let told: &[&str] = if round == 0 { &["?a/i", "?a/j"] } else { &[] };
            assert_eq!(paths(&mirror.take()), told);
            assert!(mirror.holds("a/i") && mirror.holds("a/j"));
        }
        put(&mut mirror, "a/i", 1);
        put(&mut mirror, "a/j", 5);
        assert_eq!(paths(&mirror.take()), ["+a/i", "+a/j"]);
        assert_eq!(mirror.all_unreadable().count(), 0);
    }

    #[test]
    fn what_was_unreadable_and_is_gone_is_removed() {
        let mut mirror = filled(&["a"]);
        for path in ["a/i", "a/j", "a/k"] {
            mirror.unreadable(&Arc::from(path));
        }
        mirror.take();
        mirror.remove("a/i");
        assert_eq!(paths(&mirror.take()), ["-a/i"]);
        mirror.begin();
        put(&mut mirror, "a", 1);
        mirror.unreadable(&Arc::from("a/k"));
        mirror.sweep();
        assert_eq!(paths(&mirror.take()), ["-a/j"]);
        mirror.unreadable(&Arc::from("a/l"));
        mirror.remove("a");
        assert_eq!(
            paths(&mirror.take()),
            ["-a"],
            "what nobody heard of needs no end"
        );
        assert_eq!(mirror.all_unreadable().count(), 0);
    }

    #[test]
    fn a_sweep_removes_what_the_load_did_not_see() {
        let mut mirror = filled(&["a", "a/i", "a/j", "b", "b/k"]);
        mirror.begin();
        put(&mut mirror, "a", 1);
        mirror.unreadable(&Arc::from("a/i"));
        assert!(!mirror.holds("b") && mirror.holds("a/i"));
        put(&mut mirror, "c", 1);
        put(&mut mirror, "a/i", 2);
        mirror.sweep();
        let tally = Tally {
            added: 1,
            changed: 1,
            removed: 3,
        };
        assert_eq!(mirror.tally(), tally);
        assert_eq!(paths(&mirror.take()), ["+a/i", "-a/j", "-b", "+c"]);
    }
}
