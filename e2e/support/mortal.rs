//! Instances that die with their connections, come back at their address, and answer as they are told. They speak HTTP/1.1
//! byte by byte, so that a test sees what arrived.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// What a request's head gets as an answer.
type Answer = fn(&[u8], SocketAddr) -> Vec<u8>;

pub struct Mortal {
    pub address: SocketAddr,
    life: CancellationToken,
    status: Arc<AtomicU16>,
    answer: Answer,
    /// How long it keeps a connection that is not used.
    idle: Duration,
}

impl Mortal {
    /// Answers with its own address.
    pub fn start() -> Self {
        Self::with(own_address, Duration::from_secs(600))
    }

    pub fn with(answer: Answer, idle: Duration) -> Self {
        let mut mortal = Self {
            address: ([127, 0, 0, 1], 0).into(),
            life: CancellationToken::new(),
            status: Arc::new(AtomicU16::new(200)),
            answer,
            idle,
        };
        mortal.live();
        mortal
    }

    pub fn start_many(count: usize) -> Vec<Self> {
        (0..count).map(|_| Self::start()).collect()
    }

    /// Refuses connections and resets those that there are.
    pub fn die(&self) {
        self.life.cancel();
    }

    /// Again, at the same address.
    pub fn live(&mut self) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.address).unwrap();
        let listener = socket.listen(1024).unwrap();
        self.address = listener.local_addr().unwrap();
        self.life = CancellationToken::new();
        let serve = serve(listener, self.connection());
        let life = self.life.clone();
        tokio::spawn(async move { life.run_until_cancelled(serve).await });
    }

    /// From now on every request is answered with this status.
    pub fn answer(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    fn connection(&self) -> Connection {
        Connection {
            address: self.address,
            life: self.life.clone(),
            status: self.status.clone(),
            answer: self.answer,
            idle: self.idle,
        }
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        self.die();
    }
}

#[derive(Clone)]
struct Connection {
    address: SocketAddr,
    life: CancellationToken,
    status: Arc<AtomicU16>,
    answer: Answer,
    idle: Duration,
}

async fn serve(listener: TcpListener, connection: Connection) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let connection = connection.clone();
        tokio::spawn(async move {
            let life = connection.life.clone();
            life.run_until_cancelled(connection.run(stream)).await
        });
    }
}

impl Connection {
    async fn run(self, mut stream: TcpStream) {
        let mut read = Vec::new();
        loop {
            let mut buffer = vec![0; 16 << 10];
            match timeout(self.idle, stream.read(&mut buffer)).await {
                Ok(Ok(count)) if count > 0 => read.extend_from_slice(&buffer[..count]),
                _ => return,
            }
            while let Some(at) = read.windows(4).position(|end| end == b"\r\n\r\n") {
                let head: Vec<u8> = read.drain(..at + 4).collect();
                let status = self.status.load(Ordering::Relaxed);
                let answer = match status {
                    200 => (self.answer)(&head, self.address),
                    _ => format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n").into_bytes(),
                };
                if stream.write_all(&answer).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn own_address(_: &[u8], address: SocketAddr) -> Vec<u8> {
    let address = address.to_string();
    let length = address.len();
    format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{address}").into_bytes()
}
