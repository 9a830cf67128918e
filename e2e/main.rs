//! Tests on the real server: in process, then with real ZooKeeper, Envoy and gRPC.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_precision_loss)]

mod admin;
mod architecture;
mod commands;
mod empty;
mod envoys;
mod failover;
mod faults;
mod fleets;
mod guard;
mod healing;
mod hosts;
mod incidents;
mod increments;
mod introspection;
mod limits;
mod losses;
mod mesh;
mod on_demand;
mod passing;
mod probes;
mod proxyless;
mod registries;
mod rendering;
mod reregistration;
mod support;
mod validation;
mod wire;
mod zookeeper;
