//! The xDS protocol: the snapshot's resources to Envoy and gRPC clients.
//!
//! ```text
//! requests ──▶ stream (order, nonces) ──▶ sotw | delta (what is due) ──▶ body (bytes) ──▶ wire
//!                        ▲ snapshot
//! ```
//! It refuses to know services, instances and ZooKeeper: it moves named, versioned bytes.
//! Source: the xDS protocol text and the comments in `discovery.proto`.

pub mod delta;
pub mod request;
pub mod sotw;
pub mod status;
pub mod stream;
mod subscription;
