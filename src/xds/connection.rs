//! The connections of the discovery server: taken in whatever happens, and dropped if they never
//! speak.
//!
//! It refuses to know HTTP/2 and what is served. Invariants: an error of `accept` (no descriptor is
//! left, say) costs a pause and a line in the log, not a core; a peer that connects and does not
//! send the connection preface in time is cut off.

use std::{
    convert::Infallible,
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::{Instant, Sleep},
};
use tonic::transport::server::{Connected, TcpConnectInfo};
use tracing::{debug, warn};

/// When no descriptor is left, trying again at once would burn a core.
const PAUSE: Duration = Duration::from_millis(100);

/// How often the same trouble is said again.
const HINT: Duration = Duration::from_secs(30);

/// How long a peer may take for its preface.
const PATIENCE: Duration = Duration::from_secs(5);

/// `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n`
const PREFACE: usize = 24;

/// Every connection that comes; never an error and never an end.
pub fn incoming(
    listener: TcpListener,
) -> impl Stream<Item = Result<Connection, Infallible>> + Send {
    stream::unfold((listener, None), |(listener, mut said)| async move {
        // Those who are served go first: after a restart thousands may wait here.
        tokio::task::yield_now().await;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if let Err(error) = stream.set_nodelay(true) {
                        debug!(%error, "a connection went before it was served");
                    }
                    return Some((Ok(Connection::new(stream)), (listener, said)));
                }
                Err(error) => {
                    hint(&error, &mut said);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    })
}

fn hint(error: &io::Error, said: &mut Option<Instant>) {
    if said.is_none_or(|at| at.elapsed() >= HINT) {
        *said = Some(Instant::now());
        warn!(%error, "xds cannot take a connection; is the limit of open files too low?");
    }
}

/// A TCP connection that has to begin with a preface.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    greeting: Option<Greeting>,
}

#[derive(Debug)]
struct Greeting {
    missing: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Connection {
    fn new(stream: TcpStream) -> Self {
        let deadline = Box::pin(tokio::time::sleep(PATIENCE));
        Self {
            stream,
            greeting: Some(Greeting {
                missing: PREFACE,
                deadline,
            }),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(greeting) = &mut this.greeting
            && greeting.deadline.as_mut().poll(context).is_ready()
        {
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
