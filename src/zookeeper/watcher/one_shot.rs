//! The link to servers before 3.6: a watch for each list and each leaf, that one change uses up.
//!
//! Such a server drops connections that send `multiRead` (or `addWatch`, once it has refused it), so reads go one by one, pipelined.
//! A client that re-arms more than 128 KiB of watch paths after a reconnect loses every connection
//! again, so the watches are spread over sessions, each well below that, and any trouble with one
//! session ends the link: the machine begins anew on new sessions. Where there are several, their
//! servers may lag behind each other, and each batch of reads is sent behind a `sync`; so is the list
//! of the root, with which a load begins: a server that lags must not show an older past.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{
    FutureExt, StreamExt,
    future::{self, BoxFuture},
    stream::FuturesUnordered,
};
use zookeeper_client::{Client, Error, EventType, OneshotWatcher, SessionState, WatchedEvent};

use super::{
    Watcher,
    link::{Answers, Failure, Link, Paths, Signal, change, refusal, stat},
};
use crate::{
    registry::layout::{Layout, Role},
    zookeeper::{
        security::material::Material,
        session::{self, Ensemble},
        tree::{Reply, Request},
    },
};

/// Of watch paths in one session: the limit is 128 KiB, and a path may briefly count twice.
const SESSION_BYTES: usize = 64 * 1024;

pub(super) struct OneShot {
    ensemble: Ensemble,
    with: Arc<Material>,
    paths: Arc<Paths>,
    layout: Layout,
    sessions: Vec<Session>,
    /// Which session holds the watch that a request sets.
    assigned: HashMap<Request, usize>,
    watches: FuturesUnordered<BoxFuture<'static, (Arc<str>, WatchedEvent)>>,
    states: FuturesUnordered<BoxFuture<'static, SessionState>>,
}

struct Session {
    client: Arc<Client>,
    bytes: usize,
}

impl OneShot {
    /// Beside the session that `watcher` has already.
    pub fn new(client: Arc<Client>, with: Arc<Material>, watcher: &Watcher) -> Self {
        let mut link = Self {
            ensemble: watcher.access.ensemble.clone(),
            with,
            paths: Arc::clone(&watcher.paths),
            layout: watcher.config.layout.clone(),
            sessions: Vec::new(),
            assigned: HashMap::new(),
            watches: FuturesUnordered::new(),
            states: FuturesUnordered::new(),
        };
        link.add(client);
        link
    }

    fn add(&mut self, client: Arc<Client>) {
        let mut state = client.state_watcher();
        (self.states).push(async move { state.changed().await }.boxed());
        self.sessions.push(Session { client, bytes: 0 });
    }

    /// Opens one more session, and says which it is.
    async fn open(&mut self) -> Result<usize, String> {
        let opened = self.ensemble.open(&self.with).await;
        let client = opened.map_err(|error| format!("one more session: {error}"))?;
        self.add(Arc::new(client));
        Ok(self.sessions.len() - 1)
    }

    fn length(&self, request: &Request) -> usize {
        let mut path = String::new();
        self.paths.absolute(request.path(), &mut path).len()
    }

    fn is_leaf(&self, path: &str) -> bool {
        self.layout.role(path) == Role::Leaf
    }

    /// Lists and reads of leaves set watches; a read of an inner znode sets none, nor does a check: each
    /// would leave one more here until the next change.
    fn sets_watch(&self, request: &Request) -> bool {
        match request {
            Request::Watch | Request::CheckList(_) | Request::CheckRead(_) => false,
            Request::List(_) => true,
            Request::Read(path) => self.is_leaf(path),
        }
    }

    fn release(&mut self, request: &Request) {
        if let Some(session) = self.assigned.remove(request) {
            self.sessions[session].bytes -= self.length(request);
        }
    }
}

impl Link for OneShot {
    async fn signal(&mut self) -> Signal {
        loop {
            let (path, event) = tokio::select! {
                biased;
                Some(state) = self.states.next() => {
                    return ended(state);
                }
                Some(fired) = self.watches.next(), if !self.watches.is_empty() => fired,
            };
            if event.event_type == EventType::Session {
                return ended(event.session_state);
            }
            if let Some(change) = change(event.event_type) {
                return Signal::Event(change, path.to_string());
            }
        }
    }

    async fn prepare(&mut self, requests: &[Request]) -> Result<(), String> {
        for request in requests {
            if !self.sets_watch(request) || self.assigned.contains_key(request) {
                continue;
            }
            let length = self.length(request);
            let fits = |session: &Session| session.bytes + length <= SESSION_BYTES;
            let session = if let Some(session) = self.sessions.iter().rposition(fits) {
                session
            } else {
                self.open().await?
            };
            self.sessions[session].bytes += length;
            self.assigned.insert(request.clone(), session);
        }
        Ok(())
    }

    fn call(&mut self, requests: Vec<Request>) -> BoxFuture<'static, Result<Answers, Failure>> {
        // An inner znode is read on the session that lists it, and a check goes where the watch is, so
        // that the two are in order.
        let session = |request: &Request| {
            let path: Arc<str> = Arc::from(request.path());
            let held = (self.assigned.get(request))
                .or_else(|| self.assigned.get(&Request::List(Arc::clone(&path))))
                .or_else(|| self.assigned.get(&Request::Read(path)));
            held.copied().unwrap_or(0)
        };
        let calls: Vec<_> = (requests.into_iter())
            .map(|request| Call {
                session: session(&request),
                watch: self.sets_watch(&request),
                request,
            })
            .collect();
        let clients: Vec<_> = self
            .sessions
            .iter()
            .map(|s| Arc::clone(&s.client))
            .collect();
        send(clients, Arc::clone(&self.paths), calls).boxed()
    }

    fn accept(&mut self, answers: Answers) -> Vec<(Request, Reply)> {
        for (path, watcher) in answers.one_shot {
            (self.watches).push(async move { (path, watcher.changed().await) }.boxed());
        }
        for (request, reply) in &answers.replies {
            if *reply == Reply::Absent {
                self.release(request);
            }
        }
        answers.replies
    }

    async fn close(self) {
        let Self {
            sessions, watches, ..
        } = self;
        // Sessions first: a watcher that is dropped before would send a removal of its own.
        let clients = sessions
            .into_iter()
            .filter_map(|s| Arc::into_inner(s.client));
        future::join_all(clients.map(session::close)).await;
        drop(watches);
    }
}

fn ended(state: SessionState) -> Signal {
    match state {
        SessionState::Expired => Signal::Expired,
        state => Signal::Ended(format!("a session is {state}")),
    }
}

struct Call {
    session: usize,
    watch: bool,
    request: Request,
}

async fn send(
    clients: Vec<Arc<Client>>,
    paths: Arc<Paths>,
    calls: Vec<Call>,
) -> Result<Answers, Failure> {
    let mut root = String::new();
    let root = paths.absolute("", &mut root);
    let begins =
        (calls.iter()).any(|call| matches!(&call.request, Request::List(path) if path.is_empty()));
    let used: BTreeSet<usize> = calls.iter().map(|call| call.session).collect();
    // A session's requests are answered in their order, so none of these is waited for before.
    let syncs: Vec<_> = (used.into_iter())
        .filter(|_| clients.len() > 1 || begins)
        .map(|session| clients[session].sync(root))
        .collect();
    let answers = calls
        .iter()
        .map(|call| one(&clients[call.session], &paths, call));
    let (synced, answered) = future::join(future::join_all(syncs), future::join_all(answers)).await;
    for sync in synced {
        sync.map_err(|error| Failure::Lost(error.to_string()))?;
    }
    let mut answers = Answers::default();
    for (call, answered) in calls.into_iter().zip(answered) {
        let (reply, watcher) = answered?;
        let path = Arc::from(call.request.path());
        (answers.one_shot).extend(watcher.map(|watcher| (path, watcher)));
        answers.replies.push((call.request, reply));
    }
    Ok(answers)
}

type Answered = Result<(Reply, Option<OneshotWatcher>), Failure>;

async fn one(client: &Client, paths: &Paths, call: &Call) -> Answered {
    let mut path = String::new();
    let relative = call.request.path();
    let path = paths.absolute(relative, &mut path);
    let answer = match &call.request {
        Request::Watch => return Err(Failure::Unsupported),
        Request::List(_) => list(client, path).await,
        Request::CheckList(_) => {
            (client.list_children(path).await).map(|names| (Reply::Children(names), None))
        }
        Request::Read(_) | Request::CheckRead(_) => read(client, path, call.watch).await,
    };
    match answer {
        Ok((Reply::Children(mut names), watcher)) => {
            paths.drop_reserved(relative, &mut names);
            Ok((Reply::Children(names), watcher))
        }
        Ok(answer) => Ok(answer),
        Err(Error::NoNode) if relative.is_empty() && call.watch => await_root(client, path).await,
        Err(error) => Ok((refusal(path, error)?, None)),
    }
}

async fn list(client: &Client, path: &str) -> Result<(Reply, Option<OneshotWatcher>), Error> {
    let (names, watcher) = client.list_and_watch_children(path).await?;
    Ok((Reply::Children(names), Some(watcher)))
}

async fn read(
    client: &Client,
    path: &str,
    watch: bool,
) -> Result<(Reply, Option<OneshotWatcher>), Error> {
    let (data, s, watcher) = if watch {
        let (data, stat, watcher) = client.get_and_watch_data(path).await?;
        (data, stat, Some(watcher))
    } else {
        let (data, stat) = client.get_data(path).await?;
        (data, stat, None)
    };
    let (data, stat) = (Bytes::from(data), stat(&s));
    Ok((Reply::Node { data, stat }, watcher))
}

/// A list that fails leaves no watch; this one tells when the root comes.
async fn await_root(client: &Client, path: &str) -> Answered {
    loop {
        let (stat, watcher) = (client.check_and_watch_stat(path).await)
            .map_err(|error| Failure::Lost(error.to_string()))?;
        if stat.is_none() {
            return Ok((Reply::Absent, Some(watcher)));
        }
        match list(client, path).await {
            Err(Error::NoNode) => {}
            Err(error) => return Ok((refusal(path, error)?, None)),
            Ok(answer) => return Ok(answer),
        }
    }
}
