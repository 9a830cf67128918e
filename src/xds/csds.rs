//! The client status discovery service: how each client stands, from the server's point of view.
//!
//! It refuses to know the protocol: it shows what the open streams say of themselves. For each
//! subscribed type of a client there is one entry without a name (the state of the type, the accepted
//! version, the reason of a rejection), and unless contents are excluded one for each resource that the
//! client is served. Invariant: an answer is bounded, whatever is asked, and costs no stream more than
//! a moment. Source: `envoy.service.status.v3`.

use std::{fmt, sync::Arc};

use envoy_types::pb::{
    envoy::{
        admin::v3::UpdateFailureState,
        config::core::v3::Node,
        service::status::v3::{
            ClientConfig, ClientStatusRequest, ClientStatusResponse, ConfigStatus,
            client_config::GenericXdsConfig,
            client_status_discovery_service_server::{
                ClientStatusDiscoveryService, ClientStatusDiscoveryServiceServer,
            },
        },
        r#type::matcher::v3::{NodeMatcher, StringMatcher, string_matcher::MatchPattern},
    },
    google::protobuf::Any,
};
use futures_util::{StreamExt, stream, stream::BoxStream};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{
    clients::{Clients, Entry},
    status::{State, TypeStatus},
};
use crate::{
    resource::{Resource, ResourceType},
    snapshot::Snapshots,
};

/// The most bytes of resources in one answer.
const CONTENT_LIMIT: usize = 64 << 20;

/// What there is to show.
#[derive(Clone)]
pub struct Csds {
    clients: Clients,
    snapshots: watch::Receiver<Arc<Snapshots>>,
    stop: CancellationToken,
    /// Answers are made one at a time, so that the memory for them is bounded.
    turn: Arc<Mutex<()>>,
}

impl Csds {
    pub fn new(
        clients: Clients,
        snapshots: watch::Receiver<Arc<Snapshots>>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            clients,
            snapshots,
            stop,
            turn: Arc::default(),
        }
    }

    pub fn into_service(self) -> ClientStatusDiscoveryServiceServer<Self> {
        ClientStatusDiscoveryServiceServer::new(self)
    }

    async fn answer(&self, request: ClientStatusRequest) -> Result<ClientStatusResponse, Status> {
        let turn = self.turn.clone().lock_owned().await;
        let server = self.clone();
        // Thousands of clients take a while, in which the streams have to go on.
        let answer = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            server.look(&request)
        });
        answer
            .await
            .map_err(|error| Status::internal(error.to_string()))?
    }

    fn look(&self, request: &ClientStatusRequest) -> Result<ClientStatusResponse, Status> {
        request.node_matchers.iter().try_for_each(check)?;
        let snapshots = self.snapshots.borrow().clone();
        let mut contents = Contents {
            snapshots: (!request.exclude_resource_contents).then_some(&*snapshots),
            room: CONTENT_LIMIT,
        };
        let entries = self.clients.entries();
        let wanted = entries.iter().filter(|entry| {
            let matchers = &request.node_matchers;
            let id = &entry.client().node_id;
            matchers.is_empty() || matchers.iter().any(|matcher| matches(matcher, id))
        });
        let config = wanted.map(|entry| config(entry, &mut contents));
        Ok(ClientStatusResponse {
            config: config.collect::<Result<_, _>>()?,
        })
    }
}

#[tonic::async_trait]
impl ClientStatusDiscoveryService for Csds {
    type StreamClientStatusStream = BoxStream<'static, Result<ClientStatusResponse, Status>>;

    async fn stream_client_status(
        &self,
        request: Request<Streaming<ClientStatusRequest>>,
    ) -> Result<Response<Self::StreamClientStatusStream>, Status> {
        let start = (self.clone(), request.into_inner());
        let answers = stream::try_unfold(start, |(server, mut requests)| async {
            let request = tokio::select! {
                () = server.stop.cancelled() => {
                    return Err(Status::unavailable("the server stops; reconnect"));
                }
                request = requests.message() => request?,
            };
            let Some(request) = request else {
                return Ok(None);
            };
            let answer = server.answer(request).await?;
            Ok(Some((answer, (server, requests))))
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn fetch_client_status(
        &self,
        request: Request<ClientStatusRequest>,
    ) -> Result<Response<ClientStatusResponse>, Status> {
        self.answer(request.into_inner()).await.map(Response::new)
    }
}

/// What resources may still be put into an answer.
struct Contents<'a> {
    /// `None` if they are excluded.
    snapshots: Option<&'a Snapshots>,
    room: usize,
}

impl Contents<'_> {
    fn of(&mut self, entry: &Entry, kind: ResourceType) -> Result<Vec<Arc<Resource>>, Status> {
        let Some(snapshots) = self.snapshots else {
            return Ok(Vec::new());
        };
        let set = snapshots.view(entry.client().profile).set(kind);
        let resources = entry.stream().served(kind, set);
        let length = resources.iter().map(|resource| resource.wire_len()).sum();
        self.room = self.room.checked_sub(length).ok_or_else(|| {
            Status::resource_exhausted(format!(
                "the answer would hold over {CONTENT_LIMIT} bytes of resources; name fewer clients \
                 in `node_matchers` or set `exclude_resource_contents`"
            ))
        })?;
        Ok(resources)
    }
}

fn config(entry: &Entry, contents: &mut Contents<'_>) -> Result<ClientConfig, Status> {
    let mut configs = Vec::new();
    for (kind, status) in entry.stream().types() {
        let state = state(status.state);
        let resources = contents.of(entry, kind)?;
        configs.push(of_type(kind, state, status));
        configs.extend(
            resources
                .iter()
                .map(|resource| of_resource(resource, state)),
        );
    }
    Ok(ClientConfig {
        node: Some(Node {
            id: entry.client().node_id.clone(),
            ..Node::default()
        }),
        generic_xds_configs: configs,
        ..ClientConfig::default()
    })
}

fn of_type(kind: ResourceType, state: ConfigStatus, status: TypeStatus) -> GenericXdsConfig {
    GenericXdsConfig {
        type_url: kind.type_url().to_owned(),
        version_info: status.version.unwrap_or_default(),
        config_status: state.into(),
        error_state: status.error.map(|details| UpdateFailureState {
            details,
            ..UpdateFailureState::default()
        }),
        ..GenericXdsConfig::default()
    }
}

fn of_resource(resource: &Resource, state: ConfigStatus) -> GenericXdsConfig {
    let type_url = resource.kind.type_url().to_owned();
    GenericXdsConfig {
        name: resource.name.to_string(),
        version_info: resource.version.to_string(),
        xds_config: Some(Any {
            type_url: type_url.clone(),
            value: resource.body().to_vec(),
        }),
        type_url,
        config_status: state.into(),
        ..GenericXdsConfig::default()
    }
}

fn state(state: State) -> ConfigStatus {
    match state {
        State::NotSent => ConfigStatus::NotSent,
        State::Stale => ConfigStatus::Stale,
        State::Synced => ConfigStatus::Synced,
        State::Error => ConfigStatus::Error,
    }
}

/// Whether the matcher is one that is understood; another would match too much or too little.
fn check(matcher: &NodeMatcher) -> Result<(), Status> {
    if !matcher.node_metadatas.is_empty() {
        return Err(Status::invalid_argument(
            "`node_metadatas` is not supported; match by `node_id`",
        ));
    }
    let pattern = matcher.node_id.as_ref().map(|id| &id.match_pattern);
    match pattern {
        None
        | Some(Some(
            MatchPattern::Exact(_)
            | MatchPattern::Prefix(_)
            | MatchPattern::Suffix(_)
            | MatchPattern::Contains(_),
        )) => Ok(()),
        Some(_) => Err(Status::invalid_argument(
            "`node_id` is matched by `exact`, `prefix`, `suffix` or `contains` only",
        )),
    }
}

/// A matcher that asks for nothing matches every client.
fn matches(matcher: &NodeMatcher, id: &str) -> bool {
    matcher.node_id.as_ref().is_none_or(|matcher| {
        if matcher.ignore_case {
            matches_text(matcher, &id.to_ascii_lowercase(), str::to_ascii_lowercase)
        } else {
            matches_text(matcher, id, str::to_owned)
        }
    })
}

fn matches_text(matcher: &StringMatcher, id: &str, fold: fn(&str) -> String) -> bool {
    match &matcher.match_pattern {
        Some(MatchPattern::Exact(text)) => id == fold(text),
        Some(MatchPattern::Prefix(text)) => id.starts_with(&fold(text)),
        Some(MatchPattern::Suffix(text)) => id.ends_with(&fold(text)),
        Some(MatchPattern::Contains(text)) => id.contains(&fold(text)),
        _ => false,
    }
}

impl fmt::Debug for Csds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Csds").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatcher, StructMatcher};

    use super::*;

    fn by(pattern: MatchPattern, ignore_case: bool) -> NodeMatcher {
        NodeMatcher {
            node_id: Some(StringMatcher {
                match_pattern: Some(pattern),
                ignore_case,
            }),
            ..NodeMatcher::default()
        }
    }

    #[test]
    fn node_ids_are_matched_as_the_pattern_says() {
        for (pattern, id, expected) in [
            (MatchPattern::Exact("a-1".into()), "a-1", true),
            (MatchPattern::Exact("a-1".into()), "a-10", false),
            (MatchPattern::Exact("A-1".into()), "a-1", false),
            (MatchPattern::Prefix("a-".into()), "a-10", true),
            (MatchPattern::Suffix("10".into()), "a-10", true),
            (MatchPattern::Contains("-1".into()), "a-10", true),
            (MatchPattern::Contains("x".into()), "a-10", false),
        ] {
            let matcher = by(pattern, false);
            check(&matcher).unwrap();
            assert_eq!(matches(&matcher, id), expected, "{matcher:?} {id}");
        }
        assert!(matches(&by(MatchPattern::Exact("A-1".into()), true), "a-1"));
        assert!(matches(&NodeMatcher::default(), "anybody"));
    }

    #[test]
    fn a_pattern_that_is_not_understood_is_refused_instead_of_ignored() {
        let regex = by(MatchPattern::SafeRegex(RegexMatcher::default()), false);
        assert!(check(&regex).is_err());
        let metadata = NodeMatcher {
            node_metadatas: vec![StructMatcher::default()],
            ..NodeMatcher::default()
        };
        assert!(check(&metadata).is_err());
        let nothing = NodeMatcher {
            node_id: Some(StringMatcher::default()),
            ..NodeMatcher::default()
        };
        assert!(check(&nothing).is_err());
    }
}
