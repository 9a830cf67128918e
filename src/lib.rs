//! MeshKeeper turns registrations in ZooKeeper into live configuration for a service mesh.
//!
//! ```text
//! zookeeper ──Event──▶ registry ──Change──▶ publish ──▶ translate ──Resource──▶ snapshot ──▶ xds ──▶ Envoy · gRPC
//!    I/O                 pure                async         pure                   value        pure + thin I/O
//! beside it: config (in, at start) · metrics, readiness, tracing (out) · admin (reads; releases holds)
//! ```
//!
//! What never happens here:
//! 1. Nothing but a deregistration removes an endpoint: no outage, session expiry, leader change,
//!    slow ensemble, restart or bad payload does.
//! 2. Equal content never gets two versions, on any replica, before or after a restart.
//! 3. One bad znode or client never harms another.
//! 4. A change never costs more than what it touches; a slow client never costs anyone else.
//! 5. An empty wildcard never goes out before the registry is loaded.
//! 6. A task never dies in silence: any early end stops the process with its name and a non-zero
//!    exit status.

pub mod admin;
pub mod app;
pub mod commands;
pub mod config;
pub mod lint;
pub mod model;
pub mod places;
pub mod probe;
pub mod publish;
pub mod readiness;
pub mod registry;
pub mod resolve;
pub mod resource;
pub mod shutdown;
pub mod snapshot;
pub mod state;
pub mod telemetry;
pub mod translate;
pub mod xds;
pub mod zookeeper;
