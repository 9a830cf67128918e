//! The link to servers before 3.6: a watch for each list and each leaf, that one change uses up.
//!
//! Such a server drops connections that send `multiRead` (or `addWatch`, once it has refused it), so reads
//! go one by one, pipelined. All watches are on one session, however many they are. The client cannot set
//! more than 128 KiB of watch paths again when it reconnects within a session: it would lose every
//! connection it makes until the session expires. So it never gets to reconnect: it runs on a runtime of
//! its own, which ends with the link, and the link ends with the first loss of the connection. The machine
//! then begins anew on a new session, as it has to after any loss. The list of the root, with which a load
//! begins, is sent behind a `sync`: a server that lags must not show an older past.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{
    FutureExt, StreamExt,
    future::{self, BoxFuture, OptionFuture},
    stream::FuturesUnordered,
};
use tokio::runtime::{self, Runtime};
use zookeeper_client::{
    Client, Error, EventType, OneshotWatcher, SessionState, StateWatcher, WatchedEvent,
};

use super::{
    Watcher,
    link::{Answers, Failure, Link, Paths, Signal, change, is_read_only, refusal, stat},
};
use crate::{
    registry::layout::{Layout, Role},
    zookeeper::{
        security::material::Material,
        session::{self, Unopened},
        tree::{Reply, Request},
    },
};

pub(super) struct OneShot {
    paths: Arc<Paths>,
    layout: Layout,
    // Before the runtime: a watcher whose client has ended must not be polled.
    watches: FuturesUnordered<BoxFuture<'static, (Arc<str>, WatchedEvent)>>,
    state: StateWatcher,
    client: Arc<Client>,
    _runtime: OwnRuntime,
}

/// Ends what runs on it, at once, when it is dropped.
struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    fn start() -> std::io::Result<Self> {
        let mut builder = runtime::Builder::new_multi_thread();
        let runtime = (builder
            .worker_threads(1)
            .thread_name("zookeeper-old")
            .enable_all())
        .build();
        runtime.map(|runtime| Self(Some(runtime)))
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl OneShot {
    /// On a new session.
    pub async fn open(
        watcher: &Watcher,
        with: &Arc<Material>,
        read_only: bool,
    ) -> Result<Self, Unopened> {
        let no_thread = |error| Unopened::from(format!("cannot start a thread: {error}"));
        let runtime = OwnRuntime::start().map_err(no_thread)?;
        let (ensemble, with) = (watcher.access.ensemble.clone(), Arc::clone(with));
        let opening = async move { ensemble.open(&with, read_only).await };
        let opened = match &runtime.0 {
            Some(runtime) => runtime.spawn(opening).await,
            None => return Err(Unopened::from("there is no runtime".to_owned())),
        };
        let client = opened.unwrap_or_else(|error| Err(Unopened::from(error.to_string())))?;
        Ok(Self {
            paths: Arc::clone(&watcher.paths),
            layout: watcher.config.layout.clone(),
            watches: FuturesUnordered::new(),
            state: client.state_watcher(),
            client: Arc::new(client),
            _runtime: runtime,
        })
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
}

impl Link for OneShot {
    fn client(&self) -> &Arc<Client> {
        &self.client
    }

    async fn signal(&mut self) -> Signal {
        loop {
            let (path, event) = tokio::select! {
                biased;
                state = self.state.changed() => return ended(state),
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

    fn call(&mut self, requests: Vec<Request>) -> BoxFuture<'static, Result<Answers, Failure>> {
        let calls: Vec<_> = (requests.into_iter())
            .map(|request| (self.sets_watch(&request), request))
            .collect();
        send(Arc::clone(&self.client), Arc::clone(&self.paths), calls).boxed()
    }

    fn accept(&mut self, answers: Answers) -> Vec<(Request, Reply)> {
        for (path, watcher) in answers.one_shot {
            (self.watches).push(async move { (path, watcher.changed().await) }.boxed());
        }
        answers.replies
    }

    async fn close(self) {
        let Self {
            client,
            watches,
            _runtime: runtime,
            ..
        } = self;
        // The session first: a watcher that is dropped before would send a removal of its own.
        if let Some(client) = Arc::into_inner(client) {
            session::close(client).await;
        }
        drop(watches);
        drop(runtime);
    }
}

fn ended(state: SessionState) -> Signal {
    match state {
        SessionState::Expired => Signal::Expired,
        SessionState::Disconnected => Signal::Ended(super::CONNECTION_LOST.to_owned()),
        state => Signal::Ended(format!("the session ended: {state}")),
    }
}

async fn send(
    client: Arc<Client>,
    paths: Arc<Paths>,
    calls: Vec<(bool, Request)>,
) -> Result<Answers, Failure> {
    let mut root = String::new();
    let root = paths.absolute("", &mut root);
    let begins = (calls.iter())
        .any(|(_, request)| matches!(request, Request::List(path) if path.is_empty()));
    // Answered in order, so none of these is waited for before the next is sent.
    let synced = (begins && !is_read_only(&client)).then(|| client.sync(root));
    let answers = (calls.iter()).map(|(watch, request)| one(&client, &paths, request, *watch));
    let (synced, answered) =
        future::join(OptionFuture::from(synced), future::join_all(answers)).await;
    synced
        .transpose()
        .map_err(|error| Failure::Lost(format!("cannot catch up with the leader: {error}")))?;
    let mut answers = Answers::default();
    for ((_, request), answered) in calls.into_iter().zip(answered) {
        let (reply, watcher) = answered?;
        let path = Arc::from(request.path());
        (answers.one_shot).extend(watcher.map(|watcher| (path, watcher)));
        answers.replies.push((request, reply));
    }
    Ok(answers)
}

type Answered = Result<(Reply, Option<OneshotWatcher>), Failure>;

async fn one(client: &Client, paths: &Paths, request: &Request, watch: bool) -> Answered {
    let mut path = String::new();
    let relative = request.path();
    let path = paths.absolute(relative, &mut path);
    let answer = match request {
        Request::Watch => return Err(Failure::Unsupported),
        Request::List(_) => list(client, path).await,
        Request::CheckList(_) => {
            (client.list_children(path).await).map(|names| (Reply::Children(names), None))
        }
        Request::Read(_) | Request::CheckRead(_) => read(client, path, watch).await,
    };
    match answer {
        Ok((Reply::Children(mut names), watcher)) => {
            paths.drop_reserved(relative, &mut names);
            Ok((Reply::Children(names), watcher))
        }
        Ok(answer) => Ok(answer),
        Err(Error::NoNode) if relative.is_empty() && watch => await_root(client, path).await,
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
