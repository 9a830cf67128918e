//! What is held back of mass deregistrations, and its release: the one thing that can be changed here.
//!
//! It refuses to know how the guard works. Only a program on this machine may release: see [`allowed`].
//! Browsers lend their user's place to every page, so they may not at all.

use std::net::SocketAddr;

use axum::{
    extract::{Query, State},
    http::{
        HeaderMap, StatusCode,
        header::{HOST, ORIGIN},
    },
};
use prost_types::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Sources,
    api::{Answer, Parameters, Refusal, bad_query, respond, write_list},
    host,
};
use crate::registry::{
    Mirrored, Picture,
    guard::{Held, Hold},
};

/// Both ends of a connection, as far as they are known.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub own: Option<SocketAddr>,
    pub peer: Option<SocketAddr>,
}

/// Whether a request of that kind may change anything, by whom it is from.
///
/// Every browser names the page's origin in what is not read, and newer ones say what it is for; a name of
/// somebody else's that leads to this machine is no reason to trust who uses it.
pub fn allowed(ends: Ends, headers: &HeaderMap) -> Result<(), Refusal> {
    let refuse =
        |error: &str, remedy: &str| Err(Refusal::new(StatusCode::FORBIDDEN, error, remedy));
    let local =
        |end: Option<SocketAddr>| end.is_some_and(|end| end.ip().to_canonical().is_loopback());
    if !local(ends.peer) || !local(ends.own) {
        return refuse(
            "only a program on this machine may change anything",
            "run `meshkeeper release` where the server runs, as in `kubectl exec` or `docker exec`",
        );
    }
    if headers.contains_key(ORIGIN) || headers.contains_key("sec-fetch-site") {
        return refuse(
            "browsers may not change anything",
            "use `meshkeeper release` or `curl -X POST`",
        );
    }
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    if host.is_none_or(|host| !host::is_here(host)) {
        return refuse(
            "the request is for another host",
            "ask for 127.0.0.1 or localhost",
        );
    }
    Ok(())
}

pub async fn holds(State(sources): State<Sources>) -> Answer {
    let picture = sources.registry.borrow().clone();
    respond(move |body| {
        let epoch = picture.epoch;
        let views = (picture.registries.iter()).map(|mirrored| RegistryView::of(mirrored, epoch));
        write_list(body, views)
    })
    .await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseQuery {
    registry: Option<String>,
    service: Option<String>,
}

pub async fn release(State(sources): State<Sources>, query: Parameters<ReleaseQuery>) -> Answer {
    let Query(ReleaseQuery { registry, service }) = query.map_err(|rejection| {
        bad_query(
            &rejection,
            "the parameters are `service` and `registry`, both may be left out",
        )
    })?;
    check(
        &sources.registry.borrow(),
        registry.as_deref(),
        service.as_deref(),
    )?;
    let released = sources.operator.release(registry, service).await;
    let released = released.ok_or_else(|| {
        let remedy = "look into the log: the server is about to end";
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "nobody takes orders any more",
            remedy,
        )
    })?;
    respond(move |body| serde_json::to_writer(body, &json!({ "released": released }))).await
}

/// Who names something means it to be there.
fn check(picture: &Picture, registry: Option<&str>, service: Option<&str>) -> Result<(), Refusal> {
    let named = |mirrored: &&Mirrored| registry.is_none_or(|name| *mirrored.name == *name);
    let missing = |error| {
        let remedy = "`meshkeeper holds` lists what is held";
        Err(Refusal::new(StatusCode::NOT_FOUND, error, remedy))
    };
    let mut registries = picture.registries.iter().filter(named).peekable();
    if registries.peek().is_none() {
        return missing(format!(
            "there is no registry `{}`",
            registry.unwrap_or_default()
        ));
    }
    match service {
        Some(name) if !registries.any(|of| of.view.holds.services.contains_key(name)) => {
            missing(format!("nothing is held of `{name}`"))
        }
        _ => Ok(()),
    }
}

#[derive(Serialize)]
struct RegistryView<'a> {
    registry: &'a str,
    /// When the registry lost too much as a whole, and how many instances it had.
    since: Option<String>,
    were: Option<usize>,
    held: usize,
    services: Vec<HoldView<'a>>,
}

#[derive(Serialize)]
struct HoldView<'a> {
    name: &'a str,
    since: String,
    were: usize,
    instances: Vec<HeldView<'a>>,
}

#[derive(Serialize)]
struct HeldView<'a> {
    id: &'a str,
    address: String,
    port: u16,
    path: String,
    since: String,
}

impl<'a> RegistryView<'a> {
    /// The wall clock shows `epoch` beyond the clock that times are measured by.
    fn of(mirrored: &'a Mirrored, epoch: i64) -> Self {
        let holds = &mirrored.view.holds;
        Self {
            registry: &mirrored.name,
            since: holds.trip.map(|trip| day(trip.since + epoch)),
            were: holds.trip.map(|trip| trip.target),
            held: holds.held(),
            services: holds
                .services
                .values()
                .map(|hold| HoldView::of(hold, epoch))
                .collect(),
        }
    }
}

impl<'a> HoldView<'a> {
    fn of(hold: &'a Hold, epoch: i64) -> Self {
        Self {
            name: &hold.service.name,
            since: day(hold.since + epoch),
            were: hold.target,
            instances: (hold.held.values())
                .map(|held| HeldView::of(held, epoch))
                .collect(),
        }
    }
}

impl<'a> HeldView<'a> {
    fn of(held: &'a Held, epoch: i64) -> Self {
        let instance = &held.instance;
        Self {
            id: instance.id(),
            address: instance.address.to_string(),
            port: instance.port,
            path: instance.origin.path(),
            since: day(held.since + epoch),
        }
    }
}

/// As RFC 3339 writes it.
pub(super) fn day(time: i64) -> String {
    Timestamp {
        seconds: time.div_euclid(1_000),
        nanos: i32::try_from(time.rem_euclid(1_000) * 1_000_000).unwrap_or_default(),
    }
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(own: &str, peer: &str, headers: &[(&'static str, &str)]) -> bool {
        let ends = Ends {
            own: own.parse().ok(),
            peer: peer.parse().ok(),
        };
        let headers = headers.iter().map(|(name, value)| {
            let name = axum::http::HeaderName::from_static(name);
            (name, value.parse().unwrap())
        });
        allowed(ends, &headers.collect()).is_ok()
    }

    #[test]
    fn a_program_on_this_machine_may_change_something() {
        for (own, host) in [
            ("127.0.0.1:15014", "127.0.0.1:15014"),
            ("127.0.0.1:15014", "LocalHost"),
            ("[::1]:15014", "[::1]:15014"),
            ("[::ffff:127.0.0.1]:15014", "127.0.0.1"),
        ] {
            assert!(asked(own, own, &[("host", host)]), "{host}");
        }
    }

    #[test]
    fn neither_others_nor_browsers_nor_names_that_lead_here_may() {
        let here = "127.0.0.1:15014";
        for (own, peer) in [(here, "10.0.0.7:4"), ("10.0.0.1:15014", here), (here, "?")] {
            assert!(!asked(own, peer, &[("host", here)]), "{own} {peer}");
        }
        for headers in [
            &[("host", here), ("origin", "http://127.0.0.1:15014")][..],
            &[("host", here), ("origin", "null")],
            &[("host", here), ("sec-fetch-site", "same-origin")],
            &[("host", "evil.example:15014")],
            &[("host", "127.0.0.1.evil.example")],
            &[("host", "localhost.evil.example")],
            &[("host", "10.0.0.7")],
            &[],
        ] {
            assert!(!asked(here, here, headers), "{headers:?}");
        }
    }

    #[test]
    fn a_time_is_told_as_a_day() {
        assert_eq!(day(1_700_000_000_250), "2023-11-14T22:13:20.250Z");
    }
}
