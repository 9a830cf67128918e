//! Places for connections: a bounded number, so that connections of one kind leave file descriptors for the others.
//!
//! A connection is idle until it is made busy, and after that. When all places are taken, a new connection gets the
//! place of the one that has been idle for longest; if none is idle, it gets none. Pure but for a lock that is
//! held for moments. Invariant: at most as many connections have a place as there are places.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

#[derive(Debug)]
pub struct Places {
    limit: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Numbers connections, and times at which they became idle.
    next: u64,
    taken: HashMap<u64, Taken>,
    /// The connections that are idle, by the time at which they became so.
    idle: BTreeMap<u64, u64>,
}

#[derive(Debug)]
struct Taken {
    busy: usize,
    /// The key in `idle`, while it is idle.
    idle: u64,
    lost: CancellationToken,
}

/// A connection's place; it is free again when this is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    id: u64,
    lost: CancellationToken,
}

/// Keeps a connection busy until it is dropped.
#[derive(Debug)]
pub struct Busy(Arc<Place>);

impl Places {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            inner: Mutex::default(),
        })
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    /// A place for an idle connection, if there is one or another idle connection can give up its own.
    pub fn take(self: &Arc<Self>) -> Option<Place> {
        let mut inner = self.inner();
        if inner.taken.len() >= self.limit {
            let (_, oldest) = inner.idle.pop_first()?;
            if let Some(taken) = inner.taken.remove(&oldest) {
                taken.lost.cancel();
            }
        }
        let id = inner.number();
        let lost = CancellationToken::new();
        let taken = Taken {
            busy: 0,
            idle: id,
            lost: lost.clone(),
        };
        inner.taken.insert(id, taken);
        inner.idle.insert(id, id);
        drop(inner);
        Some(Place {
            places: Arc::clone(self),
            id,
            lost,
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Place {
    /// Cancelled when another connection got the place.
    pub fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Makes the connection busy, for as long as any of these is kept.
    pub fn busy(self: &Arc<Self>) -> Busy {
        let mut inner = self.places.inner();
        if let Some(taken) = inner.taken.get_mut(&self.id) {
            taken.busy += 1;
            let idle = taken.idle;
            inner.idle.remove(&idle);
        }
        Busy(Arc::clone(self))
    }

    /// Names the time for which the connection has been idle; `None` while it is busy.
    pub fn idle(&self) -> Option<u64> {
        let inner = self.places.inner();
        let taken = inner.taken.get(&self.id)?;
        (taken.busy == 0).then_some(taken.idle)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut inner = self.0.places.inner();
        let number = inner.number();
        if let Some(taken) = inner.taken.get_mut(&self.0.id) {
            taken.busy -= 1;
            if taken.busy == 0 {
                taken.idle = number;
                inner.idle.insert(number, self.0.id);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.places.inner();
        if let Some(taken) = inner.taken.remove(&self.id) {
            inner.idle.remove(&taken.idle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_that_was_idle_for_longest_gives_up_its_place() {
        let places = Places::new(3);
        let [first, second, third] = [(); 3].map(|()| Arc::new(places.take().unwrap()));
        drop(first.busy());
        let fourth = places.take().unwrap();
        let lost = |place: &Place| place.lost().is_cancelled();
        assert!(lost(&second), "the first was busy after it");
        assert!(!lost(&first) && !lost(&third) && !lost(&fourth));
        drop(second);
        assert_eq!(places.inner().taken.len(), 3, "its place is taken");
    }

    #[test]
    fn busy_connections_keep_their_places() {
        let places = Places::new(2);
        let [first, second] = [(); 2].map(|()| Arc::new(places.take().unwrap()));
        let streams = [first.busy(), first.busy(), second.busy()];
        assert!(places.take().is_none());
        let [one, other, _second] = streams;
        drop(one);
        assert_eq!(first.idle(), None);
        assert!(places.take().is_none());
        drop(other);
        assert!(first.idle().is_some());
        assert!(places.take().is_some() && first.lost().is_cancelled());
    }

    #[test]
    fn a_connection_that_ends_leaves_its_place() {
        let places = Places::new(1);
        let first = Arc::new(places.take().unwrap());
        let busy = first.busy();
        drop(first);
        assert!(places.take().is_none(), "its last stream is still there");
        drop(busy);
        drop(places.take().unwrap());
        let inner = places.inner();
        assert!(inner.taken.is_empty() && inner.idle.is_empty());
    }
}
