//! The services of several registries as one set.
//!
//! It refuses to know where views come from: they are given in the order of their rank. Invariant: a
//! service has the instances of all views that have it, by address and port; where two have the same, that of
//! the first view where it is registered, and of the first one that holds it where it is registered nowhere;
//! of services with one host the first view's is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use imbl::OrdMap;

use crate::{
    model::{Instance, Instances, Service, Socket, Touched},
    registry::{
        Changes, Rejected, View,
        reason::{Reason, quoted_path},
    },
};

/// Several registries as one.
#[derive(Debug, Default)]
pub(super) struct Merged {
    pub services: OrdMap<Arc<str>, Arc<Service>>,
    pub conflicts: OrdMap<Arc<str>, Rejected>,
    /// The services by their host names, each with the rank of the first registry that has it.
    hosts: BTreeMap<Arc<str>, BTreeSet<(usize, Arc<str>)>>,
    /// What each service is filed under in `hosts`.
    filed: BTreeMap<Arc<str>, (Arc<str>, usize)>,
}

impl Merged {
    /// Follows the changes of the registries, which are in the order of their rank.
    pub fn follow(&mut self, views: &[View], changes: Changes) -> Changes {
        let mut dirty = changes;
        for name in dirty.keys().cloned().collect::<Vec<_>>() {
            for rival in self.file(views, &name) {
                dirty.entry(rival).or_insert(Touched::All);
            }
        }
        let refreshed = dirty.into_iter().filter_map(|(name, touched)| {
            let touched = self.refresh(views, &name, touched)?;
            Some((name, touched))
        });
        refreshed.collect()
    }

    /// Files a service under its host; the others of that host, where the first of them is another now.
    fn file(&mut self, views: &[View], name: &Arc<str>) -> Vec<Arc<str>> {
        let found = views.iter().enumerate().find_map(|(rank, view)| {
            let service = view.services.get(name)?;
            Some((Arc::clone(&service.host), rank))
        });
        let before = match &found {
            Some(found) => self.filed.insert(Arc::clone(name), found.clone()),
            None => self.filed.remove(name),
        };
        if before == found {
            return Vec::new();
        }
        let mut rivals = Vec::new();
        for (host, rank, present) in [(before, false), (found, true)]
            .into_iter()
            .filter_map(|(filed, present)| filed.map(|(host, rank)| (host, rank, present)))
        {
            let entry = self.hosts.entry(Arc::clone(&host)).or_default();
            if present {
                entry.insert((rank, Arc::clone(name)));
            } else {
                entry.remove(&(rank, Arc::clone(name)));
            }
            rivals.extend(entry.iter().map(|(_, rival)| Arc::clone(rival)));
            if entry.is_empty() {
                self.hosts.remove(&host);
            }
        }
        rivals.retain(|rival| rival != name);
        rivals
    }

    /// What of a service a client could see to be another.
    fn refresh(&mut self, views: &[View], name: &Arc<str>, touched: Touched) -> Option<Touched> {
        let holder = (self.filed.get(name)).and_then(|(host, _)| self.hosts.get(host)?.first());
        let holder = holder.map(|(_, holder)| Arc::clone(holder));
        self.note_conflict(name, holder.as_ref());
        let parts: Vec<_> = views
            .iter()
            .filter_map(|view| Some((view, view.services.get(name)?)))
            .collect();
        let first = parts.first().filter(|_| holder.as_ref() == Some(name));
        let before = self.services.get(name).cloned();
        let Some((_, first)) = first else {
            self.services.remove(name);
            return before.map(|_| Touched::All);
        };
        let sockets = match (&before, touched) {
            (Some(_), Touched::Some(sockets)) => sockets,
            // Whatever any of them had or has.
            (before, _) => all_sockets(before.as_deref(), &parts),
        };
        let mut after = match &before {
            Some(before) => Service::clone(before),
            None => Service {
                instances: Instances::default(),
                ..Service::clone(first)
            },
        };
        after.registry = Arc::clone(&first.registry);
        let mut visible = BTreeSet::new();
        for socket in sockets {
            let was = after.instances.get(socket).cloned();
            let is = served(&parts, name, socket);
            if differ(was.as_ref(), is) {
                visible.insert(socket);
            }
            match is {
                Some(is) => after.instances.put(Arc::clone(is)),
                None => after.instances.remove(socket),
            }
        }
        self.services.insert(Arc::clone(name), Arc::new(after));
        match before {
            None => Some(Touched::All),
            Some(_) => (!visible.is_empty()).then_some(Touched::Some(visible)),
        }
    }

    fn note_conflict(&mut self, name: &Arc<str>, holder: Option<&Arc<str>>) {
        let Some(holder) = holder.filter(|holder| *holder != name) else {
            self.conflicts.remove(name);
            return;
        };
        let reason = Reason::new(format!(
            "its host name belongs to the service {} of another registry; rename one",
            quoted_path(holder)
        ));
        let rejected = Rejected {
            format: "service",
            reason: reason.into_string(),
        };
        self.conflicts.insert(Arc::clone(name), rejected);
    }
}

/// Who is registered is believed rather than who is held, whatever their ranks.
fn served<'p>(
    parts: &[(&'p View, &'p Arc<Service>)],
    name: &str,
    socket: Socket,
) -> Option<&'p Arc<Instance>> {
    let mut all = parts.iter().filter_map(|(view, part)| {
        let instance = part.instances.get(socket)?;
        Some((!view.is_registered(name, socket), instance))
    });
    let (held, first) = all.next()?;
    if !held {
        return Some(first);
    }
    let registered = all.find(|(held, _)| !held);
    Some(registered.map_or(first, |(_, instance)| instance))
}

fn all_sockets(before: Option<&Service>, parts: &[(&View, &Arc<Service>)]) -> BTreeSet<Socket> {
    let services = before
        .into_iter()
        .chain(parts.iter().map(|(_, part)| &***part));
    services
        .flat_map(|service| service.instances.iter().map(|i| i.socket()))
        .collect()
}

/// Whether a client could tell; an origin is for operators.
fn differ(was: Option<&Arc<Instance>>, is: Option<&Arc<Instance>>) -> bool {
    match (was, is) {
        (Some(was), Some(is)) => !was.is_like(is),
        (was, is) => was.is_some() || is.is_some(),
    }
}
