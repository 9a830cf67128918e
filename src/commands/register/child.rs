//! The program that serves a registered instance.
//!
//! It is the head of a process group of its own: Ctrl-C reaches us alone, so that it is
//! deregistered before it hears of it, and what it started itself is stopped with it.

use std::{
    ffi::OsString,
    io::{self, IsTerminal},
    os::unix::process::ExitStatusExt,
    process::{ExitCode, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::Context;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{process, sync::mpsc, time::sleep};

/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Child {
    process: process::Child,
    /// Its process group; none if it could not be told.
    group: Option<Pid>,
    /// Whether its end was told; it has one.
    told: bool,
}

impl Child {
    pub fn start(program: &OsString, arguments: &[OsString]) -> anyhow::Result<Self> {
        let mut command = process::Command::new(program);
        command.args(arguments).process_group(0);
        if io::stdin().is_terminal() {
            // Reading from a terminal outside its foreground group would stop it.
            command.stdin(Stdio::null());
        }
        let process = command
            .spawn()
            .with_context(|| format!("cannot start `{}`", program.display()))?;
        let id = process.id().and_then(|id| i32::try_from(id).ok());
        Ok(Self {
            process,
            group: id.map(Pid::from_raw),
            told: false,
        })
    }

    /// Waits for its end; may be dropped and called again.
    pub async fn ended(&mut self) {
        if let Ok(status) = self.process.wait().await {
            self.tell(status);
        }
    }

    /// Stops it if it still runs, the hard way in a hurry or on a signal. Its exit status becomes
    /// ours.
    pub async fn terminate(
        mut self,
        hurry: bool,
        signals: &mut mpsc::Receiver<&'static str>,
    ) -> anyhow::Result<ExitCode> {
        let status = self.stop(hurry, signals).await?;
        self.tell(status);
        Ok(code(status))
    }

    async fn stop(
        &mut self,
        hurry: bool,
        signals: &mut mpsc::Receiver<&'static str>,
    ) -> io::Result<ExitStatus> {
        if let Some(status) = self.process.try_wait()? {
            return Ok(status);
        }
        if hurry {
            self.kill(Signal::SIGKILL);
            return self.process.wait().await;
        }
        self.kill(Signal::SIGTERM);
        tokio::select! {
            status = self.process.wait() => return status,
            () = sleep(GRACE) => tracing::warn!("the command does not stop; killing it"),
            Some(signal) = signals.recv() => tracing::warn!(signal, "killing the command"),
        }
        self.kill(Signal::SIGKILL);
        self.process.wait().await
    }

    /// Once, as soon as it is known.
    fn tell(&mut self, status: ExitStatus) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::info!("the command {}", end(status));
        }
    }

    /// Its id is still its own: it was not waited for yet.
    fn kill(&self, signal: Signal) {
        if let Some(group) = self.group
            && let Err(error) = killpg(group, signal)
        {
            tracing::debug!(%error, "cannot signal the command");
        }
    }

    #[cfg(test)]
    pub fn pid(&self) -> Pid {
        self.group.unwrap()
    }
}

/// How it ended, in words.
fn end(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// As shells tell it: 128 and the signal's number for one that was killed.
fn code(status: ExitStatus) -> ExitCode {
    let number = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(1);
    super::super::exit_code(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_by_status_or_signal() {
        assert_eq!(end(ExitStatus::from_raw(0)), "exited with 0");
        assert_eq!(end(ExitStatus::from_raw(3 << 8)), "exited with 3");
        assert_eq!(end(ExitStatus::from_raw(9)), "was killed by signal 9");
    }
}
