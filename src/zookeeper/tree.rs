//! The watch-tree machine: what to ask ZooKeeper for, and what to publish of its answers.
//!
//! ```text
//! Detached ──connected──▶ Arming ──watching──▶ Loading ──last answer──▶ Synced
//!    ▲                   (watch first)    list, read │ ▲ root created
//!    └── lost, from anywhere                         ▼ │
//!                                                RootAbsent (never loaded yet)
//! ```
//!
//! It refuses to know clients, sessions, time and payloads: replies and watch events go in, requests
//! and [`Batch`]es come out, and paths are relative to the root (the root itself is the empty path).
//! Of each path at most one read is on its way; an event that arrives meanwhile marks it to be read
//! again, so that the last word on a path is always newer than its last event.
//! The caller hands in every event that arrived before a reply ahead of that reply.
//!
//! Invariant: nothing is removed between `connected` and the end of the load that follows, and that
//! load is published as one batch: what changed (by zxid), what is new, what is gone.

mod audit;
mod mirror;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;

use self::{
    audit::Audit,
    mirror::{Mirror, Version},
};
pub use self::{audit::Step, mirror::Tally};
use crate::registry::{
    Batch, Stat,
    layout::{Layout, Role},
};

/// How the ensemble tells of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watches {
    /// One persistent recursive watch: every change of every znode, by path.
    Recursive,
    /// Watches that each read or list sets and one change uses up.
    OneShot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Detached,
    Arming,
    Loading,
    /// Never loaded, and there is no root to load.
    RootAbsent,
    /// The root may not be listed. Nothing follows; connect again later.
    RootDenied,
    Synced,
}

/// What a request takes besides the path below the root: its own head, and the root.
const OVERHEAD: usize = 48;

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// Set the recursive watch on the root.
    Watch,
    /// Name the children.
    List(Arc<str>),
    /// Data and stat.
    Read(Arc<str>),
    /// As [`Request::List`], but only to compare: no watch is set.
    CheckList(Arc<str>),
    /// As [`Request::Read`], but only to compare: no watch is set.
    CheckRead(Arc<str>),
}

impl Request {
    pub fn path(&self) -> &str {
        match self {
            Self::Watch => "",
            Self::List(path) | Self::Read(path) | Self::CheckList(path) | Self::CheckRead(path) => {
                path
            }
        }
    }

    /// What it takes in a request, roughly, in bytes.
    pub fn size(&self) -> usize {
        self.path().len() + OVERHEAD
    }

    /// Whether it only compares.
    pub fn is_check(&self) -> bool {
        matches!(self, Self::CheckList(_) | Self::CheckRead(_))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Watching,
    Children(Vec<String>),
    Node {
        data: Bytes,
        stat: Stat,
    },
    /// No such znode.
    Absent,
    /// It exists, but we may not or cannot read it.
    Unreadable,
}

impl Reply {
    /// Roughly, in bytes.
    pub fn size(&self) -> usize {
        match self {
            Self::Children(names) => names.iter().map(String::len).sum(),
            Self::Node { data, .. } => data.len(),
            Self::Watching | Self::Absent | Self::Unreadable => 0,
        }
    }
}

/// What a watch tells of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Created,
    /// Its data.
    Changed,
    Deleted,
    /// Its children, by name only. Recursive watches never say this.
    Children,
}

/// A request that is queued or on its way.
#[derive(Debug)]
struct Pending {
    in_flight: bool,
    again: Again,
    /// The load waits for it.
    load: bool,
}

/// What an event that arrived after the request was sent means for its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Again {
    No,
    /// The reply may be old: take it, then ask once more.
    Confirm,
    /// The reply may be of a znode that is no more: ask once more instead.
    Discard,
}

#[derive(Debug)]
pub struct Tree {
    layout: Layout,
    watches: Watches,
    phase: Phase,
    mirror: Mirror,
    pending: HashMap<Request, Pending>,
    queue: VecDeque<Request>,
    audit: Audit,
    /// How many pending requests the load waits for.
    load_left: usize,
    /// A load ended and its batch was not taken yet.
    complete: bool,
    /// Something was removed since the last batch was taken.
    removed: bool,
    loaded: bool,
}

impl Tree {
    /// Mirrors what has a place in the layout.
    pub fn new(layout: Layout) -> Self {
        Self {
            layout,
            watches: Watches::Recursive,
            phase: Phase::Detached,
            mirror: Mirror::default(),
            pending: HashMap::new(),
            queue: VecDeque::new(),
            audit: Audit::default(),
            load_left: 0,
            complete: false,
            removed: false,
            loaded: false,
        }
    }

    /// Takes these znodes for published: the first load is compared with them, as any later one is.
    pub fn seed(&mut self, znodes: impl IntoIterator<Item = (Arc<str>, Stat)>) {
        let layout = &self.layout;
        let version = |(path, stat): (Arc<str>, Stat)| {
            let version = version(layout.role(&path), &stat)?;
            Some((path, version))
        };
        self.mirror.seed(znodes.into_iter().filter_map(version));
        self.loaded = true;
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether a load was ever published.
    pub fn loaded(&self) -> bool {
        self.loaded
    }

    /// A connection stands, with no watch on it. Also for a connection that came back.
    pub fn connected(&mut self, watches: Watches) {
        self.lost();
        self.watches = watches;
        match watches {
            Watches::Recursive => {
                self.phase = Phase::Arming;
                self.enqueue(Request::Watch, false);
            }
            Watches::OneShot => self.begin_load(),
        }
    }

    /// The connection is gone, and with it all watches and outstanding replies.
    pub fn lost(&mut self) {
        self.phase = Phase::Detached;
        self.pending.clear();
        self.queue.clear();
        self.audit.forget();
        self.load_left = 0;
        if !self.complete {
            self.mirror.discard_staged();
        }
    }

    /// The next requests to send, as one: at most `max`, of about `max_bytes` together at most.
    /// Empty when there is nothing to ask.
    pub fn requests(&mut self, max: usize, max_bytes: usize) -> Vec<Request> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < max && bytes < max_bytes {
            let Some(request) = self.queue.pop_front() else {
                break;
            };
            match self.pending.get_mut(&request) {
                Some(pending) if !pending.in_flight => pending.in_flight = true,
                // Cancelled meanwhile, or queued twice.
                _ => continue,
            }
            bytes += request.size();
            batch.push(request);
        }
        if batch.is_empty() {
            return self.audit.requests(max, max_bytes);
        }
        batch
    }

    /// The answer to a request that [`Tree::requests`] gave out since the last `connected`.
    pub fn reply(&mut self, request: Request, reply: Reply) {
        if request.is_check() {
            return self.checked(&request, &reply);
        }
        match self.pending.get_mut(&request) {
            Some(pending) if pending.in_flight && pending.again == Again::Discard => {
                pending.in_flight = false;
                pending.again = Again::No;
                self.queue.push_back(request);
            }
            Some(pending) if pending.in_flight => {
                let (again, load) = (pending.again, pending.load);
                self.pending.remove(&request);
                self.apply(&request, reply, load);
                if again == Again::Confirm {
                    self.want(request, Again::Confirm);
                }
                self.settle(load);
            }
            _ => {}
        }
    }

    /// Asks again for what may not be read: no watch tells of rights.
    pub fn ask_again(&mut self) {
        if self.phase != Phase::Synced {
            return;
        }
        let requests = self.mirror.all_unreadable();
        let requests = requests.filter_map(|path| self.own_request(path));
        for request in requests.collect::<Vec<_>>() {
            self.want(request, Again::Confirm);
        }
    }

    /// A watch fired. Paths without a place in the layout may come; they mean nothing here.
    pub fn event(&mut self, change: Change, path: &str) {
        self.audit.happened(change, path);
        match self.phase {
            Phase::Loading | Phase::Synced => {
                let role = self.layout.role(path);
                match self.watches {
                    _ if role == Role::Nothing => {}
                    Watches::Recursive => self.recursive_event(change, path, role),
                    Watches::OneShot => self.one_shot_event(change, path, role),
                }
            }
            Phase::RootAbsent if change == Change::Created && path.is_empty() => self.begin_load(),
            _ => {}
        }
    }

    pub fn has_batch(&self) -> bool {
        self.complete || (self.phase == Phase::Synced && self.mirror.is_dirty())
    }

    /// Whether the next batch may take away what the rest of a transaction puts back. A server sends the events of
    /// a transaction one by one, and before version 3.9 does not say which belong together.
    pub fn is_partial(&self) -> bool {
        self.removed && !self.complete
    }

    /// Where the next batch ends a load: what that load found.
    pub fn tally(&self) -> Option<Tally> {
        self.complete.then(|| self.mirror.tally())
    }

    /// Whether there is nothing to publish, and no answer to come that could be.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && !self.has_batch()
    }

    /// What to publish now. Nothing is published twice; what is not taken gathers.
    pub fn take(&mut self) -> Batch {
        self.loaded |= self.complete;
        self.removed = false;
        let events = self.mirror.take();
        Batch {
            complete: std::mem::take(&mut self.complete),
            audited: self.audit.found_any(&events),
            events,
            stale: false,
            absent: false,
            observed: None,
        }
    }

    fn begin_load(&mut self) {
        self.phase = Phase::Loading;
        self.complete = false;
        self.mirror.begin();
        self.enqueue(Request::List(Arc::from("")), true);
    }

    /// One request that the load waited for is answered.
    fn settle(&mut self, load: bool) {
        if load && self.load_left > 0 {
            self.load_left -= 1;
        }
        if self.load_left == 0 && self.phase == Phase::Loading {
            self.mirror.sweep();
            self.phase = Phase::Synced;
            self.complete = true;
            // A load asks for everything, and what follows for little.
            self.pending.shrink_to_fit();
            self.queue.shrink_to_fit();
        }
    }

    fn enqueue(&mut self, request: Request, load: bool) {
        if let Some(pending) = self.pending.get_mut(&request) {
            self.load_left += usize::from(load && !pending.load);
            pending.load |= load;
            return;
        }
        let pending = Pending {
            in_flight: false,
            again: Again::No,
            load,
        };
        self.load_left += usize::from(load);
        self.pending.insert(request.clone(), pending);
        self.queue.push_back(request);
    }

    /// Something happened to a path: ask, or where a request is on its way, ask again.
    fn want(&mut self, request: Request, again: Again) {
        match self.pending.get_mut(&request) {
            Some(pending) if pending.in_flight => pending.again = pending.again.max(again),
            _ => self.enqueue(request, false),
        }
    }

    fn is_in_flight(&self, request: &Request) -> bool {
        self.pending.get(request).is_some_and(|p| p.in_flight)
    }

    fn recursive_event(&mut self, change: Change, path: &str, role: Role) {
        if path.is_empty() {
            // Its children tell of themselves; only an answer on its way could be too old.
            let list = Request::List(Arc::from(""));
            if self.is_in_flight(&list) {
                self.want(list, Again::Discard);
            }
            // All that was below it went before it, and told so.
            if change == Change::Deleted && self.phase == Phase::Synced {
                self.mirror.remove_root();
            }
            return;
        }
        let read = Request::Read(Arc::from(path));
        match change {
            Change::Created => {
                self.mirror.revive(path);
                self.want(read, Again::Discard);
            }
            Change::Changed if role == Role::Leaf => self.want(read, Again::Confirm),
            Change::Deleted if self.is_in_flight(&read) => self.want(read, Again::Discard),
            Change::Deleted => {
                self.mirror.remove(path);
                self.removed = true;
                if let Some(cancelled) = self.pending.remove(&read) {
                    self.settle(cancelled.load);
                }
            }
            Change::Changed | Change::Children => {}
        }
    }

    /// An event of a one-shot watch is no more than a reason to ask: it uses up the watch, and what follows
    /// is not told.
    fn one_shot_event(&mut self, change: Change, path: &str, role: Role) {
        let leaf = role == Role::Leaf;
        let path = Arc::from(path);
        match change {
            Change::Children => self.want(Request::List(path), Again::Confirm),
            Change::Changed | Change::Created if leaf => {
                self.want(Request::Read(path), Again::Confirm);
            }
            Change::Deleted if leaf => self.want(Request::Read(path), Again::Discard),
            Change::Created | Change::Deleted => self.want(Request::List(path), Again::Discard),
            Change::Changed => {}
        }
    }

    fn apply(&mut self, request: &Request, reply: Reply, load: bool) {
        match (request, reply) {
            (Request::Watch, Reply::Watching) => self.begin_load(),
            (Request::List(path), Reply::Children(names)) => self.listed(path, &names, load),
            (Request::List(path), Reply::Absent) if path.is_empty() => self.root_is_absent(load),
            (Request::List(path), Reply::Absent) => self.inner_is_absent(path, load),
            (Request::List(path), Reply::Unreadable) if path.is_empty() => {
                self.lost();
                self.phase = Phase::RootDenied;
            }
            (Request::List(path), Reply::Unreadable) => {
                self.mirror.keep_below(path);
                self.mirror.unreadable(path);
            }
            (Request::Read(path), Reply::Node { data, stat }) => self.read(path, data, stat),
            (Request::Read(path), Reply::Absent) => self.read_absent(path),
            (Request::Read(path), Reply::Unreadable) => self.mirror.unreadable(path),
            _ => {}
        }
    }

    fn read(&mut self, path: &Arc<str>, data: Bytes, stat: Stat) {
        let role = self.layout.role(path);
        if let Some(version) = version(role, &stat) {
            let data = if role == Role::Leaf {
                data
            } else {
                Bytes::new()
            };
            self.mirror.put(path, version, data, stat);
        }
    }

    /// A recursive watch tells of every znode by itself, but for what it lost. One-shot watches tell of an inner znode by
    /// its list alone, so there a list that fails is the end of it; but its children may have come
    /// again and been read by another session meanwhile: each has the last word on itself.
    fn inner_is_absent(&mut self, path: &Arc<str>, load: bool) {
        match self.watches {
            // A load takes away by itself what it did not see; later only a read does.
            Watches::Recursive if !load => {
                self.want(Request::Read(Arc::clone(path)), Again::Confirm);
            }
            Watches::Recursive => {}
            Watches::OneShot => {
                if !self.verify_children(path, &[]) {
                    self.mirror.remove(path);
                    if self.mirror.is_empty() {
                        // Whether it was the last one, or went with the root.
                        self.want(Request::List(Arc::from("")), Again::Confirm);
                    }
                }
            }
        }
    }

    fn read_absent(&mut self, path: &str) {
        if self.watches == Watches::Recursive {
            self.mirror.remove(path);
        } else if self.is_leaf(path) {
            self.mirror.remove(path);
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            if !parent.is_empty() && self.mirror.children(parent).is_empty() {
                self.want(Request::List(Arc::from(parent)), Again::Confirm);
            }
        }
    }

    /// Before anything was ever loaded, that is no tree to speak of. Afterwards it is an empty one,
    /// and so it is when the root went while a load was on.
    fn root_is_absent(&mut self, load: bool) {
        if !load {
            self.verify_children("", &[]);
            if self.phase == Phase::Synced && self.mirror.is_empty() {
                self.mirror.remove_root();
            }
            return;
        }
        if self.loaded || self.complete {
            return;
        }
        self.phase = Phase::RootAbsent;
        self.load_left = 0;
        self.queue.clear();
        self.pending.retain(|_, pending| pending.in_flight);
        for pending in self.pending.values_mut() {
            // Events are not heeded in this phase, so no answer on its way can be trusted.
            pending.again = Again::Discard;
            pending.load = false;
        }
    }

    fn listed(&mut self, parent: &Arc<str>, names: &[String], load: bool) {
        if !parent.is_empty() {
            let read = Request::Read(Arc::clone(parent));
            if self.is_in_flight(&read) {
                // Its answer may be older than this list, and the parent another one by now.
                self.want(read.clone(), Again::Confirm);
            }
            self.enqueue(read, load);
        }
        for name in names {
            let child = join(parent, name);
            let Some(request) = self.own_request(&child) else {
                continue;
            };
            if load {
                self.enqueue(request, true);
            } else if !self.mirror.holds(&child) || self.is_in_flight(&request) {
                self.mirror.revive(&child);
                self.want(request, Again::Discard);
            }
        }
        if !load {
            self.verify_children(parent, names);
        }
    }

    /// What decides whether a znode is there, and sets its one-shot watch.
    fn own_request(&self, path: &Arc<str>) -> Option<Request> {
        match self.layout.role(path) {
            Role::Leaf => Some(Request::Read(Arc::clone(path))),
            Role::Inner => Some(Request::List(Arc::clone(path))),
            Role::Nothing => None,
        }
    }

    fn is_leaf(&self, path: &str) -> bool {
        self.layout.role(path) == Role::Leaf
    }

    /// Asks for the children that are held but not in `names`. Whether there are any.
    fn verify_children(&mut self, parent: &str, names: &[String]) -> bool {
        let names: HashSet<&str> = names.iter().map(String::as_str).collect();
        let mut children = self.mirror.children(parent);
        children.retain(|child| {
            let name = child.rsplit_once('/').map_or(&**child, |(_, name)| name);
            !names.contains(name)
        });
        for request in children
            .iter()
            .filter_map(|child| self.own_request(child))
            .collect::<Vec<_>>()
        {
            self.want(request, Again::Discard);
        }
        !children.is_empty()
    }
}

/// A leaf changes with its data; of an inner znode only its birth matters.
fn version(role: Role, stat: &Stat) -> Option<Version> {
    match role {
        Role::Leaf => Some((stat.mzxid, stat.mtime)),
        Role::Inner => Some((stat.czxid, stat.ctime)),
        Role::Nothing => None,
    }
}

fn join(parent: &str, name: &str) -> Arc<str> {
    match parent {
        "" => Arc::from(name),
        _ => Arc::from(format!("{parent}/{name}")),
    }
}
