//! Dubbo at interface level: all of a provider is in its znode's name, a URL that is encoded as a whole.
//!
//! It refuses to read the data (the writer's own address, or nothing) and what stands beside
//! `providers`: rules, routes and consumers are no providers, wherever they turn up. Invariant: one URL is one
//! instance, of the interface itself or of one group and version of it. The protocol is told in the
//! metadata; an interface that is exported over several has instances of all of them. Source: Dubbo's
//! `URL`, `URLStrParser`, `AbstractLoadBalance` (weight and warm-up), `UrlUtils` (`enabled`) and
//! `RegistryDirectory` (`disabled`). dubbo-go writes times and weights its own way, see [`go`].

mod go;
mod url;

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    Format, PAYLOAD_MAX, Znode, field,
    host::{host, socket},
    json::missing,
};
use crate::{
    model::{Health, Weight},
    registry::{
        reason::{Reason, quoted},
        registration::{Decoded, Registration, WarmUp},
    },
};

use url::Url;

/// How long a provider takes to become warm where it does not say, in milliseconds.
const WARM_UP: u32 = 600_000;

/// A parameter whose value is longer is no label that anybody chooses instances by.
const VALUE_MAX: usize = 256;

/// Parameters that say nothing by which to choose an instance: they are read elsewhere, belong to the
/// process or to Dubbo's own settings, or (`token`) are secret.
const UNTOLD: [&str; 26] = [
    "anyhost",
    "background",
    "bind.ip",
    "bind.port",
    "category",
    "check",
    "deprecated",
    "disabled",
    "dubbo",
    "dynamic",
    "enabled",
    "executor-management-mode",
    "file-cache",
    "generic",
    "interface",
    "metadata-type",
    "methods",
    "pid",
    "qos.enable",
    "register-mode",
    "service-name-mapping",
    "side",
    "timestamp",
    "token",
    "warmup",
    "weight",
];

#[derive(Debug)]
pub(super) struct Dubbo;

impl Format for Dubbo {
    fn name(&self) -> &'static str {
        "dubbo"
    }

    /// A name that is a URL, as no other format has.
    fn recognises(&self, znode: &Znode<'_>) -> bool {
        url::is_encoded(znode.name)
    }

    fn decode(&self, znode: &Znode<'_>) -> Result<Registration, Reason> {
        if znode.name.len() > PAYLOAD_MAX {
            let len = znode.name.len();
            let reason = format!("name has {len} bytes; at most {PAYLOAD_MAX} are read");
            return Err(Reason::new(reason));
        }
        let url = Url::decode(znode.name)?;
        refuse_no_provider(&url)?;
        let host = host(&url.host)?;
        let port = match url.port.as_deref() {
            Some(port) => field::port("port", &Value::from(port))?,
            None => return Err(missing("port", "register one of 1..=65535")),
        };
        Ok(Registration::Instances(vec![Decoded {
            part: part(&url),
            id: Some(socket(&host, port)),
            host,
            port,
            weight: weight(&url)?,
            warm_up: if is_dubbo_go(&url) {
                go::warm_up(url.get("timestamp"), url.get("warmup"))
            } else {
                warm_up(url.get("timestamp"), url.get("warmup"))
            },
            zone: field::text("zone", url.value("zone").as_ref())?,
            health: health(
                url.value("enabled").as_ref(),
                url.value("disabled").as_ref(),
            )?,
            metadata: metadata(url),
        }]))
    }
}

/// Everything may stand beside providers, and a rule has an address too.
fn refuse_no_provider(url: &Url) -> Result<(), Reason> {
    let category = url.get("category").unwrap_or("providers");
    let what = match url.scheme.as_str() {
        "override" | "absent" => "a rule",
        "route" | "condition" | "script" | "tag" => "a route",
        "consumer" | "subscribe" => "a consumer",
        "provider" | "admin" | "registry" | "service-discovery-registry" => "no provider",
        "empty" => "the mark of an empty list",
        _ if url.get("side") == Some("consumer") => "a consumer",
        _ if !category.split(',').any(|c| c.trim() == "providers") => "no provider",
        _ => return Ok(()),
    };
    let shown = quoted(&url.scheme);
    let reason = format!("{shown} URL is {what}; only providers are served");
    Err(Reason::new(reason))
}

/// Group and version of an interface; `0.0.0` stands for no version.
fn part(url: &Url) -> Option<String> {
    let version = url.get("version").filter(|v| *v != "0.0.0");
    let parts: Vec<_> = url.get("group").into_iter().chain(version).collect();
    (!parts.is_empty()).then(|| field::folded(parts.join(":")))
}

/// dubbo-go writes 0 where no weight was set, and its own settings take 0 for none.
fn weight(url: &Url) -> Result<Weight, Reason> {
    let weight = field::weight(url.value("weight").as_ref())?;
    let is_unset = weight == Weight::DRAIN && is_dubbo_go(url);
    Ok(if is_unset { Weight::default() } else { weight })
}

fn is_dubbo_go(url: &Url) -> bool {
    let release = url.get("release");
    release.is_some_and(|release| release.starts_with("dubbo-golang"))
}

/// None for one that started in an unknown time or wants none. A time that is no number counts as
/// none: Dubbo's clients fall back as well.
pub(super) fn warm_up(timestamp: Option<&str>, warm_up: Option<&str>) -> Option<WarmUp> {
    let number = |text: Option<&str>| text.and_then(|text| text.trim().parse::<i64>().ok());
    let since = number(timestamp).filter(|since| *since > 0)?;
    let lasts = number(warm_up).map_or(WARM_UP, |ms| u32::try_from(ms.max(0)).unwrap_or(u32::MAX));
    (lasts > 0).then_some(WarmUp { since, lasts })
}

/// Both have to let it be served: Dubbo's registries leave out what is not enabled, its directories what
/// is disabled.
pub(super) fn health(enabled: Option<&Value>, disabled: Option<&Value>) -> Result<Health, Reason> {
    let said = disabled.is_some_and(|disabled| !field::is_blank(disabled));
    Ok(if said && field::flag("disabled", disabled)? {
        Health::Disabled("disabled is true".into())
    } else if !field::flag("enabled", enabled)? {
        Health::Disabled("enabled is false".into())
    } else {
        Health::Healthy
    })
}

fn metadata(url: Url) -> BTreeMap<String, String> {
    let methods = url.get("methods").unwrap_or_default();
    let of_method = |key: &str| {
        key.split_once('.').is_some_and(|(method, _)| {
            // dubbo-go writes `methods.NAME.` before the key.
            method == "methods" || methods.split(',').any(|m| m == method)
        })
    };
    let told = |key: &str, value: &str| {
        !UNTOLD.contains(&key) && value.len() <= VALUE_MAX && !of_method(key)
    };
    let mut metadata: BTreeMap<String, String> = url
        .parameters
        .iter()
        .filter(|(key, value)| told(key, value))
        .map(|(key, value)| (field::folded(key.clone()), field::folded(value.clone())))
        .collect();
    metadata.insert("protocol".to_owned(), field::folded(url.scheme.clone()));
    // A REST provider may have a path of its own before its interface's.
    if url
        .get("interface")
        .is_some_and(|interface| interface != url.path)
    {
        metadata.insert("path".to_owned(), field::folded(url.path));
    }
    metadata
}
