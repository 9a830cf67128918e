//! What is held: instances that went too many at once, by service, in the order in which they went.
//!
//! It refuses to know why they are held and for how long. Cloning [`Holds`] costs nothing, so that readers have
//! pictures of it. Invariant: every held instance is in its service's hold, once in the order of that hold, and
//! once in the order of all.

use std::{collections::BTreeSet, sync::Arc};

use imbl::{OrdMap, OrdSet, ordmap::DiffItem};

use super::Time;
use crate::model::{Instance, Instances, Service, Socket};

/// When it went, and its number among those that went then.
type Turn = (Time, u64);

/// Everything that is held of a registry.
#[derive(Clone, Debug, Default)]
pub struct Holds {
    pub services: OrdMap<Arc<str>, Arc<Hold>>,
    /// The registry as a whole lost too much.
    pub trip: Option<Trip>,
    order: OrdMap<Turn, (Arc<str>, Socket)>,
    emptied: OrdSet<Arc<str>>,
}

/// A loss that is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trip {
    pub since: Time,
    /// How many there were.
    pub target: usize,
}

/// An instance that went within the window and was not held; with its service as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    pub at: Time,
    pub service: Arc<Service>,
    pub instance: Arc<Instance>,
}

/// What is held of a service.
#[derive(Clone, Debug)]
pub struct Hold {
    /// As it was when it lost the first of them, for what it is beside its instances.
    pub service: Arc<Service>,
    /// How many there were.
    pub target: usize,
    pub since: Time,
    pub held: OrdMap<Socket, Held>,
    order: OrdMap<Turn, Socket>,
}

/// An instance that is no longer registered, or was not written within its time to live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// As it is served.
    pub instance: Arc<Instance>,
    /// When it was last known to be registered.
    pub since: Time,
    pub(super) turn: u64,
}

/// What a former process held of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// What it is beside its instances.
    pub service: Arc<Service>,
    /// How many there were.
    pub target: usize,
    /// In the order in which they went, with the times since when.
    pub held: Vec<(Arc<Instance>, Time)>,
}

impl Holds {
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub fn contains(&self, service: &str) -> bool {
        self.services.contains_key(service)
    }

    /// Whether they are one picture, which costs nothing to tell.
    pub fn is_same(&self, other: &Self) -> bool {
        self.order.ptr_eq(&other.order) && self.trip == other.trip
    }

    /// What is held that was not before, by service. It costs about what differs.
    pub fn since<'h>(&'h self, before: &'h Self) -> impl Iterator<Item = (Arc<str>, &'h Held)> {
        let added = |item| match item {
            DiffItem::Add(_, (name, socket)) => Some((name, socket)),
            _ => None,
        };
        let added = before.order.diff(&self.order).filter_map(added);
        added.filter_map(|(name, socket): (&Arc<str>, &Socket)| {
            Some((Arc::clone(name), self.get(name, *socket)?))
        })
    }

    /// As a later process takes it on.
    pub fn resumable(&self) -> impl Iterator<Item = Resumed> {
        self.services.values().map(|hold| {
            let order = hold.order.values();
            let held = order.filter_map(|socket| hold.held.get(socket));
            Resumed {
                service: Arc::clone(&hold.service),
                target: hold.target,
                held: held
                    .map(|held| (Arc::clone(&held.instance), held.since))
                    .collect(),
            }
        })
    }

    /// How many instances.
    pub fn held(&self) -> usize {
        self.order.len()
    }

    pub fn get(&self, service: &str, socket: Socket) -> Option<&Held> {
        self.services.get(service)?.held.get(&socket)
    }

    pub(super) fn oldest(&self) -> Option<Time> {
        self.order.get_min().map(|((since, _), _)| *since)
    }

    pub(super) fn insert(&mut self, service: &Arc<Service>, target: usize, held: Held) {
        let (name, socket) = (&service.name, held.instance.socket());
        self.remove(name, socket);
        let turn = (held.since, held.turn);
        let mut hold = match self.services.get(name) {
            Some(hold) => Hold::clone(hold),
            None => Hold {
                service: Arc::clone(service),
                target,
                since: held.since,
                held: OrdMap::new(),
                order: OrdMap::new(),
            },
        };
        hold.target = hold.target.max(target);
        hold.order.insert(turn, socket);
        hold.held.insert(socket, held);
        self.order.insert(turn, (Arc::clone(name), socket));
        self.emptied.remove(name);
        self.services.insert(Arc::clone(name), Arc::new(hold));
    }

    /// Whether it was held.
    pub(super) fn remove(&mut self, service: &str, socket: Socket) -> bool {
        let Some(hold) = self.services.get_mut(service).map(Arc::make_mut) else {
            return false;
        };
        let Some(held) = hold.held.remove(&socket) else {
            return false;
        };
        let turn = (held.since, held.turn);
        hold.order.remove(&turn);
        if hold.held.is_empty() {
            self.emptied.insert(Arc::from(service));
        }
        self.order.remove(&turn);
        true
    }

    /// The next one that went at `time` or before.
    pub(super) fn pop_before(&mut self, time: Time) -> Option<(Arc<str>, Socket)> {
        let ((since, _), (name, socket)) = self.order.get_min()?;
        if *since > time {
            return None;
        }
        let (name, socket) = (Arc::clone(name), *socket);
        self.remove(&name, socket);
        Some((name, socket))
    }

    /// The one of a service that went last.
    pub(super) fn pop_latest(&mut self, service: &str) -> Option<Socket> {
        let hold = self.services.get(service)?;
        let (_, socket) = hold.order.get_max()?;
        let socket = *socket;
        self.remove(service, socket);
        Some(socket)
    }

    /// Forgets the holds of which nothing is left, and names them.
    pub(super) fn take_emptied(&mut self) -> Vec<Arc<str>> {
        let emptied = std::mem::take(&mut self.emptied);
        for name in &emptied {
            self.services.remove(name);
        }
        emptied.into_iter().collect()
    }
}

/// A service's instances with those that are held, made from what was published of it before.
pub(super) fn overlaid(
    before: Option<&Service>,
    base: Option<&Arc<Service>>,
    hold: &Hold,
    sockets: &BTreeSet<Socket>,
) -> Instances {
    let Some(before) = before else {
        let mut all = base.map(|base| base.instances.clone()).unwrap_or_default();
        let kept = hold.held.values();
        kept.for_each(|kept| all.put(Arc::clone(&kept.instance)));
        return all;
    };
    let mut all = before.instances.clone();
    for socket in sockets {
        let kept = hold.held.get(socket).map(|kept| &kept.instance);
        let registered = || base.and_then(|base| base.instances.get(*socket));
        match kept.or_else(registered) {
            Some(instance) => all.put(Arc::clone(instance)),
            None => all.remove(*socket),
        }
    }
    all
}
