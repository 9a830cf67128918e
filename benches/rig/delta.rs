//! The few fields of delta discovery that the load client writes and reads.
//!
//! It refuses to know what a resource means. A response is skimmed where it lies: nothing is copied
//! or decoded that is not asked for. Invariant: a response that is no protocol buffer stops the run.
//! Source: `discovery.proto`.

pub const METHOD: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

pub const MEMBER: &str = "type.googleapis.com/envoy.config.endpoint.v3.LbEndpoint";

/// Names and versions that a client holds.
pub type Versions = Vec<(String, String)>;

/// The first request of a type on a stream. An empty name list asks for everything.
pub fn subscribe(node: &str, kind: &str, names: &[String], held: &[(String, String)]) -> Vec<u8> {
    let mut id = Vec::new();
    field(&mut id, 1, node.as_bytes());
    // What Envoy calls itself, and a version (a message in a message): 1.40.
    field(&mut id, 6, b"envoy");
    field(&mut id, 8, &[10, 4, 8, 1, 16, 40]);
    let mut request = Vec::new();
    field(&mut request, 1, &id);
    field(&mut request, 2, kind.as_bytes());
    for name in names {
        field(&mut request, 3, name.as_bytes());
    }
    for (name, version) in held {
        let mut entry = Vec::new();
        field(&mut entry, 1, name.as_bytes());
        field(&mut entry, 2, version.as_bytes());
        field(&mut request, 5, &entry);
    }
    request
}

/// Asks for the collections that a resource of another type names.
pub fn open(body: &[u8]) -> Vec<u8> {
    let mut request = Vec::new();
    field(&mut request, 2, MEMBER.as_bytes());
    let mut rest = body;
    while let Some(start) = find(rest, b"xdstp://")
        && let Some(length) = find(&rest[start..], b"/*")
    {
        let end = start + length + 2;
        field(&mut request, 3, &rest[start..end]);
        rest = &rest[end..];
    }
    request
}

fn find(bytes: &[u8], word: &[u8]) -> Option<usize> {
    bytes.windows(word.len()).position(|window| window == word)
}

fn acknowledge(kind: &[u8], nonce: &[u8]) -> Vec<u8> {
    let mut request = Vec::with_capacity(kind.len() + nonce.len() + 8);
    field(&mut request, 2, kind);
    field(&mut request, 6, nonce);
    request
}

/// One resource of a response.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resource<'a> {
    pub name: &'a [u8],
    pub version: &'a [u8],
    /// The `Any` around it included.
    pub body: &'a [u8],
}

/// Shows every resource, counts the removals, and returns them with the request that acknowledges.
pub fn read<'a>(response: &'a [u8], mut on: impl FnMut(Resource<'a>)) -> (usize, Vec<u8>) {
    let (mut kind, mut nonce, mut removed) = (&[][..], &[][..], 0);
    for (number, value) in Fields(response) {
        match number {
            2 => on(resource(value)),
            4 => kind = value,
            5 => nonce = value,
            6 => removed += 1,
            _ => {}
        }
    }
    (removed, acknowledge(kind, nonce))
}

fn resource(bytes: &[u8]) -> Resource<'_> {
    let mut resource = Resource::default();
    for (number, value) in Fields(bytes) {
        match number {
            1 => resource.version = value,
            2 => resource.body = value,
            3 => resource.name = value,
            _ => {}
        }
    }
    resource
}

/// The fields of a message that have a length; the others are passed over.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        while !self.0.is_empty() {
            let key = self.varint();
            match key & 7 {
                0 => {
                    self.varint();
                }
                1 => self.0 = &self.0[8..],
                2 => {
                    let length = usize::try_from(self.varint()).expect("a length");
                    let (value, rest) = self.0.split_at(length);
                    self.0 = rest;
                    return Some((key >> 3, value));
                }
                5 => self.0 = &self.0[4..],
                other => panic!("wire type {other} in a response"),
            }
        }
        None
    }
}

impl Fields<'_> {
    fn varint(&mut self) -> u64 {
        let mut value = 0;
        for (place, byte) in self.0.iter().enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                self.0 = &self.0[place + 1..];
                return value;
            }
        }
        panic!("a number is cut off in a response")
    }
}

fn field(out: &mut Vec<u8>, number: u8, value: &[u8]) {
    out.push(number << 3 | 2);
    let mut length = value.len();
    while length > 0x7f {
        out.push(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
        length >>= 7;
    }
    out.push(u8::try_from(length).unwrap_or(0));
    out.extend(value);
}
