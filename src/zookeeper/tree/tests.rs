//! Single steps of the machine.

use super::*;
use crate::registry::Event;

pub(super) fn read(path: &str) -> Request {
    Request::Read(Arc::from(path))
}

pub(super) fn list(path: &str) -> Request {
    Request::List(Arc::from(path))
}

pub(super) fn node(zxid: i64) -> Reply {
    let stat = Stat {
        czxid: zxid,
        mzxid: zxid,
        ..Stat::default()
    };
    Reply::Node {
        data: Bytes::from(format!("v{zxid}")),
        stat,
    }
}

pub(super) fn names(names: &[&str]) -> Reply {
    Reply::Children(names.iter().map(ToString::to_string).collect())
}

/// Asserts that exactly `asked` is asked for, and answers it.
pub(super) fn answer(tree: &mut Tree, asked: Vec<(Request, Reply)>) {
    let requests: Vec<Request> = asked.iter().map(|(request, _)| request.clone()).collect();
    assert_eq!(tree.requests(500, usize::MAX), requests);
    for (request, reply) in asked {
        tree.reply(request, reply);
    }
}

pub(super) fn published(tree: &mut Tree) -> (Vec<String>, bool) {
    let batch = tree.take();
    let text = |event: &Event| match event {
        Event::Put { path, stat, .. } => format!("+{path}@{}", stat.mzxid),
        Event::Delete { path } => format!("-{path}"),
        Event::Unreadable { path } => format!("?{path}"),
    };
    (batch.events.iter().map(text).collect(), batch.complete)
}

/// A tree with `orders`, `orders/i-1` and `orders/i-2`, loaded with `watches`.
pub(super) fn loaded() -> Tree {
    let mut tree = Tree::new(Layout::flat());
    load(&mut tree);
    assert_eq!(
        published(&mut tree).0,
        ["+orders@1", "+orders/i-1@2", "+orders/i-2@3"]
    );
    tree
}

pub(super) fn load(tree: &mut Tree) {
    tree.connected(Watches::Recursive);
    answer(tree, vec![(Request::Watch, Reply::Watching)]);
    answer(tree, vec![(list(""), names(&["orders"]))]);
    answer(tree, vec![(list("orders"), names(&["i-1", "i-2"]))]);
    answer(
        tree,
        vec![
            (read("orders"), node(1)),
            (read("orders/i-1"), node(2)),
            (read("orders/i-2"), node(3)),
        ],
    );
}

#[test]
fn the_watch_comes_first_then_the_lists_then_the_reads_then_one_batch() {
    let mut tree = Tree::new(Layout::flat());
    load(&mut tree);
    assert_eq!(tree.phase(), Phase::Synced);
    let batch = tree.take();
    assert!(batch.complete && tree.loaded() && !tree.has_batch());
    let Event::Put { data, .. } = &batch.events[0] else {
        panic!("the service first")
    };
    assert!(data.is_empty(), "of a service only the stat counts");
    let Event::Put { data, .. } = &batch.events[1] else {
        panic!("then an instance")
    };
    assert_eq!(data, "v2");
}

#[test]
fn a_change_costs_one_read_and_a_deletion_none() {
    let mut tree = loaded();
    tree.event(Change::Changed, "orders/i-1");
    answer(&mut tree, vec![(read("orders/i-1"), node(4))]);
    assert_eq!(published(&mut tree), (vec!["+orders/i-1@4".into()], false));
    tree.event(Change::Deleted, "orders/i-2");
    answer(&mut tree, vec![]);
    assert_eq!(published(&mut tree), (vec!["-orders/i-2".into()], false));
}

#[test]
fn many_changes_of_one_znode_are_one_read() {
    let mut tree = loaded();
    for _ in 0..5 {
        tree.event(Change::Changed, "orders/i-1");
    }
    answer(&mut tree, vec![(read("orders/i-1"), node(9))]);
    assert_eq!(published(&mut tree).0, ["+orders/i-1@9"]);
}

#[test]
fn a_change_while_the_read_is_on_its_way_is_read_again() {
    let mut tree = loaded();
    tree.event(Change::Changed, "orders/i-1");
    assert_eq!(tree.requests(500, usize::MAX), [read("orders/i-1")]);
    tree.event(Change::Changed, "orders/i-1");
    tree.reply(read("orders/i-1"), node(4));
    assert_eq!(published(&mut tree).0, ["+orders/i-1@4"]);
    answer(&mut tree, vec![(read("orders/i-1"), node(5))]);
    assert_eq!(published(&mut tree).0, ["+orders/i-1@5"]);
}

#[test]
fn a_deletion_while_the_read_is_on_its_way_voids_the_reply() {
    let mut tree = loaded();
    tree.event(Change::Changed, "orders/i-1");
    assert_eq!(tree.requests(500, usize::MAX), [read("orders/i-1")]);
    tree.event(Change::Deleted, "orders/i-1");
    tree.reply(read("orders/i-1"), node(4));
    assert!(!tree.has_batch());
    answer(&mut tree, vec![(read("orders/i-1"), Reply::Absent)]);
    assert_eq!(published(&mut tree).0, ["-orders/i-1"]);
}

#[test]
fn deleted_and_created_at_once_is_an_update() {
    let mut tree = loaded();
    tree.event(Change::Deleted, "orders/i-1");
    tree.event(Change::Created, "orders/i-1");
    assert!(!tree.has_batch());
    answer(&mut tree, vec![(read("orders/i-1"), node(7))]);
    assert_eq!(published(&mut tree).0, ["+orders/i-1@7"]);
}

#[test]
fn created_and_deleted_before_the_read_is_nothing() {
    let mut tree = loaded();
    tree.event(Change::Created, "orders/i-3");
    tree.event(Change::Deleted, "orders/i-3");
    answer(&mut tree, vec![]);
    assert!(!tree.has_batch());
}

#[test]
fn nothing_is_removed_until_the_resync_is_complete() {
    let mut tree = loaded();
    tree.lost();
    assert!(!tree.has_batch());
    tree.connected(Watches::Recursive);
    answer(&mut tree, vec![(Request::Watch, Reply::Watching)]);
    answer(&mut tree, vec![(list(""), names(&["orders"]))]);
    tree.event(Change::Deleted, "orders/i-2");
    assert!(!tree.has_batch());
    answer(&mut tree, vec![(list("orders"), names(&["i-3"]))]);
    let reads = vec![(read("orders"), node(1)), (read("orders/i-3"), node(5))];
    answer(&mut tree, reads);
    let expected = ["-orders/i-1", "-orders/i-2", "+orders/i-3@5"].map(String::from);
    assert_eq!(published(&mut tree), (expected.into(), true));
}

#[test]
fn a_resync_of_the_same_tree_says_nothing_but_that_it_is_complete() {
    let mut tree = loaded();
    load(&mut tree);
    assert_eq!(published(&mut tree), (vec![], true));
}

#[test]
fn a_load_cut_short_leaves_no_trace() {
    let mut tree = loaded();
    tree.connected(Watches::Recursive);
    answer(&mut tree, vec![(Request::Watch, Reply::Watching)]);
    answer(&mut tree, vec![(list(""), names(&[]))]);
    // That load ended with an empty tree, and nobody took it before the connection broke.
    load(&mut tree);
    assert_eq!(published(&mut tree), (vec![], true));
}

#[test]
fn a_reply_to_a_former_connection_means_nothing() {
    let mut tree = loaded();
    tree.event(Change::Changed, "orders/i-1");
    assert_eq!(tree.requests(500, usize::MAX).len(), 1);
    tree.lost();
    tree.reply(read("orders/i-1"), Reply::Absent);
    assert!(!tree.has_batch());
}

#[test]
fn a_root_that_never_was_is_waited_for() {
    let mut tree = Tree::new(Layout::flat());
    tree.connected(Watches::Recursive);
    answer(&mut tree, vec![(Request::Watch, Reply::Watching)]);
    answer(&mut tree, vec![(list(""), Reply::Absent)]);
    assert_eq!(tree.phase(), Phase::RootAbsent);
    assert!(!tree.has_batch() && !tree.loaded());
    tree.event(Change::Created, "");
    answer(&mut tree, vec![(list(""), names(&[]))]);
    assert_eq!(published(&mut tree), (vec![], true));
}

#[test]
fn a_root_created_while_its_list_is_on_its_way_is_listed_again() {
    let mut tree = Tree::new(Layout::flat());
    tree.connected(Watches::Recursive);
    answer(&mut tree, vec![(Request::Watch, Reply::Watching)]);
    assert_eq!(tree.requests(500, usize::MAX), [list("")]);
    tree.event(Change::Created, "");
    tree.reply(list(""), Reply::Absent);
    answer(&mut tree, vec![(list(""), names(&["orders"]))]);
    assert_eq!(tree.phase(), Phase::Loading);
}

#[test]
fn a_root_gone_during_an_outage_is_an_empty_tree() {
    let mut tree = loaded();
    tree.connected(Watches::Recursive);
    answer(&mut tree, vec![(Request::Watch, Reply::Watching)]);
    answer(&mut tree, vec![(list(""), Reply::Absent)]);
    assert_eq!(published(&mut tree), (vec!["-orders".into()], true));
}

#[test]
fn a_root_that_may_not_be_listed_removes_nothing() {
    let mut tree = loaded();
    tree.connected(Watches::Recursive);
    answer(&mut tree, vec![(Request::Watch, Reply::Watching)]);
    answer(&mut tree, vec![(list(""), Reply::Unreadable)]);
    assert_eq!(tree.phase(), Phase::RootDenied);
    assert!(!tree.has_batch());
}

#[test]
fn what_cannot_be_read_stays_as_it_was() {
    let mut tree = loaded();
    tree.connected(Watches::Recursive);
    answer(&mut tree, vec![(Request::Watch, Reply::Watching)]);
    answer(&mut tree, vec![(list(""), names(&["orders", "users"]))]);
    let lists = vec![
        (list("orders"), Reply::Unreadable),
        (list("users"), names(&["u-1"])),
    ];
    answer(&mut tree, lists);
    let reads = vec![
        (read("users"), node(8)),
        (read("users/u-1"), Reply::Unreadable),
    ];
    answer(&mut tree, reads);
    let told = ["+users@8", "?orders", "?users/u-1"].map(String::from);
    assert_eq!(published(&mut tree), (told.to_vec(), true));

    // It is told once, and again when it may be read.
    tree.ask_again();
    let lists = vec![
        (list("orders"), names(&["i-1", "i-9"])),
        (read("users/u-1"), Reply::Unreadable),
    ];
    answer(&mut tree, lists);
    answer(
        &mut tree,
        vec![
            (read("orders"), node(1)),
            (read("orders/i-9"), node(9)),
            (read("orders/i-2"), Reply::Absent),
        ],
    );
    let told = ["+orders@1", "-orders/i-2", "+orders/i-9@9"].map(String::from);
    assert_eq!(published(&mut tree), (told.to_vec(), false));
    tree.ask_again();
    answer(&mut tree, vec![(read("users/u-1"), node(10))]);
    assert_eq!(published(&mut tree).0, ["+users/u-1@10"]);
    tree.ask_again();
    answer(&mut tree, vec![]);
}

#[test]
fn znodes_below_the_instances_are_ignored() {
    let mut tree = loaded();
    tree.event(Change::Created, "orders/i-1/deep");
    tree.event(Change::Deleted, "orders/i-1/deep");
    tree.event(Change::Changed, "orders");
    answer(&mut tree, vec![]);
    assert!(!tree.has_batch());
}

#[test]
fn batches_keep_to_their_bounds() {
    let mut tree = loaded();
    for i in 0..10 {
        tree.event(Change::Created, &format!("orders/n-{i}"));
    }
    assert_eq!(tree.requests(4, usize::MAX).len(), 4);
    assert_eq!(tree.requests(4, 1).len(), 1, "one at least, however long");
    assert_eq!(tree.requests(500, usize::MAX).len(), 5);
}

#[test]
fn three_levels_are_mirrored_where_asked() {
    let mut tree = Tree::new("*/*/*".parse().unwrap());
    tree.connected(Watches::Recursive);
    answer(&mut tree, vec![(Request::Watch, Reply::Watching)]);
    answer(&mut tree, vec![(list(""), names(&["a"]))]);
    answer(&mut tree, vec![(list("a"), names(&["b"]))]);
    answer(
        &mut tree,
        vec![(read("a"), node(1)), (list("a/b"), names(&["c"]))],
    );
    answer(
        &mut tree,
        vec![(read("a/b"), node(2)), (read("a/b/c"), node(3))],
    );
    let expected = ["+a@1", "+a/b@2", "+a/b/c@3"].map(String::from);
    assert_eq!(published(&mut tree), (expected.into(), true));
}

#[test]
fn one_shot_watches_list_again_and_read_what_is_new() {
    let mut tree = Tree::new(Layout::flat());
    tree.connected(Watches::OneShot);
    answer(&mut tree, vec![(list(""), names(&["a"]))]);
    answer(&mut tree, vec![(list("a"), names(&["i", "j"]))]);
    let reads = vec![
        (read("a"), node(1)),
        (read("a/i"), node(2)),
        (read("a/j"), node(3)),
    ];
    answer(&mut tree, reads);
    tree.take();
    tree.event(Change::Children, "a");
    answer(&mut tree, vec![(list("a"), names(&["i", "k"]))]);
    let reads = vec![
        (read("a"), node(1)),
        (read("a/k"), node(4)),
        (read("a/j"), Reply::Absent),
    ];
    answer(&mut tree, reads);
    assert_eq!(published(&mut tree).0, ["-a/j", "+a/k@4"]);
}

#[test]
fn an_ensemble_set_up_anew_may_count_the_same_transactions() {
    let mut tree = loaded();
    tree.event(Change::Changed, "orders/i-1");
    let stat = Stat {
        mzxid: 2,
        mtime: 1,
        ..Stat::default()
    };
    let data = Bytes::from_static(b"other");
    answer(
        &mut tree,
        vec![(read("orders/i-1"), Reply::Node { data, stat })],
    );
    assert_eq!(published(&mut tree).0, ["+orders/i-1@2"]);
}

/// A tree that takes `orders`, `orders/i-1` and `orders/i-2` for published, with these versions.
fn seeded(versions: [i64; 3]) -> Tree {
    let mut tree = Tree::new(Layout::flat());
    let paths = ["orders", "orders/i-1", "orders/i-2"].into_iter();
    tree.seed(paths.zip(versions).map(|(path, zxid)| {
        let stat = Stat {
            czxid: zxid,
            mzxid: zxid,
            ..Stat::default()
        };
        (Arc::from(path), stat)
    }));
    tree
}

#[test]
fn the_first_load_after_a_restart_publishes_what_is_another_and_no_more() {
    let mut tree = seeded([1, 2, 3]);
    load(&mut tree);
    assert_eq!(published(&mut tree), (vec![], true));
    let mut tree = seeded([1, 7, 3]);
    load(&mut tree);
    assert_eq!(
        published(&mut tree),
        (vec!["+orders/i-1@2".to_owned()], true)
    );
}

#[test]
fn a_root_that_is_absent_after_a_restart_is_one_that_went() {
    let mut tree = seeded([1, 2, 3]);
    tree.connected(Watches::Recursive);
    answer(&mut tree, vec![(Request::Watch, Reply::Watching)]);
    answer(&mut tree, vec![(list(""), Reply::Absent)]);
    assert_eq!(published(&mut tree), (vec!["-orders".to_owned()], true));
}

#[test]
fn a_root_that_goes_is_told_behind_its_children_and_ahead_of_what_comes_after_it() {
    let mut tree = loaded();
    for path in ["orders/i-1", "orders/i-2", "orders"] {
        tree.event(Change::Deleted, path);
    }
    assert_eq!(published(&mut tree).0, ["-orders"]);
    tree.event(Change::Deleted, "");
    assert_eq!(published(&mut tree), (vec!["-".into()], false));
    assert!(!tree.has_batch());
    tree.event(Change::Deleted, "");
    tree.event(Change::Created, "");
    tree.event(Change::Created, "orders");
    answer(&mut tree, vec![(read("orders"), node(9))]);
    assert_eq!(published(&mut tree).0, ["-", "+orders@9"]);
}

#[test]
fn one_shot_watches_tell_of_a_root_that_goes_with_its_last_child() {
    let mut tree = Tree::new(Layout::flat());
    tree.connected(Watches::OneShot);
    answer(&mut tree, vec![(list(""), names(&["orders"]))]);
    answer(&mut tree, vec![(list("orders"), names(&["i-1"]))]);
    let reads = vec![(read("orders"), node(1)), (read("orders/i-1"), node(2))];
    answer(&mut tree, reads);
    published(&mut tree);
    for path in ["orders/i-1", "orders", ""] {
        tree.event(Change::Deleted, path);
    }
    let mut told = Vec::new();
    while !tree.is_idle() {
        for request in tree.requests(1, usize::MAX) {
            tree.reply(request, Reply::Absent);
        }
        told.extend(published(&mut tree).0);
    }
    assert_eq!(told.last().map(String::as_str), Some("-"), "{told:?}");
    assert_eq!(told.iter().filter(|t| *t == "-").count(), 1, "{told:?}");
}
