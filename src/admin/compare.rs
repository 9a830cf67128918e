//! Where two registries differ, for those who move from one to the other.
//!
//! It compares what clients would see, and so no origins and no priorities. It refuses to know which of
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
    model::{Instance, Service},
    registry::Mirrored,
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
        at.ok_or_else(|| refused(format!("`{name}` is no registry of this server")))
    };
    let (left, right) = (at("left", query.left)?, at("right", query.right)?);
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
                None => comparison.only_left.push(name),
                Some(other) => match Differing::of(service, other) {
                    None => comparison.equal += 1,
                    Some(differing) => comparison.differing.push(differing),
                },
            }
        }
        let only_right = theirs.keys().filter(|name| !ours.contains_key(*name));
        comparison.only_right = only_right.map(|name| &**name).collect();
        comparison
    }
}

impl<'a> Differing<'a> {
    fn of(left: &'a Service, right: &Service) -> Option<Self> {
        let lacking = |all: &Service, of: &Service| {
            let lacks = |i: &&Arc<Instance>| all.instances.get(i.socket()).is_none();
            let lacking = of.instances.iter().filter(lacks);
            lacking
                .map(|i| i.socket().into())
                .collect::<Vec<SocketAddr>>()
        };
        let changed = left.instances.iter().filter_map(|instance| {
            let what = unlike(instance, right.instances.get(instance.socket())?);
            (!what.is_empty()).then(|| Changed {
                instance: instance.socket().into(),
                what,
            })
        });
        let differing = Self {
            service: &left.name,
            only_left: lacking(right, left),
            only_right: lacking(left, right),
            changed: changed.collect(),
        };
        let Self {
            only_left,
            only_right,
            changed,
            ..
        } = &differing;
        let same = only_left.is_empty() && only_right.is_empty() && changed.is_empty();
        (!same).then_some(differing)
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
                }],
            })
        );
    }
}
