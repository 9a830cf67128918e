//! Brings the view in line with what a batch touched.
//!
//! First the services ask for their host names, or give them up; then those that are served no more
//! leave the view, and those that are come into it or change there; then the rejections. It refuses to
//! know why anything was touched. Invariant: afterwards the view has a service exactly if it exists and
//! has its host, with what its roster serves.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Dirty, Index,
    base::{Base, Title},
    hosts::Key,
    make::Part,
};
use crate::{
    model::{Instance, Service, Socket, Touched},
    registry::{
        Changes, Rejected, View, name,
        reason::{Reason, quoted_path},
        roster::Roster,
    },
};

impl Index {
    pub(super) fn settle(&mut self, mut dirty: Dirty) -> Changes {
        self.ask(&mut dirty);
        let mut changes = Changes::new();
        for (service, touches) in &dirty {
            for part in touches.parts.keys() {
                let hidden = self.hide(&(Arc::clone(service), part.clone()));
                changes.extend(hidden.map(|name| (name, Touched::All)));
            }
        }
        for (service, touches) in &dirty {
            for (part, sockets) in &touches.parts {
                let key = (Arc::clone(service), part.clone());
                if let Some((name, touched)) = self.show(&key, sockets) {
                    match changes.get_mut(&name) {
                        Some(before) => before.merge(touched),
                        None => drop(changes.insert(name, touched)),
                    }
                }
                self.list_service(&key);
            }
        }
        for (service, touches) in dirty {
            self.list_znodes(&service, touches.znodes);
            self.clean(&service);
        }
        changes
    }

    /// Has the touched services ask for their host names as long as they exist. Those that lose or
    /// gain one by that are touched too.
    fn ask(&mut self, dirty: &mut Dirty) {
        let keys = dirty.iter().flat_map(|(service, touches)| {
            let parts = touches.parts.keys();
            parts.map(|part| (Arc::clone(service), part.clone()))
        });
        for key in keys.collect::<Vec<_>>() {
            let Some(base) = self.bases.get_mut(&key.0) else {
                continue;
            };
            let exists = base.exists(key.1.as_ref());
            let after = exists.then_some(base.czxid);
            let before = base.roster(key.1.as_ref()).and_then(|roster| roster.asks);
            let Some((_, host)) = called(base, &key.1).filter(|_| before != after) else {
                continue;
            };
            base.roster_mut(key.1.as_ref()).asks = after;
            for (service, part) in self.hosts.ask(&host, &key, before, after) {
                let touches = dirty.entry(service).or_default();
                touches.parts.entry(part).or_default();
            }
        }
    }

    /// Who has the host that a service asks for.
    fn holder(&self, key: &Key) -> Option<&Key> {
        let (_, host) = called(self.bases.get(&key.0)?, &key.1)?;
        self.hosts.holder(&host)
    }

    fn is_served(&self, key: &Key) -> bool {
        let base = self.bases.get(&key.0);
        base.is_some_and(|base| base.exists(key.1.as_ref())) && self.holder(key) == Some(key)
    }

    /// Takes a service out of the view if it is not served any more; its name.
    fn hide(&mut self, key: &Key) -> Option<Arc<str>> {
        let shown = self.bases.get(&key.0)?.roster(key.1.as_ref())?.shown;
        if !shown || self.is_served(key) {
            return None;
        }
        let base = self.bases.get_mut(&key.0)?;
        base.roster_mut(key.1.as_ref()).shown = false;
        let (name, _) = called(base, &key.1)?;
        if let Some(service) = self.view.services.remove(&name) {
            self.instances -= service.instances.len();
        }
        Some(name)
    }

    /// Brings a service into the view, or up to date in it; what a client could see to be another.
    fn show(
        &mut self,
        key: &Key,
        sockets: &BTreeMap<Socket, Arc<Instance>>,
    ) -> Option<(Arc<str>, Touched)> {
        if !self.is_served(key) {
            return None;
        }
        let base = self.bases.get_mut(&key.0)?;
        let (name, host) = called(base, &key.1)?;
        let roster = base.roster_mut(key.1.as_ref());
        let shown = std::mem::replace(&mut roster.shown, true);
        let before = self.view.services.get(&name).filter(|_| shown).cloned();
        let Some(before) = before else {
            let host = if *host == *name {
                Arc::clone(&name)
            } else {
                host.into()
            };
            let service = Service {
                name: Arc::clone(&name),
                host,
                registry: Arc::clone(&self.registry),
                instances: roster.instances(),
            };
            self.instances += service.instances.len();
            self.view.services.insert(Arc::clone(&name), service.into());
            return Some((name, Touched::All));
        };
        let (after, visible) = updated(&before, roster, sockets);
        if let Some(after) = after {
            self.instances += after.instances.len();
            self.instances -= before.instances.len();
            self.view.services.insert(Arc::clone(&name), after.into());
        }
        (!visible.is_empty()).then_some((name, Touched::Some(visible)))
    }

    /// Shows why a service is not served, or shows nothing any more.
    fn list_service(&mut self, key: &Key) {
        let reason = self.refusal(key);
        let path = match &key.1 {
            None => Arc::clone(&key.0),
            Some(part) => format!("{}:{part}", key.0).into(),
        };
        let reason = reason.or_else(|| self.namesake(&path, key));
        let rejection = reason.map(|reason| Rejected {
            format: self.config.format.as_str(),
            reason: reason.into_string(),
        });
        self.list(&path, rejection);
    }

    /// A service `a:b` and the part `b` of `a` are listed under one path: why the other one is refused.
    fn namesake(&self, path: &Arc<str>, key: &Key) -> Option<Reason> {
        let whole = (Arc::clone(path), None);
        let parts = path.match_indices(':').map(|(at, _)| {
            let (service, part) = (&path[..at], &path[at + 1..]);
            (service.into(), Some(part.into()))
        });
        let mut others = [whole].into_iter().chain(parts);
        others.find_map(|other: Key| self.refusal(&other).filter(|_| other != *key))
    }

    fn refusal(&self, key: &Key) -> Option<Reason> {
        let base = self.bases.get(&key.0).filter(|base| base.there)?;
        if let Title::Refused(reason) = &base.title {
            return Some(reason.clone()).filter(|_| key.1.is_none());
        }
        if !base.exists(key.1.as_ref()) {
            return None;
        }
        let (host, part) = self.holder(key).filter(|holder| *holder != key)?;
        let base = self.bases.get(host)?;
        let (name, host) = called(base, part)?;
        Some(Reason::new(format!(
            "the host name {host} belongs to the older service {}; rename one",
            quoted_path(&name)
        )))
    }

    /// Shows what is wrong with znodes: those that were touched, or all where the service is listed
    /// only now.
    fn list_znodes(&mut self, service: &Arc<str>, mut znodes: BTreeSet<Arc<str>>) {
        let outranked = self.refusal(&(Arc::clone(service), None)).is_some();
        let Some(base) = self.bases.get_mut(service) else {
            return;
        };
        let listed = base.there && base.is_named() && !outranked;
        if std::mem::replace(&mut base.listed, listed) != listed {
            znodes.extend(base.entries.keys().cloned());
        }
        for znode in znodes {
            let base = self.bases.get(service).filter(|_| listed);
            let rejection = base.and_then(|base| base.rejection(&znode));
            let waits = base.and_then(|base| base.waits(&znode)).cloned();
            self.list(&znode, rejection);
            self.wait(&znode, waits);
        }
    }

    /// Lists a znode as waiting for a host name, or not.
    fn wait(&mut self, znode: &str, name: Option<Arc<str>>) {
        let View { waiting, .. } = &mut self.view;
        match name {
            Some(name) => drop(waiting.insert(self.config.path(znode), name)),
            None if waiting.is_empty() => {}
            None => drop(waiting.remove(&self.config.path(znode))),
        }
    }

    /// Lists a path as rejected or not, and remembers what was not listed before.
    fn list(&mut self, path: &str, rejection: Option<Rejected>) {
        let View { rejected, .. } = &mut self.view;
        if rejection.is_none() && rejected.is_empty() {
            return;
        }
        let path = self.config.path(path);
        match rejection {
            None => {
                rejected.remove(&path);
                self.rejections.remove(&path);
            }
            Some(rejection) if rejected.get(&path) != Some(&rejection) => {
                rejected.insert(path.clone(), rejection.clone());
                self.rejections.insert(path, rejection);
            }
            Some(_) => {}
        }
    }

    /// Drops what is no more and nobody asks for.
    fn clean(&mut self, service: &str) {
        let Some(base) = self.bases.get_mut(service) else {
            return;
        };
        base.parts
            .retain(|_, roster| !roster.is_empty() || roster.asks.is_some() || roster.shown);
        if !base.there {
            self.bases.remove(service);
        }
    }
}

/// The name and the host of a service.
fn called(base: &Base, part: &Part) -> Option<(Arc<str>, String)> {
    let Title::Named(title) = &base.title else {
        return None;
    };
    let name = match part {
        None => Arc::clone(title),
        Some(part) => format!("{title}:{part}").into(),
    };
    let host = name::host(&name).ok()?;
    Some((name, host))
}

/// The service with what serves these addresses now, if anything is another, and where a client
/// could see that. The rest is as it was.
fn updated(
    before: &Service,
    roster: &Roster,
    sockets: &BTreeMap<Socket, Arc<Instance>>,
) -> (Option<Service>, BTreeSet<Socket>) {
    let mut after = None;
    let mut visible = BTreeSet::new();
    for (socket, claim) in sockets {
        let (was, is) = (before.instances.get(*socket), roster.serving(claim));
        let same = match (was, is) {
            (Some(was), Some(is)) => was.is_like(is),
            (was, is) => was.is_none() && is.is_none(),
        };
        if !same {
            visible.insert(*socket);
        }
        match is {
            Some(is) if was != Some(is) => {
                let after: &mut Service = after.get_or_insert_with(|| before.clone());
                after.instances.put(Arc::clone(is));
            }
            None if was.is_some() => {
                let after = after.get_or_insert_with(|| before.clone());
                after.instances.remove(*socket);
            }
            _ => {}
        }
    }
    (after, visible)
}
