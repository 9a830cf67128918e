//! A TCP proxy on loopback that does to connections what networks do.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Forward,
    /// Connections stand and nothing passes; nor is anything lost.
    Pause,
    /// New connections are closed at once.
    Refuse,
}

pub struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    /// Counts the cuts; a connection lives through none.
    cuts: watch::Sender<u64>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Forwards to a port on loopback.
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (mode, mode_seen) = watch::channel(Mode::Forward);
        let (cuts, cuts_seen) = watch::channel(0);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if *mode_seen.borrow() != Mode::Refuse {
                    let (mode, cuts) = (mode_seen.clone(), cuts_seen.clone());
                    tokio::spawn(forward(stream, target, mode, cuts));
                }
            }
        });
        Self {
            address,
            mode,
            cuts,
            accepting,
        }
    }

    pub fn connect(&self) -> String {
        self.address.to_string()
    }

    /// Closes all connections; new ones pass.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Closes all connections and every new one.
    pub fn refuse(&self) {
        self.mode.send_replace(Mode::Refuse);
        self.cut();
    }

    /// Holds everything back, connections and all.
    pub fn pause(&self) {
        self.mode.send_replace(Mode::Pause);
    }

    /// Lets everything pass again.
    pub fn resume(&self) {
        self.mode.send_replace(Mode::Forward);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn forward(
    client: TcpStream,
    target: u16,
    mode: watch::Receiver<Mode>,
    mut cuts: watch::Receiver<u64>,
) {
    cuts.mark_unchanged();
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else {
        return;
    };
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    tokio::select! {
        _ = cuts.changed() => {}
        () = copy(client_reads, server_writes, mode.clone()) => {}
        () = copy(server_reads, client_writes, mode) => {}
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut mode: watch::Receiver<Mode>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let flows = mode.wait_for(|mode| *mode != Mode::Pause).await.is_ok();
        if !flows || to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}
