//! A large service as collections: an assignment that names one for each zone, and each endpoint a
//! resource of its own.
//!
//! It refuses to know who takes them; those who cannot take the whole assignment (`endpoint`). A
//! service is large from one instance over a threshold on, and until half of it is left, so that one
//! that hovers does not flap. Invariants: an endpoint costs what it is, never what its service is; the
//! hosts, weights, health and zones of both forms are the same. What the form cannot say is told in
//! the other one: weights that must be scaled down, and names that hold the mark of a stamp.
//! Source: `LedsClusterLocalityConfig` in `endpoint_components.proto`, TP1 of the xDS working group.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::IpAddr,
    sync::Arc,
};

use prost::Message;

use super::{
    endpoint::{EnvoyEndpoint, zone},
    rendering::RENDERING,
    wire,
};
use crate::{
    model::{Instance, Service},
    resource::{Edition, Resource, ResourceType, STAMP, Version},
};

const AUTHORITY: &str = "meshkeeper";

type Key = (IpAddr, u16);

/// What sidecars were last told of a large service.
#[derive(Debug)]
pub(super) struct Large {
    service: Arc<str>,
    members: BTreeMap<Key, Member>,
    /// How many members each has.
    zones: BTreeMap<Arc<str>, usize>,
    weight: u64,
    assignment: Option<Version>,
}

#[derive(Debug)]
struct Member {
    zone: Arc<str>,
    weight: u32,
    version: Version,
}

/// What a change means for those who hold the collections.
#[derive(Debug, Default)]
pub(super) struct Difference {
    pub put: Vec<Arc<Resource>>,
    pub remove: Vec<(ResourceType, Arc<str>)>,
    /// Those of the names in `put` that were not told before.
    new: BTreeSet<Arc<str>>,
}

impl Difference {
    /// What to remove where `large`, with this difference in it, is not told after all.
    pub fn undo(self, large: &Large) -> impl Iterator<Item = (ResourceType, Arc<str>)> {
        let held = large
            .names()
            .filter(move |(_, name)| !self.new.contains(name));
        held.chain(self.remove)
    }
}

/// Whether a service of so many instances is told by collections; 0 means none is.
pub(super) fn is_large(instances: usize, above: usize, was: bool) -> bool {
    above > 0 && (instances > above || (was && instances > above / 2))
}

impl Large {
    pub fn new(service: &Arc<str>) -> Self {
        Self {
            service: service.clone(),
            members: BTreeMap::new(),
            zones: BTreeMap::new(),
            weight: 0,
            assignment: None,
        }
    }

    /// Whether collections can say what there is.
    pub fn fits(&self) -> bool {
        let marked = self.service.contains(STAMP) || self.zones.keys().any(|z| z.contains(STAMP));
        u32::try_from(self.weight).is_ok() && !marked
    }

    /// Takes the whole service over.
    pub fn update(&mut self, service: &Service) -> Difference {
        let mut difference = Difference::default();
        let mut touched: BTreeSet<Key> = self.members.keys().copied().collect();
        let now: BTreeMap<Key, &Instance> = service
            .instances
            .iter()
            .map(|instance| ((instance.address, instance.port), &**instance))
            .collect();
        touched.extend(now.keys());
        for key in touched {
            self.settle(key, now.get(&key).copied(), &mut difference);
        }
        difference.put.extend(self.assignment());
        difference
    }

    /// All names that it was told under.
    pub fn names(&self) -> impl Iterator<Item = (ResourceType, Arc<str>)> {
        let members = self.members.iter();
        let names = members.map(|(key, member)| member_name(&self.service, &member.zone, *key));
        names.map(|name| (ResourceType::LbEndpoint, name))
    }

    fn settle(&mut self, key: Key, instance: Option<&Instance>, difference: &mut Difference) {
        let now = instance.and_then(|i| Some((zone(i), EnvoyEndpoint::new(i)?)));
        let before = self.members.remove(&key);
        if let Some(before) = &before {
            self.leave(before);
        }
        let moved = |before: &&Member| now.as_ref().is_none_or(|(zone, _)| **zone != *before.zone);
        if let Some(before) = before.as_ref().filter(moved) {
            let name = member_name(&self.service, &before.zone, key);
            difference.remove.push((ResourceType::LbEndpoint, name));
        }
        let Some((zone, endpoint)) = now else {
            return;
        };
        let kind = (Edition::Increments, ResourceType::LbEndpoint);
        let member = Member {
            zone: self.join(zone, endpoint.weight),
            weight: endpoint.weight,
            version: Version::of(&(RENDERING, kind, zone, &endpoint)),
        };
        let known = before.filter(|before| before.zone == member.zone);
        if known
            .as_ref()
            .is_none_or(|known| known.version != member.version)
        {
            let name = member_name(&self.service, zone, key);
            let body = endpoint.message().encode_to_vec();
            let resource = Resource::new(ResourceType::LbEndpoint, name, member.version, &body);
            if known.is_none() {
                difference.new.insert(resource.name.clone());
            }
            difference.put.push(Arc::new(resource));
        }
        self.members.insert(key, member);
    }

    fn join(&mut self, zone: &str, weight: u32) -> Arc<str> {
        self.weight += u64::from(weight);
        let known = self.zones.get_key_value(zone).map(|(zone, _)| zone.clone());
        let zone = known.unwrap_or_else(|| zone.into());
        *self.zones.entry(zone.clone()).or_default() += 1;
        zone
    }

    fn leave(&mut self, member: &Member) {
        self.weight -= u64::from(member.weight);
        if let Some(count) = self.zones.get_mut(&member.zone) {
            *count -= 1;
            if *count == 0 {
                self.zones.remove(&member.zone);
            }
        }
    }

    /// The assignment, if it is another than before: it depends on the zones alone.
    fn assignment(&mut self) -> Option<Arc<Resource>> {
        let kind = (Edition::Increments, ResourceType::Endpoint);
        let zones: Vec<Arc<str>> = self.zones.keys().cloned().collect();
        let version = Version::of(&(RENDERING, kind, &self.service, &zones));
        if self.assignment.replace(version) == Some(version) {
            return None;
        }
        let body = assignment(&self.service, &zones);
        let service = self.service.clone();
        let resource = Resource::new(ResourceType::Endpoint, service, version, &body);
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
    }
    .encode_to_vec()
}

/// What the names of a zone's endpoints begin with. A zone without a name is `=`.
fn collection(service: &str, zone: &str) -> String {
    let message = "envoy.config.endpoint.v3.LbEndpoint";
    let zone = if zone.is_empty() {
        "=".into()
    } else {
        plain(zone)
    };
    let service = plain(service);
    format!("xdstp://{AUTHORITY}/{message}/{service}/{STAMP}/{zone}")
}

fn member_name(service: &str, zone: &str, (address, port): Key) -> Arc<str> {
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
