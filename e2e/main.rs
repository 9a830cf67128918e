//! Tests on the real server: in process, then with real ZooKeeper, Envoy and gRPC.

mod admin;
