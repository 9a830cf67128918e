//! What a server could not do without: a bare ZooKeeper client, and plain sockets.
//!
//! The floors run as processes of their own, on the core of the server, and do what it must do on the
//! way but nothing else: no decoding, no rendering, no protocol. `mirror` reads a whole tree once.
//! `relay` reads each znode that changes and writes a frame of a given size to every socket, one
//! after the other. Invariant: a relay's frame leaves only after the znode was read.

use std::{
    io::Write as _,
    net::TcpStream,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::net::TcpListener;
use zookeeper_client::{AddWatchMode, Client, MultiReadResult, MultiReader};

use super::journal::{Service, Stamp, find_stamp};

/// As many operations in a request, and as many requests at once, as read fastest.
const BATCH: usize = 500;
const DEPTH: usize = 4;
/// Length of the rest, service, stamp.
const HEAD: usize = 16;

/// The words on the command line that make this process a floor.
pub const MIRROR: &str = "floor-mirror";
pub const RELAY: &str = "floor-relay";

/// Runs the floor that the words name, if they name one.
pub async fn run(words: &[&str]) -> bool {
    match words {
        [MIRROR, connect, root] => mirror(connect, root).await,
        [RELAY, connect, root, address, size] => {
            relay(connect, root, address, size.parse().expect("a size")).await;
        }
        _ => return false,
    }
    true
}

async fn session(connect: &str) -> Client {
    Client::connector()
        .with_session_timeout(Duration::from_secs(30))
        .connect(connect)
        .await
        .expect("a session")
}

/// Prints how many znodes were read, and in how many microseconds.
async fn mirror(connect: &str, root: &str) {
    let start = Instant::now();
    let client = session(connect).await;
    let _watcher = client
        .watch(root, AddWatchMode::PersistentRecursive)
        .await
        .expect("a watch");
    let services = client.list_children(root).await.expect("the root");
    let parents: Vec<_> = services
        .iter()
        .map(|name| format!("{root}/{name}"))
        .collect();
    let lists = read(&client, &parents, |reader, path| {
        reader.add_get_children(path)
    })
    .await;
    let mut paths = Vec::new();
    for (parent, list) in parents.iter().zip(lists) {
        if let MultiReadResult::Children { children } = list {
            paths.extend(children.iter().map(|child| format!("{parent}/{child}")));
        }
    }
    let data = read(&client, &paths, |reader, path| reader.add_get_data(path)).await;
    println!("{} {}", data.len(), start.elapsed().as_micros());
}

async fn read(
    client: &Client,
    paths: &[String],
    add: impl Fn(&mut MultiReader<'_>, &str) -> Result<(), zookeeper_client::Error> + Copy,
) -> Vec<MultiReadResult> {
    let batches = stream::iter(paths.chunks(BATCH)).map(|batch| {
        let mut reader = client.new_multi_reader();
        for path in batch {
            add(&mut reader, path).expect("a path");
        }
        reader.commit()
    });
    batches
        .buffered(DEPTH)
        .try_concat()
        .await
        .expect("znodes that stay")
}

async fn relay(connect: &str, root: &str, address: &str, size: usize) {
    let client = session(connect).await;
    let mut watcher = client
        .watch(root, AddWatchMode::PersistentRecursive)
        .await
        .expect("a watch");
    let sockets = Arc::new(Mutex::new(Vec::new()));
    let listener = TcpListener::bind(address).await.expect("a free port");
    tokio::spawn(accept(listener, sockets.clone(), size));
    loop {
        let event = watcher.changed().await;
        let (data, _) = client
            .get_data(&event.path)
            .await
            .expect("a znode that stays");
        let Some((service, stamp)) = service(&event.path).zip(find_stamp(&data)) else {
            continue;
        };
        let frame = frame(service, stamp, size);
        let mut sockets = sockets.lock().expect("no other thread");
        sockets.retain_mut(|socket: &mut TcpStream| socket.write_all(&frame).is_ok());
    }
}

/// Greets every client, so that it knows it is one.
async fn accept(listener: TcpListener, sockets: Arc<Mutex<Vec<TcpStream>>>, size: usize) {
    loop {
        let (socket, _) = listener.accept().await.expect("a connection");
        let mut socket = socket.into_std().expect("a socket");
        socket.set_nodelay(true).expect("a socket");
        // Writing waits for the reader: this floor has nothing else to do.
        socket.set_nonblocking(false).expect("a socket");
        socket
            .write_all(&frame(Service::MAX, 0, size))
            .expect("a reader");
        sockets.lock().expect("no other thread").push(socket);
    }
}

fn service(path: &str) -> Option<Service> {
    let parent = path.rsplit('/').nth(1)?;
    parent.strip_prefix('s')?.parse().ok()
}

fn frame(service: Service, stamp: Stamp, size: usize) -> Vec<u8> {
    let size = size.max(HEAD);
    let rest = u32::try_from(size - 4).expect("a small frame");
    let mut frame = rest.to_be_bytes().to_vec();
    frame.extend(service.to_be_bytes());
    frame.extend(stamp.to_be_bytes());
    frame.resize(size, b' ');
    frame
}

/// The service and stamp of a whole frame, and what follows it.
pub fn parse(bytes: &[u8]) -> Option<(Service, Stamp, &[u8])> {
    let rest = u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?);
    let frame = bytes.get(..4 + usize::try_from(rest).ok()?)?;
    let service = Service::from_be_bytes(frame[4..8].try_into().ok()?);
    let stamp = Stamp::from_be_bytes(frame[8..16].try_into().ok()?);
    Some((service, stamp, &bytes[frame.len()..]))
}
