//! The pages in plain text: what is here, whether it lives, whether it is ready, and its metrics.

use std::fmt::Write;

use axum::{
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use prometheus::TextEncoder;

use super::{Page, Sources, api::Refusal};

/// What is served, a line for each page.
pub(super) fn index(pages: &[Page]) -> String {
    let mut text = concat!("MeshKeeper ", env!("CARGO_PKG_VERSION"), "\n\n").to_owned();
    for (path, parameters, about, _) in pages {
        let _ = writeln!(text, "{path:<18} {about}");
        if !parameters.is_empty() {
            let _ = writeln!(text, "{:<18}   {parameters}", "");
        }
    }
    text
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
