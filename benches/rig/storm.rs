//! Clients that come back, with the versions they hold.
//!
//! Covers measure 5: what is sent again, how long until all are in sync, and how those that stayed
//! fare meanwhile. Every client also asks for a name that does not exist: the removal is the answer
//! that shows it has been served, as there is nothing else to say to a client that is up to date.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{net::TcpStream, time::sleep};

use super::{
    Rig,
    delta::{self, Versions},
    experiment::{self, LIMIT, Pace},
    http2::Connection,
    journal::{Journal, Service, Traffic, Watch},
    load::{Fleet, Hello},
    mesh::MANY,
    report::{Row, Target},
    server::{Server, Side},
    statistics::{milliseconds, percentile},
};

const STEADY: usize = 100;
const RATE: f64 = 50.0;
/// Services that a client watches; the one that changes is none of them.
const WATCHED: Service = 20;

pub async fn measure(rig: &mut Rig) {
    let mut server = Server::start(Side::MeshKeeper, &rig.mesh.zookeeper, MANY).await;
    let versions = versions(&server, &names()).await;
    assert_eq!(
        versions.len(),
        WATCHED as usize,
        "every service has a version"
    );
    let idle = steady_p99(rig, &server, &versions, 0).await.0;
    for clients in rig.scale.storm() {
        let (p99, took, traffic) = steady_p99(rig, &server, &versions, *clients).await;
        rows(rig, *clients, "come back", took, traffic);
        rig.report.add(
            Row::new(
                5,
                format!("p99 of {STEADY} steady clients while {clients} come back"),
                "ms",
                p99,
            )
            .floor(idle)
            .target(Target::Ratio(3.0)),
        );
        let (took, traffic) = restart(&mut server, &versions, *clients).await;
        rows(rig, *clients, "after kill -9 and restart", took, traffic);
    }
}

fn rows(rig: &mut Rig, clients: usize, what: &str, took: Duration, traffic: Traffic) {
    rig.report.add(
        Row::new(
            5,
            format!("{clients} clients {what}: until all are in sync"),
            "s",
            took.as_secs_f64(),
        )
        .target(Target::AtMost(5.0)),
    );
    rig.report.add(
        Row::new(
            5,
            format!("{clients} clients {what}: resources sent again"),
            "",
            number(traffic.resources),
        )
        .target(Target::AtMost(0.0)),
    );
    rig.report.note(format!(
        "{clients} clients {what}: {} B were sent to each.",
        traffic.bytes / clients as u64
    ));
}

#[allow(clippy::cast_precision_loss)]
fn number(count: u64) -> f64 {
    count as f64
}

fn names() -> Vec<String> {
    (1..=WATCHED).map(|service| format!("s{service}")).collect()
}

fn returning(clients: usize, versions: &Versions) -> Vec<Hello> {
    let mut names = names();
    names.push("absent".into());
    let hello = |client| Hello {
        requests: vec![delta::subscribe(
            &experiment::node(client),
            delta::ENDPOINT,
            &names,
            versions,
        )],
        expects: 1,
        collections: false,
        watch: Watch::Nothing,
    };
    (0..clients).map(hello).collect()
}

/// The p99 of clients that stay, and what those that come meanwhile got, and when.
async fn steady_p99(
    rig: &Rig,
    server: &Server,
    versions: &Versions,
    clients: usize,
) -> (f64, Duration, Traffic) {
    let storm = Arc::new(Journal::new(0));
    let changes = vec![vec![0]; 200];
    let hellos = experiment::one(STEADY, 0);
    let steady = experiment::run(&rig.mesh, server, MANY, hellos, &changes, Pace::Rate(RATE));
    let coming = async {
        // The steady ones are there first.
        sleep(Duration::from_secs(1)).await;
        let start = Instant::now();
        let fleet = Fleet::open(
            server.wire(),
            server.clients,
            &storm,
            returning(clients, versions),
        );
        assert!(
            storm.synced(clients, LIMIT).await,
            "all {clients} are in sync"
        );
        let took = storm
            .pages()
            .last_synced
            .map_or(Duration::ZERO, |last| last - start);
        sleep(Duration::from_secs(1)).await;
        let traffic = storm.pages().traffic;
        fleet.close().await;
        (took, traffic)
    };
    let (steady, (took, traffic)) = tokio::join!(steady, coming);
    assert_eq!(
        (steady.lost, steady.lost_streams),
        (0, 0),
        "steady clients lose nothing"
    );
    (percentile(&milliseconds(&steady.lags), 99), took, traffic)
}

/// From the kill until every client is in sync with the server that was started again.
async fn restart(server: &mut Server, versions: &Versions, clients: usize) -> (Duration, Traffic) {
    let start = Instant::now();
    server.kill();
    let journal = Arc::new(Journal::new(0));
    let fleet = Fleet::open(
        server.wire(),
        server.clients,
        &journal,
        returning(clients, versions),
    );
    server.start_again().await;
    assert!(
        journal.synced(clients, LIMIT).await,
        "all {clients} are in sync"
    );
    let took = journal
        .pages()
        .last_synced
        .map_or(Duration::ZERO, |last| last - start);
    sleep(Duration::from_secs(1)).await;
    let traffic = journal.pages().traffic;
    fleet.close().await;
    (took, traffic)
}

/// What a client holds after it has asked for these names.
async fn versions(server: &Server, names: &[String]) -> Versions {
    let stream = TcpStream::connect(server.clients).await.expect("a server");
    let mut connection = Connection::open(&server.clients.to_string(), delta::METHOD);
    connection.send(&delta::subscribe("learner", delta::ENDPOINT, names, &[]));
    let learned = Mutex::new(Versions::new());
    let deadline = Instant::now() + LIMIT;
    let mut buffer = vec![0; 64 << 10];
    while learned.lock().expect("no other thread").len() < names.len() && Instant::now() < deadline
    {
        while !connection.output.is_empty() {
            stream.writable().await.expect("a connection");
            if let Ok(length) = stream.try_write(&connection.output) {
                connection.output.drain(..length);
            }
        }
        stream.readable().await.expect("a connection");
        if let Ok(length) = stream.try_read(&mut buffer) {
            connection.receive(&buffer[..length]);
        }
        connection.messages(|message| {
            let mut learned = learned.lock().expect("no other thread");
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let (_, ack) = delta::read(message, |resource| {
                learned.push((text(resource.name), text(resource.version)));
            });
            Some(ack)
        });
    }
    learned.into_inner().expect("no other thread")
}
