//! The connections of the discovery server: accepted whatever happens, and closed if they are of no use.
//!
//! It knows neither HTTP/2 nor what is served. Invariants: an error of `accept` (no descriptor is
//! left, say) costs a pause and a line in the log, not a core; a peer that does not send the connection preface
//! within [`PATIENCE`] is cut off, as is one that has no stream within [`FIRST_STREAM`], or for
//! [`IDLE`] after its last one; every connection has a place, and loses it to a new one where all are taken and
//! it has had no stream for longest.

use std::{
    convert::Infallible,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::{Instant, Sleep},
};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::{Connected, TcpConnectInfo};
use tracing::{debug, warn};

use crate::places::{Place, Places};

/// When no descriptor is left, trying again at once would burn a core.
const PAUSE: Duration = Duration::from_millis(100);

/// How often the same trouble is said again.
const HINT: Duration = Duration::from_secs(30);

/// How long a peer may take for its preface.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a peer may take for its first stream.
const FIRST_STREAM: Duration = Duration::from_secs(10);

/// A connection without a stream is closed after one to two times this.
const IDLE: Duration = Duration::from_secs(60);

/// `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n`
const PREFACE: usize = 24;

/// Every connection that comes; never an error and never an end.
pub fn incoming(
    listener: TcpListener,
    places: Arc<Places>,
) -> impl Stream<Item = Result<Connection, Infallible>> + Send {
    let state = (listener, places, None);
    stream::unfold(state, |(listener, places, mut said)| async move {
        // Those who are served go first: after a restart thousands may wait here.
        tokio::task::yield_now().await;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let Some(place) = places.take() else {
                        hint(&Full(places.limit()), &mut said);
                        continue;
                    };
                    if let Err(error) = stream.set_nodelay(true) {
                        debug!(%error, "a connection went before it was served");
                    }
                    let connection = Connection::new(stream, place);
                    return Some((Ok(connection), (listener, places, said)));
                }
                Err(error) => {
                    hint(&error, &mut said);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    })
}

#[derive(Debug, thiserror::Error)]
#[error("all {0} connections that the limit of open files allows have streams")]
struct Full(usize);

fn hint(error: &dyn std::error::Error, said: &mut Option<Instant>) {
    if said.is_none_or(|at| at.elapsed() >= HINT) {
        *said = Some(Instant::now());
        warn!(%error, "xds cannot accept a connection; raise the limit of open files (RLIMIT_NOFILE) or add a replica");
    }
}

/// A TCP connection that has to begin with a preface, and to have streams.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    greeting: Option<Greeting>,
    place: Arc<Place>,
    lost: Pin<Box<WaitForCancellationFutureOwned>>,
    idle: Idle,
}

/// Whose connection a request came over.
#[derive(Clone, Debug)]
pub struct Peer {
    pub tcp: TcpConnectInfo,
    pub place: Arc<Place>,
}

/// Looks now and then whether the connection has a stream.
#[derive(Debug)]
struct Idle {
    /// What [`Place::idle`] returned at the last look.
    since: Option<u64>,
    look: Pin<Box<Sleep>>,
}

#[derive(Debug)]
struct Greeting {
    missing: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Connection {
    fn new(stream: TcpStream, place: Place) -> Self {
        let deadline = Box::pin(tokio::time::sleep(PATIENCE));
        let idle = Idle {
            since: place.idle(),
            look: Box::pin(tokio::time::sleep(FIRST_STREAM)),
        };
        Self {
            lost: Box::pin(place.lost().clone().cancelled_owned()),
            place: Arc::new(place),
            idle,
            stream,
            greeting: Some(Greeting {
                missing: PREFACE,
                deadline,
            }),
        }
    }

    /// Whether it is of no use any more.
    fn is_over(&mut self, context: &mut Context<'_>) -> bool {
        if let Some(greeting) = &mut self.greeting
            && greeting.deadline.as_mut().poll(context).is_ready()
        {
            return true;
        }
        self.lost.as_mut().poll(context).is_ready() || self.idle.is_over(&self.place, context)
    }
}

impl Idle {
    fn is_over(&mut self, place: &Place, context: &mut Context<'_>) -> bool {
        while self.look.as_mut().poll(context).is_ready() {
            let since = place.idle();
            if since.is_some() && since == self.since {
                return true;
            }
            self.since = since;
            self.look.as_mut().reset(Instant::now() + IDLE);
        }
        false
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer {
            tcp: self.stream.connect_info(),
            place: Arc::clone(&self.place),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.is_over(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        let read = buffer.filled().len() - before;
        this.greeting = this.greeting.take().and_then(|greeting| {
            let missing = greeting.missing.saturating_sub(read);
            (missing > 0).then_some(Greeting {
                missing,
                ..greeting
            })
        });
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
