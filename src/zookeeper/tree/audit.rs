//! The audit: compares what is published with ZooKeeper, a few znodes at a time and round again.
//!
//! What it sends only asks: a check sets no watch, and its answer changes nothing. Where an answer is
//! another than what is published, the znode is asked for in the ordinary way, which puts it right and
//! sets its watch anew. It refuses to know what was lost, and why.
//!
//! Invariant: only what is proven counts. ZooKeeper tells a session of a change before it answers it with
//! anything newer, so an event that comes before an answer voids the check, a request that is still on
//! its way excuses the difference, and what is left is a watch that told nothing.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    sync::Arc,
};

use super::{Again, Change, Phase, Reply, Request, Tree, join, version};
use crate::registry::{Event, layout::Role};

#[derive(Debug, Default)]
pub(super) struct Audit {
    /// The last znode that was asked for; `None` where a round begins.
    cursor: Option<Arc<str>>,
    queue: VecDeque<Request>,
    /// Queued or on their way, and not void.
    open: HashSet<Request>,
    /// How many are on their way, void or not: none is asked again before its old answer came.
    sent: usize,
    /// What was found since the machine was last at rest.
    found: HashSet<Arc<str>>,
    /// Those of them that nobody heard of yet.
    untold: Vec<Arc<str>>,
}

/// What one step of the audit came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// How many znodes are asked for.
    pub znodes: usize,
    /// With these, every published znode was.
    pub round: bool,
}

impl Audit {
    pub fn forget(&mut self) {
        self.queue.clear();
        self.open.clear();
        self.sent = 0;
        self.found.clear();
    }

    /// The next checks to send, as [`Tree::requests`] has it.
    pub fn requests(&mut self, max: usize, max_bytes: usize) -> Vec<Request> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < max && bytes < max_bytes {
            let Some(check) = self.queue.pop_front() else {
                break;
            };
            if self.open.contains(&check) {
                bytes += check.size();
                batch.push(check);
            }
        }
        self.sent += batch.len();
        batch
    }

    /// No answer of now proves anything about this path, or about who is below its parent.
    pub fn happened(&mut self, change: Change, path: &str) {
        if self.open.is_empty() {
            return;
        }
        let at: Arc<str> = Arc::from(path);
        self.open.remove(&Request::CheckRead(Arc::clone(&at)));
        self.open.remove(&Request::CheckList(at));
        if !path.is_empty() && change != Change::Changed {
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            self.open.remove(&Request::CheckList(Arc::from(parent)));
        }
    }

    /// Whether any of these was found by the audit, or lies below what was.
    pub fn found_any(&self, events: &[Event]) -> bool {
        !self.found.is_empty() && events.iter().any(|event| self.found(path_of(event)))
    }

    fn found(&self, path: &str) -> bool {
        let up = std::iter::successors(Some(path), |path| path.rsplit_once('/').map(|(up, _)| up));
        up.chain([""]).any(|path| self.found.contains(path))
    }

    fn ask(&mut self, check: Request) {
        if self.open.insert(check.clone()) {
            self.queue.push_back(check);
        }
    }

    fn differs(&mut self, path: Arc<str>) {
        if self.found.insert(Arc::clone(&path)) {
            self.untold.push(path);
        }
    }
}

impl Tree {
    /// Asks for the next `most` of the published znodes, once the machine is at rest; whatever else
    /// there is to ask goes first.
    pub fn audit(&mut self, most: usize) -> Step {
        if self.audit.sent > 0 || !self.audit.open.is_empty() || !self.is_idle() {
            return Step::default();
        }
        self.audit.found.clear();
        match self.phase {
            Phase::Synced => self.audit_next(most),
            Phase::RootAbsent => {
                self.audit.ask(Request::CheckList(Arc::from("")));
                Step {
                    znodes: 1,
                    round: false,
                }
            }
            _ => Step::default(),
        }
    }

    /// The paths that differed, since the last call.
    pub fn take_differences(&mut self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.audit.untold)
    }

    fn audit_next(&mut self, most: usize) -> Step {
        let mut znodes = 0;
        let mut at = self.audit.cursor.take().unwrap_or_else(|| {
            znodes = 1;
            self.audit.ask(Request::CheckList(Arc::from("")));
            Arc::from("")
        });
        let left = most.saturating_sub(znodes);
        let paths: Vec<_> = self.mirror.after(&at).take(left).cloned().collect();
        let round = paths.len() < left;
        znodes += paths.len();
        for path in paths {
            at = Arc::clone(&path);
            // What may not be read is asked for again anyhow.
            if !self.mirror.is_unreadable(&path) {
                if self.layout.role(&path) == Role::Inner {
                    self.audit.ask(Request::CheckList(Arc::clone(&path)));
                }
                self.audit.ask(Request::CheckRead(path));
            }
        }
        self.audit.cursor = (!round).then_some(at);
        Step { znodes, round }
    }

    /// The answer to a check.
    pub(super) fn checked(&mut self, check: &Request, reply: &Reply) {
        let (Request::CheckList(path) | Request::CheckRead(path)) = check else {
            return;
        };
        self.audit.sent = self.audit.sent.saturating_sub(1);
        if !self.audit.open.remove(check) || self.is_in_question(path) {
            return;
        }
        match self.phase {
            Phase::Synced => self.compare(check, path, reply),
            Phase::RootAbsent if matches!(reply, Reply::Children(_)) => {
                self.audit.differs(Arc::clone(path));
                self.begin_load();
            }
            _ => {}
        }
    }

    fn compare(&mut self, check: &Request, path: &Arc<str>, reply: &Reply) {
        let own = || vec![Arc::clone(path)];
        let different = match (check, reply) {
            (Request::CheckList(_), Reply::Children(names)) => self.other_children(path, names),
            (Request::CheckList(_), Reply::Absent) if path.is_empty() => {
                self.other_children(path, &[])
            }
            // Who is not held has no watch; that it came is its parent's to tell.
            (Request::CheckRead(_), Reply::Node { stat, .. }) if self.mirror.holds(path) => {
                let there = version(self.layout.role(path), stat);
                if self.mirror.version(path) == there {
                    return;
                }
                own()
            }
            (Request::CheckRead(_), Reply::Absent) if self.mirror.holds(path) => own(),
            // No watch tells of rights, so none was lost; but it has to be told.
            (_, Reply::Unreadable) if !self.mirror.is_unreadable(path) => Vec::new(),
            _ => return,
        };
        let told = *reply != Reply::Unreadable;
        if told && different.is_empty() {
            return;
        }
        for path in different {
            self.audit.differs(path);
        }
        if let Some(request) = self.own_request(path) {
            self.want(request, Again::Confirm);
        }
    }

    /// The children that are there or held, and not both. Those that are asked for already do not count.
    fn other_children(&self, parent: &str, names: &[String]) -> Vec<Arc<str>> {
        let there = names.iter().map(|name| join(parent, name));
        let there: BTreeSet<_> =
            (there.filter(|child| self.own_request(child).is_some())).collect();
        let held = self.mirror.children(parent);
        let other = there.symmetric_difference(&held);
        (other.filter(|child| !self.is_asked(child)).cloned()).collect()
    }

    /// Whether the path, or anything above it, is asked for at present.
    fn is_in_question(&self, path: &Arc<str>) -> bool {
        let up = std::iter::successors(path.rsplit_once('/'), |(up, _)| up.rsplit_once('/'));
        let mut up = up.map(|(up, _)| up).chain([""]);
        self.is_asked(path) || up.any(|up| self.is_asked(&Arc::from(up)))
    }

    fn is_asked(&self, path: &Arc<str>) -> bool {
        self.pending.contains_key(&Request::Read(Arc::clone(path)))
            || self.pending.contains_key(&Request::List(Arc::clone(path)))
    }
}

fn path_of(event: &Event) -> &str {
    match event {
        Event::Put { path, .. } | Event::Delete { path } | Event::Unreadable { path } => path,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{answer, list, loaded, names, node, published, read},
        *,
    };

    fn check_read(path: &str) -> Request {
        Request::CheckRead(Arc::from(path))
    }

    fn check_list(path: &str) -> Request {
        Request::CheckList(Arc::from(path))
    }

    /// A whole round, answered as the tree of [`loaded`] but for `other`.
    fn round(tree: &mut Tree, other: Vec<(Request, Reply)>) {
        let step = tree.audit(100);
        assert_eq!(
            step,
            Step {
                znodes: 4,
                round: true
            }
        );
        let usual = [
            (check_list(""), names(&["orders"])),
            (check_list("orders"), names(&["i-1", "i-2"])),
            (check_read("orders"), node(1)),
            (check_read("orders/i-1"), node(2)),
            (check_read("orders/i-2"), node(3)),
        ];
        let mut other: Vec<_> = other.into_iter().collect();
        let replies = usual.map(|(check, reply)| {
            let at = other.iter().position(|(of, _)| *of == check);
            at.map_or((check, reply), |at| other.swap_remove(at))
        });
        answer(tree, replies.into());
    }

    fn differences(tree: &mut Tree) -> Vec<String> {
        let paths = tree.take_differences();
        paths.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_tree_that_is_as_published_costs_its_checks_and_nothing_else() {
        let mut tree = loaded();
        round(&mut tree, vec![]);
        answer(&mut tree, vec![]);
        assert!(!tree.has_batch() && differences(&mut tree).is_empty());
    }

    #[test]
    fn a_round_goes_on_where_the_last_step_ended() {
        let mut tree = loaded();
        let mut asked = Vec::new();
        let mut rounds = 0;
        for _ in 0..5 {
            rounds += usize::from(tree.audit(2).round);
            for check in tree.requests(500, usize::MAX) {
                asked.push(check.path().to_owned());
                tree.reply(check, Reply::Unreadable);
            }
            tree.lost();
            super::super::tests::load(&mut tree);
            tree.take();
        }
        assert_eq!(
            rounds, 1,
            "of four znodes in steps of two, an empty step ends it"
        );
        let first = ["", "orders", "orders", "orders/i-1", "orders/i-2", ""];
        assert_eq!(asked[..6], first);
    }

    #[test]
    fn a_change_nobody_told_of_is_found_and_read() {
        let mut tree = loaded();
        round(&mut tree, vec![(check_read("orders/i-1"), node(9))]);
        assert_eq!(differences(&mut tree), ["orders/i-1"]);
        answer(&mut tree, vec![(read("orders/i-1"), node(9))]);
        let batch = tree.take();
        assert!(batch.audited && batch.events.len() == 1);
        // And once it is put right it is no difference any more.
        round(&mut tree, vec![(check_read("orders/i-1"), node(9))]);
        assert!(differences(&mut tree).is_empty() && tree.is_idle());
    }

    #[test]
    fn a_creation_nobody_told_of_is_found_and_read() {
        let mut tree = loaded();
        let listed = || names(&["i-1", "i-2", "i-3"]);
        round(&mut tree, vec![(check_list("orders"), listed())]);
        assert_eq!(differences(&mut tree), ["orders/i-3"]);
        answer(&mut tree, vec![(list("orders"), listed())]);
        answer(
            &mut tree,
            vec![(read("orders"), node(1)), (read("orders/i-3"), node(9))],
        );
        assert_eq!(published(&mut tree).0, ["+orders/i-3@9"]);
    }

    #[test]
    fn a_deletion_nobody_told_of_is_verified_before_it_is_published() {
        let mut tree = loaded();
        round(
            &mut tree,
            vec![
                (check_list("orders"), names(&["i-1"])),
                (check_read("orders/i-2"), Reply::Absent),
            ],
        );
        assert_eq!(differences(&mut tree), ["orders/i-2"], "told once");
        assert!(
            !tree.has_batch(),
            "on the word of a check alone nothing goes"
        );
        answer(&mut tree, vec![(list("orders"), names(&["i-1"]))]);
        // Whoever is missing in a list is asked for behind it.
        answer(
            &mut tree,
            vec![
                (read("orders"), node(1)),
                (read("orders/i-2"), Reply::Absent),
            ],
        );
        let batch = tree.take();
        assert!(batch.audited && batch.events.len() == 1);
    }

    #[test]
    fn a_service_that_went_unnoticed_goes_with_all_below() {
        let mut tree = loaded();
        round(
            &mut tree,
            vec![
                (check_list(""), names(&[])),
                (check_list("orders"), Reply::Absent),
                (check_read("orders"), Reply::Absent),
                (check_read("orders/i-1"), Reply::Absent),
                (check_read("orders/i-2"), Reply::Absent),
            ],
        );
        for _ in 0..5 {
            for request in tree.requests(500, usize::MAX) {
                let root = request == list("");
                let reply = if root { names(&[]) } else { Reply::Absent };
                tree.reply(request, reply);
            }
        }
        assert_eq!(differences(&mut tree), ["orders"]);
        assert_eq!(published(&mut tree).0, ["-orders"]);
        assert!(tree.is_idle());
    }

    #[test]
    fn a_change_whose_event_comes_before_the_answer_is_no_difference() {
        let mut tree = loaded();
        tree.audit(100);
        let checks = tree.requests(500, usize::MAX);
        tree.event(Change::Changed, "orders/i-1");
        tree.event(Change::Created, "orders/i-3");
        tree.event(Change::Deleted, "orders/i-2");
        for check in checks {
            let reply = match (&check, check.path()) {
                (Request::CheckList(_), "") => names(&["orders"]),
                (Request::CheckList(_), _) => names(&["i-1", "i-3"]),
                (_, "orders") => node(1),
                (_, "orders/i-1") => node(8),
                _ => Reply::Absent,
            };
            tree.reply(check, reply);
        }
        assert!(differences(&mut tree).is_empty());
        answer(
            &mut tree,
            vec![(read("orders/i-1"), node(8)), (read("orders/i-3"), node(9))],
        );
        let batch = tree.take();
        assert!(!batch.audited && batch.events.len() == 3);
    }

    #[test]
    fn an_answer_that_is_older_than_an_event_is_no_difference() {
        let mut tree = loaded();
        tree.audit(100);
        let checks = tree.requests(500, usize::MAX);
        tree.event(Change::Deleted, "orders/i-2");
        for check in checks {
            let reply = match (&check, check.path()) {
                (Request::CheckList(_), "") => names(&["orders"]),
                (Request::CheckList(_), _) => names(&["i-1", "i-2"]),
                (_, "orders") => node(1),
                (_, "orders/i-1") => node(2),
                _ => node(3),
            };
            tree.reply(check, reply);
        }
        assert!(differences(&mut tree).is_empty());
        answer(&mut tree, vec![]);
        assert_eq!(published(&mut tree).0, ["-orders/i-2"]);
    }

    #[test]
    fn checks_wait_for_everything_else_there_is_to_ask() {
        let mut tree = loaded();
        tree.audit(100);
        tree.event(Change::Created, "users");
        assert_eq!(tree.requests(1, usize::MAX), [read("users")]);
        let checks = tree.requests(500, usize::MAX);
        // That of the root is void: somebody came.
        assert_eq!(checks[0], check_list("orders"));
    }

    #[test]
    fn a_root_that_came_unnoticed_is_loaded() {
        let mut tree = Tree::new(crate::registry::layout::Layout::flat());
        tree.connected(super::super::Watches::Recursive);
        answer(&mut tree, vec![(Request::Watch, Reply::Watching)]);
        answer(&mut tree, vec![(list(""), Reply::Absent)]);
        assert_eq!(tree.phase(), Phase::RootAbsent);
        tree.audit(100);
        answer(&mut tree, vec![(check_list(""), Reply::Absent)]);
        assert!(differences(&mut tree).is_empty());
        tree.audit(100);
        answer(&mut tree, vec![(check_list(""), names(&[]))]);
        assert_eq!(differences(&mut tree), [""]);
        answer(&mut tree, vec![(list(""), names(&[]))]);
        assert_eq!(tree.phase(), Phase::Synced);
    }

    #[test]
    fn what_was_closed_to_us_is_told_and_no_difference() {
        let mut tree = loaded();
        round(
            &mut tree,
            vec![(check_read("orders/i-1"), Reply::Unreadable)],
        );
        assert!(differences(&mut tree).is_empty());
        answer(&mut tree, vec![(read("orders/i-1"), Reply::Unreadable)]);
        assert_eq!(published(&mut tree).0, ["?orders/i-1"]);
    }

    #[test]
    fn a_lost_connection_voids_what_was_asked() {
        let mut tree = loaded();
        tree.audit(100);
        let checks = tree.requests(500, usize::MAX);
        tree.lost();
        for check in checks {
            tree.reply(check, Reply::Absent);
        }
        assert!(differences(&mut tree).is_empty());
        assert_eq!(tree.audit(100), Step::default(), "without a connection");
    }
}
