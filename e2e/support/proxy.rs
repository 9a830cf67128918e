//! A TCP proxy on loopback that does to connections what networks do.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};

/// What happens to bytes of one direction. None is ever lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Open,
    Held,
    Slow {
        bytes_per_second: u32,
        latency: Duration,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Weather {
    /// New connections are closed at once.
    refuses: bool,
    to_server: Flow,
    to_client: Flow,
}

const CLEAR: Weather = both(Flow::Open);

const fn both(flow: Flow) -> Weather {
    Weather {
        refuses: false,
        to_server: flow,
        to_client: flow,
    }
}

const PATIENCE: Duration = Duration::from_secs(5);

pub struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    /// Counts the cuts; a connection lives through none.
    cuts: watch::Sender<u64>,
    accepted: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Forwards to a port on loopback; while nobody listens there, closes what it accepted.
    pub async fn start(target: u16) -> Self {
        Self::start_as(target, Duration::ZERO).await
    }

    /// Forwards to a port on loopback, and waits where nobody listens there yet: for clients that
    /// would take the end of a connection for the end of whom they talk to.
    pub async fn start_patient(target: u16) -> Self {
        Self::start_as(target, PATIENCE).await
    }

    async fn start_as(target: u16, patience: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (weather, seen) = watch::channel(CLEAR);
        let (cuts, cuts_seen) = watch::channel(0);
        let accepted = Arc::new(AtomicU64::new(0));
        let counted = accepted.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                if !seen.borrow().refuses {
                    let (weather, mut cuts) = (seen.clone(), cuts_seen.clone());
                    cuts.mark_unchanged();
                    tokio::spawn(async move {
                        if let Some(server) = connect(target, patience).await {
                            forward(stream, server, weather, cuts).await;
                        }
                    });
                }
            }
        });
        Self {
            address,
            weather,
            cuts,
            accepted,
            accepting,
        }
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    pub fn connect(&self) -> String {
        self.address.to_string()
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Closes all connections; new ones pass.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Closes all connections and every new one.
    pub fn refuse(&self) {
        self.weather.send_modify(|weather| weather.refuses = true);
        self.cut();
    }

    /// Holds everything back, both ways: connections stand, new ones too, and nobody answers.
    pub fn pause(&self) {
        self.weather.send_replace(both(Flow::Held));
    }

    /// The server hears everything and nobody hears the server.
    pub fn mute(&self) {
        let to_client = Flow::Held;
        let muted = Weather { to_client, ..CLEAR };
        self.weather.send_replace(muted);
    }

    /// Each piece of up to 16 KiB takes `latency`, and its length at that pace.
    pub fn slow(&self, bytes_per_second: u32, latency: Duration) {
        self.weather.send_replace(both(Flow::Slow {
            bytes_per_second,
            latency,
        }));
    }

    /// Lets everything pass again.
    pub fn resume(&self) {
        self.weather.send_replace(CLEAR);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn connect(target: u16, patience: Duration) -> Option<TcpStream> {
    let began = Instant::now();
    loop {
        match TcpStream::connect(("127.0.0.1", target)).await {
            Ok(server) => return Some(server),
            Err(_) if began.elapsed() >= patience => return None,
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn forward(
    client: TcpStream,
    server: TcpStream,
    weather: watch::Receiver<Weather>,
    mut cuts: watch::Receiver<u64>,
) {
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    tokio::select! {
        _ = cuts.changed() => {}
        () = copy(client_reads, server_writes, weather.clone(), |w| w.to_server) => {}
        () = copy(server_reads, client_writes, weather, |w| w.to_client) => {}
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    flow: fn(&Weather) -> Flow,
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let passes = weather.wait_for(|now| flow(now) != Flow::Held).await;
        let Ok(now) = passes.map(|now| flow(&now)) else {
            return;
        };
        if let Flow::Slow {
            bytes_per_second,
            latency,
        } = now
        {
            let length = u32::try_from(n).unwrap_or(u32::MAX);
            sleep(latency + Duration::from_secs(1) * length / bytes_per_second).await;
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}
