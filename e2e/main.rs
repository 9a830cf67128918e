//! Tests on the real server: in process, then with real ZooKeeper, Envoy and gRPC.

#![allow(clippy::unwrap_used, clippy::expect_used)] // What fails here fails the test.

mod support {
    pub mod proxy;
    pub mod zookeeper;
}
mod zookeeper;
