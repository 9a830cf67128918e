//! Reading a running server through its admin HTTP.

use std::{fmt::Write, time::Duration};

use anyhow::anyhow;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

use super::{Usage, output::Format, table::plain};
use crate::config::value::host_port;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(60);

/// A probe that waits longer than this has its answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// A probe's page has a line for each thing that is missing or odd.
const PAGE_BYTES: usize = 64 << 10;

/// Which server is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct Server {
    /// The running server's admin address
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15014")]
    admin: String,
}

/// Which server is read, and how the answer looks.
#[derive(Clone, Debug, clap::Args)]
pub struct Target {
    #[command(flatten)]
    pub server: Server,

    /// How the answer looks
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

/// What a server refuses to answer, and why.
#[derive(Debug, thiserror::Error)]
#[error("{address} refuses: {error}; {remedy}")]
pub struct Refused {
    address: String,
    pub status: StatusCode,
    error: String,
    remedy: String,
}

/// A server to be asked.
#[derive(Debug)]
pub struct Remote {
    address: String,
    client: Client<HttpConnector, Empty<Bytes>>,
}

impl Remote {
    pub fn new(server: &Server) -> Result<Self, Usage> {
        let address = server
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
        self.within(TIMEOUT, async {
            let (status, body) = self.ask(Method::GET, path, usize::MAX).await?;
            self.read(path, status, &body)
        })
        .await
    }

    /// Asks for a change; the JSON that tells of it.
    pub async fn post(&self, path: &str) -> anyhow::Result<Value> {
        self.within(TIMEOUT, async {
            let (status, body) = self.ask(Method::POST, path, usize::MAX).await?;
            self.read(path, status, &body)
        })
        .await
    }

    /// What a page for probes says, with 200 for yes and 503 for no.
    pub async fn probe(&self, path: &str) -> anyhow::Result<(StatusCode, String)> {
        self.within(PROBE_TIMEOUT, async {
            let (status, body) = self.ask(Method::GET, path, PAGE_BYTES).await?;
            Ok((status, self.page(path, status, &body)?))
        })
        .await
    }

    async fn within<T>(
        &self,
        time: Duration,
        answer: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        tokio::time::timeout(time, answer)
            .await
            .map_err(|_| anyhow!("{} did not answer within {time:?}", self.address))?
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        most: usize,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let uri: Uri = format!("http://{}{path}", self.address).parse()?;
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .body(Empty::new())?;
        let response = self.client.request(request).await.map_err(|error| {
            anyhow!(
                "no MeshKeeper answers at {}: {}; start `meshkeeper serve`, or name its admin \
                 address with --admin",
                self.address,
                root_cause(&error)
            )
        })?;
        let status = response.status();
        let body = Limited::new(response.into_body(), most).collect().await;
        let body = body
            .map_err(|error| anyhow!("{} broke off while it answered: {error}", self.address))?
            .to_bytes();
        Ok((status, body))
    }

    fn page(&self, path: &str, status: StatusCode, body: &[u8]) -> anyhow::Result<String> {
        let page = String::from_utf8_lossy(body);
        let first = page.lines().next().unwrap_or_default();
        match (status, first) {
            (StatusCode::OK, "alive" | "ready")
            | (StatusCode::SERVICE_UNAVAILABLE, "not ready") => {
                Ok(page.lines().map(|line| plain(line) + "\n").collect())
            }
            _ => Err(self.something_else(path, status, "no state")),
        }
    }

    fn something_else(&self, path: &str, status: StatusCode, lacks: &str) -> anyhow::Error {
        anyhow!(
            "{} is no MeshKeeper admin server: it answers {path} with {status} and {lacks}; \
             name the right address with --admin",
            self.address
        )
    }

    fn read(&self, path: &str, status: StatusCode, body: &[u8]) -> anyhow::Result<Value> {
        let Ok(value) = serde_json::from_slice::<Value>(body) else {
            return Err(self.something_else(path, status, "no JSON"));
        };
        if status.is_success() {
            return Ok(value);
        }
        Err(anyhow::Error::new(Refused {
            address: self.address.clone(),
            status,
            error: plain(text(&value, "error")),
            remedy: plain(text(&value, "remedy")),
        }))
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

/// An instance's address and port, as they are typed.
pub fn address(instance: &Value) -> String {
    let (address, port) = (text(instance, "address"), &instance["port"]);
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
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
        Remote::new(&Server {
            admin: admin.into(),
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
    fn a_probe_believes_only_a_page_that_says_it() {
        let remote = remote("127.0.0.1:1").unwrap();
        let page = |status, body: &str| remote.page("/readyz", status, body.as_bytes());
        let (ok, down) = (StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(
            page(ok, "ready\nzookeeper\u{1b}\n").unwrap(),
            "ready\nzookeeper\\u{1b}\n"
        );
        assert_eq!(page(down, "not ready\nx\n").unwrap(), "not ready\nx\n");
        for (status, body) in [(ok, "<html>"), (ok, ""), (down, "ready"), (ok, "not ready")] {
            let other = page(status, body).unwrap_err().to_string();
            assert!(other.contains("no MeshKeeper admin server"), "{other}");
        }
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
