//! A response as bytes on the wire: a gRPC frame head and the small fields of this stream, then the
//! resources' own bytes, shared by all streams.
//!
//! It refuses to know what is due and when. Protobuf fields may stand in any order, so the fields
//! that differ from stream to stream go first, in a buffer of their own. Small neighbours are joined,
//! since a frame for each costs more than the copy; large ones go out as they are.
//! Source: "Length-Prefixed-Message" of the gRPC over HTTP/2 text; field numbers of `discovery.proto`.

use std::{iter::Peekable, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};

use super::stream::Response;
use crate::resource::{Resource, Stamp, field_len, put_field, put_head};

/// Buffers of at least this size are shared instead of copied.
const SHARED: usize = 8 << 10;

/// Joined buffers grow to about this size.
const JOINED: usize = 32 << 10;

/// A gRPC message head: a flag for compression and four bytes of length.
const HEAD: usize = 5;

const IDENTIFIER: &str = concat!("meshkeeper/", env!("CARGO_PKG_VERSION"));

/// The two wire forms of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `DiscoveryResponse`.
    Sotw,
    /// `DeltaDiscoveryResponse`.
    Delta,
}

/// The gRPC message of a response, piece by piece. Nothing is copied before its turn comes, so that of
/// a large message there is no more in memory than what goes out.
#[derive(Debug)]
pub struct Pieces {
    form: Form,
    /// What goes ahead of the resources, until it is gone.
    head: BytesMut,
    resources: std::vec::IntoIter<Arc<Resource>>,
    stamps: Runs,
    message_len: usize,
}

/// Which stamp counts for the next resource.
#[derive(Debug)]
struct Runs {
    coming: Peekable<std::vec::IntoIter<(usize, Stamp)>>,
    at: usize,
    now: Option<Stamp>,
}

impl Runs {
    fn next(&mut self) -> Option<Stamp> {
        let at = self.at;
        while let Some((_, stamp)) = self.coming.next_if(|(from, _)| *from <= at) {
            self.now = Some(stamp);
        }
        self.at += 1;
        self.now
    }
}

/// The gRPC message of a response.
pub fn encode(response: Response, form: Form) -> Pieces {
    let mut head = BytesMut::with_capacity(256);
    head.put_bytes(0, HEAD);
    put_small_fields(&mut head, &response, form);
    let lens = response.resources.iter().map(|r| form.len(r));
    let message_len = head.len() - HEAD + lens.sum::<usize>();
    // A message of 4 GiB cannot be built: no set of resources comes near it.
    let length = u32::try_from(message_len).unwrap_or(u32::MAX);
    head[1..HEAD].copy_from_slice(&length.to_be_bytes());
    Pieces {
        form,
        head,
        resources: response.resources.into_iter(),
        stamps: Runs {
            coming: response.stamps.into_iter().peekable(),
            at: 0,
            now: None,
        },
        message_len,
    }
}

impl Pieces {
    /// The length of the whole message without its head.
    pub fn message_len(&self) -> usize {
        self.message_len
    }

    /// How many of the next resources join, and the bytes that they make with what is there.
    fn joined(&self) -> (usize, usize) {
        let (mut count, mut len) = (0, self.head.len());
        for resource in self.resources.as_slice() {
            let more = self.form.len(resource);
            if more >= SHARED || (len > 0 && len + more > JOINED) {
                break;
            }
            (count, len) = (count + 1, len + more);
        }
        (count, len)
    }
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let (count, len) = self.joined();
        if len == 0 {
            let large = self.resources.next()?;
            return Some(self.form.field(&large, self.stamps.next()));
        }
        let mut piece = std::mem::take(&mut self.head);
        piece.reserve(len - piece.len());
        for resource in self.resources.by_ref().take(count) {
            self.form.put(&resource, self.stamps.next(), &mut piece);
        }
        Some(piece.freeze())
    }
}

impl Form {
    fn field(self, resource: &Resource, stamp: Option<Stamp>) -> Bytes {
        match self {
            Self::Sotw => resource.sotw_field(),
            Self::Delta if stamp.is_some() && resource.is_stamped() => {
                let mut field = BytesMut::with_capacity(resource.wire_len());
                self.put(resource, stamp, &mut field);
                field.freeze()
            }
            Self::Delta => resource.delta_field().clone(),
        }
    }

    fn put(self, resource: &Resource, stamp: Option<Stamp>, piece: &mut BytesMut) {
        match self {
            Self::Sotw => piece.extend_from_slice(&resource.sotw_field()),
            // Without a handle of its own, which counts.
            Self::Delta => {
                let start = piece.len();
                piece.extend_from_slice(resource.delta_field());
                if let Some(stamp) = stamp {
                    resource.stamp(stamp, &mut piece[start..]);
                }
            }
        }
    }

    fn len(self, resource: &Resource) -> usize {
        match self {
            Self::Sotw => resource.sotw_field().len(),
            Self::Delta => resource.delta_field().len(),
        }
    }
}

fn put_small_fields(fields: &mut BytesMut, response: &Response, form: Form) {
    put_field(fields, 1, response.version.as_bytes());
    put_field(fields, 4, response.type_url.as_bytes());
    put_field(fields, 5, response.nonce.as_bytes());
    let control_plane = match form {
        Form::Sotw => 6,
        Form::Delta => 7,
    };
    put_head(fields, control_plane, field_len(IDENTIFIER.len()));
    put_field(fields, 1, IDENTIFIER.as_bytes());
    if form == Form::Delta {
        for name in &response.removed {
            put_field(fields, 6, name.as_bytes());
        }
    }
    let resource_errors = match form {
        Form::Sotw => 7,
        Form::Delta => 9,
    };
    for name in &response.missing {
        put_not_found(fields, resource_errors, name);
    }
}

/// A `ResourceError`: a `ResourceName` and a `google.rpc.Status`.
fn put_not_found(fields: &mut BytesMut, field: u32, name: &str) {
    let resource_name = field_len(name.len());
    // `Status.code` is a varint of its own field 1.
    let status = [0x08, tonic::Code::NotFound as u8];
    put_head(
        fields,
        field,
        field_len(resource_name) + field_len(status.len()),
    );
    put_head(fields, 1, resource_name);
    put_field(fields, 1, name.as_bytes());
    put_field(fields, 2, &status);
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::service::discovery::v3::{
        DeltaDiscoveryResponse, DiscoveryResponse,
    };
    use prost::Message;

    use super::*;
    use crate::resource::{ResourceType, Version};

    fn response(sizes: &[usize]) -> Response {
        let resource = |(at, size): (usize, &usize)| {
            let body = vec![u8::try_from(at).unwrap(); *size];
            Arc::new(Resource::new(
                ResourceType::Endpoint,
                format!("n{at}"),
                Version(1),
                &body,
            ))
        };
        Response {
            type_url: ResourceType::Endpoint.type_url().into(),
            nonce: "1f".into(),
            version: "v".into(),
            resources: sizes.iter().enumerate().map(resource).collect(),
            stamps: Vec::new(),
            removed: vec!["gone".into()],
            missing: vec!["never".into()],
        }
    }

    fn message(pieces: Pieces) -> Bytes {
        let length = pieces.message_len();
        let whole: Vec<u8> = pieces.flatten().collect();
        assert_eq!(whole.len(), HEAD + length);
        assert_eq!(whole[0], 0);
        assert_eq!(whole[1..5], u32::try_from(length).unwrap().to_be_bytes());
        Bytes::from(whole).split_off(HEAD)
    }

    #[test]
    fn a_delta_response_decodes_to_what_it_was() {
        let sizes = [0, 10, 700, 40_000, 5, 9_000, 20_000];
        let bytes = message(encode(response(&sizes), Form::Delta));
        let decoded = DeltaDiscoveryResponse::decode(bytes).unwrap();
        assert_eq!(decoded.nonce, "1f");
        assert_eq!(decoded.system_version_info, "v");
        assert_eq!(decoded.removed_resources, ["gone"]);
        let [error] = &decoded.resource_errors[..] else {
            panic!("one error")
        };
        assert_eq!(error.resource_name.as_ref().unwrap().name, "never");
        assert_eq!(error.error_detail.as_ref().unwrap().code, 5);
        assert_eq!(decoded.control_plane.unwrap().identifier, IDENTIFIER);
        let found: Vec<_> = decoded
            .resources
            .iter()
            .map(|r| r.resource.as_ref().unwrap().value.len())
            .collect();
        assert_eq!(found, sizes);
    }

    #[test]
    fn a_sotw_response_decodes_to_what_it_was() {
        let bytes = message(encode(response(&[3, 100_000]), Form::Sotw));
        let decoded = DiscoveryResponse::decode(bytes).unwrap();
        assert_eq!(decoded.version_info, "v");
        assert_eq!(decoded.type_url, ResourceType::Endpoint.type_url());
        assert_eq!(decoded.control_plane.unwrap().identifier, IDENTIFIER);
        assert_eq!(decoded.resources[1].value.len(), 100_000);
        let error = &decoded.resource_errors[0];
        assert_eq!(error.resource_name.as_ref().unwrap().name, "never");
    }

    #[test]
    fn of_many_small_resources_one_piece_is_in_memory() {
        let response = response(&[700; 200]);
        let mut pieces = encode(response.clone(), Form::Delta);
        let mut count = 0;
        while let Some(piece) = pieces.next() {
            assert!(piece.len() <= JOINED);
            count += 1;
            let sent = 200 - pieces.resources.len();
            let held = response.resources[..sent].iter();
            assert!(held.map(Arc::strong_count).all(|handles| handles == 1));
        }
        assert_eq!(count, 200_usize.div_ceil(JOINED / 770));
    }

    #[test]
    fn large_resources_are_shared_and_small_ones_joined() {
        let response = response(&[100, 100, 50_000, 100]);
        let pieces: Vec<Bytes> = encode(response.clone(), Form::Delta).collect();
        assert_eq!(pieces.len(), 3);
        assert_eq!(
            pieces[1].as_ptr(),
            response.resources[2].delta_field().as_ptr()
        );
    }
}
