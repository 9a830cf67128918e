//! gRPC listeners under the other names that a service answers to.
//!
//! A service whose name is no host name, as `com.foo.Bar:1.0`, answers to its host `com.foo.bar-1.0` as
//! well, like behind a sidecar. Most services are called like their hosts and need nothing of this; that
//! letter case, a port and the second name (`orders.mesh`) do not matter is known to `by_name`.
//! Invariant: a service that has the name itself comes before one that has it as an alias.

use std::{collections::BTreeMap, sync::Arc};

use prost::Message;

use super::{
    Update,
    listener::GrpcListener,
    name,
    rendering::{Spec, render},
};
use crate::{
    model::Service,
    resource::{Edition, ResourceType},
};

/// The other names of all services.
#[derive(Debug, Default)]
pub(super) struct Aliases {
    /// The service behind each.
    services: BTreeMap<Arc<str>, Arc<str>>,
    of: BTreeMap<Arc<str>, Vec<Arc<str>>>,
}

impl Aliases {
    /// A service appeared.
    pub fn insert(
        &mut self,
        service: &Service,
        is_service: impl Fn(&str) -> bool,
        update: &mut Update,
    ) {
        let host = &service.host;
        let alias = name::alias(&service.name, host).map(Arc::from);
        let names = [Some(host.clone()), alias].into_iter().flatten();
        let names: Vec<_> = names.filter(|name| *name != service.name).collect();
        for name in &names {
            self.services.insert(name.clone(), service.name.clone());
            if !is_service(name) {
                self.put(name, update);
            }
        }
        if !names.is_empty() {
            self.of.insert(service.name.clone(), names);
        }
    }

    /// The service of that name is gone, and its own listener with it.
    pub fn remove(
        &mut self,
        service: &Arc<str>,
        is_service: impl Fn(&str) -> bool,
        update: &mut Update,
    ) {
        for name in self.of.remove(service).unwrap_or_default() {
            self.services.remove(&name);
            if !is_service(&name) {
                update.remove.push((ResourceType::Listener, name));
            }
        }
        if self.services.contains_key(service) {
            self.put(service, update);
        } else {
            update
                .remove
                .push((ResourceType::Listener, service.clone()));
        }
    }

    fn put(&self, name: &Arc<str>, update: &mut Update) {
        let service = self.services.get(name).cloned();
        let listener = service.map(|service| AliasListener {
            name: name.clone(),
            service,
        });
        let rendered = listener.and_then(|listener| render(listener, &mut None));
        update.put.extend(rendered);
    }
}

/// The listener of a service under another name.
#[derive(Debug, Hash)]
struct AliasListener {
    name: Arc<str>,
    service: Arc<str>,
}

impl Spec for AliasListener {
    const EDITION: Edition = Edition::Grpc;
    const KIND: ResourceType = ResourceType::Listener;

    fn name(&self) -> Arc<str> {
        self.name.clone()
    }

    fn body(&self) -> Vec<u8> {
        GrpcListener {
            name: self.service.clone(),
        }
        .message(&self.name)
        .encode_to_vec()
    }
}
