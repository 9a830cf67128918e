//! Routes: a virtual host for each service in a sidecar's one route configuration, and a route
//! configuration of its own for each gRPC target.
//!
//! It refuses to know instances. [`VirtualHosts`] keeps every virtual host encoded, since repeated
//! fields of a message may simply follow one another: a change encodes what it touches and joins the
//! rest. Invariant: no domain stands in it twice. A service's own host always wins; its second name
//! (`orders.mesh`) gives way to a service that is called so. Nothing else can collide, because hosts
//! differ and one suffix is added to all. Source: `route.proto`, gRFC A27.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use envoy_types::pb::{
    envoy::{
        config::route::v3::{
            NonForwardingAction, RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch,
            VirtualHost,
            retry_policy::{RetryBackOff, RetryHostPredicate, retry_host_predicate},
            route, route_action, route_match,
        },
        extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate,
    },
    google::protobuf::{Duration, UInt32Value},
};
use prost::Message;

use super::{
    Update,
    by_name::Failing,
    name::{self, OUTBOUND, Suffix},
    rendering::{RENDERING, Spec, any, render},
};
use crate::{
    model::Service,
    resource::{Edition, Resource, ResourceType, Version, put_field},
};

/// `RouteConfiguration.virtual_hosts`
const VIRTUAL_HOSTS_FIELD: u32 = 2;

/// The virtual hosts of all services, encoded.
#[derive(Debug)]
pub(super) struct VirtualHosts {
    suffix: Suffix,
    /// By host name.
    hosts: BTreeMap<String, Host>,
    /// The host names behind the aliases.
    aliases: BTreeMap<String, String>,
    /// The host names to look at before the next rendering.
    stale: BTreeSet<String>,
    /// Domains that were answered to and may be no more.
    gone: BTreeSet<String>,
    version: Option<Version>,
}

#[derive(Debug)]
struct Host {
    service: Arc<str>,
    alias: Option<String>,
    fragment: Option<Fragment>,
}

/// A virtual host as one `virtual_hosts` field, key and length with it.
#[derive(Debug)]
struct Fragment {
    version: Version,
    field: Arc<[u8]>,
    domains: Vec<String>,
}

impl VirtualHosts {
    pub fn new(suffix: Suffix) -> Self {
        Self {
            suffix,
            hosts: BTreeMap::new(),
            aliases: BTreeMap::new(),
            stale: BTreeSet::new(),
            gone: BTreeSet::new(),
            version: None,
        }
    }

    /// A service answers to its host, and to its own name where that is nearly one.
    pub fn insert(&mut self, service: &Service) {
        let host = &*service.host;
        self.touch(host);
        let alias = name::alias(&service.name, host);
        if let Some(alias) = &alias {
            self.aliases.insert(alias.clone(), host.to_owned());
            self.touch(alias);
        }
        let entry = Host {
            service: service.name.clone(),
            alias,
            fragment: None,
        };
        let before = self.hosts.insert(host.to_owned(), entry);
        self.forget(before);
    }

    pub fn remove(&mut self, host: &str) {
        self.touch(host);
        let before = self.hosts.remove(host);
        if let Some(alias) = before.as_ref().and_then(|host| host.alias.clone()) {
            self.aliases.remove(&alias);
            self.touch(&alias);
        }
        self.forget(before);
    }

    fn forget(&mut self, before: Option<Host>) {
        let fragment = before.and_then(|host| host.fragment);
        self.gone
            .extend(fragment.into_iter().flat_map(|fragment| fragment.domains));
    }

    /// What comes or goes takes or frees the second name of at most one other service.
    fn touch(&mut self, domain: &str) {
        for domain in [Some(domain), self.suffix.strip(domain)]
            .into_iter()
            .flatten()
        {
            let host = self.aliases.get(domain).map_or(domain, String::as_str);
            self.stale.insert(host.to_owned());
        }
    }

    /// The second name of a host or an alias, unless a service is called so.
    fn second(&self, domain: &str) -> Option<String> {
        let second = self.suffix.append(domain)?;
        let taken = self.hosts.contains_key(&second) || self.aliases.contains_key(&second);
        (!taken).then_some(second)
    }

    /// The virtual hosts that changed, one by one, and the route configuration that holds all of
    /// them, unless it is the one that was rendered last.
    pub fn render(&mut self, update: &mut Update) {
        if self.version.is_some() && self.stale.is_empty() {
            return;
        }
        let first = update.put.len();
        for host in std::mem::take(&mut self.stale) {
            self.refresh(&host, &mut update.put);
        }
        let there: BTreeSet<_> = update.put[first..].iter().map(|r| r.name.clone()).collect();
        let gone = std::mem::take(&mut self.gone).into_iter();
        let gone = gone
            .map(|domain| name::virtual_host(&domain))
            .filter(|n| !there.contains(n));
        update
            .remove
            .extend(gone.map(|name| (ResourceType::VirtualHost, name)));
        let fragments = self
            .hosts
            .values()
            .filter_map(|host| host.fragment.as_ref());
        let (versions, fields) = fragments.map(|f| (f.version, f.field.clone())).unzip();
        let routes = OutboundRoutes { versions, fields };
        update.put.extend(render(routes, &mut self.version));
    }

    fn refresh(&mut self, host: &str, put: &mut Vec<Arc<Resource>>) {
        let alias = self.hosts.get(host).and_then(|entry| entry.alias.clone());
        let names = std::iter::once(host.to_owned()).chain(alias);
        let domains: Vec<_> = names
            .flat_map(|name| {
                let second = self.second(&name);
                std::iter::once(name).chain(second)
            })
            .collect();
        let Some(entry) = self.hosts.get_mut(host) else {
            return;
        };
        let service = &entry.service;
        let alone = domains.iter().filter_map(|domain| {
            let (service, name) = (service.clone(), name::virtual_host(domain));
            render(DomainHost { service, name }, &mut None)
        });
        put.extend(alone);
        let fragment = ServiceHost { service, domains }.render();
        let before = entry.fragment.replace(fragment);
        self.gone
            .extend(before.into_iter().flat_map(|fragment| fragment.domains));
    }
}

/// A sidecar's route configuration.
#[derive(Debug)]
struct OutboundRoutes {
    versions: Vec<Version>,
    /// What the versions stand for.
    fields: Vec<Arc<[u8]>>,
}

impl std::hash::Hash for OutboundRoutes {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.versions.hash(state);
    }
}

impl Spec for OutboundRoutes {
    const EDITION: Edition = Edition::Envoy;
    const KIND: ResourceType = ResourceType::Route;

    fn name(&self) -> Arc<str> {
        OUTBOUND.into()
    }

    fn body(&self) -> Vec<u8> {
        let head = RouteConfiguration {
            name: OUTBOUND.to_owned(),
            ignore_port_in_host_matching: true,
            ..Default::default()
        };
        let fields: usize = self.fields.iter().map(|field| field.len()).sum();
        let mut body = Vec::with_capacity(head.encoded_len() + fields);
        body.extend(head.encode_to_vec());
        for field in &self.fields {
            body.extend_from_slice(field);
        }
        body
    }
}

/// The virtual host of one service.
#[derive(Debug, Hash)]
struct ServiceHost<'a> {
    service: &'a str,
    domains: Vec<String>,
}

impl ServiceHost<'_> {
    /// The virtual host within the route configuration.
    fn render(self) -> Fragment {
        let version = Version::of(&(RENDERING, &self));
        let domains = self.domains;
        let host = virtual_host(self.service, self.service, domains.clone()).encode_to_vec();
        let mut field = Vec::with_capacity(host.len() + 4);
        put_field(&mut field, VIRTUAL_HOSTS_FIELD, &host);
        let field = field.into();
        Fragment {
            version,
            field,
            domains,
        }
    }
}

/// One domain of a service, for those who load virtual hosts on demand. Envoy keeps and drops them by
/// their own names, which therefore are those of the resources.
#[derive(Debug)]
struct DomainHost {
    service: Arc<str>,
    name: Arc<str>,
}

impl DomainHost {
    fn domain(&self) -> &str {
        name::domain(&self.name)
    }
}

impl std::hash::Hash for DomainHost {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (&self.service, self.domain()).hash(state);
    }
}

impl Spec for DomainHost {
    const EDITION: Edition = Edition::Envoy;
    const KIND: ResourceType = ResourceType::VirtualHost;

    fn name(&self) -> Arc<str> {
        self.name.clone()
    }

    fn body(&self) -> Vec<u8> {
        let domains = vec![self.domain().to_owned()];
        virtual_host(&self.name, &self.service, domains).encode_to_vec()
    }
}

fn virtual_host(name: &str, service: &str, domains: Vec<String>) -> VirtualHost {
    let action = RouteAction {
        // Time-outs are the callers'.
        timeout: Some(Duration::default()),
        ..to_cluster(service)
    };
    VirtualHost {
        name: name.to_owned(),
        domains,
        routes: vec![everything("/", route::Action::Route(action))],
        retry_policy: Some(retry_where_nothing_was_processed()),
        ..Default::default()
    }
}

/// The route configuration of a gRPC target.
#[derive(Debug, Hash)]
pub(super) struct GrpcRoutes {
    pub name: Arc<str>,
    /// Whether there is an instance that may be called.
    ///
    /// grpc-java goes on calling the last instance when an assignment without any follows, so calls are
    /// routed away from such a service.
    pub callable: bool,
}

impl Spec for GrpcRoutes {
    const EDITION: Edition = Edition::Grpc;
    const KIND: ResourceType = ResourceType::Route;

    fn name(&self) -> Arc<str> {
        self.name.clone()
    }

    fn body(&self) -> Vec<u8> {
        let failing = (!self.callable).then(|| Failing::NoInstances.cluster(&self.name));
        grpc_routes(&self.name, failing.as_deref().unwrap_or(&self.name)).encode_to_vec()
    }
}

/// Routes all calls of a gRPC target to that cluster.
pub(super) fn grpc_routes(name: &str, cluster: &str) -> RouteConfiguration {
    let action = route::Action::Route(to_cluster(cluster));
    everywhere(name, everything("", action))
}

/// Has a gRPC server take every call.
pub(super) fn server_routes() -> RouteConfiguration {
    let action = route::Action::NonForwardingAction(NonForwardingAction {});
    everywhere("inbound", everything("", action))
}

fn everywhere(name: &str, route: Route) -> RouteConfiguration {
    let host = VirtualHost {
        name: name.to_owned(),
        // The target is all that counts; an application may override the authority.
        domains: vec!["*".to_owned()],
        routes: vec![route],
        ..Default::default()
    };
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![host],
        ..Default::default()
    }
}

fn everything(prefix: &str, action: route::Action) -> Route {
    Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(route_match::PathSpecifier::Prefix(prefix.to_owned())),
            ..Default::default()
        }),
        action: Some(action),
        ..Default::default()
    }
}

fn to_cluster(service: &str) -> RouteAction {
    RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(service.to_owned())),
        ..Default::default()
    }
}

/// A dead instance stays registered until its session expires. Requests that it never saw go to another one; what may
/// have been processed is sent twice only where the method is safe (`http`).
fn retry_where_nothing_was_processed() -> RetryPolicy {
    let previous_hosts = RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(any(
            &PreviousHostsPredicate {},
        ))),
    };
    RetryPolicy {
        retry_on: "connect-failure,refused-stream".to_owned(),
        // Long enough for an ejection to take effect, so that the last attempts reach the next priority. Maglev ignores
        // `retry_priority`.
        num_retries: Some(UInt32Value { value: 3 }),
        retry_back_off: Some(RetryBackOff {
            base_interval: Some(milliseconds(100)),
            max_interval: Some(milliseconds(500)),
        }),
        retry_host_predicate: vec![previous_hosts],
        host_selection_retry_max_attempts: 20,
        ..Default::default()
    }
}

fn milliseconds(milliseconds: i32) -> Duration {
    Duration {
        seconds: 0,
        nanos: milliseconds * 1_000_000,
    }
}
