//! The link to servers from 3.6 on: one session, one persistent recursive watch, `multiRead`.
//!
//! The client never re-arms that watch (it re-sends `SetWatches`, which cannot name one), and the
//! server would not replay what was missed (ZOOKEEPER-4698), so a reconnect is reported and the
//! machine begins anew. The old watch is dropped after the new one stands: dropped first, the client
//! would remove all watches of the path, the new one among them.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{
    FutureExt,
    future::{self, BoxFuture, OptionFuture},
};
use tokio::time::sleep;
use zookeeper_client::{
    AddWatchMode, Client, Error, EventType, MultiReadResult, PersistentWatcher, SessionState,
    StateWatcher, WatchedEvent,
};

use super::link::{Answers, Failure, Link, Paths, Signal, change, is_read_only, refusal, stat};
use crate::zookeeper::{
    session,
    tree::{Reply, Request},
};

/// How long a request waits that the server refused for its load, at first and at most.
const THROTTLED: Duration = Duration::from_millis(50);
const THROTTLED_MOST: Duration = Duration::from_secs(1);

pub(super) struct Recursive {
    client: Arc<Client>,
    paths: Arc<Paths>,
    state: StateWatcher,
    /// Tells events and changes of state in one order, once it stands.
    watcher: Option<PersistentWatcher>,
}

impl Recursive {
    pub fn new(client: Arc<Client>, paths: Arc<Paths>) -> Self {
        Self {
            state: client.state_watcher(),
            client,
            paths,
            watcher: None,
        }
    }

    fn session_signal(state: SessionState) -> Signal {
        match state {
            SessionState::Disconnected => Signal::Disconnected,
            SessionState::SyncConnected => Signal::Reconnected { read_only: false },
            SessionState::ConnectedReadOnly => Signal::Reconnected { read_only: true },
            SessionState::Expired => Signal::Expired,
            state => Signal::Ended(format!("the session ended: {state}")),
        }
    }
}

impl Link for Recursive {
    fn client(&self) -> &Arc<Client> {
        &self.client
    }

    async fn signal(&mut self) -> Signal {
        loop {
            let Some(watcher) = &mut self.watcher else {
                return Self::session_signal(self.state.changed().await);
            };
            let WatchedEvent {
                event_type,
                session_state,
                path,
                ..
            } = watcher.changed().await;
            if event_type == EventType::Session {
                if session_state.is_terminated() {
                    // Asked once more, the watcher would panic.
                    self.watcher = None;
                }
                return Self::session_signal(session_state);
            }
            if let (Some(change), Some(path)) = (change(event_type), self.paths.relative(&path)) {
                return Signal::Event(change, path.to_owned());
            }
        }
    }

    fn call(&mut self, requests: Vec<Request>) -> BoxFuture<'static, Result<Answers, Failure>> {
        let (client, paths) = (Arc::clone(&self.client), Arc::clone(&self.paths));
        if let [Request::Watch] = requests[..] {
            arm(client, paths).boxed()
        } else {
            read(client, paths, requests).boxed()
        }
    }

    fn accept(&mut self, answers: Answers) -> Vec<(Request, Reply)> {
        if let Some(watcher) = answers.recursive {
            drop(self.watcher.replace(watcher));
        }
        answers.replies
    }

    async fn close(self) {
        let Self {
            client, watcher, ..
        } = self;
        drop(watcher);
        if let Some(client) = Arc::into_inner(client) {
            session::close(client).await;
        }
    }
}

/// Sets the watch, and has the server catch up with its leader before anything is read: nothing else
/// keeps a follower that lags from answering with what it had before the state that is served.
async fn arm(client: Arc<Client>, paths: Arc<Paths>) -> Result<Answers, Failure> {
    let mut path = String::new();
    let root = paths.absolute("", &mut path);
    // Behind the `sync` the load cannot be older than what the leader had when it began, however far
    // behind the server was that this session found.
    let sync = (!is_read_only(&client)).then(|| client.sync(root));
    let (synced, watching) = future::join(
        OptionFuture::from(sync),
        client.watch(root, AddWatchMode::PersistentRecursive),
    )
    .await;
    (synced.transpose())
        .map_err(|error| Failure::Lost(format!("cannot catch up with the leader: {error}")))?;
    match watching {
        Ok(watcher) => Ok(Answers {
            replies: vec![(Request::Watch, Reply::Watching)],
            recursive: Some(watcher),
            ..Answers::default()
        }),
        Err(Error::Unimplemented) => Err(Failure::Unsupported),
        Err(error) => Err(Failure::Lost(format!("cannot watch {root}: {error}"))),
    }
}

/// Sends the requests until the server takes them: one that is overloaded may refuse what waited too long.
async fn read(
    client: Arc<Client>,
    paths: Arc<Paths>,
    requests: Vec<Request>,
) -> Result<Answers, Failure> {
    let mut pause = THROTTLED;
    loop {
        match read_once(&client, &paths, &requests).await {
            Err(Failure::Throttled) => sleep(pause).await,
            Err(failure) => return Err(failure),
            Ok(replies) => {
                let replies = requests.into_iter().zip(replies).collect();
                return Ok(Answers {
                    replies,
                    ..Answers::default()
                });
            }
        }
        pause = (pause * 2).min(THROTTLED_MOST);
    }
}

async fn read_once(
    client: &Client,
    paths: &Paths,
    requests: &[Request],
) -> Result<Vec<Reply>, Failure> {
    let mut reader = client.new_multi_reader();
    let mut path = String::new();
    let mut refused = Vec::with_capacity(requests.len());
    for request in requests {
        let path = paths.absolute(request.path(), &mut path);
        let added = match request {
            Request::List(_) | Request::CheckList(_) => reader.add_get_children(path),
            Request::Read(_) | Request::CheckRead(_) | Request::Watch => reader.add_get_data(path),
        };
        refused.push(match added {
            Ok(()) => None,
            Err(error) => Some(refusal(path, error)?),
        });
    }
    let mut results = match reader.commit().await {
        Ok(results) => results.into_iter(),
        Err(Error::Throttled) => return Err(Failure::Throttled),
        Err(error) => return Err(Failure::Lost(error.to_string())),
    };
    let replies = requests.iter().zip(refused);
    replies
        .map(|(request, refused)| match refused {
            Some(reply) => Ok(reply),
            None => reply(paths, request, results.next()),
        })
        .collect()
}

fn reply(
    paths: &Paths,
    request: &Request,
    result: Option<MultiReadResult>,
) -> Result<Reply, Failure> {
    match result {
        Some(MultiReadResult::Data { data, stat: s }) => Ok(Reply::Node {
            data: Bytes::from(data),
            stat: stat(&s),
        }),
        Some(MultiReadResult::Children { mut children }) => {
            paths.drop_reserved(request.path(), &mut children);
            Ok(Reply::Children(children))
        }
        Some(MultiReadResult::Error { err }) => refusal(request.path(), err),
        _ => Err(Failure::Lost(
            "a reply holds fewer results than asked for".to_owned(),
        )),
    }
}
