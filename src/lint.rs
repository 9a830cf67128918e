//! What is odd in a registry, told to whoever has to put it right.
//!
//! It looks at one load of a tree as it would be served, and at what only the znodes themselves show:
//! how old, how large, whose. It refuses to read znodes, to resolve names and to know the time. What
//! is an [`Level::Error`] costs somebody traffic: a znode that is left out. Invariant: equal trees have
//! equal findings, in one order: the gravest first, then by check and subject.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;

use crate::{
    model::Socket,
    registry::{Batch, Config, Event, Index, Resolution, View, layout::Place},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Something that registered is not served.
    Error,
    /// Likely a mistake, and served.
    Warning,
    /// Good to know.
    Note,
}

/// The checks, by the names that findings carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// A znode that exists and may not or cannot be read.
    Unreadable,
    /// A znode or a service that is left out.
    Rejected,
    /// A service without instances.
    EmptyService,
    /// One `address:port` in several services.
    SharedAddress,
    /// A persistent instance that nobody has written for long.
    Untouched,
    LargePayload,
    /// A service whose host name is not its name.
    MappedName,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    pub level: Level,
    pub check: Check,
    /// A path, a service or an address.
    pub subject: String,
    pub message: String,
}

/// From when on something is worth telling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Since a persistent instance was written.
    pub untouched: Duration,
    /// Of the data of one znode, in bytes.
    pub payload: usize,
}

/// A registry as it was read once.
#[derive(Debug)]
pub struct Survey {
    index: Index,
    /// What the znodes themselves show.
    findings: Vec<Finding>,
    now: i64,
}

impl Survey {
    /// `now` is in milliseconds since the epoch; `unreadable` paths are relative to the root.
    pub fn new(
        config: Config,
        limits: Limits,
        events: Vec<Event>,
        unreadable: &BTreeSet<Arc<str>>,
        now: i64,
    ) -> Self {
        let path = |relative: &str| format!("{}/{relative}", config.root.trim_end_matches('/'));
        let unreadable = unreadable.iter().map(|znode| Finding {
            level: Level::Error,
            check: Check::Unreadable,
            subject: path(znode),
            message: "no permission to read it; give the credentials of a user who may, or add world:anyone:r to its ACL"
                .to_owned(),
        });
        let mut findings: Vec<_> = unreadable.collect();
        for event in &events {
            if let Event::Put { path: znode, .. } = event
                && matches!(config.layout.place(znode), Place::Instance(_))
            {
                findings.extend(odd(event, limits, now, || path(znode)));
            }
        }
        let mut index = Index::new(config);
        let batch = Batch {
            events,
            complete: true,
            ..Batch::default()
        };
        index.apply(batch, now);
        Self {
            index,
            findings,
            now,
        }
    }

    /// The host names that registrations hold; until they are resolved, these have no instances.
    pub fn wanted_hosts(&self) -> Vec<Arc<str>> {
        self.index.wanted_hosts().into_iter().collect()
    }

    pub fn resolved(&mut self, host: &str, resolution: Resolution) {
        self.index.resolved(host, resolution, self.now);
    }

    /// What would be served.
    pub fn view(&self) -> View {
        self.index.view()
    }

    pub fn findings(mut self) -> Vec<Finding> {
        let view = self.index.view();
        self.findings.extend(rejected(&view));
        self.findings.extend(services(&view));
        self.findings.extend(shared_addresses(&view));
        self.findings.sort();
        self.findings
    }
}

/// What an instance's znode shows of itself.
fn odd(event: &Event, limits: Limits, now: i64, path: impl Fn() -> String) -> Vec<Finding> {
    let Event::Put { data, stat, .. } = event else {
        return Vec::new();
    };
    let warning = |check, message| Finding {
        level: Level::Warning,
        check,
        subject: path(),
        message,
    };
    let mut findings = Vec::new();
    let age = Duration::from_millis(u64::try_from(now - stat.mtime).unwrap_or_default());
    if stat.ephemeral_owner == 0 && age >= limits.untouched {
        let message = format!(
            "persistent, and not written for {}; delete it if its owner is gone, as nothing else will",
            lasted(age)
        );
        findings.push(warning(Check::Untouched, message));
    }
    if data.len() > limits.payload {
        let message = format!(
            "{} bytes, which each replica reads whenever they change",
            data.len()
        );
        findings.push(warning(Check::LargePayload, message));
    }
    findings
}

/// In the largest whole unit.
fn lasted(age: Duration) -> String {
    let seconds = age.as_secs();
    let units = [(86_400, "days"), (3_600, "hours"), (60, "minutes")];
    let fits = units.iter().find(|(length, _)| seconds >= 2 * length);
    fits.map_or_else(
        || format!("{seconds} seconds"),
        |(length, unit)| format!("{} {unit}", seconds / length),
    )
}

fn rejected(view: &View) -> impl Iterator<Item = Finding> {
    view.rejected.iter().map(|(path, rejected)| Finding {
        level: Level::Error,
        check: Check::Rejected,
        subject: path.clone(),
        message: rejected.reason.clone(),
    })
}

fn services(view: &View) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, service) in &view.services {
        if service.instances.is_empty() {
            findings.push(Finding {
                level: Level::Warning,
                check: Check::EmptyService,
                subject: name.to_string(),
                message:
                    "has no instance that could be served; requests to it are answered with 503"
                        .to_owned(),
            });
        }
        if service.host != *name {
            findings.push(Finding {
                level: Level::Note,
                check: Check::MappedName,
                subject: name.to_string(),
                message: format!("has the host name {}", service.host),
            });
        }
    }
    findings
}

/// Dubbo's interfaces share their process's port by design.
fn shared_addresses(view: &View) -> Vec<Finding> {
    let mut services: BTreeMap<Socket, BTreeSet<&str>> = BTreeMap::new();
    for (name, service) in &view.services {
        let sharing = |format: &str| format.starts_with("dubbo");
        for instance in (service.instances.iter()).filter(|i| !sharing(i.origin.format)) {
            services.entry(instance.socket()).or_default().insert(name);
        }
    }
    let shared = services.into_iter().filter(|(_, names)| names.len() > 1);
    let finding = |((address, port), names): (Socket, BTreeSet<&str>)| Finding {
        level: Level::Warning,
        check: Check::SharedAddress,
        subject: std::net::SocketAddr::from((address, port)).to_string(),
        message: format!(
            "is registered in {} services: {}",
            names.len(),
            listed(&names)
        ),
    };
    shared.map(finding).collect()
}

/// The first few.
fn listed(names: &BTreeSet<&str>) -> String {
    const SHOWN: usize = 5;
    let first: Vec<_> = names.iter().copied().take(SHOWN).collect();
    let more = names.len() - first.len();
    match more {
        0 => first.join(", "),
        _ => format!("{} and {more} more", first.join(", ")),
    }
}

#[cfg(test)]
mod tests;
