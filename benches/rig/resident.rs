//! Clients that live through a restart: each holds the versions of what it watches, comes back when
//! its stream ends, and says then what it holds.
//!
//! It refuses to know why a stream ended. Beside its services each asks for a name that does not
//! exist: the removal shows that it was answered where there is nothing else to say. Invariant:
//! `synced` in the journal counts the clients whose present stream has been answered.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};

use super::{
    delta::{self, Resource},
    experiment,
    http2::Connection,
    journal::{Journal, Pages, Service, Stamp, Watch},
    load::{self, OPENING},
};

const ABSENT: &str = "absent";

#[derive(Debug)]
pub struct Residents {
    clients: JoinSet<()>,
}

impl Residents {
    /// Client `n` watches the services that `watched(n)` gives.
    pub fn open(
        address: SocketAddr,
        journal: &Arc<Journal>,
        count: usize,
        watched: impl Fn(usize) -> Vec<Service>,
    ) -> Self {
        let mut clients = JoinSet::new();
        let opening = Arc::new(Semaphore::new(OPENING));
        for client in 0..count {
            let services = watched(client);
            journal.pages().add_client(&Watch::Named(services.clone()));
            let resident = Resident {
                journal: journal.clone(),
                node: experiment::node(client),
                held: services.into_iter().map(Held::new).collect(),
                opening: None,
                answered: false,
            };
            clients.spawn(resident.live(address, opening.clone()));
        }
        Self { clients }
    }

    pub async fn close(mut self) {
        self.clients.shutdown().await;
    }
}

/// What a client knows of one service.
struct Held {
    service: Service,
    version: Box<[u8]>,
    seen: Stamp,
}

impl Held {
    fn new(service: Service) -> Self {
        Self {
            service,
            version: Box::default(),
            seen: 0,
        }
    }
}

struct Resident {
    journal: Arc<Journal>,
    node: String,
    held: Vec<Held>,
    /// Until the first answer on the present stream.
    opening: Option<OwnedSemaphorePermit>,
    /// On the present stream.
    answered: bool,
}

impl Resident {
    async fn live(mut self, address: SocketAddr, opening: Arc<Semaphore>) {
        loop {
            let Ok(permit) = opening.clone().acquire_owned().await else {
                return;
            };
            self.opening = Some(permit);
            let stream = load::connect(address).await;
            let ended = self.stay(&stream, address).await;
            drop(ended);
            self.opening = None;
            self.journal.pages().lost_streams += 1;
            if std::mem::take(&mut self.answered) {
                self.journal.pages().synced -= 1;
            }
            tokio::time::sleep(load::RETRY).await;
        }
    }

    /// Until the stream ends.
    async fn stay(&mut self, stream: &TcpStream, address: SocketAddr) -> io::Result<()> {
        let mut connection = Connection::open(&address.to_string(), delta::METHOD);
        connection.send(&self.hello());
        loop {
            load::write(stream, &mut connection.output).await?;
            load::read(stream, |bytes| connection.receive(bytes)).await?;
            connection.messages(|message| Some(self.response(message)));
            if connection.ended {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
    }

    fn hello(&self) -> Vec<u8> {
        let name = |held: &Held| format!("s{}", held.service);
        let mut names: Vec<_> = self.held.iter().map(name).collect();
        let holds = |held: &&Held| !held.version.is_empty();
        let version = |held: &Held| String::from_utf8_lossy(&held.version).into_owned();
        let versions = self.held.iter().filter(holds);
        let versions: Vec<_> = versions.map(|held| (name(held), version(held))).collect();
        names.push(ABSENT.into());
        delta::subscribe(&self.node, delta::ENDPOINT, &names, &versions)
    }

    /// Returns the request that acknowledges it.
    fn response(&mut self, message: &[u8]) -> Vec<u8> {
        self.opening = None;
        let journal = self.journal.clone();
        let mut pages = journal.pages();
        let mut resources = 0;
        let (removed, ack) = delta::read(message, |resource| {
            resources += 1;
            self.take(&mut pages, resource);
        });
        pages.traffic.messages += 1;
        pages.traffic.resources += resources;
        pages.traffic.removals += removed as u64;
        pages.traffic.bytes += message.len() as u64;
        let complete = self.held.iter().all(|held| !held.version.is_empty());
        if removed > 0 && complete && !self.answered {
            self.answered = true;
            pages.synced += 1;
            pages.last_synced = Some(std::time::Instant::now());
        }
        ack
    }

    fn take(&mut self, pages: &mut Pages, resource: Resource<'_>) {
        let service = load::service(resource.name);
        let Some(held) = self.held.iter_mut().find(|h| Some(h.service) == service) else {
            return;
        };
        if *held.version == *resource.version {
            pages.needless += 1;
        }
        held.version = resource.version.into();
        match pages.stamp(resource.body) {
            Some(stamp) if stamp > held.seen => {
                pages.see(held.service, held.seen, stamp);
                held.seen = stamp;
            }
            Some(stamp) if stamp < held.seen => pages.backwards += 1,
            _ => {}
        }
    }
}
