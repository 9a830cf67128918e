//! What a sidecar starts with that loads services on demand: a listener whose filter asks for what is
//! missing, and a route configuration without any virtual host.
//!
//! It refuses to know services: their virtual hosts and clusters are those of every sidecar, asked
//! for by name. A request for a host that is not there yet waits until its virtual host came (VHDS)
//! and then until its cluster did (on-demand CDS), both over the stream that the listener came on.
//! Invariant: nothing here depends on the services, so a sidecar's start costs the same in any mesh.
//! Source: `on_demand.proto`, `route.proto` (`Vhds`).

use std::{net::SocketAddr, sync::Arc};

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::ConfigSource,
            route::v3::{RouteConfiguration, Vhds},
        },
        extensions::filters::{
            http::on_demand::v3::{OnDemand, OnDemandCds},
            network::http_connection_manager::v3::{HttpFilter, http_filter},
        },
    },
    google::protobuf::Duration,
};
use prost::Message;

use super::{
    http::Http,
    listener::outbound_listener,
    name::OUTBOUND,
    rendering::{Spec, ads, any},
};
use crate::resource::{Edition, ResourceType};

/// The listener of such a sidecar.
#[derive(Debug, Hash)]
pub(super) struct OnDemandListener {
    pub address: SocketAddr,
    pub http: Arc<Http>,
}

impl Spec for OnDemandListener {
    const EDITION: Edition = Edition::OnDemand;
    const KIND: ResourceType = ResourceType::Listener;

    fn name(&self) -> Arc<str> {
        OUTBOUND.into()
    }

    fn body(&self) -> Vec<u8> {
        outbound_listener(self.address, &self.http, vec![ask_for_what_is_missing()]).encode_to_vec()
    }
}

fn ask_for_what_is_missing() -> HttpFilter {
    let clusters = OnDemandCds {
        source: Some(ads()),
        ..Default::default()
    };
    let filter = OnDemand {
        odcds: Some(clusters),
    };
    HttpFilter {
        name: "envoy.filters.http.on_demand".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(&filter))),
        ..Default::default()
    }
}

/// There is nothing to wait for at the start, but Envoy would wait for some virtual host for 15 s, as
/// an empty answer does not count, and 0 means for ever.
const NOT_AT_ALL: Duration = Duration {
    seconds: 0,
    nanos: 1_000_000,
};

/// Its route configuration.
#[derive(Debug, Hash)]
pub(super) struct OnDemandRoutes;

impl Spec for OnDemandRoutes {
    const EDITION: Edition = Edition::OnDemand;
    const KIND: ResourceType = ResourceType::Route;

    fn name(&self) -> Arc<str> {
        OUTBOUND.into()
    }

    fn body(&self) -> Vec<u8> {
        RouteConfiguration {
            name: OUTBOUND.to_owned(),
            vhds: Some(Vhds {
                config_source: Some(ConfigSource {
                    initial_fetch_timeout: Some(NOT_AT_ALL),
                    ..ads()
                }),
            }),
            ignore_port_in_host_matching: true,
            ..Default::default()
        }
        .encode_to_vec()
    }
}
