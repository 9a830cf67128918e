//! Why something is or is not served.
//!
//! Everything here is looked up when it is asked for, in what the process holds anyway: the registries'
//! views, the journal, the readiness notes and the open streams. It changes nothing. Invariant: an answer says
//! only what these hold at that moment.

mod subject;
mod summary;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{Query, State},
    http::StatusCode,
};
use serde::{Deserialize, Serialize};

use self::subject::Asked;
use super::{
    Sources,
    api::{Answer, InstanceView, Parameters, Refusal, RejectedView, bad_query, respond, state},
    holds::day,
};
use crate::{
    model::{Health, Instance, Service, Weight},
    readiness::Status,
    registry::{
        Mirrored, Picture,
        journal::{Address, Entry, Subject, is_below},
        reason,
    },
    xds::{
        clients::Follower,
        status::{self, ClientStatus},
    },
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
        let moment = Moment {
            picture: &picture,
            status: sources.readiness.status(),
            suffix: &sources.domain_suffix,
            clients: sources.clients.clients(),
        };
        let mut explanation = Explanation::of(&moment, &subject, |name| (sources.followers)(name));
        explanation.note_missing((sources.missing)(&subject));
        serde_json::to_writer_pretty(body, &explanation)
    })
    .await
}

/// All that an explanation is made of.
struct Moment<'a> {
    picture: &'a Picture,
    status: Status,
    /// The suffix of the mesh's host names.
    suffix: &'a str,
    clients: Vec<ClientStatus>,
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
    /// Znodes whose host name is being looked up for the first time.
    waiting: Vec<WaitingView<'a>>,
    /// The newest first.
    journal: Vec<EntryView<'a>>,
    /// What is unusual about the server or its registries now, as `/readyz` has it.
    notes: Vec<String>,
    /// The node ids of gRPC clients that ask for the name though nothing is registered under it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    asked_by: Vec<String>,
}

#[derive(Serialize)]
struct WaitingView<'a> {
    registry: &'a str,
    path: &'a str,
    host: &'a str,
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
    /// `yes`, `no`, or why it is told and gets no new requests.
    served: &'static str,
    /// When a held one was last known to be registered.
    #[serde(skip_serializing_if = "Option::is_none", rename = "heldSince")]
    held_since: Option<String>,
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
            at: day(entry.at),
            registry: &entry.registry,
            what: entry.what.verb(),
            service: entry.what.service().map(|service| &**service),
            instance: entry.what.instance().map(|i| i.socket().into()),
            path: entry.what.path(),
            why: entry.what.why(),
        }
    }
}

impl<'a> Explanation<'a> {
    fn of(moment: &Moment<'a>, text: &'a str, followers: impl Fn(&str) -> Vec<Follower>) -> Self {
        let picture = moment.picture;
        let asked = Asked::of(picture, text, moment.suffix);
        let instances = registered(moment, &asked.subject);
        let mut names: BTreeSet<Arc<str>> =
            instances.iter().map(|of| Arc::from(of.service)).collect();
        if let Subject::Services(of) | Subject::Znode { services: of, .. } = &asked.subject {
            names.extend(of.iter().cloned());
        }
        let services = names.iter().filter_map(|name| picture.services.get(name));
        let services: Vec<_> = services
            .map(|service| ServiceView {
                name: &service.name,
                host: &service.host,
                registry: &service.registry,
                instances: service.instances.len(),
                clients: Clients::of(followers(&service.name)),
            })
            .collect();
        let journal = journal(picture, &asked.subject, &instances);
        let mut explanation = Self {
            subject: text,
            summary: String::new(),
            services,
            instances,
            rejected: rejected(picture, &asked),
            waiting: waiting(picture, &asked),
            journal: journal.into_iter().map(EntryView::of).collect(),
            notes: notes(moment),
            asked_by: Vec::new(),
        };
        explanation.summary = summary::of(&explanation, moment, &asked.subject);
        explanation
    }

    fn note_missing(&mut self, mut clients: Vec<String>) {
        if clients.is_empty() {
            return;
        }
        let count = clients.len();
        let why = if self.services.is_empty() {
            "nothing is registered under this name"
        } else {
            "it has had no instance for long (mesh.emptyServices)"
        };
        let _ = write!(
            self.summary,
            "; {count} gRPC clients ask for it, and their calls fail: {why}"
        );
        clients.truncate(CLIENTS);
        self.asked_by = clients;
    }
}

/// The newest entries about the subject. Those about a whole registry only where the subject is, or was, in it.
fn journal<'a>(
    picture: &'a Picture,
    subject: &Subject<'_>,
    instances: &[Registered<'_>],
) -> Vec<&'a Entry> {
    let entries = picture.journal.entries().rev().map(|entry| &**entry);
    let entries: Vec<_> = entries.filter(|entry| entry.concerns(subject)).collect();
    let all = entries.iter().copied();
    let own = all.filter(|entry| !entry.is_of_registry());
    let own = own.map(|entry| &*entry.registry);
    let registries: BTreeSet<&str> = (instances.iter().map(|one| one.instance.registry))
        .chain(own)
        .collect();
    let is_near = |entry: &&Entry| {
        !entry.is_of_registry() || registries.is_empty() || registries.contains(&*entry.registry)
    };
    entries.into_iter().filter(is_near).take(JOURNAL).collect()
}

/// What is missing, then what is unusual, then what clients reject.
fn notes(moment: &Moment<'_>) -> Vec<String> {
    let pending = moment.status.pending.iter();
    let pending = pending.map(|name| format!("waiting for: {name}"));
    let notes = moment.status.notes.iter();
    let notes = notes.map(|(subject, text)| format!("{subject}: {text}"));
    pending
        .chain(notes)
        .chain(rejections(rejected_types(&moment.clients)))
        .collect()
}

/// What clients reject: node id, type and error.
fn rejected_types(clients: &[ClientStatus]) -> impl Iterator<Item = (&str, &str, &str)> {
    clients.iter().flat_map(|client| {
        let errors = client.types.iter();
        let errors = errors.filter_map(|(kind, of)| Some((&**kind, of.error.as_deref()?)));
        errors.map(|(kind, error)| (&*client.node_id, kind, error))
    })
}

/// A line for each type that clients reject: a sidecar without its listener serves no service.
fn rejections<'c>(rejected: impl Iterator<Item = (&'c str, &'c str, &'c str)>) -> Vec<String> {
    let mut kinds = BTreeMap::<&str, (usize, String)>::new();
    for (node, kind, error) in rejected {
        let example = || format!("{node}: {}", error.trim_end());
        let (count, _) = kinds.entry(kind).or_insert_with(|| (0, example()));
        *count += 1;
    }
    let line = |(kind, (count, example)): (&str, (usize, String))| {
        format!("rejected {kind}: {count} clients, as {example} (`meshkeeper clients`)")
    };
    kinds.into_iter().map(line).collect()
}

fn registered<'a>(moment: &Moment<'a>, subject: &Subject<'_>) -> Vec<Registered<'a>> {
    let mut found = Vec::new();
    for mirrored in moment.picture.registries.iter() {
        for service in services_of(mirrored, subject) {
            let instances = instances_of(mirrored, service, subject).into_iter();
            found.extend(instances.map(|i| Registered::of(moment, mirrored, service, i)));
        }
    }
    found
}

impl<'a> Registered<'a> {
    fn of(
        moment: &Moment<'a>,
        mirrored: &'a Mirrored,
        service: &'a Service,
        instance: &'a Instance,
    ) -> Self {
        let picture = moment.picture;
        let shown = picture.services.get(&service.name);
        let shown = shown.and_then(|shown| shown.instances.get(instance.socket()));
        let told = moment.status.is_ready()
            && shown.is_some_and(|shown| is_same(shown, instance))
            && is_told(instance);
        let held = mirrored.view.holds.get(&service.name, instance.socket());
        Self {
            service: &service.name,
            told,
            served: match &instance.health {
                _ if !told => "no",
                Health::Unhealthy => "unhealthy",
                _ if instance.weight == Weight::DRAIN => "draining",
                _ => "yes",
            },
            held_since: held.map(|held| day(held.since + picture.epoch)),
            instance: InstanceView::of(instance, state(service, instance, picture)),
        }
    }
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
    !matches!(instance.health, Health::Disabled(_))
}

fn services_of<'a>(
    mirrored: &'a Mirrored,
    subject: &Subject<'_>,
) -> Box<dyn Iterator<Item = &'a Arc<Service>> + 'a> {
    let services = &mirrored.view.services;
    match subject {
        Subject::Services(names) => {
            let names: Vec<_> = names.iter().cloned().collect();
            Box::new(
                names
                    .into_iter()
                    .filter_map(move |name| services.get(&name)),
            )
        }
        _ => Box::new(services.values()),
    }
}

fn instances_of<'a>(
    mirrored: &Mirrored,
    service: &'a Service,
    subject: &Subject<'_>,
) -> Vec<&'a Arc<Instance>> {
    let all = &service.instances;
    match subject {
        Subject::Services(_) => all.iter().collect(),
        Subject::Address(Address {
            ips,
            port: Some(port),
        }) => ips.iter().filter_map(|ip| all.get((*ip, *port))).collect(),
        Subject::Address(address) => all.iter().filter(|i| address.is_of(i.socket())).collect(),
        Subject::Znode { path, .. } => match mirrored.config.below(path) {
            // The whole registry is what `services` lists.
            None | Some("") => Vec::new(),
            Some(below) => {
                let of = |i: &&Arc<Instance>| is_below(&i.origin.znode, below);
                all.iter().filter(of).collect()
            }
        },
    }
}

fn rejected<'a>(picture: &'a Picture, asked: &Asked<'_>) -> Vec<RejectedView<'a>> {
    let quotes: Vec<String> = match &asked.subject {
        // One that gave way to another registration of the same address names that address.
        Subject::Address(Address { ips, port }) => {
            let host = asked
                .host
                .map(|host| format!("host name {}", reason::quoted(&host.to_lowercase())));
            ips.iter().map(|ip| quote(*ip, *port)).chain(host).collect()
        }
        _ => Vec::new(),
    };
    let concerns = |rejected: &RejectedView<'_>| match &asked.subject {
        Subject::Znode { path, .. } => is_below(rejected.path, path),
        Subject::Address(_) => quotes.iter().any(|quote| rejected.reason.contains(quote)),
        Subject::Services(names) => {
            names.contains(rejected.path) || is_of(picture, rejected.path, names)
        }
    };
    super::api::rejected_views(picture)
        .filter(concerns)
        .collect()
}

/// How a reason quotes an address, with its port or up to it.
fn quote(ip: IpAddr, port: Option<u16>) -> String {
    if let Some(port) = port {
        return format!("`{}`", SocketAddr::new(ip, port));
    }
    let socket = SocketAddr::new(ip, 0).to_string();
    format!("`{}", socket.trim_end_matches('0'))
}

/// Whether the znode at a full path belongs to one of the services, or would.
fn is_of(picture: &Picture, path: &str, names: &BTreeSet<Arc<str>>) -> bool {
    picture.registries.iter().any(|of| {
        let service = of
            .config
            .below(path)
            .and_then(|below| of.config.service_at(below));
        let part_of = |name: &Arc<str>, service: &str| {
            let rest = name.strip_prefix(service);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
        };
        service.is_some_and(|service| names.iter().any(|name| part_of(name, &service)))
    })
}

fn waiting<'a>(picture: &'a Picture, asked: &Asked<'_>) -> Vec<WaitingView<'a>> {
    let concerns = |view: &WaitingView<'_>| match &asked.subject {
        Subject::Znode { path, .. } => is_below(view.path, path),
        Subject::Address(_) => asked
            .host
            .is_some_and(|host| host.eq_ignore_ascii_case(view.host)),
        Subject::Services(names) => is_of(picture, view.path, names),
    };
    let views = picture.registries.iter().flat_map(|of| {
        of.view.waiting.iter().map(|(path, host)| WaitingView {
            registry: &of.name,
            path,
            host,
        })
    });
    views.filter(concerns).collect()
}

#[cfg(test)]
pub(super) mod tests;
