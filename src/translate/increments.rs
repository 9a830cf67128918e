//! A large service as collections: an assignment that names one for each zone, and each endpoint a
//! resource of its own.
//!
//! It refuses to know who takes them; those who cannot take the whole assignment (`endpoint`). A
//! service is large from one instance over a threshold on, and until half of it is left, so that one
//! that hovers does not flap. Invariants: an endpoint costs what it is, never what its service is; the
//! hosts, weights, health and zones of both forms are the same. What the form cannot say is told in
//! the other one: weights that must be scaled down, several priorities, and names that hold the mark of a stamp.
//! Source: `LedsClusterLocalityConfig` in `endpoint_components.proto`, TP1 of the xDS working group.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::Arc,
};

use prost::Message;

use super::{
    endpoint::{EnvoyEndpoint, zone},
    rendering::RENDERING,
    wire,
};
use crate::{
    model::{Instance, Service, Socket, Touched},
    resource::{Edition, Resource, ResourceType, STAMP, Version},
};

const AUTHORITY: &str = "meshkeeper";

/// What sidecars were last told of a large service, beside the service itself.
#[derive(Debug, Default)]
pub(super) struct Large {
    /// How many endpoints each has.
    zones: BTreeMap<Arc<str>, usize>,
    /// How many endpoints have each.
    priorities: BTreeMap<u8, usize>,
    weight: u64,
    assignment: Option<Version>,
}

/// What a change means for those who hold the collections.
#[derive(Debug, Default)]
pub(super) struct Difference {
    pub put: Vec<Arc<Resource>>,
    pub remove: Vec<(ResourceType, Arc<str>)>,
}

/// An endpoint as a resource, but for the encoding.
struct Member<'a> {
    instance: &'a Arc<Instance>,
    zone: &'a str,
    weight: u32,
    version: Version,
}

impl<'a> Member<'a> {
    /// `None` where there is nothing to tell.
    fn of(service: &'a Service, socket: Socket) -> Option<Self> {
        let instance = service.instances.get(socket)?;
        let (zone, endpoint) = (zone(instance), EnvoyEndpoint::new(instance)?);
        let kind = (Edition::Increments, ResourceType::LbEndpoint);
        let version = Version::of(&(RENDERING, kind, zone, &endpoint));
        Some(Self {
            instance,
            zone,
            weight: endpoint.weight,
            version,
        })
    }

    fn resource(&self, name: Arc<str>) -> Resource {
        let shared = self.instance.clone();
        let encode = move || {
            let endpoint = EnvoyEndpoint::new(&shared);
            endpoint.map_or_else(Vec::new, |endpoint| endpoint.message().encode_to_vec())
        };
        Resource::deferred(ResourceType::LbEndpoint, name, self.version, encode)
    }
}

/// Whether a service of so many instances is told by collections; 0 means none is.
pub(super) fn is_large(instances: usize, above: usize, was: bool) -> bool {
    above > 0 && (instances > above || (was && instances > above / 2))
}

/// The names of all that a large service is told as.
pub(super) fn member_names(service: &Service) -> Vec<(ResourceType, Arc<str>)> {
    let told = service
        .instances
        .iter()
        .filter(|i| EnvoyEndpoint::new(i).is_some());
    let names = told.map(|i| member_name(&service.name, zone(i), i.socket()));
    names.map(|name| (ResourceType::LbEndpoint, name)).collect()
}

impl Large {
    /// Whether collections can say what there is.
    pub fn fits(&self, service: &Service) -> bool {
        let marked = |name: &str| name.contains(STAMP);
        let marked = marked(&service.name) || self.zones.keys().any(|zone| marked(zone));
        u32::try_from(self.weight).is_ok() && !marked && self.priorities.len() <= 1
    }

    /// What was told is `before`, what is to be told `after`.
    pub fn update(
        &mut self,
        before: Option<&Service>,
        after: &Service,
        touched: &Touched,
    ) -> Difference {
        let mut difference = Difference::default();
        let all = || {
            let services = before.into_iter().chain([after]);
            let instances = services.flat_map(|service| service.instances.iter());
            instances.map(|i| i.socket()).collect()
        };
        let sockets: BTreeSet<Socket> = match (before, touched) {
            (Some(_), Touched::Some(sockets)) => sockets.clone(),
            _ => all(),
        };
        for socket in sockets {
            self.settle(socket, before, after, &mut difference);
        }
        difference.put.extend(self.assignment(&after.name));
        difference
    }

    fn settle(
        &mut self,
        socket: Socket,
        before: Option<&Service>,
        after: &Service,
        difference: &mut Difference,
    ) {
        let was = before.and_then(|service| Member::of(service, socket));
        let is = Member::of(after, socket);
        let name = |zone| member_name(&after.name, zone, socket);
        if let Some(was) = &was {
            self.leave(was);
            if is.as_ref().is_none_or(|is| is.zone != was.zone) {
                let gone = (ResourceType::LbEndpoint, name(was.zone));
                difference.remove.push(gone);
            }
        }
        let Some(is) = is else {
            return;
        };
        self.join(&is);
        let known = was.filter(|was| was.zone == is.zone);
        if known.is_none_or(|known| known.version != is.version) {
            let resource = is.resource(name(is.zone));
            difference.put.push(Arc::new(resource));
        }
    }

    fn join(&mut self, member: &Member<'_>) {
        self.weight += u64::from(member.weight);
        match self.zones.get_mut(member.zone) {
            Some(count) => *count += 1,
            None => drop(self.zones.insert(member.zone.into(), 1)),
        }
        *self.priorities.entry(member.instance.priority).or_default() += 1;
    }

    fn leave(&mut self, member: &Member<'_>) {
        self.weight -= u64::from(member.weight);
        if let Some(count) = self.zones.get_mut(member.zone) {
            *count -= 1;
            if *count == 0 {
                self.zones.remove(member.zone);
            }
        }
        if let Some(count) = self.priorities.get_mut(&member.instance.priority) {
            *count -= 1;
            if *count == 0 {
                self.priorities.remove(&member.instance.priority);
            }
        }
    }

    /// The assignment, if it is another than before: it depends on the zones alone.
    fn assignment(&mut self, service: &Arc<str>) -> Option<Arc<Resource>> {
        let kind = (Edition::Increments, ResourceType::Endpoint);
        let zones: Vec<Arc<str>> = self.zones.keys().cloned().collect();
        let version = Version::of(&(RENDERING, kind, service, &zones));
        if self.assignment.replace(version) == Some(version) {
            return None;
        }
        let body = assignment(service, &zones);
        let resource = Resource::new(ResourceType::Endpoint, service.clone(), version, &body);
        Some(Arc::new(resource.stamped()))
    }
}

fn assignment(service: &Arc<str>, zones: &[Arc<str>]) -> Vec<u8> {
    let locality = |zone: &Arc<str>| wire::LocalityLbEndpoints {
        locality: Some(wire::Locality {
            zone: zone.to_string(),
            sub_zone: String::new(),
        }),
        leds_cluster_locality_config: Some(wire::LedsClusterLocalityConfig {
            leds_config: Some(wire::ConfigSource::ads()),
            leds_collection_name: format!("{}/*", collection(service, zone)),
        }),
        ..wire::LocalityLbEndpoints::default()
    };
    wire::ClusterLoadAssignment {
        cluster_name: service.to_string(),
        endpoints: zones.iter().map(locality).collect(),
        policy: None,
    }
    .encode_to_vec()
}

/// What the names of a zone's endpoints begin with. A zone without a name is `=`.
/// What the names of all collections of a service begin with.
pub fn collections_of(service: &str) -> String {
    let message = "envoy.config.endpoint.v3.LbEndpoint";
    let service = plain(service);
    format!("xdstp://{AUTHORITY}/{message}/{service}/{STAMP}/")
}

fn collection(service: &str, zone: &str) -> String {
    let zone = if zone.is_empty() {
        "=".into()
    } else {
        plain(zone)
    };
    format!("{}{zone}", collections_of(service))
}

fn member_name(service: &str, zone: &str, (address, port): Socket) -> Arc<str> {
    let address = address.to_string().replace(':', "-");
    format!("{}/{address}_{port}", collection(service, zone)).into()
}

/// With letters that no URI gives a meaning to. Envoy decodes percent signs and encodes some of what
/// was encoded, so that a name would come back in another spelling; `=` is left alone.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                plain.push(char::from(byte));
            }
            _ => drop(write!(plain, "={byte:02X}")),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_distinct() {
        assert_eq!(plain("orders-1_a.B"), "orders-1_a.B");
        assert_eq!(plain("a/b=c*d e!ü"), "a=2Fb=3Dc=2Ad=20e=21=C3=BC");
        assert_ne!(collection("a", ""), collection("a", "="));
        let at = |at: &str| {
            let at: std::net::SocketAddr = at.parse().unwrap();
            (at.ip(), at.port())
        };
        let name = member_name("orders", "a", at("10.0.0.7:8080"));
        assert_eq!(
            &*name,
            "xdstp://meshkeeper/envoy.config.endpoint.v3.LbEndpoint/orders/!!!!!!!!!!!!!!!!/a/10.0.0.7_8080"
        );
        let name = member_name("orders", "", at("[2001:db8::7]:80"));
        assert!(name.ends_with("/=/2001-db8--7_80"), "{name}");
    }

    #[test]
    fn a_service_that_hovers_about_the_threshold_does_not_flap() {
        assert!(!is_large(100, 100, false) && is_large(101, 100, false));
        assert!(is_large(51, 100, true) && !is_large(50, 100, true));
        assert!(!is_large(1_000_000, 0, true));
    }
}
