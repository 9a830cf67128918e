//! The pages in plain text: what is here, whether it lives, whether it is ready, and its metrics.

use axum::{
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use prometheus::TextEncoder;

use super::{Sources, api::Refusal};

const INDEX: &str = concat!(
    "MeshKeeper ",
    env!("CARGO_PKG_VERSION"),
    "

/livez              200 while the process lives
/readyz             200 once the registry is loaded; else 503 and what is missing
/metrics            Prometheus metrics
/api/v1/services    services and their instances        ?name=SERVICE
/api/v1/rejected    znodes that are left out, and why
/api/v1/holds       instances that are served though they are gone
/api/v1/release     POST, from this machine: lets them go   ?service=SERVICE&registry=REGISTRY
/api/v1/clients     connected clients and how they stand
/api/v1/config      what clients are sent               ?kind=envoy|grpc
                                                        &type=clusters|endpoints|routes|listeners
                                                        &name=RESOURCE
"
);

pub async fn index() -> &'static str {
    INDEX
}

/// That it answers is all there is to say: a task that dies ends the process.
pub async fn livez() -> &'static str {
    "alive\n"
}

pub async fn readyz(State(sources): State<Sources>) -> Response {
    let status = sources.readiness.status();
    let code = if status.is_ready() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, status.to_string()).into_response()
}

pub async fn metrics(State(sources): State<Sources>) -> Result<Response, Refusal> {
    let text = TextEncoder::new()
        .encode_to_string(&sources.metrics.gather())
        .map_err(|error| Refusal::internal(&error))?;
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    Ok(([(CONTENT_TYPE, content_type)], text).into_response())
}
