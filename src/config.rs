//! The configuration: one YAML file, flags over it, defaults under both.
//!
//! It refuses to know what the values are for: it hands out plain ones that were checked. It reads
//! once, at the start. Invariant: either every value is usable, or all problems are told at once,
//! each with its place, what is wrong and what to write instead; no text makes it panic.

mod check;
mod document;
mod problem;
mod safety;
pub mod value;

use std::{collections::BTreeMap, fmt::Display, fs, net::SocketAddr, path::Path, time::Duration};

use serde::{Serialize, Serializer};

use self::check::Checker;
pub use self::{
    problem::{Place, Problem, Problems},
    safety::{Guard, State},
};
pub use crate::registry::shape::Keys;
use crate::{
    registry::{
        Layout, Shape,
        format::FormatChoice,
        shape::{self, Glob},
    },
    translate,
    zookeeper::Security,
};

/// Over any sensible configuration, and short enough to be searched for each problem's line.
const FILE_LIMIT: u64 = 1 << 20;

/// Everything that can be set. Prints as the YAML that it would be read from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// One at least.
    pub registries: Vec<Registry>,
    pub dns: Dns,
    pub xds: Xds,
    pub admin: Admin,
    pub mesh: Mesh,
    pub guard: Guard,
    pub state: State,
}

/// A tree of znodes to mirror.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Registry {
    /// Names it in metrics and in the admin API.
    pub name: String,
    /// `host:port[,host:port…][/chroot]`.
    pub connect: String,
    pub root: String,
    /// Where services and instances stand; what the format usually has if not set.
    #[serde(serialize_with = "optional", skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
    #[serde(serialize_with = "format")]
    pub format: FormatChoice,
    #[serde(serialize_with = "duration")]
    pub session_timeout: Duration,
    /// `auth` and `tls`.
    #[serde(flatten)]
    pub security: Security,
    /// Among registries with the same service: instances of a higher number are for failing over to.
    pub priority: u8,
    /// Nothing is served before it was read once.
    pub required: bool,
    /// Instances whose znodes were not written for that long are not served.
    #[serde(
        serialize_with = "optional_duration",
        skip_serializing_if = "Option::is_none"
    )]
    pub ttl: Option<Duration>,
    pub services: Services,
    pub instances: Instances,
}

/// Which services are served, and under which names. In patterns `*` stands for any text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Services {
    /// All if empty.
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    /// The first that fits counts.
    pub rename: Vec<Rename>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rename {
    pub from: String,
    pub to: String,
}

/// Which instances are served, and which keys of their metadata mean something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Instances {
    /// All if empty.
    pub networks: Vec<String>,
    /// Patterns that the values of these keys fit.
    pub metadata: BTreeMap<String, String>,
    pub keys: Keys,
}

impl Registry {
    /// What is made of the registrations.
    pub fn shape(&self) -> Shape {
        let globs = |texts: &[String]| texts.iter().map(Glob::new).collect();
        let Services {
            include,
            exclude,
            rename,
        } = &self.services;
        let metadata = self.instances.metadata.iter();
        Shape {
            include: globs(include),
            exclude: globs(exclude),
            rename: (rename.iter())
                .filter_map(|rename| shape::Rename::new(&rename.from, &rename.to))
                .collect(),
            networks: (self.instances.networks.iter())
                .filter_map(|network| network.parse().ok())
                .collect(),
            metadata: metadata
                .map(|(key, glob)| (key.clone(), Glob::new(glob)))
                .collect(),
            keys: self.instances.keys.clone(),
        }
    }
}

/// How host names in registrations are followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Dns {
    #[serde(serialize_with = "duration")]
    pub refresh: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Xds {
    pub listen: SocketAddr,
    pub max_streams: usize,
    /// Names that one stream subscribes to.
    pub max_names: usize,
    pub max_request_bytes: usize,
    pub new_streams_per_second: u32,
    #[serde(serialize_with = "duration")]
    pub max_stream_age: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Admin {
    pub listen: SocketAddr,
    /// Hosts that requests may name besides loopback names and the address itself.
    pub hosts: Vec<String>,
}

/// What is rendered for clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mesh {
    /// Where sidecars listen for outbound HTTP.
    pub outbound_listen: SocketAddr,
    /// A service answers to `NAME` and `NAME.SUFFIX`.
    pub domain_suffix: String,
    /// Sidecars start empty and learn of a service at its first request, unless they say otherwise.
    pub on_demand: bool,
    /// Sidecars take the instances of a service of more than these one by one; 0 for no service.
    pub endpoint_increments_above: usize,
    /// After how long a service without instances is no longer rendered; 0 for never.
    #[serde(serialize_with = "duration")]
    pub empty_services: Duration,
    pub http: Http,
    pub load_balancing: LoadBalancing,
}

/// How sidecars treat HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Http {
    pub max_headers: u32,
    pub max_header_kib: u32,
    pub preserve_case: bool,
    /// Empty for none.
    pub default_host: String,
    #[serde(serialize_with = "duration")]
    pub upstream_idle_timeout: Duration,
}

impl Default for Http {
    fn default() -> Self {
        let http = translate::Http::default();
        Self {
            max_headers: http.max_headers,
            max_header_kib: http.max_header_kib,
            preserve_case: http.preserve_case,
            default_host: http.host_of_http10.to_string(),
            upstream_idle_timeout: http.upstream_idle,
        }
    }
}

impl Http {
    pub fn translated(&self) -> translate::Http {
        translate::Http {
            max_headers: self.max_headers,
            max_header_kib: self.max_header_kib,
            preserve_case: self.preserve_case,
            host_of_http10: self.default_host.as_str().into(),
            upstream_idle: self.upstream_idle_timeout,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum LoadBalancing {
    #[default]
    WeightedRandom,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            name: "main".to_owned(),
            connect: "127.0.0.1:2181".to_owned(),
            root: "/services".to_owned(),
            layout: None,
            format: FormatChoice::Auto,
            session_timeout: Duration::from_secs(10),
            security: Security::default(),
            priority: 0,
            required: true,
            ttl: None,
            services: Services::default(),
            instances: Instances::default(),
        }
    }
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            refresh: Duration::from_secs(30),
        }
    }
}

impl Default for Xds {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 15010)),
            max_streams: 20_000,
            max_names: 100_000,
            max_request_bytes: 64 << 20,
            new_streams_per_second: 4_000,
            max_stream_age: Duration::from_secs(1800),
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 15014)),
            hosts: Vec::new(),
        }
    }
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            outbound_listen: SocketAddr::from(([127, 0, 0, 1], 15001)),
            domain_suffix: "mesh".to_owned(),
            on_demand: false,
            endpoint_increments_above: 0,
            empty_services: Duration::from_secs(3600),
            http: Http::default(),
            load_balancing: LoadBalancing::default(),
        }
    }
}

/// What the command line sets; it wins over the file.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    pub zookeeper: Option<String>,
    pub root: Option<String>,
    pub xds_listen: Option<String>,
    pub admin_listen: Option<String>,
}

/// Reads `file`, if one is named, and lays the flags over it.
pub fn load(file: Option<&Path>, flags: &Flags) -> Result<Config, Problems> {
    let Some(file) = file else {
        return resolve(None, flags);
    };
    let name = file.display().to_string();
    let text = read(file).map_err(|message| Problem {
        place: Place::File(name.clone()),
        key: String::new(),
        message,
    })?;
    resolve(Some((&name, &text)), flags)
}

/// As [`load`], of a `(name, text)` that was read already.
pub fn resolve(file: Option<(&str, &str)>, flags: &Flags) -> Result<Config, Problems> {
    let (name, text) = file.unwrap_or_default();
    let mut checker = Checker::new(name, text);
    let config = checker.config();
    checker.finish(config, flags)
}

fn read(file: &Path) -> Result<String, String> {
    let length = fs::metadata(file)
        .map_err(|error| format!("cannot be read: {error}"))?
        .len();
    if length > FILE_LIMIT {
        return Err(format!(
            "has {length} bytes, over the limit of {FILE_LIMIT}; is it a configuration?"
        ));
    }
    let bytes = fs::read(file).map_err(|error| format!("cannot be read: {error}"))?;
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.split(|byte| *byte == b'\n').count();
        format!("is no UTF-8 text: line {line} holds other bytes; save it as UTF-8")
    })
}

impl Config {
    /// Reads every password and certificate that is named, once; all that cannot be used.
    pub fn check_files(&self) -> Result<(), Problems> {
        let mut problems = Vec::new();
        for (index, registry) in self.registries.iter().enumerate() {
            let unusable = registry.security.check().err().unwrap_or_default();
            problems.extend(unusable.into_iter().map(|unusable| Problem {
                place: Place::Registry(registry.name.clone()),
                key: format!("registries[{index}].{}", unusable.key),
                message: unusable.message,
            }));
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Problems(problems))
        }
    }

    /// The YAML that reads back as this.
    pub fn to_yaml(&self) -> String {
        serde_yaml::to_string(self).unwrap_or_default()
    }
}

/// By reference because serde asks so.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn format<S: Serializer>(format: &FormatChoice, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(format)
}

/// By reference because serde asks so.
#[allow(clippy::ref_option)]
fn optional<S: Serializer>(value: &Option<impl Display>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

/// By reference because serde asks so.
#[allow(clippy::ref_option)]
fn optional_duration<S: Serializer>(
    value: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    optional(&value.map(value::duration_text), serializer)
}

fn duration<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value::duration_text(*duration))
}

#[cfg(test)]
mod tests;
