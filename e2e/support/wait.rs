//! Waiting for states instead of sleeping.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::zookeeper::free_port;

/// Longer than any state here takes to come about on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// Asks again until the answer is there; panics with `what` when it does not come.
pub async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "not seen within {PATIENCE:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An address of the loopback interface that nobody listened on a moment ago and nobody else was given.
pub fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}
