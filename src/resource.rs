//! A rendered xDS resource: its name, its version and its bytes, encoded once for all streams, when the
//! first of them asks.
//!
//! It refuses to know what is inside. Invariant: the version is a hash of the canonical content that
//! the bytes were rendered from, never of encoded bytes (a protobuf map has no order), so equal
//! content has one version on every replica, before and after a restart.

pub mod json;
mod naming;
mod stamp;

use std::{
    collections::BTreeSet,
    fmt,
    hash::{Hash, Hasher},
    sync::{Arc, LazyLock},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::encoding::{WireType, decode_varint, encode_key, encode_varint, encoded_len_varint};
use xxhash_rust::xxh3::Xxh3;

pub use naming::{Made, Naming, canonical_host};
pub use stamp::{STAMP, Stamp, Stamps};

/// The kinds of resources, in the order in which they are pushed (make before break).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    Cluster,
    Endpoint,
    /// One endpoint of an assignment that names collections.
    LbEndpoint,
    Listener,
    Route,
    /// `outbound/HOST`: one virtual host of a sidecar's route configuration.
    VirtualHost,
}

impl ResourceType {
    pub const ALL: [Self; 6] = [
        Self::Cluster,
        Self::Endpoint,
        Self::LbEndpoint,
        Self::Listener,
        Self::Route,
        Self::VirtualHost,
    ];

    pub const fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::LbEndpoint => "type.googleapis.com/envoy.config.endpoint.v3.LbEndpoint",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::VirtualHost => "type.googleapis.com/envoy.config.route.v3.VirtualHost",
        }
    }

    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.type_url() == url)
    }

    /// The type that resources of this type name, each the one of its own name: a cluster is useless
    /// without its endpoints, a listener without its routes (names as in `translate::name`).
    pub const fn refers_to(self) -> Option<Self> {
        match self {
            Self::Cluster => Some(Self::Endpoint),
            Self::Listener => Some(Self::Route),
            Self::Endpoint | Self::LbEndpoint | Self::Route | Self::VirtualHost => None,
        }
    }

    /// The short name, as metrics and the admin API have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "clusters",
            Self::Endpoint => "endpoints",
            Self::LbEndpoint => "lbEndpoints",
            Self::Listener => "listeners",
            Self::Route => "routes",
            Self::VirtualHost => "virtualHosts",
        }
    }
}

/// The kinds of clients; each gets resources that it accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientKind {
    Envoy,
    Grpc,
}

impl ClientKind {
    pub const ALL: [Self; 2] = [Self::Envoy, Self::Grpc];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Envoy => "envoy",
            Self::Grpc => "grpc",
        }
    }
}

/// A set of renderings. Types that two profiles take alike are in one edition only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Edition {
    Envoy,
    Grpc,
    /// What a sidecar starts with that loads services on demand: its listener and routes.
    OnDemand,
    /// Assignments for sidecars that take the endpoints of large services one by one.
    Increments,
}

impl Edition {
    pub const ALL: [Self; 4] = [Self::Envoy, Self::Grpc, Self::OnDemand, Self::Increments];

    /// The short name, as the admin API has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Envoy => "envoy",
            Self::Grpc => "grpc",
            Self::OnDemand => "onDemand",
            Self::Increments => "increments",
        }
    }

    /// Whether there is anything of this type in it.
    pub const fn holds(self, kind: ResourceType) -> bool {
        match self {
            Self::Envoy => !matches!(kind, ResourceType::LbEndpoint),
            Self::Grpc => !matches!(kind, ResourceType::VirtualHost | ResourceType::LbEndpoint),
            Self::OnDemand => matches!(kind, ResourceType::Listener | ResourceType::Route),
            Self::Increments => {
                matches!(kind, ResourceType::Endpoint | ResourceType::LbEndpoint)
            }
        }
    }
}

/// What a client takes: of each type one edition, all of it or by name only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    pub kind: ClientKind,
    /// A sidecar that learns of each service at its first request.
    pub on_demand: bool,
    /// A sidecar that takes the endpoints of large services one by one.
    pub increments: bool,
    /// gRPC's Go library, which does not tell its caller why a cluster has no endpoints.
    pub grpc_go: bool,
}

impl Profile {
    /// Where a node's metadata say what it wishes: `{"meshkeeper": {"onDemand": true}}`.
    pub const METADATA: &'static str = "meshkeeper";
    pub const ON_DEMAND: &'static str = "onDemand";
    pub const INCREMENTS: &'static str = "endpointIncrements";

    /// Of a client that takes everything from the start.
    pub const fn whole(kind: ClientKind) -> Self {
        Self {
            kind,
            on_demand: false,
            increments: false,
            grpc_go: false,
        }
    }

    pub const fn edition(self, kind: ResourceType) -> Edition {
        match (self.kind, kind) {
            (ClientKind::Grpc, _) => Edition::Grpc,
            (_, ResourceType::Listener | ResourceType::Route) if self.on_demand => {
                Edition::OnDemand
            }
            (_, ResourceType::Endpoint | ResourceType::LbEndpoint) if self.increments => {
                Edition::Increments
            }
            (ClientKind::Envoy, _) => Edition::Envoy,
        }
    }

    /// Whether a wildcard leaves this type out: virtual hosts, and with them clusters, are loaded on
    /// demand; a proxyless client has a listener and a route configuration for each service and asks
    /// for those that it dials.
    pub const fn is_by_name_only(self, kind: ResourceType) -> bool {
        match kind {
            ResourceType::VirtualHost | ResourceType::LbEndpoint => true,
            ResourceType::Cluster => self.on_demand,
            ResourceType::Listener | ResourceType::Route => matches!(self.kind, ClientKind::Grpc),
            ResourceType::Endpoint => false,
        }
    }
}

/// A hash of canonical content, 16 hexadecimal digits on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Version(pub u64);

impl Version {
    /// Hashes what a resource is rendered from. `content` must hold its collections in an order
    /// that only their content decides.
    pub fn of(content: &impl Hash) -> Self {
        let mut hasher = Xxh3::new();
        content.hash(&mut hasher);
        Self(hasher.finish())
    }

    /// `None` for what no version of ours looks like.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == VERSION_LEN && text.bytes().all(|b| b.is_ascii_hexdigit());
        digits
            .then(|| u64::from_str_radix(text, 16).ok().map(Self))
            .flatten()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One named resource, ready for the wire.
#[derive(Debug)]
pub struct Resource {
    pub kind: ResourceType,
    pub name: Arc<str>,
    pub version: Version,
    /// Whether [`STAMP`] stands in it for what each stream puts there.
    stamped: bool,
    /// A `resources` field of a `DeltaDiscoveryResponse`, key and length with it. Many are never asked
    /// for: until then there is what encodes it.
    delta: LazyLock<Bytes, Encode>,
}

type Encode = Box<dyn FnOnce() -> Bytes + Send>;

/// Encodes both, so that also their bytes are compared.
impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        let key = |r: &Self| (r.kind, r.version);
        key(self) == key(other) && self.name == other.name && *self.delta == *other.delta
    }
}

impl Eq for Resource {}

/// `resources` in both discovery responses and `resource` in the delta's `Resource` share the field
/// number 2 (`discovery.proto`), so the state-of-the-world form is a part of the delta form.
const RESOURCES_FIELD: u32 = 2;

/// Hexadecimal digits of a [`Version`].
const VERSION_LEN: usize = 16;

impl Resource {
    /// `body` is the encoded message of the type `kind`.
    pub fn new(
        kind: ResourceType,
        name: impl Into<Arc<str>>,
        version: Version,
        body: &[u8],
    ) -> Self {
        let name = name.into();
        let delta = delta_field(&name, version, &any_field(kind, body), &BTreeSet::new());
        Self::encoded(kind, name, version, delta)
    }

    /// `body` encodes the message of the type `kind`. It is called at most once, when the first reader
    /// asks for bytes, and dropped with all that it holds.
    pub fn deferred(
        kind: ResourceType,
        name: impl Into<Arc<str>>,
        version: Version,
        body: impl FnOnce() -> Vec<u8> + Send + 'static,
    ) -> Self {
        let name: Arc<str> = name.into();
        let encode = {
            let name = name.clone();
            move || delta_field(&name, version, &any_field(kind, &body()), &BTreeSet::new())
        };
        Self {
            kind,
            name,
            version,
            stamped: kind == ResourceType::LbEndpoint,
            delta: LazyLock::new(Box::new(encode)),
        }
    }

    /// [`STAMP`] stands in its body wherever a stream puts its own. In an `LbEndpoint`, which needs no
    /// such word, it stands once, in the name.
    #[must_use]
    pub fn stamped(self) -> Self {
        Self {
            stamped: true,
            ..self
        }
    }

    /// Whether each stream sends it in a form of its own, so that no client can hold it already.
    pub fn is_stamped(&self) -> bool {
        self.stamped
    }

    /// The same resource, told to a client that asked for it by these names.
    #[must_use]
    pub fn aliased(&self, aliases: &BTreeSet<Arc<str>>) -> Self {
        let delta = delta_field(&self.name, self.version, &self.sotw_field(), aliases);
        Self::encoded(self.kind, self.name.clone(), self.version, delta)
    }

    /// The same content under another name; for types whose message has its name in the field 1.
    #[must_use]
    pub fn renamed(&self, name: &str) -> Self {
        let mut body = BytesMut::from(&*self.body());
        // Of a field that occurs twice the last counts.
        put_field(&mut body, 1, name.as_bytes());
        let version = Version::of(&(self.version, name));
        Self::new(self.kind, name, version, &body)
    }

    /// Tells a client that asked for it by these names that there is none. Only for types of which
    /// the protocol has a resource without a body say so.
    pub fn absent(kind: ResourceType, name: Arc<str>, aliases: &BTreeSet<Arc<str>>) -> Self {
        let version = Version::default();
        let delta = delta_field(&name, version, &[], aliases);
        Self::encoded(kind, name, version, delta)
    }

    fn encoded(kind: ResourceType, name: Arc<str>, version: Version, delta: Bytes) -> Self {
        let delta = LazyLock::new(Box::new(move || delta) as Encode);
        LazyLock::force(&delta);
        Self {
            kind,
            name,
            version,
            stamped: kind == ResourceType::LbEndpoint,
            delta,
        }
    }

    /// The `resources` field of a `DeltaDiscoveryResponse`, key and length with it.
    pub fn delta_field(&self) -> &Bytes {
        &self.delta
    }

    /// Puts the stamp into a copy of [`Self::delta_field`].
    pub fn stamp(&self, stamp: Stamp, field: &mut [u8]) {
        let places = match self.kind {
            _ if !self.stamped => 0,
            ResourceType::LbEndpoint => 1,
            _ => usize::MAX,
        };
        stamp.put(field, places);
    }

    /// The `resources` field of a `DiscoveryResponse`, key and length with it: what stands behind
    /// version and name. Empty where there is no body.
    pub fn sotw_field(&self) -> Bytes {
        let mut any = self.delta.clone();
        skip_head(&mut any);
        any.advance(field_len(VERSION_LEN) + field_len(self.name.len()));
        let mut behind = any.clone();
        match skip_head(&mut behind) {
            Some((RESOURCES_FIELD, length)) => any.split_to(any.len() - behind.len() + length),
            _ => Bytes::new(),
        }
    }

    /// The most bytes that it takes in a response.
    pub fn wire_len(&self) -> usize {
        self.delta.len()
    }

    /// The encoded message alone, empty where there is none: for operators and tests.
    pub fn body(&self) -> Bytes {
        let head = self.kind.type_url().len();
        let mut any = self.sotw_field();
        if any.is_empty() {
            return any;
        }
        skip_head(&mut any);
        any.advance(field_len(head));
        skip_head(&mut any);
        any
    }
}

/// A `Resource` as a `resources` field; `any` is a `resource` field or nothing.
fn delta_field(name: &str, version: Version, any: &[u8], aliases: &BTreeSet<Arc<str>>) -> Bytes {
    let aliases_len: usize = aliases.iter().map(|alias| field_len(alias.len())).sum();
    let len = field_len(VERSION_LEN) + field_len(name.len()) + any.len() + aliases_len;
    let mut delta = BytesMut::with_capacity(field_len(len));
    put_head(&mut delta, RESOURCES_FIELD, len);
    put_field(&mut delta, 1, version.to_string().as_bytes());
    put_field(&mut delta, 3, name.as_bytes());
    delta.put_slice(any);
    for alias in aliases {
        put_field(&mut delta, 4, alias.as_bytes());
    }
    delta.freeze()
}

fn any_field(kind: ResourceType, body: &[u8]) -> Bytes {
    let url = kind.type_url();
    let len = field_len(url.len()) + field_len(body.len());
    let mut any = BytesMut::with_capacity(field_len(len));
    put_head(&mut any, RESOURCES_FIELD, len);
    put_field(&mut any, 1, url.as_bytes());
    put_field(&mut any, 2, body);
    any.freeze()
}

/// The length of a length-delimited field with a one-byte key.
pub(crate) fn field_len(len: usize) -> usize {
    1 + encoded_len_varint(len as u64) + len
}

pub(crate) fn put_head(buffer: &mut impl BufMut, field: u32, len: usize) {
    encode_key(field, WireType::LengthDelimited, buffer);
    encode_varint(len as u64, buffer);
}

pub(crate) fn put_field(buffer: &mut impl BufMut, field: u32, bytes: &[u8]) {
    put_head(buffer, field, bytes.len());
    buffer.put_slice(bytes);
}

/// Drops a one-byte key and the length behind it; returns the field and the length.
fn skip_head(bytes: &mut Bytes) -> Option<(u32, usize)> {
    let key = bytes.try_get_u8().ok()?;
    let length = decode_varint(bytes).ok()?;
    Some((u32::from(key >> 3), usize::try_from(length).ok()?))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use envoy_types::pb::envoy::service::discovery::v3::{
        DeltaDiscoveryResponse, DiscoveryResponse,
    };
    use prost::Message;

    use super::*;

    fn resource(body: &[u8]) -> Resource {
        Resource::new(ResourceType::Cluster, "orders", Version(7), body)
    }

    #[test]
    fn the_delta_field_is_a_resource_with_name_version_and_body() {
        for len in [0, 1, 127, 128, 20_000] {
            let body = vec![7; len];
            let response =
                DeltaDiscoveryResponse::decode(&**resource(&body).delta_field()).unwrap();
            let [decoded] = &response.resources[..] else {
                panic!("one resource")
            };
            assert_eq!(decoded.name, "orders");
            assert_eq!(decoded.version, "0000000000000007");
            let any = decoded.resource.as_ref().unwrap();
            assert_eq!(any.type_url, ResourceType::Cluster.type_url());
            assert_eq!(any.value, body);
        }
    }

    #[test]
    fn bytes_are_the_same_whenever_they_are_encoded() {
        for len in [0, 1, 127, 128, 20_000] {
            let body = vec![3; len];
            let eager = resource(&body);
            let deferred = {
                let body = body.clone();
                Resource::deferred(eager.kind, "orders", Version(7), move || body)
            };
            assert_eq!(deferred.delta_field(), eager.delta_field());
            assert_eq!(deferred.sotw_field(), eager.sotw_field());
            assert_eq!(deferred.body(), body);
            assert_eq!(deferred.wire_len(), eager.wire_len());
        }
    }

    #[test]
    fn what_nobody_asks_for_is_not_encoded_and_what_somebody_asks_for_is_once() {
        let held = Arc::new(AtomicUsize::new(0));
        let deferred = || {
            let held = held.clone();
            Resource::deferred(ResourceType::Cluster, "orders", Version(7), move || {
                held.fetch_add(1, Ordering::Relaxed);
                b"body".to_vec()
            })
        };
        drop(deferred());
        assert_eq!(held.load(Ordering::Relaxed), 0);
        let asked = Arc::new(deferred());
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let asked = asked.clone();
                std::thread::spawn(move || asked.delta_field().clone())
            })
            .collect();
        for reader in readers {
            // The same buffer, not a copy.
            assert_eq!(
                reader.join().unwrap().as_ptr(),
                asked.delta_field().as_ptr()
            );
        }
        assert_eq!(held.load(Ordering::Relaxed), 1);
        assert_eq!(Arc::strong_count(&held), 1, "what encoded it is gone");
    }

    #[test]
    fn the_sotw_field_is_the_any_alone() {
        let response = DiscoveryResponse::decode(resource(b"body").sotw_field()).unwrap();
        assert_eq!(response.resources[0].value, b"body");
        assert_eq!(
            response.resources[0].type_url,
            ResourceType::Cluster.type_url()
        );
    }

    #[test]
    fn an_alias_changes_neither_name_nor_version_nor_body() {
        let aliased = resource(&[7; 300]).aliased(&["Orders:80".into(), "orders.".into()].into());
        let response = DeltaDiscoveryResponse::decode(&**aliased.delta_field()).unwrap();
        let decoded = &response.resources[0];
        assert_eq!(decoded.name, "orders");
        assert_eq!(decoded.version, "0000000000000007");
        assert_eq!(decoded.aliases, ["Orders:80", "orders."]);
        assert_eq!(decoded.resource.as_ref().unwrap().value, [7; 300]);
        assert_eq!(aliased.body(), &[7; 300][..]);
    }

    #[test]
    fn an_absent_resource_has_a_name_and_aliases_and_no_body() {
        let absent = Resource::absent(
            ResourceType::VirtualHost,
            "a/b".into(),
            &["a/B".into()].into(),
        );
        let response = DeltaDiscoveryResponse::decode(&**absent.delta_field()).unwrap();
        let decoded = &response.resources[0];
        assert_eq!(decoded.name, "a/b");
        assert_eq!(decoded.aliases, ["a/B"]);
        assert_eq!(decoded.resource, None);
        assert_eq!(absent.body(), Bytes::new());
    }

    #[test]
    fn the_body_comes_back_as_it_was() {
        for len in [0, 127, 128, 20_000] {
            let body = vec![9; len];
            assert_eq!(resource(&body).body(), body);
        }
    }
}
