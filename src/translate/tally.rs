//! What the endpoints of a service add up to: how many of each weight there are, and the versions of its
//! whole assignments.
//!
//! It refuses to know what is encoded (`endpoint` does). Each instance adds a share of its own and takes
//! just that away again, so that of a large service only what changed is looked at; the version of an
//! assignment comes from the sum of its endpoints' hashes, which has no order and no history.
//! Invariant: a tally that was kept up to date equals one that is made anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    endpoint::{EnvoyEndpoint, GrpcEndpoint, Localities, Scale, zone},
    maglev::TableSize,
    rendering::RENDERING,
};
use crate::{
    model::{Instance, Service, Socket},
    resource::{Edition, ResourceType, Version},
};

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tally {
    /// What is counted.
    service: Arc<Service>,
    /// How many of each weight are sent requests.
    weights: BTreeMap<u32, u64>,
    /// Of all that sidecars are told.
    endpoints: u64,
    weight: u64,
    /// The sums of the hashes.
    envoy: u64,
    grpc: u64,
    /// Of those that gRPC clients are told.
    grpc_endpoints: usize,
}

impl Tally {
    pub fn of(service: &Arc<Service>) -> Self {
        let mut tally = Self {
            service: service.clone(),
            weights: BTreeMap::new(),
            endpoints: 0,
            weight: 0,
            envoy: 0,
            grpc: 0,
            grpc_endpoints: 0,
        };
        for instance in service.instances.iter() {
            tally.add(instance);
        }
        tally
    }

    /// The service is this one now, another in these places alone.
    pub fn update(&mut self, service: &Arc<Service>, touched: &BTreeSet<Socket>) {
        let before = std::mem::replace(&mut self.service, service.clone());
        for socket in touched {
            if let Some(instance) = before.instances.get(*socket) {
                self.take_away(instance);
            }
            if let Some(instance) = service.instances.get(*socket) {
                self.add(instance);
            }
        }
    }

    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// The table of a cluster that had `size`.
    pub fn table(&self, size: TableSize) -> TableSize {
        let scale = Scale::new(self.endpoints, self.weight);
        let weights = self.weights.iter();
        size.grown_for(weights.map(|(weight, hosts)| (scale.apply(u64::from(*weight)), *hosts)))
    }

    /// Of the whole assignment of sidecars.
    pub fn envoy(&self) -> Version {
        self.version(Edition::Envoy, self.envoy)
    }

    /// Of the assignment of gRPC clients, in this form.
    pub fn grpc(&self, localities: Localities) -> Version {
        self.version(Edition::Grpc, hash(&(localities, self.grpc)))
    }

    /// How many endpoints gRPC clients may call.
    pub fn grpc_endpoints(&self) -> usize {
        self.grpc_endpoints
    }

    fn version(&self, edition: Edition, sum: u64) -> Version {
        let kind = (edition, ResourceType::Endpoint);
        Version::of(&(RENDERING, kind, &self.service.name, sum))
    }

    fn add(&mut self, instance: &Instance) {
        if let Some(endpoint) = EnvoyEndpoint::new(instance) {
            self.endpoints += 1;
            self.weight += u64::from(endpoint.weight);
            self.envoy = self.envoy.wrapping_add(hash(&(zone(instance), &endpoint)));
            if endpoint.is_sent_requests() {
                *self.weights.entry(endpoint.weight).or_default() += 1;
            }
        }
        if let Some(endpoint) = GrpcEndpoint::new(instance) {
            self.grpc_endpoints += 1;
            self.grpc = self.grpc.wrapping_add(hash(&endpoint));
        }
    }

    fn take_away(&mut self, instance: &Instance) {
        if let Some(endpoint) = EnvoyEndpoint::new(instance) {
            self.endpoints -= 1;
            self.weight -= u64::from(endpoint.weight);
            self.envoy = self.envoy.wrapping_sub(hash(&(zone(instance), &endpoint)));
            if endpoint.is_sent_requests() {
                self.forget(endpoint.weight);
            }
        }
        if let Some(endpoint) = GrpcEndpoint::new(instance) {
            self.grpc_endpoints -= 1;
            self.grpc = self.grpc.wrapping_sub(hash(&endpoint));
        }
    }

    fn forget(&mut self, weight: u32) {
        if let Some(hosts) = self.weights.get_mut(&weight) {
            *hosts -= 1;
            if *hosts == 0 {
                self.weights.remove(&weight);
            }
        }
    }
}

fn hash(content: &impl std::hash::Hash) -> u64 {
    Version::of(content).0
}
