//! What both discovery requests say beside their subscriptions.
//!
//! It refuses to know what is answered. Invariant: a client is only given a profile that its variant,
//! its kind and its version can take, whatever it wishes. Source: `discovery.proto`.

use std::sync::Arc;

use envoy_types::pb::{
    envoy::{
        config::core::v3::{Node, node::UserAgentVersionType},
        service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
    },
    google::protobuf::value::Kind,
};

use super::stream::Client;
use crate::resource::{ClientKind, Profile};

/// A discovery request of either variant.
pub trait Request {
    /// Whether the variant can tell of single virtual hosts.
    const INCREMENTAL: bool;

    fn type_url(&self) -> &str;

    /// Of the response that this request answers; empty if it answers none.
    fn nonce(&self) -> &str;

    /// The client's reason to reject that response, if it does.
    fn error(&self) -> Option<&str>;

    fn node(&self) -> Option<&Node>;

    /// Of a type that is not served: the names that the answer says are gone.
    fn names_that_do_not_exist(&self) -> Vec<Arc<str>>;

    /// Whether the client holds resources of an earlier stream.
    fn resumes(&self) -> bool;

    /// `None` if the request carries no node. Sidecars load services on demand if they say so or, as
    /// long as they say nothing, if `on_demand` is set. Those that can take endpoints one by one do if
    /// `increments` is set, unless they say that they will not.
    fn client(&self, on_demand: bool, increments: bool) -> Option<Client> {
        self.node().map(|node| {
            let kind = kind_of(node);
            let able = Self::INCREMENTAL && kind == ClientKind::Envoy;
            let on_demand = able && wish(node, Profile::ON_DEMAND).unwrap_or(on_demand);
            let too_old = envoy_version(node).filter(|version| *version < VHDS_SINCE);
            Client {
                node_id: node.id.clone(),
                note: too_old.filter(|_| on_demand).map(full_mesh_note),
                profile: Profile {
                    kind,
                    on_demand: on_demand && too_old.is_none(),
                    increments: able
                        && increments
                        && takes_collections(node)
                        && wish(node, Profile::INCREMENTS) != Some(false),
                    grpc_go: is_grpc_go(node),
                },
            }
        })
    }
}

/// gRPC says `gRPC C-core …`, `grpc-java`, `grpc-node`, …; everybody else takes what Envoy takes.
pub(super) fn kind_of(node: &Node) -> ClientKind {
    let name = node.user_agent_name.as_bytes();
    match name.get(..4) {
        Some(head) if head.eq_ignore_ascii_case(b"grpc") => ClientKind::Grpc,
        _ => ClientKind::Envoy,
    }
}

fn is_grpc_go(node: &Node) -> bool {
    ["grpc go", "grpc-go"].contains(&&*node.user_agent_name.to_ascii_lowercase())
}

/// The first Envoy whose way with collections of endpoints was tried; older ones crashed.
const COLLECTIONS_SINCE: (u32, u32) = (1, 40);

fn takes_collections(node: &Node) -> bool {
    envoy_version(node).is_some_and(|version| version >= COLLECTIONS_SINCE)
}

/// Older Envoys reject a route configuration whose virtual hosts come over ADS, and then answer every request with 404.
const VHDS_SINCE: (u32, u32) = (1, 37);

fn full_mesh_note((major, minor): (u32, u32)) -> String {
    format!(
        "gets all services from the start: Envoy {major}.{minor} cannot load them on demand, \
         {}.{} and later can",
        VHDS_SINCE.0, VHDS_SINCE.1
    )
}

/// The major and minor version, if the node says that it is an Envoy of one.
fn envoy_version(node: &Node) -> Option<(u32, u32)> {
    let Some(UserAgentVersionType::UserAgentBuildVersion(build)) = &node.user_agent_version_type
    else {
        return None;
    };
    let version = build.version.as_ref()?;
    (node.user_agent_name == "envoy").then_some((version.major_number, version.minor_number))
}

/// What the node's metadata say: `{"meshkeeper": {KEY: true}}`.
fn wish(node: &Node, key: &str) -> Option<bool> {
    let Some(Kind::StructValue(wishes)) =
        &node.metadata.as_ref()?.fields.get(Profile::METADATA)?.kind
    else {
        return None;
    };
    match &wishes.fields.get(key)?.kind {
        Some(Kind::BoolValue(wish)) => Some(*wish),
        _ => None,
    }
}

impl Request for DiscoveryRequest {
    const INCREMENTAL: bool = false;

    fn type_url(&self) -> &str {
        &self.type_url
    }

    fn nonce(&self) -> &str {
        &self.response_nonce
    }

    fn error(&self) -> Option<&str> {
        self.error_detail
            .as_ref()
            .map(|status| status.message.as_str())
    }

    fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// Everything is sent anew.
    fn resumes(&self) -> bool {
        false
    }

    /// This variant has no word for it.
    fn names_that_do_not_exist(&self) -> Vec<Arc<str>> {
        Vec::new()
    }
}

impl Request for DeltaDiscoveryRequest {
    const INCREMENTAL: bool = true;

    fn type_url(&self) -> &str {
        &self.type_url
    }

    fn nonce(&self) -> &str {
        &self.response_nonce
    }

    fn error(&self) -> Option<&str> {
        self.error_detail
            .as_ref()
            .map(|status| status.message.as_str())
    }

    fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    fn resumes(&self) -> bool {
        !self.initial_resource_versions.is_empty()
    }

    fn names_that_do_not_exist(&self) -> Vec<Arc<str>> {
        let names = self
            .resource_names_subscribe
            .iter()
            .filter(|name| *name != "*");
        let names: std::collections::BTreeSet<_> = names.collect();
        names.into_iter().map(|name| name.as_str().into()).collect()
    }
}
