//! Behaviours 39–41 and 44: slow readers, large sets, a registry that is not loaded.

use std::{collections::BTreeMap, time::Duration};

use super::{Client, DeltaClient, Dialect, Mesh, Refusal, ResourceType::*, TYPES, Told, told};
use crate::{
    resource::ResourceType,
    xds::{
        body,
        stream::{Lag, Response},
    },
};

/// What gRPC clients take by default.
const MESSAGE: usize = 4 << 20;

/// A few of these fill a message.
const LARGE: usize = 300 << 10;

fn large_mesh(kind: ResourceType, count: u64) -> Mesh {
    let mesh = Mesh::empty();
    for at in 0..count {
        mesh.put_large(kind, &format!("n{at:02}"), 1, LARGE);
    }
    mesh
}

fn names(count: u64) -> Vec<String> {
    (0..count).map(|at| format!("n{at:02}")).collect()
}

fn wire_len(response: &Response, form: body::Form) -> usize {
    let pieces = body::encode(response.clone(), form);
    pieces.map(|piece| piece.len()).sum()
}

/// Reads everything without an ACK and requires that each message fits.
fn chunks<V: Dialect>(client: &mut Client<V>, form: body::Form) -> Vec<Told> {
    std::iter::from_fn(|| client.receive())
        .inspect(|response| assert!(wire_len(response, form) <= MESSAGE))
        .map(|response| Told::from(&response))
        .collect()
}

/// The union of the chunks; what is told twice fails.
fn union(chunks: &[Told]) -> Vec<String> {
    let mut all: Vec<_> = chunks
        .iter()
        .flat_map(|told| told.resources.clone())
        .collect();
    all.sort();
    let told = all.len();
    all.dedup();
    assert_eq!(all.len(), told, "a resource in two messages");
    all
}

fn acknowledge_each<V: Dialect>(client: &mut Client<V>, kind: ResourceType, nonces: &[String]) {
    let latest = client.latest[&kind].clone();
    for nonce in nonces {
        client
            .latest
            .get_mut(&kind)
            .unwrap()
            .nonce
            .clone_from(nonce);
        client.ack(kind);
    }
    client.latest.insert(kind, latest);
}

#[test]
fn line_39_a_reader_that_returns_gets_one_latest_state_of_each_resource() {
    for kind in TYPES {
        let mesh = Mesh::of(kind, &["a@1", "b@1", "c@1"]);
        let (mut sotw, mut delta) = (mesh.sotw(), mesh.delta());
        sotw.ask(kind, &["a", "b", "c", "d", "brief"]).settle();
        delta
            .subscribe(kind, &["a", "b", "c", "d", "brief"])
            .settle();
        let mut all = mesh.delta();
        all.subscribe(kind, &["*"]).settle();
        for version in 2..2_000 {
            mesh.put(kind, &format!("a@{version}"));
            mesh.put(kind, &format!("brief@{version}"));
            mesh.put(kind, &format!("d@{version}"));
            mesh.remove(kind, "brief");
        }
        mesh.remove(kind, "b");
        let changed = told(kind, &["a@1999", "d@1999"]);
        assert_eq!(delta.settle(), [changed.clone().removing(&["b"])]);
        assert_eq!(all.settle(), [changed.clone().removing(&["b"])]);
        let whole = told(kind, &["a@1999", "c@1", "d@1999"]);
        let expected = if matches!(kind, Cluster | Listener) {
            whole
        } else {
            changed
        };
        assert_eq!(sotw.settle(), [expected]);
    }
}

/// More removals than the change log remembers, none of which a client saw.
fn outrun_the_log(mesh: &Mesh, kind: ResourceType) {
    for round in 0..20_000 {
        let name = format!("brief{round}");
        mesh.put(kind, &format!("{name}@1"));
        mesh.remove(kind, &name);
    }
}

#[test]
fn line_39_a_reader_that_the_change_log_outran_meets_the_latest_state() {
    for kind in [Cluster, Listener] {
        for names in [&[][..], &["a", "b"]] {
            let mesh = Mesh::of(kind, &["a@1", "b@1"]);
            let mut client = mesh.sotw();
            client.ask(kind, names).settle();
            mesh.remove(kind, "a");
            outrun_the_log(&mesh, kind);
            assert_eq!(client.settle(), [told(kind, &["b@1"])]);
        }
    }
    for kind in [Endpoint, Route] {
        let mesh = Mesh::of(kind, &["a@1", "b@1", "c@1"]);
        let (mut sotw, mut delta) = (mesh.sotw(), mesh.delta());
        sotw.ask(kind, &["a", "b", "c"]).settle();
        delta.subscribe(kind, &["a", "b", "c"]).settle();
        mesh.remove(kind, "a");
        mesh.put(kind, "b@2");
        outrun_the_log(&mesh, kind);
        let heard = union(&sotw.settle());
        assert!(heard.contains(&"b@2".to_owned()), "{heard:?}");
        let told = delta.settle();
        assert!(told[0].resources.contains(&"b@2".to_owned()), "{told:?}");
        assert_eq!(told[0].removed, ["a"]);
        sotw.silent();
        delta.silent();
        // The version does not remember what is gone.
        let mut fresh = mesh.sotw();
        fresh.ask(kind, &["b", "c"]).settle();
        assert_eq!(sotw.version(kind), fresh.version(kind));
    }
}

#[test]
fn line_39_a_wildcard_that_the_change_log_outran_comes_back_with_what_it_holds() {
    let mesh = Mesh::of(Cluster, &["a@1", "b@1", "c@1"]);
    for star_again in [false, true] {
        let mut client = mesh.delta();
        client.subscribe(Cluster, &[]).settle();
        mesh.remove(Cluster, "a");
        outrun_the_log(&mesh, Cluster);
        if star_again {
            client.subscribe(Cluster, &["*"]);
        }
        assert_eq!(client.try_poll(), Err(Refusal::Lagging));
        mesh.put(Cluster, "b@2");
        let mut client = mesh.delta();
        client.resume(Cluster, &[], &["a@1", "b@1", "c@1"]);
        let expected = told(Cluster, &["b@2"]).removing(&["a"]);
        assert_eq!(client.settle(), [expected]);
        mesh.put(Cluster, "a@1");
        mesh.put(Cluster, "b@1");
    }
}

#[test]
fn line_40_one_response_of_a_type_is_outstanding_and_the_latest_wins() {
    for kind in TYPES {
        let mesh = Mesh::of(kind, &["a@1"]);
        let (mut sotw, mut delta) = (mesh.sotw(), mesh.delta());
        sotw.ask(kind, &["a"]);
        delta.subscribe(kind, &["a"]);
        assert_eq!(sotw.next(), told(kind, &["a@1"]));
        assert_eq!(delta.next(), told(kind, &["a@1"]));
        for version in 2..9 {
            mesh.put(kind, &format!("a@{version}"));
            sotw.silent();
            delta.silent();
        }
        assert_eq!(sotw.ack(kind).settle(), [told(kind, &["a@8"])]);
        assert_eq!(delta.ack(kind).settle(), [told(kind, &["a@8"])]);
    }
}

#[test]
fn line_40_a_nack_too_frees_the_way_for_what_came_meanwhile() {
    for kind in TYPES {
        let mesh = Mesh::of(kind, &["a@1"]);
        let (mut sotw, mut delta) = (mesh.sotw(), mesh.delta());
        sotw.ask(kind, &["a"]);
        delta.subscribe(kind, &["a"]);
        assert_eq!((sotw.drain().len(), delta.drain().len()), (1, 1));
        mesh.put(kind, "a@2");
        assert_eq!(sotw.nack(kind).settle(), [told(kind, &["a@2"])]);
        assert_eq!(delta.nack(kind).settle(), [told(kind, &["a@2"])]);
    }
}

#[test]
fn line_41_a_large_delta_set_goes_out_in_messages_that_fit() {
    for kind in TYPES {
        let mesh = large_mesh(kind, 40);
        let mut client = mesh.delta();
        client.subscribe(kind, &["*"]);
        let told = chunks(&mut client, body::Form::Delta);
        assert!(told.len() >= 3, "{}", told.len());
        let expected: Vec<_> = names(40).iter().map(|name| format!("{name}@1")).collect();
        assert_eq!(union(&told), expected);
        client.ack(kind).silent();
    }
}

#[test]
fn line_41_a_large_set_of_endpoints_or_routes_goes_out_in_messages_that_fit() {
    for kind in [Endpoint, Route] {
        let mesh = large_mesh(kind, 40);
        for wildcard in [true, false] {
            let mut client = mesh.sotw();
            let names = names(40);
            let texts: Vec<_> = names.iter().map(String::as_str).collect();
            client.ask(kind, if wildcard { &["*"] } else { &texts });
            let told = chunks(&mut client, body::Form::Sotw);
            assert!(told.len() >= 3, "{}", told.len());
            let expected: Vec<_> = names.iter().map(|name| format!("{name}@1")).collect();
            assert_eq!(union(&told), expected);
            client.ack(kind).silent();
        }
    }
}

#[test]
fn line_41_large_clusters_and_listeners_are_sent_whole() {
    for kind in [Cluster, Listener] {
        let mut client = large_mesh(kind, 20).sotw();
        client.ask(kind, &[]);
        assert_eq!(client.next_acked().resources.len(), 20);
        client.silent();
    }
}

#[test]
fn line_41_a_resource_that_fits_nowhere_goes_alone() {
    let mesh = Mesh::of(Endpoint, &["a@1", "z@1"]);
    mesh.put_large(Endpoint, "big", 1, MESSAGE + 1);
    let (mut sotw, mut delta) = (mesh.sotw(), mesh.delta());
    sotw.ask(Endpoint, &["a", "big", "z"]);
    delta.subscribe(Endpoint, &["*"]);
    for told in [sotw.drain(), delta.drain()] {
        assert_eq!(union(&told), ["a@1", "big@1", "z@1"]);
        let with_big = told.iter().find(|t| t.resources.contains(&"big@1".into()));
        assert_eq!(with_big.unwrap().resources.len(), 1, "{told:?}");
    }
}

/// With these, names alone fill more than a message.
const NAMES: usize = 24_000;

fn long_names() -> Vec<String> {
    (0..NAMES).map(|at| format!("{at:0>200}")).collect()
}

fn removed(chunks: &[Told]) -> usize {
    chunks.iter().map(|told| told.removed.len()).sum()
}

#[test]
fn line_41_many_missing_names_are_split_too() {
    let names = long_names();
    let mut client = Mesh::empty().delta();
    let texts: Vec<_> = names.iter().map(String::as_str).collect();
    client.subscribe(Endpoint, &texts);
    let told = chunks(&mut client, body::Form::Delta);
    assert!(told.len() > 1);
    assert_eq!(removed(&told), NAMES);
    client.ack(Endpoint).silent();
}

#[test]
fn line_41_many_removals_that_waited_for_routes_are_split_too() {
    let mesh = Mesh::of(Listener, &["a@1"]);
    // The log remembers as many removals as there are resources, and more.
    for at in 0..NAMES {
        mesh.put(Cluster, &format!("stays-{at}@1"));
    }
    let names = long_names();
    for name in &names {
        mesh.put(Cluster, &format!("{name}@1"));
    }
    let mut client = mesh.delta();
    client.subscribe(Cluster, &[]).subscribe(Listener, &[]);
    client.settle();
    mesh.put(Listener, "a@2");
    for name in &names {
        mesh.remove(Cluster, name);
    }
    assert_eq!(client.next_acked(), told(Listener, &["a@2"]));
    let told = chunks(&mut client, body::Form::Delta);
    assert!(told.len() > 1);
    assert_eq!(removed(&told), NAMES);
    client.ack(Cluster).silent();
}

#[test]
fn line_41_a_set_under_way_is_one_and_ends_with_the_ack_of_its_last_message() {
    let mesh = large_mesh(Cluster, 40);
    let mut client = mesh.delta();
    client.subscribe(Cluster, &["*"]);
    let mut nonces = Vec::new();
    while let Some(response) = client.receive() {
        nonces.push(response.nonce);
    }
    let (last, others) = nonces.split_last().unwrap();
    mesh.put(Cluster, "n00@2");
    acknowledge_each(&mut client, Cluster, others);
    client.silent();
    acknowledge_each(&mut client, Cluster, std::slice::from_ref(last));
    assert_eq!(client.settle(), [told(Cluster, &["n00@2"])]);
}

#[test]
fn line_41_a_change_between_two_messages_of_a_set_is_told_in_its_latest_state() {
    let mesh = large_mesh(Cluster, 40);
    let mut client = mesh.delta();
    client.subscribe(Cluster, &["*"]);
    let mut view = BTreeMap::new();
    let mut note = |told: Told| {
        for resource in &told.resources {
            let (name, version) = resource.split_once('@').unwrap();
            view.insert(name.to_owned(), version.parse().unwrap());
        }
        view.retain(|name, _| !told.removed.contains(name));
    };
    note(client.next());
    mesh.put(Cluster, "n00@2");
    mesh.put(Cluster, "n39@2");
    mesh.remove(Cluster, "n01");
    mesh.remove(Cluster, "n38");
    client.settle().into_iter().for_each(note);
    assert_eq!(view, mesh.content(Cluster));
}

/// The rest of a set goes before it is sent, and the ACK of what was sent comes first or last.
fn the_rest_vanishes<V: Dialect>(mesh: &Mesh, client: &mut Client<V>, ack_first: bool) {
    let first = client.next();
    if ack_first {
        client.ack(Endpoint);
    }
    for name in names(40) {
        if !first.resources.contains(&format!("{name}@1")) {
            mesh.remove(Endpoint, &name);
        }
    }
    client.silent();
    if !ack_first {
        client.ack(Endpoint);
    }
    let kept = first.resources[0].split_once('@').unwrap().0;
    let changed = format!("{kept}@2");
    mesh.put(Endpoint, &changed);
    assert_eq!(client.settle(), [told(Endpoint, &[&changed])]);
}

#[test]
fn line_41_a_set_whose_rest_vanished_blocks_nothing() {
    for ack_first in [true, false] {
        let mesh = large_mesh(Endpoint, 40);
        let mut client = mesh.sotw();
        client.ask(Endpoint, &["*"]);
        the_rest_vanishes(&mesh, &mut client, ack_first);
        let mesh = large_mesh(Endpoint, 40);
        let mut client = mesh.delta();
        client.subscribe(Endpoint, &["*"]);
        the_rest_vanishes(&mesh, &mut client, ack_first);
    }
}

#[test]
fn line_41_a_rejected_message_of_a_set_leaves_the_error_to_operators() {
    let mut client: DeltaClient = large_mesh(Cluster, 40).delta();
    client.subscribe(Cluster, &["*"]);
    let first = client.receive().unwrap();
    client.drain();
    let last = client.latest.insert(Cluster, first).unwrap();
    client.nack(Cluster).silent();
    client.latest.insert(Cluster, last);
    client.ack(Cluster).silent();
    assert_eq!(client.status(Cluster).error.as_deref(), Some("no"));
}

#[test]
fn line_44_nothing_is_answered_before_the_registry_is_loaded() {
    let mesh = Mesh::empty();
    mesh.set_loaded(false);
    let (mut sotw, mut delta) = (mesh.sotw(), mesh.delta());
    sotw.ask(Cluster, &[]).ask(Listener, &["*"]).silent();
    delta
        .subscribe(Cluster, &[])
        .resume(Listener, &["*"], &["a@1"]);
    delta.subscribe(Endpoint, &["a"]).silent();
    mesh.put(Cluster, "a@1");
    sotw.silent();
    delta.silent();
    assert_eq!((sotw.deadline(), delta.deadline()), (None, None));
    mesh.set_loaded(true);
    assert_eq!(sotw.next(), told(Cluster, &["a@1"]));
    assert_eq!(delta.next(), told(Cluster, &["a@1"]));
}

#[test]
fn line_44_the_last_good_state_stays_when_nothing_new_is_published() {
    let mesh = Mesh::whole("a");
    let mut early = mesh.delta();
    early.subscribe(Cluster, &[]).settle();
    mesh.pass(std::time::Duration::from_secs(86_400));
    early.silent();
    let mut late = mesh.sotw();
    late.ask(Cluster, &[]);
    assert_eq!(late.next(), told(Cluster, &["a@1"]));
}

#[test]
fn a_client_lags_from_a_change_that_it_wants_until_it_answered() {
    fn check<V: Dialect>(mesh: &Mesh, mut client: Client<V>) {
        let lags = |client: &Client<V>| client.stream.lags(&mesh.0.borrow().snapshots);
        client.settle();
        assert_eq!(lags(&client), []);
        mesh.put(Cluster, "other@2");
        assert_eq!(lags(&client), [], "what it does not want");
        mesh.put(Cluster, "a@2");
        assert!(matches!(lags(&client)[..], [(Cluster, Lag::Unsent(_))]));
        let sent = mesh.now();
        client.next();
        mesh.pass(Duration::from_secs(40));
        assert_eq!(lags(&client), [(Cluster, Lag::Unanswered(sent))]);
        client.ack(Cluster);
        assert_eq!(lags(&client), []);
        mesh.put(Cluster, "a@3");
        client.next();
        client.nack(Cluster);
        assert_eq!(lags(&client), [], "a rejection is an answer");
        mesh.put(Cluster, "a@4");
        mesh.set_loaded(false);
        assert_eq!(lags(&client), [], "nothing is due before the load");
    }
    let mesh = Mesh::of(Cluster, &["a@1", "other@1"]);
    let (mut sotw, mut delta) = (mesh.sotw(), mesh.delta());
    sotw.ask(Cluster, &["a"]);
    check(&mesh, sotw);
    let mesh = Mesh::of(Cluster, &["a@1", "other@1"]);
    delta.mesh = mesh.clone();
    delta.subscribe(Cluster, &["a"]);
    check(&mesh, delta);
}
