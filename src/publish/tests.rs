use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;

use super::*;
use crate::{
    model::Health,
    registry::{Event, FormatChoice, Layout, Shape, Stat, guard},
    translate,
};

const HOUR: Duration = Duration::from_secs(3600);

/// A registry whose registrations live for an hour.
fn publisher() -> Publisher {
    let config = registry::Config {
        name: "main".to_owned(),
        root: "/services".to_owned(),
        layout: Layout::flat(),
        format: FormatChoice::Auto,
        priority: 0,
        required: true,
        ttl: Some(HOUR),
        shape: Shape::default(),
    };
    let translation = Translation::new(translate::Config {
        outbound_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 15001)),
        domain_suffix: "mesh.local".to_owned(),
        increments_above: 0,
        ranked: false,
        http: Arc::default(),
    });
    let metrics = registry::Metrics::register(&prometheus::Registry::new()).unwrap();
    let catalog = Catalog::new(vec![config], &guard::Config::default());
    Publisher::new(catalog, translation, metrics).0
}

fn written(mzxid: i64, complete: bool) -> Batch {
    let put = Event::Put {
        path: "orders/i".into(),
        data: Bytes::from_static(b"10.0.0.1:80"),
        stat: Stat {
            czxid: 1,
            mzxid,
            ..Stat::default()
        },
    };
    Batch {
        events: vec![put],
        complete,
        ..Batch::default()
    }
}

fn is_healthy(publisher: &Publisher) -> bool {
    let services = publisher.catalog.picture().services;
    let mut instances = services["orders"].instances.iter();
    instances.next().unwrap().health == Health::Healthy
}

#[tokio::test]
async fn what_was_written_in_time_does_not_lapse_because_it_is_heard_of_late() {
    for (waiting, healthy) in [(Some(written(2, false)), true), (None, false)] {
        let mut publisher = publisher();
        let two_hours = i64::try_from(2 * HOUR.as_millis()).unwrap();
        publisher
            .catalog
            .apply(0, written(1, true), now().before(two_hours));
        assert!(is_healthy(&publisher) && publisher.catalog.due().unwrap() < now().time);
        let (sender, receiver) = mpsc::channel(1);
        if let Some(batch) = waiting {
            sender.try_send(batch).unwrap();
        }
        let streams = [ReceiverStream::new(receiver)].into_iter();
        let mut batches: Batches = streams.enumerate().collect();
        // The clock has gone on, and its time comes.
        publisher.take_in(None, &mut batches);
        assert_eq!(is_healthy(&publisher), healthy);
    }
}
