//! From a specification to a resource: the version first, the bytes only where it is a new one.
//!
//! It refuses to know any resource type. A [`Spec`] is a plain value that holds everything its
//! rendering depends on, in an order that only its content decides. Invariant: the version hashes
//! the specification, the kind of client, the type and [`RENDERING`], so that equal content has one
//! version on every replica and a release that renders differently has another.

use std::{hash::Hash, sync::Arc};

use envoy_types::pb::{
    envoy::config::core::v3::{
        AggregatedConfigSource, ApiVersion, ConfigSource, config_source::ConfigSourceSpecifier,
    },
    google::protobuf::Any,
};
use prost::{Message, Name};

use crate::resource::{Edition, Resource, ResourceType, Version};

/// Raise it whenever the same specification renders to other bytes; the golden files insist.
pub(super) const RENDERING: u32 = 1;

/// Everything that one resource is rendered from.
pub(super) trait Spec: Hash {
    const EDITION: Edition;
    const KIND: ResourceType;

    fn name(&self) -> Arc<str>;

    /// The encoded message.
    fn body(&self) -> Vec<u8>;
}

/// The resource, unless it is the one that `last` remembers.
pub(super) fn render<S: Spec>(spec: &S, last: &mut Option<Version>) -> Option<Resource> {
    let version = Version::of(&(RENDERING, S::EDITION, S::KIND, spec));
    if last.replace(version) == Some(version) {
        return None;
    }
    let resource = Resource::new(S::KIND, spec.name(), version, &spec.body());
    Some(resource)
}

pub(super) fn any<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

/// "From the stream that this came on."
pub(super) fn ads() -> ConfigSource {
    ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        resource_api_version: ApiVersion::V3.into(),
        ..Default::default()
    }
}
