//! How a sidecar treats HTTP: what passes between two programs without it passes with it.
//!
//! Envoy's defaults refuse HTTP/1.0, more than 100 headers and 60 KiB of them, write header names in lower case and drop
//! trailers. Invariant: nothing here depends on a service. Source: `protocol.proto`, `header_mutation.proto`,
//! `matching.proto`.

use std::{sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::{
            common::mutation_rules::v3::{HeaderMutation as Mutation, header_mutation::Action},
            core::v3::{
                HeaderValue, HeaderValueOption, Http1ProtocolOptions, Http2ProtocolOptions,
                HttpProtocolOptions as CommonOptions, TypedExtensionConfig,
                header_value_option::HeaderAppendAction,
                http1_protocol_options::{HeaderKeyFormat, header_key_format::HeaderFormat},
            },
        },
        extensions::{
            common::matching::v3::ExtensionWithMatcher,
            filters::{
                common::matcher::action::v3::SkipFilter,
                http::header_mutation::v3::{HeaderMutation, Mutations},
                network::http_connection_manager::v3::{
                    HttpConnectionManager, HttpFilter, http_filter,
                },
            },
            http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig,
            upstreams::http::v3::{HttpProtocolOptions, http_protocol_options},
        },
        r#type::matcher::v3::HttpRequestHeaderMatchInput,
    },
    google::protobuf::{Duration as ProtoDuration, UInt32Value},
    xds::{
        core::v3::TypedExtensionConfig as XdsExtension,
        r#type::matcher::v3::{
            Matcher, RegexMatcher, StringMatcher,
            matcher::{
                MatcherList, MatcherType, OnMatch,
                matcher_list::{
                    FieldMatcher, Predicate,
                    predicate::{MatchType, SinglePredicate, single_predicate},
                },
                on_match,
            },
            regex_matcher::{EngineType, GoogleRe2},
            string_matcher::MatchPattern,
        },
    },
};
use prost::{Message, Name};

use super::rendering::any;

/// Methods that may be sent twice: RFC 9110 calls them safe.
const SAFE_METHODS: &str = "GET|HEAD|OPTIONS";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Http {
    /// Of one request or response.
    pub max_headers: u32,
    /// Of all headers of one request or response.
    pub max_header_kib: u32,
    /// Header names, and the reason of a status, pass as they were written.
    pub preserve_case: bool,
    /// Where requests of HTTP/1.0 go that name no host.
    pub host_of_http10: Arc<str>,
    /// How long an unused connection to an instance stays open.
    pub upstream_idle: Duration,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            max_headers: 1_000,
            max_header_kib: 512,
            preserve_case: true,
            host_of_http10: "".into(),
            upstream_idle: Duration::from_secs(3600),
        }
    }
}

impl Http {
    /// Of the listener.
    pub(super) fn apply(&self, manager: &mut HttpConnectionManager) {
        manager.http_protocol_options = Some(Http1ProtocolOptions {
            accept_http_10: true,
            default_host_for_http_10: self.host_of_http10.to_string(),
            ..self.http1()
        });
        manager.max_request_headers_kb = value(self.max_header_kib);
        manager.common_http_protocol_options = Some(CommonOptions {
            max_headers_count: value(self.max_headers),
            ..CommonOptions::default()
        });
        manager.http_filters.insert(0, retry_safe_methods());
    }

    /// Of a cluster: HTTP/1.1 stays HTTP/1.1, HTTP/2 (and with it gRPC) stays HTTP/2.
    pub(super) fn upstream(&self) -> HttpProtocolOptions {
        let downstream = http_protocol_options::UseDownstreamHttpConfig {
            http_protocol_options: Some(self.http1()),
            http2_protocol_options: Some(Http2ProtocolOptions::default()),
            ..Default::default()
        };
        HttpProtocolOptions {
            common_http_protocol_options: Some(CommonOptions {
                idle_timeout: duration(self.upstream_idle),
                max_headers_count: value(self.max_headers),
                max_response_headers_kb: value(self.max_header_kib),
                ..CommonOptions::default()
            }),
            upstream_protocol_options: Some(
                http_protocol_options::UpstreamProtocolOptions::UseDownstreamProtocolConfig(
                    downstream,
                ),
            ),
            ..Default::default()
        }
    }

    fn http1(&self) -> Http1ProtocolOptions {
        Http1ProtocolOptions {
            enable_trailers: true,
            header_key_format: self.preserve_case.then(as_written),
            ..Http1ProtocolOptions::default()
        }
    }
}

fn as_written() -> HeaderKeyFormat {
    let formatter = PreserveCaseFormatterConfig {
        forward_reason_phrase: true,
        ..PreserveCaseFormatterConfig::default()
    };
    HeaderKeyFormat {
        header_format: Some(HeaderFormat::StatefulFormatter(TypedExtensionConfig {
            name: "preserve_case".to_owned(),
            typed_config: Some(any(&formatter)),
        })),
    }
}

/// Has the router send a request again whose connection closed before any answer, as an instance may close an unused
/// connection just when the request is on its way. A filter costs one message for all services, a route for it one for
/// each.
fn retry_safe_methods() -> HttpFilter {
    let filter = ExtensionWithMatcher {
        extension_config: Some(TypedExtensionConfig {
            name: "envoy.filters.http.header_mutation".to_owned(),
            typed_config: Some(any(&ask_for_retries())),
        }),
        xds_matcher: Some(skip_other_methods()),
        ..ExtensionWithMatcher::default()
    };
    HttpFilter {
        name: "retry_safe_methods".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(&filter))),
        ..HttpFilter::default()
    }
}

/// The router takes the header's conditions in addition to those of the route, and removes it.
fn ask_for_retries() -> HeaderMutation {
    let header = HeaderValueOption {
        header: Some(HeaderValue {
            key: "x-envoy-retry-on".to_owned(),
            value: "reset".to_owned(),
            ..HeaderValue::default()
        }),
        append_action: HeaderAppendAction::AddIfAbsent.into(),
        ..HeaderValueOption::default()
    };
    HeaderMutation {
        mutations: Some(Mutations {
            request_mutations: vec![Mutation {
                action: Some(Action::Append(header)),
            }],
            ..Mutations::default()
        }),
        ..HeaderMutation::default()
    }
}

fn skip_other_methods() -> Matcher {
    let method = HttpRequestHeaderMatchInput {
        header_name: ":method".to_owned(),
    };
    let safe = StringMatcher {
        match_pattern: Some(MatchPattern::SafeRegex(RegexMatcher {
            engine_type: Some(EngineType::GoogleRe2(GoogleRe2 {})),
            regex: SAFE_METHODS.to_owned(),
        })),
        ..StringMatcher::default()
    };
    let is_safe = SinglePredicate {
        input: Some(extension("method", &method)),
        matcher: Some(single_predicate::Matcher::ValueMatch(safe)),
    };
    let other = Predicate {
        match_type: Some(MatchType::NotMatcher(Box::new(Predicate {
            match_type: Some(MatchType::SinglePredicate(is_safe)),
        }))),
    };
    let skip = OnMatch {
        on_match: Some(on_match::OnMatch::Action(extension("skip", &SkipFilter {}))),
        ..OnMatch::default()
    };
    Matcher {
        matcher_type: Some(MatcherType::MatcherList(MatcherList {
            matchers: vec![FieldMatcher {
                predicate: Some(other),
                on_match: Some(skip),
            }],
        })),
        ..Matcher::default()
    }
}

fn extension<M: Message + Name>(name: &str, config: &M) -> XdsExtension {
    XdsExtension {
        name: name.to_owned(),
        typed_config: Some(any(config)),
    }
}

#[allow(clippy::unnecessary_wraps, reason = "the fields are optional")]
fn value(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

fn duration(duration: Duration) -> Option<ProtoDuration> {
    let seconds = i64::try_from(duration.as_secs()).ok()?;
    let nanos = i32::try_from(duration.subsec_nanos()).ok()?;
    Some(ProtoDuration { seconds, nanos })
}
