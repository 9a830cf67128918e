//! Reading a running server through its admin HTTP.

use std::{fmt::Write, time::Duration};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{StatusCode, Uri};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

use super::{Usage, output::Format, table::plain};
use crate::config::value::host_port;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(60);

/// Which server is read, and how the answer looks.
#[derive(Clone, Debug, clap::Args)]
pub struct Target {
    /// The running server's admin address
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15014")]
    admin: String,

    /// How the answer looks
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

/// A server to be asked.
#[derive(Debug)]
pub struct Remote {
    address: String,
    client: Client<HttpConnector, Empty<Bytes>>,
}

impl Remote {
    pub fn new(target: &Target) -> Result<Self, Usage> {
        let address = target
            .admin
            .trim_start_matches("http://")
            .trim_end_matches('/');
        host_port(address, 15014).map_err(|why| Usage(format!("--admin: {why}")))?;
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        Ok(Self {
            address: address.to_owned(),
            client: Client::builder(TokioExecutor::new()).build(connector),
        })
    }

    /// The JSON at `path`.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        tokio::time::timeout(TIMEOUT, self.ask(path))
            .await
            .map_err(|_| anyhow!("{} did not answer within {TIMEOUT:?}", self.address))?
    }

    async fn ask(&self, path: &str) -> anyhow::Result<Value> {
        let uri: Uri = format!("http://{}{path}", self.address).parse()?;
        let response = self.client.get(uri).await.map_err(|error| {
            anyhow!(
                "no MeshKeeper answers at {}: {}; start `meshkeeper serve`, or name its admin \
                 address with --admin",
                self.address,
                root_cause(&error)
            )
        })?;
        let status = response.status();
        let body = response.into_body().collect().await;
        let body = body
            .with_context(|| format!("{} broke off while it answered", self.address))?
            .to_bytes();
        self.read(path, status, &body)
    }

    fn read(&self, path: &str, status: StatusCode, body: &[u8]) -> anyhow::Result<Value> {
        let Ok(value) = serde_json::from_slice::<Value>(body) else {
            bail!(
                "{} is no MeshKeeper admin server: it answers {path} with {status} and no JSON; \
                 name the right address with --admin",
                self.address
            );
        };
        if status.is_success() {
            return Ok(value);
        }
        let error = plain(text(&value, "error"));
        bail!(
            "{} refuses: {error}; {}",
            self.address,
            plain(text(&value, "remedy"))
        )
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        cause = error.to_string();
        next = error.source();
    }
    cause
}

/// A member of an object as text; nothing where it has none.
pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// A list, which may be missing.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A value of a query parameter.
pub fn encoded(value: &str) -> String {
    value.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(admin: &str) -> Result<Remote, Usage> {
        Remote::new(&Target {
            admin: admin.into(),
            output: Format::Table,
        })
    }

    #[test]
    fn an_address_may_be_an_url_and_a_wrong_one_names_the_flag() {
        for address in [
            "127.0.0.1:1",
            "http://127.0.0.1:1/",
            "[::1]:1",
            "mesh.local:1",
        ] {
            assert!(remote(address).is_ok(), "{address}");
        }
        let error = remote("15014").unwrap_err().to_string();
        assert!(error.starts_with("--admin: `15014`"), "{error}");
    }

    #[test]
    fn query_values_are_encoded() {
        assert_eq!(encoded("a b&c=ü"), "a%20b%26c%3D%C3%BC");
    }

    #[test]
    fn an_answer_of_something_else_is_told_apart() {
        let remote = remote("127.0.0.1:1").unwrap();
        let other = remote.read("/x", StatusCode::OK, b"<html>").unwrap_err();
        assert!(other.to_string().contains("no MeshKeeper admin server"));
        let body = br#"{"error": "nothing", "remedy": "ask"}"#;
        let refused = remote.read("/x", StatusCode::NOT_FOUND, body).unwrap_err();
        assert_eq!(refused.to_string(), "127.0.0.1:1 refuses: nothing; ask");
    }
}
