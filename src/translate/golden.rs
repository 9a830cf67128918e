//! Golden pairs: `testdata/CASE.in.yaml` holds services, `CASE.out.yaml` every resource they render
//! to, with its version.
//!
//! `MESHKEEPER_BLESS=1` rewrites the `.out.yaml` files; read the difference before it is committed.
//! It refuses where a body changed under an unchanged version: two releases would then serve
//! different content as the same, so raise [`RENDERING`] first.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{rendering::RENDERING, tests::*, *};
use crate::{
    model::{Health, Instance, Weight},
    resource::json::message_json,
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    #[serde(default = "default_listen")]
    outbound_listen: SocketAddr,
    #[serde(default = "default_suffix")]
    domain_suffix: String,
    #[serde(default)]
    increments_above: usize,
    /// Whether registries have ranks.
    #[serde(default)]
    ranked: bool,
    services: BTreeMap<String, Vec<CaseInstance>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseInstance {
    at: SocketAddr,
    #[serde(default = "default_weight")]
    weight: u32,
    zone: Option<String>,
    #[serde(default)]
    health: CaseHealth,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    #[serde(default)]
    priority: u8,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
enum CaseHealth {
    #[default]
    Healthy,
    Unhealthy,
    Disabled,
}

fn default_listen() -> SocketAddr {
    config().outbound_listen
}

fn default_suffix() -> String {
    config().domain_suffix
}

fn default_weight() -> u32 {
    Weight::default().get()
}

impl CaseInstance {
    fn instance(&self) -> Instance {
        Instance {
            zone: self.zone.as_deref().map(Arc::from),
            health: match self.health {
                CaseHealth::Healthy => Health::Healthy,
                CaseHealth::Unhealthy => Health::Unhealthy,
                CaseHealth::Disabled => Health::Disabled("switched off".into()),
            },
            metadata: self.metadata.clone().into(),
            priority: self.priority,
            ..instance(&self.at.to_string(), self.weight)
        }
    }
}

/// Kind of client → type → name → resource.
type Rendering = BTreeMap<String, BTreeMap<String, BTreeMap<String, Shown>>>;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Shown {
    version: String,
    body: Value,
}

fn render_case(case: &Case) -> Rendering {
    let services: Vec<_> = case
        .services
        .iter()
        .map(|(name, instances)| service(name, instances.iter().map(CaseInstance::instance)))
        .collect();
    let mut translation = Translation::new(Config {
        outbound_listen: case.outbound_listen,
        domain_suffix: case.domain_suffix.clone(),
        increments_above: case.increments_above,
        ranked: case.ranked,
        http: Arc::default(),
    });
    let mut rendering = Rendering::new();
    for update in translation.apply(changes(&services)) {
        let types = rendering.entry(update.edition.as_str().into()).or_default();
        for resource in update.put {
            let named = types.entry(resource.kind.as_str().into()).or_default();
            let shown = Shown {
                version: resource.version.to_string(),
                body: message_json(resource.kind.type_url(), &resource.body()).unwrap(),
            };
            let twice = named.insert(resource.name.to_string(), shown);
            assert!(
                twice.is_none(),
                "{:?} {} twice",
                resource.kind,
                resource.name
            );
        }
    }
    rendering
}

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/translate/testdata");
    let entries = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut cases: Vec<_> = entries
        .filter(|path| path.to_string_lossy().ends_with(".in.yaml"))
        .collect();
    cases.sort();
    assert!(!cases.is_empty());
    cases
}

fn out_file(case: &Path) -> PathBuf {
    PathBuf::from(case.to_string_lossy().replace(".in.yaml", ".out.yaml"))
}

/// Panics where a body changed and its version did not.
fn refuse_stale_versions(before: &Rendering, after: &Rendering, case: &Path) {
    for (client, types) in after {
        for (kind, named) in types {
            for (name, shown) in named {
                let old = before.get(client).and_then(|c| c.get(kind)?.get(name));
                assert!(
                    old.is_none_or(|old| old.version != shown.version || old.body == shown.body),
                    "{}: {client} {kind} {name} changed under version {}; raise RENDERING ({RENDERING})",
                    case.display(),
                    shown.version,
                );
            }
        }
    }
}

#[test]
fn every_case_renders_to_what_stands_beside_it() {
    let bless = env::var_os("MESHKEEPER_BLESS").is_some();
    for path in cases() {
        let case = serde_yaml::from_str(&fs::read_to_string(&path).unwrap())
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let found = render_case(&case);
        let out = out_file(&path);
        let expected = fs::read_to_string(&out).unwrap_or_else(|_| "{}".into());
        let expected: Rendering = serde_yaml::from_str(&expected).unwrap();
        refuse_stale_versions(&expected, &found, &path);
        if bless {
            fs::write(&out, serde_yaml::to_string(&found).unwrap()).unwrap();
        } else {
            assert_eq!(found, expected, "{}", path.display());
        }
    }
}

#[test]
fn a_body_that_changes_under_its_version_is_refused() {
    let case: Case = serde_yaml::from_str("services: {orders: [{at: '10.0.0.1:80'}]}").unwrap();
    let after = render_case(&case);
    let mut before = render_case(&case);
    let shown = before
        .get_mut("envoy")
        .and_then(|types| types.get_mut("clusters")?.get_mut("orders"))
        .unwrap();
    shown.body["connectTimeout"] = "6s".into();
    let refused = std::panic::catch_unwind(|| {
        refuse_stale_versions(&before, &after, Path::new("case"));
    });
    assert!(refused.is_err());
}
