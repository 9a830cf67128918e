//! Waiting for states instead of sleeping.

use std::{
    net::{SocketAddr, TcpListener},
    time::{Duration, Instant},
};

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

/// An address of the loopback interface that nobody listened on a moment ago.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}
