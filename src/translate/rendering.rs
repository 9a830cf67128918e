//! From a specification to a resource: the version at once, the bytes when somebody asks for them.
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
pub(super) const RENDERING: u32 = 2;

/// Everything that one resource is rendered from.
pub(super) trait Spec: Hash {
    const EDITION: Edition;
    const KIND: ResourceType;

    fn name(&self) -> Arc<str>;

    /// The encoded message.
    fn body(&self) -> Vec<u8>;
}

/// The resource, unless it is the one that `last` remembers. It holds the specification until it is
/// encoded.
pub(super) fn render<S: Spec + Send + 'static>(
    spec: S,
    last: &mut Option<Version>,
) -> Option<Arc<Resource>> {
    let version = Version::of(&(RENDERING, S::EDITION, S::KIND, &spec));
    render_later(S::KIND, &spec.name(), version, last, move || spec.body())
}

/// Likewise for one whose version is known without a specification.
pub(super) fn render_later(
    kind: ResourceType,
    name: &Arc<str>,
    version: Version,
    last: &mut Option<Version>,
    encode: impl FnOnce() -> Vec<u8> + Send + 'static,
) -> Option<Arc<Resource>> {
    let changed = last.replace(version) != Some(version);
    changed.then(|| Arc::new(Resource::deferred(kind, name.clone(), version, encode)))
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
