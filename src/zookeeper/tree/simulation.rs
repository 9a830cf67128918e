//! The machine against a simulated ensemble, under random interleavings.
//!
//! Each session answers its requests in order, each at a moment of its own; its events and replies
//! reach the machine as the watcher hands them in (events that came before a reply ahead of it).
//! Connections break at any moment. At rest the mirror equals the tree, and no znode that existed
//! throughout was ever removed. Where events get lost too, that is so after the next audit, and as long
//! as none does the audit of a recursive watch finds nothing.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::registry::Event;

const SERVICES: [&str; 3] = ["a", "a!b", "b"];
const INSTANCES: [&str; 3] = ["i", "j", "k"];
const SESSIONS: usize = 3;

fn depth_of(path: &str) -> usize {
    match path {
        "" => 0,
        _ => 1 + path.matches('/').count(),
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Create or change, with parents.
    Write(usize, usize),
    /// Delete an instance; a service left empty may go too.
    Delete(usize, usize, bool),
    /// Delete and create in one transaction.
    Replace(usize, usize),
    DeleteRoot,
    Ask(usize),
    Serve(usize),
    Events,
    Reply(usize),
    Take,
    Break,
    /// Another machine begins with what was published so far.
    Restart,
    /// Of as many znodes.
    Audit(usize),
    /// The next event of a session never arrives.
    Lose(usize),
}

fn audited_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => step(),
        3 => (1..12_usize).prop_map(Step::Audit),
    ]
}

fn lossy_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => audited_step(),
        1 => (0..SESSIONS).prop_map(Step::Lose),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let at = || (0..SERVICES.len(), 0..INSTANCES.len());
    prop_oneof![
        4 => at().prop_map(|(s, i)| Step::Write(s, i)),
        3 => (at(), any::<bool>()).prop_map(|((s, i), all)| Step::Delete(s, i, all)),
        1 => at().prop_map(|(s, i)| Step::Replace(s, i)),
        1 => Just(Step::DeleteRoot),
        8 => (1..4_usize).prop_map(Step::Ask),
        10 => (0..SESSIONS).prop_map(Step::Serve),
        4 => Just(Step::Events),
        10 => (0..SESSIONS).prop_map(Step::Reply),
        3 => Just(Step::Take),
        1 => Just(Step::Break),
        1 => Just(Step::Restart),
    ]
}

#[derive(Debug)]
enum Message {
    Event(Change, String),
    Reply(Request, Reply),
}

#[derive(Default)]
struct Session {
    asked: VecDeque<Request>,
    /// In the order of the wire.
    sent: VecDeque<Message>,
    recursive: bool,
    data_watches: BTreeSet<String>,
    child_watches: BTreeSet<String>,
}

struct World {
    tree: Tree,
    watches: Watches,
    zxid: i64,
    /// The root is the empty path.
    znodes: BTreeMap<String, Stat>,
    sessions: Vec<Session>,
    /// What the batches add up to: the zxid that each path was last put with, and its birth.
    mirror: BTreeMap<String, Stat>,
    /// What the audits found.
    differences: Vec<Arc<str>>,
}

impl World {
    fn new(watches: Watches) -> Self {
        let mut world = Self {
            tree: Tree::new(Layout::flat()),
            watches,
            zxid: 0,
            znodes: BTreeMap::new(),
            sessions: Vec::new(),
            mirror: BTreeMap::new(),
            differences: Vec::new(),
        };
        world.connect();
        world
    }

    fn connect(&mut self) {
        self.sessions = (0..SESSIONS).map(|_| Session::default()).collect();
        self.tree.connected(self.watches);
    }

    fn restart(&mut self) {
        self.tree = Tree::new(Layout::flat());
        let known = self.mirror.iter();
        let known = known.map(|(path, stat)| (Arc::from(path.as_str()), *stat));
        self.tree.seed(known);
        self.connect();
    }

    fn create(&mut self, path: &str) {
        let stat = Stat {
            czxid: self.zxid,
            mzxid: self.zxid,
            ..Stat::default()
        };
        self.znodes.insert(path.to_owned(), stat);
        self.fire(Change::Created, path);
    }

    fn delete(&mut self, path: &str) {
        if self.znodes.remove(path).is_some() {
            self.fire(Change::Deleted, path);
        }
    }

    fn has_children(&self, path: &str) -> bool {
        !self.children(path).is_empty()
    }

    fn children(&self, path: &str) -> Vec<String> {
        let parent_of = |child: &str| match child.rsplit_once('/') {
            Some((parent, _)) => parent.to_owned(),
            None => String::new(),
        };
        (self.znodes.keys())
            .filter(|child| !child.is_empty() && parent_of(child) == path)
            .map(|child| child.rsplit('/').next().unwrap_or(child).to_owned())
            .collect()
    }

    fn fire(&mut self, change: Change, path: &str) {
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        for session in &mut self.sessions {
            let mut tell = |change, path: &str| {
                (session.sent).push_back(Message::Event(change, path.to_owned()));
            };
            if session.recursive {
                tell(change, path);
            }
            let data = session.data_watches.remove(path);
            let children = change == Change::Deleted && session.child_watches.remove(path);
            if data || children {
                tell(change, path);
            }
            if change != Change::Changed && !path.is_empty() && session.child_watches.remove(parent)
            {
                tell(Change::Children, parent);
            }
        }
    }

    /// The session that holds the watch of a path.
    fn session_of(&self, request: &Request) -> usize {
        match (self.watches, request) {
            (Watches::Recursive, _) => 0,
            (_, Request::Watch) => unreachable!("asked for by recursive watches only"),
            (_, Request::List(path) | Request::CheckList(path)) => path.len() % SESSIONS,
            (_, Request::Read(path) | Request::CheckRead(path)) if depth_of(path) < 2 => {
                path.len() % SESSIONS
            }
            (_, Request::Read(path) | Request::CheckRead(path)) => (path.len() + 1) % SESSIONS,
        }
    }

    fn answer(&mut self, session: usize, request: &Request) -> Reply {
        let one_shot = self.watches == Watches::OneShot && !request.is_check();
        let path = request.path();
        let exists = self.znodes.contains_key(path);
        let names = self.children(path);
        let stat = self.znodes.get(path).copied();
        let session = &mut self.sessions[session];
        match request {
            Request::Watch => {
                session.recursive = true;
                Reply::Watching
            }
            Request::List(_) | Request::CheckList(_) if !exists => {
                if one_shot && path.is_empty() {
                    session.data_watches.insert(String::new());
                }
                Reply::Absent
            }
            Request::List(_) | Request::CheckList(_) => {
                if one_shot {
                    session.child_watches.insert(path.to_owned());
                }
                Reply::Children(names)
            }
            Request::Read(_) | Request::CheckRead(_) => {
                let Some(stat) = stat else {
                    return Reply::Absent;
                };
                if one_shot && depth_of(path) == 2 {
                    session.data_watches.insert(path.to_owned());
                }
                Reply::Node {
                    data: Bytes::from(stat.mzxid.to_string()),
                    stat,
                }
            }
        }
    }

    fn serve(&mut self, session: usize) -> bool {
        let Some(request) = self.sessions[session].asked.pop_front() else {
            return false;
        };
        let reply = self.answer(session, &request);
        let message = Message::Reply(request, reply);
        self.sessions[session].sent.push_back(message);
        true
    }

    /// Hands in all events that were sent, from whatever place in the stream: the watcher may see
    /// an event before an earlier reply, never a reply before an earlier event.
    fn events(&mut self) {
        for session in &mut self.sessions {
            session.sent.retain(|message| match message {
                Message::Event(change, path) => {
                    self.tree.event(*change, path);
                    false
                }
                Message::Reply(..) => true,
            });
        }
    }

    fn reply(&mut self, session: usize) -> bool {
        self.events();
        match self.sessions[session].sent.pop_front() {
            Some(Message::Reply(request, reply)) => {
                self.tree.reply(request, reply);
                self.differences.extend(self.tree.take_differences());
                true
            }
            _ => false,
        }
    }

    fn ask(&mut self, max: usize) -> bool {
        let requests = self.tree.requests(max, usize::MAX);
        let any = !requests.is_empty();
        for request in requests {
            let session = self.session_of(&request);
            self.sessions[session].asked.push_back(request);
        }
        any
    }

    fn take(&mut self) -> bool {
        if !self.tree.has_batch() {
            return false;
        }
        for event in self.tree.take().events {
            match event {
                Event::Put { path, data, stat } => {
                    if depth_of(&path) == 2 {
                        assert_eq!(data, stat.mzxid.to_string());
                    }
                    self.mirror.insert(path.to_string(), stat);
                }
                Event::Unreadable { path } => panic!("{path} may be read"),
                Event::Delete { path } => {
                    let below = format!("{path}/");
                    let gone: Vec<String> = (self.mirror.keys())
                        .filter(|known| {
                            path.is_empty() || ***known == *path || known.starts_with(&below)
                        })
                        .cloned()
                        .collect();
                    assert!(
                        path.is_empty() || gone.iter().any(|gone| **gone == *path),
                        "{path} was never put"
                    );
                    for path in gone {
                        let known = self.mirror.remove(&path).map(|stat| stat.czxid);
                        let lives = self.znodes.get(&path).map(|stat| stat.czxid);
                        assert_ne!(known, lives, "{path} existed throughout");
                    }
                }
            }
        }
        true
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Write(s, i) => self.write(SERVICES[*s], INSTANCES[*i]),
            Step::Delete(s, i, all) => {
                self.zxid += 1;
                self.delete(&format!("{}/{}", SERVICES[*s], INSTANCES[*i]));
                if *all && !self.has_children(SERVICES[*s]) {
                    self.delete(SERVICES[*s]);
                }
            }
            Step::Replace(s, i) => {
                self.zxid += 1;
                let path = format!("{}/{}", SERVICES[*s], INSTANCES[*i]);
                if self.znodes.contains_key(&path) {
                    self.delete(&path);
                    self.create(&path);
                }
            }
            Step::DeleteRoot => {
                let all: Vec<String> = self.znodes.keys().rev().cloned().collect();
                for path in all {
                    self.zxid += 1;
                    self.delete(&path);
                }
            }
            Step::Ask(max) => {
                self.ask(*max);
            }
            Step::Serve(session) => {
                self.serve(*session);
            }
            Step::Events => self.events(),
            Step::Reply(session) => {
                self.reply(*session);
            }
            Step::Take => {
                self.take();
            }
            Step::Break => self.connect(),
            Step::Restart => self.restart(),
            Step::Audit(most) => {
                self.tree.audit(*most);
            }
            Step::Lose(session) => self.lose(*session),
        }
    }

    fn lose(&mut self, session: usize) {
        let sent = &mut self.sessions[session].sent;
        let event = sent.iter().position(|m| matches!(m, Message::Event(..)));
        event.map(|at| sent.remove(at));
    }

    /// Compares everything, and lets that come to its end.
    fn audit(&mut self) {
        while !self.tree.audit(3).round && self.tree.phase() == Phase::Synced {
            self.settle();
        }
        self.settle();
    }

    fn write(&mut self, service: &str, instance: &str) {
        let path = format!("{service}/{instance}");
        for parent in ["", service] {
            if !self.znodes.contains_key(parent) {
                self.zxid += 1;
                self.create(parent);
            }
        }
        self.zxid += 1;
        if let Some(stat) = self.znodes.get_mut(&path) {
            stat.mzxid = self.zxid;
            self.fire(Change::Changed, &path);
        } else {
            self.create(&path);
        }
    }

    /// Lets everything happen that is on its way.
    fn settle(&mut self) {
        for _ in 0..1_000 {
            self.events();
            let mut moved = self.ask(500) | self.take();
            for session in 0..SESSIONS {
                moved |= self.serve(session) | self.reply(session);
            }
            if !moved {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn check(&self) {
        let versions = |map: &BTreeMap<String, Stat>| -> Vec<(String, i64)> {
            let version = |path: &str, stat: &Stat| match depth_of(path) {
                2 => stat.mzxid,
                _ => stat.czxid,
            };
            (map.iter().filter(|(path, _)| !path.is_empty()))
                .map(|(path, stat)| (path.clone(), version(path, stat)))
                .collect()
        };
        assert_eq!(versions(&self.mirror), versions(&self.znodes));
    }
}

fn run(watches: Watches, steps: &[Step]) {
    let mut world = World::new(watches);
    for step in steps {
        world.step(step);
    }
    world.settle();
    // A root that never existed leaves the tree unloaded, which is right.
    world.check();
    world.write("b", "j");
    world.settle();
    assert_eq!(world.tree.phase(), Phase::Synced);
    assert!(world.tree.loaded());
    world.check();
}

fn run_audited(watches: Watches, steps: &[Step]) {
    let mut world = World::new(watches);
    // Something to audit from the first step on.
    for (service, instance) in [("a", "i"), ("a", "j"), ("b", "k")] {
        world.write(service, instance);
    }
    world.settle();
    for step in steps {
        world.step(step);
    }
    world.settle();
    world.audit();
    world.check();
    assert!(world.differences.is_empty(), "{:?}", world.differences);
}

fn run_lossy(watches: Watches, steps: &[Step]) {
    let mut world = World::new(watches);
    for step in steps {
        world.step(step);
    }
    // What a round was behind already, and what comes of a find, is up to the next one.
    for _ in 0..3 {
        world.settle();
        world.audit();
    }
    world.check();
    world.differences.clear();
    world.audit();
    assert!(world.differences.is_empty(), "{:?}", world.differences);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_recursive_watch_mirrors_the_tree(steps in prop::collection::vec(step(), 0..120)) {
        run(Watches::Recursive, &steps);
    }

    #[test]
    fn one_shot_watches_mirror_the_tree(steps in prop::collection::vec(step(), 0..120)) {
        run(Watches::OneShot, &steps);
    }

    #[test]
    fn an_audit_of_a_recursive_watch_that_tells_all_finds_nothing(steps in prop::collection::vec(audited_step(), 0..120)) {
        run_audited(Watches::Recursive, &steps);
    }

    #[test]
    fn what_a_recursive_watch_loses_the_audit_finds(steps in prop::collection::vec(lossy_step(), 0..120)) {
        run_lossy(Watches::Recursive, &steps);
    }

    #[test]
    fn what_one_shot_watches_lose_the_audit_finds(steps in prop::collection::vec(lossy_step(), 0..120)) {
        run_lossy(Watches::OneShot, &steps);
    }
}

/// So that the losses above are real.
#[test]
fn without_an_audit_what_a_watch_loses_stays_unknown() {
    for watches in [Watches::Recursive, Watches::OneShot] {
        let mut world = World::new(watches);
        world.write("a", "i");
        world.settle();
        world.write("a", "i");
        (0..SESSIONS).for_each(|session| world.lose(session));
        world.settle();
        assert_ne!(world.mirror["a/i"], world.znodes["a/i"]);
        world.audit();
        world.check();
        assert_eq!(world.differences, [Arc::from("a/i")]);
    }
}
