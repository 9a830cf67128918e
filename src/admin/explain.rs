//! Why something is or is not served.
//!
//! Everything here is looked up when it is asked for, in what the process holds anyway: the registries'
//! views, the journal and the open streams. It refuses to change anything. Invariant: an answer says
//! nothing that the views and the journal do not hold at that moment.

use std::{collections::BTreeSet, fmt::Write, net::SocketAddr, sync::Arc};

use axum::{
    extract::{Query, State},
    http::StatusCode,
};
use serde::{Deserialize, Serialize};

use super::{
    Sources,
    api::{Answer, InstanceView, Parameters, Refusal, RejectedView, bad_query, respond, state},
};
use crate::{
    model::{Instance, Service},
    registry::{
        Mirrored, Picture,
        journal::{Entry, Subject},
    },
    xds::{clients::Follower, status},
};

/// Entries of the journal in one answer, the newest.
const JOURNAL: usize = 200;
/// Clients that are named in one answer, those first that did not accept what is served.
const CLIENTS: usize = 50;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainQuery {
    subject: Option<String>,
}

const EXPLAIN: &str = "ask as in /api/v1/explain?subject=10.0.0.7:8080, ?subject=orders or ?subject=/services/orders/i-1";

pub async fn explain(State(sources): State<Sources>, query: Parameters<ExplainQuery>) -> Answer {
    let Query(ExplainQuery { subject }) =
        query.map_err(|rejection| bad_query(&rejection, EXPLAIN))?;
    let Some(subject) = subject.filter(|subject| !subject.is_empty()) else {
        let error = "the parameter `subject` is missing";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, error, EXPLAIN));
    };
    let picture = sources.registry.borrow().clone();
    respond(move |body| {
        let mut explanation = Explanation::of(&picture, &subject, |name| (sources.followers)(name));
        explanation.note_missing((sources.missing)(&subject));
        serde_json::to_writer_pretty(body, &explanation)
    })
    .await
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Explanation<'a> {
    subject: &'a str,
    /// In a sentence or two.
    summary: String,
    services: Vec<ServiceView<'a>>,
    instances: Vec<Registered<'a>>,
    rejected: Vec<RejectedView<'a>>,
    /// The newest first.
    journal: Vec<EntryView<'a>>,
    /// The node ids of gRPC clients that ask for the name though nothing is registered under it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    asked_by: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceView<'a> {
    name: &'a str,
    host: &'a str,
    registry: &'a str,
    instances: usize,
    clients: Clients,
}

/// Who follows the endpoints of a service.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Clients {
    /// Accepted all that is served.
    acked: usize,
    /// Were sent something that they did not answer yet, or will be.
    waiting: usize,
    /// Rejected what they were sent last.
    rejected: usize,
    /// Some of them, those that are not up to date first.
    some: Vec<Follower>,
}

impl Clients {
    fn of(mut followers: Vec<Follower>) -> Self {
        let count = |state: fn(status::State) -> bool| {
            followers
                .iter()
                .filter(|follower| state(follower.state))
                .count()
        };
        let (acked, rejected) = (
            count(|state| state == status::State::Synced),
            count(|state| state == status::State::Error),
        );
        let waiting = followers.len() - acked - rejected;
        followers.sort_by_key(|follower| follower.state == status::State::Synced);
        followers.truncate(CLIENTS);
        Self {
            acked,
            waiting,
            rejected,
            some: followers,
        }
    }
}

/// One registration of what is asked for, as a registry has it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Registered<'a> {
    service: &'a str,
    /// Whether clients are told of this very registration.
    told: bool,
    #[serde(flatten)]
    instance: InstanceView<'a>,
}

#[derive(Serialize)]
struct EntryView<'a> {
    at: String,
    registry: &'a str,
    what: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    why: String,
}

impl<'a> EntryView<'a> {
    fn of(entry: &'a Entry) -> Self {
        Self {
            at: time(entry.at),
            registry: &entry.registry,
            what: entry.what.verb(),
            service: entry.what.service().map(|service| &**service),
            instance: entry.what.instance().map(|i| i.socket().into()),
            path: entry.what.path(),
            why: entry.what.why(),
        }
    }
}

/// Milliseconds since the epoch as RFC 3339 has them.
fn time(at: i64) -> String {
    let nanos = i32::try_from(at.rem_euclid(1000) * 1_000_000).unwrap_or_default();
    let seconds = at.div_euclid(1000);
    prost_types::Timestamp { seconds, nanos }.to_string()
}

impl<'a> Explanation<'a> {
    fn of(picture: &'a Picture, asked: &'a str, followers: impl Fn(&str) -> Vec<Follower>) -> Self {
        // A service may be asked for by its host.
        let by_host = || {
            picture
                .services
                .values()
                .find(|service| *service.host == *asked)
        };
        let known = picture.services.contains_key(asked);
        let subject = match (Subject::of(asked), by_host().filter(|_| !known)) {
            (Subject::Service(_), Some(service)) => Subject::Service(&service.name),
            (subject, _) => subject,
        };
        let instances = registered(picture, &subject);
        let mut names: BTreeSet<&str> = instances.iter().map(|of| of.service).collect();
        if let Subject::Service(name) = subject {
            names.insert(name);
        }
        let services = names.iter().filter_map(|name| picture.services.get(*name));
        let services: Vec<_> = services
            .map(|service| ServiceView {
                name: &service.name,
                host: &service.host,
                registry: &service.registry,
                instances: service.instances.len(),
                clients: Clients::of(followers(&service.name)),
            })
            .collect();
        let rejected = rejected(picture, &subject);
        let journal = picture.journal.entries().rev();
        let journal = journal
            .filter(|entry| entry.concerns(&subject))
            .take(JOURNAL);
        let journal: Vec<_> = journal.map(|entry| EntryView::of(entry)).collect();
        Self {
            summary: summary(&services, &instances, &rejected, &journal),
            subject: asked,
            services,
            instances,
            rejected,
            journal,
            asked_by: Vec::new(),
        }
    }

    fn note_missing(&mut self, mut clients: Vec<String>) {
        if clients.is_empty() {
            return;
        }
        let count = clients.len();
        let _ = write!(
            self.summary,
            "; {count} gRPC clients ask for it, and their calls fail: nothing is registered under this name"
        );
        clients.truncate(CLIENTS);
        self.asked_by = clients;
    }
}

fn registered<'a>(picture: &'a Picture, subject: &Subject<'_>) -> Vec<Registered<'a>> {
    let mut found = Vec::new();
    for mirrored in picture.registries.iter() {
        for service in services_of(mirrored, subject) {
            for instance in instances_of(service, subject) {
                let shown = picture.services.get(&service.name);
                let shown = shown.and_then(|shown| shown.instances.get(instance.socket()));
                found.push(Registered {
                    service: &service.name,
                    told: shown.is_some_and(|shown| is_same(shown, instance)) && is_told(instance),
                    instance: InstanceView::of(instance, state(service, instance, picture)),
                });
            }
        }
    }
    found
}

/// Whether both are of one znode. What clients are told need not be the latest copy of it.
fn is_same(one: &Instance, other: &Instance) -> bool {
    let place = |instance: &Instance| {
        let origin = &instance.origin;
        (origin.source.registry.clone(), Arc::clone(&origin.znode))
    };
    place(one) == place(other)
}

fn is_told(instance: &Instance) -> bool {
    !matches!(instance.health, crate::model::Health::Disabled(_))
}

fn services_of<'a>(
    mirrored: &'a Mirrored,
    subject: &Subject<'_>,
) -> Box<dyn Iterator<Item = &'a Arc<Service>> + 'a> {
    match subject {
        Subject::Service(name) => Box::new(mirrored.view.services.get(*name).into_iter()),
        _ => Box::new(mirrored.view.services.values()),
    }
}

fn instances_of<'a>(service: &'a Service, subject: &Subject<'_>) -> Vec<&'a Arc<Instance>> {
    let all = &service.instances;
    match subject {
        Subject::Service(_) => all.iter().collect(),
        Subject::Socket(socket) => all.get((socket.ip(), socket.port())).into_iter().collect(),
        Subject::Znode(path) => all.iter().filter(|i| i.origin.path() == **path).collect(),
    }
}

fn rejected<'a>(picture: &'a Picture, subject: &Subject<'_>) -> Vec<RejectedView<'a>> {
    let socket = match subject {
        Subject::Socket(socket) => format!("`{socket}`"),
        _ => String::new(),
    };
    let concerns = |rejected: &RejectedView<'_>| match subject {
        Subject::Znode(path) => rejected.path == *path,
        // Who gave way to another registration of the same address is told with it.
        Subject::Socket(_) => rejected.reason.contains(&socket),
        Subject::Service(name) => {
            rejected.path == *name || rejected.path.split('/').any(|part| part == *name)
        }
    };
    super::api::rejected_views(picture)
        .filter(concerns)
        .collect()
}

fn summary(
    services: &[ServiceView<'_>],
    instances: &[Registered<'_>],
    rejected: &[RejectedView<'_>],
    journal: &[EntryView<'_>],
) -> String {
    let mut text = String::new();
    let told = instances.iter().filter(|instance| instance.told).count();
    let _ = match (instances.len(), told) {
        (0, _) => write!(text, "no registration of it is held"),
        (1, 1) => write!(text, "registered and served"),
        (1, 0) => write!(
            text,
            "registered, and not served: {}",
            why_not(&instances[0])
        ),
        (all, told) => write!(text, "{all} registrations, {told} of them served"),
    };
    let (mut acked, mut followers) = (0, 0);
    for ServiceView { clients, .. } in services {
        acked += clients.acked;
        followers += clients.acked + clients.waiting + clients.rejected;
    }
    if !services.is_empty() {
        let _ = write!(
            text,
            "; {acked} of {followers} clients that follow have acknowledged all"
        );
    }
    if !rejected.is_empty() {
        let _ = write!(text, "; {} rejected", rejected.len());
    }
    if let Some(last) = journal.first() {
        let _ = write!(text, "; last {} at {}: {}", last.what, last.at, last.why);
    }
    text
}

fn why_not(instance: &Registered<'_>) -> String {
    match instance.instance.health.as_str() {
        health if health.starts_with("disabled") => health.to_owned(),
        _ => "another registration of the same address and port counts".to_owned(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::*;
    use crate::registry::{
        Batch, Catalog, Config, Event, FormatChoice, Layout, Shape, Stat, guard,
    };

    pub fn catalog() -> Catalog {
        let config = |name: &str, priority| Config {
            name: name.to_owned(),
            root: "/services".to_owned(),
            layout: Layout::flat(),
            format: FormatChoice::Auto,
            priority,
            required: true,
            ttl: None,
            shape: Shape::default(),
        };
        Catalog::new(
            vec![config("old", 1), config("new", 0)],
            &guard::Config::default(),
        )
    }

    pub fn tell(catalog: &mut Catalog, registry: usize, znodes: &[(&str, &str)]) {
        let put = |(path, data): &(&str, &str)| match *data {
            "" => Event::Delete {
                path: (*path).into(),
            },
            data => Event::Put {
                path: (*path).into(),
                data: Bytes::copy_from_slice(data.as_bytes()),
                stat: Stat {
                    czxid: 7,
                    ephemeral_owner: 0x2a,
                    ..Stat::default()
                },
            },
        };
        let batch = Batch {
            events: znodes.iter().map(put).collect(),
            complete: !catalog.picture().registries[registry].loaded,
            ..Batch::default()
        };
        catalog.apply(registry, batch, 1_700_000_000_500);
    }

    fn explained(catalog: &Catalog, subject: &str) -> Value {
        let follower = |state| Follower {
            node_id: "sidecar-1".into(),
            state,
        };
        let followers = |_: &str| {
            vec![
                follower(status::State::Synced),
                follower(status::State::Stale),
            ]
        };
        let picture = catalog.picture();
        serde_json::to_value(Explanation::of(&picture, subject, followers)).unwrap()
    }

    #[test]
    fn an_instance_is_explained_by_its_address_its_znode_and_its_service() {
        let mut catalog = catalog();
        tell(&mut catalog, 0, &[]);
        tell(
            &mut catalog,
            0,
            &[("Orders/i-1", "10.0.0.1:80"), ("Orders/bad", "x")],
        );
        for subject in ["10.0.0.1:80", "/services/Orders/i-1", "Orders", "orders"] {
            let found = explained(&catalog, subject);
            let instance = &found["instances"][0];
            assert_eq!(instance["session"], "0x2a", "{subject}");
            assert_eq!(instance["told"], true);
            assert_eq!(instance["service"], "Orders");
            let clients = &found["services"][0]["clients"];
            assert_eq!(
                (&clients["acked"], &clients["waiting"]),
                (&json!(1), &json!(1))
            );
            assert_eq!(found["journal"][0]["at"], "2023-11-14T22:13:20.500Z");
        }
        let bad = explained(&catalog, "/services/Orders/bad");
        assert!(
            bad["rejected"][0]["reason"]
                .as_str()
                .unwrap()
                .contains("no port")
        );
        assert_eq!(bad["journal"][0]["what"], "rejected");
        tell(&mut catalog, 0, &[("Orders/i-1", "")]);
        let gone = explained(&catalog, "10.0.0.1:80");
        let summary = gone["summary"].as_str().unwrap();
        assert!(
            summary.starts_with("no registration of it is held; last removed at"),
            "{summary}"
        );
        assert!(
            summary.contains("session 0x2a ended or expired"),
            "{summary}"
        );
    }

    #[test]
    fn what_is_registered_and_not_served_says_why() {
        let mut catalog = catalog();
        tell(
            &mut catalog,
            0,
            &[("s/i", r#"{"host":"10.0.0.1","port":80,"enabled":false}"#)],
        );
        let found = explained(&catalog, "10.0.0.1:80");
        let summary = found["summary"].as_str().unwrap();
        assert!(summary.starts_with("registered, and not served: disabled: enabled is false"));
        // Another registry holds the same, and counts more.
        tell(&mut catalog, 1, &[("s/j", "10.0.0.1:80")]);
        let found = explained(&catalog, "/services/s/i");
        assert_eq!(found["instances"][0]["told"], false);
    }
}
