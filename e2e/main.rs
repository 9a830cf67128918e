//! Tests on the real server: in process, then with real ZooKeeper, Envoy and gRPC.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod admin;
mod support;
mod wire;
