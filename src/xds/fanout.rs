//! Wakes the streams that a publication concerns, and no others.
//!
//! It refuses to know the protocol: a stream says what it is interested in and gets a bell. A stream
//! that wants few names is rung when one of them changed; one that wants many, or all, when anything
//! of the type did. Invariant: whoever was interested before a publication is rung by it if it
//! changed something of interest; a bell that rings for nothing does no harm.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use tokio::sync::watch;

use crate::{
    resource::{Edition, ResourceType},
    snapshot::Snapshots,
};

/// With more names than this a stream counts as wanting all of the type: ringing it costs less than
/// knowing it by every name.
const FEW: usize = 64;

/// What a stream wants of one type.
#[derive(Debug)]
pub enum Interest<'a> {
    All,
    Names(&'a BTreeSet<Arc<str>>),
}

/// The current snapshots and everybody who waits for the next.
#[derive(Clone, Debug)]
pub struct Fanout {
    snapshots: watch::Receiver<Arc<Snapshots>>,
    bells: Arc<Mutex<Bells>>,
}

#[derive(Debug, Default)]
struct Bells {
    next: u64,
    /// Rings for every type.
    all: BTreeMap<u64, Arc<Clapper>>,
    types: HashMap<(Edition, ResourceType), Listeners>,
}

/// The streams that wait for changes of one type of one kind of clients.
#[derive(Debug, Default)]
struct Listeners {
    any: BTreeMap<u64, Arc<Clapper>>,
    /// By the streams' numbers: most names have few of them, and a map takes ten times as much.
    names: HashMap<Arc<str>, Vec<(u64, Arc<Clapper>)>>,
}

/// What rings a bell: a mark that is left until it is seen, and whom to wake. A stream waits anew for
/// each message, so waiting has to cost next to nothing.
#[derive(Debug, Default)]
struct Clapper {
    struck: AtomicBool,
    waiting: AtomicWaker,
}

impl Clapper {
    fn strike(&self) {
        self.struck.store(true, Ordering::Release);
        self.waiting.wake();
    }

    fn poll(&self, context: &Context<'_>) -> Poll<()> {
        if self.struck.swap(false, Ordering::AcqRel) {
            return Poll::Ready(());
        }
        self.waiting.register(context.waker());
        // It may have been struck meanwhile.
        if self.struck.swap(false, Ordering::AcqRel) {
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

/// A stream's place among those who wait; it leaves when it is dropped.
#[derive(Debug)]
pub struct Bell {
    fanout: Fanout,
    id: u64,
    clapper: Arc<Clapper>,
    /// What it is listed under: all of the type, or these names.
    listed: HashMap<(Edition, ResourceType), Option<Vec<Arc<str>>>>,
}

impl Fanout {
    pub fn new(snapshots: watch::Receiver<Arc<Snapshots>>) -> Self {
        Self {
            snapshots,
            bells: Arc::default(),
        }
    }

    pub fn current(&self) -> Arc<Snapshots> {
        self.snapshots.borrow().clone()
    }

    /// Rings after every publication until there are no more.
    pub async fn run(mut self) {
        let mut before = self.snapshots.borrow_and_update().clone();
        while self.snapshots.changed().await.is_ok() {
            let now = self.snapshots.borrow_and_update().clone();
            self.ring(&before, &now);
            before = now;
        }
    }

    /// A bell that rings for nothing yet but the registry's first load.
    pub fn bell(&self) -> Bell {
        let clapper = Arc::new(Clapper::default());
        let mut bells = self.bells();
        bells.next += 1;
        let id = bells.next;
        bells.all.insert(id, clapper.clone());
        drop(bells);
        Bell {
            fanout: self.clone(),
            id,
            clapper,
            listed: HashMap::new(),
        }
    }

    fn ring(&self, before: &Snapshots, now: &Snapshots) {
        let bells = self.bells();
        if before.loaded != now.loaded {
            return bells.all.values().for_each(|bell| bell.strike());
        }
        for ((client, kind), listeners) in &bells.types {
            let (old, new) = (before.of(*client).set(*kind), now.of(*client).set(*kind));
            if old.latest() == new.latest() {
                continue;
            }
            listeners.any.values().for_each(|bell| bell.strike());
            if !new.reaches(old.latest()) {
                let interested = listeners.names.values().flatten();
                interested.for_each(|(_, bell)| bell.strike());
            }
            for name in new.names_since(old.latest()) {
                let interested = listeners.names.get(name).into_iter().flatten();
                interested.for_each(|(_, bell)| bell.strike());
            }
        }
    }

    fn bells(&self) -> MutexGuard<'_, Bells> {
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bell {
    /// Completes once for all rings since it completed last.
    pub async fn rung(&self) {
        poll_fn(|context| self.clapper.poll(context)).await;
    }

    /// Replaces what was said of the type before.
    pub fn listen(&mut self, client: Edition, kind: ResourceType, interest: &Interest<'_>) {
        let names = match interest {
            Interest::Names(names) if names.len() <= FEW => Some(*names),
            _ => None,
        };
        let key = (client, kind);
        // Most requests are ACKs and change nothing; they copy nothing either.
        let same = |listed: &Option<Vec<Arc<str>>>| match (listed, names) {
            (None, None) => true,
            (Some(listed), Some(names)) => listed.iter().eq(names),
            _ => false,
        };
        if self.listed.get(&key).is_some_and(same) {
            return;
        }
        let mut bells = self.fanout.bells();
        let listeners = bells.types.entry(key).or_default();
        let names = names.map(|names| names.iter().map(|name| listeners.known(name)));
        let names: Option<Vec<_>> = names.map(Iterator::collect);
        if let Some(old) = self.listed.get(&key) {
            listeners.remove(self.id, old.as_deref());
        }
        listeners.add(self.id, &self.clapper, names.as_deref());
        drop(bells);
        self.listed.insert(key, names);
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        let mut bells = self.fanout.bells();
        bells.all.remove(&self.id);
        for (key, names) in &self.listed {
            if let Some(listeners) = bells.types.get_mut(key) {
                listeners.remove(self.id, names.as_deref());
            }
        }
    }
}

impl Listeners {
    /// The name as it is listed, so that all streams hold one text.
    fn known(&self, name: &Arc<str>) -> Arc<str> {
        let listed = self.names.get_key_value(name);
        listed.map_or(name, |(listed, _)| listed).clone()
    }

    fn add(&mut self, id: u64, clapper: &Arc<Clapper>, names: Option<&[Arc<str>]>) {
        let Some(names) = names else {
            self.any.insert(id, clapper.clone());
            return;
        };
        for name in names {
            let interested = self.names.entry(name.clone()).or_default();
            if let Err(at) = interested.binary_search_by_key(&id, |(id, _)| *id) {
                interested.insert(at, (id, clapper.clone()));
            }
        }
    }

    fn remove(&mut self, id: u64, names: Option<&[Arc<str>]>) {
        let Some(names) = names else {
            self.any.remove(&id);
            return;
        };
        for name in names {
            let Some(interested) = self.names.get_mut(name) else {
                continue;
            };
            if let Ok(at) = interested.binary_search_by_key(&id, |(id, _)| *id) {
                interested.remove(at);
            }
            if interested.is_empty() {
                self.names.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::resource::{Resource, Version};

    struct World {
        sender: watch::Sender<Arc<Snapshots>>,
        fanout: Fanout,
        now: Snapshots,
    }

    impl World {
        fn new() -> Self {
            let mut now = Snapshots::default();
            now.loaded = true;
            let (sender, receiver) = watch::channel(Arc::new(now.clone()));
            Self {
                sender,
                fanout: Fanout::new(receiver),
                now,
            }
        }

        fn put(&mut self, kind: ResourceType, name: &str, version: u64) {
            let before = self.now.clone();
            let resource = Resource::new(kind, name, Version(version), b"");
            self.now.of_mut(Edition::Envoy).put(resource);
            self.sender.send_replace(Arc::new(self.now.clone()));
            self.fanout.ring(&before, &self.now);
        }
    }

    fn rang(bell: &Bell) -> bool {
        bell.rung().now_or_never().is_some()
    }

    fn names(names: &[&str]) -> BTreeSet<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    #[test]
    fn only_who_wants_the_name_is_rung() {
        let mut world = World::new();
        let (mut one, mut other, mut all) = (
            world.fanout.bell(),
            world.fanout.bell(),
            world.fanout.bell(),
        );
        let envoy = Edition::Envoy;
        one.listen(
            envoy,
            ResourceType::Endpoint,
            &Interest::Names(&names(&["a", "b"])),
        );
        other.listen(
            envoy,
            ResourceType::Endpoint,
            &Interest::Names(&names(&["c"])),
        );
        all.listen(envoy, ResourceType::Endpoint, &Interest::All);
        world.put(ResourceType::Endpoint, "b", 1);
        assert!(rang(&one) && rang(&all) && !rang(&other));
        world.put(ResourceType::Cluster, "b", 1);
        assert!(!rang(&one) && !rang(&all) && !rang(&other));
    }

    #[test]
    fn a_change_of_interest_replaces_the_one_before() {
        let mut world = World::new();
        let mut bell = world.fanout.bell();
        let kind = ResourceType::Endpoint;
        bell.listen(Edition::Envoy, kind, &Interest::Names(&names(&["a"])));
        bell.listen(Edition::Envoy, kind, &Interest::Names(&names(&["b"])));
        world.put(kind, "a", 1);
        assert!(!rang(&bell));
        world.put(kind, "b", 1);
        assert!(rang(&bell));
    }

    #[test]
    fn who_leaves_a_name_takes_nobody_along() {
        let mut world = World::new();
        let kind = ResourceType::Endpoint;
        let mut bells: Vec<_> = (0..5).map(|_| world.fanout.bell()).collect();
        for bell in bells.iter_mut().rev() {
            bell.listen(Edition::Envoy, kind, &Interest::Names(&names(&["a", "b"])));
        }
        bells[1].listen(Edition::Envoy, kind, &Interest::Names(&names(&["b"])));
        drop(bells.remove(3));
        world.put(kind, "a", 1);
        let rung: Vec<_> = bells.iter().map(rang).collect();
        assert_eq!(rung, [true, false, true, true]);
        world.put(kind, "b", 1);
        assert!(bells.iter().all(rang));
    }

    #[test]
    fn many_names_are_as_good_as_all() {
        let mut world = World::new();
        let mut bell = world.fanout.bell();
        let many: BTreeSet<Arc<str>> = (0..=FEW).map(|n| Arc::from(format!("n{n}"))).collect();
        bell.listen(
            Edition::Envoy,
            ResourceType::Endpoint,
            &Interest::Names(&many),
        );
        world.put(ResourceType::Endpoint, "other", 1);
        assert!(rang(&bell));
    }

    #[test]
    fn the_first_load_rings_everybody() {
        let world = World::new();
        let bell = world.fanout.bell();
        let before = Snapshots::default();
        world.fanout.ring(&before, &world.now);
        assert!(rang(&bell));
    }

    #[test]
    fn nothing_of_a_bell_is_left_when_it_is_dropped() {
        let world = World::new();
        let mut bell = world.fanout.bell();
        let kind = ResourceType::Endpoint;
        bell.listen(Edition::Envoy, kind, &Interest::Names(&names(&["a"])));
        drop(bell);
        let bells = world.fanout.bells();
        assert!(bells.all.is_empty());
        assert!(
            bells
                .types
                .values()
                .all(|l| l.any.is_empty() && l.names.is_empty())
        );
    }
}
