//! Line 39: a client that stops reading while thousands of changes are made. Its windows are as small
//! as HTTP/2 begins with and its stream is not polled, so the server's first response does not fit. What
//! it asks for next costs the server nothing until it reads, which shows that the server is held up.

use meshkeeper::resource::{Resource, ResourceType, Version};
use tonic::transport::Channel;

use crate::support::{
    discovery::{Delta, Server, Sotw, told, version},
    wait::until,
};

use ResourceType::{Cluster, Endpoint, Listener, Route};

const NAMES: u64 = 20;
/// What a first response has of each: 3 MB in all.
const SIZE: usize = 150_000;
/// Of one resource each; 450 MB in all.
const CHANGES: u64 = 3_000;
/// Changes between two that a client beside it waits for.
const BEAT: u64 = 50;
const WINDOW: u32 = 65_535;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn line_39_an_increment_that_nobody_reads_is_coalesced_and_holds_up_nobody() {
    let server = Server::start().await;
    write_all(&server, Endpoint, 1);
    let mut slow = Delta::open(narrow(&server).await).await.unwrap();
    slow.subscribe(Endpoint, &["*"]).await;
    begun(&server, Endpoint).await;
    slow.subscribe(Listener, &["late"]).await;
    flood(&server, Endpoint, Listener).await;

    // Had it been read meanwhile, this would not be as the resources were before the changes.
    let first = slow.next().await;
    assert_eq!(first.resources.len(), usize::try_from(NAMES).unwrap());
    for (name, told) in told(&first) {
        assert_eq!(told, version(1), "{name}");
    }
    slow.ack(&first).await;
    let mut both = [slow.next().await, slow.next().await];
    both.sort_by_key(|response| response.type_url != Endpoint.type_url());
    let [second, late] = both;
    assert_eq!(told(&late), [("late", version(CHANGES).as_str())]);
    let mut latest = told(&second);
    latest.sort_unstable();
    let expected = expected();
    let expected: Vec<_> = expected.iter().map(|(n, v)| (&**n, &**v)).collect();
    assert_eq!(latest, expected, "the latest of each, and nothing else");
    assert!(
        second.removed_resources.is_empty(),
        "what came and went was never told: {:?}",
        second.removed_resources
    );
    slow.ack(&second).await;
    slow.ack(&late).await;
    server.put(Route, "sentinel", 1);
    slow.subscribe(Route, &["sentinel"]).await;
    assert_eq!(slow.next().await.type_url, Route.type_url());
    assert_eq!(responses(&server, Endpoint), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn line_39_a_set_that_nobody_reads_is_coalesced_and_holds_up_nobody() {
    let server = Server::start().await;
    write_all(&server, Cluster, 1);
    let mut slow = Sotw::open(narrow(&server).await).await.unwrap();
    slow.ask(Cluster, &[]).await;
    begun(&server, Cluster).await;
    slow.ask(Endpoint, &["late"]).await;
    flood(&server, Cluster, Endpoint).await;

    let names = usize::try_from(NAMES).unwrap();
    let first = slow.next().await;
    assert_eq!(first.resources.len(), names);
    slow.ack(&first, &[]).await;
    let mut both = [slow.next().await, slow.next().await];
    both.sort_by_key(|response| response.type_url != Cluster.type_url());
    let [second, late] = both;
    assert_eq!(
        (late.resources.len(), &*late.type_url),
        (1, Endpoint.type_url())
    );
    assert_eq!(second.resources.len(), names, "the set as it is at last");
    let is = |byte: u64| move |value: &u8| u64::from(*value) == byte % 251;
    for resource in &first.resources {
        assert!(resource.value.iter().all(is(1)), "the set as it was");
    }
    for resource in &second.resources {
        let last = u64::from(resource.value[0]);
        assert!((CHANGES - NAMES + 1..=CHANGES).any(|v| v % 251 == last));
        assert!(resource.value.iter().all(is(last)));
    }
    slow.ack(&second, &[]).await;
    slow.ack(&late, &["late"]).await;
    server.put(Route, "sentinel", 1);
    slow.ask(Route, &["sentinel"]).await;
    assert_eq!(slow.next().await.type_url, Route.type_url());
    assert_eq!(responses(&server, Cluster), 2);
}

/// A connection that lets little through until its streams are read.
async fn narrow(server: &Server) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{}", server.address)).unwrap();
    let endpoint = endpoint
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    endpoint.connect().await.unwrap()
}

async fn begun(server: &Server, kind: ResourceType) {
    until("the first response is under way", async || {
        (responses(server, kind) > 0).then_some(())
    })
    .await;
}

/// How many the server has made of this type.
fn responses(server: &Server, kind: ResourceType) -> u64 {
    let kind = kind.as_str();
    let series = format!("meshkeeper_xds_responses_total{{type=\"{kind}\"}}");
    let made = server.metric(&series).unwrap_or(0.0);
    made.to_string().parse().unwrap()
}

/// Changes one resource after the other as fast as they can be published; others come and go. A client
/// beside the slow one gets every beat while that one reads nothing, and is owed `late` all the time.
async fn flood(server: &Server, kind: ResourceType, late: ResourceType) {
    server.put(Route, "beat", 0);
    let mut beside = server.delta().await;
    beside.subscribe(Route, &["beat"]).await;
    let greeting = beside.next().await;
    beside.ack(&greeting).await;
    let before = resident();
    for change in 1..=CHANGES {
        write(server, kind, &name(change), change);
        if change % 10 == 0 {
            let passing = format!("passing-{change}");
            write(server, kind, &passing, change);
            server.remove(kind, &passing);
        }
        if change % BEAT == 0 {
            server.put(late, "late", change);
            server.put(Route, "beat", change);
            let beat = beside.next().await;
            assert_eq!(told(&beat), [("beat", version(change).as_str())]);
            beside.ack(&beat).await;
        }
    }
    assert_eq!(responses(server, late), 0, "nobody reads it yet");
    let written = usize::try_from(CHANGES).unwrap() * SIZE;
    let grown = resident().saturating_sub(before);
    assert!(
        grown < written / 2,
        "{grown} B are held for a reader that is away, of {written} B written"
    );
}

fn write_all(server: &Server, kind: ResourceType, version: u64) {
    for place in 0..NAMES {
        write(server, kind, &name(place), version);
    }
}

/// The body says the version in every byte.
fn write(server: &Server, kind: ResourceType, name: &str, version: u64) {
    let body = vec![u8::try_from(version % 251).unwrap(); SIZE];
    server.change(|snapshot| {
        snapshot.put(Resource::new(kind, name, Version(version), &body));
    });
}

fn name(change: u64) -> String {
    format!("n{:02}", change % NAMES)
}

/// Each name with the version of its last change.
fn expected() -> Vec<(String, String)> {
    let mut latest: Vec<_> = (CHANGES - NAMES + 1..=CHANGES)
        .map(|change| (name(change), version(change)))
        .collect();
    latest.sort_unstable();
    latest
}

/// Resident memory of this process, the server in it, in bytes. Other tests run beside this one, so the
/// bound on it is wide.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().nth(1));
    kibibytes.unwrap().parse::<usize>().unwrap() << 10
}
