//! Server sets, as Finagle and Aurora write them: members, and vectors of weights for them.
//!
//! A member is `{"serviceEndpoint": {host, port}, "additionalEndpoints": {NAME: {host, port}}, "status":
//! "ALIVE", "shard": 0, "metadata": {…}}`: the service's own instance, and one of each named port. A vector is `{"vector":
//! [{"select": "inet=HOST:PORT" | "member=NAME" | "shard=N", "weight": 1.5}]}`. It refuses to know which members
//! a vector finds, and priorities, which Finagle reads and does not use. Only ALIVE is served, and who
//! says nothing is not alive, as in Finagle. An additional endpoint that cannot be read is left out
//! and harms no other. Source: Finagle's `serverset2` (`Entry`, `Vector`, `ServiceDiscoverer`).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    Format, Znode, field,
    host::host,
    json::{missing, parse},
};
use crate::{
    model::{Health, Weight},
    registry::{
        reason::{Reason, quoted, shown},
        registration::{Decoded, Factor, Host, Registration, Select},
    },
};

const MEMBER: &str = "member_";
const VECTOR: &str = "vector_";

#[derive(Debug)]
pub(super) struct Serverset;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    service_endpoint: Option<Value>,
    additional_endpoints: Option<Value>,
    status: Option<Value>,
    shard: Option<Value>,
    metadata: Option<Value>,
    vector: Option<Value>,
}

impl Format for Serverset {
    fn name(&self) -> &'static str {
        "serverset"
    }

    /// A telling key; or a telling name, unless the keys tell another format.
    fn recognises(&self, znode: &Znode<'_>) -> bool {
        let named = znode.name.starts_with(MEMBER) || znode.name.starts_with(VECTOR);
        znode
            .keys()
            .is_some_and(|keys| keys.serverset || (named && !keys.host && !keys.simple))
    }

    fn decode(&self, znode: &Znode<'_>) -> Result<Registration, Reason> {
        let payload: Payload = parse(znode)?;
        if payload.vector.is_some() || znode.name.starts_with(VECTOR) {
            return vector(payload.vector).map(Registration::Weights);
        }
        member(payload).map(Registration::Instances)
    }
}

fn member(member: Payload) -> Result<Vec<Decoded>, Reason> {
    let shard = shard(member.shard.as_ref())?;
    let health = health(member.status.as_ref())?;
    let metadata = metadata(member.metadata, shard);
    let decoded = |part: Option<String>, (host, port): (Host, u16)| Decoded {
        part,
        id: shard.map(|shard| shard.to_string()),
        host,
        port,
        weight: Weight::default(),
        warm_up: None,
        zone: None,
        health: health.clone(),
        metadata: metadata.clone(),
    };

    let own = match member.service_endpoint {
        Some(value) if !field::is_blank(&value) => Some(endpoint(&value)),
        _ => None,
    };
    let named: Vec<_> = named_endpoints(member.additional_endpoints.as_ref())
        .map(|(name, socket)| decoded(Some(name), socket))
        .collect();
    match own {
        Some(Err(reason)) => Err(reason),
        None if named.is_empty() => Err(missing(
            "serviceEndpoint",
            "register {\"host\": …, \"port\": …}",
        )),
        own => {
            let own = own.and_then(Result::ok).map(|socket| decoded(None, socket));
            Ok(own.into_iter().chain(named).collect())
        }
    }
}

fn endpoint(value: &Value) -> Result<(Host, u16), Reason> {
    let text = field::text("host", value.get("host"))?;
    let text = text.ok_or_else(|| missing("host", "name it in the endpoint"))?;
    let port = value.get("port").filter(|port| !field::is_blank(port));
    let port = port.ok_or_else(|| missing("port", "name it in the endpoint"))?;
    Ok((host(&text)?, field::port("port", port)?))
}

fn named_endpoints(endpoints: Option<&Value>) -> impl Iterator<Item = (String, (Host, u16))> {
    let endpoints = endpoints.and_then(Value::as_object).into_iter().flatten();
    endpoints.filter_map(|(name, value)| {
        let name = field::text("name", Some(&Value::from(name.as_str()))).ok()??;
        Some((name, endpoint(value).ok()?))
    })
}

fn health(status: Option<&Value>) -> Result<Health, Reason> {
    let status = field::text("status", status)?;
    Ok(match status.as_deref() {
        Some(status) if status.eq_ignore_ascii_case("ALIVE") => Health::Healthy,
        Some(status) => Health::Disabled(format!("status is {}", shown(status)).into()),
        None => Health::Disabled("status is missing".into()),
    })
}

/// The number of the instance in its job. One that is no number is none.
fn shard(value: Option<&Value>) -> Result<Option<i64>, Reason> {
    match value.filter(|value| !field::is_blank(value)) {
        None => Ok(None),
        Some(value) => field::integer(value)
            .map(Some)
            .ok_or_else(|| field::refuse("shard", value, "use a whole number")),
    }
}

fn metadata(metadata: Option<Value>, shard: Option<i64>) -> BTreeMap<String, String> {
    let mut entries = match metadata {
        Some(Value::Object(entries)) => entries,
        _ => Map::new(),
    };
    // What vectors select by, whatever else is called so.
    entries.remove("shard");
    entries.extend(shard.map(|shard| ("shard".to_owned(), shard.into())));
    field::metadata(entries)
}

fn vector(vector: Option<Value>) -> Result<Vec<Factor>, Reason> {
    match vector {
        Some(Value::Array(entries)) => entries
            .iter()
            .filter_map(|e| factor(e).transpose())
            .collect(),
        Some(value) => Err(field::refuse("vector", &value, "use a list")),
        None => Err(missing("vector", "write a list of selections with weights")),
    }
}

/// None for what selects in a way that is not known here: it finds nobody.
fn factor(entry: &Value) -> Result<Option<Factor>, Reason> {
    let Some(text) = entry.get("select").and_then(Value::as_str) else {
        return Ok(None);
    };
    let Some(select) = select(text)? else {
        return Ok(None);
    };
    let weight = match entry.get("weight").filter(|value| !field::is_blank(value)) {
        None => 1.0,
        Some(value) => value
            .as_f64()
            .filter(|weight| weight.is_finite() && *weight >= 0.0)
            .ok_or_else(|| field::refuse("weight", value, "use a number of 0 or more"))?,
    };
    Ok(Some(Factor { select, weight }))
}

fn select(text: &str) -> Result<Option<Select>, Reason> {
    let refuse = || Reason::new(format!("select {} is not valid", quoted(text)));
    Ok(match text.split_once('=') {
        Some(("inet", socket)) => {
            let (name, port) = socket.rsplit_once(':').ok_or_else(refuse)?;
            let port = field::port("port", &Value::from(port))?;
            let host = host(name)?;
            Some(Select::Socket { host, port })
        }
        Some(("member", name)) if !name.is_empty() => Some(Select::Member(name.to_owned())),
        Some(("shard", shard)) => Some(Select::Shard(shard.trim().parse().map_err(|_| refuse())?)),
        _ => None,
    })
}
