//! Tests on the real server: in process, then with real ZooKeeper, Envoy and gRPC.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod admin;
mod commands;
mod support;
mod wire;
mod zookeeper;
