//! Where two registries differ, for those who move from one to the other.
//!
//! It compares what is registered, as clients would see it: no origins and no priorities. An instance that is
//! held or lingers is served and not registered; it is listed beside the differences. It does not know which of
//! the two is right.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    extract::{Query, State},
    http::StatusCode,
};
use serde::{Deserialize, Serialize};

use super::{
    Sources,
    api::{Answer, Parameters, Refusal, bad_query, respond},
};
use crate::{
    model::{Instance, Service, Socket},
    registry::{Mirrored, View},
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompareQuery {
    left: Option<String>,
    right: Option<String>,
}

const COMPARE: &str =
    "ask as in /api/v1/compare?left=old&right=new, with the names of two registries";

/// What differs between two registries, service by service.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Comparison<'a> {
    left: &'a str,
    right: &'a str,
    /// Services that are equal in both.
    equal: usize,
    only_left: Vec<&'a str>,
    only_right: Vec<&'a str>,
    differing: Vec<Differing<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Differing<'a> {
    service: &'a str,
    only_left: Vec<SocketAddr>,
    only_right: Vec<SocketAddr>,
    changed: Vec<Changed>,
    /// Served and not registered there: held, or lingering.
    unregistered_left: Vec<SocketAddr>,
    unregistered_right: Vec<SocketAddr>,
}

#[derive(Serialize)]
struct Changed {
    instance: SocketAddr,
    what: Vec<&'static str>,
}

pub async fn compare(State(sources): State<Sources>, query: Parameters<CompareQuery>) -> Answer {
    let Query(query) = query.map_err(|rejection| bad_query(&rejection, COMPARE))?;
    let picture = sources.registry.borrow().clone();
    let at = |side: &str, name: Option<String>| {
        let refused = |error| Refusal::new(StatusCode::BAD_REQUEST, error, COMPARE);
        let name = name.ok_or_else(|| refused(format!("the parameter `{side}` is missing")))?;
        let at = picture
            .registries
            .iter()
            .position(|mirrored| *mirrored.name == *name);
        at.ok_or_else(|| refused(format!("this server has no registry `{name}`")))
    };
    let (left, right) = (at("left", query.left)?, at("right", query.right)?);
    let mut both = [left, right].into_iter();
    if let Some(absent) = both.find(|at| !picture.registries[*at].loaded) {
        let name = &picture.registries[absent].name;
        let error = format!("the registry `{name}` was not read yet");
        let remedy = "see /readyz for the reason, and ask again";
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error, remedy));
    }
    respond(move |body| {
        let comparison = Comparison::of(&picture.registries[left], &picture.registries[right]);
        serde_json::to_writer_pretty(body, &comparison)
    })
    .await
}

impl<'a> Comparison<'a> {
    fn of(left: &'a Mirrored, right: &'a Mirrored) -> Self {
        let mut comparison = Self {
            left: &left.name,
            right: &right.name,
            equal: 0,
            only_left: Vec::new(),
            only_right: Vec::new(),
            differing: Vec::new(),
        };
        let [ours, theirs] = [left, right].map(|side| &side.view.services);
        for (name, service) in ours {
            match theirs.get(name) {
                None if has_only_unregistered(service, left) => {
                    let none = Side::empty(right);
                    let differing = Differing::of(name, Side::of(service, left), none);
                    comparison.differing.extend(differing);
                }
                None => comparison.only_left.push(name),
                Some(other) => {
                    let sides = (Side::of(service, left), Side::of(other, right));
                    match Differing::of(name, sides.0, sides.1) {
                        None => comparison.equal += 1,
                        Some(differing) => comparison.differing.push(differing),
                    }
                }
            }
        }
        for (name, service) in theirs.iter().filter(|(name, _)| !ours.contains_key(*name)) {
            if has_only_unregistered(service, right) {
                let none = Side::empty(left);
                let differing = Differing::of(name, none, Side::of(service, right));
                comparison.differing.extend(differing);
            } else {
                comparison.only_right.push(name);
            }
        }
        comparison
            .differing
            .sort_by_key(|differing| differing.service);
        comparison
    }
}

/// One registry's part of a service.
#[derive(Clone, Copy)]
struct Side<'a> {
    service: Option<&'a Service>,
    view: &'a View,
}

impl<'a> Side<'a> {
    fn of(service: &'a Service, of: &'a Mirrored) -> Self {
        Self {
            service: Some(service),
            view: &of.view,
        }
    }

    fn empty(of: &'a Mirrored) -> Self {
        Self {
            service: None,
            view: &of.view,
        }
    }

    fn instances(self) -> impl Iterator<Item = &'a Arc<Instance>> {
        self.service.into_iter().flat_map(|s| s.instances.iter())
    }

    fn is_registered(self, name: &str, instance: &Instance) -> bool {
        self.view.is_registered(name, instance.socket())
    }

    fn registered(self, name: &str, socket: Socket) -> Option<&'a Arc<Instance>> {
        let instance = self.service?.instances.get(socket);
        instance.filter(|_| self.view.is_registered(name, socket))
    }
}

/// Whether a service is there only by instances that are held or linger.
fn has_only_unregistered(service: &Service, of: &Mirrored) -> bool {
    let registered = |i: &Arc<Instance>| of.view.is_registered(&service.name, i.socket());
    !service.instances.is_empty() && !service.instances.iter().any(registered)
}

impl<'a> Differing<'a> {
    fn of(name: &'a str, left: Side<'a>, right: Side<'a>) -> Option<Self> {
        let lacking = |of: Side<'a>, others: Side<'a>| {
            let registered = of.instances().filter(|i| of.is_registered(name, i));
            let lacking = registered.filter(|i| others.registered(name, i.socket()).is_none());
            lacking
                .map(|i| i.socket().into())
                .collect::<Vec<SocketAddr>>()
        };
        let unregistered = |of: Side<'a>| {
            let unregistered = of.instances().filter(|i| !of.is_registered(name, i));
            let addresses = unregistered.map(|i| i.socket().into());
            addresses.collect::<Vec<SocketAddr>>()
        };
        let registered = left.instances().filter(|i| left.is_registered(name, i));
        let changed = registered.filter_map(|instance| {
            let what = unlike(instance, right.registered(name, instance.socket())?);
            (!what.is_empty()).then(|| Changed {
                instance: instance.socket().into(),
                what,
            })
        });
        let differing = Self {
            service: name,
            only_left: lacking(left, right),
            only_right: lacking(right, left),
            changed: changed.collect(),
            unregistered_left: unregistered(left),
            unregistered_right: unregistered(right),
        };
        (!differing.is_empty()).then_some(differing)
    }

    fn is_empty(&self) -> bool {
        let lists = [
            &self.only_left,
            &self.only_right,
            &self.unregistered_left,
            &self.unregistered_right,
        ];
        self.changed.is_empty() && lists.iter().all(|list| list.is_empty())
    }
}

/// What a client would see to be another, but for the priority, which is the registry's.
fn unlike(left: &Instance, right: &Instance) -> Vec<&'static str> {
    let all = [
        ("weight", left.weight != right.weight),
        ("zone", left.zone != right.zone),
        ("health", left.health != right.health),
        ("metadata", left.metadata != right.metadata),
    ];
    let unlike = all.into_iter().filter(|(_, unlike)| *unlike);
    unlike.map(|(what, _)| what).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::admin::explain::tests::{catalog, tell};

    #[test]
    fn two_registries_are_compared_by_what_clients_would_see() {
        let mut catalog = catalog();
        let light = r#"{"host":"10.0.0.2","port":80,"weight":1}"#;
        tell(
            &mut catalog,
            0,
            &[
                ("a/1", "10.0.0.1:80"),
                ("b/1", "10.0.0.1:80"),
                ("b/2", "10.0.0.2:80"),
                ("c/1", "10.0.0.3:80"),
            ],
        );
        tell(
            &mut catalog,
            1,
            &[
                ("b/9", "10.0.0.9:80"),
                ("b/2", light),
                ("c/other", "10.0.0.3:80"),
                ("d/1", "10.0.0.1:80"),
            ],
        );
        let picture = catalog.picture();
        let found = Comparison::of(&picture.registries[0], &picture.registries[1]);
        // An id that is but the znode's name is no difference.
        assert_eq!(
            serde_json::to_value(found).unwrap(),
            json!({
                "left": "old", "right": "new", "equal": 1, "onlyLeft": ["a"], "onlyRight": ["d"],
                "differing": [{
                    "service": "b", "onlyLeft": ["10.0.0.1:80"], "onlyRight": ["10.0.0.9:80"],
                    "changed": [{"instance": "10.0.0.2:80", "what": ["weight"]}],
                    "unregisteredLeft": [], "unregisteredRight": [],
                }],
            })
        );
    }

    #[test]
    fn what_is_held_and_not_registered_is_a_difference() {
        let mut catalog = catalog();
        let all: Vec<_> = (1..=9)
            .map(|n| (format!("a/{n}"), format!("10.0.0.{n}:80")))
            .collect();
        let all: Vec<_> = all.iter().map(|(path, data)| (&**path, &**data)).collect();
        for registry in [0, 1] {
            tell(&mut catalog, registry, &all);
        }
        let found = |catalog: &crate::registry::Catalog| {
            let picture = catalog.picture();
            let found = Comparison::of(&picture.registries[0], &picture.registries[1]);
            serde_json::to_value(found).unwrap()
        };
        assert_eq!(found(&catalog)["equal"], 1);
        let gone = crate::registry::Batch {
            events: vec![crate::registry::Event::Delete { path: "a".into() }],
            ..crate::registry::Batch::default()
        };
        catalog.apply(1, gone, 1_700_000_000_500);
        let found = found(&catalog);
        assert_eq!(found["equal"], 0, "{found}");
        let differing = &found["differing"][0];
        for (list, length) in [
            ("onlyLeft", 9),
            ("onlyRight", 0),
            ("unregisteredLeft", 0),
            ("unregisteredRight", 9),
        ] {
            assert_eq!(differing[list].as_array().unwrap().len(), length, "{list}");
        }
    }
}
