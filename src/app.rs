//! Builds and joins the tasks.
//!
//! So far only the admin server.

use std::sync::Arc;

use anyhow::Context;
use tokio::{net::TcpListener, sync::watch};

use crate::{
    admin::{self, Sources},
    config::Config,
    readiness::Readiness,
    registry::View,
    resource::{ClientKind, ResourceType},
    shutdown::{self, Tasks},
    telemetry,
};

/// For streams to end in order.
const DRAIN: std::time::Duration = std::time::Duration::from_secs(10);

pub async fn run(config: Config) -> anyhow::Result<()> {
    let stop = shutdown::on_signals()?;
    let readiness = Readiness::new();
    for registry in &config.registries {
        readiness.pending(&format!("registry {}", registry.name));
    }
    let listener = TcpListener::bind(config.admin.listen)
        .await
        .with_context(|| format!("cannot listen at {} (admin.listen)", config.admin.listen))?;
    let (_view, view) = watch::channel(View::default());
    let sources = Sources {
        registry: view,
        readiness,
        metrics: telemetry::metrics()?,
        clients: Arc::new(Vec::new),
        resources: Arc::new(|_: ClientKind, _: ResourceType| Vec::new()),
    };
    let mut tasks = Tasks::new();
    tasks.spawn("admin", admin::serve(listener, sources, stop.clone()));
    tasks.run_until(stop, DRAIN).await?;
    Ok(())
}
