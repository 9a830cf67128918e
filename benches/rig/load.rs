//! The load client: K streams, each on a connection of its own, that subscribe, acknowledge and note
//! in the journal when each saw a change.
//!
//! It refuses to know who serves them. All of it runs on one thread, as it has one core; a buffer for
//! reading is shared, so that ten thousand clients cost little. Invariant: dropping the fleet ends all
//! of its streams.

use std::{cell::RefCell, collections::HashMap, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};

use super::{
    delta,
    http2::Connection,
    journal::{Journal, Service, Stamp, Watch},
};

/// Clients that connect or wait for their first answer at once: connections that nobody has taken yet
/// would overflow the listener's queue, and wait for seconds.
pub const OPENING: usize = 128;
pub const RETRY: Duration = Duration::from_millis(20);

/// What one client asks for.
#[derive(Clone, Debug)]
pub struct Hello {
    pub requests: Vec<Vec<u8>>,
    pub watch: Watch,
    /// How many resources and removals make it complete.
    pub expects: usize,
    /// Asks for what the assignments name, instead of being told all in them.
    pub collections: bool,
}

/// How a server talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    Delta,
    /// A length, a service and a stamp: what `floor` sends.
    Raw,
}

#[derive(Debug)]
pub struct Fleet {
    clients: JoinSet<()>,
}

impl Fleet {
    /// Starts the clients; `journal.synced` tells when they hold what they asked for.
    pub fn open(
        wire: Wire,
        address: SocketAddr,
        journal: &Arc<Journal>,
        hellos: impl IntoIterator<Item = Hello>,
    ) -> Self {
        let mut clients = JoinSet::new();
        let opening = Arc::new(Semaphore::new(OPENING));
        for hello in hellos {
            journal.pages().add_client(&hello.watch);
            let mut client = Client {
                journal: journal.clone(),
                expects: hello.expects,
                opened: hello.collections.then(Vec::new),
                seen: HashMap::new(),
                opening: None,
            };
            let opening = opening.clone();
            clients.spawn(async move {
                let Ok(permit) = opening.acquire_owned().await else {
                    return;
                };
                client.opening = Some(permit);
                let stream = connect(address).await;
                let journal = client.journal.clone();
                let ended = match wire {
                    Wire::Delta => client.delta(&stream, address, &hello.requests).await,
                    Wire::Raw => client.raw(&stream).await,
                };
                journal.pages().lost_streams += 1;
                drop(ended);
            });
        }
        Self { clients }
    }

    /// Ends all streams and waits until they are gone.
    pub async fn close(mut self) {
        self.clients.shutdown().await;
    }
}

/// Until the server is there: it may be starting again.
pub async fn connect(address: SocketAddr) -> TcpStream {
    loop {
        if let Ok(stream) = TcpStream::connect(address).await {
            let _ = stream.set_nodelay(true);
            return stream;
        }
        tokio::time::sleep(RETRY).await;
    }
}

struct Client {
    journal: Arc<Journal>,
    expects: usize,
    /// Requests for collections that are still to be sent, if it takes any.
    opened: Option<Vec<Vec<u8>>>,
    seen: HashMap<Service, Stamp>,
    /// Until the first answer.
    opening: Option<OwnedSemaphorePermit>,
}

impl Client {
    async fn delta(
        mut self,
        stream: &TcpStream,
        address: SocketAddr,
        requests: &[Vec<u8>],
    ) -> io::Result<()> {
        let mut connection = Connection::open(&address.to_string(), delta::METHOD);
        for request in requests {
            connection.send(request);
        }
        loop {
            write(stream, &mut connection.output).await?;
            read(stream, |bytes| connection.receive(bytes)).await?;
            connection.messages(|message| Some(self.response(message)));
            for request in self.opened.iter_mut().flat_map(|opened| opened.drain(..)) {
                connection.send(&request);
            }
            if connection.ended {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
    }

    async fn raw(mut self, stream: &TcpStream) -> io::Result<()> {
        let mut input = Vec::new();
        loop {
            read(stream, |bytes| input.extend_from_slice(bytes)).await?;
            let mut rest = &input[..];
            while let Some((service, stamp, after)) = super::floor::parse(rest) {
                self.note(1, 0, rest.len() - after.len());
                self.see(service, stamp);
                rest = after;
            }
            let used = input.len() - rest.len();
            input.drain(..used);
        }
    }

    /// Returns the request that acknowledges it.
    fn response(&mut self, message: &[u8]) -> Vec<u8> {
        let (mut resources, mut seen) = (0, Vec::new());
        let mut pages = self.journal.pages();
        let (removed, ack) = delta::read(message, |resource| {
            resources += 1;
            if let Some(opened) = &mut self.opened
                && !resource.name.starts_with(b"xdstp://")
            {
                opened.push(delta::open(resource.body));
            }
            if let Some(stamp) = pages.stamp(resource.body)
                && let Some(service) = service(resource.name)
            {
                seen.push((service, stamp));
            }
        });
        drop(pages);
        self.note(resources, removed, message.len());
        for (service, stamp) in seen {
            self.see(service, stamp);
        }
        ack
    }

    fn see(&mut self, service: Service, stamp: Stamp) {
        let before = self.seen.get(&service).copied().unwrap_or(0);
        if stamp > before {
            self.seen.insert(service, stamp);
            self.journal.pages().see(service, before, stamp);
        }
    }

    fn note(&mut self, resources: usize, removed: usize, bytes: usize) {
        self.opening = None;
        let mut pages = self.journal.pages();
        pages.traffic.messages += 1;
        pages.traffic.resources += resources as u64;
        pages.traffic.removals += removed as u64;
        pages.traffic.bytes += bytes as u64;
        if self.expects > 0 {
            self.expects = self.expects.saturating_sub(resources + removed);
            if self.expects == 0 {
                pages.synced += 1;
                pages.last_synced = Some(std::time::Instant::now());
            }
        }
    }
}

/// Services are called `s` and a number; istiod's clusters `outbound|8080||s5.mesh`, and what is told
/// one by one `xdstp://AUTHORITY/TYPE/s5/…`.
pub fn service(name: &[u8]) -> Option<Service> {
    let name = std::str::from_utf8(name).ok()?;
    let own = name.strip_prefix("xdstp://");
    let name = own.map_or(Some(name), |path| path.split('/').nth(2))?;
    let host = name.rsplit('|').next()?;
    let label = host.split('.').next()?;
    label.strip_prefix('s')?.parse().ok()
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 256 << 10]);
}

pub async fn read(stream: &TcpStream, mut on: impl FnMut(&[u8])) -> io::Result<()> {
    loop {
        stream.readable().await?;
        let read = BUFFER.with_borrow_mut(|buffer| {
            let length = stream.try_read(buffer)?;
            on(&buffer[..length]);
            io::Result::Ok(length)
        });
        match read {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

pub async fn write(stream: &TcpStream, output: &mut Vec<u8>) -> io::Result<()> {
    let mut written = 0;
    while written < output.len() {
        match stream.try_write(&output[written..]) {
            Ok(length) => written += length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(error) => return Err(error),
        }
    }
    output.clear();
    Ok(())
}
