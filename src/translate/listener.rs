//! Listeners: the one that a sidecar opens for outbound HTTP, and the API listener of a gRPC target.
//!
//! It refuses to know services and routes; both kinds name a route configuration and leave the rest
//! to it. Invariant: the router is the last HTTP filter, and routes come over
//! the stream that the listener came on. Source: `listener.proto`, `http_connection_manager.proto`,
//! gRFC A27 and A39.

use std::{net::SocketAddr, sync::Arc};

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{
                Address, SocketAddress, TrafficDirection, address, socket_address::PortSpecifier,
            },
            listener::v3::{ApiListener, Filter, FilterChain, Listener, filter::ConfigType},
        },
        extensions::filters::{
            http::router::v3::Router,
            network::http_connection_manager::v3::{
                HttpConnectionManager, HttpFilter, Rds,
                http_connection_manager::{
                    RouteSpecifier, ServerHeaderTransformation, UpgradeConfig,
                },
                http_filter,
            },
        },
    },
    google::protobuf::Duration,
};
use prost::Message;

use super::{
    http::Http,
    name::OUTBOUND,
    rendering::{Spec, ads, any},
    route::{grpc_routes, server_routes},
};
use crate::resource::{Edition, ResourceType};

const MANAGER: &str = "envoy.filters.network.http_connection_manager";

/// The listener of a sidecar.
#[derive(Debug, Hash)]
pub(super) struct OutboundListener {
    pub address: SocketAddr,
    pub http: Arc<Http>,
}

impl Spec for OutboundListener {
    const EDITION: Edition = Edition::Envoy;
    const KIND: ResourceType = ResourceType::Listener;

    fn name(&self) -> Arc<str> {
        OUTBOUND.into()
    }

    fn body(&self) -> Vec<u8> {
        outbound_listener(self.address, &self.http, Vec::new()).encode_to_vec()
    }
}

/// A sidecar's listener, with these HTTP filters before the router.
pub(super) fn outbound_listener(
    address: SocketAddr,
    http: &Http,
    filters: Vec<HttpFilter>,
) -> Listener {
    let mut manager = outbound_manager();
    http.apply(&mut manager);
    manager.http_filters.splice(0..0, filters);
    let manager = Filter {
        name: MANAGER.to_owned(),
        config_type: Some(ConfigType::TypedConfig(any(&manager))),
    };
    Listener {
        name: OUTBOUND.to_owned(),
        address: Some(socket_address(address)),
        filter_chains: vec![FilterChain {
            filters: vec![manager],
            ..Default::default()
        }],
        traffic_direction: TrafficDirection::Outbound.into(),
        ..Default::default()
    }
}

/// What stands for a gRPC target, `xds:///NAME`.
#[derive(Debug, Hash)]
pub(super) struct GrpcListener {
    pub name: Arc<str>,
}

impl Spec for GrpcListener {
    const EDITION: Edition = Edition::Grpc;
    const KIND: ResourceType = ResourceType::Listener;

    fn name(&self) -> Arc<str> {
        self.name.clone()
    }

    fn body(&self) -> Vec<u8> {
        self.message(&self.name).encode_to_vec()
    }
}

impl GrpcListener {
    /// The message, under this or another name.
    pub fn message(&self, name: &str) -> Listener {
        api_listener(name, &manager(&self.name))
    }
}

fn api_listener(name: &str, manager: &HttpConnectionManager) -> Listener {
    Listener {
        name: name.to_owned(),
        api_listener: Some(ApiListener {
            api_listener: Some(any(manager)),
        }),
        ..Default::default()
    }
}

/// The listener of a gRPC target that nothing is registered under: it routes to that cluster.
pub(super) fn unregistered_listener(name: &str, cluster: &str) -> Listener {
    let routes = grpc_routes(name, cluster);
    api_listener(name, &manager_with(RouteSpecifier::RouteConfig(routes)))
}

/// The listener of a gRPC server, which takes every call; `None` where the text is no address.
///
/// Servers compare the address with their own, letter by letter.
pub(super) fn server_listener(name: &str, address: &str) -> Option<Listener> {
    let (host, port) = address.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let manager = manager_with(RouteSpecifier::RouteConfig(server_routes()));
    let manager = Filter {
        name: MANAGER.to_owned(),
        config_type: Some(ConfigType::TypedConfig(any(&manager))),
    };
    Some(Listener {
        name: name.to_owned(),
        address: Some(address_of(host, port)),
        filter_chains: vec![FilterChain {
            filters: vec![manager],
            ..Default::default()
        }],
        traffic_direction: TrafficDirection::Inbound.into(),
        ..Default::default()
    })
}

fn outbound_manager() -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix: OUTBOUND.to_owned(),
        // A response's `server` header is the service's own.
        server_header_transformation: ServerHeaderTransformation::PassThrough.into(),
        strip_trailing_host_dot: true,
        // A quiet stream (gRPC, WebSocket, long poll) may stay quiet: the services know better.
        stream_idle_timeout: Some(Duration::default()),
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..Default::default()
        }],
        ..manager(OUTBOUND)
    }
}

fn manager(routes: &str) -> HttpConnectionManager {
    manager_with(RouteSpecifier::Rds(Rds {
        config_source: Some(ads()),
        route_config_name: routes.to_owned(),
    }))
}

fn manager_with(routes: RouteSpecifier) -> HttpConnectionManager {
    HttpConnectionManager {
        route_specifier: Some(routes),
        http_filters: vec![HttpFilter {
            name: "envoy.filters.http.router".to_owned(),
            config_type: Some(http_filter::ConfigType::TypedConfig(
                any(&Router::default()),
            )),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn socket_address(address: SocketAddr) -> Address {
    address_of(&address.ip().to_string(), address.port())
}

fn address_of(host: &str, port: u16) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: host.to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(u32::from(port))),
            ..Default::default()
        })),
    }
}
