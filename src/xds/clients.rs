//! The streams that are open now, for operators.
//!
//! It refuses to know the protocol: a stream lends itself to be looked at, and leaves by itself when
//! it is dropped. Invariant: nothing of a stream outlives its connection.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use serde::Serialize;

use super::{
    metrics::Metrics,
    status::{ClientStatus, State, TypeStatus},
    stream::{Client, Lag},
};
use crate::{
    resource::{Resource, ResourceType},
    snapshot::{ResourceSet, Snapshots},
};

/// What an open stream shows of itself.
pub trait Inspect: Send + Sync {
    fn types(&self) -> Vec<(ResourceType, TypeStatus)>;

    /// The types in which its client does not have what there is.
    fn lags(&self, snapshots: &Snapshots) -> Vec<(ResourceType, Lag)>;

    /// Whether it subscribes to a resource of that name.
    fn wants(&self, kind: ResourceType, name: &str) -> bool;

    /// How its client stands with the collections whose names begin so, if it follows any.
    fn state_of_collections(&self, prefix: &str) -> Option<State>;

    /// Whether it asks for that name though nothing is registered under it.
    fn misses(&self, name: &str) -> bool;

    /// What of the set it subscribes to.
    fn served(&self, kind: ResourceType, set: &ResourceSet) -> Vec<Arc<Resource>>;
}

/// A client that subscribes to something.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Follower {
    pub node_id: String,
    /// Of the endpoints on its stream.
    pub state: State,
}

/// All open streams whose client is known.
#[derive(Clone)]
pub struct Clients {
    open: Arc<Mutex<Open>>,
    metrics: Metrics,
}

#[derive(Default)]
struct Open {
    next: u64,
    streams: BTreeMap<u64, Arc<Entry>>,
}

pub(super) struct Entry {
    client: Client,
    address: Option<SocketAddr>,
    connected_at: SystemTime,
    stream: Arc<dyn Inspect>,
}

/// Keeps a stream in the list until it is dropped.
pub struct Membership {
    clients: Clients,
    id: u64,
    kind: &'static str,
}

impl Clients {
    pub fn new(metrics: Metrics) -> Self {
        Self {
            open: Arc::default(),
            metrics,
        }
    }

    pub fn join(
        &self,
        client: Client,
        address: Option<SocketAddr>,
        stream: Arc<dyn Inspect>,
    ) -> Membership {
        let kind = client.profile.kind.as_str();
        let entry = Entry {
            client,
            address,
            connected_at: SystemTime::now(),
            stream,
        };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.next += 1;
        let id = open.next;
        open.streams.insert(id, Arc::new(entry));
        self.metrics.clients.with_label_values(&[kind]).inc();
        Membership {
            clients: self.clone(),
            id,
            kind,
        }
    }

    /// In the order in which they connected.
    pub fn list(&self) -> Vec<ClientStatus> {
        let entries = self.entries();
        entries.iter().map(|entry| entry.status()).collect()
    }

    /// The node ids of those who ask for a name that nothing is registered under.
    pub fn missing(&self, name: &str) -> Vec<String> {
        let entries = self.entries();
        let missing = entries.iter().filter(|entry| entry.stream.misses(name));
        missing.map(|entry| entry.client.node_id.clone()).collect()
    }

    /// Who subscribes to an assignment, in the order in which they connected. `collections` is what the
    /// names begin with of the collections that it may name.
    pub fn followers(&self, name: &str, collections: &str) -> Vec<Follower> {
        let entries = self.entries();
        let following = entries
            .iter()
            .filter(|entry| entry.stream.wants(ResourceType::Endpoint, name));
        let follower = |entry: &Arc<Entry>| Follower {
            node_id: entry.client.node_id.clone(),
            state: entry.state(collections),
        };
        following.map(follower).collect()
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(super) fn entries(&self) -> Vec<Arc<Entry>> {
        let numbered = self.numbered().into_iter();
        numbered.map(|(_, entry)| entry).collect()
    }

    /// With the number that each has for as long as it is open. The streams are asked after the list is
    /// let go, so that none waits for another.
    pub(super) fn numbered(&self) -> Vec<(u64, Arc<Entry>)> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let streams = open.streams.iter();
        streams.map(|(id, entry)| (*id, entry.clone())).collect()
    }
}

impl Entry {
    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn stream(&self) -> &dyn Inspect {
        &*self.stream
    }

    /// Of the assignments and, where the service has collections, of these: whichever is worse.
    fn state(&self, collections: &str) -> State {
        let types = self.stream.types().into_iter();
        let mut assignments = types.filter(|(kind, _)| *kind == ResourceType::Endpoint);
        let state = assignments
            .next()
            .map_or(State::NotSent, |(_, status)| status.state);
        match self.stream.state_of_collections(collections) {
            Some(of_members) if state == State::Synced => of_members,
            Some(State::Error) => State::Error,
            _ => state,
        }
    }

    fn status(&self) -> ClientStatus {
        let types = self.stream.types().into_iter();
        ClientStatus {
            node_id: self.client.node_id.clone(),
            kind: self.client.profile.kind.as_str(),
            address: self
                .address
                .map(|address| address.to_string())
                .unwrap_or_default(),
            on_demand: self.client.profile.on_demand,
            increments: self.client.profile.increments,
            note: self.client.note.clone(),
            connected_at: self.connected_at,
            types: types
                .map(|(kind, status)| (kind.as_str().to_owned(), status))
                .collect(),
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut open = self
            .clients
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        open.streams.remove(&self.id);
        self.clients
            .metrics
            .clients
            .with_label_values(&[self.kind])
            .dec();
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").finish_non_exhaustive()
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
