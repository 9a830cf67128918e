//! Translates services into xDS resources, for each kind of client.
//!
//! ```text
//! Service ─┬─▶ tally ──▶ maglev ──▶ cluster        NAME for both kinds
//!          ├─▶ endpoint   NAME for both kinds; increments: of a large service each for itself
//!          ├─▶ route      virtual hosts of `outbound` for Envoy, NAME for gRPC
//!          └─▶ listener   `outbound` for Envoy, NAME for gRPC
//!    alias, by_name       gRPC listeners under other names; what a name gets that nothing is registered under
//!    on_demand            `outbound` for sidecars that load services on demand
//! ```
//!
//! Pure. It refuses to know where services come from (ZooKeeper) and who gets the resources
//! (streams). Invariants: a change costs what it touches; equal services render to equal versions
//! whatever came before, save that a Maglev table only grows while its cluster lives; whatever the
//! services are, no client rejects what comes out. Source: `DESIGN.md`'s names and weighted random.

mod alias;
mod by_name;
mod cluster;
mod endpoint;
mod http;
mod increments;
mod listener;
mod maglev;
mod name;
mod on_demand;
mod outliers;
mod rendering;
mod route;
mod tally;
mod wire;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

pub use self::http::Http;
use self::{
    alias::Aliases,
    cluster::{EnvoyCluster, GrpcCluster},
    endpoint::{Localities, envoy_assignment, grpc_assignment},
    increments::{Large, is_large, member_names},
    listener::{GrpcListener, OutboundListener},
    maglev::TableSize,
    name::Suffix,
    on_demand::{OnDemandListener, OnDemandRoutes},
    rendering::{render, render_later},
    route::{GrpcRoutes, VirtualHosts},
    tally::Tally,
};
pub use self::{by_name::GrpcNaming, increments::collections_of};
use crate::{
    model::{Service, Touched},
    resource::{Edition, Resource, ResourceType, Version},
};

/// How services show up in the mesh. Requests are spread weighted-randomly; there is no other way yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where sidecars listen for outbound HTTP.
    pub outbound_listen: SocketAddr,
    /// A service answers to `NAME` and `NAME.SUFFIX`; empty for the first alone.
    pub domain_suffix: String,
    /// Sidecars take the instances of a service of more than these one by one; 0 for no service.
    pub increments_above: usize,
    /// Whether instances may have different priorities.
    pub ranked: bool,
    /// How sidecars treat HTTP.
    pub http: Arc<Http>,
}

/// What a change of services means for one edition.
#[derive(Debug, PartialEq, Eq)]
pub struct Update {
    pub edition: Edition,
    /// Appeared or changed.
    pub put: Vec<Arc<Resource>>,
    /// Gone.
    pub remove: Vec<(ResourceType, Arc<str>)>,
}

impl Update {
    fn new(edition: Edition) -> Self {
        Self {
            edition,
            put: Vec::new(),
            remove: Vec::new(),
        }
    }
}

/// The translator, with what it must remember between changes.
#[derive(Debug)]
pub struct Translation {
    config: Config,
    services: BTreeMap<Arc<str>, Rendered>,
    hosts: VirtualHosts,
    aliases: Aliases,
    listener: Option<Version>,
    on_demand: Versions,
}

/// What a service was last rendered to.
#[derive(Debug, Default)]
struct Rendered {
    host: Arc<str>,
    table: TableSize,
    envoy: Versions,
    grpc: Versions,
    localities: Localities,
    /// What those hold who take it one by one, if it is large.
    large: Option<Box<Large>>,
    /// Kept up to date where there are many instances, or endpoints that are told one by one.
    tally: Option<Box<Tally>>,
}

#[derive(Debug, Default)]
struct Versions {
    cluster: Option<Version>,
    endpoints: Option<Version>,
    listener: Option<Version>,
    routes: Option<Version>,
}

impl Translation {
    pub fn new(config: Config) -> Self {
        Self {
            hosts: VirtualHosts::new(Suffix::new(&config.domain_suffix)),
            config,
            services: BTreeMap::new(),
            aliases: Aliases::default(),
            listener: None,
            on_demand: Versions::default(),
        }
    }

    /// The resources that change with these services: each named once, `None` where it is gone, else with
    /// what is another than in the call before.
    ///
    /// The first call, with the whole registry, also yields what there is without any service: a
    /// sidecar's listener and route configuration. There is one update for each edition.
    pub fn apply<'a>(
        &mut self,
        changes: impl IntoIterator<Item = (&'a str, Option<(&'a Arc<Service>, &'a Touched)>)>,
    ) -> Vec<Update> {
        let mut envoy = Update::new(Edition::Envoy);
        let mut grpc = Update::new(Edition::Grpc);
        let mut increments = Update::new(Edition::Increments);
        let mut present = Vec::new();
        for (name, service) in changes {
            match service {
                Some(service) => present.push(service),
                // At once: a name may come back in other case with the same change.
                None => self.remove(name, &mut envoy, &mut grpc, &mut increments),
            }
        }
        for (service, touched) in present {
            let updates = [&mut envoy, &mut grpc, &mut increments];
            self.put(service, touched, updates);
        }
        let address = self.config.outbound_listen;
        let http = self.config.http.clone();
        let listener = render(OutboundListener { address, http }, &mut self.listener);
        envoy.put.extend(listener);
        self.hosts.render(&mut envoy);
        vec![envoy, grpc, self.on_demand(), increments]
    }

    fn on_demand(&mut self) -> Update {
        let mut update = Update::new(Edition::OnDemand);
        let address = self.config.outbound_listen;
        let last = &mut self.on_demand;
        let http = self.config.http.clone();
        let listener = OnDemandListener { address, http };
        update.put.extend(render(listener, &mut last.listener));
        update.put.extend(render(OnDemandRoutes, &mut last.routes));
        update
    }

    fn remove(
        &mut self,
        name: &str,
        envoy: &mut Update,
        grpc: &mut Update,
        increments: &mut Update,
    ) {
        let Some((name, rendered)) = self.services.remove_entry(name) else {
            return;
        };
        self.hosts.remove(&rendered.host);
        if self.config.increments_above > 0 {
            increments
                .remove
                .push((ResourceType::Endpoint, name.clone()));
            increments.remove.extend(rendered.members());
        }
        for kind in [ResourceType::Cluster, ResourceType::Endpoint] {
            envoy.remove.push((kind, name.clone()));
        }
        for kind in [
            ResourceType::Cluster,
            ResourceType::Endpoint,
            ResourceType::Route,
        ] {
            grpc.remove.push((kind, name.clone()));
        }
        let is_service = |name: &str| self.services.contains_key(name);
        self.aliases.remove(&name, is_service, grpc);
    }

    fn put(&mut self, service: &Arc<Service>, touched: &Touched, updates: [&mut Update; 3]) {
        if !self.services.contains_key(&service.name) {
            self.hosts.insert(service);
            let is_service = |name: &str| self.services.contains_key(name);
            self.aliases.insert(service, is_service, updates[1]);
        }
        let rendered = self.services.entry(service.name.clone()).or_default();
        rendered.host = service.host.clone();
        rendered.put(service, touched, &self.config, updates);
    }
}

impl Rendered {
    fn put(
        &mut self,
        service: &Arc<Service>,
        touched: &Touched,
        config: &Config,
        [envoy, grpc, increments]: [&mut Update; 3],
    ) {
        let before = self.tally.as_ref().map(|tally| tally.service().clone());
        let tally = match (self.tally.take(), touched) {
            (Some(mut tally), Touched::Some(sockets)) => {
                tally.update(service, sockets);
                tally
            }
            _ => Box::new(Tally::of(service)),
        };
        let above = config.increments_above;
        let whole = self.put_envoy(&tally, config, &mut envoy.put);
        self.put_grpc(&tally, config.ranked, &mut grpc.put);
        if above > 0 {
            self.put_increments(before, service, touched, whole, above, increments);
        }
        let keep = service.instances.are_many() || self.large.is_some();
        self.tally = keep.then_some(tally);
    }

    /// Returns the whole assignment if it is another than before.
    fn put_envoy(
        &mut self,
        tally: &Tally,
        config: &Config,
        put: &mut Vec<Arc<Resource>>,
    ) -> Option<Arc<Resource>> {
        let name = tally.service().name.clone();
        self.table = tally.table(self.table);
        let table = self.table;
        let last = &mut self.envoy;
        let cluster = EnvoyCluster {
            name,
            table,
            ranked: config.ranked,
            http: config.http.clone(),
        };
        put.extend(render(cluster, &mut last.cluster));
        let whole = whole(tally.service(), tally.envoy(), &mut last.endpoints);
        put.extend(whole.clone());
        whole
    }

    /// `changed` is the whole assignment, if it is another than before.
    fn put_increments(
        &mut self,
        before: Option<Arc<Service>>,
        service: &Arc<Service>,
        touched: &Touched,
        changed: Option<Arc<Resource>>,
        above: usize,
        update: &mut Update,
    ) {
        let told = before.filter(|_| self.large.is_some());
        if is_large(service.instances.len(), above, told.is_some()) {
            let mut large = self.large.take().unwrap_or_default();
            let difference = large.update(told.as_deref(), service, touched);
            if large.fits(service) {
                update.put.extend(difference.put);
                update.remove.extend(difference.remove);
                self.large = Some(large);
                return;
            }
        }
        self.large = None;
        let Some(told) = told else {
            update.put.extend(changed);
            return;
        };
        // Who took it one by one holds another assignment, whether or not this is a new one.
        update.remove.extend(member_names(&told));
        let version = self.envoy.endpoints.unwrap_or_default();
        update.put.extend(whole(service, version, &mut None));
    }

    fn put_grpc(&mut self, tally: &Tally, ranked: bool, put: &mut Vec<Arc<Resource>>) {
        let service = tally.service();
        let name = || service.name.clone();
        let last = &mut self.grpc;
        let cluster = GrpcCluster {
            name: name(),
            ranked,
        };
        put.extend(render(cluster, &mut last.cluster));
        let shared = service.clone();
        self.localities = self.localities.of(tally.grpc_endpoints());
        let localities = self.localities;
        put.extend(render_later(
            ResourceType::Endpoint,
            &service.name,
            tally.grpc(localities),
            &mut last.endpoints,
            move || grpc_assignment(&shared, localities),
        ));
        put.extend(render(GrpcListener { name: name() }, &mut last.listener));
        let routes = GrpcRoutes {
            name: name(),
            callable: tally.grpc_endpoints() > 0,
        };
        put.extend(render(routes, &mut last.routes));
    }

    /// The names of what is told one by one.
    fn members(&self) -> impl Iterator<Item = (ResourceType, Arc<str>)> {
        let told = self.tally.iter().filter(|_| self.large.is_some());
        told.flat_map(|tally| member_names(tally.service()))
    }
}

/// A sidecar's assignment with all that is in it.
fn whole(
    service: &Arc<Service>,
    version: Version,
    last: &mut Option<Version>,
) -> Option<Arc<Resource>> {
    let shared = service.clone();
    let encode = move || envoy_assignment(&shared);
    render_later(ResourceType::Endpoint, &service.name, version, last, encode)
}
