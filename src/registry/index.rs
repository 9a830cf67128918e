//! Applies batches of events to the mirror and tells which services changed by them.
//!
//! Layout: a znode below the root is a service, one below that an instance; what is deeper is not
//! looked at. A service lives from its znode's (or an instance's) `Put` to its `Delete`, also without
//! instances. It refuses to know payloads (`format`) and who serves an address (`roster`).
//!
//! Names are hosts, and hosts have no case: of the services that differ in case only, the oldest
//! (least `czxid`, then name) is served and the others are rejected until it goes. The parent of an
//! instance whose own `Put` is still to come counts as the youngest.
//!
//! Invariants: the view depends on the znodes and not on the order in which they were told; a batch
//! costs what it touches (the services in it), never the size of the registry.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
};

use super::{
    Batch, Changes, Config, Counts, Event, Rejected, Stat, View,
    format::Znode,
    name,
    reason::{Reason, quoted_path},
    registration::{Host, Registration},
    roster::{Marks, Roster},
};
use crate::model::{Instance, Origin, Service, Socket, Touched};

/// The `czxid` of a service whose own znode was not seen yet.
const UNSEEN: i64 = i64::MAX;

#[derive(Debug)]
pub struct Index {
    config: Config,
    registry: Arc<str>,
    root: Arc<str>,
    services: BTreeMap<Arc<str>, Mirrored>,
    /// The well-named services by their names in lower case, the oldest first.
    hosts: BTreeMap<String, Vec<(i64, Arc<str>)>>,
    view: View,
    /// What was rejected, or for another reason, since they were taken.
    rejections: BTreeMap<String, Rejected>,
    instances: usize,
    loaded: bool,
}

/// A service's znode and what is below it.
#[derive(Debug)]
struct Mirrored {
    czxid: i64,
    /// Nothing is read below a service whose name can never be served.
    roster: Result<Roster, Reason>,
}

/// The services that a batch touched, each with what it touched of it.
type Dirty = BTreeMap<Arc<str>, Marked>;

#[derive(Debug, Default)]
struct Marked {
    znodes: BTreeSet<Arc<str>>,
    /// By address and port one that is or was registered there.
    claims: BTreeMap<Socket, Arc<Instance>>,
}

/// Where a path of an event points to.
enum Place<'a> {
    Root,
    Service(&'a str),
    Instance(&'a str),
    Elsewhere,
}

impl Place<'_> {
    fn of(path: &str) -> Place<'_> {
        let mut names = path.split('/');
        match (names.next(), names.next(), names.next()) {
            (Some(""), None, None) => Place::Root,
            (Some(service), None, None) => Place::Service(service),
            (Some(service), Some(name), None) if !service.is_empty() && !name.is_empty() => {
                Place::Instance(service)
            }
            _ => Place::Elsewhere,
        }
    }
}

impl Index {
    pub fn new(config: Config) -> Self {
        Self {
            registry: Arc::from(config.name.as_str()),
            root: Arc::from(config.root.as_str()),
            config,
            services: BTreeMap::new(),
            hosts: BTreeMap::new(),
            view: View::default(),
            rejections: BTreeMap::new(),
            instances: 0,
            loaded: false,
        }
    }

    /// Mirrors a batch. The view may change though no service did: origins and rejected znodes.
    pub fn apply(&mut self, batch: Batch) -> Changes {
        let mut dirty = Dirty::new();
        for event in batch.events {
            match event {
                Event::Put { path, data, stat } => self.put(&path, &data, stat, &mut dirty),
                Event::Delete { path } => self.delete(&path, &mut dirty),
            }
        }
        self.loaded |= batch.complete;
        dirty
            .into_iter()
            .filter_map(|(name, marked)| Some((name.clone(), self.settle(&name, marked)?)))
            .collect()
    }

    /// The mirror as it is now; costs nothing.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// How much the view holds; costs nothing.
    pub fn counts(&self) -> Counts {
        Counts {
            services: self.view.services.len(),
            instances: self.instances,
            rejected: self.view.rejected.len(),
        }
    }

    /// The znodes that were rejected since the last call, by path, also those that were rejected
    /// before for another reason. Whoever applies batches takes them, or they pile up.
    pub fn take_rejections(&mut self) -> BTreeMap<String, Rejected> {
        std::mem::take(&mut self.rejections)
    }

    /// Whether the whole tree was seen once. Before that the view has only a part of it.
    pub fn loaded(&self) -> bool {
        self.loaded
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    fn put(&mut self, path: &Arc<str>, data: &[u8], stat: Stat, dirty: &mut Dirty) {
        match Place::of(path) {
            Place::Service(_) => {
                self.ensure(Arc::clone(path), stat.czxid, dirty);
            }
            Place::Instance(service) => self.put_instance(service, path, data, stat, dirty),
            Place::Root | Place::Elsewhere => {}
        }
    }

    fn put_instance(
        &mut self,
        service: &str,
        path: &Arc<str>,
        data: &[u8],
        stat: Stat,
        dirty: &mut Dirty,
    ) {
        let service = match self.services.get_key_value(service) {
            Some((service, _)) => Arc::clone(service),
            None => self.ensure(Arc::from(service), UNSEEN, dirty),
        };
        let name = &path[service.len() + 1..];
        let outcome = self.decode(path, &Znode::new(name, data, stat));
        if let Some(Ok(roster)) = self.services.get_mut(&service).map(|m| &mut m.roster) {
            mark(dirty, &service, roster.put(path, stat.czxid, outcome));
        }
    }

    fn decode(&self, path: &Arc<str>, znode: &Znode<'_>) -> Result<Instance, Rejected> {
        let (format, registration) = self.config.format.decode(znode)?;
        let reject = |reason: &str| Rejected {
            format,
            reason: Reason::new(reason).into_string(),
        };
        let Registration::Instances(instances) = registration else {
            return Err(reject("weights of other znodes are not applied"));
        };
        let own = instances.into_iter().find(|decoded| decoded.part.is_none());
        let decoded = own.ok_or_else(|| reject("no instance of the service itself"))?;
        let Host::Ip(address) = decoded.host else {
            return Err(reject("a host name; register an IP address"));
        };
        Ok(Instance {
            own_id: decoded.id.map(String::into_boxed_str),
            address,
            port: decoded.port,
            weight: decoded.weight,
            zone: decoded.zone.map(Arc::from),
            health: decoded.health,
            metadata: decoded.metadata.into(),
            origin: Origin {
                root: Arc::clone(&self.root),
                znode: Arc::clone(path),
                format,
                czxid: znode.stat.czxid,
                mzxid: znode.stat.mzxid,
            },
        })
    }

    fn delete(&mut self, path: &str, dirty: &mut Dirty) {
        match Place::of(path) {
            Place::Root => {
                for name in self.services.keys().cloned().collect::<Vec<_>>() {
                    self.delete_service(&name, dirty);
                }
            }
            Place::Service(name) => self.delete_service(name, dirty),
            Place::Instance(service) => {
                let Some((service, mirrored)) = self.services.get_key_value(service) else {
                    return;
                };
                if mirrored.roster.is_ok() {
                    let service = Arc::clone(service);
                    self.delete_instance(&service, path, dirty);
                }
            }
            Place::Elsewhere => {}
        }
    }

    fn delete_instance(&mut self, service: &Arc<str>, path: &str, dirty: &mut Dirty) {
        if let Some(Ok(roster)) = self.services.get_mut(service).map(|m| &mut m.roster) {
            mark(dirty, service, roster.delete(path));
        }
    }

    fn delete_service(&mut self, name: &str, dirty: &mut Dirty) {
        let Some((name, mirrored)) = self.services.remove_entry(name) else {
            return;
        };
        let touched = dirty.entry(Arc::clone(&name)).or_default();
        if let Ok(roster) = &mirrored.roster {
            touched.znodes.extend(roster.znodes().cloned());
            // It may be there again before anybody looks.
            let instances = roster.instances();
            let claims = instances.iter().map(|i| (i.socket(), Arc::clone(i)));
            touched.claims.extend(claims);
            self.rename(&name, Some(mirrored.czxid), None, dirty);
        }
    }

    /// The service exists since `czxid`.
    fn ensure(&mut self, name: Arc<str>, czxid: i64, dirty: &mut Dirty) -> Arc<str> {
        let (name, before) = match self.services.entry(name) {
            Entry::Occupied(mut entry) => {
                let before = std::mem::replace(&mut entry.get_mut().czxid, czxid);
                (Arc::clone(entry.key()), Some(before))
            }
            Entry::Vacant(entry) => {
                let name = Arc::clone(entry.key());
                let roster = name::check(&name).map(|()| Roster::default());
                entry.insert(Mirrored { czxid, roster });
                (name, None)
            }
        };
        if before == Some(czxid) {
            return name;
        }
        dirty.entry(Arc::clone(&name)).or_default();
        if self.services.get(&name).is_some_and(|m| m.roster.is_ok()) {
            self.rename(&name, before, Some(czxid), dirty);
        }
        name
    }

    /// Moves a claim to a host name. Where another service holds it afterwards, all that ask for it
    /// are touched, since each of the others names the holder.
    fn rename(
        &mut self,
        name: &Arc<str>,
        before: Option<i64>,
        after: Option<i64>,
        dirty: &mut Dirty,
    ) {
        let host = name.to_ascii_lowercase();
        let claims = self.hosts.entry(host.clone()).or_default();
        let holder = claims.first().map(|(_, name)| Arc::clone(name));
        let place = |claims: &[(i64, Arc<str>)], age: i64| {
            claims.binary_search_by(|(of, other)| (of, other).cmp(&(&age, name)))
        };
        if let Some(Ok(at)) = before.map(|before| place(claims, before)) {
            claims.remove(at);
        }
        if let Some((after, Err(at))) = after.map(|after| (after, place(claims, after))) {
            claims.reserve_exact(1);
            claims.insert(at, (after, Arc::clone(name)));
        }
        if holder.as_ref() != claims.first().map(|(_, name)| name) {
            for (_, claimant) in claims.iter() {
                dirty.entry(Arc::clone(claimant)).or_default();
            }
        }
        if claims.is_empty() {
            self.hosts.remove(&host);
        }
    }

    /// Brings the view in line with a service; what of it a client could see to be another.
    fn settle(&mut self, name: &Arc<str>, mut marked: Marked) -> Option<Touched> {
        let standing = self.standing(name);
        let served = standing == Standing::Served;
        let before = self.view.services.get(name).cloned();

        let rejection = match standing {
            Standing::Rejected(reason) => Some(Rejected {
                format: self.config.format.as_str(),
                reason: reason.into_string(),
            }),
            Standing::Gone | Standing::Served => None,
        };
        show(
            &mut self.view,
            &mut self.rejections,
            &self.config.root,
            name,
            rejection,
        );
        let roster = self.services.get(name).and_then(|m| m.roster.as_ref().ok());
        if served != before.is_some() {
            let znodes = roster.into_iter().flat_map(Roster::znodes);
            marked.znodes.extend(znodes.cloned());
        }
        let serving = roster.filter(|_| served);
        for znode in &marked.znodes {
            let rejection = serving.and_then(|roster| roster.rejection(znode));
            show(
                &mut self.view,
                &mut self.rejections,
                &self.config.root,
                znode,
                rejection,
            );
        }
        match (before, serving) {
            (None, None) => None,
            (Some(before), None) => {
                self.instances -= before.instances.len();
                self.view.services.remove(name);
                Some(Touched::All)
            }
            (None, Some(roster)) => {
                let service = Service {
                    name: Arc::clone(name),
                    registry: Arc::clone(&self.registry),
                    instances: roster.instances(),
                };
                self.instances += service.instances.len();
                self.view.services.insert(Arc::clone(name), service.into());
                Some(Touched::All)
            }
            (Some(before), Some(roster)) => {
                let (after, visible) = updated(&before, roster, &marked.claims);
                if let Some(after) = after {
                    self.instances += after.instances.len();
                    self.instances -= before.instances.len();
                    self.view.services.insert(Arc::clone(name), after.into());
                }
                (!visible.is_empty()).then_some(Touched::Some(visible))
            }
        }
    }

    fn standing(&self, name: &Arc<str>) -> Standing {
        match self.services.get(name).map(|m| &m.roster) {
            None => Standing::Gone,
            Some(Err(reason)) => Standing::Rejected(reason.clone()),
            Some(Ok(_)) => match self.holder(name) {
                Some(holder) if holder != name => Standing::Rejected(outranked(holder)),
                _ => Standing::Served,
            },
        }
    }

    /// The service that has the host name which `name` asks for.
    fn holder(&self, name: &str) -> Option<&Arc<str>> {
        let claims = self.hosts.get(&name.to_ascii_lowercase())?;
        claims.first().map(|(_, holder)| holder)
    }
}

/// What becomes of a service.
#[derive(PartialEq, Eq)]
enum Standing {
    Gone,
    Rejected(Reason),
    Served,
}

fn outranked(holder: &str) -> Reason {
    Reason::new(format!(
        "the name differs from the older service {} in case only; rename one",
        quoted_path(holder)
    ))
}

/// The service with what serves these addresses now, if anything is another, and where a client
/// could see that. The rest is as it was.
fn updated(
    before: &Service,
    roster: &Roster,
    claims: &BTreeMap<Socket, Arc<Instance>>,
) -> (Option<Service>, BTreeSet<Socket>) {
    let mut after = None;
    let mut visible = BTreeSet::new();
    for (socket, claim) in claims {
        let (was, is) = (before.instances.get(*socket), roster.serving(claim));
        let same = match (was, is) {
            (Some(was), Some(is)) => alike(was, is),
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

/// Whether two instances are equal but for their origin. Every field is named, so that a new one
/// asks for its answer here.
fn alike(a: &Arc<Instance>, b: &Arc<Instance>) -> bool {
    let Instance {
        own_id: _,
        address,
        port,
        weight,
        zone,
        health,
        metadata,
        origin: _,
    } = &**a;
    Arc::ptr_eq(a, b)
        || ((address, port, weight, zone) == (&b.address, &b.port, &b.weight, &b.zone)
            && (a.id(), health, metadata) == (b.id(), &b.health, &b.metadata))
}

fn mark(dirty: &mut Dirty, service: &Arc<str>, marks: Marks) {
    // The name is copied where it is not there yet.
    let marked = match dirty.get_mut(service) {
        Some(marked) => marked,
        None => dirty.entry(Arc::clone(service)).or_default(),
    };
    marked.znodes.extend(marks.znodes.into_iter().flatten());
    let claims = marks.claims.into_iter().flatten();
    marked
        .claims
        .extend(claims.map(|claim| (claim.socket(), claim)));
}

/// Shows a znode as rejected or not, and adds to `new` what was not shown before.
fn show(
    view: &mut View,
    new: &mut BTreeMap<String, Rejected>,
    root: &str,
    znode: &str,
    rejection: Option<Rejected>,
) {
    let Some(rejected) = rejection else {
        if !view.rejected.is_empty() {
            let path = full_path(root, znode);
            view.rejected.remove(&path);
            new.remove(&path);
        }
        return;
    };
    let path = full_path(root, znode);
    if view.rejected.get(&path) != Some(&rejected) {
        view.rejected.insert(path.clone(), rejected.clone());
        new.insert(path, rejected);
    }
}

/// The path in the ensemble, below the connect string's chroot.
fn full_path(root: &str, znode: &str) -> String {
    format!("{}/{znode}", root.trim_end_matches('/'))
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
