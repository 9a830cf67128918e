//! How the process ends: on a signal, in order and within a deadline, or because a task ended early.
//!
//! It refuses to know what the tasks do. Invariant: no task ends in silence; one that returns, fails
//! or panics before it was asked to stop stops all others, and its name is in the error.

use std::{any::Any, collections::HashMap, fs, future::Future, io, time::Duration};

use nix::{
    libc::{SIGRTMAX, SIGRTMIN},
    sys::signal::Signal as Number,
};
use tokio::{
    runtime::Handle,
    signal::unix::{Signal, SignalKind, signal},
    task::{Id, JoinError, JoinSet},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why the tasks did not end as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the task `{0}` ended though nothing asked it to")]
    Ended(&'static str),
    #[error("the task `{name}` failed: {cause}")]
    Failed { name: &'static str, cause: Cause },
    #[error("the task `{name}` panicked: {message}")]
    Panicked { name: &'static str, message: String },
    #[error("not drained within {}: {}", .after.as_secs_f64(), .names.join(", "))]
    Deadline {
        after: Duration,
        names: Vec<&'static str>,
    },
}

/// The signals that ask the process to end: SIGTERM, SIGINT, SIGQUIT and SIGHUP.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    /// The terminal went away; none under `nohup`.
    hangup: Option<Signal>,
}

impl Signals {
    /// From here on no signal ends the process by itself, but those that cannot be caught and those of faults.
    pub fn catch() -> io::Result<Self> {
        ignore_others()?;
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hangup: if hangup_is_ignored() {
                None
            } else {
                Some(signal(SignalKind::hangup())?)
            },
        })
    }

    /// The name of the next one.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.quit.recv() => "SIGQUIT",
            Some(()) = recv(self.hangup.as_mut()) => "SIGHUP",
        }
    }
}

/// Signals that would end the process, though they ask for something that it does not do. Rust's runtime ignores
/// SIGPIPE.
const OTHERS: [Number; 10] = [
    Number::SIGUSR1,
    Number::SIGUSR2,
    Number::SIGALRM,
    Number::SIGVTALRM,
    Number::SIGPROF,
    Number::SIGIO,
    Number::SIGPWR,
    Number::SIGSTKFLT,
    Number::SIGXCPU,
    Number::SIGXFSZ,
];

/// Logs signals that mean nothing here. They are caught rather than ignored: a child would inherit the latter.
fn ignore_others() -> io::Result<()> {
    let named = OTHERS.map(|number| (number as i32, number.as_str().to_owned()));
    let real_time = (SIGRTMIN()..=SIGRTMAX()).map(|number| (number, format!("signal {number}")));
    for (number, name) in named.into_iter().chain(real_time) {
        let mut signals = signal(SignalKind::from_raw(number))?;
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                tracing::info!(signal = name, "signal ignored; SIGTERM stops the process");
            }
        });
    }
    Ok(())
}

async fn recv(signal: Option<&mut Signal>) -> Option<()> {
    signal?.recv().await
}

/// Whoever started the process with SIGHUP ignored wants it to outlive the terminal.
fn hangup_is_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignored(&status) & 1 != 0
}

/// The set of ignored signals, the first signal being bit 0, from a `/proc/PID/status`.
fn ignored(status: &str) -> u64 {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .unwrap_or_default();
    u64::from_str_radix(mask.trim(), 16).unwrap_or_default()
}

/// Cancelled by the first of them; a second one ends the process at once, with status 1.
pub fn on_signals() -> io::Result<CancellationToken> {
    let mut signals = Signals::catch()?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        let signal = signals.next().await;
        tracing::info!(signal, "stopping; a second signal stops at once");
        token.cancel();
        let signal = signals.next().await;
        tracing::warn!(signal, "stopped at once");
        std::process::exit(1);
    });
    Ok(stop)
}

/// The tasks that the process lives by.
#[derive(Debug, Default)]
pub struct Tasks {
    running: JoinSet<Result<(), Cause>>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    /// The task has to run until the token of [`Tasks::run_until`] is cancelled, and to end then.
    pub fn spawn<F, E>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<Cause>,
    {
        self.spawn_on(&Handle::current(), name, task);
    }

    /// As [`Tasks::spawn`], on another runtime.
    pub fn spawn_on<F, E>(&mut self, runtime: &Handle, name: &'static str, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<Cause>,
    {
        let task = async move { task.await.map_err(Into::into) };
        let handle = self.running.spawn_on(task, runtime);
        self.names.insert(handle.id(), name);
    }

    /// Runs until `stop` is cancelled or a task ends early, which cancels it; then waits for the
    /// others, `drain` at most, and drops those that take longer. The first error is what counts.
    pub async fn run_until(
        mut self,
        stop: CancellationToken,
        drain: Duration,
    ) -> Result<(), Error> {
        let mut first = Ok(());
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            Some(ended) = self.running.join_next_with_id() => {
                // It may have been asked to stop and been quicker than this task.
                first = if stop.is_cancelled() {
                    self.outcome(ended).map(drop)
                } else {
                    Err(self.early(ended))
                };
                stop.cancel();
            }
        }
        let drained = self.drain(drain).await;
        first.and(drained)
    }

    fn early(&mut self, ended: Result<(Id, Result<(), Cause>), JoinError>) -> Error {
        match self.outcome(ended) {
            Ok(name) => Error::Ended(name),
            Err(error) => error,
        }
    }

    async fn drain(mut self, within: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + within;
        let mut result = Ok(());
        while !self.running.is_empty() {
            let Ok(ended) = timeout_at(deadline, self.running.join_next_with_id()).await else {
                let mut names: Vec<_> = self.names.into_values().collect();
                names.sort_unstable();
                let late = Error::Deadline {
                    after: within,
                    names,
                };
                return result.and(Err(late));
            };
            if let Some(ended) = ended {
                result = result.and(self.outcome(ended).map(drop));
            }
        }
        result
    }

    /// The name of a task that returned, or what went wrong with it.
    fn outcome(
        &mut self,
        ended: Result<(Id, Result<(), Cause>), JoinError>,
    ) -> Result<&'static str, Error> {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let name = self.names.remove(&id).unwrap_or("unnamed");
        match ended {
            Ok((_, Ok(()))) => Ok(name),
            Ok((_, Err(cause))) => Err(Error::Failed { name, cause }),
            Err(error) => Err(Error::Panicked {
                name,
                message: error
                    .try_into_panic()
                    .map_or_else(|error| error.to_string(), |panic| panic_text(&*panic)),
            }),
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_status() {
        let status = "Name:\tx\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\n";
        assert_eq!(ignored(status), 0x1001);
        assert_eq!(ignored(""), 0);
    }

    const LONG: Duration = Duration::from_secs(60);

    async fn until(stop: CancellationToken) -> Result<(), io::Error> {
        stop.cancelled().await;
        Ok(())
    }

    /// Two tasks that behave, and the one in question.
    async fn run(
        task: impl Future<Output = Result<(), io::Error>> + Send + 'static,
        stop: CancellationToken,
    ) -> Result<(), Error> {
        let mut tasks = Tasks::new();
        tasks.spawn("one", until(stop.clone()));
        tasks.spawn("odd", task);
        tasks.spawn("two", until(stop.clone()));
        tasks.run_until(stop, LONG).await
    }

    #[tokio::test]
    async fn tasks_that_end_when_asked_are_no_error() {
        let stop = CancellationToken::new();
        let asked = stop.clone();
        tokio::spawn(async move { asked.cancel() });
        run(until(stop.clone()), stop).await.unwrap();
    }

    #[tokio::test]
    async fn a_task_that_returns_early_stops_all_and_is_named() {
        let stop = CancellationToken::new();
        let error = run(async { Ok(()) }, stop.clone()).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the task `odd` ended though nothing asked it to"
        );
        assert!(stop.is_cancelled());
    }

    #[tokio::test]
    async fn a_task_that_fails_stops_all_with_its_cause() {
        let failure = async { Err(io::Error::other("disk on fire")) };
        let error = run(failure, CancellationToken::new()).await.unwrap_err();
        assert_eq!(error.to_string(), "the task `odd` failed: disk on fire");
    }

    #[tokio::test]
    async fn a_task_that_panics_stops_all_with_its_message() {
        let error = run(
            async { panic!("at the {}", "disco") },
            CancellationToken::new(),
        )
        .await
        .unwrap_err();
        assert_eq!(error.to_string(), "the task `odd` panicked: at the disco");
    }

    #[tokio::test]
    async fn a_task_that_fails_while_it_drains_is_told_too() {
        let stop = CancellationToken::new();
        let asked = stop.clone();
        let task = async move {
            asked.cancel();
            asked.cancelled().await;
            Err(io::Error::other("late"))
        };
        let error = run(task, stop).await.unwrap_err();
        assert_eq!(error.to_string(), "the task `odd` failed: late");
    }

    #[tokio::test]
    async fn tasks_that_do_not_drain_are_named_after_the_deadline() {
        let stop = CancellationToken::new();
        stop.cancel();
        let mut tasks = Tasks::new();
        tasks.spawn("odd", std::future::pending::<Result<(), io::Error>>());
        let error = tasks.run_until(stop, Duration::ZERO).await.unwrap_err();
        let Error::Deadline { names, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(names, ["odd"]);
    }
}
