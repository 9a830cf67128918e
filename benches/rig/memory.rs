//! What an idle client costs the server, each on a connection of its own.
//!
//! Covers the clients' part of measure 4. The slope leaves out what the first clients bring along.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{
    Rig,
    experiment::{self, LIMIT},
    journal::{Journal, Service},
    load::Fleet,
    mesh::MANY,
    report::{Row, Target},
    server::{Server, Side, istiod, linear},
    statistics::{float, slope},
};

pub async fn measure(rig: &mut Rig) {
    let ours = for_each(rig, Side::MeshKeeper).await;
    let mut peers = Vec::new();
    for peer in [linear(), istiod()] {
        peers.push(match peer {
            Some(peer) => Some(for_each(rig, peer).await),
            None => None,
        });
    }
    rig.report.add(
        Row::new(
            4,
            "memory for each idle client that watches 20 services",
            "KiB",
            ours,
        )
        .linear(peers[0])
        .istiod(peers[1])
        .target(Target::AtMost(40.0)),
    );
}

async fn for_each(rig: &Rig, side: Side) -> f64 {
    let server = Server::start(side, &rig.mesh.zookeeper, MANY).await;
    let journal = Arc::new(Journal::new(0));
    let (mut fleets, mut points, mut open) = (Vec::new(), Vec::new(), 0);
    let services = rig.mesh.services();
    for count in rig.scale.idle() {
        if *count > side.most_clients() {
            break;
        }
        let hellos = experiment::named_as(side.names(), count - open, |client| {
            let first = Service::try_from(client).unwrap_or(0);
            (0..20).map(|i| (first * 13 + i * 97) % services).collect()
        });
        fleets.push(Fleet::open(side.wire(), server.clients, &journal, hellos));
        open = *count;
        assert!(
            journal.synced(open, LIMIT).await,
            "{open} clients get what they asked for"
        );
        sleep(Duration::from_secs(1)).await;
        points.push((
            float(open),
            float(usize::try_from(server.memory()).unwrap_or(0)) / 1024.0,
        ));
    }
    for fleet in fleets {
        fleet.close().await;
    }
    slope(&points)
}
