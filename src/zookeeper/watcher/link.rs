//! What the loop of the watcher needs of a connection, whatever watches it has.
//!
//! A link knows sessions, watches and absolute paths; it refuses to know what a reply means.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use zookeeper_client::{Client, EventType, OneshotWatcher, PersistentWatcher, SessionState, Stat};

use crate::{
    registry,
    zookeeper::tree::{Change, Reply, Request},
};

/// What happens without being asked for.
#[derive(Debug)]
pub(super) enum Signal {
    /// By path relative to the root.
    Event(Change, String),
    /// Watches and requests are gone; the session may come back.
    Disconnected,
    /// The session came back, without watches.
    Reconnected {
        read_only: bool,
    },
    /// Only a new session will do.
    Expired,
    Ended(String),
}

/// Why a batch of requests came to nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server knows no recursive watches.
    Unsupported,
    /// The server is overloaded and refused the request; it may be sent again.
    Throttled,
    Lost(String),
}

/// Replies, and the watches that came with them.
#[derive(Debug, Default)]
pub(super) struct Answers {
    pub replies: Vec<(Request, Reply)>,
    pub recursive: Option<PersistentWatcher>,
    pub one_shot: Vec<(Arc<str>, OneshotWatcher)>,
}

pub(super) trait Link {
    /// The session.
    fn client(&self) -> &Arc<Client>;

    /// The next event or change of state. Loses nothing when it is dropped while it waits.
    fn signal(&mut self) -> impl Future<Output = Signal> + Send;

    /// Sends all requests as one, in order; to be polled in the order of the calls.
    fn call(&mut self, requests: Vec<Request>) -> BoxFuture<'static, Result<Answers, Failure>>;

    /// Keeps the watches of an answer.
    fn accept(&mut self, answers: Answers) -> Vec<(Request, Reply)>;

    /// Closes the session. Nothing may be in flight any more.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// Paths below the root, in both directions.
#[derive(Debug)]
pub(super) struct Paths {
    /// Without a trailing slash; empty for `/`.
    root: String,
    /// The root is the ensemble's own, where `/zookeeper` holds its configuration and quotas.
    whole: bool,
}

impl Paths {
    pub fn new(root: &str, no_chroot: bool) -> Self {
        let root = root.trim_end_matches('/').to_owned();
        Self {
            whole: no_chroot && root.is_empty(),
            root,
        }
    }

    /// Writes the path that the client takes over `absolute`.
    pub fn absolute<'a>(&self, relative: &str, absolute: &'a mut String) -> &'a str {
        absolute.clear();
        absolute.push_str(&self.root);
        if !relative.is_empty() || self.root.is_empty() {
            absolute.push('/');
        }
        absolute.push_str(relative);
        absolute
    }

    /// `None` for what is not ours.
    pub fn relative<'a>(&self, absolute: &'a str) -> Option<&'a str> {
        let below = absolute.strip_prefix(&self.root)?;
        let relative = match below {
            "" => "",
            _ => below.strip_prefix('/')?,
        };
        let reserved = self.whole && relative.split('/').next() == Some("zookeeper");
        (!reserved).then_some(relative)
    }

    pub fn drop_reserved(&self, parent: &str, names: &mut Vec<String>) {
        if self.whole && parent.is_empty() {
            names.retain(|name| name != "zookeeper");
        }
    }
}

/// Whether the session is of a server that has no quorum. Such a server answers reads alone, and no `sync`.
pub(super) fn is_read_only(client: &Client) -> bool {
    client.state() == SessionState::ConnectedReadOnly
}

pub(super) fn stat(stat: &Stat) -> registry::Stat {
    registry::Stat {
        czxid: stat.czxid,
        mzxid: stat.mzxid,
        ctime: stat.ctime,
        mtime: stat.mtime,
        ephemeral_owner: stat.ephemeral_owner,
    }
}

/// `None` for what is no event of a znode.
pub(super) fn change(event: EventType) -> Option<Change> {
    match event {
        EventType::NodeCreated => Some(Change::Created),
        EventType::NodeDeleted => Some(Change::Deleted),
        EventType::NodeDataChanged => Some(Change::Changed),
        EventType::NodeChildrenChanged => Some(Change::Children),
        EventType::Session => None,
    }
}

/// What one znode's error means; `Err` where it is the connection's.
pub(super) fn refusal(path: &str, error: zookeeper_client::Error) -> Result<Reply, Failure> {
    use zookeeper_client::Error;
    match error {
        Error::NoNode => Ok(Reply::Absent),
        // The client refuses a few characters that old servers took.
        Error::NoAuth | Error::BadArguments(_) => Ok(Reply::Unreadable),
        error => Err(Failure::Lost(format!("{path:?}: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_go_both_ways() {
        let mut buffer = String::new();
        for (root, relative, absolute) in [
            ("/services", "", "/services"),
            ("/services", "orders/i-1", "/services/orders/i-1"),
            ("/", "", "/"),
            ("/", "orders", "/orders"),
        ] {
            let paths = Paths::new(root, false);
            assert_eq!(paths.absolute(relative, &mut buffer), absolute);
            assert_eq!(paths.relative(absolute), Some(relative));
        }
    }

    #[test]
    fn a_sibling_of_the_root_is_not_ours() {
        let paths = Paths::new("/services", true);
        assert_eq!(paths.relative("/services2/a"), None);
        assert_eq!(paths.relative("/other"), None);
    }

    #[test]
    fn zookeepers_own_znodes_are_no_services() {
        let paths = Paths::new("/", true);
        assert_eq!(paths.relative("/zookeeper/quota"), None);
        assert_eq!(paths.relative("/zookeeper2"), Some("zookeeper2"));
        assert_eq!(
            Paths::new("/", false).relative("/zookeeper"),
            Some("zookeeper")
        );
        let mut names = vec!["zookeeper".to_owned(), "orders".to_owned()];
        paths.drop_reserved("", &mut names);
        assert_eq!(names, ["orders"]);
    }
}
