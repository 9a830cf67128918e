//! The sockets of the admin server: a bounded number of connections, each for a bounded time.
//!
//! It does not know the pages. Every connection carries one request, so that an idle one can be
//! told from a busy one by its age alone; operators and probes ask rarely enough for that. When all places are
//! taken, the oldest connection gives up its own: whoever opens many of them, or reads slowly, keeps no probe out.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{
        HeaderValue, Method, Request, Response, StatusCode,
        header::{ALLOW, CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS},
    },
    response::IntoResponse,
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Service;

use super::{
    RELEASE, Sources,
    api::Refusal,
    holds::{Ends, allowed},
    host::Gate,
};
use crate::places::{Place, Places};

/// What serving may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub connections: usize,
    /// From the connection to the end of the request's head.
    pub head: Duration,
    /// From the connection to the end of the response.
    pub whole: Duration,
    /// For what is under way when it is asked to stop.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 128,
            head: Duration::from_secs(5),
            whole: Duration::from_secs(60),
            drain: Duration::from_secs(1),
        }
    }
}

/// A request's head may be as long as this.
const HEAD_BYTES: usize = 16 << 10;

/// When the process has no socket left, trying again at once would burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves until `stop`.
pub async fn serve(
    listener: TcpListener,
    sources: Sources,
    stop: CancellationToken,
) -> io::Result<()> {
    serve_within(listener, sources, stop, Limits::default()).await;
    Ok(())
}

/// As [`serve`], within limits of the caller's.
pub async fn serve_within(
    listener: TcpListener,
    sources: Sources,
    stop: CancellationToken,
    limits: Limits,
) {
    let gate = Arc::new(Gate::new(sources.hosts.clone()));
    let router = super::router(sources);
    let places = Places::new(limits.connections);
    let tracker = TaskTracker::new();
    while let Some((stream, place)) = accept(&listener, &places, &stop).await {
        let connection = connection(stream, router.clone(), Arc::clone(&gate), limits);
        tracker.spawn(async move {
            tokio::select! {
                () = connection => {}
                () = place.lost().cancelled() => {
                    tracing::debug!("an admin connection made room for a new one");
                }
            }
        });
    }
    drop(listener);
    tracker.close();
    let _ = timeout(limits.drain, tracker.wait()).await;
}

/// `None` when it is asked to stop.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Places>,
    stop: &CancellationToken,
) -> Option<(TcpStream, Place)> {
    let next = async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if let Some(place) = places.take() {
                        return Some((stream, place));
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot accept an admin connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => None,
        next = next => next,
    }
}

async fn connection(stream: TcpStream, router: Router, gate: Arc<Gate>, limits: Limits) {
    let ends = Ends {
        own: stream.local_addr().ok(),
        peer: stream.peer_addr().ok(),
    };
    let service =
        service_fn(move |request| answer(router.clone(), Arc::clone(&gate), ends, request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(limits.whole, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an admin connection broke off"),
        Err(_) => tracing::debug!("an admin connection took too long"),
    }
}

async fn answer(
    mut router: Router,
    gate: Arc<Gate>,
    ends: Ends,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let mut response = match *request.method() {
        Method::GET | Method::HEAD => match gate.check(ends, request.uri(), request.headers()) {
            Ok(()) => router.call(request).await?,
            Err(refusal) => refusal.into_response(),
        },
        Method::POST if request.uri().path() == RELEASE => match allowed(ends, request.headers()) {
            Ok(()) => router.call(request).await?,
            Err(refusal) => refusal.into_response(),
        },
        ref method => not_allowed(method),
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

fn not_allowed(method: &Method) -> Response<Body> {
    let refusal = Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{method} changes nothing here"),
        "everything is read with GET; POST releases what is held",
    );
    ([(ALLOW, "GET, HEAD")], refusal).into_response()
}
