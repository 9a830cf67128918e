//! The xDS protocol: the snapshot's resources to Envoy and gRPC clients.
//!
//! ```text
//! server ──▶ session ──▶ stream (order, nonces) ──▶ sotw | delta (what is due)
//!                └─────▶ body (bytes) ──▶ wire
//! ```
//! Beside it: `admission` (who is let in), `csds` (how clients stand), `audit` (who is behind), `lrs` (what they report).
//! It refuses to know services, instances and ZooKeeper: it moves named, versioned bytes.
//! Source: the xDS protocol text and the comments in `discovery.proto`.

pub mod admission;
mod age;
pub mod audit;
pub mod body;
pub mod clients;
#[cfg(test)]
mod conformance;
pub mod connection;
pub mod csds;
pub mod delta;
pub mod fanout;
mod globs;
mod held;
pub mod lines;
pub mod loads;
pub mod lrs;
pub mod metrics;
mod pace;
mod rejection;
pub mod request;
pub mod server;
pub mod session;
pub mod sotw;
mod spelling;
pub mod status;
pub mod stream;
mod subscription;
