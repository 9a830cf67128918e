//! What still has to happen before the process can serve, and what operators should know meanwhile.
//!
//! It refuses to know why something is pending or noted. Invariant: ready exactly when nothing is
//! pending; a note never changes that. All clones share one state, and changes can be waited for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use tokio::sync::watch;

/// Cloneable handle to the shared state.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<watch::Sender<Status>>);

/// A picture of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// What is missing, by name (`registry main`).
    pub pending: BTreeSet<String>,
    /// What is odd though served, by subject (`zookeeper main` → `disconnected since …`).
    pub notes: BTreeMap<String, String>,
}

impl Readiness {
    pub fn new() -> Self {
        Self::default()
    }

    /// Not ready until [`Readiness::done`] is told the same name.
    pub fn pending(&self, name: &str) {
        self.change(|status| status.pending.insert(name.to_owned()));
    }

    pub fn done(&self, name: &str) {
        self.change(|status| status.pending.remove(name));
    }

    /// Replaces what was noted of the subject before.
    pub fn note(&self, subject: &str, text: &str) {
        self.change(|status| {
            let old = status.notes.insert(subject.to_owned(), text.to_owned());
            old.as_deref() != Some(text)
        });
    }

    pub fn clear_note(&self, subject: &str) {
        self.change(|status| status.notes.remove(subject).is_some());
    }

    pub fn status(&self) -> Status {
        self.0.borrow().clone()
    }

    pub fn is_ready(&self) -> bool {
        self.0.borrow().is_ready()
    }

    /// Sees every later state, or the latest of several.
    pub fn subscribe(&self) -> watch::Receiver<Status> {
        self.0.subscribe()
    }

    /// Wakes who waits only if `change` says that it changed something.
    fn change(&self, change: impl FnOnce(&mut Status) -> bool) {
        self.0.send_if_modified(change);
    }
}

impl Status {
    pub fn is_ready(&self) -> bool {
        self.pending.is_empty()
    }
}

/// `ready`, or `not ready` and what is missing, a line each; then the notes.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_ready() {
            f.write_str("ready\n")?;
        } else {
            f.write_str("not ready\n")?;
        }
        for name in &self.pending {
            writeln!(f, "waiting for: {name}")?;
        }
        for (subject, text) in &self.notes {
            writeln!(f, "note: {subject}: {text}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_once_everything_pending_is_done() {
        let readiness = Readiness::new();
        readiness.pending("registry main");
        readiness.pending("listener");
        readiness.done("registry main");
        assert!(!readiness.is_ready());
        readiness.clone().done("listener");
        assert!(readiness.is_ready());
    }

    #[test]
    fn a_note_is_told_and_does_not_make_unready() {
        let readiness = Readiness::new();
        readiness.note("zookeeper main", "disconnected");
        assert_eq!(
            readiness.status().to_string(),
            "ready\nnote: zookeeper main: disconnected\n"
        );
        readiness.clear_note("zookeeper main");
        assert_eq!(readiness.status().to_string(), "ready\n");
    }

    #[test]
    fn what_is_missing_is_named() {
        let readiness = Readiness::new();
        readiness.pending("registry main");
        assert_eq!(
            readiness.status().to_string(),
            "not ready\nwaiting for: registry main\n"
        );
    }

    #[tokio::test]
    async fn changes_can_be_waited_for_and_repetitions_wake_nobody() {
        let readiness = Readiness::new();
        readiness.pending("a");
        let mut changes = readiness.subscribe();
        readiness.pending("a");
        readiness.done("b");
        assert!(!changes.has_changed().unwrap());
        readiness.done("a");
        changes.wait_for(Status::is_ready).await.unwrap();
    }
}
