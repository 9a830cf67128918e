//! A response as bytes on the wire: a gRPC frame head and the small fields of this stream, then the
//! resources' own bytes, shared by all streams.
//!
//! It refuses to know what is due and when. Protobuf fields may stand in any order, so the fields
//! that differ from stream to stream go first, in a buffer of their own. Small neighbours are joined,
//! since a frame for each costs more than the copy; large ones go out as they are.
//! Source: "Length-Prefixed-Message" of the gRPC over HTTP/2 text; field numbers of `discovery.proto`.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

use super::stream::Response;
use crate::resource::{field_len, put_field, put_head};

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

/// The gRPC message of a response, in pieces.
pub fn encode(response: &Response, form: Form) -> VecDeque<Bytes> {
    let small = small_fields(response, form);
    let resources = || {
        response.resources.iter().map(|resource| match form {
            Form::Sotw => resource.sotw_field(),
            Form::Delta => resource.delta_field(),
        })
    };
    let length = small.len() + resources().map(|field| field.len()).sum::<usize>();

    let mut pieces = Joiner::default();
    pieces.buffer.put_u8(0);
    // A message of 4 GiB cannot be built: no set of resources comes near it.
    pieces
        .buffer
        .put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    pieces.buffer.extend_from_slice(&small);
    resources().for_each(|field| pieces.push(field));
    pieces.finish()
}

/// The length of an encoded message without its head.
pub fn message_len(pieces: &VecDeque<Bytes>) -> usize {
    pieces.iter().map(Bytes::len).sum::<usize>() - HEAD
}

fn small_fields(response: &Response, form: Form) -> BytesMut {
    let mut fields = BytesMut::with_capacity(256);
    put_field(&mut fields, 1, response.version.as_bytes());
    put_field(&mut fields, 4, response.type_url.as_bytes());
    put_field(&mut fields, 5, response.nonce.as_bytes());
    let control_plane = match form {
        Form::Sotw => 6,
        Form::Delta => 7,
    };
    put_head(&mut fields, control_plane, field_len(IDENTIFIER.len()));
    put_field(&mut fields, 1, IDENTIFIER.as_bytes());
    if form == Form::Delta {
        for name in &response.removed {
            put_field(&mut fields, 6, name.as_bytes());
        }
    }
    let resource_errors = match form {
        Form::Sotw => 7,
        Form::Delta => 9,
    };
    for name in &response.missing {
        put_not_found(&mut fields, resource_errors, name);
    }
    fields
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

#[derive(Default)]
struct Joiner {
    pieces: VecDeque<Bytes>,
    buffer: BytesMut,
}

impl Joiner {
    fn push(&mut self, field: Bytes) {
        if field.len() >= SHARED {
            self.flush();
            self.pieces.push_back(field);
            return;
        }
        if self.buffer.len() + field.len() > JOINED {
            self.flush();
        }
        self.buffer.extend_from_slice(&field);
    }

    fn flush(&mut self) {
        if !self.buffer.is_empty() {
            self.pieces.push_back(self.buffer.split().freeze());
        }
    }

    fn finish(mut self) -> VecDeque<Bytes> {
        self.flush();
        self.pieces
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use envoy_types::pb::envoy::service::discovery::v3::{
        DeltaDiscoveryResponse, DiscoveryResponse,
    };
    use prost::Message;

    use super::*;
    use crate::resource::{Resource, ResourceType, Version};

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
            removed: vec!["gone".into()],
            missing: vec!["never".into()],
        }
    }

    fn message(pieces: VecDeque<Bytes>) -> Bytes {
        let length = message_len(&pieces);
        let whole: Vec<u8> = pieces.into_iter().flatten().collect();
        assert_eq!(whole[0], 0);
        assert_eq!(whole[1..5], u32::try_from(length).unwrap().to_be_bytes());
        Bytes::from(whole).split_off(HEAD)
    }

    #[test]
    fn a_delta_response_decodes_to_what_it_was() {
        let sizes = [0, 10, 700, 40_000, 5, 9_000, 20_000];
        let bytes = message(encode(&response(&sizes), Form::Delta));
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
        let bytes = message(encode(&response(&[3, 100_000]), Form::Sotw));
        let decoded = DiscoveryResponse::decode(bytes).unwrap();
        assert_eq!(decoded.version_info, "v");
        assert_eq!(decoded.type_url, ResourceType::Endpoint.type_url());
        assert_eq!(decoded.control_plane.unwrap().identifier, IDENTIFIER);
        assert_eq!(decoded.resources[1].value.len(), 100_000);
        let error = &decoded.resource_errors[0];
        assert_eq!(error.resource_name.as_ref().unwrap().name, "never");
    }

    #[test]
    fn large_resources_are_shared_and_small_ones_joined() {
        let response = response(&[100, 100, 50_000, 100]);
        let pieces = encode(&response, Form::Delta);
        assert_eq!(pieces.len(), 3);
        assert_eq!(
            pieces[1].as_ptr(),
            response.resources[2].delta_field().as_ptr()
        );
    }
}
