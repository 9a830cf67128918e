//! Instances of services: HTTP servers that answer with their own address, and with what was posted.

use std::net::SocketAddr;

use axum::{Router, body::Bytes, routing::any};
use tokio::{net::TcpListener, task::JoinHandle};

/// An instance; dropping it refuses connections from then on.
pub struct Backend {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Backend {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = move |posted: Bytes| async move {
            format!("{address}{}", String::from_utf8_lossy(&posted))
        };
        let router = Router::new().fallback(any(answer));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, task }
    }

    pub async fn start_many(count: usize) -> Vec<Self> {
        let mut backends = Vec::new();
        for _ in 0..count {
            backends.push(Self::start().await);
        }
        backends
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}
