//! A small HTTP client for admin ports and for traffic through sidecars.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

/// Keeps its connections, like a service that calls another.
#[derive(Clone)]
pub struct Http(Client<HttpConnector, Full<Bytes>>);

impl Http {
    pub fn new() -> Self {
        Self(Client::builder(TokioExecutor::new()).build_http())
    }

    /// The answer's status and text; a connection that fails is an error text.
    pub async fn get(
        &self,
        address: SocketAddr,
        host: &str,
        path: &str,
    ) -> Result<(StatusCode, String), String> {
        let request = Request::get(format!("http://{address}{path}"));
        self.send(request, host, Bytes::new()).await
    }

    pub async fn post(
        &self,
        address: SocketAddr,
        host: &str,
        body: impl Into<Bytes>,
    ) -> Result<(StatusCode, String), String> {
        let request = Request::post(format!("http://{address}/"));
        self.send(request, host, body.into()).await
    }

    async fn send(
        &self,
        request: http::request::Builder,
        host: &str,
        body: Bytes,
    ) -> Result<(StatusCode, String), String> {
        let request = request.header("host", host).body(body.into()).unwrap();
        let response = self
            .0
            .request(request)
            .await
            .map_err(|error| format!("{error:?}"))?;
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(|error| error.to_string())?;
        Ok((
            status,
            String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        ))
    }

    /// The body of a 200, or nothing yet.
    pub async fn text(&self, address: SocketAddr, path: &str) -> Option<String> {
        let (status, body) = self.get(address, "localhost", path).await.ok()?;
        (status == StatusCode::OK).then_some(body)
    }

    pub async fn json(&self, address: SocketAddr, path: &str) -> Option<Value> {
        serde_json::from_str(&self.text(address, path).await?).ok()
    }
}
